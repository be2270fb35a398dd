"""DEGAS: differentiable efficient generator search, by reconstruction (Doveh and Giryes, 2019).

Paper: arXiv 1912.00606. There is no authors' code: what the paper leaves open is decided here. docs/degas.md has the details.

Search, without a discriminator. A supernet joins feature maps by connections; each is the softmax(alpha)-weighted sum of its
candidate operations. Every training image owns a latent z, and G must reconstruct image i from z_i (GLO). By turns
    one step on the weights w and the latents z of a batch, one step on alpha of another batch,
both on squared error + Laplacian-pyramid L1.
Prune: each feature map keeps its best operation; where that one lies on a residual connection, also the best direct one.
Then weights and latents are thrown away, and the found generator is trained from scratch as the G of a CT-GAN: Wasserstein
loss, gradient penalty, consistency of a critic under dropout; without labels, or with them (--conditional).

Published (CIFAR-10, 50,000 images): IS 8.37, FID 12.01; with labels 8.85, 9.83. This script at paper scale: not run.
Tags: PAPER where the paper says so; DARTS, GLO, CT-GAN where the code of a work that it builds on decides; OURS where the
paper is silent; DEVIATES where this script differs from what one of them does.
"""

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from math import cos, inf, isfinite, log, pi, prod, sqrt
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cells import Conv, ConvAvgPool, count_params
from common.data import Batches, Dataset, load_dataset
from common.metrics import Evaluator, Score
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
        opt("Which part to run; train needs --genotype or --random-arch, eval needs --weights. [ours]", "Run"),
    ] = "all"
    genotype: Annotated[
        str | None,
        opt("Generator to train instead of searching: a genotype.json, or baseline, CT-GAN's own. [ours]", "Run"),
    ] = None
    random_arch: Annotated[
        bool, opt("Train what pruning makes of random alpha, N(0, 1), instead of searching. [paper, ablation]", "Run")
    ] = False
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
    size: Annotated[int, opt("Pixels of a side, a multiple of 8; 0: 32, for STL-10 48. [paper §4]", "Data", min=0)] = 0

    n: Annotated[int, opt("Normal feature maps between two up-sampled ones. [paper §3]", "Search", min=1, max=8)] = 1
    normal_ops: Annotated[
        Literal["9", "7"], opt("Candidates of a normal connection; 7: those of DARTS. [9, 7: paper §3]", "Search")
    ] = "9"
    search_size: Annotated[
        int, opt("Pixels of a side in the search, a multiple of 8; 0: --size. [paper, ablation]", "Search", min=0)
    ] = 0
    search_images: Annotated[int, opt("Training images of the search, drawn at random; 0: all. [ours]", "Search", min=0)] = 0
    search_epochs: Annotated[int, opt("Epochs of (z, w) steps. [DARTS]", "Search", min=1)] = 50
    epoch_batches: Annotated[int, opt("D batches that count as an epoch; 0: the data set once. [ours]", "Search", min=0)] = 0
    search_batch: Annotated[int, opt("Images of a search step, over all processes. [DARTS]", "Search", min=2)] = 64
    search_ch: Annotated[int, opt("Channels of the supernet. [inferred: docs/degas.md]", "Search", min=1)] = 128
    w_lr: Annotated[float, opt("SGD learning rate of w; 0: 0.3, for STL-10 and CelebA 0.03. [paper §4]", "Search", min=0)] = 0.0
    z_lr: Annotated[float, opt("SGD learning rate of z, as a multiple of w's. [GLO]", "Search", min=0)] = 10.0
    z_grad: Annotated[
        Literal["image", "batch"], opt("image: each z follows its own loss; batch: 1/batch of it. [ours]", "Search")
    ] = "image"
    z_init: Annotated[Literal["random", "pca"], opt("First latents. [random: paper §3; pca: GLO]", "Search")] = "random"
    arch_lr: Annotated[float, opt("Adam learning rate of alpha. [DARTS]", "Search", min=0)] = 3e-4
    alpha_data: Annotated[
        Literal["train", "same", "val"],
        opt("Batch of an alpha step: another one, the same, or of a held-out half. [ours]", "Search"),
    ] = "train"
    lap_levels: Annotated[int, opt("Halvings of the pyramid; 0: 3, below 32 px 2. [GLO]", "Search", min=0)] = 0
    loss_reduction: Annotated[
        Literal["mean", "sum"], opt("sum: the paper's formula; mean: that over 3 x size x size. [ours]", "Search")
    ] = "mean"
    prune_score: Annotated[
        Literal["alpha", "softmax"], opt("What pruning compares. [alpha: paper §3; softmax: DARTS]", "Search")
    ] = "alpha"

    conditional: Annotated[bool, opt("Train with labels: conditional BatchNorm, class head. [paper §4]", "Train")] = False
    iters: Annotated[
        int, opt("Iterations: n-critic critic steps and, but for the first, a G step. [CT-GAN]", "Train", min=2)
    ] = 100_000
    g_ch: Annotated[int, opt("Channels of G. [inferred: docs/degas.md]", "Train", min=1)] = 128
    d_ch: Annotated[int, opt("Channels of the critic. [CT-GAN]", "Train", min=1)] = 128
    z_dim: Annotated[int, opt("Latent size, in search and training. [CT-GAN]", "Train", min=1)] = 128
    g_batch: Annotated[int, opt("Latents of a G step, over all processes. [CT-GAN]", "Train", min=1)] = 128
    d_batch: Annotated[int, opt("Real images of a critic step, over all processes. [CT-GAN]", "Train", min=1)] = 64
    g_lr: Annotated[float, opt("Adam learning rate of G, falling to 0 linearly. [CT-GAN]", "Train", min=0)] = 2e-4
    d_lr: Annotated[float, opt("Adam learning rate of the critic, falling likewise. [CT-GAN]", "Train", min=0)] = 2e-4
    adam_b1: Annotated[float, opt("Adam beta 1. [CT-GAN]", "Train", min=0, max=1)] = 0.0
    adam_b2: Annotated[float, opt("Adam beta 2. [CT-GAN]", "Train", min=0, max=1)] = 0.9
    n_critic: Annotated[int, opt("Critic steps per iteration. [CT-GAN]", "Train", min=1)] = 5
    ema: Annotated[float, opt("Decay of G's average per G update; 0: G itself. [0: CT-GAN]", "Train", min=0, max=1)] = 0.0
    amp: Annotated[bool, opt("bfloat16 autocast of G and the critic. [ours]", "Train")] = False
    compile: Annotated[bool, opt("torch.compile in training from scratch. [ours]", "Train")] = False

    evaluator: Annotated[
        Literal["inception", "compact"], opt("compact: a small classifier of the data's own labels. [ours]", "Eval")
    ] = "inception"
    inception_weights: Annotated[Path | None, opt("File of the FID network; default: download. [ours]", "Eval")] = None
    fid_dims: Annotated[
        Literal["64", "192", "768", "2048"], opt("Features of the FID; below 2048 there is no IS. [pytorch-fid]", "Eval")
    ] = "2048"
    ref_n: Annotated[int, opt("Training images behind the reference; 0: all. [ours]", "Eval", min=0)] = 0
    eval_n: Annotated[int, opt("Generated images of an evaluation in training. [CT-GAN]", "Eval", min=2)] = 50_000
    eval_every: Annotated[int, opt("Epochs between evaluations in training; 64: 10,000 G updates. [ours]", "Eval", min=1)] = 64
    eval_bn: Annotated[
        Literal["batch", "running"], opt("BatchNorm statistics of evaluation; batch: of 100 images. [CT-GAN]", "Eval")
    ] = "batch"


PRESETS = {
    "paper": {},
    "quick": {
        **{"preset": "quick", "search_epochs": 8, "search_images": 10_000, "search_ch": 64, "arch_lr": 3e-3, "amp": True},
        **{"iters": 4000, "eval_n": 10_000, "eval_every": 6, "sample_every": 500},
    },
    "smoke": {
        **{"preset": "smoke", "dataset": "shapes", "evaluator": "compact", "z_dim": 32},
        **{"search_images": 128, "search_size": 16, "search_batch": 32, "search_ch": 12, "arch_lr": 1e-2},
        **{"search_epochs": 8, "epoch_batches": 20},
        **{"iters": 201, "g_ch": 24, "d_ch": 24, "d_batch": 32, "g_batch": 32, "n_critic": 2, "g_lr": 2e-3, "d_lr": 2e-3},
        **{"ema": 0.9, "eval_n": 1000, "eval_every": 10, "sample_every": 50, "log_every": 10},
    },
}

# ---- search space (paper §3) ------------------------------------------------------------------------------------------

NORMAL = (
    *("conv_1x1", "conv_3x3", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
    *("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"),
)
UP = ("deconv_4", "deconv_6", "nn_conv_1", "nn_conv_3")
POOLS = ("max_pool_3x3", "avg_pool_3x3")
SHORT = {"conv_1x1": "c1", "conv_3x3": "c3", "max_pool_3x3": "max", "avg_pool_3x3": "avg", "skip_connect": "skip"}
SHORT |= {"sep_conv_3x3": "sep3", "sep_conv_5x5": "sep5", "dil_conv_3x3": "dil3", "dil_conv_5x5": "dil5"}
SHORT |= {"deconv_4": "d4", "deconv_6": "d6", "nn_conv_1": "n1", "nn_conv_3": "n3"}

# What each node takes its input from, the direct connection first: {"N1": (("U0", "sep_conv_5x5"),), ...}
Genotype = dict[str, tuple[tuple[str, str], ...]]


def level(node: str) -> int:
    """A node has base x 2**level pixels a side: k for U_k; N_k lies before the up-sampling that makes U_k."""
    return int(node[1]) - (node[0] == "N")


class Connection(NamedTuple):
    source: str
    target: str
    kind: Literal["normal", "up", "residual"]  # which table of alpha it has a row in
    direct: bool  # from the node just before it

    @property
    def name(self) -> str:
        return f"{self.source}->{self.target}"

    @property
    def stage(self) -> int:
        return int(self.target[1])

    @property
    def factor(self) -> int:
        return 2 ** (level(self.target) - level(self.source))

    def ops(self, normal: tuple[str, ...] = NORMAL) -> tuple[str, ...]:
        """Its candidates. PAPER §3: only residual connections between up-sampled maps may be absent."""
        return {"normal": normal, "up": UP, "residual": ("none", *UP)}[self.kind]


@cache
def connections(n: int = 1) -> list[Connection]:
    """All connections, ordered by target; into each node the direct one first, then the residual ones by source.

    U0 is the reshaped linear layer; three times n normal maps N and an up-sampling to U_k follow it. Residual connections
    between up-sampled maps span one or two of them, which is the only reading with the paper's 4^3 * 7^3 * 5 * 9^2 networks.
    """
    found = []
    for k in (1, 2, 3):
        chain = [f"U{k - 1}", *([f"N{k}"] if n == 1 else [f"N{k}_{m}" for m in range(1, n + 1)])]
        for m in range(1, n + 1):
            found.append(Connection(chain[m - 1], chain[m], "normal", True))
            found += [Connection(source, chain[m], "normal", False) for source in chain[: m - 1]]  # OURS, for n > 1
        found.append(Connection(chain[n], f"U{k}", "up", True))
        found += [Connection(f"U{j}", f"U{k}", "residual", False) for j in range(max(0, k - 2), k)]
    return found


@cache
def into(n: int) -> dict[str, list[Connection]]:
    """The connections that enter each node."""
    nodes: dict[str, list[Connection]] = {}
    for c in connections(n):
        nodes.setdefault(c.target, []).append(c)
    return nodes


def count_discrete(n: int = 1, normal_ops: int = 9) -> int:
    """Networks that pruning can end in: for each node a direct op, and one residual op or none."""
    ops = {"normal": normal_ops, "up": 4, "residual": 4}
    return prod(ops[c[0].kind] * (1 + sum(ops[r.kind] for r in c[1:])) for c in into(n).values())


def count_continuous(n: int = 1, normal_ops: int = 9) -> int:
    """The product over the connections of their numbers of candidates."""
    return prod({"normal": normal_ops, "up": 4, "residual": 5}[c.kind] for c in connections(n))


def n_of(genotype: Genotype) -> int:
    return sum(node.startswith("N1") for node in genotype)


def check_genotype(nodes: object, n: object, source: str) -> Genotype:
    """The genotype, if it belongs to the space of this n. UserError names source and node, and what may stand there."""
    if type(n) is not int or not 1 <= n <= 8:
        raise UserError(f"{source}: n is {n!r:.40}, must be the number of normal maps between two up-sampled ones, 1 to 8")
    wanted = into(n)
    if not isinstance(nodes, dict) or nodes.keys() != wanted.keys():
        raise UserError(f"{source}: nodes must be those of n = {n}, {', '.join(wanted)}; found {nodes!r:.80}")
    for node, entries in wanted.items():
        inputs = nodes[node]
        may_be = {c.source: c for c in entries}
        if not isinstance(inputs, list | tuple) or not 1 <= len(inputs) <= 2:
            raise UserError(f"{source}: {node} needs one or two inputs, found {inputs!r:.80}")
        for i, entry in enumerate(inputs):
            pair = isinstance(entry, list | tuple) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
            if not pair or entry[0] not in may_be:
                raise UserError(f"{source}: {node}: {entry!r:.60} is no input; use [node, op] with {', '.join(may_be)}")
            c = may_be[entry[0]]
            if c.direct != (i == 0):
                raise UserError(f"{source}: {node}: the first input must be the direct one, {entries[0].source}, the other not")
            ops = [op for op in c.ops() if op != "none"]
            if entry[1] not in ops:
                raise UserError(f"{source}: {node} from {c.source}: unknown op {entry[1]!r:.40}; use {', '.join(ops)}")
    return {node: tuple((source, op) for source, op in nodes[node]) for node in wanted}


def named(name: str) -> Genotype | Literal["baseline"]:
    """The genotype in a file, or "baseline". UserError: neither."""
    if name == "baseline":
        return name
    if Path(name).suffix != ".json":
        raise UserError(f"--genotype {name}: no such genotype; use baseline, CT-GAN's own generator, or a genotype.json")
    saved = read_json(Path(name), "genotype file")
    if "nodes" not in saved:
        raise UserError(f"{name}: not a genotype of degas.py, it has no key 'nodes'")
    return check_genotype(saved["nodes"], saved.get("n", 1), name)


def one_line(genotype: Genotype) -> str:
    """For people: N1 sep5 | U1 d6+U0:d4 | ..., the op of the direct connection, then of the residual one with its source."""
    ops = {
        node: SHORT[inputs[0][1]] + "".join(f"+{s}:{SHORT[op]}" for s, op in inputs[1:]) for node, inputs in genotype.items()
    }
    return " | ".join(f"{node} {text}" for node, text in ops.items())


def rows_of(genotype: Genotype) -> list[list[str]]:
    """The op on each connection, none where it was dropped; one row a stage, in the order of `connections`."""
    kept = {f"{s}->{node}": op for node, inputs in genotype.items() for s, op in inputs}
    found = connections(n_of(genotype))
    return [[kept.get(c.name, "none") for c in found if c.stage == k] for k in (1, 2, 3)]


# ---- networks ---------------------------------------------------------------------------------------------------------


class BatchNorm(nn.Module):
    """BatchNorm of x: (B, C, H, W), then scale and shift: none, one a channel, or with y: (B,) one a class and channel.

    In eval mode it takes the batch's own statistics (CODE CT-GAN: always), or with batch_stats = False the running ones.
    """

    def __init__(self, ch: int, affine: bool = True, classes: int = 0) -> None:
        super().__init__()
        shape = (classes, ch) if classes else (ch,)
        self.weight, self.bias = (nn.Parameter(start(shape)) if affine else None for start in (torch.ones, torch.zeros))
        self.register_buffer("running_mean", torch.zeros(ch) if affine else None)
        self.register_buffer("running_var", torch.ones(ch) if affine else None)
        self.batch_stats = True

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        conditional = self.weight is not None and self.weight.dim() == 2
        affine = (None, None) if conditional else (self.weight, self.bias)
        if self.training or not self.batch_stats:
            x = F.batch_norm(x, self.running_mean, self.running_var, *affine, training=self.training)
        else:
            x = F.batch_norm(x, None, None, *affine, training=True)
        return self.weight[y][:, :, None, None] * x + self.bias[y][:, :, None, None] if conditional else x


class PreActConv(nn.Module):
    """conv_1x1, conv_3x3: BN -> ReLU -> convolution with bias, (B, C, H, W) -> same. [paper §3; bias: CT-GAN]"""

    def __init__(self, name: str, ch: int, affine: bool, classes: int) -> None:
        super().__init__()
        k = int(name[-1])
        self.bn, self.conv = BatchNorm(ch, affine, classes), Conv(ch, ch, k, padding=k // 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.conv(self.bn(x, y).relu())

    def kernel(self) -> Tensor:
        """The kernel as a (C, C, 3, 3) one."""
        return F.pad(self.conv.weight, [(3 - self.conv.kernel_size[0]) // 2] * 4)


class Pool(nn.Module):
    """max_pool_3x3, avg_pool_3x3, stride 1, (B, C, H, W) -> same; in the supernet a BN follows. [DARTS]"""

    def __init__(self, name: str, affine: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 1, 1) if name == "max_pool_3x3" else nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.norm = not affine

    def forward(self, x: Tensor, _y: Tensor | None = None) -> Tensor:
        x = self.pool(x)
        return F.batch_norm(x, None, None, training=True) if self.norm else x


class SepConv(nn.Module):
    """sep_conv (twice) and dil_conv (once, dilation 2): ReLU -> depthwise k x k -> pointwise -> BN. [DARTS]"""

    def __init__(self, name: str, ch: int, affine: bool, classes: int) -> None:
        super().__init__()
        k, dilation, times = int(name[-1]), *((1, 2) if name.startswith("sep") else (2, 1))
        pad = dilation * (k // 2)
        self.depthwise, self.pointwise, self.bn = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(times):
            self.depthwise.append(Conv(ch, ch, k, padding=pad, dilation=dilation, groups=ch, bias=False))
            self.pointwise.append(nn.Conv2d(ch, ch, 1, bias=False))
            self.bn.append(BatchNorm(ch, affine, classes))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for depthwise, pointwise, bn in zip(self.depthwise, self.pointwise, self.bn, strict=True):
            x = bn(pointwise(depthwise(x.relu())), y)
        return x


class Skip(nn.Module):
    def forward(self, x: Tensor, _y: Tensor | None = None) -> Tensor:
        return x


class UpSample(nn.Module):
    """One of UP, (B, C, H, W) -> (B, C, fH, fW): BN -> ReLU -> transposed convolution, or nearest and convolution.

    PAPER §3 names the ops. Their geometry follows from it: kernels 4 and 6 enlarge by exactly f = 2 and 4, and not by 8.
    """

    def __init__(self, name: str, ch: int, factor: int, affine: bool, classes: int) -> None:
        super().__init__()
        self.name, self.factor, k = name, factor, int(name[-1])
        self.bn = BatchNorm(ch, affine, classes)
        if name.startswith("deconv"):
            self.conv = nn.ConvTranspose2d(ch, ch, k, stride=factor, padding=(k - factor) // 2)
        else:  # nearest makes a pixel f equal ones, which the convolution spreads: its weight d reaches f places of 6
            self.conv = Conv(ch, ch, k, padding=k // 2)
            first = (6 - (k + factor - 1)) // 2
            reach = torch.zeros(k, 6)
            for d in range(k):
                reach[d, first + k - 1 - d : first + k - 1 - d + factor] = 1
            self.register_buffer("spread", torch.kron(reach, reach), persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.bn(x, y).relu()
        if self.name == "nn_conv_1":  # on single pixels, so copying them last is the same
            return F.interpolate(self.conv(x), scale_factor=self.factor)
        return self.conv(x if self.name.startswith("deconv") else F.interpolate(x, scale_factor=self.factor))

    def kernel(self) -> Tensor:
        """What the op does behind its ReLU, as the (C, C, 6, 6) kernel of a transposed convolution of stride f."""
        if self.name.startswith("deconv"):
            return F.pad(self.conv.weight, [(6 - self.conv.kernel_size[0]) // 2] * 4)
        return (self.conv.weight.transpose(0, 1).flatten(2) @ self.spread).unflatten(2, (6, 6))


def make_op(name: str, ch: int, factor: int, affine: bool = True, classes: int = 0) -> nn.Module:
    if name in UP:
        return UpSample(name, ch, factor, affine, classes)
    if name in POOLS:
        return Pool(name, affine)
    return (
        {"s": SepConv, "d": SepConv, "c": PreActConv}[name[0]](name, ch, affine, classes) if name != "skip_connect" else Skip()
    )


class MixedOp(nn.ModuleDict):
    """All candidates of a connection, their sum weighted by p = softmax(alpha). [paper §3; DARTS Eq. 2]"""

    def __init__(self, c: Connection, ch: int, normal: tuple[str, ...]) -> None:
        super().__init__({op: make_op(op, ch, c.factor, affine=False) for op in c.ops(normal) if op != "none"})
        self.names, self.kind, self.factor = c.ops(normal), c.kind, c.factor

    def plain(self, x: Tensor, p: Tensor) -> Tensor:
        """The sum as it is written. none adds nothing, but its share shrinks the others'."""
        return sum(p_o * self[op](x) for op, p_o in zip(self.names, p, strict=True) if op != "none")

    def forward(self, x: Tensor, active: Tensor, p: Tensor) -> Tensor:
        """The same from x and active = ReLU(BN(x)), which is common to all candidates that begin with a BN.

        Behind it those candidates are linear, so their kernels are added up and one convolution does for all of them.
        """
        terms = [(self[op], p_o) for op, p_o in zip(self.names, p, strict=True) if op != "none"]
        linear = [(op, p_o) for op, p_o in terms if isinstance(op, PreActConv | UpSample)]
        out = sum(p_o * op(x) for op, p_o in terms if not isinstance(op, PreActConv | UpSample))
        if linear:
            with torch.autocast(x.device.type, enabled=False):
                kernel = sum(p_o * op.kernel() for op, p_o in linear)
            bias = sum(p_o * op.conv.bias for op, p_o in linear)
            if self.kind == "normal":
                return out + F.conv2d(active, kernel, bias, padding=1)
            return F.conv_transpose2d(active, kernel, bias, stride=self.factor, padding=(6 - self.factor) // 2)
        return out


def head(z_dim: int, ch: int, size: int) -> nn.Linear:
    return nn.Linear(z_dim, ch * (size // 8) ** 2)


def tail(ch: int) -> nn.Sequential:
    """The fixed end of every generator. Its BN is never conditional. [paper §3; CT-GAN]"""
    return nn.Sequential(BatchNorm(ch), nn.ReLU(), Conv(ch, 3, 3, padding=1), nn.Tanh())


def first_map(linear: nn.Linear, z: Tensor, ch: int) -> Tensor:
    """U0: (B, C, size/8, size/8)."""
    base = round(sqrt(linear.out_features // ch))
    return linear(z).view(-1, ch, base, base).contiguous(memory_format=torch.channels_last)


class SuperG(nn.Module):
    """The supernet. z: (B, z_dim), p: name of each connection -> weights of its candidates -> (B, 3, size, size) in [-1, 1]."""

    def __init__(self, ch: int = 128, z_dim: int = 128, size: int = 32, n: int = 1, normal: tuple[str, ...] = NORMAL) -> None:
        super().__init__()
        self.ch, self.connections = ch, connections(n)
        self.head = head(z_dim, ch, size)
        self.mixed = nn.ModuleDict({c.name: MixedOp(c, ch, normal) for c in self.connections})
        self.tail = tail(ch)
        initialise(self)

    def forward(self, z: Tensor, p: dict[str, Tensor]) -> Tensor:
        maps, active = {"U0": first_map(self.head, z, self.ch)}, {}
        for c in self.connections:  # in the order of their targets: a source is complete when it is used
            x = maps[c.source]
            if c.source not in active:
                active[c.source] = F.batch_norm(x, None, None, training=True).relu()
            made = self.mixed[c.name](x, active[c.source], p[c.name])
            maps[c.target] = maps[c.target] + made if c.target in maps else made
        return self.tail(maps["U3"])


class UpBlock(nn.Module):
    """CT-GAN's up block, (B, C, H, W) -> (B, C, 2H, 2W): the middle of the baseline generator is three of them."""

    def __init__(self, ch: int, classes: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = BatchNorm(ch, classes=classes), BatchNorm(ch, classes=classes)
        self.conv1, self.conv2 = (Conv(ch, ch, 3, padding=1) for _ in range(2))
        self.shortcut = Conv(ch, ch, 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        main = self.conv1(F.interpolate(self.bn1(x, y).relu(), scale_factor=2))
        return self.conv2(self.bn2(main, y).relu()) + F.interpolate(self.shortcut(x), scale_factor=2)


class Generator(nn.Module):
    """z: (B, z_dim) and, with classes, y: (B,) -> (B, 3, size, size) in [-1, 1]. genotype "baseline": CT-GAN's own."""

    def __init__(
        self, genotype: Genotype | Literal["baseline"], ch: int = 128, z_dim: int = 128, size: int = 32, classes: int = 0
    ) -> None:  # fmt: skip
        super().__init__()
        self.genotype, self.ch, self.classes = genotype, ch, classes
        self.head = head(z_dim, ch, size)
        if genotype == "baseline":
            self.ops = nn.ModuleDict({f"U{k - 1}->U{k}": UpBlock(ch, classes) for k in (1, 2, 3)})
        else:
            kept = {(s, node): op for node, inputs in genotype.items() for s, op in inputs}
            found = [c for c in connections(n_of(genotype)) if (c.source, c.target) in kept]
            ops = {c.name: make_op(kept[c.source, c.target], ch, c.factor, True, classes) for c in found}
            self.ops = nn.ModuleDict(ops)
        self.tail = tail(ch)
        initialise(self)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        maps = {"U0": first_map(self.head, z, self.ch)}
        for name, op in self.ops.items():  # PAPER §3: a node is the sum of what enters it
            source, target = name.split("->")
            made = op(maps[source], y)
            maps[target] = maps[target] + made if target in maps else made
        return self.tail(maps["U3"])


class CriticBlock(nn.Module):
    """(B, C, H, W) -> same, or half the side: [ReLU ->] conv -> ReLU -> conv [-> mean pool], plus a shortcut. [CT-GAN]"""

    def __init__(self, c_in: int, ch: int, down: bool, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.conv1 = Conv(c_in, ch, 3, padding=1)
        self.conv2 = ConvAvgPool(ch, ch) if down else Conv(ch, ch, 3, padding=1)
        self.shortcut = Conv(c_in, ch, 1) if down else None

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv2(self.conv1(x if self.first else x.relu()).relu())
        return main + (x if self.shortcut is None else self.shortcut(F.avg_pool2d(x, 2)))  # the 1x1 commutes with the pool


class Critic(nn.Module):
    """x: (B, 3, H, W) -> scores (B,), the second-last features (B, ch), logits of the classes (B, classes) or None.

    Nothing is normalised; dropout is active in every pass but the one that counts rightly classified images. [CT-GAN]
    """

    def __init__(self, ch: int = 128, classes: int = 0) -> None:
        super().__init__()
        shapes = [(3, True, True), (ch, True, False), (ch, False, False), (ch, False, False)]
        self.blocks = nn.ModuleList(CriticBlock(c_in, ch, down, first) for c_in, down, first in shapes)
        self.drop = (0.0, 0.2, 0.5, 0.5)  # behind each block
        self.out = nn.Linear(ch, 1)
        self.classes = nn.Linear(ch, classes) if classes else None
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        for block, drop in zip(self.blocks, self.drop, strict=True):
            x = F.dropout(block(x), drop, self.training)
        features = x.relu().mean(dim=(2, 3))
        return self.out(features).squeeze(1).float(), features.float(), self.classes and self.classes(features).float()


def initialise(net: nn.Module) -> None:
    """Uniform weights of standard deviation sqrt(4 / (fan_in + fan_out)), for linear layers, shortcuts and the output
    convolution sqrt(2 / ...), as in CT-GAN; biases 0. Fans are those of a group; a stride divides a transposed one's fan_in."""
    for name, m in net.named_modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            a, b, field = *m.weight.shape[:2], m.weight[0, 0].numel()
            fans = a * field + b * field  # Linear and Conv2d: out, in of a group
            if isinstance(m, nn.ConvTranspose2d):
                fans = a * field / prod(m.stride) + b * field  # in, out
            elif isinstance(m, nn.Conv2d):
                fans = a / m.groups * field + b * field
            glorot = isinstance(m, nn.Linear) or name.endswith("shortcut") or name.startswith("tail")
            bound = sqrt(3 * (2 if glorot else 4) / fans)
            nn.init.uniform_(m.weight, -bound, bound)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def op_macs(op: str, ch: int, side: int, factor: int) -> int:
    """Multiply-adds of one op on a map of side x side pixels, bias adds included, as the op is written in the paper."""
    if op in ("none", "skip_connect", *POOLS):
        return 0
    k, out = int(op[-1]), (factor * side) ** 2
    if op.startswith("deconv"):
        return (k * ch * side) ** 2 + ch * out
    if op.startswith(("sep", "dil")):
        return (2 if op.startswith("sep") else 1) * (k * k * ch + ch * ch) * out
    return ((k * ch) ** 2 + ch) * out


def g_macs(genotype: Genotype | Literal["baseline"] | None, ch: int, z_dim: int, size: int, n: int = 1,
           normal: tuple[str, ...] = NORMAL) -> int:  # fmt: skip
    """Multiply-adds of one generated image, convolutions and linear layer; None: of the supernet, all candidates apart."""
    base = size // 8
    total = (z_dim + 1) * ch * base**2 + (27 * ch + 3) * size**2
    if genotype == "baseline":
        sides = [base * 2**k for k in (1, 2, 3)]
        return total + sum(2 * op_macs("conv_3x3", ch, s, 1) + op_macs("conv_1x1", ch, s, 1) for s in sides)
    for c in connections(n_of(genotype) if genotype else n):
        ops = c.ops(normal) if genotype is None else [op for s, op in genotype[c.target] if s == c.source]
        total += sum(op_macs(op, ch, base * 2 ** level(c.source), c.factor) for op in ops)
    return total


def d_macs(ch: int, size: int) -> int:
    """Multiply-adds of the critic for one image, convolutions and linear layers, bias adds included."""
    half, quarter = (size // 2) ** 2, (size // 4) ** 2
    conv3 = 9 * ch * ch + ch
    first = (28 * ch + conv3) * size**2 + 4 * ch * half
    return first + 2 * conv3 * half + (ch * ch + ch) * half + 4 * conv3 * quarter + ch + 1


def params_of(make: Callable[[], nn.Module]) -> int:
    """Parameters of a network that is made without memory."""
    with torch.device("meta"):
        return count_params(make())


# ---- the loss of the search (paper §3.2) ------------------------------------------------------------------------------


def scaled(images: Tensor) -> Tensor:
    """Bytes as floats in [-1, 1]. OURS: no augmentation, since a latent belongs to one image to the pixel."""
    return images.float().div_(127.5).sub_(1)


def pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Laplacian pyramid of x: (B, C, H, W): `levels` bands, finest first, each of half the side, and what is left.

    OURS: a band is the image less its blur by the binomial [1 4 6 4 1] / 16 both ways, with replicated edges; the next
    image is the blur's 2x2 mean. All of it is linear. [scheme: GLO re-implementations]
    """
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=x.device, dtype=x.dtype) / 16
    kernel, bands = taps.outer(taps)[None, None], []
    for _ in range(levels):
        apart = F.pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="replicate")
        low = F.conv2d(apart, kernel).view_as(x)
        bands.append(x - low)
        x = F.avg_pool2d(low, 2)
    return [*bands, x]


def reconstruction_loss(made: Tensor, images: Tensor, levels: int, reduction: str = "mean") -> Tensor:
    """||x - x'||^2 + sum_j 2^(2j) |L^j(x) - L^j(x')|_1, averaged over the batch. [paper §3.2]

    Level j has 4^-j of the pixels, so the factor makes each count by its mean: over the numbers of an image (reduction
    "mean") the loss is the mean square plus the sum of the levels' means.
    """
    # DEVIATES 1: by default the mean. As the paper writes it, the gradient is so large that at its rate of 0.3 nothing learns
    difference = made.float() - images
    loss = difference.square().mean() + sum(band.abs().mean() for band in pyramid(difference, levels))
    return loss * difference[0].numel() if reduction == "sum" else loss


def mean_image_loss(args: Args, images: Tensor, picked: Tensor) -> Tensor:
    """The loss of a generator that only knows the mean of all images, on the picked ones."""
    mean = images.sum(0, dtype=torch.int64) / len(images) / 127.5 - 1
    return reconstruction_loss(mean.float().expand(len(picked), -1, -1, -1), scaled(images[picked]), *loss_of(args))


def loss_of(args: Args) -> tuple[int, str]:
    return args.lap_levels, args.loss_reduction


# ---- alpha and pruning (paper §3.1, §3.3) -----------------------------------------------------------------------------


def normal_ops(args: Args) -> tuple[str, ...]:
    # OURS: the paper counts 9 and 7; its list gives 9 if both kernel sizes apply, 7 are the candidates of DARTS
    return NORMAL if args.normal_ops == "9" else NORMAL[2:]


def make_alpha(args: Args, ranks: Ranks, scale: float) -> nn.ParameterDict:
    """A row for each connection in the table of its kind, drawn from scale * N(0, 1)."""
    tables = nn.ParameterDict()
    for kind in ("normal", "up", "residual"):
        rows = [c.ops(normal_ops(args)) for c in connections(args.n) if c.kind == kind]
        g = stream(args.seed, "alpha", kind)
        tables[kind] = nn.Parameter(scale * torch.randn(len(rows), len(rows[0]), generator=g).to(ranks.device))
    return tables


def by_connection(tables: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """The row of each connection."""
    rows = {kind: iter(table) for kind, table in tables.items()}
    return {c.name: next(rows[c.kind]) for c in connections(n)}


def probabilities(alpha: nn.ParameterDict, n: int) -> dict[str, Tensor]:
    """softmax(alpha) of each connection."""
    return by_connection({kind: table.softmax(1) for kind, table in alpha.items()}, n)


def prune(alpha: dict[str, list[float]], n: int, normal: tuple[str, ...] = NORMAL, score: str = "alpha") -> Genotype:
    """Of each node the best op of all its connections, and where that is a residual one also the best direct op. [paper §3.3]

    alpha: name of each connection -> a number for each candidate. Ties: direct first, then the lower source, the earlier op.
    """
    genotype = {}
    for node, entries in into(n).items():
        kept = []
        for c in entries:
            values = torch.tensor(alpha[c.name]).softmax(0).tolist() if score == "softmax" else alpha[c.name]
            options = dict(zip(c.ops(normal), values, strict=True))
            none = options.pop("none", None)
            op = max(options, key=options.get)  # the first of equals
            # OURS: "lack of connection". Under softmax, as in DARTS, none only takes its share of the others' weight
            dropped = score == "alpha" and none is not None and none >= options[op]
            if not dropped:
                kept.append((options[op], c, op))
        best = max(kept, key=lambda x: x[0])
        chosen = [kept[0]] if best[1].direct else [kept[0], best]
        genotype[node] = tuple((c.source, op) for _, c, op in chosen)
    return genotype


def derive(args: Args, alpha: nn.ParameterDict) -> Genotype:
    rows = {name: row.tolist() for name, row in by_connection(dict(alpha), args.n).items()}
    return prune(rows, args.n, normal_ops(args), args.prune_score)


# ---- search steps (paper §3.2, GLO) -----------------------------------------------------------------------------------


def project_ball(z: Tensor) -> Tensor:
    """Rows of norm above 1 are scaled to 1. [GLO]"""
    return z / z.norm(dim=1, keepdim=True).clamp(min=1)


def first_latents(args: Args, ranks: Ranks, images: Tensor) -> Tensor:
    """The table of latents, (N, z_dim): Gaussian, or each image's first principal components; in the unit ball."""
    if args.z_init == "random":  # PAPER §3.2: random
        g = stream(args.seed, "latents", device=ranks.device)
        return project_ball(torch.randn(len(images), args.z_dim, generator=g, device=ranks.device))
    torch.manual_seed(stream(args.seed, "pca").initial_seed())  # the fit begins at random
    some = scaled(images[:24_576]).flatten(1)  # CODE GLO: as many
    mean, axes = some.mean(0), torch.pca_lowrank(some, args.z_dim)[2]
    return project_ball(torch.cat([(scaled(part).flatten(1) - mean) @ axes for part in images.split(4096)]))


def batch_loss(
    args: Args, ranks: Ranks, net: SuperG, p: dict[str, Tensor], z: Tensor, images: Tensor, i: Tensor
) -> Tensor:  # fmt: skip
    """The loss of G(z) against the images i, on this process's part of them."""
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.amp):
        made = net(z.chunk(ranks.world)[ranks.rank], p)
    return reconstruction_loss(made, scaled(images[i.chunk(ranks.world)[ranks.rank]]), *loss_of(args))


def zw_step(
    args: Args, ranks: Ranks, net: SuperG, alpha: nn.ParameterDict, w_opt: torch.optim.Optimizer | None,
    Z: Tensor, images: Tensor, i: Tensor, lr: float,
) -> Tensor:  # fmt: skip
    """One step of w and of the latents of the images i, by one backward pass; without an optimiser of the latents only."""
    p = {name: row.detach() for name, row in probabilities(alpha, args.n).items()}
    z = Z[i].requires_grad_()  # of all processes, so that averaging the gradients makes them whole
    net.requires_grad_(w_opt is not None)
    net.zero_grad(set_to_none=True)
    loss = batch_loss(args, ranks, net, p, z, images, i)
    loss.backward()
    ranks.average_gradients([*net.parameters(), z])
    if w_opt:
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)  # CODE DARTS
        w_opt.step()
    # DEVIATES 2: each image's own gradient. That of the batch's mean is 64 times smaller, and the latents hardly move
    own = len(i) if args.z_grad == "image" else 1
    Z[i] = project_ball(z.detach() - args.z_lr * lr * own * z.grad)
    return loss.detach()


def alpha_step(
    args: Args, ranks: Ranks, net: SuperG, alpha: nn.ParameterDict, a_opt: torch.optim.Optimizer,
    Z: Tensor, images: Tensor, i: Tensor
) -> Tensor:  # fmt: skip
    """One step of alpha on the images i. First order: w and z are taken as they are. [DARTS]"""
    net.requires_grad_(False)
    loss = batch_loss(args, ranks, net, probabilities(alpha, args.n), Z[i], images, i)
    a_opt.zero_grad(set_to_none=True)
    loss.backward()
    ranks.average_gradients(alpha.parameters())
    a_opt.step()
    return loss.detach()


def cosine_lr(lr: float, epoch: int, epochs: int) -> float:
    """Of w in an epoch 0, 1, ...: from lr down towards 0.001. [DARTS]"""
    return 0.001 + 0.5 * (lr - 0.001) * (1 + cos(pi * epoch / epochs))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


# ---- training steps (CT-GAN) ------------------------------------------------------------------------------------------

GP_WEIGHT, CT_WEIGHT, CT_FEATURES, CT_SLACK = 10.0, 2.0, 0.1, 0.0  # CODE CT-GAN: LAMBDA, LAMBDA_2, 0.1, Factor_M
D_CLASS, G_CLASS = 1.0, 0.1  # CODE CT-GAN: weights of the class losses


def latent(args: Args, ranks: Ranks, n: int, *name: object) -> Tensor:
    """n latents z ~ N(0, I), (n, z_dim): a pure function of the seed and the name, the same on every process."""
    return torch.randn(n, args.z_dim, generator=stream(args.seed, *name, device=ranks.device), device=ranks.device)


def uniform_labels(args: Args, ranks: Ranks, n: int, classes: int, *name: object) -> Tensor | None:
    """n classes, each as likely, the same on every process; None without classes."""
    g = stream(args.seed, "labels", *name, device=ranks.device)
    return torch.randint(classes, (n,), generator=g, device=ranks.device) if classes else None


def dequantise(images: Tensor, g: torch.Generator) -> Tensor:
    """Bytes to [-1, 1): 2 (x / 256 - 1/2) + U(0, 1/128). [CT-GAN]"""
    noise = torch.rand(images.shape, generator=g, device=images.device)
    return images.float().add_(noise).div_(128).sub_(1)


def quantise(x: Tensor) -> Tensor:
    """Images in [-1, 1] to bytes, as good as the inverse of `dequantise`; NaN becomes 0. [CT-GAN]"""
    return ((x.float() + 1) * 127.995).clamp(0, 255).nan_to_num(0).to(torch.uint8)


def gradient_penalty(D: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """10 E (|grad D| - 1)^2 between real and fake images; mix: (B, 1, 1, 1) in [0, 1]. [WGAN-GP]"""
    x = torch.lerp(real, fake, mix).requires_grad_()
    scores = D.forward(x)[0]  # not D(x): compiled code has no second derivative
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return GP_WEIGHT * (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def consistency(d1: Tensor, d2: Tensor, f1: Tensor, f2: Tensor, slack: float = CT_SLACK) -> Tensor:
    """How far two passes of the critic over the same real images differ under dropout. d: (B,), f: (B, ch). [CT-GAN]"""
    each = CT_WEIGHT * ((d1 - d2).square() + CT_FEATURES * (f1 - f2).square().mean(1))
    return (each - slack).relu().mean()


def critic_step(
    args: Args, ranks: Ranks, G: nn.Module, D: nn.Module, d_opt: torch.optim.Optimizer,
    batches: Batches, labels: Tensor | None, batch: int,
) -> dict[str, Tensor]:  # fmt: skip
    """One step of the critic on a real batch and as many fakes; with labels, these are the fakes' classes too.

    Returns the parts of its loss. [CT-GAN]
    """
    i = batches.indices(batch).chunk(ranks.world)[ranks.rank]
    real = dequantise(batches.images[i], stream(args.seed, "dequantise", batch, ranks.rank, device=ranks.device))
    y = None if labels is None else labels[i]
    mix = torch.rand(
        len(i), 1, 1, 1, generator=stream(args.seed, "mix", batch, ranks.rank, device=ranks.device), device=real.device
    )
    torch.manual_seed(stream(args.seed, "dropout of D", batch, ranks.rank).initial_seed())  # dropout draws from torch's own
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.amp):
        with torch.no_grad():  # DEVIATES 3: BatchNorm sees the whole batch; CT-GAN makes it in two halves, one for each GPU
            fake = G(latent(args, ranks, len(i) * ranks.world, "d", batch)[ranks.rank :: ranks.world], y).float()
        scores, features, logits = D(torch.cat([real, real, fake]))  # one pass, but each image has a mask of its own
        (d1, d2, d_fake), (f1, f2, _) = scores.chunk(3), features.chunk(3)
        parts = {"wasserstein": d_fake.mean() - d1.mean(), "ct": consistency(d1, d2, f1, f2)}
        parts["gp"] = gradient_penalty(D, real, fake, mix)
        if y is not None:
            parts["d_class"] = D_CLASS * F.cross_entropy(logits[: len(i)], y)  # of real images only
    update(ranks, D, d_opt, sum(parts.values()), 0.0)
    return {name: value.detach() for name, value in parts.items()}


def generator_step(
    args: Args, ranks: Ranks, G: nn.Module, D: nn.Module, g_opt: torch.optim.Optimizer, classes: int, step: int
) -> dict[str, Tensor]:  # fmt: skip
    """One step of G: -E D(G(z, y)), and with classes that y be recognised. Returns the parts of its loss. [CT-GAN]"""
    D.requires_grad_(False)  # spares the gradients of D's weights
    torch.manual_seed(stream(args.seed, "dropout of G", step, ranks.rank).initial_seed())
    z = latent(args, ranks, args.g_batch, "g", step)[ranks.rank :: ranks.world]
    y = uniform_labels(args, ranks, args.g_batch, classes, "g", step)
    y = None if y is None else y[ranks.rank :: ranks.world]
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.amp):
        scores, _, logits = D(G(z, y))
        parts = {"g": -scores.mean()}
        if y is not None:
            parts["g_class"] = G_CLASS * F.cross_entropy(logits, y)
    update(ranks, G, g_opt, sum(parts.values()), 0.0)
    D.requires_grad_(True)
    return {name: value.detach() for name, value in parts.items()}


def update(ranks: Ranks, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    ranks.average_gradients(net.parameters())
    if clip:
        nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()


def adam(net: nn.Module, lr: float, args: Args) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr, betas=(args.adam_b1, args.adam_b2), fused=True)


def linear_lr(lr: float, iteration: int, iters: int) -> float:
    """Of both networks in an iteration 0, 1, ...: from lr down to 0. [CT-GAN]"""
    return lr * max(0.0, 1 - iteration / iters)


@torch.no_grad()
def ema_update(average: nn.Module, net: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * net for parameters; buffers (BatchNorm statistics) are net's own."""
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for a, b in zip(average.buffers(), net.buffers(), strict=True):
        a.copy_(b)


@torch.no_grad()
def class_accuracy(args: Args, ranks: Ranks, G: Generator, D: Critic, batches: Batches, labels: Tensor, step: int) -> dict:
    """Shares of real and generated images whose class the critic names, without dropout."""
    i = batches.indices(step).chunk(ranks.world)[ranks.rank]
    y = uniform_labels(args, ranks, len(i), G.classes, "accuracy", step)
    images = {"real": (scaled(batches.images[i]), labels[i]), "fake": (G(latent(args, ranks, len(i), "accuracy", step), y), y)}
    D.eval()
    found = {f"accuracy/{name}": (D.forward(x)[2].argmax(1) == y).float().mean() for name, (x, y) in images.items()}
    D.train()
    return found


# ---- scoring ----------------------------------------------------------------------------------------------------------


def build(args: Args, ranks: Ranks, make: Callable[[], nn.Module], *name: object) -> nn.Module:
    """A network on the device, its initial weights drawn from the stream (seed, name)."""
    torch.manual_seed(stream(args.seed, "init", *name).initial_seed())
    net = make()
    for m in net.modules():
        if isinstance(m, BatchNorm):
            m.batch_stats = args.eval_bn == "batch"
    return net.to(ranks.device, memory_format=torch.channels_last)


@torch.no_grad()
def score(args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, G: Generator, n: int) -> Score:
    """IS and FID of n images of G, which is in eval mode; always of the same latents, and classes by equal chance."""

    def images(k: int) -> Tensor:
        run.check()
        m = evaluator.batch  # always a whole batch: BatchNorm takes its statistics. CODE CT-GAN: of 100 images
        return quantise(G(latent(args, ranks, m, "eval", k), uniform_labels(args, ranks, m, G.classes, "eval", k)))

    return evaluator.score(images, n, ranks.rank, ranks.world)


@torch.no_grad()
def grid(args: Args, ranks: Ranks, G: Generator) -> Tensor:
    """64 images of always the same latents; with classes, a row has one."""
    y = torch.arange(64, device=ranks.device) // 8 % G.classes if G.classes else None
    return G(latent(args, ranks, 64, "grid"), y)


# ---- search -----------------------------------------------------------------------------------------------------------


@dataclass
class State:
    """What a resumed run needs beside the networks: plain values only."""

    stage: int = 0  # index into stages_of(args)
    step: int = 0  # G updates of the whole run: (z, w) steps, then G steps
    began: int = 0  # step at which the training began
    reported: int = -1  # last step whose row of search.jsonl is written
    leading: dict[str, str] = field(default_factory=dict)  # connection -> op of largest probability, at that row
    flips: int = 0  # how often one has changed, over all connections
    iteration: int = 0  # of the training
    batch: int = 0  # critic steps
    evaluated: int = -1  # last step whose evaluation is done
    best: dict | None = None  # of the evaluations in training
    G: Genotype | Literal["baseline"] | None = None  # once found or given
    scores: dict = field(default_factory=dict)  # of the search that found it


def stages_of(args: Args) -> list[str]:
    """The stages of the run, in order."""
    if args.phase == "train" or args.genotype or args.random_arch:
        return ["train"]
    return ["search", "train"] if args.phase == "all" else ["search"]


def restore(saved: dict, **parts: object) -> None:
    """Load networks and optimisers from a checkpoint's "nets", if it has them."""
    for name, part in parts.items():
        if saved.get("nets"):
            part.load_state_dict(saved["nets"][name])


def checkpoint(state: State, **parts: object) -> Callable[[], dict]:
    return lambda: {"state": vars(state), "nets": {k: v.state_dict() for k, v in parts.items()}}


def count_of(args: Args, data: Dataset) -> int:
    return args.search_images or len(data.images)


def search_set(args: Args, ranks: Ranks, data: Dataset) -> Tensor:
    """The images of the search, uint8 (N, 3, search_size, search_size) on the device, in a random order."""
    order = torch.randperm(len(data.images), generator=stream(args.seed, "search images"))[: count_of(args, data)]
    images = data.images[order]
    if args.search_size != images.shape[-1]:  # PAPER, ablation: smaller images; OURS: by the mean over an area
        parts = [F.interpolate(x.float(), size=args.search_size, mode="area").round_().byte() for x in images.split(1000)]
        images = torch.cat(parts)
    return images.to(ranks.device)


def epoch_of(args: Args, count: int) -> tuple[int, int]:
    """Images that train w, and batches of an epoch."""
    first = count // 2 if args.alpha_data == "val" else count
    return first, args.epoch_batches or -(-first // args.search_batch)


FIXED = 256  # images whose reconstruction is watched
LEFT_MEAN = 0.97  # a loss above this share of the mean image's has not left it


def search(args: Args, ranks: Ranks, run: Run, data: Dataset, state: State, saved: dict) -> None:
    """Train supernet and latents and alpha by turns, then prune."""
    images = search_set(args, ranks, data)
    first, epoch = epoch_of(args, len(images))
    batches = Batches(images[:first], args.search_batch, args.seed, ranks.device, ranks.rank, ranks.world)
    picked = torch.randint(len(images), (FIXED,), generator=stream(args.seed, "fixed")).to(ranks.device)
    mean_loss = mean_image_loss(args, images, picked)

    net = build(args, ranks, lambda: SuperG(args.search_ch, args.z_dim, args.search_size, args.n, normal_ops(args)), "supernet")
    alpha = make_alpha(args, ranks, 1e-3)  # CODE DARTS
    w_opt = torch.optim.SGD(net.parameters(), args.w_lr, momentum=0.9, weight_decay=3e-4, fused=True)  # CODE DARTS
    a_opt = torch.optim.Adam(alpha.parameters(), args.arch_lr, betas=(0.5, 0.999), weight_decay=1e-3)  # CODE DARTS
    Z = saved["latents"].to(ranks.device) if "latents" in saved else first_latents(args, ranks, images)
    restore(saved, net=net, alpha=alpha, w_opt=w_opt, a_opt=a_opt)
    basic = checkpoint(state, net=net, alpha=alpha, w_opt=w_opt, a_opt=a_opt)
    run.keep = lambda: {**basic(), "latents": Z}

    total = args.search_epochs * epoch
    run.begin("search", "search", state.step, images_per_step=args.search_batch)
    while True:
        if state.reported < state.step and state.step % epoch == 0:
            report(args, ranks, run, net, alpha, Z, images, picked, mean_loss, state, epoch)
        if state.step == total:
            break
        run.tick(state.step, f"genotype in {epoch - state.step % epoch} steps")
        lr = cosine_lr(args.w_lr, state.step // epoch, args.search_epochs)
        set_lr(w_opt, lr)
        i = batches.indices(state.step)
        w_loss = zw_step(args, ranks, net, alpha, w_opt, Z, images, i, lr)
        # DEVIATES 4: alpha follows w and learns from the same images, since one without a trained z says nothing; DARTS the
        # other way round and from the other half of the images (--alpha-data val, whose z then take a step of their own)
        if args.alpha_data != "same":
            low = first if args.alpha_data == "val" else 0
            g = stream(args.seed, "alpha images", state.step, device=ranks.device)
            i = low + torch.randperm(len(images) - low, generator=g, device=ranks.device)[: args.search_batch]
        if args.alpha_data == "val":
            zw_step(args, ranks, net, alpha, None, Z, images, i, lr)
        alpha_loss = alpha_step(args, ranks, net, alpha, a_opt, Z, images, i)
        state.step += 1
        if state.step % args.log_every == 0:
            run.log(state.step, **{"loss/zw": w_loss, "loss/alpha": alpha_loss, "lr/w": lr})

    run.begin("derive", "pruning", state.step, "training" if args.phase == "all" else "the end")
    if state.scores["loss/rec"] > LEFT_MEAN * state.scores["loss/mean_image"]:
        run.print(
            f"WARNING: the reconstruction loss, {state.scores['loss/rec']:.4f}, never left that of the mean image, "
            f"{state.scores['loss/mean_image']:.4f}: alpha learned nothing and the genotype below is as good as random; "
            "search longer, with a larger --search-ch, with --z-init pca or with another --w-lr"
        )
    state.G = derive(args, alpha)
    run.print(f"found: {one_line(state.G)}")


@torch.no_grad()
def report(
    args: Args, ranks: Ranks, run: Run, net: SuperG, alpha: nn.ParameterDict, Z: Tensor, images: Tensor, picked: Tensor,
    mean_loss: Tensor, state: State, epoch: int,
) -> None:  # fmt: skip
    """Where the search stands: a row of search.jsonl, the genotype so far, reconstructions below their targets."""
    p = probabilities(alpha, args.n)
    made = torch.cat([net(Z[i], p).float() for i in picked.split(args.search_batch)])
    loss = reconstruction_loss(made, scaled(images[picked]), *loss_of(args)).item()
    rows = torch.stack([scaled(images[picked[:32]]), made[:32]]).unflatten(1, (4, 8)).transpose(0, 1)
    run.samples(state.step, rows.flatten(0, 2))

    genotype, found = derive(args, alpha), connections(args.n)
    shares = {c.name: dict(zip(c.ops(normal_ops(args)), p[c.name].tolist(), strict=True)) for c in found}
    leading = {name: max(row, key=row.get) for name, row in shares.items()}
    state.flips += sum(op != state.leading.get(name, op) for name, op in leading.items())
    state.leading, state.reported = leading, state.step
    state.scores = {"loss/rec": loss, "loss/mean_image": mean_loss.item()}
    ops = [op for row in rows_of(genotype) for op in row]
    counts = {"skip": ops.count("skip_connect"), "pool": sum(map(ops.count, POOLS))}
    counts["none leads"] = sum(op == "none" for op in leading.values())
    run.search_row({
        "step": state.step, "stage": "search", "epoch": state.step // epoch,
        "probabilities": {"G": {f"{c.stage}/{c.name}": shares[c.name] for c in found}},
        "entropy": {"G": {f"{c.stage}/{c.name}": -sum(x * log(x) for x in shares[c.name].values() if x) for c in found}},
        "genotype": {"G": rows_of(genotype)}, "flips": {"G": state.flips}, **state.scores, "counts": counts,
    })  # fmt: skip
    run.log(state.step, **state.scores)
    run.genotype(state.step, genotype_json(args, genotype, state.scores))
    told = ", ".join(f"{name} {n}" for name, n in counts.items())
    run.print(
        f"epoch {state.step // epoch}/{args.search_epochs}: reconstruction {loss:.4f}, mean image {mean_loss.item():.4f}"
        f" · {one_line(genotype)} · {told}"
    )


def genotype_json(args: Args, genotype: Genotype | Literal["baseline"], scores: dict | None = None) -> dict:
    """What genotype.json holds; --genotype reads n and nodes back. G: the same for tables, one op a connection."""
    baseline = genotype == "baseline"
    params = params_of(lambda: Generator(genotype, args.g_ch, args.z_dim, args.size))
    return {
        **{"method": "degas", "n": 0 if baseline else n_of(genotype), "nodes": genotype},
        **{"G": None if baseline else rows_of(genotype), "text": genotype if baseline else one_line(genotype)},
        **{"params": {"G": params}, "macs": {"G": g_macs(genotype, args.g_ch, args.z_dim, args.size)}},
        "scores": scores or {},
    }


# ---- training from scratch (CT-GAN) -----------------------------------------------------------------------------------


def train_gan(
    args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, batches: Batches, labels: Tensor | None, state: State, saved: dict
) -> None:
    """Train the found generator from scratch against CT-GAN's critic; evaluate it, or the average of its weights."""
    classes = 0 if labels is None else int(labels.max()) + 1
    G = build(args, ranks, lambda: Generator(state.G, args.g_ch, args.z_dim, args.size, classes), "G")
    D = build(args, ranks, lambda: Critic(args.d_ch, classes), "D")
    G_ema = deepcopy(G).requires_grad_(False).eval()
    g_opt, d_opt = adam(G, args.g_lr, args), adam(D, args.d_lr, args)
    restore(saved, G=G, D=D, G_ema=G_ema, g_opt=g_opt, d_opt=d_opt)
    run.keep = checkpoint(state, G=G, D=D, G_ema=G_ema, g_opt=g_opt, d_opt=d_opt)
    if args.compile:
        G.compile()
        D.compile()

    total, every = args.iters - 1, updates_between_evaluations(args, len(batches))
    run.begin("train", "training", state.step, images_per_step=args.d_batch * args.n_critic)
    while True:
        done, last = state.step - state.began, state.iteration == args.iters
        if state.evaluated < state.step and (done % every == 0 or last):
            what = "untrained" if state.iteration == 0 else "last" if last else "training"
            evaluate(args, ranks, run, evaluator, G, G_ema, state, what)
        if last:
            break
        run.tick(state.step, f"evaluation in {min(every - done % every, total - done)} steps")
        lr = linear_lr(args.g_lr, state.iteration, args.iters)
        set_lr(g_opt, lr)
        set_lr(d_opt, linear_lr(args.d_lr, state.iteration, args.iters))
        if state.iteration:  # CODE CT-GAN: the first iteration has none
            g_parts = generator_step(args, ranks, G, D, g_opt, classes, state.step)
            ema_update(G_ema, G, args.ema)
            state.step += 1
        for _ in range(args.n_critic):
            d_parts = critic_step(args, ranks, G, D, d_opt, batches, labels, state.batch)
            state.batch += 1
        if state.iteration and state.step % args.log_every == 0:
            row = {f"loss/{name}": value for name, value in (d_parts | g_parts).items()}
            accuracy = {} if labels is None else class_accuracy(args, ranks, G_ema, D, batches, labels, state.step)
            run.log(state.step, **{"loss/d": sum(d_parts.values())}, **row, **{"lr/g": lr}, **accuracy)
        if state.iteration and (state.step - state.began) % args.sample_every == 0:
            run.samples(state.step, grid(args, ranks, G_ema))
        state.iteration += 1
    run.save()


def updates_between_evaluations(args: Args, epoch: int) -> int:
    """--eval-every in G updates. epoch: critic steps that see the data set once."""
    return max(1, args.eval_every * (args.epoch_batches or epoch) // args.n_critic)


def evaluate(
    args: Args, ranks: Ranks, run: Run, evaluator: Evaluator, G: nn.Module, G_ema: nn.Module, state: State, what: str
) -> None:  # fmt: skip
    """IS and FID of G_ema; keeps the weights of the last and of the best one. The untrained one comes beside pure noise."""
    phase = run.status["phase"]
    run.begin("eval", f"evaluation ({what})", state.step, "the end" if what == "last" else "training")
    ranks.average_buffers(G)
    ema_update(G_ema, G, 1.0)
    row = {"eval/ema": args.ema > 0, "eval/bn": args.eval_bn, "eval/what": what}
    if what == "untrained":
        noise = evaluator.score(lambda k: noise_images(args, ranks, evaluator, k), args.eval_n, ranks.rank, ranks.world)
        row |= {"noise/fid": noise.fid, "noise/is": noise.is_mean}
    s = score(args, ranks, run, evaluator, G_ema, args.eval_n)
    run.evaluated(state.step, s.row(), **row)
    run.samples(state.step, grid(args, ranks, G_ema))
    run.print(f"step {state.step:,} ({what}): {s}")
    weights = {"G": G_ema.state_dict(), "genotype": state.G, "step": state.step, "score": s.row(), "method": "degas"}
    weights |= {"g_ch": args.g_ch, "z_dim": args.z_dim, "size": args.size, "classes": G_ema.classes, "ema": args.ema}
    run.weights("weights.pt", weights)
    found = {"fid": s.fid, "is": s.is_mean, "is_std": s.is_std, "step": state.step}
    if what != "untrained" and (state.best is None or fid_or_inf(found) < fid_or_inf(state.best)):
        state.best = found
        run.weights("weights.best.pt", weights)
    state.evaluated = state.step
    if what == "last":
        genotype = genotype_json(args, state.G, state.scores)
        run.result(last=found, best=state.best, n=s.n, net=s.net, ref=s.ref, genotype=genotype)
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
    s = score(args, ranks, run, evaluator, G, args.eval_n)
    run.evaluated(0, s.row(), **{"eval/ema": args.ema > 0, "eval/bn": args.eval_bn, "eval/what": str(args.weights)})
    run.samples(0, grid(args, ranks, G))
    run.print(f"{args.weights}: {s}")
    run.result(last={"fid": s.fid, "is": s.is_mean, "is_std": s.is_std}, n=s.n, net=s.net, ref=s.ref)


# ---- the command ------------------------------------------------------------------------------------------------------

IS_SPLITS = 10
INCEPTION_MACS = 5.7e9  # of one image at 299 pixels


def has_is(args: Args) -> bool:
    """A file of the lower layers serves the smaller features, but has no logits."""
    return args.evaluator == "compact" or args.fid_dims == "2048"


def check(args: Args, world: int) -> None:
    """Refuse what cannot run, before anything is made. UserError names flag, value and remedy."""
    batches = (("--d-batch", args.d_batch), ("--g-batch", args.g_batch), ("--search-batch", args.search_batch))
    for flag, value in batches:
        if value % world:
            raise UserError(f"{flag} {value}: not divisible by {world} processes")
    if has_is(args) and args.eval_n < IS_SPLITS:
        raise UserError(f"--eval-n {args.eval_n}: the Inception Score has {IS_SPLITS} splits; use {IS_SPLITS} or more")
    if args.genotype and args.random_arch:
        raise UserError(f"--random-arch: draws a genotype, and --genotype {args.genotype} names one; leave one of them out")
    given = f"--genotype {args.genotype}" if args.genotype else "--random-arch" if args.random_arch else None
    if args.phase == "train" and not given:
        raise UserError("--phase train: needs --genotype, baseline or a genotype.json, or --random-arch")
    if args.phase == "search" and given:
        raise UserError(f"{given}: skips the search that --phase search asks for; leave one of them out")
    if args.phase == "eval" and not args.weights:
        raise UserError("--phase eval: needs --weights, a weights.pt of a run")
    if args.weights and args.phase != "eval":
        raise UserError(f"--weights {args.weights}: is evaluated by --phase eval; to train use --genotype")


def resolve(args: Args, data: Dataset) -> Args:
    """The arguments with 0 replaced by what it stands for. UserError: values that this data set cannot have."""
    size, images = data.images.shape[-1], len(data.images)
    search_size = args.search_size or size
    levels = args.lap_levels or (2 if search_size < 32 else 3)
    if "search" in stages_of(args):
        if search_size % 8 or search_size < 16:
            raise UserError(f"--search-size {search_size}: G doubles the side three times; use a multiple of 8, 16 or more")
        if search_size % 2**levels:
            raise UserError(f"--lap-levels {levels}: {search_size} px cannot be halved as often; use a smaller number")
        if args.search_images > images:
            raise UserError(f"--search-images {args.search_images}: {data.name} has {images}; use fewer, or 0 for all")
        count = count_of(args, data)
        first, _ = epoch_of(args, count)
        if args.search_batch > first:
            raise UserError(f"--search-batch {args.search_batch}: more than the {first} images that train w; use a smaller one")
        if args.z_init == "pca" and args.z_dim > min(count, 3 * search_size**2):
            raise UserError(f"--z-init pca: {count} images have fewer than --z-dim {args.z_dim} components; lower it")
    if args.conditional and (data.labels is None or (data.labels < 0).any()):
        bare = images if data.labels is None else int((data.labels < 0).sum())
        raise UserError(f"--conditional: {bare:,} of {images:,} images of {data.name} have no label; leave it out")
    w_lr = args.w_lr or (0.03 if args.dataset in ("stl10", "celeba") else 0.3)  # PAPER §4: taken to be the rate of w
    return replace(args, size=size, search_size=search_size, lap_levels=levels, w_lr=w_lr)


def first_state(args: Args) -> State:
    """What a new run begins with: a genotype, if one is given. UserError: not a genotype."""
    if args.random_arch:
        return State(G=derive(args, make_alpha(args, Ranks(torch.device("cpu")), 1.0)))
    return State(G=named(args.genotype) if args.genotype else None)


def plan_of(args: Args, data: Dataset, state: State) -> list[tuple[str, int, float]]:
    """(stage, G updates, MACs of one update) for every stage. A backward pass costs two forward passes."""
    epoch = -(-len(data.images) // args.d_batch)
    plan, evaluated = [], args.iters // updates_between_evaluations(args, epoch) + 2
    if "search" in stages_of(args):
        _, epoch = epoch_of(args, count_of(args, data))
        macs = g_macs(None, args.search_ch, args.z_dim, args.search_size, args.n, normal_ops(args))
        steps = 9 if args.alpha_data == "val" else 6
        plan.append(("search", args.search_epochs * epoch, steps * args.search_batch * macs))
    if "train" in stages_of(args):
        g, d = g_macs(state.G or "baseline", args.g_ch, args.z_dim, args.size), d_macs(args.d_ch, args.size)
        # the critic: three images forward and back, and the penalty's, forward, back, and back through both
        step = args.n_critic * args.d_batch * (g + 15 * d) + args.g_batch * (3 * g + 2 * d)
        scored = evaluated * args.eval_n * (g + INCEPTION_MACS * (args.evaluator == "inception"))
        plan.append(("train", args.iters - 1, step + scored / (args.iters - 1)))
    return plan


def sizes(args: Args, data: Dataset, state: State, classes: int) -> dict[str, dict[str, float]]:
    """Bytes in memory that each stage's weights, their gradients and the optimisers' state take, and the latents."""
    made = {}
    if "search" in stages_of(args):
        supernet = params_of(lambda: SuperG(args.search_ch, args.z_dim, args.search_size, args.n, normal_ops(args)))
        made["search"] = {
            f"supernet of {supernet:,} parameters": 12 * supernet,
            f"latent table {count_of(args, data):,} x {args.z_dim}": 4 * count_of(args, data) * args.z_dim,
        }
    if "train" in stages_of(args):
        g = params_of(lambda: Generator(state.G or "baseline", args.g_ch, args.z_dim, args.size, classes))
        d = params_of(lambda: Critic(args.d_ch, classes))
        made["training"] = {
            f"G of {g:,} parameters" if state.G else "G as large as CT-GAN's": 16 * g,
            "average of G": 4 * g,
            "critic": 16 * d,
        }
    return made


def load_weights(args: Args, device: torch.device) -> tuple[Args, Generator]:
    """The generator in a weights.pt, and the arguments with its widths. UserError: not such a file."""
    try:
        saved = torch.load(args.weights, map_location=device, weights_only=True)
        args = replace(args, **{k: int(saved[k]) for k in ("g_ch", "z_dim", "size")}, ema=float(saved["ema"]))
        nodes = saved["genotype"]
        genotype = nodes if nodes == "baseline" else check_genotype(nodes, n_of(nodes), str(args.weights))
        G = build(args, Ranks(device), lambda: Generator(genotype, args.g_ch, args.z_dim, args.size, int(saved["classes"])))
        G.load_state_dict(saved["G"])
    except OSError as e:
        raise UserError(f"--weights {args.weights}: {e.strerror}") from None
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"--weights {args.weights}: not the weights.pt of a degas run ({str(e).splitlines()[0]})") from None
    return args, G.eval()


def price(args: Args, ranks: Ranks, plan: list[tuple[str, int, float]]) -> str:
    """The plan in G updates, and its cost on this device."""
    flops = sum(2 * steps * macs for _, steps, macs in plan)
    rate = measured_flops(ranks.device) * ranks.world
    steps = " + ".join(f"{n:,} ({name})" for name, n, _ in plan)
    cost = f"{flops / 1e15:.3g} PFLOP, about {duration(flops / rate)} at the {rate / 1e12:.2g} TFLOP/s measured here"
    return f"{steps} G updates · {cost}"


def main(args: Args) -> dict | None:
    """Search, prune, train, evaluate. Returns the best scores of the training, if there was one."""
    # -- everything that can be wrong is found before a run directory is made
    ranks = start_ranks(args.device)
    check(args, ranks.world)
    evaluator = Evaluator(
        args.evaluator, ranks.device, args.data_dir / "cache", args.inception_weights, int(args.fid_dims),
        want_is=has_is(args), ref_n=args.ref_n, splits=IS_SPLITS
    )  # fmt: skip
    size = args.size or (48 if args.dataset == "stl10" else 32)
    data = ranks.first(lambda: load_dataset(args.dataset, args.data_dir, size))
    evaluator.use(data)
    trained = None
    if args.phase == "eval":
        args, trained = load_weights(args, ranks.device)
        if args.size != size:
            raise UserError(f"--weights {args.weights}: makes {args.size} px; use --size {args.size}")
    else:
        args = resolve(args, data)
    state = first_state(args)
    labels, classes = None, 0
    if args.conditional and not trained:
        found, labels = data.labels.unique(return_inverse=True)
        labels, classes = labels.to(ranks.device), len(found)
    batches = Batches(data.images, args.d_batch, args.seed, ranks.device, ranks.rank, ranks.world)
    plan = [] if trained else plan_of(args, data, state)
    memory = {} if trained else sizes(args, data, state, classes)
    lines = [f"degas · {data.name}, {len(data.images):,} images of {args.size} px · {args.preset} · {price(args, ranks, plan)}"]
    lines += [data.note] if data.note else []
    lines += [] if state.G is None else [f"genotype: {state.G if state.G == 'baseline' else one_line(state.G)}"]
    for name, parts in memory.items():
        lines.append(
            f"memory of {name}: {', '.join(f'{what} {n / 1e6:,.1f} MB' for what, n in parts.items())}, and activations"
        )
    if args.dry_run:
        print("\n".join(lines))
        return None

    params = {"G": genotype_json(args, state.G)["params"]["G"] if state.G else None}
    biggest = max((sum(parts.values()) for parts in memory.values()), default=0)
    with Run(
        __file__, "degas", asdict(args), ranks, dataset=data.name, digest=data.digest, plan=plan,
        facts={"params": params, "net": evaluator.net}, disk=3 * biggest + 5e7,  # two checkpoints and one being written
    ) as run:  # fmt: skip
        for line in lines:
            run.print(line)
        saved = run.load()
        if "state" in saved:
            state = State(**saved["state"])
        elif state.G:
            run.genotype(0, genotype_json(args, state.G))
        evaluator.log, evaluator.check = run.print, run.check
        run.begin(run.status["phase"], "preparing the evaluator", state.step, "the first stage")
        ranks.first(evaluator.prepare)
        if trained:
            evaluate_weights(args, ranks, run, evaluator, trained)
            return None
        stages = stages_of(args)
        while state.stage < len(stages):
            if stages[state.stage] == "search":
                search(args, ranks, run, data, state, saved)
            else:
                train_gan(args, ranks, run, evaluator, batches, labels, state, saved)
                return state.best
            saved, state.stage, state.began = {}, state.stage + 1, state.step
        run.result(genotype=genotype_json(args, state.G, state.scores))
    return None


if __name__ == "__main__":
    sys.exit(cli(main, Args, PRESETS))
