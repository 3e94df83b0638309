"""The faster product is torch's own in value and in every derivative, in every way of calling it."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from interp_gpt2 import linear as module
from interp_gpt2.linear import Linear, linear
from interp_gpt2.model import GPT2

SHAPES = [((5, 8), (3, 8)), ((2, 5, 8), (3, 8)), ((1, 8), (3, 8)), ((2, 3, 4, 8), (8, 8)), ((6, 1), (1, 1))]


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN for every product, small ones too, on whatever processor."""
    if not module._has_onednn():
        pytest.skip("this torch is built without oneDNN")
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(module, "_WORTHWHILE", 0)


@pytest.fixture
def calls(monkeypatch) -> list:
    """What went through oneDNN."""
    seen = []
    forward = module._OneDNN.forward
    monkeypatch.setattr(module._OneDNN, "forward", staticmethod(lambda *args: seen.append(args) or forward(*args)))
    return seen


def operands(x_shape, weight_shape, bias=True):
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(x_shape, generator=draw), torch.randn(weight_shape, generator=draw)
    return [x, weight, torch.randn(weight_shape[0], generator=draw)] if bias else [x, weight]


def close(ours, theirs):
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # sums of a few float32 products in another order


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("x_shape", "weight_shape"), SHAPES)
def test_values_and_gradients_are_torchs(onednn, calls, x_shape, weight_shape, bias):
    found = []
    for product in (linear, F.linear):
        leaves = [leaf.requires_grad_() for leaf in operands(x_shape, weight_shape, bias)]
        y = product(*leaves)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert len(calls) == 3, "forward, and two products backward"
    assert all(close(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_a_row_alone_goes_there_when_its_weights_are_many(monkeypatch, calls):
    monkeypatch.setattr(module, "_mkl_is_slow", module._has_onednn)
    for d_out, n_calls in ((256, 0), (1024, 1)):  # 2^17 weights, and 2^19
        x, weight = operands((1, 512), (d_out, 512), bias=False)
        assert close(linear(x, weight), F.linear(x, weight))
        assert len(calls) == n_calls * module._has_onednn()


def test_gradients_of_gradients_are_torchs(onednn):
    found = []
    for product in (linear, F.linear):
        x, weight, bias = (leaf.requires_grad_() for leaf in operands((5, 8), (3, 8)))
        (slope,) = torch.autograd.grad(product(x, weight, bias).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), (x, weight, bias)))
    assert all(close(ours, theirs) for ours, theirs in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode uses it
def test_directional_derivatives_and_batched_calls_are_torchs(onednn):
    x, weight, bias = operands((5, 8), (3, 8))
    many = torch.stack([weight, 2 * weight])
    for transform in (
        lambda f: torch.func.jvp(f, (x, weight, bias), (2 * x, weight + 1, bias))[1],
        lambda f: torch.func.jvp(lambda x: f(x, weight, bias), (x,), (x + 1,))[1],
        lambda f: torch.func.vmap(f, in_dims=(None, 0, None))(x, many, bias),
        lambda f: torch.func.vmap(torch.func.grad(lambda w: f(x, w, bias).square().sum()))(many),
        lambda f: torch.func.hessian(lambda x: f(x, weight, bias).pow(3).sum())(x[:1]),
        lambda f: torch.func.jacrev(lambda w: f(x, w, bias))(weight),
    ):
        assert close(transform(linear), transform(F.linear))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[:1].expand(4, -1, -1),
        lambda x: x[..., ::2].repeat_interleave(2, -1)[:, :, :],
        lambda x: x[:, 1:],
        lambda x: x[:0],
    ],
    ids=["transposed", "expanded", "strided", "sliced", "empty"],
)
def test_every_layout_gives_torchs_values(onednn, change):
    x, weight, bias = operands((4, 5, 8), (3, 8))
    assert close(linear(change(x), weight, bias), F.linear(change(x), weight, bias))
    assert close(linear(change(x), weight.T.contiguous().T, bias), F.linear(change(x), weight, bias))


@pytest.mark.parametrize("apart", [lambda W: W, lambda W: W.T, lambda W: W[:, :8], lambda W: W[:8].T, lambda W: W[:, ::2]])
def test_weights_reach_onednn_without_gaps(onednn, apart):
    weight = apart(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))
    dense = module._dense(weight)
    assert torch.equal(dense, weight)
    assert {dense.stride(), dense.T.stride()} & {(weight.shape[1], 1), (weight.shape[0], 1)}
    assert weight.numel() < 256 or dense is weight, "a weight without gaps is not copied"
    x = torch.randn(5, weight.shape[1])
    assert close(linear(x, weight), F.linear(x, weight))


def test_a_gradient_that_is_one_number_repeated_is_understood(onednn):
    x, weight, bias = (leaf.requires_grad_() for leaf in operands((2, 5, 8), (3, 8)))
    (slope,) = torch.autograd.grad(linear(x, weight, bias).sum(), weight)
    assert close(slope, x.sum((0, 1)).expand(3, -1))


@pytest.mark.parametrize(
    ("way", "changed"),
    [
        ("double", lambda x, layer: (x.double(), layer.double())),
        ("vector", lambda x, layer: (x[0, 0], layer)),
        ("meta", lambda x, layer: (x.to("meta"), layer.to("meta"))),
        ("subclass", lambda x, layer: (x.as_subclass(type("Mine", (torch.Tensor,), {})), layer)),
    ],
)
def test_what_onednn_is_not_for_stays_with_torch(onednn, calls, way, changed):
    x, layer = changed(torch.randn(2, 5, 8), Linear(8, 3))
    assert layer(x).shape == (*x.shape[:-1], 3)
    assert not calls


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")  # torch's own switch sets that too
def test_modes_autocast_compilation_and_the_switch_of_torch_are_respected(onednn, calls):
    class Doubled(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            value = func(*args, **(kwargs or {}))
            return 2 * value if func is F.linear else value

    x, layer = torch.randn(2, 5, 8), Linear(8, 3)
    with Doubled():
        doubled = layer(x)
    assert close(doubled, 2 * F.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert close(torch.compile(layer, backend="eager", fullgraph=True)(x), F.linear(x, layer.weight, layer.bias))
    with torch.backends.mkldnn.flags(enabled=False):
        layer(x)
    assert not calls
    layer(x)
    assert calls


def test_operations_are_counted_and_misfits_named_as_of_torchs_own_product(onednn, calls):
    x, weight, bias = operands((5, 8), (3, 8))
    with FlopCounterMode(display=False) as counted:
        linear(x, weight, bias)
    assert counted.get_total_flops() == 2 * 5 * 8 * 3
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x[:, :7], weight, bias)
    assert not calls


def test_a_torch_without_the_product_is_noticed(monkeypatch):
    def renamed(*args):
        raise TypeError("_linear_pointwise() takes other arguments")

    monkeypatch.setattr(module, "_product", renamed)
    assert not module._has_onednn()


def test_rows_do_not_depend_on_the_rows_beside_them(onednn):
    x, weight, bias = operands((64, 96), (80, 96))
    other = x.clone()
    other[32:] = torch.nan
    assert torch.equal(linear(x, weight, bias)[:32], linear(other, weight, bias)[:32])


def test_a_model_keeps_its_logits_and_gradients(onednn, calls, monkeypatch, model: GPT2, tokens):
    fast = [model(tokens), *torch.autograd.grad(model(tokens).square().mean(), model.parameters())]
    assert len(calls) > 2 * (4 * model.config.n_layers + 1)
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: False)
    plain = [model(tokens), *torch.autograd.grad(model(tokens).square().mean(), model.parameters())]
    assert all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) for ours, theirs in zip(fast, plain, strict=True))


def test_derivatives_by_activations_take_no_products_for_those_by_weights(onednn, calls, model: GPT2, tokens):
    def gradients():
        calls.clear()
        _, _, found = model.run_with_gradients(tokens, lambda logits: logits[:, -1].square().sum(), "*.z")
        return len(calls), found

    asked, found = gradients()
    for weight in model.parameters():
        weight.requires_grad_(False)
    frozen, expected = gradients()
    # The first products of a model whose weights are frozen lie before anything with a derivative.
    assert frozen <= asked <= frozen + 1
    assert all(torch.equal(found[name], expected[name]) for name in expected)
