"""A checkpoint is whole or refused by name; transformers loads it as it stands."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import model_of_state
from interp_gpt2.errors import CheckpointError, CheckpointWriteError
from interp_gpt2.hf_format import our_shapes
from interp_gpt2.model import GPT2
from interp_gpt2.runs import checkpoint
from interp_gpt2.runs.checkpoint import (
    ResumeState,
    drop_resume,
    load_config,
    load_resume,
    load_weights,
    save_checkpoint,
    save_weights,
    verify_checkpoint,
)
from interp_gpt2.runs.manifest import MANIFEST, Manifest, entry_of, read_manifest
from interp_gpt2.tokenizers import CharTokenizer

TINY = {"n_layers": 1, "n_heads": 2, "d_model": 4, "d_vocab": 5, "n_ctx": 6}
EVERY_SHAPE = [{}, {"tied": False}, {"bias": False}, {"n_layers": 0}, {"act_fn": "relu", "dropout": 0.5},
               {"attn_only": True}, {"layer_norm": False}, {"d_head": 3}, {"attn_only": True, "bias": False, "tied": False},
               {"unembed_bias": True, "tied": False},
               {"pos_init": "sinusoidal", "pos_std": 0.05, "embed_std": 0.05}]  # fmt: skip
TOKENIZER = CharTokenizer("abcde")


def random_state(config: GPT2Config, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in our_shapes(config).items()}


@pytest.fixture
def tiny() -> GPT2Config:
    return GPT2Config(**TINY)


@pytest.fixture
def resume(tiny: GPT2Config) -> ResumeState:
    tensors = {f"exp_avg/{name}": tensor for name, tensor in random_state(tiny, seed=1).items()}
    return ResumeState(tensors | {"rng": torch.get_rng_state(), "count": torch.tensor(7)}, {"step": 3, "best": None, "name": "ü"})


@pytest.fixture
def step_dir(tmp_path: Path, tiny: GPT2Config, resume: ResumeState) -> Path:
    return save_checkpoint(tmp_path / "run", 3, random_state(tiny), tiny, 1200, TOKENIZER, resume)


@pytest.mark.parametrize("changes", EVERY_SHAPE, ids=str)
def test_config_and_weights_come_back_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    config = GPT2Config(**TINY | changes)
    state = random_state(config)
    step_dir = save_checkpoint(tmp_path, 12, state, config, 34)
    loaded_config, loaded = load_weights(step_dir)
    assert step_dir.name == "step-00000012"
    assert loaded_config == config == load_config(step_dir)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert (read_manifest(step_dir).step, read_manifest(step_dir).tokens_seen) == (12, 34)


def test_the_resume_state_comes_back_bit_for_bit(step_dir: Path, resume: ResumeState) -> None:
    loaded = load_resume(step_dir)
    assert loaded.trainer == resume.trainer
    assert loaded.tensors.keys() == resume.tensors.keys()
    for name, tensor in resume.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == tensor.dtype


@torch.no_grad()
def test_transformers_loads_the_directory_as_it_stands(tmp_path: Path, model: GPT2, tokens: torch.Tensor) -> None:
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    step_dir = save_checkpoint(tmp_path, 0, model.state_dict(), model.config, 0)
    ours = model_of_state(*load_weights(step_dir))(tokens)
    for cls in (GPT2LMHeadModel, AutoModelForCausalLM):
        hf_model, loading = cls.from_pretrained(step_dir, output_loading_info=True)
        assert not any(loading.values())  # no tensor missing, unexpected or of another shape
        assert hf_model.config.eos_token_id is hf_model.generation_config.eos_token_id is None
        assert (hf_model(tokens).logits - ours).abs().max() <= 1e-5  # float32, logits of size 10


def test_transformers_reads_the_tokenizer_beside_it(step_dir: Path) -> None:
    from transformers import AutoTokenizer

    text = "badcab"
    assert AutoTokenizer.from_pretrained(step_dir).encode(text) == TOKENIZER.encode(text)


@pytest.mark.parametrize("changes", [{"attn_only": True}, {"layer_norm": False}, {"d_head": 3}], ids=str)
def test_transformers_refuses_what_its_gpt2_cannot_compute(changes: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    config = GPT2Config(**TINY | changes)
    step_dir = save_checkpoint(tmp_path, 0, random_state(config), config, 0)
    with pytest.raises(ValueError, match="interp_gpt2"):
        AutoModelForCausalLM.from_pretrained(step_dir)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        GPT2LMHeadModel.from_pretrained(step_dir)


def test_absent_biases_are_zeros_for_transformers_and_absent_for_us(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    config = GPT2Config(**TINY | {"bias": False})
    step_dir = save_checkpoint(tmp_path, 0, random_state(config), config, 0)
    assert json.loads((step_dir / "config.json").read_bytes())["interp_gpt2"]["bias"] is False
    hf_model = GPT2LMHeadModel.from_pretrained(step_dir)
    assert not any(weight.any() for name, weight in hf_model.named_parameters() if name.endswith(".bias"))
    assert not any(name.endswith(".bias") for name in load_weights(step_dir)[1])


def test_end_of_text_is_named_only_when_it_is_a_token(tmp_path: Path, tiny: GPT2Config) -> None:
    class WithEnd(CharTokenizer):
        eos_token_id = 4

    for tokenizer, expected in ((None, None), (TOKENIZER, None), (WithEnd("abcde"), 4)):
        step_dir = save_checkpoint(tmp_path / str(tokenizer), 0, random_state(tiny), tiny, 0, tokenizer)
        fields = json.loads((step_dir / "config.json").read_bytes())
        assert fields["eos_token_id"] == fields["bos_token_id"] == expected


def test_a_model_can_be_saved_outside_any_run(tmp_path: Path, tiny: GPT2Config) -> None:
    directory = save_weights(tmp_path / "a" / "model", random_state(tiny), tiny, TOKENIZER)
    assert load_weights(directory)[0] == tiny
    assert read_manifest(directory).step is None
    with pytest.raises(CheckpointWriteError, match="already exists and is not empty"):
        save_weights(directory, random_state(tiny), tiny)


def test_a_step_is_never_overwritten(step_dir: Path, tiny: GPT2Config) -> None:
    before = {path.name: path.read_bytes() for path in step_dir.iterdir()}
    with pytest.raises(CheckpointWriteError, match="step-00000003"):
        save_checkpoint(step_dir.parent, 3, random_state(tiny, seed=9), tiny, 1200)
    assert {path.name: path.read_bytes() for path in step_dir.iterdir()} == before
    assert os.listdir(step_dir.parent) == [step_dir.name]


def test_a_state_that_does_not_fit_its_config_is_not_written(tmp_path: Path, tiny: GPT2Config) -> None:
    state = random_state(tiny)
    del state["ln_final.bias"]
    for config in (tiny, GPT2Config(**TINY | {"d_head": 2, "attn_only": True})):
        with pytest.raises(CheckpointError):
            save_checkpoint(tmp_path, 0, state, config, 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("trainer", [{"loss": float("nan")}, {"tensor": torch.zeros(1)}], ids=["nan", "tensor"])
def test_a_trainer_state_that_is_not_json_is_not_written(trainer: dict[str, Any], tmp_path: Path, tiny: GPT2Config) -> None:
    with pytest.raises(CheckpointWriteError, match=r"trainer\.json"):
        save_checkpoint(tmp_path, 0, random_state(tiny), tiny, 0, resume=ResumeState({}, trainer))
    assert os.listdir(tmp_path) == []


# --------------------------------------------------------------------------------------------------------- damage


def every_load(step_dir: Path) -> None:
    load_resume(step_dir)
    load_weights(step_dir)


def assert_refused_by_name(step_dir: Path, name: str, load: Callable[[Path], Any] = load_weights) -> None:
    with pytest.raises(CheckpointError) as refusal:
        load(step_dir)
    assert name in str(refusal.value)


def test_1000_flipped_bits_are_refused_by_the_name_of_their_file(step_dir: Path) -> None:
    draw = random.Random(0)
    files = sorted(step_dir.iterdir())
    for trial in range(1000):
        path = files[trial % len(files)]  # every file often, also the small ones
        original = path.read_bytes()
        flipped = bytearray(original)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        assert_refused_by_name(step_dir, path.name)
        assert_refused_by_name(step_dir, path.name, load_resume)
        path.write_bytes(original)
    every_load(step_dir)


def test_200_truncations_and_extensions_are_refused_by_name(step_dir: Path) -> None:
    draw = random.Random(0)
    files = sorted(step_dir.iterdir())
    for trial in range(200):
        path = files[trial % len(files)]
        original = path.read_bytes()
        for damaged in (original[: draw.randrange(len(original))], original + b"\n" * draw.randrange(1, 9)):
            path.write_bytes(damaged)
            for verify in (True, False):  # sizes are checked either way
                assert_refused_by_name(step_dir, path.name, lambda directory, verify=verify: load_weights(directory, verify))
        path.write_bytes(original)
    every_load(step_dir)


def test_a_missing_file_is_refused_by_name(step_dir: Path) -> None:
    for path in sorted(step_dir.iterdir()):
        path.rename(step_dir.parent / "away")
        assert_refused_by_name(step_dir, f"{path.name} is missing")
        (step_dir.parent / "away").rename(path)
    every_load(step_dir)


def test_an_extra_file_is_refused_by_name_unless_it_is_hidden(step_dir: Path) -> None:
    for name in ("pytorch_model.bin", "generation_config.json", "adapter_config.json", "interp_gpt2.safetensors"):
        (step_dir / name).write_bytes(b"")
        assert_refused_by_name(step_dir, name)
        (step_dir / name).unlink()
    (step_dir / ".DS_Store").write_bytes(b"made by a desktop")
    every_load(step_dir)


def test_files_and_directories_of_two_steps_cannot_be_swapped(step_dir: Path, tiny: GPT2Config, resume: ResumeState) -> None:
    other = save_checkpoint(step_dir.parent, 4, random_state(tiny, seed=5), tiny, 1600, TOKENIZER, resume)
    for name in ("model.safetensors", MANIFEST):
        ours, theirs = (step_dir / name).read_bytes(), (other / name).read_bytes()
        (step_dir / name).write_bytes(theirs)
        assert_refused_by_name(step_dir, name)
        (step_dir / name).write_bytes(ours)
    other.rename(step_dir.with_name("step-00000005"))
    assert_refused_by_name(step_dir.with_name("step-00000005"), "of step 4")


def test_a_link_or_a_pipe_is_not_a_file(step_dir: Path) -> None:
    path, elsewhere = step_dir / "model.safetensors", step_dir.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert_refused_by_name(step_dir, path.name)
    path.unlink()
    os.mkfifo(path)
    assert_refused_by_name(step_dir, path.name)  # and does not wait for a writer


def test_a_missing_directory_or_a_file_in_its_place_is_refused(step_dir: Path) -> None:
    assert_refused_by_name(step_dir / "nowhere", "nowhere does not exist")
    assert_refused_by_name(step_dir / MANIFEST, "is not a directory")


# A forger can compute hashes. Whatever the manifest vouches for must still be a checkpoint, and stay in its directory.


def forge(step_dir: Path, name: str, data: bytes) -> None:
    """Replace a file and write a manifest that vouches for it."""
    files = dict(read_manifest(step_dir).files) | {name: entry_of(data)}
    (step_dir / name).write_bytes(data)
    (step_dir / MANIFEST).write_bytes(Manifest(3, 1200, files).to_bytes())


HOSTILE = ["../model.safetensors", "/etc/passwd", "", "..", "a/b", "~", "CON", "x" * 300, "manifest.json", "nul\0byte", "..\\up"]


def as_file(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def empty_tensors(n: int) -> bytes:
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(b'"t%d":%b' % (number, entry) for number in range(n)) + b"}"


BOMBS = {
    "a header of 25 MB": lambda: as_file(b" " * (25 << 20)),
    "a header of brackets": lambda: as_file(b"[" * (1 << 20)),
    "400,000 empty tensors": lambda: as_file(empty_tensors(400_000)),
    "10,000 empty tensors": lambda: as_file(empty_tensors(10_000)),
    "a petabyte": lambda: as_file(b'{"a":{"dtype":"F32","shape":[281474976710656],"data_offsets":[0,1125899906842624]}}'),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_hostile_header_is_refused_in_a_tenth_of_a_second(bomb: str, step_dir: Path) -> None:
    forge(step_dir, "model.safetensors", BOMBS[bomb]())
    seconds = []
    for _ in range(3):
        began = time.process_time()
        assert_refused_by_name(step_dir, "model.safetensors")
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.1


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_a_hostile_name_in_the_manifest_is_refused(name: str, step_dir: Path) -> None:
    manifest = read_manifest(step_dir)
    (step_dir / MANIFEST).write_bytes(Manifest(3, 1200, {**manifest.files, name: entry_of(b"")}).to_bytes())
    assert_refused_by_name(step_dir, "which is no file of a checkpoint")


def test_a_consistent_manifest_of_the_wrong_types_is_refused(step_dir: Path) -> None:
    files = dict(read_manifest(step_dir).files)
    wrong: list[dict[str, Any]] = [
        {"step": "3"},
        {"tokens_seen": -1},
        {"files": {}},
        {"files": {n: e for n, e in files.items() if n != "config.json"}},
        {"files": {**files, "interp_gpt2.safetensors": entry_of(b"")}},
        {"files": {**files, "config.json": entry_of(b"").__class__(-1, "0" * 64)}},
        {"files": {**files, "config.json": entry_of(b"").__class__(0, "../" * 21 + "x")}},
        {"dropped": ("model.safetensors",)},
        {"dropped": ("optimizer.safetensors",)},
        {"dropped": ({},)},
    ]
    for change in wrong:
        content = {"step": 3, "tokens_seen": 1, "files": files, "dropped": ()} | change
        (step_dir / MANIFEST).write_bytes(Manifest(**content).to_bytes())
        assert_refused_by_name(step_dir, MANIFEST)


def test_anything_may_stand_in_the_manifest_and_is_refused(step_dir: Path) -> None:
    for data in (b"", b"[]", b"{", b"null", b"\xff", b"[" * 60_000, b"{}", b'{"a":1,"a":2}', b'{"x":NaN}', b" " * (1 << 20)):
        (step_dir / MANIFEST).write_bytes(data)
        assert_refused_by_name(step_dir, MANIFEST)


def test_forged_weights_of_another_shape_are_refused_by_tensor_before_any_value_is_read(
    step_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "tensors_of_bytes", lambda data, where: pytest.fail("read the values"))
    wider = GPT2Config(**TINY | {"n_ctx": 7})
    other = save_checkpoint(tmp_path / "wider", 3, random_state(wider), wider, 0)
    forge(step_dir, "model.safetensors", (other / "model.safetensors").read_bytes())
    assert_refused_by_name(step_dir, "tensor transformer.wpe.weight has shape (7, 4)")


def test_a_forged_config_of_another_model_is_refused(step_dir: Path, tmp_path: Path) -> None:
    native = GPT2Config(**TINY | {"attn_only": True})
    other = save_checkpoint(tmp_path / "native", 3, random_state(native), native, 0)
    forge(step_dir, "config.json", (other / "config.json").read_bytes())
    assert_refused_by_name(step_dir, "config.json does not belong to model.safetensors")


# ------------------------------------------------------------------------------------------------------- retention


def test_dropping_resume_files_keeps_the_model_and_its_hash(step_dir: Path) -> None:
    before, hash_before = load_weights(step_dir)[1], read_manifest(step_dir).model_sha256
    sizes = sum((step_dir / name).stat().st_size for name in ("optimizer.safetensors", "trainer.json"))
    assert drop_resume(step_dir) == sizes
    assert not (step_dir / "optimizer.safetensors").exists()
    assert read_manifest(step_dir).model_sha256 == hash_before
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_weights(step_dir)[1].items())
    with pytest.raises(CheckpointError, match="weights only"):
        load_resume(step_dir)
    assert drop_resume(step_dir) == 0


def test_dropping_is_safe_wherever_it_is_interrupted(step_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"replace": Path.replace, "unlink": Path.unlink}
    for fail_at in range(20):
        work = step_dir.parent / f"interrupted-{fail_at}" / step_dir.name
        shutil.copytree(step_dir, work)
        seen = [0]

        def failing(self: Path, *args: Any, call: str = "", seen: list[int] = seen, fail_at: int = fail_at, **kwargs: Any) -> Any:
            seen[0] += 1
            if seen[0] - 1 == fail_at:
                raise OSError(5, "Input/output error")
            return calls[call](self, *args, **kwargs)

        for call in calls:
            monkeypatch.setattr(Path, call, lambda self, *a, call=call, failing=failing, **k: failing(self, *a, call=call, **k))
        done = True
        try:
            drop_resume(work)
        except CheckpointWriteError:
            done = False
        monkeypatch.undo()
        load_weights(work)
        drop_resume(work)  # and can be finished later
        assert not (work / "optimizer.safetensors").exists()
        load_weights(work)
        if done:
            break
    assert fail_at >= 3  # the manifest's rename and two deletions were each made to fail


def test_a_reader_sees_a_whole_checkpoint_while_resume_files_are_dropped(step_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp_gpt2.runs import manifest as module

    real = module._check_files
    dropped = []

    def dropping_first(directory: Path, *args: Any) -> dict[str, bytes]:
        if not dropped:
            dropped.append(drop_resume(directory))
        return real(directory, *args)

    monkeypatch.setattr(module, "_check_files", dropping_first)
    assert not verify_checkpoint(step_dir).can_resume
    assert dropped[0] > 0
