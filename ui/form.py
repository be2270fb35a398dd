"""The launch form: start a new run, re-run with changes, or train a genotype from a search."""

import contextlib
import re
import textwrap
from dataclasses import replace
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.timer import Timer

from ui import draw, launch
from ui.base import MOVES, Choose, Page
from ui.draw import Line, duration, fit
from ui.files import clean
from ui.runs import Run
from ui.state import State
from ui.widgets import Doc, Table, safely

START = {  # rows above the script's options: title and help
    "script": ("script", "← → choose a script"),
    "preset": ("preset", "a named set of values"),
    "seeds": ("seeds", "3, 0-4 or 0,2,7: one run per seed"),
    "order": ("seeds run", "in turn: each after the one before has ended"),
    "wait": ("start", "now, on a free GPU, or after a run"),
    "gpu": ("GPU", "CUDA_VISIBLE_DEVICES"),
    "need": ("GiB free", "GPU memory that must be free to start"),
    "after": ("after run", "← → choose a run that has not ended"),
}


class Form(Page):
    """Launch form: the options of a script and its command."""

    BINDINGS: ClassVar = [
        Binding("ctrl+r", "go", "launch"),
        Binding("enter", "edit", "edit"),
        Binding("space,right", "cycle(1)", "next choice"),
        Binding("left", "cycle(-1)", "previous choice", show=False),
        Binding("slash", "find", "find an option"),
        Binding("n", "next", "next match", show=False),
        Binding("u", "undo", "reset: to the preset's or the run's value"),
        Binding("ctrl+y", "copy", "copy the command"),
        Binding("p", "paste", "paste a command"),
        Binding("escape", "back", "back"),
        *MOVES,
    ]
    moved = "#options"

    def __init__(
        self, state: State, script: launch.Script, values: dict[str, Any], start: launch.Start, *,
        about: str = "", again: bool = False
    ) -> None:  # fmt: skip
        """again: the values are those of a run, and what differs from them is marked, not what differs from the preset."""
        super().__init__(state)
        self.script, self.about = script, about
        self.texts = {name: o.write(values.get(name, o.default)) for name, o in script.options.items()}
        self.place()
        self.base = dict(self.texts) if again else None
        self.seeds = self.texts.get("seed", "0")
        self.start, self.wait, self.need, self.after = start, "now", "8", ""
        self.order = "in turn"
        self.cursor, self.found = 0, ""
        self.dry: dict[str, launch.DryRun] = {}  # by command
        self.going = False  # launch as soon as the dry run has ended well
        self.delay: Timer | None = None

    def body(self) -> ComposeResult:
        yield Doc(self.top_line, base="bar", id="top")
        yield Table(id="options")
        yield Doc(id="dry")
        yield Doc(self.foot, id="foot")

    def on_mount(self) -> None:
        super().on_mount()
        self.rehearse_soon()

    def on_unmount(self) -> None:
        for run in self.dry.values():
            run.stop()

    def changed(self, names: set[str]) -> None:
        safely(self, "form", self.fill)
        self.update("top", "foot")
        safely(self, "dry", self.show_dry)

    # -- rows: launch settings first, then the script's options by panel
    def rows(self) -> list[tuple[str, str]]:
        """(key, title) of each row. Keys of script options start with "-"."""
        hidden = {"preset"} - set(self.script.options) | {"need", "after"} - {"need" if self.wait == "gpu" else self.wait}
        hidden |= {"order"} if self.many() < 2 else set()
        first = [(key, title) for key, (title, _) in START.items() if key not in hidden]
        return first + [(f"-{n}", n) for n in self.script.options if n not in ("preset", "seed", "resume", "dry_run")]

    def option(self, key: str) -> launch.Option | None:
        return self.script.options.get(key[1:]) if key.startswith("-") else None

    def many(self) -> int:
        """The number of runs to start, 0 if the seeds cannot be read."""
        try:
            return len(launch.seeds(self.seeds))
        except ValueError:
            return 0

    def value(self, key: str) -> str:
        if key.startswith("-"):
            return self.texts[key[1:]]
        special = {"script": self.script.path.name, "preset": self.texts.get("preset", "")}
        special |= {"gpu": self.start.gpu or "any", "after": self.after or "(choose)"}
        return special[key] if key in special else getattr(self, key)

    def choices(self, key: str) -> list[str]:
        if option := self.option(key):
            return ["false", "true"] if option.kind == "bool" else list(option.choices)
        return {
            "script": lambda: [s.path.name for s in self.state.scripts()[0]],
            "preset": lambda: list(self.script.presets),
            "wait": lambda: ["now", "gpu", "after"],
            "order": lambda: ["in turn", "together"],
            "gpu": lambda: ["any", *(str(g["index"]) for g in self.state.machine.gpus)],
            "after": lambda: [r.name for r in self.state.store.ordered() if r.live or r.state == "queued"],
        }.get(key, list)()

    def problems(self) -> dict[str, str]:
        """Error messages by row key."""
        wrong = {}
        for name, text in self.texts.items():
            try:
                self.script.options[name].read(text)
            except ValueError as e:
                wrong[f"-{name}"] = str(e)
        wrong.pop("-seed", None)
        try:
            for seed in launch.seeds(self.seeds):
                if "seed" in self.script.options:
                    self.script.options["seed"].read(str(seed))
        except ValueError as e:
            wrong["seeds"] = str(e)
        if self.wait == "gpu":
            if not self.state.machine.gpus:
                wrong["wait"] = "no GPU found; use now or after"
            elif self.start.torchrun is not None:
                wrong["wait"] = "waits for one GPU; a torchrun needs its own: use now or after"
            if not re.fullmatch(r"\d{1,4}(\.\d*)?", self.need) or not float(self.need):
                wrong["need"] = "must be a number of GiB"
        if self.wait == "after" and self.after not in self.choices("after"):
            wrong["after"] = "must be a run that has not ended"
        return wrong

    def values(self, seed: int) -> dict[str, Any]:
        made = {name: o.read(self.texts[name]) for name, o in self.script.options.items() if name != "seed"}
        return made | ({"seed": seed} if "seed" in self.script.options else {})

    def command(self, seed: int | None = None) -> str:
        try:
            seed = launch.seeds(self.seeds)[0] if seed is None else seed
            words = launch.command(self.script, self.values(seed))
        except ValueError:
            return ""
        return self.start.line(words)

    def top_line(self, width: int, _: int) -> list[Line]:
        wrong = len(self.problems())
        text = f" New run: {self.script.about}" if not self.about else f" {self.about}"
        right, style = (draw.count(wrong, "problem"), "bad") if wrong else self.readiness()
        return [[(fit(text, width - len(right) - 2) + " ", "bold"), (right + " ", style)]]

    def readiness(self) -> tuple[str, str]:
        run = self.dry.get(self.command())
        if "dry_run" not in self.script.options or (run and run.code == 0):
            return "ready: ctrl+r to launch", "good"
        if run is None:
            return "not checked yet", "dim"
        if run.code is None:
            return ("dry run, then launch…" if self.going else "dry run…"), "info"
        return "the dry run fails", "bad"

    def show_dry(self) -> None:
        """The output of the dry run as it stands; if it failed, its end."""
        doc, run = self.query_one("#dry", Doc), self.dry.get(self.command())
        output = run.output if run and not self.problems() else ""
        lines: list[Line] = []
        for text in output.split("\n") if output else []:
            parts = textwrap.wrap(clean(text, 2000), self.size.width - 2, drop_whitespace=False) or [""]
            lines += [[(" " + part, "bad" if run and run.code else "")] for part in parts]
        doc.display, new = bool(lines), lines != doc.lines
        doc.styles.height = min(len(lines), 10 if self.has_class("-tall") else 4)
        doc.show(lines)
        if new and run and run.code:
            doc.move("end")

    def fill(self) -> None:
        table = self.query_one(Table)
        width, wrong, usual, panel = table.size.width, self.problems(), self.usual(), ""
        value_width = max(14, min(30, width // 4))
        rows: list[tuple[str, Line]] = []
        for key, title in self.rows():
            option = self.option(key)
            changed = option and usual[option.name] != self.texts[option.name]
            about = wrong.get(key) or (option.describe() if option else START[key][1])
            here = option.panel if option else "Start"
            tag, panel = here if here != panel else "", here
            value = fit(self.value(key) or "—", value_width - 2) + (" * " if changed else "   ")
            line: Line = [(f" {fit(tag, 7)}", "dim"), (fit(title, 17) + " ", "")]
            line.append((value, "bad" if key in wrong else "warn bold" if changed else "key"))
            about = fit(f"✗ {about}" if key in wrong else about, width - draw.width_of(line))
            line.append((about, "bad" if key in wrong else "dim"))
            rows.append((key, line))
        about = "range" if width < 90 else f"type and range; * = differs from the {'run' if self.base else 'preset'}"
        table.show([(f" {'':7}{fit('option', 18)}{fit('value', value_width + 1)}{about}", "bold")], rows)

    def usual(self) -> dict[str, str]:
        """The texts that are not marked: those of the run that is run again, or of the preset."""
        if self.base is not None:
            return self.base
        defaults = self.script.defaults(self.texts.get("preset", ""))
        return {name: o.write(defaults.get(name)) for name, o in self.script.options.items()}

    def place(self) -> None:
        """Set --runs-dir if the script's default would put the run in another folder than the one shown."""
        root, texts = self.state.store.root.resolve(), self.texts
        if "runs_dir" in texts and (self.script.path.parent / texts["runs_dir"]).resolve() != root:
            texts["runs_dir"] = str(root)

    def foot(self, width: int, height: int) -> list[Line]:
        key = self.query_one(Table).key or "script"
        option = self.option(key)
        lines: list[Line] = [[("─" * width, "faint")]]
        text = f"{option.flag}, {option.describe()}: {option.help}" if option else START[key][1]
        lines += draw.hanging(" ", text.split(" "), width)[:3]
        peak, seconds, n = launch.similar(self.state.store.ordered(), self.script.path.name, self.texts.get("preset", ""))
        fact = f" · {draw.count(n, 'similar run')}: median time {duration(seconds)}, peak memory {draw.size(peak)}" if n else ""
        lines.append([(f" {draw.count(self.many(), 'run')}{fact}", "dim")])
        command = self.command() or "(fix the errors above to see the command)"
        parts = draw.wrapped(command.split(" "), width - 5, " ")
        room = max(1, height - len(lines))
        if len(parts) > room:
            parts = [*parts[: room - 1], "…" + parts[-1][: width - 6]]
        for i, part in enumerate(parts):
            lines.append([(" $ " if i == 0 else "   ", "dim"), (part + " \\" * (i < len(parts) - 1), "key")])
        return lines

    def set(self, key: str, text: str) -> None:
        if key == "script":
            script = next(s for s in self.state.scripts()[0] if s.path.name == text)
            kept = {n: t for n, t in self.texts.items() if n in script.options and n in ("dataset", "data_dir", "device")}
            self.script, self.about, self.base = script, "", None
            self.texts = {name: o.write(o.default) for name, o in script.options.items()} | kept
            self.place()
        elif key == "preset":
            before = self.script.defaults(self.texts["preset"])
            changed = {n for n, o in self.script.options.items() if o.write(before.get(n)) != self.texts[n]}
            for name, value in self.script.defaults(text).items():
                if name not in changed:
                    self.texts[name] = self.script.options[name].write(value)
            self.texts["preset"] = text
        elif key == "gpu":
            self.start = replace(self.start, gpu="" if text == "any" else text)
        elif key.startswith("-"):
            self.texts[key[1:]] = text
        else:
            setattr(self, key, text)
        self.edited()

    def edited(self) -> None:
        self.going = False
        self.update_all()
        self.rehearse_soon()

    def on_table_picked(self, event: Table.Picked) -> None:
        if event.entered:
            self.action_edit()
        self.update("foot")

    def action_cycle(self, by: int) -> None:
        key = self.query_one(Table).key
        choices = self.choices(key) if key else []
        if choices:
            now = self.value(key)
            self.set(key, choices[(choices.index(now) + by) % len(choices)] if now in choices else choices[0])

    def action_edit(self) -> None:
        key = self.query_one(Table).key
        if key is None:
            return
        if self.choices(key):
            self.action_cycle(1)
            return
        option = self.option(key)

        def done(text: str) -> None:
            self.set(key, text)
            if wrong := self.problems().get(key):
                raise ValueError(wrong)

        self.ask(key.removeprefix("-"), self.value(key), done, hint=option.describe() if option else START[key][1])

    def action_undo(self) -> None:
        key = self.query_one(Table).key or ""
        if key.startswith("-"):
            self.set(key, self.usual()[key[1:]])

    def action_find(self) -> None:
        def done(text: str) -> None:
            self.found = text.lower()
            if text and not self.action_next():
                raise ValueError(f"no option name or help text contains {text}")

        self.ask("find an option", "", done, hint="part of its name or help text; n for the next match")

    def action_next(self) -> bool:
        table, rows = self.query_one(Table), self.rows()
        texts = [f"{title} {self.script.options[k[1:]].help if k.startswith('-') else ''}".lower() for k, title in rows]
        order = [*range(table.cursor + 1, len(rows)), *range(table.cursor + 1)]
        hits = sorted((i for i in order if self.found in texts[i]), key=lambda i: self.found not in rows[i][1])
        if hits and self.found:
            table.go(hits[0])
        return bool(hits)

    def action_copy(self) -> None:
        self.copy(self.command())

    def action_paste(self) -> None:
        def done(text: str) -> None:
            script, values, self.start = launch.parse_command(text, self.state.scripts()[0])
            self.script, self.about, self.base = script, "", None
            self.texts = {name: o.write(values[name]) for name, o in script.options.items()}
            self.seeds = self.texts.get("seed", "0")
            self.edited()

        self.ask("command line", "", done, hint="paste a command such as python eagan.py --preset smoke")

    def action_go(self) -> None:
        wrong = self.problems()
        if wrong:
            row, key = next(((i, k) for i, (k, _) in enumerate(self.rows()) if k in wrong), (0, next(iter(wrong))))
            self.notify(f"{key.removeprefix('-')}: {wrong[key]}", severity="error", markup=False)
            self.query_one(Table).go(row)
            return
        self.going = True
        self.rehearse(again=True)
        self.go_on()

    # -- the dry run: a second after the last key, and before a launch
    def rehearse_soon(self) -> None:
        if self.delay:
            self.delay.stop()
        self.delay = self.set_timer(1.0, self.rehearse)

    def rehearse(self, again: bool = False) -> None:
        """Start the dry run of this command unless it has run. again: also if it has failed."""
        if "dry_run" not in self.script.options or self.problems():
            return
        command = self.command()
        known = self.dry.get(command)
        if known and not (again and known.code):
            return
        for other in [c for c, run in self.dry.items() if run.code is None]:
            self.dry.pop(other).stop()
        try:
            self.dry[command] = launch.DryRun(self.launch_of(launch.seeds(self.seeds)[0]), self.rehearsed)
        except OSError as e:
            self.going = False
            self.notify(f"no dry run: {e}", severity="error", markup=False)
        self.update_all()

    def rehearsed(self) -> None:
        """Called in the thread of a dry run that has ended."""
        with contextlib.suppress(RuntimeError):  # the app has exited
            self.app.call_from_thread(self.go_on)

    def go_on(self) -> None:
        """Launch, if that was asked for and the dry run has ended well."""
        if not self.is_attached:
            return
        self.update_all()
        run = self.dry.get(self.command())
        if not self.going or (run and run.code is None):
            return
        self.going = False
        if run and run.code and self.wait != "now":  # what it misses may be there by then
            self.app.push_screen(Choose("The dry run fails now. Queue the run?", [("y", "yes, queue it", self.confirm)]))
        elif run and run.code:
            last = clean(run.output.rpartition("\n")[2], 200)
            self.notify(f"not started: the dry run fails: {last}", severity="error", markup=False)
        else:
            self.confirm()

    def on_cpu(self) -> bool:
        device = self.texts.get("device", "")
        hidden = self.start.env.get("CUDA_VISIBLE_DEVICES", self.start.gpu or "any") in ("", "-1")
        return device.startswith("cpu") or (device == "auto" and (hidden or not self.state.machine.gpus))

    def confirm(self) -> None:
        if self.texts.get("preset") == "paper" and self.on_cpu():
            question = "A paper-scale run takes weeks on a CPU. Start it?"
            self.app.push_screen(Choose(question, [("y", "yes, start it", self.begin)]))
        else:
            self.begin()

    def begin(self) -> None:
        try:
            launch.launch_all([self.launch_of(seed) for seed in launch.seeds(self.seeds)], self.order == "together")
        except OSError as e:
            self.notify(f"not all started: {e}", severity="error", markup=False)
        else:
            word = "started" if self.wait == "now" and (self.many() == 1 or self.order == "together") else "queued"
            self.notify(f"{draw.count(self.many(), 'run')} {word}; quitting the UI does not stop them", markup=False)
            self.app.pop_screen()
        self.state.wake.set()

    def launch_of(self, seed: int) -> launch.Launch:
        values = self.values(seed)
        return launch.Launch(
            self.script.path, self.start.words(launch.command(self.script, values)), values, self.state.store.root,
            self.wait, float(self.need) if self.wait == "gpu" else 0.0, self.after if self.wait == "after" else "",
            self.start.gpu, self.start.env,
        )  # fmt: skip

    def copied(self) -> str:
        return self.command()


class Launching(Page):
    """Base of the screens that list or show runs: start a new one, the same again, or train a genotype that was found."""

    def action_new(self) -> None:
        self.open_form(None)

    def action_rerun(self) -> None:
        if run := self.run_now():
            self.open_form(run, about=f"Re-run {run.name}")

    def action_derive(self) -> None:
        run = self.run_now()
        if run and not (run.path / "genotype.json").exists():
            self.notify("this run has no genotype.json yet", severity="warning")
        elif run:
            found = str((run.path / "genotype.json").resolve())
            self.open_form(run, about=f"Train the genotype of {run.name}", genotype=found, phase="train")

    def open_form(self, run: Run | None, about: str = "", **changes: str) -> None:
        """Open the launch form with default values, or with the options of a run and some changes to them."""
        if self.refuse():
            return
        found, broken = self.state.scripts()
        for name, why in broken.items():
            self.notify(f"{name} cannot be launched: {why}", severity="warning", markup=False)
        script = next((s for s in found if run is None or s.path.name == run.script), None)
        if script is None:
            missing = f"{run.script or run.name}: no such script" if run else "no scripts"
            self.notify(f"{missing} in {self.state.scripts_dir}", severity="error", markup=False)
            return
        values = launch.values_of(script, run) if run else script.defaults("")
        values |= {k: v for k, v in changes.items() if k in script.options}
        start = launch.Start.of(run.record if run else None)
        self.app.push_screen(Form(self.state, script, values, start, about=about, again=run is not None and not changes))
