"""Scores of generated images beyond FID and IS: pure functions of feature arrays. docs/metrics.md explains them.

All of them return NaN, and raise nothing, for too few images and for features that are not finite.
"""

from collections.abc import Iterator
from math import inf, nan

import torch
from torch import Tensor

from common.files import stream

TILE = 1024  # rows and columns of a distance matrix at a time: 4 MB, which a CPU's cache holds
KID_SUBSET = 1000  # images of a subset [Binkowski et al.]
KID_SUBSETS = 10  # at least: smaller subsets where there are few images
PR_NEIGHBOURS, DC_NEIGHBOURS = 3, 5  # [Kynkäänniemi et al.], [Naeem et al.]
FID_SIZES = 15  # points of the line of FID∞ [Chong & Forsyth]


def mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y/D + 1)^3 of features (M,D) and (N,D), 2 or more
    each; may be negative. [Binkowski et al. 2018, arXiv:1801.01401]"""
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def own(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (len(a) * (len(a) - 1))

    return (own(x) + own(y) - 2 * kernel(x, y).mean()).item()


def kid(x: Tensor, y: Tensor, size: int = KID_SUBSET) -> tuple[float, float]:
    """Kernel Inception Distance of features (M,D) and (N,D): mean of `mmd2` over disjoint random subsets, and its
    standard error. Subsets of `size` images, fewer if there would not be 10 of them; NaN below 20 images."""
    size = min(size, min(len(x), len(y)) // KID_SUBSETS)
    if size < 2 or not (x.isfinite().all() and y.isfinite().all()):
        return nan, nan
    x, y = (a[torch.randperm(len(a), generator=stream(0, "kid", i)).to(a.device)] for i, a in enumerate((x, y)))
    pairs = zip(x.split(size), y.split(size), strict=False)
    found = torch.tensor([mmd2(a, b) for a, b in pairs if len(a) == len(b) == size], dtype=torch.float64)
    return found.mean().item(), (found.std() / len(found) ** 0.5).item()


def squared_distances(x: Tensor, y: Tensor, own: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances of features (M,D) and (N,D), a tile at a time: rows, columns, and the (m,n) float32 of them.

    Those below what float32 can tell from 0 are 0, so that equal images have none. own: y is x, and a tile stands for
    its mirror image, too.
    """
    xx, yy = x.square().sum(1), y.square().sum(1)
    for i in range(0, len(x), TILE):
        for j in range(i if own else 0, len(y), TILE):
            rows, columns = slice(i, i + TILE), slice(j, j + TILE)
            scale = xx[rows, None] + yy[columns]
            d = torch.addmm(scale, x[rows], y[columns].T, alpha=-2)
            yield rows, columns, d.masked_fill_(d <= scale.mul_(2e-6), 0)


def radii(x: Tensor, *neighbours: int) -> list[Tensor]:
    """Squared distances of each of x, (N,D), to its k-th nearest other one, for each k of `neighbours`: (N,)."""
    k = max(neighbours)
    found = x.new_full((len(x), k), inf)  # the k smallest so far, in ascending order

    def add(rows: slice, d: Tensor) -> None:
        new = d.topk(min(k, d.shape[1]), largest=False).values
        found[rows] = torch.cat([found[rows], new], 1).topk(k, largest=False).values

    for rows, columns, d in squared_distances(x, x, own=True):
        if rows == columns:
            d.fill_diagonal_(inf)
        else:
            add(columns, d.T)
        add(rows, d)
    return [found[:, k - 1] for k in neighbours]


def neighbourhoods(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Improved precision and recall (k=3), density and coverage (k=5) of features (N,D) and (M,D).

    precision, recall, coverage: 0 to 1; density: 0 or more. [Kynkäänniemi et al. 2019, arXiv:1904.06991; Naeem et al.
    2020, arXiv:2002.09797]
    """
    names = ("precision", "recall", "density", "coverage")
    few = min(len(real), len(fake)) <= DC_NEIGHBOURS
    if few or not (real.isfinite().all() and fake.isfinite().all()):
        return dict.fromkeys(names, nan)
    centre = real.mean(0, dtype=torch.float64)  # distances do not change, and float32 loses fewer digits
    real, fake = ((x.double() - centre).float() for x in (real, fake))
    real_pr, real_dc = radii(real, PR_NEIGHBOURS, DC_NEIGHBOURS)
    (fake_pr,) = radii(fake, PR_NEIGHBOURS)
    inside = torch.zeros(len(real), device=real.device)  # fakes in the ball of a real image
    precise, recalled = (torch.zeros(len(x), dtype=torch.bool, device=x.device) for x in (fake, real))
    for rows, columns, d in squared_distances(real, fake):  # one pass for all
        precise[columns] |= (d <= real_pr[rows, None]).any(0)
        recalled[rows] |= (d <= fake_pr[columns]).any(1)
        inside[rows] += (d <= real_dc[rows, None]).sum(1)
    density = inside.double().mean() / DC_NEIGHBOURS * len(real) / len(fake)
    values = (precise.double().mean(), recalled.double().mean(), density, (inside > 0).double().mean())
    return {name: value.item() for name, value in zip(names, values, strict=True)}


def nearest(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of y, (N,D), to each of x, (M,D): distances (M,k) in ascending order, and indices (M,k)."""
    centre = y.mean(0, dtype=torch.float64)
    x, y = ((a.double() - centre).float() for a in (x, y))
    rows = [torch.cat([d for *_, d in squared_distances(part, y)], 1) for part in x.split(TILE)]
    found = [d.nan_to_num(inf).topk(min(k, len(y)), largest=False) for d in rows]
    return torch.cat([f.values for f in found]).sqrt(), torch.cat([f.indices for f in found])


def sizes_of_fid(n: int, dims: int) -> list[int]:
    """Numbers of images at which the FID is computed for FID∞: 15, from n/10 to n; none where the smallest would not
    exceed twice the dimensions of the features, below which the FID is no straight line in 1/N."""
    low = max(n // 10, 2 * dims)
    return [round(low + (n - low) * i / (FID_SIZES - 1)) for i in range(FID_SIZES)] if n >= 2 * low else []


def at_infinity(sizes: list[int], values: list[float]) -> float:
    """Where the line through (1/size, value), by least squares, meets 1/size = 0; NaN for fewer than two sizes.
    [Chong & Forsyth 2020, arXiv:1911.07023]"""
    x, y = 1 / torch.tensor(sizes, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    if len(set(sizes)) < 2:
        return nan
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() - slope * x.mean()).item()
