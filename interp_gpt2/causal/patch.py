"""A patch: which piece of which activation is replaced, and by what."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from interp_gpt2.cache import ActivationCache
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import AnalysisError, HookNameError, ShapeError
from interp_gpt2.hooks import Edits, Site, hook_point_names, resolve

Which = int | slice | Sequence[int] | None

HEAD_POINTS = ("attn_in", "q_input", "k_input", "v_input", "q", "k", "v", "z", "result")  # (batch, pos, head, ...)
END = 2**31  # the layer of what follows the last one
SQUARE_POINTS = ("attn_scores", "pattern")  # (batch, head, query, key)


@dataclass(frozen=True, eq=False)
class Patch:
    """A piece of the activation at one hook point, to be replaced.

        Patch("resid_pre", layer=5, positions=3)                 # the stream before layer 5 at position 3
        Patch("z", 9, heads=[6, 9])                              # two heads' outputs, at all positions
        Patch("pattern", 5, positions=7, heads=1, keys=3)        # how much L5H1 attends from position 7 to position 3
        Patch("z", 9, heads=6, value=mean)                       # mean ablation

    `positions` are the query's at scores and pattern; `neurons` choose along the last axis of the others. None is all.
    `value` None: the source run's activation at the same place. A tensor: itself, of any shape that broadcasts to the
    activation's (batch, pos, ...), of which the same piece is taken.
    """

    point: str
    layer: int | None = None
    positions: Which = None
    heads: Which = None
    keys: Which = None
    neurons: Which = None
    value: Tensor | None = None

    def name(self, config: GPT2Config) -> str:
        """The hook point. Raises HookNameError if there is none, or more than one, of this name."""
        return _name(self.point, self.layer, config)

    def placed(self, config: GPT2Config, n_pos: int) -> "PlacedPatch":
        """The patch in a model and a length. Raises AnalysisError for a piece that the activation does not have."""
        name = self.name(config)
        if self.value is not None and (not isinstance(self.value, Tensor) or self.value.is_complex()):
            kind = self.value.dtype if isinstance(self.value, Tensor) else type(self.value).__name__
            raise AnalysisError(f"the value to patch {name!r} with is {kind}; pass a tensor of numbers, torch.zeros(()) for 0")
        leaf = name.rpartition(".")[2]
        square, by_head = leaf in SQUARE_POINTS, leaf in HEAD_POINTS
        if self.heads is not None and not (square or by_head):
            raise AnalysisError(
                f"{name!r} has no heads to choose from; leave heads out, or patch 'z', 'q', 'k', 'v' or 'pattern'"
            )
        if self.keys is not None and not square:
            raise AnalysisError(f"{name!r} has no keys; only 'pattern' and 'attn_scores' have")
        if self.neurons is not None and square:
            raise AnalysisError(f"{name!r} has no neurons; choose keys along its last axis")
        heads = _chosen(self.heads, config.n_heads, "head", name) if square or by_head else None
        return PlacedPatch(
            name,
            _chosen(self.positions, n_pos, "position", name),
            heads,
            _chosen(self.keys, n_pos, "key", name) if square else None,
            _chosen(self.neurons, _width(name, config), "neuron", name) if self.neurons is not None else None,
            self.value,
        )


@dataclass(frozen=True, eq=False)
class PlacedPatch:
    """A patch whose indices are known to exist: tensors of positions, heads (None: the point has none), keys, neurons."""

    name: str
    positions: Tensor
    heads: Tensor | None
    keys: Tensor | None
    neurons: Tensor | None
    value: Tensor | None

    @cached_property
    def layer(self) -> int:
        """Of its block; -1 for the embeddings, END for what follows the blocks."""
        if self.name.startswith("blocks."):
            return int(self.name.split(".")[1])
        return -1 if self.name in ("embed", "pos_embed") else END

    @cached_property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def index(self) -> tuple:
        """Where it is in an activation without its batch axis."""
        positions = self.positions
        if self.keys is not None:
            return self.heads[:, None, None], positions[:, None], self.keys
        axes = [positions] + ([self.heads] if self.heads is not None else [])
        axes += [self.neurons] if self.neurons is not None else []
        if self.neurons is not None and self.heads is None:
            return positions[:, None], self.neurons
        return tuple(axis.reshape(-1, *[1] * (len(axes) - 1 - at)) for at, axis in enumerate(axes))

    def source(self, shape: Sequence[int], cache: Mapping[str, Tensor] | None) -> Tensor:
        """What is patched in, as large as the activation. Raises ShapeError for what does not fit.

        A value of its own may broadcast. Of a source run, one prompt may serve all; other lengths are other tokens.
        """
        found = self.value if self.value is not None else cache[self.name]
        if self.value is None and (found.shape[1:] != torch.Size(shape[1:]) or len(found) not in (1, shape[0])):
            raise ShapeError(
                f"the source run's {self.name!r} has shape {tuple(found.shape)}, this run's {tuple(shape)}; run the source over "
                "as many tokens, or pass a value"
            )
        try:
            return found.expand(*shape)
        except RuntimeError as error:
            raise ShapeError(
                f"the value to patch {self.name!r} with has shape {tuple(found.shape)}, the activation {tuple(shape)}"
            ) from error

    def applied(self, value: Tensor, source: Tensor) -> Tensor:
        """The patched activation (batch, pos, ...), of which `source` has the shape; `value` stays as it is."""
        value, at = value.clone(), (slice(None), *self.index)
        value[at] = source[at].to(value)
        return value


def patch_edits(
    patches: Iterable[Patch], source: ActivationCache | Mapping[str, Tensor] | None, config: GPT2Config, n_pos: int
) -> Edits:
    """The same patches as edits for `run_with_edits`: the naive way to apply them.

    Raises AnalysisError where one reads the source run and there is none, or it has not kept that activation.
    """
    edits: dict[str, list[PlacedPatch]] = {}
    for patch in patches:
        placed = patch.placed(config, n_pos)
        require_source(placed, source)
        edits.setdefault(placed.name, []).append(placed)
    return {name: _Applying(tuple(found), source) for name, found in edits.items()}


def require_source(patch: PlacedPatch, source: ActivationCache | Mapping[str, Tensor] | None) -> None:
    if patch.value is not None:
        return
    if source is None:
        raise AnalysisError(f"the patch of {patch.name!r} names no value, and there is no source run to take it from")
    if patch.name not in source:
        raise AnalysisError(f"the source run has not kept {patch.name!r}, which a patch copies; name it to run_with_cache")


@dataclass(frozen=True, eq=False)
class _Applying:
    patches: tuple[PlacedPatch, ...]
    source: Mapping[str, Tensor] | None

    def __call__(self, value: Tensor, site: Site) -> Tensor:
        for patch in self.patches:
            value = patch.applied(value, patch.source(value.shape, self.source))
        return value


@lru_cache(maxsize=4096)
def _name(point: str, layer: int | None, config: GPT2Config) -> str:
    if layer is None:
        found = resolve(point, config)
        if len(found) != 1:
            raise HookNameError(f"{point!r} matches {len(found)} hook points; a patch is of one: name its layer")
        return next(iter(found))
    name = next(iter(resolve((point, layer), config)))
    assert name in hook_point_names(config)
    return name


def _width(name: str, config: GPT2Config) -> int:
    leaf = name.rpartition(".")[2]
    if name in dict(config.spliced):
        return dict(config.spliced)[name]
    if leaf in ("pre", "post"):
        return config.d_mlp
    if leaf in ("q", "k", "v", "z"):
        return config.d_head
    return {"scale": 1, "out": config.d_vocab}.get(leaf, config.d_model)


def _chosen(which: Which, n: int, axis: str, name: str) -> Tensor:
    if which is None:
        return torch.arange(n)
    if isinstance(which, slice):
        which = range(n)[which]
    given = which.tolist() if hasattr(which, "tolist") else which  # of a tensor or a NumPy array
    given = list(given) if isinstance(given, Iterable) else [given]
    if any(not _is_index(at) for at in given):
        raise AnalysisError(
            f"{axis} {which!r} of {name!r} is no whole number, slice or list of them; of a mask, pass mask.nonzero()[:, 0]"
        )
    indices = [operator.index(at) for at in given]
    for at in indices:
        if not -n <= at < n:
            raise AnalysisError(f"{name!r} has no {axis} {at} to patch; they are 0 to {n - 1}")
    if not indices:
        raise AnalysisError(f"a patch of {name!r} chooses no {axis} at all")
    return torch.tensor(sorted({at % n for at in indices}))


def _is_index(at: object) -> bool:
    return not isinstance(at, bool) and hasattr(at, "__index__")  # a mask would be read as indices 0 and 1
