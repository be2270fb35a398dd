"""Logs that other programs wrote: a JSONL or CSV file with a column of steps makes its folder a run that is only read."""

import csv
import io
import json
import os
from pathlib import Path

from ui.files import number, opened, parse_lines

STEPS = ("step", "global_step", "_step", "iteration", "iter", "it", "epoch")
OWN = ("config.json", "status.json", "metrics.jsonl", "exit", "source", "checkpoint.pt")  # files of this project's runs


class ForeignLog:
    """A log file. Rows are made to look like those of metrics.jsonl: "step", and numbers under the names they have."""

    def __init__(self, path: Path, step: str, head: list[str] | None) -> None:
        self.path, self.step, self.head = path, step, head

    def rows(self, lines: list[bytes]) -> tuple[list[dict], int]:
        """(rows, number of lines that cannot be read)."""
        if self.head is None:
            found, bad = parse_lines(lines)
        else:
            cells = list(csv.reader(io.StringIO(b"\n".join(lines).decode("utf-8", "replace"))))
            if cells and cells[0] == self.head:
                cells = cells[1:]
            found = [dict(zip(self.head, map(_value, line), strict=False)) for line in cells]
            bad = 0
        return [{"step": row.pop(self.step, None), **row} for row in found], bad


def _value(text: str) -> float | None:
    try:
        return number(float(text))
    except ValueError:
        return None


def find(folder: Path) -> ForeignLog | None:
    """The first log in a folder, by name; None: there is none, or the folder is a run of this project."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries)
    except OSError:
        return None
    if any(name in OWN for name in names):
        return None
    logs = (log_of(folder / name) for name in names if name.endswith((".jsonl", ".ndjson", ".csv")))
    return next((log for log in logs if log), None)


def log_of(path: Path) -> ForeignLog | None:
    """The file as a log, if its first line says that it has steps."""
    try:
        with opened(path) as fd:
            first = os.pread(fd, 1 << 16, 0).partition(b"\n")[0].decode("utf-8")
        head = next(csv.reader([first])) if path.suffix == ".csv" else None
        keys = head if head is not None else list(json.loads(first))
    except (OSError, ValueError, TypeError, StopIteration, csv.Error, RecursionError):
        return None
    step = next((key for name in STEPS for key in keys if str(key).lower().rpartition("/")[2] == name), None)
    return ForeignLog(path, step, head) if step else None
