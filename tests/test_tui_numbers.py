"""Every number that the UI shows is right: runs written by hand, and the values that must stand on the screen."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
from fake_trainer import append, write

from ui import compare, eagan, pages, report
from ui.curves import Curves, points, seed_groups
from ui.draw import Series, chart, plain
from ui.runs import Run
from ui.view import View

EVAL = {"phase": "eval", "stage": "evaluation (training)", "eval/net": "inception-2048", "eval/n": 1000, "eval/ref": "a"}
EVAL |= {"eval/ema": True, "eval/bn": "running", "eval/is": 5.0}


def run_of(folder: Path, rows: list[dict], search: tuple[dict, ...] = (), **config: object) -> Run:
    """A finished run with these rows; config: over a plain one of EAGAN."""
    folder.mkdir(parents=True)
    about = {"script": "eagan.py", "method": "eagan", "dataset": "x", "seed": 0, "args": {"seed": 0}, "preset": "paper"}
    write(folder / "config.json", about | config)
    write(folder / "status.json", {"state": "done", "step": rows[-1]["step"] if rows else 0, "total": 100})
    append(folder / "metrics.jsonl", *rows)
    append(folder / "search.jsonl", *search)
    run = Run(folder)
    run.refresh()
    while run.load(1.0) and not run.loaded:
        pass
    return run


def shown(lines: list) -> str:
    return "\n".join(plain(line) for line in lines)


def cells(text: str, name: str) -> list[list[str]]:
    """The words of the lines that begin with a name."""
    return [line.split()[len(name.split()) :] for line in text.splitlines() if line.strip().startswith(name)]


def test_only_evaluations_of_the_same_kind_are_compared(tmp_path: Path) -> None:
    supernet = {**EVAL, "phase": "search", "eval/ema": False, "eval/fid": 83.58}
    a = run_of(tmp_path / "a", [{**EVAL, "step": s, "eval/fid": f} for s, f in ((10, 20.0), (20, 13.5), (30, 13.84))])
    b = run_of(tmp_path / "b", [{**supernet, "step": 10}])
    text = shown(compare.compare(a, b, 100, View()))
    assert "-69.7" not in text  # 13.84 - 83.58
    assert not cells(text, "last FID")
    assert "only A has: eval, FID, 1000 images, against a, averaged G" in text
    assert "only B has: search, FID, 1000 images, against a, G as trained" in text
    c = run_of(tmp_path / "c", [{**supernet, "step": 5}, {**EVAL, "step": 40, "eval/fid": 15.0}])
    text = shown(compare.compare(a, c, 100, View()))
    assert cells(text, "last FID") == [["13.84", "15.00", "-1.16", "30", "and", "40"]]
    assert cells(text, "best FID") == [["13.50", "15.00", "-1.50"]]
    for change in ({"eval/n": 50}, {"eval/ref": "b"}, {"eval/ema": False}, {"eval/net": "inception-768"}):
        other = run_of(tmp_path / str(change), [{**EVAL, "step": 40, "eval/fid": 15.0, **change}])
        assert not cells(shown(compare.compare(a, other, 100, View())), "last FID"), change


def test_the_best_score_is_of_the_kind_of_the_last(tmp_path: Path) -> None:
    rows = [{**EVAL, "step": 10, "eval/fid": 3.0, "eval/n": 50}, {**EVAL, "step": 20, "eval/fid": 9.0}]
    run = run_of(tmp_path / "a", [*rows, {**EVAL, "step": 30, "eval/fid": 11.0}])
    assert "best 9.00 at step 20" in shown(pages.header(run, 200))


def test_earlier_steps_change_header_and_config_too(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", [{**EVAL, "step": s, "eval/fid": f} for s, f in ((10, 20.0), (20, 30.0), (30, 5.0))])
    run.result = {"last": {"fid": 5.0}}
    head, config = (shown(x) for x in (pages.header(run, 200, 20), pages.configuration(run, 100, None, 20)))
    assert "FID 30.00" in head
    assert "best 20.00 at step 10" in head
    assert "step 20/100  20%" in head
    assert "FID 5.00" not in head
    assert "fid 5" not in config
    assert "fid 5" in shown(pages.configuration(run, 100))
    assert "not evaluated yet" in shown(pages.header(run, 200, 5))


def individual(name: str, fid: float, is_: float) -> dict:
    return {"id": name, "fid": fid, "is": is_, "params": 10, "parents": [], "how": "random", "genotype": [["none"]]}


def test_an_individual_that_is_kept_is_in_the_front_with_its_scores_of_today_only(tmp_path: Path) -> None:
    """a had FID 1 in round 1; scored anew it has 9, as the front's only member. No mark stands at FID 1."""
    rounds = [
        {"step": 1, "stage": "1", "round": 1, "population": [individual("a", 1.0, 9.0), individual("b", 50.0, 1.0)]},
        {"step": 2, "stage": "1", "round": 2, "population": [individual("a", 9.0, 5.0), individual("c", 40.0, 2.0)]},
    ]
    run = run_of(tmp_path / "a", [], tuple(rounds))
    page = eagan.population(run, 140, 40, View(pick=1))
    marks = [text for line in page for text, style in line if style == "key" and "◆" in text]
    assert sum(text.count("◆") for text in marks) == 1 + 1  # the legend's, and today's
    assert re.search(r"1 ◆ +a +9\.00 +5\.00", shown(page))


def test_curves_break_where_scores_stop_to_compare(tmp_path: Path) -> None:
    rows = [
        {**EVAL, "step": 10, "eval/fid": 50.0, "phase": "search", "eval/bn": "recalibrated", "eval/ema": False},
        {**EVAL, "step": 20, "eval/fid": 40.0, "phase": "search", "eval/bn": "recalibrated", "eval/ema": False},
        {**EVAL, "step": 30, "eval/fid": 90.0, "phase": "search", "eval/bn": "own", "eval/ema": False},
        {**EVAL, "step": 40, "eval/fid": 80.0},
    ]
    search = tuple(
        {"step": s, "stage": stage, "round": 1, "population": [individual("a", fid, 1.0)]}
        for s, stage, fid in ((10, "1", 50.0), (20, "1", 40.0), (30, "2", 90.0))
    )
    run = run_of(tmp_path / "a", rows, search)
    x, y = points(run, "FID")
    assert y[~np.isnan(y)].tolist() == [50, 40, 90, 80]
    assert x[np.isnan(y)].tolist() == [30, 40]
    x, y = points(run, "median FID of the population")
    assert x[np.isnan(y)].tolist() == [30]


def test_means_of_smoothed_curves_say_so(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / str(n), [{"step": i, "loss/d": i % 7} for i in range(n)]) for n in (99, 100)]
    assert [Curves().grouped([run], "loss/d")[0].smooth for run in runs] == [False, True]


@pytest.mark.parametrize(("metric", "n", "smooth"), [("loss/d", 99, False), ("loss/d", 100, True), ("FID", 150, False)])
def test_few_values_and_scores_are_shown_as_they_are(tmp_path: Path, metric: str, n: int, smooth: bool) -> None:
    rng = random.Random(0)
    rows = [{**EVAL, "step": i, "eval/fid": rng.random(), "loss/d": rng.random()} for i in range(n)]
    run, curves = run_of(tmp_path / "a", rows), Curves()
    y = points(run, metric)[1]
    assert np.array_equal(curves.smoothed(run, metric, y), y) is not smooth
    title = shown(curves.lines([(run, "s0", "")], metric, 60, 12)[:1])
    assert ("ema" in title) is smooth


def test_all_charts_of_a_run_share_x_and_the_cursor_shows_values(tmp_path: Path) -> None:
    rows = [{"step": s, "phase": "train", "stage": "train", "loss/d": s / 100} for s in range(0, 101, 10)]
    rows.append({**EVAL, "step": 50, "eval/fid": 7.0})
    run, curves = run_of(tmp_path / "a", sorted(rows, key=lambda r: r["step"])), Curves()
    curves.inspect = 0.55
    frame = curves.frame([(run, ["FID", "loss/d"])])
    assert (frame.x, frame.cursor) == ((0.0, 100.0), pytest.approx(55.0))
    fid, loss = (curves.lines([(run, "s0", "")], m, 80, 12, frame) for m in ("FID", "loss/d"))
    assert "at step 55  7" in shown(fid[:1])
    assert "at step 55  0.5" in shown(loss[:1])
    assert "55" in shown(fid[-1:])
    assert "55" in shown(loss[-1:])


def test_lines_of_phases_are_named() -> None:
    series = [Series(np.arange(100.0), np.zeros(100) + np.arange(100) / 50)]
    lines, _ = chart(series, 80, 12, marks=((20.0, "stage 2"), (60.0, "training")))
    top = plain(lines[0])
    assert "┊stage 2" in top
    assert "┊training"[:5] in top


def test_groups_of_seeds_have_the_letters_of_their_curves(tmp_path: Path) -> None:
    rows = [{**EVAL, "step": s, "eval/fid": 10.0 + s} for s in (10, 20)]
    of = lambda name, seed, lr: run_of(  # noqa: E731
        tmp_path / name, rows, seed=seed, args={"seed": seed, "lr": lr, "auto_resume": name}
    )
    runs = [of("a", 0, 1), of("b", 0, 2), of("c", 1, 1)]
    assert [[r.name for r in group] for group in seed_groups(runs)] == [["a", "c"], ["b"]]
    assert [s.letter for s in Curves().grouped(runs, "FID")] == ["a", "b"]
    assert [s.letter for s in Curves().grouped(runs[1:2], "FID")] == ["a"]


def test_distances_are_of_one_search_space(tmp_path: Path) -> None:
    genotypes = {
        "eagan": {"G": [["none"] * 7] * 3}, "adversarialnas": {"G": [["conv_3x3", *["none"] * 6]] * 3},
        "degas": {"nodes": {"N1": [["U0", "conv"]]}},
    }  # fmt: skip
    runs = []
    for method, genotype in genotypes.items():
        run = run_of(tmp_path / method, [], method=method)
        write(run.path / "genotype.json", genotype)
        run.refresh()
        runs.append(run)
    text = shown(compare.distances(runs))
    assert "eagan" in text
    assert "degas" not in text
    assert ["·", "3", "eagan"] in cells(text, "1")
    lines = compare.compare(runs[0], runs[2], 100, View())
    assert "not comparable" in shown(lines)
    assert not any("[" in text for line in lines for text, _ in line)  # and no edge is marked as another
    assert "18 of 21 edges equal" in shown(compare.compare(runs[0], runs[1], 100, View()))


def test_csv_has_all_rows_of_runs_that_were_not_read_yet(tmp_path: Path) -> None:
    rows = [{"step": i, "phase": "train", "loss/d": 0.5} for i in range(20_000)]
    read = run_of(tmp_path / "a", rows)
    fresh = Run(read.path)
    fresh.refresh()
    assert report.metrics_csv([fresh]).count("\n") == 20_001
