"""What only a GPU can show: the CUDA results against the CPU's, bfloat16, whole runs, stop and resume.

GAN_NAS_GPU_TESTS=cpu runs the same tests on the CPU, which checks the tests: there each comparison must be exact.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import eagan
from common import gan
from common.cells import named
from common.cli import cli
from common.data import Batches, shapes
from common.files import stream
from common.gan import Job, seeded
from common.metrics import Evaluator, frechet_distance, matrix_root
from common.ranks import Ranks
from common.run import Run
from eagan import D_SPACE, G_SPACE, PUBLISHED, Generator

CPU = torch.device("cpu")
DEVICE = torch.device(os.environ.get("GAN_NAS_GPU_TESTS", "cuda"))
ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
TINY = {"g_ch": 16, "d_ch": 16, "g_batch": 8, "d_batch": 8, "size": 32}
SMALL = (  # every stage in seconds; training takes 8 G updates
    f"--preset smoke --device {DEVICE.type} --g-ch 8 --d-ch 8 --d-batch 4 --g-batch 4 --epoch-batches 4 --search-n 100 "
    "--final-n 100 --train-epochs 4 --n-critic 2 --eval-n 100 --eval-every 2"
).split()
TRAIN = ("--phase", "train", "--genotype", "eagan-g")


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No TF32, with 10 bits where float32 has 23: convolutions use it by default on CUDA, matrix products do not."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def cpu_latents(monkeypatch):
    """The same latents on both devices, whose generators draw different numbers from one seed."""
    drawn = gan.fixed_latent

    def on_cpu(job: Job, n: int, *name: object) -> Tensor:
        return drawn(replace(job, ranks=Ranks(CPU)), n, *name).to(job.ranks.device)

    monkeypatch.setattr(gan, "fixed_latent", on_cpu)


def one_step(device: torch.device, stage: str, net: str, **changes: object) -> tuple[float, Tensor, torch.nn.Module]:
    """The loss, the gradient and the updated network of the first step of G or D, of training or of stage 1."""
    job = Job(eagan.Args(**TINY, **changes), Ranks(device), None, shapes(16))
    if stage == "stage 1":
        path, g, d = eagan.sample(G_SPACE, random.Random(3)), None, named("autogan-d", D_SPACE, PUBLISHED)
    else:
        path, g, d = None, named("eagan-g", G_SPACE, PUBLISHED), named("eagan-d-cifar10", D_SPACE, PUBLISHED)
    G = seeded(job, lambda: Generator(g, *job.args.g_shape), "G")
    D = seeded(job, lambda: eagan.make_d(d, job.args.d_ch), "D")
    if job.args.compile:
        G.compile()
        D.compile()
    trained, step = (D, eagan.d_step) if net == "D" else (G, eagan.g_step)
    loss = step(job, gan.pair_of(job, G, D), 0, (path, None))
    gradient = torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])
    return loss.item(), gradient.cpu(), trained


# The gradients are compared, not the weights: Adam's first step is lr * sign(gradient), whatever the gradient's size.
@pytest.mark.parametrize("net", ["G", "D"])
@pytest.mark.parametrize("stage", ["training", "stage 1"])
def test_a_step_is_that_of_the_cpu(stage, net, cpu_latents):
    loss, gradient, _ = one_step(DEVICE, stage, net)
    expected, direction, _ = one_step(CPU, stage, net)
    assert direction.norm() > 0
    assert loss == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert (gradient - direction).norm() < 1e-3 * direction.norm()


@pytest.mark.parametrize("net", ["G", "D"])
@pytest.mark.parametrize("stage", ["training", "stage 1"])
def test_a_bfloat16_step_is_finite_and_keeps_float32_weights(stage, net, cpu_latents):
    loss, gradient, trained = one_step(DEVICE, stage, net, amp=True)
    expected, direction, _ = one_step(CPU, stage, net)
    assert loss == pytest.approx(expected, rel=0.05, abs=0.05)
    assert (gradient - direction).norm() > 1e-3 * direction.norm()  # more than float32's: bfloat16 was in fact used
    assert torch.cosine_similarity(gradient, direction, dim=0) > 0.5
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in trained.parameters())


def test_spectral_norm_of_convolutions_is_float32_under_autocast(cpu_latents):
    plain, mixed = (dict(one_step(DEVICE, "training", "D", amp=amp)[2].named_buffers()) for amp in (False, True))
    vectors = [name for name in plain if name.endswith("_v")]
    assert vectors
    for name in vectors:
        torch.testing.assert_close(mixed[name], plain[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["G", "D"])
def test_a_compiled_step_is_that_of_eager(net):
    loss, gradient, _ = one_step(DEVICE, "training", net, compile=True)
    expected, direction, _ = one_step(DEVICE, "training", net)
    assert loss == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert (gradient - direction).norm() < 1e-3 * direction.norm()


# ---- data and metrics ------------------------------------------------------------------------------------------------


def test_batches_are_those_of_the_cpu():
    images = shapes(20).images
    there, here = (Batches(images, 8, 1, device) for device in (DEVICE, CPU))
    for i in range(7):  # three an epoch, the last one short
        assert there(i).device.type == DEVICE.type
        torch.testing.assert_close(there(i).cpu(), here(i), rtol=0, atol=1e-6)  # CUDA multiplies by 1/127.5


def test_stream_draws_the_same_again_whatever_was_drawn_between():
    def draw(name: str) -> Tensor:
        return torch.randn(5, generator=stream(7, name, device=DEVICE), device=DEVICE)

    first = draw("z")
    torch.randn(3, device=DEVICE)
    assert draw("other").ne(first).any()
    assert draw("z").equal(first)


def test_frechet_distance_is_that_of_the_cpu():
    def moments(seed: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(300, 64, dtype=torch.float64, generator=stream(seed, "moments")) * (1 + seed)
        return x.mean(0), x.T.cov()

    here = [*moments(0), *moments(1)]
    there = [x.to(DEVICE) for x in here]
    expected = frechet_distance(*here)
    assert expected > 1
    assert frechet_distance(*there) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(*there, matrix_root(there[1])) == pytest.approx(expected, rel=1e-6)


def test_compact_scores_are_those_of_the_cpu(tmp_path):
    """One cache folder: the network trained by the first evaluator serves the second."""
    made = torch.randint(0, 256, (3, 100, 3, 32, 32), dtype=torch.uint8, generator=stream(0, "made"))
    data, scores = shapes(1000), []
    for device in (CPU, DEVICE):
        evaluator = Evaluator("compact", device, tmp_path)
        evaluator.use(data)
        evaluator.prepare()
        scores.append(evaluator.score(lambda k, device=device: made[k].to(device), 300))
    here, there = scores
    assert here.fid > 0
    assert there.fid == pytest.approx(here.fid, rel=1e-3)
    assert (there.is_mean, there.is_std) == pytest.approx((here.is_mean, here.is_std), rel=1e-3, abs=1e-5)


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")  # the compact network is trained once for all runs


def flags(data_dir: Path, runs: Path, *more: str) -> list[str]:
    return [*SMALL, "--data-dir", str(data_dir), "--runs-dir", str(runs), *more]


def train(*argv: str) -> int:
    return cli(eagan.main, eagan.Args, eagan.PRESETS, list(argv))


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def test_search_training_and_evaluation(data_dir, tmp_path):
    subprocess.run([sys.executable, ROOT / "eagan.py", *flags(data_dir, tmp_path)], check=True, timeout=300)
    (run,) = tmp_path.iterdir()
    status = read(run / "status.json")
    assert status["state"] == "done"
    assert (status["gpu_mem"] is not None) == (DEVICE.type == "cuda")
    assert read(run / "result.json")["last"]["fid"] > 0


def test_resumed_run_is_the_uninterrupted_one(data_dir, tmp_path, monkeypatch):
    """Asked to stop at step 3 of 8, then resumed. On the CPU the weights are the same bit for bit.

    CUDA is asked for its deterministic kernels; for those without such a form, a mean difference of 1 % of a learning
    rate is allowed. To forget G's average, a batch or Adam's state at the resume makes 3 %, 40 % and 100 % (measured).
    """
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tick = Run.tick

    def stopping_tick(self: Run, step: int, upcoming: str = "") -> None:
        self.stopping = step == 3
        tick(self, step, upcoming)

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert train(*flags(data_dir, tmp_path / "whole", *TRAIN)) == 0
        with monkeypatch.context() as patch:
            patch.setattr(Run, "tick", stopping_tick)
            assert train(*flags(data_dir, tmp_path / "parts", *TRAIN)) == 130
        (whole,), (parts,) = (tmp_path / "whole").iterdir(), (tmp_path / "parts").iterdir()
        assert read(parts / "status.json")["step"] == 3
        assert train("--resume", str(parts)) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert read(parts / "status.json")["step"] == read(whole / "status.json")["step"] == 8
    a, b = (torch.load(run / "checkpoint.pt", map_location="cpu")["parts"] for run in (whole, parts))
    for net in ("G", "D", "G_ema"):
        mean = torch.cat([(a[net][k] - v).abs().flatten() for k, v in b[net].items() if v.is_floating_point()]).mean()
        assert mean <= (0.01 * eagan.Args().g_lr if DEVICE.type == "cuda" else 0)


@pytest.mark.skipif(DEVICE.type == "cuda" and torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_two_processes(data_dir, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, ROOT / "eagan.py", *flags(data_dir, tmp_path, *TRAIN)]
    subprocess.run(command, check=True, timeout=300)
    (run,) = tmp_path.iterdir()
    assert read(run / "status.json")["state"] == "done"
    assert read(run / "config.json")["world_size"] == 2
