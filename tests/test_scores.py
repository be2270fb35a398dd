"""KID, precision and recall, density and coverage, FID∞: closed forms, naive numpy, and torch-fidelity."""

import math
from math import nan

import numpy as np
import pytest
import torch
from torch import Tensor

from common import scores
from common.files import stream
from common.scores import at_infinity, kid, mmd2, nearest, neighbourhoods, radii, sizes_of_fid, squared_distances

NAMES = ("precision", "recall", "density", "coverage")


def normal(n: int, d: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=stream(seed, "scores"))


# ---- KID -------------------------------------------------------------------------------------------------------------


def test_mmd2_of_points_on_a_line() -> None:
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    across = (1 + 1 + 4**3 + 7**3) / 4  # kernel (xy + 1)^3
    assert mmd2(x, y) == pytest.approx(3**3 + 1 - 2 * across)


def test_kid_has_no_bias_and_its_standard_error_is_true() -> None:
    found = [kid(normal(200, seed=2 * i), normal(200, seed=2 * i + 1), size=20) for i in range(60)]
    means, errors = np.array(found).T
    assert abs(means.mean()) < 3 * means.std() / 60**0.5  # the biased estimate is above 0 by about 0.1
    assert errors.mean() == pytest.approx(means.std(ddof=1), rel=0.4)
    far, error = kid(normal(200), normal(200, seed=1) + 1)
    assert far > 10 * error > 0


def test_kid_is_torch_fidelitys() -> None:
    """Of all images, and over subsets."""
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")

    def theirs(x: Tensor, y: Tensor, subsets: int, size: int) -> float:
        options = dict(kid_subsets=subsets, kid_subset_size=size, verbose=False)
        return fidelity.kid_features_to_metric(x.double(), y.double(), **options)["kernel_inception_distance_mean"]

    x, y = normal(2000, 32), 1.3 * normal(2000, 32, seed=1) + 0.2
    assert mmd2(x[:60], y[:60]) == pytest.approx(theirs(x[:60], y[:60], 1, 60), rel=1e-9)
    mean, error = kid(x, y, size=100)
    assert abs(mean - theirs(x, y, 100, 100)) < 4 * error < 0.4 * mean


# ---- precision and recall, density and coverage ----------------------------------------------------------------------


def naive(real: Tensor, fake: Tensor) -> dict[str, float]:
    """The definitions, in numpy and float64."""

    def distances(a: Tensor, b: Tensor) -> np.ndarray:
        a, b = a.double().numpy(), b.double().numpy()
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    def radius(x: Tensor, k: int) -> np.ndarray:
        return np.sort(distances(x, x), axis=1)[:, k]  # the 0-th is the point itself

    d = distances(real, fake)
    balls = d <= radius(real, 5)[:, None]
    return {
        "precision": (d <= radius(real, 3)[:, None]).any(0).mean(),
        "recall": (d <= radius(fake, 3)[None]).any(1).mean(),
        "density": balls.sum(0).mean() / 5,
        "coverage": balls.any(1).mean(),
    }


@pytest.mark.parametrize("tile", [7, 1024])
@pytest.mark.parametrize("offset", [0, 300.0])
def test_neighbourhoods_are_the_definitions(tile: int, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "TILE", tile)
    real, fake = normal(90, 6) + offset, 0.8 * normal(70, 6, seed=1) + 1 + offset
    want = naive(real, fake)
    assert all(0.05 < want[name] < 0.95 for name in NAMES)
    assert neighbourhoods(real, fake) == pytest.approx(want, abs=1e-12)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_prc")
    real, fake = normal(90, 6), 0.8 * normal(70, 6, seed=1) + 0.5
    want = fidelity.prc_features_to_metric(fake, real, prc_neighborhood=3, prc_batch_size=50, verbose=False)
    found = neighbourhoods(real, fake)
    assert found["precision"] == pytest.approx(want["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(want["recall"], abs=1e-6)


def test_neighbourhoods_of_the_same_and_of_other_images() -> None:
    x = normal(300)
    assert neighbourhoods(x, x) == pytest.approx({"precision": 1, "recall": 1, "density": 1.2, "coverage": 1}, abs=0.01)
    assert neighbourhoods(x, x + 100) == dict.fromkeys(NAMES, 0)


def test_one_image_over_and_over_is_precise_and_covers_little() -> None:
    real = normal(300)
    found = neighbourhoods(real, real[:1].repeat(300, 1))
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx(1 / 300)
    assert found["coverage"] < 0.1
    same = torch.full((50, 8), 0.3)  # constant and equal: nothing but rounding between them
    assert neighbourhoods(same, same) == pytest.approx({"precision": 1, "recall": 1, "density": 10, "coverage": 1})


def test_distances_radii_and_the_nearest_of_points_on_a_line() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert [r.tolist() for r in radii(x, 1, 2)] == [[1, 1, 4, 16], [9, 4, 9, 36]]
    ((rows, columns, d),) = squared_distances(x, x[:2])
    assert (len(x[rows]), len(x[:2][columns])) == d.shape
    assert d.tolist() == [[0, 1], [1, 0], [9, 4], [49, 36]]
    distances, found = nearest(torch.tensor([[2.9], [0.4]]), x, 2)
    assert found.tolist() == [[2, 1], [0, 1]]
    np.testing.assert_allclose(distances, [[0.1, 1.9], [0.4, 0.6]], rtol=1e-4)
    assert nearest(normal(2), normal(3, seed=1), 5)[1].shape == (2, 3)


# ---- FID∞ ------------------------------------------------------------------------------------------------------------


def test_the_line_of_fid_infinity() -> None:
    sizes = sizes_of_fid(50_000, 2048)
    assert (len(sizes), sizes[0], sizes[-1]) == (15, 5000, 50_000)
    assert at_infinity(sizes, [7 + 30_000 / n for n in sizes]) == pytest.approx(7)
    assert sizes_of_fid(512, 128)[0] == 256
    assert sizes_of_fid(511, 128) == []
    assert math.isnan(at_infinity([], []))
    assert math.isnan(at_infinity(sizes, [nan] * 15))


# ---- what cannot be scored -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [nan, math.inf])
def test_features_that_are_not_finite_have_no_score(bad: float) -> None:
    x, broken = normal(60), normal(60, seed=1)
    broken[3, 2] = bad
    for one, two in ((x, broken), (broken, x)):
        assert all(math.isnan(v) for v in (*kid(one, two), *neighbourhoods(one, two).values()))
    assert nearest(broken, x, 2)[1].shape == (60, 2)


def test_too_few_images_have_no_score() -> None:
    x = normal(60)
    assert all(math.isnan(v) for few in (x[:19], x[:0]) for v in (*kid(few, x), *kid(x, few)))
    assert all(math.isfinite(v) for v in kid(x[:20], x))
    for few in (x[:5], x[:0]):
        assert all(math.isnan(v) for v in (*neighbourhoods(few, x).values(), *neighbourhoods(x, few).values()))
    assert all(math.isfinite(v) for v in neighbourhoods(x[:6], x).values())
