"""TransformerLens under the contract: HookedTransformer up to version 3.9, TransformerBridge from 4.0 on."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor

from interp_gpt2.contract.by_hand import SPLIT_INPUTS, Edit
from interp_gpt2.contract.instrument import Build
from interp_gpt2.convert.transformer_lens import hooked_state_dict, to_hooked_transformer, to_transformer_bridge
from interp_gpt2.errors import ConversionError
from interp_gpt2.hooks import hook_point_names, tl_name
from interp_gpt2.model import GPT2

_NATIVE_LACKS = ("result", *SPLIT_INPUTS)
_ON_REQUEST = ("result", "mlp_in", *SPLIT_INPUTS)


class Lens:
    """A HookedTransformer or TransformerBridge. Points that need a mode switch have it switched when they are named."""

    exempt: ClassVar[Mapping[str, str]] = {"refuses None": "TransformerLens documents None as: unchanged, or changed in place"}

    def __init__(self, model: Any, gpt2: GPT2, name: str, missing: Mapping[str, str]) -> None:
        self.model, self.name, self.missing = model, f"{name} {version('transformer-lens')}", missing
        self.points = [point for point in hook_point_names(gpt2.config) if point not in missing]
        self._modes = dict.fromkeys(("attn_in", "split_qkv_input", "attn_result", "hook_mlp_in"), False)

    def run(self, tokens: Tensor) -> Tensor:
        self._switch(())
        return self.model(tokens)

    def record(
        self, tokens: Tensor, names: Sequence[str] | None = None, edits: Mapping[str, Edit] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        edits = edits or {}
        wanted = self._beside(edits) if names is None else names
        self._switch((*wanted, *edits))
        with self._hooked(edits):
            logits, cache = self.model.run_with_cache(tokens, names_filter=[tl_name(point) for point in wanted])
        return logits, {point: cache[tl_name(point)] for point in wanted if tl_name(point) in cache}

    def edit(self, tokens: Tensor, edits: Mapping[str, Edit]) -> Tensor:
        self._switch(edits)
        with self._hooked(edits):
            return self.model(tokens)

    def gradient(self, tokens: Tensor, metric: Callable[[Tensor], Tensor], name: str) -> Tensor:
        found: list[Tensor] = []
        self._switch((name,))
        with self.model.hooks(bwd_hooks=[(tl_name(name), lambda gradient, hook: found.append(gradient.clone()))]):
            metric(self.model(tokens)).backward()
        self.model.zero_grad()
        if not found:
            raise RuntimeError("no derivative arrives at this hook point")
        return found[-1]  # as its cache does: a later call at the same point replaces an earlier one

    def weights(self) -> list[Tensor]:
        wrapped = getattr(self.model, "original_model", self.model)  # a bridge's parameters are those of what it wraps
        return list(wrapped.parameters())

    def n_hooks(self) -> int:
        points = {id(point): point for point in self.model.hook_dict.values()}
        return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in points.values())

    def compile(self, backend: Callable) -> None:
        self.model.compile(backend=backend, fullgraph=True)

    def _hooked(self, edits: Mapping[str, Edit]) -> Any:
        return self.model.hooks(
            fwd_hooks=[(tl_name(point), lambda value, hook, edit=edit: edit(value)) for point, edit in edits.items()]
        )

    def _beside(self, edits: Mapping[str, Edit]) -> list[str]:
        """What is recorded beside these edits: no mode is switched on that they do not need, and ln1 not in modes that
        give it a head axis."""
        needed = {leaf for point in edits if (leaf := point.rpartition(".")[2]) in _ON_REQUEST}
        left_out, split = {*_ON_REQUEST} - needed, needed & {*SPLIT_INPUTS}
        return [p for p in self.points if p.rpartition(".")[2] not in left_out and not (split and ".ln1." in p)]

    def _switch(self, names: Sequence[str] | Mapping[str, Edit]) -> None:
        leaves = {name.rpartition(".")[2] for name in names}
        modes = {
            "attn_in": "attn_in" in leaves,
            "split_qkv_input": bool(leaves & {"q_input", "k_input", "v_input"}),
            "attn_result": "result" in leaves,
            "hook_mlp_in": "mlp_in" in leaves,
        }
        for mode, on in sorted(modes.items(), key=lambda item: item[1]):  # off before on: two exclude each other
            if on != self._modes[mode]:
                getattr(self.model, f"set_use_{mode}")(on)
                self._modes[mode] = on


def builders() -> dict[str, Build]:
    """What the installed TransformerLens offers for a GPT-2, by name."""
    if int(version("transformer-lens").split(".")[0]) < 4:
        return {"HookedTransformer": hooked_transformer}
    return {
        "TransformerBridge around Hugging Face's GPT-2": huggingface_bridge,
        "the same in compatibility mode": compatible_bridge,
        "TransformerBridge's native model": native_bridge,
    }


def hooked_transformer(gpt2: GPT2) -> Lens:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the class itself, each time one is made
        return Lens(to_hooked_transformer(gpt2), gpt2, "HookedTransformer", {})


def huggingface_bridge(gpt2: GPT2) -> Lens:
    return Lens(to_transformer_bridge(gpt2), gpt2, "TransformerBridge (Hugging Face)", {})


def compatible_bridge(gpt2: GPT2) -> Lens:
    bridge = to_transformer_bridge(gpt2)
    bridge.enable_compatibility_mode(no_processing=True)
    return Lens(bridge, gpt2, "TransformerBridge (Hugging Face, compatibility mode)", {})


def native_bridge(gpt2: GPT2) -> Lens:
    """TransformerLens 4's replacement for a HookedTransformer of one's own. Raises ConversionError for other score scales."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    if gpt2.config.scale_attn_by_inverse_layer_idx:
        raise ConversionError("TransformerBridge.boot_native does not divide scores by layer + 1")
    same = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn", "eps", "attn_only")
    cfg = TransformerBridgeConfig(
        **{name: getattr(gpt2.config, name) for name in same},
        normalization_type="LN" if gpt2.config.layer_norm else None,
        architecture="TransformerLensNative",
        dtype=gpt2.W_E.dtype,
        device="cpu",
        init_weights=False,
    )
    with torch.random.fork_rng(devices=[]):
        bridge = TransformerBridge.boot_native(cfg)
    state = convert_tl_checkpoint(hooked_state_dict(gpt2), cfg)
    bridge.to(gpt2.W_E.dtype, print_details=False).load_state_dict(state, strict=True)
    lacks = [point for point in hook_point_names(gpt2.config) if point.rpartition(".")[2] in _NATIVE_LACKS]
    missing = dict.fromkeys(lacks, "the native model raises NotImplementedError for it")
    return Lens(bridge.eval(), gpt2, "TransformerBridge (native)", missing)
