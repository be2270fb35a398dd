"""A table to search in: every architecture of a small part of AutoGAN's space, trained by one protocol, several seeds.

python -m benchmark.table run --images cifar10_train.npz [--space NAME]   train what is not in the rows yet
python -m benchmark.table shared --images cifar10_train.npz               score all with shared weights, five seeds
python -m benchmark.table merge [--space NAME]                            one JSON file of all rows
python -m benchmark.table report [--space NAME]                           Markdown tables of that file

Spaces (--space): `stage1`, the 36 cells of AutoGAN's first stage at 8 px; `two-cells-nearest`, the 288 pairs of cells
at 16 px with nearest up-sampling only; `two-cells`, all 2,592 pairs of cells at the paper's widths, for a GPU. A
training is that of autogan.py with images resized and a discriminator cut as in that stage of its search. Seeds come in
order: a table cut short holds whole seeds. A finished training is a line of JSON; a process that was stopped goes on
where it was. Several processes or machines share the work by --shard 0/4, 1/4 and so on; each writes its own file. They
must share the compact network too: copy the folder `cache` of --work from the first one.
"""

import argparse
import fcntl
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import autogan
from common import gan
from common.data import load_dataset
from common.files import UserError, finite
from common.metrics import Evaluator
from common.ranks import start_ranks
from common.run import git_state

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmark" / "results"
SMALL = dict(g_ch=32, d_ch=32, g_batch=64, d_batch=64, n_critic=1, g_lr=5e-4, d_lr=5e-4, ema=0.99, eval_n=5000)
PAPER = dict(g_ch=256, d_ch=128, g_batch=128, d_batch=64, n_critic=5, g_lr=2e-4, d_lr=2e-4, ema=0.999, eval_n=5000)


@dataclass(frozen=True)
class Space:
    """A complete part of AutoGAN's space, and the protocol of its table."""

    cells: int
    seeds: int
    updates: int  # of G; scored after a quarter, a half and all of them
    up: str = ""  # the only way of up-sampling; "": all
    flags: dict[str, Any] = field(default_factory=lambda: SMALL)  # of autogan.py

    @property
    def budgets(self) -> list[int]:
        return [self.updates // 4, self.updates // 2, self.updates]

    def args(self, seed: int = 0, **more: Any) -> autogan.Args:
        """Arguments of autogan.py for so many cells: images of 8 px with one cell, 16 px with two."""
        return autogan.Args(
            **self.flags, evaluator="compact", cells=self.cells, size=4 * 2**self.cells, seed=seed, **more
        )

    def vectors(self) -> list[autogan.Vector]:
        """All architectures, in the authors' encoding, in lexical order."""
        decided = autogan.to_decide(range(self.cells))
        codes = [[i for i, x in enumerate(xs) if "/up" not in name or self.up in ("", x)] for name, xs in decided]
        return list(itertools.product(*codes))

    def protocol(self, job: gan.Job) -> dict:
        """Everything that a score depends on, but architecture and seed."""
        return {
            **self.flags, "cells": self.cells, "size": job.args.size, "updates": self.updates, "up": self.up or "all",
            "images": job.data.name, "digest": job.data.digest, "evaluator": job.evaluator.network.digest,
        }  # fmt: skip


SPACES = {
    "stage1": Space(cells=1, seeds=5, updates=800),
    "two-cells-nearest": Space(cells=2, seeds=2, updates=800, up="nearest"),
    "two-cells": Space(cells=2, seeds=2, updates=5000, flags=PAPER),
}

# ---- training ----------------------------------------------------------------------------------------


def job_of(space: Space, images: Path, work: Path, device: str = "auto") -> gan.Job:
    """Real images of the space's size, and an evaluator for them; both are computed once and cached in `work`."""
    ranks = start_ranks(device)
    evaluator = Evaluator("compact", ranks.device, work / "cache")
    data = load_dataset(str(images), work)
    job = autogan.at_stage(gan.Job(space.args(), ranks, evaluator, data), space.cells - 1)
    job.run = SimpleNamespace(check=lambda: None, watch=lambda loss: None)
    return job


def train(job: gan.Job, space: Space, vector: autogan.Vector, seed: int) -> dict:
    """Train an architecture from scratch; its row: scores of the averaged G at three budgets, costs, seconds."""
    args = space.args(seed)
    job, stage = replace(job, args=args), space.cells - 1
    genotype = autogan.names_of(vector)
    nets = autogan.new_pair(job, genotype, args.g_ch, args.d_ch, "train")
    average = deepcopy(nets.G).requires_grad_(False)
    scores, scoring, began = [], 0.0, time.perf_counter()
    for step in range(space.updates):
        for k in range(args.n_critic):
            autogan.d_step(job, nets, step * args.n_critic + k, None, stage)
        autogan.g_step(job, nets, step, None, stage)
        gan.ema_update(average, nets.G, args.ema)
        if step + 1 in space.budgets:
            before = time.perf_counter()
            found = gan.score(job, average, args.eval_n)
            scores.append({"updates": step + 1, "fid": found.fid, "is": found.is_mean})
            scoring += time.perf_counter() - before
    cost, seconds = args.g_cost(genotype, args.g_ch), time.perf_counter() - began - scoring
    return {
        "vector": autogan.text_of(vector), "seed": seed, "scores": scores, "params": cost.params, "macs": cost.macs,
        "train_s": round(seconds, 2), "score_s": round(scoring, 2),
    }  # fmt: skip


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of "i/n": this process does every n-th training, beginning with the i-th."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise UserError(f"--shard {text}: must be I/N with I from 0 to N - 1, like 0/4")
    return int(i), int(n)


def run(asked: argparse.Namespace) -> None:
    """Train what no file of rows holds yet; one row each, appended to this shard's file."""
    space, (i, n) = SPACES[asked.space], shard_of(asked.shard)
    path = asked.results / f"table-{asked.space}{f'.{i}of{n}' if n > 1 else ''}.jsonl"
    seeds = range(space.seeds) if asked.seeds is None else asked.seeds
    todo = [(autogan.text_of(vector), vector, seed) for seed in seeds for vector in space.vectors()][i::n]
    with only_writer(path):
        job = job_of(space, asked.images, asked.work, asked.device)
        protocol = space.protocol(job)
        done = {(row["vector"], row["seed"]) for row in rows_of(asked) if row["protocol"] == protocol}
        about = {
            "protocol": protocol,
            "git": git_state(ROOT),
            "torch": torch.__version__,
            "device": str(job.ranks.device),
        }
        for k, (text, vector, seed) in enumerate(todo):
            if (text, seed) not in done:
                row = {"space": asked.space, **train(job, space, vector, seed), **about, "command": command()}
                append(path, row)
                print(
                    f"{k + 1}/{len(todo)}: {text}, seed {seed}: {row['scores'][-1]}, {row['train_s']:.0f} s", flush=True
                )


# ---- files -------------------------------------------------------------------------------------------


def command() -> list[str]:
    """The command line, with files by their name only."""
    return [Path(word).name if Path(word).is_absolute() else word for word in sys.orig_argv[1:]]


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the file of rows alone, and cut off a last line that is not whole. UserError: another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path}: another process is writing it; share the work with --shard") from None
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        yield


def append(path: Path, row: dict) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(finite(row)) + "\n")


def lines_of(path: Path) -> list[dict]:
    """Rows of a file; a last line without its end is still being written, or was cut off. UserError: not JSON."""
    found = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                found.append(json.loads(line))
            except ValueError:
                raise UserError(f"{path}, line {number}: not JSON; delete the line, `run` trains it again") from None
    return found


def rows_of(asked: argparse.Namespace) -> list[dict]:
    """Rows of all shards of the space."""
    names = sorted(asked.results.glob(f"table-{asked.space}*.jsonl"))
    return [row for path in names for row in lines_of(path) if row["space"] == asked.space]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run",))
    parser.add_argument("--space", choices=SPACES, default="stage1")
    parser.add_argument("--images", type=Path, help=".npz with images and labels")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="do the I-th of every N trainings")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: all of the space")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/table"), help="folder of what is cached")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if asked.what == "run" and asked.images is None:
            raise UserError("--images: required; an .npz with images and labels")
        run(asked)
    except UserError as error:
        sys.exit(f"table: {error}")


if __name__ == "__main__":
    main()
