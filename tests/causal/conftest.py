"""Pairs of random prompts that differ in one token, for every test of interventions."""

from collections.abc import Callable

import pytest
import torch

from interp_gpt2.prompts.pairs import PromptPairs


@pytest.fixture
def make_pairs() -> Callable[..., PromptPairs]:
    def make(
        n_pairs: int = 2, n_pos: int = 9, differ_at: int = 3, d_vocab: int = 50, lengths: list[int] | None = None
    ) -> PromptPairs:
        draw = torch.Generator().manual_seed(5)
        clean = torch.randint(0, d_vocab, (n_pairs, n_pos), generator=draw)
        corrupted = clean.clone()
        corrupted[:, differ_at] = (corrupted[:, differ_at] + 1) % d_vocab
        mask = None
        if lengths is not None:
            mask = (torch.arange(n_pos) < torch.tensor(lengths)[:, None]).long()
        answers = torch.randint(0, d_vocab // 2, (n_pairs, 1), generator=draw)
        return PromptPairs(clean, corrupted, answers, answers + d_vocab // 2, mask)

    return make
