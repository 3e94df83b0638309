"""Mean activations over a dataset: what stands in for a part that is ablated.

The data are read once, batch by batch; only sums are kept, in float64, whose size does not depend on how much data there is.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, DataError
from interp_gpt2.files import written_atomically
from interp_gpt2.hooks import Names, canonical, full_name, hook_point_names, resolve
from interp_gpt2.inputs import check_tokens, positions_and_visible
from interp_gpt2.model import GPT2
from interp_gpt2.passes import EditedGPT2
from interp_gpt2.runs.checkpoint import weights_sha256
from interp_gpt2.runs.strict_json import parse

Batch = Tensor | tuple[Tensor, Tensor | None]  # tokens (batch, pos), alone or with their attention mask
_FORMAT = "interp_gpt2 activation means 1"
_COUNTS = "counts"


@dataclass(frozen=True)
class ComputedOn:
    """What means are of: the model, and the data by their hash (of ids, lengths and masks, whatever the batches)."""

    weights_sha256: str
    tokens_sha256: str
    n_sequences: int
    edited_at: tuple[str, ...] = ()  # hook points with standing edits, under which the model was run
    note: str = ""


@dataclass(frozen=True, eq=False)
class ActivationMeans:
    """Means of activations over real tokens: `mean("blocks.0.attn.z")`, `positional_mean(("z", 0))`.

    `sums` are over sequences, by hook point and position; `counts` says of how many. Made by `activation_means`.
    """

    sums: dict[str, Float[Tensor, "pos ..."]]
    counts: Int[Tensor, "pos"]
    config: GPT2Config
    computed_on: ComputedOn

    @property
    def n_tokens(self) -> int:
        return int(self.counts.sum())

    def mean(self, name: str | tuple) -> Float[Tensor, "..."]:
        """The mean over all real tokens, float64, without batch and pos. Raises AnalysisError for what was not recorded."""
        return self._sum(name).sum(0) / self.n_tokens

    def positional_mean(self, name: str | tuple) -> Float[Tensor, "pos ..."]:
        """The mean over sequences at each position, float64. Raises AnalysisError for what was not recorded."""
        total = self._sum(name)
        return total / self.counts.reshape(-1, *[1] * (total.ndim - 1))

    def _sum(self, name: str | tuple) -> Tensor:
        name = full_name(*name, n_layers=self.config.n_layers) if isinstance(name, tuple) else canonical(name)
        if name not in self.sums:
            raise AnalysisError(f"there are no means of {name!r}; there are of {', '.join(self.sums)}")
        return self.sums[name]

    def check(self, model: GPT2) -> None:
        """Raises AnalysisError unless these are means of a model with exactly these weights."""
        self.check_config(model.config)
        if weights_sha256(model.state_dict(), model.config) != self.computed_on.weights_sha256:
            raise AnalysisError("these means are of a model with other weights; compute them anew with activation_means")

    def check_config(self, config: GPT2Config) -> None:
        """Raises AnalysisError unless these are means of a model with this config. (`check` compares weights too.)"""
        ours, theirs = asdict(self.config), asdict(config)
        if differ := [f"{name}={ours[name]}, not {theirs[name]}" for name in ours if ours[name] != theirs[name]]:
            raise AnalysisError(f"these means are of another model, with {'; '.join(differ)}")

    def save(self, path: Path | str) -> Path:
        """Write them to a safetensors file, with what they were computed on in its header."""
        import safetensors.torch

        note = {"format": _FORMAT, "config": self.config.to_dict(), "computed_on": asdict(self.computed_on)}
        tensors = {name: total.cpu().contiguous() for name, total in self.sums.items()} | {_COUNTS: self.counts.cpu()}
        content = safetensors.torch.save(tensors, {"interp_gpt2": json.dumps(note)})
        with written_atomically(Path(path)) as file:
            file.write(content)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> "ActivationMeans":
        """What `save` wrote. Raises DataError for a file that is missing, damaged or something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} cannot be read as activation means: {error}") from error
        note = parse(header.get("interp_gpt2", "{}").encode(), path)
        if note.get("format") != _FORMAT or _COUNTS not in tensors:
            raise DataError(f"{path} does not hold activation means; ActivationMeans.save writes them")
        about = note["computed_on"] | {"edited_at": tuple(note["computed_on"]["edited_at"])}
        return cls(tensors, tensors.pop(_COUNTS), GPT2Config.from_dict(note["config"]), ComputedOn(**about))


def activation_means(
    model: GPT2,
    data: Tensor | Iterable[Batch],
    names: Names | None = None,
    attention_mask: Tensor | None = None,
    batch_size: int = 16,
    note: str = "",
) -> ActivationMeans:
    """Means of the activations at `names` over a dataset, by position and overall.

    `data`: tokens (batch, pos) with an `attention_mask`, or an iterable of batches, each tokens alone or (tokens, mask);
    lengths may differ. Padding counts for nothing, and a token's position is counted within its own text. `names`: None
    for every head's z, `attn_out`, `mlp.post` and `mlp_out`. Runs `batch_size` sequences at a time.

    Raises AnalysisError for no data, and for attention scores and patterns, which have no mean over lengths; else as the
    model does, for instance TokenError for ids of another vocabulary.
    """
    require_eval(model)
    if batch_size < 1:
        raise AnalysisError(f"batch_size={batch_size} holds no sequence; it must be at least 1")
    wanted = _names(model.config, names)
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(0, dtype=torch.long)
    digest, n_sequences = hashlib.sha256(), 0
    for tokens, mask in batches(data, attention_mask, batch_size):
        check_tokens(tokens, model.config, mask)
        _hash(digest, tokens, mask)
        n_sequences += len(tokens)
        counts = _add_batch(model, tokens, mask, wanted, sums, counts)
    if not counts.sum():
        raise AnalysisError(f"there is no token in {n_sequences} sequences to take a mean over")
    edited = tuple(model.edits) if isinstance(model, EditedGPT2) else ()
    about = ComputedOn(weights_sha256(model.state_dict(), model.config), digest.hexdigest(), n_sequences, edited, note)
    return ActivationMeans({name: sums[name].cpu() for name in wanted}, counts, model.config, about)


def _names(config: GPT2Config, names: Names | None) -> list[str]:
    leaves = ("attn.z", "attn_out", "mlp.post", "mlp_out")
    chosen = (lambda name: name.partition(".")[2].partition(".")[2] in leaves) if names is None else names
    if names is None and not config.n_layers:
        raise AnalysisError("a model without layers has no heads or MLPs to take means of; pass names")
    found = resolve(chosen, config)
    if wrong := [name for name in found if name.endswith(("attn_scores", "pattern"))]:
        raise AnalysisError(f"{min(wrong)!r} has a column for every key, so that it has no mean over texts of any length")
    return [name for name in hook_point_names(config) if name in found]


def batches(
    data: Tensor | Iterable[Batch], attention_mask: Tensor | None, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Tokens and their mask, `batch_size` sequences at a time, from either way of giving a dataset."""
    if not isinstance(data, Tensor) and attention_mask is not None:
        raise AnalysisError("attention_mask goes with one tensor of tokens; for batches, pass (tokens, mask) each")
    for part in [(data, attention_mask)] if isinstance(data, Tensor) else data:
        pair = part if isinstance(part, Sequence) else (part, None)
        if len(pair) != 2 or not isinstance(pair[0], Tensor):
            raise AnalysisError(f"a batch is a tensor of tokens or (tokens, attention mask); got {type(part).__name__}")
        tokens, mask = pair
        if tokens.ndim != 2 or tokens.dtype not in (torch.int64, torch.int32):
            kind = f"{str(tokens.dtype).removeprefix('torch.')} of shape {tuple(tokens.shape)}"
            raise AnalysisError(f"tokens are (batch, pos) whole numbers; got {kind}")
        if mask is not None and mask.shape != tokens.shape:
            raise AnalysisError(f"an attention mask {tuple(mask.shape)} does not go with tokens {tuple(tokens.shape)}")
        for start in range(0, len(tokens), batch_size):
            rows = slice(start, start + batch_size)
            yield tokens[rows], None if mask is None else mask[rows]


def _hash(digest: "hashlib._Hash", tokens: Tensor, mask: Tensor | None) -> None:
    masks = torch.ones_like(tokens) if mask is None else mask
    for row, of_row in zip(tokens.cpu().long(), masks.cpu().long(), strict=True):
        digest.update(len(row).to_bytes(8, "little") + row.numpy().tobytes() + of_row.numpy().tobytes())


@torch.no_grad()
def _add_batch(
    model: GPT2, tokens: Tensor, mask: Tensor | None, names: list[str], sums: dict[str, Tensor], counts: Tensor
) -> Tensor:
    """Add a batch's activations to `sums`, in place, and return the longer `counts`."""
    mask = None if mask is None else mask.to(model.device)
    _, cache = model.run_with_cache(tokens.to(model.device), names, attention_mask=mask)
    at = positions_and_visible(tokens.shape[1], mask, 0, model.device)[0].expand(tokens.shape)
    real = torch.ones_like(at, dtype=torch.bool) if mask is None else mask.bool()
    n_pos = max(len(counts), int(at.max()) + 1)
    accumulate_on = "cpu" if model.device.type == "mps" else model.device  # which has no float64
    for name in names:
        value = cache[name]
        if name not in sums:
            sums[name] = torch.zeros(0, *value.shape[2:], dtype=torch.float64, device=accumulate_on)
        if len(sums[name]) < n_pos:
            sums[name] = torch.cat([sums[name], sums[name].new_zeros(n_pos - len(sums[name]), *value.shape[2:])])
        if mask is None:
            sums[name][: tokens.shape[1]] += value.to(accumulate_on).sum(0, dtype=torch.float64)
        else:
            sums[name].index_add_(0, at[real].to(accumulate_on), value[real].to(accumulate_on).double())
    counts = torch.cat([counts, counts.new_zeros(n_pos - len(counts))])
    return counts.index_add_(0, at[real].cpu(), torch.ones(int(real.sum()), dtype=torch.long))
