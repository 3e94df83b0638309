"""The hook contract: what a researcher may rely on at every hook point, as checks that run on any GPT-2."""
