"""What the loops of a run ask of this device: memory and seconds, from two updates with small batches."""

import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from common.data import memory_left
from common.files import UserError
from common.gan import Job, Progress
from common.ranks import free_memory, measured_flops
from common.run import duration

Loop = Callable[[Job, Any], None]
BATCHES = ("d_batch", "g_batch", "search_batch")


class Operations(TorchDispatchMode):
    """Counts dispatched operations, without views, FLOPs of convolutions and matrix products, and live bytes.

    On a GPU, an operation is one or a few kernel launches. Bytes: of the tensors made or written inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n = self.flops = self.bytes = 0
        self.trace: list[int] = []  # bytes alive after each operation
        self.alive: set[int] = set()  # storages

    @property
    def peak(self) -> int:
        """Most bytes that were alive at once."""
        return max(self.trace)

    def keep(self, storage: torch.UntypedStorage) -> None:
        """Count the bytes of a storage until it is freed."""
        if storage._cdata not in self.alive:
            self.alive.add(storage._cdata)
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())

    def free(self, storage: int, n_bytes: int) -> None:
        self.alive.discard(storage)
        self.bytes -= n_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.n += not (func.is_view or func is torch.ops.aten.detach.default)
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self.keep(made.untyped_storage())
        self.trace.append(self.bytes)
        return out


class Rehearsed(BaseException):
    """Raised when a loop has done enough G updates."""


class Rehearsal:
    """In place of a Run and of an Evaluator: ends a loop after two G updates; writes and scores nothing.

    In the first update, memory is counted; the second one is timed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.made, self.counting = device, Operations(), ExitStack()
        self.ticks: dict[int, float] = {}  # G updates -> time
        self.kept = 0  # bytes of networks and optimisers

    def track(self, _state: Any, **parts: Any) -> None:
        """Let the optimisers make what they keep of every parameter: first updates of a supernet only reach some."""
        for optimizer in parts.values():
            if isinstance(optimizer, torch.optim.Optimizer):
                for p in chain.from_iterable(group["params"] for group in optimizer.param_groups):
                    p.grad = torch.zeros_like(p)
                optimizer.step()
                optimizer.zero_grad()

    def tick(self, step: int, _upcoming: str = "") -> None:
        if step in self.ticks:
            return
        if self.ticks:
            self.counting.close()
        else:
            self.kept = self.made.bytes
            self.made.trace.clear()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ticks[step] = time.perf_counter()
        if len(self.ticks) == 3:
            raise Rehearsed

    @property
    def seconds(self) -> float:
        """Time of the second update."""
        *_, began, ended = self.ticks.values()
        return ended - began

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def rehearse(job: Job, loop: Loop, state: Progress, images: int) -> tuple[float, Rehearsal]:
    """Run two G updates of loop(job, state) with the largest batch cut down to so many images per process.

    Returns the share of these batches in the whole ones, and what was measured.
    """
    args, world = job.args, job.ranks.world
    whole = {name: getattr(args, name) for name in BATCHES if hasattr(args, name)}
    share = min(1.0, images * world / max(whole.values()))
    small = {name: n if share == 1 else world * max(2, round(share * n / world)) for name, n in whole.items()}
    args = replace(args, epoch_batches=10 * args.n_critic, graph=False, compile=False, **small)
    plan = [(name, 1_000_000, macs) for name, _, macs in job.plan]  # no loop ends on its own
    run: Any = Rehearsal(job.ranks.device)
    with run.counting:
        run.counting.enter_context(torch.autograd.set_multithreading_enabled(False))  # a mode belongs to a thread
        run.counting.enter_context(run.made)
        try:
            loop(replace(job, args=args, plan=plan, run=run, evaluator=run), replace(deepcopy(state), evaluated=0))
        except Rehearsed:
            return share, run
    raise RuntimeError(f"{loop.__name__} ended before its second G update")


def extrapolated(x: float, x1: float, made1: Operations, x2: float, made2: Operations) -> float:
    """Peak bytes with batches of x, from those of x1 and x2 in the same operations: all grow linearly with the batch.

    Not the line through the two peaks: with small batches, weights may decide what the peak is, with large ones maps.
    Compared from the end: the first run also makes constants that later ones find.
    """
    slope = (x - x1) / (x2 - x1) if x2 > x1 else 0.0
    return max(a + slope * (b - a) for a, b in zip(made1.trace[::-1], made2.trace[::-1], strict=False))


def scoring_memory(job: Job) -> float:
    """Bytes of the feature network and of a batch in it; 0 for the compact network, which is small."""
    network = getattr(job.evaluator, "network", None)
    if network is None:
        return 0
    made = {2: Operations(), 4: Operations()}
    for n, operations in made.items():
        with torch.no_grad(), operations:
            network(torch.zeros(n, *job.images.shape[1:], dtype=torch.uint8, device=job.ranks.device))
    weights = sum(x.nbytes for x in network.state_dict().values())
    return weights + extrapolated(job.evaluator.batch, 2, made[2], 4, made[4])


def dry_run(
    lines: list[str], job: Job, loops: dict[str, Loop], state: Progress, more: dict[str, int] | None = None
) -> None:
    """Print the opening lines of a run, and its `demands`; every process must call it, the first one prints."""
    lines = [*lines, *demands(job, loops, state, more or {})]
    if job.ranks.rank == 0:
        print("\n".join(lines))


def demands(job: Job, loops: dict[str, Loop], state: Progress, more: dict[str, int]) -> list[str]:
    """Lines for --dry-run: time and peak memory of every stage of job.plan, with all that lies on the device.

    loops: by the names of the stages. state: in which any of them can start. more: bytes that a
    stage needs later on. Measured on the device with small batches. Memory grows linearly with the batch. Time: on a
    CPU, that of a small update and of the arithmetic that it lacks; on a GPU, which computes while kernels are
    launched, the longer one. UserError: a stage does not fit even with small batches.
    """
    stages = [stage for stage in job.plan if stage[1]]
    if not stages:
        return []
    device, world, lines, total = job.ranks.device, job.ranks.world, [], 0.0
    scoring = scoring_memory(job)
    with job.autocast():
        rate = measured_flops(device) * world
    images = job.images.nbytes if job.images.device.type == device.type else 0
    free = images + (free_memory(device) if device.type == "cuda" else memory_left())
    found: dict[Loop, tuple[float, Rehearsal]] = {}
    for name, steps, macs in stages:
        loop = loops[name]
        if loop not in found:
            try:
                (share, few), (larger, several) = (rehearse(job, loop, state, n) for n in (4, 8))
            except torch.OutOfMemoryError:
                raise UserError(
                    f"--dry-run: {name} does not fit into the memory of {device}, even with tiny batches; free memory, "
                    "or use narrower networks"
                ) from None
            found[loop] = extrapolated(1.0, share, few.made, larger, several.made), few
        peak, few = found[loop]
        memory = images + max(peak, few.kept + scoring) + more.get(name, 0)
        seconds, arithmetic = few.seconds, 2 * macs / rate
        if device.type == "cuda":
            seconds = max(seconds, arithmetic)
        else:
            seconds += max(0.0, arithmetic - few.made.flops * world / rate)
        total += steps * seconds
        of = "memory" if world == 1 else "memory a process"
        scarce = f", more than the {free / 1e9:.3g} GB that are free" if memory > free else ""
        lines.append(f"{name}: {steps:,} G updates of {seconds:.3g} s, {memory / 1e9:.3g} GB of {of}{scarce}")
    return [*lines, f"about {duration(total)} on this device"]
