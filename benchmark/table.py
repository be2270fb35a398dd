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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

import autogan
from common import gan
from common.data import load_dataset
from common.files import UserError, finite, read_json, replacing, rng_of
from common.metrics import Evaluator
from common.ranks import start_ranks
from common.run import git_state

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmark" / "results"
SMALL = dict(g_ch=32, d_ch=32, g_batch=64, d_batch=64, n_critic=1, g_lr=5e-4, d_lr=5e-4, ema=0.99, eval_n=5000)
TINY = SMALL | dict(g_ch=16, d_ch=16, g_batch=32, d_batch=32, eval_n=2000)
SHARED_N = 2000  # images that score an architecture under shared weights
DRAWS = 1000  # of the bootstrap behind an interval
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
    "two-cells-nearest": Space(cells=2, seeds=2, updates=400, up="nearest", flags=TINY),
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
            autogan.d_step(job, nets, gan.d_draw(job, step * args.n_critic + k), None, stage)
        autogan.g_step(job, nets, gan.latent(job, job.g_batch, "g", step), None, stage)
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
        about = {"protocol": protocol, **versions(job)}
        for k, (text, vector, seed) in enumerate(todo):
            if (text, seed) not in done:
                row = {"space": asked.space, **train(job, space, vector, seed), **about}
                append(path, row)
                told = f"{text}, seed {seed}: {row['scores'][-1]}, {row['train_s']:.0f} s"
                print(f"{k + 1}/{len(todo)}: {told}", flush=True)


def shared(asked: argparse.Namespace) -> None:
    """Train AutoGAN's shared weights on uniform paths, and score every architecture with them; one row per seed."""
    space = SPACES[asked.space]
    path = asked.results / f"table-shared-{asked.space}.jsonl"
    with only_writer(path):
        job = job_of(space, asked.images, asked.work, asked.device)
        protocol = space.protocol(job)
        done = {row["seed"] for row in lines_of(path)}
        for seed in (seed for seed in asked.seeds or range(5) if seed not in done):
            began = time.perf_counter()
            row = {"space": asked.space, "seed": seed, "scored": score_all_shared(job, space, seed)}
            row |= {"seconds": round(time.perf_counter() - began, 1), "protocol": protocol}
            append(path, {**row, **versions(job)})
            print(f"shared weights, seed {seed}: {row['seconds']} s", flush=True)


def score_all_shared(job: gan.Job, space: Space, seed: int) -> list[dict]:
    """Scores of all architectures, [FID, IS] in order of space.vectors(), with weights shared by all, after as many
    updates as one architecture of the table gets and four times as many; with BatchNorm's statistics of all paths, as
    AutoGAN does, and of each path alone."""
    width = {"search_g_ch": space.flags["g_ch"], "reward_n": SHARED_N}
    args, stage, scored = space.args(seed, **width), space.cells - 1, []
    job, vectors = replace(job, args=args), space.vectors()
    nets = autogan.new_pair(job, (None,) * space.cells, args.g_ch, args.d_ch, "shared", 0)
    for step in range(4 * space.updates):
        for k in range(step * args.n_critic, (step + 1) * args.n_critic):
            path = autogan.names_of(rng_of(seed, "path", k).choice(vectors))
            autogan.d_step(job, nets, gan.d_draw(job, k), path, stage)
        autogan.g_step(job, nets, gan.latent(job, job.g_batch, "g", step), path, stage)
        for own in (0, 16) if step + 1 in (space.updates, 4 * space.updates) else ():
            scoring = replace(job, args=replace(args, bn_batches=own))
            found = [autogan.score_shared(scoring, nets.G, autogan.Candidate(vector)) for vector in vectors]
            scores = [[x.fid, x.is_mean] for x in found]
            scored.append({"updates": step + 1, "bn_batches": own, "n": args.reward_n, "scores": scores})
    return scored


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


def versions(job: gan.Job) -> dict:
    """Where a row comes from."""
    cuda = job.ranks.device.type == "cuda"
    about = {"git": git_state(ROOT), "torch": torch.__version__, "command": command()}
    return {**about, "device": torch.cuda.get_device_name(job.ranks.device) if cuda else "cpu"}


def append(path: Path, row: dict) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(finite(row)) + "\n")


def lines_of(path: Path) -> list[dict]:
    """Rows of a file; a last line without its end is still being written, or was cut off. UserError: not JSON."""
    found: list[dict] = []
    text = path.read_text() if path.exists() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
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


def merged(space: str, rows: list[dict]) -> dict:
    """One table of all rows: protocol and commits in its head. UserError: rows that do not belong together."""
    found: dict[tuple[int, tuple[int, ...]], dict] = {}
    for row in rows:
        first = rows[0]["protocol"]
        if other := [k for k in {**first, **row["protocol"]} if row["protocol"].get(k) != first.get(k)]:
            values = f"{first.get(other[0])!r} and {row['protocol'].get(other[0])!r}"
            raise UserError(f"{space}: rows differ in {other[0]}, {values}; use one folder of --results for each")
        key = row["seed"], tuple(map(int, row["vector"].split()))
        if found.setdefault(key, row)["scores"] != row["scores"]:
            raise UserError(f"{space}: two rows of {row['vector']}, seed {row['seed']}, differ; delete one of them")
    if not found:
        raise UserError(f"{space}: no rows; train it by `run`")
    kept = ("vector", "seed", "scores", "params", "macs", "train_s", "score_s")
    head = {"space": space, "format": 1, "protocol": rows[0]["protocol"]}
    for name in ("commits", "torch", "devices", "commands"):
        values = [row["git"]["sha"] if name == "commits" else row[name.removesuffix("s")] for row in rows]
        head[name] = [x for i, x in enumerate(values) if x not in values[:i]]
    return {**head, "rows": [{k: found[key][k] for k in kept} for key in sorted(found)]}


def merge(asked: argparse.Namespace) -> None:
    """Write table-SPACE.json: an object with a head, and one row a line."""
    table, path = merged(asked.space, rows_of(asked)), asked.results / f"table-{asked.space}.json"
    rows = ",\n".join(json.dumps(row) for row in table.pop("rows"))
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(table, indent=1)[:-2] + f',\n "rows": [\n{rows}\n]}}\n')
    print(f"{path.name}: {rows.count(chr(10)) + 1} rows")


# ---- report ------------------------------------------------------------------------------------------

SCORES = {"fid": "FID(compact)", "is": "IS(compact)"}
Statistic = Callable[[np.ndarray], float]  # of an array (architectures, seeds, budgets)


@dataclass
class Table:
    """The whole seeds of a table, as arrays."""

    vectors: list[autogan.Vector]
    seeds: list[int]
    params: np.ndarray  # (architectures)
    scores: dict[str, np.ndarray]  # "fid", "is" -> (architectures, seeds, budgets); diverged: inf and 0


def read(path: Path, space: Space) -> Table:
    """The seeds for which all architectures are in the file. UserError: none is."""
    rows = read_json(path, "table")["rows"]
    at = {(tuple(map(int, row["vector"].split())), row["seed"]): row for row in rows}
    vectors = space.vectors()
    seeds = sorted(seed for seed in {seed for _, seed in at} if all((v, seed) in at for v in vectors))
    if not seeds:
        raise UserError(f"{path}: no seed of all {len(vectors)} architectures yet; go on with `run`")
    worst, scores = {"fid": np.inf, "is": 0.0}, {}
    for name, bad in worst.items():
        cells = [[[x[name] for x in at[v, s]["scores"]] for s in seeds] for v in vectors]
        values = np.array(cells, dtype=float)  # None: NaN
        scores[name] = np.where(np.isfinite(values), values, bad)
    return Table(vectors, seeds, np.array([at[v, seeds[0]]["params"] for v in vectors]), scores)


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks in each column of (n, columns) with mean 0 and norm 1: products are correlations. NaN if constant."""
    centred = rankdata(x, axis=0) - (len(x) + 1) / 2
    with np.errstate(invalid="ignore"):
        return centred / np.linalg.norm(centred, axis=0)


def between(first: int, second: int, same: bool) -> Statistic:
    """Mean rank correlation of budget `first` with budget `second`, of the same seed or of two different seeds."""

    def statistic(x: np.ndarray) -> float:
        found = ranks(x[..., first]).T @ ranks(x[..., second])
        return float(found[np.eye(len(found), dtype=bool) == same].mean())

    return statistic


def spread(x: np.ndarray) -> float:
    """Standard deviation between the architectures' means over seeds."""
    return float(x[..., -1].mean(1).std(ddof=1))


def noise(x: np.ndarray) -> float:
    """Standard deviation between seeds, median over architectures."""
    return float(np.median(x[..., -1].std(1, ddof=1)))


def true_spread(x: np.ndarray) -> float:
    """Spread between architectures without what the seeds contribute to it: a component of variance."""
    within = x[..., -1].var(1, ddof=1).mean() / x.shape[1]
    return float(np.sqrt(max(0.0, x[..., -1].mean(1).var(ddof=1) - within)))


def interval(x: np.ndarray, statistic: Statistic) -> tuple[float, float]:
    """95 % interval of a statistic: percentiles over architectures drawn with replacement; seeds are as they are."""
    rng = np.random.default_rng(0)
    return percentiles([statistic(x[rng.integers(len(x), size=len(x))]) for _ in range(DRAWS)])


def percentiles(found: list[float]) -> tuple[float, float]:
    low, high = np.percentile([x for x in found if not np.isnan(x)] or np.nan, [2.5, 97.5])
    return float(low), float(high)


STATISTICS: dict[str, tuple[Statistic, int]] = {  # of what is printed, and seeds that it needs
    "mean": (lambda x: float(x[..., -1].mean()), 1),
    "sd between architectures (means over seeds)": (spread, 2),
    "the same without the seeds' share": (true_spread, 2),
    "sd between seeds, median over architectures": (noise, 2),
    "rank correlation between two seeds": (between(2, 2, False), 2),
    "a quarter of the budget with the whole, same seed": (between(0, 2, True), 1),
    "half of the budget with the whole, same seed": (between(1, 2, True), 1),
    "a quarter of the budget with the whole, two seeds": (between(0, 2, False), 2),
    "half of the budget with the whole, two seeds": (between(1, 2, False), 2),
}


def cell(value: float, low_high: tuple[float, float]) -> str:
    """A value with its interval; undefined: a rank correlation of equal scores, or a spread with one that diverged."""
    return "{:.2f} ({:.2f} to {:.2f})".format(value, *low_high) if np.isfinite(value) else "undefined"


def report(name: str, results: Path = RESULTS) -> list[str]:
    """Markdown lines of a space's table, and of the scores with shared weights; "not run" where there are no rows."""
    path, space = results / f"table-{name}.json", SPACES[name]
    lines = [f"| {name} | {' | '.join(SCORES.values())} |", "|---|---|---|"]
    if not path.exists():
        return [*lines, "| all | not run | not run |"]
    table = read(path, space)
    about = f"{len(table.vectors)} architectures, {len(table.seeds)} of {space.seeds} seeds"
    if diverged := int(np.isinf(table.scores["fid"][..., -1]).sum()):
        about += f", {diverged} trainings diverged"
    lines[0] = f"| {name}: {about} | {' | '.join(SCORES.values())} |"
    for what, (statistic, seeds) in STATISTICS.items():
        enough = len(table.seeds) >= seeds
        scores = [table.scores[score] for score in SCORES]
        cells = [cell(statistic(x), interval(x, statistic)) if enough else "not run" for x in scores]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    rows = [row for row in lines_of(results / f"table-shared-{name}.jsonl") if row["space"] == name]
    for k, x in enumerate(rows[0]["scored"] if rows else []):
        norm = "statistics of each path" if x["bn_batches"] else "AutoGAN's statistics"
        cells = []
        for i, score in enumerate(SCORES):
            truth = table.scores[score][..., -1].mean(1)
            proxy = np.array([row["scored"][k]["scores"] for row in rows], dtype=float)[..., i].T
            bad = np.inf if score == "fid" else 0.0
            cells.append(shared_cell(np.where(np.isfinite(proxy), proxy, bad), truth))
        lines.append(f"| shared weights, {x['updates']:,} updates, {norm}: with the table | {' | '.join(cells)} |")
    return lines


def shared_cell(proxy: np.ndarray, truth: np.ndarray) -> str:
    """Mean rank correlation of proxy (architectures, seeds) with truth (architectures); its interval is over
    architectures and seeds of the shared weights, both drawn with replacement."""
    rng, (n, seeds) = np.random.default_rng(0), proxy.shape

    def mean(of: np.ndarray, drawn: np.ndarray) -> float:
        return float((ranks(truth[of, None]).T @ ranks(proxy[of]))[0, drawn].mean())

    drawn = [mean(rng.integers(n, size=n), rng.integers(seeds, size=seeds)) for _ in range(DRAWS)]
    return cell(mean(np.arange(n), np.arange(seeds)), percentiles(drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "shared", "merge", "report"))
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
        if asked.what in ("run", "shared") and asked.images is None:
            raise UserError(f"--images: `{asked.what}` needs an .npz with images and labels")
        if asked.what == "report":
            print("\n".join(report(asked.space, asked.results)))
        else:
            {"run": run, "shared": shared, "merge": merge}[asked.what](asked)
    except UserError as error:
        sys.exit(f"table: {error}")


if __name__ == "__main__":
    main()
