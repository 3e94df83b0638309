"""What keeps the documents of one window apart, from which document each of its tokens is (`Source.batch_documents`)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def loss_mask(documents: Int[Tensor, "batch pos_plus_1"]) -> Bool[Tensor, "batch pos"]:
    """True at each position whose prediction is of the same document: the first token of a document is not predicted."""
    return documents[:, 1:] == documents[:, :-1]


def attention_mask(documents: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch 1 query key"]:
    """True where a query may attend: to keys at or before it, of its own document. The same for every head."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril()


def document_positions(documents: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """The position of each token counted from the first of its document in the window."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return index - torch.where(begins, index, 0).cummax(1).values
