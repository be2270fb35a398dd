"""Launching and controlling runs: script options read from source, the keeper process, signals, GPU and host status.
Run as a program (`python ui/launch.py RECORD_DIR`), this file is the keeper of one launched run. It outlives the UI: it
waits for the run's turn, starts the script in its own session, finds its run directory and writes the exit code there.
"""

import ast
import contextlib
import fcntl
import itertools
import math
import operator
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ui.files import clean, get, number, parse, read_bytes, stamp, write_json
from ui.runs import HOST, Run, alive, identity, process_stat

_cache: dict[str, tuple[tuple, dict]] = {}  # launch records by folder: (file stamps, record)


# ---- options of a script, from its source -----------------------------------------------------------------------------
@dataclass
class Option:
    """A field of Args. kind: int, float, bool, text, path or choice. default: the value of its literal."""

    name: str
    kind: str
    default: Any
    help: str = ""
    panel: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False  # may be None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def describe(self) -> str:
        """Type and range: `int ≥ 2`, `float 0 … 1`, `is,fid | fid`."""
        if self.choices:
            return " | ".join(self.choices)
        low, high = (str(x) if x is not None else "" for x in (self.low, self.high))
        limits = f" {low} … {high}" if low and high else f" ≥ {low}" if low else f" ≤ {high}" if high else ""
        return self.kind + limits + (", or empty" if self.optional else "")

    def read(self, text: str) -> Any:
        """Parse a value. ValueError: what is wrong with the text."""
        text = text.strip()
        if self.optional and not text:
            return None
        if self.kind == "bool":
            if text.lower() not in ("true", "false", "yes", "no"):
                raise ValueError("must be true or false")
            return text.lower() in ("true", "yes")
        if self.choices and text not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        if self.kind not in ("int", "float"):
            if not text:
                raise ValueError("must not be empty")
            return text
        try:
            value = int(text) if self.kind == "int" else float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise ValueError(f"must be {'a whole number' if self.kind == 'int' else 'a number'}")
        if self.low is not None and value < self.low:
            raise ValueError(f"must be ≥ {self.low}")
        if self.high is not None and value > self.high:
            raise ValueError(f"must be ≤ {self.high}")
        return value

    def write(self, value: Any) -> str:
        """A value as text that `read` accepts."""
        return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass
class Script:
    path: Path
    about: str
    options: dict[str, Option]
    presets: dict[str, dict]

    def defaults(self, preset: str) -> dict[str, Any]:
        values = {name: o.default for name, o in self.options.items()}
        return values | {k: v for k, v in self.presets.get(preset, {}).items() if k in values}


def scripts(folder: Path) -> tuple[list[Script], dict[str, str]]:
    """The scripts in a folder that define Args and PRESETS, and by file name the errors in those that cannot be read."""
    found, broken = [], {}
    for path in sorted(folder.glob("*.py")):
        try:
            source = read_bytes(path, 4 << 20).decode()
            if "class Args" in source and "PRESETS" in source:
                found.append(read_script(path, source))
        except Exception as e:  # a broken script must not crash the UI
            broken[path.name] = clean(e, 100) or type(e).__name__
    return found, broken


def read_script(path: Path, source: str) -> Script:
    """Options and presets, parsed by ast without running the script. ValueError: Args or PRESETS are missing or unreadable."""
    module = Module(path.parent, path.stem, source, {})
    lineage = _lineage(*module.find("Args")) if "Args" in module.names else []
    home = next((where for where, _ in reversed(lineage) if "PRESETS" in where.names), None)
    if home is None:
        raise ValueError("does not define Args and PRESETS")
    options: dict[str, Option] = {}
    for where, part in lineage:
        for node in part.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                options[node.target.id] = _option(node.target.id, node, where, options.get(node.target.id))
    panels = ["Run", "Data", "Search", "Train", "Eval", *(o.panel for o in options.values())]
    options = dict(sorted(options.items(), key=lambda item: panels.index(item[1].panel)))
    presets = literal(ast.Name("PRESETS"), home)
    if not isinstance(presets, dict) or not all(isinstance(v, dict) for v in presets.values()):
        raise ValueError("PRESETS is not a dict of dicts")
    about = (ast.get_docstring(module.tree) or "").split("\n\n")[0].replace("\n", " ")
    return Script(path, about, options, presets)


class Module:
    """What a file defines, parsed by ast. names: classes and expressions; imports as dotted names: `common.cli.CommonArgs`."""

    def __init__(self, folder: Path, name: str, source: str, files: dict[str, "Module"]) -> None:
        self.folder, self.name, self.tree, self.files = folder, name, ast.parse(source), files
        self.names: dict[str, ast.AST | str] = {}
        files[name] = self
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                self.names[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.names |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.Import):
                self.names |= {a.asname or a.name: a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:  # no relative imports: they may leave the folder
                self.names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

    def find(self, name: str) -> tuple["Module", ast.AST]:
        """Resolve `name` or `module.name`: the defining module and the node."""
        module = self
        for _ in range(20):
            head, _, tail = name.rpartition(".")
            found, owner = module.names.get(name), module.names.get(head)
            if found is None and isinstance(owner, str):
                found = f"{owner}.{tail}"
            if found is None:
                raise ValueError(f"{name[:60]} is not defined in {module.name}")
            if not isinstance(found, str):
                return module, found
            file, _, name = found.rpartition(".")
            module = module._read(file)
        raise ValueError(f"{name}: circular import")

    def _read(self, name: str) -> "Module":
        if name not in self.files:
            try:
                path = os.path.realpath(self.folder / (name.replace(".", "/") + ".py"))
                Module(self.folder, name, read_bytes(Path(path), 4 << 20).decode(), self.files)
            except (OSError, ValueError, SyntaxError) as e:
                raise ValueError(f"module {name} cannot be read: {getattr(e, 'strerror', None) or e}") from None
        return self.files[name]


def _lineage(module: Module, node: ast.AST, below: tuple[ast.AST, ...] = ()) -> list[tuple[Module, ast.ClassDef]]:
    """A class and its base classes, bases first, each with its module: the order in which dataclass collects fields."""
    if not isinstance(node, ast.ClassDef):
        raise ValueError(f"is not a class: {ast.unparse(node)[:60]}")
    if node in below:
        raise ValueError(f"{node.name} inherits from itself")
    found: list[tuple[Module, ast.ClassDef]] = []
    for base in reversed(node.bases):
        found += [c for c in _lineage(*module.find(ast.unparse(base)), (*below, node)) if c not in found]
    return [*found, (module, node)]


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.BitOr: operator.or_}


def literal(node: ast.AST | None, module: Module, depth: int = 0) -> Any:
    """Evaluate literals, + - *, Path("..."), {**a}, dict(a, b=...), a | b and names of these. ValueError: anything else."""
    if depth > 50 or node is None:
        raise ValueError("is not a literal")
    again = lambda n: literal(n, module, depth + 1)  # noqa: E731
    called = ast.unparse(node.func) if isinstance(node, ast.Call) and len(node.args) < 2 else ""
    node = _as_dict(node, [None]) if called == "dict" else node
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name | ast.Attribute):
        where, found = module.find(ast.unparse(node))
        return literal(found, where, depth + 1)
    if isinstance(node, ast.Tuple | ast.List):
        return [again(n) for n in node.elts]
    if isinstance(node, ast.Dict):
        made: dict = {}
        for k, v in zip(node.keys, node.values, strict=True):
            part = again(v) if k is None else {again(k): again(v)}
            if not isinstance(part, dict):
                raise ValueError(f"is not a dict: {ast.unparse(v)[:60]}")
            made |= part
        return made
    if called == "Path" and node.args:
        return str(again(node.args[0]))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -again(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        a, b = again(node.left), again(node.right)
        for kind, ops in ((int | float, (ast.Add, ast.Sub, ast.Mult)), (str, ast.Add), (dict, ast.BitOr)):
            if isinstance(a, kind) and isinstance(b, kind) and isinstance(node.op, ops):
                return OPERATORS[type(node.op)](a, b)
    raise ValueError(f"is not a literal: {ast.unparse(node)[:60]}")


def _as_dict(call: ast.Call, words: list[str | None]) -> ast.Dict:
    """The call `f(1, b=2, **c)` as `{words[0]: 1, "b": 2, **c}`; a word that is None becomes `**`."""
    keys = [*words[: len(call.args)], *(k.arg for k in call.keywords)]
    return ast.Dict([k and ast.Constant(k) for k in keys], [*call.args, *(k.value for k in call.keywords)])


def _option(name: str, node: ast.AnnAssign, module: Module, base: Option | None) -> Option:
    """A field `x: T = opt(default, help, panel, min=.., max=..)`; without a panel it inherits help, panel, range from base."""
    kind = node.annotation
    parts = [kind.left, kind.right] if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr) else [kind]
    types = [p for p in parts if not (isinstance(p, ast.Constant) and p.value is None)]
    main, optional = next(iter(types)), len(types) < len(parts)
    choices: tuple[str, ...] = ()
    if isinstance(main, ast.Subscript) and ast.unparse(main.value).endswith("Literal"):
        values = literal(main.slice, module)
        choices, word = tuple(str(v) for v in (values if isinstance(values, list) else [values])), "choice"
    else:
        word = {"int": "int", "float": "float", "bool": "bool", "Path": "path"}.get(ast.unparse(main), "text")
    given: dict[str, Any] = {}
    try:
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).split(".")[-1] == "opt":
            given = literal(_as_dict(node.value, ["default", "help", "panel", "min", "max"]), module)
        elif node.value or not base:
            given = {"default": literal(node.value, module)}
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from None
    text, panel = (str(given.get(k) or "") for k in ("help", "panel"))
    low, high = given.get("min"), given.get("max")
    if base and not panel:
        if re.fullmatch(r"\[[^]]*]", text):  # same help, another source tag
            text = re.sub(r" *\[[^]]*]$", "", base.help) + " " + text
        text, panel, low, high = text or base.help, base.panel, given.get("min", base.low), given.get("max", base.high)
    return Option(name, word, given.get("default", base and base.default), text, panel, low, high, choices, optional)


# ---- command lines ----------------------------------------------------------------------------------------------------
def command(script: Script, values: dict[str, Any]) -> list[str]:
    """The command line after `python`: the script, its preset, and the flags that differ from the preset."""
    preset = str(values.get("preset", ""))
    defaults, words = script.defaults(preset), [script.path.name]
    if preset and "preset" in script.options and preset != script.options["preset"].default:
        words += ["--preset", preset]
    for name, value in values.items():
        option = script.options.get(name)
        if option is None or name == "preset" or value == defaults.get(name):
            continue
        if option.kind == "bool":
            words.append(option.flag if value else option.flag.replace("--", "--no-", 1))
        elif value is not None:
            words += [option.flag, str(value)]
    return words


@dataclass(frozen=True)
class Start:
    """How a script is started. gpu: CUDA_VISIBLE_DEVICES. torchrun: its options, None: one process."""

    gpu: str = ""
    env: dict[str, str] = field(default_factory=dict)
    torchrun: tuple[str, ...] | None = None

    def words(self, script_words: list[str]) -> list[str]:
        """The words after `python`."""
        launcher = [] if self.torchrun is None else ["-m", "torch.distributed.run", *self.torchrun]
        return [*launcher, *script_words]

    def line(self, script_words: list[str]) -> str:
        """The command for a shell. `parse_command` reads it back."""
        env = ({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {}) | self.env
        program = ["python"] if self.torchrun is None else ["torchrun", *self.torchrun]
        return " ".join([*(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join([*program, *script_words])])

    @classmethod
    def of(cls, record: dict | None) -> "Start":
        """That of a launch record."""
        record = record or {}
        words, env = record.get("words"), record.get("env")
        launched = isinstance(words, list) and words[:2] == ["-m", "torch.distributed.run"] and record.get("script") in words
        torchrun = tuple(words[2 : words.index(record["script"])]) if launched else None
        return cls(clean(record.get("gpu")), env if isinstance(env, dict) else {}, torchrun)


def parse_command(text: str, found: list[Script]) -> tuple[Script, dict[str, Any], Start]:
    """(script, values, how it is started) of a pasted command line. ValueError: what in it is wrong or cannot be kept."""
    words = _shell_words(text.replace("\\\n", " "))
    folder = None
    if words[:1] == ["cd"]:
        if len(words) < 3 or words[2] not in ("&&", ";"):
            raise ValueError("cd: must be followed by a folder and &&")
        folder, words = Path(words[1]).resolve(), words[3:]
    env = {}
    words = words[1:] if words[:1] == ["env"] else words
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL):
        key, _, env[key] = words.pop(0).partition("=")
    gpu = env.pop("CUDA_VISIBLE_DEVICES") if env.get("CUDA_VISIBLE_DEVICES") else ""  # if empty it is kept: no GPU
    names = {s.path.name: s for s in found}
    at = next((i for i, w in enumerate(words) if Path(w).name in names), None)
    if at is None:
        raise ValueError(f"no known script in the command; known: {', '.join(names) or 'none'}")
    script = names[Path(words[at]).name]
    home = script.path.parent.resolve()
    if folder not in (None, home):
        raise ValueError(f"cd {clean(folder, 100)}: runs start in {home}; start tui.py with --scripts of that folder")
    if "/" in words[at] and ((folder or Path()) / words[at]).resolve() != home / script.path.name:
        raise ValueError(f"{clean(words[at], 100)}: the script of that name here is {home / script.path.name}")
    return script, _values(script, words[at + 1 :]), Start(gpu, env, _torchrun(words[:at]))


def values_of(script: Script, run: Run) -> dict[str, Any]:
    """The values of a run's options: what its command line said, else the defaults; not what the script made of them."""
    args = {k: v for k, v in run.args.items() if k in script.options}
    asked = run.config.get("argv")
    try:
        values = _values(script, [str(word) for word in asked[1:]])
        same = not values.get("resume")  # a resumed run's command line says nothing else
    except (TypeError, ValueError):  # by another version of the script, or not there
        same = False
    if not same:
        values = script.defaults(clean(args.get("preset"))) | args
    paths = {k: v for k, v in args.items() if script.options[k].kind == "path" and values.get(k) is not None}
    return values | paths | {k: script.options[k].default for k in ("resume", "auto_resume", "dry_run") if k in script.options}


def _shell_words(text: str) -> list[str]:
    """Words of a shell command; `&&`, `>` and such are words. ValueError: open quotes, or what only a shell can expand."""
    unquoted = re.sub(r"'[^']*'", "''", text)
    if found := re.search(r"[$`]|(?:^|[\s=])~", unquoted):
        raise ValueError(f"{found[0].strip()}: only a shell can expand it; write out what it stands for")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return list(lexer)
    except ValueError as e:
        raise ValueError(f"not a command line: {e}") from None


def _torchrun(words: list[str]) -> tuple[str, ...] | None:
    """The options of torchrun, from the words before the script; None: plain python. ValueError: anything else."""
    program = Path(words[0]).name if words else ""
    if words and "/" in words[0] and os.path.abspath(words[0]) != os.path.join(os.path.dirname(sys.executable), program):
        raise ValueError(f"{clean(words[0], 100)}: runs start with {sys.executable}")
    if program == "torchrun":
        return tuple(words[1:])
    if re.fullmatch(r"python[\d.]*", program):
        rest = [w for w in words[1:] if w != "-u"]  # output is never buffered
        if rest[:2] == ["-m", "torch.distributed.run"]:
            return tuple(rest[2:])
        words = rest
    if words:
        raise ValueError(f"{clean(shlex.join(words), 60)}: cannot be kept; only python and torchrun start a run here")
    return None


def _values(script: Script, words: list[str]) -> dict[str, Any]:
    """The values of all options, from flags. ValueError: what is wrong with them."""
    rest = iter(words)
    given: dict[str, str] = {}
    flags = {o.flag: o for o in script.options.values()}
    for item in rest:
        word, eq, value = item.partition("=")
        option, negated = flags.get(word), flags.get(word.replace("--no-", "--", 1))
        if option is None and negated and negated.kind == "bool":
            option, eq, value = negated, "=", "false"
        if option is None:
            raise ValueError(f"{clean(word, 40)}: {script.path.name} has no such flag")
        if not eq:
            value = "true" if option.kind == "bool" else next(rest, None)
        if value is None:
            raise ValueError(f"{word}: has no value")
        given[option.name] = value
    preset = given.get("preset") or str(script.options["preset"].default if "preset" in script.options else "")
    values = script.defaults(preset) | ({"preset": preset} if "preset" in script.options else {})
    for name, text in given.items():
        try:
            values[name] = script.options[name].read(text)
        except ValueError as e:
            raise ValueError(f"{script.options[name].flag} {clean(text, 40)}: {e}") from None
    return values


def seeds(text: str) -> list[int]:
    """Parse `3`, `0-4` or `0,2,7`. ValueError: anything else, or more than 100 seeds."""
    found: list[int] = []
    for part in text.split(","):
        m = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        if not m:
            raise ValueError(f"{clean(text, 30)!r}: must be a whole number, a range 0-4 or a list 0,2,7")
        low, high = int(m[1]), int(m[2] or m[1])
        if high < low or high - low >= 100 or len(found) > 100:
            raise ValueError(f"{part.strip()}: must go from low to high, at most 100 runs")
        found += [s for s in range(low, high + 1) if s not in found]
    return found


# ---- launching --------------------------------------------------------------------------------------------------------
@dataclass
class Launch:
    """A run to start. wait: now, gpu (until `need` GiB are free) or after; after: until that run has ended, then as `wait`."""

    script: Path
    words: list[str]  # the script and its flags
    values: dict[str, Any]
    runs: Path  # the folder shown in the UI; launch records go to its .launch/
    wait: str = "now"
    need: float = 0.0
    after: str = ""
    gpu: str = ""  # CUDA_VISIBLE_DEVICES
    env: dict[str, str] = field(default_factory=dict)
    run: str = ""  # directory name of the run to resume


def launch(what: Launch) -> Path:
    """Start a keeper, which outlives this process. Returns its record folder. OSError: folder or process cannot be created."""
    root = what.runs.resolve() / ".launch"
    root.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for n in itertools.count(1):
        record = root / f"{stamp}-{n:03d}"
        with contextlib.suppress(FileExistsError):
            record.mkdir()
            break
    name = what.run or f"{what.script.stem}-{what.values.get('dataset', '')}-s{what.values.get('seed', 0)}-{stamp}-{n}"
    need = f"waiting for {what.need:g} GiB on a GPU" if what.wait == "gpu" else ""
    waits = f"waiting for {what.after}" if what.after else need
    runs_dir = what.script.parent / str(what.values.get("runs_dir") or what.runs.resolve())
    told = {"name": clean(name, 120), "script": what.script.name, "words": what.words, "cwd": str(what.script.parent.resolve())}
    told |= {"args": what.values, "wait": what.wait, "need": what.need, "after": what.after, "gpu": what.gpu, "waits": waits}
    told |= {"runs": str(runs_dir.resolve()), "root": str(what.runs.resolve()), "resumes": what.run, "env": what.env}
    write_json(record / "record.json", told)
    write_json(record / "state.json", {"state": "queued" if waits else "starting"})
    with open(record / "keeper.txt", "wb") as out:
        _detached([Path(__file__).resolve(), record], out, cwd=what.script.parent)
    return record


def _detached(words: list, out: Any, **options: Any) -> subprocess.Popen:
    """A Python process in a session of its own."""
    options |= {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT, "start_new_session": True}
    return subprocess.Popen([sys.executable, *map(str, words)], **options)


def launch_all(runs: list[Launch], together: bool) -> list[Path]:
    """Launch runs, each after the one before has ended unless `together`. OSError: one failed; those before it run."""
    made: list[Path] = []
    for what in runs:
        if made and not together:
            what.after = _read_record(made[-1])["name"]
        made.append(launch(what))
    return made


def environment(env: dict[str, str], gpu: str) -> dict[str, str]:
    """The environment variables of a run and of its dry run."""
    made = {**os.environ, "PYTHONUNBUFFERED": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **env}
    made.pop("COLUMNS", None)
    return made | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})


class DryRun:
    """The script's own --dry-run of a launch. code: its exit code, None until it ends; then done() is called, in a thread."""

    def __init__(self, what: Launch, done: Callable[[], None], longest: float = 600.0) -> None:
        """OSError: it cannot be started."""
        self.code: int | None = None
        self.output, self.done, self.longest = "", done, longest
        where = {"cwd": what.script.parent, "env": environment(what.env, what.gpu)}
        self.process = _detached([*what.words, "--dry-run"], subprocess.PIPE, text=True, errors="replace", **where)
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        try:
            output, _ = self.process.communicate(timeout=self.longest)
            code = self.process.returncode
        except subprocess.TimeoutExpired:
            self.stop()
            output, code = f"no answer after {self.longest:.0f} s", 124
        self.output, self.code = output[-100_000:].strip(), code
        self.done()

    def stop(self) -> None:
        """End it, if it still runs, with the processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


def records(root: Path) -> list[dict]:
    """Launches from this UI: record.json merged with state.json, plus `dir`, the record folder. Oldest first."""
    try:
        folders = sorted(e.path for e in os.scandir(root / ".launch") if e.is_dir(follow_symlinks=False))
    except OSError:
        return []
    recent = folders[-2000:]
    for folder in recent:
        key = tuple(stamp(Path(folder) / f) for f in ("record.json", "state.json"))
        if _cache.get(folder, ((), {}))[0] != key:
            _cache[folder] = (key, _read_record(Path(folder)))
    return [record for folder in recent if (record := _cache[folder][1])]


def _read_record(folder: Path) -> dict:
    try:
        merged = parse(read_bytes(folder / "record.json")) | parse(read_bytes(folder / "state.json"))
    except (OSError, ValueError):
        return {}
    merged["dir"] = str(folder)
    merged["name"] = clean(merged.get("name"), 120).replace("/", "_") or folder.name
    run = merged.get("run")
    merged["run"] = run if isinstance(run, str) and Path(run).name == run else None
    for key in ("keeper", "child"):
        merged[key] = merged.get(key) if isinstance(merged.get(key), dict) else {}
    return merged


def process_of(pid: int) -> dict:
    """A process's identity in the form used in status.json."""
    found = process_stat(pid)
    return {"pid": pid, "start_time": found[1] if found else None, "host": HOST[0], "boot_id": HOST[1]}


class Keeper:
    """Manages one launched run from queueing to exit code. All its state is in the record folder."""

    def __init__(self, folder: Path) -> None:
        self.dir, self.record = folder, parse(read_bytes(folder / "record.json"))
        self.state: dict[str, Any] = {"state": "queued", "keeper": process_of(os.getpid())}
        self.cancelled = False

    def tell(self, **changes: object) -> None:
        self.state |= changes
        with contextlib.suppress(OSError):  # a full disk must not stop the run
            write_json(self.dir / "state.json", self.state)

    def keep(self) -> None:
        for s in (signal.SIGINT, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "cancelled", True))
        self.tell()
        lock = self._turn()
        if self.cancelled:
            return self.tell(state="ended", exit=130)
        env = environment(self.record.get("env", {}), self.record["gpu"])
        try:
            with open(self.dir / "output.txt", "wb") as out:
                child = _detached(self.record["words"], out, cwd=self.record["cwd"], env=env, preexec_fn=_default_signals)
        except OSError as e:
            (self.dir / "output.txt").write_text(f"{e}\n", "utf-8")
            return self.tell(state="ended", exit=127)
        began = time.monotonic()
        self.tell(state="running", child=process_of(child.pid))
        while child.poll() is None:
            self._find(child.pid)
            if lock is not None and time.monotonic() - began > 90:  # by now the script has allocated its GPU memory
                lock.close()
            time.sleep(0.3)
        self._find(child.pid)
        code = child.returncode if child.returncode >= 0 else 128 - child.returncode
        if self.state.get("run"):
            with contextlib.suppress(OSError):
                write_json(Path(self.record["runs"]) / self.state["run"] / "exit", code)
        self.tell(state="ended", exit=code)

    def _find(self, pid: int) -> None:
        """Find and record the run directory: its status.json names the child or another process of its session."""
        if self.state.get("run"):
            return
        child = identity(self.state.get("child") or {})
        with contextlib.suppress(OSError):
            for path in (Path(self.record["runs"]) / name for name in os.listdir(self.record["runs"]) if name[0] != "."):
                with contextlib.suppress(OSError, ValueError):
                    process = get(parse(read_bytes(path / "status.json")), "process")
                    who = identity(process) if isinstance(process, dict) else None
                    if who and (who == child or (alive(process) and os.getsid(who[0]) == pid)):
                        (path / "exit").unlink(missing_ok=True)  # left by the run before it was resumed
                        return self.tell(run=path.name)

    def _turn(self) -> Any:
        """Wait until the run may start. Returns the GPU lock if the run waited for a GPU."""
        if self.record.get("after"):
            while not self.cancelled and self._running(self.record["after"]):
                time.sleep(1)
            self.tell(after="", waits=f"waiting for {self.record.get('need', 0):g} GiB on a GPU")
        if self.record["wait"] != "gpu":
            return None
        lock = open(self.dir.parent / "gpu.lock", "wb")  # noqa: SIM115 - held until the run has allocated its memory
        while not self.cancelled:
            if not self._others_before():
                with contextlib.suppress(Exception):  # locked by another keeper, or NVML failed temporarily: retry
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    free = [g for g in gpus() if g["total"] - g["used"] >= self.record["need"] * 2**30]
                    if free:
                        self.record["gpu"] = max(free, key=lambda g: g["total"] - g["used"])["uuid"]
                        return lock
                    fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(2)
        return lock

    def _running(self, name: str) -> bool:
        root = Path(self.record["root"])
        for r in records(root):
            if name not in (r["name"], r.get("run")) or r["dir"] == str(self.dir):
                continue
            begins = not r["keeper"] and time.time() - Path(r["dir"]).stat().st_mtime < 60  # its keeper is just starting
            if r.get("exit") is None and (begins or alive(r["keeper"])):
                return True
        run = Run(root / name)
        run.refresh()
        return run.live

    def _others_before(self) -> bool:
        """Whether an earlier launch is also waiting for a GPU, and for no other run: first come, first served."""
        waiting = [r for r in records(self.dir.parent.parent) if r.get("wait") == "gpu" and not r.get("after")]
        return any(r["dir"] < str(self.dir) and r.get("state") == "queued" and alive(r["keeper"]) for r in waiting)


def _default_signals() -> None:
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_DFL)


# ---- signals ----------------------------------------------------------------------------------------------------------
def send(process: dict, number: int, family: bool = False) -> None:
    """Send a signal to exactly this process; family: also to its descendants. ProcessLookupError: it does not exist."""
    fd = _pin(process)
    try:
        children = _descendants(process["pid"]) if family else []
        signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)
    for child in children:
        with contextlib.suppress(OSError):
            send(child, number)


def _pin(process: dict) -> int:
    """Open a pidfd, then compare the start time, so that a reused pid is never signalled."""
    who = identity(process)
    if who is None or who[0] == os.getpid():
        raise ProcessLookupError("not a process on this host")
    fd = os.pidfd_open(who[0])
    found = process_stat(who[0])
    if not found or found[1] != who[1]:
        os.close(fd)
        raise ProcessLookupError(f"pid {who[0]} is another process now")
    return fd


def _descendants(pid: int) -> list[dict]:
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        for child in parents.get(todo.pop(), ()):
            found.append(process_of(child))
            todo.append(child)
    return found


# ---- GPUs and host ----------------------------------------------------------------------------------------------------
def gpus() -> list[dict]:
    """For each GPU: index, uuid, name, used and total bytes, percent, watts, degrees. Raises if NVML fails."""
    import pynvml

    def ask(what: Any, *of: Any) -> Any:
        with contextlib.suppress(pynvml.NVMLError):
            return what(*of)

    pynvml.nvmlInit()
    found = []
    for i in range(pynvml.nvmlDeviceGetCount()):
        h = pynvml.nvmlDeviceGetHandleByIndex(i)
        memory = pynvml.nvmlDeviceGetMemoryInfo(h)
        rates, watts = ask(pynvml.nvmlDeviceGetUtilizationRates, h), ask(pynvml.nvmlDeviceGetPowerUsage, h)
        name, uuid = ask(pynvml.nvmlDeviceGetName, h), ask(pynvml.nvmlDeviceGetUUID, h)
        gpu = {"index": i, "uuid": clean(uuid) or str(i), "name": clean(name), "used": memory.used, "total": memory.total}
        gpu |= {"percent": rates.gpu if rates else None, "watts": watts / 1000 if watts else None}
        found.append(gpu | {"degrees": ask(pynvml.nvmlDeviceGetTemperature, h, pynvml.NVML_TEMPERATURE_GPU)})
    return found


class Machine:
    """GPU and host status, polled every two seconds in separate threads, so a hanging library does not block the UI."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gpus: list[dict] = []
        self.gpu_note = ""  # why no GPUs are listed
        self.host: dict[str, float] = {}
        self.left = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch_gpus, daemon=True).start()
        threading.Thread(target=self._watch_host, daemon=True).start()

    def ask_once(self, seconds: float = 5.0) -> None:
        """Poll once, waiting at most `seconds` for the GPUs."""
        self.gpu_note = "GPU n/a: no answer"
        thread = threading.Thread(target=self._ask_gpus, daemon=True)
        thread.start()
        self._ask_host(0.1)
        thread.join(seconds)

    def _ask_gpus(self) -> None:
        try:
            self.gpus, self.gpu_note = gpus(), ""
        except ImportError:
            self.gpus, self.gpu_note = [], "GPU n/a: nvidia-ml-py is not installed"
        except Exception as e:  # NVML raises many kinds; none may crash the UI
            self.gpus, self.gpu_note = [], f"GPU n/a: {clean(type(e).__name__.removeprefix('NVMLError_'))}"

    def _watch_gpus(self) -> None:
        failures = 0
        while not self.left.is_set():
            self._ask_gpus()
            failures = failures + 1 if self.gpu_note else 0
            self.left.wait(60 if failures >= 3 else 2)

    def _ask_host(self, seconds: float | None = None) -> None:
        import psutil

        with contextlib.suppress(OSError, psutil.Error):
            memory = psutil.virtual_memory()
            root = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
            host = {"cpu": psutil.cpu_percent(seconds), "cores": psutil.cpu_count() or 1, "total": memory.total}
            self.host = host | {"used": memory.total - memory.available, "disk": shutil.disk_usage(root).free}

    def _watch_host(self) -> None:
        with contextlib.suppress(ImportError):
            while not self.left.is_set():
                self._ask_host()
                self.left.wait(2)


def similar(runs: Iterable[Any], script: str, preset: str) -> tuple[float | None, float | None, int]:
    """(largest peak memory in bytes, median seconds, count) of finished runs with this script and preset."""
    from statistics import median

    found = [r for r in runs if r.script == script and r.config.get("preset") == preset and r.result]
    peaks = [p for r in found if (p := number(r.result.get("peak_mem")))]
    spent = [r.spent for r in found if r.spent is not None]
    return max(peaks, default=None), median(spent) if spent else None, len(found)


if __name__ == "__main__":
    Keeper(Path(sys.argv[1])).keep()
