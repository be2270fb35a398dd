"""EAGAN: efficient two-stage evolutionary architecture search for GANs (Ying, He, Gao, Han, Chu, ECCV 2022).

Paper: arXiv 2111.15097. Authors' code: marsggbo/EAGAN at 975ff13. This script is written anew; docs/eagan.md has the details.

Stage 1, many-to-one: a supernet of generators against one discriminator of fixed architecture (Algorithm 1, lines 1-16).
    warm up: a fresh random generator path at every batch
    repeat R times: train the P generators of the population by turns; score each by IS, FID and size;
                    keep the better half by non-dominated rank; fill up by crossover and mutation
Stage 2, one-to-one: P discriminators from a supernet, each paired with its own copy of the found G* (lines 17-32).
    the same evolution, scored by the paired generators; after every round all generators restart from the best one's
    weights ("weight-resetting")
Then the pair (G*, D*) is trained from scratch and evaluated.

Published (CIFAR-10, 50,000 images): IS 8.81, FID 9.91 after 1.2 GPU days of search. This script at paper scale: not run.
The authors' search code lacks the paper's weight-resetting, shares one generator between all pairs, and selects almost at
random (docs/eagan.md, Deviations); here these follow the paper. Tags: PAPER where a choice comes from, CODE where only the
authors' code tells, DEVIATES where this script differs from both.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from common.cells import (
    OPS_DOWN,
    OPS_NORMAL,
    OPS_UP,
    Conv,
    ConvAvgPool,
    Down,
    Edge,
    EdgeSpec,
    Genotype,
    Linear,
    Normal,
    Space,
    Up,
    add,
    conv,
    count_params,
    init_weights,
    op_macs,
    op_params,
    read_genotype,
    table,
)
from common.data import Batches, load_dataset
from common.metrics import Evaluator, Score, to_uint8
from common.run import Ranks, Run, UserError, cli, duration, measured_flops, opt, start_ranks, stream

# ---- arguments --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Args:
    preset: Annotated[
        Literal["paper", "quick", "smoke"],
        opt("Named values; explicit flags win. quick: minutes on a GPU; smoke: two CPU cores. [ours]", "Run"),
    ] = "paper"
    phase: Annotated[
        Literal["all", "search", "train", "eval"],
        opt("Which part to run; train needs --genotype, eval needs --weights. [ours]", "Run"),
    ] = "all"
    genotype: Annotated[
        str | None,
        opt("Generator to train instead of searching: a published name, a genotype.json or .npy. [paper §5.2]", "Run"),
    ] = None
    d_genotype: Annotated[
        str | None, opt("Its discriminator: name, file or 'plain'; default: the file's own, else EAGAN's. [paper §5.2]", "Run")
    ] = None
    weights: Annotated[Path | None, opt("weights.pt of a run, for --phase eval. [ours]", "Run")] = None
    resume: Annotated[Path | None, opt("Run directory to go on with, exactly where it was. [ours]", "Run")] = None
    dry_run: Annotated[bool, opt("Print plan, sizes and cost, then exit. [ours]", "Run")] = False
    seed: Annotated[int, opt("Every random stream derives from it. [ours]", "Run", min=0)] = 0
    device: Annotated[str, opt("auto, cpu, cuda or cuda:N. [ours]", "Run")] = "auto"
    runs_dir: Annotated[Path, opt("Folder of the run directories. [ours]", "Run")] = Path("runs")
    save_minutes: Annotated[float, opt("Minutes between checkpoints. [ours]", "Run", min=0)] = 5.0
    log_every: Annotated[int, opt("G updates between rows of metrics.jsonl. [ours]", "Run", min=1)] = 50
    sample_every: Annotated[int, opt("G updates between sample grids in training. [ours]", "Run", min=1)] = 2500

    dataset: Annotated[
        str, opt("shapes, cifar10, stl10, celeba, or a folder, .zip or .npz of images. [paper §5.1]", "Data")
    ] = "cifar10"
    data_dir: Annotated[Path, opt("Folder of downloads and of cached statistics. [ours]", "Data")] = Path("data")
    size: Annotated[int, opt("Pixels of a side, a multiple of 16; 0: 32, for STL-10 48. [paper §5.1]", "Data", min=0)] = 0

    stages: Annotated[
        Literal["g+d", "g", "d", "coupled"],
        opt("g: only the generator; d: only D for --genotype; coupled: both at once, Fig. 6's baseline. [paper §4]", "Search"),
    ] = "g+d"
    cycles: Annotated[int, opt("Times the two stages run; 2 is GD3: D* becomes the fixed D. [paper §5.4]", "Search", min=1)] = 1
    dbar: Annotated[
        Literal["autogan", "d_c", "plain"],
        opt("Fixed D of stage 1; plain (GD2) is the authors' code and goes with --d-lr 4e-5. [paper §5.4]", "Search"),
    ] = "autogan"
    warmup_epochs: Annotated[int, opt("Epochs of random paths before each stage's search. [paper §5.1]", "Search", min=0)] = 50
    rounds: Annotated[int, opt("Evolution rounds of a stage, R. [paper §5.1]", "Search", min=1)] = 18
    round_epochs: Annotated[int, opt("Epochs between evolutions, E. [paper §5.1]", "Search", min=1)] = 10
    epoch_batches: Annotated[int, opt("D batches that count as an epoch; 0: the data set once. [ours]", "Search", min=0)] = 0
    population: Annotated[int, opt("Genotypes trained by turns, P. [paper §5.1]", "Search", min=2)] = 32
    p_crossover: Annotated[float, opt("Probability that a child is crossed. [paper §4.3]", "Search", min=0, max=1)] = 0.3
    p_mutation: Annotated[float, opt("Probability that a child is mutated. [paper §4.3]", "Search", min=0.01, max=1)] = 0.5
    objectives: Annotated[
        Literal["is,fid,size", "is,fid", "fid,size", "fid"], opt("What the sorting compares. [paper Table 1]", "Search")
    ] = "is,fid,size"
    selection: Annotated[
        Literal["nsga2", "cars"], opt("cars: the authors' code, close to random. [nsga2: paper §4.3; cars: code]", "Search")
    ] = "nsga2"
    mu_plus_lambda: Annotated[bool, opt("Stage 1: score P parents and P children, keep P. [authors' code]", "Search")] = False
    weight_reset: Annotated[bool, opt("Stage 2: restart all G copies from the round's best. [paper §4.2]", "Search")] = True
    init_g: Annotated[str | None, opt("Begin stage 1 with mutants of this name or file. [authors' code]", "Search")] = None
    init_d: Annotated[str | None, opt("Begin stage 2 with mutants of this name or file. [authors' code]", "Search")] = None
    search_n: Annotated[int, opt("Images that score an individual. [paper §5.1]", "Search", min=2)] = 5000
    final_n: Annotated[int, opt("Images that score the candidates for G* and D*. [ours]", "Search", min=2)] = 10_000
    bn_batches: Annotated[
        int, opt("Batches of 100 that re-estimate BatchNorm before scoring a path; 0: shared. [ours]", "Search", min=0)
    ] = 16

    train_epochs: Annotated[int, opt("Epochs of D in training from scratch. [paper §5.1]", "Train", min=1)] = 600
    g_ch: Annotated[int, opt("Channels of G. [authors' code]", "Train", min=1)] = 256
    d_ch: Annotated[int, opt("Channels of D. [authors' code]", "Train", min=1)] = 128
    z_dim: Annotated[int, opt("Latent size, three equal parts. [authors' code]", "Train", min=3)] = 120
    g_batch: Annotated[int, opt("Latents of a G step, over all processes. [authors' code]", "Train", min=1)] = 80
    d_batch: Annotated[int, opt("Real images of a D step, over all processes. [authors' code]", "Train", min=1)] = 40
    g_lr: Annotated[float, opt("Adam learning rate of G. [paper §5.1]", "Train", min=0)] = 2e-4
    d_lr: Annotated[float, opt("Adam learning rate of D. [paper §5.1]", "Train", min=0)] = 2e-4
    adam_b1: Annotated[float, opt("Adam beta 1. [authors' code]", "Train", min=0, max=1)] = 0.0
    adam_b2: Annotated[float, opt("Adam beta 2. [authors' code]", "Train", min=0, max=1)] = 0.9
    n_critic: Annotated[int, opt("D steps per G step, in stage 2 and training. [authors' code]", "Train", min=1)] = 5
    ema: Annotated[float, opt("Decay of G's average per G update, in training. [authors' code]", "Train", min=0, max=1)] = 0.999
    grad_clip: Annotated[
        float, opt("Gradient norm limit of both nets in training; 0: none, STL-10: 50. [authors' code]", "Train", min=0)
    ] = 0.0
    amp: Annotated[bool, opt("bfloat16 autocast of G and D. [ours]", "Train")] = False
    compile: Annotated[bool, opt("torch.compile in training from scratch. [ours]", "Train")] = False

    evaluator: Annotated[
        Literal["inception", "compact"], opt("compact: a small classifier of the data's own labels. [ours]", "Eval")
    ] = "inception"
    inception_weights: Annotated[Path | None, opt("File of the FID network; default: download. [ours]", "Eval")] = None
    fid_dims: Annotated[Literal["64", "192", "768", "2048"], opt("Features of the FID. [pytorch-fid]", "Eval")] = "2048"
    ref_n: Annotated[int, opt("Training images behind the reference; 0: all. [authors' code]", "Eval", min=0)] = 0
    eval_n: Annotated[int, opt("Generated images of an evaluation in training. [paper §5.1]", "Eval", min=2)] = 50_000
    eval_every: Annotated[int, opt("Epochs between evaluations in training. [authors' code]", "Eval", min=1)] = 5
    eval_after: Annotated[int, opt("Epochs before the first of them. [authors' code]", "Eval", min=0)] = 300


PRESETS = {
    "paper": {},
    "quick": {
        **{"preset": "quick", "warmup_epochs": 2, "rounds": 4, "round_epochs": 1, "population": 8, "amp": True},
        **{"search_n": 1000, "final_n": 2000, "train_epochs": 25, "eval_n": 10_000, "eval_after": 0, "sample_every": 500},
    },
    "smoke": {
        **{"preset": "smoke", "dataset": "shapes", "evaluator": "compact", "population": 4, "rounds": 2},
        **{"epoch_batches": 12, "warmup_epochs": 1, "round_epochs": 1, "search_n": 200, "final_n": 300, "bn_batches": 2},
        **{"g_ch": 24, "d_ch": 16, "d_batch": 32, "g_batch": 32, "n_critic": 1, "g_lr": 1e-3, "d_lr": 1e-3, "ema": 0.98},
        **{"train_epochs": 11, "eval_n": 1000, "eval_every": 4, "eval_after": 0, "sample_every": 50, "log_every": 10},
    },
}

# ---- search space (paper §3, Fig. 2) ----------------------------------------------------------------------------------

G_SPACE = Space(
    "G",
    cells=3,
    edges=(
        EdgeSpec("0->1", OPS_UP), EdgeSpec("0->2", OPS_UP),
        EdgeSpec("1->3", OPS_NORMAL), EdgeSpec("2->3", OPS_NORMAL),
        EdgeSpec("1->4", OPS_NORMAL), EdgeSpec("2->4", OPS_NORMAL), EdgeSpec("3->4", OPS_NORMAL)
    ),
    nodes={3: (2, 3), 4: (4, 5, 6)}
)  # fmt: skip
NO_OR_DOWN = ("none", *OPS_DOWN)  # CODE: -1 leaves the size as it is; not in the paper's text
D_SPACE = Space(
    "D",
    cells=3,
    edges=(
        EdgeSpec("0->1", OPS_NORMAL[1:], 1), EdgeSpec("0->2", OPS_NORMAL), EdgeSpec("1->2", OPS_NORMAL),
        EdgeSpec("1->3", OPS_NORMAL), EdgeSpec("0->3", OPS_NORMAL),
        EdgeSpec("2->4", NO_OR_DOWN, -1), EdgeSpec("3->4", NO_OR_DOWN, -1)
    ),
    nodes={2: (1, 2), 3: (3, 4)},
    together=(5, 6)
)  # fmt: skip

PUBLISHED_G = {  # the authors' integers, one row a cell, one column an edge
    "eagan-g": [[1, 1, 1, 0, 2, 3, 1], [1, 1, 0, 1, 3, 0, 5], [0, 1, 0, 3, 0, 0, 3]],  # paper Fig. 3
    "adversarialnas-g": [[1, 1, 1, 0, 3, 3, 1], [1, 1, 0, 1, 3, 3, 3], [0, 1, 0, 3, 3, 0, 3]],
}
PUBLISHED_D = {
    "eagan-d-cifar10": [[3, 0, 3, 0, 2, 0, 0], [1, 0, 3, 0, 1, -1, -1], [3, 0, 3, 0, 1, -1, -1]],  # D_C, paper Fig. 4
    "eagan-d-stl10": [[3, 0, 3, 0, 2, 0, 0], [4, 0, 4, 0, 1, -1, -1], [3, 0, 3, 0, 1, -1, -1]],  # D_S, paper Fig. 4
    "autogan-d": [[3, 0, 3, 0, 2, 0, 0], [3, 0, 3, 0, 1, -1, -1], [3, 0, 3, 0, 1, -1, -1]],
}
DBAR = {"autogan": "autogan-d", "d_c": "eagan-d-cifar10"}


def named(name: str, key: Literal["G", "D"]) -> Genotype | None:
    """A published genotype by name, or the one in a file; None if a genotype.json has no `key`. UserError: neither."""
    space, published, other = (G_SPACE, PUBLISHED_G, PUBLISHED_D) if key == "G" else (D_SPACE, PUBLISHED_D, PUBLISHED_G)
    if name in published:
        return space.from_codes(published[name], name)
    if name in other:
        raise UserError(f"{name}: names a {'discriminator' if key == 'G' else 'generator'}; here use {', '.join(published)}")
    if Path(name).suffix not in (".json", ".npy"):
        raise UserError(f"{name}: no such genotype; use {', '.join(published)}, a genotype.json or a .npy file")
    return read_genotype(Path(name), key, space)


def sample(space: Space, rng: random.Random) -> Genotype:
    """A random genotype: uniform over the valid inputs of each node, the first down edge uniform over none and the ops."""
    # DEVIATES 1: the authors' D sampler writes its first pair to the wrong columns, so that edge 0->2 is always none.
    rows = []
    while len(rows) < space.cells:
        row = [rng.choice(e.ops) for e in space.edges]
        settle(space, row, rng)
        if not space.row_error(tuple(row)):
            rows.append(tuple(row))
    return tuple(rows)


def settle(space: Space, row: list[str], rng: random.Random) -> None:
    """Let the second down edge follow the first: none with none, else an op."""
    # DEVIATES 2: the authors let one of them be none alone; its -1 then indexes the last op.
    for column in space.together[1:]:
        if row[space.together[0]] == "none":
            row[column] = "none"
        elif row[column] == "none":
            row[column] = rng.choice([op for op in space.edges[column].ops if op != "none"])


# ---- networks (paper §3) ----------------------------------------------------------------------------------------------


def candidates(space: Space, genotype: Genotype | None, cell: int, column: int) -> list[str]:
    """The ops that an edge is built with: the genotype's own, or, in a supernet (None), every one."""
    ops = space.edges[column].ops if genotype is None else (genotype[cell][column],)
    return [op for op in ops if op != "none"]


class UpCell(nn.Module):
    """x: (B, C, H, W), skips: earlier cells' node 3 -> node 3 and node 4, both (B, C, 2H, 2W)."""

    def __init__(self, ch: int, genotype: Genotype | None, cell: int) -> None:
        super().__init__()
        make = [Up, Up, Normal, Normal, Normal, Normal, Normal]
        self.edges = nn.ModuleList(
            Edge({op: op_class(op, ch) for op in candidates(G_SPACE, genotype, cell, c)}) for c, op_class in enumerate(make)
        )
        self.skips = nn.ModuleList(Conv(ch, ch, 1) for _ in range(cell))
        self.resize = "bilinear" if cell == 1 else "nearest"

    def forward(self, x: Tensor, ops: tuple[str, ...], skips: list[Tensor]) -> tuple[Tensor, Tensor]:
        e01, e02, e13, e23, e14, e24, e34 = self.edges
        node1 = None if ops[2] == ops[4] == "none" else e01(x, ops[0])  # a node that feeds nothing is not computed
        node2 = None if ops[3] == ops[5] == "none" else e02(x, ops[1])
        node3 = add(e13(node1, ops[2]), e23(node2, ops[3]))
        for to_skip, skip in zip(self.skips, skips, strict=True):  # 1x1 first: it commutes with both resizings
            # DEVIATES 3: out of place; the authors' supernet adds in place and so changes node 1 or 2 under an identity.
            node3 = node3 + F.interpolate(to_skip(skip), size=node3.shape[-2:], mode=self.resize)
        node4 = add(e14(node1, ops[4]), e24(node2, ops[5]), e34(node3, ops[6]))
        return node3, node4


class Generator(nn.Module):
    """z: (B, z_dim) -> (B, 3, size, size) in [-1, 1]. Without a genotype it is SuperNet-G: forward then takes one."""

    def __init__(self, genotype: Genotype | None, ch: int = 256, z_dim: int = 120, size: int = 32) -> None:
        super().__init__()
        self.genotype, self.ch, self.bottom = genotype, ch, size // 8
        widths = [self.bottom, 2 * self.bottom, 4 * self.bottom]
        self.latent = nn.ModuleList(nn.Linear(z_dim // 3, ch * w * w) for w in widths)  # one part of z enters each cell
        self.cells = nn.ModuleList(UpCell(ch, genotype, i) for i in range(3))
        self.bn = nn.BatchNorm2d(ch)  # the only normalisation of G
        self.to_rgb = Conv(ch, 3, 3, padding=1)
        init_weights(self)

    def forward(self, z: Tensor, genotype: Genotype | None = None) -> Tensor:
        genotype = genotype or self.genotype
        skips, x = [], 0
        for i, (linear, cell, part) in enumerate(zip(self.latent, self.cells, z.chunk(3, dim=1), strict=True)):
            width = self.bottom * 2**i
            x = x + linear(part).view(-1, self.ch, width, width).contiguous(memory_format=torch.channels_last)
            skip, x = cell(x, genotype[i], skips)
            skips.append(skip)
        return self.to_rgb(self.bn(x).relu()).tanh()


class DownCell(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2), or the same size where the down edges are none."""

    def __init__(self, ch: int, genotype: Genotype | None, cell: int) -> None:
        super().__init__()

        def edge(column: int) -> Edge:
            # CODE: edge 0->3 has no ReLU before its convolution, so the cell can be SNGAN's residual block
            ops = candidates(D_SPACE, genotype, cell, column)
            make = (lambda op: Down(op, ch)) if column > 4 else (lambda op: Normal(op, ch, sn=True, relu=column != 4))
            return Edge({op: make(op) for op in ops})

        self.edges = nn.ModuleList(edge(column) for column in range(7))

    def forward(self, x: Tensor, ops: tuple[str, ...]) -> Tensor:
        e01, e02, e12, e13, e03, e24, e34 = self.edges
        node1 = None if ops[2] == ops[3] == "none" else e01(x, ops[0])
        node2 = add(e02(x, ops[1]), e12(node1, ops[2]))
        node3 = add(e13(node1, ops[3]), e03(x, ops[4]))
        return node2 + node3 if ops[5] == "none" else e24(node2, ops[5]) + e34(node3, ops[6])


class Discriminator(nn.Module):
    """x: (B, 3, H, W) -> (B, 1). Without a genotype it is SuperNet-D: forward then takes one."""

    def __init__(self, genotype: Genotype | None, ch: int = 128) -> None:
        super().__init__()
        self.genotype = genotype
        self.stem1 = spectral_norm(Conv(3, ch, 3, padding=1))  # CODE: the stem is fixed
        self.stem2 = spectral_norm(ConvAvgPool(ch, ch))
        self.stem_skip = conv(3, ch, sn=True)
        self.cells = nn.ModuleList(DownCell(ch, genotype, i) for i in range(3))
        self.out = spectral_norm(Linear(ch, 1, bias=False))

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        x = self.stem2(self.stem1(x).relu()) + self.stem_skip(F.avg_pool2d(x, 2))
        for cell, ops in zip(self.cells, genotype or self.genotype, strict=True):
            x = cell(x, ops)
        return self.out(x.relu().sum(dim=(2, 3)))


class PlainDiscriminator(nn.Module):
    """The fixed D of the authors' search code, ablation GD2: x: (B, 3, H, W) -> (B, 1)."""

    def __init__(self, ch: int = 128) -> None:
        super().__init__()
        half, layers = ch // 2, []
        for c_in, c_out, act in ((3, half, True), (half, ch, False), (ch, ch, True), (ch, ch, False), (ch, ch, True)):
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1)] + ([nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)] if act else [])
        self.layers = nn.Sequential(*layers)
        self.out = spectral_norm(Linear(ch, 1, bias=False))
        init_weights(self)

    def forward(self, x: Tensor, _genotype: None = None) -> Tensor:
        return self.out(self.layers(x).sum(dim=(2, 3)))


def g_params(genotype: Genotype | None, ch: int = 256, z_dim: int = 120, size: int = 32) -> int:
    """Parameters of the stand-alone generator, or of SuperNet-G: linears, skip convolutions, BatchNorm, RGB, ops."""
    fixed = (z_dim // 3 + 1) * ch * 21 * (size // 8) ** 2 + 3 * (ch * ch + ch) + 2 * ch + 27 * ch + 3
    return fixed + edge_params(G_SPACE, genotype, ch)


def d_params(genotype: Genotype | Literal["plain"] | None, ch: int = 128) -> int:
    """Parameters of the stand-alone discriminator, or of SuperNet-D: stem, linear, ops."""
    if genotype == "plain":
        return count_params(PlainDiscriminator(ch))
    return 9 * ch * ch + 33 * ch + ch + edge_params(D_SPACE, genotype, ch)


def edge_params(space: Space, genotype: Genotype | None, ch: int) -> int:
    places = [(cell, column) for cell in range(space.cells) for column in range(len(space.edges))]
    return sum(op_params(op, ch) for place in places for op in candidates(space, genotype, *place))


def g_macs(genotype: Genotype, ch: int = 256, z_dim: int = 120, size: int = 32) -> int:
    """Multiply-adds of one generated image, convolutions and linears, bias adds included."""
    total = (z_dim // 3 + 1) * ch * 21 * (size // 8) ** 2 + (27 * ch + 3) * size**2
    for i, row in enumerate(genotype):
        out = size // 4 * 2**i
        total += sum(op_macs(op, ch, out) for op in row) + i * op_macs("conv_1x1", ch, out)
    return total


def d_macs(genotype: Genotype | Literal["plain"], ch: int = 128, size: int = 32) -> int:
    """Multiply-adds of D for one image, convolutions and linears, bias adds included."""
    if genotype == "plain":
        sides = [(3, ch // 2, 2), (ch // 2, ch, 4), (ch, ch, 8), (ch, ch, 16), (ch, ch, 32)]
        return ch + sum((16 * c_in + 1) * c_out * (size // shrink) ** 2 for c_in, c_out, shrink in sides)
    total, side = (28 * ch + 9 * ch * ch + ch) * size**2 + 4 * ch * (size // 2) ** 2 + ch, size // 2
    for row in genotype:
        total += sum(op_macs(op, ch, side) for op in row[:5])
        if row[5] != "none":
            side //= 2
            total += sum(op_macs(op, ch, side) for op in row[5:])
    return total


# ---- evolution (paper §4.3) -------------------------------------------------------------------------------------------


def with_row(genotype: Genotype, cell: int, row: list[str]) -> Genotype:
    return (*genotype[:cell], tuple(row), *genotype[cell + 1 :])


def mutate(space: Space, genotype: Genotype, rng: random.Random) -> Genotype:
    """Give one edge, uniform over cells and edges, another op that leaves the cell valid. [paper §4.3]"""
    while True:
        cell, column = rng.randrange(space.cells), rng.randrange(len(space.edges))
        if column not in space.together[1:] or genotype[cell][column] != "none":  # else it is decided by the first
            break
    options = []
    for op in space.edges[column].ops:
        row = list(genotype[cell])
        row[column] = op
        if column in space.together[:1]:
            settle(space, row, rng)
        if op != genotype[cell][column] and not space.row_error(tuple(row)):
            options.append(row)
    return with_row(genotype, cell, rng.choice(options))


def crossover(space: Space, a: Genotype, b: Genotype, rng: random.Random) -> Genotype:
    """Parent a with one edge of parent b, uniform over those that differ and leave the cell valid; a if none does."""
    children = []
    for cell in range(space.cells):
        for column in range(len(space.edges)):
            switches = column in space.together and "none" in (a[cell][column], b[cell][column])
            row = list(a[cell])
            for c in space.together if switches else (column,):
                row[c] = b[cell][c]
            if tuple(row) != a[cell] and not space.row_error(tuple(row)):
                children.append(with_row(a, cell, row))
    return rng.choice(children) if children else a


def individual(genotype: Genotype, name: str, parents: list[str], how: str) -> dict:
    """A member of the population, in plain values. is, fid: None until scored; params: of the stand-alone network."""
    return {"id": name, "parents": parents, "how": how, "genotype": genotype, "is": None, "fid": None, "scored": False}


def first_population(space: Space, n: int, base: Genotype | None, name: str, rng: random.Random) -> list[dict]:
    """n distinct random genotypes or, with a base, the base and distinct mutants 1 to 3 mutations away from it."""
    found: dict[Genotype, None] = {} if base is None else {base: None}
    while len(found) < n:
        genotype = sample(space, rng) if base is None else base
        for _ in range(0 if base is None else rng.randint(1, 3)):
            genotype = mutate(space, genotype, rng)
        found[genotype] = None
    how = "random" if base is None else "mutant of the base"
    return [individual(g, f"{name}-{i}", [], how) for i, g in enumerate(found)]


def vary(
    space: Space, parents: list[dict], n: int, seen: dict[Genotype, None], name: str, rng: random.Random,
    p_crossover: float, p_mutation: float,
) -> list[dict]:  # fmt: skip
    """n new children of the parents. `seen`: genotypes that must not come again; the children are added to it."""
    # PAPER §4.3: crossover 0.3, mutation 0.5; read as two independent draws. CODE: one fair coin between the two.
    children = []
    for i in range(n):
        for _ in range(100):
            a = rng.choice(parents)
            child, names, how = a["genotype"], [a["id"]], []
            if len(parents) > 1 and rng.random() < p_crossover:
                b = rng.choice([p for p in parents if p is not a])
                child, names, how = crossover(space, child, b["genotype"], rng), [a["id"], b["id"]], ["crossover"]
            if rng.random() < p_mutation:
                child, how = mutate(space, child, rng), [*how, "mutation"]
            if child not in seen:
                break
        else:  # DEVIATES 4: the authors' loop need not end; a population of equals is refreshed at random
            child, names, how = sample(space, rng), [], ["random"]
        seen[child] = None
        children.append(individual(child, f"{name}-{i}", names, "+".join(how)))
    return children


def objectives(x: dict, names: str) -> tuple[float, ...]:
    """The minimised objectives of an individual: 1/IS, FID, size. An unusable score makes all of them infinite."""
    # DEVIATES 5: NaN is worst. In the authors' sort nothing dominates a NaN, which puts a collapsed G into the first front.
    value = {"is": 1 / ((x["is"] or 0.0) + 1e-10), "fid": x["fid"], "size": x["params"] / 1e6}
    values = tuple(value[k] for k in names.split(","))
    return values if all(isfinite(v) for v in values) else (inf,) * len(values)


def non_dominated_sort(points: list[tuple[float, ...]]) -> list[list[int]]:
    """Fronts of indices, best first. x dominates y: no objective larger, one smaller. [paper Eq. 11, NSGA-II]"""

    def dominates(x: tuple[float, ...], y: tuple[float, ...]) -> bool:
        return all(a <= b for a, b in zip(x, y, strict=True)) and any(a < b for a, b in zip(x, y, strict=True))

    dominated_by = [sum(dominates(q, p) for q in points) for p in points]
    left, fronts = set(range(len(points))), []
    while left:
        front = sorted(i for i in left if dominated_by[i] == 0)
        fronts.append(front)
        left -= set(front)
        for i in front:
            for j in left:
                dominated_by[j] -= dominates(points[i], points[j])
    return fronts


def crowding(points: list[tuple[float, ...]], front: list[int]) -> dict[int, float]:
    """Crowding distance of each index of a front: per objective the gap between its neighbours, ends infinite. [NSGA-II]"""
    distance = dict.fromkeys(front, 0.0)
    for k in range(len(points[0])):
        order = sorted(front, key=lambda i: points[i][k])
        low, high = points[order[0]][k], points[order[-1]][k]
        distance[order[0]] = distance[order[-1]] = inf
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            if high > low:
                distance[i] += (points[after][k] - points[before][k]) / (high - low)
    return distance


def select_nsga2(points: list[tuple[float, ...]], fids: list[float], keep: int) -> list[int]:
    """Indices of the `keep` best: whole fronts in order, the last one cut by crowding distance, ties by FID."""
    # DEVIATES 6: the paper does not say how the last front is cut, the authors cut it at random
    chosen: list[int] = []
    for front in non_dominated_sort(points):
        distance = crowding(points, front)
        chosen += sorted(front, key=lambda i: (-distance[i], fids[i]))[: keep - len(chosen)]
    return chosen


def select_cars(scores: list[tuple[float, float, float]], keep: int, rng: random.Random) -> list[int]:
    """The authors' rule, from CARS: fronts of (1/IS, o) and (1/IS, 1/o) for o = FID and size, merged stage by stage.

    scores: (1/IS, FID, size) of each individual. Ascending indices. Since it also maximises FID it selects nearly at random.
    """
    pairs = [[(s[0], s[o]) for s in scores] for o in (1, 2)]
    pairs += [[(s[0], 1 / (s[o] + 1e-10) if isfinite(s[o]) else inf) for s in scores] for o in (1, 2)]
    sorts = [non_dominated_sort(points) for points in pairs]
    chosen: set[int] = set()
    for stage in range(max(map(len, sorts))):
        union = sorted({i for fronts in sorts if stage < len(fronts) for i in fronts[stage]} - chosen)
        chosen |= set(union if len(chosen) + len(union) <= keep else rng.sample(union, keep - len(chosen)))
    return sorted(chosen)


def select(population: list[dict], keep: int, rule: str, names: str, rng: random.Random) -> list[dict]:
    """The `keep` individuals that survive a round."""
    points = [objectives(x, names) for x in population]
    if rule == "cars":
        return [population[i] for i in select_cars([objectives(x, "is,fid,size") for x in population], keep, rng)]
    return [population[i] for i in select_nsga2(points, [fid_or_inf(x) for x in population], keep)]


def first_front(population: list[dict], names: str) -> list[dict]:
    """The individuals that no other dominates, lowest FID first."""
    front = non_dominated_sort([objectives(x, names) for x in population])[0]
    return sorted((population[i] for i in front), key=fid_or_inf)


def fid_or_inf(x: dict) -> float:
    return x["fid"] if isfinite(x["fid"]) else inf


# ---- one step of a GAN ------------------------------------------------------------------------------------------------


def latent(args: Args, ranks: Ranks, n: int, *name: object) -> Tensor:
    """n latents z ~ N(0, I), (n, z_dim): a pure function of the seed and the name, the same on every process."""
    return torch.randn(n, args.z_dim, generator=stream(args.seed, *name, device=ranks.device), device=ranks.device)


def d_step(
    args: Args, ranks: Ranks, G: nn.Module, D: nn.Module, d_opt: torch.optim.Optimizer, real: Tensor, batch: int,
    g_path: Genotype | None = None, d_path: Genotype | None = None, clip: float = 0.0
) -> Tensor:  # fmt: skip
    """One step of D on a real batch and as many fakes: E[relu(1 - D(x))] + E[relu(1 + D(G(z)))]. [paper §5.1: hinge]"""
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.amp):
        with torch.no_grad():
            fake = G(latent(args, ranks, len(real) * ranks.world, "d", batch)[ranks.rank :: ranks.world], g_path)
        if isinstance(D, PlainDiscriminator):  # its BatchNorm must not mix real and fake
            d_real, d_fake = D(real, d_path), D(fake, d_path)
        else:  # DEVIATES 7: one pass over both, faster; spectral norm then iterates once a step, in the authors' code twice
            d_real, d_fake = D(torch.cat([real, fake.to(real.dtype)]), d_path).chunk(2)
    loss = (1 - d_real.float()).relu().mean() + (1 + d_fake.float()).relu().mean()
    update(ranks, D, d_opt, loss, clip)
    return loss.detach()


def g_step(
    args: Args, ranks: Ranks, G: nn.Module, D: nn.Module, g_opt: torch.optim.Optimizer, step: int,
    g_path: Genotype | None = None, d_path: Genotype | None = None, clip: float = 0.0
) -> Tensor:  # fmt: skip
    """One step of G: -E[D(G(z))]. [paper §5.1: hinge]"""
    D.requires_grad_(False)  # spares the gradients of D's weights
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.amp):
        z = latent(args, ranks, args.g_batch, "g", step)[ranks.rank :: ranks.world]
        loss = -D(G(z, g_path), d_path).float().mean()
    update(ranks, G, g_opt, loss, clip)
    D.requires_grad_(True)
    return loss.detach()


def update(ranks: Ranks, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> None:
    # DEVIATES 8: gradients of ops that were not sampled are None, not 0, so that Adam leaves their moments alone
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    ranks.average_gradients(net.parameters())
    if clip:
        nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()


def adam(net: nn.Module, lr: float, args: Args) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr, betas=(args.adam_b1, args.adam_b2), fused=True)


def build(args: Args, ranks: Ranks, net: type | None, genotype: object, *name: object) -> nn.Module:
    """A network on the device, its initial weights drawn from the stream (seed, name). net None: a discriminator."""
    torch.manual_seed(stream(args.seed, "init", *name).initial_seed())
    if net is Generator:
        made = Generator(genotype, args.g_ch, args.z_dim, args.size)
    else:
        made = PlainDiscriminator(args.d_ch) if genotype == "plain" else Discriminator(genotype, args.d_ch)
    return made.to(ranks.device, memory_format=torch.channels_last)


def clone(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers that shares no storage with the network."""
    return {k: v.clone() for k, v in net.state_dict().items()}


# ---- scoring ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def score(
    args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, G: Generator, n: int,
    genotype: Genotype | None = None, split: bool = False,
) -> Score:  # fmt: skip
    """IS and FID of n images of G in eval mode; always of the same latents. split: share the images over the processes."""
    G.eval()

    def images(k: int) -> Tensor:
        run.check()
        z = latent(args, ranks, evaluator.batch, "eval", k)[: n - k * evaluator.batch]
        return to_uint8(G(z, genotype))

    try:
        return evaluator.score(images, n, *((ranks.rank, ranks.world) if split else (0, 1)))
    finally:
        G.train()


@contextmanager
def own_batch_norm(args: Args, ranks: Ranks, G: Generator, genotype: Genotype) -> Iterator[None]:
    """For the time of a `with`, BatchNorm's running statistics are those of this path of SuperNet-G alone."""
    # DEVIATES 9: the shared statistics remember the last few paths only; on another path they shift the images visibly
    before, momentum = clone(G.bn), G.bn.momentum
    if args.bn_batches:
        G.bn.reset_running_stats()
        G.bn.momentum = None  # a plain mean over the batches
        with torch.no_grad():
            for k in range(args.bn_batches):
                G(latent(args, ranks, 100, "bn", k), genotype)
    try:
        yield
    finally:
        G.bn.load_state_dict(before)
        G.bn.momentum = momentum


def score_population(population: list[dict], score_one: Callable[[dict], Score], ranks: Ranks) -> None:
    """Fill in is and fid of those not scored yet; the individuals are shared out over the processes."""
    todo = [x for x in population if not x["scored"]]
    for x in todo[ranks.rank :: ranks.world]:
        s = score_one(x)
        x.update({"is": s.is_mean, "fid": s.fid, "scored": True})
    found = {x["id"]: x for part in ranks.gather([x for x in todo if x["scored"]]) for x in part}
    for x in todo:
        x.update(found[x["id"]])


# ---- search -----------------------------------------------------------------------------------------------------------


@dataclass
class State:
    """What a resumed run needs beside the networks: plain values only. All counters but `stage` are of the whole run."""

    stage: int = 0  # index into stages_of(args)
    step: int = 0  # G updates
    batch: int = 0  # D batches: they number the real batches and the latents
    began: int = 0  # step at which this stage began
    round: int = 0  # 0 is the warm-up
    population: list[dict] = field(default_factory=list)
    seen: dict[Genotype, None] = field(default_factory=dict)  # no genotype comes twice in a search
    hall: list[dict] = field(default_factory=list)  # the 8 best by FID of all first fronts
    finalists: list[dict] = field(default_factory=list)
    G: Genotype | None = None  # G*, once found or given
    D: Genotype | str | None = None  # D*, or the fixed discriminator
    g_weights: dict[str, Tensor] | None = None  # of G* in the supernet: stage 2 begins with them
    evaluated: int = -1  # last step whose evaluation is done
    best: dict | None = None  # of the evaluations in training

    def next_stage(self) -> None:
        self.stage, self.round, self.began = self.stage + 1, 0, self.step
        self.population, self.seen, self.hall, self.finalists = [], {}, [], []


def stages_of(args: Args) -> list[str]:
    """The stages of the run, in order."""
    if args.phase == "train" or (args.genotype and args.stages != "d"):
        return ["train"]
    search = {"g+d": ["search-g", "search-d"], "g": ["search-g"], "d": ["search-d"], "coupled": ["search-g"]}[args.stages]
    return search * args.cycles + (["train"] if args.phase == "all" else [])


def rng_of(args: Args, *name: object) -> random.Random:
    """Architectures are drawn from a stream of their own for each (seed, name)."""
    return random.Random(repr((args.seed, *name)))


def restore(saved: dict, **parts: object) -> None:
    """Load networks and optimisers from a checkpoint's "nets", if it has them."""
    for name, part in parts.items():
        if saved.get("nets"):
            part.load_state_dict(saved["nets"][name])


def checkpoint(state: State, **parts: object) -> Callable[[], dict]:
    return lambda: {"state": vars(state), "nets": {k: v.state_dict() for k, v in parts.items()}}


def round_end(args: Args, batches: Batches, r: int) -> int:
    """D batches of a stage up to the end of round r; round 0 is the warm-up."""
    return (args.warmup_epochs + r * args.round_epochs) * (args.epoch_batches or len(batches))


def stage_name(stage: str, r: int, args: Args, what: str = "") -> str:
    return f"{stage} {'warm-up' if r == 0 else f'round {r}/{args.rounds}'} {what}".rstrip()


def children(
    args: Args, space: Space, parents: list[dict], n: int, state: State, name: str, rng: random.Random, coupled: bool = False
) -> list[dict]:
    """n children of the parents; coupled: each with a child of the parents' discriminators."""
    born = vary(space, parents, n, state.seen, name, rng, args.p_crossover, args.p_mutation)
    if coupled:
        of_d = [{**x, "genotype": x["d_genotype"]} for x in parents]
        seen = {x["genotype"]: None for x in of_d}
        for x, d in zip(born, vary(D_SPACE, of_d, n, seen, name, rng, args.p_crossover, args.p_mutation), strict=True):
            x["d_genotype"] = d["genotype"]
    return born


def distinct(individuals: list[dict]) -> list[dict]:
    """Each genotype once, the last one that comes."""
    return list({x["genotype"]: x for x in individuals}.values())


def to_score(individuals: list[dict]) -> list[dict]:
    """The same individuals, to be scored anew: their weights go on changing."""
    return [{**x, "is": None, "fid": None, "scored": False} for x in individuals]


def report_round(
    args: Args, run: Run, evaluator: Evaluator, state: State, stage: str, r: int, kept: list[dict], bn: str
) -> list[dict]:
    """Write a scored round to search.jsonl, genotype.json, metrics.jsonl and the log. Returns its first front, best first."""
    front = first_front(state.population, args.objectives)
    best = front[0]  # DEVIATES 10: lowest FID in the first front; CODE takes the lowest index, the paper does not say
    unscored = {"scored", "genotype", "d_genotype"}
    rows = [{**{k: v for k, v in x.items() if k not in unscored}, "genotype": x["genotype"]} for x in state.population]
    run.search_row({
        "step": state.step, "stage": stage, "round": r, "population": rows, "front": [x["id"] for x in front],
        "kept": [x["id"] for x in kept], "best": best["id"], "eval/n": args.search_n, "eval/net": evaluator.net,
    })  # fmt: skip
    s = Score(best["fid"], best["is"], None, args.search_n, evaluator.net, evaluator.ref)
    run.evaluated(state.step, s.row(), **{"eval/ema": False, "eval/bn": bn, "eval/what": f"best of round {r}"})
    g, d = (best["genotype"], best.get("d_genotype", state.D)) if stage == "1" else (state.G, best["genotype"])
    run.genotype(state.step, genotype_json(args, g, d, best))
    if stage == "1":
        state.hall = sorted(distinct([*state.hall, *front]), key=fid_or_inf)[:8]
    counts = f"front {len(front)} of {len(state.population)}"
    run.print(f"stage {stage} round {r}/{args.rounds}: {counts}, best {best['id']} with {told(evaluator, best)}")
    return front


def told(evaluator: Evaluator, x: dict) -> str:
    """An individual's score and size, for people."""
    is_text = "" if x["is"] is None else f", IS {x['is']:.2f}"
    return f"{evaluator.label} {x['fid']:.2f}{is_text}, {x['params'] / 1e6:.2f}M"


def report_final(args: Args, run: Run, evaluator: Evaluator, state: State, key: str, space: Space) -> None:
    """Print the finalists: the authors evidently retrained several. The first one is taken."""
    best = state.finalists[0]
    run.genotype(state.step, genotype_json(args, state.G, state.D, best))
    run.print(f"{key}*, of {len(state.finalists)} candidates on {args.final_n} images:\n{table(best['genotype'], space)}")
    for x in state.finalists[:8]:
        run.print(f"  {x['id']:>8}  {told(evaluator, x)}  {space.to_codes(x['genotype'])}")


def genotype_json(args: Args, g: Genotype, d: Genotype | str, scores: dict | None = None) -> dict:
    """What genotype.json holds; --genotype reads it back."""
    return {
        **{"method": "eagan", "G": g, "D": None if d == "plain" else d, "fixed_d": d if d == "plain" else None},
        "params": {"G": g_params(g, args.g_ch, args.z_dim, args.size), "D": d_params(d, args.d_ch)},
        "macs": {"G": g_macs(g, args.g_ch, args.z_dim, args.size), "D": d_macs(d, args.d_ch, args.size)},
        "scores": {k: (scores or {}).get(k) for k in ("id", "is", "fid")},
    }


@torch.no_grad()
def grid(args: Args, ranks: Ranks, G: nn.Module, genotype: Genotype | None = None) -> Tensor:
    """64 images of always the same latents."""
    G.eval()
    images = G(latent(args, ranks, 64, "grid"), genotype)
    G.train()
    return images


def search_g(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, batches: Batches, state: State, saved: dict) -> None:
    """Stage 1: many generators against one discriminator (Alg. 1, lines 1-16). Coupled: each G_i has a D_i (Fig. 6)."""
    coupled, P = args.stages == "coupled", args.population
    G = build(args, ranks, Generator, None, "G", state.stage)
    D = build(args, ranks, None, None if coupled else state.D, "D", state.stage)
    g_opt, d_opt = adam(G, args.g_lr, args), adam(D, args.d_lr, args)
    restore(saved, G=G, D=D, g_opt=g_opt, d_opt=d_opt)
    run.keep = checkpoint(state, G=G, D=D, g_opt=g_opt, d_opt=d_opt)

    def score_one(x: dict, n: int = args.search_n) -> Score:
        with own_batch_norm(args, ranks, G, x["genotype"]):
            return score(args, ranks, run, evaluator, G, n, x["genotype"])

    for r in range(state.round, args.rounds + 1):
        # -- lines 5-12: every batch trains one path; D meets all of them
        end = state.began + round_end(args, batches, r)
        run.begin("search", stage_name("stage 1", r, args), state.step, images_per_step=args.d_batch)
        while state.step < end:
            run.tick(state.step, f"{'population' if r == 0 else 'scoring'} in {end - state.step} steps")
            rng = rng_of(args, "path", state.batch)
            x = None if r == 0 else rng.choice(state.population)
            path = sample(G_SPACE, rng) if r == 0 else x["genotype"]  # PAPER §5.1: warm-up activates all ops equally
            d_path = None if not coupled else sample(D_SPACE, rng) if r == 0 else x["d_genotype"]
            d_loss = d_step(args, ranks, G, D, d_opt, batches(state.batch), state.batch, path, d_path)
            g_loss = g_step(args, ranks, G, D, g_opt, state.step, path, d_path)
            state.batch, state.step = state.batch + 1, state.step + 1
            if state.step % args.log_every == 0:
                run.log(state.step, **{"loss/d": d_loss, "loss/g": g_loss})
        ranks.average_buffers(G)

        name, born, chosen = f"{state.stage}.{r}", rng_of(args, "born", state.stage, r), rng_of(args, "chosen", state.stage, r)
        if r == 0:  # lines 2-3. DEVIATES 11: drawn after the warm-up, which may meet these genotypes too
            base = named(args.init_g, "G") if args.init_g else None
            state.population = first_population(G_SPACE, P, base, name, born)
            state.seen = {x["genotype"]: None for x in state.population}
            if coupled:
                d_base = named(args.init_d, "D") if args.init_d else None
                for x, d in zip(state.population, first_population(D_SPACE, P, d_base, name, born), strict=True):
                    x["d_genotype"] = d["genotype"]
        else:  # lines 13-14
            if args.mu_plus_lambda and len(state.population) == P:
                state.population += children(args, G_SPACE, state.population, P, state, name, born, coupled)
            run.begin("search", stage_name("stage 1", r, args, "scoring"), state.step, "selection")
            for x in state.population:
                x["params"] = g_params(x["genotype"], args.g_ch, args.z_dim, args.size)
            score_population(state.population, score_one, ranks)
            kept = select(state.population, P if args.mu_plus_lambda else P // 2, args.selection, args.objectives, chosen)
            front = report_round(args, run, evaluator, state, "1", r, kept, "recalibrated" if args.bn_batches else "shared")
            with own_batch_norm(args, ranks, G, front[0]["genotype"]):
                run.samples(state.step, grid(args, ranks, G, front[0]["genotype"]))
            state.population = to_score(kept)
            if not args.mu_plus_lambda:
                state.population += children(args, G_SPACE, kept, P - len(kept), state, name, born, coupled)
            if r == args.rounds:
                state.finalists = to_score(distinct([*front, *state.hall]))
        state.round = r + 1

    # -- line 16. DEVIATES 12: paper and code leave "the best" open; here the last front and the best ever, scored once more
    run.begin("derive", "stage 1, final choice", state.step, "the next stage")
    score_population(state.finalists, lambda x: score_one(x, args.final_n), ranks)
    state.finalists.sort(key=lambda x: (fid_or_inf(x), -(x["is"] or 0)))
    state.G = state.finalists[0]["genotype"]
    if coupled:
        state.D = state.finalists[0]["d_genotype"]
    path = build(args, ranks, Generator, state.G, "path")
    with own_batch_norm(args, ranks, G, state.G):
        state.g_weights = {k: v.clone() for k, v in G.state_dict().items() if k in path.state_dict()}
    report_final(args, run, evaluator, state, "G", G_SPACE)


def search_d(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, batches: Batches, state: State, saved: dict) -> None:
    """Stage 2: each discriminator has a copy of G* of its own (Alg. 1, lines 17-32)."""
    P = args.population
    G = build(args, ranks, Generator, state.G, "G", state.stage)
    if state.g_weights is not None:  # PAPER: G* keeps its weights of stage 1; CODE begins with a random generator
        G.load_state_dict(state.g_weights)
    D = build(args, ranks, None, None, "D", state.stage)
    # DEVIATES 13: Adam's second moments of G are shared by all copies; with beta1 = 0 they only scale
    g_opt, d_opt = adam(G, args.g_lr, args), adam(D, args.d_lr, args)
    restore(saved, G=G, D=D, g_opt=g_opt, d_opt=d_opt)
    copies: dict[str, dict[str, Tensor]] = saved.get("copies") or {}  # individual -> weights of its own generator
    basic = checkpoint(state, G=G, D=D, g_opt=g_opt, d_opt=d_opt)
    run.keep = lambda: {**basic(), "copies": copies}

    def score_one(x: dict, n: int = args.search_n) -> Score:
        G.load_state_dict(copies[x["id"]])
        return score(args, ranks, run, evaluator, G, n)

    for r in range(state.round, args.rounds + 1):
        # -- lines 22-26: a pair is drawn for n_critic steps of D and one of G
        end = state.began + round_end(args, batches, r) // args.n_critic
        run.begin("search", stage_name("stage 2", r, args), state.step, images_per_step=args.d_batch * args.n_critic)
        while state.step < end:
            run.tick(state.step, f"{'population' if r == 0 else 'scoring'} in {end - state.step} steps")
            rng = rng_of(args, "path", state.batch)
            x = None if r == 0 else rng.choice(state.population)
            path = sample(D_SPACE, rng) if r == 0 else x["genotype"]
            if x:
                G.load_state_dict(copies[x["id"]])
            for _ in range(args.n_critic):  # CODE: 5 as in training; Alg. 1, line 24 writes one
                d_loss = d_step(args, ranks, G, D, d_opt, batches(state.batch), state.batch, None, path)
                state.batch += 1
            g_loss = g_step(args, ranks, G, D, g_opt, state.step, None, path)
            if x:
                copies[x["id"]] = clone(G)
            state.step += 1
            if state.step % args.log_every == 0:
                run.log(state.step, **{"loss/d": d_loss, "loss/g": g_loss})

        name, born, chosen = f"{state.stage}.{r}", rng_of(args, "born", state.stage, r), rng_of(args, "chosen", state.stage, r)
        if r == 0:  # line 18
            base = named(args.init_d, "D") if args.init_d else None
            state.population = first_population(D_SPACE, P, base, name, born)
            state.seen = {x["genotype"]: None for x in state.population}
            ranks.average_buffers(G)
            copies.update({x["id"]: clone(G) for x in state.population})
        else:
            run.begin("search", stage_name("stage 2", r, args, "scoring"), state.step, "selection")
            for x in state.population:
                x["params"] = d_params(x["genotype"], args.d_ch)
            score_population(state.population, score_one, ranks)
            kept = select(state.population, P // 2, args.selection, args.objectives, chosen)  # line 27
            front = report_round(args, run, evaluator, state, "2", r, kept, "own")
            G.load_state_dict(copies[front[0]["id"]])
            run.samples(state.step, grid(args, ranks, G))
            if r == args.rounds:
                state.finalists = to_score(front)  # each can only be scored by the generator trained against it
            else:
                state.population = to_score(kept) + children(args, D_SPACE, kept, P - len(kept), state, name, born)  # line 28
                source = {}
                for x in state.population:  # lines 29-30: weight-resetting; without it: its own weights, or a parent's
                    own = [] if args.weight_reset else [i for i in (x["id"], *x["parents"]) if i in copies]
                    source[x["id"]] = copies[[*own, front[0]["id"]][0]]
                copies = {i: {k: v.clone() for k, v in weights.items()} for i, weights in source.items()}
        state.round = r + 1

    # -- line 32. DEVIATES 14: "the best" is open in the paper; here the last front, scored with more images
    run.begin("derive", "stage 2, final choice", state.step, "the next stage")
    score_population(state.finalists, lambda x: score_one(x, args.final_n), ranks)
    state.finalists.sort(key=lambda x: (fid_or_inf(x), -(x["is"] or 0)))
    state.D, state.g_weights = state.finalists[0]["genotype"], None
    report_final(args, run, evaluator, state, "D", D_SPACE)


# ---- training from scratch --------------------------------------------------------------------------------------------


@torch.no_grad()
def ema_update(average: nn.Module, net: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * net for parameters; buffers (BatchNorm statistics) are net's own."""
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for a, b in zip(average.buffers(), net.buffers(), strict=True):
        a.copy_(b)


def train_gan(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, batches: Batches, state: State, saved: dict) -> None:
    """Train the pair (G*, D*) from scratch; evaluate the average of G's weights. [authors' code; page: paper §5.1]"""
    G = build(args, ranks, Generator, state.G, "G", "train")
    D = build(args, ranks, None, state.D, "D", "train")
    G_ema = deepcopy(G).requires_grad_(False)
    g_opt, d_opt = adam(G, args.g_lr, args), adam(D, args.d_lr, args)
    restore(saved, G=G, D=D, G_ema=G_ema, g_opt=g_opt, d_opt=d_opt)
    run.keep = checkpoint(state, G=G, D=D, G_ema=G_ema, g_opt=g_opt, d_opt=d_opt)
    if args.compile:
        G.compile()
        D.compile()

    epoch = args.epoch_batches or len(batches)
    total = args.train_epochs * epoch // args.n_critic
    every, after = max(1, args.eval_every * epoch // args.n_critic), args.eval_after * epoch // args.n_critic
    run.begin("train", "training", state.step, images_per_step=args.d_batch * args.n_critic)
    while True:
        done = state.step - state.began
        last = done == total
        if state.evaluated < state.step and (done == 0 or last or (done % every == 0 and done > after)):
            evaluate(args, ranks, run, evaluator, G, G_ema, state, "untrained" if done == 0 else "last" if last else "training")
        if last:
            break
        run.tick(state.step, f"evaluation in {min(every - done % every, total - done)} steps")
        for _ in range(args.n_critic):
            d_loss = d_step(args, ranks, G, D, d_opt, batches(state.batch), state.batch, clip=args.grad_clip)
            state.batch += 1
        # DEVIATES 15: after the n_critic steps of D; the authors' first G step follows the first batch
        g_loss = g_step(args, ranks, G, D, g_opt, state.step, clip=args.grad_clip)
        ema_update(G_ema, G, args.ema)
        state.step += 1
        if state.step % args.log_every == 0:
            run.log(state.step, **{"loss/d": d_loss, "loss/g": g_loss})
        if (state.step - state.began) % args.sample_every == 0:
            run.samples(state.step, grid(args, ranks, G_ema))
    run.save()  # with more --train-epochs the run can go on


def evaluate(
    args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, G: nn.Module, G_ema: nn.Module, state: State, what: str
) -> None:  # fmt: skip
    """IS and FID of G_ema; keeps the weights of the last and of the best one. The untrained one comes beside pure noise."""
    phase = run.status["phase"]
    run.begin("eval", f"evaluation ({what})", state.step, "the end" if what == "last" else "training")
    ranks.average_buffers(G)
    ema_update(G_ema, G, 1.0)
    row = {"eval/ema": True, "eval/bn": "running", "eval/what": what}
    if what == "untrained":
        noise = evaluator.score(lambda k: noise_images(args, ranks, evaluator, k), args.eval_n, ranks.rank, ranks.world)
        row |= {"noise/fid": noise.fid, "noise/is": noise.is_mean}
    s = score(args, ranks, run, evaluator, G_ema, args.eval_n, split=True)
    run.evaluated(state.step, s.row(), **row)
    run.samples(state.step, grid(args, ranks, G_ema))
    run.print(f"step {state.step:,} ({what}): {s}")
    weights = {"G": G_ema.state_dict(), "genotype": {"G": state.G, "D": state.D}, "step": state.step, "score": s.row()}
    weights |= {"method": "eagan", "g_ch": args.g_ch, "z_dim": args.z_dim, "size": args.size}
    run.weights("weights.pt", weights)
    if what != "untrained" and (state.best is None or fid_or_inf({"fid": s.fid}) < fid_or_inf(state.best)):
        state.best = {"fid": s.fid, "is": s.is_mean, "is_std": s.is_std, "step": state.step}
        run.weights("weights.best.pt", weights)
    state.evaluated = state.step
    if what == "last":  # PAPER reports the lowest FID of up to 59 evaluations; here both, by their names
        last = {"fid": s.fid, "is": s.is_mean, "is_std": s.is_std, "step": state.step}
        run.result(last=last, best=state.best, n=s.n, net=s.net, ref=s.ref, genotype=genotype_json(args, state.G, state.D))
    run.begin(phase, "training", state.step, images_per_step=args.d_batch * args.n_critic)


def noise_images(args: Args, ranks: Ranks, evaluator: Evaluator, k: int) -> Tensor:
    """Uniform noise: what the worst generator scores."""
    shape, g = (evaluator.batch, 3, args.size, args.size), stream(args.seed, "noise", k, device=ranks.device)
    return torch.randint(0, 256, shape, generator=g, device=ranks.device, dtype=torch.uint8)


def evaluate_weights(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, G: Generator) -> None:
    """--phase eval: IS, FID and a sample grid of the generator in a weights.pt."""
    run.begin("eval", "evaluation", 0, "the end")
    s = score(args, ranks, run, evaluator, G, args.eval_n, split=True)
    run.evaluated(0, s.row(), **{"eval/ema": True, "eval/bn": "running", "eval/what": str(args.weights)})
    run.samples(0, grid(args, ranks, G))
    run.print(f"{args.weights}: {s}")
    run.result(last={"fid": s.fid, "is": s.is_mean, "is_std": s.is_std}, n=s.n, net=s.net, ref=s.ref)


# ---- the command ------------------------------------------------------------------------------------------------------


def check(args: Args, world: int) -> None:
    """Refuse what cannot run, before anything is made. UserError names flag, value and remedy."""
    for flag, value in (("--d-batch", args.d_batch), ("--g-batch", args.g_batch)):
        if value % world:
            raise UserError(f"{flag} {value}: not divisible by {world} processes")
    for flag, value in (("--search-n", args.search_n), ("--final-n", args.final_n), ("--eval-n", args.eval_n)):
        if value < IS_SPLITS and "is" in args.objectives.split(","):
            raise UserError(f"{flag} {value}: the Inception Score has {IS_SPLITS} splits; use {IS_SPLITS} or more")
    if args.z_dim % 3:
        raise UserError(f"--z-dim {args.z_dim}: enters the three cells in equal parts; use a multiple of 3")
    if args.phase == "train" and not args.genotype:
        raise UserError(f"--phase train: needs --genotype, one of {', '.join(PUBLISHED_G)} or a file")
    if args.phase == "search" and args.genotype and args.stages != "d":
        raise UserError(f"--genotype {args.genotype}: skips the search that --phase search asks for; leave one of them out")
    if args.stages == "d" and not args.genotype:
        raise UserError("--stages d: searches D for a given G; name it with --genotype")
    if args.phase == "eval" and not args.weights:
        raise UserError("--phase eval: needs --weights, a weights.pt of a run")
    if args.weights and args.phase != "eval":
        raise UserError(f"--weights {args.weights}: is evaluated by --phase eval; to train use --genotype")
    if args.selection == "cars" and args.objectives != "is,fid,size":
        raise UserError(f"--selection cars: needs --objectives is,fid,size, not {args.objectives}")
    if args.d_genotype and not args.genotype:
        raise UserError(f"--d-genotype {args.d_genotype}: goes with --genotype; the fixed D of stage 1 is --dbar")


def check_size(args: Args, state: State) -> None:
    """Refuse images that a discriminator of this run cannot halve as often as it wants to."""
    if state.D == "plain" and args.size < 32:
        raise UserError(f"--size {args.size}: the plain discriminator halves it five times; use 32 or more")
    searched = args.stages == "coupled" or "search-d" in stages_of(args)
    halvings = 4 if searched else 0 if state.D == "plain" else 1 + sum(row[5] != "none" for row in state.D)
    if args.size % 2**halvings:
        raise UserError(f"--size {args.size}: a discriminator here halves it {halvings} times; use a multiple of {2**halvings}")


def first_state(args: Args) -> State:
    """What a new run begins with: the genotypes given, or the fixed discriminator. UserError: not genotypes."""
    for name, key in ((args.init_g, "G"), (args.init_d, "D")):
        if name and named(name, key) is None:
            raise UserError(f"{name}: has no genotype {key}")
    # DEVIATES 16: AutoGAN-D by default (GD1); the paper's 0.91M fits D_C, which it had not found yet; CODE has the plain one
    state = State(D="plain" if args.dbar == "plain" else named(DBAR[args.dbar], "D"))
    if args.genotype:
        state.G = named(args.genotype, "G")
        if state.G is None:
            raise UserError(f"--genotype {args.genotype}: has no generator under the key G")
        d = args.d_genotype
        if d is None and Path(args.genotype).suffix == ".json":
            d = args.genotype if named(args.genotype, "D") is not None else "plain"
        d = d or ("eagan-d-stl10" if args.size == 48 else "eagan-d-cifar10")
        state.D = "plain" if d == "plain" else named(d, "D")
        if state.D is None:
            raise UserError(f"--d-genotype {d}: has no discriminator under the key D")
    return state


def plan_of(args: Args, batches: Batches, state: State) -> list[tuple[str, int, float]]:
    """(stage, G updates, MACs of one update, its share of the scoring included) for every stage."""
    rng = random.Random(0)
    typical_g, typical_d = ([sample(space, rng) for _ in range(64)] for space in (G_SPACE, D_SPACE))

    def mean_g(genotypes: list[Genotype]) -> float:
        return sum(g_macs(g, args.g_ch, args.z_dim, args.size) for g in genotypes) / len(genotypes)

    def mean_d(genotypes: list) -> float:
        return sum(d_macs(d, args.d_ch, args.size) for d in genotypes) / len(genotypes)

    def step_macs(g: float, d: float, n_critic: int) -> float:  # a backward pass costs two forward passes
        return n_critic * args.d_batch * (g + 6 * d) + args.g_batch * (3 * g + 2 * d)

    plan = []
    for name in stages_of(args):
        g = mean_g([state.G] if state.G else typical_g if name == "search-g" else [named("eagan-g", "G")])
        if name == "train":
            steps = args.train_epochs * (args.epoch_batches or len(batches)) // args.n_critic
            if not steps:
                raise UserError(
                    f"--n-critic {args.n_critic}: more than the D batches of all --train-epochs, so G never trains; use fewer"
                )
            plan.append((name, steps, step_macs(g, mean_d([state.D]), args.n_critic)))
        else:
            one = name == "search-g"
            d = mean_d([state.D] if one and args.stages != "coupled" else typical_d)
            steps = round_end(args, batches, args.rounds) // (1 if one else args.n_critic)
            scored = args.rounds * args.population * args.search_n * (2 if one and args.mu_plus_lambda else 1)
            macs = step_macs(g, d, 1 if one else args.n_critic)
            plan.append((name, steps, macs + scored * (g + INCEPTION_MACS * (args.evaluator == "inception")) / max(steps, 1)))
    return plan


IS_SPLITS = 10
INCEPTION_MACS = 5.7e9  # of one image at 299 pixels


def sizes(args: Args, state: State) -> dict[str, float]:
    """Bytes in memory that the weights of each stage take, Adam's two moments and a gradient included (x 4)."""
    g = state.G or named("eagan-g", "G")
    super_g, super_d = g_params(None, args.g_ch, args.z_dim, args.size) * 4, d_params(None, args.d_ch) * 4
    one_g, one_d = g_params(g, args.g_ch, args.z_dim, args.size) * 4, d_params(state.D, args.d_ch) * 4
    made = {
        "search-g": {"SuperNet-G": 4 * super_g, "D": 4 * (super_d if args.stages == "coupled" else one_d)},
        "search-d": {
            f"{args.population} copies of G*": args.population * one_g,
            "G*": 4 * one_g,
            "SuperNet-D": 4 * super_d,
        },
        "train": {"G": 4 * one_g, "average of G": one_g, "D": 4 * one_d},
    }
    return {name: made[name] for name in stages_of(args)}


def load_weights(args: Args, device: torch.device) -> tuple[Args, Generator]:
    """The generator in a weights.pt, and the arguments with its widths. UserError: not such a file."""
    try:
        saved = torch.load(args.weights, map_location=device, weights_only=True)
        args = replace(args, **{k: int(saved[k]) for k in ("g_ch", "z_dim", "size")})
        G = Generator(G_SPACE.check(saved["genotype"]["G"], str(args.weights)), args.g_ch, args.z_dim, args.size)
        G.load_state_dict(saved["G"])
    except OSError as e:
        raise UserError(f"--weights {args.weights}: {e.strerror}") from None
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"--weights {args.weights}: not the weights.pt of an eagan run ({str(e).splitlines()[0]})") from None
    return args, G.to(device)


def price(args: Args, ranks: Ranks, plan: list[tuple[str, int, float]]) -> str:
    """The plan in G updates, and its cost on this device."""
    flops = sum(2 * steps * macs for _, steps, macs in plan)
    rate = measured_flops(ranks.device) * ranks.world
    steps = " + ".join(f"{n:,} ({name})" for name, n, _ in plan)
    cost = f"{flops / 1e15:.3g} PFLOP, about {duration(flops / rate)} at the {rate / 1e12:.2g} TFLOP/s measured here"
    return f"{steps} G updates · {cost}"


def main(args: Args) -> dict | None:
    """Search, derive, train, evaluate. Returns the best scores of the training, if there was one."""
    # -- everything that can be wrong is found before a run directory is made
    ranks = start_ranks(args.device)
    check(args, ranks.world)
    evaluator = Evaluator(
        args.evaluator, ranks.device, args.data_dir / "cache", args.inception_weights, int(args.fid_dims),
        want_is="is" in args.objectives.split(","), ref_n=args.ref_n, splits=IS_SPLITS
    )  # fmt: skip
    data = ranks.first(lambda: load_dataset(args.dataset, args.data_dir, args.size))
    evaluator.use(data)
    args = replace(args, size=data.images.shape[-1])
    trained = None
    if args.phase == "eval":
        args, trained = load_weights(args, ranks.device)
        if args.size != data.images.shape[-1]:
            raise UserError(f"--weights {args.weights}: makes {args.size} px; use --size {args.size}")
    state = first_state(args)
    check_size(args, state)
    batches = Batches(data.images, args.d_batch, args.seed, ranks.device, ranks.rank, ranks.world)
    plan = [] if trained else plan_of(args, batches, state)
    memory = {} if trained else sizes(args, state)
    lines = [f"eagan · {data.name}, {len(data.images):,} images of {args.size} px · {args.preset} · {price(args, ranks, plan)}"]
    lines += [data.note] if data.note else []
    for name, parts in memory.items():
        lines.append(f"memory of {name}: {', '.join(f'{what} {n / 1e9:.2f} GB' for what, n in parts.items())}, and activations")
    if args.dry_run:
        print("\n".join(lines))
        return None

    params = {
        "G": state.G and g_params(state.G, args.g_ch, args.z_dim, args.size),
        "D": state.D and d_params(state.D, args.d_ch),
    }
    biggest = max((sum(parts.values()) for parts in memory.values()), default=0)
    with Run(
        __file__, "eagan", asdict(args), ranks, dataset=data.name, digest=data.digest, plan=plan,
        facts={"params": params, "net": evaluator.net}, disk=3 * biggest + 5e7,  # two checkpoints and one being written
    ) as run:  # fmt: skip
        for line in lines:
            run.print(line)
        saved = run.load()
        if "state" in saved:
            state = State(**saved["state"])
        evaluator.log, evaluator.check = run.print, run.check
        run.begin(run.status["phase"], "preparing the evaluator", state.step, "the first stage")
        ranks.first(evaluator.prepare)
        if trained:
            evaluate_weights(args, ranks, run, evaluator, trained)
            return None
        stages = stages_of(args)
        while state.stage < len(stages):
            stage = {"search-g": search_g, "search-d": search_d, "train": train_gan}[stages[state.stage]]
            stage(args, ranks, run, evaluator, batches, state, saved)
            saved = {}
            if stage is train_gan:
                return state.best
            state.next_stage()
        run.result(genotype=genotype_json(args, state.G, state.D))
    return None


if __name__ == "__main__":
    sys.exit(cli(main, Args, PRESETS))
