"""Errors for the user, random streams, and files that are read as data and replaced whole."""

import hashlib
import json
import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class UserError(Exception):
    """Something the user can mend. Its text is one line: the thing, its value and the remedy; the command exits 2."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the error's kind where it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def stream(seed: int, *name: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each (seed, name), as in `stream(1, "z", step)`.

    No random state lives between steps, so a resumed run equals an uninterrupted one, and what one part
    draws (evaluation, say) cannot shift what another gets.
    """
    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rng_of(seed: int, *name: object) -> random.Random:
    """The same for Python's generator, from which architectures are drawn."""
    return random.Random(repr((seed, *name)))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success move it there at once, on failure leave `path` as it was."""
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield tmp
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    with replacing(path) as tmp:
        tmp.write_text(json.dumps(value, indent=1, default=str) + "\n")


def read_json(path: Path, what: str) -> dict:
    """A JSON object from a file. UserError: not there, not JSON, not an object."""
    try:
        value = json.loads(path.read_text())
    except OSError as e:
        raise UserError(f"{what} {path}: {e.strerror}") from None
    except ValueError as e:
        raise UserError(f"{what} {path}: not JSON ({e})") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} {path}: expected a JSON object, found {type(value).__name__}")
    return value


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as None: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
