"""Benchmark common/metrics.py and common/scores.py: Frechet distance against pytorch-fid's, images per second of both
networks, and what KID, precision, recall, density and coverage take of Inception's own time.

python -m benchmark.metrics [--weights FILE] [--images 50000]
    FILE: pytorch-fid's Inception weights, complete or up to Mixed_6e
python -m benchmark.metrics --weights FILE --precisions DATASET [--fid-dims 768] [--images 2000]
    instead: Inception's images per second in each precision, and how much each moves the FID of so many images of
    DATASET against as many others of it, as they are and with noise. A CPU has no TF32: its operands are made by hand.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from common.data import load_dataset
from common.files import stream
from common.metrics import FID_LAYERS, Compact, Inception, Moments, convolutions_in_tf32, frechet_distance, matrix_root
from common.scores import kid, neighbourhoods

NOISE = 32  # standard deviation, of pixels in 0..255


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


def tf32_operands(net: Inception, half: int) -> Inception:
    """A copy of net whose convolutions see inputs and weights of TF32's 10 explicit bits, accumulated in float32.

    half: 0x1000 rounds to nearest, as CUDA's conversion does; 0 cuts the bits off, as a tensor core does without it.
    """

    def short(x: Tensor) -> Tensor:
        return ((x.view(torch.int32) + half) & ~0x1FFF).view(torch.float32)

    net = deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = short(module.weight)
            module.register_forward_pre_hook(lambda _, x: (short(x[0]),))
    return net


def precision_rows(table: Table, dataset: str, net: Inception, n: int, device: str) -> None:
    """FID of n images of a data set against n others, with and without noise, in each precision of the network."""
    images = load_dataset(dataset, Path("data")).images
    if len(images) < 2 * n:
        raise SystemExit(f"--images {n}: {dataset} has {len(images)}, fewer than twice as many; lower it")
    real, others = images[torch.randperm(len(images), generator=stream(0, "precisions"))[: 2 * n]].split(n)
    noisy = (others + NOISE * torch.randn(others.shape, generator=stream(0, "noise"))).clamp(0, 255).to(torch.uint8)
    sides, size = {"": others, f", noise of {NOISE}": noisy}, 100 if device == "cuda" else 20
    net = net.to(device)
    ways = {"float32": (net, False, False), "bf16": (net, False, True)}
    if device == "cuda":
        ways["tf32"] = (net, True, False)
    else:
        ways["tf32, rounded by hand"] = (tf32_operands(net, 0x1000), False, False)
        ways["tf32, cut by hand"] = (tf32_operands(net, 0), False, False)
    exact: dict[str, float] = {}
    for way, (network, tf32, autocast) in ways.items():

        def moments(images: Tensor, network: Inception = network, autocast: bool = autocast) -> Moments:
            found = Moments(network.dims, device)
            for batch in images.split(size):
                with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=autocast):
                    found.add(network(batch.to(device))[0])
            return found

        with convolutions_in_tf32(tf32):
            moments(real[:200])
            began = time.perf_counter()
            reference = moments(real)
            if device == "cuda":
                torch.cuda.synchronize()
            rate = "" if "hand" in way else f"{n / (time.perf_counter() - began):,.0f} images/s"
            for name, side in sides.items():
                found = moments(side)
                fid = frechet_distance(reference.mean, reference.cov, found.mean, found.cov)
                moved = fid / exact.setdefault(name, fid) - 1
                table.add_row(f"FID-{network.dims}{name}, {way}", f"{fid:.5f}", rate, f"{moved:+.4%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="Inception weights; omit to skip Inception")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--images", type=int, help="number of images; default: 50,000, of --precisions 2,000")
    parser.add_argument("--precisions", metavar="DATASET", help="compare Inception's precisions on its images")
    parser.add_argument("--fid-dims", type=int, choices=tuple(FID_LAYERS), default=768, help="of --precisions")
    asked = parser.parse_args()
    if asked.precisions and not asked.weights:
        parser.error("--precisions: pass Inception's weights with --weights")
    table = Table(title=f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    speed = "speed" if asked.precisions else "times as fast"
    for column in ("what", "measured", speed, "relative difference"):
        table.add_column(column, no_wrap=True)
    if asked.precisions:
        net = Inception(asked.weights, asked.fid_dims, False)
        precision_rows(table, asked.precisions, net, asked.images or 2000, device)
        Console(width=140).print(table)
        return
    for dims in (768, 2048):
        frechet_rows(table, dims, device)
    rate = None
    if asked.weights:
        rate = network_row(table, "Inception, 768 features", Inception(asked.weights, 768, False), 20, device)
    network_row(table, "compact", Compact(10), 500, device)
    score_rows(table, asked.images or 50_000, rate, device)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
