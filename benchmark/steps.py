"""Benchmark the training and search loops: G updates per second and peak memory, by default at the papers' widths.

python -m benchmark.steps [METHOD ...]     prints a Markdown table, row by row

Each row runs the `main` of a script with these flags on the built-in images, with a stopwatch instead of the run
directory, and without scoring.
"""

import argparse
import gc
import importlib
import time
from collections.abc import Callable
from statistics import median
from types import ModuleType
from unittest.mock import MagicMock, patch

import torch

import common.ranks
from common.metrics import Score
from common.ranks import device_name, start_ranks

REPEATS = 5
ROWS = {  # method: {loop: flags}
    "eagan": {
        "training": {"phase": "train", "genotype": "eagan-g"},
        "stage 1": {"phase": "search", "stages": "g"},
        "stage 2": {"phase": "search", "stages": "d", "genotype": "eagan-g"},
    },
    "adversarialnas": {
        "training": {"phase": "train", "genotype": "adversarialnas-g"},
        "search": {"phase": "search"},
        "search, plain": {"phase": "search", "mixed": "plain"},
    },
    "autogan": {
        "training": {"phase": "train", "genotype": "A"},
        "shared GAN, 32 px": {"phase": "search", "search": "slas"},
    },
    "degas": {
        "training": {"phase": "train", "genotype": "baseline"},
        "search": {"phase": "search"},
    },
}

GRAPHS = {("adversarialnas", "search"), ("degas", "search")}  # with --graph, besides all trainings


class Measured(BaseException):
    """Raised when enough steps have been timed."""


def stopwatch(device: torch.device, seconds: float, rates: list[float]) -> Callable[..., None]:
    """Replacement for Run.tick, which every loop calls; appends the G updates/s of REPEATS intervals to `rates`.

    The intervals take `seconds` in total, after a warm-up of half that time and at least three steps.
    """
    since, per_stretch = [], 0

    def tick(step: int, *_upcoming: str) -> None:
        nonlocal per_stretch
        warm = per_stretch > 0
        if (since and step == since[-1][0]) or (warm and step < since[-1][0] + per_stretch):
            return
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        since.append((step, time.perf_counter()))
        (before, began), (now, ended) = since[-2] if len(since) > 1 else since[0], since[-1]
        if warm:
            rates.append((now - before) / (ended - began))
            if len(rates) == REPEATS:
                raise Measured
        elif len(since) > 3 and ended - since[0][1] >= seconds / 2:
            per_stretch = max(1, round(seconds / REPEATS / (ended - began) * (now - before)))

    return tick


def measure(script: ModuleType, args: object, device: torch.device, seconds: float) -> list[float]:
    """G updates/s of script.main(args) in each of REPEATS intervals."""
    rates: list[float] = []
    run, evaluator = MagicMock(), MagicMock(batch=100, label="FID")
    run.__enter__.return_value = run
    run.tick.side_effect = stopwatch(device, seconds, rates)
    evaluator.score.return_value = Score(1.0, 1.0, 0.1, 100, "none", "none")
    with patch.object(script, "Run", return_value=run), patch.object(script, "Evaluator", return_value=evaluator):
        try:
            script.main(args)
        except Measured:
            return rates
    raise RuntimeError(f"{script.__name__} ended before {REPEATS} intervals were timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"any of {', '.join(ROWS)}; default: all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0, help="measuring time per row")
    parser.add_argument("--preset", default="paper", help="widths and batch sizes: paper, quick or smoke")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="add rows with compile and graph; default: on CUDA",
    )
    asked = parser.parse_args()
    if unknown := set(asked.methods) - set(ROWS):
        parser.error(f"{', '.join(unknown)}: unknown method; use {', '.join(ROWS)}")

    device = start_ranks(asked.device).device
    cuda = device.type == "cuda"
    common.ranks.PROBE_SECONDS = 0.0
    float32 = "fp32 (TF32 convolutions)" if cuda and torch.backends.cudnn.allow_tf32 else "fp32"
    print(f"{device_name(device)}, torch {torch.__version__}", end=f", CUDA {torch.version.cuda}\n" if cuda else "\n")
    print(f"widths and batch sizes of --preset {asked.preset}; 32 px; median (range)\n")
    widths = (14, 17, 24, 22, 14)
    head = ("method", "loop", "precision", "G updates/s", "peak memory GB")
    print("| " + " | ".join(f"{text:{w}}" for text, w in zip(head, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (w + 2) for w in widths) + "|", flush=True)
    for method in asked.methods or ROWS:
        script = importlib.import_module(method)
        for row, flags in ROWS[method].items():
            ways = {float32: {}, "amp (bf16)": {"amp": True}}
            if row == "training" and (cuda if asked.compile is None else asked.compile):
                ways["amp + compile"] = {"amp": True, "compile": True}
            if cuda and asked.compile is not False and (row == "training" or (method, row) in GRAPHS):
                ways |= {"graph": {"graph": True}, "amp + graph": {"amp": True, "graph": True}}
            for way, more in ways.items():
                gc.collect()  # free the memory of the previous row
                torch.compiler.reset()
                if cuda:
                    torch.cuda.reset_peak_memory_stats(device)
                base = {"dataset": "shapes", "evaluator": "compact", "device": asked.device, "amp": False}
                args = script.Args(**{**script.PRESETS[asked.preset], **base, **flags, **more})
                rates = measure(script, args, device, asked.seconds)
                rate = f"{median(rates):.3g} ({min(rates):.3g}-{max(rates):.3g})"
                memory = f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}" if cuda else "-"
                cells = (method, row, way, rate, memory)
                print(
                    "| " + " | ".join(f"{text:{w}}" for text, w in zip(cells, widths, strict=True)) + " |", flush=True
                )


if __name__ == "__main__":
    main()
