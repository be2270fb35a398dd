"""The screens that show runs: the list, one run, a comparison of two."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical

from ui import columns, compare, draw, genotypes, pages, report
from ui.base import ACTS, CURVES, MOVES, Choose
from ui.curves import LETTERS, is_score, metrics, seed_groups
from ui.draw import Line, crop, fit, human
from ui.files import Log, clean, number
from ui.form import Launching
from ui.pair import Compare
from ui.results import Results
from ui.runs import STATES, Run, color_index
from ui.samples import open_image, sample_at, sample_lines
from ui.state import State
from ui.view import View
from ui.widgets import BAD_LINE, Doc, LogView, Table, safely

# ---- all runs ---------------------------------------------------------------------------------------------------------


class Runs(Launching):
    """All runs: list, overlaid curves, GPUs and host."""

    BINDINGS: ClassVar = [
        Binding("n", "new", "new run"),
        Binding("space", "overlay", "overlay: add or remove this run's curves"),
        Binding("enter", "open", "open"),
        Binding("slash", "query", "filter"),
        Binding("escape", "unfilter", "show all: clear the filter", show=False),
        Binding("s", "sort", "sort: by the next column"),
        Binding("c", "compare", "compare: two overlaid runs"),
        Binding("l", "results", "results: tables over seeds of the overlaid or listed runs", show=False),
        *ACTS,
        *CURVES,
        Binding("0", "clear", "clear the overlay", show=False),
        Binding("i", "reverse", "reverse the sort order", show=False),
        Binding("u", "group", "group seeds: mean and spread", show=False),
        Binding("o", "columns", "choose columns: best FID, started, params, any argument", show=False),
        Binding("p", "pin", "pin to the top", show=False),
        Binding("number_sign", "tags", "edit tags and note", show=False),
        Binding("h", "hide", "hide or unhide this run", show=False),
        Binding("a", "hidden", "show hidden runs", show=False),
        *MOVES,
    ]

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.spots: list[tuple[int, int, str]] = []  # first and last cell of each column, and its name

    def body(self) -> ComposeResult:
        yield Doc(self.top_line, base="bar", id="top")
        with Horizontal(id="middle"):
            with Vertical(id="left"):
                yield Table(id="table")
                yield Doc(self.status_line, id="status")
                yield Doc(self.preview, id="preview")
                yield Doc(self.host, id="host")
            yield Doc(self.right, id="charts")
        yield Doc(self.host, id="host-below")

    def changed(self, names: set[str]) -> None:
        safely(self, "table", self.fill)
        host = 1 + min(3, len(self.state.machine.gpus))
        self.query_one("#host").styles.height = host
        spare = self.query_one("#left").size.height - len(self.state.listed()) - host - 3
        self.query_one("#preview").styles.height = max(5, min(14, spare))
        self.update("top", "status", "preview", "host", "host-below")
        if names & {run.name for run, _, _ in self.drawn()} or not self.query_one("#charts", Doc).lines:
            self.update("charts")

    # -- the list

    def columns(self, runs: list[Run], width: int) -> list[tuple[str, int, list[str]]]:
        """(name, width, texts) of the columns: those that were chosen, else those that fit."""
        state, labels = self.state, self.state.labels()
        wanted = state.columns or [*labels, *(name for name in columns.FIRST if name in columns.COLUMNS)]
        texts = {name: [columns.cell(name, run)[0] for run in runs] for name in wanted}
        for name in wanted:
            wide = max(len(name) + 1, *(draw.cell_len(t) for t in texts[name]), state.widths.get(name, 0))
            state.widths[name] = min(wide, 30)
        room = width - 5 - min(30 if width < 100 else 44, max([len(state.short(r)) for r in runs] or [10]))
        shown = state.columns or columns.fitting(wanted, state.widths, room)
        return [(name, state.widths[name], texts[name]) for name in shown]

    def fill(self) -> None:
        table = self.query_one(Table)
        runs, width = self.state.listed(), table.size.width
        shown = self.columns(runs, width)
        name_width = max(8, width - 5 - sum(w + 1 for _, w, _ in shown))
        arrow = {self.state.sort: "▼" if self.state.falling else "▲"}
        top = f"     {fit('run' + arrow.get('name', ''), name_width)}"
        self.spots = [(5, 5 + name_width, "name")]
        for name, w, _ in shown:
            at = self.spots[-1][1]
            self.spots.append((at, at + w + 1, name))
            top += columns.padded(name + arrow.get(name, ""), w)
        rows: list[tuple[str, Line]] = []
        for i, run in enumerate(runs):
            letter, style = self.state.overlay_mark(run)
            line: Line = [
                (f"▌{letter}" if letter else "  ", style),
                (f"{'^' if run.pinned else ' '}{pages.GLYPHS[run.state]} ", pages.STYLES[run.state]),
                (draw.fit_middle(self.state.short(run), name_width), "dim" if run.name in self.state.hidden else ""),
            ]
            for name, w, texts in shown:
                tone = pages.STYLES[run.state] if name == "ETA" and run.state != "running" else ""
                tone = "dim" if name.startswith("FID") and (number(run.last.get("n")) or 0) < 50_000 else tone
                line.append((columns.padded(texts[i], w), tone))
            rows.append((run.name, line))
        table.empty = self.empty(width)
        table.show([(top, "bold")], rows, self.state.store.became)

    def empty(self, width: int) -> list[Line]:
        if self.state.store.runs:
            return [
                [],
                [(f"  no runs match {self.state.filter_text}" if self.state.filter_text else "  all runs are hidden", "warn")],
                [("  / edits the filter, a shows hidden runs", "dim")],
            ]
        if not self.state.scanned:
            return [[], [("  scanning for runs…", "dim")]]
        why = f" ({self.state.store.problem})" if self.state.store.problem else ""
        start = "read-only mode: runs cannot be started" if self.state.readonly else "press n to start one"
        lines = [
            f"no runs in {self.state.store.root}/{why}",
            start,
            "or open another folder: python tui.py DIR",
            "? lists all keys, q quits",
        ]
        return [[], *([(f"  {text}", "" if i == 0 else "dim")] for i, text in enumerate(lines))]

    def on_table_picked(self, event: Table.Picked) -> None:
        if event.entered:
            self.action_open()
        else:
            self.update("preview", "charts", "keys")

    def on_table_sorted(self, event: Table.Sorted) -> None:
        key = next((k for a, b, k in self.spots if a <= event.x < b), None)
        if key:
            self.state.reverse = not self.state.reverse if self.state.sort == key else False
            self.state.sort = key
            self.fill()

    # -- status lines

    def top_line(self, width: int, _: int) -> list[Line]:
        counts = Counter(r.state for r in self.state.store.ordered())
        line: Line = [(f" {draw.count(len(self.state.store.runs), 'run')}  ", "")]
        for state in STATES:
            if counts[state]:
                word = f" {state}" if width >= 100 else ""
                line.append((f" {pages.GLYPHS[state]} {counts[state]}{word}", pages.STYLES[state]))
        if self.state.since:
            line.append(("   since last visit: " + ", ".join(f"{n} {s}" for s, n in self.state.since.items()), "info"))
        if self.state.readonly:
            line.append(("   read-only", "warn"))
        where = draw.fit_middle(f"{clean(self.state.store.root)}/", max(width - draw.width_of(line) - 2, 12)).rstrip()
        return [crop([(f" {where} ", "bold"), *line], width)]

    def status_line(self, width: int, _: int) -> list[Line]:
        shown, total = len(self.state.listed()), len(self.state.store.runs)
        words = [f"{shown} of {draw.count(total, 'run')}", f"sort {self.state.sort} {'▼' if self.state.falling else '▲'}"]
        words += [f"filter: {self.state.filter_text} (esc clears it)"] if self.state.filter_text else []
        words += [f"{len(self.state.overlay)} overlaid"] if self.state.overlay else []
        words += ["seeds grouped"] if self.state.group else []
        left = [label for label in self.state.labels() if label.startswith("FID")]
        fits = {name for _, _, name in self.spots}
        hidden = [label for label in left if label not in fits]
        words += [f"hidden columns: {', '.join(hidden)}"] if hidden else []
        return [[(fit(" " + " · ".join(words), width), "dim")]]

    def preview(self, width: int, height: int) -> list[Line]:
        """A preview of the selected run: summary and end of the log."""
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
        """One line per GPU and one for the host, or a single line if height is 1."""
        machine, lines = self.state.machine, []
        for g in machine.gpus:
            used = g["used"] / g["total"] if g["total"] else 0
            busy = "—" if g["percent"] is None else g["percent"]
            text = f" GPU{g['index']} {fit(g['name'].replace('NVIDIA ', ''), 8)} {busy:>3}% "
            text += f"{draw.bar(used, 10)} {draw.size(g['used'])}/{draw.size(g['total'])}"
            text += f" {g['degrees']}°" if g["degrees"] is not None else ""
            text += f" {g['watts']:.0f}W" if g["watts"] else ""
            lines.append(text + f"  free {draw.size(g['total'] - g['used'])}")
        h = machine.host
        host = f" CPU {h['cpu']:.0f}% of {h['cores']:.0f} · RAM {draw.size(h['used'])}/{draw.size(h['total'])} · " if h else " "
        host += f"disk {draw.size(h['disk'])} free · " if h else ""
        host += ("GPU n/a · " if machine.gpu_note else "") + f"poll {1000 * self.state.poll_seconds:.0f} ms"
        if height == 1:
            short = [f" GPU{g['index']} {g['percent']}% {draw.size(g['used'])}/{draw.size(g['total'])}" for g in machine.gpus]
            return [[(fit("".join(short) + host, width), "dim")]]
        return [[(fit(text, width), "dim")] for text in [*lines[: height - 1], host]]

    # -- curves

    def drawn(self) -> list[tuple[Run, str, str]]:
        """Runs whose curves are shown. The selected run comes last, so it is drawn on top."""
        here = self.run_now()
        runs = self.marked() or ([here] if here else [])
        runs = [r for r in runs if r is not here] + ([here] if here in runs else [])
        marks = [(r, *self.state.overlay_mark(r)) for r in runs]
        return [(r, style or f"s{color_index(r.name, ())}", letter) for r, letter, style in marks]

    def right(self, width: int, height: int) -> list[Line]:
        """The charts, with a separator line if they are next to the list."""
        if self.has_class("-narrow"):
            return self.charts(width, height)
        lines = self.charts(width - 1, height)
        return [[("│", "faint"), *line] for line in lines + [[]] * (height - len(lines))]

    def charts(self, width: int, height: int) -> list[Line]:
        drawn, metric, curves = self.drawn(), self.state.metric, self.state.curves
        if not drawn:
            return [[(" curves will appear here", "dim")]]
        for run, _, _ in drawn:
            self.state.want(run)
        metric = self.metric_now()
        legend: Line = []
        share = width // len(drawn) - 4  # per name, if shortened names fit on one line
        for run, style, letter in sorted(drawn, key=lambda d: d[2]):
            has = metric in metrics(run)
            name = self.state.short(run) + ("" if has else " (no data)")
            if height < 20 and share > 12:
                name = draw.fit_middle(name, min(share, draw.cell_len(name)))
            legend.append((f" ▌{letter}{' ' if letter else ''}{name}", style if has else "dim"))
        legends = [legend] if draw.width_of(legend) <= width else [[part] for part in legend][: max(1, height // 5)]
        if len(legends) > 1 and len(legend) > len(legends):
            legends[-1] = [(f" … and {len(legend) - len(legends) + 1} more", "dim")]
        second = {"FID": "IS", "IS": "FID"}.get(metric[:3].rstrip("(-"), "") + metric[3 if metric.startswith("FID") else 2 :]
        second = second if is_score(metric) and any(second in metrics(r) for r, _, _ in drawn) else ""
        frame = curves.frame([(r, [m for m in (metric, second) if m in metrics(r)]) for r, _, _ in drawn])
        values: list[Line] = []
        if self.state.group:
            runs = [r for r, _, _ in drawn]
            table = [[], *compare.seeds(runs), [], *compare.distances(runs)]
            legends = [self.group_legend(group, k) for k, group in enumerate(seed_groups(runs))][: max(1, height // 5)]
            values = table[: max(0, height - len(legends) - 10)]
        room = height - len(legends) - len(values)
        two = second and room >= 20
        tall = room // 2 if two else room
        lines = list(legends)
        for name, h in ((metric, room - tall if two else tall), (second, tall)):
            if name and (two or name == metric):
                if self.state.group:
                    lines += curves.draw(curves.grouped([r for r, _, _ in drawn], name), name, width, h, frame)
                else:
                    lines += curves.lines([d for d in drawn if name in metrics(d[0])], name, width, h, frame)
        return [crop(line, width) for line in lines + values]

    def metric_now(self) -> str:
        """The metric that is drawn: the chosen one, or another if no run has it."""
        drawn = self.drawn()
        if any(self.state.metric in metrics(r) for r, _, _ in drawn):
            return self.state.metric
        return next((m for r, _, _ in drawn for m in metrics(r)), self.state.metric)

    def group_legend(self, group: list[Run], k: int) -> Line:
        """Names the k-th mean curve: its letter, and the runs that it is the mean of."""
        first, seeds = group[0], " ".join(str(r.seed) for r in sorted(group, key=lambda r: r.seed or 0))
        name = f"{first.method} {first.dataset} {clean(first.config.get('preset'))}".strip()
        return [(f" ▌{LETTERS[k % 26]} {name} · seeds {seeds}", f"s{k % 8}")]

    # -- actions

    NEEDS_RUN = ("act", "open", "rerun", "derive", "overlay", "pin", "tags", "hide", "metric", "compare")

    def why_not(self, binding: Binding) -> str:
        needs = binding.action.split("(")[0] in self.NEEDS_RUN and binding.action != "act('undo')"
        return "no run is selected" if needs and self.run_now() is None else ""

    def run_now(self) -> Run | None:
        key = self.query_one(Table).key
        return self.state.store.runs.get(key) if key else None

    def action_move(self, key: str) -> None:
        self.query_one(Table).move(key)

    def action_open(self) -> None:
        if run := self.run_now():
            self.app.push_screen(OneRun(self.state, run))

    def action_overlay(self) -> None:
        if run := self.run_now():
            if run.name in self.state.overlay:
                del self.state.overlay[run.name]
            else:
                self.state.lay_over(run)
            self.query_one(Table).move("down")
            self.update_all()

    def action_clear(self) -> None:
        self.state.overlay.clear()
        self.update_all()

    def action_query(self) -> None:
        hint = "words, -word, /regex/, fid<15, is>8, fid(compact)<2, state=running, tag:paper, seed=3, g_lr>1e-4"
        self.ask("filter", self.state.filter_text, self.set_filter, hint, live=True)

    def set_filter(self, text: str) -> str:
        """Show only the runs that match. Returns an error message or ""."""
        if not (wrong := self.state.set_filter(text)):
            self.fill()
            self.update("status", "preview", "charts")
        return wrong

    def action_unfilter(self) -> None:
        self.state.set_filter("")
        self.update_all()

    def action_sort(self) -> None:
        keys = ["state", "name", *(name for _, _, name in self.spots[1:])]
        self.state.sort = keys[(keys.index(self.state.sort) + 1) % len(keys)] if self.state.sort in keys else keys[0]
        self.state.reverse = False
        self.update_all()

    def action_columns(self) -> None:
        hint = f"separated by commas, empty: what fits; {', '.join(columns.COLUMNS)}, scores, arguments"

        def done(text: str) -> str:
            try:
                self.state.columns = columns.chosen(text, self.state.labels(), self.state.store.ordered())
            except ValueError as e:
                return clean(e, 300)
            self.update_all()
            return ""

        self.ask("columns", ", ".join(self.state.columns), done, hint)

    def action_reverse(self) -> None:
        self.state.reverse = not self.state.reverse
        self.update_all()

    def action_metric(self) -> None:
        found = list(dict.fromkeys(m for r, _, _ in self.drawn() for m in metrics(r)))
        if found:
            self.state.metric = (
                found[(found.index(self.state.metric) + 1) % len(found)] if self.state.metric in found else found[0]
            )
        self.update_all()

    def action_group(self) -> None:
        self.state.group = not self.state.group
        self.update_all()

    def action_hide(self) -> None:
        if run := self.run_now():
            self.state.hidden ^= {run.name}
            self.update_all()

    def action_hidden(self) -> None:
        self.state.show_hidden = not self.state.show_hidden
        self.update_all()

    def action_pin(self) -> None:
        if run := self.run_now():
            self.tag([run], lambda run: {"pinned": not run.pinned})

    def marked(self) -> list[Run]:
        """The overlaid runs."""
        return [r for name in self.state.overlay if (r := self.state.store.runs.get(name))]

    def for_marked(self, what: str, do: Callable[[list[Run]], None]) -> None:
        """do() the selected run; if several are marked, ask whether all of them are meant."""
        here, marked = self.run_now(), self.marked()
        if here and len(marked) > 1:
            answers = [
                ("m", f"all {len(marked)} marked runs", lambda: do(marked)),
                ("o", f"only {here.name}", lambda: do([here])),
            ]
            self.app.push_screen(Choose(f"{what}: which runs?", answers))
        elif here:
            do([here])

    def action_act(self, what: str) -> None:
        if what not in ("stop", "resume", "trash") or self.state.readonly:
            super().action_act(what)
            return
        self.for_marked(what, lambda runs: [self.act(what, run) for run in runs] and None)

    def action_tags(self) -> None:
        if not self.refuse():
            self.for_marked("tag", self.ask_tags)

    def tag(self, runs: list[Run], changes: Callable[[Run], dict]) -> None:
        self.try_to("tags.json", lambda: "".join(self.state.store.tag(run, **changes(run)) or "" for run in runs))

    def ask_tags(self, runs: list[Run]) -> None:
        """Edit the tags and the note of one run, or add tags to several."""
        if len(runs) > 1:

            def add(text: str) -> str:
                self.tag(runs, lambda run: {"tags": list(dict.fromkeys([*run.labels, *text.split()]))})
                return ""

            self.ask("add tags", "", add, hint=f"to {len(runs)} runs, separated by spaces")
        elif run := next(iter(runs), None):
            text = " ".join(run.labels) + (f" | {clean(run.tags.get('note'))}" if run.tags.get("note") else "")

            def done(text: str) -> str:
                tags, _, note = text.partition("|")
                self.tag([run], lambda _: {"tags": list(dict.fromkeys(tags.split())), "note": note.strip()})
                return ""

            self.ask("tags | note", text, done, hint=f"{run.name}: tags separated by spaces, then | and a note")

    def action_compare(self) -> None:
        runs, here = self.marked(), self.run_now()
        if len(runs) == 1 and here and here is not runs[0]:
            runs.append(here)
        if len(runs) < 2:
            self.notify("overlay two runs with space, or overlay one and select the other", severity="warning")
        else:
            self.app.push_screen(Compare(self.state, runs[0], runs[1]))

    def action_results(self) -> None:
        self.app.push_screen(Results(self.state, [run for run in self.exported() if not run.foreign]))

    def csv(self) -> str:
        return report.metrics_csv(self.exported())

    def exported(self) -> list[Run]:
        return self.marked() or self.state.listed()

    def copied(self) -> str:
        run = self.run_now()
        return str(run.path) if run else ""


# ---- one run ----------------------------------------------------------------------------------------------------------

TABS = ("charts", "log", "samples", "architecture", "search", "config")


class OneRun(Launching):
    """One run: charts, log, samples, architecture, search, config."""

    BINDINGS: ClassVar = [
        Binding("escape", "back", "back"),
        *(Binding(str(i), f"tab('{t}')", t, show=False) for i, t in enumerate(TABS, 1)),
        Binding("comma", "scrub(-1)", "earlier: an earlier step, in all tabs"),
        Binding("full_stop", "scrub(1)", "later: a later step, then the live state"),
        Binding("asterisk", "best", "show the step with the lowest FID", show=False),
        Binding("left_square_bracket", "pick(-1)", "previous: cell, edge or individual"),
        Binding("right_square_bracket", "pick(1)", "next: cell, edge or individual"),
        Binding("o", "other", "switch: G/D, log/output, plot axes"),
        Binding("plus", "size(1)", "fewer, larger samples", show=False),
        Binding("minus", "size(-1)", "more, smaller samples", show=False),
        Binding("f", "follow", "follow the log"),
        Binding("slash", "find", "search: the log (regular expression)"),
        Binding("n", "match(1)", "next match"),
        Binding("N", "match(-1)", "previous match", show=False),
        Binding("ampersand", "only", "filter: show only matching lines"),
        Binding("exclamation_mark", "trouble", "next error"),
        Binding("ctrl+g", "line", "go to a line number", show=False),
        *ACTS,
        *CURVES,
        *MOVES,
    ]
    USE: ClassVar = {  # tabs in which an action is available; actions not listed work in all tabs
        **dict.fromkeys(("metric", "ema", "log", "axis", "zoom", "band", "inspect"), ("charts",)),
        **dict.fromkeys(("follow", "find", "match", "only", "trouble", "line"), ("log",)),
        **{"size": ("samples",), "pick": ("architecture", "search"), "other": ("log", "architecture", "search")},
        "zoom": ("charts", "search"),
        **dict.fromkeys(("scrub", "best"), ("charts", "samples", "architecture", "search")),
    }

    def __init__(self, state: State, run: Run, tab: str = "charts") -> None:
        super().__init__(state)
        self.run, self.tab = run, tab
        self.view = View()
        self.first, self.per_page = 0, 1  # index of the first chart shown; how many fit
        self.across = 8
        self.pictured: tuple = ()  # the picture and zoom that #pixels shows
        self.wants_output = False

    def body(self) -> ComposeResult:
        yield Doc(lambda w, h: pages.header(self.run, w, self.view.at), id="head")
        yield Doc(self.tabs, base="bar", id="tabs")
        yield Doc(self.content, id="content")
        yield LogView(id="log")
        if self.state.pixels:
            yield self.state.pixels(id="pixels")

    def on_mount(self) -> None:
        super().on_mount()
        self.state.want(self.run)
        self.action_tab(self.tab)

    def changed(self, names: set[str]) -> None:
        if self.run.name in self.state.store.runs:
            self.run = self.state.store.runs[self.run.name]
        if self.tab == "log":
            safely(self, "log", self.query_one(LogView).tick)
        self.update("head", "tabs")
        if self.tab != "log" and self.run.name in names:
            self.update("content")

    def run_now(self) -> Run | None:
        return self.run

    def why_not(self, binding: Binding) -> str:
        use = self.USE.get(binding.action.split("(")[0])
        return f"only in the tab {' or '.join(use)}" if use and self.tab not in use else ""

    def check_action(self, action: str, parameters: tuple) -> bool | None:
        return self.tab in self.USE.get(action, (self.tab,))

    # -- tabs

    def titles(self) -> list[str]:
        search = pages.TITLES.get(self.run.search.kind, "Search")
        return ["Charts", "Log", "Samples", "Architecture", search, "Config"]

    def tabs(self, width: int, _: int) -> list[Line]:
        right = f"as of step {human(self.view.at)} · . later " if self.view.at is not None else ""
        if self.tab == "log":
            right = self.query_one(LogView).status + " "
        if self.tab == "charts" and self.view.at is None and (more := self.paging()):
            right = more
        if self.run.name not in self.state.store.runs:
            right = "this directory is gone "
        if not self.run.loaded:
            right = "reading… "
        texts = [f"{i} {title}" for i, title in enumerate(self.titles(), 1)]
        if sum(len(t) + 3 for t in texts) + 2 + len(right) > width:  # spell out only the open tab
            texts = [t if name == self.tab else t[0] for t, name in zip(texts, TABS, strict=True)]
        line: Line = [(" ", "")]
        self.tab_spots = []
        for name, text in zip(TABS, texts, strict=True):
            line.append((f"[{text}] ", "bold key") if name == self.tab else (f" {text}  ", ""))
            self.tab_spots.append((draw.width_of(line), name))
        gap = " " * max(1, width - draw.width_of(line) - len(right))
        return [crop([*line, (gap, ""), (right, "warn" if self.view.at is not None else "dim")], width)]

    def on_click(self, event: events.Click) -> None:
        if event.widget is self.query_one("#tabs", Doc):
            name = next((name for end, name in self.tab_spots if event.x < end), None)
            if name:
                self.action_tab(name)

    def action_tab(self, tab: str) -> None:
        self.tab = tab
        log, content = self.query_one(LogView), self.query_one("#content", Doc)
        log.display, content.display = tab == "log", tab != "log"
        if self.state.pixels:
            self.query_one("#pixels").display = tab == "samples"
            content.styles.height = 1 if tab == "samples" else "1fr"
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
            return genotypes.architecture(self.run, width, height, self.view)
        return pages.search(self.run, width, height, self.view)

    def sets(self) -> list[tuple[str, ...]]:
        """The charts of this run, each a tuple of metrics drawn together."""
        found = metrics(self.run)
        together = [("loss/g", "loss/d"), ("entropy G", "entropy D"), ("flips G", "flips D"), ("reward", "baseline")]
        together.append(("loss/rec", "loss/mean_image"))
        made: list[tuple[str, ...]] = []
        for metric in found:
            group = next((g for g in together if metric in g), (metric,))
            group = tuple(m for m in group if m in found)
            if group not in made:
                made.append(group)
        rank = {"entropy G": 3, "reward": 3, "front": 8, "perf/img_s": 9}
        rank |= dict.fromkeys(("stage", "round", "iteration", "epoch", "batch", "resets", "eval/n"), 10)  # counters
        return sorted(
            made,
            key=lambda g: (
                0 if g[0].startswith("FID") else 1 if g[0].startswith("IS") else rank.get(g[0], 4 if g[0] != "loss/g" else 2)
            ),
        )

    def paging(self) -> str:
        """Which charts are shown, if there are more."""
        n = len(self.sets())
        if n <= self.per_page:
            return ""
        first = self.first % n
        return f"charts {first + 1}-{min(n, first + self.per_page)} of {n} · PgDn more "

    def charts(self, width: int, height: int) -> list[Line]:
        sets = self.sets()
        if not sets:
            return [[(" no metrics yet" if self.run.loaded else " reading…", "dim")]]
        across = 2 if width >= 100 else 1
        down = max(1, min(3, (height - 1) // 12))
        first = self.first % len(sets)
        self.per_page = across * down
        shown = [sets[(first + k) % len(sets)] for k in range(min(self.per_page, len(sets)))]
        down = -(-len(shown) // across)
        strip = pages.health(self.run)
        tall = (height - bool(strip)) // down
        style = f"s{color_index(self.run.name, ())}"
        stages, curves = self.run.columns.stages, self.state.curves
        by_step = curves.axis == "step"
        marks = tuple(stages[1:]) if by_step and len(stages) < 12 else ()
        frame = curves.frame([(self.run, [m for group in sets for m in group])], marks, self.view.at if by_step else None)
        lines: list[Line] = []
        for row in range(down):
            blocks = []
            for group in shown[row * across : (row + 1) * across]:
                w = (width - 2) // 2 if across == 2 else width
                blocks.append(curves.lines([(self.run, style, "")], group[0], w, tall, frame, group[1:]))
            lines += draw.beside(blocks[0], blocks[1], (width - 2) // 2) if len(blocks) > 1 else blocks[0]
        return [*([strip] if strip else []), *lines]

    def samples(self, width: int, height: int) -> list[Line]:
        if self.state.pixels and (found := sample_at(self.run, self.view.at)):
            with contextlib.suppress(ValueError):  # sample_lines reports the error
                if self.pictured != (now := (found[1], self.across)):
                    self.query_one("#pixels").image = draw.part(open_image(found[1]), self.across)
                    self.pictured = now
        lines = sample_lines(self.run, self.view.at, width, height, self.across, self.state.images)
        return lines[:1] if self.state.pixels else lines

    def config(self, width: int, _: int) -> list[Line]:
        preset = clean(self.run.config.get("preset"))
        script = next((s for s in self.state.scripts()[0] if s.path.name == self.run.script), None)
        return pages.configuration(self.run, width, script.defaults(preset) if script else None, self.view.at)

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
        elif self.tab == "charts" and key in ("pageup", "pagedown"):
            self.first = (self.first + (self.per_page if key == "pagedown" else -self.per_page)) % max(1, len(self.sets()))
            self.update_all()
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
        """Steps for which the open tab has data."""
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
            if not earlier:
                self.notify("no earlier step with data for this tab")
        else:
            self.view.at = next((s for s in steps if now is not None and s > now), None)
        self.update_all()

    def action_best(self) -> None:
        if best := self.run.best():
            self.view.at = best["step"]
            self.update_all()
        else:
            self.notify("not evaluated yet")

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

    def action_zoom(self) -> None:
        if self.tab == "search":
            self.view.near = not self.view.near
            self.update_all()
        else:
            super().action_zoom()

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

        self.ask("search the log", log.pattern, done, hint="regular expression; n next, N previous")

    def action_match(self, by: int) -> None:
        log = self.query_one(LogView)
        if log.pattern and (problem := self.jump(log.pattern, by, log.hit)):
            self.notify(problem, severity="warning", markup=False)

    def action_trouble(self) -> None:
        log = self.query_one(LogView)
        problem = self.jump(BAD_LINE, 1, log.hit)
        if problem:
            self.notify("no errors in this log", markup=False)

    def jump(self, pattern: str, by: int, start: int) -> str:
        """Go to the next or previous matching line, wrapping around. Returns an error message or ""."""
        log = self.query_one(LogView)
        try:
            hits = log.log_file.matching(pattern) if log.log_file else []
        except ValueError as e:
            return clean(e, 100)
        if log.shown is not None:
            hits = [h for h in hits if h in set(log.shown)]
        if not hits:
            return f"no match for {pattern}"
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

        self.ask("show only lines matching", log.filter, done, hint="regular expression; empty shows all lines")

    def action_line(self) -> None:
        log = self.query_one(LogView)

        def done(text: str) -> str:
            if not text.strip().isdecimal() or not 0 < int(text) <= len(log.log_file or ()):
                return f"enter a number from 1 to {len(log.log_file or ())}"
            log.show_line(int(text) - 1)
            return ""

        self.ask("go to line", "", done)

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
