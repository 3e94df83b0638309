"""Why a loss or gradient is no finite number: where in the pass it began, found with every activation looked at.

From the first update that is not finite on, weights and optimizer are left as they are (update.py), so that the pass which
went wrong can be made again when somebody looks, which is only where a row or a checkpoint is written.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from interp_gpt2.errors import DivergenceError
from interp_gpt2.files import written_atomically
from interp_gpt2.hooks import default_hook_points, hook_point_names
from interp_gpt2.inputs import positions_and_visible
from interp_gpt2.model import GPT2
from interp_gpt2.runs.durable import write_errors_named
from interp_gpt2.runs.run import Run
from interp_gpt2.runs.strict_json import render
from interp_gpt2.runs.writing import DIVERGENCE
from interp_gpt2.training.distributed import ALONE, Processes
from interp_gpt2.training.schedule import learning_rate
from interp_gpt2.training.update import Batch, Updates


@dataclass(frozen=True)
class FirstNonFinite:
    """Where a pass over a batch first has a value that is no finite number.

    `weight`: a parameter that is not finite itself. `hook_point`: the first activation, in the order of the
    pass. `gradient`: where every activation is finite, the parameter nearest to the output whose gradient is not. What does
    not apply is None. `sequences` are those of the batch in which the hook point is not finite, `nan` and `inf` the values.
    """

    weight: str | None
    hook_point: str | None
    gradient: str | None
    sequences: tuple[int, ...] = ()
    nan: int = 0
    inf: int = 0

    def __str__(self) -> str:
        if self.weight is not None:
            return f"the weights of {self.weight}"
        if self.hook_point is not None:
            which = ", ".join(map(str, self.sequences[:5])) + (", ..." if len(self.sequences) > 5 else "")
            return f"{self.hook_point} in sequences {which} of the batch ({self.nan:,} nan, {self.inf:,} infinite values)"
        if self.gradient is not None:
            return f"the gradient of {self.gradient}; every activation is finite"
        return "nothing that another pass shows"


def diverged(run: Run, updates: Updates, step: int, loss: float, grad_norm: float) -> DivergenceError:
    """The error to raise when update `step` was not finite, its findings in the run's divergence.json."""
    found = first_nonfinite(updates, step)
    tokens = updates.batch_of(step - 1).tokens
    last = run.steps[-1] if run.steps else None
    record = {
        "step": step,
        "loss": _number(loss),
        "grad_norm": _number(grad_norm),
        "lr": learning_rate(updates.config, step - 1),
        "batch": {"of_step": step - 1, "shape": list(tokens.shape), "sha256": _sha256(tokens)},
        "first_nonfinite": asdict(found),
        "largest_weight": largest_weight(updates.model),
        "last_checkpoint": last,
    }
    path = run.path / DIVERGENCE
    content = render(record)
    with write_errors_named(path, len(content)), written_atomically(path) as file:
        file.write(content)
    return DivergenceError(
        f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}; first not finite: {found}; the last "
        f"checkpoint, of step {last}, is from before; try a lower lr than {updates.config.lr} or a longer warmup_steps; "
        f"more in {path}"
    )


def first_nonfinite(updates: Updates, step: int) -> FirstNonFinite:
    """Make the pass of update `step` again, on the weights as they are, and look at everything in it."""
    for name, weight in updates.model.named_parameters():
        if not torch.isfinite(weight).all():
            return FirstNonFinite(name, None, None)
    batch = updates.batch_of(step - 1)
    updates.seed_dropout(step - 1)
    counts = _nonfinite_counts(updates, batch)
    for name in hook_point_names(updates.config.model):
        if name in counts and counts[name].any():
            per_sequence = counts[name]  # (batch, 2): nan, infinite
            sequences = per_sequence.sum(1).nonzero().flatten().tolist()
            nan, inf = per_sequence.sum(0).tolist()
            return FirstNonFinite(None, name, None, tuple(sequences), int(nan), int(inf))
    updates.optimizer.zero_grad()
    updates.seed_dropout(step - 1)
    updates.backward(batch)
    for name, weight in reversed(list(updates.model.named_parameters())):
        if weight.grad is not None and not torch.isfinite(weight.grad).all():
            return FirstNonFinite(None, None, name)
    return FirstNonFinite(None, None, None)


def finite_weights(model: GPT2, processes: Processes = ALONE) -> bool:
    """Whether every weight is a finite number. Finite gradients can still be followed by a step out of range."""
    largest = torch.nn.utils.get_total_norm([w.detach() for w in model.parameters()], norm_type=math.inf)
    return bool(processes.norm(largest).isfinite())


def largest_weight(model: GPT2) -> dict[str, Any]:
    """The parameter with the largest value, and that value."""
    sizes = {name: weight.detach().abs().max().item() for name, weight in model.named_parameters()}
    name = max(sizes, key=lambda name: (not math.isfinite(sizes[name]), sizes[name]))
    return {"name": name, "value": _number(sizes[name])}


@torch.no_grad()
def _nonfinite_counts(updates: Updates, batch: Batch) -> dict[str, Tensor]:
    """By hook point, how many values are nan and infinite in each sequence: (batch, 2). Only counts are kept of a pass.

    Sequence by sequence, since attention with hooks holds whole patterns; with dropout in the parts whose draws were made.
    """
    names = default_hook_points(updates.config.model)
    n = (updates.machine.micro_batch or len(batch.tokens)) if updates.config.model.dropout else 1
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in batch.split(n):
        tokens, numbers = part.tokens[:, :-1], None if part.documents is None else part.documents[:, :-1]
        with updates.machine.computing():
            _, cache = updates.model.run_with_cache(tokens, list(names), keep=_counts, attention_mask=numbers)
        for name, counts in cache.items():
            if name.endswith("attn_scores"):  # masked positions are minus infinity
                counts = counts - _masked_scores(tokens, numbers, updates.config.model.n_heads)
            found[name].append(counts)
    return {name: torch.cat(counts) for name, counts in found.items()}


def _masked_scores(tokens: Tensor, numbers: Tensor | None, n_heads: int) -> Tensor:
    """How many scores of a layer are minus infinity because nobody may see them, beside no nan: (batch, 2)."""
    numbers = torch.ones_like(tokens) if numbers is None else numbers
    _, visible = positions_and_visible(tokens.shape[1], numbers, 0, tokens.device)
    hidden = n_heads * (~visible).flatten(1).sum(1)
    return torch.stack((torch.zeros_like(hidden), hidden), 1)


def _counts(value: Tensor) -> Tensor:
    rows = value.flatten(1)
    return torch.stack((rows.isnan().sum(1), rows.isinf().sum(1)), 1)  # (batch, 2)


def _sha256(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest()


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has neither nan nor infinity
