"""Runs of degas.py: rows of its search, the schedule of its training, labels, variants, bad genotypes, two processes."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import degas
from common.cells import count_params
from common.data import Dataset
from common.files import UserError
from tests.runs import (
    assert_equal,
    command,
    load,
    parsed,
    read,
    rows,
    slow,
    start,
    two_processes,
)

pytestmark = pytest.mark.usefixtures("quick_compact")


@pytest.fixture
def method() -> ModuleType:
    return degas


@pytest.fixture
def labelled(undisturbed: Callable) -> Path:
    """A training with labels, on the genotype of random alpha."""
    return undisturbed("degas", conditional=True, random_arch=True)


def given(file: Path) -> degas.Genotype:
    """The genotype that --genotype reads from a file."""
    return degas.first_state(degas.Args(genotype=str(file)), None).G


# ---- what only this search leaves ------------------------------------------------------------


def test_search_rows_show_how_alpha_stands(whole: Path) -> None:
    found = rows(whole, "search.jsonl")
    assert [(r["step"], r["epoch"]) for r in found] == [(0, 0), (3, 1), (6, 2)]
    names = [f"{c.stage}/{c.name}" for c in degas.Space().connections]
    for row in found:
        shares, entropy = row["probabilities"]["G"], row["entropy"]["G"]
        assert list(shares) == list(entropy) == names
        assert all(sum(p.values()) == pytest.approx(1) for p in shares.values())
        assert list(shares["1/U0->U1"]) == ["none", *degas.OPS_UP]
        assert len(shares["1/U0->N1"]) == 9
        ops = [op for stage in row["genotype"]["G"] for op in stage]
        assert row["counts"]["skip"] == ops.count("skip_connect")
        assert row["counts"]["pool"] == ops.count("max_pool_3x3") + ops.count("avg_pool_3x3")
        assert row["counts"]["none leads"] == sum(max(p, key=p.get) == "none" for p in shares.values())
        assert row["loss/rec"] > 0
    assert entropy["2/N2->U2"] == pytest.approx(-sum(p * np.log(p) for p in shares["2/N2->U2"].values()))
    leading = [[max(p, key=p.get) for p in row["probabilities"]["G"].values()] for row in found]
    changes = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairwise(leading)]
    assert [row["flips"]["G"] for row in found] == [0, changes[0], sum(changes)]
    assert sum(changes) > 0
    assert len({row["loss/mean_image"] for row in found}) == 1


def test_the_genotype_of_a_run_is_what_pruning_makes_of_its_alpha(whole: Path) -> None:
    saved, genotype = read(whole, "genotype.json"), given(whole / "genotype.json")
    assert saved["nodes"] == read(whole, "result.json")["genotype"]["nodes"]
    args = degas.Args(g_ch=4, z_dim=6, size=16)
    assert saved["G"] == rows(whole, "search.jsonl")[-1]["genotype"]["G"] == degas.genotype_json(args, genotype, {})["G"]
    assert saved["params"]["G"] == count_params(degas.Generator(genotype, 4, 6, 16))
    weights = load(whole, "weights.pt")
    assert (weights["method"], weights["genotype"], weights["classes"]) == ("degas", genotype, 0)


def test_a_search_shows_reconstructions_below_their_targets_and_keeps_the_latents(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = []
    monkeypatch.setattr(degas.Run, "samples", lambda _run, step, images: pictures.append(images))
    run = start(degas, tiny, tmp_path, phase="search", search_epochs=1, save_minutes=0)
    latents = load(run, "checkpoint.pt")["parts"]["latents"]
    assert latents.shape == (64, 6)
    assert (latents.norm(dim=1) <= 1 + 1e-6).all()
    with np.load(tiny["dataset"]) as npz:
        images = torch.from_numpy(npz["images"]).permute(0, 3, 1, 2)
    grid = pictures[-1].unflatten(0, (4, 2, 8))  # pairs of rows
    targets, made = grid[:, 0].flatten(0, 1), grid[:, 1].flatten(0, 1)
    assert targets.shape == made.shape == (32, 3, 16, 16)
    known = {degas.scaled(image).numpy().tobytes() for image in images}
    assert all(target.contiguous().numpy().tobytes() in known for target in targets)
    assert not (made == targets).any(dim=(1, 2, 3)).all()


@pytest.mark.parametrize("share", [0.01, slow(99.0)])
def test_a_search_that_never_left_the_mean_image_says_so_before_it_prunes(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(degas, "LEFT_MEAN", share)
    run = start(degas, tiny, tmp_path, phase="search", search_epochs=1, epoch_batches=1)
    result, log = read(run, "result.json"), (run / "log.txt").read_text()
    assert ("WARNING" in log) == (share == 0.01)
    assert log.find("WARNING") < log.rindex(result["genotype"]["text"])
    assert result["genotype"]["nodes"]


# ---- training ------------------------------------------------------------


def test_five_critic_steps_and_one_g_step_but_in_the_first_iteration(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CT-GAN's schedule (paper §4): rates fall linearly to 0, dropout in the critic alone."""
    calls, rates, passes = [], [], []
    critic, generator, dropout = degas.critic_step, degas.generator_step, torch.nn.functional.dropout

    def critic_step(job: object, nets: object, *args: object) -> dict:
        calls.append("D")
        rates.append((nets.g_opt.param_groups[0]["lr"], nets.d_opt.param_groups[0]["lr"]))
        return critic(job, nets, *args)

    monkeypatch.setattr(degas, "critic_step", critic_step)
    monkeypatch.setattr(degas, "generator_step", lambda *args: calls.append("G") or generator(*args))
    monkeypatch.setattr(degas.F, "dropout", lambda x, p, training: passes.append((p, training)) or dropout(x, p, training))
    run = start(degas, tiny, tmp_path, genotype="baseline", n_critic=5, iters=4, d_lr=1e-3)
    assert "".join(calls) == "DDDDD" + "GDDDDD" * 3
    assert passes == [(p, True) for p in (0.0, 0.2, 0.5, 0.5)] * (2 * 20 + 3)  # critic: images, penalty; G's step: one
    assert [d for _, d in rates[::5]] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert [g for g, _ in rates[::5]] == pytest.approx([2e-4, 1.5e-4, 1e-4, 0.5e-4])
    assert [r["lr/g"] for r in rows(run, "metrics.jsonl") if "lr/g" in r] == pytest.approx([1.5e-4, 1e-4, 0.5e-4])
    assert read(run, "status.json")["step"] == 3
    assert read(run, "result.json")["genotype"]["nodes"] == "baseline"


def test_a_training_with_labels_logs_what_the_critic_recognises(tiny: dict, labelled: Path, tmp_path: Path) -> None:
    trained = [r for r in rows(labelled, "metrics.jsonl") if "loss/d" in r]
    assert all({"loss/d_class", "loss/g_class", "accuracy/real", "accuracy/fake"} <= r.keys() for r in trained)
    assert all(0 <= r["accuracy/real"] <= 1 for r in trained)
    weights = load(labelled, "weights.pt")
    assert weights["classes"] == 2
    assert read(labelled, "genotype.json")["nodes"] == json.loads(json.dumps(weights["genotype"]))
    alone = start(degas, tiny, tmp_path, phase="eval", weights=labelled / "weights.pt", g_ch=99)
    assert read(alone, "result.json")["last"]["fid"] == read(labelled, "result.json")["last"]["fid"]


@pytest.mark.slow
def test_counting_recognised_classes_does_not_change_training(tiny: dict, labelled: Path, tmp_path: Path) -> None:
    run = start(degas, tiny, tmp_path, conditional=True, random_arch=True, log_every=100)
    assert_equal(load(run, "checkpoint.pt")["parts"], load(labelled, "checkpoint.pt")["parts"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        *("--n 2 --prune-score softmax", "--search-size 16 --size 32 --normal-ops 7", "--search-size 32 --size 48"),
        *("--z-init pca --z-grad batch", "--loss-reduction sum --w-lr 1e-5 --lap-levels 1"),
        *("--search-images 16 --search-batch 16", "--genotype baseline --conditional --size 48", "--amp --ema 0.9"),
        *("--eval-bn running --random-arch", "--n 3 --random-arch"),
    ],
)
def test_every_variant_of_the_paper_runs(tiny: dict, tmp_path: Path, words: str) -> None:
    run = start(degas, tiny, tmp_path, words)
    assert read(run, "result.json")["last"]["fid"] > 0
    args, found = read(run, "config.json")["args"], rows(run, "search.jsonl")
    assert bool(found) == (args["genotype"] is None and not args["random_arch"])
    if found:
        shares = found[-1]["probabilities"]["G"]
        assert list(shares) == [f"{c.stage}/{c.name}" for c in degas.Space(args["n"]).connections]
        assert {len(p) for name, p in shares.items() if "->N" in name} == {int(args["normal_ops"])}


# ---- bad input ------------------------------------------------------------


def test_flags_of_a_search_bind_no_training() -> None:
    few = Dataset("few", torch.zeros(24, 3, 16, 16, dtype=torch.uint8), None, "0")
    with pytest.raises(UserError, match=r"^--search-batch 64\b.*\b24\b"):
        degas.resolve(degas.Args(), few)
    assert degas.resolve(degas.Args(genotype="baseline", d_batch=8), few).size == 16


def test_labels_that_are_missing_are_refused(refuse: Callable, tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", images=np.zeros((40, 16, 16, 3), np.uint8), labels=np.arange(40) % 3 - 1)
    line = refuse("--dataset", tmp_path / "some.npz", "--conditional")
    assert all(part in line for part in ("--conditional", "14", "40", "some")), line


@pytest.mark.parametrize(
    ("text", "parts"),
    [('{"nodes": {"N1": []}, "n": 1}', ["nodes", "1"]), ('{"G": [["a"]]}', ["nodes"]), ("[1]", []), ("{", [])],
)
def test_bad_genotype_files_are_refused(refuse: Callable, tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "g.json").write_text(text)
    line = refuse("--genotype", tmp_path / "g.json")
    assert all(part in line for part in [*parts, "g.json"]), line


@pytest.mark.parametrize("change", [{"g_ch": "x"}, {"genotype": {"N1": 3}}, {"genotype": 3}, {"G": {}}], ids=str)
def test_weights_of_another_network_are_refused(refuse: Callable, whole: Path, tmp_path: Path, change: dict) -> None:
    torch.save(load(whole, "weights.pt") | change, tmp_path / "w.pt")
    assert "w.pt" in refuse("--phase", "eval", "--weights", tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["cifar10", "stl10", "celeba"])
def test_without_a_size_a_data_set_keeps_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(name: str, _folder: Path, size: int) -> None:
        raise UserError(f"{name} {size}")

    monkeypatch.setattr(degas, "load_dataset", stop)
    with pytest.raises(UserError, match=f"^{name} 0$"):
        degas.main(degas.Args(dataset=name, evaluator="compact"))


# ---- the plan ------------------------------------------------------------


def test_dry_run_of_a_given_genotype_tells_its_own_sizes(tiny_data: dict, whole: Path, tmp_path: Path, capsys) -> None:
    words = ["--dataset", tiny_data["dataset"], "--evaluator", "compact", "--dry-run", "--size", "32", "--conditional"]
    assert command(degas, [*words, "--genotype", str(whole / "genotype.json"), "--data-dir", str(tmp_path)]) == 0
    text, cost = capsys.readouterr().out, degas.Generator.cost(given(whole / "genotype.json"), classes=2)
    assert f"{cost.params:,}" in text
    assert f"{cost.macs:,}" in text
    assert read(whole, "genotype.json")["text"] in text


def test_the_plan_counts_each_stage_and_what_an_update_costs() -> None:
    args = degas.Args(
        dataset="x", evaluator="compact", size=16, search_size=16, search_images=64, search_batch=32, search_epochs=2,
        search_ch=4, g_ch=4, d_ch=4, z_dim=6, g_batch=4, d_batch=8, n_critic=2, iters=7, eval_n=30, eval_every=1,
        epoch_batches=4,
    )  # fmt: skip
    data = Dataset("x", torch.zeros(64, 3, 16, 16, dtype=torch.uint8), None, "0")
    costs = degas.costs_of(args, degas.State())
    supernet = degas.SuperG.cost(degas.Space(), 4, 6, 16)
    g, d = degas.Generator.cost("baseline", 4, 6, 16), degas.Critic.cost(4, 16)
    assert list(costs.values())[:3] == [g, d, supernet]
    search, train = degas.plan_of(degas.Job(args, degas.start_ranks("cpu"), None, data), costs)
    assert search == ("search", 2 * 4, 6 * 32 * supernet.macs)
    step = 2 * 8 * (g.macs + 15 * d.macs) + 4 * (3 * g.macs + 2 * d.macs)
    assert train[:2] == ("train", 6)
    assert train[2] == pytest.approx(step + 5 * 30 * g.macs / 6)  # the untrained G, three times in training, the end


# ---- several processes ------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_search_and_train_as_one(tiny: dict, whole: Path, tmp_path: Path) -> None:
    runs = two_processes(degas, tiny, tmp_path), whole
    one, two = (next(r["loss/zw"] for r in rows(run, "metrics.jsonl") if "loss/zw" in r) for run in runs)
    assert one == pytest.approx(two, rel=0.3)  # its half of the batch
    one, two = (rows(run, "search.jsonl")[0]["loss/rec"] for run in runs)
    assert one == pytest.approx(two, rel=1e-5)  # one and the same beginning


def test_a_search_batch_that_two_processes_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--search-batch 33\b.*\b2\b"):
        degas.check(parsed(degas, ["--search-batch", "33"]), 2)
