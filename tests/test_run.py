"""The run directory: no other run can take it or destroy it, and it says how to resume."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import common.run
import eagan
from common.files import UserError
from common.ranks import Ranks
from common.run import Run
from tests.runs import command, load, rows, start

CPU = torch.device("cpu")


class TwoProcesses(Ranks):
    """The first of two processes, without the second."""

    def gather(self, value: object) -> list:
        return [value, value]


def new_run(folder: Path, ranks: Ranks = Ranks(CPU)) -> Run:  # noqa: B008 (frozen)
    args = {"resume": None, "seed": 0, "runs_dir": folder, "preset": "smoke", "save_minutes": 5.0}
    return Run(eagan.__file__, "eagan", args, ranks, dataset="x", digest="0", plan=[], facts={})


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


def test_the_resume_command_is_quoted_and_names_the_processes(tmp_path: Path) -> None:
    folder = tmp_path / "my runs"
    run = new_run(folder, TwoProcesses(CPU, 0, 2))
    assert run.status["resume_command"] == f"torchrun --nproc-per-node 2 eagan.py --resume '{run.dir}'"
    run = new_run(folder)
    assert run.status["resume_command"] == f"python eagan.py --resume '{run.dir}'"


def test_a_full_disk_amid_the_weights_ends_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)

    def fill_the_disk() -> None:
        with run:
            run.weights("weights.pt", {"w": torch.ones(3)})
            full = RuntimeError("[enforce fail] unexpected pos")
            monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(full))
            run.weights("weights.pt", {"w": torch.zeros(3)})

    with pytest.raises(UserError) as refusal:
        fill_the_disk()
    assert str(run.dir / "weights.pt") in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert json.loads((run.dir / "status.json").read_text())["state"] == "failed"
    assert load(run.dir, "weights.pt")["w"].tolist() == [1, 1, 1]
    assert not list(run.dir.glob("*.tmp"))


@pytest.mark.usefixtures("quick_compact")
def test_a_run_that_is_resumed_with_less_to_do_ends_at_once(tiny_data: dict, tmp_path: Path) -> None:
    widths = {"g_ch": 4, "d_ch": 4, "z_dim": 6, "g_batch": 8, "d_batch": 8, "n_critic": 1, "epoch_batches": 2}
    few = {"train_epochs": 3, "eval_n": 20, "eval_after": 0, "log_every": 1, "genotype": "eagan-g"}
    run = start(eagan, {**tiny_data, **widths, **few}, tmp_path)
    before, weights = rows(run, "metrics.jsonl"), load(run, "weights.pt")["G"]
    assert command(eagan, ["--resume", str(run), "--train-epochs", "1"]) == 0
    assert rows(run, "metrics.jsonl") == before
    assert all(torch.equal(weights[k], v) for k, v in load(run, "weights.pt")["G"].items())
    assert json.loads((run / "status.json").read_text())["state"] == "done"
