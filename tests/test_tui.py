"""The terminal UI as a user meets it: keys in, text out. No torch, no GPU."""

import asyncio
import contextlib
import csv
import io
import json
import os
import pty
import random
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import textual.app
import textual.pilot
from fake_trainer import append, evolution, make_run, me, now, write
from rich.cells import cell_len
from textual.events import Paste
from textual.widget import Widget

import common.report
import tui
from benchmark import tui_docs
from tui import Choose, Help, OneRun, Runs, Tui
from ui import compare, launch, pages
from ui.base import Ask, key_groups, key_name
from ui.form import Form
from ui.runs import Run, alive
from ui.several import Compare, Results
from ui.widgets import Doc, LogView, Table

# The thread that watches the runs may find that the app has just ended.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .App.call_from_thread:RuntimeWarning")
ROOT, TESTS = Path(__file__).parents[1], Path(__file__).parent


async def no_longer(*_: float) -> None:
    """In place of textual's wait of at least 0.04 s after each key: Pilot.settle waits for what follows from it."""
    await asyncio.sleep(0)


textual.app.wait_for_idle = textual.pilot.wait_for_idle = no_longer


class Pilot:
    """textual's pilot, with what these tests ask of it. The app goes on only while one of these functions is at work."""

    def __init__(self, app: Tui, loop: asyncio.Runner, pilot: object) -> None:
        self.app, self.loop, self.pilot = app, loop, pilot

    def press(self, *keys: str) -> None:
        for key in keys:
            self.loop.run(self.pilot.press(key))
            self.settle()

    def answer(self, *keys: str, text: str) -> None:
        """Press keys that ask for a line of text, and give it."""
        self.press(*keys, "ctrl+u")
        self.do(self.app.post_message, Paste(text))
        self.press("enter")

    def click(self, where: str, x: int, y: int = 0) -> None:
        self.settle()
        self.loop.run(self.pilot.click(where, offset=(x, y)))

    def do(self, what: Callable, *args: object) -> None:
        """Call it as the app would."""

        async def call() -> None:
            what(*args)

        self.loop.run(call())
        self.settle()

    def settle(self) -> None:
        """Until what the screen wanted to do after its next refresh is done."""

        async def wait() -> None:
            done, screen, end = asyncio.Event(), self.app.screen, time.monotonic() + 2
            screen.call_after_refresh(done.set)
            while not (done.is_set() or self.app._exit) and screen is self.app.screen and time.monotonic() < end:
                await asyncio.sleep(0.002)  # a screen that leaves does nothing

        self.loop.run(wait())

    def resize(self, width: int, height: int) -> None:
        self.loop.run(self.pilot.resize_terminal(width, height))
        self.until(lambda: self.app.screen._compositor.size == (width, height))
        self.settle()

    def until(self, what: Callable[[], object], seconds: float = 30.0) -> object:
        """What it returns as soon as that is true."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, "never happened"
            self.loop.run(self.pilot.pause(0.02))
        return found

    def sees(self, *words: str) -> None:
        """Until the screen shows all of them."""
        self.until(lambda: all(word in self.text() for word in words))

    def reaches(self, screen: type) -> object:
        self.until(lambda: isinstance(self.app.screen, screen) and self.app.screen.is_mounted)
        self.settle()
        return self.app.screen

    def read(self) -> None:
        """Until every run is read whole."""
        self.until(lambda: all(r.loaded for r in self.app.state.store.ordered()))
        self.do(self.app.refresh_screens)

    def open(self, part: str, tab: str = "1") -> OneRun:
        """The screen of the first run with that part in its name."""
        run = next(r for r in self.app.state.store.ordered() if part in r.name)
        self.do(self.app.push_screen, OneRun(self.app.state, run))
        self.reaches(OneRun)
        self.until(lambda: run.loaded)
        self.press(tab)
        return self.app.screen

    def state(self, state: str) -> Run:
        """The run at the cursor of the list, as soon as it is in that state."""
        self.until(lambda: (run := self.app.screen.run_now()) and run.state == state)
        return self.app.screen.run_now()

    def lines(self) -> list[str]:
        return [strip.text for strip in self.app.screen._compositor.render_strips()]

    def text(self) -> str:
        """What the screen shows."""
        return "\n".join(self.lines())

    def told(self) -> str:
        return "\n".join(n.message for n in self.app._notifications)


@contextlib.contextmanager
def driven(root: Path, size: tuple[int, int] = (120, 36), asked: str = "", **options: object) -> Iterator[tuple[Tui, Pilot]]:
    """The app on a folder of runs, without a terminal, once the runs are there."""
    app = Tui(root, **{"scripts_dir": TESTS, **options})
    app.interval = 0.2
    app.state.set_filter(asked)
    with asyncio.Runner() as loop:
        running = app.run_test(size=size)
        pilot = Pilot(app, loop, loop.run(running.__aenter__()))
        pilot.until(lambda: app.state.scanned and app.screen.is_mounted and app.screen.query_one(Table).strips)
        pilot.until(lambda: [name for name, _ in app.screen.query_one(Table).rows] == [r.name for r in app.state.listed()])
        yield app, pilot
        loop.run(running.__aexit__(None, None, None))
    assert not app.complaints


@pytest.fixture(scope="module")
def runs_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("four") / "runs"
    for method in ("eagan", "adversarialnas", "autogan", "degas"):
        make_run(root, method, rows=60, samples=3)
    make_run(root, "eagan", seed=1, rows=60, samples=2, quality=20)
    for run in root.glob("eagan-*"):
        (run / "source").mkdir()
        (run / "source" / "eagan.py").write_text(f"same = 0\nown = {run.name!r}\n")
    return root


@pytest.fixture
def four(runs_of_all: Path) -> Path:
    """A finished run of each method, and a second one of EAGAN; only read, and what an earlier test chose is forgotten."""
    (runs_of_all / ".tui.json").unlink(missing_ok=True)
    return runs_of_all


@pytest.fixture
def copied(four: Path, tmp_path: Path) -> Path:
    """A copy of them that may be changed."""
    return shutil.copytree(four, tmp_path / "runs")


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A run that is this process."""
    return make_run(tmp_path, seed=1, rows=20, state="running", status={"process": me()})


@pytest.fixture
def child() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


# ---- any keys -----------------------------------------------------------------------------------------------------------

KEYS = [*"abcdefghijklmnoprstuvwyz0123456789DUZRN/#&!,.[]:?*+-", "enter", "escape", "space", "up", "down", "left", "right"]
KEYS += ["pageup", "pagedown", "home", "end", "tab", "backspace", "ctrl+g"]  # not: quit, launch, suspend
FUZZ = int(os.environ.get("GAN_NAS_SEED", 0))


@pytest.mark.parametrize("size", [(40, 10), (60, 16), (80, 24)], ids=str)
def test_no_keys_at_any_size_end_the_app(copied: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the list is too small to be drawn, and between changes of size. GAN_NAS_SEED tries other keys."""
    monkeypatch.chdir(copied.parent)
    rng = random.Random(f"{FUZZ} {size}")
    print(f"GAN_NAS_SEED={FUZZ}")
    with driven(copied) as (app, pilot):
        pilot.read()
        pilot.resize(*size)
        for _ in range(4):
            keys = rng.choices(KEYS, k=10)
            print(*keys)
            pilot.press(*keys)
            pilot.resize(*(size if rng.random() < 0.7 else (rng.randrange(20, 130), rng.randrange(5, 40))))
        assert app.is_running


def test_the_last_run_is_trashed_while_the_list_is_too_small_to_be_drawn(copied: Path) -> None:
    with driven(copied) as (app, pilot):
        pilot.resize(50, 14)
        pilot.press("G")
        for left in (4, 3):
            pilot.press("D")
            if isinstance(app.screen, Choose):
                pilot.press(app.screen.answers[0][0])
            pilot.until(lambda left=left: len(app.state.store.runs) == left)
        assert app.screen.run_now() in app.state.store.ordered()


@pytest.mark.parametrize("closed", ["stdin", "stderr"])
def test_without_a_terminal_it_names_plain(tmp_path: Path, closed: str) -> None:
    master, slave = pty.openpty()
    streams = {"stdin": slave, "stderr": slave, "stdout": subprocess.PIPE} | {closed: subprocess.PIPE}
    done = subprocess.Popen([sys.executable, "tui.py", tmp_path], cwd=ROOT, **streams)
    out = done.communicate(timeout=60)
    os.close(slave)
    text = os.read(master, 1000) if closed == "stdin" else out[1]
    os.close(master)
    assert (done.returncode, out[0]) == (2, b"")
    assert b"--plain" in text
    assert b"\x1b" not in text


# ---- starting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["empty", "missing", "unreadable", "file in the way"])
def test_without_runs_it_says_where_it_looked_and_no_key_fails(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "runs"
    if kind != "missing":
        root.mkdir()
    if kind == "unreadable":
        root.chmod(0)
    if kind == "file in the way":
        (root / "metrics.jsonl").write_text("x")
    with driven(root) as (app, pilot):
        pilot.sees(root.parent.name, "python tui.py")
        if kind == "empty":
            pilot.press("enter", *" cIZrx", "escape", *"mup0", "down", *"Gv", "left")
        pilot.press("q")
    assert (app.return_code or 0) == 0


@pytest.mark.parametrize("words", [["--filter", "fid<low"], [__file__]])
def test_a_bad_argument_is_named_in_one_line(words: list[str], program: Callable) -> None:
    code, _, err = program("tui.py", *words)
    assert code == 2
    assert words[-1] in err
    assert err.count("\n") == 1


def test_plain_tells_the_same_facts(four: Path, program: Callable) -> None:
    code, text, _ = program("tui.py", four, "--plain", "--filter", "eagan")
    assert code == 0
    head, *lines = text.splitlines()
    assert re.search(r"\b2 runs\b.*\b2 done\b", head)
    assert sum(bool(re.match(r"done .*FID \d.*50k", line)) for line in lines) == 2
    assert sum(bool(re.match(r" +FID .*\d", line)) for line in lines) == 2  # how it has moved
    assert "\x1b" not in text


# ---- the list -------------------------------------------------------------------------------------------------------------


def test_a_new_line_changes_its_chart_and_its_cell_and_nothing_else(tmp_path: Path) -> None:
    for seed in range(4):
        make_run(tmp_path, seed=seed, rows=40)
    with driven(tmp_path) as (app, pilot):
        pilot.read()
        pilot.press(*"   ")
        table, charts = app.screen.query_one(Table), app.screen.query_one("#charts", Doc)
        strips, picture = list(table.strips), charts.text
        row = {"step": 500, "phase": "train", "eval/fid": 3.21, "eval/is": 9.0, "eval/net": "inception-2048", "t": 99}
        append(tmp_path / table.rows[0][0] / "metrics.jsonl", row)
        pilot.until(lambda: "3.21" in table.strips[1].text and charts.text != picture)
        assert all(table.strips[y] is strips[y] for y in (0, 2, 4))  # 3 and 1 hold the cursor and the change


def test_marked_runs_are_tagged_and_trashed_together(copied: Path) -> None:
    with driven(copied) as (app, pilot):
        pilot.read()  # the order of the list may change until then
        names = [r.name for r in app.state.listed()][:2]
        pilot.press("space", "space", "#")
        pilot.reaches(Choose)
        pilot.press("m")
        pilot.answer(text="ab")
        pilot.until(lambda: all("ab" in app.state.store.runs[n].labels for n in names))
        assert sum("ab" in r.labels for r in app.state.store.ordered()) == 2
        pilot.press("D")
        pilot.reaches(Choose)
        pilot.press("m")
        pilot.until(lambda: not set(names) & set(app.state.store.runs))
        pilot.press("U")
        pilot.until(lambda: names[1] in app.state.store.runs)


def test_filter_sort_hide_tag_trash_undo(copied: Path) -> None:
    running = make_run(copied, seed=7, rows=20, state="running", status={"process": me()}, quality=50)
    make_run(copied, seed=8, rows=3)  # no score yet
    with driven(copied) as (app, pilot):
        pilot.read()
        seeds = lambda: [app.state.store.runs[k].seed for k, _ in app.screen.query_one(Table).rows]  # noqa: E731
        assert app.screen.run_now().name == running.name  # what lives comes first
        pilot.answer("/", text="eagan fid<15")
        assert seeds() == [0]
        pilot.answer("/", text="fid<low")
        assert isinstance(app.screen, Ask)
        assert "low" in app.screen.wrong
        pilot.press("escape")
        assert app.state.filter_text == "eagan fid<15"  # as it was before what was typed
        pilot.answer("/", text="eagan")
        app.state.sort = "FID"
        pilot.do(app.refresh_screens)
        assert seeds() == [0, 1, 7, 8]
        pilot.press("i")
        assert seeds() == [7, 1, 0, 8]  # without a score: last in either order
        pilot.press("g", "h")
        assert seeds() == [1, 0, 8]
        pilot.press("a")
        assert seeds() == [7, 1, 0, 8]
        pilot.answer(*"aG#", text="paper best | first try")
        run = app.screen.run_now()
        assert (run.labels, run.tags["note"]) == (["paper", "best"], "first try")
        assert "#paper" in pilot.text()
        pilot.press(*"agD")
        assert running.name in pilot.told()
        assert running.exists()
        pilot.press("G", "D")
        assert not run.path.exists()
        pilot.press("U")
        pilot.until(lambda: run.path.name in app.state.store.runs)


def test_readonly_writes_nothing_and_touches_nothing(copied: Path, child: subprocess.Popen) -> None:
    make_run(copied, seed=7, rows=20, state="running", status={"process": launch.process_of(child.pid)})
    state = lambda: {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in copied.rglob("*")}  # noqa: E731
    before = state()
    with driven(copied, readonly=True) as (app, pilot):
        pilot.read()
        for key in "IZRTKDUrdnp#":
            pilot.press(key)
            assert isinstance(app.screen, Runs), key
        assert pilot.told()
        pilot.press("space", "enter", *"IKDr")
        assert isinstance(app.screen, OneRun)
        assert not any(k in pilot.lines()[-1] for k in (" I ", " Z ", " R "))
    assert child.poll() is None
    assert before == state()


def test_what_was_chosen_and_what_has_happened_since(live: Path, tmp_path: Path) -> None:
    make_run(tmp_path, seed=2, rows=20)
    with driven(tmp_path) as (_, pilot):
        pilot.press("space", "s")  # the cursor is on the running one, which is the first
    write(live / "status.json", json.loads((live / "status.json").read_text()) | {"state": "done"})
    with driven(tmp_path) as (app, _):
        assert (app.state.sort, list(app.state.overlay), app.state.since) == ("name", [live.name], {"done": 1})
    write(tmp_path / ".tui.json", json.loads((tmp_path / ".tui.json").read_text()) | {"filter": "seed=1"})
    with driven(tmp_path, asked="seed=2") as (app, _):
        assert app.state.filter_text == "seed=2"  # --filter is stronger than the remembered one


def test_columns_are_chosen_kept_and_do_not_move(four: Path) -> None:
    with driven(four) as (app, pilot):
        pilot.read()
        pilot.answer("o", text="best FID, g-lr, no_such")
        pilot.sees("no_such")
        pilot.press("ctrl+u", *"best FID, g-lr", "enter")
        pilot.sees("best FID", "g_lr", "0.0002")
        assert [spot[2] for spot in app.screen.spots] == ["name", "best FID", "g_lr"]
        before = list(app.screen.spots)
        app.state.columns = []
        pilot.do(app.screen.fill)
        automatic = list(app.screen.spots)
        run = app.state.store.ordered()[0]
        run.status = run.status | {"step": 1}  # a shorter text
        pilot.do(app.screen.fill)
        assert app.screen.spots == automatic
        app.state.columns = ["best FID", "g_lr"]
    with driven(four) as (app, pilot):
        assert app.state.columns == ["best FID", "g_lr"]
        pilot.do(app.screen.fill)
        assert [spot[2] for spot in app.screen.spots] == [spot[2] for spot in before]


def test_results_are_those_of_the_report_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / "runs", seed=seed, rows=20, quality=10 + seed) for seed in range(2)]
    with driven(tmp_path / "runs", size=(160, 50)) as (app, pilot):
        pilot.press("l")
        screen = pilot.reaches(Results)
        pilot.until(lambda: screen.found)
        found = common.report.report(common.report.grouped([common.report.read(run) for run in runs]))
        assert json.dumps(screen.found, default=str) == json.dumps(found, default=str)
        row = next(row for row in found["scores"] if row["score"] == "fid")
        pilot.sees(f"{row['mean']:.2f} ± {row['sd']:.2f}", "Checklist")
        pilot.press("x", "m")
        pilot.until(lambda: list(tmp_path.glob("exports/*.md")))
        pilot.until(lambda: next(tmp_path.glob("exports/*.md")).read_text() == common.report.markdown(found))
        pilot.press("escape")
        make_run(tmp_path / "runs", seed=2, rows=20)
        config = tmp_path / "runs" / "eagan-cifar10-s2-20260101-000002" / "config.json"
        settings = json.loads(config.read_text())
        write(config, settings | {"args": settings["args"] | {"g_lr": 1.0}})
        pilot.until(lambda: len(app.state.listed()) == 3)
        pilot.press("l")
        pilot.sees("g_lr")


def test_a_key_that_cannot_act_says_why(four: Path) -> None:
    with driven(four) as (app, pilot):
        screen = pilot.open("degas", "1")
        pilot.press("f")
        assert "log" in pilot.told()
        pilot.press("2", "f")
        assert pilot.told().count("f: ") == 1
        assert not screen.query_one(LogView).follow
    with driven(four, asked="seed=77") as (app, pilot):
        pilot.press("r")
        assert "r: " in pilot.told()
        assert isinstance(app.screen, Runs)


def test_a_run_that_ends_is_announced(live: Path, tmp_path: Path) -> None:
    out = tmp_path / "told"
    with driven(tmp_path, on_finish=f'echo "$GAN_STATE $GAN_RUN" > {out}') as (_, pilot):
        pilot.sees("I stop")
        write(live / "status.json", {"state": "failed", "error": {"type": "X", "message": "loss/g is nan at step 7"}})
        pilot.until(lambda: "loss/g is nan at step 7" in pilot.told())
        pilot.until(lambda: out.exists() and out.read_text())
        pilot.until(lambda: "I stop" not in pilot.text())  # the footer follows
        pilot.sees("R resume")
    assert out.read_text() == f"failed {live}\n"


def test_a_first_sign_of_trouble_is_told_once(live: Path, tmp_path: Path) -> None:
    with driven(tmp_path) as (app, pilot):
        for i in (1, 2):
            append(live / "metrics.jsonl", {"step": 300 + i, "loss/g": None})
            pilot.until(lambda n=i: app.state.store.runs[live.name].columns.nans == n)
        pilot.until(lambda: live.name in pilot.told())
        assert pilot.told().count(live.name) == 1


def test_seeds_together_as_mean_and_spread(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path, seed=seed, rows=40, quality=10 + seed)
    make_run(tmp_path, "degas", seed=5, rows=40, net="compact")
    with driven(tmp_path, size=(200, 60)) as (app, pilot):
        pilot.read()
        pilot.press("g", *"    u")
        fids = [r.last["fid"] for r in app.state.store.ordered() if r.method == "eagan"]
        pilot.sees("0 1 2", f"FID {statistics.mean(fids):.2f} ± {statistics.stdev(fids):.2f}", "FID(compact)")
        table = compare.distances([run for run, _, _ in app.screen.drawn()])
        rows = ["".join(text for text, _ in line).strip() for line in table]
        assert sum("eagan-" in row for row in rows) == 3
        pilot.sees(*(row for row in rows if "eagan" in row))


# ---- one run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("eagan-cifar10-s0", ["Population", "hypervolume", "diversity", "◆", "★", "×"]),
        ("adversarialnas", ["Probabilities", "flips", "entropy", "c3x3"]),
        ("degas", ["Probabilities", "reconstruction", "entropy"]),
        ("autogan", ["Policy", "reward", "baseline", "beam", "pre", "post"]),
    ],
)
def test_what_only_one_method_has(four: Path, part: str, words: list[str]) -> None:
    with driven(four, size=(120, 50)) as (_, pilot):
        screen = pilot.open(part, "5")
        pilot.sees(*words)
        before = pilot.text()
        pilot.press(*"]]")
        assert pilot.text() != before or part == "autogan"
        pilot.press(",")
        pilot.sees(f"step {screen.view.at:.0f}")


def test_all_tabs_turn_back_to_an_earlier_step(four: Path) -> None:
    with driven(four) as (app, pilot):
        screen = pilot.open("eagan-cifar10-s0", "3")
        pilot.sees("step 600")
        pilot.press(*",,")
        pilot.sees("step 200")
        pilot.press("4")
        assert screen.view.at == 200
        pilot.sees("step 150")  # the genotype that held then
        pilot.press("3", *"...")
        assert screen.view.at is None
        pilot.press("*")
        assert screen.view.at == screen.run.best()["step"]
        pilot.press("escape")
        assert screen.view.at is None
        pilot.press("escape")
        assert isinstance(app.screen, Runs)


def test_a_round_appended_moves_the_front(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=40)
    row = evolution(random.Random(5), 400, 1)[0]
    row["population"][0] |= {"id": "9-9", "fid": 0.5, "is": 11.0, "params": 1000}
    with driven(tmp_path) as (_, pilot):
        screen = pilot.open(run.name, "5")
        for number, front in ((9, ["9-9"]), (10, None)):  # of a row that does not say which is the front it is computed
            append(run / "search.jsonl", row | {"round": number, "step": 390, "front": front, "best": "9-9"})
            pilot.sees(f"round {number}", "9-9")
            assert screen.run.search.rounds[-1]["front"] == {"9-9"}
        dots = lambda: sum(pilot.text().count(c) for c in "·∘○")  # noqa: E731
        before = dots()
        pilot.press("z")
        assert dots() < before - 5


def test_a_run_deleted_while_it_is_open(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=40, samples=2)
    with driven(tmp_path) as (app, pilot):
        screen = pilot.open(run.name)
        before = pilot.lines()[:4]
        shutil.rmtree(run)
        pilot.until(lambda: not app.state.store.runs and pilot.lines()[:4] != before)
        pilot.press(*"23,4561mIZx", "escape")
        assert app.screen is screen
        pilot.press("escape", "escape")
        assert isinstance(app.screen, Runs)


# ---- the log --------------------------------------------------------------------------------------------------------------


def test_a_paused_log_does_not_move(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=5)
    (run / "log.txt").write_text("".join(f"line {i} {'x' * 200}\n" for i in range(500)))
    with driven(tmp_path) as (_, pilot):
        log = pilot.open(run.name, "2").query_one(LogView)
        assert "line 499" in log.text
        pilot.press("up", "right")
        before = (log.text, log.top, log.left)
        with open(run / "log.txt", "a") as f:
            f.writelines(f"new {i}\n" for i in range(1000))
        pilot.sees("+1000")
        assert (log.text, log.top, log.left) == before
        pilot.press("down", "down", "pagedown")
        assert not log.follow
        pilot.press("f")
        assert log.follow
        pilot.press("left", "home")
        assert log.text.startswith("   1 line 0")
        pilot.press("end")
        assert "new 999" in log.text
        assert log.follow


def test_search_and_filter_of_a_log(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=5)
    lines = [f"line {i}{' ERROR here' if i in (40, 300) else ''}" for i in range(500)]
    (run / "log.txt").write_text("\n".join(lines) + "\n")
    with driven(tmp_path) as (app, pilot):
        log = pilot.open(run.name, "2").query_one(LogView)
        for found in (40, 300):
            pilot.press("!")
            assert log.hit == found
        pilot.answer("/", text="7$")
        pilot.press("home", "n")
        before = log.hit
        assert lines[before].endswith("7")
        pilot.press("N", "n")
        assert log.hit == before
        pilot.answer("&", text="(")
        assert isinstance(app.screen, Ask)
        assert log.shown is None
        pilot.answer(text="9 ERR|00")
        expected = [i for i, line in enumerate(lines) if re.search("9 ERR|00", line)]
        assert log.shown == expected
        with open(run / "log.txt", "a") as f:
            f.write("more 00\nnot this\n")
        pilot.until(lambda: log.shown == [*expected, 500])
        pilot.answer("&", text="")
        assert log.shown is None
        pilot.answer("ctrl+g", text="123")
        assert "123 line 122" in log.text


# ---- comparison, exports --------------------------------------------------------------------------------------------------


def test_comparison_names_what_differs(four: Path) -> None:
    with driven(four, size=(120, 70)) as (app, pilot):
        pilot.read()
        a, b = (next(r for r in app.state.store.ordered() if f"eagan-cifar10-s{k}" in r.name) for k in (0, 1))
        pilot.do(app.push_screen, Compare(app.state, a, b))
        pilot.reaches(Compare)
        assert [k for k, _, _ in compare.config_diff(a, b)] == ["seed"]
        flat = [[op for row in r.genotype["G"] for op in row] for r in (a, b)]
        distance = sum(x != y for x, y in zip(*flat, strict=True))
        assert re.search(rf"Hamming distance\D+{distance}\b", pilot.text())
        assert f"{a.last['fid'] - b.last['fid']:.4g}" in pilot.text()
        pilot.press("s")
        assert f"+{b.last['fid'] - a.last['fid']:.4g}" in pilot.text()
        pilot.press("p")
        pilot.sees(f"-own = {b.name!r}", f"+own = {a.name!r}")
        pilot.press("escape", ",")
        pilot.sees(f"step {app.screen.view.at:.0f}")


def test_exports_hold_the_same_numbers(four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with driven(four) as (_, pilot):
        pilot.read()
        run = pilot.open("eagan-cifar10-s0").run
        for key, suffix in (("c", "csv"), ("m", "md"), ("l", "tex"), ("s", "svg"), ("h", "html")):
            pilot.press("x", key)
            pilot.until(lambda s=suffix: list(tmp_path.glob(f"exports/*.{s}")) and f".{s}" in pilot.told())
        text = {p.suffix[1:]: p.read_text() for p in tmp_path.glob("exports/*")}
        rows = list(csv.DictReader(io.StringIO(text["csv"])))
        for metric in run.columns.keys:
            step, _, value = run.column(metric)
            own = [(float(r["step"]), float(r["value"])) for r in rows if r["metric"] == metric]
            assert own == list(zip(step, value, strict=True))
        assert f"{run.last['fid']:.2f}" in text["md"]
        assert "eagan-cifar10-s0" in text["tex"]
        ET.fromstring(text["svg"])
        ET.fromstring(text["html"].removeprefix("<!doctype html>"))
        assert "data:image/png;base64," in text["html"]
        assert "http://" not in text["html"].replace("http://www.w3.org/2000/svg", "")


# ---- launching and steering from the screen --------------------------------------------------------------------------------


def fill_form(pilot: Pilot, **values: object) -> Form:
    """The form of the fake trainer with these values."""
    pilot.press("n")
    form = pilot.reaches(Form)
    for name, value in {"script": "fake_trainer.py", **values}.items():
        pilot.do(form.set, name, str(value))
    return form


def test_the_form_names_what_is_wrong_and_launches_nothing(tmp_path: Path) -> None:
    with driven(tmp_path / "runs") as (app, pilot):
        form = fill_form(pilot)
        pilot.press("x")
        assert "nothing to export" in pilot.told()
        pilot.answer("/", text="steps")
        pilot.answer("enter", text="0")
        assert "≥ 1" in app.screen.wrong
        pilot.press("escape")
        assert list(form.problems()) == ["-steps"]
        pilot.press("ctrl+r")
        assert isinstance(app.screen, Form)
        assert re.search("steps.*≥ 1", pilot.told())
        pilot.press("u")
        pilot.do(form.set, "seeds", "-1")
        pilot.press("ctrl+r")
        assert re.search("seeds.*'-1'", pilot.told())
        pilot.do(form.set, "seeds", "0-2")
        pilot.do(form.set, "-amp", "true")
        pilot.sees("3 runs")
        assert form.command() == f"python fake_trainer.py --runs-dir {tmp_path / 'runs'} --amp"
        line = form.command(seed=2)
        pilot.do(form.set, "-dataset", "other")
        pilot.press("p")
        app.screen.query_one("Input").value = line
        pilot.press("enter")
        assert (pilot.reaches(Form)).command() == line
        pilot.press("escape")
    assert not (tmp_path / "runs" / ".launch").exists()


def test_launch_pause_stop_resume_and_rerun_from_the_keys(tmp_path: Path) -> None:
    """One run through all of its life, steered by keys alone."""
    with driven(tmp_path / "runs") as (app, pilot):
        fill_form(pilot, **{"-steps": 100_000, "-pause": 0.01, "-workers": 2})
        pilot.press("ctrl+r")
        pilot.reaches(Runs)
        run = pilot.state("running")
        pid = run.process["pid"]
        pilot.press("Z")
        pilot.state("paused")
        pilot.sees("‖", "paused")
        pilot.press("Z")
        pilot.state("running")
        pilot.press("K")
        assert isinstance(app.screen, Choose)
        assert run.name in pilot.text()
        pilot.press("n", "escape")
        assert alive(run.process)
        pilot.press("I")
        assert pilot.state("stopped") is run
        assert (run.path / "checkpoint.pt").exists()
        assert alive(run.process) is None
        assert len(app.state.store.runs) == 1
        pilot.press("R")
        pilot.until(lambda: run.state == "running" and run.process["pid"] != pid)
        pilot.press("r")
        assert (pilot.reaches(Form)).texts["workers"] == "2"
        assert run.name in pilot.lines()[0]
        pilot.press("escape", "K", "y")
        pilot.until(lambda: (run.state, run.exit) == ("failed", 137))


def test_a_signal_for_a_recycled_pid_is_refused(tmp_path: Path, child: subprocess.Popen) -> None:
    process = launch.process_of(child.pid)
    name = make_run(tmp_path, rows=20, state="running", status={"process": process}).name
    with driven(tmp_path) as (app, pilot):
        run = app.state.store.runs[name]
        for key in "IT":
            run.state = "running"
            run.status["process"] = run.process = process | {"start_time": 1}  # as if read before the pid was taken again
            pilot.press(key)
        assert str(child.pid) in pilot.told()
    assert child.poll() is None


def test_a_run_of_another_host_gets_a_stop_file(tmp_path: Path) -> None:
    status = {"process": me() | {"host": "elsewhere"}, "updated": now()}
    run = make_run(tmp_path, rows=20, state="running", status=status)
    with driven(tmp_path) as (app, pilot):
        pilot.press("K")
        assert isinstance(app.screen, Runs)
        assert run.name in pilot.told()
        assert not (run / "STOP").exists()
        pilot.press("I")
        assert (run / "STOP").exists()


def in_terminal(words: list[str], **env: str) -> tuple[int, int, bytearray]:
    """(pid, master, what it says) of a program in a terminal of its own."""
    import fcntl
    import termios

    pid, master = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(words[0], words, {**os.environ, "TERM": "xterm-256color", "TEXTUAL_ANIMATIONS": "none", **env})
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
    said = bytearray()

    def drain() -> None:
        with contextlib.suppress(OSError):  # the program has ended
            while data := os.read(master, 1 << 16):
                said.extend(data)

    threading.Thread(target=drain, daemon=True).start()
    return pid, master, said


@pytest.mark.parametrize("end", ["exit", *(pytest.param(how, marks=pytest.mark.slow) for how in ("kill", "hangup"))])
def test_a_launched_run_lives_on_when_the_ui_ends(tmp_path: Path, end: str) -> None:
    root = tmp_path / "runs"

    if end == "exit":
        with driven(root) as (_, pilot):
            fill_form(pilot, **{"-steps": 100_000})
            pilot.press("ctrl+r")
            pilot.reaches(Runs)
            pilot.state("running")
    else:
        code = f"import sys; sys.path[:0] = ['.', 'tests']; import test_tui; test_tui.for_terminal({str(root)!r})"
        pid, master, _ = in_terminal([sys.executable, "-c", code])
        deadline = time.monotonic() + 60
        while not any(r.get("run") for r in launch.records(root)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if end == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            os.close(master)
        os.waitpid(pid, 0)
    time.sleep(0.3)
    process = launch.records(root)[0]["child"]
    assert alive(process)
    with driven(root) as (app, pilot):
        (run,) = app.state.store.ordered()
        assert (run.state, run.process["pid"]) == ("running", process["pid"])
        pilot.press("I")
        pilot.state("stopped")


def for_terminal(root: str) -> None:
    """In a terminal of its own: launch a run and stay."""
    app = Tui(Path(root), scripts_dir=TESTS)

    async def begin() -> None:
        app.screen.open_form(None)
        await asyncio.sleep(0.5)
        app.screen.set("-steps", "100000")
        app.screen.action_go()

    app.call_later(lambda: asyncio.create_task(begin()))
    tui.end_with_the_terminal()
    app.run()


# ---- every screen in every size, theme and terminal ------------------------------------------------------------------------


def every_screen(app: Tui, pilot: Pilot, look: Callable[[], None]) -> None:
    for keys in ("", "  v", "vu"):
        pilot.press(*keys)
        look()
    for keys, screen in (("uc", Compare), ("n", Form), ("x", Choose), ("?", Help)):
        pilot.press(*keys)
        assert isinstance(app.screen, screen)
        look()
        pilot.press("escape")
    for part in ("eagan", "adversarialnas", "autogan", "degas"):
        pilot.open(part)
        for tab in "123456":
            pilot.press(tab)
            look()
        pilot.press("escape")


@pytest.mark.parametrize(
    "size", [(80, 24), *(pytest.param(s, marks=pytest.mark.slow) for s in ((120, 36), (200, 60)))], ids=str
)
def test_every_screen_fits(copied: Path, size: tuple[int, int]) -> None:
    with driven(copied, size=size) as (app, pilot):

        def look() -> None:
            pilot.until(lambda: sum(bool(line.strip()) for line in pilot.lines()) > 12)
            lines = pilot.lines()
            assert len(lines) == size[1]
            assert max(map(cell_len, lines)) <= size[0]
            assert not isinstance(app.screen, tui.Page) or "? " in lines[-1]

        pilot.read()
        every_screen(app, pilot, look)


def test_live_resizing_and_too_small(four: Path) -> None:
    with driven(four) as (_, pilot):
        pilot.read()
        pilot.press("space")
        for size in ((80, 24), (200, 60), (60, 16), (120, 36), (100, 30), (99, 29), (40, 10), (80, 24)):
            pilot.resize(*size)
            assert len(pilot.lines()) == size[1]
            assert ("eagan" in pilot.text()) == (size != (40, 10)), size
            assert ("? " in pilot.lines()[-1]) == (size != (40, 10)), size


@pytest.mark.parametrize("look", ["light", "colour-blind", "ansi"])
def test_themes(four: Path, look: str) -> None:
    with driven(four, look=look) as (app, pilot):
        pilot.read()
        pilot.press("space", "enter", "5", "escape")
        assert "eagan" in pilot.text()
        styles = [s.style for strip in app.screen._compositor.render_strips() for s in strip if s.style]
        colors = [c for style in styles for c in (style.color, style.bgcolor) if c]
        assert len({c.name for c in colors}) > 2
        assert look != "ansi" or all(c.type.name in ("DEFAULT", "STANDARD") for c in colors)  # the terminal's own sixteen
        pilot.do(app.use_theme, "dark")
        assert "eagan" in pilot.text()


NAMES = ["[red]bold[@]", "emoji-🎉-漢字", "x" * 200, "esc\x1b[31m", "new\nline", "-s0-20260101-000000"]


def test_without_colour_and_with_names_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for i, name in enumerate(NAMES):
        make_run(tmp_path, name=name, seed=i, rows=20, samples=1)
    bad = tmp_path / os.fsdecode(b"bad\xff")
    bad.mkdir()
    (bad / "exit").write_text("3")
    with driven(tmp_path) as (app, pilot):
        pilot.read()
        pilot.sees("[red]bold[@]", "emoji-🎉-漢字", "xxxxx", "esc·[31m", "new line", "✓", "✗")
        pilot.press("g", *"   ")
        assert set(re.findall(r"▌[a-z] ", pilot.text())) == {"▌a ", "▌b ", "▌c "}
        for run in app.state.store.ordered():
            pilot.do(app.push_screen, OneRun(app.state, run))
            pilot.reaches(OneRun)
            pilot.press("3")
            assert "▀" not in pilot.text()
            pilot.press(*"12456", "escape")


def test_samples_as_pixels_where_the_terminal_has_them(four: Path) -> None:
    shown = []

    class Picture(Widget):
        image = property(lambda self: shown[-1], lambda self, value: shown.append(value))

    with driven(four) as (app, pilot):
        app.state.pixels = Picture
        screen = pilot.open("eagan-cifar10-s0", "3")
        pilot.until(lambda: shown)
        picture, content = screen.query_one(Picture), screen.query_one("#content", Doc)
        assert "600" in content.text
        assert picture.display
        assert (picture.size.height, content.size.height) == (app.size.height - 6, 1)
        pilot.press("+")
        assert shown[-1].size[0] < shown[0].size[0]
        n = len(shown)
        pilot.press(",", "1")
        assert len(shown) == n + 1
        assert not picture.display
        assert content.size.height > 20


@pytest.mark.parametrize(
    ("system", "own", "other"),
    [("256", b"38;5;", b"38;2;"), pytest.param("truecolor", b"38;2;", b"38;5;", marks=pytest.mark.slow)],
)
def test_a_terminal_gets_the_colours_it_has_and_q_leaves(four: Path, system: str, own: bytes, other: bytes) -> None:
    words = [sys.executable, "tui.py", str(four), "--readonly"]
    pid, master, said = in_terminal(words, TEXTUAL_COLOR_SYSTEM=system)
    for key, shown in ((b" ", "▌a ".encode()), (b"q", b"\x1b[?1049l")):
        deadline = time.monotonic() + 60
        while shown not in said:
            assert time.monotonic() < deadline, bytes(said[-300:])
            if b"done" in said:  # the list is there; a second press undoes nothing that is looked for
                with contextlib.suppress(OSError):  # it has just left
                    os.write(master, key)
            time.sleep(0.3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(master)
    assert own in said
    assert other not in said
    assert all(glyph.encode() in said for glyph in "✓▌⏎")


# ---- keys, help, documents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("screen", [Runs, OneRun, Compare, Form], ids=lambda s: s.__name__)
def test_no_key_means_two_things_every_action_exists_and_help_lists_it(screen: type) -> None:
    bindings = [*screen.BINDINGS, *Tui.BINDINGS]
    keys = [k for b in bindings for k in b.key.split(",")]
    assert len(set(keys)) == len(keys)
    listed = [row for _, rows in key_groups(screen) for row in rows]
    assert all((key_name(b.key), b.description) in listed for b in bindings)
    for b in screen.BINDINGS:
        assert hasattr(screen, f"action_{b.action.split('(')[0]}"), b.action
        assert b.description
        upper = len(b.key) == 1 and b.key.isupper() and b.key not in "GN"
        assert upper == b.action.startswith("act("), b.key


def test_help_shows_every_key(four: Path) -> None:
    with driven(four, size=(80, 24)) as (app, pilot):
        pilot.press("?")
        texts = [text for width in (73, 94, 111, 188) for line in app.screen.lines(width, 0) for text, _ in line]
        assert not [text for text in texts if "…" in text]  # nothing is cut off
        seen = ""
        for _ in range(6):
            seen += pilot.text()
            pilot.press("pagedown")
        for binding in [*Runs.BINDINGS, *Tui.BINDINGS]:
            assert binding.description[:30] in seen, binding


def test_the_palette_has_every_action_run_metric_and_theme(four: Path) -> None:
    with driven(four) as (app, pilot):
        pilot.read()
        commands = [command.title for command in app.get_system_commands(app.screen)]
        wanted = [b.description for b in [*Runs.BINDINGS, *Tui.BINDINGS]] + [r.name for r in app.state.store.ordered()]
        for word in [*wanted, "FID", "IS", "loss/g", "light"]:
            assert any(text.endswith(word) for text in commands), word
        pilot.press(":", *"loss/g")
        pilot.loop.run(pilot.pilot.pause(0.4))
        pilot.press("enter")
        pilot.until(lambda: app.state.metric == "loss/g")


@pytest.mark.parametrize(("page", "keys"), [("README.md", tui_docs.first_keys), ("docs/tui.md", tui_docs.key_tables)])
def test_keys_in_the_documents_are_those_of_the_program(page: str, keys: Callable[[], str]) -> None:
    found = (ROOT / page).read_text().split("<!-- keys -->\n")[1].split("<!-- end of keys -->")[0]
    assert found.strip() == keys().strip()


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "images").glob("tui-*.svg")), ids=lambda p: p.stem)
def test_pictures_are_whole_and_name_no_machine(picture: Path) -> None:
    assert "cifar10" in "".join(ET.parse(picture).getroot().itertext())
    assert not re.search(r"/(work|root|home|tmp)/", picture.read_text())
    assert f"images/{picture.name}" in (ROOT / "docs" / "tui.md").read_text()


def test_the_mouse_reaches_keys_rows_heads_tabs_and_answers(four: Path) -> None:
    with driven(four) as (app, pilot):
        pilot.read()
        screen = app.screen
        at = {action: a + 1 for a, _, action in screen.key_spots}
        pilot.click("#keys", at["overlay"])
        pilot.until(lambda: len(app.state.overlay) == 1)
        for reverse in (False, True):
            pilot.click("#table", 10)  # the head of the names
            pilot.until(lambda r=reverse: (app.state.sort, app.state.reverse) == ("name", r))
        pilot.click("#table", 10, 3)
        pilot.until(lambda: screen.query_one(Table).cursor == 2)
        pilot.click("#table", 10, 3)
        one = pilot.reaches(OneRun)
        pilot.settle()
        pilot.click("#tabs", one.tab_spots[2][0] - 4)
        pilot.until(lambda: one.tab == "samples")
        pilot.click("#keys", one.key_spots[0][0] + 1)
        pilot.until(lambda: app.screen is screen)
        pilot.press("x")
        pilot.until(lambda: isinstance(app.screen, Choose) and app.screen.query_one(Doc).strips)
        pilot.click("#choose", 5, 8)  # no
        pilot.until(lambda: app.screen is screen)
        pilot.click("#keys", at["app.help"])
        pilot.reaches(Help)


# ---- what must not stop it -------------------------------------------------------------------------------------------------


def test_a_hanging_gpu_library_blocks_no_key(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressed = threading.Event()
    waited = []
    monkeypatch.setattr(launch, "gpus", lambda: waited.append(pressed.wait(20)) or [])
    with driven(four) as (app, pilot):
        pilot.press("down", "down", "down")
        assert app.screen.query_one(Table).cursor == 3
        assert not waited
        pressed.set()
        pilot.sees("CPU")


def test_a_fault_in_one_widget_is_told_once_and_ends_nothing(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "header", lambda *_: 1 / 0)
    with driven(copied) as (app, pilot):
        pilot.open("autogan", "5")
        pilot.sees("beam")
        assert pilot.told().count("division by zero") == 1
        assert len(app.complaints) == 1
        monkeypatch.undo()
        app.complaints.clear()
    assert "ZeroDivisionError" in (copied / ".tui.log").read_text()
