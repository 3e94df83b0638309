"""Documents of one window are kept apart: in what is predicted, in what is attended to, and in positions."""

import torch

from interp_gpt2.data.masks import attention_mask, document_positions, loss_mask

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])


def test_no_token_is_predicted_across_a_border():
    assert loss_mask(DOCUMENTS).tolist() == [[True, True, False, True, False], [False, True, True, True, True]]


def test_a_token_attends_to_itself_and_what_came_before_in_its_document():
    mask = attention_mask(DOCUMENTS)
    assert mask.shape == (2, 1, 6, 6)
    for row, documents in enumerate(DOCUMENTS.tolist()):
        for query in range(6):
            for key in range(6):
                assert mask[row, 0, query, key] == (key <= query and documents[key] == documents[query])


def test_positions_begin_again_with_every_document():
    assert document_positions(DOCUMENTS).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
