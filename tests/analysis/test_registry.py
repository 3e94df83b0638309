"""Whatever is registered can be asked for by name, and the command line says which names there are."""

import inspect

import pytest

from interp_gpt2.analysis.registry import REGISTRY, RUN_REGISTRY, analysis_named, analysis_of_run
from interp_gpt2.cli import train
from interp_gpt2.data.synthetic_sources import MarkovSource
from interp_gpt2.errors import AnalysisError
from interp_gpt2.sweeps import sweep


def test_the_command_line_lists_every_registered_analysis():
    listed = " ".join(inspect.getsource(train).split())
    assert [name for name in REGISTRY if f" {name}," not in listed and f" {name}." not in listed] == []


def test_what_an_analysis_measures_is_said_in_one_line():
    every = (*REGISTRY.values(), *RUN_REGISTRY.values())
    assert all(0 < len(registered.measures) < 110 and "\n" not in registered.measures for registered in every)


def test_a_sweep_finds_what_compares_the_checkpoints_of_a_run(markov_run, tmp_path):
    table = sweep(markov_run, list(RUN_REGISTRY), [0, 9], workers=1, store=tmp_path)
    assert set(table.analysis) == set(RUN_REGISTRY)

    def at(step, metric):
        return table[(table.step == step) & (table.metric == metric)].value

    assert (at(0, "weight_distance") == 0).all()
    assert (at(9, "weight_distance") > 0).any()
    assert at(9, "cka").min() == pytest.approx(1)
    assert at(0, "cka").min() < 0.9999 < at(9, "cka").min()
    assert at(0, "diff_kl").item() == 0 < at(9, "diff_kl").item()
    assert len(at(9, "neuron_frequency")) == 16
    assert analysis_of_run("diff_from_step", markov_run, markov_run.source(), 16).name == "diff_from_step"


def test_a_text_has_probes_and_chains_have_none(text_run, tmp_path):
    names = ["probes", "neuron_probes", "sparse_probes"]
    table = sweep(text_run, names, [10], workers=1, store=tmp_path)
    assert set(table.analysis) == set(names)
    scores = table[table.metric.isin(["probe_auroc", "neuron_probe_auroc", "sparse_probe_4_auroc"])]
    assert (scores.low.dropna() <= scores.value.loc[scores.low.dropna().index]).all()
    assert {"probe_auroc_shuffled", "neuron_probe_auroc_control", "sparse_probe_4_selectivity"} <= set(table.metric)
    for name in names:
        with pytest.raises(AnalysisError, match="is no text"):
            analysis_named(name, MarkovSource(), 16)


def test_what_needs_several_checkpoints_cannot_be_logged_while_training():
    with pytest.raises(AnalysisError, match="sweep it when there are some"):
        analysis_named("weight_distance", MarkovSource(), 16)
