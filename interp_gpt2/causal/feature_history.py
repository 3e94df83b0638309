"""Features of a dictionary that is spliced into a model, looked at as neurons are: contexts, histogram, effects, pages.

spliced = splice(run.model(), sae, ("resid_post", 5))
features = strongest_features(spliced, windows, 20)
histories = feature_histories(lambda step: spliced, run.steps[-1:], windows, features)
save_neuron_pages(histories, run.tokenizer().labels, "features", run.name)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp_gpt2.analysis.neuron_activity import layer_activity
from interp_gpt2.analysis.neuron_history import NeuronHistory, Units, effects_of, unit_records
from interp_gpt2.analysis.rows import require_eval
from interp_gpt2.analysis.windows import Batch, Windows
from interp_gpt2.causal.splice import SplicedGPT2, as_taken
from interp_gpt2.errors import AnalysisError

STREAM = ("embed", "pos_embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_BATCH_TOKENS, _BATCH_NUMBERS = 4096, 2**24  # 64 MB of features at a time
_AT_ONCE = 256


@dataclass(frozen=True)
class FeatureHistory(NeuronHistory):
    """A feature's records: see NeuronHistory. `neuron` is its number in the dictionary at `hook_point`.

    Its output weights are what it adds to the residual stream; a dictionary need not have input weights.
    """

    kind: ClassVar[str] = "feature"

    hook_point: str

    @property
    def label(self) -> str:
        return f"F{self.neuron}" if self.layer < 0 else f"L{self.layer}F{self.neuron}"

    @property
    def place(self) -> str:
        return f"Features of {self.hook_point}"


def feature_histories(
    load: Callable[[int], SplicedGPT2],
    steps: Sequence[int],
    windows: Windows,
    features: Sequence[int],
    n_contexts: int = 6,
    width: int = 32,
) -> tuple[FeatureHistory, ...]:
    """What `neuron_histories` finds of neurons, of some features; `load` gives the model with its dictionary at each step.

    A dictionary is made for one model, so that one step is the rule; the same one in the models of other steps shows when
    they began to use its directions. What is shown at the last step is kept of every token: two numbers for each feature.

    Raises AnalysisError for a feature that the dictionary does not have, no steps, an activation that is not finite, or a
    hook point that does not write into the residual stream.
    """
    if not steps or not features:
        raise AnalysisError(f"{len(steps)} steps and {len(features)} features; a history needs at least one of each")
    chosen = list(dict.fromkeys(features))
    points: list[str] = []

    def units(step: int) -> Units:
        spliced = load(step)
        points.append(spliced.splice.hook_point)
        return _features(spliced, windows, chosen)

    records = unit_records(units, steps, windows, (n_contexts, width))
    layer = int(points[0].split(".")[1]) if points[0].startswith("blocks.") else -1
    return tuple(FeatureHistory(layer, at, its, d, points[0]) for at, (its, d) in zip(chosen, records, strict=True))


def _features(spliced: SplicedGPT2, windows: Windows, features: list[int]) -> Units:
    d_sae, name = spliced.splice.d_sae, spliced.splice.hook_point
    if unknown := [feature for feature in features if not 0 <= feature < d_sae]:
        raise AnalysisError(f"there is no feature {unknown[0]} at {name}: the dictionary has {d_sae}, from 0")
    written = written_directions(spliced, features)
    found, at = torch.empty(len(features), windows.n_tokens), 0
    for _, activations in feature_batches(spliced, windows):
        found[:, at : at + len(activations)] = activations[:, features].float().T
        at += len(activations)
    return Units(found, torch.full(written.shape, torch.nan), written.cpu(), effects_of(spliced.model, written))


@torch.no_grad()
def feature_batches(spliced: SplicedGPT2, windows: Windows) -> Iterator[Batch]:
    """Tokens and all features of the dictionary at the real tokens, in order: what reads a layer of neurons reads these.

    About 4,096 tokens at a time, fewer of a large dictionary. Raises AnalysisError for dropout in training mode.
    """
    require_eval(spliced)
    name = spliced.splice.features
    n_tokens = min(_BATCH_TOKENS, _BATCH_NUMBERS // spliced.splice.d_sae)
    size = max(1, n_tokens // windows.tokens.shape[1])
    real = windows.real.split(size)
    for (_, cache), there, tokens in zip(
        spliced.run_batched(windows.tokens, size, [name]), real, windows.tokens.split(size), strict=True
    ):
        yield tokens[there], cache[name].cpu()[there]


def strongest_features(spliced: SplicedGPT2, windows: Windows, n: int) -> list[int]:
    """The `n` features that move the stream most, in the order of their numbers: standard deviation x what one adds."""
    spread = layer_activity(feature_batches(spliced, windows)).std
    norms = written_directions(spliced, range(spliced.splice.d_sae)).norm(dim=1).double().cpu()
    return sorted((spread * norms).sort(descending=True, stable=True).indices[:n].tolist())


@torch.no_grad()
def written_directions(spliced: SplicedGPT2, features: Sequence[int]) -> Float[Tensor, "feature d_model"]:
    """What a unit of each feature adds to the residual stream: what decoding gives with it, less what it gives without any.

    Of z and of mlp.post, by way of the output weights. A dictionary that scales what it is given scales this as it would for
    the first token. Raises AnalysisError for a hook point that the stream is not the sum of.
    """
    the_splice = spliced.splice
    value = _some_activation(spliced)  # (1, 1, d)
    directions = []
    for start in range(0, len(features), _AT_ONCE):
        part = features[start : start + _AT_ONCE]
        taken = value.expand(1, len(part) + 1, *value.shape[2:])
        active = torch.zeros_like(the_splice.sae.encode(as_taken(the_splice.sae, taken)))
        active[0, range(1, len(part) + 1), list(part)] = 1
        decoded = the_splice.sae.decode(active)[0].flatten(1)
        directions.append((decoded[1:] - decoded[0]).to(value))
    return _in_the_stream(spliced, torch.cat(directions))


def _some_activation(spliced: SplicedGPT2) -> Float[Tensor, "1 1 ..."]:
    """What the first token of the vocabulary has at the hook point: SAELens's keep the scale of what they encoded last."""
    name = spliced.splice.hook_point
    _, cache = spliced.model.run_with_cache(torch.zeros(1, 1, dtype=torch.int64, device=spliced.device), [name])
    return cache[name]


def _in_the_stream(spliced: SplicedGPT2, directions: Float[Tensor, "feature d"]) -> Float[Tensor, "feature d_model"]:
    model, name = spliced.model, spliced.splice.hook_point
    leaf = name.rpartition(".")[2]
    if leaf in STREAM:
        return directions
    layer = int(name.split(".")[1]) if name.startswith("blocks.") else -1
    if leaf == "z":
        return directions @ model.W_O[layer].flatten(0, 1)
    if name.endswith("mlp.post"):
        return directions @ model.blocks[layer].mlp.proj.weight.T
    raise AnalysisError(
        f"what a feature adds at {name!r} does not go straight into the residual stream, and so has no direct effect on logits; "
        "features of the stream, attn_out, mlp_out, z and mlp.post have one"
    )
