# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch>=2.11", "torchvision>=0.26", "numpy>=2.0", "pillow>=10.3", "scipy>=1.13",
#   "pytorch-fid>=0.3.0", "typer>=0.19", "rich>=14.0", "textual>=8.0", "psutil>=6.0",
#   "nvidia-ml-py>=12.0",
# ]
# ///
"""AutoGAN: an RNN controller grows a generator, cell by cell (Gong et al., ICCV 2019).

Paper: arXiv 1908.03835. Authors' code: VITA-Group/AutoGAN at a5eeef0. Details: docs/autogan.md.

Search (Algorithm 1): stage s = 0, 1, 2 decides cell s + 1, on images of 8, 16, 32 px. Each iteration:
    step 1: train the weights shared by all generators, and a fixed discriminator architecture, with a
            new generator architecture for every batch; if the losses go flat, request a dynamic reset
    step 2: train the stage's controller, an LSTM, by REINFORCE; the reward is the Inception Score
            with the shared weights
    step 3: at the end of a stage, sample M candidates and keep the K best: the beam from which the
            next stage's controller continues
    step 4: for a dynamic reset, re-initialise G and D; keep controller and beam
Derive: train the K architectures of the last beam briefly from scratch and choose the best one.
It is then fully trained from scratch, against the same discriminator at twice the width, and evaluated.

Published (CIFAR-10, 50,000 images): IS 8.55, FID 12.42 after 43 hours. Not yet run at paper scale here.
The authors' code ranks candidates on weights wiped by a reset, resets its baseline every iteration, fails
with more than one architecture per step, and lacks the other rewards and baseline searches. Tags:
PAPER (specified by the paper), CODE (follows the authors' code), DEVIATES (differs from both).
"""

import sys
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from math import inf, isfinite, log
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from common import gan
from common.cells import AutoGANDiscriminator, Conv, Cost, conv_cost, count_params, init_weights, params_and_macs
from common.cli import CommonArgs, cli, opt
from common.data import load_dataset
from common.files import UserError, read_json, rng_of, stream
from common.gan import Job, Pair, adam, ema_update, frozen, own_batch_norm, pair_of, seeded, update
from common.graph import Graph
from common.metrics import Evaluator, Score
from common.ranks import Ranks, start_ranks
from common.rehearsal import dry_run
from common.run import DivergedError, Run

# ---- arguments -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Args(CommonArgs):
    genotype: str | None = opt(None, "Skip the search and train A, B, C, sngan, a vector or file. [paper §4.1]")
    dataset: str = opt("cifar10", "[paper §4]")
    size: int = opt(0, "Image side in pixels, a multiple of 2^cells; 0: the data set's own. [paper §4]")

    search: Literal["mlas", "slas", "random-shared", "random"] = opt(
        "mlas", "slas: one controller for all cells; random-shared, random: no controller. [paper §4.3]", "Search"
    )
    cells: int = opt(3, "Cells of G; each doubles the image side. [paper §4.1]", "Search", min=1, max=6)
    iterations: int = opt(90, "Search iterations, T; released script: 65. [paper §4]", "Search", min=1)
    grow: str = opt("25,55", "Iterations that end a stage; released script: 15,35. [authors' code]", "Search")
    gan_epochs: int = opt(15, "Epochs of the shared GAN per iteration. [paper §4]", "Search", min=1)
    ctrl_steps: int = opt(30, "Controller steps per iteration. [paper §4]", "Search", min=1)
    ctrl_batch: int = opt(1, "Architectures scored per controller step. [authors' code]", "Search", min=1)
    ctrl_lr: float = opt(3.5e-4, "Learning rate of the controller. [paper §4]", "Search", min=0)
    ctrl_hidden: int = opt(100, "Hidden and embedding size of the LSTM. [authors' code]", "Search", min=1)
    controller_loss: Literal["fixed", "reference"] = opt(
        "fixed", "reference: the authors' formulas. [fixed: ours; reference: code]", "Search"
    )
    entropy_weight: float = opt(1e-3, "Entropy weight; paper: 1e-4. [authors' code]", "Search", min=0)
    baseline_decay: float = opt(0.9, "Decay of the reward baseline per step. [authors' code]", "Search", min=0, max=1)
    candidates: int = opt(10, "Candidates at the end of a stage, M. [authors' code]", "Search", min=1)
    beam: int = opt(5, "Beam size, K. [authors' code]", "Search", min=1)
    dedupe: bool = opt(True, "Draw distinct candidates, if possible. [ours]", "Search")
    reward: str = opt("is", "is, fid (1/FID) or is-cost (IS minus a penalty): see REWARDS. [paper §4.3]", "Search")
    cost: Literal["params", "macs"] = opt("params", "Cost penalised by is-cost. [ours]", "Search")
    cost_weight: float = opt(1.0, "Penalty of a stage's largest G, in IS points. [ours]", "Search", min=0)
    reward_n: int = opt(5000, "Images generated per reward. [authors' code]", "Search", min=2)
    bn_batches: int = opt(0, "Batches of 100 to re-estimate BatchNorm for a score; 0: none. [code]", "Search", min=0)
    dynamic_reset: bool = opt(True, "Re-initialise G and D when the losses go flat. [paper §3.3]", "Search")
    reset_variance: float = opt(1e-3, "Loss variance that counts as flat. [paper §4]", "Search", min=0)
    reset_window: int = opt(500, "Number of losses for this variance. [authors' code]", "Search", min=2)
    search_g_ch: int = opt(128, "Channels of the shared G. [authors' code]", "Search", min=1)
    search_d_ch: int = opt(64, "Channels of D during the search. [authors' code]", "Search", min=1)
    random_n: int = opt(0, "Architectures scored by a random search; 0: as many as mlas. [ours]", "Search", min=0)
    derive_epochs: int = opt(30, "Epochs of training per finalist; 0: none; paper: 320, all. [ours]", "Search", min=0)
    final_n: int = opt(10_000, "Images generated to score a finalist. [ours]", "Search", min=2)
    proxy_n: int = opt(0, "Random finalists for the proxy's rank correlation. [paper §4.3]", "Search", min=0)

    train_epochs: int = opt(320, "Epochs of training from scratch. [authors' code]", "Train", min=1)
    g_ch: int = opt(256, "[authors' code]")
    d_ch: int = opt(128, "[authors' code]")
    z_dim: int = opt(128, "[authors' code]")
    g_batch: int = opt(128, "[paper §4]")
    d_batch: int = opt(64, "[paper §4]")
    g_lr: float = opt(2e-4, "[paper §4]")
    d_lr: float = opt(2e-4, "[paper §4]")
    adam_b1: float = opt(0.0, "Adam beta1 of all optimisers. [authors' code]")
    adam_b2: float = opt(0.9, "Adam beta2 of all optimisers. [authors' code]")
    ema: float = opt(0.999, "[authors' code]")
    eval_n: int = opt(50_000, "[paper §4]")
    eval_every: int = opt(20, "[authors' code]")

    @property
    def stage_ends(self) -> list[int]:
        """Last iteration of each stage, after which its beam is taken. Only mlas has several stages."""
        if self.search != "mlas" or not self.grow.strip():
            return [self.iterations]
        return [*map(int, self.grow.split(",")), self.iterations]

    @property
    def random_count(self) -> int:
        """Architectures scored by a random search; by default as many as mlas."""
        return self.random_n or self.iterations * self.ctrl_steps * self.ctrl_batch + self.cells * self.candidates

    def cells_of(self, s: int) -> range:
        """Cells decided in stage s."""
        return range(s, s + 1) if self.search == "mlas" else range(self.cells)

    def side(self, s: int) -> int:
        """Side of generated and real images at stage s, in pixels."""
        # CODE: 2^(s + 3) for all sizes, so no search at 48 px
        return self.size * 2 ** (s + 1) // 2**self.cells

    def g_cost(self, genotype: "Rows", ch: int) -> Cost:
        """Cost of a G with ch channels; with fewer cells, as in earlier stages, its images are smaller."""
        return Generator.cost(genotype, ch, self.z_dim, self.side(len(genotype) - 1))

    def needs(self, score: str) -> bool:
        """Whether the reward needs this score, "is" or "fid". The compact network computes both anyway."""
        return self.evaluator == "compact" or SPARED.get(self.reward) != score


PRESETS = {
    "paper": {},
    "quick": dict(
        preset="quick", iterations=9, grow="3,6", gan_epochs=1, reward_n=1000, beam=3, derive_epochs=2,
        final_n=2000, train_epochs=25, eval_n=10_000, eval_every=5, sample_every=500,
    ),
    "smoke": dict(
        preset="smoke", dataset="shapes", evaluator="compact", iterations=6, grow="2,4", gan_epochs=1,
        epoch_batches=12, ctrl_steps=4, candidates=4, beam=2, reward_n=200, derive_epochs=2, final_n=300,
        search_g_ch=16, search_d_ch=16, g_ch=24, d_ch=16, d_batch=32, g_batch=32, n_critic=1, g_lr=1e-3,
        d_lr=1e-3, ema=0.98, train_epochs=12, eval_n=1000, eval_every=4, sample_every=50, log_every=10,
    ),
}  # fmt: skip

# ---- losses (paper Eq. 1: hinge), on the scores of D, (B, 1) -------------------------------------


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[relu(1 - D(x))] + E[relu(1 + D(G(z)))]."""
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def g_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """-E[D(G(z))]. real: scores of real images, for relativistic losses; unused here."""
    return -fake.mean()  # CODE: Eq. 2 in the paper has no gradient where D(G(z)) > 0


# ---- search space (paper §3.1, Fig. 2) -----------------------------------------------------------

Vector = tuple[int, ...]  # the authors' encoding: codes of all decisions, in order
Row = tuple[str, ...]  # decisions of a cell, by name: conv, norm, up, shortcut, skips
Genotype = tuple[Row, ...]
Rows = tuple[Row | None, ...]  # rows that a network is built for; None: all options

layer_cost = partial(conv_cost, bias_adds=False)  # PAPER: multiply-adds without the biases
d_cost = partial(AutoGANDiscriminator.cost, bias_adds=False)

# name -> module constructor, (channels). CODE: "in" has no scale, shift or running statistics
NORMS = {"none": nn.Identity, "bn": nn.BatchNorm2d, "in": nn.InstanceNorm2d}
UPS = {  # name -> cost of up-sampling a side x side map by 2, (channels, side)
    "bilinear": lambda ch, side: Cost(),
    "nearest": lambda ch, side: Cost(),
    "deconv": lambda ch, side: layer_cost(ch, ch, 2, side),  # 2x2, stride 2
}


def decisions(cell: int) -> dict[str, Row]:
    """Decisions about a cell (0-based): name -> options. The index of an option is its code."""
    # CODE: the code of skips is a bit mask: the highest bit is the first cell, the lowest the previous one
    masks = [[i + 1 for i in range(cell) if code >> (cell - 1 - i) & 1] for code in range(2**cell)]
    return {
        "conv": ("post", "pre"),
        "norm": tuple(NORMS),
        "up": tuple(UPS),
        "shortcut": ("no", "yes"),
        "skips": tuple("+".join(map(str, mask)) or "none" for mask in masks),
    }


def sources_of(skips: str) -> list[int]:
    """Source cells (1-based) of a skip decision."""
    return [] if skips == "none" else [int(source) for source in skips.split("+")]


def to_decide(cells: range) -> list[tuple[str, Row]]:
    """(name, options) of every decision about these cells; the first cell has no skips to decide."""
    return [(f"{cell + 1}/{name}", x) for cell in cells for name, x in decisions(cell).items() if len(x) > 1]


def names_of(vector: Vector) -> Genotype:
    """Decode a vector to option names."""
    rows, codes = [], iter(vector)
    for cell in range((len(vector) + 1) // 5):
        options = decisions(cell).values()
        rows.append(tuple(x[next(codes) if len(x) > 1 else 0] for x in options))
    return tuple(rows)


def text_of(vector: Vector) -> str:
    return " ".join(map(str, vector))


def largest(cells: int) -> Vector:
    """The most expensive architecture with this many cells."""
    most, decided = {"pre", "bn", "deconv", "yes"}, to_decide(range(cells))
    return tuple(next((i for i, name in enumerate(x) if name in most), len(x) - 1) for _, x in decided)


# paper Fig. 3 and Table 1; A is the authors' "top 1", B and C are taken from their fixed models
PUBLISHED = {
    "A": (1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 3),
    "B": (1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 3),
    "C": (1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 3),
    "sngan": (1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0),  # PAPER §4.1: part of the search space
}


def read_vector(name: str) -> Vector:
    """Read a vector: a published name, digits, or a genotype.json. UserError: none of these."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    text, source = name, f"--genotype {name!r}"
    if name.endswith(".json"):
        text, source = read_json(Path(name), "genotype file").get("vector"), f"{name}, vector"
        if not isinstance(text, str):
            raise UserError(f"{name}: no key 'vector'; use a genotype.json of autogan.py")
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        known = f"{', '.join(PUBLISHED)}, numbers like '{text_of(PUBLISHED['A'])}' or a .json"
        raise UserError(f"{source}: no such architecture; use {known}")
    if len(words) % 5 != 4:
        raise UserError(f"{source}: {len(words)} numbers; use 4 for the first cell and 5 for each other cell")
    vector = tuple(map(int, words))
    decided = to_decide(range((len(vector) + 1) // 5))
    for i, (code, (what, names)) in enumerate(zip(vector, decided, strict=True), 1):
        if code >= len(names):
            known = f"0..{len(names) - 1} ({', '.join(names)})"
            raise UserError(f"{source}: number {i}, {what}: {code} is out of range {known}")
    return vector


# ---- networks (paper §3.1) -----------------------------------------------------------------------


class ConvBlock(nn.Module):
    """3x3 convolution, norm, ReLU and, in the first block, up-sampling: (B, C, H, W) -> same or (B, C, 2H, 2W).

    pre: norm, ReLU, up, convolution. post: up, convolution, norm, ReLU. [order: authors' code]
    """

    def __init__(self, ch: int, pre: bool, norms: Row, ups: Row) -> None:
        super().__init__()
        self.pre = pre
        self.conv = Conv(ch, ch, 3, padding=1)
        for name in norms:
            self.add_module(name, NORMS[name](ch))
        self.deconv = nn.ConvTranspose2d(ch, ch, 2, 2) if "deconv" in ups else None

    def forward(self, x: Tensor, norm: str, up: str | None) -> Tensor:
        if self.pre:
            return self.up_conv(getattr(self, norm)(x).relu(), up)
        return getattr(self, norm)(self.up_conv(x, up)).relu()

    def up_conv(self, x: Tensor, up: str | None) -> Tensor:
        if up == "nearest" and x.shape[-1] >= 8:  # faster as one transposed 4x4 convolution
            w = self.conv.weight.flip(2, 3).transpose(0, 1)
            w = F.pad(w, (0, 1, 0, 1)) + F.pad(w, (1, 0, 0, 1)) + F.pad(w, (0, 1, 1, 0)) + F.pad(w, (1, 0, 1, 0))
            return F.conv_transpose2d(x, w, self.conv.bias, stride=2, padding=1)
        if up == "deconv":
            x = self.deconv(x)
        elif up:
            x = F.interpolate(x, scale_factor=2, mode=up)
        return self.conv(x)

    @staticmethod
    def cost(ch: int, norms: Row, ups: Row, side: int) -> Cost:
        """Cost with output side x side, without multiply-adds of the norms."""
        norm = Cost(sum(count_params(NORMS[name](ch)) for name in norms))
        return sum((UPS[name](ch, side // 2) for name in ups), layer_cost(ch, ch, 3, side) + norm)


class Projection(nn.Module):
    """Shortcut or skip: up-sampling by 2^doublings and a 1x1 convolution."""

    def __init__(self, ch: int, doublings: int, ups: Row) -> None:
        super().__init__()
        self.conv, self.factor, self.deconv = Conv(ch, ch, 1), 2**doublings, None
        if "deconv" in ups:
            self.deconv = nn.Sequential(*(nn.ConvTranspose2d(ch, ch, 2, 2) for _ in range(doublings)))

    def forward(self, x: Tensor, up: str) -> Tensor:
        if up == "deconv":
            return self.conv(self.deconv(x))
        return F.interpolate(self.conv(x), scale_factor=self.factor, mode=up)  # 1x1 first: they commute

    @staticmethod
    def cost(ch: int, doublings: int, ups: Row, side: int) -> Cost:
        """Cost with output side x side."""
        sides = [side // 2**i for i in range(1, doublings + 1)]
        return sum((UPS[name](ch, before) for name in ups for before in sides), layer_cost(ch, ch, 1, side))


class Cell(nn.Module):
    """x: (B, C, H, W), taps of earlier cells -> own tap and output, both (B, C, 2H, 2W).

    row None: build all options with shared weights: one convolution and BatchNorm per (conv, block), one
    deconvolution per conv in the first block, one projection per source. [authors' code]
    """

    def __init__(self, ch: int, cell: int, row: Row | None) -> None:
        super().__init__()
        convs, norms, ups, shortcuts, (skips,) = self.options(cell, row)
        self.block1 = nn.ModuleDict({conv: ConvBlock(ch, conv == "pre", norms, ups) for conv in convs})
        self.block2 = nn.ModuleDict({conv: ConvBlock(ch, conv == "pre", norms, ()) for conv in convs})
        self.shortcut = Projection(ch, 1, ups) if "yes" in shortcuts else None
        self.skips = nn.ModuleDict({str(i): Projection(ch, cell + 1 - i, ups) for i in sources_of(skips)})

    def forward(self, x: Tensor, taps: list[Tensor], row: Row) -> tuple[Tensor, Tensor]:
        conv, norm, up, shortcut, skips = row
        h = self.block1[conv](x, norm, up)
        for i in sources_of(skips):  # out of place: += would overwrite a tensor that ReLU's backward pass needs
            h = h + self.skips[str(i)](taps[i - 1], up)
        out = self.block2[conv](h, norm, None)
        if shortcut == "yes":
            out = out + self.shortcut(x, up)
        return h, out  # CODE: the tap is the input of the second block; in Fig. 3, before the skips

    @staticmethod
    def options(cell: int, row: Row | None) -> list[Row]:
        """Options to build per decision: those of the row, or all options and all skips (None)."""
        if row:
            return [(name,) for name in row]
        *others, skips = decisions(cell).values()
        return [*others, skips[-1:]]

    @staticmethod
    def cost(ch: int, cell: int, row: Row | None, side: int) -> Cost:
        """Cost with output side x side."""
        convs, norms, ups, shortcuts, (skips,) = Cell.options(cell, row)
        total = Cost()
        for _ in convs:
            total += ConvBlock.cost(ch, norms, ups, side) + ConvBlock.cost(ch, norms, (), side)
        if "yes" in shortcuts:
            total += Projection.cost(ch, 1, ups, side)
        for i in sources_of(skips):
            total += Projection.cost(ch, cell + 1 - i, ups, side)
        return total


class Generator(nn.Module):
    """z: (B, z_dim) -> (B, 3, size, size) in [-1, 1].

    A genotype of Nones builds the shared weights of all generators; forward then takes a genotype, which
    may have fewer cells: n cells give images of side bottom * 2^n.
    """

    def __init__(self, genotype: Rows, ch: int = 256, z_dim: int = 128, size: int = 32) -> None:
        super().__init__()
        self.genotype, self.ch, self.bottom = genotype, ch, size // 2 ** len(genotype)
        self.latent = nn.Linear(z_dim, ch * self.bottom**2)
        self.cells = nn.ModuleList(Cell(ch, i, row) for i, row in enumerate(genotype))
        self.bn = nn.BatchNorm2d(ch)
        self.to_rgb = Conv(ch, 3, 3, padding=1)
        init_weights(self)

    def forward(self, z: Tensor, genotype: Genotype | None = None) -> Tensor:
        x = self.latent(z).view(-1, self.ch, self.bottom, self.bottom)
        x, taps = x.contiguous(memory_format=torch.channels_last), []
        for cell, row in zip(self.cells, genotype or self.genotype, strict=False):
            tap, x = cell(x, taps, row)
            taps.append(tap)
        return self.to_rgb(self.bn(x).relu()).tanh()

    @classmethod
    def saved(cls, weights: dict) -> "Generator":
        """Build the generator of a weights.pt; its weights are not loaded."""
        if weights.get("tap", "after") != "after":
            raise UserError("created with --tap before, which was removed; use the version that created it")
        genotype = weights["genotype"]["G"]
        for cell, row in enumerate(genotype):
            for name, options in zip(row, decisions(cell).values(), strict=True):
                if name not in options:
                    raise UserError(f"cell {cell + 1}: unknown option {name!r:.20}; use {', '.join(options)}")
        G = cls(genotype, *(int(weights[k]) for k in ("g_ch", "z_dim", "size")))
        return G.to(memory_format=torch.channels_last)

    @staticmethod
    def cost(genotype: Rows, ch: int = 256, z_dim: int = 128, size: int = 32) -> Cost:
        """Cost of the generator with these arguments."""
        bottom = size // 2 ** len(genotype)
        total = layer_cost(z_dim, ch * bottom**2, 1, 1)
        for i, row in enumerate(genotype):
            total += Cell.cost(ch, i, row, bottom * 2 ** (i + 1))
        return total + Cost(2 * ch) + layer_cost(ch, 3, 3, size)


# ---- controller (paper §3.3) ---------------------------------------------------------------------


@dataclass
class Candidate:
    """An architecture and its scores."""

    vector: Vector
    h: Tensor | None = None  # LSTM state after the last decision
    c: Tensor | None = None
    score: float | None = None  # the reward
    is_mean: float | None = None
    fid: float | None = None
    params: int = 0
    how: str = ""  # origin of a finalist: beam, proxy or random
    shared: float | None = None  # of a finalist: reward with the shared weights; `score`: after training

    def row(self) -> dict:
        """Entry in search.jsonl."""
        about = {"how": self.how, "shared": self.shared} if self.how else {"params": self.params}
        scores = {} if self.score is None else {"score": self.score, "is": self.is_mean, "fid": self.fid}
        return {"vector": text_of(self.vector), **scores, **about}


class Drawn(NamedTuple):
    """n architectures sampled by a controller, and the distributions of its decisions."""

    candidates: list[Candidate]
    logp: Tensor  # (n, decisions), log-probabilities of the chosen options
    entropy: Tensor  # (n, decisions), nats
    policy: list[Tensor]  # (n, options) per decision


class Controller(nn.Module):
    """LSTM that decides the cells of a stage, conditioned on earlier decisions. Runs on the CPU."""

    def __init__(self, options: list[int], hidden: int = 100) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(hidden, hidden)
        self.embedding = nn.Embedding(sum(options), hidden)
        self.decoders = nn.ModuleList(nn.Linear(hidden, n) for n in options)

    def forward(self, n: int, rng: torch.Generator, beam: list[Candidate]) -> Drawn:
        """Sample n architectures, each continuing a random member of the beam (with replacement)."""
        x = h = c = self.lstm.weight_hh.new_zeros(n, self.lstm.hidden_size)
        prefixes: list[Vector] = [()] * n
        if beam:  # CODE: x stays zero; in Fig. 1 it is the last cell's last token
            start = [beam[i] for i in torch.randint(len(beam), (n,), generator=rng)]
            prefixes = [b.vector for b in start]
            h, c = torch.stack([b.h for b in start]), torch.stack([b.c for b in start])
        tokens, logp, entropy, policy, first = [], [], [], [], 0
        for decoder in self.decoders:
            h, c = self.lstm(x, (h, c))
            log_p = decoder(h).log_softmax(1)
            p = log_p.exp()
            if not p.isfinite().all():
                raise DivergedError("the controller's policy is not finite; lower --ctrl-lr and start again")
            token = torch.multinomial(p.detach(), 1, generator=rng)
            x = self.embedding(token[:, 0] + first)
            first += decoder.out_features
            tokens.append(token)
            logp.append(log_p.gather(1, token))
            entropy.append(-(p * log_p).sum(1, keepdim=True))
            policy.append(p.detach())
        parts = zip(prefixes, torch.cat(tokens, 1).tolist(), h.detach(), c.detach(), strict=True)
        drawn = [Candidate((*prefix, *own), h, c) for prefix, own, h, c in parts]
        return Drawn(drawn, torch.cat(logp, 1), torch.cat(entropy, 1), policy)


def controller_loss(args: Args, rewards: Tensor, drawn: Drawn, baseline: list | None) -> tuple[Tensor, list]:
    """REINFORCE loss for rewards (n,), and the updated baseline. [paper §3.3.2]"""
    keep, weight = args.baseline_decay, args.entropy_weight
    if args.controller_loss == "reference":
        # CODE: the entropy in the advantage is not detached, so minimising the loss lowers it; the
        # baseline already includes this reward; a (1, D) row times a (D, 1) column
        r = rewards[:, None] + weight * drawn.entropy
        b = r if baseline is None else keep * torch.tensor(baseline) + (1 - keep) * r
        return -drawn.logp.sum() * (r - b).sum(), b[0].tolist()
    # DEVIATES 1: the entropy is a bonus, as the paper intends; the baseline uses earlier rewards only
    mean = rewards.mean().item()
    b = mean if baseline is None else baseline[0]
    loss = -((rewards - b) * drawn.logp.sum(1)).mean() - weight * drawn.entropy.sum(1).mean()
    return loss, [keep * b + (1 - keep) * mean]


# ---- rewards (paper §3.3.2, §4.3) ----------------------------------------------------------------

# name -> reward, (score, genotype, price); add your own here.
# price: --cost-weight times the --cost of this G, relative to the largest G of its stage
REWARDS = {
    "is": lambda score, genotype, price: score.is_mean,
    "fid": lambda score, genotype, price: 1 / score.fid if score.fid > 0 else 0.0,  # PAPER §4.3.2
    "is-cost": lambda score, genotype, price: score.is_mean - price,
}
SPARED = {"is": "fid", "is-cost": "fid", "fid": "is"}  # score not needed by a reward
WORST = Score(inf, 0.0, None, 0, "", "")  # replaces a score that is not finite


def reward_of(args: Args, score: Score, genotype: Genotype, ch: int) -> float:
    """Reward of a G with ch channels; if it is not finite, that of the worst and most expensive G."""
    own, most = args.g_cost(genotype, ch), args.g_cost(names_of(largest(len(genotype))), ch)
    price = args.cost_weight * getattr(own, args.cost) / getattr(most, args.cost)
    value = REWARDS[args.reward](score, genotype, price)
    return value if isfinite(value) else REWARDS[args.reward](WORST, genotype, args.cost_weight)


# ---- search (paper §3.3, Algorithm 1) ------------------------------------------------------------


@dataclass
class State(gan.Progress):
    """State of a run besides the networks."""

    s: int = 0  # the paper's stage: cell s + 1 is being decided
    iteration: int = 0  # search iteration
    turn: int = 0  # G updates in this iteration
    ctrl: int = 0  # controller steps in this iteration
    reset: bool = False  # this iteration ends with a dynamic reset
    resets: int = 0  # number of resets so far
    skipped: dict[int, int] = field(default_factory=dict)  # stage -> G updates skipped by resets
    windows: dict[str, list[float]] = field(default_factory=lambda: {"g": [], "d": []})  # latest losses
    unseen: list[Tensor] = field(default_factory=list)  # losses of gan_steps since, on the device
    baseline: list[float] | None = None  # reward baseline of the stage
    scored: list[Candidate] = field(default_factory=list)  # candidates of this stage scored so far
    rewards: list[float] = field(default_factory=list)  # rewards in this iteration
    twice: list[list[float]] = field(default_factory=list)  # rewards of one candidate of this stage, scored twice
    beam: list[Candidate] = field(default_factory=list)
    finalists: list[Candidate] = field(default_factory=list)
    G: Vector | None = None  # the architecture, once found or given

    def state_dict(self) -> dict:
        lists = {k: [vars(x) for x in getattr(self, k)] for k in ("scored", "beam", "finalists")}
        unseen = torch.stack(self.unseen).tolist() if self.unseen else []
        return {**super().state_dict(), **lists, "unseen": unseen}

    def load_state_dict(self, saved: dict) -> None:
        lists = {k: [Candidate(**x) for x in saved[k]] for k in ("scored", "beam", "finalists")}
        super().load_state_dict({**saved, **lists, "unseen": [torch.tensor(x) for x in saved.get("unseen", [])]})

    def vector(self, args: Args) -> Vector:
        """The architecture; until it is found, A (three cells) or the largest one."""
        return self.G or (PUBLISHED["A"] if args.cells == 3 else largest(args.cells))

    def row(self, kind: str, **more: object) -> dict:
        """A row of search.jsonl."""
        return {"step": self.step, "stage": self.s, "iteration": self.iteration, "kind": kind, **more}

    def watch(self, job: Job) -> bool:
        """Move the unseen losses to the windows, which continue across iterations and stages, until one is flat."""
        rows, self.unseen = [x.to(job.ranks.device) for x in self.unseen], []
        for everyone in zip(*job.ranks.gather(torch.stack(rows).tolist()), strict=True):
            means = [sum(x) / len(x) for x in zip(*everyone, strict=True)]
            for name, new in (("d", means[:-1]), ("g", means[-1:])):
                self.windows[name] = [*self.windows[name], *new][-job.args.reset_window :]
            if job.args.dynamic_reset and self.collapsed(job.args):
                return True
        return False

    def window_row(self) -> dict:
        """Variances of the losses in the windows; None if empty."""
        row: dict = {"n": len(self.windows["g"])}
        for name, losses in self.windows.items():
            losses = torch.tensor(losses, dtype=torch.float64)
            row[f"var_{name}"] = losses.var(correction=0).item() if len(losses) else None
        return row

    def collapsed(self, args: Args) -> bool:
        """Whether G's window is full and a loss has gone flat, a sign of collapse. [paper §3.3]"""
        if len(self.windows["g"]) < args.reset_window:
            return False
        row = self.window_row()  # PAPER §4, CODE: variance; §3.3 says standard deviation
        return min(row["var_g"], row["var_d"]) < args.reset_variance


def stages_of(args: Args) -> list[str]:
    """The stages of the run, in order. "search" comprises the paper's stages."""
    if args.genotype:
        return ["train"]
    search = ["derive"] if args.search == "random" else ["search", "derive"]
    return search + (["train"] if args.phase == "all" else [])


def d_step(job: Job, nets: Pair, drawn: tuple, genotype: Genotype | None = None, stage: int = 2) -> Tensor:
    """One D step on real images and equally many fakes."""
    real, z = drawn
    with job.autocast():
        with torch.no_grad():
            fake = nets.G(z, genotype)
        # DEVIATES 2: one pass over both, faster; one power iteration per step, two in the authors' code
        d_real, d_fake = nets.D(torch.cat([real, fake.to(real.dtype)]), stage).chunk(2)
    loss = d_loss(d_real.float(), d_fake.float())
    update(job, nets.D, nets.d_opt, loss)
    return loss.detach()


def g_step(job: Job, nets: Pair, z: Tensor, genotype: Genotype | None = None, stage: int = 2) -> Tensor:
    """One G step."""
    with frozen(nets.D):
        with job.autocast():
            fake = nets.D(nets.G(z, genotype), stage)
        loss = g_loss(fake.float())
        update(job, nets.G, nets.g_opt, loss)  # DEVIATES 3: Adam does not update ops that were not sampled
    return loss.detach()


def gan_step(job: Job, nets: Pair, for_d: list, z: Tensor, genotypes: Sequence = (), stage: int = 2) -> list[Tensor]:
    """A D step on each of for_d, in the search each with its own genotype, then one G step. Returns the losses."""
    genotypes = genotypes or [None] * len(for_d)
    losses = [d_step(job, nets, drawn, genotype, stage) for drawn, genotype in zip(for_d, genotypes, strict=True)]
    # DEVIATES 6: after n_critic D steps; the authors take the G step after the first of them
    return [*losses, g_step(job, nets, z, genotypes[-1], stage)]


def uniform(args: Args, n: int, *name: object) -> list[Candidate]:
    """Sample n architectures uniformly from the whole space."""
    rng, decided = rng_of(args.seed, *name), to_decide(range(args.cells))
    return [Candidate(tuple(rng.randrange(len(x)) for _, x in decided)) for _ in range(n)]


def draw(args: Args, state: State, controller: Controller, n: int, *name: object) -> list[Candidate]:
    """Sample n architectures of this stage, from the controller (without gradients) or uniformly."""
    if args.search == "random-shared":
        return uniform(args, n, *name)
    with torch.no_grad():
        return controller(n, stream(args.seed, *name), state.beam).candidates


def collect(n: int, distinct: bool, draw_more: Callable[[int, int], list[Candidate]]) -> list[Candidate]:
    """n candidates, distinct if possible within 50 n draws; padded with duplicates. draw_more(n, i): i-th n draws."""
    # DEVIATES 4: the authors keep duplicates; a trained policy gives about two distinct ones in ten
    if not distinct:
        return draw_more(n, 0)
    found: dict[Vector, Candidate] = {}
    spare = []
    for i in range(50):
        for x in draw_more(n, i):
            if found.setdefault(x.vector, x) is not x:
                spare.append(x)
        if len(found) >= n:
            break
    return [*found.values(), *spare][:n]


def score_shared(job: Job, G: Generator, x: Candidate, draw: str = "eval") -> Candidate:
    """Score a candidate with the shared weights. draw: name of the latents."""
    args, genotype, ch = job.args, names_of(x.vector), job.args.search_g_ch
    with own_batch_norm(job, G, genotype, args.bn_batches):
        # DEVIATES 5: the same latents for all; the authors draw new ones each time
        found = gan.score(job, G, args.reward_n, gan.along(G, genotype), draw=draw)
    reward, params = reward_of(args, found, genotype, ch), args.g_cost(genotype, ch).params
    return replace(x, score=reward, is_mean=found.is_mean, fid=found.fid, params=params)


def new_pair(job: Job, genotype: Rows, g_ch: int, d_ch: int, *name: object) -> Pair:
    """Build G and D with their optimisers."""
    G = seeded(job, lambda: Generator(genotype, g_ch, job.args.z_dim, job.args.size), "G", *name)
    D = seeded(job, lambda: AutoGANDiscriminator(d_ch), "D", *name)
    return pair_of(job, G, D)


def new_controller(job: Job, state: State) -> tuple[Controller, Optimizer]:
    """Build this stage's controller and its optimiser; unused in random-shared."""
    args, on_cpu = job.args, replace(job, ranks=Ranks(torch.device("cpu")))
    options = [len(options) for _, options in to_decide(args.cells_of(state.s))]
    controller = seeded(on_cpu, lambda: Controller(options, args.ctrl_hidden), "controller", state.s)
    return controller, adam(job, controller, args.ctrl_lr)


def at_stage(job: Job, s: int) -> Job:
    """The job with real images of a stage's size, and its own evaluator for the rewards."""
    side, data = job.args.side(s), job.data
    if side != data.images.shape[-1]:  # CODE: bilinear with antialiasing, as in PIL
        parts = [F.interpolate(x, (side, side), mode="bilinear", antialias=True) for x in data.images.split(256)]
        data = replace(data, images=torch.cat(parts), name=f"{data.name} {side} px")
    evaluator = copy(job.evaluator)  # CODE: Inception gets the small images; compact is trained on them
    evaluator.want_fid = job.args.needs("fid")
    evaluator.use(data)
    job.ranks.first(evaluator.prepare)
    return replace(job, data=data, evaluator=evaluator)


def plan_reset(job: Job, state: State, left: int) -> None:
    """Schedule a reset at the end of this iteration, whose `left` G updates are skipped."""
    window, place = state.window_row(), f"stage {state.s} iteration {state.iteration + 1}"
    state.reset, state.windows = True, {"g": [], "d": []}
    state.skipped[state.s] = state.skipped.get(state.s, 0) + left
    job.plan = plan_of(job, state)
    job.run.replan(job.plan)
    job.run.search_row(state.row("reset", window=window, resets=state.resets + 1))
    job.run.print(f"{place}: losses are flat ({window}); re-initialising G and D at its end")


def controller_step(job: Job, state: State, G: Generator, controller: Controller, c_opt: Optimizer) -> None:
    """Sample architectures, score them, and take a REINFORCE step with these rewards."""
    args = job.args
    drawn = controller(args.ctrl_batch, stream(args.seed, "controller", state.iteration, state.ctrl), state.beam)
    scored = [score_shared(job, G, x) for x in drawn.candidates]
    if state.ctrl == 0:  # once an iteration
        again = score_shared(job, G, drawn.candidates[0], "again")
        state.rewards, state.twice = [], [*state.twice, [scored[0].score, again.score]][-8:]
    if state.ctrl == 0 and args.controller_loss == "reference":
        state.baseline = None  # CODE: reset at every iteration
    rewards = torch.tensor([x.score for x in scored])
    loss, state.baseline = controller_loss(args, rewards, drawn, state.baseline)
    job.run.watch(loss)
    c_opt.zero_grad()
    loss.backward()
    c_opt.step()
    state.rewards += rewards.tolist()
    state.ctrl += 1

    with torch.no_grad():  # the updated policy
        now = controller(64, stream(args.seed, "policy", state.iteration, state.ctrl), state.beam)
    decided = to_decide(args.cells_of(state.s))
    most = sum(log(len(options)) for _, options in decided)
    signs = {"signs/grad_controller": gan.grad_norm(controller).item()}
    signs["signs/entropy"] = now.entropy.sum(1).mean().item() / most  # 1: uniform
    signs |= gan.signal_and_noise("reward", state.rewards, state.twice)
    row = state.row(
        "controller", reward=rewards.mean().item(), baseline=sum(state.baseline) / len(state.baseline),
        window=state.window_row(), scored=[x.row() for x in scored],
        decisions=[name for name, _ in decided], options=[options for _, options in decided],
        policy=[p.mean(0).tolist() for p in now.policy], entropy=now.entropy.mean(0).tolist(),
    )  # fmt: skip
    gan.search_row(job, row, signs, REMEDIES if state.ctrl == args.ctrl_steps else {})


REMEDIES = {
    "grad": "raise --ctrl-lr, or --entropy-weight",
    "units": "lower --g-lr",
    "noise": "raise --reward-n, or --gan-epochs, so that rewards are no lottery",
    "entropy": "raise --entropy-weight or lower --ctrl-lr",
}


def take_beam(job: Job, state: State, G: Generator, controller: Controller) -> None:
    """Score the candidates at the end of a stage; the K best become the beam."""
    args, run, net = job.args, job.run, job.evaluator.net
    count = args.random_count if args.search == "random-shared" else args.candidates
    drawn = collect(count, args.dedupe, lambda n, i: draw(args, state, controller, n, "candidates", state.s, i))
    for x in drawn[len(state.scored) :]:
        run.tick(state.step, f"candidate {len(state.scored) + 1} of {count}")
        state.scored.append(score_shared(job, G, x))
    state.beam = sorted(state.scored, key=lambda x: -x.score)[: args.beam]

    rows = {"beam": [x.row() for x in state.beam], "candidates": [x.row() for x in state.scored]}
    best, rewards, state.scored = state.beam[0], [x.score for x in state.scored], []
    genotype = names_of(best.vector)
    with own_batch_norm(job, G, genotype, args.bn_batches):
        run.samples(state.step, gan.grid(job, G, gan.along(G, genotype)))
        signs = gan.active_units(job, G, G.to_rgb, gan.along(G, genotype))
    signs |= gan.signal_and_noise("reward", rewards, state.twice)
    gan.search_row(job, state.row("beam", **rows), signs, REMEDIES)
    run.genotype(state.step, genotype_json(args, best.vector, best))
    if state.s == args.cells - 1:  # only at full size: scores of other stages are not comparable
        row = Score(best.fid, best.is_mean, None, args.reward_n, net, job.evaluator.ref).row()
        how = {"eval/ema": False, "eval/bn": "recalibrated" if args.bn_batches else "shared"}
        run.evaluated(state.step, row, **how, **{"eval/what": "best of the search"})
    run.print(f"stage {state.s}: beam, ranked by {args.reward} ({net}, {args.reward_n} images):")
    for x in state.beam:
        run.print(f"  {text_of(x.vector)}  {x.score:.4g}  {x.params / 1e6:.3f}M")


def search(job: Job, state: State) -> None:
    """Grow the generator stage by stage (Algorithm 1); the last beam becomes state.finalists."""
    args, run, guided = job.args, job.run, job.args.search != "random-shared"
    after = "controller" if guided else "next iteration"
    if args.search != "mlas":
        state.s = args.cells - 1  # a single stage, at full size
    stages = {s: at_stage(job, s) for s in range(state.s, args.cells)}
    shared = (None,) * args.cells, args.search_g_ch, args.search_d_ch  # for all architectures
    nets = new_pair(job, *shared, state.resets)
    controller, c_opt = new_controller(job, state)
    while True:
        run.track(state, **vars(nets), controller=controller, c_opt=c_opt)
        if state.iteration == args.iterations:
            break
        here, last = stages[state.s], state.iteration + 1 == args.iterations
        name = f"stage {state.s} iteration {state.iteration + 1}/{args.iterations}"

        # step 1: the shared weights, controller frozen
        run.begin("search", name, state.step, images_per_step=args.d_batch * args.n_critic)
        steps = args.gan_epochs * here.epoch // args.n_critic
        drawn = draw(args, state, controller, steps * args.n_critic, "path", state.iteration)  # for all D steps at once
        while state.turn < steps and not state.reset:
            run.tick(state.step, f"{after} in {steps - state.turn} steps")
            paths = [names_of(x.vector) for x in drawn[state.turn * args.n_critic :][: args.n_critic]]
            losses = gan_step(here, nets, *gan.draw(here, state, args.n_critic), paths, state.s)
            gan.log_losses(here, state, {"loss/d": losses[-2], "loss/g": losses[-1]})
            state.unseen.append(torch.stack(losses))
            state.turn += 1
            # DEVIATES 7: at most 50 G steps late, so that a GPU need not wait; the authors check after every D step
            if (state.turn == steps or state.turn % max(1, args.reset_window // 10) == 0) and state.watch(here):
                plan_reset(job, state, steps - state.turn)
        job.ranks.average_buffers(nets.G)

        # step 2: the controller, shared weights frozen
        run.begin("search", f"{name} controller", state.step)
        while guided and state.ctrl < args.ctrl_steps:
            run.tick(state.step, f"reward {state.ctrl + 1} of {args.ctrl_steps}")
            controller_step(here, state, nets.G, controller, c_opt)

        # step 3: at the end of a stage, the beam, and a new controller for the next stage
        if state.iteration + 1 in args.stage_ends:
            run.begin("search", f"{name} candidates", state.step)
            take_beam(here, state, nets.G, controller)
            if not last:
                state.s, state.baseline, state.twice = state.s + 1, None, []
                controller, c_opt = new_controller(job, state)

        # step 4: dynamic reset. CODE: training continues at this stage's size, without growing again
        # DEVIATES 8: after the beam, as in the paper; the authors rank on weights just re-initialised
        if state.reset and not last:
            state.resets += 1
            nets = new_pair(job, *shared, state.resets)
        state.iteration, state.turn, state.ctrl, state.reset = state.iteration + 1, 0, 0, False

    run.begin("search", "proxy candidates", state.step, "derive")
    state.finalists = [Candidate(x.vector, how="beam", shared=x.score) for x in state.beam]
    for x in collect(args.proxy_n, True, lambda n, i: uniform(args, n, "proxy", i)):
        run.check()
        shared = score_shared(stages[state.s], nets.G, x).score
        state.finalists.append(Candidate(x.vector, how="proxy", shared=shared))


# ---- reporting -----------------------------------------------------------------------------------


def table(vector: Vector) -> str:
    """Format an architecture as an aligned table: one line per cell."""
    rows = [["cell", *decisions(0)], *([str(i), *row] for i, row in enumerate(names_of(vector), 1))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(word.ljust(n) for word, n in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def genotype_json(args: Args, vector: Vector, best: Candidate | None = None) -> dict:
    """Contents of genotype.json; --genotype reads its vector. Costs: of the networks trained from scratch."""
    genotype, cells = names_of(vector), []
    for row in genotype:
        cell = dict(zip(decisions(0), row, strict=True))
        cells.append({**cell, "shortcut": row[3] == "yes", "skips": sources_of(row[4])})
    return {
        "method": "autogan",
        "vector": text_of(vector),
        "cells": cells,
        **params_and_macs(G=args.g_cost(genotype, args.g_ch), D=d_cost(args.d_ch, args.size)),
        "scores": {"score": best and best.score, "is": best and best.is_mean, "fid": best and best.fid},
    }


# ---- derive and train from scratch ---------------------------------------------------------------


def derive(job: Job, state: State) -> None:
    """Train every finalist from scratch and choose the best. [paper §3.3.3; not in the code]"""
    args, run, phase = job.args, job.run, "derive"
    if args.search == "random":  # no shared weights: this is the whole search
        phase, state.s, state.iteration = "search", args.cells - 1, args.iterations
    if not state.finalists:
        drawn = collect(args.random_count, args.dedupe, lambda n, i: uniform(args, n, "random", i))
        state.finalists = [Candidate(x.vector, how="random") for x in drawn]
    # DEVIATES 9: briefly; §3.3.3 trains them fully. 30 epochs are those of the proxy check in §4.3
    steps, n = args.derive_epochs * job.epoch // args.n_critic, len(state.finalists)
    for i, x in enumerate(state.finalists):
        if x.score is not None or not steps:
            continue
        genotype = names_of(x.vector)
        nets = new_pair(job, genotype, args.g_ch, args.d_ch, "finalist", i)
        G_ema = deepcopy(nets.G).requires_grad_(False)
        run.track(state, **vars(nets), G_ema=G_ema)
        step = Graph.training(job, nets, G_ema, partial(gan_step, job, nets))
        name = f"finalist {i + 1}/{n}"
        run.begin(phase, name, state.step, images_per_step=args.d_batch * args.n_critic)
        found = WORST
        try:
            while state.step - state.began < steps:
                run.tick(state.step, f"scoring in {steps - state.step + state.began} steps")
                *_, loss_d, loss_g = step(*gan.draw(job, state, args.n_critic))
                gan.log_losses(job, state, {"loss/d": loss_d, "loss/g": loss_g})
            run.check_losses()
            run.begin(phase, f"{name} scoring", state.step)
            job.ranks.average_buffers(nets.G)
            ema_update(G_ema, nets.G, 1.0)
            found = gan.score(job, G_ema, args.final_n)
        except DivergedError as e:
            run.print(f"{name} is out: {e}")
            state.step = state.began + steps
        x.score, x.is_mean, x.fid = reward_of(args, found, genotype, args.g_ch), found.is_mean, found.fid
        run.print(f"{text_of(x.vector)} ({x.how}): score {x.score:.4g} ({args.reward}) after {steps:,} G updates")
        state.began = state.step

    ranked = sorted(state.finalists, key=lambda x: -x.score) if steps else state.finalists
    chosen = next(x for x in ranked if x.how != "proxy")
    correlation = proxy_correlation(state.finalists)
    state.G = chosen.vector
    beam, net = [x.row() for x in ranked], {"eval/n": args.final_n, "eval/net": job.evaluator.net}
    run.search_row(state.row("derive", spearman=correlation, beam=beam, **net))
    run.genotype(state.step, genotype_json(args, state.G, chosen))
    if correlation:
        found = "rho {rho:.3f} (p {p:.2g}, {n} architectures)".format(**correlation)
        run.print(f"correlation of scores with shared weights and after short training: Spearman's {found}")
    run.print(f"best of {n}: {text_of(state.G)}\n{table(state.G)}")


def proxy_correlation(finalists: list[Candidate]) -> dict | None:
    """Spearman's correlation of the scores with shared weights and after training; None if undefined."""
    both = [(x.shared, x.score) for x in finalists if x.shared is not None and x.score is not None]
    if len(both) < 3 or any(len(set(column)) == 1 for column in zip(*both, strict=True)):
        return None
    from scipy.stats import spearmanr

    found = spearmanr(*zip(*both, strict=True))
    return {"rho": float(found.statistic), "p": float(found.pvalue), "n": len(both)}


def train(job: Job, state: State) -> None:
    """Train the architecture from scratch; evaluate the EMA of G. [paper §4]"""
    args, run, genotype = job.args, job.run, names_of(state.G)
    nets = new_pair(job, genotype, args.g_ch, args.d_ch, "train")
    G_ema = deepcopy(nets.G).requires_grad_(False)
    run.track(state, **vars(nets), G_ema=G_ema)
    step = Graph.training(job, nets, G_ema, partial(gan_step, job, nets))
    if args.compile:
        nets.G.compile(dynamic=False)
        nets.D.compile(dynamic=False)

    about = {"method": "autogan", "genotype": {"G": genotype}}
    end = state.began + job.plan[-1][1]
    run.begin("train", "training", state.step, images_per_step=args.d_batch * args.n_critic)
    while True:
        gan.evaluate_if_due(job, state, nets.G, G_ema, about)  # CODE: reports the best of 16; here also the last
        if state.step >= end:
            break
        run.tick(state.step, gan.until_evaluation(job, state))
        *_, loss_d, loss_g = step(*gan.draw(job, state, args.n_critic))
        gan.log_losses(job, state, {"loss/d": loss_d, "loss/g": loss_g})
        if (state.step - state.began) % args.sample_every == 0:
            run.samples(state.step, gan.grid(job, G_ema))
    run.save()  # can be resumed with more --train-epochs


# ---- command line --------------------------------------------------------------------------------


def check(args: Args, world: int) -> None:
    """Reject invalid flags before any work is done. UserError names the flag, value and remedy."""
    if args.reward not in REWARDS:
        raise UserError(f"--reward {args.reward}: no such reward; use {', '.join(REWARDS)}")
    worst = REWARDS[args.reward](WORST, names_of(largest(args.cells)), args.cost_weight)
    if not isfinite(worst):
        raise UserError(f"--reward {args.reward}: is {worst} for an FID of inf and an IS of 0; it must be finite")
    if args.needs("is"):
        gan.check_splits(reward_n=args.reward_n, final_n=args.final_n, eval_n=args.eval_n)
    given = f"--genotype {args.genotype}" if args.genotype else ""
    gan.check_flags(args, world, given, f"one of {', '.join(PUBLISHED)}, a vector or a file")
    if args.genotype or args.phase == "eval":
        return  # no search: its flags are not used
    flag, n = "--candidates", args.candidates
    if args.search == "random-shared":
        flag, n = "--random-n", args.random_count
    if args.beam > n and args.search != "random":
        raise UserError(f"--beam {args.beam}: more than {flag} {n}; use a smaller beam")
    if args.controller_loss == "reference" and args.ctrl_batch > 1:
        raise UserError(f"--ctrl-batch {args.ctrl_batch}: must be 1, or use --controller-loss fixed")
    if args.derive_epochs == 0 and (args.search == "random" or args.proxy_n):
        flag = f"--proxy-n {args.proxy_n}" if args.proxy_n else "--search random"
        raise UserError(f"{flag}: requires short training; use --derive-epochs 1 or more")
    if args.proxy_n and args.search == "random":
        raise UserError(f"--proxy-n {args.proxy_n}: --search random has no shared weights; use another search")
    if not all(word.strip().isdecimal() for word in args.grow.split(",") if args.grow.strip()):
        raise UserError(f"--grow {args.grow!r}: must be comma-separated iterations, like 25,55")
    ends = args.stage_ends
    if args.search == "mlas" and (len(ends) != args.cells or sorted({0, *ends}) != [0, *ends]):
        must = f"{args.cells - 1} ascending iterations for --cells {args.cells}"
        raise UserError(f"--grow {args.grow!r}: must be {must}, below --iterations {args.iterations}")


def check_size(args: Args) -> None:
    """Reject image sizes that the cells cannot produce: each doubles the side, from 2 pixels or more."""
    step = 2**args.cells
    if args.size % step or args.size < 2 * step:
        raise UserError(f"--size {args.size}: with {args.cells} cells, use a multiple of {step}, {2 * step} or more")


def costs_of(args: Args, state: State) -> dict[str, Cost]:
    """Costs of the networks of this run."""
    name = "G" if state.G else "G (as A)" if args.cells == 3 else "G (as the largest)"
    costs = {name: args.g_cost(names_of(state.vector(args)), args.g_ch), "D": d_cost(args.d_ch, args.size)}
    if "search" in stages_of(args):
        costs["shared G"] = Cost(args.g_cost((None,) * args.cells, args.search_g_ch).params)
        costs["D of the search"] = d_cost(args.search_d_ch, args.size)
    return costs


def plan_of(job: Job, state: State) -> list[gan.Stage]:
    """(name, G updates, multiply-adds per update including scoring) of every stage."""
    args, plan, genotype = job.args, [], names_of(state.vector(job.args))
    g, d = args.g_cost(genotype, args.g_ch).macs, d_cost(args.d_ch, args.size).macs

    def priced(name: str, steps: int, g: int, d: int, images: int) -> gan.Stage:
        scoring = gan.scoring_macs(args, g, images) / max(steps, 1)
        return name, steps, gan.update_macs(args, g, d, args.n_critic) + scoring

    if "search" in stages_of(args):
        for s, (begin, end) in enumerate(pairwise([0, *args.stage_ends]), args.cells - len(args.stage_ends)):
            macs = args.g_cost(genotype[: s + 1], args.search_g_ch).macs, d_cost(args.search_d_ch, args.side(s), s).macs
            steps = (end - begin) * (args.gan_epochs * job.epoch // args.n_critic) - state.skipped.get(s, 0)
            scored = args.candidates + (end - begin) * args.ctrl_steps * args.ctrl_batch
            if args.search == "random-shared":
                scored = args.random_count
            plan.append(priced(f"stage {s}", steps, *macs, scored * args.reward_n))
    if "derive" in stages_of(args):
        name, n = "derive", args.beam + args.proxy_n
        if args.search == "random":
            name, n = "random search", args.random_count
        steps = n * (args.derive_epochs * job.epoch // args.n_critic)
        plan.append(priced(name, steps, g, d, n * args.final_n))
    if "train" in stages_of(args):
        plan.append(gan.train_stage(job, args.train_epochs, g, d))
    return plan


def main(args: Args) -> dict | None:
    """Search, derive, train, evaluate. Returns the best scores of the training phase, or None without one."""
    # -- all checks run before the run directory is created
    ranks = start_ranks(args.device)
    check(args, ranks.world)
    if args.phase == "sample":
        return gan.sample(args, ranks, Generator.saved)
    state, trained = State(G=read_vector(args.genotype) if args.genotype else None), None
    evaluator = Evaluator(**gan.evaluator_options(args, ranks), want_is=args.needs("is"))
    data = ranks.first(lambda: load_dataset(args.dataset, args.data_dir, args.size))
    evaluator.use(data)
    args = replace(args, size=data.images.shape[-1])
    genotype = state.G and names_of(state.G)
    if args.phase == "eval":
        args, trained = gan.load_weights(args, ranks.device, Generator.saved)
        genotype = trained.genotype
    if genotype:
        args = replace(args, cells=len(genotype))
    check_size(args)
    job = Job(args, ranks, evaluator, data)
    if trained:
        costs = {"G": args.g_cost(genotype, args.g_ch)}
    else:
        costs, job.plan = costs_of(args, state), plan_of(job, state)
    lines = gan.opening(job, "autogan", costs)
    if state.G:
        lines.append(f"{text_of(state.G)}\n{table(state.G)}")
    loops = {"search": search, "derive": derive, "train": train}
    if args.dry_run:
        job.args = replace(args, search="random-shared")  # networks at full size stand in for all stages
        stand_in = replace(state, G=state.vector(args), finalists=[Candidate(state.vector(args))])
        stages = {name: loops.get(name, search) for name, *_ in job.plan} | {"random search": derive}
        return dry_run(lines, job, stages, stand_in)

    with Run(args.script(), "autogan", asdict(args), ranks, **gan.run_facts(job, costs)) as job.run:
        gan.start(job, state, lines)
        if trained:
            gan.evaluate_weights(job, trained)
            return None
        job.plan = plan_of(job, state)  # accounts for resets if resumed
        job.run.replan(job.plan)
        for name in stages_of(args)[state.stage :]:
            loops[name](job, state)
            state.next_stage()
        return gan.finish(job, state, genotype_json(args, state.G))


if __name__ == "__main__":
    sys.exit(cli(main, Args, PRESETS))
