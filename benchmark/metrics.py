"""Benchmark common/metrics.py and common/scores.py: Frechet distance against pytorch-fid's, images per second of both
networks, and what KID, precision, recall, density and coverage take of Inception's own time.

python -m benchmark.metrics [--weights FILE] [--images 50000]
    FILE: pytorch-fid's Inception weights, complete or up to Mixed_6e
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from common.files import stream
from common.metrics import Compact, Inception, frechet_distance, matrix_root
from common.scores import kid, neighbourhoods


def seconds(work: Callable[[], object], device: str, repeat: int = 3) -> float:
    """Shortest time of `repeat` calls, in seconds."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def statistics(dims: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of 2 * dims random features, correlated and non-negative like Inception's."""
    random = stream(seed, "benchmark", dims)
    mixing = torch.randn(dims, dims, dtype=torch.float64, generator=random) / dims**0.5
    x = (torch.randn(2 * dims, dims, dtype=torch.float64, generator=random) @ mixing + 0.1 * seed).relu()
    return x.mean(0), x.T.cov()


def frechet_rows(table: Table, dims: int, device: str) -> None:
    """Time the Frechet distance: pytorch-fid's, ours, and ours with a cached root."""
    from pytorch_fid.fid_score import calculate_frechet_distance

    real, fake = statistics(dims, 0), statistics(dims, 1)
    theirs = []
    numpy = [part.numpy() for part in (*real, *fake)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from scipy, because of pytorch-fid's sqrtm call
        slow = seconds(lambda: theirs.append(calculate_frechet_distance(*numpy)), "cpu", repeat=1)
    table.add_row(f"Frechet distance {dims}, pytorch-fid", f"{slow:.2f} s", "1.0", "")
    ours = [part.to(device) for part in (*real, *fake)]
    root = matrix_root(ours[1])
    for name, cached in (("ours", None), ("ours, cached root", root)):
        fast = seconds(lambda cached=cached: frechet_distance(*ours, cached), device)
        difference = abs(frechet_distance(*ours, cached) / theirs[0] - 1)
        table.add_row(f"Frechet distance {dims}, {name}", f"{fast:.2f} s", f"{slow / fast:.1f}", f"{difference:.0e}")


def network_row(table: Table, name: str, net: nn.Module, batch: int, device: str) -> float:
    """Time one network on uint8 images of 32x32 pixels; returns images per second."""
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=stream(0)).to(device)
    net.eval().to(device)
    with torch.no_grad():
        net(images)
        rate = batch / seconds(lambda: net(images), device)
    table.add_row(f"{name}, batch {batch}", f"{rate:,.0f} images/s", "", "")
    return rate


def score_rows(table: Table, n: int, rate: float | None, device: str) -> None:
    """Time the further scores of n real and n generated images, from features of 2,048 dimensions.

    rate: images per second of Inception; its time for n images is computed from it, not measured.
    """
    real, fake = (torch.randn(n, 2048, generator=stream(0, "features", i)).relu().to(device) for i in range(2))
    for name, score in (("KID", kid), ("precision, recall, density, coverage", neighbourhoods)):
        spent = seconds(lambda score=score: score(real, fake), device, repeat=1)
        share = f"; {spent * rate / n:.1%} of Inception's time" if rate else ""
        table.add_row(f"{name} of 2 x {n:,} images", f"{spent:.1f} s{share}", "", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="Inception weights; omit to skip Inception")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--images", type=int, default=50_000, help="number of images of the further scores")
    asked = parser.parse_args()
    table = Table(title=f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    for column in ("what", "measured", "times as fast", "relative difference"):
        table.add_column(column, no_wrap=True)
    for dims in (768, 2048):
        frechet_rows(table, dims, device)
    rate = None
    if asked.weights:
        rate = network_row(table, "Inception, 768 features", Inception(asked.weights, 768, False), 20, device)
    network_row(table, "compact", Compact(10), 500, device)
    score_rows(table, asked.images, rate, device)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
