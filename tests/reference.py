"""What the tests of EAGAN and AdversarialNAS share: tiny jobs without files, and their generator by its definition."""

from collections.abc import Callable
from itertools import product
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from test_cells import convolve, normal, paper_op
from torch import Tensor, nn

from common.cells import Cost, Genotype, Space, count_params
from common.data import Dataset
from common.gan import Job
from common.metrics import Score
from common.ranks import Ranks

ONE = Ranks(torch.device("cpu"))
IMAGES = (normal(16, 3, 16, 16) * 50 + 128).clamp(0, 255).to(torch.uint8)


class QuietRun:
    """A Run that writes nothing but keeps the rows of the search and what was evaluated."""

    dir = Path("nowhere")

    def __init__(self) -> None:
        self.status, self.main, self.rows, self.evaluations = {"phase": "search"}, False, [], []

    def search_row(self, row: dict) -> None:
        self.rows.append(row)

    def evaluated(self, step: int, _row: dict, **more: object) -> None:
        self.evaluations.append((step, more["eval/what"]))

    def __getattr__(self, _name: str) -> Callable:
        return lambda *_args, **_more: None


class FakeEvaluator:
    """Scores a generator by its first images, so that equal weights score equal and others do not."""

    net, label, ref, features, batch = "fake", "FID(fake)", "none", "0", 8
    more, other = frozenset(), None
    use = prepare = lambda *_: None

    def __init__(self) -> None:
        self.scores: list[float] = []

    def score(self, images: Callable[[int], Tensor], n: int, _rank: int = 0, _world: int = 1, more: bool = False) -> Score:
        x = images(0).double()
        self.scores.append(x.std().item() + x.mean().item() / 7)
        return Score(self.scores[-1], x.mean().item() / 100, 0.0, n, self.net, self.ref)


class Scaled(nn.Module):
    """A network of one weight: G gives images of its latent's first number, D the mean of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, *_path: object) -> Tensor:
        return self.weight * (x.mean((1, 2, 3))[:, None] if x.ndim == 4 else x[:, :1, None, None].expand(-1, 3, 4, 4))


def hinge(of_real: Tensor, of_fake: Tensor) -> float:
    """The loss of D, one score after the other."""
    pairs = zip(of_real.tolist(), of_fake.tolist(), strict=True)
    return sum(max(0, 1 - a) + max(0, 1 + b) for a, b in pairs) / len(of_real)


def job_of(args: Any, images: Tensor = IMAGES, run: object = None) -> Job:
    return Job(args, ONE, FakeEvaluator(), Dataset("tiny", images, None, ""), run=run or QuietRun())


def job_of_paper(args: Any, images: int) -> Job:
    """With so many images, which take no memory."""
    return job_of(args, torch.zeros(1, dtype=torch.uint8).expand(images, 3, args.size, args.size))


def normed(net: nn.Module) -> int:
    """How many layers are under spectral norm."""
    return sum(hasattr(m, "parametrizations") for m in net.modules())


def edges_of(*several: Genotype) -> list[tuple[str, ...]]:
    """Of each edge, what these genotypes hold."""
    return [ops for rows in zip(*several, strict=True) for ops in zip(*rows, strict=True)]


def distance(a: Genotype, b: Genotype) -> int:
    """In how many edges two genotypes differ."""
    return sum(x != y for x, y in edges_of(a, b))


def valid_rows(space: Space, cell: int = 0) -> list[tuple[tuple[str, ...], ...]]:
    """Of each edge of a cell only "none" or only all the others, wherever such rows are valid."""
    choices = []
    for edge in space.edges_of(cell):
        others = tuple(op for op in edge.ops if op != "none")
        choices.append([others, ("none",)] if "none" in edge.ops else [others])
    return [row for row in product(*choices) if not space.row_error(tuple(ops[0] for ops in row))]


def counted(net: nn.Module, x: Tensor) -> Cost:
    """What a net of convolutions and linear layers costs, by the maps that they give."""
    macs = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            each = layer.weight[0].numel() + (layer.bias is not None)
            layer.register_forward_hook(lambda _m, _x, y, each=each: macs.append(y[0].numel() * each))
    net(x)
    return Cost(count_params(net), sum(macs))


def paper_edges(cell: nn.Module, row: tuple[str, ...], macs: list[int]) -> Callable[..., Tensor | int]:
    """(column, x) -> what that edge of the cell gives; "none" gives nothing."""

    def edge(column: int, x: Tensor, **how: object) -> Tensor | int:
        op = row[column]
        return 0 if op == "none" else paper_op(op, cell.edges[column][op], x, macs, **how)

    return edge


def paper_generator(G: nn.Module, genotype: Genotype, z: Tensor) -> tuple[Tensor, int]:
    """The images and the multiply-adds of one, from the definition: dead nodes too, and resizing comes first."""
    skips, x, ch = [], 0, G.bn.num_features
    macs = [linear.weight.numel() + linear.bias.numel() for linear in G.latent]
    parts = z.split(z.shape[1] // len(G.latent), 1)
    for i, (row, cell) in enumerate(zip(genotype, G.cells, strict=True)):
        if i < len(parts):
            side = isqrt(G.latent[i].out_features // ch)
            x = x + G.latent[i](parts[i]).reshape(-1, ch, side, side)
        edge = paper_edges(cell, row, macs)
        a, b = edge(0, x), edge(1, x)
        middle = edge(2, a) + edge(3, b)
        for layer, skip in zip(cell.skips, skips, strict=True):
            mode = {1: "bilinear", 2: "nearest"}[i]
            middle = middle + convolve(layer, F.interpolate(skip, size=a.shape[-2:], mode=mode), macs)
        x = edge(4, a) + edge(5, b) + edge(6, middle)
        skips.append(middle)
    return convolve(G.to_rgb, G.bn(x).relu(), macs, padding=1).tanh(), sum(macs)


def take_weights(alone: nn.Module, supernet: nn.Module) -> None:
    """Give the stand-alone network the weights that the supernet has for it."""
    weights = supernet.state_dict()
    alone.double().eval().load_state_dict({name: weights[name] for name in alone.state_dict()})


def assert_defined(
    definition: tuple[Tensor, int], supernet: nn.Module, path: object, alone: nn.Module, x: Tensor, cost: Cost
) -> None:  # fmt: skip
    """A path of the supernet, the network alone, and the closed form of its cost against the definition."""
    want, macs = definition
    take_weights(alone, supernet)
    torch.testing.assert_close(supernet(x, path), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(alone(x), want, rtol=0, atol=1e-10)
    assert cost == Cost(count_params(alone), macs)
