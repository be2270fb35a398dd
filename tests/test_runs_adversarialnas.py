"""Runs of adversarialnas.py: rows of its search, variants of the paper, the authors' genotype files, two processes."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import adversarialnas as nas
from adversarialnas import D_SPACE, G_SPACE, PUBLISHED
from common.cells import named
from common.files import UserError
from tests.runs import load, parsed, read, rows, slow, start, two_processes

pytestmark = pytest.mark.usefixtures("quick_compact")


@pytest.fixture
def method() -> ModuleType:
    return nas


# ---- what only this search leaves ------------------------------------------------------------


def test_search_rows_tell_probabilities_entropy_genotype_and_flips(whole: Path) -> None:
    found = rows(whole, "search.jsonl")
    assert [(r["batch"], r["step"]) for r in found] == [(0, 0), (3, 2), (4, 2)]
    for row in found:
        for net, space in (("G", G_SPACE), ("D", D_SPACE)):
            edges = {f"{c + 1}/{e.name}": e for c in range(space.cells) for e in space.edges_of(c)}
            assert list(row["probabilities"][net]) == list(row["entropy"][net]) == list(edges)
            for key, edge in edges.items():
                p = row["probabilities"][net][key]
                assert tuple(p) == edge.ops
                dead = net == "D" and len(edge.ops) == 5
                assert sum(p.values()) == pytest.approx(5 / 7 if dead else 1, abs=0.05 if dead else 1e-5)
                assert 0 < row["entropy"][net][key] < 1.9460  # ln 7
            assert space.check(row["genotype"][net], "row")
    flips = {"G": 0, "D": 0}
    for before, row in pairwise(found):
        for net in "GD":
            pairs = zip(before["genotype"][net], row["genotype"][net], strict=True)
            flips[net] += sum(a != b for one in pairs for a, b in zip(*one, strict=True))
        assert row["flips"] == flips
    assert flips["G"] > 0
    assert found[-1]["genotype"] == {k: read(whole, "genotype.json")[k] for k in "GD"}
    assert sorted(f.stem for f in (whole / "genotypes").iterdir()) == ["000000", "000002"]
    assert [r["step"] for r in rows(whole, "metrics.jsonl") if "loss/g_arch" in r] == [1, 2]


def test_the_genotype_is_also_left_as_the_authors_file(whole: Path) -> None:
    for net, space in (("G", G_SPACE), ("D", D_SPACE)):
        codes = np.load(whole / f"latest_{net}.npy")
        assert (codes.dtype.str, codes.shape, codes.flags.c_contiguous) == ("|u1", (space.cells, 7), True)
        assert codes.tolist() == space.to_codes(read(whole, "genotype.json")[net])


# ---- variants ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        *("--gumbel log", "--gumbel off", "--mixed plain", "--amp", "--ref-ema-overwrite", "--size 48 --chunks 2"),
        *("--grad-clip 50 --search-eval-every 0", "--genotype mmd-g", "--genotype animation-g --d-genotype animation-d"),
    ],
)
def test_every_variant_of_the_paper_runs(tiny: dict, tmp_path: Path, words: str) -> None:
    run = start(nas, tiny, tmp_path, words)
    assert read(run, "result.json")["last"]["fid"] > 0
    assert bool(rows(run, "search.jsonl")) == ("--genotype" not in words)


@pytest.mark.parametrize("candidates", [2, slow(1)])
def test_random_search_trains_the_best_candidate(tiny: dict, tmp_path: Path, candidates: int) -> None:
    """Paper Table 3; a single candidate needs no score."""
    run = start(nas, tiny, tmp_path, search="random", candidates=candidates)
    found, result = rows(run, "search.jsonl"), read(run, "result.json")
    assert len({str(r["genotype"]) for r in found}) == candidates
    scores = [r["eval/fid"] for r in found]
    assert (scores == [None]) == (candidates == 1)
    best = scores.index(min(scores)) if candidates > 1 else 0
    assert result["genotype"]["G"] == found[best]["genotype"]["G"]
    assert result["last"]["fid"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("fixed_d", ["super", "sngan", "autogan"])
def test_against_a_fixed_d_only_g_is_searched(tiny: dict, tmp_path: Path, fixed_d: str) -> None:
    run = start(nas, tiny, tmp_path, fixed_d=fixed_d)
    assert rows(run, "search.jsonl")[-1]["genotype"].keys() == {"G"}
    assert read(run, "result.json")["genotype"]["D"] is None
    assert read(run, "result.json")["last"]["fid"] > 0


@pytest.mark.slow
def test_the_d_of_the_search_can_be_trained(tiny: dict, tmp_path: Path) -> None:
    run = start(nas, tiny, tmp_path, d_genotype="searched")
    assert "cells.0.edges.0" in next(iter(load(run, "checkpoint.pt")["parts"]["D"]))
    assert read(run, "result.json")["last"]["fid"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("search", [{}, {"search": "random", "candidates": 1}], ids=["adversarial", "random"])
def test_g_params_sets_the_width_nearest_to_it(tiny: dict, tmp_path: Path, search: dict) -> None:
    run = start(nas, tiny, tmp_path, g_params=2e4, **search)
    ch, genotype = load(run, "weights.pt")["g_ch"], read(run, "result.json")["genotype"]
    params = [nas.Generator.cost(genotype["G"], c, 6, 16).params for c in (ch - 1, ch, ch + 1)]
    assert min(params, key=lambda n: abs(n - 2e4)) == params[1] == genotype["params"]["G"]


@pytest.mark.slow
def test_merged_and_plain_search_alike(tiny: dict, whole: Path, tmp_path: Path) -> None:
    """The same losses but for rounding, update after update."""
    plain = start(nas, tiny, tmp_path, mixed="plain", phase="search")
    a, b = ([r for r in rows(run, "metrics.jsonl") if "loss/g_arch" in r] for run in (plain, whole))
    for key in ("loss/d", "loss/g", "loss/d_arch", "loss/g_arch"):
        assert [r[key] for r in a] == pytest.approx([r[key] for r in b], rel=3e-3, abs=3e-4)


@pytest.mark.slow
def test_an_evaluation_changes_the_search_only_when_asked_to(tiny: dict, tmp_path: Path) -> None:
    """The authors' code goes on with G's average, alphas included, after each evaluation of the search."""
    runs = [start(nas, tiny, tmp_path, ref_ema_overwrite=on, phase="search", search_epochs=3) for on in (True, False)]
    authors, ours = ([r["probabilities"]["G"] for r in rows(run, "search.jsonl")] for run in runs)
    assert authors[0] == ours[0]
    assert authors[-1] != ours[-1]


# ---- genotype files ------------------------------------------------------------


def test_a_node_without_an_input_is_refused(refuse: Callable, tmp_path: Path) -> None:
    """Codes and shapes of bad files: test_runs_eagan.py, the same code."""
    genotype = [list(row) for row in named("adversarialnas-g", G_SPACE, PUBLISHED)]
    genotype[1][4:] = ["none"] * 3
    (tmp_path / "g.json").write_text(json.dumps({"G": genotype}))
    line = refuse("--genotype", tmp_path / "g.json")
    assert all(part in line for part in ("g.json", "cell 2", "node 4", "1->4", "2->4", "3->4")), line


# ---- several processes ------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_the_batches(tiny: dict, whole: Path, tmp_path: Path) -> None:
    runs = two_processes(nas, tiny, tmp_path), whole
    p = [rows(run, "search.jsonl")[1]["probabilities"]["G"]["1/1->3"]["conv_3x3"] for run in runs]
    assert p[0] == pytest.approx(p[1], abs=0.01)


@pytest.mark.parametrize(("batch", "world"), [(2, 2), (5, 2), (3, 3), (6, 4)])
def test_a_batch_that_processes_cannot_halve_is_refused(batch: int, world: int) -> None:
    def check(n: int) -> None:
        nas.check(parsed(nas, ["--search-batch", str(n), "--d-batch", "12", "--g-batch", "12"]), world)

    with pytest.raises(UserError, match=rf"^--search-batch {batch}\b.*\b{world}\b.*\b{2 * world}\b"):
        check(batch)
    check(3 * world)
