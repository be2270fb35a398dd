"""What the user has chosen: selection, filter, sort order, overlay, chart settings; and the runs and the host they are from."""

import contextlib
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from ui import launch
from ui.columns import cell, ordered, query
from ui.curves import LETTERS, Curves
from ui.files import clean, parse, read_bytes, write_json
from ui.runs import LIVE, STATES, Run, Store, color_index, fid_label


class State:
    """Shared by all screens. Nothing here draws, and no screen keeps a copy."""

    def __init__(self, store: Store, machine: launch.Machine, scripts_dir: Path, readonly: bool = False) -> None:
        self.store, self.machine, self.scripts_dir, self.readonly = store, machine, scripts_dir, readonly
        self.curves = Curves()
        self.images = "NO_COLOR" not in os.environ
        self.pixels: Any = None  # widget that shows images in full resolution; None: half blocks
        self.metric = "FID"
        self.overlay: dict[str, tuple[str, int]] = {}  # run name -> (letter, colour)
        self.hidden: set[str] = set()
        self.show_hidden = self.group = self.reverse = self.scanned = False
        self.filter_text, self.filter = "", query("")
        self.sort = "state"
        self.columns: list[str] = []  # of the list, as the user wants them; []: what fits
        self.widths: dict[str, int] = {}  # of columns: they widen and never shrink, so that nothing moves while one watches
        self.since: dict[str, int] = {}
        self.before: dict[str, str] = {}  # states when the UI was last closed
        self.wanted: dict[str, None] = {}  # runs to read first
        self.wake = threading.Event()  # set: look at the runs now
        self.stopping: dict[str, float] = {}  # runs asked to stop, and when, by time.monotonic
        self.poll_seconds = 0.0
        self.shorts: dict[str, str] = {}
        self._scripts: tuple[float, tuple] = (0.0, ([], {}))

    def scripts(self) -> tuple[list[launch.Script], dict[str, str]]:
        """Launchable scripts and, by name, errors in the others. Reread when a file changes."""
        newest = max((p.stat().st_mtime for p in self.scripts_dir.glob("*.py")), default=0.0)
        if newest != self._scripts[0]:
            self._scripts = (newest, launch.scripts(self.scripts_dir))
        return self._scripts[1]

    def want(self, run: Run) -> None:
        """Give this run priority when reading."""
        if run.name not in self.wanted:
            self.wanted[run.name] = None
            self.wake.set()

    def listed(self) -> list[Run]:
        """The runs in the list, filtered and sorted."""
        known = self.store.ordered() if self.scanned else []  # after a partial scan the cursor would land on the wrong run
        runs = [r for r in known if self.filter(r) and (self.show_hidden or r.name not in self.hidden)]
        if self.sort == "state":
            newest = sorted(runs, key=lambda r: (r.name[len(_stem(r.name)) :], r.name), reverse=not self.reverse)
            newest.sort(key=lambda r: STATES.index(r.state) if r.state in ("queued", *LIVE) else len(STATES))
            return sorted(newest, key=lambda r: not r.pinned)
        return ordered(runs, lambda r: r.name if self.sort == "name" else cell(self.sort, r)[1], self.falling)

    @property
    def falling(self) -> bool:
        """Whether the largest comes first: of IS, unless reversed."""
        return self.reverse != self.sort.startswith("IS")

    def labels(self) -> list[str]:
        """Names of all scores of all runs: FID before IS, those of the Inception network first."""
        lasts = [r.last for r in self.store.ordered()]
        found = [{fid_label(x["net"], k.upper()) for x in lasts if x.get(k) is not None} for k in ("fid", "is")]
        return [label for labels in found for label in sorted(labels, key=lambda x: (x not in ("FID", "IS"), x))]

    def short(self, run: Run) -> str:
        """The run name without its date if that is unambiguous."""
        if not self.shorts:
            stems = Counter(_stem(r.name) for r in self.store.ordered())
            for name in [r.name for r in self.store.ordered()]:
                same = stems[stem := _stem(name)] > 1 and stem != name
                self.shorts[name] = clean(f"{stem}-{name[-6:]}" if same else stem, 200)
        return self.shorts.get(run.name) or clean(run.name, 200)

    def lay_over(self, run: Run) -> None:
        taken = {letter for letter, _ in self.overlay.values()}
        letter = next((x for x in LETTERS if x not in taken), "+")
        self.overlay[run.name] = (letter, color_index(run.name, [c for _, c in self.overlay.values()]))
        self.want(run)

    def overlay_mark(self, run: Run) -> tuple[str, str]:
        """(letter, style) of an overlaid run, else ("", "")."""
        letter, color = self.overlay.get(run.name, ("", 0))
        return (letter, f"s{color}") if letter else ("", "")

    def set_filter(self, text: str) -> None:
        """Keep the runs that match. ValueError: no valid query."""
        self.filter, self.filter_text = query(text), text.strip()

    # -- settings kept between sessions: runs/.tui.json
    def recall(self) -> None:
        try:
            saved = parse(read_bytes(self.store.root / ".tui.json"))
        except (OSError, ValueError):
            return
        lists = {k: [x for x in v if isinstance(x, str)] for k, v in saved.items() if isinstance(v, list)}
        self.hidden, self.columns = set(lists.get("hidden", ())), lists.get("columns", [])
        for name in lists.get("overlay", [])[:26]:
            self.lay_over(Run(self.store.root / name)) if Path(name).name == name else None
        if isinstance(saved.get("sort"), str):
            self.sort = saved["sort"]
        self.reverse = saved.get("reverse") is True
        states = saved.get("states")
        self.before = {k: v for k, v in states.items() if isinstance(v, str)} if isinstance(states, dict) else {}
        if isinstance(saved.get("filter"), str) and not self.filter_text:  # --filter takes precedence
            with contextlib.suppress(ValueError):
                self.set_filter(saved["filter"])

    def remember(self) -> None:
        if self.readonly or not self.scanned or not self.store.root.is_dir():
            return
        saved = {"hidden": sorted(self.hidden), "overlay": list(self.overlay), "sort": self.sort, "reverse": self.reverse}
        saved |= {"columns": self.columns, "filter": self.filter_text}
        saved |= {"states": {r.name: r.state for r in self.store.ordered()}}
        with contextlib.suppress(OSError):
            write_json(self.store.root / ".tui.json", saved)


def _stem(name: str) -> str:
    """A run's name without -YYYYmmdd-HHMMSS."""
    head, tail = name[:-16], name[-16:]
    return head if head and tail[0] == tail[9] == "-" and (tail[1:9] + tail[10:]).isdecimal() else name
