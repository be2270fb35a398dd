"""AdversarialNAS: the method page's numbers, both networks against their definitions, the merged edge, the updates.

"Fact n" counts the exact, measured facts about the authors' networks and code that this reimplementation has to meet.
"""

import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from math import e, log10, prod, sqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cells import convolve, normal, paper_op
from torch import Tensor, nn

import adversarialnas as nas
from adversarialnas import D_SPACE, G_SPACE, PUBLISHED, Args, Discriminator, Generator, Logits, State, Supernets
from common.cells import CONVS, OPS_NORMAL, AutoGANDiscriminator, Genotype, Normal, Space, count_params, named, table
from common.data import Dataset
from common.files import UserError, stream
from common.gan import Job, adam, ema_update, latent
from common.metrics import IS_SPLITS, Score, frechet_distance, matrix_root, to_uint8
from common.ranks import Ranks
from tests.runs import slow

ONE = Ranks(torch.device("cpu"))
PAPER_G = named("adversarialnas-g", G_SPACE, PUBLISHED)
ANIMATION_D = named("animation-d", D_SPACE, PUBLISHED)
PAPER = replace(Args(), size=32, chunks=3)
TINY = replace(PAPER, size=16, z_dim=6, search_g_ch=4, search_d_ch=4, g_ch=4, d_ch=4, search_batch=4, g_batch=4, d_batch=4)
WINDOW = {"conv_1x1": (0, 1), "conv_3x3": (1, 1), "conv_5x5": (2, 1), "dil_conv_3x3": (2, 2), "dil_conv_5x5": (4, 2)}
IMAGES = (normal(16, 3, 16, 16) * 50 + 128).clamp(0, 255).to(torch.uint8)


def job_of(args: Args = TINY, images: Tensor = IMAGES, run: object = None) -> Job:
    return Job(args, ONE, None, Dataset("tiny", images, None, ""), run=run)


def job_of_paper(images: int, args: Args = PAPER, run: object = None) -> Job:
    """With a data set that takes no memory."""
    return job_of(args, torch.zeros(1, dtype=torch.uint8).expand(images, 3, 1, 1), run)


def genotypes(space: Space, n: int, seed: int = 0) -> list[Genotype]:
    rng = random.Random(seed)
    return [nas.random_genotype(space, rng) for _ in range(n)]


def valid_rows(space: Space, cell: int) -> int:
    """How many rows of a cell are valid: each pattern of none and not none counts for all its rows."""
    kinds = [{op: op == "none" for op in edge.ops} for edge in space.edges_of(cell)]
    patterns = product(*(sorted(set(kind.values())) for kind in kinds))
    count = 0
    for pattern in patterns:
        row = tuple("none" if none else edge.ops[-1] for none, edge in zip(pattern, space.edges_of(cell), strict=True))
        count += 0 if space.row_error(row) else prod(Counter(k.values())[none] for k, none in zip(kinds, pattern, strict=True))
    return count


def one_hot(space: Space, genotype: Genotype, dtype: torch.dtype = torch.float64) -> nas.Mix:
    """Mixing weights that choose the genotype."""
    chosen = [dict(zip((e.name for e in space.edges), row, strict=True)) for row in genotype]
    return [
        {e.name: {op: torch.tensor(op == row[e.name], dtype=dtype) for op in e.ops} for e in space.edges_of(cell)}
        for cell, row in enumerate(chosen)
    ]


def random_mix(space: Space, seed: int = 0, dtype: torch.dtype = torch.float64) -> nas.Mix:
    """Positive mixing weights, as leaves that take gradients."""
    mix = []
    for cell in range(space.cells):
        mix.append({})
        for k, edge in enumerate(space.edges_of(cell)):
            w = normal(len(edge.ops), seed=seed + 7 * cell + k).softmax(0).to(dtype)
            mix[-1][edge.name] = {op: x.clone().requires_grad_() for op, x in zip(edge.ops, w, strict=True)}
    return mix


def plain(mix: nas.Mix, dtype: torch.dtype = torch.float64) -> nas.Mix:
    """The same weights without gradients."""
    return [{e: {op: w.detach().to(dtype) for op, w in ops.items()} for e, ops in edges.items()} for edges in mix]


def extracted(supernet: nn.Module, alone: nn.Module) -> nn.Module:
    """The derived network with the weights that the supernet has for it."""
    weights = supernet.state_dict()
    alone.double().eval().load_state_dict({name: weights[name] for name in alone.state_dict()})
    return alone


# ---- the published numbers -------------------------------------------------------------------------------------------


def test_fact_01_params_of_the_published_generator():
    G = Generator(PAPER_G)
    assert count_params(G) == Generator.cost(PAPER_G).params == 8_846_851
    assert [count_params(linear) for linear in G.latent] == [167_936, 671_744, 2_686_976]
    assert [count_params(cell) for cell in G.cells] == [1_311_744, 1_967_616, 2_033_408]
    assert count_params(G.bn) + count_params(G.to_rgb) == 7_427


def test_fact_02_params_of_the_published_generator_for_stl10():
    G = Generator(PAPER_G, 270, 120, 48, 2)
    assert count_params(G) == Generator.cost(PAPER_G, 270, 120, 48, 2).params == 8_881_923
    assert [count_params(linear) for linear in G.latent] == [592_920, 2_371_680]
    assert [count_params(cell) for cell in G.cells] == [1_459_080, 2_188_620, 2_261_790]
    assert count_params(G.bn) + count_params(G.to_rgb) == 7_833


@pytest.mark.parametrize(
    ("ch", "params"), [(32, 525_251), (64, 1_216_387), (128, 3_096_323), (160, 4_285_123), (512, 28_310_531)]
)
def test_fact_03_params_at_other_widths(ch: int, params: int):
    assert Generator.cost(PAPER_G, ch).params == 81 * ch**2 + 13_822 * ch + 3 == params


def test_facts_03_04_closed_forms():
    assert Generator.cost(PAPER_G, 256, 120, 48, 2).params == 8_131_075  # fact 4
    for ch in (1, 5, 32, 100):
        assert Generator.cost(PAPER_G, ch).params == 81 * ch**2 + 13_822 * ch + 3
        assert Generator.cost(PAPER_G, ch, 120, 48, 2).params == 81 * ch**2 + 11_026 * ch + 3
    for g, d in zip(genotypes(G_SPACE, 6), genotypes(D_SPACE, 6), strict=True):
        assert Generator.cost(g, 3, 12, 24, 2).params == count_params(Generator(g, 3, 12, 24, 2))
        assert nas.d_cost(d, 3, 16).params == count_params(Discriminator(d, 3))
    for kind in ("autogan", "sngan", None):
        assert nas.d_cost(kind, 6, 24).params == count_params(nas.make_d(kind, 6, 24))


def test_fact_05_params_of_the_training_discriminator():
    D = AutoGANDiscriminator(128)
    blocks = [(D.stem1, D.stem2, D.stem_skip), (D.middle[0],), (D.middle[1],), (D.last,), (D.out,)]
    assert [sum(map(count_params, b)) for b in blocks] == [151_680, 311_680, 295_168, 295_168, 128]
    assert count_params(D) == 1_053_824
    assert nas.d_cost("autogan", 128, 32).params == nas.d_cost("autogan", 128, 48).params == 1_053_824
    for ch in (1, 7, 64):
        assert nas.d_cost("autogan", ch, 32).params == 64 * ch**2 + 41 * ch
    assert normed(D) == 11


def normed(net: nn.Module) -> int:
    return sum(hasattr(m, "parametrizations") for m in net.modules())


def test_fact_06_params_of_super_g():
    alpha = Logits(G_SPACE)
    G = Generator(None, 160)
    assert [count_params(cell) for cell in G.cells] == [8_993_120, 9_018_880, 9_044_640]
    assert count_params(G) == Generator.cost(None, 160).params == 29_265_443
    assert count_params(G) + count_params(alpha) == 29_265_566
    assert Generator.cost(None, 256).params == 72_776_963


def test_fact_07_params_of_super_d():
    D, beta = Discriminator(None, 80), Logits(D_SPACE)
    assert [count_params(cell) for cell in D.cells] == [1_805_920, 3_081_040, 3_081_040, 3_081_040]
    assert count_params(D.out) == 80
    assert count_params(D) == nas.d_cost(None, 80, 32).params == 11_049_120
    assert count_params(D) + count_params(beta) == 11_049_308
    assert nas.d_cost(None, 128, 32).params == 28_227_840
    assert normed(D) == 133


def test_fact_08_alpha_and_beta():
    alpha, beta = Logits(G_SPACE), Logits(D_SPACE)
    assert [tuple(t.shape) for t in alpha.tables] == [(3, 2, 3), (3, 5, 7)]
    assert [tuple(t.shape) for t in beta.tables] == [(4, 5, 7), (4, 2, 6)]
    assert (count_params(alpha), count_params(beta)) == (123, 188)
    torch.manual_seed(0)
    drawn = torch.cat([t.flatten() for _ in range(100) for t in Logits(D_SPACE).tables])
    assert drawn.std().item() == pytest.approx(1e-3, rel=0.02)
    assert abs(drawn.mean().item()) < 3e-5
    mix = beta.by_op(beta.tables)
    assert [list(cell) for cell in mix] == [[edge.name for edge in D_SPACE.edges]] * 4
    assert [len(ops) for ops in mix[0].values()] == [5, 5, 5, 7, 7, 6, 6]
    assert [len(ops) for ops in mix[1].values()] == [7, 7, 7, 7, 7, 6, 6]
    assert mix[0]["0->2"] == dict(zip(CONVS, beta.tables[0][0, 1, :5], strict=True))  # the last two are dead
    assert mix[2]["3->4"] == dict(zip(D_SPACE.edges[6].ops, beta.tables[1][2, 1], strict=True))
    assert [len(ops) for ops in alpha.by_op(alpha.tables)[0].values()] == [3, 3, 7, 7, 7, 7, 7]


def outputs_of(modules: list[nn.Module], forward: Callable[[], object]) -> list[tuple[int, ...]]:
    shapes = []
    hooks = [m.register_forward_hook(lambda _m, _x, y: shapes.append(tuple(y.shape))) for m in modules]
    forward()
    for hook in hooks:
        hook.remove()
    return shapes


@torch.no_grad()
@pytest.mark.parametrize(("size", "chunks", "sides"), [(32, 3, [16, 8, 8, 8]), (48, 2, [24, 12, 12, 12])])
def test_fact_09_shapes(size: int, chunks: int, sides: list[int]):
    z = 10 * normal(2, 120).float()
    job = job_of()
    for G, mix in ((Generator(PAPER_G, 8, 120, size, chunks), None), (Generator(None, 8, 120, size, chunks), "super")):
        y = G(z, mix and Logits(G_SPACE).mix(job, 1.0, "shapes"))
        assert y.shape == (2, 3, size, size)
        assert y.abs().max() < 1 or (y.abs().max() <= 1 and y.abs().min() < 1)  # tanh may round to 1
    x = normal(2, 3, size, size).float()
    D = AutoGANDiscriminator(8)
    assert outputs_of([D.stem2, *D.middle, D.last], lambda: D(x)) == [(2, 8, s, s) for s in sides]
    D, mix = Discriminator(None, 8), Logits(D_SPACE).mix(job, 1.0, "shapes")
    assert outputs_of(list(D.cells), lambda: D(x, mix)) == [(2, 8, size >> k, size >> k) for k in (1, 2, 3, 4)]
    for kind in ("autogan", "sngan", *genotypes(D_SPACE, 3)):
        assert nas.make_d(kind, 8, size)(x).shape == (2, 1)
    assert D(x, mix).shape == (2, 1)


@torch.no_grad()
@pytest.mark.parametrize("genotype", [PAPER_G, None], ids=["derived", "supernet"])
def test_fact_10_a_cells_skip_output_contains_the_skip_inputs(genotype: Genotype | None):
    cell, mix = nas.UpCell(6, genotype, 1).double(), None if genotype else plain(random_mix(G_SPACE))[1]
    x, skip = normal(2, 6, 4, 4), normal(2, 6, 4, 4, seed=1)
    node3, out = cell(x, mix, [skip])
    assert node3.shape == out.shape == (2, 6, 8, 8)
    other, _ = cell(x, mix, [skip + 1])
    layer = cell.skips[0]
    resized = [F.interpolate(s, scale_factor=2, mode="bilinear") for s in (skip, skip + 1)]
    change = F.conv2d(resized[1], layer.weight) - F.conv2d(resized[0], layer.weight)
    torch.testing.assert_close(other - node3, change)
    assert change.abs().max() > 0.1


# ---- the whole space, by enumeration ---------------------------------------------------------------------------------


def test_fact_11_sizes_of_the_space():
    g = [len(e.ops) for e in G_SPACE.edges]
    d = [[len(e.ops) for e in D_SPACE.edges_of(cell)] for cell in range(4)]
    assert 3 * log10(np.prod(g)) == pytest.approx(15.5392, abs=5e-5)
    assert 4 * log10(np.prod(d[1])) == pytest.approx(23.1272, abs=5e-5)
    restricted = sum(log10(np.prod(row)) for row in d)
    assert restricted == pytest.approx(22.6888, abs=5e-5)
    assert 3 * log10(np.prod(g)) + 4 * log10(np.prod(d[1])) == pytest.approx(38.6664, abs=5e-5)
    assert 3 * log10(np.prod(g)) + restricted == pytest.approx(38.2280, abs=5e-5)
    decodable_g = 3 * log10(valid_rows(G_SPACE, 0))
    decodable_d = log10(valid_rows(D_SPACE, 0)) + 3 * log10(valid_rows(D_SPACE, 1))
    assert decodable_g == pytest.approx(15.5085, abs=5e-5)
    assert decodable_d == pytest.approx(22.4376, abs=5e-5)
    assert decodable_g + decodable_d == pytest.approx(37.9461, abs=5e-5)


def test_fact_12_share_of_valid_generators():
    share = valid_rows(G_SPACE, 0) / np.prod([len(e.ops) for e in G_SPACE.edges])
    assert share == pytest.approx(48 * 342 / 7**5)
    assert share**3 == pytest.approx(0.93182, abs=5e-6)


TABLE_1 = [  # paper Table 1, in the order of the file: 0->1, 0->2, 1->3, 2->3, 1->4, 2->4, 3->4
    ("bilinear", "bilinear", "skip_connect", "none", "conv_3x3", "conv_3x3", "skip_connect"),
    ("bilinear", "bilinear", "none", "skip_connect", "conv_3x3", "conv_3x3", "conv_3x3"),
    ("nearest", "bilinear", "none", "conv_3x3", "conv_3x3", "none", "conv_3x3"),
]


def test_fact_13_the_published_file(tmp_path: Path):
    codes = np.array([[1, 1, 1, 0, 3, 3, 1], [1, 1, 0, 1, 3, 3, 3], [0, 1, 0, 3, 3, 0, 3]], np.uint8)
    nothing = {name: lambda *_: None for name in ("begin", "genotype", "print")}
    nas.report_found(job_of(PAPER, run=SimpleNamespace(main=True, dir=tmp_path, **nothing)), State(G=PAPER_G))
    assert [f.name for f in tmp_path.iterdir()] == ["latest_G.npy"]
    assert (tmp_path / "latest_G.npy").stat().st_size == 149
    saved = np.load(tmp_path / "latest_G.npy")
    assert (saved.dtype.str, saved.shape, saved.flags.c_contiguous) == ("|u1", (3, 7), True)
    assert np.array_equal(saved, codes)
    found = named(str(tmp_path / "latest_G.npy"), G_SPACE, PUBLISHED)
    assert found == PAPER_G == tuple(TABLE_1)  # 21 of 21
    G = Generator(found, 4)
    assert [cell.resize for cell in G.cells[1:]] == ["bilinear", "nearest"]  # Table 1: 3->c2 and 3->c3
    assert [len(cell.skips) for cell in G.cells] == [0, 1, 2]


def test_fact_23_fixtures():
    sizes = {"animation-g": 11_338_755, "eagan-g": 7_142_403, "mmd-g": 20_185_859, "adversarialnas-g": 8_846_851}
    assert {name: Generator.cost(named(name, G_SPACE, PUBLISHED)).params for name in PUBLISHED["G"]} == sizes
    assert Generator.cost(named("mmd-g", G_SPACE, PUBLISHED), 128).params == 5_931_395
    low, high = (Generator.cost(G_SPACE.from_codes([row] * 3)).params for row in ([0, 0, 1, 0, 1, 0, 0], [1, 1, 4, 4, 4, 4, 4]))
    assert (low, high) == (4_126_211, 28_706_051)
    assert (
        Generator.cost(G_SPACE.from_codes([[2, 2, 4, 4, 4, 4, 4]] * 3)).params == high + 6 * 8 * 256
    )  # transposed: 8C more each
    d = ANIMATION_D
    assert [nas.d_cost(d, ch, 32).params for ch in (128, 80)] == [4_553_984, 1_782_560]
    near = sum(
        a != b for rows in zip(named("eagan-g", G_SPACE, PUBLISHED), PAPER_G, strict=True) for a, b in zip(*rows, strict=True)
    )
    assert near == 4


@pytest.mark.parametrize(
    ("target", "ch"),
    [(1e6, 55), (2e6, 93), (5e6, 177), (8_846_851, 256), (10e6, 276), (15e6, 353), (20e6, 419), (25e6, 477)],
)
def test_scaling_study_picks_the_width(target: float, ch: int):
    """Paper §4.2.3: the generator at 1 to 25 million parameters."""
    assert nas.g_shape(replace(PAPER, g_params=target), PAPER_G) == (ch, 120, 32, 3)
    assert nas.g_shape(PAPER, PAPER_G) == (256, 120, 32, 3)


@pytest.mark.parametrize("target", [1, 3_000, 2e4, 12_345, 1e5])
def test_the_width_is_the_nearest_of_all(target: float):
    for genotype in genotypes(G_SPACE, 3):
        params = {ch: Generator.cost(genotype, ch, 6, 16).params for ch in range(1, 80)}
        nearest = min(params, key=lambda ch: abs(params[ch] - target))
        assert nas.g_shape(replace(TINY, g_params=target), genotype)[0] == nearest


# ---- multiply-adds ---------------------------------------------------------------------------------------------------


def test_fact_22_macs():
    """As the page counts them: convolutions and linears with bias, transposed convolutions left out."""
    transposed = sum(2 * 9 * 160 * (4 * 2**cell) ** 2 for cell in range(3))  # of both up edges, at the size before
    assert Generator.cost(PAPER_G).macs / 1e6 == pytest.approx(2_680.479, abs=5e-4)
    assert Generator.cost(PAPER_G, 270, 120, 48, 2).macs / 1e6 == pytest.approx(6_701.684, abs=5e-4)
    assert nas.d_cost("autogan", 128, 32).macs / 1e6 == pytest.approx(272.499, abs=5e-4)
    assert nas.d_cost("autogan", 128, 48).macs / 1e6 == pytest.approx(613.122, abs=5e-4)
    assert (Generator.cost(None, 160).macs - transposed) / 1e6 == pytest.approx(12_148.865, abs=5e-4)
    assert nas.d_cost(None, 80, 32).macs / 1e6 == pytest.approx(1_996.031, abs=5e-4)


@torch.no_grad()
def test_macs_of_sn_gans_discriminator():
    D, macs = nas.SNGANDiscriminator(8, 32), []
    for layer in D.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            each = layer.weight[0].numel() + (layer.bias is not None)
            layer.register_forward_hook(lambda _m, _x, y, each=each: macs.append(y[0].numel() * each))
    D(normal(2, 3, 32, 32).float())
    assert nas.d_cost("sngan", 8, 32).macs == sum(macs)
    assert [m.out_channels for m in nas.SNGANDiscriminator(128).layers if isinstance(m, nn.Conv2d)] == [
        *(64, 64, 128, 128, 256, 256, 512)
    ]


# ---- networks are their definition -----------------------------------------------------------------------------------


def paper_generator(G: Generator, genotype: Genotype, z: Tensor) -> tuple[Tensor, int]:
    """The images and the multiply-adds of one, from the definition: dead nodes too, and resizing comes first."""
    skips, x, n = [], 0, len(G.latent)
    macs = [linear.weight.numel() + linear.bias.numel() for linear in G.latent]
    for i, (row, cell) in enumerate(zip(genotype, G.cells, strict=True)):

        def edge(column: int, x: Tensor, cell: nn.Module = cell, row: tuple[str, ...] = row) -> Tensor | int:
            return 0 if row[column] == "none" else paper_op(row[column], cell.edges[column][row[column]], x, macs)

        if i < n:
            part = z[:, i * z.shape[1] // n : (i + 1) * z.shape[1] // n]
            x = x + G.latent[i](part).reshape(-1, G.ch, G.bottom * 2**i, G.bottom * 2**i)
        a, b = edge(0, x), edge(1, x)
        middle = edge(2, a) + edge(3, b)
        for layer, skip in zip(cell.skips, skips, strict=True):
            mode = {1: "bilinear", 2: "nearest"}[i]
            middle = middle + convolve(layer, F.interpolate(skip, size=a.shape[-2:], mode=mode), macs)
        x = edge(4, a) + edge(5, b) + edge(6, middle)
        skips.append(middle)
    return convolve(G.to_rgb, G.bn(x).relu(), macs, padding=1).tanh(), sum(macs)


def paper_discriminator(D: Discriminator, genotype: Genotype, x: Tensor) -> tuple[Tensor, int]:
    """The scores and the multiply-adds for one image, from the definition."""
    macs = [D.out.weight.numel()]
    for i, (row, cell) in enumerate(zip(genotype, D.cells, strict=True)):

        def edge(column: int, x: Tensor, cell: nn.Module = cell, row: tuple[str, ...] = row, i: int = i) -> Tensor | int:
            how = {"stride": 2} if column > 4 else {"relu": False} if i == 0 and column < 3 else {}
            return 0 if row[column] == "none" else paper_op(row[column], cell.edges[column][row[column]], x, macs, **how)

        n1 = edge(0, x)
        n2, n3 = edge(1, x) + edge(3, n1), edge(2, x) + edge(4, n1)
        x = edge(5, n2) + edge(6, n3)
    return F.linear(x.relu().sum((2, 3)), D.out.weight), sum(macs)


@torch.no_grad()
@pytest.mark.parametrize("merged", [False, True], ids=["plain", "merged"])
@pytest.mark.parametrize(("size", "chunks"), [(16, 3), (24, 2)])
def test_fact_26_super_g_of_one_hot_weights_is_the_derived_g(size: int, chunks: int, merged: bool):
    G = Generator(None, 6, 12, size, chunks, merged).double().eval()
    G.bn.running_mean.copy_(normal(6))
    G.bn.running_var.copy_(normal(6).square())
    z = normal(2, 12, seed=1)
    for genotype in [PAPER_G, *genotypes(G_SPACE, 6)]:
        want, macs = paper_generator(G, genotype, z)
        alone = extracted(G, Generator(genotype, 6, 12, size, chunks))
        torch.testing.assert_close(G(z, one_hot(G_SPACE, genotype)), want, rtol=0, atol=1e-10)
        torch.testing.assert_close(alone(z), want, rtol=0, atol=1e-10)
        assert Generator.cost(genotype, 6, 12, size, chunks).macs == macs


@torch.no_grad()
@pytest.mark.parametrize("merged", [False, True], ids=["plain", "merged"])
def test_fact_26_super_d_of_one_hot_weights_is_the_derived_d(merged: bool):
    D, x = Discriminator(None, 6, merged).double().eval(), normal(2, 3, 32, 32)
    for genotype in [ANIMATION_D, *genotypes(D_SPACE, 3)]:
        want, macs = paper_discriminator(D, genotype, x)
        alone = extracted(D, Discriminator(genotype, 6))
        torch.testing.assert_close(D(x, one_hot(D_SPACE, genotype)), want, rtol=0, atol=1e-10)
        torch.testing.assert_close(alone(x), want, rtol=0, atol=1e-10)
        assert nas.d_cost(genotype, 6, 32).macs == macs


# ---- the merged edge -------------------------------------------------------------------------------------------------


def gradients(y: Tensor, of: list[Tensor]) -> list[Tensor]:
    weight = normal(*y.shape, seed=9)
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(of, torch.autograd.grad((y * weight).sum(), of, allow_unused=True), strict=True)
    ]


@pytest.mark.parametrize(("net", "size"), [("G", 16), ("G", 24), ("D", 32), ("D", 16), ("D", 48)], ids=lambda x: str(x))
def test_merged_and_plain_are_one_function(net: str, size: int):
    """Outputs, and gradients of the weights, of alpha or beta, and of the input; maps from 2 to 48 px, in float64."""
    space = G_SPACE if net == "G" else D_SPACE
    found = {}
    torch.manual_seed(0)
    model = (Generator(None, 4, 12, size) if net == "G" else Discriminator(None, 3)).double().eval()
    x = (normal(2, 12) if net == "G" else normal(2, 3, size, size)).requires_grad_()
    mix = random_mix(space)
    parameters = dict(model.named_parameters())
    weights = {
        f"mix {c} {e} {op}": w for c, row in enumerate(mix) for e, ops in row.items() for op, w in ops.items() if op != "none"
    }
    for merged in (False, True):
        for cell in model.cells:
            cell.merged = merged
        y = model(x, mix)
        found[merged] = [y, *gradients(y, [x, *parameters.values(), *weights.values()])]
    names = ["output", "input", *parameters, *weights]
    for name, one, other in zip(names, found[False], found[True], strict=True):
        scale = one.abs().max().clamp(min=1)
        assert ((one - other).abs().max() / scale) < 1e-10, name
    assert all(g.abs().max() > 0 for g, name in zip(found[True], names, strict=True) if name.startswith("mix"))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [2, 4, 6, 16])
def test_a_merged_edge_is_the_sum_of_its_ops(stride: int, side: int):
    """Against convolutions written out, with each kernel's own spectral norm; up to 4 px the ring is left out."""
    torch.manual_seed(0)
    cell = nas.DownCell(4, None, 1).double().eval()
    column = 5 if stride == 2 else 0
    edge, ops, x = cell.edges[column], D_SPACE.edges[column].ops, normal(2, 4, side, side)
    w = dict(zip(ops, normal(len(ops)).softmax(0), strict=True))
    (found,) = nas.leave(x, (edge,), {edge.name: w}, merged=True, stride=stride)
    want = {"none": lambda x: 0 * x, "skip_connect": lambda x: x}
    want |= {"avg_pool": lambda x: F.avg_pool2d(x, 2), "max_pool": lambda x: F.max_pool2d(x, 2)}
    for op in CONVS.keys() & edge.keys():
        sn, (padding, dilation) = edge[op].conv.parametrizations.weight[0], WINDOW[op]
        original = edge[op].conv.parametrizations.weight.original.detach()
        sigma = sn._u @ original.flatten(1) @ sn._v
        assert sigma.item() == pytest.approx(torch.linalg.matrix_norm(original.flatten(1), 2).item(), rel=0.05)
        want[op] = lambda x, k=original / sigma, b=edge[op].conv.bias, p=padding, d=dilation: F.conv2d(
            x.relu(), k, b, stride, p, d
        )
    total = sum(w[op] * want[op](x) for op in ops)
    torch.testing.assert_close(found, total, rtol=0, atol=1e-12)


def test_merged_and_plain_have_the_same_weights_and_power_iterations():
    """One state dict for both; a training forward advances every spectral norm once in both."""
    nets, x, mix = [], normal(2, 3, 16, 16).float(), plain(random_mix(D_SPACE), torch.float32)
    for merged in (False, True):
        torch.manual_seed(0)
        nets.append(Discriminator(None, 3, merged))
        nets[-1](x, mix)
    one, other = (net.state_dict() for net in nets)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert sum(k.endswith("._u") for k in one) == 133


def test_a_merged_edge_keeps_one_activation():
    """What autograd keeps of an Up-Cell's node: one map for all convolutions in place of one each."""
    cell, x = nas.UpCell(2, None, 0), normal(64, 2, 16, 16).float().requires_grad_()
    mix = random_mix(G_SPACE, dtype=torch.float32)[0]
    kept = {}
    for merged in (False, True):
        maps: set[int] = set()

        def pack(t: Tensor, maps: set[int] = maps) -> Tensor:
            if t.numel() == x.numel():
                maps.add(t.untyped_storage().data_ptr())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = nas.leave(x, (cell.edges[2], cell.edges[4]), mix, merged)
        kept[merged] = len(maps)
        del out
    assert kept == {False: 21, True: 2}  # plain: five ReLUs and outputs an edge, and x; merged: x and its ReLU


# ---- continuous relaxation -------------------------------------------------------------------------------------------


def test_fact_16_temperature():
    want = {0: 5.0, 1: 4.2757, 5: 2.2865, 10: 1.0456, 15: 0.4782, 20: 0.2187, 24: 0.1169}
    assert {epoch: round(PAPER.tau(epoch), 4) for epoch in want} == want
    assert min(PAPER.tau(epoch) for epoch in range(60)) == 0.1


@pytest.mark.parametrize(("ops", "share"), [(7, 0.3118), (6, 0.3522), (3, 0.5761)])
def test_fact_17_gumbel_noise_on_probabilities(ops: int, share: float):
    assert share == pytest.approx(e / (e + ops - 1), abs=5e-4)
    logits = torch.zeros(100_000, ops)
    logits[:, 1] = 100.0  # softmax: one-hot
    w = nas.mix_weights(logits, 1.0, "prob", stream(0, "test"))
    torch.testing.assert_close(w.sum(-1), torch.ones(100_000))
    assert (w.argmax(-1) == 1).float().mean().item() == pytest.approx(share, abs=0.005)
    assert (nas.mix_weights(logits[:1000], 1.0, "log", stream(0, "test")).argmax(-1) == 1).all()


@pytest.mark.parametrize(("gap", "prob", "log"), [(0.0, 0.142, 0.142), (1.2, 0.176, 0.355), (3.0, 0.257, 0.770)])
def test_selection_in_the_papers_and_in_the_log_form(gap: float, prob: float, log: float):
    logits = torch.zeros(100_000, 7)
    logits[:, 0] = gap
    for form, share in (("prob", prob), ("log", log)):
        w = nas.mix_weights(logits, 0.5, form, stream(1, form))
        assert (w.argmax(-1) == 0).float().mean().item() == pytest.approx(share, abs=0.005)


def test_mixing_weights_sum_to_one_and_one_draw_serves_all_edges():
    torch.manual_seed(0)
    beta = Logits(D_SPACE)
    for form in ("prob", "log", "off"):
        job = job_of(replace(TINY, gumbel=form))
        mix = beta.mix(job, 0.3, "a")
        rows = [list(row.values()) for row in mix]
        assert [len(row) for row in rows] == [7] * 4
        sums = [sum(ops.values()).item() for row in rows for ops in row]
        assert sums[3:] == pytest.approx([1] * 25)
        assert all(x < 1 for x in sums[:3])  # the dead have their share
        again, other = beta.mix(job, 0.3, "a"), beta.mix(job, 0.3, "b")
        assert mix == again
        assert (mix[2]["1->2"] == other[2]["1->2"]) == (form == "off")
        assert list(mix[2]["1->2"].values()) != list(mix[2]["1->3"].values())
    off = beta.mix(job, 0.3, "a")[1]["2->4"]
    torch.testing.assert_close(torch.stack(list(off.values())), beta.tables[1][1, 0].softmax(0))
    cold, warm = (max(beta.mix(job_of(), tau, "a")[1]["0->1"].values()) for tau in (0.1, 5.0))
    assert cold > 0.9 > 0.4 > warm


def with_op(space: Space, edge: str, op: str) -> Space:
    """The space with one op more on one edge, in all cells."""

    def longer(edges: tuple) -> tuple:
        return tuple(e._replace(ops=(*e.ops, op)) if e.name == edge else e for e in edges)

    return replace(space, edges=longer(space.edges), first=longer(space.first))


@pytest.mark.parametrize(
    ("space", "edge"), [(G_SPACE, "2->3"), (G_SPACE, "0->1"), (D_SPACE, "0->2"), (D_SPACE, "1->2"), (D_SPACE, "2->4")]
)
def test_one_op_more_on_one_edge_gets_its_own_weight(space: Space, edge: str):
    """Every number of a table is the weight of one op, or dead, whatever the other edges hold."""
    space = with_op(space, edge, "extra")
    logits = Logits(space)
    place = iter(range(1000))
    tables = [torch.tensor([[[next(place) for _ in row] for row in cell] for cell in table]) for table in logits.tables]
    found = [w.item() for cell in logits.by_op(tables) for ops in cell.values() for w in ops.values()]
    assert len(set(found)) == len(found) == sum(len(e.ops) for c in range(space.cells) for e in space.edges_of(c))
    for cell, (row, mix) in enumerate(zip(logits.rows(tables), logits.mix(job_of(), 1.0, "x"), strict=True)):
        assert list(mix) == [e.name for e in space.edges]
        for spec in space.edges_of(cell):
            name, n = spec.name, len(spec.ops)
            assert tuple(mix[name]) == spec.ops
            assert [w.item() for w in logits.by_op(tables)[cell][name].values()] == row[name][:n].tolist()
            if len(row[name]) == n:
                assert sum(mix[name].values()).item() == pytest.approx(1)


def test_more_ops_in_cell_1_alone_have_weights_too():
    image = D_SPACE.first[0]._replace(ops=tuple("abcdefghi"))
    space = replace(D_SPACE, first=(image, *D_SPACE.first[1:]))
    for cell, mix in enumerate(Logits(space).mix(job_of(), 1.0, "x")):
        assert [tuple(ops) for ops in mix.values()] == [e.ops for e in space.edges_of(cell)]


def test_a_mix_that_lacks_an_op_is_refused():
    cell, mix = nas.UpCell(4, None, 0).double(), plain(random_mix(G_SPACE))[0]
    for op in ("conv_5x5", "skip_connect"):
        lacking = mix | {"1->4": {k: w for k, w in mix["1->4"].items() if k != op}}
        for merged in (False, True):
            cell.merged = merged
            with pytest.raises(KeyError, match=op):
                cell(normal(1, 4, 4, 4), lacking, [])


class Twice(nn.Module):
    """An op that somebody adds."""

    def __init__(self, _ch: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def macs(self, side: int) -> int:
        return side**2


@torch.no_grad()
@pytest.mark.parametrize("merged", [False, True], ids=["plain", "merged"])
@pytest.mark.parametrize("op", ["twice", "conv_7x7"])
@pytest.mark.parametrize(("net", "edge"), [("G", "2->3"), ("D", "1->3")])
def test_a_supernet_computes_one_op_more(monkeypatch: pytest.MonkeyPatch, net: str, edge: str, op: str, merged: bool):
    """A plain op, and a convolution that `merge` does not know: by its weight, alone and among the others."""
    monkeypatch.setitem(CONVS, "conv_7x7", (7, 1))
    monkeypatch.setitem(OPS_NORMAL, op, Twice if op == "twice" else partial(Normal, op))
    space = with_op(G_SPACE if net == "G" else D_SPACE, edge, op)
    monkeypatch.setattr(nas, f"{net}_SPACE", space)
    torch.manual_seed(0)
    model = (Generator(None, 4, 12, 16, 3, merged) if net == "G" else Discriminator(None, 4, merged)).double().eval()
    x, column = normal(2, 12) if net == "G" else normal(2, 3, 16, 16), [e.name for e in space.edges].index(edge)
    genotype = [list(row) for row in (PAPER_G if net == "G" else ANIMATION_D)]
    genotype[1][column] = op
    genotype = tuple(map(tuple, genotype))
    alone = extracted(model, Generator(genotype, 4, 12, 16) if net == "G" else Discriminator(genotype, 4))
    torch.testing.assert_close(model(x, one_hot(space, genotype)), alone(x), rtol=0, atol=1e-10)
    cost, want = alone.cost(genotype, *((4, 12, 16) if net == "G" else (4, 16))), count_params(alone)
    assert cost.params == want
    mix = plain(random_mix(space))
    y = model(x, mix)
    for cell in model.cells:
        cell.merged = False
    torch.testing.assert_close(y, model(x, mix), rtol=0, atol=1e-10)
    mix[1][edge][op] += 1
    assert (model(x, mix) - y).abs().max() > 1e-6


def test_an_op_that_states_no_cost_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(OPS_NORMAL, "silent", lambda _ch: nn.Identity())
    monkeypatch.setattr(nas, "G_SPACE", with_op(G_SPACE, "1->4", "silent"))
    with pytest.raises(TypeError, match="Identity: needs a method macs"):
        Generator.cost(None, 4)


# ---- derivation ------------------------------------------------------------------------------------------------------


def rows_from(
    space: Space, winners: list[list[str]], none: dict[tuple[int, int], float], second: str
) -> list[dict[str, dict[str, float]]]:
    """Probabilities by which these ops win; none: p(none) of some edges; second: the runner-up where none wins."""
    cells = []
    for cell, row in enumerate(winners):
        made = {}
        for column, (edge, op) in enumerate(zip(space.edges_of(cell), row, strict=True)):
            made[edge.name] = dict.fromkeys(edge.ops, 0.01) | {op: none.get((cell, column), 0.5)}
            if op == "none":
                made[edge.name][second] = 0.1
        cells.append(made)
    return cells


def test_fact_14_repair_of_g():
    row = ["nearest", "bilinear", "none", "none", "none", "none", "none"]
    none = {(0, 2): 0.6, (0, 3): 0.5, (1, 2): 0.4, (1, 3): 0.5, (0, 4): 0.5, (0, 5): 0.6, (0, 6): 0.4}
    found = nas.derive(G_SPACE, rows_from(G_SPACE, [row] * 3, none, "conv_5x5"))
    assert found[0] == ("nearest", "bilinear", "none", "conv_5x5", "none", "none", "conv_5x5")
    assert found[1] == ("nearest", "bilinear", "conv_5x5", "none", "conv_5x5", "none", "none")  # the first of equals: 4
    assert found[2] == ("nearest", "bilinear", "conv_5x5", "none", "conv_5x5", "none", "none")
    assert all(G_SPACE.check(found, "found"))


def test_fact_15_decoding_of_d():
    torch.manual_seed(0)
    repaired = 0
    for _ in range(200):
        beta = Logits(D_SPACE)
        for t in beta.tables:
            t.data.normal_()
        found = nas.derive(D_SPACE, beta.probabilities())
        codes = D_SPACE.to_codes(found)
        assert all(0 <= code <= 4 for code in codes[0][:3])
        assert D_SPACE.check(found, "found") == found
        plain = torch.cat([beta.tables[0].argmax(-1), beta.tables[1].argmax(-1)], 1)
        plain[0, :3] = beta.tables[0][0, :3, :5].argmax(-1)
        for cell, (row, argmax) in enumerate(zip(codes, plain.tolist(), strict=True)):
            names = [edge.ops[code] for edge, code in zip(D_SPACE.edges_of(cell), argmax, strict=True)]
            valid = not D_SPACE.row_error(tuple(names))
            assert not valid or row == argmax
            repaired += not valid
    assert repaired > 10


def test_fact_15_repair_of_d():
    image = ["conv_1x1"] * 3 + ["none", "none", "avg_pool", "avg_pool"]
    row = ["none"] * 5 + ["max_pool", "avg_pool"]
    none = {(1, 1): 0.4, (1, 3): 0.5, (1, 2): 0.4, (1, 4): 0.5}  # nodes 2 and 3 by the edges from node 0
    none |= {(2, 1): 0.5, (2, 3): 0.4, (2, 2): 0.4, (2, 4): 0.5}  # node 2 by 1->2, so node 1 needs 0->1
    found = nas.derive(D_SPACE, rows_from(D_SPACE, [image, row, row, row], none, "conv_3x3"))
    assert found[0] == tuple(image)
    assert found[1] == ("none", "conv_3x3", "conv_3x3", "none", "none", "max_pool", "avg_pool")
    assert found[2] == ("conv_3x3", "none", "conv_3x3", "conv_3x3", "none", "max_pool", "avg_pool")
    assert found[3] == found[1]


def test_random_genotypes_are_valid_and_uniform():
    found = genotypes(G_SPACE, 3000)
    assert all(G_SPACE.check(g, "random") for g in found)
    cells = [row for g in found for row in g]
    spread = 5 * sqrt(1 / 8 * 7 / 8 / len(cells))
    assert sum(row[2] == "none" for row in cells) / len(cells) == pytest.approx(6 / 48, abs=spread)
    assert sum(row[0] == "conv_transpose" for row in cells) / len(cells) == pytest.approx(1 / 3, abs=2 * spread)
    sizes = sorted(Generator.cost(g).params for g in found)
    assert sizes[len(sizes) // 2] / 1e6 == pytest.approx(13.8, abs=0.2)  # page §8.3: median 13.8 M
    for d in genotypes(D_SPACE, 200):
        assert D_SPACE.check(d, "random") == d


# ---- genotypes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PUBLISHED["G"], *PUBLISHED["D"]])
def test_names_resolve_and_round_trip(name: str, tmp_path: Path):
    space, other = (G_SPACE, D_SPACE) if name in PUBLISHED["G"] else (D_SPACE, G_SPACE)
    genotype = named(name, space, PUBLISHED)
    assert space.to_codes(genotype) == PUBLISHED[space.name][name]
    np.save(tmp_path / "x.npy", np.array(space.to_codes(genotype), np.uint8))
    assert named(str(tmp_path / "x.npy"), space, PUBLISHED) == genotype
    (tmp_path / "x.json").write_text(json.dumps(nas.genotype_json(PAPER, PAPER_G, ANIMATION_D)))
    assert named(str(tmp_path / "x.json"), G_SPACE, PUBLISHED) == PAPER_G
    assert named(str(tmp_path / "x.json"), D_SPACE, PUBLISHED) == ANIMATION_D
    assert table(genotype, space).splitlines()[0].split()[1:] == [e.name for e in space.edges]
    with pytest.raises(UserError, match=f"is a genotype of {space.name}"):
        named(name, other, PUBLISHED)


@pytest.mark.parametrize(
    ("cell", "changes", "words"),
    [
        (1, {0: 5}, ["cell 1", "edge 0->1", "code 5", "0..4"]),  # five convolutions from the image
        (2, {0: 7}, ["cell 2", "edge 0->1", "code 7", "0..6"]),
        (3, {5: 6}, ["cell 3", "edge 2->4", "code 6", "0..5"]),
        (2, {1: 0, 3: 0}, ["cell 2", "node 2", "0->2 and 1->2"]),
        (4, {2: 0, 4: 0}, ["cell 4", "node 3", "0->3 and 1->3"]),
        (3, {0: 0}, ["cell 3", "node 1 has no input: edge 0->1"]),
    ],
)
def test_bad_codes_of_d_are_refused(cell: int, changes: dict[int, int], words: list[str], tmp_path: Path):
    codes = np.array(PUBLISHED["D"]["animation-d"])
    for column, code in changes.items():
        codes[cell - 1, column] = code
    np.save(tmp_path / "bad.npy", codes)
    with pytest.raises(UserError) as error:
        named(str(tmp_path / "bad.npy"), D_SPACE, PUBLISHED)
    for word in ["bad.npy", *words]:
        assert word in str(error.value)


def test_a_node_that_nobody_reads_needs_no_input():
    row = ("none", "skip_connect", "conv_1x1", "none", "none", "avg_pool", "max_pool")
    first = ("conv_1x1", "conv_1x1", "conv_1x1", "none", "none", "avg_pool", "max_pool")
    assert D_SPACE.check([first, row, row, row], "d")
    D = Discriminator((first, row, row, row), 3)
    D(normal(2, 3, 16, 16).float()).sum().backward()
    dead = {name.split(".")[3] for name, p in D.named_parameters() if p.grad is None}
    assert dead == {"0"}  # edge 0->1 of the first cell: built and counted, never computed


# ---- the four updates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["alpha", "beta"])
def test_architecture_gradient_against_finite_differences(which: str):
    job = job_of()
    nets = Supernets(job)
    G, D, alpha, beta = (net.double() for net in (nets.G, nets.D, nets.alpha, nets.beta))
    for net in (G, D):
        net.eval()
    real, logits = normal(4, 3, 16, 16).tanh(), alpha if which == "alpha" else beta
    for t in logits.tables:
        t.data.normal_()

    def loss() -> Tensor:
        z = normal(4, 6, seed=3)
        mixes = [net.mix(job, 0.7, "noise") for net in (alpha, beta)]
        fake = G(z, mixes[0])
        if which == "alpha":
            return -D(fake, mixes[1]).mean()
        d_real, d_fake = D(torch.cat([real, fake.detach()]), mixes[1]).chunk(2)
        return (1 - d_real).relu().mean() + (1 + d_fake).relu().mean()

    gradients = torch.autograd.grad(loss(), list(logits.parameters()))
    for t, gradient in zip(logits.tables, gradients, strict=True):
        for place in [(0, 0, 0), (1, 1, 2), (2, 0, 1)]:
            found, before = [], t.data[place].item()
            for shift in (1e-5, -1e-5):
                t.data[place] = before + shift
                found.append(loss().item())
            t.data[place] = before
            assert (found[0] - found[1]) / 2e-5 == pytest.approx(gradient[place].item(), rel=1e-4, abs=1e-10)


class Recorder:
    """A Run that writes nothing."""

    def __init__(self) -> None:
        self.status, self.main, self.rows = {"phase": "search"}, False, []

    def search_row(self, row: dict) -> None:
        self.rows.append(row)

    def __getattr__(self, _name: str) -> Callable:
        return lambda *_args, **_kwargs: None


def test_fact_18_images_and_order_of_the_updates(monkeypatch: pytest.MonkeyPatch):
    """Of one epoch of 417 batches of 120, the last of 80; only what trains is left out."""
    small = {"search_g_ch": 1, "search_d_ch": 1, "search_batch": 120, "search_epochs": 2}
    args = replace(TINY, **small, search_eval_every=0, derive_every=26)
    calls, zero = [], torch.zeros(())

    def d_pass(_job: Job, _G: object, _D: object, real: Tensor, what: str, i: int) -> Tensor:
        calls.append((what, len(real), i))
        return zero

    def g_pass(_job: Job, _G: object, _D: object, n: int, what: str, i: int) -> Tensor:
        calls.append((what, n, i))
        return zero

    monkeypatch.setattr(nas, "d_pass", d_pass)
    monkeypatch.setattr(nas, "g_pass", g_pass)
    monkeypatch.setattr(Supernets, "mixed", lambda *_: (None, None))
    monkeypatch.setattr(nas, "update", lambda *_: None)
    monkeypatch.setattr(nas, "ema_update", lambda *_: None)
    monkeypatch.setattr(nas, "frozen", lambda *_: nullcontext())
    monkeypatch.setattr(nas, "make_d", lambda *_: nn.Linear(1, 1))
    run, state = Recorder(), State()
    nas.search(job_of_paper(50_000, args, run), state)
    want = []
    for i in range(417):
        half = 60 if i < 416 else 40
        want += [("d arch", half, i), ("d", half, i)] + [("g arch", 120, i), ("g", 120, i)] * (i % 5 == 0)
    assert calls == want
    assert (state.batch, state.step) == (417, 84)
    assert [row["batch"] for row in run.rows] == [*range(0, 417, 26), 417]
    assert {row["tau"] for row in run.rows[:-1]} == {args.tau(1)}
    assert run.rows[-1]["tau"] == args.tau(2)


def test_snapshots_and_scores_come_when_they_are_due(monkeypatch: pytest.MonkeyPatch):
    """Of 4 epochs of 6 batches, the first untrained; each at the temperature of its epoch, and neither comes twice."""
    args = replace(TINY, search_epochs=4, epoch_batches=6, derive_every=4, search_eval_every=2)
    job, found = job_of(args, run=Recorder()), []
    nets = Supernets(job)
    averaged = nets.averaged
    monkeypatch.setattr(nets, "averaged", lambda job, tau: found.append((state.batch, "score", tau)) or averaged(job, tau))
    monkeypatch.setattr(nas, "snapshot", lambda *a: found.append((state.batch, "snapshot", a[3])))
    monkeypatch.setattr(nas.gan, "score", lambda *_: Score(1.0, 1.0, 0.0, 10, "compact", "x"))
    state = State()
    for i in range(19):
        state.batch = i
        nas.report_if_due(job, state, nets)
        nas.report_if_due(job, state, nets)  # as a resumed run does
    snapshots = [(i, "snapshot", args.tau(1 + i // 6)) for i in (0, 4, 8, 12, 16, 18)]
    scores = [(i, "score", args.tau(i // 6)) for i in (0, 12, 18)]
    assert found == sorted(snapshots + scores, key=lambda x: (x[0], x[1] == "score"))


def test_fact_18_iterations_of_the_search():
    job = job_of_paper(50_000, replace(PAPER, phase="search"))
    assert nas.search_length(job) == (417, 10_008)
    assert [stage[:2] for stage in nas.plan_of(job, 0, 0)] == [("search", 2_002)]
    paper = job_of_paper(50_000, replace(PAPER, phase="search", search_batch=100, search_epochs=26))
    assert [stage[:2] for stage in nas.plan_of(paper, 0, 0)] == [("search", 2_500)]  # "about 2,500 iterations"


@pytest.mark.parametrize(("images", "batch", "d", "g"), [(50_000, 40, 750_000, 150_000), (105_000, 128, 492_600, 98_520)])
def test_fact_19_iterations_of_the_training(images: int, batch: int, d: int, g: int):
    job = job_of_paper(images, replace(PAPER, phase="train", genotype="adversarialnas-g", d_batch=batch))
    assert job.args.train_epochs * job.epoch == d
    assert [stage[:2] for stage in nas.plan_of(job, 0, 0)] == [("train", g)]
    if batch == 128:
        assert len(job.batches(820)) == 40


def test_the_price_of_a_search_counts_its_updates():
    """Super-G and Super-D op by op; a backward pass costs two forward passes. SingalNAS: no step of beta."""
    args = replace(PAPER, phase="search", mixed="plain", search_eval_every=0)
    g, d = Generator.cost(None, 160).macs, nas.d_cost(None, 80, 32).macs
    d_step, g_step = 60 * g + 120 * 3 * d, 120 * (3 * g + 2 * d)
    for kind, steps in (("none", 2), ("super", 1)):
        plan = nas.plan_of(job_of_paper(50_000, replace(args, fixed_d=kind)), 0, 0)
        assert plan == [("search", 2_002, pytest.approx(5 * steps * d_step + 2 * g_step))]
    merged = nas.plan_of(job_of_paper(50_000, replace(args, mixed="merged")), 0, 0)
    assert merged == [("search", 2_002, pytest.approx(41 / 69 * (10 * d_step + 2 * g_step)))]


def test_the_price_of_random_search_is_that_of_its_trainings():
    args = replace(PAPER, phase="search", search="random", evaluator="compact")
    for candidates, steps in ((5, 2_000), (1, 0)):
        ((name, found, macs),) = nas.plan_of(job_of_paper(50_000, replace(args, candidates=candidates)), 7, 3)
        assert (name, found) == ("random", steps)
        train = 5 * 40 * (7 + 6 * 3) + 80 * (3 * 7 + 2 * 3)
        assert macs == (pytest.approx(train + 50_000 * 7 / 400) if steps else 0)
    with pytest.raises(UserError, match="--candidates 2003"):
        nas.plan_of(job_of_paper(50_000, replace(args, candidates=2_003)), 7, 3)


def watched_search(monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[tuple[str, set[str]]]:
    """(which update, the nets that it changed) of a short search, by comparing all of them before and after each."""
    args = replace(TINY, **{"search_epochs": 2, "epoch_batches": 3, "n_critic": 2, "search_eval_every": 0, **changes})
    found, made, real_update, seeded = [], {}, nas.update, nas.seeded

    def keep(job: Job, make: Callable, name: str) -> nn.Module:
        made[name] = seeded(job, make, name)
        return made[name]

    def update(job: Job, net: nn.Module, *rest: object) -> None:
        before = {k: [p.detach().clone() for p in m.parameters()] for k, m in made.items()}
        real_update(job, net, *rest)
        pairs = {k: zip(before[k], m.parameters(), strict=True) for k, m in made.items()}
        moved = {k for k in made if any(not torch.equal(a, b) for a, b in pairs[k])}
        found.append((next(k for k, m in made.items() if m is net), moved))

    monkeypatch.setattr(nas, "seeded", keep)
    monkeypatch.setattr(nas, "update", update)
    nas.search(job_of(args, run=Recorder()), State())
    return found


def test_fact_18_each_update_moves_its_own_net_only(monkeypatch: pytest.MonkeyPatch):
    found = watched_search(monkeypatch)
    order = ["beta", "super-d", "alpha", "super-g", "beta", "super-d", "beta", "super-d", "alpha", "super-g"]
    assert [net for net, _ in found] == order
    assert all(moved == {net} for net, moved in found)


@pytest.mark.parametrize("kind", [slow("sngan"), slow("autogan"), "super"])
def test_singalnas_leaves_the_architecture_of_d_alone(monkeypatch: pytest.MonkeyPatch, kind: str):
    found = watched_search(monkeypatch, fixed_d=kind)
    assert [net for net, _ in found] == ["super-d", "alpha", "super-g", "super-d", "super-d", "alpha", "super-g"]
    assert all(moved == {net} for net, moved in found)


@pytest.mark.parametrize("amp", [slow(False), True])
def test_architecture_steps_compute_in_float32(monkeypatch: pytest.MonkeyPatch, amp: bool):
    seen, conv2d = {}, F.conv2d

    def spy(x: Tensor, *rest: object, **how: object) -> Tensor:
        y = conv2d(x, *rest, **how)
        seen.setdefault(stage[0], set()).add(y.dtype)
        return y

    stage = [""]

    def watched(real: Callable, *a: object) -> Tensor:
        stage[0] = a[4]
        return real(*a)

    for name in ("d_pass", "g_pass"):
        monkeypatch.setattr(nas, name, partial(watched, getattr(nas, name)))
    monkeypatch.setattr(nas.F, "conv2d", spy)
    watched_search(monkeypatch, amp=amp, epoch_batches=1)
    assert seen["d arch"] == seen["g arch"] == {torch.float32}
    assert (torch.bfloat16 in seen["d"]) == (torch.bfloat16 in seen["g"]) == amp


def test_architecture_gradients_do_not_vanish_at_initialisation():
    """Every live entry gets a gradient in float32 that Adam's epsilon of 1e-8 does not swallow on the whole."""
    args = replace(TINY, search_g_ch=16, search_d_ch=8, search_batch=8)
    job = job_of(args)
    nets = Supernets(job)
    G, D, alpha, beta = nets.G, nets.D, nets.alpha, nets.beta
    real = normal(8, 3, 16, 16).float().tanh()
    with nas.frozen(alpha, D):
        loss = nas.d_pass(job, *nets.mixed(job, 4.3, 0), real, "d", 0)
    loss.backward()
    with nas.frozen(G, D, beta):
        loss = nas.g_pass(job, *nets.mixed(job, 4.3, 0), 8, "g", 0)
    loss.backward()
    for logits in (alpha, beta):
        for t in logits.tables:
            assert t.grad.dtype == torch.float32
            assert (t.grad != 0).all()
            assert t.grad.abs().mean() > 1e-8
    assert all(p.grad is None for net in (G, D) for p in net.parameters())


@pytest.mark.parametrize(("g_ch", "d_ch"), [(24, 16), pytest.param(160, 80, marks=pytest.mark.slow)])
@torch.no_grad()
def test_fact_20_hinge_loss_at_initialisation(g_ch: int, d_ch: int):
    job = job_of(replace(PAPER, search_g_ch=g_ch, search_d_ch=d_ch))
    mixed = Supernets(job).mixed(job, 5.0, 0)
    assert nas.d_pass(job, *mixed, normal(8, 3, 32, 32).float().tanh(), "d", 0).item() == pytest.approx(2, abs=0.15)


class Scaled(nn.Module):
    """A network of one weight: G gives images of its latent's first number, D the mean of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, _mix: None = None) -> Tensor:
        return self.weight * (x.mean((1, 2, 3))[:, None] if x.ndim == 4 else x[:, :1, None, None].expand(-1, 3, 4, 4))


def test_hinge_losses():
    G, D, job = Scaled(), Scaled(), job_of(replace(TINY, g_batch=64))
    real = normal(64, 1, 1, 1).float().expand(-1, 3, 4, 4)
    of_real, of_fake = real[:, 0, 0, 0].tolist(), latent(job, 64, "d", 7)[:, 0].tolist()
    want = sum(max(0, 1 - a) + max(0, 1 + b) for a, b in zip(of_real, of_fake, strict=True)) / 64
    loss = nas.d_pass(job, G, D, real, "d", 7)
    loss.backward()
    assert loss.item() == pytest.approx(want, rel=1e-5)
    assert G.weight.grad is None  # the fakes are made without a graph
    loss = nas.g_pass(job, G, D, 64, "g", 7)
    assert loss.item() == pytest.approx(-latent(job, 64, "g", 7)[:, 0].mean().item(), rel=1e-5)


def test_optimisers_hold_disjoint_parameters_with_the_papers_settings():
    job = job_of()
    nets = Supernets(job)
    optimisers = [nets.g_opt, nets.d_opt, nets.alpha_opt, nets.beta_opt]
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in optimisers]
    assert sum(map(len, held)) == len(set.union(*held))
    assert [sum(p.numel() for g in o.param_groups for p in g["params"]) for o in optimisers[2:]] == [123, 188]
    for o, settings in zip(optimisers, [(2e-4, (0.0, 0.9), 0)] * 2 + [(3e-4, (0.5, 0.999), 1e-4)] * 2, strict=True):
        (group,) = o.param_groups
        assert (group["lr"], group["betas"], group["weight_decay"]) == settings
    (group,) = nas.arch_adam(job_of(replace(PAPER, arch_beta2=0.9)), nets.alpha).param_groups
    assert group["betas"] == (0.5, 0.9)
    assert [id(p) for p in adam(job, nets.G, 0.1).param_groups[0]["params"]] == [id(p) for p in nets.G.parameters()]


# ---- initialisation, averages, evaluation ----------------------------------------------------------------------------


def test_fact_21_initialisation():
    torch.manual_seed(0)
    for net in (
        Generator(None, 8),
        Discriminator(None, 8),
        AutoGANDiscriminator(8),
        Discriminator(ANIMATION_D, 8),
    ):
        convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        for m in convs:
            weight = m.parametrizations.weight.original if hasattr(m, "parametrizations") else m.weight
            fan_in, fan_out = weight[0].numel(), weight[:, 0].numel()
            bound = sqrt(6 / (fan_in + fan_out))
            assert weight.abs().max() <= bound
            assert weight.abs().max() > 0.8 * bound  # Xavier's, not torch's default 1 / sqrt(fan_in)
    G = Generator(None, 8)
    assert [0.99 * 0.1581 < linear.weight.abs().max() <= 0.15812 for linear in G.latent] == [True] * 3
    transposed = [m for m in G.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert len(transposed) == 6
    assert all(0.25 < m.weight.abs().max() <= 1 / 3 for m in transposed)
    assert abs(G.bn.weight.mean() - 1) < 0.05
    assert (G.bn.bias == 0).all()


def test_fact_24_average_of_the_weights():
    assert pytest.approx(0.434, abs=5e-4) == 0.999**834
    alpha = Logits(G_SPACE)
    average = Logits(G_SPACE)
    first, target = average.tables[1].detach().clone(), alpha.tables[1].detach()
    for _ in range(834):
        ema_update(average, alpha, 0.999)
    torch.testing.assert_close(average.tables[1].detach() - target, 0.999**834 * (first - target), rtol=1e-3, atol=1e-8)
    G, mean = (Generator(PAPER_G, 4, 6, 16) for _ in range(2))
    G.bn.running_mean.fill_(3.0)
    ema_update(mean, G, 0.999)
    assert torch.equal(mean.bn.running_mean, G.bn.running_mean)  # not averaged


@pytest.mark.parametrize("overwrite", [False, True])
def test_fact_24_quirk_3_an_evaluation_leaves_the_live_weights_alone(monkeypatch: pytest.MonkeyPatch, overwrite: bool):
    """The authors' code does not: it went on from the averages, alpha's too."""
    job = job_of(replace(TINY, ref_ema_overwrite=overwrite), run=Recorder())
    nets = Supernets(job)
    for net in (nets.G, nets.alpha):
        for p in net.parameters():
            p.data.add_(1)
    before, average = (
        [[p.detach().clone() for p in net.parameters()] for net in pair]
        for pair in ((nets.G, nets.alpha), (nets.G_ema, nets.alpha_ema))
    )
    nets.G.bn.running_mean.fill_(5.0)
    monkeypatch.setattr(nas.gan, "score", lambda *_: Score(1.0, 1.0, 0.0, 10, "compact", "x"))
    state = State(derived=0)
    nas.report_if_due(job, state, nets)
    assert state.scored == 0
    for net, want in zip((nets.G, nets.alpha), average if overwrite else before, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), want, strict=True))
    assert (nets.G.bn.running_mean == 5).all()
    assert (nets.G_ema.bn.running_mean == 5).all()


def test_fact_25_evaluation():
    x = torch.tensor([0.999, 1.0, -1.0, 3.0, float("nan")]).view(1, 1, 1, 5)
    assert to_uint8(x).flatten().tolist() == [254, 255, 0, 255, 0]
    assert (PAPER.eval_n, IS_SPLITS, PAPER.eval_n // IS_SPLITS) == (50_000, 10, 5_000)
    features = normal(300, 16)
    mean, cov = features.mean(0), features.T.cov()
    assert abs(frechet_distance(mean, cov, mean, cov, matrix_root(cov))) < 1e-3


def test_fact_27_a_latent_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"--z-dim 128: enters 3 cells in equal parts; use a multiple of 3"):
        nas.check_sizes(replace(PAPER, z_dim=128), 50_000, 1)
    nas.check_sizes(replace(PAPER, z_dim=128, chunks=2, size=48), 50_000, 1)


def test_a_batch_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match=r"--search-batch 7: leaves 1 of 50 images, which cannot be halved"):
        nas.check_sizes(replace(PAPER, search_batch=7), 50, 1)
