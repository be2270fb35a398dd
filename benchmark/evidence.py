"""Compare what each search finds with a random search that is given the same time, on real images, over several seeds.

python -m benchmark.evidence run --images cifar10_train.npz [METHOD ...] [--seeds 0 1 2 3 4] [--jobs 2]
python -m benchmark.evidence subset --images cifar10_train.npz --out part.npz   12,000 images, as many of each class
python -m benchmark.evidence table                                              Markdown tables of the committed rows
python -m benchmark.evidence summary                                            one line for each method

Per method and seed, in one process:
  found   the method's search, then its generator trained from scratch
  random  random search: random generators of the same space, each trained briefly and scored by FID(compact) on 1,000
          images, until the time that the search took is used up; the best one, trained from scratch like the found one
The final training and its seed are the same in both arms. No setting was tuned on either arm. A finished arm is a line
of JSON in --results; what is there already is not done again.
"""

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import autogan
from common import gan
from common.data import load_dataset
from common.files import rng_of
from common.metrics import Evaluator
from common.ranks import start_ranks
from common.report import compared, improvement_cell, interval_cell, mean_cell, summary
from common.run import git_state

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmark" / "results" / "evidence.jsonl"
METHODS = ("adversarialnas", "autogan", "degas", "eagan")
SCORES = {"fid": "FID(compact) ↓", "is": "IS(compact) ↑", "fid768": "FID-768 ↓"}

COMMON = dict(
    evaluator="compact", size=32, epoch_batches=50, eval_n=5000, log_every=50, sample_every=10**9, save_minutes=1e9
)
GAN = dict(g_ch=64, d_ch=64, g_batch=64, d_batch=64, n_critic=1, g_lr=5e-4, d_lr=5e-4, ema=0.99)
SEARCH: dict[str, dict[str, Any]] = {
    "adversarialnas": dict(
        g_lr=5e-4, d_lr=5e-4, ema=0.99, n_critic=1, search_g_ch=12, search_d_ch=8, search_batch=32, epoch_batches=20,
        search_epochs=9, derive_every=20, search_eval_every=0, arch_lr=3e-3,
    ),
    "autogan": dict(
        **GAN, search_g_ch=32, search_d_ch=32, iterations=9, grow="3,6", gan_epochs=1, ctrl_steps=15, ctrl_lr=5e-3,
        candidates=10, beam=3, reward_n=300, reset_window=100, derive_epochs=2, final_n=1000,
    ),
    "degas": dict(search_images=512, search_batch=32, search_ch=12, search_epochs=25, epoch_batches=0, arch_lr=3e-3),
    "eagan": dict(
        **GAN, stages="g", population=12, warmup_epochs=4, rounds=4, round_epochs=2, search_n=300, final_n=1000,
        bn_batches=2,
    ),
}  # fmt: skip
TRAIN: dict[str, dict[str, Any]] = {
    "adversarialnas": dict(**{**GAN, "d_ch": 24, "g_batch": 32, "d_batch": 32}, g_params=2e5),
    "autogan": GAN,
    "degas": dict(g_ch=24, d_ch=24, g_batch=32, d_batch=32, n_critic=2, g_lr=1e-3, d_lr=1e-3, ema=0.99),
    "eagan": dict(**GAN, d_genotype="eagan-d-cifar10"),
}
UPDATES, BRIEF = 800, 100  # G updates of the final training and of a random candidate's
NO_IS = {"autogan": dict(reward="fid"), "eagan": dict(objectives="fid,size")}  # with an Inception file that ends early


def length(method: str, updates: int) -> dict[str, int]:
    """Flags of a training of so many G updates, evaluated before it and at its end."""
    if method == "degas":
        return {"iters": updates + 1, "eval_every": 10**6}  # the first iteration updates only the critic
    epochs = max(1, updates * TRAIN[method]["n_critic"] // COMMON["epoch_batches"])
    return {"train_epochs": epochs, "eval_every": epochs, "eval_after": 0}


def random_genotype(method: str, script: ModuleType, seed: int, k: int) -> dict:
    """genotype.json of the k-th random generator of a seed, uniform over the method's valid ones."""
    rng = rng_of(seed, "random generator", k)
    if method == "autogan":
        (found,) = script.uniform(script.Args(), 1, seed, "random generator", k)
        return {"vector": script.text_of(found.vector)}
    if method == "degas":
        return {"n": 1, "nodes": script.prune(script.Alpha(script.Space(), rng.randrange(2**31), 1.0))}
    sample = script.sample if method == "eagan" else script.random_genotype
    return {"method": method, "G": sample(script.G_SPACE, rng)}


class Arm:
    """Runs of one method and seed, in one process."""

    def __init__(self, asked: argparse.Namespace, method: str, seed: int) -> None:
        self.asked, self.method, self.script = asked, method, importlib.import_module(method)
        self.folder = asked.work / f"{method}-s{seed}"
        images = {"dataset": str(asked.images), "data_dir": asked.work / "data"}
        self.base = {**COMMON, **images, "device": asked.device, "seed": seed, "preset": "smoke"}

    def run(self, **flags: Any) -> tuple[Path, float]:
        """A run to its end: its directory, and its seconds."""
        runs = self.folder / str(len(list(self.folder.glob("*"))))
        values = {**self.script.PRESETS["smoke"], **self.base, **flags, "runs_dir": runs}
        began = time.perf_counter()
        self.script.main(self.script.Args(**values))
        (made,) = runs.iterdir()
        return made, time.perf_counter() - began

    def train(self, genotype: Path | str, updates: int, **flags: Any) -> tuple[Path, dict, float]:
        """A training from scratch: its directory, scores at its end, and seconds."""
        flags = {**TRAIN[self.method], **length(self.method, round(updates * self.asked.scale)), **flags}
        run, seconds = self.run(phase="train", genotype=str(genotype), **flags)
        return run, json.loads((run / "result.json").read_text())["last"], seconds

    def found(self) -> tuple[Path, dict]:
        """The genotype that the search finds."""
        flags, scale = dict(SEARCH[self.method]), self.asked.scale
        for name in ("search_epochs", "warmup_epochs", "round_epochs"):
            if name in flags:
                flags[name] = max(2, round(flags[name] * scale))
        run, seconds = self.run(phase="search", **flags)
        return run / "genotype.json", {"search_s": round(seconds, 1)}

    def random(self, seconds: float) -> tuple[Path, dict]:
        """The best of as many random generators as can be trained briefly within so many seconds, one at least."""
        best, tried, began = None, 0, time.perf_counter()
        while not tried or (time.perf_counter() - began) * (tried + 1) / tried < seconds:
            path = self.folder / f"random-{tried}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(random_genotype(self.method, self.script, self.base["seed"], tried)))
            _, scores, _ = self.train(path, BRIEF, eval_n=1000)
            fid = scores["fid"] if scores["fid"] is not None else float("inf")
            best = min(best or (fid, path), (fid, path))
            tried += 1
        return best[1], {"search_s": round(time.perf_counter() - began, 1), "candidates": tried}

    def row(self, arm: str, genotype: Path, about: dict) -> dict:
        """Train and score the chosen generator."""
        run, scores, seconds = self.train(genotype, UPDATES)
        row = {"experiment": "evidence", "method": self.method, "arm": arm, "seed": self.base["seed"], **about}
        row |= {"train_s": round(seconds, 1), "fid": scores["fid"], "is": scores["is"], "fid768": None}
        if self.asked.inception:
            flags = {"evaluator": "inception", "fid_dims": "768", "inception_weights": self.asked.inception}
            flags |= {"eval_n": self.asked.inception_n, "ref_n": self.asked.inception_ref, **NO_IS.get(self.method, {})}
            scored, _ = self.run(phase="eval", weights=run / "weights.pt", **flags)
            row["fid768"] = json.loads((scored / "result.json").read_text())["last"]["fid"]
        config = json.loads((run / "config.json").read_text())
        row |= {
            "params": config["params"]["G"],
            "updates": round(UPDATES * self.asked.scale),
            "scale": self.asked.scale,
        }
        row |= {"eval_n": COMMON["eval_n"], "inception_n": self.asked.inception_n, "images": self.asked.images.name}
        row |= {"genotype": json.loads(genotype.read_text()), "git": git_state(ROOT)["sha"]}
        return row | {"device": config["device"], "torch": torch.__version__, "command": self.asked.command}


def one(asked: argparse.Namespace) -> None:
    """Both arms of a method and seed, as far as they are missing."""
    (method,), (seed,) = asked.methods, asked.seeds
    arm, done = (
        Arm(asked, method, seed),
        {row["arm"]: row for row in rows(asked.results) if key(row)[:2] == (method, seed)},
    )
    if "found" not in done:
        genotype, about = arm.found()
        done["found"] = write(asked.results, arm.row("found", genotype, about))
    if "random" not in done:
        genotype, about = arm.random(done["found"]["search_s"])
        write(asked.results, arm.row("random", genotype, about))


def prepare(asked: argparse.Namespace) -> None:
    """Train and cache what all processes need to score images, at the three sizes of AutoGAN's stages too."""
    images = {"dataset": str(asked.images), "data_dir": asked.work / "data"}
    args, ranks = autogan.Args(**{**autogan.PRESETS["smoke"], **COMMON, **images}), start_ranks(asked.device)
    evaluators = [Evaluator(**gan.evaluator_options(args, ranks))]
    if asked.inception:
        about = {"weights": asked.inception, "fid_dims": 768, "want_is": False, "ref_n": asked.inception_ref}
        evaluators.append(Evaluator("inception", ranks.device, args.data_dir / "cache", **about))
    data = load_dataset(args.dataset, args.data_dir, args.size)
    for evaluator in evaluators:
        evaluator.use(data)
        evaluator.prepare()
    for s in range(args.cells if "autogan" in asked.methods else 0):
        autogan.at_stage(gan.Job(args, ranks, evaluators[0], data), s)


def run(asked: argparse.Namespace) -> None:
    """All methods and seeds, --jobs at a time, all methods of a seed before the next seed."""
    prepare(asked)
    waiting = [(method, seed) for seed in asked.seeds for method in asked.methods]
    complete = {key(row)[:2] for row in rows(asked.results) if row["arm"] == "random"}
    waiting, alive = [x for x in waiting if x not in complete], {}
    words = [sys.executable, "-m", "benchmark.evidence", "one", *sys.argv[2:]]
    while waiting or alive:
        while waiting and len(alive) < asked.jobs:
            method, seed = waiting.pop(0)
            log = open(asked.work / f"{method}-s{seed}.log", "a")  # noqa: SIM115
            call = [*words, "--only", method, str(seed)]
            alive[method, seed] = subprocess.Popen(call, cwd=ROOT, stdout=log, stderr=log)
        for name, process in list(alive.items()):
            if process.poll() is not None:
                del alive[name]
                print(
                    f"{time.strftime('%H:%M:%S')} {name[0]} seed {name[1]}: exit code {process.returncode}", flush=True
                )
        time.sleep(0.2)


# ---- rows and tables ---------------------------------------------------------------------------------


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: dict) -> tuple[str, int, str]:
    return row["method"], row["seed"], row["arm"]


def write(path: Path, row: dict) -> dict:
    """Append a row; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as f:
        f.write(json.dumps(row) + "\n")
    return row


def table(found: list[dict], method: str) -> list[str]:
    """Markdown lines of a method: every seed, means, and what the comparison says."""
    mine = sorted((row for row in found if row["method"] == method), key=lambda row: (row["arm"], row["seed"]))
    lines = [
        "| arm, seed | parameters | " + " | ".join(SCORES.values()) + " | seconds: search, training |",
        "|---" * 6 + "|",
    ]
    values = {(arm, s): [row[s] for row in mine if row["arm"] == arm] for arm in ("found", "random") for s in SCORES}
    for row in mine:
        missing = {s: "not run" if set(values[row["arm"], s]) == {None} else "not finite" for s in SCORES}
        scores = " | ".join(missing[s] if row[s] is None else f"{row[s]:.2f}" for s in SCORES)
        told = f", {row['candidates']} candidates" if "candidates" in row else ""
        seconds = f"{row['search_s']:.0f}{told}, {row['train_s']:.0f}"
        lines.append(f"| {row['arm']}, {row['seed']} | {row['params']:,} | {scores} | {seconds} |")
    verdicts = {name: [] for name in ("found", "random", "improvement over random", "95 % interval of the difference")}
    for score in SCORES:
        found_, random_ = (values[arm, score] for arm in ("found", "random"))
        if min(len(found_), len(random_)) < 2 or {None} in (set(found_), set(random_)):
            for cells in verdicts.values():
                cells.append("not run")
            continue
        c = compared(found_, random_, score)
        cells = [mean_cell({"values": v, **summary(v)}) for v in (found_, random_)]
        for column, cell in zip(verdicts.values(), [*cells, improvement_cell(c), interval_cell(c)], strict=True):
            column.append(cell)
    lines += [f"| **{name}** | | " + " | ".join(cells) + " | |" for name, cells in verdicts.items()]
    return lines


def summary_table(found: list[dict]) -> list[str]:
    """Markdown lines of all methods: FID(compact) of both arms, whether the search beats chance, and the command."""
    lines = ["| | seeds | FID(compact), found | random | improvement | 95 % interval of the difference | command |"]
    lines.append("|---" * 7 + "|")
    for method in sorted({row["method"] for row in found}):
        mine = [row for row in found if row["method"] == method]
        ours, other = ([row["fid"] for row in mine if row["arm"] == arm] for arm in ("found", "random"))
        c = compared(ours, other, "fid")
        says = interval_cell(c)
        if c["decided"]:
            says += ": beats chance" if c["interval"][0] > 0 else ": worse than chance"
        cells = [mean_cell({"values": v, **summary(v)}) for v in (ours, other)]
        device = "cpu" if mine[0]["device"].startswith("CPU") else "cuda"
        flags = f"run {method} --images {mine[0]['images']} --device {device} --scale {mine[0]['scale']:g}"
        seeds = " and ".join(dict.fromkeys(str(len(v)) for v in (ours, other)))
        lines.append(f"| {method} | {seeds} | {' | '.join(cells)} | {improvement_cell(c)} | {says} | `{flags}` |")
    return lines


def subset(asked: argparse.Namespace, count: int = 12_000) -> None:
    """Write the first images of each class, the same number of each, in a random order that is always the same."""
    with np.load(asked.images) as file:
        images, labels = file["images"], file["labels"]
    classes = np.unique(labels)
    chosen = np.concatenate([np.flatnonzero(labels == c)[: count // len(classes)] for c in classes])
    random.Random(0).shuffle(order := list(chosen))
    np.savez_compressed(asked.out, images=images[order], labels=labels[order])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "one", "subset", "table", "summary"))
    parser.add_argument("methods", nargs="*", default=METHODS, metavar="METHOD", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--images", type=Path, help=".npz with images and labels")
    parser.add_argument("--inception", type=Path, help="Inception weights, for FID-768; default: not scored")
    parser.add_argument("--inception-n", type=int, default=5000, help="images generated for FID-768")
    parser.add_argument("--inception-ref", type=int, default=0, help="real images for FID-768; 0: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the length of searches and trainings")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, help="file that `subset` writes")
    parser.add_argument("--only", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := set(asked.methods) - set(METHODS):
        parser.error(f"{', '.join(unknown)}: unknown method; use {', '.join(METHODS)}")
    asked.command = sys.orig_argv[1:]
    if asked.only:  # started by `run`
        asked.command = ["run" if word == "one" else word for word in asked.command[: asked.command.index("--only")]]
        asked.methods, asked.seeds = [asked.only[0]], [int(asked.only[1])]
    if asked.what == "table":
        for method in asked.methods:
            print(f"\n### {method}\n" + "\n".join(table(rows(asked.results), method)))
        return
    if asked.what == "summary":
        print("\n".join(summary_table(rows(asked.results))))
        return
    if asked.images is None or (asked.what == "subset" and asked.out is None):
        parser.error("--images: required" if asked.images is None else "--out: required")
    for name in ("images", "inception", "work", "results", "out"):
        path = getattr(asked, name)
        setattr(asked, name, path and Path(os.path.abspath(path)))
    asked.work.mkdir(parents=True, exist_ok=True)
    {"run": run, "one": one, "subset": subset}[asked.what](asked)


if __name__ == "__main__":
    main()
