"""Activations on disk: hook points x tokens x checkpoints, in shards of safetensors that are read by memory map."""
