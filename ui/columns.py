"""The columns of the run list: what each says of a run, and the value that it sorts by."""

from collections.abc import Callable
from typing import Any

from ui.draw import duration, fit, human, score, size
from ui.files import clean, get, number
from ui.runs import Run, fid_label

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


def step(run: Run) -> Cell:
    return f"{human(run.step)}/{human(run.total)}" if run.total else human(run.step), run.step


def best(run: Run) -> Cell:
    """The lowest FID among the evaluations of the kind of the last one, and the name of the score unless it is FID."""
    found = run.best()
    label = fid_label(found.get("net"))
    return (score(found["fid"]) + ("" if label == "FID" else label.removeprefix("FID")), found["fid"]) if found else ("—", None)


def spent(run: Run) -> Cell:
    """Seconds of work, before and after resuming."""
    seconds = run.result.get("seconds")
    parts = [s for v in seconds.values() if (s := number(v)) is not None] if isinstance(seconds, dict) else []
    total = sum(parts) if parts else run.columns.t[-1] if len(run.columns.t) else None
    return duration(total), total


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
    "step": step,
    "best FID": best,
    "images": lambda r: counted(number(r.last.get("n"))),
    "ETA": left,
    "started": started,
    "duration": spent,
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


def padded(text: str, width: int) -> str:
    return " " + fit(text, width, True)
