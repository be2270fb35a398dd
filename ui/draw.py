"""Text graphics: braille charts, cell diagrams, heat maps, images in half blocks. Pure functions.

A line is a list of (text, style). A style is names in ui.widgets.PALETTES ("dim", "bad", "bold s3"), or a rich Style.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise, zip_longest

from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.style import Style

from ui import np
from ui.files import clean

Line = list[tuple[str, str | Style]]
GUTTER = 8  # columns left of a chart, for the labels of its y axis


# ---- numbers and words ------------------------------------------------------------------------------------------------
def human(x: float | None, digits: int = 3) -> str:
    """A short form: 1.23M for 1234567, 412, 2e-04 for 0.0002, — for None."""
    if x is None or not math.isfinite(x):
        return "—"
    for limit, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(x) >= limit:
            value = x / unit
            return f"{value:.{digits}g}{letter}" if abs(value) < 1000 else f"{value:.0f}{letter}"
    if x == int(x):
        return f"{x:.0f}"
    return f"{x:.{digits}g}" if abs(x) >= 1e-3 else f"{x:.{digits - 3}e}"


def score(x: float | None) -> str:
    """A FID or IS in at most six characters."""
    if x is None or not math.isfinite(x):
        return "—"
    return f"{x:.2f}" if abs(x) < 1000 else f"{x:.0f}" if abs(x) < 1e6 else f"{x:.0e}"


def duration(seconds: float | None) -> str:
    """45s, 12m, 3h05, 2d04h, — for None."""
    if seconds is None or not math.isfinite(seconds):
        return "—"
    m = int(seconds) // 60
    if seconds < 90:
        return f"{seconds:.0f}s"
    if m < 90:
        return f"{m}m"
    return f"{m // 60}h{m % 60:02d}" if m < 48 * 60 else f"{m // 1440}d{m // 60 % 24:02d}h"


def size(n: float | None) -> str:
    if n is None:
        return "—"
    for limit, letter in ((2**40, "T"), (2**30, "G"), (2**20, "M"), (2**10, "k")):
        if n >= limit:
            return f"{n / limit:.1f}{letter}" if n < 100 * limit else f"{n / limit:.0f}{letter}"
    return f"{n:.0f}B"


def count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def fit(text: str, width: int, right: bool = False) -> str:
    """The text as exactly `width` cells: truncated with … or padded."""
    if width <= 0:
        return ""
    have = len(text) if text.isascii() else cell_len(text)
    if have > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - have) + text if right else text + " " * (width - have)


def fit_middle(text: str, width: int) -> str:
    """Like `fit`, but keep the last ten characters, in which run names differ."""
    end = text[-10:]
    if cell_len(text) <= width or cell_len(end) > width // 2:
        return fit(text, width)
    return fit(text[:-10] + " ", width - cell_len(end)) + end


def plain(line: Line) -> str:
    return "".join(text for text, _ in line).rstrip()


def width_of(line: Line) -> int:
    return sum(cell_len(text) for text, _ in line)


def beside(left: list[Line], right: list[Line], width: int, gap: str = "  ") -> list[Line]:
    """Two blocks side by side; the left one is `width` cells wide."""
    return [[*crop(a, width), (gap, "dim"), *b] for a, b in zip_longest(left, right, fillvalue=())]


def crop(line: Line, width: int) -> Line:
    """The line truncated or padded to `width` cells."""
    made, left = [], width
    for text, style in line:
        have = len(text) if text.isascii() else cell_len(text)
        if have > left:
            text, have = set_cell_size(text, left), left
        if text:
            made.append((text, style))
        left -= have
        if left <= 0:
            break
    return [*made, (" " * left, "")] if left > 0 else made


def wrapped(items: Iterable[str], width: int, gap: str = "   ") -> list[str]:
    """Items joined by `gap`, wrapped between items."""
    lines = [""]
    for item in items:
        if lines[-1] and cell_len(lines[-1]) + len(gap) + cell_len(item) > width:
            lines.append("")
        lines[-1] += (gap if lines[-1] else "") + item
    return lines


def hanging(head: str, items: Iterable[str], width: int, gap: str = " ", style: str = "") -> list[Line]:
    """Items wrapped to the right of a dim head; no line if there are none."""
    room = cell_len(head)
    parts = wrapped(items, width - room - 1, gap)
    return [] if parts == [""] else [[(head if i == 0 else " " * room, "dim"), (part, style)] for i, part in enumerate(parts)]


def table(head: Sequence[str], rows: Sequence[Sequence[object]], right: str = "", gap: int = 2, most: int = 40) -> list[Line]:
    """A table with auto-sized columns. right: r (right-aligned) or l for each column. A cell may be (text, style)."""
    made = [[(h, "dim") for h in head]] * any(head) + [[c if isinstance(c, tuple) else (clean(c), "") for c in r] for r in rows]
    wide = [min(most, max((cell_len(r[i][0]) for r in made if i < len(r)), default=0)) for i in range(len(head))]
    side = [right[i : i + 1] == "r" for i in range(len(head))]
    return [[(fit(c, w, r) + " " * gap, style) for (c, style), w, r in zip(row, wide, side, strict=False)] for row in made]


def indent(lines: list[Line], by: int = 3) -> list[Line]:
    return [[(" " * by, ""), *line] for line in lines]


def bar(fraction: float | None, width: int) -> str:
    """▕████▌   ▏"""
    eighths = round(max(0.0, min(1.0, fraction or 0.0)) * width * 8)
    full, part = divmod(eighths, 8)
    return "▕" + ("█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")).ljust(width) + "▏"


def spark(values: Sequence[float | None], width: int) -> str:
    """A sparkline; more than `width` values are sampled evenly."""
    have = [v for v in values if v is not None and math.isfinite(v)]
    if not have:
        return ""
    if len(have) > width:
        have = [have[round(k * (len(have) - 1) / (width - 1))] for k in range(width)]
    low, high = min(have), max(have)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (v - low) / (high - low)) if high > low else 0] for v in have)


# ---- charts -----------------------------------------------------------------------------------------------------------
@dataclass
class Series:
    """A curve: x ascending, y with NaN at gaps. letter: label at its end, so that colour is not needed to identify it."""

    x: "np.ndarray"
    y: "np.ndarray"
    style: str = "s0"
    letter: str = ""
    raw: "np.ndarray | None" = None  # unsmoothed values, drawn faintly behind
    spread: "np.ndarray | None" = None  # ± around y, drawn faintly behind
    smooth: bool = False  # y is a moving average


def ticks(low: float, high: float, n: int, log: bool = False) -> list[float]:
    """About n round numbers from low to high, at least two if possible; 1-2-5 steps on a log scale."""
    if log and high / low >= 3:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = [t for e in decades for m in (1, 2, 5) if low <= (t := m * 10.0**e) <= high]
        while len(every) > n and len(every) > 2:
            kept = [t for t in every if math.isclose(10 ** round(math.log10(t)), t)]
            every = kept if 2 <= len(kept) < len(every) else every[::2]
        if len(every) >= 2:
            return every
    if not high > low:
        return [low]
    steps = [m * 10.0 ** math.floor(math.log10((high - low) / max(1, n))) for m in (10, 5, 2, 1, 0.5, 0.2)]
    fitting = [step for step in steps if (high - low) / step <= n]
    found: list[float] = []
    for step in steps[max(0, len(fitting) - 1) :]:
        first = math.ceil(low / step - 1e-9)
        found = [first * step + k * step for k in range(int((high - first * step) / step + 1e-9) + 1)]
        if len(found) > 1:
            break
    return found


def span(series: list[Series], x: tuple[float, float], log: bool) -> tuple[float, float] | None:
    """Range of y for the values from x[0] on, with a margin; None if there are none."""
    low, high = math.inf, -math.inf
    for s in series:
        y = s.y[int(s.x.searchsorted(x[0])) :]
        y = y[(y > 0) & (y < math.inf)] if log else y[abs(y) < math.inf]
        if len(y):
            low, high = min(low, float(y.min())), max(high, float(y.max()))
    if high < low:
        return None
    if math.isclose(high, low):  # smoothing a constant leaves its rounding
        return (low / 1.1, low * 1.1) if log else (low - (abs(low) * 0.1 or 1), low + (abs(low) * 0.1 or 1))
    if log:
        return low * (low / high) ** 0.03, high * (high / low) ** 0.03
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def chart(
    series: list[Series], width: int, height: int, *,
    log: bool = False, zoom: str = "all", cursor: float | None = None, marks: Sequence[tuple[float, str]] = (),
    x_range: tuple[float, float] | None = None, empty: str = "no data yet"
) -> tuple[list[Line], str]:  # fmt: skip
    """(lines, note on points not shown). Points in the same dot column are averaged; the last series is on top.
    zoom: all, tail (last 20% of x), low (lowest y). marks: x and name of dotted lines. x_range: default, that of the series."""
    w, h = width - GUTTER, height - 1
    series = [s for s in series if len(s.x)]
    if w < 4 or h < 2 or not series:
        return _nothing(empty, width, height), ""
    x0, x1 = x_range or (min(float(s.x[0]) for s in series), max(float(s.x[-1]) for s in series))
    if zoom == "tail":
        x0 = x1 - 0.2 * (x1 - x0)
    x_ticks = ticks(x0, x1, max(2, w // 9))
    if not x1 > x0:
        x0, x1 = x0 - 0.5, x0 + 0.5
    limits = span(series, (x0, x1), log)
    if limits is None:
        return _nothing("no positive values for a log axis; y switches to linear" if log else empty, width, height), ""
    y0, y1 = limits
    if zoom == "low":
        y1 = y0 * (y1 / y0) ** 0.25 if log else y0 + 0.25 * (y1 - y0)
    canvas = Canvas(w, h, (x0, x1), (y0, y1), log)
    for s in series:
        canvas.add(s)
    if cursor is not None and x0 <= cursor <= x1:
        marks = [(cursor, "")]
    canvas.mark(marks)
    canvas.name_ends()
    lines = [*canvas.lines(ticks(y0, y1, max(3, h // 3), log)), canvas.x_axis(x_ticks, cursor)]
    left_out = [f"{count(canvas.clipped, 'point')} outside"] if zoom == "low" and canvas.clipped else []
    left_out += [f"{count(canvas.dropped, 'value')} ≤ 0 not on a log axis"] if canvas.dropped else []
    return lines, " · ".join(left_out)


def _nothing(why: str, width: int, height: int) -> list[Line]:
    return ([[(fit(f"  {why}", width), "dim")]] + [[(" " * width, "")] for _ in range(height - 1)])[:height]


class Canvas:
    """Curves as braille dots in w x h characters. clipped, dropped: points above the range, and <= 0 on a log axis."""

    def __init__(self, w: int, h: int, x: tuple[float, float], y: tuple[float, float], log: bool) -> None:
        self.w, self.h, self.log, self.top = w, h, log, y[1]
        (self.x0, self.x1), (self.a0, self.a1) = x, (math.log10(y[0]), math.log10(y[1])) if log else y
        self.bits, self.back = np.zeros((h, w), np.uint8), np.zeros((h, w), bool)  # dots; cells that hold only background
        self.owner = np.full((h, w), -1, np.int16)  # index of the style; -1: none, -2: dim
        self.styles: list[str] = []
        self.ends: list[tuple[int, int, int, str]] = []  # row, column, style index, letter
        self.clipped = self.dropped = 0

    def across(self, x: "np.ndarray") -> "np.ndarray":
        """Dot columns of x values."""
        return ((x - self.x0) * ((2 * self.w - 1) / (self.x1 - self.x0)) + 1e-9).astype(np.int64)

    def down(self, y: "np.ndarray") -> "np.ndarray":
        """Dot rows of y values; may be outside the chart."""
        with np.errstate(all="ignore"):
            return (self.a1 - (np.log10(y) if self.log else y)) * ((4 * self.h - 1) / (self.a1 - self.a0))

    def row(self, y: float) -> int:
        """The character row of a y value."""
        return round((self.a1 - (math.log10(y) if self.log else y)) / (self.a1 - self.a0) * (4 * self.h - 1)) // 4

    def column(self, x: float) -> int:
        """The character column of an x value."""
        return round((x - self.x0) / (self.x1 - self.x0) * (2 * self.w - 1)) // 2

    def put(self, row: int, column: int, char: str, style: str) -> None:
        """Write a character over what is there; after `mark`."""
        self.styles += [style] * (style not in self.styles)
        self.chars[row, column], self.owner[row, column] = ord(char), self.styles.index(style)

    def paint(self, dots: "np.ndarray", style: str) -> None:
        """Draw a dot image on top. Its cells take the new style and lose the dots of faint backgrounds."""
        cells = np.zeros((self.h, self.w), np.uint8)
        for (dy, dx), bit in BRAILLE.items():
            cells |= dots[dy::4, dx::2] * np.uint8(bit)
        there = cells > 0
        self.bits[there] = cells[there] | np.where(self.back, 0, self.bits)[there]
        self.owner[there], self.back[there] = len(self.styles), style == "faint"
        self.styles.append(style)

    def add(self, s: Series) -> None:
        H, W = 4 * self.h, 2 * self.w
        first = max(0, int(np.searchsorted(s.x, self.x0)) - 1)  # one point before, so that the curve enters from the left
        x, y = s.x[first:], s.y[first:]
        if s.spread is not None:
            dots = np.zeros((H, W), bool)
            for k in range(-4, 5):
                curve(dots, self.across(x), self.down(y + s.spread[first:] * k / 4))
            self.paint(dots, "faint")
        if s.raw is not None:
            dots = np.zeros((H, W), bool)
            columns, rows = self.across(x), self.down(s.raw[first:])
            inside = (columns >= 0) & (columns < W) & (rows >= 0) & (rows < H)  # rows may have come since x was measured
            dots[rows[inside].astype(int), columns[inside]] = True
            self.paint(dots, "faint")
        self.dropped += int((y <= 0).sum()) if self.log else 0
        self.clipped += int((y > self.top).sum())
        columns, y, part = means(self.across(x), y)
        rows = self.down(y)
        dots = np.zeros((H, W), bool)
        curve(dots, columns, rows, part)
        self.paint(dots, s.style)
        seen = np.flatnonzero((columns >= 0) & (rows > -0.5) & (rows < H - 0.5))
        if len(seen) and (s.letter or len(seen) == 1):  # a single dot is easy to miss
            self.ends.append((int(rows[seen[-1]]) // 4, int(columns[seen[-1]]) // 2, len(self.styles) - 1, s.letter or "●"))

    def mark(self, marks: Sequence[tuple[float, str]]) -> None:
        """Dotted vertical lines, named at their tops as far as nothing is drawn there."""
        self.chars = np.where(self.bits > 0, self.bits.astype(np.int32) + 0x2800, 32)
        inside = [(self.column(x), name) for x, name in marks if self.x0 <= x <= self.x1]
        for (column, name), (following, _) in pairwise([*inside, (self.w, "")]):
            free = self.bits[:, column] == 0
            self.chars[free, column], self.owner[free, column] = ord("┊"), -2
            room = following - column - 1
            if len(name) > room < 8:
                continue  # a few letters of it say nothing
            for k, letter in enumerate(name[:room], column + 1):
                if self.bits[0, k] or not letter.isprintable() or len(letter.encode()) > 3:
                    break
                self.chars[0, k], self.owner[0, k] = ord(letter), -2

    def name_ends(self) -> None:
        """Letters at the ends of the curves."""
        taken: set[tuple[int, int]] = set()
        for row, column, index, letter in self.ends:
            spots = [(row + y, column + x) for y, x in ((0, 1), (-1, 0), (1, 0), (0, 0), (-1, -1), (1, -1))]
            if letter == "●":
                spots = [(row, column)]
            spot = next((p for p in spots if 0 <= p[0] < self.h and 0 <= p[1] < self.w and p not in taken), None)
            if spot:
                taken.add(spot)
                self.chars[spot], self.owner[spot] = ord(letter), index

    def lines(self, ticks: list[float]) -> list[Line]:
        """The picture right of a y axis with labels at these values."""
        rows = dict(zip(map(self.row, ticks), labels(ticks), strict=True))
        made: list[Line] = []
        for r in range(self.h):
            text = "".join(map(chr, self.chars[r]))
            line: Line = [(fit(rows.get(r, ""), GUTTER - 1, True) + ("┤" if r in rows else "│"), "dim")]
            edges = [0, *(np.flatnonzero(np.diff(self.owner[r])) + 1).tolist(), self.w]
            for a, b in pairwise(edges):
                who = int(self.owner[r, a])
                line.append((text[a:b], self.styles[who] if who >= 0 else "dim"))
            made.append(line)
        return made

    def x_axis(self, ticks: list[float], cursor: float | None = None, log: bool = False) -> Line:
        """The line below the picture: labels at these values, or only at the cursor. log: x is log10 of the values."""
        axis = [" "] * (GUTTER + self.w)
        wanted = list(zip(ticks, labels(ticks), strict=True))
        if cursor is not None and self.x0 <= cursor <= self.x1:
            wanted = [(cursor, human(cursor, 5))]
        for t, label in wanted:
            at = GUTTER + self.column(math.log10(t) if log else t) - len(label) // 2
            at = max(GUTTER - 1, min(at, GUTTER + self.w - len(label)))
            if all(c == " " for c in axis[max(0, at - 1) : at + len(label) + 1]):
                axis[at : at + len(label)] = label
        return [("".join(axis), "dim")]


def labels(values: list[float]) -> list[str]:
    """Labels with just enough digits to be distinct."""
    for digits in range(3, 7):
        texts = [human(t, digits) if abs(t) > 1e-12 else "0" for t in values]
        if len(set(texts)) == len(texts):
            break
    return texts


BRAILLE = {(0, 0): 1, (1, 0): 2, (2, 0): 4, (0, 1): 8, (1, 1): 16, (2, 1): 32, (3, 0): 64, (3, 1): 128}  # (row, column): bit


def means(columns: "np.ndarray", y: "np.ndarray") -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """Mean per dot column: (columns, means, part). part counts the NaN seen so far: the curve breaks where it changes."""
    good = abs(y) < math.inf
    part = None
    if not good.all():
        part = np.cumsum(~good)[good]
        columns, y = columns[good], y[good]
    if not len(y):
        return columns, y, columns
    new = np.diff(columns) != 0
    if part is not None:
        new |= np.diff(part) != 0
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    mean = np.add.reduceat(y, starts) / np.diff(np.append(starts, len(y)))
    return columns[starts], mean, np.zeros(len(starts), np.int64) if part is None else part[starts]


def curve(canvas: "np.ndarray", x: "np.ndarray", y: "np.ndarray", part: "np.ndarray | None" = None) -> None:
    """Draw a polyline on a bool canvas (H, W). x: columns, y: rows, may be outside. Different parts are not joined."""
    H, W = canvas.shape
    good = abs(y) < math.inf
    x, y = x[good], np.clip(y[good], -H, 2 * H)
    if not len(x):
        return
    g = np.cumsum(~good)[good] + (0 if part is None else part[good])
    steps = np.where((np.diff(g) == 0) & (np.diff(x) > 0), np.diff(x), 0)
    within = np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps) + 1
    i = np.repeat(np.arange(len(steps)), steps)
    slope = (y[i + 1] - y[i]) / steps[i]
    here, before = np.rint(y[i] + slope * within).astype(np.int64), np.rint(y[i] + slope * (within - 1)).astype(np.int64)
    low, high = np.where(here > before, before + 1, here), np.where(here < before, before - 1, here)
    low, high = np.clip(low, 0, H), np.clip(high, -1, H - 1)
    tall = np.maximum(high - low + 1, 0)
    rows = np.repeat(low, tall) + np.arange(tall.sum()) - np.repeat(np.cumsum(tall) - tall, tall)
    columns = np.repeat(x[i] + within, tall)
    rows, columns = np.append(rows, np.rint(y).astype(np.int64)), np.append(columns, x)
    inside = (columns >= 0) & (columns < W) & (rows >= 0) & (rows < H)
    canvas[rows[inside], columns[inside]] = True


def scatter(
    points: Sequence[tuple[float, float, str, str]], width: int, height: int, *,
    log_x: bool = False, path: Sequence[tuple[float, float]] = ()
) -> list[Line]:  # fmt: skip
    """A scatter plot. points: (x, y, character, style), later ones on top. path: points joined by a staircase."""
    w, h = width - GUTTER, height - 1
    points = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1]) and (p[0] > 0 or not log_x)]
    if not points or w < 4 or h < 2:
        return [[(fit("  no scores yet", width), "dim")]]
    fx = math.log10 if log_x else float
    x0, x1 = min(fx(p[0]) for p in points), max(fx(p[0]) for p in points)
    y0, y1 = min(p[1] for p in points), max(p[1] for p in points)
    x0, x1 = (x0 - 0.02 * (x1 - x0), x1 + 0.02 * (x1 - x0)) if x1 > x0 else (x0 - 1, x1 + 1)
    y0, y1 = (y0 - 0.04 * (y1 - y0), y1 + 0.04 * (y1 - y0)) if y1 > y0 else (y0 - 1, y1 + 1)
    canvas = Canvas(w, h, (x0, x1), (y0, y1), log=False)
    canvas.mark(())
    for (ra, ca), (rb, cb) in pairwise((canvas.row(y), canvas.column(fx(x))) for x, y in path):
        for c in range(min(ca, cb), max(ca, cb) + 1):
            canvas.put(ra, c, "─", "dim")
        for r in range(min(ra, rb), max(ra, rb) + 1):
            canvas.put(r, cb, "│", "dim")
    for x, y, mark, style in points:
        canvas.put(canvas.row(y), canvas.column(fx(x)), mark, style)
    x_ticks = ticks(*((10**x0, 10**x1) if log_x else (x0, x1)), max(2, w // 10), log_x)
    return [*canvas.lines(ticks(y0, y1, max(2, h // 3))), canvas.x_axis(x_ticks, log=log_x)]


# ---- cells and probabilities ------------------------------------------------------------------------------------------
def rails(nodes: Sequence[str], edges: Sequence[tuple[str, str, str, str]], width: int) -> list[Line]:
    """A diagram of a cell, one row per edge. edges: (from, to, op, style); the op `none` is dotted."""
    n = max(2, len(nodes))
    apart = max(6, (width - 7) // (n - 1))
    column = {node: 3 + i * apart for i, node in enumerate(nodes)}
    total = 3 + (n - 1) * apart + 3
    head = [" "] * total
    for node in nodes:
        label = f"[{node}]"
        at = max(0, min(column[node] - len(label) // 2, total - len(label)))
        head[at : at + len(label)] = label
    lines: list[Line] = [[("".join(head), "bold")]]
    for a, b, op, style in edges:
        if a not in column or b not in column:
            continue
        left, right = sorted((column[a], column[b]))
        dead = op.startswith("none")
        room, dash = right - left - 1, "╌" if dead else "─"
        label = f" {op} " if len(op) + 2 <= room - 2 else fit(op, room - 1) if room > 4 else ""
        before = (room - len(label)) // 2
        row = "".join("┊" if i in column.values() else " " for i in range(total))
        body = "├" + dash * before + label + dash * (room - before - len(label)) + ("▷" if dead else "▶")
        lines.append([(row[:left], "faint"), (body, "dim" if dead else style), (row[right + 1 :], "faint")])
    return lines


def shade(p: float) -> str:
    """A probability as a block character, darker for larger p."""
    return " ░▒▓█"[min(4, max(0, math.ceil(p * 4 - 0.2)))]


def heat(columns: Sequence[dict[str, float]], full: float) -> list[Line]:
    """Op probabilities of one edge over time, one row per op. full: the probability drawn as a full block."""
    last = columns[-1] if columns else {}
    name = max(map(len, last), default=0)
    lines: list[Line] = []
    for op, p in last.items():
        top = p == max(last.values())
        body = "".join("▁▂▃▄▅▆▇█"[round(7 * c.get(op, 0.0) / full)] for c in columns)
        lines.append([(fit(op, name) + " ", "bold" * top), (body, "key" if top else "dim"), (f" {p:.2f}", "bold" * top)])
    return lines


# ---- images -----------------------------------------------------------------------------------------------------------
@lru_cache(4096)
def _half(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Style:
    return Style(color=Color.from_rgb(*top), bgcolor=Color.from_rgb(*bottom))


def grid_of(image: "np.ndarray") -> tuple[int, int]:
    """(images per row, pixels between image origins) of an 8-wide sample grid; (1, width) for any other image."""
    h, w = image.shape[:2]
    pitch = (w - 2) // 8
    return (8, pitch) if pitch >= 6 and 8 * pitch + 2 == w and (h - 2) % pitch == 0 else (1, w)


def part(image: "np.ndarray", across: int) -> "np.ndarray":
    """The first `across` x `across` samples of a grid; any other image unchanged."""
    n, pitch = grid_of(image)
    side = across * pitch + 2
    return image[:side, :side] if across < n else image


def half_blocks(image: "np.ndarray", width: int, height: int, across: int = 8) -> list[Line]:
    """The image as `▀`, two pixels each. across: whole samples per row, as many rows as fit; all of them: the whole grid."""
    from PIL import Image

    n, pitch = grid_of(image)
    across = min(across, n)
    side = across * pitch + (2 if n > 1 else 0)
    ratio = min(1.0, width / side) if across == n else width / side
    ratio = min(ratio, 4.0)
    down = max(1, int((2 * height / ratio - (2 if n > 1 else 0)) // pitch)) if n > 1 else 1
    rows = min(image.shape[0], down * pitch + 2) if across < n else image.shape[0]
    if rows * ratio > 2 * height:
        ratio = 2 * height / rows
    part = Image.fromarray(image[:rows, :side])
    w, h = max(1, round(side * ratio)), max(2, round(rows * ratio) // 2 * 2)
    small = np.asarray(part.resize((w, h), Image.Resampling.BOX if ratio < 1 else Image.Resampling.NEAREST))
    pixels = [list(map(tuple, row)) for row in small.tolist()]
    return [
        [("▀" * len(list(same)), _half(*pair)) for pair, same in groupby(zip(top, bottom, strict=True))]
        for top, bottom in zip(pixels[::2], pixels[1::2], strict=True)
    ]


def variety(image: "np.ndarray") -> float | None:
    """Sample variety: standard deviation over the samples of a grid, averaged over pixels; 0 to about 0.5. None: no grid."""
    n, pitch = grid_of(image)
    if n == 1:
        return None
    rows = (image.shape[0] - 2) // pitch
    tiles = image[2 : 2 + rows * pitch, 2 : 2 + n * pitch].reshape(rows, pitch, n, pitch, 3)[:, : pitch - 2, :, : pitch - 2]
    tiles = tiles.swapaxes(1, 2).reshape(rows * n, -1).astype(np.float32) / 255
    return float(tiles.std(axis=0).mean())
