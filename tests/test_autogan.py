"""AutoGAN's search space, networks, controller, dynamic reset, beam and rewards, against the paper and the authors' code.

Numbers: arXiv 1908.03835, or measured on the authors' networks (VITA-Group/AutoGAN at a5eeef0). The discriminator
is tested in test_cells.py.
"""

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import product
from math import inf, log, nan, prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autogan
from autogan import PUBLISHED, Args, Candidate, Cell, Controller, Generator, State, Vector, decisions, names_of, read_vector
from common import gan
from common.cells import AutoGANDiscriminator, Conv, Cost, Genotype, count_params
from common.files import UserError, stream
from common.gan import Job, Pair, adam
from common.metrics import Score
from common.run import Run
from tests import reference as ref
from tests.conftest import REAL_DATA
from tests.runs import assert_equal, command, flags, load, read, rows, slow, start

pytestmark = pytest.mark.usefixtures("quick_compact")

A, B, C, SNGAN = (PUBLISHED[name] for name in ("A", "B", "C", "sngan"))
DECONV = read_vector("1 1 2 1 1 1 2 1 1 1 1 2 1 3")
SHARED = (None, None, None)  # in place of a genotype of three cells: the weights of all of them
OPTIONS = [[2, 3, 3, 2], [2, 3, 3, 2, 2], [2, 3, 3, 2, 4]]  # of the decisions about each cell, in their order
WIDTHS = dict(search_g_ch=4, search_d_ch=4, g_ch=4, d_ch=4, z_dim=6, g_batch=4, d_batch=4, n_critic=2)
TINY = Args(size=16, **WIDTHS)


def job_of(args: Args, images: Tensor | None = None) -> Job:
    """A job on such real images, of values in [-1, 1]; without them on blank ones."""
    images = torch.zeros(8, 3, 4, 4) if images is None else images
    return replace(ref.job_of(args, (images * 127.5 + 127.5).round().to(torch.uint8)), run=gan.NO_RUN)


def vectors(n: int, cells: int = 3) -> list[Vector]:
    return [x.vector for x in autogan.uniform(Args(cells=cells), n, "test")]


def every_vector(cells: int) -> list[Vector]:
    return list(product(*(range(n) for options in OPTIONS[:cells] for n in options)))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "test"))


# ---- the space (§3.1, Fig. 2) ----------------------------------------------------------------------------------------


def test_a_code_is_the_place_of_its_name_among_the_options() -> None:
    for cell in range(3):
        assert [len(options) for _, options in autogan.to_decide(range(cell, cell + 1))] == OPTIONS[cell]
    assert [prod(map(prod, OPTIONS[:cells])) for cells in (1, 2, 3)] == [36, 2_592, 373_248]
    names = [product(*decisions(cell).values()) for cell in range(2)]
    assert [names_of(vector) for vector in every_vector(2)] == list(product(*names))
    assert decisions(2)["skips"] == ("none", "2", "1", "1+2")  # authors' code: 2 reads cell 1, and 1 cell 2
    assert names_of(A) == (
        ("pre", "none", "nearest", "yes", "none"),
        ("pre", "none", "bilinear", "yes", "1"),
        ("pre", "none", "nearest", "no", "1+2"),
    )
    for vector in [*PUBLISHED.values(), *vectors(20, cells=5)]:
        assert read_vector(autogan.text_of(vector)) == vector


# ---- sizes of the networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "shape", "params", "macs"),
    [
        (A, (256, 128, 32), 4_405_251, 1_765.016),
        (B, (256, 128, 32), 4_471_043, 1_832.124),
        (C, (256, 128, 32), 4_406_275, 1_765.016),
        (SNGAN, (256, 128, 32), 4_276_739, 1_681.129),
        (A, (256, 128, 48), 5_065_731, 3_971.285),
        (B, (256, 128, 48), 5_131_523, None),
        (A, (128, 128, 32), 1_235_971, 443.154),
        (A[:9], (128, 128, 16), 907_779, 105.0),
        (A[:4], (128, 128, 8), 579_587, 20.4),
        (DECONV, (16, 32, 32), 35_059, None),
    ],
)
def test_sizes_of_the_published_architectures(vector: Vector, shape: tuple, params: int, macs: float | None) -> None:
    """(channels, latent, side); macs: millions, measured on the authors' networks, of which §4.2 has 1.77 G."""
    genotype = names_of(vector)
    cost = Generator.cost(genotype, *shape)
    assert count_params(Generator(genotype, *shape)) == cost.params == params
    assert macs is None or cost.macs / 1e6 == pytest.approx(macs, abs=5e-4 if macs > 110 else 0.05)


def test_range_of_the_sizes_and_size_of_the_shared_weights() -> None:
    cells = [[Cell.cost(256, cell, row, 32).params for row in product(*decisions(cell).values())] for cell in range(3)]
    ends = Generator.cost(autogan.names_of(autogan.largest(3))).params - sum(map(max, cells))
    assert sum(map(min, cells)) + ends == 4_076_291
    assert sum(map(max, cells)) + ends == 7_098_115
    # the authors' has 11 deconvolutions more, which nothing uses: 6 in second blocks, 5 of no skip
    for ch, z_dim, reference in ((256, 128, 14_315_267), (128, 128, 3_716_995), (16, 32, 63_731), (8, 16, 16_379)):
        assert Generator.cost(SHARED, ch, z_dim).params == reference - 11 * (4 * ch * ch + ch)


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5])
def test_costs_hold_for_any_number_of_cells(cells: int) -> None:
    shape = 3, 5, 3 * 2**cells
    for genotype in [(None,) * cells, *map(names_of, vectors(6, cells))]:
        assert Generator.cost(genotype, *shape).params == count_params(Generator(genotype, *shape))
    most = Generator.cost(autogan.names_of(autogan.largest(cells)), *shape)
    for vector in vectors(30, cells):
        cost = Generator.cost(names_of(vector), *shape)
        assert cost.params <= most.params
        assert cost.macs <= most.macs


def test_a_norm_of_a_users_own_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one network and in the shared weights."""
    monkeypatch.setitem(autogan.NORMS, "affine", lambda ch: nn.InstanceNorm2d(ch, affine=True))
    assert decisions(0)["norm"] == ("none", "bn", "in", "affine")
    genotype = (("pre", "affine", "nearest", "no", "none"), ("post", "affine", "deconv", "yes", "1"))
    for built_for in (genotype, (None, None)):
        G = Generator(built_for, 4, 6, 16)
        assert count_params(G) == Generator.cost(built_for, 4, 6, 16).params
        assert G(normal(2, 6), genotype).shape == (2, 3, 16, 16)


# ---- networks (§3.1) -------------------------------------------------------------------------------------------------


def paper_generator(G: Generator, genotype: Genotype, z: Tensor) -> tuple[Tensor, int]:
    """The images and the multiply-adds of one, in the words of the paper: every resize comes before its convolution."""
    macs = [G.latent.weight.numel()]

    def conv(layer: nn.Module, x: Tensor) -> Tensor:
        macs.append(layer.weight.numel() * x[0, 0].numel())
        return layer(x)

    def resize(x: Tensor, up: str, deconvs: list[nn.Module], factor: int) -> Tensor:
        if up != "deconv":
            return F.interpolate(x, scale_factor=factor, mode=up)
        for layer in deconvs:
            x = conv(layer, x)
        return x

    def norm_relu(x: Tensor, name: str, module: nn.Module) -> Tensor:
        if name == "bn":
            bn = module.bn
            x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)
        return (F.instance_norm(x) if name == "in" else x).relu()

    def block(module: nn.Module, x: Tensor, row: tuple[str, ...], up: bool) -> Tensor:
        if row[0] == "pre":
            x = norm_relu(x, row[1], module)
        x = conv(module.conv, resize(x, row[2], [module.deconv], 2) if up else x)
        return x if row[0] == "pre" else norm_relu(x, row[1], module)

    x, taps = G.latent(z).view(len(z), -1, G.bottom, G.bottom), []
    for cell, row in zip(G.cells, genotype, strict=False):
        h = block(cell.block1[row[0]], x, row, True)
        for source in [] if row[4] == "none" else map(int, row[4].split("+")):
            skip = cell.skips[str(source)]
            h = h + conv(skip.conv, resize(taps[source - 1], row[2], skip.deconv, 2 ** (len(taps) + 1 - source)))
        out = block(cell.block2[row[0]], h, row, False)
        if row[3] == "yes":
            out = out + conv(cell.shortcut.conv, resize(x, row[2], cell.shortcut.deconv, 2))
        taps.append(h)  # authors' code: with the skips added; in Fig. 3 it leaves before
        x = out
    return conv(G.to_rgb, norm_relu(x, "bn", G)).tanh(), sum(macs)


@torch.no_grad()
def test_shared_weights_a_network_alone_and_definition_agree() -> None:
    G, z = Generator(SHARED, 5, 6, 32), normal(2, 6).double()
    for i, m in enumerate(m for m in G.modules() if isinstance(m, nn.BatchNorm2d)):
        m.running_mean.copy_(0.1 * normal(m.num_features, seed=i))
        m.running_var.copy_(1 + normal(m.num_features, seed=i).square())
    G.double().eval()
    for vector in [A, B, C, SNGAN, DECONV, A[:4], A[:9], *vectors(12), *vectors(4, cells=2)]:
        genotype = names_of(vector)
        size = 4 * 2 ** len(genotype)
        want, macs = paper_generator(G, genotype, z)
        alone = Generator(genotype, 5, 6, size).double().eval()
        alone.load_state_dict({name: G.state_dict()[name] for name in alone.state_dict()})
        assert want.shape == (2, 3, size, size)
        torch.testing.assert_close(G(z, genotype), want, rtol=0, atol=1e-10)
        torch.testing.assert_close(alone(z), want, rtol=0, atol=1e-10)
        assert Generator.cost(genotype, 5, 6, size) == Cost(count_params(alone), macs)


@pytest.mark.parametrize("sample", [40, slow(200)])
def test_every_architecture_trains(sample: int) -> None:
    """In the authors' code a post-activation cell with a shortcut or a skip ends in an error of autograd."""
    for vector in [*every_vector(1), *vectors(sample)]:
        genotype = names_of(vector)
        G = Generator(genotype, 2, 3, 2 * 2 ** len(genotype))
        G(normal(2, 3)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in G.parameters()), vector


def test_initial_weights() -> None:
    """Authors' code: Xavier for G's convolutions, PyTorch's own for the rest and for D, under spectral norm."""
    torch.manual_seed(0)
    G, D, deconvs = Generator(names_of(C), 256), AutoGANDiscriminator(64), Generator(names_of(DECONV), 64)
    for weight, limit in (
        (G.cells[0].block1["pre"].conv.weight, 0.03608),
        (G.cells[0].shortcut.conv.weight, 0.10825),
        (G.to_rgb.weight, 0.05073),
        (G.latent.weight, 0.08839),
        (deconvs.cells[0].block1["pre"].deconv.weight, (4 * 64) ** -0.5),
        (D.last.conv1.parametrizations.weight.original, (64 * 9) ** -0.5),
    ):
        assert 0.98 * limit < weight.abs().max() < 1.001 * limit
    assert G.bn.weight.std().item() == pytest.approx(0.02, rel=0.2)
    # and they stay float32 under autocast
    assert all(isinstance(m, Conv) for m in G.modules() if isinstance(m, nn.Conv2d))


# ---- one step --------------------------------------------------------------------------------------------------------


def test_hinge_losses() -> None:
    """Eq. 1; G's as in the authors' code: Eq. 2 has no gradient where D(G(z)) > 0."""
    scores = torch.tensor([[2.0], [0.5], [-1.0]])
    assert autogan.d_loss(scores, -scores).item() == pytest.approx(5 / 3)
    assert autogan.g_loss(-scores).item() == autogan.g_loss(-scores, scores).item() == pytest.approx(0.5)
    assert autogan.d_loss(0 * scores, 0 * scores).item() == 2


def test_each_step_trains_its_own_network_and_only_the_cells_in_use() -> None:
    job, genotype = job_of(replace(TINY, g_lr=1e-3, d_lr=1e-3), normal(4, 3, 8, 8).clamp(-1, 1)), names_of(A[:9])
    nets = autogan.new_pair(job, SHARED, 4, 4, "test")

    def moved(before: nn.Module, now: nn.Module) -> set[str]:
        pairs = zip(before.named_parameters(), now.parameters(), strict=True)
        return {name for (name, p), q in pairs if not torch.equal(p, q)}

    G, D = deepcopy(nets.G), deepcopy(nets.D)
    loss = autogan.d_step(job, nets, gan.d_draw(job, 0), genotype, 1)
    assert not moved(G, nets.G)
    of_d = moved(D, nets.D)
    assert any(name.startswith("middle.0.conv1") for name in of_d)
    assert not any(name.startswith("middle.1") for name in of_d)
    real, fake = D(torch.cat([job.batches(0), G(gan.latent(job, 4, "d", 0), genotype)]), 1).chunk(2)
    torch.testing.assert_close(loss, autogan.d_loss(real, fake))

    G, D = deepcopy(nets.G), deepcopy(nets.D)
    loss = autogan.g_step(job, nets, gan.latent(job, 4, "g", 0), genotype, 1)
    assert not moved(D, nets.D)
    of_g = moved(G, nets.G)
    assert "cells.1.skips.1.conv.weight" in of_g
    assert not any(".post." in name or "deconv" in name or name.startswith("cells.2") for name in of_g)
    torch.testing.assert_close(loss, autogan.g_loss(D(G(gan.latent(job, 4, "g", 0), genotype), 1)))


# ---- controller (§3.3) -----------------------------------------------------------------------------------------------


def controller(stage: int = 0) -> Controller:
    torch.manual_seed(0)
    return Controller(OPTIONS[stage])


def beam_of(prefixes: list[Vector]) -> list[Candidate]:
    return [Candidate(v, normal(100, seed=i), normal(100, seed=i + 50)) for i, v in enumerate(prefixes)]


@pytest.mark.parametrize(("stage", "params", "nats"), [(0, 82_810, 36), (1, 83_212, 72), (2, 83_614, 144)])
def test_a_fresh_controller_has_the_authors_size_and_is_nearly_uniform(stage: int, params: int, nats: int) -> None:
    made = controller(stage)
    assert count_params(made) == params
    assert made(100, stream(0, "x"), []).entropy.sum(1).mean().item() >= 0.99 * log(nats)


def test_what_the_controller_tells_is_what_it_drew() -> None:
    """Its log-probabilities belong to its tokens, given the tokens before: replayed by hand, token by token."""
    made, (begun,) = controller(2), beam_of(vectors(1, cells=2))
    drawn = made(6, stream(0, "x"), [begun])
    for i, found in enumerate(drawn.candidates):
        h, c, x, first = begun.h[None], begun.c[None], torch.zeros(1, 100), 0
        for j, (token, n) in enumerate(zip(found.vector[9:], OPTIONS[2], strict=True)):
            h, c = made.lstm(x, (h, c))
            p = made.decoders[j](h).softmax(1)[0]
            assert drawn.logp[i, j].item() == pytest.approx(p[token].log().item(), abs=1e-5)
            assert drawn.entropy[i, j].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)
            torch.testing.assert_close(drawn.policy[j][i], p.detach())
            x, first = made.embedding.weight[first + token][None], first + n
        torch.testing.assert_close(found.h, h[0].detach())
        torch.testing.assert_close(found.c, c[0].detach())


def toy(vector: Vector, rng: random.Random) -> float:
    wanted = [0.3 * (vector[0] == 1), 0.2 * (vector[1] == 0), 0.2 * (vector[2] == 1), 0.1 * (vector[3] == 1)]
    return 3 + sum(wanted) + rng.gauss(0, 0.1)


def taught(args: Args, sign: int, steps: int) -> tuple[float, float]:
    """Of a controller after so many steps on the toy reward, or its negative: P(pre) and what it earns on average."""
    made, baseline, rng = controller(), None, random.Random(0)
    optimizer = adam(job_of(args), made, args.ctrl_lr)
    for step in range(steps):
        drawn = made(args.ctrl_batch, stream(0, "step", step), [])
        rewards = torch.tensor([sign * toy(x.vector, rng) for x in drawn.candidates])
        if args.controller_loss == "reference" and step % 30 == 0:
            baseline = None
        loss, baseline = autogan.controller_loss(args, rewards, drawn, baseline)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    p = [p.mean(0) for p in made(200, stream(0, "policy"), []).policy]
    return p[0][1].item(), 3 + (0.3 * p[0][1] + 0.2 * p[1][0] + 0.2 * p[2][1] + 0.1 * p[3][1]).item()


@pytest.mark.parametrize(
    ("args", "steps"),
    [
        (Args(ctrl_batch=8, ctrl_lr=3e-3), 80),  # in the authors' code any number but 1 ends in an error of shapes
        slow(Args(), 750),  # as many as stage 0 has
        slow(Args(controller_loss="reference"), 750),
    ],
    ids=["8 a step", "fixed", "reference"],
)
def test_the_controller_learns_what_is_rewarded(args: Args, steps: int) -> None:
    """The uniform policy earns 3.333, the best 3.8 and the worst 3."""
    pre, mean = taught(args, 1, steps)
    assert pre > 0.85
    assert mean > (3.6 if steps == 80 else 3.7)
    pre, mean = taught(args, -1, steps)
    assert pre < 0.15
    assert mean < 3.15


def test_the_losses_of_the_controller() -> None:
    """§3.3.2: REINFORCE less what came before, and the entropy as a bonus. The authors' baseline already holds the
    reward, and minimising their loss lowers the entropy."""
    made = controller()
    drawn, rewards = made(2, stream(0, "x"), []), torch.tensor([3.0, 5.0])
    fixed, after = autogan.controller_loss(Args(entropy_weight=0.5), rewards, drawn, [2.0])
    want = -((rewards - 2) * drawn.logp.sum(1)).mean() - 0.5 * drawn.entropy.sum(1).mean()
    assert after == pytest.approx([0.9 * 2 + 0.1 * 4])
    assert autogan.controller_loss(Args(), rewards, drawn, None)[1] == pytest.approx([4.0])

    one, args = made(1, stream(0, "x"), []), Args(controller_loss="reference", entropy_weight=0.5)
    authors, after = autogan.controller_loss(args, rewards[:1], one, [2.5] * 4)
    r = 3.0 + 0.5 * one.entropy
    advantage = 0.9 * (r - 2.5)
    theirs = (-one.logp.reshape(1, 4) * advantage.reshape(4, 1)).sum()
    assert after == pytest.approx((0.9 * 2.5 + 0.1 * r)[0].tolist())
    assert autogan.controller_loss(args, rewards[:1], one, None)[0].item() == 0

    for found, formula in ((fixed, want), (authors, theirs)):
        torch.testing.assert_close(found, formula)
        gradients = (torch.autograd.grad(x, list(made.parameters()), retain_graph=True) for x in (found, formula))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


# ---- dynamic reset (§3.3) --------------------------------------------------------------------------------------------


def test_a_reset_comes_when_500_losses_vary_by_less_than_a_thousandth() -> None:
    """§4: their variance; §3.3 has the standard deviation."""
    wide, signs = np.random.default_rng(1).normal(0, 1, 500), np.where(np.arange(500) % 2, 1.0, -1.0)

    def collapsed(g: np.ndarray, d: np.ndarray) -> bool:
        return State(windows={"g": list(g), "d": list(d)}).collapsed(Args())

    assert collapsed(0 * wide + 2, wide)
    assert collapsed(wide, 0 * wide + 2)
    assert not collapsed(0 * wide[1:] + 2, wide)
    assert collapsed(0.0009**0.5 * signs, wide)
    assert not collapsed(0.0011**0.5 * signs, wide)


def test_windows_hold_the_last_losses_in_their_order() -> None:
    state = State()
    assert state.window_row() == {"n": 0, "var_g": None, "var_d": None}
    for k in range(4):
        losses = torch.tensor([10.0 * k, 10.0 * k + 1, float(k)])
        state.unseen.append(losses)
        if k == 1:  # as if resumed here
            saved, state = state.state_dict(), State()
            state.load_state_dict(saved)
        if k % 2:
            assert not state.watch(job_of(replace(TINY, reset_window=5)))
    assert not state.unseen
    assert state.windows == {"g": [0, 1, 2, 3], "d": [11, 20, 21, 30, 31]}
    assert state.window_row() == {"n": 4, "var_g": 1.25, "var_d": np.var([11, 20, 21, 30, 31])}


def test_losses_that_are_flat_between_two_looks_are_seen() -> None:
    state = State(unseen=[torch.tensor([float(k), g]) for k, g in enumerate((0, 1, 1, 0, 1))])
    assert state.watch(job_of(replace(TINY, reset_window=2)))
    assert state.windows == {"g": [1, 1], "d": [1, 2]}
    state.unseen = [torch.tensor([float(k), g]) for k, g in enumerate((0, 1, 1, 0, 1))]
    assert not state.watch(job_of(replace(TINY, reset_window=2, dynamic_reset=False)))
    assert state.windows == {"g": [0, 1], "d": [3, 4]}


# ---- candidates and rewards (§3.3.2, §4.3) ---------------------------------------------------------------------------


def test_candidates_are_distinct() -> None:
    """The authors take what comes."""

    def collect(codes: range, n: int, distinct: bool) -> list[int]:
        """From draws of n that begin anew with every seventh code and are 0 between."""
        draws = [Candidate((code if code % 7 == 0 else 0,)) for code in codes]
        return [x.vector[0] for x in autogan.collect(n, distinct, lambda n, i: draws[i * n : i * n + n])]

    assert collect(range(1000), 4, True) == [0, 7, 14, 21]
    assert collect(range(1000), 4, False) == [0, 0, 0, 0]
    assert collect(range(8), 3, True) == [0, 7, 0]  # filled up


@pytest.mark.parametrize("bn_batches", [0, 1])
def test_a_candidate_is_scored_by_all_processes_and_with_its_own_batch_norm_if_asked(bn_batches: int) -> None:
    G, seen, job = Generator(SHARED, 4, 6, 16), [], job_of(replace(TINY, bn_batches=bn_batches))
    job.ranks = SimpleNamespace(rank=1, world=2, device=torch.device("cpu"))

    def score(_images: object, n: int, rank: int, world: int, more: bool = False) -> Score:
        seen.append((n, rank, world, G.bn.num_batches_tracked.item()))
        return Score(4.0, 6.0, 0.1, n, "x", "y")

    job.evaluator.score, job.evaluator.batch = score, 4
    assert autogan.score_shared(job, G, Candidate(A)).score == 6.0
    assert seen == [(5000, 1, 2, bn_batches)]
    assert G.bn.num_batches_tracked == 0


def reward(score: Score, genotype: Genotype = names_of(A), **changes: object) -> float:  # noqa: B008
    return autogan.reward_of(Args(size=32, **changes), score, genotype, 256)


def test_rewards() -> None:
    """The IS, or 1/FID. Where it is not finite, that of the worst network."""
    s = Score(4.0, 6.0, 0.1, 10, "x", "y")
    assert reward(s) == 6.0
    assert reward(s, reward="fid") == 0.25
    assert [reward(replace(s, fid=fid), reward="fid") for fid in (nan, inf, 0.0, -1e-9)] == [0, 0, 0, 0]
    assert reward(replace(s, is_mean=nan)) == 0
    assert reward(replace(s, is_mean=nan), reward="is-cost", cost_weight=5.0) == -5
    share = {"params": 4_405_251 / 7_098_115, "macs": 1_765.016e6 / Generator.cost(autogan.names_of(autogan.largest(3))).macs}
    for cost in ("params", "macs"):
        costly = dict(reward="is-cost", cost=cost, cost_weight=2.0)
        assert reward(s, **costly) == pytest.approx(6 - 2 * share[cost], rel=1e-5)
        for cells in (2, 3):  # the dearest of its own stage
            assert reward(s, autogan.names_of(autogan.largest(cells)), **costly) == pytest.approx(4)


@pytest.mark.parametrize(("name", "needed"), [("is", {"is"}), ("is-cost", {"is"}), ("fid", {"fid"}), ("mine", {"is", "fid"})])
def test_a_reward_without_a_score_does_not_make_inception_compute_it(name: str, needed: set[str]) -> None:
    args = Args(reward=name)
    assert {score for score in ("is", "fid") if args.needs(score)} == needed
    assert all(replace(args, evaluator="compact").needs(score) for score in ("is", "fid"))  # it has both anyway
    if name in autogan.REWARDS:  # it does not even read it
        s = Score(4.0 if "fid" in needed else None, 6.0 if "is" in needed else None, None, 10, "x", "y")
        assert reward(s, reward=name) > 0


def test_a_reward_that_is_not_finite_for_the_worst_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no NaN reaches the controller when a network's images give no score."""
    monkeypatch.setitem(autogan.REWARDS, "mine", lambda score, genotype, price: -score.fid)
    with pytest.raises(UserError, match="--reward mine"):
        autogan.check(Args(reward="mine"), 1)


def test_proxy_correlation() -> None:
    """§4.3.1: of the scores under shared weights with those after training."""

    def found(shared: list[float | None]) -> dict | None:
        pairs = zip(shared, (10, 30, 20, 40), strict=False)
        return autogan.proxy_correlation([Candidate(A, shared=a, score=b) for a, b in pairs])

    four = found([1, 2, 3, 4])
    assert (four["rho"], four["n"]) == (pytest.approx(0.8), 4)
    assert found([1, 2]) is found([1, 1, 1]) is found([None, None, None]) is None


# ---- schedule (§4) ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "changes", "an_iteration", "training"),
    [
        (50_000, {}, 2_346, 50_048),
        (50_000, {"n_critic": 1}, 11_730, 250_240),
        (105_000, {"train_epochs": 153, "eval_every": 10}, 4_923, 50_214),
    ],
    ids=["CIFAR-10", "one step of D", "STL-10"],
)
def test_updates_of_the_generator_and_sixteen_evaluations(images: int, changes: dict, an_iteration: int, training: int) -> None:
    """In 15 epochs an iteration, whose last batch is a short one."""
    job = job_of(Args(size=32, **changes), torch.zeros(images, 3, 1, 1))
    assert job.epoch == len(job.batches) == images // 64 + 1
    plan = {name: steps for name, steps, _ in autogan.plan_of(job, State())}
    assert [plan[f"stage {s}"] for s in range(3)] == [25 * an_iteration, 30 * an_iteration, 35 * an_iteration]
    shorter = {name: steps for name, steps, _ in autogan.plan_of(job, State(skipped={1: 100}))}  # by a reset
    assert shorter == {**plan, "stage 1": plan["stage 1"] - 100}
    every, after = gan.evaluation_steps(job)
    assert (plan["train"], after) == (training, 0)
    assert len(range(every, training, every)) + 1 == 16


def test_stages_at_48_pixels() -> None:
    """In the authors' code they are of 8, 16 and 32, whatever the size of G's images."""
    args = Args(size=48, z_dim=6)
    for cells, side in ((1, 12), (2, 24), (3, 48)):
        genotype = names_of(A)[:cells]
        assert args.side(cells - 1) == side
        assert args.g_cost(genotype, 4).params == count_params(Generator(genotype, 4, 6, side))


def test_real_images_of_a_stage() -> None:
    """Antialiased: such stripes become grey, where plain sampling would see the dark ones alone."""
    stripes = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(8).expand(1, 3, 32, 32)
    job = job_of(Args(size=32), stripes)
    small = autogan.at_stage(job, 0)
    assert small.data.images.shape == (1, 3, 8, 8)
    assert (small.data.images.float() - 127.5).abs().max() < 30
    assert small.data.name != job.data.name
    assert small.evaluator is not job.evaluator
    assert not small.evaluator.want_fid
    assert autogan.at_stage(job, 2).data is job.data


# ---- a whole search (Algorithm 1) ------------------------------------------------------------------------------------

QUICK = dict(gan_epochs=1, epoch_batches=4, candidates=4, beam=2, reward_n=20, derive_epochs=0, phase="search", log_every=1)


class Watched:
    """A search and what its steps saw: two steps of G and three of the controller an iteration, of six."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data: dict, folder: Path, **changes: object) -> None:
        self.began, self.last, self.paths = [], {}, []
        g_step, d_step, track = autogan.g_step, autogan.d_step, Run.track

        def watch_g(job: Job, nets: Pair, *rest: object) -> Tensor:
            loss = g_step(job, nets, *rest)
            self.last[len(self.began) - 1] = job, deepcopy(nets.G)
            return loss

        def watch_d(job: Job, nets: Pair, drawn: tuple[Tensor, Tensor], genotype: Genotype, stage: int) -> Tensor:
            self.paths.append((stage, drawn[0].shape[-1], genotype))
            return d_step(job, nets, drawn, genotype, stage)

        def watch_track(run: Run, state: State, **parts: object) -> None:
            track(run, state, **parts)
            self.began.append(deepcopy({"state": state, **parts}))

        monkeypatch.setattr(autogan, "g_step", watch_g)
        monkeypatch.setattr(autogan, "d_step", watch_d)
        monkeypatch.setattr(Run, "track", watch_track)
        values = dict(iterations=6, grow="2,3", ctrl_steps=3) | changes
        self.rows = rows(start(autogan, {**data, **WIDTHS, **QUICK}, folder, **values), "search.jsonl")

    def kind(self, kind: str) -> list[dict]:
        return [row for row in self.rows if row["kind"] == kind]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tiny_data: dict, tmp_path: Path):
    return lambda **changes: Watched(monkeypatch, tiny_data, tmp_path, **changes)


def test_a_reset_comes_after_the_beam_and_spares_controller_and_beam(watched) -> None:
    """The authors' code ranks on new weights what the reset of a stage's last iteration has wiped."""
    found = watched(reset_window=3, reset_variance=1e9)  # flat after every third step of G
    assert [row["iteration"] for row in found.kind("reset")] == [1, 3, 5]
    assert [row["iteration"] for row in found.kind("beam")] == [1, 2, 5]
    for row in found.kind("beam"):
        job, G = found.last[row["iteration"]]
        for x in row["candidates"]:
            assert x["score"] == autogan.score_shared(job, G, Candidate(read_vector(x["vector"]))).score
        assert [x["score"] for x in row["beam"]] == sorted((x["score"] for x in row["candidates"]), reverse=True)[:2]
    for i in range(1, 6):
        begun = found.began[i]
        if i in (2, 4):
            fresh = autogan.new_pair(job_of(TINY), SHARED, 4, 4, i // 2)
            assert_equal(begun["G"].state_dict(), fresh.G.state_dict())
            assert_equal(begun["D"].state_dict(), fresh.D.state_dict())
            assert not begun["g_opt"].state
            assert not begun["d_opt"].state
        else:
            assert_equal(begun["G"].state_dict(), found.last[i - 1][1].state_dict())
    controllers = [begun["controller"].state_dict() for begun in found.began]
    fresh = [autogan.new_controller(job_of(TINY), State(s=s))[0].state_dict() for s in (1, 2)]
    assert_equal([controllers[2], controllers[3]], fresh)
    assert not torch.equal(controllers[4]["lstm.weight_hh"], fresh[1]["lstm.weight_hh"])  # not reset, but trained
    beams = [[(x.vector, x.score) for x in begun["state"].beam] for begun in found.began]
    assert beams[3] == beams[4] == beams[5] != beams[2]
    end = found.began[-1]["state"]
    assert (end.resets, end.step) == (2, 12 - 3)  # no reset after the last iteration
    assert end.windows == {"g": [], "d": []}


def test_stages_grow_from_their_beams(watched) -> None:
    found = watched(seed=3)  # of 4 draws in stage 1, some continue each of the two beams
    controlled, beams = found.kind("controller"), found.kind("beam")
    assert [row["stage"] for row in controlled] == [0] * 6 + [1] * 3 + [2] * 9
    scored = sum(len(row["scored"]) for row in controlled) + sum(len(row["candidates"]) for row in beams)
    assert scored == Args(iterations=6, ctrl_steps=3, candidates=4).random_count
    assert {(stage, side, len(genotype)) for stage, side, genotype in found.paths} == {(0, 4, 1), (1, 8, 2), (2, 16, 3)}
    assert len({genotype for *_, genotype in found.paths}) > 10  # a new one for every batch of D
    for stage in (1, 2):
        kept = {names_of(read_vector(x["vector"])) for x in beams[stage - 1]["beam"]}
        assert {genotype[:stage] for s, _, genotype in found.paths if s == stage} == kept
        scored = [read_vector(x["vector"]) for row in controlled if row["stage"] == stage for x in row["scored"]]
        assert {names_of(vector)[:stage] for vector in scored} <= kept
    for stage in range(3):  # the baseline goes on over the iterations of a stage and begins anew with the next
        mine = [row for row in controlled if row["stage"] == stage]
        baseline = mine[0]["reward"]
        for row in mine:
            baseline = 0.9 * baseline + 0.1 * row["reward"]
            assert row["baseline"] == pytest.approx(baseline)


@pytest.mark.parametrize("search", ["slas", "random-shared"])
def test_searches_of_one_stage(search: str, watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """§4.3. Of equal scores the first are the beam. Without --dynamic-reset there is none."""
    monkeypatch.setitem(autogan.REWARDS, "same", lambda score, genotype, price: 1.0)
    flat = dict(reset_window=2, reset_variance=1e9, dynamic_reset=False)
    found = watched(search=search, iterations=2, reward="same", **flat)
    assert {(stage, len(genotype)) for stage, _, genotype in found.paths} == {(2, 3)}
    assert not found.kind("reset")
    (beam,) = found.kind("beam")
    assert beam["beam"] == beam["candidates"][:2]
    controlled = found.kind("controller")
    if search == "slas":
        assert len(beam["candidates"]) == 4
        assert [row["stage"] for row in controlled] == [2] * 6
        assert controlled[0]["decisions"][0] == "1/conv"
        assert [len(p) for p in controlled[0]["policy"]] == [n for options in OPTIONS for n in options]
    else:
        assert len({x["vector"] for x in beam["candidates"]}) == len(beam["candidates"]) == 2 * 3 + 3 * 4  # as many as mlas
        assert not controlled


# ---- what a run leaves, what it refuses ------------------------------------------------------------------------------


def test_search_rows_show_controller_beam_reset_and_choice(whole: Path) -> None:
    found = rows(whole, "search.jsonl")
    kinds = {kind: [r for r in found if r["kind"] == kind] for kind in ("controller", "beam", "reset", "derive")}
    turn = ["controller", "controller", "beam"]
    assert [r["kind"] for r in found if r["kind"] != "reset"] == [*turn, *turn, *turn, "derive"]
    assert all(row["stage"] in (0, 1, 2) for row in found)
    for row in kinds["controller"]:
        assert len(row["decisions"]) == len(row["options"]) == len(row["policy"]) == len(row["entropy"])
        for options, policy in zip(row["options"], row["policy"], strict=True):
            assert len(options) == len(policy)
            assert sum(policy) == pytest.approx(1)
        assert row["reward"] == pytest.approx(np.mean([x["score"] for x in row["scored"]]))
        assert row["baseline"] > 0
    for row in kinds["beam"]:
        assert {len(read_vector(x["vector"])) for x in row["beam"]} == {(4, 9, 14)[row["stage"]]}
    (reset,) = kinds["reset"]
    assert reset["stage"] == 1
    assert min(reset["window"]["var_g"], reset["window"]["var_d"]) < 9
    (derive,) = kinds["derive"]
    assert [x["how"] for x in derive["beam"]].count("proxy") == 1
    assert all(x["shared"] > 0 and x["score"] > 0 for x in derive["beam"])
    assert derive["spearman"] is None or -1 <= derive["spearman"]["rho"] <= 1


def test_the_best_finalist_is_trained(whole: Path) -> None:
    finalists = [x for x in rows(whole, "search.jsonl")[-1]["beam"] if x["how"] == "beam"]
    best = max(finalists, key=lambda x: x["score"])["vector"]
    genotype, weights = read(whole, "genotype.json"), load(whole, "weights.pt")
    assert genotype["vector"] == best
    assert weights["genotype"]["G"] == names_of(read_vector(best))
    assert [c["conv"] for c in genotype["cells"]] == [row[0] for row in names_of(read_vector(best))]
    assert genotype["params"]["G"] == count_params(Generator(names_of(read_vector(best)), 4, 6, 16))


@pytest.mark.parametrize("log_every", [slow(1), 10**6])
def test_a_finalist_that_diverges_is_out_and_the_others_go_on(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    step = autogan.gan_step

    def diverging(job: gan.Job, nets: gan.Pair, *rest: object) -> list:
        losses = step(job, nets, *rest)
        if job.run.status["stage"].startswith("finalist 1"):
            job.run.watch(torch.tensor(float("nan")))
        return losses

    monkeypatch.setattr(autogan, "gan_step", diverging)
    run = start(autogan, {**tiny, "log_every": log_every}, tmp_path, phase="search")
    (row,) = (r for r in rows(run, "search.jsonl") if r["kind"] == "derive")
    assert [x["score"] > 0 for x in row["beam"]] == [True] * (len(row["beam"]) - 1) + [False]
    assert "finalist 1" in (run / "log.txt").read_text()


def test_a_controller_that_diverges_ends_the_run_in_one_line(tiny: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(autogan, flags({**tiny, "ctrl_lr": 1e30, "runs_dir": tmp_path})) == 2
    assert "--ctrl-lr" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_of_a_version_that_knew_tap_are_evaluated(tiny: dict, whole: Path, tmp_path: Path) -> None:
    saved = load(whole, "weights.pt")
    torch.save({**saved, "tap": "after"}, tmp_path / "w.pt")
    run = start(autogan, tiny, tmp_path / "runs", phase="eval", weights=tmp_path / "w.pt", g_ch=99)
    assert read(run, "result.json")["last"]["fid"] == read(whole, "result.json")["last"]["fid"]
    assert read(run, "config.json")["params"] == {"G": Generator.cost(saved["genotype"]["G"], 4, 6, 16).params}


def test_is_without_the_layers_that_it_needs_is_refused_at_once(refuse: Callable, tmp_path: Path, tiny_data: dict) -> None:
    weights = REAL_DATA / "inception-2015-12-05-upto-Mixed_7a.pth"
    if not weights.exists():
        pytest.skip(f"no {weights.name} in GAN_NAS_DATA")
    words = ["--evaluator", "inception", "--inception-weights", str(weights), "--fid-dims", "768"]
    line = refuse(*words)
    assert "Mixed_7b" in line
    assert "--reward" in line
    words += ["--reward", "fid", "--dry-run", "--preset", "smoke", "--dataset", tiny_data["dataset"]]
    assert command(autogan, [*words, "--data-dir", str(tmp_path)]) == 0


@pytest.mark.parametrize("without", [{"genotype": "A"}, {"phase": "eval", "weights": Path("weights.pt")}], ids=str)
def test_flags_of_a_search_are_not_checked_where_there_is_none(without: dict) -> None:
    odd = {"beam": 9, "candidates": 1, "grow": "x", "controller_loss": "reference", "ctrl_batch": 2, "proxy_n": 1}
    autogan.check(Args(**odd, derive_epochs=0, **without), 1)
    with pytest.raises(UserError):
        autogan.check(Args(**odd, derive_epochs=0), 1)
