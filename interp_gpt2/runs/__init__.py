"""The run directory: checkpoints that are whole or refused, and the run that made them."""
