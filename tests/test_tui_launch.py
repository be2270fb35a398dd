"""Launching and steering: options read from source, command lines, the keeper of a run, signals that reach only the run."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_trainer
import pytest
from fake_trainer import make_run, me

from ui import launch
from ui.launch import Launch, command, parse_command, read_script, scripts, seeds, send
from ui.runs import Run, Store, alive, process_stat

ROOT, TESTS = Path(__file__).parents[1], Path(__file__).parent
FAKE = read_script(TESTS / "fake_trainer.py", (TESTS / "fake_trainer.py").read_text())
SCRIPTS = scripts(ROOT)[0]


def until(what: Callable[[], object], seconds: float = 30.0) -> object:
    """What it returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "never happened"
        time.sleep(0.05)
    return found


# ---- options ------------------------------------------------------------------------------------------------------------


def test_every_script_at_the_root_can_be_launched_and_nothing_else() -> None:
    found, broken = scripts(ROOT)
    assert not broken
    assert {s.path.name for s in found} >= {"eagan.py"}
    assert {s.path.name for s in found} == {f.name for f in ROOT.glob("*.py") if "class Args" in f.read_text()}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.path.stem)
def test_options_are_those_of_the_scripts_own_parser(script: launch.Script) -> None:
    """The only test here that imports a script, and with it torch."""
    import importlib
    import typing

    from common.cli import options

    module = importlib.import_module(script.path.stem)
    fields = options(module.Args)
    assert list(script.options) == [f.name for f, _ in fields]
    plain = lambda v: str(v) if isinstance(v, Path) else v  # noqa: E731
    for f, about in fields:
        option = script.options[f.name]
        kinds = [t for t in (typing.get_args(f.type) or (f.type,)) if t is not type(None)]
        assert option.default == plain(f.default)
        assert {"min": option.low, "max": option.high} == {"min": None, "max": None} | about["limits"]
        assert (option.help, option.panel) == (about["help"], about["panel"])
        if option.choices:
            assert list(option.choices) == kinds
        else:
            assert option.kind == {int: "int", float: "float", bool: "bool", str: "text", Path: "path"}[kinds[0]]
        assert option.optional == (type(None) in typing.get_args(f.type))
    assert script.presets == {k: {n: plain(v) for n, v in p.items()} for k, p in module.PRESETS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.path.stem)
def test_help_of_the_script_lists_the_same_flags(script: launch.Script) -> None:
    env = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    text = subprocess.run([sys.executable, script.path, "--help"], env=env, capture_output=True, text=True, check=True).stdout
    for option in script.options.values():
        line = next(x for x in text.splitlines() if x.lstrip("│* ").startswith(f"{option.flag} "))
        for choice in option.choices:
            assert choice in line
        if option.default is not None and option.kind != "bool":
            assert f"[default: {option.default}]" in line or "default" in line


def test_a_copied_script_appears_by_itself_and_a_broken_one_says_why(tmp_path: Path) -> None:
    source = (TESTS / "fake_trainer.py").read_text()
    (tmp_path / "mine.py").write_text(source.replace('opt("shapes"', 'opt("stl10"'))
    (tmp_path / "torn.py").write_text(source.partition('"smoke": {')[0])
    (tmp_path / "other.py").write_text("print('no Args here')")
    (tmp_path / "evil.py").write_text("class Args:\n    x: int = __import__('os').system('touch here')\nPRESETS = {}\n")
    found, broken = scripts(tmp_path)
    assert [s.path.name for s in found] == ["mine.py"]
    assert found[0].options["dataset"].default == "stl10"
    assert broken.keys() == {"torn.py", "evil.py"}
    assert "not a literal" in broken["evil.py"]
    assert not (tmp_path / "here").exists()


COMMON = """
from dataclasses import dataclass, field
MOST = 64 * 2
def opt(default, help, panel="", **limits):
    return field(default=default, metadata={"help": help, "panel": panel, "limits": limits})
@dataclass(frozen=True)
class CommonArgs:
    preset: Literal["paper", "quick"] = opt("paper", "Named values. [ours]", "Run")
    seed: int = opt(0, "Every random stream derives from it. [ours]", "Run", min=0)
    data_dir: Path = opt(Path("data"), "Downloads. [ours]", "Data")
    g_batch: int = opt(MOST, "Latents of a G step, over all processes. [ours]", "Train", min=1, max=MOST * 8)
    amp: bool = opt(False, "bfloat16. [ours]", panel="Train")
    note: str = opt("", "A word. [ours]", "Words")
    eval_n: int = opt(50_000, "Images of an evaluation. [ours]", "Eval", min=2)
"""
METHOD = '''"""A method.

More of it."""
from common.cli import CommonArgs, opt
MOST = 3
@dataclass(frozen=True)
class Args(CommonArgs):
    population: int = opt(32, "Genotypes trained in turn, P. [paper §5.1]", "Search", min=2)
    selection: Literal["nsga2", "cars"] = opt(default="nsga2", help="What survives. [ours]", panel="Search")
    genotype: str | None = opt(None, "A name or a file. [ours]", "Run")
    weights: Path | None = opt(None, "A file. [ours]", "Run")
    eval_n: int = opt(MOST * 1000, "[authors' code]")
PRESETS = {"paper": {}, "quick": dict(preset="quick", eval_n=MOST, population=4)}
'''


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., launch.Script]:
    """Read a script that lies beside common/cli.py and method.py; files: further ones, by dotted name."""

    def write_and_read(source: str, **files: str) -> launch.Script:
        folder = tmp_path / "scripts"
        for name, text in {"common.cli": COMMON, "method": METHOD, **files, "mine": source}.items():
            path = folder / (name.replace(".", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return read_script(folder / "mine.py", source)

    return write_and_read


def test_a_script_has_the_options_of_the_class_that_it_inherits_from(read: Callable[..., launch.Script]) -> None:
    script = read(METHOD)
    assert script.about == "A method."
    panels = [("preset", "Run"), ("seed", "Run"), ("genotype", "Run"), ("weights", "Run"), ("data_dir", "Data")]
    panels += [("population", "Search"), ("selection", "Search"), ("g_batch", "Train"), ("amp", "Train"), ("eval_n", "Eval")]
    assert [(o.name, o.panel) for o in script.options.values()] == [*panels, ("note", "Words")]
    text = "Genotypes trained in turn, P. [paper §5.1]"
    assert script.options["population"] == launch.Option("population", "int", 32, text, "Search", low=2)
    selection = launch.Option("selection", "choice", "nsga2", "What survives. [ours]", "Search", choices=("nsga2", "cars"))
    assert script.options["selection"] == selection
    assert script.options["weights"] == launch.Option("weights", "path", None, "A file. [ours]", "Run", optional=True)
    assert (script.options["genotype"].kind, script.options["genotype"].optional) == ("text", True)
    assert (script.options["data_dir"].kind, script.options["data_dir"].default) == ("path", "data")
    g_batch = script.options["g_batch"]
    assert (g_batch.default, g_batch.low, g_batch.high) == (128, 1, 1024)  # MOST of common/cli.py, not the script's
    assert script.options["eval_n"].default == 3000


def test_a_default_is_that_of_the_preset_else_of_the_nearest_class(read: Callable[..., launch.Script]) -> None:
    script = read(METHOD)
    assert script.presets == {"paper": {}, "quick": {"preset": "quick", "eval_n": 3, "population": 4}}
    assert script.defaults("paper") == {name: o.default for name, o in script.options.items()}
    assert script.defaults("quick") == script.defaults("paper") | script.presets["quick"]
    assert command(script, script.defaults("quick") | {"g_batch": 7}) == ["mine.py", "--preset", "quick", "--g-batch", "7"]


@pytest.mark.parametrize(
    ("head", "base"),
    [
        ("import method", "method.Args"),
        ("import method as m", "m.Args"),
        ("from method import Args as Base", "Base"),
        ("from method import Args as Other\nclass Base(Other): amp: bool = False", "Base"),
        ("from again import Base", "Base"),
    ],
)
def test_a_copy_may_inherit_from_another_script(read: Callable[..., launch.Script], head: str, base: str) -> None:
    script = read(
        f"{head}\nfrom common.cli import opt\nclass Args({base}):\n    rank: int = opt(1, 'Rank. [ours]', 'Search', 0, 5)\n"
        '    g_batch: int = opt(80, "[authors\' code]")\n    eval_n: int = 9\nPRESETS = {}\n',
        again="from method import Args as Base",
    )
    assert list(script.options) == [*list(o := read(METHOD).options)[:7], "rank", *list(o)[7:]]
    text = "Latents of a G step, over all processes. [authors' code]"
    assert script.options["g_batch"] == launch.Option("g_batch", "int", 80, text, "Train", 1, 1024)
    eval_n = launch.Option("eval_n", "int", 9, "Images of an evaluation. [authors' code]", "Eval", 2)
    assert script.options["eval_n"] == eval_n
    assert (script.options["rank"].low, script.options["rank"].high) == (0, 5)


def test_a_copy_may_give_a_field_a_new_help_kind_and_panel(read: Callable[..., launch.Script]) -> None:
    script = read("""import common.cli
from common import cli
PRESETS = {}
class Args(common.cli.CommonArgs):
    g_batch: float = cli.opt(0.5, "Another thing. [ours]", "Data")
    amp: bool = cli.opt(True, "Other words. [ours]")
    note: str
""")
    assert script.options["g_batch"] == launch.Option("g_batch", "float", 0.5, "Another thing. [ours]", "Data")
    assert script.options["amp"] == launch.Option("amp", "bool", True, "Other words. [ours]", "Train")
    assert script.options["note"] == launch.Option("note", "text", "", "A word. [ours]", "Words")


def test_of_two_bases_the_first_one_wins(read: Callable[..., launch.Script]) -> None:
    script = read(
        "import common.cli\nclass A(common.cli.CommonArgs): seed: int = 1\n"
        "class B(common.cli.CommonArgs):\n    seed: int = 2\n    amp: bool = True\nclass Args(A, B): pass\nPRESETS = {}"
    )
    assert (script.options["seed"].default, script.options["amp"].default) == (1, True)


@pytest.mark.parametrize(
    "presets",
    [
        '{**method.PRESETS, "mine": dict(seed=SEED, amp=True)}',
        'method.PRESETS | {"mine": {"seed": 8, "amp": True}}',
        'named | dict(mine=dict(few, amp=not_false))',
        'dict(**named, mine=few | dict(amp=True))',
        'dict(named, mine={**few, **dict(amp=True)})',
    ],
)  # fmt: skip
def test_presets_may_be_made_of_others(read: Callable[..., launch.Script], presets: str) -> None:
    head = "import method\nfrom method import PRESETS as named\nSEED = 8\nfew = dict(seed=SEED)\n"
    script = read(f"{head}not_false: bool = True\nclass Args(method.Args): pass\nPRESETS = {presets}\n")
    assert script.presets == read(METHOD).presets | {"mine": {"seed": 8, "amp": True}}


@pytest.mark.parametrize(
    ("source", "files", "wrong"),
    [
        ("class Args(Base): pass", {}, "Base is not defined in mine"),
        ("from gone import Base\nclass Args(Base): pass", {}, "module gone cannot be read: No such file"),
        ("import method\nclass Args(method.Arg): pass", {}, "Arg is not defined in method"),
        ("from torn import Base\nclass Args(Base): pass", {"torn": "class Base("}, "module torn cannot be read: '[(]' was"),
        ("from vast import Base\nclass Args(Base): pass", {"vast": "#" * (4 << 20) + "#"}, "module vast .* larger than 4096"),
        ("from bad import Base\nclass Args(Base): pass", {"bad": "class Base:\n    x: int = f()"}, "x: is not a literal"),
        ("from ..outside import Base\nclass Args(Base): pass", {}, "Base is not defined in mine"),
        ("from .. import outside\nclass Args(outside.Base): pass", {}, "outside.Base is not defined in mine"),
        ("class Args(Args): pass", {}, "Args inherits from itself"),
        ("import b\nclass Args(b.B): pass", {"b": "import mine\nclass B(mine.Args): pass"}, "Args inherits from itself"),
        ("from b import B\nclass Args(B): pass", {"b": "from c import B", "c": "from b import B"}, "imported in a circle"),
        ("Base = 3\nclass Args(Base): pass", {}, "is no class: 3"),
        ("class Args: x: int = N\nN = N", {}, "x: is not a literal"),
    ],
)
def test_a_base_that_cannot_be_read_is_named(
    read: Callable[..., launch.Script], tmp_path: Path, source: str, files: dict[str, str], wrong: str
) -> None:
    (tmp_path / "outside.py").write_text("class Base: x: int = 1")
    source = f"PRESETS = {{}}\n{source}\n"
    with pytest.raises(ValueError, match=wrong):
        read(source, **files)
    found, broken = scripts(tmp_path / "scripts")
    assert [s.path.name for s in found] == ["method.py"]
    assert "mine.py" in broken


@pytest.mark.parametrize(
    "source", ["class Args: x: None = 1", "class Args: x: int = -'a'", "class Args: x: int = " + "-" * 10_000 + "1"]
)
@pytest.mark.parametrize("presets", ["{[1]: 2}", "{**3}", "dict(1, 2)", "{} | 1", "{'a': 1}"])
def test_no_source_can_end_the_ui(tmp_path: Path, source: str, presets: str) -> None:
    (tmp_path / "a.py").write_text(f"{source}\nPRESETS = {{}}\n")
    (tmp_path / "b.py").write_text(f"class Args: pass\nPRESETS = {presets}\n")
    found, broken = scripts(tmp_path)
    assert not found
    assert all(broken[name] for name in ("a.py", "b.py"))


def test_a_base_may_be_a_link(read: Callable[..., launch.Script], tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(METHOD)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "linked.py").symlink_to(tmp_path / "elsewhere.py")
    assert "population" in read("import linked\nclass Args(linked.Args): pass\nPRESETS = linked.PRESETS").options


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("seed", "-1", "≥ 0"),
        ("steps", "0", "≥ 1"),
        ("steps", "1000001", "≤ 1000000"),
        ("steps", "1.5", "whole number"),
        ("g_lr", "fast", "a number"),
        ("g_lr", "nan", "a number"),
        ("preset", "big", "paper, smoke"),
        ("amp", "maybe", "true or false"),
        ("dataset", " ", "empty"),
    ],
)
def test_values_out_of_range_are_refused(name: str, text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        FAKE.options[name].read(text)


@pytest.mark.parametrize(
    ("text", "found"), [("3", [3]), ("0-4", [0, 1, 2, 3, 4]), ("0,2,7", [0, 2, 7]), ("1, 3-4,3", [1, 3, 4])]
)
def test_seeds(text: str, found: list[int]) -> None:
    assert seeds(text) == found


@pytest.mark.parametrize("text", ["", "-1", "a", "4-2", "0-1000", "1;2"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"whole number|from low to high"):
        seeds(text)


# ---- commands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [FAKE, *SCRIPTS], ids=lambda s: s.path.stem)
def test_a_pasted_command_restores_every_value(script: launch.Script) -> None:
    for preset in script.presets:
        changes = {"seed": 7, "dataset": "a folder/it's", "preset": preset, "g_lr": 1e-5, "amp": True}
        values = script.defaults(preset) | changes
        words = command(script, values)
        text = f"CUDA_VISIBLE_DEVICES=1 python {shlex.join(words)}"
        assert parse_command(text, [*SCRIPTS, FAKE]) == (script, values, "1")
        assert parse_command(text.replace(" --", " \\\n  --"), [*SCRIPTS, FAKE])[1] == values
        assert len(words) < 14  # only what differs from the preset


def test_a_command_run_by_a_shell_gives_the_same_arguments(tmp_path: Path) -> None:
    values = FAKE.defaults("smoke") | {
        "runs_dir": str(tmp_path / "two words"),
        "seed": 5,
        "g_lr": 3e-5,
        "amp": True,
        "pause": 0.0,
    }
    line = shlex.join([sys.executable, *command(FAKE, values)])
    subprocess.run(line, shell=True, cwd=TESTS, check=True)
    (config,) = (tmp_path / "two words").glob("*/config.json")
    saved = json.loads(config.read_text())["args"]
    assert saved == {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
    assert saved["steps"] == 40


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("python nothing.py", "names none of"),
        ("python fake_trainer.py --sed 3", "no such flag"),
        ("python fake_trainer.py --seed", "has no value"),
        ("python fake_trainer.py --seed -3", "must be ≥ 0"),
        ("python fake_trainer.py 'open", "not a command line"),
        ("", "names none of"),
    ],
)
def test_a_command_that_cannot_be_read_says_why(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_command(text, [FAKE])


# ---- launching ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., dict]]:
    """Launch the fake trainer; every process is ended afterwards."""
    runs, made = tmp_path / "runs", []

    def start(wait: str = "now", after: str = "", **flags: object) -> dict:
        values = FAKE.defaults("paper") | {"runs_dir": str(runs), "pause": 0.01, **flags}
        made.append(launch.launch(Launch(FAKE.path, command(FAKE, values), values, runs, wait, after=after)))
        return record(made[-1])

    yield start
    for folder in made:
        for who in ("child", "keeper"):
            process = record(folder).get(who) or {}
            if alive(process):
                send(process, signal.SIGKILL, family=True)


def record(folder: Path) -> dict:
    found = [r for r in launch.records(folder.parents[1]) if r["dir"] == str(folder)]
    return found[0] if found else {}


def latest(r: dict) -> dict:
    return record(Path(r["dir"]))


def run_of(r: dict) -> Run:
    """The run of a launch, as soon as its directory is known."""
    name = until(lambda: latest(r).get("run"))
    run = Run(Path(r["dir"]).parents[1] / name)
    run.record = latest(r)
    run.refresh()
    return run


def judged(run: Run) -> str:
    run.refresh()
    return run.state


def test_a_launched_run_ends_with_its_exit_code_on_disk(begin: Callable[..., dict]) -> None:
    r = begin(steps=20)
    run = run_of(r)
    until(lambda: latest(r).get("exit") is not None)
    assert (run.path / "exit").read_text() == "0\n"
    assert judged(run) == "done"


@pytest.mark.parametrize(("code", "why"), [(3, "exit 3"), (137, "killed (out of memory?)")])
def test_a_failed_run_says_why(begin: Callable[..., dict], code: int, why: str) -> None:
    r = begin(steps=10, fail=code)
    run = run_of(r)
    until(lambda: latest(r).get("exit") is not None)
    run.record = latest(r)
    assert judged(run) == "failed"
    assert run.why == why
    assert code == 137 or run.error == "RuntimeError: CUDA out of memory"


def test_a_run_that_made_no_directory_is_shown_with_its_last_words(begin: Callable[..., dict], tmp_path: Path) -> None:
    r = begin(steps=1, fail=2)
    until(lambda: latest(r).get("exit") is not None)
    store = Store(tmp_path / "runs", launch.records)
    store.scan()
    store.refresh()
    (run,) = store.ordered()
    assert (run.state, run.why, run.error) == ("failed", "exit 2", "ValueError: nothing was made")
    store.trash(run)
    store.scan()
    assert not store.runs


def test_stop_saves_and_exits_with_workers_alive(begin: Callable[..., dict]) -> None:
    r = begin(steps=100_000, workers=2)
    run = run_of(r)
    workers = until(lambda: [p["pid"] for p in launch._descendants(run.process["pid"])])
    assert len(workers) == 2
    assert judged(run) == "running"
    send(run.process, signal.SIGINT)
    until(lambda: latest(r).get("exit") is not None)
    assert (run.path / "checkpoint.pt").exists()
    assert (run.path / "exit").read_text() == "130\n"
    assert judged(run) == "stopped"
    until(lambda: not any(process_stat(w) for w in workers))


def test_pause_and_go_on(begin: Callable[..., dict]) -> None:
    run = run_of(begin(steps=100_000, workers=1))
    send(run.process, signal.SIGSTOP, family=True)
    until(lambda: judged(run) == "paused")
    assert run.eta is None
    (worker,) = launch._descendants(run.process["pid"])
    until(lambda: process_stat(worker["pid"])[0] == "T")
    send(run.process, signal.SIGCONT, family=True)
    until(lambda: judged(run) == "running")
    assert run.eta is not None


def test_kill_ends_the_run_and_what_it_started_and_leaves_the_code(begin: Callable[..., dict]) -> None:
    r = begin(steps=100_000, workers=2)
    run = run_of(r)
    family = until(lambda: len(found := launch._descendants(run.process["pid"])) == 2 and found)
    send(run.process, signal.SIGKILL, family=True)
    until(lambda: latest(r).get("exit") == 137)
    until(lambda: not any(alive(p) for p in family))
    assert judged(run) == "failed"


def test_a_stop_file_ends_it_too(begin: Callable[..., dict]) -> None:
    r = begin(steps=100_000)
    run = run_of(r)
    (run.path / "STOP").touch()
    until(lambda: latest(r).get("exit") is not None)
    assert judged(run) == "stopped"


def test_resumed_from_here_a_run_is_starting_then_running(begin: Callable[..., dict], tmp_path: Path) -> None:
    first = begin(steps=30)
    run = run_of(first)
    until(lambda: latest(first).get("exit") is not None)
    words = ["fake_trainer.py", "--resume", str(run.path), "--steps", "100000"]
    folder = launch.launch(Launch(FAKE.path, words, {"runs_dir": str(run.path.parent)}, run.path.parent, run=run.name))
    store = Store(run.path.parent, launch.records)
    try:
        until(lambda: (store.scan(), store.refresh(), record(folder).get("run"))[2])
        assert record(folder)["run"] == run.name
        assert not (run.path / "exit").exists()
        assert [r.name for r in store.ordered()] == [run.name]
        assert judged(store.runs[run.name]) == "running"
    finally:
        send(record(folder)["child"], signal.SIGKILL)
    until(lambda: record(folder).get("exit") == 137)


def test_after_another_run_and_out_of_the_queue(begin: Callable[..., dict], tmp_path: Path) -> None:
    first = begin(steps=100_000)
    name = run_of(first).name
    second, third = begin(wait="after", after=name, steps=5), begin(wait="after", after=name, steps=5)
    store = Store(tmp_path / "runs", launch.records)
    until(lambda: latest(third).get("keeper"))
    until(lambda: latest(second).get("keeper"))
    store.scan()
    store.refresh()
    assert sorted(r.state for r in store.ordered()) == ["queued", "queued", "running"]
    send(latest(third)["keeper"], signal.SIGTERM)
    until(lambda: latest(third).get("exit") == 130)
    assert latest(second)["state"] == "queued"
    send(latest(first)["child"], signal.SIGINT)
    until(lambda: latest(second).get("exit") == 0)
    assert latest(third).get("run") is None


def test_first_come_first_served_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    cards = [{"uuid": f"GPU-{i}", "used": used * gib, "total": 80 * gib} for i, used in enumerate((79, 40, 10))]
    answers: list[object] = [RuntimeError("driver in trouble"), [], cards]  # what does not answer, or is full, is asked again

    def gpus() -> list[dict]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(launch, "gpus", gpus)
    monkeypatch.setattr(launch.time, "sleep", lambda _: None)
    keepers = []
    for n in ("001", "002"):
        folder = tmp_path / ".launch" / n
        folder.mkdir(parents=True)
        keeper = {**me()}
        fake_trainer.write(folder / "record.json", {"name": n, "wait": "gpu", "need": 30, "gpu": "", "root": str(tmp_path)})
        fake_trainer.write(folder / "state.json", {"state": "queued", "keeper": keeper})
        keepers.append(launch.Keeper(folder))
    assert keepers[1]._others_before()
    assert not keepers[0]._others_before()
    lock = keepers[0]._turn()
    assert keepers[0].record["gpu"] == "GPU-2"
    fake_trainer.write(keepers[0].dir / "state.json", {"state": "running", "keeper": me()})
    monkeypatch.setattr(launch.time, "sleep", lambda _: keepers[1]._cancel())
    keepers[1]._turn().close()
    assert keepers[1].cancelled  # the first one still holds the GPUs: it may not have taken its memory yet
    assert keepers[1].record["gpu"] == ""
    lock.close()


# ---- signals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"start_time": 1},
        {"boot_id": "another"},
        {"host": "elsewhere"},
        {"pid": 1},
        {"pid": "12"},
        {"pid": -1},
        {"start_time": None},
        {"pid": 2**22 + 9},
    ],
    ids=str,
)
def test_no_signal_reaches_another_process(change: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "60"])
    sent = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *a: sent.append(a))
    process = {**launch.process_of(child.pid), **change}
    try:
        with pytest.raises((ProcessLookupError, OSError)):
            send(process, signal.SIGKILL)
        assert not sent
        send(launch.process_of(child.pid), signal.SIGTERM)
        assert len(sent) == 1
    finally:
        child.kill()
        child.wait()


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["true"])
    process = launch.process_of(child.pid)
    until(lambda: process_stat(child.pid) is None)
    assert alive({**process, "start_time": process["start_time"] or 1}) is None
    child.wait()


def test_this_process_is_never_the_target(tmp_path: Path) -> None:
    make_run(tmp_path, rows=5, state="running", status={"process": me()})
    with pytest.raises(ProcessLookupError):
        send(me(), signal.SIGKILL)


# ---- machine --------------------------------------------------------------------------------------------------------------


def test_gpus_that_fail_or_hang_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = launch.Machine(tmp_path)

    def broken() -> list:
        raise RuntimeError("driver gone")

    monkeypatch.setattr(launch, "gpus", broken)
    machine.ask_once()
    assert machine.gpu_note == "GPU n/a: RuntimeError"
    monkeypatch.setattr(launch, "gpus", lambda: time.sleep(60))
    began = time.monotonic()
    machine.ask_once(seconds=0.1)
    assert machine.gpu_note == "GPU n/a: no answer"
    assert time.monotonic() - began < 20
    assert machine.host["cores"] >= 1


def test_what_similar_runs_took(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, rows=5)
    make_run(tmp_path, seed=1, rows=5)
    store = Store(tmp_path)
    store.scan()
    store.refresh()
    assert launch.similar(store.ordered(), "eagan.py", "quick") == (3 * 2**30, 200.0, 2)
    assert launch.similar(store.ordered(), "eagan.py", "paper") == (None, None, 0)
