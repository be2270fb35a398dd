"""User errors, seeded random streams, JSON, and atomic file replacement."""

import hashlib
import io
import json
import math
import os
import random
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where it is used: common.report and the UI go without it
    import torch


class UserError(Exception):
    """An error the user can fix: one line that names the flag or file, its value and the remedy. Exit code 2."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type if there is no message."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    # torch.load goes on with advice to load anything
    return "not a file of plain tensors" if line.startswith("Weights only load failed") else line


def show_anything() -> None:
    """From now on, characters that stdout or stderr cannot show become "?"."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="replace")


def stream(seed: int, *name: object, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """Generator seeded by (seed, name), as in `stream(1, "z", step)`.

    No random state is carried from step to step: a resumed run equals an uninterrupted one, and the
    random numbers of one part (evaluation, for example) do not depend on another.
    """
    import torch

    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rng_of(seed: int, *name: object) -> random.Random:
    """Python's generator, seeded like `stream`; for sampling architectures."""
    return random.Random(repr((seed, *name)))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success replace `path` with it atomically, on failure leave `path` unchanged."""
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield tmp
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def load_tensors(path: Path, device: "torch.device | str" = "cpu") -> Any:
    """torch.load of plain tensors and containers, after a check of every CRC, which torch itself skips.
    ValueError and others: damaged, empty, or not such a file."""
    import torch

    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")
    return torch.load(path, map_location=device, weights_only=True)


def write_json(path: Path, value: object) -> None:
    with replacing(path) as tmp:
        tmp.write_text(json.dumps(value, indent=1, default=str) + "\n", "utf-8")


def read_json(path: Path, what: str) -> dict:
    """Read a JSON object from a file. UserError: cannot be read, not JSON, not an object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as e:
        raise UserError(f"{what} {path}: {e.strerror}") from None
    except ValueError as e:
        raise UserError(f"{what} {path}: not JSON ({e})") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} {path}: expected a JSON object, found {type(value).__name__}")
    return value


def finite(value: Any) -> Any:
    """Replace NaN and infinities with None, recursively: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
