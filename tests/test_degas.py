"""DEGAS's counts, Laplacian loss, search steps, pruning, networks and CT-GAN steps, against paper and definitions.

Paper: arXiv 1912.00606. Where it is silent: DARTS, GLO, CT-GAN, and docs/degas.md.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, permutations, product
from math import log, prod, sqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cells import convolve, normal
from torch import Tensor, nn

import degas
from common import gan
from common.cells import Cost, count_params
from common.data import Dataset, shapes
from common.files import UserError, stream
from degas import OPS, OPS_NORMAL, Alpha, Args, Critic, Generator, Search, Space, SuperG, prune
from tests.reference import job_of
from tests.runs import assert_equal, load, read, rows, slow, start

pytestmark = pytest.mark.usefixtures("quick_compact")

NORMAL = tuple(OPS_NORMAL)
EXAMPLE = {  # alpha of connections of a worked example
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
FOUND = dict(  # what pruning makes of it
    N1=(("U0", "sep_conv_5x5"),), U1=(("N1", "deconv_6"), ("U0", "deconv_4")),
    N2=(("U1", "conv_1x1"),), U2=(("N2", "nn_conv_3"),),
    N3=(("U2", "skip_connect"),), U3=(("N3", "deconv_6"), ("U1", "deconv_4")),
)  # fmt: skip
TINY = Args(
    size=16, search_size=16, search_images=12, lap_levels=2, w_lr=0.3, search_ch=4, g_ch=4, d_ch=4, z_dim=6,
    search_batch=4, g_batch=4, d_batch=4, g_lr=1e-3, d_lr=1e-3,
)  # fmt: skip
LABELS = torch.tensor([0, 1, 2, 2, 0])
SIGNS = torch.tensor([1.0, -1.0])


def alpha_of(rows: dict[str, list[float]], space: Space = Space()) -> Alpha:  # noqa: B008
    """Alpha with these rows, zero in all others."""
    alpha = Alpha(space, 0, 0.0)
    own = alpha.rows()
    with torch.no_grad():
        for name, row in rows.items():
            own[name].copy_(torch.tensor(row))
    return alpha


def random_genotypes(count: int, n: int = 1) -> list[degas.Genotype]:
    return [prune(Alpha(Space(n), seed, 1.0)) for seed in range(count)]


@pytest.fixture
def labelled(undisturbed: Callable) -> Path:
    """A training with labels, on the genotype of random alpha."""
    return undisturbed("degas", conditional=True, random_arch=True)


# ---- search space (§3) -----------------------------------------------------------------------------------------------


def test_connections():
    kinds = {kind: [c for c in Space().connections if c.kind == kind] for kind in ("normal", "up", "residual")}
    assert {kind: " ".join(c.name for c in found) for kind, found in kinds.items()} == {
        "normal": "U0->N1 U1->N2 U2->N3",
        "up": "N1->U1 N2->U2 N3->U3",
        "residual": "U0->U1 U0->U2 U1->U2 U1->U3 U2->U3",
    }
    factors = {kind: [c.factor for c in found] for kind, found in kinds.items()}
    assert factors == {"normal": [1, 1, 1], "up": [2, 2, 2], "residual": [2, 4, 2, 4, 2]}
    assert len(Space(2).connections) == 17
    assert prod(len(Space().ops(c)) for c in Space().connections) == 145_800_000  # one op on each


@pytest.mark.parametrize(
    ("args", "of_a_stage", "networks"),
    [
        (Args(normal_ops="7"), [7], 4**3 * 7**3 * 5 * 9**2),  # §3: the paper's number
        (Args(normal_ops="9"), [9], 18_895_680),
        (Args(n=2), [9, 90], 13_774_950_720_000),
    ],
    ids=["7", "9", "n = 2"],
)
def test_pruning_ends_in_as_many_networks_as_the_paper_counts(args: Args, of_a_stage: list[int], networks: int):
    """Every choice of a leading op on every connection into a node, and of the connection that leads."""
    space, found = args.space, []
    for node, entries in space.nodes.items():
        outcomes = set()
        for leading in product(*(space.ops(c) for c in entries)):
            for ranks in permutations(range(len(entries))):
                rows = {c.name: [0.0] * len(space.ops(c)) for c in entries}
                for c, op, rank in zip(entries, leading, ranks, strict=True):
                    rows[c.name][space.ops(c).index(op)] = 1.0 + rank
                outcomes.add(prune(alpha_of(rows, space))[node])
        found.append(len(outcomes))
    assert found == [*of_a_stage, 20, *of_a_stage, 36, *of_a_stage, 36]
    assert prod(found) == networks


def test_sizes_at_the_papers_width():
    of_ops = {
        **{"conv_1x1": 16_768, "conv_3x3": 147_840, "max_pool_3x3": 0, "avg_pool_3x3": 0, "skip_connect": 0},
        **{"sep_conv_3x3": 35_584, "sep_conv_5x5": 39_680, "dil_conv_3x3": 17_792, "dil_conv_5x5": 19_840},
        **{"deconv_4": 262_528, "deconv_6": 590_208, "nn_conv_1": 16_768, "nn_conv_3": 147_840},
    }
    for factor in (2, 4):
        assert {op: count_params(OPS[op](128, factor, 0)) for op in of_ops} == of_ops
    assert count_params(SuperG(Space())) == SuperG.cost(Space()).params == 9_224_835
    for genotype, size, classes, params in (
        (FOUND, 32, 0, 2_177_667),
        (FOUND, 32, 10, 2_196_099),
        ("baseline", 48, 0, 1_534_723),
    ):
        shape = 128, 128, size, classes
        assert count_params(Generator(genotype, *shape)) == Generator.cost(genotype, *shape).params == params
    assert count_params(Critic(128, 10)) == Critic.cost(128, 32, 10).params == 1_055_115
    assert SuperG.cost(Space(), 128, 128, 48).macs / 1e9 == pytest.approx(3.121, abs=0.005)


# ---- the loss (§3.2) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "sums", "weighted"),
    [
        (torch.full((8, 8), 0.5), [0, 0, 2], 32),
        (F.pad(torch.ones(1, 1), (4, 3, 4, 3)), [55 / 32, 1 / 4], 87 / 32),
        (F.pad(torch.ones(1, 1), (4, 3, 4, 3)), [55 / 32, 14_889 / 65_536, 14_641 / 262_144], 28_845 / 8192),
        (F.pad(torch.ones(1, 1), (16, 15, 16, 15)), [55 / 32, None, None, None], 2_475_519 / 524_288),
        (SIGNS.repeat_interleave(4).expand(8, 8), [12, 13], 64),
        (SIGNS.repeat_interleave(16).expand(32, 32), [48, 16.5, 489 / 64, 3151 / 256], 1024),
        (SIGNS.repeat(4).expand(8, 8), [58, 2.5], 68),
        (SIGNS.repeat(4).outer(SIGNS.repeat(4)), [1015 / 16, 25 / 64], 65),
    ],
    ids=["constant", "impulse", "impulse, 2 levels", "impulse, 32 px", "step", "step, 32 px", "stripes", "checkerboard"],
)
def test_losses_worked_out_by_hand(x: Tensor, sums: list[float], weighted: float):
    """||x||^2 + sum_j 4^j |L^j(x)|_1 of a difference x of one image; the mean form is over its numbers."""
    x, levels = x[None, None].double(), len(sums) - 1
    for band, want in zip(degas.pyramid(x, levels), sums, strict=True):
        assert want is None or band.abs().sum().item() == pytest.approx(want, abs=1e-12)
    total = weighted + x.square().sum().item()
    for batch in (x, x.expand(5, -1, -1, -1)):
        image = normal(*batch.shape)  # of which the difference is one
        for a, b in ((image + batch, image), (image, image + batch)):
            assert degas.reconstruction_loss(a.float(), b.float(), levels, "sum").item() == pytest.approx(total, rel=1e-5)
            assert degas.reconstruction_loss(a.float(), b.float(), levels).item() == pytest.approx(total / x.numel(), rel=1e-5)


# ---- search (§3.2, GLO, DARTS) ---------------------------------------------------------------------------------------


def random_images(count: int, size: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=stream(0, "images"), dtype=torch.uint8)


def smooth_images(count: int) -> Tensor:
    return degas.quantise(F.interpolate(normal(count, 3, 4, 4).float(), size=16, mode="bilinear"))


def search_of(images: Tensor | None = None, **changes: object) -> tuple[gan.Job, Search]:
    args = replace(TINY, **changes)
    job = job_of(args, random_images(args.search_images) if images is None else images)
    return job, Search(job)


def copy_of(*nets: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for net in nets for p in net.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("how", "factor"), [({}, 4), ({"z_init": "pca", "z_grad": "batch"}, 1)], ids=["image", "pca, batch"])
def test_a_step_moves_the_network_and_the_latents_of_its_batch(how: dict, factor: int):
    """Each latent along the gradient of its own loss, or of the batch's, and back into the ball."""
    (job, s), i = search_of(z_lr=1e-3, **how), torch.tensor([7, 2, 9, 4])
    s.Z *= 0.5  # so that the ball does not cut the step
    z, before, w, alpha = s.Z[i].requires_grad_(), s.Z.clone(), copy_of(s.net), copy_of(s.alpha)
    loss = degas.reconstruction_loss(s.net(z, s.alpha.probabilities()), degas.scaled(s.images[i]), 2)
    (gradient,) = torch.autograd.grad(loss, z)
    degas.zw_step(job, s, i, 0.2)
    torch.testing.assert_close(s.Z[i] - before[i], -2e-4 * factor * gradient, rtol=1e-3, atol=1e-7)
    assert (before != s.Z).any(1).nonzero().flatten().tolist() == [2, 4, 7, 9]
    assert same(alpha, copy_of(s.alpha))
    assert not same(w, copy_of(s.net))
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(degas.project_ball(rows), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    s.Z[i] = 5 * s.Z[i]
    degas.zw_step(job, s, i, 0.2)
    assert (s.Z[i].norm(dim=1) <= 1 + 1e-6).all()


def test_a_step_of_alpha_moves_alpha_alone():
    (job, s), i = search_of(), torch.tensor([0, 1, 2, 3])
    alpha, rest = copy_of(s.alpha), [*copy_of(s.net), s.Z.clone()]
    degas.alpha_step(job, s, i)
    assert not any(torch.equal(a, b) for a, b in zip(alpha, copy_of(s.alpha), strict=True))
    assert same(rest, [*copy_of(s.net), s.Z])


def test_optimisers_and_rates():
    """w's rate falls as a cosine from 0.03 on every data set. The rest is DARTS's."""
    data, rates = Dataset("x", torch.zeros(99, 3, 32, 32, dtype=torch.uint8), None, "0"), {0: 0.03, 25: 0.0155, 49: 0.0010286}
    for dataset in ("cifar10", "stl10", "celeba"):
        args = degas.resolve(Args(dataset=dataset), data)
        assert {epoch: args.w_lr_in(epoch) for epoch in rates} == pytest.approx(rates, abs=5e-7)
    _, s = search_of()
    (sgd,), (adam,) = s.w_opt.param_groups, s.a_opt.param_groups
    assert (type(s.w_opt), sgd["momentum"], sgd["weight_decay"]) == (torch.optim.SGD, 0.9, 3e-4)
    assert (type(s.a_opt), adam["lr"], adam["betas"]) == (torch.optim.Adam, 3e-4, (0.5, 0.999))
    assert 0 < max(table.abs().max() for table in s.alpha.values()) < 5e-3


@pytest.mark.slow
def test_the_search_stays_alive_at_the_default_rate():
    """At 0.3, 14 of the 16 channels before the last convolution are dead after these steps."""
    images = F.interpolate(shapes(512).images.float(), size=16, mode="area").round().byte()
    job, s = search_of(images, search_ch=16, z_dim=128, search_images=512, search_batch=32, w_lr=Args().w_lr)
    for step in range(80):
        loss = degas.zw_step(job, s, s.batches.indices(step), job.args.w_lr)
        degas.alpha_step(job, s, s.batches.indices(step))
    seen = []
    s.net.tail[2].register_forward_pre_hook(lambda _, given: seen.append(given[0] > 0))
    s.net(s.Z[:256], s.alpha.probabilities())
    assert seen[0].any(dim=3).any(dim=2).any(dim=0).all()
    assert seen[0].float().mean() > 0.2
    assert loss < 0.75 * s.mean_loss


def test_alpha_moves_as_under_the_sum_that_the_paper_prints():
    """The mean divides alpha's gradient by 3 size²; its decay, 1e-3 for the sum, shrinks with it."""
    moved, start = [], {"U0->N1": [2.0, -2.0, 1.0]}  # far from 0, so that decay matters
    for reduction in ("mean", "sum"):
        job, s = search_of(loss_reduction=reduction, arch_lr=1e-2)
        with torch.no_grad():
            for name, row in start.items():
                s.alpha.rows()[name][: len(row)] = torch.tensor(row)
        for step in range(5):
            degas.alpha_step(job, s, s.batches.indices(step))
        moved.append(torch.cat([p.detach().flatten() for p in s.alpha.parameters()]))
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-4)


def test_small_images_are_means_over_an_area():
    images = random_images(4, 32)
    _, s = search_of(images, size=32, search_images=4)
    areas = images.double().unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean((3, 5)).round().byte()  # to even
    assert torch.equal(s.images.flatten(1).sort(0).values, areas.flatten(1).sort(0).values)


def test_a_search_takes_so_many_images_in_an_order_of_the_seed():
    images = random_images(12)
    some, again, other = (search_of(images, search_images=5, seed=seed)[1].images for seed in (0, 0, 1))
    assert torch.equal(some, again)
    assert not torch.equal(some, other)
    known = {image.numpy().tobytes() for image in images}
    assert len({image.numpy().tobytes() for image in some} & known) == 5


def test_the_loss_of_the_mean_image():
    images = torch.tensor([0, 0, 255, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 16, 16)
    assert search_of(images, search_images=4)[1].mean_loss.item() == pytest.approx(2.0)  # 1 squared + 1


def test_principal_components_reconstruct_better_than_chance():
    _, s = search_of(smooth_images(64), z_init="pca", z_dim=8, search_images=64)
    torch.manual_seed(5)
    assert torch.equal(s.Z, s.first_latents(replace(TINY, z_init="pca", z_dim=8)))
    flat = degas.scaled(s.images).flatten(1)
    flat = flat - flat.mean(0)
    left = flat - s.Z @ torch.linalg.lstsq(s.Z, flat).solution
    assert s.Z.shape == (64, 8)
    assert left.square().sum() < 0.8 * flat.square().sum()


# ---- pruning and genotypes (§3.3) ------------------------------------------------------------------------------------


def test_pruning_of_the_worked_example():
    assert prune(alpha_of(EXAMPLE)) == FOUND
    assert Space.text(FOUND) == "N1 sep5 | U1 d6+U0:d4 | N2 c1 | U2 n3 | N3 skip | U3 d6+U1:d4"
    flipped = prune(alpha_of({**EXAMPLE, "U1->U2": [0.50, *EXAMPLE["U1->U2"][1:]]}))  # a weaker none
    assert flipped == {**FOUND, "U2": (("N2", "nn_conv_3"), ("U1", "deconv_6"))}
    # by softmax none only takes its share of the residual ops
    assert prune(alpha_of(EXAMPLE), "softmax") == {node: inputs[:1] for node, inputs in FOUND.items()}
    led_by_none = alpha_of({"U0->U1": [1.0, 0.9, -5.0, -5.0, -5.0]})
    assert [len(prune(led_by_none, score)["U1"]) for score in ("alpha", "softmax")] == [1, 2]


def test_ties_go_to_the_direct_connection_the_lower_source_and_the_earlier_op():
    assert prune(alpha_of({})) == {
        **{f"N{k}": ((f"U{k - 1}", "conv_1x1"),) for k in (1, 2, 3)},
        **{f"U{k}": ((f"N{k}", "deconv_4"),) for k in (1, 2, 3)},
    }
    tied = {**EXAMPLE, "U0->U2": [0, 0.9, 0, 0, 0], "U1->U2": [0, 0.9, 0.9, 0, 0]}
    assert prune(alpha_of(tied))["U2"][1] == ("U0", "deconv_4")
    assert prune(alpha_of({**tied, "N2->U2": [0.9, 0, 0, 0]}))["U2"] == (("N2", "deconv_4"),)
    none_as_large = {**EXAMPLE, "U0->U1": [0.25, 0.25, 0, 0, 0]}
    assert prune(alpha_of(none_as_large))["U1"] == (("N1", "deconv_6"),)


def test_random_architectures_come_from_the_seed():
    first, again, other = (degas.first_state(Args(random_arch=True, seed=seed), None).G for seed in (0, 0, 1))
    assert first == again != other


def test_genotypes_go_through_json(tmp_path: Path):
    file = tmp_path / "genotype.json"
    for genotype in (FOUND, *random_genotypes(3), *random_genotypes(3, 2), "baseline"):
        found, cost = degas.genotype_json(TINY, genotype, {"loss/rec": 1.0}), Generator.cost(genotype, 4, 6, 16)
        assert (found["params"], found["macs"]) == ({"G": cost.params}, {"G": cost.macs})
        assert (found["method"], found["text"], found["scores"]) == ("degas", Space.text(genotype), {"loss/rec": 1.0})
        if genotype != "baseline":
            file.write_text(json.dumps(found))
            again = degas.first_state(Args(genotype=str(file)), None).G
            assert list(again.items()) == list(genotype.items())
    assert (found["n"], found["nodes"], found["G"]) == (0, "baseline", None)
    assert degas.genotype_json(TINY, FOUND, {})["G"] == [  # the op of every connection
        ["sep_conv_5x5", "deconv_6", "deconv_4"],
        ["conv_1x1", "nn_conv_3", "none", "none"],
        ["skip_connect", "deconv_6", "deconv_4", "none"],
    ]


@pytest.mark.parametrize(
    ("nodes", "n", "parts"),
    [
        (FOUND | {"N1": [["U0", "conv_7x7"]]}, 1, ["N1", "conv_7x7", "[U0, sep_conv_3x3]"]),
        (FOUND | {"N1": [["U0", "conv_1x1"]] * 2}, 1, ["N1", "['U0', 'conv_1x1']"]),
        (FOUND | {"U1": [["N1", "conv_3x3"]]}, 1, ["U1", "conv_3x3", "[N1, nn_conv_1]"]),
        (FOUND | {"U1": [["N1", "deconv_4"], ["U0", "none"]]}, 1, ["U1", "['U0', 'none']", "[U0, deconv_4]"]),
        (FOUND | {"U1": [["U0", "deconv_4"], ["N1", "deconv_4"]]}, 1, ["U1", "['U0', 'deconv_4']", "[N1, deconv_6]"]),
        (FOUND | {"U3": [["N3", "deconv_4"], ["U0", "deconv_4"]]}, 1, ["U3", "['U0', 'deconv_4']", "[U2, nn_conv_3]"]),
        (FOUND | {"U3": [["N3", "deconv_4"]] * 3}, 1, ["U3", "['N3', 'deconv_4']"]),
        (FOUND | {"U3": []}, 1, ["U3", "[]"]),
        (FOUND | {"U3": [[["N3"], "deconv_4"]]}, 1, ["U3", "['N3']"]),
        (FOUND | {"U3": "N3"}, 1, ["U3", "'N3'"]),
        ({node: FOUND[node] for node in ("N1", "U1")}, 1, ["N1, U1, N2, U2, N3, U3"]),
        (FOUND | {"N4": []}, 1, ["N1, U1, N2, U2, N3, U3"]),
        (FOUND, 2, ["N1_2"]),
        (7, 1, ["7"]),
        (FOUND, "1", ["'1'"]),
        (FOUND, True, ["True"]),
        (FOUND, 9, ["9", "8"]),
    ],
)
def test_a_genotype_that_is_none_is_refused_by_file_node_and_input(nodes: object, n: object, parts: list[str]):
    with pytest.raises(UserError) as e:
        Space(n).check(nodes, "there.json")
    assert all(part in str(e.value) for part in ["there.json", *parts]), e.value


# ---- networks against their definitions ------------------------------------------------------------------------------


def paper_op(op: str, module: nn.Module, x: Tensor, factor: int, y: Tensor | None, macs: list[int]) -> Tensor:
    """The op in the words of its definition, with the module's weights; macs gets the multiply-adds of an image."""

    def bn(norm: degas.BatchNorm, x: Tensor) -> Tensor:
        scale, shift = (t if y is None else t[y] for t in (norm.weight, norm.bias))
        x = F.batch_norm(x, None, None, training=True)
        return x * scale.reshape(-1, x.shape[1], 1, 1) + shift.reshape(-1, x.shape[1], 1, 1)

    if op == "skip_connect":
        return x
    k = int(op[-1])
    if op == "max_pool_3x3":
        return F.max_pool2d(F.pad(x, [1] * 4, value=-torch.inf), 3, 1)
    if op == "avg_pool_3x3":
        return F.avg_pool2d(F.pad(x, [1] * 4), 3, 1) / F.avg_pool2d(F.pad(torch.ones_like(x), [1] * 4), 3, 1)
    if op.startswith(("sep", "dil")):
        dilation = 2 if op.startswith("dil") else 1
        for depthwise, pointwise, norm in zip(module.depthwise, module.pointwise, module.bn, strict=True):
            x = convolve(depthwise, x.relu(), macs, padding=dilation * (k // 2), dilation=dilation, groups=x.shape[1])
            x = bn(norm, convolve(pointwise, x, macs))
        return x
    x = bn(module.bn, x).relu()
    if op.startswith("deconv"):
        out = F.conv_transpose2d(x, module.conv.weight, module.conv.bias, stride=factor, padding=(k - factor) // 2)
        macs.append(x[0].numel() * module.conv.weight[0].numel() + out[0].numel())
        return out
    return convolve(module.conv, F.interpolate(x, scale_factor=float(factor)), macs, padding=k // 2)


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
    z, y = normal(5, 6), LABELS if classes else None
    for genotype in [FOUND] * (n == 1) + random_genotypes(8, n):
        G, macs = randomised(Generator(genotype, 4, 6, 16, classes)), [4 * 4 * (6 + 1)]
        maps = {"U0": G.head(z).reshape(5, 4, 2, 2)}
        for c in Space(n).connections:
            for source, op in genotype[c.target]:
                if source == c.source:
                    made = paper_op(op, G.ops[c.name], maps[source], c.factor, y, macs)
                    maps[c.target] = maps.get(c.target, 0) + made
        norm, _, conv, _ = G.tail
        x = F.batch_norm(maps["U3"], None, None, norm.weight, norm.bias, training=True).relu()
        torch.testing.assert_close(G(z, y), convolve(conv, x, macs, padding=1).tanh())
        assert Generator.cost(genotype, 4, 6, 16, classes) == Cost(count_params(G), sum(macs))


@pytest.mark.parametrize("space", [Space(2), Space(1, NORMAL[2:])], ids=["n = 2", "7 ops"])
def test_the_supernet_is_the_sum_of_its_candidates_in_value_and_gradients(space: Space):
    """DARTS Eq. 2. Candidates that are linear after a shared BN and ReLU are computed as one."""
    net, z = randomised(SuperG(space, 4, 6, 16)), normal(5, 6).requires_grad_()
    assert SuperG.cost(space, 4, 6, 16).params == count_params(net)
    p = {c.name: normal(len(space.ops(c)), seed=i).softmax(0) for i, c in enumerate(space.connections)}
    p = {name: row.requires_grad_() for name, row in p.items()}
    maps = {"U0": net.head(z).reshape(5, 4, 2, 2)}
    for c in space.connections:
        for op, p_o in zip(space.ops(c), p[c.name], strict=True):
            if op != "none":
                maps[c.target] = maps.get(c.target, 0) + p_o * net.mixed[c.name][op](maps[c.source])
    images, apart = net(z, p), net.tail(maps["U3"])
    torch.testing.assert_close(images, apart)
    leaves, pull = [z, *p.values(), *net.parameters()], normal(*images.shape, seed=1)
    for a, b in zip(*(torch.autograd.grad(x, leaves, pull, allow_unused=True) for x in (images, apart)), strict=True):
        torch.testing.assert_close(a, b)
    if "max_pool_3x3" in space.normal:  # in the supernet a BatchNorm follows a pool
        pool = next(iter(net.mixed.values()))["max_pool_3x3"](maps["U0"])
        torch.testing.assert_close(pool.mean((0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=1e-12)


def test_an_op_of_a_users_own_is_a_line_in_a_table_and_its_multiply_adds(monkeypatch: pytest.MonkeyPatch):
    class Doubled(nn.Module):
        def __init__(self, ch: int, factor: int, classes: int | None) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((ch, 1, 1), 2.0))

        def forward(self, x: Tensor, _y: Tensor | None = None) -> Tensor:
            return self.scale * x

        def macs(self, side: int) -> int:
            return 4 * side**2

    monkeypatch.setitem(OPS, "doubled", Doubled)
    space = Space(1, (*NORMAL, "doubled"))
    alpha = alpha_of({f"U{k - 1}->N{k}": [0.0] * 9 + [1.0] for k in (1, 2, 3)}, space)
    genotype = prune(alpha)
    assert genotype["N2"] == (("U1", "doubled"),)
    assert space.check(genotype, "own") == genotype
    assert "doubled" in Space.text(genotype)
    z = normal(2, 6).float()
    assert Generator(genotype, 4, 6, 16)(z).shape == (2, 3, 16, 16)
    assert SuperG(space, 4, 6, 16)(z, alpha.probabilities()).shape == (2, 3, 16, 16)
    without = {node: ((x[0][0], "skip_connect"),) if node[0] == "N" else x for node, x in genotype.items()}
    more = Cost(3 * 4, sum(4 * side**2 for side in (2, 4, 8)))
    assert Generator.cost(genotype, 4, 6, 16) == Generator.cost(without, 4, 6, 16) + more


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, 3])
def test_the_baseline_generator_is_ct_gans(classes: int):
    G, z, y = randomised(Generator("baseline", 4, 6, 16, classes)), normal(5, 6), LABELS if classes else None
    x, macs = G.head(z).reshape(5, 4, 2, 2), [4 * 4 * (6 + 1), 16 * 16 * (27 * 4 + 3)]
    for block in G.ops.values():
        main = F.interpolate(block.bn1(x, y).relu(), scale_factor=2.0)
        main = block.bn2(convolve(block.conv1, main, macs, padding=1), y).relu()
        main = convolve(block.conv2, main, macs, padding=1)
        x = main + convolve(block.shortcut, F.interpolate(x, scale_factor=2.0), macs)
    torch.testing.assert_close(G(z, y), G.tail(x))
    assert Generator.cost("baseline", 4, 6, 16, classes) == Cost(count_params(G), sum(macs))


@torch.no_grad()
def test_the_critic_is_its_definition():
    D, x, macs = randomised(Critic(6, 3)).eval(), normal(2, 3, 16, 16), [6 + 1, 3 * (6 + 1)]
    found = D(x)
    for i, block in enumerate(D.blocks):
        main = convolve(block.conv1, x if i == 0 else x.relu(), macs, padding=1).relu()
        main = convolve(block.conv2, main, macs, padding=1)
        if i == 0:
            x = F.avg_pool2d(main, 2) + convolve(block.shortcut, F.avg_pool2d(x, 2), macs)
        elif i == 1:
            x = F.avg_pool2d(main + convolve(block.shortcut, x, macs), 2)
        else:
            x = main + x
    features = x.relu().mean((2, 3))
    for a, b in zip(found, (D.out(features)[:, 0], features, D.classes(features)), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)  # the outputs are float32
    assert Critic.cost(6, 16, 3) == Cost(count_params(D), sum(macs))
    assert Critic.cost(6, 16).macs == sum(macs) - 3 * (6 + 1)


def test_initial_weights_have_ct_gans_scale():
    torch.manual_seed(0)
    G, D = Generator(FOUND), Critic()
    for layer, s in (
        (G.head, sqrt(2 / (128 + 2048))),
        (G.ops["N1->U1"].conv, sqrt(4 / (128 * 36 / 4 + 128 * 36))),  # the stride divides the fan in
        (G.ops["U1->N2"].conv, sqrt(4 / 256)),
        (G.ops["U0->N1"].depthwise[0], sqrt(4 / 50)),
        (G.tail[2], sqrt(2 / (9 * 131))),
        (Generator("baseline").ops["U0->U1"].shortcut, sqrt(2 / 256)),
        (D.blocks[1].shortcut, sqrt(2 / 256)),
        (D.blocks[2].conv1, sqrt(4 / (9 * 256))),
        (D.out, sqrt(2 / 129)),
    ):
        assert layer.weight.std().item() == pytest.approx(s, rel=0.1)
        assert layer.weight.abs().max() <= sqrt(3) * s * 1.0001
        assert layer.bias is None or not layer.bias.any()


# ---- losses of CT-GAN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 48])
def test_the_critic_halves_twice_and_drops_out_behind_the_last_three_blocks(size: int, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(F, "dropout", lambda x, p, training: seen.append((x.shape[-1], p, training)) or x)
    scores, features, logits = Critic()(normal(2, 3, size, size).float())
    assert (scores.shape, features.shape, logits) == ((2,), (2, 128), None)
    assert seen == [(size // 2, 0.0, True), (size // 4, 0.2, True), (size // 4, 0.5, True), (size // 4, 0.5, True)]


def test_consistency_by_hand():
    d1, d2, f1 = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 2.0]), torch.zeros(2, 128)
    f2 = torch.tensor([0.2, 0.0])[:, None].expand(2, 128)
    assert degas.consistency(d1, d2, f1, f2).item() == pytest.approx(0.254)
    assert degas.consistency(d1[:1], d2[:1], f1[:1], f2[:1]).item() == pytest.approx(0.508)
    assert degas.consistency(d1, d2, f1, f2, 0.1).item() == pytest.approx(0.204)


@pytest.mark.parametrize(("norm", "want"), [(3.0, 40.0), (1.0, 0.0)])
def test_penalty_of_a_linear_critic(norm: float, want: float):
    """It is taken between the images and reaches the weights."""
    w, seen = (F.normalize(normal(1, 3 * 8 * 8).float()) * norm).requires_grad_(), []
    D = SimpleNamespace(forward=lambda x: seen.append(x) or (x.flatten(1) @ w.T,))
    (real, fake), mix = normal(2, 2, 3, 8, 8).float(), torch.tensor([0.25, 1.0]).view(2, 1, 1, 1)
    penalty = degas.gradient_penalty(D, real, fake, mix)
    assert penalty.item() == pytest.approx(want, abs=1e-4)
    torch.testing.assert_close(seen[0], real + mix * (fake - real))
    penalty.backward()
    torch.testing.assert_close(w.grad, 20 * (norm - 1) * F.normalize(w.detach()))


def test_a_loss_apart_adds_its_gradients_to_those_of_the_other():
    (job, nets, _), x = networks(), normal(4, 3, 16, 16).float()
    found = []
    for apart in (False, True):
        loss, other = nets.D.eval()(x)[0].square().mean(), nets.D(x[:2])[0].mean()
        frozen_weights = SimpleNamespace(zero_grad=nets.d_opt.zero_grad, step=lambda: None)
        gan.update(job, nets.D, frozen_weights, loss if apart else loss + other, apart=other if apart else None)
        found.append([p.grad for p in nets.D.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_losses_are_those_of_a_wasserstein_gan():
    real, fake = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, -1.5])
    assert degas.d_loss(real, fake).item() == pytest.approx(-0.5 - 3.0)
    assert degas.g_loss(fake).item() == degas.g_loss(fake, real).item() == pytest.approx(0.5)


def test_bytes_become_intervals_and_bytes_again():
    for byte, low, high in ((0, -1.0, -0.9921875), (255, 0.9921875, 1.0)):
        x = degas.dequantise(torch.full((1, 3, 64, 64), byte, dtype=torch.uint8), stream(0, "x"))
        assert low <= x.min() < low + 1e-5
        assert high - 1e-5 < x.max() < high
    every = torch.arange(256, dtype=torch.uint8).repeat(64).view(1, 1, 128, 128)
    back = degas.quantise(degas.dequantise(every, stream(0, "y"))).int() - every
    assert set(back.unique().tolist()) == {-1, 0}  # 127.995 is not 128
    assert (back != 0).float().mean() < 0.01
    assert degas.quantise(torch.tensor([-1.0, 1.0, -7.0, 7.0, torch.nan])).tolist() == [0, 255, 0, 255, 0]


# ---- BatchNorm and steps of CT-GAN -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_evaluation_takes_the_statistics_it_is_told_and_changes_none(statistics: str, classes: int):
    G, x = Generator(FOUND, 4, 6, 16, classes).evaluate_with(statistics), 3 + 2 * normal(5, 4, 6, 6).float()
    norms = [m for m in G.modules() if isinstance(m, degas.BatchNorm)]
    assert len(norms) == 1 + 8
    for norm in norms:
        y = LABELS if norm.conditional else None
        norm(x, y)
        torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.transpose(0, 1).flatten(1).var(1))
        mean, var = (b.clone() for b in norm.buffers())
        want = F.batch_norm(x, mean, var) if statistics == "running" else F.batch_norm(x, None, None, training=True)
        torch.testing.assert_close(norm.eval()(x, y), want)
        assert same([mean, var], [*norm.buffers()])


def networks(classes: int = 0) -> tuple[gan.Job, gan.Pair, Tensor | None]:
    job = job_of(TINY, random_images(8))
    torch.manual_seed(0)
    nets = gan.pair_of(job, Generator(FOUND, 4, 6, 16, classes), Critic(4, classes))
    return job, nets, torch.arange(8) % classes if classes else None


@pytest.mark.parametrize("classes", [0, 2])
def test_a_critic_step_moves_the_critic_and_a_g_step_the_generator(classes: int):
    (job, nets, labels), seen = networks(classes), []
    forward = nets.D.forward
    nets.D.forward = lambda x: seen.append((nets.D.training, len(x))) or forward(x)
    g, d = copy_of(nets.G), copy_of(nets.D)
    parts = degas.critic_step(job, nets, nets.D.draw(job, labels, 0))
    assert seen == [(True, 12), (True, 4)]  # real twice and fake; the penalty's images. Dropout is on in all of them
    assert parts.keys() == {"wasserstein", "ct", "gp"} | ({"d_class"} if classes else set())
    assert parts["ct"] > 0
    assert same(g, copy_of(nets.G))
    assert all(p.grad is None for p in nets.G.parameters())
    assert not same(d, copy_of(nets.D))
    d = copy_of(nets.D)
    parts = degas.generator_step(job, nets, nets.G.draw(job, 0))
    assert seen[2:] == [(True, 4)]
    assert parts.keys() == {"g"} | ({"g_class"} if classes else set())
    assert same(d, copy_of(nets.D))
    assert not same(g, copy_of(nets.G))


def test_the_consistency_terms_gradient_goes_through_both_passes():
    (job, nets, labels), outputs = networks(), []
    forward, weight = nets.D.forward, nets.D.out.weight.detach().clone()

    def kept(x: Tensor) -> tuple[Tensor, ...]:
        outputs.extend(forward(x))
        for out in outputs[-3:-1]:
            out.retain_grad()
        return tuple(outputs[-3:])

    nets.D.forward = kept
    degas.critic_step(job, nets, nets.D.draw(job, labels, 0))
    scores, features = outputs[:2]
    (d1, d2, _), (of_d1, of_d2, _) = scores.detach().chunk(3), scores.grad.chunk(3)
    torch.testing.assert_close(of_d2, d2 - d1)
    torch.testing.assert_close(of_d1 + 1 / 4, d1 - d2)  # the Wasserstein term pulls by -1/4 a sample
    of_f1, of_f2, _ = (features.grad - scores.grad[:, None] * weight).chunk(3)
    torch.testing.assert_close(of_f1, -of_f2)
    assert of_f1.abs().max() > 0


def test_the_class_losses_are_those_of_ac_gan(monkeypatch: pytest.MonkeyPatch):
    (job, nets, labels), seen, cross_entropy = networks(2), [], F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda logits, y: seen.append(y) or cross_entropy(logits, y))
    d, g = degas.critic_step(job, nets, nets.D.draw(job, labels, 0)), degas.generator_step(job, nets, nets.G.draw(job, 0))
    assert torch.equal(seen[0], labels[job.batches.indices(0)])  # of the real images alone, in the first pass
    assert torch.equal(seen[1], degas.uniform_labels(job, 4, 2, "g", 0))
    assert d["d_class"].item() == pytest.approx(log(2), abs=0.5)
    assert g["g_class"].item() == pytest.approx(0.1 * log(2), abs=0.05)


@torch.no_grad()
def test_evaluations_draw_labels_for_whole_batches_and_grids_have_a_class_a_row():
    job, G, seen = job_of(TINY, random_images(8)), Generator(FOUND, 4, 6, 16, 3), []
    job.evaluator.batch = 100
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
    G.classes = 0
    generate(z, 7)
    assert seen[-1] is None


# ---- runs, and what they refuse --------------------------------------------------------------------------------------


def test_search_rows_show_how_alpha_stands(whole: Path) -> None:
    found = rows(whole, "search.jsonl")
    assert [(r["step"], r["epoch"]) for r in found] == [(0, 0), (3, 1), (6, 2)]
    names = [f"{c.stage}/{c.name}" for c in degas.Space().connections]
    for row in found:
        shares, entropy = row["probabilities"]["G"], row["entropy"]["G"]
        assert list(shares) == list(entropy) == names
        assert all(sum(p.values()) == pytest.approx(1) for p in shares.values())
        assert list(shares["1/U0->U1"]) == ["none", *degas.OPS_UP]
        assert len(shares["1/U0->N1"]) == 9
        ops = [op for stage in row["genotype"]["G"] for op in stage]
        assert row["counts"]["skip"] == ops.count("skip_connect")
        assert row["counts"]["pool"] == ops.count("max_pool_3x3") + ops.count("avg_pool_3x3")
        assert row["counts"]["none leads"] == sum(max(p, key=p.get) == "none" for p in shares.values())
        assert row["loss/rec"] > 0
    assert entropy["2/N2->U2"] == pytest.approx(-sum(p * np.log(p) for p in shares["2/N2->U2"].values()))
    leading = [[max(p, key=p.get) for p in row["probabilities"]["G"].values()] for row in found]
    changes = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairwise(leading)]
    assert [row["flips"]["G"] for row in found] == [0, changes[0], sum(changes)]
    assert sum(changes) > 0
    assert len({row["loss/mean_image"] for row in found}) == 1
    assert found[-1]["genotype"]["G"] == read(whole, "genotype.json")["G"]


def test_a_search_shows_reconstructions_below_their_targets_and_keeps_the_latents(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = []
    monkeypatch.setattr(degas.Run, "samples", lambda _run, step, images: pictures.append(images))
    run = start(degas, tiny, tmp_path, phase="search", search_epochs=1, save_minutes=0)
    latents = load(run, "checkpoint.pt")["parts"]["latents"]
    assert latents.shape == (64, 6)
    assert (latents.norm(dim=1) <= 1 + 1e-6).all()
    with np.load(tiny["dataset"]) as npz:
        images = torch.from_numpy(npz["images"]).permute(0, 3, 1, 2)
    grid = pictures[-1].unflatten(0, (4, 2, 8))  # pairs of rows
    targets, made = grid[:, 0].flatten(0, 1), grid[:, 1].flatten(0, 1)
    assert targets.shape == made.shape == (32, 3, 16, 16)
    known = {degas.scaled(image).numpy().tobytes() for image in images}
    assert all(target.contiguous().numpy().tobytes() in known for target in targets)
    assert not (made == targets).any(dim=(1, 2, 3)).all()


@pytest.mark.parametrize("share", [0.01, slow(99.0)])
def test_a_search_that_never_left_the_mean_image_says_so_before_it_prunes(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(degas, "LEFT_MEAN", share)
    run = start(degas, tiny, tmp_path, phase="search", search_epochs=1, epoch_batches=1)
    result, log = read(run, "result.json"), (run / "log.txt").read_text()
    assert ("WARNING" in log) == (share == 0.01)
    assert log.find("WARNING") < log.rindex(result["genotype"]["text"])
    assert result["genotype"]["nodes"]


def test_five_critic_steps_and_one_g_step_but_in_the_first_iteration(tiny: dict, tmp_path: Path) -> None:
    """CT-GAN's schedule (paper §4): rates fall linearly to 0."""
    run = start(degas, tiny, tmp_path, genotype="baseline", n_critic=5, iters=4, d_lr=1e-3)
    parts = load(run, "checkpoint.pt")["parts"]
    updates = [{x["step"].item() for x in parts[name]["state"].values()} for name in ("d_opt", "g_opt")]
    assert updates == [{4 * 5}, {3}]
    assert [parts[name]["param_groups"][0]["lr"] for name in ("d_opt", "g_opt")] == pytest.approx([0.25e-3, 0.5e-4])
    assert [r["lr/g"] for r in rows(run, "metrics.jsonl") if "lr/g" in r] == pytest.approx([1.5e-4, 1e-4, 0.5e-4])
    assert read(run, "status.json")["step"] == 3
    assert read(run, "result.json")["genotype"]["nodes"] == "baseline"


def test_a_training_with_labels_logs_what_the_critic_recognises(tiny: dict, labelled: Path, tmp_path: Path) -> None:
    trained = [r for r in rows(labelled, "metrics.jsonl") if "loss/d" in r]
    assert all({"loss/d_class", "loss/g_class", "accuracy/real", "accuracy/fake"} <= r.keys() for r in trained)
    assert all(0 <= r["accuracy/real"] <= 1 for r in trained)
    weights = load(labelled, "weights.pt")
    assert weights["classes"] == 2
    assert read(labelled, "genotype.json")["nodes"] == json.loads(json.dumps(weights["genotype"]))
    alone = start(degas, tiny, tmp_path, phase="eval", weights=labelled / "weights.pt", g_ch=99)
    assert read(alone, "result.json")["last"]["fid"] == read(labelled, "result.json")["last"]["fid"]


@pytest.mark.slow
def test_counting_recognised_classes_does_not_change_training(tiny: dict, labelled: Path, tmp_path: Path) -> None:
    run = start(degas, tiny, tmp_path, conditional=True, random_arch=True, log_every=100)
    assert_equal(load(run, "checkpoint.pt")["parts"], load(labelled, "checkpoint.pt")["parts"])


def test_flags_of_a_search_bind_no_training() -> None:
    few = Dataset("few", torch.zeros(24, 3, 16, 16, dtype=torch.uint8), None, "0")
    with pytest.raises(UserError, match=r"^--search-batch 64\b.*\b24\b"):
        degas.resolve(degas.Args(), few)
    assert degas.resolve(degas.Args(genotype="baseline", d_batch=8), few).size == 16


def test_labels_that_are_missing_are_refused(refuse: Callable, tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", images=np.zeros((40, 16, 16, 3), np.uint8), labels=np.arange(40) % 3 - 1)
    line = refuse("--dataset", tmp_path / "some.npz", "--conditional")
    assert all(part in line for part in ("--conditional", "14", "40", "some")), line


def test_the_plan_counts_each_stage_and_what_an_update_costs() -> None:
    args = degas.Args(
        dataset="x", evaluator="compact", size=16, search_size=16, search_images=64, search_batch=32, search_epochs=2,
        search_ch=4, g_ch=4, d_ch=4, z_dim=6, g_batch=4, d_batch=8, n_critic=2, iters=7, eval_n=30, eval_every=1,
        epoch_batches=4,
    )  # fmt: skip
    data = Dataset("x", torch.zeros(64, 3, 16, 16, dtype=torch.uint8), None, "0")
    costs = degas.costs_of(args, degas.State())
    supernet = degas.SuperG.cost(degas.Space(), 4, 6, 16)
    g, d = degas.Generator.cost("baseline", 4, 6, 16), degas.Critic.cost(4, 16)
    assert list(costs.values())[:3] == [g, d, supernet]
    search, train = degas.plan_of(degas.Job(args, degas.start_ranks("cpu"), None, data), costs)
    assert search == ("search", 2 * 4, 6 * 32 * supernet.macs)
    step = 2 * 8 * (g.macs + 15 * d.macs) + 4 * (3 * g.macs + 2 * d.macs)
    assert train[:2] == ("train", 6)
    assert train[2] == pytest.approx(step + 5 * 30 * g.macs / 6)  # the untrained G, three times in training, the end
