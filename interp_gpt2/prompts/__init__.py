"""Pairs of prompts that differ in one respect, with the answers that tell which was read: what causal analyses compare."""
