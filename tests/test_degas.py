"""DEGAS: the paper's counts, the Laplacian loss by hand, pruning, networks against their definitions, the steps.

"Fact n" counts the exact facts that the method and the works it builds on fix, and that are to be met here.
"""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import permutations, product
from math import log, prod, sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_cells import normal
from torch import Tensor, nn

import degas
from common import gan
from common.cells import Cost, count_params
from common.data import Dataset
from common.files import UserError, stream
from common.ranks import Ranks
from degas import OPS, OPS_NORMAL, OPS_UP, Alpha, Args, Connection, Critic, Generator, Search, Space, SuperG, prune

ONE = Ranks(torch.device("cpu"))
NORMAL, UP = tuple(OPS_NORMAL), tuple(OPS_UP)
EXAMPLE = {  # alpha of the worked example
    "U0->N1": [0.02, 0.11, -0.05, -0.02, 0.09, 0.07, 0.12, -0.01, 0.03],
    "U1->N2": [0.30, 0.10, 0, 0, 0.05, 0.20, 0.10, 0, 0.10],
    "U2->N3": [0, 0, 0, 0, 0.40, 0.10, 0.20, 0.30, 0.10],
    "N1->U1": [0.00, 0.20, 0.10, -0.10],
    "U0->U1": [0.05, 0.25, -0.10, 0.22, 0.10],
    "N2->U2": [0.20, -0.10, 0.05, 0.35],
    "U0->U2": [0.10, 0.30, 0.12, -0.20, 0.00],
    "U1->U2": [0.60, 0.10, 0.55, 0.20, 0.30],
    "N3->U3": [0.10, 0.40, -0.30, 0.00],
    "U1->U3": [-0.20, 0.45, 0.10, 0.00, -0.10],
    "U2->U3": [0.00, 0.05, 0.20, 0.42, 0.30],
}
FOUND = {
    **{"N1": (("U0", "sep_conv_5x5"),), "U1": (("N1", "deconv_6"), ("U0", "deconv_4"))},
    **{"N2": (("U1", "conv_1x1"),), "U2": (("N2", "nn_conv_3"),)},
    **{"N3": (("U2", "skip_connect"),), "U3": (("N3", "deconv_6"), ("U1", "deconv_4"))},
}
TINY = Args(
    size=16, search_size=16, search_images=12, lap_levels=2, w_lr=0.3, search_ch=4, g_ch=4, d_ch=4, z_dim=6,
    search_batch=4, g_batch=4, d_batch=4, g_lr=1e-3, d_lr=1e-3,
)  # fmt: skip


def alpha_of(rows: dict[str, list[float]], space: Space = Space()) -> Alpha:  # noqa: B008
    """Alpha with these rows."""
    alpha = Alpha(space, 0, 1.0)
    with torch.no_grad():
        for name, row in alpha.rows().items():
            row.copy_(torch.tensor(rows[name]))
    return alpha


def random_alpha(rng: random.Random, n: int = 1) -> Alpha:
    space = Space(n)
    return alpha_of({c.name: [rng.gauss(0, 1) for _ in space.ops(c)] for c in space.connections}, space)


def random_genotypes(count: int, n: int = 1) -> list[degas.Genotype]:
    rng = random.Random(0)
    return [prune(random_alpha(rng, n)) for _ in range(count)]


def params_of(make: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return count_params(make())


def job_of(args: Args, images: Tensor, labels: Tensor | None = None, ranks: Ranks = ONE) -> gan.Job:
    return gan.Job(args, ranks, SimpleNamespace(batch=100), Dataset("x", images, labels, "0"), to_bytes=degas.quantise)


def count_discrete(space: Space) -> int:
    """Networks that pruning can end in: for each node a direct op, and one residual op or none."""
    ops = {c: len([op for op in space.ops(c) if op != "none"]) for c in space.connections}
    return prod(ops[c[0]] * (1 + sum(ops[r] for r in c[1:])) for c in space.nodes.values())


# ---- graph and counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "count", "shapes", "values"),
    [
        (1, 11, {"normal": (3, 9), "up": (3, 4), "residual": (5, 5)}, 64),
        (2, 17, {"normal": (9, 9), "up": (3, 4), "residual": (5, 5)}, 118),
    ],
)
def test_fact_01_connections_and_alpha(n: int, count: int, shapes: dict, values: int):
    alpha = Alpha(Space(n), 0, 1e-3)
    assert len(Space(n).connections) == count
    assert {kind: tuple(table.shape) for kind, table in alpha.items()} == shapes
    assert count_params(alpha) == values
    flat = torch.cat([table.flatten() for table in alpha.values()])
    assert 0 < flat.abs().max() < 5e-3


def test_fact_01_the_rows_of_alpha_follow_the_order_of_the_connections():
    tables = {kind: torch.arange(5.0)[:, None].expand(5, 2) for kind in ("normal", "up", "residual")}
    rows = {name: row[0].item() for name, row in Alpha(Space(), 0, 1.0).by_connection(tables).items()}
    assert [rows[name] for name in ("U0->N1", "U1->N2", "U2->N3")] == [0, 1, 2]
    assert [rows[name] for name in ("N1->U1", "N2->U2", "N3->U3")] == [0, 1, 2]
    assert [rows[name] for name in ("U0->U1", "U0->U2", "U1->U2", "U1->U3", "U2->U3")] == [0, 1, 2, 3, 4]


def test_fact_02_residual_connections():
    found = {(c.source, c.target): c.factor for c in Space().connections if c.kind == "residual"}
    assert found == {("U0", "U1"): 2, ("U0", "U2"): 4, ("U1", "U2"): 2, ("U1", "U3"): 4, ("U2", "U3"): 2}
    assert all(c.factor == (1 if c.kind == "normal" else 2) for c in Space().connections if c.kind != "residual")


def test_fact_03_networks_of_the_space():
    seven, nine = (Args(normal_ops=count).space for count in ("7", "9"))
    assert count_discrete(seven) == 8_890_560 == 4**3 * 7**3 * 5 * 9**2
    assert count_discrete(nine) == 18_895_680
    assert prod(len(nine.ops(c)) for c in nine.connections) == 145_800_000
    assert seven.normal == NORMAL[2:]


@pytest.mark.parametrize("normal_ops", [9, 7])
def test_fact_03_pruning_ends_in_as_many(normal_ops: int):
    """Every choice of a leading op on every connection into a node, and of the connection that leads."""
    space = Space(1, NORMAL[-normal_ops:])
    outcomes = {}
    for node, entries in space.nodes.items():
        outcomes[node] = set()
        for leading in product(*(range(len(space.ops(c))) for c in entries)):
            for order in permutations(range(len(entries))):
                alpha = {c.name: [0.0] * len(space.ops(c)) for c in space.connections}
                for c, op, rank in zip(entries, leading, order, strict=True):
                    alpha[c.name][op] = 1.0 + rank
                outcomes[node].add(prune(alpha_of(alpha, space))[node])
    assert {node: len(found) for node, found in outcomes.items()} == {
        **dict.fromkeys(("N1", "N2", "N3"), normal_ops), **{"U1": 20, "U2": 36, "U3": 36}
    }  # fmt: skip


def test_fact_04_networks_with_two_normal_maps():
    assert count_discrete(Space(2)) == 13_774_950_720_000
    rng, found = random.Random(0), set()
    for _ in range(1500):
        found.add(prune(random_alpha(rng, 2))["N1_2"])
    assert len(found) == 90


@pytest.mark.parametrize("size", [16, 32, 48])
@pytest.mark.parametrize("n", [1, 2])
def test_fact_05_images(size: int, n: int):
    supernet = SuperG(Space(n), 4, 6, size)
    p = Alpha(Space(n), 0, 1.0).probabilities()
    for image in (
        supernet(normal(2, 6).float(), p),
        Generator(random_genotypes(1, n)[0], 4, 6, size)(normal(2, 6).float()),
    ):
        assert image.shape == (2, 3, size, size)
        assert image.abs().max() <= 1


@pytest.mark.parametrize("op", UP)
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("side", [2, 4, 6])
def test_fact_05_up_samplings(op: str, factor: int, side: int):
    assert OPS[op](4, factor, 0)(normal(2, 4, side, side).float()).shape == (2, 4, factor * side, factor * side)


def test_fact_06_parameters():
    want = {
        **{"conv_1x1": 16_768, "conv_3x3": 147_840, "max_pool_3x3": 0, "avg_pool_3x3": 0, "skip_connect": 0},
        **{"sep_conv_3x3": 35_584, "sep_conv_5x5": 39_680, "dil_conv_3x3": 17_792, "dil_conv_5x5": 19_840},
        **{"deconv_4": 262_528, "deconv_6": 590_208, "nn_conv_1": 16_768, "nn_conv_3": 147_840},
    }
    for factor in (2, 4):
        assert {op: params_of(lambda: OPS[op](128, factor, 0)) for op in (*NORMAL, *UP)} == want  # noqa: B023
    assert [params_of(lambda: Generator("baseline", size=size).head) for size in (32, 48)] == [264_192, 594_432]  # noqa: B023
    assert params_of(lambda: Generator("baseline").tail) == 3_715
    assert params_of(lambda: SuperG(Space())) == SuperG.cost(Space()).params == 9_224_835
    assert params_of(lambda: Generator(FOUND)) == Generator.cost(FOUND).params == 2_177_667
    assert params_of(lambda: Generator(FOUND, classes=10)) == Generator.cost(FOUND, classes=10).params == 2_196_099
    for size, want in ((32, 1_204_483), (48, 1_534_723)):
        assert params_of(lambda: Generator("baseline", size=size)) == want  # noqa: B023
        assert Generator.cost("baseline", size=size).params == want


def test_fact_06_sizes_of_all_networks():
    """The range that speaks for 128 channels: the paper's 1.65M and 1.17M parameters lie in it."""
    params = {op: params_of(lambda: OPS[op](128, 2, 0)) for op in (*NORMAL, *UP)}  # noqa: B023
    fixed, normals, ups = 264_192 + 3_715, [params[op] for op in NORMAL], [params[op] for op in UP]
    assert fixed + 3 * min(normals) + 3 * min(ups) == pytest.approx(0.318e6, abs=500)
    assert fixed + 3 * max(normals) + 6 * max(ups) == pytest.approx(4.253e6, abs=500)


def plain(mixed: degas.MixedOp, x: Tensor, p: Tensor) -> Tensor:
    """The sum of a mixed op's candidates as it is written."""
    return sum(p_o * mixed[op](x) for op, p_o in zip(mixed.names, p, strict=True) if op != "none")


@pytest.mark.parametrize("c", Space().connections, ids=lambda c: c.name)
def test_fact_07_a_mixed_op_is_the_weighted_sum(c: Connection):
    ops = Space().ops(c)
    mixed, x = degas.MixedOp(ops, 6, c.factor).double(), normal(3, 6, 4, 4)
    active = F.batch_norm(x, None, None, training=True).relu()
    alpha = torch.zeros(len(ops), dtype=torch.float64)
    alpha[0] = 50
    first = mixed[ops[0]](x) if ops[0] != "none" else 0 * mixed["deconv_4"](x)
    torch.testing.assert_close(mixed(x, active, alpha.softmax(0)), first, rtol=0, atol=1e-4)
    mean = sum(mixed[op](x) for op in ops if op != "none") / len(ops)
    torch.testing.assert_close(mixed(x, active, (0 * alpha).softmax(0)), mean)


# ---- the loss --------------------------------------------------------------------------------------------------------


def levels_of(x: Tensor, levels: int) -> list[float]:
    return [band.abs().sum().item() for band in degas.pyramid(x, levels)]


def losses_of(x: Tensor, levels: int) -> tuple[float, float]:
    """The literal sum form and the mean form of a difference, as a batch of one."""
    return tuple(degas.reconstruction_loss(x.float(), 0 * x, levels, how).item() for how in ("sum", "mean"))


def weighted(levels: list[float]) -> float:
    return sum(4**j * value for j, value in enumerate(levels))


def impulse(size: int) -> Tensor:
    x = torch.zeros(1, 1, size, size, dtype=torch.float64)
    x[0, 0, size // 2, size // 2] = 1
    return x


def step_edge(size: int) -> Tensor:
    x = torch.ones(1, 1, size, size, dtype=torch.float64)
    x[..., size // 2 :] = -1
    return x


@pytest.mark.parametrize(("size", "levels"), [(8, 2), (16, 2), (32, 3), (48, 3)])
def test_fact_08_a_constant_difference(size: int, levels: int):
    x = torch.full((2, 3, size, size), 0.5)
    bands = degas.pyramid(x, levels)
    assert [tuple(band.shape[2:]) for band in bands] == [(size >> j, size >> j) for j in range(levels + 1)]
    assert all(band.abs().max() < 1e-7 for band in bands[:-1])
    assert losses_of(x, levels)[1] == pytest.approx(0.75)


def test_fact_08_the_sum_form():
    x = torch.full((1, 1, 8, 8), 0.5)
    assert weighted(levels_of(x, 2)) == pytest.approx(32)
    assert losses_of(x, 2)[0] == pytest.approx(32 + 16)
    assert losses_of(x.expand(5, 1, 8, 8), 2)[0] == pytest.approx(32 + 16)  # of an image, averaged over the batch


def test_fact_09_an_impulse():
    assert levels_of(impulse(8), 1) == pytest.approx([55 / 32, 1 / 4])
    assert weighted(levels_of(impulse(8), 1)) == pytest.approx(2.71875)
    assert losses_of(impulse(8), 1) == pytest.approx((3.71875, 0.05810546875))
    assert 2.71875 / 64 == 0.04248046875


def test_fact_10_an_impulse_two_levels_down():
    assert levels_of(impulse(8), 2) == pytest.approx([55 / 32, 14_889 / 65_536, 14_641 / 262_144])
    assert weighted(levels_of(impulse(8), 2)) == pytest.approx(28_845 / 8192)


def test_fact_11_an_impulse_of_32_pixels():
    assert weighted(levels_of(impulse(32), 3)) == pytest.approx(2_475_519 / 524_288)


def test_fact_12_a_vertical_step():
    assert levels_of(step_edge(8), 1) == pytest.approx([12, 13])
    assert weighted(levels_of(step_edge(8), 1)) == pytest.approx(64)
    assert losses_of(step_edge(8), 1) == pytest.approx((64 + 64, 1.0 + 1.0))
    assert levels_of(step_edge(32), 3) == pytest.approx([48, 16.5, 489 / 64, 3151 / 256])
    assert weighted(levels_of(step_edge(32), 3)) == pytest.approx(1024)


def test_fact_13_stripes_and_checkerboard():
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    stripes, board = signs.expand(1, 1, 8, 8), signs.outer(signs)[None, None]
    assert levels_of(stripes, 1) == pytest.approx([58, 2.5])
    assert weighted(levels_of(stripes, 1)) == pytest.approx(68)
    assert levels_of(board, 1) == pytest.approx([1015 / 16, 25 / 64])
    assert weighted(levels_of(board, 1)) == pytest.approx(65)


def test_fact_14_the_pyramid_is_linear():
    x, y = normal(2, 3, 16, 16), normal(2, 3, 16, 16, seed=1)
    for a, b, both in zip(*(degas.pyramid(image, 2) for image in (x, y, x - y)), strict=True):
        torch.testing.assert_close(a - b, both)
    there, back, none = (degas.reconstruction_loss(a.float(), b.float(), 2) for a, b in ((x, y), (y, x), (x, x)))
    assert there == back > none == 0


# ---- the search ------------------------------------------------------------------------------------------------------


def random_images(count: int, size: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=stream(0, "images"), dtype=torch.uint8)


def search_of(args: Args = TINY, images: Tensor | None = None) -> tuple[gan.Job, Search]:
    job = job_of(args, random_images(args.search_images) if images is None else images)
    return job, Search(job)


def copy_of(*nets: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for net in nets for p in net.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_fact_15_the_ball():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(degas.project_ball(rows), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


@pytest.mark.parametrize("how", [{}, {"z_init": "pca", "z_grad": "batch"}], ids=["default", "pca, batch"])
def test_fact_15_latents_stay_in_the_ball_and_only_those_of_the_batch_move(how: dict):
    (job, s), i = search_of(replace(TINY, **how)), torch.tensor([7, 2, 9, 4])
    others = [k for k in range(12) if k not in i]
    for _ in range(3):
        before = s.Z.clone()
        degas.zw_step(job, s, i, 0.3)
        assert (s.Z.norm(dim=1) <= 1 + 1e-6).all()
        assert torch.equal(s.Z[others], before[others])
        assert (s.Z[i] != before[i]).any(1).all()


@pytest.mark.parametrize(("z_grad", "factor"), [("image", 4), ("batch", 1)])
def test_fact_15_a_latent_follows_the_gradient_of_its_own_loss(z_grad: str, factor: int):
    (job, s), i = search_of(replace(TINY, z_grad=z_grad, z_lr=1e-3)), torch.tensor([3, 1, 0, 8])
    s.Z *= 0.5  # so that the ball does not cut the step
    z = s.Z[i].requires_grad_()
    loss = degas.reconstruction_loss(s.net(z, s.alpha.probabilities()), degas.scaled(s.images[i]), 2)
    (gradient,) = torch.autograd.grad(loss, z)
    before = s.Z.clone()
    degas.zw_step(job, s, i, 0.2)
    torch.testing.assert_close(s.Z[i] - before[i], -2e-4 * factor * gradient, rtol=1e-3, atol=1e-7)


def test_fact_16_each_step_moves_its_own_part():
    (job, s), i = search_of(), torch.tensor([0, 1, 2, 3])
    alpha, w, Z = copy_of(s.alpha), copy_of(s.net), s.Z.clone()
    degas.zw_step(job, s, i, 0.3)
    assert same(alpha, copy_of(s.alpha))
    assert not same(w, copy_of(s.net))
    assert not torch.equal(Z, s.Z)
    w, Z = copy_of(s.net), s.Z.clone()
    degas.alpha_step(job, s, i)
    assert not any(torch.equal(a, b) for a, b in zip(alpha, copy_of(s.alpha), strict=True))
    assert same(w, copy_of(s.net))
    assert torch.equal(Z, s.Z)


def test_fact_17_schedules_and_optimisers():
    fast, slow = Args(w_lr=0.3), Args(w_lr=0.03)
    for epoch, want in ((0, 0.3), (1, 0.299705), (25, 0.1505), (49, 0.001295)):
        assert fast.w_lr_in(epoch) == pytest.approx(want, abs=5e-7)
    assert slow.w_lr_in(25) == pytest.approx(0.0155)
    assert slow.w_lr_in(49) == pytest.approx(0.0010286, abs=5e-8)
    images = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    _, s = search_of(Args(size=16, search_size=16, search_images=64, lap_levels=2, w_lr=0.3, search_ch=2, z_dim=4), images)
    (sgd,), (adam,) = s.w_opt.param_groups, s.a_opt.param_groups
    assert (type(s.w_opt), sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (torch.optim.SGD, 0.3, 0.9, 3e-4)
    assert (type(s.a_opt), adam["lr"], adam["weight_decay"]) == (torch.optim.Adam, 3e-4, 1e-3)
    assert adam["betas"] == (0.5, 0.999)
    assert same(sgd["params"], list(s.net.parameters()))
    assert same(adam["params"], list(s.alpha.parameters()))
    assert 0 < max(table.abs().max() for table in s.alpha.values()) < 5e-3


@pytest.mark.parametrize(("dataset", "lr"), [("cifar10", 0.3), ("stl10", 0.03), ("celeba", 0.03)])
def test_fact_17_the_rate_of_w_is_that_of_the_data_set(dataset: str, lr: float):
    data = Dataset("x", torch.zeros(99, 3, 32, 32, dtype=torch.uint8), None, "0")
    assert degas.resolve(Args(dataset=dataset), data).w_lr == lr


def test_fact_18_the_search_overfits_a_handful_of_images():
    images = degas.quantise(F.interpolate(normal(8, 3, 4, 4).float(), size=16, mode="bilinear"))  # not noise
    job, s = search_of(replace(TINY, search_ch=16, z_dim=16, search_images=8), images)
    i, losses = torch.arange(8), []
    for _ in range(25):
        losses.append(degas.zw_step(job, s, i, 0.3).item())
        degas.alpha_step(job, s, i)
    assert losses[-1] < 0.75 * s.mean_loss < losses[0]


def test_the_gradient_of_alpha_is_that_of_finite_differences():
    (job, s), i = search_of(), torch.arange(4)
    s.net.double(), s.alpha.double()
    s.Z = s.Z.double()

    def loss_at(kind: str, row: int, column: int, by: float) -> Tensor:
        alpha = deepcopy(s.alpha)
        with torch.no_grad():
            alpha[kind][row, column] += by
            made = s.net(s.Z[i], alpha.probabilities())
            difference = made - degas.scaled(s.images[i]).double()
            return difference.square().mean() + sum(band.abs().mean() for band in degas.pyramid(difference, 2))

    s.loss(job, s.alpha.probabilities(), s.Z[i], i).backward()
    for kind, row, column in (("normal", 0, 1), ("normal", 2, 5), ("up", 1, 3), ("residual", 1, 0), ("residual", 4, 2)):
        slope = (loss_at(kind, row, column, 1e-4) - loss_at(kind, row, column, -1e-4)) / 2e-4
        assert s.alpha[kind].grad[row, column].item() == pytest.approx(slope.item(), rel=0.02, abs=1e-6)


@pytest.mark.parametrize("normal_ops", [NORMAL, NORMAL[2:]], ids=["9", "7"])
def test_merged_candidates_equal_the_plain_ones_in_value_and_gradients(normal_ops: tuple[str, ...]):
    space = Space(1, normal_ops)
    for c in space.connections:
        torch.manual_seed(0)
        mixed, x = degas.MixedOp(space.ops(c), 6, c.factor).double(), normal(3, 6, 4, 4).requires_grad_()
        for op in mixed.values():
            if hasattr(op, "conv"):
                nn.init.normal_(op.conv.bias)
        p = normal(len(space.ops(c))).softmax(0).requires_grad_()
        weights = list(mixed.parameters())
        apart = plain(mixed, x, p)
        merged = mixed(x, F.batch_norm(x, None, None, training=True).relu(), p)
        torch.testing.assert_close(merged, apart)
        pull = normal(*apart.shape, seed=1)
        for a, b in zip(*(torch.autograd.grad((y * pull).sum(), [x, p, *weights]) for y in (apart, merged)), strict=True):
            torch.testing.assert_close(a, b)


# ---- pruning ---------------------------------------------------------------------------------------------------------


def test_fact_19_the_worked_example():
    assert prune(alpha_of(EXAMPLE)) == FOUND
    assert Space.text(FOUND) == "N1 sep5 | U1 d6+U0:d4 | N2 c1 | U2 n3 | N3 skip | U3 d6+U1:d4"


def test_fact_19_a_weaker_none_lets_the_residual_op_win():
    flipped = prune(alpha_of({**EXAMPLE, "U1->U2": [0.50, *EXAMPLE["U1->U2"][1:]]}))
    assert flipped == {**FOUND, "U2": (("N2", "nn_conv_3"), ("U1", "deconv_6"))}


def test_fact_19_under_softmax_no_residual_op_wins():
    found = prune(alpha_of(EXAMPLE), "softmax")
    assert found == {node: inputs[:1] for node, inputs in FOUND.items()}
    best = {name: max(torch.tensor(row).softmax(0).tolist()[len(row) == 5 :]) for name, row in EXAMPLE.items()}
    want = {"N1->U1": 0.2887, "U0->U1": 0.2296, "N2->U2": 0.3087, "U0->U2": 0.2499, "U1->U2": 0.2397}
    want |= {"N3->U3": 0.3439, "U1->U3": 0.2906, "U2->U3": 0.2477}
    assert {name: best[name] for name in want} == pytest.approx(want, abs=5e-5)


def test_fact_19_ties_go_to_the_direct_connection_the_lower_source_and_the_earlier_op():
    assert prune(alpha_of({name: [0.0] * len(row) for name, row in EXAMPLE.items()})) == {
        **{f"N{k}": ((f"U{k - 1}", "conv_1x1"),) for k in (1, 2, 3)},
        **{f"U{k}": ((f"N{k}", "deconv_4"),) for k in (1, 2, 3)},
    }
    tied = {**EXAMPLE, "U0->U2": [0, 0.9, 0, 0, 0], "U1->U2": [0, 0.9, 0.9, 0, 0]}
    assert prune(alpha_of(tied))["U2"][1] == ("U0", "deconv_4")
    assert prune(alpha_of({**tied, "N2->U2": [0.9, 0, 0, 0]}))["U2"] == (("N2", "deconv_4"),)
    none_as_large = {**EXAMPLE, "U0->U1": [0.25, 0.25, 0, 0, 0]}
    assert prune(alpha_of(none_as_large))["U1"] == (("N1", "deconv_6"),)


@pytest.mark.parametrize(("draws", "tolerance"), [(2000, 0.03), pytest.param(20_000, 0.02, marks=pytest.mark.slow)])
def test_fact_20_random_alpha(draws: int, tolerance: float):
    rng = random.Random(1)
    residual = dict.fromkeys(("U1", "U2", "U3"), 0)
    for k in range(draws):
        genotype = prune(random_alpha(rng))
        for node, inputs in genotype.items():
            assert inputs[0][0] == Space().nodes[node][0].source
            assert len(inputs) == 1 or (len(inputs) == 2 and node in residual)
            residual[node] = residual.get(node, 0) + len(inputs) - 1
        if k < 1000:
            assert Space().check(genotype, "drawn") == genotype
    assert residual["U1"] / draws == pytest.approx(4 / 9, abs=tolerance)
    assert residual["U2"] / draws == pytest.approx(40 / 63, abs=tolerance)
    assert residual["U3"] / draws == pytest.approx(40 / 63, abs=tolerance)


def test_fact_20_random_architectures_come_from_the_seed():
    first, again, other = (degas.first_state(Args(random_arch=True, seed=seed), None).G for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("n", [1, 2])
def test_fact_21_genotypes_go_through_json_and_serve_every_size(n: int, tmp_path: Path):
    for genotype in [FOUND] * (n == 1) + random_genotypes(3, n):
        (tmp_path / "genotype.json").write_text(json.dumps(degas.genotype_json(TINY, genotype, {})))
        again = degas.first_state(Args(genotype=str(tmp_path / "genotype.json")), None).G
        assert again == genotype
        assert list(again) == list(Space(n).nodes)
        for size in (16, 32, 48):
            assert Generator(again, 4, 6, size)(normal(2, 6).float()).shape == (2, 3, size, size)


def test_rows_for_tables_name_the_op_of_every_connection():
    assert degas.genotype_json(TINY, FOUND, {})["G"] == [
        ["sep_conv_5x5", "deconv_6", "deconv_4"],
        ["conv_1x1", "nn_conv_3", "none", "none"],
        ["skip_connect", "deconv_6", "deconv_4", "none"],
    ]


def test_a_genotype_json_tells_what_its_network_costs():
    for genotype in (FOUND, "baseline", *random_genotypes(2, 2)):
        found, cost = degas.genotype_json(TINY, genotype, {"loss/rec": 1.0}), Generator.cost(genotype, 4, 6, 16)
        assert (found["params"], found["macs"]) == ({"G": cost.params}, {"G": cost.macs})
        assert (found["method"], found["text"], found["scores"]) == ("degas", Space.text(genotype), {"loss/rec": 1.0})
    baseline = degas.genotype_json(TINY, "baseline", {})
    assert (baseline["n"], baseline["nodes"], baseline["G"]) == (0, "baseline", None)


# ---- networks against their definitions ------------------------------------------------------------------------------


def paper_op(op: str, module: nn.Module, x: Tensor, factor: int, y: Tensor | None, macs: list[int]) -> Tensor:
    """The op in the words of its definition, with the module's weights; macs gets the multiply-adds of an image."""

    def bn(norm: degas.BatchNorm, x: Tensor) -> Tensor:
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        scale, shift = (t if y is None else t[y] for t in (norm.weight, norm.bias))
        return x * scale.reshape(-1, x.shape[1], 1, 1) + shift.reshape(-1, x.shape[1], 1, 1)

    def convolve(layer: nn.Module, x: Tensor, **how: int) -> Tensor:
        out = F.conv2d(x, layer.weight, layer.bias, **how)
        macs.append(out[0].numel() * (layer.weight[0].numel() + (layer.bias is not None)))
        return out

    if op == "skip_connect":
        return x
    k = int(op[-1])
    if op == "max_pool_3x3":
        return F.max_pool2d(F.pad(x, [1] * 4, value=-torch.inf), 3, 1)
    if op == "avg_pool_3x3":
        return F.avg_pool2d(F.pad(x, [1] * 4), 3, 1) * 9 / F.avg_pool2d(F.pad(torch.ones_like(x), [1] * 4), 3, 1) / 9
    if op.startswith(("sep", "dil")):
        dilation = 2 if op.startswith("dil") else 1
        for depthwise, pointwise, norm in zip(module.depthwise, module.pointwise, module.bn, strict=True):
            x = convolve(depthwise, x.relu(), padding=dilation * (k // 2), dilation=dilation, groups=x.shape[1])
            x = bn(norm, convolve(pointwise, x))
        return x
    x = bn(module.bn, x).relu()
    if op.startswith("deconv"):
        out = F.conv_transpose2d(x, module.conv.weight, module.conv.bias, stride=factor, padding=(k - factor) // 2)
        macs.append(x[0].numel() * module.conv.weight[0].numel() + out[0].numel())
        return out
    return convolve(module.conv, F.interpolate(x, scale_factor=float(factor)), padding=k // 2)


def randomised(net: nn.Module) -> nn.Module:
    """The net in float64, every parameter drawn anew: so that no scale is 1 and no bias 0."""
    with torch.no_grad():
        for i, p in enumerate(net.double().parameters()):
            p.copy_(0.5 * normal(*p.shape, seed=i))
    return net


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("n", [1, 2])
def test_generators_are_their_definition(n: int, classes: int):
    z, y = normal(5, 6), torch.tensor([0, 1, 2, 2, 0]) if classes else None
    for genotype in [FOUND] * (n == 1) + random_genotypes(8, n):
        G, macs = randomised(Generator(genotype, 4, 6, 16, classes)), [4 * 4 * (6 + 1) + 16 * 16 * (27 * 4 + 3)]
        maps = {"U0": G.head(z).reshape(5, 4, 2, 2)}
        for c in Space(n).connections:
            for source, op in genotype[c.target]:
                if source == c.source:
                    made = paper_op(op, G.ops[c.name], maps[source], c.factor, y, macs)
                    maps[c.target] = maps.get(c.target, 0) + made
        norm, _, conv, _ = G.tail
        x = F.batch_norm(maps["U3"], None, None, norm.weight, norm.bias, training=True).relu()
        torch.testing.assert_close(G(z, y), F.conv2d(x, conv.weight, conv.bias, padding=1).tanh())
        assert Generator.cost(genotype, 4, 6, 16, classes) == Cost(count_params(G), sum(macs))


@torch.no_grad()
def test_the_supernet_is_the_sum_of_its_candidates():
    space = Space(2)
    net, z = randomised(SuperG(space, 4, 6, 16)), normal(5, 6)
    assert SuperG.cost(space, 4, 6, 16).params == count_params(net)
    p = {c.name: normal(len(space.ops(c)), seed=i).softmax(0) for i, c in enumerate(space.connections)}
    maps = {"U0": net.head(z).reshape(5, 4, 2, 2)}
    for c in space.connections:
        maps[c.target] = maps.get(c.target, 0) + plain(net.mixed[c.name], maps[c.source], p[c.name])
    torch.testing.assert_close(net(z, p), net.tail(maps["U3"]))
    pool = net.mixed["U0->N1_1"]["max_pool_3x3"](maps["U0"])  # in the supernet a BatchNorm follows a pool
    torch.testing.assert_close(pool.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_multiply_adds_of_the_supernet_at_the_papers_width():
    """By the prototype's count, which leaves biases out: 1.387 and 3.121 GMAC."""
    assert SuperG.cost(Space(), 128, 128, 32).macs == 1_389_188_096
    assert SuperG.cost(Space(), 128, 128, 32).macs / 1e9 == pytest.approx(1.387, abs=0.005)
    assert SuperG.cost(Space(), 128, 128, 48).macs / 1e9 == pytest.approx(3.121, abs=0.005)


def test_an_op_of_ones_own_needs_a_line_in_a_table_and_its_multiply_adds(monkeypatch: pytest.MonkeyPatch):
    class Doubled(nn.Module):
        def __init__(self, ch: int, factor: int, classes: int | None) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((ch, 1, 1), 2.0))

        def forward(self, x: Tensor, _y: Tensor | None = None) -> Tensor:
            return self.scale * x

    monkeypatch.setitem(OPS, "doubled", Doubled)
    space = Space(1, (*NORMAL, "doubled"))
    rows = {c.name: [float(op == "doubled") for op in space.ops(c)] for c in space.connections}
    genotype = prune(alpha_of(rows, space))
    assert genotype["N2"] == (("U1", "doubled"),)
    assert space.check(genotype, "own") == genotype
    assert "N2 doubled" in Space.text(genotype)
    assert Generator(genotype, 4, 6, 16)(normal(2, 6).float()).shape == (2, 3, 16, 16)
    assert SuperG(space, 4, 6, 16)(normal(2, 6).float(), alpha_of(rows, space).probabilities()).shape == (2, 3, 16, 16)
    with pytest.raises(TypeError, match="needs a method macs"):
        Generator.cost(genotype, 4, 6, 16)
    Doubled.macs = lambda _op, side: 4 * side**2
    plain_one = {node: (((entry[0][0], "skip_connect"),) if node[0] == "N" else entry) for node, entry in genotype.items()}
    more = sum(4 * side**2 for side in (2, 4, 8))
    assert Generator.cost(genotype, 4, 6, 16) == Generator.cost(plain_one, 4, 6, 16) + Cost(3 * 4, more)
    with pytest.raises(KeyError, match="tripled"):
        Generator.cost({**FOUND, "N1": (("U0", "tripled"),)}, 4, 6, 16)


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, 3])
def test_the_baseline_generator_is_ct_gans(classes: int):
    G, z, y = randomised(Generator("baseline", 4, 6, 16, classes)), normal(5, 6), torch.tensor([0, 1, 2, 2, 0])
    x, label = G.head(z).reshape(5, 4, 2, 2), y if classes else None
    convs = sum(2 * (9 * 16 + 4) * side**2 + (16 + 4) * side**2 for side in (4, 8, 16))
    macs = 4 * 4 * (6 + 1) + 16 * 16 * (27 * 4 + 3) + convs
    assert Generator.cost("baseline", 4, 6, 16, classes) == Cost(count_params(G), macs)
    for block in G.ops.values():
        main = F.interpolate(block.bn1(x, label).relu(), scale_factor=2.0)
        main = block.bn2(F.conv2d(main, block.conv1.weight, block.conv1.bias, padding=1), label).relu()
        main = F.conv2d(main, block.conv2.weight, block.conv2.bias, padding=1)
        up = F.interpolate(x, scale_factor=2.0)
        x = main + F.conv2d(up, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(G(z, label), G.tail(x))


@torch.no_grad()
def test_the_critic_is_its_definition():
    D, x, macs = randomised(Critic(6, 3)).eval(), normal(2, 3, 16, 16), [6 + 1, 3 * (6 + 1)]

    def conv(layer: nn.Module, x: Tensor, k: int) -> Tensor:
        out = F.conv2d(x, layer.weight, layer.bias, padding=k // 2)
        macs.append(out[0].numel() * (layer.weight[0].numel() + 1))
        return out

    for i, block in enumerate(D.blocks):
        main = conv(block.conv2, conv(block.conv1, x if i == 0 else x.relu(), 3).relu(), 3)
        if i == 0:
            x = F.avg_pool2d(main, 2) + conv(block.shortcut, F.avg_pool2d(x, 2), 1)
        elif i == 1:
            x = F.avg_pool2d(main, 2) + F.avg_pool2d(conv(block.shortcut, x, 1), 2)
        else:
            x = main + x
    features = x.relu().mean((2, 3))
    want = (
        F.linear(features, D.out.weight, D.out.bias)[:, 0],
        features,
        F.linear(features, D.classes.weight, D.classes.bias),
    )
    found = [out.double() for out in D(normal(2, 3, 16, 16))]
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # the outputs are float32
    assert Critic.cost(6, 16, 3) == Cost(count_params(D), sum(macs))
    assert Critic.cost(6, 16).macs == sum(macs) - 3 * (6 + 1)


def test_initial_weights_have_ct_gans_scale():
    torch.manual_seed(0)
    G, D = Generator(FOUND), Critic()
    pre = Generator("baseline")
    for layer, s in (
        (pre.ops["U0->U1"].conv1, 0.041667), (G.ops["N1->U1"].conv, sqrt(4 / (128 * 36 / 4 + 128 * 36))),
        (G.ops["U1->N2"].conv, sqrt(4 / 256)), (G.ops["U0->N1"].depthwise[0], sqrt(4 / 50)),
        (pre.ops["U0->U1"].shortcut, sqrt(2 / 256)), (G.tail[2], sqrt(2 / (9 * 131))), (G.head, sqrt(2 / (128 + 2048))),
        (D.blocks[1].shortcut, sqrt(2 / 256)), (D.blocks[2].conv1, 0.041667), (D.out, sqrt(2 / 129)),
    ):  # fmt: skip
        assert layer.weight.std().item() == pytest.approx(s, rel=0.1)
        assert layer.weight.abs().max() <= sqrt(3) * s * 1.0001
        assert layer.bias is None or not layer.bias.any()
    assert sqrt(4 / (128 * 16 / 4 + 128 * 16)) == pytest.approx(0.039528, abs=1e-6)


# ---- CT-GAN ----------------------------------------------------------------------------------------------------------


def test_fact_22_the_critic():
    for classes, want in ((0, 1_053_825), (10, 1_055_115)):
        assert params_of(lambda: Critic(128, classes)) == Critic.cost(128, 32, classes).params == want  # noqa: B023
    assert Critic.cost().macs == 272_498_817
    for size in (32, 48):
        D, sides = Critic(), []
        for block in D.blocks:
            block.register_forward_hook(lambda _m, _x, y: sides.append(y.shape[-1]))  # noqa: B023
        scores, features, logits = D(normal(2, 3, size, size).float())
        assert (scores.shape, features.shape, logits) == ((2,), (2, 128), None)
        assert sides == [size // 2, *[size // 4] * 3]


def test_fact_22_dropout_stands_behind_the_last_three_blocks(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(F, "dropout", lambda x, p, training: seen.append((p, training)) or x)
    Critic(4)(normal(1, 3, 8, 8).float())
    assert [s for s in seen if s[0]] == [(0.2, True), (0.5, True), (0.5, True)]


def test_fact_23_consistency_by_hand():
    d1, d2 = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 2.0])
    f1 = torch.zeros(2, 128)
    f2 = f1.clone()
    f2[0] = 0.2
    assert degas.consistency(d1, d2, f1, f2).item() == pytest.approx(0.254)
    assert degas.consistency(d1[:1], d2[:1], f1[:1], f2[:1]).item() == pytest.approx(0.508)
    assert degas.consistency(d1, d2, f1, f2, 0.1).item() == pytest.approx(0.204)


def test_fact_23_consistency_is_positive_with_dropout_and_zero_without():
    D, x = Critic(8), normal(4, 3, 16, 16).float()

    def value() -> float:
        (d1, f1, _), (d2, f2, _) = D(x), D(x)
        return degas.consistency(d1, d2, f1, f2).item()

    assert value() > 0
    D.eval()
    assert value() == 0


@pytest.mark.parametrize(("norm", "want"), [(3.0, 40.0), (1.0, 0.0)])
def test_fact_24_penalty_of_a_linear_critic(norm: float, want: float):
    w = F.normalize(normal(1, 3 * 8 * 8).float()) * norm
    D = SimpleNamespace(forward=lambda x: (x.flatten(1) @ w.T,))
    real, fake, mix = normal(4, 3, 8, 8).float(), normal(4, 3, 8, 8, seed=1).float(), torch.rand(4, 1, 1, 1)
    assert degas.gradient_penalty(D, real, fake, mix).item() == pytest.approx(want, abs=1e-4)


def test_fact_24_the_penalty_is_taken_between_the_images_and_reaches_the_weights():
    seen, D = [], Critic(4)
    forward = D.forward
    D.forward = lambda x: seen.append(x) or forward(x)
    real, fake, mix = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8), torch.tensor([0.25, 1.0])[:, None, None, None]
    degas.gradient_penalty(D, real, fake, mix).backward()
    torch.testing.assert_close(seen[0], mix.expand(2, 3, 8, 8))
    assert D.blocks[0].conv1.weight.grad.abs().max() > 0


def test_the_losses_are_those_of_a_wasserstein_gan():
    real, fake = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, -1.5])
    assert degas.d_loss(real, fake).item() == pytest.approx(-0.5 - 3.0)
    assert degas.g_loss(fake).item() == degas.g_loss(fake, real).item() == pytest.approx(0.5)


def test_fact_26_bytes_become_intervals():
    for byte, low, high in ((0, -1.0, -0.9921875), (255, 0.9921875, 1.0)):
        x = degas.dequantise(torch.full((1, 3, 64, 64), byte, dtype=torch.uint8), stream(0, "x"))
        assert low <= x.min() < low + 1e-5
        assert high - 1e-5 < x.max() < high
    every = torch.arange(256, dtype=torch.uint8).repeat(64).view(1, 1, 128, 128)
    back = degas.quantise(degas.dequantise(every, stream(0, "y"))).int() - every
    assert set(back.unique().tolist()) == {-1, 0}  # 127.995 is not 128
    assert (back != 0).float().mean() < 0.01
    assert degas.quantise(torch.tensor([-1.0, 1.0, -7.0, 7.0, torch.nan])).tolist() == [0, 255, 0, 255, 0]


def test_fact_27_conditional_batch_norm():
    plain, conditional, x = degas.BatchNorm(4), degas.BatchNorm(4, 3), normal(5, 4, 6, 6).float()
    y = torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(conditional(x, y), plain(x))
    assert torch.equal(conditional.running_var, plain.running_var)
    scale, shift = normal(4).float(), normal(4, seed=1).float()
    with torch.no_grad():
        for norm in (plain, conditional):
            norm.weight.copy_(scale.expand_as(norm.weight))
            norm.bias.copy_(shift.expand_as(norm.bias))
    torch.testing.assert_close(conditional(x, y), plain(x), rtol=1e-5, atol=1e-5)
    assert (plain.weight.shape, conditional.weight.shape) == ((4,), (3, 4))


def test_fact_27_labels_enter_the_searched_ops_alone():
    G, z = Generator(FOUND, 4, 6, 16, 3), normal(3, 6).float()
    one, two = (torch.full((3,), label) for label in (1, 2))
    assert torch.equal(G(z, one), G(z, two))
    norms = {name: m for name, m in G.named_modules() if isinstance(m, degas.BatchNorm)}
    assert {name for name, m in norms.items() if m.weight.dim() == 1} == {"tail.0"}
    assert len(norms) == 1 + 8
    nn.init.normal_(norms["ops.U1->N2.bn"].weight)
    assert not torch.equal(G(z, one), G(z, two))


@pytest.mark.parametrize("batch_stats", [True, False])
def test_evaluation_takes_the_statistics_it_is_told_and_changes_none(batch_stats: bool):
    norm, x = degas.BatchNorm(4), 3 + 2 * normal(8, 4, 5, 5).float()
    norm(x)
    before = [b.clone() for b in norm.buffers()]
    norm.eval().batch_stats = batch_stats
    out = norm(x)
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
    assert (out.mean().abs().item() < 1e-5) == batch_stats


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_a_generator_is_told_whence_its_batch_norms_have_their_statistics(statistics: str):
    G = Generator(FOUND, 4, 6, 16).evaluate_with(statistics)
    norms = [m for m in G.modules() if isinstance(m, degas.BatchNorm)]
    assert len(norms) == 1 + 8
    assert all(m.batch_stats == (statistics == "batch") for m in norms)


class Counted:
    """A critic step and a G step on tiny networks, with what the critic sees."""

    def __init__(self, labels: bool) -> None:
        classes = 2 if labels else 0
        self.job = job_of(TINY, random_images(8))
        self.labels = torch.arange(8) % 2 if labels else None
        torch.manual_seed(0)
        self.G, self.D = Generator(FOUND, 4, 6, 16, classes), Critic(4, classes)
        self.nets = gan.pair_of(self.job, self.G, self.D)
        self.seen = []
        forward = self.D.forward
        self.D.forward = lambda x: self.seen.append((self.D.training, len(x))) or forward(x)

    def critic(self, batch: int = 0) -> dict[str, Tensor]:
        return degas.critic_step(self.job, self.nets, self.labels, batch)

    def generator(self, step: int = 0) -> dict[str, Tensor]:
        return degas.generator_step(self.job, self.nets, step)


@pytest.mark.parametrize("labels", [False, True])
def test_a_critic_step_moves_the_critic_and_a_g_step_the_generator(labels: bool):
    s = Counted(labels)
    g, d = copy_of(s.G), copy_of(s.D)
    parts = s.critic()
    assert s.seen == [(True, 12), (True, 4)]  # real twice and fake; the penalty's images. Dropout is on in all of them
    assert parts.keys() == {"wasserstein", "ct", "gp"} | ({"d_class"} if labels else set())
    assert parts["ct"] > 0
    assert same(g, copy_of(s.G))
    assert all(p.grad is None for p in s.G.parameters())
    assert not same(d, copy_of(s.D))
    d, s.seen = copy_of(s.D), []
    parts = s.generator()
    assert [on for on, _ in s.seen] == [True]
    assert parts.keys() == {"g"} | ({"g_class"} if labels else set())
    assert same(d, copy_of(s.D))
    assert not same(g, copy_of(s.G))


def test_the_consistency_terms_gradient_goes_through_both_passes(monkeypatch: pytest.MonkeyPatch):
    s, seen, consistency = Counted(False), [], degas.consistency

    def watched(*values: Tensor) -> Tensor:
        for v in values:
            v.retain_grad()
        seen.extend(values)
        return consistency(*values)

    monkeypatch.setattr(degas, "consistency", watched)
    s.critic()
    d1, d2, f1, f2 = seen
    # the Wasserstein term pulls d1 by -1/4 a sample; what is left is opposite in the two passes
    torch.testing.assert_close(d1.grad + 1 / 4, -d2.grad)
    torch.testing.assert_close(d2.grad, -4 / 4 * (d1 - d2).detach())
    torch.testing.assert_close(f1.grad, -f2.grad)
    assert f1.grad.abs().max() > 0


def test_the_class_losses_are_those_of_ac_gan(monkeypatch: pytest.MonkeyPatch):
    s, seen, cross_entropy = Counted(True), [], F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda logits, y: seen.append(y) or cross_entropy(logits, y))
    d, g = s.critic(), s.generator()
    assert torch.equal(seen[0], s.labels[s.job.batches.indices(0)])  # of the real images alone, in the first pass
    assert torch.equal(seen[1], degas.uniform_labels(s.job, 4, 2, "g", 0))
    assert (degas.D_CLASS, degas.G_CLASS) == (1.0, 0.1)
    assert d["d_class"].item() == pytest.approx(log(2), abs=0.5)
    assert g["g_class"].item() == pytest.approx(0.1 * log(2), abs=0.05)


def test_steps_are_functions_of_seed_and_step_whatever_was_drawn_before():
    def two(disturb: bool) -> list[Tensor]:
        s = Counted(False)
        for k in range(2):
            if disturb:
                torch.manual_seed(99)
                torch.rand(7)
            s.critic(k)
            s.generator(k)
        return copy_of(s.G, s.D)

    assert same(two(False), two(True))


@torch.no_grad()
def test_evaluations_draw_labels_for_whole_batches_and_grids_have_a_class_a_row():
    job, G, seen = job_of(TINY, random_images(8)), Generator(FOUND, 4, 6, 16, 3), []
    G.forward = lambda z, y=None: seen.append(y) or z
    generate = G.labelled(job)
    z = normal(100, 6).float()
    assert torch.equal(generate(z, 7), z)
    generate(z[:20], 7)
    generate(z[:64], "grid")
    whole, part, grid = seen
    assert torch.equal(whole, degas.uniform_labels(job, 100, 3, "eval", 7))
    assert torch.equal(part, whole[:20])
    assert grid.view(8, 8).tolist() == [[row % 3] * 8 for row in range(8)]
    plain = Generator(FOUND, 4, 6, 16)
    plain.forward = lambda z, y=None: seen.append(y) or z
    plain.labelled(job)(z, 7)
    assert seen[-1] is None


# ---- genotypes from outside ------------------------------------------------------------------------------------------


def with_inputs(node: str, inputs: object) -> dict:
    return {**FOUND, node: inputs}


@pytest.mark.parametrize(
    ("nodes", "n", "parts"),
    [
        (with_inputs("N1", [["U0", "conv_7x7"]]), 1, ["N1", "conv_7x7", "sep_conv_3x3"]),
        (with_inputs("N1", [["U0", "deconv_4"]]), 1, ["N1: ['U0', 'deconv_4'] is no input", "[U0, conv_1x1]"]),
        (with_inputs("N1", [["U0", "conv_1x1"], ["U0", "conv_1x1"]]), 1, ["N1", "no input here; use no second one"]),
        (with_inputs("U1", [["N1", "conv_3x3"]]), 1, ["U1: ['N1', 'conv_3x3'] is no input", "[N1, nn_conv_1]"]),
        (with_inputs("U1", [["N1", "none"]]), 1, ["U1: ['N1', 'none'] is no input"]),
        (
            with_inputs("U1", [["N1", "deconv_4"], ["U0", "none"]]),
            1,
            ["U1: ['U0', 'none'] is no input", "[U0, deconv_4]"],
        ),
        (
            with_inputs("U1", [["U0", "deconv_4"], ["N1", "deconv_4"]]),
            1,
            ["U1: ['U0', 'deconv_4'] is no", "[N1, deconv_6]"],
        ),
        (
            with_inputs("U2", [["N2", "deconv_4"], ["N2", "deconv_4"]]),
            1,
            ["U2: ['N2', 'deconv_4'] is no", "[U0, deconv_6]"],
        ),
        (
            with_inputs("U3", [["N3", "deconv_4"], ["U0", "deconv_4"]]),
            1,
            ["U3: ['U0', 'deconv_4'] is no", "[U2, nn_conv_3]"],
        ),
        (
            with_inputs("U3", [["N3", "deconv_4"], ["U1", "deconv_4"], ["U2", "deconv_4"]]),
            1,
            ["U3", "one or two inputs"],
        ),
        (with_inputs("U3", []), 1, ["U3", "one or two inputs"]),
        (with_inputs("U3", [[["N3"], "deconv_4"]]), 1, ["U3", "no input"]),
        (with_inputs("U3", "N3"), 1, ["U3", "one or two inputs"]),
        ({k: v for k, v in FOUND.items() if k != "N2"}, 1, ["nodes must be those of n = 1"]),
        ({**FOUND, "N4": []}, 1, ["nodes must be those of n = 1"]),
        (FOUND, 2, ["nodes must be those of n = 2", "N1_2"]),
        (FOUND, "1", ["n is '1'"]),
        (FOUND, True, ["n is True"]),
        (FOUND, 9, ["n is 9", "1 to 8"]),
        (7, 1, ["nodes must be those of n = 1", "7"]),
    ],
)
def test_a_genotype_that_is_none_is_refused_by_name(nodes: object, n: object, parts: list[str]):
    with pytest.raises(UserError) as e:
        Space(n).check(nodes, "there.json")
    assert all(part in str(e.value) for part in ["there.json", *parts]), e.value


def test_small_images_are_means_over_an_area():
    images = (torch.arange(32 * 32) % 251).to(torch.uint8).view(1, 1, 32, 32).expand(2, 3, 32, 32).contiguous()
    _, s = search_of(replace(TINY, size=32, search_images=2, search_batch=2), images)
    assert s.images.shape == (2, 3, 16, 16)
    areas = images[0, 0].double().unfold(0, 2, 2).unfold(1, 2, 2).mean((2, 3))
    assert s.images[0, 0].tolist() == [[round(v) for v in row] for row in areas.tolist()]  # rounded to even


def test_a_search_takes_so_many_images_in_an_order_of_the_seed():
    images = random_images(12)
    some, again, other = (search_of(replace(TINY, search_images=5, seed=k), images)[1].images for k in (0, 0, 1))
    assert torch.equal(some, again)
    assert not torch.equal(some, other)
    known = {image.numpy().tobytes() for image in images}
    assert len({image.numpy().tobytes() for image in some} & known) == 5


def test_the_loss_of_the_mean_image():
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    images[2:] = 255
    _, s = search_of(replace(TINY, search_images=4), images)
    assert s.mean_loss.item() == pytest.approx(2.0)  # 1 squared + 1, whole images off


def test_principal_components_reconstruct_better_than_chance():
    images = degas.quantise(F.interpolate(normal(64, 3, 4, 4).float(), size=16, mode="bilinear"))
    args = replace(TINY, z_init="pca", z_dim=8, search_images=64)
    _, s = search_of(args, images)
    Z = s.Z
    torch.manual_seed(5)
    assert torch.equal(Z, s.first_latents(args))
    flat = degas.scaled(s.images).flatten(1)
    flat = flat - flat.mean(0)
    left = flat - Z @ torch.linalg.lstsq(Z, flat).solution
    assert Z.shape == (64, 8)
    assert left.square().sum() < 0.8 * flat.square().sum()
