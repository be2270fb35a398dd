"""The command line: paths in the home directory, output that cannot show every character."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli import CommonArgs, cli

ROOT = Path(__file__).parents[1]


def test_a_leading_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[CommonArgs] = []
    assert cli(seen.append, CommonArgs, {}, ["--runs-dir=~/runs", "--dataset=~/x.zip"]) == 0
    assert (seen[0].runs_dir, seen[0].dataset) == (tmp_path / "runs", str(tmp_path / "x.zip"))
    assert cli(seen.append, CommonArgs, {}, ["--dataset=~x"]) == 0
    assert seen[1].dataset == "~x"


def test_output_that_cannot_show_a_character_replaces_it() -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code = "import sys\nfrom common.cli import *\nsys.exit(cli(lambda args: print(args.dataset, '✓'), CommonArgs, {}))"
    done = subprocess.run([sys.executable, "-c", code, "--dataset", "x"], env=env, cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout.split()) == (0, [b"x", b"?"])
