"""What all screens share: key bindings, multi-run charts, the screen base class, dialogs, help."""

import os
import re
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.keys import format_key
from textual.screen import ModalScreen, Screen
from textual.widgets import Input

from ui import acts, draw, pages, report
from ui.curves import is_score
from ui.draw import Line, fit
from ui.files import clean
from ui.runs import Run
from ui.state import State
from ui.view import View
from ui.widgets import Doc, Lines, safely

MOVES = [
    Binding("up,k", "move('up')", "up", show=False),
    Binding("down,j", "move('down')", "down", show=False),
    Binding("pageup", "move('pageup')", "page up", show=False),
    Binding("pagedown", "move('pagedown')", "page down", show=False),
    Binding("home,g", "move('home')", "go to the top", show=False),
    Binding("end,G", "move('end')", "go to the end; follow the log", show=False),
]
CURVES = [
    Binding("m", "metric", "metric: next"),
    Binding("e", "setting('ema')", "smooth: 0, 0.6, 0.9, 0.99"),
    Binding("y", "log", "log y: toggle the log scale"),
    Binding("t", "setting('axis')", "x axis: step, hours, GPU-hours", show=False),
    Binding("z", "zoom", "zoom: last 20%, lowest values, front only", show=False),
    Binding("b", "setting('band')", "show raw values behind smoothed curves", show=False),
    Binding("v", "inspect", "read values at a step", show=False),
    Binding("left", "sideways(-1)", "move chart cursor or scroll log left", show=False),
    Binding("right", "sideways(1)", "move chart cursor or scroll log right", show=False),
]
ACTS = [  # upper case: act on a run's process or directory; disabled by --readonly
    Binding("I", "act('stop')", "stop: finish the step, save, exit"),
    Binding("Z", "act('pause')", "pause, or continue if paused"),
    Binding("R", "act('resume')", "resume: from the checkpoint"),
    Binding("T", "act('terminate')", "terminate (SIGTERM)", show=False),
    Binding("K", "act('kill')", "kill (SIGKILL); asks first", show=False),
    Binding("D", "act('trash')", "move to runs/.trash", show=False),
    Binding("U", "act('undo')", "restore the last run moved to the trash", show=False),
    Binding("r", "rerun", "re-run: edit the options and launch again"),
    Binding("d", "derive", "train this run's genotype", show=False),
]
EVERYWHERE = [
    Binding("question_mark", "help", "help"),
    Binding("colon", "command_palette", "palette: actions, runs, metrics, themes"),
    Binding("x", "export", "export: CSV, Markdown, LaTeX, SVG, HTML"),
    Binding("w", "yank", "copy path, command, genotype or lines"),
    Binding("ctrl+l", "redraw", "redraw the screen"),
    Binding("ctrl+z", "suspend_process", "suspend the UI"),
    Binding("q", "quit", "quit; runs keep running"),
]


class Page(Screen):
    """Base of the screens: a key footer, a "too small" notice, and widgets whose errors do not crash the UI."""

    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-narrow"), (100, "-wide"), (140, "-broad")]
    VERTICAL_BREAKPOINTS: ClassVar = [(0, "-short"), (30, "-tall")]
    moved = "#content"  # the widget that the arrow keys move

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state, self.view = state, View()

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

    on_mount = on_screen_resume

    def changed(self, names: set[str]) -> None:
        """Called when these runs have new data, and once a second with an empty set if nothing changed."""

    def update_all(self) -> None:
        """Rebuild everything, e.g. after a resize or a changed setting."""
        self.changed(set(self.state.store.runs))
        self.query_one("#keys", Doc).rebuild()

    def update(self, *ids: str) -> None:
        for name in ids:
            safely(self, name, self.query_one(f"#{name}", Doc).rebuild)

    def restyle(self) -> None:
        for widget in self.query("Doc, Table, LogView"):
            widget.restyle()

    def offered(self, binding: Binding) -> bool:
        """Whether the footer shows a key: only if it does something now."""
        run, found = self.run_now(), re.fullmatch(r"act\('(\w+)'\)", binding.action)
        if not binding.show or self.why_not(binding):
            return False
        busy = run is not None and (run.live or (run.state == "queued" and "stop" in binding.action))
        return not found or busy == (found[1] in ("stop", "pause", "terminate", "kill"))

    def keys(self, width: int, _: int) -> list[Line]:
        """The footer: as many keys as fit; help lists all."""
        last: Line = [("?", "key"), (" help ", "")]
        line: Line = [(" ", "")]
        self.key_spots: list[tuple[int, int, str]] = []
        for binding in self.BINDINGS:
            if not self.offered(binding) or (self.state.readonly and touches(binding)):
                continue
            label = re.split("[:,;]", binding.description)[0]
            part: Line = [(key_name(binding.key), "key"), (f" {label}  ", "")]
            at, wide = draw.width_of(line), draw.width_of(part)
            if at + wide + draw.width_of(last) <= width:
                self.key_spots.append((at, at + wide, binding.action))
                line += part
        self.key_spots.append((draw.width_of(line), width, "app.help"))
        return [[*line, *last]]

    async def on_click(self, event: events.Click) -> None:
        for a, b, action in self.key_spots if event.widget is self.query_one("#keys") else ():
            if a <= event.x < b:
                await self.run_action(action)

    def why_not(self, binding: Binding) -> str:
        """Why a key of this screen does nothing now; "" if it does something."""
        return ""

    def on_key(self, event: events.Key) -> None:
        found = [b for b in self.BINDINGS if event.key in b.key.split(",")]
        reasons = [self.why_not(b) for b in found]
        if found and all(reasons):
            self.notify(f"{key_name(found[0].key)}: {reasons[0]}", severity="warning", markup=False)

    def action_setting(self, what: str) -> None:
        """The next value of a setting of all charts."""
        self.state.curves.turn(what)
        if what == "ema" and is_score(self.metric_now()):
            self.notify(f"moving average {self.state.curves.ema:g} for losses; scores are never smoothed")
        self.update_all()

    def action_zoom(self) -> None:
        self.action_setting("zoom")

    def action_log(self) -> None:
        metric = self.metric_now()
        self.state.curves.logs[metric] = not self.state.curves.log(metric)
        self.update_all()

    def action_inspect(self) -> None:
        self.state.curves.inspect = 1.0 if self.state.curves.inspect is None else None
        self.update_all()

    def action_sideways(self, by: int) -> None:
        if self.state.curves.inspect is None:
            self.notify("v shows values at a step; ← → then move it")
        else:
            self.state.curves.inspect = min(1.0, max(0.0, self.state.curves.inspect + by / 100))
            self.update_all()

    # -- moving, in the page and in time
    def action_back(self) -> None:
        self.app.pop_screen()

    def action_move(self, key: str) -> None:
        self.query_one(self.moved, Lines).move(key)

    def action_scrub(self, by: int) -> None:
        """Show an earlier or later one of this screen's moments. After the last one comes the live state, which equals it."""
        steps, now = self.moments(), self.view.at
        if by > 0:
            self.view.at = next((s for s in steps if now is not None and s > now), None)
        elif earlier := [s for s in steps if now is None or s < now][: -1 if now is None and len(steps) > 1 else None]:
            self.view.at = earlier[-1]
        else:
            self.notify("no earlier step with data for this tab")
        self.update_all()

    def exported(self) -> list[Run]:
        """The runs of this screen; [] if it shows none."""
        return []

    def csv(self) -> str:
        return report.metrics_csv(self.exported())

    def markdown(self) -> str:
        return report.markdown(self.exported())

    def latex(self) -> str:
        return report.latex(self.exported())

    def copied(self) -> str:
        return ""

    # -- actions on the current run
    def run_now(self) -> Run | None:
        return None

    def refuse(self) -> bool:
        """In read-only mode, say so and return True."""
        if self.state.readonly:
            self.notify("read-only mode: runs cannot be started, stopped or modified", severity="warning")
        return self.state.readonly

    def try_to(self, what: str, do: Callable[[], str]) -> None:
        """Change something, and tell what has been done, or why it cannot be done."""
        if self.refuse():
            return
        try:
            if told := do():
                self.notify(told, markup=False)
        except (OSError, ValueError) as e:
            why = os.strerror(e.errno) if isinstance(e, OSError) and e.errno else e
            self.notify(f"{what}: {why}", severity="error", markup=False)
        self.state.wake.set()
        self.update_all()

    def act(self, what: str, run: Run | None) -> None:
        if run or what == "undo":
            self.try_to(what, partial(acts.ACTS[what], self.state, run))

    def action_act(self, what: str) -> None:
        run = self.run_now()
        if what == "kill" and run:
            self.try_to(what, partial(self.ask_to_kill, run))
        else:
            self.act(what, run)

    def ask_to_kill(self, run: Run) -> str:
        acts.process_of(run)  # before asking
        answers = [("y", "yes, send SIGKILL", partial(self.act, "kill", run))]
        self.app.push_screen(Choose(f"Kill {run.name}? Progress since its last checkpoint is lost.", answers))
        return ""

    def ask(self, label: str, text: str, done: Callable[[str], object], hint: str = "", live: bool = False) -> None:
        self.app.push_screen(Ask(label, text, done, hint, live))

    def copy(self, text: str) -> None:
        if text:
            self.app.copy_to_clipboard(text)
            first = clean(text.partition("\n")[0], 100)
            self.notify(f"copied via OSC 52 (in tmux: set -s set-clipboard on): {first}", markup=False)


def key_name(keys: str) -> str:
    """A key as displayed: `space`, `/`, `↑ k`."""
    return " ".join(map(format_key, keys.split(",")))


def touches(binding: Binding) -> bool:
    """Whether an action starts, controls or modifies a run."""
    return binding.action.startswith("act(") or binding.action in ("rerun", "derive", "new", "tags", "pin")


class Ask(ModalScreen):
    """Prompt for one line of text. done(text) raises ValueError if it cannot be; live: also call it on every keystroke."""

    BINDINGS: ClassVar = [Binding("escape", "cancel", "cancel")]

    def __init__(self, label: str, text: str, done: Callable[[str], object], hint: str = "", live: bool = False) -> None:
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
            self.give(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.give(event.value)
        if not self.wrong:
            self.dismiss()

    def action_cancel(self) -> None:
        if self.live:
            self.give(self.value)
        self.dismiss()

    def give(self, text: str) -> None:
        try:
            self.wrong = ""
            self.done(text)
        except ValueError as e:
            self.wrong = clean(e, 300)
        self.query_one("#label", Doc).rebuild()


class Choose(ModalScreen):
    """A question with one key per answer."""

    BINDINGS: ClassVar = [Binding("escape", "dismiss", "cancel")]

    def __init__(self, question: str, answers: list[tuple[str, str, Callable[[], None]]]) -> None:
        super().__init__()
        self.question, self.answers = question, answers

    def compose(self) -> ComposeResult:
        yield Doc(self.lines, base="bar", id="choose")

    def on_mount(self) -> None:
        self.query_one(Doc).styles.height = len(self.answers) + 5  # question, blank line, "cancel" and border

    def lines(self, width: int, _: int) -> list[Line]:
        rows = [[(f"  {key}", "key"), (f"  {text}", "")] for key, text, _ in self.answers]
        return [[(f" {self.question}", "bold")], [], *rows, [("  esc", "key"), ("  cancel", "")]]

    def on_key(self, event: events.Key) -> None:
        self.answer(next((i for i, (key, _, _) in enumerate(self.answers) if key == event.key), -1), event)

    def on_click(self, event: events.Click) -> None:
        row = event.y - 3 if event.widget is self.query_one(Doc) else len(self.answers)
        self.answer(row, event)
        if row == len(self.answers):  # cancel, or outside the dialog
            self.dismiss()

    def answer(self, i: int, event: events.Event) -> None:
        if 0 <= i < len(self.answers):
            event.stop()
            self.dismiss()
            self.app.call_later(self.answers[i][2])


class Help(ModalScreen):
    """All keys of the screen below, taken from its bindings."""

    BINDINGS: ClassVar = [Binding("escape,question_mark,q", "dismiss", "back"), *MOVES]

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.below = screen

    def compose(self) -> ComposeResult:
        yield Doc(self.lines, id="help")

    def lines(self, width: int, _: int) -> list[Line]:
        lines: list[Line] = [[(f" Keys: {type(self.below).__doc__.splitlines()[0]}", "bold")], []]
        two = width >= 112
        half = width // 2 if two else width
        for title, rows in key_groups(type(self.below)):
            lines.append([(f" {title}", "bold key")])
            made = [[(f"  {fit(key, 12)}", "key"), (fit(text, half - 15), "")] for key, text in rows]
            cut = -(-len(made) // 2)
            lines += draw.beside(made[:cut], made[cut:], half) if two else made
            lines.append([])
        notes = (
            "Upper-case keys act on a run's process or files (off with --readonly).",
            "Quitting the UI does not stop any run.",
            "If logging out kills runs: loginctl enable-linger, or use tmux.",
            "States: " + "  ".join(f"{g} {s}" for s, g in pages.GLYPHS.items()),
        )
        return [*lines, *([(f" {text}", "dim")] for text in notes)]

    def action_move(self, key: str) -> None:
        self.query_one(Doc).move(key)


def key_groups(screen: type[Screen]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The bindings of a screen in groups: [(title, [(keys, description)])]."""
    known = {"this run": ACTS, "charts": CURVES, "move": MOVES}
    own = [b for b in screen.BINDINGS if not any(b in group for group in known.values())]
    groups = {"this screen": own} | {title: [b for b in group if b in screen.BINDINGS] for title, group in known.items()}
    groups["everywhere"] = EVERYWHERE
    return [(title, [(key_name(b.key), b.description) for b in found]) for title, found in groups.items() if found]
