"""EAGAN: the paper's numbers, both networks against their definitions, the evolution, both search stages."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from functools import reduce
from itertools import combinations, pairwise, product
from math import inf, isfinite, nan, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cells import convolve, normal, paper_op
from torch import Tensor, nn

import eagan
from common import gan
from common.cells import OPS_DOWN, OPS_NORMAL, OPS_UP, Cost, Genotype, Space, count_params, named, op_cost, table
from common.data import Dataset
from common.files import UserError
from common.gan import Job, clone, latent, own_batch_norm, seeded
from common.metrics import Score, to_uint8
from common.ranks import Ranks
from common.run import Run, Stopped
from eagan import D_SPACE, G_SPACE, PUBLISHED, Args, Discriminator, Generator, Individual, State, mutate, sample
from tests.runs import command, flags, slow

ONE = Ranks(torch.device("cpu"))
G_STAR, ADVNAS_G = (named(name, G_SPACE, PUBLISHED) for name in ("eagan-g", "adversarialnas-g"))
D_C, D_S, AUTOGAN_D = (named(name, D_SPACE, PUBLISHED) for name in ("eagan-d-cifar10", "eagan-d-stl10", "autogan-d"))
# of an earlier version of the authors' repository, where it is called cifar10_D2
D_2 = D_SPACE.from_codes([[3, 0, 3, 0, 2, 0, 0], [3, 0, 1, 0, 1, -1, -1], [3, 0, 3, 0, 1, -1, -1]])
SPACES = pytest.mark.parametrize("space", [G_SPACE, D_SPACE], ids=["G", "D"])
TINY = Args(
    size=16, g_ch=4, d_ch=4, z_dim=6, g_batch=4, d_batch=4, n_critic=2, epoch_batches=4,
    population=4, rounds=3, warmup_epochs=2, round_epochs=2, search_n=8, final_n=8, bn_batches=1,
)  # fmt: skip
IMAGES = (normal(16, 3, 16, 16) * 50 + 128).clamp(0, 255).to(torch.uint8)


class FakeEvaluator:
    """Scores a generator by its first images, so that equal weights score equal and others do not."""

    net, label, ref, batch = "fake", "FID(fake)", "none", 8

    def __init__(self) -> None:
        self.scores: list[float] = []

    def score(self, images: Callable[[int], Tensor], n: int, _rank: int = 0, _world: int = 1) -> Score:
        x = images(0).double()
        self.scores.append(x.std().item() + x.mean().item() / 7)
        return Score(self.scores[-1], x.mean().item() / 100, 0.0, n, self.net, self.ref)


def job_of(args: Args = TINY, images: Tensor = IMAGES) -> Job:
    run = SimpleNamespace(check=lambda: None)
    return Job(args, ONE, FakeEvaluator(), Dataset("tiny", images, None, ""), run=run)


def tiny_g(genotype: Genotype | None, name: str = "G") -> Generator:
    return seeded(job_of(), lambda: Generator(genotype, *TINY.g_shape), name)


def genotypes(space: Space, n: int, seed: int = 0) -> list[Genotype]:
    rng = random.Random(seed)
    return [sample(space, rng) for _ in range(n)]


def distance(a: Genotype, b: Genotype) -> int:
    return sum(x != y for row_a, row_b in zip(a, b, strict=True) for x, y in zip(row_a, row_b, strict=True))


def rows_of(space: Space) -> list[tuple[str, ...]]:
    """Every valid row of a cell."""
    return [row for row in product(*(edge.ops for edge in space.edges)) if not space.row_error(row)]


# ---- the published numbers, measured on the authors' networks and code -----------------------------------------------


@pytest.mark.parametrize(
    ("genotype", "size", "params"),
    [(G_STAR, 32, 7_142_403), (G_STAR, 48, 11_550_723), (ADVNAS_G, 32, 8_846_851), (ADVNAS_G, 48, 13_255_171)],
)
def test_params_of_the_published_generators(genotype: Genotype, size: int, params: int):
    """Paper Fig. 3, and AdversarialNAS's."""
    assert count_params(Generator(genotype, size=size)) == Generator.cost(genotype, size=size).params == params


@pytest.mark.parametrize(
    ("genotype", "params", "normed"),
    [(D_C, 906_240, 10), (D_S, 1_578_112, 11), (AUTOGAN_D, 1_053_824, 11), (D_2, 906_240, None), ("plain", 921_920, 1)],
)
def test_params_and_spectral_norms_of_the_published_discriminators(genotype: object, params: int, normed: int | None):
    """Paper Fig. 4, and the fixed ones of stage 1."""
    D = eagan.make_d(genotype, 128)
    assert count_params(D) == eagan.cost_of(Args(), D_SPACE, genotype).params == params
    if normed:
        assert sum(hasattr(m, "parametrizations") for m in D.modules()) == normed


def test_params_of_the_supernets():
    G, D = Generator(None), Discriminator(None)
    assert count_params(G) == Generator.cost(None).params == 72_776_963
    assert [count_params(linear) for linear in G.latent] == [167_936, 671_744, 2_686_976]
    assert [count_params(cell) for cell in G.cells] == [23_015_168, 23_080_960, 23_146_752]
    assert count_params(G.bn) + count_params(G.to_rgb) == 7_427
    assert count_params(D) == Discriminator.cost(None).params == 23_806_592
    assert sum(map(count_params, (D.stem1, D.stem2, D.stem_skip))) == 151_680
    assert [count_params(cell) for cell in D.cells] == [7_884_928] * 3
    assert count_params(D.out) == 128


def test_params_of_each_cell_of_g_star():
    assert [count_params(cell) for cell in Generator(G_STAR).cells] == [787_456, 1_377_536, 1_443_328]


def test_g_star_has_one_dead_branch():
    G = Generator(G_STAR)
    G(normal(2, 120).float()).sum().backward()
    dead = {name: p.numel() for name, p in G.named_parameters() if p.grad is None}
    assert dead == {"cells.2.edges.0.nearest.conv.weight": 65_536, "cells.2.edges.0.nearest.conv.bias": 256}


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("genotype", [G_STAR, None], ids=["alone", "supernet"])
def test_images_have_the_size_asked_for_and_values_of_at_most_1(size: int, genotype: Genotype | None):
    """In the authors' code SuperNet-G at 48 pixels fails."""
    y = Generator(genotype, 8, 120, size)(10 * normal(2, 120).float(), G_STAR)
    assert y.shape == (2, 3, size, size)
    assert y.abs().max() <= 1


def test_d_c_halves_in_its_stem_and_its_first_cell():
    """Paper Fig. 4."""
    D, sides = Discriminator(D_C, 8), []
    for module in (D.stem2, *D.cells):
        module.register_forward_hook(lambda _module, _x, y: sides.append(y.shape[-1]))
    assert D(normal(2, 3, 32, 32).float()).shape == (2, 1)
    assert sides == [16, 8, 8, 8]


def test_multiply_adds_of_the_published_networks():
    found = [Generator.cost(G_STAR), Generator.cost(G_STAR, size=48), Discriminator.cost(D_C)]
    found += [Discriminator.cost(D_S, size=48), Discriminator.cost(AUTOGAN_D)]
    want = [1_891.62, 4_256.15, 263.05, 688.62, 272.50]
    assert [cost.macs / 1e6 for cost in found] == pytest.approx(want, abs=0.005)


@torch.no_grad()
def test_g_star_makes_the_authors_images():
    G = Generator(G_STAR).double().eval()
    assert len(list(G.parameters())) == 40
    for i, p in enumerate(G.parameters()):
        p.copy_((0.05 * torch.sin(0.37 * torch.arange(p.numel(), dtype=torch.float64) + i)).view_as(p))
    y = G(torch.sin(0.11 * torch.arange(240, dtype=torch.float64)).view(2, 120))
    found = [y.mean(), y.std(), *y[0, :, 0, 0], y[1, 2, 31, 31], y[1, 0, 15, 16]]
    want = [0.046931039, 0.008789933, 0.056669351, 0.042319486, 0.042616894, 0.054096920, 0.053869136]
    assert [v.item() for v in found] == pytest.approx(want, abs=1e-9)


def test_edges_between_the_published_genotypes_and_earlier_ones():
    assert distance(G_STAR, ADVNAS_G) == 4
    assert [distance(d, AUTOGAN_D) for d in (D_C, D_2, D_S)] == [1, 1, 2]


def test_dry_run_prints_what_the_networks_cost(tiny_data: dict, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Against networks of these widths themselves, multiply-adds from the definition; and it makes nothing."""
    where, told = {**tiny_data, "size": 32, "runs_dir": tmp_path / "runs", "data_dir": tmp_path / "data"}, []

    def dry_run(**widths: object) -> None:
        nonlocal told
        assert command(eagan, [*flags({**where, **widths}), "--dry-run"]) == 0
        told = capsys.readouterr().out.splitlines()

    def numbers(start: str) -> list[int]:
        """Those in the line that begins like this."""
        line = next(line for line in told if line.startswith(start))
        return [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", line.partition(": ")[2])]

    dry_run(g_ch=10, d_ch=12, z_dim=9, population=5)
    G, D = Generator(G_STAR, 10, 9, 32).eval(), Discriminator(AUTOGAN_D, 12).eval()
    cost_of_g = [count_params(G), paper_generator(G, G_STAR, torch.zeros(1, 9))[1]]
    cost_of_d = [count_params(D), paper_discriminator(D, AUTOGAN_D, torch.zeros(1, 3, 32, 32))[1]]
    assert numbers("EAGAN's G:") == cost_of_g  # still to be searched
    assert numbers("D:") == cost_of_d
    assert numbers("SuperNet-G:") == [count_params(Generator(None, 10, 9, 32))]
    assert numbers("SuperNet-D:") == [count_params(Discriminator(None, 12))]
    dry_run(g_ch=10, d_ch=12, z_dim=9, genotype="eagan-g", d_genotype="autogan-d")
    assert (numbers("G:"), numbers("D:")) == (cost_of_g, cost_of_d)
    assert not any(line.startswith(("Super", "EAGAN's")) for line in told)
    dry_run()  # at the paper's widths
    assert numbers("SuperNet-G:") == [72_776_963]
    assert not list(tmp_path.iterdir())


# ---- the whole space, by enumeration ---------------------------------------------------------------------------------

PARAMS_256, PARAMS_128 = (
    {"none": 0} | {op: op_cost(make, ch, 1).params for ops in tables for op, make in ops.items()}
    for ch, tables in ((256, (OPS_UP, OPS_NORMAL)), (128, (OPS_NORMAL, OPS_DOWN)))
)


def g_params(genotype: Genotype) -> int:
    return Generator.cost(genotype).params


def test_every_generator_counted_and_sized():
    """Paper §3 has the space."""
    rows = rows_of(G_SPACE)
    count = len(rows) ** 3
    assert len(rows) == 147_744
    assert count == 3_224_998_809_206_784

    near = 1  # of all genotypes, how many lie at each distance from AdversarialNAS's
    names = np.array(rows)
    for base in ADVNAS_G:
        near = np.convolve(near, np.bincount((names != np.array(base)).sum(1)).astype(object))
    assert near[:5].sum() == 3_036_775

    sizes = Counter(sum(PARAMS_256[op] for op in row) for row in rows)
    fixed = g_params((rows[0],) * 3) - 3 * sum(PARAMS_256[op] for op in rows[0])
    total = Counter({fixed: 1})
    for _ in range(3):
        total = reduce(Counter.__add__, (Counter({a + b: n * m for b, m in sizes.items()}) for a, n in total.items()))
    low, high = (G_SPACE.from_codes([row] * 3) for row in ([0, 0, 1, 0, 1, 0, 0], [2, 2, 4, 4, 4, 4, 4]))
    assert (min(total), max(total)) == (4_126_211, 28_718_339)
    assert (g_params(low), g_params(high)) == (min(total), max(total))

    mean = sum(size * n for size, n in total.items()) / count
    deviation = sqrt(sum((size - mean) ** 2 * n for size, n in total.items()) / count)
    ordered = sorted(total)
    below = np.cumsum([total[size] for size in ordered], dtype=object)
    assert round(mean) == 13_920_793
    assert deviation / 1e6 == pytest.approx(2.58, abs=0.005)
    assert next(size for size, n in zip(ordered, below, strict=True) if 2 * n >= count) == 13_828_611
    smaller = sum(n for size, n in total.items() if size <= g_params(G_STAR))
    assert smaller / count == pytest.approx(0.001585, abs=5e-7)


def test_every_discriminator_counted_and_sized():
    """Paper §3 has the space."""
    rows = rows_of(D_SPACE)
    assert len(rows) == 511_488
    assert len(rows) ** 3 == pytest.approx(1.338e17, rel=5e-4)
    sizes = [sum(PARAMS_128[op] for op in row) for row in rows]
    low, high = ([rows[sizes.index(extreme(sizes))]] * 3 for extreme in (min, max))
    assert [Discriminator.cost(d).params for d in (low, high)] == [151_808, 8_756_096]
    for row, params in (([1, 1, 0, 0, 1, -1, -1], 151_808), ([4, 4, 4, 4, 4, 3, 3], 8_756_096)):
        assert Discriminator.cost(D_SPACE.from_codes([row] * 3)).params == params


# ---- networks --------------------------------------------------------------------------------------------------------


def paper_edges(cell: nn.Module, row: tuple[str, ...], macs: list[int]) -> Callable[..., Tensor | int]:
    """(column, x) -> what that edge of the cell gives; "none" gives nothing."""

    def edge(column: int, x: Tensor, **how: object) -> Tensor | int:
        op = row[column]
        return 0 if op == "none" else paper_op(op, cell.edges[column][op], x, macs, **how)

    return edge


def paper_generator(G: Generator, genotype: Genotype, z: Tensor) -> tuple[Tensor, int]:
    """The images and the multiply-adds of one, from the definition: dead nodes too, and resizing comes first."""
    skips, x = [], 0
    macs = [linear.weight.numel() + linear.bias.numel() for linear in G.latent]
    for row, cell, linear, part in zip(genotype, G.cells, G.latent, z.split(z.shape[1] // 3, 1), strict=True):
        edge, width = paper_edges(cell, row, macs), G.sides[0] * 2 ** len(skips)
        x = x + linear(part).reshape(-1, G.bn.num_features, width, width)
        a, b = edge(0, x), edge(1, x)
        middle = edge(2, a) + edge(3, b)
        for layer, skip in zip(cell.skips, skips, strict=True):
            mode = {1: "bilinear", 2: "nearest"}[len(skips)]
            middle = middle + convolve(layer, F.interpolate(skip, size=a.shape[-2:], mode=mode), macs)
        x = edge(4, a) + edge(5, b) + edge(6, middle)
        skips.append(middle)
    return convolve(G.to_rgb, G.bn(x).relu(), macs, padding=1).tanh(), sum(macs)


def paper_discriminator(D: Discriminator, genotype: Genotype, x: Tensor) -> tuple[Tensor, int]:
    """The scores and the multiply-adds for one image, from the definition."""
    macs = [D.out.weight.numel()]
    inner = convolve(D.stem2, convolve(D.stem1, x, macs, padding=1).relu(), macs, padding=1)
    x = F.avg_pool2d(inner, 2) + convolve(D.stem_skip, F.avg_pool2d(x, 2), macs)
    for row, cell in zip(genotype, D.cells, strict=True):
        edge = paper_edges(cell, row, macs)
        n1 = edge(0, x)
        n2, n3 = edge(1, x) + edge(2, n1), edge(3, n1) + edge(4, x, relu=False)
        x = n2 + n3 if row[5] == "none" else edge(5, n2, stride=2) + edge(6, n3, stride=2)
    return F.linear(x.relu().sum((2, 3)), D.out.weight), sum(macs)


def extracted(supernet: nn.Module, genotype: Genotype, alone: nn.Module) -> nn.Module:
    """The stand-alone network with the weights of the supernet's path."""
    weights = supernet.state_dict()
    alone.double().eval().load_state_dict({name: weights[name] for name in alone.state_dict()})
    return alone


# (skip, none) into node 3: in the authors' supernet the skip inputs, added in place, then reach node 4 by edge 1->4 too
POLLUTED = G_SPACE.from_codes([[1, 1, 1, 0, 2, 3, 1], [1, 1, 1, 0, 3, 1, 5], [0, 1, 0, 1, 2, 3, 3]])


@torch.no_grad()
@pytest.mark.parametrize("size", [16, 24])
def test_generators_are_their_definition(size: int):
    """Supernet, stand-alone network and definition agree in the images, and the closed form in what they cost. [§3]"""
    supernet = Generator(None, 6, 9, size).double().eval()
    supernet.bn.running_mean.copy_(normal(6))
    supernet.bn.running_var.copy_(normal(6).square())
    z = normal(2, 9, seed=1)
    for genotype in [G_STAR, ADVNAS_G, POLLUTED, *genotypes(G_SPACE, 8)]:
        want, macs = paper_generator(supernet, genotype, z)
        alone = extracted(supernet, genotype, Generator(genotype, 6, 9, size))
        torch.testing.assert_close(supernet(z, genotype), want, rtol=0, atol=1e-10)
        torch.testing.assert_close(alone(z), want, rtol=0, atol=1e-10)
        assert Generator.cost(genotype, 6, 9, size) == Cost(count_params(alone), macs)


@torch.no_grad()
def test_discriminators_are_their_definition():
    supernet, x = Discriminator(None, 6).double().eval(), normal(2, 3, 32, 32)
    for genotype in [D_C, D_S, AUTOGAN_D, *genotypes(D_SPACE, 12)]:
        want, macs = paper_discriminator(supernet, genotype, x)
        alone = extracted(supernet, genotype, Discriminator(genotype, 6))
        torch.testing.assert_close(supernet(x, genotype), want, rtol=0, atol=1e-10)
        torch.testing.assert_close(alone(x), want, rtol=0, atol=1e-10)
        assert Discriminator.cost(genotype, 6) == Cost(count_params(alone), macs)


def test_closed_form_of_params():
    """Of D against the supernet's parts, which are those of the network alone and made only once."""
    D = Discriminator(None, 5)
    fixed = count_params(D) - sum(count_params(cell.edges) for cell in D.cells)
    for g, d in zip(genotypes(G_SPACE, 50), genotypes(D_SPACE, 50), strict=True):
        assert Generator.cost(g, 5, 12, 24).params == count_params(Generator(g, 5, 12, 24))
        held = [D.cells[cell].edges[column][op] for cell, column, op in D_SPACE.held(d)]
        assert Discriminator.cost(d, 5).params == fixed + sum(map(count_params, held))


@torch.no_grad()
def test_cost_of_the_plain_discriminator():
    D, macs = eagan.PlainDiscriminator(8), []
    for layer in D.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            each = layer.weight[0].numel() + (layer.bias is not None)
            layer.register_forward_hook(lambda _m, _x, y, each=each: macs.append(y[0].numel() * each))
    D(normal(2, 3, 32, 32).float())
    assert eagan.cost_of(Args(size=32, d_ch=8), D_SPACE, "plain") == Cost(count_params(D), sum(macs))


@torch.no_grad()
def test_cells_of_d_are_residual_blocks():
    x = normal(2, 6, 8, 8)

    def cell_and_convs(codes: list[int]) -> tuple[Tensor, dict[int, Callable[[Tensor], Tensor]]]:
        genotype = D_SPACE.from_codes([codes] * 3)
        cell = eagan.DownCell(6, genotype, 0).double().eval()
        convs = {
            i: lambda x, layer=op.conv: F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
            for i, edge in enumerate(cell.edges)
            for op in edge.values()
            if getattr(op, "conv", None)
        }
        return cell(x, genotype[0]), convs

    y, c = cell_and_convs([3, 0, 3, 0, 2, 0, 0])
    torch.testing.assert_close(y, F.avg_pool2d(c[2](c[0](x.relu()).relu()), 2) + F.avg_pool2d(c[4](x), 2))
    y, c = cell_and_convs([3, 0, 3, 0, 1, -1, -1])
    torch.testing.assert_close(y, c[2](c[0](x.relu()).relu()) + x)
    y, c = cell_and_convs(PUBLISHED["D"]["eagan-d-cifar10"][1])
    torch.testing.assert_close(y, c[2](x.relu()) + x)


@torch.no_grad()
def test_a_cells_skip_output_contains_the_skip_inputs():
    cell = eagan.UpCell(6, POLLUTED, 1).double()
    x, skip, ops = normal(2, 6, 4, 4), normal(2, 6, 4, 4, seed=1), POLLUTED[1]
    node3, _ = cell(x, ops, [skip])
    node1, layer = cell.edges[0](x, ops[0]), cell.skips[0]
    resized = F.interpolate(skip, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(node3, node1 + F.conv2d(resized, layer.weight, layer.bias))


# ---- genotypes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("space", "name"), [(s, name) for s in (G_SPACE, D_SPACE) for name in PUBLISHED[s.name]])
def test_published_names_resolve(space: Space, name: str):
    genotype = named(name, space, PUBLISHED)
    assert space.to_codes(genotype) == PUBLISHED[space.name][name]
    lines = table(genotype, space).splitlines()
    assert [line.split()[1:] for line in lines] == [[e.name for e in space.edges], *map(list, genotype)]
    other = D_SPACE if space is G_SPACE else G_SPACE
    with pytest.raises(UserError, match=f"{name}.* {space.name}.* {', '.join(PUBLISHED[other.name])}"):
        named(name, other, PUBLISHED)


@pytest.mark.parametrize(
    ("space", "codes", "dtype"),
    [
        (G_SPACE, PUBLISHED["G"]["eagan-g"], np.int64),
        (G_SPACE, PUBLISHED["G"]["adversarialnas-g"], np.uint8),
        (D_SPACE, PUBLISHED["D"]["eagan-d-stl10"], np.int64),
        (D_SPACE, [[3, 0, 3, 0, 2, 0, 0]] * 3, np.uint8),
    ],
)
def test_npy_round_trip(space: Space, codes: list[list[int]], dtype: type, tmp_path: Path):
    np.save(tmp_path / "g.npy", np.array(codes, dtype))
    genotype = named(str(tmp_path / "g.npy"), space, PUBLISHED)
    assert genotype == space.from_codes(codes)
    assert space.to_codes(genotype) == codes


def test_genotype_json_round_trip(tmp_path: Path):
    path = tmp_path / "genotype.json"
    args = replace(TINY, size=32, genotype=str(path))
    for g, d in zip(genotypes(G_SPACE, 20), [*genotypes(D_SPACE, 19), "plain"], strict=True):
        path.write_text(json.dumps(eagan.genotype_json(args, g, d)))
        assert named(str(path), G_SPACE, PUBLISHED) == g
        state = eagan.first_state(args)
        assert (g, d) == (state.G, state.D)
    path.write_text(json.dumps({"D": D_C}))
    assert named(str(path), G_SPACE, PUBLISHED) is None
    with pytest.raises(UserError, match=r"--genotype .*genotype\.json: .*\bG\b"):
        eagan.first_state(args)


# ---- sampling and variation ------------------------------------------------------------------------------------------


def test_sampling_is_uniform_over_the_valid_inputs_of_each_node():
    """The authors' D has 1, 0, 1/56, 7/8 where this one has 1/8."""
    cells = [row for genotype in genotypes(D_SPACE, 16_000) for row in genotype]
    n = len(cells)

    def share(p: float) -> object:  # within five standard deviations
        return pytest.approx(p, abs=5 * sqrt(p * (1 - p) / n))

    for column in (1, 2, 3, 4):
        assert sum(row[column] == "none" for row in cells) / n == share(1 / 8)
    for first, second in ((1, 2), (3, 4)):
        pairs = Counter((row[first], row[second]) for row in cells)
        assert len(pairs) == 48
        for count in pairs.values():
            assert count / n == share(1 / 48)
    assert {row[5] == "none" for row in cells if row[6] == "none"} == {True}
    for op in D_SPACE.edges[5].ops:
        assert sum(row[5] == op for row in cells) / n == share(1 / 7)
        assert sum(row[6] == op for row in cells) / n == share(1 / 7)
    for op in D_SPACE.edges[0].ops:
        assert sum(row[0] == op for row in cells) / n == share(1 / 6)

    cells = [row for genotype in genotypes(G_SPACE, 8_000) for row in genotype]
    n = len(cells)
    assert sum(row[2] == "none" for row in cells) / n == share(6 / 48)
    assert sum(row[4] == "none" for row in cells) / n == share(48 / 342)
    assert sum(row[0] == "nearest" for row in cells) / n == share(1 / 3)


def changed(space: Space, a: Genotype, b: Genotype) -> list[tuple[int, int]]:
    """The edges in which two genotypes differ; switching a cell's down edges on or off counts as the first of them."""
    found = [(i, c) for i in range(3) for c in range(7) if a[i][c] != b[i][c]]
    switched = [i for i in range(3) if space.together and (a[i][5] == "none") != (b[i][5] == "none")]
    return [(i, c) for i, c in found if not (c == 6 and i in switched)]


def valid(space: Space, genotype: Genotype) -> bool:
    return space.check(genotype, "child") == genotype


@SPACES
def test_mutation_changes_one_edge(space: Space):
    """Paper §4.3."""
    rng, genotype, edges = random.Random(0), sample(space, random.Random(0)), Counter()
    for _ in range(20_000):
        child = mutate(space, genotype, rng)
        (edge,) = changed(space, genotype, child)
        edges[edge[1]] += 1
        assert valid(space, child)
        genotype = child
    if space is G_SPACE:  # each edge equally often
        assert max(abs(edges[c] / 20_000 - 1 / 7) for c in range(7)) < 5 * sqrt(1 / 7 * 6 / 7 / 20_000)
    assert len(edges) == 7


def neighbours_of(space: Space, row: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The valid rows with one other op, or with both down edges switched on or off."""
    found = [(*row[:c], op, *row[c + 1 :]) for c in range(7) for op in space.edges[c].ops if op != row[c]]
    if space.together:
        on = row[5] == "none"
        found += [(*row[:5], *pair) for pair in (product(OPS_DOWN, repeat=2) if on else [("none", "none")])]
    return [x for x in found if not space.row_error(x)]


@SPACES
def test_mutation_reaches_every_valid_neighbour(space: Space):
    """And nothing else: the authors' D mutation may leave one down edge none alone, or change nothing."""
    rng, genotype = random.Random(1), G_STAR if space is G_SPACE else AUTOGAN_D
    near = {(*genotype[:i], row, *genotype[i + 1 :]) for i in range(3) for row in neighbours_of(space, genotype[i])}
    assert {mutate(space, genotype, rng) for _ in range(6_000)} == near


@SPACES
def test_crossover_takes_one_edge(space: Space):
    """Paper §4.3."""
    rng, parents = random.Random(0), genotypes(space, 100)
    for _ in range(5_000):
        a, b = rng.sample(parents, 2)
        child = eagan.crossover(space, a, b, rng)
        ((cell, column),) = changed(space, a, child)
        assert child[cell][column] == b[cell][column]
        assert valid(space, child)


def test_crossover_can_take_every_edge_that_differs():
    found = {eagan.crossover(G_SPACE, G_STAR, ADVNAS_G, random.Random(i)) for i in range(200)}
    assert {tuple(changed(G_SPACE, G_STAR, child)) for child in found} == {((0, 4),), ((1, 5),), ((1, 6),), ((2, 4),)}

    row1, row2, row3 = D_C
    both = (*row2[:5], "max_pool", "conv_3x3")  # the down edges of a cell go together where one parent has none
    other = (*row1[:6], "max_pool")
    found = {eagan.crossover(D_SPACE, D_C, (other, both, row3), random.Random(i)) for i in range(200)}
    assert found == {(other, row2, row3), (row1, both, row3)}


def test_crossover_of_equals_ends():
    """The authors' goes on for ever."""
    assert eagan.crossover(G_SPACE, G_STAR, G_STAR, random.Random(0)) == G_STAR
    twins, only = [Individual(G_STAR, id=name) for name in "ab"], replace(TINY, p_crossover=1, p_mutation=0)
    (child,) = eagan.breed(only, G_SPACE, twins, 1, {G_STAR: None}, random.Random(0))
    assert child.how == "random"  # all that crossover can give is known


def parents_of(space: Space, n: int) -> list[Individual]:
    return [Individual(g, id=f"p{i}") for i, g in enumerate(genotypes(space, n))]


@SPACES
def test_children_are_new_and_valid(space: Space):
    base = G_STAR if space is G_SPACE else D_C
    args = replace(TINY, init_g="eagan-g", init_d="eagan-d-cifar10")
    parents = eagan.populate(args, space, 4, random.Random(0))  # so near that children collide
    assert parents[0].genotype == base
    assert all(1 <= len(changed(space, base, p.genotype)) <= 3 for p in parents[1:])
    seen = {p.genotype: None for p in parents}
    assert len(seen) == 4
    born = eagan.breed(args, space, parents, 150, seen, random.Random(1))
    assert len({x.genotype for x in parents + born}) == 154
    assert list(seen) == [x.genotype for x in parents + born]
    assert all(valid(space, x.genotype) for x in born)
    assert {len(x.parents) for x in born if x.how != "random"} == {1, 2}


def test_rates_of_variation():
    """Crossover 0.3 and mutation 0.5 are independent draws; a child without either is drawn again. [paper §4.3]"""
    parents, rng = parents_of(G_SPACE, 16), random.Random(0)
    known = {x.genotype: None for x in parents}
    born = [eagan.breed(Args(), G_SPACE, parents, 1, dict(known), rng)[0] for _ in range(2000)]
    shares = {how: n / 2000 for how, n in Counter(x.how for x in born).items()}
    want = {"crossover": 0.15 / 0.65, "mutation": 0.35 / 0.65, "crossover+mutation": 0.15 / 0.65}
    assert shares == {how: pytest.approx(p, abs=0.05) for how, p in want.items()}


def test_children_are_random_when_everything_is_seen():
    class Everything(dict):
        def __contains__(self, _key: object) -> bool:
            return True

    born = eagan.breed(TINY, G_SPACE, parents_of(G_SPACE, 2), 3, Everything(), random.Random(0))
    assert [(x.how, x.parents) for x in born] == [("random", [])] * 3


# ---- sorting and selection -------------------------------------------------------------------------------------------

IS, FID, SIZE = [8, 7.5, 7, 6.5, 6, 5], [20, 18, 25, 30, 15, 60], [9, 7, 8, 5, 6, 20]


def inverse(values: list[float]) -> list[float]:
    return [1 / v for v in values]


def points(*columns: list[float]) -> list[tuple[float, ...]]:
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("values", "fronts"),
    [
        ([(1, 4), (2, 3), (3, 2), (4, 1), (2, 4), (3, 3)], [[0, 1, 2, 3], [4, 5]]),
        ([(1, 1), (1, 1), (2, 2)], [[0, 1], [2]]),
        (points(inverse(IS), FID), [[0, 1, 4], [2], [3], [5]]),
        (points(inverse(IS), inverse(FID)), [[0, 2, 3, 5], [1], [4]]),
        (points(inverse(IS), SIZE), [[0, 1, 3], [2, 4], [5]]),
        (points(inverse(IS), inverse(SIZE)), [[0, 5], [1, 2], [3, 4]]),
        (points(inverse(IS), FID, SIZE), [[0, 1, 3, 4], [2], [5]]),
        ([(1, 1), (2, 2), (nan, nan)], [[0, 2], [1]]),  # what nothing compares with, nothing dominates
    ],
)
def test_non_dominated_sort_by_hand(values: list[tuple[float, ...]], fronts: list[list[int]]):
    """Paper Eq. 11."""
    assert eagan.non_dominated_sort(values) == fronts


def test_crowding_by_hand():
    found = eagan.crowding([(1, 10), (2, 6), (4, 5), (8, 1), (0, 0)], [0, 1, 2, 3])
    assert found == {0: inf, 1: pytest.approx(3 / 7 + 5 / 9), 2: pytest.approx(6 / 7 + 5 / 9), 3: inf}
    assert eagan.crowding([(1, 5), (1, 5), (1, 5)], [0, 1, 2])[1] == 0  # all equal: no range to divide by


def test_nsga2_fills_by_rank():
    values = [(1, 10), (2, 6), (4, 5), (8, 1), (9, 9), (3, 8), (10, 10)]
    assert eagan.non_dominated_sort(values) == [[0, 1, 2, 3], [5], [4], [6]]
    fids = [fid for _, fid in values]
    assert set(eagan.select_nsga2(values, fids, 5)) == {0, 1, 2, 3, 5}
    assert set(eagan.select_nsga2(values, fids, 6)) == {0, 1, 2, 3, 4, 5}
    assert eagan.select_nsga2(values, fids, 3) == [3, 0, 2]  # both ends, lower FID first, then the less crowded


def scored(is_mean: float, fid: float, params: float, name: str = "x") -> Individual:
    return Individual(G_STAR, id=name, params=params, is_mean=is_mean, fid=fid)


RULES = [*(("nsga2", names) for names in ("is,fid,size", "is,fid", "fid,size", "fid")), ("cars", "is,fid,size")]
UNUSABLE = [(nan, nan), (6.5, nan), (nan, 12.0), (6.5, inf)]  # IS, FID


@pytest.mark.parametrize(
    ("bad", "rule", "names"),
    [(bad, *rule) for bad in UNUSABLE for rule in RULES if isfinite(bad[0]) or "is" in rule[1]],
)
def test_unusable_scores_rank_last(bad: tuple[float, float], rule: str, names: str):
    """In the authors' sort nothing dominates a NaN. Here it loses to all others, even as the smallest."""
    good = [scored(*values, str(k)) for k, values in enumerate(points(IS, FID, SIZE))]
    population = [scored(*bad, 1, "bad"), *good]
    args = replace(TINY, objectives=names, selection=rule)
    for seed in range(20):
        kept, front = eagan.select(replace(args, seed=seed), State(population=population), 6)
        assert {x.id for x in kept} == {x.id for x in good}
        assert "bad" not in {x.id for x in front}


def test_first_front_begins_with_the_lowest_fid():
    population = [scored(*values, str(k)) for k, values in enumerate(points(IS, FID, SIZE))]
    assert [x.id for x in eagan.select(TINY, State(population=population), 1)[1]] == ["4", "1", "0", "3"]
    unusable = [scored(6.5, nan, 1, "a"), scored(nan, 12.0, 1, "b")]
    assert [x.id for x in eagan.select(TINY, State(population=unusable), 1)[1]] == ["b", "a"]


def test_cars_reaches_every_subset():
    """The authors' selection may keep the one that is worst in everything."""
    scores = points(inverse(IS), FID, SIZE)
    for keep in range(1, 6):
        found = {tuple(eagan.select_cars(scores, keep, random.Random(seed))) for seed in range(200)}
        assert found == set(combinations(range(6), keep))
    many = np.random.default_rng(0).uniform(1, 2, (20, 3)).tolist()
    for keep in range(1, 21):
        found = eagan.select_cars(many, keep, random.Random(0))
        assert found == sorted(set(found))
        assert len(found) == keep


def test_pressure_of_the_selections():
    """8 of 64 individuals whose IS and FID are correlated: how often the best FID is among them."""
    rng, kept = np.random.default_rng(0), Counter()
    for trial in range(40):
        quality = rng.normal(size=64)
        iss, fids = 6.5 + 0.5 * quality + rng.normal(0, 0.15, 64), 35 - 8 * quality + rng.normal(0, 2.5, 64)
        scores = points((1 / iss).tolist(), fids.tolist(), rng.uniform(4, 29, 64).tolist())
        best = int(fids.argmin())
        kept["cars"] += best in eagan.select_cars(scores, 8, random.Random(trial))
        kept["nsga2"] += best in eagan.select_nsga2([s[:2] for s in scores], fids.tolist(), 8)
    assert 0.25 < kept["cars"] / 40 < 0.53  # 39 % in 400 trials
    assert kept["nsga2"] == 40


# ---- steps -----------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A network of one weight: G gives images of its latent's first number, D the mean of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, _path: None) -> Tensor:
        return self.weight * (x.mean((1, 2, 3))[:, None] if x.ndim == 4 else x[:, :1, None, None].expand(-1, 3, 4, 4))


def test_hinge_losses():
    """Paper §5.1."""
    job = job_of(replace(TINY, g_batch=64, g_lr=0.25, d_lr=0.25))
    nets = gan.pair_of(job, Scaled(), Scaled())
    G, D = nets.G, nets.D
    real = normal(64, 1, 1, 1).float().expand(-1, 3, 4, 4)
    job.batches = lambda i: {7: real}[i]
    of_real, of_fake = real[:, 0, 0, 0], latent(job, 64, "d", 7)[:, 0]
    want = sum(max(0, 1 - a) + max(0, 1 + b) for a, b in zip(of_real.tolist(), of_fake.tolist(), strict=True)) / 64
    assert eagan.d_step(job, nets, 7, (None, None)).item() == pytest.approx(want, rel=1e-5)
    slope = (of_fake * (of_fake > -1) - of_real * (of_real < 1)).mean()
    torch.testing.assert_close(D.weight.grad, slope[None])
    torch.testing.assert_close(D.weight.data, 1 - 0.25 * slope.sign()[None])  # Adam's first step is the rate itself
    assert G.weight.grad is None

    of_fake = latent(job, 64, "g", 7)[:, 0]
    found = eagan.g_step(job, nets, 7, (None, None))
    torch.testing.assert_close(found, -(D.weight.data * of_fake.mean()).squeeze())
    torch.testing.assert_close(G.weight.grad, -(D.weight.data * of_fake.mean()))
    torch.testing.assert_close(D.weight.grad, slope[None])  # untouched by the step of G
    assert D.weight.requires_grad


@pytest.mark.parametrize("which", ["G", "D"])
def test_ops_that_are_not_sampled_are_left_alone(which: str):
    """No gradient, no step, and Adam's moments stay: zero gradients would let the second moments decay."""
    job = job_of()
    nets = gan.pair_of(job, tiny_g(None), seeded(job, lambda: eagan.make_d(None, TINY.d_ch), "D"))
    net, optimizer, step_of = (nets.G, nets.g_opt, eagan.g_step) if which == "G" else (nets.D, nets.d_opt, eagan.d_step)
    paths = list(zip(genotypes(G_SPACE, 2), genotypes(D_SPACE, 2), strict=True))

    def step(i: int) -> set[str]:
        step_of(job, nets, i, paths[i])
        return {name for name, p in net.named_parameters() if p.grad is not None}

    def everything(names: set[str]) -> dict[str, list[Tensor]]:
        p = dict(net.named_parameters())
        return {n: [p[n].clone(), *(v.clone() for v in optimizer.state[p[n]].values())] for n in names}

    first = step(0)
    after_first = everything(first)
    second = step(1)
    idle = first - second
    assert idle
    assert second - first
    now = everything(first)
    for name in first:
        same = [torch.equal(a, b) for a, b in zip(after_first[name], now[name], strict=True)]
        assert all(same) if name in idle else not same[1]  # Adam's step count
    used = {name for name, p in net.named_parameters() if p in optimizer.state}
    assert used == first | second


def test_average_of_the_weights():
    """Parameters are averaged, BatchNorm's statistics are the live network's."""
    G, average = tiny_g(G_STAR), tiny_g(G_STAR, "other")
    before = clone(average)
    G.bn.running_mean.fill_(3.0)
    gan.ema_update(average, G, 0.75)
    for name, p in average.named_parameters():
        torch.testing.assert_close(p.detach(), 0.75 * before[name] + 0.25 * G.state_dict()[name])
    assert all(torch.equal(a, b) for a, b in zip(average.buffers(), G.buffers(), strict=True))


@pytest.mark.parametrize("error", [None, Stopped])
def test_a_path_is_scored_with_its_own_batch_norm(error: type[BaseException] | None):
    G, paths = tiny_g(None), genotypes(G_SPACE, 3)
    for i in range(3):
        G(normal(4, 6, seed=i).float(), paths[i])  # statistics of other paths
    before, momentum, inputs = clone(G), G.bn.momentum, []
    hook = G.bn.register_forward_hook(lambda _m, x, _y: inputs.append(x[0]))
    try:
        with own_batch_norm(job_of(), G, paths[0], 3):
            hook.remove()
            batches = [x.transpose(0, 1).flatten(1) for x in inputs]
            assert [x.shape[1] for x in batches] == [100 * 16 * 16] * 3
            torch.testing.assert_close(G.bn.running_mean, torch.stack([x.mean(1) for x in batches]).mean(0))
            torch.testing.assert_close(G.bn.running_var, torch.stack([x.var(1) for x in batches]).mean(0))
            assert not torch.allclose(G.bn.running_var, before["bn.running_var"])
            if error:
                raise error
    except Stopped:
        assert error is Stopped
    after = clone(G)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert G.bn.momentum == momentum


# ---- schedule --------------------------------------------------------------------------------------------------------


def job_of_paper(images: int, d_batch: int) -> Job:
    """At paper scale, with images that take no memory."""
    return job_of(Args(size=32, d_batch=d_batch), torch.zeros(1, dtype=torch.uint8).expand(images, 3, 32, 32))


CIFAR, STL = (50_000, 40, 1_250), (105_000, 128, 821)  # images, D batch, D batches an epoch


def test_plan_of_the_papers_schedule():
    """Paper §5.1."""
    job = job_of_paper(*CIFAR[:2])
    assert job.epoch == CIFAR[2]
    assert job_of_paper(*STL[:2]).epoch == STL[2]
    assert [(stage, steps) for stage, steps, _ in eagan.plan_of(job)] == [
        ("search-g", 287_500),  # as many D batches
        ("search-d", 57_500),  # of 287,500 D batches
        ("train", 150_000),  # of 750,000 D batches
    ]
    assert job.args.rounds == 18  # the authors' code has 16 and 15 in 200 epochs
    assert job.args.search_epochs(job.args.rounds) == 230


@pytest.mark.parametrize(("data", "total"), [(CIFAR, 150_000), slow(STL, 98_520)], ids=["cifar10", "stl10"])
def test_evaluations_of_the_papers_training(data: tuple[int, int, int], total: int, monkeypatch: pytest.MonkeyPatch):
    """The real loop with empty steps: evaluated untrained, at epochs 305, 310, ..., 595, and at the end. [§5.1]"""
    job, drawn, evaluations = job_of_paper(*data[:2]), 0, []

    def d_step(_job: Job, _nets: object, batch: int, _paths: tuple, _clip: float) -> None:
        nonlocal drawn
        assert batch == drawn
        drawn += 1

    def nothing(*_args: object, **_more: object) -> None:
        pass

    monkeypatch.setattr(eagan, "seeded", lambda *_: nn.Linear(1, 1))
    monkeypatch.setattr(eagan, "d_step", d_step)
    for module, name in ((eagan, "g_step"), (eagan, "ema_update"), (gan, "grid")):
        monkeypatch.setattr(module, name, nothing)
    job.evaluator = SimpleNamespace(batch=100, score=lambda *_: Score(1.0, 1.0, 0.0, 1, "none", "none"))
    job.run = SimpleNamespace(
        **dict.fromkeys(("track", "begin", "tick", "log", "print", "samples", "weights", "save"), nothing),
        evaluated=lambda step, _row, **more: evaluations.append((step, more["eval/what"])),
    )
    job.plan = eagan.plan_of(job)
    state = State(G=G_STAR, D=D_C)
    eagan.train(job, state)
    assert (state.step, drawn) == (total, 5 * total)
    of_epoch = [step * 5 / data[2] for step, what in evaluations if what == "training"]
    assert of_epoch == list(range(305, 600, 5))  # 59 of them
    assert (evaluations[0], evaluations[-1]) == ((0, "untrained"), (total, "last"))
    assert len(evaluations) == 61


# ---- the two stages of the search ------------------------------------------------------------------------------------


class WatchedRun(Run):
    """A real run that calls `watch(what, value)` at each safe point, scored round and new stage."""

    watch: Callable[[str, object], None]

    def begin(self, phase: str, stage: str, step: int, upcoming: str = "", images_per_step: int = 0) -> None:
        self.watch("begin", stage)
        super().begin(phase, stage, step, upcoming, images_per_step)

    def tick(self, step: int, upcoming: str = "") -> None:
        self.watch("tick", step)
        super().tick(step, upcoming)

    def search_row(self, row: dict) -> None:
        self.watch("row", row)
        super().search_row(row)


Weights = dict[str, Tensor]


class Found(NamedTuple):
    """What a stage of the search left: its rows of search.jsonl, and the weights of the live G at the end."""

    state: State
    evaluator: FakeEvaluator
    rows: list[dict]
    G: Weights


Watch = Callable[[str, object, Run], None]


def search(
    stage: Callable, args: Args, folder: Path, watch: Watch = lambda *_: None, state: State | None = None
) -> Found:  # fmt: skip
    """Run a stage of the search in a run directory of its own."""
    job = job_of(replace(args, runs_dir=folder))
    state = state or State(G=G_STAR if stage is eagan.search_d else None, D=AUTOGAN_D)
    about = {"dataset": "d", "digest": "", "plan": [], "facts": {}}
    with WatchedRun(eagan.__file__, "eagan", asdict(job.args), ONE, **about) as job.run:
        job.run.watch = lambda what, value: watch(what, value, job.run)
        stage(job, state)
        rows = [json.loads(line) for line in (job.run.dir / "search.jsonl").read_text().splitlines()]
        written = str(job.run.dir / "genotype.json")
        assert [named(written, space, PUBLISHED) for space in (G_SPACE, D_SPACE)] == [state.G, state.D]
        return Found(state, job.evaluator, rows, clone(job.run.tracked[1]["G"]))


def check_rounds(args: Args, space: Space, found: Found) -> None:
    """When rounds end; all are scored, half survive; survivors and their children go on; the best leads the front."""
    stage, batches_a_step = ("1", 1) if space is G_SPACE else ("2", args.n_critic)
    ends = [args.epoch_batches * (args.warmup_epochs + r * args.round_epochs) for r in range(1, args.rounds + 1)]
    told = [(row["stage"], row["round"], row["step"] * batches_a_step) for row in found.rows]
    assert told == [(stage, r, end) for r, end in enumerate(ends, 1)]
    assert found.state.step * batches_a_step == found.state.batch == ends[-1]
    P = args.population
    everyone = {x["id"]: as_genotype(x) for row in found.rows for x in row["population"]}
    assert len(set(everyone.values())) == len(everyone) == P + P // 2 * (args.rounds - 1)  # no genotype comes twice
    assert all(valid(space, genotype) for genotype in everyone.values())
    assert len(found.evaluator.scores) == P * args.rounds + len(found.state.finalists)
    for row in found.rows:
        fids = {x["id"]: x["fid"] for x in row["population"]}
        assert (len(fids), len(row["kept"])) == (P, P // 2)
        assert fids.keys() >= set(row["front"])
        assert row["best"] == min(row["front"], key=fids.get)
    for row, following in pairwise(found.rows):
        ids = [x["id"] for x in following["population"]]
        assert ids[: P // 2] == row["kept"]
        assert all(x["parents"] and {*x["parents"]} <= {*row["kept"]} for x in following["population"][P // 2 :])


def as_genotype(x: dict) -> Genotype:
    return tuple(map(tuple, x["genotype"]))


@pytest.mark.parametrize(("change", "scored"), [({"mu_plus_lambda": True}, 8), ({"stages": "coupled"}, 4)])
def test_everyone_is_scored_at_every_round(change: dict, scored: int, tmp_path: Path):
    """Survivors too: they have been trained since."""
    short = replace(TINY, rounds=2, round_epochs=1, warmup_epochs=0, epoch_batches=2)
    found = search(eagan.search_g, replace(short, **change), tmp_path)
    assert [len(row["population"]) for row in found.rows] == [scored] * 2
    assert len(found.evaluator.scores) == 2 * scored + len(found.state.finalists)


def test_stage_1(tmp_path: Path):
    """Algorithm 1, lines 1-16."""
    scored_with = []

    def watch(what: str, _value: object, run: Run) -> None:
        if what == "row":
            scored_with.append(clone(run.tracked[1]["G"]))

    found = search(eagan.search_g, TINY, tmp_path, watch)
    state = found.state
    check_rounds(TINY, G_SPACE, found)
    assert state.step == eagan.plan_of(job_of())[0][1]
    for row, weights in zip(found.rows, scored_with, strict=True):
        G = Generator(None, 4, 6, 16)
        G.load_state_dict(weights)
        for x in row["population"]:
            assert x["params"] == Generator.cost(as_genotype(x), 4, 6, 16).params
            with own_batch_norm(job_of(), G, as_genotype(x), TINY.bn_batches):
                assert x["fid"] == pytest.approx(fid_of(G, as_genotype(x)), rel=1e-6)
    fids = [x.fid for x in state.finalists]
    assert fids == sorted(found.evaluator.scores[-len(fids) :])
    assert state.finalists[0].genotype == state.G
    # what stage 2 begins with: the supernet's weights of G*, and BatchNorm statistics of its own
    G = Generator(state.G, 4, 6, 16)
    G.load_state_dict(state.g_weights)
    assert all(torch.equal(p, found.G[name]) for name, p in G.named_parameters())
    assert fid_of(G) == pytest.approx(fids[0], rel=1e-6)


def fid_of(G: Generator, genotype: Genotype | None = None) -> float:
    """Of G as it is, in eval mode and by hand."""
    with torch.no_grad():
        images = to_uint8(G.eval()(gan.fixed_latent(job_of(), 8, "eval", 0), genotype))
    G.train()
    return FakeEvaluator().score(lambda _: images, 8).fid


@pytest.mark.parametrize("stage", [eagan.search_g, eagan.search_d])
def test_seeds_choose_the_architectures(stage: Callable, tmp_path: Path):
    """In the authors' code only CUDA is seeded."""
    args = replace(TINY, rounds=1, round_epochs=1, warmup_epochs=0, epoch_batches=2)
    rows = [search(stage, replace(args, seed=seed), tmp_path).rows[0] for seed in (0, 0, 1)]
    first, again, other = ([as_genotype(x) for x in row["population"]] for row in rows)
    assert first == again
    assert not set(first) & set(other)


class Event(NamedTuple):
    """What stage 2 was doing, the weights of the live G then, and those of every individual's copy."""

    what: str
    value: object
    live: Weights
    copies: dict[str, Weights]


def search_d(args: Args, folder: Path, state: State | None = None) -> tuple[list[Event], Found]:
    events = []

    def watch(what: str, value: object, run: Run) -> None:
        live, copies = run.tracked[1]["G"].state_dict(), run.tracked[1]["copies"]
        storages = [v.untyped_storage().data_ptr() for weights in (live, *copies.values()) for v in weights.values()]
        assert len(set(storages)) == len(storages)  # none is shared, at any time
        events.append(Event(what, value, *deepcopy((live, copies))))

    found = search(eagan.search_d, args, folder, watch, state)
    return events, found


@pytest.fixture(scope="module")
def stage_2(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], Found]:
    return search_d(TINY, tmp_path_factory.mktemp("runs"))


def equal(a: Weights, b: Weights) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def test_stage_2(stage_2: tuple[list[Event], Found]):
    """Algorithm 1, lines 17-32."""
    _, found = stage_2
    check_rounds(TINY, D_SPACE, found)
    assert found.state.step == eagan.plan_of(job_of())[1][1]
    assert found.state.finalists[0].genotype == found.state.D
    for x in (x for row in found.rows for x in row["population"]):
        assert x["params"] == Discriminator.cost(as_genotype(x), 4).params


def test_each_individual_has_its_own_generator(stage_2: tuple[list[Event], Found]):
    """A G step changes the copy of the one it trains and no other. In the authors' code all are one network. [§4.2]"""
    events, trained = stage_2[0], []
    for before, after in pairwise(events):
        if before.what == after.what == "tick" and before.copies:  # a single step lies between them
            (moved,) = [i for i in after.copies if not equal(before.copies[i], after.copies[i])]
            assert [i for i in after.copies if equal(after.copies[i], after.live)] == [moved]
            batches = [event.copies[moved]["bn.num_batches_tracked"] for event in (before, after)]
            assert batches[1] - batches[0] == TINY.n_critic + 1  # it went on from its own weights
            trained.append(moved)
    assert len(set(trained)) >= TINY.population


def test_copies_begin_with_the_warmed_up_weights(stage_2: tuple[list[Event], Found]):
    """The authors' first visit of an individual brings weights from before the warm-up."""
    events = stage_2[0]
    first = next(event for event in events if event.copies)
    assert len(first.copies) == TINY.population
    assert all(equal(weights, first.live) for weights in first.copies.values())
    assert not equal(first.live, events[0].live)


def next_rounds(events: list[Event], found: Found) -> Iterator[tuple[dict, dict[str, Weights], dict[str, Weights]]]:
    """For all rounds but the last: its row, the copies that were scored, and those that the next round begins with."""
    ends = [i for i, event in enumerate(events) if event.what == "row"]
    assert len(ends) == len(found.rows) > 1
    for i, following in zip(ends, found.rows[1:], strict=False):
        copies = next(event.copies for event in events[i:] if event.what == "tick")
        assert copies.keys() == {x["id"] for x in following["population"]}
        yield events[i].value, events[i].copies, copies


def test_weight_resetting(stage_2: tuple[list[Event], Found]):
    """Paper §4.2: all copies restart from the best one's weights."""
    for row, before, after in next_rounds(*stage_2):
        assert all(equal(weights, before[row["best"]]) for weights in after.values())
        assert not all(equal(weights, before[row["best"]]) for weights in before.values())


def test_without_weight_resetting_weights_follow_their_genotype(tmp_path: Path):
    """The authors reorder the genotypes and leave the weights as they were."""
    args = replace(TINY, rounds=2, population=6, weight_reset=False)
    events, found = search_d(args, tmp_path)
    check_rounds(args, D_SPACE, found)
    parents = {x["id"]: x["parents"] for row in found.rows for x in row["population"]}
    others = 0
    for row, before, after in next_rounds(events, found):
        source = {i: i if i in row["kept"] else parents[i][0] for i in after}
        assert all(equal(weights, before[source[i]]) for i, weights in after.items())
        others += sum(not equal(before[j], before[row["best"]]) for i, j in source.items() if i != j)
    assert others  # children whose weights are not those of the best: there is something to mix up


def test_each_is_scored_by_its_own_generator(stage_2: tuple[list[Event], Found]):
    G = Generator(G_STAR, 4, 6, 16)
    for event in (event for event in stage_2[0] if event.what == "row"):
        fids = {x["id"]: x["fid"] for x in event.value["population"]}
        for i, weights in event.copies.items():
            G.load_state_dict(weights)
            assert fids[i] == pytest.approx(fid_of(G), rel=1e-6)
        assert len(set(fids.values())) > 1


def test_stage_2_begins_with_the_weights_of_stage_1(tmp_path: Path):
    """The authors' begins with a random generator."""
    given = clone(tiny_g(G_STAR, "found"))
    args = replace(TINY, rounds=1, warmup_epochs=0, epoch_batches=2)
    events, found = search_d(args, tmp_path, State(G=G_STAR, D=AUTOGAN_D, g_weights=given))
    assert equal(events[0].live, given)
    assert found.state.g_weights is None
