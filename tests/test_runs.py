"""What a run of every method does: its files, seeds, stop and resume in every phase, bad input, the plan of a dry run."""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Thread
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import adversarialnas
import autogan
import common.metrics
import common.rehearsal
import common.run
import degas
import eagan
from common.files import UserError
from common.run import Run, all_finite
from tests.runs import (
    GENOTYPE,
    METHODS,
    ROOT,
    assert_equal,
    assert_same_run,
    command,
    flags,
    load,
    parsed,
    read,
    refused,
    rows,
    slow,
    start,
    stop_and_resume,
    tiny_flags,
    two_processes,
)

pytestmark = pytest.mark.usefixtures("quick_compact")

ONE_BY_DEFAULT = pytest.mark.parametrize("method", ["eagan", *map(slow, METHODS[1:])], indirect=True)
WITH_EPOCHS = pytest.mark.parametrize("method", ["eagan", slow("adversarialnas"), slow("autogan")], indirect=True)


@pytest.fixture
def training(tiny_data: dict) -> dict:
    """Flags of a training of EAGAN."""
    return tiny_flags("eagan", tiny_data) | {"genotype": "eagan-g"}


@pytest.fixture
def trained(method: ModuleType, undisturbed: Callable) -> Path:
    """A training of a published genotype, without a search."""
    return undisturbed(method.__name__, genotype=GENOTYPE[method.__name__])


def each(table: dict[str, list], marks: object = ()) -> list:
    """(method, row) for every row of the table."""
    return [
        pytest.param(name, row, marks=marks, id=f"{name}-{'slow-' if marks else ''}{i}")  # no text that names another method
        for name, rows in table.items()
        for i, row in enumerate(rows)
    ]


def contents(run: Path) -> dict[Path, bytes]:
    """All files but the lock, which names the process that tried last."""
    return {f.relative_to(run): f.read_bytes() for f in run.rglob("*") if f.is_file() and f.name != "lock"}


# ---- what a run leaves ------------------------------------------------------------

LOSSES = {  # in the search, in the training
    "eagan": ({"d", "g"}, {"d", "g"}),
    "adversarialnas": ({"d", "g", "d_arch", "g_arch"}, {"d", "g"}),
    "autogan": ({"d", "g"}, {"d", "g"}),
    "degas": ({"zw", "alpha", "rec", "mean_image"}, {"d", "g", "wasserstein", "gp", "ct"}),
}
EVALUATIONS = {  # step, G's BatchNorm, whether G is an average
    "eagan": [
        *((4, "recalibrated", False), (6, "recalibrated", False), (8, "own", False), (9, "own", False)),
        *((9, "running", True), (11, "running", True), (13, "running", True), (15, "running", True)),
    ],
    "adversarialnas": [(n, "running", True) for n in (0, 2, 2, 4, 6)],
    "autogan": [(5, "shared", False), (11, "running", True), (13, "running", True), (15, "running", True)],
    "degas": [(6, "batch", False), (9, "batch", False), (12, "batch", False)],
}
SAMPLES = {
    "eagan": [4, 6, 8, 9, 11, 13, 15],
    "adversarialnas": [2, 4, 6],
    "autogan": [2, 3, 5, 11, 13, 15],
    "degas": [0, 3, 6, 8, 9, 10, 12],
}


def test_run_directory_has_every_file_of_the_contract(method, whole):
    name = method.__name__
    config, status, result = (read(whole, f"{file}.json") for file in ("config", "status", "result"))
    assert (config["schema"], config["script"], config["method"]) == (1, f"{name}.py", name)
    assert {"preset", "dataset", "seed", "args", "argv", "command", "git", "versions"} <= config.keys()
    assert {"device", "world_size", "params", "created"} <= config.keys()
    assert (status["state"], status["phase"], status["error"]) == ("done", "train", None)
    assert {"step", "total", "rate", "eta_s", "process", "started", "updated", "gpu_mem", "peak_mem"} <= status.keys()
    assert status["step"] == status["total"]
    assert {"pid", "start_time", "host", "boot_id"} == status["process"].keys()
    assert {"last", "best", "n", "net", "seconds", "peak_mem", "command", "genotype"} <= result.keys()
    assert (whole / "source" / f"{name}.py").read_text() == (ROOT / f"{name}.py").read_text()
    assert (whole / "source" / "common" / "cells.py").exists()
    assert not list(whole.rglob("*.tmp"))
    assert sorted(f.name for f in (whole / "samples").iterdir()) == [f"{n:06d}.png" for n in SAMPLES[name]]
    log = (whole / "log.txt").read_text()
    assert all(f"{n:,}" in log for n in config["params"].values())
    assert "2 classes" in log


def test_rows_of_metrics_hold_losses_and_scores(method, whole):
    found, name = rows(whole, "metrics.jsonl"), method.__name__
    assert all({"step", "phase", "stage"} <= row.keys() for row in found)
    written = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]  # with "perf/..."
    assert all(0.05 < row["perf/host_gb"] < 100 for row in written)
    for phase, losses in zip(("search", "train"), LOSSES[name], strict=True):
        assert {k for r in found if r["phase"] == phase for k in r if k.startswith("loss/")} == {f"loss/{x}" for x in losses}
    steps = [r["step"] for r in found if r["phase"] == "train"]
    assert steps == list(range(steps[0], read(whole, "status.json")["total"] + 1))
    scores = [r for r in found if "eval/fid" in r]
    assert [(r["step"], r["eval/bn"], r["eval/ema"]) for r in scores] == EVALUATIONS[name]
    assert all({"eval/is", "eval/is_std", "eval/n", "eval/net", "eval/ref"} <= r.keys() for r in scores)
    ends = [r for r in scores if r["phase"] == "eval"]
    assert (ends[0]["eval/what"], ends[-1]["eval/what"]) == ("untrained", "last")
    assert {"noise/fid", "noise/is"} <= ends[0].keys()
    assert all(r["eval/n"] == read(whole, "config.json")["args"]["eval_n"] for r in ends)


def test_command_of_a_run_reproduces_its_arguments(method, whole):
    config = read(whole, "config.json")
    words = config["command"].split()
    assert words[:2] == ["python", f"{method.__name__}.py"]
    assert {k: str(v) for k, v in vars(parsed(method, words[2:])).items()} == {k: str(v) for k, v in config["args"].items()}


def test_genotype_of_a_run_is_trained_without_a_search(method, tiny, whole, tmp_path):
    less = {"eagan": {"train_epochs": 2}, "adversarialnas": {"d_genotype": "searched"}, "degas": {"iters": 2}}
    run = start(method, tiny, tmp_path, genotype=str(whole / "genotype.json"), **less.get(method.__name__, {}))
    assert load(run, "weights.pt")["genotype"] == load(whole, "weights.pt")["genotype"]
    assert not rows(run, "search.jsonl")


def test_weights_are_evaluated_alone(method, tiny, whole, tmp_path):
    run = start(method, tiny, tmp_path, phase="eval", weights=whole / "weights.pt", g_ch=99)
    (row,) = rows(run, "metrics.jsonl")
    last = [r for r in rows(whole, "metrics.jsonl") if "eval/fid" in r][-1]
    assert all(row[k] == last[k] for k in last if k.startswith("eval/") and k != "eval/what")
    assert row["eval/what"] == str(whole / "weights.pt")
    assert read(run, "result.json")["last"]["fid"] == read(whole, "result.json")["last"]["fid"]


# ---- variants of the paper ------------------------------------------------------------

VARIANTS = {
    "eagan": ["--stages coupled --objectives fid,size --no-weight-reset"],
    "autogan": ["--search random --random-n 2 --proxy-n 0 --phase search"],
}
SLOW_VARIANTS = {
    "eagan": [
        *("--stages coupled", "--objectives fid,size", "--dbar plain --size 32", "--dbar d_c", "--stages g"),
        *("--genotype eagan-g --stages d", "--mu-plus-lambda", "--selection cars", "--amp", "--bn-batches 0"),
        *("--genotype eagan-g --size 48 --grad-clip 50", "--init-g eagan-g --init-d autogan-d"),
        *("--genotype adversarialnas-g --d-genotype plain --size 32", "--cycles 2 --phase search"),
    ],
    "adversarialnas": [
        *("--gumbel log", "--gumbel off", "--mixed plain", "--amp", "--ref-ema-overwrite", "--size 48 --chunks 2"),
        *("--grad-clip 50 --search-eval-every 0", "--genotype mmd-g", "--genotype animation-g --d-genotype animation-d"),
        *("--fixed-d super", "--fixed-d sngan", "--fixed-d autogan", "--d-genotype searched"),
        *("--g-params 2e4", "--g-params 2e4 --search random --candidates 1"),
    ],
    "autogan": [
        *("--search random --random-n 2 --proxy-n 0", "--search slas", "--search random-shared", "--no-dedupe", "--amp"),
        *("--reward fid --ctrl-batch 2", "--reward is-cost --cost macs", "--controller-loss reference", "--bn-batches 2"),
        *("--no-dynamic-reset", "--derive-epochs 0 --proxy-n 0", "--size 24", "--cells 1 --grow=", "--cells 2 --grow 2"),
        *("--cells 4 --size 32 --grow 1,2,3 --iterations 4", "--genotype A --size 48", "--genotype B", "--genotype C"),
        *("--genotype sngan", "--genotype 1,1,2,1,1,1,2,1,1,1,1,2,1,3"),
    ],
    "degas": [
        *("--n 2 --prune-score softmax", "--search-size 16 --size 32 --normal-ops 7", "--search-size 32 --size 48"),
        *("--z-init pca --z-grad batch", "--loss-reduction sum --w-lr 1e-5 --lap-levels 1", "--eval-bn running --random-arch"),
        *("--search-images 16 --search-batch 16", "--genotype baseline --conditional --size 48", "--amp --ema 0.9"),
        "--n 3 --random-arch",
    ],
}


@pytest.mark.parametrize(
    ("method", "words"), [*each(VARIANTS), *each(SLOW_VARIANTS, pytest.mark.slow)], indirect=["method"]
)  # fmt: skip
def test_every_variant_of_the_papers_runs(method, tiny, tmp_path, words):
    run = start(method, tiny, tmp_path, words)
    args, result, found = read(run, "config.json")["args"], read(run, "result.json"), rows(run, "search.jsonl")
    if args["phase"] != "search":
        assert result["last"]["fid"] > 0
        assert (result["last"]["is"] is None) == ("fid,size" in words)  # EAGAN's Table 5: without the IS as an objective
    assert bool(found) == (args.get("stages") == "d" or not (args["genotype"] or args.get("random_arch")))
    CHECKS[method.__name__](run, args, found)


def check_eagan(_run: Path, args: dict, found: list[dict]) -> None:
    if args["cycles"] > 1:
        assert [row["stage"] for row in found] == ["1", "1", "2", "2"] * args["cycles"]


def check_adversarialnas(run: Path, args: dict, found: list[dict]) -> None:
    genotype = read(run, "result.json")["genotype"]
    if args["fixed_d"] != "none":  # paper Table 3: only G is searched
        assert found[-1]["genotype"].keys() == {"G"}
        assert genotype["D"] is None
    if args["d_genotype"] == "searched":
        assert "cells.0.edges.0" in next(iter(load(run, "checkpoint.pt")["parts"]["D"]))
    if args["g_params"]:
        cost = adversarialnas.Generator.cost(genotype["G"], load(run, "weights.pt")["g_ch"], args["z_dim"], args["size"])
        assert cost.params == genotype["params"]["G"] == pytest.approx(args["g_params"], rel=0.1)


def check_autogan(run: Path, args: dict, found: list[dict]) -> None:
    vector, kinds = autogan.read_vector(read(run, "result.json")["genotype"]["vector"]), {row["kind"] for row in found}
    assert len(autogan.names_of(vector)) == args["cells"]
    assert ("controller" in kinds, "derive" in kinds) == (bool(found) and args["search"] in ("mlas", "slas"), bool(found))
    if args["genotype"]:
        assert vector == autogan.read_vector(args["genotype"])


def check_degas(_run: Path, args: dict, found: list[dict]) -> None:
    for row in found:
        shares = row["probabilities"]["G"]
        assert list(shares) == [f"{c.stage}/{c.name}" for c in degas.Space(args["n"]).connections]
        assert {len(p) for name, p in shares.items() if "->N" in name} == {int(args["normal_ops"])}


CHECKS = {"eagan": check_eagan, "adversarialnas": check_adversarialnas, "autogan": check_autogan, "degas": check_degas}


# ---- seeds, evaluation ------------------------------------------------------------

FIRST_ROUND = {  # no more of a search than it takes to see what was drawn
    "eagan": dict(stages="g", rounds=1),
    "adversarialnas": dict(epoch_batches=1, search_eval_every=0),
    "autogan": dict(derive_epochs=0, proxy_n=0),
    "degas": dict(search_epochs=1),
}
LOOKS = {  # other evaluations, samples and rows of metrics; with a genotype: of the training alone
    "eagan": dict(genotype="eagan-g", eval_every=3, sample_every=1, eval_after=1),
    "adversarialnas": dict(eval_every=2, sample_every=1, search_eval_every=0, eval_n=12),
    "autogan": dict(genotype="A", eval_every=2, sample_every=1),
    "degas": dict(eval_every=1, sample_every=1, log_every=3),
}


def drawn(run: Path) -> object:
    """What a search has drawn: EAGAN's first population, AutoGAN's architectures, the other two's alpha."""
    found = rows(run, "search.jsonl")
    if "population" in found[0]:
        return [x["genotype"] for x in found[0]["population"]]
    if "scored" in found[0]:
        return [x["vector"] for row in found for x in row.get("scored", [])]
    return found[0]["probabilities"]


def test_another_seed_is_another_run(method, tiny, whole, tmp_path):
    other = start(method, tiny, tmp_path, seed=1, phase="search", **FIRST_ROUND[method.__name__])
    assert drawn(whole) != drawn(other)


def test_evaluation_and_samples_do_not_change_training(method, tiny, whole, trained, tmp_path):
    looks = LOOKS[method.__name__]
    other = trained if "genotype" in looks else whole
    run = start(method, tiny, tmp_path, **looks)
    assert len(rows(run, "metrics.jsonl")) != len(rows(other, "metrics.jsonl"))
    assert_equal(load(run, "checkpoint.pt")["parts"], load(other, "checkpoint.pt")["parts"])
    assert_equal(load(run, "weights.pt")["G"], load(other, "weights.pt")["G"])
    assert rows(run, "search.jsonl") == rows(other, "search.jsonl")


# ---- stop and resume ------------------------------------------------------------

STAGES = {  # where SIGINT arrives: the stage, which of its safe points, and flags of the run
    "eagan": [("stage 1 round 1/2 scoring", 3), ("training", 3)],
    "adversarialnas": [("search", 2)],
    "autogan": [("stage 1 iteration 2/3 candidates", 3)],
    "degas": [("search", 3), ("training", 2)],
}
EVALUATED = [("evaluation (untrained)", 1), ("evaluation (training)", 1), ("evaluation (last)", 1)]
SLOW_STAGES = {
    "eagan": [
        *(("preparing", 1), ("stage 1 warm-up", 2), ("stage 1 round 2/2", 2), ("stage 1, final choice", 2)),
        *(("stage 2 warm-up", 1), ("stage 2 round 1/2 scoring", 4), ("stage 2 round 2/2", 1), ("stage 2, final choice", 1)),
        *EVALUATED,
        # children are born before the scoring and survivors drawn after it: the draws must not depend on each other
        ("stage 1 round 2/2 scoring", 1, dict(mu_plus_lambda=True, selection="cars", stages="g")),
    ],
    "adversarialnas": [
        *(("preparing", 1), ("search", 4), ("search evaluation", 1), ("training", 2), ("training", 4)),
        *((stage, call, dict(search="random")) for stage, call in (("candidate 1", 1), ("candidate 2", 2))),
        ("candidate 1 scoring", 1, dict(search="random")),
        *EVALUATED,
    ],
    "autogan": [
        *(("preparing", 2), ("stage 0 iteration 1/3", 2), ("stage 0 iteration 1/3 controller", 3)),
        *(("stage 1 iteration 2/3", 2), ("stage 2 iteration 3/3", 1), ("stage 2 iteration 3/3 controller", 1)),
        *(("stage 2 iteration 3/3 candidates", 2), ("proxy", 1), ("finalist 1/3 scoring", 1), ("finalist 2/3", 2)),
        *(("finalist 3/3", 1), ("training", 3), *EVALUATED),
        ("finalist 2/2", 2, dict(search="random", random_n=2, proxy_n=0)),
        ("stage 2 iteration 3/3 candidates", 6, dict(search="random-shared", bn_batches=1)),
        ("stage 0 iteration 1/3 controller", 3, dict(controller_loss="reference")),
    ],
    "degas": [
        *(("preparing", 1), ("search", 1), ("search", 4), ("search", 6), ("training", 1), ("training", 7), *EVALUATED),
        *(("search", 3, dict(z_init="pca")), ("search", 3, dict(ema=0.9, n=2))),
        ("training", 4, dict(conditional=True, random_arch=True)),
    ],
}


@pytest.mark.parametrize(("method", "where"), [*each(STAGES), *each(SLOW_STAGES, pytest.mark.slow)], indirect=["method"])
def test_stopped_in_any_phase_and_resumed_equals_undisturbed(method, undisturbed, tiny, tmp_path, monkeypatch, where):
    stage, call, *variant = where
    changes = variant[0] if variant else {}
    torch.manual_seed(123)  # whatever the global generators were
    np.random.seed(123)  # noqa: NPY002
    resumed = stop_and_resume(method, {**tiny, **changes}, tmp_path, monkeypatch, stage, call)
    assert_same_run(undisturbed(method.__name__, **changes), resumed)


@ONE_BY_DEFAULT
def test_a_resumed_run_stopped_before_its_stage_keeps_its_checkpoint(method, trained, tmp_path, monkeypatch):
    run, check = Path(shutil.copytree(trained, tmp_path / trained.name)), Run.check

    def stop(run: Run) -> None:
        run.stopping = True
        check(run)

    monkeypatch.setattr(Run, "check", stop)
    assert command(method, ["--resume", str(run), "--data-dir", str(tmp_path / "fresh cache")]) == 130
    monkeypatch.setattr(Run, "check", check)
    assert read(run, "status.json")["stage"].startswith("preparing")
    assert (run / "checkpoint.pt").read_bytes() == (trained / "checkpoint.pt").read_bytes()
    assert command(method, ["--resume", str(run)]) == 0
    assert_same_run(run, trained)


@WITH_EPOCHS
def test_a_finished_run_can_be_trained_longer(method: ModuleType, tiny: dict, trained: Path, tmp_path: Path) -> None:
    """And evaluated on more images; with less to do it ends at once."""
    run = start(method, tiny, tmp_path, genotype=GENOTYPE[method.__name__], train_epochs=1)
    more = ["--eval-n", str(tiny["eval_n"] + 10), "--train-epochs", str(tiny["train_epochs"])]
    assert command(method, ["--resume", str(run), *more]) == 0
    assert_equal(load(run, "checkpoint.pt")["parts"], load(trained, "checkpoint.pt")["parts"])
    result, before = read(run, "result.json"), contents(run)
    assert result["best"]["n"] == result["last"]["n"] == tiny["eval_n"] + 10
    assert command(method, ["--resume", str(run), "--train-epochs", "1"]) == 0
    after = contents(run)
    assert all(after[Path(name)] == before[Path(name)] for name in ("metrics.jsonl", "weights.pt", "weights.best.pt"))
    assert read(run, "status.json")["state"] == "done"


# What common/run.py does for every method is shown by EAGAN's training.


def test_a_stop_file_stops_a_run(training, tmp_path):
    def touch() -> None:
        while not (found := list(tmp_path.glob("*/metrics.jsonl"))):
            time.sleep(0.05)
        (found[0].parent / "STOP").touch()

    Thread(target=touch, daemon=True).start()
    assert command(eagan, flags({**training, "runs_dir": tmp_path, "train_epochs": 1000, "eval_every": 1000})) == 130
    (run,) = tmp_path.iterdir()
    assert read(run, "status.json")["state"] == "stopped"
    assert (run / "checkpoint.pt").exists()


def test_a_full_disk_ends_in_one_line_and_keeps_the_checkpoint_before(training, undisturbed, tmp_path, monkeypatch, capsys):
    save, calls = torch.save, []

    def full(state: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 5:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, path)

    monkeypatch.setattr(common.run.torch, "save", full)
    assert command(eagan, flags({**training, "runs_dir": tmp_path, "save_minutes": 0})) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert os.strerror(errno.ENOSPC) in line
    monkeypatch.setattr(common.run.torch, "save", save)
    (run,) = tmp_path.iterdir()
    assert f"--resume {run}" in line
    assert read(run, "status.json")["state"] == "failed"
    assert command(eagan, ["--resume", str(run)]) == 0
    assert not list(run.rglob("*.tmp"))
    assert_same_run(undisturbed("eagan", genotype="eagan-g"), run)


def test_no_space_for_the_run_is_refused(training, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(common.run.shutil, "disk_usage", lambda path: common.run.shutil._ntuple_diskusage(10, 9, 1))
    assert f"--runs-dir {tmp_path}" in refused(eagan, capsys, tmp_path, flags(training))


@pytest.mark.parametrize("reader", METHODS)
@pytest.mark.parametrize("writer", METHODS)
def test_only_generators_of_one_search_space_are_exchanged(
    writer, reader, undisturbed, tiny_data, tmp_path, capsys, monkeypatch
):
    file = undisturbed(writer) / "genotype.json"
    script = import_module(reader)
    monkeypatch.setattr(common.rehearsal, "demands", lambda *_: [])  # they take time
    words = flags({**tiny_flags(reader, tiny_data), "runs_dir": tmp_path, "genotype": file})
    fits = reader == writer or {reader, writer} == {"eagan", "adversarialnas"}
    assert command(script, [*words, "--dry-run"]) == (0 if fits else 2)
    out, err = capsys.readouterr()
    assert (str(file) in err, err.count("\n")) == ((False, 0) if fits else (True, 1))
    if (writer, reader) == ("adversarialnas", "eagan"):  # its D is of another space
        assert str(file) in out
    assert not list(tmp_path.iterdir())


DIVERGING = {
    "eagan": [dict(genotype="eagan-g", g_lr=1e30, d_lr=1e30)],
    "adversarialnas": [dict(g_lr=1e30, d_lr=1e30, search_eval_every=0)],
    "autogan": [dict(genotype="A", g_lr=1e30, d_lr=1e30)],
    "degas": [dict(w_lr=1e30)],
}
DIVERGING_SEARCH = {"autogan": [dict(g_lr=1e30, d_lr=1e30)]}


@pytest.mark.parametrize("quiet", [False, True], ids=["", "quiet"])
@pytest.mark.parametrize(
    ("method", "rates"), [*each(DIVERGING), *each(DIVERGING_SEARCH, pytest.mark.slow)], indirect=["method"]
)
def test_a_diverged_run_fails_and_saves_no_nan(method, tiny, tmp_path, capsys, rates, quiet):
    """It names loss and step; a run that logs nothing notices, too."""
    quieter = {"log_every": 10**6, "eval_every": 10**6, "save_minutes": 0} if quiet else {}
    assert command(method, flags({**tiny, "runs_dir": tmp_path, **rates, **quieter})) == 2
    (run,) = tmp_path.iterdir()
    assert read(run, "status.json")["state"] == "failed"
    for file in run.glob("*.pt"):
        assert all_finite(load(run, file.name)), file.name
    if not quiet:
        last = rows(run, "metrics.jsonl")[-1]
        loss = next(k for k, v in last.items() if k.startswith("loss/") and v is None)
        assert re.match(rf"error: {loss}\b.*\b{last['step']}\b", capsys.readouterr().err)
        assert "NaN" not in (run / "metrics.jsonl").read_text()


# ---- bad input ------------------------------------------------------------

# A command line and the words that its refusal must hold; one text: all of it.
BAD_OF_ALL = [
    *(
        "--preset tiny",
        ("--popluation 8", "--popluation"),
        "--dataset cifar11",
        "--dataset no/such/place",
        "--device gpu",
        "--device cuda:77",
    ),
    *(
        ("--weights w.pt", "--weights w.pt --phase eval"),
        "--resume nowhere",
        ("--resume nowhere --preset quick", "--preset quick"),
    ),
    *(("--size 30", "30"), ("--phase eval", "--phase eval --weights"), ("--phase train", "--phase train --genotype")),
    *(("--phase eval --weights nowhere.pt", "nowhere.pt"), ("--genotype nowhere.json", "nowhere.json")),
    *(("--d-batch 20000", "--d-batch 20000 64"), "--eval-n 5", "--ref-n 1"),
    *([] if torch.cuda.is_available() else ["--device cuda"]),
]
BAD = {
    "eagan": [
        *(("--population 1", "--population 2"), "--z-dim 100", "--size 24", "--phase search --genotype eagan-g"),
        *(("--train-epochs 1 --epoch-batches 2 --n-critic 3", "--n-critic 3 --train-epochs"), "--objectives fid,speed"),
        *(("--genotype eagan-x", "eagan-x eagan-g adversarialnas-g"), ("--genotype eagan-d-stl10", "eagan-d-stl10 eagan-g")),
        *(("--genotype nowhere.npy", "nowhere.npy"), ("--stages d", "--stages d --genotype")),
        *(("--genotype eagan-g --d-genotype eagan-g", "eagan-g eagan-d-stl10"), ("--init-g autogan-d", "autogan-d eagan-g")),
        *(("--init-d eagan-g", "eagan-g autogan-d"), ("--d-genotype autogan-d", "--d-genotype autogan-d --genotype --dbar")),
        *("--selection cars --objectives fid", ("--dbar plain --size 16", "--size 16")),
    ],
    "adversarialnas": [
        *(
            ("--z-dim 128", "--z-dim 128 3"),
            "--chunks 1",
            ("--search-batch 1", "--search-batch 2"),
            "--search-batch 63",
            "--d-batch 65",
        ),
        *("--search-batch 65", "--size 24", ("--tau-min 9", "--tau-min 9.0 --tau-max 5.0"), ("--gumbel hard", "--gumbel prob")),
        *("--phase search --genotype adversarialnas-g", "--genotype mmd-g --search random"),
        *("--genotype mmd-g --fixed-d super", "--search random --fixed-d super"),
        *(("--search random --candidates 99", "--candidates 99"), ("--g-params inf", "--g-params")),
        *(("--train-epochs 1 --n-critic 13", "--n-critic 13 --train-epochs"), ("--genotype nowhere.npy", "nowhere.npy")),
        *(("--genotype adversarialnas-x", "adversarialnas-x mmd-g"), ("--genotype animation-d", "animation-d mmd-g")),
        ("--genotype adversarialnas-g --d-genotype searched", "searched adversarialnas-g autogan"),
        ("--genotype adversarialnas-g --d-genotype mmd-g", "mmd-g animation-d"),
        ("--d-genotype searched --fixed-d sngan", "--d-genotype searched --fixed-d"),
    ],
    "autogan": [
        *(("--beam 5", "--beam 5 --candidates 4"), ("--search random-shared --random-n 1", "--beam 2 --random-n 1")),
        *(("--grow 2", "--grow '2' --cells 3"), ("--grow 4,2", "--grow '4,2'"), ("--grow 2;4", "--grow '2;4'")),
        *(("--grow 2,6", "--grow '2,6' --iterations 6"), ("--cells 4", "--grow '2,4' --cells 4"), ("--cells 9", "--cells")),
        *(("--cells 4 --grow 1,2,3 --size 24", "--size 24 16"), ("--cells 5 --grow 1,2,3,4", "--size 16 64")),
        *(("--controller-loss reference --ctrl-batch 2", "--ctrl-batch 2 --controller-loss"), "--reward speed"),
        *(("--search random --derive-epochs 0", "--search random --derive-epochs 1"), "--search random --proxy-n 3"),
        *(("--proxy-n 3 --derive-epochs 0", "--proxy-n 3 --derive-epochs 1"), ("--reward-n 5", "--reward-n 5 10")),
        *(("--genotype D", "--genotype 'D' A, B, C, sngan"), ("--genotype 1,0,1,7", "4, 1/shortcut 7 0..1 no, yes")),
        *(("--genotype 1,0,3,1", "1/up"), ("--genotype 1,0,1,1,1,0,0,1,1,1,0,1,0,4", "3/skips"), "--genotype 1,0,-1,1"),
        *(("--genotype 1,0,1", "--genotype 3"), "--genotype A --phase search"),
        ("--train-epochs 1 --epoch-batches 2 --n-critic 3", "--n-critic 3 --train-epochs"),
    ],
    "degas": [
        *(
            ("--n 0", "--n 1"),
            ("--normal-ops 8", "--normal-ops 9"),
            "--search-size 20",
            ("--search-size 8", "--search-size 8 16"),
        ),
        *(
            ("--lap-levels 5", "--lap-levels 5 16"),
            ("--search-images 20000", "--search-images 20000 64"),
            ("--iters 1", "--iters 2"),
        ),
        *(("--search-images 8", "--search-batch 32 8"), "--z-init pca --z-dim 200", "--phase search --random-arch"),
        *("--phase search --genotype baseline", "--genotype baseline --random-arch"),
        *(("--phase train", "--phase train --genotype --random-arch"), ("--genotype basline", "basline baseline")),
    ],
}


@pytest.mark.parametrize(
    ("method", "case"), [*each(dict.fromkeys(METHODS, BAD_OF_ALL)), *each(BAD)], indirect=["method"]
)  # fmt: skip
def test_bad_flags_are_refused_before_anything_is_made(refuse, case):
    words, named = (case, case) if isinstance(case, str) else case
    line = refuse(*words.split())
    assert all(part in line for part in named.split()), line


def test_compile_without_a_compiler_is_refused(refuse, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "--compile" in refuse("--compile")


# Contents of a genotype file, the words of its refusal, and the flag; of EAGAN's and AdversarialNAS's codes: test_eagan.py.
BAD_GENOTYPES = {
    "eagan": [("[1]", []), ("{", []), ('{"D": []}', []), ('{"D": []}', [], "--init-g"), ('{"G": []}', [], "--init-d")],
    "adversarialnas": [("[1]", []), ("{", []), ('{"G": [["nearest"]]}', ["3"])],
    "autogan": [
        *(("[]", []), ("{", []), ('{"method": "eagan", "G": []}', ["vector"]), ('{"vector": [1, 0, 1, 1]}', ["vector"])),
        *(('{"vector": "1 0 1 1 2 0 0 1 1"}', ["5", "2/conv"]), ('{"vector": "__import__(1)"}', [])),
    ],
    "degas": [('{"nodes": {"N1": []}, "n": 1}', ["nodes", "1"]), ('{"G": [["a"]]}', ["nodes"]), ("[1]", []), ("{", [])],
}


@pytest.mark.parametrize(("method", "case"), each(BAD_GENOTYPES), indirect=["method"])
def test_bad_genotype_files_are_refused(refuse, tmp_path, case):
    text, parts, *flag = case
    (tmp_path / "g.json").write_text(text)
    line = refuse(*(flag or ["--genotype"]), tmp_path / "g.json")
    assert all(part in line for part in [*parts, *flag, "g.json"]), line


BAD_WEIGHTS = {
    "eagan": [{}],
    "adversarialnas": [{}],
    "autogan": [{}, {"genotype": {"G": [["pre", "none", "nearest", "maybe", "none"]]}}, {"tap": "before"}],
    "degas": [{}, {"g_ch": "x"}, {"genotype": {"N1": 3}}, {"genotype": 3}, {"G": {}}],
}


@pytest.mark.parametrize(("method", "change"), each(BAD_WEIGHTS), indirect=["method"])
def test_weights_of_another_network_or_size_are_refused(refuse, trained, tmp_path, change):
    other, right = tmp_path / "w.pt", trained / "weights.pt"
    torch.save(load(trained, "weights.pt") | change if change else {"hello": 1}, other)
    assert f"--weights {other}" in refuse("--phase", "eval", "--weights", other)
    assert re.search(rf"--weights {right}\b.*--size 16\b", refuse("--phase", "eval", "--weights", right, "--size", 32))


CHANGED = {
    "eagan": ["--g-ch 8", "--seed 3"],
    "adversarialnas": ["--search-g-ch 8", "--gumbel off", "--arch-lr 0.5"],
    "autogan": ["--search-g-ch 8", "--seed 3", "--grow 2,3", "--reward fid"],
    "degas": ["--iters 9", "--search-ch 8"],
}


@pytest.mark.parametrize(("method", "words"), each(CHANGED), indirect=["method"])
def test_a_changed_flag_is_refused_on_resume(method, whole, words, capsys):
    before, flag = contents(whole), words.split()[0]
    assert command(method, ["--resume", str(whole), *words.split()]) == 2
    line, had = capsys.readouterr().err, read(whole, "config.json")["args"][flag[2:].replace("-", "_")]
    assert re.search(rf"{words}\b.*\b{had}\b", line)
    assert contents(whole) == before


def test_a_run_of_another_script_or_live_or_of_other_images_is_refused_on_resume(method, trained, tmp_path, capsys):
    run = Path(shutil.copytree(trained, tmp_path / trained.name))
    config, status = read(run, "config.json"), read(run, "status.json")

    def resume() -> str:
        before = contents(run)
        assert command(method, ["--resume", str(run)]) == 2
        assert contents(run) == before
        return capsys.readouterr().err

    def write(name: str, values: dict) -> None:
        (run / name).write_text(json.dumps(values))

    write("config.json", {**config, "script": "mine.py"})
    assert re.search(rf"--resume {run}\b.*\bmine.py\b", resume())
    (run / "config.json").write_text("{")
    assert str(run / "config.json") in resume()
    with np.load(config["args"]["dataset"]) as npz:
        images = npz["images"]
        images[0] = 0
        np.savez(tmp_path / "other.npz", images=images, labels=npz["labels"])
    write("config.json", {**config, "args": {**config["args"], "dataset": str(tmp_path / "other.npz")}})
    line = resume()
    assert f"--resume {run}" in line
    assert str(tmp_path / "other.npz") in line
    write("config.json", config)
    parent = {"pid": os.getppid(), "start_time": common.run.kernel_start_time(os.getppid())}
    write("status.json", {**status, "state": "running", "process": {**status["process"], **parent}})
    assert re.search(rf"\b{os.getppid()}\b", resume())
    write("status.json", status)
    moved = shutil.copy(config["args"]["dataset"], tmp_path / "moved.npz")  # the digest tells that they are the same
    write("config.json", {**config, "args": {**config["args"], "dataset": str(tmp_path / "gone.npz")}})
    assert str(tmp_path / "gone.npz") in resume()
    assert command(method, ["--resume", str(run), "--dataset", str(moved)]) == 0


# ---- the command line, the plan ------------------------------------------------------------


def test_flags_beat_presets_and_presets_beat_defaults(method):
    smoke = method.PRESETS["smoke"]
    args = vars(parsed(method, ["--preset", "smoke", "--g-ch", "7"]))
    assert {k: args[k] for k in smoke} == {**smoke, "g_ch": 7}
    assert args["ref_n"] == method.Args().ref_n
    for values in method.PRESETS.values():
        method.check(method.Args(**values), 1)
    if method is autogan:
        method.check_size(method.Args(**smoke, size=32))


PAPER = {  # at the paper's widths: G updates of every stage; parameters and multiply-adds of every network
    "eagan": [
        ("", [460, 92, 240], [7142403, 1891621888, 1053824, 272498816, 72776963, 23806592]),  # G as if it were EAGAN's
        ("--dbar plain", [460, 92, 240], [7142403, 1891621888, 921920, 14707456, 72776963, 23806592]),
        ("--stages coupled", [460, 240], [7142403, 1891621888, 72776963, 23806592]),
        ("--genotype eagan-g --d-genotype autogan-d", [240], [7142403, 1891621888, 1053824, 272498816]),
    ],
    "adversarialnas": [
        ("", [10, 240], [8846851, 2680478720, 1053824, 272498816, 29265443, 11049120]),
        ("--fixed-d autogan", [10, 240], [8846851, 2680478720, 1053824, 272498816, 29265443, 412880]),
        ("--search random", [10, 240], [8846851, 2680478720, 1053824, 272498816]),
        ("--genotype mmd-g --d-genotype animation-d", [240], [20185859, 8880282624, 4553984, 1309317248]),
        (
            "--d-genotype searched --g-params 1e6",
            *([10, 240], [1005238, 125903792, 4553984, 1309317248, 29265443, 11049120]),
        ),
    ],
    "autogan": [
        ("", [75, 90, 105, 30, 64], [4405251, 1765015552, 1053824, 272072832, 2994691, 264768, 68927552]),
        ("--genotype A", [64], [4405251, 1765015552, 1053824, 272072832], "1 0 1 1 1 0 0 1 1 1 0 1 0 3"),
        ("--search random", [16380, 64], [4405251, 1765015552, 1053824, 272072832]),
    ],
    "degas": [
        ("", [50, 99999], [1204483, 422704128, 1053825, 272498817, 9224835, 1389188096, 8192]),
        ("--genotype baseline --conditional", [99999], [1206019, 422704128, 1054083, 272499075]),
        ("--genotype baseline --conditional", [99999], [1206019, 422704128, 1054083, 272499075], "baseline"),
    ],
}


@pytest.mark.parametrize(("method", "case"), each(PAPER), indirect=["method"])
def test_dry_run_makes_nothing_and_tells_exact_sizes(method, tiny_data, tmp_path, capsys, case, monkeypatch):
    monkeypatch.setattr(common.rehearsal, "demands", lambda *_: [])  # they take time
    more, updates, sizes, *genotype = case
    words = ["--dataset", tiny_data["dataset"], "--size", "32", "--evaluator", "compact", "--dry-run", *more.split()]
    words += ["--search-batch", "32"] if method.__name__ == "adversarialnas" else []
    assert command(method, [*words, "--runs-dir", str(tmp_path / "r"), "--data-dir", str(tmp_path)]) == 0
    plan, *networks = out = capsys.readouterr().out.splitlines()
    assert [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) \(", plan)] == updates
    assert "FLOP" in plan
    numbers = re.findall(r"\d{1,3}(?:,\d{3})+", "\n".join(networks))
    assert [int(n.replace(",", "")) for n in numbers] == sizes
    assert all(any(text in line for line in out) for text in genotype)
    assert not list(tmp_path.iterdir())


def test_number_and_names_of_the_classes_are_told(training: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for i in range(8):
        file = tmp_path / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(file)
    values = training | {"dataset": tmp_path, "runs_dir": tmp_path / "runs", "phase": "train"}
    assert command(eagan, [*flags(values), "--dry-run"]) == 0
    assert "2 classes: cat, dog" in capsys.readouterr().out.splitlines()


# ---- several processes ------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--d-batch", "--g-batch", "--search-batch"])
def test_a_batch_that_processes_cannot_share_is_refused(method, flag):
    """AdversarialNAS halves its search batch, for the weights and for the architecture."""
    parts = 2 if (method.__name__, flag) == ("adversarialnas", "--search-batch") else 1
    for batch, world in ((33, 2), (2, 2), (6, 4)) if hasattr(method.Args, flag[2:].replace("-", "_")) else ():
        words = ["--d-batch", "64", "--g-batch", "64", flag, str(batch)]
        if batch % (parts * world):
            with pytest.raises(UserError, match=rf"^{flag} {batch}\b.*\b{world}\b" + rf".*\b{2 * world}\b" * (parts - 1)):
                method.check(parsed(method, words), world)
        words[-1] = str(parts * world)
        method.check(parsed(method, words), world)


def first(run: Path, name: str, key: str) -> object:
    return next(row[key] for row in rows(run, name) if key in row)


AS_ONE = {  # numbers after a step or two, and how near BatchNorm on half a batch lets them be
    "eagan": [(lambda run: first(run, "metrics.jsonl", "loss/d"), 0.5)],
    "adversarialnas": [(lambda run: rows(run, "search.jsonl")[1]["probabilities"]["G"]["1/1->3"]["conv_3x3"], 0.07)],
    "autogan": [
        (lambda run: autogan.read_vector(first(run, "search.jsonl", "scored")[0]["vector"]), 0),
        (lambda run: first(run, "search.jsonl", "reward"), 0.1),
    ],
    "degas": [
        (lambda run: first(run, "metrics.jsonl", "loss/zw"), 0.3),
        (lambda run: first(run, "search.jsonl", "loss/rec"), 1e-5),
    ],
}


@pytest.mark.slow
def test_two_processes_share_batches_and_scoring(method, tiny, whole, tmp_path):
    shared = two_processes(method, tiny, tmp_path)
    assert method is autogan or drawn(shared) == drawn(whole)
    for number, rel in AS_ONE[method.__name__]:
        assert number(shared) == pytest.approx(number(whole), rel=rel)
    assert None not in [x["fid"] for row in rows(shared, "search.jsonl") for x in row.get("population", [])]
