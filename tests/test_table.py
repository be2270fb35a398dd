"""benchmark/table.py: trainings become rows that resume and merge, and rows become a report."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import autogan
from benchmark import table

TINY = dict(g_ch=4, d_ch=4, z_dim=6, g_batch=4, d_batch=4, n_critic=2, g_lr=1e-3, d_lr=1e-3, ema=0.9, eval_n=30)
SPACE = table.Space(cells=1, seeds=2, updates=4, up="nearest", flags=TINY)


@pytest.fixture
def words(tiny_data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of the command for a space of twelve cells that takes a second."""
    monkeypatch.setitem(table.SPACES, "tiny", SPACE)
    monkeypatch.setattr(table, "SHARED_N", 30)
    work = ["--work", str(tiny_data["data_dir"]), "--results", str(tmp_path), "--device", "cpu"]
    return ["--space", "tiny", "--images", tiny_data["dataset"], *work]


def call(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["table", *args])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "benchmark.table", *args])
    table.main()


def test_the_spaces_have_all_their_architectures() -> None:
    sizes = {name: len(set(space.vectors())) for name, space in table.SPACES.items()}
    assert sizes == {"stage1": 36, "two-cells-nearest": 288, "two-cells": 2592}
    for vector in table.SPACES["two-cells-nearest"].vectors():
        assert [row[2] for row in autogan.names_of(vector)] == ["nearest", "nearest"]


@pytest.mark.usefixtures("quick_compact")
def test_a_table_is_shared_and_resumed(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "run", *words, "--seeds", "1")
    path = tmp_path / "table-tiny.jsonl"
    whole = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["vector"] for row in whole] == [autogan.text_of(v) for v in SPACE.vectors()]
    assert all([s["updates"] for s in row["scores"]] == [1, 2, 4] for row in whole)
    assert str(tmp_path) not in path.read_text()  # no folder of this machine
    results = {row["vector"]: (row["scores"], row["params"], row["macs"]) for row in whole}

    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]) + '{"space": "tiny", "vec')  # killed
    call(monkeypatch, "run", *words, "--seeds", "1", "--shard", "0/2")
    other = tmp_path / "table-tiny.0of2.jsonl"
    assert len(other.read_text().splitlines()) == 4  # the first, third, ... but for two that were there
    call(monkeypatch, "run", *words, "--seeds", "1")
    again = [json.loads(line) for file in (path, other) for line in file.read_text().splitlines()]
    assert len(again) == 12
    assert {row["vector"]: (row["scores"], row["params"], row["macs"]) for row in again} == results


@pytest.mark.usefixtures("quick_compact")
def test_a_training_is_that_of_the_script(tmp_path: Path) -> None:
    """With all three cells, nothing is resized or cut: autogan.py gets the same scores from the same seed."""
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(40) % 2)
    space, vector = table.Space(cells=3, seeds=1, updates=4, flags=TINY), (0, 1, 2, 1, 1, 1, 0, 1, 1, 0, 2, 1, 0, 3)
    job = table.job_of(space, tmp_path / "images.npz", tmp_path, "cpu")
    found = table.train(job, space, vector, seed=3)["scores"][-1]
    length = dict(phase="train", epoch_batches=2, train_epochs=4, eval_every=4, eval_after=0)
    about = dict(dataset=str(tmp_path / "images.npz"), data_dir=tmp_path, genotype=autogan.text_of(vector), device="cpu")
    autogan.main(space.args(3, **length, **about, runs_dir=tmp_path / "runs"))
    (made,) = tmp_path.glob("runs/*/result.json")
    last = json.loads(made.read_text())["last"]
    assert (last["step"], last["fid"], last["is"]) == (4, pytest.approx(found["fid"]), pytest.approx(found["is"]))


@pytest.mark.usefixtures("quick_compact")
def test_shared_weights_score_every_architecture(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "shared", *words, "--seeds", "0", "1")
    call(monkeypatch, "shared", *words, "--seeds", "1")  # is there already
    rows = table.lines_of(tmp_path / "table-shared-tiny.jsonl")
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        scored = [(x["updates"], x["bn_batches"], x["n"]) for x in row["scored"]]
        assert scored == [(4, 0, 30), (4, 16, 30), (16, 0, 30), (16, 16, 30)]
        assert all(len(x["scores"]) == 12 and len({fid for fid, _ in x["scores"]}) == 12 for x in row["scored"])
    assert rows[0]["scored"] != rows[1]["scored"]


def row(vector: tuple, seed: int, fids: list, **more: object) -> dict:
    scores = [{"updates": u, "fid": fid, "is": 2.0} for u, fid in zip(SPACE.budgets, fids, strict=True)]
    about = {"space": "tiny", "protocol": {"g_ch": 4}, "git": {"sha": "a"}, "torch": "2", "device": "cpu", "command": []}
    costs = {"params": 1, "macs": 2, "train_s": 3.0, "score_s": 4.0}
    return {**about, **costs, "vector": autogan.text_of(vector), "seed": seed, "scores": scores, **more}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of twelve cells, three seeds and a fourth that is not whole. FID of cell k, seed s at the end: k + s; the
    reverse order after a quarter; after half, as at the end but for cell 11, which diverged."""
    monkeypatch.setitem(table.SPACES, "tiny", SPACE)
    rows = [
        row(v, s, [50 - k, 10 * k if k < 11 else None, k + s], git={"sha": "ab"[s % 2]})
        for s in range(3)
        for k, v in enumerate(SPACE.vectors())
    ]
    rows.append(row(SPACE.vectors()[0], 3, [1, 1, 1]))
    for k in (0, 1):  # two shards, and a line that is still being written
        text = "".join(json.dumps(x) + "\n" for x in rows[k::2]) + ('{"spa' if k else "")
        (tmp_path / f"table-tiny.{k}of2.jsonl").write_text(text)
    return tmp_path


def test_rows_of_shards_become_one_table(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "merge", "--space", "tiny", "--results", str(results))
    whole = json.loads((results / "table-tiny.json").read_text())
    assert whole["protocol"] == {"g_ch": 4}
    assert sorted(whole["commits"]) == ["a", "b"]
    assert len(whole["rows"]) == 37
    assert [x["seed"] for x in whole["rows"]] == sorted(x["seed"] for x in whole["rows"])
    found = table.read(results / "table-tiny.json", SPACE)
    assert found.seeds == [0, 1, 2]
    assert found.scores["fid"][11].tolist() == [[39, np.inf, 11], [39, np.inf, 12], [39, np.inf, 13]]


@pytest.mark.parametrize(
    "other",
    [{"protocol": {"g_ch": 8}, "seed": 9}, {"protocol": {"g_ch": 4, "up": "all"}, "seed": 9}, {"params": 1, "seed": 0}],
    ids=["another width", "one key more", "other scores"],
)
def test_rows_that_do_not_belong_together_are_refused(other: dict, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.append(results / "table-tiny.jsonl", {**row(SPACE.vectors()[0], 9, [7, 7, 7]), **other})
    with pytest.raises(SystemExit, match="tiny"):
        call(monkeypatch, "merge", "--space", "tiny", "--results", str(results))
    assert not (results / "table-tiny.json").exists()


def test_the_statistics_are_those_of_a_known_table(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "merge", "--space", "tiny", "--results", str(results))
    x = table.read(results / "table-tiny.json", SPACE).scores["fid"]
    value = {name: statistic(x) for name, (statistic, _) in table.STATISTICS.items()}
    sd = np.std(range(12), ddof=1)
    assert value == {
        "mean": pytest.approx(6.5),
        "sd between architectures (means over seeds)": pytest.approx(sd),
        "the same without the seeds' share": pytest.approx((sd**2 - 1 / 3) ** 0.5),
        "sd between seeds, median over architectures": pytest.approx(1),
        "rank correlation between two seeds": pytest.approx(1),
        "a quarter of the budget with the whole, same seed": pytest.approx(-1),
        "half of the budget with the whole, same seed": pytest.approx(1),
        "a quarter of the budget with the whole, two seeds": pytest.approx(-1),
        "half of the budget with the whole, two seeds": pytest.approx(1),
    }
    low, high = table.interval(x, table.spread)
    assert low < sd < high


def test_the_report_says_what_was_not_run(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert table.report("two-cells", results)[-1] == "| all | not run | not run |"
    monkeypatch.setattr(table, "DRAWS", 40)
    call(monkeypatch, "merge", "--space", "tiny", "--results", str(results))
    lines = table.report("tiny", results)
    assert lines[0].startswith("| tiny: 12 architectures, 3 of 2 seeds |")
    assert "| rank correlation between two seeds | 1.00 (1.00 to 1.00) |" in "\n".join(lines)
    assert len(lines) == 2 + len(table.STATISTICS)
    good, bad = [[k, 2.0] for k in range(12)], [[-k, 2.0] for k in range(12)]
    for seed, scores in enumerate([good, good, bad]):
        scored = [{"updates": 4, "bn_batches": 0, "scores": scores}]
        table.append(results / "table-shared-tiny.jsonl", {"space": "tiny", "seed": seed, "scored": scored})
    assert "with the table | 0.33 (-1.00 to 1.00) | undefined |" in table.report("tiny", results)[-1]
