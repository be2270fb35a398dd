"""AutoGAN: an RNN controller grows a generator, cell by cell (Gong, Chang, Jiang, Wang, ICCV 2019).

Paper: arXiv 1908.03835. Authors' code: VITA-Group/AutoGAN at a5eeef0. This script is written anew; docs/autogan.md has the
details.

Search, multi-level (MLAS): stage s = 0, 1, 2 decides cell s + 1, on images of 8, 16, 32 pixels. Repeat T times:
    train the shared weights of all generators and one hand-made discriminator, with a fresh architecture for every batch;
        if the losses go flat: dynamic reset, both start anew at the end of this iteration
    train the stage's controller, an LSTM, by REINFORCE; reward: the Inception Score under the shared weights
    at a stage's last iteration: sample M candidates, keep the K best as the beam that the next controller goes on from
Derive: the K architectures of the last beam are trained briefly from scratch, the best one is taken. It is then trained from
scratch in full, against the same discriminator at twice the width, and evaluated.

Published (CIFAR-10, 50,000 images): IS 8.55, FID 12.42 after 43 hours of search. This script at paper scale: not run.
The authors' code ranks candidates after a reset has wiped their weights, resets its baseline, crashes with more than one
architecture a step, and released neither other rewards nor baselines (docs/autogan.md, Deviations). Tags: PAPER where a
choice comes from, CODE where only the authors' code tells, DEVIATES where this script differs from both.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cells import AutoGANDiscriminator, Conv, Genotype, init_weights
from common.data import Batches, Dataset, load_dataset
from common.metrics import Evaluator, Score, to_uint8
from common.run import Ranks, Run, UserError, cli, duration, measured_flops, opt, read_json, start_ranks, stream

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
        opt("Generator to train instead of searching: A, B, C, sngan, a vector, a genotype.json. [paper §4.1]", "Run"),
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

    dataset: Annotated[str, opt("shapes, cifar10, stl10, celeba, or a folder, .zip or .npz of images. [paper §4]", "Data")] = (
        "cifar10"
    )
    data_dir: Annotated[Path, opt("Folder of downloads and of cached statistics. [ours]", "Data")] = Path("data")
    size: Annotated[int, opt("Pixels of a side, a multiple of 2^cells; 0: 32, for STL-10 48. [paper §4]", "Data", min=0)] = 0

    search: Annotated[
        Literal["mlas", "slas", "random-shared", "random"],
        opt(
            "slas: one controller for all cells; random-shared, random: no controller, with or without sharing. [§4.3]",
            "Search",
        ),
    ] = "mlas"
    cells: Annotated[int, opt("Cells of G, each doubles the side. [paper §4.1]", "Search", min=1, max=6)] = 3
    iterations: Annotated[int, opt("Search iterations T; the released script: 65. [paper §4]", "Search", min=1)] = 90
    grow: Annotated[
        str, opt("Iterations after which the next cell begins; the released script: 15,35. [authors' code]", "Search")
    ] = "25,55"
    gan_epochs: Annotated[int, opt("Epochs of shared GAN training an iteration. [paper §4]", "Search", min=1)] = 15
    epoch_batches: Annotated[int, opt("D batches that count as an epoch; 0: the data set once. [ours]", "Search", min=0)] = 0
    ctrl_steps: Annotated[int, opt("Controller steps an iteration. [paper §4]", "Search", min=1)] = 30
    ctrl_batch: Annotated[int, opt("Architectures a controller step scores. [authors' code]", "Search", min=1)] = 1
    ctrl_lr: Annotated[float, opt("Adam learning rate of the controller. [paper §4]", "Search", min=0)] = 3.5e-4
    ctrl_hidden: Annotated[int, opt("LSTM's hidden and embedding size. [authors' code]", "Search", min=1)] = 100
    controller_loss: Annotated[
        Literal["fixed", "reference"], opt("reference: the authors' formulas. [fixed: ours; reference: code]", "Search")
    ] = "fixed"
    entropy_weight: Annotated[
        float, opt("Weight of the policy's entropy; the paper has 1e-4. [authors' code]", "Search", min=0)
    ] = 1e-3
    baseline_decay: Annotated[
        float, opt("Decay of the reward's moving average a step. [authors' code]", "Search", min=0, max=1)
    ] = 0.9
    candidates: Annotated[int, opt("Candidates sampled at a stage's end, M. [authors' code]", "Search", min=1)] = 10
    beam: Annotated[int, opt("Of them kept, K. [authors' code]", "Search", min=1)] = 5
    dedupe: Annotated[bool, opt("Candidates are distinct as far as the policy allows. [ours]", "Search")] = True
    reward: Annotated[
        Literal["is", "fid", "is-cost"],
        opt("fid: 1/FID, and with --evaluator inception no IS at all; is-cost: IS less a price. [paper §4.3]", "Search"),
    ] = "is"
    cost: Annotated[Literal["params", "macs"], opt("What is-cost puts a price on. [ours]", "Search")] = "params"
    cost_weight: Annotated[float, opt("Price of the stage's largest architecture, in IS points. [ours]", "Search", min=0)] = 1.0
    reward_n: Annotated[int, opt("Images behind a reward. [authors' code]", "Search", min=2)] = 5000
    bn_batches: Annotated[
        int, opt("Batches of 100 that re-estimate BatchNorm before scoring; 0: as shared. [0: authors' code]", "Search", min=0)
    ] = 0
    dynamic_reset: Annotated[bool, opt("Shared weights start anew when the losses go flat. [paper §3.3]", "Search")] = True
    reset_variance: Annotated[float, opt("Variance of a loss that counts as flat. [paper §4]", "Search", min=0)] = 1e-3
    reset_window: Annotated[int, opt("Losses that the variance is of. [authors' code]", "Search", min=2)] = 500
    tap: Annotated[
        Literal["after", "before"],
        opt("Skips leave a cell after or before its own are added. [after: code; before: Fig. 3]", "Search"),
    ] = "after"
    search_g_ch: Annotated[int, opt("Channels of the shared G. [authors' code]", "Search", min=1)] = 128
    search_d_ch: Annotated[int, opt("Channels of D in the search. [authors' code]", "Search", min=1)] = 64
    random_n: Annotated[int, opt("Architectures a random search scores; 0: as many as mlas would. [ours]", "Search", min=0)] = 0
    derive_epochs: Annotated[
        int, opt("Epochs each of the K trains from scratch before the choice; 0: no training. [paper §4.3]", "Search", min=0)
    ] = 30
    final_n: Annotated[int, opt("Images that score it then. [ours]", "Search", min=2)] = 10_000
    proxy_n: Annotated[
        int, opt("Random architectures that join them to measure the proxy's rank correlation. [paper §4.3]", "Search", min=0)
    ] = 0

    train_epochs: Annotated[int, opt("Epochs of D in training from scratch. [authors' code]", "Train", min=1)] = 320
    g_ch: Annotated[int, opt("Channels of G. [authors' code]", "Train", min=1)] = 256
    d_ch: Annotated[int, opt("Channels of D. [authors' code]", "Train", min=1)] = 128
    z_dim: Annotated[int, opt("Latent size. [authors' code]", "Train", min=1)] = 128
    g_batch: Annotated[int, opt("Latents of a G step, over all processes. [paper §4]", "Train", min=1)] = 128
    d_batch: Annotated[int, opt("Real images of a D step, over all processes. [paper §4]", "Train", min=1)] = 64
    g_lr: Annotated[float, opt("Adam learning rate of G. [paper §4]", "Train", min=0)] = 2e-4
    d_lr: Annotated[float, opt("Adam learning rate of D. [paper §4]", "Train", min=0)] = 2e-4
    adam_b1: Annotated[float, opt("Adam beta 1, of all optimisers. [authors' code]", "Train", min=0, max=1)] = 0.0
    adam_b2: Annotated[float, opt("Adam beta 2, of all optimisers. [authors' code]", "Train", min=0, max=1)] = 0.9
    n_critic: Annotated[int, opt("D steps per G step, in search and training. [authors' code]", "Train", min=1)] = 5
    ema: Annotated[
        float, opt("Decay of G's average per G update, from scratch only. [authors' code]", "Train", min=0, max=1)
    ] = 0.999
    amp: Annotated[bool, opt("bfloat16 autocast of G and D. [ours]", "Train")] = False
    compile: Annotated[bool, opt("torch.compile in training from scratch. [ours]", "Train")] = False

    evaluator: Annotated[
        Literal["inception", "compact"], opt("compact: a small classifier of the data's own labels. [ours]", "Eval")
    ] = "inception"
    inception_weights: Annotated[Path | None, opt("File of the FID network; default: download. [ours]", "Eval")] = None
    fid_dims: Annotated[Literal["64", "192", "768", "2048"], opt("Features of the FID. [pytorch-fid]", "Eval")] = "2048"
    ref_n: Annotated[int, opt("Training images behind the reference; 0: all. [authors' code]", "Eval", min=0)] = 0
    eval_n: Annotated[int, opt("Generated images of an evaluation in training. [paper §4]", "Eval", min=2)] = 50_000
    eval_every: Annotated[int, opt("Epochs between evaluations in training. [authors' code]", "Eval", min=1)] = 20
    eval_after: Annotated[int, opt("Epochs before the first of them. [ours]", "Eval", min=0)] = 0


PRESETS = {
    "paper": {},
    "quick": {
        **{
            "preset": "quick",
            "iterations": 9,
            "grow": "3,6",
            "gan_epochs": 1,
            "reward_n": 1000,
            "derive_epochs": 2,
            "amp": True,
        },
        **{"final_n": 2000, "beam": 3, "train_epochs": 25, "eval_n": 10_000, "eval_every": 5, "sample_every": 500},
    },
    "smoke": {
        **{"preset": "smoke", "dataset": "shapes", "evaluator": "compact", "iterations": 6, "grow": "2,4", "gan_epochs": 1},
        **{"epoch_batches": 12, "ctrl_steps": 4, "candidates": 4, "beam": 2, "reward_n": 200, "derive_epochs": 2},
        **{"final_n": 300, "search_g_ch": 16, "search_d_ch": 16, "g_ch": 24, "d_ch": 16, "d_batch": 32, "g_batch": 32},
        **{"n_critic": 1, "g_lr": 1e-3, "d_lr": 1e-3, "ema": 0.98, "train_epochs": 12, "eval_n": 1000, "eval_every": 4},
        **{"sample_every": 50, "log_every": 10},
    },
}

# ---- search space (paper §3.1, Fig. 2) --------------------------------------------------------------------------------

Vector = tuple[int, ...]  # the authors' encoding: the codes of all decisions, in the order of the controller


def decisions(cell: int) -> dict[str, tuple[str, ...]]:
    """What is decided of cell 0, 1, …: decision -> its options. The place of an option is its code in a vector."""
    # CODE: a skip's code is a bit mask whose highest bit is the first cell, so code 1 is the cell just before this one
    masks = [[i + 1 for i in range(cell) if code >> (cell - 1 - i) & 1] for code in range(2**cell)]
    return {
        "conv": ("post", "pre"),
        "norm": ("none", "bn", "in"),
        "up": ("bilinear", "nearest", "deconv"),
        "shortcut": ("no", "yes"),
        "skips": tuple("+".join(map(str, mask)) or "none" for mask in masks),
    }


def to_decide(cells: range) -> list[tuple[str, tuple[str, ...]]]:
    """(name, options) of every decision about these cells that has more than one option: the first has no skips."""
    found = [(f"{cell + 1}/{name}", options) for cell in cells for name, options in decisions(cell).items()]
    return [(name, options) for name, options in found if len(options) > 1]


def names_of(vector: Vector) -> Genotype:
    """One row (conv, norm, up, shortcut, skips) of names a cell."""
    rows, codes = [], iter(vector)
    for cell in range(cells_of(vector)):
        rows.append(tuple(options[next(codes) if len(options) > 1 else 0] for options in decisions(cell).values()))
    return tuple(rows)


def cells_of(vector: Vector) -> int:
    return (len(vector) + 1) // 5


def vector_of(codes: list | tuple, source: str) -> Vector:
    """The vector, if it is one: 4 codes for the first cell and 5 for each other. UserError names what is wrong with it."""
    if len(codes) % 5 != 4:
        raise UserError(
            f"{source}: {len(codes)} numbers; an architecture has 4 for the first cell and 5 for each other: 14 for 3"
        )
    for place, (code, (name, options)) in enumerate(zip(codes, to_decide(range(cells_of(codes))), strict=True), 1):
        if type(code) is not int or not 0 <= code < len(options):
            raise UserError(
                f"{source}: number {place}, {name}: {code!r:.20} is not in 0..{len(options) - 1} ({', '.join(options)})"
            )
    return tuple(codes)


def vector_of_names(genotype: list | tuple) -> Vector:
    """The vector of rows of names. ValueError: a name that is not an option."""
    rows = [(row, decisions(cell)) for cell, row in enumerate(genotype)]
    codes = [
        options.index(name) for row, made in rows for name, options in zip(row, made.values(), strict=True) if len(options) > 1
    ]
    return tuple(codes)


def text_of(vector: Vector) -> str:
    return " ".join(map(str, vector))


PUBLISHED = {  # paper Fig. 3 and Table 1; A is the authors' "top 1", B and C are read off their fixed models
    "A": (1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 3),
    "B": (1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 3),
    "C": (1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 3),
    "sngan": (1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0),  # PAPER §4.1: SN-GAN's generator lies in the space
}


def read_vector(name: str) -> Vector:
    """A published architecture by name, a vector in digits, or the one in a genotype.json. UserError: none of them."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name.endswith(".json"):
        text, source = read_json(Path(name), "genotype file").get("vector"), f"{name}, vector"
        if not isinstance(text, str):
            raise UserError(f"{name}: has no vector, as a genotype.json of autogan.py has")
    else:
        text, source = name, f"--genotype {name!r}"
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(
            f"{source}: no such architecture; use {', '.join(PUBLISHED)}, numbers like '{text_of(PUBLISHED['A'])}' or a .json"
        )
    return vector_of([int(word) for word in words], source)


def random_vector(cells: int, rng: random.Random) -> Vector:
    """Uniform over the whole space."""
    return tuple(rng.randrange(len(options)) for _, options in to_decide(range(cells)))


# ---- networks (paper §3.1) --------------------------------------------------------------------------------------------


class ConvBlock(nn.Module):
    """A 3x3 convolution with norm, ReLU and, in a cell's first block, up-sampling: (B, C, H, W) -> same, or 2H x 2W.

    pre: norm, ReLU, up, convolution. post: up, convolution, norm, ReLU. [order: authors' code]
    """

    def __init__(self, ch: int, pre: bool, norms: tuple[str, ...], ups: tuple[str, ...]) -> None:
        super().__init__()
        self.pre = pre
        self.conv = Conv(ch, ch, 3, padding=1)
        self.bn = nn.BatchNorm2d(ch) if "bn" in norms else None
        self.deconv = nn.ConvTranspose2d(ch, ch, 2, 2) if "deconv" in ups else None

    def forward(self, x: Tensor, norm: str, up: str | None) -> Tensor:
        if self.pre:
            return self.up_conv(self.norm(x, norm).relu(), up)
        return self.norm(self.up_conv(x, up), norm).relu()

    def norm(self, x: Tensor, norm: str) -> Tensor:
        # CODE: instance norm has neither scale and shift nor running statistics, batch norm has both
        return x if norm == "none" else self.bn(x) if norm == "bn" else F.instance_norm(x)

    def up_conv(self, x: Tensor, up: str | None) -> Tensor:
        if up == "nearest" and x.shape[-1] >= 8:  # as the one transposed 4x4 convolution that both together are: faster
            w = self.conv.weight.flip(2, 3).transpose(0, 1)
            w = F.pad(w, (0, 1, 0, 1)) + F.pad(w, (1, 0, 0, 1)) + F.pad(w, (0, 1, 1, 0)) + F.pad(w, (1, 0, 1, 0))
            return F.conv_transpose2d(x, w, self.conv.bias, stride=2, padding=1)
        if up == "deconv":
            x = self.deconv(x)
        elif up:
            x = F.interpolate(x, scale_factor=2, mode=up)
        return self.conv(x)


class Projection(nn.Module):
    """Up-sampling by 2^doublings and a 1x1 convolution, of a shortcut or a skip: (B, C, H, W) -> (B, C, …)."""

    def __init__(self, ch: int, doublings: int, ups: tuple[str, ...]) -> None:
        super().__init__()
        self.conv, self.factor = Conv(ch, ch, 1), 2**doublings
        self.deconv = nn.Sequential(*(nn.ConvTranspose2d(ch, ch, 2, 2) for _ in range(doublings))) if "deconv" in ups else None

    def forward(self, x: Tensor, up: str) -> Tensor:
        if up == "deconv":
            return self.conv(self.deconv(x))
        return F.interpolate(self.conv(x), scale_factor=self.factor, mode=up)  # 1x1 first: it commutes with both resizings


class Cell(nn.Module):
    """x: (B, C, H, W), taps of the earlier cells -> its own tap and its output, both (B, C, 2H, 2W).

    row None builds it for every architecture. Shared are then: convolution and BatchNorm by (conv, block), the deconvolution
    of the first block by conv, the projections by their source alone. [authors' code]
    """

    def __init__(self, ch: int, cell: int, row: tuple[str, ...] | None, tap: str) -> None:
        super().__init__()
        every = decisions(cell)
        convs, norms, ups, shortcuts = ((choice,) for choice in row[:4]) if row else list(every.values())[:4]
        self.tap = tap
        self.block1 = nn.ModuleDict({conv: ConvBlock(ch, conv == "pre", norms, ups) for conv in convs})
        self.block2 = nn.ModuleDict({conv: ConvBlock(ch, conv == "pre", norms, ()) for conv in convs})
        self.shortcut = Projection(ch, 1, ups) if "yes" in shortcuts else None
        sources = sources_of(row[4] if row else every["skips"][-1])
        self.skips = nn.ModuleDict({str(source): Projection(ch, cell + 1 - source, ups) for source in sources})

    def forward(self, x: Tensor, taps: list[Tensor], row: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        conv, norm, up, shortcut, skips = row
        before = h = self.block1[conv](x, norm, up)
        for source in sources_of(skips):  # out of place: the authors' += would overwrite what ReLU's backward pass needs
            h = h + self.skips[str(source)](taps[source - 1], up)
        out = self.block2[conv](h, norm, None)
        if shortcut == "yes":
            out = out + self.shortcut(x, up)
        # CODE: the tap is what the second block sees; in Fig. 3 it leaves before the skips are added
        return (before if self.tap == "before" else h), out


def sources_of(skips: str) -> list[int]:
    """The cells, counted from 1, that a skip decision reads."""
    return [] if skips == "none" else [int(source) for source in skips.split("+")]


class Generator(nn.Module):
    """z: (B, z_dim) -> (B, 3, size, size) in [-1, 1], of a genotype of one cell or more."""

    def __init__(
        self, genotype: Genotype | tuple[None, ...], ch: int = 256, z_dim: int = 128, size: int = 32, tap: str = "after"
    ) -> None:
        super().__init__()
        self.genotype, self.ch, self.bottom = genotype, ch, size // 2 ** len(genotype)
        self.latent = nn.Linear(z_dim, ch * self.bottom**2)
        self.cells = nn.ModuleList(Cell(ch, i, row, tap) for i, row in enumerate(genotype))
        self.bn = nn.BatchNorm2d(ch)
        self.to_rgb = Conv(ch, 3, 3, padding=1)
        init_weights(self)

    def forward(self, z: Tensor, genotype: Genotype | None = None) -> Tensor:
        x = self.latent(z).view(-1, self.ch, self.bottom, self.bottom).contiguous(memory_format=torch.channels_last)
        taps: list[Tensor] = []
        for cell, row in zip(self.cells, genotype or self.genotype, strict=False):  # a short genotype is an early stage's
            tap, x = cell(x, taps, row)
            taps.append(tap)
        return self.to_rgb(self.bn(x).relu()).tanh()


class SuperGenerator(Generator):
    """The shared weights of all generators: forward(z, genotype); (B, 3, bottom 2^n, …) for a genotype of n cells."""

    def __init__(self, cells: int, ch: int = 128, z_dim: int = 128, size: int = 32, tap: str = "after") -> None:
        super().__init__((None,) * cells, ch, z_dim, size, tap)
        self.how = {"ch": ch, "z_dim": z_dim, "tap": tap}

    def extract(self, vector: Vector) -> Generator:
        """A stand-alone generator with copies of the weights that this architecture uses: the same images."""
        alone = Generator(names_of(vector), size=self.bottom * 2 ** cells_of(vector), **self.how)
        weights = self.state_dict()
        alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
        return alone.to(self.latent.weight.device, memory_format=torch.channels_last)


def g_params(genotype: Genotype | None, ch: int = 256, z_dim: int = 128, size: int = 32, cells: int = 3) -> int:
    """Parameters of the stand-alone generator or, of None, of the SuperGenerator with so many cells."""
    c3, c1, deconv = 9 * ch * ch + ch, ch * ch + ch, 4 * ch * ch + ch
    bottom = size // 2 ** (len(genotype) if genotype else cells)
    total = (z_dim + 1) * bottom**2 * ch + 29 * ch + 3
    if genotype is None:
        skips = sum(c1 + doublings * deconv for i in range(cells) for doublings in range(1, i + 1))
        return total + skips + cells * (2 * (2 * c3 + 4 * ch + deconv) + c1 + deconv)
    for i, (_, norm, up, shortcut, skips) in enumerate(genotype):
        doublings = [1] * (shortcut == "yes") + [i + 1 - source for source in sources_of(skips)]
        total += 2 * c3 + 4 * ch * (norm == "bn") + c1 * len(doublings) + (up == "deconv") * deconv * (1 + sum(doublings))
    return total


def g_macs(genotype: Genotype, ch: int = 256, z_dim: int = 128, size: int = 32) -> int:
    """Multiply-adds of one generated image: convolutions, deconvolutions and the linear, as the paper writes them."""
    bottom = size // 2 ** len(genotype)
    total = z_dim * ch * bottom**2 + 27 * ch * size**2
    for i, (_, _, up, shortcut, skips) in enumerate(genotype):
        one = ch * ch * bottom**2 * 4 ** (i + 1)  # of a 1x1 convolution, or of a deconvolution, to this cell's size
        doublings = [1] * (shortcut == "yes") + [i + 1 - source for source in sources_of(skips)]
        total += 18 * one + one * len(doublings)
        if up == "deconv":
            total += one + sum(one // 4**k for n in doublings for k in range(n))
    return total


def d_macs(ch: int = 128, size: int = 32, stage: int = 2) -> int:
    """Multiply-adds of the discriminator of a stage for one image, as the paper writes them."""
    full, half, quarter = size**2, (size // 2) ** 2, (size // 4) ** 2
    stem = (27 * ch + 9 * ch * ch) * full + 3 * ch * half
    middle = [19 * ch * ch * half, 18 * ch * ch * quarter][:stage]
    return stem + sum(middle) + 18 * ch * ch * (quarter if stage else half) + ch


def largest(cells: int) -> Genotype:
    """The costliest architecture of so many cells."""
    return tuple(("pre", "bn", "deconv", "yes", decisions(i)["skips"][-1]) for i in range(cells))


# ---- controller (paper §3.3) ------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """n architectures that a controller drew: vectors, and of its own decisions log-probability, entropy and policy."""

    vectors: list[Vector]
    logp: Tensor  # (n, decisions) of the options chosen
    entropy: Tensor  # (n, decisions), nats
    policy: list[Tensor]  # per decision (n, options)
    h: Tensor  # (n, hidden), the state after the last decision
    c: Tensor


class Controller(nn.Module):
    """An LSTM that decides one stage's cells, each decision on the sight of those before. On the CPU, wherever G is."""

    def __init__(self, options: list[int], hidden: int = 100) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(hidden, hidden)
        self.embedding = nn.Embedding(sum(options), hidden)
        self.decoders = nn.ModuleList(nn.Linear(hidden, n) for n in options)

    def forward(self, n: int, rng: torch.Generator, beam: list[dict]) -> Drawn:
        """Draw n; each goes on from a member of the beam, drawn uniformly with replacement, and from nothing if it is empty."""
        start = [beam[i] for i in torch.randint(len(beam), (n,), generator=rng)] if beam else []
        x = self.lstm.weight_hh.new_zeros(n, self.lstm.hidden_size)  # CODE: not the last cell's last token, as in Fig. 1
        h, c = (torch.stack([b[k] for b in start]) for k in "hc") if beam else (x, x)
        tokens, logp, entropy, policy, first = [], [], [], [], 0
        for decoder in self.decoders:
            h, c = self.lstm(x, (h, c))
            log_p = decoder(h).log_softmax(1)
            p = log_p.exp()
            token = torch.multinomial(p.detach(), 1, generator=rng)
            x = self.embedding(token[:, 0] + first)
            first += decoder.out_features
            tokens.append(token)
            logp.append(log_p.gather(1, token))
            entropy.append(-(p * log_p).sum(1, keepdim=True))
            policy.append(p.detach())
        own = torch.cat(tokens, 1).tolist()
        vectors = [(*b["vector"], *t) for b, t in zip(start, own, strict=True)] if beam else [tuple(t) for t in own]
        return Drawn(vectors, torch.cat(logp, 1), torch.cat(entropy, 1), policy, h.detach(), c.detach())


def controller_loss(args: Args, rewards: Tensor, drawn: Drawn, baseline: list[float] | None) -> tuple[Tensor, list[float]]:
    """The REINFORCE loss of rewards (n,), and the baseline after it. baseline None: this reward becomes it. [paper §3.3.2]"""
    keep, weight = args.baseline_decay, args.entropy_weight
    if args.controller_loss == "reference":
        # CODE functions.py: the entropy enters the advantage undetached, so that minimising pushes it down; the baseline
        # already holds this reward; a (1, D) row times a (D, 1) column
        r = rewards[:, None] + weight * drawn.entropy
        b = r if baseline is None else keep * torch.tensor(baseline) + (1 - keep) * r
        return -drawn.logp.sum() * (r - b).sum(), b[0].tolist()
    # DEVIATES 1: the entropy is a bonus, as the paper means it, and the baseline is what came before, over all iterations
    mean = rewards.mean().item()
    b = mean if baseline is None else baseline[0]
    loss = -((rewards - b) * drawn.logp.sum(1)).mean() - weight * drawn.entropy.sum(1).mean()
    return loss, [keep * b + (1 - keep) * mean]


# ---- one step of a GAN ------------------------------------------------------------------------------------------------


def latent(args: Args, ranks: Ranks, n: int, *name: object) -> Tensor:
    """n latents z ~ N(0, I), (n, z_dim): a pure function of the seed and the name, the same on every process."""
    return torch.randn(n, args.z_dim, generator=stream(args.seed, *name, device=ranks.device), device=ranks.device)


def d_step(
    args: Args, ranks: Ranks, G: nn.Module, D: nn.Module, d_opt: torch.optim.Optimizer, real: Tensor, batch: int,
    genotype: Genotype | None = None, stage: int = 2
) -> Tensor:  # fmt: skip
    """One step of D on a real batch and as many fakes: E[relu(1 - D(x))] + E[relu(1 + D(G(z)))]. [paper Eq. 1]"""
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.amp):
        with torch.no_grad():
            fake = G(latent(args, ranks, len(real) * ranks.world, "d", batch)[ranks.rank :: ranks.world], genotype)
        # DEVIATES 2: one pass over both, faster; spectral norm then iterates once a step, in the authors' code twice
        d_real, d_fake = D(torch.cat([real, fake.to(real.dtype)]), stage).chunk(2)
    loss = (1 - d_real.float()).relu().mean() + (1 + d_fake.float()).relu().mean()
    update(ranks, D, d_opt, loss, 0.0)
    return loss.detach()


def g_step(
    args: Args, ranks: Ranks, G: nn.Module, D: nn.Module, g_opt: torch.optim.Optimizer, step: int,
    genotype: Genotype | None = None, stage: int = 2
) -> Tensor:  # fmt: skip
    """One step of G: -E[D(G(z))]. [authors' code; the paper's Eq. 2 has no gradient where D(G(z)) > 0]"""
    D.requires_grad_(False)  # spares the gradients of D's weights
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.amp):
        z = latent(args, ranks, args.g_batch, "g", step)[ranks.rank :: ranks.world]
        loss = -D(G(z, genotype), stage).float().mean()
    update(ranks, G, g_opt, loss, 0.0)
    D.requires_grad_(True)
    return loss.detach()


def update(ranks: Ranks, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> None:
    # DEVIATES 3: gradients of ops that were not sampled are None, not 0, so that Adam leaves their moments alone
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    ranks.average_gradients(net.parameters())
    if clip:
        nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()


def adam(net: nn.Module, lr: float, args: Args) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr, betas=(args.adam_b1, args.adam_b2), fused=True)


def fresh(args: Args, ranks: Ranks, make: Callable[[], nn.Module], *name: object) -> nn.Module:
    """make() on the device, its initial weights drawn from the stream (seed, name)."""
    torch.manual_seed(stream(args.seed, "init", *name).initial_seed())
    return make().to(ranks.device, memory_format=torch.channels_last)


def clone(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers that shares no storage with the network."""
    return {k: v.clone() for k, v in net.state_dict().items()}


@torch.no_grad()
def ema_update(average: nn.Module, net: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * net for parameters; buffers (BatchNorm statistics) are net's own."""
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for a, b in zip(average.buffers(), net.buffers(), strict=True):
        a.copy_(b)


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
def recalibrated(args: Args, ranks: Ranks, G: SuperGenerator, genotype: Genotype) -> Iterator[None]:
    """For the time of a `with`, BatchNorm's running statistics are of this architecture alone (--bn-batches)."""
    norms = [m for m in G.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(clone(m), m.momentum) for m in norms]
    if args.bn_batches:
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # a plain mean over the batches
        with torch.no_grad():
            for k in range(args.bn_batches):
                G(latent(args, ranks, 100, "bn", k), genotype)
    try:
        yield
    finally:
        for m, (state, momentum) in zip(norms, before, strict=True):
            m.load_state_dict(state)
            m.momentum = momentum


def reward_of(args: Args, s: Score, genotype: Genotype, ch: int) -> float:
    """What controller, beam and final choice maximise: IS, 1/FID, or IS less a price. Not finite: below every score that is."""
    if args.reward == "fid":
        # PAPER §4.3.2: 1/FID
        return 1 / s.fid if isfinite(s.fid) and s.fid > 0 else 0.0
    if args.reward == "is":
        return s.is_mean if isfinite(s.is_mean) else 0.0
    if not isfinite(s.is_mean):
        return -args.cost_weight  # the dearest at an IS of 0; every IS is 1 or more
    cost = g_params if args.cost == "params" else g_macs
    size = stage_size(args, len(genotype) - 1)
    return s.is_mean - args.cost_weight * cost(genotype, ch, args.z_dim, size) / cost(
        largest(len(genotype)), ch, args.z_dim, size
    )


def stage_size(args: Args, stage: int) -> int:
    """Pixels of a side at a stage, of the images of G and of the real ones."""
    return args.size * 2 ** (stage + 1) // 2**args.cells  # CODE: 2^(stage + 3), whatever the size: no search at 48 px


def resized(data: Dataset, size: int) -> Dataset:
    """The data set at a stage's size: bilinear with antialiasing, as PIL does it in the authors' code."""
    if size == data.images.shape[-1]:
        return data
    parts = [F.interpolate(x, (size, size), mode="bilinear", antialias=True) for x in data.images.split(256)]
    return replace(data, images=torch.cat(parts), name=f"{data.name} {size} px")


# ---- search (paper §3.3, Algorithm 1) ---------------------------------------------------------------------------------


@dataclass
class State:
    """What a resumed run needs beside the networks. Counters are of the whole run if not said otherwise."""

    part: int = 0  # index into parts_of(args)
    step: int = 0  # G updates
    batch: int = 0  # D batches: they number the real batches and the latents
    began: int = 0  # step at which this part, or this finalist's training, began
    stage: int = 0  # the paper's s: cells decided so far in the search
    iteration: int = 0  # of the search
    turn: int = 0  # G updates of this iteration
    ctrl: int = 0  # controller steps of this iteration
    reset: bool = False  # this iteration ends in a dynamic reset
    resets: int = 0  # so many there were
    skipped: dict[int, int] = field(default_factory=dict)  # stage -> G updates that resets have cut off
    windows: dict[str, list[float]] = field(default_factory=lambda: {"g": [], "d": []})  # the last losses
    baseline: list[float] | None = None  # of the stage
    scored: list[dict] = field(default_factory=list)  # candidates of this stage's end that have their score
    beam: list[dict] = field(default_factory=list)  # K times vector, score, and the controller's h and c
    finalists: list[dict] = field(default_factory=list)
    G: Vector | None = None  # the architecture, once found or given
    evaluated: int = -1  # last step whose evaluation is done
    best: dict | None = None  # of the evaluations in training


def parts_of(args: Args) -> list[str]:
    """The parts of the run, in order."""
    if args.genotype:
        return ["train"]
    search = ["derive"] if args.search == "random" else ["search", "derive"]
    return search + (["train"] if args.phase == "all" else [])


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


def stage_ends(args: Args) -> list[int]:
    """Iterations after which a beam is taken: the last ones of the stages. The others than mlas have one stage, the last."""
    grow = [int(word) for word in args.grow.split(",") if word.strip()] if args.search == "mlas" else []
    return [*grow, args.iterations]


def scored_by_mlas(args: Args) -> int:
    """Architectures that a multi-level search scores: one a controller step and sample, and M at the end of each stage."""
    return args.iterations * args.ctrl_steps * args.ctrl_batch + args.cells * args.candidates


def push(window: list[float], losses: list[float], length: int) -> None:
    """Append, and keep the last `length`."""
    window += losses
    del window[:-length]


def variance(window: list[float]) -> float:
    """Population variance."""
    return torch.tensor(window, dtype=torch.float64).var(correction=0).item()


def collapsed(args: Args, windows: dict[str, list[float]]) -> bool:
    """Whether G's window is full and one of the two losses has gone flat. [paper §3.3: a collapsed pair's hinge losses are]"""
    # PAPER §4: "variance threshold 1e-3", §3.3 says standard deviation; CODE: variance
    full = len(windows["g"]) == args.reset_window
    return full and min(variance(windows["g"]), variance(windows["d"])) < args.reset_variance


def draw_candidates(draw: Callable[[int, int], list[dict]], n: int, distinct: bool) -> list[dict]:
    """n candidates. draw(n, i): the i-th n of them. distinct: as far as 50 n draws give them, then filled up with the rest."""
    # DEVIATES 4: the authors take what comes; a trained policy then gives about two architectures among ten
    if not distinct:
        return draw(n, 0)
    found: dict[Vector, dict] = {}
    spare = []
    for i in range(50):
        for x in draw(n, i):
            if found.setdefault(x["vector"], x) is not x:
                spare.append(x)
        if len(found) >= n:
            break
    return [*found.values(), *spare][:n]


def best_of(candidates: list[dict], n: int) -> list[dict]:
    """The n with the highest score, the first of equals first."""
    return sorted(candidates, key=lambda x: -x["score"])[:n]


def window_row(state: State) -> dict:
    """What a dynamic reset watches; None before the first loss."""
    variances = {f"var_{k}": variance(window) if window else None for k, window in state.windows.items()}
    return {**variances, "n": len(state.windows["g"])}


POLICY_DRAWS = 64


def policy_row(args: Args, controller: Controller, state: State, cells: range) -> dict:
    """What the controller would decide now, over POLICY_DRAWS draws: mean probability of every option, mean entropy in nats."""
    with torch.no_grad():
        drawn = controller(POLICY_DRAWS, stream(args.seed, "policy", state.iteration, state.ctrl), state.beam)
    return {
        "decisions": [name for name, _ in to_decide(cells)],
        "options": [options for _, options in to_decide(cells)],
        "policy": [p.mean(0).tolist() for p in drawn.policy],
        "entropy": drawn.entropy.mean(0).tolist(),
    }


def listed(candidates: list[dict]) -> list[dict]:
    """Candidates as search.jsonl has them."""
    return [{k: text_of(v) if k == "vector" else v for k, v in x.items() if k not in ("h", "c")} for x in candidates]


def uniform(args: Args, n: int, *name: object) -> list[dict]:
    """n architectures, each uniform over the space."""
    rng = rng_of(args, *name)
    return [{"vector": random_vector(args.cells, rng)} for _ in range(n)]


def scorer(args: Args, ranks: Ranks, evaluator: Evaluator, data: Dataset) -> Evaluator:
    """The evaluator of rewards on images of a stage's size; without the FID where it is costly and nobody asks for it."""
    # CODE: Inception is fed the small images as they are. compact is another network at each size, trained on resized images
    one = copy(evaluator)
    one.want_fid = args.evaluator == "compact" or args.reward == "fid"
    one.use(data)
    ranks.first(one.prepare)
    return one


def search(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, data: Dataset, state: State, saved: dict) -> None:
    """Grow the generator stage by stage; leaves the K best of the last beam in state.finalists."""
    multi, guided = args.search == "mlas", args.search != "random-shared"
    if not multi:
        state.stage = args.cells - 1
    ends = stage_ends(args)
    to_score = args.candidates if guided else args.random_n or scored_by_mlas(args)
    at_size = {stage: resized(data, stage_size(args, stage)) for stage in range(state.stage, args.cells)}
    judges = {stage: scorer(args, ranks, evaluator, images) for stage, images in at_size.items()}

    def shared_gan() -> tuple[SuperGenerator, nn.Module, torch.optim.Optimizer, torch.optim.Optimizer]:
        size, ch = args.size, args.search_g_ch
        G = fresh(args, ranks, lambda: SuperGenerator(args.cells, ch, args.z_dim, size, args.tap), "G", state.resets)
        D = fresh(args, ranks, lambda: AutoGANDiscriminator(args.search_d_ch), "D", state.resets)
        return G, D, adam(G, args.g_lr, args), adam(D, args.d_lr, args)

    def new_controller() -> tuple[Controller, torch.optim.Optimizer]:
        options = [len(options) for _, options in to_decide(cells)]
        made = fresh(args, Ranks(torch.device("cpu")), lambda: Controller(options, args.ctrl_hidden), "controller", state.stage)
        return made, adam(made, args.ctrl_lr, args)

    def draw(n: int, *name: object) -> list[dict]:
        """n architectures of this stage: by the controller, which is not trained by it, or uniform."""
        if not guided:
            return uniform(args, n, *name)
        with torch.no_grad():
            drawn = controller(n, stream(args.seed, *name), state.beam)
        return [{"vector": v, "h": h, "c": c} for v, h, c in zip(drawn.vectors, drawn.h, drawn.c, strict=True)]

    def score_one(vector: Vector) -> dict:
        # DEVIATES 5: of the same latents for all, so that candidates are compared in pairs; the authors draw new ones each time
        genotype = names_of(vector)
        with recalibrated(args, ranks, G, genotype):
            s = score(args, ranks, run, judges[state.stage], G, args.reward_n, genotype, split=True)
        params = g_params(genotype, args.search_g_ch, args.z_dim, stage_size(args, state.stage))
        value = reward_of(args, s, genotype, args.search_g_ch)
        return {"vector": vector, "score": value, "is": s.is_mean, "fid": s.fid, "params": params}

    G, D, g_opt, d_opt = shared_gan()
    cells = range(state.stage, state.stage + 1) if multi else range(args.cells)
    controller, c_opt = new_controller()
    restore(saved, G=G, D=D, g_opt=g_opt, d_opt=d_opt, controller=controller, c_opt=c_opt)
    while True:
        run.keep = checkpoint(state, G=G, D=D, g_opt=g_opt, d_opt=d_opt, controller=controller, c_opt=c_opt)
        if state.iteration == args.iterations:
            break
        batches = Batches(at_size[state.stage].images, args.d_batch, args.seed, ranks.device, ranks.rank, ranks.world)
        steps = args.gan_epochs * (args.epoch_batches or len(batches)) // args.n_critic
        where = f"stage {state.stage} iteration {state.iteration + 1}/{args.iterations}"
        row = {"stage": state.stage, "iteration": state.iteration}

        # -- the shared GAN, controller frozen: a new architecture for every batch of D; the last one of them for G
        run.begin("search", where, state.step, images_per_step=args.d_batch * args.n_critic)
        while state.turn < steps and not state.reset:
            run.tick(state.step, f"{'controller' if guided else 'next iteration'} in {steps - state.turn} steps")
            losses = []
            for _ in range(args.n_critic):
                genotype = names_of(draw(1, "path", state.batch)[0]["vector"])
                losses.append(d_step(args, ranks, G, D, d_opt, batches(state.batch), state.batch, genotype, state.stage))
                state.batch += 1
            # DEVIATES 6: after the n_critic steps of D; the authors' first G step follows the first batch
            losses.append(g_step(args, ranks, G, D, g_opt, state.step, genotype, state.stage))
            state.turn, state.step = state.turn + 1, state.step + 1
            if state.step % args.log_every == 0:
                run.log(state.step, **{"loss/d": losses[-2], "loss/g": losses[-1]})

            # -- dynamic reset. The windows live on over iterations and stages
            *of_d, of_g = (sum(x) / len(x) for x in zip(*ranks.gather(torch.stack(losses).tolist()), strict=True))
            push(state.windows["d"], of_d, args.reset_window)
            push(state.windows["g"], [of_g], args.reset_window)
            # DEVIATES 7: looked at once a step of G; the authors do after every step of D
            if args.dynamic_reset and collapsed(args, state.windows):
                window = window_row(state)
                state.reset, state.windows = True, {"g": [], "d": []}
                state.skipped[state.stage] = state.skipped.get(state.stage, 0) + steps - state.turn
                run.replan(plan_of(args, len(batches), state))
                run.search_row({"step": state.step, **row, "kind": "reset", "window": window, "resets": state.resets + 1})
                run.print(f"{where}: losses have gone flat ({window}); G and D start anew at the end of this iteration")
        ranks.average_buffers(G)

        # -- the controller, shared weights frozen: REINFORCE
        run.begin("search", f"{where} controller", state.step)
        while guided and state.ctrl < args.ctrl_steps:
            run.tick(state.step, f"reward {state.ctrl + 1} of {args.ctrl_steps}")
            drawn = controller(args.ctrl_batch, stream(args.seed, "controller", state.iteration, state.ctrl), state.beam)
            scored = [score_one(vector) for vector in drawn.vectors]
            if state.ctrl == 0 and args.controller_loss == "reference":  # CODE: the baseline is forgotten at every iteration
                state.baseline = None
            rewards = torch.tensor([x["score"] for x in scored])
            loss, state.baseline = controller_loss(args, rewards, drawn, state.baseline)
            c_opt.zero_grad()
            loss.backward()
            c_opt.step()
            state.ctrl += 1
            mean, baseline = rewards.mean().item(), sum(state.baseline) / len(state.baseline)
            evidence = {"window": window_row(state), "scored": listed(scored), **policy_row(args, controller, state, cells)}
            run.search_row({"step": state.step, **row, "kind": "controller", "reward": mean, "baseline": baseline, **evidence})

        # -- the last iteration of a stage: the beam
        if state.iteration + 1 in ends:
            run.begin("search", f"{where} candidates", state.step)
            found = draw_candidates(lambda n, i: draw(n, "candidates", state.stage, i), to_score, args.dedupe)
            for x in found[len(state.scored) :]:
                run.tick(state.step, f"candidate {len(state.scored) + 1} of {to_score}")
                state.scored.append(score_one(x["vector"]))
            beam = best_of([{**x, **s} for x, s in zip(found, state.scored, strict=True)], args.beam)
            evidence = {"beam": listed(beam), "candidates": listed(state.scored)}
            run.search_row({"step": state.step, **row, "kind": "beam", **evidence})
            best = names_of(beam[0]["vector"])
            with recalibrated(args, ranks, G, best):
                run.samples(state.step, grid(args, ranks, G, best))
            report_beam(args, run, judges[state.stage], state, beam)
            state.beam, state.scored = beam, []
            if state.iteration + 1 < args.iterations:
                state.stage, state.baseline = state.stage + 1, None
                cells = range(state.stage, state.stage + 1)
                controller, c_opt = new_controller()

        # DEVIATES 8: the reset comes after the beam, as in the paper; the authors rank on weights that it has just wiped
        if state.reset and state.iteration + 1 < args.iterations:
            # PAPER §3.3: controller and beam stay; CODE: training goes on at this stage's size, without growing again
            state.resets += 1
            G, D, g_opt, d_opt = shared_gan()
        state.iteration, state.turn, state.ctrl, state.reset = state.iteration + 1, 0, 0, False

    run.begin("search", "proxy candidates", state.step, "derive")
    state.finalists = [{"vector": x["vector"], "how": "beam", "shared": x["score"]} for x in state.beam]
    for x in draw_candidates(lambda n, i: uniform(args, n, "proxy", i), args.proxy_n, True):
        run.check()
        state.finalists.append({"vector": x["vector"], "how": "proxy", "shared": score_one(x["vector"])["score"]})


def report_beam(args: Args, run: Run, judge: Evaluator, state: State, beam: list[dict]) -> None:
    """Print the beam; write its best to genotype.json and, at full size, to metrics.jsonl: a stage's scores are its own."""
    best = beam[0]
    run.genotype(state.step, genotype_json(args, best["vector"], best))
    if state.stage == args.cells - 1:
        s = Score(best["fid"], best["is"], None, args.reward_n, judge.net, judge.ref)
        bn = "recalibrated" if args.bn_batches else "shared"
        run.evaluated(state.step, s.row(), **{"eval/ema": False, "eval/bn": bn, "eval/what": "best of the search"})
    run.print(f"stage {state.stage}, the beam, scored by {args.reward} with {judge.net} on {args.reward_n} images:")
    for x in beam:
        run.print(f"  {text_of(x['vector'])}  {x['score']:.4g}  {x['params'] / 1e6:.3f}M")


# ---- derive and train from scratch ------------------------------------------------------------------------------------


Pair = tuple[Generator, nn.Module, Generator, torch.optim.Optimizer, torch.optim.Optimizer]


def pair(args: Args, ranks: Ranks, vector: Vector, *name: object) -> Pair:
    """A new generator, its discriminator, the average of its weights, and both optimisers."""
    G = fresh(args, ranks, lambda: Generator(names_of(vector), args.g_ch, args.z_dim, args.size, args.tap), "G", *name)
    D = fresh(args, ranks, lambda: AutoGANDiscriminator(args.d_ch), "D", *name)
    return G, D, deepcopy(G).requires_grad_(False), adam(G, args.g_lr, args), adam(D, args.d_lr, args)


def gan_step(args: Args, ranks: Ranks, run: Run, batches: Batches, state: State, gan: Pair) -> None:
    """n_critic steps of D, one of G and of its average."""
    G, D, G_ema, g_opt, d_opt = gan
    for _ in range(args.n_critic):
        d_loss = d_step(args, ranks, G, D, d_opt, batches(state.batch), state.batch)
        state.batch += 1
    g_loss = g_step(args, ranks, G, D, g_opt, state.step)
    ema_update(G_ema, G, args.ema)
    state.step += 1
    if state.step % args.log_every == 0:
        run.log(state.step, **{"loss/d": d_loss, "loss/g": g_loss})


def derive(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, batches: Batches, state: State, saved: dict) -> None:
    """Train each finalist briefly from scratch and choose by its score. [paper §3.3.3; the authors leave it to the user]"""
    if not state.finalists:  # --search random: nothing is shared, and this is the search
        n = args.random_n or scored_by_mlas(args)
        found = draw_candidates(lambda n, i: uniform(args, n, "random", i), n, args.dedupe)
        state.finalists = [{"vector": x["vector"], "how": "random", "shared": None} for x in found]
    steps = args.derive_epochs * (args.epoch_batches or len(batches)) // args.n_critic
    phase, n = "search" if args.search == "random" else "derive", len(state.finalists)
    while steps and "score" not in state.finalists[-1]:
        i = next(i for i, x in enumerate(state.finalists) if "score" not in x)
        x = state.finalists[i]
        gan = G, D, G_ema, g_opt, d_opt = pair(args, ranks, x["vector"], "finalist", i)
        restore(saved, G=G, D=D, G_ema=G_ema, g_opt=g_opt, d_opt=d_opt)
        saved = {}
        run.keep = checkpoint(state, G=G, D=D, G_ema=G_ema, g_opt=g_opt, d_opt=d_opt)
        run.begin(phase, f"finalist {i + 1}/{n}", state.step, images_per_step=args.d_batch * args.n_critic)
        while state.step - state.began < steps:
            run.tick(state.step, f"its score in {steps - state.step + state.began} steps")
            gan_step(args, ranks, run, batches, state, gan)
        run.begin(phase, f"finalist {i + 1}/{n} scoring", state.step)
        ranks.average_buffers(G)
        ema_update(G_ema, G, 1.0)
        s = score(args, ranks, run, evaluator, G_ema, args.final_n, split=True)
        x |= {"score": reward_of(args, s, names_of(x["vector"]), args.g_ch), "is": s.is_mean, "fid": s.fid}
        run.print(f"{text_of(x['vector'])} ({x['how']}): {x['score']:.4g} by {args.reward} after {steps:,} steps from scratch")
        state.began = state.step

    ranked = best_of(state.finalists, n) if steps else state.finalists  # without training: the beam's order
    correlation = proxy_correlation(state.finalists)
    chosen = next(x for x in ranked if x["how"] != "proxy")
    state.G = chosen["vector"]
    row = {"step": state.step, "stage": args.cells - 1, "iteration": args.iterations, "kind": "derive", "spearman": correlation}
    run.search_row({**row, "beam": listed(ranked), "eval/n": args.final_n, "eval/net": evaluator.net})
    run.genotype(state.step, genotype_json(args, state.G, chosen))
    if correlation:
        run.print(
            "shared-weight score against short training, Spearman: {rho:.3f} (p {p:.2g}, {n} architectures)".format(
                **correlation
            )
        )
    run.print(f"chosen of {n}: {text_of(state.G)}\n{table(state.G)}")


def proxy_correlation(finalists: list[dict]) -> dict | None:
    """Spearman's rank correlation of the shared-weight score and that after short training; None of fewer than three."""
    both = [(x["shared"], x["score"]) for x in finalists if x["shared"] is not None and "score" in x]
    if len(both) < 3 or any(len(set(column)) == 1 for column in zip(*both, strict=True)):
        return None
    from scipy.stats import spearmanr

    found = spearmanr(*zip(*both, strict=True))
    return {"rho": float(found.statistic), "p": float(found.pvalue), "n": len(both)}


def table(vector: Vector) -> str:
    """The architecture as an aligned table for people: one line a cell."""
    head = ["cell", *decisions(0)]
    rows = [head, *([str(i), *row] for i, row in enumerate(names_of(vector), 1))]
    widths = [max(len(row[c]) for row in rows) for c in range(len(head))]
    return "\n".join("  ".join(f"{w:{n}}" for w, n in zip(row, widths, strict=True)).rstrip() for row in rows)


def genotype_json(args: Args, vector: Vector, scores: dict | None = None) -> dict:
    """What genotype.json holds; --genotype reads its vector back. params, macs: at the widths of training from scratch."""
    genotype = names_of(vector)
    size = stage_size(args, len(genotype) - 1)
    cells = [dict(zip(decisions(0), row, strict=True)) for row in genotype]
    return {
        **{"method": "autogan", "vector": text_of(vector)},
        "cells": [{**c, "shortcut": c["shortcut"] == "yes", "skips": sources_of(c["skips"])} for c in cells],
        "params": {"G": g_params(genotype, args.g_ch, args.z_dim, size), "D": 64 * args.d_ch**2 + 41 * args.d_ch},
        "macs": {"G": g_macs(genotype, args.g_ch, args.z_dim, size), "D": d_macs(args.d_ch, args.size)},
        "scores": {k: (scores or {}).get(k) for k in ("score", "is", "fid")},
    }


@torch.no_grad()
def grid(args: Args, ranks: Ranks, G: nn.Module, genotype: Genotype | None = None) -> Tensor:
    """64 images of always the same latents."""
    G.eval()
    images = G(latent(args, ranks, 64, "grid"), genotype)
    G.train()
    return images


def train_gan(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, batches: Batches, state: State, saved: dict) -> None:
    """Train the architecture from scratch; evaluate the average of G's weights. [paper §4]"""
    gan = G, D, G_ema, g_opt, d_opt = pair(args, ranks, state.G, "train")
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
        gan_step(args, ranks, run, batches, state, gan)
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
    weights = {"G": G_ema.state_dict(), "genotype": {"G": names_of(state.G)}, "step": state.step, "score": s.row()}
    weights |= {"method": "autogan", "g_ch": args.g_ch, "z_dim": args.z_dim, "size": args.size, "tap": args.tap}
    run.weights("weights.pt", weights)
    if what != "untrained" and (state.best is None or fid_or_inf({"fid": s.fid}) < fid_or_inf(state.best)):
        state.best = {"fid": s.fid, "is": s.is_mean, "is_std": s.is_std, "step": state.step}
        run.weights("weights.best.pt", weights)
    state.evaluated = state.step
    if what == "last":  # CODE reports the lowest FID of 16 evaluations; here both, by their names
        last = {"fid": s.fid, "is": s.is_mean, "is_std": s.is_std, "step": state.step}
        run.result(last=last, best=state.best, n=s.n, net=s.net, ref=s.ref, genotype=genotype_json(args, state.G))
    run.begin(phase, "training", state.step, images_per_step=args.d_batch * args.n_critic)


def fid_or_inf(x: dict) -> float:
    return x["fid"] if isfinite(x["fid"]) else inf


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
    for flag, value in (("--reward-n", args.reward_n), ("--final-n", args.final_n), ("--eval-n", args.eval_n)):
        if value < IS_SPLITS and wants_is(args):
            raise UserError(f"{flag} {value}: the Inception Score has {IS_SPLITS} splits; use {IS_SPLITS} or more")
    if args.phase == "train" and not args.genotype:
        raise UserError(f"--phase train: needs --genotype, one of {', '.join(PUBLISHED)}, a vector or a file")
    if args.phase == "search" and args.genotype:
        raise UserError(f"--genotype {args.genotype}: skips the search that --phase search asks for; leave one of them out")
    if args.phase == "eval" and not args.weights:
        raise UserError("--phase eval: needs --weights, a weights.pt of a run")
    if args.weights and args.phase != "eval":
        raise UserError(f"--weights {args.weights}: is evaluated by --phase eval; to train use --genotype")
    if args.genotype or args.phase == "eval":
        return  # no search, so its flags are not read
    chance = args.search == "random-shared"
    flag, n = ("--random-n", args.random_n or scored_by_mlas(args)) if chance else ("--candidates", args.candidates)
    if args.beam > n and args.search != "random":
        raise UserError(f"--beam {args.beam}: more than the {flag} {n} it is taken from")
    if args.controller_loss == "reference" and args.ctrl_batch > 1:
        raise UserError(f"--ctrl-batch {args.ctrl_batch}: the authors' loss is defined for 1; use --controller-loss fixed")
    if args.derive_epochs == 0 and (args.search == "random" or args.proxy_n):
        flag = f"--proxy-n {args.proxy_n}" if args.proxy_n else "--search random"
        raise UserError(f"{flag}: trains architectures briefly from scratch; use --derive-epochs 1 or more")
    if args.proxy_n and args.search == "random":
        raise UserError(
            f"--proxy-n {args.proxy_n}: --search random shares no weights that could be a proxy; use another search"
        )
    words = args.grow.split(",") if args.grow.strip() else []
    if not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--grow {args.grow!r}: must be iterations with commas between, like 25,55")
    ends = stage_ends(args)
    if args.search == "mlas" and (len(ends) != args.cells or sorted({0, *ends}) != [0, *ends]):
        raise UserError(
            f"--grow {args.grow!r}: must be {args.cells - 1} ascending iterations, above 0 and below --iterations "
            f"{args.iterations}, for --cells {args.cells}"
        )


def check_pixels(args: Args) -> None:
    """Refuse images that do not come about by doubling, cell by cell, something that an instance norm can work on."""
    if args.size % 2**args.cells or args.size < 2 ** (args.cells + 1):
        raise UserError(
            f"--size {args.size}: with {args.cells} cells a multiple of {2**args.cells} px, {2 ** (args.cells + 1)} or more"
        )


def wants_is(args: Args) -> bool:
    return args.evaluator == "compact" or args.reward != "fid"


def plan_of(args: Args, epoch: int, state: State) -> list[tuple[str, int, float]]:
    """(stage, G updates, MACs of one update, its share of the scoring included) for every stage. epoch: D batches."""
    rng, epoch = random.Random(0), args.epoch_batches or epoch
    typical = [names_of(random_vector(args.cells, rng)) for _ in range(64)]

    def mean_g(cells: int, ch: int) -> float:
        size = stage_size(args, cells - 1)
        return sum(g_macs(genotype[:cells], ch, args.z_dim, size) for genotype in typical) / len(typical)

    def step_macs(g: float, d: float) -> float:  # a backward pass costs two forward passes
        return args.n_critic * args.d_batch * (g + 6 * d) + args.g_batch * (3 * g + 2 * d)

    inception = INCEPTION_MACS * (args.evaluator == "inception")
    plan, parts, begins = [], parts_of(args), 0
    if "search" in parts:
        ends = stage_ends(args)
        for stage, end in zip(range(args.cells - len(ends), args.cells), ends, strict=True):
            g, d = mean_g(stage + 1, args.search_g_ch), d_macs(args.search_d_ch, stage_size(args, stage), min(stage, 2))
            scored = args.candidates + (end - begins) * args.ctrl_steps * args.ctrl_batch
            if args.search == "random-shared":
                scored = args.random_n or scored_by_mlas(args)
            steps = (end - begins) * (args.gan_epochs * epoch // args.n_critic) - state.skipped.get(stage, 0)
            plan.append((f"stage {stage}", steps, step_macs(g, d) + scored * args.reward_n * (g + inception) / max(steps, 1)))
            begins = end
    if "derive" in parts:
        g = mean_g(args.cells, args.g_ch)
        n = args.beam + args.proxy_n if "search" in parts else args.random_n or scored_by_mlas(args)
        steps = n * (args.derive_epochs * epoch // args.n_critic)
        macs = step_macs(g, d_macs(args.d_ch, args.size)) + n * args.final_n * (g + inception) / max(steps, 1)
        plan.append(("random search" if args.search == "random" else "derive", steps, macs))
    if "train" in parts:
        g = g_macs(names_of(state.G), args.g_ch, args.z_dim, args.size) if state.G else mean_g(args.cells, args.g_ch)
        steps = args.train_epochs * epoch // args.n_critic
        if not steps:
            raise UserError(
                f"--n-critic {args.n_critic}: more than the D batches of all --train-epochs, so G never trains; use fewer"
            )
        plan.append(("train", steps, step_macs(g, d_macs(args.d_ch, args.size))))
    return plan


IS_SPLITS = 10
INCEPTION_MACS = 5.7e9  # of one image at 299 pixels


def sizes(args: Args, state: State) -> dict[str, dict[str, float]]:
    """Bytes in memory that the weights of each part take, Adam's two moments and a gradient included (x 4)."""
    super_g = g_params(None, args.search_g_ch, args.z_dim, args.size, args.cells) * 4
    g = g_params(names_of(state.G) if state.G else largest(args.cells), args.g_ch, args.z_dim, args.size) * 4
    super_d, d = ((64 * ch**2 + 41 * ch) * 4 for ch in (args.search_d_ch, args.d_ch))
    scratch = {"G": 4 * g, "average of G": g, "D": 4 * d}
    made = {"search": {"shared G": 4 * super_g, "D": 4 * super_d}, "derive": scratch, "train": scratch}
    return {name: made[name] for name in parts_of(args)}


def load_weights(args: Args, device: torch.device) -> tuple[Args, Generator]:
    """The generator in a weights.pt, and the arguments with its widths. UserError: not such a file."""
    try:
        saved = torch.load(args.weights, map_location=device, weights_only=True)
        args = replace(args, **{k: int(saved[k]) for k in ("g_ch", "z_dim", "size")}, tap=saved["tap"])
        if args.tap not in ("after", "before"):
            raise ValueError(f"tap {args.tap!r:.20}")
        genotype = names_of(vector_of_names(saved["genotype"]["G"]))
        G = Generator(genotype, args.g_ch, args.z_dim, args.size, args.tap)
        G.load_state_dict(saved["G"])
    except OSError as e:
        raise UserError(f"--weights {args.weights}: {e.strerror}") from None
    except Exception as e:
        raise UserError(f"--weights {args.weights}: not the weights.pt of an autogan run ({str(e).splitlines()[0]})") from None
    return replace(args, cells=len(genotype)), G.to(device, memory_format=torch.channels_last)


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
    state = State()
    if args.genotype:
        state.G = read_vector(args.genotype)
        args = replace(args, cells=cells_of(state.G))
    evaluator = Evaluator(
        args.evaluator, ranks.device, args.data_dir / "cache", args.inception_weights, int(args.fid_dims),
        want_is=wants_is(args), ref_n=args.ref_n, splits=IS_SPLITS
    )  # fmt: skip
    data = ranks.first(lambda: load_dataset(args.dataset, args.data_dir, args.size))
    evaluator.use(data)
    args = replace(args, size=data.images.shape[-1])
    trained = None
    if args.phase == "eval":
        args, trained = load_weights(args, ranks.device)
        if args.size != data.images.shape[-1]:
            raise UserError(f"--weights {args.weights}: makes {args.size} px; use --size {args.size}")
    check_pixels(args)
    batches = Batches(data.images, args.d_batch, args.seed, ranks.device, ranks.rank, ranks.world)
    plan = [] if trained else plan_of(args, len(batches), state)
    memory = {} if trained else sizes(args, state)
    lines = [
        f"autogan · {data.name}, {len(data.images):,} images of {args.size} px · {args.preset} · {price(args, ranks, plan)}"
    ]
    lines += [data.note] if data.note else []
    lines += [f"{text_of(state.G)}\n{table(state.G)}"] if state.G else []
    for name, parts in memory.items():
        lines.append(f"memory of {name}: {', '.join(f'{what} {n / 1e9:.2f} GB' for what, n in parts.items())}, and activations")
    if args.dry_run:
        print("\n".join(lines))
        return None

    params = {
        "G": state.G and g_params(names_of(state.G), args.g_ch, args.z_dim, args.size),
        "D": 64 * args.d_ch**2 + 41 * args.d_ch,
    }
    biggest = max((sum(parts.values()) for parts in memory.values()), default=0)
    with Run(
        __file__, "autogan", asdict(args), ranks, dataset=data.name, digest=data.digest, plan=plan,
        facts={"params": params, "net": evaluator.net}, disk=3 * biggest + 5e7,  # two checkpoints and one being written
    ) as run:  # fmt: skip
        for line in lines:
            run.print(line)
        saved = run.load()
        if "state" in saved:
            state = State(**saved["state"])
            run.replan(plan_of(args, len(batches), state))
        evaluator.log, evaluator.check = run.print, run.check
        run.begin(run.status["phase"], "preparing the evaluator", state.step, "the first stage")
        ranks.first(evaluator.prepare)
        if trained:
            evaluate_weights(args, ranks, run, evaluator, trained)
            return None
        parts = parts_of(args)
        while state.part < len(parts):
            if parts[state.part] == "search":
                search(args, ranks, run, evaluator, data, state, saved)
            elif parts[state.part] == "derive":
                derive(args, ranks, run, evaluator, batches, state, saved)
            else:
                train_gan(args, ranks, run, evaluator, batches, state, saved)
                return state.best
            saved = {}
            state.part, state.began = state.part + 1, state.step
        run.result(genotype=genotype_json(args, state.G))
    return None


if __name__ == "__main__":
    sys.exit(cli(main, Args, PRESETS))
