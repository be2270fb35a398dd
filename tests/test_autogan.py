"""AutoGAN: the paper's numbers, the networks against their definition, the controller, dynamic reset, beam, rewards.

"fact n" counts the exact, measured facts about the authors' networks and code that this reimplementation has to meet.
Facts 12, 13 and 14 are the discriminator's and are tested with it: test_autogan_discriminator_* in test_cells.py.
"""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from math import inf, log, nan, prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autogan
from autogan import (
    PUBLISHED,
    Args,
    Candidate,
    Controller,
    Generator,
    State,
    Vector,
    decisions,
    names_of,
    new_pair,
    read_vector,
)
from common import gan
from common.cells import AutoGANDiscriminator, Conv, Cost, Genotype, count_params
from common.data import Dataset
from common.files import UserError, stream
from common.gan import Job, Pair, adam, clone, own_batch_norm
from common.metrics import InceptionScore, Score, frechet_distance, to_uint8
from common.ranks import Ranks
from common.run import Run, Stopped
from tests.runs import command, flags, rows, slow, start

ONE = Ranks(torch.device("cpu"))
A, B, C, SNGAN = (PUBLISHED[name] for name in ("A", "B", "C", "sngan"))
DECONV = read_vector("1 1 2 1 1 1 2 1 1 1 1 2 1 3")
TINY = Args(size=16, g_ch=4, d_ch=4, search_g_ch=4, search_d_ch=4, z_dim=6, g_batch=4, d_batch=4, n_critic=2, reset_window=5)
SHARED = (None, None, None)  # in place of a genotype of three cells: the weights of all of them


def job_of(args: Args, images: Tensor | None = None) -> Job:
    """A job on such real images, of values in [-1, 1]; without them on none."""
    images = torch.zeros(8, 3, 4, 4) if images is None else images
    return Job(args, ONE, None, Dataset("tiny", (images * 127.5 + 127.5).round().to(torch.uint8), None, ""))


def vectors(n: int, cells: int = 3, seed: int = 0) -> list[Vector]:
    return [x.vector for x in autogan.uniform(Args(cells=cells, seed=seed), n, "test")]


def vector_of_names(genotype: Genotype) -> Vector:
    """The codes of names, which are their places among the options that there are."""
    pairs = [pair for cell, row in enumerate(genotype) for pair in zip(row, decisions(cell).values(), strict=True)]
    return tuple(options.index(name) for name, options in pairs if len(options) > 1)


def every_vector(cells: int) -> list[Vector]:
    return list(product(*(range(len(options)) for _, options in autogan.to_decide(range(cells)))))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "test"))


# ---- the space -------------------------------------------------------------------------------------------------------


def test_fact_01_number_of_architectures() -> None:
    assert [len(every_vector(cells)) for cells in (1, 2)] == [36, 2_592]
    assert prod(len(options) for _, options in autogan.to_decide(range(3))) == 373_248


def test_fact_02_lengths_and_decisions() -> None:
    counts = [[len(options) for _, options in autogan.to_decide(range(cell, cell + 1))] for cell in range(3)]
    assert counts == [[2, 3, 3, 2], [2, 3, 3, 2, 2], [2, 3, 3, 2, 4]]
    assert [len(vectors(1, cells)[0]) for cells in (1, 2, 3)] == [4, 9, 14]


def test_fact_03_skip_codes() -> None:
    assert decisions(1)["skips"] == ("none", "1")
    assert decisions(2)["skips"] == ("none", "2", "1", "1+2")  # code 2 reads cell 1 only, code 1 cell 2 only
    for code, sources in ((0, []), (1, ["2"]), (2, ["1"]), (3, ["1", "2"])):
        assert list(Generator(names_of((*A[:13], code)), 4).cells[2].skips) == sources
    assert list(Generator(names_of(A), 4).cells[1].skips) == ["1"]


def test_names_and_vectors_are_the_same_thing() -> None:
    assert names_of(A) == (
        ("pre", "none", "nearest", "yes", "none"),
        ("pre", "none", "bilinear", "yes", "1"),
        ("pre", "none", "nearest", "no", "1+2"),
    )
    assert names_of(C)[0] == ("pre", "bn", "nearest", "yes", "none")
    for vector in [*PUBLISHED.values(), *vectors(50), *vectors(20, cells=5)]:
        assert vector_of_names(names_of(vector)) == vector
        assert read_vector(autogan.text_of(vector)) == vector


# ---- the published numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ch", "z_dim", "size", "vector", "params"),
    [
        *((256, 128, 32, *x) for x in ((A, 4_405_251), (B, 4_471_043), (C, 4_406_275), (SNGAN, 4_276_739))),  # fact 4
        *((128, 128, 32, *x) for x in ((A, 1_235_971), (B, 1_252_483), (C, 1_236_483), (SNGAN, 1_204_483))),  # fact 5
        *((8, 16, 32, *x) for x in ((A, 6_275), (B, 6_347), (C, 6_307), (SNGAN, 6_227), (DECONV, 9_083))),  # fact 6
        *((16, 32, 32, *x) for x in ((A, 24_195), (B, 24_467), (C, 24_259), (SNGAN, 23_843), (DECONV, 35_059))),
        *((256, 128, 48, *x) for x in ((A, 5_065_731), (B, 5_131_523), (C, 5_066_755))),  # fact 8
        *((256, 128, size, A[:n], params) for size, n, params in ((8, 4, 1_781_763), (16, 9, 3_093_507))),  # fact 10
        *((128, 128, size, A[:n], params) for size, n, params in ((8, 4, 579_587), (16, 9, 907_779))),
    ],
)
def test_facts_04_05_06_08_10_params(ch: int, z_dim: int, size: int, vector: Vector, params: int) -> None:
    G = Generator(names_of(vector), ch, z_dim, size)
    assert count_params(G) == Generator.cost(names_of(vector), ch, z_dim, size).params == params


def test_fact_07_smallest_and_largest() -> None:
    """The cells' costs add up, so the extremes are those of each cell alone."""
    found = []
    for extreme in (min, max):
        rows = [list(product(*decisions(cell).values())) for cell in range(3)]
        best = list(names_of(A))
        for cell in range(3):
            best[cell] = extreme(rows[cell], key=lambda row: Generator.cost((*best[:cell], row, *best[cell + 1 :])).params)
        found.append(tuple(best))
    assert [Generator.cost(g).params for g in found] == [4_076_291, 7_098_115]
    assert Generator.cost(autogan.largest(3)).params == 7_098_115
    assert {row[1:] for row in found[0]} <= {(n, u, "no", "none") for n in ("none", "in") for u in ("nearest", "bilinear")}


@pytest.mark.parametrize("size", [32, 48])
def test_facts_08_09_images(size: int) -> None:
    G = Generator(SHARED, 4, 6, size)
    for n, side in ((4, size // 4), (9, size // 2), (14, size)):
        x = G(10 * normal(2, 6), names_of(A[:n]))
        assert x.shape == (2, 3, side, side)
        assert x.abs().max() <= 1


@pytest.mark.parametrize(
    ("vector", "ch", "size", "millions"),
    [
        *((A, 256, 32, 1_765.016), (B, 256, 32, 1_832.124), (C, 256, 32, 1_765.016), (SNGAN, 256, 32, 1_681.129)),
        *((A, 256, 48, 3_971.285), (A, 128, 32, 443.154), (A[:4], 128, 8, 20.4), (A[:9], 128, 16, 105.0)),
    ],
)
def test_fact_11_macs(vector: Vector, ch: int, size: int, millions: float) -> None:
    digits = 5e-4 if millions > 110 else 0.05
    assert Generator.cost(names_of(vector), ch, 128, size).macs / 1e6 == pytest.approx(millions, abs=digits)


def test_fact_11_macs_of_the_discriminator() -> None:
    found = [autogan.d_cost(ch, size, stage).macs / 1e6 for ch in (128, 64) for size, stage in ((8, 0), (16, 1), (32, 2))]
    assert found == pytest.approx([14.4, 63.3, 272.1, 3.7, 16.1, 68.9], abs=0.06)
    assert autogan.d_cost(128, 32) == Cost(1_053_824, 272_072_832)
    assert autogan.d_cost(128, 48).macs / 1e6 == pytest.approx(612.2, abs=0.05)


def test_closed_forms_hold_for_any_number_of_cells() -> None:
    for cells in (1, 2, 4, 5):
        for vector in vectors(6, cells):
            genotype, size = names_of(vector), 3 * 2**cells
            assert Generator.cost(genotype, 3, 5, size).params == count_params(Generator(genotype, 3, 5, size))
        shared = (None,) * cells
        assert Generator.cost(shared, 3, 5, size).params == count_params(Generator(shared, 3, 5, size))
        most = Generator.cost(autogan.largest(cells), 3, 5, size)
        for vector in vectors(30, cells):
            cost = Generator.cost(names_of(vector), 3, 5, size)
            assert (cost.params <= most.params, cost.macs <= most.macs) == (True, True)


def test_what_is_not_in_the_tables_has_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a user adds is counted, in one network and in the shared weights."""
    for row in (("pre", "layer", "nearest", "no", "none"), ("pre", "none", "shuffle", "no", "none")):
        with pytest.raises(KeyError):
            Generator.cost((row,))
    monkeypatch.setitem(autogan.NORMS, "affine", lambda ch: nn.InstanceNorm2d(ch, affine=True))
    assert decisions(0)["norm"] == ("none", "bn", "in", "affine")
    genotype = (("pre", "affine", "nearest", "no", "none"), ("post", "affine", "deconv", "yes", "1"))
    for built_for in (genotype, (None, None)):
        G = Generator(built_for, 4, 6, 16)
        assert count_params(G) == Generator.cost(built_for, 4, 6, 16).params
        assert G(normal(2, 6), genotype).shape == (2, 3, 16, 16)


def test_a_stage_costs_what_its_generator_does() -> None:
    args = Args(size=48, z_dim=6)
    for cells, side in ((1, 12), (2, 24), (3, 48)):
        genotype = names_of(A)[:cells]
        assert args.g_cost(genotype, 4).params == count_params(Generator(genotype, 4, 6, side))


# ---- networks --------------------------------------------------------------------------------------------------------


def paper_generator(G: Generator, genotype: Genotype, z: Tensor, tap: str = "after") -> tuple[Tensor, int]:
    """The images and the multiply-adds of one, in the words of the paper: every resize comes before its convolution."""
    macs = [G.latent.weight.numel()]

    def conv(layer: nn.Module, x: Tensor) -> Tensor:
        deconv = isinstance(layer, nn.ConvTranspose2d)
        y = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2) if deconv else None
        y = F.conv2d(x, layer.weight, layer.bias, padding=layer.padding) if y is None else y
        macs.append(layer.weight.numel() * (x if deconv else y)[0, 0].numel())
        return y

    def resize(x: Tensor, up: str, deconvs: list[nn.Module], factor: int) -> Tensor:
        if up != "deconv":
            return F.interpolate(x, scale_factor=factor, mode=up)
        for layer in deconvs:
            x = conv(layer, x)
        return x

    def norm(x: Tensor, name: str, block: nn.Module) -> Tensor:
        if name == "in":
            return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        if name == "none":
            return x
        bn = block.bn
        a, b, c, d = (v[:, None, None] for v in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
        return (x - a) / (b + 1e-5).sqrt() * c + d

    def block(module: nn.Module, x: Tensor, row: tuple[str, ...], up: bool) -> Tensor:
        if row[0] == "pre":
            x = norm(x, row[1], module).relu()
        x = conv(module.conv, resize(x, row[2], [module.deconv], 2) if up else x)
        return x if row[0] == "pre" else norm(x, row[1], module).relu()

    x, taps = G.latent(z).view(len(z), -1, G.bottom, G.bottom), []
    for cell, row in zip(G.cells, genotype, strict=False):
        before = h = block(cell.block1[row[0]], x, row, True)
        for source in [] if row[4] == "none" else map(int, row[4].split("+")):
            skip = cell.skips[str(source)]
            h = h + conv(skip.conv, resize(taps[source - 1], row[2], skip.deconv, 2 ** (len(taps) + 1 - source)))
        out = block(cell.block2[row[0]], h, row, False)
        if row[3] == "yes":
            out = out + conv(cell.shortcut.conv, resize(x, row[2], cell.shortcut.deconv, 2))
        taps.append(h if tap == "after" else before)  # before the skips are added: Fig. 3
        x = out
    return conv(G.to_rgb, norm(x, "bn", G).relu()).tanh(), sum(macs)


def extracted(G: Generator, vector: Vector) -> Generator:
    """A stand-alone generator with the weights that this architecture uses of the shared ones."""
    alone = Generator(names_of(vector), G.ch, G.latent.in_features, G.bottom * 2 ** len(names_of(vector)))
    weights = G.state_dict()
    alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
    return alone


def unsettled(G: nn.Module) -> nn.Module:
    """The network with running statistics that differ from the initial ones, in eval mode and double precision."""
    for i, m in enumerate(m for m in G.modules() if isinstance(m, nn.BatchNorm2d)):
        m.running_mean.copy_(0.1 * normal(m.num_features, seed=i))
        m.running_var.copy_(1 + normal(m.num_features, seed=i).square())
    return G.double().eval()


@torch.no_grad()
def test_fact_29_shared_weights_a_network_alone_and_definition_agree() -> None:
    G, z = unsettled(Generator(SHARED, 5, 6, 32)), normal(2, 6).double()
    for vector in [A, B, C, SNGAN, DECONV, A[:4], A[:9], *vectors(12), *vectors(4, cells=2)]:
        genotype = names_of(vector)
        want, macs = paper_generator(G, genotype, z)
        alone = extracted(G, vector).double().eval()
        assert alone(z).shape == want.shape
        torch.testing.assert_close(G(z, genotype), want, rtol=0, atol=1e-10)
        torch.testing.assert_close(alone(z), want, rtol=0, atol=1e-5)  # its weights were float32 for a moment
        assert Generator.cost(genotype, 5, 6, want.shape[-1]) == Cost(count_params(alone), macs)


def test_fact_29_params_of_the_supernet() -> None:
    """The reference has 11 deconvolutions more, which nothing uses: 6 in second blocks, 5 of no skip."""
    for ch, z_dim, reference in ((256, 128, 14_315_267), (128, 128, 3_716_995), (16, 32, 63_731), (8, 16, 16_379)):
        unused = 11 * (4 * ch * ch + ch)
        assert Generator.cost(SHARED, ch, z_dim).params == reference - unused
    assert count_params(Generator(SHARED, 16, 32)) == 63_731 - 11 * (4 * 16 * 16 + 16)


@torch.no_grad()
def test_fact_23_what_a_tap_carries() -> None:
    """The skips that its cell adds, as in the authors' code: this matters where a cell with skips is itself read."""
    z = normal(2, 6).double()

    def same(vector: Vector) -> bool:
        G = unsettled(Generator(names_of(vector), 4, 6, 16))
        return torch.allclose(G(z), paper_generator(G, names_of(vector), z, "before")[0], atol=1e-6)

    assert not same(A)
    assert not same((*A[:13], 1))
    assert same((*A[:13], 2))
    assert same((*A[:8], 0, *A[9:]))


@pytest.mark.parametrize("sample", [40, slow(200)])
def test_fact_24_bug_5b_every_architecture_trains(sample: int) -> None:
    """In the authors' code a post-activation cell with a shortcut or a skip ends in an error of autograd."""
    for vector in [*every_vector(1), *vectors(sample)]:
        G = Generator(names_of(vector), 2, 3, 2 * 2 ** len(names_of(vector)))
        G(normal(2, 3)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in G.parameters()), vector
    shared = Generator(SHARED, 2, 3, 16)
    for vector in every_vector(1):
        shared(normal(2, 3), names_of(vector)).square().sum().backward()


def test_fact_28_initial_weights() -> None:
    torch.manual_seed(0)
    G = Generator(names_of((*C[:13], 3)), 256)

    def limit(weight: Tensor) -> float:
        return weight.abs().max().item()

    assert 0.0360 < limit(G.cells[0].block1["pre"].conv.weight) <= 0.03609
    assert 0.1080 < limit(G.cells[0].shortcut.conv.weight) <= 0.10826
    assert 0.0500 < limit(G.to_rgb.weight) <= 0.050733
    assert 0.0883 < limit(G.latent.weight) <= 0.08839
    assert G.bn.weight.mean().item() == pytest.approx(1, abs=0.005)
    assert G.bn.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not G.cells[0].block1["pre"].bn.bias.any()
    deconv = Generator(names_of(DECONV), 64).cells[0].block1["pre"].deconv
    assert 0.9 * (4 * 64) ** -0.5 < limit(deconv.weight) <= (4 * 64) ** -0.5  # torch's own
    D = AutoGANDiscriminator(64)
    assert 0.0715 < limit(D.last.conv1.parametrizations.weight.original) <= 0.07217  # reaches the raw weights too


@torch.no_grad()
def test_nearest_and_convolution_in_one() -> None:
    block, x = autogan.ConvBlock(5, True, ("none",), ("nearest",)).double(), normal(2, 5, 8, 8).double()
    want = F.conv2d(F.interpolate(x.relu(), scale_factor=2), block.conv.weight, block.conv.bias, padding=1)
    torch.testing.assert_close(block(x, "none", "nearest"), want, rtol=0, atol=1e-12)


# ---- one step --------------------------------------------------------------------------------------------------------


class Echo(nn.Module):
    """A G or D of one weight that gives back what it is told: G the given numbers as images, D the mean of an image."""

    def __init__(self, says: list[float] | None = None) -> None:
        super().__init__()
        self.weight, self.says = nn.Parameter(torch.ones(1)), says

    def forward(self, x: Tensor, _how: object = None) -> Tensor:
        if self.says is None:
            return self.weight * x.mean((1, 2, 3))[:, None]
        return self.weight * torch.tensor(self.says)[:, None, None, None].expand(-1, 3, 4, 4)


def test_fact_18_hinge_losses() -> None:
    real = torch.tensor([2, 0.5, -1])[:, None, None, None].expand(-1, 3, 4, 4)
    job = job_of(replace(TINY, g_batch=3))
    job.batches = lambda _batch: real
    G, D = Echo([-2, -0.5, 1]), Echo()
    nets = Pair(G, D, adam(job, G, 0.0), adam(job, D, 0.0))
    assert autogan.d_step(job, nets, 0).item() == pytest.approx(1.66667, abs=1e-5)
    assert autogan.g_step(job, nets, 0).item() == pytest.approx(0.5)
    scores = torch.tensor([[2.0], [0.5], [-1.0]])
    assert autogan.d_loss(scores, -scores).item() == pytest.approx(1.66667, abs=1e-5)
    assert autogan.g_loss(-scores).item() == autogan.g_loss(-scores, scores).item() == pytest.approx(0.5)
    D.weight.data.zero_()
    assert autogan.d_step(job, nets, 0).item() == 2
    assert autogan.g_step(job, nets, 0).item() == 0
    assert D.weight.requires_grad


def test_each_step_trains_its_own_network_and_only_the_cells_in_use() -> None:
    job = job_of(replace(TINY, g_lr=1e-3, d_lr=1e-3), normal(4, 3, 8, 8).clamp(-1, 1))
    nets = new_pair(job, SHARED, 4, 4, "test")
    G, D = nets.G, nets.D
    before = clone(G), clone(D)
    autogan.d_step(job, nets, 0, names_of(A[:9]), 1)
    moved = {n.split(".parametrizations")[0] for n, p in D.named_parameters() if not torch.equal(p, before[1][n])}
    assert all(torch.equal(v, before[0][n]) for n, v in G.named_parameters())
    assert "middle.0.conv1" in moved
    assert not any(name.startswith("middle.1") for name in moved)
    now = clone(D)
    autogan.g_step(job, nets, 0, names_of(A[:9]), 1)
    moved = {n for n, p in G.named_parameters() if not torch.equal(p, before[0][n])}
    assert "cells.1.skips.1.conv.weight" in moved
    assert not any(".post." in n or "deconv" in n or n.startswith("cells.2") for n in moved)
    assert all(torch.equal(v, now[n]) for n, v in D.named_parameters())


def test_fact_27_average_of_the_weights() -> None:
    G, average = Generator(names_of(C), 4, 6, 16), Generator(names_of(C), 4, 6, 16)
    p0, p1 = clone(average), clone(G)
    G.bn.running_mean.fill_(3.0)
    gan.ema_update(average, G, 0.999)
    for name, p in average.named_parameters():
        torch.testing.assert_close(p.data, 0.999 * p0[name] + 0.001 * p1[name])
    for name, b in average.named_buffers():
        assert torch.equal(b, dict(G.named_buffers())[name])


def test_fact_26_bytes() -> None:
    assert to_uint8(torch.tensor([0.0, 1.0, -1.0])).tolist() == [127, 255, 0]


def test_fact_25_is_and_fid_of_known_statistics() -> None:
    def inception_score(p: Tensor) -> float:
        meter = InceptionScore(len(p), 10, p.shape[1])
        meter.add(p, 0)
        return meter.result()[0]

    assert inception_score(torch.eye(10).repeat(20, 1)) == pytest.approx(10)
    assert inception_score(torch.full((200, 10), 0.1)) == pytest.approx(1)
    assert inception_score(torch.eye(1008).repeat(10, 1)) == pytest.approx(1008)
    mu, one = torch.arange(4.0), torch.eye(4)
    assert frechet_distance(mu, one, mu, one) == pytest.approx(0, abs=1e-3)
    assert frechet_distance(0 * mu, one, mu, one) == pytest.approx(mu.square().sum().item())


# ---- controller ------------------------------------------------------------------------------------------------------

OPTIONS = [[2, 3, 3, 2], [2, 3, 3, 2, 2], [2, 3, 3, 2, 4]]


def controller(stage: int = 0, seed: int = 0) -> Controller:
    torch.manual_seed(seed)
    return Controller(OPTIONS[stage])


def beam_of(prefixes: list[Vector]) -> list[Candidate]:
    return [Candidate(v, normal(100, seed=i), normal(100, seed=i + 50)) for i, v in enumerate(prefixes)]


@pytest.mark.parametrize(("stage", "params", "rows", "nats"), [(0, 82_810, 10, 36), (1, 83_212, 12, 72), (2, 83_614, 14, 144)])
def test_facts_15_16_a_fresh_controller(stage: int, params: int, rows: int, nats: int) -> None:
    made = controller(stage)
    assert count_params(made) == params
    assert len(made.embedding.weight) == rows
    drawn = made(100, stream(0, "x"), [])
    assert drawn.entropy.shape == drawn.logp.shape == (100, len(OPTIONS[stage]))
    assert drawn.entropy.sum(1).mean().item() >= 0.99 * log(nats)


def test_fact_17_later_stages_go_on_from_the_beam() -> None:
    prefixes = vectors(5, cells=1)
    drawn = controller(1)(1000, stream(0, "x"), beam_of(prefixes))
    counts = Counter(x.vector[:4] for x in drawn.candidates)
    assert set(counts) == set(prefixes)
    assert all(150 < n < 250 for n in counts.values())
    assert {len(x.vector) for x in drawn.candidates} == {9}


def test_what_the_controller_tells_is_what_it_drew() -> None:
    """Its log-probabilities belong to its tokens, given the tokens before: replayed by hand, token by token."""
    made, beam = controller(2), beam_of(vectors(1, cells=2))
    drawn = made(6, stream(0, "x"), beam)
    for i, found in enumerate(drawn.candidates):
        h, c, x, first = beam[0].h[None], beam[0].c[None], torch.zeros(1, 100), 0
        for j, (token, n) in enumerate(zip(found.vector[9:], OPTIONS[2], strict=True)):
            h, c = made.lstm(x, (h, c))
            p = made.decoders[j](h).softmax(1)[0]
            assert drawn.logp[i, j].item() == pytest.approx(p[token].log().item(), abs=1e-5)
            assert drawn.entropy[i, j].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)
            torch.testing.assert_close(drawn.policy[j][i], p.detach())
            x, first = made.embedding.weight[first + token][None], first + n
        torch.testing.assert_close(found.h, h[0].detach())
        torch.testing.assert_close(found.c, c[0].detach())


def taught(args: Args, reward: object, steps: int) -> list[Tensor]:
    """The policy of a controller of stage 0 after so many steps on a reward of (vector, its random stream)."""
    made, baseline, rng = controller(), None, random.Random(0)
    optimizer = adam(job_of(args), made, args.ctrl_lr)
    for step in range(steps):
        drawn = made(args.ctrl_batch, stream(0, "step", step), [])
        rewards = torch.tensor([reward(x.vector, rng) for x in drawn.candidates], dtype=torch.float32)
        if args.controller_loss == "reference" and step % 30 == 0:
            baseline = None
        loss, baseline = autogan.controller_loss(args, rewards, drawn, baseline)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [p.mean(0) for p in made(200, stream(0, "policy"), []).policy]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "sign"), list(product(("fixed", "reference"), (1, -1))))
def test_fact_19_reward_sign(loss: str, sign: int) -> None:
    p_pre = taught(Args(controller_loss=loss), lambda vector, _: sign * float(vector[0] == 1), 750)[0][1].item()
    assert p_pre > 0.85 if sign > 0 else p_pre < 0.15


def toy(vector: Vector, rng: random.Random) -> float:
    wanted = [0.3 * (vector[0] == 1), 0.2 * (vector[1] == 0), 0.2 * (vector[2] == 1), 0.1 * (vector[3] == 1)]
    return 3 + sum(wanted) + rng.gauss(0, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["fixed", "reference"])
def test_fact_19_toy_reward(loss: str) -> None:
    p = taught(Args(controller_loss=loss), toy, 750)
    mean = 3 + 0.3 * p[0][1] + 0.2 * p[1][0] + 0.2 * p[2][1] + 0.1 * p[3][1]
    assert mean.item() >= 3.70


@pytest.mark.parametrize("sign", [1, -1])
def test_bug_2_several_architectures_a_step_learn(sign: int) -> None:
    """In the authors' code any number but 1 ends in an error of shapes. A negated reward teaches the opposite."""
    p = taught(Args(ctrl_batch=8, ctrl_lr=3e-3), lambda vector, rng: sign * toy(vector, rng), 80)
    mean = 3 + 0.3 * p[0][1] + 0.2 * p[1][0] + 0.2 * p[2][1] + 0.1 * p[3][1]
    assert mean.item() > 3.6 if sign > 0 else mean.item() < 3.15  # uniform: 3.333


def test_bug_3_entropy_is_a_bonus() -> None:
    """Minimising the loss raises the entropy; in the authors' formulas its direct gradient lowers it."""
    for loss, sign in (("fixed", 1), ("reference", -1)):
        made = controller()
        drawn = made(1, stream(0, "x"), [])
        wanted = torch.autograd.grad(drawn.entropy.sum(), made.decoders[0].bias, retain_graph=True)[0]
        logp = drawn.logp.detach()  # leaves the way through the advantage
        args = Args(controller_loss=loss, entropy_weight=1.0)
        baseline = [1.0] if loss == "fixed" else [0.0] * 4
        value, _ = autogan.controller_loss(args, torch.ones(1), drawn._replace(logp=logp), baseline)
        found = torch.autograd.grad(-value, made.decoders[0].bias)[0]
        assert torch.cosine_similarity(found, wanted, dim=0).item() == pytest.approx(sign, abs=1e-3)


def test_bug_4_the_baseline_is_what_came_before() -> None:
    drawn = controller()(2, stream(0, "x"), [])
    loss, b = autogan.controller_loss(Args(entropy_weight=0.0), torch.tensor([3.0, 5.0]), drawn, [2.0])
    want = -((torch.tensor([3.0, 5.0]) - 2) * drawn.logp.sum(1)).mean()
    torch.testing.assert_close(loss, want)
    assert b == pytest.approx([0.9 * 2 + 0.1 * 4])
    assert autogan.controller_loss(Args(), torch.tensor([3.0, 5.0]), drawn, None)[1] == pytest.approx([4.0])


def test_the_authors_loss_is_theirs() -> None:
    args, drawn = Args(controller_loss="reference"), controller()(1, stream(0, "x"), [])
    r = 4.0 + 1e-3 * drawn.entropy
    assert autogan.controller_loss(args, torch.tensor([4.0]), drawn, None)[0].item() == 0
    loss, b = autogan.controller_loss(args, torch.tensor([4.0]), drawn, [3.0] * 4)
    advantage = 0.9 * (r - 3.0)
    torch.testing.assert_close(loss, (-drawn.logp.reshape(1, 4) * advantage.reshape(4, 1)).sum())
    assert b == pytest.approx((0.9 * 3 + 0.1 * r)[0].tolist())


# ---- dynamic reset ---------------------------------------------------------------------------------------------------


def first_trigger(losses: np.ndarray, args: Args) -> int | None:
    """After how many G losses the windows call for a reset; D's losses come 5 to 1 and vary widely."""
    state, wide = State(), np.random.default_rng(1).normal(0, 1, (len(losses), 5))
    for i, loss in enumerate(losses):
        state.watch(job_of(args), list(torch.tensor([*wide[i], loss])))
        if state.collapsed(args):
            return i + 1
    return None


def test_fact_20_dynamic_reset() -> None:
    args = Args()
    assert first_trigger(np.full(700, 2.0), args) == 500
    assert first_trigger(np.random.default_rng(0).normal(0, 0.1, 1000), args) is None
    two_valued = np.where(np.arange(600) % 2, 1.0, -1.0)
    assert first_trigger(0.0009**0.5 * two_valued, args) == 500
    assert first_trigger(0.0011**0.5 * two_valued, args) is None
    assert State(windows={"g": list(two_valued[:500]), "d": [2.0] * 500}).collapsed(args)  # D's may be the flat one
    assert State().window_row() == {"n": 0, "var_g": None, "var_d": None}


def test_windows_hold_the_last_losses_in_their_order() -> None:
    state = State()
    for k in range(4):
        state.watch(job_of(TINY), [torch.tensor(10.0 * k), torch.tensor(10.0 * k + 1), torch.tensor(float(k))])
    assert state.windows == {"g": [0, 1, 2, 3], "d": [11, 20, 21, 30, 31]}
    assert state.window_row() == {"n": 4, "var_g": 1.25, "var_d": np.var([11, 20, 21, 30, 31])}


# ---- the beam --------------------------------------------------------------------------------------------------------


def test_bug_7_candidates_are_distinct() -> None:
    def rarely(n: int, i: int) -> list[Candidate]:
        return [Candidate((0,) if (i * n + k) % 7 else (i * n + k,)) for k in range(n)]

    found = [x.vector[0] for x in autogan.collect(4, True, rarely)]
    assert found == [0, 7, 14, 21][: len(found)]
    assert len(found) == 4
    assert [x.vector[0] for x in autogan.collect(4, False, rarely)] == [0, 0, 0, 0]
    only_two = autogan.collect(5, True, lambda n, i: [Candidate((k % 2,)) for k in range(n)])
    assert [x.vector for x in only_two][:2] == [(0,), (1,)]
    assert len(only_two) == 5  # filled up


def test_rewards() -> None:
    genotype, s = names_of(A), Score(4.0, 6.0, 0.1, 10, "x", "y")
    args = Args(size=32)
    assert autogan.reward_of(args, s, genotype, 256) == 6.0
    assert autogan.reward_of(replace(args, reward="fid"), s, genotype, 256) == 0.25
    for fid in (nan, inf, 0.0, -1e-9):
        assert autogan.reward_of(replace(args, reward="fid"), replace(s, fid=fid), genotype, 256) == 0
    assert autogan.reward_of(args, replace(s, is_mean=nan), genotype, 256) == 0
    costly = Args(size=32, reward="is-cost", cost_weight=5.0)
    worst = autogan.reward_of(costly, replace(s, is_mean=1.0), autogan.largest(3), 256)
    assert -5 == autogan.reward_of(costly, replace(s, is_mean=nan), genotype, 256) < worst < 0
    for cost, cheap, dear in (("params", 4_405_251, 7_098_115), ("macs", 1_765.016e6, None)):
        args = Args(size=32, reward="is-cost", cost=cost, cost_weight=2.0)
        dear = dear or Generator.cost(autogan.largest(3)).macs
        assert autogan.reward_of(args, s, genotype, 256) == pytest.approx(6 - 2 * cheap / dear, rel=1e-5)
        assert autogan.reward_of(args, s, autogan.largest(3), 256) == pytest.approx(4)
        early = autogan.reward_of(args, s, autogan.largest(2), 256)  # the dearest of its own stage
        assert early == pytest.approx(4)


@pytest.mark.parametrize(("reward", "needed"), [("is", {"is"}), ("is-cost", {"is"}), ("fid", {"fid"}), ("mine", {"is", "fid"})])
def test_a_reward_without_a_score_does_not_make_inception_compute_it(reward: str, needed: set[str]) -> None:
    """A user's own has both. The compact network has both in any case."""
    args = Args(reward=reward)
    assert {score for score in ("is", "fid") if args.needs(score)} == needed
    assert all(replace(args, evaluator="compact").needs(score) for score in ("is", "fid"))
    if reward in autogan.REWARDS:  # it does not even read it
        s = Score(4.0 if "fid" in needed else None, 6.0 if "is" in needed else None, None, 10, "x", "y")
        assert autogan.reward_of(replace(args, size=32), s, names_of(A), 256) > 0


def test_a_candidate_is_scored_with_its_own_batch_norm_if_asked() -> None:
    G, genotype, job = Generator(SHARED, 4, 6, 16), names_of(C), job_of(TINY)
    G(normal(8, 6), names_of(DECONV))
    before = clone(G)
    with own_batch_norm(job, G, genotype, 0):
        assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())
    seen = []
    G.cells[0].block1["pre"].bn.register_forward_hook(lambda _m, x, _y: seen.append(x[0].mean((0, 2, 3))))

    def stopped_while_scoring() -> None:
        with own_batch_norm(job, G, genotype, 3):
            torch.testing.assert_close(G.cells[0].block1["pre"].bn.running_mean, torch.stack(seen).mean(0))
            raise Stopped

    with pytest.raises(Stopped):
        stopped_while_scoring()
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())
    assert all(m.momentum == 0.1 for m in G.modules() if isinstance(m, nn.BatchNorm2d))


# ---- a whole search --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_data: dict) -> dict:
    return {
        **tiny_data,
        **{
            "g_ch": 4,
            "d_ch": 4,
            "search_g_ch": 4,
            "search_d_ch": 4,
            "z_dim": 6,
            "g_batch": 4,
            "d_batch": 4,
            "n_critic": 2,
        },
        **{
            "iterations": 6,
            "grow": "2,3",
            "gan_epochs": 1,
            "epoch_batches": 4,
            "ctrl_steps": 3,
            "candidates": 4,
            "beam": 2,
        },
        **{"reward_n": 20, "derive_epochs": 0, "phase": "search", "log_every": 1},
    }


class Watched:
    """A search with its scores replaced by a function of the weights, and resets forced in the iterations asked for."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, tiny: dict, folder: Path, resets: tuple[int, ...], **flags: object
    ) -> None:
        self.weights, self.begins, self.made, self.paths, self.scored, self.sizes = [], {}, [], [], [], []
        self.state = None
        g_step, d_step, track, seeded = autogan.g_step, autogan.d_step, Run.track, autogan.seeded

        def watch_g(job: Job, nets: Pair, *rest: object) -> Tensor:
            loss = g_step(job, nets, *rest)
            self.weights.append((self.state.iteration, clone(nets.G)))
            return loss

        def watch_d(job: Job, nets: Pair, batch: int, genotype: Genotype, stage: int) -> Tensor:
            self.paths.append((self.state.s, genotype))
            self.sizes.append((stage, job.batches(batch).shape[-1]))
            return d_step(job, nets, batch, genotype, stage)

        def watch_state(run: Run, state: State, **parts: object) -> None:
            self.state = state
            self.begins[state.iteration] = (clone(parts["G"]), list(state.beam))
            assert {*parts} == {"G", "D", "g_opt", "d_opt", "controller", "c_opt"}
            track(run, state, **parts)

        def watch_seeded(job: Job, make: object, *name: object) -> nn.Module:
            self.made.append((self.state.iteration if self.state else 0, *name))
            return seeded(job, make, *name)

        def fake_score(job: Job, G: nn.Module, n: int, generate: object, split: bool = True) -> Score:
            assert split  # the images of a score are shared out over the processes
            taken = {}
            with pytest.MonkeyPatch.context() as patch:  # the genotype that generate would pass on
                patch.setattr(type(G), "forward", lambda _G, _z, genotype: taken.update(genotype=genotype))
                generate(None, 0)
            self.scored.append((self.state.iteration, taken["genotype"]))
            value = self.value(G.state_dict(), taken["genotype"])
            return Score(1.0, value, 0.0, n, job.evaluator.net, job.evaluator.ref)

        for name, stub in {"g_step": watch_g, "d_step": watch_d, "seeded": watch_seeded}.items():
            monkeypatch.setattr(autogan, name, stub)
        monkeypatch.setattr(gan, "score", fake_score)
        monkeypatch.setattr(Run, "track", watch_state)
        if resets:
            monkeypatch.setattr(State, "collapsed", lambda state, _args: state.iteration in resets)
        self.run = start(autogan, tiny, folder, **flags)
        self.rows = rows(self.run, "search.jsonl")

    @staticmethod
    def value(weights: dict[str, Tensor], genotype: Genotype) -> float:
        return weights["to_rgb.weight"].double().abs().mean().item() + random.Random(repr(genotype)).random() / 100

    def kind(self, kind: str) -> list[dict]:
        return [row for row in self.rows if row["kind"] == kind]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, quick_compact: None, tiny: dict, tmp_path: Path):
    return lambda resets=(), **flags: Watched(monkeypatch, tiny, tmp_path, resets, **flags)


def test_facts_20_30_bug_1_a_reset_comes_after_the_beam_and_spares_controller_and_beam(watched) -> None:
    """Iterations 1 and 5 end a stage and the search: the authors would rank these candidates on new weights."""
    found = watched(resets=(1, 4, 5))
    assert [row["iteration"] for row in found.kind("reset")] == [1, 4, 5]
    assert [row["iteration"] for row in found.kind("beam")] == [1, 2, 5]
    last = dict(found.weights)  # of every iteration the weights after its last step
    for row in found.kind("beam"):
        for x in row["candidates"]:
            genotype = names_of(read_vector(x["vector"]))
            assert x["score"] == found.value(last[row["iteration"]], genotype)
        assert [x["score"] for x in row["beam"]] == sorted((x["score"] for x in row["candidates"]), reverse=True)[:2]
    for before, after, was_reset in ((1, 2, True), (2, 3, False), (3, 4, False), (4, 5, True)):
        same = all(torch.equal(v, last[before][k]) for k, v in found.begins[after][0].items())
        assert same != was_reset
    assert found.made == [  # a reset makes G and D anew and no controller; a stage's end makes a controller alone
        *((0, "G", 0), (0, "D", 0), (0, "controller", 0)),
        *((1, "controller", 1), (1, "G", 1), (1, "D", 1)),
        *((2, "controller", 2), (4, "G", 2), (4, "D", 2)),
    ]
    beams = [[(x.vector, x.score) for x in found.begins[i][1]] for i in (3, 4, 5)]
    assert beams[0] == beams[1] == beams[2]
    assert found.state.resets == 2  # none after the last iteration
    assert len(found.weights) < 12
    assert sum(len(window) for window in found.state.windows.values()) == 0
    vectors = {x["vector"] for x in found.kind("beam")[0]["beam"]}
    after = [x["vector"] for row in found.kind("controller") if row["iteration"] == 2 for x in row["scored"]]
    assert {" ".join(v.split()[:4]) for v in after} <= vectors


def test_facts_09_17_21_bug_4_stages_grow_from_their_beams(watched) -> None:
    found = watched()
    assert [row["stage"] for row in found.kind("controller")] == [0] * 6 + [1] * 3 + [2] * 9  # 3 steps an iteration
    assert len(found.scored) == 18 + 3 * 4 == Args(iterations=6, ctrl_steps=3, candidates=4).random_count
    assert {(stage, side) for stage, side in found.sizes} == {(0, 4), (1, 8), (2, 16)}
    assert {(stage, len(genotype)) for stage, genotype in found.paths} == {(0, 1), (1, 2), (2, 3)}
    assert len({genotype for _, genotype in found.paths}) > 10  # a new one for every batch of D
    beams = [[tuple(map(int, x["vector"].split())) for x in row["beam"]] for row in found.kind("beam")]
    for stage in (1, 2):
        prefixes = {vector_of_names(g)[: len(beams[stage - 1][0])] for s, g in found.paths if s == stage}
        assert prefixes == set(beams[stage - 1])
    # the baseline goes on over the iterations of a stage and begins anew with the next
    rewards = {0: [], 1: [], 2: []}
    for row in found.kind("controller"):
        rewards[row["stage"]].append(row["reward"])
        b = rewards[row["stage"]][0]
        for r in rewards[row["stage"]]:
            b = 0.9 * b + 0.1 * r
        assert row["baseline"] == pytest.approx(b)


def test_fact_21_schedules() -> None:
    for args, steps, scorings in (
        (Args(), [750, 900, 1050], 2730),
        (Args(iterations=65, grow="15,35"), [450, 600, 900], 1980),
    ):
        ends = [0, *args.stage_ends]
        assert [30 * (b - a) for a, b in pairwise(ends)] == steps
        assert args.random_count == scorings


@pytest.mark.parametrize("change", [{}, {"n_critic": 1}])
def test_fact_22_plan(change: dict) -> None:
    """15 epochs of 782 batches, the last of 16 images, are 2,346 G updates an iteration at 5 steps of D each."""
    job = job_of(Args(size=32, **change), torch.zeros(50_000, 3, 1, 1))
    assert job.epoch == len(job.batches) == 782
    assert len(job.batches(781)) == 16
    plan = {name: steps for name, steps, _ in autogan.plan_of(job, State())}
    per = 2_346 if not change else 11_730
    assert [plan[f"stage {s}"] for s in range(3)] == [25 * per, 30 * per, 35 * per]
    assert plan["train"] == (50_048 if not change else 250_240)
    assert job_of(job.args, torch.zeros(105_000, 3, 1, 1)).epoch == 1641
    cut_off = dict(x[:2] for x in autogan.plan_of(job, State(skipped={1: 100})))
    assert {name: plan[name] - n for name, n in cut_off.items() if n != plan[name]} == {"stage 1": 100}


@pytest.mark.parametrize(("epoch", "train_epochs", "eval_every", "total"), [(782, 320, 20, 50_048), (1641, 153, 10, 50_214)])
def test_fact_22_sixteen_evaluations(epoch: int, train_epochs: int, eval_every: int, total: int, monkeypatch) -> None:
    """Of the trained generator; besides, the untrained one is scored."""
    lengths = {"train_epochs": train_epochs, "eval_every": eval_every, "epoch_batches": epoch, "sample_every": 10**9}
    args = Args(g_ch=2, d_ch=2, size=16, **lengths)
    job, state = job_of(args, torch.zeros(64, 3, 4, 4)), State(G=A)
    job.plan = [gan.train_stage(job, train_epochs, 1, 1)]
    seen, run = [], SimpleNamespace(status={}, print=lambda _text: None, save=lambda: None, weights=lambda *_: None)
    run.begin = run.tick = run.track = run.samples = lambda *_, **__: None
    run.evaluated = lambda step, _row, **more: seen.append((step, more["eval/what"]))
    job.run, job.evaluator = run, SimpleNamespace(score=lambda *_: Score(1.0, 1.0, 0.0, 10, "x", "y"), batch=4)

    def quick(_job: Job, state: State, _nets: Pair) -> None:
        state.step += 1

    monkeypatch.setattr(autogan, "gan_step", quick)
    monkeypatch.setattr(autogan, "ema_update", lambda *_: None)
    autogan.train(job, state)
    assert seen[0] == (0, "untrained")
    assert seen[-1] == (total, "last")
    assert len(seen) == 1 + 16


@pytest.mark.slow
def test_bug_11_a_search_at_48_pixels_has_stages_of_12_24_48(watched, tiny: dict) -> None:
    """Here 24 pixels, for time: in the authors' code the stages are 8, 16 and 32 whatever the size of G's images."""
    assert [Args(size=48).side(stage) for stage in range(3)] == [12, 24, 48]
    assert set(watched(size=24, iterations=3, grow="1,2").sizes) == {(0, 6), (1, 12), (2, 24)}


@pytest.mark.parametrize("search", ["slas", "random-shared"])
def test_searches_of_one_stage(watched, search: str) -> None:
    found = watched(search=search, iterations=2)
    assert {(stage, len(genotype)) for stage, genotype in found.paths} == {(2, 3)}
    (beam,) = found.kind("beam")
    if search == "slas":
        assert [row["stage"] for row in found.kind("controller")] == [2] * 6
        assert found.kind("controller")[0]["decisions"][0] == "1/conv"
        assert [len(p) for p in found.kind("controller")[0]["policy"]] == [2, 3, 3, 2, 2, 3, 3, 2, 2, 2, 3, 3, 2, 4]
        assert len(beam["candidates"]) == 4
    else:
        assert not found.kind("controller")
        assert len(beam["candidates"]) == len({x["vector"] for x in beam["candidates"]}) == 2 * 3 + 3 * 4  # as many as mlas


def test_of_equals_the_first_are_the_beam(watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "value", lambda *_: 1.0)
    for row in watched(iterations=3, grow="1,2").kind("beam"):
        assert row["beam"] == row["candidates"][:2]


def test_a_users_own_reward_is_one_line(watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees both scores and the genotype, in every stage and in the final choice."""
    seen = []

    def mine(score: Score, genotype: Genotype, price: float) -> float:
        seen.append((len(genotype), price))
        return score.is_mean / (1 + score.fid) + len(genotype)

    monkeypatch.setitem(autogan.REWARDS, "mine", mine)
    found = watched(reward="mine", iterations=3, grow="1,2", cost_weight=2.0)
    assert {cells for cells, _ in seen} == {1, 2, 3}
    assert all(0 < price <= 2 for _, price in seen)
    for row in found.kind("controller"):
        for x in row["scored"]:
            assert x["score"] == x["is"] / (1 + x["fid"]) + row["stage"] + 1


def test_a_users_own_reward_works_from_the_command_to_the_choice(
    tiny: dict, tmp_path: Path, quick_compact: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(autogan.REWARDS, "mine", lambda score, genotype, price: score.is_mean / (1 + score.fid))
    values = {**tiny, "iterations": 3, "grow": "1,2", "ctrl_steps": 1, "candidates": 2, "runs_dir": tmp_path}
    assert command(autogan, flags({**values, "reward": "mine", "derive_epochs": 1, "final_n": 20})) == 0
    (run,) = tmp_path.glob("autogan-*")
    *_, derive = rows(run, "search.jsonl")
    assert [x["score"] for x in derive["beam"]] == [x["is"] / (1 + x["fid"]) for x in derive["beam"]]
    assert derive["beam"][0]["score"] == max(x["score"] for x in derive["beam"])


def test_a_reward_that_is_not_finite_for_the_worst_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no NaN reaches the controller when a network's images give no score."""
    monkeypatch.setitem(autogan.REWARDS, "mine", lambda score, genotype, price: -score.fid)
    with pytest.raises(UserError, match="--reward mine: is -inf for an FID of inf"):
        autogan.check(Args(reward="mine"), 1)


def test_without_dynamic_reset_there_is_none(watched) -> None:
    assert not watched(resets=(0, 1, 2), dynamic_reset=False, iterations=3, grow="1,2").kind("reset")


# ---- what users write ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("D", ["'D'", "A, B, C, sngan"]),
        ("1 0 1", ["3 numbers", "14 for 3"]),
        ("1 0 3 1", ["number 3, 1/up", "3 is not in 0..2", "bilinear, nearest, deconv"]),
        ("1 0 1 1 1 0 0 1 1 1 0 1 0 4", ["number 14, 3/skips", "0..3"]),
        ("1 0 -1 1", ["'1 0 -1 1'"]),
        ("", ["no such architecture"]),
    ],
)
def test_vectors_that_are_none_are_refused(text: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read_vector(text)
    assert all(part in str(error.value) for part in parts), error.value


def test_resized_real_images() -> None:
    """Antialiased: a checkerboard becomes grey, which plain sampling would leave black or white."""
    board = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 255
    evaluator = SimpleNamespace(use=lambda _data: None, prepare=lambda: None)
    job = Job(Args(size=32), ONE, evaluator, Dataset("x", board, None, "digest"))
    small = autogan.at_stage(job, 0)
    assert small.data.images.shape == (1, 3, 8, 8)
    assert (small.data.images.float() - 127.5).abs().max() < 10
    assert small.data.name == "x 8 px"
    assert small.evaluator is not evaluator
    assert not small.evaluator.want_fid
    assert autogan.at_stage(job, 2).data is job.data


def test_proxy_correlation() -> None:
    def finalists(*pairs: tuple[float | None, float]) -> list[Candidate]:
        return [Candidate(A, shared=a, score=b) for a, b in pairs]

    found = autogan.proxy_correlation(finalists((1, 10), (2, 30), (3, 20), (4, 40)))
    assert found["rho"] == pytest.approx(0.8)
    assert found["n"] == 4
    assert autogan.proxy_correlation(finalists((1, 10), (2, 30))) is None
    assert autogan.proxy_correlation(finalists((1, 10), (1, 30), (1, 20))) is None
    assert autogan.proxy_correlation(finalists((None, 1), (None, 2), (None, 3))) is None


def test_layers_of_every_convolution_are_the_projects_own() -> None:
    """So that their weights stay float32 under autocast."""
    assert all(isinstance(m, Conv) for m in Generator(names_of(A), 4).modules() if isinstance(m, nn.Conv2d))
