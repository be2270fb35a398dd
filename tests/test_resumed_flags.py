"""Flags that a resume may change stay changed; starts that were cut off begin again; damaged rows are noticed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import common.metrics
import eagan
from common.cli import cli
from common.run import Run, Stopped
from tests.runs import GENOTYPE, assert_equal, command, flags, load, read, rows, slow, start, tiny_flags

pytestmark = pytest.mark.usefixtures("quick_compact")
TRAIN = {"phase": "train", "genotype": "eagan-g"}


@pytest.fixture
def tiny(tiny_data: dict) -> dict:
    return tiny_flags("eagan", tiny_data) | TRAIN


def resume(run: Path, *words: str) -> int:
    return command(eagan, ["--resume", str(run), *words])


def test_what_a_resume_changes_the_next_one_goes_on_with(tiny: dict, tmp_path: Path) -> None:
    """The flags of the run, its command and its end are those of the longer training."""
    run = start(eagan, tiny, tmp_path, train_epochs=2)
    assert resume(run, "--train-epochs", "4", "--eval-n", "20") == 0
    assert resume(run) == 0
    whole = start(eagan, tiny, tmp_path, train_epochs=4, eval_n=20)
    assert read(run, "status.json")["step"] == read(whole, "status.json")["step"]
    config = read(run, "config.json")
    assert (config["args"]["train_epochs"], config["args"]["eval_n"]) == (4, 20)
    words = read(run, "result.json")["command"].split()
    assert words[words.index("--train-epochs") + 1] == "4"
    assert config["command"].split() == words
    assert load(run, "weights.pt")["step"] == load(whole, "weights.pt")["step"]


@pytest.mark.parametrize("method", ["eagan", "adversarialnas", slow("autogan")], indirect=True)
def test_less_than_what_is_done_ends_at_once_and_is_said(
    method: ModuleType, tiny_data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"phase": "train", "genotype": GENOTYPE[method.__name__], "train_epochs": 3}
    run = start(method, tiny_flags(method.__name__, tiny_data) | train, tmp_path)
    done = read(run, "status.json")["step"]
    monkeypatch.setattr(Run, "tick", lambda *_: pytest.fail("another update"))
    assert command(method, ["--resume", str(run), "--train-epochs", "2"]) == 0
    assert f"{done} updates are done" in (run / "log.txt").read_text()


def test_a_training_cut_short_is_scored_where_it_ends(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = Run.tick

    def stop(run: Run, step: int, upcoming: str = "") -> None:
        run.stopping = step == 5
        tick(run, step, upcoming)

    monkeypatch.setattr(Run, "tick", stop)
    with pytest.raises(Stopped):
        start(eagan, tiny, tmp_path, train_epochs=9, eval_every=4)
    monkeypatch.setattr(Run, "tick", tick)
    (run,) = tmp_path.iterdir()
    assert resume(run, "--train-epochs", "4") == 0
    assert rows(run, "metrics.jsonl")[-1]["eval/what"] == "last"
    assert read(run, "result.json")["last"]["step"] == load(run, "weights.pt")["step"] == 5


@pytest.mark.parametrize("left", ["source/common", "lock", "config.json.4711.tmp", "source/eagan.py"])
def test_a_start_that_was_cut_off_begins_again_in_place(left: str, tiny: dict, tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "job"
    (run / left).parent.mkdir(parents=True)
    (run / left).mkdir() if left.endswith("common") else (run / left).write_text("{")
    words = [*flags({**tiny, "train_epochs": 1}), "--auto-resume", str(run)]
    monkeypatch.setattr("sys.argv", ["eagan.py", *words])  # which the next start compares its own with
    assert command(eagan, words) == command(eagan, words) == 0
    assert read(run, "status.json")["state"] == "done"


def test_rows_that_were_cut_or_damaged_are_noticed_and_no_row_is_glued_to_them(tiny: dict, tmp_path: Path) -> None:
    run = start(eagan, tiny, tmp_path, train_epochs=3, eval_every=1)
    path = run / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - 30)
    assert resume(run, "--train-epochs", "4") == 0
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
    lost = (run / "log.txt").read_text().count("WARNING")
    data = bytearray(path.read_bytes())
    data[2:4] = b"\xff\xfe"
    path.write_bytes(data)
    assert resume(run) == 0
    assert (run / "log.txt").read_text().count("WARNING") == lost + 1


@pytest.fixture(scope="module")
def passed_its_best(tiny_data: dict, quick_compact: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best weights are not its last."""
    more = {"train_epochs": 3, "eval_every": 1, "g_lr": 0.05, "metrics": "fid,is,kid"}
    for seed in range(4):
        run = start(eagan, {**tiny_flags("eagan", tiny_data), **TRAIN, **more}, tmp_path_factory.mktemp("best"), seed=seed)
        result = read(run, "result.json")
        if result["best"]["step"] != result["last"]["step"]:
            return run
    raise AssertionError("none")


@pytest.mark.parametrize("fault", ["lost", "damaged", "of another step", ""])
def test_best_weights_that_are_not_there_in_the_end_are_noticed(passed_its_best: Path, tmp_path: Path, fault: str) -> None:
    """The run ends with the scores that it has."""
    run = Path(shutil.copytree(passed_its_best, tmp_path / "run"))
    best, file = read(run, "result.json")["best"], run / "weights.best.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if fault == "lost":
        file.unlink()
    elif fault == "damaged":
        file.write_bytes(data)
    elif fault:
        shutil.copy(run / "weights.pt", file)
    assert resume(run, "--train-epochs", "4") == 0
    result = read(run, "result.json")
    assert result["best"]["step"] == best["step"]
    assert f"WARNING: {file}" in (run / "log.txt").read_text() if fault else "kid" in result["best"]


def test_best_is_chosen_among_scores_of_the_same_network(tiny: dict, tmp_path: Path, monkeypatch) -> None:
    """Such as another --inception-weights, or a compact network that was trained again elsewhere."""
    run = start(eagan, tiny, tmp_path, train_epochs=3, eval_every=1)
    assert resume(run, "--train-epochs", "4") == 0
    assert (before := (run / "log.txt").read_text().count("WARNING")) == 0
    monkeypatch.setattr(common.metrics, "COMPACT_STEPS", (21, 21))
    assert resume(run, "--train-epochs", "5", "--data-dir", str(tmp_path / "elsewhere")) == 0
    assert (run / "log.txt").read_text().count("WARNING") == before + 1
    result = read(run, "result.json")
    assert result["best"]["step"] == result["last"]["step"]
    assert "1 evaluations" in result["best"]["chosen"]


def test_a_finished_run_is_scored_again_by_what_is_asked_for_now(tiny: dict, tmp_path: Path) -> None:
    """And then not again. Its command and its scores belong together."""
    run = start(eagan, tiny, tmp_path, train_epochs=3, eval_every=1)
    before, weights = read(run, "result.json"), load(run, "weights.pt")
    for words in (["--eval-data", tiny["dataset"]], ["--metrics", "fid,is,nearest"], ["--metrics", "fid,is,nearest,kid"]):
        assert resume(run, *words) == 0
        more = read(run, "result.json")
        assert f"last against {tiny['dataset']}" in more
        assert (run / "nearest.png").exists() == ("nearest" in words[1])
    assert more["last"].items() >= before["last"].items()
    assert more["best"]["chosen"] == before["best"]["chosen"]
    assert all("kid" in more[k] for k in ("last", "best", f"last against {tiny['dataset']}", f"best against {tiny['dataset']}"))
    assert resume(run, "--eval-n", "40") == 0
    result = read(run, "result.json")
    assert (result["n"], result["last"]["n"], result["best"]["step"]) == (40, 40, result["last"]["step"])
    lines = (run / "metrics.jsonl").read_bytes()
    assert resume(run) == 0
    assert (run / "metrics.jsonl").read_bytes() == lines
    assert_equal(load(run, "weights.pt")["G"], weights["G"])


def test_files_of_a_relative_path_are_found_from_any_folder(
    tiny: dict, tmp_path: Path, undisturbed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, elsewhere = Path(tiny["dataset"]), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(images.parent)
    shutil.copy(undisturbed("eagan") / "genotype.json", "g.json")
    named = {"dataset": images.name, "eval_data": images.name, "genotype": "g.json", "init_g": "g.json", "data_dir": Path()}
    run = start(eagan, {**tiny, **named}, tmp_path, train_epochs=1)
    monkeypatch.chdir(elsewhere)
    assert resume(run, "--train-epochs", "2") == 0
    assert not list(elsewhere.iterdir())  # no second cache


def test_a_name_that_is_no_utf_8_does_not_end_a_run(tiny: dict, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xffad"))
    run = start(eagan, tiny, folder, train_epochs=1)
    assert read(run, "status.json")["state"] == "done"
    assert resume(run) == 0


def test_weights_of_another_method_are_named(tiny_data: dict, undisturbed: Callable, capsys: pytest.CaptureFixture) -> None:
    import degas

    weights = undisturbed("eagan") / "weights.pt"
    words = [*flags({k: v for k, v in tiny_data.items()}), "--phase", "eval", "--weights", str(weights)]
    assert cli(degas.main, degas.Args, degas.PRESETS, words) == 2
    assert "eagan" in capsys.readouterr().err.replace(str(weights), "")


def test_one_flipped_bit_of_weights_is_noticed(tiny_data: dict, undisturbed: Callable, tmp_path: Path, capsys) -> None:
    data = bytearray((undisturbed("eagan") / "weights.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "w.pt").write_bytes(data)
    words = [*flags(tiny_data), "--phase", "eval", "--weights", str(tmp_path / "w.pt")]
    assert command(eagan, [*words, "--runs-dir", str(tmp_path)]) == 2
    assert "is damaged" in capsys.readouterr().err
