"""Fixtures for every test: one thread, tiny models, fixed seeds."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from interp_gpt2 import vocab_bpe
from interp_gpt2.config import GPT2Config
from interp_gpt2.model import GPT2
from interp_gpt2.runs.run import Run
from interp_gpt2.tokenizers import GPT2Tokenizer
from interp_gpt2.training.config import Checkpoints, TrainConfig
from interp_gpt2.training.loop import train

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and what they start, ignore Ctrl-C
torch.set_num_threads(1)  # tests run side by side; two busy pools on two cores are slower than one thread each

SHAPES = {
    "ordinary": {},
    "one head": {"n_heads": 1},
    "attention only": {"attn_only": True},
    "inverse layer scaling": {"scale_attn_by_inverse_layer_idx": True},
    "no biases": {"bias": False},
    "no layer norm": {"layer_norm": False},
    "untied": {"tied": False},
    "unembedding bias": {"tied": False, "unembed_bias": True},
    "narrow heads": {"d_head": 5},
    "no layers": {"n_layers": 0},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `hooked_transformer` needs a transformer-lens that still has it."""
    if int(version("transformer-lens").split(".")[0]) < 4:
        return
    for item in items:
        if item.get_closest_marker("hooked_transformer"):
            item.add_marker(pytest.mark.skip(reason="HookedTransformer needs transformer-lens <4"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of sample corpora and tokenizer files, which lies outside the project; without it the test skips."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("INTERP_GPT2_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the sample data folder (INTERP_GPT2_DATA); {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> GPT2Tokenizer:
    """GPT-2's tokenizer, from its published files."""
    return GPT2Tokenizer(vocab_bpe.parse((shared_data / "tiktoken_cache" / vocab_bpe.NAMES[0]).read_text()))


@pytest.fixture
def config() -> GPT2Config:
    return GPT2Config(n_layers=2, n_heads=4, d_model=32, d_vocab=50, n_ctx=16)


@pytest.fixture
def model(config: GPT2Config) -> GPT2:
    return random_gpt2(config)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def any_model(request, make_gpt2) -> GPT2:
    """A model of each kind, under a test that holds for all."""
    sizes = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_vocab": 50, "n_ctx": 16} | request.param
    return make_gpt2(GPT2Config(**sizes))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))


def random_gpt2(config: GPT2Config, seed: int = 0) -> GPT2:
    """A model whose every parameter matters: at GPT-2's own initialisation biases are 0, gains 1, and patterns uniform."""
    model = GPT2(config, seed).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
    return model


@pytest.fixture
def make_gpt2() -> Callable[..., GPT2]:
    return random_gpt2


def assert_finds(
    measure: Callable[[GPT2], torch.Tensor], planted_scores: torch.Tensor | list[float], random_models: list[GPT2]
) -> None:
    """In the last of the random models no score is outside the 99 % range of the others; the planted scores all are.

    The range holds all scores of a model at once, 99 times in 100: at each place Student's t of one more score after those
    known there, two-sided, each place its share of the 1 %.
    """
    from scipy.stats import t

    scores = torch.stack([measure(model).flatten().double() for model in random_models])
    known, fresh = scores[:-1], scores[-1]
    n = len(known)
    reach = t.ppf(1 - 0.005 / len(fresh), n - 1) * known.std(0) * (1 + 1 / n) ** 0.5
    assert ((fresh - known.mean(0)).abs() <= reach).all()
    planted = torch.as_tensor(planted_scores).double().reshape(-1, 1)
    assert ((planted - known.mean(0)).abs() > reach).all()  # of every place, not only of its own


@pytest.fixture(scope="session", name="assert_finds")
def assert_finds_fixture() -> Callable[..., None]:
    return assert_finds


class LargestMade(TorchDispatchMode):
    """The most bytes of any one tensor made inside the block; views count as what they are views of."""

    n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)]
        self.n_bytes = max(self.n_bytes, *(tensor.untyped_storage().nbytes() for tensor in made), 0)
        return out


@pytest.fixture
def largest_made() -> type[LargestMade]:
    return LargestMade


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120,000 characters of made-up text with quotes, capitals, digits and indentation."""
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "so", "did", "its", "friend", "in", "42", "days", "Rome"]
    lines = []
    while len(lines) < 3400:
        sentence = " ".join(draw.choices(words, k=7))
        if draw.random() < 0.4:
            sentence = f'he said "{sentence}" once'
        lines.append(" " * draw.choice((0, 0, 4, 8)) + sentence.capitalize() + ".")
        if draw.random() < 0.15:
            lines.append("")
    path = tmp_path_factory.mktemp("text") / "made-up.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="session")
def text_run(text_file: Path) -> Iterator[Run]:
    """A finished run of 10 steps on the made-up text. Copy it before changing anything in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_GPT2_CACHE", str(text_file.parent / "cache"))
        model = GPT2Config(n_layers=2, n_heads=2, d_model=16, n_ctx=32)
        config = TrainConfig(
            data=str(text_file), model=model, n_steps=10, batch_size=4, eval_every=5, checkpoints=Checkpoints(anchors=0)
        )
        yield train(config, text_file.parent / "tiny")


@pytest.fixture(scope="session")
def markov_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of 9 steps, a checkpoint at each, on Markov chains. Copy it before changing anything in it."""
    model = GPT2Config(n_layers=2, n_heads=2, d_model=16, n_ctx=16)
    config = TrainConfig(data="markov", model=model, n_steps=9, batch_size=8, checkpoints=Checkpoints(every=1))
    return train(config, tmp_path_factory.mktemp("markov") / "chains")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        chromium = playwright.chromium.launch(executable_path=found, args=flags)
        yield chromium
        chromium.close()
