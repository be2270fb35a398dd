"""The terminal UI as a user meets it: keys in, text out. No torch, no GPU."""

import asyncio
import contextlib
import csv
import io
import json
import os
import pty
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
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fake_trainer import evolution, make_run, me, write
from rich.cells import cell_len
from textual.widget import Widget

import tui
from tui import Compare, Form, Help, OneRun, Runs, Tui
from ui import launch, pages
from ui.runs import alive
from ui.widgets import Doc, LogView, Table

ROOT, TESTS = Path(__file__).parents[1], Path(__file__).parent


def drive(
    root: Path,
    steps: Callable[[Tui, "Pilot"], Awaitable],
    size: tuple[int, int] = (120, 36),
    asked: str = "",
    **options: object,
) -> Tui:
    """Run the app on a folder of runs, without a terminal, and do the steps once the runs are there."""
    app = Tui(root, **{"scripts_dir": TESTS, **options})
    app.interval = 0.2
    app.set_filter(asked)

    async def all_of_it() -> None:
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.scanned and app.screen.is_mounted and app.screen.query_one(Table).strips)
            listed = lambda: [r.name for r in app.listed()]  # noqa: E731
            await until(pilot, lambda: [name for name, _ in app.screen.query_one(Table).rows] == listed())
            await steps(app, Pilot(app, pilot))
            app.exit()

    asyncio.run(all_of_it())
    assert not app.complaints
    return app


async def until(pilot: object, what: Callable[[], object], seconds: float = 30.0) -> object:
    """What it returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "never happened"
        await pilot.pause(0.02)
    return found


class Pilot:
    """textual's pilot, with what these tests ask of it."""

    def __init__(self, app: Tui, pilot: object) -> None:
        self.app, self.pilot = app, pilot

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.settle()

    async def settle(self) -> None:
        """Until what the screen wanted to do after its next refresh is done."""
        done = asyncio.Event()
        self.app.screen.call_after_refresh(done.set)
        with contextlib.suppress(TimeoutError):  # a screen that is just leaving does nothing any more
            await asyncio.wait_for(done.wait(), 2)

    async def sees(self, *words: str) -> None:
        """Until the screen shows all of them."""
        await self.until(lambda: all(word in self.text() for word in words))

    async def type(self, text: str) -> None:
        names = {
            " ": "space",
            "<": "less_than_sign",
            "=": "equals_sign",
            ":": "colon",
            "/": "slash",
            "-": "minus",
            "|": "vertical_line",
        }
        await self.press(*(names.get(c, c) for c in text))

    async def until(self, what: Callable[[], object], seconds: float = 30.0) -> object:
        return await until(self.pilot, what, seconds)

    async def pause(self, seconds: float) -> None:
        await self.pilot.pause(seconds)

    async def read(self) -> None:
        """Until every run is read whole."""
        await self.until(lambda: all(r.loaded for r in self.app.store.ordered()))
        self.app.refresh_screens()
        await self.settle()

    def text(self) -> str:
        """What the screen shows."""
        return "\n".join(screen_lines(self.app))

    def told(self) -> str:
        return "\n".join(n.message for n in self.app._notifications)

    async def resize(self, *size: int) -> None:
        await self.pilot.resize_terminal(*size)
        await self.settle()


def screen_lines(app: Tui) -> list[str]:
    screen = app.screen
    return [strip.text for strip in screen._compositor.render_strips()]


@pytest.fixture(scope="module")
def runs_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("four") / "runs"
    for method in ("eagan", "adversarialnas", "autogan", "degas"):
        make_run(root, method, rows=60, samples=3)
    make_run(root, "eagan", seed=1, rows=60, samples=2, quality=20)
    return root


@pytest.fixture
def four(runs_of_all: Path) -> Path:
    """A finished run of each method, and a second one of EAGAN; only read, and what an earlier test chose is forgotten."""
    (runs_of_all / ".tui.json").unlink(missing_ok=True)
    return runs_of_all


# ---- starting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["empty", "missing", "unreadable", "file in the way"])
def test_without_runs_it_says_what_to_press(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "runs"
    if kind != "missing":
        root.mkdir()
    if kind == "unreadable":
        root.chmod(0)
    if kind == "file in the way":
        (root / "metrics.jsonl").write_text("x")

    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.sees("press n to start one", "python tui.py DIR")
        if kind == "empty":
            await pilot.press("enter", "space", "c", "I", "Z", "r", "x", "escape", "m", "u", "p", "0", "down", "G", "v", "left")
        await pilot.press("q")

    assert (drive(root, steps).return_code or 0) == 0


def test_bad_arguments_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words, wrong in ((["--filter", "fid<low"], "low is not a number"), ([str(tmp_path / "file")], "is a file")):
        done = subprocess.run([sys.executable, "tui.py", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert wrong in done.stderr
        assert done.stderr.count("\n") == 1


# ---- the list -------------------------------------------------------------------------------------------------------------


def test_a_new_line_changes_its_chart_and_its_cell_and_nothing_else(tmp_path: Path) -> None:
    for seed in range(4):
        make_run(tmp_path, seed=seed, rows=40)

    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        await pilot.press("space", "space", "space")
        table, charts = app.screen.query_one(Table), app.screen.query_one("#charts", Doc)
        name = table.rows[0][0]
        strips, picture = dict(table.strips), charts.text
        row = {
            "step": 500,
            "phase": "train",
            "stage": "training",
            "eval/fid": 3.21,
            "eval/is": 9.0,
            "eval/net": "inception-2048",
            "t": 99,
        }
        with open(tmp_path / name / "metrics.jsonl", "a") as f:
            f.write(json.dumps(row) + "\n")
        await pilot.until(lambda: "3.21" in table.strips[1][1].text and charts.text != picture)
        assert all(table.strips[y] is strips[y] for y in (0, 2, 4))  # 3 and 1 hold the cursor and the change

    drive(tmp_path, steps)


def test_filter_sort_hide_tag_trash_undo(four: Path, tmp_path: Path) -> None:
    root = shutil.copytree(four, tmp_path / "runs")
    running = make_run(root, seed=7, rows=20, state="running", status={"process": me()}, quality=50)
    make_run(root, seed=8, rows=3)  # no score yet

    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        table = app.screen.query_one(Table)
        seeds = lambda: [app.store.runs[k].seed for k, _ in table.rows]  # noqa: E731
        assert table.rows[0][0] == running.name  # what lives comes first
        await pilot.press("slash")
        await pilot.type("eagan fid<15")
        await pilot.press("enter")
        assert seeds() == [0]
        await pilot.press("slash")
        await pilot.type(" fid<low")
        await pilot.press("enter")
        assert "low is not a number" in pilot.text()
        await pilot.press("escape", "slash", "ctrl+u")
        await pilot.type("eagan")
        await pilot.press("enter")
        app.sort = "FID"
        app.refresh_screens()
        assert seeds() == [0, 1, 7, 8]
        await pilot.press("i")
        assert seeds() == [7, 1, 0, 8]  # without a score: last in either order
        await pilot.press("g", "h")
        assert seeds() == [1, 0, 8]
        await pilot.press("a")
        assert seeds() == [7, 1, 0, 8]
        await pilot.press("a", "G", "number_sign")
        await pilot.type("paper best | first try")
        await pilot.press("enter")
        run = app.screen.run_now()
        assert (run.labels, run.tags["note"]) == (["paper", "best"], "first try")
        assert "#paper" in pilot.text()
        await pilot.press("a", "g", "D")
        assert "stop it first" in pilot.told()
        assert running.exists()
        await pilot.press("G")
        trashed = app.screen.run_now().path
        await pilot.press("D")
        assert not trashed.exists()
        await pilot.press("U")
        await pilot.until(lambda: trashed.name in app.store.runs)

    drive(root, steps)


def test_readonly_writes_nothing_and_touches_nothing(four: Path, tmp_path: Path) -> None:
    root = shutil.copytree(four, tmp_path / "runs")
    child = subprocess.Popen(["sleep", "60"])
    make_run(root, seed=7, rows=20, state="running", status={"process": launch.process_of(child.pid)})
    before = {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in sorted(root.rglob("*"))}

    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        assert "read-only" in pilot.text()
        for key in ("I", "Z", "R", "T", "K", "D", "U", "r", "d", "n", "p", "number_sign"):
            await pilot.press(key)
            assert isinstance(app.screen, Runs), key
        assert "read-only" in pilot.told()
        await pilot.press("space", "enter", "I", "K", "D", "r")
        assert isinstance(app.screen, OneRun)
        assert not any(k in pilot.text().splitlines()[-1] for k in (" I ", " Z ", " R "))

    drive(root, steps, readonly=True)
    try:
        assert child.poll() is None
        assert before == {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in sorted(root.rglob("*"))}
    finally:
        child.kill()
        child.wait()


def test_what_was_chosen_and_what_has_happened_since(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=1, rows=20, state="running", status={"process": me()})
    make_run(tmp_path, seed=2, rows=20)

    async def first(app: Tui, pilot: Pilot) -> None:
        await pilot.press("space", "s")  # the cursor is on the running one, which is the first

    async def second(app: Tui, pilot: Pilot) -> None:
        assert app.sort == "name"
        assert list(app.overlay) == [run.name]
        assert "since last visit: 1 done" in pilot.text()

    drive(tmp_path, first)
    status = json.loads((run / "status.json").read_text())
    write(run / "status.json", {**status, "state": "done"})

    async def third(app: Tui, pilot: Pilot) -> None:
        assert app.filter_text == "seed=2"  # --filter is stronger than the remembered one

    drive(tmp_path, second)
    saved = json.loads((tmp_path / ".tui.json").read_text())
    write(tmp_path / ".tui.json", {**saved, "filter": "seed=1"})
    drive(tmp_path, third, asked="seed=2")


def test_a_run_that_ends_is_announced(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=1, rows=20, state="running", status={"process": me()})
    out = tmp_path / "told"

    async def steps(app: Tui, pilot: Pilot) -> None:
        status = json.loads((run / "status.json").read_text())
        write(run / "status.json", {**status, "state": "failed", "error": {"type": "X", "message": "loss/g is nan at step 7"}})
        await pilot.until(lambda: "loss/g is nan at step 7" in pilot.told())
        await pilot.until(lambda: out.exists() and out.read_text())

    drive(tmp_path, steps, on_finish=f'echo "$GAN_STATE $GAN_RUN" > {out}')
    assert out.read_text() == f"failed {run}\n"


def test_seeds_together_as_mean_and_spread(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path, seed=seed, rows=40, quality=10 + seed)
    make_run(tmp_path, "degas", seed=5, rows=40, net="compact")

    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        await pilot.press("g", "space", "space", "space", "space", "u")
        text = pilot.text()
        assert "eagan · cifar10 · quick · seeds 0 1 2" in text
        fids = [r.last["fid"] for r in app.store.ordered() if r.method == "eagan"]
        assert f"FID {statistics.mean(fids):.2f} ± {statistics.stdev(fids):.2f}" in text
        assert "FID(compact)" in text
        assert "edges that differ" in text

    drive(tmp_path, steps, size=(200, 60))


# ---- one run --------------------------------------------------------------------------------------------------------------


async def open_run(app: Tui, pilot: Pilot, part: str, tab: str = "1") -> OneRun:
    run = next(r for r in app.store.ordered() if part in r.name)
    app.push_screen(OneRun(run))
    await pilot.until(lambda: isinstance(app.screen, OneRun) and app.screen.is_mounted and run.loaded)
    await pilot.press(tab)
    return app.screen


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("eagan-cifar10-s0", ["Population", "hypervolume", "◆", "★", "diversity", "×"]),
        ("adversarialnas", ["Probabilities", "top-1 flips", "mean entropy", "over time", "c3x3"]),
        ("degas", ["Probabilities", "reconstruction", "mean image"]),
        ("autogan", ["Policy", "reward", "baseline", "beam", "pre", "post"]),
    ],
)
def test_what_only_one_method_has(four: Path, part: str, words: list[str]) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        await open_run(app, pilot, part, "5")
        await pilot.sees(*words)
        before = pilot.text()
        await pilot.press("right_square_bracket", "right_square_bracket")
        assert pilot.text() != before or part == "autogan"
        await pilot.press("comma")
        assert "as of step" in pilot.text()

    drive(four, steps, size=(120, 50))


def test_all_tabs_turn_back_to_an_earlier_step(four: Path) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        screen = await open_run(app, pilot, "eagan-cifar10-s0", "3")
        assert "3 of 3" in pilot.text()
        await pilot.press("comma", "comma")
        assert "1 of 3" in pilot.text()
        at = screen.view.at
        await pilot.press("4")
        assert screen.view.at == at
        assert f"as of step {at:.0f}" in pilot.text()
        assert "as of step 150" in pilot.text()  # the genotype that held then
        await pilot.press("3", "full_stop", "full_stop", "full_stop")
        assert screen.view.at is None
        await pilot.press("asterisk")
        assert screen.view.at == screen.run.best()["step"]
        await pilot.press("escape")
        assert screen.view.at is None
        await pilot.press("escape")
        assert isinstance(app.screen, Runs)

    drive(four, steps)


def test_a_round_appended_moves_the_front(tmp_path: Path) -> None:
    import random

    run = make_run(tmp_path, rows=40)

    async def steps(app: Tui, pilot: Pilot) -> None:
        await open_run(app, pilot, run.name, "5")
        row = evolution(random.Random(5), 400, 1)[0]
        row["population"][0] |= {"id": "9-9", "fid": 0.5, "is": 11.0, "params": 1000}
        with open(run / "search.jsonl", "a") as f:
            f.write(json.dumps({**row, "round": 9, "step": 390, "front": ["9-9"], "best": "9-9"}) + "\n")
        await pilot.sees("9-9", "1 in the front")
        with open(run / "search.jsonl", "a") as f:  # a row that does not say which is the front: it is computed
            f.write(json.dumps({**row, "round": 10, "step": 395, "front": None}) + "\n")
        await pilot.sees("round 10", "1 in the front")
        dots = lambda: sum(pilot.text().count(c) for c in "·∘○")  # noqa: E731
        before = dots()
        await pilot.press("z")
        assert dots() < before - 5

    drive(tmp_path, steps)


def test_a_run_deleted_while_it_is_open(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=40, samples=2)

    async def steps(app: Tui, pilot: Pilot) -> None:
        await open_run(app, pilot, run.name)
        shutil.rmtree(run)
        await pilot.until(lambda: "this directory is gone" in pilot.text())
        await pilot.press("2", "3", "comma", "4", "5", "6", "1", "m", "I", "Z", "x", "escape", "escape", "escape")
        assert "no runs in" in pilot.text()

    drive(tmp_path, steps)


# ---- the log --------------------------------------------------------------------------------------------------------------


def test_a_paused_log_does_not_move(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=5)
    (run / "log.txt").write_text("".join(f"line {i} {'x' * 200}\n" for i in range(500)))

    async def steps(app: Tui, pilot: Pilot) -> None:
        await open_run(app, pilot, run.name, "2")
        log = app.screen.query_one(LogView)
        assert "line 499" in log.text
        await pilot.press("up", "right")
        before, first, left = log.text, log.top, log.left
        with open(run / "log.txt", "a") as f:
            f.writelines(f"new {i}\n" for i in range(1000))
        await pilot.until(lambda: "PAUSED +1000 lines" in pilot.text())
        assert (log.text, log.top, log.left) == (before, first, left)
        await pilot.press("down", "down", "pagedown")
        assert not log.follow
        await pilot.press("f")
        assert log.follow
        assert "new 999" in log.text or log.left
        await pilot.press("left", "home")
        assert log.text.startswith("   1 line 0")
        await pilot.press("end")
        assert "new 999" in log.text
        assert "FOLLOW" in pilot.text()

    drive(tmp_path, steps)


def test_search_and_filter_of_a_log(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=5)
    lines = [f"line {i}{' ERROR here' if i in (40, 300) else ''}" for i in range(500)]
    (run / "log.txt").write_text("\n".join(lines) + "\n")

    async def steps(app: Tui, pilot: Pilot) -> None:
        screen = await open_run(app, pilot, run.name, "2")
        log = screen.query_one(LogView)
        await pilot.press("exclamation_mark")
        assert log.hit == 40
        await pilot.press("exclamation_mark")
        assert log.hit == 300
        await pilot.press("slash")
        await pilot.type("7$")
        await pilot.press("enter")
        await pilot.press("home", "n")
        assert lines[log.hit].endswith("7")
        before = log.hit
        await pilot.press("N", "n")
        assert log.hit == before
        await pilot.press("ampersand")
        await pilot.type("(")
        await pilot.press("enter")
        assert "unterminated" in pilot.text()
        assert log.shown is None
        await pilot.press("backspace")
        await pilot.type("9 ERR|00")
        await pilot.press("enter")
        expected = [i for i, line in enumerate(lines) if re.search("9 ERR|00", line)]
        assert log.shown == expected
        with open(run / "log.txt", "a") as f:
            f.write("more 00\nnot this\n")
        await pilot.until(lambda: log.shown == [*expected, 500])
        await pilot.press("ampersand", "ctrl+u", "enter")
        assert log.shown is None
        await pilot.press("ctrl+g")
        await pilot.type("123")
        await pilot.press("enter")
        assert "123 line 122" in log.text

    drive(tmp_path, steps)


# ---- comparison, exports --------------------------------------------------------------------------------------------------


def test_comparison_names_what_differs(four: Path) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        a, b = (next(r for r in app.store.ordered() if f"eagan-cifar10-s{k}" in r.name) for k in (0, 1))
        app.push_screen(Compare(a, b))
        await pilot.until(lambda: isinstance(app.screen, Compare) and app.screen.is_mounted)
        await pilot.settle()
        assert [k for k, _, _ in pages.config_diff(a, b)] == ["seed"]
        flat = [[op for row in r.genotype["G"] for op in row] for r in (a, b)]
        distance = sum(x != y for x, y in zip(*flat, strict=True))
        text = pilot.text()
        assert f"Hamming distance {distance}" in text
        assert f"{a.last['fid'] - b.last['fid']:.4g}" in text
        await pilot.press("s")
        assert f"+{b.last['fid'] - a.last['fid']:.4g}" in pilot.text()
        await pilot.press("p")
        assert "no source" in pilot.text() or "has no source" in pilot.text()
        await pilot.press("escape", "comma")
        assert "as of step" in pilot.text()

    drive(four, steps, size=(120, 70))


def test_exports_hold_the_same_numbers(four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        run = (await open_run(app, pilot, "eagan-cifar10-s0")).run
        for key, suffix in (("c", "csv"), ("m", "md"), ("l", "tex"), ("s", "svg"), ("h", "html")):
            await pilot.press("x", key)
            await pilot.until(lambda s=suffix: list(tmp_path.glob(f"exports/*.{s}")))
            await pilot.until(lambda s=suffix: f".{s}" in pilot.told())
        text = {p.suffix[1:]: p.read_text() for p in tmp_path.glob("exports/*")}
        rows = list(csv.DictReader(io.StringIO(text["csv"])))
        for metric in run.columns.keys:
            step, _, value = run.column(metric)
            own = [r for r in rows if r["metric"] == metric]
            assert [float(r["value"]) for r in own] == value.tolist()
            assert [float(r["step"]) for r in own] == step.tolist()
        assert f"{run.last['fid']:.2f}" in text["md"]
        assert "eagan-cifar10-s0" in text["tex"]
        ET.fromstring(text["svg"])
        ET.fromstring(text["html"].removeprefix("<!doctype html>"))
        assert "data:image/png;base64," in text["html"]
        assert "http://" not in text["html"].replace("http://www.w3.org/2000/svg", "")

    drive(four, steps)


def test_plain_tells_the_same_facts(four: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tui.py", str(four), "--plain", "--filter", "eagan"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0].endswith("2 runs: 2 done")
    runs = [line for line in done.stdout.splitlines() if line.startswith("done")]
    assert len(runs) == 2
    assert all("FID" in line and "on 50k images" in line for line in runs)
    assert "falling over the last" in done.stdout
    assert "\x1b" not in done.stdout


# ---- launching and steering from the screen --------------------------------------------------------------------------------


async def fill_form(app: Tui, pilot: Pilot, **values: object) -> Form:
    await pilot.press("n")
    await pilot.until(lambda: isinstance(app.screen, Form) and app.screen.is_mounted)
    form = app.screen
    if form.script.path.name != "fake_trainer.py":
        form.set("script", "fake_trainer.py")
    for name, value in values.items():
        form.set(name if name in ("seeds", "wait", "after") else f"-{name}", str(value))
    await pilot.settle()
    return form


def test_the_form_names_what_is_wrong_and_launches_nothing(tmp_path: Path) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        form = await fill_form(app, pilot)
        await pilot.press("slash")
        await pilot.type("steps")
        await pilot.press("enter")
        await pilot.press("enter")
        await pilot.press("ctrl+u")
        await pilot.type("0")
        await pilot.press("enter")
        assert "must be ≥ 1" in pilot.text()
        await pilot.press("escape")
        assert "1 problem" in pilot.text()
        await pilot.press("ctrl+r")
        assert "steps: must be ≥ 1" in pilot.told()
        assert isinstance(app.screen, Form)
        await pilot.press("u")
        form.set("seeds", "-1")
        await pilot.press("ctrl+r")
        assert "seeds: '-1'" in pilot.told()
        form.set("seeds", "0-2")
        form.set("-amp", "true")
        await pilot.sees("3 runs")
        assert form.command() == f"python fake_trainer.py --runs-dir {tmp_path / 'runs'} --amp"
        line = form.command(seed=2)
        form.set("-dataset", "other")
        await pilot.press("p")
        app.screen.query_one("Input").value = line
        await pilot.press("enter")
        assert isinstance(app.screen, Form)
        assert app.screen.command() == line
        await pilot.press("escape")
        assert not (tmp_path / "runs" / ".launch").exists()

    drive(tmp_path / "runs", steps)


def test_launch_pause_stop_resume_and_rerun_from_the_keys(tmp_path: Path) -> None:
    """One run through all of its life, steered by keys alone."""
    root = tmp_path / "runs"

    async def steps(app: Tui, pilot: Pilot) -> None:
        await fill_form(app, pilot, steps=100_000, pause=0.01, workers=2)
        await pilot.press("ctrl+r")
        assert isinstance(app.screen, Runs)
        run = await pilot.until(lambda: next((r for r in app.store.ordered() if r.state == "running"), None))
        pid = run.process["pid"]
        await pilot.press("Z")
        await pilot.until(lambda: run.state == "paused" and "‖" in pilot.text())
        assert "paused" in pilot.text()
        await pilot.press("Z")
        await pilot.until(lambda: run.state == "running")
        await pilot.press("K")
        assert "Kill" in pilot.text()
        assert run.name in pilot.text()
        await pilot.press("n", "escape")
        assert alive(run.process)
        await pilot.press("I")
        await pilot.until(lambda: run.state == "stopped")
        assert (run.path / "checkpoint.pt").exists()
        assert alive(run.process) is None
        assert len(app.store.runs) == 1
        await pilot.press("R")
        await pilot.until(lambda: run.state == "running" and run.process["pid"] != pid)
        await pilot.press("r")
        assert isinstance(app.screen, Form)
        assert app.screen.texts["workers"] == "2"
        assert "Again, with changes" in pilot.text()
        await pilot.press("escape", "K", "y")
        await pilot.until(lambda: run.state == "failed" and "killed" in run.why)

    drive(root, steps)


def test_a_signal_for_a_recycled_pid_is_refused(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = launch.process_of(child.pid)
    run_dir = make_run(tmp_path, rows=20, state="running", status={"process": process})

    async def steps(app: Tui, pilot: Pilot) -> None:
        run = app.store.runs[run_dir.name]
        assert run.state == "running"
        run.status["process"] = {
            **process,
            "start_time": process["start_time"] - 5,
        }  # as if read before the pid was taken again
        for key in ("I", "T"):
            run.state = "running"
            await pilot.press(key)
        assert "another process now" in pilot.told()

    try:
        drive(tmp_path, steps)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_run_of_another_host_gets_a_stop_file(tmp_path: Path) -> None:
    from fake_trainer import now

    run_dir = make_run(tmp_path, rows=20, state="running", status={"process": {**me(), "host": "elsewhere"}, "updated": now()})

    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.press("K")
        assert "not a process of this host" in pilot.told()
        await pilot.press("I")
        assert (run_dir / "STOP").exists()

    drive(tmp_path, steps)


def in_terminal(words: list[str], size: tuple[int, int] = (120, 36), **env: str) -> tuple[int, int, bytearray]:
    """(pid, master, what it says) of a program in a terminal of its own."""
    import fcntl
    import termios

    pid, master = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(words[0], words, {**os.environ, "TERM": "xterm-256color", "TEXTUAL_ANIMATIONS": "none", **env})
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    said = bytearray()
    threading.Thread(target=_drain, args=(master, said), daemon=True).start()
    return pid, master, said


def _drain(master: int, said: bytearray) -> None:
    with contextlib.suppress(OSError):  # the program has ended
        while data := os.read(master, 1 << 16):
            said += data


@pytest.mark.parametrize(
    "end", ["exit", pytest.param("kill", marks=pytest.mark.slow), pytest.param("hangup", marks=pytest.mark.slow)]
)
def test_a_launched_run_lives_on_when_the_ui_ends(tmp_path: Path, end: str) -> None:
    root = tmp_path / "runs"
    found = {}

    async def begin(app: Tui, pilot: Pilot) -> None:
        await fill_form(app, pilot, steps=100_000, pause=0.02)
        await pilot.press("ctrl+r")
        run = await pilot.until(lambda: next((r for r in app.store.ordered() if r.state == "running"), None))
        found.update(run.process)

    if end == "exit":
        drive(root, begin)
    else:
        code = f"import sys; sys.path[:0] = ['.', 'tests']; import test_tui; test_tui.for_terminal({str(root)!r})"
        pid, master, _ = in_terminal([sys.executable, "-c", code])
        deadline = time.monotonic() + 60
        while not (process := next(iter(launch.records(root)), {}).get("child")) or not launch.records(root)[0].get("run"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        found.update(process)
        os.kill(pid, signal.SIGKILL) if end == "kill" else os.close(master)
        os.waitpid(pid, 0)
    time.sleep(0.3)
    assert alive(found)

    async def again(app: Tui, pilot: Pilot) -> None:
        (run,) = app.store.ordered()
        assert (run.state, run.process["pid"]) == ("running", found["pid"])
        await pilot.press("I")
        await pilot.until(lambda: run.state == "stopped")

    drive(root, again)


def for_terminal(root: str) -> None:
    """In a terminal of its own: launch a run and stay."""
    app = Tui(Path(root), scripts_dir=TESTS)

    async def begin() -> None:
        app.open_form()
        await asyncio.sleep(0.5)
        app.screen.set("-steps", "100000")
        app.screen.action_go()

    app.call_later(lambda: asyncio.create_task(begin()))
    tui.end_with_the_terminal()
    app.run()


# ---- every screen in every size --------------------------------------------------------------------------------------------


async def every_screen(app: Tui, pilot: Pilot, look: Callable[[str], None]) -> None:
    await pilot.read()
    look("runs")
    await pilot.press("space", "space", "v")
    look("runs overlaid")
    await pilot.press("v", "u")
    look("runs grouped")
    await pilot.press("u", "c")
    assert isinstance(app.screen, Compare)
    look("compare")
    await pilot.press("escape", "n")
    assert isinstance(app.screen, Form)
    look("form")
    await pilot.press("escape", "x")
    look("export")
    await pilot.press("escape", "question_mark")
    assert isinstance(app.screen, Help)
    look("help")
    await pilot.press("escape")
    for part in ("eagan", "adversarialnas", "autogan", "degas"):
        await open_run(app, pilot, part)
        for tab in "123456":
            await pilot.press(tab)
            look(f"{part} tab {tab}")
        await pilot.press("escape")


@pytest.mark.parametrize(
    "size", [(80, 24), *(pytest.param(s, marks=pytest.mark.slow) for s in ((120, 36), (200, 60)))], ids=str
)
def test_every_screen_fits(four: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    root = shutil.copytree(four, tmp_path / "runs")

    async def steps(app: Tui, pilot: Pilot) -> None:
        def look(where: str) -> None:
            lines = screen_lines(app)
            assert len(lines) == size[1], where
            assert all(cell_len(line) <= size[0] for line in lines), where
            assert sum(bool(line.strip()) for line in lines) > 12, where
            if isinstance(app.screen, tui.Page):
                assert "? help" in lines[-1], where

        await every_screen(app, pilot, look)

    drive(root, steps, size=size)


def test_live_resizing_and_too_small(four: Path) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        await pilot.press("space")
        for size in ((80, 24), (200, 60), (60, 16), (120, 36), (100, 30), (99, 29)):
            await pilot.resize(*size)
            lines = screen_lines(app)
            assert len(lines) == size[1]
            assert "eagan" in pilot.text(), size
            assert "? help" in lines[-1], size
        await pilot.resize(40, 10)
        assert "too small" in pilot.text()
        assert "eagan" not in pilot.text()
        await pilot.resize(80, 24)
        assert "eagan" in pilot.text()

    drive(four, steps)


@pytest.mark.parametrize("look", ["light", "colour-blind", "ansi"])
def test_themes(four: Path, look: str) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        await pilot.press("space", "enter", "5", "escape")
        assert "eagan" in pilot.text()
        strips = [s for strip in app.screen._compositor.render_strips() for s in strip if s.style]
        colors = [c for s in strips for c in (s.style.color, s.style.bgcolor) if c]
        assert len({c.name for c in colors}) > 2
        assert look != "ansi" or all(c.type.name in ("DEFAULT", "STANDARD") for c in colors)  # the terminal's own sixteen
        app.use_theme("dark")
        await pilot.settle()
        assert "eagan" in pilot.text()

    drive(four, steps, look=look)


NAMES = ["[red]bold[@]", "emoji-🎉-漢字", "x" * 200, "esc\x1b[31m", "new\nline", "-s0-20260101-000000"]


def test_without_colour_and_with_names_of_any_kind(tmp_path: Path) -> None:
    """In a process of its own: textual reads NO_COLOR when it is imported."""
    for i, name in enumerate(NAMES):
        make_run(tmp_path / "runs", name=name, seed=i, rows=20, samples=1)
    os.mkdir(os.fsencode(tmp_path / "runs") + b"/bad\xff")
    (Path(os.fsdecode(os.fsencode(tmp_path / "runs") + b"/bad\xff")) / "exit").write_text("3")
    env = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": f"{ROOT}:{TESTS}"}
    code = f"import test_tui; test_tui.without_colour({str(tmp_path / 'runs')!r})"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def without_colour(root: str) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        text = pilot.text()
        for shown in ("[red]bold[@]", "emoji-🎉-漢字", "xxxxx", "esc·[31m", "new line"):
            assert shown in text, shown
        assert "✓" in text
        assert "✗" in text
        await pilot.press("g", "space", "space", "space")
        text = pilot.text()
        assert all(f"▌{letter}" in text for letter in "abc")
        assert len(set(re.findall(r"▌[a-z] ", text))) == 3
        for name in list(app.store.runs):
            app.push_screen(OneRun(app.store.runs[name]))
            await pilot.until(lambda: isinstance(app.screen, OneRun) and app.screen.is_mounted)
            await pilot.press("3")
            assert "no colours here" in pilot.text() or "no samples" in pilot.text()
            await pilot.press("1", "2", "4", "5", "6", "escape")

    drive(Path(root), steps)


def test_samples_as_pixels_where_the_terminal_has_them(four: Path) -> None:
    shown = []

    class Picture(Widget):
        image = property(lambda self: shown[-1], lambda self, value: shown.append(value))

    async def steps(app: Tui, pilot: Pilot) -> None:
        app.pixels = Picture
        await open_run(app, pilot, "eagan-cifar10-s0", "3")
        await pilot.until(lambda: shown)
        picture, content = app.screen.query_one(Picture), app.screen.query_one("#content", Doc)
        whole = shown[-1].size
        assert "step" in content.text
        assert picture.display
        assert (picture.size.height, content.size.height) == (app.size.height - 6, 1)
        await pilot.press("plus")
        assert shown[-1].size[0] < whole[0]
        n = len(shown)
        await pilot.press("comma", "1")
        assert len(shown) == n + 1
        assert not picture.display
        assert content.size.height > 20

    drive(four, steps)


@pytest.mark.parametrize(
    ("system", "own", "other"),
    [("256", b"38;5;", b"38;2;"), pytest.param("truecolor", b"38;2;", b"38;5;", marks=pytest.mark.slow)],
)
def test_a_terminal_gets_the_colours_it_has_and_q_leaves(four: Path, system: str, own: bytes, other: bytes) -> None:
    words = [sys.executable, "tui.py", str(four), "--readonly"]
    pid, master, said = in_terminal(words, TEXTUAL_COLOR_SYSTEM=system)
    for key, shown in ((b" ", b"1 overlaid"), (b"q", b"\x1b[?1049l")):
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

SCREENS = [Runs, OneRun, Compare, Form]


@pytest.mark.parametrize("screen", SCREENS, ids=lambda s: s.__name__)
def test_no_key_means_two_things_and_every_action_exists(screen: type) -> None:
    keys = [k for b in [*screen.BINDINGS, *Tui.BINDINGS] for k in b.key.split(",")]
    doubled = {k for k in keys if keys.count(k) > 1}
    assert not doubled
    for binding in screen.BINDINGS:
        assert hasattr(screen, f"action_{binding.action.split('(')[0]}"), binding.action
        assert binding.description
        upper = len(binding.key) == 1 and binding.key.isupper() and binding.key not in "GN"
        assert upper == (binding.action.startswith("act(")), binding.key


@pytest.mark.parametrize("screen", SCREENS, ids=lambda s: s.__name__)
def test_help_lists_every_key(screen: type, four: Path) -> None:
    listed = [row for _, rows in tui.key_groups(screen) for row in rows]
    for binding in [*screen.BINDINGS, *Tui.BINDINGS]:
        assert (tui.key_name(binding.key), binding.description) in listed


def test_help_shows_them(four: Path) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.press("question_mark")
        seen = ""
        for _ in range(6):
            seen += pilot.text()
            await pilot.press("pagedown")
        for binding in [*Runs.BINDINGS, *Tui.BINDINGS]:
            assert binding.description[:30] in seen, binding

    drive(four, steps, size=(80, 24))


def test_the_palette_has_every_action_run_metric_and_theme(four: Path) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        await pilot.read()
        commands = [text for text, _, _ in tui.Commands(app.screen).every()]
        for binding in [*Runs.BINDINGS, *Tui.BINDINGS]:
            assert binding.description in commands
        assert all(f"open {r.name}" in commands for r in app.store.ordered())
        assert {"chart FID", "chart IS", "chart loss/g", "theme light"} <= set(commands)
        await pilot.press("colon")
        await pilot.type("chart loss/g")
        await pilot.pause(0.4)
        await pilot.press("enter")
        await pilot.until(lambda: app.metric == "loss/g")

    drive(four, steps)


@pytest.mark.parametrize(("page", "keys"), [("README.md", tui.first_keys), ("docs/tui.md", tui.key_tables)])
def test_keys_in_the_documents_are_those_of_the_program(page: str, keys: Callable[[], str]) -> None:
    found = (ROOT / page).read_text().split("<!-- keys -->\n")[1].split("<!-- end of keys -->")[0]
    assert found.strip() == keys().strip()


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "images").glob("tui-*.svg")), ids=lambda p: p.stem)
def test_pictures_are_whole_and_name_no_machine(picture: Path) -> None:
    root = ET.parse(picture).getroot()
    shown = "".join(root.itertext()).replace("\xa0", " ")
    assert "cifar10" in shown
    assert not re.search(r"/(work|root|home|tmp)/", picture.read_text())
    assert f"images/{picture.name}" in (ROOT / "docs" / "tui.md").read_text()


def test_the_mouse_reaches_keys_rows_heads_tabs_and_answers(four: Path) -> None:
    async def steps(app: Tui, pilot: Pilot) -> None:
        click = lambda where, x, y=0: pilot.pilot.click(where, offset=(x, y))  # noqa: E731
        await pilot.read()
        screen = app.screen
        at = {action: a + 1 for a, _, action in screen.key_spots}
        await click("#keys", at["overlay"])
        await pilot.until(lambda: len(app.overlay) == 1)
        for reverse in (False, True):
            await click("#table", 10)  # the head of the names
            await pilot.until(lambda r=reverse: (app.sort, app.reverse) == ("name", r))
        await click("#table", 10, 3)
        await pilot.until(lambda: screen.query_one(Table).cursor == 2)
        await click("#table", 10, 3)
        await pilot.until(lambda: isinstance(app.screen, OneRun) and app.screen.is_mounted)
        await pilot.settle()
        await click("#tabs", app.screen.tab_spots[2][0] - 4)
        await pilot.until(lambda: app.screen.tab == "samples")
        await pilot.settle()
        await click("#keys", app.screen.key_spots[0][0] + 1)
        await pilot.until(lambda: app.screen is screen)
        await pilot.press("x")
        await pilot.until(lambda: isinstance(app.screen, tui.Choose) and app.screen.query_one(Doc).strips)
        await click("#choose", 5, 8)  # no
        await pilot.until(lambda: app.screen is screen)
        await click("#keys", at["app.help"])
        await pilot.until(lambda: isinstance(app.screen, Help))

    drive(four, steps)


def test_a_first_sign_of_trouble_is_told_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=1, rows=20, state="running", status={"process": me()})

    async def steps(app: Tui, pilot: Pilot) -> None:
        for i in range(2):
            with open(run / "metrics.jsonl", "a") as f:
                f.write(json.dumps({"step": 300 + i, "loss/g": None}) + "\n")
            await pilot.until(lambda n=i: app.store.runs[run.name].columns.nans == n + 1)
        await pilot.until(lambda: "not finite" in pilot.told())
        assert pilot.told().count("not finite") == 1

    drive(tmp_path, steps)


def test_a_hanging_gpu_library_blocks_no_key(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpus", lambda: time.sleep(60))

    async def steps(app: Tui, pilot: Pilot) -> None:
        table = app.screen.query_one(Table)
        for _ in range(3):
            began, before = time.monotonic(), table.cursor
            app.screen.action_move("down")
            assert table.cursor == before + 1
            await pilot.pause(0)
            assert time.monotonic() - began < 4  # the library takes 60
        await pilot.sees("CPU")

    drive(four, steps)


def test_a_fault_in_one_widget_is_told_once_and_ends_nothing(
    four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(four, tmp_path / "runs")
    monkeypatch.setattr(pages, "header", lambda *_: 1 / 0)

    async def steps(app: Tui, pilot: Pilot) -> None:
        await open_run(app, pilot, "autogan", "5")
        await pilot.sees("beam")
        assert "division by zero" in pilot.told()
        assert len(app.complaints) == 1
        app.complaints.clear()

    drive(root, steps)
    assert "ZeroDivisionError" in (root / ".tui.log").read_text()
