"""The operations against their literal definitions: values, gradients, sizes, costs, initial weights."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

import adversarialnas
import eagan
from common import cells
from common.cells import (
    OPS_DOWN,
    OPS_NORMAL,
    OPS_UP,
    AutoGANDiscriminator,
    Conv,
    ConvAvgPool,
    Cost,
    Normal,
    count_params,
    named,
)
from common.files import stream

WINDOW = {  # (padding, dilation) as the papers' tables give them
    **{"conv_1x1": (0, 1), "conv_3x3": (1, 1), "conv_5x5": (2, 1)},
    **{"dil_conv_3x3": (2, 2), "dil_conv_5x5": (4, 2)},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=stream(seed, "test"))


def convolve(layer: nn.Module, x: Tensor, macs: list[int], **how: object) -> Tensor:
    """The plain convolution with a layer's weights; `macs` gets its multiply-adds for an image, bias adds included."""
    y = F.conv2d(x, layer.weight, layer.bias, **how)
    macs.append(y[0].numel() * (layer.weight[0].numel() + (layer.bias is not None)))
    return y


def paper_op(name: str, op: nn.Module, x: Tensor, macs: list[int], stride: int = 1, relu: bool = True) -> Tensor:
    """The operation in the words of the paper, step by step, with the weights of the module `op`."""
    if name == "skip_connect":
        return x
    if name in ("avg_pool", "max_pool"):
        return {"avg_pool": F.avg_pool2d, "max_pool": F.max_pool2d}[name](x, 2)
    if name == "nearest":
        return convolve(op.conv, F.interpolate(x, scale_factor=2, mode="nearest").relu(), macs)
    if name == "bilinear":
        return convolve(op.conv, F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False).relu(), macs)
    if name == "conv_transpose":
        macs.append(9 * x[0].numel())
        y = F.conv_transpose2d(x.relu(), op.up.weight, None, stride=2, padding=1, output_padding=1, groups=x.shape[1])
        return convolve(op.conv, y, macs)
    padding, dilation = WINDOW[name]
    return convolve(op.conv, x.relu() if relu else x, macs, stride=stride, padding=padding, dilation=dilation)


OPS = [(ops, name, side) for ops, side in ((OPS_NORMAL, 8), (OPS_UP, 16), (OPS_DOWN, 4)) for name in ops]


@pytest.mark.parametrize(("ops", "name", "side"), OPS, ids=[f"{name}-{side}" for _, name, side in OPS])
def test_an_op_its_gradients_and_its_cost_are_those_of_its_definition(ops: dict, name: str, side: int) -> None:
    """AdversarialNAS §3.3, Fig. 2; EAGAN §3; AutoGAN §3.1"""
    op, x, macs = ops[name](6).double(), normal(2, 6, 8, 8).requires_grad_(), []
    y = op(x)
    assert y.shape == (2, 6, side, side)
    torch.testing.assert_close(y, paper_op(name, op, x, macs, stride=2 if side == 4 else 1), rtol=0, atol=1e-12)
    assert cells.op_cost(ops[name], 6, side) == Cost(count_params(op), sum(macs))
    y.square().sum().backward()
    for p in (x, *op.parameters()):
        assert p.grad.isfinite().all()
        assert p.grad.abs().sum() > 0


def test_ops_have_the_parameters_of_the_papers_widths() -> None:
    g = {"nearest": 65_792, "conv_transpose": 67_840, "conv_3x3": 590_080, "dil_conv_5x5": 1_638_656}
    d = {"avg_pool": 0, "dil_conv_3x3": 147_584, "conv_5x5": 409_728}
    assert {op: cells.op_cost({**OPS_UP, **OPS_NORMAL}[op], 256, 32).params for op in g} == g
    assert {op: cells.op_cost(OPS_DOWN[op], 128, 32).params for op in d} == d
    assert cells.op_cost(OPS_NORMAL["conv_1x1"], 128, 32).params == 16_512
    with pytest.raises(TypeError, match="macs"):  # an op that does not state its cost
        cells.op_cost(lambda ch: nn.Conv2d(ch, ch, 7), 4, 8)


def test_relu_can_be_left_out_and_spectral_norm_asked_for() -> None:
    op, x = Normal("conv_3x3", 6, sn=True, relu=False).double().eval(), normal(2, 6, 8, 8)
    torch.testing.assert_close(op(x), paper_op("conv_3x3", op, x, [], relu=False))
    assert not torch.allclose(op(x), op(x.relu()))
    assert hasattr(op.conv, "parametrizations")
    assert not hasattr(Normal("conv_3x3", 6).conv, "parametrizations")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_conv_avg_pool_is_a_convolution_and_a_pool(layout: torch.memory_format) -> None:
    layer, x = ConvAvgPool(5, 7).double().to(memory_format=layout), normal(2, 5, 8, 8).to(memory_format=layout)
    want = F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1), 2)
    found, weights = layer(x), [layer.weight, layer.bias]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    assert found.is_contiguous(memory_format=layout)  # dropout draws its masks in the order of memory
    gradients = [torch.autograd.grad(y.square().sum(), weights) for y in (found, want)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_constants_of_kernels_are_made_once() -> None:
    """Made in each step, DEGAS's search would wait for their copies to a GPU."""
    device = torch.device("cpu")
    for make in (cells.four_places, partial(cells.separable, (0.5, 1.0))):
        assert make(torch.float32, device) is make(torch.float32, device)
        assert make(torch.float64, device).dtype == torch.float64


@pytest.mark.parametrize("layer", [Conv(3, 4, 3, padding=1), ConvAvgPool(3, 4), Conv(3, 4, 1)], ids=["3x3", "pool", "1x1"])
def test_the_gradient_of_a_penalty_is_torchs(layer: Conv) -> None:
    """And it does not go on through the first pass."""
    first, second, found, went_on = layer.double(), Conv(4, 2, 3).double(), {}, []
    for name, inside in (("torch", nullcontext), ("ours", cells.ForPenalty)):
        torch.manual_seed(0)
        x = normal(2, 3, 16, 16).requires_grad_()
        with inside():
            made = first(x)
            made.register_hook(lambda grad, name=name: went_on.append(name))
            y = cells.relu(second(cells.dropout(cells.avg_pool_2x2(cells.relu(made)), 0.5, True)))
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        weights = [first.weight, second.weight]
        found[name] = (y, gradient, *torch.autograd.grad(gradient.square().sum(), weights, allow_unused=True))
    torch.testing.assert_close(found["ours"], found["torch"], rtol=0, atol=1e-10)
    assert went_on == ["torch", "torch", "ours"]


@pytest.mark.parametrize("layer", [Conv(8, 4, 3), ConvAvgPool(8, 4), cells.Linear(8, 4)], ids=lambda m: type(m).__name__)
def test_weights_are_computed_in_float32_under_autocast(layer: nn.Module) -> None:
    """As spectral norm's are; the layer itself computes in bfloat16."""
    found = []

    class Product(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            product = w.flatten(1) @ torch.eye(w[0].numel())
            found.append(product.dtype)
            return product.view_as(w)

    register_parametrization(layer, "weight", Product())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(normal(2, 8, 8, 8).float()).dtype == torch.bfloat16
    assert set(found) == {torch.float32}


def test_an_edge_computes_only_the_op_asked_for() -> None:
    edge, x = cells.Edge({name: Normal(name, 4) for name in OPS_NORMAL}), normal(1, 4, 8, 8).float()
    assert edge(x, "none") is None
    assert torch.equal(edge(x, "conv_3x3"), edge["conv_3x3"](x))
    edge(x, "conv_3x3").sum().backward()
    assert {n.split(".")[0] for n, p in edge.named_parameters() if p.grad is not None} == {"conv_3x3"}


def test_a_weighted_sum_is_channels_last_as_its_maps_are() -> None:
    maps = [normal(2, 3, 4, 4, seed=i).to(memory_format=torch.channels_last).requires_grad_() for i in range(3)]
    w = normal(3).requires_grad_()
    found, want = cells.weighted_sum(maps, w), sum(w_k * x for w_k, x in zip(w, maps, strict=True))
    assert found.is_contiguous(memory_format=torch.channels_last)
    gradients = [torch.autograd.grad(y, [w, *maps], normal(2, 3, 4, 4, seed=9)) for y in (found, want)]
    torch.testing.assert_close((found, *gradients[0]), (want, *gradients[1]))


def test_add_leaves_its_terms_alone() -> None:
    x, y = normal(3), normal(3, seed=1)
    assert torch.equal(cells.add(None, x, None, y), normal(3) + y)
    assert torch.equal(x, normal(3))


def test_initial_weights() -> None:
    """Xavier where the authors' initialiser has an effect; torch's defaults under spectral norm, where it has none."""
    plain, normed, batch_norm = Conv(128, 128, 3), spectral_norm(Conv(128, 128, 3)), nn.BatchNorm2d(2000)
    linear = nn.Linear(128, 128)
    before = linear.weight.clone()
    cells.init_weights(nn.ModuleList([plain, normed, batch_norm, linear]))
    xavier, default = (6 / (2 * 128 * 9)) ** 0.5, (128 * 9) ** -0.5  # 0.0510 and 0.0295
    for weight, bound in (plain.weight, xavier), (normed.parametrizations.weight.original, default):
        assert 0.99 * bound < weight.abs().max() <= bound
    assert batch_norm.weight.mean().item() == pytest.approx(1, abs=0.002)
    assert batch_norm.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not batch_norm.bias.any()
    assert torch.equal(linear.weight, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cells.AutoGANDiscriminator(8),
        lambda: adversarialnas.Discriminator(None, 8),
        lambda: adversarialnas.Discriminator(named("animation-d", adversarialnas.D_SPACE, adversarialnas.PUBLISHED), 8),
        lambda: adversarialnas.SNGANDiscriminator(8, 32),
        lambda: eagan.Discriminator(None, 8),
    ],
    ids=["autogan", "super-d", "derived d", "sn-gan", "eagan's"],
)
def test_weights_under_spectral_norm_are_pytorchs_own_draw(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, reset = {}, nn.Conv2d.reset_parameters

    def recorded(conv: nn.Conv2d) -> None:
        reset(conv)
        drawn[id(conv)] = conv.weight.detach().clone()

    monkeypatch.setattr(nn.Conv2d, "reset_parameters", recorded)
    torch.manual_seed(0)
    D = make()
    normed = [m for m in D.modules() if isinstance(m, nn.Conv2d) and hasattr(m, "parametrizations")]
    assert len(normed) >= 7
    for conv in normed:
        assert torch.equal(conv.parametrizations.weight.original, drawn[id(conv)])


# ---- AutoGAN's discriminator, AutoGAN §3.1 ---------------------------------------------------------------------------


@pytest.mark.parametrize(("ch", "params"), [(128, 1_053_824), (64, 264_768), (8, 4_424)])
def test_autogans_discriminator_has_the_published_size(ch: int, params: int) -> None:
    D = AutoGANDiscriminator(ch)
    assert count_params(D) == params == 64 * ch**2 + 41 * ch
    assert sum(hasattr(m, "parametrizations") for m in D.modules()) == 11


@pytest.mark.parametrize(("stage", "size", "active"), [(0, 8, 112_896), (1, 16, 190_912), (2, 32, 264_768), (2, 48, 264_768)])
def test_autogans_discriminator_grows_with_the_stage_and_costs_what_it_says(stage: int, size: int, active: int) -> None:
    D, macs = AutoGANDiscriminator(64), [64]
    for layer in D.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda m, _x, y: macs.append(y[0].numel() * (m.weight[0].numel() + 1)))
        if isinstance(layer, ConvAvgPool) or layer is D.middle[0].shortcut:  # the paper convolves first and pools then
            layer.register_forward_hook(lambda m, _x, y: macs.append(3 * y[0].numel() * (m.weight[0].numel() + 1)))
    out = D(torch.randn(2, 3, size, size), stage)
    assert out.shape == (2, 1)
    assert AutoGANDiscriminator.cost(64, size, stage) == Cost(count_params(D), sum(macs))
    out.sum().backward()
    assert sum(p.numel() for p in D.parameters() if p.grad is not None) == active


def test_autogans_discriminator_sums_over_positions_and_halves_twice() -> None:
    D, seen = AutoGANDiscriminator(8).eval(), []
    for block in (*D.middle, D.last):
        block.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[-1]))
    D.last.register_forward_hook(lambda _m, _i, out: torch.ones_like(out))
    small, large = D(torch.randn(1, 3, 24, 24)), D(torch.randn(1, 3, 48, 48))
    torch.testing.assert_close(large, 4 * small)
    assert seen == [6, 6, 6, 12, 12, 12]


@pytest.mark.parametrize(("width", "groups"), [(24, 1), (16, 16)])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [((3, 3), (2, 2), (2, 2)), ((2, 5), (4, 4), (8, 2))])
def test_a_dilated_convolution_under_autocast_has_its_gradients(width, groups, kernel, padding, dilation) -> None:
    """torch's own on a CPU has not: nan, or twice as far from the true gradient as that is long."""
    gradients = []
    for amp in (False, True):
        x, weight = (
            normal(*shape).float().contiguous(memory_format=torch.channels_last).requires_grad_()
            for shape in ((4, width, 32, 32), (width, width // groups, *kernel))
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            y = cells.conv2d(x, weight, None, 1, padding, dilation, groups)
        assert y.dtype == (torch.bfloat16 if amp else torch.float32)
        y.float().square().sum().backward()
        gradients.append((x.grad, weight.grad))
    for true, half in zip(*gradients, strict=True):
        assert (true - half).norm() < 0.02 * true.norm()
