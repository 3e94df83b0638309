"""Our model keeps the contract, and a model that breaks a promise is caught at that promise."""

import copy
import json
import time
import warnings
from importlib.metadata import version

import pytest
import torch

import interp_gpt2.contract.check
import interp_gpt2.model
from interp_gpt2 import cli
from interp_gpt2.config import GPT2Config
from interp_gpt2.contract.by_hand import without
from interp_gpt2.contract.check import check
from interp_gpt2.contract.clauses import CLAUSES
from interp_gpt2.contract.instrument import Ours
from interp_gpt2.contract.markdown import failures, promises
from interp_gpt2.contract.subject import Case, case_of, deviation, drawn, scaled, small_cases
from interp_gpt2.contract.table import Result, Table, kind_of
from interp_gpt2.convert.transformer_lens import hooked_state_dict
from interp_gpt2.errors import InterpGPT2Error

FAST = tuple(clause for clause in CLAUSES if not clause.slow)
SLOW = tuple(clause for clause in CLAUSES if clause.slow)
TL_4 = int(version("transformer-lens").split(".")[0]) >= 4


def named(*names: str) -> list:
    found = [clause for clause in CLAUSES if clause.name in names]
    assert len(found) == len(names)
    return found


@pytest.fixture
def case() -> Case:
    return small_cases(quick=True)[0]


@pytest.fixture
def shallow() -> Case:
    return case_of("one layer", drawn(GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=6)))


# Kept ----------------------------------------------------------------------------------------------------------------


# The two that the command holds to it beside these differ from them only in what a model below has too.
SIZES = [case for case in small_cases(quick=True) if case.title not in ("two heads", "no biases")]


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case.title)
def test_our_model_keeps_every_promise_at_every_hook_point(case):
    table = check(Ours, [case], FAST, quick=True)
    assert not table.failed
    checked = {result.hook_point for result in table.results if result.verdict == "holds"}
    assert checked - {""} == set(case.model.hook_points())


def test_our_model_keeps_the_promises_about_compilation(shallow):
    assert not check(Ours, [shallow], SLOW).failed


def test_a_model_without_layers_or_layer_norms_keeps_them_too():
    sizes = {"n_heads": 2, "d_model": 8, "d_vocab": 11, "n_ctx": 6, "tied": False}
    models = [GPT2Config(n_layers=0, **sizes), GPT2Config(n_layers=1, layer_norm=False, act_fn="relu", bias=False, **sizes)]
    assert not check(Ours, [case_of(str(i), drawn(config)) for i, config in enumerate(models)], FAST, quick=True).failed


def test_a_view_under_standing_edits_keeps_them_too(shallow):
    assert not check(lambda gpt2: Ours(gpt2.with_edits({"embed": lambda value, site: value})), [shallow], FAST, quick=True).failed


def test_of_a_deep_model_quick_takes_the_first_and_the_last_layer():
    deep = case_of("deep", drawn(GPT2Config(n_layers=4, n_heads=2, d_model=8, d_vocab=11, n_ctx=6)))
    table = check(Ours, [deep], named("values", "float32"), quick=True)
    assert {result.hook_point.split(".")[1] for result in table.results if "blocks" in result.hook_point} == {"0", "3"}
    assert len(check(Ours, [deep], named("values")).results) == len(deep.model.hook_points())


# Broken --------------------------------------------------------------------------------------------------------------


class ScoresIgnored(Ours):
    """Edits of attn_scores come to nothing, as where scores are recorded after the fact."""

    breaks = ("effective", {"attn.attn_scores"})

    def record(self, tokens, names=None, edits=None):
        return super().record(tokens, names, {k: v for k, v in (edits or {}).items() if not k.endswith("attn_scores")})


class SkipConnectionPassedBy(Ours):
    """An edit of resid_mid reaches the MLP, but not the stream."""

    breaks = ("by hand", {"resid_mid"})

    def record(self, tokens, names=None, edits=None):
        return super().record(tokens, names, {k.replace("resid_mid", "mlp_in"): v for k, v in (edits or {}).items()})


class Standing(Ours):
    """An edit stays for the next call."""

    breaks = ("one call", "everywhere")
    left: dict | None = None

    def edit(self, tokens, edits):
        self.left = edits
        return super().edit(tokens, edits)

    def run(self, tokens):
        edits, self.left = self.left, None
        return super().edit(tokens, edits) if edits else super().run(tokens)


class RecordedFirst(Ours):
    """The cache holds what was there before the edit."""

    breaks = ("edited, then recorded", "everywhere")

    def record(self, tokens, names=None, edits=None):
        logits, seen = super().record(tokens, names, edits)
        return logits, seen | {name: value for name, value in super().record(tokens)[1].items() if name in (edits or {})}


class CacheOfWeights(Ours):
    """What is recorded as pos_embed is the weight itself."""

    breaks = ("records are yours", {"pos_embed"})

    def record(self, tokens, names=None, edits=None):
        logits, seen = super().record(tokens, names, edits)
        weight = self.model.wpe.weight.detach()[: tokens.shape[1]].expand(len(tokens), -1, -1)
        return logits, {name: weight if name == "pos_embed" and not edits else value for name, value in seen.items()}


class EditOfWeights(Ours):
    """An edit of embed is given rows of W_E to write into."""

    breaks = ("contained", {"embed"})

    def record(self, tokens, names=None, edits=None):
        if edits and "embed" in edits:
            edits["embed"](self.model.wte.weight.data[: tokens.shape[1]])
        return super().record(tokens, names, edits)


class Uncopied(Ours):
    """An edit in place reaches what was recorded upstream, since it is given the tensor itself."""

    breaks = ("contained", {"resid_pre"})

    def record(self, tokens, names=None, edits=None):
        logits, seen = super().record(tokens, names, edits)
        for name, edit in (edits or {}).items():
            if name == "blocks.1.resid_pre":
                edit(seen["blocks.0.resid_post"])
        return logits, seen


class SeesAhead(Ours):
    """What is edited at one position shows a little at the position before."""

    breaks = ("causal", {"resid_post"})

    def record(self, tokens, names=None, edits=None):
        def leak(edit):
            return lambda value: edit(value) + 1e-6 * (edit(value.clone()) - value).roll(-1, 1)

        edits = {name: leak(edit) if name.endswith("resid_post") else edit for name, edit in (edits or {}).items()}
        return super().record(tokens, names, edits)


class WrongAfterAnError(Ours):
    """An exception inside an edit leaves its mark on a weight."""

    breaks = ("exceptions", "everywhere")

    def edit(self, tokens, edits):
        try:
            return super().edit(tokens, edits)
        except BaseException:
            self.model.wte.weight.data[0, 0] += 1e-3
            raise


class AnyName(Ours):
    """What is misspelt is left out."""

    breaks = ("unknown names", "everywhere")

    def edit(self, tokens, edits):
        return super().edit(tokens, {name: edit for name, edit in edits.items() if name in self.model.hook_points()})


class NoneIsUnchanged(Ours):
    breaks = ("refuses None", "everywhere")

    def edit(self, tokens, edits):
        def lenient(edit):
            return lambda value: value if (returned := edit(value)) is None else returned

        return super().edit(tokens, {name: lenient(edit) for name, edit in edits.items()})


class Broadcasts(Ours):
    breaks = ("refuses another shape", "everywhere")

    def edit(self, tokens, edits):
        return super().edit(tokens, {name: lambda value, e=edit: e(value).expand_as(value) for name, edit in edits.items()})


class Promotes(Ours):
    breaks = ("refuses another dtype", "everywhere")

    def edit(self, tokens, edits):
        return super().edit(tokens, {name: lambda value, e=edit: e(value).to(value.dtype) for name, edit in edits.items()})


class HalfADerivative(Ours):
    """A third of the derivative by ln1, as where it fires for q, k and v and the last call is kept."""

    breaks = ("gradients", {"ln1.scale", "ln1.normalized"})

    def gradient(self, tokens, metric, name):
        return super().gradient(tokens, metric, name) / (3 if ".ln1." in name else 1)


class OtherWithGradients(Ours):
    breaks = ("grad mode", "everywhere")

    def record(self, tokens, names=None, edits=None):
        logits, seen = super().record(tokens, names, edits)
        return logits + 1e-3 * torch.is_grad_enabled(), seen


class Disturbs(Ours):
    """Recording a pattern changes what the model says."""

    breaks = ("watching", {"attn.pattern"})

    def record(self, tokens, names=None, edits=None):
        logits, seen = super().record(tokens, names, edits)
        return logits + 1e-3 * (names is not None and names[0].endswith("pattern")), seen


class BiasRemovedToo(Ours):
    """A head's z set to zero takes b_O with it."""

    breaks = ("zeroing removes", {"attn.z"})

    def edit(self, tokens, edits):
        renamed = {name.replace("attn.z", "attn_out"): edit for name, edit in edits.items()}
        return super().edit(tokens, renamed)


class InPlaceIgnored(Ours):
    """What is changed in place and returned counts as unchanged."""

    breaks = ("in place", "everywhere")

    def edit(self, tokens, edits):
        def strict(edit):
            def edited(value):
                returned = edit(given := value.clone())
                return value if returned is given else returned

            return edited

        return super().edit(tokens, {name: strict(edit) for name, edit in edits.items()})


class Imprecise(Ours):
    """Float32 on the outside, bfloat16 within."""

    breaks = ("float32", "everywhere")

    def record(self, tokens, names=None, edits=None):
        logits, seen = Ours(copy.deepcopy(self.model).bfloat16()).record(tokens, names, edits)
        return logits.float(), {name: value.to(self.model.wte.weight.dtype) for name, value in seen.items()}


class OtherValues(Ours):
    """Scores are recorded before they are scaled."""

    breaks = ("values", {"attn.attn_scores"})

    def record(self, tokens, names=None, edits=None):
        logits, seen = super().record(tokens, names, edits)
        return logits, {name: value * 2 if name.endswith("scores") else value for name, value in seen.items()}


class BiasForgotten(Ours):
    breaks = ("identities", {""})

    def record(self, tokens, names=None, edits=None):
        logits, seen = super().record(tokens, names, edits)
        return logits, {n: v - self.model.b_O[0] if n == "blocks.0.attn_out" else v for n, v in seen.items()}


class ClampsTokens(Ours):
    breaks = ("tokens", {""})

    def run(self, tokens):
        return super().run(tokens.clamp(min=0) if tokens.dtype == torch.int64 else tokens)


class StateOnTheModel(Ours):
    """Each call keeps its cache where other threads' calls keep theirs."""

    breaks = ("threads reading", {""})

    def record(self, tokens, names=None, edits=None):
        self.last = super().record(tokens, names, edits)
        time.sleep(0.001)
        return self.last


class EditsOnTheModel(Ours):
    breaks = ("threads editing", {""})

    def record(self, tokens, names=None, edits=None):
        self.edits = edits
        time.sleep(0.001)
        return super().record(tokens, names, self.edits)


BROKEN = [kind for kind in Ours.__subclasses__() if hasattr(kind, "breaks")]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_planted_fault_breaks_its_promise_where_it_was_planted_and_nowhere_else(broken, case):
    clause, where = broken.breaks
    table = check(broken, [case], named(clause), quick=True)
    checked = {kind_of(result.hook_point) for result in table.results}
    assert {kind_of(result.hook_point) for result in table.failed} == (checked if where == "everywhere" else where)
    assert all(result.note or result.deviation > result.allowed for result in table.failed)


def test_a_mask_that_is_not_put_back_lets_an_edit_look_ahead(monkeypatch, case):
    monkeypatch.setattr(interp_gpt2.model, "refuse_unseen", lambda pattern, visible, blind: pattern)
    failed = check(Ours, [case], named("no future")).failed
    assert {kind_of(result.hook_point) for result in failed} == {"attn.pattern"}


class EditsLostInTheGraph(Ours):
    compiled = False

    def compile(self, backend):
        super().compile(backend)
        self.compiled = True

    def record(self, tokens, names=None, edits=None):
        return super().record(tokens, names, None if self.compiled else edits)


class NeverCompiles(Ours):
    def compile(self, backend):
        return


@pytest.mark.parametrize(("broken", "clause"), [(EditsLostInTheGraph, "compiled edits"), (NeverCompiles, "compilations")])
def test_what_compilation_loses_is_found(broken, clause, shallow):
    assert len(check(broken, [shallow], named(clause)).failed) == 1


def test_one_broken_promise_does_not_spoil_the_next_check(case):
    # The weight that is damaged at each of 52 hook points would break every later promise, were it not made anew.
    table = check(WrongAfterAnError, [case], named("exceptions", "unknown names", "refuses None"))
    assert {result.clause for result in table.failed} == {"exceptions"}


def test_what_a_library_raises_is_a_broken_promise_with_its_words(case):
    class Cannot(Ours):
        def record(self, tokens, names=None, edits=None):
            raise NotImplementedError("no cache here\nreally")

    (result, *_) = check(Cannot, [case], named("values")).failed
    assert (result.verdict, result.note, result.deviation) == ("fails", "NotImplementedError: no cache here", None)


def test_what_a_library_lacks_or_promises_otherwise_does_not_apply_and_says_why(case):
    def lacking(gpt2):
        instrument = NoneIsUnchanged(gpt2)
        instrument.missing, instrument.exempt = {"embed": "it has none"}, {"refuses None": "documented"}
        return instrument

    table = check(lacking, [case], named("values", "refuses None"))
    assert not table.failed
    notes = {(result.clause, result.note) for result in table.results if result.verdict == "not applicable"}
    assert notes == {("values", "it has none"), ("refuses None", "it has none"), ("refuses None", "documented")}


def test_what_a_library_warns_of_stands_beside_what_it_breaks(case):
    class Warns(ScoresIgnored):
        def record(self, tokens, names=None, edits=None):
            warnings.warn("edits of scores are discarded", stacklevel=2)
            return super().record(tokens, names, edits)

    failed = check(Warns, [case], named("effective")).failed
    assert failed
    assert all(result.note.endswith("; it warns: edits of scores are discarded") for result in failed)


# TransformerLens -----------------------------------------------------------------------------------------------------


@pytest.mark.hooked_transformer
def test_hooked_transformers_faults_are_told_from_what_it_keeps(shallow):
    from interp_gpt2.contract.transformer_lens import hooked_transformer

    kept = named("values", "float32", "by hand", "causal", "effective", "zeroing removes", "one call", "exceptions")
    assert not check(hooked_transformer, [shallow], kept).failed
    failed = check(hooked_transformer, [shallow], named("gradients", "unknown names", "tokens")).failed
    assert {kind_of(result.hook_point) for result in failed if result.clause == "gradients"} == {"ln1.scale", "ln1.normalized"}
    assert "recording" in next(result.note for result in failed if result.clause == "unknown names")
    assert "a negative id" in next(result.note for result in failed if result.clause == "tokens")


@pytest.mark.skipif(not TL_4, reason="needs transformer-lens >=4")
def test_version_4s_faults_are_told_from_what_it_keeps(shallow):
    from interp_gpt2.contract.transformer_lens import compatible_bridge, native_bridge

    def failed_at(build, clause):
        return {kind_of(result.hook_point) for result in check(build, [shallow], named(clause)).failed}

    assert not check(compatible_bridge, [shallow], named("values", "float32", "one call", "exceptions", "unknown names")).failed
    assert failed_at(compatible_bridge, "by hand") == {"resid_mid", "mlp_in"}  # the one is an alias of the other
    assert failed_at(native_bridge, "values") == {"attn.attn_scores"}
    assert failed_at(native_bridge, "effective") == {"attn.attn_scores"}


def test_the_drop_in_keeps_every_promise_but_that_of_threads_with_hooks_of_their_own(shallow):
    """Hooks that stand on the object, as TransformerLens's do, are everybody's."""
    from interp_gpt2.contract.transformer_lens import Lens
    from interp_gpt2.transformer_lens import HookedTransformer

    failed = check(lambda gpt2: Lens(HookedTransformer.from_gpt2(gpt2), gpt2, "drop-in", {}), [shallow], FAST, quick=True).failed
    assert {result.clause for result in failed} <= {"threads editing"}


# Measures, tables, the command ---------------------------------------------------------------------------------------


def test_a_deviation_is_relative_to_the_largest_value_and_never_hides_what_is_not_finite():
    assert deviation(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0])) == 1.0
    assert deviation(torch.tensor([0.5]), torch.tensor([0.25])) == 0.25  # small values are measured absolutely
    infinite, nan = torch.tensor([-torch.inf, 1.0]), torch.tensor([torch.nan, 1.0])
    assert deviation(infinite, infinite) == 0.0
    for value, expected in [(nan, nan), (nan, infinite), (torch.ones(2), infinite), (infinite, torch.ones(2)), (nan[:1], nan)]:
        assert deviation(value, expected) == torch.inf


def test_the_edit_that_suits_every_hook_point_changes_every_number():
    value = torch.ones(3, 5, 7)
    assert (scaled(value) != value).sum() >= value.numel() - 1  # the first factor is 1
    assert scaled(torch.full((2, 2), -torch.inf)).eq(-torch.inf).all()


def test_removing_a_part_zeroes_what_writes_it_and_nothing_else(model):
    weights = hooked_state_dict(model)
    zeroed = {
        "embed": {"embed.W_E"},
        "blocks.1.attn.z": {"blocks.1.attn.W_O"},
        "blocks.0.mlp_out": {"blocks.0.mlp.W_out", "blocks.0.mlp.b_out"},
    }
    for point, expected in zeroed.items():
        left = without(weights, point)
        assert {name for name, weight in left.items() if not weight.equal(weights[name])} == expected
    assert without(weights, "blocks.0.attn.q") is None


def test_a_table_survives_json_and_says_what_fails_where():
    results = [
        Result("tiny", "causal", "embed", "holds", 0.0, 0.0),
        Result("tiny", "causal", "blocks.0.resid_mid", "fails", 2.0, 0.0, "changed embed"),
        Result("tiny", "causal", "blocks.1.resid_mid", "fails", 1.0, 0.0, "changed embed"),
        Result("tiny", "values", "blocks.0.attn.attn_scores", "fails", float("inf"), 1e-9, "first at blocks.0.attn.attn_scores"),
        Result("tiny", "values", "embed", "holds", 2e-16, 1e-9),
        Result("tiny", "refuses None", "embed", "not applicable", note="documented"),
    ]
    table = Table("theirs 1.0", tuple(results))
    back = Table.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False)))
    assert back == table
    assert "**fails** 2 of 3" in promises([back])
    assert failures(back).splitlines() == [
        "- **causal**: `resid_mid` (changed embed)",
        "- **values**: `attn.attn_scores` (up to infinite, first at blocks.0.attn.attn_scores)",
    ]
    assert next(summary for summary in table.summary() if summary.clause == "values").worst == 2e-16


def test_the_command_prints_each_promise_and_exits_with_1_when_one_is_broken(capsys, monkeypatch, tmp_path, shallow):
    def quickly(build, cases, quick):
        return check(build, [shallow], named("values", "by hand"), quick)

    monkeypatch.setattr(interp_gpt2.contract.check, "check", quickly)
    assert cli.main(["contract", "--json", str(tmp_path / "all.json")]) == 0
    text = capsys.readouterr().out
    assert "2 of 2 promises kept in 58 checks" in text
    assert max(map(len, text.splitlines())) <= max(80, len(str(tmp_path)) + 20)
    written = json.loads((tmp_path / "all.json").read_text())
    assert written["circumstances"]["torch"] == torch.__version__
    assert len(written["tables"][0]["results"]) == 58
    monkeypatch.setattr("interp_gpt2.contract.instrument.Ours", OtherValues)
    assert cli.main(["contract"]) == 1
    assert "values at blocks.0.attn.attn_scores, one layer: 0.82 where 1e-09 is allowed" in capsys.readouterr().out


def test_the_command_reads_a_model_from_a_directory(capsys, monkeypatch, tmp_path, model):
    from interp_gpt2.runs.checkpoint import save_weights
    from interp_gpt2.tokenizers import CharTokenizer

    seen = []

    def quickly(build, cases, quick):
        seen.extend(cases)
        return check(build, cases, named("values"))

    monkeypatch.setattr(interp_gpt2.contract.check, "check", quickly)
    alphabet = "".join(chr(ord("A") + i) for i in range(model.config.d_vocab))
    save_weights(tmp_path / "model", model.state_dict(), model.config, CharTokenizer.from_text(alphabet))
    assert cli.main(["contract", str(tmp_path / "model")]) == 0
    assert torch.equal(seen[0].model.wte.weight, model.wte.weight)
    assert seen[0].tokens.shape == (2, 12)
    assert cli.main(["contract", "--step", "3"]) == 2


def test_our_refusals_are_errors_of_ours(case):
    """The clauses count any error as a refusal; these are the library's own."""
    ours = Ours(case.model)
    for attempt in (
        lambda: ours.run(torch.tensor([[-1]])),
        lambda: ours.record(case.tokens, ["embd"]),
        lambda: ours.edit(case.tokens, {"embed": lambda value: None}),
        lambda: ours.edit(case.tokens, {"unembed.out": lambda value: value.to("meta")}),
    ):
        with pytest.raises(InterpGPT2Error):
            attempt()
