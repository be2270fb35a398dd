"""What one does to a run: stop, pause, resume, kill, trash. Each act returns what to tell the user, or raises
ValueError or OSError with the reason why it cannot be done."""

import signal
import time
from pathlib import Path

from ui import launch
from ui.files import clean, get
from ui.runs import Run, identity
from ui.state import State


def stop(state: State, run: Run) -> str:
    """Ask the run to finish its step, save and exit: by SIGINT, or by a STOP file if it runs on another host."""
    if run.state == "queued":
        launch.send(get(run.record, "keeper") or {}, signal.SIGTERM)
        return f"{run.name}: removed from the queue"
    if identity(run.process):
        launch.send(run.process, signal.SIGINT)
        if run.state == "paused":
            launch.send(run.process, signal.SIGCONT, family=True)
        state.stopping[run.name] = time.monotonic()
        return f"{run.name}: finishing the step, then saving a checkpoint"
    if run.state == "starting" and get(run.record, "child", "pid"):
        launch.send(run.record["child"], signal.SIGINT)
        return f"{run.name}: SIGINT sent"
    if run.live:
        (run.path / "STOP").touch()
        return f"{run.name} runs on {clean(run.process.get('host'), 40) or 'another host'}: wrote a STOP file"
    raise ValueError(f"{run.name} is {run.state}")


def process_of(run: Run) -> dict:
    """The process of a live run on this host. ValueError: there is none."""
    if not run.live:
        raise ValueError(f"{run.name} is {run.state}")
    process = run.process if identity(run.process) else get(run.record, "child") or {}
    if not identity(process):
        raise ValueError(f"{run.name} does not run on this host; press I to stop it through a STOP file")
    return process


def terminate(state: State, run: Run) -> str:
    launch.send(process_of(run), signal.SIGTERM)
    return f"{run.name}: SIGTERM sent"


def kill(state: State, run: Run) -> str:
    launch.send(process_of(run), signal.SIGKILL, family=True)
    return f"{run.name}: SIGKILL sent"


def pause(state: State, run: Run) -> str:
    """Pause, or continue if paused."""
    process = process_of(run)
    if run.state == "paused":
        launch.send(process, signal.SIGCONT, family=True)
        return f"{run.name} continues"
    launch.send(process, signal.SIGSTOP, family=True)
    return f"{run.name} paused; its GPU memory stays allocated"


def resume(state: State, run: Run) -> str:
    """Start a stopped run again from its checkpoint, as it was started: same GPU, variables and torchrun."""
    if run.live or run.state == "queued":
        raise ValueError(f"{run.name} is {run.state}" + ("; press Z to continue it" if run.state == "paused" else ""))
    if not any((run.path / f).exists() for f in ("checkpoint.pt", "checkpoint.prev.pt")):
        raise ValueError(f"{run.name} has no checkpoint; press r to start it again")
    script = state.scripts_dir / Path(run.script).name
    if not script.is_file():
        by_hand = clean(run.status.get("resume_command"), 200)
        raise ValueError(f"{run.script} is not in {state.scripts_dir}; resume it by hand: {by_hand}")
    start, path = launch.Start.of(run.record), run.path.resolve()
    words = start.words([script.name, "--resume", str(path)])
    values = {**run.args, "runs_dir": str(path.parent)}
    launch.launch(launch.Launch(script, words, values, state.store.root, gpu=start.gpu, env=start.env, run=run.name))
    return f"{run.name}: resuming from its checkpoint"


def trash(state: State, run: Run) -> str:
    state.store.trash(run)
    state.overlay.pop(run.name, None)
    return f"{run.name} moved to .trash; press U to restore it"


def undo(state: State, _: Run | None) -> str:
    """Restore the run that was moved to the trash last, by whichever session."""
    if not (trashed := state.store.trashed()):
        raise ValueError("the trash is empty")
    return restore(state, *trashed[0])


def restore(state: State, trashed: Path, original: Path) -> str:
    state.store.restore(trashed, original)
    return f"{original.name} restored"


ACTS = {act.__name__: act for act in (stop, terminate, kill, pause, resume, trash, undo)}
