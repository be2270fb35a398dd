"""Runs as a user has them: files of the run directory, seeds, stop and resume in every phase, bad input."""

import errno
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import common.run
import eagan
from common.cells import named
from common.cli import cli
from common.files import UserError
from common.ranks import Ranks
from common.run import Run, Stopped
from eagan import D_SPACE, G_SPACE, PRESETS, PUBLISHED, Args, Individual, State, main
from tests.runs import (
    ROOT,
    assert_equal,
    assert_same_run,
    command,
    flags,
    kill_and_resume,
    load,
    refused,
    rows,
    slow,
    start,
    stop_and_resume,
    torchrun,
)

pytestmark = pytest.mark.usefixtures("quick_compact")


@pytest.fixture(scope="module")
def tiny(tiny_data: dict) -> dict:
    """Flags of a search and training of some twenty steps; --runs-dir is up to the test."""
    return {
        **tiny_data,
        **{"g_ch": 4, "d_ch": 4, "z_dim": 6, "g_batch": 4, "d_batch": 4, "n_critic": 2, "epoch_batches": 2},
        **{"population": 4, "rounds": 2, "round_epochs": 1, "warmup_epochs": 1, "search_n": 20, "final_n": 30},
        **{"bn_batches": 1, "train_epochs": 6, "eval_n": 30, "eval_every": 2, "eval_after": 0},
        **{"sample_every": 2, "log_every": 1},
    }


@pytest.fixture(scope="module")
def whole(tiny: dict, quick_compact: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all phases that nobody disturbed."""
    return start(eagan, tiny, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def trained(tiny: dict, quick_compact: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed training of a published genotype, without a search."""
    return start(eagan, tiny, tmp_path_factory.mktemp("trained"), genotype="eagan-g")


def assert_same_training(*runs: Path) -> None:
    """assert_same_run, of two runs without a search."""
    for run in runs:
        (run / "search.jsonl").touch()
        (run / "genotypes").mkdir(exist_ok=True)
    assert_same_run(*runs)


def read(run: Path, name: str) -> dict:
    return json.loads((run / f"{name}.json").read_text())


# ---- what a run leaves -----------------------------------------------------------------------------------------------


def test_run_directory_has_every_file_of_the_contract(whole: Path) -> None:
    config, status, result = (read(whole, name) for name in ("config", "status", "result"))
    assert config["schema"] == 1
    assert config["script"] == "eagan.py"
    assert {"method", "preset", "dataset", "seed", "args", "argv", "command", "git", "versions"} <= config.keys()
    assert {"device", "world_size", "params", "created"} <= config.keys()
    assert (status["state"], status["phase"], status["error"]) == ("done", "train", None)
    assert {"step", "total", "rate", "eta_s", "process", "started", "updated", "gpu_mem", "peak_mem"} <= status.keys()
    assert status["step"] == status["total"]
    assert {"pid", "start_time", "host", "boot_id"} == status["process"].keys()
    assert {"last", "best", "n", "net", "seconds", "peak_mem", "command"} <= result.keys()
    assert (whole / "source" / "eagan.py").read_text() == (ROOT / "eagan.py").read_text()
    assert (whole / "source" / "common" / "cells.py").exists()
    assert not list(whole.rglob("*.tmp"))
    for row in rows(whole, "metrics.jsonl"):
        assert {"step", "phase", "stage"} <= row.keys()
    evaluations, more = (
        [r for r in rows(whole, "metrics.jsonl") if "eval/fid" in r],
        ("is_std", "n", "net", "ref", "ema"),
    )
    assert all({"eval/is", *(f"eval/{k}" for k in more)} <= r.keys() for r in evaluations)
    assert {r["phase"] for r in evaluations} == {"search", "eval"}
    assert [r["step"] for r in evaluations if r["phase"] == "eval"] == [9, 11, 13, 15]


def parsed(words: list[str]) -> Args:
    """What a command line asks for."""
    made = []

    def main(args: Args) -> None:
        made.append(args)

    assert cli(main, Args, PRESETS, words) == 0
    return made[0]


def test_command_of_a_run_reproduces_its_arguments(whole: Path) -> None:
    config = read(whole, "config")
    words = config["command"].split()
    assert words[:2] == ["python", "eagan.py"]
    assert {k: str(v) for k, v in vars(parsed(words[2:])).items()} == {k: str(v) for k, v in config["args"].items()}


def test_genotype_of_a_run_is_trained_without_a_search(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(eagan, tiny, tmp_path, genotype=str(whole / "genotype.json"))
    saved = read(whole, "genotype")
    assert load(run, "weights.pt")["genotype"] == {k: tuple(map(tuple, saved[k])) for k in "GD"}
    assert not (run / "search.jsonl").exists()


def test_weights_are_evaluated_alone(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(eagan, tiny, tmp_path, phase="eval", weights=whole / "weights.pt", g_ch=99)
    assert read(run, "result")["last"]["fid"] == read(whole, "result")["last"]["fid"]


@pytest.mark.parametrize(
    "flags",
    [
        {"stages": "coupled"}, {"objectives": "fid,size", "weight_reset": False},
        slow({"dbar": "plain", "size": 32}), slow({"dbar": "d_c"}), slow({"cycles": 2, "phase": "search"}),
        slow({"stages": "g"}), slow({"genotype": "eagan-g", "stages": "d"}), slow({"mu_plus_lambda": True}),
        slow({"genotype": "eagan-g", "size": 48, "grad_clip": 50.0}), slow({"amp": True}), slow({"bn_batches": 0}),
        slow({"selection": "cars"}), slow({"init_g": "eagan-g", "init_d": "autogan-d"}),
        slow({"genotype": "adversarialnas-g", "d_genotype": "plain", "size": 32}),
    ],
    ids=str,
)  # fmt: skip
def test_every_variant_of_the_paper_runs(tiny: dict, tmp_path: Path, flags: dict) -> None:
    run = start(eagan, {**tiny, "train_epochs": 2}, tmp_path, **flags)
    result = read(run, "result")
    if flags.get("phase") == "search":
        assert result["genotype"]["G"]
        assert [r["stage"] for r in rows(run, "search.jsonl")] == ["1", "1", "2", "2"] * 2
    else:
        assert result["last"]["fid"] > 0
    if flags.get("objectives") == "fid,size":
        assert result["last"]["is"] is None


def test_an_own_objective_selects(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in OBJECTIVES, and --objectives knows its name: here networks are to be large."""
    monkeypatch.setitem(eagan.OBJECTIVES, "large", lambda x: -x.params)
    words = flags({**tiny, "runs_dir": tmp_path, "objectives": "large", "phase": "search", "rounds": 1})
    assert command(eagan, words) == 0
    (run,) = tmp_path.iterdir()
    found = rows(run, "search.jsonl")
    assert [row["stage"] for row in found] == ["1", "2"]
    for row in found:
        params = {x["id"]: x["params"] for x in row["population"]}
        best, second, *_ = sorted(params.values(), reverse=True)
        assert [params[x] for x in row["kept"]] == [best, second]
        assert {params[x] for x in (*row["front"], row["best"])} == {best}
        assert all(x["is"] is None and x["fid"] > 0 for x in row["population"])


# ---- seeds, evaluation -----------------------------------------------------------------------------------------------


def test_one_seed_is_one_run_and_another_seed_is_another(tiny: dict, whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever the global generator was
    assert_same_run(whole, start(eagan, tiny, tmp_path))
    other = start(eagan, tiny, tmp_path, seed=1, phase="search", stages="g", rounds=1)
    ours, theirs = (rows(run, "search.jsonl")[0]["population"] for run in (whole, other))
    assert not {json.dumps(x["genotype"]) for x in ours} & {json.dumps(x["genotype"]) for x in theirs}


def test_evaluation_and_samples_do_not_change_training(tiny: dict, trained: Path, tmp_path: Path) -> None:
    run = start(eagan, tiny, tmp_path, genotype="eagan-g", eval_every=3, sample_every=1, eval_after=1)
    assert len(rows(run, "metrics.jsonl")) < len(rows(trained, "metrics.jsonl"))
    assert_equal(load(run, "checkpoint.pt")["parts"], load(trained, "checkpoint.pt")["parts"])
    assert_equal(load(run, "weights.pt")["G"], load(trained, "weights.pt")["G"])


# ---- stop and resume -------------------------------------------------------------------------------------------------


def test_track_restores_in_place_at_its_first_call(tmp_path: Path) -> None:
    """Networks, optimisers, tensors and dictionaries. Until then a resumed run saves nothing."""

    def run(resume: Path | None = None) -> Run:
        args, cpu = asdict(Args(runs_dir=tmp_path, resume=resume)), Ranks(torch.device("cpu"))
        return Run(eagan.__file__, "eagan", args, cpu, dataset="d", digest="", plan=[], facts={})

    def parts(x: float) -> dict:
        net = nn.Linear(2, 2, bias=False)
        nn.init.constant_(net.weight, x)
        opt = torch.optim.Adam(net.parameters(), x)
        net(torch.full((1, 2), x)).sum().backward()
        opt.step()
        return {"net": net, "opt": opt, "tensor": torch.full((3,), x), "table": {str(x): torch.full((2,), x)}}

    def values(parts: dict) -> dict:
        return {k: v.state_dict() if k in ("net", "opt") else v for k, v in parts.items()}

    state, first, second, third = (
        State(step=7, population=[Individual((("none",),), id="a")]),
        *map(parts, (1.0, 2.0, 3.0)),
    )
    with run() as made:
        made.track(state, **first)
        made.save()
    checkpoint, before = made.dir / "checkpoint.pt", made.dir / "checkpoint.prev.pt"
    saved = checkpoint.read_bytes()
    with run(made.dir) as again:
        found, weight, table, tensor = State(step=1), second["net"].weight, second["table"], second["tensor"]
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


def test_a_resumed_run_stopped_before_its_stage_keeps_its_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, check = Path(shutil.copytree(trained, tmp_path / trained.name)), Run.check

    def stop(run: Run) -> None:
        run.stopping = True
        check(run)

    monkeypatch.setattr(Run, "check", stop)
    assert command(eagan, ["--resume", str(run), "--data-dir", str(tmp_path / "fresh cache")]) == 130
    monkeypatch.setattr(Run, "check", check)
    assert read(run, "status")["stage"].startswith("preparing")
    assert (run / "checkpoint.pt").read_bytes() == (trained / "checkpoint.pt").read_bytes()
    assert command(eagan, ["--resume", str(run)]) == 0
    assert_same_training(run, trained)


@pytest.mark.parametrize(
    ("stage", "call"),
    [
        ("stage 1 round 1/2 scoring", 3), ("training", 3), slow("stage 1 warm-up", 2), slow("stage 2 warm-up", 1),
        slow("evaluation (training)", 1), slow("stage 1 round 2/2", 2), slow("stage 2 round 2/2", 1),
        slow("stage 2 round 1/2 scoring", 4), slow("preparing", 1), slow("stage 1, final choice", 2),
        slow("stage 2, final choice", 1), slow("evaluation (untrained)", 1), slow("evaluation (last)", 1),
    ],
)  # fmt: skip
def test_stopped_in_any_phase_and_resumed_equals_undisturbed(
    tiny: dict, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int
) -> None:
    assert_same_run(whole, stop_and_resume(eagan, tiny, tmp_path, monkeypatch, stage, call))


@pytest.mark.slow
def test_resumed_amid_the_authors_evolution_equals_undisturbed(tiny: dict, tmp_path: Path, monkeypatch) -> None:
    """Children are born before the scoring and survivors drawn after it: the draws must not depend on each other."""
    variant = {**tiny, "mu_plus_lambda": True, "selection": "cars", "stages": "g", "phase": "search"}
    undisturbed = start(eagan, variant, tmp_path / "a")
    check = Run.check

    def stop_in_scoring(run: Run) -> None:
        if run.status["stage"] == "stage 1 round 2/2 scoring":
            run.stopping = True
        check(run)

    monkeypatch.setattr(Run, "check", stop_in_scoring)
    with pytest.raises(Stopped):
        main(Args(**{**variant, "runs_dir": tmp_path / "b"}))
    monkeypatch.setattr(Run, "check", check)
    (run,) = (tmp_path / "b").glob("eagan-*")
    assert command(eagan, ["--resume", str(run)]) == 0
    assert rows(run, "search.jsonl") == rows(undisturbed, "search.jsonl")


def test_a_stop_file_stops_a_run(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = Run.tick

    def slowly(run: Run, *rest: object) -> None:
        (run.dir / "STOP").touch()
        time.sleep(0.3)
        tick(run, *rest)

    monkeypatch.setattr(Run, "tick", slowly)
    assert command(eagan, flags({**tiny, "runs_dir": tmp_path, "train_epochs": 100})) == 130
    (run,) = tmp_path.glob("eagan-*")
    assert (run / "checkpoint.pt").exists()


@pytest.mark.slow
def test_kill_during_a_checkpoint_leaves_one_that_resumes(tiny: dict, whole: Path, tmp_path: Path) -> None:
    assert_same_run(whole, kill_and_resume(eagan, tiny, tmp_path, save=8))


@pytest.mark.slow
def test_a_broken_checkpoint_falls_back_to_the_one_before(tiny: dict, whole: Path, tmp_path: Path, capsys) -> None:
    run = start(eagan, tiny, tmp_path, save_minutes=0)
    (run / "checkpoint.pt").write_bytes(b"torn")
    assert command(eagan, ["--resume", str(run)]) == 0
    assert str(run / "checkpoint.pt") in capsys.readouterr().out
    assert_same_run(whole, run)
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        (run / name).write_bytes(b"torn")
    assert command(eagan, ["--resume", str(run)]) == 2
    assert f"--resume {run}" in capsys.readouterr().err


def test_a_full_disk_ends_in_one_line_and_keeps_the_checkpoint_before(
    tiny: dict, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    save, calls = torch.save, []

    def full(state: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 12:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(common.run.torch, "save", full)
    assert command(eagan, flags({**tiny, "runs_dir": tmp_path, "genotype": "eagan-g", "save_minutes": 0})) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "No space left" in line
    assert "--resume" in line
    monkeypatch.setattr(common.run.torch, "save", save)
    (run,) = tmp_path.glob("eagan-*")
    assert read(run, "status")["state"] == "failed"
    assert command(eagan, ["--resume", str(run)]) == 0
    assert_same_training(trained, run)


def test_a_finished_run_can_be_trained_longer(tiny: dict, trained: Path, tmp_path: Path) -> None:
    short = start(eagan, tiny, tmp_path, genotype="eagan-g", train_epochs=4)
    assert command(eagan, ["--resume", str(short), "--train-epochs", "6"]) == 0
    assert_equal(load(short, "checkpoint.pt")["parts"], load(trained, "checkpoint.pt")["parts"])


def test_a_diverged_run_fails_with_the_step(tiny: dict, tmp_path: Path, capsys) -> None:
    words = flags({**tiny, "runs_dir": tmp_path, "genotype": "eagan-g", "g_lr": 1e30, "d_lr": 1e30})
    assert command(eagan, words) == 2
    (run,) = tmp_path.glob("eagan-*")
    assert read(run, "status")["state"] == "failed"
    last = rows(run, "metrics.jsonl")[-1]
    loss = next(k for k, v in last.items() if k.startswith("loss/") and v is None)
    assert re.match(rf"error: {loss}\b.*\b{last['step']}\b", capsys.readouterr().err)
    assert all("NaN" not in line for line in (run / "metrics.jsonl").read_text().splitlines())


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def refuse(tiny_data: dict, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., str]:
    """The error of a command that makes nothing: the smoke preset on tiny images of 16 px, and these flags."""
    smoke = ["--preset", "smoke", "--dataset", tiny_data["dataset"]]
    return lambda *words: refused(eagan, capsys, tmp_path, [*([] if "--resume" in words else smoke), *map(str, words)])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--population", "1"], ["--population", "2"]),
        (["--popluation", "8"], ["--popluation"]),
        (["--preset", "tiny"], ["--preset", "paper"]),
        (["--z-dim", "100"], ["--z-dim 100", "multiple of 3"]),
        (["--dataset", "cifar11"], ["cifar11", "cifar10"]),
        (["--dataset", "no/such/place"], ["no/such/place"]),
        (["--size", "30"], ["30", "multiple of 8"]),
        (["--size", "24"], ["--size 24", "multiple of 16"]),
        (["--d-batch", "20000"], ["--d-batch", "20000"]),
        (["--device", "cuda:77"], ["--device cuda:77"]),
        (["--device", "gpu"], ["--device gpu", "auto"]),
        (["--phase", "train"], ["--phase train", "--genotype", "eagan-g"]),
        (["--phase", "search", "--genotype", "eagan-g"], ["--phase search", "--genotype eagan-g"]),
        (["--phase", "eval"], ["--weights"]),
        (["--weights", "w.pt"], ["--weights w.pt", "--phase eval"]),
        (["--train-epochs", "1", "--epoch-batches", "2", "--n-critic", "3"], ["--n-critic 3", "--train-epochs"]),
        (["--phase", "eval", "--weights", "nowhere.pt"], ["nowhere.pt", "No such file"]),
        (["--genotype", "eagan-x"], ["eagan-x", "eagan-g", "adversarialnas-g"]),
        (["--genotype", "eagan-d-stl10"], ["eagan-d-stl10", "eagan-g"]),
        (["--genotype", "nowhere.json"], ["nowhere.json", "No such file"]),
        (["--genotype", "nowhere.npy"], ["nowhere.npy", "No such file"]),
        (["--genotype", "eagan-g", "--d-genotype", "eagan-g"], ["eagan-g", "eagan-d-stl10"]),
        (["--d-genotype", "autogan-d"], ["--d-genotype", "--dbar"]),
        (["--init-g", "autogan-d"], ["autogan-d", "eagan-g"]),
        (["--init-d", "eagan-g"], ["eagan-g", "autogan-d"]),
        (["--stages", "d"], ["--stages d", "--genotype"]),
        (["--objectives", "fid,speed"], ["--objectives fid,speed", "is, fid, size"]),
        (["--selection", "cars", "--objectives", "fid"], ["--selection cars", "--objectives"]),
        (["--ref-n", "1"], ["--ref-n 1"]),
        (["--dbar", "plain", "--size", "16"], ["--size 16", "plain"]),
        (["--eval-n", "5"], ["--eval-n 5"]),
        (["--resume", "nowhere"], ["nowhere"]),
        (["--resume", "nowhere", "--preset", "quick"], ["--preset quick"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else x,
)
def test_bad_flags_are_refused_before_anything_is_made(refuse: Callable, words: list[str], parts: list[str]) -> None:
    line = refuse(*words)
    assert all(part in line for part in parts), line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused(refuse: Callable) -> None:
    assert "--device cuda:" in refuse("--device", "cuda")


def edited(rows: list, cell: int, changes: dict[int, object]) -> list[list]:
    """The rows of a genotype, or its codes, with other values in some columns of a cell."""
    made = [list(row) for row in rows]
    for column, value in changes.items():
        made[cell - 1][column] = value
    return made


G_CODES, D_CODES = PUBLISHED["G"]["eagan-g"], PUBLISHED["D"]["eagan-d-cifar10"]
G_ROWS, D_ROWS = list(named("eagan-g", G_SPACE, PUBLISHED)), list(named("eagan-d-cifar10", D_SPACE, PUBLISHED))


@pytest.mark.parametrize(
    ("key", "bad", "parts"),  # an array: the authors' .npy; a list or a dictionary: genotype.json
    [
        ("G", np.array(edited(G_CODES, 2, {2: 7})), ["cell 2", "edge 1->3", "code 7", "0..6"]),
        ("G", np.array(edited(G_CODES, 1, {0: 3})), ["cell 1", "edge 0->1", "code 3", "0..2"]),
        ("G", np.array(edited(G_CODES, 3, {6: -1})), ["cell 3", "edge 3->4", "code -1"]),
        ("G", np.array(edited(G_CODES, 1, {2: 0, 3: 0})), ["cell 1", "node 3", "1->3 and 2->3"]),
        ("G", np.array(edited(G_CODES, 3, {4: 0, 5: 0, 6: 0})), ["cell 3", "node 4", "1->4 and 2->4 and 3->4"]),
        ("D", np.array(edited(D_CODES, 1, {0: 0})), ["cell 1", "edge 0->1", "code 0", "1..6"]),
        ("D", np.array(edited(D_CODES, 2, {5: 6, 6: 0})), ["cell 2", "edge 2->4", "code 6", "-1..5"]),
        ("D", np.array(edited(D_CODES, 2, {1: 0, 2: 0})), ["cell 2", "node 2", "0->2 and 1->2"]),
        ("D", np.array(edited(D_CODES, 3, {3: 0, 4: 0})), ["cell 3", "node 3", "1->3 and 0->3"]),
        ("D", np.array(edited(D_CODES, 1, {5: -1})), ["cell 1", "2->4 and 3->4", "none"]),
        ("D", np.array(edited(D_CODES, 2, {5: 0})), ["cell 2", "2->4 and 3->4", "none"]),
        ("G", np.zeros((3, 6), int), ["(3, 7)", "(3, 6)"]),
        ("G", np.zeros((2, 7), int), ["(3, 7)", "(2, 7)"]),
        ("G", np.zeros(21, int), ["(3, 7)", "(21,)"]),
        ("G", np.ones((3, 7)), ["(3, 7)", "float64"]),
        ("G", np.array([[None] * 7] * 3), [".npy"]),
        ("G", edited(G_ROWS, 2, {3: "conv_7x7"}), ["cell 2, edge 2->3", "conv_7x7"]),
        ("G", edited(G_ROWS, 1, {0: "avg_pool"}), ["cell 1, edge 0->1", "avg_pool", "nearest"]),
        ("G", edited(G_ROWS, 1, {0: 3}), ["cell 1, edge 0->1", "3"]),
        ("G", edited(G_ROWS, 3, {2: "none", 3: "none"}), ["cell 3", "node 3", "1->3 and 2->3"]),
        ("G", [*G_ROWS[:2], G_ROWS[2][:6]], ["cell 3", "7 ops"]),
        ("G", [(*G_ROWS[0], "none"), *G_ROWS[1:]], ["cell 1", "7 ops"]),
        ("G", [*G_ROWS[:2], "bilinear"], ["cell 3", "7 ops", "bilinear"]),
        ("G", G_ROWS[:2], ["3 cells"]),
        ("G", {"0": G_ROWS[0]}, ["3 cells"]),
        ("G", D_ROWS, ["cell 1, edge 0->1", "conv_3x3"]),
    ],
)
def test_bad_genotype_files_are_refused(refuse: Callable, tmp_path: Path, key: str, bad: object, parts: list[str]) -> None:
    file = tmp_path / ("bad.npy" if isinstance(bad, np.ndarray) else "bad.json")
    if isinstance(bad, np.ndarray):
        np.save(file, bad)
    else:
        file.write_text(json.dumps({key: bad}))
    line = refuse("--genotype", *(["eagan-g", "--d-genotype"] if key == "D" else []), file)
    assert all(part in line for part in [*parts, f"{file}: " if file.suffix == ".npy" else f"{file}, G: "]), line


def test_a_genotype_file_without_the_key_is_refused(refuse: Callable, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    for flag, content in (("--genotype", {"D": D_ROWS}), ("--init-g", {"D": D_ROWS}), ("--init-d", {"G": G_ROWS})):
        file.write_text(json.dumps(content))
        assert f"{flag} {file}" in refuse(flag, file)


def test_weights_of_another_network_or_size_are_refused(refuse: Callable, trained: Path, tmp_path: Path) -> None:
    other, right = tmp_path / "w.pt", trained / "weights.pt"
    torch.save({"hello": 1}, other)
    assert f"--weights {other}" in refuse("--phase", "eval", "--weights", other)
    assert re.search(rf"--weights {right}\b.*--size 16\b", refuse("--phase", "eval", "--weights", right, "--size", 32))


def test_no_space_for_the_run_is_refused(refuse: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.run.shutil, "disk_usage", lambda path: common.run.shutil._ntuple_diskusage(10, 9, 1))
    assert f"--runs-dir {tmp_path}" in refuse()


def test_a_changed_flag_or_method_or_live_run_is_refused_on_resume(tiny: dict, whole: Path, capsys) -> None:
    before = {f: f.read_bytes() for f in whole.rglob("*") if f.is_file()}

    def resume(*words: str) -> str:
        assert command(eagan, ["--resume", str(whole), *words]) == 2
        return capsys.readouterr().err

    def with_file(file: Path, content: bytes) -> str:
        """What is said while a file is another one."""
        saved = file.read_bytes()
        file.write_bytes(content)
        try:
            return resume()
        finally:
            file.write_bytes(saved)

    assert re.search(r"--g-ch 8.* 4\b", resume("--g-ch", "8"))
    assert "--seed 3" in resume("--seed", "3")
    config, status, data = whole / "config.json", whole / "status.json", Path(tiny["dataset"])
    assert "autogan.py" in with_file(config, config.read_bytes().replace(b'"eagan.py"', b'"autogan.py"'))
    assert str(config) in with_file(config, b"{")
    alive = json.loads(status.read_text())
    alive["process"].update(pid=os.getppid(), start_time=common.run.kernel_start_time(os.getppid()))
    assert re.search(rf"\bpid {os.getppid()}\b", with_file(status, json.dumps(alive).encode()))
    with np.load(data) as npz:
        changed = {k: npz[k] for k in npz}
    changed["images"][0] = 0
    file = io.BytesIO()
    np.savez(file, **changed)
    line = with_file(data, file.getvalue())
    assert f"--resume {whole}" in line
    assert str(data) in line
    assert before == {f: f.read_bytes() for f in whole.rglob("*") if f.is_file()}


# ---- the command line ------------------------------------------------------------------------------------------------


def test_flags_beat_presets_and_presets_beat_defaults() -> None:
    made = parsed(["--preset", "smoke", "--population", "6"])
    assert (made.population, made.rounds, made.z_dim) == (6, PRESETS["smoke"]["rounds"], 120)
    for values in PRESETS.values():
        Args(**values)


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_batches_and_scoring(tiny: dict, whole: Path, tmp_path: Path) -> None:
    done = torchrun(eagan, flags({**tiny, "runs_dir": tmp_path}))
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("eagan-*")
    assert read(run, "config")["world_size"] == 2
    populations = [rows(r, "search.jsonl")[0]["population"] for r in (run, whole)]
    assert [x["genotype"] for x in populations[0]] == [x["genotype"] for x in populations[1]]
    assert all(x["fid"] is not None for x in populations[0])
    first = [next(r["loss/d"] for r in rows(r, "metrics.jsonl") if "loss/d" in r) for r in (run, whole)]
    assert first[0] == pytest.approx(first[1], rel=0.5)  # its half of the batch
    assert load(run, "weights.pt")["G"].keys() == load(whole, "weights.pt")["G"].keys()


@pytest.mark.parametrize("name", ["d_batch", "g_batch"])
def test_a_batch_that_two_processes_cannot_share_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"--{name[0]}-batch 33\b.*\b2\b"):
        eagan.check(Args(**{name: 33}), world=2)
