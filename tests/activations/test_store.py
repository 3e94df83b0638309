"""Activations on disk are the model's, by whatever road they are read."""

import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from interp_gpt2.activations.creating import Recording, create_store
from interp_gpt2.activations.record import MANIFEST
from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.activations.texts import Texts
from interp_gpt2.analysis.neuron_activity import layer_activity
from interp_gpt2.analysis.windows import Windows, neuron_layers
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import CheckpointError, ContextLengthError, EditError, HookNameError, RunError, StoreError, TokenError
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.runs.run import Run
from interp_gpt2.tokenizers import CharTokenizer

NAMES = ["embed", "*resid_post", "*mlp.post", "*attn.z", "*ln1.scale", "ln_final.normalized"]
SMALL_SHARDS = 30_000  # some batches each


@pytest.fixture
def texts() -> Texts:
    draw = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 13, (21,), generator=draw)
    tokens = torch.randint(0, 50, (21, 12), generator=draw)
    return Texts.of(tokens, lengths, torch.arange(21) // 2)


@pytest.fixture
def store(model: GPT2, texts: Texts, tmp_path: Path) -> ActivationStore:
    """Several shards, the last one smaller."""
    found = create_store(tmp_path / "store", model, texts, Recording(NAMES, "float32", 4, SMALL_SHARDS))
    assert found.plan.n_shards > 2
    return found


def rows_of(model: GPT2, texts: Texts, name: str) -> torch.Tensor:
    """The model's own activations, a sequence at a time, without padding."""
    found = []
    with torch.no_grad():
        for tokens, length in zip(texts.tokens, texts.lengths.tolist(), strict=True):
            found.append(model.run_with_cache(tokens[None, :length], [name])[1][name][0])
    return torch.cat(found)


def test_every_row_is_the_models_activation_at_that_token(model: GPT2, texts: Texts, store: ActivationStore) -> None:
    assert list(store.hook_points) == [
        "embed", "blocks.0.ln1.scale", "blocks.0.attn.z", "blocks.0.mlp.post", "blocks.0.resid_post",
        "blocks.1.ln1.scale", "blocks.1.attn.z", "blocks.1.mlp.post", "blocks.1.resid_post", "ln_final.normalized",
    ]  # fmt: skip
    for name in store.hook_points:
        expected = rows_of(model, texts, name)
        assert store[name].shape == tuple(expected.shape)
        torch.testing.assert_close(store[name][:], expected, atol=1e-5, rtol=1e-5)  # other batch sizes round differently


def test_every_row_has_its_token_document_and_position(texts: Texts, store: ActivationStore) -> None:
    at = 0
    for sequence, length in enumerate(texts.lengths.tolist()):
        rows = slice(at, at + length)
        assert store.columns["tokens"][rows].tolist() == texts.tokens[sequence, :length].tolist()
        assert store.columns["documents"][rows].tolist() == [sequence // 2] * length
        assert store.columns["positions"][rows].tolist() == list(range(length))
        at += length
    assert at == len(store)
    assert store.texts.sha256 == texts.sha256


def test_random_rows_come_in_the_order_asked_for_from_any_shard(store: ActivationStore) -> None:
    rows, whole = store["mlp.post", 1], store["mlp.post", 1][:]
    chosen = np.random.default_rng(0).integers(0, len(store), 300)
    assert torch.equal(rows[chosen], whole[chosen])
    assert torch.equal(rows[torch.from_numpy(chosen)], whole[chosen])
    assert torch.equal(rows[sorted(chosen.tolist())], whole[sorted(chosen.tolist())])
    assert torch.equal(rows[5:40:7], whole[5:40:7])
    assert torch.equal(rows[int(chosen[0])], whole[chosen[0]])
    assert rows[[]].shape == (0, 128)


def test_what_is_read_is_a_copy(store: ActivationStore) -> None:
    rows = store["embed"]
    first = rows[:3]
    rows[:3].zero_()
    next(rows.batches(3))[1].zero_()
    assert torch.equal(rows[:3], first)
    assert store.damage() == []


def test_batches_of_a_layer_are_its_rows_in_order_as_analyses_read_them(
    model: GPT2, tokens: torch.Tensor, tmp_path: Path
) -> None:
    store = create_store(tmp_path / "store", model, Texts.of(tokens), Recording("*mlp.post", "float32", 1, 7_000))
    for (layer, batches), (own_layer, own) in zip(
        store.layers("mlp.post", n_rows=5), neuron_layers(model, Windows.of(tokens)), strict=True
    ):
        pairs, expected = list(batches), list(own)
        assert layer == own_layer
        assert max(len(part) for part, _ in pairs) == 5
        assert torch.equal(torch.cat([part for part, _ in pairs]), torch.cat([part for part, _ in expected]))
        torch.testing.assert_close(torch.cat([values for _, values in pairs]), torch.cat([values for _, values in expected]))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_a_dtype_costs_its_rounding_and_no_more(model: GPT2, texts: Texts, tmp_path: Path, dtype: str, tolerance: float) -> None:
    exact = create_store(tmp_path / "exact", model, texts, Recording("*resid_post", "float32", 4))["resid_post", 1][:]
    found = create_store(tmp_path / dtype, model, texts, Recording("*resid_post", dtype, 4))["resid_post", 1][:]
    assert str(found.dtype) == f"torch.{dtype}"
    assert torch.equal(found, exact.to(found.dtype))
    assert ((found.float() - exact).abs() <= tolerance * exact.abs() + 1e-7).all()


def test_a_number_that_a_dtype_cannot_hold_is_refused_by_name(model: GPT2, texts: Texts, tmp_path: Path) -> None:
    with torch.no_grad():
        model.wte.weight[int(texts.tokens[9, 0])] *= 1e6
    with pytest.raises(StoreError, match=r"at 'embed' is more than float16 can hold \(65504\); store bfloat16 or float32"):
        create_store(tmp_path / "store", model, texts, Recording("embed"))
    assert not list((tmp_path / "store").rglob("*.tmp"))
    create_store(tmp_path / "other", model, texts, Recording("embed", "bfloat16"))


def test_a_shard_is_an_ordinary_safetensors_file(store: ActivationStore) -> None:
    tensors = load_file(store.path / "model" / "blocks.1.attn.z-00001.safetensors")
    first, last = store.plan.firsts[1:3]
    assert torch.equal(tensors["blocks.1.attn.z"], store["z", 1][first:last])


def test_a_run_is_stored_checkpoint_by_checkpoint(markov_run: Run, tmp_path: Path) -> None:
    texts = Texts.from_source(markov_run.source(), 16, 100)
    assert (texts.n_tokens, texts.note) == (112, "held-out text of markov")
    store = create_store(tmp_path / "store", markov_run, texts, Recording("*resid_post", "float32"), [0, 9])
    assert store.steps == [0, 9]
    for step in store.steps:
        model = markov_run.model(step)
        store.check(model, step)
        torch.testing.assert_close(store.rows(("resid_post", 1), step)[:], rows_of(model, texts, "blocks.1.resid_post"))
    assert torch.equal(store["resid_post", 0][:], store.rows("blocks.0.resid_post", 9)[:])
    assert store.texts.tokenizer.sha256 == markov_run.tokenizer().sha256
    with pytest.raises(StoreError, match="has no step 3; it has 0, 9"):
        store.rows("blocks.0.resid_post", 3)
    with pytest.raises(
        StoreError, match=r"holds activations of another model: the weights of step 0 have SHA-256 \w{16}\.\.\., this"
    ):
        store.check(model, 0)


def test_a_text_knows_in_which_document_each_token_stands(text_run: Run) -> None:
    source = text_run.source()
    texts = Texts.from_source(source, 32)
    ends = source.held_out.offsets.starts
    flat = texts.documents.flatten()
    for document in range(int(flat.max()) + 1):
        assert (flat == document).sum() == min(ends[document + 1], len(flat)) - ends[document]
    assert (flat.diff() >= 0).all()
    assert texts.tokens[0].tolist() == source.held_out.head(32).tolist()


def test_neurons_are_counted_from_a_store_as_from_the_model(model: GPT2, tokens: torch.Tensor, tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", model, Texts.of(tokens), Recording("*mlp.post", "float32", len(tokens)))
    for (_, stored), (_, computed) in zip(store.layers("mlp.post"), neuron_layers(model, Windows.of(tokens)), strict=True):
        one, other = layer_activity(stored), layer_activity(computed)
        assert one.n == other.n == tokens.numel()
        torch.testing.assert_close(one.mean, other.mean)
        assert (one.dead, one.always_on) == (other.dead, other.always_on)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of a process's memory")
def test_reading_in_order_takes_the_memory_of_a_batch(tmp_path: Path) -> None:
    shape = GPT2Config(n_layers=0, n_heads=1, d_model=1024, d_vocab=8, n_ctx=64)
    texts = Texts.of(torch.randint(0, 8, (512, 64), generator=torch.Generator().manual_seed(0)))
    store = create_store(tmp_path / "store", GPT2(shape), texts, Recording("embed", "float32"))
    assert store.n_bytes > 128 << 20

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    most = max(resident() for _ in store.batches("embed", n_rows=1024))
    assert most - before < 32 << 20  # a batch is 4 MB


# Held wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [-1, [0, 10_000], [[0]], [0.5], ["a"]])
def test_rows_that_are_not_there_are_refused(store: ActivationStore, rows: object) -> None:
    with pytest.raises(StoreError, match=r"no row|one list of numbers|whole numbers"):
        store["embed"][rows]


def test_a_hook_point_that_is_not_stored_names_the_nearest(store: ActivationStore) -> None:
    with pytest.raises(HookNameError, match=r"'blocks\.1\.resid_mid' is not stored in .*nearest: 'blocks\.1\.resid_post'"):
        store["resid_mid", 1]
    with pytest.raises(HookNameError, match=r"no layer's 'mlp\.pre' is stored"):
        next(store.layers("mlp.pre"))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda model, texts: (model, texts, Recording("*pattern")), StoreError, "has a column for every key"),
        (lambda model, texts: (model, texts, Recording("resid_pots")), HookNameError, "Nearest"),
        (lambda model, texts: (model, Texts.of(texts.tokens + 45), Recording("embed")), TokenError, "ids are 0 to 49"),
        (lambda model, texts: (model, Texts.of(texts.tokens.repeat(1, 2)), Recording("embed")), ContextLengthError, "n_ctx=16"),
        (
            lambda model, texts: (model.with_edits({"embed": lambda v, s: v}), texts, Recording("embed")),
            EditError,
            "standing edits",
        ),
    ],
    ids=["no rows", "no such name", "unknown tokens", "too long", "edited"],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(
    model: GPT2, texts: Texts, tmp_path: Path, change: Callable, error: type, says: str
) -> None:
    with pytest.raises(error, match=says):
        create_store(tmp_path / "store", *change(model, texts))
    assert not (tmp_path / "store").exists()


def test_options_that_mean_nothing_are_refused() -> None:
    for wrong in ({"dtype": "int8"}, {"batch_size": 0}, {"shard_bytes": 0}):
        with pytest.raises(StoreError, match=next(iter(wrong))):
            Recording("embed", **wrong)
    with pytest.raises(StoreError, match="are not whole numbers"):
        Texts.of(torch.zeros(2, 3))
    with pytest.raises(StoreError, match="lengths run from 1 to 4; a sequence of 3 tokens"):
        Texts.of(torch.zeros(2, 3, dtype=torch.long), torch.tensor([1, 4]))


def test_a_folder_that_is_no_store_is_refused(model: GPT2, texts: Texts, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no activation store"):
        ActivationStore(tmp_path)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"holds other files \(thesis\.tex\)"):
        create_store(tmp_path, model, texts, Recording("embed"))


def test_a_store_goes_on_only_with_what_it_was_begun_with(model: GPT2, texts: Texts, tmp_path: Path, make_gpt2) -> None:
    recording = Recording(["embed", "*resid_post"], batch_size=4)
    create_store(tmp_path / "s", model, texts, recording)
    other_texts = Texts.of(texts.tokens, texts.lengths, torch.zeros(21, dtype=torch.long))
    in_words = Texts.of(texts.tokens, texts.lengths, texts.documents, CharTokenizer("abcde"))
    wider = make_gpt2(GPT2Config(n_layers=2, n_heads=4, d_model=36, d_vocab=50, n_ctx=16))
    for subject, of, how, says in (
        (make_gpt2(model.config, 1), texts, recording, r"another model: the model is \w{16}\.\.\. there and \w{16}\.\.\. here"),
        (wider, texts, recording, r"begun with a model with d_model=32, .*which is now d_model=36"),
        (model, other_texts, recording, r"texts of SHA-256 \w{64}, which is now \w{64}"),
        (model, in_words, recording, r"the tokenizer of SHA-256 None, which is now \w{64}"),
        (model, texts, Recording(["embed"], batch_size=4), r"hook points blocks\.0\.resid_post=\(32,\), .* which is now none"),
        (model, texts, Recording(["embed", "*resid_post"], "bfloat16", 4), "dtype float16, which is now bfloat16"),
        (model.bfloat16(), texts, recording, "computed_in float32 on cpu, which is now bfloat16 on cpu"),
    ):
        with pytest.raises(StoreError, match=says):
            create_store(tmp_path / "s", subject, of, how)


def test_a_run_is_not_stored_in_tokens_of_another_tokenizer(markov_run: Run, text_run: Run, tmp_path: Path) -> None:
    texts = Texts.from_source(text_run.source(), 16, 64)
    with pytest.raises(StoreError, match=r"another tokenizer \(\w{16}\.\.\.\) than chains's \(\w{16}\.\.\.\)"):
        create_store(tmp_path / "s", markov_run, texts, Recording("embed"))


def test_a_step_with_another_tokenizer_is_not_stored_among_the_others(text_run: Run, tmp_path: Path) -> None:
    shutil.copytree(text_run.path, tmp_path / "mixed", ignore=shutil.ignore_patterns("sweeps"))
    run, ours = Run(tmp_path / "mixed"), text_run.tokenizer()
    texts, state = Texts.from_source(text_run.source(), 16, 64), run.model(8).state_dict()
    shutil.rmtree(run.checkpoint(8))
    save_checkpoint(run.path, 8, state, run.config, 0, type(ours)(ours.characters[::-1]))
    for steps in (None, [8]):
        with pytest.raises(RunError, match=r"step 8 of mixed has another tokenizer \(\w{12}\.\.\.\) than the run"):
            create_store(tmp_path / "s", run, texts, Recording("embed"), steps)
    assert create_store(tmp_path / "s", run, texts, Recording("embed"), [0, 10]).steps == [0, 10]


@pytest.mark.parametrize("where", ["header", "values", "end"])
def test_an_altered_shard_is_named_when_it_is_read_and_when_it_is_verified(store: ActivationStore, where: str) -> None:
    path = store.path / "model" / "blocks.0.mlp.post-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[{"header": 20, "values": len(data) // 2, "end": -1}[where]] ^= 4
    path.write_bytes(data)
    assert [line.split(" has been")[0] for line in store.damage()] == [str(path)]
    opened = ActivationStore(store.path)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.post-00001\.safetensors has been altered"):
        opened["mlp.post", 0][:]
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.post-00001\.safetensors has been altered"):
        list(opened.batches("blocks.0.mlp.post"))
    assert opened["mlp.post", 0][0].shape == (128,)  # of another shard


def test_files_that_are_gone_cut_short_or_links_are_named(store: ActivationStore) -> None:
    shards = sorted((store.path / "model").glob("embed-*"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-8])
    moved = shards[2].rename(store.path.parent / "elsewhere")
    shards[2].symlink_to(moved)
    texts = store.path / "texts.safetensors"
    texts.write_bytes(texts.read_bytes() + b"!")
    problems = "\n".join(store.damage())
    assert len(problems.splitlines()) == 4
    for path, says in (
        (shards[0], "is missing"),
        (shards[1], "is truncated"),
        (shards[2], "cannot be read as"),
        (texts, "is longer"),
    ):
        assert f"{path} {says}" in problems


def test_every_altered_byte_of_the_manifest_is_noticed(store: ActivationStore) -> None:
    path = store.path / MANIFEST
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        data[draw.integers(len(data))] ^= 1 << draw.integers(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=MANIFEST):
            ActivationStore(store.path)
    for length in draw.integers(0, len(whole), 20):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=MANIFEST):
            ActivationStore(store.path)


def test_a_consistent_manifest_cannot_lead_out_of_the_store(store: ActivationStore) -> None:
    plan, path = store.plan, store.path / MANIFEST
    for hostile in (
        replace(plan, hook_points={"../../etc/passwd": (1,), **plan.hook_points}),
        replace(plan, hook_points=dict.fromkeys(plan.hook_points, (-1,))),
        replace(plan, shard_rows=(*plan.shard_rows[:-1], 10**30)),
        replace(plan, config={"n_layers": "many"}),
        replace(plan, dtype="object"),
    ):
        path.write_bytes(replace(store.record, plan=hostile).to_bytes())
        with pytest.raises(CheckpointError, match=MANIFEST):
            ActivationStore(store.path)
