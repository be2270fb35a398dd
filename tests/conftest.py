"""What several test files share: a data set so small that a whole run takes seconds, and an evaluator that suits it."""

import fcntl
import hashlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

import common.metrics
import common.ranks
from tests import runs
from tests.runs import METHODS, refused, start, tiny_flags

torch.set_num_threads(1)  # small tensors: threads only wait for each other
common.ranks.PROBE_SECONDS = 0.0  # no test reads the price of its run
os.fsync = lambda _: None  # no test cuts the power

REAL_DATA = Path(os.environ.get("GAN_NAS_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def quick_compact() -> Iterator[None]:
    """The compact network after 20 steps: enough where its scores only have to be reproducible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.metrics, "COMPACT_STEPS", (20, 20))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Other workers that want the folder wait, and then find it made."""
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def tiny_data(shared: Path) -> dict:
    """tests.runs.tiny_data, made once."""
    with one_at_a_time(shared / "tiny"):
        return runs.tiny_data(shared / "tiny")


@pytest.fixture(scope="session")
def undisturbed(tiny_data: dict, shared: Path) -> Callable[..., Path]:
    """undisturbed(method, **flags): a tiny run from start to end, made when first asked for. Goes with quick_compact."""

    @cache
    def run(name: str, **changes: object) -> Path:
        folder = shared / f"{name}-{hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:12]}"
        with one_at_a_time(folder):
            made = [path for path in folder.glob("*") if (path / "result.json").exists()]
            return made[0] if made else start(import_module(name), tiny_flags(name, tiny_data), folder, **changes)

    return run


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """program("tui.py", *words): exit code, stdout and stderr of a program of the project, run in this process."""

    def run(name: str, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        try:
            if name.endswith(".py"):
                runpy.run_path(str(runs.ROOT / name), run_name="__main__")
            code = import_module(name).main()
        except SystemExit as end:
            code = end.code
        if isinstance(code, str):  # as Python does
            print(code, file=sys.stderr)
            code = 1
        return code or 0, *capsys.readouterr()

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Of tests/faults. Here, as xdist's main process reads no conftest.py of a subfolder."""
    reports = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, []) if r.when == "call"]
    counts = [dict(r.user_properties) for r in reports]
    tried, recovered = (sum(c.get(name, 0) for c in counts) for name in ("tried", "recovered"))
    if tried:
        terminalreporter.write_line(f"faults: {tried} tried, {recovered} recovered or refused, {tried - recovered} lost")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `method` is one of all four, but in a test_<method>.py and where the test names them itself."""
    named = any("method" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "method" in metafunc.fixturenames and not named and own_method(metafunc.module) not in METHODS:
        metafunc.parametrize("method", METHODS, indirect=True)


def own_method(module: ModuleType) -> str:
    return module.__name__.rpartition("test_")[2]


@pytest.fixture
def method(request: pytest.FixtureRequest) -> ModuleType:
    """The script that is tested."""
    return import_module(getattr(request, "param", own_method(request.module)))


@pytest.fixture
def tiny(method: ModuleType, tiny_data: dict) -> dict:
    """Flags of a tiny run of the `method`; --runs-dir is up to the test."""
    return tiny_flags(method.__name__, tiny_data)


@pytest.fixture
def whole(method: ModuleType, undisturbed: Callable) -> Path:
    """A run of all phases."""
    return undisturbed(method.__name__)


@pytest.fixture
def refuse(method: ModuleType, tiny_data: dict, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., str]:
    """The error of a command that makes nothing: the smoke preset on tiny images of 16 px, and these flags."""
    smoke = ["--preset", "smoke", "--dataset", tiny_data["dataset"]]
    if method.__name__ == "degas":
        smoke += ["--search-images", "0"]
    return lambda *words: refused(method, capsys, tmp_path, [*([] if "--resume" in words else smoke), *map(str, words)])
