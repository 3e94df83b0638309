"""What is exported is what SAELens would have written, and what it reads."""

from pathlib import Path

import datasets
import pytest
import torch

from interp_gpt2.activations.creating import Recording, create_store
from interp_gpt2.activations.sae_lens import export_sae_lens
from interp_gpt2.activations.texts import Texts
from interp_gpt2.errors import CheckpointWriteError, HookNameError
from interp_gpt2.model import GPT2

NAMES = ["*resid_post", "*attn.z"]


@pytest.fixture
def texts() -> Texts:
    """Seven sequences, of which two are short."""
    tokens = torch.randint(0, 50, (7, 12), generator=torch.Generator().manual_seed(3))
    return Texts.of(tokens, torch.tensor([12, 5, 12, 12, 12, 1, 12]))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_row_is_a_sequence_with_its_tokens_and_activations(model: GPT2, texts: Texts, tmp_path: Path, dtype: str) -> None:
    store = create_store(tmp_path / "store", model, texts, Recording(NAMES, dtype, 2, 5000))
    found = export_sae_lens(store, tmp_path / "sae")
    assert found.columns == {f"blocks.{layer}.{leaf}": 32 for layer in (0, 1) for leaf in ("attn.hook_z", "hook_resid_post")}
    assert (found.context_size, found.n_sequences, found.n_left_out) == (12, 5, 2)
    data = datasets.load_from_disk(str(found.path))
    whole = [0, 2, 3, 4, 6]
    assert [row["token_ids"] for row in data] == texts.tokens[whole].tolist()
    assert data.features["token_ids"] == datasets.Sequence(datasets.Value("int32"), length=12)
    for column, name in (("blocks.1.hook_resid_post", "blocks.1.resid_post"), ("blocks.0.attn.hook_z", "blocks.0.attn.z")):
        assert data.features[column].shape == (12, 32)
        rows = torch.stack([store[name][int(texts.lengths[:i].sum()) :][:12].flatten(1) for i in whole])
        assert torch.equal(torch.tensor(data[column]), rows.float())


def test_one_column_is_exported_where_one_is_asked_for(model: GPT2, texts: Texts, tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", model, texts, Recording(NAMES))
    found = export_sae_lens(store, tmp_path / "sae", [("resid_post", 1)])
    assert datasets.load_from_disk(str(found.path)).column_names == ["blocks.1.hook_resid_post", "token_ids"]
    with pytest.raises(CheckpointWriteError, match="already exists and is not empty"):
        export_sae_lens(store, tmp_path / "sae")
    with pytest.raises(HookNameError, match="is not stored"):
        export_sae_lens(store, tmp_path / "other", ["embed"])
    assert not (tmp_path / "other").exists()


def test_large_exports_are_several_files(model: GPT2, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create_store(tmp_path / "store", model, texts, Recording(NAMES))
    one = export_sae_lens(store, tmp_path / "one")
    monkeypatch.setattr("interp_gpt2.activations.sae_lens._FILE_BYTES", 7000)
    many = export_sae_lens(store, tmp_path / "many")
    assert len(list(many.path.glob("*.arrow"))) > 2
    assert datasets.load_from_disk(str(many.path)).to_dict() == datasets.load_from_disk(str(one.path)).to_dict()


def test_sae_lens_reads_it(model: GPT2, texts: Texts, tmp_path: Path) -> None:
    activations_store = pytest.importorskip("sae_lens.training.activations_store", reason="needs sae-lens")
    store = create_store(tmp_path / "store", model, texts, Recording(NAMES))
    found = export_sae_lens(store, tmp_path / "sae")
    theirs = activations_store.ActivationsStore(
        model=None, dataset=None, streaming=False, hook_name="blocks.1.hook_resid_post", hook_head_index=None, context_size=12,
        d_in=32, n_batches_in_buffer=1, total_training_tokens=60, store_batch_size_prompts=1, train_batch_size_tokens=12,
        prepend_bos=False, normalize_activations="none", device=torch.device("cpu"), dtype="float32",
        cached_activations_path=str(found.path),
    )  # fmt: skip
    activations, tokens = theirs.get_raw_llm_batch()
    assert torch.equal(activations, store["resid_post", 1][:12].float())
    assert tokens.tolist() == texts.tokens[0].tolist()
