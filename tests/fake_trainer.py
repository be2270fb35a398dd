"""A trainer without torch that writes the run directory and honours signals as the scripts do, and makers of directories.

As a program it takes the flags of its own Args, as the scripts do: `python tests/fake_trainer.py --seed 3`.
"""

import json
import math
import os
import random
import signal
import socket
import struct
import sys
import time
import zlib
from dataclasses import dataclass, fields
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
    dataset: str = opt("shapes", "A name. [ours]", "Data")
    steps: int = opt(400, "G updates. [ours]", "Train", min=1, max=1_000_000)
    g_lr: float = opt(2e-4, "Learning rate. [ours]", "Train", min=0)
    amp: bool = opt(False, "Nothing. [ours]", "Train")
    pause: float = opt(0.02, "Seconds a step. [ours]", "Train", min=0)
    fail: int = opt(0, "Exit code to end with at half way; 0: none. [ours]", "Train", min=0)
    workers: int = opt(0, "Processes forked beside. [ours]", "Train", min=0)


PRESETS = {"paper": {}, "smoke": {"preset": "smoke", "steps": 40}}


def write(path: Path, value: object) -> None:
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(json.dumps(value, indent=1, default=str))
    os.replace(tmp, path)


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def me() -> dict:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": os.getpid(), "start_time": start_time(os.getpid()), "host": socket.gethostname(), "boot_id": boot}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_args(words: list[str]) -> Args:
    given, by_flag = {}, {"--" + f.name.replace("_", "-"): f for f in fields(Args)}
    while words:
        word, words = words[0], words[1:]
        if word.startswith("--no-"):
            given["--" + word[5:]] = False
        elif by_flag[word].name == "amp":
            given[word] = True
        else:
            given[word], words = words[0], words[1:]
    values = {f.name: f.default for f in fields(Args)} | PRESETS[given.get("--preset", "paper")]
    for flag, text in given.items():
        kind = type(values[by_flag[flag].name])
        values[by_flag[flag].name] = text if isinstance(text, bool) else Path(text) if kind is type(None) else kind(text)
    return Args(**values)


def png(width: int, height: int, rows: list[bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def grid_png(seed: int = 0, tile: int = 32) -> bytes:
    """8 x 8 coloured squares with borders of 2, as torchvision's save_image makes them."""
    side, rng = 8 * (tile + 2) + 2, random.Random(seed)
    colors = [[bytes(rng.randrange(256) for _ in range(3)) for _ in range(8)] for _ in range(8)]
    rows = []
    for y in range(side):
        row = bytearray(3 * side)
        ty, dy = divmod(y - 2, tile + 2)
        if 0 <= ty < 8 and dy < tile:
            for tx in range(8):
                at = 3 * (2 + tx * (tile + 2))
                row[at : at + 3 * tile] = colors[ty][tx] * tile
        rows.append(bytes(row))
    return png(side, side, rows)


# ---- finished directories, as each method leaves them -----------------------------------------------------------------

OPS_UP, OPS_NORMAL = ("bilinear", "nearest", "conv_transpose"), ("none", "skip_connect", "conv_1x1", "conv_3x3", "conv_5x5")
G_EDGES = ("0->1", "0->2", "1->3", "2->3", "1->4", "2->4", "3->4")


def genotype(rng: random.Random) -> list[list[str]]:
    return [[rng.choice(OPS_UP) for _ in range(2)] + [rng.choice(OPS_NORMAL) for _ in range(5)] for _ in range(3)]


def make_run(
    runs: Path, method: str = "eagan", *, name: str = "", seed: int = 0, dataset: str = "cifar10", rows: int = 100,
    state: str = "done", net: str = "inception-2048", config: dict | None = None, status: dict | None = None,
    samples: int = 0, quality: float = 10.0
) -> Path:  # fmt: skip
    """A run directory on disk: metrics with an evaluation every tenth row, genotype, search rows, samples."""
    rng = random.Random(f"{method} {seed}")
    run = runs / (name or f"{method}-{dataset}-s{seed}-20260101-0000{seed:02d}")
    run.mkdir(parents=True)
    args = {"preset": "quick", "seed": seed, "dataset": dataset, "g_lr": 2e-4, "amp": False, "rounds": 4}
    command = f"python {method}.py --seed {seed} --dataset {dataset}"
    write(run / "config.json", {
        **{"schema": 1, "script": f"{method}.py", "method": method, "preset": "quick", "dataset": dataset, "seed": seed},
        **{"args": args, "argv": [], "command": command, "git": {"sha": "1a2b3c4d5e6f", "dirty": False}},
        "device": "CPU, 1 threads",
        **{"versions": {"python": "3.12", "torch": "2.11"}, "world_size": 1, "params": {"G": 4_100_000, "D": 1_000_000}},
        **{"net": net, "created": "2026-01-01T00:00:00+00:00"}, **(config or {}),
    })  # fmt: skip
    total, last = rows * 10, {}
    with open(run / "metrics.jsonl", "w") as f:
        for i in range(1, rows + 1):
            step, half = i * 10, i <= rows // 2
            row = {"step": step, "phase": "search" if half else "train", "stage": "stage 1 round 1/1" if half else "training"}
            row |= {"loss/d": 1.0 + rng.gauss(0, 0.1), "loss/g": -0.4 + rng.gauss(0, 0.1), "perf/img_s": 900.0}
            f.write(json.dumps({**row, "t": i * 2.0}) + "\n")
            if i % 10 == 0:
                fid = quality + 200 * math.exp(-4 * i / rows) + rng.gauss(0, 0.5)
                last = {"fid": fid, "is": 9 - fid / 50, "net": net}
                row = {"step": step, "phase": row["phase"], "stage": row["stage"]} | {f"eval/{k}": v for k, v in last.items()}
                row |= {"eval/is_std": 0.1, "eval/n": 5000 if half else 50_000, "eval/ema": not half, "eval/what": "training"}
                f.write(json.dumps({**row, "t": i * 2.0 + 1}) + "\n")
    write(run / "status.json", {
        **{"state": state, "phase": "train", "stage": "training", "step": total, "total": total, "rate": None, "eta_s": None},
        **{"process": {"pid": 2**22 + 7, "start_time": 1, "host": socket.gethostname(), "boot_id": me()["boot_id"]}},
        **{"started": now(), "updated": now(), "gpu_mem": None, "peak_mem": 3 * 2**30},
        "last": last or {"fid": None, "is": None},
        **{"resume_command": f"python {method}.py --resume runs/{run.name}", "next": "", "error": None}, **(status or {}),
    })  # fmt: skip
    (run / "log.txt").write_text("".join(f"line {i} of {run.name}\n" for i in range(1, 31)))
    write_search(run, method, rng, total)
    if state == "done":
        write(
            run / "result.json",
            {"last": last, "best": last, "n": 50_000, "seconds": {"training": 200.0}, "peak_mem": 3 * 2**30},
        )
    for k in range(samples):
        (run / "samples").mkdir(exist_ok=True)
        (run / "samples" / f"{(k + 1) * total // samples:06d}.png").write_bytes(grid_png(k))
    return run


def write_search(run: Path, method: str, rng: random.Random, total: int, rounds: int = 4) -> None:
    """search.jsonl and genotype.json of a method."""
    rows = {"eagan": evolution, "autogan": controller}.get(method, probabilities)(
        rng, total, rounds, method == "adversarialnas"
    )
    (run / "search.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found: dict = {"method": method, "params": {"G": 4_100_000, "D": 1_000_000}, "macs": {"G": 1.1e9, "D": 3e8}}
    if method == "autogan":
        cell = {"conv": "pre", "norm": "none", "up": "nearest", "shortcut": True, "skips": []}
        found |= {"vector": "1 0 1 1 1 0 1 1 1 1 0 1 1 2", "cells": [cell, {**cell, "skips": [1]}, {**cell, "skips": [2]}]}
    elif method == "degas":
        found |= {"n": 2, "nodes": {"N1": [["U0", "conv_3x3"]], "U1": [["N1", "deconv_4"], ["U0", "nn_conv_1"]]}}
        found["nodes"] |= {"N2": [["U1", "sep_conv_5x5"]], "U2": [["N2", "deconv_6"]]}
    else:
        found |= {"G": genotype(rng), "D": genotype(rng)}
    write(run / "genotype.json", found)
    (run / "genotypes").mkdir()
    for step in (total // 4, total // 2):
        write(run / "genotypes" / f"{step:06d}.json", {**found, "step": step} | ({"G": genotype(rng)} if "G" in found else {}))


def evolution(rng: random.Random, total: int, rounds: int, _: bool = False) -> list[dict]:
    made, kept = [], []
    for r in range(1, rounds + 1):
        people = list(kept)
        while len(people) < 8:
            parents = [x["id"] for x in rng.sample(kept, 2)] if kept else []
            people.append(
                {"id": f"{r}-{len(people)}", "parents": parents, "how": "crossover+mutation" if parents else "random"}
                | {
                    "is": rng.uniform(5, 8) + r / 4,
                    "fid": rng.uniform(12, 40) / r**0.5,
                    "params": rng.randrange(10**6, 6 * 10**6),
                }
                | {"genotype": genotype(rng)}
            )
        key = lambda x: x["fid"]  # noqa: E731
        best = [x for x in people if not any(dominates(y, x) for y in people)]
        kept = sorted(people, key=key)[:4]
        made.append(
            {
                "step": r * total // (2 * rounds),
                "stage": "1",
                "round": r,
                "population": people,
                "best": min(best, key=key)["id"],
            }
            | {"front": [x["id"] for x in sorted(best, key=key)], "kept": [x["id"] for x in kept]}
            | {"eval/n": 5000, "eval/net": "inception-2048"}
        )
    return made


def dominates(a: dict, b: dict) -> bool:
    p, q = ((x["fid"], -x["is"], x["params"]) for x in (a, b))
    return p != q and all(x <= y for x, y in zip(p, q, strict=True))


def probabilities(rng: random.Random, total: int, rounds: int, both: bool) -> list[dict]:
    made, logits, flips, before = [], {}, {"G": 0, "D": 0}, {}
    for r in range(1, 10 * rounds + 1):
        row: dict = {
            "step": r * total // (20 * rounds),
            "phase": "search",
            "tau": 5 * 0.9**r,
            "loss/rec": 1 / r,
            "loss/mean_image": 0.7,
        }
        row |= {"probabilities": {}, "entropy": {}, "genotype": {}}
        for net in ("G", "D") if both else ("G",):
            p, h, table = {}, {}, []
            for cell in range(1, 4):
                table.append([])
                for edge in G_EDGES if both else (f"U{cell - 1}->N{cell}", f"N{cell}->U{cell}"):
                    ops = OPS_UP if edge in G_EDGES[:2] or edge[0] == "N" else OPS_NORMAL
                    a = logits.setdefault((net, cell, edge), [0.0] * len(ops))
                    a[rng.randrange(len(a))] += rng.uniform(0, 0.5)
                    e = [math.exp(x) for x in a]
                    q = [x / sum(e) for x in e]
                    p[f"{cell}/{edge}"], h[f"{cell}/{edge}"] = dict(zip(ops, q, strict=True)), -sum(x * math.log(x) for x in q)
                    table[-1].append(ops[q.index(max(q))])
            row["probabilities"][net], row["entropy"][net], row["genotype"][net] = p, h, table
            if net in before:
                flips[net] += sum(a != b for x, y in zip(table, before[net], strict=True) for a, b in zip(x, y, strict=True))
            before[net] = table
        row["flips"] = dict(flips)
        made.append(row)
    return made


def controller(rng: random.Random, total: int, rounds: int, _: bool = False) -> list[dict]:
    decisions = ["conv", "norm", "up", "shortcut"]
    options = [["pre", "post"], ["none", "bn", "in"], ["nearest", "bilinear", "deconv"], ["no", "yes"]]
    made, baseline = [], 5.0
    for i in range(1, 10 * rounds + 1):
        reward = 5 + 3 * (1 - math.exp(-i / 10)) + rng.gauss(0, 0.2)
        baseline = 0.9 * baseline + 0.1 * reward
        policy = []
        for names in options:
            p = [rng.random() + (k == 0) * i / 5 for k in range(len(names))]
            policy.append([x / sum(p) for x in p])
        row = {"step": i * total // (20 * rounds), "stage": i * 3 // (10 * rounds + 1), "iteration": i, "kind": "controller"}
        row |= {"reward": reward, "baseline": baseline, "policy": policy, "decisions": decisions, "options": options}
        row |= {"entropy": [-sum(x * math.log(x) for x in p) for p in policy], "window": {"var_g": 0.1, "var_d": 0.2}}
        if i % 10 == 0:
            row |= {"kind": "beam", "beam": [{"vector": f"1 0 {k} 1", "score": 8 - k / 2} for k in range(5)]}
        made.append(row)
    return made


# ---- the program ------------------------------------------------------------------------------------------------------


def main(words: list[str]) -> int:
    args = read_args(words)
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
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    run = args.resume or args.runs_dir / f"{Path(__file__).stem}-{args.dataset}-s{args.seed}-{stamp}"
    run.mkdir(parents=True, exist_ok=args.resume is not None)
    values = {f.name: getattr(args, f.name) for f in fields(Args)}
    if args.resume is None:
        values = {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
        write(run / "config.json", {"schema": 1, "script": Path(__file__).name, "method": "fake", "preset": args.preset,
              "dataset": args.dataset, "seed": args.seed, "args": values, "argv": sys.argv, "created": now()})  # fmt: skip
    step = json.loads((run / "checkpoint.pt").read_text())["step"] if args.resume else 0
    status = {
        "state": "running",
        "phase": "train",
        "stage": "training",
        "step": step,
        "total": args.steps,
        "rate": 1 / (args.pause or 1),
    }
    status |= {
        "process": me(),
        "started": now(),
        "updated": now(),
        "last": {"fid": None, "is": None, "net": None},
        "error": None,
    }
    status |= {"resume_command": f"python {Path(__file__).name} --resume {run}", "eta_s": 60.0}
    write(run / "status.json", status)
    (run / "STOP").unlink(missing_ok=True)
    while step < args.steps and not asked and not (run / "STOP").exists():
        step += 1
        time.sleep(args.pause)
        with open(run / "metrics.jsonl", "a") as f:
            f.write(
                json.dumps({"step": step, "phase": "train", "stage": "training", "loss/g": 1 / step, "t": step * args.pause})
                + "\n"
            )
        with open(run / "log.txt", "a") as f:
            f.write(f"step {step}\n")
        status |= {"step": step, "updated": now()}
        write(run / "status.json", status)
        if args.fail and step > args.steps // 2:
            if args.fail == 137:
                os.kill(os.getpid(), signal.SIGKILL)
            print("Traceback (most recent call last):\nRuntimeError: CUDA out of memory", file=sys.stderr)
            return args.fail
    write(run / "checkpoint.pt", {"step": step})
    stopped = step < args.steps
    write(run / "status.json", {**status, "state": "stopped" if stopped else "done"})
    return 130 if stopped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
