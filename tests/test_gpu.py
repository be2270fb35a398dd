"""What only a GPU can show of each method: its steps against the CPU's, bfloat16, compiled code, whole runs.

GAN_NAS_GPU_TESTS=cpu runs the same tests on the CPU, which checks the tests.
"""

import importlib
import os
import random
from collections.abc import Iterator
from functools import partial
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import adversarialnas
import autogan
import common.data
import degas
import eagan
from benchmark import steps
from common import gan, graph
from common.cells import avg_pool_3x3
from common.data import Batches, shapes
from common.files import stream
from common.gan import Job, seeded
from common.metrics import Evaluator
from common.ranks import Ranks
from tests import loops
from tests.loops import LOOPS as FIXED_LOOPS
from tests.loops import LoopRun, flat, miniature, pairs_of, stretch, without_dropout
from tests.runs import command, parsed, read, rows, stop_and_resume, torchrun

CPU = torch.device("cpu")
DEVICE = torch.device(os.environ.get("GAN_NAS_GPU_TESTS", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32, with 10 bits where float32 has 23: convolutions use it by default on CUDA, matrix products do not."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every random number from the CPU, whose generators no GPU can repeat; no dropout; few images."""
    monkeypatch.setattr(common.data, "shapes", partial(shapes, 256))
    for module in (gan, adversarialnas, autogan, degas, eagan):
        monkeypatch.setattr(module, "stream", lambda *name, device="cpu": stream(*name), raising=False)
    for name in ("rand", "randn", "randint", "randperm"):
        draw = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, device="cpu", draw=draw, **how: draw(*a, **how).to(device))
    exponential = Tensor.exponential_
    monkeypatch.setattr(
        Tensor, "exponential_", lambda x, generator: x.copy_(exponential(torch.empty(x.shape), generator=generator))
    )
    monkeypatch.setattr(degas.F, "dropout", lambda x, *_: x)


@pytest.fixture
def float64(same_numbers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks, latents and images in float64: rounding moves no ReLU or maximum to the other side.

    In float32 a relative change of the weights by 1e-6 can change DEGAS's and EAGAN's gradients by 0.3 %, alpha's by 3 %
    (measured on the CPU).
    """
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- a first step of each network ------------------------------------------------------------------------------------

LOOPS = [(method, loop) for method, loops in steps.ROWS.items() for loop in loops]
TRAINING = [(method, loop) for method, loop in LOOPS if loop == "training"]
SMALL = dict(size=32, g_ch=16, d_ch=16, g_batch=8, d_batch=8, n_critic=1, g_lr=0.0, d_lr=0.0)  # no update changes the next
SEARCH = {
    "eagan": {},
    "adversarialnas": dict(search_batch=8, chunks=3, search_g_ch=16, search_d_ch=16, arch_lr=0.0),
    "autogan": dict(search_g_ch=16, search_d_ch=16),
    "degas": dict(
        search_size=32, search_images=16, lap_levels=3, search_ch=16, z_dim=16, search_batch=8, w_lr=0.0, arch_lr=0.0
    ),
}

Step = tuple[float, Tensor, nn.Module]  # loss, gradient, network


def first_steps(device: torch.device, method: str, loop: str, **flags: object) -> list[Step]:
    """The first update of each network in a loop of the method's command.

    Gradients are compared, not weights: Adam's first step is lr * sign(gradient), whatever the gradient's size.
    """
    script, found = importlib.import_module(method), []

    def update(job: Job, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, **how: Any) -> None:
        if net in [seen for _, _, seen in found]:
            raise steps.Measured
        gan.update(job, net, optimizer, loss, **how)
        gradient = torch.cat([p.grad.flatten().cpu() for p in net.parameters() if p.grad is not None])
        found.append((loss.item(), gradient, net))

    given = {**SMALL, **SEARCH[method], **steps.ROWS[method][loop], **flags}
    args = script.Args(dataset="shapes", evaluator="compact", device=device.type, **given)
    with patch.object(script, "update", update):
        steps.measure(script, args, device, seconds=float("inf"))
    return found


def assert_same(one: list[Step], other: list[Step], rel: float = 1e-3) -> None:
    assert len(one) == len(other) >= 2
    for (loss, gradient, net), (expected, direction, _) in zip(one, other, strict=True):
        assert direction.norm() > 0
        assert loss == pytest.approx(expected, rel=rel, abs=rel)
        assert (gradient - direction).norm() < rel * direction.norm(), type(net)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("method", "loop"), LOOPS)
def test_a_step_is_that_of_the_cpu(method: str, loop: str) -> None:
    assert_same(first_steps(DEVICE, method, loop), first_steps(CPU, method, loop), rel=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("same_numbers")
@pytest.mark.parametrize(("method", "loop"), TRAINING)
def test_a_compiled_step_is_that_of_eager(method: str, loop: str) -> None:
    rel = 2e-3 if method == "degas" else 1e-3
    assert_same(first_steps(DEVICE, method, loop, compile=True), first_steps(DEVICE, method, loop), rel)


@pytest.mark.usefixtures("same_numbers")
@pytest.mark.parametrize(("method", "loop"), LOOPS)
def test_a_bfloat16_step_is_near_it_and_keeps_float32_weights(method: str, loop: str) -> None:
    half, full = first_steps(DEVICE, method, loop, amp=True), first_steps(CPU, method, loop)
    for (loss, gradient, trained), (expected, direction, _) in zip(half, full, strict=True):
        if isinstance(trained, adversarialnas.Logits):  # alpha and beta
            continue
        assert loss == pytest.approx(expected, rel=0.05, abs=0.1 if method == "degas" else 0.05)
        assert (gradient - direction).norm() > 1e-3 * direction.norm()  # more than float32's: bfloat16 was in fact used
        assert torch.cosine_similarity(gradient, direction, dim=0) > 0.5
        assert all(p.isfinite().all() and p.dtype == torch.float32 for p in trained.parameters())


@pytest.mark.usefixtures("same_numbers")
def test_spectral_norm_of_convolutions_is_float32_under_autocast() -> None:
    plain, mixed = (first_steps(DEVICE, "eagan", "training", amp=amp)[0] for amp in (False, True))  # D is first
    plain, mixed = (dict(net.named_buffers()) for _, _, net in (plain, mixed))
    vectors = [name for name in plain if name.endswith("_v")]
    assert vectors
    for name in vectors:
        torch.testing.assert_close(mixed[name], plain[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_degas_mean_pool_is_that_of_the_cpu(layout: torch.memory_format) -> None:
    """torch 2.11's own is wrong on CUDA in channels_last."""
    x = torch.randn(4, 8, 6, 6, generator=stream(0, "x"))
    here, there = (x.to(device, memory_format=layout).requires_grad_() for device in (CPU, DEVICE))
    for given in (here, there):
        (avg_pool_3x3(given) * x.to(given.device)).sum().backward()
    torch.testing.assert_close(there.grad.cpu(), here.grad)


def job_of(script: ModuleType, device: torch.device) -> Job:
    return Job(script.Args(**SMALL), Ranks(device), None, None)


@torch.no_grad()
def test_any_architecture_gives_the_numbers_of_the_cpu() -> None:
    """Of AdversarialNAS's networks, and of AutoGAN's shared weights."""
    nas, rng = adversarialnas, random.Random(0)
    z, x = torch.randn(4, nas.Args().z_dim), shapes(4).images / 127.5 - 1
    made = []
    for _ in range(10):
        g, d = (nas.random_genotype(space, rng) for space in (nas.G_SPACE, nas.D_SPACE))
        made += [(nas, partial(nas.Generator, g, 8), (z,)), (nas, partial(nas.Discriminator, d, 8), (x,))]
    shared = partial(autogan.Generator, (None, None, None), 8, z.shape[1], 32)
    made += [(autogan, shared, (z, autogan.names_of(x.vector))) for x in autogan.uniform(autogan.Args(**SMALL), 20, "test")]
    for script, make, (given, *path) in made:
        nets = ((seeded(job_of(script, device), make, "net").eval(), device) for device in (CPU, DEVICE))
        here, there = (net(given.to(device), *path).cpu() for net, device in nets)
        torch.testing.assert_close(there, here, rtol=1e-3 if script is nas else 0, atol=1e-4)


# ---- --graph ---------------------------------------------------------------------------------------------------------


def graphed(method: str, loop: str, monkeypatch: pytest.MonkeyPatch, **flags: object) -> tuple[LoopRun, int]:
    """The loop's first 20 updates with --graph, and the number of graphs that were captured."""
    if DEVICE.type == "cpu":
        miniature(monkeypatch)
    captured, capture = [], graph.capture
    monkeypatch.setattr(graph, "capture", lambda *given: captured.append(given) or capture(*given))
    return stretch(method, loop, monkeypatch, device=DEVICE.type, graph=True, **flags), len(captured)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("method", "loop"), FIXED_LOOPS)
def test_updates_of_a_graph_are_the_eager_ones(method: str, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to rounding: rates are float32 in a graph, and alpha's Adam has another kernel."""
    without_dropout(monkeypatch)
    eager = stretch(method, loop, monkeypatch, device=DEVICE.type)
    replayed, captured = graphed(method, loop, monkeypatch)
    assert captured == (2 if (method, loop) == ("adversarialnas", "search") else 1)
    assert len(replayed.logged) == len(eager.logged) >= 19
    for one, other in zip(replayed.logged, eager.logged, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    for name, a, b in pairs_of(replayed, eager):
        torch.testing.assert_close(a.cpu().double(), b.cpu().double(), rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("method", "loop"), FIXED_LOOPS)
def test_a_graph_trains_in_bfloat16(method: str, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: replays see other masks than each other, since the loss of the critic's consistency is not 0."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(loops, "record", partial(loops.record, random=True))
    run, captured = graphed(method, loop, monkeypatch, amp=True)
    assert captured > 0
    assert all(isfinite(value) for row in run.logged for value in row.values())
    assert all(x.isfinite().all() for _, x in flat(run.parts))
    if (method, loop) == ("degas", "training"):
        assert len({row["loss/ct"] for row in run.logged}) > 10


# ---- data and metrics ------------------------------------------------------------------------------------------------


def test_batches_are_those_of_the_cpu_and_do_not_wait() -> None:
    images = shapes(20).images
    there, here = (Batches(images, 8, 1, device) for device in (DEVICE, CPU))
    for i in range(7):  # three an epoch, the last one short; its first draws the epoch's order, on the CPU
        if DEVICE.type == "cuda" and i % 3:
            torch.cuda.set_sync_debug_mode("error")
        batch = there(i)
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        assert batch.device.type == DEVICE.type
        torch.testing.assert_close(batch.cpu(), here(i), rtol=0, atol=1e-6)  # CUDA multiplies by 1/127.5


def test_compact_scores_are_those_of_the_cpu(tmp_path: Path) -> None:
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


def test_features_are_float32_where_tf32_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8, generator=stream(0, "made")).to(DEVICE)
    evaluator = Evaluator("compact", DEVICE, tmp_path)
    evaluator.use(shapes(1000))
    evaluator.prepare()
    exact = evaluator._apply(made)[0]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.testing.assert_close(evaluator._apply(made)[0], exact, rtol=1e-6, atol=1e-6)
    assert torch.backends.cudnn.allow_tf32
    if DEVICE.type == "cuda":
        assert (evaluator.network(made)[0] - exact).abs().max() > 1e-5 * exact.abs().max()


# ---- whole runs ------------------------------------------------------------------------------------------------------

ON_GPU = pytest.mark.skipif(DEVICE.type == "cpu", reason="--graph needs a GPU")
SHORT = f"--preset smoke --device {DEVICE.type} --g-ch 8 --d-ch 8 --d-batch 8 --g-batch 8 --epoch-batches 4 --eval-n 100"
EAGAN = "--search-n 100 --final-n 100 --train-epochs 4 --n-critic 2 --eval-every 2"
ADVERSARIALNAS = "--search-g-ch 4 --search-d-ch 4 --search-batch 8 --search-epochs 3 --derive-every 4 --search-eval-every 2"
AUTOGAN = "--search-g-ch 8 --search-d-ch 8 --iterations 3 --grow 1,2 --ctrl-steps 2 --reward-n 100 --final-n 100"


@pytest.fixture(scope="module")
def data_dir(quick_compact: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")  # the compact network is trained once for all runs


def command_line(data_dir: Path, runs: Path, *more: str) -> list[str]:
    return [*SHORT.split(), "--log-every", "1", "--data-dir", str(data_dir), "--runs-dir", str(runs), *more]


@pytest.mark.parametrize(
    ("script", "flags", "stop", "search_rows"),
    [
        (eagan, EAGAN, ("stage 1 warm-up", 3), 4),
        (adversarialnas, ADVERSARIALNAS + " --amp --train-epochs 2", ("search", 5), 3),
        (autogan, AUTOGAN + " --train-epochs 2", ("stage 0 iteration 1/3 controller", 2), 10),
        (degas, "--search-ch 8 --search-epochs 1 --iters 4 --conditional --amp", ("search", 3), 2),
        pytest.param(adversarialnas, ADVERSARIALNAS + " --graph --train-epochs 2", ("search", 5), 3, marks=ON_GPU),
        pytest.param(degas, "--search-ch 8 --search-epochs 1 --iters 12 --graph", ("training", 9), 2, marks=ON_GPU),
    ],
    ids=["eagan", "adversarialnas", "autogan", "degas", "adversarialnas graph", "degas graph"],
)
def test_a_whole_run_goes_on_after_a_stop(
    script: ModuleType, flags: str, stop: tuple[str, int], search_rows: int, data_dir, tmp_path, monkeypatch
) -> None:
    args = vars(parsed(script, command_line(data_dir, tmp_path, *flags.split())))
    run = stop_and_resume(script, args, tmp_path, monkeypatch, *stop)
    status = read(run, "status.json")
    assert (status["state"], status["gpu_mem"] is not None) == ("done", DEVICE.type == "cuda")
    assert len(rows(run, "search.jsonl")) == search_rows
    steps = [row["step"] for row in rows(run, "metrics.jsonl") if "loss/d" in row]
    assert steps == list(range(steps[0], status["total"] + 1))
    assert status["last"]["fid"] > 0
    assert (run / "result.json").exists()


def test_a_resumed_run_is_the_uninterrupted_one(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop at step 3 of 8, then resumed. On the CPU the weights are the same bit for bit.

    CUDA is asked for its deterministic kernels; for those without such a form, a mean difference of 1 % of a learning
    rate is allowed. To forget G's average, a batch or Adam's state at the resume makes 3 %, 40 % and 100 % (measured).
    """
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    train = [*EAGAN.split(), "--phase", "train", "--genotype", "eagan-g"]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert command(eagan, command_line(data_dir, tmp_path / "whole", *train)) == 0
        args = vars(parsed(eagan, command_line(data_dir, tmp_path / "parts", *train)))
        parts = stop_and_resume(eagan, args, tmp_path / "parts", monkeypatch, "training", 4)
    finally:
        torch.use_deterministic_algorithms(False)
    (whole,) = (tmp_path / "whole").iterdir()
    assert read(parts, "status.json")["step"] == read(whole, "status.json")["step"] == 8
    a, b = (torch.load(run / "checkpoint.pt", map_location="cpu")["parts"] for run in (whole, parts))
    for net in ("G", "D", "G_ema"):
        mean = torch.cat([(a[net][k] - v).abs().flatten() for k, v in b[net].items() if v.is_floating_point()]).mean()
        assert mean <= (0.01 * eagan.Args().g_lr if DEVICE.type == "cuda" else 0)


@pytest.mark.skipif(DEVICE.type == "cuda" and torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_two_processes(data_dir: Path, tmp_path: Path) -> None:
    words = command_line(data_dir, tmp_path, *EAGAN.split(), "--phase", "train", "--genotype", "eagan-g")
    assert torchrun(eagan, words).returncode == 0
    (run,) = tmp_path.iterdir()
    assert read(run, "status.json")["state"] == "done"
    assert read(run, "config.json")["world_size"] == 2
