"""The last evaluation of a run by further scores and other images, --phase sample, and python -m common.metrics."""

import errno
import json
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs import (
    GENOTYPE,
    assert_equal,
    assert_same_run,
    command,
    load,
    read,
    rows,
    start,
    stop_and_resume,
    tiny_flags,
)

pytestmark = pytest.mark.usefixtures("quick_compact")
FURTHER = {"kid", "kid_se", "precision", "recall", "density", "coverage"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 other images of 16 px."""
    path = tmp_path_factory.mktemp("other") / "other.npz"
    images = np.random.default_rng(1).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(24) % 2)
    return path


@pytest.mark.parametrize("name", ["eagan", "degas"])
def test_further_scores_of_the_last_and_the_best_weights(
    name: str, tiny_data: dict, undisturbed: Callable, other: Path, tmp_path: Path
) -> None:
    """All in result.json, where what was chosen on what is said; training, rows and weights are those without them."""
    train = {"phase": "train", "genotype": GENOTYPE[name]}
    plain = undisturbed(name, **train)
    flags = tiny_flags(name, tiny_data) | train | {"metrics": "fid,is,kid,pr,dc,fid-inf,nearest", "eval_data": str(other)}
    run = start(import_module(name), flags, tmp_path)
    result, before = read(run, "result.json"), read(plain, "result.json")
    for weights in ("last", "best"):
        block, against = result[weights], result[f"{weights} against {other}"]
        assert {k: block[k] for k in before[weights] if k != "chosen"} == {
            k: v for k, v in before[weights].items() if k != "chosen"
        }
        assert {*block} >= FURTHER
        assert {*against} >= FURTHER
        assert block["ref"] != against["ref"] == "other 24"
        assert block["fid"] != against["fid"]
        assert block["fid_inf"] is None  # 30 images are too few
    evaluated = [row for row in rows(plain, "metrics.jsonl") if row.get("eval/what") in ("training", "last")]
    assert f"{len(evaluated)} evaluations" in result["best"]["chosen"]
    assert_equal(load(run, "weights.pt")["G"], load(plain, "weights.pt")["G"])
    mine, theirs = rows(run, "metrics.jsonl"), rows(plain, "metrics.jsonl")
    assert mine[:-1] == theirs[:-1]
    assert mine[-1].items() >= theirs[-1].items()
    assert not any("kid" in key for row in theirs for key in row)
    assert Image.open(run / "nearest.png").size == (2 + 6 * 18, 2 + 16 * 18)


@pytest.fixture(scope="module")
def asked(tiny_data: dict, other: Path) -> dict:
    """Flags of a run whose best weights are not its last."""
    more = {"phase": "train", "genotype": "eagan-g", "metrics": "fid,is,kid", "eval_data": str(other), "g_lr": 0.05}
    return tiny_flags("eagan", tiny_data) | more


@pytest.fixture(scope="module")
def scored_run(quick_compact: None, asked: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, from start to end."""
    run = start(import_module("eagan"), asked, tmp_path_factory.mktemp("scored"))
    result = read(run, "result.json")
    assert result["best"]["step"] != result["last"]["step"]
    return run


def test_the_best_weights_are_scored_not_the_last_ones(asked: dict, scored_run: Path, other: Path, tmp_path: Path) -> None:
    """The scores under "best" are those of weights.best.pt, evaluated alone."""
    result, alone = read(scored_run, "result.json"), asked | {"phase": "eval", "weights": scored_run / "weights.best.pt"}
    alone = read(start(import_module("eagan"), {**alone, "genotype": ""}, tmp_path), "result.json")
    assert result["best"]["kid"] == alone["last"]["kid"] != result["last"]["kid"]
    best, last = f"best against {other}", f"last against {other}"
    assert result[best]["fid"] == alone[last]["fid"] != result[last]["fid"]


@pytest.mark.parametrize("stage", ["evaluation (best)", "evaluation (last, --eval-data)", "evaluation (best, --eval-data)"])
def test_a_stop_among_the_last_scores_changes_nothing(
    stage: str, asked: dict, scored_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it finds the best weights in the network."""
    run = stop_and_resume(import_module("eagan"), asked, tmp_path, monkeypatch, stage, 1)
    assert_same_run(run, scored_run)
    timed = ("seconds", "command", "peak_mem")
    assert_equal(*({k: v for k, v in read(r, "result.json").items() if k not in timed} for r in (run, scored_run)))


def test_samples_are_of_the_seed_whatever_they_are_written_into(
    method: ModuleType, tiny_data: dict, undisturbed: Callable, tmp_path: Path
) -> None:
    weights = undisturbed(method.__name__) / "weights.pt"

    def sample(out: Path, *words: str) -> int:
        return command(method, ["--phase", "sample", "--weights", str(weights), "--sample-n", "103", "--out", str(out), *words])

    folder, archive, again = (tmp_path / name for name in ("images", "images.npz", "again.npz"))
    assert sample(folder) == sample(archive) == sample(again, "--seed", "1") == 0
    images = np.load(archive)["images"]
    assert images.shape == (103, 16, 16, 3)
    assert len({image.tobytes() for image in images}) > 50  # so small a DEGAS saturates
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(103)]
    assert all((np.asarray(Image.open(file)) == image).all() for file, image in zip(files, images, strict=True))
    assert (np.load(again)["images"] != images).any()
    assert sample(folder) == 2  # it is there
    assert {p.name for p in tmp_path.iterdir()} == {"images", "images.npz", "again.npz"}  # no run


@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_samples_that_cannot_be_written_whole_leave_nothing(
    suffix: str, undisturbed: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        if len(written) == 3 or suffix:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(1)

    written: list[int] = []
    monkeypatch.setattr(np if suffix else Image.Image, "savez" if suffix else "save", full)
    out = tmp_path / f"images{suffix}"
    words = ["--phase", "sample", "--weights", str(undisturbed("eagan") / "weights.pt"), "--sample-n", "8", "--out", str(out)]
    assert command(import_module("eagan"), words) == 2
    assert f"--out {out}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_generator_as_onnx_computes_the_same(method: ModuleType, undisturbed: Callable, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weights, out = undisturbed(method.__name__) / "weights.pt", tmp_path / "G.onnx"
    assert command(method, ["--phase", "sample", "--weights", str(weights), "--out", str(out)]) == 0
    saved = load(weights.parent, "weights.pt")
    G = method.Generator.saved(saved)
    G.load_state_dict(saved["G"])
    z = torch.randn(5, 6)
    (images,) = onnxruntime.InferenceSession(str(out)).run(None, {"z": z.numpy()})
    with torch.no_grad():
        assert np.abs(images - G.eval()(z).numpy()).max() < 1e-4


def test_an_onnx_needs_packages(
    undisturbed: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Where they are missing, one line names them, and nothing is written."""
    monkeypatch.setattr("common.gan.find_spec", lambda name: None)
    words = ["--phase", "sample", "--weights", str(undisturbed("eagan") / "weights.pt"), "--out", str(tmp_path / "G.onnx")]
    assert command(import_module("eagan"), words) == 2
    line = capsys.readouterr().err
    assert all(word in line for word in (f"--out {tmp_path}", "onnx ", "onnxscript"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        *("--metrics fid,speed", "--phase sample", "--phase eval --out x", "--out x", "--fid-stats nowhere.npz"),
        "--eval-data nowhere",
        "--phase sample --out x --weights nowhere.pt",
    ],
)
def test_flags_that_cannot_be_met(words: str, refuse: Callable[..., str]) -> None:
    assert any(word in refuse(*words.split()) for word in words.split() if word.startswith("--"))


def test_images_against_images_on_the_command_line(tiny_data: dict, other: Path, tmp_path: Path, program: Callable) -> None:
    def scored(*words: object) -> dict:
        code, out, err = program("common.metrics", *words, "--evaluator", "compact", "--data-dir", tmp_path)
        return json.loads(out.splitlines()[-1]) if code == 0 else {"error": err}

    same = scored(tiny_data["dataset"], tiny_data["dataset"], "--metrics", "fid,is,kid")
    assert same["fid"] == pytest.approx(0, abs=1e-4)
    assert same["n"] == 64
    apart = scored(other, tiny_data["dataset"], "--metrics", "fid,is,kid")
    assert apart["fid"] > 1 > abs(same["kid"])
    assert (apart["n"], apart["ref"]) == (24, "tiny 64")
    for bad in (("nowhere", other), (other, "nowhere.npz"), (other, other, "--metrics", "speed")):
        assert re.search("nowhere|speed", scored(*bad)["error"])
