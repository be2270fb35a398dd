"""What only a GPU can show of adversarialnas.py: its steps against the CPU's, bfloat16, compiled code, a whole run.

GAN_NAS_GPU_TESTS=cpu runs the same tests on the CPU, which checks the tests.
"""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import adversarialnas as nas
from adversarialnas import D_SPACE, G_SPACE, PUBLISHED, Args, Supernets
from common import gan
from common.cells import named
from common.data import Batches, Dataset, shapes
from common.files import stream
from common.gan import Job
from common.ranks import Ranks
from tests.runs import command, rows

CPU = torch.device("cpu")
DEVICE = torch.device(os.environ.get("GAN_NAS_GPU_TESTS", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
ARCHITECTURE = ["beta", "alpha"]
WEIGHTS = ["search D", "search G", "training D", "training G"]


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32, and latents and Gumbel noise from the CPU on both devices: their generators draw different numbers."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    latent, exponential = gan.latent, torch.Tensor.exponential_
    monkeypatch.setattr(nas, "stream", lambda *name, device="cpu": stream(*name))
    monkeypatch.setattr(nas, "latent", lambda job, *rest: latent(job_of(job.args, CPU), *rest).to(job.ranks.device))
    monkeypatch.setattr(
        torch.Tensor,
        "exponential_",
        lambda x, generator: x.copy_(exponential(torch.empty(x.shape), generator=generator)),
    )


def job_of(args: Args, device: torch.device) -> Job:
    return Job(args, Ranks(device), None, Dataset("shapes", shapes(16).images, None, ""))


def one_step(device: torch.device, kind: str, **changes: object) -> tuple[float, Tensor, nn.Module]:
    """The loss, the gradient and the updated network of a first step, as `search` and `train_step` take it."""
    args = Args(**{"size": 32, "chunks": 3, "search_g_ch": 16, "search_d_ch": 16, "g_ch": 16, "d_ch": 16, **changes})
    job, real = job_of(args, device), Batches(shapes(16).images, 8, 0, device)(0)
    if kind.startswith("training"):
        nets, _ = nas.from_scratch(job, named("adversarialnas-g", G_SPACE, PUBLISHED), "autogan")
        G, D = nets.G, nets.D
        if args.compile:
            G.compile()
            D.compile()
    else:
        nets = Supernets(job)
        G, D = nets.mixed(job, 1.0, "test")
    if kind in ARCHITECTURE:
        trained, optimizer = getattr(nets, kind), getattr(nets, f"{kind}_opt")
    else:
        trained, optimizer = (nets.G, nets.g_opt) if kind.endswith("G") else (nets.D, nets.d_opt)
    with job.autocast():
        if kind == "beta" or kind.endswith("D"):
            loss = nas.d_pass(job, G, D, real, "d", 0)
        else:
            loss = nas.g_pass(job, G, D, 8, "g", 0)
    gan.update(job, trained, optimizer, loss)
    gradient = torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])
    return loss.item(), gradient.cpu(), trained


# Gradients are compared, not weights: Adam's first step is lr * sign(gradient), whatever the gradient's size.
@pytest.mark.parametrize("kind", [*ARCHITECTURE, *WEIGHTS])
def test_a_step_is_that_of_the_cpu(kind: str) -> None:
    loss, gradient, _ = one_step(DEVICE, kind)
    expected, direction, _ = one_step(CPU, kind)
    assert direction.norm() > 0
    assert loss == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert (gradient - direction).norm() < 1e-3 * direction.norm()


@pytest.mark.parametrize("kind", [*ARCHITECTURE, *WEIGHTS[:2]])
def test_merged_and_plain_edges_take_the_same_step(kind: str) -> None:
    loss, gradient, _ = one_step(DEVICE, kind)
    expected, direction, _ = one_step(DEVICE, kind, mixed="plain")
    assert loss == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert (gradient - direction).norm() < 1e-3 * direction.norm()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_bfloat16_step_is_finite_and_keeps_float32_weights(kind: str) -> None:
    loss, gradient, trained = one_step(DEVICE, kind, amp=True)
    expected, direction, _ = one_step(CPU, kind)
    assert loss == pytest.approx(expected, rel=0.05, abs=0.05)
    assert (gradient - direction).norm() > 1e-3 * direction.norm()  # more than float32's: bfloat16 was in fact used
    assert torch.cosine_similarity(gradient, direction, dim=0) > 0.5
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in trained.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", WEIGHTS[2:])
def test_a_compiled_step_is_that_of_eager(kind: str) -> None:
    loss, gradient, _ = one_step(DEVICE, kind, compile=True)
    expected, direction, _ = one_step(DEVICE, kind)
    assert loss == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert (gradient - direction).norm() < 1e-3 * direction.norm()


@torch.no_grad()
def test_derived_networks_give_the_numbers_of_the_cpu() -> None:
    args, rng, x = Args(size=32, chunks=3), random.Random(0), shapes(4).images / 127.5 - 1
    z = nas.latent(job_of(args, CPU), 4, "test")
    for i in range(10):
        g, d = (nas.random_genotype(space, rng) for space in (G_SPACE, D_SPACE))
        for make, given in ((lambda g=g: nas.Generator(g, 8), z), (lambda d=d: nas.Discriminator(d, 8), x)):
            nets = (gan.seeded(job_of(args, to), make, i).eval() for to in (CPU, DEVICE))
            here, there = (net(given.to(to)).cpu() for net, to in zip(nets, (CPU, DEVICE), strict=True))
            torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("quick_compact")
def test_a_whole_run_searches_and_trains_and_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        f"--preset smoke --device {DEVICE.type} --amp --search-g-ch 4 --search-d-ch 4 --search-batch 8 "
        "--search-epochs 3 --epoch-batches 4 --derive-every 4 --search-eval-every 2 --g-ch 8 --d-ch 8 --d-batch 8 "
        "--g-batch 8 --train-epochs 2 --eval-n 100 --log-every 1"
    ).split()
    ticks, tick = [], nas.Run.tick

    def stopping_tick(run: nas.Run, *rest: object) -> None:
        ticks.append(rest)
        run.stopping = len(ticks) == 5  # amid the search
        tick(run, *rest)

    monkeypatch.setattr(nas.Run, "tick", stopping_tick)
    assert command(nas, [*words, "--data-dir", str(tmp_path / "data"), "--runs-dir", str(tmp_path / "runs")]) == 130
    (run,) = (tmp_path / "runs").iterdir()
    assert command(nas, ["--resume", str(run)]) == 0
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["gpu_mem"] is not None) == ("done", DEVICE.type == "cuda")
    assert [row["batch"] for row in rows(run, "search.jsonl")] == [0, 4, 8]
    assert [row["step"] for row in rows(run, "metrics.jsonl") if "loss/d" in row] == list(range(1, 17))
    assert json.loads((run / "result.json").read_text())["last"]["fid"] > 0
