"""Sample grids of a run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ui import draw
from ui.draw import Line, crop, human
from ui.files import clean, open_regular
from ui.runs import Run

if TYPE_CHECKING:
    import numpy as np


def open_image(path: Path) -> "np.ndarray":
    """A PNG as (H, W, 3) uint8. ValueError: not a PNG, or larger than 16 megapixels or 32 MB."""
    import io

    import numpy as np
    from PIL import Image

    try:
        fd = open_regular(path)
        with os.fdopen(fd, "rb") as f:
            data = f.read((32 << 20) + 1)
        if len(data) > 32 << 20:
            raise ValueError("larger than 32 MB")
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size[0] * image.size[1] > 16 << 20:
                raise ValueError(f"{image.size[0]} x {image.size[1]} pixels")
            return np.asarray(image.convert("RGB"))
    except ValueError:
        raise
    except Exception as e:  # the decoder may raise anything on a broken file
        raise ValueError(clean(e, 80) or type(e).__name__) from None


def sample_at(run: Run, at: float | None) -> tuple[int, Path] | None:
    """(step, path) of the latest sample grid at or before step `at`."""
    return next((f for f in reversed(run.files("samples", ".png")) if at is None or f[0] <= at), None)


def sample_lines(run: Run, at: float | None, width: int, height: int, across: int, images: bool) -> list[Line]:
    """The latest sample grid at or before step `at`, under a line that describes it."""
    files, found = run.files("samples", ".png"), sample_at(run, at)
    if not found:
        return [[(" no samples" + (" yet" if not files else f" up to step {human(at)}"), "dim")]]
    step, path = found
    try:
        image = open_image(path)
    except ValueError as e:
        return [[(f" cannot display {path.name}: {e}", "bad")]]
    n, _ = draw.grid_of(image)
    facts = f" step {human(step)} · {files.index(found) + 1} of {len(files)} · {image.shape[1]} x {image.shape[0]} pixels"
    facts += f" · {min(n, across)} of {n} per row" if n > 1 else ""
    hint = "   + - size   , . step   * best"
    head: Line = [(facts, "bold"), (hint if len(facts + hint) < width else "", "dim")]
    if not images:
        return [head, [], [(f" colours are off (NO_COLOR); open {path}", "dim")]]
    if width < 60:
        head = [(f" step {human(step)}", "bold")]
    return [crop(head, width), *draw.half_blocks(image, width - 1, height - 1, across)]
