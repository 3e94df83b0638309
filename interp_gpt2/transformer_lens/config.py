"""HookedTransformerConfig: TransformerLens's words for a GPT-2, and which of the hook points that cost extra are on."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError

_SHARED = ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_mlp", "d_vocab", "act_fn", "eps", "attn_only",
           "scale_attn_by_inverse_layer_idx")  # fmt: skip
_ACT_FNS = {"gelu_new": "gelu_new", "gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
_ONLY = {  # fields with one value that a GPT-2 can have
    "positional_embedding_type": "standard",
    "attention_dir": "causal",
    "use_attn_scale": True,
    "use_local_attn": False,
    "parallel_attn_mlp": False,
    "gated_mlp": False,
    "final_rms": False,
    "init_mode": "gpt2",
    "n_devices": 1,
    "use_hook_tokens": False,
}


@dataclass
class HookedTransformerConfig:
    """TransformerLens's fields, as far as a GPT-2 has them; as there, they may be changed later.

    `use_attn_result`, `use_split_qkv_input`, `use_attn_in` and `use_hook_mlp_in` decide what a cache without a names_filter
    holds, and what a filter that is a function is asked about; a hook point called by its name works without them.
    Raises ConfigError, naming the field, for what is not a GPT-2, and TypeError for a field that does not exist here.
    """

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    model_name: str = "custom"
    n_heads: int = -1
    d_mlp: int | None = None
    act_fn: str | None = None
    d_vocab: int = -1
    eps: float = 1e-5
    use_attn_result: bool = False
    use_attn_scale: bool = True
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False
    use_hook_tokens: bool = False
    use_local_attn: bool = False
    tokenizer_name: str | None = None
    init_mode: str = "gpt2"
    normalization_type: str | None = "LNPre"
    device: str | torch.device | None = None
    n_devices: int = 1
    attention_dir: str = "causal"
    attn_only: bool = False
    seed: int | None = None
    init_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    positional_embedding_type: str = "standard"
    final_rms: bool = False
    d_vocab_out: int = -1
    parallel_attn_mlp: bool = False
    gated_mlp: bool = False
    default_prepend_bos: bool = True
    tokenizer_prepends_bos: bool | None = None
    dtype: torch.dtype = torch.float32
    n_params: int | None = None
    n_key_value_heads: int | None = None
    original_architecture: str | None = None
    checkpoint_index: int | None = None
    checkpoint_value: int | None = None

    def __post_init__(self) -> None:
        for name, value in _ONLY.items():
            if getattr(self, name) != value:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not a GPT-2's; only {value!r} is")
        if self.normalization_type not in ("LN", "LNPre", None):
            raise ConfigError(f"normalization_type={self.normalization_type!r} is not a GPT-2's; 'LN', 'LNPre' or None is")
        if self.n_heads == -1:
            self.n_heads = self.d_model // self.d_head
        if self.n_key_value_heads not in (None, self.n_heads):
            raise ConfigError(f"n_key_value_heads={self.n_key_value_heads!r} is not a GPT-2's; its heads share no keys")
        if self.d_vocab == -1:
            raise ConfigError("d_vocab is missing; pass the tokenizer's number of tokens")
        if self.d_vocab_out not in (-1, self.d_vocab):
            raise ConfigError(f"d_vocab_out={self.d_vocab_out} is not d_vocab={self.d_vocab}, as in a GPT-2")
        if not self.attn_only and self.act_fn not in _ACT_FNS:
            raise ConfigError(f"act_fn={self.act_fn!r} is not one of {', '.join(_ACT_FNS)}")
        self.d_vocab_out = self.d_vocab
        self.d_mlp = 4 * self.d_model if self.d_mlp is None and not self.attn_only else self.d_mlp

    @property
    def attn_scale(self) -> float:
        """What scores are divided by."""
        return self.d_head**0.5

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> "HookedTransformerConfig":
        return cls(**config_dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def unwrap(cls, config: "dict[str, Any] | HookedTransformerConfig") -> "HookedTransformerConfig":
        return cls(**config) if isinstance(config, dict) else config


def gpt2_config(cfg: HookedTransformerConfig) -> GPT2Config:
    """Our config of the same model; untied and with an unembedding bias, as every HookedTransformer is."""
    shared = {name: getattr(cfg, name) for name in _SHARED}
    shared["act_fn"] = _ACT_FNS.get(cfg.act_fn, "gelu_new")
    return GPT2Config(**shared, layer_norm=cfg.normalization_type is not None, tied=False, unembed_bias=True)


def hooked_config(config: GPT2Config, folded: bool = False, **known: Any) -> HookedTransformerConfig:
    """TransformerLens's config of one of our models. `known` are fields that are no part of the architecture."""
    assert known.keys() <= {field.name for field in fields(HookedTransformerConfig)}
    norm = None if not config.layer_norm else "LNPre" if folded else "LN"
    return HookedTransformerConfig(**{name: getattr(config, name) for name in _SHARED}, normalization_type=norm, **known)
