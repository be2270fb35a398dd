"""From run directories to a paper's tables and pictures: python -m common.report RUN...

Runs that differ only in the seed form a group. Each score is reported with every seed's value, mean and standard
deviation; a search is compared with random search if there are runs of both. Nothing is trained, torch is not imported.
"""

import argparse
import csv
import html
import io
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common.files import UserError, finite, read_json, show_anything

NO_MATTER = {  # flags that change no result; the images are known by their digest
    "seed", "preset", "resume", "auto_resume", "dry_run", "device", "dataset", "runs_dir", "data_dir", "save_minutes",
    "log_every", "sample_every", "inception_weights",
}  # fmt: skip
HIGHER = {"is", "precision", "recall", "density", "coverage"}  # better if higher; FID and KID: if lower
NO_SCORE = {
    "step",
    "n",
    "t",
    "seconds",
}  # numbers beside the scores in result.json, as are all "..._std", "..._se" and "..._n"
INTERVAL_FROM = 5  # seeds
AUTHOR = "the author must answer"


# ---- reading ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Run:
    """What a run directory holds; what is missing or cut off is empty."""

    path: Path
    config: dict
    result: dict = field(default_factory=dict)
    status: dict = field(default_factory=dict)
    genotype: dict = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)  # metrics.jsonl
    search: list[dict] = field(default_factory=list)  # search.jsonl

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def args(self) -> dict:
        return dictionary(self.config.get("args"))

    @property
    def seed(self) -> Any:
        return plain(self.config.get("seed"))

    @property
    def script(self) -> str:
        return str(self.config.get("script"))

    @property
    def images(self) -> str:
        """Digest of the training images."""
        return str(self.config.get("data_digest"))

    @property
    def random(self) -> str:
        """The kind of random search that this run is, by its flags; "" if it is none."""
        search = self.args.get("search")
        if isinstance(search, str) and search.startswith("random"):
            return search
        return "random" if self.args.get("random_arch") is True else ""

    @property
    def state(self) -> str:
        """`done` if there is a result, else the state of status.json and the error."""
        if self.result:
            return "done"
        error = dictionary(self.status.get("error")).get("message")
        return f"{self.status.get('state', 'unknown')}" + (f": {error}" if error else "")


def dictionary(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list:
    return value if isinstance(value, list) else []


def number(value: object) -> float | None:
    """The value as a finite float that can be squared; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e150:
        return None
    return float(value)


def read(path: Path) -> Run:
    """Read a run directory. UserError: no readable config.json, or another file that is not JSON."""
    run = Run(path, read_json(path / "config.json", "RUN"))
    for name in ("result", "status", "genotype"):
        if (path / f"{name}.json").exists():
            setattr(run, name, read_json(path / f"{name}.json", "RUN"))
    run.rows, run.search = (list(json_lines(path / name)) for name in ("metrics.jsonl", "search.jsonl"))
    return run


def json_lines(path: Path) -> Iterator[dict]:
    """The objects of a .jsonl file; a line that is cut off or no object is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


# ---- groups ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Group:
    """Runs that differ only in the seed, in its order."""

    name: str
    runs: list[Run]
    values: tuple = ()  # of the flags that groups may differ in
    baseline: "Group | None" = None  # what it is compared with

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def random(self) -> bool:
        return bool(self.first.random)


def settings(run: Run, may_differ: Iterable[str] = ()) -> dict:
    """All that two runs of the same images and arm must have in common: the flags that can change a result."""
    args = {k: v for k, v in run.args.items() if k not in NO_MATTER and k not in may_differ}
    return {"script": run.script, **args}


def difference(a: dict, b: dict) -> dict[str, tuple]:
    """Keys whose values differ, and both values."""
    return {k: (a.get(k), b.get(k)) for k in [*a, *(k for k in b if k not in a)] if a.get(k) != b.get(k)}


def told(differs: dict[str, tuple]) -> str:
    return ", ".join(f"{k} ({a} and {b})" for k, (a, b) in differs.items())


def flags(names: Iterable[str]) -> list[str]:
    return [name.lstrip("-").replace("-", "_") for name in names]


def grouped(
    runs: Sequence[Run], baseline: Sequence[Run] = (), by: Iterable[str] = (), may_differ: Iterable[str] = ()
) -> list[Group]:
    """Groups of runs, each random arm after what is compared with it.

    baseline: runs that all other groups are compared with; without them, a method's runs are compared with the runs
    of its random search. by: flags with a group for each value. may_differ: flags that may differ within a group.
    UserError: runs differ in more than the seed, a seed occurs twice, a baseline is not unique or has other images.
    """
    by, may_differ = flags(by), flags(may_differ)
    for flag, names in (("--by", by), ("--may-differ", may_differ)):
        for name in names:
            if not any(name in run.args for run in (*runs, *baseline)):
                raise UserError(f"{flag} {name}: no flag of these runs; see the args of their config.json")
    arms: dict[tuple, list[Run]] = {}
    for run in (*runs, *baseline):
        values = tuple(str(run.args.get(name)) for name in by)
        arm = (run.script, run.images, run.random, values, run in baseline)
        arms.setdefault(arm, []).append(run)
    several = len({images for _, images, *_ in arms}) > 1
    groups: list[Group] = []
    for (script, images, random, values, given), members in arms.items():
        name = script.removesuffix(".py") + (f" ({random})" if random else "")
        name += f" on {members[0].config.get('dataset')}" if several else ""
        name += "".join(f", {k} {v}" for k, v in zip(by, values, strict=True))
        name += ", baseline" if given and not random else ""
        name += f", images {images[:6]}" if any(g.name == name for g in groups) else ""  # of the same name
        name += f", {len(groups) + 1}" if any(g.name == name for g in groups) else ""
        groups.append(Group(name, one_group(members, may_differ), values))
    if baseline:
        return against(groups, [g for g in groups if g.first in baseline])
    for group in groups:
        if not group.random:
            group.baseline = random_arm(group, groups)
    return sorted(groups, key=lambda g: (g.first.script, g.random))


def one_group(runs: Sequence[Run], may_differ: Iterable[str]) -> list[Run]:
    """The runs by seed. UserError: they differ in more than the seed, or a seed occurs twice."""
    first, seeds = runs[0], dict[Any, Path]()
    for run in runs:
        if differs := difference(settings(first, may_differ), settings(run, may_differ)):
            names = " ".join(differs)
            raise UserError(
                f"{first.path} and {run.path}: differ in {told(differs)}, not in the seed only; report them apart, or "
                f"give --by {names} for a group of each value, or --may-differ {names} if they are the same experiment"
            )
        if run.seed in seeds:
            raise UserError(f"{seeds[run.seed]} and {run.path}: both have seed {run.seed}; leave one of them out")
        seeds[run.seed] = run.path
    return sorted(runs, key=lambda run: (number(run.seed) is None, number(run.seed) or 0))


def against(groups: list[Group], baselines: list[Group]) -> list[Group]:
    """The groups, all compared with one. UserError: the baseline is no single group, or has other images."""
    if len(baselines) > 1:
        raise UserError(f"--baseline: {' and '.join(g.name for g in baselines)} are several groups; give one")
    others = [g for g in groups if g is not baselines[0]]
    for group in others:
        if group.first.images != baselines[0].first.images:
            raise UserError(f"--baseline {baselines[0].first.path}: other images than {group.first.path}; use the same")
        group.baseline = baselines[0]
    return [*others, baselines[0]]


def random_arm(group: Group, groups: list[Group]) -> Group | None:
    """The random search of the same script and images. UserError: there are several."""
    ours = (group.first.script, group.first.images)
    found = [g for g in groups if g.random and (g.first.script, g.first.images) == ours]
    found = [g for g in found if g.values == group.values] or found
    if len(found) > 1:
        names = " and ".join(g.name for g in found)
        raise UserError(f"{group.name}: {names} are both random; name one's runs with --baseline")
    return found[0] if found else None


# ---- scores ----------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What two scores must have in common to share a row."""

    weights: str  # of G: last, best, or the file that --phase eval was given
    net: Any  # of the evaluator
    n: Any  # generated images
    ref: Any  # real images
    ema: Any  # whether G's weights are averaged
    bn: Any  # BatchNorm statistics

    def __str__(self) -> str:
        ema = {True: "averaged weights", False: "weights not averaged"}.get(self.ema, "averaged or not: unknown")
        images = f"{self.n:,} images" if isinstance(self.n, int) else f"{self.n} images"
        weights = self.weights + (" (lowest FID)" if self.weights == "best" else "")
        return f"{weights} weights, {self.net}, {images}, reference {self.ref}, {ema}, BatchNorm {self.bn}"


def plain(value: Any) -> Any:
    """A hashable value for whatever the file holds."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def is_score(key: str, value: object) -> bool:
    is_number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return is_number and key not in NO_SCORE and not key.endswith(("_std", "_se", "_n"))


def scores(run: Run) -> dict[Kind, dict[str, float | None]]:
    """The scores of result.json by kind, whatever they are called; None: the score is not a finite number."""
    found = {}
    for weights, block in run.result.items():
        if not isinstance(block, dict) or weights in ("seconds", "genotype"):
            continue
        values = {k: number(v) for k, v in block.items() if is_score(k, v)}
        if not values or not any(k in block for k in ("net", "n", "fid", "is")):
            continue
        about = {k: block.get(k, run.result.get(k)) for k in Kind._fields[1:]}
        same = {"step": block.get("step", 0), "eval/net": about["net"], "eval/n": about["n"]}
        row: dict = next((row for row in reversed(run.rows) if same.items() <= row.items()), {})
        about = {k: row.get(f"eval/{k}") if v is None else v for k, v in about.items()}
        if weights == "last" and run.args.get("phase") == "eval":
            weights = Path(str(run.args.get("weights"))).name
        found[Kind(weights, **{k: plain(v) for k, v in about.items()})] = values
    return found


def score_name(key: str, net: object) -> str:
    """FID(compact), FID-768, IS: scores of different networks never have the same name."""
    name = {"fid_inf": "FID∞", "fid_infinity": "FID∞"}.get(key, key.upper() if len(key) <= 3 else key.replace("_", " "))
    if net == "inception-2048" or (key == "is" and str(net).removeprefix("inception-").isdigit()):
        return name
    return f"{name}-{str(net)[10:]}" if str(net).startswith("inception-") else f"{name}({net})"


def better(key: str) -> str | None:
    """Whether higher or lower is better; None: unknown for this score."""
    return "higher" if key in HIGHER else "lower" if key.startswith(("fid", "kid")) else None


def summary(values: Sequence[float | None]) -> dict:
    """Mean, standard deviation (n - 1) and 95 % interval of the mean (Student's t, from five values on) of the finite
    values, and how many there are."""
    known = [v for v in values if v is not None]
    found: dict[str, Any] = {"n": len(known), "mean": None, "sd": None, "interval": None}
    if known:
        found["mean"] = statistics.mean(known)
    if len(known) > 1:
        found["sd"] = statistics.stdev(known)
    if len(known) >= INTERVAL_FROM:
        half = student_t(len(known) - 1) * found["sd"] / len(known) ** 0.5
        found["interval"] = (found["mean"] - half, found["mean"] + half)
    return found


def comparison(found: Sequence[float], other: Sequence[float], higher: bool = False) -> dict:
    """Means, standard deviations, relative improvement of `found` (positive: better), and the 95 % interval of the
    difference of means (Welch); decided: the interval does not hold zero. At least two values each.
    interval: None if neither arm varies; improvement: None if the other mean is 0."""
    mean, baseline = statistics.mean(found), statistics.mean(other)
    difference, interval = (mean - baseline) * (1 if higher else -1), None
    spread = (statistics.stdev(found), statistics.stdev(other))
    if any(spread):
        a, b = spread[0] ** 2 / len(found), spread[1] ** 2 / len(other)  # squared standard errors
        half = student_t((a + b) ** 2 / (a**2 / (len(found) - 1) + b**2 / (len(other) - 1))) * (a + b) ** 0.5
        interval = (difference - half, difference + half)
    return {
        "found": (mean, spread[0]),
        "random": (baseline, spread[1]),
        "improvement": difference / baseline if baseline else None,
        "interval": interval,
        "decided": interval is not None and (interval[0] > 0 or interval[1] < 0),
    }


def student_t(freedom: float) -> float:
    """97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def compared(found: Sequence[float | None], other: Sequence[float | None], key: str) -> dict:
    """`comparison` of a score of two groups, or why there is none: a missing seed rules it out."""
    direction, lost = better(key), sum(v is None for v in (*found, *other))
    why = "not known whether higher or lower is better" if direction is None else ""
    why = "fewer than two seeds" if min(len(found), len(other)) < 2 else why
    why = f"{lost} of {len(found) + len(other)} seeds without a finite score" if lost else why
    if why:
        return {"improvement": None, "interval": None, "decided": False, "why": why}
    c = comparison([v for v in found if v is not None], [v for v in other if v is not None], direction == "higher")
    why = "" if c["decided"] else "no seed differs" if c["interval"] is None else "inconclusive"
    return {"improvement": c["improvement"], "interval": c["interval"], "decided": c["decided"], "why": why}


# ---- costs -----------------------------------------------------------------------------------------


def seconds(run: Run) -> dict[str, float | None]:
    """Seconds of search, validation (all scoring, in the search and after it), final training, preparing the evaluator,
    and their sum, by the names of the stages in result.json; None: not in this run."""
    spent: dict[str, float | None] = dict.fromkeys(("search", "validation", "training", "preparation", "sum"))
    for stage, value in dictionary(run.result.get("seconds")).items():
        if (value := number(value)) is None:
            continue
        scoring = stage.endswith(("scoring", "candidates", "final choice")) or "evaluation" in stage
        what = "preparation" if stage in ("start", "preparing the evaluator") else "validation" if scoring else "search"
        for name in ("training" if stage == "training" else what, "sum"):
            spent[name] = round((spent[name] or 0.0) + value, 1)
    return spent


def size(run: Run, what: str, net: str = "G") -> float | None:
    """params or macs (of one image) of the final network; None: not told."""
    genotype = run.genotype or dictionary(run.result.get("genotype"))
    found = number(dictionary(genotype.get(what)).get(net))
    return number(dictionary(run.config.get(what)).get(net)) if found is None else found


# ---- the report ------------------------------------------------------------------------------------


def report(groups: Sequence[Group], by: Iterable[str] = ()) -> dict:
    """Everything the tables show, as plain values: groups with their runs and notes, score rows, the checklist."""
    return {
        "groups": [about_group(group) for group in groups],
        "scores": score_rows(groups),
        "checklist": checklist(groups, flags(by)),
    }


def about_group(group: Group) -> dict:
    """A group's settings, runs with their costs, and notes."""
    config = group.first.config
    runs = []
    for run in group.runs:
        row = {"run": str(run.path), "seed": run.seed, "state": run.state, "seconds": seconds(run)}
        row |= {f"{what} of {net}": size(run, what, net) for what in ("params", "macs") for net in "GD"}
        runs.append(row | {"peak_mem": number(run.result.get("peak_mem")), "command": run.config.get("command")})
    keys = ("script", "method", "preset", "dataset", "data_digest", "device", "git", "versions")
    about = {"name": group.name, "random": group.random, "baseline": group.baseline and group.baseline.name}
    return about | {k: config.get(k) for k in keys} | {"runs": runs, "notes": notes(group)}


def environment(run: Run) -> dict:
    """What may change scores or seconds besides flags and images."""
    git, versions = dictionary(run.config.get("git")), dictionary(run.config.get("versions"))
    about = {"commit": git.get("sha"), "uncommitted changes": git.get("dirty"), "torch": versions.get("torch")}
    return about | {"device": run.config.get("device"), "processes": run.config.get("world_size")}


def notes(group: Group) -> list[str]:
    """What a reader of a group's numbers must know."""
    found = []
    for run in group.runs:
        if not run.result:
            found.append(f"seed {run.seed}: no result ({run.state})")
        elif not scores(run):
            found.append(f"seed {run.seed}: no final scores (--phase {run.args.get('phase')})")
        for kind, values in scores(run).items():
            lost = [score_name(k, kind.net) for k, v in values.items() if v is None]
            found += [f"seed {run.seed}: {', '.join(lost)} of the {kind.weights} weights not finite"] if lost else []
        if warnings := [row["warning"] for row in run.search if row.get("warning")]:
            found.append(f"seed {run.seed}: {len(warnings)} of {len(run.search)} search rows warn: {warnings[-1]}")
        if differs := difference(environment(group.first), environment(run)):
            found.append(f"seeds {group.first.seed} and {run.seed} differ in {told(differs)}")
        if differs := difference(settings(group.first), settings(run)):
            found.append(f"seeds {group.first.seed} and {run.seed} differ in {told(differs)}, as allowed")
    if group.baseline:
        differs = difference(settings(group.first), settings(group.baseline.first))
        differs |= difference(environment(group.first), environment(group.baseline.first))
        found += [f"{group.baseline.name} differs in {told(differs)}"] if differs else []
    return found


def score_rows(groups: Sequence[Group]) -> list[dict]:
    """One row for each kind, score and group that has it: values by seed, their summary, and the comparison with the
    group's baseline. Values: None if not finite; state tells of seeds that have no value."""
    rows = []
    of = {run.path: scores(run) for group in groups for run in group.runs}
    kinds = list(dict.fromkeys(kind for found in of.values() for kind in found))
    for kind in kinds:
        for key in dict.fromkeys(key for found in of.values() for key in found.get(kind, ())):
            for group in groups:
                having = [run for run in group.runs if key in of[run.path].get(kind, ())]
                if not having:
                    continue
                values = [of[run.path][kind][key] if run in having else None for run in group.runs]
                row: dict[str, Any] = {"kind": kind._asdict(), "score": key, "better": better(key)}
                row |= {"label": score_name(key, kind.net)}
                row |= {"group": group.name, "seeds": [run.seed for run in group.runs], "values": values}
                row |= {"state": [state_of(run, run in having) for run in group.runs], **summary(values)}
                base = group.baseline
                other = [of[run.path].get(kind, {}) for run in base.runs] if base else []
                row["against"] = None
                if base and any(key in x for x in other):
                    row["against"] = {"baseline": base.name, **compared(values, [x.get(key) for x in other], key)}
                rows.append(row)
    return rows


def state_of(run: Run, scored: bool) -> str:
    """Why a score is missing."""
    return "not finite" if scored else "not scored" if run.result else "no result"


# ---- the checklist of Lindauer and Hutter, JMLR 21 (243), 2020: best practices for NAS --------------


def checklist(groups: Sequence[Group], by: Sequence[str] = ()) -> list[dict]:
    """The 14 points: what is asked, the answer (shown, not shown, the author must answer), where it stands, what it
    says. The answers hold for the runs at hand."""
    runs = [run for group in groups for run in group.runs]
    commits = sorted({str(dictionary(run.config.get("git")).get("sha"))[:10] for run in runs})
    dirty = [run.name for run in runs if dictionary(run.config.get("git")).get("dirty")]
    source = all((run.path / "source").is_dir() for run in runs)
    commit = f"commit {', '.join(commits)}" + (", changed" if dirty else "")
    code = ("source/; config.json: git", f"{commit}; as it ran, to be published with the results")
    pairs = [(g, g.baseline) for g in groups if g.baseline]
    images, scripts = {run.images for run in runs}, {run.script for run in runs}
    evaluators = {kind[1:4] for run in runs for kind in scores(run)}
    looks = [sum(row.get("eval/fid") is not None and "t" in row for row in run.rows) for run in runs]
    differs: dict[str, tuple] = {}
    for run in runs:
        differs |= difference(environment(runs[0]), environment(run))
    fewest = min(len(group.runs) for group in groups)
    seeds = "; ".join(f"{g.name}: {', '.join(str(run.seed) for run in g.runs)}" for g in groups)
    whole = [seconds(run)["sum"] for run in runs]
    ended = [s for s in whole if s is not None]
    hours = f"{sum(ended) / 3600:.2f} hours in all" + ("" if len(ended) == len(runs) else ", unfinished runs left out")
    searched = all(seconds(run)["search"] is not None or run.random for run in runs)
    asked: list[tuple[str, bool | None, str, str]] = [
        ("Is the code that trains the final networks there for others?", source, *code),
        ("Is the code of the search there for others?", source, *code),
        ("Is it published now, in whatever state, rather than once it is tidy?", None, "", ""),
        (
            "Are methods compared on one benchmark: the same images, search space and training code?",
            len(images) == len(commits) == len(scripts) == 1,
            "config.json: data_digest, script, git",
            f"{len(images)} data set(s), {len(commits)} commit(s), {len(scripts)} script(s)",
        ),
        ("Is the part of each ingredient known (ablations)?", True if by else None, "config.json: args", ", ".join(by)),
        (
            "Are all methods scored by the same protocol?",
            len(evaluators) == 1,
            "result.json: net, n, ref; metrics.jsonl: eval/ema, eval/bn",
            "; ".join(f"{net}, {n} images, reference {ref}" for net, n, ref in sorted(evaluators, key=str)),
        ),
        (
            "Is quality shown over time, not at the end only?",
            min(looks) > 1,
            "metrics.jsonl: eval/fid over t",
            f"{min(looks)} or more evaluations a run; --pictures draws them",
        ),
        (
            "Is the search compared with random search?",
            any(base.random for _, base in pairs if base) or (None if pairs else False),
            "config.json: args",
            ", ".join(f"{g.name} against {base.name}" for g, base in pairs if base),
        ),
        ("Is every experiment run several times, from stated seeds?", fewest > 1, "config.json: seed", seeds),
        ("Are tabular or surrogate benchmarks used where there are any?", None, "", ""),
        (
            "Are confounders held fixed: hardware, versions, code?",
            not differs,
            "config.json: device, versions, git, world_size",
            told(differs) or ", ".join(f"{k} {v}" for k, v in environment(runs[0]).items()),
        ),
        ("Is it told how hyperparameters were tuned, and at what cost?", None, "", ""),
        (
            "Is the time of the whole method told, not of the search only?",
            len(ended) == len(runs) and searched,
            "result.json: seconds",
            hours + ("" if searched else "; some runs train what another run has searched"),
        ),
        (
            "Is every detail of the setup told?",
            all(run.args and run.config.get("command") for run in runs),
            "config.json: args, command, versions, device",
            "every flag with its value, and the command that repeats the run",
        ),
    ]
    answers = {True: "shown", False: "not shown", None: AUTHOR}
    return [
        {"point": i, "question": question, "answer": answers[answer], "where": where, "says": says}
        for i, (question, answer, where, says) in enumerate(asked, 1)
    ]


# ---- tables ----------------------------------------------------------------------------------------


class Table(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]  # **bold** is marked as in Markdown


def digits_for(values: Iterable[float | None]) -> int:
    """Decimals that show three significant figures of the largest value, at least two."""
    largest = max((abs(v) for v in values if v), default=1.0)
    return max(2, min(8, 2 - math.floor(math.log10(largest))))


def seed_cell(row: dict | None, i: int, digits: int) -> str:
    """The i-th seed's value, or why there is none."""
    if row is None:
        return "not scored"
    return row["state"][i] if row["values"][i] is None else f"{row['values'][i]:.{digits}f}"


def mean_cell(row: dict, digits: int = 2) -> str:
    """1.37 ± 0.44, with the number of values where some are missing. row: of `score_rows`."""
    if row["mean"] is None:
        return "none finite"
    of = len(row["values"])
    return spread(row["mean"], row["sd"], digits) + ("" if row["n"] == of else f" ({row['n']} of {of})")


def spread(mean: float, sd: float | None, digits: int = 2) -> str:
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def own_interval_cell(row: dict | None, digits: int) -> str:
    """The interval of the mean."""
    if row is None or row["interval"] is None:
        return ""
    return "{:.{d}f} to {:.{d}f}".format(*row["interval"], d=digits)


def improvement_cell(c: dict | None) -> str:
    return "" if c is None or c["improvement"] is None else f"{100 * c['improvement']:+.0f} %"


def interval_cell(c: dict | None, digits: int = 2) -> str:
    """-1.26 to +2.81, inconclusive. c: of `comparison` or `compared`."""
    if c is None:
        return "not scored"
    words = [] if c["interval"] is None else ["{:+.{d}f} to {:+.{d}f}".format(*c["interval"], d=digits)]
    why = c.get("why", "" if c["decided"] else "inconclusive")
    return ", ".join([*words, *([why] if why else [])])


def tables(found: dict) -> list[Table]:
    """The tables of a report: groups; for each kind of scores, a summary and every seed; costs, notes, checklist."""
    groups, made = found["groups"], []
    rows = []
    for g in groups:
        git, torch = dictionary(g["git"]), dictionary(g["versions"]).get("torch")
        commit = str(git.get("sha"))[:10] + (", changed" if git.get("dirty") else "")
        told = [g["dataset"], g["preset"], str(len(g["runs"])), g["baseline"] or "", commit, torch, g["device"]]
        rows.append([g["name"], *map(str, told)])
    made.append(Table("Runs", ["runs", "images", "preset", "seeds", "against", "commit", "torch", "device"], rows))
    of_kind: dict[Kind, list[dict]] = {}
    for row in found["scores"]:
        of_kind.setdefault(Kind(**row["kind"]), []).append(row)
    made += [summary_table(kind, rows, groups) for kind, rows in of_kind.items()]
    made += [score_table(kind, rows) for kind, rows in of_kind.items()]
    made.append(cost_table(groups))
    if told_notes := [[g["name"], note] for g in groups for note in g["notes"]]:
        made.append(Table("Notes", ["runs", "note"], told_notes))
    points = [[str(p["point"]), p["question"], p["answer"], p["where"], p["says"]] for p in found["checklist"]]
    made.append(
        Table("Checklist (Lindauer and Hutter, JMLR 2020)", ["", "question", "answer", "where", "what"], points)
    )
    return made


def columns_of(rows: list[dict]) -> dict[str, tuple[str, int]]:
    """Head and decimals of each score's column."""
    arrow = {"higher": " ↑", "lower": " ↓", None: ""}
    heads = {row["score"]: row["label"] + arrow[row["better"]] for row in rows}
    return {key: (h, digits_for(v for r in rows if r["score"] == key for v in r["values"])) for key, h in heads.items()}


def summary_table(kind: Kind, rows: list[dict], groups: list[dict]) -> Table:
    """A row for each group: means, standard deviations, improvement over its baseline, and mean costs."""
    columns, lines = columns_of(rows), []
    for g in groups:
        if not (mine := {row["score"]: row for row in rows if row["group"] == g["name"]}):
            continue
        cells = [mean_cell(mine[key], d) if key in mine else "not scored" for key, (_, d) in columns.items()]
        better = [(row["label"], row["against"]) for row in mine.values() if row["against"]]
        words = [f"{label} {', '.join(x for x in (improvement_cell(c), c['why']) if x)}" for label, c in better]
        costs = [summary([run[key] for run in g["runs"]])["mean"] for key in ("params of G", "macs of G")]
        hours = summary([run["seconds"]["sum"] for run in g["runs"]])["mean"]
        hours_cell = "not in the run" if hours is None else f"{hours / 3600:.3g}"
        lines.append([g["name"], str(len(g["runs"])), *cells, "; ".join(words), *map(_whole, costs), hours_cell])
    heads = [head for head, _ in columns.values()]
    head = ["runs", "seeds", *heads, "improvement over the baseline", "parameters of G", "MACs of G", "hours"]
    return Table(f"Summary: {kind}", head, lines)


def score_table(kind: Kind, rows: list[dict]) -> Table:
    """Each seed's scores of one kind, mean and standard deviation, and the comparison; scores: columns."""
    columns, lines = columns_of(rows), []
    for group in dict.fromkeys(row["group"] for row in rows):
        by_score = {row["score"]: row for row in rows if row["group"] == group}
        mine = [(by_score.get(key), d) for key, (_, d) in columns.items()]
        (seeds, *_), bases = ([row[k] for row in by_score.values() if row[k]] for k in ("seeds", "against"))
        lines += [[f"{group}, {seed}", *(seed_cell(row, i, d) for row, d in mine)] for i, seed in enumerate(seeds)]
        lines.append([f"**{group}**", *("not scored" if row is None else mean_cell(row, d) for row, d in mine)])
        if any(row and row["interval"] for row, _ in mine):
            lines.append(["**95 % interval of the mean**", *(own_interval_cell(row, d) for row, d in mine)])
        if bases:
            against = [(row and row["against"], d) for row, d in mine]
            lines.append([f"**improvement over {bases[0]['baseline']}**", *(improvement_cell(c) for c, _ in against)])
            lines.append(["**95 % interval of the difference**", *(interval_cell(c, d) for c, d in against)])
    return Table(f"Every seed: {kind}", ["runs, seed", *(head for head, _ in columns.values())], lines)


def cost_table(groups: list[dict]) -> Table:
    """Sizes of G and seconds of each run, and their means."""
    parts = ["search", "validation", "training", "preparation", "sum"]
    head = ["runs, seed", "parameters of G", "MACs of G", *(f"seconds: {part}" for part in parts), "peak memory, MB"]
    lines = []
    for g in groups:
        costs = []
        for run in g["runs"]:
            memory = None if run["peak_mem"] is None else run["peak_mem"] / 1e6
            costs.append([run["params of G"], run["macs of G"], *(run["seconds"][part] for part in parts), memory])
            lines.append([f"{g['name']}, {run['seed']}", *map(_whole, costs[-1])])
        means = [summary(column)["mean"] for column in zip(*costs, strict=True)]
        lines.append([f"**{g['name']}, mean**", *map(_whole, means)])
    return Table("Costs", head, lines)


def _whole(value: float | None) -> str:
    return (
        "not in the run"
        if value is None
        else f"{value:,.0f}"
        if value >= 10 or value == round(value)
        else f"{value:.1f}"
    )


# ---- formats ---------------------------------------------------------------------------------------


def one_line(text: object) -> str:
    return "".join(c if c.isprintable() else " " for c in str(text))


def markdown_lines(table: Table) -> list[str]:
    lines = [[one_line(cell).replace("|", "\\|") for cell in row] for row in (table.head, *table.rows)]
    head, *rows = ["| " + " | ".join(row) + " |" for row in lines]
    return [head, "|---" * len(table.head) + "|", *rows]


def markdown(found: dict) -> str:
    return "\n\n".join(f"### {t.title}\n\n" + "\n".join(markdown_lines(t)) for t in tables(found)) + "\n"


def latex(found: dict) -> str:
    """One tabular for each table; needs \\usepackage{booktabs}."""
    blocks = ["% needs \\usepackage{booktabs}"]
    for t in tables(found):
        head, *rows = [" & ".join(map(tex, row)) + " \\\\" for row in (t.head, *t.rows)]
        widest = [max(map(len, column)) for column in zip(t.head, *t.rows, strict=True)]
        columns = "".join("l" if n <= 40 else "p{0.25\\linewidth}" for n in widest)
        lines = [f"% {one_line(t.title)}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule", head, "\\midrule"]
        blocks.append("\n".join([*lines, *rows, "\\bottomrule", "\\end{tabular}"]))
    return "\n\n".join(blocks) + "\n"


def tex(text: object) -> str:
    """Escaped for LaTeX; **bold** as \\textbf{bold}."""
    text = one_line(text)
    bold = text.startswith("**") and text.endswith("**") and len(text) > 4
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: "\\" + c for c in "_%&#${}"}
    special |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
    special |= {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "∞": r"$\infty$"}
    escaped = "".join(special.get(c, c) for c in (text[2:-2] if bold else text)).replace("--", "-{}-")
    return f"\\textbf{{{escaped}}}" if bold else escaped


def comma_separated(found: dict) -> str:
    """Every number as a row of its own: group, seed (of a single run's numbers), kind of score, name, statistic."""
    kind_of_none = dict.fromkeys(Kind._fields, "")
    rows: list[list] = [["runs", "seed", *Kind._fields, "name", "statistic", "value"]]
    for row in found["scores"]:

        def add(statistic: str, value: Any, seed: Any = "", row: dict = row) -> None:
            rows.append([row["group"], seed, *row["kind"].values(), row["score"], statistic, value])

        for seed, value, state in zip(row["seeds"], row["values"], row["state"], strict=True):
            add("value" if value is not None else state, value, seed)
        for statistic in ("n", "mean", "sd"):
            add(statistic, row[statistic])
        for end, value in zip(("low", "high"), row["interval"] or (), strict=False):
            add(f"interval of the mean, {end}", value)
        if c := row["against"]:
            add("improvement", c["improvement"])
            for end, value in zip(("low", "high"), c["interval"] or (), strict=False):
                add(f"interval of the difference, {end}", value)
            add("decided", c["decided"])
    for g in found["groups"]:
        for run in g["runs"]:
            costs = {f"seconds of {k}": v for k, v in run["seconds"].items()} | {"peak_mem": run["peak_mem"]}
            costs |= {k: v for k, v in run.items() if k.startswith(("params", "macs"))}
            for name, value in costs.items():
                rows.append([g["name"], run["seed"], *kind_of_none.values(), name, "value", value])
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([one_line("" if x is None else x) for x in row] for row in rows)
    return out.getvalue()


def as_json(found: dict) -> str:
    return json.dumps(finite(found), indent=1) + "\n"


FORMATS: dict[str, Callable[[dict], str]] = {
    "markdown": markdown, "latex": latex, "csv": comma_separated, "json": as_json
}  # fmt: skip


# ---- curves ----------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """A score over a group's seeds."""

    group: str
    seeds: list[list[tuple[float, float, float | None]]]  # (step, seconds, score; None: not finite) of each seed
    band: list[tuple[float, float, float, float | None]]  # (step, mean seconds, mean, sd) where all seeds have a score


def curves(groups: Sequence[Group]) -> dict[tuple[str, Kind, str], list[Curve]]:
    """By phase (search, eval), kind and score: each group's curve. Other kinds of scores are other curves."""
    found: dict[tuple[str, Kind, str], list[Curve]] = {}
    for group in groups:
        seeds = [points(run) for run in group.runs]
        for what in dict.fromkeys(what for seed in seeds for what in seed):
            lines = [seed.get(what, []) for seed in seeds]
            found.setdefault(what, []).append(Curve(group.name, lines, band(lines)))
    return found


def points(run: Run) -> dict[tuple[str, Kind, str], list[tuple[float, float, float | None]]]:
    """The scores in metrics.jsonl by phase, kind and name: (step, seconds, score). Uniform noise's are left out."""
    found: dict[tuple[str, Kind, str], list[tuple[float, float, float | None]]] = {}
    for row in run.rows:
        step, t = number(row.get("step")), number(row.get("t"))
        if "eval/net" not in row or step is None or t is None:
            continue
        kind = Kind("", *(plain(row.get(f"eval/{k}")) for k in Kind._fields[1:]))
        for key, value in row.items():
            name = key.removeprefix("eval/")
            if key.startswith("eval/") and name not in Kind._fields and is_score(name, value):
                found.setdefault((str(row.get("phase")), kind, name), []).append((step, t, number(value)))
    return found


def band(
    seeds: Sequence[Sequence[tuple[float, float, float | None]]],
) -> list[tuple[float, float, float, float | None]]:
    """(step, mean seconds, mean, sd) at the steps where every seed has a finite score: no mean of the survivors."""
    of = [{step: (t, value) for step, t, value in seed if value is not None} for seed in seeds]
    lines = []
    for step in sorted(set.intersection(*map(set, of)) if of else ()):
        s = summary([seed[step][1] for seed in of])
        lines.append((step, statistics.mean(seed[step][0] for seed in of), s["mean"], s["sd"]))
    return lines


# ---- pictures --------------------------------------------------------------------------------------

# Edges of a cell of G that is a list of so many operations, if search.jsonl does not name them. Discriminators have no
# entry: with the same number of edges, they come in different orders.
G_EDGES = {7: ("0->1", "0->2", "1->3", "2->3", "1->4", "2->4", "3->4")}
STRIP_STEPS, STRIP_ROWS = 12, 4  # of a strip of samples
Cell = tuple[str, list[tuple[str, str, str]]]  # title, (from, to, operation)


def pictures(groups: Sequence[Group], folder: Path) -> list[Path]:
    """Write the cells of each run's genotype (SVG), its samples over time (PNG), and each score over steps and over
    time with a band of one standard deviation over the seeds (SVG and PDF). Returns the files.
    UserError: matplotlib is missing, found after everything that does not need it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--pictures {folder}: {e.strerror}; use another folder") from None
    made: list[Path] = []

    def new(name: str, suffix: str) -> Path:
        while (path := folder / f"{name}.{suffix}") in made:  # of runs or kinds of scores that are not the same
            name += "-2"
        made.append(path)
        return path

    for run in (run for group in groups for run in group.runs):
        if found := cells(run):
            new(f"cells-{run.name}", "svg").write_text(cells_svg(found), "utf-8")
        if grids := sample_files(run):
            strip(grids).save(new(f"samples-{run.name}", "png"))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--pictures: no curves without matplotlib; pip install matplotlib") from None
    for (phase, kind, key), lines in curves(groups).items():
        name = "-".join(re.sub(r"\W+", "_", str(x)) for x in (phase, key, kind.net, kind.n))
        figure = Figure(figsize=(10, 4), layout="constrained")
        figure.suptitle(f"{phase}: {str(kind).partition(', ')[2]}", fontsize="medium")
        steps, compute = figure.subplots(1, 2, sharey=True)
        for i, line in enumerate(lines):
            draw(steps, line, [[p[0] for p in seed] for seed in line.seeds], [p[0] for p in line.band], f"C{i}")
            hours = [[p[1] / 3600 for p in seed] for seed in line.seeds]
            draw(compute, line, hours, [p[1] / 3600 for p in line.band], f"C{i}")
        steps.set(xlabel="G updates", ylabel=score_name(key, kind.net))
        compute.set(xlabel="hours since the run began, search included")
        steps.legend(fontsize="small")
        for suffix in ("svg", "pdf"):
            figure.savefig(new(name, suffix))
    return made


def draw(axes: Any, curve: Curve, x: list[list[float]], band_x: list[float], color: str) -> None:
    """Each seed as a thin line with gaps where a score is not finite; mean and standard deviation over the seeds."""
    for at, seed in zip(x, curve.seeds, strict=True):
        axes.plot(at, [math.nan if y is None else y for *_, y in seed], color=color, linewidth=0.6, alpha=0.5)
    means, sds = [p[2] for p in curve.band], [p[3] or 0.0 for p in curve.band]
    low, high = ([m + sign * sd for m, sd in zip(means, sds, strict=True)] for sign in (-1, 1))
    axes.fill_between(band_x, low, high, color=color, alpha=0.2, linewidth=0)
    of = f"mean ± sd of {len(curve.seeds)}" if curve.band else f"no step with a score of all {len(curve.seeds)}"
    axes.plot(band_x, means, color=color, marker=".", label=f"{curve.group}: {of}")


def sample_files(run: Run) -> list[Path]:
    """samples/<step>.png in order of their steps."""
    return sorted((p for p in (run.path / "samples").glob("*.png") if p.stem.isdigit()), key=lambda p: int(p.stem))


def strip(grids: Sequence[Path]) -> Any:
    """The first latents of sample grids, a row each, over the steps, a column each: a PIL image.
    UserError: a file is no grid of 8 images per row."""
    from PIL import Image, ImageDraw

    steps = sorted({round(i * (len(grids) - 1) / max(1, STRIP_STEPS - 1)) for i in range(STRIP_STEPS)})
    columns = []
    for path in (grids[i] for i in steps):
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except OSError:
            raise UserError(f"{path}: no image; delete it") from None
        side = (image.width - 2) // 8 - 2  # 8 images per row, 2 px around each
        if side < 1 or image.height < 2 + STRIP_ROWS * (side + 2):
            raise UserError(f"{path}: {image.width} x {image.height} px is no grid of samples; delete it")
        columns.append((path.stem, side, image))
    wide = max(64, max(side for _, side, _ in columns))
    made = Image.new("RGB", (len(columns) * (wide + 2) + 2, STRIP_ROWS * (wide + 2) + 16), "white")
    for i, (step, side, image) in enumerate(columns):
        ImageDraw.Draw(made).text((2 + i * (wide + 2), 2), str(int(step)), fill="black")
        for row in range(STRIP_ROWS):
            tile = image.crop((2, 2 + row * (side + 2), 2 + side, 2 + row * (side + 2) + side))
            made.paste(tile.resize((wide, wide), Image.Resampling.NEAREST), (2 + i * (wide + 2), 16 + row * (wide + 2)))
    return made


def cells(run: Run) -> list[Cell]:
    """The cells of genotype.json whose edges are known, with the operation on each edge."""
    genotype, found = run.genotype, list[Cell]()
    if nodes := dictionary(genotype.get("nodes")):  # {node: [[from, operation], ...]}
        pairs = [(node, x) for node, inputs in nodes.items() for x in listed(inputs)]
        return [("G", [(str(x[0]), node, str(x[1])) for node, x in pairs if isinstance(x, list) and len(x) == 2])]
    if parts := listed(genotype.get("cells")):  # a chain of cells, with skips from earlier ones
        links = []
        for i, part in enumerate(map(dictionary, parts), 1):
            own = [str(part.get(k)) for k in ("conv", "norm", "up")] + (["shortcut"] if part.get("shortcut") else [])
            links.append(("z" if i == 1 else f"cell {i - 1}", f"cell {i}", " ".join(own)))
            links += [(f"cell {k}", f"cell {i}", "skip") for k in listed(part.get("skips"))]
        return [("G", links)]
    rows = [dictionary(row["probabilities"]) for row in run.search if "probabilities" in row]
    for net in "GD":
        names = [edge.partition("/") for edge in dictionary(rows[0].get(net) if rows else None)]  # "1/0->2": of cell 1
        for i, ops in enumerate(listed(genotype.get(net)), 1):
            ops = listed(ops)
            edges = tuple(edge for cell, _, edge in names if cell == str(i)) or (
                G_EDGES.get(len(ops)) if net == "G" else None
            )
            if edges and len(edges) == len(ops):
                links = [(*edge.partition("->")[::2], str(op)) for edge, op in zip(edges, ops, strict=True)]
                found.append((f"{net}, cell {i}", links))
    return found


def cells_svg(found: Sequence[Cell]) -> str:
    """Cells below each other: nodes by their depth, edges from left to right; edges that pass a node bend around it."""
    wide, tall, blocks, top, right = 170, 46, list[str](), 0, 0
    for title, links in found:
        depth: dict[str, int] = {}
        for _ in links:  # the longest path to each node
            for a, b, _op in links:
                depth[b] = min(max(depth.get(b, 0), depth.setdefault(a, 0) + 1), len(links))
        columns = [[node for node, d in depth.items() if d == i] for i in range(max(depth.values(), default=0) + 1)]
        high = max(2, *map(len, columns)) * tall + 3 * tall
        at = {
            node: (40 + wide * i, top + high / 2 + (k - (len(column) - 1) / 2) * 2 * tall)
            for i, column in enumerate(columns) for k, node in enumerate(column)
        }  # fmt: skip
        parts = [f'<text x="8" y="{top + 16}" font-weight="bold">{escaped(title)}</text>']
        for k, (a, b, op) in enumerate(links):
            (x, y), (u, v) = at[a], at[b]
            twins = sum((a, b) == link[:2] for link in links[:k])  # earlier edges between the same nodes
            mid, height = (x + u) / 2, (y + v) / 2
            side = -1 if height < top + high / 2 or (height == top + high / 2 and k % 2) else 1  # away from the middle
            bend = side * (depth[b] - depth[a] - 1) * tall * 0.9 + twins * tall
            height += bend
            look = 'stroke="#bbb" stroke-dasharray="3 3"' if op == "none" else 'stroke="#444"'
            parts.append(
                f'<path d="M{x:.0f} {y:.0f}Q{mid:.0f} {height + bend:.0f} {u:.0f} {v:.0f}" fill="none" {look}/>'
            )
            parts.append(f'<text x="{mid:.0f}" y="{height + 4:.0f}" class="op">{escaped(op)}</text>')
        for node, (x, y) in at.items():
            parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="15" fill="#fff" stroke="#000"/>')
            parts.append(
                f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{escaped(node.removeprefix("cell "))}</text>'
            )
        blocks += parts
        top, right = top + round(high), max(right, 80 + wide * (len(columns) - 1))
    style = ".op{text-anchor:middle;font-size:10px;paint-order:stroke;stroke:#fff;stroke-width:4px}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {top}" width="{right}" height="{top}"'
    return f'{head} font-family="sans-serif" font-size="12"><style>{style}</style>' + "\n".join(blocks) + "</svg>\n"


def escaped(text: str) -> str:
    return html.escape(one_line(text))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Exit code 2: bad input, one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m common.report", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, as in runs/*")
    parser.add_argument("--baseline", nargs="+", type=Path, default=[], metavar="RUN", help="runs to compare with")
    parser.add_argument("--by", nargs="+", default=[], metavar="FLAG", help="one group for each value of these flags")
    parser.add_argument("--may-differ", nargs="+", default=[], metavar="FLAG", help="flags that may differ in a group")
    parser.add_argument("--format", choices=FORMATS, default="markdown")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also draw curves, cells and samples there")
    show_anything()
    asked = parser.parse_args(argv)
    try:
        baseline = [read(path) for path in dict.fromkeys(asked.baseline)]
        runs = [read(path) for path in dict.fromkeys(asked.runs) if path not in asked.baseline]
        groups = grouped(runs, baseline, asked.by, asked.may_differ)
        print(FORMATS[asked.format](report(groups, asked.by)), end="", flush=True)
        if asked.pictures:
            print(f"{asked.pictures}: {len(pictures(groups, asked.pictures))} pictures", file=sys.stderr)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
