"""Whatever is registered can be asked for by name, and the command line says which names there are."""

import inspect

from interp_gpt2.analysis.registry import REGISTRY
from interp_gpt2.cli import train


def test_the_command_line_lists_every_registered_analysis():
    listed = " ".join(inspect.getsource(train).split())
    assert [name for name in REGISTRY if f" {name}," not in listed and f" {name}." not in listed] == []


def test_what_an_analysis_measures_is_said_in_one_line():
    assert all(0 < len(registered.measures) < 110 and "\n" not in registered.measures for registered in REGISTRY.values())
