"""Models from directories and from the Hub: the same function, or the name of what does not fit."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.errors import CheckpointError, ConversionError
from interp_gpt2.hf_format import state_to_hf
from interp_gpt2.model import GPT2
from interp_gpt2.runs.checkpoint import save_checkpoint, save_weights
from interp_gpt2.runs.pretrained import load_directory, load_pretrained


@pytest.fixture
def hf_dir(tmp_path: Path, model: GPT2) -> Path:
    """What `save_pretrained` of transformers writes."""
    to_huggingface(model).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def rewritten(directory: Path, **changes: Any) -> None:
    """Change fields of config.json."""
    fields = json.loads((directory / "config.json").read_bytes())
    (directory / "config.json").write_text(json.dumps(fields | changes))


def tensors_in(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load((directory / "model.safetensors").read_bytes())


def equal_models(a: GPT2, b: GPT2) -> bool:
    return all(torch.equal(weight, b.state_dict()[name]) for name, weight in a.state_dict().items())


def test_a_directory_written_by_transformers(hf_dir: Path, model: GPT2) -> None:
    loaded = load_pretrained(hf_dir)
    assert equal_models(loaded, model)
    assert not loaded.training
    assert equal_models(GPT2.from_pretrained(str(hf_dir)), model)


def test_a_directory_in_shards(tmp_path: Path, model: GPT2) -> None:
    to_huggingface(model).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert equal_models(load_pretrained(tmp_path), model)


@torch.no_grad()
def test_a_stanford_directory_in_shards_computes_what_transformers_computes(tmp_path: Path, make_gpt2: Any, tokens: Any) -> None:
    theirs = to_huggingface(make_gpt2(GPT2Config(n_layers=3, n_heads=4, d_model=32, d_vocab=50, n_ctx=16)))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    rewritten(tmp_path, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True, _num_labels=2)
    wanted = type(theirs).from_pretrained(tmp_path)(tokens).logits
    torch.testing.assert_close(load_pretrained(tmp_path)(tokens), wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(wanted, theirs(tokens).logits, atol=1e-2)


def test_an_old_directory_with_pytorch_model_bin(tmp_path: Path, model: GPT2) -> None:
    state = {n.removeprefix("transformer."): t for n, t in state_to_hf(model.state_dict(), model.config).items()}
    state |= {"h.0.attn.bias": torch.ones(1, 1, 16, 16).tril(), "lm_head.weight": state["wte.weight"]}
    to_huggingface(model).config.save_pretrained(tmp_path)
    for zipped in (True, False):
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert equal_models(load_pretrained(tmp_path), model)


def test_our_own_directories_are_verified(tmp_path: Path, model: GPT2) -> None:
    saved = tmp_path / "model"
    model.save(saved)
    step_dir = save_checkpoint(tmp_path, 5, model.state_dict(), model.config, 0)
    for directory in (saved, step_dir):
        assert equal_models(load_pretrained(directory), model)
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x99")
        with pytest.raises(CheckpointError, match=r"model\.safetensors has been altered"):
            load_pretrained(directory)
    (step_dir / "manifest.json").unlink()  # the directory's name says that there was one
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        load_pretrained(step_dir)


def test_a_model_of_our_own_kind_loads_without_its_manifest(tmp_path: Path) -> None:
    config = GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=11, n_ctx=6, attn_only=True)
    saved = save_weights(tmp_path / "model", GPT2(config).state_dict(), config)
    (saved / "manifest.json").unlink()
    assert equal_models(load_pretrained(saved), GPT2(config))
    (saved / "interp_gpt2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"interp_gpt2\.safetensors is missing"):
        load_pretrained(saved)


def test_half_precision_files_become_float32_exactly(tmp_path: Path, model: GPT2) -> None:
    to_huggingface(model).half().save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert torch.equal(loaded.wte.weight, model.wte.weight.half().float())


def test_a_missing_tensor_is_refused_where_transformers_draws_random_numbers(hf_dir: Path) -> None:
    from transformers import GPT2LMHeadModel

    tensors = tensors_in(hf_dir)
    del tensors["transformer.h.1.mlp.c_proj.weight"]
    safetensors.torch.save_file(tensors, hf_dir / "model.safetensors", metadata={"format": "pt"})
    assert GPT2LMHeadModel.from_pretrained(hf_dir).transformer.h[1].mlp.c_proj.weight.std() > 0
    with pytest.raises(CheckpointError, match=r"hf: tensor transformer\.h\.1\.mlp\.c_proj\.weight is missing"):
        load_pretrained(hf_dir)


def test_what_does_not_fit_is_named(hf_dir: Path) -> None:
    tensors = tensors_in(hf_dir)
    for change, message in (
        ({"score.weight": torch.zeros(2, 32)}, r"score\.weight has no place"),
        ({"transformer.wpe.weight": torch.zeros(17, 32)}, r"wpe\.weight has shape \(17, 32\)"),
        ({"lm_head.weight": torch.zeros(50, 32)}, r"lm_head\.weight differs"),
    ):
        safetensors.torch.save_file(tensors | change, hf_dir / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_directory(hf_dir)
    safetensors.torch.save_file(tensors, hf_dir / "model.safetensors")
    rewritten(hf_dir, scale_attn_weights=False)
    with pytest.raises(ConversionError, match=r"config\.json: scale_attn_weights=False"):
        load_directory(hf_dir)


def test_missing_and_damaged_files_are_named(hf_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_directory(tmp_path / "empty")
    data = (hf_dir / "model.safetensors").read_bytes()
    (hf_dir / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        load_directory(hf_dir)
    (hf_dir / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights: neither"):
        load_directory(hf_dir)


def test_an_index_of_shards_is_not_believed(tmp_path: Path, model: GPT2) -> None:
    to_huggingface(model).save_pretrained(tmp_path, max_shard_size="20KB")
    index_path = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_path.read_bytes())["weight_map"]
    first, other = sorted(index)[0], sorted(index)[-1]
    cases = [
        ({}, "no weight_map"),
        ({**index, first: "../model.safetensors"}, "names '../model.safetensors'"),
        ({**index, first: 3}, "names 3"),
        ({**index, first: "model-00009-of-00009.safetensors"}, "model-00009-of-00009.safetensors is missing"),
        ({**index, first: index[other]}, f"disagree about tensor {first}"),
        ({name: file for name, file in index.items() if name != first}, f"disagree about tensor {first}"),
    ]
    for weight_map, message in cases:
        index_path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            load_directory(tmp_path)


class Payload:
    """Runs `open(path, "w")` when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_pickled_code_is_not_run(tmp_path: Path, model: GPT2) -> None:
    canary, path = tmp_path / "canary", tmp_path / "pytorch_model.bin"
    to_huggingface(model).config.save_pretrained(tmp_path)
    payloads = {
        "in a dictionary": lambda: torch.save({"wte.weight": Payload(canary)}, path),
        "old format": lambda: torch.save(Payload(canary), path, _use_new_zipfile_serialization=False),
        "bare": lambda: path.write_bytes(pickle.dumps(Payload(canary), protocol=2)),
        "not a dictionary": lambda: torch.save([torch.zeros(1)], path),
        "not tensors": lambda: torch.save({"wte.weight": 3}, path),
        "empty": lambda: path.write_bytes(b""),
        "noise": lambda: path.write_bytes(bytes(range(256)) * 9),
    }
    for write in payloads.values():
        write()
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            load_directory(tmp_path)
        assert not canary.exists()


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, model: GPT2) -> None:
    to_huggingface(model).config.save_pretrained(tmp_path)
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pytorch_model/data/0", b"\0" * 50_000_000)
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed"):
        load_directory(tmp_path)


# --------------------------------------------------------------------------------------------------------- the Hub


def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for source in (tmp_path / "x", "./x", "../x", "~/x/y", "checkpoints/demo", "a/b/c", "x y"):
        with pytest.raises(CheckpointError, match="there is no directory"):
            load_pretrained(source)


def test_a_revision_belongs_to_the_hub(hf_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="no revision 'main'"):
        load_pretrained(hf_dir, revision="main")


def test_the_cache_comes_first_and_only_config_and_safetensors_are_asked_for(
    hf_dir: Path, model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(hf_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert equal_models(load_pretrained("someone/model", revision="v1"), model)
    (name, options), *more = asked
    assert (name, options["revision"], options["local_files_only"], more) == ("someone/model", "v1", True, [])
    assert all(pattern.endswith(("config.json", ".safetensors", ".index.json")) for pattern in options["allow_patterns"])


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"there is no directory gpt2, .* without a network, give a directory with config\.json"
    ):
        load_pretrained("gpt2")
    with pytest.raises(CheckpointError, match="gpt2, gpt2-medium, gpt2-large, gpt2-xl are the published sizes"):
        load_pretrained("gtp2")
