"""Measure eagan.py: training and search steps a second, and peak memory, at the paper's widths unless told otherwise.

python -m benchmark.steps     prints a Markdown table, a line as soon as it is measured
"""

import argparse
import gc
import random
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from statistics import median

import torch

import eagan
from common.data import Batches, shapes
from common.run import Ranks, device_name, start_ranks

REPEATS = 5


def training(args: eagan.Args, ranks: Ranks, batches: Batches) -> Callable[[int], None]:
    """A G update of eagan.train_gan: n_critic D steps, a G step, the average of G."""
    G = eagan.build(args, ranks, eagan.Generator, eagan.named("eagan-g", "G"), "G")
    D = eagan.build(args, ranks, None, eagan.named("eagan-d-cifar10", "D"), "D")
    G_ema = deepcopy(G).requires_grad_(False)
    g_opt, d_opt = eagan.adam(G, args.g_lr, args), eagan.adam(D, args.d_lr, args)
    if args.compile:
        G.compile()
        D.compile()

    def step(i: int) -> None:
        for batch in range(i * args.n_critic, (i + 1) * args.n_critic):
            eagan.d_step(args, ranks, G, D, d_opt, batches(batch), batch)
        eagan.g_step(args, ranks, G, D, g_opt, i)
        eagan.ema_update(G_ema, G, args.ema)

    return step


def stage_1(args: eagan.Args, ranks: Ranks, batches: Batches) -> Callable[[int], None]:
    """A G update of eagan.search_g: a D and a G step of a random path of SuperNet-G, against AutoGAN's D."""
    G = eagan.build(args, ranks, eagan.Generator, None, "G")
    D = eagan.build(args, ranks, None, eagan.named("autogan-d", "D"), "D")
    g_opt, d_opt = eagan.adam(G, args.g_lr, args), eagan.adam(D, args.d_lr, args)

    def step(i: int) -> None:
        path = eagan.sample(eagan.G_SPACE, random.Random(i))
        eagan.d_step(args, ranks, G, D, d_opt, batches(i), i, path)
        eagan.g_step(args, ranks, G, D, g_opt, i, path)

    return step


def stage_2(args: eagan.Args, ranks: Ranks, batches: Batches) -> Callable[[int], None]:
    """A G update of eagan.search_d: a copy of G in and out, n_critic D steps of a random path, a G step."""
    G = eagan.build(args, ranks, eagan.Generator, eagan.named("eagan-g", "G"), "G")
    D = eagan.build(args, ranks, None, None, "D")
    g_opt, d_opt = eagan.adam(G, args.g_lr, args), eagan.adam(D, args.d_lr, args)
    copies = [eagan.clone(G) for _ in range(args.population)]

    def step(i: int) -> None:
        path, x = eagan.sample(eagan.D_SPACE, random.Random(i)), i % args.population
        G.load_state_dict(copies[x])
        for batch in range(i * args.n_critic, (i + 1) * args.n_critic):
            eagan.d_step(args, ranks, G, D, d_opt, batches(batch), batch, None, path)
        eagan.g_step(args, ranks, G, D, g_opt, i, None, path)
        copies[x] = eagan.clone(G)

    return step


ROWS = {"training": training, "stage-1": stage_1, "stage-2": stage_2}


def measure(step: Callable[[int], None], device: torch.device, seconds: float) -> list[float]:
    """Steps a second in each of REPEATS stretches, which take `seconds` together; what warms up is not counted."""
    done = 0

    def run(n: int) -> float:
        nonlocal done
        start = time.perf_counter()
        for i in range(done, done + n):
            step(i)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += n
        return time.perf_counter() - start

    begin = time.perf_counter()
    while done < 3 or time.perf_counter() - begin < seconds / 2:  # compiles; meets the ops of many paths
        last = run(1)
    n = max(1, round(seconds / REPEATS / last))
    return [n / run(n) for _ in range(REPEATS)]


def main() -> None:
    paper = eagan.Args()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured, for each line of the table")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on CUDA")
    for name in ("g_ch", "d_ch", "g_batch", "d_batch"):
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(paper, name))
    asked = parser.parse_args()

    ranks = start_ranks(asked.device)
    device, cuda = ranks.device, ranks.device.type == "cuda"
    args = replace(paper, g_ch=asked.g_ch, d_ch=asked.d_ch, g_batch=asked.g_batch, d_batch=asked.d_batch, size=32)
    images = shapes(25 * args.d_batch).images
    float32 = "fp32 (TF32 convolutions)" if cuda and torch.backends.cudnn.allow_tf32 else "fp32"
    print(f"{device_name(device)}, torch {torch.__version__}", end=f", CUDA {torch.version.cuda}\n" if cuda else "\n")
    print(f"channels G {args.g_ch}, D {args.d_ch}; batches G {args.g_batch}, D {args.d_batch}; 32 px; median (range)\n")
    widths = (8, 24, 22, 13, 14)
    head = ("step", "precision", "G updates/s", "real images/s", "peak memory GB")
    print("| " + " | ".join(f"{text:{w}}" for text, w in zip(head, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (w + 2) for w in widths) + "|", flush=True)
    for row in asked.rows:
        ways = {float32: args, "amp (bf16)": replace(args, amp=True)}
        if row == "training" and (cuda if asked.compile is None else asked.compile):
            ways["amp + compile"] = replace(args, amp=True, compile=True)
        for way, way_args in ways.items():
            gc.collect()  # so that the line before this one does not count
            torch.compiler.reset()
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            rates = measure(ROWS[row](way_args, ranks, Batches(images, args.d_batch, 0, device)), device, asked.seconds)
            rate, real = median(rates), args.d_batch * (1 if row == "stage-1" else args.n_critic)
            memory = f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}" if cuda else "-"
            cells = (row, way, f"{rate:.3g} ({min(rates):.3g}-{max(rates):.3g})", f"{rate * real:,.0f}", memory)
            print("| " + " | ".join(f"{text:{w}}" for text, w in zip(cells, widths, strict=True)) + " |", flush=True)


if __name__ == "__main__":
    main()
