"""Signs of life of a search: their definitions, and that every search writes them and warns when it has died."""

from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from math import inf, nan
from pathlib import Path

import pytest
import torch
from torch import nn

import degas
from common import gan
from tests.runs import rows, start, tiny_flags

ROWS = {  # method: the rows that have signs, and which
    "eagan": (lambda row: "front" in row, {"active", "dead", "fid_signal", "fid_noise", "is_signal", "is_noise"}),
    "adversarialnas": (
        lambda row: row["batch"] > 0, {"active", "dead", "grad_alpha", "grad_beta", "moved_alpha", "moved_beta"}
    ),
    "autogan": (
        lambda row: row["kind"] == "controller", {"grad_controller", "entropy", "reward_signal", "reward_noise"}
    ),
    "degas": (lambda row: row["step"] > 0, {"active", "dead", "grad_alpha", "moved_alpha"}),
}  # fmt: skip


def test_grad_norm_is_that_of_all_gradients() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    net[1].requires_grad_(False)
    net(torch.ones(4, 2)).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in net[0].parameters()]).norm()
    torch.testing.assert_close(gan.grad_norm(net), expected)


def test_distance_is_a_root_mean_square() -> None:
    net = nn.Linear(3, 1)  # 4 parameters
    other = deepcopy(net)
    with torch.no_grad():
        other.bias.add_(3)
    assert gan.distance(other, net) == pytest.approx(1.5)


def test_active_units_are_those_above_zero_and_dead_channels_those_never() -> None:
    last = nn.Conv2d(4, 3, 1)
    maps = torch.zeros(2, 4, 2, 2)
    maps[0, 0] = 1.0  # half of channel 0, one unit of channel 1; 2 and 3 are dead
    maps[1, 1, 0, 0] = 2.0
    job = gan.Job(degas.Args(), gan.Ranks(torch.device("cpu")), None, None)
    signs = gan.active_units(job, last, last, lambda _z, _k: last(maps))
    assert signs == {"signs/active": 5 / 32, "signs/dead": 0.5}
    assert not last._forward_pre_hooks


def test_signal_is_the_spread_between_candidates_and_noise_that_of_a_repeat() -> None:
    signs = gan.signal_and_noise("fid", [1.0, 2.0, 3.0, inf, nan], [(1.0, 3.0), (2.0, 2.0), (inf, inf)])
    assert signs == {"signs/fid_signal": 1.0, "signs/fid_noise": 1.0}  # sqrt(((1 - 3)² / 2 + 0) / 2)
    assert gan.signal_and_noise("is", [1.0], []) == {"signs/is_signal": None, "signs/is_noise": None}


def test_rank_correlation_is_of_those_scored_twice() -> None:
    before = {"a": 1.0, "b": 2.0, "c": 3.0, "gone": 0.0, "collapsed": inf}
    assert gan.rank_correlation(before, {"a": 10.0, "b": 20.0, "c": 90.0, "collapsed": 1.0}) == pytest.approx(1)
    assert gan.rank_correlation(before, {"a": 3.0, "b": 2.0, "c": 1.0, "new": 9.0}) == pytest.approx(-1)
    assert gan.rank_correlation(before, {"a": 1.0, "b": 2.0}) is None
    assert gan.rank_correlation(before, dict.fromkeys(before, 1.0)) is None


@pytest.mark.parametrize(
    ("signs", "kinds"),
    [
        ({"signs/grad_alpha": 0.0}, ["grad"]),
        ({"signs/grad_alpha": nan}, ["grad"]),
        ({"signs/grad_alpha": 1e-9, "signs/moved_alpha": 0.0}, []),
        ({"signs/active": 0.01, "signs/dead": 0.2}, ["units"]),
        ({"signs/active": 0.3, "signs/dead": 0.5}, ["units"]),
        ({"signs/active": 0.3, "signs/dead": 0.1}, []),
        ({"signs/fid_signal": 1.0, "signs/fid_noise": 2.0}, ["noise"]),
        ({"signs/fid_signal": 2.0, "signs/fid_noise": 1.0}, []),
        ({"signs/fid_signal": None, "signs/fid_noise": 1.0}, []),
        ({"signs/rank_correlation": -0.1}, ["ranks"]),
        ({"signs/rank_correlation": None}, []),
        ({"signs/entropy": 0.01}, ["entropy"]),
    ],
)
def test_troubles(signs: gan.Signs, kinds: list[str]) -> None:
    assert list(gan.troubles(signs)) == kinds


@pytest.mark.usefixtures("quick_compact")
@pytest.mark.parametrize("method", ROWS)
def test_every_search_writes_its_signs(method: str, undisturbed: Callable) -> None:
    has, expected = ROWS[method]
    found = [row for row in rows(undisturbed(method), "search.jsonl") if has(row)]
    assert found
    for row in found:
        signs = {key.removeprefix("signs/"): value for key, value in row.items() if key.startswith("signs/")}
        assert signs.keys() >= expected
        for key, value in signs.items():
            assert value is None or value >= (-1 if key == "rank_correlation" else 0)
        assert all(signs[key] > 0 for key in signs if key.startswith(("grad", "moved")))


@pytest.mark.usefixtures("quick_compact")
def test_a_search_that_has_died_says_so_in_its_row_and_in_the_log(
    tiny_data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DEGAS with the ReLU before the last convolution switched off by its BatchNorm."""
    build = degas.SuperG.__init__

    def dead(net: degas.SuperG, *args: object, **kwargs: object) -> None:
        build(net, *args, **kwargs)
        nn.init.constant_(net.tail[0].weight, 0.0)
        nn.init.constant_(net.tail[0].bias, -1.0)

    monkeypatch.setattr(degas.SuperG, "__init__", dead)
    run = start(import_module("degas"), tiny_flags("degas", tiny_data), tmp_path, phase="search")
    last = rows(run, "search.jsonl")[-1]
    assert (last["signs/active"], last["signs/dead"], last["signs/grad_alpha"]) == (0, 1, 0)
    assert last["warning"].count("--w-lr") == 2  # no gradient, no active units
    assert (run / "log.txt").read_text().count("WARNING") >= 1
