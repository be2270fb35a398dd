"""Reading search.jsonl: series for charts, EAGAN's rounds, edge probabilities; and what is computed from them."""

import math
import os
import time
from pathlib import Path
from statistics import median

from ui.files import Tail, clean, get, number, opened, parse


class Search:
    """search.jsonl: row offsets, series for charts, EAGAN's populations. Other row contents are read on demand."""

    def __init__(self, path: Path) -> None:
        self.path, self.tail = path, Tail(path, longest=1 << 20)
        self._reset()

    def _reset(self) -> None:
        self.rows: list[tuple[int, int]] = []  # offset, length
        self.steps: list[float] = []
        self.kind = ""  # evolution, probabilities, controller
        self.series: dict[str, tuple[list, list]] = {}
        self.rounds: list[dict] = []
        self.options: dict[str, list[str]] = {}  # AutoGAN: the options of each decision, in the order of a vector's codes
        self.warning, self.warned = "", -1.0  # what the search itself warned of, at which step
        self.bad = 0
        self.cache: dict[int, dict] = {}

    def load(self, seconds: float = 0.05) -> bool:
        end, new = time.perf_counter() + seconds, False
        while True:
            anew, lines = self.tail.read()
            if anew:
                self._reset()
            for at, line in lines:
                try:
                    self._add(at, len(line), parse(line))
                except ValueError:
                    self.bad += 1
            new |= anew or bool(lines)
            if not self.tail.more or time.perf_counter() > end:
                return new

    def _add(self, at: int, length: int, row: dict) -> None:
        step = number(row.get("step"))
        if step is None:
            self.bad += 1
            return
        if "warning" in row:
            self.warning, self.warned = clean(row["warning"]), step
        elif step > self.warned:  # AutoGAN's rows of an iteration share a step; its last one warns
            self.warning = ""
        if isinstance(row.get("population"), list):
            self.kind = "evolution"
            self.rounds.append(population(row))
            if len(self.rounds) > 1 and self.rounds[-1]["stage"] != self.rounds[-2]["stage"]:
                for key in self.series:  # scores of the two stages do not compare: the curves break
                    self._point(step, key, None)
            self._point(step, "front", len(self.rounds[-1]["front"]))
            people = self.rounds[-1]["population"]
            for key in numeric_keys(people):
                label = {"fid": "FID", "is": "IS"}.get(key, key)
                self._point(step, f"median {label} of the population", median(x[key] for x in people if x.get(key) is not None))
        elif isinstance(row.get("probabilities"), dict):
            self.kind = "probabilities"
            for net in ("G", "D"):
                given = get(row, "entropy", net)
                values = numbers([*given.values()]) if isinstance(given, dict) else [*map(entropy, edges(row, net).values())]
                if values:
                    self._point(step, f"entropy {net}", sum(values) / len(values))
                flips = number(get(row, "flips", net))
                if flips is not None:
                    self._point(step, f"flips {net}", flips)
        elif "reward" in row or "policy" in row or "beam" in row:
            self.kind = "controller"
            for name, words in zip(row.get("decisions") or (), row.get("options") or (), strict=False):
                if isinstance(words, list) and len(self.options) < 100:
                    self.options.setdefault(clean(name, 20), [clean(word, 20) for word in words])
            if values := numbers(row.get("entropy")):
                self._point(step, "entropy", sum(values) / len(values))
        for key, value in row.items():
            if key != "step" and (value := number(value)) is not None:
                self._point(step, clean(key, 60), value)
        self.rows.append((at, length))
        self.steps.append(step)

    def _point(self, step: float, key: str, value: float | None) -> None:
        if key in self.series or len(self.series) < 200:
            steps, values = self.series.setdefault(key, ([], []))
            steps.append(step)
            values.append(value)

    def until(self, key: str, at: float | None) -> list[float | None]:
        """The values of a series, up to step `at`."""
        steps, values = self.series.get(key, ([], []))
        return [v for s, v in zip(steps, values, strict=False) if at is None or s <= at]

    def row(self, i: int) -> dict:
        """Row i, read from the file; {} if it cannot be read."""
        if not -len(self.rows) <= i < len(self.rows):
            return {}
        i %= len(self.rows)
        if i not in self.cache:
            try:
                with opened(self.path) as fd:
                    row = parse(os.pread(fd, self.rows[i][1], self.rows[i][0]))
            except (OSError, ValueError):
                return {}
            if len(self.cache) > 256:
                self.cache.clear()
            self.cache[i] = row
        return self.cache[i]

    def in_words(self, vector: object) -> str:
        """An AutoGAN vector as the names of its options, by cell: `1: pre none nearest yes · 2: …`; "" if not all are known."""
        codes = str(vector).split()
        if len(codes) > len(self.options) or not all(code.isdecimal() for code in codes):
            return ""
        cells: dict[str, list[str]] = {}
        for (name, words), code in zip(self.options.items(), codes, strict=False):
            cells.setdefault(name.partition("/")[0], []).append(words[int(code)] if int(code) < len(words) else "?")
        return " · ".join(f"{cell}: {' '.join(words)}" for cell, words in cells.items())

    def at(self, step: float | None) -> int:
        """Index of the last row, or with a step of the last row at or before it; -1 if there is none."""
        return (len(self.steps) if step is None else sum(s <= step for s in self.steps)) - 1


def numbers(values: object) -> list[float]:
    """The numbers in a list."""
    return [x for v in values if (x := number(v)) is not None] if isinstance(values, list) else []


def population(row: dict) -> dict:
    """A round of EAGAN with missing values filled in: stage, round, best, population, front, kept.

    Individuals keep all numeric keys, also those in `scores`, so new objectives of a copied script are shown.
    """
    people = []
    for x in row["population"][:2000]:
        if isinstance(x, dict):
            parents, scores = x.get("parents"), x.get("scores")
            items = [*x.items(), *(scores.items() if isinstance(scores, dict) else ())]
            made = {"fid": None, "is": None, "params": None}
            made |= {clean(k, 20): v for k, value in items[:50] if (v := number(value)) is not None}
            made |= {"id": clean(x.get("id"), 20), "how": clean(x.get("how"), 60), "genotype": x.get("genotype")}
            people.append(made | {"parents": [clean(p, 20) for p in parents] if isinstance(parents, list) else []})
    ids = {k: {clean(i, 20) for i in row[k]} if isinstance(row.get(k), list) else set() for k in ("front", "kept")}
    ids["front"] = ids["front"] or front(people)
    return {
        **{"stage": clean(row.get("stage"), 10), "round": number(row.get("round")), "step": number(row.get("step"))},
        **{"population": people, **ids, "best": clean(row.get("best"), 20), "net": row.get("eval/net"), "n": row.get("eval/n")},
    }


def numeric_keys(people: list[dict]) -> list[str]:
    """Keys under which at least one individual has a number, at most 20."""
    return list(dict.fromkeys(k for x in people for k, v in x.items() if number(v) is not None))[:20]


def edges(row: dict, net: str) -> dict[str, dict[str, float]]:
    """{edge: {op: probability}} of G or D in a row of AdversarialNAS or DEGAS."""
    found, good = get(row, "probabilities", net), {}
    for edge, ops in found.items() if isinstance(found, dict) else ():
        if isinstance(ops, dict) and (p := {clean(op, 30): v for op, value in ops.items() if (v := number(value)) is not None}):
            good[clean(edge, 30)] = p
    return good


def entropy(p: dict[str, float]) -> float:
    """Entropy in nats."""
    return -sum(v * math.log(v) for v in p.values() if v > 0)


def front(people: list[dict]) -> set[str]:
    """Ids of individuals that no other dominates (lower FID, higher IS, fewer parameters). Unscored ones are left out."""
    points = [(x["id"], (x["fid"], -(x["is"] or 0.0), x["params"] or 0.0)) for x in people if x["fid"] is not None]
    leads = lambda p: not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for _, q in points)  # noqa: E731
    return {i for i, p in points if leads(p)}


def hypervolume(people: list[dict], reference: tuple[float, float]) -> float:
    """Area dominated by the (FID, IS) points relative to the reference point; larger is better."""
    points = sorted((x["fid"], x["is"]) for x in people if x["fid"] is not None and x["is"] is not None)
    area, high = 0.0, reference[1]
    for fid, is_ in points:
        if fid < reference[0] and is_ > high:
            area += (reference[0] - fid) * (is_ - high)
            high = is_
    return area
