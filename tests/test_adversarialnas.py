"""AdversarialNAS: the published numbers, both networks against their definitions, the merged edge, the four updates."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import log10, prod, sqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cells import normal, paper_op
from torch import Tensor, nn
from torch.nn.utils import parametrize

import adversarialnas as nas
from adversarialnas import D_SPACE, G_SPACE, PUBLISHED, Args, Discriminator, Generator, Logits, State, Supernets
from common import gan
from common.cells import CONVS, OPS_NORMAL, Genotype, Normal, Space, count_params, named
from common.files import stream
from common.gan import latent
from common.metrics import IS_SPLITS
from tests import reference as ref
from tests.reference import QuietRun, job_of, job_of_paper
from tests.runs import read, rows, slow, start

pytestmark = pytest.mark.usefixtures("quick_compact")

PAPER_G = named("adversarialnas-g", G_SPACE, PUBLISHED)
ANIMATION_D = named("animation-d", D_SPACE, PUBLISHED)
PAPER = replace(Args(), size=32, chunks=3)
TINY = replace(PAPER, size=16, z_dim=6, search_g_ch=4, search_d_ch=4, g_ch=4, d_ch=4, search_batch=4, g_batch=4, d_batch=4)
MERGED = pytest.mark.parametrize("merged", [False, True], ids=["plain", "merged"])


def genotypes(space: Space, n: int) -> list[Genotype]:
    rng = random.Random(0)
    return [nas.random_genotype(space, rng) for _ in range(n)]


def one_hot(space: Space, genotype: Genotype) -> nas.Mix:
    """Mixing weights that choose the genotype."""
    mix = []
    for cell, row in enumerate(genotype):
        chosen = zip(space.edges_of(cell), row, strict=True)
        mix.append({e.name: {op: torch.tensor(op == the_op, dtype=torch.float64) for op in e.ops} for e, the_op in chosen})
    return mix


def mix_of(logits: Logits, job: gan.Job, tau: float, name: str) -> nas.Mix:
    """Mixing weights under the noise of this name."""
    return logits.mix(job, tau, logits.noise(job, name))


def gumbel(like: Tensor, name: str) -> Tensor:
    return -torch.empty_like(like).exponential_(generator=stream(0, name)).log()


def random_mix(space: Space, dtype: torch.dtype = torch.float64) -> nas.Mix:
    """Mixing weights of equal logits under a draw of the noise."""
    return mix_of(Logits(space).to(dtype), job_of(TINY), 1.0, "test")


# ---- the published networks, measured on the authors' code -----------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "name", "shape", "params", "macs"),
    [
        ("G", "adversarialnas-g", (256, 120, 32, 3), 8_846_851, 2_680.479),
        ("G", "adversarialnas-g", (270, 120, 48, 2), 8_881_923, 6_701.684),
        ("G", "adversarialnas-g", (32,), 525_251, None),
        ("G", "animation-g", (256,), 11_338_755, None),
        ("G", "mmd-g", (256,), 20_185_859, 8_880.283),
        ("G", "mmd-g", (128,), 5_931_395, None),
        ("G", None, (160,), 29_265_443, 12_149.832),  # of which the authors count all but 0.968 M
        ("D", "animation-d", (128, 32), 4_553_984, 1_309.317),
        ("D", "animation-d", (80, 32), 1_782_560, None),
        ("D", None, (80, 32), 11_049_120, 1_996.031),
        ("D", "autogan", (128, 32), 1_053_824, 272.499),
        ("D", "autogan", (128, 48), 1_053_824, 613.122),
    ],
)
def test_costs_of_the_published_networks_and_the_supernets(net: str, name: str, shape: tuple, params: int, macs: float):
    """macs: millions, of convolutions and linears with bias; (channels, latent, side, parts of it) or (channels, side)."""
    genotype = named(name, G_SPACE if net == "G" else D_SPACE, PUBLISHED) if name in PUBLISHED[net] else name
    made, cost = (Generator, Generator.cost) if net == "G" else (nas.make_d, nas.d_cost)
    assert count_params(made(genotype, *shape)) == cost(genotype, *shape).params == params
    assert (net, name) != ("D", None) or ref.normed(made(None, *shape)) == 133
    assert macs is None or cost(genotype, *shape).macs / 1e6 == pytest.approx(macs, abs=5e-4)


@torch.no_grad()
def test_sn_gans_discriminator():
    assert nas.d_cost("sngan", 8, 32) == ref.counted(nas.make_d("sngan", 8, 32), normal(2, 3, 32, 32).float())
    D = nas.SNGANDiscriminator(128)
    channels = [m.out_channels for m in D.layers if isinstance(m, nn.Conv2d)]
    assert channels == [64, 64, 128, 128, 256, 256, 512]


TABLE_1 = (  # of the paper, in the order of the file: 0->1, 0->2, 1->3, 2->3, 1->4, 2->4, 3->4
    ("bilinear", "bilinear", "skip_connect", "none", "conv_3x3", "conv_3x3", "skip_connect"),
    ("bilinear", "bilinear", "none", "skip_connect", "conv_3x3", "conv_3x3", "conv_3x3"),
    ("nearest", "bilinear", "none", "conv_3x3", "conv_3x3", "none", "conv_3x3"),
)


def test_the_published_generator_is_that_of_table_1():
    assert PAPER_G == TABLE_1
    assert G_SPACE.to_codes(PAPER_G) == [[1, 1, 1, 0, 3, 3, 1], [1, 1, 0, 1, 3, 3, 3], [0, 1, 0, 3, 3, 0, 3]]
    G = Generator(PAPER_G, 4)
    assert [cell.resize for cell in G.cells[1:]] == ["bilinear", "nearest"]  # Table 1: 3->c2 and 3->c3
    assert [len(cell.skips) for cell in G.cells] == [0, 1, 2]


def test_g_params_sets_the_width():
    """Paper §4.2.3: the generator at 1 to 25 million parameters. The width that comes nearest, down to one channel."""
    widths = {1e6: 55, 2e6: 93, 5e6: 177, 8_846_851: 256, 10e6: 276, 15e6: 353, 20e6: 419, 25e6: 477}
    for target, ch in widths.items():
        assert nas.g_shape(replace(PAPER, g_params=target), PAPER_G) == (ch, 120, 32, 3)
    assert nas.g_shape(PAPER, PAPER_G) == (256, 120, 32, 3)
    for genotype in genotypes(G_SPACE, 2):
        params = {ch: Generator.cost(genotype, ch, 6, 16).params for ch in range(1, 60)}
        for target in (1, 3_000, 12_345, 2e4):
            nearest = min(params, key=lambda ch: abs(params[ch] - target))
            assert nas.g_shape(replace(TINY, g_params=target), genotype)[0] == nearest < 59


# ---- the search space and its networks (§3.3) ------------------------------------------------------------------------


def test_sizes_of_the_space():
    """As powers of 10: all genotypes of G and of D, whose first cell has fewer, and those that can be built."""
    cells = [(G_SPACE, 0, 3), (D_SPACE, 0, 1), (D_SPACE, 1, 3)]
    every = [n * log10(prod(len(e.ops) for e in space.edges_of(cell))) for space, cell, n in cells]
    valid = [n * log10(sum(prod(map(len, row)) for row in ref.valid_rows(space, cell))) for space, cell, n in cells]
    assert [every[0], every[1] + every[2]] == pytest.approx([15.5392, 22.6888], abs=5e-5)
    assert [valid[0], valid[1] + valid[2]] == pytest.approx([15.5085, 22.4376], abs=5e-5)


def test_random_genotypes_are_valid_and_uniform():
    found = genotypes(G_SPACE, 3000)
    assert all(G_SPACE.check(g, "random") for g in found)
    cells = [row for g in found for row in g]
    spread = 5 * sqrt(1 / 8 * 7 / 8 / len(cells))
    assert sum(row[2] == "none" for row in cells) / len(cells) == pytest.approx(6 / 48, abs=spread)
    assert sum(row[0] == "conv_transpose" for row in cells) / len(cells) == pytest.approx(1 / 3, abs=2 * spread)
    sizes = sorted(Generator.cost(g).params for g in found)
    assert sizes[len(sizes) // 2] / 1e6 == pytest.approx(13.8, abs=0.2)
    assert all(D_SPACE.check(d, "random") for d in genotypes(D_SPACE, 200))


def test_a_node_that_nobody_reads_needs_no_input():
    row = ("none", "skip_connect", "conv_1x1", "none", "none", "avg_pool", "max_pool")
    first = ("conv_1x1", "conv_1x1", "conv_1x1", "none", "none", "avg_pool", "max_pool")
    D = Discriminator(D_SPACE.check([first, row, row, row], "d"), 3)
    D(normal(2, 3, 16, 16).float()).sum().backward()
    dead = {name.split(".")[3] for name, p in D.named_parameters() if p.grad is None}
    assert dead == {"0"}  # edge 0->1 of the first cell: built and counted, never computed


def paper_discriminator(D: Discriminator, genotype: Genotype, x: Tensor) -> tuple[Tensor, int]:
    """The scores and the multiply-adds for one image, from the definition: no ReLU on the image."""
    macs = [D.out.weight.numel()]
    for i, (row, cell) in enumerate(zip(genotype, D.cells, strict=True)):
        edge = ref.paper_edges(cell, row, macs)
        n1 = edge(0, x, relu=i > 0)
        n2, n3 = edge(1, x, relu=i > 0) + edge(3, n1), edge(2, x, relu=i > 0) + edge(4, n1)
        x = edge(5, n2, stride=2) + edge(6, n3, stride=2)
    return F.linear(x.relu().sum((2, 3)), D.out.weight), sum(macs)


@torch.no_grad()
@pytest.mark.parametrize(("size", "chunks"), [(16, 3), (24, 2)])
def test_super_g_of_one_hot_weights_is_the_derived_g(size: int, chunks: int):
    shape = 6, 12, size, chunks
    supernet, z = Generator(None, *shape).double().eval(), normal(2, 12, seed=1)
    supernet.bn.running_mean.copy_(normal(6))
    supernet.bn.running_var.copy_(normal(6).square())
    for g in [PAPER_G, *genotypes(G_SPACE, 4)]:
        definition = ref.paper_generator(supernet, g, z)
        assert definition[0].shape == (2, 3, size, size)
        ref.assert_defined(definition, supernet, one_hot(G_SPACE, g), Generator(g, *shape), z, Generator.cost(g, *shape))


@torch.no_grad()
def test_super_d_of_one_hot_weights_is_the_derived_d():
    supernet, x = Discriminator(None, 6).double().eval(), normal(2, 3, 32, 32)
    for d in [ANIMATION_D, *genotypes(D_SPACE, 3)]:
        definition = paper_discriminator(supernet, d, x)
        ref.assert_defined(definition, supernet, one_hot(D_SPACE, d), Discriminator(d, 6), x, nas.d_cost(d, 6, 32))


@pytest.mark.parametrize(("net", "size"), [("G", 16), ("G", 24), ("D", 32), ("D", 16), ("D", 48)])
def test_merged_and_plain_are_one_function(net: str, size: int):
    """Images or scores, and the gradients of input, weights and logits, in float64; maps from 2 to 48 px."""
    torch.manual_seed(0)
    logits = Logits(G_SPACE if net == "G" else D_SPACE).double()
    model = (Generator(None, 4, 12, size) if net == "G" else Discriminator(None, 3)).double().eval()
    x = (normal(2, 12) if net == "G" else normal(2, 3, size, size)).requires_grad_()
    differentiated, found = [x, *model.parameters(), *logits.tables], []
    for merged in (False, True):
        for cell in model.cells:
            cell.merged = merged
        y = model(x, mix_of(logits, job_of(TINY), 1.0, "test"))
        loss = (y * normal(*y.shape, seed=9)).sum()
        found.append([y, *torch.autograd.grad(loss, differentiated, materialize_grads=True)])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-10 * one.abs().max().clamp(min=1)
    assert all((gradient != 0).all() for gradient in found[1][-2:])


@torch.no_grad()
@MERGED
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [2, 4, 6, 16])
def test_a_mixed_edge_is_the_weighted_sum_of_its_ops(side: int, stride: int, merged: bool):
    """Paper Eq. 1."""
    torch.manual_seed(0)
    edge = nas.DownCell(4, None, 1).double().eval().edges[5 if stride == 2 else 0]
    x, mix = normal(2, 4, side, side), random_mix(D_SPACE)[1]
    (found,) = nas.leave(x, (edge,), mix, merged, stride)
    want = sum(mix[edge.name][op] * paper_op(op, edge[op], x, [], stride) for op in edge)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def test_merged_and_plain_have_the_same_weights_and_power_iterations():
    """One state dict for both; a training forward advances every spectral norm once in both."""
    states, mix = [], random_mix(D_SPACE, torch.float32)
    for merged in (False, True):
        torch.manual_seed(0)
        D = Discriminator(None, 3, merged)
        D(normal(2, 3, 16, 16).float(), mix)
        states.append(D.state_dict())
    one, other = states
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_merged_edge_keeps_one_activation():
    """What autograd keeps of an Up-Cell's node: one map for all convolutions in place of one each."""
    cell, x = nas.UpCell(2, None, 0), normal(64, 2, 16, 16).float().requires_grad_()
    mix, kept = random_mix(G_SPACE, torch.float32)[0], {}
    for merged in (False, True):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            out = nas.leave(x, (cell.edges[2], cell.edges[4]), mix, merged)
        kept[merged] = len({t.untyped_storage().data_ptr() for t in saved if t.numel() == x.numel()})
        del out
    assert kept == {False: 21, True: 2}  # plain: five ReLUs and outputs an edge, and x; merged: x and its ReLU


# ---- continuous relaxation and derivation (§3.2) ---------------------------------------------------------------------


def test_alpha_and_beta_begin_near_zero():
    torch.manual_seed(0)
    drawn = torch.cat([t.flatten() for _ in range(100) for t in Logits(D_SPACE).tables])
    assert drawn.std().item() == pytest.approx(1e-3, rel=0.02)
    assert abs(drawn.mean().item()) < 3e-5


def test_temperature():
    want = {0: 5.0, 1: 4.2757, 5: 2.2865, 10: 1.0456, 15: 0.4782, 20: 0.2187, 24: 0.1169}
    assert {epoch: round(PAPER.tau(epoch), 4) for epoch in want} == want
    assert min(PAPER.tau(epoch) for epoch in range(60)) == 0.1


@pytest.mark.parametrize(
    ("ops", "logit", "prob", "log"),
    [
        (7, 100, 0.3118, 1),  # a certain op: e / (e + ops - 1)
        (6, 100, 0.3522, 1),
        (3, 100, 0.5761, 1),
        (7, 0, 0.142, 0.142),
        (7, 1.2, 0.176, 0.355),
        (7, 3, 0.257, 0.770),
    ],
)
def test_how_often_an_op_is_the_strongest(ops: int, logit: float, prob: float, log: float):
    """Under noise on the probabilities, paper Eq. 2, and on their logarithms, the Gumbel-softmax."""
    logits = torch.zeros(100_000, ops)
    logits[:, 0] = logit
    for form, share in (("prob", prob), ("log", log)):
        w = nas.mix_weights(logits, 0.5, form, gumbel(logits, form))
        torch.testing.assert_close(w.sum(-1), torch.ones(100_000))
        assert (w.argmax(-1) == 0).float().mean().item() == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("form", ["prob", "log", "off"])
def test_gradient_of_the_mixing_weights(form: str):
    """Against finite differences, under one draw of the noise."""
    logits = normal(3, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nas.mix_weights(x, 0.7, form, gumbel(logits, "test")), logits)


def test_mixing_weights_sum_to_one_and_one_draw_serves_all_edges():
    torch.manual_seed(0)
    beta = Logits(D_SPACE)
    for form in ("prob", "log", "off"):
        job = job_of(replace(TINY, gumbel=form))
        mix, again, other = (mix_of(beta, job, 0.3, name) for name in "aab")
        sums = [sum(ops.values()).item() for edges in mix for ops in edges.values()]
        assert all(x < 1 for x in sums[:3])  # the dead have their share
        assert sums[3:] == pytest.approx([1] * 25)
        assert mix == again
        assert (mix[2]["1->2"] == other[2]["1->2"]) == (form == "off")
        assert list(mix[2]["1->2"].values()) != list(mix[2]["1->3"].values())
    off = mix_of(beta, job, 0.3, "a")[1]["2->4"]
    torch.testing.assert_close(torch.stack(list(off.values())), beta.tables[1][1, 0].softmax(0))
    cold, warm = (max(mix_of(beta, job_of(TINY), tau, "a")[1]["0->1"].values()) for tau in (0.1, 5.0))
    assert cold > 0.9 > 0.4 > warm


def with_op(space: Space, edge: str, op: str) -> Space:
    """The space with one op more on one edge, in all cells."""

    def longer(edges: tuple) -> tuple:
        return tuple(e._replace(ops=(*e.ops, op)) if e.name == edge else e for e in edges)

    return replace(space, edges=longer(space.edges), first=longer(space.first))


LONGER = [(G_SPACE, "2->3"), (G_SPACE, "0->1"), (D_SPACE, "0->2"), (D_SPACE, "1->2"), (D_SPACE, "2->4")]
NINE_FROM_THE_IMAGE = replace(D_SPACE, first=(D_SPACE.first[0]._replace(ops=tuple("abcdefghi")), *D_SPACE.first[1:]))


@pytest.mark.parametrize(
    "space", [G_SPACE, D_SPACE, NINE_FROM_THE_IMAGE, *(with_op(space, edge, "extra") for space, edge in LONGER)]
)
def test_every_number_of_a_table_is_the_weight_of_one_op_or_dead(space: Space):
    """Whatever the edges hold."""
    logits = Logits(space)
    tables = [1000 * k + torch.arange(t.numel()).view(t.shape) for k, t in enumerate(logits.tables)]
    cells = logits.by_op(tables)
    numbers = [n.item() for cell in cells for ops in cell.values() for n in ops.values()]
    assert len(set(numbers)) == len(numbers)
    for cell, (row, mix) in enumerate(zip(logits.rows(tables), mix_of(logits, job_of(TINY), 1.0, "x"), strict=True)):
        edges = space.edges_of(cell)
        assert [(name, tuple(ops)) for name, ops in mix.items()] == [(e.name, e.ops) for e in edges]
        for e in edges:
            assert [n.item() for n in cells[cell][e.name].values()] == row[e.name][: len(e.ops)].tolist()


@MERGED
@pytest.mark.parametrize("op", ["conv_5x5", "skip_connect"])
def test_a_mix_that_lacks_an_op_is_refused(op: str, merged: bool):
    cell, mix = nas.UpCell(4, None, 0, merged).double(), random_mix(G_SPACE)[0]
    del mix["1->4"][op]
    with pytest.raises(KeyError, match=op):
        cell(normal(1, 4, 4, 4), mix, [])


@torch.no_grad()
@MERGED
@pytest.mark.parametrize(
    ("op", "make"), [("again", partial(Normal, "skip_connect")), ("conv_7x7", partial(Normal, "conv_7x7"))]
)
@pytest.mark.parametrize(("net", "edge"), [("G", "2->3"), ("D", "1->3")])
def test_a_supernet_computes_one_op_more(monkeypatch, net: str, edge: str, op: str, make: Callable, merged: bool):
    """A plain op, and a convolution that `merge` does not know: by its weight, alone and among the others."""
    monkeypatch.setitem(CONVS, "conv_7x7", (7, 1))
    monkeypatch.setitem(OPS_NORMAL, op, make)
    space = with_op(G_SPACE if net == "G" else D_SPACE, edge, op)
    monkeypatch.setattr(nas, f"{net}_SPACE", space)
    torch.manual_seed(0)
    genotype = [list(row) for row in (PAPER_G if net == "G" else ANIMATION_D)]
    genotype[1][[e.name for e in space.edges].index(edge)] = op
    make = partial(Generator, ch=4, z_dim=12, size=16) if net == "G" else partial(Discriminator, ch=4)
    model, alone, x = make(None, merged=merged), make(genotype), normal(2, 12) if net == "G" else normal(2, 3, 16, 16)
    ref.take_weights(alone, model.double().eval())
    torch.testing.assert_close(model(x, one_hot(space, genotype)), alone(x), rtol=0, atol=1e-10)
    assert make.func.cost(genotype, **make.keywords).params == count_params(alone)
    mix = random_mix(space)
    y = model(x, mix)
    for cell in model.cells:
        cell.merged = False
    torch.testing.assert_close(y, model(x, mix), rtol=0, atol=1e-10)
    mix[1][edge][op] = mix[1][edge][op] + 1
    assert (model(x, mix) - y).abs().max() > 1e-6


class Sep(nn.Module):
    """An operation with two convolutions of its own."""

    def __init__(self, ch: int, relu: bool = True) -> None:
        super().__init__()
        self.relu, self.convs = relu, nn.Sequential(nn.Conv2d(ch, ch, 3, padding=1, groups=ch), nn.Conv2d(ch, ch, 1))


def test_d_normalises_the_convolutions_of_an_operation_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(OPS_NORMAL, "sep", Sep)
    for column, image in ((3, False), (0, True)):
        op = nas.DownCell.op("sep", 4, column, image)
        assert [parametrize.is_parametrized(conv, "weight") for conv in op.convs] == [True, True]
        assert op.relu is not image


def likely(space: Space, rows: list[list[str]], none: dict[tuple[int, int], float], second: str) -> list[dict]:
    """Probabilities by which these ops win; none: p(none) of some edges; second: the runner-up where none wins."""
    cells = []
    for cell, row in enumerate(rows):
        cells.append({})
        for column, (edge, op) in enumerate(zip(space.edges_of(cell), row, strict=True)):
            p = dict.fromkeys(edge.ops, 0.01) | ({second: 0.1} if op == "none" else {})
            cells[-1][edge.name] = p | {op: none.get((cell, column), 0.5)}
    return cells


def test_repair_of_nodes_without_an_input():
    """The edge whose p(none) is smallest, the first of equals; node 1 of D needs one only if an edge leaves it."""
    up, down, dead = ["nearest", "bilinear"], ["max_pool", "avg_pool"], ["none"] * 5
    none = {(0, 2): 0.6, (0, 3): 0.5, (1, 2): 0.4, (1, 3): 0.5, (0, 4): 0.5, (0, 5): 0.6, (0, 6): 0.4}
    found = nas.derive(G_SPACE, likely(G_SPACE, [up + dead] * 3, none, "conv_5x5"))
    assert found[0] == (*up, "none", "conv_5x5", "none", "none", "conv_5x5")
    assert found[1] == found[2] == (*up, "conv_5x5", "none", "conv_5x5", "none", "none")

    image = ["conv_1x1"] * 3 + ["none"] * 2 + down
    none = {(1, 1): 0.4, (1, 3): 0.5, (1, 2): 0.4, (1, 4): 0.5, (2, 1): 0.5, (2, 3): 0.4, (2, 2): 0.4, (2, 4): 0.5}
    found = nas.derive(D_SPACE, likely(D_SPACE, [image, *[dead + down] * 3], none, "conv_3x3"))
    assert found[0] == tuple(image)
    assert found[1] == found[3] == ("none", "conv_3x3", "conv_3x3", "none", "none", *down)
    assert found[2] == ("conv_3x3", "none", "conv_3x3", "conv_3x3", "none", *down)


def test_the_strongest_ops_are_derived_where_they_are_valid():
    torch.manual_seed(0)
    repaired = 0
    for _ in range(200):
        beta = Logits(D_SPACE)
        for t in beta.tables:
            t.data.normal_()
        found = nas.derive(D_SPACE, beta.probabilities())
        assert D_SPACE.check(found, "found") == found
        for row, edges in zip(found, beta.by_op(beta.tables), strict=True):
            strongest = tuple(max(ops, key=ops.get) for ops in edges.values())
            assert row == strongest or D_SPACE.row_error(strongest)
            repaired += row != strongest
    assert repaired > 10


# ---- the four updates (Algorithm 1) ----------------------------------------------------------------------------------


class WatchedRun(QuietRun):
    """Notes of every update whose it is, what it moves, the latents of its fakes, what D sees, both outputs' precision."""

    def track(self, _state: State, **parts: object) -> None:
        self.updates, self.passes = [], []
        self.nets = {name: parts[name] for name in ("G", "D", "alpha", "beta") if name in parts}
        for net in (parts["G"], parts["D"]):
            net.register_forward_hook(self.watch_pass)
        for name in self.nets:
            optimizer = parts[f"{name.lower()}_opt"]
            optimizer.register_step_pre_hook(self.before)
            optimizer.register_step_post_hook(partial(self.after, name))

    def watch_pass(self, net: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if net.training:  # not the sample grid of a snapshot
            self.passes.append((given[0].detach(), made.dtype))

    def before(self, *_: object) -> None:
        self.old = {name: [p.detach().clone() for p in net.parameters()] for name, net in self.nets.items()}

    def after(self, name: str, *_: object) -> None:
        moved = {k for k, net in self.nets.items() if not all(map(torch.equal, self.old[k], net.parameters()))}
        (z, of_g), *of_d = self.passes  # one pass of D, or one for the real and one for the fake images
        seen, dtypes = torch.cat([x for x, _ in of_d]), {of_g, *(dtype for _, dtype in of_d)}
        self.updates.append(SimpleNamespace(net=name, moved=moved, z=z, seen=seen, dtypes=dtypes))
        self.passes = []


def watched_search(**changes: object) -> tuple[nas.Job, list[SimpleNamespace]]:
    """One epoch of three batches, of 6, 6 and 4 images."""
    args = replace(TINY, search_epochs=2, search_batch=6, n_critic=2, search_eval_every=0, **changes)
    job = job_of(args, run=WatchedRun())
    nas.search(job, State())
    return job, job.run.updates


@pytest.mark.parametrize("amp", [False, True])
def test_the_four_updates(amp: bool):
    """In order, on a half each of the real batch and on fakes of their own; each moves its own net only."""
    job, updates = watched_search(amp=amp)
    assert [u.net for u in updates] == ["beta", "D", "alpha", "G", "beta", "D", "beta", "D", "alpha", "G"]
    assert all(u.moved == {u.net} for u in updates)
    assert [len(u.seen) for u in updates] == [6, 6, 6, 6, 6, 6, 4, 4, 6, 6]
    assert len({u.z[0, 0].item() for u in updates}) == len(updates)
    for i, at in enumerate((0, 4, 6)):
        of_beta, of_d = (u.seen.chunk(2)[0] for u in updates[at : at + 2])
        assert torch.equal(torch.cat([of_d, of_beta]), job.batches_of(6)(i))
    for u in updates:  # of an architecture always in float32
        assert u.dtypes == {torch.bfloat16 if amp and u.net in ("G", "D") else torch.float32}


@pytest.mark.parametrize("kind", [slow("sngan"), slow("autogan"), "super"])
def test_singalnas_leaves_the_architecture_of_d_alone(kind: str):
    """Paper Table 3."""
    _, updates = watched_search(fixed_d=kind)
    assert [u.net for u in updates] == ["D", "alpha", "G", "D", "D", "alpha", "G"]
    assert all(u.moved == {u.net} for u in updates)


def test_snapshots_and_scores_come_when_they_are_due():
    """Of 4 epochs of 6 batches, the first untrained; each at the temperature of its epoch, and neither comes twice."""
    args = replace(TINY, search_epochs=4, epoch_batches=6, derive_every=4, search_eval_every=2)
    job, state, scored = job_of(args), State(), set()
    nets = Supernets(job)
    for state.batch in range(19):
        nas.report_if_due(job, state, nets)
        nas.report_if_due(job, state, nets)  # as a resumed run does
        scored.add(state.scored)
    assert [(row["batch"], row["tau"]) for row in job.run.rows] == [(i, args.tau(1 + i // 6)) for i in (0, 4, 8, 12, 16, 18)]
    assert scored == {0, 12, 18}
    scores = job.evaluator.scores.copy()
    assert scores == [gan.score(job, nets.G_ema, 8, nets.averaged(job, args.tau(epoch))).fid for epoch in (0, 2, 3)]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_score_leaves_the_live_weights_alone(overwrite: bool):
    """The authors' code goes on from the averages, alpha's too, as --ref-ema-overwrite does."""
    job = job_of(replace(TINY, ref_ema_overwrite=overwrite))
    nets = Supernets(job)
    for p in (*nets.G.parameters(), *nets.alpha.parameters()):
        p.data.add_(1)
    nets.G.bn.running_mean.fill_(5.0)
    kept = (nets.G_ema, nets.alpha_ema) if overwrite else (nets.G, nets.alpha)
    want = [p.detach().clone() for net in kept for p in net.parameters()]
    state = State()
    nas.report_if_due(job, state, nets)
    assert state.scored == 0
    assert all(map(torch.equal, want, (*nets.G.parameters(), *nets.alpha.parameters())))
    assert (nets.G.bn.running_mean == 5).all()
    assert (nets.G_ema.bn.running_mean == 5).all()


def test_search_rows_tell_probabilities_entropy_genotype_and_flips(whole: Path) -> None:
    found = rows(whole, "search.jsonl")
    assert [(r["batch"], r["step"]) for r in found] == [(0, 0), (3, 2), (4, 2)]
    for row in found:
        for net, space in (("G", G_SPACE), ("D", D_SPACE)):
            edges = {f"{c + 1}/{e.name}": e for c in range(space.cells) for e in space.edges_of(c)}
            assert list(row["probabilities"][net]) == list(row["entropy"][net]) == list(edges)
            for key, edge in edges.items():
                p = row["probabilities"][net][key]
                assert tuple(p) == edge.ops
                dead = net == "D" and len(edge.ops) == 5
                assert sum(p.values()) == pytest.approx(5 / 7 if dead else 1, abs=0.05 if dead else 1e-5)
                assert 0 < row["entropy"][net][key] < 1.9460  # ln 7
            assert space.check(row["genotype"][net], "row")
    flips = {"G": 0, "D": 0}
    for before, row in pairwise(found):
        for net in "GD":
            pairs = zip(before["genotype"][net], row["genotype"][net], strict=True)
            flips[net] += sum(a != b for one in pairs for a, b in zip(*one, strict=True))
        assert row["flips"] == flips
    assert flips["G"] > 0
    assert found[-1]["genotype"] == {k: read(whole, "genotype.json")[k] for k in "GD"}
    assert sorted(f.stem for f in (whole / "genotypes").iterdir()) == ["000000", "000002"]
    assert [r["step"] for r in rows(whole, "metrics.jsonl") if "loss/g_arch" in r] == [1, 2]


def test_the_genotype_is_also_left_as_the_authors_file(whole: Path) -> None:
    for net, space in (("G", G_SPACE), ("D", D_SPACE)):
        codes = np.load(whole / f"latest_{net}.npy")
        assert (codes.dtype.str, codes.shape, codes.flags.c_contiguous) == ("|u1", (space.cells, 7), True)
        assert codes.tolist() == space.to_codes(read(whole, "genotype.json")[net])


@pytest.mark.parametrize("candidates", [2, slow(1)])
def test_random_search_trains_the_best_candidate(tiny: dict, tmp_path: Path, candidates: int) -> None:
    """Paper Table 3; a single candidate needs no score."""
    run = start(nas, tiny, tmp_path, search="random", candidates=candidates)
    found, result = rows(run, "search.jsonl"), read(run, "result.json")
    assert len({str(r["genotype"]) for r in found}) == candidates
    scores = [r["eval/fid"] for r in found]
    assert (scores == [None]) == (candidates == 1)
    best = scores.index(min(scores)) if candidates > 1 else 0
    assert result["genotype"]["G"] == found[best]["genotype"]["G"]
    assert result["last"]["fid"] > 0


def test_architecture_gradients_do_not_vanish_at_initialisation():
    """Every live entry gets a gradient in float32 that Adam's epsilon of 1e-8 does not swallow on the whole."""
    job = job_of(replace(TINY, search_g_ch=16, search_d_ch=8))
    nets = Supernets(job)
    with nas.frozen(nets.alpha, nets.D):
        G, D, fake_D = nets.mixed(job, 4.3, nets.draw(job, 8, 0)[1])
        nas.d_pass(G, D, normal(8, 3, 16, 16).float().tanh(), latent(job, 8, "d", 0), fake_D).backward()
    with nas.frozen(nets.G, nets.D, nets.beta):
        G, D, _ = nets.mixed(job, 4.3, nets.draw(job, 8, 1)[1])
        nas.g_pass(G, D, latent(job, 8, "g", 0)).backward()
    for t in (*nets.alpha.tables, *nets.beta.tables):
        assert t.grad.dtype == torch.float32
        assert (t.grad != 0).all()
        assert t.grad.abs().mean() > 1e-8
    assert all(p.grad is None for net in (nets.G, nets.D) for p in net.parameters())


def test_real_and_fake_images_have_their_own_noise_and_share_normalised_kernels():
    """As two passes of the authors' code with the vectors of spectral norm held: loss, gradients of D and of beta."""
    job = job_of(replace(TINY, search_d_ch=4))
    nets, real = Supernets(job), normal(8, 3, 16, 16).float().tanh()
    _, D, fake_D = nets.mixed(job, 4.3, nets.draw(job, 8, 0)[1])
    draws = [torch.cat([x.flatten() for cell in net.keywords["mix"] for row in cell.values() for x in row.values()])
             for net in (D, fake_D)]  # fmt: skip
    assert not torch.isclose(*draws).any()

    def gradients(loss: Tensor) -> list[Tensor]:
        return torch.autograd.grad(loss, [*nets.D.parameters(), *nets.beta.parameters()], retain_graph=True)

    vectors = {k: v.clone() for k, v in nets.D.named_buffers()}
    one = nas.d_pass(lambda z: z.new_full((len(z), 3, 16, 16), 0.5), D, real, latent(job, 8, 0), fake_D)
    assert any(not torch.equal(v, vectors[k]) for k, v in nets.D.named_buffers())
    nets.D.eval()  # no further power iteration
    two = nas.d_loss(D(real), fake_D(torch.full_like(real, 0.5)))
    torch.testing.assert_close(one, two)
    for a, b in zip(gradients(one), gradients(two), strict=True):
        torch.testing.assert_close(a, b)


def test_hinge_losses():
    """Paper §4.1."""
    G, D, job = ref.Scaled(), ref.Scaled(), job_of(TINY)
    real = normal(64, 1, 1, 1).float().expand(-1, 3, 4, 4)
    of_real, of_fake = real[:, 0, 0, 0], latent(job, 64, "d", 7)[:, 0]
    loss = nas.d_pass(G, D, real, latent(job, 64, "d", 7))
    loss.backward()
    assert loss.item() == pytest.approx(ref.hinge(of_real, of_fake), rel=1e-5)
    assert G.weight.grad is None  # the fakes are made without a graph
    loss = nas.g_pass(G, D, latent(job, 64, "g", 7))
    assert loss.item() == pytest.approx(-latent(job, 64, "g", 7)[:, 0].mean().item(), rel=1e-5)


def test_optimisers_have_the_papers_settings():
    """Paper §4.1; the authors' code has beta 2 0.999 for weights."""
    nets = Supernets(job_of(TINY))
    weights, architecture = (2e-4, (0.0, 0.9), 0), (3e-4, (0.5, 0.999), 1e-4)
    for net, settings in {"G": weights, "D": weights, "alpha": architecture, "beta": architecture}.items():
        (group,) = getattr(nets, f"{net.lower()}_opt").param_groups
        assert (group["lr"], group["betas"], group["weight_decay"]) == settings
    (group,) = nas.arch_adam(job_of(replace(PAPER, arch_beta2=0.9)), nets.alpha).param_groups
    assert group["betas"] == (0.5, 0.9)


def test_initial_weights():
    """Xavier's bound for G's convolutions, torch's own for its linears, depthwise transposed convolutions, and for D."""
    torch.manual_seed(0)
    G = Generator(None, 8)
    for m in (m for m in G.modules() if isinstance(m, nn.Conv2d)):
        bound = sqrt(6 / (m.weight[0].numel() + m.weight[:, 0].numel()))
        assert 0.8 * bound < m.weight.abs().max() <= bound
    assert all(0.99 * 0.1581 < linear.weight.abs().max() <= 0.15812 for linear in G.latent)
    transposed = [m for m in G.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert len(transposed) == 6
    assert all(0.25 < m.weight.abs().max() <= 1 / 3 for m in transposed)


def plan_of(images: int = 50_000, **changes: object) -> list[tuple]:
    """Of generators of 7 multiply-adds and discriminators of 3."""
    return nas.plan_of(job_of_paper(replace(PAPER, **{"phase": "search", **changes}), images), 7, 3)


def test_iterations_of_the_search_and_the_training():
    assert nas.search_length(job_of_paper(PAPER, 50_000)) == (417, 10_008)
    assert [stage[:2] for stage in plan_of()] == [("search", 2_002)]
    assert [stage[:2] for stage in plan_of(search_batch=100, search_epochs=26)] == [("search", 2_500)]  # the paper's
    for images, batch, d, g in ((50_000, 40, 750_000, 150_000), (105_000, 128, 492_600, 98_520)):
        job = job_of_paper(replace(PAPER, d_batch=batch), images)
        assert job.args.train_epochs * job.epoch == d
        assert [stage[:2] for stage in plan_of(images, phase="train", d_batch=batch)] == [("train", g)]
        assert len(job.batches(job.epoch - 1)) == 40
    assert (PAPER.eval_n, IS_SPLITS) == (50_000, 10)


def test_the_price_of_a_search_counts_its_updates():
    """Super-G and Super-D op by op; a backward pass costs two forward passes. SingalNAS: no step of beta."""
    g, d = Generator.cost(None, 160).macs, nas.d_cost(None, 80, 32).macs
    d_step, g_step = 60 * g + 120 * 3 * d, 120 * (3 * g + 2 * d)
    for fixed_d, mixed, macs in (
        ("none", "plain", 10 * d_step + 2 * g_step),
        ("super", "plain", 5 * d_step + 2 * g_step),
        ("none", "merged", 41 / 69 * (10 * d_step + 2 * g_step)),
    ):
        plan = plan_of(fixed_d=fixed_d, mixed=mixed, search_eval_every=0)
        assert plan == [("search", 2_002, pytest.approx(macs))]


def test_the_price_of_random_search_is_that_of_its_trainings():
    train = 5 * 40 * (7 + 6 * 3) + 80 * (3 * 7 + 2 * 3)
    for candidates, stage in ((5, ("random", 2_000, pytest.approx(train + 50_000 * 7 / 400))), (1, ("random", 0, 0))):
        assert plan_of(search="random", evaluator="compact", candidates=candidates) == [stage]
