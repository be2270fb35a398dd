# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch>=2.11", "torchvision>=0.26", "numpy>=2.0", "pillow>=10.3", "scipy>=1.13",
#   "pytorch-fid>=0.3.0", "typer>=0.19", "rich>=14.0", "textual>=8.0", "psutil>=6.0",
#   "nvidia-ml-py>=12.0",
# ]
# ///
"""Terminal UI to launch, monitor, control and compare runs: `python tui.py [runs/]`.

It reads run directories (docs/tui.md) and controls runs through their processes and directories. Runs therefore keep
running when the UI exits, and runs started from the command line are listed too. The UI does not import torch.

Below ui/state.py, what the user has chosen, ui/ computes and never draws on a terminal: run directories (files, runs, search,
foreign), launching (launch, acts), lines of text (draw, curves, pages, genotypes, one file for each method's page).
Above it are the screens (screens, several, form) and what they are made of (base, widgets).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NoReturn

import typer

if os.environ.get("SSH_CONNECTION"):  # must be set before importing textual
    os.environ.setdefault("TEXTUAL_FPS", "15")
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")

from textual import work
from textual.app import App, SystemCommand
from textual.screen import Screen
from textual.widget import Widget

from ui import acts, draw, launch, pages, report
from ui.base import EVERYWHERE, Choose, Help, Page, key_name
from ui.columns import ordered, query
from ui.curves import is_score, metrics
from ui.files import clean
from ui.runs import Run, Store
from ui.screens import OneRun, Runs
from ui.state import State
from ui.widgets import THEMES, Problem, safely, use_palette


# ---- the app ----------------------------------------------------------------------------------------------------------
class Tui(App):
    """The app: a stack of screens over one store of runs, which a background thread keeps up to date."""

    TITLE = "GAN architecture search"
    CSS = """
    Screen { layers: base; }
    #tiny { display: none; height: 1fr; }
    .-tiny #tiny { display: block; }
    .-tiny #whole { display: none; }
    #top, #keys, #status, #tabs, #host-below, #ask Doc { height: 1; }
    #middle { height: 1fr; layout: vertical; }
    .-wide #middle, .-broad #middle { layout: horizontal; }
    #left, #charts { height: 1fr; width: 100%; }
    .-wide #left { width: 60%; height: 100%; }
    .-broad #left { width: 54%; height: 100%; }
    .-wide #charts, .-broad #charts { width: 1fr; height: 100%; }
    #whole, #table, #options, #content, #log { height: 1fr; }
    #pixels { height: 1fr; width: auto; }
    #preview, #host { display: none; }
    .-wide.-tall #preview, .-broad.-tall #preview { display: block; height: 5; }
    .-wide.-tall #host, .-broad.-tall #host { display: block; }
    .-wide.-tall #host-below, .-broad.-tall #host-below { display: none; }
    #head { height: 3; }
    #dry { display: none; }
    #foot { height: 7; }
    .-tall #foot { height: 10; }
    Ask { align: center bottom; background: $background 30%; }
    #ask { height: 2; }
    Choose { align: center middle; background: $background 50%; }
    #choose { width: 70; max-width: 90%; border: round $primary; }
    Help { align: center middle; background: $background 50%; }
    #help { width: 96%; height: 92%; border: round $primary; }
    """
    BINDINGS: ClassVar = EVERYWHERE

    def __init__(
        self, root: Path, readonly: bool = False, look: str = "dark", scripts_dir: Path | None = None, on_finish: str = ""
    ) -> None:
        super().__init__()
        scripts_dir = scripts_dir or Path(__file__).resolve().parent
        self.state = State(Store(root, launch.records), launch.Machine(root), scripts_dir, readonly)
        self.look, self.on_finish = look, on_finish
        self.states: dict[str, str] = {}
        self.troubles: dict[str, dict[str, str]] = {}  # of live runs: {name: {kind: message}}
        self.warned: set[tuple[str, str]] = set()
        self.interval = 1.0
        self.leaving = threading.Event()
        self.complaints: set[str] = set()

    def on_mount(self) -> None:
        self.use_theme(self.look)
        self.state.recall()
        self.push_screen(Runs(self.state))
        self.state.machine.start()
        self.call_after_refresh(threading.Thread(target=self.poll, daemon=True).start)

    # -- polling: a thread that checks the runs once a second
    def poll(self) -> None:
        first, told, names = True, 0.0, set[str]()
        while not self.leaving.is_set():
            began = time.perf_counter()
            try:
                names |= self.state.store.scan() | self.state.store.refresh()
                if first:
                    for run in self.state.store.ordered():
                        run.peek()
                self.state.poll_seconds = time.perf_counter() - began
                for name in list(self.state.wanted):
                    run = self.state.store.runs.get(name)
                    if run and run.load(0.2):
                        names.add(name)
                if not first:
                    names |= self.load_more()
                for name in names & set(self.state.store.runs):
                    if (run := self.state.store.runs[name]).live:
                        self.troubles[name] = pages.troubles(run)
                behind = any(not r.loaded for r in self.state.store.ordered())
                if first or not behind or time.perf_counter() - told > self.interval:  # reading is not slowed by drawing
                    self.call_from_thread(self.changed, names)
                    told, names = time.perf_counter(), set()
            except RuntimeError:
                return  # the app has exited
            except Exception as e:  # a bad run directory must not stop polling; retry in a second
                self.complain("reading runs", e)
                behind = False
            first = False
            self.state.wake.wait(0.02 if behind else self.interval)
            self.state.wake.clear()

    def load_more(self) -> set[str]:
        """Continue reading runs that are not on screen: those not fully read yet and those still running."""
        names, end = set(), time.perf_counter() + 0.1
        for run in self.state.store.ordered():
            if run.name not in self.state.wanted and (not run.loaded or run.live) and run.load(0.05):
                names.add(run.name)
            if time.perf_counter() > end:
                break
        return names

    def changed(self, names: set[str]) -> None:
        if not self.state.scanned:
            self.state.scanned = True
            ended = Counter(
                r.state
                for r in self.state.store.ordered()
                if r.name in self.state.before and r.state != self.state.before[r.name] and not r.live
            )
            self.state.since = dict(ended)
            if self.state.metric == "FID" and self.state.labels() and "FID" not in self.state.labels():
                self.state.metric = self.state.labels()[0]
        self.tell_transitions()
        self.state.shorts.clear()
        for name in set(self.state.wanted) - set(self.state.store.runs):
            del self.state.wanted[name]
        for screen in self.screen_stack:
            if isinstance(screen, Page) and screen.is_current:
                safely(self, "screen", partial(screen.changed, names))

    def tell_transitions(self) -> None:
        """Notify when a run ends, stalls or shows a first sign of trouble, and when a stop takes too long."""
        now = {r.name: r.state for r in self.state.store.ordered()}
        for name, state in now.items():
            if self.states.get(name) in (None, state) or state not in ("done", "failed", "stalled", "lost", "stopped"):
                continue
            run = self.state.store.runs[name]
            self.alarm(f"{name} {state} {run.why} {run.error}".strip(), state in ("failed", "stalled", "lost"))
            if self.on_finish and state != "stalled":
                env = {**os.environ, "GAN_RUN": str(run.path), "GAN_STATE": state}
                nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
                subprocess.Popen(self.on_finish, shell=True, env=env, **nowhere)
        self.states = now
        for name, found in list(self.troubles.items()):
            for kind, text in found.items():
                if (name, kind) not in self.warned:
                    self.warned.add((name, kind))
                    self.alarm(f"{name}: {text}")
        for name, since in list(self.state.stopping.items()):
            run = self.state.store.runs.get(name)
            late = run is not None and run.live and time.monotonic() - since > 30
            if late:
                self.alarm(f"{name} is still running 30 s after the stop request: press T to terminate, K to kill")
            if late or run is None or not run.live:
                del self.state.stopping[name]

    def alarm(self, text: str, bad: bool = True) -> None:
        self.notify(text, severity="warning" if bad else "information", markup=False)
        self.bell()

    def on_problem(self, event: Problem) -> None:
        self.complain(event.what, event.error)

    def complain(self, what: str, error: Exception) -> None:
        text = f"{what}: {type(error).__name__}: {clean(error, 200)}"
        if text in self.complaints:
            return
        self.complaints.add(text)
        import traceback

        if not self.state.readonly:
            with contextlib.suppress(OSError), open(self.state.store.root / ".tui.log", "a", encoding="utf-8") as f:
                f.write("".join(traceback.format_exception(error)))
        tell = partial(self.notify, text, severity="error", markup=False)
        with contextlib.suppress(RuntimeError):
            tell() if threading.current_thread() is threading.main_thread() else self.call_from_thread(tell)

    def choose_metric(self, metric: str) -> None:
        self.state.metric = metric
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

    def get_system_commands(self, screen: Screen) -> Iterator[SystemCommand]:
        """The command palette: the screen's actions, all runs, metrics, the trash, themes."""
        for binding in (*getattr(screen, "BINDINGS", ()), *self.BINDINGS):
            yield SystemCommand(binding.description, key_name(binding.key), partial(screen.run_action, binding.action))
        store = self.state.store
        for run in store.ordered():
            yield SystemCommand(f"open {run.name}", run.state, lambda run=run: self.push_screen(OneRun(self.state, run)))
        others = {m for run in store.ordered() for m in metrics(run) if not is_score(m)}
        for metric in (*self.state.labels(), *sorted(others)):
            yield SystemCommand(f"chart {metric}", "", partial(self.choose_metric, metric))
        for trashed, original in store.trashed():
            do = partial(acts.restore, self.state, trashed, original)
            yield SystemCommand(f"restore {original.name}", "from the trash", partial(screen.try_to, "restore", do))
        for theme in THEMES:
            yield SystemCommand(f"theme {theme}", "", partial(self.use_theme, theme))

    async def on_unmount(self) -> None:
        self.leaving.set()
        self.state.machine.left.set()
        self.state.wake.set()
        self.state.remember()

    # -- actions on every screen
    def action_help(self) -> None:
        if isinstance(self.screen, Page):
            self.push_screen(Help(self.screen))

    def action_redraw(self) -> None:
        self.refresh_screens()
        self.screen.refresh(layout=True)

    def action_yank(self) -> None:
        if isinstance(self.screen, Page):
            self.screen.copy(self.screen.copied())

    def action_export(self) -> None:
        screen = self.screen
        runs = screen.exported() if isinstance(screen, Page) else []
        if not runs:
            self.notify("nothing to export here", severity="warning")
            return
        tables, svg = f"tables of {draw.count(len(runs), 'run')}", self.export_screenshot(title="GAN architecture search")
        title = f"Runs of {self.state.store.root}"
        kinds: list[tuple[str, str, str, Callable[[], str]]] = [
            ("c", "CSV: all values", "csv", screen.csv),
            ("m", f"Markdown: {tables}", "md", screen.markdown),
            ("l", f"LaTeX: {tables}", "tex", screen.latex),
            ("s", "SVG: this screen", "svg", lambda: svg),
            ("h", "HTML: a self-contained report", "html", lambda: report.html_report(runs, title)),
        ]
        answers = [(k, text, partial(self.export, suffix, make, runs)) for k, text, suffix, make in kinds]
        self.push_screen(Choose("Export", answers))

    @work(thread=True, exclusive=True, group="export")
    def export(self, suffix: str, make: Callable[[], str], runs: list[Run]) -> None:
        """Write to exports/ in the current directory, never to runs/."""
        path = Path("exports") / f"{time.strftime('%Y%m%d-%H%M%S')}.{suffix}"
        try:
            for run in runs:
                run.load_all()
            text = make()
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        except (OSError, ValueError) as e:
            self.call_from_thread(self.notify, f"{path}: {e}", severity="error", markup=False)
            return
        self.call_from_thread(self.notify, f"wrote {path}, {draw.size(len(text))}", markup=False)


# ---- the command ------------------------------------------------------------------------------------------------------
def main(
    runs: Annotated[str, typer.Argument(help="Directory that contains the run directories.")] = "runs",
    asked: Annotated[str, typer.Argument(metavar="[QUERY]", help="With --json: list matching runs, as --filter does.")] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Print the status of all runs as plain text and exit.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print runs as JSON. Exit code: 0 done, 1 failed, 3 running, 4 no such run.")
    ] = False,
    readonly: Annotated[bool, typer.Option("--readonly", help="Do not start, stop or modify runs: shared servers.")] = False,
    theme: Annotated[
        Literal["dark", "light", "colour-blind", "ansi"] | None,
        typer.Option(help="Colours; ansi uses the terminal's own 16. Default: light or dark as COLORFGBG says, else dark."),
    ] = None,
    filter: Annotated[str, typer.Option(help="Show matching runs only, e.g. 'cifar10 fid<15'; see docs/tui.md.")] = "",
    scripts: Annotated[Path | None, typer.Option(help="Directory of the scripts to launch; default: that of tui.py.")] = None,
    on_finish: Annotated[str, typer.Option(help="Shell command to run when a run ends, with GAN_RUN and GAN_STATE set.")] = "",
) -> None:
    """Launch, monitor, control and compare runs in a terminal."""
    if as_json and not asked and runs != "runs" and not Path(runs).exists():  # `--json QUERY`
        runs, asked = "runs", runs
    root = Path(runs)
    try:
        chosen, also = query(filter), query(asked)
    except ValueError as e:
        refuse(f"--filter {e}" if not as_json else str(e))
    if root.exists() and not root.is_dir():
        refuse(f"{root} is a file, not a directory of runs")
    if asked and not as_json:
        refuse(f"{asked}: one directory of runs at a time; a query needs --json or --filter")
    if plain or as_json:
        tell(read_all(root), lambda run: chosen(run) and also(run), as_json)
        return
    if "TEXTUAL_DRIVER" not in os.environ and not all(os.isatty(fd) for fd in (0, 1, 2)):  # a driver: textual-serve
        refuse("not in a terminal: use --plain for text or --json for programs")
    app = Tui(root, readonly, theme or theme_of_terminal(), scripts, on_finish)
    app.state.pixels = pixels() if app.state.images else None
    app.state.set_filter(filter)
    end_with_the_terminal()
    app.run()


def tell(store: Store, chosen: Callable[[Run], bool], as_json: bool) -> None:
    """Print the runs as text, or as JSON with an exit code."""
    found = ordered(filter(chosen, store.ordered()), lambda r: r.name)
    if as_json:
        print(report.runs_json(store, found))
        raise typer.Exit(report.exit_code(found))
    machine = launch.Machine(store.root)
    machine.ask_once()
    for line in report.plain_lines(store, found, machine):
        print(clean(line, 2000))


def theme_of_terminal() -> str:
    """light if the terminal says, by COLORFGBG ("foreground;background"), that its background is white; else dark."""
    return "light" if os.environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15") else "dark"


def refuse(why: str) -> NoReturn:
    """One line, exit code 2."""
    print(f"error: {why}", file=sys.stderr)
    raise typer.Exit(2)


def read_all(root: Path) -> Store:
    """The runs of a directory, each read whole."""
    store = Store(root, launch.records)
    store.scan()
    store.refresh()
    for run in store.ordered():
        run.load_all()
    return store


def end_with_the_terminal() -> None:
    """Exit on SIGHUP even under nohup: without a terminal the UI would spin forever. Runs keep running."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pixels() -> type[Widget] | None:
    """An image widget, if textual-image is installed and the terminal supports sixel or kitty graphics."""
    try:
        from textual_image import renderable, widget  # queries the terminal, so import it before textual starts
    except Exception:  # not installed or incompatible: use half blocks
        return None
    return widget.Image if renderable.Image in (renderable.SixelImage, renderable.TGPImage) else None


if __name__ == "__main__":
    from common.files import show_anything

    show_anything()
    typer.run(main)
