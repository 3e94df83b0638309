"""A GPT-2 that can be watched: the paper's figure, with a hook point at every arrow.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Agrees with Hugging Face's GPT2LMHeadModel
and TransformerLens's HookedTransformer to 1e-5 on the same weights (tests/convert). Axes are batch, pos (query and key
inside attention), head, d_model, d_head, d_mlp, d_vocab.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp_gpt2.cache import ActivationCache
from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError, EditError
from interp_gpt2.hooks import NO_HOOKS, Edits, Hooks, Keep, Names, hook_point_names, resolve, resolve_edits
from interp_gpt2.initialisation import initialise
from interp_gpt2.inputs import check_mask, check_tokens, positions_and_visible
from interp_gpt2.kv_cache import KVCache
from interp_gpt2.linear import Linear, linear
from interp_gpt2.shortcuts import Shortcuts

ACTIVATIONS = {"gelu_new": nn.GELU("tanh"), "gelu": nn.GELU(), "relu": nn.ReLU()}


class LayerNorm(nn.Module):
    """(x - mean) / scale, then gain and bias; `normalized` is what stands before the gain."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.eps = config.eps
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.bias = nn.Parameter(torch.zeros(config.d_model)) if config.bias else None

    def forward(self, resid: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        if not hooks.wants("scale", "normalized"):
            return F.layer_norm(resid, self.weight.shape, self.weight, self.bias, self.eps)
        centred = resid - resid.mean(-1, keepdim=True)
        scale = hooks("scale", (centred.square().mean(-1, keepdim=True) + self.eps).sqrt())  # (batch, pos, 1)
        normalized = hooks("normalized", centred / scale)
        return normalized * self.weight if self.bias is None else torch.addcmul(self.bias, normalized, self.weight)


class NoNorm(nn.Module):
    """In place of layer norm in toy models; has no hook points."""

    def forward(self, resid: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        return resid


class Attention(nn.Module):
    """Causal self-attention. Fused kernels run unless somebody looks at the scores, the pattern or the heads' results."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.n_heads, self.d_head = config.n_heads, config.d_head
        self.scale = 1 / math.sqrt(config.d_head) / (layer + 1 if config.scale_attn_by_inverse_layer_idx else 1)
        width = config.n_heads * config.d_head
        self.qkv = Linear(config.d_model, 3 * width, bias=config.bias)
        self.proj = Linear(width, config.d_model, bias=config.bias)

    def forward(
        self, qkv: tuple[Tensor, Tensor, Tensor], hooks: Hooks, visible: Tensor | None, past: KVCache | None = None
    ) -> Tensor:
        q, k, v = (hooks(name, heads) for name, heads in zip("qkv", qkv, strict=True))  # (batch, pos, head, d_head)
        if past is not None:
            k, v = past.extend(self.layer, k, v)  # (batch, key, head, d_head)
        attend = self.attend_explicitly if hooks.wants("attn_scores", "pattern") else self.attend_fused
        z = hooks("z", attend(q, k, v, hooks, visible))  # (batch, pos, head, d_head)
        if not hooks.wants("result"):
            return self.proj(z.flatten(2))  # (batch, pos, d_model)
        W_O = self.proj.weight.unflatten(1, (self.n_heads, self.d_head))  # (d_model, head, d_head)
        result = hooks("result", torch.einsum("bphe,dhe->bphd", z, W_O))  # (batch, pos, head, d_model)
        attn_out = result.sum(2)
        return attn_out if self.proj.bias is None else attn_out + self.proj.bias

    def project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of every head from the normalised stream: three of (batch, pos, head, d_head)."""
        return self.qkv(normed).unflatten(-1, (3, self.n_heads, self.d_head)).unbind(2)

    def project_split(self, normed: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The same from one stream for each head and each of q, k, v: three of (batch, pos, head, d_model)."""
        weights = self.qkv.weight.unflatten(0, (3, self.n_heads, self.d_head))
        out = [torch.einsum("bphd,hed->bphe", stream, W) for stream, W in zip(normed, weights, strict=True)]
        if self.qkv.bias is not None:
            biases = self.qkv.bias.unflatten(0, (3, self.n_heads, self.d_head))
            out = [part + b for part, b in zip(out, biases, strict=True)]
        return tuple(out)

    def attend_fused(self, q: Tensor, k: Tensor, v: Tensor, hooks: Hooks, visible: Tensor | None) -> Tensor:
        causal = visible is None
        if q.shape[1] == 1:  # a single query sees every key; asked with `if`, since a compiled length is a symbol
            causal = False
        z = F.scaled_dot_product_attention(
            *(heads.transpose(1, 2) for heads in (q, k, v)),  # (batch, head, pos, d_head)
            attn_mask=visible,
            is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        return z.transpose(1, 2)

    def attend_explicitly(self, q: Tensor, k: Tensor, v: Tensor, hooks: Hooks, visible: Tensor | None) -> Tensor:
        padded = visible is not None
        if not padded:
            visible = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(k.shape[1] - q.shape[1])
        unseen, blind = ~visible, ~visible.any(-1, keepdim=True)
        shape = (q.shape[0], self.n_heads, q.shape[1], k.shape[1])
        mask = torch.zeros_like(unseen, dtype=q.dtype).masked_fill_(unseen, -math.inf).expand(shape)
        q, k = (heads.transpose(1, 2).flatten(0, 1) for heads in (q, k))  # (batch * head, pos, d_head)
        # Scaled and masked by the product itself: passing over the scores again costs a sixth of the whole attention.
        scores = torch.baddbmm(mask.flatten(0, 1), q, k.transpose(1, 2), alpha=self.scale).view(shape)
        scores = hooks("attn_scores", scores, then=lambda s: s.masked_fill(unseen, -math.inf))
        if padded:  # a padding query sees nothing: its softmax, and any derivative through it, would be 0/0
            scores = scores.masked_fill(blind, 0)
        pattern = scores.softmax(-1)
        if padded:
            pattern = pattern.masked_fill(blind, 0)
        pattern = F.dropout(pattern, self.dropout, self.training)
        pattern = hooks("pattern", pattern, then=lambda edited: refuse_unseen(edited, visible, blind))
        return (pattern @ v.transpose(1, 2)).transpose(1, 2)


def refuse_unseen(pattern: Tensor, visible: Tensor, blind: Tensor) -> Tensor:
    """An edited pattern, zero for padding queries. Raises EditError if it attends to the future or to padding."""
    seen = (pattern.masked_fill(visible | blind, 0) == 0).all()
    message = "the edited pattern attends to later positions or to padding, which its queries cannot see; apply the causal mask"
    if torch.compiler.is_compiling():
        torch._assert_async(seen, message)
    elif not seen:
        raise EditError(message)
    return pattern.masked_fill(blind, 0)


class MLP(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.fc = Linear(config.d_model, config.d_mlp, bias=config.bias)
        self.act = ACTIVATIONS[config.act_fn]
        self.proj = Linear(config.d_mlp, config.d_model, bias=config.bias)

    def forward(self, normed: Tensor, hooks: Hooks) -> Tensor:
        pre = hooks("pre", self.fc(normed))  # (batch, pos, d_mlp)
        return self.proj(hooks("post", self.act(pre)))  # (batch, pos, d_model)


class Block(nn.Module):
    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        norm = LayerNorm if config.layer_norm else lambda config: NoNorm()
        self.dropout = config.dropout
        self.ln1, self.attn = norm(config), Attention(config, layer)
        self.attn_only = config.attn_only
        if not config.attn_only:
            self.ln2, self.mlp = norm(config), MLP(config)

    def forward(self, resid: Tensor, hooks: Hooks, visible: Tensor | None, past: KVCache | None = None) -> Tensor:
        resid = hooks("resid_pre", resid)  # (batch, pos, d_model)
        attn_out = self.attn(self.qkv(resid, hooks), hooks.at("attn"), visible, past)
        resid = resid + hooks("attn_out", F.dropout(attn_out, self.dropout, self.training))
        if self.attn_only:
            return hooks("resid_post", resid)
        resid = hooks("resid_mid", resid)
        mlp_in = hooks("mlp_in", alias(resid)) if hooks.wants("mlp_in") else resid
        mlp_out = self.mlp(self.ln2(mlp_in, hooks.at("ln2")), hooks.at("mlp"))
        resid = resid + hooks("mlp_out", F.dropout(mlp_out, self.dropout, self.training))
        return hooks("resid_post", resid)

    def qkv(self, resid: Tensor, hooks: Hooks) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, read from the shared stream, or from one stream for each head if somebody needs those apart."""
        normed = self.ln1(resid, hooks.at("ln1"))
        inputs = ("q_input", "k_input", "v_input")
        if not hooks.wants("attn_in", *inputs):
            return self.attn.project(normed)
        attn_in = hooks("attn_in", resid.unsqueeze(2).expand(-1, -1, self.attn.n_heads, -1))  # (batch, pos, head, d_model)
        streams = [hooks(name, alias(attn_in)) for name in inputs]
        # Views of the shared stream suffice unless they can differ from it: through an edit or a derivative. An edited ln1
        # must reach attention whoever listens; the inputs then have no derivative, as they can have no edit beside it.
        derived = torch.is_grad_enabled() and resid.requires_grad and not hooks.edits_any("ln1.scale", "ln1.normalized")
        if hooks.edits_any("attn_in", *inputs) or derived:
            return self.attn.project_split(tuple(self.ln1(stream) for stream in streams))
        return self.attn.project(normed)


def alias(value: Tensor) -> Tensor:
    """The same values under another name in the graph, so that a derivative by one is not a derivative by the other."""
    return value.view_as(value)


class GPT2(Shortcuts, nn.Module):
    """GPT-2. `model(tokens)` is logits; every activation on the way can be read and edited.

        logits, cache = model.run_with_cache(tokens)
        logits = model.run_with_edits(tokens, {("z", 5): lambda z, site: z * keep_heads})

    Initialised as GPT-2 is, from `seed` alone: the same weights on every device. Nothing a call does stays on the model.
    """

    def __init__(self, config: GPT2Config, seed: int = 0, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):  # torch's own initialisation would be thrown away
            self.wte = nn.Embedding(config.d_vocab, config.d_model)
            self.wpe = nn.Embedding(config.n_ctx, config.d_model)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
            self.ln_final = LayerNorm(config) if config.layer_norm else NoNorm()
            if not config.tied:
                self.lm_head = Linear(config.d_model, config.d_vocab, bias=config.unembed_bias)
        if torch.device(device).type != "meta":
            self.to_empty(device="cpu")
            initialise(self, config, seed)
            self.to(device)

    # The pass, whole and in parts ------------------------------------------------------------------------------------

    def forward(
        self,
        tokens: Tensor,
        hooks: Hooks = NO_HOOKS,
        attention_mask: Tensor | None = None,
        past: KVCache | None = None,
    ) -> Tensor:
        """Logits (batch, pos, d_vocab) of tokens (batch, pos); `logits[:, t]` predicts token t + 1.

        `attention_mask` (batch, pos) is 1 for tokens and 0 for padding, on either side; what stands at padding means
        nothing. Documents packed into one row have numbers of their own, 1, 2, 3, ...: each is as if it were alone,
        with positions of its own. With `past`, tokens continue those it has seen (and the mask covers both). Raises TokenError or
        ContextLengthError before any compute, in eager calls.
        """
        n_past = 0 if past is None else past.n_pos
        if not torch.compiler.is_compiling():
            check_tokens(tokens, self.config, attention_mask, n_past, self.device)
        positions, visible = positions_and_visible(tokens.shape[1], attention_mask, n_past, tokens.device)
        if hooks.edits:
            hooks = hooks.for_positions(positions)
        resid = self._embed(tokens, positions, hooks, attention_mask)
        for layer, block in enumerate(self.blocks):
            resid = block(resid, hooks.at(f"blocks.{layer}"), visible, past)
        logits = self.unembed(resid, hooks)
        if past is not None:
            past.n_pos += tokens.shape[1]
        return logits

    def embed(self, tokens: Tensor, hooks: Hooks = NO_HOOKS, attention_mask: Tensor | None = None) -> Tensor:
        """Token plus position embedding: the residual stream before layer 0, (batch, pos, d_model)."""
        check_tokens(tokens, self.config, attention_mask, device=self.device)
        positions, _ = positions_and_visible(tokens.shape[1], attention_mask, 0, tokens.device)
        return self._embed(tokens, positions, hooks.for_positions(positions), attention_mask)

    def run_blocks(
        self,
        resid: Tensor,
        start: int = 0,
        stop: int | None = None,
        hooks: Hooks = NO_HOOKS,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The stream before layer `stop` (None: after the last) from that before layer `start`. No other layer runs."""
        stop = len(self.blocks) if stop is None else stop
        if not 0 <= start <= stop <= len(self.blocks):
            raise ConfigError(f"blocks {start} to {stop} do not exist; the model's layers are 0 to {len(self.blocks) - 1}")
        check_mask(attention_mask, tuple(resid.shape[:2]))
        positions, visible = positions_and_visible(resid.shape[1], attention_mask, 0, resid.device)
        hooks = hooks.for_positions(positions)
        for layer in range(start, stop):
            resid = self.blocks[layer](resid, hooks.at(f"blocks.{layer}"), visible)
        return resid

    def unembed(self, resid: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        """Final layer norm and unembedding: logits (..., d_vocab). On an earlier layer's stream this is the logit lens."""
        if hooks.edits and hooks.positions is None:
            hooks = hooks.for_positions(torch.arange(resid.shape[-2], device=resid.device))
        final = self.ln_final(resid, hooks.at("ln_final"))
        at = hooks.at("unembed")
        final = at("in", final)
        return at("out", linear(final, self.wte.weight) if self.config.tied else self.lm_head(final))

    def _embed(self, tokens: Tensor, positions: Tensor, hooks: Hooks, attention_mask: Tensor | None) -> Tensor:
        embed = hooks("embed", self.wte(tokens))  # (batch, pos, d_model)
        pos_embed = self.wpe(positions).expand_as(embed)
        if attention_mask is not None:
            pos_embed = pos_embed * attention_mask[:, -tokens.shape[1] :, None].bool()
        resid = embed + hooks("pos_embed", pos_embed)
        return F.dropout(resid, self.config.dropout, self.training)

    # Looking and editing ---------------------------------------------------------------------------------------------

    def run_with_cache(
        self,
        tokens: Tensor,
        names: Names | None = None,
        edits: Edits | None = None,
        keep: Keep | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ActivationCache]:
        """Logits, and the activations at `names`.

        `names`: None for TransformerLens's default set; else a name, glob, short tuple such as ("pattern", 3), function
        or list of these. `edits`: what `run_with_edits` takes; a value is edited first and recorded afterwards.
        `keep`: a Part, e.g. `Part(pos_slice=-1, dtype=torch.float16, device="cpu")`, or a function of the value.
        Raises HookNameError for names that match nothing, EditError for edits that break a shape.
        """
        hooks = Hooks(resolve(names, self.config), resolve_edits(edits or {}, self.config), keep)
        logits = self(tokens, hooks, attention_mask)
        return logits, ActivationCache(hooks.cache, self.config.n_layers)

    def run_with_edits(self, tokens: Tensor, edits: Edits, attention_mask: Tensor | None = None) -> Tensor:
        """Logits of an edited pass. Each edit is a function `(value, site) -> Tensor` of the same shape.

        The keys are as in `run_with_cache(names=)`. The value is a private copy, free to be changed in place and
        returned; `site` tells the hook point's name, its layer and the tokens' absolute positions.
        """
        return self.run_with_cache(tokens, (), edits, attention_mask=attention_mask)[0]

    def hook_points(self, batch: int = 1, pos: int | None = None) -> dict[str, tuple[int, ...]]:
        """Every hook point with its shape, in the order of the pass, from a pass on the meta device: it cannot go stale."""
        ghost = GPT2(self.config, device="meta")
        hooks = Hooks(frozenset(hook_point_names(self.config)))
        tokens = torch.zeros(batch, self.config.n_ctx if pos is None else pos, dtype=torch.long, device="meta")
        ghost(tokens, hooks)
        return {name: tuple(value.shape) for name, value in hooks.cache.items()}

    @property
    def device(self) -> torch.device:
        return self.wpe.weight.device
