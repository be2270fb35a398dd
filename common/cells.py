"""Building blocks shared by the methods: operations, search spaces, genotypes, costs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from common.files import UserError, read_json
from common.spectral import normalise_together

Ints = int | tuple[int, ...]
Map = Callable[[Tensor, Tensor], Tensor]
Run = tuple[Tensor, Tensor, Map, Map]  # see PiecewiseLinear
# name: (kernel, dilation)
CONVS = {"conv_1x1": (1, 1), "conv_3x3": (3, 1), "conv_5x5": (5, 1), "dil_conv_3x3": (3, 2), "dil_conv_5x5": (5, 2)}


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints | str, dilation: Ints, groups: int = 1
) -> Tensor:
    """F.conv2d, except that dilated convolutions on a CPU stay in float32 under autocast.

    On a CPU, torch 2.14's bfloat16 weight gradient of a dilated convolution is wrong, often NaN: for
    channels-last maps of 32 px or more, if the channels exceed 16 and are not a multiple of 16, or
    if the convolution is depthwise.
    """
    if ForPenalty.active:
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        args = (x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        return PenaltyConv.apply(*args, stride, padding, dilation, groups)
    if dilation == (1, 1) or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    with torch.autocast("cpu", enabled=False):
        y = F.conv2d(x.float(), weight.float(), bias, stride, padding, dilation, groups)
        return y.to(torch.get_autocast_dtype("cpu"))


def relu(x: Tensor) -> Tensor:
    return PiecewiseLinear.apply(x, relu_and_back) if ForPenalty.active else x.relu()


def avg_pool_2x2(x: Tensor) -> Tensor:
    return PiecewiseLinear.apply(x, pool_and_back) if ForPenalty.active else F.avg_pool2d(x, 2)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    if ForPenalty.active and training and p:
        return PiecewiseLinear.apply(x, partial(dropout_and_back, p=p))
    return F.dropout(x, p, training)


class ForPenalty:
    """Inside the `with` block, conv2d, relu, avg_pool_2x2 and dropout do what a gradient penalty needs of a piecewise
    linear network: they have a gradient with respect to their input alone, which is differentiable.

    torch's own double backward computes the gradient of a kernel by a convolution whose kernels are the images; here
    it is the usual weight gradient, as in StyleGAN2-ADA's conv2d_gradfix. It then goes on through the first pass with
    zeros, the second derivatives of ReLU and pooling; here it ends. Launches of a G update of DEGAS's training: 1,498;
    2,018 without. On a CPU, the penalty takes half the time.
    """

    active = False

    def __enter__(self) -> None:
        ForPenalty.active = True

    def __exit__(self, *_: object) -> None:
        ForPenalty.active = False


class PenaltyConv(torch.autograd.Function):
    """F.conv2d in `ForPenalty`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return InputGradient.apply(grad, x.detach(), weight, *ctx.how), *(None,) * 6


class PiecewiseLinear(torch.autograd.Function):
    """An operation without weights in `ForPenalty`. run(x): its output, a tensor to keep, the map that takes a gradient
    and this tensor back to x, and the transpose of this map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Run]) -> Tensor:
        y, kept, *ctx.maps = run(x)
        ctx.save_for_backward(kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return LinearMap.apply(grad, ctx.saved_tensors[0].detach(), *ctx.maps), None


class LinearMap(torch.autograd.Function):
    """do(x, kept), and in the backward pass its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, do: Map, transpose: Map) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.transpose = transpose
        return do(x, kept)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.transpose(grad, *ctx.saved_tensors), None, None, None


def relu_and_back(x: Tensor) -> Run:
    y, back = x.relu(), partial(torch.ops.aten.threshold_backward, threshold=0)
    return y, y, back, back


def pool_and_back(x: Tensor) -> Run:
    how = ((2, 2), (2, 2), (0, 0), False, True, None)
    back = lambda grad, x: torch.ops.aten.avg_pool2d_backward(grad, x, *how)  # noqa: E731
    return F.avg_pool2d(x, 2), x, back, lambda grad, _: F.avg_pool2d(grad, 2)


def dropout_and_back(x: Tensor, p: float) -> Run:
    y, mask = torch.native_dropout(x, p, True)  # the same mask as F.dropout's
    back = partial(torch.ops.aten.native_dropout_backward, scale=1 / (1 - p))
    return y, mask, back, back


class InputGradient(torch.autograd.Function):
    """Gradient of a convolution with respect to its input x, linear in `grad` and `weight`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.how = how
        return InputGradient.of(grad, x, weight, how, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, twice: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        of_weight = InputGradient.of(grad, twice, weight, ctx.how, 1) if ctx.needs_input_grad[2] else None
        return F.conv2d(twice, weight, None, *ctx.how), None, of_weight, *(None,) * 4

    @staticmethod
    def of(grad: Tensor, x: Tensor, weight: Tensor, how: tuple, which: int) -> Tensor:
        """Gradient with respect to x (which = 0) or the weight (1)."""
        stride, padding, dilation, groups = how
        stride, padding, dilation = (n if isinstance(n, tuple) else (n, n) for n in (stride, padding, dilation))
        mask = [which == 0, which == 1, False]
        args = (None, stride, padding, dilation, False, (0, 0), groups, mask)
        return torch.ops.aten.convolution_backward(grad, x, weight, *args)[which]


def avg_pool_3x3(x: Tensor) -> Tensor:
    """Mean over 3x3 without padding, same size; on a GPU in NCHW: torch 2.11's CUDA gradient is wrong for overlapping
    windows of channels-last maps."""
    y = F.avg_pool2d(x.contiguous() if x.is_cuda else x, 3, 1, 1, count_include_pad=False)
    return y.contiguous(memory_format=torch.channels_last) if x.is_cuda else y


class Conv(nn.Conv2d):
    """Conv2d whose weight, including its spectral norm, is computed in float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Linear(nn.Linear):
    """Linear whose weight, including its spectral norm, is computed in float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return F.linear(x, weight, self.bias)


class ConvAvgPool(Conv):
    """3x3 convolution (padding 1) and 2x2 average pooling, as one 4x4 convolution of stride 2."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = pooled_kernel(self.weight)
        return conv2d(x, weight, self.bias, 2, 1, (1, 1))


def pooled_kernel(weight: Tensor) -> Tensor:
    """4x4 kernel of a 3x3 convolution followed by a 2x2 mean: (O, I, 3, 3) -> (O, I, 4, 4), in the same memory format.

    The mean of the kernel at its four places, as one matrix product over the taps: one launch each way on a GPU, about
    30 as the sum of four padded copies; on one CPU core 4 to 11 times as fast at 128 and 256 channels.
    """
    places = four_places(weight.dtype, weight.device)
    if weight.is_contiguous():  # a channels-last kernel makes channels-last maps, on which dropout draws other masks
        return (weight.flatten(2) @ places.t()).unflatten(2, (4, 4))
    return (places @ weight.permute(0, 2, 3, 1).flatten(1, 2)).unflatten(1, (4, 4)).permute(0, 3, 1, 2)


@lru_cache
def four_places(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(16, 9): the share of each tap of a 3x3 kernel in the taps of pooled_kernel."""
    place = torch.eye(4, 3, dtype=dtype, device=device)
    place = (place + place.roll(1, 0)) / 2
    return torch.kron(place, place)


@lru_cache
def separable(taps: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kernel (1, 1, n, n) with these n taps in both directions, made once: the CPU waits for its copy to a GPU."""
    row = torch.tensor(taps, dtype=dtype, device=device)
    return row.outer(row)[None, None]


def conv(c_in: int, c_out: int, name: str = "conv_1x1", stride: int = 1, sn: bool = False) -> nn.Module:
    """Convolution from CONVS: stride 1 keeps the size, stride 2 halves it; sn: spectral norm."""
    k, dilation = CONVS[name]
    module = Conv(c_in, c_out, k, stride, padding=dilation * (k // 2), dilation=dilation)
    return spectral_norm(module) if sn else module


class Normal(nn.Module):
    """An op from OPS_NORMAL, (B, C, H, W) -> same: identity, or ReLU (if `relu`) -> convolution."""

    def __init__(self, name: str, c: int, sn: bool = False, relu: bool = True) -> None:
        super().__init__()
        self.relu = relu
        self.conv = None if name == "skip_connect" else conv(c, c, name, sn=sn)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.conv is None else self.conv(x.relu() if self.relu else x)

    def macs(self, side: int) -> int:
        return count_params(self) * side**2


class Up(nn.Module):
    """An op from OPS_UP, (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, name: str, c: int) -> None:
        super().__init__()
        self.name = name
        transposed = name == "conv_transpose"
        self.up = nn.ConvTranspose2d(c, c, 3, 2, 1, output_padding=1, groups=c, bias=False) if transposed else None
        self.conv = Conv(c, c, 1, bias=not transposed)

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "nearest":  # ReLU and 1x1 are pointwise: upsampling last is equivalent
            return F.interpolate(self.conv(x.relu()), scale_factor=2)
        if self.up is None:  # bilinear
            return self.conv(F.interpolate(x, scale_factor=2, mode="bilinear").relu())
        return self.conv(self.up(x.relu()))

    def macs(self, side: int) -> int:
        transposed = 0 if self.up is None else count_params(self.up) * (side // 2) ** 2  # at the input size
        return transposed + count_params(self.conv) * side**2


class Down(nn.Module):
    """An op from OPS_DOWN, (B, C, H, W) -> (B, C, H/2, W/2): 2x2 pool, or ReLU -> stride-2 conv."""

    def __init__(self, name: str, c: int, sn: bool = False) -> None:
        super().__init__()
        self.name = name
        self.conv = conv(c, c, name, stride=2, sn=sn) if name in CONVS else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2) if self.name == "avg_pool" else F.max_pool2d(x, 2)
        return self.conv(x.relu())

    def macs(self, side: int) -> int:
        return count_params(self) * side**2


# Op name -> module constructor, called with the channels. An edge may also be "none" (no module).
OPS_NORMAL = {name: partial(Normal, name) for name in ("skip_connect", *CONVS)}
OPS_UP = {name: partial(Up, name) for name in ("nearest", "bilinear", "conv_transpose")}
OPS_DOWN = {name: partial(Down, name) for name in ("avg_pool", "max_pool", *CONVS) if name != "conv_1x1"}


class Edge(nn.ModuleDict):
    """Candidate ops of an edge by name, just one in a derived network; forward runs one of them."""

    def forward(self, x: Tensor, op: str) -> Tensor | None:
        return None if op == "none" else self[op](x)


def add(*terms: Tensor | None) -> Tensor:
    """Sum a node's incoming edges, out of place: an identity edge returns its input tensor."""
    return reduce(torch.add, [t for t in terms if t is not None])


def weighted_sum(maps: Sequence[Tensor], w: Tensor) -> Tensor:
    """sum_k w_k maps_k, as one matrix product: two launches on a GPU, not two a map."""
    stacked = torch.stack([x.permute(0, 2, 3, 1) for x in maps])  # channels last
    return (w[None] @ stacked.flatten(1)).view(stacked.shape[1:]).permute(0, 3, 1, 2)


def init_weights(net: nn.Module) -> None:
    """Xavier-uniform Conv2d weights, N(1, 0.02) BatchNorm scales; the rest keeps its defaults.

    Spectral-normalised convolutions keep PyTorch's default. CODE: there, the initialiser of all three
    methods runs after spectral norm and the move to the GPU, and writes to a tensor that nobody reads.
    """
    for m in net.modules():
        if isinstance(m, nn.Conv2d) and not hasattr(m, "parametrizations"):
            nn.init.xavier_uniform_(m.weight)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1.0, 0.02)
            nn.init.zeros_(m.bias)


@dataclass(frozen=True)
class Cost:
    """Parameter count, and multiply-adds per image of the network as written in its paper."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.params + other.params, self.macs + other.macs)


def count_params(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def conv_cost(c_in: int, c_out: int, kernel: int, side: int, bias_adds: bool = True) -> Cost:
    """Cost of a convolution with bias, output side x side; for a linear layer: kernel 1, side 1."""
    weights = c_in * kernel**2 * c_out
    adds = weights + c_out if bias_adds else weights
    return Cost(weights + c_out, adds * side**2)


def params_and_macs(**costs: Cost) -> dict[str, dict[str, int]]:
    """Costs in the layout of genotype.json: {"params": {name: n}, "macs": {name: n}}."""
    return {what: {name: getattr(cost, what) for name, cost in costs.items()} for what in ("params", "macs")}


@lru_cache(1024)
def op_cost(make: Callable[[int], nn.Module], ch: int, side: int) -> Cost:
    """Cost of an op from OPS_*, output side x side. TypeError: the op has no `macs(side)`."""
    with torch.device("meta"):
        op = make(ch)
    macs = getattr(op, "macs", None)
    if macs is None:
        raise TypeError(f"{type(op).__name__}: needs a method macs(side) that returns its multiply-adds per image")
    return Cost(count_params(op), macs(side))


class DBlock(nn.Module):
    """SN-GAN's block, (B, C, H, W) -> same, or half the side: ReLU -> conv -> ReLU -> conv [-> pool]."""

    def __init__(self, ch: int, down: bool) -> None:
        super().__init__()
        self.conv1 = spectral_norm(Conv(ch, ch, 3, padding=1))
        self.conv2 = spectral_norm(ConvAvgPool(ch, ch) if down else Conv(ch, ch, 3, padding=1))
        self.shortcut = spectral_norm(Conv(ch, ch, 1)) if down else None

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv2(self.conv1(x.relu()).relu())
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(x, 2))  # the 1x1 commutes with pooling
        return main + x


class AutoGANDiscriminator(nn.Module):
    """AutoGAN's and AdversarialNAS's discriminator, (B, 3, H, W) -> (B, 1), with spectral norm.

    64 ch^2 + 41 ch parameters. Stage 0 skips both middle blocks, stage 1 the second, for images of
    8 and 16 px: AutoGAN's D grows with its G. [AutoGAN §3.1; authors' code]
    """

    def __init__(self, ch: int = 128) -> None:
        super().__init__()
        self.stem1 = spectral_norm(Conv(3, ch, 3, padding=1))
        self.stem2 = spectral_norm(ConvAvgPool(ch, ch))
        self.stem_skip = spectral_norm(Conv(3, ch, 1))
        self.middle = nn.ModuleList([DBlock(ch, down=True), DBlock(ch, down=False)])
        self.last = DBlock(ch, down=False)
        self.out = spectral_norm(Linear(ch, 1, bias=False))
        normalise_together(self, AutoGANDiscriminator.used)

    def used(self, stage: int = 2) -> list[nn.Module]:
        return [self.stem1, self.stem2, self.stem_skip, *self.middle[:stage], self.last, self.out]

    def forward(self, x: Tensor, stage: int = 2) -> Tensor:
        x = self.stem2(self.stem1(x).relu()) + self.stem_skip(F.avg_pool2d(x, 2))
        for block in self.middle[:stage]:
            x = block(x)
        return self.out(self.last(x).relu().sum(dim=(2, 3)))  # CODE: a sum, so it grows with the image

    @staticmethod
    def cost(ch: int, size: int, stage: int = 2, bias_adds: bool = True) -> Cost:
        """Cost on size x size images; parameters include the blocks that a stage skips."""

        def convs(side: int, *shapes: tuple[int, int]) -> Cost:  # (channels in, kernel)
            return sum((conv_cost(c_in, ch, kernel, side, bias_adds) for c_in, kernel in shapes), Cost())

        half, quarter = size // 2, size // 4
        stem = convs(size, (3, 3), (ch, 3)) + convs(half, (3, 1))
        middle = [convs(half, (ch, 3), (ch, 3), (ch, 1)), convs(quarter, (ch, 3), (ch, 3))]
        last = convs(quarter if stage else half, (ch, 3), (ch, 3)) + Cost(ch, ch)
        params = sum([stem, *middle, last], Cost()).params
        return Cost(params, sum([stem, *middle[:stage], last], Cost()).macs)


Genotype = tuple[tuple[str, ...], ...]  # one row of op names per cell


class EdgeSpec(NamedTuple):
    name: str  # "1->3": from node 1 to node 3
    ops: tuple[str, ...]  # candidate ops
    first_code: int = 0  # integer of ops[0] in the authors' .npy files


@dataclass(frozen=True)
class Space:
    """A cell-based search space: the candidate ops of each edge, and the nodes that need an input.

    nodes: {node: columns of its incoming edges}; at least one of them must not be "none".
    together: columns of the down-sampling edges, which must be all "none" or all ops.
    first: edges of cell 1, if their candidates differ from those of the other cells.
    leaving: {node: columns of its outgoing edges}; if all of them are "none", it needs no input.
    """

    name: str
    cells: int
    edges: tuple[EdgeSpec, ...]
    nodes: dict[int, tuple[int, ...]]
    together: tuple[int, ...] = ()
    first: tuple[EdgeSpec, ...] = ()
    leaving: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def edges_of(self, cell: int) -> tuple[EdgeSpec, ...]:
        """Edges of a cell (0-based)."""
        return self.first if self.first and cell == 0 else self.edges

    def held(self, genotype: "Genotype | None") -> Iterator[tuple[int, int, str]]:
        """Yield (cell, column, op) for every op of the genotype, or of the supernet (None)."""
        for cell in range(self.cells):
            for column in range(len(self.edges)):
                for op in self.candidates(genotype, cell, column):
                    yield cell, column, op

    def candidates(self, genotype: "Genotype | None", cell: int, column: int) -> list[str]:
        """Ops to build for an edge, without "none": the genotype's, or all for a supernet (None)."""
        ops = self.edges_of(cell)[column].ops if genotype is None else (genotype[cell][column],)
        return [op for op in ops if op != "none"]

    def starved(self, row: Sequence[str], node: int) -> bool:
        """Whether a node needs an input but has none in this row of ops."""
        needed = node not in self.leaving or any(row[c] != "none" for c in self.leaving[node])
        return needed and all(row[c] == "none" for c in self.nodes[node])

    def row_error(self, row: tuple[str, ...]) -> str:
        """Describe what is wrong with a row of known ops; "" if it is valid."""
        for node, columns in self.nodes.items():
            if self.starved(row, node):
                edges = " and ".join(self.edges[c].name for c in columns)
                one = "at least one of the edges" if len(columns) > 1 else "edge"
                return f"node {node} has no input: {one} {edges} must not be 'none'"
        if len({row[c] == "none" for c in self.together}) > 1:
            edges = " and ".join(self.edges[c].name for c in self.together)
            return f"edges {edges}: use 'none' on both or on neither"
        return ""

    def check(self, rows: object, source: str) -> Genotype:
        """Validate a genotype. UserError names the source, cell, edge and valid ops."""
        if not isinstance(rows, list | tuple) or len(rows) != self.cells:
            raise UserError(f"{source}: a {self.name} genotype is a list of {self.cells} cells, found {rows!r:.80}")
        for i, row in enumerate(rows, 1):
            if not isinstance(row, list | tuple) or len(row) != len(self.edges):
                raise UserError(f"{source}: cell {i} needs {len(self.edges)} ops, found {row!r:.80}")
            for edge, op in zip(self.edges_of(i - 1), row, strict=True):
                if op not in edge.ops:
                    raise UserError(
                        f"{source}: cell {i}, edge {edge.name}: unknown op {op!r:.40}; use {', '.join(edge.ops)}"
                    )
            if error := self.row_error(tuple(row)):
                raise UserError(f"{source}: cell {i}: {error}")
        return tuple(tuple(row) for row in rows)

    def from_codes(self, codes: object, source: str = "codes") -> Genotype:
        """Genotype from the authors' integers, (cells, edges). UserError: wrong shape or code."""
        codes = np.asarray(codes)
        if codes.shape != (self.cells, len(self.edges)) or codes.dtype.kind not in "iu":
            raise UserError(
                f"{source}: expected integers of shape {self.cells, len(self.edges)}, found {codes.dtype} {codes.shape}"
            )
        rows: list[list[str]] = [[] for _ in range(self.cells)]
        for i, row in enumerate(codes.tolist(), 1):
            for edge, code in zip(self.edges_of(i - 1), row, strict=True):
                last = edge.first_code + len(edge.ops) - 1
                if not edge.first_code <= code <= last:
                    raise UserError(
                        f"{source}: cell {i}, edge {edge.name}: code {code} is out of range {edge.first_code}..{last}"
                    )
                rows[i - 1].append(edge.ops[code - edge.first_code])
        return self.check(rows, source)

    def to_codes(self, genotype: Genotype) -> list[list[int]]:
        return [
            [e.ops.index(op) + e.first_code for e, op in zip(self.edges_of(i), row, strict=True)]
            for i, row in enumerate(genotype)
        ]


def named(name: str, space: Space, published: dict[str, dict[str, list]], flag: str = "") -> Genotype | None:
    """Load a genotype by its published name, from a genotype.json or from an .npy of the authors.

    published: {"G": {name: codes}, "D": {...}}. For a .json without a genotype of this space, returns
    None, or raises if `flag` is given. UserError: unknown name, unreadable file, not in this space.
    """
    names = published[space.name]
    if name in names:
        return space.from_codes(names[name], name)
    for other, theirs in published.items():
        if name in theirs:
            raise UserError(f"{name}: this is a genotype of {other}; for {space.name} use {', '.join(names)}")
    path = Path(name)
    if path.suffix == ".npy":
        try:
            return space.from_codes(np.load(path, allow_pickle=False), name)
        except (OSError, ValueError, EOFError) as e:
            raise UserError(f"{name}: not a .npy file of integers ({e})") from None
    if path.suffix != ".json":
        raise UserError(f"{name}: no such genotype; use {', '.join(names)}, a genotype.json or a .npy file")
    rows = read_json(path, "genotype file").get(space.name)
    if rows is None and flag:
        raise UserError(f"{flag} {name}: no genotype under the key {space.name}")
    return None if rows is None else space.check(rows, f"{name}, {space.name}")


def table(genotype: Genotype, space: Space) -> str:
    """Format a genotype as an aligned table: one line per cell, one column per edge."""
    head = ["cell", *(e.name for e in space.edges)]
    rows = [[str(i), *row] for i, row in enumerate(genotype, 1)]
    widths = [max(len(row[c]) for row in [head, *rows]) for c in range(len(head))]
    return "\n".join("  ".join(f"{w:{n}}" for w, n in zip(row, widths, strict=True)).rstrip() for row in [head, *rows])
