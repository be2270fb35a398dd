"""Launch, watch, steer and compare the runs of this project in a terminal: `python tui.py [runs/]`.

Everything shown is read from run directories (docs/tui.md); everything done to a run goes through its process or its
directory, so runs live on when this ends, and runs started by hand appear by themselves. No torch is imported.

ui/runs.py     run directories: reading, states, queries, logs       ui/draw.py     charts, rails, heat maps, images as text
ui/launch.py   options of scripts, starting, signals, GPUs           ui/pages.py    what each tab of a run shows
ui/report.py   --plain, CSV, Markdown, LaTeX, HTML                   ui/widgets.py  document, table and log on the screen
This file      the screens, top to bottom as one meets them: runs, one run, comparison, launch form, dialogs, the app.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer

from ui import draw, launch, pages, report
from ui.draw import Line, Series, crop, duration, fit, human, score
from ui.runs import (
    LIVE,
    STATES,
    Ema,
    Log,
    Run,
    Store,
    clean,
    color_index,
    fid_label,
    get,
    identity,
    number,
    ordered,
    parse,
    query,
    read_bytes,
    same_but_seed,
)

if os.environ.get("SSH_CONNECTION"):  # before textual is imported
    os.environ.setdefault("TEXTUAL_FPS", "15")
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")

from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.command import DiscoveryHit, Hit, Provider
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen, Screen
from textual.widgets import Input

from ui.widgets import THEMES, Doc, LogView, Table, use_palette

EMAS = (0.0, 0.6, 0.9, 0.99)
AXES = ("step", "hours", "GPU-hours")
ZOOMS = ("all", "tail", "low")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOVES = [
    Binding("up,k", "move('up')", "up", show=False),
    Binding("down,j", "move('down')", "down", show=False),
    Binding("pageup", "move('pageup')", "a page up", show=False),
    Binding("pagedown", "move('pagedown')", "a page down", show=False),
    Binding("home,g", "move('home')", "to the first", show=False),
    Binding("end,G", "move('end')", "to the last; in the log: follow", show=False),
]
CURVES = [
    Binding("m", "metric", "metric: the next one"),
    Binding("e", "ema", "smooth: 0, .6, .9, .99"),
    Binding("y", "log", "log y: or linear"),
    Binding("t", "axis", "x: step, hours, GPU-hours", show=False),
    Binding("z", "zoom", "zoom: all, last 20 %, lowest values", show=False),
    Binding("b", "band", "raw values behind the smoothed", show=False),
    Binding("v", "inspect", "values at a step", show=False),
    Binding("left", "sideways(-1)", "inspect left, scroll left", show=False),
    Binding("right", "sideways(1)", "inspect right, scroll right", show=False),
]
ACTS = [  # upper case: on the process or the directory of a run; off with --readonly
    Binding("I", "act('stop')", "stop: finish the step, save, exit"),
    Binding("Z", "act('pause')", "pause, or let it go on"),
    Binding("R", "act('resume')", "resume: from its checkpoint"),
    Binding("T", "act('terminate')", "terminate (SIGTERM)", show=False),
    Binding("K", "act('kill')", "kill (SIGKILL), asks first", show=False),
    Binding("D", "act('trash')", "move to runs/.trash", show=False),
    Binding("U", "act('undo')", "undo the last move to the trash", show=False),
    Binding("r", "rerun", "re-run: with changes"),
    Binding("d", "derive", "train this run's genotype", show=False),
]


# ---- curves of several runs -------------------------------------------------------------------------------------------


class Curves:
    """How charts are drawn, the same on every screen, and the smoothing already done."""

    def __init__(self) -> None:
        self.ema = {True: 0.0, False: 0.9}  # of scores, of everything else
        self.logs: dict[str, bool] = {}
        self.axis, self.zoom, self.band = "step", "all", True
        self.inspect: float | None = None  # 0 … 1 of the x axis
        self.smooth: dict[tuple, tuple[Any, Ema]] = {}

    def log(self, metric: str) -> bool:
        return self.logs.get(metric, metric.startswith("FID"))

    def smoothed(self, run: Run, metric: str, y: Any) -> Any:
        """The moving average of a metric; only what is new is computed."""
        beta = self.ema[pages.is_score(metric)]
        if not beta or not len(y):
            return y
        key = (run.name, metric, beta)
        first, ema = self.smooth.get(key, (None, None))
        if ema is None or first != float(y[0]) or len(ema.out) > len(y):
            ema = Ema(beta)
        self.smooth[key] = (float(y[0]), ema)
        return ema.extend(y)

    def title(self, metric: str) -> str:
        arrow = " ↓" if metric.startswith("FID") else " ↑" if metric.startswith("IS") else ""
        ema = self.ema[pages.is_score(metric)]
        words = ["log"] * self.log(metric) + ([f"ema {ema:g}"] if ema else []) + [f"x: {self.axis}"]
        return f"{metric}{arrow} · " + " · ".join(
            words + {"all": [], "tail": ["last 20 %"], "low": ["lowest values"]}[self.zoom]
        )

    def lines(
        self, drawn: list[tuple[Run, str, str]], metric: str, width: int, height: int,
        marks: tuple = (), cursor: float | None = None, more: tuple[str, ...] = ()
    ) -> list[Line]:  # fmt: skip
        """A chart with its title. drawn: (run, style, letter), the last on top. more: further metrics in the same chart."""
        series, top = [], drawn[-1][0].name if drawn else ""
        for run, style, letter in drawn:
            for k, name in enumerate((metric, *more)):
                x, y = pages.points(run, name, self.axis)
                smooth = self.smoothed(run, name, y)
                raw = y if self.band and smooth is not y and run.name == top else None
                own, mark = (f"s{k}", name.rpartition("/")[2][:1]) if more else (style, letter)
                series.append(Series(x, smooth, own, mark, raw))
        return self.draw(series, " + ".join((metric, *more)), width, height, marks, cursor, metric)

    def draw(
        self, series: list[Series], title: str, width: int, height: int,
        marks: tuple = (), cursor: float | None = None, metric: str = ""
    ) -> list[Line]:  # fmt: skip
        if cursor is None and self.inspect is not None:
            cursor = self.at(series)
        picture, left_out = draw.chart(
            series, width, height - 1, log=self.log(metric or title), zoom=self.zoom, cursor=cursor, marks=marks
        )
        head: Line = [(" " + self.title(metric or title).replace(metric or title, title, 1), "bold")]
        head += [(f"  {left_out}", "warn")] if left_out else []
        return [crop(head, width), *picture]

    def at(self, series: list[Series]) -> float | None:
        """The x that is inspected."""
        xs = [s.x for s in series if len(s.x)]
        if not xs or self.inspect is None:
            return None
        low, high = min(float(x[0]) for x in xs), max(float(x[-1]) for x in xs)
        return low + self.inspect * (high - low)

    def grouped(self, runs: list[Run], metric: str) -> list[Series]:
        """Runs that differ in the seed alone as one curve: mean, and ± a standard deviation."""
        import numpy as np

        groups: dict[str, list] = {}
        for run in runs:
            x, y = pages.points(run, metric, self.axis)
            y = self.smoothed(run, metric, y)
            good = np.isfinite(y)
            if good.any():
                groups.setdefault(same_but_seed(run), []).append((x[good], y[good]))
        made = []
        for k, members in enumerate(groups.values()):
            low, high = max(x[0] for x, _ in members), min(x[-1] for x, _ in members)
            grid = np.unique(np.concatenate([x for x, _ in members]))
            grid = grid[(grid >= low) & (grid <= high)]
            if not len(grid):
                continue
            values = np.array([np.interp(grid, x, y) for x, y in members])
            spread = values.std(axis=0, ddof=1) if len(members) > 1 else None
            made.append(Series(grid, values.mean(axis=0), f"s{k % 8}", LETTERS[k % 26], spread=spread))
        return made


# ---- what the screens share -------------------------------------------------------------------------------------------


class Page(Screen):
    """A screen with a line of keys, a notice where there is no room, and widgets whose faults end nothing."""

    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-narrow"), (100, "-wide"), (140, "-broad")]
    VERTICAL_BREAKPOINTS: ClassVar = [(0, "-short"), (30, "-tall")]
    app: "Tui"

    def body(self) -> ComposeResult:
        yield from ()

    def compose(self) -> ComposeResult:
        yield Doc(lambda w, h: [[(fit(" too small: needs 60 x 16", w), "warn")]], id="tiny")
        with Vertical(id="whole"):
            yield from self.body()
            yield Doc(self.keys, base="bar", id="keys")

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.width < 60 or event.size.height < 16, "-tiny")
        self.call_after_refresh(self.update_all)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self.update_all)

    def on_mount(self) -> None:
        self.call_after_refresh(self.update_all)

    def changed(self, names: set[str]) -> None:
        """New facts about these runs are there; an empty set: a second has passed."""

    def update_all(self) -> None:
        """Everything anew, as after a change of size or of what the user chose."""
        self.changed(set(self.app.store.runs))
        self.query_one("#keys", Doc).rebuild()

    def update(self, *ids: str) -> None:
        for name in ids:
            self.app.safely(name, self.query_one(f"#{name}", Doc).rebuild)

    def restyle(self) -> None:
        for widget in self.query("Doc, Table, LogView"):
            widget.restyle()

    def offered(self, binding: Binding) -> bool:
        return binding.show

    def keys(self, width: int, _: int) -> list[Line]:
        """As many keys as fit, whole; the rest is in the help."""
        last: Line = [("?", "key"), (" help ", "")]
        line: Line = [(" ", "")]
        for binding in self.BINDINGS:
            if not self.offered(binding) or (self.app.readonly and touches(binding)):
                continue
            label = re.split("[:,;]", binding.description)[0]
            part: Line = [(key_name(binding.key), "key"), (f" {label}  ", "")]
            if draw.width_of(line) + draw.width_of(part) + draw.width_of(last) <= width:
                line += part
        return [[*line, *last]]

    # -- charts, where a screen has some

    def action_ema(self) -> None:
        which = pages.is_score(self.metric_now())
        now = self.app.curves.ema[which]
        self.app.curves.ema[which] = EMAS[(EMAS.index(now) + 1) % len(EMAS)]
        self.update_all()

    def action_log(self) -> None:
        metric = self.metric_now()
        self.app.curves.logs[metric] = not self.app.curves.log(metric)
        self.update_all()

    def action_axis(self) -> None:
        curves = self.app.curves
        curves.axis = AXES[(AXES.index(curves.axis) + 1) % len(AXES)]
        self.update_all()

    def action_zoom(self) -> None:
        curves = self.app.curves
        curves.zoom = ZOOMS[(ZOOMS.index(curves.zoom) + 1) % len(ZOOMS)]
        self.update_all()

    def action_band(self) -> None:
        self.app.curves.band = not self.app.curves.band
        self.update_all()

    def action_inspect(self) -> None:
        self.app.curves.inspect = 1.0 if self.app.curves.inspect is None else None
        self.update_all()

    def action_sideways(self, by: int) -> None:
        if self.app.curves.inspect is not None:
            self.app.curves.inspect = min(1.0, max(0.0, self.app.curves.inspect + by / 100))
            self.update_all()

    def metric_now(self) -> str:
        return self.app.metric

    # -- acting on the run at hand

    def run_now(self) -> Run | None:
        return None

    def action_act(self, what: str) -> None:
        self.app.act(what, self.run_now())

    def action_rerun(self) -> None:
        run = self.run_now()
        if run and not self.app.refuse():
            self.app.open_form(run)

    def action_derive(self) -> None:
        run = self.run_now()
        if run and not self.app.refuse():
            if not (run.path / "genotype.json").exists():
                self.app.notify("this run has no genotype.json yet", severity="warning")
            else:
                self.app.open_form(run, genotype=str(run.path / "genotype.json"), phase="train")


def key_name(keys: str) -> str:
    """A key as one reads it: `space`, `/`, `↑ k`."""
    names = {"slash": "/", "question_mark": "?", "colon": ":", "comma": ",", "full_stop": ".", "number_sign": "#"}
    names |= {
        "left_square_bracket": "[",
        "right_square_bracket": "]",
        "exclamation_mark": "!",
        "ampersand": "&",
        "asterisk": "*",
    }
    names |= {"up": "↑", "down": "↓", "left": "←", "right": "→", "enter": "⏎", "escape": "esc", "plus": "+", "minus": "-"}
    names |= {"pageup": "PgUp", "pagedown": "PgDn", "home": "Home", "end": "End"}
    return " ".join(names.get(k, k) for k in keys.split(","))


def touches(binding: Binding) -> bool:
    """Whether an action starts, steers or changes a run."""
    return binding.action.startswith("act(") or binding.action in ("rerun", "derive", "new", "tags", "pin")


# ---- all runs ---------------------------------------------------------------------------------------------------------


class Runs(Page):
    """The list, with curves of the runs laid over each other, and the machine."""

    BINDINGS: ClassVar = [
        Binding("n", "new", "new run"),
        Binding("space", "overlay", "overlay"),
        Binding("enter", "open", "open"),
        Binding("slash", "query", "filter"),
        Binding("s", "sort", "sort"),
        Binding("c", "compare", "compare: two overlaid, or one with the cursor's"),
        *ACTS,
        *CURVES,
        Binding("0", "clear", "clear the overlay", show=False),
        Binding("i", "reverse", "reverse the order", show=False),
        Binding("u", "group", "group seeds: mean and spread", show=False),
        Binding("p", "pin", "pin on top", show=False),
        Binding("number_sign", "tags", "tags and note", show=False),
        Binding("h", "hide", "hide or show again", show=False),
        Binding("a", "hidden", "show hidden runs", show=False),
        *MOVES,
    ]

    def body(self) -> ComposeResult:
        yield Doc(self.top_line, base="bar", id="top")
        with Horizontal(id="middle"):
            with Vertical(id="left"):
                yield Table(id="table")
                yield Doc(self.status_line, id="status")
                yield Doc(self.preview, id="preview")
                yield Doc(self.host, id="host")
            yield Doc(self.charts, id="charts")
        yield Doc(self.host, id="host-below")

    def changed(self, names: set[str]) -> None:
        self.app.safely("table", self.fill)
        spare = self.query_one("#left").size.height - len(self.app.listed()) - 6
        self.query_one("#preview").styles.height = max(5, min(14, spare))
        self.update("top", "status", "preview", "host", "host-below")
        if names & {run.name for run, _, _ in self.drawn()} or not self.query_one("#charts", Doc).lines:
            self.update("charts")

    # -- the list

    def columns(self, runs: list[Run], width: int) -> list[tuple[str, int, list[str], str]]:
        """(title, width, texts of the runs, sort key) of the columns that fit, the more important ones first kept."""
        labels = self.app.labels()
        wanted: list[tuple[float, str, Callable[[Run], str], str]] = [  # rank, title, text, sort key
            (0, "step", lambda r: f"{human(r.step)}/{human(r.total)}" if r.total else human(r.step), "step"),
            (2, "ETA", self.left, "ETA"),
            (4, "phase", lambda r: r.phase, "phase"),
            (5, "memory", lambda r: draw.size(r.memory), "memory"),
            (6, "steps/s", lambda r: human(r.rate) if r.rate else "—", "rate"),
            (7, "images", lambda r: human(number(r.last.get("n"))), "images"),
            (8, "seed", lambda r: "—" if r.seed is None else str(r.seed), "seed"),
            (9, "method", lambda r: r.method, "method"),
        ]
        for k, label in enumerate(labels):
            rank = 1 + 2 * label.startswith("IS") + (k > 0) * 0.1
            wanted.append((rank, label, lambda r, n=label: score(r.score(n)), label))
        room = width - 5 - min(30, max([len(self.app.short(r)) for r in runs] or [10]))
        chosen = []
        for _, title, text, key in sorted(wanted, key=lambda w: w[0]):
            texts = [text(r) for r in runs]
            wide = max(len(title) + (self.app.sort == key), *(len(t) for t in texts), 0)
            if wide + 1 <= room:
                chosen.append((title, wide, texts, key))
                room -= wide + 1
        order = ["method", "phase", "step", *[x for x in labels if x.startswith("IS")]]
        order += [*[x for x in labels if x.startswith("FID")], "images", "ETA", "memory", "steps/s", "seed"]
        return sorted(chosen, key=lambda c: order.index(c[0]))

    def left(self, run: Run) -> str:
        """What the ETA column says: time left, or how it ended."""
        if run.state in ("running", "stopping"):
            return duration(run.eta) if run.eta is not None else run.state if run.state == "stopping" else "—"
        if run.state == "failed":
            return "OOM?" if "memory" in run.why + run.error.lower() else run.why or "failed"
        return run.state

    def fill(self) -> None:
        table = self.query_one(Table)
        runs, width = self.app.listed(), table.size.width
        columns = self.columns(runs, width)
        name_width = max(8, width - 5 - sum(c[1] + 1 for c in columns))
        arrow = "▼" if self.app.reverse else "▲"

        def head(title: str, key: str, w: int, right: bool) -> str:
            return fit(title + (arrow if self.app.sort == key else ""), w, right)

        top = f"     {head('run', 'name', name_width, False)}" + "".join(" " + head(t, k, w, True) for t, w, _, k in columns)
        self.spots = [(5, 5 + name_width, "name")]
        at = 5 + name_width
        for _, w, _, key in columns:
            self.spots.append((at, at + w + 1, key))
            at += w + 1
        rows: list[tuple[str, Line]] = []
        for i, run in enumerate(runs):
            letter, style = self.app.overlay_mark(run)
            pin = "^" if run.pinned else " "
            line: Line = [
                (f"▌{letter}" if letter else "  ", style),
                (f"{pin}{pages.GLYPHS[run.state]} ", pages.STYLES[run.state]),
                (fit(self.app.short(run), name_width), "dim" if run.name in self.app.hidden else ""),
            ]
            for title, w, texts, _ in columns:
                tone = pages.STYLES[run.state] if title == "ETA" and run.state != "running" else ""
                tone = "dim" if title.startswith("FID") and (number(run.last.get("n")) or 0) < 50_000 else tone
                line.append((" " + fit(texts[i], w, True), tone))
            rows.append((run.name, line))
        table.empty = self.empty(width)
        table.show([(top, "bold")], rows)

    def empty(self, width: int) -> list[Line]:
        app = self.app
        if app.store.runs:
            return [
                [],
                [(f"  no run matches {app.filter_text or 'what is shown'}", "warn")],
                [("  / changes the filter, a shows hidden runs", "dim")],
            ]
        if not app.scanned:
            return [[], [("  looking for runs…", "dim")]]
        why = f" ({app.store.problem})" if app.store.problem else ""
        start = "read-only: nothing can be started here" if app.readonly else "press n to start one"
        lines = [
            f"no runs in {app.store.root}/{why}",
            start,
            "or point me elsewhere: python tui.py DIR",
            "? lists every key, q quits",
        ]
        return [[], *([(f"  {text}", "" if i == 0 else "dim")] for i, text in enumerate(lines))]

    def on_table_picked(self, event: Table.Picked) -> None:
        if event.entered:
            self.action_open()
        else:
            self.update("preview", "charts")

    def on_table_sorted(self, event: Table.Sorted) -> None:
        key = next((k for a, b, k in self.spots if a <= event.x < b), None)
        if key:
            self.app.reverse = not self.app.reverse if self.app.sort == key else False
            self.app.sort = key
            self.fill()

    # -- lines around it

    def top_line(self, width: int, _: int) -> list[Line]:
        app = self.app
        counts = Counter(r.state for r in app.store.ordered())
        line: Line = [(f" {clean(app.store.root)}/ ", "bold"), (f" {draw.count(len(app.store.runs), 'run')}  ", "")]
        for state in STATES:
            if counts[state]:
                word = f" {state}" if width >= 100 else ""
                line.append((f" {pages.GLYPHS[state]} {counts[state]}{word}", pages.STYLES[state]))
        if app.since:
            line.append(("   since last visit: " + ", ".join(f"{n} {s}" for s, n in app.since.items()), "info"))
        if app.readonly:
            line.append(("   read-only", "warn"))
        return [crop(line, width)]

    def status_line(self, width: int, _: int) -> list[Line]:
        app = self.app
        shown, total = len(app.listed()), len(app.store.runs)
        words = [f"{shown} of {draw.count(total, 'run')}", f"sort {app.sort} {'▼' if app.reverse else '▲'}"]
        words += [f"filter: {app.filter_text}"] if app.filter_text else []
        words += [f"{len(app.overlay)} overlaid"] if app.overlay else []
        words += ["seeds grouped"] if app.group else []
        left = [label for label in app.labels() if label.startswith("FID")]
        fits = {c[0] for c in self.columns(app.listed(), self.query_one(Table).size.width)}
        hidden = [label for label in left if label not in fits]
        words += [f"no room for {', '.join(hidden)}"] if hidden else []
        return [[(fit(" " + " · ".join(words), width), "dim")]]

    def preview(self, width: int, height: int) -> list[Line]:
        """The run at the cursor in a few lines: what it is and the end of its log."""
        run = self.run_now()
        if run is None or height < 2:
            return []
        lines: list[Line] = [[("─" * width, "faint")]]
        head = [run.name, pages.scores(run), run.error or pages.state_word(run), " ".join(f"#{t}" for t in run.labels)]
        lines.append([(fit(" " + " · ".join(h for h in head if h), width), "bad" if run.error else "bold")])
        log = Log(run.path / "log.txt" if (run.path / "log.txt").exists() else run.output)
        log.update(1 << 20)
        if len(log) and height > 2:
            last = log.lines(range(max(0, len(log) - (height - 2)), len(log)))
            lines += [[(fit(" " + text, width), "dim")] for text in last]
        return lines

    def host(self, width: int, height: int) -> list[Line]:
        """A line a GPU and one for the host; in one line where there is no room."""
        machine, lines = self.app.machine, []
        for g in machine.gpus:
            used = g["used"] / g["total"] if g["total"] else 0
            text = f" GPU{g['index']} {fit(g['name'].replace('NVIDIA ', ''), 8)} {g['percent'] if g['percent'] is not None else '—':>3}% "
            text += f"{draw.bar(used, 10)} {draw.size(g['used'])}/{draw.size(g['total'])}"
            text += f" {g['degrees']}°" if g["degrees"] is not None else ""
            text += f" {g['watts']:.0f}W" if g["watts"] else ""
            lines.append(text + f"  free {draw.size(g['total'] - g['used'])}")
        h = machine.host
        host = f" CPU {h['cpu']:.0f}% of {h['cores']:.0f} · RAM {draw.size(h['used'])}/{draw.size(h['total'])} · " if h else " "
        host += f"disk {draw.size(h['disk'])} free · " if h else ""
        host += ("GPU n/a · " if machine.gpu_note else "") + f"poll {1000 * self.app.poll_seconds:.0f} ms"
        if height == 1:
            short = [f" GPU{g['index']} {g['percent']}% {draw.size(g['used'])}/{draw.size(g['total'])}" for g in machine.gpus]
            return [[(fit("".join(short) + host, width), "dim")]]
        return [[(fit(text, width), "dim")] for text in [*lines[: height - 1], host]]

    # -- curves

    def drawn(self) -> list[tuple[Run, str, str]]:
        """The runs whose curves are shown, the one at the cursor last, so on top."""
        here = self.run_now()
        runs = [r for name in self.app.overlay if (r := self.app.store.runs.get(name))] or ([here] if here else [])
        runs = [r for r in runs if r is not here] + ([here] if here in runs else [])
        marks = [(r, *self.app.overlay_mark(r)) for r in runs]
        return [(r, style or f"s{color_index(r.name, ())}", letter) for r, letter, style in marks]

    def charts(self, width: int, height: int) -> list[Line]:
        drawn, metric, curves = self.drawn(), self.app.metric, self.app.curves
        if not drawn:
            return [[(" curves of the runs appear here", "dim")]]
        for run, _, _ in drawn:
            self.app.want(run)
        if not any(metric in pages.metrics(r) for r, _, _ in drawn):
            metric = next((m for r, _, _ in drawn for m in pages.metrics(r)), metric)
        legend: Line = []
        for run, style, letter in drawn:
            has = metric in pages.metrics(run)
            name = f" ▌{letter}{' ' if letter else ''}{self.app.short(run)}" + ("" if has else " (has none)")
            legend.append((name, style if has else "dim"))
        legends = [legend] if draw.width_of(legend) <= width else [[part] for part in legend][: max(1, height // 5)]
        if len(legends) > 1 and len(legend) > len(legends):
            legends[-1] = [(f" … and {len(legend) - len(legends) + 1} more", "dim")]
        second = {"FID": "IS", "IS": "FID"}.get(metric[:3].rstrip("(-"), "") + metric[3 if metric.startswith("FID") else 2 :]
        second = second if pages.is_score(metric) and any(second in pages.metrics(r) for r, _, _ in drawn) else ""
        values = self.inspected(drawn, metric, second, width)
        room = height - len(legends) - len(values)
        two = second and room >= 20
        tall = room // 2 if two else room
        lines = list(legends)
        for name, h in ((metric, room - tall if two else tall), (second, tall)):
            if name and (two or name == metric):
                if self.app.group:
                    lines += curves.draw(curves.grouped([r for r, _, _ in drawn], name), name, width, h)
                else:
                    lines += curves.lines([d for d in drawn if name in pages.metrics(d[0])], name, width, h)
        if self.app.group:
            extra = [*pages.seeds([r for r, _, _ in drawn]), [], *pages.distances([r for r, _, _ in drawn])]
            lines = [*lines[: height - len(extra) - 1], [], *extra]
        return [crop(line, width) for line in lines + values]

    def inspected(self, drawn: list, metric: str, second: str, width: int) -> list[Line]:
        curves = self.app.curves
        if curves.inspect is None:
            return []
        ends = [pages.points(r, metric, curves.axis)[0] for r, _, _ in drawn]
        xs = [x for x in ends if len(x)]
        if not xs:
            return []
        low, high = min(float(x[0]) for x in xs), max(float(x[-1]) for x in xs)
        at = low + curves.inspect * (high - low)
        lines: list[Line] = [[(f" at {curves.axis} {human(at, 5)}", "bold"), ("  ← → move, v off", "dim")]]
        for run, style, letter in drawn[-8:]:
            texts = [f"{m} {score(pages.value_at(run, m, at, curves.axis))}" for m in (metric, second) if m]
            lines.append([(f" ▌{letter} ", style), (fit(self.app.short(run), 24) + "  " + "  ".join(texts), "")])
        return lines

    # -- actions

    def run_now(self) -> Run | None:
        key = self.query_one(Table).key
        return self.app.store.runs.get(key) if key else None

    def action_move(self, key: str) -> None:
        self.query_one(Table).move(key)

    def action_open(self) -> None:
        if run := self.run_now():
            self.app.push_screen(OneRun(run))

    def action_new(self) -> None:
        if not self.app.refuse():
            self.app.open_form()

    def action_overlay(self) -> None:
        if run := self.run_now():
            if run.name in self.app.overlay:
                del self.app.overlay[run.name]
            else:
                self.app.lay_over(run)
            self.query_one(Table).move("down")
            self.update_all()

    def action_clear(self) -> None:
        self.app.overlay.clear()
        self.update_all()

    def action_query(self) -> None:
        self.app.ask("filter", self.app.filter_text, self.app.set_filter, live=True,
                     hint="words, fid<15, is>8, fid(compact)<2, state=running, method=eagan, tag:paper, seed=3, any flag, /regex/, -not")  # fmt: skip

    def action_sort(self) -> None:
        keys = ["state", "name", *(k for _, _, k in getattr(self, "spots", [])[1:])]
        self.app.sort = keys[(keys.index(self.app.sort) + 1) % len(keys)] if self.app.sort in keys else keys[0]
        self.app.reverse = False
        self.update_all()

    def action_reverse(self) -> None:
        self.app.reverse = not self.app.reverse
        self.update_all()

    def action_metric(self) -> None:
        found = list(dict.fromkeys(m for r, _, _ in self.drawn() for m in pages.metrics(r)))
        if found:
            self.app.metric = found[(found.index(self.app.metric) + 1) % len(found)] if self.app.metric in found else found[0]
        self.update_all()

    def action_group(self) -> None:
        self.app.group = not self.app.group
        self.update_all()

    def action_hide(self) -> None:
        if run := self.run_now():
            self.app.hidden ^= {run.name}
            self.update_all()

    def action_hidden(self) -> None:
        self.app.show_hidden = not self.app.show_hidden
        self.update_all()

    def action_pin(self) -> None:
        if run := self.run_now():
            self.app.write_tags(run, pinned=not run.pinned)

    def action_tags(self) -> None:
        if (run := self.run_now()) and not self.app.refuse():
            text = " ".join(run.labels) + (f" | {clean(run.tags.get('note'))}" if run.tags.get("note") else "")

            def done(text: str) -> str:
                tags, _, note = text.partition("|")
                self.app.write_tags(run, tags=list(dict.fromkeys(tags.split())), note=note.strip())
                return ""

            self.app.ask("tags | note", text, done, hint=f"of {run.name}: words, then | and a note")

    def action_compare(self) -> None:
        runs = [r for name in self.app.overlay if (r := self.app.store.runs.get(name))]
        here = self.run_now()
        if len(runs) == 1 and here and here is not runs[0]:
            runs.append(here)
        if len(runs) < 2:
            self.app.notify("overlay two runs with space first, or one and put the cursor on the other", severity="warning")
        else:
            self.app.push_screen(Compare(runs[0], runs[1]))

    def csv(self) -> str:
        return report.metrics_csv([r for r, _, _ in self.drawn()])

    def exported(self) -> list[Run]:
        return [r for name in self.app.overlay if (r := self.app.store.runs.get(name))] or self.app.listed()

    def copied(self) -> str:
        run = self.run_now()
        return str(run.path) if run else ""


# ---- one run ----------------------------------------------------------------------------------------------------------

TABS = ("charts", "log", "samples", "architecture", "search", "config")


class OneRun(Page):
    """Everything about one run in six tabs; `,` and `.` turn all of them back to an earlier step."""

    BINDINGS: ClassVar = [
        Binding("escape", "back", "back"),
        *(Binding(str(i), f"tab('{t}')", t, show=False) for i, t in enumerate(TABS, 1)),
        Binding("comma", "scrub(-1)", "earlier: an earlier step in all tabs"),
        Binding("full_stop", "scrub(1)", "later: a later step, past the last now"),
        Binding("asterisk", "best", "the step of the lowest FID", show=False),
        Binding("left_square_bracket", "pick(-1)", "previous: cell, edge or individual"),
        Binding("right_square_bracket", "pick(1)", "next: cell, edge or individual"),
        Binding("o", "other", "other: generator or discriminator, log or output, axes"),
        Binding("plus", "size(1)", "fewer, larger samples", show=False),
        Binding("minus", "size(-1)", "more, smaller samples", show=False),
        Binding("f", "follow", "follow the log"),
        Binding("slash", "find", "search"),
        Binding("n", "match(1)", "next match"),
        Binding("N", "match(-1)", "previous match", show=False),
        Binding("ampersand", "only", "only: lines that match"),
        Binding("exclamation_mark", "trouble", "next error"),
        Binding("ctrl+g", "line", "go to a line", show=False),
        *ACTS,
        *CURVES,
        *MOVES,
    ]
    USE: ClassVar = {  # in which tabs a key means something; others: in all
        **dict.fromkeys(("metric", "ema", "log", "axis", "zoom", "band", "inspect"), ("charts",)),
        **dict.fromkeys(("follow", "find", "match", "only", "trouble", "line"), ("log",)),
        **{"size": ("samples",), "pick": ("architecture", "search"), "other": ("log", "architecture", "search")},
        **dict.fromkeys(("scrub", "best"), ("charts", "samples", "architecture", "search")),
    }

    def __init__(self, run: Run, tab: str = "charts") -> None:
        super().__init__()
        self.run, self.tab = run, tab
        self.view = pages.View()
        self.first = 0  # of the charts shown
        self.across = 8
        self.wants_output = False
        self.varieties: dict[Path, float | None] = {}

    def body(self) -> ComposeResult:
        yield Doc(lambda w, h: pages.header(self.run, w), id="head")
        yield Doc(self.tabs, base="bar", id="tabs")
        yield Doc(self.content, id="content")
        yield LogView(id="log")

    def on_mount(self) -> None:
        super().on_mount()
        self.app.want(self.run)
        self.action_tab(self.tab)

    def changed(self, names: set[str]) -> None:
        if self.run.name in self.app.store.runs:
            self.run = self.app.store.runs[self.run.name]
        self.update("head", "tabs")
        if self.tab == "log":
            self.app.safely("log", self.query_one(LogView).tick)
        elif self.run.name in names:
            self.update("content")

    def run_now(self) -> Run | None:
        return self.run

    def offered(self, binding: Binding) -> bool:
        use = self.USE.get(binding.action.split("(")[0])
        return binding.show and (use is None or self.tab in use)

    def check_action(self, action: str, parameters: tuple) -> bool | None:
        return self.tab in self.USE.get(action, (self.tab,))

    # -- tabs

    def titles(self) -> list[str]:
        search = pages.TITLES.get(self.run.search.kind, "Search")
        return ["Charts", "Log", "Samples", "Architecture", search, "Config"]

    def tabs(self, width: int, _: int) -> list[Line]:
        line: Line = [(" ", "")]
        for i, title in enumerate(self.titles(), 1):
            line.append(
                (
                    f"[{i} {title}] " if TABS[i - 1] == self.tab else f" {i} {title}  ",
                    "bold key" if TABS[i - 1] == self.tab else "",
                )
            )
        right = f"as of step {human(self.view.at)} · . later " if self.view.at is not None else ""
        if self.tab == "log":
            right = self.query_one(LogView).status + " "
        if self.run.name not in self.app.store.runs:
            right = "this directory is gone "
        if not self.run.loaded:
            right = "reading… "
        room = width - draw.width_of(line) - draw.cell_len(right)
        return [crop([*line, (" " * max(1, room), ""), (right, "warn" if self.view.at is not None else "dim")], width)]

    def on_click(self, event: events.Click) -> None:
        if event.widget is self.query_one("#tabs", Doc):
            at = 1
            for name, title in zip(TABS, self.titles(), strict=True):
                at += len(title) + 5
                if event.x < at:
                    self.action_tab(name)
                    return

    def action_tab(self, tab: str) -> None:
        self.tab = tab
        log, content = self.query_one(LogView), self.query_one("#content", Doc)
        log.display, content.display = tab == "log", tab != "log"
        content.top = 0
        if tab == "log":
            self.open_log()
        self.refresh_bindings()
        self.call_after_refresh(self.update_all)

    def open_log(self) -> None:
        log = self.query_one(LogView)
        path = self.run.path / "log.txt"
        if self.wants_output or not path.exists():
            path = self.run.output
        if log.log_file is None or log.log_file.path != path:
            log.open(Log(path))

    def content(self, width: int, height: int) -> list[Line]:
        page = {"charts": self.charts, "samples": self.samples, "config": self.config}.get(self.tab)
        if page:
            return page(width, height)
        if self.tab == "architecture":
            return pages.architecture(self.run, width, height, self.view)
        return pages.search(self.run, width, height, self.view)

    def sets(self) -> list[tuple[str, ...]]:
        """The charts of this run: metrics that belong into one are together."""
        found = pages.metrics(self.run)
        together = [("loss/g", "loss/d"), ("entropy G", "entropy D"), ("flips G", "flips D"), ("reward", "baseline")]
        together.append(("loss/rec", "loss/mean_image"))
        made: list[tuple[str, ...]] = []
        for metric in found:
            group = next((g for g in together if metric in g), (metric,))
            group = tuple(m for m in group if m in found)
            if group not in made:
                made.append(group)
        rank = {"entropy G": 3, "reward": 3, "front": 8, "perf/img_s": 9}
        return sorted(
            made,
            key=lambda g: (
                0 if g[0].startswith("FID") else 1 if g[0].startswith("IS") else rank.get(g[0], 4 if g[0] != "loss/g" else 2)
            ),
        )

    def charts(self, width: int, height: int) -> list[Line]:
        sets = self.sets()
        if not sets:
            return [[(" no metrics yet" if self.run.loaded else " reading…", "dim")]]
        across = 2 if width >= 100 else 1
        down = max(1, min(3, (height - 1) // 12))
        first = self.first % len(sets)
        shown = [sets[(first + k) % len(sets)] for k in range(min(across * down, len(sets)))]
        down = -(-len(shown) // across)
        strip = pages.health(self.run, self.variety_history())
        tall = (height - bool(strip)) // down
        style = f"s{color_index(self.run.name, ())}"
        axis_marks = (
            tuple(s for s, _ in self.run.columns.stages[1:])
            if self.app.curves.axis == "step" and len(self.run.columns.stages) < 12
            else ()
        )
        lines: list[Line] = []
        for row in range(down):
            blocks = []
            for group in shown[row * across : (row + 1) * across]:
                cursor = self.view.at if self.app.curves.axis == "step" else None
                w = (width - 2) // 2 if across == 2 else width
                blocks.append(self.app.curves.lines([(self.run, style, "")], group[0], w, tall, axis_marks, cursor, group[1:]))
            lines += draw.beside(blocks[0], blocks[1], (width - 2) // 2) if len(blocks) > 1 else blocks[0]
        return [*([strip] if strip else []), *lines]

    def variety_history(self) -> list[float | None]:
        """How different the samples are: of the first, the middle and the last grid."""
        files = [p for _, p in self.run.files("samples", ".png")]
        wanted = list(dict.fromkeys([*files[:1], *files[len(files) // 2 :][:1], *files[-1:]]))
        for path in wanted:
            if path not in self.varieties:
                try:
                    self.varieties[path] = draw.variety(draw.open_image(path))
                except ValueError:
                    self.varieties[path] = None
        return [self.varieties[p] for p in wanted]

    def samples(self, width: int, height: int) -> list[Line]:
        return sample_lines(self.run, self.view.at, width, height, self.across, self.app.images)

    def config(self, width: int, _: int) -> list[Line]:
        preset = clean(self.run.config.get("preset"))
        script = next((s for s in self.app.scripts()[0] if s.path.name == self.run.script), None)
        return pages.configuration(self.run, width, script.defaults(preset) if script else None)

    # -- actions

    def metric_now(self) -> str:
        sets = self.sets()
        return sets[self.first % len(sets)][0] if sets else ""

    def action_back(self) -> None:
        if self.view.at is not None:
            self.view.at = None
            self.update_all()
        else:
            self.app.pop_screen()

    def action_move(self, key: str) -> None:
        if self.tab == "log":
            self.query_one(LogView).move(key)
            self.update("tabs")
        else:
            self.query_one("#content", Doc).move(key)

    def action_metric(self) -> None:
        self.first += 1
        self.update_all()

    def action_sideways(self, by: int) -> None:
        if self.tab == "log":
            self.query_one(LogView).sideways(8 * by)
            self.update("tabs")
        else:
            super().action_sideways(by)

    def moments(self) -> list[float]:
        """Steps at which the open tab has something."""
        run = self.run
        steps: dict[str, Callable[[], list[float]]] = {
            "samples": lambda: [s for s, _ in run.files("samples", ".png")],
            "architecture": lambda: [s for s, _ in run.files("genotypes", ".json")],
            "search": lambda: list(run.search.steps),
            "charts": lambda: [e["step"] for e in run.columns.evals],
        }
        return sorted(set(steps[self.tab]()))

    def action_scrub(self, by: int) -> None:
        steps = self.moments()
        now = self.view.at
        if by < 0:
            earlier = [s for s in steps if now is None or s < now]
            if now is None and earlier and earlier[-1] == steps[-1]:
                earlier = earlier[:-1] or earlier
            self.view.at = earlier[-1] if earlier else now
        else:
            self.view.at = next((s for s in steps if now is not None and s > now), None)
        self.update_all()

    def action_best(self) -> None:
        best = self.run.best()
        if best:
            self.view.at = best["step"]
            self.update_all()

    def action_pick(self, by: int) -> None:
        if self.tab == "architecture":
            self.view.cell += by
        else:
            self.view.pick += by
        self.update_all()

    def action_other(self) -> None:
        if self.tab == "log":
            self.wants_output = not self.wants_output
            self.open_log()
        elif self.tab == "search" and self.run.search.kind == "evolution":
            self.view.axes += 1
        else:
            self.view.net = "D" if self.view.net == "G" else "G"
        self.update_all()

    def action_size(self, by: int) -> None:
        self.across = max(1, min(8, self.across // 2 if by > 0 else self.across * 2))
        self.update_all()

    # -- the log

    def action_follow(self) -> None:
        self.query_one(LogView).toggle_follow()
        self.update("tabs")

    def action_find(self) -> None:
        log = self.query_one(LogView)

        def done(pattern: str) -> str:
            log.pattern = pattern
            return self.jump(pattern, 1, start=log.number(log.top) - 1 if len(log) else -1) if pattern else ""

        self.app.ask("search the log", log.pattern, done, hint="a regular expression; n next, N previous")

    def action_match(self, by: int) -> None:
        log = self.query_one(LogView)
        if log.pattern and (problem := self.jump(log.pattern, by, log.hit)):
            self.app.notify(problem, severity="warning", markup=False)

    def action_trouble(self) -> None:
        log = self.query_one(LogView)
        problem = self.jump(r"[Ee]rror|ERROR|Traceback|[Ff]ailed|\bnan\b|NaN|diverged", 1, log.hit)
        if problem:
            self.app.notify("no error in this log", markup=False)

    def jump(self, pattern: str, by: int, start: int) -> str:
        """Go to the next or previous line that matches, around the ends. Returns what is wrong, or nothing."""
        log = self.query_one(LogView)
        try:
            hits = log.log_file.matching(pattern) if log.log_file else []
        except ValueError as e:
            return clean(e, 100)
        if log.shown is not None:
            hits = [h for h in hits if h in set(log.shown)]
        if not hits:
            return f"nothing matches {pattern}"
        after = [h for h in hits if h > start] if by > 0 else [h for h in hits if h < start]
        log.show_line((after or hits)[0 if by > 0 else -1])
        self.update("tabs")
        return ""

    def action_only(self) -> None:
        log = self.query_one(LogView)

        def done(pattern: str) -> str:
            if not pattern:
                log.set_filter("", None)
                self.update("tabs")
                return ""
            try:
                lines = log.log_file.matching(pattern) if log.log_file else []
            except ValueError as e:
                return clean(e, 100)
            log.set_filter(pattern, lines)
            self.update("tabs")
            return ""

        self.app.ask("only: lines that match", log.filter, done, hint="a regular expression; empty: all lines")

    def action_line(self) -> None:
        log = self.query_one(LogView)

        def done(text: str) -> str:
            if not text.strip().isdecimal() or not 0 < int(text) <= len(log.log_file or ()):
                return f"a number from 1 to {len(log.log_file or ())}"
            log.show_line(int(text) - 1)
            return ""

        self.app.ask("go to line", "", done)

    def csv(self) -> str:
        return report.metrics_csv([self.run])

    def exported(self) -> list[Run]:
        return [self.run]

    def copied(self) -> str:
        if self.tab in ("architecture", "search"):
            return json.dumps(self.run.genotype_at(self.view.at))
        if self.tab == "log":
            return self.query_one(LogView).text
        return clean(self.run.config.get("command"), 5000) or str(self.run.path)


def sample_lines(run: Run, at: float | None, width: int, height: int, across: int, images: bool) -> list[Line]:
    """The newest grid of samples that is not after `at`, with a line about it."""
    files = run.files("samples", ".png")
    before = [i for i, (s, _) in enumerate(files) if at is None or s <= at]
    if not before:
        return [[(" no samples" + (" yet" if not files else f" before step {human(at)}"), "dim")]]
    i = before[-1]
    step, path = files[i]
    try:
        image = draw.open_image(path)
    except ValueError as e:
        return [[(f" {path.name} cannot be shown: {e}", "bad")]]
    n, _ = draw.grid_of(image)
    facts = f" step {human(step)} · {i + 1} of {len(files)} · {image.shape[1]} x {image.shape[0]} pixels"
    facts += f" · {min(n, across)} of {n} a row" if n > 1 else ""
    head: Line = [(facts, "bold"), ("   + - size, , . step, * best", "dim")]
    if not images:
        return [head, [], [(f" no colours here: open {path}", "dim")]]
    if width < 60:
        head = [(f" step {human(step)}", "bold")]
    return [crop(head, width), *draw.half_blocks(image, width - 1, height - 1, across)]


# ---- two runs ---------------------------------------------------------------------------------------------------------


class Compare(Page):
    """Two runs side by side: curves, samples, differences of arguments, genotypes, sizes and sources."""

    BINDINGS: ClassVar = [
        Binding("escape", "back", "back"),
        Binding("p", "sources", "differences of the sources"),
        Binding("comma", "scrub(-1)", "earlier: an earlier step"),
        Binding("full_stop", "scrub(1)", "later: a later step, past the last now"),
        Binding("s", "swap", "swap A and B"),
        *CURVES,
        *MOVES,
    ]

    def __init__(self, a: Run, b: Run) -> None:
        super().__init__()
        self.a, self.b, self.view, self.sources, self.metric = a, b, pages.View(), False, ""

    def body(self) -> ComposeResult:
        yield Doc(self.top_line, base="bar", id="top")
        yield Doc(self.content, id="content")

    def on_mount(self) -> None:
        super().on_mount()
        self.app.want(self.a)
        self.app.want(self.b)

    def changed(self, names: set[str]) -> None:
        if names & {self.a.name, self.b.name}:
            self.update("top", "content")

    def top_line(self, width: int, _: int) -> list[Line]:
        line: Line = [(" compare ", "bold"), ("▌A ", "s0"), (self.a.name, "bold"), ("  ▌B ", "s1"), (self.b.name, "bold")]
        line += [(f"   as of step {human(self.view.at)}", "warn")] if self.view.at is not None else []
        return [crop(line, width)]

    def common(self) -> list[str]:
        found = [m for m in pages.metrics(self.a) if m in pages.metrics(self.b)]
        return found or pages.metrics(self.a) or [""]

    def metric_now(self) -> str:
        return self.metric if self.metric in self.common() else self.common()[0]

    def content(self, width: int, height: int) -> list[Line]:
        if self.sources:
            return pages.source_diff(self.a, self.b)
        tall = max(8, min(16, height // 2))
        wide = width if width < 100 else width * 3 // 5
        drawn = [(self.a, "s0", "A"), (self.b, "s1", "B")]
        cursor = self.view.at if self.app.curves.axis == "step" else None
        chart = self.app.curves.lines(drawn, self.metric_now(), wide, tall, cursor=cursor)
        sides = []
        half = (width - wide - 4) // 2 if width >= 100 else (width - 3) // 2
        for run in (self.a, self.b):
            across = 4 if half >= 30 else 2
            sides.append([crop(line, half) for line in sample_lines(run, self.view.at, half, tall, across, self.app.images)])
        pictures = draw.beside(sides[0], sides[1], half, " ")
        lines = draw.beside(chart, pictures, wide) if width >= 100 else [*chart, *pictures]
        return [*lines, [], *pages.compare(self.a, self.b, width, self.view)]

    def action_back(self) -> None:
        if self.sources:
            self.action_sources()
        else:
            self.app.pop_screen()

    def action_sources(self) -> None:
        self.sources = not self.sources
        self.query_one("#content", Doc).top = 0
        self.update_all()

    def action_swap(self) -> None:
        self.a, self.b = self.b, self.a
        self.update_all()

    def action_metric(self) -> None:
        found = self.common()
        self.metric = found[(found.index(self.metric_now()) + 1) % len(found)]
        self.update_all()

    def action_move(self, key: str) -> None:
        self.query_one("#content", Doc).move(key)

    def action_scrub(self, by: int) -> None:
        steps = sorted(
            {s for r in (self.a, self.b) for s, _ in r.files("samples", ".png")}
            | {e["step"] for r in (self.a, self.b) for e in r.columns.evals}
        )
        now = self.view.at
        if by < 0:
            self.view.at = next((s for s in reversed(steps) if now is None or s < now), now)
        else:
            self.view.at = next((s for s in steps if now is not None and s > now), None)
        self.update_all()

    def csv(self) -> str:
        return report.metrics_csv([self.a, self.b])

    def exported(self) -> list[Run]:
        return [self.a, self.b]

    def copied(self) -> str:
        lines = pages.compare(self.a, self.b, 100, self.view)
        return "\n".join(draw.plain(line) for line in lines)


# ---- the launch form --------------------------------------------------------------------------------------------------


class Form(Page):
    """A new run: any script's options by panel, checked as they are typed, and the command that they make."""

    BINDINGS: ClassVar = [
        Binding("ctrl+r", "go", "launch"),
        Binding("enter", "edit", "change"),
        Binding("space,right", "cycle(1)", "next choice"),
        Binding("left", "cycle(-1)", "previous choice", show=False),
        Binding("slash", "find", "find an option"),
        Binding("n", "next", "next option found", show=False),
        Binding("u", "undo", "value of the preset"),
        Binding("ctrl+y", "copy", "copy the command"),
        Binding("p", "paste", "paste a command"),
        Binding("escape", "back", "back"),
        *MOVES,
    ]

    def __init__(self, script: launch.Script, values: dict[str, Any], gpu: str = "", about: str = "") -> None:
        super().__init__()
        self.script, self.about = script, about
        self.texts = {name: o.write(values.get(name, o.default)) for name, o in script.options.items()}
        self.seeds = self.texts.get("seed", "0")
        self.gpu, self.wait, self.need, self.after = gpu, "now", "8", ""
        self.cursor, self.found = 0, ""

    def body(self) -> ComposeResult:
        yield Doc(self.top_line, base="bar", id="top")
        yield Table(id="options")
        yield Doc(self.foot, id="foot")

    def changed(self, names: set[str]) -> None:
        self.app.safely("form", self.fill)
        self.update("top", "foot")

    # -- rows: name, text, kind of what is chosen before the options, then the options by panel

    def rows(self) -> list[tuple[str, str]]:
        """(key, title) of every row."""
        first = [("script", "script"), ("preset", "preset"), ("seeds", "seeds"), ("wait", "start"), ("gpu", "GPU")]
        first += [("need", "GiB free")] if self.wait == "gpu" else [("after", "after run")] if self.wait == "after" else []
        rest = [(f"-{n}", n) for n in self.script.options if n not in ("preset", "seed", "resume", "dry_run")]
        return [r for r in first if r[0] != "preset" or "preset" in self.script.options] + rest

    def value(self, key: str) -> str:
        if key.startswith("-"):
            return self.texts[key[1:]]
        return {"script": self.script.path.name, "preset": self.texts.get("preset", ""), "seeds": self.seeds, "wait": self.wait,
                "gpu": self.gpu or "any", "need": self.need, "after": self.after or "(choose)"}[key]  # fmt: skip

    def choices(self, key: str) -> list[str]:
        if key == "script":
            return [s.path.name for s in self.app.scripts()[0]]
        if key == "preset":
            return list(self.script.presets)
        if key == "wait":
            return ["now", "gpu", "after"]
        if key == "gpu":
            return ["any", *(str(g["index"]) for g in self.app.machine.gpus)]
        if key == "after":
            return [r.name for r in self.app.store.ordered() if r.live or r.state == "queued"]
        option = self.script.options.get(key[1:]) if key.startswith("-") else None
        if option is None:
            return []
        return ["false", "true"] if option.kind == "bool" else list(option.choices)

    def problems(self) -> dict[str, str]:
        """What is wrong, by row."""
        wrong = {}
        for name, text in self.texts.items():
            try:
                self.script.options[name].read(text)
            except ValueError as e:
                wrong[f"-{name}"] = str(e)
        wrong.pop("-seed", None)
        try:
            if launch.seeds(self.seeds) and "seed" in self.script.options:
                for seed in launch.seeds(self.seeds):
                    self.script.options["seed"].read(str(seed))
        except ValueError as e:
            wrong["seeds"] = str(e)
        if self.wait == "gpu":
            if not self.app.machine.gpus:
                wrong["wait"] = "no GPU can be asked here; start now or after a run"
            try:
                if not 0 < float(self.need) < 10_000:
                    raise ValueError
            except ValueError:
                wrong["need"] = "must be a number of GiB"
        if self.wait == "after" and self.after not in self.choices("after"):
            wrong["after"] = "must be a run that has not ended"
        return wrong

    def values(self, seed: int) -> dict[str, Any]:
        made = {name: o.read(self.texts[name]) for name, o in self.script.options.items() if name != "seed"}
        return made | ({"seed": seed} if "seed" in self.script.options else {})

    def command(self, seed: int | None = None) -> str:
        try:
            seed = launch.seeds(self.seeds)[0] if seed is None else seed
            words = launch.command(self.script, self.values(seed))
        except ValueError:
            return ""
        device = f"CUDA_VISIBLE_DEVICES={self.gpu} " if self.gpu else ""
        return device + "python " + shlex.join(words)

    # -- what is shown

    def top_line(self, width: int, _: int) -> list[Line]:
        wrong = len(self.problems())
        text = f" New run: {self.script.about}" if not self.about else f" {self.about}"
        right = draw.count(wrong, "problem") + " " if wrong else "ready: ctrl+r launches "
        return [[(fit(text, width - len(right)), "bold"), (right, "bad" if wrong else "good")]]

    def fill(self) -> None:
        table = self.query_one(Table)
        width, wrong = table.size.width, self.problems()
        defaults = self.script.defaults(self.texts.get("preset", ""))
        rows: list[tuple[str, Line]] = []
        value_width = max(14, min(30, width // 4))
        panel = ""
        for key, title in self.rows():
            option = self.script.options.get(key[1:]) if key.startswith("-") else None
            changed = option and option.write(defaults.get(option.name)) != self.texts[option.name]
            about = wrong.get(key) or (option.describe() if option else self.explain(key))
            here = option.panel if option else "Start"
            tag = here if here != panel else ""
            panel = here
            rows.append((key, [
                (f" {fit(tag, 7)}", "dim"),
                (fit(title, 17) + " ", ""),
                (fit((self.value(key) or "—") + (" *" if changed else ""), value_width) + " ", "bad" if key in wrong else "warn bold" if changed else "key"),
                (("✗ " if key in wrong else "") + about, "bad" if key in wrong else "dim"),
            ]))  # fmt: skip
        table.show(
            [
                (
                    f"         option            {fit('value', value_width)} {'range' if width < 90 else 'type and range; * differs from the preset'}",
                    "bold",
                )
            ],
            rows,
        )

    def explain(self, key: str) -> str:
        return {"script": "← → another one", "preset": "named values of the script", "seeds": "3, 0-4 or 0,2,7: a run each",
                "wait": "now | when a GPU is free | after another run", "gpu": "CUDA_VISIBLE_DEVICES", "need": "of GPU memory before it starts",
                "after": "← → a run that has not ended"}[key]  # fmt: skip

    def foot(self, width: int, height: int) -> list[Line]:
        key = self.query_one(Table).key or "script"
        option = self.script.options.get(key[1:]) if key.startswith("-") else None
        lines: list[Line] = [[("─" * width, "faint")]]
        text = f"{option.flag}: {option.help}" if option else self.explain(key)
        lines += [[(" " + part, "")] for part in draw.wrapped(text.split(" "), width - 2, " ")[:2]]
        try:
            many = len(launch.seeds(self.seeds))
        except ValueError:
            many = 0
        peak, seconds, n = launch.similar(self.app.store.ordered(), self.script.path.name, self.texts.get("preset", ""))
        facts = [draw.count(many, "run")] + (
            [f"{n} like it took {duration(seconds)}, peak memory {draw.size(peak)}"] if n else []
        )
        lines.append([(" " + " · ".join(facts), "dim")])
        command = self.command() or "the command appears when every value can be read"
        parts = draw.wrapped(command.split(" "), width - 5, " ")
        room = max(1, height - len(lines))
        if len(parts) > room:
            parts = [*parts[: room - 1], "…" + parts[-1][: width - 6]]
        lines += [
            [(" $ " if i == 0 else "   ", "dim"), (p + (" \\" if i < len(parts) - 1 else ""), "key")]
            for i, p in enumerate(parts)
        ]
        return lines

    # -- actions

    def set(self, key: str, text: str) -> None:
        if key == "script":
            script = next(s for s in self.app.scripts()[0] if s.path.name == text)
            kept = {n: t for n, t in self.texts.items() if n in script.options and n in ("dataset", "data_dir", "device")}
            self.script, self.about = script, ""
            self.texts = {name: o.write(o.default) for name, o in script.options.items()} | kept
            self.app.place(self.texts, script)
        elif key == "preset":
            before = self.script.defaults(self.texts["preset"])
            changed = {n for n, o in self.script.options.items() if o.write(before.get(n)) != self.texts[n]}
            for name, value in self.script.defaults(text).items():
                if name not in changed:
                    self.texts[name] = self.script.options[name].write(value)
            self.texts["preset"] = text
        elif key == "gpu":
            self.gpu = "" if text == "any" else text
        elif key.startswith("-"):
            self.texts[key[1:]] = text
        else:
            setattr(self, key, text)
        self.update_all()

    def action_move(self, key: str) -> None:
        self.query_one(Table).move(key)

    def on_table_picked(self, event: Table.Picked) -> None:
        if event.entered:
            self.action_edit()
        self.update("foot")

    def action_cycle(self, by: int) -> None:
        key = self.query_one(Table).key
        choices = self.choices(key) if key else []
        if choices:
            now = self.value(key)
            self.set(key, choices[(choices.index(now) + by) % len(choices)] if now in choices else choices[0])

    def action_edit(self) -> None:
        key = self.query_one(Table).key
        if key is None:
            return
        if self.choices(key):
            self.action_cycle(1)
            return
        option = self.script.options.get(key[1:])

        def done(text: str) -> str:
            self.set(key, text)
            return self.problems().get(key, "")

        self.app.ask(key.removeprefix("-"), self.value(key), done, hint=option.describe() if option else self.explain(key))

    def action_undo(self) -> None:
        key = self.query_one(Table).key or ""
        if key.startswith("-"):
            default = self.script.defaults(self.texts.get("preset", "")).get(key[1:])
            self.set(key, self.script.options[key[1:]].write(default))

    def action_find(self) -> None:
        def done(text: str) -> str:
            self.found = text.lower()
            return "" if not text or self.action_next() else f"no option has {text} in its name or help"

        self.app.ask("find an option", "", done, hint="part of its name or help; n: the next one")

    def action_next(self) -> bool:
        table, rows = self.query_one(Table), self.rows()
        texts = [f"{title} {self.script.options[k[1:]].help if k.startswith('-') else ''}".lower() for k, title in rows]
        order = [*range(table.cursor + 1, len(rows)), *range(table.cursor + 1)]
        hits = sorted((i for i in order if self.found in texts[i]), key=lambda i: self.found not in rows[i][1])
        if hits and self.found:
            table.go(hits[0])
        return bool(hits)

    def action_copy(self) -> None:
        self.app.copy(self.command())

    def action_paste(self) -> None:
        def done(text: str) -> str:
            try:
                script, values, gpu = launch.parse_command(text, self.app.scripts()[0])
            except ValueError as e:
                return clean(e, 200)
            self.script, self.about, self.gpu = script, "", gpu
            self.texts = {name: o.write(values[name]) for name, o in script.options.items()}
            self.seeds = self.texts.get("seed", "0")
            self.update_all()
            return ""

        self.app.ask("command line", "", done, hint="paste it here: python eagan.py --preset smoke …")

    def action_go(self) -> None:
        wrong = self.problems()
        if wrong:
            key = (
                next(k for k, _ in self.rows() if k in wrong) if set(wrong) & {k for k, _ in self.rows()} else next(iter(wrong))
            )
            self.app.notify(f"{key.removeprefix('-')}: {wrong[key]}", severity="error", markup=False)
            for i, (k, _) in enumerate(self.rows()):
                if k == key:
                    self.query_one(Table).go(i)
            return
        started = 0
        for seed in launch.seeds(self.seeds):
            values = self.values(seed)
            what = launch.Launch(
                self.script.path, launch.command(self.script, values), values, self.app.store.root,
                self.wait, float(self.need) if self.wait == "gpu" else 0.0, self.after, self.gpu,
            )  # fmt: skip
            try:
                launch.launch(what)
            except OSError as e:
                self.app.notify(f"not started: {e}", severity="error", markup=False)
                break
            started += 1
        if started:
            word = "started" if self.wait == "now" else "queued"
            self.app.notify(f"{draw.count(started, 'run')} {word}; quitting does not end them", markup=False)
            self.app.wake.set()
            self.app.pop_screen()

    def action_back(self) -> None:
        self.app.pop_screen()

    def copied(self) -> str:
        return self.command()


# ---- dialogs ----------------------------------------------------------------------------------------------------------


class Ask(ModalScreen):
    """One line of text. done(text) returns what is wrong with it, or nothing; live: also called while it is typed."""

    BINDINGS: ClassVar = [Binding("escape", "dismiss", "cancel")]

    def __init__(self, label: str, text: str, done: Callable[[str], str], hint: str = "", live: bool = False) -> None:
        super().__init__()
        self.label, self.value, self.done, self.hint, self.live, self.wrong = label, text, done, hint, live, ""

    def compose(self) -> ComposeResult:
        with Vertical(id="ask"):
            yield Doc(self.lines, base="bar", id="label")
            yield Input(self.value, compact=True, select_on_focus=False)

    def lines(self, width: int, _: int) -> list[Line]:
        return [[(f" {self.label}", "bold"), (f"   {self.wrong or self.hint}", "bad" if self.wrong else "dim")]]

    def on_input_changed(self, event: Input.Changed) -> None:
        if self.live:
            self.wrong = self.done(event.value)
            self.query_one("#label", Doc).rebuild()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.wrong = self.done(event.value)
        self.query_one("#label", Doc).rebuild()
        if not self.wrong:
            self.dismiss()


class Choose(ModalScreen):
    """A question with a key for each answer."""

    BINDINGS: ClassVar = [Binding("escape", "dismiss", "cancel")]

    def __init__(self, question: str, answers: list[tuple[str, str, Callable[[], None]]]) -> None:
        super().__init__()
        self.question, self.answers = question, answers

    def compose(self) -> ComposeResult:
        yield Doc(self.lines, base="bar", id="choose")

    def on_mount(self) -> None:
        self.query_one(Doc).styles.height = len(self.answers) + 3

    def lines(self, width: int, _: int) -> list[Line]:
        rows = [[(f"  {key}", "key"), (f"  {text}", "")] for key, text, _ in self.answers]
        return [[(f" {self.question}", "bold")], [], *rows, [("  esc", "key"), ("  no", "")]]

    def on_key(self, event: events.Key) -> None:
        for key, _, do in self.answers:
            if event.key == key:
                event.stop()
                self.dismiss()
                self.app.call_later(do)


class Help(ModalScreen):
    """Every key of the screen below, from its bindings."""

    BINDINGS: ClassVar = [Binding("escape,question_mark,q", "dismiss", "back"), *MOVES]

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.below = screen

    def compose(self) -> ComposeResult:
        yield Doc(self.lines, id="help")

    def lines(self, width: int, _: int) -> list[Line]:
        lines: list[Line] = [[(f" Keys: {type(self.below).__doc__.splitlines()[0]}", "bold")], []]
        half = width // 2 if width >= 100 else width
        for title, rows in key_groups(type(self.below)):
            lines.append([(f" {title}", "bold key")])
            made = [[(f"  {fit(key, 12)}", "key"), (fit(text, half - 15), "")] for key, text in rows]
            cut = -(-len(made) // 2)
            lines += draw.beside(made[:cut], made[cut:], half) if width >= 100 else made
            lines.append([])
        return [
            *lines,
            *([(f" {text}", "dim")] for text in (
                "Lower-case keys never touch a process. Upper-case keys do; --readonly switches them off.",
                "Runs go on when this ends. If your logout ends them: loginctl enable-linger, or start this in tmux.",
                "States: " + "  ".join(f"{g} {s}" for s, g in pages.GLYPHS.items()),
            )),
        ]  # fmt: skip

    def action_move(self, key: str) -> None:
        self.query_one(Doc).move(key)


def key_groups(screen: type[Screen]) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(title, [(keys, what they do)])] of a screen, each binding once."""
    own = [b for b in screen.BINDINGS if b not in ACTS and b not in CURVES and b not in MOVES]
    groups = [
        ("here", own),
        ("on the run", [b for b in ACTS if b in screen.BINDINGS]),
        ("charts", [b for b in CURVES if b in screen.BINDINGS]),
    ]
    groups += [("move", [b for b in MOVES if b in screen.BINDINGS]), ("everywhere", Tui.BINDINGS)]
    return [(title, [(key_name(b.key), b.description) for b in found]) for title, found in groups if found]


def key_table() -> str:
    """The key tables of docs/tui.md."""
    parts = []
    for title, screen in (("Runs", Runs), ("One run", OneRun), ("Compare", Compare), ("Launch form", Form)):
        rows = [row for name, found in key_groups(screen) if name not in ("move", "everywhere") for row in found]
        parts.append(f"### {title}\n\n| key | what it does |\n|---|---|\n" + "".join(f"| `{k}` | {t} |\n" for k, t in rows))
    groups = dict(key_groups(Runs))
    rows = groups["move"] + groups["everywhere"]
    parts.append("### Everywhere\n\n| key | what it does |\n|---|---|\n" + "".join(f"| `{k}` | {t} |\n" for k, t in rows))
    return "\n".join(parts)


class Commands(Provider):
    """The palette: every key of this screen, every run, every metric, every theme."""

    def every(self) -> Iterator[tuple[str, str, Callable]]:
        app, screen = self.app, self.screen
        for binding in [*getattr(screen, "BINDINGS", []), *app.BINDINGS]:
            yield binding.description, key_name(binding.key), partial(screen.run_action, binding.action)
        for run in app.store.ordered():
            yield f"open {run.name}", run.state, partial(app.push_screen, OneRun(run))
        for metric in app.labels() + sorted(
            {m for r in app.store.ordered() for m in pages.metrics(r) if not pages.is_score(m)}
        ):
            yield f"chart {metric}", "", partial(app.choose_metric, metric)
        for theme in THEMES:
            yield f"theme {theme}", "", partial(app.use_theme, theme)

    async def discover(self) -> Any:
        for text, key, do in self.every():
            yield DiscoveryHit(text, do, help=key or None)

    async def search(self, query: str) -> Any:
        matcher = self.matcher(query)
        for text, key, do in self.every():
            if (found := matcher.match(text)) > 0:
                yield Hit(found, matcher.highlight(text), do, help=key or None)


# ---- the app ----------------------------------------------------------------------------------------------------------


class Tui(App):
    """Screens over one store of runs, which a thread keeps up to date."""

    TITLE = "GAN architecture search"
    COMMANDS: ClassVar = {Commands}
    CSS = """
    Screen { layers: base; }
    #tiny { display: none; height: 1fr; }
    .-tiny #tiny { display: block; }
    .-tiny #whole { display: none; }
    #whole { height: 1fr; }
    #top, #keys, #status, #tabs { height: 1; }
    #middle { height: 1fr; layout: vertical; }
    .-wide #middle, .-broad #middle { layout: horizontal; }
    #left { height: 1fr; width: 100%; }
    #charts { height: 1fr; width: 100%; }
    .-wide #left { width: 60%; height: 100%; }
    .-broad #left { width: 54%; height: 100%; }
    .-wide #charts, .-broad #charts { width: 1fr; height: 100%; }
    #table, #options, #content, #log { height: 1fr; }
    #preview, #host { display: none; }
    #host-below { height: 1; }
    .-wide.-tall #preview, .-broad.-tall #preview { display: block; height: 5; }
    .-wide.-tall #host, .-broad.-tall #host { display: block; height: 3; }
    .-wide.-tall #host-below, .-broad.-tall #host-below { display: none; }
    #head { height: 3; }
    #foot { height: 7; }
    .-tall #foot { height: 10; }
    Ask { align: center bottom; background: $background 30%; }
    #ask { height: 2; }
    #ask Doc { height: 1; }
    Choose { align: center middle; background: $background 50%; }
    #choose { width: 70; max-width: 90%; border: round $primary; }
    Help { align: center middle; background: $background 50%; }
    #help { width: 96%; height: 92%; border: round $primary; }
    """
    BINDINGS: ClassVar = [
        Binding("question_mark", "help", "help"),
        Binding("colon", "command_palette", "palette: every action, run, metric, theme"),
        Binding("x", "export", "export what is shown: CSV, Markdown, LaTeX, SVG, HTML"),
        Binding("w", "yank", "copy path, command, genotype or lines (OSC 52)"),
        Binding("ctrl+l", "redraw", "draw anew"),
        Binding("ctrl+z", "suspend_process", "suspend"),
        Binding("q", "quit", "quit; runs go on"),
    ]

    def __init__(
        self, root: Path, readonly: bool = False, look: str = "dark", scripts_dir: Path | None = None, on_finish: str = ""
    ) -> None:
        super().__init__()
        self.store = Store(root, launch.records)
        self.machine = launch.Machine(root)
        self.readonly, self.look, self.on_finish = readonly, look, on_finish
        self.scripts_dir = scripts_dir or Path(__file__).resolve().parent
        self.curves = Curves()
        self.images = "NO_COLOR" not in os.environ
        self.metric = "FID"
        self.overlay: dict[str, tuple[str, int]] = {}  # name: letter, colour
        self.hidden: set[str] = set()
        self.show_hidden = self.group = self.reverse = self.scanned = False
        self.filter_text, self.filter = "", query("")
        self.sort = "state"
        self.since: dict[str, int] = {}
        self.before: dict[str, str] = {}  # states at the last visit
        self.states: dict[str, str] = {}
        self.stopping: dict[str, float] = {}
        self.trashed: list[tuple[Path, Path]] = []
        self.wanted: dict[str, None] = {}
        self.poll_seconds, self.interval = 0.0, 1.0
        self.wake, self.leaving = threading.Event(), threading.Event()
        self.complaints: set[str] = set()
        self._scripts: tuple[float, tuple] = (0.0, ([], {}))
        self._shorts: dict[str, str] = {}

    def on_mount(self) -> None:
        self.use_theme(self.look)
        self.recall()
        self.push_screen(Runs())
        self.machine.start()
        self.call_after_refresh(threading.Thread(target=self.poll, daemon=True).start)

    # -- keeping up to date: a thread that looks once a second

    def poll(self) -> None:
        first = True
        while not self.leaving.is_set():
            began = time.perf_counter()
            try:
                names = self.store.scan() | self.store.refresh()
                if first:
                    for run in self.store.ordered():
                        run.peek()
                self.poll_seconds = time.perf_counter() - began
                for name in list(self.wanted):
                    run = self.store.runs.get(name)
                    if run and run.load(0.2):
                        names.add(name)
                if not first:
                    names |= self.load_more()
                self.call_from_thread(self.changed, names)
            except RuntimeError:
                return  # the app has ended
            except Exception as e:  # whatever a directory holds, the next second tries again
                self.complain("reading runs", e)
            first = False
            behind = any(not r.loaded for r in self.store.ordered())
            self.wake.wait(0.05 if behind else self.interval)
            self.wake.clear()

    def load_more(self) -> set[str]:
        """Read on in runs that nobody looks at: those not read yet, and of the others those that grow."""
        names, end = set(), time.perf_counter() + 0.1
        for run in self.store.ordered():
            if run.name not in self.wanted and (not run.loaded or run.live) and run.load(0.05):
                names.add(run.name)
            if time.perf_counter() > end:
                break
        return names

    def want(self, run: Run) -> None:
        """Read this run whole, before the others."""
        if run.name not in self.wanted:
            self.wanted[run.name] = None
            self.wake.set()

    def changed(self, names: set[str]) -> None:
        if not self.scanned:
            self.scanned = True
            ended = Counter(
                r.state for r in self.store.ordered() if r.name in self.before and r.state != self.before[r.name] and not r.live
            )
            self.since = dict(ended)
            if self.metric == "FID" and self.labels() and "FID" not in self.labels():
                self.metric = self.labels()[0]
        self.tell_transitions()
        self._shorts.clear()
        for name in set(self.wanted) - set(self.store.runs):
            del self.wanted[name]
        for screen in self.screen_stack:
            if isinstance(screen, Page) and screen.is_current:
                self.safely("screen", partial(screen.changed, names))

    def tell_transitions(self) -> None:
        """Say when a run ends, fails or stalls; remind of T where a stop takes long."""
        now = {r.name: r.state for r in self.store.ordered()}
        for name, state in now.items():
            old = self.states.get(name)
            if old is None or old == state:
                continue
            run = self.store.runs[name]
            if state in ("done", "failed", "stalled", "lost", "stopped"):
                bad = state in ("failed", "stalled", "lost")
                self.notify(
                    f"{run.name} {state} {run.why} {run.error}".strip(),
                    severity="warning" if bad else "information",
                    markup=False,
                )
                self.bell()
                if self.on_finish and state != "stalled":
                    env = {**os.environ, "GAN_RUN": str(run.path), "GAN_STATE": state}
                    subprocess.Popen(
                        self.on_finish, shell=True, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    )  # fmt: skip
        self.states = now
        for name, since in list(self.stopping.items()):
            run = self.store.runs.get(name)
            if run is None or not run.live:
                del self.stopping[name]
            elif time.monotonic() - since > 30:
                self.notify(
                    f"{name} still runs 30 s after the request to stop: T terminates, K kills", severity="warning", markup=False
                )
                del self.stopping[name]

    def safely(self, what: str, do: Callable[[], Any]) -> None:
        """A fault in one widget is told once and ends nothing."""
        try:
            do()
        except Exception as e:
            self.complain(what, e)

    def complain(self, what: str, error: Exception) -> None:
        text = f"{what}: {type(error).__name__}: {clean(error, 200)}"
        if text in self.complaints:
            return
        self.complaints.add(text)
        import traceback

        if not self.readonly:
            with contextlib.suppress(OSError), open(self.store.root / ".tui.log", "a") as f:
                f.write("".join(traceback.format_exception(error)))
        with contextlib.suppress(RuntimeError):
            (
                self.notify
                if threading.current_thread() is threading.main_thread()
                else partial(self.call_from_thread, self.notify)
            )(text, severity="error", markup=False)

    # -- what is shown

    def listed(self) -> list[Run]:
        """The runs of the list in their order."""
        runs = [r for r in self.store.ordered() if self.filter(r) and (self.show_hidden or r.name not in self.hidden)]
        if self.sort == "state":
            newest = sorted(runs, key=lambda r: (r.name.rpartition("-s")[2], r.name), reverse=not self.reverse)
            newest.sort(key=lambda r: STATES.index(r.state) if r.state in ("queued", *LIVE) else len(STATES))
            return sorted(newest, key=lambda r: not r.pinned)
        keys: dict[str, Callable[[Run], Any]] = {
            **{"name": lambda r: r.name, "step": lambda r: r.step, "ETA": lambda r: r.eta, "phase": lambda r: r.phase or None},
            **{"memory": lambda r: r.memory, "rate": lambda r: r.rate, "seed": lambda r: r.seed, "method": lambda r: r.method},
            "images": lambda r: number(r.last.get("n")),
        }
        return ordered(runs, keys.get(self.sort, lambda r: r.score(self.sort)), self.reverse)

    def labels(self) -> list[str]:
        """Names of the scores that some run has, FID before others, the real ones before those of other networks."""
        nets = {clean(r.last["net"], 40) for r in self.store.ordered() if r.last.get("net")}
        found = sorted({fid_label(n) for n in nets}, key=lambda x: (x != "FID", x))
        return found + sorted({fid_label(n, "IS") for n in nets}, key=lambda x: (x != "IS", x))

    def short(self, run: Run) -> str:
        """The name without its date, where that is enough to tell it from the others."""
        if not self._shorts:
            stems = Counter(_stem(r.name) for r in self.store.ordered())
            for r in self.store.ordered():
                stem = _stem(r.name)
                self._shorts[r.name] = clean(
                    stem if stems[stem] == 1 else f"{stem}-{r.name[-6:]}" if stem != r.name else stem, 200
                )
        return self._shorts.get(run.name) or clean(run.name, 200)

    def lay_over(self, run: Run) -> None:
        taken = {letter for letter, _ in self.overlay.values()}
        letter = next((x for x in LETTERS if x not in taken), "+")
        self.overlay[run.name] = (letter, color_index(run.name, [c for _, c in self.overlay.values()]))
        self.want(run)

    def overlay_mark(self, run: Run) -> tuple[str, str]:
        """(letter, style) of an overlaid run; ("", "") of another."""
        letter, color = self.overlay.get(run.name, ("", 0))
        return (letter, f"s{color}") if letter else ("", "")

    def set_filter(self, text: str) -> str:
        try:
            self.filter = query(text)
        except ValueError as e:
            return clean(e, 100)
        self.filter_text = text.strip()
        for screen in self.screen_stack:
            if isinstance(screen, Runs):
                screen.fill()
                screen.update("status", "preview", "charts")
        return ""

    def choose_metric(self, metric: str) -> None:
        self.metric = metric
        self.refresh_screens()

    def refresh_screens(self) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, Page):
                screen.update_all()

    def use_theme(self, name: str) -> None:
        self.look, self.theme = name, THEMES[name]
        use_palette(name)
        for screen in self.screen_stack:
            if isinstance(screen, Page):
                screen.restyle()
                screen.call_after_refresh(screen.update_all)

    # -- memory between visits: runs/.tui.json

    def recall(self) -> None:
        try:
            saved = parse(read_bytes(self.store.root / ".tui.json"))
        except (OSError, ValueError):
            return
        texts = lambda key: [x for x in saved.get(key) or () if isinstance(x, str)] if isinstance(saved.get(key), list) else []  # noqa: E731
        self.hidden = set(texts("hidden"))
        for name in texts("overlay")[:26]:
            self.lay_over(Run(self.store.root / name)) if Path(name).name == name else None
        if isinstance(saved.get("sort"), str):
            self.sort = saved["sort"]
        self.reverse = saved.get("reverse") is True
        states = saved.get("states")
        self.before = {k: v for k, v in states.items() if isinstance(v, str)} if isinstance(states, dict) else {}
        if saved.get("filter") and isinstance(saved["filter"], str):
            self.set_filter(saved["filter"])

    def remember(self) -> None:
        if self.readonly or not self.scanned or not self.store.root.is_dir():
            return
        saved = {"hidden": sorted(self.hidden), "overlay": list(self.overlay), "sort": self.sort, "reverse": self.reverse}
        saved |= {"filter": self.filter_text, "states": {r.name: r.state for r in self.store.ordered()}}
        with contextlib.suppress(OSError):
            tmp = self.store.root / f".tui.json.{os.getpid()}.tmp"
            tmp.write_text(json.dumps(saved))
            os.replace(tmp, self.store.root / ".tui.json")

    async def on_unmount(self) -> None:
        self.leaving.set()
        self.machine.left.set()
        self.wake.set()
        self.remember()

    # -- actions of every screen

    def action_help(self) -> None:
        if isinstance(self.screen, Page):
            self.push_screen(Help(self.screen))

    def action_redraw(self) -> None:
        self.refresh_screens()
        self.screen.refresh(layout=True)

    def ask(self, label: str, text: str, done: Callable[[str], str], hint: str = "", live: bool = False) -> None:
        self.push_screen(Ask(label, text, done, hint, live))

    def action_yank(self) -> None:
        if hasattr(self.screen, "copied"):
            self.copy(self.screen.copied())

    def copy(self, text: str) -> None:
        if text:
            self.copy_to_clipboard(text)
            first = text.split("\n")[0]
            self.notify(f"copied by OSC 52 (tmux: set -s set-clipboard on): {clean(first, 100)}", markup=False)

    def action_export(self) -> None:
        screen = self.screen
        if not hasattr(screen, "exported"):
            return
        runs = screen.exported()
        svg = self.export_screenshot(title="GAN architecture search")
        kinds = [
            ("c", "CSV: every logged value", "csv", screen.csv),
            ("m", f"Markdown: a row for each of {draw.count(len(runs), 'run')}", "md", lambda: report.markdown(runs)),
            ("l", "LaTeX: the same rows", "tex", lambda: report.latex(runs)),
            ("s", "SVG: this screen", "svg", lambda: svg),
            ("h", "HTML: a report in one file", "html", lambda: report.html_report(runs, f"Runs of {self.store.root}")),
        ]
        self.push_screen(Choose("Export", [(k, text, partial(self.export, suffix, make)) for k, text, suffix, make in kinds]))

    @work(thread=True, exclusive=True, group="export")
    def export(self, suffix: str, make: Callable[[], str]) -> None:
        """Write into exports/ of the current folder, never into runs/."""
        path = Path("exports") / f"{time.strftime('%Y%m%d-%H%M%S')}.{suffix}"
        try:
            for run in self.screen.exported() if hasattr(self.screen, "exported") else []:
                while run.load(0.5):
                    pass
            text = make()
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        except OSError as e:
            self.call_from_thread(self.notify, f"{path}: {e}", severity="error", markup=False)
            return
        self.call_from_thread(self.notify, f"wrote {path}, {draw.size(len(text))}", markup=False)

    # -- acting on runs

    def refuse(self) -> bool:
        """Say so where nothing may be changed."""
        if self.readonly:
            self.notify("read-only: nothing is started, stopped or written here", severity="warning")
        return self.readonly

    def write_tags(self, run: Run, **changes: object) -> None:
        if self.refuse():
            return
        try:
            self.store.tag(run, **changes)
        except OSError as e:
            self.notify(f"tags.json: {e}", severity="error", markup=False)
        self.refresh_screens()

    def act(self, what: str, run: Run | None) -> None:
        if self.refuse() or (run is None and what != "undo"):
            return
        try:
            getattr(self, f"do_{what}")(run)
        except (OSError, ValueError) as e:
            self.notify(f"{what}: {getattr(e, 'strerror', None) or e}", severity="error", markup=False)
        self.wake.set()

    def do_stop(self, run: Run) -> None:
        """Ask it to finish its step, save and exit: SIGINT, or a STOP file where the process is on another host."""
        keeper = get(run.record, "keeper") or {}
        if run.state == "queued":
            launch.send(keeper, signal.SIGTERM)
            self.notify(f"{run.name}: taken from the queue", markup=False)
        elif identity(run.process):
            launch.send(run.process, signal.SIGINT)
            if run.state == "paused":
                launch.send(run.process, signal.SIGCONT, family=True)
            self.stopping[run.name] = time.monotonic()
            self.notify(f"{run.name}: finishing the step, then checkpoint", markup=False)
        elif run.state == "starting" and get(run.record, "child", "pid"):
            launch.send(run.record["child"], signal.SIGINT)
        elif run.live:
            (run.path / "STOP").touch()
            self.notify(
                f"{run.name} runs on {clean(run.process.get('host'), 40) or 'another host'}: left it a STOP file", markup=False
            )
        else:
            raise ValueError(f"{run.name} is {run.state}")

    def _process(self, run: Run) -> dict:
        if not run.live:
            raise ValueError(f"{run.name} is {run.state}")
        process = run.process if identity(run.process) else get(run.record, "child") or {}
        if not identity(process):
            raise ValueError(f"{run.name} is not a process of this host; I leaves it a STOP file")
        return process

    def do_terminate(self, run: Run) -> None:
        launch.send(self._process(run), signal.SIGTERM)
        self.notify(f"{run.name}: SIGTERM sent", markup=False)

    def do_kill(self, run: Run) -> None:
        process = self._process(run)

        def kill() -> None:
            self.safely("kill", lambda: launch.send(process, signal.SIGKILL, family=True))
            self.wake.set()

        self.push_screen(Choose(f"Kill {run.name}? What is not in its checkpoint is lost.", [("y", "yes, SIGKILL now", kill)]))

    def do_pause(self, run: Run) -> None:
        process = self._process(run)
        if run.state == "paused":
            launch.send(process, signal.SIGCONT, family=True)
            self.notify(f"{run.name} goes on", markup=False)
        else:
            launch.send(process, signal.SIGSTOP, family=True)
            self.notify(f"{run.name} paused; its GPU memory stays allocated", markup=False)

    def do_resume(self, run: Run) -> None:
        if run.live or run.state == "queued":
            raise ValueError(f"{run.name} is {run.state}" + (", Z lets it go on" if run.state == "paused" else ""))
        if not any((run.path / f).exists() for f in ("checkpoint.pt", "checkpoint.prev.pt")):
            raise ValueError(f"{run.name} left no checkpoint; r runs it again")
        script = self.scripts_dir / Path(run.script).name
        if not script.is_file():
            raise ValueError(
                f"{run.script} is not in {self.scripts_dir}; by hand: {clean(run.status.get('resume_command'), 200)}"
            )
        words = [script.name, "--resume", str(run.path.resolve())]
        launch.launch(
            launch.Launch(
                script, words, {**run.args, "runs_dir": str(run.path.resolve().parent)}, self.store.root, run=run.name
            )
        )
        self.notify(f"{run.name}: going on from its checkpoint", markup=False)

    def do_trash(self, run: Run) -> None:
        original = run.path
        self.trashed.append((self.store.trash(run), original))
        self.overlay.pop(run.name, None)
        self.notify(f"{run.name} moved to .trash; U brings it back", markup=False)
        self.refresh_screens()

    def do_undo(self, _: Run | None) -> None:
        if not self.trashed:
            raise ValueError("nothing was moved to the trash")
        self.store.restore(*self.trashed[-1])
        _, original = self.trashed.pop()
        self.notify(f"{original.name} is back", markup=False)

    # -- launching

    def scripts(self) -> tuple[list[launch.Script], dict[str, str]]:
        """The scripts that can be launched, read again when one changed."""
        newest = max((p.stat().st_mtime for p in self.scripts_dir.glob("*.py")), default=0.0)
        if newest != self._scripts[0]:
            self._scripts = (newest, launch.scripts(self.scripts_dir))
        return self._scripts[1]

    def place(self, texts: dict[str, str], script: launch.Script) -> None:
        """Let the runs appear here: --runs-dir, where the script's own folder is another one."""
        if "runs_dir" in texts and (script.path.parent / texts["runs_dir"]).resolve() != self.store.root.resolve():
            texts["runs_dir"] = str(self.store.root.resolve())

    def open_form(self, run: Run | None = None, **changes: str) -> None:
        """The launch form, empty or with the arguments of a run."""
        found, broken = self.scripts()
        for name, why in broken.items():
            self.notify(f"{name} cannot be launched: {why}", severity="warning", markup=False)
        script = next((s for s in found if run and s.path.name == run.script), None)
        if run and script is None:
            self.notify(
                f"{run.script or run.name}: not among the scripts in {self.scripts_dir}", severity="error", markup=False
            )
            return
        script = script or next(iter(found), None)
        if script is None:
            self.notify(f"no scripts in {self.scripts_dir}", severity="error", markup=False)
            return
        saved = {k: v for k, v in (run.args if run else {}).items() if k in script.options and k not in ("resume", "dry_run")}
        values = (
            script.defaults(clean(saved.get("preset")) or "")
            | saved
            | {k: v for k, v in changes.items() if k in script.options}
        )
        about = (
            f"Again, with changes: {run.name}" if run and not changes else f"Train the genotype of {run.name}" if run else ""
        )
        form = Form(script, values, about=about)
        self.place(form.texts, script)
        self.push_screen(form)


def _stem(name: str) -> str:
    """A run's name without -YYYYmmdd-HHMMSS."""
    head, tail = name[:-16], name[-16:]
    return head if head and tail[0] == tail[9] == "-" and (tail[1:9] + tail[10:]).isdecimal() else name


# ---- the command ------------------------------------------------------------------------------------------------------


def main(
    runs: Annotated[Path, typer.Argument(help="Folder of run directories.")] = Path("runs"),
    plain: Annotated[bool, typer.Option("--plain", help="Print the same facts as lines of text, and exit.")] = False,
    readonly: Annotated[bool, typer.Option("--readonly", help="Start, stop and write nothing: for a shared server.")] = False,
    theme: Annotated[
        Literal["dark", "light", "colour-blind", "ansi"], typer.Option(help="ansi: the terminal's own 16 colours.")
    ] = "dark",
    filter: Annotated[str, typer.Option(help="Only these runs: cifar10 fid<15 state=running tag:paper. docs/tui.md")] = "",
    scripts: Annotated[Path | None, typer.Option(help="Folder of the scripts to launch; default: where tui.py is.")] = None,
    on_finish: Annotated[str, typer.Option(help="Shell command when a run ends; GAN_RUN and GAN_STATE tell which.")] = "",
) -> None:
    """Launch, watch, steer and compare runs in a terminal."""
    try:
        chosen = query(filter)
    except ValueError as e:
        print(f"error: --filter {e}", file=sys.stderr)
        raise typer.Exit(2) from None
    if runs.exists() and not runs.is_dir():
        print(f"error: {runs}: is a file; name a folder of run directories", file=sys.stderr)
        raise typer.Exit(2)
    if plain:
        store, machine = Store(runs, launch.records), launch.Machine(runs)
        store.scan()
        store.refresh()
        for run in store.ordered():
            while run.load(1.0):
                pass
        machine.ask_once()
        for line in report.plain_lines(store, ordered(filter_runs(store, chosen), lambda r: r.name), machine):
            print(clean(line, 2000))
        return
    app = Tui(runs, readonly, theme, scripts, on_finish)
    if filter:
        app.set_filter(filter)
    app.run()


def filter_runs(store: Store, chosen: Callable[[Run], bool]) -> list[Run]:
    return [r for r in store.ordered() if chosen(r)]


if __name__ == "__main__":
    typer.run(main)
