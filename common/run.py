"""The run directory: status, progress, logs, checkpoints, signals."""

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
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from common.files import UserError, finite, first_line, read_json, replacing, write_json
from common.metrics import fid_label
from common.ranks import Ranks, device_name

SCHEMA = 1  # of config.json
CHECKPOINT = 2  # of checkpoint.pt


class Stopped(BaseException):
    """Raised at a safe point after SIGINT, SIGTERM or a STOP file: save, then exit with 130."""


def jsonable(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def duration(seconds: float) -> str:
    """Seconds for people: 45s, 12m, 3h05, 2d04h."""
    if not math.isfinite(seconds):
        return "?"
    m = int(seconds) // 60
    if seconds < 90:
        return f"{seconds:.0f}s"
    if m < 90:
        return f"{m}m"
    return f"{m // 60}h{m % 60:02d}" if m < 48 * 60 else f"{m // 1440}d{m // 60 % 24:02d}h"


def process_identity() -> dict:
    """What tells this process from any other, on any host, at any time."""
    pid, boot_id = os.getpid(), read_text("/proc/sys/kernel/random/boot_id")
    return {"pid": pid, "start_time": kernel_start_time(pid), "host": socket.gethostname(), "boot_id": boot_id}


def kernel_start_time(pid: int) -> int | None:
    fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else None


def read_text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state(folder: Path) -> dict:
    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.TimeoutExpired):
            return ""

    dirty = bool(git("status", "--porcelain", "-uno").strip())
    return {"sha": git("rev-parse", "HEAD").strip() or None, "dirty": dirty}


class Run:
    """The run directory: made here, or taken up again by `resume`; written by rank 0 alone.

    Leaving `with Run(...) as run` writes the last state (done, stopped, failed) into status.json.
    args: plain values of every flag. plan: (stage, generator updates, MACs of one update) in order.
    facts: further keys of config.json. disk: bytes that the files will take. UserError: the directory
    cannot be made, has no room, is in use by a live process, or was begun with other images.
    """

    def __init__(
        self, script: str, method: str, args: dict, ranks: Ranks, *,
        dataset: str, digest: str, plan: list[tuple[str, int, float]], facts: dict, disk: float = 0
    ) -> None:  # fmt: skip
        self.args: dict[str, Any] = {k: jsonable(v) for k, v in args.items()}
        self.ranks, self.plan, self.main = ranks, plan, ranks.rank == 0
        self.console = Console(highlight=False, soft_wrap=True)
        self.stopping, self.lock = False, threading.Lock()
        self.tracked: tuple[Any, dict[str, Any]] | None = None  # what a checkpoint holds: see track()
        self.to_restore: dict[str, Any] = {}  # what load() read and the first track() puts in place
        self.seconds: dict[str, float] = {}  # per stage, over all processes that worked on this run
        self.clock = self.saved_at = self.shown_at = time.monotonic()
        self.ticks = 0
        self.resumed = args["resume"] is not None
        folder = Path(args["resume" if self.resumed else "runs_dir"])
        root = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(root).free
        if self.main and free < disk:
            raise UserError(
                f"--runs-dir {root}: no space left, {free / 1e9:.2f} GB free of {disk / 1e9:.2f}; use another disk"
            )
        name = f"{Path(script).stem}-{dataset}-s{args['seed']}-{datetime.now():%Y%m%d-%H%M%S}"
        self.dir = folder if self.resumed else self._claim(folder, name)
        launcher = ["python"] if ranks.world == 1 else ["torchrun", "--nproc-per-node", str(ranks.world)]
        self.status: dict[str, Any] = {
            "state": "starting", "phase": "search", "stage": "", "step": 0, "total": sum(n for _, n, _ in plan),
            "rate": None, "eta_s": None, "next": "", "last": {"fid": None, "is": None, "net": None},
            "process": process_identity(), "started": now(), "updated": now(), "gpu_mem": None, "peak_mem": None,
            "resume_command": shlex.join([*launcher, Path(script).name, "--resume", str(self.dir)]), "error": None,
        }  # fmt: skip
        if self.main:
            versions = {"python": platform.python_version(), "torch": torch.__version__}
            config = {
                "schema": SCHEMA, "script": Path(script).name, "method": method, "preset": args["preset"],
                "dataset": dataset, "data_digest": digest, "seed": args["seed"], "args": self.args, "argv": sys.argv,
                "command": command_line(script, self.args, ranks.world), "git": git_state(Path(script).parent),
                "device": device_name(ranks.device), "world_size": ranks.world, "versions": versions, **facts,
                "created": now(),
            }  # fmt: skip
            try:
                if self.resumed:
                    self._check_resumable(digest)
                else:
                    source = self.dir / "source" / "common"
                    source.mkdir(parents=True)
                    shutil.copy(script, source.parent)
                    for file in Path(__file__).parent.glob("*.py"):
                        shutil.copy(file, source)
                    write_json(self.dir / "config.json", config)
                (self.dir / "STOP").unlink(missing_ok=True)
                self._write_status()
            except OSError as e:
                if not self.resumed:
                    shutil.rmtree(self.dir, ignore_errors=True)  # which this process has made
                raise UserError(
                    f"--runs-dir {self.dir}: cannot be written ({e.strerror}); name another folder"
                ) from None

    def _claim(self, runs: Path, name: str) -> Path:
        """Make a directory of this run's own: the first free one of name, name-2, name-3, ..."""
        path = runs / name
        if self.main:
            try:
                runs.mkdir(parents=True, exist_ok=True)
                taken = 1
                while not made(path):
                    taken += 1
                    path = runs / f"{name}-{taken}"
            except OSError as e:
                raise UserError(f"--runs-dir {runs}: cannot be written ({e.strerror}); name another folder") from None
        return self.ranks.gather(path)[0]

    def _check_resumable(self, digest: str) -> None:
        config = read_json(self.dir / "config.json", "--resume")
        if config.get("schema") != SCHEMA:
            raise UserError(f"--resume {self.dir}: has schema {config.get('schema')}, this code reads {SCHEMA}")
        if config.get("data_digest") != digest:
            raise UserError(
                f"--resume {self.dir}: the images of {self.args['dataset']} are not those that it began with"
            )
        try:
            status = json.loads((self.dir / "status.json").read_text())
            self.status["last"] = {k: status["last"][k] for k in ("fid", "is", "net")}
            old, new = status["process"], self.status["process"]
            here = (old["host"], old["boot_id"]) == (new["host"], new["boot_id"]) and old["pid"] != new["pid"]
            running = here and old["start_time"] and kernel_start_time(old["pid"]) == old["start_time"]
        except (OSError, ValueError, TypeError, KeyError):
            running = False  # no status, or a broken one: the checkpoint decides
        if running:
            raise UserError(f"--resume {self.dir}: still running as pid {old['pid']}; stop it first")

    def __enter__(self) -> "Run":
        text = TextColumn("{task.description}", table_column=Column(overflow="fold"))  # whole on 80 columns
        self.bar = Progress(BarColumn(10), text, console=self.console, transient=True)
        self.task = self.bar.add_task("", total=max(self.status["total"], 1))
        if self.main and self.console.is_terminal:
            self.bar.start()
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGINT, signal.SIGTERM):  # a parent's "ignore" would be inherited
                self.handlers[s] = signal.signal(s, self._on_signal)
        self.left = threading.Event()
        self.heart = threading.Thread(target=self._heartbeat, daemon=True)
        self.heart.start()
        self.status["state"] = "running"
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Stopped):  # all `with` blocks of the script are left: state is whole
            try:
                self.save()
            except UserError as e:
                error, kind = e, UserError
        self.left.set()
        self.heart.join()
        self.bar.stop()
        self._account()
        if isinstance(error, OSError) and self.main:  # a dead or full disk, wherever it struck
            error = UserError(f"{self.dir}: {error}; mend that, then: {self.status['resume_command']}")
        self.status["state"] = "done" if error is None else "stopped" if isinstance(error, Stopped) else "failed"
        if self.status["state"] == "failed":
            self.status["error"] = {"type": kind and kind.__name__, "message": str(error)}
        else:
            self.print(f"{self.status['state']} · {self.dir}")
        if isinstance(error, Stopped):
            self.print(f"resume with: {self.status['resume_command']}")
        if self.main:
            with suppress(OSError):  # a disk that ended the run; the reader judges by the last `updated`
                self._write_status()
        for s, handler in self.handlers.items():  # only now: torchrun's second signal must not disturb saving
            signal.signal(s, handler)
        if isinstance(error, UserError):
            raise error from None

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self.stopping and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun sends a second one
            os._exit(130)
        self.stopping = True
        self.status["state"] = "stopping"

    def _heartbeat(self) -> None:
        while not self.left.wait(1.0):
            if (self.dir / "STOP").exists():
                self.stopping = True
            if self.main:
                with suppress(OSError):  # a full disk is reported where something is lost: save(), log()
                    self._write_status()

    def _write_status(self) -> None:
        s = self.status
        s["updated"] = now()
        s["peak_mem"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.ranks.device.type == "cuda":
            s["gpu_mem"] = torch.cuda.memory_allocated(self.ranks.device)
            s["peak_mem"] = torch.cuda.max_memory_allocated(self.ranks.device)
        with self.lock:  # replacing() without the fsync: this is written every second
            tmp = self.dir / "status.json.tmp"
            tmp.write_text(json.dumps(finite(s), indent=1) + "\n")
            os.replace(tmp, self.dir / "status.json")

    # -- progress ----------------------------------------------------------------------------------

    def begin(self, phase: str, stage: str, step: int, upcoming: str = "", images_per_step: int = 0) -> None:
        """A stage begins (or is taken up) at generator update `step`; upcoming: what comes next."""
        self._account()
        self.mark = (time.monotonic(), step, images_per_step)
        self.status.update(phase=phase, stage=stage, step=step, rate=None, eta_s=None, next=upcoming)

    def tick(self, step: int, upcoming: str = "") -> None:
        """A safe point, once a step: shows progress, saves when due, raises Stopped if asked."""
        t0, step0, _ = self.mark
        elapsed = time.monotonic() - t0
        self.status["step"], self.status["next"] = step, upcoming
        if step > step0:
            self.status["rate"] = (step - step0) / elapsed
            self.status["eta_s"] = self._eta(step, elapsed / (step - step0))
        self.check()
        self.ticks += 1
        if self.ranks.world > 1 and self.ticks % 10 == 0 and self.ranks.any(self.stopping):
            raise Stopped  # all processes leave at the same step
        if time.monotonic() - self.saved_at > 60 * self.args["save_minutes"]:
            self.save()

    def check(self) -> None:
        """In a long evaluation: shows progress; raises Stopped if asked, with one process (else tick does)."""
        if self.stopping and self.ranks.world == 1:
            raise Stopped
        self._show()

    def replan(self, plan: list[tuple[str, int, float]]) -> None:
        """The plan has changed: a stage takes another number of steps than was thought."""
        self.plan = plan
        self.status["total"] = sum(n for _, n, _ in plan)
        self.bar.update(self.task, total=max(self.status["total"], 1))

    def _eta(self, step: int, seconds_per_step: float) -> float:
        """Seconds to the end of the plan, if a MAC takes as long in later stages as in this."""
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

    def _account(self) -> None:
        t = time.monotonic()
        stage = self.status["stage"] or "start"
        self.seconds[stage] = self.seconds.get(stage, 0.0) + t - self.clock
        self.clock = t

    def print(self, text: str) -> None:
        """To the terminal and to log.txt."""
        if self.main:
            self.console.print(text, markup=False)
            with open(self.dir / "log.txt", "a") as f:
                f.write(text + "\n")

    # -- what a run leaves -------------------------------------------------------------------------

    def log(self, step: int, **metrics: Any) -> None:
        """Append to metrics.jsonl; values may be tensors of one element. UserError: a loss is not finite."""
        self._account()
        row = {"step": step, "phase": self.status["phase"], "stage": self.status["stage"]}
        row |= {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in metrics.items()}
        row["t"] = round(sum(self.seconds.values()), 2)
        if self.status["rate"] and self.mark[2]:
            row["perf/img_s"] = round(self.status["rate"] * self.mark[2], 1)
        self._append("metrics.jsonl", row)
        for k, v in row.items():
            if k.startswith("loss/") and not math.isfinite(v):
                raise UserError(
                    f"{k} is {v} at step {step}: training diverged; lower the learning rates and start again"
                )

    def evaluated(self, step: int, score_row: dict, **more: Any) -> None:
        """Log the row of an evaluation; it becomes the last score that progress and status show."""
        self.log(step, **score_row, **more)
        self.status["last"] = {k: score_row[f"eval/{k}"] for k in ("fid", "is", "net")}

    def search_row(self, row: dict) -> None:
        """Append to search.jsonl what only this method has; one row a round."""
        self._append("search.jsonl", row)

    def _append(self, name: str, row: dict) -> None:
        if self.main:
            with open(self.dir / name, "a") as f:
                f.write(json.dumps(finite(row)) + "\n")

    def genotype(self, step: int, genotype: dict) -> None:
        """The best so far: genotype.json, and its copy in genotypes/."""
        if self.main:
            (self.dir / "genotypes").mkdir(exist_ok=True)
            for path in (self.dir / "genotypes" / f"{step:06d}.json", self.dir / "genotype.json"):
                write_json(path, finite(genotype))

    def samples(self, step: int, images: torch.Tensor) -> None:
        """samples/<step>.png: a grid of 8 a row. images: (64, 3, H, W) in [-1, 1]."""
        if self.main:
            from torchvision.utils import save_image

            (self.dir / "samples").mkdir(exist_ok=True)
            with replacing(self.dir / "samples" / f"{step:06d}.png") as tmp:
                save_image(images.float().cpu(), tmp, format="png", nrow=8, normalize=True, value_range=(-1, 1))

    def weights(self, name: str, things: dict) -> None:
        """weights.pt or weights.best.pt: enough to sample from."""
        if self.main:
            self._torch_save(self.dir / name, things)

    def result(self, **values: Any) -> None:
        """result.json: final numbers, seconds per stage, peak memory, command to reproduce."""
        if self.main:
            self._account()
            self._write_status()
            command = read_json(self.dir / "config.json", "run")["command"]
            spent = {k: round(v, 1) for k, v in self.seconds.items()}
            row = {**values, "seconds": spent, "peak_mem": self.status["peak_mem"], "command": command}
            write_json(self.dir / "result.json", finite(row))

    # -- checkpoints -------------------------------------------------------------------------------

    def load(self, state: Any) -> None:
        """Restore a resumed run's state, and cut its files back to it. UserError: no checkpoint."""
        if not self.resumed:
            return
        saved = self._read_checkpoint()
        if self.main:
            for name, length in saved["files"].items():
                if size(self.dir / name) > length:
                    os.truncate(self.dir / name, length)
            for old in (*self.dir.glob("genotypes/*.json"), *self.dir.glob("samples/*.png")):
                if old.stem.isdigit() and int(old.stem) > saved["step"]:
                    old.unlink()
            for left_over in self.dir.glob("*.tmp"):  # the heartbeat may be writing one
                left_over.unlink(missing_ok=True)
            self.print(f"resumed at step {saved['step']:,} · {self.dir}")
        self.seconds, self.to_restore = saved["seconds"], saved["parts"]
        if saved["state"] is not None:  # None: stopped before the first stage
            state.load_state_dict(saved["state"])

    def track(self, state: Any, **parts: Any) -> None:
        """Save these from now on: what has a state_dict; as parts also tensors and dictionaries. In a resumed
        run the first call, in the checkpoint's stage, restores the parts in place."""
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
        """Write checkpoint.pt, whole or not at all; the one before stays as checkpoint.prev.pt."""
        self.saved_at = time.monotonic()
        if not self.main or (self.resumed and self.tracked is None):  # what it was resumed from still holds
            return
        self._account()
        state, parts = self.tracked or (None, {})
        files = {f: size(self.dir / f) for f in ("metrics.jsonl", "search.jsonl")}
        parts = {k: v if isinstance(v, torch.Tensor | dict) else v.state_dict() for k, v in parts.items()}
        checkpoint = {"schema": CHECKPOINT, "step": self.status["step"], "files": files, "seconds": self.seconds}
        checkpoint |= {"state": state and state.state_dict(), "parts": parts}
        self._torch_save(self.dir / "checkpoint.pt", checkpoint, self.dir / "checkpoint.prev.pt")

    def _torch_save(self, path: Path, things: dict, before: Path | None = None) -> None:
        """Replace a file whole or not at all; the one that it replaces stays as `before`."""
        try:
            with replacing(path) as tmp:
                torch.save(things, tmp)
                if before and path.exists():
                    os.replace(path, before)
        except (OSError, RuntimeError) as e:  # torch reports a full disk as a RuntimeError
            left = shutil.disk_usage(self.dir).free / 1e6
            raise UserError(
                f"{path}: not written ({first_line(e)}; {left:.0f} MB free on the disk); what was written before is "
                f"kept: make room, then {self.status['resume_command']}"
            ) from None

    def _read_checkpoint(self) -> dict:
        for name in ("checkpoint.pt", "checkpoint.prev.pt"):
            path = self.dir / name
            if path.exists():
                try:
                    saved = torch.load(path, map_location="cpu", weights_only=True)
                    if not isinstance(saved, dict) or saved.get("schema") != CHECKPOINT:
                        raise ValueError(f"no checkpoint of schema {CHECKPOINT}")
                    return saved
                except Exception as e:
                    self.print(f"{path}: cannot be read ({first_line(e)}); trying the one before it")
        raise UserError(f"--resume {self.dir}: no checkpoint that can be read; start the run again: it left none")


def made(path: Path) -> bool:
    """Make a directory; False where it already exists, also if another process has just made it."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def command_line(script: str, args: dict, world: int) -> str:
    """Every flag spelled out, so that it stays true when a default changes."""
    words = ["python"] if world == 1 else ["torchrun", "--nproc-per-node", str(world)]
    words.append(Path(script).name)
    for name, value in args.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif value is not None and name not in ("resume", "dry_run"):
            words += [flag, str(value)]
    return shlex.join(words)
