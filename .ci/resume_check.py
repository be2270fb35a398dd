"""A run in its own process, interrupted by SIGINT in the search and in the training, equals one that was left alone.

About half a minute on two cores. tests/test_runs.py has the same for every phase, in one process.
"""

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
FLAGS = shlex.split(
    "--preset smoke --g-ch 8 --d-ch 8 --rounds 1 --search-n 60 --final-n 60 --eval-n 200 --train-epochs 3"
    " --eval-every 1 --log-every 5"
)


def launch(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)


def only_run(runs: Path) -> Path:
    (run,) = runs.glob("eagan-*")
    return run


def interrupt_in(process: subprocess.Popen, runs: Path, stage: str) -> None:
    """SIGINT as soon as status.json tells of the stage; the process must then end with 130."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for status in runs.glob("*/status.json"):
            if json.loads(status.read_text())["stage"].startswith(stage):
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == 130
                return
        time.sleep(0.05)
    sys.exit(f"never in {stage}")


def rows(run: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "t" and not k.startswith("perf/")} for row in lines]


with tempfile.TemporaryDirectory() as folder:
    alone, stopped = Path(folder, "alone"), Path(folder, "stopped")
    assert launch(["eagan.py", *FLAGS, "--runs-dir", str(alone)]).wait() == 0
    words = ["eagan.py", *FLAGS, "--runs-dir", str(stopped)]
    for stage in ("stage 1 round 1", "stage 2 warm-up", "training"):
        interrupt_in(launch(words), stopped, stage)
        status = json.loads((only_run(stopped) / "status.json").read_text())
        assert status["state"] == "stopped", status
        print(f"stopped in {status['stage']} at step {status['step']}", flush=True)
        words = shlex.split(status["resume_command"])[1:]
    assert launch(words).wait() == 0
    a, b = only_run(alone), only_run(stopped)
    for name in ("metrics.jsonl", "search.jsonl"):
        assert rows(a, name) == rows(b, name), name
    one, two = (torch.load(run / "weights.pt", weights_only=True) for run in (a, b))
    assert one["genotype"] == two["genotype"]
    assert all(torch.equal(one["G"][k], two["G"][k]) for k in one["G"])
    print(f"equal: {len(one['G'])} tensors, {len(rows(a, 'metrics.jsonl'))} rows of metrics")
