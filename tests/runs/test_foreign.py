"""Runs from elsewhere: the models that lie there, at their steps, and a word for whatever nobody here can know."""

import pickle
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.huggingface import to_huggingface
from interp_gpt2.errors import CheckpointError, ConversionError, DataError, RunError, TokenizerError
from interp_gpt2.hf_format import parameters
from interp_gpt2.model import GPT2
from interp_gpt2.runs import hub
from interp_gpt2.runs.checkpoint import save_checkpoint
from interp_gpt2.runs.hub import step_in_name
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.writing import create_run
from interp_gpt2.tokenizers import ByteTokenizer, CharTokenizer
from tests.runs.conftest import commit_of

TINY = GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=6)
LETTERS = CharTokenizer("abcde")
REPO = "stanford-crfm/alias-gpt2-small-x21"


def model_at(step: int, config: GPT2Config = TINY) -> GPT2:
    return GPT2(config, seed=step).eval()


def same(a: GPT2, b: GPT2) -> bool:
    return a.config == b.config and all(torch.equal(w, b.state_dict()[name]) for name, w in a.state_dict().items())


@pytest.mark.parametrize(
    ("name", "step"),
    [("checkpoint-1000", 1000), ("step0", 0), ("step-7", 7), ("step-00001000", 1000), ("iter_12", 12), ("global_step5", 5),
     ("ckpt-3", 3), ("main", None), ("v1.0", None), ("checkpoint", None), ("step1000-bad", None), ("1000", None)],
)  # fmt: skip
def test_steps_are_told_from_names(name: str, step: int | None) -> None:
    assert step_in_name(name) == step


# --------------------------------------------------------------------------------------------------------- the Hub


def test_a_cached_repository_whose_branches_are_steps_reads_as_a_run_without_a_network(no_hub: Any, model_files: Any) -> None:
    for step in (0, 100, 1000):
        no_hub.put(REPO, f"checkpoint-{step}", model_files(model_at(step), LETTERS))
    no_hub.put(REPO, "main", model_files(model_at(1000)))
    run = Run.from_hub(REPO, steps=[0, 100, 1000])
    assert (run.name, run.steps, run.config) == (REPO, [0, 100, 1000], TINY)
    for step in run.steps:
        assert same(run.model(step), model_at(step))
        assert not run.model(step).training
    assert same(run.model(), model_at(1000))
    assert run.tokenizer().characters == LETTERS.characters
    assert len({run.checkpoint_hash(step) for step in run.steps}) == 3
    assert pickle.loads(pickle.dumps(run)) == run
    with pytest.raises(RunError, match=rf"{REPO} has no checkpoint at step 50; the nearest: 0 and 100 \(3 in all\)"):
        run.model(50)


def test_without_a_network_the_steps_in_the_cache_are_all_there_are(
    no_hub: Any, model_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    class Offline:
        def model_info(self, repo: str, timeout: float) -> Any:
            raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    no_hub.put(REPO, "checkpoint-10", model_files(model_at(10)))
    run = Run.from_hub(REPO)
    assert run.steps == [10]
    with pytest.raises(RunError, match=r"no checkpoint at step 20; .*the Hub could not be asked .*offline mode"):
        run.model(20)
    with pytest.raises(RunError, match=r"no step 20.* the Hub could not be asked"):
        Run.from_hub(REPO, steps=[10, 20])
    with pytest.raises(RunError, match=r"someone/else has no steps in the local cache .*offline mode is enabled"):
        Run.from_hub("someone/else")


def test_folders_of_a_revision_are_steps_too(no_hub: Any, model_files: Any) -> None:
    files = {f"run/step-{step}/{name}": data for step in (0, 5) for name, data in model_files(model_at(step), LETTERS).items()}
    no_hub.put("someone/folders", "main", files)
    run = Run.from_hub("someone/folders", steps=[0, 5])
    assert run.steps == [0, 5]
    assert same(run.model(5), model_at(5))
    assert run.checkpoint(5).name == "step-5"
    assert run.tokenizer().characters == LETTERS.characters
    assert run.checkpoint_hash(0) != run.checkpoint_hash(5)


def test_only_the_step_asked_for_is_downloaded_and_of_it_only_config_and_weights(
    fake_api: Any, no_hub: Any, model_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    for step in (0, 5, 9):
        fake_api.branches[f"step{step}"] = model_files(model_at(step), LETTERS) | {"README.md": b"hello", "x.py": b"evil"}
    cached, downloaded = huggingface_hub.snapshot_download, []

    def download(repo: str, revision: str, allow_patterns: list[str], **options: Any) -> str:
        if not options.get("local_files_only"):
            wanted = {n: d for n, d in fake_api.branches[revision].items() if n in allow_patterns}
            downloaded.extend((revision, name) for name in wanted)
            no_hub.put(repo, revision, wanted, commit=fake_commit(fake_api, revision))
        options.pop("etag_timeout", None)
        return cached(repo, revision=revision, allow_patterns=allow_patterns, **options | {"local_files_only": True})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    run = Run.from_hub("someone/steps")
    assert run.steps == [0, 5, 9]
    assert downloaded == []
    hashes = [run.checkpoint_hash(step) for step in run.steps]
    assert len(set(hashes)) == 3
    assert downloaded == []  # a hash is the Hub's, so stored results are found without the weights
    assert same(run.model(5), model_at(5))
    assert sorted(downloaded) == [("step5", "config.json"), ("step5", "model.safetensors")]
    run.model(5)
    assert len(downloaded) == 2
    assert run.tokenizer_sha256_at(9) is None
    run.tokenizer()
    assert {name for _, name in downloaded[2:]} == {"tokenizer.json", "tokenizer_config.json"}
    fake_api.branches["step0"] = model_files(model_at(3))
    with pytest.raises(CheckpointError, match=r"someone/steps@step0 has moved from commit .* open it again"):
        run.model(0)


def fake_commit(api: Any, revision: str) -> str:
    return next(ref.target_commit for ref in api.list_repo_refs("").branches if ref.name == revision)


def test_an_old_repository_with_pytorch_model_bin_is_read(no_hub: Any, tmp_path: Path) -> None:
    hf = to_huggingface(model_at(1))
    hf.config.save_pretrained(tmp_path / "old")
    torch.save(hf.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    no_hub.put(REPO, "checkpoint-1", {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()})
    assert same(Run.from_hub(REPO, steps=[1]).model(1), model_at(1))


def test_a_stanford_repository_in_shards_is_read_and_a_gap_in_the_cache_is_named(no_hub: Any, tmp_path: Path) -> None:
    config = replace(TINY, n_layers=3, scale_attn_by_inverse_layer_idx=True)
    hf = to_huggingface(model_at(7, config))
    hf.config.reorder_and_upcast_attn = True  # float32 attention scores, which ours are
    hf.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    shards = sorted(name for name in files if name.startswith("model-"))
    assert len(shards) > 2
    commit = no_hub.put(REPO, "checkpoint-100000", files)
    run = Run.from_hub(REPO, steps=[100000])
    assert run.steps == [100000]
    assert same(run.model(), model_at(7, config))
    gone = no_hub.root / f"models--{REPO.replace('/', '--')}" / "snapshots" / commit / shards[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1]} is missing; model\.safetensors\.index\.json names it"):
        run.model()


def test_tags_are_steps_too(fake_api: Any, no_hub: Any, model_files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = model_files(model_at(3))
    fake_api.branches["main"] = {}
    fake_api.tags["step3"] = files
    no_hub.put("someone/tagged", "step3", files, commit=commit_of(files))
    run = Run.from_hub("someone/tagged")
    assert run.steps == [3]
    assert same(run.model(3), model_at(3))


def test_a_network_that_says_nothing_is_given_up(no_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and never answers: huggingface_hub itself would wait for minutes."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", huggingface_hub.hf_api.HfApi)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ANSWER_WITHIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(RunError, match=r"someone/else has no steps in the local cache .* cannot be asked for it"):
            Run.from_hub("someone/else")
    assert time.monotonic() - began < 10


def test_a_repository_without_steps_says_what_it_has(fake_api: Any, no_hub: Any, model_files: Any) -> None:
    fake_api.branches |= {"main": model_files(model_at(0)), "v1": {}}
    with pytest.raises(RunError, match=r"has no branch, tag or folder that names a step.*it has main, v1.*from_pretrained"):
        Run.from_hub("someone/single")
    for wrong in ("a/b/c", "../x", "x y"):
        with pytest.raises(RunError, match="is no name of a repository"):
            Run.from_hub(wrong)
    fake_api.branches |= {"step1": model_files(model_at(0)), "checkpoint-1": model_files(model_at(1))}
    with pytest.raises(RunError, match="two models of step 1: checkpoint-1 and step1"):
        Run.from_hub("someone/single")


def test_another_family_is_refused_by_name(no_hub: Any, model_files: Any) -> None:
    files = model_files(model_at(0)) | {"config.json": b'{"model_type": "gpt_neox"}'}
    no_hub.put("EleutherAI/pythia-70m", "step0", files)
    with pytest.raises(ConversionError, match="gpt_neox"):
        Run.from_hub("EleutherAI/pythia-70m", steps=[0]).model(0)


# ------------------------------------------------------------------------------------------------ nanoGPT's folders


def write_nanogpt(path: Path, model: GPT2, step: int) -> None:
    state = {p.theirs: model.state_dict()[p.ours] for p in parameters(model.config)}
    c = model.config
    args = {"n_layer": c.n_layers, "n_head": c.n_heads, "n_embd": c.d_model, "block_size": c.n_ctx, "vocab_size": c.d_vocab,
            "bias": True, "dropout": 0.0}  # fmt: skip
    content = {"model": state | {"lm_head.weight": state["transformer.wte.weight"]}, "model_args": args, "iter_num": step,
               "optimizer": {}, "best_val_loss": torch.tensor(1.0), "config": {"batch_size": 12}}  # fmt: skip
    torch.save(content, path)


GELU = GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=5, n_ctx=6, act_fn="gelu")


def test_an_output_folder_of_nanogpt_is_a_run_at_the_steps_its_files_hold(tmp_path: Path) -> None:
    for name, step in (("ckpt.pt", 2000), ("ckpt-a.pt", 500), ("ckpt-1.pt", 1)):
        write_nanogpt(tmp_path / name, model_at(step, GELU), step)
    run = Run.from_nanogpt(tmp_path)
    assert (run.steps, run.config) == ([1, 500, 2000], GELU)
    assert same(run.model(500), model_at(500, GELU))
    assert len({run.checkpoint_hash(step) for step in run.steps}) == 3
    assert run.checkpoint_hash(1) != Run.from_nanogpt(tmp_path, d_vocab=4).checkpoint_hash(1)
    assert Run.from_nanogpt(tmp_path, d_vocab=4).config.d_vocab == 4
    with pytest.raises(TokenizerError, match=r"does not say what its 5 tokens stand for.*pass tokenizer="):
        run.tokenizer()
    assert Run.from_nanogpt(tmp_path, tokenizer=LETTERS).tokenizer() is LETTERS
    assert Run.from_nanogpt(tmp_path / "ckpt.pt").steps == [2000]


def test_a_damaged_file_of_nanogpts_stands_at_the_number_in_its_name(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "ckpt.pt", model_at(20, GELU), 20)
    (tmp_path / "ckpt-10.pt").write_bytes(b"half a file")
    run = Run.from_nanogpt(tmp_path)
    assert run.steps == [10, 20]
    with pytest.raises(CheckpointError, match=r"ckpt-10\.pt"):
        run.model(10)
    write_nanogpt(tmp_path / "ckpt-10.pt", model_at(20, GELU), 20)
    with pytest.raises(RunError, match=r"step 20 is there twice: .*ckpt-10\.pt and .*ckpt\.pt are two models"):
        Run.from_nanogpt(tmp_path)
    shutil.copy(tmp_path / "ckpt.pt", tmp_path / "ckpt-10.pt")  # a copy is no second model
    assert Run.from_nanogpt(tmp_path).steps == [20]
    with pytest.raises(RunError, match=r"no nanoGPT checkpoint \(ckpt\.pt\)"):
        Run.from_nanogpt(tmp_path / "nowhere")


# ----------------------------------------------------------------------------------------------------- directories


def test_directories_of_any_models_are_a_run(tmp_path: Path) -> None:
    trained = create_run(tmp_path / "ours", {"config": {"seed": 1}})
    ours = save_checkpoint(trained.path, 4, model_at(4).state_dict(), TINY, 400, LETTERS)
    to_huggingface(model_at(3)).save_pretrained(tmp_path / "checkpoint-3")
    LETTERS.save(tmp_path / "checkpoint-3")
    (tmp_path / "step9").mkdir()
    write_nanogpt(tmp_path / "step9" / "ckpt.pt", model_at(9), 12345)
    run = Run.from_directories([ours, tmp_path / "step9", tmp_path / "checkpoint-3"], name="mine")
    assert (run.name, run.steps) == ("mine", [3, 4, 9])
    assert same(run.model(3), model_at(3))
    assert same(run.model(4), model_at(4))
    assert run.checkpoint_hash(4) == trained.checkpoint_hash(4)
    assert run.tokens_seen(4) == 400
    assert run.tokenizer_sha256_at(3) == run.tokenizer_sha256_at(4)
    assert Run.from_directories([tmp_path / "checkpoint-3"], steps=[77]).steps == [77]
    assert run.results != tmp_path / "sweeps"


def test_a_model_that_is_replaced_has_another_hash(tmp_path: Path) -> None:
    to_huggingface(model_at(0)).save_pretrained(tmp_path / "step0")
    run = Run.from_directories([tmp_path / "step0"])
    before = run.checkpoint_hash(0)
    assert run.checkpoint_hash(0) == before
    to_huggingface(model_at(1)).save_pretrained(tmp_path / "step0")
    assert run.checkpoint_hash(0) != before


def test_directories_that_make_no_run_are_refused(tmp_path: Path) -> None:
    for name in ("step1", "checkpoint-1", "final"):
        to_huggingface(model_at(1)).save_pretrained(tmp_path / name)
    paths = {name: tmp_path / name for name in ("step1", "checkpoint-1", "final")}
    cases: list[tuple[list[Path], list[Any] | None, str]] = [
        ([], None, "no directories"),
        ([paths["final"]], None, r"final names no step.*pass steps="),
        ([paths["step1"], paths["checkpoint-1"]], None, "step 1 is there twice: .*step1 and .*checkpoint-1"),
        ([paths["step1"]], [1, 2], "1 directories cannot be at 2 steps"),
        ([paths["step1"]], [-1], "-1 is no step"),
        ([tmp_path / "step5"], None, r"there is no directory .*step5"),
    ]
    for given, steps, message in cases:
        with pytest.raises(RunError, match=message):
            Run.from_directories(given, steps)


def test_what_only_a_trainer_knows_is_refused_by_name(tmp_path: Path) -> None:
    to_huggingface(model_at(1)).save_pretrained(tmp_path / "step1")
    run = Run.from_directories([tmp_path / "step1"], name="theirs")
    for ask in (lambda: run.seed, lambda: run.settings, run.metrics, lambda: run.tokens_seen(1), lambda: run.recompute(1),
                lambda: run.newest_verified_step(resumable=True)):  # fmt: skip
        with pytest.raises(RunError, match="theirs was not trained here"):
            ask()
    with pytest.raises(DataError, match="theirs was not trained here"):
        run.source()
    assert Run.from_directories([tmp_path / "step1"], tokenizer=ByteTokenizer()).tokenizer().kind == "byte"


def test_a_tokenizer_in_the_two_files_of_the_published_gpt2(tmp_path: Path, gpt2: Any) -> None:
    import json

    to_huggingface(model_at(1)).save_pretrained(tmp_path / "step1")
    parsed = json.loads(gpt2._files["tokenizer.json"])["model"]
    symbols = parsed["vocab"] | {"<|endoftext|>": 50256}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parsed["merges"]]
    (tmp_path / "step1" / "vocab.json").write_text(json.dumps(symbols))
    (tmp_path / "step1" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    found = Run.from_directories([tmp_path / "step1"]).tokenizer()
    assert found.sha256 == gpt2.sha256
    (tmp_path / "step1" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(TokenizerError, match="holds no tokenizer this library can read"):
        Run.from_directories([tmp_path / "step1"]).tokenizer()
