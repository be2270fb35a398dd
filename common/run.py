"""The run directory: status, progress, logs, checkpoints, signals."""

import fcntl
import hashlib
import inspect
import json
import math
import os
import platform
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from common.data import SIZES
from common.files import UserError, finite, first_line, load_tensors, read_json, replacing, write_json
from common.metrics import fid_label
from common.ranks import Ranks, device_name, gpu_id

SCHEMA = 1  # schema version of config.json
CHECKPOINT = 4  # schema version of checkpoint.pt
DIVERGED = "training diverged; lower the learning rates and start again"
WATCH = 25.0  # seconds to watch a run of another host before it is taken over
FIRST_SAVE = 60.0  # seconds of a stage until its first checkpoint, if --save-minutes is longer
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)  # USR1: SLURM's warning
ROWS = ("metrics.jsonl", "search.jsonl")
CHECKPOINTS = ("checkpoint.pt", "checkpoint.prev.pt")
OWN = {"lock", "source", "status.json", "STOP"}  # all that a run has before its config.json, but for .tmp files
ON_RESUME = {  # flags that may change on --resume: only the device, with its own random streams, changes results
    "resume", "auto_resume", "preset", "dry_run", "device", "dataset", "runs_dir", "data_dir", "inception_weights",
    "save_minutes", "log_every", "sample_every", "eval_every", "eval_after", "eval_n", "train_epochs", "compile",
    "graph", "metrics", "eval_data", "sample_n", "out",
}  # fmt: skip
INPUTS = ("dataset", "eval_data", "fid_stats", "inception_weights", "weights")  # flags that may be paths
GENOTYPES = ("genotype", "d_genotype", "init_g", "init_d")  # flags that may be paths of .json or .npy files
KEPT = ON_RESUME - {  # by later resumes
    "resume", "auto_resume", "preset", "dry_run", "device", "runs_dir", "compile", "graph",
}  # fmt: skip


class Stopped(BaseException):
    """Raised between steps after a signal of STOPPING or a STOP file; the run saves and exits with 130."""


class DivergedError(UserError):
    """A loss or a weight is not finite."""


def jsonable(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def duration(seconds: float) -> str:
    """Format seconds: 45s, 12m, 3h05, 2d04h."""
    if not math.isfinite(seconds):
        return "?"
    m = int(seconds) // 60
    if seconds < 90:
        return f"{seconds:.0f}s"
    if m < 90:
        return f"{m}m"
    return f"{m // 60}h{m % 60:02d}" if m < 48 * 60 else f"{m // 1440}d{m // 60 % 24:02d}h"


def process_identity() -> dict:
    """Unique process identity, across hosts and reboots."""
    pid, boot_id = os.getpid(), read_text("/proc/sys/kernel/random/boot_id")
    return {"pid": pid, "start_time": kernel_start_time(pid), "host": socket.gethostname(), "boot_id": boot_id}


def kernel_start_time(pid: int) -> int | None:
    fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else None


def read_text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text("utf-8").strip()
    return ""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state(folder: Path) -> dict:
    def git(*words: str) -> str:
        try:
            found = subprocess.run(["git", "-C", folder, *words], capture_output=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return found.stdout.decode("utf-8", "replace")

    dirty = bool(git("status", "--porcelain", "-uno").strip())
    return {"sha": git("rev-parse", "HEAD").strip() or None, "dirty": dirty}


class Run:
    """A run directory, new (in args["runs_dir"], or args["auto_resume"] itself) or resumed (args["resume"]). Only rank
    0 writes to it.

    Leaving `with Run(...) as run` writes the final state (done, stopped, failed) to status.json.
    args: every flag as a plain value. plan: (stage, G updates, multiply-adds per update) in order.
    facts: extra keys for config.json. disk: expected size in bytes. UserError: the directory cannot
    be created, the disk is full, a live process uses it, or it was started with other images.
    """

    def __init__(
        self, script: str | Path, method: str, args: dict, ranks: Ranks, *,
        dataset: str, digest: str, plan: list[tuple[str, int, float]], facts: dict, disk: float = 0
    ) -> None:  # fmt: skip
        script = Path(script)
        self.args: dict[str, Any] = {k: jsonable(v) for k, v in args.items()}
        for key in INPUTS + GENOTYPES:  # to be resumed from any folder
            given = self.args.get(key) or ""
            published = given in SIZES if key in INPUTS else Path(given).suffix not in (".json", ".npy")
            if given and not published and Path(given).exists():
                self.args[key] = str(Path(given).absolute())
        if "data_dir" in self.args:
            self.args["data_dir"] = str(Path(self.args["data_dir"]).absolute())
        self.ranks, self.plan, self.main = ranks, plan, ranks.rank == 0
        self.console = Console(highlight=False, soft_wrap=True)
        self.stopping, self.interrupted, self.lock = False, False, threading.Lock()
        self.tracked: tuple[Any, dict[str, Any]] | None = None  # contents of a checkpoint: see track()
        self.to_restore: dict[str, Any] = {}  # read by load(), restored by the first track()
        self.bad: torch.Tensor | None = None  # whether a loss since the last row or save was not finite
        self.changed = self.flags_changed = ""  # what differs from the run so far
        self.id: str | None = uuid.uuid4().hex  # of a new run; its checkpoints carry it, and the arguments:
        self.fixed = {"method": method} | {k: v for k, v in self.args.items() if k not in ON_RESUME}
        self.seconds: dict[str, float] = {}  # per stage, before and after resuming
        self.beat, self.suspended = math.inf, 0.0  # last heartbeat; seconds that the process was stopped by SIGSTOP
        self.clock = self.saved_at = self.shown_at = time.monotonic()
        self.ticks = 0
        self.resumed, in_place = args["resume"] is not None, args.get("auto_resume")
        flag = "--resume" if self.resumed else "--auto-resume" if in_place else "--runs-dir"
        folder = Path(args["resume"] if self.resumed else in_place or args["runs_dir"])
        root = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(root).free
        if self.main and free < disk:
            raise UserError(
                f"{flag} {root}: {free / 1e9:.2f} GB free, but {disk / 1e9:.2f} GB needed; use another disk"
            )
        name = f"{script.stem}-{dataset}-s{args['seed']}-{datetime.now():%Y%m%d-%H%M%S}"
        self.dir, created = folder, not self.resumed
        if in_place and not self.resumed:
            created = self._claim_exactly(folder)
        elif not self.resumed:
            self.dir = self._claim(folder, name)
        launcher = ["python"] if ranks.world == 1 else ["torchrun", "--nproc-per-node", str(ranks.world)]
        launcher.append(script.name if script.parent.resolve() == Path.cwd() else str(script.resolve()))
        self.status: dict[str, Any] = {
            "state": "starting", "phase": "search", "stage": "", "step": 0, "total": sum(n for _, n, _ in plan),
            "rate": None, "eta_s": None, "next": "", "last": {"fid": None, "is": None, "net": None},
            "process": process_identity(), "started": now(), "updated": now(), "gpu_mem": None, "peak_mem": None,
            "checkpoints": 0, "checked": now(),
            "resume_command": shlex.join([*launcher, "--resume", str(self.dir.absolute())]), "error": None,
        }  # fmt: skip
        if self.main:
            versions = {"python": platform.python_version(), "torch": torch.__version__}
            config = {
                "schema": SCHEMA, "script": script.name, "method": method, "preset": args["preset"],
                "dataset": dataset, "data_digest": digest, "seed": args["seed"], "args": self.args, "argv": sys.argv,
                "command": command_line(script, self.args, ranks.world), "git": git_state(script.parent),
                "device": device_name(ranks.device), "gpu": gpu_id(ranks.device), "world_size": ranks.world,
                "versions": versions, **facts, "created": now(), "id": self.id, "files": self._genotype_files(),
            }  # fmt: skip
            try:
                self._lock()
                if not self.resumed and (self.dir / "config.json").exists():
                    raise UserError(f"{flag} {self.dir}: another process has just started it")
                if self.resumed:
                    self._keep_flags(self._check_resumable(digest, config, script), script)
                else:
                    source = self.dir / "source" / "common"
                    source.mkdir(parents=True, exist_ok=True)  # of a start that was cut off
                    for file in imported_from(script.parent) | {script}:
                        shutil.copy(file, source.parent)
                    for file in Path(__file__).parent.glob("*.py"):
                        shutil.copy(file, source)
                    write_json(self.dir / "config.json", config)
                (self.dir / "STOP").unlink(missing_ok=True)
                self._write_status()
            except OSError as e:
                if created:
                    shutil.rmtree(self.dir, ignore_errors=True)
                remedy = "make it writable" if self.resumed else "use another directory"
                raise UserError(f"{flag} {self.dir}: cannot be written ({e.strerror}); {remedy}") from None
        self.id = ranks.gather(self.id)[0]

    def _claim(self, runs: Path, name: str) -> Path:
        """Create the run directory: the first of name, name-2, name-3, ... that does not exist."""
        path = runs / name
        if self.main:
            try:
                runs.mkdir(parents=True, exist_ok=True)
                taken = 1
                while not made(path):
                    taken += 1
                    path = runs / f"{name}-{taken}"
            except OSError as e:
                raise UserError(f"--runs-dir {runs}: cannot be written ({e.strerror}); use another one") from None
        return self.ranks.gather(path)[0]

    def _claim_exactly(self, path: Path) -> bool:
        """Create this very run directory; False if it exists, without a config.json, from a start that was cut off."""
        created = False
        if self.main:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                created = made(path)
                others = {f.name for f in path.iterdir() if f.suffix != ".tmp"} - OWN
            except OSError as e:
                raise UserError(f"--auto-resume {path}: cannot be written ({e.strerror}); use another one") from None
            if others and "config.json" not in others:
                raise UserError(f"--auto-resume {path}: not a run directory, it has {min(others)}; use a new one")
        return created

    def _lock(self) -> None:
        """Hold RUN/lock as long as this process lives. UserError: another process holds it."""
        self.lock_file = open(self.dir / "lock", "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock_file.seek(0)
            holder = self.lock_file.read().strip()
            raise UserError(f"{self.dir}: in use by process {holder}; stop it first") from None
        self.lock_file.truncate(0)
        self.lock_file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        self.lock_file.flush()

    def _watch(self, host: str, updated: str) -> None:
        """Refuse a run that lives on another host: its status changes every 10 s. No clocks are compared."""
        print(f"{self.dir}: last seen running on {host}; watching it for {WATCH:.0f} s")
        for _ in range(round(WATCH)):
            time.sleep(1)
            if json.loads((self.dir / "status.json").read_text("utf-8"))["updated"] != updated:
                raise UserError(f"--resume {self.dir}: still running on {host}; stop it first")

    def _keep_flags(self, config: dict, script: Path) -> None:
        """Put the flags that this resume changes into config.json: the next one, without flags, goes on with them."""
        kept = {k: self.args[k] for k in KEPT if k in self.args and k in config["args"]}
        if changed := {k: v for k, v in kept.items() if config["args"][k] != v}:
            told = ", ".join(f"--{k.replace('_', '-')} {config['args'][k]} -> {v}" for k, v in changed.items())
            config["args"] |= changed
            config["command"] = command_line(script, config["args"], config["world_size"])
            write_json(self.dir / "config.json", config)
            self.flags_changed = f"from now on {told}"

    def _check_resumable(self, digest: str, today: dict, script: Path) -> dict:
        """Refuse what cannot be resumed; note what differs from the run so far. today: config.json of a new run.
        Returns the config.json of the run."""
        config = read_json(self.dir / "config.json", "--resume")
        self.id = config.get("id")
        if config.get("schema") != SCHEMA:
            raise UserError(f"--resume {self.dir}: schema {config.get('schema')}, but this version reads {SCHEMA}")
        if config.get("data_digest") != digest:
            raise UserError(
                f"--resume {self.dir}: the images of {self.args['dataset']} have changed since it started; restore them"
            )
        edited = [k for k, was in (config.get("files") or {}).items() if today["files"].get(k) != was]
        if edited and not any((self.dir / name).exists() for name in CHECKPOINTS):
            raise UserError(
                f"--resume {self.dir}: {self.args[edited[0]]} has changed since it started, and there is no checkpoint "
                "yet; restore it, or start a new run"
            )
        with suppress(OSError, ValueError, TypeError, KeyError):  # no valid status: rely on the checkpoint
            status = json.loads((self.dir / "status.json").read_text("utf-8"))
            self.status["last"] = {k: status["last"][k] for k in ("fid", "is", "net")}
            self.status["checkpoints"] = status.get("checkpoints", 1)  # at least, of older versions
            old, new = status["process"], self.status["process"]
            if status["state"] not in ("done", "stopped", "failed"):
                if (old["host"], old["boot_id"]) == (new["host"], new["boot_id"]):  # from before there was a lock
                    if old["pid"] != new["pid"] and kernel_start_time(old["pid"]) == (old["start_time"] or -1):
                        raise UserError(f"--resume {self.dir}: in use by process {old['pid']}; stop it first")
                elif old["host"] != new["host"]:
                    self._watch(old["host"], status["updated"])
        before, after = (
            {
                "device": c["device"],
                "processes": c["world_size"],
                "torch": c["versions"]["torch"],
                "git": c["git"]["sha"],
                "compile": c["args"].get("compile"),
                "graph": c["args"].get("graph", False),
            }
            for c in (config, today)
        )
        changed = [f"{k} {before[k]} -> {after[k]}" for k in before if before[k] != after[k]]
        changed += [f"{k} {self.args[k]}" for k in edited]
        self.changed = ", ".join([*changed, *(f"code {name}" for name in self._edited(script))])
        return config

    def _genotype_files(self) -> dict[str, str]:
        """A hash of each genotype file that a flag names."""
        paths = {k: Path(self.args.get(k) or "") for k in GENOTYPES}
        files = {k: path for k, path in paths.items() if path.suffix in (".json", ".npy") and path.is_file()}
        return {k: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for k, path in files.items()}

    def _edited(self, script: Path) -> list[str]:
        """Files of source/ that are no longer as they were when the run began."""
        kept, found = self.dir / "source", []
        for file in sorted(kept.rglob("*.py")):
            name = file.relative_to(kept)
            today = Path(__file__).parent / name.name if name.parts[0] == "common" else script.parent / name
            if not today.exists() or today.read_bytes() != file.read_bytes():
                found.append(str(name))
        return found

    def __enter__(self) -> "Run":
        text = TextColumn("{task.description}", table_column=Column(overflow="fold"))  # wrap in a narrow terminal
        self.bar = Progress(BarColumn(10), text, console=self.console, transient=True)
        self.task = self.bar.add_task("", total=max(self.status["total"], 1))
        if self.main and self.console.is_terminal:
            self.bar.start()
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():
            for s in STOPPING:  # do not inherit "ignore" from the parent, except of HUP: nohup
                if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN:
                    self.handlers[s] = signal.signal(s, self._on_signal)
        self.left = threading.Event()
        self.heart = threading.Thread(target=self._heartbeat, daemon=True)
        self.beat = time.monotonic()
        self.heart.start()
        self.status["state"] = "running"
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Stopped):  # all inner `with` blocks have exited: the state is consistent
            try:
                self.save()
            except UserError as e:
                error, kind = e, UserError
        self.left.set()
        self.heart.join()
        self.beat = math.inf
        self.bar.stop()
        self._account()
        error = self._explained(error)
        self.status["state"] = "done" if error is None else "stopped" if isinstance(error, Stopped) else "failed"
        if self.status["state"] == "failed":
            self.status["error"] = {"type": kind and kind.__name__, "message": str(error)}
        with suppress(OSError):  # a full disk, a directory that is gone
            if error is None or isinstance(error, Stopped):
                self.print(f"{self.status['state']} · {self.dir}")
            if isinstance(error, Stopped):
                self.print(f"resume with: {self.status['resume_command']}")
        if self.main:
            with suppress(OSError):  # disk failure: readers rely on the last `updated`
                self._write_status()
        if self.main:
            self.lock_file.close()
        for s, handler in self.handlers.items():  # last: torchrun's second signal must not interrupt saving
            signal.signal(s, handler)
        if isinstance(error, UserError):
            raise error from None

    def _explained(self, error: BaseException | None) -> BaseException | None:
        """An error of the disk, the memory or the compiler as a UserError; others as they are."""
        if error is None:
            return None
        told, resume = f"{self.dir}: {self.status['stage']}: {first_line(error)}", self.status["resume_command"]
        if isinstance(error, OSError) and self.main:  # disk full or failed
            return UserError(f"{self.dir}: {error}; fix it, then run {resume}")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            if raised_in(error, inspect.getfile(fid_label)):  # whatever the batches; further scores keep features
                fewer = "" if self.args.get("metrics", "fid,is") == "fid,is" else " --metrics fid,is"
                again = ", or start again with a smaller --g-ch" if self.tracked else ""  # else G is not made yet
                return UserError(
                    f"{told}; scoring has batches of its own: free memory, then run {resume}{fewer}{again}"
                )
            flags = "--d-batch, --g-batch" if self.status["phase"] == "train" else "--d-batch or --search-..."
            return UserError(f"{told}; free memory, then run {resume}, or start again with smaller {flags}")
        of_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
        if of_compiler or (self.args.get("compile") and "aot_autograd" in str(error)):
            return UserError(f"{told}; run {resume} --no-compile")
        if self.args.get("graph") and "captur" in str(error):
            return UserError(f"{told}; run {resume} --no-graph")
        return error

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            if self.interrupted and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun sends a second signal itself
                os._exit(130)
            self.interrupted = True
        self.stopping = True
        self.status["state"] = "stopping"

    def _heartbeat(self) -> None:
        used = time.process_time()
        while not self.left.wait(1.0):
            slept = time.monotonic() - self.beat - 1
            if slept > 1 and time.process_time() - used < 0.1 * slept:  # stopped: no thread was busy
                self.suspended += slept
            self.beat, used = time.monotonic(), time.process_time()
            if (self.dir / "STOP").exists():
                self.stopping = True
            if self.main:
                with suppress(OSError):  # a full disk is reported by save() and log()
                    self._write_status()

    def _write_status(self) -> None:
        s = self.status
        s["updated"] = now()
        s["peak_mem"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if self.ranks.device.type == "cuda":
            s["gpu_mem"] = torch.cuda.memory_allocated(self.ranks.device)
            s["peak_mem"] = torch.cuda.max_memory_allocated(self.ranks.device)
        with self.lock:  # replacing() without the fsync: this is written every second
            tmp = self.dir / "status.json.tmp"
            tmp.write_text(json.dumps(finite(s), indent=1) + "\n", "utf-8")
            os.replace(tmp, self.dir / "status.json")

    # -- progress ----------------------------------------------------------------------------------

    def begin(self, phase: str, stage: str, step: int, upcoming: str = "", images_per_step: int = 0) -> None:
        """Begin or resume a stage at G update `step`; upcoming: what comes next, for the progress line."""
        self._account()
        self.mark = (self._awake(), step, images_per_step)
        self.status.update(phase=phase, stage=stage, step=step, rate=None, eta_s=None, next=upcoming)
        if self.ticks and not self.status["checkpoints"]:  # updates, then perhaps an hour of scoring without a tick
            self.save()

    def tick(self, step: int, upcoming: str = "") -> None:
        """Call once per step: update progress, autosave, raise Stopped if requested."""
        t0, step0, _ = self.mark
        elapsed = max(self._awake() - t0, 1e-3)
        self.status["step"], self.status["next"] = step, upcoming
        if step > step0:
            self.status["rate"] = (step - step0) / elapsed
            self.status["eta_s"] = self._eta(step, elapsed / (step - step0))
        self.check()
        self.ticks += 1
        if self.ranks.world > 1 and self.ticks % 10 == 0 and self.ranks.any(self.stopping):
            raise Stopped  # all processes stop at the same step
        interval = 60 * self.args["save_minutes"]
        if time.monotonic() - self.saved_at > (interval if self.status["checkpoints"] else min(interval, FIRST_SAVE)):
            self.save()

    def check(self) -> None:
        """Call during evaluations: update progress; with a single process, raise Stopped if requested."""
        self.status["checked"] = now()  # that the main thread goes on, which the heartbeat does not tell
        if self.stopping and self.ranks.world == 1:
            raise Stopped
        self._show()

    def replan(self, plan: list[tuple[str, int, float]]) -> None:
        """Replace the plan after the number of steps of a stage has changed."""
        self.plan = plan
        self.status["total"] = sum(n for _, n, _ in plan)
        self.bar.update(self.task, total=max(self.status["total"], 1))

    def _eta(self, step: int, seconds_per_step: float) -> float:
        """Seconds to the end of the plan, assuming the same time per multiply-add in all stages."""
        left, end, cost = 0.0, 0, None
        for _, steps, macs in self.plan:
            end += steps
            if step <= end and steps:
                cost = cost or macs
                left += min(steps, end - step) * seconds_per_step * (macs / cost if cost else 1)
        return left

    def _show(self) -> None:
        if not self.main or time.monotonic() - self.shown_at < (0.2 if self.console.is_terminal else 15):
            return
        self.shown_at = time.monotonic()
        s = self.status
        rate = f"{s['rate']:.3g} steps/s · ETA {duration(s['eta_s'])}" if s["rate"] else "…"
        score = f" · {fid_label(s['last']['net'])} {s['last']['fid']:.2f}" if s["last"]["fid"] is not None else ""
        line = f"{s['stage']} · {s['step']:,}/{s['total']:,} · {rate}{score} · next: {s['next']}"
        if self.console.is_terminal:
            self.bar.update(self.task, completed=s["step"], description=line)
        else:
            self.print(line)

    def _awake(self) -> float:
        """A clock in seconds that stands still while the process is stopped: it waits for the heartbeat."""
        return min(time.monotonic(), self.beat + 1) - self.suspended

    def _account(self) -> None:
        t = self._awake()
        stage = self.status["stage"] or "start"
        self.seconds[stage] = self.seconds.get(stage, 0.0) + t - self.clock
        self.clock = t

    def print(self, text: str) -> None:
        """Print to the terminal and log.txt."""
        if self.main:
            self.console.print(text, markup=False)
            with open(self.dir / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as f:
                f.write(text + "\n")

    # -- output files ------------------------------------------------------------------------------

    def log(self, step: int, **metrics: Any) -> None:
        """Append a row to metrics.jsonl; values may be one-element tensors. UserError: a loss is not finite."""
        self._account()
        row = {"step": step, "phase": self.status["phase"], "stage": self.status["stage"]}
        row |= {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in metrics.items()}
        row["t"] = round(sum(self.seconds.values()), 2)
        if self.status["rate"] and self.mark[2]:
            row["perf/img_s"] = round(self.status["rate"] * self.mark[2], 1)
        row["perf/host_gb"] = round(psutil.Process().memory_info().rss / 1e9, 3)
        if self.ranks.device.type == "cuda":
            row["perf/gpu_gb"] = round(torch.cuda.memory_allocated(self.ranks.device) / 1e9, 3)
        self._append("metrics.jsonl", row)
        lost = [f"{k} is {v} at step {step}" for k, v in row.items() if k.startswith("loss/") and not math.isfinite(v)]
        self.check_losses(lost[0] if lost else "")

    def watch(self, loss: torch.Tensor) -> None:
        """Remember on the device whether any loss was not finite; read at the next row or save, so no step waits."""
        bad = loss.detach().isfinite().logical_not()
        self.bad = bad if self.bad is None else self.bad.logical_or_(bad)  # in place, as a CUDA graph needs it

    def check_losses(self, lost: str = "") -> None:
        """Raise DivergedError on all processes, which call this together, if a loss of any of them was not finite since
        the last check. lost: such a loss that this process knows."""
        bad = self.bad is not None and bool(self.bad)
        if self.bad is not None:
            self.bad.zero_()
        if self.ranks.any(bool(lost) or bad):
            raise DivergedError(f"{lost or 'a loss is not finite'}: {DIVERGED}")

    def evaluated(self, step: int, score_row: dict, **more: Any) -> None:
        """Log an evaluation and show its scores in the progress line and status.json."""
        self.log(step, **score_row, **more)
        self.status["last"] = {k: score_row[f"eval/{k}"] for k in ("fid", "is", "net")}

    def search_row(self, row: dict) -> None:
        """Append a row of method-specific values to search.jsonl, one per round."""
        self._append("search.jsonl", row)

    def _append(self, name: str, row: dict) -> None:
        if self.main:
            with open(self.dir / name, "a", encoding="utf-8") as f:
                f.write(json.dumps(finite(row)) + "\n")

    def genotype(self, step: int, genotype: dict) -> None:
        """Write the best genotype so far to genotype.json and genotypes/<step>.json."""
        if self.main:
            (self.dir / "genotypes").mkdir(exist_ok=True)
            for path in (self.dir / "genotypes" / f"{step:06d}.json", self.dir / "genotype.json"):
                write_json(path, finite(genotype))

    def samples(self, step: int, images: torch.Tensor) -> None:
        """Write samples/<step>.png, 8 images per row. images: (64, 3, H, W) in [-1, 1]."""
        self.picture(f"samples/{step:06d}.png", images, 8)

    def picture(self, name: str, images: torch.Tensor, per_row: int) -> None:
        """Write a grid of images, (N, 3, H, W) in [-1, 1], into a file below the run directory."""
        if self.main:
            from torchvision.utils import save_image

            (self.dir / name).parent.mkdir(exist_ok=True)
            with replacing(self.dir / name) as tmp:
                save_image(images.float().cpu(), tmp, format="png", nrow=per_row, normalize=True, value_range=(-1, 1))

    def weights(self, name: str, things: dict) -> None:
        """Write weights.pt or weights.best.pt: everything needed for sampling."""
        self.check_losses()
        if not all_finite(things):
            raise DivergedError(f"{name}: a weight is not finite at step {self.status['step']}: {DIVERGED}")
        if self.main:
            self._torch_save(self.dir / name, things)

    def result(self, **values: Any) -> None:
        """Write result.json: final scores, seconds per stage, peak memory, command to reproduce."""
        self.check_losses()
        if self.main:
            self._account()
            self._write_status()
            command = read_json(self.dir / "config.json", "run")["command"]
            spent = {k: round(v, 1) for k, v in self.seconds.items()}
            row = {**values, "seconds": spent, "peak_mem": self.status["peak_mem"], "command": command}
            write_json(self.dir / "result.json", finite(row))

    # -- checkpoints -------------------------------------------------------------------------------

    def load(self, state: Any) -> None:
        """Restore the state of a resumed run and truncate its files to match; without a checkpoint, begin again.
        UserError: checkpoints that cannot be read, or are not of this run."""
        if not self.resumed:
            return
        saved = self._read_checkpoint(state.state_dict().keys() if state else ())
        if self.main:
            for name, length in saved["files"].items():
                path = self.dir / name
                if (missing := length - size(path)) > 0:
                    self.print(f"WARNING: {path}: {missing} bytes of rows were lost")
                    length = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0  # a last half row is cut
                if size(path) > length:
                    os.truncate(path, length)
                if bad := unreadable_rows(path):
                    self.print(f"WARNING: {path}: {bad} damaged rows")
            for old in (*self.dir.glob("genotypes/*.json"), *self.dir.glob("samples/*.png")):
                if old.stem.isdigit() and int(old.stem) > saved["step"]:
                    old.unlink()
            if (missing := saved.get("genotypes", 0) - len(list(self.dir.glob("genotypes/*.json")))) > 0:
                self.print(f"WARNING: {self.dir / 'genotypes'}: {missing} files were lost")
            for left_over in self.dir.rglob("*.tmp"):  # the heartbeat may be writing one
                left_over.unlink(missing_ok=True)
            where = f"resumed at step {saved['step']:,}" if saved["step"] >= 0 else "no checkpoint yet: starting again"
            self.print(f"{where} · {self.dir}" + (f" · {self.flags_changed}" if self.flags_changed else ""))
            if (asked := sum(n for _, n, _ in self.plan)) < saved["step"]:
                self.print(f"{saved['step']:,} updates are done, more than the {asked:,} requested now")
            if self.changed:
                self.print(f"WARNING: changed since the run began: {self.changed}; results may differ")
        self.seconds, self.to_restore = saved["seconds"], saved["parts"]
        if saved["state"] is not None:  # None: stopped before the first stage
            state.load_state_dict(saved["state"])

    def track(self, state: Any, **parts: Any) -> None:
        """Set what checkpoints contain: objects with a state_dict; parts may also be tensors or dictionaries.
        In a resumed run, the first call restores the parts in place."""
        for name, saved in self.to_restore.items():
            part = parts[name]
            if isinstance(part, torch.Tensor):
                part.copy_(saved)
            elif isinstance(part, dict):
                part.clear()
                part.update(saved)
            else:
                part.load_state_dict(saved)
        self.to_restore = {}
        self.tracked = (state, parts)

    def save(self) -> None:
        """Write checkpoint.pt atomically; keep the previous one as checkpoint.prev.pt."""
        self.saved_at = time.monotonic()
        if not self.main or (self.resumed and self.tracked is None):  # the checkpoint is still valid
            return
        self._account()
        if self.ranks.world == 1:  # several processes would have to ask each other
            self.check_losses()
        state, parts = self.tracked or (None, {})
        files = {f: size(self.dir / f) for f in ROWS}
        parts = {k: v if isinstance(v, torch.Tensor | dict) else v.state_dict() for k, v in parts.items()}
        checkpoint = {"schema": CHECKPOINT, "step": self.status["step"], "files": files, "seconds": self.seconds}
        if not all_finite(parts):  # on this process alone: in a group, no candidate can be left out for it
            kind = DivergedError if self.ranks.world == 1 else UserError
            raise kind(f"checkpoint.pt: a weight is not finite at step {self.status['step']}: {DIVERGED}")
        checkpoint |= {"state": state and state.state_dict(), "parts": parts, "run": self.id, "args": self.fixed}
        checkpoint["genotypes"] = len(list(self.dir.glob("genotypes/*.json")))
        self._torch_save(self.dir / "checkpoint.pt", checkpoint, self.dir / "checkpoint.prev.pt")
        self.status["checkpoints"] += 1
        with suppress(OSError):
            self._write_status()

    def _torch_save(self, path: Path, things: dict, before: Path | None = None) -> None:
        """Replace a file atomically; keep the old one as `before`."""
        try:
            with replacing(path) as tmp:
                torch.save(things, tmp)
                if before and path.exists():
                    with open(tmp, "rb") as f:  # on the disk before the only other copy is given up
                        os.fsync(f.fileno())
                    os.replace(path, before)
        except (OSError, RuntimeError) as e:  # torch reports a full disk as a RuntimeError
            if not self.dir.is_dir():
                raise UserError(
                    f"{self.dir}: the run directory is gone; resume it where it is now, or start a new run"
                ) from None
            left = shutil.disk_usage(self.dir).free / 1e6
            kept = ", the previous file is kept" if path.exists() or (before and before.exists()) else ""
            raise UserError(
                f"{path}: cannot be written ({first_line(e)}; {left:.0f} MB free){kept}; "
                f"free disk space, then run {self.status['resume_command']}"
            ) from None

    def _read_checkpoint(self, fields: Iterable[str]) -> dict:
        """The latest intact checkpoint of this run; fields: of the state. Nothing is changed before it is found;
        then a broken checkpoint.pt is set aside, so that no save replaces the good one with it."""
        paths = [self.dir / name for name in CHECKPOINTS]
        if not any(path.exists() for path in paths) and not self.status["checkpoints"]:
            return {"step": -1, "files": dict.fromkeys(ROWS, 0), "seconds": {}, "parts": {}, "state": None}
        for path in paths:
            try:
                saved = load_tensors(path)
                if not isinstance(saved, dict) or saved.get("schema") != CHECKPOINT:
                    raise ValueError(f"no checkpoint of schema {CHECKPOINT}")
                if saved.get("run") != self.id:
                    raise ValueError("of another run")
                if other := [k for k, v in saved["args"].items() if self.fixed.get(k, v) != v]:
                    raise ValueError(f"its {other[0]} is {saved['args'][other[0]]}, not {self.fixed[other[0]]}")
                if saved["state"] is not None and saved["state"].keys() != set(fields):
                    raise ValueError("of another version of this script")
            except FileNotFoundError:
                continue
            except Exception as e:
                self.print(f"{path}: cannot be used ({first_line(e)})")
                continue
            if self.main and path != paths[0] and paths[0].exists():
                os.replace(paths[0], self.dir / "checkpoint.broken.pt")
            return saved
        raise UserError(f"--resume {self.dir}: no checkpoint can be used; start a new run")


def raised_in(error: BaseException, file: str) -> bool:
    """Whether an error was raised in a file, or in what it called."""
    return any(frame.f_code.co_filename == file for frame, _ in traceback.walk_tb(error.__traceback__))


def imported_from(folder: Path) -> set[Path]:
    """The files of a folder that this process has imported, such as the script that another one extends."""
    names = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    files = {Path(name).absolute() for name in names if name}
    return {file for file in files if file.parent == folder.absolute() and file.is_file()}  # torch.ops has no real one


def all_finite(parts: Any) -> bool:
    """Whether all floating-point tensors in nested dictionaries and lists are finite."""
    values, found = [parts], []
    while values:
        value = values.pop()
        if isinstance(value, dict | list | tuple):
            values.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            found.append(value.isfinite().all())
    return all(bool(x) for x in found)


def made(path: Path) -> bool:
    """Create a directory; False if it already exists, even if another process has just created it."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def unreadable_rows(path: Path) -> int:
    """Lines of a .jsonl that are no JSON; 0 for a file that does not exist."""
    bad = 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            json.loads(line)
        except ValueError:
            bad += 1
    return bad


def command_line(script: Path, args: dict, world: int) -> str:
    """The command with every flag spelled out, so that it survives changed defaults."""
    words = ["python"] if world == 1 else ["torchrun", "--nproc-per-node", str(world)]
    words.append(script.name)
    for name, value in args.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif value is not None and name not in ("resume", "auto_resume", "dry_run"):
            words += [flag, str(value)]
    return shlex.join(words)
