"""Mathematics on what a model computes: tensors in, tensors or small frozen results out; no files, no printing, no plots."""
