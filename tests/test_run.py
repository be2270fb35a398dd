"""The run directory: no other run can take it or destroy it, it says how to resume, and track() restores what it saved."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import common.run
import eagan
from common.files import UserError
from common.gan import update
from common.metrics import Evaluator
from common.ranks import Ranks
from common.run import DivergedError, Run, Stopped
from tests.runs import Counter, assert_equal, load, rows

CPU = torch.device("cpu")


class TwoProcesses(Ranks):
    """The first of two processes, without the second."""

    def gather(self, value: object) -> list:
        return [value, value]


def new_run(
    folder: Path, ranks: Ranks = Ranks(CPU), resume: Path | None = None, seed: int = 0,  # noqa: B008 (frozen)
    method: str = "eagan", **more: object
) -> Run:  # fmt: skip
    args = {"resume": resume, "seed": seed, "runs_dir": folder, "preset": "smoke", "save_minutes": 5.0, **more}
    return Run(eagan.__file__, method, args, ranks, dataset="x", digest="0", plan=[], facts={})


def test_runs_of_the_same_second_get_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneSecond(common.run.datetime):
        @classmethod
        def now(cls, tz: object = None) -> common.run.datetime:
            return cls(2026, 1, 31, 14, 25, 30, tzinfo=tz)

    monkeypatch.setattr(common.run, "datetime", OneSecond)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: new_run(tmp_path).dir, range(8)))
    name = "eagan-x-s0-20260131-142530"
    assert {d.name for d in found} == {name, *(f"{name}-{i}" for i in range(2, 9))}
    assert all((d / file).exists() for d in found for file in ("config.json", "status.json", "source/eagan.py"))


def test_a_run_that_cannot_be_made_removes_nothing_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = new_run(tmp_path).dir
    monkeypatch.setattr(common.run.shutil, "copy", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="--runs-dir"):
        new_run(tmp_path)
    assert list(tmp_path.iterdir()) == [other]


def test_a_resumed_run_says_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_run(tmp_path) as run:
        run.track(None)
        run.save()
    with new_run(tmp_path, resume=run.dir) as again:
        again.load(None)
        assert again.changed == ""
    monkeypatch.setattr(common.run, "device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(common.run, "git_state", lambda _: {"sha": "0123abc", "dirty": False})
    monkeypatch.setattr(common.run.torch, "__version__", "9.9")
    with new_run(tmp_path, TwoProcesses(CPU, 0, 2), run.dir) as again:
        again.load(None)
    told = (run.dir / "log.txt").read_text()
    assert told.count("WARNING") == 1
    assert re.search(r"device .* -> NVIDIA H100, processes 1 -> 2, torch .* -> 9\.9, git .* -> 0123abc;", told)


def test_a_resumed_run_says_which_code_was_edited(tmp_path: Path) -> None:
    """Whether or not it was committed."""
    path = saved_run(tmp_path)
    for name in ("eagan.py", "common/cells.py"):
        with open(path / "source" / name, "a") as f:
            f.write("# as it was\n")
    (path / "source" / "gone.py").write_text("")
    resumed(path)
    assert "code common/cells.py, code eagan.py, code gone.py" in (path / "log.txt").read_text()


@pytest.mark.parametrize("saves", [0, 1])
def test_a_genotype_file_that_was_edited_is_not_taken_in_silence(tmp_path: Path, saves: int) -> None:
    """Without a checkpoint, a resumed run would train another network than the one that it began with."""
    file = tmp_path / "g.json"
    file.write_text("[1]")
    path = saved_run(tmp_path / "runs", saves, genotype=str(file))
    again = new_run(path.parent, resume=path, genotype=str(file))
    again.lock_file.close()
    assert again.changed == ""
    file.write_text("[2]")
    if saves:
        assert new_run(path.parent, resume=path, genotype=str(file)).changed == f"genotype {file}"
    else:
        with pytest.raises(UserError, match=f"--resume {path}: {file}"):
            new_run(path.parent, resume=path, genotype=str(file))


def test_a_folder_that_was_there_before_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job").mkdir()
    monkeypatch.setattr(common.run.shutil, "copy", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for name, stays in (("job", True), ("new", False)):
        with pytest.raises(UserError, match=f"--auto-resume {tmp_path / name}"):
            new_run(tmp_path, auto_resume=tmp_path / name)
        assert (tmp_path / name).exists() == stays


@pytest.mark.parametrize("left", ["notes.txt", "config.json"])
def test_a_folder_of_something_else_or_of_another_start_is_not_taken(tmp_path: Path, left: str) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / left).write_text("mine")
    with pytest.raises(UserError, match="another process" if left == "config.json" else left):
        new_run(tmp_path, auto_resume=tmp_path / "job")
    assert (tmp_path / "job" / left).read_text() == "mine"


def test_a_start_that_another_one_overtook_takes_nothing_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one began and ended between the look at the folder and the lock."""
    other: list[Run] = []

    def overtaken(folder: Path) -> dict:
        if not other:
            other.append(None)
            other[0] = new_run(tmp_path, auto_resume=tmp_path / "job", seed=1)
            other[0].lock_file.close()
        return {"sha": None, "dirty": False}

    monkeypatch.setattr(common.run, "git_state", overtaken)
    with pytest.raises(UserError, match="another process"):
        new_run(tmp_path, auto_resume=tmp_path / "job")
    assert json.loads((tmp_path / "job" / "config.json").read_text())["id"] == other[0].id


def test_a_resumed_directory_that_cannot_be_written_is_named_with_its_flag(tmp_path: Path, monkeypatch) -> None:
    path = saved_run(tmp_path)
    monkeypatch.setattr(Run, "_lock", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=f"^--resume {path}"):
        new_run(tmp_path, resume=path)
    assert (path / "checkpoint.pt").exists()


def test_the_resume_command_is_quoted_names_the_processes_and_works_from_any_folder(tmp_path: Path, monkeypatch) -> None:
    run = new_run(tmp_path / "my runs", TwoProcesses(CPU, 0, 2))
    assert run.status["resume_command"] == f"torchrun --nproc-per-node 2 eagan.py --resume '{run.dir}'"
    monkeypatch.chdir(tmp_path)
    run = new_run(Path("runs"))
    assert run.status["resume_command"] == f"python {Path(eagan.__file__).resolve()} --resume {tmp_path / run.dir}"


def test_track_restores_in_place_at_its_first_call(tmp_path: Path) -> None:
    """Networks, optimisers, tensors and dictionaries. Until then a resumed run saves nothing."""

    def parts(x: float) -> dict:
        net = nn.Linear(2, 2, bias=False)
        nn.init.constant_(net.weight, x)
        opt = torch.optim.Adam(net.parameters(), x)
        net(torch.full((1, 2), x)).sum().backward()
        opt.step()
        return {"net": net, "opt": opt, "tensor": torch.full((3,), x), "table": {str(x): torch.full((2,), x)}}

    def values(parts: dict) -> dict:
        return {k: v.state_dict() if k in ("net", "opt") else v for k, v in parts.items()}

    state = eagan.State(step=7, population=[eagan.Individual((("none",),), id="a")])
    first, second, third = map(parts, (1.0, 2.0, 3.0))
    with new_run(tmp_path) as made:
        made.track(state, **first)
        made.save()
    checkpoint, before = made.dir / "checkpoint.pt", made.dir / "checkpoint.prev.pt"
    saved = checkpoint.read_bytes()
    with new_run(tmp_path, resume=made.dir) as again:
        found, weight, table, tensor = eagan.State(step=1), second["net"].weight, second["table"], second["tensor"]
        again.load(found)
        again.save()
        assert found == state
        assert (checkpoint.read_bytes(), before.exists()) == (saved, False)
        again.track(found, **second)
        assert_equal(values(second), values(first))
        assert_equal([weight, table, tensor], [first["net"].weight, first["table"], first["tensor"]])  # the very same
        again.track(found, **third)
        assert_equal(values(third), values(parts(3.0)))
        again.save()
    assert before.read_bytes() == saved
    assert_equal(load(made.dir, "checkpoint.pt")["parts"], values(third))


# ---- checkpoints: whole, of this run, never given up for a broken one -----------------------------------------------------


def saved_run(folder: Path, saves: int = 2, **args: object) -> Path:
    """A run with `saves` checkpoints, the rows and genotypes of each, and a sample that came after the last one."""
    state, net = Counter(), nn.Linear(3, 3)
    with new_run(folder, **args) as run:
        run.track(state, net=net)
        for state.n in range(1, saves + 1):
            run.status["step"] = state.n
            run.log(state.n, value=state.n)
            run.genotype(state.n, {"n": state.n})
            run.save()
        run.log(saves + 1, value=0)
        (run.dir / "samples").mkdir()
        (run.dir / "samples" / f"{saves + 1:06d}.png").write_bytes(b"later")
    return run.dir


def resumed(path: Path, restore: bool = True) -> tuple[Run, Counter]:
    state = Counter()
    with new_run(path.parent, resume=path) as run:
        run.load(state)
        if restore:
            run.track(state, net=nn.Linear(3, 3))
            run.save()
    return run, state


def contents(path: Path) -> dict[str, bytes]:
    left_out = ("status.json", "log.txt")
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name not in left_out}


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
def test_a_broken_checkpoint_falls_back_and_is_never_moved_over_the_good_one(tmp_path: Path, damage: str) -> None:
    path = saved_run(tmp_path)
    file = path / "checkpoint.pt"
    whole = file.read_bytes()
    broken = bytearray(whole)
    broken[whole.index(load(path, "checkpoint.pt")["parts"]["net"]["weight"].numpy().tobytes())] ^= 1
    file.write_bytes({"cut": whole[:-100], "empty": b"", "flipped": bytes(broken), "text": b"hello"}[damage])
    good = (path / "checkpoint.prev.pt").read_bytes()
    (path / "checkpoint.pt.tmp").write_bytes(whole[:100])  # as a kill during a save leaves it
    _, state = resumed(path)
    assert not (path / "checkpoint.pt.tmp").exists()
    assert state.n == 1
    assert rows(path, "metrics.jsonl")[-1]["step"] == 1
    assert (path / "checkpoint.prev.pt").read_bytes() == good
    assert load(path, "checkpoint.pt")["state"] == {"n": 1}
    assert str(file) in (path / "log.txt").read_text()


@pytest.mark.parametrize("fault", ["another run", "seed", "method", "schema", "version", "gone", "gone, older"])
def test_checkpoints_that_cannot_be_used_are_refused_before_anything_is_cut(tmp_path: Path, fault: str) -> None:
    """Those of another run, or of other arguments; a state with other fields; none, where there were some."""
    path, other = (saved_run(tmp_path / name) for name in ("a", "b"))
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        if fault == "another run":
            shutil.copy(other / name, path / name)
        if fault == "schema":
            torch.save({**load(path, name), "schema": common.run.CHECKPOINT - 1}, path / name)
        if fault.startswith("gone"):
            (path / name).unlink()
    if fault == "gone, older":  # its status did not count checkpoints
        status = json.loads((path / "status.json").read_text())
        del status["checkpoints"]
        (path / "status.json").write_text(json.dumps(status))
    state = Counter()
    if fault == "version":
        state.new = 1
    before = contents(path)
    asked = {"seed": 1} if fault == "seed" else {"method": "degas"} if fault == "method" else {}
    with new_run(path.parent, resume=path, **asked) as run, pytest.raises(UserError, match="--resume"):
        run.load(state)
    assert contents(path) == before
    told = (path / "log.txt").read_text()
    assert all((str(path / name) in told) == (not fault.startswith("gone")) for name in ("checkpoint.pt", "checkpoint.prev.pt"))
    assert [name for name in ("seed", "method") if f"its {name} is" in told] == list(asked)


def test_a_directory_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = saved_run(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "schema": 0}))
    before = contents(path)
    with pytest.raises(UserError, match=rf"^--resume {path}: schema 0\b.*\b{common.run.SCHEMA}$"):
        new_run(tmp_path, resume=path)
    assert contents(path) == {**before, "lock": (path / "lock").read_bytes()}


def test_a_checkpoint_is_on_the_disk_before_the_one_before_is_given_up(tmp_path: Path, monkeypatch) -> None:
    path, done = saved_run(tmp_path, 2), []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(Path(b).name), replace(a, b)))
    with new_run(tmp_path, resume=path) as run:
        run.load(Counter())
        run.track(Counter(), net=nn.Linear(3, 3))
        done.clear()
        run.save()
        done = [what for what in done if what != "status.json"]
    assert done[:2] == ["fsync", "checkpoint.prev.pt"]


def test_only_a_file_that_exists_is_said_to_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for path, kept in ((saved_run(tmp_path / "a", 0), False), (saved_run(tmp_path / "b", 1), True)):
        with monkeypatch.context() as patch, suppress(UserError), new_run(tmp_path, resume=path) as run:
            run.load(Counter())
            run.track(Counter(), net=nn.Linear(3, 3))
            patch.setattr(torch, "save", full)
            with pytest.raises(UserError) as told:
                run.save()
        assert ("is kept" in str(told.value)) == kept


def test_lost_rows_and_genotypes_are_noticed(tmp_path: Path) -> None:
    path = saved_run(tmp_path)
    (path / "metrics.jsonl").write_text("")
    (path / "genotypes" / "000001.json").unlink()
    resumed(path)
    told = (path / "log.txt").read_text()
    assert told.count("WARNING") == 2
    assert str(path / "metrics.jsonl") in told
    assert str(path / "genotypes") in told


def test_a_run_without_a_checkpoint_begins_again_in_place(tmp_path: Path) -> None:
    path = saved_run(tmp_path, saves=0)
    assert rows(path, "metrics.jsonl")
    for folder in ("samples", "genotypes"):
        (path / folder).mkdir(exist_ok=True)
        (path / folder / "left over.tmp").write_text("")
    _, state = resumed(path, restore=False)
    assert state.n == 0
    assert not rows(path, "metrics.jsonl")
    assert not [*(path / "samples").iterdir(), *path.rglob("*.tmp")]


@pytest.mark.parametrize("finite", [True, False])
def test_a_loss_that_is_not_finite_is_known_at_the_next_row_and_then_forgotten(tmp_path: Path, finite: bool) -> None:
    with suppress(UserError), new_run(tmp_path) as run:
        for loss in (1.0, 1.0 if finite else float("nan"), 2.0):
            run.watch(torch.tensor(loss))
        if finite:
            run.log(3, value=1)
        else:
            with pytest.raises(DivergedError):
                run.log(3, **{"loss/d": torch.tensor(float("inf"))})
            run.watch(torch.tensor(1.0))
            run.log(4, value=1)
            run.watch(torch.tensor(float("nan")))
            with pytest.raises(DivergedError):
                run.check_losses()


def test_the_loss_of_every_update_is_watched(tmp_path: Path) -> None:
    """Also one that leaves the weights finite."""
    net = nn.Linear(2, 1)
    with suppress(DivergedError), new_run(tmp_path) as run:
        job = SimpleNamespace(run=run, ranks=Ranks(CPU))
        update(job, net, torch.optim.Adam(net.parameters()), net(torch.ones(1, 2)).sum() + float("inf"))
        assert net.weight.isfinite().all()
        with pytest.raises(DivergedError):
            run.check_losses()


@pytest.mark.parametrize("write", ["weights", "result"])
def test_after_a_loss_that_is_not_finite_there_is_no_result(tmp_path: Path, write: str) -> None:
    with suppress(DivergedError), new_run(tmp_path) as run:
        run.watch(torch.tensor(float("nan")))
        with pytest.raises(DivergedError):
            run.weights("weights.pt", {}) if write == "weights" else run.result()
    assert not list(run.dir.glob("weights.pt"))
    assert not list(run.dir.glob("result.json"))


def test_no_weight_that_is_not_finite_is_written(tmp_path: Path) -> None:
    bad = {"w": torch.tensor([1.0, float("nan")])}
    with suppress(DivergedError), new_run(tmp_path) as run:
        run.track(Counter(), net=bad)
        for write in (run.save, lambda: run.weights("weights.pt", {"G": bad})):
            with pytest.raises(DivergedError):
                write()
    assert not list(run.dir.glob("*.pt"))


def test_a_loss_that_is_not_finite_is_known_before_a_save(tmp_path: Path) -> None:
    path = saved_run(tmp_path)
    before = (path / "checkpoint.pt").read_bytes()
    with suppress(DivergedError), new_run(tmp_path, resume=path) as run:
        run.load(Counter())
        run.track(Counter(), net=nn.Linear(3, 3))
        for loss in (1.0, float("inf"), 2.0):
            run.watch(torch.tensor(loss))
        with pytest.raises(DivergedError):
            run.save()
    assert (path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("error", [None, Stopped, ValueError])
def test_a_directory_that_is_gone_ends_without_a_traceback_of_its_own(tmp_path: Path, error: type | None) -> None:
    kind = error or UserError
    with suppress(kind, UserError), new_run(tmp_path) as run:
        run.track(None)
        shutil.rmtree(run.dir)
        if error:
            raise error


class InductorError(RuntimeError):
    __module__ = "torch._inductor.exc"


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (MemoryError(), "--d-batch"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--d-batch"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "--d-batch"),
        (InductorError("g++: not found\nlong text"), "--no-compile"),
        (RuntimeError("torch.compile with aot_autograd does not support double backward"), "--no-compile"),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing\nlong text"), "--no-graph"),
    ],
)
def test_errors_of_memory_and_compiler_are_one_line_with_a_remedy(tmp_path: Path, error: Exception, remedy: str) -> None:
    run = new_run(tmp_path)
    run.args["compile"] = run.args["graph"] = True

    def train() -> None:
        with run:
            run.begin("train", "training", 0)
            raise error

    with pytest.raises(UserError) as told:
        train()
    assert "\n" not in str(told.value)
    for word in (remedy, run.status["resume_command"], "training"):
        assert word in str(told.value)
    assert json.loads((run.dir / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("metrics", ["fid,is", "fid,is,kid"])
def test_memory_that_runs_out_in_a_scoring_is_not_blamed_on_batches(tmp_path: Path, metrics: str) -> None:
    """A scoring has its own; further scores keep features."""

    def full(_: int) -> None:
        raise MemoryError

    run, evaluator = new_run(tmp_path, metrics=metrics), Evaluator("compact", CPU, tmp_path)
    evaluator.network = SimpleNamespace(dims=2, classes=2)
    with pytest.raises(UserError) as told, run:  # noqa: PT012
        run.track(Counter())
        evaluator.score(full, 10)
    assert "-batch" not in str(told.value)
    assert "--g-ch" in str(told.value)
    again = " --metrics fid,is" if "kid" in metrics else ""
    assert f"{run.status['resume_command']}{again}, or" in str(told.value)


def test_other_errors_are_not_explained_away(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), new_run(tmp_path):
        raise RuntimeError("shape")


# ---- one process at a time, signals, the first checkpoint ----------------------------------------------------------------


def test_a_directory_is_held_by_one_process(tmp_path: Path) -> None:
    path = saved_run(tmp_path)
    code = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, path / "lock"], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"^{path}"):
            new_run(tmp_path, resume=path)
        other.kill()
    assert resumed(path)[1].n == 2


def test_a_run_holds_its_directory_until_it_ends(tmp_path: Path) -> None:
    with new_run(tmp_path) as run:
        run.track(None)
        with pytest.raises(UserError, match=f"^{run.dir}: in use by process {os.getpid()} on"):
            new_run(tmp_path, resume=run.dir)
    resumed_once = new_run(tmp_path, resume=run.dir)
    assert resumed_once.dir == run.dir


def of_another_host(path: Path, state: str = "running") -> None:
    status = json.loads((path / "status.json").read_text())
    status |= {"state": state, "process": {**status["process"], "host": "elsewhere"}}
    (path / "status.json").write_text(json.dumps(status))


@pytest.mark.parametrize(("state", "alive"), [("running", True), ("running", False), ("stopped", False)])
def test_a_run_of_another_host_is_refused_while_its_status_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, alive: bool
) -> None:
    """Whatever its clock says: only a change counts."""
    path, seconds = saved_run(tmp_path), []
    of_another_host(path, state)

    def sleep(n: float) -> None:
        seconds.extend([1] if n == 1 else [])  # subprocess sleeps, too, for less
        if alive and len(seconds) == 9:
            status = json.loads((path / "status.json").read_text())
            (path / "status.json").write_text(json.dumps({**status, "updated": "1999-01-01T00:00:00+00:00"}))

    monkeypatch.setattr(common.run.time, "sleep", sleep)
    if alive:
        with pytest.raises(UserError, match="elsewhere"):
            new_run(tmp_path, resume=path)
    else:
        new_run(tmp_path, resume=path)
    assert sum(seconds) == (9 if alive else 25 if state == "running" else 0)


@pytest.mark.parametrize(("busy", "suspended"), [(False, 100), (True, 0)])
def test_time_for_which_the_process_was_stopped_is_no_training_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool, suspended: int
) -> None:
    run, clock = new_run(tmp_path), {"monotonic": 50.0, "process_time": 0.0}
    for name in clock:
        monkeypatch.setattr(common.run.time, name, lambda name=name: clock[name])

    class Waits:
        """One second each; during the third, the process stands still, or is too busy to wake up, for 100 more."""

        def __init__(self) -> None:
            self.left = [1, 1, 101, 1]

        def wait(self, _: float) -> bool:
            if not self.left:
                return True
            seconds = self.left.pop(0)
            clock["monotonic"] += seconds
            clock["process_time"] += seconds if busy else 1
            if seconds > 1:
                seen.append(run._awake())
            return False

    seen: list[float] = []
    run.left, run.beat = Waits(), 50.0
    run._heartbeat()
    assert run.suspended == suspended
    assert seen == [53]  # waits for the heartbeat, so that it never goes back
    assert run._awake() == 154 - suspended


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_a_signal_asks_for_a_stop_and_only_a_second_interrupt_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ended = []
    monkeypatch.setattr(common.run.os, "_exit", ended.append)
    with pytest.raises(Stopped), new_run(tmp_path) as run:  # noqa: PT012
        run.track(None)
        for number in (getattr(signal, name), signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert ended == ([130] if name == "SIGINT" else [])
        run.check()
    assert (run.dir / "checkpoint.pt").exists()


def test_an_ignored_hangup_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with new_run(tmp_path) as run:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not run.stopping
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_first_checkpoint_comes_within_a_minute_and_others_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(common.run.time, "monotonic", lambda: clock[0])
    with new_run(tmp_path) as run:
        run.track(None)
        run.begin("search", "x", 0)
        saved = []
        for clock[0] in (30.0, 59.0, 61.0, 130.0, 300.0, 362.0):
            run.tick(1)
            saved.append((run.dir / "checkpoint.pt").stat().st_mtime_ns if (run.dir / "checkpoint.pt").exists() else None)
    assert saved[:2] == [None, None]
    assert None is not saved[2] == saved[3] == saved[4] != saved[5]


def test_the_first_checkpoint_does_not_wait_for_the_end_of_a_scoring(tmp_path: Path) -> None:
    """A scoring may take an hour, without an update."""
    with new_run(tmp_path) as run:
        run.track(Counter())
        run.begin("search", "preparing", 0)
        run.begin("search", "warm-up", 0)
        assert not (run.dir / "checkpoint.pt").exists()
        run.tick(0)
        run.begin("search", "scoring", 1)
        first = (run.dir / "checkpoint.pt").stat().st_mtime_ns
        assert load(run.dir, "checkpoint.pt")["step"] == 1
        run.begin("search", "next", 1)
        assert (run.dir / "checkpoint.pt").stat().st_mtime_ns == first
