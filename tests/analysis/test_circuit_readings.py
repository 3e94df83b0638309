"""Readings are rows of the full circuits, formed nowhere; they find planted heads, and in random models nothing."""

import pytest
import torch

from interp_gpt2.analysis.circuit_readings import effective_embedding, embedding_rows, ov_readings, qk_readings
from interp_gpt2.analysis.circuits import compositions, full_ov_copying_scores, ov_copying_scores
from interp_gpt2.config import GPT2Config
from interp_gpt2.convert.transformer_lens import to_hooked_transformer
from interp_gpt2.errors import AnalysisError, TokenError
from interp_gpt2.folding import fold_layer_norm
from interp_gpt2.model import GPT2
from interp_gpt2.planted import PLANTED_CONFIG, plant
from interp_gpt2.weights import full_OV, full_QK

PLANTED = {"previous_token": (0, 1), "duplicate_token": (0, 3), "induction": (1, 2), "copying": (1, 0), "anti_copying": (1, 1)}
NOISE = 0.02
TOKENS = list(range(1, 20))  # all but bos


@pytest.fixture(scope="module")
def planted():
    return plant(PLANTED, noise=NOISE)


@pytest.fixture(scope="module")
def random_models():
    """The same in all but the planted heads: 20 to learn from, and a fresh one."""
    return [plant({}, PLANTED_CONFIG, NOISE, seed).model for seed in range(100, 121)]


# Rows -----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("embedding", ["token", "effective"])
@pytest.mark.parametrize("tokens", [[3, 49, 0, 3], list(range(50))], ids=["fewer than d_head", "all"])
def test_readings_are_the_extremes_of_rows_of_the_full_circuits(model, embedding, tokens):
    tokens, k = torch.tensor(tokens), 7
    E = embedding_rows(model, embedding)
    W_U = model.W_U
    for layer, head in [(0, 1), (1, 3)]:
        QK = E @ model.W_Q[layer, head] @ model.W_K[layer, head].T @ E.T * 8**-0.5
        OV = E @ model.W_V[layer, head] @ model.W_O[layer, head] @ W_U
        if embedding == "token":
            torch.testing.assert_close(QK, full_QK(model, layer, head).AB * 8**-0.5)
            torch.testing.assert_close(OV, full_OV(model, layer, head).AB)
        for read, circuit in [(qk_readings, QK[tokens]), (ov_readings, OV[tokens])]:
            found = read(model, tokens, [(layer, head)], k, embedding)
            for ids, values, largest in [
                (found.top_tokens, found.top_values, True),
                (found.bottom_tokens, found.bottom_values, False),
            ]:
                torch.testing.assert_close(values[0], circuit.topk(k, largest=largest).values, atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(values[0], circuit.gather(1, ids[0]), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.mean[0], circuit.mean(1), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.std[0], circuit.std(1), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.own_values[0], circuit.gather(1, tokens[:, None])[:, 0], atol=1e-5, rtol=1e-4)
            z = (found.own_values[0] - circuit.mean(1)) / circuit.std(1)
            torch.testing.assert_close(found.own_z[0], z.mean(), atol=1e-4, rtol=1e-4)
            own = [sorted(row.tolist(), reverse=True).index(row[at]) for row, at in zip(circuit, tokens.tolist(), strict=True)]
            assert found.own_rank[0].tolist() == own


@torch.no_grad()
def test_a_head_of_zeros_copies_nothing():
    found = ov_readings(plant({}).model, TOKENS, k=1)
    assert not found.own_among(1).any()
    assert (found.own_rank == 19).all()


@torch.no_grad()
def test_all_heads_are_read_when_none_are_named(model):
    whole = ov_readings(model, [4, 5], k=3)
    assert whole.labels == tuple(f"L{layer}H{head}" for layer in range(2) for head in range(4))
    one = ov_readings(model, [4, 5], [(1, 2)], k=3)
    torch.testing.assert_close(whole.top_values[6], one.top_values[0])


@torch.no_grad()
def test_the_effective_embedding_is_the_stream_behind_the_first_mlp_when_attention_and_positions_are_silent(model, tokens):
    zero = {name: lambda value, site: 0 * value for name in ("blocks.0.attn_out", "pos_embed")}
    _, cache = model.run_with_cache(tokens, ("resid_post", 0), zero)
    torch.testing.assert_close(effective_embedding(model)[tokens], cache["resid_post", 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(effective_embedding(model, tokens[0]), effective_embedding(model)[tokens[0]])


@torch.no_grad()
def test_no_circuit_is_ever_formed(largest_made):
    model = GPT2(GPT2Config(n_layers=1, n_heads=2, d_model=16, d_vocab=6000, n_ctx=8))
    tokens = torch.arange(0, 6000, 2)
    with largest_made() as largest:
        for embedding in ("token", "effective"):
            ov_readings(model, tokens, k=2, embedding=embedding)
            qk_readings(model, tokens, k=2, embedding=embedding)
    assert largest.n_bytes <= 4 * 2**22 + 64
    assert 4 * 2**22 < 4 * 3000 * 6000 / 4


@torch.no_grad()
def test_the_table_names_heads_and_tokens(model):
    labels = [f"<{token}>" for token in range(50)]
    found = qk_readings(model, [3, 9], [(1, 3), (0, 2)], k=4)
    frame = found.to_frame(labels)
    assert len(frame) == 2 * 2 * 2 * 4
    row = frame[(frame["label"] == "L0H2") & (frame["token"] == 9) & (frame["end"] == "bottom") & (frame["rank"] == 1)].iloc[0]
    assert row["other"] == found.bottom_tokens[1, 1, 1]
    assert row["other_label"] == f"<{row['other']}>"
    assert row["value"] == found.bottom_values[1, 1, 1]
    assert row["token_label"] == "<9>"
    assert found.to_frame()["token_label"].tolist()[0] == "3"


@torch.no_grad()
def test_half_precision_is_read_in_full(model):
    half = ov_readings(GPT2(model.config).bfloat16(), [1, 2], k=3)
    assert half.top_values.dtype == torch.float32


@pytest.mark.hooked_transformer
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@torch.no_grad()
def test_rows_are_hooked_transformers(model):
    model = fold_layer_norm(model)
    hooked = to_hooked_transformer(model)
    tokens = torch.tensor([3, 8, 21])
    OV = (hooked.W_E @ hooked.OV[1, 2] @ hooked.W_U).AB[tokens]
    torch.testing.assert_close(ov_readings(model, tokens, [(1, 2)], 50).top_values[0], OV.sort(descending=True).values)
    E = hooked.W_E + hooked.blocks[0].mlp(hooked.blocks[0].ln2(hooked.W_E[None]))[0]
    QK = (E @ hooked.QK[1, 2] @ E.T).AB[tokens] / 8**0.5
    ours = qk_readings(model, tokens, [(1, 2)], 50, "effective").top_values[0]
    torch.testing.assert_close(ours, QK.sort(descending=True).values, atol=1e-5, rtol=1e-5)


# Planted --------------------------------------------------------------------------------------------------------------


def test_copying_heads_raise_what_they_read_and_no_others_do(planted, random_models, assert_finds):
    found = ov_readings(planted.model, TOKENS, k=1)
    shares = dict(zip(found.labels, found.own_among(1).tolist(), strict=True))
    copying = {planted.label(role) for role in ("copying", "induction", "duplicate_token")}
    assert {label for label, share in shares.items() if share == 1} == copying
    assert found.bottom_tokens[found.labels.index(planted.label("anti_copying")), :, 0].tolist() == TOKENS
    heads = [planted.heads[role] for role in ("copying", "induction", "duplicate_token", "anti_copying")]
    strength = ov_readings(planted.model, TOKENS, heads).own_z
    assert_finds(lambda model: ov_readings(model, TOKENS).own_z, strength, random_models)


def test_the_duplicate_token_head_looks_for_the_same_token_and_no_other_does(planted, random_models, assert_finds):
    found = qk_readings(planted.model, TOKENS, k=1)
    shares = dict(zip(found.labels, found.own_among(1).tolist(), strict=True))
    assert shares.pop(planted.label("duplicate_token")) == 1
    assert max(shares.values()) < 0.5
    strength = qk_readings(planted.model, TOKENS, [planted.heads["duplicate_token"]]).own_z
    assert_finds(lambda model: qk_readings(model, TOKENS).own_z, strength, random_models)


def test_the_copying_head_has_the_highest_copying_score_and_the_anti_copying_head_the_lowest(random_models, assert_finds):
    roles = {"copying": (1, 0), "anti_copying": (0, 3), "previous_token": (0, 1)}
    model = plant(roles, noise=NOISE).model
    scores = full_ov_copying_scores(model).values
    assert scores.argmax() == 4
    assert scores.argmin() == 3
    assert_finds(lambda other: full_ov_copying_scores(other).values, [scores[1, 0], scores[0, 3]], random_models)


def test_tied_the_stream_itself_shows_it():
    """Without the noise: the planted head's score is 1, exactly, in the stream and in the vocabulary."""
    config = GPT2Config(**(PLANTED_CONFIG.to_dict() | {"tied": True}))
    model = plant({"copying": (1, 3), "anti_copying": (0, 0)}, config).model
    for scores in (ov_copying_scores(model), full_ov_copying_scores(model)):
        assert scores.values[1, 3] == pytest.approx(1, abs=1e-5)
        assert scores.values[0, 0] == pytest.approx(-1, abs=1e-5)


def test_the_induction_pair_is_the_first_row_of_the_composition_table(planted, random_models, assert_finds):
    table = compositions(planted.model).to_frame()
    first, second = table.iloc[0], table.iloc[1]
    assert (first["sender"], first["receiver"]) == (planted.label("previous_token"), f"{planted.label('induction')}.k")
    assert (first["sender"], first["receiver"]) in planted.edges
    assert (first["score"], second["score"]) > (1.2 * second["score"], first["unrelated"])

    def every_score(model):
        found = compositions(model)
        return torch.stack([scores.values[0, :, 1] for scores in (found.q, found.k, found.v)])

    assert_finds(every_score, first["score"], random_models)


def test_the_composition_table_has_every_pair_once_and_the_heads_of_zeros_last():
    table = compositions(plant({"previous_token": (0, 1), "induction": (1, 2)}).model).to_frame()
    assert len(table) == len(set(zip(table["sender"], table["receiver"], strict=True))) == 3 * 4 * 4
    assert (table["sender_layer"] < table["receiver_layer"]).all()
    scored = table["score"].notna()
    assert scored.sum() == 3  # q, k and v of the only two heads there are
    assert scored[:3].all()
    assert (table["unrelated"] == 1 / 16).all()


# Held wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [ov_readings, qk_readings])
def test_what_is_not_there_is_refused(model, read):
    for wrong, said in [
        ([50], "token 50 is not in"),
        ([], "expected a list"),
        ([1.0], "expected a list"),
        ([[1]], "expected a list"),
        (" cat", "expected a list"),
    ]:
        with pytest.raises(TokenError, match=said):
            read(model, wrong)
    with pytest.raises(AnalysisError, match=r"\(2, 0\) is not among"):
        read(model, [1], [(2, 0)])
    with pytest.raises(AnalysisError, match="'L0H1' is not among the heads"):
        read(model, [1], ["L0H1"])
    with pytest.raises(AnalysisError, match="no heads are"):
        read(model, [1], [])
    with pytest.raises(AnalysisError, match="k=51 must be 1 to the 50"):
        read(model, [1], k=51)
    with pytest.raises(AnalysisError, match="'final' is not one of"):
        read(model, [1], embedding="final")
    attn_only = GPT2(GPT2Config(n_layers=1, n_heads=2, d_model=8, d_vocab=60, n_ctx=8, attn_only=True))
    with pytest.raises(AnalysisError, match="no first MLP"):
        read(attn_only, [1], embedding="effective")
