"""The command line: paths in the home directory, output that cannot show every character, runs that are queued again."""

import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from common.cli import CommonArgs, cli
from common.run import command_line, jsonable


def test_a_leading_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[CommonArgs] = []
    assert cli(seen.append, CommonArgs, {}, ["--runs-dir=~/runs", "--dataset=~/x.zip"]) == 0
    assert (seen[0].runs_dir, seen[0].dataset) == (tmp_path / "runs", str(tmp_path / "x.zip"))
    assert cli(seen.append, CommonArgs, {}, ["--dataset=~x"]) == 0
    assert seen[1].dataset == "~x"


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        *[("", 0, "x ?"), ("eagan.py --help", 0, "paper ?4"), ("tui.py . --plain", 0, "?")],
        *[("common.metrics ∞ ∞", 1, "?"), ("common.report run", 0, "?")],
    ],
)
def test_output_that_cannot_show_a_character_replaces_it(
    words: str, code: int, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed, quick_compact, program
) -> None:
    (tmp_path / "run").symlink_to(undisturbed("eagan", phase="train", genotype="eagan-g"))
    monkeypatch.chdir(tmp_path)
    output = io.TextIOWrapper(io.BytesIO(), "ascii")
    with monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, output)
        if words:
            found, *_ = program(*words.split())
        else:
            found = cli(lambda args: print(args.dataset, "✓"), CommonArgs, {}, ["--dataset", "x"])
        output.flush()
    assert (found, shown in output.buffer.getvalue().decode()) == (code, True)


QUEUED = ["--auto-resume", "job", "--preset", "quick", "--size=0", "--seed", "7", "--no-amp"]
PRESETS = {"quick": {"g_ch": 32}, "smoke": {"g_ch": 8}}


@pytest.fixture
def queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[CommonArgs]:
    """The arguments of two starts of QUEUED; in between, a run with an own image size was started by the first."""
    monkeypatch.chdir(tmp_path)
    seen: list[CommonArgs] = []
    assert cli(seen.append, CommonArgs, PRESETS, QUEUED) == 0
    (tmp_path / "job").mkdir()
    args = {k: jsonable(v) for k, v in asdict(replace(seen[0], size=32)).items()}
    config = {"script": "cli.py", "args": args, "argv": ["eagan.py", *QUEUED]}
    (tmp_path / "job" / "config.json").write_text(json.dumps(config))
    assert cli(seen.append, CommonArgs, PRESETS, QUEUED) == 0
    return seen


def test_the_same_command_starts_and_then_resumes(queued: list[CommonArgs]) -> None:
    first, second = queued
    assert (first.resume, first.g_ch, first.seed) == (None, 32, 7)
    assert second == replace(first, resume=Path("job"))


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ([*QUEUED, "--seed", "8"], "--seed 8"),
        ([*QUEUED, "--d-ch", "8"], "--d-ch 8"),
        ([w.replace("quick", "smoke") for w in QUEUED], "--preset smoke"),
        ([w.replace("--size=0", "--size=64") for w in QUEUED], "--size 64"),
        ([w for w in QUEUED if w != "--no-amp"], "--no-amp"),
        (QUEUED[:4], "--no-amp"),
    ],
)
def test_another_command_does_not_resume(queued: list[CommonArgs], words: list[str], flag: str, capsys) -> None:
    assert cli(queued.append, CommonArgs, PRESETS, words) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag}")
    assert len(queued) == 2


def test_a_run_to_resume_is_named_once(capsys: pytest.CaptureFixture) -> None:
    assert cli(lambda _: None, CommonArgs, PRESETS, ["--resume", "a", "--auto-resume", "b"]) == 2
    assert "--auto-resume b" in capsys.readouterr().err


def test_the_command_that_reproduces_a_run_resumes_none() -> None:
    args = {"seed": 3, "resume": "a", "auto_resume": "b"}
    assert command_line(Path("eagan.py"), args, 1) == "python eagan.py --seed 3"


def test_what_does_not_change_training_may_change(queued: list[CommonArgs]) -> None:
    assert cli(queued.append, CommonArgs, PRESETS, [*QUEUED, "--eval-n", "9", "--device", "cpu"]) == 0
    assert queued[2].device == "cpu"
