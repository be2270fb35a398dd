"""Runs as a user has them: files of the run directory, seeds, stop and resume in every phase, bad input."""

import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import common.run
import eagan
from common.run import Run, Stopped, UserError, cli
from eagan import PRESETS, Args, main
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


# ---- what a run leaves ------------------------------------------------------------


def test_run_directory_has_every_file_of_the_contract(whole: Path) -> None:
    config, status, result = (json.loads((whole / f"{n}.json").read_text()) for n in ("config", "status", "result"))
    assert config["schema"] == 1
    assert config["script"] == "eagan.py"
    assert {
        "method",
        "preset",
        "dataset",
        "seed",
        "args",
        "argv",
        "command",
        "git",
        "versions",
        "device",
    } <= config.keys()
    assert {"world_size", "params", "created"} <= config.keys()
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
    evaluations = [r for r in rows(whole, "metrics.jsonl") if "eval/fid" in r]
    assert all({"eval/is", "eval/is_std", "eval/n", "eval/net", "eval/ref", "eval/ema"} <= r.keys() for r in evaluations)
    assert {r["phase"] for r in evaluations} == {"search", "eval"}
    assert [r["step"] for r in evaluations if r["phase"] == "eval"] == [9, 11, 13, 15]


def test_search_rows_tell_population_front_and_lineage(whole: Path) -> None:
    found = rows(whole, "search.jsonl")
    assert [(r["stage"], r["round"]) for r in found] == [("1", 1), ("1", 2), ("2", 1), ("2", 2)]
    for row in found:
        ids = [x["id"] for x in row["population"]]
        assert len(set(ids)) == 4
        assert set(row["front"]) <= set(ids)
        assert row["best"] in row["front"]
        assert len(row["kept"]) == 2
    first, second = found[0], found[1]
    children = [x for x in second["population"] if x["id"] not in first["kept"]]
    assert len(children) == 2
    assert all(set(x["parents"]) <= set(first["kept"]) for x in children)


def test_command_of_a_run_reproduces_its_arguments(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((whole / "config.json").read_text())
    made = []
    monkeypatch.setattr(eagan, "main", lambda args: made.append(args))
    words = config["command"].split()
    assert words[:2] == ["python", "eagan.py"]
    assert cli(_catch(made), Args, PRESETS, words[2:]) == 0
    assert {k: str(v) for k, v in vars(made[0]).items()} == {k: str(v) for k, v in config["args"].items()}


def _catch(made: list) -> object:
    def main(args: Args) -> None:
        made.append(args)

    return main


def test_genotype_of_a_run_is_trained_without_a_search(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(eagan, tiny, tmp_path, genotype=str(whole / "genotype.json"))
    saved = json.loads((whole / "genotype.json").read_text())
    assert load(run, "weights.pt")["genotype"] == {k: tuple(map(tuple, saved[k])) for k in "GD"}
    assert not (run / "search.jsonl").exists()


def test_weights_are_evaluated_alone(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(eagan, tiny, tmp_path, phase="eval", weights=whole / "weights.pt", g_ch=99)
    result, trained = (json.loads((r / "result.json").read_text()) for r in (run, whole))
    assert result["last"]["fid"] == trained["last"]["fid"]


@pytest.mark.parametrize(
    "flags",
    [
        *({"stages": "coupled"}, {"objectives": "fid,size", "weight_reset": False}),
        *(slow({"dbar": "plain", "size": 32}), slow({"cycles": 2, "phase": "search"})),
        slow({"genotype": "eagan-g", "size": 48, "grad_clip": 50.0}),
        *(slow({"dbar": "d_c"}), slow({"stages": "g"}), slow({"genotype": "eagan-g", "stages": "d"}), slow({"amp": True})),
        *(slow({"mu_plus_lambda": True}), slow({"selection": "cars"}), slow({"init_g": "eagan-g", "init_d": "autogan-d"})),
        *(slow({"bn_batches": 0}), slow({"genotype": "adversarialnas-g", "d_genotype": "plain", "size": 32})),
    ],
    ids=str,
)
def test_every_variant_of_the_paper_runs(tiny: dict, tmp_path: Path, flags: dict) -> None:
    run = start(eagan, tiny, tmp_path, **flags)
    result = json.loads((run / "result.json").read_text())
    if flags.get("phase") == "search":
        assert result["genotype"]["G"]
        assert [r["stage"] for r in rows(run, "search.jsonl")] == ["1", "1", "2", "2"] * 2
    else:
        assert result["last"]["fid"] > 0
    if flags.get("objectives") == "fid,size":
        assert result["last"]["is"] is None


# ---- seeds, evaluation ------------------------------------------------------------


def test_one_seed_is_one_run_and_another_seed_is_another(tiny: dict, whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever the global generator was
    assert_same_run(whole, start(eagan, tiny, tmp_path))
    other = start(eagan, tiny, tmp_path, seed=1)
    populations = [{json.dumps(x["genotype"]) for x in rows(r, "search.jsonl")[0]["population"]} for r in (whole, other)]
    assert not populations[0] & populations[1]


def test_evaluation_and_samples_do_not_change_training(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(eagan, tiny, tmp_path, eval_every=3, sample_every=1, eval_after=1)
    assert_equal(load(run, "checkpoint.pt")["nets"], load(whole, "checkpoint.pt")["nets"])
    assert_equal(load(run, "weights.pt")["G"], load(whole, "weights.pt")["G"])


# ---- stop and resume ------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "call"),
    [
        *(("stage 1 round 1/2 scoring", 3), ("training", 3), slow("stage 1 warm-up", 2), slow("stage 2 warm-up", 1)),
        *(slow("evaluation (training)", 1), slow("stage 1 round 2/2", 2), slow("stage 2 round 2/2", 1)),
        *(slow("stage 2 round 1/2 scoring", 4), slow("preparing", 1)),
        *(slow("stage 1, final choice", 2), slow("stage 2, final choice", 1)),
        *(slow("evaluation (untrained)", 1), slow("evaluation (last)", 1)),
    ],
)
def test_stopped_in_any_phase_and_resumed_equals_undisturbed(
    tiny: dict, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int
) -> None:
    assert_same_run(whole, stop_and_resume(eagan, tiny, tmp_path, monkeypatch, stage, call))


@pytest.mark.slow
def test_resumed_amid_the_authors_evolution_equals_undisturbed(tiny: dict, tmp_path: Path, monkeypatch) -> None:
    """Its children are born before the scoring and its survivors drawn after it: the draws must not depend on each other."""
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
    assert "cannot be read" in capsys.readouterr().out
    assert_same_run(whole, run)
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        (run / name).write_bytes(b"torn")
    assert command(eagan, ["--resume", str(run)]) == 2
    assert "no checkpoint that can be read" in capsys.readouterr().err


def test_a_full_disk_ends_in_one_line_and_keeps_the_checkpoint_before(
    tiny: dict, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    save, calls = torch.save, []

    def full(state: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 12:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    monkeypatch.setattr(common.run.torch, "save", full)
    assert command(eagan, flags({**tiny, "runs_dir": tmp_path, "save_minutes": 0})) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "No space left" in line
    assert "--resume" in line
    monkeypatch.setattr(common.run.torch, "save", save)
    (run,) = tmp_path.glob("eagan-*")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert command(eagan, ["--resume", str(run)]) == 0
    assert_same_run(whole, run)


def test_a_finished_run_can_be_trained_longer(tiny: dict, tmp_path: Path) -> None:
    short = start(eagan, tiny, tmp_path, genotype="eagan-g", train_epochs=4)
    assert command(eagan, ["--resume", str(short), "--train-epochs", "6"]) == 0
    long = start(eagan, tiny, tmp_path, genotype="eagan-g")
    assert_equal(load(short, "checkpoint.pt")["nets"], load(long, "checkpoint.pt")["nets"])


def test_a_diverged_run_fails_with_the_step(tiny: dict, tmp_path: Path, capsys) -> None:
    words = flags({**tiny, "runs_dir": tmp_path, "genotype": "eagan-g", "g_lr": 1e30, "d_lr": 1e30})
    assert command(eagan, words) == 2
    assert "diverged" in capsys.readouterr().err
    (run,) = tmp_path.glob("eagan-*")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert all("NaN" not in line for line in (run / "metrics.jsonl").read_text().splitlines())


# ---- bad input ------------------------------------------------------------


SMOKE = ["--preset", "smoke"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--population", "1"], ["--population", "greater than or equal to 2"]),
        (["--popluation", "8"], ["--popluation"]),
        (["--preset", "tiny"], ["--preset", "paper"]),
        (["--z-dim", "100"], ["--z-dim 100", "multiple of 3"]),
        (["--dataset", "cifar11"], ["cifar11", "cifar10"]),
        (["--dataset", "no/such/place"], ["no/such/place"]),
        (["--size", "30"], ["30", "multiple of 8"]),
        (["--d-batch", "20000"], ["--d-batch", "20000"]),
        (["--device", "cuda:77"], ["--device cuda:77"]),
        (["--device", "gpu"], ["--device gpu", "auto"]),
        (["--phase", "train"], ["--phase train", "--genotype", "eagan-g"]),
        (["--phase", "eval"], ["--weights"]),
        (["--weights", "w.pt"], ["--weights w.pt", "--phase eval"]),
        (["--train-epochs", "1", "--epoch-batches", "2", "--n-critic", "3"], ["--n-critic 3", "--train-epochs"]),
        (["--phase", "eval", "--weights", "nowhere.pt"], ["nowhere.pt", "No such file"]),
        (["--genotype", "eagan-x"], ["eagan-x", "adversarialnas-g"]),
        (["--genotype", "eagan-d-stl10"], ["eagan-d-stl10", "discriminator"]),
        (["--genotype", "nowhere.json"], ["nowhere.json", "No such file"]),
        (["--genotype", "nowhere.npy"], ["nowhere.npy"]),
        (["--genotype", "eagan-g", "--d-genotype", "eagan-g"], ["eagan-g", "generator"]),
        (["--d-genotype", "autogan-d"], ["--d-genotype", "--dbar"]),
        (["--init-g", "autogan-d"], ["autogan-d", "discriminator"]),
        (["--stages", "d"], ["--stages d", "--genotype"]),
        (["--selection", "cars", "--objectives", "fid"], ["--selection cars", "--objectives"]),
        (["--ref-n", "1"], ["--ref-n 1"]),
        (["--dbar", "plain", "--size", "16"], ["--size 16", "plain"]),
        (["--eval-n", "5"], ["--eval-n 5"]),
        (["--resume", "nowhere"], ["nowhere"]),
        (["--resume", "nowhere", "--preset", "quick"], ["--preset quick"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else x,
)
def test_bad_flags_are_refused_before_anything_is_made(capsys, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    preset = [] if any(w in ("--preset", "--resume") for w in words) else SMOKE
    line = refused(eagan, capsys, tmp_path, [*preset, *words])
    assert all(part in line for part in parts), line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused(capsys, tmp_path: Path) -> None:
    assert "sees no CUDA device" in refused(eagan, capsys, tmp_path, [*SMOKE, "--device", "cuda"])


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda g: g[1].__setitem__(3, "conv_7x7"), ["cell 2, edge 2->3", "conv_7x7"]),
        (
            lambda g: (g[2].__setitem__(2, "none"), g[2].__setitem__(3, "none")),
            ["cell 3", "node 3 has no input", "1->3 and 2->3"],
        ),
        (lambda g: g.pop(), ["list of 3 cells"]),
        (lambda g: g[0].append("none"), ["cell 1 needs 7 ops"]),
        (lambda g: g[0].__setitem__(0, 3), ["cell 1, edge 0->1", "unknown op 3"]),
    ],
)
def test_bad_genotype_files_name_the_edge(capsys, tmp_path: Path, change, parts: list[str]) -> None:
    genotype = [list(row) for row in eagan.named("eagan-g", "G")]
    change(genotype)
    (tmp_path / "g.json").write_text(json.dumps({"G": genotype}))
    line = refused(eagan, capsys, tmp_path, [*SMOKE, "--genotype", str(tmp_path / "g.json")])
    assert all(part in line for part in [*parts, "g.json"]), line


@pytest.mark.parametrize(
    ("codes", "parts"),
    [
        (np.full((3, 7), 7), ["cell 1, edge 0->1", "code 7", "0..2"]),
        (np.zeros((3, 7), int), ["cell 1", "node 3 has no input"]),
        (np.zeros((3, 6), int), ["(3, 6)"]),
        (np.zeros((3, 7)), ["float64"]),
        (np.array([["a"]], object), ["not a .npy file"]),
    ],
)
def test_bad_npy_genotypes_are_refused(capsys, tmp_path: Path, codes: np.ndarray, parts: list[str]) -> None:
    np.save(tmp_path / "g.npy", codes, allow_pickle=True)
    line = refused(eagan, capsys, tmp_path, [*SMOKE, "--genotype", str(tmp_path / "g.npy")])
    assert all(part in line for part in parts), line


def test_weights_of_another_network_are_refused(capsys, tmp_path: Path) -> None:
    torch.save({"hello": 1}, tmp_path / "w.pt")
    line = refused(eagan, capsys, tmp_path, [*SMOKE, "--phase", "eval", "--weights", str(tmp_path / "w.pt")])
    assert "not the weights.pt of an eagan run" in line


def test_no_space_for_the_run_is_refused(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.run.shutil, "disk_usage", lambda path: common.run.shutil._ntuple_diskusage(10, 9, 1))
    assert "no space left" in refused(eagan, capsys, tmp_path, SMOKE)


def test_a_changed_flag_or_method_or_live_run_is_refused_on_resume(tiny: dict, whole: Path, capsys, tmp_path: Path) -> None:
    before = {f: f.read_bytes() for f in whole.rglob("*") if f.is_file()}

    def resume(*words: str) -> str:
        assert command(eagan, ["--resume", str(whole), *words]) == 2
        return capsys.readouterr().err

    assert "--g-ch 8: this run has 4" in resume("--g-ch", "8")
    assert "--seed 3" in resume("--seed", "3")
    config = whole / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"eagan.py"', '"autogan.py"'))
    assert "made by autogan.py" in resume()
    config.write_text("{")
    assert "not JSON" in resume()
    config.write_text(text)
    status = whole / "status.json"
    saved = status.read_text()
    alive = json.loads(saved)
    alive["process"].update(pid=os.getppid(), start_time=common.run.kernel_start_time(os.getppid()))
    status.write_text(json.dumps(alive))
    assert f"still running as pid {os.getppid()}" in resume()
    status.write_text(saved)
    data = Path(tiny["dataset"])
    images = data.read_bytes()
    with np.load(data) as npz:
        changed = {k: npz[k] for k in npz}
    changed["images"][0] = 0
    np.savez(data, **changed)
    assert "not those that it began with" in resume()
    data.write_bytes(images)
    assert before == {f: f.read_bytes() for f in whole.rglob("*") if f.is_file()}


# ---- the command line ------------------------------------------------------------


def test_flags_beat_presets_and_presets_beat_defaults() -> None:
    made = []
    assert cli(_catch(made), Args, PRESETS, ["--preset", "smoke", "--population", "6"]) == 0
    assert (made[0].population, made[0].rounds, made[0].z_dim) == (6, PRESETS["smoke"]["rounds"], 120)
    for values in PRESETS.values():
        Args(**values)


def test_dry_run_makes_nothing_and_tells_memory_at_paper_width(capsys, tmp_path: Path) -> None:
    words = [
        "--dataset",
        "shapes",
        "--evaluator",
        "compact",
        "--dry-run",
        "--runs-dir",
        str(tmp_path / "r"),
        "--data-dir",
        str(tmp_path),
    ]
    assert command(eagan, words) == 0
    text = capsys.readouterr().out
    assert "32 copies of G* 0.91 GB" in text
    assert "PFLOP" in text
    assert not list(tmp_path.iterdir())


# ---- several processes ------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_batches_and_scoring(tiny: dict, whole: Path, tmp_path: Path) -> None:
    done = torchrun(eagan, flags({**tiny, "runs_dir": tmp_path}))
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("eagan-*")
    assert json.loads((run / "config.json").read_text())["world_size"] == 2
    populations = [rows(r, "search.jsonl")[0]["population"] for r in (run, whole)]
    assert [x["genotype"] for x in populations[0]] == [x["genotype"] for x in populations[1]]
    assert all(x["fid"] is not None for x in populations[0])
    first = [next(r["loss/d"] for r in rows(r, "metrics.jsonl") if "loss/d" in r) for r in (run, whole)]
    assert first[0] == pytest.approx(first[1], rel=0.5)  # its half of the batch
    assert load(run, "weights.pt")["G"].keys() == load(whole, "weights.pt")["G"].keys()


def test_a_batch_that_two_processes_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="--d-batch 33: not divisible by 2 processes"):
        eagan.check(Args(d_batch=33), world=2)
