"""FID, Inception Score and others: feature networks, streaming statistics, cached reference statistics."""

import argparse
import hashlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from common import scores
from common.data import Dataset, load_dataset
from common.files import UserError, finite, first_line, load_tensors, replacing, show_anything, stream
from common.ranks import start_ranks

IS_SPLITS = 10  # splits of the Inception Score
METRICS = ("fid", "is", "kid", "pr", "dc", "fid-inf", "nearest")  # names in --metrics; docs/metrics.md
FEATURES_KEPT = 50_000  # images at most whose features are kept, of each side: 410 MB of 2,048 float32
CACHE_VERSION = 1  # increment when the meaning of the reference statistics changes
PRECISIONS = ("float32", "tf32")  # of Inception; bfloat16 moves the FID by 0.3 to 1.4 %: docs/metrics.md
COMPACT_RECIPE = 1  # increment when the compact network or its training changes
COMPACT_STEPS = (300, 2000)  # minimum and maximum training steps

FID_FILE = "pt_inception-2015-12-05-6726825d.pth"
FID_LAYERS = {  # feature dimensions: torchvision layers, the last of which has them (pytorch-fid)
    64: ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"),
    192: ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    768: ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    2048: ("Mixed_7a", "Mixed_7b", "Mixed_7c", "avgpool"),
}


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1,1], (B,3,H,W), as uint8: truncated as in the authors' code, NaN as 0."""
    return (x.float() * 127.5 + 127.5).clamp(0, 255).nan_to_num(0).to(torch.uint8)


def matrix_root(cov: Tensor) -> Tensor:
    """Symmetric square root of a covariance matrix (D,D), float64; all NaN if it is not finite."""
    cov = cov.double()
    if not cov.isfinite().all():
        return torch.full_like(cov, torch.nan)
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor, root1: Tensor | None = None) -> float:
    """|mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)) for two Gaussians; NaN if not finite.

    mu: (D,), cov: (D,D), root1: `matrix_root(cov1)`. The symmetric root1 @ cov2 @ root1 has the same
    eigenvalues as cov1 cov2 and is faster and more accurate. [Heusel et al. 2017, arXiv:1706.08500]
    """
    mu1, cov1, mu2, cov2 = mu1.double(), cov1.double(), mu2.double(), cov2.double()
    root1 = matrix_root(cov1) if root1 is None else root1
    product = root1 @ cov2 @ root1
    rest = (mu1 - mu2).square().sum() + cov1.trace() + cov2.trace()
    if not (product.isfinite().all() and rest.isfinite()):
        return float("nan")
    return (rest - 2 * torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()).item()


class Moments:
    """Streaming mean and unbiased covariance, float64. [Chan, Golub & LeVeque 1983]"""

    def __init__(self, dims: int, device: torch.device | str = "cpu") -> None:
        self.n = 0
        self.mean = torch.zeros(dims, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dims, dims, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add a batch of features, (B,D)."""
        features = features.double()
        b, mean = len(features), features.mean(0)
        centred, delta = features - mean, mean - self.mean
        self.scatter += centred.T @ centred + delta.outer(delta) * (self.n * b / (self.n + b))
        self.mean += delta * (b / (self.n + b))
        self.n += b

    def reduce(self) -> None:
        """Merge the moments of all ranks, on every rank."""
        total = torch.cat([self.mean * self.n, self.mean.new_tensor([self.n])])
        dist.all_reduce(total)
        mean = total[:-1] / total[-1]
        self.scatter += (self.mean - mean).outer(self.mean - mean) * self.n
        dist.all_reduce(self.scatter)
        self.n, self.mean = int(total[-1]), mean

    @property
    def cov(self) -> Tensor:
        """Covariance, (D,D); NaN for fewer than two images."""
        return self.scatter / (self.n - 1) if self.n > 1 else torch.full_like(self.scatter, torch.nan)


class InceptionScore:
    """Streaming exp(mean KL(p(y|x) || p(y))) over `splits` equal splits of n images, float64.

    Split i: [i*n//splits, (i+1)*n//splits). [Salimans et al. 2016, arXiv:1606.03498; their code]
    """

    def __init__(self, n: int, splits: int, classes: int, device: torch.device | str = "cpu") -> None:
        self.ends = torch.tensor([(i + 1) * n // splits for i in range(splits)], device=device)
        self.sizes = self.ends.diff(prepend=self.ends.new_zeros(1))
        self.sums = torch.zeros(splits, classes + 1, dtype=torch.float64, device=device)

    def add(self, p: Tensor, first: int) -> None:
        """Add the class probabilities p, (B,classes), of images first, first+1, ..."""
        p = p.double()
        block = torch.bucketize(torch.arange(first, first + len(p), device=p.device), self.ends, right=True)
        rows = torch.cat([p, torch.special.entr(p).sum(1, keepdim=True).neg()], 1)
        self.sums += F.one_hot(block, len(self.ends)).double().T @ rows

    def reduce(self) -> None:
        """Merge the sums of all ranks, on every rank."""
        dist.all_reduce(self.sums)

    def result(self) -> tuple[float, float]:
        """Mean and population standard deviation over the splits, once all n images are added."""
        means = self.sums / self.sizes[:, None]
        scores = (means[:, -1] + torch.special.entr(means[:, :-1]).sum(1)).exp()
        return scores.mean().item(), scores.std(correction=0).item()


class Inception(nn.Module):
    """The Inception network of FID and IS. [pytorch-fid; logits without bias as in Salimans' IS code]

    forward: uint8 (B,3,H,W) -> features (B,dims) and, if `want_is`, logits (B,1008), else None.
    weights: file with a state dict in pytorch-fid's naming; None: use pytorch-fid's download.
    UserError: the weights are unavailable, of another network, or without a required layer.
    """

    classes = 1008

    def __init__(self, weights: Path | None, dims: int, want_is: bool) -> None:
        super().__init__()
        try:
            from pytorch_fid import inception as fid
            from torchvision.models import inception_v3
        except ImportError as error:
            raise UserError(
                f"--evaluator inception: {error.name} is not installed: "
                "pip install pytorch-fid torchvision, or use --evaluator compact"
            ) from error
        with torch.device("meta"):  # no memory, no random numbers: all weights come from the file
            net = inception_v3(num_classes=self.classes, aux_logits=False, weights=None, init_weights=False)
            net.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
            net.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
            net.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
            net.Mixed_6b = fid.FIDInceptionC(768, channels_7x7=128)
            net.Mixed_6c = fid.FIDInceptionC(768, channels_7x7=160)
            net.Mixed_6d = fid.FIDInceptionC(768, channels_7x7=160)
            net.Mixed_6e = fid.FIDInceptionC(768, channels_7x7=192)
            net.Mixed_7b = fid.FIDInceptionE_1(1280)
            net.Mixed_7c = fid.FIDInceptionE_2(2048)
        self.dims = dims
        below = [name for width, names in FID_LAYERS.items() if width <= dims for name in names]
        needed = [name for names in FID_LAYERS.values() for name in names] + ["fc"] if want_is else below
        state = _download(fid.FID_WEIGHTS_URL) if weights is None else _load_weights(weights)
        _check_inception(state, net.state_dict(), needed, str(weights or FID_FILE))
        state = {k: v.float() for k, v in state.items() if k.split(".")[0] in needed and not k.endswith("_tracked")}
        # covers only the weights that the features depend on
        self.digest = _digest({k: v for k, v in state.items() if k.split(".")[0] in below})
        self.layers = nn.ModuleDict({name: getattr(net, name) for name in needed})
        self.layers.load_state_dict(state, assign=True)
        self.eval().requires_grad_(False)
        for module in self.modules():  # fold BatchNorm into the convolution
            conv, bn = getattr(module, "conv", None), getattr(module, "bn", None)
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                module.conv = nn.utils.fuse_conv_bn_eval(conv, bn)
                module.bn = nn.Identity()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = F.interpolate(images.float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
        x = (2 * x - 1).contiguous(memory_format=torch.channels_last)
        logits = None
        for name, layer in self.layers.items():
            if isinstance(layer, nn.Linear):  # fc
                logits = x.flatten(1) @ layer.weight.T
                break
            x = layer(x)
            if name == FID_LAYERS[self.dims][-1]:
                features = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return features, logits


def _download(url: str) -> dict[str, Tensor]:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # torch.hub sets none and may hang for minutes when offline
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # offline, stalled or truncated download, damaged file in the cache
        kept = Path(torch.hub.get_dir(), "checkpoints", FID_FILE)
        if kept.exists():
            raise UserError(
                f"--evaluator inception: {kept} is damaged ({first_line(error)}); delete it to download it again"
            ) from error
        raise UserError(
            f"--evaluator inception: cannot download {url} ({first_line(error)}); pass the file with "
            "--inception-weights FILE, or use --evaluator compact, which needs no download"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _load_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"--inception-weights {path}: no such file; pass {FID_FILE}, or use --evaluator compact")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises various errors on other files
        raise UserError(
            f"--inception-weights {path} is not the FID Inception network: not a file of tensors "
            f"({first_line(error)}); pass {FID_FILE}"
        ) from error


def _check_inception(state: Any, expected: dict[str, Tensor], needed: list[str], source: str) -> None:

    def refuse(reason: str) -> None:
        raise UserError(
            f"--inception-weights {source} is not the FID Inception network: {reason}; pass the complete {FID_FILE}"
        )

    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        refuse("not a state dict")
    for key, value in state.items():
        if key not in expected:
            refuse(f"unknown entry {key!r}")
        if value.shape != expected[key].shape:
            refuse(f"{key} is {tuple(value.shape)}, not {tuple(expected[key].shape)}")
    lacking = {k.split(".")[0]: None for k in expected if k not in state and not k.endswith("num_batches_tracked")}
    if not set(needed) & set(lacking):
        return
    if set(lacking) <= {*FID_LAYERS[2048], "fc"}:
        raise UserError(
            f"--inception-weights {source} has no {', '.join(lacking)}: required by --fid-dims 2048 and the Inception "
            f"Score; pass the complete {FID_FILE}, or use --fid-dims 768 and leave IS out of --objectives/--reward"
        )
    refuse(f"no {', '.join(lacking)}")


class Compact(nn.Module):
    """A small classifier: uint8 (B,3,H,W) -> features (B,128), logits (B,classes)."""

    dims = 128
    digest = ""  # of its weights, where the evaluator has loaded them

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential()
        for c_in, c_out, stride in ((3, 32, 2), (32, 64, 2), (64, 128, 2), (128, 128, 1)):
            self.body.append(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False))
            self.body.append(nn.BatchNorm2d(c_out))
            self.body.append(nn.ReLU(inplace=True))
        self.head = nn.Linear(self.dims, classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body((images.float() / 64 - 2).contiguous(memory_format=torch.channels_last))
        features = F.avg_pool2d(x, x.shape[-2:]).flatten(1)  # faster backward pass than mean
        return features, self.head(features)


def train_compact(
    images: Tensor, labels: Tensor, device: torch.device, log: Callable[[str], None], check: Callable[[], None]
) -> Compact:
    """Train a Compact on uint8 (N,3,H,W) and labels (N,). Deterministic; leaves global random state alone.

    SGD, batch 64, 2.5 epochs, random flips and shifts; 10%, at most 1,000 images, are held out. [ours]
    """
    start, batch = time.monotonic(), 64
    order = torch.randperm(len(images), generator=stream(0, "compact", "held out")).to(device)
    images, labels = images.to(device), labels.to(device)
    held_out, order = order.tensor_split([min(1000, len(order) // 10)])
    steps = min(max(5 * len(order) // 2 // batch, COMPACT_STEPS[0]), COMPACT_STEPS[1])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(0, "compact", "init").initial_seed())
        net = Compact(int(labels.max()) + 1).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, steps, pct_start=0.2, anneal_strategy="linear")
    h, w = images.shape[-2:]
    for step in range(steps):
        check()
        random = stream(0, "compact", step)
        pick = order[torch.randint(len(order), (batch, 1, 1), generator=random).to(device)]
        flip = torch.randint(2, (batch, 1, 1), generator=random).bool()
        x = torch.arange(w) + torch.randint(-(w // 10), w // 10 + 1, (batch, 1, 1), generator=random)
        y = torch.arange(h)[:, None] + torch.randint(-(h // 10), h // 10 + 1, (batch, 1, 1), generator=random)
        x = torch.where(flip, w - 1 - x, x).clamp(0, w - 1).to(device)
        y = y.clamp(0, h - 1).to(device)
        _, logits = net(images[pick, :, y, x].permute(0, 3, 1, 2))
        loss = F.cross_entropy(logits, labels[pick.flatten()], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)
    right = sum((net(images[i])[1].argmax(1) == labels[i]).sum().item() for i in held_out.split(500))
    log(
        f"compact network: {len(order)} images, {net.classes} classes, {steps} steps, {time.monotonic() - start:.0f} s"
        f"; {right} of {len(held_out)} held-out images classified correctly"
    )
    return net


@contextmanager
def convolutions_in_tf32(allow: bool) -> Iterator[None]:
    """Inside the `with` block, convolutions on CUDA use TF32, of 11 bits, or keep float32's 24; default: TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allow
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def fid_label(net: str, score: str = "FID") -> str:
    """Display name of a score by a network: inception-2048: FID, inception-768: FID-768, inception-2048-tf32:
    FID-2048-tf32, compact: FID(compact)."""
    if net == "inception-2048" or (score == "IS" and net.removeprefix("inception-").isdigit()):  # one IS of all layers
        return score
    return f"{score}-{net.removeprefix('inception-')}" if net.startswith("inception-") else f"{score}({net})"


def read_stats(path: Path, dims: int = 0) -> dict[str, Tensor]:
    """Statistics of real images from an .npz with mu, (D,) or (1,D), and sigma, (D,D), as TTUR's TensorFlow code and
    pytorch-fid write them: "mean" and "cov", float64. dims: D that is needed; 0: any.
    UserError: cannot be read, other shapes, not finite, not symmetric, negative variances."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not {"mu", "sigma"} <= set(arrays):
                raise UserError(f"--fid-stats {path}: no arrays mu and sigma, only {', '.join(arrays) or 'none'}")
            mu, sigma = (np.asarray(arrays[key]) for key in ("mu", "sigma"))
    except UserError:
        raise
    except Exception as error:  # numpy raises various errors on other files
        raise UserError(
            f"--fid-stats {path}: not a readable .npz of plain arrays ({first_line(error)}); pass one with mu and sigma"
        ) from error

    def refuse(reason: str) -> None:
        raise UserError(f"--fid-stats {path}: {reason}; compute the statistics again")

    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        refuse(f"mu is {mu.dtype} and sigma {sigma.dtype}, not floating-point numbers")
    mu = mu[0] if mu.ndim == 2 and len(mu) == 1 else mu
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        refuse(f"mu is {mu.shape} and sigma {sigma.shape}, not (D,) and (D,D)")
    if dims and len(mu) != dims:
        raise UserError(f"--fid-stats {path}: holds {len(mu)} features, but {dims} are compared; match --fid-dims")
    mean, cov = (torch.from_numpy(x.astype(np.float64)) for x in (mu, sigma))
    if not (mean.isfinite().all() and cov.isfinite().all()):
        refuse("not all values are finite")
    if (cov - cov.T).abs().max() > 1e-5 * cov.abs().max():
        refuse("sigma is not symmetric")
    if (cov.diagonal() < 0).any():
        refuse("sigma has negative variances")
    return {"mean": mean, "cov": (cov + cov.T) / 2}


SHOWN = {"kid": "KID", "fid_inf": "FID∞"}  # names of further scores, where they differ from their keys


@dataclass(frozen=True)
class Score:
    """Result of an evaluation: FID, IS and its standard deviation over splits; None: not requested.

    more: further scores by name, NaN where they cannot be computed: kid and kid_se (standard error), precision, recall,
    density, coverage, fid_inf.
    """

    fid: float | None
    is_mean: float | None
    is_std: float | None
    n: int  # 0: of statistics
    net: str
    ref: str
    more: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The score as columns of metrics.jsonl."""
        columns = ("eval/fid", "eval/is", "eval/is_std", "eval/n", "eval/net", "eval/ref")
        more = {f"eval/{name}": value for name, value in self.more.items()}
        return {**dict(zip(columns, astuple(self)[:6], strict=True)), **more}

    def result(self) -> dict[str, Any]:
        """The score as an entry of result.json."""
        return {"fid": self.fid, "is": self.is_mean, "is_std": self.is_std, **self.more}

    def __str__(self) -> str:
        parts = [] if self.fid is None else [f"{fid_label(self.net)} {self.fid:.2f}"]
        parts += [] if self.is_mean is None else [f"{fid_label(self.net, 'IS')} {self.is_mean:.2f} ± {self.is_std:.2f}"]
        for name, value in self.more.items():
            shown = fid_label(self.net, SHOWN.get(name, name))
            parts += [] if name.endswith("_se") else [f"{shown} {value:.4g}"]
            if f"{name}_se" in self.more:
                parts[-1] += f" ± {self.more[name + '_se']:.2g}"
        return ", ".join(parts) + (f" on {self.n} images" if self.n else "")


class Evaluator:
    """Scores generated images against a data set. Call `use`, then `prepare`, then `score`.

    name: "inception", loaded here (UserError: unavailable or incomplete), or "compact".
    fid_dims: 64, 192, 768 or 2048 Inception features (compact always has 128).
    precision: one of PRECISIONS; tf32 needs Inception on a GPU (UserError), and is part of `net`.
    ref_n: number of real images, from a fixed permutation; 0: all.
    check: called before every batch; may raise to stop.
    net, label, ref: what a score refers to, such as "inception-768", "FID-768", "cifar10 50000".
    want_fid: set to False before `prepare` to skip the reference statistics; the FID is then None.
    more: names of METRICS; those beyond fid and is are computed where `score` is asked for them.
    stats: file of statistics to compute the FID against, for images of the size first used, instead of the data set's.
    eval_data: other images to compare with in the end; other: the evaluator that does, set from `against`.
    """

    def __init__(
        self,
        name: str,
        device: torch.device | str,
        cache_dir: Path,
        weights: Path | None = None,
        fid_dims: int = 2048,
        want_is: bool = True,
        ref_n: int = 0,
        splits: int = IS_SPLITS,
        batch: int = 100,
        more: Collection[str] = (),
        stats: Path | None = None,
        precision: str = "float32",
    ) -> None:
        self.device, self.cache_dir, self.ref_n = torch.device(device), cache_dir, ref_n
        self.want_is, self.want_fid, self.splits, self.batch = want_is, True, splits, batch
        self.log: Callable[[str], None] = print
        self.check: Callable[[], None] = lambda: None
        self.precision = precision
        if precision not in PRECISIONS:
            raise UserError(f"--fid-precision {precision}: must be one of {', '.join(PRECISIONS)}")
        able = self.device.type == "cuda" and torch.cuda.is_tf32_supported()
        if precision == "tf32" and not (able and name == "inception"):
            raise UserError(
                f"--fid-precision tf32: needs Inception on a GPU with TF32, not {name} on {self.device}; omit it"
            )
        if name == "inception":
            if fid_dims not in FID_LAYERS:
                raise UserError(f"--fid-dims {fid_dims}: must be one of {', '.join(map(str, FID_LAYERS))}")
            self.net = f"inception-{fid_dims}" + ("" if precision == "float32" else f"-{precision}")
            self.network: Inception | Compact = Inception(weights, fid_dims, want_is).to(self.device)
        elif name == "compact":
            self.net = "compact"
        else:
            raise UserError(f"--evaluator {name}: must be inception or compact")
        self.label = fid_label(self.net)
        self.more, self.stats, self.side = frozenset(more) - {"fid", "is"}, stats, 0
        self.eval_data: Dataset | None = None
        self.other: Evaluator | None = None
        if stats and name == "compact":
            raise UserError(f"--fid-stats {stats}: holds Inception features; omit it, or use --evaluator inception")
        self.given = read_stats(stats, fid_dims) if stats else None

    def use(self, dataset: Dataset) -> None:
        """Set the reference data set. UserError: too few images or, for compact, no labels."""
        size = len(dataset.images)
        if not (2 <= self.ref_n <= size or (self.ref_n == 0 and size > 1)):
            raise UserError(f"--ref-n {self.ref_n}: {dataset.name} has {size} images; use 2 to {size}, or 0 for all")
        labels = dataset.labels
        if self.net == "compact" and (labels is None or len(labels[labels >= 0].unique()) < 2):
            raise UserError(
                f"--evaluator compact: {dataset.name} needs labels of at least two classes; use one folder per "
                "class, add `labels` to the .npz, or use --evaluator inception"
            )
        self.dataset, self.ref_n = dataset, self.ref_n or size
        self.side = self.side or dataset.images.shape[-1]
        self.whole = self.side == dataset.images.shape[-1]  # not a smaller copy, of a stage of the search
        self.from_file = self.given is not None and self.whole
        self.ref = self.stats.name if self.stats and self.from_file else f"{dataset.name} {self.ref_n}"

    def prepare(self) -> None:
        """Compute the compact network and the reference statistics, or load them from the cache."""
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache folder {self.cache_dir}: {error.strerror}; choose another --data-dir") from None
        size = tuple(self.dataset.images.shape[-2:])
        if self.net == "compact":
            key = f"recipe {COMPACT_RECIPE}, data {self.dataset.digest}, size {size}"
            state = self._cached("compact", key, self._train)
            self.network = Compact(len(state["head.weight"]))
            self.network.load_state_dict(state)
            self.network.eval().requires_grad_(False).to(self.device)
            self.network.digest = _digest(state)
        if self.want_fid:
            self._prepare_reference()

    def against(self, dataset: Dataset) -> "Evaluator":
        """Once prepared: an evaluator with the same network, and all images of another data set as its reference."""
        other = copy(self)
        other.dataset, other.ref_n, other.from_file, other.other = dataset, len(dataset.images), False, None
        other.ref = f"{dataset.name} {other.ref_n}"
        other._prepare_reference()
        return other

    def _prepare_reference(self) -> None:
        if self.from_file and self.given is not None:
            key = f"version {CACHE_VERSION}, statistics {_digest(self.given)}"
            reference = self._cached("reference-given", key, self._given)
        else:
            reference = self._cached(f"reference-{self.net}", self._key(self.ref_n), self._reference)
        self.reference = {name: value.to(self.device) for name, value in reference.items()}
        if self.whole and self.more - {"fid-inf"}:  # made before hours of work, read again when they are needed
            self._real_features()

    def _key(self, images: int) -> str:
        resize, size = "no" if self.net == "compact" else "bilinear 299", tuple(self.dataset.images.shape[-2:])
        return (
            f"version {CACHE_VERSION}, data {self.dataset.digest}, size {size}, images {images}, net {self.net} "
            f"{self.network.digest}, resize {resize}, device {self.device.type}"
        ) + (f", {self.precision}" if self.device.type == "cuda" else "")  # unnamed: TF32 of earlier versions

    @property
    def features(self) -> str:
        """16 hex digits, once prepared: hash of the network's weights and the statistics of `stats`."""
        given = _digest(self.given) if self.given is not None else ""
        return hashlib.sha256(f"{self.network.digest} {given}".encode()).hexdigest()[:16]

    @torch.no_grad()
    def score(
        self, sample: Callable[[int], Tensor], n: int, rank: int = 0, world: int = 1, more: bool = False
    ) -> Score:
        """Score n generated images. Does not fail on degenerate images, but scores may be NaN.

        sample: k -> the k-th batch, uint8 (batch,3,H,W) on the device; truncated to n images in total.
        This rank computes batches rank, rank+world, ...; all ranks return the same Score. more: see `Evaluator`.
        """
        if self.want_is and n < self.splits:
            raise UserError(f"{n} images to score: the Inception Score needs at least {self.splits}, one per split")
        moments = Moments(self.network.dims, self.device)
        inception_score = InceptionScore(n, self.splits, self.network.classes, self.device) if self.want_is else None
        keep = bool(more and self.more - {"nearest"})
        kept = torch.zeros(min(n, FEATURES_KEPT) if keep else 0, self.network.dims, device=self.device)
        for k in range(rank, -(-n // self.batch), world):
            self.check()
            images = sample(k)[: n - k * self.batch]
            if images.dtype != torch.uint8 or len(images) != min(self.batch, n - k * self.batch):
                raise ValueError(
                    f"sample({k}) returned {len(images)} images of {images.dtype}, not {self.batch} of uint8"
                )
            features, logits = self._apply(images)
            moments.add(features)
            room = kept[k * self.batch : (k + 1) * self.batch]
            room.copy_(features[: len(room)])
            if inception_score and logits is not None:
                inception_score.add(logits.double().softmax(1), k * self.batch)
        if world > 1:
            moments.reduce()
            if inception_score:
                inception_score.reduce()
            if keep:
                dist.all_reduce(kept)  # each row is 0 on all ranks but one
        fid = None
        if self.want_fid:
            real = self.reference
            fid = frechet_distance(real["mean"], real["cov"], moments.mean, moments.cov, real["root"])
        is_mean, is_std = inception_score.result() if inception_score else (None, None)
        return Score(fid, is_mean, is_std, n, self.net, self.ref, self._more(kept) if keep else {})

    def _more(self, features: Tensor) -> dict[str, float]:
        """The further scores of generated images from their features, (N,D)."""
        found: dict[str, float] = {}
        if self.more & {"kid", "pr", "dc"}:
            real = self._real_features().to(self.device)
            if "kid" in self.more:
                found["kid"], found["kid_se"] = scores.kid(real, features)
            if self.more & {"pr", "dc"}:
                values = scores.neighbourhoods(real, features)
                wanted = ("precision", "recall") * ("pr" in self.more) + ("density", "coverage") * ("dc" in self.more)
                found |= {name: values[name] for name in wanted}
        if "fid-inf" in self.more:
            found["fid_inf"] = self._fid_infinity(features)
        return found

    def _fid_infinity(self, features: Tensor) -> float:
        sizes, values, real = scores.sizes_of_fid(*features.shape), [], self.reference
        for n in sizes:
            self.check()
            moments = Moments(features.shape[1], self.device)
            order = torch.randperm(len(features), generator=stream(0, "fid-inf", n))[:n]
            for pick in order.to(self.device).split(1000):
                moments.add(features[pick])
            values.append(frechet_distance(real["mean"], real["cov"], moments.mean, moments.cov, real["root"]))
        return scores.at_infinity(sizes, values)

    @torch.no_grad()
    def nearest(self, images: Tensor, k: int) -> Tensor:
        """Each of uint8 images (N,3,H,W), and the k real images with the nearest features: uint8 (N,k+1,3,H,W)."""
        features = self._apply(images.to(self.device))[0]
        _, found = scores.nearest(features, self._real_features().to(self.device), k)
        real = self.dataset.images[self._order(FEATURES_KEPT)[found.cpu()]]
        return torch.cat([images.cpu()[:, None], real], 1)

    def _apply(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        tf32 = self.precision == "tf32"
        with torch.autocast(self.device.type, enabled=False), convolutions_in_tf32(tf32):  # even inside a bf16 step
            return self.network(images)

    def _train(self) -> dict[str, Tensor]:
        assert self.dataset.labels is not None  # see use()
        labelled = self.dataset.labels >= 0
        images, labels = self.dataset.images[labelled], self.dataset.labels[labelled].unique(return_inverse=True)[1]
        self.log(f"compact network: training on {self.dataset.name}; cached in {self.cache_dir}")
        return train_compact(images, labels, self.device, self.log, self.check).cpu().state_dict()

    @torch.no_grad()
    def _reference(self) -> dict[str, Tensor]:
        start = time.monotonic()
        moments = Moments(self.network.dims, self.device)
        for features in self._of_real("reference statistics", self._order(self.ref_n)):
            moments.add(features)
        root = matrix_root(moments.cov)
        self.log(f"reference statistics: {self.ref}, {self.net}, {time.monotonic() - start:.0f} s")
        return {"mean": moments.mean.cpu(), "cov": moments.cov.cpu(), "root": root.cpu()}

    def _order(self, n: int) -> Tensor:
        """Indices of the first n real images of the reference."""
        order = torch.arange(self.ref_n)
        if self.ref_n < len(self.dataset.images) or n < self.ref_n:
            order = torch.randperm(len(self.dataset.images), generator=stream(0, "reference"))[: self.ref_n]
        return order[:n]

    def _of_real(self, what: str, order: Tensor) -> Iterator[Tensor]:
        """Features of real images, a batch at a time. what: for the log."""
        start = said = time.monotonic()
        for done, pick in enumerate(order.split(self.batch)):
            self.check()
            yield self._apply(self.dataset.images[pick].to(self.device))[0]
            if time.monotonic() - said > 10:
                said, n = time.monotonic(), done * self.batch + len(pick)
                left = (said - start) * (len(order) / n - 1)
                self.log(f"{what}: {n} of {len(order)} images, {left:.0f} s left")

    def _given(self) -> dict[str, Tensor]:
        assert self.given is not None  # see __init__
        return {**self.given, "root": matrix_root(self.given["cov"])}

    @torch.no_grad()
    def _real_features(self) -> Tensor:
        """Features of at most FEATURES_KEPT real images, (N,D) float32 on the CPU."""
        n = min(self.ref_n, FEATURES_KEPT)

        def make() -> dict[str, Tensor]:
            size = f"{n * self.network.dims * 4 / 1e6:.0f} MB"
            self.log(f"features: {n:,} x {self.network.dims} of {self.dataset.name}, {size} in {self.cache_dir}")
            return {"features": torch.cat([x.cpu() for x in self._of_real("features", self._order(n))])}

        return self._cached(f"features-{self.net}", f"features, {self._key(n)}", make)["features"]

    def _cached(self, kind: str, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = self.cache_dir / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
        if path.exists():
            try:
                stored = load_tensors(path)
                if stored["key"] != key:
                    raise ValueError("created for other data")
                return stored["tensors"]
            except Exception as error:  # truncated, overwritten, or not ours: recompute
                self.log(f"{path}: cannot be used ({first_line(error)}); computing it again")
        try:  # before hours of work
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.cache_dir).close()
        except OSError as error:
            self.log(
                f"{self.cache_dir}: cannot be written ({error.strerror}); {kind} will be computed for this run alone"
            )
            return make()
        tensors = make()
        try:
            with replacing(path) as temporary:
                torch.save({"key": key, "tensors": tensors}, temporary)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
            self.log(f"{path}: cannot be written ({first_line(error)}); {kind} is not kept for other runs")
        return tensors


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


# ---- python -m common.metrics --------------------------------------------------------------------


def compare(a: str, b: str, options: dict[str, Any], data_dir: Path, device: str = "auto") -> Score:
    """Score the images of `a` against those of `b`; on either side, an .npz with mu and sigma gives its FID alone.

    Folders, .zip, .npz and the data sets' names are read as by --dataset. options: of Evaluator. UserError: no images,
    two sizes of images, scores of images where there are only statistics."""
    where = start_ranks(device).device
    if is_stats(a) and not is_stats(b):
        a, b = b, a  # the same FID
    given = is_stats(b)
    images_only = set(options.get("more", ())) - ({"fid"} if is_stats(a) else {"fid", "is", "fid-inf"})
    if given and images_only:
        raise UserError(f"--metrics {','.join(sorted(images_only))}: {b} has no images, only mu and sigma; omit it")
    if is_stats(a):
        one, two = (read_stats(Path(x), options["fid_dims"]) for x in (a, b))
        fid = frechet_distance(one["mean"], one["cov"], two["mean"], two["cov"])
        return Score(fid, None, None, 0, f"inception-{options['fid_dims']}", b)
    images = load_dataset(a, data_dir)
    evaluator = Evaluator(device=where, cache_dir=data_dir / "cache", stats=Path(b) if given else None, **options)
    reference = images if given else load_dataset(b, data_dir)
    if reference.images.shape[-1] != images.images.shape[-1]:
        sides = f"{images.images.shape[-1]} and {reference.images.shape[-1]} px"
        raise UserError(f"{a}, {b}: images of {sides}; resize one of them, as FIDs depend on how")
    evaluator.use(reference)
    evaluator.prepare()

    def batch(k: int) -> Tensor:
        return images.images[k * evaluator.batch : (k + 1) * evaluator.batch].to(where)

    return evaluator.score(batch, len(images.images), more=True)


def metrics_of(text: str, known: Collection[str] = METRICS) -> list[str]:
    """The names in --metrics. UserError: one of them is not a metric."""
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--metrics {text}: {unknown[0]!r} is none of {', '.join(known)}; omit it")
    return names


def is_stats(path: str) -> bool:
    """Whether it is an .npz that holds statistics, not images."""
    try:
        with np.load(Path(path), allow_pickle=False) as arrays:
            return {"mu", "sigma"} <= set(arrays)
    except Exception:  # the loader of images says what is wrong with it
        return False


def main() -> None:
    known = [name for name in METRICS if name != "nearest"]  # a picture
    parser = argparse.ArgumentParser(description="Score images against others: folders, .zip, .npz or statistics.")
    parser.add_argument("a", metavar="A", help="images to score, or an .npz with their mu and sigma")
    parser.add_argument("b", metavar="B", help="images to compare with, or an .npz with their mu and sigma")
    parser.add_argument("--metrics", help=f"any of {', '.join(known)}; default: fid,is, of statistics alone fid")
    parser.add_argument("--evaluator", choices=("inception", "compact"), default="inception")
    parser.add_argument("--inception-weights", type=Path, help="weights file; default: download")
    parser.add_argument("--fid-dims", choices=("64", "192", "768", "2048"), default="2048")
    parser.add_argument("--fid-precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="directory of cached statistics")
    parser.add_argument("--device", default="auto")
    show_anything()
    asked = parser.parse_args()
    usual = "fid" if is_stats(asked.a) and is_stats(asked.b) else "fid,is"
    try:
        more = metrics_of(asked.metrics or usual, known)
        options = {"name": asked.evaluator, "weights": asked.inception_weights, "fid_dims": int(asked.fid_dims)}
        options |= {"more": more, "want_is": "is" in more, "precision": asked.fid_precision}
        found = compare(asked.a, asked.b, options, asked.data_dir, asked.device)
    except UserError as e:
        sys.exit(f"error: {e}")
    print(found)
    print(json.dumps(finite({**found.result(), "n": found.n, "net": found.net, "ref": found.ref})))


if __name__ == "__main__":
    main()
