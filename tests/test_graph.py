"""--graph: what a GPU would capture of each fixed loop, replayed on the CPU, equals the eager loop bit for bit."""

from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common import gan, graph
from common.files import UserError
from common.graph import Graph
from common.ranks import Ranks
from tests.loops import LOOPS, LoopRun, Operations, miniature, pairs_of, record, stretch, without_dropout
from tests.runs import parsed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    miniature(monkeypatch)


def assert_same(one: LoopRun, other: LoopRun) -> None:
    assert len(one.logged) >= 9
    assert one.logged == other.logged
    for name, a, b in pairs_of(one, other):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("method", "name"), LOOPS)
def test_replayed_updates_are_the_eager_ones(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, averages, moments, latents and logged losses."""
    without_dropout(monkeypatch)
    eager = stretch(method, name, monkeypatch, device="cpu")
    assert Operations.replays == 0
    replayed = stretch(method, name, monkeypatch, device="cpu", graph=True)
    assert Operations.replays >= 4
    assert Operations.eager > graph.WARM  # and those with a short batch
    assert_same(replayed, eager)


def test_dropout_goes_on_from_the_seed_of_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "capture", partial(record, random=True))
    replayed = stretch("degas", "training", monkeypatch, device="cpu", graph=True)
    assert Operations.replays >= 4
    monkeypatch.setattr(graph, "WARM", 10**6)
    assert_same(replayed, stretch("degas", "training", monkeypatch, device="cpu", graph=True))


# ---- Graph ---------------------------------------------------------------------------------------------------------


def update_of(run: Any = None) -> tuple[Graph, nn.Linear]:
    """An update of one weight, w <- w - rate * scale * mean(x), and the weight."""
    job = gan.Job(SimpleNamespace(graph=True), Ranks(CPU), None, None, run=run or LoopRun(0))
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    sgd = torch.optim.SGD(net.parameters(), 0.5, fused=True)

    def step(x: Tensor, scale: float | Tensor) -> dict[str, Tensor]:
        loss = (net(x) * scale).mean()
        gan.update(job, net, sgd, loss)
        return {"loss": loss.detach()}

    found = Graph(job, step, sgd)
    found.sgd = sgd
    return found, net


def test_inputs_floats_and_rates_of_each_update_are_used() -> None:
    update, net = update_of()
    want, data = 1.0, torch.ones(8, 1)
    for k in range(9):
        rate, scale, short = 0.5 / (k + 1), 1.0 + k, k in (1, 6)
        update.sgd.param_groups[0]["lr"] = rate
        assert update(data[: 2 if short else 4], scale) == {"loss": pytest.approx(want * scale)}
        want -= rate * scale
        assert net.weight.item() == pytest.approx(want, rel=1e-6)
        assert update.sgd.param_groups[0]["lr"] is rate  # a number, for checkpoints
    assert (Operations.eager, Operations.replays) == (graph.WARM + 2, 4)


def test_a_replay_leaves_given_tensors_and_returned_dictionaries_alone() -> None:
    update, _ = update_of()
    data, found = torch.arange(32.0)[:, None], []
    for k in range(8):
        found.append(update(data[4 * k : 4 * k + 4], 1.0))
        found[-1].pop("loss")
    assert Operations.replays == 5
    assert torch.equal(data[:, 0], torch.arange(32.0))


def test_a_loss_that_is_lost_in_a_replay_is_noticed() -> None:
    run = LoopRun(0)
    update, _ = update_of(run)
    for _ in range(5):
        update(torch.ones(4, 1), 1.0)
    update(torch.ones(2, 1), 1.0)  # eager
    assert not run.bad
    update(torch.full((4, 1), torch.nan), 1.0)
    assert run.bad


def test_adam_counts_its_steps_where_a_graph_needs_them() -> None:
    """A run with --graph may be resumed without, and the other way round."""
    net = nn.Linear(1, 1)
    for fused, on in ((True, True), (False, True), (True, False), (False, False)):
        adam = torch.optim.Adam(net.parameters(), fused=fused)
        adam.state[net.weight]["step"] = torch.zeros(())
        graph.keep_steps(adam, on)
        assert adam.param_groups[0]["capturable"] == on
        assert adam.state[net.weight]["step"].device == CPU  # of the weight
        assert net.bias not in adam.state
    graph.keep_steps(torch.optim.SGD(net.parameters()), True)


@pytest.mark.parametrize("method", ["eagan", "adversarialnas", "autogan", "degas"])
def test_what_cannot_be_captured_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script: ModuleType = __import__(method)
    for device in ("cpu", "auto", "cuda"):
        with pytest.raises(UserError, match=r"^--graph: .* GPU.* CPU; use --no-graph$"):
            script.check(parsed(script, ["--graph", "--device", device]), 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"^--graph: .* 2 processes; .*--no-graph$"):
        script.check(parsed(script, ["--graph"]), 2)
    with pytest.raises(UserError, match=r"^--graph: .* --compile; use --no-graph or --no-compile$"):
        script.check(parsed(script, ["--graph", "--compile"]), 1)
    script.check(parsed(script, ["--graph"]), 1)


# ---- --compile -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_networks_have_static_shapes_in_spite_of_a_short_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, compile_ = [], nn.Module.compile

    def backend(module: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        assert not any(isinstance(x, torch.SymInt) for x in inputs)
        batches.extend(len(x) for x in inputs if x.ndim == 4 and x.shape[1] == 3 and not isinstance(x, nn.Parameter))
        return module

    monkeypatch.setattr(nn.Module, "compile", lambda net, **how: compile_(net, backend=backend, **how))
    torch.compiler.reset()
    stretch("autogan", "training", monkeypatch, device="cpu", compile=True)
    assert set(batches) == {16, 8}  # of D: real and fake images, of a whole and of a short batch; those of a G step are 8
