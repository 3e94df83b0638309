"""The validation loss: deterministic, over the whole held-out split."""

import torch
import torch.nn.functional as F

from interp_gpt2.data.source import Source
from interp_gpt2.model import GPT2
from interp_gpt2.training.distributed import ALONE, Processes

TOKENS_AT_ONCE = 8192  # keeps activations in cache on a CPU; the loss does not depend on it beyond rounding


@torch.no_grad()
def validation_loss(model: GPT2, source: Source, processes: Processes = ALONE) -> float:
    """Mean loss in nats per token over the source's whole held-out split, always in float32.

    It averages the predictions made at `source.scored_positions`, the ones its references are of: every position of a
    text, the second half of a Markov chain. Windows of a text go on across documents, also where training keeps them apart
    (documents="masked"), so that losses of the two compare. A checkpoint's reader measures the same, whatever precision
    trained it, and however many `processes` take turns at the batches: losses are added up in float64.
    """
    n_ctx = model.config.n_ctx
    scored = source.scored_positions(n_ctx)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    n = torch.zeros_like(total)
    for number, tokens in enumerate(source.validation(n_ctx, max(1, TOKENS_AT_ONCE // n_ctx))):
        if number % processes.world != processes.rank:
            continue
        tokens = tokens.to(model.device)
        logits = model(tokens[:, :-1])[:, scored.start : scored.stop : scored.step]  # (batch, scored, d_vocab)
        targets = tokens[:, 1:][:, scored.start : scored.stop : scored.step]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        total += losses.sum(dtype=torch.float64)
        n += losses.numel()
    model.train(was_training)
    total, n = processes.mean(torch.stack((total, n))).tolist()
    return total / n


def bytes_per_token(source: Source, n_ctx: int) -> float | None:
    """UTF-8 bytes that a predicted token of the held-out split stands for, on average; None where there is no text.

    Counted over the very tokens that `validation_loss` is a mean over, so that loss / ln 2 / bytes per token is the loss in
    bits per byte, which models with different tokenizers share. The token that ends a text is a prediction and no bytes.
    """
    if not source.validation_documents():
        return None
    tokenizer, scored = source.tokenizer, source.scored_positions(n_ctx)
    lengths = torch.tensor([len(tokenizer.token_bytes(token)) for token in range(tokenizer.d_vocab)])
    if tokenizer.eos_token_id is not None:
        lengths[tokenizer.eos_token_id] = 0
    n_bytes = n = 0
    for tokens in source.validation(n_ctx, max(1, TOKENS_AT_ONCE // n_ctx)):
        targets = tokens[:, 1:][:, scored.start : scored.stop : scored.step]
        n_bytes += int(lengths[targets].sum())
        n += targets.numel()
    return n_bytes / n
