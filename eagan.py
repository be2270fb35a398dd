# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch>=2.11", "torchvision>=0.26", "numpy>=2.0", "pillow>=10.3", "scipy>=1.13",
#   "pytorch-fid>=0.3.0", "typer>=0.19", "rich>=14.0", "textual>=8.0", "psutil>=6.0",
#   "nvidia-ml-py>=12.0",
# ]
# ///
"""EAGAN: efficient two-stage evolutionary search of GAN architectures (Ying et al., ECCV 2022).

Paper: arXiv 2111.15097. Authors' code: marsggbo/EAGAN at 975ff13. Details: docs/eagan.md.

Stage 1, many-to-one: a supernet of generators against one fixed D (Algorithm 1, lines 1-16).
    warm-up: a new random generator path for every batch
    R rounds: train the P generators of the population, one path per batch;
              score each by IS, FID and size; keep the better half by non-dominated sorting;
              refill the population by crossover and mutation
Stage 2, one-to-one: P discriminators from a supernet, each with its own copy of G* (lines 17-32).
    the same evolution, scored by the paired generators; after every round all generators restart
    from the weights of the best one ("weight-resetting")
Then the pair (G*, D*) is trained from scratch and evaluated.

Published (CIFAR-10, 50,000 images): IS 8.81, FID 9.91 after 1.2 GPU days. Not yet run at paper scale here.
Tags: PAPER (specified by the paper), CODE (not in the paper, follows the authors' code),
DEVIATES (differs from both).
"""

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, pairwise, zip_longest
from math import inf, isfinite
from pathlib import Path
from random import Random
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from common import gan
from common.cells import (
    OPS_DOWN,
    OPS_NORMAL,
    OPS_UP,
    Conv,
    ConvAvgPool,
    Cost,
    Edge,
    EdgeSpec,
    Genotype,
    Linear,
    Space,
    add,
    conv,
    conv_cost,
    init_weights,
    named,
    op_cost,
    params_and_macs,
    table,
)
from common.cli import CommonArgs, cli, opt
from common.data import load_dataset
from common.files import UserError, read_json, rng_of
from common.gan import Job, Pair, clone, fid_or_inf, frozen, own_batch_norm, pair_of, seeded, update
from common.graph import Graph
from common.metrics import Evaluator, Score
from common.ranks import start_ranks
from common.rehearsal import dry_run
from common.run import Run
from common.spectral import normalise_together

# ---- arguments -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Args(CommonArgs):
    genotype: str | None = opt(None, "Skip the search and train this G: a name, .json or .npy. [paper §5.2]")
    d_genotype: str | None = opt(None, "D of --genotype, or plain; default: its file's or EAGAN's. [paper §5.2]", "Run")

    stages: Literal["g+d", "g", "d", "coupled"] = opt(
        "g+d", "g: search only G; d: only D, for --genotype; coupled: both at once, Fig. 6. [paper §4]", "Search"
    )
    cycles: int = opt(1, "Repetitions of both stages; 2 (GD3): D* becomes the fixed D. [paper §5.4]", "Search", min=1)
    dbar: Literal["autogan", "d_c", "plain"] = opt("autogan", "Fixed D in stage 1; plain: GD2. [paper §5.4]", "Search")
    warmup_epochs: int = opt(50, "Warm-up epochs with random paths. [paper §5.1]", "Search", min=0)
    rounds: int = opt(18, "Evolution rounds per stage, R. [paper §5.1]", "Search", min=1)
    round_epochs: int = opt(10, "Epochs per round, E. [paper §5.1]", "Search", min=1)
    population: int = opt(32, "Population size, P. [paper §5.1]", "Search", min=2)
    p_crossover: float = opt(0.3, "Crossover probability. [paper §4.3]", "Search", min=0, max=1)
    p_mutation: float = opt(0.5, "Mutation probability. [paper §4.3]", "Search", min=0.01, max=1)
    objectives: str = opt("is,fid,size", "To minimise, of OBJECTIVES: is, fid, size. [paper Table 1]", "Search")
    selection: Literal["nsga2", "cars"] = opt("nsga2", "cars: nearly random. [paper §4.3; code]", "Search")
    mu_plus_lambda: bool = opt(False, "Stage 1: select P of P parents and P children. [authors' code]", "Search")
    weight_reset: bool = opt(True, "Stage 2: reset all G to the best one's weights. [paper §4.2]", "Search")
    init_g: str | None = opt(None, "Initialise stage 1 with this G and mutants of it. [authors' code]", "Search")
    init_d: str | None = opt(None, "Initialise stage 2 with this D and mutants of it. [authors' code]", "Search")
    search_n: int = opt(5000, "Images generated to score an individual. [paper §5.1]", "Search", min=2)
    final_n: int = opt(10_000, "Images generated to score a finalist. [ours]", "Search", min=2)
    bn_batches: int = opt(16, "Batches of 100 to re-estimate BatchNorm per path; 0: shared. [ours]", "Search", min=0)

    train_epochs: int = opt(600, "Epochs of training from scratch. [paper §5.1]", "Train", min=1)
    z_dim: int = opt(120, "Latent dimension, a multiple of 3. [authors' code]", "Train", min=3)
    g_batch: int = opt(80, "[authors' code]")
    d_batch: int = opt(40, "[authors' code]")
    n_critic: int = opt(5, "D steps per G step in stage 2 and training. [authors' code]")
    grad_clip: float = opt(0.0, "Gradient norm limit in training; 0: none; STL-10: 50. [authors' code]", "Train", min=0)
    eval_after: int = opt(300, "[authors' code]")

    def search_epochs(self, r: int) -> int:
        """Epochs of a stage until the end of round r; round 0 is the warm-up."""
        return self.warmup_epochs + r * self.round_epochs


PRESETS = {
    "paper": {},
    "quick": dict(
        preset="quick", warmup_epochs=2, rounds=4, round_epochs=1, population=8, search_n=1000, final_n=2000,
        train_epochs=25, eval_n=10_000, eval_after=0, sample_every=500,
    ),
    "smoke": dict(
        preset="smoke", dataset="shapes", evaluator="compact", population=4, rounds=2, epoch_batches=12,
        warmup_epochs=1, round_epochs=1, search_n=200, final_n=300, bn_batches=2,
        g_ch=24, d_ch=16, d_batch=32, g_batch=32, n_critic=1, g_lr=1e-3, d_lr=1e-3, ema=0.98,
        train_epochs=11, eval_n=1000, eval_every=4, eval_after=0, sample_every=50, log_every=10,
    ),
}  # fmt: skip

# ---- losses (paper §5.1: hinge), on the scores of D, (B, 1) --------------------------------------


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[relu(1 - D(x))] + E[relu(1 + D(G(z)))]."""
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def g_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """-E[D(G(z))]. real: scores of real images, for relativistic losses; unused here."""
    return -fake.mean()


# ---- search space (paper §3, Fig. 2) -------------------------------------------------------------

NORMAL = ("none", *OPS_NORMAL)
DOWN = ("none", *OPS_DOWN)  # CODE: a cell of D may keep the size
G_OPS = [OPS_UP] * 2 + [OPS_NORMAL] * 5  # for each edge of a cell: op name -> module
D_OPS = [OPS_NORMAL] * 5 + [OPS_DOWN] * 2
G_SPACE = Space(
    "G",
    cells=3,
    edges=(
        *(EdgeSpec(name, tuple(OPS_UP)) for name in ("0->1", "0->2")),
        *(EdgeSpec(name, NORMAL) for name in ("1->3", "2->3", "1->4", "2->4", "3->4")),
    ),
    nodes={3: (2, 3), 4: (4, 5, 6)},  # at least one of these columns must not be none
)
D_SPACE = Space(
    "D",
    cells=3,
    edges=(
        EdgeSpec("0->1", NORMAL[1:], first_code=1),
        *(EdgeSpec(name, NORMAL) for name in ("0->2", "1->2", "1->3", "0->3")),
        *(EdgeSpec(name, DOWN, first_code=-1) for name in ("2->4", "3->4")),
    ),
    nodes={2: (1, 2), 3: (3, 4)},
    together=(5, 6),  # both none, or neither
)

DGenotype = Genotype | Literal["plain"]

PUBLISHED = {  # the authors' integer codes, one row per cell, one column per edge
    "G": {
        "eagan-g": [[1, 1, 1, 0, 2, 3, 1], [1, 1, 0, 1, 3, 0, 5], [0, 1, 0, 3, 0, 0, 3]],  # paper Fig. 3
        "adversarialnas-g": [[1, 1, 1, 0, 3, 3, 1], [1, 1, 0, 1, 3, 3, 3], [0, 1, 0, 3, 3, 0, 3]],
    },
    "D": {
        "eagan-d-cifar10": [[3, 0, 3, 0, 2, 0, 0], [1, 0, 3, 0, 1, -1, -1], [3, 0, 3, 0, 1, -1, -1]],  # D_C, Fig. 4
        "eagan-d-stl10": [[3, 0, 3, 0, 2, 0, 0], [4, 0, 4, 0, 1, -1, -1], [3, 0, 3, 0, 1, -1, -1]],  # D_S, paper Fig. 4
        "autogan-d": [[3, 0, 3, 0, 2, 0, 0], [3, 0, 3, 0, 1, -1, -1], [3, 0, 3, 0, 1, -1, -1]],
    },
}
STAGE = {"G": "1", "D": "2"}  # stage that searches this space
DBAR = {"autogan": "autogan-d", "d_c": "eagan-d-cifar10", "plain": "plain"}
EAGAN_G, EAGAN_D = named("eagan-g", G_SPACE, PUBLISHED), named("eagan-d-cifar10", D_SPACE, PUBLISHED)


def sample(space: Space, rng: Random) -> Genotype:
    """Sample a genotype: uniform over valid inputs of each node; first down edge uniform over none and the ops."""
    # DEVIATES 1: the authors' D sampler writes its first pair to the wrong columns, so 0->2 is always none
    rows = []
    while len(rows) < space.cells:
        row = settle(space, [rng.choice(e.ops) for e in space.edges], rng)
        if not space.row_error(row):
            rows.append(row)
    return tuple(rows)


def settle(space: Space, row: list[str], rng: Random) -> tuple[str, ...]:
    """Make the second down edge match the first: none with none, an op with an op."""
    # DEVIATES 2: the authors allow none on just one of them; its code -1 then indexes the last op
    for column in space.together[1:]:
        if row[space.together[0]] == "none":
            row[column] = "none"
        elif row[column] == "none":
            row[column] = rng.choice(space.edges[column].ops[1:])  # none is the first
    return tuple(row)


# ---- networks (paper §3) -------------------------------------------------------------------------


class UpCell(nn.Module):
    """x: (B, C, H, W), skips: earlier cells' node 3 -> node 3 and node 4, both (B, C, 2H, 2W)."""

    def __init__(self, ch: int, genotype: Genotype | None, cell: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            Edge({op: ops[op](ch) for op in G_SPACE.candidates(genotype, cell, c)}) for c, ops in enumerate(G_OPS)
        )
        self.skips = nn.ModuleList(Conv(ch, ch, 1) for _ in range(cell))
        self.resize = "bilinear" if cell == 1 else "nearest"

    def forward(self, x: Tensor, ops: tuple[str, ...], skips: list[Tensor]) -> tuple[Tensor, Tensor]:
        e01, e02, e13, e23, e14, e24, e34 = self.edges
        node1 = None if ops[2] == ops[4] == "none" else e01(x, ops[0])  # unused node
        node2 = None if ops[3] == ops[5] == "none" else e02(x, ops[1])
        node3 = add(e13(node1, ops[2]), e23(node2, ops[3]))
        for to_skip, skip in zip(self.skips, skips, strict=True):  # 1x1 before resizing: they commute
            # DEVIATES 3: the authors' supernet adds in place, which alters node 1 or 2 behind an identity
            node3 = node3 + F.interpolate(to_skip(skip), size=node3.shape[-2:], mode=self.resize)
        return node3, add(e14(node1, ops[4]), e24(node2, ops[5]), e34(node3, ops[6]))


class Generator(nn.Module):
    """z: (B, z_dim) -> (B, 3, size, size) in [-1, 1]. genotype None: SuperNet-G, forward takes a path."""

    def __init__(self, genotype: Genotype | None, ch: int = 256, z_dim: int = 120, size: int = 32) -> None:
        super().__init__()
        self.genotype, self.sides = genotype, [size // 8, size // 4, size // 2]  # of the cell inputs
        self.latent = nn.ModuleList(nn.Linear(z_dim // 3, ch * w * w) for w in self.sides)  # a third of z per cell
        self.cells = nn.ModuleList(UpCell(ch, genotype, i) for i in range(3))
        self.bn = nn.BatchNorm2d(ch)  # the only normalisation in G
        self.to_rgb = Conv(ch, 3, 3, padding=1)
        init_weights(self)

    def forward(self, z: Tensor, genotype: Genotype | None = None) -> Tensor:
        genotype = genotype or self.genotype
        skips, x = [], 0
        for i, part in enumerate(z.chunk(3, dim=1)):
            h = self.latent[i](part).unflatten(1, (-1, self.sides[i], self.sides[i]))
            skip, x = self.cells[i](x + h.contiguous(memory_format=torch.channels_last), genotype[i], skips)
            skips.append(skip)
        return self.to_rgb(self.bn(x).relu()).tanh()

    @classmethod
    def saved(cls, weights: dict) -> "Generator":
        """Build the generator of a weights.pt; its weights are not loaded."""
        genotype = G_SPACE.check(weights["genotype"]["G"], "genotype")
        return cls(genotype, *(int(weights[k]) for k in ("g_ch", "z_dim", "size")))

    @staticmethod
    def cost(genotype: Genotype | None, ch: int = 256, z_dim: int = 120, size: int = 32) -> Cost:
        """Cost of a generator or of SuperNet-G (None)."""
        total, sides = Cost(2 * ch) + conv_cost(ch, 3, 3, size), [size // 4, size // 2, size]
        for cell, side in enumerate(sides):
            total += conv_cost(z_dim // 3, ch * (side // 2) ** 2, 1, 1)
            for _ in range(cell):
                total += conv_cost(ch, ch, 1, side)
        for cell, column, op in G_SPACE.held(genotype):
            total += op_cost(G_OPS[column][op], ch, sides[cell])
        return total


class DownCell(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2), or the same size if the down edges are none."""

    def __init__(self, ch: int, genotype: Genotype | None, cell: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            Edge({op: ops[op](ch, sn=True) for op in D_SPACE.candidates(genotype, cell, c)})
            for c, ops in enumerate(D_OPS)
        )
        for op in self.edges[4].values():  # CODE: no ReLU in 0->3, so that the cell can be SN-GAN's residual block
            op.relu = False

    def forward(self, x: Tensor, ops: tuple[str, ...]) -> Tensor:
        e01, e02, e12, e13, e03, e24, e34 = self.edges
        node1 = None if ops[2] == ops[3] == "none" else e01(x, ops[0])  # unused node
        node2 = add(e02(x, ops[1]), e12(node1, ops[2]))
        node3 = add(e13(node1, ops[3]), e03(x, ops[4]))
        return node2 + node3 if ops[5] == "none" else e24(node2, ops[5]) + e34(node3, ops[6])


class Discriminator(nn.Module):
    """x: (B, 3, H, W) -> (B, 1). genotype None: SuperNet-D, forward takes a path."""

    def __init__(self, genotype: Genotype | None, ch: int = 128) -> None:
        super().__init__()
        self.genotype = genotype
        self.stem1 = spectral_norm(Conv(3, ch, 3, padding=1))  # CODE: the stem is fixed
        self.stem2 = spectral_norm(ConvAvgPool(ch, ch))
        self.stem_skip = conv(3, ch, sn=True)
        self.cells = nn.ModuleList(DownCell(ch, genotype, i) for i in range(3))
        self.out = spectral_norm(Linear(ch, 1, bias=False))
        normalise_together(self, Discriminator.used)

    def used(self, genotype: Genotype | None = None) -> Iterator[nn.Module]:
        """Modules on a path."""
        yield from (self.stem1, self.stem2, self.stem_skip, self.out)
        for cell, ops in zip(self.cells, genotype or self.genotype, strict=True):
            first = 1 if ops[2] == ops[3] == "none" else 0  # node 1 is not used
            yield from (edge[op] for edge, op in list(zip(cell.edges, ops, strict=True))[first:] if op != "none")

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        x = self.stem2(self.stem1(x).relu()) + self.stem_skip(F.avg_pool2d(x, 2))
        for cell, ops in zip(self.cells, genotype or self.genotype, strict=True):
            x = cell(x, ops)
        return self.out(x.relu().sum(dim=(2, 3)))

    @staticmethod
    def cost(genotype: Genotype | None, ch: int = 128, size: int = 32) -> Cost:
        """Cost of a discriminator or of SuperNet-D (None), where every cell halves the side."""
        total = conv_cost(3, ch, 3, size) + conv_cost(ch, ch, 3, size) + conv_cost(3, ch, 1, size // 2) + Cost(ch, ch)
        sides = [size // 2]
        for cell in range(3):
            sides.append(sides[-1] if genotype and genotype[cell][5] == "none" else sides[-1] // 2)
        for cell, column, op in D_SPACE.held(genotype):
            total += op_cost(D_OPS[column][op], ch, sides[cell + 1 if column > 4 else cell])
        return total


class PlainDiscriminator(nn.Module):
    """Fixed D of the authors' search code (ablation GD2). x: (B, 3, H, W) -> (B, 1)."""

    def __init__(self, ch: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for i, (c_in, c_out) in enumerate(pairwise((3, ch // 2, ch, ch, ch, ch))):
            self.layers.append(nn.Conv2d(c_in, c_out, 4, 2, 1))
            if i % 2 == 0:
                self.layers.extend([nn.BatchNorm2d(c_out), nn.LeakyReLU(0.2)])
        self.out = spectral_norm(Linear(ch, 1, bias=False))
        init_weights(self)

    def forward(self, x: Tensor, _genotype: None = None) -> Tensor:
        return self.out(self.layers(x).sum(dim=(2, 3)))

    @staticmethod
    def cost(ch: int, size: int) -> Cost:
        """Cost on size x size images: BatchNorms and linear layer, then convolutions."""
        total = Cost(ch // 2 * 2 + 5 * ch, ch)
        total += conv_cost(3, ch // 2, 4, size // 2) + conv_cost(ch // 2, ch, 4, size // 4)
        return sum((conv_cost(ch, ch, 4, size // n) for n in (8, 16, 32)), total)


def make_d(d: DGenotype | None, ch: int) -> nn.Module:
    """Build the discriminator of a genotype, the plain one, or SuperNet-D (None)."""
    return PlainDiscriminator(ch) if d == "plain" else Discriminator(d, ch)


def cost_of(args: Args, space: Space, genotype: DGenotype | None) -> Cost:
    """Cost of the network of a genotype, or of the supernet (None)."""
    if space is G_SPACE:
        return Generator.cost(genotype, *args.g_shape)
    if genotype == "plain":
        return PlainDiscriminator.cost(args.d_ch, args.size)
    return Discriminator.cost(genotype, args.d_ch, args.size)


# ---- evolution (paper §4.3) ----------------------------------------------------------------------

Point = tuple[float, ...]  # objective values of an individual, minimised
OBJECTIVES = {  # name -> objective of an individual, minimised
    "is": lambda x: 1 / (x.is_mean + 1e-10),
    "fid": lambda x: x.fid,
    "size": lambda x: x.params / 1e6,
}


@dataclass
class Individual:
    """A member of the population. is_mean, fid: None until scored; params: of the derived network."""

    genotype: Genotype
    parents: list[str] = field(default_factory=list)
    how: str = "random"  # origin
    id: str = ""  # "S.R-I": index of the stage in stages_of, round, number
    d_genotype: Genotype | None = None  # its discriminator in the coupled search
    params: int = 0
    is_mean: float | None = None
    fid: float | None = None

    def objectives(self, names: list[str]) -> Point:
        """Objective values, minimised; all inf if any of them is not finite."""
        # DEVIATES 5: NaN ranks last; in the authors' sort nothing dominates NaN, so a collapsed G ranks first
        values = tuple(OBJECTIVES[name](self) for name in names)
        return values if all(map(isfinite, values)) else (inf,) * len(values)

    def row(self) -> dict:
        """Entry in search.jsonl: its scores, and your own objectives by name."""
        row = {**vars(self), "is": self.is_mean}
        del row["is_mean"], row["d_genotype"]
        own = {name: value(self) for name, value in OBJECTIVES.items() if name not in ("is", "fid", "size")}
        return row | own


People = list[Individual]


def mutate(space: Space, genotype: Genotype, rng: Random) -> Genotype:
    """Change the op of a uniformly chosen edge, keeping the cell valid. [paper §4.3]"""
    while True:
        cell, column = rng.randrange(space.cells), rng.randrange(len(space.edges))
        if column not in space.together[1:] or genotype[cell][column] != "none":  # else it is tied to the first one
            break
    options = []
    for op in space.edges[column].ops:
        row = list(genotype[cell])
        row[column] = op
        row = settle(space, row, rng) if column in space.together[:1] else tuple(row)
        if op != genotype[cell][column] and not space.row_error(row):
            options.append(row)
    return (*genotype[:cell], rng.choice(options), *genotype[cell + 1 :])


def crossover(space: Space, a: Genotype, b: Genotype, rng: Random) -> Genotype:
    """Copy one edge of b into a, uniform over edges that differ and stay valid; a itself if there are none."""
    children = []
    for cell in range(space.cells):
        for column in range(len(space.edges)):
            switches = column in space.together and "none" in (a[cell][column], b[cell][column])
            row = list(a[cell])
            for c in space.together if switches else (column,):
                row[c] = b[cell][c]
            row = tuple(row)
            if row != a[cell] and not space.row_error(row):
                children.append((*a[:cell], row, *a[cell + 1 :]))
    return rng.choice(children) if children else a


def populate(args: Args, space: Space, n: int, rng: Random) -> People:
    """n distinct random genotypes or, with --init-g or --init-d, that genotype and mutants (1 to 3 mutations)."""
    base = args.init_g if space is G_SPACE else args.init_d
    base = base and named(base, space, PUBLISHED)
    found = {base: None} if base else {}
    while len(found) < n:
        genotype = base or sample(space, rng)
        for _ in range(rng.randint(1, 3) if base else 0):
            genotype = mutate(space, genotype, rng)
        found[genotype] = None
    return [Individual(g, how="mutant of the base" if base else "random") for g in found]


def breed(args: Args, space: Space, parents: People, n: int, seen: dict, rng: Random) -> People:
    """n children, none of them in `seen`, to which they are added; without parents, populate()."""
    # PAPER §4.3: 0.3 and 0.5, read as independent probabilities. CODE: either one or the other, 50:50
    children = [] if parents else populate(args, space, n, rng)
    seen.update((x.genotype, None) for x in children)
    while len(children) < n:
        for _ in range(100):
            a = rng.choice(parents)
            x = Individual(a.genotype, [a.id], "")
            if len(parents) > 1 and rng.random() < args.p_crossover:
                b = rng.choice([p for p in parents if p is not a])
                x = Individual(crossover(space, a.genotype, b.genotype, rng), [a.id, b.id], "crossover")
            if rng.random() < args.p_mutation:
                x = Individual(mutate(space, x.genotype, rng), x.parents, f"{x.how}+mutation".strip("+"))
            if x.genotype not in seen:
                break
        else:  # DEVIATES 4: the authors' loop may not terminate; here a random genotype is used instead
            x = Individual(sample(space, rng))
        seen[x.genotype] = None
        children.append(x)
    return children


def non_dominated_sort(points: list[Point]) -> list[list[int]]:
    """Fronts as lists of indices, best first. [paper Eq. 11, NSGA-II]"""

    def dominates(x: Point, y: Point) -> bool:
        return x != y and all(a <= b for a, b in zip(x, y, strict=True))

    left, fronts = list(range(len(points))), []
    while left:
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        left = [i for i in left if i not in front]
        fronts.append(front)
    return fronts


def crowding(points: list[Point], front: list[int]) -> dict[int, float]:
    """Crowding distance: gap between the neighbours, summed over objectives; inf at the ends. [NSGA-II]"""
    distance = dict.fromkeys(front, 0.0)
    for values in zip(*points, strict=True):
        order = sorted(front, key=values.__getitem__)
        low, high = values[order[0]], values[order[-1]]
        distance[order[0]] = distance[order[-1]] = inf
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            if high > low:
                distance[i] += (values[after] - values[before]) / (high - low)
    return distance


def select_nsga2(points: list[Point], fids: list[float], keep: int) -> list[int]:
    """Indices of the `keep` best: whole fronts, the last one by crowding distance, then FID."""
    # DEVIATES 6: the paper does not say how to cut the last front; the authors cut it at random
    chosen = []
    for front in non_dominated_sort(points):
        distance = crowding(points, front)
        chosen += sorted(front, key=lambda i: (-distance[i], fids[i]))[: keep - len(chosen)]
    return chosen


def select_cars(scores: list[Point], keep: int, rng: Random) -> list[int]:
    """The authors' selection, from CARS: merge the fronts of (1/IS, o) and (1/IS, 1/o), o = FID, size, by rank."""
    pairs = [[(s[0], s[o]) for s in scores] for o in (1, 2)]
    pairs += [[(s[0], 1 / (s[o] + 1e-10) if isfinite(s[o]) else inf) for s in scores] for o in (1, 2)]
    chosen = set()
    for fronts in zip_longest(*map(non_dominated_sort, pairs), fillvalue=[]):
        union = sorted({*chain(*fronts)} - chosen)
        chosen.update(union if len(chosen) + len(union) <= keep else rng.sample(union, keep - len(chosen)))
    return sorted(chosen)


def select(args: Args, state: "State", keep: int) -> tuple[People, People]:
    """The `keep` survivors of a round, and its first front sorted by FID. [paper §4.3]"""
    people = state.population
    points, fids = [x.objectives(args.objectives.split(",")) for x in people], [fid_or_inf(x.fid) for x in people]
    front = sorted(non_dominated_sort(points)[0], key=fids.__getitem__)
    if args.selection == "cars":
        chosen = select_cars(points, keep, rng_of(args.seed, "chosen", state.stage, state.round))
    else:
        chosen = select_nsga2(points, fids, keep)
    return [people[i] for i in chosen], [people[i] for i in front]


# ---- search (Algorithm 1) ------------------------------------------------------------------------

PEOPLE = ("population", "hall", "finalists")


@dataclass
class State(gan.Progress):
    """State of a run besides the networks."""

    round: int = 0  # round of the stage; 0: warm-up
    population: People = field(default_factory=list)
    seen: dict[Genotype, None] = field(default_factory=dict)  # genotypes used in this stage: no repeats
    hall: People = field(default_factory=list)  # the 8 lowest FIDs of all first fronts
    finalists: People = field(default_factory=list)
    twice: list[list[float]] = field(default_factory=list)  # FIDs and ISs of one individual, scored twice
    ranked: dict[str, float] = field(default_factory=dict)  # FIDs of the previous round, by id
    G: Genotype | None = None  # G*, once found or given
    D: DGenotype | None = None  # D*, or the fixed discriminator
    g_weights: dict[str, Tensor] | None = None  # supernet weights of G*, the start of stage 2

    def next_stage(self) -> None:
        super().next_stage()
        self.round, self.population, self.seen, self.hall, self.finalists = 0, [], {}, [], []
        self.twice, self.ranked = [], {}

    def state_dict(self) -> dict:
        people = {k: [vars(x) for x in getattr(self, k)] for k in PEOPLE}
        return {**super().state_dict(), **people}

    def load_state_dict(self, saved: dict) -> None:
        people = {k: [Individual(**x) for x in saved[k]] for k in PEOPLE}
        super().load_state_dict({**saved, **people})


def stages_of(args: Args) -> list[str]:
    """The stages of the run, in order."""
    if args.phase == "eval":
        return []
    if args.phase == "train" or (args.genotype and args.stages != "d"):
        return ["train"]
    one = {"g+d": ["search-g", "search-d"], "g": ["search-g"], "d": ["search-d"], "coupled": ["coupled"]}
    return one[args.stages] * args.cycles + (["train"] if args.phase == "all" else [])


ScoreOne = Callable[..., Score]  # (individual, number of images, draw of latents = "eval") -> score
Paths = tuple[Genotype | None, Genotype | None]  # through SuperNet-G and SuperNet-D; None: not a supernet


def d_step(job: Job, nets: Pair, drawn: tuple[Tensor, Tensor], paths: Paths, clip: float = 0.0) -> Tensor:
    """One D step on real images and equally many fakes."""
    (real, z), (g_path, d_path) = drawn, paths
    with job.autocast():
        with torch.no_grad():
            fake = nets.G(z, g_path)
        if isinstance(nets.D, PlainDiscriminator):  # its BatchNorm must not mix real and fake
            d_real, d_fake = nets.D(real, d_path), nets.D(fake, d_path)
        else:  # DEVIATES 7: one pass, faster; one power iteration per step, two in the authors' code
            d_real, d_fake = nets.D(torch.cat([real, fake]), d_path).chunk(2)
    loss = d_loss(d_real.float(), d_fake.float())
    update(job, nets.D, nets.d_opt, loss, clip)  # DEVIATES 8: unsampled ops have no gradient; CODE: zero gradients
    return loss.detach()


def g_step(job: Job, nets: Pair, z: Tensor, paths: Paths, clip: float = 0.0) -> Tensor:
    """One G step."""
    g_path, d_path = paths
    with frozen(nets.D):
        with job.autocast():
            fake = nets.D(nets.G(z, g_path), d_path)
        loss = g_loss(fake.float())
        update(job, nets.G, nets.g_opt, loss, clip)
    return loss.detach()


def gan_step(
    job: Job, nets: Pair, for_d: list, z: Tensor, paths: Paths = (None, None), clip: float = 0.0
) -> dict[str, Tensor]:  # fmt: skip
    """A D step on each of for_d, then one G step. Returns the last losses."""
    for drawn in for_d:
        loss_d = d_step(job, nets, drawn, paths, clip)
    # DEVIATES 15: in training, the authors take the G step after the first of n_critic batches
    return {"loss/d": loss_d, "loss/g": g_step(job, nets, z, paths, clip)}


def score_all(job: Job, individuals: People, score_one: ScoreOne, n: int) -> None:
    """Score unscored individuals on n images each, split across processes. [Alg. 1, lines 13, 27]"""
    todo = [x for x in individuals if x.fid is None]
    mine = todo[job.ranks.rank :: job.ranks.world]
    for x in mine:
        s = score_one(x, n)
        x.is_mean, x.fid = s.is_mean, s.fid
    for part in job.ranks.gather({x.id: (x.is_mean, x.fid) for x in mine}):
        for x in todo:
            x.is_mean, x.fid = part.get(x.id, (x.is_mean, x.fid))


def unscored(individuals: People) -> People:
    """Copies without scores: the weights keep changing, so old scores become invalid."""
    return [replace(x, is_mean=None, fid=None) for x in individuals]


def births(args: Args, space: Space, state: State, n: int, parents: People) -> People:
    """n children of the parents, or the first population without parents. Coupled: each gets its own D."""
    rng = rng_of(args.seed, "born", state.stage, state.round)
    found = breed(args, space, parents, n, state.seen, rng)
    if args.stages == "coupled":
        d_parents = [replace(x, genotype=x.d_genotype) for x in parents]
        partners = breed(args, D_SPACE, d_parents, n, {x.genotype: None for x in d_parents}, rng)
        for x, partner in zip(found, partners, strict=True):
            x.d_genotype = partner.genotype
    for i, x in enumerate(found):
        x.id = f"{state.stage}.{state.round}-{i}"
        x.params = cost_of(args, space, x.genotype).params
    return found


def search_g(job: Job, state: State) -> None:
    """Stage 1: many G against one D (Alg. 1, lines 1-16). Coupled: every G_i has its own D_i (Fig. 6)."""
    args, run, P = job.args, job.run, job.args.population
    coupled = args.stages == "coupled"
    G = seeded(job, lambda: Generator(None, *args.g_shape), "G", state.stage)
    D = seeded(job, lambda: make_d(None if coupled else state.D, args.d_ch), "D", state.stage)
    nets = pair_of(job, G, D)
    run.track(state, **vars(nets))

    def score_path(x: Individual, n: int, draw: str = "eval") -> Score:
        # DEVIATES 9: the shared statistics reflect the last few paths and distort the images of others
        with own_batch_norm(job, G, x.genotype, args.bn_batches):
            return gan.score(job, G, n, gan.along(G, x.genotype), split=False, draw=draw)

    if state.round == 0:
        end = state.began + args.search_epochs(0) * job.epoch
        # line 1. PAPER §5.1: random paths train all ops equally
        for _ in gan.steps(job, state, end, "stage 1 warm-up", "population"):
            rng = rng_of(args.seed, "path", state.batch)
            paths = sample(G_SPACE, rng), sample(D_SPACE, rng) if coupled else None
            gan.log_losses(job, state, gan_step(job, nets, *gan.draw(job, state, 1), paths))
        job.ranks.average_buffers(G)
        # lines 2-3. DEVIATES 11: sampled after the warm-up, which may have trained them already
        state.population = births(args, G_SPACE, state, P, [])
        state.round = 1

    while state.round <= args.rounds:  # line 4
        end = state.began + args.search_epochs(state.round) * job.epoch
        name = f"stage 1 round {state.round}/{args.rounds}"
        for _ in gan.steps(job, state, end, name, "scoring"):  # lines 5-12: one path per batch; D sees all
            x = rng_of(args.seed, "path", state.batch).choice(state.population)
            losses = gan_step(job, nets, *gan.draw(job, state, 1), (x.genotype, x.d_genotype))
            gan.log_losses(job, state, losses)
        job.ranks.average_buffers(G)

        run.begin("search", f"{name} scoring", state.step)  # line 13
        if args.mu_plus_lambda and len(state.population) == P:  # else: resumed during scoring
            state.population += births(args, G_SPACE, state, P, state.population)
        score_all(job, state.population, score_path, args.search_n)
        kept, front = select(args, state, P if args.mu_plus_lambda else P // 2)  # line 14
        signs = round_signs(args, state, front[0], score_path)
        with own_batch_norm(job, G, front[0].genotype, args.bn_batches):
            signs |= gan.active_units(job, G, G.to_rgb, gan.along(G, front[0].genotype))
        report_round(job, state, G_SPACE, kept, front, signs)
        with own_batch_norm(job, G, front[0].genotype, args.bn_batches):
            run.samples(state.step, gan.grid(job, G, gan.along(G, front[0].genotype)))
        state.population = unscored(kept) + births(args, G_SPACE, state, P - len(kept), kept)
        known = {x.genotype: x for x in state.hall + front}
        state.hall = sorted(known.values(), key=lambda x: fid_or_inf(x.fid))[:8]
        state.finalists = unscored(front + [x for x in state.hall if x not in front])
        state.round += 1

    # line 16. DEVIATES 12: "the best" is undefined; here: of the last front and the hall, scored again
    choose(job, state, G_SPACE, score_path)
    alone = Generator(state.G, *args.g_shape).state_dict()
    with own_batch_norm(job, G, state.G, args.bn_batches):
        state.g_weights = {k: v for k, v in clone(G).items() if k in alone}


def search_d(job: Job, state: State) -> None:
    """Stage 2: every discriminator has its own copy of G* (Alg. 1, lines 17-32)."""
    args, run, P = job.args, job.run, job.args.population
    G = seeded(job, lambda: Generator(state.G, *args.g_shape), "G", state.stage)
    if state.g_weights:  # PAPER: G* keeps its stage 1 weights; CODE: random weights
        G.load_state_dict(state.g_weights)
    D = seeded(job, lambda: make_d(None, args.d_ch), "D", state.stage)
    # DEVIATES 13: all copies of G share Adam's second moments; with beta1 = 0 these only scale the step
    nets = pair_of(job, G, D)
    copies = {}  # individual's id -> weights of its generator
    run.track(state, **vars(nets), copies=copies)

    def score_pair(x: Individual, n: int, draw: str = "eval") -> Score:
        G.load_state_dict(copies[x.id])
        return gan.score(job, G, n, split=False, draw=draw)

    if state.round == 0:
        end = state.began + args.search_epochs(0) * job.epoch // args.n_critic
        for _ in gan.steps(job, state, end, "stage 2 warm-up", "population", args.n_critic):
            path = sample(D_SPACE, rng_of(args.seed, "path", state.batch))
            gan.log_losses(job, state, gan_step(job, nets, *gan.draw(job, state, args.n_critic), (None, path)))
        state.population = births(args, D_SPACE, state, P, [])  # line 18
        job.ranks.average_buffers(G)
        copies.update({x.id: clone(G) for x in state.population})
        state.round = 1

    while state.round <= args.rounds:  # line 21
        end = state.began + args.search_epochs(state.round) * job.epoch // args.n_critic
        name = f"stage 2 round {state.round}/{args.rounds}"
        # lines 22-26: sample a pair for n_critic D steps and one G step. CODE: n_critic 5; Alg. 1, line 24: 1
        for _ in gan.steps(job, state, end, name, "scoring", args.n_critic):
            x = rng_of(args.seed, "path", state.batch).choice(state.population)
            G.load_state_dict(copies[x.id])
            losses = gan_step(job, nets, *gan.draw(job, state, args.n_critic), (None, x.genotype))
            gan.log_losses(job, state, losses)
            copies[x.id] = clone(G)

        run.begin("search", f"{name} scoring", state.step)
        score_all(job, state.population, score_pair, args.search_n)
        kept, front = select(args, state, P // 2)  # line 27
        signs = round_signs(args, state, front[0], score_pair)
        G.load_state_dict(copies[front[0].id])
        signs |= gan.active_units(job, G, G.to_rgb)
        report_round(job, state, D_SPACE, kept, front, signs)
        run.samples(state.step, gan.grid(job, G))
        state.finalists = unscored(front)  # only these have trained generators
        if state.round < args.rounds:
            state.population = unscored(kept) + births(args, D_SPACE, state, P - len(kept), kept)  # line 28
            # lines 29-30, weight-resetting: the best one's weights for all; without it, their own or a parent's
            before = dict(copies)
            copies.clear()
            for x in state.population:
                wanted = [front[0].id] if args.weight_reset else [x.id, *x.parents, front[0].id]
                copies[x.id] = deepcopy(next(before[i] for i in wanted if i in before))
        state.round += 1

    # line 32. DEVIATES 14: "the best" is undefined; here: of the last front, scored on more images
    choose(job, state, D_SPACE, score_pair)
    state.g_weights = None


def choose(job: Job, state: State, space: Space, score_one: ScoreOne) -> None:
    """Score the finalists again, on --final-n images; the lowest FID becomes G* or D*."""
    job.run.begin("derive", f"stage {STAGE[space.name]}, final choice", state.step)
    score_all(job, state.finalists, score_one, job.args.final_n)
    # CODE: file names suggest that the authors retrained several and took the best
    state.finalists.sort(key=lambda x: (fid_or_inf(x.fid), -(x.is_mean or 0)))
    best = state.finalists[0]
    state.G, state.D = write_pair(job, state, space, best)
    job.run.print(f"{space.name}* is {best.id}:\n{table(best.genotype, space)}")


def round_signs(args: Args, state: State, best: Individual, score_one: ScoreOne) -> gan.Signs:
    """Spread of a round's FID and IS, that of the best one scored twice, and ranks against the previous round."""
    again = score_one(best, args.search_n, "again")
    state.twice = [*state.twice, [fid_or_inf(best.fid), fid_or_inf(again.fid), best.is_mean, again.is_mean]][-8:]
    fids = {x.id: fid_or_inf(x.fid) for x in state.population}
    signs = gan.signal_and_noise("fid", list(fids.values()), [(a, b) for a, b, _, _ in state.twice])
    if best.is_mean is not None:
        signs |= gan.signal_and_noise("is", [x.is_mean for x in state.population], [(a, b) for *_, a, b in state.twice])
    signs["signs/rank_correlation"] = gan.rank_correlation(state.ranked, fids)
    state.ranked = fids
    return signs


REMEDIES = {
    "units": "lower --g-lr",
    "noise": "raise --search-n, or --round-epochs, so that selection is no lottery",
    "ranks": "raise --round-epochs or --search-n",
}


def report_round(job: Job, state: State, space: Space, kept: People, front: People, signs: gan.Signs) -> None:
    """Write a scored round to the run directory."""
    args, run, net = job.args, job.run, job.evaluator.net
    best = front[0]  # DEVIATES 10: lowest FID of the front; CODE: lowest index; PAPER: undefined
    row = {
        "step": state.step, "stage": STAGE[space.name], "round": state.round,
        "population": [x.row() for x in state.population], "front": [x.id for x in front],
        "kept": [x.id for x in kept], "best": best.id, "eval/n": args.search_n, "eval/net": net,
    }  # fmt: skip
    gan.search_row(job, row, signs, REMEDIES)
    bn = "own" if space is D_SPACE else "recalibrated" if args.bn_batches else "shared"
    row = Score(best.fid, best.is_mean, None, args.search_n, net, job.evaluator.ref).row()
    run.evaluated(state.step, row, **{"eval/ema": False, "eval/bn": bn, "eval/what": f"best of round {state.round}"})
    write_pair(job, state, space, best)
    run.print(f"{run.status['stage']}: best {best.id}, {job.evaluator.label} {best.fid:.2f}")


def write_pair(job: Job, state: State, space: Space, x: Individual) -> tuple[Genotype, DGenotype]:
    """Write and return the genotypes of G and D for an individual."""
    g, d = (x.genotype, x.d_genotype or state.D) if space is G_SPACE else (state.G, x.genotype)
    job.run.genotype(state.step, genotype_json(job.args, g, d, x))
    return g, d


def genotype_json(args: Args, g: Genotype, d: DGenotype, best: Individual | None = None) -> dict:
    """Contents of genotype.json; --genotype reads it."""
    return {
        "method": "eagan",
        "G": g,
        "D": None if d == "plain" else d,
        "fixed_d": d if d == "plain" else None,
        **params_and_macs(G=cost_of(args, G_SPACE, g), D=cost_of(args, D_SPACE, d)),
        "scores": {"id": best and best.id, "is": best and best.is_mean, "fid": best and best.fid},
    }


# ---- training from scratch -----------------------------------------------------------------------


def train(job: Job, state: State) -> None:
    """Train the pair (G*, D*) from scratch; evaluate the EMA of G. [paper §5.1; code]"""
    args, run = job.args, job.run
    G = seeded(job, lambda: Generator(state.G, *args.g_shape), "G", "train")
    D = seeded(job, lambda: make_d(state.D, args.d_ch), "D", "train")
    G_ema = deepcopy(G)
    nets = pair_of(job, G, D)
    run.track(state, **vars(nets), G_ema=G_ema)
    if args.compile:
        G.compile(dynamic=False)
        D.compile(dynamic=False)
    step = Graph.training(job, nets, G_ema, partial(gan_step, job, nets, clip=args.grad_clip))
    about = {"method": "eagan", "genotype": {"G": state.G, "D": state.D}}
    run.begin("train", "training", state.step, images_per_step=args.d_batch * args.n_critic)
    while True:
        gan.evaluate_if_due(job, state, G, G_ema, about)
        if state.step >= state.began + job.plan[-1][1]:
            break
        run.tick(state.step, gan.until_evaluation(job, state))
        gan.log_losses(job, state, step(*gan.draw(job, state, args.n_critic)))
        if (state.step - state.began) % args.sample_every == 0:
            run.samples(state.step, gan.grid(job, G_ema))
    run.save()  # can be resumed with more --train-epochs


# ---- command line --------------------------------------------------------------------------------


def check(args: Args, world: int) -> None:
    """Reject invalid flags before any work is done. UserError names the flag, value and remedy."""
    given = f"--genotype {args.genotype}" if args.genotype and args.stages != "d" else ""
    gan.check_flags(args, world, given, f"one of {', '.join(PUBLISHED['G'])} or a file")
    compared = args.objectives.split(",")
    if not set(compared) <= set(OBJECTIVES):
        raise UserError(f"--objectives {args.objectives}: use a comma-separated list of {', '.join(OBJECTIVES)}")
    if "is" in compared:
        gan.check_splits(search_n=args.search_n, final_n=args.final_n, eval_n=args.eval_n)
    if args.z_dim % 3:
        raise UserError(f"--z-dim {args.z_dim}: split equally between three cells; use a multiple of 3")
    if args.stages == "d" and not args.genotype:
        raise UserError("--stages d: requires a G; pass it with --genotype")
    if args.selection == "cars" and args.objectives != "is,fid,size":
        raise UserError(f"--selection cars: requires --objectives is,fid,size, not {args.objectives}")
    if args.d_genotype and not args.genotype:
        raise UserError(f"--d-genotype {args.d_genotype}: requires --genotype; for the fixed D of stage 1 use --dbar")


def d_of_file(args: Args) -> tuple[str, str]:
    """The D to train against: --d-genotype, that of the --genotype file, or EAGAN's; and a line for the log, or ""."""
    default = "eagan-d-stl10" if args.size == 48 else "eagan-d-cifar10"
    if args.d_genotype or not args.genotype.endswith(".json"):
        return args.d_genotype or default, ""
    file = read_json(Path(args.genotype), "genotype file")
    if file.get("fixed_d") == "plain":
        return "plain", ""
    if file.get("method", "eagan") != "eagan":
        return default, f"the D of {args.genotype} is of another search space; training against {default}"
    if file.get("D") is None:
        return default, f"{args.genotype} has no D; training against {default}"
    return args.genotype, ""


def first_state(args: Args) -> tuple[State, str]:
    """State of a new run: the given genotypes, or the fixed D; and a line for the log, or "".
    UserError: invalid genotype or --size."""
    named(args.init_g or "eagan-g", G_SPACE, PUBLISHED, "--init-g")  # only checks that it can be loaded
    named(args.init_d or "autogan-d", D_SPACE, PUBLISHED, "--init-d")
    # DEVIATES 16: AutoGAN-D (GD1). PAPER: 0.91M, the size of D_C, which is found only later; CODE: plain
    G, d, note = None, DBAR[args.dbar], ""
    if args.genotype:
        G = named(args.genotype, G_SPACE, PUBLISHED, "--genotype")
        d, note = d_of_file(args)
    D = d if d == "plain" else named(d, D_SPACE, PUBLISHED, "--d-genotype")
    stages = stages_of(args)
    if D == "plain" and args.size < 32:
        raise UserError(f"--size {args.size}: the plain discriminator halves images five times; use 32 or more")
    unit = 1 if D == "plain" else 2 * 2 ** sum(row[5] != "none" for row in D)
    if "search-d" in stages or "coupled" in stages:
        unit = 16
    if args.size % unit:
        raise UserError(f"--size {args.size}: not divisible by this discriminator's stride; use a multiple of {unit}")
    return State(G=G, D=D), note


def costs_of(args: Args, state: State) -> dict[str, Cost]:
    """Costs of the networks of this run; EAGAN's G stands in for one not found yet."""
    stages, costs = stages_of(args), {}
    costs["G" if state.G else "G (as EAGAN's)"] = cost_of(args, G_SPACE, state.G or EAGAN_G)
    if "search-g" in stages or stages == ["train"]:
        costs["D"] = cost_of(args, D_SPACE, state.D)
    if "search-g" in stages or "coupled" in stages:
        costs["SuperNet-G"] = Cost(cost_of(args, G_SPACE, None).params)
    if "search-d" in stages or "coupled" in stages:
        costs["SuperNet-D"] = Cost(cost_of(args, D_SPACE, None).params)
    return costs


def plan_of(job: Job) -> list[gan.Stage]:
    """(name, G updates, multiply-adds per update including scoring) per stage, based on EAGAN's networks."""
    args, plan = job.args, []
    g, d = cost_of(args, G_SPACE, EAGAN_G).macs, cost_of(args, D_SPACE, EAGAN_D).macs
    for name in stages_of(args):
        if name == "train":
            plan.append(gan.train_stage(job, args.train_epochs, g, d))
        else:
            n_critic = args.n_critic if name == "search-d" else 1
            steps = args.search_epochs(args.rounds) * job.epoch // n_critic
            scoring = gan.scoring_macs(args, g, args.rounds * args.population * args.search_n)
            plan.append((name, steps, gan.update_macs(args, g, d, n_critic) + scoring / max(steps, 1)))
    return plan


def main(args: Args) -> dict | None:
    """Search, train, evaluate. Returns the best scores of the training phase, or None without one."""
    # -- all checks run before the run directory is created
    ranks = start_ranks(args.device)
    check(args, ranks.world)
    if args.phase == "sample":
        return gan.sample(args, ranks, Generator.saved)
    evaluator = Evaluator(**gan.evaluator_options(args, ranks), want_is="is" in args.objectives.split(","))
    data = ranks.first(lambda: load_dataset(args.dataset, args.data_dir, args.size))
    evaluator.use(data)
    args = replace(args, size=data.images.shape[-1])
    job, trained, note = Job(args, ranks, evaluator, data), None, ""
    if args.phase == "eval":
        job.args, trained = gan.load_weights(args, ranks.device, Generator.saved)
        state, costs = State(G=trained.genotype), {"G": cost_of(job.args, G_SPACE, trained.genotype)}
    else:
        state, note = first_state(args)
        costs, job.plan = costs_of(args, state), plan_of(job)
    lines = gan.opening(job, "eagan", costs) + ([note] if note else [])
    loops = {"search-g": search_g, "coupled": search_g, "search-d": search_d, "train": train}
    copies = args.population * cost_of(job.args, G_SPACE, state.G or EAGAN_G).params  # of G*, in stage 2
    if args.dry_run:
        stand_in = replace(state, G=state.G or EAGAN_G)
        return dry_run(lines, job, loops, stand_in, {"search-d": 4 * copies})

    with Run(args.script(), "eagan", asdict(job.args), ranks, **gan.run_facts(job, costs, copies)) as job.run:
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
