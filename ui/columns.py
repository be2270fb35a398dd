"""The run list: its columns, what each says of a run and sorts by; filters such as `cifar10 fid<15 state=running`; sorting."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from ui.draw import duration, human, score, size
from ui.files import clean, get, number
from ui.runs import STATES, Run, fid_label

Cell = tuple[str, Any]  # text, value; None: the run has none, and comes last


def counted(value: float | None) -> Cell:
    return human(value) if value is not None else "—", value


def said(text: str) -> Cell:
    return text, text or None


def left(run: Run) -> Cell:
    """Time left, or how the run stands."""
    if run.state in ("running", "stopping"):
        text = duration(run.eta) if run.eta is not None else run.state if run.state == "stopping" else "—"
    elif run.state == "failed":
        text = "OOM?" if "memory" in run.why + run.error.lower() else run.why or "failed"
    else:
        text = run.state
    return text, run.eta


def best(run: Run) -> Cell:
    """The lowest FID among the evaluations of the kind of the last one, and the name of the score unless it is FID."""
    found = run.best()
    label = fid_label(found.get("net"))
    return (score(found["fid"]) + ("" if label == "FID" else label.removeprefix("FID")), found["fid"]) if found else ("—", None)


def cost(run: Run, what: str) -> Cell:
    found = number(get(run.genotype, what, "G"))
    return counted(number(get(run.config, what, "G")) if found is None else found)


def started(run: Run) -> Cell:
    when = clean(run.config.get("created"), 16)
    return when[5:].replace("T", " ") or "—", when or None


COLUMNS: dict[str, Callable[[Run], Cell]] = {
    "method": lambda r: said(r.method),
    "dataset": lambda r: said(r.dataset),
    "phase": lambda r: said(r.phase),
    "step": lambda r: (human(r.step) + (f"/{human(r.total)}" if r.total else ""), r.step),
    "best FID": best,
    "images": lambda r: counted(number(r.last.get("n"))),
    "ETA": left,
    "started": started,
    "duration": lambda r: (duration(r.spent), r.spent),
    "memory": lambda r: (size(r.memory), r.memory),
    "steps/s": lambda r: (human(r.rate) if r.rate else "—", r.rate),
    "params": lambda r: cost(r, "params"),
    "MACs": lambda r: cost(r, "macs"),
    "seed": lambda r: ("—" if r.seed is None else str(r.seed), r.seed),
    "tags": lambda r: said(" ".join(r.labels)),
}
FIRST = ("step", "FID", "ETA", "IS", "phase", "memory", "steps/s", "images", "seed", "method")  # what gets space first
ORDER = ("method", "phase", "step", "IS", "FID", "images", "ETA", "memory", "steps/s", "seed")


def cell(name: str, run: Run) -> Cell:
    """What a column says of a run; name: one of COLUMNS, a score such as FID(compact), or an argument such as g_lr."""
    if name in COLUMNS:
        return COLUMNS[name](run)
    if name.startswith(("FID", "IS")):
        found = run.score(name)
        return score(found), found
    value = run.args.get(name.replace("-", "_"))
    text = "—" if value is None else clean(value, 30)
    return text, None if value is None else (number(value) is None, number(value) if number(value) is not None else text)


def kind(name: str) -> str:
    """FID(compact) -> FID: the place of a score among the columns."""
    return name if name in COLUMNS else "FID" if name.startswith("FID") else "IS" if name.startswith("IS") else name


def chosen(text: str, labels: list[str], runs: list[Run]) -> list[str]:
    """The columns named in a text, separated by commas. ValueError: there is no such column."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = {name.lower(): name for name in (*COLUMNS, *labels, *(key for run in runs for key in run.args))}
    for name in names:
        if name.lower().replace("-", "_") not in known and name.lower() not in known:
            raise ValueError(f"{name}: no such column; use {', '.join([*COLUMNS, *labels])} or an argument such as g_lr")
    return [known.get(name.lower()) or known[name.lower().replace("-", "_")] for name in names]


def fitting(names: list[str], widths: dict[str, int], room: int) -> list[str]:
    """As many of these columns as there is room for, the most important ones first; in the order of display."""
    kept = []
    for name in sorted(names, key=lambda n: (FIRST.index(kind(n)), names.index(n))):
        if widths[name] + 1 <= room:
            kept.append(name)
            room -= widths[name] + 1
    return sorted(kept, key=lambda n: (ORDER.index(kind(n)), names.index(n)))


TERM = re.compile(r"(-?)([\w/().-]+)(<=|>=|!=|[<>=:])(.+)")
NUMBERS = ("step", "seed", "eta", "rate")
WORDS: dict[str, Callable[[Run], list[str]]] = {
    **{"state": lambda r: [r.state], "method": lambda r: [r.method], "dataset": lambda r: [r.dataset]},
    **{"phase": lambda r: [r.phase], "preset": lambda r: [clean(r.config.get("preset"))], "tag": lambda r: r.labels},
    **{"name": lambda r: [r.name], "script": lambda r: [r.script], "pinned": lambda r: ["yes" if r.pinned else "no"]},
}


def query(text: str) -> Callable[[Run], bool]:
    """Compile a filter, as explained in docs/tui.md. All terms must match. ValueError: an invalid term."""
    tests = [_term(word) for word in text.split()]
    return lambda run: all(test(run) for test in tests)


def _term(word: str) -> Callable[[Run], bool]:
    found = TERM.fullmatch(word)
    if len(word) > 2 and word[0] == word[-1] == "/":
        try:
            pattern = re.compile(word[1:-1], re.I)
        except re.error as e:
            raise ValueError(f"{word}: {e}") from None
        return lambda run: bool(pattern.search(run.name))
    if not found:
        no, part = word.startswith("-") and len(word) > 1, word.removeprefix("-").lower()
        return lambda run: no != (part in f"{run.name} {run.method} {run.dataset} {' '.join(run.labels)}".lower())
    no, key, op, value = found[1] == "-", found[2], found[3], found[4]
    if key.lower() in WORDS:
        if op not in (":", "=", "!="):
            raise ValueError(f"{word}: {key} is text; use =, != or :")
        words = WORDS[key.lower()]
        if key.lower() == "state" and value not in STATES:
            raise ValueError(f"unknown state {value}; use one of {', '.join(STATES)}")
        if op == ":":
            return lambda run: no != any(value.lower() in w.lower() for w in words(run))
        return lambda run: no != ((op == "=") == any(value.lower() == w.lower() for w in words(run)))
    is_score = re.fullmatch(r"(fid|is)([(-].*)?", key.lower())
    label = is_score[1].upper() + (is_score[2] or "") if is_score else ""
    if not is_score and key.lower() not in NUMBERS:
        return lambda run: no != _argument(run.args.get(key.replace("-", "_")), op, value)
    try:
        limit = float(value)
    except ValueError:
        raise ValueError(f"{word}: {value} is not a number") from None
    return lambda run: no != _compare(run.score(label) if label else getattr(run, key.lower()), op, limit)


def _argument(have: object, op: str, value: str) -> bool:
    if have is None:
        return False
    try:
        return _compare(number(have), op, float(value))
    except ValueError:
        text = clean(have).lower()
        return {"=": text == value.lower(), ":": value.lower() in text, "!=": text != value.lower()}.get(op, False)


def _compare(a: float | None, op: str, b: float) -> bool:
    if a is None:
        return False
    return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "!=": a != b}.get(op, a == b)


def ordered(runs: Iterable[Run], key: Callable[[Run], Any], reverse: bool = False) -> list[Run]:
    """Sort runs: pinned first, then by key; runs without a value come last in either order."""
    have, lack = [], []
    for run in runs:
        (lack if key(run) is None else have).append(run)
    have.sort(key=lambda r: r.name)
    have.sort(key=key, reverse=reverse)
    return sorted([*have, *sorted(lack, key=lambda r: r.name)], key=lambda r: not r.pinned)


def same_but_seed(run: Run) -> str:
    """A key that is equal for runs that differ only in the seed."""
    differs = {"seed", "resume", "auto_resume", "device", "runs_dir", "data_dir", "dry_run"}
    return json.dumps([run.script, {k: v for k, v in sorted(run.args.items()) if k not in differs}], default=str)
