"""What several test files share: a data set so small that a whole run takes seconds, and an evaluator that suits it."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import common.metrics
import common.ranks

torch.set_num_threads(1)  # small tensors: threads only wait for each other
common.ranks.PROBE_SECONDS = 0.0  # no test reads the price of its run

REAL_DATA = Path(os.environ.get("GAN_NAS_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def quick_compact() -> Iterator[None]:
    """The compact network after 20 steps: enough where its scores only have to be reproducible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.metrics, "COMPACT_STEPS", (20, 20))
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Flags of a data set of 64 labelled images of 16 px and of the evaluator that goes with it."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = rng.integers(0, 128, (64, 16, 16, 3)) + 127 * labels[:, None, None, None]
    np.savez(folder / "tiny.npz", images=images.astype(np.uint8), labels=labels)
    return {"dataset": str(folder / "tiny.npz"), "data_dir": folder, "size": 16, "evaluator": "compact"}
