"""Check and time every op of the search spaces on a GPU: forward and backward, against float64 on the CPU.

python -m benchmark.ops [--channels 128 256] [--sides 4 8 16 32]
    prints a Markdown table; exit code 1: an error too large

Errors are |x - reference| / |reference| (2-norm), the largest over outputs, input gradients and weight gradients, over
channels, sizes and both memory layouts. Milliseconds are of forward and backward at the largest channels and size.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

import degas
from common import cells
from common.files import stream
from common.ranks import device_name

BATCH = 8
PRECISIONS = {"float32": (False, False), "tf32": (True, False), "bfloat16": (True, True)}  # name: (TF32, autocast)
LARGEST = {"float32": 1e-4, "tf32": 3e-2, "bfloat16": 0.15}  # of ops with two ReLUs: rounding may switch one
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def ops() -> dict[str, Callable[[int], nn.Module]]:
    """Op name -> constructor from the channels, over the tables of common.cells and DEGAS."""
    tables = {"normal": cells.OPS_NORMAL, "up": cells.OPS_UP, "down": cells.OPS_DOWN}
    made = {f"{table} {name}": make for table, ops in tables.items() for name, make in ops.items()}
    for name, op in degas.OPS.items():
        factor = 1 if name in degas.OPS_NORMAL else 2
        made[f"degas {name}"] = partial(op, factor=factor, classes=0)
    return made


def results(op: nn.Module, x: Tensor, towards: Tensor, autocast: bool = False) -> list[Tensor]:
    """Output, gradient of x and of each parameter for the loss (output * towards).sum(), as float64 on the CPU."""
    x = x.detach().requires_grad_()
    op.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = op(x)
    (y.double() * towards).sum().backward()
    return [t.double().cpu() for t in (y.detach(), x.grad, *(p.grad for p in op.parameters() if p.grad is not None))]


def error(got: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative error; inf where a tensor is missing or not finite. Tensors that should be 0 are left out."""
    if len(got) != len(expected) or not all(t.isfinite().all() for t in got):
        return float("inf")
    size = max(e.norm().item() for e in expected)
    pairs = [(g, e) for g, e in zip(got, expected, strict=True) if e.norm() > 1e-6 * size]
    return max((((g - e).norm() / e.norm()).item() for g, e in pairs), default=float("inf"))


def milliseconds(op: nn.Module, x: Tensor, autocast: bool) -> float:
    """Median of 10 forward and backward passes, after 3 to warm up."""
    x, times = x.detach().requires_grad_(), []
    for _ in range(13):
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        began = time.perf_counter()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            y = op(x)
        y.sum().backward()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        times.append(1e3 * (time.perf_counter() - began))
    return median(times[3:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--channels", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--sides", type=int, nargs="+", default=[4, 8, 16, 32])
    asked = parser.parse_args()
    device = torch.device(asked.device)
    print(f"{device_name(device)}, torch {torch.__version__}; batch {BATCH}\n")
    ways = [(precision, layout) for precision in PRECISIONS for layout in LAYOUTS]
    print("| op | error " + " | error ".join(PRECISIONS) + " | ms " + " | ms ".join(map(" ".join, ways)) + " |")
    print("|---" * (1 + len(PRECISIONS) + len(ways)) + "|")
    failed = []
    for name, make in ops().items():
        worst, times = dict.fromkeys(PRECISIONS, 0.0), {}
        for ch in asked.channels:
            torch.manual_seed(0)
            op = make(ch)
            reference, there = make(ch).double(), make(ch).to(device)
            reference.load_state_dict(op.state_dict())
            there.load_state_dict(op.state_dict())
            for side in asked.sides:
                rng = stream(0, name, ch, side)
                x = torch.randn(BATCH, ch, side, side, generator=rng)
                towards = torch.randn(reference(x.double()).shape, generator=rng, dtype=torch.double)
                expected = results(reference, x.double(), towards)
                for precision, layout in ways:
                    tf32, autocast = PRECISIONS[precision]
                    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
                    there.load_state_dict(op.state_dict())  # BatchNorm's running statistics as at the start
                    given = x.to(device, memory_format=LAYOUTS[layout])
                    got = results(there, given, towards.to(device), autocast)
                    worst[precision] = max(worst[precision], error(got, expected))
                    if (ch, side) == (asked.channels[-1], asked.sides[-1]):
                        times[precision, layout] = milliseconds(there, given, autocast)
        failed += [f"{name}, {precision}: {e:.2g}" for precision, e in worst.items() if not e < LARGEST[precision]]
        columns = [f"{e:.1e}" for e in worst.values()] + [f"{times[way]:.2f}" for way in ways]
        print(f"| {name} | " + " | ".join(columns) + " |", flush=True)
    for line in failed:
        print(f"error too large: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
