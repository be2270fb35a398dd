"""Runs of degas.py as a user has them: files, variants, seeds, stop and resume in every phase, bad input."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import common.data
import degas
from common.cells import count_params
from common.cli import cli
from common.data import Dataset, shapes
from common.files import UserError
from tests.runs import (
    ROOT,
    assert_equal,
    assert_same_run,
    command,
    flags,
    load,
    refused,
    rows,
    slow,
    start,
    stop_and_resume,
    torchrun,
)

pytestmark = pytest.mark.usefixtures("quick_compact", "few_reconstructions")


@pytest.fixture(scope="module")
def few_reconstructions() -> Iterator[None]:
    """32 watched images in place of 256: as many as a picture shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(degas, "WATCHED", 32)
        yield


@pytest.fixture(scope="module")
def tiny(tiny_data: dict) -> dict:
    """Flags of a search of 6 steps and a training of 6; --runs-dir is up to the test."""
    return {
        **tiny_data,
        **{"search_ch": 4, "search_batch": 32, "search_epochs": 2, "epoch_batches": 3, "arch_lr": 0.1, "z_dim": 6},
        **{"g_ch": 4, "d_ch": 4, "g_batch": 4, "d_batch": 4, "n_critic": 2, "iters": 7},
        **{"eval_n": 30, "eval_every": 2, "sample_every": 2, "log_every": 1},
    }


@pytest.fixture(scope="module")
def whole(tiny: dict, quick_compact: None, few_reconstructions: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all phases that nobody disturbed."""
    return start(degas, tiny, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def labelled(tiny: dict, quick_compact: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with labels, on the genotype of random alpha."""
    return start(degas, tiny, tmp_path_factory.mktemp("labelled"), conditional=True, random_arch=True)


def read(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


def given(file: Path) -> degas.Genotype:
    """The genotype that --genotype reads from a file."""
    return degas.first_state(degas.Args(genotype=str(file)), None).G


# ---- what a run leaves ------------------------------------------------------------


def test_run_directory_has_every_file_of_the_contract(whole: Path) -> None:
    config, status, result = (read(whole, f"{n}.json") for n in ("config", "status", "result"))
    assert (config["schema"], config["script"], config["method"]) == (1, "degas.py", "degas")
    assert (status["state"], status["phase"], status["error"]) == ("done", "train", None)
    assert status["step"] == status["total"] == 12
    assert {"last", "best", "n", "net", "seconds", "peak_mem", "command", "genotype"} <= result.keys()
    assert (whole / "source" / "degas.py").read_text() == (ROOT / "degas.py").read_text()
    assert not list(whole.rglob("*.tmp"))
    assert {f.name for f in (whole / "samples").iterdir()} == {f"{n:06d}.png" for n in (0, 3, 6, 8, 9, 10, 12)}
    found = rows(whole, "metrics.jsonl")
    assert all({"step", "phase", "stage"} <= row.keys() for row in found)
    evaluations = [r for r in found if "eval/fid" in r]
    assert [(r["step"], r["eval/what"]) for r in evaluations] == [(6, "untrained"), (9, "training"), (12, "last")]
    assert all((r["eval/bn"], r["eval/ema"], r["eval/n"]) == ("batch", False, 30) for r in evaluations)
    keys = {
        "loss/zw",
        "loss/alpha",
        "loss/rec",
        "loss/mean_image",
        "loss/d",
        "loss/wasserstein",
        "loss/gp",
        "loss/ct",
        "loss/g",
    }
    assert {k for r in found for k in r if k.startswith("loss/")} == keys


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


def test_the_genotype_of_a_run_is_what_pruning_makes_of_its_alpha(whole: Path, tiny: dict) -> None:
    saved, result = read(whole, "genotype.json"), read(whole, "result.json")
    assert saved["nodes"] == result["genotype"]["nodes"]
    genotype = given(whole / "genotype.json")
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
    log = (run / "log.txt").read_text()
    assert ("WARNING: the reconstruction loss" in log) == (share == 0.01)
    assert log.find("WARNING") < log.index("found: ")
    assert read(run, "result.json")["genotype"]["nodes"]


def test_command_of_a_run_reproduces_its_arguments(whole: Path) -> None:
    config, made = read(whole, "config.json"), []

    def main(args: degas.Args) -> None:
        made.append(args)

    main.__module__ = "degas"
    words = config["command"].split()
    assert words[:2] == ["python", "degas.py"]
    assert cli(main, degas.Args, degas.PRESETS, words[2:]) == 0
    assert {k: str(v) for k, v in vars(made[0]).items()} == {k: str(v) for k, v in config["args"].items()}


def test_fact_25_five_critic_steps_and_one_g_step_but_in_the_first_iteration(
    tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_genotype_of_a_run_is_trained_without_a_search(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(degas, tiny, tmp_path, genotype=str(whole / "genotype.json"), iters=2)
    assert load(run, "weights.pt")["genotype"] == given(whole / "genotype.json")
    assert read(run, "genotype.json")["nodes"] == read(whole, "genotype.json")["nodes"]
    assert not (run / "search.jsonl").exists()


def test_weights_are_evaluated_alone(tiny: dict, whole: Path, labelled: Path, tmp_path: Path) -> None:
    for trained in (whole, labelled):
        run = start(degas, tiny, tmp_path / trained.name, phase="eval", weights=trained / "weights.pt", g_ch=99)
        assert read(run, "result.json")["last"]["fid"] == read(trained, "result.json")["last"]["fid"]
        (row,) = rows(run, "metrics.jsonl")
        assert (row["eval/ema"], row["eval/bn"], row["eval/what"]) == (False, "batch", str(trained / "weights.pt"))


def test_a_training_with_labels_logs_what_the_critic_recognises(labelled: Path) -> None:
    trained = [r for r in rows(labelled, "metrics.jsonl") if "loss/d" in r]
    assert all({"loss/d_class", "loss/g_class", "accuracy/real", "accuracy/fake"} <= r.keys() for r in trained)
    assert all(0 <= r["accuracy/real"] <= 1 for r in trained)
    weights = load(labelled, "weights.pt")
    assert weights["classes"] == 2
    assert read(labelled, "genotype.json")["nodes"] == json.loads(json.dumps(weights["genotype"]))


@pytest.mark.parametrize(
    "flags",
    [
        slow({"n": 2, "prune_score": "softmax"}),
        slow({"search_size": 16, "size": 32, "normal_ops": "7"}),
        *(slow({"search_size": 32, "size": 48}), slow({"z_init": "pca", "z_grad": "batch"})),
        *(
            slow({"loss_reduction": "sum", "w_lr": 1e-5, "lap_levels": 1}),
            slow({"search_images": 16, "search_batch": 16}),
        ),
        *(slow({"genotype": "baseline", "conditional": True, "size": 48}), slow({"amp": True, "ema": 0.9})),
        *(slow({"eval_bn": "running", "random_arch": True}), slow({"n": 3, "random_arch": True})),
    ],
    ids=str,
)
def test_every_variant_of_the_paper_runs(tiny: dict, tmp_path: Path, flags: dict) -> None:
    run = start(degas, tiny, tmp_path, **flags)
    result = read(run, "result.json")
    assert result["last"]["fid"] > 0
    if flags.get("n") and "random_arch" not in flags:
        assert len(rows(run, "search.jsonl")[-1]["probabilities"]["G"]) == 17
    if "normal_ops" in flags:
        assert len(rows(run, "search.jsonl")[0]["probabilities"]["G"]["1/U0->N1"]) == 7


# ---- seeds, evaluation ------------------------------------------------------------


def test_one_seed_is_one_run_and_another_seed_is_another(tiny: dict, whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever the global generator was
    assert_same_run(whole, start(degas, tiny, tmp_path))
    other = start(degas, tiny, tmp_path, seed=1, phase="search", search_epochs=1)
    assert rows(whole, "search.jsonl")[1] != rows(other, "search.jsonl")[1]


def test_evaluation_and_samples_do_not_change_training(tiny: dict, whole: Path, tmp_path: Path) -> None:
    run = start(degas, tiny, tmp_path, eval_every=1, sample_every=1, log_every=3)
    assert_equal(load(run, "checkpoint.pt")["parts"], load(whole, "checkpoint.pt")["parts"])
    assert_equal(load(run, "weights.pt")["G"], load(whole, "weights.pt")["G"])


@pytest.mark.slow
def test_counting_recognised_classes_does_not_change_training(tiny: dict, labelled: Path, tmp_path: Path) -> None:
    run = start(degas, tiny, tmp_path, conditional=True, random_arch=True, log_every=100)
    assert_equal(load(run, "checkpoint.pt")["parts"], load(labelled, "checkpoint.pt")["parts"])


# ---- stop and resume ------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "call"),
    [
        *(
            ("search", 3),
            ("training", 2),
            slow("evaluation (training)", 1),
            slow("search", 1),
            slow("search", 4),
            slow("search", 6),
        ),
        *(slow("training", 1), slow("training", 7), slow("preparing", 1)),
        *(slow("evaluation (untrained)", 1), slow("evaluation (last)", 1)),
    ],
)
def test_stopped_in_any_phase_and_resumed_equals_undisturbed(
    tiny: dict, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int
) -> None:
    assert_same_run(whole, stop_and_resume(degas, tiny, tmp_path, monkeypatch, stage, call))


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"z_init": "pca"}, {"ema": 0.9, "n": 2}], ids=str)
def test_resumed_variants_equal_undisturbed(tiny: dict, tmp_path: Path, monkeypatch, how: dict) -> None:
    alone = start(degas, {**tiny, **how}, tmp_path / "alone")
    assert_same_run(alone, stop_and_resume(degas, {**tiny, **how}, tmp_path / "stopped", monkeypatch, "search", 3))


@pytest.mark.slow
def test_a_resumed_training_with_labels_equals_undisturbed(tiny: dict, labelled: Path, tmp_path: Path, monkeypatch) -> None:
    how = {**tiny, "conditional": True, "random_arch": True}
    run = stop_and_resume(degas, how, tmp_path, monkeypatch, "training", 4)
    assert rows(run, "metrics.jsonl") == rows(labelled, "metrics.jsonl")
    assert_equal(load(run, "checkpoint.pt")["parts"], load(labelled, "checkpoint.pt")["parts"])


def test_a_changed_flag_is_refused_on_resume(whole: Path, capsys: pytest.CaptureFixture) -> None:
    for words, part in (
        (["--iters", "9"], "--iters 9: this run has 7"),
        (["--search-ch", "8"], "--search-ch 8: this run has 4"),
    ):
        assert command(degas, ["--resume", str(whole), *words]) == 2
        assert part in capsys.readouterr().err


def test_a_diverged_search_fails_with_the_step(tiny: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(degas, flags({**tiny, "runs_dir": tmp_path, "w_lr": 1e30})) == 2
    assert "diverged" in capsys.readouterr().err
    (run,) = tmp_path.glob("degas-*")
    assert read(run, "status.json")["state"] == "failed"


# ---- bad input ------------------------------------------------------------


SMOKE = ["--preset", "smoke"]


@pytest.fixture
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 images in place of 10,000, which take longer to draw than all else here."""
    monkeypatch.setattr(common.data, "shapes", partial(shapes, 300))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--n", "0"], ["--n", "greater than or equal to 1"]),
        (["--normal-ops", "8"], ["--normal-ops", "9"]),
        (["--dataset", "cifar11"], ["cifar11", "cifar10"]),
        (["--size", "30"], ["30", "multiple of 8"]),
        (["--search-size", "20"], ["--search-size 20", "multiple of 8"]),
        (["--search-size", "8"], ["--search-size 8", "16 or more"]),
        (["--lap-levels", "5"], ["--lap-levels 5", "16 px"]),
        (["--search-images", "20000"], ["--search-images 20000", "300"]),
        (["--search-images", "8"], ["--search-batch 32", "8 images"]),
        (["--z-init", "pca", "--z-dim", "200"], ["--z-init pca", "--z-dim 200"]),
        (["--d-batch", "20000"], ["--d-batch", "20000"]),
        (["--iters", "1"], ["--iters", "greater than or equal to 2"]),
        (["--device", "gpu"], ["--device gpu", "auto"]),
        (["--phase", "train"], ["--phase train", "--genotype", "--random-arch", "baseline"]),
        (["--phase", "search", "--random-arch"], ["--random-arch", "--phase search"]),
        (["--phase", "search", "--genotype", "baseline"], ["--genotype baseline", "--phase search"]),
        (["--genotype", "baseline", "--random-arch"], ["--random-arch", "--genotype baseline"]),
        (["--genotype", "basline"], ["basline", "baseline", "genotype.json"]),
        (["--genotype", "nowhere.json"], ["nowhere.json", "No such file"]),
        (["--phase", "eval"], ["--weights"]),
        (["--phase", "eval", "--weights", "nowhere.pt"], ["nowhere.pt", "No such file"]),
        (["--weights", "w.pt"], ["--weights w.pt", "--phase eval"]),
        (["--eval-n", "5"], ["--eval-n 5"]),
        (["--resume", "nowhere"], ["nowhere"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else x,
)
def test_bad_flags_are_refused_before_anything_is_made(
    capsys, few_shapes: None, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    preset = [] if "--resume" in words else SMOKE
    line = refused(degas, capsys, tmp_path, [*preset, *words])
    assert all(part in line for part in parts), line


def test_flags_of_a_search_bind_no_training() -> None:
    few = Dataset("few", torch.zeros(24, 3, 16, 16, dtype=torch.uint8), None, "0")
    with pytest.raises(UserError, match="--search-batch 64: more than the 24 images"):
        degas.resolve(degas.Args(), few)
    assert degas.resolve(degas.Args(genotype="baseline", d_batch=8), few).size == 16


def test_labels_that_are_missing_are_refused(capsys, tmp_path: Path) -> None:
    images = np.zeros((40, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(40) % 3 - 1)
    words = [*SMOKE, "--dataset", str(tmp_path / "some.npz"), "--size", "16", "--search-images", "0", "--conditional"]
    line = refused(degas, capsys, tmp_path, words)
    assert "--conditional: 14 of 40 images of some have no label" in line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"nodes": {"N1": []}, "n": 1}', ["nodes must be those of n = 1"]),
        ('{"G": [["a"]]}', ["not a genotype of degas.py"]),
        ("[1]", ["JSON object"]),
        ("{", ["not JSON"]),
    ],
)
def test_bad_genotype_files_are_refused(capsys, few_shapes: None, tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "g.json").write_text(text)
    line = refused(degas, capsys, tmp_path, [*SMOKE, "--genotype", str(tmp_path / "g.json")])
    assert all(part in line for part in [*parts, "g.json"]), line


@pytest.mark.parametrize("change", [{"hello": 1}, {"g_ch": "x"}, {"genotype": {"N1": 3}}, {"genotype": 3}, {"G": {}}], ids=str)
def test_weights_of_another_network_are_refused(capsys, few_shapes: None, whole: Path, tmp_path: Path, change: dict) -> None:
    torch.save(change if "hello" in change else load(whole, "weights.pt") | change, tmp_path / "w.pt")
    line = refused(degas, capsys, tmp_path, [*SMOKE, "--phase", "eval", "--weights", str(tmp_path / "w.pt"), "--size", "16"])
    assert "w.pt" in line


# ---- the command line ------------------------------------------------------------


def test_dry_run_makes_nothing_and_tells_sizes_and_price(capsys, tmp_path: Path) -> None:
    words = ["--dataset", "shapes", "--evaluator", "compact", "--dry-run"]
    assert command(degas, [*words, "--runs-dir", str(tmp_path / "r"), "--data-dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "7,850 (search) + 99,999 (train) G updates" in text
    assert "PFLOP" in text
    assert "\nG, were it CT-GAN's: 1,204,483 parameters, 422,704,128 multiply-adds an image\n" in text
    assert "\nD: 1,053,825 parameters, 272,498,817 multiply-adds an image\n" in text
    assert "\nsupernet: 9,224,835 parameters, 1,389,188,096 multiply-adds an image\n" in text
    assert "\nlatents of 10,000 images: 1,280,000 parameters\n" in text
    assert not list(tmp_path.iterdir())


def test_dry_run_of_a_given_genotype_tells_its_own_sizes(capsys, whole: Path, tmp_path: Path) -> None:
    words = ["--dataset", "shapes", "--evaluator", "compact", "--dry-run", "--conditional"]
    assert command(degas, [*words, "--genotype", str(whole / "genotype.json"), "--data-dir", str(tmp_path)]) == 0
    text, cost = capsys.readouterr().out, degas.Generator.cost(given(whole / "genotype.json"), classes=10)
    assert f"\nG: {cost.params:,} parameters, {cost.macs:,} multiply-adds an image\n" in text
    assert "\nD: 1,055,115 parameters" in text
    assert f"\ngenotype: {read(whole, 'genotype.json')['text']}\n" in text
    assert "supernet" not in text


def test_the_plan_counts_each_stage_and_what_an_update_costs() -> None:
    args = degas.Args(
        dataset="x", evaluator="compact", size=16, search_size=16, search_images=64, search_batch=32, search_epochs=2,
        search_ch=4, g_ch=4, d_ch=4, z_dim=6, g_batch=4, d_batch=8, n_critic=2, iters=7, eval_n=30, eval_every=1,
        epoch_batches=4,
    )  # fmt: skip
    data = Dataset("x", torch.zeros(64, 3, 16, 16, dtype=torch.uint8), None, "0")
    job = degas.Job(args, degas.start_ranks("cpu"), None, data)
    costs = degas.costs_of(args, degas.State())
    supernet = degas.SuperG.cost(degas.Space(), 4, 6, 16)
    g, d = degas.Generator.cost("baseline", 4, 6, 16), degas.Critic.cost(4, 16)
    assert list(costs.values())[:3] == [g, d, supernet]
    search, train = degas.plan_of(job, costs)
    assert search == ("search", 2 * 4, 6 * 32 * supernet.macs)
    step = 2 * 8 * (g.macs + 15 * d.macs) + 4 * (3 * g.macs + 2 * d.macs)
    assert train[:2] == ("train", 6)
    assert train[2] == pytest.approx(step + 5 * 30 * g.macs / 6)  # the untrained G, three times in training, the end


def test_without_a_size_a_data_set_keeps_its_own() -> None:
    seen = []

    def stop(name: str, _folder: Path, size: int) -> None:
        seen.append((name, size))
        raise UserError("stop")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(degas, "load_dataset", stop)
        for name in ("cifar10", "stl10", "celeba"):
            with pytest.raises(UserError):
                degas.main(degas.Args(dataset=name, evaluator="compact"))
    assert seen == [("cifar10", 0), ("stl10", 0), ("celeba", 0)]


# ---- several processes ------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_search_and_train_as_one(tiny: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degas, "WATCHED", 256)  # what the processes have
    alone = start(degas, tiny, tmp_path / "alone")
    done = torchrun(degas, flags({**tiny, "runs_dir": tmp_path}))
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("degas-*")
    assert read(run, "config.json")["world_size"] == 2
    one, two = ([r["loss/zw"] for r in rows(r, "metrics.jsonl") if "loss/zw" in r] for r in (run, alone))
    assert one[0] == pytest.approx(two[0], rel=0.3)  # its half of the batch
    first, second = (rows(r, "search.jsonl") for r in (run, alone))
    assert first[0]["loss/rec"] == pytest.approx(second[0]["loss/rec"], rel=1e-5)  # one and the same beginning
    assert all(x.isfinite().all() for x in load(run, "weights.pt")["G"].values())


def test_a_batch_that_two_processes_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="--search-batch 33: not divisible by 2 processes"):
        degas.check(degas.Args(search_batch=33), 2)
