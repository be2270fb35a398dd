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
from ui.pages import open_image, sample_at, sample_lines
from ui.runs import STATES, Run, color_index
from ui.several import Compare, Results
from ui.state import State
from ui.widgets import BAD_LINE, Doc, LogView, Table, safely


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
        Binding("l", "results", "results: tables over seeds", show=False),
        *ACTS,
        *CURVES,
        Binding("0", "clear", "clear the overlay", show=False),
        Binding("i", "toggle('reverse')", "reverse the sort order", show=False),
        Binding("u", "toggle('group')", "group seeds: mean and spread", show=False),
        Binding("o", "columns", "choose columns: best FID, any argument", show=False),
        Binding("p", "pin", "pin to the top", show=False),
        Binding("number_sign", "tags", "edit tags and note", show=False),
        Binding("h", "hide", "hide or unhide this run", show=False),
        Binding("a", "toggle('show_hidden')", "show hidden runs", show=False),
        *MOVES,
    ]
    moved = "#table"

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
        self.update("top", "status", "preview", "host", "host-below", "keys")
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
            top += " " + fit(name + arrow.get(name, ""), w, True)
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
                line.append((" " + fit(texts[i], w, True), tone))
            rows.append((run.name, line))
        table.empty = self.empty(width)
        table.show([(top, "bold")], rows, self.state.store.became)

    def empty(self, width: int) -> list[Line]:
        if self.state.store.runs:
            none = f"no runs match {self.state.filter_text}" if self.state.filter_text else "all runs are hidden"
            return [[], [(f"  {none}", "warn")], [("  / edits the filter, a shows hidden runs", "dim")]]
        if not self.state.scanned:
            return [[], [("  scanning for runs…", "dim")]]
        why = f" ({self.state.store.problem})" if self.state.store.problem else ""
        start = "read-only mode: runs cannot be started" if self.state.readonly else "press n to start one"
        hints = (start, "or open another folder: python tui.py DIR", "? lists all keys, q quits")
        return [[], [(f"  no runs in {self.state.store.root}/{why}", "")], *([(f"  {hint}", "dim")] for hint in hints)]

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
        state, fits = self.state, {name for _, _, name in self.spots}
        words = [f"{len(state.listed())} of {draw.count(len(state.store.runs), 'run')}"]
        words += [f"sort {state.sort} {'▼' if state.falling else '▲'}"]
        words += [f"filter: {state.filter_text} (esc clears it)"] if state.filter_text else []
        words += [f"{len(state.overlay)} overlaid"] if state.overlay else []
        words += ["seeds grouped"] if state.group else []
        hidden = [label for label in state.labels() if label.startswith("FID") and label not in fits]
        words += [f"hidden columns: {', '.join(hidden)}"] if hidden else []
        return [[(fit(" " + " · ".join(words), width), "dim")]]

    def preview(self, width: int, height: int) -> list[Line]:
        """A preview of the selected run: summary and end of the log."""
        run = self.run_now()
        if run is None or height < 2:
            return []
        lines: list[Line] = [[("─" * width, "faint")]]
        tags, style = " ".join(f"#{t}" for t in run.labels), "bad" if run.error else "bold"
        head = filter(None, (self.state.short(run), run.error or pages.state_word(run), pages.scores(run), tags))
        lines.append([(fit(" " + draw.wrapped(head, width - 1, " · ")[0], width), style)])
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
            head = f" GPU{g['index']} {fit(g['name'].replace('NVIDIA ', ''), 8)} {draw.bar(used, 10)} "
            lines.append(f"{head}{', '.join(report.gpu_facts(g))}, free {draw.size(g['total'] - g['used'])}")
        facts = [*report.host_facts(machine), machine.gpu_note and "GPU n/a", f"poll {1000 * self.state.poll_seconds:.0f} ms"]
        host = " " + draw.wrapped(filter(None, facts), width - 1, " · ")[0]
        if height == 1:
            short = [f" GPU{g['index']} {g['percent']}% {draw.size(g['used'])}/{draw.size(g['total'])}" for g in machine.gpus]
            return [[(fit("".join(short) + host, width), "dim")]]
        return [[(fit(text, width), "dim")] for text in [*lines[: height - 1], host]]

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
        drawn, metric, curves = self.drawn(), self.metric_now(), self.state.curves
        if not drawn:
            return [[(" curves will appear here", "dim")]]
        for run, _, _ in drawn:
            self.state.want(run)
        second = {"FID": "IS", "IS": "FID"}.get(metric[:3].rstrip("(-"), "") + metric[3 if metric.startswith("FID") else 2 :]
        second = second if is_score(metric) and any(second in metrics(r) for r, _, _ in drawn) else ""
        frame = curves.frame([(r, [m for m in (metric, second) if m in metrics(r)]) for r, _, _ in drawn])
        legends, values = self.legend(drawn, metric, width, height), list[Line]()
        if self.state.group:
            runs = [r for r, _, _ in drawn]
            named = [line for k, group in enumerate(seed_groups(runs)) for line in self.group_legend(group, k, width)]
            legends, values = named[: max(2, height // 3)], [[], *compare.distances(runs)]
            legends[-1] = legends[-1] if len(legends) == len(named) else [(" …", "dim")]
            values = values[: max(0, height - len(legends) - 10)]
        room = height - len(legends) - len(values)
        lower = room // 2 if second and room >= 20 else 0
        lines = list(legends)
        for name, h in ((metric, room - lower), (second, lower)):
            if h and self.state.group:
                lines += curves.draw(curves.grouped(runs, name), name, width, h, frame)
            elif h:
                lines += curves.lines([d for d in drawn if name in metrics(d[0])], name, width, h, frame)
        return [crop(line, width) for line in lines + values]

    def legend(self, drawn: list[tuple[Run, str, str]], metric: str, width: int, height: int) -> list[Line]:
        """The names of the curves, on one line if they fit."""
        line: Line = []
        share = width // len(drawn) - 4  # per name, if shortened names fit on one line
        for run, style, letter in sorted(drawn, key=lambda d: d[2]):
            has = metric in metrics(run)
            name = self.state.short(run) + ("" if has else " (no data)")
            if height < 20 and share > 12:
                name = draw.fit_middle(name, min(share, draw.cell_len(name)))
            line.append((f" ▌{letter}{' ' if letter else ''}{name}", style if has else "dim"))
        lines = [line] if draw.width_of(line) <= width else [[part] for part in line][: max(1, height // 5)]
        if len(lines) > 1 and len(line) > len(lines):
            lines[-1] = [(f" … and {len(line) - len(lines) + 1} more", "dim")]
        return lines

    def metric_now(self) -> str:
        """The metric that is drawn: the chosen one, or another if no run has it."""
        drawn = self.drawn()
        if any(self.state.metric in metrics(r) for r, _, _ in drawn):
            return self.state.metric
        return next((m for r, _, _ in drawn for m in metrics(r)), self.state.metric)

    def group_legend(self, group: list[Run], k: int, width: int) -> list[Line]:
        """The letter of the k-th mean curve, the runs that it is the mean of, and their last scores."""
        first, seeds = group[0], " ".join(str(r.seed) for r in sorted(group, key=lambda r: r.seed or 0))
        name = f"{first.method} {first.dataset} {clean(first.config.get('preset'))}".strip()
        head: Line = [(f" ▌{LETTERS[k % 26]} {name} · seeds {seeds}", f"s{k % 8}")]
        return [head, *(line for texts in compare.over_seeds(group) for line in draw.hanging("   ", texts, width, "  "))]

    NEEDS_RUN = ("act", "open", "rerun", "derive", "overlay", "pin", "tags", "hide", "metric", "compare")

    def why_not(self, binding: Binding) -> str:
        needs = binding.action.split("(")[0] in self.NEEDS_RUN and binding.action != "act('undo')"
        return "no run is selected" if needs and self.run_now() is None else ""

    def run_now(self) -> Run | None:
        key = self.query_one(Table).key
        return self.state.store.runs.get(key) if key else None

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

    def set_filter(self, text: str) -> None:
        """Show only the runs that match. ValueError: no valid query."""
        self.state.set_filter(text)
        self.fill()
        self.update("status", "preview", "charts")

    def action_unfilter(self) -> None:
        self.set_filter("")

    def action_sort(self) -> None:
        keys = ["state", "name", *(name for _, _, name in self.spots[1:])]
        self.state.sort = keys[(keys.index(self.state.sort) + 1) % len(keys)] if self.state.sort in keys else keys[0]
        self.state.reverse = False
        self.update_all()

    def action_columns(self) -> None:
        hint = f"separated by commas, empty: what fits; {', '.join(columns.COLUMNS)}, scores, arguments"

        def done(text: str) -> None:
            self.state.columns = columns.chosen(text, self.state.labels(), self.state.store.ordered())
            self.update_all()

        self.ask("columns", ", ".join(self.state.columns), done, hint)

    def action_metric(self) -> None:
        found, now = list(dict.fromkeys(m for r, _, _ in self.drawn() for m in metrics(r))), self.state.metric
        if found:
            self.state.metric = found[(found.index(now) + 1) % len(found)] if now in found else found[0]
        self.update_all()

    def action_toggle(self, what: str) -> None:
        """group, reverse or show_hidden."""
        setattr(self.state, what, not getattr(self.state, what))
        self.update_all()

    def action_hide(self) -> None:
        if run := self.run_now():
            self.state.hidden ^= {run.name}
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
        run, several = runs[0], len(runs) > 1

        def done(text: str) -> None:
            tags, _, note = text.partition("|")
            if several:
                self.tag(runs, lambda run: {"tags": list(dict.fromkeys([*run.labels, *text.split()]))})
            else:
                self.tag(runs, lambda _: {"tags": list(dict.fromkeys(tags.split())), "note": note.strip()})

        if several:
            self.ask("add tags", "", done, hint=f"to {len(runs)} runs, separated by spaces")
        else:
            text = " ".join(run.labels) + (f" | {clean(run.tags.get('note'))}" if run.tags.get("note") else "")
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

    def exported(self) -> list[Run]:
        return self.marked() or self.state.listed()

    def copied(self) -> str:
        return str(run.path) if (run := self.run_now()) else ""


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
        **dict.fromkeys(("metric", "setting", "log", "inspect"), ("charts",)),
        **dict.fromkeys(("follow", "find", "match", "only", "trouble", "line"), ("log",)),
        **dict.fromkeys(("scrub", "best"), ("charts", "samples", "architecture", "search")),
        **{"size": ("samples",), "pick": ("architecture", "search"), "other": ("log", "architecture", "search")},
        "zoom": ("charts", "search"),
    }

    def __init__(self, state: State, run: Run, tab: str = "charts") -> None:
        super().__init__(state)
        self.run, self.tab = run, tab
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
        self.update("head", "tabs", "keys")
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
        search = pages.TITLES.get(self.run.search.kind, "Search")
        texts = [f"{i} {search if t == 'search' else t.capitalize()}" for i, t in enumerate(TABS, 1)]
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
        name = next((name for end, name in self.tab_spots if event.x < end), None)
        if name and event.widget is self.query_one("#tabs", Doc):
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
        rank = {"loss/g": 2, "entropy G": 3, "reward": 3, "front": 8, "perf/img_s": 9}
        rank |= dict.fromkeys(("stage", "round", "iteration", "epoch", "batch", "resets", "eval/n"), 10)  # counters
        return sorted(made, key=lambda g: 0 if g[0].startswith("FID") else 1 if g[0].startswith("IS") else rank.get(g[0], 4))

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
        lines: list[Line] = [strip] if strip else []
        wide = (width - 2) // 2 if across == 2 else width
        blocks = [curves.lines([(self.run, style, "")], group[0], wide, tall, frame, group[1:]) for group in shown]
        for row in range(0, len(blocks), across):
            lines += draw.beside(*blocks[row : row + 2], wide) if len(blocks[row : row + across]) > 1 else blocks[row]
        return lines

    def samples(self, width: int, height: int) -> list[Line]:
        from PIL import Image

        if self.state.pixels and (found := sample_at(self.run, self.view.at)):
            with contextlib.suppress(ValueError):  # sample_lines reports the error
                if self.pictured != (now := (found[1], self.across)):
                    self.query_one("#pixels").image = Image.fromarray(draw.part(open_image(found[1]), self.across))
                    self.pictured = now
        lines = sample_lines(self.run, self.view.at, width, height, self.across, self.state.images)
        return lines[:1] if self.state.pixels else lines

    def config(self, width: int, _: int) -> list[Line]:
        preset = clean(self.run.config.get("preset"))
        script = next((s for s in self.state.scripts()[0] if s.path.name == self.run.script), None)
        return pages.configuration(self.run, width, script.defaults(preset) if script else None, self.view.at)

    def metric_now(self) -> str:
        sets = self.sets()
        return sets[self.first % len(sets)][0] if sets else ""

    def action_back(self) -> None:
        if self.view.at is not None:
            self.view.at = None
            self.update_all()
        else:
            super().action_back()

    def action_move(self, key: str) -> None:
        if self.tab == "log":
            self.query_one(LogView).move(key)
            self.update("tabs")
        elif self.tab == "charts" and key in ("pageup", "pagedown"):
            self.first = (self.first + (self.per_page if key == "pagedown" else -self.per_page)) % max(1, len(self.sets()))
            self.update_all()
        else:
            super().action_move(key)

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
        if self.tab in ("samples", "architecture"):
            where = ("samples", ".png") if self.tab == "samples" else ("genotypes", ".json")
            return [float(step) for step, _ in self.run.files(*where)]
        return sorted(set(self.run.search.steps if self.tab == "search" else (e["step"] for e in self.run.columns.evals)))

    def action_best(self) -> None:
        if best := self.run.best():
            self.view.at = best["step"]
            self.update_all()
        else:
            self.notify("not evaluated yet")

    def action_pick(self, by: int) -> None:
        what = "cell" if self.tab == "architecture" else "pick"
        setattr(self.view, what, getattr(self.view, what) + by)
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
        log = self.query_one(LogView)
        log.follow = not log.follow
        log.draw()
        self.update("tabs")

    def action_find(self) -> None:
        log = self.query_one(LogView)

        def done(pattern: str) -> None:
            log.pattern = pattern
            if pattern:
                self.jump(pattern, 1, start=log.number(log.top) - 1 if len(log) else -1)

        self.ask("search the log", log.pattern, done, hint="regular expression; n next, N previous")

    def action_match(self, by: int) -> None:
        log = self.query_one(LogView)
        if log.pattern:
            self.try_jump(log.pattern, by, f"no match for {log.pattern}")

    def action_trouble(self) -> None:
        self.try_jump(BAD_LINE, 1, "no errors in this log")

    def try_jump(self, pattern: str, by: int, none: str) -> None:
        try:
            self.jump(pattern, by, self.query_one(LogView).hit)
        except ValueError:
            self.notify(none, severity="warning", markup=False)

    def jump(self, pattern: str, by: int, start: int) -> None:
        """Go to the next or previous matching line, wrapping around. ValueError: there is none, or no valid pattern."""
        log = self.query_one(LogView)
        if not (hits := log.matching(pattern)):
            raise ValueError(f"no match for {pattern}")
        after = [h for h in hits if h > start] if by > 0 else [h for h in hits if h < start]
        log.show_line((after or hits)[0 if by > 0 else -1])
        self.update("tabs")

    def action_only(self) -> None:
        log = self.query_one(LogView)

        def done(pattern: str) -> None:
            log.set_filter(pattern)
            self.update("tabs")

        self.ask("show only lines matching", log.filter, done, hint="regular expression; empty shows all lines")

    def action_line(self) -> None:
        log = self.query_one(LogView)

        def done(text: str) -> None:
            if not text.strip().isdecimal() or not 0 < int(text) <= len(log.log_file or ()):
                raise ValueError(f"enter a number from 1 to {len(log.log_file or ())}")
            log.show_line(int(text) - 1)

        self.ask("go to line", "", done)

    def exported(self) -> list[Run]:
        return [self.run]

    def copied(self) -> str:
        if self.tab in ("architecture", "search"):
            return json.dumps(self.run.genotype_at(self.view.at))
        if self.tab == "log":
            return self.query_one(LogView).text
        return clean(self.run.config.get("command"), 5000) or str(self.run.path)
