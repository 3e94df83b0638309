"""`interp-gpt2 cache`: what it stores is what the model computes, and what it says is so."""

import shutil
from pathlib import Path

import pytest
import torch

from interp_gpt2 import cli
from interp_gpt2.activations.store import ActivationStore
from interp_gpt2.runs.run import Run


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_what_is_stored_is_described_verified_and_read(markov_run: Run, capsys) -> None:
    create = ("cache", "create", markov_run.path, "--at", "resid_post,blocks.0.attn.z", "--tokens", 200, "--steps", "0,9")
    code, out, _ = run(capsys, *create)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("activations/chains: complete, ")
    assert "2 layers, d_model 16; steps 0, 9; computed in float32 on cpu" in lines[1]
    assert "208 tokens, held-out text of markov" in lines[2]
    assert lines[4:] == [
        "  blocks.0.attn.z (2, 8)",
        "  blocks.0.resid_post (16,)",
        "  blocks.1.resid_post (16,)",
        "next: interp-gpt2 cache verify activations/chains",
    ]
    store = ActivationStore("activations/chains")
    _, cache = markov_run.model(9).run_with_cache(store.texts.tokens, ["*resid_post"])
    torch.testing.assert_close(store["resid_post", 1][:].float(), cache["resid_post", 1].flatten(0, 1), atol=2e-3, rtol=2e-3)
    assert run(capsys, *create)[:2] == (0, out)
    assert run(capsys, "cache", "info", "activations/chains") == (0, "\n".join(lines[:-1]) + "\n", "")
    assert run(capsys, "cache", "verify", "activations/chains") == (
        0, "activations/chains: all 9 files are what was written\n", "",
    )  # fmt: skip


def test_damage_is_named_and_deleting_and_creating_mends_it(markov_run: Run, capsys) -> None:
    create = ("cache", "create", markov_run.path, "--at", "embed", "--tokens", 200)
    run(capsys, *create)
    shard = next(Path("activations/chains").glob("*/embed-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    code, out, err = run(capsys, "cache", "verify", "activations/chains")
    assert (code, f"{shard} has been altered" in err, "1 of 4 files are damaged" in out) == (4, True, True)
    shard.unlink()
    Path("activations/chains/texts.safetensors").unlink()
    assert run(capsys, *create)[0] == 0
    assert run(capsys, "cache", "verify", "activations/chains")[0] == 0


def test_a_model_outside_a_run_is_stored_on_a_text_of_ones_own(text_run: Run, text_file: Path, capsys) -> None:
    shutil.copytree(text_run.checkpoint(), "alone")
    words = ("cache", "create", "alone", "--at", "*mlp.post", "--n-ctx", 8, "--tokens", 64)
    assert "what alone was trained on is not known; give --data" in run(capsys, *words)[2]
    code, out, _ = run(capsys, *words, "--data", text_file, "--out", "here", "--dtype", "bfloat16", "--batch-size", 2)
    assert code == 0
    assert "one model; computed" in out
    assert ActivationStore("here").plan.batch_size == 2
    assert run(capsys, *words, "--data", text_file, "--out", "here")[2].startswith(
        "interp-gpt2: here was begun with dtype bfloat16, which is now float16"
    )


def test_a_checkpoint_is_exported_for_sae_lens(markov_run: Run, capsys) -> None:
    import datasets

    run(capsys, "cache", "create", markov_run.path, "--at", "resid_post", "--tokens", 200, "--out", "s")
    code, out, _ = run(capsys, "cache", "export", "s", "--at", "blocks.1.resid_post", "--out", "exported")
    assert code == 0
    assert out.splitlines()[:2] == ["exported: 13 sequences of 16 tokens", "  blocks.1.hook_resid_post, d_in 16"]
    assert datasets.load_from_disk("exported").column_names == ["blocks.1.hook_resid_post", "token_ids"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["create", "RUN"], "--at is missing"),
        (["create", "RUN", "--at", "resid_pots"], "no hook point matches '*.resid_pots'. Nearest"),
        (["create", "RUN", "--at", "pattern"], "has a column for every key"),
        (
            ["create", "RUN", "--at", "embed", "--steps", "1.5"],
            "--steps takes whole numbers separated by commas, or all, not '1.5'",
        ),
        (["create", "RUN", "--at", "embed", "--steps", "77"], "no checkpoint at step 77; the nearest is 9"),
        (["create", "RUN", "--at", "embed", "--n-ctx", "17"], "--n-ctx 17 is not between 1 and the model's 16"),
        (["create", "RUN", "--at", "embed", "--data", "repeated-random"], "its char tokenizer is another"),
        (["create", "nowhere", "--at", "embed"], "there is no run 'nowhere'"),
        (["verify", "nowhere"], "nowhere is no activation store"),
        (["export", "nowhere"], "--out is missing"),
        (["burn", "RUN"], "create, verify, info, export"),
    ],
)
def test_mistakes_are_told_in_one_line(markov_run: Run, capsys, words, says) -> None:
    code, out, err = run(capsys, "cache", *[markov_run.path if word == "RUN" else word for word in words])
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
