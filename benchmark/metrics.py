"""Benchmark common/metrics.py: Frechet distance against pytorch-fid's, and images per second of both networks.

python -m benchmark.metrics [--weights FILE]     (FILE: pytorch-fid's Inception weights, complete or up to Mixed_6e)
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


def network_row(table: Table, name: str, net: nn.Module, batch: int, device: str) -> None:
    """Time one network on uint8 images of 32x32 pixels."""
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=stream(0)).to(device)
    net.eval().to(device)
    with torch.no_grad():
        net(images)
        rate = batch / seconds(lambda: net(images), device)
    table.add_row(f"{name}, batch {batch}", f"{rate:,.0f} images/s", "", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="Inception weights; omit to skip Inception")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = parser.parse_args().weights
    table = Table(title=f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    for column in ("what", "measured", "times as fast", "relative difference"):
        table.add_column(column, no_wrap=True)
    for dims in (768, 2048):
        frechet_rows(table, dims, device)
    if weights:
        network_row(table, "Inception, 768 features", Inception(weights, 768, False), 20, device)
    network_row(table, "compact", Compact(10), 500, device)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
