"""The helpers of `transformer_lens.utils` that code on GPT-2 uses, under their names there."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp_gpt2.errors import HookNameError, InterpGPT2Error, ShapeError, TokenizerError
from interp_gpt2.hooks import full_name, tl_name
from interp_gpt2.model import ACTIVATIONS
from interp_gpt2.transformer_lens.refused import UTILS, refusal
from interp_gpt2.transformer_lens.slices import Slice as Slice
from interp_gpt2.transformer_lens.slices import SliceInput as SliceInput
from interp_gpt2.transformer_lens.tokenizing import get_input_with_manually_prepended_bos as get_input_with_manually_prepended_bos
from interp_gpt2.transformer_lens.tokenizing import get_tokens_with_bos_removed as get_tokens_with_bos_removed
from interp_gpt2.transformer_lens.tokenizing import keep_single_column as keep_single_column
from interp_gpt2.transformer_lens.tokenizing import tokenize_and_concatenate as tokenize_and_concatenate

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from interp_gpt2.transformer_lens.hooked_transformer import HookedTransformer

USE_DEFAULT_VALUE: None = None  # what prepend_bos and padding_side are when the model's own settings shall hold


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        refusal("interp_gpt2.transformer_lens.utils", name, UTILS)
        if name in UTILS
        else f"interp_gpt2.transformer_lens.utils has no {name!r}; it has {', '.join(sorted(_NAMES))}"
    )


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of a hook point: ("k", 6) and "k6" are "blocks.6.attn.hook_k", ("scale", 4, "ln1") is "scale4ln1".

    A full name stays what it is. Raises HookNameError for a negative layer.
    """
    if ("." in name or name.startswith("hook_")) and layer is None and layer_type is None:
        return name
    if match := re.match(r"([a-z_]+?)(\d+)([a-z]?.*)", name):
        name, layer, layer_type = match[1], match[2], match[3] or None
    if layer is None:
        return tl_name(full_name(name))
    if int(layer) < 0:
        raise HookNameError(f"{(name, layer)}: a name alone does not know how many layers there are; pass one from 0")
    return tl_name(full_name(name, int(layer), layer_type, n_layers=int(layer) + 1))


def lm_cross_entropy_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"] | None = None,
    per_token: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "batch pos-1"]:
    """-ln p(tokens[:, t + 1]) in nats, the mean or (`per_token`) each.

    With a mask, tokens that are padding or follow it do not count, and are 0 among those of `per_token`.
    """
    losses = -logits.log_softmax(-1)[..., :-1, :].gather(-1, tokens[..., 1:, None])[..., 0]
    if attention_mask is None:
        return losses if per_token else losses.mean()
    if attention_mask.shape != tokens.shape:
        raise ShapeError(f"attention_mask has shape {tuple(attention_mask.shape)}; the tokens have {tuple(tokens.shape)}")
    counts = attention_mask[:, :-1].bool() & attention_mask[:, 1:].bool()
    losses = losses.masked_fill(~counts, 0)
    return losses if per_token else losses.sum() / counts.sum()


def lm_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], per_token: bool = False
) -> Float[Tensor, ""] | Bool[Tensor, "batch pos-1"]:
    """Is the most probable token the one that comes next? The share of positions, or (`per_token`) at each."""
    correct = logits.argmax(-1)[:, :-1] == tokens[:, 1:]
    return correct if per_token else correct.float().mean()


def get_attention_mask(
    tokenizer: Any, tokens: Int[Tensor, "batch pos"], prepend_bos: bool, padding_side: str | None = None
) -> Int[Tensor, "batch pos"]:
    """1 for tokens, 0 for padding: the pad tokens at the padded end.

    Where BOS and padding are one token and `prepend_bos`, the last one of the padding on the left is the BOS.
    """
    if tokenizer is None or tokenizer.pad_token_id is None:
        return torch.ones_like(tokens)
    real = tokens != tokenizer.pad_token_id
    if (padding_side or tokenizer.padding_side) == "right":
        return (real.flip(-1).cumsum(-1).flip(-1) > 0).long()
    mask = (real.cumsum(-1) > 0).long()
    if prepend_bos and tokenizer.bos_token_id == tokenizer.pad_token_id:
        mask[torch.arange(len(mask)), (mask == 0).sum(-1) - 1] = 1
    return mask


def to_numpy(tensor: "Tensor | np.ndarray | list | tuple | float | int | bool") -> "np.ndarray":
    """As a NumPy array, off the graph and on the CPU; bfloat16, which NumPy lacks, as float32."""
    import numpy as np

    if not isinstance(tensor, Tensor):
        return np.array(tensor)
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def gelu_new(input: Float[Tensor, "batch pos d_mlp"]) -> Float[Tensor, "batch pos d_mlp"]:
    """GPT-2's activation: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    return ACTIVATIONS["gelu_new"](input)


gelu_fast = gelu_new  # TransformerLens writes sqrt(2 / pi) in fewer digits


def logits_to_df(logits: Float[Tensor, "d_vocab"], tokenizer: Any = None, top_k: int | None = None) -> "pd.DataFrame":
    """Tokens by falling probability: token_index, token_string (with a tokenizer), logit, log_prob, probability."""
    import pandas as pd

    log_probs = logits.detach().float().log_softmax(-1)
    order = log_probs.argsort(descending=True)[:top_k]
    columns: dict[str, list] = {"token_index": order.tolist()}
    if tokenizer is not None:
        columns["token_string"] = [tokenizer.decode([token]) for token in order.tolist()]
    columns |= {"logit": logits[order].tolist(), "log_prob": log_probs[order].tolist()}
    return pd.DataFrame(columns | {"probability": log_probs[order].exp().tolist()})


def get_corner(tensor: Tensor, n: int = 3) -> Tensor:
    """The first `n` entries along every axis."""
    return tensor[tuple(slice(n) for _ in range(tensor.ndim))]


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """Without its first axis, if that has length 1."""
    return tensor.squeeze(0)


def transpose(tensor: Tensor) -> Tensor:
    return tensor.transpose(-1, -2)


def is_square(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]


def is_lower_triangular(tensor: Tensor) -> bool:
    return is_square(tensor) and torch.equal(tensor, tensor.tril())


def get_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def print_answer_ranks(
    prompt: str,
    answer: str | list[str],
    model: "HookedTransformer",
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = USE_DEFAULT_VALUE,
    top_k: int = 10,
) -> None:
    """`test_prompt`: prints where the answer stands among the model's predictions after the prompt, token by token.

    Of several answers, first tokens only are compared.
    """
    answers = [answer] if isinstance(answer, str) else answer
    if prepend_space_to_answer:
        answers = [text if text.startswith(" ") else f" {text}" for text in answers]
    prompt_tokens = model.to_tokens(prompt, prepend_bos=prepend_bos)
    spelled = [model.to_tokens(text, prepend_bos=False)[0] for text in answers]
    n_answer = len(spelled[0]) if len(answers) == 1 else 1
    answer_tokens = torch.stack([tokens[:n_answer] for tokens in spelled])  # (answer, pos)
    tokens = torch.cat([prompt_tokens.expand(len(answers), -1), answer_tokens], dim=1)
    logits = model(tokens)[:, prompt_tokens.shape[1] - 1 : -1]  # (answer, pos, d_vocab), those that predict the answers
    ranks = []
    if print_details:
        print("Tokenized prompt:", model.to_str_tokens(prompt, prepend_bos=prepend_bos))
        labels = [model.to_str_tokens(text, prepend_bos=False) for text in answers]
        print(*(("Tokenized answer:", labels[0]) if len(answers) == 1 else ("Tokenized answers:", labels)))
    for pos in range(n_answer):
        ranked = logits[:, pos].argsort(-1, descending=True)
        rank = (ranked == answer_tokens[:, pos, None]).int().argmax(-1).tolist()
        texts = [model.to_string([token]) for token in answer_tokens[:, pos].tolist()]
        ranks.append(list(zip(texts, rank, strict=True)))
        if print_details:
            print(*_details(model, logits[:, pos], answer_tokens[:, pos], ranked[0, :top_k], rank), sep="\n")
    print("Ranks of the answer tokens:", [rank[0] for rank in ranks] if len(answers) == 1 else ranks)


def _details(model: "HookedTransformer", logits: Tensor, answers: Tensor, best: Tensor, rank: list[int]) -> list[str]:
    """What test_prompt prints of one position: the answers, and the most probable tokens after the first prompt."""
    probs = logits.softmax(-1)

    def line(head: str, row: int, token: Tensor) -> str:
        number = f"Logit: {logits[row, token].item():5.2f} Prob: {probs[row, token].item():6.2%}"
        return f"{head} {number} Token: |{model.to_string(token[None])}|"

    return [
        f"Performance on answer token{'s' if len(answers) > 1 else ''}:",
        *(line(f"Rank: {place: <8}", row, token) for row, (token, place) in enumerate(zip(answers, rank, strict=True))),
        *(line(f"Top {i}th token.", 0, token) for i, token in enumerate(best)),
    ]


test_prompt = print_answer_ranks  # TransformerLens's name, which looks like a test's


def require_tokenizer(tokenizer: Any, what: str) -> Any:
    """The tokenizer. Raises TokenizerError if there is none."""
    if tokenizer is None:
        raise TokenizerError(f"{what} needs a tokenizer and this model has none; pass tokens, or call set_tokenizer first")
    return tokenizer


def refuse(error: type[InterpGPT2Error], **given: tuple[object, object, str]) -> None:
    """Refuse, by name, arguments that are not at the one value that is supported: name=(given, supported, what to do)."""
    for name, (value, supported, hint) in given.items():
        if value is not supported and value != supported:
            raise error(f"{name}={value!r} is not supported here; leave it at {supported!r}{hint and f', {hint}'}")


_HELPERS: tuple[Callable | type, ...] = (
    get_act_name, lm_cross_entropy_loss, lm_accuracy, get_attention_mask, to_numpy, get_corner, remove_batch_dim, transpose,
    is_square, is_lower_triangular, get_device, Slice, gelu_new, logits_to_df, tokenize_and_concatenate, keep_single_column,
    get_input_with_manually_prepended_bos, get_tokens_with_bos_removed,
)  # fmt: skip
_NAMES = [*(helper.__name__ for helper in _HELPERS), "gelu_fast", "test_prompt"]
