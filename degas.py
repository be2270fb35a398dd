# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch>=2.11", "torchvision>=0.26", "numpy>=2.0", "pillow>=10.3", "scipy>=1.13",
#   "pytorch-fid>=0.3.0", "typer>=0.19", "rich>=14.0", "textual>=8.0", "psutil>=6.0",
#   "nvidia-ml-py>=12.0",
# ]
# ///
"""DEGAS: differentiable efficient generator search, by reconstruction (Doveh and Giryes, 2019).

Paper: arXiv 1912.00606. No code was released. See docs/degas.md for details, including the choices
made here where the paper is silent.

Search, without a discriminator. A supernet connects feature maps; each connection computes the
softmax(alpha)-weighted sum of its candidate operations. Every training image has its own latent z, and
G learns to reconstruct image i from z_i (GLO): squared error + Laplacian-pyramid L1.
    repeat
        (1) one step on the weights w and the latents z of a batch
        (2) one step on alpha, on another batch
    (3) prune: each feature map keeps its best operation; if this is on a residual connection, also
        the best direct one
Weights and latents are then discarded, and the derived generator is trained from scratch as the G of a
CT-GAN: Wasserstein loss, gradient penalty, and consistency of the critic under dropout; with labels if
--conditional is given.

Published (CIFAR-10, 50,000 images): IS 8.37, FID 12.01; with labels 8.85, 9.83. Not yet run at paper
scale here. Tags: PAPER (specified by the paper), DARTS, GLO, CT-GAN (follows the code of that work),
OURS (not specified), DEVIATES (differs from one of these).
"""

import sys
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import takewhile
from math import cos, inf, isqrt, log, pi, prod, sqrt
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import gan
from common.cells import (
    Conv,
    ConvAvgPool,
    Cost,
    ForPenalty,
    add,
    avg_pool_2x2,
    avg_pool_3x3,
    conv_cost,
    count_params,
    dropout,
    op_cost,
    params_and_macs,
    relu,
    separable,
    weighted_sum,
)
from common.cli import CommonArgs, cli, opt
from common.data import Batches, Dataset, load_dataset
from common.files import UserError, read_json, stream
from common.gan import Job, Pair, ema_update, fixed_latent, frozen, latent, pair_of, seeded, update
from common.graph import Graph
from common.metrics import Evaluator
from common.ranks import start_ranks
from common.rehearsal import dry_run
from common.run import Run

# ---- arguments -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Args(CommonArgs):
    genotype: str | None = opt(None, "Skip the search and train a genotype.json or baseline, CT-GAN's G. [ours]")
    random_arch: bool = opt(False, "Skip the search and prune random alpha ~ N(0, 1). [paper, ablation]", "Run")
    dataset: str = opt("cifar10", "[paper §4]")
    size: int = opt(0, "[paper §4]")

    n: int = opt(1, "Normal maps before each up-sampling. [paper §3]", "Search", min=1, max=8)
    normal_ops: Literal["9", "7"] = opt("9", "Normal ops; 7: those of DARTS. [9, 7: paper §3]", "Search")
    search_size: int = opt(0, "Search image side, a multiple of 8; 0: --size. [paper, ablation]", "Search", min=0)
    search_images: int = opt(0, "Random subset of images to search on; 0: all. [ours]", "Search", min=0)
    search_epochs: int = opt(50, "Search epochs, of (z, w) steps. [DARTS]", "Search", min=1)
    search_batch: int = opt(64, "Images per search step, over all processes. [DARTS]", "Search", min=2)
    search_ch: int = opt(128, "Channels of the supernet. [inferred: docs/degas.md]", "Search", min=1)
    w_lr: float = opt(0.03, "SGD learning rate of w; paper: 0.3. [ours: docs/degas.md]", "Search", min=0)
    z_lr: float = opt(10.0, "SGD learning rate of z, relative to that of w. [GLO]", "Search", min=0)
    z_grad: Literal["image", "batch"] = opt("image", "Loss for z: its image's or the batch mean. [ours]", "Search")
    z_init: Literal["random", "pca"] = opt("random", "Initial latents. [random: paper §3; pca: GLO]", "Search")
    arch_lr: float = opt(3e-4, "Adam learning rate of alpha. [DARTS]", "Search", min=0)
    lap_levels: int = opt(0, "Laplacian pyramid levels; 0: 3, or 2 below 32 px. [GLO]", "Search", min=0)
    loss_reduction: Literal["mean", "sum"] = opt(
        "mean", "sum: as in the paper; mean: divided by 3 x size x size. [ours]", "Search"
    )
    prune_score: Literal["alpha", "softmax"] = opt("alpha", "Score for pruning. [paper §3; softmax: DARTS]", "Search")

    conditional: bool = opt(False, "Train with labels: conditional BatchNorm, class head. [paper §4]", "Train")
    iters: int = opt(100_000, "Iterations; G is updated in all but the first. [CT-GAN]", "Train", min=2)
    g_ch: int = opt(128, "[inferred: docs/degas.md]")
    d_ch: int = opt(128, "Channels of the critic. [CT-GAN]")
    z_dim: int = opt(128, "Latent dimension, in search and training. [CT-GAN]")
    g_batch: int = opt(128, "[CT-GAN]")
    d_batch: int = opt(64, "[CT-GAN]")
    g_lr: float = opt(2e-4, "Adam learning rate of G, decays linearly to 0. [CT-GAN]")
    d_lr: float = opt(2e-4, "Adam learning rate of the critic, decays linearly to 0. [CT-GAN]")
    adam_b1: float = opt(0.0, "[CT-GAN]")
    adam_b2: float = opt(0.9, "[CT-GAN]")
    n_critic: int = opt(5, "Critic steps per iteration. [CT-GAN]")
    ema: float = opt(0.0, "[0: CT-GAN]")

    eval_n: int = opt(50_000, "[CT-GAN]")
    eval_every: int = opt(64, "Epochs between evaluations; 64: 10,000 G updates. [ours]")
    eval_bn: Literal["batch", "running"] = opt("batch", "BatchNorm of evaluations; batch: 100 images. [CT-GAN]", "Eval")

    @property
    def stages(self) -> list[str]:
        """The stages of the run, in order."""
        if self.phase == "train" or self.genotype or self.random_arch:
            return ["train"]
        return ["search", "train"] if self.phase == "all" else ["search"]

    @property
    def space(self) -> "Space":
        # OURS: the paper counts 9 and 7 ops; its list has 9 if both kernel sizes apply, DARTS has 7
        left_out = {"9": (), "7": ("conv_1x1", "conv_3x3")}[self.normal_ops]
        return Space(self.n, tuple(op for op in OPS_NORMAL if op not in left_out))

    @property
    def search_epoch(self) -> int:
        """Batches per search epoch."""
        return self.epoch_batches or -(-self.search_images // self.search_batch)

    @property
    def wants_is(self) -> bool:
        """Whether to compute the IS: weights for smaller --fid-dims may lack the layers that it needs."""
        return self.evaluator == "compact" or self.fid_dims == "2048"

    def w_lr_in(self, epoch: int) -> float:
        """Learning rate of w in epoch 0, 1, ...: cosine decay from --w-lr to 0.001. [DARTS]"""
        return 0.001 + 0.5 * (self.w_lr - 0.001) * (1 + cos(pi * epoch / self.search_epochs))


PRESETS = {
    "paper": {},
    "quick": dict(
        preset="quick", search_epochs=8, search_images=10_000, search_ch=64, arch_lr=3e-3,
        iters=4000, eval_n=10_000, eval_every=6, sample_every=500,
    ),
    "smoke": dict(
        preset="smoke", dataset="shapes", evaluator="compact", z_dim=32, epoch_batches=20, search_images=128,
        search_size=16, search_batch=32, search_ch=12, search_epochs=8, arch_lr=1e-2,
        iters=201, g_ch=24, d_ch=24, d_batch=32, g_batch=32, n_critic=2, g_lr=2e-3, d_lr=2e-3, ema=0.9,
        eval_n=1000, eval_every=10, sample_every=50, log_every=10,
    ),
}  # fmt: skip

# ---- losses of training (CT-GAN; the critic's scores are (B,)) and search (paper §3.2) -----------

D_CLASS, G_CLASS = 1.0, 0.1  # CODE CT-GAN: weights of the class losses
GP_WEIGHT, CT_WEIGHT, CT_FEATURES, CT_SLACK = 10.0, 2.0, 0.1, 0.0  # CODE CT-GAN: LAMBDA, LAMBDA_2, 0.1, Factor_M


def d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(G(z))] - E[D(x)]; critic_step adds the two terms below and, with labels, a class loss."""
    return fake.mean() - real.mean()


def g_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """-E[D(G(z))]. real: scores of real images, for relativistic losses; unused here."""
    return -fake.mean()


def gradient_penalty(D: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """10 E (|grad D| - 1)^2 between real and fake images; mix: (B, 1, 1, 1) in [0, 1]. [WGAN-GP]"""
    x = torch.lerp(real, fake, mix).requires_grad_()
    with ForPenalty():
        scores = D.forward(x)[0]  # not D(x): compiled code has no second derivatives
    (gradient,) = torch.autograd.grad(scores, x, torch.ones_like(scores), create_graph=True)
    norm = gradient.flatten(1).norm(dim=1)
    return GP_WEIGHT * F.mse_loss(norm, torch.ones_like(norm))


def consistency(d1: Tensor, d2: Tensor, f1: Tensor, f2: Tensor, slack: float = CT_SLACK) -> Tensor:
    """Difference of two critic passes over the same real images, with different dropout. [CT-GAN]

    d: scores, (B,); f: features, (B, ch).
    """
    each = CT_WEIGHT * ((d1 - d2).square() + CT_FEATURES * (f1 - f2).square().mean(1))
    return ((each - slack).relu() if slack else each).mean()


def reconstruction_loss(made: Tensor, images: Tensor, levels: int, reduction: str = "mean") -> Tensor:
    """||x - x'||^2 + sum_j 2^(2j) |L^j(x) - L^j(x')|_1, averaged over the batch. [paper §3.2]

    Level j has 4^-j of the pixels, so the factor gives all levels equal weight. Divided by the number of
    values per image (reduction "mean"), this is the MSE plus the mean absolute difference of each level.
    """
    # DEVIATES 1: "mean" by default. Gradients of the sum are too large to learn at the paper's rate of 0.3
    difference = made.float() - images
    loss = difference.square().mean() + sum(band.abs().mean() for band in pyramid(difference, levels))
    return loss * difference[0].numel() if reduction == "sum" else loss


def pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """Laplacian pyramid of x, (B, C, H, W): `levels` bands, each half the side, and the remainder.

    OURS: a band is the image minus its blur by the separable binomial [1 4 6 4 1] / 16, replicated at
    the edges; the next image is the 2x2 mean of the blur. All steps are linear. [GLO re-implementations]
    """
    kernel, bands = separable((1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16), x.dtype, x.device), []
    for _ in range(levels):
        apart = F.pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="replicate")
        low = F.conv2d(apart, kernel).view_as(x)
        bands.append(x - low)
        x = F.avg_pool2d(low, 2)
    return [*bands, x]


# ---- operations (paper §3) -----------------------------------------------------------------------
# An operation is a module constructed with (channels, factor, classes): (B, C, H, W) -> (B, C, f H, f W);
# normal ops have factor f = 1. macs(side): multiply-adds per image with output side x side, including
# biases, of the op as written in the paper.


class BatchNorm(nn.Module):
    """BatchNorm of x, (B, C, H, W), with a scale and a shift per channel.

    classes: one scale and shift per class, selected by y, (B,); None (supernet): no scale and shift, that is 1 and 0,
    with which cuDNN takes one launch on a GPU, and torch without them three or four.
    In eval mode, uses the statistics of the batch (CODE CT-GAN: always) or the running ones.
    """

    def __init__(self, ch: int, classes: int | None = 0) -> None:
        super().__init__()
        affine, shape = classes is not None, (classes, ch) if classes else (ch,)
        made = nn.Parameter if affine else partial(nn.Buffer, persistent=False)
        self.weight, self.bias = made(torch.ones(shape)), made(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(ch) if affine else None)
        self.register_buffer("running_var", torch.ones(ch) if affine else None)
        self.conditional, self.batch_stats = bool(classes), True

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        running = self.training or not self.batch_stats
        statistics = (self.running_mean, self.running_var) if running else (None, None)
        affine = (None, None) if self.conditional else (self.weight, self.bias)
        x = F.batch_norm(x, *statistics, *affine, training=self.training or self.batch_stats)
        if self.conditional:
            x = self.weight[y][:, :, None, None] * x + self.bias[y][:, :, None, None]
        return x


class PreActConv(nn.Module):
    """conv_kxk, nn_conv_k: BN -> ReLU [-> nearest up-sampling] -> convolution. [bias: CT-GAN]"""

    def __init__(self, k: int, ch: int, factor: int, classes: int | None) -> None:
        super().__init__()
        self.k, self.factor = k, factor
        self.bn, self.conv = BatchNorm(ch, classes), Conv(ch, ch, k, padding=k // 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.bn(x, y).relu()
        if self.factor == 1:
            return self.conv(x)
        if self.k == 1:  # pointwise: up-sampling last is equivalent
            return F.interpolate(self.conv(x), scale_factor=self.factor)
        return self.conv(F.interpolate(x, scale_factor=self.factor))

    def kernel(self) -> Tensor:
        """Weight of the convolution after the ReLU or, for f > 1, of a transposed convolution of stride f."""
        return self.conv.weight if self.factor == 1 else self.conv.weight.transpose(0, 1)

    def place(self) -> Tensor:
        """(n, k), in one direction: taps of a kernel n x n that each weight adds to; n: 3 or, for f > 1, 6."""
        if self.factor == 1:
            return torch.eye(3, self.k).roll((3 - self.k) // 2, 0)
        last, place = (6 - (self.k + self.factor - 1)) // 2 + self.k - 1, torch.zeros(6, self.k)
        for d in range(self.k):  # nearest repeats a pixel f times: weight d covers f of the kernel's 6 taps
            place[last - d : last - d + self.factor, d] = 1
        return place

    def macs(self, side: int) -> int:
        return count_params(self.conv) * side**2


class Deconv(nn.Module):
    """deconv_k: BN -> ReLU -> transposed convolution.

    PAPER §3: kernel sizes 4 and 6. Padding is chosen to enlarge by exactly 2 or 4; 8 is not possible.
    """

    def __init__(self, k: int, ch: int, factor: int, classes: int | None) -> None:
        super().__init__()
        self.k, self.factor, self.bn = k, factor, BatchNorm(ch, classes)
        self.conv = nn.ConvTranspose2d(ch, ch, k, stride=factor, padding=(k - factor) // 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.conv(self.bn(x, y).relu())

    def kernel(self) -> Tensor:
        return self.conv.weight

    def place(self) -> Tensor:
        return torch.eye(6, self.k).roll((6 - self.k) // 2, 0)

    def macs(self, side: int) -> int:
        weights, biases = self.conv.weight.numel(), self.conv.bias.numel()
        return weights * (side // self.factor) ** 2 + biases * side**2


class SepConv(nn.Module):
    """ReLU -> depthwise k x k -> pointwise -> BN: sep_conv_kxk twice, dil_conv_kxk once, dilated. [DARTS]"""

    def __init__(self, k: int, dilation: int, ch: int, factor: int, classes: int | None) -> None:
        super().__init__()
        how = {"padding": dilation * (k // 2), "dilation": dilation, "groups": ch, "bias": False}
        self.depthwise, self.pointwise, self.bn = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(2 if dilation == 1 else 1):
            self.depthwise.append(Conv(ch, ch, k, **how))
            self.pointwise.append(nn.Conv2d(ch, ch, 1, bias=False))
            self.bn.append(BatchNorm(ch, classes))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for depthwise, pointwise, bn in zip(self.depthwise, self.pointwise, self.bn, strict=True):
            x = bn(pointwise(depthwise(x.relu())), y)
        return x

    def macs(self, side: int) -> int:
        return (count_params(self.depthwise) + count_params(self.pointwise)) * side**2


class PoolOrSkip(nn.Module):
    """max_pool_3x3 and avg_pool_3x3, followed by BN in the supernet [DARTS]; and skip_connect."""

    def __init__(self, name: str, ch: int, factor: int, classes: int | None) -> None:
        super().__init__()
        self.name = name
        self.norm = BatchNorm(ch, None) if classes is None and name != "skip_connect" else None

    def forward(self, x: Tensor, _y: Tensor | None = None) -> Tensor:
        if self.name == "max_pool_3x3":
            x = F.max_pool2d(x, 3, 1, 1)
        elif self.name == "avg_pool_3x3":
            x = avg_pool_3x3(x)
        return self.norm(x) if self.norm else x

    def macs(self, _side: int) -> int:
        return 0


class UpBlock(nn.Module):
    """CT-GAN's up block; its generator, the baseline, has three of them."""

    def __init__(self, ch: int, factor: int, classes: int | None) -> None:
        super().__init__()
        self.factor = factor
        self.bn1, self.bn2 = BatchNorm(ch, classes), BatchNorm(ch, classes)
        self.conv1, self.conv2 = (Conv(ch, ch, 3, padding=1) for _ in range(2))
        self.shortcut = Conv(ch, ch, 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        main = self.conv1(F.interpolate(self.bn1(x, y).relu(), scale_factor=self.factor))
        return self.conv2(self.bn2(main, y).relu()) + F.interpolate(self.shortcut(x), scale_factor=self.factor)

    def macs(self, side: int) -> int:
        return sum(count_params(m) for m in (self.conv1, self.conv2, self.shortcut)) * side**2


OPS_NORMAL = {
    "conv_1x1": partial(PreActConv, 1),
    "conv_3x3": partial(PreActConv, 3),
    "max_pool_3x3": partial(PoolOrSkip, "max_pool_3x3"),
    "avg_pool_3x3": partial(PoolOrSkip, "avg_pool_3x3"),
    "skip_connect": partial(PoolOrSkip, "skip_connect"),
    "sep_conv_3x3": partial(SepConv, 3, 1),
    "sep_conv_5x5": partial(SepConv, 5, 1),
    "dil_conv_3x3": partial(SepConv, 3, 2),
    "dil_conv_5x5": partial(SepConv, 5, 2),
}
OPS_UP = {
    "deconv_4": partial(Deconv, 4),
    "deconv_6": partial(Deconv, 6),
    "nn_conv_1": partial(PreActConv, 1),
    "nn_conv_3": partial(PreActConv, 3),
}
OPS = {**OPS_NORMAL, **OPS_UP, "up_block": UpBlock}
SHORT = {  # short names for Space.text
    "conv_1x1": "c1", "conv_3x3": "c3", "max_pool_3x3": "max", "avg_pool_3x3": "avg",
    "skip_connect": "skip", "sep_conv_3x3": "sep3", "sep_conv_5x5": "sep5", "dil_conv_3x3": "dil3",
    "dil_conv_5x5": "dil5", "deconv_4": "d4", "deconv_6": "d6", "nn_conv_1": "n1", "nn_conv_3": "n3",
}  # fmt: skip

# ---- search space (paper §3) ---------------------------------------------------------------------

# Inputs of each node, the direct one first: {"N1": (("U0", "conv_1x1"),), ...}; or "baseline",
# CT-GAN's own generator
Genotype = dict[str, tuple[tuple[str, str], ...]] | Literal["baseline"]


class Connection(NamedTuple):
    source: str
    target: str
    kind: Literal["normal", "up", "residual"]  # the table of alpha that holds its row
    stage: int  # 1, 2, 3
    factor: int  # up-sampling factor

    @property
    def name(self) -> str:
        return f"{self.source}->{self.target}"

    def cost(self, op: str, ch: int, size: int, classes: int | None) -> Cost:
        """Cost of an op on this connection, in a generator of size x size images."""
        doubled = self.stage - 1 if self.kind == "normal" else self.stage  # N comes before the up-sampling
        make = partial(OPS[op], factor=self.factor, classes=classes)
        return op_cost(make, ch, size // 8 * 2**doubled)


@dataclass(frozen=True)
class Space:
    """Networks with n normal maps before each up-sampling. normal: candidate ops of normal maps."""

    n: int = 1
    normal: tuple[str, ...] = tuple(OPS_NORMAL)

    @cached_property
    def nodes(self) -> dict[str, list[Connection]]:
        """Incoming connections of each node: the direct one, then the residual ones by source.

        U0 is the reshaped output of the linear layer; each of three stages then has n normal maps N and an
        up-sampled map U_k. Residual connections between up-sampled maps span one or two stages: only
        this reading gives the paper's 4^3 * 7^3 * 5 * 9^2 networks.
        """
        nodes = {}
        for k in (1, 2, 3):
            names = [f"N{k}"] if self.n == 1 else [f"N{k}_{m}" for m in range(1, self.n + 1)]
            before = [f"U{k - 1}"]
            for name in names:
                sources = [before[-1], *before[:-1]]  # OURS, for n > 1: all earlier maps
                nodes[name] = [Connection(source, name, "normal", k, 1) for source in sources]
                before.append(name)
            nodes[f"U{k}"] = [Connection(before[-1], f"U{k}", "up", k, 2)]
            for j in range(max(0, k - 2), k):
                nodes[f"U{k}"].append(Connection(f"U{j}", f"U{k}", "residual", k, 2 ** (k - j)))
        return nodes

    @cached_property
    def connections(self) -> list[Connection]:
        return [c for entering in self.nodes.values() for c in entering]

    def ops(self, c: Connection) -> tuple[str, ...]:
        """Candidate ops of a connection. PAPER §3: only residual ones between up-sampled maps may be none."""
        return {"normal": self.normal, "up": tuple(OPS_UP), "residual": ("none", *OPS_UP)}[c.kind]

    def check(self, nodes: object, where: str) -> Genotype:
        """Validate a genotype. UserError names the file, the node and the valid inputs."""
        if type(self.n) is not int or not 1 <= self.n <= 8:
            raise UserError(f"{where}: n is {self.n!r:.40}, must be the number of normal maps per stage, 1 to 8")
        if not isinstance(nodes, dict) or nodes.keys() != self.nodes.keys():
            wanted = f"with n = {self.n}, nodes must be {', '.join(self.nodes)}"
            raise UserError(f"{where}: {wanted}; found {nodes!r:.80}")
        for node, entering in self.nodes.items():
            inputs = nodes[node]
            if not isinstance(inputs, list | tuple) or not 1 <= len(inputs) <= 2:
                raise UserError(f"{where}: {node} needs one or two inputs, found {inputs!r:.80}")
            for entry, may_be in zip(inputs, (entering[:1], entering[1:]), strict=False):
                options = [(c.source, op) for c in may_be for op in self.ops(c) if op != "none"]
                if not isinstance(entry, list | tuple) or tuple(entry) not in options:
                    use = ", ".join(f"[{source}, {op}]" for source, op in options) or "no second input"
                    raise UserError(f"{where}: {node}: invalid input {entry!r:.60}; use {use}")
        return {node: tuple((source, op) for source, op in nodes[node]) for node in self.nodes}

    @staticmethod
    def of(genotype: Genotype) -> "Space":
        """The space of a searched genotype."""
        return Space(sum(node.startswith("N1") for node in genotype))

    @staticmethod
    def held(genotype: Genotype) -> list[tuple[Connection, str]]:
        """(connection, op) of every op in a network with this genotype."""
        if genotype == "baseline":
            return [(Connection(f"U{k - 1}", f"U{k}", "up", k, 2), "up_block") for k in (1, 2, 3)]
        kept = {f"{source}->{node}": op for node in genotype for source, op in genotype[node]}
        return [(c, kept[c.name]) for c in Space.of(genotype).connections if c.name in kept]

    @staticmethod
    def text(genotype: Genotype) -> str:
        """Format as N1 sep5 | U1 d6+U0:d4 | ..., the direct op, then the residual one."""
        if genotype == "baseline":
            return genotype
        parts = []
        for node, ((_, direct), *residual) in genotype.items():
            more = "".join(f"+{source}:{SHORT.get(op, op)}" for source, op in residual)
            parts.append(f"{node} {SHORT.get(direct, direct)}{more}")
        return " | ".join(parts)


# ---- networks (paper §3) -------------------------------------------------------------------------


class MixedOp(nn.ModuleDict):
    """Candidate ops of a connection, weighted by p = softmax(alpha). [paper §3; DARTS Eq. 2]

    Ops that begin with BN -> ReLU share both, because BatchNorm has no scale and shift here. What
    follows is linear, so their kernels are summed into a single convolution (`merge`).
    """

    def __init__(self, names: tuple[str, ...], ch: int, factor: int) -> None:
        super().__init__({op: OPS[op](ch, factor, None) for op in names if op != "none"})
        self.factor, self.linear = factor, list(takewhile(lambda op: hasattr(self[op], "kernel"), self))
        self.apart = [op for op in self if op not in self.linear]
        self.sizes = (len(names) - len(self), len(self.linear), len(self.apart))  # of the parts of p; the first: none
        places = [torch.kron(self[op].place(), self[op].place()) for op in self.linear] or [torch.empty(1, 0)]
        self.places = nn.Buffer(torch.block_diag(*places).unflatten(0, (-1, len(places[0]))), persistent=False)

    def forward(self, x: Tensor, active: Tensor, kernel: Tensor, bias: Tensor, p: Tensor) -> Tensor:
        """sum_o p_o o(x), where none contributes zero. active: ReLU(BN(x)). kernel, bias, p: of `merge`."""
        out = None
        if self.linear and self.factor == 1:
            out = F.conv2d(active, kernel, bias, padding=1)
        elif self.linear:
            out = F.conv_transpose2d(active, kernel, bias, stride=self.factor, padding=(6 - self.factor) // 2)
        return add(out, weighted_sum([self[op](x) for op in self.apart], p)) if self.apart else out

    @staticmethod
    def merge(mixed: list["MixedOp"], p: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Kernels, biases and remaining p of connections with the same candidates; p: (connections, ops).

        A kernel is the sum of the linear ops' kernels, weighted by p. One matrix product weights and places
        the taps of all of them. Launches of a search update, with `weighted_sum` and BatchNorm's constants:
        947; 1,996 op by op.
        """
        (_, w, rest), places = p.split(mixed[0].sizes, 1), mixed[0].places  # (ops, n * n, taps)
        layers = [m[op] for m in mixed for op in m.linear]
        if not layers:
            return [(rest, rest, row) for row in rest]
        taps = torch.cat([layer.kernel().permute(2, 3, 0, 1).flatten(0, 1) for layer in layers])
        weighted = (w @ places.flatten(1)).view(len(mixed), *places.shape[1:])
        kernels = (weighted @ taps.view(len(mixed), places.shape[2], -1)).unflatten(2, taps.shape[1:])
        kernels = kernels.transpose(1, 2).contiguous().unflatten(2, (isqrt(places.shape[1]), -1)).permute(0, 1, 4, 2, 3)
        biases = torch.cat([layer.conv.bias for layer in layers]).view(*w.shape, -1)
        return list(zip(kernels, (w[:, None] @ biases)[:, 0], rest, strict=True))


class SuperG(nn.Module):
    """The supernet. z: (B, z_dim), p: softmax(alpha) of each connection -> (B, 3, size, size) in [-1, 1]."""

    def __init__(self, space: Space, ch: int = 128, z_dim: int = 128, size: int = 32) -> None:
        super().__init__()
        self.ch, self.base, self.connections = ch, size // 8, space.connections
        self.head = nn.Linear(z_dim, ch * self.base**2)
        self.mixed = nn.ModuleDict({c.name: MixedOp(space.ops(c), ch, c.factor) for c in self.connections})
        self.norm = BatchNorm(ch, None)
        self.alike: dict[tuple, list[str]] = {}  # connections with the same candidates
        for c in self.connections:
            self.alike.setdefault((c.factor, space.ops(c)), []).append(c.name)
        self.tail = nn.Sequential(BatchNorm(ch), nn.ReLU(), Conv(ch, 3, 3, padding=1), nn.Tanh())
        initialise(self)

    def forward(self, z: Tensor, p: dict[str, Tensor]) -> Tensor:
        first, merged = self.head(z).view(-1, self.ch, self.base, self.base), {}
        with torch.autocast(z.device.type, enabled=False):
            for names in self.alike.values():
                made = MixedOp.merge([self.mixed[name] for name in names], torch.stack([p[name] for name in names]))
                merged.update(zip(names, made, strict=True))
        maps, active = {"U0": first.contiguous(memory_format=torch.channels_last)}, {}
        for c in self.connections:  # ordered by target, so sources are complete
            x = maps[c.source]
            if c.source not in active:
                active[c.source] = self.norm(x).relu()
            made = self.mixed[c.name](x, active[c.source], *merged[c.name])
            maps[c.target] = maps[c.target] + made if c.target in maps else made
        return self.tail(maps["U3"])

    @staticmethod
    def cost(space: Space, ch: int = 128, z_dim: int = 128, size: int = 32) -> Cost:
        """Cost of the supernet with these arguments, all candidates included."""
        ends = conv_cost(z_dim, ch * (size // 8) ** 2, 1, 1) + conv_cost(ch, 3, 3, size) + Cost(2 * ch)
        held = [(c, op) for c in space.connections for op in space.ops(c) if op != "none"]
        return sum((c.cost(op, ch, size, None) for c, op in held), ends)


class Generator(nn.Module):
    """z: (B, z_dim) and, with classes, y: (B,) -> (B, 3, size, size) in [-1, 1]."""

    def __init__(self, genotype: Genotype, ch: int = 128, z_dim: int = 128, size: int = 32, classes: int = 0) -> None:
        super().__init__()
        self.genotype, self.ch, self.base, self.classes = genotype, ch, size // 8, classes
        self.head = nn.Linear(z_dim, ch * self.base**2)
        self.ops = nn.ModuleDict({c.name: OPS[op](ch, c.factor, classes) for c, op in Space.held(genotype)})
        self.tail = nn.Sequential(BatchNorm(ch), nn.ReLU(), Conv(ch, 3, 3, padding=1), nn.Tanh())  # unconditional
        initialise(self)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        first = self.head(z).view(-1, self.ch, self.base, self.base)
        maps = {"U0": first.contiguous(memory_format=torch.channels_last)}
        for name, op in self.ops.items():  # PAPER §3: a node is the sum of its inputs
            source, target = name.split("->")
            made = op(maps[source], y)
            maps[target] = maps[target] + made if target in maps else made
        return self.tail(maps["U3"])

    def evaluate_with(self, statistics: str) -> "Generator":
        """Set the BatchNorm statistics of eval mode, "batch" or "running". Returns self."""
        for m in self.modules():
            if isinstance(m, BatchNorm):
                m.batch_stats = statistics == "batch"
        return self

    def labelled(self, job: Job) -> gan.Generate:
        """Generate images for evaluations, with uniform labels; in a grid, one class per row."""

        def generate(z: Tensor, k: int | str) -> Tensor:
            if not self.classes:
                return self(z)
            if k == "grid":
                return self(z, torch.arange(len(z), device=z.device) // 8 % self.classes)
            y = uniform_labels(job, job.evaluator.batch, self.classes, "eval", k)  # for a full batch
            return self(z, y[: len(z)])

        return generate

    def draw(self, job: Job, step: int) -> tuple[Tensor, Tensor | None, int | None]:
        """What G step `step` is given: latents, labels if there are classes, seed of D's dropout (--graph: None)."""
        ranks, y = job.ranks, None
        if self.classes:
            y = uniform_labels(job, job.args.g_batch, self.classes, "g", step)[ranks.rank :: ranks.world]
        seed = stream(job.args.seed, "dropout of G", step, ranks.rank).initial_seed()
        return latent(job, job.g_batch, "g", step), y, None if job.args.graph else seed

    @staticmethod
    def saved(weights: dict) -> "Generator":
        """Build the generator of a weights.pt; its weights are not loaded."""
        nodes = weights["genotype"]
        genotype = nodes if nodes == "baseline" else Space.of(nodes).check(nodes, "genotype")
        return Generator(genotype, *(int(weights[k]) for k in ("g_ch", "z_dim", "size", "classes")))

    @staticmethod
    def cost(genotype: Genotype, ch: int = 128, z_dim: int = 128, size: int = 32, classes: int = 0) -> Cost:
        """Cost of the generator with these arguments."""
        ends = conv_cost(z_dim, ch * (size // 8) ** 2, 1, 1) + conv_cost(ch, 3, 3, size) + Cost(2 * ch)
        return sum((c.cost(op, ch, size, classes) for c, op in Space.held(genotype)), ends)


def initialise(net: nn.Module) -> None:
    """Uniform weights with standard deviation sqrt(4 / (fan_in + fan_out)), zero biases. [CT-GAN]

    sqrt(2 / ...) for linear layers, shortcuts and the output convolution. Fans are per group; fan_in of a
    transposed convolution is divided by its strides.
    """
    for name, m in net.named_modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            a, b = m.weight.shape[:2]  # output and input channels; reversed if transposed
            a /= prod(m.stride) if isinstance(m, nn.ConvTranspose2d) else getattr(m, "groups", 1)
            fans = (a + b) * m.weight[0, 0].numel()
            small = isinstance(m, nn.Linear) or name.endswith("shortcut") or name.startswith("tail")
            bound = sqrt(3 * (2 if small else 4) / fans)
            nn.init.uniform_(m.weight, -bound, bound)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


# ---- alpha and pruning (paper §3.1, §3.3) --------------------------------------------------------


class Alpha(nn.ParameterDict):
    """Architecture parameters: a table per kind with a row per connection, from scale * N(0, 1)."""

    def __init__(self, space: Space, seed: int, scale: float) -> None:
        super().__init__()
        self.space = space
        for kind in ("normal", "up", "residual"):
            rows = [space.ops(c) for c in space.connections if c.kind == kind]
            g = stream(seed, "alpha", kind)
            self[kind] = scale * torch.randn(len(rows), len(rows[0]), generator=g)

    def rows(self) -> dict[str, Tensor]:
        """alpha of each connection, by its name."""
        return self.by_connection(dict(self))

    def probabilities(self) -> dict[str, Tensor]:
        """softmax(alpha) of each connection."""
        return self.by_connection({kind: table.softmax(1) for kind, table in self.items()})

    def by_connection(self, tables: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows of tables shaped like alpha, by connection."""
        rows = {kind: iter(table) for kind, table in tables.items()}
        return {c.name: next(rows[c.kind]) for c in self.space.connections}


def prune(alpha: Alpha, score: str = "alpha") -> Genotype:
    """Keep the best op of each node and, if it is on a residual connection, also the best direct op.

    score: compare alpha or its softmax. Ties: prefer the direct, the lower source, the earlier op.
    """
    genotype = {}
    rows = alpha.probabilities() if score == "softmax" else alpha.rows()
    for node, entering in alpha.space.nodes.items():
        kept = []
        for c in entering:
            options = dict(zip(alpha.space.ops(c), rows[c.name].tolist(), strict=True))
            none = options.pop("none", -inf)
            op = max(options, key=options.get)  # the first one if equal
            # OURS: "lack of connection". With softmax, as in DARTS, none only lowers the others
            dropped = score == "alpha" and none >= options[op]
            if not dropped:
                kept.append((options[op], c.source, op))
        direct, best = kept[0], max(kept, key=lambda x: x[0])
        chosen = [direct] if best is direct else [direct, best]
        genotype[node] = tuple((source, op) for _, source, op in chosen)
    return genotype


# ---- search (paper §3.2, GLO) --------------------------------------------------------------------

WATCHED = 256  # images whose reconstruction is monitored
REMEDY = "lower --w-lr"  # for a supernet whose last ReLU is off, so that alpha has no gradient
LEFT_MEAN = 0.97  # the search has learned something if the loss is below this fraction of the mean image's


@dataclass
class State(gan.Progress):
    """State of a run besides the networks. In the search, `step` counts (z, w) steps."""

    reported: int = -1  # step of the last report
    leading: dict[str, str] = field(default_factory=dict)  # connection -> most probable op in that report
    flips: int = 0  # number of changes of `leading`, over all connections
    G: Genotype | None = None  # once found or given
    scores: dict = field(default_factory=dict)  # of the search that found G
    classes: int = 0  # number of classes in training; 0: no labels


def scaled(images: Tensor) -> Tensor:
    """uint8 to floats in [-1, 1]. OURS: no augmentation, because a latent belongs to one exact image."""
    return images.float().div_(127.5).sub_(1)


def project_ball(z: Tensor) -> Tensor:
    """Scale rows with norm above 1 to norm 1. [GLO]"""
    return z / z.norm(dim=1, keepdim=True).clamp(min=1)


class Search:
    """Everything that the search trains, and its images."""

    def __init__(self, job: Job) -> None:
        args, ranks, total = job.args, job.ranks, len(job.data.images)
        order = torch.randperm(total, generator=stream(args.seed, "search images"))
        images = job.data.images[order[: args.search_images]]
        if args.search_size != args.size:  # PAPER, ablation. OURS: area interpolation
            smaller = [F.interpolate(x.float(), size=args.search_size, mode="area") for x in images.split(1000)]
            images = torch.cat([x.round_().byte() for x in smaller])
        self.images = images.to(ranks.device)  # uint8 (N, 3, search_size, search_size)
        self.batches = Batches(self.images, args.search_batch, args.seed, ranks.device, ranks.rank, ranks.world)

        shape = (args.search_ch, args.z_dim, args.search_size)
        self.net = seeded(job, lambda: SuperG(args.space, *shape), "supernet")
        self.alpha = Alpha(args.space, args.seed, 1e-3).to(ranks.device)
        w, alpha = self.net.parameters(), self.alpha.parameters()
        self.w_opt = torch.optim.SGD(w, args.w_lr, momentum=0.9, weight_decay=3e-4, fused=True)  # CODE DARTS
        decay = 1e-3 / (1 if args.loss_reduction == "sum" else 3 * args.search_size**2)  # DARTS, for the paper's sum
        betas = (0.5, 0.999)  # CODE DARTS
        self.a_opt = torch.optim.Adam(alpha, args.arch_lr, betas=betas, weight_decay=decay, fused=True)
        self.grads: dict[str, Tensor] = {}  # gradient norm in alpha's latest update
        self.Z = self.first_latents(args)  # of all images: (N, z_dim)

        watched = torch.randint(len(images), (WATCHED,), generator=stream(args.seed, "fixed"))
        self.watched = watched.to(ranks.device)
        mean = self.images.sum(0, dtype=torch.int64) / len(images) / 127.5 - 1
        mean = mean.float().expand(WATCHED, -1, -1, -1)
        self.mean_loss = self.loss_of(args, mean, self.watched)  # of a G that always returns the mean image

    def first_latents(self, args: Args) -> Tensor:
        """Gaussian, or the first principal components of each image; projected to the unit ball."""
        if args.z_init == "random":  # PAPER §3.2: random
            g = stream(args.seed, "latents", device=self.images.device)
            shape = (len(self.images), args.z_dim)
            return project_ball(torch.randn(shape, generator=g, device=self.images.device))
        torch.manual_seed(stream(args.seed, "pca").initial_seed())  # pca_lowrank is randomised
        some = scaled(self.images[:24_576]).flatten(1)  # CODE GLO: this number
        mean, axes = some.mean(0), torch.pca_lowrank(some, args.z_dim)[2]
        parts = [(scaled(part).flatten(1) - mean) @ axes for part in self.images.split(4096)]
        return project_ball(torch.cat(parts))

    def loss(self, job: Job, p: dict[str, Tensor], z: Tensor, i: Tensor) -> Tensor:
        """Loss of G(z) on images i, for this process's share of them."""
        z, i = (x.chunk(job.ranks.world)[job.ranks.rank] for x in (z, i))
        with job.autocast():
            made = self.net(z, p)
        return self.loss_of(job.args, made, i)

    def loss_of(self, args: Args, made: Tensor, i: Tensor) -> Tensor:
        """Loss of reconstructions of images i."""
        return reconstruction_loss(made, scaled(self.images[i]), args.lap_levels, args.loss_reduction)


def zw_step(job: Job, s: Search, i: Tensor, lr: float | Tensor) -> Tensor:
    """One step on w and on the latents of images i, with a single backward pass."""
    args = job.args
    p = {name: row.detach() for name, row in s.alpha.probabilities().items()}
    z = s.Z[i].requires_grad_()  # of all processes: averaging completes their gradients
    loss = s.loss(job, p, z, i)
    update(job, s.net, s.w_opt, loss, clip=5.0)  # CODE DARTS
    job.ranks.average_gradients([z])
    # DEVIATES 2: each image's own gradient; that of the batch mean is 64 times smaller and hardly moves z
    own = len(i) if args.z_grad == "image" else 1
    s.Z[i] = project_ball(z.detach() - args.z_lr * lr * own * z.grad)
    return loss.detach()


def alpha_step(job: Job, s: Search, i: Tensor) -> Tensor:
    """One step on alpha with images i. First order: w and z are held fixed. [DARTS]"""
    with frozen(s.net):
        loss = s.loss(job, s.alpha.probabilities(), s.Z[i], i)
        update(job, s.alpha, s.a_opt, loss)
    return loss.detach()


def search(job: Job, state: State) -> None:
    """Alternate steps on (z, w) and alpha, then prune: (1) to (3) at the top of this file."""
    args, run, s, epoch = job.args, job.run, Search(job), job.args.search_epoch
    run.track(state, net=s.net, alpha=s.alpha, w_opt=s.w_opt, a_opt=s.a_opt, latents=s.Z, grads=s.grads)

    def both_steps(i: Tensor, lr: float | Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return zw_step(job, s, i, lr), alpha_step(job, s, other), gan.grad_norm(s.alpha)

    step = Graph(job, both_steps, s.w_opt, s.a_opt)
    run.begin("search", "search", state.step, images_per_step=args.search_batch)
    while True:
        if state.step % epoch == 0 and state.reported < state.step:
            report(job, state, s)
        if state.step == args.search_epochs * epoch:
            break
        run.tick(state.step, f"genotype in {epoch - state.step % epoch} steps")

        lr = args.w_lr_in(state.step // epoch)
        s.w_opt.param_groups[0]["lr"] = lr
        i = s.batches.indices(state.step)
        # DEVIATES 4: alpha after w, on images that also train w: without a trained z, an image is useless.
        # DARTS: alpha first, on the other half of the images
        g = stream(args.seed, "alpha images", state.step, device=s.images.device)
        other = torch.randperm(len(s.images), generator=g, device=s.images.device)[: args.search_batch]
        w_loss, alpha_loss, s.grads["alpha"] = step(i, lr, other)  # (1), (2)

        state.step += 1
        if state.step % args.log_every == 0:
            run.log(state.step, **{"loss/zw": w_loss, "loss/alpha": alpha_loss, "lr/w": lr})

    run.begin("derive", "pruning", state.step, "training" if args.phase == "all" else "finish")
    loss, mean_loss = state.scores["loss/rec"], state.scores["loss/mean_image"]
    if loss > LEFT_MEAN * mean_loss:
        run.print(
            f"WARNING: the reconstruction loss, {loss:.4f}, is no better than the mean image's, {mean_loss:.4f}: "
            "alpha has learned nothing, and the genotype is no better than random; use more --search-epochs, "
            "a larger --search-ch, --z-init pca or another --w-lr"
        )
    state.G = prune(s.alpha, args.prune_score)  # (3)
    run.print(f"found: {Space.text(state.G)}")


# ---- reporting -----------------------------------------------------------------------------------


@torch.no_grad()
def report(job: Job, state: State, s: Search) -> None:
    """Report the search: a row of search.jsonl, the current genotype, and reconstructions."""
    args, run, p = job.args, job.run, s.alpha.probabilities()
    made = torch.cat([s.net(s.Z[i], p).float() for i in s.watched.split(args.search_batch)])
    signs: gan.Signs = {f"signs/grad_{name}": norm.item() for name, norm in s.grads.items()}
    signs["signs/moved_alpha"] = gan.distance(s.alpha, Alpha(args.space, args.seed, 1e-3))
    signs |= gan.active_units(job, s.net, s.net.tail[2], lambda z, _: s.net(s.Z[s.watched[: len(z)]], p))
    loss, mean_loss = s.loss_of(args, made, s.watched).item(), s.mean_loss.item()
    pairs = torch.stack([scaled(s.images[s.watched[:32]]), made[:32]]).unflatten(1, (4, 8))
    run.samples(state.step, pairs.transpose(0, 1).flatten(0, 2))  # rows: targets, their reconstructions, ...

    shares = {}
    for c in s.alpha.space.connections:
        ops = s.alpha.space.ops(c)
        shares[f"{c.stage}/{c.name}"] = dict(zip(ops, p[c.name].tolist(), strict=True))
    leading = {edge: max(row, key=row.get) for edge, row in shares.items()}
    state.flips += sum(op != state.leading.get(edge, op) for edge, op in leading.items())
    state.leading, state.reported = leading, state.step
    state.scores = {"loss/rec": loss, "loss/mean_image": mean_loss}

    genotype = genotype_json(args, prune(s.alpha, args.prune_score), state.scores)
    ops = [op for row in genotype["G"] for op in row]
    counts = {
        "skip": ops.count("skip_connect"),
        "pool": ops.count("max_pool_3x3") + ops.count("avg_pool_3x3"),
        "none leads": list(leading.values()).count("none"),
    }
    epoch = state.step // args.search_epoch
    entropy = {edge: -sum(x * log(x) for x in row.values() if x) for edge, row in shares.items()}
    row = {
        "step": state.step, "stage": "search", "epoch": epoch, **state.scores, "counts": counts,
        "probabilities": {"G": shares}, "entropy": {"G": entropy}, "flips": {"G": state.flips},
        "genotype": {"G": genotype["G"]},
    }  # fmt: skip
    gan.search_row(job, row, signs, {"grad": REMEDY, "units": REMEDY})
    run.log(state.step, **state.scores)
    run.genotype(state.step, genotype)
    losses = f"reconstruction {loss:.4f}, mean image {mean_loss:.4f}"
    told = ", ".join(f"{name} {n}" for name, n in counts.items())
    run.print(f"epoch {epoch}/{args.search_epochs}: {losses} · {genotype['text']} · {told}")


def genotype_json(args: Args, genotype: Genotype, scores: dict) -> dict:
    """Contents of genotype.json; --genotype reads n and nodes. G: the op of each connection, a row per stage."""
    n, rows = 0, None
    if genotype != "baseline":
        n, found, kept = Space.of(genotype).n, Space.of(genotype).connections, dict(Space.held(genotype))
        rows = [[kept.get(c, "none") for c in found if c.stage == k] for k in (1, 2, 3)]
    return {
        "method": "degas",
        "n": n,
        "nodes": genotype,
        "G": rows,
        "text": Space.text(genotype),
        **params_and_macs(G=Generator.cost(genotype, *args.g_shape)),
        "scores": scores,
    }


# ---- the critic (CT-GAN) -------------------------------------------------------------------------


class CriticBlock(nn.Module):
    """(B, C, H, W) -> same, or half the side: ReLU -> conv -> ReLU -> conv [-> average pool], and a shortcut."""

    def __init__(self, c_in: int, ch: int, down: bool) -> None:
        super().__init__()
        self.first = c_in == 3  # no ReLU on the image
        self.conv1 = Conv(c_in, ch, 3, padding=1)
        self.conv2 = ConvAvgPool(ch, ch) if down else Conv(ch, ch, 3, padding=1)
        self.shortcut = Conv(c_in, ch, 1) if down else None

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv2(relu(self.conv1(x if self.first else relu(x))))
        if self.shortcut is None:
            return main + x
        return main + self.shortcut(avg_pool_2x2(x))  # the 1x1 commutes with pooling


class Critic(nn.Module):
    """x: (B, 3, H, W) -> scores (B,), penultimate features (B, ch), logits (B, classes) or None.

    No normalisation. Dropout is always active, except in class_accuracy.
    """

    def __init__(self, ch: int = 128, classes: int = 0) -> None:
        super().__init__()
        shapes = [(3, True), (ch, True), (ch, False), (ch, False)]
        self.blocks = nn.ModuleList(CriticBlock(c_in, ch, down) for c_in, down in shapes)
        self.drop = (0.0, 0.2, 0.5, 0.5)  # after each block
        self.out = nn.Linear(ch, 1)
        self.classes = nn.Linear(ch, classes) if classes else None
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        for block, drop in zip(self.blocks, self.drop, strict=True):
            x = dropout(block(x), drop, self.training)
        features = relu(x).mean(dim=(2, 3))
        scores = self.out(features).squeeze(1).float()
        return scores, features.float(), self.classes(features).float() if self.classes else None

    @staticmethod
    def draw(job: Job, labels: Tensor | None, batch: int) -> tuple:
        """What critic step `batch` is given: real images, labels, latents, the penalty's mix, seed of dropout."""
        seed, device, rank = job.args.seed, job.ranks.device, job.ranks.rank
        i = job.batches.indices(batch).chunk(job.ranks.world)[rank]
        y = None if labels is None else labels[i]
        real = dequantise(job.images[i].to(device), stream(seed, "dequantise", batch, rank, device=device))
        g = stream(seed, "mix", batch, rank, device=device)
        mix = torch.rand(len(i), 1, 1, 1, generator=g, device=device)
        drop = None if job.args.graph else stream(seed, "dropout of D", batch, rank).initial_seed()
        return real, y, latent(job, len(i), "d", batch), mix, drop

    @staticmethod
    def cost(ch: int = 128, size: int = 32, classes: int = 0) -> Cost:
        """Cost of the critic with these arguments."""
        half, quarter = size // 2, size // 4
        convs = [(3, 3, size), (ch, 3, size), (3, 1, half)]  # (input channels, kernel, side)
        convs += [(ch, 3, half), (ch, 3, half), (ch, 1, half)] + 4 * [(ch, 3, quarter)]
        heads = conv_cost(ch, 1, 1, 1) + conv_cost(ch, classes, 1, 1)
        return sum((conv_cost(c_in, ch, k, side) for c_in, k, side in convs), heads)


# ---- training from scratch (CT-GAN) --------------------------------------------------------------


def dequantise(images: Tensor, g: torch.Generator) -> Tensor:
    """uint8 to [-1, 1): 2 (x / 256 - 1/2) + U(0, 1/128)."""
    noise = torch.rand(images.shape, generator=g, device=images.device)
    return noise.add_(images).div_(128).sub_(1)


def quantise(x: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8, approximately the inverse of `dequantise`; NaN becomes 0."""
    return ((x.float() + 1) * 127.995).clamp(0, 255).nan_to_num(0).to(torch.uint8)


def uniform_labels(job: Job, n: int, classes: int, *name: object) -> Tensor:
    """n uniformly distributed labels, the same on every process."""
    g = stream(job.args.seed, "labels", *name, device=job.ranks.device)
    return torch.randint(classes, (n,), generator=g, device=job.ranks.device)


def critic_step(job: Job, nets: Pair, drawn: tuple) -> dict[str, Tensor]:
    """One critic step on real images and fakes with the same labels. Returns the terms of the loss."""
    D, (real, y, z, mix, seed) = nets.D, drawn
    if seed is not None:  # dropout has no generator argument
        torch.manual_seed(seed)
    with job.autocast():
        # DEVIATES 3: BatchNorm over the whole batch; CT-GAN generates it in two halves, one per GPU
        with torch.no_grad():
            fake = nets.G(z, y).float()
        scores, features, logits = D(torch.cat([real, real, fake]))  # each with its own dropout mask
        (d1, d2, d_fake), (f1, f2, _) = scores.chunk(3), features.chunk(3)
        parts = {"wasserstein": d_loss(d1, d_fake), "ct": consistency(d1, d2, f1, f2)}
        parts["gp"] = gradient_penalty(D, real, fake, mix)
        if y is not None:
            parts["d_class"] = D_CLASS * F.cross_entropy(logits[: len(real)], y)  # real images only
    update(job, D, nets.d_opt, add(*(x for name, x in parts.items() if name != "gp")), apart=parts["gp"])
    return {name: value.detach() for name, value in parts.items()}


def generator_step(job: Job, nets: Pair, drawn: tuple) -> dict[str, Tensor]:
    """One G step, with a class loss if there are classes. Returns the terms of the loss."""
    z, y, seed = drawn
    if seed is not None:
        torch.manual_seed(seed)
    with frozen(nets.D):
        with job.autocast():
            scores, _, logits = nets.D(nets.G(z, y))
            parts = {"g": g_loss(scores)}
            if y is not None:
                parts["g_class"] = G_CLASS * F.cross_entropy(logits, y)
        update(job, nets.G, nets.g_opt, add(*parts.values()))
    return {name: value.detach() for name, value in parts.items()}


@torch.no_grad()
def class_accuracy(job: Job, G: Generator, D: Critic, labels: Tensor, step: int) -> dict:
    """Accuracy of the critic's class head on real and generated images, without dropout."""
    i = job.batches.indices(step).chunk(job.ranks.world)[job.ranks.rank]
    y = uniform_labels(job, len(i), G.classes, "accuracy", step)
    fake = G(fixed_latent(job, len(i), "accuracy", step), y)
    D.eval()
    of_real, of_fake = (D.forward(x)[2].argmax(1) for x in (job.batches(step), fake))
    D.train()
    right = {"accuracy/real": of_real == labels[i], "accuracy/fake": of_fake == y}
    return {name: each.float().mean() for name, each in right.items()}


def train(job: Job, state: State) -> None:
    """Train the generator from scratch against CT-GAN's critic; evaluate it or its EMA."""
    args, run, labels = job.args, job.run, None
    if state.classes:
        labels = job.data.labels.unique(return_inverse=True)[1].to(job.ranks.device)  # 0, 1, ...
    G = seeded(job, lambda: Generator(state.G, *args.g_shape, state.classes), "G")
    D = seeded(job, lambda: Critic(args.d_ch, state.classes), "D")
    G_ema = deepcopy(G).requires_grad_(False).eval().evaluate_with(args.eval_bn)
    nets = pair_of(job, G, D)
    run.track(state, **vars(nets), G_ema=G_ema)
    if args.compile:
        G.compile(dynamic=False)
        D.compile(dynamic=False)

    def both_steps(for_g: tuple, for_d: list[tuple]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        g_parts = {}
        if for_g:  # CODE CT-GAN: no G step in the first iteration
            g_parts = generator_step(job, nets, for_g)
            ema_update(G_ema, G, args.ema)
        for drawn in for_d:
            d_parts = critic_step(job, nets, drawn)
        return g_parts, d_parts

    step = Graph(job, both_steps, nets.g_opt, nets.d_opt)
    about = {"method": "degas", "genotype": state.G, "classes": state.classes}
    generate = G_ema.labelled(job)
    run.begin("train", "training", state.step, images_per_step=args.d_batch * args.n_critic)
    while True:
        gan.evaluate_if_due(job, state, G, G_ema, about, generate)
        if state.step >= state.began + job.plan[-1][1]:
            break
        run.tick(state.step, gan.until_evaluation(job, state))
        iteration = state.batch // args.n_critic
        left = 1 - iteration / args.iters  # both learning rates decay linearly to 0
        nets.g_opt.param_groups[0]["lr"] = args.g_lr * left
        nets.d_opt.param_groups[0]["lr"] = args.d_lr * left
        for_d = [D.draw(job, labels, state.batch + k) for k in range(args.n_critic)]
        for_g = G.draw(job, state.step) if iteration else ()
        if args.graph:  # dropout in a graph goes on from this seed
            torch.manual_seed(stream(args.seed, "dropout", iteration).initial_seed())
        g_parts, d_parts = step(for_g, for_d)
        state.batch += args.n_critic
        state.step += bool(iteration)
        if iteration and state.step % args.log_every == 0:
            row = {f"loss/{name}": value for name, value in (d_parts | g_parts).items()}
            row |= {"loss/d": sum(d_parts.values()), "lr/g": args.g_lr * left}
            if labels is not None:
                row |= class_accuracy(job, G_ema, D, labels, state.step)
            run.log(state.step, **row)
        if iteration and (state.step - state.began) % args.sample_every == 0:
            run.samples(state.step, gan.grid(job, G_ema, generate))
    run.save()


# ---- command line --------------------------------------------------------------------------------


def check(args: Args, world: int) -> None:
    """Reject invalid flags before any work is done. UserError names the flag, value and remedy."""
    given = f"--genotype {args.genotype}" if args.genotype else "--random-arch" if args.random_arch else ""
    gan.check_flags(args, world, given, "baseline or a genotype.json, or --random-arch")
    if args.search_batch % world:
        raise UserError(f"--search-batch {args.search_batch}: not divisible by {world} processes; use a multiple")
    if args.wants_is:
        gan.check_splits(eval_n=args.eval_n)
    if args.genotype and args.random_arch:
        raise UserError(f"--random-arch: conflicts with {given}; omit one of them")


def resolve(args: Args, data: Dataset) -> Args:
    """Replace 0 by the default for this data set. UserError: values that do not fit the data set."""
    images, size = len(data.images), data.images.shape[-1]
    searched, side = args.search_images or images, args.search_size or size
    levels = args.lap_levels or (2 if side < 32 else 3)
    if "search" in args.stages:
        if side % 8 or side < 16:
            raise UserError(f"--search-size {side}: G doubles the side three times; use a multiple of 8, 16 or more")
        if side % 2**levels:
            raise UserError(f"--lap-levels {levels}: {side} px cannot be halved that often; use a smaller value")
        if searched > images:
            raise UserError(f"--search-images {searched}: {data.name} has only {images}; use fewer, or 0 for all")
        if args.search_batch > searched:
            raise UserError(f"--search-batch {args.search_batch}: more than the {searched} images; use a smaller value")
        if args.z_init == "pca" and args.z_dim > min(searched, 3 * side**2):
            raise UserError(f"--z-init pca: {searched} images are too few for --z-dim {args.z_dim}; lower it")
    if args.conditional and (data.labels is None or (data.labels < 0).any()):
        bare = images if data.labels is None else int((data.labels < 0).sum())
        raise UserError(f"--conditional: {bare:,} of {images:,} images of {data.name} have no label; omit it")
    return replace(args, size=size, search_images=searched, search_size=side, lap_levels=levels)


def first_state(args: Args, data: Dataset) -> State:
    """State of a new run, with the given or random genotype, if any. UserError: invalid genotype."""
    G, name = None, args.genotype
    if args.random_arch:
        G = prune(Alpha(args.space, args.seed, 1.0), args.prune_score)
    elif name == "baseline":
        G = name
    elif name:
        if Path(name).suffix != ".json":
            raise UserError(f"--genotype {name}: no such genotype; use baseline or a genotype.json")
        saved = read_json(Path(name), "genotype file")
        if "nodes" not in saved:
            raise UserError(f"{name}: no key 'nodes'; use a genotype.json of degas.py")
        G = Space(saved.get("n", 1)).check(saved["nodes"], name)
    labelled = args.conditional and args.phase != "eval"
    return State(G=G, classes=len(data.labels.unique()) if labelled else 0)


def costs_of(args: Args, state: State) -> dict[str, Cost]:
    """Costs of the networks of this run; CT-GAN's G stands in for one not found yet."""
    g = Generator.cost(state.G or "baseline", *args.g_shape, state.classes)
    costs = {"G" if state.G else "G (as CT-GAN's)": g, "D": Critic.cost(args.d_ch, args.size, state.classes)}
    if "search" in args.stages:
        costs["supernet"] = SuperG.cost(args.space, args.search_ch, args.z_dim, args.search_size)
        costs[f"latents of {args.search_images:,} images"] = Cost(args.search_images * args.z_dim)
    return costs


def plan_of(job: Job, costs: dict[str, Cost]) -> list[gan.Stage]:
    """(name, G updates, multiply-adds per update including scoring) of every stage."""
    args, plan = job.args, []
    g, d = (cost.macs for cost in list(costs.values())[:2])
    if "search" in args.stages:  # a (z, w) step and an alpha step, each forward and backward
        plan.append(("search", args.search_epochs * args.search_epoch, 6 * args.search_batch * costs["supernet"].macs))
    if "train" in args.stages:
        updates, (every, after) = args.iters - 1, gan.evaluation_steps(job)
        looks = 2 + max(0, updates - after) // every
        # critic: three images forward and backward; the penalty: forward, backward, backward through both
        step = args.n_critic * args.d_batch * (g + 15 * d) + args.g_batch * (3 * g + 2 * d)
        plan.append(("train", updates, step + gan.scoring_macs(args, g, looks * args.eval_n) / updates))
    return plan


def main(args: Args) -> dict | None:
    """Search, prune, train, evaluate. Returns the best scores of the training phase, or None without one."""
    # -- all checks run before the run directory is created
    ranks = start_ranks(args.device)
    check(args, ranks.world)
    if args.phase == "sample":
        with_statistics = lambda saved: Generator.saved(saved).evaluate_with(args.eval_bn)  # noqa: E731
        return gan.sample(args, ranks, with_statistics, quantise, Generator.labelled)
    evaluator = Evaluator(**gan.evaluator_options(args, ranks), want_is=args.wants_is)
    data = ranks.first(lambda: load_dataset(args.dataset, args.data_dir, args.size))
    evaluator.use(data)
    args, trained = replace(args, size=data.images.shape[-1]), None
    if args.phase == "eval":
        args, trained = gan.load_weights(args, ranks.device, Generator.saved)
    else:
        args = resolve(args, data)
    job = Job(args, ranks, evaluator, data, eval_bn=args.eval_bn, to_bytes=quantise)
    state = first_state(args, data)
    if trained:
        trained.evaluate_with(args.eval_bn)
        costs = {"G": Generator.cost(trained.genotype, *args.g_shape, trained.classes)}
    else:
        costs = costs_of(args, state)
        job.plan = plan_of(job, costs)
    lines = gan.opening(job, "degas", costs)
    if state.G:
        lines.append(f"genotype: {Space.text(state.G)}")
    loops = {"search": search, "train": train}
    if args.dry_run:
        stand_in = replace(state, G=state.G or "baseline", reported=0)
        return dry_run(lines, job, loops, stand_in)

    with Run(args.script(), "degas", asdict(args), ranks, **gan.run_facts(job, costs)) as job.run:
        gan.start(job, state, lines)
        if state.G and state.step == 0:
            job.run.genotype(0, genotype_json(args, state.G, {}))
        if trained:
            gan.evaluate_weights(job, trained, trained.labelled(job))
            return None
        for name in args.stages[state.stage :]:
            loops[name](job, state)
            state.next_stage()
        return gan.finish(job, state, genotype_json(args, state.G, state.scores))


if __name__ == "__main__":
    sys.exit(cli(main, Args, PRESETS))
