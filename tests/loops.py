"""The fixed loops, a stretch of each, and a CUDA graph in miniature, for a CPU: tests of --graph."""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import common.data
import degas
from common import gan, graph, spectral
from common.data import shapes
from common.metrics import Score
from common.run import Run
from tests.reference import QuietRun

LOOPS = {
    ("eagan", "training"): dict(phase="train", genotype="eagan-g", grad_clip=1.0),
    ("autogan", "training"): dict(phase="train", genotype="A"),
    ("adversarialnas", "training"): dict(phase="train", genotype="adversarialnas-g"),
    ("adversarialnas", "search"): dict(phase="search", search_batch=8, search_g_ch=4, search_d_ch=4, search_epochs=9),
    ("degas", "training"): dict(phase="train", genotype="baseline", iters=24),
    ("degas", "search"): dict(phase="search", search_batch=8, search_images=52, search_ch=4, search_epochs=8),
}
SMALL = dict(size=16, epoch_batches=0, d_batch=8, g_batch=8, g_ch=4, d_ch=4, n_critic=2, ema=0.9, log_every=1)
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"}


class Enough(BaseException):
    pass


class Operations(TorchDispatchMode):
    """A CUDA graph in miniature: a step's operations and the tensors that they read and write. A replay runs them again
    on the same memory, without Python: numbers that came from Python stay what they were."""

    replays = eager = 0  # updates, of all

    def __init__(self, random: bool) -> None:
        super().__init__()
        self.random, self.done, self.fresh = random, [], True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert func.overloadpacket.__name__ not in WAITS, func
        assert self.random or torch.Tag.nondeterministic_seeded not in func.tags, func
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.done.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        Operations.replays += 1
        for func, args, kwargs, out in [] if self.fresh else self.done:
            now = func(*args, **kwargs)
            for a, b in zip(pytree.tree_leaves(out), pytree.tree_leaves(now), strict=True):
                if isinstance(a, Tensor) and a is not b:
                    a.copy_(b)
        self.fresh = False  # unlike a capture, recording has already had the effect of the first replay


def record(step: Callable[[], Any], _device: torch.device, random: bool = False) -> tuple[Operations, Any]:
    operations = Operations(random)
    with torch.autograd.set_multithreading_enabled(False), operations:  # modes belong to a thread
        return operations, step()


class LoopRun(QuietRun):
    """A Run that ends a loop after some updates, and keeps what the loop tracks and logs."""

    bad, watch = None, Run.watch

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.updates, self.parts, self.logged = updates, {}, []
        self.status = MagicMock()

    def __enter__(self) -> "LoopRun":
        return self

    def __exit__(self, *_: object) -> None: ...

    def tick(self, step: int, _upcoming: str) -> None:
        if step == self.updates:
            raise Enough

    def track(self, state: gan.Progress, **parts: Any) -> None:
        self.parts = parts

    def log(self, step: int, **row: Any) -> None:
        self.logged.append({"step": step, **{k: v.item() if isinstance(v, Tensor) else v for k, v in row.items()}})


def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, --graph records and replays on the CPU. Counted: Operations.replays, Operations.eager."""
    monkeypatch.setattr(torch.optim, "Adam", partial(torch.optim.Adam, fused=True))  # others count steps in Python on a CPU
    monkeypatch.setattr(graph, "capture", record)
    monkeypatch.setattr(Operations, "replays", 0)
    monkeypatch.setattr(Operations, "eager", 0)

    def beside(_device: torch.device) -> nullcontext:
        Operations.eager += 1
        return nullcontext()

    monkeypatch.setattr(graph, "beside", beside)


def without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, DEGAS's critics have none: with --graph it has other seeds."""
    init = degas.Critic.__init__

    def made(critic: degas.Critic, *given: Any) -> None:
        init(critic, *given)
        critic.drop = (0.0,) * 4

    monkeypatch.setattr(degas.Critic, "__init__", made)


def stretch(method: str, name: str, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> LoopRun:
    """The loop's first 9 updates, of seven batches an epoch, the last one short."""
    monkeypatch.setattr(common.data, "shapes", partial(shapes, 52))
    monkeypatch.setattr(spectral, "TOGETHER", {"cuda", "cpu"})
    script, made = importlib.import_module(method), LoopRun(9)
    evaluator = MagicMock(batch=8, label="FID", more=frozenset())
    evaluator.score.return_value = Score(1.0, 1.0, 0.1, 100, "none", "none")
    monkeypatch.setattr(script, "check", lambda *_: None)  # which refuses --graph on a CPU
    monkeypatch.setattr(script, "Run", lambda *_args, **_facts: made)
    monkeypatch.setattr(script, "Evaluator", lambda **_: evaluator)
    with pytest.raises(Enough):
        script.main(script.Args(**{**script.PRESETS["smoke"], **SMALL, **LOOPS[method, name], **flags}))
    return made


def flat(parts: dict) -> list[tuple[str, Tensor]]:
    """All tensors of what a loop tracks, by name."""
    found = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
    leaves = pytree.tree_leaves_with_path(found)
    return [(pytree.keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]


def pairs_of(one: LoopRun, other: LoopRun) -> list[tuple[str, Tensor, Tensor]]:
    """What both loops track, by name."""
    pairs = list(zip(flat(one.parts), flat(other.parts), strict=True))
    assert len(pairs) > 50
    assert all(name == same for (name, _), (same, _) in pairs)
    return [(name, a, b) for (name, a), (_, b) in pairs]
