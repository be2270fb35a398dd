"""Searches in a table whose best architecture and noise are known."""

from pathlib import Path

import numpy as np
import pytest

from benchmark import table_search
from benchmark.table import SPACES, Table


def table_of(noise: float = 0.0, seeds: int = 3) -> Table:
    """AutoGAN's first stage; the FID of an architecture is 1 + its place, IS and parameters say the same."""
    vectors, rng = SPACES["stage1"].vectors(), np.random.default_rng(0)
    fid = 1 + np.arange(len(vectors), dtype=float)[:, None, None] + noise * rng.normal(size=(len(vectors), seeds, 3))
    return Table(vectors, list(range(seeds)), np.arange(len(vectors)), {"fid": fid, "is": 100 - fid})


@pytest.mark.parametrize("name", table_search.METHODS)
def test_without_noise_a_search_finds_the_best_and_regret_only_falls(name: str):
    found = [table_search.regrets(table_of(), table_search.METHODS[name], 200, seed) for seed in (0, 1, 0)]
    assert all((np.diff(x) <= 0).all() for x in found)
    assert all(x[-1] <= 1 for x in found)
    assert found[0].tolist() == found[2].tolist() != found[1].tolist()


def test_random_search_has_the_regret_that_chance_has():
    """The least of n uniform draws from 0 ... k - 1 has the mean sum over j of ((k - j) / k)^n."""
    k, n = len(table_of().vectors), 10
    found = [table_search.regrets(table_of(), table_search.random_search, n, seed)[-1] for seed in range(400)]
    expected = sum(((k - j) / k) ** n for j in range(1, k))
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / len(found) ** 0.5)


def test_what_guides_beats_chance_where_there_is_something_to_learn():
    at = {}
    for name, search in table_search.METHODS.items():
        at[name] = np.mean([table_search.regrets(table_of(0.3), search, 40, seed)[-1] for seed in range(40)])
    assert at["EAGAN's selection"] < at["random search"]


def test_under_noise_the_incumbent_may_be_wrong():
    """A search believes the FID that it saw; regret is of the mean over seeds."""
    table = table_of()
    table.scores["fid"][5, 0] = 0.0  # one lucky seed of a poor architecture
    found = [table_search.regrets(table, table_search.random_search, 500, seed)[-1] for seed in range(3)]
    truth = table.scores["fid"][..., -1].mean(1)
    assert found == pytest.approx([truth[5] - truth.min()] * 3)


def test_rows_and_their_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_search, "read", lambda path, space: table_of())
    monkeypatch.setattr(
        "sys.argv", ["table_search", "run", "--searches", "4", "--evaluations", "12", "--results", str(tmp_path)]
    )
    table_search.main()
    rows = table_search.lines_of(tmp_path / "table-search-stage1.jsonl")
    assert [row["method"] for row in rows] == list(table_search.METHODS)
    assert all(len(row["mean"]) == len(row["half_interval"]) == 12 for row in rows)
    lines = table_search.report("stage1", tmp_path)
    assert f"{rows[0]['mean'][9]:.3f} ± {rows[0]['half_interval'][9]:.3f}" in lines[2]
    assert all("not run" in line for line in table_search.report("two-cells", tmp_path)[2:])
    table_search.draw("stage1", tmp_path / "x.svg", tmp_path)
    assert (tmp_path / "x.svg").stat().st_size > 1000
