"""What only a GPU can show of degas.py: its steps against the CPU's, bfloat16, compiled code, a whole run.

GAN_NAS_GPU_TESTS=cpu runs the same tests on the CPU, which checks the tests: there each comparison must be exact.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import degas
from common import gan
from common.data import shapes
from common.files import stream
from common.ranks import Ranks
from tests.runs import flags, start

CPU = torch.device("cpu")
DEVICE = torch.device(os.environ.get("GAN_NAS_GPU_TESTS", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
ARGS = degas.Args(
    size=32, search_size=32, search_images=16, lap_levels=3, w_lr=0.3, search_ch=16, g_ch=16, d_ch=16,
    z_dim=16, search_batch=8, g_batch=8, d_batch=8, g_lr=1e-3, d_lr=1e-3,
)  # fmt: skip


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 without TF32, and every random number from the CPU, whose generators no GPU can repeat; no dropout."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for module in (degas, gan):
        monkeypatch.setattr(module, "stream", lambda *name, device="cpu": stream(*name))
    for name in ("rand", "randn", "randint", "randperm"):
        draw = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, device="cpu", draw=draw, **how: draw(*a, **how).to(device))
    monkeypatch.setattr(degas.F, "dropout", lambda x, *_: x)


def step(device: torch.device, kind: str, **how: bool) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of what the step trains, on the CPU."""
    args = replace(ARGS, **how)
    job = gan.Job(args, Ranks(device), None, shapes(16))
    if kind in ("zw", "alpha"):
        s, i = degas.Search(job), torch.arange(8, device=device)
        s.alpha = degas.Alpha(args.space, args.seed, 1.0).to(device)
        s.w_opt = torch.optim.SGD(s.net.parameters(), 0.3)
        s.a_opt = torch.optim.Adam(s.alpha.parameters())
        loss = degas.zw_step(job, s, i, 0.3) if kind == "zw" else degas.alpha_step(job, s, i)
        trained = s.net if kind == "zw" else s.alpha
    else:
        G = gan.seeded(job, lambda: degas.Generator("baseline", 16, 16, 32), "G")
        D = gan.seeded(job, lambda: degas.Critic(16), "D")
        if args.compile:
            G.compile()
            D.compile()
        trained, nets = D if kind == "critic" else G, gan.pair_of(job, G, D)
        parts = degas.critic_step(job, nets, None, 0) if kind == "critic" else degas.generator_step(job, nets, 0)
        loss = sum(parts.values())
    assert all(p.dtype == torch.float32 for p in trained.parameters())
    return loss.cpu(), torch.cat([p.grad.flatten().cpu() for p in trained.parameters() if p.grad is not None])


STEPS = pytest.mark.parametrize("kind", ["zw", "alpha", "critic", "generator"])


@STEPS
def test_a_step_is_that_of_the_cpu(kind: str) -> None:
    (loss, gradient), (expected, direction) = step(DEVICE, kind), step(CPU, kind)
    assert direction.norm() > 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)
    assert (gradient - direction).norm() < 2e-3 * direction.norm()


@STEPS
def test_a_bfloat16_step_is_near_it(kind: str) -> None:
    (loss, gradient), (expected, direction) = step(DEVICE, kind, amp=True), step(CPU, kind)
    assert loss.item() == pytest.approx(expected.item(), rel=0.05, abs=0.1)
    assert (gradient - direction).norm() > 1e-3 * direction.norm()  # bfloat16 was in fact used
    assert torch.cosine_similarity(gradient, direction, dim=0) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["critic", "generator"])
def test_a_compiled_step_is_that_of_eager(kind: str) -> None:
    (loss, gradient), (expected, direction) = step(DEVICE, kind, compile=True), step(DEVICE, kind)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-3)
    assert (gradient - direction).norm() < 2e-3 * direction.norm()


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    small = {"search_ch": 8, "search_epochs": 1, "epoch_batches": 4, "g_ch": 8, "d_ch": 8, "iters": 4, "eval_n": 100}
    values = {
        **degas.PRESETS["smoke"],
        **small,
        "device": DEVICE.type,
        "data_dir": tmp_path,
        "conditional": True,
        "amp": True,
    }
    run = start(degas, values, tmp_path / "runs")
    assert (run / "result.json").exists()
    assert flags({"device": DEVICE.type})[1] in (run / "config.json").read_text()
