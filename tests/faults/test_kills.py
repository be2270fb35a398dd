"""Runs of the four scripts killed at random moments; GAN_NAS_KILLS: how many times in all, GAN_NAS_SEED: of the moments."""

import json
import os
import subprocess
import sys

import pytest

from tests.runs import METHODS, ROOT

KILLS, SEED = int(os.environ.get("GAN_NAS_KILLS", 4)), os.environ.get("GAN_NAS_SEED", "0")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_random_moments_equals_an_undisturbed_one(method: str, record_property) -> None:
    kills = KILLS // 4 + (METHODS.index(method) < KILLS % 4)
    words = [sys.executable, "-m", "tests.faults.kills", method, "--kills", str(kills), "--seed", SEED]
    record_property("tried", kills)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)  # the seed and every signal, if it fails
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"tried": kills, "recovered": kills}
    record_property("recovered", kills)
