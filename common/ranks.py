"""Device selection, and collective operations of the processes started by torchrun."""

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from common.files import UserError

PROBE_SECONDS = 0.4  # time for measuring this device's speed, for time estimates


@dataclass(frozen=True)
class Ranks:
    """This process's device and rank, and the number of processes."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average .grad over all processes in one all-reduce. All of them must have sampled the same path."""
        grads = [p.grad for p in parameters if p.grad is not None] if self.world > 1 else []
        if grads:
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            flat /= self.world
            for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                g.copy_(part.view_as(g))

    def average_buffers(self, net: nn.Module) -> None:
        """Average floating-point buffers (BatchNorm statistics) over all processes."""
        for b in net.buffers() if self.world > 1 else ():
            if b.is_floating_point():
                dist.all_reduce(b)
                b /= self.world

    def first(self, do: Callable[[], Any]) -> Any:
        """Call do() on rank 0, then on the other ranks, which find its downloads and cached files."""
        for turn in (True, False):
            if (self.rank == 0) == turn:
                value = do()
            if self.world > 1:
                dist.barrier()
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.world == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags)
        return flags.item() > 0

    def gather(self, value: Any) -> list:
        """[value of rank 0, of rank 1, ...] on every process. Values must be plain containers."""
        if self.world == 1:
            return [value]
        out = [None] * self.world
        dist.all_gather_object(out, value)
        return out


def start_ranks(device: str) -> Ranks:
    """Select the device ("auto", "cpu", "cuda", "cuda:1") and, under torchrun, join the process group."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device}: unknown device; use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {device}: torch {torch.__version__} sees no CUDA device; use --device cpu or auto"
            )
        index = int(os.environ.get("LOCAL_RANK", 0)) if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise UserError(f"--device {device}: found {torch.cuda.device_count()} CUDA devices, numbered from 0")
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    elif chosen.type != "cpu":
        raise UserError(f"--device {device}: not supported; use cpu or cuda")
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Ranks(chosen, rank, world)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def gpu_id(device: torch.device) -> str | None:
    """Unique identifier of a GPU, as nvidia-smi prints it; None for the CPU."""
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def free_memory(device: torch.device) -> float:
    """Free bytes on a GPU; inf for the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def measured_flops(device: torch.device) -> float:
    """FLOP/s of a 3x3 convolution with 128 channels, forward and backward, measured for PROBE_SECONDS."""
    batch = 64 if device.type == "cuda" else 4
    x = torch.zeros(batch, 128, 16, 16, device=device, requires_grad=True)
    w = torch.zeros(128, 128, 3, 3, device=device, requires_grad=True)
    flops, done = 6 * batch * 16 * 16 * 128 * 128 * 9, 0
    start = time.perf_counter()
    while done < 3 or time.perf_counter() - start < PROBE_SECONDS:
        nn.functional.conv2d(x, w, padding=1).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += 1
        if done == 2:  # the first calls select and load kernels
            start = time.perf_counter()
    return flops * (done - 2) / (time.perf_counter() - start)
