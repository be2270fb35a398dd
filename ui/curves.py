"""Curves: the metrics of a run as arrays, smoothing, and charts of several runs. All charts of a screen share a frame."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ui import draw, np
from ui.columns import same_but_seed
from ui.draw import Line, Series, crop, hanging, human
from ui.files import number
from ui.runs import Run
from ui.view import View

FEW = 100  # values below which a moving average would show what is not there
CHOICES = {  # of the settings of all charts
    "ema": (0.0, 0.6, 0.9, 0.99),
    "axis": ("step", "hours", "GPU-hours"),
    "zoom": ("all", "tail", "low"),
    "band": (True, False),
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def metrics(run: Run) -> list[str]:
    """Names of all metrics that can be plotted, scores first."""
    keys = list(run.columns.keys)
    found = [k for k in keys if k.startswith("FID")] + [k for k in keys if k.startswith("IS")]
    found += sorted(k for k in keys if k not in found and not k.startswith("noise/"))
    found += [k for k in run.search.series if k not in found]
    return found + [k for k in keys if k not in found]  # noise/...: one value


def is_score(metric: str) -> bool:
    return metric.startswith(("FID", "IS"))


def points(run: Run, metric: str, axis: str = "step") -> "tuple":
    """(x, y) of a metric. axis: step, hours, GPU-hours. Score curves break between phases: those scores do not compare."""
    if metric in run.search.series and metric not in run.columns.keys:
        steps, values = run.search.series[metric]
        n = min(len(steps), len(values))
        x, y = np.array(steps[:n], float), np.array(values[:n], float)
        seconds = x
        if axis != "step" and len(run.columns.step):
            with run.lock:
                step, t = np.array(run.columns.step), np.nan_to_num(np.array(run.columns.t))
            seconds = np.interp(x, step, np.maximum.accumulate(t))
    else:
        x, seconds, y = run.column(metric)
        cuts = [c for c in run.columns.breaks.get(metric, ()) if c < len(x)]
        if cuts:
            x, seconds, y = (np.insert(v, cuts, w) for v, w in ((x, x[cuts]), (seconds, seconds[cuts]), (y, np.nan)))
    if axis != "step":
        world = number(run.config.get("world_size")) or 1
        x = seconds / 3600 * (world if axis == "GPU-hours" else 1)
        x = np.where(np.isnan(x), 0.0, x)
    if len(x) > 1 and (np.diff(x) < 0).any():
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
    return x, y


def other_numbers(run: Run, width: int, view: View, known: tuple[str, ...]) -> list[Line]:
    """The numbers in search.jsonl that the page does not show otherwise: a sparkline and the last value each."""
    texts = []
    for key in run.search.series:
        values = run.search.until(key, view.at)
        if values and key not in known and not key.startswith("median "):
            texts.append(f"{key} {draw.spark(values, 12)} {human(values[-1])}")
    return hanging(" ", texts, width, "   ", "dim")


class Ema:
    """Debiased moving average of a growing column. New values never change earlier output. NaN stays NaN and is skipped."""

    def __init__(self, beta: float) -> None:
        self.beta, self.sum, self.weight = beta, 0.0, 1.0  # weight: of what came before the first value
        self.out = np.empty(0)

    def extend(self, values: "np.ndarray") -> "np.ndarray":
        """Smooth values added since the last call. values: the whole column. Returns the whole smoothed column."""
        new = values[len(self.out) :]
        out, good, beta = np.full(len(new), np.nan), np.isfinite(new), self.beta
        sums = list(accumulate(new[good].tolist(), lambda s, x: beta * s + (1 - beta) * x, initial=self.sum))
        weights = self.weight * beta ** np.arange(len(sums))
        out[good] = np.array(sums[1:]) / (1 - weights[1:])
        self.sum, self.weight = sums[-1], float(weights[-1])
        self.out = np.concatenate([self.out, out])
        return self.out


class Curves:
    """Chart settings, shared by all screens, and a cache of smoothed curves."""

    def __init__(self) -> None:
        self.ema = 0.9  # smoothing of metrics with many values; scores are never smoothed
        self.logs: dict[str, bool] = {}
        self.axis, self.zoom, self.band = "step", "all", True
        self.inspect: float | None = None  # 0 … 1 of the x axis
        self.smooth: dict[tuple, tuple[Any, Ema]] = {}

    def turn(self, what: str) -> None:
        """The next choice of a setting."""
        values = CHOICES[what]
        setattr(self, what, values[(values.index(getattr(self, what)) + 1) % len(values)])

    def log(self, metric: str) -> bool:
        return self.logs.get(metric, metric.startswith("FID"))

    def smoothed(self, run: Run, metric: str, y: Any) -> Any:
        """The moving average of a metric, or y itself if it is a score or has few values. Only new points are computed."""
        beta = self.ema
        if not beta or len(y) < FEW or is_score(metric):
            return y
        key = (run.name, metric, beta)
        first, ema = self.smooth.get(key, (None, None))
        if ema is None or first != float(y[0]) or len(ema.out) > len(y):
            ema = Ema(beta)
        self.smooth[key] = (float(y[0]), ema)
        return ema.extend(y)

    def title(self, metric: str, smooth: bool = False) -> str:
        arrow = " ↓" if metric.startswith("FID") else " ↑" if metric.startswith("IS") else ""
        words = ["log"] * self.log(metric) + ([f"ema {self.ema:g}"] if smooth else []) + [f"x: {self.axis}"]
        words += {"all": [], "tail": ["last 20%"], "low": ["lowest values"]}[self.zoom]
        return " · ".join([metric + arrow, *words])

    def lines(
        self, drawn: list[tuple[Run, str, str]], metric: str, width: int, height: int,
        frame: "Frame | None" = None, more: tuple[str, ...] = ()
    ) -> list[Line]:  # fmt: skip
        """A chart with a title. drawn: (run, style, letter), the last one on top. more: extra metrics for the same chart."""
        series, top = [], drawn[-1][0].name if drawn else ""
        for run, style, letter in drawn:
            for k, name in enumerate((metric, *more)):
                x, y = points(run, name, self.axis)
                smooth = self.smoothed(run, name, y)
                raw = y if self.band and smooth is not y and run.name == top else None
                if more:  # "entropy G" is g, "loss/d" is d
                    style, letter = f"s{k}", (name[-1] if name[-2:-1] == " " else name.rpartition("/")[2][0]).lower()
                series.append(Series(x, smooth, style, letter, raw, smooth=smooth is not y))
        return self.draw(series, " + ".join((metric, *more)), width, height, frame, metric)

    def draw(
        self, series: list[Series], title: str, width: int, height: int, frame: "Frame | None" = None, metric: str = ""
    ) -> list[Line]:  # fmt: skip
        """A chart with a title: what is shown, how, and under a cursor the value of each curve there."""
        frame = frame or Frame()
        picture, left_out = draw.chart(
            series, width, height - 1, log=self.log(metric or title), zoom=self.zoom,
            cursor=frame.cursor, marks=frame.marks, x_range=frame.x,
        )  # fmt: skip
        smooth = any(s.smooth for s in series)
        head: Line = [(" " + self.title(metric or title, smooth).replace(metric or title, title, 1), "bold")]
        if frame.cursor is not None:
            head = [(f" {title}", "bold"), (f" at {self.axis} {human(frame.cursor, 5)} ", "dim")]
            for s in series[-8:]:
                value = last_before(s, frame.cursor)
                head.append((f" {s.letter} {human(value, 4)}" if s.letter else f" {human(value, 4)}", s.style))
        head += [(f"  {left_out}", "warn")] if left_out else []
        return [crop(head, width), *picture]

    def frame(self, drawn: list[tuple[Run, list[str]]], marks: tuple = (), cursor: float | None = None) -> "Frame":
        """The range of x over all these metrics of all these runs, and the cursor in it: the same for all charts."""
        ends = [x for run, names in drawn for name in names if len(x := points(run, name, self.axis)[0])]
        if not ends:
            return Frame()
        low, high = min(float(x[0]) for x in ends), max(float(x[-1]) for x in ends)
        if cursor is None and self.inspect is not None:
            cursor = low + self.inspect * (high - low)
        return Frame((low, high), cursor, marks)

    def grouped(self, runs: list[Run], metric: str) -> list[Series]:
        """One curve per group of runs that differ only in the seed: mean ± one standard deviation."""
        made = []
        for k, group in enumerate(seed_groups(runs)):
            members, smooth = [], False
            for run in group:
                x, y = points(run, metric, self.axis)
                if np.isfinite(y).any():
                    x = x + np.arange(len(x)) * 1e-9 * (x[-1] - x[0])  # phases may score at the same step: distinct x
                    members.append((x, self.smoothed(run, metric, y)))
                    smooth |= members[-1][1] is not y
            if not members:
                continue
            low, high = max(x[0] for x, _ in members), min(x[-1] for x, _ in members)
            grid = np.unique(np.concatenate([x for x, _ in members]))
            grid = grid[(grid >= low) & (grid <= high)]
            if not len(grid):
                continue
            values = np.array([np.interp(grid, x, y) for x, y in members])
            spread = values.std(axis=0, ddof=1) if len(members) > 1 else None
            made.append(Series(grid, values.mean(axis=0), f"s{k % 8}", LETTERS[k % 26], spread=spread, smooth=smooth))
        return made


@dataclass
class Frame:
    """What the charts of a screen share: range of x, cursor, and (x, name) of vertical lines."""

    x: tuple[float, float] | None = None
    cursor: float | None = None
    marks: tuple[tuple[float, str], ...] = ()


def last_before(series: Series, x: float) -> float | None:
    """The last value of a curve at or before x."""
    good = np.isfinite(series.y) & (series.x <= x)
    return float(series.y[good][-1]) if good.any() else None


def seed_groups(runs: list[Run]) -> list[list[Run]]:
    """Runs that differ only in the seed, together; in the order of the first of each."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(same_but_seed(run), []).append(run)
    return list(groups.values())
