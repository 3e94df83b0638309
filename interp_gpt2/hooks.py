"""Hook points: their names, how patterns find them, and what happens at one during a pass.

A hook point is one line in model.py, `resid = hooks("resid_pre", resid)`. `hooks` is an argument of the forward pass
whose default, NO_HOOKS, does nothing; nothing is ever stored on the model, so nothing can leak into the next call or
into another thread. At a point the value is edited first and recorded afterwards: a cache holds what came downstream.

Names are TransformerLens's without its `hook_`: put `hook_` before the last component and you have TransformerLens's
spelling, which is understood everywhere too. `("pattern", 3)` is short for "blocks.3.attn.pattern".
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from functools import lru_cache
from numbers import Real

import torch
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import EditError, HookNameError, ShapeError

Names = str | tuple | list | Callable[[str], bool]
Edits = Mapping[str | tuple, Callable]  # hook points, named in any of these ways, to functions (value, site) -> Tensor

_ATTN = ("q", "k", "v", "attn_scores", "pattern", "z", "result")
_SPLIT_INPUTS = ("attn_in", "q_input", "k_input", "v_input")
_ON_REQUEST = {*_SPLIT_INPUTS, "mlp_in", "result"}  # recorded only when named: TransformerLens's default set lacks them
_ALIASES = {"attn": "pattern", "attn_logits": "attn_scores", "query": "q", "key": "k", "value": "v", "mlp_pre": "pre",
            "mlp_post": "post"}  # fmt: skip
_SCOPES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": "", None: ""}


@lru_cache(maxsize=64)
def hook_point_names(config: GPT2Config) -> tuple[str, ...]:
    """Every hook point of a model, in the order of the forward pass."""
    norm = ("scale", "normalized") if config.layer_norm else ()
    attn = ["resid_pre", *(f"ln1.{n}" for n in norm), *_SPLIT_INPUTS, *(f"attn.{n}" for n in _ATTN), "attn_out"]
    mlp = ["resid_mid", "mlp_in", *(f"ln2.{n}" for n in norm), "mlp.pre", "mlp.post", "mlp_out"]
    block = [*attn, *([] if config.attn_only else mlp), "resid_post"]
    blocks = [f"blocks.{layer}.{name}" for layer in range(config.n_layers) for name in block]
    names = ("embed", "pos_embed", *blocks, *(f"ln_final.{n}" for n in norm), "unembed.in", "unembed.out")
    inside = [name for name, _ in config.spliced]  # at a point comes before the point itself: it is what it is made of
    return tuple(each for name in names for each in (*(n for n in inside if n.rpartition(".")[0] == name), name))


@lru_cache(maxsize=64)
def default_hook_points(config: GPT2Config) -> frozenset[str]:
    """What `run_with_cache` records unless told otherwise: TransformerLens's default set."""
    return frozenset(n for n in hook_point_names(config) if n.rpartition(".")[2] not in _ON_REQUEST)


def canonical(name: str) -> str:
    """Our spelling of a hook point: "blocks.0.attn.hook_pattern" is "blocks.0.attn.pattern"."""
    return name.replace("hook_", "")


def tl_name(name: str) -> str:
    """TransformerLens's spelling of a hook point: "blocks.0.attn.pattern" is "blocks.0.attn.hook_pattern"."""
    scope, dot, leaf = name.rpartition(".")
    return f"{scope}{dot}hook_{leaf}"


def full_name(short: str, layer: int | None = None, scope: str | None = None, *, n_layers: int = 0) -> str:
    """The hook point meant by a short tuple: ("pattern", 3), ("resid_post", -1), ("scale", 4, "ln1"), ("scale",).

    A negative layer counts from the last one. Raises HookNameError for a layer the model does not have.
    """
    leaf = canonical(_ALIASES.get(short, short))
    scope = _SCOPES.get(scope, scope)
    if layer is None:
        return f"ln_final.{leaf}" if leaf in ("scale", "normalized") else leaf
    if not _is_whole(layer):
        raise HookNameError(f"{(short, layer)}: {layer!r} is no layer; layers are whole numbers")
    layer = int(layer)
    if not -n_layers <= layer < n_layers:
        raise HookNameError(f"{(short, layer)}: there is no layer {layer}; the model's layers are 0 to {n_layers - 1}")
    if not scope and leaf in _ATTN:
        scope = "attn"
    if not scope and leaf in ("pre", "post"):
        scope = "mlp"
    return ".".join(part for part in ("blocks", str(layer % n_layers), scope, leaf) if part)


# ---------------------------------------------------------------------------------------------------------------------
# From patterns to names. Done before the pass: a name that matches nothing is an error, and nothing has run.


def resolve(names: Names | None, config: GPT2Config) -> frozenset[str]:
    """The hook points that `names` stands for.

    `names` is a name in either spelling, a glob ("blocks.*.attn.pattern", "*resid_post"), a short tuple ("pattern", 3),
    a function from canonical name to bool, or a list or tuple of these; None is TransformerLens's default set.
    Raises HookNameError for anything that matches nothing, with the nearest names.
    """
    if names is None:
        return default_hook_points(config)
    if isinstance(names, (list, tuple)):
        names = tuple(tuple(part) if isinstance(part, list) else part for part in names)
    if isinstance(names, (str, tuple)):
        return _resolve(names, config)
    if callable(names):
        found = frozenset(name for name in hook_point_names(config) if names(name))
        if not found:
            raise HookNameError(f"the function {names!r} accepted none of the {len(hook_point_names(config))} hook points")
        return found
    if isinstance(names, Iterable):
        return resolve(tuple(names), config)
    raise HookNameError(f"hook points are named by str, tuple, list or function; got {names!r}")


@lru_cache(maxsize=1024)
def _resolve(names: str | tuple, config: GPT2Config) -> frozenset[str]:
    if isinstance(names, str):
        return _resolve_string(names, config)
    if _is_short(names):
        name = full_name(*names, n_layers=config.n_layers)
        if name not in hook_point_names(config):
            raise HookNameError(f"{names} stands for {name!r}, which is not a hook point. {_nearest(name, config)}")
        return frozenset((name,))
    if None in names:
        raise HookNameError(f"None names no hook point among {names}; only None alone means the default set")
    return frozenset().union(*(resolve(part, config) for part in names))


def _is_short(names: Sequence) -> bool:
    if len(names) not in (2, 3) or not all(isinstance(part, (str, type(None))) for part in (names[0], *names[2:])):
        return False
    return isinstance(names[0], str) and (names[1] is None or _is_whole(names[1]))


def _is_whole(number: object) -> bool:
    """1, and what equals it (NumPy's, 1.0), so that remembered answers do not depend on which of them came first."""
    return isinstance(number, Real) and float(number).is_integer()


def _resolve_string(name: str, config: GPT2Config) -> frozenset[str]:
    known = hook_point_names(config)
    wanted = canonical(name)
    if wanted in known:
        return frozenset((wanted,))
    if any(mark in wanted for mark in "*?["):
        found = frozenset(point for point in known if fnmatchcase(point, wanted))
        if found:
            return found
        raise HookNameError(f"no hook point matches {name!r}. {_nearest(wanted.replace('*', '0'), config)}")
    short = re.fullmatch(r"([a-z_]+?)(\d+)(ln[12]|attn|mlp|[amb])?", wanted)  # TransformerLens's "k6" and "scale4ln1"
    if short and int(short[2]) < config.n_layers:
        full = full_name(short[1], int(short[2]), short[3], n_layers=config.n_layers)
        if full in known:
            return frozenset((full,))
    raise HookNameError(f"no hook point is named {name!r}. {_nearest(wanted, config)}")


def _nearest(name: str, config: GPT2Config) -> str:
    known = hook_point_names(config)
    leaf = name.rpartition(".")[2]
    near = [point for point in known if point.rpartition(".")[2] == leaf] or known  # "resid_pre" means some layer's
    near = sorted(near, key=lambda point: -SequenceMatcher(None, point, name).ratio())[:3]
    return f"Nearest: {', '.join(map(repr, near))}. hook_points() lists all {len(known)}."


def resolve_edits(edits: Edits, config: GPT2Config) -> dict[str, tuple[Callable, ...]]:
    """Each edited hook point with its edits, in the order in which `edits` names them.

    Raises HookNameError as `resolve` does, and EditError for edits that contradict each other.
    """
    if not isinstance(edits, Mapping):
        raise EditError(f"edits are {type(edits).__name__}; pass a dict from hook points to functions (value, site) -> Tensor")
    found: dict[str, tuple[Callable, ...]] = {}
    for names, edit in edits.items():
        if not callable(edit):
            raise EditError(f"the edit for {names!r} is {edit!r}; an edit is a function (value, site) -> Tensor")
        for name in resolve((None,) if names is None else names, config):
            found[name] = (*found.get(name, ()), edit)
    return _without_contradictions(found)


def _without_contradictions(edits: dict[str, tuple[Callable, ...]]) -> dict[str, tuple[Callable, ...]]:
    """In the order in which they act: as given, but those marked `comes_last`, which read what the others made, behind."""
    for name, norm in contradictions(edits):
        raise EditError(
            f"{name!r} and {norm!r} are both edited: with its inputs split, attention does not read the shared ln1, "
            "so that edit would do nothing; edit one or the other"
        )
    return {name: tuple(sorted(found, key=lambda edit: getattr(edit, "comes_last", False))) for name, found in edits.items()}


def contradictions(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Split inputs of attention and the ln1 of the same block: only one of the two is what attention reads."""
    for name in names:
        block, _, leaf = name.rpartition(".")
        if leaf in _SPLIT_INPUTS:
            yield from ((name, norm) for norm in (f"{block}.ln1.scale", f"{block}.ln1.normalized") if norm in names)


def resolve_reached(names: Names | None, reached: Sequence[str], config: GPT2Config) -> frozenset[str]:
    """`resolve` for a pass over a part of the model, which reaches only these hook points, in this order.

    A pattern may match others too. Raises HookNameError for a name or pattern of which nothing is reached.
    """
    parts = [] if names is None else [names] if isinstance(names, str) or callable(names) else list(names)
    for part in [tuple(parts)] if _is_short(parts) else parts:
        if resolve(part, config).isdisjoint(reached):
            raise HookNameError(f"{part!r} is not reached by this pass, which runs from {reached[0]!r} to {reached[-1]!r}")
    return resolve(names, config) & frozenset(reached)


# ---------------------------------------------------------------------------------------------------------------------
# During the pass.


@lru_cache(maxsize=1024)
def _scopes_of(names: frozenset[str]) -> frozenset[str]:
    """Every prefix "blocks.3.", "blocks.3.attn." that leads to one of the names."""
    return frozenset(name[: i + 1] for name in names for i, char in enumerate(name) if char == ".")


@dataclass(frozen=True)
class Site:
    """Where an edit is called: the hook point, its layer (None at the ends) and the absolute positions of the tokens.

    `positions` is (pos,), or (batch, pos) in a padded batch; while decoding with a KV cache it starts where the new
    tokens do, so that an edit means the same as in one pass over the whole text.
    """

    name: str
    layer: int | None
    positions: Tensor


@dataclass(frozen=True)
class Part:
    """What is kept of each recorded activation: `run_with_cache(tokens, keep=Part(pos_slice=-1, dtype=torch.float16))`.

    `pos_slice` picks tokens along the axis where the hook point has them, which is the query's for scores and pattern: an
    int, a slice, or indices. An int keeps its axis, with length 1: axes keep their names. What is not kept is freed at
    once. Raises ShapeError for a position that the pass does not have.
    """

    pos_slice: int | slice | Sequence[int] | Tensor | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.pos_slice is None or isinstance(self.pos_slice, slice):
            return
        index = self.pos_slice.tolist() if isinstance(self.pos_slice, Tensor) else self.pos_slice
        index = (index,) if isinstance(index, int) else index
        if isinstance(index, str) or not isinstance(index, Sequence) or any(type(pos) is not int for pos in index):
            raise ShapeError(f"pos_slice={self.pos_slice!r} is neither an int, a slice nor a list of positions")
        object.__setattr__(self, "pos_slice", tuple(index))

    def of(self, name: str, value: Tensor) -> Tensor:
        """The part of the activation at hook point `name`."""
        if self.pos_slice is not None:
            axis = 2 if name.endswith(("attn_scores", "pattern")) else 1
            value = value[(slice(None),) * axis + (self._index(name, value.shape[axis]),)]
        return value.to(self.device, self.dtype)

    def _index(self, name: str, n_pos: int) -> slice | list[int]:
        if isinstance(self.pos_slice, slice):
            return self.pos_slice
        for pos in self.pos_slice:
            if not -n_pos <= pos < n_pos:
                raise ShapeError(f"pos_slice picks position {pos}, which {name!r} does not have; it has {n_pos}")
        return list(self.pos_slice)


Keep = Part | Callable[[Tensor], Tensor]


class Hooks:
    """What to do at the hook points of one pass: edit, then record. Made by `GPT2.run_with_cache`.

    `keep`, a Part or a function, is applied to each recorded value; what it drops is freed.
    """

    __slots__ = ("_scopes", "cache", "edits", "keep", "positions", "prefix", "record")

    def __init__(
        self,
        record: frozenset[str] = frozenset(),
        edits: Mapping[str, tuple[Callable, ...]] | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.record, self.edits, self.keep = record, edits or {}, keep
        self.cache: dict[str, Tensor] = {}
        self.positions: Tensor | None = None
        self.prefix = ""
        self._scopes = _scopes_of(record | frozenset(self.edits))

    def at(self, scope: str) -> "Hooks":
        """The hooks of a sub-module; NO_HOOKS where nobody is listening."""
        prefix = f"{self.prefix}{scope}."
        if prefix not in self._scopes:
            return NO_HOOKS
        return self._with(prefix, self.positions)

    def for_positions(self, positions: Tensor) -> "Hooks":
        """The same hooks, for a pass over tokens at these positions."""
        return self._with(self.prefix, positions)

    def after(self, edits: Mapping[str, tuple[Callable, ...]]) -> "Hooks":
        """The same hooks, behind other edits: these come first at each point. They record into the same cache.

        Raises EditError for edits that contradict each other.
        """
        merged = {name: (*edits.get(name, ()), *self.edits.get(name, ())) for name in {**edits, **self.edits}}
        other = self._with(self.prefix, self.positions)
        other.edits = _without_contradictions(merged)
        other._scopes = _scopes_of(self.record | frozenset(merged))
        return other

    def _with(self, prefix: str, positions: Tensor | None) -> "Hooks":
        other = object.__new__(type(self))
        other.record, other.edits, other.keep, other._scopes = self.record, self.edits, self.keep, self._scopes
        other.cache, other.prefix, other.positions = self.cache, prefix, positions
        return other

    def wants(self, *names: str) -> bool:
        """Is anyone editing or recording one of these? Decides between fused and explicit arithmetic."""
        return any(self.prefix + name in self.record or self.prefix + name in self.edits for name in names)

    def edits_any(self, *names: str) -> bool:
        """Is anyone editing one of these?"""
        return any(self.prefix + name in self.edits for name in names)

    def __call__(self, name: str, value: Tensor, then: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The value that goes on downstream. `then` restores or checks what an edit must not break."""
        name = self.prefix + name
        if name in self.edits:
            value = self._edited(name, value)
            value = value if then is None else then(value)
        if name in self.record:
            self.cache[name] = value if self.keep is None else _own(self._kept(name, value))
        return value

    def _kept(self, name: str, value: Tensor) -> Tensor:
        kept = self.keep.of(name, value) if isinstance(self.keep, Part) else self.keep(value)
        if not isinstance(kept, Tensor):
            raise EditError(f"keep returned {kept!r} for {name!r}; return the tensor to be kept")
        return kept

    def _edited(self, name: str, value: Tensor) -> Tensor:
        parts = name.split(".")
        site = Site(name, int(parts[1]) if parts[0] == "blocks" else None, self.positions)
        for edit in self.edits[name]:
            edited = edit(value.clone(), site)  # a copy: an edit in place must not reach weights or recorded tensors
            if not isinstance(edited, Tensor):
                raise EditError(f"the edit at {name!r} returned {edited!r}; return the tensor, also after editing it in place")
            for what in ("shape", "dtype", "device"):
                came, expected = getattr(edited, what), getattr(value, what)
                if came != expected:
                    raise EditError(f"the edit at {name!r} returned {what} {_plain(came)}; expected {_plain(expected)}")
            value = edited
        return value


class _NoHooks(Hooks):
    """Hooks that do nothing, at next to no cost."""

    __slots__ = ()

    def at(self, scope: str) -> "Hooks":
        return self

    def wants(self, *names: str) -> bool:
        return False

    edits_any = wants

    def after(self, edits: Mapping[str, tuple[Callable, ...]]) -> "Hooks":
        return Hooks(edits=edits)

    def for_positions(self, positions: Tensor) -> "Hooks":
        return self

    def __call__(self, name: str, value: Tensor, then: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return value


NO_HOOKS = _NoHooks()


def _own(kept: Tensor) -> Tensor:
    """`kept` without the storage of what it was sliced from."""
    if torch.compiler.is_compiling() or kept.untyped_storage().nbytes() <= kept.numel() * kept.element_size():
        return kept
    return kept.clone()


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, torch.Size) else value
