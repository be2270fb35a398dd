"""What --dry-run tells of memory and time, measured with small batches."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import common.rehearsal
import eagan
from common.files import UserError
from common.rehearsal import BATCHES, Operations, demands, rehearse, scoring_memory
from tests.runs import METHODS, command, flags, tiny_flags


def test_operations_and_bytes_alive_are_counted() -> None:
    given = torch.ones(1000)
    with Operations() as seen:
        a = given * 2
        b = a.view(10, 100).relu()  # a view is no operation and no memory
        del a
        c = b @ torch.ones(100, 5)
        del b
    assert seen.n == 4
    assert seen.flops == 2 * 10 * 100 * 5
    assert seen.peak == 4 * (1000 + 1000)
    assert seen.bytes == 4 * c.numel()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tiny_data: dict, tmp_path: Any) -> Callable[..., tuple]:
    """Arguments of `demands` in a dry run."""
    given: list[tuple] = []

    def of(script: ModuleType, **values: object) -> tuple:
        monkeypatch.setattr(script, "dry_run", lambda _, *args: given.append((*args, {})[:4]))
        words = flags({**tiny_flags(script.__name__, tiny_data), "runs_dir": tmp_path / "runs", **values})
        assert command(script, [*words, "--dry-run"]) == 0
        return given.pop()

    return of


@pytest.mark.parametrize("method", METHODS)
def test_small_batches_foretell_the_memory_of_whole_ones(
    method: str, jobs: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = import_module(method)
    batches = {name: 32 for name in BATCHES if hasattr(script.Args, name)}
    job, loops, state, more = jobs(script, n_critic=1, **batches)
    runs = cache(partial(rehearse, job, state=state))
    monkeypatch.setattr(common.rehearsal, "rehearse", lambda job, loop, state, n: runs(loop, images=n))
    *lines, total = demands(job, loops, state, more)

    assert [line.split(":")[0] for line in lines] == [name for name, steps, _ in job.plan if steps]
    assert total.startswith("about ")
    for (name, *_), line in zip((stage for stage in job.plan if stage[1]), lines, strict=True):
        seconds, memory = (float(x) for x in re.findall(r"([\d.]+) (?:s|GB)\b", line))
        (share, few), (whole, all_) = (runs(loops[name], images=n) for n in (4, 32))
        assert (share, whole) == (1 / 8, 1)
        assert seconds > 0
        assert few.kept < few.made.peak < all_.made.peak
        besides = job.images.nbytes + more.get(name, 0)
        assert memory * 1e9 == pytest.approx(besides + all_.made.peak, rel=0.05)


def test_what_does_not_fit_is_told(jobs: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    job, loops, state, _ = jobs(eagan, phase="train", genotype="eagan-g")
    monkeypatch.setattr(common.rehearsal, "memory_left", lambda: 1000)
    line, _ = demands(job, loops, state, {"train": 10**12})
    assert re.search(r"1e\+03 GB of memory, more than the [\d.e-]+ GB that are free", line)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"--dry-run: train .*cpu"):
        demands(job, {"train": full}, state, {})


def test_processes_share_the_arithmetic(jobs: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    job, loops, state, _ = jobs(eagan, phase="train", genotype="eagan-g")
    few = SimpleNamespace(seconds=1.0, kept=0, made=SimpleNamespace(flops=10, trace=[1]))
    monkeypatch.setattr(common.rehearsal, "rehearse", lambda *_: (1.0, few))
    monkeypatch.setattr(common.rehearsal, "measured_flops", lambda _: 10.0)
    job.plan = [("train", 1, 200.0)]
    for world, seconds in ((1, 1 + 40 - 1), (2, 1 + 20 - 1)):
        job.ranks = replace(job.ranks, world=world)
        assert demands(job, loops, state, {})[0].startswith(f"train: 1 G updates of {seconds} s")


class Features(torch.nn.Conv2d):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.float())


def test_scoring_counts_by_the_feature_network(jobs: Callable[..., tuple]) -> None:
    """Its maps grow with the batch, its weights do not."""
    job, *_ = jobs(eagan, phase="train", genotype="eagan-g")
    assert scoring_memory(job) == 0
    job.evaluator.network = Features(3, 10, 1)
    bytes_per_image = 16 * 16 * (3 + 4 * 3 + 4 * 10)  # uint8, then float32
    assert scoring_memory(job) == pytest.approx(4 * (3 * 10 + 10) + job.evaluator.batch * bytes_per_image)
