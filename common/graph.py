"""CUDA graphs: the kernels of an update, captured once, then launched together."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from common.gan import Job, Pair, ema_update

WARM = 3  # updates before the capture: they create gradients and Adam's moments, and choose kernels
Losses = Any  # detached tensors, in a dictionary or a list


class Graph:
    """An update, `step(*inputs)`; with --graph, all its kernels are launched at once.

    inputs: tensors and floats, in lists and tuples. They are all that changes between updates, besides networks,
    optimisers and their rates: step draws nothing, reads no counter, and never waits for the GPU. It returns detached
    tensors, which the next update overwrites. optimizers: those that it steps.

    The first WARM updates with inputs of the same shapes run eagerly, on a stream of their own. The next one is
    captured; from then on, inputs are copied to buffers of the capture, and learning rates to tensors. Updates of other
    shapes, those with the short last batch of an epoch, still run eagerly. Not run on a GPU yet; tests/test_graph.py
    replays the operations of every loop on the CPU. [torch.cuda.CUDAGraph, "Whole-network capture"]
    """

    def __init__(self, job: Job, step: Callable[..., Losses], *optimizers: Optimizer) -> None:
        self.on, self.step, self.device = job.args.graph, step, job.ranks.device
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.rates = [torch.zeros((), dtype=rate_dtype(group), device=self.device) for group in self.groups]
        self.seen: Counter = Counter()  # updates run eagerly, by the shapes of their inputs
        self.captured: tuple | None = None  # shapes, inputs, graph, outputs
        for optimizer in optimizers:
            keep_steps(optimizer, self.on)

    @classmethod
    def training(cls, job: Job, nets: Pair, G_ema: nn.Module, step: Callable[..., Losses]) -> "Graph":
        """step(*drawn), which trains G and D on what `gan.draw` has drawn, and then an update of G's EMA."""

        def step_and_average(*drawn: Any) -> Losses:
            losses = step(*drawn)
            ema_update(G_ema, nets.G, job.args.ema)
            return losses

        return cls(job, step_and_average, nets.g_opt, nets.d_opt)

    def __call__(self, *inputs: Any) -> Losses:
        if not self.on:
            return self.step(*inputs)
        rates = [group["lr"] for group in self.groups]
        for group, rate, buffer in zip(self.groups, rates, self.rates, strict=True):
            group["lr"] = buffer.fill_(rate)
        try:
            return self.launch(inputs)
        finally:
            for group, rate in zip(self.groups, rates, strict=True):
                group["lr"] = rate

    def launch(self, inputs: tuple) -> Losses:
        """Replay the update, capture it first, or run it eagerly."""
        scalar = partial(torch.full, (), dtype=torch.float64, device=self.device)
        inputs = pytree.tree_map_only(float, scalar, inputs)
        tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
        shapes = tuple(x.shape for x in tensors)
        if self.captured is None and self.seen[shapes] == WARM:
            own = pytree.tree_map_only(Tensor, torch.clone, inputs)
            buffers = [x for x in pytree.tree_leaves(own) if isinstance(x, Tensor)]
            self.captured = shapes, buffers, *capture(lambda: self.step(*own), self.device)
        if self.captured is None or self.captured[0] != shapes:
            self.seen[shapes] += 1
            with beside(self.device):
                return self.step(*inputs)
        _, buffers, graph, outputs = self.captured
        torch._foreach_copy_(buffers, tensors)
        graph.replay()
        return pytree.tree_map(lambda x: x, outputs)  # containers of the caller's own


def capture(step: Callable[[], Losses], device: torch.device) -> tuple[Any, Losses]:
    """Capture the kernels of step() without running them. Returns the graph, and tensors that replay() fills."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side_stream(device)):
        return graph, step()


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Inside the `with` block, kernels go to a side stream: on the usual one, a graph can't be captured."""
    side, usual = side_stream(device), torch.cuda.current_stream(device)
    side.wait_stream(usual)
    with torch.cuda.stream(side), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")  # not yet captured
        yield
    usual.wait_stream(side)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def rate_dtype(group: dict) -> torch.dtype:
    """Type of a learning rate that is a tensor: on CUDA float32 for fused optimisers, else that of the parameters."""
    weight = group["params"][0]
    if weight.device.type == "cpu":
        return torch.float64  # as exact as a Python number
    return torch.float32 if group["fused"] else weight.dtype


def keep_steps(optimizer: Optimizer, on: bool) -> None:
    """Let Adam count its steps where it must: on the device in a graph, else, unless it is fused, on the CPU.
    A resumed run may have been one with or without --graph."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = on
            for p in group["params"]:
                if state := optimizer.state.get(p):
                    state["step"] = state["step"].to(p.device if on or group["fused"] else "cpu")
