"""The screen that compares two runs."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding

from ui import compare, draw, report
from ui.base import CURVES, MOVES, Page
from ui.curves import metrics
from ui.draw import Line, crop, human
from ui.runs import Run
from ui.samples import sample_lines
from ui.state import State
from ui.view import View
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
        self.a, self.b, self.view, self.sources, self.metric = a, b, View(), False, ""

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
        lines = compare.compare(self.a, self.b, 100, self.view)
        return "\n".join(draw.plain(line) for line in lines)
