"""Which command, and what becomes of its errors."""

import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches

import interp_gpt2
from interp_gpt2.cli.parse import UsageError, parse
from interp_gpt2.errors import CheckpointError, CheckpointWriteError, DivergenceError, InterpGPT2Error, ProcessLostError
from interp_gpt2.training.launch import place
from interp_gpt2.training.signals import Interrupted

# name: what it does. The class that does it is the only one of its module with a `run` of its own.
COMMANDS = {
    "demo": "train two small models, watch circuits form, write two reports",
    "data": "tokenize a corpus for training: TinyStories, FineWeb-Edu, your own",
    "train": "train a GPT-2, on a recipe or on your own text",
    "report": "everything about a run, as one self-contained HTML page",
    "runs": "the runs in a folder, with their last losses",
    "lens": "what each layer would predict: the logit lens of a prompt",
    "heads": "induction, previous-token and other scores of every head",
    "sweep": "analyses by name over the checkpoints of a run, as one table",
    "neurons": "pages of neurons: contexts, effects on logits, history",
    "patch": "which pieces of the model carry an answer: activation patching",
    "cache": "activations on disk: many hook points, tokens and checkpoints",
    "generate": "continue a prompt",
    "convert": "to Hugging Face or TransformerLens",
    "push": "a run to the Hugging Face Hub, a branch for each step",
    "contract": "whether hook points keep their promises, on any model",
    "doctor": "versions, devices and files this installation has",
}

USAGE, DIVERGED, FILES, LOST, INTERRUPTED, TERMINATED = 2, 3, 4, 5, 130, 143  # beside 0, and 1 for a bug


def run_command(argv: Sequence[str] | None = None) -> int:
    """Run a command. A user's mistake is one line on stderr; anything else keeps its traceback, as all do with --debug."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = dispatch(words)
        sys.stdout.flush()
        return code
    except InterpGPT2Error as error:
        if debug:
            raise
        return _refuse(error, exit_code(error))
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if debug or error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}", FILES)
    except Interrupted as stop:
        hint = "; the same command with --resume goes on" if words[:1] in (["train"], ["demo"]) else ""
        return _refuse(f"{stop}{hint}", stop.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        return _refuse("interrupted", INTERRUPTED)


def exit_code(error: InterpGPT2Error) -> int:
    """What the shell is told of a refusal."""
    if isinstance(error, (CheckpointError, CheckpointWriteError)):
        return FILES
    if isinstance(error, ProcessLostError):
        return LOST
    return DIVERGED if isinstance(error, DivergenceError) else USAGE


def dispatch(words: list[str]) -> int:
    """Find the command, read its options, run it."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"interp-gpt2 {interp_gpt2.__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {name!r}; {hint}")
    module = importlib.import_module(f"interp_gpt2.cli.{name}")
    command = parse(getattr(module, name.capitalize()), rest, f"interp-gpt2 {name}", module.EXAMPLES)
    if isinstance(command, str):
        print(command)
        return 0
    return command.run() or 0


def overview() -> str:
    """The help of the whole command."""
    commands = [f"  {name:<9} {does}" for name, does in COMMANDS.items()]
    return "\n".join(
        [
            "usage: interp-gpt2 COMMAND ...",
            "",
            "Train a GPT-2, keep its checkpoints, and see how it learned.",
            "",
            "commands:",
            *commands,
            "",
            "RUN is a run's directory, one of its checkpoints, a name under checkpoints/, or",
            "models of others: folders named after steps, nanoGPT's, someone/name on the Hub.",
            "`interp-gpt2 COMMAND --help` has options and examples; --debug shows tracebacks.",
            "",
            "examples:",
            "  interp-gpt2 demo",
            "  interp-gpt2 train --data my-text.txt --steps 1000",
            "  interp-gpt2 report my-text",
        ]
    )


def leave(code: int) -> None:
    """End this process, one of several, at once: with a group of processes torn apart, Python's own ending may abort it.

    When one ends with an error `torchrun` ends the rest, so the first one, which says what happened, goes first.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code and place().rank:
        time.sleep(1)
    os._exit(code)


def _refuse(problem: object, code: int) -> int:
    here = place()
    if here.rank and code in (DIVERGED, INTERRUPTED, TERMINATED):
        return code  # it happened to all of the processes, and the first one says so
    who = "interp-gpt2" if here.world == 1 else f"interp-gpt2, process {here.rank} of {here.world}"
    print(f"{who}: {' '.join(str(problem).split())}", file=sys.stderr)
    return code
