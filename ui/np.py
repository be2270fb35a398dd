"""numpy, imported at its first use, so that the first screen need not wait for it."""

from typing import Any


def __getattr__(name: str) -> Any:
    import numpy

    globals()[name] = getattr(numpy, name)
    return globals()[name]
