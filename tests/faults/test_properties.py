"""Whatever a genotype, a config.json or an archive holds: it is taken or refused in one line. Metrics of any batches."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from common.data import load_dataset
from common.files import UserError
from common.metrics import Moments, frechet_distance, to_uint8
from tests.runs import command

FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)

pytestmark = pytest.mark.usefixtures("quick_compact")


def changed(data: st.DataObject, value: object) -> object:
    """The value with one part, at any depth, replaced by arbitrary JSON, left out, or doubled."""
    if isinstance(value, dict | list) and value and data.draw(st.integers(0, 4)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = data.draw(st.sampled_from(list(keys)))
        inner = changed(data, value[key])
        if isinstance(value, dict):
            return {**value, key: inner} if data.draw(st.integers(0, 5)) else {k: v for k, v in value.items() if k != key}
        extra = [value[key]] if not data.draw(st.integers(0, 5)) else []
        return [*value[:key], inner, *value[key + 1 :], *extra]
    return data.draw(JSON)


def taken_or_refused(method: ModuleType, words: list[str], capsys: pytest.CaptureFixture) -> None:
    """Exit code 0 or 2, and for 2 one line on stderr."""
    capsys.readouterr()
    code = command(method, words)
    told = capsys.readouterr().err
    assert code in (0, 2)
    assert told.count("\n") == (1 if code else 0), told


def test_changed_genotypes(method: ModuleType, undisturbed: Callable, tiny_data: dict, tmp_path: Path, capsys) -> None:
    genotype = json.loads((undisturbed(method.__name__) / "genotype.json").read_text("utf-8"))
    file = tmp_path / "genotype.json"
    words = ["--preset", "smoke", "--dataset", tiny_data["dataset"], "--dry-run", "--genotype", str(file)]

    @FEW
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file.write_text(json.dumps(changed(data, genotype)), "utf-8")
        taken_or_refused(method, words, capsys)

    check()


def test_changed_configs(method: ModuleType, undisturbed: Callable, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(undisturbed(method.__name__), tmp_path / "run"))
    config = json.loads((run / "config.json").read_text("utf-8"))

    @FEW
    @given(st.data())
    def check(data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(["args", "script", "argv", "schema"]))
        (run / "config.json").write_text(json.dumps({**config, key: changed(data, config[key])}), "utf-8")
        taken_or_refused(method, ["--resume", str(run), "--dry-run"], capsys)

    check()


NAMES = st.text("ab/.\\ é0", min_size=1, max_size=12)


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


CONTENTS = st.binary(max_size=64) | st.sampled_from([png(16), png(24), png(1), png(16)[:40]])


@FEW
@given(st.dictionaries(NAMES.map(lambda name: f"{name}.png") | st.just("dataset.json"), CONTENTS, max_size=5), st.data())
def test_archives(files: dict[str, bytes], data: st.DataObject) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    whole = packed.getvalue()
    end = data.draw(st.integers(0, len(whole)))
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.chdir(folder)
        path = Path(folder, "x.zip")
        path.write_bytes(whole if data.draw(st.booleans()) else whole[:end])
        told = "x.zip"
        try:
            found = load_dataset(str(path), Path(folder), 16)
            assert found.images.shape[1:] == (3, 16, 16)
        except UserError as error:
            told = str(error)
        assert "x.zip" in told
        assert "\n" not in told
        assert [f.name for f in Path(folder).rglob("*")] == ["x.zip"]


@FEW
@given(npst.arrays(np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=6)), st.data())
def test_metrics_of_any_features(features: np.ndarray, data: st.DataObject) -> None:
    """A distance is never negative beyond rounding; what is not finite is NaN; the order of batches does not matter."""
    x = torch.from_numpy(features)
    cut = data.draw(st.integers(0, len(x)))
    one, other = Moments(x.shape[1]), Moments(x.shape[1])
    one.add(x)
    for part in (x[cut:], x[:cut]):
        if len(part):
            other.add(part)
    distance = frechet_distance(one.mean, one.cov, other.mean, other.cov)
    if len(x) < 2 or not x.double().square().sum().square().isfinite() or not x.isfinite().all():
        assert distance != distance
    else:
        scale = 1 + one.cov.trace().item() + one.mean.square().sum().item()
        assert abs(distance) < 1e-6 * scale


@FEW
@given(npst.arrays(np.float32, (2, 3, 2, 2)))
def test_images_of_any_values_become_bytes(images: np.ndarray) -> None:
    found = to_uint8(torch.from_numpy(images))
    assert found.dtype == torch.uint8
    inside = torch.from_numpy(images).clamp(-1, 1).nan_to_num(-1)
    assert ((found.float() - (inside * 127.5 + 127.5)).abs() <= 1).all()
