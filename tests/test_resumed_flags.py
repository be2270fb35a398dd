"""Flags that a resume may change stay changed; starts that were cut off begin again; damaged rows are noticed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import eagan
from common.cli import cli
from tests.runs import command, flags, load, read, start, tiny_flags

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


def test_less_than_what_is_done_is_said(tiny: dict, tmp_path: Path) -> None:
    run = start(eagan, tiny, tmp_path, train_epochs=3)
    done = read(run, "status.json")["step"]
    assert resume(run, "--train-epochs", "2") == 0
    assert f"{done} updates are done" in (run / "log.txt").read_text()


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


def test_images_of_a_relative_path_are_found_from_any_folder(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, elsewhere = Path(tiny["dataset"]), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(images.parent)
    run = start(eagan, {**tiny, "dataset": images.name, "eval_data": images.name}, tmp_path, train_epochs=1)
    monkeypatch.chdir(elsewhere)
    assert resume(run, "--train-epochs", "2") == 0


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
