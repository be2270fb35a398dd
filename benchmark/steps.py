"""Benchmark the training and search loops: G updates per second and peak memory, by default at the papers' widths.

python -m benchmark.steps [METHOD ...]     prints a Markdown table, row by row

Each row runs the `main` of a script with these flags on the built-in images, with a stopwatch instead of the run
directory, and without scoring.

--profile adds, of a G update on a GPU: launches of kernels, copies and fills (a graph is one), milliseconds of the GPU,
and waits: operations of which torch says that they let the CPU wait. Their places in the code follow the table.
"""

import argparse
import gc
import importlib
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
WAYS = {  # name: flags, and settings of cuDNN
    "fp32": ({}, {}),  # on a GPU TF32 in convolutions, torch's default
    "tf32-off": ({}, {"allow_tf32": False}),
    "cudnn-benchmark": ({}, {"benchmark": True}),
    "amp": ({"amp": True}, {}),
    "amp-compile": ({"amp": True, "compile": True}, {}),
    "graph": ({"graph": True}, {}),
    "amp-graph": ({"amp": True, "graph": True}, {}),
}
LONG = {"epoch_batches": 10_000, "search_epochs": 10_000, "iters": 10**6}  # where a preset is short: no loop ends early
PROFILED = 2  # G updates under the profiler


class Measured(BaseException):
    """Raised when enough steps have been timed."""


class Profile:
    """Called with the step once all is timed: profiles PROFILED G updates, then raises Measured.

    Of a G update: launches; busy, milliseconds of the GPU; waits, by place in the code.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stack, self.first = device, ExitStack(), -1
        self.launches, self.busy, self.waits = 0.0, 0.0, Counter[str]()

    def __call__(self, step: int) -> None:
        if self.first < 0:
            self.first, cuda = step, self.device.type == "cuda"
            activity = torch.profiler.ProfilerActivity
            self.seen = self.stack.enter_context(warnings.catch_warnings(record=True))
            warnings.filterwarnings("always", message="called a synchronizing CUDA operation")
            self.profiler = torch.profiler.profile(activities=[activity.CUDA if cuda else activity.CPU])
            self.stack.enter_context(self.profiler)
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")
                self.stack.callback(torch.cuda.set_sync_debug_mode, "default")
        elif (n := step - self.first) >= PROFILED:
            self.stack.close()
            for event in self.profiler.key_averages():
                self.launches += event.count / n * bool(re.match("cu(da)?(Graph)?Launch|cudaMem(cpy|set)", event.key))
                if event.device_type == torch.autograd.DeviceType.CUDA:
                    self.busy += event.self_device_time_total / n / 1e3
            for warning in self.seen:
                if "called a synchronizing" in str(warning.message):
                    self.waits[f"{warning.filename}:{warning.lineno}"] += 1 / n
            raise Measured


def enough(_step: int) -> None:
    raise Measured


def stopwatch(
    device: torch.device, seconds: float, rates: list[float], then: Callable[[int], None] = enough
) -> Callable[..., None]:
    """Replacement for Run.tick, which every loop calls; appends the G updates/s of REPEATS intervals to `rates`.

    The intervals take `seconds` in total, after a warm-up of half that time and at least three steps. From then on,
    `then` is called with the step; it raises Measured.
    """
    since, per_stretch = [], 0

    def tick(step: int, *_upcoming: str) -> None:
        nonlocal per_stretch
        if len(rates) == REPEATS:
            return then(step)
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
                then(step)
        elif len(since) > 3 and ended - since[0][1] >= seconds / 2:
            per_stretch = max(1, round(seconds / REPEATS / (ended - began) * (now - before)))

    return tick


def measure(
    script: ModuleType, args: object, device: torch.device, seconds: float, profile: Profile | None = None
) -> list[float]:
    """G updates/s of script.main(args) in each of REPEATS intervals. profile: filled in after them."""
    rates: list[float] = []
    run, evaluator = MagicMock(), MagicMock(batch=100, label="FID")
    run.__enter__.return_value = run
    run.tick.side_effect = stopwatch(device, seconds, rates, *([profile] if profile else []))
    evaluator.score.return_value = Score(1.0, 1.0, 0.1, 100, "none", "none")
    with patch.object(script, "Run", return_value=run), patch.object(script, "Evaluator", return_value=evaluator):
        try:
            script.main(args)
        except Measured:
            return rates
    raise RuntimeError(f"{script.__name__} ended before {REPEATS} intervals were timed")


def long_preset(script: ModuleType, preset: str) -> dict:
    """Flags of a preset, with loops long enough to be timed."""
    flags = script.PRESETS[preset]
    return {**flags, **{name: value for name, value in LONG.items() if name in flags}}


def ways_of(method: str, loop: str, cuda: bool, asked: argparse.Namespace) -> list[str]:
    """The rows of a loop: those asked for that it can have."""
    training = loop == "training"
    graph = cuda and (training or (method, loop) in GRAPHS)
    able = {"fp32": True, "amp": True, "amp-compile": training, "graph": graph, "amp-graph": graph}
    able |= {"tf32-off": cuda, "cudnn-benchmark": cuda}
    usual = ["fp32", "amp"]
    usual += ["amp-compile"] if asked.compile or (asked.compile is None and cuda) else []
    usual += [] if asked.compile is False else ["graph", "amp-graph"]
    return [way for way in asked.ways or usual if able[way]]


def print_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    print("| " + " | ".join(f"{text:{w}}" for text, w in zip(cells, widths, strict=True)) + " |", flush=True)


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
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="these rows alone, where a loop has them")
    parser.add_argument("--profile", action="store_true", help="add launches, busy GPU and waits of an update")
    asked = parser.parse_args()
    if unknown := set(asked.methods) - set(ROWS):
        parser.error(f"{', '.join(unknown)}: unknown method; use {', '.join(ROWS)}")

    device = start_ranks(asked.device).device
    cuda = device.type == "cuda"
    common.ranks.PROBE_SECONDS = 0.0
    print(f"{device_name(device)}, torch {torch.__version__}", end=f", CUDA {torch.version.cuda}\n" if cuda else "\n")
    fp32 = "; fp32: TF32 in convolutions" if cuda and torch.backends.cudnn.allow_tf32 else ""
    print(f"widths and batch sizes of --preset {asked.preset}; 32 px; median (range){fp32}\n")
    head = ["method", "loop", "way", "G updates/s", "peak memory GB"]
    head += ["launches", "busy ms", "waits"] if asked.profile else []
    widths = (14, 17, 15, 22, 14, 8, 8, 5)[: len(head)]
    print_row(head, widths)
    print("|" + "|".join("-" * (w + 2) for w in widths) + "|", flush=True)
    waits: Counter[str] = Counter()
    for method in asked.methods or ROWS:
        script = importlib.import_module(method)
        for loop, flags in ROWS[method].items():
            if asked.ways and "mixed" in flags:  # slow, and only to compare with
                continue
            for way in ways_of(method, loop, cuda, asked):
                gc.collect()  # free the memory of the previous row
                torch.compiler.reset()
                if cuda:
                    torch.cuda.reset_peak_memory_stats(device)
                base = {"dataset": "shapes", "evaluator": "compact", "device": asked.device, "amp": False}
                more, settings = WAYS[way]
                args = script.Args(**{**long_preset(script, asked.preset), **base, **flags, **more})
                profile = Profile(device) if asked.profile else None
                with torch.backends.cudnn.flags(enabled=True, **settings):
                    rates = measure(script, args, device, asked.seconds, profile)
                rate = f"{median(rates):.3g} ({min(rates):.3g}-{max(rates):.3g})"
                memory = f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}" if cuda else "-"
                cells = [method, loop, way, rate, memory]
                if profile:
                    found = (f"{profile.launches:,.0f}", f"{profile.busy:.1f}", f"{profile.waits.total():.1f}")
                    cells += found if cuda else "---"
                    waits |= {f"{place}, {method} {loop}": n for place, n in profile.waits.items()}
                print_row(cells, widths)
    for place, n in waits.most_common():
        print(f"waits: {place}: {n:.1f} a G update")


if __name__ == "__main__":
    main()
