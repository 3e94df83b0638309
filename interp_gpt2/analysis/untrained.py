"""The yardstick of a trained model: one of its shape that has learnt nothing."""

from interp_gpt2.model import GPT2

# Not one that a run is likely to have started from: the distance of its first checkpoint from itself would be 0.
_SEED = 715_517


def untrained_like(model: GPT2) -> GPT2:
    """A model of the same configuration at its initialisation, always the same one, ready to be looked at."""
    return GPT2(model.config, seed=_SEED).eval().to(model.device)
