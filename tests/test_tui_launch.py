"""Launching and steering: options read from source, command lines, the keeper of a run, signals that reach only the run."""

import contextlib
import importlib
import json
import re
import shlex
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from fake_trainer import make_run, me, write
from test_tui_runs import scanned

import common.cli
from ui import launch
from ui.launch import Launch, Option, Start, command, parse_command, read_script, scripts, seeds, send
from ui.runs import Run, alive, process_stat

ROOT, TESTS = Path(__file__).parents[1], Path(__file__).parent
FAKE = read_script(TESTS / "fake_trainer.py", (TESTS / "fake_trainer.py").read_text())
METHODS = ("adversarialnas", "autogan", "degas", "eagan")  # of the scripts at the root, some may be a user's own
SCRIPTS = [s for s in scripts(ROOT)[0] if s.path.stem in METHODS]


def until(what: Callable[[], object], seconds: float = 30.0) -> object:
    """What it returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "never happened"
        time.sleep(0.05)
    return found


# ---- options ------------------------------------------------------------------------------------------------------------


def test_every_method_can_be_launched_and_no_other_program_of_the_project() -> None:
    assert [s.path.stem for s in SCRIPTS] == list(METHODS)
    found, broken = scripts(ROOT)
    assert "tui.py" not in {*broken, *(s.path.name for s in found)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.path.stem)
def test_options_are_those_of_the_scripts_own_parser(script: launch.Script) -> None:
    module = importlib.import_module(script.path.stem)
    plain = lambda v: str(v) if isinstance(v, Path) else v  # noqa: E731
    fields = common.cli.options(module.Args)
    assert list(script.options) == [f.name for f, _ in fields]
    for f, about in fields:
        option = script.options[f.name]
        kinds = [t for t in (typing.get_args(f.type) or (f.type,)) if t is not type(None)]
        assert (option.default, option.help, option.panel) == (plain(f.default), about["help"], about["panel"])
        assert {"min": option.low, "max": option.high} == {"min": None, "max": None} | about["limits"]
        assert option.optional == (type(None) in typing.get_args(f.type))
        if option.choices:
            assert list(option.choices) == kinds
        else:
            assert option.kind == {int: "int", float: "float", bool: "bool", str: "text", Path: "path"}[kinds[0]]
    assert script.presets == {k: {n: plain(v) for n, v in p.items()} for k, p in module.PRESETS.items()}


def test_a_copied_script_appears_by_itself_and_a_broken_one_says_why(tmp_path: Path) -> None:
    source = (TESTS / "fake_trainer.py").read_text()
    (tmp_path / "mine.py").write_text(source.replace('opt("shapes"', 'opt("stl10"'))
    (tmp_path / "torn.py").write_text(source.partition('"smoke": {')[0])
    (tmp_path / "other.py").write_text("print('no arguments here')")
    (tmp_path / "evil.py").write_text("class Args:\n    x: int = __import__('os').system('touch here')\nPRESETS = {}\n")
    found, broken = scripts(tmp_path)
    assert [(s.path.name, s.options["dataset"].default) for s in found] == [("mine.py", "stl10")]
    assert broken.keys() == {"torn.py", "evil.py"}
    assert "__import__" in broken["evil.py"]
    assert not (tmp_path / "here").exists()


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., launch.Script]:
    """Read a script that lies beside links to eagan.py and common/; files: further ones, by name."""

    def write_and_read(source: str, **files: str) -> launch.Script:
        folder = tmp_path / "scripts"
        folder.mkdir()
        for name in ("eagan.py", "common"):
            (folder / name).symlink_to(ROOT / name)
        for name, text in {**files, "mine": source}.items():
            (folder / f"{name}.py").write_text(text)
        return read_script(folder / "mine.py", source)

    return write_and_read


EAGAN = SCRIPTS[-1]


@pytest.mark.parametrize("preset", EAGAN.presets)
def test_a_default_is_that_of_the_preset_else_of_the_class(preset: str) -> None:
    defaults = EAGAN.defaults(preset)
    assert defaults == {name: o.default for name, o in EAGAN.options.items()} | EAGAN.presets[preset]
    named = ["--preset", preset] if preset != "paper" else []
    assert command(EAGAN, defaults | {"g_batch": 7777}) == ["eagan.py", *named, "--g-batch", "7777"]


@pytest.mark.parametrize(
    ("head", "base"),
    [
        ("import eagan", "eagan.Args"),
        ("import eagan as e", "e.Args"),
        ("from eagan import Args as Base", "Base"),
        ("from eagan import Args as Other\nclass Base(Other): amp: bool = False", "Base"),
        ("from again import Base", "Base"),
    ],
)
def test_a_copy_may_inherit_from_another_script(read: Callable[..., launch.Script], head: str, base: str) -> None:
    """A field without a panel keeps its range, and its help unless another is given; a source alone replaces the source."""
    script = read(
        f"""{head}
from common import cli
LOW = 3
class Args({base}):
    rank: int = cli.opt(1, "Rank. [mine]", "Search", 0, 5)
    word: str = cli.opt("a" + "b", help="A word. [mine]", panel="Words")
    rounds: int = 9
    population: int = cli.opt(80, "[mine]", min=LOW)
    amp: bool = cli.opt(True, "Other words. [mine]")
    g_batch: float = cli.opt(0.5, "Another thing. [mine]", "Data")
    dataset: str
PRESETS = {{}}
""",
        again="LOW = 4\nfrom eagan import Args as Base",
    )
    old = EAGAN.options
    text = old["population"].help.rpartition("[")[0] + "[mine]"
    changed = {
        "rank": Option("rank", "int", 1, "Rank. [mine]", "Search", 0, 5),
        "word": Option("word", "text", "ab", "A word. [mine]", "Words"),
        "rounds": replace(old["rounds"], default=9),
        "population": replace(old["population"], default=80, help=text, low=3),
        "amp": replace(old["amp"], default=True, help="Other words. [mine]"),
        "g_batch": Option("g_batch", "float", 0.5, "Another thing. [mine]", "Data"),
    }
    assert script.options == old | changed
    panels = list(dict.fromkeys(o.panel for o in script.options.values()))
    assert panels == ["Run", "Data", "Search", "Train", "Eval", "Words"]


def test_of_two_bases_the_first_one_wins_and_a_name_means_what_it_does_where_it_stands(
    read: Callable[..., launch.Script],
) -> None:
    script = read(
        "from b import A, B, TOP\nN = 9\nclass Args(A, B): rounds: int = TOP\nPRESETS = {}",
        b="import eagan\nN = 1\nTOP = N + 6\nclass A(eagan.Args): seed: int = N\n"
        "class B(eagan.Args):\n    seed: int = 2\n    population: int = N + 3",
    )
    assert [script.options[name].default for name in ("seed", "population", "rounds")] == [1, 4, 7]


@pytest.mark.parametrize(
    "presets",
    [
        '{**eagan.PRESETS, "mine": dict(seed=SEED, amp=True)}',
        'eagan.PRESETS | {"mine": {"seed": 8, "amp": True}}',
        'named | dict(mine=dict(few, amp=not_false))',
        'dict(**named, mine=few | dict(amp=True))',
        'dict(named, mine={**few, **dict(amp=True)})',
    ],
)  # fmt: skip
def test_presets_may_be_made_of_others(read: Callable[..., launch.Script], presets: str) -> None:
    head = "import eagan\nfrom eagan import PRESETS as named\nSEED = 8\nfew = dict(seed=SEED)\n"
    script = read(f"{head}not_false: bool = True\nclass Args(eagan.Args): pass\nPRESETS = {presets}\n")
    assert script.presets == EAGAN.presets | {"mine": {"seed": 8, "amp": True}}


@pytest.mark.parametrize(
    ("source", "files", "wrong"),
    [
        ("class Args(Base): pass", {}, "Base .* mine"),
        ("from gone import Base\nclass Args(Base): pass", {}, "gone .* No such file"),
        ("import eagan\nclass Args(eagan.Arg): pass", {}, "Arg .* eagan"),
        ("from torn import Base\nclass Args(Base): pass", {"torn": "class Base("}, "torn .* '[(]'"),
        ("from vast import Base\nclass Args(Base): pass", {"vast": "#" * (4 << 20) + "#"}, "vast .* 4096"),
        ("from bad import Base\nclass Args(Base): pass", {"bad": "class Base:\n    x: int = f()"}, "x: .*f[(][)]"),
        ("from ..outside import Base\nclass Args(Base): pass", {}, "Base .* mine"),
        ("from .. import outside\nclass Args(outside.Base): pass", {}, "outside.Base .* mine"),
        ("class Args(Args): pass", {}, "Args"),
        ("import b\nclass Args(b.B): pass", {"b": "import mine\nclass B(mine.Args): pass"}, "Args"),
        ("from b import B\nclass Args(B): pass", {"b": "from c import B", "c": "from b import B"}, r"^B\b"),
        ("Base = 3\nclass Args(Base): pass", {}, "3"),
        ("class Args: x: int = N\nN = N", {}, "x: "),
    ],
)
def test_a_base_that_cannot_be_read_is_named(
    read: Callable[..., launch.Script], tmp_path: Path, source: str, files: dict[str, str], wrong: str
) -> None:
    (tmp_path / "outside.py").write_text("class Base: x: int = 1")
    with pytest.raises(ValueError, match=wrong):
        read(f"PRESETS = {{}}\n{source}\n", **files)
    assert "mine.py" in scripts(tmp_path / "scripts")[1]


@pytest.mark.parametrize(
    "source",
    [
        *(f"class Args: x: {field}\nPRESETS = {{}}" for field in ("None = 1", "int = -'a'", "int = " + "-" * 10_000 + "1")),
        *(f"class Args: pass\nPRESETS = {presets}" for presets in ("{[1]: 2}", "{**3}", "dict(1, 2)", "{} | 1", "{'a': 1}")),
    ],
    ids=lambda s: s[:50],
)
def test_no_source_can_end_the_ui(tmp_path: Path, source: str) -> None:
    (tmp_path / "a.py").write_text(source)
    found, broken = scripts(tmp_path)
    assert not found
    assert broken["a.py"]


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        *[("seed", "-1", "≥ 0"), ("steps", "0", "≥ 1"), ("steps", "1000001", "≤ 1000000"), ("preset", "big", "paper, smoke")],
        *[("steps", "1.5", "."), ("g_lr", "fast", "."), ("g_lr", "nan", "."), ("amp", "maybe", "true"), ("dataset", " ", ".")],
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
    with pytest.raises(ValueError, match=text or "''"):
        seeds(text)


# ---- commands -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [FAKE, *SCRIPTS], ids=lambda s: s.path.stem)
def test_a_pasted_command_restores_every_value(script: launch.Script) -> None:
    for preset in script.presets:
        changes = {"seed": 7, "dataset": "a folder/it's", "preset": preset, "g_lr": 1e-5, "amp": True}
        values = script.defaults(preset) | changes
        words = command(script, values)
        text = f"CUDA_VISIBLE_DEVICES=1 python {shlex.join(words)}"
        assert parse_command(text, [*SCRIPTS, FAKE]) == (script, values, Start("1"))
        assert parse_command(text.replace(" --", " \\\n  --"), [*SCRIPTS, FAKE])[1] == values
        assert len(words) < 14  # only what differs from the preset


def test_a_command_run_by_a_shell_gives_the_same_arguments(tmp_path: Path) -> None:
    values = FAKE.defaults("smoke") | dict(runs_dir=str(tmp_path / "two words"), seed=5, g_lr=3e-5, amp=True, pause=0.0)
    line = shlex.join([sys.executable, *command(FAKE, values)])
    subprocess.run(line, shell=True, cwd=TESTS, check=True)
    (config,) = (tmp_path / "two words").glob("*/config.json")
    assert json.loads(config.read_text())["args"] == values
    assert values["steps"] == 40


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        *[("", "fake_trainer.py"), ("python nothing.py", "fake_trainer.py"), ("python fake_trainer.py 'open", ".")],
        *[("python fake_trainer.py --sed 3", "--sed"), ("python fake_trainer.py --seed", "--seed")],
        ("python fake_trainer.py --seed -3", "--seed -3"),
    ],
)
def test_a_command_that_cannot_be_read_says_why(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_command(text, [FAKE])


@pytest.mark.parametrize(
    ("before", "start"),
    [
        ("", Start()),
        *[("python3 -u", Start()), (f"cd {TESTS} && python", Start()), (f"{sys.executable}", Start())],
        ("A=1 CUDA_VISIBLE_DEVICES=2,3 B='x y' python", Start("2,3", {"A": "1", "B": "x y"})),
        ("env CUDA_VISIBLE_DEVICES= python", Start(env={"CUDA_VISIBLE_DEVICES": ""})),
        ("torchrun --nproc-per-node 4", Start(torchrun=("--nproc-per-node", "4"))),
        ("N=1 python -m torch.distributed.run --standalone", Start(env={"N": "1"}, torchrun=("--standalone",))),
    ],
)
def test_how_a_pasted_command_starts_its_script_is_kept(before: str, start: Start) -> None:
    script, values, found = parse_command(f"{before} fake_trainer.py --seed 7", [FAKE])
    assert (values["seed"], found) == (7, start)
    words = command(script, values)
    assert parse_command(start.line(words), [FAKE]) == (script, values, start)
    record = {"gpu": start.gpu, "env": start.env, "script": "fake_trainer.py", "words": start.words(words)}
    assert Start.of(record) == start


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cd /elsewhere && python fake_trainer.py", "/elsewhere"),
        *[("cd tests", "cd"), ("nohup python fake_trainer.py", "nohup"), ("uv run fake_trainer.py", "uv run")],
        *[("srun -n 2 python fake_trainer.py", "srun"), ("python -O fake_trainer.py", "-O")],
        *[(f"python fake_trainer.py --dataset a{end}", end[:2].strip()) for end in (" > log", " && b", ";", " | tee b", " &")],
        ("/other/bin/python fake_trainer.py", "/other/bin"),
        ("python /other/fake_trainer.py", "/other/fake_trainer.py"),
        *[(f"python fake_trainer.py --runs-dir {path}", path[0]) for path in ("$HOME/runs", "`pwd`", "~/runs")],
        ('python fake_trainer.py --runs-dir "$HOME"', "$"),
        ("A=1 && python fake_trainer.py", "&&"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_of_a_pasted_command_is_refused(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        parse_command(text, [FAKE])


def test_a_dollar_in_single_quotes_is_a_dollar() -> None:
    values = FAKE.defaults("paper") | {"dataset": "a $b ~"}
    assert parse_command(Start().line(command(FAKE, values)), [FAKE])[1] == values


# ---- launching ------------------------------------------------------------------------------------------------------------


class Launched:
    """A launch of the fake trainer, by the folder of its record."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder

    @property
    def record(self) -> dict:
        return next((r for r in launch.records(self.dir.parents[1]) if r["dir"] == str(self.dir)), {})

    def run(self) -> Run:
        """As soon as its directory is known."""
        run = Run(self.dir.parents[1] / until(lambda: self.record.get("run")))
        run.record = self.record
        return run

    def code(self) -> int:
        """The exit code, as soon as there is one."""
        until(lambda: self.record.get("exit") is not None)
        return self.record["exit"]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Launch the fake trainer; every process is ended afterwards."""
    made = []

    def start(wait: str = "now", after: str = "", run: str = "", how: Start | None = None, **flags: object) -> Launched:
        how = how or Start()
        values = FAKE.defaults("paper") | {"runs_dir": str(tmp_path / "runs"), "pause": 0.01, **flags}
        what = Launch(FAKE.path, how.words(command(FAKE, values)), values, tmp_path / "runs", wait, after=after, run=run)
        what.gpu, what.env = how.gpu, how.env
        made.append(Launched(launch.launch(what)))
        return made[-1]

    yield start
    for launched in made:
        for who in ("child", "keeper"):
            process = launched.record.get(who) or {}
            with contextlib.suppress(ProcessLookupError):  # it has ended
                send(process, signal.SIGKILL, family=True)


def judged(run: Run) -> str:
    run.refresh()
    return run.state


@pytest.mark.parametrize(
    ("code", "state", "why", "error"),
    [(0, "done", "", ""), (3, "failed", "3", "RuntimeError: CUDA out of memory"), (137, "failed", "memory", "")],
)
def test_a_launched_run_ends_with_its_exit_code_on_disk(
    begin: Callable[..., Launched], code: int, state: str, why: str, error: str
) -> None:
    started = begin(steps=20, fail=code)
    run = started.run()
    assert started.code() == code
    assert (run.path / "exit").read_text() == f"{code}\n"
    assert judged(run) == state
    assert why in run.why
    assert run.error == error


def test_a_run_that_made_no_directory_is_shown_with_its_last_words(begin: Callable[..., Launched], tmp_path: Path) -> None:
    assert begin(steps=1, fail=2).code() == 2
    store = scanned(tmp_path / "runs")
    (run,) = store.ordered()
    assert (run.state, run.error) == ("failed", "ValueError: nothing was made")
    assert "2" in run.why
    store.trash(run)
    store.scan()
    assert not store.runs


def test_a_run_gets_the_variables_it_was_given(begin: Callable[..., Launched]) -> None:
    started = begin(steps=100_000, how=Start("1", {"PLACE": "x y"}))
    pid = until(lambda: started.record.get("run") and started.record["child"]["pid"])
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert {"PLACE=x y", "CUDA_VISIBLE_DEVICES=1"} <= set(variables)


@pytest.mark.parametrize(
    ("how", "code", "state"),
    [(signal.SIGINT, 130, "stopped"), ("STOP", 130, "stopped"), (signal.SIGKILL, 137, "failed")],
    ids=str,
)
def test_a_run_is_ended_with_its_workers(begin: Callable[..., Launched], how: object, code: int, state: str) -> None:
    started = begin(steps=100_000, workers=2)
    run = started.run()
    assert judged(run) == "running"
    workers = until(lambda: len(found := launch._descendants(run.process["pid"])) == 2 and found)
    if how == "STOP":
        (run.path / "STOP").touch()
    else:
        send(run.process, how, family=how == signal.SIGKILL)
    assert started.code() == code
    assert judged(run) == state
    assert (run.path / "exit").read_text() == f"{code}\n"
    assert (run.path / "checkpoint.pt").exists() == (state == "stopped")
    until(lambda: not any(alive(w) for w in workers))


def test_pause_and_go_on(begin: Callable[..., Launched]) -> None:
    run = begin(steps=100_000, workers=1).run()
    assert judged(run) == "running"
    (worker,) = until(lambda: launch._descendants(run.process["pid"]))
    for number, state, letters in ((signal.SIGSTOP, "paused", "T"), (signal.SIGCONT, "running", "RS")):
        send(run.process, number, family=True)
        until(lambda s=state: judged(run) == s)
        until(lambda s=letters: process_stat(worker["pid"])[0] in s)
        assert (run.eta is None) == (state == "paused")


def test_resumed_from_here_a_run_is_starting_then_running(begin: Callable[..., Launched]) -> None:
    first = begin(steps=30)
    run = first.run()
    first.code()
    again = begin(run=run.name, resume=str(run.path), steps=100_000)
    assert again.run().name == run.name
    assert not (run.path / "exit").exists()
    store = scanned(run.path.parent)
    assert {name: judged(run) for name, run in store.runs.items()} == {run.name: "running"}
    send(again.record["child"], signal.SIGKILL)
    assert again.code() == 137


def test_after_another_run_and_out_of_the_queue(begin: Callable[..., Launched], tmp_path: Path) -> None:
    first = begin(steps=100_000)
    second, third = (begin(wait="after", after=first.run().name, steps=5) for _ in range(2))
    until(lambda: second.record.get("keeper") and third.record.get("keeper"))
    assert sorted(r.state for r in scanned(tmp_path / "runs").ordered()) == ["queued", "queued", "running"]
    send(third.record["keeper"], signal.SIGTERM)
    assert third.code() == 130
    assert second.record["state"] == "queued"
    send(first.record["child"], signal.SIGINT)
    assert second.code() == 0
    assert third.record.get("run") is None


def test_seeds_run_one_after_another(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    base = FAKE.defaults("paper") | {"runs_dir": str(root), "pause": 0.02, "steps": 20}
    made = [base | {"seed": seed} for seed in (0, 1, 2)]
    folders = launch.launch_all([Launch(FAKE.path, command(FAKE, v), v, root) for v in made], together=False)
    launched = [Launched(folder) for folder in folders]
    try:
        assert [x.code() for x in launched] == [0, 0, 0]
        runs = [x.run().path for x in launched]
        begun = [(run / "config.json").stat().st_mtime for run in runs]
        ended = [(run / "exit").stat().st_mtime for run in runs]
        assert ended[0] <= begun[1]
        assert ended[1] <= begun[2]
    finally:
        for x in launched:
            with contextlib.suppress(ProcessLookupError):
                send(x.record.get("keeper") or {}, signal.SIGKILL, family=True)


def test_a_seed_that_waits_for_the_one_before_holds_no_other_launch_up(tmp_path: Path) -> None:
    for n, after in (("001", "another"), ("002", "")):
        folder = tmp_path / ".launch" / n
        folder.mkdir(parents=True)
        write(folder / "record.json", {"name": n, "wait": "gpu", "after": after})
        write(folder / "state.json", {"state": "queued", "keeper": me()})
    assert not launch.Keeper(folder)._others_before()


def test_first_come_first_served_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    cards = [{"uuid": f"GPU-{i}", "used": used * gib, "total": 80 * gib} for i, used in enumerate((79, 40, 10))]
    answers = [RuntimeError("driver in trouble"), [], cards]  # what does not answer, or is full, is asked again
    monkeypatch.setattr(launch, "gpus", Mock(side_effect=answers))
    monkeypatch.setattr(launch.time, "sleep", lambda _: None)
    keepers = []
    for n in ("001", "002"):
        folder = tmp_path / ".launch" / n
        folder.mkdir(parents=True)
        write(folder / "record.json", {"name": n, "wait": "gpu", "need": 30, "gpu": "", "root": str(tmp_path)})
        write(folder / "state.json", {"state": "queued", "keeper": me()})
        keepers.append(launch.Keeper(folder))
    first, second = keepers
    assert [keeper._others_before() for keeper in keepers] == [False, True]
    lock = first._turn()
    assert first.record["gpu"] == "GPU-2"
    write(first.dir / "state.json", {"state": "running", "keeper": me()})
    monkeypatch.setattr(launch.time, "sleep", lambda _: setattr(second, "cancelled", True))
    second._turn().close()
    assert second.cancelled  # the first one still holds the GPUs: it may not have taken its memory yet
    assert second.record["gpu"] == ""
    lock.close()


# ---- signals, machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        *[{"start_time": 1}, {"start_time": None}, {"boot_id": "another"}, {"host": "elsewhere"}],
        *[{"pid": 1}, {"pid": "12"}, {"pid": -1}, {"pid": 2**22 + 9}, "the interface itself"],
    ],
    ids=str,
)
def test_a_signal_reaches_this_very_process_and_never_the_user_interface(
    change: dict | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, change = [], me() if isinstance(change, str) else change
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *a: sent.append(a))
    child = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(OSError, match=r"."):
            send({**launch.process_of(child.pid), **change}, signal.SIGKILL)
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


def test_gpus_that_fail_or_hang_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = launch.Machine(tmp_path)
    monkeypatch.setattr(launch, "gpus", lambda: 1 / 0)
    machine.ask_once()
    assert "ZeroDivisionError" in machine.gpu_note
    monkeypatch.setattr(launch, "gpus", lambda: time.sleep(60))
    machine.ask_once(seconds=0.1)
    assert machine.gpu_note
    assert "ZeroDivisionError" not in machine.gpu_note
    assert machine.host["cores"] >= 1


def test_what_similar_runs_took(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, seed=seed, rows=5)
    runs = scanned(tmp_path).ordered()
    assert launch.similar(runs, "eagan.py", "quick") == (3 * 2**30, 200.0, 2)
    assert launch.similar(runs, "eagan.py", "paper") == (None, None, 0)


# ---- the form -------------------------------------------------------------------------------------------------------------


def launched(root: Path) -> list[dict]:
    return [r for r in launch.records(root) if r.get("args")]


@pytest.fixture
def form(tmp_path: Path) -> Iterator[tuple]:
    """(app, pilot, form, runs) with runs that end at once."""
    from test_tui import driven, fill_form

    with driven(tmp_path / "runs") as (app, pilot):
        yield app, pilot, fill_form(pilot, **{"-steps": 2, "-pause": 0}), tmp_path / "runs"


def test_a_launch_that_its_dry_run_refuses_does_not_start(form: tuple) -> None:
    app, pilot, page, root = form
    pilot.do(page.set, "-dataset", "nosuchset")
    pilot.sees("no such folder")  # by itself, after a second
    checked = page.dry[page.command()]
    assert (checked.code, checked.output.splitlines()[0]) == (2, "2 G updates of nosuchset")
    pilot.press("ctrl+r")
    pilot.until(lambda: page.dry[page.command()] is not checked and page.dry[page.command()].code == 2)
    pilot.settle()
    assert app.screen is page
    assert not launched(root)
    pilot.do(page.set, "-dataset", "shapes")
    pilot.press("ctrl+r")
    pilot.until(lambda: app.screen is not page)
    assert [r["args"]["dataset"] for r in launched(root)] == ["shapes"]


def test_a_dry_run_is_kept_by_its_command_and_ends_with_the_form(form: tuple) -> None:
    _, pilot, page, _ = form
    pilot.sees("2 G updates of shapes", "in all", "ready")
    first = page.dry[page.command()]
    pilot.do(page.set, "-steps", "3")
    pilot.sees("3 G updates of shapes")
    pilot.do(page.set, "-steps", "2")
    pilot.do(page.rehearse)
    assert page.dry[page.command()] is first
    assert len(page.dry) == 2
    slow = launch.DryRun(replace(page.launch_of(0), words=["-c", "import time; time.sleep(60)"]), lambda: None)
    page.dry["slow"] = slow
    pilot.until(lambda: slow.process)
    pilot.press("escape")
    pilot.until(lambda: slow.code == -signal.SIGKILL)


def test_a_run_that_waits_may_be_queued_though_its_dry_run_fails_now(form: tuple) -> None:
    app, pilot, page, root = form
    (root / "x").mkdir(parents=True)
    write(root / "x" / "status.json", {"state": "running", "process": me()})
    pilot.until(lambda: "x" in app.state.store.runs)
    for key, value in {"wait": "after", "after": "x", "-dataset": "nosuchset"}.items():
        pilot.do(page.set, key, value)
    pilot.press("ctrl+r")
    pilot.until(lambda: app.screen is not page)
    assert not launched(root)
    pilot.press("y")
    (record,) = pilot.until(lambda: launched(root))
    pilot.until(lambda: launched(root)[0].get("keeper"))
    send(launched(root)[0]["keeper"], signal.SIGTERM)
    assert record["after"] == "x"


@pytest.mark.parametrize(
    ("values", "gpus", "asks"),
    [
        *[({"-device": "cpu"}, 1, True), ({"-device": "auto"}, 0, True), ({"-device": "auto"}, 1, False)],
        *[({"-device": "cpu", "preset": "smoke"}, 0, False), ({"-device": "auto", "gpu": "-1"}, 1, True)],
    ],
)
def test_it_asks_before_a_paper_scale_run_on_a_cpu(form: tuple, values: dict, gpus: int, asks: bool) -> None:
    app, pilot, page, root = form
    app.state.machine.left.set()  # what the machine has is set here
    one = {"index": 0, "used": 0, "total": 2**36, "name": "", "percent": 0, "watts": 0, "degrees": 0}
    app.state.machine.gpus = [one] * gpus
    for key, value in values.items():
        pilot.do(page.set, key, value)
    pilot.press("ctrl+r")
    pilot.until(lambda: app.screen is not page)
    if asks:
        assert not launched(root)
        pilot.press("y")
    pilot.until(lambda: launched(root))


@pytest.mark.parametrize("order", ["in turn", "together"])
def test_seeds_run_in_turn_unless_asked_otherwise(form: tuple, order: str) -> None:
    _, pilot, page, root = form
    assert "order" not in dict(page.rows())
    pilot.do(page.set, "seeds", "0-1")
    assert page.value("order") == "in turn"
    pilot.do(page.set, "order", order)
    pilot.press("ctrl+r")
    pilot.until(lambda: len(launched(root)) == 2)
    told = [json.loads((Path(r["dir"]) / "record.json").read_text())["after"] for r in launched(root)]
    assert told == ["", launched(root)[0]["name"] if order == "in turn" else ""]
    pilot.until(lambda: all(r.get("exit") == 0 for r in launched(root)))


# ---- the command line -----------------------------------------------------------------------------------------------------


def test_json_lists_runs_and_its_exit_code_tells_how_they_stand(
    tmp_path: Path, program: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    assert program("tui.py", "--json")[0] == 4
    make_run(root, seed=0, rows=20)
    make_run(root, seed=1, rows=20, state="failed")
    make_run(root, seed=2, rows=20, state="running", status={"process": me()})
    config = root / "eagan-cifar10-s0-20260101-000000" / "config.json"
    config.write_text(config.read_text().replace("0.0002", "NaN"))
    for words, seeds_, code in [
        *[(["seed=0"], [0], 0), (["seed=1"], [1], 1), (["seed=2"], [2], 3), (["seed=9"], [], 4)],
        *[([], [0, 1, 2], 3), ([root, "seed=1"], [1], 1), (["cifar10", "--filter", "seed=0"], [0], 0)],
    ]:
        found, out, _ = program("tui.py", "--json", *words)
        made = json.loads(out, parse_constant=pytest.fail)
        assert (made["schema"], [r["seed"] for r in made["runs"]], found) == (1, seeds_, code), words
    assert program("tui.py", "--json", "fid<low")[0] == 2
    (run,) = json.loads(program("tui.py", "--json", "seed=0")[1])["runs"]
    rows = [json.loads(line) for line in (config.parent / "metrics.jsonl").read_text().splitlines()]
    assert run["last"]["fid"] == next(r["eval/fid"] for r in reversed(rows) if "eval/fid" in r)
    assert (run["state"], run["step"], run["total"], run["args"]["g_lr"]) == ("done", 200, 200, None)


@pytest.mark.parametrize("words", [["--plain"], []])
def test_a_query_is_not_dropped_where_it_means_nothing(tmp_path: Path, words: list[str], program: Callable) -> None:
    assert program("tui.py", tmp_path, "seed=0", *words)[0] == 2


def test_a_rerun_asks_for_what_the_run_was_asked_for(tmp_path: Path) -> None:
    """Not for what the script made of it: --size 0 is not frozen as the size that the images had."""
    script = launch.read_script(tmp_path / "mine.py", (TESTS / "fake_trainer.py").read_text())
    folder = tmp_path / "mine-s3-20260101-000000"
    folder.mkdir()
    asked = ["mine.py", "--steps", "70", "--seed", "3", "--resume", ""]
    config = {"script": "mine.py", "args": {"steps": 70, "seed": 3, "workers": 2, "runs_dir": "/elsewhere"}, "argv": asked[:5]}
    (folder / "config.json").write_text(json.dumps(config))
    run = Run(folder)
    run.refresh()
    values = launch.values_of(script, run)
    assert (values["steps"], values["seed"]) == (70, 3)
    assert values["workers"] == script.options["workers"].default != 2
    assert values["runs_dir"] == "/elsewhere"  # a path means the folder that it meant then
    (folder / "config.json").write_text(json.dumps(config | {"argv": [*asked[:5], "--gone", "1"]}))
    run.refresh()
    assert launch.values_of(script, run)["workers"] == 2  # a command line that cannot be read: the values of the run
