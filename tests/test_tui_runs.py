"""Run directories as the terminal UI reads them: hostile files, states, queries, smoothing, logs."""

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_trainer import dominates, make_run, me, write

from ui import launch
from ui.runs import (
    Columns,
    Ema,
    Log,
    Run,
    Store,
    Tail,
    clean,
    ended,
    fid_label,
    front,
    hypervolume,
    ordered,
    parse_lines,
    query,
)

ROOT = Path(__file__).parents[1]


def opened(path: Path) -> Run:
    run = Run(path)
    run.refresh()
    while run.load(1.0):
        pass
    return run


def append(path: Path, text: str) -> None:
    with open(path, "a") as f:
        f.write(text)


def test_the_ui_imports_no_torch_and_runs_imports_no_numpy() -> None:
    code = "import sys, tui; assert 'torch' not in sys.modules and 'common' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_score_names_are_those_of_the_runs() -> None:
    from common.run import fid_label as written

    for net in ("inception-2048", "inception-768", "inception-64", "compact"):
        assert fid_label(net) == written(net)
    assert [fid_label(n, "IS") for n in ("inception-2048", "inception-64", "compact")] == ["IS", "IS", "IS(compact)"]


# ---- files that may be anything -----------------------------------------------------------------------------------------


def test_tail_reads_whole_lines_and_begins_anew_when_the_file_does(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    tail = Tail(file)
    assert tail.read() == (False, [])
    file.write_text('{"a": 1}\n{"a": 2')
    assert [line for _, line in tail.read()[1]] == [b'{"a": 1}']
    append(file, "}\n")
    assert tail.read() == (False, [(9, b'{"a": 2}')])
    file.write_text('{"a": 3}\n')  # shorter
    assert tail.read() == (True, [(0, b'{"a": 3}')])
    file.write_text('{"a": 4}\n{"a": 5}\n')  # rewritten and already longer, as a resumed run does
    assert [line for _, line in tail.read()[1]] == [b'{"a": 4}', b'{"a": 5}']
    other = tmp_path / "other"
    other.write_text('{"a": 4}\n{"a": 5}\n{"a": 6}\n')
    os.replace(other, file)  # another inode
    anew, lines = tail.read()
    assert anew
    assert len(lines) == 3
    file.unlink()
    assert tail.read() == (True, [])


def test_tail_skips_a_line_without_end_and_goes_on_behind_it(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_bytes(b"x" * 5000 + b'\n{"a": 1}\n')
    tail, found = Tail(file, longest=1000), []
    for _ in range(20):
        found += [line for _, line in tail.read()[1]]
    assert found == [b'{"a": 1}']
    assert tail.bad == 1


HOSTILE = {
    "torn": b'{"step": 1, "loss/g": 0.5}\n{"step": 2, "lo',
    "binary": bytes(range(256)) * 20 + b"\n",
    "list": b"[1, 2]\n3\nnull\n",
    "nested": b"[" * 100_000 + b"\n",
    "huge number": b'{"step": 1' + b"0" * 5000 + b"}\n",
    "infinite": b'{"step": Infinity, "loss/g": NaN}\n{"step": 1, "loss/g": NaN, "loss/d": -Infinity, "eval/fid": null}\n',
    "other kinds": b'{"step": "one", "eval/net": {}}\n{"step": 2, "eval/fid": "low", "eval/net": [1], "stage": 7, "t": "x"}\n',
    "surrogate": b'{"step": 3, "stage": "\\ud800\\u001b[31m[red]", "eval/net": "\\ud800", "eval/fid": 1.0}\n',
    "keys": b'{"step": 4, "' + b"/k" * 300 + b'": 1}\n',
    "two in a line": b'{"step": 1},{"step": 2}\n\n',
}


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "search.jsonl", "status.json", "config.json", "genotype.json", "tags.json", "exit"]
)
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_no_content_of_a_file_raises(tmp_path: Path, name: str, content: bytes) -> None:
    run_dir = make_run(tmp_path, rows=20)
    (run_dir / name).write_bytes(content)
    everything_shown(opened(run_dir))


def everything_shown(run: Run) -> None:
    """Draw every page of a run, and every export."""
    from ui import pages, report

    view = pages.View()
    for width in (60, 120):
        for lines in (
            *(pages.header(run, width), pages.architecture(run, width, 30, view), pages.search(run, width, 30, view)),
            *(
                pages.configuration(run, width),
                pages.compare(run, run, width, view),
                pages.seeds([run]),
                pages.distances([run, run]),
            ),
        ):
            assert all(isinstance(text, str) for line in lines for text, _ in line)
    for metric in pages.metrics(run):
        pages.points(run, metric)
    store = Store(run.path.parent)
    assert all(isinstance(x, str) for x in report.plain_lines(store, [run]))
    assert report.markdown([run])
    report.metrics_csv([run])
    report.html_report([run], "x")


@pytest.mark.parametrize("kind", ["loop", "pipe", "folder", "device", "large", "unreadable"])
def test_no_kind_of_file_raises_or_blocks(tmp_path: Path, kind: str) -> None:
    run_dir = make_run(tmp_path, rows=20)
    for name in ("metrics.jsonl", "search.jsonl", "status.json", "log.txt", "genotype.json", "exit"):
        path = run_dir / name
        path.unlink(missing_ok=True)
        match kind:
            case "loop":
                path.symlink_to(path)
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "device":
                path.symlink_to("/dev/zero")
            case "large":
                with open(path, "wb") as f:
                    f.truncate(5 << 30)
            case "unreadable":
                path.write_text("{}")
                path.chmod(0)
    began = time.monotonic()
    run = Run(run_dir)
    run.refresh()
    run.peek()
    for _ in range(5):
        run.load(0.05)
    log = Log(run_dir / "log.txt")
    log.update(1 << 20)
    everything_shown(run)
    assert time.monotonic() - began < 60  # it ends; how fast is benchmark/tui.py's to tell
    assert kind == "unreadable" or "status.json" in run.problems


def test_bad_lines_are_counted_and_later_ones_read(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, rows=20)
    before = opened(run_dir)
    append(run_dir / "metrics.jsonl", "junk\n[1]\n" + json.dumps({"step": 999, "loss/g": math.nan}) + "\n")
    run = opened(run_dir)
    assert (before.bad, run.bad) == (0, 2)
    assert run.columns.step[-1] == 999
    assert math.isnan(run.column("loss/g")[2][-1])
    assert run.columns.nans == 1


def test_the_list_needs_only_the_end_of_a_long_file(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, rows=2000)
    whole, run = opened(run_dir), Run(run_dir)
    run.refresh()
    run.peek()
    assert not run.columns.step
    assert (run.last, run.step) == (whole.last, whole.step)
    assert run.last["fid"] is not None


def test_rows_of_before_a_resumption_are_forgotten(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, rows=20)
    run = opened(run_dir)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    os.truncate(run_dir / "metrics.jsonl", sum(map(len, lines[:5])))
    append(run_dir / "metrics.jsonl", "".join(json.dumps({"step": 50 + i, "loss/g": 7.0}) + "\n" for i in range(200)))
    while run.load(1.0):
        pass
    assert list(run.columns.step)[5:] == [50.0 + i for i in range(200)]


def test_parsing_all_at_once_equals_parsing_by_line() -> None:
    assert parse_lines([b'{"a": 1}', b'{"b": 2}']) == ([{"a": 1}, {"b": 2}], 0)
    assert parse_lines([b'{"a": 1}', b"{}, {}", b"nope", b'{"b": 2}']) == ([{"a": 1}, {"b": 2}], 2)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[red]x[/]", "[red]x[/]"),
        ("a\x1b[31mb", "a·[31mb"),
        ("\ud800", "·"),
        ("a\u202eb", "a·b"),
        ("é漢🎉", "é漢🎉"),
        (None, ""),
        (3, "3"),
    ],
)
def test_clean_leaves_nothing_that_a_terminal_obeys(text: object, shown: str) -> None:
    assert clean(text) == shown
    assert len(clean("x" * 10_000)) == 400


# ---- states -------------------------------------------------------------------------------------------------------------


def state_of(run_dir: Path) -> tuple[str, str]:
    run = Run(run_dir)
    run.refresh()
    return run.state, run.why


@pytest.mark.parametrize(
    ("code", "state", "why"),
    [
        (0, "done", ""),
        (3, "failed", "exit 3"),
        (137, "failed", "out of memory"),
        (130, "stopped", ""),
        (None, "lost", "no exit code"),
    ],
)
def test_exit_codes(tmp_path: Path, code: int | None, state: str, why: str) -> None:
    run = make_run(tmp_path, rows=20, state="running")
    if code is not None:
        (run / "exit").write_text(f"{code}\n")
    assert state_of(run)[0] == state == ended(code)[0]
    assert why in state_of(run)[1]


def test_an_exit_code_of_an_earlier_life_says_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=20, state="running")
    (run / "exit").write_text("0\n")
    os.utime(run / "exit", (1, 1))
    assert state_of(run)[0] == "lost"


def test_alive_means_this_very_process(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=20, state="running", status={"process": me()})
    assert state_of(run)[0] == "running"
    write(run / "status.json", {"state": "running", "process": {**me(), "start_time": me()["start_time"] - 1}})
    assert state_of(run)[0] == "lost"
    write(
        run / "status.json",
        {"state": "running", "process": {**me(), "boot_id": "another"}, "updated": "2020-01-01T00:00:00+00:00"},
    )
    assert state_of(run) == ("lost", f"no sign from {me()['host']}")


def test_a_run_of_another_host_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    from fake_trainer import now

    process = {**me(), "host": "elsewhere"}
    run = make_run(tmp_path, rows=20, state="running", status={"process": process, "updated": now()})
    assert state_of(run)[0] == "running"
    write(run / "status.json", {"state": "running", "process": process, "updated": "2020-01-01T00:00:00+00:00"})
    assert state_of(run)[0] == "lost"


def test_a_living_run_without_new_lines_is_stalled(tmp_path: Path) -> None:
    run = make_run(tmp_path, rows=20, state="running", status={"process": me()})
    for name in ("metrics.jsonl", "search.jsonl", "log.txt"):
        os.utime(run / name, (time.time() - 500,) * 2)
    assert state_of(run) == ("stalled", "no new line")


def test_any_folder_with_metrics_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "by-hand").mkdir()
    append(tmp_path / "by-hand" / "metrics.jsonl", '{"step": 1, "loss/g": 1.0}\n')
    (tmp_path / "no-run").mkdir()
    (tmp_path / ".trash").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    store = Store(tmp_path)
    store.scan()
    store.refresh()
    assert list(store.runs) == ["by-hand"]
    assert store.runs["by-hand"].state == "running"


def test_runs_appear_and_vanish_while_watched(tmp_path: Path) -> None:
    import shutil

    store = Store(tmp_path / "runs")
    store.scan()
    assert store.problem == "there is no such folder yet"
    run_dir = make_run(tmp_path / "runs", rows=20)
    assert store.scan() == {run_dir.name}
    run = store.runs[run_dir.name]
    store.refresh()
    run.load()
    shutil.rmtree(run_dir)
    run.refresh()
    run.load()
    everything_shown(run)
    assert store.scan() == {run_dir.name}
    assert not store.runs


# ---- scores stay apart ----------------------------------------------------------------------------------------------------


def test_a_score_of_another_network_is_never_shown_as_fid(tmp_path: Path) -> None:
    run = opened(make_run(tmp_path, rows=20, net="compact"))
    assert run.score("FID") is None
    assert run.score("FID(compact)") == run.last["fid"]
    assert set(run.columns.keys) >= {"FID(compact)", "IS(compact)"}
    assert not {"FID", "IS"} & set(run.columns.keys)
    assert not query("fid<1000")(run)
    assert query("fid(compact)<1000")(run)


def test_the_best_is_of_the_phase_and_network_of_the_last(tmp_path: Path) -> None:
    columns = {"phase": "search", "eval/net": "compact", "eval/is": 1.0}
    rows = [{"step": 1, **columns, "eval/fid": 0.1}, {"step": 2, **columns, "phase": "eval", "eval/fid": 5.0}]
    rows += [{"step": 3, **columns, "phase": "eval", "eval/fid": 4.0}, {"step": 4, **columns, "phase": "eval", "eval/fid": 6.0}]
    run = Run(tmp_path)
    run.columns = Columns()
    run.columns.add(rows)
    assert run.best()["step"] == 3


# ---- queries, order -------------------------------------------------------------------------------------------------------


@pytest.fixture
def some(tmp_path: Path) -> Store:
    make_run(tmp_path, "eagan", seed=0, quality=10, rows=20)
    make_run(tmp_path, "eagan", seed=1, quality=30, rows=20, dataset="stl10")
    make_run(tmp_path, "degas", seed=2, quality=20, rows=20, state="failed", status={"error": {"type": "X", "message": "boom"}})
    make_run(tmp_path, "autogan", seed=3, quality=5, rows=20, net="compact")
    make_run(tmp_path, "autogan", seed=4, rows=5)  # no evaluation yet
    store = Store(tmp_path)
    store.scan()
    store.refresh()
    for run in store.ordered():
        run.load(1.0)
    store.tag(next(r for r in store.ordered() if r.seed == 0), tags=["paper"], pinned=True)
    return store


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("", {0, 1, 2, 3, 4}),
        ("cifar10", {0, 2, 3, 4}),
        ("-cifar10", {1}),
        ("eagan stl10", {1}),
        ("fid<25", {0}),  # not 3: compact; 1 ends near 33, 2 near 23
        ("fid<25.5 state=failed", {2}),
        ("state=failed", {2}),
        ("-state=failed", {0, 1, 3, 4}),
        ("state!=done", {2}),
        ("tag:pap", {0}),
        ("seed>=3", {3, 4}),
        ("g_lr=2e-4", {0, 1, 2, 3, 4}),
        ("g-lr>1", set()),
        ("amp=false", {0, 1, 2, 3, 4}),
        ("/s[01]-/", {0, 1}),
        ("pinned=yes", {0}),
        ("cifar10 fid<25 state=done tag:paper", {0}),
    ],
)
def test_queries(some: Store, text: str, seeds: set[int]) -> None:
    if text == "fid<25":
        seeds = {r.seed for r in some.ordered() if (fid := r.score("FID")) is not None and fid < 25}
        assert 3 not in seeds
        assert 0 in seeds
    assert {r.seed for r in some.ordered() if query(text)(r)} == seeds


@pytest.mark.parametrize("text", ["fid<low", "state=runing", "state<done", "/(/"])
def test_a_query_that_means_nothing_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text.split("=")[-1].split("<")[-1].strip("/"))):
        query(text)


def test_missing_values_are_last_in_either_order_and_pins_first(some: Store) -> None:
    up, down = (ordered(some.ordered(), lambda r: r.score("FID"), reverse) for reverse in (False, True))
    assert [r.seed for r in up] == [0, 2, 1, 3, 4]
    assert [r.seed for r in down] == [0, 1, 2, 3, 4]


# ---- tags, trash ----------------------------------------------------------------------------------------------------------


def test_trash_and_undo_and_never_a_running_one(tmp_path: Path) -> None:
    done = make_run(tmp_path, rows=5)
    running = make_run(tmp_path, rows=5, seed=1, state="running", status={"process": me()})
    store = Store(tmp_path)
    store.scan()
    store.refresh()
    with pytest.raises(ValueError, match="stop it first"):
        store.trash(store.runs[running.name])
    trashed = store.trash(store.runs[done.name])
    assert not done.exists()
    store.scan()
    assert list(store.runs) == [running.name]
    store.restore(trashed, done)
    store.scan()
    assert done.name in store.runs


def test_tags_are_written_beside_a_hostile_link(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, rows=5)
    (tmp_path / "precious").write_text("keep")
    (run_dir / "tags.json").symlink_to(tmp_path / "precious")
    run = opened(run_dir)
    Store(tmp_path).tag(run, tags=["a"], note="b")
    assert (tmp_path / "precious").read_text() == "keep"
    assert run.labels == ["a"]
    assert json.loads((run_dir / "tags.json").read_text()) == {"tags": ["a"], "note": "b"}


# ---- smoothing ------------------------------------------------------------------------------------------------------------


def debiased(values: np.ndarray, beta: float) -> np.ndarray:
    out, total, weight = [], 0.0, 0.0
    for v in values:
        if np.isfinite(v):
            total, weight = beta * total + (1 - beta) * v, beta * weight + (1 - beta)
            out.append(total / weight)
        else:
            out.append(np.nan)
    return np.array(out)


@pytest.mark.parametrize("beta", [0.6, 0.9, 0.99])
@pytest.mark.parametrize("cuts", [[], [1], [64], [100, 101, 700]])
def test_smoothing_is_the_debiased_average_and_never_changes_its_past(beta: float, cuts: list[int]) -> None:
    values = np.random.default_rng(0).normal(100, 30, 1000)
    values[[0, 7, 500, 501]] = np.nan
    ema, before = Ema(beta), np.empty(0)
    for n in (*cuts, 1000):
        now = ema.extend(values[:n])
        assert np.array_equal(now[: len(before)], before, equal_nan=True)
        before = now.copy()
    np.testing.assert_allclose(before, debiased(values, beta), rtol=1e-9)


# ---- fronts ---------------------------------------------------------------------------------------------------------------


def test_front_equals_brute_force() -> None:
    rng = random.Random(0)
    people = [
        {"id": str(i), "fid": rng.uniform(1, 50), "is": rng.uniform(1, 9), "params": rng.randrange(100)} for i in range(500)
    ]
    assert front(people) == {x["id"] for x in people if not any(dominates(y, x) for y in people)}


def test_hypervolume_of_two_points() -> None:
    people = [{"fid": 1.0, "is": 2.0}, {"fid": 2.0, "is": 4.0}, {"fid": None, "is": 9.0}, {"fid": 3.0, "is": 3.0}]
    assert hypervolume(people, (5.0, 0.0)) == pytest.approx(4 * 2 + 3 * 2)


# ---- logs -----------------------------------------------------------------------------------------------------------------


def test_log_shows_what_a_terminal_would(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes(
        b"\x1b[31mred\x1b[0m plain\n 10%\r 50%\r100% done\n\ttab\n" + "é".encode() + b"\xff\n" + b"y" * 100_000 + b"\nlast"
    )
    log = Log(file)
    log.update()
    assert len(log) == 6
    lines = log.lines(range(6))
    assert lines[:4] == ["red plain", "100% done", "    tab", "é�"]
    assert len(lines[4]) < 4200
    assert lines[4].endswith("0.1 MB")
    assert lines[5] == "last"
    append(file, " of all\nmore\n")
    assert log.update()
    assert log.lines([5, 6]) == ["last of all", "more"]
    assert len(log) == 7


@pytest.mark.parametrize(
    "pattern", ["warn", "^line 1", "7$", r"\d\d\d", r"a\sb|line 33", "[^0-9]9", "(?i)LINE 4", "x*", r"\Aline 2", "^$"]
)
def test_only_lines_that_grep_finds(tmp_path: Path, pattern: str) -> None:
    file = tmp_path / "log.txt"
    file.write_text("".join(f"line {i} {'warn' if i % 7 == 0 else ''}\n" for i in range(2000)) + "a\nb\n\nno end")
    log = Log(file)
    log.update()
    regex = re.compile(pattern)
    expected = [i for i, line in enumerate(file.read_text().split("\n")) if regex.search(line)]
    assert log.matching(pattern) == expected
    assert log.matching(pattern, first=100) == [i for i in expected if i >= 100]
    if not pattern.startswith(("(?", r"\A", r"\d", r"a\s")):
        found = subprocess.run(["grep", "-nE", pattern, str(file)], capture_output=True, text=True).stdout
        assert [int(x.split(":")[0]) - 1 for x in found.splitlines()] == expected


def test_a_broken_pattern_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x\n")
    with pytest.raises(ValueError, match="unterminated"):
        Log(tmp_path / "log").matching("(")


def test_a_log_that_is_cut_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("a\nb\nc\n")
    log = Log(file)
    log.update()
    file.write_text("d\n")
    log.update()
    assert (len(log), log.lines([0])) == (1, ["d"])


# ---- records of launches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [lambda r: r.write_bytes(b"\xff{"), lambda r: r.write_text("[]"), lambda r: r.write_text('{"run": "../../etc"}')]
)
def test_hostile_records_name_no_path_outside(tmp_path: Path, change: Callable[[Path], object]) -> None:
    folder = tmp_path / ".launch" / "20260101-000000-001"
    folder.mkdir(parents=True)
    for name in ("record.json", "state.json"):
        (folder / name).write_text('{"name": "../x", "state": "queued"}')
    change(folder / "state.json")
    store = Store(tmp_path, launch.records)
    store.scan()
    store.refresh()
    assert all("/" not in r.name and tmp_path in r.path.parents for r in store.ordered())


# ---- numbers that a copied script adds to search.jsonl ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["eagan", "autogan", "adversarialnas", "degas", "none of these"])
def test_every_number_of_a_search_row_is_a_metric_and_on_the_page(tmp_path: Path, method: str) -> None:
    from ui import pages
    from ui.draw import plain

    path = make_run(tmp_path, "degas" if method == "none of these" else method)
    rows = [json.loads(line) for line in (path / "search.jsonl").read_text().splitlines()]
    if method == "none of these":
        rows = [{"step": row["step"]} for row in rows]
    for i, row in enumerate(rows):
        row |= {"my_reward": 123.0 + i, "flag": True, "text": "no number"}
        for k, x in enumerate(row.get("population", row.get("beam", []))):
            x |= {"kid": 0.25 + k, "scores": {"sharpness": 7.5}, "infinite": None}
    (path / "search.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = opened(path)
    numbers = {k for row in rows for k, v in row.items() if type(v) in (int, float)} - {"step"}
    assert "my_reward" in numbers
    assert numbers <= set(pages.metrics(run))
    assert not {"flag", "text"} & set(pages.metrics(run))
    assert list(pages.points(run, "my_reward")[1]) == [123.0 + i for i in range(len(rows))]
    text = "\n".join(plain(line) for line in pages.search(run, 120, 40, pages.View()))
    assert f"{122 + len(rows)}" in text[text.index("my_reward") :]
    if method == "eagan":
        head = next(line for line in text.splitlines() if "rank" in line)
        assert all(key in head for key in ("FID", "IS", "params", "kid", "sharpness"))
        assert "infinite" not in head
        assert pages.points(run, "median sharpness of the population")[1][-1] == 7.5
        plot = "\n".join(plain(line) for line in pages.search(run, 120, 40, pages.View(axes=3)))
        assert "kid over FID" in plot
    elif method == "autogan":
        assert "kid" in next(line for line in text.splitlines() if "vector" in line)
