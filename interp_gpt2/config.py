"""The shape of a GPT-2, and the four published sizes. Needs no torch, so that `--help` is quick."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, get_args

from interp_gpt2.errors import ConfigError

ActFn = Literal["gelu_new", "gelu", "relu"]
PosInit = Literal["normal", "sinusoidal"]


@dataclass(frozen=True)
class GPT2Config:
    """Sizes and options of a GPT-2, in TransformerLens's words. The defaults are the published small model.

    `d_head` defaults to d_model / n_heads and `d_mlp` to 4 d_model. Radford et al. 2019, "Language Models are
    Unsupervised Multitask Learners". Raises ConfigError for sizes that describe no model.
    """

    n_layers: int = 12
    n_heads: int = 12
    d_model: int = 768
    d_head: int | None = None
    d_mlp: int | None = None
    d_vocab: int = 50257
    n_ctx: int = 1024
    act_fn: ActFn = "gelu_new"  # GPT-2's GELU is the tanh approximation; nanoGPT's is the exact one
    eps: float = 1e-5
    attn_only: bool = False
    tied: bool = True  # the unembedding is the embedding
    unembed_bias: bool = False  # GPT-2 has none; folding its last layer norm makes one. Only untied: it is lm_head's
    bias: bool = True  # of layer norms, attention and MLPs
    dropout: float = 0.0
    layer_norm: bool = True  # False only for toy models worked out by hand
    pos_init: PosInit = "normal"  # learned either way; this is where learning starts
    embed_std: float = 0.02
    pos_std: float = 0.02  # standard deviation, or amplitude of the sinusoids
    scale_attn_by_inverse_layer_idx: bool = False  # the Stanford CRFM GPT-2s divide scores by layer + 1

    # Hook points that a model has besides GPT-2's, with their widths: see causal/splice.py.
    spliced: ClassVar[tuple[tuple[str, int], ...]] = ()

    def __post_init__(self) -> None:
        if self.d_head is None:
            if self.n_heads < 1 or self.d_model % self.n_heads:
                raise ConfigError(
                    f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; set d_head to choose the head size"
                )
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        if self.d_mlp is None:
            object.__setattr__(self, "d_mlp", 4 * self.d_model)
        self._check()

    def _check(self) -> None:
        if self.n_layers < 0:
            raise ConfigError(f"n_layers={self.n_layers} is negative; 0 (a bigram model) is the smallest")
        for name in ("n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.act_fn not in get_args(ActFn):
            raise ConfigError(f"act_fn={self.act_fn!r} is not one of {', '.join(get_args(ActFn))}")
        if self.pos_init not in get_args(PosInit):
            raise ConfigError(f"pos_init={self.pos_init!r} is not one of {', '.join(get_args(PosInit))}")
        if self.unembed_bias and self.tied:
            raise ConfigError("unembed_bias=True needs tied=False: the bias belongs to an unembedding of its own")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout={self.dropout} must be at least 0 and less than 1")

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GPT2Config":
        """The config with these fields. Raises ConfigError for an unknown field, naming the nearest known one."""
        refuse_unknown_fields(cls, values)
        return cls(**values)

    @property
    def n_params(self) -> int:
        """Parameters of the model, the tied unembedding counted once: 124,439,808 for the small GPT-2."""
        d, heads = self.d_model, self.n_heads * self.d_head
        norm = (d + d * self.bias) * self.layer_norm
        attn = 4 * d * heads + (3 * heads + d) * self.bias
        mlp = 0 if self.attn_only else 2 * d * self.d_mlp + (self.d_mlp + d) * self.bias + norm
        ends = (self.d_vocab * (1 if self.tied else 2) + self.n_ctx) * d + norm
        return self.n_layers * (norm + attn + mlp) + ends + self.d_vocab * self.unembed_bias


def refuse_unknown_fields(config: type, values: Mapping[str, Any]) -> None:
    """Raises ConfigError if `values` names a field that the dataclass `config` lacks, with the nearest one it has."""
    known = [field.name for field in fields(config)]
    for name in values:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; the fields are {', '.join(known)}"
            raise ConfigError(f"{config.__name__} has no field {name!r}{hint}")


SIZES: dict[str, GPT2Config] = {
    "gpt2": GPT2Config(n_layers=12, n_heads=12, d_model=768),
    "gpt2-medium": GPT2Config(n_layers=24, n_heads=16, d_model=1024),
    "gpt2-large": GPT2Config(n_layers=36, n_heads=20, d_model=1280),
    "gpt2-xl": GPT2Config(n_layers=48, n_heads=25, d_model=1600),
}
