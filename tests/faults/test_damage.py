"""Damaged, foreign and hostile files: what loads without a word has the contents that were written."""

import io
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from common.files import load_tensors
from tests.faults.conftest import Count
from tests.runs import GENOTYPE, METHODS, assert_equal, command, load

SEED = int(os.environ.get("GAN_NAS_SEED", 0))

pytestmark = pytest.mark.usefixtures("quick_compact")


@pytest.fixture
def run(method: ModuleType, undisturbed: Callable, tmp_path: Path) -> Path:
    """A copy of a finished training."""
    made = undisturbed(method.__name__, genotype=GENOTYPE[method.__name__])
    return Path(shutil.copytree(made, tmp_path / made.name))


def noticed(file: Path, whole: object) -> bool:
    """Whether loading the file fails; where it does not, its contents are those that were written."""
    try:
        found = load_tensors(file)
    except Exception:
        return True
    assert_equal(found, whole)
    return False


def test_flipped_bits_and_cuts_never_change_what_is_loaded(run: Path, count: Count) -> None:
    """64 bits and 16 cuts in the checkpoint of each method."""
    file, rng = run / "checkpoint.pt", random.Random(SEED)
    data, whole, seen = file.read_bytes(), load_tensors(file), 0
    print(f"seed {SEED}")
    for _ in range(64):
        bit, flipped = rng.randrange(8 * len(data)), bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with count:
            seen += noticed(file, whole)
    for _ in range(16):
        file.write_bytes(data[: rng.randrange(len(data))])
        with count:
            assert noticed(file, whole)
    assert seen > 32
    count.done()


def contents(path: Path) -> dict[Path, bytes]:
    told = ("status.json", "log.txt", "lock")
    return {f: f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name not in told}


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return os.mknod, (str(self.proof),)


def hostile_files(proof: Path) -> list[bytes]:
    """A checkpoint, a bare pickle, and a zip that leaves its folder."""
    saved, escaping = io.BytesIO(), io.BytesIO()
    torch.save({"schema": 3, "step": Hostile(proof)}, saved)
    with zipfile.ZipFile(escaping, "w") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr("archive/data.pkl", pickle.dumps(Hostile(proof)))
    return [saved.getvalue(), pickle.dumps(Hostile(proof)), escaping.getvalue()]


def test_foreign_and_hostile_checkpoints_are_refused_and_change_nothing(
    method: ModuleType, run: Path, undisturbed: Callable, tmp_path: Path, count: Count, capsys: pytest.CaptureFixture
) -> None:
    others = [undisturbed(name, genotype=GENOTYPE[name]) for name in METHODS if name != method.__name__]
    others.append(undisturbed(method.__name__, genotype=GENOTYPE[method.__name__], seed=5))
    files = [(other / "checkpoint.pt").read_bytes() for other in others]
    for data in [*files, *hostile_files(tmp_path / "proof"), b"", b"hello"]:
        for name in ("checkpoint.pt", "checkpoint.prev.pt"):
            (run / name).write_bytes(data)
        before = contents(tmp_path)
        with count:
            assert command(method, ["--resume", str(run)]) == 2
            assert f"--resume {run}" in capsys.readouterr().err
            assert contents(tmp_path) == before
    count.done()


def test_hostile_weights_and_genotypes_are_refused(
    method: ModuleType, run: Path, tmp_path: Path, count: Count, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--preset", "smoke", "--dataset", "shapes", "--dry-run", "--data-dir", str(tmp_path)]
    for k, data in enumerate(hostile_files(tmp_path / "proof")):
        for suffix, words in ((".pt", ["--phase", "eval", "--weights"]), (".json", ["--genotype"]), (".npy", ["--genotype"])):
            file = tmp_path / f"{k}{suffix}"
            file.write_bytes(data)
            before = contents(tmp_path)
            with count:
                assert command(method, [*flags, *words, str(file)]) == 2
                assert capsys.readouterr().err.count("\n") == 1
                assert contents(tmp_path) == before
    count.done()


def test_a_checkpoint_lost_between_two_saves_falls_back(method: ModuleType, run: Path, count: Count) -> None:
    """A kill between the two renames of a save: only the previous checkpoint is there."""
    os.replace(run / "checkpoint.pt", run / "checkpoint.prev.pt")
    weights = load(run, "weights.pt")
    with count:
        assert command(method, ["--resume", str(run)]) == 0
        assert_equal(load(run, "weights.pt"), weights)
    count.done()
