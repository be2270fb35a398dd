"""AdversarialNAS: generator and discriminator architectures searched against each other (Gao et al., CVPR 2020).

Paper: arXiv 1912.02037. Authors' code: chengaopro/AdversarialNAS at d7ea5e0. This script is written anew;
docs/adversarialnas.md has the details.

Search (Algorithm 1): Super-G and Super-D hold every candidate operation of every edge, mixed by softmax weights of alpha (G)
and beta (D) with Gumbel noise. Every iteration steps beta, then D's weights, and every n_critic-th one alpha, then G's
weights, all by the GAN's own hinge loss: no score is in the loop.
Derive: the strongest operation of each edge, and no node without an input.
Then the derived G is trained from scratch against AutoGAN's discriminator (or the searched one) and evaluated.

Published (CIFAR-10, 50,000 images): IS 8.74, FID 10.87 after one GPU day of search. This script at paper scale: not run.
All convolutions of an edge, and of the edges that leave the same node, are one weighted sum of kernels (`merge`): the same
sum in 60% of the time on a CPU. Tags: PAPER where a choice comes from, CODE where only the authors' code tells, DEVIATES where
this script differs from both.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from common.cells import (
    CONVS,
    OPS_DOWN,
    OPS_NORMAL,
    OPS_UP,
    AutoGANDiscriminator,
    Conv,
    Down,
    EdgeSpec,
    Genotype,
    Linear,
    Normal,
    Space,
    Up,
    add,
    conv,
    conv2d,
    init_weights,
    op_macs,
    op_params,
    read_genotype,
    table,
    xavier_sn,
)
from common.data import Batches, load_dataset
from common.metrics import Evaluator, Score, to_uint8
from common.run import Ranks, Run, UserError, cli, duration, measured_flops, opt, replacing, start_ranks, stream

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
        opt("Generator to train instead of searching: a published name, a genotype.json or .npy. [paper Table 1]", "Run"),
    ] = None
    d_genotype: Annotated[
        str,
        opt("D of the training: autogan; searched: the one found, or --genotype's own; or a name or file. [paper §4.1]", "Run"),
    ] = "autogan"
    weights: Annotated[Path | None, opt("weights.pt of a run, for --phase eval. [ours]", "Run")] = None
    resume: Annotated[Path | None, opt("Run directory to go on with, exactly where it was. [ours]", "Run")] = None
    dry_run: Annotated[bool, opt("Print plan, sizes and cost, then exit. [ours]", "Run")] = False
    seed: Annotated[int, opt("Every random stream derives from it. [ours]", "Run", min=0)] = 0
    device: Annotated[str, opt("auto, cpu, cuda or cuda:N. [ours]", "Run")] = "auto"
    runs_dir: Annotated[Path, opt("Folder of the run directories. [ours]", "Run")] = Path("runs")
    save_minutes: Annotated[float, opt("Minutes between checkpoints. [ours]", "Run", min=0)] = 5.0
    log_every: Annotated[int, opt("G updates between rows of metrics.jsonl. [ours]", "Run", min=1)] = 50
    sample_every: Annotated[int, opt("G updates between sample grids. [ours]", "Run", min=1)] = 2500

    dataset: Annotated[
        str, opt("shapes, cifar10, stl10, celeba, or a folder, .zip or .npz of images. [paper §4.1]", "Data")
    ] = "cifar10"
    data_dir: Annotated[Path, opt("Folder of downloads and of cached statistics. [ours]", "Data")] = Path("data")
    size: Annotated[int, opt("Pixels of a side, a multiple of 8; 0: 32, for STL-10 48. [paper §4.1]", "Data", min=0)] = 0

    search: Annotated[
        Literal["adversarial", "random"], opt("random: the best of some random genotypes. [paper Table 3]", "Search")
    ] = "adversarial"
    fixed_d: Annotated[
        Literal["none", "sngan", "autogan", "super"],
        opt("SingalNAS: search G alone against this D; super: Super-D with beta frozen. [paper Table 3]", "Search"),
    ] = "none"
    candidates: Annotated[
        int, opt("Random search: genotypes that share the G updates of the search; 1: take it untried. [ours]", "Search", min=1)
    ] = 5
    search_epochs: Annotated[int, opt("Epochs of D in the search, which tau runs over. [authors' code]", "Search", min=2)] = 25
    train_epoch0: Annotated[bool, opt("Train in epoch 0 too, which the authors' code skips. [paper §4.1]", "Search")] = False
    epoch_batches: Annotated[int, opt("D batches that count as an epoch; 0: the data set once. [ours]", "Search", min=0)] = 0
    search_batch: Annotated[
        int,
        opt("Images of a search step: half for D's weights, half for beta; all for each of G's steps. [code; paper 100]",
            "Search", min=2),
    ] = 120  # fmt: skip
    search_g_ch: Annotated[int, opt("Channels of Super-G. [authors' code]", "Search", min=1)] = 160
    search_d_ch: Annotated[int, opt("Channels of Super-D, or of the fixed D. [authors' code]", "Search", min=1)] = 80
    arch_lr: Annotated[float, opt("Adam learning rate of alpha and beta. [paper §4.1]", "Search", min=0)] = 3e-4
    arch_beta1: Annotated[float, opt("Adam beta 1 of alpha and beta. [paper §4.1]", "Search", min=0, max=1)] = 0.5
    arch_beta2: Annotated[float, opt("Adam beta 2 of alpha and beta. [authors' code; paper 0.9]", "Search", min=0, max=1)] = (
        0.999
    )
    arch_decay: Annotated[float, opt("L2 penalty of alpha and beta. [paper §4.1]", "Search", min=0)] = 1e-4
    gumbel: Annotated[
        Literal["prob", "log", "off"],
        opt("Noise on probabilities (paper), on their logarithms (Gumbel-softmax), or none. [paper Eq. 2]", "Search"),
    ] = "prob"
    tau_max: Annotated[float, opt("Temperature at epoch 0. [authors' code]", "Search", min=1e-3)] = 5.0
    tau_min: Annotated[float, opt("Temperature at the end. [authors' code]", "Search", min=1e-3)] = 0.1
    mixed: Annotated[
        Literal["merged", "plain"],
        opt(
            "How an edge computes the sum of its ops: merged into few convolutions, or op by op; the same sum. [ours]", "Search"
        ),
    ] = "merged"
    derive_every: Annotated[
        int, opt("D batches between snapshots of the genotype; 26 is 16 an epoch. [authors' code]", "Search", min=1)
    ] = 26
    search_eval_every: Annotated[
        int, opt("Epochs between evaluations of Super-G's average; 0: none. [authors' code]", "Search", min=0)
    ] = 10
    ref_beta_axis: Annotated[bool, opt("Derive D by a softmax over edges, not ops: a bug. [authors' code]", "Search")] = False
    ref_ema_overwrite: Annotated[
        bool, opt("Let an evaluation overwrite Super-G and alpha by their averages: a bug. [authors' code]", "Search")
    ] = False

    train_epochs: Annotated[int, opt("Epochs of D in training from scratch. [authors' code; paper 500]", "Train", min=1)] = 600
    g_ch: Annotated[int, opt("Channels of G; STL-10: 270. [authors' code]", "Train", min=1)] = 256
    g_params: Annotated[
        float,
        opt("Parameters of G: the nearest channel count is taken instead of --g-ch; 0: off. [paper §4.2.3]", "Train",
            min=0, max=1e9),
    ] = 0.0  # fmt: skip
    d_ch: Annotated[int, opt("Channels of D. [authors' code]", "Train", min=1)] = 128
    z_dim: Annotated[int, opt("Latent size. [authors' code]", "Train", min=2)] = 120
    chunks: Annotated[
        int,
        opt("Equal parts of the latent, which enter the first cells; 0: 3, at 48 px 2. [authors' code]", "Train", min=0, max=3),
    ] = 0
    g_batch: Annotated[int, opt("Latents of a G step; STL-10: 256. [authors' code; paper 40]", "Train", min=1)] = 80
    d_batch: Annotated[int, opt("Real images of a D step; STL-10: 128. [authors' code; paper 20]", "Train", min=1)] = 40
    half_batch: Annotated[bool, opt("Train D on half of each batch: since 2021 a bug. [authors' code]", "Train")] = False
    g_lr: Annotated[float, opt("Adam learning rate of G, search and training. [paper §4.1]", "Train", min=0)] = 2e-4
    d_lr: Annotated[float, opt("Adam learning rate of D, search and training. [paper §4.1]", "Train", min=0)] = 2e-4
    adam_b1: Annotated[float, opt("Adam beta 1. [paper §4.1]", "Train", min=0, max=1)] = 0.0
    adam_b2: Annotated[float, opt("Adam beta 2. [paper §4.1]", "Train", min=0, max=1)] = 0.9
    n_critic: Annotated[int, opt("D steps per G step, search and training. [authors' code]", "Train", min=1)] = 5
    ema: Annotated[float, opt("Decay of G's average per G update. [authors' code]", "Train", min=0, max=1)] = 0.999
    grad_clip: Annotated[
        float, opt("Gradient norm limit of both nets in training; 0: none. [EAGAN's code: 50 for STL-10]", "Train", min=0)
    ] = 0.0
    amp: Annotated[bool, opt("bfloat16 autocast of G and D, but for the steps of alpha and beta. [ours]", "Train")] = False
    compile: Annotated[bool, opt("torch.compile in training from scratch. [ours]", "Train")] = False

    evaluator: Annotated[
        Literal["inception", "compact"], opt("compact: a small classifier of the data's own labels. [ours]", "Eval")
    ] = "inception"
    inception_weights: Annotated[Path | None, opt("File of the FID network; default: download. [ours]", "Eval")] = None
    fid_dims: Annotated[
        Literal["64", "192", "768", "2048"], opt("Features of the FID; below 2048 there is no IS. [pytorch-fid]", "Eval")
    ] = "2048"
    ref_n: Annotated[int, opt("Training images behind the reference; 0: all. [authors' code]", "Eval", min=0)] = 0
    eval_n: Annotated[int, opt("Generated images of an evaluation. [paper §4.1]", "Eval", min=2)] = 50_000
    eval_every: Annotated[int, opt("Epochs between evaluations in training. [authors' code]", "Eval", min=1)] = 5
    eval_after: Annotated[int, opt("Epochs before the first of them. [ours]", "Eval", min=0)] = 0


PRESETS = {
    "paper": {},
    "quick": {
        **{"preset": "quick", "epoch_batches": 60, "candidates": 3, "train_epochs": 400, "eval_n": 10_000, "eval_every": 100},
        **{"amp": True, "sample_every": 500, "search_eval_every": 24},
    },
    "smoke": {
        **{"preset": "smoke", "dataset": "shapes", "evaluator": "compact", "search_epochs": 5, "epoch_batches": 12},
        **{"search_batch": 16, "search_g_ch": 8, "search_d_ch": 8, "derive_every": 12, "search_eval_every": 4},
        **{"arch_lr": 3e-3, "candidates": 2, "g_ch": 16, "d_ch": 16, "d_batch": 32, "g_batch": 32, "n_critic": 1},
        **{"g_lr": 5e-4, "d_lr": 5e-4, "ema": 0.95, "train_epochs": 12, "eval_n": 1000, "eval_every": 6},
        **{"sample_every": 50, "log_every": 10},
    },
}

# ---- search space (paper §3.3, Fig. 2) --------------------------------------------------------------------------------

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
D_EDGES = (
    *(EdgeSpec(name, OPS_NORMAL) for name in ("0->1", "0->2", "0->3", "1->2", "1->3")),
    *(EdgeSpec(name, OPS_DOWN) for name in ("2->4", "3->4")),
)
D_SPACE = Space(
    "D",
    cells=4,
    edges=D_EDGES,
    # CODE: the image has 3 channels, so what leaves it is a convolution; not in the paper's text
    first=(*(EdgeSpec(name, tuple(CONVS)) for name in ("0->1", "0->2", "0->3")), *D_EDGES[3:]),
    nodes={2: (1, 3), 3: (2, 4), 1: (0,)},
    leaving={1: (3, 4)},
)

PUBLISHED_G = {  # the authors' integers, one row a cell, one column an edge
    "adversarialnas-g": [[1, 1, 1, 0, 3, 3, 1], [1, 1, 0, 1, 3, 3, 3], [0, 1, 0, 3, 3, 0, 3]],  # paper Table 1
    "animation-g": [[1, 1, 3, 3, 3, 3, 1], [1, 1, 2, 2, 3, 3, 3], [1, 1, 3, 3, 3, 3, 3]],  # CODE: last frame, another run
    "eagan-g": [[1, 1, 1, 0, 2, 3, 1], [1, 1, 0, 1, 3, 0, 5], [0, 1, 0, 3, 0, 0, 3]],  # EAGAN, ECCV 2022
    "mmd-g": [[0, 1, 3, 4, 6, 4, 1], [1, 1, 4, 0, 5, 5, 3], [0, 1, 4, 5, 6, 4, 4]],  # MMD-AdversarialNAS, ICASSP 2024
}
PUBLISHED_D = {
    "animation-d": [[2, 0, 1, 4, 4, 3, 3], [4, 1, 0, 0, 3, 5, 3], [1, 1, 1, 5, 6, 5, 5], [5, 0, 0, 1, 1, 1, 1]],
}


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


def write_npy(path: Path, space: Space, genotype: Genotype) -> None:
    """The genotype as the authors' programs read it: uint8 of shape (cells, 7)."""
    with replacing(path) as tmp, open(tmp, "wb") as f:
        np.save(f, np.array(space.to_codes(genotype), np.uint8))


def random_genotype(space: Space, rng: random.Random) -> Genotype:
    """Uniform over the valid genotypes."""
    rows = []
    while len(rows) < space.cells:
        row = tuple(rng.choice(edge.ops) for edge in space.edges_of(len(rows)))
        if not space.row_error(row):
            rows.append(row)
    return tuple(rows)


# ---- continuous relaxation (paper §3.2) -------------------------------------------------------------------------------

Mix = list[list[Tensor]]  # [cell][edge]: one weight for each op of the edge, in the order of the space


class Logits(nn.Module):
    """alpha of G or beta of D: one number for each op of each edge, as tables (cells, edges, ops) of like edges.

    G: (3, 2, 3) and (3, 5, 7), 123 numbers. D: (4, 5, 7) and (4, 2, 6), 188; six of them are dead, in cell 1, whose first
    three edges have 5 ops. [authors' code]
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        kinds = Counter(len(edge.ops) for edge in space.edges).items()
        self.tables = nn.ParameterList(1e-3 * torch.randn(space.cells, edges, ops) for ops, edges in kinds)

    def mix(self, tau: float, form: str, noise: torch.Generator) -> Mix:
        """The mixing weights of every edge, of one draw of the noise."""
        return by_edge([mix_weights(logits, tau, form, noise) for logits in self.tables])

    def probabilities(self, axis: int = -1) -> Mix:
        """softmax(alpha) of every edge, on the CPU. axis -2: over the edges, as the authors' code derives D."""
        return by_edge([logits.detach().softmax(axis).cpu() for logits in self.tables])


def by_edge(tables: list[Tensor]) -> Mix:
    """Tables (cells, edges, ops) -> [cell][edge] (ops,)."""
    return [[w for table in tables for w in table[cell]] for cell in range(len(tables[0]))]


def mix_weights(logits: Tensor, tau: float, form: str, noise: torch.Generator) -> Tensor:
    """softmax((p + o) / tau) over the last axis, p = softmax(logits), o ~ Gumbel(0, 1). (..., ops) -> same. [paper Eq. 2]

    form "log": log p in place of p, the Gumbel-softmax proper; "off": p itself. The noise has a deviation of 1.28, p lies
    within 0..1: in the paper's form even a certain op is the strongest of seven in only 31 of 100 draws.
    """
    if form == "off":
        return logits.softmax(-1)
    gumbel = -torch.empty_like(logits).exponential_(generator=noise).log()
    p = logits.softmax(-1) if form == "prob" else logits.log_softmax(-1)
    return ((p + gumbel) / tau).softmax(-1)


def temperature(args: Args, epoch: int) -> float:
    """tau of an epoch: from tau_max exponentially to tau_min. [authors' code]"""
    return max(args.tau_min, args.tau_max * (args.tau_min / args.tau_max) ** (epoch / args.search_epochs))


def derive(space: Space, p: Mix) -> Genotype:
    """The strongest op of each edge, then an input for each node that needs one. p: probabilities. [authors' code]

    A node without an input gets the edge whose p(none) is smallest, the first of equals, with its best other op.
    """

    def best(cell: int, column: int, but: str = "") -> str:
        ops = space.edges_of(cell)[column].ops  # entries of p beyond them are dead
        return max((op for op in ops if op != but), key=lambda op: float(p[cell][column][ops.index(op)]))

    rows = []
    for cell in range(space.cells):
        row = [best(cell, column) for column in range(len(space.edges))]
        for node, columns in space.nodes.items():
            if space.starved(row, node):
                revived = min(columns, key=lambda column: float(p[cell][column][0]))
                row[revived] = best(cell, revived, but="none")
        rows.append(tuple(row))
    return tuple(rows)


# ---- networks (paper §3.3; sizes: authors' code) ----------------------------------------------------------------------


class MixedEdge(nn.ModuleDict):
    """The ops of an edge by name: all of them in a supernet, its only one in a derived network ("none" has no module)."""

    def __init__(self, ops: Sequence[str], make: Callable[[str], nn.Module]) -> None:
        super().__init__({op: make(op) for op in ops if op != "none"})
        self.ops = tuple(ops)

    def forward(self, x: Tensor, w: Tensor | None) -> Tensor | None:
        """sum_k w_k op_k(x) [paper Eq. 1]; without w the only op, None where it is none."""
        if w is None:
            return self[self.ops[0]](x) if len(self) else None
        return add(*(w_k * self[op](x) for op, w_k in zip(self.ops, w, strict=False) if op in self))


def merge(edge: MixedEdge, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weighted sum of an edge's convolutions as one kernel of 41 taps, in three pieces, and its bias.

    conv is linear in its kernel, so sum_k w_k conv(x, K_k) = conv(x, sum_k w_k pad(K_k)). The taps: a dense 5x5, which the
    1x1, 3x3, 5x5, the dilated 3x3 and the middle of the dilated 5x5 fall into; and the ring of the dilated 5x5 at offset 4,
    its rows dy = -4, 4 as 2x5 and the rest of its columns dx = -4, 4 as 3x2. [ours; measured: benchmark/mixed_edge.py]
    """
    with torch.autocast(w.device.type, enabled=False):  # kernels, and their spectral norms, in float32
        terms = [(op, w_k, edge[op].conv) for op, w_k in zip(edge.ops, w, strict=False) if op in CONVS]
        kernels = {op: w_k * conv.weight for op, w_k, conv in terms}
        bias = add(*(w_k * conv.bias for _, w_k, conv in terms))
        dense = kernels["conv_5x5"] + F.pad(kernels["conv_3x3"], (1, 1, 1, 1))
        if "conv_1x1" in kernels:  # a down edge has none
            dense = dense + F.pad(kernels["conv_1x1"], (2, 2, 2, 2))
        wide = kernels["dil_conv_5x5"]
        spread = torch.zeros_like(dense)
        spread[..., ::2, ::2] = kernels["dil_conv_3x3"] + wide[..., 1:4, 1:4]
    return dense + spread, wide[..., ::4, :], wide[..., 1:4, ::4], bias


def leave(
    x: Tensor | None, edges: Sequence[MixedEdge], mix: Sequence[Tensor | None], merged: bool, stride: int = 1, relu: bool = True
) -> list[Tensor | None]:
    """What the edges that leave a node carry to their ends, by a mix or, without one, by their only ops.

    merged: all convolutions of all these edges as one wide one in three pieces. One ReLU and one input serve them all, so
    that a node's activation is kept once for the backward pass, not once an op. relu: False for the image.
    """
    if x is None or mix[0] is None or not merged:
        return [None if x is None else edge(x, w) for edge, w in zip(edges, mix, strict=True)]
    source = x.relu() if relu else x
    dense, rows, columns, bias = map(torch.cat, zip(*map(merge, edges, mix), strict=True))
    out = F.conv2d(source, dense, bias, stride, padding=2)
    if max(x.shape[-2:]) > 4:  # on a smaller map the ring meets nothing but padding
        out = out + conv2d(source, rows, None, stride, padding=(4, 4), dilation=(8, 2))
        out = out + conv2d(source, columns, None, stride, padding=(2, 4), dilation=(2, 8))
    carried = []
    for edge, w, y in zip(edges, mix, out.chunk(len(edges), 1), strict=True):
        others = (w_k * edge[op](x) for op, w_k in zip(edge.ops, w, strict=False) if op in edge and op not in CONVS)
        carried.append(add(y, *others))  # the identity, or the pools
    return carried


class UpCell(nn.Module):
    """x: (B, C, H, W), skips: earlier cells' node 3 -> node 3 and node 4, both (B, C, 2H, 2W)."""

    def __init__(self, ch: int, genotype: Genotype | None, cell: int, merged: bool = True) -> None:
        super().__init__()
        make = [Up, Up, Normal, Normal, Normal, Normal, Normal]
        choices = [(op,) for op in genotype[cell]] if genotype else [edge.ops for edge in G_SPACE.edges]
        self.edges = nn.ModuleList(
            MixedEdge(ops, lambda op, op_class=op_class: op_class(op, ch)) for ops, op_class in zip(choices, make, strict=True)
        )
        self.skips = nn.ModuleList(Conv(ch, ch, 1) for _ in range(cell))
        self.resize = "bilinear" if cell == 1 else "nearest"
        self.merged = merged

    def forward(self, x: Tensor, mix: list[Tensor] | None, skips: list[Tensor]) -> tuple[Tensor, Tensor]:
        e01, e02, e13, e23, e14, e24, e34 = self.edges
        w01, w02, w13, w23, w14, w24, w34 = mix or [None] * 7
        node1 = e01(x, w01) if len(e13) or len(e14) else None  # derived: a node that feeds nothing is not computed
        node2 = e02(x, w02) if len(e23) or len(e24) else None
        x13, x14 = leave(node1, (e13, e14), (w13, w14), self.merged)
        x23, x24 = leave(node2, (e23, e24), (w23, w24), self.merged)
        node3 = add(x13, x23)
        for to_skip, skip in zip(self.skips, skips, strict=True):  # 1x1 first: it commutes with both resizings
            # CODE: later cells get node 3 with these in it: the authors add in place to a map already handed out
            node3 = node3 + F.interpolate(to_skip(skip), size=node3.shape[-2:], mode=self.resize)
        (x34,) = leave(node3, (e34,), (w34,), self.merged)
        return node3, add(x14, x24, x34)


class Generator(nn.Module):
    """z: (B, z_dim) -> (B, 3, size, size) in [-1, 1]. Without a genotype it is Super-G: forward then takes a mix."""

    def __init__(
        self, genotype: Genotype | None, ch: int = 256, z_dim: int = 120, size: int = 32, chunks: int = 3, merged: bool = True
    ) -> None:
        super().__init__()
        self.ch, self.bottom = ch, size // 8
        widths = [self.bottom * 2**i for i in range(chunks)]
        # CODE: a part of z enters each cell, of STL-10's G each of the first two; not in the paper
        self.latent = nn.ModuleList(nn.Linear(z_dim // chunks, ch * w * w) for w in widths)
        self.cells = nn.ModuleList(UpCell(ch, genotype, i, merged) for i in range(3))
        self.bn = nn.BatchNorm2d(ch)  # the only normalisation of G
        self.to_rgb = Conv(ch, 3, 3, padding=1)
        init_weights(self)

    def forward(self, z: Tensor, mix: Mix | None = None) -> Tensor:
        parts, skips, x = z.chunk(len(self.latent), dim=1), [], 0
        for i, cell in enumerate(self.cells):
            if i < len(self.latent):
                width = self.bottom * 2**i
                x = x + self.latent[i](parts[i]).view(-1, self.ch, width, width).contiguous(memory_format=torch.channels_last)
            skip, x = cell(x, mix and mix[i], skips)
            skips.append(skip)
        return self.to_rgb(self.bn(x).relu()).tanh()


class DownCell(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2); the first one from the image (B, 3, H, W), whose edges have no ReLU."""

    def __init__(self, ch: int, genotype: Genotype | None, cell: int, merged: bool = True) -> None:
        super().__init__()
        self.from_image, self.merged = cell == 0, merged

        def make(op: str, column: int) -> nn.Module:
            image = self.from_image and column < 3
            made = Down(op, ch, sn=False) if column > 4 else Normal(op, ch, relu=not image)
            if op in CONVS:
                made.conv = xavier_sn(conv(3 if image else ch, ch, op, stride=2 if column > 4 else 1))
            return made

        choices = [(op,) for op in genotype[cell]] if genotype else [edge.ops for edge in D_SPACE.edges_of(cell)]
        self.edges = nn.ModuleList(
            MixedEdge(ops, lambda op, column=column: make(op, column)) for column, ops in enumerate(choices)
        )

    def forward(self, x: Tensor, mix: list[Tensor] | None) -> Tensor:
        e01, e02, e03, e12, e13, e24, e34 = self.edges
        w01, w02, w03, w12, w13, w24, w34 = mix or [None] * 7
        x01, x02, x03 = leave(x, (e01, e02, e03), (w01, w02, w03), self.merged, relu=not self.from_image)
        x12, x13 = leave(x01, (e12, e13), (w12, w13), self.merged)
        (x24,) = leave(add(x02, x12), (e24,), (w24,), self.merged, stride=2)
        (x34,) = leave(add(x03, x13), (e34,), (w34,), self.merged, stride=2)
        return x24 + x34


class Discriminator(nn.Module):
    """x: (B, 3, H, W) -> (B, 1). Without a genotype it is Super-D: forward then takes a mix."""

    def __init__(self, genotype: Genotype | None, ch: int = 128, merged: bool = True) -> None:
        super().__init__()
        self.cells = nn.ModuleList(DownCell(ch, genotype, i, merged) for i in range(4))
        self.out = spectral_norm(Linear(ch, 1, bias=False))

    def forward(self, x: Tensor, mix: Mix | None = None) -> Tensor:
        for i, cell in enumerate(self.cells):
            x = cell(x, mix and mix[i])
        return self.out(x.relu().sum(dim=(2, 3)))  # CODE: a sum, so the output's scale grows with the image


class SNGANDiscriminator(nn.Module):
    """SN-GAN's convolutional discriminator: x: (B, 3, size, size) -> (B, 1); ch 128 gives its 64 to 512 channels.

    3x3 of stride 1 and 4x4 of stride 2 by turns, leaky ReLU 0.1, all under spectral norm. [SN-GAN Table 3]
    """

    def __init__(self, ch: int = 128, size: int = 32) -> None:
        super().__init__()
        layers, c_in = [], 3
        for c_out, down in ((ch // 2, 1), (ch, 1), (2 * ch, 1), (4 * ch, 0)):
            layers += [xavier_sn(Conv(c_in, c_out, 3, padding=1)), nn.LeakyReLU(0.1)]
            layers += [xavier_sn(Conv(c_out, c_out, 4, 2, padding=1)), nn.LeakyReLU(0.1)] if down else []
            c_in = c_out
        self.layers = nn.Sequential(*layers)
        self.out = spectral_norm(Linear(4 * ch * (size // 8) ** 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x).flatten(1))


def held_ops(space: Space, genotype: Genotype | None) -> Iterator[tuple[int, int, str]]:
    """(cell, column, op) of all that a network of this genotype holds; None: a supernet, which holds every op."""
    for cell in range(space.cells):
        for column, edge in enumerate(space.edges_of(cell)):
            for op in edge.ops if genotype is None else (genotype[cell][column],):
                yield cell, column, op


def latent_params(ch: int, z_dim: int, size: int, chunks: int) -> int:
    """Parameters, and multiply-adds, of the linears that the parts of z go through."""
    return sum((z_dim // chunks + 1) * ch * (size // 8 * 2**i) ** 2 for i in range(chunks))


def g_params(genotype: Genotype | None, ch: int = 256, z_dim: int = 120, size: int = 32, chunks: int = 3) -> int:
    """Parameters of a derived generator, or of Super-G without alpha: linears, skip convolutions, BatchNorm, RGB, ops."""
    fixed = latent_params(ch, z_dim, size, chunks) + 3 * (ch * ch + ch) + 2 * ch + 27 * ch + 3
    return fixed + sum(op_params(op, ch) for _, _, op in held_ops(G_SPACE, genotype))


def g_macs(genotype: Genotype | None, ch: int = 256, z_dim: int = 120, size: int = 32, chunks: int = 3) -> int:
    """Multiply-adds of one generated image, convolutions and linears, bias adds included, op by op."""
    total = latent_params(ch, z_dim, size, chunks) + (27 * ch + 3) * size**2
    total += sum(i * op_macs("conv_1x1", ch, size // 4 * 2**i) for i in range(3))
    return total + sum(op_macs(op, ch, size // 4 * 2**cell) for cell, _, op in held_ops(G_SPACE, genotype))


DKind = Genotype | Literal["super", "autogan", "sngan"]  # what a discriminator is made after


def make_d(kind: DKind, ch: int, size: int, merged: bool = True) -> nn.Module:
    """A discriminator: derived from a genotype, Super-D, AutoGAN's or SN-GAN's."""
    if kind == "autogan":
        return AutoGANDiscriminator(ch)
    return SNGANDiscriminator(ch, size) if kind == "sngan" else Discriminator(None if kind == "super" else kind, ch, merged)


def d_cost(kind: DKind, ch: int, size: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for one image, of a discriminator: convolutions and linears, bias adds included."""
    if kind == "autogan":
        whole, half, quarter = size**2, (size // 2) ** 2, (size // 4) ** 2
        c1, c3, image1, image3 = ch * ch + ch, 9 * ch * ch + ch, 4 * ch, 28 * ch
        params = image1 + image3 + c1 + 7 * c3 + ch
        return params, image3 * whole + c3 * whole + (image1 + c1 + 2 * c3) * half + 4 * c3 * quarter + ch
    if kind == "sngan":
        widths = ((3, ch // 2, ch // 2, 1), (ch // 2, ch, ch, 2), (ch, 2 * ch, 2 * ch, 4), (2 * ch, 4 * ch, 0, 8))
        layers = [((9 * a + 1) * b, size // shrink) for a, b, _, shrink in widths]
        layers += [((16 * b + 1) * c, size // shrink // 2) for _, b, c, shrink in widths if c]
        layers += [(4 * ch * (size // 8) ** 2 + 1, 1)]
        return sum(n for n, _ in layers), sum(n * side**2 for n, side in layers)
    params = macs = ch
    for cell, column, op in held_ops(D_SPACE, None if kind == "super" else kind):
        n = op_params(op, ch) if cell or column > 2 else 3 * CONVS[op][0] ** 2 * ch + ch
        params, macs = params + n, macs + n * (size // 2 ** (cell + (column > 4))) ** 2
    return params, macs


def width(args: Args, genotype: Genotype) -> int:
    """Channels of G in training: --g-ch, or those whose number of parameters is nearest to --g-params. [paper §4.2.3]"""
    if not args.g_params:
        return args.g_ch
    found, rest = 1, (args.z_dim, args.size, args.chunks)
    while g_params(genotype, found + 1, *rest) <= args.g_params:
        found += 1
    return min(found, found + 1, key=lambda ch: abs(g_params(genotype, ch, *rest) - args.g_params))


# ---- one step of a GAN ------------------------------------------------------------------------------------------------


def latent(args: Args, ranks: Ranks, n: int, *name: object) -> Tensor:
    """n latents z ~ N(0, I), (n, z_dim): a pure function of the seed and the name, the same on every process."""
    return torch.randn(n, args.z_dim, generator=stream(args.seed, *name, device=ranks.device), device=ranks.device)


def hinge_d(
    args: Args, ranks: Ranks, G: nn.Module, D: nn.Module, real: Tensor, *name: object,
    mixes: tuple[Mix | None, Mix | None] = (None, None), amp: bool = False
) -> Tensor:  # fmt: skip
    """E[relu(1 - D(x))] + E[relu(1 + D(G(z)))] on a real batch and as many fakes. mixes: of Super-G, Super-D. [paper §4.1]"""
    g_mix, d_mix = mixes
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=amp):
        with torch.no_grad():
            fake = G(latent(args, ranks, len(real) * ranks.world, *name)[ranks.rank :: ranks.world], g_mix)
        # DEVIATES 1: one pass over both: faster, but Super-D is then one draw of the noise for both, in the authors' code
        # two, and spectral norm iterates once a step, there twice
        both = torch.cat([real, fake.to(real.dtype)])
        d_real, d_fake = (D(both) if d_mix is None else D(both, d_mix)).float().chunk(2)
    return (1 - d_real).relu().mean() + (1 + d_fake).relu().mean()


def hinge_g(
    args: Args, ranks: Ranks, G: nn.Module, D: nn.Module, n: int, *name: object,
    mixes: tuple[Mix | None, Mix | None] = (None, None), amp: bool = False
) -> Tensor:  # fmt: skip
    """-E[D(G(z))] on n latents. mixes: of Super-G, Super-D. [paper §4.1]"""
    g_mix, d_mix = mixes
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=amp):
        fake = G(latent(args, ranks, n, *name)[ranks.rank :: ranks.world], g_mix)
        return -(D(fake) if d_mix is None else D(fake, d_mix)).float().mean()


def update(ranks: Ranks, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    ranks.average_gradients(net.parameters())
    if clip:
        nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()


@contextmanager
def frozen(*nets: nn.Module | None) -> Iterator[None]:
    """A loss made in this `with` has no gradient for these networks: no other step may move them, and it is cheaper."""
    for net in nets:
        if net is not None:
            net.requires_grad_(False)
    try:
        yield
    finally:
        for net in nets:
            if net is not None:
                net.requires_grad_(True)


def adam(net: nn.Module, lr: float, args: Args) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr, betas=(args.adam_b1, args.adam_b2), fused=True)


def arch_adam(logits: Logits, args: Args) -> torch.optim.Adam:
    """Of alpha or beta; the decay is an L2 penalty within Adam."""
    betas = (args.arch_beta1, args.arch_beta2)
    return torch.optim.Adam(logits.parameters(), args.arch_lr, betas=betas, weight_decay=args.arch_decay)


@torch.no_grad()
def ema_update(average: nn.Module, net: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * net for parameters; buffers (BatchNorm statistics) are net's own."""
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for a, b in zip(average.buffers(), net.buffers(), strict=True):
        a.copy_(b)


def seeded(args: Args, ranks: Ranks, make: Callable[[], nn.Module], *name: object) -> nn.Module:
    """make() on the device, its initial weights drawn from the stream (seed, name)."""
    torch.manual_seed(stream(args.seed, "init", *name).initial_seed())
    return make().to(ranks.device, memory_format=torch.channels_last)


# ---- scoring ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def score(
    args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, G: Generator, n: int, mix: Callable[[int], Mix] | None = None
) -> Score:
    """IS and FID of n images of G in eval mode, always of the same latents. mix: of Super-G, for each batch by its number."""
    G.eval()

    def images(k: int) -> Tensor:
        run.check()
        z = latent(args, ranks, evaluator.batch, "eval", k)[: n - k * evaluator.batch]
        return to_uint8(G(z, mix and mix(k)))

    try:
        return evaluator.score(images, n, ranks.rank, ranks.world)
    finally:
        G.train()


@torch.no_grad()
def grid(args: Args, ranks: Ranks, G: nn.Module, mix: Mix | None = None) -> Tensor:
    """64 images of always the same latents."""
    G.eval()
    images = G(latent(args, ranks, 64, "grid"), mix)
    G.train()
    return images


def noise_images(args: Args, ranks: Ranks, evaluator: Evaluator, k: int) -> Tensor:
    """Uniform noise: what the worst generator scores."""
    shape, g = (evaluator.batch, 3, args.size, args.size), stream(args.seed, "noise", k, device=ranks.device)
    return torch.randint(0, 256, shape, generator=g, device=ranks.device, dtype=torch.uint8)


# ---- search -----------------------------------------------------------------------------------------------------------


@dataclass
class State:
    """What a resumed run needs beside the networks: plain values only. All counters but `stage` are of the whole run."""

    stage: int = 0  # index into stages_of(args)
    step: int = 0  # G updates
    batch: int = 0  # D batches: they number the real batches and the latents
    began: int = 0  # step at which this stage, or candidate, began
    derived: int = -1  # last batch whose snapshot is written
    flips: dict[str, int] = field(default_factory=dict)  # how many edges have changed their op, from snapshot to snapshot
    G: Genotype | None = None  # the derived generator: of the last snapshot, at the end, or given
    D: Genotype | None = None  # the derived discriminator, where one is searched or given
    candidates: list[dict] = field(default_factory=list)  # random search: genotype and fid of those that are done
    evaluated: int = -1  # last batch (search) or step (training) whose evaluation is done
    best: dict | None = None  # of the evaluations in training


def stages_of(args: Args) -> list[str]:
    """The stages of the run, in order."""
    if args.phase == "train" or args.genotype:
        return ["train"]
    return ["search" if args.search == "adversarial" else "random"] + (["train"] if args.phase == "all" else [])


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


def search(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, batches: Batches, state: State, saved: dict) -> None:
    """Alternate the four updates of Algorithm 1, then derive G and D from alpha and beta."""
    kind, merged = "super" if args.fixed_d == "none" else args.fixed_d, args.mixed == "merged"
    G = seeded(args, ranks, lambda: Generator(None, args.search_g_ch, args.z_dim, args.size, args.chunks, merged), "super-g")
    D = seeded(args, ranks, lambda: make_d(kind, args.search_d_ch, args.size, merged), "super-d")
    alpha = seeded(args, ranks, lambda: Logits(G_SPACE), "alpha")
    beta = seeded(args, ranks, lambda: Logits(D_SPACE), "beta") if kind == "super" else None
    G_ema, alpha_ema = (deepcopy(net).requires_grad_(False) for net in (G, alpha))
    parts = {"G": G, "D": D, "alpha": alpha, "G_ema": G_ema, "alpha_ema": alpha_ema}
    parts |= {"g_opt": adam(G, args.g_lr, args), "d_opt": adam(D, args.d_lr, args), "alpha_opt": arch_adam(alpha, args)}
    if beta is not None:
        parts |= {"beta": beta, "beta_opt": arch_adam(beta, args)}
    restore(saved, **parts)
    run.keep = checkpoint(state, **parts)
    # DEVIATES 2: a frozen Super-D keeps the noise on its beta; the paper's ablation gives no details, its code is not released
    dynamic = args.fixed_d == "none"  # else only G is searched: "SingalNAS"

    epoch_length, total = args.epoch_batches or len(batches), search_length(args, batches)
    run.begin("search", "search", state.step, images_per_step=args.search_batch * args.n_critic)
    while True:
        i = state.batch
        epoch, within = divmod(i, epoch_length)
        epoch += not args.train_epoch0
        last = i == total
        tau = temperature(args, epoch)
        if state.derived < i and (last or i % args.derive_every == 0):
            snapshot(args, run, state, alpha, beta if dynamic else None, tau)
        due = args.search_eval_every and epoch > 0 and within == 0
        if due and state.evaluated < i and (last or (epoch - 1) % args.search_eval_every == 0):
            evaluate_search(args, ranks, run, evaluator, G, G_ema, alpha, alpha_ema, state, temperature(args, epoch - 1))
        if last:
            break
        run.tick(state.step, f"epoch {epoch + 1} of {args.search_epochs} in {epoch_length - within} batches, tau now {tau:.2f}")

        real = batches(i)
        half = len(real) // 2
        # PAPER Alg. 1, CODE: architecture before weights, so that it meets the weights of the step before. In float32 always:
        # the gradients of alpha and beta may be as small as 1e-7
        if dynamic:  # 1. D's architecture
            with frozen(alpha, D):
                mixes = draw(args, ranks, alpha, beta, tau, "d arch", i)
                d_arch = hinge_d(args, ranks, G, D, real[half:], "d arch", i, mixes=mixes)
            update(ranks, beta, parts["beta_opt"], d_arch, 0.0)
        with frozen(alpha, beta):  # 2. D's weights
            mixes = draw(args, ranks, alpha, beta, tau, "d", i)
            d_loss = hinge_d(args, ranks, G, D, real[:half], "d", i, mixes=mixes, amp=args.amp)
        update(ranks, D, parts["d_opt"], d_loss, 0.0)
        state.batch += 1
        if i % args.n_critic:  # CODE: G's steps follow the first of n_critic batches; in Alg. 1 the last of k
            continue
        with frozen(G, D, beta):  # 3. G's architecture
            mixes = draw(args, ranks, alpha, beta, tau, "g arch", i)
            g_arch = hinge_g(args, ranks, G, D, args.search_batch, "g arch", i, mixes=mixes)
        update(ranks, alpha, parts["alpha_opt"], g_arch, 0.0)
        with frozen(alpha, D, beta):  # 4. G's weights
            mixes = draw(args, ranks, alpha, beta, tau, "g", i)
            g_loss = hinge_g(args, ranks, G, D, args.search_batch, "g", i, mixes=mixes, amp=args.amp)
        update(ranks, G, parts["g_opt"], g_loss, 0.0)
        ema_update(G_ema, G, args.ema)  # CODE: alpha is averaged too
        ema_update(alpha_ema, alpha, args.ema)
        state.step += 1
        if state.step % args.log_every == 0:
            losses = {"loss/d": d_loss, "loss/g": g_loss, "loss/g_arch": g_arch}
            run.log(state.step, **losses | ({"loss/d_arch": d_arch} if dynamic else {}))
        if state.step % args.sample_every == 0:
            run.samples(state.step, grid(args, ranks, G_ema, draw(args, ranks, alpha_ema, None, tau, "grid")[0]))
    report_found(args, run, state)


def draw(
    args: Args, ranks: Ranks, alpha: Logits, beta: Logits | None, tau: float, *name: object
) -> tuple[Mix, Mix | None]:  # fmt: skip
    """Mixing weights of Super-G and Super-D: one draw of the noise for all edges of a net and the whole batch. [code]"""
    return tuple(
        None if logits is None else logits.mix(tau, args.gumbel, stream(args.seed, "gumbel", net, *name, device=ranks.device))
        for net, logits in (("G", alpha), ("D", beta))
    )


def snapshot(args: Args, run: Run, state: State, alpha: Logits, beta: Logits | None, tau: float) -> None:
    """Derive, and write what the search looks like to search.jsonl and genotypes/: p, entropy in nats, changes of ops."""
    row = {"step": state.step, "stage": "search", "batch": state.batch, "tau": tau}
    row |= {key: {} for key in ("probabilities", "entropy", "genotype", "flips")}
    for net, space, logits in (("G", G_SPACE, alpha), ("D", D_SPACE, beta)):
        if logits is None:
            continue
        p = logits.probabilities()
        # Q2 of the authors' code: a softmax over the edges, so that an edge compares ops that were normalised differently
        found = derive(space, logits.probabilities(-2) if net == "D" and args.ref_beta_axis else p)
        before = getattr(state, net) or found
        changes = sum(a != b for rows in zip(before, found, strict=True) for a, b in zip(*rows, strict=True))
        state.flips[net] = state.flips.get(net, 0) + changes
        setattr(state, net, found)
        edges = [
            (c, e, f"{c + 1}/{edge.name}", edge.ops) for c in range(space.cells) for e, edge in enumerate(space.edges_of(c))
        ]
        row["probabilities"][net] = {key: dict(zip(ops, p[c][e].tolist(), strict=False)) for c, e, key, ops in edges}
        row["entropy"][net] = {key: torch.special.entr(p[c][e]).sum().item() for c, e, key, _ in edges}
        row["genotype"][net], row["flips"][net] = found, state.flips[net]
    run.search_row(row)
    run.genotype(state.step, genotype_json(args, state.G, state.D))
    state.derived = state.batch


def evaluate_search(
    args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, G: Generator, G_ema: Generator, alpha: Logits,
    alpha_ema: Logits, state: State, tau: float
) -> None:  # fmt: skip
    """IS and FID of the averages of Super-G and alpha, with noise as in the search. [authors' code]"""
    run.begin("search", "search evaluation", state.step, "search")
    ranks.average_buffers(G)
    ema_update(G_ema, G, 1.0)
    s = score(args, ranks, run, evaluator, G_ema, args.eval_n, lambda k: draw(args, ranks, alpha_ema, None, tau, "eval", k)[0])
    run.evaluated(state.step, s.row(), **{"eval/ema": True, "eval/bn": "running", "eval/what": "Super-G"})
    run.print(f"step {state.step:,} (Super-G): {s}")
    if args.ref_ema_overwrite:  # Q3 of the authors' code: the averages were loaded for the evaluation and stayed
        for net, average in ((G, G_ema), (alpha, alpha_ema)):
            for p, mean in zip(net.parameters(), average.parameters(), strict=True):
                p.data.copy_(mean)
    state.evaluated = state.batch
    run.begin("search", "search", state.step, images_per_step=args.search_batch * args.n_critic)


def report_found(args: Args, run: Run, state: State) -> None:
    """Write the found genotypes: for people, as JSON, and as the authors' .npy."""
    run.begin("derive", "derivation", state.step, "training" if args.phase == "all" else "the end")
    run.genotype(state.step, genotype_json(args, state.G, state.D))
    for net, space in (("G", G_SPACE), ("D", D_SPACE)):
        found = getattr(state, net)
        if found is not None:
            run.print(f"{net} found:\n{table(found, space)}")
            if run.main:
                write_npy(run.dir / f"latest_{net}.npy", space, found)


def genotype_json(args: Args, g: Genotype, d: Genotype | None) -> dict:
    """What genotype.json holds; --genotype reads it back. params, macs: of the networks of the training."""
    shape = (width(args, g), args.z_dim, args.size, args.chunks)
    params, macs = {"G": g_params(g, *shape)}, {"G": g_macs(g, *shape)}
    if d is not None:
        params["D"], macs["D"] = d_cost(d, args.d_ch, args.size)
    return {"method": "adversarialnas", "G": g, "D": d, "params": params, "macs": macs}


def search_random(
    args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, batches: Batches, state: State, saved: dict
) -> None:
    """Random search: genotypes drawn uniformly share the G updates of the search, each trained from scratch; least FID."""
    # DEVIATES 3: the paper gives no procedure, only its budget. --g-params makes all candidates equally large
    share = run.plan[state.stage][1] // args.candidates
    while len(state.candidates) < args.candidates:
        n, fid = len(state.candidates), inf
        state.G = random_genotype(G_SPACE, rng_of(args, "candidate", n))
        if args.candidates > 1:
            nets = gan(args, ranks, state.G, "autogan", "candidate", n)
            restore(saved, **nets)
            saved = {}
            run.keep = checkpoint(state, **nets)
            run.begin("search", f"candidate {n + 1}", state.step, images_per_step=args.d_batch * args.n_critic)
            while state.step < state.began + share:
                run.tick(state.step, f"its score in {state.began + share - state.step} steps")
                losses = train_step(args, ranks, batches, state, **nets)
                if state.step % args.log_every == 0:
                    run.log(state.step, **losses)
            run.begin("search", f"candidate {n + 1} scoring", state.step, "the next candidate")
            ranks.average_buffers(nets["G"])
            ema_update(nets["G_ema"], nets["G"], 1.0)
            s = score(args, ranks, run, evaluator, nets["G_ema"], args.eval_n)
            run.evaluated(state.step, s.row(), **{"eval/ema": True, "eval/bn": "running", "eval/what": f"candidate {n + 1}"})
            run.print(f"candidate {n + 1} of {args.candidates}: {s}")
            fid = s.fid
        state.candidates.append({"genotype": state.G, "fid": fid})
        state.began = state.step
        run.search_row({"step": state.step, "stage": "random", "genotype": {"G": state.G}, "eval/fid": fid})
    state.G = min(state.candidates, key=fid_or_inf)["genotype"]
    report_found(args, run, state)


def fid_or_inf(x: dict) -> float:
    return x["fid"] if isfinite(x["fid"]) else inf


# ---- training from scratch --------------------------------------------------------------------------------------------


def gan(args: Args, ranks: Ranks, g: Genotype, d: DKind, *name: object) -> dict[str, object]:
    """The nets and optimisers of a training, as keywords of train_step."""
    ch = width(args, g)
    G = seeded(args, ranks, lambda: Generator(g, ch, args.z_dim, args.size, args.chunks), "G", *name)
    D = seeded(args, ranks, lambda: make_d(d, args.d_ch, args.size), "D", *name)
    G_ema = deepcopy(G).requires_grad_(False)
    return {"G": G, "D": D, "G_ema": G_ema, "g_opt": adam(G, args.g_lr, args), "d_opt": adam(D, args.d_lr, args)}


def train_step(
    args: Args, ranks: Ranks, batches: Batches, state: State, G: Generator, D: nn.Module, G_ema: Generator,
    g_opt: torch.optim.Optimizer, d_opt: torch.optim.Optimizer
) -> dict[str, Tensor]:  # fmt: skip
    """n_critic steps of D, one of G, and of the average of G. Returns the last losses."""
    for _ in range(args.n_critic):
        real = batches(state.batch)
        if args.half_batch:  # Q4 of the authors' code: since the search was released the other half is unused
            real = real[: len(real) // 2]
        d_loss = hinge_d(args, ranks, G, D, real, "d", state.batch, amp=args.amp)
        update(ranks, D, d_opt, d_loss, args.grad_clip)
        state.batch += 1
    # DEVIATES 4: after the n_critic steps of D; the authors' first G step follows the first batch
    with frozen(D):
        g_loss = hinge_g(args, ranks, G, D, args.g_batch, "g", state.step, amp=args.amp)
    update(ranks, G, g_opt, g_loss, args.grad_clip)
    ema_update(G_ema, G, args.ema)
    state.step += 1
    return {"loss/d": d_loss, "loss/g": g_loss}


def trained_d(args: Args, state: State) -> DKind:
    """The discriminator that the derived generator is trained against."""
    if args.d_genotype == "searched":
        return state.D
    return "autogan" if args.d_genotype == "autogan" else named(args.d_genotype, "D")


def train_gan(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, batches: Batches, state: State, saved: dict) -> None:
    """Train the derived G from scratch; evaluate the average of its weights. [paper §4.1; authors' code]"""
    nets = gan(args, ranks, state.G, trained_d(args, state), "train")
    restore(saved, **nets)
    run.keep = checkpoint(state, **nets)
    if args.compile:
        nets["G"].compile()
        nets["D"].compile()

    epoch = args.epoch_batches or len(batches)
    total = args.train_epochs * epoch // args.n_critic
    every, after = max(1, args.eval_every * epoch // args.n_critic), args.eval_after * epoch // args.n_critic
    run.begin("train", "training", state.step, images_per_step=args.d_batch * args.n_critic)
    while True:
        done = state.step - state.began
        last = done == total
        if state.evaluated < state.step and (done == 0 or last or (done % every == 0 and done > after)):
            what = "untrained" if done == 0 else "last" if last else "training"
            evaluate(args, ranks, run, evaluator, nets["G"], nets["G_ema"], state, what)
        if last:
            break
        run.tick(state.step, f"evaluation in {min(every - done % every, total - done)} steps")
        losses = train_step(args, ranks, batches, state, **nets)
        if state.step % args.log_every == 0:
            run.log(state.step, **losses)
        if (state.step - state.began) % args.sample_every == 0:
            run.samples(state.step, grid(args, ranks, nets["G_ema"]))
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
    s = score(args, ranks, run, evaluator, G_ema, args.eval_n)
    run.evaluated(state.step, s.row(), **row)
    run.samples(state.step, grid(args, ranks, G_ema))
    run.print(f"step {state.step:,} ({what}): {s}")
    weights = {"G": G_ema.state_dict(), "genotype": {"G": state.G, "D": state.D}, "step": state.step, "score": s.row()}
    weights |= {"method": "adversarialnas", "g_ch": G_ema.ch, "z_dim": args.z_dim, "size": args.size, "chunks": args.chunks}
    run.weights("weights.pt", weights)
    if what != "untrained" and (state.best is None or fid_or_inf({"fid": s.fid}) < fid_or_inf(state.best)):
        state.best = {"fid": s.fid, "is": s.is_mean, "is_std": s.is_std, "step": state.step}
        run.weights("weights.best.pt", weights)
    state.evaluated = state.step
    if what == "last":  # CODE reports the lowest FID of 121 evaluations; here both, by their names
        last = {"fid": s.fid, "is": s.is_mean, "is_std": s.is_std, "step": state.step}
        run.result(last=last, best=state.best, n=s.n, net=s.net, ref=s.ref, genotype=genotype_json(args, state.G, state.D))
    run.begin(phase, "training", state.step, images_per_step=args.d_batch * args.n_critic)


def evaluate_weights(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, G: Generator) -> None:
    """--phase eval: IS, FID and a sample grid of the generator in a weights.pt."""
    run.begin("eval", "evaluation", 0, "the end")
    s = score(args, ranks, run, evaluator, G, args.eval_n)
    run.evaluated(0, s.row(), **{"eval/ema": True, "eval/bn": "running", "eval/what": str(args.weights)})
    run.samples(0, grid(args, ranks, G))
    run.print(f"{args.weights}: {s}")
    run.result(last={"fid": s.fid, "is": s.is_mean, "is_std": s.is_std}, n=s.n, net=s.net, ref=s.ref)


# ---- the command ------------------------------------------------------------------------------------------------------


def check(args: Args, world: int) -> None:
    """Refuse what cannot run, before anything is made. UserError names flag, value and remedy."""
    for flag, value in (("--d-batch", args.d_batch), ("--g-batch", args.g_batch), ("--search-batch", args.search_batch)):
        if value % world:
            raise UserError(f"{flag} {value}: not divisible by {world} processes")
    if args.search_batch < 2 * world:
        raise UserError(f"--search-batch {args.search_batch}: is halved on {world} processes; use {2 * world} or more")
    if args.half_batch and args.d_batch < 2 * world:
        raise UserError(f"--d-batch {args.d_batch}: --half-batch needs {2 * world} or more")
    if args.eval_n < IS_SPLITS:
        raise UserError(f"--eval-n {args.eval_n}: the Inception Score has {IS_SPLITS} splits; use {IS_SPLITS} or more")
    if args.chunks == 1:
        raise UserError("--chunks 1: the latent enters two or three cells; use 2 or 3")
    if args.tau_min > args.tau_max:
        raise UserError(f"--tau-min {args.tau_min}: above --tau-max {args.tau_max}; tau falls from that to this")
    if args.phase == "train" and not args.genotype:
        raise UserError(f"--phase train: needs --genotype, one of {', '.join(PUBLISHED_G)} or a file")
    if args.phase == "search" and args.genotype:
        raise UserError(f"--genotype {args.genotype}: skips the search that --phase search asks for; leave one of them out")
    if args.genotype and (args.search == "random" or args.fixed_d != "none"):
        flag = "--search random" if args.search == "random" else f"--fixed-d {args.fixed_d}"
        raise UserError(f"--genotype {args.genotype}: skips the search that {flag} asks for; leave one of them out")
    if args.phase == "eval" and not args.weights:
        raise UserError("--phase eval: needs --weights, a weights.pt of a run")
    if args.weights and args.phase != "eval":
        raise UserError(f"--weights {args.weights}: is evaluated by --phase eval; to train use --genotype")
    if args.search == "random" and args.fixed_d != "none":
        raise UserError(f"--fixed-d {args.fixed_d}: is an opponent of the search, and --search random has none")
    if args.d_genotype == "searched" and not args.genotype and (args.search == "random" or args.fixed_d != "none"):
        raise UserError("--d-genotype searched: this search finds no discriminator; leave out --search random and --fixed-d")


def batch_sizes(args: Args) -> dict[str, int]:
    """Real images of a step, for the batches that the run's stages take: "search", "train"."""
    if args.phase == "eval":
        return {}
    stages = stages_of(args)
    sizes = {} if stages[0] == "train" else {"search": args.search_batch}  # random search counts its updates by them
    return sizes if stages == ["search"] else sizes | {"train": args.d_batch}


def check_sizes(args: Args, images: int, world: int) -> None:
    """The same, for what depends on the data set."""
    if args.z_dim % args.chunks:
        raise UserError(f"--z-dim {args.z_dim}: enters {args.chunks} cells in equal parts; use a multiple of {args.chunks}")
    search = stages_of(args)[0] == "search" and args.phase != "eval"
    halvings = 4 if (search and args.fixed_d in ("none", "super")) or args.d_genotype != "autogan" else 3
    if args.size % 2**halvings:
        raise UserError(f"--size {args.size}: a discriminator here halves it {halvings} times; use a multiple of {2**halvings}")
    for name, batch in batch_sizes(args).items():
        if batch > images:
            flag = "--search-batch" if name == "search" else "--d-batch"
            raise UserError(f"{flag} {batch}: more than the {images} images of the data set; use {images} or fewer")
    for flag, batch in (("--search-batch", args.search_batch),) * search + (("--d-batch", args.d_batch),) * args.half_batch:
        if images % batch and images % batch // world == 1:
            raise UserError(f"{flag} {batch}: leaves a last batch of 1 of {images} images, which cannot be halved; use another")


def first_state(args: Args) -> State:
    """What a new run begins with: the genotypes given. UserError: not genotypes."""
    state = State()
    if args.d_genotype not in ("autogan", "searched"):
        given = named(args.d_genotype, "D")
        if given is None:
            raise UserError(f"--d-genotype {args.d_genotype}: has no discriminator under the key D")
        state.D = given if args.genotype else None  # else the search finds another one
    if args.genotype:
        state.G = named(args.genotype, "G")
        if state.G is None:
            raise UserError(f"--genotype {args.genotype}: has no generator under the key G")
        if args.d_genotype == "searched":
            state.D = named(args.genotype, "D") if Path(args.genotype).suffix == ".json" else None
            if state.D is None:
                raise UserError(f"--d-genotype searched: {args.genotype} holds no discriminator; name one, or use autogan")
    return state


def search_updates(args: Args, batches: Batches) -> int:
    """G updates of the search: one with the first of every n_critic batches, of which the last lot may be short."""
    return -(-search_length(args, batches) // args.n_critic)


def search_length(args: Args, batches: Batches) -> int:
    """D batches of the search. `batches`: of --search-batch images."""
    # CODE: epoch 0 trains nothing. With it, and batches of 100, these are the paper's 2,500 G updates
    return (args.search_epochs - (not args.train_epoch0)) * (args.epoch_batches or len(batches))


def plan_of(args: Args, batches: dict[str, Batches], state: State) -> list[tuple[str, int, float]]:
    """(stage, G updates, MACs of one update, its share of the scoring included) for every stage."""
    shape = (args.z_dim, args.size, args.chunks)
    typical = state.G or named("adversarialnas-g", "G")
    g, d = g_macs(typical, width(args, typical), *shape), d_cost(trained_d(args, state) or "autogan", args.d_ch, args.size)[1]
    # a backward pass costs two forward passes
    step = args.n_critic * args.d_batch * (g + 6 * d) + args.g_batch * (3 * g + 2 * d)
    scored = args.eval_n * (g + INCEPTION_MACS * (args.evaluator == "inception"))
    plan = []
    for name in stages_of(args):
        if name == "train":
            epoch = args.epoch_batches or len(batches["train"])
            steps = args.train_epochs * epoch // args.n_critic
            looks = 1 + max(0, args.train_epochs - args.eval_after) // args.eval_every
            plan.append((name, steps, step + looks * scored / max(steps, 1)))
        elif name == "random":
            steps = search_updates(args, batches["search"]) // args.candidates * args.candidates * (args.candidates > 1)
            plan.append((name, steps, step + args.candidates * scored / max(steps, 1)))
        else:
            steps = search_updates(args, batches["search"])
            super_g = g_macs(None, args.search_g_ch, *shape)
            super_d = d_cost("super" if args.fixed_d == "none" else args.fixed_d, args.search_d_ch, args.size)[1]
            if args.mixed == "merged":  # 41 taps in place of 1 + 9 + 25 + 9 + 25
                super_g, super_d = super_g * 41 / 69, super_d * (41 / 69 if args.fixed_d in ("none", "super") else 1)
            d_updates = 2 if args.fixed_d == "none" else 1  # of beta and of the weights, on half of a batch each
            d_step, g_step = super_g / 2 + 3 * super_d, 3 * super_g + 2 * super_d
            macs = args.search_batch * (args.n_critic * d_updates * d_step + 2 * g_step)
            looks = 2 + (args.search_epochs - 2) // args.search_eval_every if args.search_eval_every else 0
            scored = args.eval_n * (super_g + INCEPTION_MACS * (args.evaluator == "inception"))
            plan.append((name, steps, macs + looks * scored / max(steps, 1)))
    return plan


def check_plan(args: Args, plan: list[tuple[str, int, float]]) -> None:
    """Refuse stages that would score networks without a step of training. UserError names the flag."""
    for name, steps, _ in plan:
        if name == "train" and not steps:
            raise UserError(
                f"--n-critic {args.n_critic}: more than the D batches of all --train-epochs, so G never trains; use fewer"
            )
        if name == "random" and args.candidates > 1 and not steps:
            raise UserError(f"--candidates {args.candidates}: more than the search's G updates, which they share; use fewer")


IS_SPLITS = 10
INCEPTION_MACS = 5.7e9  # of one image at 299 pixels


def sizes(args: Args, state: State) -> dict[str, dict[str, float]]:
    """Bytes in memory that the weights of each stage take, Adam's two moments and a gradient included (x 4)."""
    shape = (args.z_dim, args.size, args.chunks)
    typical = state.G or named("adversarialnas-g", "G")
    g, super_g = (4 * g_params(x, ch, *shape) for x, ch in ((typical, width(args, typical)), (None, args.search_g_ch)))
    d = 4 * d_cost(trained_d(args, state) or "autogan", args.d_ch, args.size)[0]
    opponent = 4 * d_cost("super" if args.fixed_d == "none" else args.fixed_d, args.search_d_ch, args.size)[0]
    train = {"G": 4 * g, "average of G": g, "D": 4 * d}
    made = {"search": {"Super-G": 4 * super_g, "its average": super_g, "its opponent": 4 * opponent}}
    return {name: made.get(name, train) for name in stages_of(args)}


def load_weights(args: Args, device: torch.device) -> tuple[Args, Generator]:
    """The generator in a weights.pt, and the arguments with its widths. UserError: not such a file."""
    try:
        saved = torch.load(args.weights, map_location=device, weights_only=True)
        args = replace(args, **{k: int(saved[k]) for k in ("g_ch", "z_dim", "size", "chunks")})
        genotype = G_SPACE.check(saved["genotype"]["G"], str(args.weights))
        G = Generator(genotype, args.g_ch, args.z_dim, args.size, args.chunks)
        G.load_state_dict(saved["G"])
    except OSError as e:
        raise UserError(f"--weights {args.weights}: {e.strerror}") from None
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"--weights {args.weights}: not the weights.pt of an adversarialnas run ({str(e).splitlines()[0]})"
        ) from None
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
        want_is=args.evaluator == "compact" or args.fid_dims == "2048", ref_n=args.ref_n, splits=IS_SPLITS
    )  # fmt: skip
    data = ranks.first(lambda: load_dataset(args.dataset, args.data_dir, args.size))
    evaluator.use(data)
    args = replace(args, size=data.images.shape[-1])
    args = replace(args, chunks=args.chunks or (2 if args.size == 48 else 3))
    trained = None
    if args.phase == "eval":
        args, trained = load_weights(args, ranks.device)
        if args.size != data.images.shape[-1]:
            raise UserError(f"--weights {args.weights}: makes {args.size} px; use --size {args.size}")
    check_sizes(args, len(data.images), ranks.world)
    state = first_state(args)
    images = data.images.to(ranks.device)
    batches = {k: Batches(images, n, args.seed, ranks.device, ranks.rank, ranks.world) for k, n in batch_sizes(args).items()}
    plan = [] if trained else plan_of(args, batches, state)
    check_plan(args, plan)
    memory = {} if trained else sizes(args, state)
    price_tag = price(args, ranks, plan)
    lines = [f"adversarialnas · {data.name}, {len(data.images):,} images of {args.size} px · {args.preset} · {price_tag}"]
    lines += [data.note] if data.note else []
    for name, parts in memory.items():
        lines.append(f"memory of {name}: {', '.join(f'{what} {n / 1e9:.2f} GB' for what, n in parts.items())}, and activations")
    if args.dry_run:
        print("\n".join(lines))
        return None

    params = genotype_json(args, state.G, state.D)["params"] if state.G else {}
    biggest = max((sum(parts.values()) for parts in memory.values()), default=0)
    with Run(
        __file__, "adversarialnas", asdict(args), ranks, dataset=data.name, digest=data.digest, plan=plan,
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
            name = stages[state.stage]
            stage = {"search": search, "random": search_random, "train": train_gan}[name]
            stage(args, ranks, run, evaluator, batches["search" if name == "search" else "train"], state, saved)
            saved = {}
            if name == "train":
                return state.best
            state.stage, state.began, state.evaluated = state.stage + 1, state.step, -1
        run.result(genotype=genotype_json(args, state.G, state.D))
    return None


if __name__ == "__main__":
    sys.exit(cli(main, Args, PRESETS))
