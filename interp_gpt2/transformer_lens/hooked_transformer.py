"""HookedTransformer, for code written for TransformerLens 2 and 3: a face of our model, with no arithmetic of its own."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from interp_gpt2.analysis.circuits import k_composition, q_composition, v_composition
from interp_gpt2.analysis.residual import accumulated_bias
from interp_gpt2.convert.transformer_lens import from_hooked_state_dict, hooked_state_dict
from interp_gpt2.errors import ConfigError, TokenError
from interp_gpt2.folding import fold_layer_norm
from interp_gpt2.hooks import NO_HOOKS, Hooks
from interp_gpt2.model import GPT2
from interp_gpt2.transformer_lens import loading, parts
from interp_gpt2.transformer_lens.activation_cache import ActivationCache
from interp_gpt2.transformer_lens.config import HookedTransformerConfig, gpt2_config, hooked_config
from interp_gpt2.transformer_lens.hook_points import edits_of
from interp_gpt2.transformer_lens.hooked_root import HookedRoot, NamesFilter
from interp_gpt2.transformer_lens.past_key_value_caching import HookedTransformerKeyValueCache
from interp_gpt2.transformer_lens.refused import METHODS, refusal
from interp_gpt2.transformer_lens.sampling import Sampling
from interp_gpt2.transformer_lens.slices import Slice, SliceInput
from interp_gpt2.transformer_lens.text import Side, Text
from interp_gpt2.transformer_lens.utils import (
    USE_DEFAULT_VALUE,
    get_attention_mask,
    get_device,
    lm_cross_entropy_loss,
    refuse,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FACTORED = ("QK", "OV")
WEIGHTS = ("W_E", "W_pos", "W_U", "b_U", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "b_in", "W_out", "b_out")


class Output(NamedTuple):
    """What `return_type="both"` returns."""

    logits: Tensor
    loss: Tensor


class HookedTransformer(Sampling, Text, HookedRoot):
    """A GPT-2 with TransformerLens's methods. `hooked.model` is our model, which never keeps a hook.

    What differs on purpose: a hook must return the shape it was given; a cached value is what came downstream; scores are
    masked again after a hook, and a pattern with mass on the future is refused; an unknown name is an error.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: Side | None = None,
    ) -> None:
        """A model with GPT-2's initialisation, drawn from `cfg.seed` (None: 0); not the numbers TransformerLens would draw."""
        cfg = HookedTransformerConfig.unwrap(cfg)
        model = GPT2(gpt2_config(cfg), seed=cfg.seed or 0).to(loading.dtype_named(cfg.dtype))
        if cfg.normalization_type == "LNPre":
            model = fold_layer_norm(model)
        if tokenizer is None and cfg.tokenizer_name is not None:
            tokenizer = loading.tokenizer_for(cfg.tokenizer_name)
        self._set_up(model, cfg, tokenizer, default_padding_side)
        if move_to_device:
            self.to(cfg.device or get_device())

    def _set_up(self, model: GPT2, cfg: HookedTransformerConfig, tokenizer: Any, padding_side: Side | None) -> None:
        nn.Module.__init__(self)
        self.model, self.cfg, self.tokenizer = model, cfg, None
        self.set_up_hooks()
        self.embed, self.pos_embed = parts.Embed(self, "embed"), parts.PosEmbed(self, "pos_embed")
        self.blocks, self.unembed = parts.Blocks(self), parts.Unembed(self, "unembed")
        self.hook_embed, self.hook_pos_embed = self.hook_dict["hook_embed"], self.hook_dict["hook_pos_embed"]
        # An attribute, not a registered module: protocols look for attributes.
        object.__setattr__(self, "ln_final", parts.Norm(self, "ln_final"))
        self.train(model.training)
        self._note_device()
        if tokenizer is not None:
            self.set_tokenizer(tokenizer, padding_side)

    @classmethod
    def from_gpt2(
        cls, model: GPT2, tokenizer: Any = None, default_prepend_bos: bool = True, folded: bool = False
    ) -> "HookedTransformer":
        """Around one of our models, whose weights it shares. `folded` says that its layer norms are."""
        hooked = cls.__new__(cls)
        cfg = hooked_config(model.config, folded, default_prepend_bos=default_prepend_bos)
        hooked._set_up(model, cfg, tokenizer, None)
        return hooked

    @classmethod
    def from_pretrained(
        cls,
        model_name: str | Path,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        checkpoint_label: int | None = None,
        hf_model: "PreTrainedModel | None" = None,
        device: str | torch.device | None = None,
        n_devices: int = 1,
        tokenizer: Any = None,
        move_to_device: bool = True,
        fold_value_biases: bool = True,
        default_prepend_bos: bool | None = None,
        default_padding_side: Side | None = None,
        dtype: str | torch.dtype = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
        revision: str | None = None,
    ) -> "HookedTransformer":
        """A model by its Hub name, from a directory, or from a run's directory at any of its steps, processed as there.

        `checkpoint_index` counts a run's checkpoints, `checkpoint_value` is a step. See loading.load for what is found.
        """
        refuse(ConfigError, n_devices=(n_devices, 1, ""), n_ctx=(n_ctx, None, ""), first_n_layers=(first_n_layers, None, ""))
        refuse(ConfigError, checkpoint_label=(checkpoint_label, None, "and pass checkpoint_value"))
        model, found, step = loading.load(model_name, hf_model, checkpoint_index, checkpoint_value, revision)
        processing = (fold_ln, center_writing_weights, center_unembed, fold_value_biases, refactor_factored_attn_matrices)
        model = loading.process(model, *processing)
        hooked = cls.from_gpt2(model.to(loading.dtype_named(dtype)), None, default_prepend_bos is not False, fold_ln)
        hooked.cfg.model_name, hooked.cfg.checkpoint_value = Path(model_name).name, step
        tokenizer = found if tokenizer is None else tokenizer
        if tokenizer is not None:
            hooked.set_tokenizer(tokenizer, default_padding_side)
            if default_prepend_bos:
                hooked._bos()  # asked for in so many words: refused where there is none
        return hooked.to(device or get_device()) if move_to_device else hooked

    @classmethod
    def from_pretrained_no_processing(cls, model_name: str | Path, **options: Any) -> "HookedTransformer":
        """`from_pretrained` with the weights as they are. Options are those of `from_pretrained`."""
        names = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
        return cls.from_pretrained(model_name, **(dict.fromkeys(names, False) | options))

    # Running ---------------------------------------------------------------------------------------------------------

    def forward(self, *model_args: Any, **model_kwargs: Any) -> Any:
        """See `run`, whose arguments these are."""
        edits = edits_of(self.hook_dict)
        return self.run(Hooks(edits=edits) if edits else NO_HOOKS, *model_args, **model_kwargs)

    def run(
        self,
        hooks: Hooks,
        input: str | list[str] | Tensor,
        return_type: Literal["logits", "loss", "both"] | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
    ) -> Tensor | Output | None:
        """Text, tokens (batch, pos), or with `start_at_layer` the stream before that layer, to what `return_type` says.

        The loss is in nats per token. With `stop_at_layer`, the stream before that layer, and nothing later is computed.
        With `past_kv_cache`, the tokens continue those it has seen; `attention_mask` and the loss are of these alone.
        """
        refuse(ConfigError, shortformer_pos_embed=(shortformer_pos_embed, None, ""))
        if return_type not in ("logits", "loss", "both", None):
            raise ConfigError(f"return_type={return_type!r} is not one of 'logits', 'loss', 'both', None")
        with self._padding_on(padding_side):
            if start_at_layer is None:
                tokens, attention_mask = self._read(input, prepend_bos, attention_mask, past_kv_cache)
        if past_kv_cache is not None:
            whole = {"start_at_layer": (start_at_layer, None, ""), "stop_at_layer": (stop_at_layer, None, "")}
            refuse(ConfigError, **{f"past_kv_cache with {name}": given for name, given in whole.items()})
            logits = past_kv_cache.logits(self.model, _given(tokens), hooks, attention_mask)
            return self._returned(logits, tokens, attention_mask, return_type, loss_per_token)
        resid = input if start_at_layer is not None else self.model.embed(tokens, hooks, attention_mask)
        start, stop, _ = slice(start_at_layer, stop_at_layer).indices(self.cfg.n_layers)
        resid = self.model.run_blocks(resid, start, max(start, stop), hooks, attention_mask)
        if stop_at_layer is not None:
            return resid
        return self._returned(self.model.unembed(resid, hooks), tokens, attention_mask, return_type, loss_per_token)

    def _returned(
        self, logits: Tensor, tokens: Tensor | None, mask: Tensor | None, return_type: str | None, per_token: bool
    ) -> Tensor | Output | None:
        if return_type in (None, "logits"):
            return None if return_type is None else logits
        loss = self.loss_fn(logits, _given(tokens), mask, per_token)
        return loss if return_type == "loss" else Output(logits, loss)

    def _read(
        self,
        input: str | list[str] | Tensor,
        prepend_bos: bool | None,
        attention_mask: Tensor | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (batch, pos), and a mask where one is given or padding stands on the left (of the first tokens alone)."""
        if not isinstance(past_kv_cache, HookedTransformerKeyValueCache | None):
            raise ConfigError(
                f"past_kv_cache is a {type(past_kv_cache).__name__}; pass interp_gpt2.transformer_lens."
                "HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, batch_size)"
            )
        tokens = self.to_tokens(input, prepend_bos) if isinstance(input, (str, list)) else input
        tokens = (tokens[None] if tokens.ndim == 1 else tokens).to(self.model.device)
        begins = past_kv_cache is None or not past_kv_cache.past.n_pos
        if attention_mask is None and begins and self.tokenizer is not None and self.tokenizer.padding_side == "left":
            attention_mask = get_attention_mask(self.tokenizer, tokens, self._prepends(prepend_bos))
            attention_mask = None if attention_mask.all() else attention_mask
        return tokens, None if attention_mask is None else attention_mask.to(self.model.device)

    def loss_fn(self, logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False) -> Tensor:
        """See utils.lm_cross_entropy_loss."""
        return lm_cross_entropy_loss(logits, tokens.to(logits.device), attention_mask, per_token)

    def run_with_cache(
        self,
        *model_args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
        **model_kwargs: Any,
    ) -> tuple[Any, ActivationCache | dict[str, Tensor]]:
        """What `model(...)` returns, and the activations on the way, detached.

        `incl_bwd` calls `backward()` on what it returns, a loss, and adds the gradients under name + "_grad".
        """
        refuse(ConfigError, reset_hooks_end=(reset_hooks_end, True, "and keep caching hooks with get_caching_hooks"))
        if incl_bwd:
            cache, fwd, bwd = self.get_caching_hooks(names_filter, True, device, pos_slice=pos_slice)
            with self.hooks(fwd, bwd, clear_contexts=clear_contexts):
                output = self.forward(*model_args, **model_kwargs)
                output.backward()
        else:
            output, cache = self.cache_of_run(model_args, model_kwargs, names_filter, device, Slice.unwrap(pos_slice))
            if clear_contexts:
                self.clear_contexts()
        found = ActivationCache(cache, self)
        found = found.remove_batch_dim() if remove_batch_dim else found
        return output, found if return_cache_object else found.cache_dict

    # Weights ---------------------------------------------------------------------------------------------------------

    @property
    def W_E_pos(self) -> Tensor:
        """W_E and below it W_pos, (d_vocab + n_ctx, d_model): everything the stream can begin with."""
        return torch.cat([self.model.W_E, self.model.W_pos])

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Tensor:
        """The columns of W_U of tokens, (..., d_model); of one token, (d_model,)."""
        if isinstance(tokens, Tensor) and tokens.numel() > 1:
            return self.model.W_U.T[tokens.to(self.model.device)]
        return self.model.W_U[:, self.to_single_token(tokens) if isinstance(tokens, str) else int(tokens)]

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """The sum of the b_O, and of the b_out, before a layer; `mlp_input` adds the layer's own b_O."""
        if layer + mlp_input > self.cfg.n_layers:
            raise ConfigError(f"layer={layer} with mlp_input={mlp_input} is beyond the last of {self.cfg.n_layers} layers")
        mlps = layer if include_mlp_biases and not self.cfg.attn_only else 0
        return accumulated_bias(self.model, layer + mlp_input, mlps)

    def all_composition_scores(self, mode: Literal["Q", "K", "V"]) -> Tensor:
        """See analysis.circuits: (layer, head, layer, head), 0 unless the second head is in a later layer."""
        scores = {"Q": q_composition, "K": k_composition, "V": v_composition}
        if mode not in scores:
            raise ConfigError(f"mode={mode!r} is not one of 'Q', 'K', 'V'")
        return scores[mode](self.model).values

    def all_head_labels(self) -> list[str]:
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The weights by TransformerLens's names, a copy; without layer norms where they are folded."""
        refuse(ConfigError, args=(args, (), ""), kwargs=(kwargs, {}, ""))
        state = hooked_state_dict(self.model)
        if self.cfg.normalization_type != "LNPre":
            return state
        return {name: weight for name, weight in state.items() if not name.endswith((".w", ".b"))}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> None:
        """Weights by TransformerLens's names into this model. Raises CheckpointError naming a tensor that does not fit."""
        refuse(ConfigError, strict=(strict, True, ""), assign=(assign, False, ""))
        state = dict(state_dict)
        if self.cfg.normalization_type == "LNPre":
            norms = {name: weight for name, weight in hooked_state_dict(self.model).items() if name.endswith((".w", ".b"))}
            state = norms | state
        loaded = from_hooked_state_dict(state, self.model.config)
        self.model.load_state_dict(loaded.state_dict())

    def load_and_process_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """`load_state_dict`, then the processing of `from_pretrained`."""
        self.load_state_dict(state_dict)
        self.process_weights_(fold_ln, center_writing_weights, center_unembed, refactor_factored_attn_matrices, fold_value_biases)

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = True,
    ) -> None:
        """The processing of `from_pretrained`, of the weights as they are: `hooked.model` is another model afterwards."""
        processing = (fold_ln, center_writing_weights, center_unembed, fold_value_biases, refactor_factored_attn_matrices)
        self.model = loading.process(self.model, *processing)
        if fold_ln and self.model.config.layer_norm:
            self.cfg.normalization_type = "LNPre"

    # Device and mode -------------------------------------------------------------------------------------------------

    def to(self, device_or_dtype: torch.device | str | torch.dtype, print_details: bool = False) -> "HookedTransformer":
        """To a device or a dtype; says nothing, whatever `print_details`."""
        return super().to(device_or_dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "HookedTransformer":
        super()._apply(fn, recurse)
        self._note_device()
        return self

    def _note_device(self) -> None:
        self.cfg.device, self.cfg.dtype = str(self.model.device), self.model.W_E.dtype

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        self.cfg.use_attn_in = use_attn_in

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            raise AttributeError(refusal("the drop-in's HookedTransformer", name, METHODS))
        return super().__getattr__(name)

    def __repr__(self) -> str:
        return f"HookedTransformer({asdict(self.cfg)})"


def _given(tokens: Tensor | None) -> Tensor:
    if tokens is None:
        raise TokenError("a loss needs tokens=: with start_at_layer the input does not say which they are")
    return tokens


def _of_our_model(name: str) -> property:
    return property(lambda hooked: getattr(hooked.model, name), doc=f"See weights.{name}.")


for _name in (*WEIGHTS, *FACTORED):
    setattr(HookedTransformer, _name, _of_our_model(_name))
