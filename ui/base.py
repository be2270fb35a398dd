"""What the screens share: keys, charts of several runs, the base of a screen, dialogs, the help."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen, Screen
from textual.widgets import Input

from ui import draw, pages
from ui.draw import Line, Series, crop, fit
from ui.runs import Ema, Run, same_but_seed
from ui.widgets import Doc

if TYPE_CHECKING:
    from tui import Tui

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
    Binding("z", "zoom", "zoom: all, last 20 %, lowest values; the front of a population", show=False),
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
EVERYWHERE = [
    Binding("question_mark", "help", "help"),
    Binding("colon", "command_palette", "palette: every action, run, metric, theme"),
    Binding("x", "export", "export what is shown: CSV, Markdown, LaTeX, SVG, HTML"),
    Binding("w", "yank", "copy path, command, genotype or lines (OSC 52)"),
    Binding("ctrl+l", "redraw", "draw anew"),
    Binding("ctrl+z", "suspend_process", "suspend"),
    Binding("q", "quit", "quit; runs go on"),
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
                own, mark = (
                    (f"s{k}", (name[-1] if name[-2:-1] == " " else name.rpartition("/")[2][0]).lower())
                    if more
                    else (style, letter)
                )
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
            if np.isfinite(y).any():
                x = x + np.arange(len(x)) * 1e-9 * (x[-1] - x[0])  # two phases may score at one step: no x twice
                groups.setdefault(same_but_seed(run), []).append((x, self.smoothed(run, metric, y)))
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
        self.key_spots: list[tuple[int, int, str]] = []
        for binding in self.BINDINGS:
            if not self.offered(binding) or (self.app.readonly and touches(binding)):
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
        if event.widget is self.query_one("#keys"):
            for a, b, action in self.key_spots:
                if a <= event.x < b:
                    await self.run_action(action)

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
        self.query_one(Doc).styles.height = len(self.answers) + 5  # question, a blank, no, and the border

    def lines(self, width: int, _: int) -> list[Line]:
        rows = [[(f"  {key}", "key"), (f"  {text}", "")] for key, text, _ in self.answers]
        return [[(f" {self.question}", "bold")], [], *rows, [("  esc", "key"), ("  no", "")]]

    def on_key(self, event: events.Key) -> None:
        self.answer(next((i for i, (key, _, _) in enumerate(self.answers) if key == event.key), -1), event)

    def on_click(self, event: events.Click) -> None:
        row = event.y - 3 if event.widget is self.query_one(Doc) else len(self.answers)
        self.answer(row, event)
        if row == len(self.answers):  # no, or beside the question
            self.dismiss()

    def answer(self, i: int, event: events.Event) -> None:
        if 0 <= i < len(self.answers):
            event.stop()
            self.dismiss()
            self.app.call_later(self.answers[i][2])


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
    groups += [("move", [b for b in MOVES if b in screen.BINDINGS]), ("everywhere", EVERYWHERE)]
    return [(title, [(key_name(b.key), b.description) for b in found]) for title, found in groups if found]
