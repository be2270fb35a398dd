"""Benchmark the supernet of degas.py: separate against merged candidates, in a (z, w) step and an alpha step.

python -m benchmark.degas_edges     prints a Markdown table, row by row

plain   compute every candidate of every connection separately, each with its own BatchNorm
shared  compute BN -> ReLU once per source for all candidates that begin with it
merged  also sum the kernels of these candidates into one convolution per connection, as degas.py does

Fails unless all three compute the same image. Timings alternate between the three; on a CPU they are process CPU time,
which is insensitive to other load.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import degas
from common.data import shapes
from common.gan import Job
from common.ranks import Ranks, device_name, start_ranks


def plain(mixed: degas.MixedOp, x: Tensor, _active: Tensor, _kernel: None, _bias: None, p: Tensor) -> Tensor:
    return sum(p_o * mixed[op](x) for op, p_o in zip(mixed, p[mixed.sizes[0] :], strict=True))


def shared(mixed: degas.MixedOp, x: Tensor, active: Tensor, _kernel: None, _bias: None, p: Tensor) -> Tensor:
    out = 0
    for op, p_o in zip(mixed, p[mixed.sizes[0] :], strict=True):
        layer = mixed[op]
        if op == "nn_conv_1":
            made = F.interpolate(layer.conv(active), scale_factor=layer.factor)
        elif op == "nn_conv_3":
            made = layer.conv(F.interpolate(active, scale_factor=layer.factor))
        else:
            made = layer.conv(active) if hasattr(layer, "kernel") else layer(x)
        out = out + p_o * made
    return out


def unmerged(_mixed: list[degas.MixedOp], p: Tensor) -> list[tuple[None, None, Tensor]]:
    return [(None, None, row) for row in p]


FORMS = {
    "plain": (plain, unmerged), "shared": (shared, unmerged), "merged": (degas.MixedOp.forward, degas.MixedOp.merge),
}  # fmt: skip


def pair_of_steps(args: degas.Args, ranks: Ranks) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    """Two functions: one takes a (z, w) step and an alpha step, one returns the images of the supernet."""
    job = Job(args, ranks, None, shapes(args.search_batch, args.search_size))
    s, i = degas.Search(job), torch.arange(args.search_batch, device=ranks.device)
    s.alpha = degas.Alpha(args.space, args.seed, 1.0).to(ranks.device)
    s.a_opt = torch.optim.Adam(s.alpha.parameters(), args.arch_lr)

    def steps() -> None:
        degas.zw_step(job, s, i, args.w_lr)
        degas.alpha_step(job, s, i)

    @torch.no_grad()
    def made() -> Tensor:
        return s.net(s.Z, s.alpha.probabilities())

    return steps, made


def seconds(do: Callable[[], None], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--batch", type=int, default=16)
    asked = parser.parse_args()
    ranks = start_ranks(asked.device)
    print(
        f"{device_name(ranks.device)}, torch {torch.__version__}; batch {asked.batch}, 32 px, {asked.repeats} repeats\n"
    )
    print("| channels | precision | form | (z, w) step + alpha step, ms | faster than plain (range) |")
    print("|---|---|---|---|---|", flush=True)
    for ch in asked.ch:
        for precision in ("float32", "bfloat16"):
            args = degas.Args(
                size=32, search_size=32, search_images=asked.batch, search_batch=asked.batch, search_ch=ch, w_lr=0.01,
                lap_levels=3, amp=precision == "bfloat16",
            )  # fmt: skip
            took, images = {form: [] for form in FORMS}, {}
            for form, (degas.MixedOp.forward, degas.MixedOp.merge) in FORMS.items():
                steps, made = pair_of_steps(args, ranks)
                images[form] = made()
                steps()  # warm-up
            steps, _ = pair_of_steps(args, ranks)
            for _ in range(asked.repeats):
                for form, (degas.MixedOp.forward, degas.MixedOp.merge) in FORMS.items():
                    took[form].append(seconds(steps, ranks.device))
            for form, times in took.items():
                torch.testing.assert_close(images[form], images["plain"], rtol=1e-3, atol=1e-3)
                ratios = [a / b for a, b in zip(took["plain"], times, strict=True)]
                spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                print(f"| {ch} | {precision} | {form} | {1e3 * median(times):.0f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
