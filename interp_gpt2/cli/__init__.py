"""The command `interp-gpt2`: the only place that prints. Nothing heavy is imported before a command has been chosen."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0, 1 (a bug), 2 (usage), 3 (diverged), 4 (a file), 5 (another process of the run is gone), 130 or 143 (interrupted).
    """
    from interp_gpt2.cli.command_line import leave, run_command
    from interp_gpt2.training.launch import place

    code = run_command(argv)
    if place().world > 1:
        leave(code)
    return code
