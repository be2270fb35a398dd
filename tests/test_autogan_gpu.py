"""AutoGAN on CUDA against the CPU: a step of the search and of training, bfloat16, compilation, a score, a whole run.

GAN_NAS_GPU_TESTS=cpu runs the same tests on the CPU, which checks the tests.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import autogan
from autogan import PUBLISHED, Args, Generator, names_of
from common import gan
from common.data import shapes
from common.gan import Job
from common.ranks import Ranks
from tests.runs import command, rows

CPU = torch.device("cpu")
DEVICE = torch.device(os.environ.get("GAN_NAS_GPU_TESTS", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
STAGES = pytest.mark.parametrize("stage", ["search", "training"])
NETS = pytest.mark.parametrize("net", ["G", "D"])


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32, and the same latents on both devices, whose generators draw different numbers from one seed."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    drawn = autogan.latent

    def on_cpu(job: Job, *rest: object) -> Tensor:
        return drawn(replace(job, ranks=Ranks(CPU)), *rest).to(job.ranks.device)

    monkeypatch.setattr(autogan, "latent", on_cpu)


def one_step(device: torch.device, stage: str, net: str, **changes: object) -> tuple[float, Tensor, torch.nn.Module]:
    """Loss, gradient and updated network of a first step of G or D, of the search's stage 1 or of training."""
    args = Args(size=32, g_ch=16, d_ch=16, g_batch=8, d_batch=8, **changes)
    job = Job(args, Ranks(device), None, shapes(16))
    genotype, s = None, 2
    if stage == "search":
        genotype, s = names_of(PUBLISHED["C"][:9]), 1
        job = replace(job, data=shapes(16, 16))
        nets = autogan.new_pair(job, (None, None, None), 16, 16, "test")
    else:
        nets = autogan.new_pair(job, names_of(PUBLISHED["C"]), 16, 16, "test")
    if args.compile:
        nets.G.compile()
        nets.D.compile()
    step, trained = (autogan.d_step, nets.D) if net == "D" else (autogan.g_step, nets.G)
    loss = step(job, nets, 0, genotype, s)
    gradient = torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])
    return loss.item(), gradient.cpu(), trained


# Gradients are compared, not weights: Adam's first step is lr * sign(gradient), whatever the gradient's size.
@NETS
@STAGES
def test_a_step_is_that_of_the_cpu(stage: str, net: str) -> None:
    loss, gradient, _ = one_step(DEVICE, stage, net)
    expected, direction, _ = one_step(CPU, stage, net)
    assert direction.norm() > 0
    assert loss == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert (gradient - direction).norm() < 1e-3 * direction.norm()


@NETS
@STAGES
def test_a_bfloat16_step_is_finite_and_keeps_float32_weights(stage: str, net: str) -> None:
    loss, gradient, trained = one_step(DEVICE, stage, net, amp=True)
    expected, direction, _ = one_step(CPU, stage, net)
    assert loss == pytest.approx(expected, rel=0.05, abs=0.05)
    assert (gradient - direction).norm() > 1e-3 * direction.norm()  # more than float32's: bfloat16 was in fact used
    assert torch.cosine_similarity(gradient, direction, dim=0) > 0.5
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in trained.parameters())


@pytest.mark.slow
@NETS
def test_a_compiled_step_is_that_of_eager(net: str) -> None:
    loss, gradient, _ = one_step(DEVICE, "training", net, compile=True)
    expected, direction, _ = one_step(DEVICE, "training", net)
    assert loss == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert (gradient - direction).norm() < 1e-3 * direction.norm()


def test_every_architecture_makes_the_images_of_the_cpu() -> None:
    args, nets = Args(size=32), []
    for device in (CPU, DEVICE):
        job = Job(args, Ranks(device), None, None)
        nets.append(gan.seeded(job, lambda: Generator((None, None, None), 8, args.z_dim, 32), "G").eval())
    z = gan.latent(Job(args, Ranks(CPU), None, None), 4, "test")
    for x in autogan.uniform(args, 20, "test"):
        genotype = names_of(x.vector)
        with torch.no_grad():
            here, there = (G(z.to(d), genotype).cpu() for G, d in zip(nets, (CPU, DEVICE), strict=True))
        torch.testing.assert_close(there, here, rtol=0, atol=1e-4)


def test_a_whole_run_searches_chooses_and_trains_and_goes_on_after_a_stop(tmp_path: Path, monkeypatch) -> None:
    flags = (
        f"--preset smoke --device {DEVICE.type} --search-g-ch 8 --search-d-ch 8 --g-ch 8 --d-ch 8 --d-batch 8 "
        "--g-batch 8 --iterations 3 --grow 1,2 --epoch-batches 4 --ctrl-steps 2 --reward-n 100 --final-n 100 "
        "--train-epochs 2 --eval-n 100"
    ).split()
    ticks, tick = [], autogan.Run.tick

    def stopping_tick(run: autogan.Run, *rest: object) -> None:
        ticks.append(rest)
        run.stopping = len(ticks) == 20  # amid the search
        tick(run, *rest)

    monkeypatch.setattr(autogan.Run, "tick", stopping_tick)
    assert command(autogan, [*flags, "--data-dir", str(tmp_path / "data"), "--runs-dir", str(tmp_path / "runs")]) == 130
    (run,) = (tmp_path / "runs").iterdir()
    assert command(autogan, ["--resume", str(run)]) == 0
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["gpu_mem"] is not None) == ("done", DEVICE.type == "cuda")
    kinds = [row["kind"] for row in rows(run, "search.jsonl")]
    assert (kinds.count("controller"), kinds.count("beam"), kinds.count("derive")) == (6, 3, 1)
    assert json.loads((run / "result.json").read_text())["last"]["fid"] > 0
