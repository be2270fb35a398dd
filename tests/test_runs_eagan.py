"""Runs of eagan.py: variants of the paper, an objective of one's own, bad genotype files, two processes."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import eagan
from common.cells import named
from eagan import D_SPACE, G_SPACE, PUBLISHED
from tests.runs import command, flags, read, rows, slow, start, two_processes

pytestmark = pytest.mark.usefixtures("quick_compact")


@pytest.fixture
def method() -> ModuleType:
    return eagan


@pytest.mark.parametrize(
    "words",
    [
        "--stages coupled --objectives fid,size --no-weight-reset",
        *(slow("--stages coupled"), slow("--objectives fid,size"), slow("--dbar plain --size 32"), slow("--dbar d_c")),
        *(slow("--stages g"), slow("--genotype eagan-g --stages d"), slow("--mu-plus-lambda"), slow("--selection cars")),
        *(slow("--genotype eagan-g --size 48 --grad-clip 50"), slow("--amp"), slow("--bn-batches 0")),
        *(slow("--init-g eagan-g --init-d autogan-d"), slow("--genotype adversarialnas-g --d-genotype plain --size 32")),
    ],
)
def test_every_variant_of_the_paper_runs(tiny: dict, tmp_path: Path, words: str) -> None:
    last = read(start(eagan, {**tiny, "train_epochs": 2}, tmp_path, words), "result.json")["last"]
    assert last["fid"] > 0
    assert (last["is"] is None) == ("fid,size" in words)  # paper Table 5: without the IS as an objective


@pytest.mark.slow
def test_cycles_search_both_stages_again(tiny: dict, tmp_path: Path) -> None:
    run = start(eagan, tiny, tmp_path, cycles=2, phase="search")
    assert [r["stage"] for r in rows(run, "search.jsonl")] == ["1", "1", "2", "2"] * 2
    assert read(run, "result.json")["genotype"]["G"]


def test_an_own_objective_selects(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in OBJECTIVES, and --objectives knows its name: here networks are to be large."""
    monkeypatch.setitem(eagan.OBJECTIVES, "large", lambda x: -x.params)
    words = flags({**tiny, "runs_dir": tmp_path, "objectives": "large", "phase": "search", "rounds": 1})
    assert command(eagan, words) == 0
    (run,) = tmp_path.iterdir()
    found = rows(run, "search.jsonl")
    assert [row["stage"] for row in found] == ["1", "2"]
    for row in found:
        params = {x["id"]: x["params"] for x in row["population"]}
        best, second, *_ = sorted(params.values(), reverse=True)
        assert [params[x] for x in row["kept"]] == [best, second]
        assert {params[x] for x in (*row["front"], row["best"])} == {best}
        assert all(x["is"] is None and x["fid"] > 0 for x in row["population"])


@pytest.mark.slow
def test_two_processes_share_batches_and_scoring(tiny: dict, whole: Path, tmp_path: Path) -> None:
    runs = two_processes(eagan, tiny, tmp_path), whole
    shared, alone = (rows(run, "search.jsonl")[0]["population"] for run in runs)
    assert [x["genotype"] for x in shared] == [x["genotype"] for x in alone]
    assert all(x["fid"] is not None for x in shared)
    first, want = (next(r["loss/d"] for r in rows(run, "metrics.jsonl") if "loss/d" in r) for run in runs)
    assert first == pytest.approx(want, rel=0.5)  # its half of the batch


# ---- genotype files ------------------------------------------------------------


def edited(rows: list, cell: int, changes: dict[int, object]) -> list[list]:
    """The rows of a genotype, or its codes, with other values in some columns of a cell."""
    made = [list(row) for row in rows]
    for column, value in changes.items():
        made[cell - 1][column] = value
    return made


G_CODES, D_CODES = PUBLISHED["G"]["eagan-g"], PUBLISHED["D"]["eagan-d-cifar10"]
G_ROWS, D_ROWS = list(named("eagan-g", G_SPACE, PUBLISHED)), list(named("eagan-d-cifar10", D_SPACE, PUBLISHED))


@pytest.mark.parametrize(
    ("key", "bad", "parts"),
    [
        ("G", edited(G_CODES, 2, {2: 7}), ["cell 2", "1->3", "7", "0..6"]),
        ("G", edited(G_CODES, 1, {0: 3}), ["cell 1", "0->1", "3", "0..2"]),
        ("G", edited(G_CODES, 3, {6: -1}), ["cell 3", "3->4", "-1"]),
        ("G", edited(G_CODES, 1, {2: 0, 3: 0}), ["cell 1", "node 3", "1->3", "2->3"]),
        ("G", edited(G_CODES, 3, {4: 0, 5: 0, 6: 0}), ["cell 3", "node 4", "1->4", "2->4", "3->4"]),
        ("D", edited(D_CODES, 1, {0: 0}), ["cell 1", "0->1", "0", "1..6"]),
        ("D", edited(D_CODES, 2, {5: 6, 6: 0}), ["cell 2", "2->4", "6", "-1..5"]),
        ("D", edited(D_CODES, 2, {1: 0, 2: 0}), ["cell 2", "node 2", "0->2", "1->2"]),
        ("D", edited(D_CODES, 3, {3: 0, 4: 0}), ["cell 3", "node 3", "1->3", "0->3"]),
        ("D", edited(D_CODES, 1, {5: -1}), ["cell 1", "2->4", "3->4", "none"]),
        ("D", edited(D_CODES, 2, {5: 0}), ["cell 2", "2->4", "3->4", "none"]),
        ("G", np.zeros((3, 6), int), ["(3, 7)", "(3, 6)"]),
        ("G", np.zeros((2, 7), int), ["(3, 7)", "(2, 7)"]),
        ("G", np.zeros(21, int), ["(3, 7)", "(21,)"]),
        ("G", np.ones((3, 7)), ["(3, 7)", "float64"]),
        ("G", [[None] * 7] * 3, []),
    ],
)
def test_bad_npy_genotypes_are_refused(refuse: Callable, tmp_path: Path, key: str, bad: object, parts: list[str]) -> None:
    file = tmp_path / "bad.npy"
    np.save(file, np.array(bad))
    line = refuse("--genotype", *(["eagan-g", "--d-genotype"] if key == "D" else []), file)
    assert all(part in line for part in [*parts, str(file)]), line


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (edited(G_ROWS, 2, {3: "conv_7x7"}), ["cell 2", "2->3", "conv_7x7"]),
        (edited(G_ROWS, 1, {0: "avg_pool"}), ["cell 1", "0->1", "avg_pool", "nearest"]),
        (edited(G_ROWS, 1, {0: 3}), ["cell 1", "0->1", "3"]),
        (edited(G_ROWS, 3, {2: "none", 3: "none"}), ["cell 3", "node 3", "1->3", "2->3"]),
        ([*G_ROWS[:2], G_ROWS[2][:6]], ["cell 3", "7"]),
        ([(*G_ROWS[0], "none"), *G_ROWS[1:]], ["cell 1", "7"]),
        ([*G_ROWS[:2], "bilinear"], ["cell 3", "7", "bilinear"]),
        (G_ROWS[:2], ["3"]),
        ({"0": G_ROWS[0]}, ["3"]),
        (D_ROWS, ["cell 1", "0->1", "conv_3x3"]),
    ],
)
def test_bad_json_genotypes_are_refused(refuse: Callable, tmp_path: Path, bad: object, parts: list[str]) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps({"G": bad}))
    line = refuse("--genotype", file)
    assert all(part in line for part in [*parts, str(file)]), line


@pytest.mark.parametrize(("flag", "content"), [("--genotype", "D"), ("--init-g", "D"), ("--init-d", "G")])
def test_a_genotype_file_without_the_key_is_refused(refuse: Callable, tmp_path: Path, flag: str, content: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps({content: {"G": G_ROWS, "D": D_ROWS}[content]}))
    assert f"{flag} {file}" in refuse(flag, file)
