"""What can go wrong, by name.

Every error raised on purpose derives from `InterpGPT2Error`, which is a ValueError: `except ValueError` keeps working,
and `except InterpGPT2Error` tells our refusals from accidents. The command line turns them into one line and exit code 2
(3 for training that diverged, 4 for files of a run that cannot be read or written, 5 for a lost process).
"""


class InterpGPT2Error(ValueError):
    """Base of every error this library raises on purpose."""


class ConfigError(InterpGPT2Error):
    """A configuration that does not describe a GPT-2 or a training run."""


class HookNameError(InterpGPT2Error):
    """A hook-point name or pattern that matches nothing."""


class EditError(InterpGPT2Error):
    """An edit that returned something other than a tensor like the one it was given, or that could have no effect."""


class TokenError(InterpGPT2Error):
    """Tokens the model cannot read: wrong dtype or shape, ids outside the vocabulary."""


class ContextLengthError(TokenError):
    """More tokens than the model has positions."""


class ShapeError(InterpGPT2Error):
    """Tensors whose shapes do not fit each other."""


class TokenizerError(InterpGPT2Error):
    """Text that cannot be encoded, or tokenizer files that are missing or damaged."""


class DataError(InterpGPT2Error):
    """A corpus or token stream that is missing, empty or damaged."""


class ConversionError(InterpGPT2Error):
    """A model that the other format cannot represent exactly."""


class CheckpointError(InterpGPT2Error):
    """A checkpoint that is missing, truncated or altered."""


class CheckpointWriteError(InterpGPT2Error):
    """A checkpoint, or another file of a run, that could not be written; earlier checkpoints are untouched."""


class RunError(InterpGPT2Error):
    """A run directory that is in use, already exists, or lacks what was asked for."""


class StoreError(InterpGPT2Error):
    """An activation store that is of another model or text, is not finished, or lacks what was asked for."""


class DivergenceError(InterpGPT2Error):
    """Training whose loss or gradient is no longer a finite number."""


class ProcessLostError(InterpGPT2Error):
    """One of several processes that train together has ended, or cannot be reached any more."""


class AnalysisError(InterpGPT2Error):
    """An analysis that has no answer on this input, such as an induction score without a repeated token."""
