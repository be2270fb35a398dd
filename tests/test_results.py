"""benchmark/evidence.py: a search against random search, from runs to rows to tables; the pages' tables are made of rows."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmark import evidence, found_training, planted, table, table_search
from common.report import comparison
from tests.runs import ROOT, TINY, slow

SMALL = dict(evaluator="compact", size=16, epoch_batches=2, eval_n=30, log_every=50, sample_every=10**9, save_minutes=1e9)


def row(arm: str, seed: int, fid: float, **more: object) -> dict:
    about = {"method": "eagan", "arm": arm, "seed": seed, "fid": fid, "is": 1.0 + seed / 8, "fid768": None, "params": 7}
    return {**about, "search_s": 1.0, "train_s": 2.0, **more}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compact")
@pytest.mark.parametrize("method", evidence.METHODS)
def test_both_arms_become_rows_and_are_not_done_twice(
    method: str, tiny_data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "COMMON", SMALL)
    own = {**TINY[method], "z_dim": 6, "g_batch": 4, "d_batch": 4, "n_critic": 1}
    own |= {"search_images": 0} if method == "degas" else {}
    train = {k: own[k] for k in ("g_ch", "d_ch", "z_dim", "g_batch", "d_batch", "n_critic")}
    monkeypatch.setitem(evidence.SEARCH, method, own)
    monkeypatch.setitem(evidence.TRAIN, method, train)
    monkeypatch.setattr(evidence, "UPDATES", 4)
    monkeypatch.setattr(evidence, "BRIEF", 2)
    results = tmp_path / "rows.jsonl"
    asked = Namespace(
        methods=[method], seeds=[3], images=Path(tiny_data["dataset"]), inception=None, inception_n=0, inception_ref=0,
        device="cpu", scale=1.0, work=tmp_path / "work", results=results, command=["run"],
    )  # fmt: skip
    evidence.one(asked)
    found, random = evidence.rows(results)
    assert [(r["method"], r["arm"], r["seed"]) for r in (found, random)] == [(method, "found", 3), (method, "random", 3)]
    assert random["candidates"] >= 1
    assert all(r["fid"] > 0 and r["params"] > 0 and r["genotype"] for r in (found, random))
    evidence.one(asked)
    assert len(evidence.rows(results)) == 2


def test_random_generators_are_of_the_seed_and_the_number() -> None:
    for method in evidence.METHODS:
        script = evidence.importlib.import_module(method)
        drawn = [evidence.random_genotype(method, script, seed, k) for seed, k in ((0, 0), (0, 0), (0, 1), (1, 0))]
        assert drawn[0] == drawn[1]
        assert drawn[0] not in drawn[2:]
        assert drawn[2] != drawn[3]


def test_a_table_says_inconclusive_where_the_interval_holds_zero_and_not_run_where_nothing_was() -> None:
    rows = [row("found", i, fid) for i, fid in enumerate((1.0, 2.0, 3.0))]
    rows += [row("random", i, fid, candidates=4) for i, fid in enumerate((4.0, 5.0, 9.0))]
    lines = evidence.table(rows, "eagan")
    assert "| found, 0 | 7 | 1.00 | 1.00 | not run | 1, 2 |" in lines
    assert "| random, 2 | 7 | 9.00 | 1.25 | not run | 1, 4 candidates, 2 |" in lines
    assert "inconclusive" in lines[-1]
    assert lines[-1].endswith("| not run | |")


def test_a_score_that_is_not_finite_is_said_and_decides_nothing() -> None:
    rows = [row("found", i, fid) for i, fid in enumerate((1.0, 1.1, None))]
    rows += [row("random", i, fid, candidates=4) for i, fid in enumerate((4.0, 4.1, 4.2))]
    lines = evidence.table(rows, "eagan")
    assert "| found, 2 | 7 | not finite | 1.25 | not run | 1, 2 |" in lines
    assert "| **found** | | 1.05 ± 0.07 (2 of 3) |" in lines[-4]
    assert "+" not in lines[-2].split("|")[3]


def test_a_summary_says_what_beats_chance() -> None:
    about = {"images": "x.npz", "device": "CPU, 2 threads", "scale": 0.5}
    rows = [row("found", i, fid, **about) for i, fid in enumerate((1.0, 1.1, 1.2))]
    rows += [row("random", i, fid, **about) for i, fid in enumerate((4.0, 4.1, 4.2))]
    (line,) = evidence.summary_table(rows)[2:]
    assert line.startswith("| eagan | 3 | 1.10 ± 0.10 | 4.10 ± 0.10 | +73 % | ")
    assert "beats" in line
    assert "`run eagan --images x.npz --device cpu --scale 0.5`" in line
    (worse,) = evidence.summary_table([{**r, "arm": {"found": "random", "random": "found"}[r["arm"]]} for r in rows])[2:]
    assert "worse" in worse


ROWS, PLANTED, TRAINED = (evidence.rows(made.RESULTS) for made in (evidence, planted, found_training))


@pytest.mark.parametrize(
    ("page", "mark", "lines"),
    [
        *(("docs/evidence.md", f"evidence {name}", partial(evidence.table, ROWS, name)) for name in evidence.METHODS),
        ("README.md", "results", partial(evidence.summary_table, ROWS)),
        ("docs/evidence.md", "planted", partial(planted.table, PLANTED)),
        ("docs/evidence.md", "found training", partial(found_training.table, TRAINED)),
        slow("docs/table.md", "stage1", partial(table.report, "stage1")),
        slow("docs/table.md", "two-cells-nearest", partial(table.report, "two-cells-nearest")),
        slow("docs/table.md", "search", partial(table_search.report, "stage1")),
        slow("docs/table.md", "search of two cells", partial(table_search.report, "two-cells-nearest")),
    ],
)
def test_the_tables_of_the_pages_are_those_of_the_rows(page: str, mark: str, lines: Callable[[], list[str]]) -> None:
    shown = (ROOT / page).read_text().split(f"<!-- {mark} -->\n")[1].split("<!-- end")[0]
    assert shown.strip().splitlines() == lines()


def test_what_the_page_says_of_planted_optima_and_of_found_generators_is_in_the_rows() -> None:
    still, moving = ([r["found"] for r in PLANTED if r["experiment"] == f"preference, G's rate {x}"] for x in (0, "5e-4"))
    low, high = comparison(moving, still, higher=True)["interval"]
    assert f"{low:+.1f} to {high:+.1f}" in (ROOT / "docs" / "evidence.md").read_text()
    assert len({(row["experiment"], row["seed"]) for row in PLANTED}) == len(PLANTED)
    assert round(max(row["params"] / 2e5 for row in TRAINED if "g_ch" in row["flags"])) == 7


def test_the_trial_of_degas_rates_on_the_page_is_that_of_the_rows() -> None:
    page = (ROOT / "docs" / "degas.md").read_text()
    for row in evidence.rows(evidence.RESULTS.with_name("degas-w-lr.jsonl")):
        active = f"{100 * row['active']:.0f}" if row["active"] > 0.01 else f"{100 * row['active']:.1f}"
        cells = (f"{row['search_ch']}, {row['w_lr']:g}", f"{row['loss']:.3f}", f"{active}%", f"{100 * row['dead']:.0f}%")
        assert f"| {' | '.join(cells)} | {row['entropy']:.3f} |" in page


@pytest.mark.parametrize("name", ["eagan, is fid size", "eagan, fid"])
def test_evolution_beats_as_many_random_genotypes_on_a_known_table(name: str) -> None:
    gaps = [planted.EXPERIMENTS[name](seed, None)["gap_sd"] for seed in range(3)]
    assert min(gaps) > 0.3
