"""Spectral norm of a whole discriminator at once is torch's own, layer by layer."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import adversarialnas
import eagan
from common import spectral
from common.cells import AutoGANDiscriminator, named

CPU_TOO = {"cuda", "cpu"}
PATH = (("conv_3x3", "conv_3x3", "none", "none", "skip_connect", "avg_pool", "conv_3x3"),) * 3  # node 1 is not used
ANIMATION = named("animation-d", adversarialnas.D_SPACE, adversarialnas.PUBLISHED)
DS: dict[str, tuple[Callable[[], nn.Module], tuple]] = {
    "autogan": (lambda: AutoGANDiscriminator(6), ()),
    "autogan, stage 0": (lambda: AutoGANDiscriminator(6), (0,)),
    "eagan, supernet": (lambda: eagan.Discriminator(None, 6), (PATH,)),
    "sngan": (lambda: adversarialnas.SNGANDiscriminator(4, 16), ()),
    "adversarialnas": (lambda: adversarialnas.Discriminator(ANIMATION, 6), ()),
}


def both(make: Callable[[], nn.Module], layout: torch.memory_format) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    D = make().double().to(memory_format=layout)
    return D, deepcopy(D)


def passes(D: nn.Module, args: tuple, monkeypatch: pytest.MonkeyPatch, devices: set[str]) -> list[Tensor]:
    """Outputs of two training passes, each with a backward pass."""
    monkeypatch.setattr(spectral, "TOGETHER", devices)
    g, found = torch.Generator().manual_seed(1), []
    for _ in range(2):
        found.append(D(torch.randn(3, 3, 16, 16, generator=g, dtype=torch.float64), *args))
        found[-1].square().sum().backward()
    return found


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", DS)
def test_values_gradients_and_state_are_torchs(name: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    make, args = DS[name]
    alone, together = both(make, layout)
    want, found = passes(alone, args, monkeypatch, set()), passes(together, args, monkeypatch, CPU_TOO)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    for (key, a), b in zip(alone.named_parameters(), together.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), key  # an op that was not used has none
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-12)
            assert layout != torch.channels_last or b.grad.stride() == b.stride()  # so Adam copies nothing
    assert together.state_dict().keys() == alone.state_dict().keys()
    torch.testing.assert_close(together.state_dict(), alone.state_dict(), rtol=0, atol=1e-12)


def test_passes_can_share_one_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = both(DS["autogan"][0], torch.channels_last)
    x, found = torch.ones(2, 3, 16, 16, dtype=torch.float64), []
    for D, devices in ((alone, set()), (together, CPU_TOO)):
        monkeypatch.setattr(spectral, "TOGETHER", devices)
        with spectral.normalised_once(D):
            found.append(torch.cat([D(x), D(-x)]))
        found[-1].square().sum().backward()
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together.stem1.bias.grad, alone.stem1.bias.grad)
    torch.testing.assert_close(together.state_dict(), alone.state_dict(), rtol=0, atol=1e-12)  # one power iteration


def test_nothing_is_left_behind_by_a_pass_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    D, _ = both(DS["autogan"][0], torch.channels_last)
    monkeypatch.setattr(spectral, "TOGETHER", CPU_TOO)
    with pytest.raises(RuntimeError):
        D(torch.ones(1, 5, 16, 16, dtype=torch.float64))
    before = D.stem1.weight.detach()
    with torch.no_grad():
        D.stem1.parametrizations.weight.original[0] += 5
    assert not torch.allclose(D.eval().stem1.weight, before)
