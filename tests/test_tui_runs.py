"""Run directories as the terminal UI reads them: hostile files, states, queries, smoothing, logs."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fake_trainer import append, dominates, make_run, me, now, write

import common.report
import common.run
from ui import columns, compare, draw, genotypes, launch, pages, report, search
from ui.columns import ordered, query
from ui.curves import Ema, metrics, points
from ui.files import Log, Tail, clean, parse_lines
from ui.runs import Columns, Run, Store, fid_label
from ui.view import View

ROOT = Path(__file__).parents[1]


def opened(path: Path) -> Run:
    run = Run(path)
    run.refresh()
    while run.load(1.0):
        pass
    return run


def scanned(root: Path) -> Store:
    store = Store(root, launch.records)
    store.scan()
    store.refresh()
    return store


def write_more(path: Path, text: str) -> None:
    with open(path, "a") as f:
        f.write(text)


def test_the_ui_imports_neither_torch_nor_common_nor_at_first_numpy() -> None:
    code = "import sys, tui; assert not {'torch', 'common', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("net", "is_label"),
    [
        ("inception-2048", "IS"),
        ("inception-768", "IS"),
        ("inception-2048-tf32", "IS-2048-tf32"),
        ("compact", "IS(compact)"),
    ],
)
def test_score_names_are_those_of_the_runs(net: str, is_label: str) -> None:
    assert fid_label(net) == common.run.fid_label(net) == common.report.score_name("fid", net)
    assert fid_label(net, "IS") == common.run.fid_label(net, "IS") == common.report.score_name("is", net) == is_label


# ---- files that may be anything -----------------------------------------------------------------------------------------


def test_tail_reads_whole_lines_and_begins_anew_when_the_file_does(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    tail = Tail(file)
    assert tail.read() == (False, [])
    file.write_text('{"a": 1}\n{"a": 2')
    assert tail.read() == (False, [(0, b'{"a": 1}')])
    write_more(file, "}\n")
    assert tail.read() == (False, [(9, b'{"a": 2}')])
    file.write_text('{"a": 3}\n')  # shorter
    assert tail.read() == (True, [(0, b'{"a": 3}')])
    file.write_text('{"a": 4}\n{"a": 5}\n')  # rewritten and already longer, as a resumed run does
    assert tail.read() == (True, [(0, b'{"a": 4}'), (9, b'{"a": 5}')])
    (tmp_path / "other").write_text('{"a": 4}\n{"a": 5}\n{"a": 6}\n')
    os.replace(tmp_path / "other", file)  # another inode
    anew, lines = tail.read()
    assert (anew, len(lines)) == (True, 3)
    file.unlink()
    assert tail.read() == (True, [])


def test_tail_skips_a_line_without_end_and_goes_on_behind_it(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_bytes(b"x" * 5000 + b'\n{"a": 1}\n')
    tail = Tail(file, longest=1000)
    assert [line for _ in range(20) for _, line in tail.read()[1]] == [b'{"a": 1}']
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
    run = make_run(tmp_path, rows=20)
    (run / name).write_bytes(content)
    everything_shown(opened(run))


def everything_shown(run: Run) -> None:
    """Draw every page of a run, and every export."""
    view = View()
    for width in (60, 120):
        drawn = [pages.header(run, width), genotypes.architecture(run, width, 30, view), pages.search(run, width, 30, view)]
        drawn += [pages.configuration(run, width), compare.compare(run, run, width, view)]
        drawn += [[[(text, "") for text in texts] for texts in compare.over_seeds([run])], compare.distances([run, run])]
        assert all(isinstance(text, str) for lines in drawn for line in lines for text, _ in line)
    for metric in metrics(run):
        points(run, metric)
    assert all(isinstance(x, str) for x in report.plain_lines(Store(run.path.parent), [run]))
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
                path.touch()
                os.truncate(path, 5 << 30)
            case "unreadable":
                path.write_text("{}")
                path.chmod(0)
    run = Run(run_dir)
    run.refresh()
    run.peek()
    for _ in range(5):
        run.load(0.05)
    Log(run_dir / "log.txt").update(1 << 20)
    everything_shown(run)
    assert kind == "unreadable" or "status.json" in run.problems


def test_bad_lines_are_counted_and_later_ones_read(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, rows=20)
    assert opened(run_dir).bad == 0
    write_more(run_dir / "metrics.jsonl", "junk\n[1]\n")
    append(run_dir / "metrics.jsonl", {"step": 999, "loss/g": math.nan})
    run = opened(run_dir)
    assert (run.bad, run.columns.step[-1], run.columns.nans) == (2, 999, 1)
    assert math.isnan(run.column("loss/g")[2][-1])


def test_the_list_needs_only_the_end_of_a_long_file(tmp_path: Path) -> None:
    whole = opened(make_run(tmp_path, rows=2000))
    run = Run(whole.path)
    run.refresh()
    run.peek()
    assert not run.columns.step
    assert (run.last, run.step) == (whole.last, whole.step)
    assert run.last["fid"] is not None


def test_rows_of_before_a_resumption_are_forgotten(tmp_path: Path) -> None:
    run = opened(make_run(tmp_path, rows=20))
    file = run.path / "metrics.jsonl"
    os.truncate(file, sum(map(len, file.read_text().splitlines(keepends=True)[:5])))
    append(file, *({"step": 50 + i, "loss/g": 7.0} for i in range(200)))
    while run.load(1.0):
        pass
    assert list(run.columns.step) == [10, 20, 30, 40, 50, *range(50, 250)]


def test_parsing_all_at_once_equals_parsing_by_line() -> None:
    assert parse_lines([b'{"a": 1}', b'{"b": 2}']) == ([{"a": 1}, {"b": 2}], 0)
    assert parse_lines([b'{"a": 1}', b"{}, {}", b"nope", b'{"b": 2}']) == ([{"a": 1}, {"b": 2}], 2)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *[("[red]x[/]", "[red]x[/]"), ("a\x1b[31mb", "a·[31mb"), ("\ud800", "·"), ("a\u202eb", "a·b"), ("é漢🎉", "é漢🎉")],
        *[(None, ""), (3, "3"), ("x" * 10_000, "x" * 400)],
    ],
)
def test_clean_leaves_nothing_that_a_terminal_obeys(text: object, shown: str) -> None:
    assert clean(text) == shown


# ---- states, scores -----------------------------------------------------------------------------------------------------


def judged(run_dir: Path) -> Run:
    run = Run(run_dir)
    run.refresh()
    return run


@pytest.mark.parametrize(
    ("code", "state", "why"),
    [(0, "done", ""), (3, "failed", "3"), (137, "failed", "memory"), (130, "stopped", ""), (None, "lost", "")],
)
def test_exit_codes_unless_they_are_of_an_earlier_life(tmp_path: Path, code: int | None, state: str, why: str) -> None:
    run_dir = make_run(tmp_path, rows=20, state="running")
    if code is not None:
        (run_dir / "exit").write_text(f"{code}\n")
    run = judged(run_dir)
    assert run.state == state
    assert why in run.why
    assert bool(run.why) == (state in ("failed", "lost"))
    if code is not None:
        os.utime(run_dir / "exit", (1, 1))
    assert judged(run_dir).state == "lost"


OLD = "2020-01-01T00:00:00+00:00"
AHEAD = "2100-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("process", "updated", "state"),
    [
        ({}, OLD, "running"),
        ({"start_time": 1}, "now", "lost"),
        ({"boot_id": "another"}, "now", "lost"),
        ({"host": "elsewhere"}, "now", "running"),
        ({"host": "elsewhere"}, AHEAD, "lost"),
    ],
    ids=str,
)
def test_alive_means_this_very_process_or_the_heartbeat_of_another_host(
    tmp_path: Path, process: dict, updated: str, state: str
) -> None:
    process, updated = me() | process, now() if updated == "now" else updated  # not when the tests were collected
    path = make_run(tmp_path, rows=20, state="running", status={"process": process, "updated": updated})
    if updated == AHEAD:  # another host's clock says nothing; its last write was long ago
        os.utime(path / "status.json", (time.time() - 1000,) * 2)
    run = judged(path)
    assert run.state == state
    assert (process["host"] in run.why) == (state == "lost" and process["start_time"] != 1)


@pytest.mark.parametrize(("checked", "state"), [(500, "stalled"), (5, "running"), (None, "running")])
def test_a_living_run_is_stalled_when_its_loop_stands_still(tmp_path: Path, checked: int | None, state: str) -> None:
    """An evaluation writes no row for minutes; the loop says that it goes on."""
    mark = {} if checked is None else {"checked": (datetime.now(UTC) - timedelta(seconds=checked)).isoformat()}
    run = make_run(tmp_path, rows=20, state="running", status={"process": me(), **mark})
    for name in ("metrics.jsonl", "search.jsonl", "log.txt"):
        os.utime(run / name, (time.time() - 500,) * 2)
    assert judged(run).state == state


def test_any_folder_with_metrics_is_a_run(tmp_path: Path) -> None:
    for name in ("by-hand", "no-run", ".trash"):
        (tmp_path / name).mkdir()
    append(tmp_path / "by-hand" / "metrics.jsonl", {"step": 1, "loss/g": 1.0})
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert {name: run.state for name, run in scanned(tmp_path).runs.items()} == {"by-hand": "running"}


def test_runs_appear_and_vanish_while_watched(tmp_path: Path) -> None:
    store = scanned(tmp_path / "runs")
    assert store.problem
    run_dir = make_run(tmp_path / "runs", rows=20)
    assert store.scan() == {run_dir.name}
    assert not store.problem
    run = store.runs[run_dir.name]
    run.load()
    shutil.rmtree(run_dir)
    run.refresh()
    run.load()
    everything_shown(run)
    assert store.scan() == {run_dir.name}
    assert not store.runs


def test_a_score_of_another_network_is_never_shown_as_fid(tmp_path: Path) -> None:
    run = opened(make_run(tmp_path, rows=20, net="compact"))
    assert run.score("FID") is None
    assert run.score("FID(compact)") == run.last["fid"]
    assert {"FID", "IS", "FID(compact)", "IS(compact)"} & set(run.columns.keys) == {"FID(compact)", "IS(compact)"}
    assert not query("fid<1000")(run)
    assert query("fid(compact)<1000")(run)


def test_the_best_is_of_the_phase_and_network_of_the_last(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.columns = Columns()
    for step, (phase, fid) in enumerate([("search", 0.1), ("eval", 5.0), ("eval", 4.0), ("eval", 6.0)], 1):
        run.columns.add([{"step": step, "phase": phase, "eval/net": "compact", "eval/is": 1.0, "eval/fid": fid}])
    assert run.best()["step"] == 3


# ---- queries, order, tags -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """FIDs: seed 0 near 13, 1 near 33, 2 near 23; 3 is scored by another network, 4 not yet."""
    root = tmp_path_factory.mktemp("some")
    make_run(root, "eagan", seed=0, quality=10, rows=20)
    make_run(root, "eagan", seed=1, quality=30, rows=20, dataset="stl10")
    make_run(root, "degas", seed=2, quality=20, rows=20, state="failed", status={"error": {"type": "X", "message": "boom"}})
    make_run(root, "autogan", seed=3, quality=5, rows=20, net="compact")
    make_run(root, "autogan", seed=4, rows=5)
    store = scanned(root)
    for run in store.ordered():
        run.load(1.0)
    store.tag(next(r for r in store.ordered() if r.seed == 0), tags=["paper"], pinned=True)
    return store


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        *[("", [0, 1, 2, 3, 4]), ("cifar10", [0, 2, 3, 4]), ("-cifar10", [1]), ("eagan stl10", [1])],
        *[("fid<18", [0]), ("fid>18", [1, 2]), ("fid<30 state=failed", [2]), ("seed>=3", [3, 4])],
        *[("state=failed", [2]), ("-state=failed", [0, 1, 3, 4]), ("state!=done", [2]), ("tag:pap", [0])],
        *[("g_lr=2e-4", [0, 1, 2, 3, 4]), ("g-lr>1", []), ("amp=false", [0, 1, 2, 3, 4]), ("/s[01]-/", [0, 1])],
        *[("pinned=yes", [0]), ("cifar10 fid<18 state=done tag:paper", [0])],
    ],
)
def test_queries(some: Store, text: str, seeds: list[int]) -> None:
    assert sorted(r.seed for r in some.ordered() if query(text)(r)) == seeds


@pytest.mark.parametrize(
    ("text", "wrong"), [("fid<low", "low"), ("state=runing", "runing"), ("state<done", "<"), ("/(/", "[(]")]
)
def test_a_query_that_means_nothing_says_so(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        query(text)


@pytest.mark.parametrize(("reverse", "seeds"), [(False, [0, 2, 1, 3, 4]), (True, [0, 1, 2, 3, 4])])
def test_missing_values_are_last_in_either_order_and_pins_first(some: Store, reverse: bool, seeds: list[int]) -> None:
    assert [r.seed for r in ordered(some.ordered(), lambda r: r.score("FID"), reverse)] == seeds


def test_tags_are_written_beside_a_hostile_link(tmp_path: Path) -> None:
    run = opened(make_run(tmp_path, rows=5))
    (tmp_path / "precious").write_text("keep")
    (run.path / "tags.json").symlink_to(tmp_path / "precious")
    Store(tmp_path).tag(run, tags=["a"], note="b")
    assert (tmp_path / "precious").read_text() == "keep"
    assert run.labels == ["a"]
    assert json.loads((run.path / "tags.json").read_text()) == {"tags": ["a"], "note": "b"}


# ---- smoothing, fronts ----------------------------------------------------------------------------------------------------


def debiased(values: np.ndarray, beta: float) -> np.ndarray:
    out, total, weight = np.full(len(values), np.nan), 0.0, 0.0
    for i in np.flatnonzero(np.isfinite(values)):
        total, weight = beta * total + (1 - beta) * values[i], beta * weight + (1 - beta)
        out[i] = total / weight
    return out


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


def test_front_equals_brute_force() -> None:
    rng = random.Random(0)
    people = [
        {"id": str(i), "fid": rng.uniform(1, 50), "is": rng.uniform(1, 9), "params": rng.randrange(100)} for i in range(500)
    ]
    assert search.front(people) == {x["id"] for x in people if not any(dominates(y, x) for y in people)}


def test_hypervolume_of_two_points() -> None:
    people = [{"fid": 1.0, "is": 2.0}, {"fid": 2.0, "is": 4.0}, {"fid": None, "is": 9.0}, {"fid": 3.0, "is": 3.0}]
    assert search.hypervolume(people, (5.0, 0.0)) == pytest.approx(4 * 2 + 3 * 2)


# ---- logs and records of launches ---------------------------------------------------------------------------------------


def test_log_shows_what_a_terminal_would(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes(b"\x1b[31mred\x1b[0m plain\n 10%\r 50%\r100% done\n\ttab\n\xc3\xa9\xff\n" + b"y" * 100_000 + b"\nlast")
    log = Log(file)
    log.update()
    assert len(log) == 6
    *short, long, last = log.lines(range(6))
    assert [*short, last] == ["red plain", "100% done", "    tab", "é�", "last"]
    assert len(long) < 4200
    assert long.endswith("0.1 MB")
    write_more(file, " of all\nmore\n")
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
    expected = [i for i, line in enumerate(file.read_text().split("\n")) if re.search(pattern, line)]
    assert log.matching(pattern) == expected
    assert log.matching(pattern, first=100) == [i for i in expected if i >= 100]
    if not pattern.startswith(("(?", r"\A", r"\d", r"a\s")):
        found = subprocess.run(["grep", "-nE", pattern, str(file)], capture_output=True, text=True).stdout
        assert [int(x.split(":")[0]) - 1 for x in found.splitlines()] == expected


def test_a_log_that_is_cut_begins_anew(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    for text in ("a\nb\nc\n", "d\n"):
        log.path.write_text(text)
        log.update()
    assert (len(log), log.lines([0])) == (1, ["d"])


@pytest.mark.parametrize("state", [b"\xff{", b"[]", b'{"run": "../../etc"}'])
def test_hostile_records_name_no_path_outside(tmp_path: Path, state: bytes) -> None:
    folder = tmp_path / ".launch" / "20260101-000000-001"
    folder.mkdir(parents=True)
    write(folder / "record.json", {"name": "../x", "state": "queued"})
    (folder / "state.json").write_bytes(state)
    for run in scanned(tmp_path).ordered():
        assert "/" not in run.name
        assert tmp_path in run.path.parents


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
    append(path / "metrics.jsonl", {"step": 10**6, "noise/fid": 300.0})
    run = opened(path)
    assert metrics(run)[-1] == "noise/fid"
    numbers = {k for row in rows for k, v in row.items() if type(v) in (int, float)} - {"step"}
    assert "my_reward" in numbers
    assert numbers <= set(metrics(run))
    assert not {"flag", "text"} & set(metrics(run))
    assert list(points(run, "my_reward")[1]) == [123.0 + i for i in range(len(rows))]
    text = "\n".join(plain(line) for line in pages.search(run, 120, 40, View()))
    assert f"{122 + len(rows)}" in text[text.index("my_reward") :]
    if method == "eagan":
        head = next(line for line in text.splitlines() if "rank" in line)
        assert all(key in head for key in ("FID", "IS", "params", "kid", "sharpness"))
        assert "infinite" not in head
        assert points(run, "median sharpness of the population")[1][-1] == 7.5
        plot = "\n".join(plain(line) for line in pages.search(run, 120, 40, View(axes=3)))
        assert "kid over FID" in plot
    elif method == "autogan":
        assert "kid" in next(line for line in text.splitlines() if "vector" in line)


def test_the_trash_is_known_to_later_sessions(tmp_path: Path) -> None:
    paths = [make_run(tmp_path, rows=3, seed=seed) for seed in (0, 1)]
    for path in paths:
        (path / "status.json").write_text('{"state": "done"}')
    store = scanned(tmp_path)
    for path in paths:
        store.trash(store.runs[path.name])
    (tmp_path / ".trash" / "moved.jsonl").open("a").write('{"trashed": "x", "original": "../../x"}\n[\n')
    later = scanned(tmp_path)
    assert not later.runs
    assert [original.name for _, original in later.trashed()] == [p.name for p in reversed(paths)]
    later.restore(*later.trashed()[0])
    assert [original.name for _, original in later.trashed()] == [paths[0].name]
    assert set(scanned(tmp_path).runs) == {paths[1].name}


CSV = 'epoch,loss,"a, b"\n1,0.5,7\n2,nan,8\n3,0.25,x\n'
JSONL = '{"_step": 5, "fid": 30.0, "note": "x"}\nbroken\n{"_step": 9, "fid": 20}\n'


@pytest.mark.parametrize(
    ("name", "text", "points_of"),
    [
        ("log.csv", CSV, {"loss": ([1, 2, 3], [0.5, None, 0.25]), "a, b": ([1, 2, 3], [7, 8, None])}),
        ("history.jsonl", JSONL, {"fid": ([5, 9], [30, 20])}),
    ],
)
def test_logs_of_others_are_runs_that_are_only_read(tmp_path: Path, name: str, text: str, points_of: dict) -> None:
    folder, none = tmp_path / "theirs", tmp_path / "none"
    for path, content in ((folder / name, text), (none / "notes.csv", "name,loss\na,1\n"), (none / "x.jsonl", "[1]\n")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    store = scanned(tmp_path)
    assert list(store.runs) == ["theirs"]
    run = store.runs["theirs"]
    run.load_all()
    assert (run.state, run.step, run.bad) == ("log", points_of[next(iter(points_of))][0][-1], text.count("broken"))
    found = {key: points(run, key) for key in metrics(run)}
    assert {k: (x.tolist(), [None if math.isnan(v) else v for v in y]) for k, (x, y) in found.items()} == points_of
    write_more(folder / name, text.splitlines()[-1].replace("3", "40").replace("9", "40") + "\n")
    run.load_all()
    assert run.step == 40
    for change in (lambda: store.tag(run, pinned=True), lambda: store.trash(run)):
        with pytest.raises(ValueError, match="theirs"):
            change()
    assert {p.name for p in folder.iterdir()} == {name}
    write(folder / "config.json", {})  # one of ours after all
    assert Run(folder).foreign is None


def test_the_columns_of_the_list_say_what_the_files_say(tmp_path: Path) -> None:
    run = opened(make_run(tmp_path, rows=40, quality=12.0))
    fids = [e["fid"] for e in run.evaluations()]
    assert columns.cell("best FID", run) == (draw.score(min(fids)), min(fids))
    assert columns.cell("FID", run)[1] == fids[-1]
    assert columns.cell("duration", run) == ("3m", 200.0)
    assert columns.cell("started", run)[0] == "01-01 00:00"
    assert columns.cell("params", run)[1] == run.config["params"]["G"]
    assert columns.cell("g_lr", run)[0] == columns.cell("g-lr", run)[0] == "0.0002"
    assert columns.cell("no_such", run) == ("—", None)
    assert columns.chosen(" started, Best FID,g-lr ", ["FID"], [run]) == ["started", "best FID", "g_lr"]
    with pytest.raises(ValueError, match="no_such"):
        columns.chosen("seed, no_such", ["FID"], [run])
    widths = dict.fromkeys(("method", "FID", "step", "ETA"), 9)
    assert columns.fitting(["FID", "step", "ETA", "method"], widths, 30) == ["step", "FID", "ETA"]


def test_the_beam_in_words(tmp_path: Path) -> None:
    """Codes are indices into the options of each decision, in the order in which a search decides them."""
    import autogan

    vector = autogan.PUBLISHED["B"]
    rows = [
        {"step": cell, "reward": 1.0, "decisions": [n for n, _ in found], "options": [x for _, x in found]}
        for cell in range(3)
        for found in [autogan.to_decide(range(cell, cell + 1))]
    ]
    folder = make_run(tmp_path, "autogan", rows=10)
    (folder / "search.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = opened(folder).search
    cells = found.in_words(autogan.text_of(vector)).split(" · ")
    named = []
    for i, row in enumerate(autogan.names_of(vector)):
        options = autogan.decisions(i).values()
        named.append(f"{i + 1}: {' '.join(w for w, x in zip(row, options, strict=True) if len(x) > 1)}")
    assert cells == named
    assert found.in_words("0 1 0 " * 9) == found.in_words("one") == ""
