"""TransformerLens's helpers on text and tokens that belong to no model."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp_gpt2.errors import TokenizerError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def tokenize_and_concatenate(
    dataset: "Dataset | IterableDataset",
    tokenizer: Any,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int | None = 10,
    set_format: bool = True,
) -> "Dataset | IterableDataset":
    """A dataset of rows of `max_length` tokens, in the column "tokens": texts one after the other, an end of text between.

    Each row begins with a BOS, if that is asked for. A thousand texts at a time, and `num_proc` processes, are cut by
    themselves; what fills no row is left out, but for a single row, which is padded. The tokenizer stays as it is.
    Raises TokenizerError for one without an end of text.
    """
    if tokenizer.eos_token_id is None:
        raise TokenizerError("the tokenizer has no end-of-text token to put between texts")
    cut = partial(_rows, tokenizer=tokenizer, column=column_name, n_tokens=max_length, add_bos=add_bos_token)
    processes = {} if streaming else {"num_proc": num_proc}
    rows = keep_single_column(dataset, column_name).map(cut, batched=True, remove_columns=[column_name], **processes)
    if set_format:
        rows.set_format(type="torch", columns=["tokens"])
    return rows


def _rows(examples: dict[str, list[str]], tokenizer: Any, column: str, n_tokens: int, add_bos: bool) -> dict[str, list]:
    texts = examples[column]
    if not texts:
        return {"tokens": []}
    tokens: list[int] = []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        tokens += [*ids, tokenizer.eos_token_id]
    del tokens[-1]  # between texts, not behind the last
    length = n_tokens - add_bos
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    tokens += [pad] * (length - len(tokens))
    begin = [tokenizer.bos_token_id] * add_bos
    return {"tokens": [begin + tokens[at : at + length] for at in range(0, len(tokens) - length + 1, length)]}


def keep_single_column(dataset: "Dataset | IterableDataset", col_name: str) -> "Dataset | IterableDataset":
    """The dataset without its other columns."""
    return dataset.remove_columns([name for name in dataset.features if name != col_name])


def get_input_with_manually_prepended_bos(bos_token: str | None, input: str | list[str]) -> str | list[str]:
    """A BOS written in front of each text; of a tokenizer without one, the texts as they are."""
    if bos_token is None:
        return input
    return bos_token + input if isinstance(input, str) else [bos_token + text for text in input]


def get_tokens_with_bos_removed(
    tokenizer: Any, tokens: Int[Tensor, "batch pos"], padding_side: str | None = None
) -> Int[Tensor, "batch pos-1"]:
    """Tokens without the BOS of each row: the first, or in rows padded on the left the one behind the padding."""
    if tokenizer.bos_token_id is None:
        return tokens
    if (padding_side or tokenizer.padding_side) == "right":
        return tokens[..., 1:]
    if tokenizer.bos_token_id == tokenizer.pad_token_id:
        at = (tokens != tokenizer.pad_token_id).cumsum(-1).eq(0).sum(-1) - 1
    else:
        at = (tokens == tokenizer.bos_token_id).int().argmax(-1)
    kept = torch.ones_like(tokens, dtype=torch.bool).scatter(1, at[:, None], False)
    return tokens[kept].view(len(tokens), -1)
