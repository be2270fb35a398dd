"""Run directories: one run, its state, all runs of a folder. Their contents are untrusted; Run never raises on bad data.
Only `Store.tag` (tags.json), `Store.trash` and `Store.restore` write."""

import contextlib
import json
import math
import os
import re
import socket
import sys
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from ui import foreign, np
from ui.files import Tail, clean, get, last_line, mtime, number, parse, parse_lines, read_bytes, read_end, stamp, write_json
from ui.search import Search

LIVE = ("starting", "running", "paused", "stalled", "stopping")
STATES = ("queued", *LIVE, "done", "stopped", "failed", "lost", "log")  # log: written by another program


def fid_label(net: object, what: str = "FID") -> str:
    """Name of a score by this network: FID, FID-768, FID(compact). Scores of different networks never share a name."""
    net = clean(net, 40) or "unknown network"
    if net == "inception-2048" or (what == "IS" and net.removeprefix("inception-").isdigit()):
        return what
    return f"{what}-{net.removeprefix('inception-')}" if net.startswith("inception-") else f"{what}({net})"


class Evaluations:
    """The evaluations of a run, stored compactly; indexing returns a dict."""

    NUMBERS, WORDS = ("step", "t", "fid", "is", "is_std"), ("phase", "net", "what", "n", "ref", "ema", "bn")

    def __init__(self) -> None:
        self.numbers = {k: array("d") for k in self.NUMBERS}
        self.words: dict[str, list] = {k: [] for k in self.WORDS}

    def add(self, step: float, t: float | None, row: dict) -> None:
        for key, column in self.numbers.items():
            value = {"step": step, "t": t}.get(key) if key in ("step", "t") else number(row.get(f"eval/{key}"))
            column.append(math.nan if value is None else value)
        for key, column in self.words.items():
            value = row.get("phase") if key == "phase" else row.get(f"eval/{key}")
            column.append(sys.intern(clean(value, 40)) if isinstance(value, str) else value if isinstance(value, int) else None)

    def __len__(self) -> int:
        return len(self.words[self.WORDS[-1]])  # what is added last: another thread may be adding

    def __getitem__(self, i: int) -> dict:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        found = {k: None if math.isnan(c[i]) else c[i] for k, c in self.numbers.items()}
        return found | {k: c[i] for k, c in self.words.items()}


def kind_of(evaluation: dict) -> tuple:
    """What two evaluations must share for their scores to be comparable: phase, network, images, reference, averaged."""
    return tuple(evaluation.get(k) for k in ("phase", "net", "n", "ref", "ema"))


class Columns:
    """metrics.jsonl as columns: for each key, the indices of the rows that have it, and the values."""

    def __init__(self) -> None:
        self.step, self.t = array("d"), array("d")
        self.keys: dict[str, tuple[array, array]] = {}
        self.breaks: dict[str, list[int]] = {}  # score -> indices at which evaluations of another kind begin
        self.phases: dict[str, object] = {}
        self.stages: list[tuple[float, str]] = []  # (first step, name), in order
        self.evals = Evaluations()
        self.bad = self.nans = 0
        self.cache: dict[str, tuple] = {}

    def add(self, rows: Iterable[dict]) -> None:
        for row in rows:
            step = number(row.get("step"))
            if step is None:
                self.bad += 1
                continue
            i, t = len(self.step), number(row.get("t"))
            self.step.append(step)
            self.t.append(math.nan if t is None else t)
            stage = row.get("stage") or row.get("phase")
            if isinstance(stage, str) and not stage.startswith("evaluation") and stage != self.phases.get("stage"):
                self.phases["stage"] = stage
                self.stages.append((step, clean(stage, 40)))
            if "eval/fid" in row or "eval/is" in row:
                self.evals.add(step, t, row)
                self._add_scores(i, row)
            for key, value in row.items():
                kind = type(value)
                if (kind is float or kind is int or value is None) and not (key in ("step", "t") or key.startswith("eval/")):
                    finite = value if kind is float and -math.inf < value < math.inf else number(value)  # mostly the former
                    self.nans += finite is None
                    if column := self.keys.get(key) or self._column(key):
                        column[0].append(i)
                        column[1].append(math.nan if finite is None else finite)

    def _add_scores(self, i: int, row: dict) -> None:
        now = (*kind_of(self.evals[-1]), self.evals[-1]["bn"])  # BatchNorm tells EAGAN's two stages apart
        for what in ("fid", "is"):
            value, key = row.get(f"eval/{what}", ""), fid_label(row.get("eval/net"), what.upper())
            if value is None or type(value) in (float, int):
                if key in self.keys and self.phases.get(key) != now:
                    self.breaks.setdefault(key, []).append(len(self.keys[key][0]))
                self.phases[key] = now
                if column := self._column(key):
                    column[0].append(i)
                    column[1].append(math.nan if (value := number(value)) is None else value)

    def _column(self, key: str) -> tuple[array, array] | None:
        """That of a key, new if it is; None: there are too many."""
        key = clean(key, 60)
        known = key in self.keys or len(self.keys) < 200
        return self.keys.setdefault(key, (array("I"), array("d"))) if known else None


class Run:
    """One run directory. All attributes are valid whatever the files contain. problems: {unreadable file: reason}."""

    def __init__(self, path: Path, record: dict | None = None) -> None:
        self.path, self.name = path, path.name
        self.record = record  # launch record, if launched from the UI (ui.launch)
        self.config, self.status, self.tags = dict[str, Any](), dict[str, Any](), dict[str, Any]()
        self.result, self.genotype = dict[str, Any](), dict[str, Any]()
        self.problems: dict[str, str] = {}
        self.exit: int | None = None
        self.exit_time = self.status_time = 0.0
        self.watched: float | None = None  # when status.json last changed, by this host's monotonic clock
        self.checked: tuple[object, float] = (None, 0.0)  # status "checked", and when it was last seen to change
        self.seen: dict[str, tuple] = {}
        self.foreign = foreign.find(path) if record is None else None
        self.columns, self.search = Columns(), Search(path / "search.jsonl")
        self.tail = Tail(self.foreign.path if self.foreign else path / "metrics.jsonl")
        self.peeked: dict | None = None  # last evaluation and step, until metrics.jsonl has been read
        self.varieties: dict[Path, float | None] = {}  # sample variety by image (ui.pages)
        self.loaded = False
        self.progress = 0.0  # latest mtime of metrics.jsonl, search.jsonl, log.txt
        self.state, self.why = "lost", ""
        self._values()
        self.lock, self.loading = threading.Lock(), threading.Lock()  # guard the columns, the tails

    def refresh(self) -> bool:
        """Reread small files that changed and update the state. Returns whether anything changed."""
        before = (self.state, self.why, self.progress, len(self.problems))
        changed = False
        for name in ("config", "status", "tags", "result", "genotype"):
            changed |= self._object(name)
        changed |= self._exit()
        self.progress = max(map(mtime, (self.tail.path, self.search.path, self.path / "log.txt")))
        self._values()
        if (mark := self.status.get("checked")) != self.checked[0]:
            self.checked = (mark, time.monotonic())
        self.state, self.why = judge(self)
        return changed or before != (self.state, self.why, self.progress, len(self.problems))

    def _values(self) -> None:
        """What the small files say, safe to display."""
        config, status, record = self.config, self.status, self.record or {}
        args, process, tags = config.get("args") or record.get("args"), status.get("process"), self.tags.get("tags")
        self.args: dict = args if isinstance(args, dict) else {}
        self.script = clean(config.get("script") or record.get("script"), 80)
        self.method = clean(config.get("method"), 20) or self.script[:40].removesuffix(".py")
        self.method = self.method or ("" if self.foreign else self.name.split("-")[0])
        self.dataset = clean(config.get("dataset") or get(record, "args", "dataset"), 40)
        seed = number(config.get("seed") if config else get(record, "args", "seed"))
        self.seed = None if seed is None else int(seed)
        self.process: dict = process if isinstance(process, dict) else {}
        self.phase, self.total = clean(status.get("phase"), 20), number(status.get("total")) or None
        self.pinned = self.tags.get("pinned") is True
        self.labels = [clean(t, 40) for t in tags if isinstance(t, str)][:20] if isinstance(tags, list) else []

    def _changed(self, name: str) -> bool:
        key = stamp(self.path / name)
        if self.seen.get(name) == key:
            return False
        changed = key[2] / 1e9 if key else 0.0
        if name == "status.json":
            self.status_time = changed
            old = 0.0 if self.seen.get(name) else max(0.0, time.time() - changed)  # seen to change: new
            self.watched = time.monotonic() - old
        if name == "exit":
            self.exit_time = changed
        new = name not in self.seen and not key
        self.seen[name] = key
        return not new

    def _object(self, name: str) -> bool:
        file = f"{name}.json"
        if not self._changed(file):
            return False
        self.problems.pop(file, None)
        value: dict = {}
        if self.seen[file]:
            try:
                value = parse(read_bytes(self.path / file))
            except (OSError, ValueError) as e:
                self.problems[file] = clean(getattr(e, "strerror", None) or str(e), 80)
        setattr(self, name, value)
        return True

    def _exit(self) -> bool:
        if not self._changed("exit"):
            return False
        try:
            self.exit = int(read_bytes(self.path / "exit", 20))
        except (OSError, ValueError):
            self.exit = None
        return True

    def peek(self) -> None:
        """Get the last evaluation from the last 8 kB of metrics.jsonl, so that the list appears before all is read."""
        self.peeked = {}
        if self.foreign:
            return
        try:
            data, whole = read_end(self.tail.path, 8192)
        except OSError:
            return
        columns = Columns()
        columns.add(parse_lines([x for x in data.split(b"\n")[not whole : -1] if x.strip()])[0])
        self.peeked = {
            "eval": columns.evals[-1] if len(columns.evals) else None,
            "step": columns.step[-1] if columns.step else None,
        }

    def load(self, seconds: float = 0.05) -> bool:
        """Continue reading metrics.jsonl and search.jsonl for about `seconds`. Returns whether there was new data."""
        with self.loading:
            return self._load(seconds)

    def load_all(self) -> None:
        """Read metrics.jsonl and search.jsonl to their ends."""
        while self.load(1.0):
            pass

    def _load(self, seconds: float) -> bool:
        end, new = time.perf_counter() + seconds, False
        while True:
            anew, lines = self.tail.read()
            rows, bad = (self.foreign.rows if self.foreign else parse_lines)([line for _, line in lines])
            with self.lock:
                if anew:
                    self.columns = Columns()
                self.columns.bad += bad
                self.columns.add(rows)
            new |= anew or bool(lines)
            if not self.tail.more or time.perf_counter() > end:
                break
        new |= self.search.load(max(0.01, end - time.perf_counter()))
        self.loaded = self.loaded or not (self.tail.more or self.search.tail.more)
        return new

    def column(self, key: str) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
        """(step, seconds, value) of a metric as float64 arrays, empty if the run does not have it."""
        with self.lock:
            c = self.columns
            n = len(c.keys[key][0]) if key in c.keys else 0
            cached = c.cache.get(key)
            if cached and len(cached[0]) == n:
                return cached
            if not n:
                return (np.empty(0),) * 3
            rows = np.array(c.keys[key][0])
            c.cache[key] = (np.array(c.step)[rows], np.array(c.t)[rows], np.array(c.keys[key][1]))
            return c.cache[key]

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def step(self) -> float | None:
        last = self.columns.step[-1] if self.columns.step else number(get(self.peeked, "step"))
        return last if (step := number(self.status.get("step"))) is None else step

    @property
    def last(self) -> dict:
        return self.last_at(None)

    def last_at(self, at: float | None) -> dict:
        """The last evaluation, or that at or before step `at`: fid, is, net, and if known n, step, what. {}: none."""
        if at is not None:
            return next((e for e in reversed(self.evaluations()) if e["step"] <= at), {})
        if len(self.columns.evals):
            return self.columns.evals[-1]
        if get(self.peeked, "eval"):
            return self.peeked["eval"]
        last = self.status.get("last")
        if isinstance(last, dict) and last.get("net"):
            return {"fid": number(last.get("fid")), "is": number(last.get("is")), "net": last["net"]}
        return {}

    def evaluations(self) -> list[dict]:
        return [self.columns.evals[i] for i in range(len(self.columns.evals))]

    def best(self, at: float | None = None) -> dict:
        """The evaluation with the lowest FID among those of the kind of the last one, up to step `at`."""
        kind = kind_of(self.last_at(at))
        found = [e for e in self.evaluations() if kind_of(e) == kind and e["fid"] is not None]
        return min((e for e in found if at is None or e["step"] <= at), key=lambda e: e["fid"], default={})

    def score(self, label: str) -> float | None:
        """The last score of this name ("FID", "IS(compact)", ...). None: the last evaluation used another network."""
        last = self.last
        return next((last.get(k) for k in ("fid", "is") if last and fid_label(last.get("net"), k.upper()) == label), None)

    @property
    def rate(self) -> float | None:
        return number(self.status.get("rate")) if self.state in ("running", "stopping", "stalled") else None

    @property
    def eta(self) -> float | None:
        """Seconds left if running: from status.json, else estimated from the last 20% of the rows."""
        if self.state not in ("running", "stopping"):
            return None
        eta, steps, times = number(self.status.get("eta_s")), self.columns.step, self.columns.t
        if eta is None and self.total and len(steps) > 10:
            i = int(len(steps) * 0.8)
            seconds, done = times[-1] - times[i], steps[-1] - steps[i]
            eta = (self.total - steps[-1]) * seconds / done if seconds > 0 and done > 0 else None
        return None if eta is None else max(0.0, eta)

    @property
    def spent(self) -> float | None:
        """Seconds of work, before and after resuming."""
        seconds = self.result.get("seconds")
        parts = [s for v in seconds.values() if (s := number(v)) is not None] if isinstance(seconds, dict) else []
        return sum(parts) if parts else self.columns.t[-1] if len(self.columns.t) else None

    @property
    def memory(self) -> float | None:
        """Bytes of GPU memory if reported, else peak memory."""
        return number(self.status.get("gpu_mem")) or number(self.status.get("peak_mem"))

    @property
    def bad(self) -> int:
        return self.columns.bad + self.tail.bad + self.search.bad + self.search.tail.bad

    @property
    def error(self) -> str:
        """Why the run failed, in one line: its error message, or the last line of its output."""
        message = get(self.status, "error", "message")
        if message and self.state == "failed":
            return clean(message)
        return last_line(self.output) if self.state in ("failed", "lost") else ""

    @property
    def output(self) -> Path:
        """stdout and stderr of a run launched from the UI."""
        return Path(self.record["dir"]) / "output.txt" if self.record else self.path / "output.txt"

    def files(self, folder: str, suffix: str) -> list[tuple[int, Path]]:
        """[(step, path)] of samples/<step>.png or genotypes/<step>.json, sorted."""
        try:
            with os.scandir(self.path / folder) as entries:
                stems = [e.name.removesuffix(suffix) for e in entries if e.name.endswith(suffix)]
        except OSError:
            return []
        steps = [(int(stem), stem) for stem in stems if re.fullmatch("[0-9]{1,15}", stem)]
        return sorted((step, self.path / folder / (stem + suffix)) for step, stem in steps)

    def genotype_at(self, step: float | None) -> dict:
        """genotype.json, or with a step the latest one in genotypes/ at or before it."""
        if step is None:
            return self.genotype
        before = [path for s, path in self.files("genotypes", ".json") if s <= step]
        try:
            return parse(read_bytes(before[-1])) if before else {}
        except (OSError, ValueError):
            return {}

    def source(self) -> dict[str, str]:
        """The files in source/: {name: text}."""
        found, home = {}, self.path / "source"
        for path in [p for pattern in ("*.py", "common/*.py") for p in sorted(home.glob(pattern))[:50]]:
            with contextlib.suppress(OSError):
                found[str(path.relative_to(home))] = read_bytes(path).decode("utf-8", "replace")
        return found


# ---- states -----------------------------------------------------------------------------------------------------------
HOST = (socket.gethostname(), last_line(Path("/proc/sys/kernel/random/boot_id")))
STOPPED = ("T", "t")  # state letters of a paused process


def process_stat(pid: int) -> tuple[str, int] | None:
    """(state letter, kernel start time) of a process; None if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else (fields[0], int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def identity(process: dict) -> tuple[int, int] | None:
    """Unique process identity (pid, start time); None if not on this host or from before its last boot."""
    pid, start = process.get("pid"), process.get("start_time")
    here = (process.get("host"), process.get("boot_id")) == HOST
    if not here or type(pid) is not int or type(start) is not int or pid <= 1:
        return None
    return pid, start


def alive(process: dict) -> str | None:
    """The state letter of this process (T: stopped); None if it has ended or is not on this host."""
    who = identity(process)
    found = process_stat(who[0]) if who else None
    return found[0] if found and found[1] == who[1] else None


def age(stamp: object) -> float | None:
    """Seconds since an ISO time."""
    try:
        return time.time() - datetime.fromisoformat(stamp).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def patience(run: Run) -> float:
    """Seconds without new output after which a live run counts as stalled."""
    t = run.columns.t[-100:]
    gaps = [b - a for a, b in pairwise(t) if b > a]
    return max(120.0, 8 * median(gaps)) if gaps else 120.0


def judge(run: Run) -> tuple[str, str]:
    """(state, reason) of a run, from its files and its process."""
    if run.foreign:
        return "log", f"{clean(run.foreign.path.name, 60)} of another program"
    said, record = run.status.get("state"), run.record or {}
    here = identity(run.process)
    begun = record.get("run") or (here and here == identity(record.get("child", {})))
    if record and not begun and record.get("exit") is None and alive(record["keeper"]):
        if record.get("state") == "queued":
            return "queued", clean(record.get("waits"), 60)
        return ("paused" if alive(record["child"]) in STOPPED else "starting"), ""
    if record and not run.status:
        return ended(number(record.get("exit")))
    if said in ("done", "stopped", "failed"):
        return said, ended(run.exit)[1] if said == "failed" and run.exit not in (None, 1) else ""
    if here:
        letter = alive(run.process)
        if letter in STOPPED:
            return "paused", ""
        if letter is None:
            return ended(run.exit if run.exit_time >= run.status_time - 2 else None)
        return _progress(run, said)
    quiet = time.monotonic() - run.watched if run.watched is not None else None  # never by the other host's clock
    if not run.status:
        if run.exit is not None:
            return ended(run.exit)
        quiet = time.time() - run.progress if run.progress else None
        if quiet is not None and quiet < patience(run):
            return "running", "no status.json"
        return "lost", "no status.json"
    if run.exit is not None and run.exit_time >= run.status_time - 2:
        return ended(run.exit)
    host = clean(run.process.get("host"), 40) or "unknown host"
    if run.process.get("host") == HOST[0]:
        return "lost", f"{host} has been restarted"
    if quiet is None or quiet > 900:
        return "lost", f"no heartbeat from {host}"
    if quiet > 60:
        return "stalled", f"no heartbeat from {host}"
    return _progress(run, said)


def _progress(run: Run, said: object) -> tuple[str, str]:
    if said == "stopping":
        return "stopping", "saving…"
    if said == "starting":
        return "starting", ""
    if run.checked[0] is None:  # written before there was such a mark: the heartbeat has to do
        return "running", ""
    since = age(run.checked[0]) if identity(run.process) else time.monotonic() - run.checked[1]  # of this host's clock
    quiet = min(time.time() - run.progress, since if since is not None else math.inf)
    if quiet < patience(run):
        return "running", ""
    return "stalled", f"no step for {quiet / 60:.0f} min, though the process lives"


def ended(code: float | None) -> tuple[str, str]:
    """(state, reason) from the exit code of a process that did not report how it ended."""
    if code is None:
        return "lost", "no process and no exit code"
    if code in (0, 130):
        return ("stopped" if code else "done"), ""
    return "failed", "killed (out of memory?)" if code in (137, -9) else f"exit {code:.0f}"


class Store:
    """The runs in one folder, by name. Call `scan` and `refresh` from one thread only; others may read."""

    def __init__(self, root: Path, records: Callable[[Path], list[dict]] = lambda root: []) -> None:
        self.root, self.records = root, records
        self.runs: dict[str, Run] = {}
        self.became: dict[str, str] = {}  # launch name -> run name, once the run directory exists
        self.problem = ""  # why the folder cannot be read
        self.looked: dict[Path, tuple[float, bool]] = {}  # folders without a run: when changed, and whether a log is there

    def scan(self) -> set[str]:
        """Look for new and deleted runs. Returns their names."""
        found: dict[str, Path] = {}
        try:
            with os.scandir(self.root) as entries:
                for e in entries:
                    with contextlib.suppress(OSError):
                        if not e.name.startswith(".") and e.is_dir():
                            found[e.name] = Path(e.path)
            self.problem = ""
        except FileNotFoundError:
            self.problem = "there is no such folder yet"
        except OSError as e:
            self.problem = e.strerror or str(e)
        names = {n for n, path in found.items() if n in self.runs or is_run(path) or self._is_foreign(path)}
        changed = set()
        for name in names - set(self.runs):
            self.runs[name] = Run(found[name])
            self.runs[name].refresh()
            changed.add(name)
        processes = {who: n for n in names if (who := identity(self.runs[n].process))}
        launched, pending = {}, {}
        for r in self.records(self.root):  # oldest first
            run = r.get("run") or processes.get(identity(r["child"]))
            if run is None and r.get("resumes") and r.get("exit") is None:
                run = r["resumes"]
            if run:
                launched[run] = r
                self.became[r["name"]] = run
            elif not r.get("resumes"):
                pending[r["name"]] = r
        for name in set(self.runs) - names - set(pending):
            del self.runs[name]
            changed.add(name)
        for name, record in (pending | launched).items():
            if name in pending and name not in self.runs:
                self.runs[name] = Run(Path(record["dir"]))
                self.runs[name].name = name
                changed.add(name)
            if name in self.runs:
                self.runs[name].record = record
        return changed

    def _is_foreign(self, path: Path) -> bool:
        """Whether another program's log is in a folder; looked for when the folder has changed."""
        changed = mtime(path)
        if self.looked.get(path, (0.0, False))[0] != changed:
            self.looked[path] = (changed, foreign.find(path) is not None)
        return self.looked[path][1]

    def refresh(self) -> set[str]:
        """Reread the small files. Returns the names of runs that changed."""
        return {name for name, run in list(self.runs.items()) if run.refresh()}

    def ordered(self) -> list[Run]:
        return list(self.runs.values())

    def _ours(self, run: Run) -> None:
        if run.foreign:
            raise ValueError(f"{run.name}: written by another program, only read here")

    def tag(self, run: Run, **changes: object) -> None:
        """Change tags, note or pinned in tags.json, atomically. OSError: cannot be written. ValueError: not a run of ours."""
        self._ours(run)
        value = {k: v for k, v in {**run.tags, **changes}.items() if v not in (None, [], "", False)}
        write_json(run.path / "tags.json", value)
        run.refresh()

    def trash(self, run: Run) -> Path:
        """Move a finished run to .trash/. ValueError: it is still live or queued, or not a run of ours."""
        self._ours(run)
        run.refresh()
        if run.live or run.state == "queued":
            raise ValueError(f"{run.name} is {run.state}; stop it first")
        bin_ = self.root / ".trash"
        bin_.mkdir(exist_ok=True)
        names = (f"{run.path.name}~{n}" if n else run.path.name for n in count())
        to = next(bin_ / name for name in names if not os.path.lexists(bin_ / name))
        with open(bin_ / "moved.jsonl", "a", encoding="utf-8") as f:  # first: no run in the trash without a way back
            f.write(json.dumps({"trashed": to.name, "original": os.path.relpath(run.path, self.root)}) + "\n")
        os.rename(run.path, to)
        self.runs.pop(run.name, None)
        return to

    def trashed(self) -> list[tuple[Path, Path]]:
        """[(path in .trash/, original path)] of the runs that can be restored, the last one moved there first."""
        try:
            rows, _ = parse_lines([x for x in read_bytes(self.root / ".trash" / "moved.jsonl").split(b"\n") if x.strip()])
        except OSError:
            return []
        found: dict[str, Path] = {}
        for row in rows:
            name, original = row.get("trashed"), row.get("original")
            if isinstance(name, str) and isinstance(original, str) and Path(name).name == name:
                to = Path(os.path.normpath(self.root / original))
                if to.is_relative_to(os.path.normpath(self.root)):
                    found.pop(name, None)
                    found[name] = to
        here = [(self.root / ".trash" / name, to) for name, to in found.items()]
        return [pair for pair in reversed(here) if pair[0].is_dir()]

    def restore(self, trashed: Path, original: Path) -> None:
        """Undo `trash`. OSError: the name is taken, or the run is no longer in the trash."""
        if os.path.lexists(original):
            raise FileExistsError(f"{original.name} exists again")
        os.rename(trashed, original)


def is_run(path: Path) -> bool:
    """Whether a folder is a run: it has one of the files that a run writes first."""
    return any(os.path.lexists(path / name) for name in ("config.json", "status.json", "metrics.jsonl", "exit"))


def color_index(name: str, taken: Iterable[int], n: int = 8) -> int:
    """The colour of a run, derived from its name; the next free one if it is taken."""
    first, taken = zlib.crc32(name.encode("utf-8", "replace")) % n, set(taken)
    return next((c for k in range(n) if (c := (first + k) % n) not in taken), first)
