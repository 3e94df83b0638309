"""How far apart the weights of two models of one shape are, part by part."""

from dataclasses import dataclass

import torch
from torch import Tensor

from interp_gpt2.analysis.attention_patterns import head_label
from interp_gpt2.errors import AnalysisError
from interp_gpt2.model import GPT2


@dataclass(frozen=True)
class Moved:
    """How far one part of a model moved, and how far from the same part of the yardstick it is. The unit is the measure's."""

    label: str
    value: float
    yardstick: float
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None


def weight_distances(a: GPT2, b: GPT2, yardstick: GPT2) -> tuple[Moved, ...]:
    """||a - b|| / ||a|| of every part's weights, beside ||a - yardstick|| / ||a||: 0 for none, about 1.4 for unrelated ones.

    Parts are the embeddings, every head (its slices of W_Q, W_K, W_V and W_O with their biases), every MLP, the layer norms
    and what biases attention shares. Two seeds differ by more than they compute differently: heads and neurons in another
    order, or a rotated stream, count as distance. A part of a that is all 0 (biases at their initialisation) is NaN.
    Raises AnalysisError for models of different shapes.
    """
    check_same_shape(a, b, yardstick)
    parts = [_parts(model) for model in (a, b, yardstick)]
    found = []
    for (label, layer, head), mine in parts[0].items():
        size = _norm(mine)
        apart = [_norm([x - y for x, y in zip(mine, other[label, layer, head], strict=True)]) for other in parts[1:]]
        value, beside = (each / size if size else float("nan") for each in apart)
        found.append(Moved(label, value, beside, layer, head))
    return tuple(found)


def check_same_shape(*models: GPT2) -> None:
    """Raises AnalysisError, naming the first field that differs, unless all models have the first one's configuration."""
    first = models[0].config.to_dict()
    for model in models[1:]:
        for field, value in model.config.to_dict().items():
            if value != first[field] and field not in ("dropout", "embed_std", "pos_std", "pos_init"):
                raise AnalysisError(
                    f"{field} is {first[field]} in one model and {value} in the other; only models of one shape can be compared "
                    "part by part"
                )


def _norm(tensors: list[Tensor]) -> float:
    return float(sum(tensor.double().square().sum() for tensor in tensors)) ** 0.5


@torch.no_grad()
def _parts(model: GPT2) -> dict[tuple[str, int | None, int | None], list[Tensor]]:
    """(label, layer, head) of each part, and its tensors on the CPU. Every parameter is in exactly one part."""
    config = model.config
    parts: dict[tuple[str, int | None, int | None], list[Tensor]] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().float().cpu()
        words = name.split(".")
        if words[0] != "blocks":
            label = {"wte": "embed", "wpe": "pos_embed", "lm_head": "unembed"}.get(words[0], words[0])
            parts.setdefault((label, None, None), []).append(tensor)
            continue
        layer = int(words[1])
        if words[2] == "attn" and words[3] == "qkv":
            by_head = tensor.unflatten(0, (3, config.n_heads, config.d_head)).unbind(1)
        elif words[2] == "attn" and words[4] == "weight":
            by_head = tensor.unflatten(1, (config.n_heads, config.d_head)).unbind(1)
        else:
            label = f"L{layer} attention bias" if words[2] == "attn" else f"L{layer} {words[2]}"
            parts.setdefault((label, layer, None), []).append(tensor)
            continue
        for head, its in enumerate(by_head):
            parts.setdefault((head_label(layer, head), layer, head), []).append(its)
    return parts
