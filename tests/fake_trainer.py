"""A trainer without torch that writes the run directory and honours signals as the scripts do, and makers of directories.

As a program it takes the flags of its own Args, as the scripts do: `python tests/fake_trainer.py --seed 3`.
"""

import argparse
import json
import math
import os
import random
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal


def opt(default: Any, help: str, panel: str, **limits: float) -> Any:
    return default


@dataclass(frozen=True)
class Args:
    preset: Literal["paper", "smoke"] = opt("paper", "Named values. [ours]", "Run")
    seed: int = opt(0, "Every random stream derives from it. [ours]", "Run", min=0)
    runs_dir: Path = opt(Path("runs"), "Folder of the run directories. [ours]", "Run")
    resume: Path | None = opt(None, "Run directory to go on with. [ours]", "Run")
    dry_run: bool = opt(False, "Say what a run would do. [ours]", "Run")
    device: str = opt("cuda", "Nothing. [ours]", "Run")
    dataset: str = opt("shapes", "A name. [ours]", "Data")
    steps: int = opt(400, "G updates. [ours]", "Train", min=1, max=1_000_000)
    g_lr: float = opt(2e-4, "Learning rate. [ours]", "Train", min=0)
    amp: bool = opt(False, "Nothing. [ours]", "Train")
    pause: float = opt(0.02, "Seconds a step. [ours]", "Train", min=0)
    fail: int = opt(0, "Exit code to end with at half way; 0: none. [ours]", "Train", min=0)
    workers: int = opt(0, "Processes forked beside. [ours]", "Train", min=0)


PRESETS = {"paper": {}, "smoke": {"preset": "smoke", "steps": 40}}


def read_args(words: list[str]) -> Args:
    parser = argparse.ArgumentParser()
    for f in fields(Args):
        kind = Path if f.default is None else type(f.default)
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument("--" + f.name.replace("_", "-"), default=f.default, **how)
    parser.set_defaults(**PRESETS[parser.parse_args(words).preset])
    return Args(**vars(parser.parse_args(words)))


def write(path: Path, value: object) -> None:
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(json.dumps(value, indent=1, default=str))
    os.replace(tmp, path)


def append(path: Path, *rows: dict) -> None:
    with open(path, "a") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def me() -> dict:
    """This process, as status.json names it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return {"pid": os.getpid(), "start_time": started, "host": socket.gethostname(), "boot_id": boot}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- finished directories, as each method leaves them -----------------------------------------------------------------

OPS_UP, OPS_NORMAL = ("bilinear", "nearest", "conv_transpose"), ("none", "skip_connect", "conv_1x1", "conv_3x3", "conv_5x5")
G_EDGES = ("0->1", "0->2", "1->3", "2->3", "1->4", "2->4", "3->4")
SIZES = {"G": 4_100_000, "D": 1_000_000}


def make_run(
    runs: Path, method: str = "eagan", *, name: str = "", seed: int = 0, dataset: str = "cifar10", rows: int = 100,
    state: str = "done", net: str = "inception-2048", status: dict | None = None, samples: int = 0, quality: float = 10.0
) -> Path:  # fmt: skip
    """A run directory on disk: metrics with an evaluation every tenth row, genotype, search rows, samples."""
    rng = random.Random(f"{method} {seed}")
    run = runs / (name or f"{method}-{dataset}-s{seed}-20260101-0000{seed:02d}")
    run.mkdir(parents=True)
    args = dict(preset="quick", seed=seed, dataset=dataset, g_lr=2e-4, amp=False, rounds=4)
    config = dict(
        schema=1, script=f"{method}.py", method=method, preset="quick", dataset=dataset, seed=seed, args=args, net=net
    )
    config |= dict(command=f"python {method}.py --seed {seed} --dataset {dataset}", params=SIZES, versions={"torch": "2.11"})
    write(run / "config.json", config | dict(git={"sha": "1a2b3c4d5e6f", "dirty": False}, created="2026-01-01T00:00:00+00:00"))
    total = rows * 10
    last = metrics(run, rng, rows, net, quality)
    found = dict(state=state, phase="train", stage="training", step=total, total=total, rate=None, eta_s=None, error=None)
    found |= dict(process=me() | {"pid": 2**22 + 7, "start_time": 1}, started=now(), updated=now(), peak_mem=3 * 2**30)
    found |= dict(last=last, resume_command=f"python {method}.py --resume runs/{run.name}")
    write(run / "status.json", found | (status or {}))
    (run / "log.txt").write_text("".join(f"line {i} of {run.name}\n" for i in range(1, 31)))
    write_search(run, method, rng, total)
    if state == "done":
        write(run / "result.json", dict(last=last, n=50_000, seconds={"training": 200.0}, peak_mem=3 * 2**30))
    for k in range(samples):
        (run / "samples").mkdir(exist_ok=True)
        (run / "samples" / f"{(k + 1) * total // samples:06d}.png").write_bytes(grid_png(k))
    return run


def metrics(run: Path, rng: random.Random, rows: int, net: str, quality: float) -> dict:
    """Write metrics.jsonl, the first half of phase search; returns the last evaluation."""
    made, last = [], {"fid": None, "is": None}
    for i in range(1, rows + 1):
        half = i <= rows // 2
        where = {"step": i * 10, "phase": "search" if half else "train", "stage": "stage 1 round 1/1" if half else "training"}
        losses = {"loss/d": 1.0 + rng.gauss(0, 0.1), "loss/g": -0.4 + rng.gauss(0, 0.1), "perf/img_s": 900.0}
        made.append(where | losses | {"t": i * 2.0})
        if i % 10 == 0:
            fid = quality + 200 * math.exp(-4 * i / rows) + rng.gauss(0, 0.5)
            last = {"fid": fid, "is": 9 - fid / 50, "net": net}
            scores = {"eval/fid": fid, "eval/is": last["is"], "eval/is_std": 0.1, "eval/net": net, "eval/what": "training"}
            made.append(where | scores | {"eval/n": 5000 if half else 50_000, "eval/ema": not half, "t": i * 2.0 + 1})
    append(run / "metrics.jsonl", *made)
    return last


def grid_png(seed: int = 0, tile: int = 32) -> bytes:
    """8 x 8 coloured squares with borders of 2, as torchvision's save_image makes them."""
    import io

    import numpy as np
    from PIL import Image

    squares = np.zeros((8, tile + 2, 8, tile + 2, 3), np.uint8)
    squares[:, 2:, :, 2:] = np.random.default_rng(seed).integers(0, 256, (8, 1, 8, 1, 3))
    side, file = 8 * (tile + 2), io.BytesIO()
    Image.fromarray(np.pad(squares.reshape(side, side, 3), ((0, 2), (0, 2), (0, 0)))).save(file, "png")
    return file.getvalue()


def write_search(run: Path, method: str, rng: random.Random, total: int) -> None:
    """search.jsonl and genotype.json of a method."""
    found: dict = {"method": method, "params": SIZES, "macs": {"G": 1.1e9, "D": 3e8}}
    if method == "autogan":
        rows = controller(rng, total)
        cell = {"conv": "pre", "norm": "none", "up": "nearest", "shortcut": True, "skips": []}
        found |= {"vector": "1 0 1 1 1 0 1 1 1 1 0 1 1 2", "cells": [cell, {**cell, "skips": [1]}, {**cell, "skips": [2]}]}
    elif method == "degas":
        rows = probabilities(rng, total, {"G": ("U0->N1", "N1->U1", "U1->N2", "N2->U2")})
        found |= {"n": 2, "nodes": {"N1": [["U0", "conv_3x3"]], "U1": [["N1", "deconv_4"], ["U0", "nn_conv_1"]]}}
        found["nodes"] |= {"N2": [["U1", "sep_conv_5x5"]], "U2": [["N2", "deconv_6"]]}
    else:
        rows = evolution(rng, total, 4) if method == "eagan" else probabilities(rng, total, {"G": G_EDGES, "D": G_EDGES})
        found |= {"G": genotype(rng), "D": genotype(rng)}
    append(run / "search.jsonl", *rows)
    write(run / "genotype.json", found)
    (run / "genotypes").mkdir()
    for step in (total // 4, total // 2):
        write(run / "genotypes" / f"{step:06d}.json", {**found, "step": step} | ({"G": genotype(rng)} if "G" in found else {}))


def genotype(rng: random.Random) -> list[list[str]]:
    return [[rng.choice(OPS_UP) for _ in range(2)] + [rng.choice(OPS_NORMAL) for _ in range(5)] for _ in range(3)]


def dominates(a: dict, b: dict) -> bool:
    p, q = ((x["fid"], -x["is"], x["params"]) for x in (a, b))
    return p != q and all(x <= y for x, y in zip(p, q, strict=True))


def evolution(rng: random.Random, total: int, rounds: int) -> list[dict]:
    made, kept = [], []
    for r in range(1, rounds + 1):
        people = list(kept)
        while len(people) < 8:
            child = {"id": f"{r}-{len(people)}", "how": "mutation" if kept else "random", "genotype": genotype(rng)}
            child |= {"parents": [x["id"] for x in rng.sample(kept, 2)] if kept else [], "is": rng.uniform(5, 8) + r / 4}
            people.append(child | {"fid": rng.uniform(12, 40) / r**0.5, "params": rng.randrange(10**6, 6 * 10**6)})
        people.sort(key=lambda x: x["fid"])
        kept = people[:4]
        front = [x["id"] for x in people if not any(dominates(y, x) for y in people)]
        row = {"step": r * total // (2 * rounds), "stage": "1", "round": r, "population": people, "best": people[0]["id"]}
        row |= {"front": front, "kept": [x["id"] for x in kept], "eval/n": 5000, "eval/net": "inception-2048"}
        made.append(row)
    return made


def probabilities(rng: random.Random, total: int, edges: dict[str, tuple[str, ...]], rows: int = 40) -> list[dict]:
    """Three cells of these edges, by network."""
    made = []
    logits: dict = {}
    for r in range(1, rows + 1):
        row: dict = {"step": r * total // (2 * rows), "phase": "search", "tau": 5 * 0.9**r}
        row |= {"loss/rec": 1 / r, "loss/mean_image": 0.7, "probabilities": {}, "entropy": {}, "flips": {}}
        for net, names in edges.items():
            p = row["probabilities"][net] = {}
            for cell, edge in ((cell, edge) for cell in (1, 2, 3) for edge in names):
                ops = OPS_UP if edge in G_EDGES[:2] or edge[0] == "N" else OPS_NORMAL
                a = logits.setdefault((net, cell, edge), [0.0] * len(ops))
                a[rng.randrange(len(a))] += rng.uniform(0, 0.5)
                whole = sum(math.exp(x) for x in a)
                p[f"{cell}/{edge}"] = {op: math.exp(x) / whole for op, x in zip(ops, a, strict=True)}
            row["entropy"][net] = {edge: -sum(v * math.log(v) for v in q.values()) for edge, q in p.items()}
            row["flips"][net] = 3 * r
        made.append(row)
    return made


def controller(rng: random.Random, total: int, rows: int = 40) -> list[dict]:
    options = {"conv": ["pre", "post"], "norm": ["none", "bn", "in"], "up": ["nearest", "bilinear", "deconv"]}
    made, baseline = [], 5.0
    for i in range(1, rows + 1):
        reward = 5 + 3 * (1 - math.exp(-i / 10)) + rng.gauss(0, 0.2)
        baseline = 0.9 * baseline + 0.1 * reward
        weights = [[rng.random() + (k == 0) * i / 5 for k in range(len(names))] for names in options.values()]
        policy = [[x / sum(w) for x in w] for w in weights]
        row = {"step": i * total // (2 * rows), "stage": i * 3 // (rows + 1), "iteration": i, "kind": "controller"}
        row |= {"reward": reward, "baseline": baseline, "policy": policy, "decisions": list(options)}
        row |= {"options": list(options.values()), "entropy": [-sum(x * math.log(x) for x in p) for p in policy]}
        if i % 10 == 0:
            row |= {"kind": "beam", "beam": [{"vector": f"1 0 {k} 1", "score": 8 - k / 2} for k in range(5)]}
        made.append(row)
    return made


# ---- the program ------------------------------------------------------------------------------------------------------


def main(words: list[str]) -> int:
    args = read_args(words)
    if args.dry_run:
        print(f"{args.steps} G updates of {args.dataset}\nin all")
        if args.dataset == "nosuchset":
            print("error: --dataset nosuchset: no such folder", file=sys.stderr)
        return 2 if args.dataset == "nosuchset" else 0
    if args.fail and args.steps == 1:
        print("Traceback (most recent call last):\nValueError: nothing was made", file=sys.stderr)
        return args.fail
    asked: list[int] = []
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, lambda number, _: asked.append(number))
    for _ in range(args.workers):
        if os.fork() == 0:  # as a loader's worker: it inherits the handlers, and ends with its parent
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            parent = os.getppid()
            while os.getppid() == parent:
                time.sleep(0.05)
            os._exit(0)
    script = Path(__file__).name
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    run = args.resume or args.runs_dir / f"{Path(__file__).stem}-{args.dataset}-s{args.seed}-{stamp}"
    step = 0
    if args.resume:
        step = json.loads((run / "checkpoint.pt").read_text())["step"]
        (run / "STOP").unlink(missing_ok=True)
    else:
        run.mkdir(parents=True)
        config = dict(schema=1, script=script, method="fake", preset=args.preset, dataset=args.dataset, seed=args.seed)
        write(run / "config.json", config | dict(args=asdict(args), created=now()))
    status = dict(state="running", phase="train", stage="training", total=args.steps, rate=50.0, eta_s=60.0, error=None)
    status |= dict(process=me(), started=now(), resume_command=f"python {script} --resume {run}")
    write(run / "status.json", status | dict(step=step, updated=now()))
    while step < args.steps and not asked and not (run / "STOP").exists():
        step += 1
        time.sleep(args.pause)
        append(
            run / "metrics.jsonl", dict(step=step, phase="train", stage="training", t=step * args.pause) | {"loss/g": 1 / step}
        )
        with open(run / "log.txt", "a") as f:
            f.write(f"step {step}\n")
        write(run / "status.json", status | dict(step=step, updated=now()))
        if args.fail and step > args.steps // 2:
            if args.fail == 137:
                os.kill(os.getpid(), signal.SIGKILL)
            print("Traceback (most recent call last):\nRuntimeError: CUDA out of memory", file=sys.stderr)
            return args.fail
    write(run / "checkpoint.pt", {"step": step})
    stopped = step < args.steps
    write(run / "status.json", status | dict(state="stopped" if stopped else "done", step=step, updated=now()))
    return 130 if stopped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
