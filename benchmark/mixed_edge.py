"""Benchmark the mixed edges of adversarialnas.py: separate ops against merged kernels, forward and backward.

python -m benchmark.mixed_edge     prints a Markdown table, row by row

plain         compute every op of every edge, then their weighted sum (--mixed plain)
pair          each edge as two convolutions, dense 5x5 and dilated 5x5: 50 taps
ring          each edge as three convolutions with only the 41 taps in use, see `merge`
ring, shared  all outgoing edges of a node as one wide convolution in ring form (--mixed merged)

Fails unless all forms compute the same sum. Timings alternate between the forms, so that other load affects them
equally. "kept" is the memory that autograd saves for the backward pass, without weights; "peak" is the peak additional
memory of a forward and a backward pass, with weight gradients: allocated memory on CUDA, resident memory of a forked
process on a CPU.
"""

import argparse
import ctypes
import os
import resource
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adversarialnas as nas
from common.cells import add
from common.gan import Job
from common.ranks import Ranks, device_name, start_ranks


def leave_pair(
    x: Tensor, edges: Sequence[nas.MixedEdge], mix: nas.CellMix, merged: bool, stride: int = 1, relu: bool = True
) -> list[Tensor]:
    """Each edge as a dense 5x5 and a dilated 5x5 convolution."""
    source, carried = x.relu() if relu else x, []
    for edge in edges:
        w, convs = mix[edge.name], {op: edge[op].conv for op in nas.MERGED if op in edge}
        kernels = {op: w[op] * conv.weight for op, conv in convs.items()}
        bias = add(*(w[op] * conv.bias for op, conv in convs.items()))
        dense = kernels["conv_5x5"] + F.pad(kernels["conv_3x3"], (1, 1, 1, 1))
        if "conv_1x1" in kernels:
            dense = dense + F.pad(kernels["conv_1x1"], (2, 2, 2, 2))
        wide = kernels["dil_conv_5x5"] + F.pad(kernels["dil_conv_3x3"], (1, 1, 1, 1))
        y = F.conv2d(source, dense, bias, stride, padding=2)
        y = y + F.conv2d(source, wide, None, stride, padding=4, dilation=2)
        carried.append(add(y, *(w[op] * edge[op](x) for op in edge if op not in nas.MERGED)))
    return carried


leave_script = nas.leave


def leave_ring(
    x: Tensor, edges: Sequence[nas.MixedEdge], mix: nas.CellMix, merged: bool, stride: int = 1, relu: bool = True
) -> list[Tensor]:
    """Each edge separately, merged as in the script."""
    return [leave_script(x, [edge], mix, True, stride, relu)[0] for edge in edges]


def leave_plain(
    x: Tensor, edges: Sequence[nas.MixedEdge], mix: nas.CellMix, merged: bool, stride: int = 1, relu: bool = True
) -> list[Tensor]:
    return leave_script(x, edges, mix, False, stride, relu)


FORMS = {"plain": leave_plain, "pair": leave_pair, "ring": leave_ring, "ring, shared": leave_script}


def cases(args: argparse.Namespace, device: torch.device) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """{name: (network, its forward pass)}."""
    torch.manual_seed(0)
    alpha, beta = nas.Logits(nas.G_SPACE).to(device), nas.Logits(nas.D_SPACE).to(device)
    job = Job(nas.Args(), Ranks(device), None, None)
    g, d = args.g_ch, args.d_ch

    def made(net: nn.Module) -> nn.Module:
        return net.to(device, memory_format=torch.channels_last)

    def maps(ch: int, side: int) -> Tensor:
        x = torch.randn(args.batch, ch, side, side, device=device)
        return x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def mixes(logits: nas.Logits) -> nas.Mix:
        return logits.mix(job, 1.0, logits.noise(job, "benchmark"))

    up, down, first = made(nas.UpCell(g, None, 0)), made(nas.DownCell(d, None, 1)), made(nas.DownCell(d, None, 0))
    G, D = made(nas.Generator(None, g)), made(nas.Discriminator(None, d))
    x_up, x_down, image = maps(g, args.side // 2), maps(d, args.side), maps(3, 32)
    z = torch.randn(args.batch, 120, device=device)
    for net in (up, down, first, G, D):
        net.eval()  # no power iteration of spectral norm, so all forms use the same weights
    return {
        f"Up-Cell, {args.side // 2} to {args.side} px": (up, lambda: up(x_up, mixes(alpha)[0], [])[1]),
        f"Down-Cell, {args.side} to {args.side // 2} px": (down, lambda: down(x_down, mixes(beta)[1])),
        "first Down-Cell, 32 to 16 px": (first, lambda: first(image, mixes(beta)[0])),
        "Super-G, 32 px": (G, lambda: G(z, mixes(alpha))),
        "Super-D, 32 px": (D, lambda: D(image, mixes(beta))),
    }


def kept(net: nn.Module, forward: Callable[[], Tensor]) -> float:
    """MB saved by autograd in a forward pass, counting each storage once, without parameters."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = forward()
    del y
    return sum(found.values()) / 1e6


def timed(net: nn.Module, forward: Callable[[], Tensor], device: torch.device) -> float:
    net.zero_grad(set_to_none=True)
    start = time.perf_counter()
    forward().square().mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak(net: nn.Module, forward: Callable[[], Tensor], device: torch.device) -> float:
    """Peak additional MB of a forward and a backward pass."""
    net.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        timed(net, forward, device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6

    def highest() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    ctypes.CDLL(None).malloc_trim(0)  # release freed memory, whose reuse would not be measured
    read, write = os.pipe()
    if os.fork() == 0:  # the peak of a forked process starts at its current memory
        before = highest()
        timed(net, forward, device)
        os.write(write, str(highest() - before).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        measured = pipe.read()
    os.wait()
    return int(measured) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--g-ch", type=int, default=160)
    parser.add_argument("--d-ch", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    args = parser.parse_args()
    device = start_ranks(args.device).device
    print(f"{device_name(device)}, torch {torch.__version__}, {'bfloat16 autocast' if args.amp else 'float32'}")
    print(f"channels G {args.g_ch}, D {args.d_ch}, batch {args.batch}; median of {args.repeats}\n")
    widths = (30, 13, 12, 8, 8, 9)
    head = ("what", "form", "ms fwd + bwd", "speed-up", "kept MB", "peak MB")
    print("| " + " | ".join(f"{text:{w}}" for text, w in zip(head, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (w + 2) for w in widths) + "|", flush=True)
    for what, (net, forward) in cases(args, device).items():
        times: dict[str, list[float]] = {form: [] for form in FORMS}
        memory, peaks, outputs = {}, {}, {}
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            for _ in range(args.repeats + 1):  # the first is a warm-up
                for form, nas.leave in FORMS.items():
                    times[form].append(timed(net, forward, device))
            for form, nas.leave in FORMS.items():
                memory[form], peaks[form] = kept(net, forward), peak(net, forward, device)
                outputs[form] = forward().detach().float()
        nas.leave = leave_script
        tolerance = (0.1 if args.amp else 1e-3) * outputs["plain"].abs().max()
        for form in FORMS:
            if (outputs[form] - outputs["plain"]).abs().max() > tolerance:
                raise SystemExit(f"{what}: {form} does not compute the same sum as plain")
            middle, base = median(times[form][1:]), median(times["plain"][1:])
            cells = (
                what,
                form,
                f"{1e3 * middle:,.1f}",
                f"{base / middle:.2f}",
                f"{memory[form]:,.1f}",
                f"{peaks[form]:,.1f}",
            )
            print("| " + " | ".join(f"{text:{w}}" for text, w in zip(cells, widths, strict=True)) + " |", flush=True)


if __name__ == "__main__":
    main()
