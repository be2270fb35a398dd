"""The disk becomes full at each single write of a run: it ends in one line, and resumed it equals an undisturbed one."""

import builtins
import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import common.run
import eagan
from common.cli import CommonArgs
from common.files import UserError
from common.ranks import Ranks
from common.run import Run
from tests.faults.conftest import Count
from tests.runs import Counter, assert_same_run

STEPS = 2


def whole_run(path: Path) -> None:
    """Every kind of file that a run writes, over a few steps; begun or resumed."""
    torch.manual_seed(0)
    state, net = Counter(), nn.Linear(3, 3)
    resume = path if (path / "config.json").exists() else None
    args = {"resume": resume, "auto_resume": path, "seed": 0, "preset": "smoke", "save_minutes": 5.0}
    args |= {"dry_run": False, "runs_dir": CommonArgs.runs_dir}
    with Run(eagan.__file__, "eagan", args, Ranks(torch.device("cpu")), dataset="x", digest="0", plan=[], facts={}) as run:
        run.load(state)
        run.track(state, net=net)
        run.begin("train", "training", state.n)
        while state.n < STEPS:
            state.n += 1
            with torch.no_grad():
                net.weight += state.n
            run.status["step"] = state.n
            run.log(state.n, value=state.n)
            run.search_row({"step": state.n})
            run.genotype(state.n, {"n": state.n})
            run.samples(state.n, torch.zeros(64, 3, 4, 4) + state.n / STEPS)
            for name in ("weights.pt", "weights.best.pt"):
                run.weights(name, {"G": net.state_dict(), "n": state.n})
            run.save()
        run.result(last={"n": state.n})


class Disk:
    """The writes below a folder, by kind and in order; from the `full`-th on, there is no space left."""

    def __init__(self, folder: Path, full: int | None = None) -> None:
        self.folder, self.full, self.writes = folder, full, []

    def write(self, kind: str, path: object) -> bool:
        """Note a write; whether it fails."""
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if kind != "fsync" and not path.startswith(str(self.folder)):
            return False
        if "status.json" in path:  # by the heartbeat too, at any time
            return self.full is not None and len(self.writes) >= self.full
        self.writes.append(f"{kind} {re.sub(r'[0-9]+', 'N', os.path.relpath(path, self.folder) if path else '')}")
        return self.full is not None and len(self.writes) > self.full


@contextmanager
def patched(disk: Disk) -> Iterator[None]:
    """All ways in which a run writes go through the disk."""
    save, opened_before = torch.save, builtins.open

    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(given: Callable) -> Callable:
        def opening(path: object, mode: str = "r", *more: object, **named: object) -> object:
            if set(mode) & set("wax+") and disk.write("open", path):
                refuse()
            return given(path, mode, *more, **named)

        return opening

    def before(given: Callable, kind: str, which: int) -> Callable:
        def called(*words: object, **named: object) -> object:
            if disk.write(kind, words[which]):
                refuse()
            return given(*words, **named)

        return called

    def saving(things: object, path: Path) -> None:
        if disk.write("torch.save", path):
            with opened_before(path, "wb") as file:
                file.write(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
        save(things, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened(io.open))
        patch.setattr(builtins, "open", opened(opened_before))
        for name, which in (("replace", 1), ("fsync", 0), ("mkdir", 0)):
            patch.setattr(os, name, before(getattr(os, name), name, which))
        patch.setattr(common.run.shutil, "copy", before(common.run.shutil.copy, "copy", 1))
        patch.setattr(torch, "save", saving)
        yield


def test_the_disk_is_full_at_every_write_in_turn(tmp_path: Path, count: Count) -> None:
    whole_run(tmp_path / "undisturbed")
    recorded = Disk(tmp_path / "recorded")
    with patched(recorded):
        whole_run(recorded.folder)
    kinds = set(recorded.writes)
    assert len(kinds) > 25, kinds
    assert recorded.writes[-1] == "open log.txt"  # "done": not worth a failure
    for k, kind in enumerate(recorded.writes[:-1]):
        disk = Disk(tmp_path / str(k), k)
        with count:
            with patched(disk), pytest.raises(UserError) as told:
                whole_run(disk.folder)
            assert "\n" not in str(told.value), kind
            assert str(disk.folder) in str(told.value), kind
            whole_run(disk.folder)
            assert_same_run(tmp_path / "undisturbed", disk.folder)
            assert not [f for f in disk.folder.rglob("*.tmp")], kind
    count.done()
