"""The number of operations of a G update, which decides its speed on a GPU, does not grow unnoticed."""

import importlib
import warnings
from functools import partial

import pytest
import torch

import common.data
from benchmark import speed, steps
from common import spectral
from tests.runs import narrow

RECORDED_WITH = "2.14"  # torch; other versions split operations differently
RECORDED = {
    "eagan": {"training": 652, "stage 1": 552, "stage 2": 844},
    "adversarialnas": {"training": 702, "search": 10_657},
    "autogan": {"training": 631, "shared GAN, 32 px": 672},
    "degas": {"training": 732, "search": 934},
}
LOOPS = [(method, loop) for method in RECORDED for loop in RECORDED[method]]


@pytest.mark.skipif(not torch.__version__.startswith(RECORDED_WITH + "."), reason=f"recorded with torch {RECORDED_WITH}")
@pytest.mark.parametrize(("method", "loop"), LOOPS)
def test_operations_of_an_update(method: str, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.data, "shapes", partial(common.data.shapes, 256))
    monkeypatch.setattr(spectral, "TOGETHER", {"cuda", "cpu"})  # as on a GPU
    script = importlib.import_module(method)
    flags = {**script.PRESETS["smoke"], "device": "cpu", "bn_batches": 0, **steps.ROWS[method][loop], **narrow(script)}
    flags["n_critic"] = 2
    flags = {name: value for name, value in flags.items() if hasattr(script.Args, name)}
    found, _, _ = speed.counted(script, script.Args(**flags), torch.device("cpu"))
    assert found <= 1.05 * RECORDED[method][loop]


def test_a_profile_begins_after_the_timing_and_counts_waits() -> None:
    rates, profile, seen = [], steps.Profile(torch.device("cpu")), []
    tick = steps.stopwatch(torch.device("cpu"), 0.0, rates, profile)

    def loop() -> None:
        for step in range(100):
            seen.append(step)
            tick(step)
            tick(step)  # twice an update
            for words in ("called a synchronizing CUDA operation", "something else"):
                if profile.first >= 0:
                    warnings.warn(words, stacklevel=1)

    with pytest.raises(steps.Measured):
        loop()
    assert len(rates) == steps.REPEATS
    assert seen[-1] == profile.first + steps.PROFILED
    assert profile.waits.total() == 1
    assert len(profile.waits) == 1
