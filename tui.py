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

ui/files.py, ui/samples.py  untrusted files, logs       ui/draw.py     charts, diagrams, heat maps, images as text
ui/runs.py     a run, its state, all runs of a folder   ui/curves.py   metrics as arrays, charts of several runs
ui/search.py   search.jsonl                             ui/pages.py    contents of a run's tabs, of all methods
ui/query.py    filters and sorting                      ui/genotypes.py  cells, distances, the architecture tab
ui/state.py, ui/view.py  what the user has chosen       ui/eagan.py, ui/probabilities.py, ui/autogan.py  search pages
ui/launch.py   script options, starting runs, GPUs      ui/compare.py  comparison of runs
ui/report.py   --plain, CSV, Markdown, LaTeX, HTML      ui/acts.py     stop, pause, resume, kill, trash
ui/form.py     the launch form                          ui/widgets.py, ui/base.py  widgets, keys, dialogs
this file      the app and the command line             ui/screens.py, ui/pair.py, ui/results.py  list, run, two, all
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import typer

if os.environ.get("SSH_CONNECTION"):  # must be set before importing textual
    os.environ.setdefault("TEXTUAL_FPS", "15")
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")

from textual import work
from textual.app import App
from textual.command import DiscoveryHit, Hit, Provider
from textual.widget import Widget

from ui import acts, draw, launch, pages, report
from ui.base import EVERYWHERE, Choose, Help, Page, key_groups, key_name
from ui.curves import is_score, metrics
from ui.files import clean
from ui.form import Form
from ui.pair import Compare
from ui.query import ordered, query
from ui.results import Results
from ui.runs import Run, Store
from ui.screens import OneRun, Runs
from ui.state import State
from ui.widgets import THEMES, Problem, safely, use_palette

# ---- keys and commands ------------------------------------------------------------------------------------------------


def key_table(rows: Iterable[tuple[str, str]]) -> str:
    return "| key | action |\n|---|---|\n" + "".join(f"| `{key}` | {does} |\n" for key, does in rows)


def first_keys() -> str:
    """The key table in README.md: the keys in the footer of the run list."""
    return key_table((key_name(b.key), b.description) for b in Runs.BINDINGS if b.show)


def key_tables() -> str:
    """The key tables in docs/tui.md."""
    parts = []
    for title, screen in (
        ("Runs", Runs),
        ("One run", OneRun),
        ("Compare", Compare),
        ("Results", Results),
        ("Launch form", Form),
    ):
        rows = [row for name, found in key_groups(screen) if name not in ("move", "everywhere") for row in found]
        parts.append(f"### {title}\n\n{key_table(rows)}")
    groups = dict(key_groups(Runs))
    parts.append(f"### Everywhere\n\n{key_table(groups['move'] + groups['everywhere'])}")
    return "\n".join(parts)


class Commands(Provider):
    """The command palette: the current screen's actions, all runs, metrics and themes."""

    def every(self) -> Iterator[tuple[str, str, Callable]]:
        app, screen = self.app, self.screen
        for binding in [*getattr(screen, "BINDINGS", []), *app.BINDINGS]:
            yield binding.description, key_name(binding.key), partial(screen.run_action, binding.action)
        for run in app.state.store.ordered():
            yield f"open {run.name}", run.state, partial(app.push_screen, OneRun(app.state, run))
        for metric in app.state.labels() + sorted(
            {m for r in app.state.store.ordered() for m in metrics(r) if not is_score(m)}
        ):
            yield f"chart {metric}", "", partial(app.choose_metric, metric)
        for trashed, original in app.state.store.trashed():
            do = partial(acts.restore, app.state, trashed, original)
            yield f"restore {original.name}", "from the trash", partial(screen.try_to, "restore", do)
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
    """The app: a stack of screens over one store of runs, which a background thread keeps up to date."""

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
    #pixels { height: 1fr; width: auto; }
    #preview, #host { display: none; }
    #host-below { height: 1; }
    .-wide.-tall #preview, .-broad.-tall #preview { display: block; height: 5; }
    .-wide.-tall #host, .-broad.-tall #host { display: block; }
    .-wide.-tall #host-below, .-broad.-tall #host-below { display: none; }
    #head { height: 3; }
    #dry { display: none; }
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
    BINDINGS: ClassVar = EVERYWHERE

    def __init__(
        self,
        root: Path,
        readonly: bool = False,
        look: str = "dark",
        scripts_dir: Path | None = None,
        on_finish: str = "",
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
        first = True
        while not self.leaving.is_set():
            began = time.perf_counter()
            try:
                names = self.state.store.scan() | self.state.store.refresh()
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
                self.call_from_thread(self.changed, names)
            except RuntimeError:
                return  # the app has exited
            except Exception as e:  # a bad run directory must not stop polling; retry in a second
                self.complain("reading runs", e)
            first = False
            behind = any(not r.loaded for r in self.state.store.ordered())
            self.state.wake.wait(0.05 if behind else self.interval)
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
            old = self.states.get(name)
            if old is None or old == state:
                continue
            run = self.state.store.runs[name]
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
                    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
                    subprocess.Popen(self.on_finish, shell=True, env=env, **nowhere)
        self.states = now
        for name, found in list(self.troubles.items()):
            for kind, text in found.items():
                if (name, kind) not in self.warned:
                    self.warned.add((name, kind))
                    self.notify(f"{name}: {text}", severity="warning", markup=False)
                    self.bell()
        for name, since in list(self.state.stopping.items()):
            run = self.state.store.runs.get(name)
            if run is None or not run.live:
                del self.state.stopping[name]
            elif time.monotonic() - since > 30:
                self.notify(
                    f"{name} is still running 30 s after the stop request: press T to terminate, K to kill",
                    severity="warning",
                    markup=False,
                )
                del self.state.stopping[name]

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
        with contextlib.suppress(RuntimeError):
            (
                self.notify
                if threading.current_thread() is threading.main_thread()
                else partial(self.call_from_thread, self.notify)
            )(text, severity="error", markup=False)

    # -- display

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

    # -- settings kept between sessions: runs/.tui.json

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
        if hasattr(self.screen, "copied"):
            self.screen.copy(self.screen.copied())

    def action_export(self) -> None:
        screen = self.screen
        if not hasattr(screen, "exported"):
            return
        runs = screen.exported()
        tables = f"tables of {draw.count(len(runs), 'run')}"
        svg = self.export_screenshot(title="GAN architecture search")
        kinds = [
            ("c", "CSV: all values", "csv", screen.csv),
            ("m", f"Markdown: {tables}", "md", getattr(screen, "markdown", lambda: report.markdown(runs))),
            ("l", f"LaTeX: {tables}", "tex", getattr(screen, "latex", lambda: report.latex(runs))),
            ("s", "SVG: this screen", "svg", lambda: svg),
            (
                "h",
                "HTML: a self-contained report",
                "html",
                lambda: report.html_report(runs, f"Runs of {self.state.store.root}"),
            ),
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
    asked: Annotated[
        str, typer.Argument(metavar="[QUERY]", help="With --json: list matching runs, as --filter does.")
    ] = "",
    plain: Annotated[
        bool, typer.Option("--plain", help="Print the status of all runs as plain text and exit.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print runs as JSON. Exit code: 0 done, 1 failed, 3 running, 4 no such run.")
    ] = False,
    readonly: Annotated[
        bool, typer.Option("--readonly", help="Do not start, stop or modify runs; for shared servers.")
    ] = False,
    theme: Annotated[
        Literal["dark", "light", "colour-blind", "ansi"] | None,
        typer.Option(
            help="Colours; ansi uses the terminal's own 16. Default: light or dark as COLORFGBG says, else dark."
        ),
    ] = None,
    filter: Annotated[
        str, typer.Option(help="Show matching runs only, e.g. 'cifar10 fid<15 state=running'; see docs/tui.md.")
    ] = "",
    scripts: Annotated[
        Path | None, typer.Option(help="Directory of the scripts to launch; default: that of tui.py.")
    ] = None,
    on_finish: Annotated[
        str, typer.Option(help="Shell command to execute when a run ends, with GAN_RUN and GAN_STATE set.")
    ] = "",
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
    if filter:
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
    for output in (sys.stdout, sys.stderr):  # what a terminal cannot show is "?"
        output.reconfigure(errors="replace")
    typer.run(main)
