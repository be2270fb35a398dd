"""Search in the table of benchmark/table.py with AutoGAN's controller, EAGAN's selection and random search.

python -m benchmark.table_search run [--space NAME]        500 searches of each, as rows
python -m benchmark.table_search report [--space NAME]     a Markdown table of these rows; --picture FILE draws them

An evaluation of an architecture is the FID of one of its seeds, drawn with replacement: a search sees the noise that
trainings have. Regret after n evaluations: the FID, mean over seeds, of the architecture with the lowest FID seen so
far, less that of the best architecture in the table. All three minimise FID: AutoGAN's reward is 1/FID, as in §4.3.2 of
its paper; EAGAN selects by FID, IS and parameters, and its children differ from a parent in one decision.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import autogan
import eagan
from benchmark.table import RESULTS, ROOT, SPACES, Table, command, lines_of, read
from common.files import UserError, finite, rng_of, stream
from common.run import git_state

SEARCHES, POPULATION = 500, 10


def random_search(table: Table, seed: int) -> Iterator[tuple[int, int]]:
    """Architectures drawn uniformly, with replacement."""
    rng, (n, seeds, _) = np.random.default_rng(seed), table.scores["fid"].shape
    while True:
        yield int(rng.integers(n)), int(rng.integers(seeds))


def evolution(table: Table, seed: int) -> Iterator[tuple[int, int]]:
    """EAGAN's rounds [§4.3]: the better half survives and each survivor has a child; all are scored in every round."""
    rng, (n, seeds, _) = np.random.default_rng(seed), table.scores["fid"].shape
    codes = [sorted(set(column)) for column in zip(*table.vectors, strict=True)]
    free = [k for k, values in enumerate(codes) if len(values) > 1]
    at = {vector: i for i, vector in enumerate(table.vectors)}
    people = [int(i) for i in rng.permutation(n)[:POPULATION]]
    while True:
        points = []
        for i in people:
            s = int(rng.integers(seeds))
            yield i, s
            points.append((table.scores["fid"][i, s, -1], -table.scores["is"][i, s, -1], table.params[i]))
        kept = [people[k] for k in eagan.select_nsga2(points, [p[0] for p in points], POPULATION // 2)]
        people = list(kept)
        for i in kept:
            child = list(table.vectors[i])
            k = free[rng.integers(len(free))]
            child[k] = int(rng.choice([code for code in codes[k] if code != child[k]]))
            people.append(at[tuple(child)])


def controller(table: Table, seed: int) -> Iterator[tuple[int, int]]:
    """AutoGAN's controller [§3.3.2]: batches of architectures, and a REINFORCE step for each."""
    rng, seeds = rng_of(seed, "drawn"), table.scores["fid"].shape[1]
    codes = [sorted(set(column)) for column in zip(*table.vectors, strict=True)]
    at = {vector: i for i, vector in enumerate(table.vectors)}
    args, baseline = autogan.Args(controller_loss="paper", ctrl_batch=POPULATION), None
    torch.manual_seed(seed)
    policy = autogan.Controller([len(values) for values in codes])
    optimizer = torch.optim.Adam(policy.parameters(), args.ctrl_lr, betas=(0.0, 0.9))
    for step in range(sys.maxsize):
        drawn, rewards = policy(POPULATION, stream(seed, "controller", step), []), []
        for candidate in drawn.candidates:
            i = at[tuple(values[k] for values, k in zip(codes, candidate.vector, strict=True))]
            s = rng.randrange(seeds)
            yield i, s
            fid = table.scores["fid"][i, s, -1]
            rewards.append(1 / fid if fid > 0 else 0.0)
        loss, baseline = autogan.controller_loss(args, torch.tensor(rewards), drawn, baseline)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


METHODS = {"random search": random_search, "EAGAN's selection": evolution, "AutoGAN's controller": controller}


def regrets(table: Table, search: Callable[[Table, int], Iterator[tuple[int, int]]], n: int, seed: int) -> np.ndarray:
    """Regret after 1, 2, ... n evaluations of one search, (n)."""
    truth = table.scores["fid"][..., -1].mean(1)
    seen, best, found = np.inf, 0, np.empty(n)
    for k, (i, s) in zip(range(n), search(table, seed), strict=False):
        if table.scores["fid"][i, s, -1] < seen:
            seen, best = table.scores["fid"][i, s, -1], i
        found[k] = truth[best] - truth.min()
    return found


def run(asked: argparse.Namespace) -> None:
    """One row for each method: mean regret, and its 95 % interval over searches, after 1, 2, ... evaluations."""
    table = read(asked.results / f"table-{asked.space}.json", SPACES[asked.space])
    n = asked.evaluations or 2 * len(table.vectors)
    rows = []
    for name, search in METHODS.items():
        found = np.array([regrets(table, search, n, seed) for seed in range(asked.searches)])
        half = 1.96 * found.std(0, ddof=1) / len(found) ** 0.5
        row = {"space": asked.space, "method": name, "searches": len(found), "mean": found.mean(0).round(4).tolist()}
        row |= {"half_interval": half.round(4).tolist(), "git": git_state(ROOT), "command": command()}
        rows.append(json.dumps(finite(row)))
        print(f"{name}: {found[:, -1].mean():.3f} after {n} evaluations", flush=True)
    (asked.results / f"table-search-{asked.space}.jsonl").write_text("\n".join(rows) + "\n")


def report(space: str, results: Path = RESULTS) -> list[str]:
    """Markdown lines: mean regret and interval after some evaluations; "not run" where there are no rows."""
    rows = lines_of(results / f"table-search-{space}.jsonl")
    if not rows:
        return ["| search | regret |", "|---|---|", *(f"| {name} | not run |" for name in METHODS)]
    at = [n for n in (10, 20, 50, 100, 200, 500) if n <= len(rows[0]["mean"])]
    lines = [f"| {rows[0]['searches']} searches of {space}: regret after | {' | '.join(map(str, at))} |"]
    lines.append("|---" * (len(at) + 1) + "|")
    for row in rows:
        cells = [f"{row['mean'][n - 1]:.3f} ± {row['half_interval'][n - 1]:.3f}" for n in at]
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return lines


def draw(space: str, path: Path, results: Path = RESULTS) -> None:
    """Curves with bands of these rows; matplotlib."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6, 3.6), layout="constrained")).subplots()
    for row in lines_of(results / f"table-search-{space}.jsonl"):
        mean, half = np.array(row["mean"]), np.array(row["half_interval"])
        x = np.arange(1, len(mean) + 1)
        axes.plot(x, mean, label=row["method"])
        axes.fill_between(x, mean - half, mean + half, alpha=0.3)
    axes.set(xlabel="evaluations", ylabel="regret, FID(compact)", title=f"{space}: mean of the searches, 95 % interval")
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--space", choices=SPACES, default="stage1")
    parser.add_argument("--searches", type=int, default=SEARCHES)
    parser.add_argument("--evaluations", type=int, default=0, help="of each search; default: twice the architectures")
    parser.add_argument("--picture", type=Path, help="also draw the curves into this file; needs matplotlib")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if asked.what == "run":
            run(asked)
        print("\n".join(report(asked.space, asked.results)))
        if asked.picture:
            draw(asked.space, asked.picture, asked.results)
    except UserError as error:
        sys.exit(f"table_search: {error}")


if __name__ == "__main__":
    main()
