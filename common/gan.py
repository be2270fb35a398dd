"""Code shared by all GAN scripts: latents, optimisers, EMA, scoring, sample grids, weights files."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from math import inf, isfinite
from pathlib import Path
from shutil import rmtree, which
from statistics import stdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from common.cells import Cost
from common.data import Batches, Dataset, load_dataset
from common.files import UserError, first_line, load_tensors, replacing, stream
from common.metrics import IS_SPLITS, Evaluator, Score, metrics_of, to_uint8
from common.ranks import Ranks, free_memory, measured_flops
from common.run import Run, duration

Stage = tuple[str, int, float]  # of a plan: name, G updates, multiply-adds per update
Generate = Callable[[Tensor, Any], Tensor]  # (latents, batch index or "grid") -> images in [-1, 1]
NO_RUN: Any = None  # of a Job, until all arguments have been checked
INCEPTION_MACS = 5.7e9  # per image, 299x299


@dataclass
class Job:
    """Everything that the stages of a run share."""

    args: Any  # the script's Args
    ranks: Ranks
    evaluator: Evaluator
    data: Dataset
    plan: list[Stage] = field(default_factory=list)  # training from scratch, if any, comes last
    run: Run = NO_RUN
    eval_bn: str = "running"  # BatchNorm statistics in evaluations: "running" or "batch"
    to_bytes: Callable[[Tensor], Tensor] = to_uint8  # images in [-1, 1] -> uint8

    @cached_property
    def images(self) -> Tensor:
        """The real images, uint8 (N, 3, H, W): on the device, or on the CPU if they would fill half of its memory."""
        images, device = self.data.images, self.ranks.device
        return images if images.nbytes > free_memory(device) / 2 else images.to(device)

    @cached_property
    def batches(self) -> Batches:
        """Batches of --d-batch real images: batches(i) is this process's share of batch i, in [-1, 1]."""
        return self.batches_of(self.args.d_batch)

    def batches_of(self, size: int) -> Batches:
        return Batches(self.images, size, self.args.seed, self.ranks.device, self.ranks.rank, self.ranks.world)

    @property
    def epoch(self) -> int:
        """D batches per epoch. UserError: --d-batch does not fit the data set."""
        whole = len(self.batches)
        return self.args.epoch_batches or whole

    @property
    def g_batch(self) -> int:
        """Latents per G step on this process."""
        return self.args.g_batch // self.ranks.world

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.args.amp)


@dataclass
class Progress:
    """State of a run besides the networks; `step` and `batch` count over all stages."""

    stage: int = 0  # index in the list of stages
    step: int = 0  # G updates
    batch: int = 0  # D steps; seeds batch and latent sampling
    began: int = 0  # step at which the current stage began
    evaluated: int = -1  # step of the last evaluation
    last: dict | None = None  # scores of the last evaluation during training
    best: dict | None = None  # scores of the evaluation with the lowest FID
    evaluations: int = 0  # of which it is the best
    finished: int = -1  # step of the last `final_scores`
    final: dict[str, dict] = field(default_factory=dict)  # scores against --eval-data, by their names in result.json

    def next_stage(self) -> None:
        self.stage, self.began = self.stage + 1, self.step

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, saved: dict) -> None:
        vars(self).update(saved)


@dataclass
class Pair:
    """A generator and a discriminator with their optimisers."""

    G: nn.Module
    D: nn.Module
    g_opt: torch.optim.Optimizer
    d_opt: torch.optim.Optimizer


# ---- networks and steps --------------------------------------------------------------------------


def fixed_latent(job: Job, n: int, *name: object) -> Tensor:
    """n latents z ~ N(0, I), (n, z_dim), determined by seed and name: the same on every process."""
    g = stream(job.args.seed, *name, device=job.ranks.device)
    return torch.randn(n, job.args.z_dim, generator=g, device=job.ranks.device)


def latent(job: Job, n: int, *name: object) -> Tensor:
    """n latents for this process, (n, z_dim): its share of the n * world latents of this name."""
    return fixed_latent(job, n * job.ranks.world, *name)[job.ranks.rank :: job.ranks.world]


def d_draw(job: Job, batch: int) -> tuple[Tensor, Tensor]:
    """What D step `batch` is given: real images, and latents of as many fakes."""
    real = job.batches(batch)
    return real, latent(job, len(real), "d", batch)


def draw(job: Job, state: Progress, n_critic: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Draw what the next n_critic D steps and the G step after them are given, and count these steps."""
    drawn = [d_draw(job, state.batch + k) for k in range(n_critic)], latent(job, job.g_batch, "g", state.step)
    state.batch, state.step = state.batch + n_critic, state.step + 1
    return drawn


def log_losses(job: Job, state: Progress, losses: dict[str, Tensor]) -> None:
    """Log the latest losses, as set by --log-every."""
    if state.step % job.args.log_every == 0:
        job.run.log(state.step, **losses)


def seeded(job: Job, make: Callable[[], nn.Module], *name: object) -> nn.Module:
    """Call make() and move the network to the device; initial weights are seeded by (seed, name)."""
    torch.manual_seed(stream(job.args.seed, "init", *name).initial_seed())
    return make().to(job.ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def adam(job: Job, net: nn.Module, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), lr, betas=(job.args.adam_b1, job.args.adam_b2), fused=True)


def pair_of(job: Job, G: nn.Module, D: nn.Module) -> Pair:
    return Pair(G, D, adam(job, G, job.args.g_lr), adam(job, D, job.args.d_lr))


def update(
    job: Job, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float = 0.0,
    apart: Tensor | None = None,
) -> None:  # fmt: skip
    """Take one optimiser step; parameters without gradient do not change. clip: gradient norm limit, 0: none.

    apart: another loss, whose graph shares only parameters with that of `loss`. Its gradients are added all at once,
    not parameter by parameter: on a GPU, 45 launches fewer in a G update of DEGAS's training.
    """
    if job.run is not NO_RUN:
        job.run.watch(loss if apart is None else loss + apart)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if apart is not None:
        params = [p for p in net.parameters() if p.requires_grad]
        grads = torch.autograd.grad(apart, params, allow_unused=True)
        more = {p: grad for p, grad in zip(params, grads, strict=True) if grad is not None}
        sums: Any = [p.grad for p in more]  # of `loss`, which reaches all parameters that `apart` reaches
        torch._foreach_add_(sums, list(more.values()))
    job.ranks.average_gradients(net.parameters())
    if clip:
        nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()


@contextmanager
def frozen(*nets: nn.Module | None) -> Iterator[None]:
    """Disable gradients of these networks inside the `with` block; saves time when updating others."""
    given = [net for net in nets if net is not None]
    for net in given:
        net.requires_grad_(False)
    try:
        yield
    finally:
        for net in given:
            net.requires_grad_(True)


@torch.no_grad()
def ema_update(average: nn.Module, net: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * net for parameters; buffers are copied from net."""
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    if buffers := list(average.buffers()):
        torch._foreach_copy_(buffers, list(net.buffers()))


def clone(net: nn.Module) -> dict[str, Tensor]:
    """Copy of the state dict that shares no storage with the network."""
    return {k: v.clone() for k, v in net.state_dict().items()}


@contextmanager
def own_batch_norm(job: Job, G: nn.Module, path: Any, batches: int) -> Iterator[None]:
    """Inside the `with` block, use BatchNorm statistics of this supernet path alone: the mean over
    `batches` batches of 100 images G(z, path); 0: keep the running statistics of all paths."""
    norms = [m for m in G.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(clone(m), m.momentum) for m in norms]
    if batches:
        for m in norms:
            m.reset_running_stats()
            m.momentum = None
        with torch.no_grad():
            for k in range(batches):
                G(fixed_latent(job, 100, "bn", k), path)
    try:
        yield
    finally:
        for m, (state, momentum) in zip(norms, before, strict=True):
            m.load_state_dict(state)
            m.momentum = momentum


# ---- evaluation and sample grids -----------------------------------------------------------------


def only_latents(G: nn.Module) -> Generate:
    """Generate images by G(z), for a G that is not a supernet."""
    return lambda z, _: G(z)


def along(G: nn.Module, path: Any) -> Generate:
    """Generate images along one path of a supernet."""
    return lambda z, _: G(z, path)


@contextmanager
def evaluating(G: nn.Module) -> Iterator[None]:
    """Inside the `with` block, G is in eval mode and gradients are disabled."""
    training = G.training
    G.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        G.train(training)


def score(
    job: Job, G: nn.Module, n: int, generate: Generate | None = None, split: bool = True, draw: str = "eval",
    evaluator: Evaluator | None = None, more: bool = False,
) -> Score:  # fmt: skip
    """Score n images of G in eval mode, always from the same latents of this `draw`; split: evaluate in parallel.
    more: also compute the further scores of --metrics."""
    generate, batch = generate or only_latents(G), job.evaluator.batch

    def images(k: int) -> Tensor:
        job.run.check()
        z = fixed_latent(job, batch, draw, k)  # batch statistics need a full batch
        return job.to_bytes(generate(z if job.eval_bn == "batch" else z[: n - k * batch], k))

    with evaluating(G):
        ranks = (job.ranks.rank, job.ranks.world) if split else (0, 1)
        return (evaluator or job.evaluator).score(images, n, *ranks, more=more)


def grid(job: Job, G: nn.Module, generate: Generate | None = None) -> Tensor:
    """64 images of G in eval mode, always from the same latents: (64, 3, H, W) in [-1, 1]."""
    with evaluating(G):
        return (generate or only_latents(G))(fixed_latent(job, 64, "grid"), "grid")


def steps(job: Job, state: Progress, end: int, name: str, upcoming: str, n_critic: int = 1) -> Iterator[None]:
    """Iterate over G updates up to `end`, with Run.tick before each; upcoming: what follows `end`."""
    job.run.begin("search", name, state.step, images_per_step=job.args.d_batch * n_critic)
    while state.step < end:
        job.run.tick(state.step, f"{upcoming} in {end - state.step} steps")
        yield


def evaluate_if_due(
    job: Job, state: Progress, G: nn.Module, G_ema: nn.Module, about: dict, generate: Generate | None = None
) -> None:
    """Evaluate G_ema before the first update, at the end, and as set by --eval-every and --eval-after.

    Writes weights.pt and, if the FID is the lowest so far, weights.best.pt: G_ema's weights and `about`,
    the values needed to rebuild G. The first evaluation also scores uniform noise, for comparison.
    """
    evaluate(job, state, G, G_ema, about, generate)
    made = state.finished == state.step and not asks_more_in_the_end(job, state)
    if is_last(job, state) and not made:  # a step of its own: a run may be stopped in between
        final_scores(job, state, G_ema, generate)
        state.finished = state.step
        job.run.begin("train", "training", state.step, images_per_step=job.args.d_batch * job.args.n_critic)


def is_last(job: Job, state: Progress) -> bool:
    """Whether training is complete; further than that if resumed with fewer --train-epochs than done."""
    return state.step - state.began >= job.plan[-1][1]


def asks_more(job: Job, state: Progress) -> bool:
    """Whether --eval-n or --metrics ask for other scores than the last ones, in a finished run that is resumed."""
    names = {"kid": "kid", "pr": "precision", "dc": "density", "fid-inf": "fid_inf"}
    wanted = {names[name] for name in job.evaluator.more - {"nearest"}}
    return state.last is None or state.last["n"] != job.args.eval_n or not wanted <= state.last.keys()


def asks_more_in_the_end(job: Job, state: Progress) -> bool:
    """The same of --eval-data and nearest.png."""
    other = job.evaluator.other and f"last against {job.args.eval_data}" not in state.final
    return bool(other) or ("nearest" in job.evaluator.more and not (job.run.dir / "nearest.png").exists())


def evaluate(
    job: Job, state: Progress, G: nn.Module, G_ema: nn.Module, about: dict, generate: Generate | None = None
) -> None:
    """The evaluation of `evaluate_if_due`, without the final scores."""
    args, run, evaluator, ranks = job.args, job.run, job.evaluator, job.ranks
    done, last = state.step - state.began, is_last(job, state)
    every, after = evaluation_steps(job)
    scored = state.evaluated == state.step and not (last and asks_more(job, state))
    if scored or not (done == 0 or last or (done % every == 0 and done > after)):
        return
    what = "untrained" if done == 0 else "last" if last else "training"
    run.begin("eval", f"evaluation ({what})", state.step, "finish" if last else "training")
    ranks.average_buffers(G)
    ema_update(G_ema, G, 1.0)
    row = {"eval/ema": args.ema > 0, "eval/bn": job.eval_bn, "eval/what": what}
    if what == "untrained":
        noise = evaluator.score(lambda k: noise_images(job, k), args.eval_n, ranks.rank, ranks.world)
        row |= {"noise/fid": noise.fid, "noise/is": noise.is_mean}
    s = score(job, G_ema, args.eval_n, generate, more=last)
    run.evaluated(state.step, s.row(), **row)
    run.samples(state.step, grid(job, G_ema, generate))
    run.print(f"step {state.step:,} ({what}): {s}")
    widths = {"g_ch": args.g_ch, "z_dim": args.z_dim, "size": args.size, "ema": args.ema}
    weights = {"G": G_ema.state_dict(), "step": state.step, "score": s.row(), **widths, **about}
    run.weights("weights.pt", weights)
    about = {"n": s.n, "net": s.net, "ref": s.ref, "features": evaluator.features}
    state.last = {**s.result(), "step": state.step, **about}
    best = state.best  # only like with like
    if best and any(best.get(k, v) != v for k, v in about.items()):
        best = None
    if not (best and state.evaluated == state.step):  # else evaluated again, by more scores
        state.evaluations = (state.evaluations if best else 0) + (what != "untrained")
    if what != "untrained" and (best is None or fid_or_inf(s.fid) < fid_or_inf(best["fid"])):
        state.best = state.last
        run.weights("weights.best.pt", weights)
    state.evaluated, state.finished = state.step, -1
    run.begin("train", "training", state.step, images_per_step=args.d_batch * args.n_critic)


NEAREST = 5  # training images beside a sample in nearest.png


def final_scores(job: Job, state: Progress, G: nn.Module, generate: Generate | None = None) -> None:
    """After training: nearest.png, the best weights by --metrics, the last and the best against --eval-data."""
    evaluator = job.evaluator
    if "nearest" in evaluator.more:
        job.run.begin("eval", "evaluation (nearest)", state.step, "finish")
        shown = evaluator.nearest(job.to_bytes(grid(job, G, generate)[:16]), NEAREST)
        job.run.picture("nearest.png", shown.flatten(0, 1).float() / 127.5 - 1, 1 + NEAREST)
        beside = f"samples, each beside the {NEAREST} training images with the nearest features"
        job.run.print(f"nearest.png: {beside}; it reveals plain copies, but showing none proves nothing")
    state.final = {}
    against(job, state, "last", G, generate)
    if state.best is None:
        return
    if state.best.get("step") == state.step:  # the same weights
        state.best = state.last
        state.final |= {k.replace("last", "best", 1): v for k, v in state.final.items()}
    elif (best := best_weights(job, state.best["step"])) and (evaluator.other or evaluator.more - {"nearest"}):
        last = {k: v.clone() for k, v in G.state_dict().items()}
        G.load_state_dict(best)
        try:
            if evaluator.more - {"nearest"}:
                job.run.begin("eval", "evaluation (best)", state.step, "finish")
                state.best |= score(job, G, job.args.eval_n, generate, more=True).result()
            against(job, state, "best", G, generate)
        finally:  # a stopped run saves its networks
            G.load_state_dict(last)


def best_weights(job: Job, step: int) -> dict[str, Tensor] | None:
    """G in weights.best.pt; None, and a warning, if it is lost, damaged, or not of this step."""
    path = job.run.dir / "weights.best.pt"
    try:
        saved = load_tensors(path, job.ranks.device)
        if saved["step"] != step:  # of an evaluation after the checkpoint that was resumed, and that did not come again
            raise ValueError(f"it is of step {saved['step']:,}")
        return saved["G"]
    except Exception as e:
        job.run.print(f"WARNING: {path}: the best weights, of step {step:,}, are lost ({first_line(e)})")
        return None


def against(job: Job, state: Progress, name: str, G: nn.Module, generate: Generate | None) -> None:
    """Score weights against the images of --eval-data, if it is given."""
    if other := job.evaluator.other:
        job.run.begin("eval", f"evaluation ({name}, --eval-data)", state.step, "finish")
        s = score(job, G, job.args.eval_n, generate, evaluator=other, more=True)
        about = {"n": s.n, "net": s.net, "ref": s.ref, "ema": job.args.ema > 0, "bn": job.eval_bn}
        state.final[f"{name} against {job.args.eval_data}"] = {**s.result(), **about}
        job.run.print(f"{name} weights against {job.args.eval_data}: {s}")


def until_evaluation(job: Job, state: Progress) -> str:
    """Steps until the next evaluation, for the progress line."""
    every, _ = evaluation_steps(job)
    done = state.step - state.began
    return f"evaluation in {min(every - done % every, job.plan[-1][1] - done)} steps"


def evaluation_steps(job: Job) -> tuple[int, int]:
    """--eval-every and --eval-after, converted to G updates."""
    every, after = (epochs * job.epoch // job.args.n_critic for epochs in (job.args.eval_every, job.args.eval_after))
    return max(1, every), after


def fid_or_inf(fid: float | None) -> float:
    """The FID, or inf if it is missing or not finite: such scores rank last."""
    return fid if fid is not None and isfinite(fid) else inf


def noise_images(job: Job, k: int) -> Tensor:
    """Batch k of uniform noise: the score of a generator that has learned nothing."""
    device, shape = job.ranks.device, (job.evaluator.batch, 3, job.args.size, job.args.size)
    g = stream(job.args.seed, "noise", k, device=device)
    return torch.randint(0, 256, shape, generator=g, device=device, dtype=torch.uint8)


def load_weights(args: Any, device: torch.device, make: Callable[[dict], nn.Module]) -> tuple[Any, nn.Module]:
    """Load --weights: args with the generator's widths, and the generator. make: file contents -> network.
    UserError: not weights of this method, or trained for a different image size than args.size."""
    saved: dict = {}
    try:
        saved = load_tensors(args.weights, device)
        widths = {k: int(saved[k]) for k in ("g_ch", "z_dim", "size")}
        G = make(saved)
        G.load_state_dict(saved["G"])
    except OSError as e:
        raise UserError(f"--weights {args.weights}: {e.strerror}") from None
    except Exception as e:
        whose = f" (it is of {saved['method']}; use that script)" if isinstance(saved.get("method"), str) else ""
        why = str(e) if isinstance(e, UserError) else f"not a weights.pt of this method, {first_line(e)}"
        raise UserError(f"--weights {args.weights}: {why}{whose}") from None
    if args.phase != "sample" and widths["size"] != args.size:
        raise UserError(f"--weights {args.weights}: generates {widths['size']} px; use --size {widths['size']}")
    return replace(args, **widths, ema=float(saved.get("ema", args.ema))), G.to(device)


def evaluate_weights(job: Job, G: nn.Module, generate: Generate | None = None) -> None:
    """Run --phase eval: score the generator from --weights and save a sample grid."""
    args = job.args
    job.run.begin("eval", "evaluation", 0, "finish")
    s = score(job, G, args.eval_n, generate, more=True)
    job.run.evaluated(0, s.row(), **{"eval/ema": args.ema > 0, "eval/bn": job.eval_bn, "eval/what": str(args.weights)})
    job.run.samples(0, grid(job, G, generate))
    job.run.print(f"{args.weights}: {s}")
    state = Progress(last=s.result() | {"step": 0, "n": s.n, "net": s.net, "ref": s.ref})
    final_scores(job, state, G, generate)
    job.run.result(last=s.result(), n=s.n, net=s.net, ref=s.ref, **state.final)


SAMPLED = 100  # images at a time


def sample(
    args: Any, ranks: Ranks, make: Callable[[dict], nn.Module], to_bytes: Callable[[Tensor], Tensor] = to_uint8,
    labelled: Callable[[Any, Job], Generate] | None = None,
) -> None:  # fmt: skip
    """Run --phase sample: --sample-n images of the generator from --weights as PNG files in a folder, or as `images` of
    an .npz, uint8 (N, H, W, 3); or the generator itself as .onnx. Creates no run directory. make: as in `load_weights`;
    labelled: how a generator with classes makes images. UserError: --out cannot be written."""
    out = args.out
    args, G = load_weights(args, ranks.device, make)
    if ranks.rank:
        return
    nothing: Any = SimpleNamespace(batch=SAMPLED)  # neither images nor an evaluator
    job = Job(args, ranks, nothing, nothing, to_bytes=to_bytes)
    generate = labelled(G, job) if labelled and G.classes else None
    try:
        if out.suffix == ".onnx":
            export_onnx(job, G, generate)
            return
        with evaluating(G):
            if out.suffix == ".npz":
                with replacing(out) as tmp, open(tmp, "wb") as file:
                    np.savez(file, images=np.concatenate(list(sampled(job, G, generate))))
            else:
                write_folder(out, sampled(job, G, generate))
    except OSError as e:
        raise UserError(f"--out {out}: {e.strerror}; pass another path") from None
    print(f"{out}: {args.sample_n:,} images of {args.weights}")


def sampled(job: Job, G: nn.Module, generate: Generate | None) -> Iterator[np.ndarray]:
    """--sample-n images of G, SAMPLED at a time: uint8 (SAMPLED, H, W, 3), the last ones fewer."""
    for k, start in enumerate(range(0, job.args.sample_n, SAMPLED)):
        images = (generate or only_latents(G))(fixed_latent(job, SAMPLED, "sample", k), k)
        yield job.to_bytes(images)[: job.args.sample_n - start].permute(0, 2, 3, 1).cpu().numpy()


def write_folder(folder: Path, batches: Iterator[np.ndarray]) -> None:
    """Write 000000.png, 000001.png, ... into a new folder, which appears once all of them are written."""
    half = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    half.mkdir(parents=True)
    try:
        for i, image in enumerate(chain.from_iterable(batches)):
            Image.fromarray(image).save(half / f"{i:06d}.png")
        os.replace(half, folder)
    finally:
        rmtree(half, ignore_errors=True)


def export_onnx(job: Job, G: nn.Module, generate: Generate | None = None) -> None:
    """The generator as a graph from latents `z`, (N, z_dim), to `images` in [-1, 1], (N, 3, H, W)."""
    if generate:
        raise UserError(f"--out {job.args.out}: .onnx does not support a generator with classes; use an .npz")
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UserError(
            f"--out {job.args.out}: needs the package {' and '.join(missing)}; pip install {' '.join(missing)}"
        )
    z = fixed_latent(job, 2, "grid")
    shapes = {"z": {0: torch.export.Dim("n", min=1)}}
    with evaluating(G), replacing(job.args.out) as tmp:
        program = torch.onnx.export(
            G, (z,), input_names=["z"], output_names=["images"], dynamic_shapes=shapes, dynamo=True
        )
        program.save(tmp)  # type: ignore[union-attr]
    print(f"{job.args.out}: G of {job.args.weights}, (N, {job.args.z_dim}) -> (N, 3, {job.args.size}, {job.args.size})")


# ---- signs of life of a search -------------------------------------------------------------------
# Numbers in the rows of search.jsonl, keys "signs/...", that tell whether a search can still learn.
# docs/searching.md explains them.

Signs = dict[str, float | None]
FEW_ACTIVE, MANY_DEAD, LITTLE_ENTROPY = 0.02, 0.5, 0.02  # shares; beyond them a search warns


def grad_norm(net: nn.Module) -> Tensor:
    """2-norm of the network's gradients: 0-dimensional, on its device, so that no step waits for it."""
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


def distance(net: nn.Module, start: nn.Module) -> float:
    """Root mean square of the parameters' change since `start`."""
    pairs = zip(net.parameters(), start.parameters(), strict=True)
    return torch.cat([(a - b.to(a.device)).detach().flatten() for a, b in pairs]).square().mean().sqrt().item()


def active_units(job: Job, G: nn.Module, last: nn.Conv2d, generate: Generate | None = None) -> Signs:
    """Shares of active units in the input of G's last convolution, which follows a ReLU, and of dead channels: those
    that are 0 in all images of a sample grid."""
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0] > 0))
    try:
        grid(job, G, generate)
    finally:
        hook.remove()
    active = torch.cat(seen)
    dead = ~active.any(dim=3).any(dim=2).any(dim=0)
    return {"signs/active": active.float().mean().item(), "signs/dead": dead.float().mean().item()}


def signal_and_noise(name: str, scores: list[float], twice: list[tuple[float, float]]) -> Signs:
    """Standard deviation of a score between candidates, and of one candidate's score, from pairs of scores of the same
    candidate; None: fewer than two candidates, no pair. Infinite values and NaN are left out."""
    known = [x for x in scores if isfinite(x)]
    squares = [(a - b) ** 2 / 2 for a, b in twice if isfinite(a - b)]
    noise = (sum(squares) / len(squares)) ** 0.5 if squares else None
    return {f"signs/{name}_signal": stdev(known) if len(known) > 1 else None, f"signs/{name}_noise": noise}


def rank_correlation(before: dict[str, float], now: dict[str, float]) -> float | None:
    """Spearman's correlation over the keys in both; None for fewer than three, or if all values are equal."""
    pairs = [(before[x], now[x]) for x in before if x in now and isfinite(before[x]) and isfinite(now[x])]
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def troubles(signs: Signs) -> dict[str, str]:
    """What is wrong with a search, by kind: grad, units, noise, ranks, entropy."""
    found = {}
    for key, value in signs.items():
        name = key.removeprefix("signs/")
        if value is None:
            continue
        if name.startswith("grad_") and not value > 0:
            found["grad"] = f"{name[5:]} has no gradient"
        elif (name == "active" and value < FEW_ACTIVE) or (name == "dead" and value >= MANY_DEAD):
            found["units"] = f"{signs['signs/active']:.1%} of the units before the output are active"
            found["units"] += f", {signs['signs/dead']:.0%} of the channels dead"
        elif name.endswith("_noise") and (signal := signs[key.removesuffix("noise") + "signal"]) is not None:
            if signal < value:
                score = name.removesuffix("_noise")
                told = f"candidates' {score} differs by {signal:.3g}, that of one candidate scored twice by {value:.3g}"
                found["noise"] = told
        elif name == "rank_correlation" and value <= 0:
            found["ranks"] = f"scores do not agree from round to round: rank correlation {value:.2f}"
        elif name == "entropy" and value < LITTLE_ENTROPY:
            found["entropy"] = f"the policy has {value:.1%} of its largest entropy"
    return found


def search_row(job: Job, row: dict, signs: Signs, remedies: dict[str, str]) -> None:
    """Write a row of search.jsonl with signs of life. In trouble, the log and the row's "warning" say what to change.
    remedies: by kind of trouble; other kinds are not reported."""
    warnings = [f"{told}; {remedies[kind]}" for kind, told in troubles(signs).items() if kind in remedies]
    for text in warnings:
        job.run.print(f"WARNING: {text}")
    job.run.search_row({**row, **signs, **({"warning": " · ".join(warnings)} if warnings else {})})


# ---- start and end of a run ----------------------------------------------------------------------


def check_flags(args: Any, world: int, skips_search: str, published: str) -> None:
    """Reject what no method can run. skips_search: flag that gives a genotype, or ""; published: its values."""
    for flag, value in (("--d-batch", args.d_batch), ("--g-batch", args.g_batch)):
        if value % world:
            raise UserError(f"{flag} {value}: not divisible by {world} processes; use a multiple")
    if args.compile and not any(map(which, (os.environ.get("CXX", "g++"), "g++", "clang++", "cc"))):
        raise UserError("--compile: no C++ compiler found; install g++, or omit --compile")
    if args.graph:
        if args.device == "cpu" or not torch.cuda.is_available():
            raise UserError("--graph: CUDA graphs need a GPU, and this run would be on the CPU; use --no-graph")
        if world > 1:
            raise UserError(f"--graph: does not work with {world} processes; start one, or use --no-graph")
        if args.compile:
            raise UserError("--graph: does not work with --compile; use --no-graph or --no-compile")
    if args.phase == "train" and not (skips_search or args.genotype):
        raise UserError(f"--phase train: requires --genotype, {published}")
    if args.phase == "search" and skips_search:
        raise UserError(f"{skips_search}: skips the search, so it conflicts with --phase search; omit one of them")
    given = args.phase in ("eval", "sample")
    if given and not args.weights:
        raise UserError(f"--phase {args.phase}: requires --weights, the weights.pt of a run")
    if given and args.genotype:
        raise UserError(f"--genotype {args.genotype}: --phase {args.phase} reads it from --weights; omit --genotype")
    if args.weights and not given:
        raise UserError(f"--weights {args.weights}: requires --phase eval or sample; to train, use --genotype")
    if (args.phase == "sample") != (args.out is not None):
        raise UserError(f"--out {args.out}: used by --phase sample only; give both or neither")
    if args.out and args.out.exists():
        raise UserError(f"--out {args.out}: exists; pass a new name")


def check_splits(**counts: int) -> None:
    """Reject image counts, given by flag name, that are too small for the Inception Score."""
    for name, n in counts.items():
        if n < IS_SPLITS:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {n}: the Inception Score needs {IS_SPLITS} splits; use {IS_SPLITS} or more")


def evaluator_options(args: Any, ranks: Ranks) -> dict:
    """Arguments of Evaluator from the common flags."""
    found = {"name": args.evaluator, "device": ranks.device, "cache_dir": args.data_dir / "cache"}
    found |= {"weights": args.inception_weights, "fid_dims": int(args.fid_dims), "ref_n": args.ref_n}
    return found | {"more": metrics_of(args.metrics), "stats": args.fid_stats, "precision": args.fid_precision}


def other_images(job: Job) -> Dataset:
    """The images of --eval-data, of the training images' size. UserError: as `load_dataset`."""
    name = job.args.eval_data
    try:
        return job.ranks.first(lambda: load_dataset(name, job.args.data_dir, job.args.size))
    except UserError as e:
        raise UserError(f"--eval-data {name}: {str(e).removeprefix(f'--dataset {name}: ')}") from e


def update_macs(args: Any, g: float, d: float, n_critic: int) -> float:
    """Multiply-adds of n_critic D steps and one G step; a backward pass counts as two forward passes."""
    return n_critic * args.d_batch * (g + 6 * d) + args.g_batch * (3 * g + 2 * d)


def scoring_macs(args: Any, g: float, images: float) -> float:
    """Multiply-adds of generating and scoring `images` images."""
    return images * (g + INCEPTION_MACS if args.evaluator == "inception" else g)


def train_stage(job: Job, epochs: int, g: float, d: float) -> Stage:
    """Plan of the training from scratch. UserError: not enough D batches for a single G step."""
    args = job.args
    steps = epochs * job.epoch // args.n_critic
    if not steps:
        raise UserError(
            f"--n-critic {args.n_critic}: exceeds the D batches of all --train-epochs, G would never train; lower it"
        )
    looks = 2 + max(0, epochs - args.eval_after) // args.eval_every
    return "train", steps, update_macs(args, g, d, args.n_critic) + scoring_macs(args, g, looks * args.eval_n) / steps


def opening(job: Job, method: str, costs: dict[str, Cost]) -> list[str]:
    """First lines of the log: data set, plan, estimated time on this device, sizes of networks. Reads --eval-data."""
    args, data = job.args, job.data
    lines = [f"{method} · {data.name}, {len(data.images):,} images of {args.size} px"]
    lines[0] += f", {data.images.nbytes / 1e9:.2g} GB · {args.preset}"
    if job.plan:
        flops = sum(2 * steps * macs for _, steps, macs in job.plan)
        rate = measured_flops(job.ranks.device) * job.ranks.world
        steps = " + ".join(f"{n:,} ({name})" for name, n, _ in job.plan)
        lines[0] += f" · {steps} G updates · {flops / 1e15:.3g} PFLOP"
        lines[0] += f", {duration(flops / rate)} of arithmetic at the {rate / 1e12:.2g} TFLOP/s measured on this device"
    if job.args.eval_data:
        other = job.evaluator.eval_data = other_images(job)
        lines.append(f"last and best weights also scored against {other.name}, {len(other.images):,} images")
    lines += [data.classes_note] + ([data.note] if data.note else [])
    if job.images.device != job.ranks.device:
        lines.append(f"the images stay on the CPU: on {job.ranks.device} they would fill half of the free memory")
    for name, cost in costs.items():
        macs = f", {cost.macs:,} multiply-adds per image" if cost.macs else ""
        lines.append(f"{name}: {cost.params:,} parameters{macs}")
    return lines


def run_facts(job: Job, costs: dict[str, Cost], more: int = 0) -> dict:
    """Further arguments of Run. more: number of checkpointed values without Adam moments."""
    params = {name: cost.params for name, cost in costs.items()}
    facts = {"params": params, "net": job.evaluator.net}
    disk = 3 * 4 * (3 * sum(params.values()) + more) + 5e7  # two checkpoints, and one being written
    return {"dataset": job.data.name, "digest": job.data.digest, "plan": job.plan, "facts": facts, "disk": disk}


def start(job: Job, state: Progress, lines: list[str]) -> None:
    """Print the opening lines, restore the state of a resumed run, and prepare the evaluator."""
    for line in lines:
        job.run.print(line)
    job.run.load(state)
    job.evaluator.log, job.evaluator.check = job.run.print, job.run.check
    job.run.begin(job.run.status["phase"], "preparing the evaluator", state.step, "the first stage")
    job.ranks.first(job.evaluator.prepare)
    if state.last and state.last.get("features", job.evaluator.features) != job.evaluator.features:
        told = "by another network, or against other statistics, than the scores so far; the best is chosen anew"
        job.run.print(f"WARNING: scores from here on are {told}")
    if data := job.evaluator.eval_data:
        job.evaluator.other = job.ranks.first(lambda: job.evaluator.against(data))


def finish(job: Job, state: Progress, genotype: dict) -> dict | None:
    """Write result.json. Returns the best scores of the training phase, or None without one."""
    scores = {}
    if state.last:
        net, ref = job.evaluator.net, job.evaluator.ref
        scores = {"last": state.last, "best": state.best, "n": state.last["n"], "net": net, "ref": ref}
        scores |= state.final
        if state.best:
            on = f"the statistics of {job.args.fid_stats}" if job.args.fid_stats else "the training images"
            chosen = f"the lowest FID of {state.evaluations} evaluations against {on}"
            scores["best"] = {**state.best, "chosen": chosen}
    job.run.result(**scores, genotype=genotype)
    return state.best
