"""Counts the faults that these tests cause; tests/conftest.py says at the end what became of them."""

from pathlib import Path

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """The default tests do without hypothesis, which is slow to import."""
    return config.option.markexpr == "not slow" or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


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
