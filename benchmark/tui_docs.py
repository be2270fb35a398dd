"""Remake what README.md and docs/tui.md show of the terminal UI: the tables of its keys and its pictures.

python -m benchmark.tui_docs    writes both pages and docs/images/tui-*.svg, from made-up runs of all four methods
"""

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.fake_trainer import make_run, me
from tui import Tui
from ui.base import key_groups, key_name
from ui.form import Form
from ui.screens import OneRun, Runs
from ui.several import Compare, Results

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {  # name: (method of the run that is opened, keys)
    "runs": ("", (*["space"] * 5, "up", "up")),
    "population": ("eagan", ("5",)),
    "probabilities": ("adversarialnas", ("5",)),
    "policy": ("autogan", ("5",)),
    "architecture": ("degas", ("4",)),
    "compare": ("", ("down", "down", "space", "space", "c")),
}


def key_table(rows: Iterable[tuple[str, str]]) -> str:
    return "| key | action |\n|---|---|\n" + "".join(f"| `{key}` | {does} |\n" for key, does in rows)


def first_keys() -> str:
    """The key table in README.md: the keys in the footer of the run list."""
    return key_table((key_name(b.key), b.description) for b in Runs.BINDINGS if b.show)


def key_tables() -> str:
    """The key tables in docs/tui.md."""
    parts, common = [], ("move", "everywhere")
    screens = {"Runs": Runs, "One run": OneRun, "Compare": Compare, "Results": Results, "Launch form": Form}
    for title, screen in screens.items():
        rows = [row for name, found in key_groups(screen) if name not in common for row in found]
        parts.append(f"### {title}\n\n{key_table(rows)}")
    groups = dict(key_groups(Runs))
    return "\n".join([*parts, f"### Everywhere\n\n{key_table(groups['move'] + groups['everywhere'])}"])


def make_runs(root: Path) -> None:
    """Runs of all four methods: done, running, failed."""
    for method, quality in {"eagan": 9, "adversarialnas": 11, "autogan": 13, "degas": 16}.items():
        make_run(root, method, rows=400, samples=4, quality=quality)
    running = {"process": me(), "rate": 9.4, "eta_s": 11_000, "total": 4000}
    make_run(root, "eagan", seed=1, rows=150, state="running", samples=2, quality=9, status=running)
    failed = {"error": {"type": "OutOfMemoryError", "message": "CUDA out of memory"}, "total": 4000}
    make_run(root, "autogan", seed=1, rows=40, state="failed", quality=30, status=failed)
    for run in root.iterdir():
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        told = [f"step {r['step']}: D {r['loss/d']:.3f} G {r['loss/g']:.3f}" for r in rows if "loss/d" in r]
        (run / "log.txt").write_text("\n".join(told) + "\n")


async def pictures() -> None:
    """Of runs/ in the current directory."""
    for name, (method, keys) in PICTURES.items():
        Path("runs/.tui.json").unlink(missing_ok=True)  # what the picture before has chosen
        app = Tui(Path("runs"))
        async with app.run_test(size=(120, 36)) as pilot:
            while not (app.state.scanned and all(run.loaded for run in app.state.store.ordered())):
                await pilot.pause(0.1)
            if method:
                run = next(run for run in app.state.store.ordered() if method in run.name)
                app.push_screen(OneRun(app.state, run))
                await pilot.pause(0.3)
            await pilot.press(*keys)
            await pilot.pause(0.3)
            picture = app.export_screenshot(title="python tui.py")
        picture = re.sub(r"terminal-\d+", "terminal", picture)  # a number that differs each time
        (ROOT / "docs" / "images" / f"tui-{name}.svg").write_text(picture)


def main() -> None:
    for page, keys in (("README.md", first_keys()), ("docs/tui.md", key_tables())):
        text = (ROOT / page).read_text()
        before, rest = text.split("<!-- keys -->\n")
        (ROOT / page).write_text(
            f"{before}<!-- keys -->\n{keys}<!-- end of keys -->{rest.split('<!-- end of keys -->')[1]}"
        )
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make_runs(Path("runs"))
        asyncio.run(pictures())


if __name__ == "__main__":
    main()
