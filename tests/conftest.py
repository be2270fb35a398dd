"""What several test files share: a data set and flags so small that a whole run takes seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import common.metrics

torch.set_num_threads(1)  # small tensors: threads only wait for each other

REAL_DATA = Path(os.environ.get("GAN_NAS_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def quick_compact() -> Iterator[None]:
    """The compact network after 20 steps: enough where its scores only have to be reproducible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.metrics, "COMPACT_STEPS", (20, 20))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Flags of a search and training of some twenty steps on 64 labelled images of 16 px; --runs-dir is up to the test."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = rng.integers(0, 128, (64, 16, 16, 3)) + 127 * labels[:, None, None, None]
    np.savez(folder / "tiny.npz", images=images.astype(np.uint8), labels=labels)
    return {
        **{"dataset": str(folder / "tiny.npz"), "data_dir": folder, "size": 16, "evaluator": "compact"},
        **{"g_ch": 4, "d_ch": 4, "z_dim": 6, "g_batch": 4, "d_batch": 4, "n_critic": 2, "epoch_batches": 2},
        **{"population": 4, "rounds": 2, "round_epochs": 1, "warmup_epochs": 1, "search_n": 20, "final_n": 30},
        **{
            "bn_batches": 1,
            "train_epochs": 6,
            "eval_n": 30,
            "eval_every": 2,
            "eval_after": 0,
            "sample_every": 2,
            "log_every": 1,
        },
    }
