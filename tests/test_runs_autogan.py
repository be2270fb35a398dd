"""Runs of autogan.py: rows of its search, what a checkpoint holds, variants of the paper, bad genotypes, two processes."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import autogan
from autogan import PUBLISHED, Args, Generator, names_of, read_vector
from common import gan
from common.cells import count_params
from common.files import UserError
from common.run import Run
from tests.conftest import REAL_DATA
from tests.runs import command, load, read, rows, slow, start, two_processes

pytestmark = pytest.mark.usefixtures("quick_compact")


@pytest.fixture
def method() -> ModuleType:
    return autogan


# ---- what only this search leaves ------------------------------------------------------------


def test_search_rows_show_controller_beam_reset_and_choice(whole: Path) -> None:
    found = rows(whole, "search.jsonl")
    kinds = {kind: [r for r in found if r["kind"] == kind] for kind in ("controller", "beam", "reset", "derive")}
    turn = ["controller", "controller", "beam"]
    assert [r["kind"] for r in found if r["kind"] != "reset"] == [*turn, *turn, *turn, "derive"]
    assert all(row["stage"] in (0, 1, 2) for row in found)
    for row in kinds["controller"]:
        assert len(row["decisions"]) == len(row["options"]) == len(row["policy"]) == len(row["entropy"])
        for options, policy in zip(row["options"], row["policy"], strict=True):
            assert len(options) == len(policy)
            assert sum(policy) == pytest.approx(1)
        assert row["reward"] == pytest.approx(np.mean([x["score"] for x in row["scored"]]))
        assert row["baseline"] > 0
    for row in kinds["beam"]:
        assert {len(read_vector(x["vector"])) for x in row["beam"]} == {(4, 9, 14)[row["stage"]]}
    (reset,) = kinds["reset"]
    assert reset["stage"] == 1
    assert min(reset["window"]["var_g"], reset["window"]["var_d"]) < 9
    (derive,) = kinds["derive"]
    assert [x["how"] for x in derive["beam"]].count("proxy") == 1
    assert all(x["shared"] > 0 and x["score"] > 0 for x in derive["beam"])
    assert derive["spearman"] is None or -1 <= derive["spearman"]["rho"] <= 1


def test_the_best_finalist_is_trained(whole: Path) -> None:
    finalists = [x for x in rows(whole, "search.jsonl")[-1]["beam"] if x["how"] == "beam"]
    best = max(finalists, key=lambda x: x["score"])["vector"]
    genotype, weights = read(whole, "genotype.json"), load(whole, "weights.pt")
    assert genotype["vector"] == best
    assert weights["genotype"]["G"] == names_of(read_vector(best))
    assert [c["conv"] for c in genotype["cells"]] == [row[0] for row in names_of(read_vector(best))]
    assert genotype["params"]["G"] == count_params(Generator(names_of(read_vector(best)), 4, 6, 16))


def test_loss_windows_baseline_and_beam_are_in_the_checkpoint(tiny: dict, tmp_path: Path, monkeypatch) -> None:
    """Paper §3.4. The authors' code loses the windows, so a resumed search takes 500 G steps before it can reset again."""
    seen, begin = [], Run.begin

    def look(run: Run, phase: str, stage: str, *rest: object, **more: object) -> None:
        if stage == "stage 2 iteration 3/3 controller":
            run.save()
            seen.append(load(run.dir, "checkpoint.pt"))
        begin(run, phase, stage, *rest, **more)

    monkeypatch.setattr(Run, "begin", look)
    start(autogan, tiny, tmp_path, phase="search", reset_variance=0.0, derive_epochs=0, proxy_n=0)
    (saved,) = seen
    state = saved["state"]
    assert [len(state["windows"][k]) for k in "gd"] == [3, 3]
    assert all(isinstance(loss, float) for window in state["windows"].values() for loss in window)
    assert (state["s"], state["iteration"], state["turn"]) == (2, 2, 2)
    assert len(state["beam"]) == 2
    assert {"vector", "score", "h", "c"} <= state["beam"][0].keys()
    assert {"G", "D", "g_opt", "d_opt", "controller", "c_opt"} == saved["parts"].keys()


# ---- variants ------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        *("--search random --random-n 2 --proxy-n 0 --phase search", slow("--search random --random-n 2 --proxy-n 0")),
        *(slow("--search slas"), slow("--search random-shared"), slow("--reward fid --ctrl-batch 2")),
        *(slow("--reward is-cost --cost macs"), slow("--controller-loss reference"), slow("--no-dedupe"), slow("--amp")),
        *(slow("--bn-batches 2"), slow("--no-dynamic-reset"), slow("--derive-epochs 0 --proxy-n 0"), slow("--size 24")),
        *(slow("--cells 1 --grow="), slow("--cells 2 --grow 2"), slow("--cells 4 --size 32 --grow 1,2,3 --iterations 4")),
    ],
)
def test_every_variant_of_the_paper_runs(tiny: dict, tmp_path: Path, words: str) -> None:
    run = start(autogan, tiny, tmp_path, words)
    args, result = read(run, "config.json")["args"], read(run, "result.json")
    assert len(names_of(read_vector(result["genotype"]["vector"]))) == args["cells"]
    kinds = {r["kind"] for r in rows(run, "search.jsonl")}
    assert ("controller" in kinds) == (args["search"] in ("mlas", "slas"))
    assert "derive" in kinds
    assert args["phase"] == "search" or result["last"]["fid"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("genotype", ["A", "B", "C", "sngan", "1 1 2 1 1 1 2 1 1 1 1 2 1 3"])
def test_a_given_architecture_is_trained(tiny: dict, tmp_path: Path, genotype: str) -> None:
    run = start(autogan, tiny, tmp_path, genotype=genotype, size=48 if genotype == "A" else 16)
    result = read(run, "result.json")
    assert read_vector(result["genotype"]["vector"]) == read_vector(genotype)
    assert result["last"]["fid"] > 0


@pytest.mark.slow
def test_weights_of_a_version_that_knew_tap_are_evaluated(tiny: dict, whole: Path, tmp_path: Path) -> None:
    saved = load(whole, "weights.pt")
    torch.save({**saved, "tap": "after"}, tmp_path / "w.pt")
    run = start(autogan, tiny, tmp_path / "runs", phase="eval", weights=tmp_path / "w.pt", g_ch=99)
    assert read(run, "result.json")["last"]["fid"] == read(whole, "result.json")["last"]["fid"]
    assert read(run, "config.json")["params"] == {"G": Generator.cost(saved["genotype"]["G"], 4, 6, 16).params}


# ---- bad input ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        *(("[]", []), ("{", []), ('{"method": "eagan", "G": []}', ["vector"]), ('{"vector": [1, 0, 1, 1]}', ["vector"])),
        *(('{"vector": "1 0 1 1 2 0 0 1 1"}', ["5", "2/conv"]), ('{"vector": "__import__(1)"}', [])),
    ],
)
def test_bad_genotype_files_are_refused(refuse: Callable, tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "g.json").write_text(text)
    line = refuse("--genotype", tmp_path / "g.json")
    assert all(part in line for part in [*parts, "g.json"]), line


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"genotype": {"G": [["pre", "none", "nearest", "maybe", "none"]]}}, ["cell 1", "maybe", "no, yes"]),
        ({"tap": "before"}, ["--tap before"]),
    ],
    ids=str,
)
def test_weights_of_another_network_are_refused(refuse: Callable, tmp_path: Path, changes: dict, parts: list[str]) -> None:
    genotype = names_of(PUBLISHED["A"])
    good = {"method": "autogan", "g_ch": 4, "z_dim": 6, "size": 16, "genotype": {"G": genotype}}
    good["G"] = Generator(genotype, 4, 6, 16).state_dict()
    torch.save({**good, **changes}, tmp_path / "w.pt")
    line = refuse("--phase", "eval", "--weights", tmp_path / "w.pt")
    assert all(part in line for part in ["w.pt", *parts]), line


def test_is_without_the_layers_that_it_needs_is_refused_at_once(refuse: Callable, tmp_path: Path, tiny_data: dict) -> None:
    weights = REAL_DATA / "inception-2015-12-05-upto-Mixed_7a.pth"
    if not weights.exists():
        pytest.skip(f"no {weights.name} in GAN_NAS_DATA")
    words = ["--evaluator", "inception", "--inception-weights", str(weights), "--fid-dims", "768"]
    line = refuse(*words)
    assert "Mixed_7b" in line
    assert "--reward" in line
    words += ["--reward", "fid", "--dry-run", "--preset", "smoke", "--dataset", tiny_data["dataset"]]
    assert command(autogan, [*words, "--data-dir", str(tmp_path)]) == 0


@pytest.mark.parametrize("without", [{"genotype": "A"}, {"phase": "eval", "weights": Path("weights.pt")}], ids=str)
def test_flags_of_a_search_are_not_checked_where_there_is_none(without: dict) -> None:
    odd = {"beam": 9, "candidates": 1, "grow": "x", "controller_loss": "reference", "ctrl_batch": 2, "proxy_n": 1}
    autogan.check(Args(**odd, derive_epochs=0, **without), 1)
    with pytest.raises(UserError):
        autogan.check(Args(**odd, derive_epochs=0), 1)


def test_the_sizes_of_every_preset_fit() -> None:
    for values in autogan.PRESETS.values():
        autogan.check_size(Args(**{**values, "size": 32}))


def test_dry_run_shows_the_given_architecture(tiny_data: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--dataset", tiny_data["dataset"], "--evaluator", "compact", "--dry-run", "--genotype", "A"]
    assert command(autogan, [*words, "--data-dir", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "1 0 1 1 1 0 0 1 1 1 0 1 0 3" in lines
    assert "2 pre none bilinear yes 1" in lines


@pytest.mark.parametrize("log_every", [1, 10**6])
def test_a_finalist_that_diverges_is_out_and_the_others_go_on(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    step = autogan.gan_step

    def diverging(job: gan.Job, state: autogan.State, nets: gan.Pair, *rest: object) -> list:
        losses = step(job, state, nets, *rest)
        if job.run.status["stage"].startswith("finalist 1"):
            job.run.watch(torch.tensor(float("nan")))
        return losses

    monkeypatch.setattr(autogan, "gan_step", diverging)
    run = start(autogan, {**tiny, "log_every": log_every}, tmp_path, phase="search")
    (row,) = (r for r in rows(run, "search.jsonl") if r["kind"] == "derive")
    assert [x["score"] > 0 for x in row["beam"]] == [True] * (len(row["beam"]) - 1) + [False]
    assert "finalist 1" in (run / "log.txt").read_text()


# ---- several processes ------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_batches_and_the_images_of_a_score(tiny: dict, whole: Path, tmp_path: Path) -> None:
    runs = two_processes(autogan, {**tiny, "reset_variance": 0.0}, tmp_path), whole
    shared, alone = (next(r for r in rows(run, "search.jsonl") if r["kind"] == "controller") for run in runs)
    assert [x["vector"] for x in shared["scored"]] == [x["vector"] for x in alone["scored"]]
    assert shared["reward"] == pytest.approx(alone["reward"], rel=0.1)  # the same images but for BatchNorm's halves
