"""Runs of adversarialnas.py as a user has them: files, seeds, stop and resume in every phase, variants, bad input."""

import json
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import adversarialnas as nas
import common.data
from adversarialnas import D_SPACE, G_SPACE, PUBLISHED
from common.cells import named
from common.cli import cli
from common.files import UserError
from common.run import Run
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


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in data set with 600 images, for commands that are refused."""
    monkeypatch.setattr(common.data, "shapes", partial(common.data.shapes, 600))


@pytest.fixture(scope="module")
def tiny(tiny_data: dict) -> dict:
    """Flags of a search of 2 G updates and a training of 4; --runs-dir is up to the test."""
    return {
        **tiny_data,
        **{"search_g_ch": 2, "search_d_ch": 2, "g_ch": 2, "d_ch": 2, "z_dim": 6, "n_critic": 2, "epoch_batches": 4},
        **{
            "search_batch": 4,
            "g_batch": 4,
            "d_batch": 4,
            "search_epochs": 2,
            "derive_every": 3,
            "search_eval_every": 1,
        },
        **{"arch_lr": 0.01, "train_epochs": 2, "eval_n": 10, "eval_every": 1, "candidates": 2},
        **{"sample_every": 2, "log_every": 1},
    }


@pytest.fixture(scope="module")
def whole(tiny: dict, quick_compact: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all phases that nobody disturbed."""
    return start(nas, tiny, tmp_path_factory.mktemp("whole"))


# ---- what a run leaves ------------------------------------------------------------


def test_run_directory_has_every_file_of_the_contract(whole: Path) -> None:
    config, status, result = (json.loads((whole / f"{n}.json").read_text()) for n in ("config", "status", "result"))
    assert (config["script"], config["method"], config["schema"]) == ("adversarialnas.py", "adversarialnas", 1)
    assert (status["state"], status["phase"], status["error"]) == ("done", "train", None)
    assert status["step"] == status["total"] == 6
    assert {"last", "best", "n", "net", "seconds", "peak_mem", "command", "genotype"} <= result.keys()
    assert (whole / "source" / "adversarialnas.py").read_text() == (ROOT / "adversarialnas.py").read_text()
    assert not list(whole.rglob("*.tmp"))
    found = rows(whole, "metrics.jsonl")
    losses = [r for r in found if "loss/d" in r]
    assert [r["step"] for r in losses] == list(range(1, 7))
    assert all({"loss/g", "loss/g_arch", "loss/d_arch"} <= r.keys() for r in losses if r["phase"] == "search")
    evaluations = [(r["step"], r["eval/what"]) for r in found if "eval/fid" in r]
    assert evaluations == [
        *((0, "Super-G"), (2, "Super-G")),
        *((2, "untrained"), (4, "training"), (6, "last")),
    ]


def test_search_rows_tell_probabilities_entropy_genotype_and_flips(whole: Path) -> None:
    found = rows(whole, "search.jsonl")
    assert [r["batch"] for r in found] == [0, 3, 4]
    assert [r["step"] for r in found] == [0, 2, 2]
    for row in found:
        for net, space in (("G", G_SPACE), ("D", D_SPACE)):
            keys = [f"{c + 1}/{e.name}" for c in range(space.cells) for e in space.edges_of(c)]
            assert list(row["probabilities"][net]) == list(row["entropy"][net]) == keys
            specs = [e for c in range(space.cells) for e in space.edges_of(c)]
            for key, edge in zip(keys, specs, strict=True):
                p = row["probabilities"][net][key]
                assert tuple(p) == edge.ops
                dead = net == "D" and len(edge.ops) == 5
                assert sum(p.values()) == pytest.approx(5 / 7 if dead else 1, abs=0.05 if dead else 1e-5)
                assert 0 < row["entropy"][net][key] < 1.9460  # ln 7
            assert space.check(row["genotype"][net], "row")
    flips = {"G": 0, "D": 0}
    for before, row in pairwise(found):
        for net in "GD":
            pairs = zip(before["genotype"][net], row["genotype"][net], strict=True)
            flips[net] += sum(a != b for one in pairs for a, b in zip(*one, strict=True))
        assert row["flips"] == flips
    assert flips["G"] > 0
    assert found[-1]["genotype"] == {k: json.loads((whole / "genotype.json").read_text())[k] for k in "GD"}
    assert sorted(f.stem for f in (whole / "genotypes").iterdir()) == ["000000", "000002"]


def test_the_genotype_is_also_left_as_the_authors_file(whole: Path) -> None:
    saved = json.loads((whole / "genotype.json").read_text())
    for net, space in (("G", G_SPACE), ("D", D_SPACE)):
        codes = np.load(whole / f"latest_{net}.npy")
        assert (codes.dtype.str, codes.shape, codes.flags.c_contiguous) == ("|u1", (space.cells, 7), True)
        assert codes.tolist() == space.to_codes(saved[net])


def test_command_of_a_run_reproduces_its_arguments(whole: Path) -> None:
    config, made = json.loads((whole / "config.json").read_text()), []

    def main(args: nas.Args) -> None:
        made.append(args)

    words = config["command"].split()
    assert words[:2] == ["python", "adversarialnas.py"]
    assert cli(main, nas.Args, nas.PRESETS, words[2:]) == 0
    assert {k: str(v) for k, v in vars(made[0]).items()} == {k: str(v) for k, v in config["args"].items()}


def test_genotype_of_a_run_is_trained_without_a_search(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(nas, tiny, tmp_path, genotype=str(whole / "genotype.json"), d_genotype="searched")
    saved = json.loads((whole / "genotype.json").read_text())
    assert load(run, "weights.pt")["genotype"] == {k: tuple(map(tuple, saved[k])) for k in "GD"}
    assert not (run / "search.jsonl").exists()
    assert "cells.0.edges.0" in next(iter(load(run, "checkpoint.pt")["parts"]["D"]))


def test_weights_are_evaluated_alone(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(nas, tiny, tmp_path, phase="eval", weights=whole / "weights.pt", g_ch=99)
    result, trained = (json.loads((r / "result.json").read_text()) for r in (run, whole))
    assert result["last"]["fid"] == trained["last"]["fid"]


@pytest.mark.parametrize(
    "flags",
    [
        *({"search": "random"}, slow({"fixed_d": "super"}), slow({"fixed_d": "sngan"})),
        *(slow({"fixed_d": "autogan"}), slow({"d_genotype": "searched"})),
        *(slow({"gumbel": "log"}), slow({"gumbel": "off"}), slow({"mixed": "plain"}), slow({"amp": True})),
        *(slow({"ref_ema_overwrite": True}), slow({"search": "random", "candidates": 1, "g_params": 2e4})),
        *(slow({"g_params": 2e4}), slow({"size": 48, "chunks": 2}), slow({"grad_clip": 50.0, "search_eval_every": 0})),
        *(slow({"genotype": "mmd-g"}), slow({"genotype": "animation-g", "d_genotype": "animation-d"})),
    ],
    ids=str,
)
def test_every_variant_runs(tiny: dict, tmp_path: Path, flags: dict) -> None:
    run = start(nas, tiny, tmp_path, **flags)
    result = json.loads((run / "result.json").read_text())
    assert result["last"]["fid"] > 0
    searched = (run / "search.jsonl").exists() and rows(run, "search.jsonl")
    assert bool(searched) == ("genotype" not in flags)
    if flags.get("search") == "random":
        n = flags.get("candidates", 2)
        assert len(searched) == n
        scores = [r["eval/fid"] for r in searched]
        best = scores.index(min(scores)) if n > 1 else 0
        assert result["genotype"]["G"] == searched[best]["genotype"]["G"]
        assert (scores == [None]) == (n == 1)
    if "fixed_d" in flags:
        assert searched[-1]["genotype"].keys() == {"G"}
        assert result["genotype"]["D"] is None
    if "g_params" in flags:  # the width nearest to it
        ch, genotype = load(run, "weights.pt")["g_ch"], result["genotype"]["G"]
        params = [nas.Generator.cost(genotype, c, 6, 16).params for c in (ch - 1, ch, ch + 1)]
        assert min(params, key=lambda n: abs(n - 2e4)) == params[1] == result["genotype"]["params"]["G"]


@pytest.mark.slow
def test_merged_and_plain_search_alike(tiny: dict, whole: Path, tmp_path: Path) -> None:
    """The same losses but for rounding, update after update."""
    plain = start(nas, tiny, tmp_path, mixed="plain", phase="search")
    a, b = ([r for r in rows(run, "metrics.jsonl") if "loss/g_arch" in r] for run in (plain, whole))
    for key in ("loss/d", "loss/g", "loss/d_arch", "loss/g_arch"):
        assert [r[key] for r in a] == pytest.approx([r[key] for r in b], rel=1e-3, abs=1e-4)


# ---- seeds, evaluation ------------------------------------------------------------


@pytest.mark.slow
def test_one_seed_is_one_run_and_another_seed_is_another(tiny: dict, whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever the global generator was
    assert_same_run(whole, start(nas, tiny, tmp_path))
    other = start(nas, tiny, tmp_path, seed=1, phase="search", epoch_batches=1, search_eval_every=0)
    first = [rows(run, "search.jsonl")[0]["probabilities"] for run in (whole, other)]
    assert first[0] != first[1]


def test_evaluation_and_samples_do_not_change_training(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(nas, tiny, tmp_path, eval_every=2, sample_every=1, search_eval_every=0, eval_n=12)
    assert_equal(load(run, "checkpoint.pt")["parts"], load(whole, "checkpoint.pt")["parts"])
    assert rows(run, "search.jsonl") == rows(whole, "search.jsonl")


@pytest.mark.slow
def test_quirk_3_an_evaluation_changes_the_search_only_when_asked_to(tiny: dict, tmp_path: Path) -> None:
    runs = [start(nas, tiny, tmp_path, ref_ema_overwrite=on, phase="search", search_epochs=3) for on in (True, False)]
    quirk, right = ([r["probabilities"]["G"] for r in rows(run, "search.jsonl")] for run in runs)
    assert quirk[0] == right[0]
    assert quirk[-1] != right[-1]


# ---- stop and resume ------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "call"),
    [
        *(("search", 2), slow("training", 2)),  # in training: test_a_finished_run_can_be_trained_longer too
        *(slow("search", 4), slow("search evaluation", 1), slow("preparing", 1), slow("evaluation (untrained)", 1)),
        *(slow("evaluation (training)", 1), slow("evaluation (last)", 1), slow("training", 4)),
    ],
)
def test_stopped_in_any_phase_and_resumed_equals_undisturbed(
    tiny: dict, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int
) -> None:
    assert_same_run(whole, stop_and_resume(nas, tiny, tmp_path, monkeypatch, stage, call))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "call"), [("candidate 1", 1), ("candidate 2", 2), ("candidate 1 scoring", 1)])
def test_random_search_resumed_equals_undisturbed(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int
) -> None:
    tiny = {**tiny, "search": "random"}
    undisturbed = start(nas, tiny, tmp_path / "a")
    assert_same_run(undisturbed, stop_and_resume(nas, tiny, tmp_path / "b", monkeypatch, stage, call))


@pytest.mark.slow
def test_kill_during_a_checkpoint_leaves_one_that_resumes(tiny: dict, whole: Path, tmp_path: Path) -> None:
    assert_same_run(whole, kill_and_resume(nas, tiny, tmp_path, save=6))


def test_a_stop_file_stops_the_search(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = Run.tick

    def stopping(run: Run, *rest: object) -> None:
        run.stopping = True  # what the heartbeat does when it sees the file
        tick(run, *rest)

    monkeypatch.setattr(Run, "tick", stopping)
    assert command(nas, flags({**tiny, "runs_dir": tmp_path})) == 130
    (run,) = tmp_path.glob("adversarialnas-*")
    assert (run / "checkpoint.pt").exists()


def test_a_finished_run_can_be_trained_longer(tiny: dict, tmp_path: Path) -> None:
    short = start(nas, tiny, tmp_path, genotype="adversarialnas-g", train_epochs=1)
    assert command(nas, ["--resume", str(short), "--train-epochs", "2"]) == 0
    long = start(nas, tiny, tmp_path, genotype="adversarialnas-g")
    assert_equal(load(short, "checkpoint.pt")["parts"], load(long, "checkpoint.pt")["parts"])


def test_a_diverged_search_fails_with_the_step(tiny: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = flags({**tiny, "runs_dir": tmp_path, "g_lr": 1e30, "d_lr": 1e30, "search_eval_every": 0})
    assert command(nas, words) == 2
    assert "diverged" in capsys.readouterr().err
    (run,) = tmp_path.glob("adversarialnas-*")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


# ---- bad input ------------------------------------------------------------


SMOKE = ["--preset", "smoke"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--z-dim", "128"], ["--z-dim 128", "multiple of 3"]),  # fact 27
        (["--chunks", "1"], ["--chunks 1"]),
        (["--search-batch", "1"], ["--search-batch", "greater than or equal to 2"]),
        (["--search-batch", "599"], ["--search-batch 599", "1 of 600 images"]),
        (["--d-batch", "601"], ["--d-batch 601", "600 images"]),
        (["--search-batch", "601"], ["--search-batch 601", "600 images"]),
        (["--size", "24"], ["--size 24", "multiple of 16"]),
        (["--size", "30"], ["30", "multiple of 8"]),
        (["--tau-min", "9"], ["--tau-min 9.0", "--tau-max 5.0"]),
        (["--gumbel", "hard"], ["--gumbel", "prob"]),
        (["--phase", "train"], ["--phase train", "--genotype", "adversarialnas-g"]),
        (["--phase", "search", "--genotype", "adversarialnas-g"], ["--genotype adversarialnas-g", "--phase search"]),
        (["--genotype", "mmd-g", "--search", "random"], ["--genotype mmd-g", "--search random"]),
        (["--genotype", "mmd-g", "--fixed-d", "super"], ["--genotype mmd-g", "--fixed-d super"]),
        (["--search", "random", "--candidates", "99"], ["--candidates 99", "G updates"]),
        (["--train-epochs", "1", "--n-critic", "13"], ["--n-critic 13", "--train-epochs"]),
        (["--g-params", "inf"], ["--g-params", "less than or equal to 1000000000"]),
        (["--weights", "w.pt"], ["--weights w.pt", "--phase eval", "--genotype"]),
        (["--phase", "eval"], ["--weights"]),
        (["--phase", "eval", "--weights", "nowhere.pt"], ["nowhere.pt", "No such file"]),
        (["--genotype", "adversarialnas-x"], ["adversarialnas-x", "mmd-g"]),
        (["--genotype", "animation-d"], ["animation-d: is a genotype of D", "mmd-g"]),
        (["--genotype", "nowhere.json"], ["nowhere.json", "No such file"]),
        (["--genotype", "nowhere.npy"], ["nowhere.npy"]),
        (["--genotype", "adversarialnas-g", "--d-genotype", "searched"], ["searched", "adversarialnas-g", "autogan"]),
        (["--genotype", "adversarialnas-g", "--d-genotype", "mmd-g"], ["mmd-g: is a genotype of G", "animation-d"]),
        (["--d-genotype", "searched", "--fixed-d", "sngan"], ["--d-genotype searched", "--fixed-d"]),
        (["--search", "random", "--fixed-d", "super"], ["--fixed-d super", "--search random"]),
        (["--eval-n", "5"], ["--eval-n 5"]),
        (["--device", "gpu"], ["--device gpu", "auto"]),
        (["--resume", "nowhere"], ["nowhere"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else x,
)
def test_bad_flags_are_refused_before_anything_is_made(capsys, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    preset = [] if "--resume" in words else SMOKE
    line = refused(nas, capsys, tmp_path, [*preset, *words])
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("codes", "parts"),
    [
        (np.full((3, 7), 7), ["cell 1, edge 0->1", "code 7", "0..2"]),
        (np.zeros((3, 7), int), ["cell 1", "node 3 has no input", "1->3 and 2->3"]),
        (np.zeros((4, 7), int), ["(3, 7)", "(4, 7)"]),
        (np.array([["a"]], object), ["not a .npy file"]),
    ],
)
def test_bad_npy_genotypes_are_refused(capsys, tmp_path: Path, codes: np.ndarray, parts: list[str]) -> None:
    np.save(tmp_path / "g.npy", codes, allow_pickle=True)
    line = refused(nas, capsys, tmp_path, [*SMOKE, "--genotype", str(tmp_path / "g.npy")])
    assert all(part in line for part in [*parts, "g.npy"]), line


def test_a_genotype_file_without_an_input_names_the_edge(capsys, tmp_path: Path) -> None:
    genotype = [list(row) for row in named("adversarialnas-g", G_SPACE, PUBLISHED)]
    genotype[1][4:] = ["none"] * 3
    (tmp_path / "g.json").write_text(json.dumps({"G": genotype}))
    line = refused(nas, capsys, tmp_path, [*SMOKE, "--genotype", str(tmp_path / "g.json")])
    assert "g.json, G: cell 2: node 4 has no input: one of the edges 1->4 and 2->4 and 3->4" in line


def test_weights_of_another_network_are_refused(capsys, tmp_path: Path) -> None:
    torch.save({"hello": 1}, tmp_path / "w.pt")
    line = refused(nas, capsys, tmp_path, [*SMOKE, "--phase", "eval", "--weights", str(tmp_path / "w.pt")])
    assert "w.pt: not weights.pt of a run of this method" in line


def test_a_changed_flag_is_refused_on_resume(whole: Path, capsys) -> None:
    before = {f: f.read_bytes() for f in whole.rglob("*") if f.is_file()}
    for flag, value, has in (("--search-g-ch", "8", "2"), ("--gumbel", "off", "prob"), ("--arch-lr", "0.5", "0.01")):
        assert command(nas, ["--resume", str(whole), flag, value]) == 2
        assert f"{flag} {value}: this run has {has}" in capsys.readouterr().err
    assert before == {f: f.read_bytes() for f in whole.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            [],
            [
                "G, were it adversarialnas-g: 8,846,851 parameters, 2,680,478,720 multiply-adds an image",
                "D: 1,053,824 parameters, 272,498,816 multiply-adds an image",
                "Super-G: 29,265,443 parameters",
                "Super-D: 11,049,120 parameters",
            ],
        ),
        (
            ["--d-genotype", "searched", "--g-params", "1e6"],
            ["G, were it adversarialnas-g: 1,005,238 ", "D, were it animation-d: 4,553,984 ", "Super-G", "Super-D"],
        ),
        (["--fixed-d", "autogan"], ["G, were", "D: 1,053,824 ", "Super-G: 29,265,443 ", "D of the search: 412,880 "]),
        (["--search", "random"], ["G, were it adversarialnas-g: 8,846,851 parameters", "D: 1,053,824 parameters"]),
        (
            ["--genotype", "mmd-g", "--d-genotype", "animation-d"],
            ["G: 20,185,859 parameters", "D: 4,553,984 parameters"],
        ),
    ],
    ids=lambda x: " ".join(x) if x and x[0].startswith("--") else "",
)
def test_dry_run_makes_nothing_and_tells_exact_sizes(
    capsys: pytest.CaptureFixture, tmp_path: Path, words: list[str], lines: list[str]
) -> None:
    words = ["--dataset", "shapes", "--evaluator", "compact", "--dry-run", *words]
    assert command(nas, [*words, "--runs-dir", str(tmp_path / "r"), "--data-dir", str(tmp_path)]) == 0
    first, *found = capsys.readouterr().out.splitlines()
    assert re.search(r"shapes, .* 32 px .*\(train\) G updates · .* PFLOP", first)
    assert len(found) == len(lines)
    assert all(line.startswith(want) for line, want in zip(found, lines, strict=True)), found
    assert not list(tmp_path.iterdir())


def test_a_run_begins_with_its_sizes(whole: Path) -> None:
    log, params = (whole / "log.txt").read_text(), json.loads((whole / "config.json").read_text())["params"]
    names = ["G, were it adversarialnas-g", "D", "Super-G", "Super-D"]
    assert list(params) == names
    assert all(f"{name}: {params[name]:,} parameters" in log for name in names)


# ---- several processes ------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_the_batches(tiny: dict, whole: Path, tmp_path: Path) -> None:
    done = torchrun(nas, flags({**tiny, "runs_dir": tmp_path}))
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("adversarialnas-*")
    assert json.loads((run / "config.json").read_text())["world_size"] == 2
    p = [rows(r, "search.jsonl")[1]["probabilities"]["G"]["1/1->3"]["conv_3x3"] for r in (run, whole)]
    assert p[0] == pytest.approx(p[1], abs=0.01)
    assert all(x.isfinite().all() for x in load(run, "weights.pt")["G"].values())


@pytest.mark.parametrize(("batch", "world"), [(2, 2), (5, 2), (3, 3), (6, 4)])
def test_a_batch_that_processes_cannot_halve_is_refused(batch: int, world: int) -> None:
    with pytest.raises(UserError, match=rf"--search-batch {batch}: is halved on {world} processes; .* of {2 * world}$"):
        nas.check(replace(nas.Args(), search_batch=batch, d_batch=12, g_batch=12), world)
    nas.check(replace(nas.Args(), search_batch=3 * world, d_batch=12, g_batch=12), world)
