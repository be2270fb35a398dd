"""EAGAN: the paper's numbers, both networks against their definitions, the evolution, both search stages."""

import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import combinations, pairwise, product
from math import inf, isfinite, nan, prod, sqrt
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cells import convolve, normal
from torch import Tensor, nn

import adversarialnas
import eagan
from common import gan
from common.cells import OPS_DOWN, OPS_NORMAL, OPS_UP, Genotype, Space, count_params, named, op_cost, table
from common.files import UserError
from common.gan import clone, latent, own_batch_norm, seeded
from common.run import Run, Stopped
from eagan import D_SPACE, G_SPACE, PUBLISHED, Args, Discriminator, Generator, Individual, State, mutate, sample
from tests import reference as ref
from tests.reference import job_of

G_STAR, ADVNAS_G = (named(name, G_SPACE, PUBLISHED) for name in ("eagan-g", "adversarialnas-g"))
D_C, D_S, AUTOGAN_D = (named(name, D_SPACE, PUBLISHED) for name in ("eagan-d-cifar10", "eagan-d-stl10", "autogan-d"))
SPACES = pytest.mark.parametrize("space", [G_SPACE, D_SPACE], ids=["G", "D"])
TINY = Args(
    size=16, g_ch=4, d_ch=4, z_dim=6, g_batch=4, d_batch=4, n_critic=2, epoch_batches=4,
    population=4, rounds=3, warmup_epochs=2, round_epochs=2, search_n=8, final_n=8, bn_batches=1,
)  # fmt: skip


def tiny_g(genotype: Genotype | None, name: str = "G") -> Generator:
    return seeded(job_of(TINY), lambda: Generator(genotype, *TINY.g_shape), name)


def genotypes(space: Space, n: int, seed: int = 0) -> list[Genotype]:
    rng = random.Random(seed)
    return [sample(space, rng) for _ in range(n)]


# ---- the published networks, measured on the authors' code -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "params", "macs", "layers"),
    [
        ("eagan-g", 32, 7_142_403, 1_891.62, 0),
        ("eagan-g", 48, 11_550_723, 4_256.15, 0),
        ("adversarialnas-g", 32, 8_846_851, 2_680.48, 0),
        ("adversarialnas-g", 48, 13_255_171, 6_031.08, 0),
        ("eagan-d-cifar10", 32, 906_240, 263.05, 10),
        ("eagan-d-stl10", 48, 1_578_112, 688.62, 11),
        ("autogan-d", 32, 1_053_824, 272.50, 11),
        ("plain", 32, 921_920, 14.71, 1),
    ],
)
def test_costs_of_the_published_networks(name: str, size: int, params: int, macs: float, layers: int):
    """Paper Figs. 3 and 4, and the fixed D of stage 1. macs: millions; layers: under spectral norm."""
    space = G_SPACE if name in PUBLISHED["G"] else D_SPACE
    genotype = name if name == "plain" else named(name, space, PUBLISHED)
    net = Generator(genotype, size=size) if space is G_SPACE else eagan.make_d(genotype, 128)
    cost = eagan.cost_of(Args(size=size), space, genotype)
    assert count_params(net) == cost.params == params
    assert cost.macs / 1e6 == pytest.approx(macs, abs=0.005)
    assert ref.normed(net) == layers


def test_g_star_has_one_dead_branch():
    G = Generator(G_STAR)
    G(normal(2, 120).float()).sum().backward()
    dead = {name: p.numel() for name, p in G.named_parameters() if p.grad is None}
    assert dead == {"cells.2.edges.0.nearest.conv.weight": 65_536, "cells.2.edges.0.nearest.conv.bias": 256}


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


NAMES = [(of, net, name) for of in (eagan, adversarialnas) for net in of.PUBLISHED for name in of.PUBLISHED[net]]


@pytest.mark.parametrize(("of", "net", "name"), NAMES, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_published_name_stands_for_its_codes(of: ModuleType, net: str, name: str, tmp_path: Path):
    """As do the authors' file of them and a .json; for the network of that kind alone. Of AdversarialNAS, too."""
    space, other = (of.G_SPACE, of.D_SPACE) if net == "G" else (of.D_SPACE, of.G_SPACE)
    genotype, codes = named(name, space, of.PUBLISHED), of.PUBLISHED[net][name]
    assert space.to_codes(genotype) == codes
    lines = table(genotype, space).splitlines()
    assert [line.split()[1:] for line in lines] == [[e.name for e in space.edges], *map(list, genotype)]
    np.save(tmp_path / "g.npy", np.array(codes, np.int64 if of is eagan else np.uint8))
    (tmp_path / "g.json").write_text(json.dumps({net: genotype}))
    assert [named(str(tmp_path / file), space, of.PUBLISHED) for file in ("g.npy", "g.json")] == [genotype] * 2
    with pytest.raises(UserError) as error:
        named(name, other, of.PUBLISHED)
    assert all(word in str(error.value) for word in (name, *of.PUBLISHED[other.name]))


def test_genotype_json_round_trip(tmp_path: Path):
    path = tmp_path / "genotype.json"
    args = replace(TINY, size=32, genotype=str(path))
    for g, d in zip(genotypes(G_SPACE, 20), [*genotypes(D_SPACE, 19), "plain"], strict=True):
        path.write_text(json.dumps(eagan.genotype_json(args, g, d)))
        assert named(str(path), G_SPACE, PUBLISHED) == g
        state, note = eagan.first_state(args)
        assert (g, d, "") == (state.G, state.D, note)


def test_a_file_without_a_d_of_this_space_is_trained_against_the_default_d(tmp_path: Path):
    path = tmp_path / "genotype.json"
    args, own = replace(TINY, size=32, genotype=str(path)), eagan.genotype_json(TINY, G_STAR, AUTOGAN_D)
    for changes in ({"D": None}, {"method": "adversarialnas", "D": [["conv_1x1"] * 7] * 4}):
        path.write_text(json.dumps({**own, **changes}))
        state, note = eagan.first_state(args)
        assert named("eagan-d-cifar10", D_SPACE, PUBLISHED) == state.D
        assert str(path) in note
        assert eagan.first_state(replace(args, d_genotype="plain"))[0].D == "plain"
    path.write_text(json.dumps({**own, "D": [["conv_1x1"] * 7] * 4}))  # EAGAN's own, but broken
    with pytest.raises(UserError, match=path.name):
        eagan.first_state(args)


def edited(rows: list, cell: int, changes: dict[int, object]) -> list[list]:
    """The rows of a genotype, or its codes, with other values in some columns of a cell."""
    made = [list(row) for row in rows]
    for column, value in changes.items():
        made[cell - 1][column] = value
    return made


G_CODES, D_CODES = PUBLISHED["G"]["eagan-g"], PUBLISHED["D"]["eagan-d-cifar10"]
NAS_SPACE, NAS_CODES = adversarialnas.D_SPACE, adversarialnas.PUBLISHED["D"]["animation-d"]


@pytest.mark.parametrize(
    ("space", "bad", "parts"),
    [
        (G_SPACE, edited(G_CODES, 2, {2: 7}), ["cell 2", "1->3", "7", "0..6"]),
        (G_SPACE, edited(G_CODES, 1, {0: 3}), ["cell 1", "0->1", "3", "0..2"]),
        (G_SPACE, edited(G_CODES, 3, {6: -1}), ["cell 3", "3->4", "-1"]),
        (G_SPACE, edited(G_CODES, 1, {2: 0, 3: 0}), ["cell 1", "node 3", "1->3", "2->3"]),
        (G_SPACE, edited(G_CODES, 3, {4: 0, 5: 0, 6: 0}), ["cell 3", "node 4", "1->4", "2->4", "3->4"]),
        (D_SPACE, edited(D_CODES, 1, {0: 0}), ["cell 1", "0->1", "0", "1..6"]),
        (D_SPACE, edited(D_CODES, 2, {5: 6, 6: 0}), ["cell 2", "2->4", "6", "-1..5"]),
        (D_SPACE, edited(D_CODES, 2, {1: 0, 2: 0}), ["cell 2", "node 2", "0->2", "1->2"]),
        (D_SPACE, edited(D_CODES, 3, {3: 0, 4: 0}), ["cell 3", "node 3", "1->3", "0->3"]),
        (D_SPACE, edited(D_CODES, 1, {5: -1}), ["cell 1", "2->4", "3->4", "none"]),
        (D_SPACE, edited(D_CODES, 2, {5: 0}), ["cell 2", "2->4", "3->4", "none"]),
        (NAS_SPACE, edited(NAS_CODES, 1, {0: 5}), ["cell 1", "0->1", "5", "0..4"]),  # five convolutions from the image
        (NAS_SPACE, edited(NAS_CODES, 3, {5: 6}), ["cell 3", "2->4", "6", "0..5"]),
        (NAS_SPACE, edited(NAS_CODES, 2, {1: 0, 3: 0}), ["cell 2", "node 2", "0->2", "1->2"]),
        (NAS_SPACE, edited(NAS_CODES, 3, {0: 0}), ["cell 3", "node 1", "0->1"]),
        (G_SPACE, np.zeros((3, 6), int), ["(3, 7)", "(3, 6)"]),
        (G_SPACE, np.zeros((2, 7), int), ["(3, 7)", "(2, 7)"]),
        (G_SPACE, np.zeros(21, int), ["(3, 7)", "(21,)"]),
        (G_SPACE, np.ones((3, 7)), ["(3, 7)", "float64"]),
        (G_SPACE, np.array([[None] * 7] * 3), []),
        (G_SPACE, {"G": edited(G_STAR, 2, {3: "conv_7x7"})}, ["cell 2", "2->3", "conv_7x7"]),
        (G_SPACE, {"G": edited(G_STAR, 1, {0: "avg_pool"})}, ["cell 1", "0->1", "avg_pool", "nearest"]),
        (G_SPACE, {"G": edited(G_STAR, 1, {0: 3})}, ["cell 1", "0->1", "3"]),
        (G_SPACE, {"G": edited(G_STAR, 3, {2: "none", 3: "none"})}, ["cell 3", "node 3", "1->3", "2->3"]),
        (G_SPACE, {"G": [*G_STAR[:2], G_STAR[2][:6]]}, ["cell 3", "7"]),
        (G_SPACE, {"G": [(*G_STAR[0], "none"), *G_STAR[1:]]}, ["cell 1", "7"]),
        (G_SPACE, {"G": [*G_STAR[:2], "bilinear"]}, ["cell 3", "7", "bilinear"]),
        (G_SPACE, {"G": G_STAR[:2]}, ["3"]),
        (G_SPACE, {"G": {"0": G_STAR[0]}}, ["3"]),
        (G_SPACE, {"G": D_C}, ["cell 1", "0->1", "conv_3x3"]),
        (G_SPACE, {"D": D_C}, ["--genotype"]),
        (D_SPACE, {"G": G_STAR}, ["--genotype"]),
    ],
)
def test_bad_codes_and_rows_of_a_genotype_file_are_refused(space: Space, bad: object, parts: list[str], tmp_path: Path):
    """In one line that names file, cell, edge or node, the value and what may stand there."""
    file = tmp_path / ("bad.json" if isinstance(bad, dict) else "bad.npy")
    file.write_text(json.dumps(bad)) if isinstance(bad, dict) else np.save(file, np.array(bad))
    with pytest.raises(UserError) as error:
        named(str(file), space, PUBLISHED, "--genotype")
    assert all(part in str(error.value) for part in [*parts, str(file)]), error.value
    assert "\n" not in str(error.value)


# ---- the search space and its networks (§3) --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "net", "rows", "networks", "smallest", "largest"),
    [
        (G_SPACE, Generator, 147_744, 3.225e15, ([0, 0, 1, 0, 1, 0, 0], 4_126_211), ([2, 2, 4, 4, 4, 4, 4], 28_718_339)),
        (D_SPACE, Discriminator, 511_488, 1.338e17, ([1, 1, 0, 0, 1, -1, -1], 151_808), ([4, 4, 4, 4, 4, 3, 3], 8_756_096)),
    ],
    ids=["G", "D"],
)
def test_every_network_counted_and_sized(space: Space, net: type, rows: int, networks: float, smallest: tuple, largest: tuple):
    """How many there are, and the codes and parameters of the smallest and the largest."""
    valid = ref.valid_rows(space)
    assert sum(prod(map(len, row)) for row in valid) == rows
    assert rows**3 == pytest.approx(networks, rel=5e-4)
    ch = 256 if space is G_SPACE else 128
    params = {op: op_cost(make, ch, 1).params for op, make in {**OPS_UP, **OPS_NORMAL, **OPS_DOWN}.items()} | {"none": 0}
    for extreme, (codes, found) in ((min, smallest), (max, largest)):
        cell = extreme(
            ([extreme(ops, key=params.get) for ops in row] for row in valid), key=lambda row: sum(map(params.get, row))
        )
        assert net.cost((tuple(cell),) * 3).params == net.cost(space.from_codes([codes] * 3)).params == found


def test_distances_of_the_published_genotypes():
    assert ref.distance(G_STAR, ADVNAS_G) == 4
    assert [ref.distance(d, AUTOGAN_D) for d in (D_C, D_S)] == [1, 2]


def paper_discriminator(D: Discriminator, genotype: Genotype, x: Tensor) -> tuple[Tensor, int]:
    """The scores and the multiply-adds for one image, from the definition."""
    macs = [D.out.weight.numel()]
    inner = convolve(D.stem2, convolve(D.stem1, x, macs, padding=1).relu(), macs, padding=1)
    x = F.avg_pool2d(inner, 2) + convolve(D.stem_skip, F.avg_pool2d(x, 2), macs)
    for row, cell in zip(genotype, D.cells, strict=True):
        edge = ref.paper_edges(cell, row, macs)
        n1 = edge(0, x)
        n2, n3 = edge(1, x) + edge(2, n1), edge(3, n1) + edge(4, x, relu=False)
        x = n2 + n3 if row[5] == "none" else edge(5, n2, stride=2) + edge(6, n3, stride=2)
    return F.linear(x.relu().sum((2, 3)), D.out.weight), sum(macs)


# (skip, none) into node 3: in the authors' supernet the skip inputs, added in place, then reach node 4 by edge 1->4 too
POLLUTED = G_SPACE.from_codes([[1, 1, 1, 0, 2, 3, 1], [1, 1, 1, 0, 3, 1, 5], [0, 1, 0, 1, 2, 3, 3]])


@torch.no_grad()
@pytest.mark.parametrize("size", [16, 24])
def test_generators_are_their_definition(size: int):
    """In the authors' code the supernet fails at 48 px, whose cells begin with 6, like those of 24 with 3."""
    shape = 6, 9, size
    supernet, z = Generator(None, *shape).double().eval(), normal(2, 9, seed=1)
    supernet.bn.running_mean.copy_(normal(6))
    supernet.bn.running_var.copy_(normal(6).square())
    assert count_params(supernet) == Generator.cost(None, *shape).params
    for g in [G_STAR, ADVNAS_G, POLLUTED, *genotypes(G_SPACE, 5)]:
        definition = ref.paper_generator(supernet, g, z)
        assert definition[0].shape == (2, 3, size, size)
        ref.assert_defined(definition, supernet, g, Generator(g, *shape), z, Generator.cost(g, *shape))


@torch.no_grad()
def test_discriminators_are_their_definition():
    supernet, x = Discriminator(None, 6).double().eval(), normal(2, 3, 32, 32)
    assert count_params(supernet) == Discriminator.cost(None, 6).params
    for d in [D_C, D_S, AUTOGAN_D, *genotypes(D_SPACE, 6)]:
        definition = paper_discriminator(supernet, d, x)
        ref.assert_defined(definition, supernet, d, Discriminator(d, 6), x, Discriminator.cost(d, 6))


# ---- evolution (§4.3) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "groups"),
    [
        (G_SPACE, {(0,): 3, (1,): 3, (2, 3): 48, (4, 5, 6): 342}),
        (D_SPACE, {(0,): 6, (1, 2): 48, (3, 4): 48, (5,): 7, (6,): 7}),
    ],
    ids=["G", "D"],
)
def test_sampling_is_uniform_over_the_valid_inputs_of_each_node(space: Space, groups: dict[tuple[int, ...], int]):
    """groups: columns -> how many values they have together. In the authors' D, 0->2 is always none."""
    rows = [row for genotype in genotypes(space, 10_000) for row in genotype]
    assert not any(map(space.row_error, set(rows)))
    for columns, values in groups.items():
        counts = Counter(tuple(row[c] for c in columns) for row in rows)
        want = len(rows) / values
        assert len(counts) == values
        assert all(abs(n - want) < 5 * sqrt(want) for n in counts.values())  # five standard deviations


def neighbours(space: Space, genotype: Genotype) -> dict[Genotype, int]:
    """The valid genotypes with one other op, or with both down edges of a cell switched on or off -> the edge."""
    found = {}
    for i, row in enumerate(genotype):
        others = [((*row[:c], op, *row[c + 1 :]), c) for c, edge in enumerate(space.edges) for op in edge.ops if op != row[c]]
        if space.together:
            pairs = product(OPS_DOWN, repeat=2) if row[5] == "none" else [("none", "none")]
            others += [((*row[:5], *pair), 5) for pair in pairs]
        valid = [(other, c) for other, c in others if not space.row_error(other)]
        found |= {(*genotype[:i], other, *genotype[i + 1 :]): c for other, c in valid}
    return found


@SPACES
def test_mutation_reaches_every_valid_neighbour(space: Space):
    """And nothing else: the authors' D mutation may leave one down edge none alone, or change nothing."""
    rng = random.Random(1)
    for genotype in [G_STAR if space is G_SPACE else AUTOGAN_D, *genotypes(space, 2)]:
        near, n = neighbours(space, genotype), 7_000
        found = [mutate(space, genotype, rng) for _ in range(n)]
        assert set(found) == near.keys()
        if space is G_SPACE:  # each edge equally often
            assert all(abs(count - n / 7) < 5 * sqrt(n / 7) for count in Counter(near[x] for x in found).values())


@SPACES
def test_crossover_takes_one_edge_of_the_other_parent(space: Space):
    """Any that differs, the down edges together where one parent has none; and the result is valid."""
    rng, parents = random.Random(0), [*genotypes(space, 30), *([G_STAR, ADVNAS_G] if space is G_SPACE else [D_S, D_C])]
    for a, b in pairwise(parents):
        between = {x for x in neighbours(space, a) if all(op in (y, z) for op, y, z in ref.edges_of(x, a, b))}
        assert {eagan.crossover(space, a, b, rng) for _ in range(300)} == between


def test_crossover_of_equals_ends():
    """The authors' goes on for ever."""
    assert eagan.crossover(G_SPACE, G_STAR, G_STAR, random.Random(0)) == G_STAR
    twins, only = [Individual(G_STAR, id=name) for name in "ab"], replace(TINY, p_crossover=1, p_mutation=0)
    (child,) = eagan.breed(only, G_SPACE, twins, 1, {G_STAR: None}, random.Random(0))
    assert (child.how, child.parents) == ("random", [])  # all that crossover can give is known


@SPACES
def test_children_are_new_and_valid(space: Space):
    base, most = (G_STAR, 3) if space is G_SPACE else (D_C, 6)
    args = replace(TINY, init_g="eagan-g", init_d="eagan-d-cifar10")
    parents = eagan.populate(args, space, 4, random.Random(0))  # so near that children collide
    assert parents[0].genotype == base
    assert all(1 <= ref.distance(base, p.genotype) <= most for p in parents[1:])
    seen = {p.genotype: None for p in parents}
    born = eagan.breed(args, space, parents, 150, seen, random.Random(1))
    assert len({x.genotype for x in parents + born}) == 154
    assert list(seen) == [x.genotype for x in parents + born]
    assert all(space.check(x.genotype, "child") for x in born)
    assert {len(x.parents) for x in born if x.how != "random"} == {1, 2}


def test_rates_of_variation():
    """Crossover 0.3 and mutation 0.5 are independent draws; a child without either is drawn again. [§4.3]"""
    parents, rng = [Individual(g) for g in genotypes(G_SPACE, 16)], random.Random(0)
    known = {x.genotype: None for x in parents}
    born = [eagan.breed(Args(), G_SPACE, parents, 1, dict(known), rng)[0] for _ in range(2000)]
    shares = {how: n / 2000 for how, n in Counter(x.how for x in born).items()}
    want = {"crossover": 0.15 / 0.65, "mutation": 0.35 / 0.65, "crossover+mutation": 0.15 / 0.65}
    assert shares == {how: pytest.approx(p, abs=0.05) for how, p in want.items()}


IS, FID, SIZE = [8, 7.5, 7, 6.5, 6, 5], [20, 18, 25, 30, 15, 60], [9, 7, 8, 5, 6, 20]
BY_IS, BY_FID = [1 / v for v in IS], [1 / v for v in FID]


def points(*columns: list[float]) -> list[tuple[float, ...]]:
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("values", "fronts"),
    [
        ([(1, 4), (2, 3), (3, 2), (4, 1), (2, 4), (3, 3)], [[0, 1, 2, 3], [4, 5]]),
        ([(1, 1), (1, 1), (2, 2)], [[0, 1], [2]]),
        (points(BY_IS, FID), [[0, 1, 4], [2], [3], [5]]),
        (points(BY_IS, BY_FID), [[0, 2, 3, 5], [1], [4]]),
        (points(BY_IS, SIZE), [[0, 1, 3], [2, 4], [5]]),
        (points(BY_IS, [1 / v for v in SIZE]), [[0, 5], [1, 2], [3, 4]]),
        (points(BY_IS, FID, SIZE), [[0, 1, 3, 4], [2], [5]]),
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
    values = [(1, 10), (2, 6), (4, 5), (8, 1), (9, 9), (3, 8), (10, 10)]  # fronts 0 to 3, 5, 4, 6
    fids = [fid for _, fid in values]
    assert set(eagan.select_nsga2(values, fids, 5)) == {0, 1, 2, 3, 5}
    assert set(eagan.select_nsga2(values, fids, 6)) == {0, 1, 2, 3, 4, 5}
    assert eagan.select_nsga2(values, fids, 3) == [3, 0, 2]  # both ends, lower FID first, then the less crowded


def scored(is_mean: float, fid: float, params: float, name: str) -> Individual:
    return Individual(G_STAR, id=name, params=params, is_mean=is_mean, fid=fid)


GOOD = [scored(*values, str(k)) for k, values in enumerate(points(IS, FID, SIZE))]
RULES = [*(("nsga2", names) for names in ("is,fid,size", "is,fid", "fid,size", "fid")), ("cars", "is,fid,size")]
UNUSABLE = [(nan, nan), (6.5, nan), (nan, 12.0), (6.5, inf)]  # IS, FID


@pytest.mark.parametrize(
    ("bad", "rule", "names"),
    [(bad, *rule) for bad in UNUSABLE for rule in RULES if isfinite(bad[0]) or "is" in rule[1]],
)
def test_unusable_scores_rank_last(bad: tuple[float, float], rule: str, names: str):
    """In the authors' sort nothing dominates a NaN. Here it loses to all others, even as the smallest."""
    state = State(population=[scored(*bad, 1, "bad"), *GOOD])
    for seed in range(20):
        kept, front = eagan.select(replace(TINY, objectives=names, selection=rule, seed=seed), state, 6)
        assert {x.id for x in kept} == {x.id for x in GOOD}
        assert "bad" not in {x.id for x in front}


def test_first_front_begins_with_the_lowest_fid():
    assert [x.id for x in eagan.select(TINY, State(population=GOOD), 1)[1]] == ["4", "1", "0", "3"]
    unusable = [scored(6.5, nan, 1, "a"), scored(nan, 12.0, 1, "b")]
    assert [x.id for x in eagan.select(TINY, State(population=unusable), 1)[1]] == ["b", "a"]


def test_cars_reaches_every_subset():
    """The authors' selection may keep the one that is worst in everything."""
    for keep in range(1, 6):
        found = {tuple(eagan.select_cars(points(BY_IS, FID, SIZE), keep, random.Random(seed))) for seed in range(200)}
        assert found == set(combinations(range(6), keep))
    many = np.random.default_rng(0).uniform(1, 2, (20, 3)).tolist()
    for keep in range(1, 21):
        found = eagan.select_cars(many, keep, random.Random(0))
        assert found == sorted(set(found))
        assert len(found) == keep


# ---- steps and schedule (§5.1) ---------------------------------------------------------------------------------------


def test_hinge_losses():
    job = job_of(replace(TINY, g_batch=64, g_lr=0.25, d_lr=0.25))
    nets = gan.pair_of(job, ref.Scaled(), ref.Scaled())
    G, D, real = nets.G, nets.D, normal(64, 1, 1, 1).float().expand(-1, 3, 4, 4)
    job.batches = {7: real}.__getitem__
    of_real, of_fake = real[:, 0, 0, 0], latent(job, 64, "d", 7)[:, 0]
    assert eagan.d_step(job, nets, gan.d_draw(job, 7), (None, None)).item() == pytest.approx(
        ref.hinge(of_real, of_fake), rel=1e-5
    )
    slope = (of_fake * (of_fake > -1) - of_real * (of_real < 1)).mean()
    torch.testing.assert_close(D.weight.grad, slope[None])
    torch.testing.assert_close(D.weight.data, 1 - 0.25 * slope.sign()[None])  # Adam's first step is the rate itself
    assert G.weight.grad is None

    want = -D.weight.data * latent(job, 64, "g", 7)[:, 0].mean()
    torch.testing.assert_close(eagan.g_step(job, nets, latent(job, 64, "g", 7), (None, None)), want.squeeze())
    torch.testing.assert_close(G.weight.grad, want)
    torch.testing.assert_close(D.weight.grad, slope[None])  # untouched by the step of G
    assert D.weight.requires_grad


@pytest.mark.parametrize("which", ["G", "D"])
def test_ops_that_are_not_sampled_are_left_alone(which: str):
    """No gradient, no step, and Adam's moments stay: zero gradients would let the second moments decay."""
    job = job_of(TINY)
    nets = gan.pair_of(job, tiny_g(None), seeded(job, lambda: eagan.make_d(None, TINY.d_ch), "D"))
    net, optimizer, step = (nets.G, nets.g_opt, eagan.g_step) if which == "G" else (nets.D, nets.d_opt, eagan.d_step)
    parameters, used, values = dict(net.named_parameters()), [], []
    for i, paths in enumerate(zip(genotypes(G_SPACE, 2), genotypes(D_SPACE, 2), strict=True)):
        step(job, nets, latent(job, job.g_batch, "g", i) if which == "G" else gan.d_draw(job, i), paths)
        used.append({name for name, p in parameters.items() if p.grad is not None})
        now = {name: [parameters[name], *optimizer.state[parameters[name]].values()] for name in used[0]}
        values.append(deepcopy(now))
    first, second = used
    assert first - second
    assert second - first
    for name in first:
        same = [torch.equal(a, b) for a, b in zip(values[0][name], values[1][name], strict=True)]
        assert all(same) if name not in second else not same[1]  # Adam's step count
    assert {name for name, p in parameters.items() if p in optimizer.state} == first | second


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
    G, paths, inputs = tiny_g(None), genotypes(G_SPACE, 3), []
    for i in range(3):
        G(normal(4, 6, seed=i).float(), paths[i])  # statistics of other paths
    before, momentum = clone(G), G.bn.momentum
    hook = G.bn.register_forward_hook(lambda _m, x, _y: inputs.append(x[0].transpose(0, 1).flatten(1)))
    with suppress(Stopped), own_batch_norm(job_of(TINY), G, paths[0], 3):
        hook.remove()
        assert [x.shape[1] for x in inputs] == [100 * 16 * 16] * 3
        torch.testing.assert_close(G.bn.running_mean, torch.stack([x.mean(1) for x in inputs]).mean(0))
        torch.testing.assert_close(G.bn.running_var, torch.stack([x.var(1) for x in inputs]).mean(0))
        assert not torch.allclose(G.bn.running_var, before["bn.running_var"])
        if error:
            raise error
    assert equal(before, clone(G))
    assert G.bn.momentum == momentum


@pytest.mark.parametrize(("images", "d_batch", "epoch", "updates"), [(50_000, 40, 1_250, 150_000), (105_000, 128, 821, 98_520)])
def test_evaluations_of_the_papers_training(images: int, d_batch: int, epoch: int, updates: int):
    """On CIFAR-10 and STL-10: untrained, at epochs 305, 310, ..., 595, and at the end."""
    job, G = ref.job_of_paper(Args(size=32, d_batch=d_batch, phase="train"), images), nn.Linear(120, 3)
    job.plan = eagan.plan_of(job)
    assert job.epoch == epoch
    assert [steps for _, steps, _ in job.plan] == [updates]
    state = State()
    for state.step in range(updates + 1):
        gan.evaluate_if_due(job, state, G, G, {})
    first, *amid, last = job.run.evaluations
    assert (first, last) == ((0, "untrained"), (updates, "last"))
    assert [(step * 5 / epoch, what) for step, what in amid] == [(k, "training") for k in range(305, 600, 5)]


@pytest.mark.parametrize(("n", "kept"), [(8, True), (9, False)])
def test_a_best_score_of_as_many_images_is_kept_and_of_others_is_not(n: int, kept: bool):
    job, G = job_of(replace(TINY, phase="train", eval_n=8)), ref.Scaled()
    job.plan = eagan.plan_of(job)
    state = State(step=job.plan[0][1], best={"fid": -100.0, "n": n, "net": "fake", "ref": "none", "step": 0})
    gan.evaluate_if_due(job, state, G, G, {})
    assert (state.last["n"], state.best["fid"] == -100) == (8, kept)


# ---- the two stages of the search (Algorithm 1) ----------------------------------------------------------------------

Weights = dict[str, Tensor]


class WatchedRun(Run):
    """A real run that notes at each safe point and scored round the weights of the live G and of all copies."""

    def note(self, what: str, value: object) -> None:
        live, copies = self.tracked[1]["G"].state_dict(), self.tracked[1].get("copies", {})
        storages = [v.untyped_storage().data_ptr() for weights in (live, *copies.values()) for v in weights.values()]
        assert len(set(storages)) == len(storages)  # none is shared, at any time
        self.events.append(SimpleNamespace(what=what, value=value, live=deepcopy(live), copies=deepcopy(copies)))

    def tick(self, step: int, upcoming: str = "") -> None:
        self.note("tick", step)
        super().tick(step, upcoming)

    def search_row(self, row: dict) -> None:
        self.note("row", row)
        super().search_row(row)


def search(stage: Callable, args: Args, folder: Path, g_weights: Weights | None = None) -> SimpleNamespace:
    """What a stage of the search left. rounds: the events that are rows of search.jsonl."""
    job = job_of(replace(args, runs_dir=folder))
    state = State(G=G_STAR if stage is eagan.search_d else None, D=AUTOGAN_D, g_weights=g_weights)
    about = {"dataset": "d", "digest": "", "plan": [], "facts": {}}
    with WatchedRun(eagan.__file__, "eagan", asdict(job.args), ref.ONE, **about) as job.run:
        job.run.events = []
        stage(job, state)
        job.run.note("end", None)
    written = str(job.run.dir / "genotype.json")
    assert [named(written, space, PUBLISHED) for space in (G_SPACE, D_SPACE)] == [state.G, state.D]
    rounds = [event for event in job.run.events if event.what == "row"]
    rows = [event.value for event in rounds]
    return SimpleNamespace(state=state, evaluator=job.evaluator, events=job.run.events, rounds=rounds, rows=rows)


def check_rounds(args: Args, space: Space, found: SimpleNamespace) -> None:
    """When rounds end; all are scored, half survive; survivors and their children go on; the best leads the front."""
    stage, batches_a_step = ("1", 1) if space is G_SPACE else ("2", args.n_critic)
    ends = [args.epoch_batches * (args.warmup_epochs + r * args.round_epochs) for r in range(1, args.rounds + 1)]
    told = [(row["stage"], row["round"], row["step"] * batches_a_step) for row in found.rows]
    assert told == [(stage, r, end) for r, end in enumerate(ends, 1)]
    plan = {name: steps for name, steps, _ in eagan.plan_of(job_of(args))}
    assert found.state.step == plan[f"search-{space.name.lower()}"]
    assert found.state.step * batches_a_step == found.state.batch == ends[-1]
    P = args.population
    everyone = {x["id"]: x["genotype"] for row in found.rows for x in row["population"]}
    assert len(set(everyone.values())) == len(everyone) == P + P // 2 * (args.rounds - 1)  # no genotype comes twice
    assert all(space.check(genotype, "found") for genotype in everyone.values())
    assert len(found.evaluator.scores) == (P + 1) * args.rounds + len(found.state.finalists)  # + 1: the best one, for the noise
    for row in found.rows:
        fids = {x["id"]: x["fid"] for x in row["population"]}
        assert (len(fids), len(row["kept"])) == (P, P // 2)
        assert fids.keys() >= set(row["front"])
        assert row["best"] == min(row["front"], key=fids.get)
        for x in row["population"]:
            assert x["params"] == eagan.cost_of(args, space, x["genotype"]).params
    for row, following in pairwise(found.rows):
        ids = [x["id"] for x in following["population"]]
        assert ids[: P // 2] == row["kept"]
        assert all(x["parents"] and {*x["parents"]} <= {*row["kept"]} for x in following["population"][P // 2 :])
    best = found.state.finalists[0].genotype
    assert best == (found.state.G if space is G_SPACE else found.state.D)


def fid_of(G: Generator, genotype: Genotype | None = None) -> float:
    """Of G as it is."""
    return gan.score(job_of(TINY), G, 8, gan.along(G, genotype)).fid


@pytest.mark.parametrize(("change", "size"), [({"mu_plus_lambda": True}, 8), ({"stages": "coupled"}, 4)])
def test_everyone_is_scored_at_every_round(change: dict, size: int, tmp_path: Path):
    """Survivors too: they have been trained since."""
    short = replace(TINY, rounds=2, round_epochs=1, warmup_epochs=0, epoch_batches=2)
    found = search(eagan.search_g, replace(short, **change), tmp_path)
    assert [len(row["population"]) for row in found.rows] == [size] * 2
    assert len(found.evaluator.scores) == 2 * (size + 1) + len(found.state.finalists)


def test_stage_1(tmp_path: Path):
    """Algorithm 1, lines 1-16."""
    found = search(eagan.search_g, TINY, tmp_path)
    state = found.state
    check_rounds(TINY, G_SPACE, found)
    for event in found.rounds:
        G = Generator(None, *TINY.g_shape)
        G.load_state_dict(event.live)
        for x in event.value["population"]:
            with own_batch_norm(job_of(TINY), G, x["genotype"], TINY.bn_batches):
                assert x["fid"] == pytest.approx(fid_of(G, x["genotype"]), rel=1e-6)
    fids = [x.fid for x in state.finalists]
    assert fids == sorted(found.evaluator.scores[-len(fids) :])
    # what stage 2 begins with: the supernet's weights of G*, and BatchNorm statistics of its own
    G = Generator(state.G, *TINY.g_shape)
    G.load_state_dict(state.g_weights)
    assert all(torch.equal(p, found.events[-1].live[name]) for name, p in G.named_parameters())
    assert fid_of(G) == pytest.approx(fids[0], rel=1e-6)


@pytest.fixture(scope="module")
def stage_2(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return search(eagan.search_d, TINY, tmp_path_factory.mktemp("runs"))


def equal(a: Weights, b: Weights) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def test_each_individual_has_its_own_generator(stage_2: SimpleNamespace):
    """A G step changes the copy of the one it trains and no other. In the authors' code all are one network. [§4.2]"""
    trained = []
    for before, after in pairwise(stage_2.events):
        if before.what == after.what == "tick" and before.copies:  # a single step lies between them
            (moved,) = [i for i in after.copies if not equal(before.copies[i], after.copies[i])]
            assert [i for i in after.copies if equal(after.copies[i], after.live)] == [moved]
            batches = [event.copies[moved]["bn.num_batches_tracked"] for event in (before, after)]
            assert batches[1] - batches[0] == TINY.n_critic + 1  # it went on from its own weights
            trained.append(moved)
    assert len(set(trained)) >= TINY.population


def test_copies_begin_with_the_warmed_up_weights(stage_2: SimpleNamespace):
    """The authors' first visit of an individual brings weights from before the warm-up."""
    first = next(event for event in stage_2.events if event.copies)
    assert len(first.copies) == TINY.population
    assert all(equal(weights, first.live) for weights in first.copies.values())
    assert not equal(first.live, stage_2.events[0].live)


def test_stage_2(stage_2: SimpleNamespace):
    """Algorithm 1, lines 17-32; each is scored by its own generator."""
    check_rounds(TINY, D_SPACE, stage_2)
    G = Generator(G_STAR, *TINY.g_shape)
    for event in stage_2.rounds:
        fids = {x["id"]: x["fid"] for x in event.value["population"]}
        for i, weights in event.copies.items():
            G.load_state_dict(weights)
            assert fids[i] == pytest.approx(fid_of(G), rel=1e-6)
        assert len(set(fids.values())) > 1


def next_rounds(found: SimpleNamespace) -> list[tuple[SimpleNamespace, SimpleNamespace]]:
    """For all rounds but the last: its end, with the copies that were scored, and the beginning of the next."""
    pairs = [(a, b) for a, b in pairwise(found.events) if (a.what, b.what) == ("row", "tick")]
    for (_, begun), row in zip(pairs, found.rows[1:], strict=True):
        assert begun.copies.keys() == {x["id"] for x in row["population"]}
    return pairs


def test_weight_resetting(stage_2: SimpleNamespace):
    """Paper §4.2: all copies restart from the best one's weights."""
    for end, begun in next_rounds(stage_2):
        best = end.copies[end.value["best"]]
        assert all(equal(weights, best) for weights in begun.copies.values())
        assert not all(equal(weights, best) for weights in end.copies.values())


def test_without_weight_resetting_weights_follow_their_genotype(tmp_path: Path):
    """The authors reorder the genotypes and leave the weights as they were."""
    args = replace(TINY, rounds=2, population=6, weight_reset=False)
    found = search(eagan.search_d, args, tmp_path)
    check_rounds(args, D_SPACE, found)
    parents = {x["id"]: x["parents"] for row in found.rows for x in row["population"]}
    others = 0
    for end, begun in next_rounds(found):
        row, before = end.value, end.copies
        source = {i: i if i in row["kept"] else parents[i][0] for i in begun.copies}
        assert all(equal(weights, before[source[i]]) for i, weights in begun.copies.items())
        others += sum(not equal(before[j], before[row["best"]]) for i, j in source.items() if i != j)
    assert others  # children whose weights are not those of the best: there is something to mix up


def test_stage_2_begins_with_the_weights_of_stage_1(tmp_path: Path):
    """The authors' begins with a random generator."""
    given = clone(tiny_g(G_STAR, "found"))
    args = replace(TINY, rounds=1, warmup_epochs=0, epoch_batches=2)
    found = search(eagan.search_d, args, tmp_path, given)
    assert equal(found.events[0].live, given)
    assert found.state.g_weights is None
