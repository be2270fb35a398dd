"""The screens about several runs: a comparison of two, and a paper's tables, computed and exported by common.report."""

from collections.abc import Iterator
from functools import partialmethod
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding

from ui import compare, draw
from ui.base import CURVES, MOVES, Page
from ui.curves import metrics
from ui.draw import Line, crop, human
from ui.files import clean
from ui.pages import sample_lines
from ui.runs import Run
from ui.state import State
from ui.widgets import Doc


class Compare(Page):
    """Two runs side by side, with their differences."""

    BINDINGS: ClassVar = [
        Binding("escape", "back", "back"),
        Binding("p", "sources", "sources: diff of the saved scripts"),
        Binding("comma", "scrub(-1)", "earlier: an earlier step"),
        Binding("full_stop", "scrub(1)", "later: a later step, then the live state"),
        Binding("s", "swap", "swap A and B"),
        *CURVES,
        *MOVES,
    ]

    def __init__(self, state: State, a: Run, b: Run) -> None:
        super().__init__(state)
        self.a, self.b, self.sources, self.metric = a, b, False, ""

    def body(self) -> ComposeResult:
        yield Doc(self.top_line, base="bar", id="top")
        yield Doc(self.content, id="content")

    def on_mount(self) -> None:
        super().on_mount()
        self.state.want(self.a)
        self.state.want(self.b)

    def changed(self, names: set[str]) -> None:
        if names & {self.a.name, self.b.name}:
            self.update("top", "content")

    def top_line(self, width: int, _: int) -> list[Line]:
        room = (width - 34 if self.view.at is not None else width - 18) // 2
        a, b = (draw.fit_middle(r.name, min(len(r.name), room)) for r in (self.a, self.b))
        line: Line = [(" compare ", "bold"), ("▌A ", "s0"), (a, "bold"), ("  ▌B ", "s1"), (b, "bold")]
        line += [(f"   as of step {human(self.view.at)}", "warn")] if self.view.at is not None else []
        return [crop(line, width)]

    def common(self) -> list[str]:
        found = [m for m in metrics(self.a) if m in metrics(self.b)]
        return found or metrics(self.a) or [""]

    def metric_now(self) -> str:
        return self.metric if self.metric in self.common() else self.common()[0]

    def content(self, width: int, height: int) -> list[Line]:
        if self.sources:
            return compare.source_diff(self.a, self.b)
        tall = max(8, min(16, height // 2))
        wide = width if width < 100 else width * 3 // 5
        drawn = [(self.a, "s0", "A"), (self.b, "s1", "B")]
        curves, metric = self.state.curves, self.metric_now()
        runs = [(r, [metric]) for r, _, _ in drawn]
        chart = curves.lines(drawn, metric, wide, tall, curves.frame(runs, (), self.view.at if curves.axis == "step" else None))
        sides = []
        half = (width - wide - 4) // 2 if width >= 100 else (width - 3) // 2
        for run in (self.a, self.b):
            across = 4 if half >= 30 else 2
            sides.append([crop(line, half) for line in sample_lines(run, self.view.at, half, tall, across, self.state.images)])
        pictures = draw.beside(sides[0], sides[1], half, " ")
        lines = draw.beside(chart, pictures, wide) if width >= 100 else [*chart, *pictures]
        return [*lines, [], *compare.compare(self.a, self.b, width, self.view)]

    def action_back(self) -> None:
        self.action_sources() if self.sources else super().action_back()

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

    def moments(self) -> list[float]:
        runs = (self.a, self.b)
        samples = {step for run in runs for step, _ in run.files("samples", ".png")}
        return sorted(samples | {e["step"] for run in runs for e in run.columns.evals})

    def exported(self) -> list[Run]:
        return [self.a, self.b]

    def copied(self) -> str:
        lines = compare.compare(self.a, self.b, 100, self.view)
        return "\n".join(draw.plain(line) for line in lines)


class Results(Page):
    """Results over seeds: each score's mean and spread, against random search, costs, the checklist."""

    BINDINGS: ClassVar = [Binding("escape", "back", "back"), *MOVES]

    def __init__(self, state: State, runs: list[Run]) -> None:
        super().__init__(state)
        self.runs = runs
        self.found: dict | None = None  # of common.report
        self.wrong = ""

    def body(self) -> ComposeResult:
        title = f" results of {draw.count(len(self.runs), 'run')}   x exports them"
        yield Doc(lambda w, h: [[(title, "bold")]], base="bar", id="top")
        yield Doc(self.content, id="content")

    def on_mount(self) -> None:
        super().on_mount()
        self.compute()

    @work(thread=True)
    def compute(self) -> None:
        from common import report
        from common.files import UserError

        try:
            self.found = report.report(report.grouped([report.read(run.path) for run in self.runs]))
        except UserError as e:
            self.wrong = str(e)
        self.app.call_from_thread(self.update_all)

    def changed(self, names: set[str]) -> None:
        self.update("top", "content")

    def content(self, width: int, height: int) -> list[Line]:
        if self.wrong:
            words = clean(self.wrong, 2000).split(" ")
            return [[], *draw.hanging(" ", words, width, style="bad"), [], [(" overlay only what belongs together", "dim")]]
        if self.found is None:
            return [[(" reading…", "dim")]]
        from common.report import tables

        lines: list[Line] = []
        for t in tables(self.found):
            lines += draw.hanging(" ", t.title.split(" "), width, style="bold")
            if t.title.startswith(("Notes", "Checklist")):  # sentences, one below the other
                for row in t.rows:
                    lines += draw.hanging(" · ", clean(" · ".join(filter(None, row)), 2000).split(" "), width)
            else:
                cells = [[clean(cell.replace("**", "")) for cell in row] for row in t.rows]
                for head, *rows in fitting([t.head, *cells], width - 3):
                    lines += draw.indent(draw.table(head, rows, "l" + "r" * (len(head) - 1), most=60))
            lines.append([])
        return lines

    def exported(self) -> list[Run]:
        return self.runs

    def copied(self) -> str:
        return self.markdown()

    def _as(self, form: str) -> str:
        from common import report

        if self.found is None:
            raise ValueError(self.wrong or "the runs are still being read")
        return getattr(report, form)(self.found)

    csv, markdown = partialmethod(_as, "comma_separated"), partialmethod(_as, "markdown")
    latex = partialmethod(_as, "latex")


def fitting(rows: list[list[str]], width: int) -> Iterator[list[list[str]]]:
    """The table in as many pieces as the width demands, each with the first column."""
    first, *rest = zip(*rows, strict=True)
    wide = lambda columns: sum(max(map(draw.cell_len, column)) + 2 for column in columns)  # noqa: E731
    while rest:
        n = max([k for k in range(1, len(rest) + 1) if wide([first, *rest[:k]]) <= width], default=1)
        yield [list(row) for row in zip(first, *rest[:n], strict=True)]
        rest = rest[n:]
