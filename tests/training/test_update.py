"""One update: the same whatever the micro-batch, never waiting for the device, and the same pass hooked or compiled."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interp_gpt2.config import GPT2Config
from interp_gpt2.data.preparing import Preparation, prepare
from interp_gpt2.data.reading import Validation, file_reader
from interp_gpt2.errors import ConfigError, DataError
from interp_gpt2.inputs import check_tokens, trusted_tokens
from interp_gpt2.model import GPT2
from interp_gpt2.training.config import TrainConfig
from interp_gpt2.training.distributed import Processes
from interp_gpt2.training.loop import train
from interp_gpt2.training.machine import Machine
from interp_gpt2.training.optimizer import make_optimizer, optimizer_tensors
from interp_gpt2.training.speed import Meter
from interp_gpt2.training.update import NextTokenLoss, Updates, largest_micro_batch, source_of

CONFIG = TrainConfig(
    data="repeated-random",
    model=GPT2Config(n_layers=2, n_heads=2, d_model=16, d_vocab=64, n_ctx=8),
    n_steps=12,
    batch_size=12,
    lr=1e-2,
    warmup_steps=0,
    schedule="constant",
    threads=1,
    device="cpu",
)


def updates(config: TrainConfig = CONFIG) -> Updates:
    machine = Machine.for_config(config)
    model = GPT2(config.model, config.seed, machine.device)
    source = source_of(config)
    return Updates(model, make_optimizer(model, config), config, source, machine, Meter(config, machine))


def gradient(update: Updates) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in update.model.parameters()])


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 6, 12, 99])
def test_loss_and_gradient_are_means_over_the_global_batch_whatever_the_micro_batch(micro_batch):
    whole, parts = updates(), updates(replace(CONFIG, micro_batch=micro_batch))
    batch = whole.batch_of(0)
    assert float(parts.backward(batch)) == pytest.approx(float(whole.backward(batch)), abs=1e-6)
    assert torch.allclose(gradient(parts), gradient(whole), rtol=0, atol=1e-6)
    steps = [(whole(step), parts(step)) for step in range(8)]
    for with_all, with_parts in steps:
        assert with_parts.tolist() == pytest.approx(with_all.tolist(), abs=1e-5)  # Adam enlarges the rounding of small gradients


def test_the_optimizer_steps_once_for_all_micro_batches():
    update = updates(replace(CONFIG, micro_batch=3))
    update(0)
    update(1)
    state = optimizer_tensors(update.model, update.optimizer)
    assert {float(value) for name, value in state.items() if name.endswith(".step")} == {2.0}


def test_a_whole_batch_in_one_part_is_bit_for_bit_the_plain_step():
    update, plain = updates(), GPT2(CONFIG.model, CONFIG.seed)
    optimizer = make_optimizer(plain, CONFIG)
    for step in range(3):
        tokens = update.batch_of(step).tokens
        loss = torch.nn.functional.cross_entropy(plain(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), CONFIG.grad_clip)
        optimizer.step()
        assert update(step)[0] == loss
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, update.model.state_dict()[name]), name


class Waits(TorchDispatchMode):
    """Counts what makes a GPU's user wait: a tensor's value asked for by Python."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.n += 1
        return func(*args, **(kwargs or {}))


EVERYTHING = replace(
    CONFIG, micro_batch=5, guard_z=3.0, guard_window=2, optimizer="muon", model=replace(CONFIG.model, dropout=0.1)
)


@pytest.mark.parametrize("config", [CONFIG, EVERYTHING], ids=["plain", "everything on"])
def test_an_update_asks_for_no_tensors_value(config):
    update = updates(config)
    with Waits() as waits:
        for step in range(4):
            update(step)
    assert waits.n == 0
    with waits:
        update.no_spike.item()
    assert waits.n == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", [CONFIG, EVERYTHING], ids=["plain", "everything on"])
def test_an_update_never_waits_for_the_gpu(config):
    update = updates(replace(config, device="cuda"))
    update(0)  # the first sets things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            update(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tokens_are_looked_at_once_before_they_go_to_the_device(monkeypatch):
    update = updates()
    monkeypatch.setattr(type(update.source), "batch", lambda *_: torch.full((12, 9), 64))
    with pytest.raises(DataError, match=r"batch of step 3 has tokens from 64 to 64; d_vocab=64"):
        update(3)
    with trusted_tokens():
        check_tokens(torch.tensor([[999]]), CONFIG.model)  # the caller has looked
    with pytest.raises(ValueError, match="not in the vocabulary"):
        check_tokens(torch.tensor([[999]]), CONFIG.model)


# ---------------------------------------------------------------------------------------------------------------------
# How much fits


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
    ],
)
@pytest.mark.parametrize(("fits_up_to", "found"), [(99, 12), (11, 6), (5, 3), (2, 1), (1, 1)])
def test_the_micro_batch_halves_until_it_fits(error, fits_up_to, found):
    tried = []

    def attempt(n: int) -> None:
        tried.append(n)
        if n > fits_up_to:
            raise error

    assert largest_micro_batch(attempt, 12) == found
    assert tried == [12, 6, 3, 1][: tried.index(found) + 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory_and_too_little_is_said():
    def attempt(n: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_micro_batch(attempt, 4)
    with pytest.raises(ConfigError, match="a single sequence does not fit"):
        largest_micro_batch(lambda n: (_ for _ in ()).throw(MemoryError()), 4)


def test_trying_leaves_no_trace_in_the_training_that_follows(monkeypatch):
    tried, fresh = updates(), updates()
    tried.try_micro_batch(12)
    assert all(p.grad is None for p in tried.model.parameters())
    assert torch.equal(tried(0), fresh(0))
    sizes = []
    told = lambda self, tokens, documents: sizes.append(len(tokens)) or self.model.wte.weight.sum()  # noqa: E731
    monkeypatch.setattr(NextTokenLoss, "forward", told)
    tried.try_micro_batch(7)
    assert sizes == [7, 7]


# ---------------------------------------------------------------------------------------------------------------------
# Two passes on one set of weights


NEEDS_A_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="inductor writes C++; needs g++")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses parts of torch that are on their way out
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_A_COMPILER)])
def test_the_compiled_pass_and_the_hooked_one_are_one_model(backend, monkeypatch):
    compile_in_place = torch.nn.Module.compile
    monkeypatch.setattr(NextTokenLoss, "compile", lambda self, **how: compile_in_place(self, backend=backend, **how))
    config = replace(CONFIG, model=replace(CONFIG.model, n_layers=1))  # a compiler takes its time for every layer
    compiled, eager = updates(replace(config, compile=True)), updates(config)
    names = list(GPT2(config.model).state_dict())
    for step in range(2):
        assert compiled(step).tolist() == pytest.approx(eager(step).tolist(), abs=1e-5)
    assert list(compiled.model.state_dict()) == names  # no prefix, before or after compiling
    tokens = compiled.batch_of(5).tokens
    logits, cache = compiled.model.run_with_cache(tokens[:, :-1])  # hooks on: eager, on the weights that were trained compiled
    by_hand = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()
    assert compiled.loss(tokens).item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert cache["pattern", 0].shape == (12, 2, 8, 8)
    for name, weight in eager.model.state_dict().items():
        assert torch.allclose(weight, compiled.model.state_dict()[name], atol=1e-4), name


# Documents kept apart


@pytest.fixture
def masked(tmp_path) -> TrainConfig:
    """Short tales of a few words each, many of which fit in a window."""
    tales = [" ".join(f"word{(7 * i + j) % 97}" for j in range(1 + i % 5)) for i in range(400)]
    (tmp_path / "tales.jsonl").write_text("".join(json.dumps({"text": tale}) + "\n" for tale in tales))
    prepare(file_reader(tmp_path / "tales.jsonl", validation=Validation(first=40)), tmp_path / "tales", Preparation("bpe:280"))
    model = replace(CONFIG.model, d_vocab=280, n_ctx=32)
    return replace(CONFIG, data=str(tmp_path / "tales"), tokenizer="bpe:280", documents="masked", model=model)


def test_the_masked_loss_is_the_mean_over_documents_run_alone(masked):
    update = updates(masked)
    batch = update.batch_of(3)
    losses = []
    for tokens, documents in zip(batch.tokens, batch.documents, strict=True):
        for number in documents.unique():
            alone = tokens[documents == number]
            if len(alone) > 1:
                logits = update.model(alone[None, :-1])[0]
                losses.append(torch.nn.functional.cross_entropy(logits, alone[1:], reduction="none"))
    assert len(losses) > 2 * len(batch.tokens), "a window holds several documents"
    assert float(update.backward(batch)) == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)


def test_the_masked_gradient_is_the_same_whatever_the_micro_batch_or_the_share(masked):
    whole, parts = updates(masked), updates(replace(masked, micro_batch=5))
    for update in (whole, parts):
        update.backward(update.batch_of(0))
    torch.testing.assert_close(gradient(parts), gradient(whole), rtol=0, atol=1e-6)
    shares = []
    for rank in range(2):
        share = updates(masked)
        share.processes = Processes(rank, 2)  # batches by rank; what two say to each other is their mean, below
        share.backward(share.batch_of(0))
        shares.append(gradient(share))
    torch.testing.assert_close(sum(shares) / 2, gradient(whole), rtol=0, atol=1e-6)


def test_masked_runs_resume_bit_for_bit_and_their_source_is_the_same(masked, tmp_path):
    config = replace(masked, order="epochs", resident=True, n_steps=4, eval_every=4)
    whole = train(config, tmp_path / "whole")
    train(replace(config, n_steps=2), tmp_path / "parts")
    parts = train(config, tmp_path / "parts", resume=True)
    for name, weight in whole.model().state_dict().items():
        assert torch.equal(weight, parts.model().state_dict()[name]), name
    where = (1, config.batch_size, config.model.n_ctx, config.seed)
    assert torch.equal(whole.source().batch(*where), updates(config).batch_of(1).tokens)


def test_a_sequence_that_is_drawn_has_no_other_order():
    with pytest.raises(DataError, match="draws every sequence anew"):
        updates(replace(CONFIG, order="epochs"))
