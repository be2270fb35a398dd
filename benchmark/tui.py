"""Benchmark the terminal UI against its targets: start, redraw, logs, live load, latency, memory, traffic.

python -m benchmark.tui     prints a Markdown table, row by row; exits with 1 if a target is missed

Creates 100 runs of 10,000 rows, 300 short ones, one of a million rows and a log of 48 MB in a temporary folder. The UI runs in a pseudo-terminal of 120 x 36.
Times are process CPU time, or wall time where marked as such; medians of several repeats.
"""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from textual.geometry import Size

from tests.fake_trainer import grid_png, make_run, me, write
from ui import draw, launch
from ui.files import Log
from ui.pages import open_image
from ui.runs import Store
from ui.widgets import LogView, Table, to_strip

ROOT = Path(__file__).resolve().parents[1]
RUNS, ROWS = 100, 10_000
missed = []


def report(what: str, target: float, measured: float, unit: str) -> None:
    verdict = "" if measured <= target else " **missed**"
    if verdict:
        missed.append(what)
    print(f"| {what} | < {target:g} {unit} | {measured:.3g} {unit}{verdict} |", flush=True)


def cpu(do: Callable[[], object], repeats: int = 7) -> float:
    """Median CPU time of a call in milliseconds, after a warm-up call."""
    do()
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        do()
        spent.append(1000 * (time.process_time() - began))
    return statistics.median(spent)


def many_runs(root: Path) -> None:
    """Create RUNS runs; the metrics of the first one are copied to the others."""
    first = make_run(root, seed=0, rows=ROWS, samples=1)
    lines = (first / "metrics.jsonl").read_text()
    for seed in range(1, RUNS):
        run = make_run(root, ("eagan", "adversarialnas", "autogan", "degas")[seed % 4], seed=seed, rows=10)
        (run / "metrics.jsonl").write_text(lines)
        status = json.loads((run / "status.json").read_text())
        write(run / "status.json", {**status, "step": 10 * ROWS, "total": 10 * ROWS})


class Terminal:
    """tui.py in a pseudo-terminal; its output is recorded."""

    def __init__(self, root: Path, size: tuple[int, int] = (120, 36)) -> None:
        self.began = time.perf_counter()
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "TEXTUAL_ANIMATIONS": "none"}
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
            os.execv(sys.executable, [sys.executable, "tui.py", str(root)])
        self.data = b""

    def read(self, seconds: float, until: bytes | None = None) -> float:
        """Read for `seconds`, or until the bytes `until` appear. Returns the elapsed seconds."""
        began, seen = time.perf_counter(), len(self.data)
        while (left := began + seconds - time.perf_counter()) > 0:
            if select.select([self.master], [], [], left)[0]:
                self.data += os.read(self.master, 1 << 16)
                if until and until in self.data[max(0, seen - 100) :]:
                    break
        return time.perf_counter() - began

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Resident memory in MB."""
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1]) / 1024

    def close(self) -> None:
        self.press("\x1b\x1b\x1bq")
        self.read(1.0)
        with_kill = lambda: os.kill(self.pid, 9)  # noqa: E731
        timer = threading.Timer(3, with_kill)
        timer.start()
        while True:
            try:
                if not os.read(self.master, 1 << 16):
                    break
            except OSError:
                break
        os.waitpid(self.pid, 0)
        timer.cancel()
        os.close(self.master)


def first_paint(root: Path) -> None:
    empty, busy, whole = [], [], []
    for _ in range(5):
        terminal = Terminal(root)
        terminal.read(20, b"scanning for runs")
        empty.append(time.perf_counter() - terminal.began)
        busy.append(terminal.cpu())
        terminal.read(20, b"100 done")
        whole.append(time.perf_counter() - terminal.began)
        terminal.close()
    report("start to first paint, 100 runs on disk, wall time", 1.0, statistics.median(empty), "s")
    report("the same, CPU time", 1.0, statistics.median(busy), "s")
    report("start to final scores of all 100 runs, wall time", 2.0, statistics.median(whole), "s")


def charts() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(ROWS, dtype=float)
    made = []
    for k in range(100):
        y = 10 + (100 + k) * np.exp(-x / 2000) + rng.normal(0, 2, ROWS)
        made.append(draw.Series(x, np.abs(y), f"s{k % 8}", chr(97 + k % 26)))
    for n, target in ((10, 15), (100, 50)):
        redraw = lambda n=n: [to_strip(line, 120) for line in draw.chart(made[:n], 120, 36, log=True)[0]]  # noqa: E731
        report(f"chart of {n} runs x 10,000 points, redraw", target, cpu(redraw), "ms")


def table_tick() -> None:
    """The table widget alone: 100 rows of 14 columns, ten rows changing."""

    class Alone(Table):
        size = Size(200, 101)

        def refresh(self, *_: object, **__: object) -> None:
            pass

    table = Alone()
    tick = [0]

    def show() -> None:
        tick[0] += 1
        rows = []
        for r in range(100):
            value = tick[0] if r < 10 else 0
            rows.append((str(r), [(f" {r * c + value:>10}", "s1" if c % 3 else "") for c in range(14)]))
        table.show([(" head", "bold")], rows)

    report("table of 100 rows x 14 columns, 10 changed, update", 10, cpu(show), "ms")


def logs(folder: Path) -> None:
    file = folder / "log.txt"
    line = "2026-01-01 12:00:00 INFO step {:>7} loss/d 0.71234 loss/g -0.41234 images/s 912.3 some more words here\n"
    with open(file, "w") as f:
        f.writelines(line.format(i) for i in range(468_829))
    code = (
        "import sys, time, resource; from pathlib import Path; from ui.files import Log; import numpy\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6\n"
        "before, began = rss(), time.perf_counter()\n"
        f"log = Log(Path({str(file)!r})); log.update(); log.lines(range(len(log) - 40, len(log)))\n"
        "print(time.perf_counter() - began, rss() - before, len(log))"
    )
    opened, memory = [], []
    for _ in range(5):
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        opened.append(float(out[0]))
        memory.append(float(out[1]))
    report(f"open a log of {file.stat().st_size / 1e6:.0f} MB, wall time", 0.3, statistics.median(opened), "s")
    report("memory for that log", 50, statistics.median(memory), "MB")
    log = Log(file)
    log.update()
    report("filter its lines by a pattern", 150, cpu(lambda: log.matching(r"step +\d*77 "), 3), "ms")

    class Alone(LogView):
        size = Size(120, 36)

        def refresh(self, *_: object, **__: object) -> None:
            pass

    view = Alone()
    view.open(log)

    def append() -> None:
        with open(file, "a") as f:
            f.writelines(line.format(i) for i in range(100))
        view.tick()

    report("100 new lines while following", 20, cpu(append), "ms")
    endless = folder / "endless.txt"
    endless.write_bytes(b"x" * 10_000_000)

    def one_line() -> None:
        log = Log(endless)
        log.update()
        log.lines(range(len(log)))

    report("open a log with a single line of 10 MB", 100, cpu(one_line), "ms")


def samples(folder: Path) -> None:
    file = folder / "grid.png"
    file.write_bytes(grid_png())
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, open_image(file).shape, dtype=np.uint8)
    report("64 samples in half-blocks, 70 x 34", 30, cpu(lambda: draw.half_blocks(noise, 70, 34)), "ms")


def polling(root: Path) -> None:
    store = Store(root, launch.records)
    store.scan()
    store.refresh()
    report("poll 100 runs", 10, cpu(lambda: (store.scan(), store.refresh()), 9), "ms")


def whole(root: Path) -> None:
    """Read 100 runs completely: latency of key presses meanwhile, memory afterwards."""
    terminal = Terminal(root)
    terminal.read(20, b"100 done")
    delays = []
    for i in range(20):
        terminal.press("j" if i % 2 == 0 else "k")
        seen = len(terminal.data)
        began = time.perf_counter()
        while len(terminal.data) == seen and time.perf_counter() - began < 2:
            terminal.read(0.001)
        delays.append(1000 * (time.perf_counter() - began))
        terminal.read(0.05)
    report("key press to screen while 100 runs load, median, wall time", 100, statistics.median(delays), "ms")
    report("the same, maximum of 20", 100, max(delays), "ms")
    before = terminal.memory()
    for _ in range(60):
        terminal.read(2)
        now = terminal.memory()
        if now - before < 0.2:
            break
        before = now
    report("memory with 100 runs x 10,000 rows read", 200, terminal.memory(), "MB")
    terminal.close()


def keys(folder: Path) -> None:
    """CPU time of a key press in a list of 300 runs."""
    root = folder / "300"
    first = make_run(root, rows=100)
    for seed in range(1, 300):
        shutil.copytree(first, root / f"eagan-cifar10-s{seed}-20260101-{seed:06d}")
    terminal = Terminal(root)
    terminal.read(20, b"300 done")
    terminal.read(5)
    before = terminal.cpu()
    terminal.read(5)
    idle, before = terminal.cpu() - before, terminal.cpu()
    for key in "jk" * 50:
        terminal.press(key)
        terminal.read(0.05)
    report("a key with 300 runs, CPU", 50, 1000 * (terminal.cpu() - before - idle) / 100, "ms")
    terminal.close()


def large(folder: Path) -> None:
    """One run of a million rows."""
    root = folder / "million"
    run = make_run(root, rows=1000)
    row = '{"step": %d, "phase": "train", "loss/d": 1.0%d, "loss/g": -0.4%d, "perf/img_s": 900.0, "t": %d.0}\n'
    scored = '{"step": %d, "phase": "train", "eval/fid": 1%d.5, "eval/is": 8.1, "eval/net": "inception-2048", "t": %d.0}\n'
    with open(run / "metrics.jsonl", "w") as f:
        for i in range(1_000_000):
            f.write(scored % (i, i % 9, i) if i % 1000 == 999 else row % (i, i % 7, i % 5, i))
    terminal = Terminal(root)
    terminal.read(20, b"1 done")
    report("1,000,000 rows: first screen, wall time", 1.0, time.perf_counter() - terminal.began, "s")
    terminal.press("\r")
    terminal.read(2, "reading…".encode())
    while time.perf_counter() - terminal.began < 60 and b"charts 1-" not in terminal.data:
        terminal.read(0.1)
    report("1,000,000 rows: all read and drawn, wall time", 6.0, time.perf_counter() - terminal.began, "s")
    report("the same, CPU time", 6.0, terminal.cpu(), "s")
    terminal.read(1)
    report("1,000,000 rows: memory", 300, terminal.memory(), "MB")
    terminal.close()


def live(root: Path) -> None:
    """Ten runs that write 20 rows per second, all overlaid."""
    runs = sorted(root.glob("*-s*"))
    for path in runs[10:]:
        shutil.rmtree(path)
    runs = runs[:10]
    for path in runs:
        status = json.loads((path / "status.json").read_text())
        write(path / "status.json", {**status, "state": "running", "process": me()})
    writer = """
import json, sys, time
files = [open(p + "/metrics.jsonl", "a") for p in sys.argv[1:]]
step = 100000
while True:
    step += 1
    for f in files:
        row = {"step": step, "phase": "train", "loss/g": 0.5 + step % 7 / 10, "t": step / 10}
        if step % 20 == 0:
            row |= {"eval/fid": 12 + step % 11 / 10, "eval/is": 8.0, "eval/net": "inception-2048"}
        f.write(json.dumps(row) + "\\n")
        f.flush()
    time.sleep(0.05)
"""
    writing = subprocess.Popen([sys.executable, "-c", writer, *map(str, runs)])
    try:
        terminal = Terminal(root)
        terminal.read(10, b"10 running")
        terminal.press(" " * 10)
        terminal.read(10, b"10 overlaid")
        if b"10 overlaid" not in terminal.data:
            sys.exit("the UI did not show ten curves")
        terminal.read(8)
        before, began, seen = terminal.cpu(), time.perf_counter(), len(terminal.data)
        terminal.read(20)
        seconds = time.perf_counter() - began
        report(
            "10 runs x 20 rows/s, all overlaid: CPU load", 8, 100 * (terminal.cpu() - before) / seconds, "% of a core"
        )
        report("terminal output for that", 10, (len(terminal.data) - seen) / seconds / 1000, "kB/s")
        terminal.close()
    finally:
        writing.kill()
        writing.wait()


def main() -> None:
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    print("| quantity | target | measured |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        charts()
        table_tick()
        samples(Path(folder))
        logs(Path(folder))
        many_runs(root)
        first_paint(root)
        polling(root)
        whole(root)
        keys(Path(folder))
        large(Path(folder))
        live(root)
        if (root / ".tui.log").exists():
            sys.exit(f"the UI logged errors: {(root / '.tui.log').read_text()}")
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
