"""Counts the faults that these tests cause, and says at the end what became of them."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, []) if r.when == "call"]
    counts = [dict(r.user_properties) for r in reports]
    tried, recovered = (sum(c.get(name, 0) for c in counts) for name in ("tried", "recovered"))
    if tried:
        terminalreporter.write_line(f"faults: {tried} tried, {recovered} recovered or refused, {tried - recovered} lost")


@pytest.fixture
def count(record_property) -> "Count":
    return Count(record_property)


class Count:
    """How many faults a test has caused, and how many of them lost nothing: noted as they happen, so that a failure counts."""

    def __init__(self, record: object) -> None:
        self.record, self.tried, self.recovered = record, 0, 0

    def __enter__(self) -> "Count":
        self.tried += 1
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.recovered += kind is None

    def done(self) -> None:
        self.record("tried", self.tried)
        self.record("recovered", self.recovered)
