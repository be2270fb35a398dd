# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch>=2.11", "torchvision>=0.26", "numpy>=2.0", "pillow>=10.3", "scipy>=1.13",
#   "pytorch-fid>=0.3.0", "typer>=0.19", "rich>=14.0", "textual>=8.0", "psutil>=6.0",
#   "nvidia-ml-py>=12.0",
# ]
# ///
"""AdversarialNAS: adversarial architecture search for G and D (Gao et al., CVPR 2020).

Paper: arXiv 1912.02037. Authors' code: chengaopro/AdversarialNAS at d7ea5e0. Details: docs/adversarialnas.md.

Search (Algorithm 1): Super-G and Super-D contain every candidate operation of every edge, mixed by
softmax weights of alpha (G) and beta (D) with Gumbel noise. Each iteration updates beta and then D's
weights; every n_critic-th iteration also updates alpha and then G's weights. All four updates use the
hinge loss of the GAN; no metric is computed in the loop.
Derive: keep the strongest operation of each edge, and make sure that every node has an input.
Then the derived G is trained from scratch against AutoGAN's discriminator (or the searched one).

Published (CIFAR-10, 50,000 images): IS 8.74, FID 10.87 after one GPU day. Not yet run at paper scale here.
All convolutions of a node's outgoing edges are merged into one (`merge`): 60% of the time on a CPU.
Tags: PAPER (specified by the paper), CODE (follows the authors' code), DEVIATES (differs from both).
"""

import random
import sys
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import product
from math import ceil, inf
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from common import gan
from common.cells import (
    CONVS,
    OPS_DOWN,
    OPS_NORMAL,
    OPS_UP,
    AutoGANDiscriminator,
    Conv,
    Cost,
    EdgeSpec,
    Genotype,
    Linear,
    Space,
    add,
    conv,
    conv2d,
    conv_cost,
    init_weights,
    named,
    op_cost,
    params_and_macs,
    table,
)
from common.cli import CommonArgs, cli, opt
from common.data import load_dataset
from common.files import UserError, replacing, rng_of, stream
from common.gan import Job, Pair, ema_update, fid_or_inf, frozen, latent, pair_of, seeded, update
from common.graph import Graph
from common.metrics import Evaluator
from common.ranks import start_ranks
from common.rehearsal import dry_run
from common.run import Run
from common.spectral import normalise_together, normalised_once

# ---- arguments -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Args(CommonArgs):
    d_genotype: str = opt(
        "autogan", "D to train against: autogan, a name, a file, or searched: the D found with G. [paper §4.1]", "Run"
    )

    search: Literal["adversarial", "random"] = opt(
        "adversarial", "random: the best of --candidates random genotypes. [paper Table 3]", "Search"
    )
    fixed_d: Literal["none", "sngan", "autogan", "super"] = opt(
        "none", "SingalNAS: search only G, against this D; super: beta frozen. [paper Table 3]", "Search"
    )
    candidates: int = opt(5, "Genotypes in a random search; 1: no comparison. [ours]", "Search", min=1)
    search_epochs: int = opt(25, "Search epochs; the first trains nothing. [authors' code]", "Search", min=2)
    search_batch: int = opt(
        120, "Images per G step and per D step (half beta, half weights). [code; paper 100]", "Search", min=2
    )
    search_g_ch: int = opt(160, "Channels of Super-G. [authors' code]", "Search", min=1)
    search_d_ch: int = opt(80, "Channels of Super-D or the fixed D. [authors' code]", "Search", min=1)
    arch_lr: float = opt(3e-4, "Adam learning rate of alpha, beta. [paper §4.1]", "Search", min=0)
    arch_beta1: float = opt(0.5, "Adam beta1 of alpha, beta. [paper §4.1]", "Search", min=0, max=1)
    arch_beta2: float = opt(0.999, "Adam beta2 of alpha, beta. [authors' code; paper 0.9]", "Search", min=0, max=1)
    arch_decay: float = opt(1e-4, "L2 penalty on alpha and beta. [paper §4.1]", "Search", min=0)
    gumbel: Literal["prob", "log", "off"] = opt(
        "prob", "Noise on probabilities (paper), log-probabilities (Gumbel-softmax) or off. [paper Eq. 2]", "Search"
    )
    tau_max: float = opt(5.0, "Temperature at epoch 0. [authors' code]", "Search", min=1e-3)
    tau_min: float = opt(0.1, "Temperature at the last epoch. [authors' code]", "Search", min=1e-3)
    mixed: Literal["merged", "plain"] = opt("merged", "merged: fused convolutions; plain: op by op. [ours]", "Search")
    derive_every: int = opt(26, "D batches between derived genotypes. [authors' code]", "Search", min=1)
    search_eval_every: int = opt(10, "Epochs between scores of Super-G; 0: none. [authors' code]", "Search", min=0)
    ref_ema_overwrite: bool = opt(False, "Bug: evaluation replaces Super-G by its EMA. [authors' code]", "Search")

    train_epochs: int = opt(600, "Epochs of training from scratch. [authors' code; paper 500]", "Train", min=1)
    g_ch: int = opt(256, "Channels of G; STL-10: 270. [authors' code]")
    g_params: float = opt(0.0, "Parameter count to match by --g-ch; 0: off. [paper §4.2.3]", "Train", min=0, max=1e9)
    z_dim: int = opt(120, "Latent dimension, split over --chunks. [authors' code]", "Train", min=2)
    chunks: int = opt(0, "Latent parts, one per cell; 0: 3, at 48 px 2. [authors' code]", "Train", min=0, max=3)
    g_batch: int = opt(80, "Latents per G step; STL-10: 256. [authors' code; paper 40]")
    d_batch: int = opt(40, "Real images per D step; STL-10: 128. [authors' code; paper 20]")
    grad_clip: float = opt(0.0, "Gradient norm limit in training; 0: none; STL-10: 50. [EAGAN's code]", "Train", min=0)
    amp: bool = opt(False, "bfloat16 autocast for G and D, except when updating alpha and beta. [ours]")

    def shape(self, ch: int) -> tuple[int, int, int, int]:
        """Generator arguments after the genotype: channels, latent dimension, image side, latent parts."""
        return ch, self.z_dim, self.size, self.chunks

    def tau(self, epoch: int) -> float:
        """Temperature, decaying exponentially from tau_max to tau_min. [authors' code]"""
        part = epoch / self.search_epochs
        return max(self.tau_min, self.tau_max * (self.tau_min / self.tau_max) ** part)

    @property
    def search_d(self) -> Literal["sngan", "autogan"] | None:
        """The search's discriminator: a fixed one, or Super-D (None)."""
        return self.fixed_d if self.fixed_d in ("sngan", "autogan") else None


PRESETS = {
    "paper": {},
    "quick": dict(
        preset="quick", epoch_batches=60, candidates=3, search_eval_every=24,
        train_epochs=400, eval_n=10_000, eval_every=100, sample_every=500,
    ),
    "smoke": dict(
        preset="smoke", dataset="shapes", evaluator="compact", search_epochs=5, epoch_batches=12,
        search_batch=16, search_g_ch=8, search_d_ch=8, derive_every=12, search_eval_every=4,
        arch_lr=3e-3, candidates=2, g_ch=16, d_ch=16, d_batch=32, g_batch=32, n_critic=1, g_lr=5e-4,
        d_lr=5e-4, ema=0.95, train_epochs=12, eval_n=1000, eval_every=6, sample_every=50, log_every=10,
    ),
}  # fmt: skip

# ---- losses (paper §4.1: hinge), on the scores of D, (B, 1) --------------------------------------


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[relu(1 - D(x))] + E[relu(1 + D(G(z)))]."""
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def g_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """-E[D(G(z))]. real: scores of real images, for relativistic losses; unused here."""
    return -fake.mean()


# ---- search space (paper §3.3, Fig. 2) -----------------------------------------------------------

NORMAL, UP, DOWN = ("none", *OPS_NORMAL), tuple(OPS_UP), tuple(OPS_DOWN)
G_OPS = [OPS_UP] * 2 + [OPS_NORMAL] * 5  # for each edge: op name -> module
D_OPS = [OPS_NORMAL] * 5 + [OPS_DOWN] * 2
G_SPACE = Space(
    "G",
    cells=3,
    edges=(
        EdgeSpec("0->1", UP), EdgeSpec("0->2", UP),
        EdgeSpec("1->3", NORMAL), EdgeSpec("2->3", NORMAL),
        EdgeSpec("1->4", NORMAL), EdgeSpec("2->4", NORMAL), EdgeSpec("3->4", NORMAL)
    ),
    nodes={3: (2, 3), 4: (4, 5, 6)},
)  # fmt: skip
D_EDGES = (
    EdgeSpec("0->1", NORMAL), EdgeSpec("0->2", NORMAL), EdgeSpec("0->3", NORMAL),
    EdgeSpec("1->2", NORMAL), EdgeSpec("1->3", NORMAL),
    EdgeSpec("2->4", DOWN), EdgeSpec("3->4", DOWN)
)  # fmt: skip
D_SPACE = Space(
    "D",
    cells=4,
    edges=D_EDGES,
    # CODE: only convolutions on the edges from the image, which has 3 channels; not in the paper's text
    first=(*(EdgeSpec(edge.name, tuple(CONVS)) for edge in D_EDGES[:3]), *D_EDGES[3:]),
    nodes={2: (1, 3), 3: (2, 4), 1: (0,)},
    leaving={1: (3, 4)},
)

PUBLISHED = {  # the authors' integer codes, one row per cell, one column per edge
    "G": {
        "adversarialnas-g": [[1, 1, 1, 0, 3, 3, 1], [1, 1, 0, 1, 3, 3, 3], [0, 1, 0, 3, 3, 0, 3]],  # paper Table 1
        "animation-g": [[1, 1, 3, 3, 3, 3, 1], [1, 1, 2, 2, 3, 3, 3], [1, 1, 3, 3, 3, 3, 3]],  # CODE: another run
        "eagan-g": [[1, 1, 1, 0, 2, 3, 1], [1, 1, 0, 1, 3, 0, 5], [0, 1, 0, 3, 0, 0, 3]],  # EAGAN, ECCV 2022
        "mmd-g": [[0, 1, 3, 4, 6, 4, 1], [1, 1, 4, 0, 5, 5, 3], [0, 1, 4, 5, 6, 4, 4]],  # ICASSP 2024
    },
    "D": {
        "animation-d": [[2, 0, 1, 4, 4, 3, 3], [4, 1, 0, 0, 3, 5, 3], [1, 1, 1, 5, 6, 5, 5], [5, 0, 0, 1, 1, 1, 1]],
    },
}


def random_genotype(space: Space, rng: random.Random) -> Genotype:
    """Sample uniformly from the valid genotypes."""
    rows = []
    while len(rows) < space.cells:
        row = tuple(rng.choice(edge.ops) for edge in space.edges_of(len(rows)))
        if not space.row_error(row):
            rows.append(row)
    return tuple(rows)


# ---- continuous relaxation (paper §3.2) ----------------------------------------------------------

CellMix = dict[str, dict[str, Tensor]]  # edge -> op -> weight: mix["1->3"]["conv_3x3"]
Mix = list[CellMix]  # one per cell
MERGED = ("conv_1x1", "conv_3x3", "conv_5x5", "dil_conv_3x3", "dil_conv_5x5")  # handled by `merge`


class Logits(nn.Module):
    """alpha of G or beta of D: one logit for each op of each edge of each cell.

    Edges with the same number of ops share a table (cells, edges, ops). G: (3, 2, 3) and (3, 5, 7), 123
    logits. D: (4, 5, 7) and (4, 2, 6), 188 logits, six of them unused: three edges of cell 1 have 5 ops
    instead of 7. [authors' code]
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space, self.names = space, {}  # names: number of ops -> edges of that table
        for column, edge in enumerate(space.edges):
            length = max(len(space.edges_of(cell)[column].ops) for cell in range(space.cells))
            self.names.setdefault(length, []).append(edge.name)
        shapes = [(space.cells, len(names), length) for length, names in self.names.items()]
        self.tables = nn.ParameterList(1e-3 * torch.randn(shape) for shape in shapes)

    def rows(self, tables: Iterable) -> list[dict[str, Any]]:
        """[cell][edge]: its row, including unused logits. tables: shaped like self.tables, or nested lists."""
        cells = [{} for _ in range(self.space.cells)]
        for names, numbers in zip(self.names.values(), tables, strict=True):
            for cell, rows in zip(cells, numbers, strict=True):
                cell.update(zip(names, rows, strict=True))
        return cells

    def by_op(self, tables: Iterable) -> list[dict[str, dict[str, Any]]]:
        """[cell][edge][op]: its value, without unused logits."""
        found = []
        for cell, rows in enumerate(self.rows(tables)):
            edges = self.space.edges_of(cell)
            found.append({e.name: dict(zip(e.ops, rows[e.name][: len(e.ops)], strict=True)) for e in edges})
        return found

    def noise(self, job: Job, *name: object) -> list[Tensor]:
        """o ~ Gumbel(0, 1), shaped like the tables. name: its random stream."""
        g = stream(job.args.seed, "gumbel", self.space.name, *name, device=job.ranks.device)
        return [-torch.empty_like(logits).exponential_(generator=g).log() for logits in self.tables]

    def mix(self, job: Job, tau: float | Tensor, noise: list[Tensor]) -> Mix:
        """Mixing weights, with one noise sample per edge for the whole batch."""
        pairs = zip(self.tables, noise, strict=True)
        return self.by_op(mix_weights(logits, tau, job.args.gumbel, o) for logits, o in pairs)

    def probabilities(self) -> list[dict[str, dict[str, float]]]:
        """softmax(alpha), [cell][edge][op]."""
        return self.by_op(logits.softmax(-1).tolist() for logits in self.tables)

    def entropy(self) -> list[dict[str, float]]:
        """Entropy of softmax(alpha) in nats, [cell][edge], including unused logits."""
        cells = self.rows(logits.detach().softmax(-1).cpu() for logits in self.tables)
        return [{edge: torch.special.entr(p).sum().item() for edge, p in rows.items()} for rows in cells]


def mix_weights(logits: Tensor, tau: float | Tensor, form: str, gumbel: Tensor) -> Tensor:
    """softmax((p + o) / tau) over the last axis, p = softmax(logits), o = gumbel ~ Gumbel(0, 1). [paper Eq. 2]

    form "log": log p instead of p, the standard Gumbel-softmax; "off": p itself. The noise has a standard
    deviation of 1.28 while p is in 0..1: in the paper's form, an op with p = 1 is the strongest of seven
    in only 31% of the samples.
    """
    if form == "off":
        return logits.softmax(-1)
    p = logits.softmax(-1) if form == "prob" else logits.log_softmax(-1)
    return ((p + gumbel) / tau).softmax(-1)


def derive(space: Space, p: list[dict[str, dict[str, float]]]) -> Genotype:
    """Keep the strongest op of each edge, then repair nodes without an input. [authors' code]

    p: [cell][edge][op]. For such a node, the incoming edge with the smallest p(none), the first one if
    equal, gets its strongest op other than none.
    """
    names, genotype = [edge.name for edge in space.edges], []
    for cell in p:
        row = [max(cell[name], key=cell[name].get) for name in names]
        for node, columns in space.nodes.items():
            if space.starved(row, node):
                revived = min(columns, key=lambda column: cell[names[column]]["none"])
                others = {op: value for op, value in cell[names[revived]].items() if op != "none"}
                row[revived] = max(others, key=others.get)
        genotype.append(tuple(row))
    return tuple(genotype)


# ---- networks (paper §3.3; sizes: authors' code) -------------------------------------------------

# offsets of a merged kernel's taps from its centre: dense 5x5, outer rows 2x5, outer columns 3x2
PLACES = [*product(range(-2, 3), repeat=2), *product((-4, 4), range(-4, 5, 2)), *product((-2, 0, 2), (-4, 4))]


class MixedEdge(nn.ModuleDict):
    """Ops of an edge by name: all in a supernet; one, or zero for "none", in a derived network."""

    def __init__(self, name: str, ops: dict[str, nn.Module]) -> None:
        super().__init__(ops)
        self.name = name

    def forward(self, x: Tensor, mix: CellMix | None) -> Tensor | None:
        """sum_k w_k op_k(x) [paper Eq. 1]; without a mix, the derived op, or None for "none"."""
        if mix is None:
            ops = list(self.values())
            return ops[0](x) if ops else None
        return add(*(mix[self.name][name] * op(x) for name, op in self.items()))

    @staticmethod
    @lru_cache
    def placement(ops: tuple[str, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """(ops, 41 places, taps of all ops): 1 where a tap of an op has its place, in the op's matrix."""
        taps = []
        for n, op in enumerate(ops):
            kernel, dilation = CONVS[op]
            reach = range(-dilation * (kernel // 2), dilation * (kernel // 2) + 1, dilation)
            taps += [(n, PLACES.index(offset)) for offset in product(reach, repeat=2)]
        found = torch.zeros(len(ops), len(PLACES), len(taps), dtype=dtype)
        found[[n for n, _ in taps], [place for _, place in taps], range(len(taps))] = 1
        return found.to(device)


def merge(edges: Sequence[MixedEdge], mix: CellMix) -> list[Tensor]:
    """Merge the weighted convolutions of edges, each into one kernel of three parts, and a bias.

    Convolution is linear in its kernel: sum_k w_k conv(x, K_k) = conv(x, sum_k w_k pad(K_k)). The merged
    kernel has 41 taps: a dense 5x5, which covers the 1x1, 3x3, 5x5, the dilated 3x3 and the centre of
    the dilated 5x5; and the outer ring of the dilated 5x5, at offset 4: its rows dy = -4, 4 as 2x5, the
    rest of its columns dx = -4, 4 as 3x2. [ours; measured: benchmark/mixed_edge.py] One matrix product
    weights and places all taps: kernel by kernel, a search update took 33,300 more launches on a GPU.
    """
    ops = tuple(op for op in MERGED if op in edges[0])  # on down edges without conv_1x1
    convs = [edge[op].conv for edge in edges for op in ops]
    w = torch.stack([mix[edge.name][op] for edge in edges for op in ops]).view(len(edges), -1)
    places = MixedEdge.placement(ops, w.dtype, w.device)
    weighted = (w @ places.flatten(1)).view(len(edges), *places.shape[1:])
    taps = torch.cat([conv.weight.permute(0, 2, 3, 1).flatten(1) for conv in convs], 1)
    merged = weighted @ taps.view(len(taps), len(edges), places.shape[2], -1)  # (outputs, edges, 41, inputs)
    parts = merged.permute(1, 0, 3, 2).flatten(0, 1).split((25, 10, 6), 2)
    kernels = [part.unflatten(2, shape) for part, shape in zip(parts, ((5, 5), (2, 5), (3, 2)), strict=True)]
    biases = torch.stack([conv.bias for conv in convs]).view(len(edges), len(ops), -1)
    return [*kernels, (w[:, None] @ biases).flatten()]


def leave(
    x: Tensor | None, edges: Sequence[MixedEdge], mix: CellMix | None, merged: bool, stride: int = 1, relu: bool = True
) -> list[Tensor | None]:
    """Outputs of a node's outgoing edges: weighted by the mix or, without one, of their derived ops.

    merged: compute all convolutions of all these edges as one wide convolution in three parts. They
    share one ReLU and one input, so a node's activation is stored once for the backward pass instead
    of once per op. relu: False for the image.
    """
    if x is None:
        return [None] * len(edges)
    if mix is None or not merged:
        return [edge(x, mix) for edge in edges]
    source = x.relu() if relu else x
    with torch.autocast(x.device.type, enabled=False):  # kernels and spectral norms in float32
        dense, rows, columns, bias = merge(edges, mix)
    out = F.conv2d(source, dense, bias, stride, padding=2)
    if max(x.shape[-2:]) > 4:  # on smaller maps the ring only covers padding
        out = out + conv2d(source, rows, None, stride, padding=(4, 4), dilation=(8, 2))
        out = out + conv2d(source, columns, None, stride, padding=(2, 4), dilation=(2, 8))
    carried = []
    for edge, y in zip(edges, out.chunk(len(edges), 1), strict=True):
        others = (mix[edge.name][op] * edge[op](x) for op in edge if op not in MERGED)
        carried.append(add(y, *others))  # identity or pooling
    return carried


class UpCell(nn.Module):
    """x: (B, C, H, W), skips: earlier cells' node 3 -> node 3 and node 4, both (B, C, 2H, 2W)."""

    def __init__(self, ch: int, genotype: Genotype | None, cell: int, merged: bool = True) -> None:
        super().__init__()
        self.edges = nn.ModuleList()
        for column, (edge, ops) in enumerate(zip(G_SPACE.edges, G_OPS, strict=True)):
            held = {op: ops[op](ch) for op in G_SPACE.candidates(genotype, cell, column)}
            self.edges.append(MixedEdge(edge.name, held))
        self.skips = nn.ModuleList(Conv(ch, ch, 1) for _ in range(cell))
        self.resize = "bilinear" if cell == 1 else "nearest"
        self.merged = merged

    def forward(self, x: Tensor, mix: CellMix | None, skips: list[Tensor]) -> tuple[Tensor, Tensor]:
        e01, e02, e13, e23, e14, e24, e34 = self.edges
        # derived network: skip unused nodes
        node1 = e01(x, mix) if len(e13) or len(e14) else None
        node2 = e02(x, mix) if len(e23) or len(e24) else None
        x13, x14 = leave(node1, (e13, e14), mix, self.merged)
        x23, x24 = leave(node2, (e23, e24), mix, self.merged)
        node3 = add(x13, x23)
        for to_skip, skip in zip(self.skips, skips, strict=True):
            # 1x1 first: it commutes with resizing. CODE: later cells get node 3 including these skips,
            # because the authors add them in place
            node3 = node3 + F.interpolate(to_skip(skip), size=node3.shape[-2:], mode=self.resize)
        (x34,) = leave(node3, (e34,), mix, self.merged)
        return node3, add(x14, x24, x34)


class Generator(nn.Module):
    """z: (B, z_dim) -> (B, 3, size, size) in [-1, 1]. genotype None: Super-G, forward takes a mix."""

    def __init__(
        self, genotype: Genotype | None, ch: int = 256, z_dim: int = 120, size: int = 32, chunks: int = 3,
        merged: bool = True
    ) -> None:  # fmt: skip
        super().__init__()
        self.genotype, self.ch, self.bottom = genotype, ch, size // 8
        widths = [self.bottom * 2**i for i in range(chunks)]
        # CODE: each cell gets a part of z, for STL-10 only the first two cells; not in the paper
        self.latent = nn.ModuleList(nn.Linear(z_dim // chunks, ch * w * w) for w in widths)
        self.cells = nn.ModuleList(UpCell(ch, genotype, i, merged) for i in range(3))
        self.bn = nn.BatchNorm2d(ch)  # the only normalisation in G
        self.to_rgb = Conv(ch, 3, 3, padding=1)
        init_weights(self)

    def forward(self, z: Tensor, mix: Mix | None = None) -> Tensor:
        parts, skips, x = z.chunk(len(self.latent), dim=1), [], 0
        for i, cell in enumerate(self.cells):
            if i < len(self.latent):
                width = self.bottom * 2**i
                part = self.latent[i](parts[i]).view(-1, self.ch, width, width)
                x = x + part.contiguous(memory_format=torch.channels_last)
            skip, x = cell(x, mix and mix[i], skips)
            skips.append(skip)
        return self.to_rgb(self.bn(x).relu()).tanh()

    @classmethod
    def saved(cls, weights: dict) -> "Generator":
        """Build the generator of a weights.pt; its weights are not loaded."""
        genotype = G_SPACE.check(weights["genotype"]["G"], "genotype")
        return cls(genotype, *(int(weights[k]) for k in ("g_ch", "z_dim", "size", "chunks")))

    @staticmethod
    def cost(genotype: Genotype | None, ch: int = 256, z_dim: int = 120, size: int = 32, chunks: int = 3) -> Cost:
        """Cost of the generator with these arguments, or of Super-G (None)."""
        total = Cost(2 * ch) + conv_cost(ch, 3, 3, size)
        for i in range(chunks):
            total += conv_cost(z_dim // chunks, ch * (size // 8 * 2**i) ** 2, 1, 1)
        for cell in range(3):
            for _ in range(cell):
                total += conv_cost(ch, ch, 1, size // 4 * 2**cell)
        for cell, column, op in G_SPACE.held(genotype):
            total += op_cost(G_OPS[column][op], ch, size // 4 * 2**cell)
        return total


def g_shape(args: Args, genotype: Genotype) -> tuple[int, int, int, int]:
    """args.shape for training, with --g-ch channels or those that come closest to --g-params."""

    def params(ch: int) -> int:
        return Generator.cost(genotype, *args.shape(ch)).params

    if not args.g_params:
        return args.shape(args.g_ch)
    below = max(1, bisect(range(1, 1 << 15), args.g_params, key=params))  # the largest that does not exceed it
    return args.shape(min(below, below + 1, key=lambda ch: abs(params(ch) - args.g_params)))


class DownCell(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2). The input of the first cell is the image: no ReLU there."""

    def __init__(self, ch: int, genotype: Genotype | None, cell: int, merged: bool = True) -> None:
        super().__init__()
        self.from_image, self.merged = cell == 0, merged
        self.edges = nn.ModuleList()
        for column, edge in enumerate(D_SPACE.edges_of(cell)):
            image = self.from_image and column < 3
            ops = D_SPACE.candidates(genotype, cell, column)
            self.edges.append(MixedEdge(edge.name, {op: self.op(op, ch, column, image) for op in ops}))

    @staticmethod
    def op(name: str, ch: int, column: int, image: bool) -> nn.Module:
        """Build an op with spectrally normalised convolutions."""
        op = OPS_NORMAL[name](ch, relu=False) if image else D_OPS[column][name](ch)
        if name in CONVS:
            op.conv = conv(3 if image else ch, ch, name, stride=2 if column > 4 else 1, sn=True)
        else:
            for own in [m for m in op.modules() if isinstance(m, nn.Conv2d)]:
                spectral_norm(own)
        return op

    def forward(self, x: Tensor, mix: CellMix | None) -> Tensor:
        e01, e02, e03, e12, e13, e24, e34 = self.edges
        x01, x02, x03 = leave(x, (e01, e02, e03), mix, self.merged, relu=not self.from_image)
        x12, x13 = leave(x01, (e12, e13), mix, self.merged)
        (x24,) = leave(add(x02, x12), (e24,), mix, self.merged, stride=2)
        (x34,) = leave(add(x03, x13), (e34,), mix, self.merged, stride=2)
        return x24 + x34


class Discriminator(nn.Module):
    """x: (B, 3, H, W) -> (B, 1). genotype None: Super-D, forward takes a mix."""

    def __init__(self, genotype: Genotype | None, ch: int = 128, merged: bool = True) -> None:
        super().__init__()
        self.cells = nn.ModuleList(DownCell(ch, genotype, i, merged) for i in range(4))
        self.out = spectral_norm(Linear(ch, 1, bias=False))
        normalise_together(self)

    def forward(self, x: Tensor, mix: Mix | None = None) -> Tensor:
        for i, cell in enumerate(self.cells):
            x = cell(x, mix and mix[i])
        return self.out(x.relu().sum(dim=(2, 3)))  # CODE: a sum, so it grows with the image

    @staticmethod
    def cost(genotype: Genotype | None, ch: int = 128, size: int = 32) -> Cost:
        total = Cost(ch, ch)
        for cell, column, op in D_SPACE.held(genotype):
            side = size // 2 ** (cell + 1 if column > 4 else cell)
            if cell == 0 and column < 3:
                total += conv_cost(3, ch, CONVS[op][0], side)
            else:
                total += op_cost(D_OPS[column][op], ch, side)
        return total


class SNGANDiscriminator(nn.Module):
    """SN-GAN's plain discriminator, x: (B, 3, size, size) -> (B, 1). [SN-GAN Table 3]

    Alternating 3x3 stride-1 and 4x4 stride-2 convolutions with spectral norm; 64 to 512 channels for ch 128.
    """

    def __init__(self, ch: int = 128, size: int = 32) -> None:
        super().__init__()
        layers = []
        for c_in, c_out, down in self.blocks(ch):
            layers += [spectral_norm(Conv(c_in, c_out, 3, padding=1)), nn.LeakyReLU(0.1)]
            if down:
                layers += [spectral_norm(Conv(c_out, c_out, 4, 2, padding=1)), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers)
        self.out = spectral_norm(Linear(4 * ch * (size // 8) ** 2, 1))
        normalise_together(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x).flatten(1))

    @staticmethod
    def blocks(ch: int) -> list[tuple[int, int, bool]]:
        """(input channels, output channels, whether a 4x4 halves the size) per block."""
        return [(3, ch // 2, True), (ch // 2, ch, True), (ch, 2 * ch, True), (2 * ch, 4 * ch, False)]

    @staticmethod
    def cost(ch: int = 128, size: int = 32) -> Cost:
        total, side = conv_cost(4 * ch * (size // 8) ** 2, 1, 1, 1), size
        for c_in, c_out, down in SNGANDiscriminator.blocks(ch):
            total += conv_cost(c_in, c_out, 3, side)
            if down:
                side //= 2
                total += conv_cost(c_out, c_out, 4, side)
        return total


DKind = Genotype | Literal["autogan", "sngan"] | None  # discriminator specification; None: Super-D
Net = Callable[[Tensor], Tensor]  # G or D with a fixed mix


def make_d(kind: DKind, ch: int, size: int, merged: bool = True) -> nn.Module:
    """Build a discriminator: of a genotype, AutoGAN's, SN-GAN's, or Super-D (None)."""
    if kind == "autogan":
        return AutoGANDiscriminator(ch)
    return SNGANDiscriminator(ch, size) if kind == "sngan" else Discriminator(kind, ch, merged)


def d_cost(kind: DKind, ch: int, size: int) -> Cost:
    if kind == "autogan":
        return AutoGANDiscriminator.cost(ch, size)
    return SNGANDiscriminator.cost(ch, size) if kind == "sngan" else Discriminator.cost(kind, ch, size)


# ---- search (Algorithm 1) ------------------------------------------------------------------------


@dataclass
class State(gan.Progress):
    """State of a run besides the networks."""

    derived: int = -1  # batch of the last snapshot
    scored: int = -1  # batch of the last evaluation of Super-G
    flips: dict[str, int] = field(default_factory=dict)  # number of op changes between snapshots
    candidates: list[dict] = field(default_factory=list)  # random search: genotype and FID of those done
    G: Genotype | None = None  # from the last snapshot, or given
    D: Genotype | None = None  # from the last snapshot, or given
    given_d: DKind = None  # --d-genotype; None: use the searched D

    @property
    def opponent(self) -> DKind:
        """Discriminator to train against; None: not found yet."""
        return self.given_d or self.D

    def stand_ins(self) -> tuple[Genotype, DKind]:
        """G and its opponent; published ones, if not found yet."""
        g = self.G or named("adversarialnas-g", G_SPACE, PUBLISHED)
        return g, self.opponent or named("animation-d", D_SPACE, PUBLISHED)


class Supernets(Pair):
    """Everything that the search trains: Super-G with alpha, and Super-D with beta or a fixed D."""

    def __init__(self, job: Job) -> None:
        args, merged = job.args, job.args.mixed == "merged"
        G = seeded(job, lambda: Generator(None, *args.shape(args.search_g_ch), merged), "super-g")
        D = seeded(job, lambda: make_d(args.search_d, args.search_d_ch, args.size, merged), "super-d")
        super().__init__(**vars(pair_of(job, G, D)))
        self.alpha = seeded(job, lambda: Logits(G_SPACE), "alpha")
        self.alpha_opt = arch_adam(job, self.alpha)
        self.beta = self.beta_opt = None  # without Super-D
        if args.search_d is None:
            self.beta = seeded(job, lambda: Logits(D_SPACE), "beta")
            self.beta_opt = arch_adam(job, self.beta)
        self.grads: dict[str, Tensor] = {}  # gradient norms in the latest updates of alpha and beta
        self.G_ema, self.alpha_ema = (deepcopy(net).requires_grad_(False) for net in (G, self.alpha))
        self.first_alpha, self.first_beta = deepcopy(self.alpha), deepcopy(self.beta)

    def draw(self, job: Job, n: int, *name: object) -> tuple[Tensor, list[list[Tensor]]]:
        """n latents, and the noise of `mixed`: on alpha and, for real images and for fakes, on beta."""
        of_beta = [self.beta.noise(job, *name, what) for what in ("real", "fake")] if self.beta else []
        return latent(job, n, *name), [self.alpha.noise(job, *name), *of_beta]

    def mixed(self, job: Job, tau: float | Tensor, noise: list[list[Tensor]]) -> tuple[Net, Net, Net | None]:
        """G and D with sampled mixes, and D with another sample for the fakes; None: the D is fixed and has no mix."""
        G = partial(self.G, mix=self.alpha.mix(job, tau, noise[0]))
        if self.beta is None:
            return G, self.D, None
        D, fake_D = (partial(self.D, mix=self.beta.mix(job, tau, o)) for o in noise[1:])
        return G, D, fake_D

    def d_steps(self, job: Job, real: Tensor, tau: float | Tensor, for_beta: tuple, for_d: tuple) -> dict[str, Tensor]:
        """Algorithm 1: the updates of beta, unless D is fixed, and of D, on a half of the images each.
        for_beta, for_d: from `draw`. Returns the losses, and the norm of beta's gradient."""
        # PAPER Alg. 1, CODE: architecture before weights, so it uses the weights of the previous step.
        # Always in float32, because its gradients may be as small as 1e-7
        half, found = len(real) // 2, {}
        if for_beta:  # 1. the architecture of D
            with frozen(self.alpha, self.D):
                G, D, fake_D = self.mixed(job, tau, for_beta[1])
                loss = d_pass(G, D, real[half:], for_beta[0], fake_D)
            update(job, self.beta, self.beta_opt, loss)
            found = {"loss/d_arch": loss.detach(), "grad/beta": gan.grad_norm(self.beta)}
        with frozen(self.alpha, self.beta), job.autocast():  # 2. the weights of D
            G, D, fake_D = self.mixed(job, tau, for_d[1])
            loss = d_pass(G, D, real[:half], for_d[0], fake_D)
        update(job, self.D, self.d_opt, loss)
        return {"loss/d": loss.detach()} | found

    def g_steps(self, job: Job, tau: float | Tensor, for_alpha: tuple, for_g: tuple) -> dict[str, Tensor]:
        """Algorithm 1: the updates of alpha and of G, then of their EMAs. for_alpha, for_g: from `draw`.
        Returns the losses, and the norm of alpha's gradient."""
        with frozen(self.G, self.D, self.beta):  # 3. the architecture of G
            G, D, _ = self.mixed(job, tau, for_alpha[1])
            arch_loss = g_pass(G, D, for_alpha[0])
        update(job, self.alpha, self.alpha_opt, arch_loss)
        grad = gan.grad_norm(self.alpha)
        with frozen(self.alpha, self.D, self.beta), job.autocast():  # 4. the weights of G
            G, D, _ = self.mixed(job, tau, for_g[1])
            loss = g_pass(G, D, for_g[0])
        update(job, self.G, self.g_opt, loss)
        ema_update(self.G_ema, self.G, job.args.ema)  # CODE: EMA of alpha, too
        ema_update(self.alpha_ema, self.alpha, job.args.ema)
        return {"loss/g": loss.detach(), "loss/g_arch": arch_loss.detach(), "grad/alpha": grad}

    def averaged(self, job: Job, tau: float) -> gan.Generate:
        """Generate images with the EMA of Super-G and alpha, with the same noise as in the search."""

        def images(z: Tensor, k: int | str) -> Tensor:
            name = ("grid",) if k == "grid" else ("eval", k)
            return self.G_ema(z, self.alpha_ema.mix(job, tau, self.alpha_ema.noise(job, *name)))

        return images


def arch_adam(job: Job, logits: Logits) -> torch.optim.Adam:
    """Optimiser of alpha or beta; the decay is Adam's L2 penalty."""
    lr, decay, betas = job.args.arch_lr, job.args.arch_decay, (job.args.arch_beta1, job.args.arch_beta2)
    return torch.optim.Adam(logits.parameters(), lr, betas=betas, weight_decay=decay)


def d_pass(G: Net, D: Net, real: Tensor, z: Tensor, fake_D: Net | None = None) -> Tensor:
    """Loss of D on real images and equally many fakes.

    fake_D: D with the mix for the fakes; None: they go through D in one pass with the real images.
    """
    with torch.no_grad():
        fake = G(z).to(real.dtype)
    # DEVIATES 1: the kernels are normalised once, with one power iteration of spectral norm; CODE: once a pass
    if fake_D is None:
        of_real, of_fake = D(torch.cat([real, fake])).chunk(2)
    else:  # CODE: each pass has its own noise sample
        with normalised_once(D.func):  # both are the same network
            of_real, of_fake = D(real), fake_D(fake)
    return d_loss(of_real.float(), of_fake.float())


def g_pass(G: Net, D: Net, z: Tensor) -> Tensor:
    """Loss of G on the fakes of these latents."""
    return g_loss(D(G(z)).float())


def search(job: Job, state: State) -> None:
    """Alternate the four updates of Algorithm 1, then derive G and D."""
    args, run, nets = job.args, job.run, Supernets(job)
    run.track(state, **{name: part for name, part in vars(nets).items() if part is not None})
    # DEVIATES 2: a frozen Super-D keeps the noise on beta; neither paper nor code specify it
    beta_steps = args.fixed_d == "none"  # otherwise only G is searched: "SingalNAS"
    d_steps = Graph(job, partial(nets.d_steps, job), nets.d_opt, *([nets.beta_opt] if beta_steps else []))
    g_steps = Graph(job, partial(nets.g_steps, job), nets.g_opt, nets.alpha_opt)
    batches, n_fakes = job.batches_of(args.search_batch), args.search_batch // job.ranks.world
    epoch_length, end = search_length(job)

    run.begin("search", "search", state.step, images_per_step=args.search_batch * args.n_critic)
    while state.batch < end:
        report_if_due(job, state, nets)
        i, epoch = state.batch, 1 + state.batch // epoch_length
        tau = args.tau(epoch)
        run.tick(state.step, f"end of epoch {epoch} in {epoch * epoch_length - i} batches, tau {tau:.2f}")
        real = batches(i)
        half = len(real) // 2
        for_beta = nets.draw(job, len(real) - half, "d arch", i) if beta_steps else ()
        losses = d_steps(real, tau, for_beta, nets.draw(job, half, "d", i))  # 1. and 2.
        state.batch += 1
        if beta_steps:
            nets.grads["beta"] = losses.pop("grad/beta")
        if i % args.n_critic:  # CODE: G is updated after the first of n_critic batches; Alg. 1: after k
            continue
        for_alpha, for_g = (nets.draw(job, n_fakes, what, i) for what in ("g arch", "g"))
        losses |= g_steps(tau, for_alpha, for_g)  # 3. and 4.
        nets.grads["alpha"] = losses.pop("grad/alpha")
        state.step += 1
        gan.log_losses(job, state, losses)
        if state.step % args.sample_every == 0:
            run.samples(state.step, gan.grid(job, nets.G_ema, nets.averaged(job, tau)))
    report_if_due(job, state, nets)
    report_found(job, state)


# ---- reporting -----------------------------------------------------------------------------------


def search_length(job: Job) -> tuple[int, int]:
    """D batches per search epoch, and of the whole search."""
    epoch = job.args.epoch_batches or len(job.batches_of(job.args.search_batch))
    # CODE: epoch 0 trains nothing. Batches of 100 and 26 epochs give the paper's 2,500 G updates
    return epoch, (job.args.search_epochs - 1) * epoch


def report_if_due(job: Job, state: State, nets: Supernets) -> None:
    """Derive genotypes and evaluate Super-G, as set by --derive-every and --search-eval-every, and at the end."""
    args, run, i = job.args, job.run, state.batch
    epoch_length, end = search_length(job)
    done = i // epoch_length  # epochs, not counting epoch 0
    if state.derived < i and (i == end or i % args.derive_every == 0):
        snapshot(job, state, nets, args.tau(done + 1))
        state.derived = i
    every = args.search_eval_every
    if every and state.scored < i and i % epoch_length == 0 and (i == end or done % every == 0):
        run.begin("search", "search evaluation", state.step, "search")
        score_average(job, state, nets.G, nets.G_ema, "Super-G", nets.averaged(job, args.tau(done)))
        if args.ref_ema_overwrite:  # the authors' code loads the EMA for evaluation and never restores
            nets.G.load_state_dict(nets.G_ema.state_dict())
            nets.alpha.load_state_dict(nets.alpha_ema.state_dict())
        state.scored = i
        run.begin("search", "search", state.step, images_per_step=args.search_batch * args.n_critic)


def snapshot(job: Job, state: State, nets: Supernets, tau: float) -> None:
    """Derive genotypes and write the state of the search to search.jsonl and genotypes/."""
    row = {"step": state.step, "stage": "search", "batch": state.batch, "tau": tau}
    row |= {"probabilities": {}, "entropy": {}, "genotype": {}, "flips": {}}
    for logits in [nets.alpha, nets.beta] if job.args.fixed_d == "none" else [nets.alpha]:
        net, p = logits.space.name, logits.probabilities()
        found = derive(logits.space, p)
        before = getattr(state, net) or found
        changes = [a != b for rows in zip(before, found, strict=True) for a, b in zip(*rows, strict=True)]
        state.flips[net] = state.flips.get(net, 0) + sum(changes)
        setattr(state, net, found)
        row["genotype"][net], row["flips"][net] = found, state.flips[net]
        row["probabilities"][net], row["entropy"][net] = by_place(p), by_place(logits.entropy())
    gan.search_row(job, row, supernet_signs(job, nets, tau), REMEDIES)
    job.run.genotype(state.step, genotype_json(job.args, state.G, state.D))


def supernet_signs(job: Job, nets: Supernets, tau: float) -> gan.Signs:
    """Gradients and movement of alpha and beta, active units of Super-G."""
    signs: gan.Signs = {f"signs/grad_{name}": norm.item() for name, norm in nets.grads.items()}
    for name in nets.grads:
        signs[f"signs/moved_{name}"] = gan.distance(getattr(nets, name), getattr(nets, f"first_{name}"))
    mix = nets.alpha.mix(job, tau, nets.alpha.noise(job, "grid"))
    return signs | gan.active_units(job, nets.G, nets.G.to_rgb, gan.along(nets.G, mix))


REMEDIES = {
    "grad": "lower --d-lr and --g-lr, which have made the networks' outputs constant",
    "units": "lower --g-lr",
}


def by_place(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Flatten [cell][edge] to {"1/0->2": ...}."""
    return {f"{i}/{edge}": value for i, edges in enumerate(cells, 1) for edge, value in edges.items()}


def score_average(
    job: Job, state: State, G: Generator, G_ema: Generator, what: str, generate: gan.Generate | None = None
) -> float:  # fmt: skip
    """Evaluate the EMA of G during the search. Returns its FID."""
    args, run = job.args, job.run
    job.ranks.average_buffers(G)
    ema_update(G_ema, G, 1.0)
    s = gan.score(job, G_ema, args.eval_n, generate)
    run.evaluated(state.step, s.row(), **{"eval/ema": args.ema > 0, "eval/bn": "running", "eval/what": what})
    run.print(f"step {state.step:,} ({what}): {s}")
    return s.fid


def report_found(job: Job, state: State) -> None:
    """Write the derived genotypes to the log, as JSON, and as .npy for the authors' code."""
    args, run = job.args, job.run
    run.begin("derive", "derivation", state.step, "training" if args.phase == "all" else "finish")
    run.genotype(state.step, genotype_json(args, state.G, state.D))
    for space, found in ((G_SPACE, state.G), (D_SPACE, state.D)):
        if found is not None:
            run.print(f"{space.name} found:\n{table(found, space)}")
            if run.main:
                with replacing(run.dir / f"latest_{space.name}.npy") as tmp, open(tmp, "wb") as f:
                    np.save(f, np.array(space.to_codes(found), np.uint8))


def genotype_json(args: Args, g: Genotype, d: Genotype | None) -> dict:
    """Contents of genotype.json; --genotype reads it. params, macs: of the networks trained from scratch."""
    costs = {"G": Generator.cost(g, *g_shape(args, g))}
    if d is not None:
        costs["D"] = d_cost(d, args.d_ch, args.size)
    return {"method": "adversarialnas", "G": g, "D": d, **params_and_macs(**costs)}


# ---- random search (paper Table 3) ---------------------------------------------------------------


def search_random(job: Job, state: State) -> None:
    """Choose the lowest FID of --candidates random genotypes, which share the G updates of the search."""
    # DEVIATES 3: the paper only states the budget. --g-params gives all candidates the same size
    args, run, share = job.args, job.run, job.plan[state.stage][1] // job.args.candidates
    while len(state.candidates) < args.candidates:
        n, fid = len(state.candidates), inf
        state.G = random_genotype(G_SPACE, rng_of(args.seed, "candidate", n))
        if args.candidates > 1:
            nets, G_ema = from_scratch(job, state.G, "autogan", "candidate", n)
            run.track(state, **vars(nets), G_ema=G_ema)
            step = Graph.training(job, nets, G_ema, partial(gan_step, job, nets))
            what, end = f"candidate {n + 1}", state.began + share
            run.begin("search", what, state.step, images_per_step=args.d_batch * args.n_critic)
            while state.step < end:
                run.tick(state.step, f"scoring in {end - state.step} steps")
                gan.log_losses(job, state, step(*gan.draw(job, state, args.n_critic)))
            run.begin("search", f"{what} scoring", state.step, "the next candidate")
            fid = score_average(job, state, nets.G, G_ema, what)
        state.candidates.append({"genotype": state.G, "fid": fid})
        state.began = state.step
        run.search_row({"step": state.step, "stage": "random", "genotype": {"G": state.G}, "eval/fid": fid})
    state.G = min(state.candidates, key=lambda x: fid_or_inf(x["fid"]))["genotype"]
    report_found(job, state)


# ---- training from scratch -----------------------------------------------------------------------


def from_scratch(job: Job, g: Genotype, d: DKind, *name: object) -> tuple[Pair, Generator]:
    """New networks for training, with their optimisers, and the EMA of G."""
    args = job.args
    G = seeded(job, lambda: Generator(g, *g_shape(args, g)), "G", *name)
    D = seeded(job, lambda: make_d(d, args.d_ch, args.size), "D", *name)
    return pair_of(job, G, D), deepcopy(G).requires_grad_(False)


def gan_step(job: Job, nets: Pair, for_d: list, z: Tensor) -> dict[str, Tensor]:
    """A D step on each of for_d, then one G step. Returns the last losses."""
    args, G, D = job.args, nets.G, nets.D
    for real, z_d in for_d:
        with job.autocast():
            loss_d = d_pass(G, D, real, z_d)
        update(job, D, nets.d_opt, loss_d, args.grad_clip)
    # DEVIATES 4: after n_critic D steps; the authors take the G step after the first of them
    with frozen(D), job.autocast():
        loss_g = g_pass(G, D, z)
    update(job, G, nets.g_opt, loss_g, args.grad_clip)
    return {"loss/d": loss_d.detach(), "loss/g": loss_g.detach()}


def train(job: Job, state: State) -> None:
    """Train the derived G; evaluate the EMA of G. [paper §4.1; authors' code]"""
    args, run = job.args, job.run
    nets, G_ema = from_scratch(job, state.G, state.opponent, "train")
    run.track(state, **vars(nets), G_ema=G_ema)
    step = Graph.training(job, nets, G_ema, partial(gan_step, job, nets))
    if args.compile:
        nets.G.compile(dynamic=False)
        nets.D.compile(dynamic=False)

    about = {"method": "adversarialnas", "genotype": {"G": state.G, "D": state.D}, "chunks": args.chunks}
    about["g_ch"] = nets.G.ch  # may be set by --g-params
    end = state.began + job.plan[-1][1]
    run.begin("train", "training", state.step, images_per_step=args.d_batch * args.n_critic)
    while True:
        gan.evaluate_if_due(job, state, nets.G, G_ema, about)  # CODE: reports the best of 121; here also the last
        if state.step >= end:
            break
        run.tick(state.step, gan.until_evaluation(job, state))
        gan.log_losses(job, state, step(*gan.draw(job, state, args.n_critic)))
        if (state.step - state.began) % args.sample_every == 0:
            run.samples(state.step, gan.grid(job, G_ema))
    run.save()  # can be resumed with more --train-epochs


# ---- command line --------------------------------------------------------------------------------


def stages_of(args: Args) -> list[str]:
    """The stages of the run, in order."""
    if args.phase == "train" or args.genotype:
        return ["train"]
    search = "search" if args.search == "adversarial" else "random"
    return [search, "train"] if args.phase == "all" else [search]


def check(args: Args, world: int) -> None:
    """Reject invalid flags before any work is done. UserError names the flag, value and remedy."""
    given = f"--genotype {args.genotype}" if args.genotype else ""
    gan.check_flags(args, world, given, f"one of {', '.join(PUBLISHED['G'])} or a file")
    gan.check_splits(eval_n=args.eval_n)
    batch, special = args.search_batch, "--search random" if args.search == "random" else ""
    if batch % world or batch < 2 * world:
        raise UserError(f"--search-batch {batch}: split in halves on {world} processes; use a multiple of {2 * world}")
    if args.chunks == 1:
        raise UserError("--chunks 1: not supported; use 2 or 3, or 0 for the default")
    if args.tau_min > args.tau_max:
        raise UserError(f"--tau-min {args.tau_min}: above --tau-max {args.tau_max}; use a smaller value")
    if args.fixed_d != "none":
        if special:
            raise UserError(f"--fixed-d {args.fixed_d}: not used by {special}; omit one of them")
        special = f"--fixed-d {args.fixed_d}"
    if special and given:
        raise UserError(f"{given}: skips the search, so it conflicts with {special}; omit one of them")
    if special and args.d_genotype == "searched":
        raise UserError(f"--d-genotype searched: {special} does not search D; omit one of them")


def check_sizes(args: Args, images: int, world: int) -> None:
    """Like `check`, for flags that depend on the data set."""
    first, batch, parts = stages_of(args)[0], args.search_batch, args.chunks
    if args.z_dim % parts:
        raise UserError(f"--z-dim {args.z_dim}: split equally between {parts} cells; use a multiple of {parts}")
    if first != "train" and batch > images:
        raise UserError(f"--search-batch {batch}: more than the {images} images of the data set; use at most {images}")
    if first == "search" and images % batch and images % batch // world == 1:
        raise UserError(f"--search-batch {batch}: leaves 1 of {images} images, too few for a batch; change it")
    super_d = first == "search" and args.search_d is None
    if (super_d or args.d_genotype != "autogan") and args.size % 16:
        raise UserError(f"--size {args.size}: D halves images four times; use a multiple of 16")


def first_state(args: Args) -> State:
    """State of a new run, with the given genotypes. UserError: invalid genotype."""
    g = named(args.genotype, G_SPACE, PUBLISHED, "--genotype") if args.genotype else None
    if args.d_genotype == "autogan":
        return State(G=g, given_d="autogan")
    if args.d_genotype != "searched":
        d = named(args.d_genotype, D_SPACE, PUBLISHED, "--d-genotype")
        return State(G=g, D=d if g else None, given_d=d)  # without g, the search derives its own D
    d = named(args.genotype, D_SPACE, PUBLISHED) if (args.genotype or "").endswith(".json") else None
    if g and d is None:
        raise UserError(f"--d-genotype searched: {args.genotype} has no D; use a name, a file or autogan")
    return State(G=g, D=d)


def costs_of(args: Args, state: State) -> dict[str, Cost]:
    """Costs of the networks of this run."""
    g, d = state.stand_ins()
    costs = {
        "G" if state.G else "G (as adversarialnas-g)": Generator.cost(g, *g_shape(args, g)),
        "D" if state.opponent else "D (as animation-d)": d_cost(d, args.d_ch, args.size),
    }
    if "search" in stages_of(args):
        opponent = "Super-D" if args.search_d is None else "D of the search"
        costs["Super-G"] = Cost(Generator.cost(None, *args.shape(args.search_g_ch)).params)
        costs[opponent] = Cost(d_cost(args.search_d, args.search_d_ch, args.size).params)
    return costs


def plan_of(job: Job, g: float, d: float) -> list[gan.Stage]:
    """(name, G updates, multiply-adds per update including scoring). g, d: multiply-adds per image."""
    args, plan = job.args, []
    for name in stages_of(args):
        if name == "train":
            plan.append(gan.train_stage(job, args.train_epochs, g, d))
        else:
            steps = ceil(search_length(job)[1] / args.n_critic)  # on the first of n_critic batches
            plan.append(search_stage(args, steps) if name == "search" else random_stage(args, steps, g, d))
    return plan


def search_stage(args: Args, steps: int) -> gan.Stage:
    g = Generator.cost(None, *args.shape(args.search_g_ch)).macs
    d = d_cost(args.search_d, args.search_d_ch, args.size).macs
    if args.mixed == "merged":  # 41 taps instead of 1 + 9 + 25 + 9 + 25
        g *= 41 / 69
        if args.search_d is None:
            d *= 41 / 69
    # per image of the batch: a D step uses half of them and equally many fakes, a G step all
    d_step, g_step = g / 2 + 3 * d, 3 * g + 2 * d
    d_steps = 2 if args.fixed_d == "none" else 1  # beta and weights
    macs = args.search_batch * (args.n_critic * d_steps * d_step + 2 * g_step)
    scores = 2 + (args.search_epochs - 2) // args.search_eval_every if args.search_eval_every else 0
    return "search", steps, macs + gan.scoring_macs(args, g, scores * args.eval_n) / steps


def random_stage(args: Args, steps: int, g: float, d: float) -> gan.Stage:
    share = steps // args.candidates
    if args.candidates == 1:
        return "random", 0, 0.0
    if not share:
        raise UserError(f"--candidates {args.candidates}: more than the {steps} G updates they share; use fewer")
    macs = gan.update_macs(args, g, d, args.n_critic) + gan.scoring_macs(args, g, args.eval_n) / share
    return "random", share * args.candidates, macs


def main(args: Args) -> dict | None:
    """Search, derive, train, evaluate. Returns the best scores of the training phase, or None without one."""
    # -- all checks run before the run directory is created
    ranks = start_ranks(args.device)
    check(args, ranks.world)
    if args.phase == "sample":
        return gan.sample(args, ranks, Generator.saved)
    has_is = args.evaluator == "compact" or args.fid_dims == "2048"
    evaluator = Evaluator(**gan.evaluator_options(args, ranks), want_is=has_is)
    data = ranks.first(lambda: load_dataset(args.dataset, args.data_dir, args.size))
    evaluator.use(data)
    size, trained = data.images.shape[-1], None
    args = replace(args, size=size, chunks=args.chunks or (2 if size == 48 else 3))
    if args.phase == "eval":
        args, trained = gan.load_weights(args, ranks.device, Generator.saved)
        args = replace(args, chunks=len(trained.latent))
    job, state = Job(args, ranks, evaluator, data), first_state(args)
    if trained:
        costs = {"G": Generator.cost(trained.genotype, *args.shape(args.g_ch))}
    else:
        check_sizes(args, len(data.images), ranks.world)
        costs = costs_of(args, state)
        job.plan = plan_of(job, *(cost.macs for cost in list(costs.values())[:2]))
    lines = gan.opening(job, "adversarialnas", costs)
    loops = {"search": search, "random": search_random, "train": train}
    if args.dry_run:
        G, D = state.stand_ins()
        stand_in = replace(state, G=G, given_d=D, derived=0, scored=0)
        return dry_run(lines, job, loops, stand_in)

    with Run(args.script(), "adversarialnas", asdict(args), ranks, **gan.run_facts(job, costs)) as job.run:
        gan.start(job, state, lines)
        if trained:
            gan.evaluate_weights(job, trained)
            return None
        for name in stages_of(args)[state.stage :]:
            loops[name](job, state)
            state.next_stage()
        return gan.finish(job, state, genotype_json(args, state.G, state.D))


if __name__ == "__main__":
    sys.exit(cli(main, Args, PRESETS))
