"""Spectral norm of all layers of a discriminator at once, where kernel launches bound the speed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TOGETHER = {"cuda"}  # types of devices where it pays; on a CPU, arithmetic bounds the speed
Used = Callable[..., Iterable[nn.Module]]


def normalise_together(D: nn.Module, used: Used = lambda D, *_: [D]) -> None:
    """Let training passes of D on a GPU normalise all its weights under spectral norm at once, not layer by layer.

    Values, gradients and state dict are those of torch's spectral_norm, which takes about 18 kernel launches a layer
    forward and 9 backward; here, these are 9 and 6 for all layers of the same shape. used(D, *args): modules that hold
    the layers used by D(x, *args), by default all; the power iterations of other layers do not advance.
    """
    state: Any = D
    state.handed_out, state.hold = [], False

    def before(D: Any, given: tuple) -> None:
        if D.training and given[0].device.type in TOGETHER and not (D.handed_out or torch.compiler.is_compiling()):
            modules = (m for part in used(D, *given[1:]) for m in part.modules())
            hand_out(D, [m for m in modules if parametrize.is_parametrized(m, "weight")])

    def after(D: Any, *_: object) -> None:
        if not D.hold:
            take_back(D)

    D.register_forward_pre_hook(before)
    D.register_forward_hook(after, always_call=True)


@contextmanager
def normalised_once(D: Any) -> Iterator[None]:
    """Inside the `with` block, all passes of D use the weights of its first one, after a single power iteration."""
    D.hold = True
    try:
        with parametrize.cached():
            yield
    finally:
        D.hold = False
        take_back(D)


def hand_out(D: Any, layers: list[Any]) -> None:
    """Advance the power iterations of these layers, and let their parametrizations return the normalised weights."""
    groups: dict[tuple[int, ...], list[Any]] = {}
    for layer in layers:
        weight = layer.parametrizations.weight
        groups.setdefault(tuple(weight.original.shape), []).append(weight)
    buffers, values = [], []
    with torch.autocast(layers[0].parametrizations.weight.original.device.type, enabled=False):
        for (n_out, n_in, *kernel), group in groups.items():
            taps = prod(kernel)  # first in a row of the matrix, then inputs: a view of channels-last weights
            rows = [w.original.view(n_out, n_in, taps).transpose(1, 2) for w in group]
            with torch.no_grad():
                matrix = stacked(rows).reshape(-1, n_out, taps * n_in)
                v = stacked([w[0]._v.view(n_in, taps).t() for w in group]).reshape(-1, taps * n_in, 1)
                u, _ = unit(matrix @ v)
                v, sigma = unit(matrix.mT @ u)  # u' W v with this v is |W' u|
                buffers += [w[0]._u for w in group] + [w[0]._v for w in group]
                values += [*u.flatten(1), *v.view(-1, taps, n_in).transpose(1, 2).flatten(1)]
            for w, normalised in zip(group, Normalised.apply(matrix, u, v, sigma, *rows), strict=True):
                part = normalised.transpose(1, 2).view_as(w.original)
                w[0].forward = lambda _, part=part: part
                D.handed_out.append(w[0])
    with torch.no_grad():
        torch._foreach_copy_(buffers, values)


def take_back(D: Any) -> None:
    for norm in D.handed_out:
        del norm.forward
    D.handed_out.clear()


def stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors x, (n, length, 1), divided by their norms, and the norms."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norm, norm


class Normalised(torch.autograd.Function):
    """W / sigma of matrices of one shape. sigma = u' W v, where u and v are constants: its gradient is u v'."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, u: Tensor, v: Tensor, sigma: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        """matrix: the rows, stacked and flat, (n, outputs, taps x inputs); rows: (outputs, taps, inputs) each."""
        ctx.set_materialize_grads(False)
        matrix = matrix / sigma
        ctx.save_for_backward(matrix, u, v, sigma)
        return matrix.view(len(rows), *rows[0].shape).unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        matrix, u, v, sigma = ctx.saved_tensors
        used = [g for g in grads if g is not None]  # a layer that was not used has no gradient
        if not used:
            return (None,) * (4 + len(grads))
        grad = stacked([used[0].new_zeros(used[0].shape) if g is None else g for g in grads]).reshape(matrix.shape)
        along = (grad * matrix).sum((1, 2), keepdim=True)
        grad = torch.addcmul(grad, along * u, v.mT, value=-1).div_(sigma).view(len(grads), *used[0].shape)
        return (None, None, None, None, *(None if g is None else x for g, x in zip(grads, grad, strict=True)))
