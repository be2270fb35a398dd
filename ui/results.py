"""The screen with a paper's tables of some runs: the computation of common.report, which also exports them."""

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding

from ui import draw
from ui.base import MOVES, Page
from ui.draw import Line
from ui.files import clean
from ui.runs import Run
from ui.state import State
from ui.widgets import Doc


class Results(Page):
    """Results over seeds: each score's mean and spread, against random search, costs, the checklist."""

    BINDINGS: ClassVar = [Binding("escape", "back", "back"), *MOVES]

    def __init__(self, state: State, runs: list[Run]) -> None:
        super().__init__(state)
        self.runs = runs
        self.found: dict | None = None  # of common.report
        self.wrong = ""

    def body(self) -> ComposeResult:
        yield Doc(
            lambda w, h: [[(f" results of {draw.count(len(self.runs), 'run')}   x exports them", "bold")]], base="bar", id="top"
        )
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
            parts = draw.wrapped(clean(self.wrong, 2000).split(" "), width - 2, " ")
            return [
                [],
                *([(f" {part}", "bad")] for part in parts),
                [],
                [(" overlay with space only what belongs together", "dim")],
            ]
        if self.found is None:
            return [[(" reading…", "dim")]]
        from common.report import tables

        lines: list[Line] = []
        for t in tables(self.found):
            lines += [[(f" {part}", "bold")] for part in draw.wrapped(t.title.split(" "), width - 2, " ")]
            if t.title.startswith(("Notes", "Checklist")):  # sentences, one below the other
                for row in t.rows:
                    parts = draw.wrapped(clean(" · ".join(cell for cell in row if cell), 2000).split(" "), width - 5, " ")
                    lines += [[(f"   {'  ' * (i > 0)}{part}", "")] for i, part in enumerate(parts)]
            else:
                cells = [[clean(cell.replace("**", "")) for cell in row] for row in t.rows]
                lines += draw.indent(draw.table(t.head, cells, "l" + "r" * (len(t.head) - 1), most=60))
            lines.append([])
        return lines

    def action_back(self) -> None:
        self.app.pop_screen()

    def action_move(self, key: str) -> None:
        self.query_one("#content", Doc).move(key)

    def exported(self) -> list[Run]:
        return self.runs

    def copied(self) -> str:
        return self.markdown()

    def csv(self) -> str:
        return self._as("comma_separated")

    def markdown(self) -> str:
        return self._as("markdown")

    def latex(self) -> str:
        return self._as("latex")

    def _as(self, form: str) -> str:
        from common import report

        if self.found is None:
            raise ValueError(self.wrong or "the runs are still being read")
        return getattr(report, form)(self.found)
