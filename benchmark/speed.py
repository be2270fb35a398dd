"""Compare each loop with a plain version of itself: speed, operations, peak memory, share of the peak rate.

python -m benchmark.speed [METHOD ...]     prints a Markdown table, row by row; --json FILE appends the rows to a file

Plain is what a careful reader would write first: eager, float32, NCHW, one module per operation, torch's spectral norm,
Adam without fusion. All versions run by turns in one process; "ours, amp" is ours with --amp. Operations: those that
torch dispatches in a G update, without views; on a GPU, each is one or a few kernel launches. Peak memory: the GPU's;
on a CPU, that of the tensors which an update makes. The peak rate is that of a float32 3x3 convolution.
"""

import argparse
import gc
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from types import ModuleType
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common.ranks
import degas
from benchmark import steps
from common import cells, gan, spectral
from common.ranks import device_name, measured_flops, start_ranks
from common.rehearsal import BATCHES, Operations

WARM, COUNTED = 2, 2  # G updates
PLAIN_FLAGS = {"adversarialnas": {"mixed": "plain"}}


def counted(script: ModuleType, args: object, device: torch.device) -> tuple[float, float, int]:
    """Operations, FLOPs and peak bytes of a G update: means over COUNTED, after WARM others; the peak of all."""
    seen: list[int] = []
    operations, modes = Operations(), ExitStack()

    def tick(step: int, *_upcoming: str) -> None:
        if seen and seen[-1] == step:
            return
        seen.append(step)
        if len(seen) == WARM:
            modes.enter_context(torch.autograd.set_multithreading_enabled(False))  # modes belong to a thread
            modes.enter_context(operations)
        elif len(seen) == WARM + COUNTED:
            raise steps.Measured

    with patch.object(steps, "stopwatch", lambda *_: tick), modes:
        steps.measure(script, args, device, 0)
    return operations.n / COUNTED, operations.flops / COUNTED, operations.peak


def conv_then_pool(self: cells.ConvAvgPool, x: Tensor) -> Tensor:
    return F.avg_pool2d(cells.Conv.forward(self, x), 2)


def resize_then_conv(self: cells.Up, x: Tensor) -> Tensor:
    if self.name == "nearest":
        return self.conv(F.interpolate(x, scale_factor=2).relu())
    return self.conv(self.up(x.relu()) if self.up else F.interpolate(x, scale_factor=2, mode="bilinear").relu())


def op_by_op(self: degas.SuperG, z: Tensor, p: dict[str, Tensor]) -> Tensor:
    maps = {"U0": self.head(z).view(-1, self.ch, self.base, self.base)}
    for c in self.connections:
        mixed, x = self.mixed[c.name], maps[c.source]
        made = sum(w * op(x) for w, op in zip(p[c.name][-len(mixed) :], mixed.values(), strict=True))
        maps[c.target] = maps[c.target] + made if c.target in maps else made
    return self.tail(maps["U3"])


def in_nchw(job: gan.Job, make: Callable[[], nn.Module], *name: object) -> nn.Module:
    torch.manual_seed(gan.stream(job.args.seed, "init", *name).initial_seed())
    return make().to(job.ranks.device)


def adam_by_parameter(job: gan.Job, net: nn.Module, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr, betas=(job.args.adam_b1, job.args.adam_b2), foreach=False)


@contextmanager
def plain(script: ModuleType) -> Iterator[None]:
    """Inside the `with` block, the script runs its plain version."""
    with ExitStack() as patches:
        for owner, name, new in (
            (cells.ConvAvgPool, "forward", conv_then_pool),
            (cells.Up, "forward", resize_then_conv),
            (degas.SuperG, "forward", op_by_op),
            (script, "seeded", in_nchw),
            (gan, "adam", adam_by_parameter),
            (spectral, "TOGETHER", set()),
        ):
            patches.enter_context(patch.object(owner, name, new))
        yield


def compare(method: str, flags: dict, device: torch.device, seconds: float, rounds: int) -> list[dict]:
    """A row for each version; the rates are medians over all rounds."""
    script = importlib.import_module(method)
    versions = {
        "plain": (lambda: plain(script), script.Args(**{**flags, "amp": False, **PLAIN_FLAGS.get(method, {})})),
        "ours": (nullcontext, script.Args(**flags)),
        "ours, amp": (nullcontext, script.Args(**{**flags, "amp": True})),
    }
    rates: dict[str, list[float]] = {name: [] for name in versions}
    rows = {name: {"method": method, "version": name} for name in versions}
    for _ in range(rounds):
        for name, (version, args) in versions.items():
            gc.collect()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            with version():
                rates[name] += steps.measure(script, args, device, seconds)
            if device.type == "cuda":
                rows[name]["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    peak = measured_flops(device)
    for name, (version, args) in versions.items():
        with version():
            operations, flops, made = counted(script, args, device)
        rows[name].setdefault("peak_gb", made / 1e9)
        rate = median(rates[name])
        rows[name] |= {"updates_per_s": rate, "operations": operations, "share": flops * rate / peak}
        rows[name]["times"] = rate / median(rates["plain"])
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"any of {', '.join(steps.ROWS)}; default: all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0, help="measuring time per version and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--preset", default="paper", help="widths and batch sizes: paper, quick or smoke")
    parser.add_argument("--batch", type=int, help="images per step of G and D; default: the preset's")
    parser.add_argument("--json", type=Path, help="append the rows to this file, one JSON object a line")
    asked = parser.parse_args()
    if unknown := set(asked.methods) - set(steps.ROWS):
        parser.error(f"{', '.join(unknown)}: unknown method; use {', '.join(steps.ROWS)}")

    device = start_ranks(asked.device).device
    about = {"device": device_name(device), "torch": torch.__version__, "preset": asked.preset, "batch": asked.batch}
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print("| method | loop | version | G updates/s | times plain | operations | peak memory GB | share of peak rate |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for method in asked.methods or steps.ROWS:
        script = importlib.import_module(method)
        for loop, flags in steps.ROWS[method].items():
            if "mixed" in flags:  # plain itself
                continue
            base = {"dataset": "shapes", "evaluator": "compact", "device": asked.device, "amp": False}
            sizes = {k: asked.batch for k in BATCHES if hasattr(script.Args, k)}
            preset = steps.long_preset(script, asked.preset)
            every = {**preset, **base, **flags, **(sizes if asked.batch else {})}
            common.ranks.PROBE_SECONDS = 0.5
            for row in compare(method, every, device, asked.seconds, asked.rounds):
                cell = [method, loop, row["version"], f"{row['updates_per_s']:.3g}", f"{row['times']:.2f}"]
                cell += [f"{row['operations']:,.0f}", f"{row['peak_gb']:.2f}", f"{row['share']:.1%}"]
                print("| " + " | ".join(cell) + " |", flush=True)
                if asked.json:
                    with asked.json.open("a") as file:
                        file.write(json.dumps({**about, "loop": loop, **row}) + "\n")


if __name__ == "__main__":
    main()
