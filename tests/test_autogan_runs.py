"""AutoGAN runs as a user has them: the run directory, variants, seeds, stop and resume in every phase, bad input."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import autogan
import common.run
from autogan import PRESETS, PUBLISHED, Args, Generator, names_of, read_vector
from common.cells import count_params
from common.cli import cli
from common.files import UserError
from common.run import Run
from tests.runs import (
    ROOT,
    assert_equal,
    assert_same_run,
    command,
    flags,
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
    """Flags of a search with a dynamic reset, choice and training, some twenty steps; --runs-dir is up to the test."""
    return {
        **tiny_data,
        **{
            "g_ch": 4,
            "d_ch": 4,
            "search_g_ch": 4,
            "search_d_ch": 4,
            "z_dim": 6,
            "g_batch": 4,
            "d_batch": 4,
            "n_critic": 2,
        },
        **{
            "iterations": 3,
            "grow": "1,2",
            "gan_epochs": 1,
            "epoch_batches": 4,
            "ctrl_steps": 2,
            "candidates": 3,
            "beam": 2,
        },
        **{"reward_n": 20, "derive_epochs": 1, "final_n": 20, "proxy_n": 1, "reset_window": 3, "reset_variance": 9.0},
        **{"train_epochs": 2, "eval_n": 30, "eval_every": 1, "sample_every": 2, "log_every": 1},
    }


@pytest.fixture(scope="module")
def whole(tiny: dict, quick_compact: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all phases that nobody disturbed."""
    return start(autogan, tiny, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def trained(tiny: dict, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of what that run has found, without a search."""
    return start(autogan, tiny, tmp_path_factory.mktemp("trained"), genotype=str(whole / "genotype.json"))


# ---- what a run leaves ------------------------------------------------------------


def test_run_directory_has_every_file_of_the_contract(whole: Path) -> None:
    config, status, result = (json.loads((whole / f"{n}.json").read_text()) for n in ("config", "status", "result"))
    assert (config["schema"], config["script"], config["method"]) == (1, "autogan.py", "autogan")
    assert {"preset", "dataset", "seed", "args", "command", "git", "versions", "device", "params"} <= config.keys()
    assert (status["state"], status["phase"], status["error"]) == ("done", "train", None)
    assert status["step"] == status["total"]  # a dynamic reset shortens the plan
    assert {"last", "best", "n", "net", "seconds", "peak_mem", "command", "genotype"} <= result.keys()
    assert (whole / "source" / "autogan.py").read_text() == (ROOT / "autogan.py").read_text()
    assert not list(whole.rglob("*.tmp"))
    evaluations = [r for r in rows(whole, "metrics.jsonl") if "eval/fid" in r]
    assert [r["eval/what"] for r in evaluations] == ["best of the search", "untrained", "training", "last"]
    assert [r["eval/bn"] for r in evaluations] == ["shared", "running", "running", "running"]
    assert "noise/fid" in evaluations[1]


def test_search_rows_show_controller_beam_reset_and_choice(whole: Path) -> None:
    found = rows(whole, "search.jsonl")
    assert [r["kind"] for r in found if r["kind"] != "reset"] == [
        *("controller", "controller", "beam", "controller", "controller", "beam"),
        *("controller", "controller", "beam", "derive"),
    ]
    assert [r["stage"] for r in found if r["kind"] == "reset"] == [1]
    for row in found:
        assert row["stage"] in (0, 1, 2)
        if row["kind"] == "controller":
            assert len(row["decisions"]) == len(row["options"]) == len(row["policy"]) == len(row["entropy"])
            for options, policy in zip(row["options"], row["policy"], strict=True):
                assert len(options) == len(policy)
                assert sum(policy) == pytest.approx(1)
            assert row["reward"] == pytest.approx(np.mean([x["score"] for x in row["scored"]]))
            assert row["baseline"] > 0
        elif row["kind"] == "beam":
            lengths = {len(read_vector(x["vector"])) for x in row["beam"]}
            assert lengths == {(4, 9, 14)[row["stage"]]}
        elif row["kind"] == "reset":
            assert min(row["window"]["var_g"], row["window"]["var_d"]) < 9
    derive = found[-1]
    assert [x["how"] for x in derive["beam"]].count("proxy") == 1
    assert all(x["shared"] > 0 and x["score"] > 0 for x in derive["beam"])
    assert derive["spearman"] is None or -1 <= derive["spearman"]["rho"] <= 1


def test_the_best_finalist_is_trained(whole: Path) -> None:
    derive = rows(whole, "search.jsonl")[-1]
    ours = [x for x in derive["beam"] if x["how"] == "beam"]
    best = max(ours, key=lambda x: x["score"])["vector"]
    genotype, weights = json.loads((whole / "genotype.json").read_text()), load(whole, "weights.pt")
    assert genotype["vector"] == best
    assert weights["genotype"]["G"] == names_of(read_vector(best))
    assert [c["conv"] for c in genotype["cells"]] == [row[0] for row in names_of(read_vector(best))]
    assert genotype["params"]["G"] == sum(v.numel() for k, v in weights["G"].items() if "running" not in k and "num_b" not in k)


def test_command_of_a_run_reproduces_its_arguments(whole: Path) -> None:
    config, made = json.loads((whole / "config.json").read_text()), []
    words = config["command"].split()
    assert words[:2] == ["python", "autogan.py"]

    def main(args: Args) -> None:
        made.append(args)

    assert cli(main, Args, PRESETS, words[2:]) == 0
    assert {k: str(v) for k, v in vars(made[0]).items()} == {k: str(v) for k, v in config["args"].items()}


def test_genotype_of_a_run_is_trained_without_a_search(whole: Path, trained: Path) -> None:
    assert load(trained, "weights.pt")["genotype"] == load(whole, "weights.pt")["genotype"]
    assert not (trained / "search.jsonl").exists()


@pytest.mark.parametrize("of_before", [{}, slow({"tap": "after"})], ids=str)
def test_weights_are_evaluated_alone(tiny: dict, whole: Path, tmp_path: Path, of_before: dict) -> None:
    """Those of a version that knew --tap as well."""
    torch.save({**load(whole, "weights.pt"), **of_before}, tmp_path / "w.pt")
    run = start(autogan, tiny, tmp_path / "runs", phase="eval", weights=tmp_path / "w.pt", g_ch=99)
    result, trained = (json.loads((r / "result.json").read_text()) for r in (run, whole))
    assert result["last"]["fid"] == trained["last"]["fid"]
    costs = Generator.cost(load(whole, "weights.pt")["genotype"]["G"], 4, 6, 16)
    assert json.loads((run / "config.json").read_text())["params"] == {"G": costs.params}


@pytest.mark.parametrize(
    "flags",
    [
        *({"search": "random", "random_n": 2, "phase": "search"}, slow({"reward": "fid", "ctrl_batch": 2})),
        *(slow({"search": "slas"}), slow({"search": "random-shared"}), slow({"search": "random", "random_n": 2})),
        *(slow({"reward": "is-cost", "cost": "macs"}), slow({"controller_loss": "reference"}), slow({"dedupe": False})),
        *(slow({"bn_batches": 2}), slow({"amp": True}), slow({"dynamic_reset": False})),
        *(
            slow({"cells": 1, "grow": ""}),
            slow({"cells": 2, "grow": "2"}),
            slow({"cells": 4, "size": 32, "grow": "1,2,3", "iterations": 4}),
        ),
        *(slow({"size": 48, "genotype": "A"}), slow({"derive_epochs": 0, "proxy_n": 0}), slow({"size": 24})),
        *(slow({"genotype": name}) for name in ("B", "C", "sngan", "1 1 2 1 1 1 2 1 1 1 1 2 1 3")),
    ],
    ids=str,
)
def test_every_variant_runs(tiny: dict, tmp_path: Path, flags: dict) -> None:
    values = {**tiny, **({"proxy_n": 0} if flags.get("search") == "random" else {}), **flags}
    run = start(autogan, values, tmp_path)
    result = json.loads((run / "result.json").read_text())
    vector = read_vector(result["genotype"]["vector"])
    if "genotype" in flags:
        assert vector == read_vector(flags["genotype"])
    else:
        assert len(names_of(vector)) == flags.get("cells", 3)
        kinds = {r["kind"] for r in rows(run, "search.jsonl")}
        assert ("controller" in kinds) == (flags.get("search", "mlas") in ("mlas", "slas"))
        assert "derive" in kinds
    if values.get("phase") != "search":
        assert result["last"]["fid"] > 0


# ---- seeds, evaluation ------------------------------------------------------------


def test_bug_8_one_seed_is_one_run_and_another_seed_is_another(tiny: dict, whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever the global generators were
    np.random.seed(123)  # noqa: NPY002
    assert_same_run(whole, start(autogan, tiny, tmp_path))
    other = start(autogan, tiny, tmp_path, seed=1, phase="search", derive_epochs=0, proxy_n=0)
    drawn = [[x["vector"] for r in rows(run, "search.jsonl") for x in r.get("scored", [])] for run in (whole, other)]
    assert len(drawn[0]) == len(drawn[1]) == 6
    assert drawn[0] != drawn[1]


def test_evaluation_and_samples_do_not_change_training(tiny: dict, whole: Path, trained: Path, tmp_path: Path) -> None:
    run = start(autogan, tiny, tmp_path, genotype=str(whole / "genotype.json"), eval_every=2, sample_every=1)
    evaluations = [sum("eval/fid" in r for r in rows(r, "metrics.jsonl")) for r in (run, trained)]
    assert evaluations == [2, 3]
    assert_equal(load(run, "checkpoint.pt")["parts"], load(trained, "checkpoint.pt")["parts"])
    assert_equal(load(run, "weights.pt")["G"], load(trained, "weights.pt")["G"])


# ---- stop and resume ------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "call"),
    [
        *(
            ("stage 1 iteration 2/3 candidates", 3),
            slow("stage 1 iteration 2/3", 2),
            slow("finalist 2/3", 2),
            slow("training", 3),
        ),
        *(
            slow("stage 0 iteration 1/3", 2),
            slow("stage 0 iteration 1/3 controller", 3),
            slow("stage 2 iteration 3/3", 1),
        ),
        *(slow("stage 2 iteration 3/3 controller", 1), slow("stage 2 iteration 3/3 candidates", 2), slow("proxy", 1)),
        *(slow("finalist 1/3 scoring", 1), slow("finalist 3/3", 1), slow("preparing", 2)),
        *(slow("evaluation (untrained)", 1), slow("evaluation (training)", 1), slow("evaluation (last)", 1)),
    ],
)
def test_bug_9_stopped_in_any_phase_and_resumed_equals_undisturbed(
    tiny: dict, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int
) -> None:
    assert_same_run(whole, stop_and_resume(autogan, tiny, tmp_path, monkeypatch, stage, call))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "stage", "call"),
    [
        ({"search": "random", "random_n": 2, "proxy_n": 0}, "finalist 2/2", 2),
        ({"search": "random-shared", "bn_batches": 1}, "stage 2 iteration 3/3 candidates", 6),
        ({"controller_loss": "reference"}, "stage 0 iteration 1/3 controller", 3),
    ],
    ids=str,
)
def test_variants_stopped_and_resumed_equal_undisturbed(tiny: dict, tmp_path: Path, monkeypatch, variant, stage, call) -> None:
    values = {**tiny, **variant}
    undisturbed = start(autogan, values, tmp_path / "a")
    (tmp_path / "b").mkdir()
    assert_same_run(undisturbed, stop_and_resume(autogan, values, tmp_path / "b", monkeypatch, stage, call))


def test_bug_9_loss_windows_baseline_and_beam_are_in_the_checkpoint(tiny: dict, tmp_path: Path, monkeypatch) -> None:
    """The authors' loses the windows, so that a resumed search takes 500 G steps before it can reset again."""
    args, seen, begin = (
        {**tiny, "phase": "search", "reset_variance": 0.0, "derive_epochs": 0, "proxy_n": 0},
        [],
        Run.begin,
    )

    def look(run: Run, phase: str, stage: str, *rest: object, **more: object) -> None:
        if stage == "stage 2 iteration 3/3 controller":
            run.save()
            seen.append(load(run.dir, "checkpoint.pt"))
        begin(run, phase, stage, *rest, **more)

    monkeypatch.setattr(Run, "begin", look)
    start(autogan, args, tmp_path)
    (saved,) = seen
    state = saved["state"]
    assert [len(state["windows"][k]) for k in "gd"] == [3, 3]
    assert all(isinstance(loss, float) for window in state["windows"].values() for loss in window)
    assert (state["s"], state["iteration"], state["turn"]) == (2, 2, 2)
    assert len(state["beam"]) == 2
    assert {"vector", "score", "h", "c"} <= state["beam"][0].keys()
    assert {"G", "D", "g_opt", "d_opt", "controller", "c_opt"} == saved["parts"].keys()


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_resumes(tiny: dict, whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    save, calls = torch.save, []

    def full(state: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 12:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(common.run.torch, "save", full)
    assert command(autogan, flags({**tiny, "runs_dir": tmp_path, "save_minutes": 0})) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "No space left" in line
    assert "--resume" in line
    monkeypatch.setattr(common.run.torch, "save", save)
    (run,) = tmp_path.glob("autogan-*")
    assert command(autogan, ["--resume", str(run)]) == 0
    assert_same_run(whole, run)


@pytest.mark.slow
def test_a_finished_run_can_be_trained_longer(tiny: dict, tmp_path: Path) -> None:
    short = start(autogan, tiny, tmp_path, genotype="A", train_epochs=1)
    assert command(autogan, ["--resume", str(short), "--train-epochs", "2"]) == 0
    long = start(autogan, tiny, tmp_path, genotype="A")
    assert_equal(load(short, "checkpoint.pt")["parts"], load(long, "checkpoint.pt")["parts"])


@pytest.mark.parametrize("extra", [{"genotype": "A"}, slow({})], ids=str)
def test_a_diverged_run_fails_with_the_step(tiny: dict, tmp_path: Path, capsys, extra: dict) -> None:
    words = flags({**tiny, "runs_dir": tmp_path, "g_lr": 1e30, "d_lr": 1e30, **extra})
    assert command(autogan, words) == 2
    assert "diverged" in capsys.readouterr().err
    (run,) = tmp_path.glob("autogan-*")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


# ---- bad input ------------------------------------------------------------


@pytest.fixture
def smoke(tiny_data: dict) -> list[str]:
    """The preset on images that need not be drawn first."""
    return ["--preset", "smoke", "--dataset", tiny_data["dataset"]]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--beam", "5"], ["--beam 5", "--candidates 4"]),
        (["--search", "random-shared", "--random-n", "1"], ["--beam 2", "--random-n 1"]),
        (["--grow", "2"], ["--grow '2'", "2 ascending iterations", "--cells 3"]),
        (["--grow", "4,2"], ["--grow '4,2'", "ascending"]),
        (["--grow", "2,6"], ["--grow '2,6'", "below --iterations 6"]),
        (["--grow", "2;4"], ["--grow '2;4'", "like 25,55"]),
        (["--cells", "4"], ["--grow '2,4'", "3 ascending iterations", "--cells 4"]),
        (["--cells", "4", "--grow", "1,2,3", "--size", "24"], ["--size 24", "multiple of 16"]),
        (["--cells", "5", "--grow", "1,2,3,4"], ["--size 16", "64 or more"]),
        (["--cells", "9"], ["--cells"]),
        (["--controller-loss", "reference", "--ctrl-batch", "2"], ["--ctrl-batch 2", "--controller-loss fixed"]),
        (["--search", "random", "--derive-epochs", "0"], ["--search random", "--derive-epochs 1"]),
        (["--search", "random", "--proxy-n", "3"], ["--proxy-n 3", "another search"]),
        (["--proxy-n", "3", "--derive-epochs", "0"], ["--proxy-n 3", "--derive-epochs 1"]),
        (["--reward", "speed"], ["--reward speed", "use is, fid, is-cost"]),
        (["--reward-n", "5"], ["--reward-n 5", "10 or more"]),
        (["--genotype", "D"], ["--genotype 'D'", "A, B, C, sngan"]),
        (["--genotype", "1 0 1 7"], ["number 4, 1/shortcut", "7 is not in 0..1 (no, yes)"]),
        (["--genotype", "1 0 1"], ["3 numbers"]),
        (["--genotype", "nowhere.json"], ["nowhere.json", "No such file"]),
        (["--genotype", "A", "--phase", "search"], ["--genotype A", "--phase search"]),
        (["--phase", "train"], ["--phase train", "--genotype", "sngan"]),
        (["--phase", "eval"], ["--phase eval", "--weights"]),
        (["--weights", "w.pt"], ["--weights w.pt", "--phase eval"]),
        (["--train-epochs", "1", "--epoch-batches", "2", "--n-critic", "3"], ["--n-critic 3", "--train-epochs"]),
        (["--phase", "eval", "--weights", "nowhere.pt"], ["nowhere.pt", "No such file"]),
        (["--dataset", "no/such/place"], ["no/such/place"]),
        (["--d-batch", "20000"], ["--d-batch", "20000"]),
        (["--device", "gpu"], ["--device gpu", "auto"]),
        (["--resume", "nowhere"], ["nowhere"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else x,
)
def test_bad_flags_are_refused_before_anything_is_made(
    capsys, tmp_path: Path, smoke: list[str], words: list[str], parts: list[str]
) -> None:
    line = refused(autogan, capsys, tmp_path, [*([] if "--resume" in words else smoke), *words])
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[]", ["expected a JSON object"]),
        ("{", ["not JSON"]),
        ('{"method": "eagan", "G": []}', ["has no vector"]),
        ('{"vector": [1, 0, 1, 1]}', ["has no vector"]),
        ('{"vector": "1 0 1 1 2 0 0 1 1"}', ["number 5, 2/conv"]),
        ('{"vector": "__import__(1)"}', ["no such architecture"]),
    ],
)
def test_bad_genotype_files_are_refused(capsys, tmp_path: Path, smoke: list[str], text: str, parts: list[str]) -> None:
    (tmp_path / "g.json").write_text(text)
    line = refused(autogan, capsys, tmp_path, [*smoke, "--genotype", str(tmp_path / "g.json")])
    assert all(part in line for part in [*parts, "g.json"]), line


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (None, ["not weights.pt of a run of this method"]),
        ({"genotype": {"G": [["pre", "none", "nearest", "maybe", "none"]]}}, ["cell 1: 'maybe' is none of no, yes"]),
        ({"tap": "before"}, ["--tap before", "the version that made it"]),
        ({}, ["makes 16 px; use --size 16"]),
    ],
    ids=str,
)
def test_weights_of_another_network_are_refused(
    capsys, tmp_path: Path, smoke: list[str], changes: dict | None, parts: list[str]
) -> None:
    genotype = names_of(PUBLISHED["A"])
    good = {"method": "autogan", "g_ch": 4, "z_dim": 6, "size": 16, "genotype": {"G": genotype}}
    good["G"] = Generator(genotype, 4, 6, 16).state_dict()
    torch.save({"hello": 1} if changes is None else {**good, **changes}, tmp_path / "w.pt")
    words = [*smoke, "--size", "32", "--phase", "eval", "--weights", str(tmp_path / "w.pt")]
    line = refused(autogan, capsys, tmp_path, words)
    assert all(part in line for part in ["w.pt", *parts]), line


def test_is_without_the_layers_that_it_needs_is_refused_at_once(capsys, tmp_path: Path, smoke: list[str]) -> None:
    from tests.conftest import REAL_DATA

    weights = REAL_DATA / "inception-2015-12-05-upto-Mixed_7a.pth"
    if not weights.exists():
        pytest.skip(f"no {weights.name} in GAN_NAS_DATA")
    words = [*smoke, "--evaluator", "inception", "--inception-weights", str(weights), "--fid-dims", "768"]
    line = refused(autogan, capsys, tmp_path, words)
    assert "Mixed_7b" in line
    assert "--reward" in line
    assert command(autogan, [*words, "--reward", "fid", "--dry-run", "--data-dir", str(tmp_path)]) == 0


def test_a_changed_flag_method_or_live_run_is_refused_on_resume(whole: Path, capsys) -> None:
    def resume(*words: str) -> str:
        assert command(autogan, ["--resume", str(whole), *words]) == 2
        return capsys.readouterr().err

    for words in (["--search-g-ch", "8"], ["--seed", "3"], ["--grow", "2,3"], ["--reward", "fid"]):
        assert f"{words[0]} {words[1]}: this run has" in resume(*words)
    status = whole / "status.json"
    saved = status.read_text()
    alive = json.loads(saved)
    alive["process"].update(pid=os.getppid(), start_time=common.run.kernel_start_time(os.getppid()))
    status.write_text(json.dumps(alive))
    assert f"still running as pid {os.getppid()}" in resume()
    status.write_text(saved)


# ---- the plan ------------------------------------------------------------


def test_dry_run_makes_nothing_and_tells_plan_and_costs(capsys, tmp_path: Path, tiny_data: dict) -> None:
    """At the paper's widths: what it counts, exactly."""

    def told(*words: str) -> str:
        about = ["--dataset", tiny_data["dataset"], "--size", "32", "--evaluator", "compact", "--dry-run"]
        assert command(autogan, [*about, "--runs-dir", str(tmp_path / "r"), "--data-dir", str(tmp_path), *words]) == 0
        return capsys.readouterr().out

    D = "D: 1,053,824 parameters, 272,072,832 multiply-adds an image"
    text = told()
    assert "(stage 0) + " in text
    assert "(derive)" in text
    assert "PFLOP" in text
    assert "G, were it A: 4,405,251 parameters, 1,765,015,552 multiply-adds an image" in text
    assert D in text
    assert f"shared G: {count_params(Generator((None,) * 3, 128)):,} parameters\n" in text
    assert "D of the search: 264,768 parameters, 68,927,552 multiply-adds an image" in text
    text = told("--genotype", "A")
    assert "G: 4,405,251 parameters, 1,765,015,552 multiply-adds an image" in text
    assert D in text
    assert "shared G" not in text
    assert "1 0 1 1 1 0 0 1 1 1 0 1 0 3" in text
    assert "pre   none  bilinear  yes       1" in text
    assert "G, were it the largest: " in told("--cells", "2", "--grow", "25")
    assert "search" not in told("--search", "random").splitlines()[2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("without", [{"genotype": "A"}, {"phase": "eval", "weights": Path("weights.pt")}], ids=str)
def test_flags_of_a_search_are_not_checked_where_there_is_none(without: dict) -> None:
    odd = {
        "beam": 9,
        "candidates": 1,
        "grow": "x",
        "controller_loss": "reference",
        "ctrl_batch": 2,
        "proxy_n": 1,
        "derive_epochs": 0,
    }
    autogan.check(Args(**odd, **without), 1)
    with pytest.raises(UserError):
        autogan.check(Args(**odd), 1)


def test_presets_beat_defaults_and_flags_beat_presets() -> None:
    for values in PRESETS.values():
        args = Args(**values)
        autogan.check(args, 1)
        autogan.check_size(replace(args, size=32))
    assert set(PUBLISHED) == {"A", "B", "C", "sngan"}


# ---- several processes ------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_batches_and_the_images_of_a_score(tiny: dict, whole: Path, tmp_path: Path) -> None:
    done = torchrun(autogan, flags({**tiny, "reset_variance": 0.0, "runs_dir": tmp_path}))
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("autogan-*")
    assert json.loads((run / "config.json").read_text())["world_size"] == 2
    first = [next(r for r in rows(r, "search.jsonl") if r["kind"] == "controller") for r in (run, whole)]
    assert [x["vector"] for x in first[0]["scored"]] == [x["vector"] for x in first[1]["scored"]]
    assert first[0]["reward"] == pytest.approx(first[1]["reward"], rel=0.1)  # the same images but for BatchNorm's halves
    assert load(run, "weights.pt")["G"].keys()


def test_a_batch_that_two_processes_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="--d-batch 33: not divisible by 2 processes"):
        autogan.check(Args(d_batch=33), world=2)
