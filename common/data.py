"""Data sets as a single uint8 tensor, and batches as a pure function of (seed, step)."""

import difflib
import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from common.files import UserError, stream

SIZES = {"shapes": 32, "cifar10": 32, "cifar100": 32, "stl10": 48, "celeba": 64}  # default image side
BY_HAND = {  # files that torchvision expects if it cannot download
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "stl10": "stl10_binary.tar.gz",
    "celeba": "a folder celeba with img_align_celeba.zip and CelebA's five .txt files",
}
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"}
SKIPPED = ("__MACOSX", "@eaDir")  # folders of other programs; names that begin with a dot are left out too
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
MEMBER_LIMIT = 64 * 2**20  # maximum uncompressed bytes of an image in a zip


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory, for training and as the reference of the metrics."""

    name: str  # file-name-safe
    images: torch.Tensor  # uint8 (N, 3, H, W) on the CPU
    labels: torch.Tensor | None  # int64 (N,), -1 = unlabelled; None if no image is labelled
    digest: str  # 16 hex digits, hash of size, images and labels
    note: str = ""  # preprocessing, one line for the log
    classes: tuple[str, ...] = ()  # names, where they are known

    @property
    def classes_note(self) -> str:
        """Number and names of the classes, one line for the log."""
        if self.labels is None:
            return "no classes: images without labels"
        found = len(self.classes) or len(self.labels[self.labels >= 0].unique())
        names = ", ".join(self.classes[:20]) + (", ..." if len(self.classes) > 20 else "")
        return f"{found} classes" + (f": {names}" if names else "")


def load_dataset(name: str, data_dir: Path, size: int = 0) -> Dataset:
    """Load a data set of SIZES (celeba: train, stl10: train + unlabeled), a folder, .zip or .npz.

    size: side in pixels; 0: from SIZES or, for a path, the images' shorter side, if all have one size.
    Other images are resized (shorter side, bilinear, antialiased) and centre-cropped; alpha is dropped.
    Labels come from the dataset.json of StyleGAN's tools, else from class folders in sorted order; a single
    top-level folder is ignored, and of train, val and test above the classes train is taken. Downloads go to
    data_dir; with several processes, call this on one first. UserError: not found, unreadable, bad size.
    """
    if size and (size < 16 or size % 8):
        raise UserError(f"--size {size}: use a multiple of 8, 16 or more, or 0 for the data set's own size")
    size = size or SIZES.get(name, 0)
    if name == "shapes":
        return shapes(size=size)
    if name in SIZES:
        return _torchvision(name, data_dir, size)
    path = Path(name)
    try:
        if not name or not path.exists():
            close = difflib.get_close_matches(name, SIZES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"--dataset {name}: no such data set or path; use {', '.join(SIZES)} or a path{hint}")
        if path.is_dir():
            return _folder(path, size)
        kind = path.suffix.lower() if path.is_file() else ""
        if kind in (".zip", ".npz"):
            path.open("rb").close()  # a permission error is not a damaged file
            return _zip(path, size) if kind == ".zip" else _npz(path, size)
    except OSError as error:
        where = error.filename or name
        raise UserError(f"{where}: cannot be read ({error.strerror or error}); check path and permissions") from error
    except MemoryError as error:
        raise UserError(f"{name}: its images do not fit into memory; use a smaller --size, or fewer images") from error
    raise UserError(f"--dataset {path}: unsupported file type; use a folder of images, a .zip of one, or an .npz")


def memory_left() -> int:
    """Bytes of memory that this process may still take, of the machine and of its container."""
    left, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no container, or "max"
        limit = int((group / "memory.max").read_text("utf-8"))
        left = min(left, limit - int((group / "memory.current").read_text("utf-8")))
    return left


def _check_memory(path: Path, needed: int) -> None:
    """UserError: so many bytes of images do not fit into memory."""
    if needed > (left := memory_left()):
        raise UserError(
            f"{path}: loading its images takes {needed / 1e9:.1f} GB of memory, {left / 1e9:.1f} GB are left; use a "
            "smaller --size, or fewer images"
        )


def _dataset(
    name: str, images: torch.Tensor, labels: torch.Tensor | None, note: str, classes: Iterable[str] = ()
) -> Dataset:
    if len(images) < 2:
        raise UserError(f"{name}: {len(images)} image found, at least 2 required; check the path")
    if labels is not None and (labels < 0).all():
        labels = None
    sha = hashlib.sha256(repr((tuple(images.shape), labels is not None)).encode())
    sha.update(images.numpy().data)
    if labels is not None:
        sha.update(labels.numpy().data)
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")[:60] or "images"
    return Dataset(safe, images, labels, sha.hexdigest()[:16], note, () if labels is None else tuple(classes))


def _torchvision(name: str, data_dir: Path, size: int) -> Dataset:
    from torchvision import datasets

    was_there = data_dir.exists()
    try:
        if name == "celeba":
            faces = datasets.CelebA(data_dir, split="train", target_type=[], download=True)
        elif name in ("cifar10", "cifar100"):
            data = (datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100)(data_dir, train=True, download=True)
            images, labels = data.data, data.targets
        else:
            data = datasets.STL10(data_dir, split="train+unlabeled", download=True)
            images, labels = data.data.transpose(0, 2, 3, 1), data.labels
    except Exception as error:  # URLError, RuntimeError, or one of gdown's exceptions
        if not was_there:
            with suppress(OSError):  # not empty if a download has started
                data_dir.rmdir()
        archive = data_dir / BY_HAND[name]
        if archive.is_file():
            raise UserError(f"--dataset {name}: {archive} is cut or damaged ({_line(error)}); replace it") from error
        raise UserError(
            f"--dataset {name}: not found in {data_dir} and cannot be downloaded ({_line(error)}); "
            f"put {BY_HAND[name]} there, or use --dataset shapes or a path"
        ) from error
    if name == "celeba":  # 40 attributes per face, but no classes
        folder = Path(data_dir, faces.base_folder, "img_align_celeba")
        return _image_files(folder, name, map(PurePosixPath, faces.filename), lambda f: (folder / f).read_bytes(), size)
    tensor, note = _resize(images, size)
    return _dataset(name, tensor, torch.tensor(labels, dtype=torch.int64), note, getattr(data, "classes", ()))


def _folder(path: Path, size: int) -> Dataset:
    def stop(error: OSError) -> None:  # by default, os.walk ignores folders that it cannot list
        raise error

    files, seen = [], set()
    for base, folders, names in os.walk(path, followlinks=True, onerror=stop):
        real = os.path.realpath(base)
        if real in seen:  # visited already: a symbolic link
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        files += [PurePosixPath(os.path.relpath(base, path), name) for name in names]

    def read(file: PurePosixPath) -> bytes:
        if not (path / file).is_file():
            raise ValueError("not a regular file")  # opening a pipe would block
        return (path / file).read_bytes()

    return _image_files(path, path.resolve().name, files, read, size)


def _zip(path: Path, size: int) -> Dataset:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises more than BadZipFile on damaged files
        raise UserError(f"{path}: not a readable zip ({_line(error)}); create it again") from error
    members = {
        PurePosixPath(m.filename.replace("\\", "/").lstrip("/")): m for m in archive.infolist() if not m.is_dir()
    }

    def read(file: PurePosixPath) -> bytes:
        if members[file].file_size > MEMBER_LIMIT:
            raise ValueError(f"inflates to {members[file].file_size} bytes, over the limit of {MEMBER_LIMIT}")
        return archive.read(members[file].filename)

    with archive:
        return _image_files(path, path.stem, members, read, size)


def _image_files(
    path: Path, name: str, files: Iterable[PurePosixPath], read: Callable[[PurePosixPath], bytes], size: int
) -> Dataset:
    seen = [f for f in files if not any(part.startswith(".") or part in SKIPPED for part in f.parts)]
    files = sorted(f for f in seen if f.suffix.lower() in FORMATS)
    if not files:
        raise UserError(f"{path}: no images found; supported formats: {' '.join(FORMATS)}")

    files, note = _one_split(files)
    bad: dict[int, str] = {}

    def decode(i: int) -> Image.Image | None:
        try:
            image: Image.Image = Image.open(io.BytesIO(read(files[i])), formats=tuple(FORMATS.values()))
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:
                raise ValueError(f"{image.width}x{image.height}, over Pillow's limit of {limit} pixels")
            kinds[i] = {"1": "one-channel", "L": "one-channel"}.get(image.mode, "")
            if image.mode[0] in "IF":  # Pillow clips these instead of scaling them
                if image.mode[:4] != "I;16" and (image.mode == "F" or image.format not in ("PNG", "PPM")):
                    raise ValueError("values of unknown range, convert it to 8 or 16 bits per channel")
                kinds[i] = "16-bit"
                image = Image.fromarray(np.rint(np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
            return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # Pillow and zipfile raise various errors on damaged files
            bad[i] = f"{files[i]} ({_line(error)})"
            return None

    own = size == 0
    kinds = [""] * len(files)
    first = next(filter(None, map(decode, range(len(files)))), None) if own else None
    size, sizes = size or (_own_size(path, *first.size) if first else 16), set()
    _check_memory(path, 3 * len(files) * size**2)
    images = np.empty((len(files), 3, size, size), np.uint8)

    def work(i: int) -> None:
        if not (image := decode(i)):
            return
        sizes.add(image.size)
        if own and len(sizes) > 1:
            raise UserError(f"{path}: images of different sizes, {_range(sizes)}; set one, for example --size 32")
        image = image.crop(_square(*image.size)).resize((size, size), Image.Resampling.BILINEAR)
        images[i] = np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow releases the GIL
        list(pool.map(work, range(len(files))))
    if bad:
        names = ", ".join(bad[i] for i in sorted(bad))
        raise UserError(f"{path}: not readable as images, {len(bad)} of {len(files)}: {names}; replace or remove them")
    found = Counter(filter(None, kinds))
    notes = [note, _note(len(files), sizes, size), *(f"{n} {kind} images scaled to RGB" for kind, n in found.items())]
    if left := sum(f.name != "dataset.json" and f.suffix.lower() not in FORMATS for f in seen):
        notes.append(f"(other files left out: {left})")
    labels, classes = _listed_labels(path, seen, files, read) or _folder_labels(files)
    return _dataset(name, torch.from_numpy(images), torch.tensor(labels), "; ".join(filter(None, notes)), classes)


def _shared(files: list[PurePosixPath]) -> int:
    """Number of folders above all files."""
    return len(PurePosixPath(os.path.commonpath([f.parent for f in files])).parts)


def _one_split(files: list[PurePosixPath]) -> tuple[list[PurePosixPath], str]:
    """Only the training images, where all files lie in train, val and test; with a note."""
    shared = _shared(files)
    splits = {f.parts[shared] for f in files}
    train = [name for name in splits if name.lower() in ("train", "training")]
    if len(splits) < 2 or len(train) != 1 or not {name.lower() for name in splits} <= SPLITS:
        return files, ""
    left_out = ", ".join(sorted(splits - set(train)))
    return [f for f in files if f.parts[shared] == train[0]], f"{train[0]} is taken, left out: {left_out}"


def _listed_labels(
    path: Path, seen: list[PurePosixPath], files: list[PurePosixPath], read: Callable[[PurePosixPath], bytes]
) -> tuple[list[int], list[str]] | None:
    """Labels from the dataset.json of StyleGAN's tools, {"labels": [[file, class], ...]}; None: there are none."""
    for listed in (f for f in seen if f.name == "dataset.json"):
        try:
            labels = dict(json.loads(read(listed)).get("labels") or ())
            if not labels:
                continue
            found = [labels[str(f.relative_to(listed.parent))] for f in files]
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{path}: {listed}: no label for each image ({error}); mend or remove it") from error
        if not all(type(x) is int and x >= 0 for x in found):
            raise UserError(f"{path}: {listed}: labels must be integers of 0 or more; mend or remove it")
        return found, [str(x) for x in sorted(set(found))]
    return None


def _folder_labels(files: list[PurePosixPath]) -> tuple[list[int], list[str]]:
    """Labels and names of the class folders; -1 above them, and in folders that only split a running number."""
    shared = _shared(files)
    folders = [f.parent.parts[shared] if len(f.parent.parts) > shared else "" for f in files]
    names = sorted(set(folders) - {""})
    if all(re.fullmatch(r"\d{5,}", name) for name in names):  # 00000/img00000000.png, ..., 00001/img00001000.png
        numbers = [int(x[0]) if (x := re.search(r"\d+$", f.stem)) else -1 for f in files]
        placed = sorted(zip(folders, numbers, strict=True))  # the files themselves come as 1, 10, 11, ..., 2
        if all(a < b for (_, a), (_, b) in pairwise(placed)):
            return [-1] * len(files), []
    number = {name: i for i, name in enumerate(names)} | {"": -1}
    return [number[folder] for folder in folders], names


def _npz(path: Path, size: int) -> Dataset:
    try:
        with zipfile.ZipFile(path) as archive:  # np.load would also accept an .npy
            _check_memory(path, 2 * sum(member.file_size for member in archive.infolist()))  # as stored, and transposed
        with np.load(path, allow_pickle=False) as arrays:
            found = ", ".join(arrays)
            images, labels = (np.asarray(arrays[key]) if key in arrays else None for key in ("images", "labels"))
    except (MemoryError, UserError):
        raise
    except Exception as error:  # a pickled array, a bad CRC, a damaged header, ...
        raise UserError(
            f"{path}: not a readable .npz of plain arrays ({_line(error)}); "
            "create it with numpy.savez(path, images=..., labels=...)"
        ) from error
    if images is None:
        raise UserError(f"{path}: no array 'images', only {found}; save it as images=...")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise UserError(f"{path}: images is {images.dtype} {images.shape}, must be non-empty uint8 (N, H, W, 3)")
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise UserError(f"{path}: labels is {labels.dtype} {labels.shape}, must be integers ({len(images)},)")
        if labels.min() < -1 or labels.max() >= 2**31:
            raise UserError(f"{path}: labels are {labels.min()} to {labels.max()}, must be 0, 1, ... or -1 for none")
    tensor, note = _resize(images, size, path)
    return _dataset(path.stem, tensor, None if labels is None else torch.from_numpy(labels.astype(np.int64)), note)


def _line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "unknown format"  # Pillow's message shows a memory address
    return " ".join(str(error).split()) or repr(error)


def _resize(array: np.ndarray, size: int, path: Path | str = "") -> tuple[torch.Tensor, str]:
    """Crop and resize uint8 (N, H, W, 3) to (N, 3, size, size), with a note. size 0: unchanged."""
    n, h, w, _ = array.shape
    size = size or _own_size(path, w, h)
    left, top, right, bottom = _square(w, h)
    images = torch.from_numpy(array[:, top:bottom, left:right]).permute(0, 3, 1, 2)
    if (h, w) != (size, size):  # in parts: CPUs without a uint8 kernel make a float copy
        parts = images.split(256)
        images = torch.cat([F.interpolate(x, (size, size), mode="bilinear", antialias=True) for x in parts])
    return images.contiguous(), _note(n, {(w, h)}, size)


def _square(w: int, h: int) -> tuple[int, int, int, int]:
    side = min(w, h)
    left, top = (w - side) // 2, (h - side) // 2
    return left, top, left + side, top + side


def _own_size(path: Path | str, w: int, h: int) -> int:
    side = min(w, h)
    if side < 16 or side % 8:
        near = max(16, side // 16 * 16)  # works for all four methods
        raise UserError(f"{path}: images of {w}x{h}, but sides must be multiples of 8, 16 or more; use --size {near}")
    return side


def _range(sizes: set[tuple[int, int]]) -> str:
    return " .. ".join(f"{w}x{h}" for w, h in (min(sizes, key=math.prod), max(sizes, key=math.prod)))


def _note(n: int, sizes: set[tuple[int, int]], size: int) -> str:
    if sizes == {(size, size)}:
        return ""
    was = "{}x{}".format(*next(iter(sizes))) if len(sizes) == 1 else f"mixed size ({_range(sizes)})"
    return f"{n} images of {was}: shorter side resized to {size} px, centre-cropped"


def _box(u: torch.Tensor, v: torch.Tensor, a: float, b: float) -> torch.Tensor:
    return torch.maximum(u.abs() - a, v.abs() - b)


def _star(u: torch.Tensor, v: torch.Tensor, notch: float = 0.42) -> torch.Tensor:
    """Five-pointed star of radius 1; by symmetry, the distance to one edge of half a point."""
    r, angle = torch.hypot(u, v), torch.atan2(v, u)
    angle = ((angle + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5).abs()
    nx, ny = notch * math.sin(math.pi / 5), 1 - notch * math.cos(math.pi / 5)
    return ((r * angle.cos() - 1) * nx + r * angle.sin() * ny) / math.hypot(nx, ny)


# Signed distance of (u, v), accurate near the edge, negative inside; all fit into the unit circle.
SHAPES = {
    "disc": lambda u, v: torch.hypot(u, v) - 0.85,
    "ring": lambda u, v: (torch.hypot(u, v) - 0.68).abs() - 0.2,
    "square": lambda u, v: _box(u, v, 0.7, 0.7),
    "triangle": lambda u, v: torch.maximum(0.866 * u.abs() + 0.5 * v, -v) - 0.48,
    "cross": lambda u, v: torch.minimum(_box(u, v, 0.95, 0.24), _box(u, v, 0.24, 0.95)),
    "bar": lambda u, v: _box(u, v, 0.95, 0.24),
    "star": _star,
    "discs": lambda u, v: torch.hypot(u.abs() - 0.52, v) - 0.4,
    "checker": lambda u, v: torch.maximum(
        _box(u, v, 0.7, 0.7), -0.15 * torch.cos(math.pi * u * 1.5 / 0.7) * torch.cos(math.pi * v * 1.5 / 0.7)
    ),
    "stripes": lambda u, v: torch.maximum(_box(u, v, 0.7, 0.7), -0.09 * torch.cos(math.pi * u * 2.5 / 0.7)),
}


def shapes(n: int = 10_000, size: int = 32, seed: int = 0) -> Dataset:
    """Draw n antialiased SHAPES, balanced, at random positions, scales, rotations and colours.

    In float64: the last bits of a cosine depend on the CPU's vector width, and no pixel is that close to rounding
    differently, so that all CPUs draw the same bytes.
    """
    g = stream(seed, "shapes")

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g).double()

    labels = (torch.arange(n) % len(SHAPES))[torch.randperm(n, generator=g)]
    radius = size * (0.26 + 0.16 * uniform(n))
    centre = (uniform(n, 2) * 2 - 1) * (size / 2 - radius)[:, None]  # stay inside
    turn, slope = (uniform(2, n) * 2 * math.pi)[..., None]  # (n, 1) each
    hue = uniform(n, 3, 1) + torch.arange(3) / 3  # (n, shape | background | far end, rgb)
    vivid = 0.5 + 0.5 * torch.cos(2 * math.pi * hue)
    dark, light = 0.1 + 0.35 * vivid, 0.55 + 0.45 * vivid
    night = (uniform(n, 1, 1) < 0.5).expand(-1, 3, 3).clone()
    night[:, 0] = ~night[:, 0]  # light shape on dark background, or vice versa
    front, near, far = torch.where(night, dark, light)[..., None].unbind(1)  # (n, 3, 1) each
    far = torch.where(uniform(n, 1, 1) < 0.5, near, far)
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = x.reshape(1, -1), y.reshape(1, -1)  # (1, size²), pixels from the centre
    images = torch.empty(n, 3, size * size, dtype=torch.uint8)
    for number, distance in enumerate(SHAPES.values()):
        of = labels == number
        dx, dy, cos, sin = x - centre[of, :1], y - centre[of, 1:], turn[of].cos(), turn[of].sin()
        u, v = (dx * cos + dy * sin) / radius[of, None], (dy * cos - dx * sin) / radius[of, None]
        cover = (0.5 - radius[of, None] * distance(u, v)).clamp(0, 1)[:, None]
        blend = 0.5 + 0.5 * (x * slope[of].cos() + y * slope[of].sin())[:, None] / (size / 2)
        ground = torch.lerp(near[of], far[of], blend.clamp(0, 1))
        images[of] = torch.lerp(ground, front[of], cover).mul_(255).round_().to(torch.uint8)
    return _dataset("shapes", images.view(n, 3, size, size), labels, "", SHAPES)


class Batches:
    """Endless shuffled batches; `batches(i)` is a pure function of (seed, i): no loader state.

    images: uint8 (N, 3, H, W), on the device or, if they do not fit there, on the CPU. batch: images over
    all `world` processes; each gets a contiguous slice. len(batches): batches per epoch. A short last batch
    is kept [authors' code], cut to a multiple of world, and dropped if it has fewer images than processes.
    """

    def __init__(
        self, images: torch.Tensor, batch: int, seed: int, device: torch.device | str, rank: int = 0, world: int = 1
    ) -> None:
        if not 1 <= batch <= len(images):
            raise UserError(f"--d-batch {batch}: must be between 1 and the {len(images)} images of the data set")
        if batch % world:
            raise UserError(f"--d-batch {batch}: must be a multiple of the {world} processes")
        self.images, self.device = images, torch.device(device)
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch)
        return full + (rest >= self.world)

    def indices(self, i: int) -> torch.Tensor:
        """Image indices of batch i, int64; `.chunk(world)[rank]` is this process's share."""
        epoch, k = divmod(i, len(self))
        if epoch != self._epoch:  # drawn on the CPU: the same order on every device
            order = torch.randperm(len(self.images), generator=stream(self.seed, "data", epoch))
            self._epoch, self._order = epoch, order.to(self.images.device)
        share = min(self.batch, len(self.images) - k * self.batch) // self.world
        return self._order[k * self.batch : k * self.batch + share * self.world]

    def __call__(self, i: int) -> torch.Tensor:
        """This process's share of batch i, across epochs: float32 (B, 3, H, W) in [-1, 1], on device."""
        own = self.indices(i).chunk(self.world)[self.rank]
        return self.images.index_select(0, own).to(self.device).float().div_(127.5).sub_(1)
