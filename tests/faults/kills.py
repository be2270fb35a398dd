"""Kill a run at random moments, resume it by the same command each time, compare it with one that was never disturbed.

python -m tests.faults.kills METHOD [--kills 50] [--seed 0]

Four of five signals are SIGKILL, the others ask for a stop. Prints every signal, and a line of JSON at the end. The
processes are forked, so that each begins within milliseconds.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import torch

import common.metrics
import common.ranks
from common.cli import cli
from tests.runs import METHODS, assert_same_run, flags, start, tiny_data, tiny_flags

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
HANGS = 120.0  # seconds after which a process is taken to hang


def begin(script: ModuleType, words: list[str], log: Path) -> int:
    """The method's command line in a process of its own; returns its number."""
    if number := os.fork():
        return number
    code = 1
    try:
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = [script.__file__, *words]
        code = cli(script.main, script.Args, script.PRESETS)
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(number: int, seconds: float) -> int | None:
    """The exit code of a process (negative: of which signal it died), or None if it lives on after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def to_its_end(script: ModuleType, words: list[str], log: Path) -> None:
    number = begin(script, words, log)
    code = wait(number, HANGS)
    if code != 0:
        os.kill(number, signal.SIGKILL) if code is None else None
        raise AssertionError(f"exit code {code}\n{log.read_text('utf-8')[-2000:]}")


def killed(script: ModuleType, folder: Path, tiny: dict, rng: random.Random, kills: int, length: float) -> int:
    """A run in folder / "run", killed up to `kills` times, then left to end; returns how often. length: seconds of one."""
    words, log = flags({**tiny, "save_minutes": rng.choice((0, 0.002)), "auto_resume": folder / "run"}), folder / "log.txt"
    for done in range(kills):
        number, delay = begin(script, words, log), rng.uniform(0, 0.6 * length)
        code = wait(number, delay)
        if code is not None:
            assert code == 0, log.read_text("utf-8")[-2000:]
            return done
        kind = rng.choice(ASKING) if rng.random() < 0.2 else signal.SIGKILL
        os.kill(number, kind)
        code = wait(number, HANGS)
        print(f"{kind.name} after {delay:.2f} of {length:.2f} s: exit code {code}", flush=True)
        assert code in (0, 130, -kind), log.read_text("utf-8")[-2000:]
    to_its_end(script, words, log)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # a killed process loses nothing that it wrote; only a power cut does
    common.metrics.COMPACT_STEPS, common.ranks.PROBE_SECONDS = (20, 20), 0.0
    script, rng, tried = importlib.import_module(asked.method), random.Random(asked.seed), 0
    print(f"{asked.method}, seed {asked.seed}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiny = tiny_flags(asked.method, tiny_data(folder))
        start(script, tiny, folder / "unused")  # here: trains the evaluator's network, imports what all the others need
        began = time.monotonic()
        to_its_end(script, flags({**tiny, "auto_resume": folder / "undisturbed"}), folder / "log.txt")
        length = time.monotonic() - began
        while tried < asked.kills:
            tried += killed(script, folder, tiny, rng, min(5, asked.kills - tried), length)
            assert_same_run(folder / "undisturbed", folder / "run")
            shutil.rmtree(folder / "run")
    print(json.dumps({"tried": tried, "recovered": tried}))


if __name__ == "__main__":
    main()
