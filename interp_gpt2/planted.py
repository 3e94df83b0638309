"""GPT-2s that hold a circuit set by hand: what an analysis should find in them is known.

    circuit = induction_pair(previous_token=(0, 1), induction=(1, 2))
    circuit.model(circuit.repeated_tokens(8, period=10))    # knows what comes next in the second half
    circuit.edges                                           # ("L0H1", "L1H2.k"), ...

The stream is split into orthogonal spaces, in directions drawn from the seed and without a mean, so that layer norms only
scale: a direction for each token, for each position, for each token as the previous one, and (untied) for each token as
output, which alone the unembedding reads. Attention is all but hard: it differs from what is said here by less than 0.001.

Token 0 is `bos`. Heads that find nothing rest there (without one they attend evenly) and write nothing from it. Begin
prompts with it and use it nowhere else. (At the first position a previous-token head can only see that position itself.)

    role              attends to                                    writes
    previous_token    the position before                           the token there, as "previous"
    induction         what followed earlier occurrences (K reads    the token there, as output: it is predicted again
                      "previous"); else bos
    duplicate_token   earlier occurrences of the token; else bos    the token itself, as output
    copying           everything, evenly                            what it sees, as output
    anti_copying      everything, evenly                            the same, with a minus

With tied embeddings the output directions are those of the tokens: the embedding speaks for the token itself (weakly), and
heads that write output are read by later heads; `edges` says so. Olsson et al. 2022, "In-context Learning and Induction
Heads"; Wang et al. 2022, "Interpretability in the Wild", for duplicate-token heads.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_gpt2.config import GPT2Config
from interp_gpt2.errors import ConfigError
from interp_gpt2.model import GPT2

Head = tuple[int, int]  # layer, head

BOS = 0
MATCH, REST, NOT_ITSELF = 40.0, 20.0, -80.0  # attention scores, at the usual length of the stream
POSITION_NORM = 8.0  # token embeddings have 1: tied, a stream that is mostly position says little about the next token
PREVIOUS_NORM, OUTPUT_NORM = 4.0, 16.0  # of what heads write

PLANTED_CONFIG = GPT2Config(n_layers=2, n_heads=4, d_model=256, d_mlp=256, d_vocab=20, n_ctx=40, tied=False)


@dataclass(frozen=True)
class _Role:
    """The spaces a head of this role reads and writes; "bos" is the part of "token" that no head ever writes."""

    q: tuple[str, ...]
    k: tuple[str, ...]
    v: tuple[str, ...]
    writes: str
    norm: float


_ROLES = {
    "previous_token": _Role(("position",), ("position",), ("token",), "previous", PREVIOUS_NORM),
    "induction": _Role(("token",), ("previous", "bos"), ("token",), "output", OUTPUT_NORM),
    "duplicate_token": _Role(("token", "position"), ("token", "position"), ("token",), "output", OUTPUT_NORM),
    "copying": _Role((), (), ("token",), "output", OUTPUT_NORM),
    "anti_copying": _Role((), (), ("token",), "output", -OUTPUT_NORM),
}
ROLES = tuple(_ROLES)


@dataclass(frozen=True, eq=False)
class PlantedCircuit:
    """A model and what is in it.

    `heads` are (layer, head) by role. `edges` are all the pairs (sender, receiver's input) through which something passes:
    senders "embed", "pos_embed", "L0H1"; inputs "L1H2.q", ".k", ".v" and "logits". Without `noise` nothing passes through
    any other, but for the scales of layer norms, to which everything in the stream contributes. `spaces` are the
    orthonormal directions, (n, d_model) each: "token", "position", "previous", "output".
    """

    model: GPT2
    heads: Mapping[str, Head]
    edges: tuple[tuple[str, str], ...]
    spaces: Mapping[str, Float[Tensor, "n d_model"]]
    bos: int = BOS

    def label(self, role: str) -> str:
        """The head of a role as "L0H1"."""
        return _label(self.heads[role])

    def repeated_tokens(self, n_sequences: int, period: int, seed: int = 0) -> Int[Tensor, "batch pos"]:
        """`bos`, then `period` distinct random tokens, then the same again: positions 1 to period, and from period + 1.

        At positions period + 1 to 2 period - 1 an induction head knows the next token. Raises ConfigError for a period
        that has too few tokens or positions.
        """
        config = self.model.config
        if not 1 <= period <= min(config.d_vocab - 1, (config.n_ctx - 1) // 2):
            raise ConfigError(
                f"period={period} must be 1 to {min(config.d_vocab - 1, (config.n_ctx - 1) // 2)}: the {config.d_vocab - 1} "
                f"tokens beside bos are used once each, and bos and two periods fit in n_ctx={config.n_ctx}"
            )
        draw = torch.Generator().manual_seed(seed)
        half = torch.stack([torch.randperm(config.d_vocab - 1, generator=draw)[:period] + 1 for _ in range(n_sequences)])
        bos = torch.full((n_sequences, 1), BOS)
        return torch.cat([bos, half, half], 1).to(self.model.device)


def plant(heads: Mapping[str, Head], config: GPT2Config = PLANTED_CONFIG, noise: float = 0.0, seed: int = 0) -> PlantedCircuit:
    """A GPT-2 with a head for each role of `heads`, {"previous_token": (0, 1), ...}, at that (layer, head).

    All other weights of blocks are N(0, noise); GPT-2's own initialisation has 0.02. Every kind of config will do that has
    room: d_head holds the tokens and one more (and for previous-token heads the positions, for duplicate-token heads both),
    d_model the spaces and one more. Raises ConfigError where it does not, for roles that do not exist, and for an
    induction head without a previous-token head in an earlier layer.
    """
    _check(heads, config)
    spaces = _spaces(config, seed)
    model = GPT2(config, seed).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.blocks.named_parameters():
            if ".ln" not in name:
                weight.copy_(noise * torch.randn(weight.shape, generator=draw) if name.endswith("weight") else weight)
        model.wte.weight.copy_(spaces["token"])
        model.wpe.weight.copy_(POSITION_NORM * spaces["position"])
        if not config.tied:
            model.lm_head.weight.copy_(spaces["output"])
        for role, head in heads.items():
            _set_head(model, spaces, role, head, heads)
    return PlantedCircuit(model, MappingProxyType(dict(heads)), _edges(heads, config), MappingProxyType(spaces))


def induction_pair(
    previous_token: Head = (0, 1),
    induction: Head = (1, 2),
    config: GPT2Config = PLANTED_CONFIG,
    noise: float = 0.0,
    seed: int = 0,
) -> PlantedCircuit:
    """A previous-token head and, composed with it through K, an induction head: repeated tokens are predicted."""
    return plant({"previous_token": previous_token, "induction": induction}, config, noise, seed)


def _check(heads: Mapping[str, Head], config: GPT2Config) -> None:
    for role, (layer, head) in heads.items():
        if role not in _ROLES:
            raise ConfigError(f"{role!r} is not a role that can be planted; the roles are {', '.join(ROLES)}")
        if not (0 <= layer < config.n_layers and 0 <= head < config.n_heads):
            raise ConfigError(f"{role}: there is no head {(layer, head)} in {config.n_layers} layers of {config.n_heads} heads")
    if len(set(heads.values())) < len(heads):
        raise ConfigError(f"each head has one role; two share one in {dict(heads)}")
    if "induction" in heads and not heads.get("previous_token", heads["induction"])[0] < heads["induction"][0]:
        raise ConfigError("an induction head reads what a previous-token head wrote in an earlier layer; plant one there")
    rows = {"previous_token": config.n_ctx, "duplicate_token": config.d_vocab + config.n_ctx + 1}
    needed = max([rows.get(role, config.d_vocab + 1) for role in heads] + [config.d_vocab])
    if heads and config.d_head < needed:
        raise ConfigError(f"d_head={config.d_head} is too small for {', '.join(heads)}; at least {needed} are needed")
    needed = config.d_vocab * (2 if config.tied else 3) + config.n_ctx + 1
    if config.d_model < needed:
        raise ConfigError(
            f"d_model={config.d_model} has no room for {config.d_vocab} tokens as input, as previous ones"
            f"{'' if config.tied else ' and as output'}, and {config.n_ctx} positions; at least {needed} are needed"
        )


def _spaces(config: GPT2Config, seed: int) -> dict[str, Float[Tensor, "n d_model"]]:
    sizes = {"token": config.d_vocab, "position": config.n_ctx, "previous": config.d_vocab, "output": config.d_vocab}
    if config.tied:
        sizes.pop("output")
    drawn = torch.randn(config.d_model, sum(sizes.values()) + 1, generator=torch.Generator().manual_seed(seed)).double()
    drawn[:, 0] = 1  # the others come out orthogonal to it: no mean for layer norms to take away
    rows = torch.linalg.qr(drawn).Q[:, 1:].T.float()
    spaces = dict(zip(sizes, rows.split(list(sizes.values())), strict=True))
    return spaces if not config.tied else spaces | {"output": spaces["token"]}


def _set_head(model: GPT2, spaces: Mapping[str, Tensor], role: str, at: Head, heads: Mapping[str, Head]) -> None:
    (layer, head), kind, attn = at, _ROLES[role], model.blocks[at[0]].attn
    amplitude = {"token": 1.0, "position": POSITION_NORM, "previous": PREVIOUS_NORM}
    if model.config.layer_norm:  # which scales a stream of this length, but for output, to length sqrt(d_model)
        with_previous = "previous_token" in heads and heads["previous_token"][0] < layer
        squares = [norm**2 for space, norm in amplitude.items() if space != "previous" or with_previous]
        amplitude = {space: norm * math.sqrt(model.config.d_model / sum(squares)) for space, norm in amplitude.items()}
    queries, keys = [spaces["token"][:0]], [spaces["token"][:0]]
    for (q_space, q_rows), (k_space, k_rows), score in _matches(role, spaces):
        size = math.sqrt(abs(score) / attn.scale)
        queries.append(q_rows * size / amplitude[q_space])
        keys.append(k_rows * math.copysign(size, score) / amplitude[k_space])
    first = 0 if role == "previous_token" else BOS + 1  # what is written from bos is nothing, but that it was the previous
    values = spaces["token"][first:] / amplitude["token"]
    results = kind.norm * spaces[kind.writes][first:]
    qkv = attn.qkv.weight.unflatten(0, (3, model.config.n_heads, model.config.d_head))[:, head]  # (3, d_head, d_model)
    W_O = attn.proj.weight.unflatten(1, (model.config.n_heads, model.config.d_head))[:, head].T  # (d_head, d_model)
    for weight, rows in [*zip(qkv, (torch.cat(queries), torch.cat(keys), values), strict=True), (W_O, results)]:
        weight.zero_()
        weight[: len(rows)] = rows


def _matches(role: str, spaces: Mapping[str, Tensor]) -> list[tuple[tuple[str, Tensor], tuple[str, Tensor], float]]:
    """What a query looks for: (space, directions) of it and of keys, row by row, and the score where both are present."""
    token, position = spaces["token"], spaces["position"]
    rest = (("token", token.sum(0, keepdim=True)), ("token", token[BOS : BOS + 1]), REST)  # every query has some token
    if role == "previous_token":
        return [(("position", position[1:]), ("position", position[:-1]), MATCH)]
    if role == "induction":
        return [(("token", token), ("previous", spaces["previous"]), MATCH), rest]
    if role == "duplicate_token":
        itself = (("position", position), ("position", position), NOT_ITSELF)
        return [(("token", token), ("token", token), MATCH), itself, rest]
    return []


def _edges(heads: Mapping[str, Head], config: GPT2Config) -> tuple[tuple[str, str], ...]:
    """Every sender into every later input that reads the space it writes."""
    output = "token" if config.tied else "output"
    senders = [("embed", -1, {"token", "bos"}), ("pos_embed", -1, {"position"})]
    for role, head in _in_order(heads):
        space = _ROLES[role].writes
        senders.append((_label(head), head[0], {output if space == "output" else space}))
    receivers = [
        (f"{_label(head)}.{name}", head[0], getattr(_ROLES[role], name)) for role, head in _in_order(heads) for name in "qkv"
    ] + [("logits", config.n_layers, (output,))]
    return tuple(
        (sender, receiver)
        for receiver, at, reads in receivers
        for sender, layer, writes in senders
        if layer < at and writes & set(reads)
    )


def _in_order(heads: Mapping[str, Head]) -> list[tuple[str, Head]]:
    return sorted(heads.items(), key=lambda item: item[1])


def _label(head: Head) -> str:
    return f"L{head[0]}H{head[1]}"
