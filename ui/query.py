"""Filters such as `cifar10 fid<15 state=running`, and sorting of runs."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from ui.files import clean, number
from ui.runs import STATES, Run

TERM = re.compile(r"(-?)([\w/().-]+)(<=|>=|!=|[<>=:])(.+)")
NUMBERS: dict[str, Callable[[Run], float | None]] = {
    **{"step": lambda r: r.step, "seed": lambda r: r.seed, "eta": lambda r: r.eta, "rate": lambda r: r.rate},
}
WORDS: dict[str, Callable[[Run], list[str]]] = {
    **{"state": lambda r: [r.state], "method": lambda r: [r.method], "dataset": lambda r: [r.dataset]},
    **{"phase": lambda r: [r.phase], "preset": lambda r: [clean(r.config.get("preset"))], "tag": lambda r: r.labels},
    **{"name": lambda r: [r.name], "script": lambda r: [r.script], "pinned": lambda r: ["yes" if r.pinned else "no"]},
}


def query(text: str) -> Callable[[Run], bool]:
    """Compile a filter such as `cifar10 fid<15 state=running tag:paper -seed=3 g_lr>1e-4 /regex/`. All terms must match.

    fid and is are by the Inception network; name others explicitly: `fid(compact)<2`. ValueError: an invalid term.
    """
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
    get_number = NUMBERS.get(key.lower())
    if is_score:
        label = is_score[1].upper() + (is_score[2] or "")
        get_number = lambda run: run.score(label)  # noqa: E731
    if get_number is None:
        return lambda run: no != _argument(run.args.get(key.replace("-", "_")), op, value)
    try:
        limit = float(value)
    except ValueError:
        raise ValueError(f"{word}: {value} is not a number") from None
    return lambda run: no != _compare(get_number(run), op, limit)


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
