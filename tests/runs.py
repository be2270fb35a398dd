"""Helpers for tests of runs: tiny flags, start, read, compare, stop and resume, see a command refused."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from common.cli import cli
from common.run import Run, Stopped

ROOT = Path(__file__).parents[1]
METHODS = ("eagan", "adversarialnas", "autogan", "degas")
GENOTYPE = {"eagan": "eagan-g", "adversarialnas": "adversarialnas-g", "autogan": "A", "degas": "baseline"}  # published
TINY = {  # a whole run in some twenty steps
    "eagan": dict(
        g_ch=4, d_ch=4, epoch_batches=2, population=4, rounds=2, round_epochs=1, warmup_epochs=1, search_n=20,
        final_n=30, bn_batches=1, train_epochs=6, eval_n=30, eval_every=2, eval_after=0,
    ),
    "adversarialnas": dict(
        search_g_ch=2, search_d_ch=2, g_ch=2, d_ch=2, epoch_batches=4, search_batch=4, search_epochs=2, derive_every=3,
        search_eval_every=1, arch_lr=0.01, candidates=2, train_epochs=2, eval_n=10, eval_every=1,
    ),
    "autogan": dict(
        g_ch=4, d_ch=4, search_g_ch=4, search_d_ch=4, epoch_batches=4, iterations=3, grow="1,2", gan_epochs=1,
        ctrl_steps=2, candidates=3, beam=2, reward_n=20, derive_epochs=1, final_n=20, proxy_n=1, reset_window=3,
        reset_variance=9.0, train_epochs=2, eval_n=30, eval_every=1,
    ),
    "degas": dict(
        search_ch=4, search_batch=32, search_epochs=2, epoch_batches=3, arch_lr=0.1, g_ch=4, d_ch=4, iters=7,
        eval_n=30, eval_every=2,
    ),
}  # fmt: skip


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


class Counter:
    """A state that counts."""

    def __init__(self) -> None:
        self.n = 0

    def state_dict(self) -> dict:
        return vars(self).copy()

    def load_state_dict(self, saved: dict) -> None:
        vars(self).update(saved)


def tiny_data(folder: Path) -> dict:
    """Flags of a data set, in the folder, of 64 labelled images of 16 px, and of the evaluator that goes with it."""
    file = folder / "tiny.npz"
    if not file.exists():
        folder.mkdir(exist_ok=True)
        labels = np.arange(64) % 2
        images = np.random.default_rng(0).integers(0, 128, (64, 16, 16, 3)) + 127 * labels[:, None, None, None]
        np.savez(file, images=images.astype(np.uint8), labels=labels)
    return {"dataset": str(file), "data_dir": folder, "size": 16, "evaluator": "compact"}


def tiny_flags(name: str, tiny_data: dict) -> dict:
    """Flags of a whole run of a method on the tiny data; --runs-dir is up to the test."""
    return {**tiny_data, "z_dim": 6, "g_batch": 4, "d_batch": 4, "n_critic": 2, "sample_every": 2, "log_every": 1, **TINY[name]}


def start(script: ModuleType, tiny: dict, runs: Path, words: str = "", **changes: object) -> Path:
    """A run of the method to its end; returns its directory. words: more flags, as on the command line."""
    before = set(runs.glob("*"))
    values = {**tiny, "runs_dir": runs, **changes}
    if words:
        assert command(script, [*flags(values), *words.split()]) == 0
    else:
        script.main(script.Args(**values))
    (made,) = set(runs.glob("*")) - before
    return made


def command(script: ModuleType, words: list[str]) -> int:
    """The exit code of the script's command line, run in this process."""
    return cli(script.main, script.Args, script.PRESETS, words)


def narrow(script: ModuleType) -> dict:
    """Flags of networks with few channels, and of small batches."""
    names = ("g_ch", "d_ch", "search_g_ch", "search_d_ch", "search_ch", "g_batch", "d_batch", "search_batch")
    return {k: 4 for k in names if hasattr(script.Args, k)}


def flags(values: dict) -> list[str]:
    return [word for k, v in values.items() for word in ("--" + k.replace("_", "-"), str(v))]


def parsed(script: ModuleType, words: list[str]) -> object:
    """The Args that a command line asks for."""
    made = []
    assert cli(made.append, script.Args, script.PRESETS, words) == 0
    return made[0]


def read(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


def rows(run: Path, name: str) -> list[dict]:
    """The lines of a .jsonl but for what tells the time; none where there is no such file."""
    path = run / name
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in row.items() if k != "t" and not k.startswith("perf/")} for row in lines]


def load(run: Path, name: str) -> dict:
    return torch.load(run / name, weights_only=True)


def assert_equal(a: object, b: object, where: str = "") -> None:
    """Equal to the last bit, through dicts and lists down to tensors; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a.nan_to_num(7.7), b.nan_to_num(7.7)), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            assert_equal(a[k], b[k], f"{where}/{k}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{i}")
    else:
        assert a == b or (a != a and b != b), f"{where}: {a} != {b}"


def assert_same_run(a: Path, b: Path) -> None:
    """The same checkpoint, weights, genotypes, samples, and rows of metrics and search."""
    for name in ("metrics.jsonl", "search.jsonl"):
        assert rows(a, name) == rows(b, name)
    one, two = ({k: v for k, v in load(run, "checkpoint.pt").items() if k not in ("seconds", "files", "run")} for run in (a, b))
    assert_equal(one, two)
    for name in ("weights.pt", "weights.best.pt"):
        assert_equal(load(a, name), load(b, name), name)
    for name in ("genotypes", "samples"):
        one, two = ({f.name: f.read_bytes() for f in (run / name).glob("*")} for run in (a, b))
        assert one == two, name


def stop_and_resume(
    script: ModuleType, tiny: dict, runs: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int
) -> Path:  # fmt: skip
    """A run that gets SIGINT at the call-th safe point of a stage (whose name begins with `stage`), resumed to its end."""
    seen, check = [], Run.check

    def stop_there(run: Run) -> None:
        if run.status["stage"].startswith(stage):
            seen.append(stage)
            if len(seen) == call:
                os.kill(os.getpid(), signal.SIGINT)
        check(run)

    monkeypatch.setattr(Run, "check", stop_there)
    args = replace(script.Args(**tiny), runs_dir=runs)
    if stage == "preparing":
        args = replace(args, data_dir=runs / "fresh cache")
    with pytest.raises(Stopped):
        script.main(args)
    monkeypatch.setattr(Run, "check", check)
    (run,) = runs.glob(f"{script.__name__}-*")
    status = read(run, "status.json")
    assert status["state"] == "stopped"
    assert status["resume_command"] == f"python {script.__name__}.py --resume {run}"
    assert command(script, ["--resume", str(run)]) == 0
    return run


def refused(script: ModuleType, capsys: pytest.CaptureFixture, folder: Path, words: list[str]) -> str:
    """The one line on stderr of a command that made nothing in the folder."""
    before = sorted(folder.rglob("*"))
    assert command(script, [*words, "--runs-dir", str(folder / "runs"), "--data-dir", str(folder / "data")]) == 2
    out = capsys.readouterr()
    assert out.err.startswith("error: ")
    assert out.err.count("\n") == 1, out.err
    assert sorted(folder.rglob("*")) == before
    return out.err


def torchrun(script: ModuleType, words: list[str]) -> subprocess.CompletedProcess:
    """The method's command in two processes on the CPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, f"{script.__name__}.py", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )


def forked(rank: int, script: ModuleType, words: list[str], port: int) -> None:
    """One of the two processes that torchrun would start."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert command(script, words) == 0


def two_processes(script: ModuleType, tiny: dict, runs: Path) -> Path:
    """A run of the method in two processes to its end, EAGAN's by torchrun, the others forked; returns its directory."""
    words = flags({**tiny, "runs_dir": runs})
    if script.__name__ == "eagan":
        done = torchrun(script, words)
        assert done.returncode == 0, done.stderr
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        mp.start_processes(forked, (script, words, port), nprocs=2, start_method="fork")
    (run,) = runs.glob(f"{script.__name__}-*")
    assert read(run, "config.json")["world_size"] == 2
    assert all(x.isfinite().all() for x in load(run, "weights.pt")["G"].values())
    return run
