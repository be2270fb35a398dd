"""Data sets: the built-in shapes, every loader, the batches made of them; bad input ends in one line that names the thing."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import urllib.request
import zipfile
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import common.data
import common.gan
from common.data import SHAPES, SIZES, Batches, Dataset, load_dataset, shapes
from common.files import UserError
from common.ranks import Ranks
from tests.conftest import REAL_DATA
from tests.runs import slow

ROOT = Path(__file__).parents[1]


def colour(i: int) -> tuple[int, int, int]:
    return 20 * i, 255 - 20 * i, 7 * i


def encoded(image: Image.Image, kind: str = "PNG", **save: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **save)
    return file.getvalue()


def png(i: int = 0, size: tuple[int, int] = (32, 32), kind: str = "PNG", **save: object) -> bytes:
    return encoded(Image.new("RGB", size, colour(i)), kind, **save)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def load(path: Path, size: int = 0) -> Dataset:
    return load_dataset(str(path), Path("nowhere"), size)


def which(data: Dataset) -> list[int]:
    """The i of colour(i) of each image."""
    return (data.images[:, 0].float().mean((1, 2)) / 20).round().int().tolist()


def refused(name: object, *parts: object, size: int = 0, data_dir: Path = Path("data")) -> str:
    """Loading must end in one line with all the parts in it."""
    with pytest.raises(UserError) as caught:
        load_dataset(str(name), data_dir, size)
    text = str(caught.value)
    assert "\n" not in text
    assert "object at 0x" not in text
    for part in parts:
        assert str(part) in text, text
    return text


# ---- batches ---------------------------------------------------------------------------------------------------------


def batches_of(n: int, batch: int, seed: int = 0, **ranks: int) -> Batches:
    """Batches of n images, each filled with its own number."""
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 4, 4)
    return Batches(images, batch, seed, "cpu", **ranks)


def numbers(batch: torch.Tensor) -> list[int]:
    return ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_an_epoch_visits_each_image_once_with_a_short_last_batch() -> None:
    batches = batches_of(10, 4)
    assert len(batches) == 3
    epochs = [[numbers(batches(3 * epoch + k)) for k in range(3)] for epoch in range(3)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [4, 4, 2]
        assert sorted(chain(*epoch)) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]
    batch = batches_of(256, 256)(0)
    assert (batch.dtype, batch.min(), batch.max()) == (torch.float32, -1, 1)


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    forward, backward = batches_of(50, 8), batches_of(50, 8)
    seen = [forward(i) for i in range(20)]
    torch.manual_seed(5)
    for i in reversed(range(20)):
        batch = backward(i)
        assert torch.equal(batch, seen[i])
        batch.zero_()  # a batch is a copy: what is done to it stays out of the data
    assert torch.equal(backward(0), seen[0])
    assert numbers(seen[0]) != numbers(batches_of(50, 8, seed=2)(0))


@pytest.mark.parametrize(("n", "world", "steps", "last"), [(24, 2, 4, 6), (20, 2, 4, 2), (21, 2, 4, 2), (20, 3, 3, 6)])
def test_the_slices_of_all_ranks_make_the_batch(n: int, world: int, steps: int, last: int) -> None:
    one = batches_of(n, 6)
    ranks = [batches_of(n, 6, rank=rank, world=world) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {steps}
    for i in range(steps):
        parts = [numbers(batches(i)) for batches in ranks]
        assert len({len(part) for part in parts}) == 1
        whole = list(chain(*parts))
        assert len(whole) == (6 if i < steps - 1 else last)
        assert whole == numbers(one(i))[: len(whole)]
        for batches, part in zip(ranks, parts, strict=True):
            assert batches.indices(i).tolist() == whole  # image number k shows k
            assert batches.indices(i).chunk(world)[batches.rank].tolist() == part


@pytest.mark.parametrize(("batch", "world"), [(0, 1), (-1, 1), (11, 1), (8, 3)])
def test_a_batch_that_does_not_fit_data_or_processes_is_refused(batch: int, world: int) -> None:
    with pytest.raises(UserError, match=rf"--d-batch {batch}\b.*\b{10 if world == 1 else world}\b"):
        batches_of(10, batch, world=world)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_shapes_are_balanced_shuffled_and_come_from_the_seed() -> None:
    data, again, other = shapes(500), shapes(500), shapes(500, seed=1)
    assert data.images.shape == (500, 3, 32, 32)
    assert data.images.dtype == torch.uint8
    assert data.images.is_contiguous()
    assert data.labels.bincount().tolist() == [50] * 10
    assert not torch.equal(data.labels, torch.arange(500) % 10)
    assert torch.equal(data.images, again.images)
    assert data.digest == again.digest != other.digest
    assert (data.images.flatten(1).float().std(1) > 10).all()  # each shape stands out from its ground
    assert shapes(20, size=64).images.shape == (20, 3, 64, 64)
    assert load(Path("shapes"), 16).images.shape == (10_000, 3, 16, 16)


@pytest.mark.parametrize(("size", "digest"), [(32, "ccaa80d0a60a3a85"), slow(48, "69def2ec986bc6f8")])
def test_shapes_are_the_same_bytes_on_every_cpu(size: int, digest: str) -> None:
    assert shapes(size=size).digest == digest


def test_shapes_do_not_depend_on_the_width_of_vectors() -> None:
    """PyTorch chooses its kernels by it, which differs between CPUs."""
    env = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    code = "from common.data import shapes; print(shapes(200).digest)"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shapes(200).digest


def test_the_classes_of_shapes_differ() -> None:
    """Nearest class mean of the amplitude spectrum, which place does not change: chance is 0.1, measured 0.78."""
    data = shapes(3000)
    x = torch.fft.rfft2(data.images.float().mean(1)).abs().flatten(1)[:, 1:]
    x = (x / x.norm(dim=1, keepdim=True)).log1p()
    means = torch.stack([x[:2000][data.labels[:2000] == k].mean(0) for k in range(10)])
    right = torch.cdist(x[2000:], means).argmin(1) == data.labels[2000:]
    assert right.float().mean() > 0.6
    for k, name in enumerate(SHAPES):
        assert right[data.labels[2000:] == k].float().mean() > 0.3, name


# ---- folders and zips ------------------------------------------------------------------------------------------------

CLASSES = {"cat/1.png": 3, "cat/2.png": 2, "ant/9.png": 1, "dog/b/c/1.png": 5, "dog/a.png": 4, "dog/Z.PNG": 6}
CLUTTER = {".DS_Store": b"", "__MACOSX/cat/1.png": b"no image", "cat/.hidden.png": b"no image"}


RUNNING = {f"{i // 2:05d}/img{i:08d}.png": i for i in range(6)}  # buckets, as StyleGAN's tools write them
SPLIT = {"x/train/cat/1.png": 1, "x/train/dog/1.png": 2, "x/val/cat/1.png": 3, "x/val/dog/1.png": 4}
LISTED = json.dumps({"labels": [[name, i % 3] for name, i in RUNNING.items()]}).encode()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("files", "order", "labels", "classes"),
    [
        (CLASSES, [1, 3, 2, 6, 4, 5], [0, 1, 1, 2, 2, 2], ("ant", "cat", "dog")),
        ({f"my pets/{name}": i for name, i in CLASSES.items()}, [1, 3, 2, 6, 4, 5], [0, 1, 1, 2, 2, 2], ("ant", "cat", "dog")),
        ({"2.png": 2, "1.png": 1, "3.png": 3}, [1, 2, 3], None, ()),
        ({"b/1.png": 1, "a/2.png": 2, "c.png": 3}, [2, 1, 3], [0, 1, -1], ("a", "b")),
        ({"/b/1.png": 1, "a/2.png": 2}, [2, 1], [0, 1], ("a", "b")),
        (RUNNING, [*range(6)], None, ()),
        ({f"{i // 11:05d}/{i}.png": i for i in range(8, 13)}, [10, 8, 9, 11, 12], None, ()),  # 10 comes before 8
        (RUNNING | {"dataset.json": LISTED}, [*range(6)], [0, 1, 2, 0, 1, 2], ("0", "1", "2")),
        (RUNNING | {"dataset.json": b'{"labels": null}'}, [*range(6)], None, ()),
        ({f"{c}/{i}.png": 2 * c + i for c in range(3) for i in range(2)}, [*range(6)], [0, 0, 1, 1, 2, 2], ("0", "1", "2")),
        ({f"{i // 2}/{i}.png": i for i in range(6)}, [*range(6)], [0, 0, 1, 1, 2, 2], ("0", "1", "2")),
        ({f"1000{c}/{i}.png": 2 * c + i for c in range(2) for i in range(2)}, [*range(4)], [0, 0, 1, 1], ("10000", "10001")),
        (SPLIT, [1, 2], [0, 1], ("cat", "dog")),
        ({"test/test.png": 1, "toast/toast.png": 2}, [1, 2], [0, 1], ("test", "toast")),
        ({"a/1.png": 1, "a/@eaDir/1.png": b"", "b/1.png": 2, "b/@eaDir/1.png": b""}, [1, 2], [0, 1], ("a", "b")),
    ],
)  # fmt: skip
def test_labels_are_those_that_the_layout_means(packed: bool, files: dict, order: list, labels, classes, tmp_path: Path):
    """Files in the order of their names; what a system leaves beside them does not count."""
    contents = {name: png(x) if isinstance(x, int) else x for name, x in files.items()} | CLUTTER
    write(tmp_path, {"pets.zip": zipped(contents)} if packed else {f"pets/{k}": v for k, v in contents.items()})
    data = load(tmp_path / ("pets.zip" if packed else "pets"))
    assert (data.name, which(data), data.classes) == ("pets", order, classes)
    assert labels == (None if data.labels is None else data.labels.tolist())
    assert labels is None or data.labels.dtype == torch.int64
    assert data.images.shape == (len(order), 3, 32, 32)
    assert data.images.is_contiguous()
    assert data.images[1, :, 5, 5].tolist() == list(colour(order[1]))
    assert all(name in data.classes_note for name in classes)
    assert data.classes_note.startswith(f"{len(classes)} classes" if classes else "no classes")
    assert bool(data.note) == any("val/" in name for name in files)


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"1.png": png(1), "2.png": png(2)})
    write(tmp_path / "set", {"b/3.png": png(3)})
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    for up in ("up", "again"):  # two links back make 2**40 ways until the system calls it too many
        (tmp_path / "set" / "b" / up).symlink_to(tmp_path / "set")
    data = load(tmp_path / "set")
    assert which(data) == [1, 2, 3]
    assert data.labels.tolist() == [0, 0, 1]


def test_names_are_safe_as_file_names(tmp_path: Path) -> None:
    for given, name in [("my pets, 2.0", "my-pets-2.0"), ("ünï", "n"), ("...é", "images"), ("x" * 200, "x" * 60)]:
        assert load(write(tmp_path / given, {"1.png": png(), "2.png": png()})).name == name


def test_every_file_format_and_colour_mode(tmp_path: Path) -> None:
    for suffix, kind in {"bmp": "BMP", "gif": "GIF", "ppm": "PPM", "tif": "TIFF", "jpeg": "JPEG"}.items():
        write(tmp_path, {f"1.{suffix}": png(5, kind=kind)})
    write(tmp_path, {"1.webp": png(5, kind="WEBP", lossless=True)})
    for mode, suffix in (("RGBA", "png"), ("P", "png"), ("CMYK", "tif")):
        Image.new("RGB", (32, 32), colour(5)).convert(mode).save(tmp_path / f"2.{mode}.{suffix}")
    data = load(tmp_path)
    assert len(data.images) == 9
    assert (data.images.float().mean((2, 3)) - torch.tensor(colour(5))).abs().max() <= 3  # JPEG's loss

    modes = {"1.png": encoded(Image.new("L", (32, 32), 77)), "2.png": encoded(Image.new("1", (32, 32), 1))}
    assert load(write(tmp_path / "grey", modes)).images[:, :, 9, 9].tolist() == [[77] * 3, [255] * 3]


def test_exif_orientation_is_honoured_and_other_files_are_counted(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (0, 0, 64, 16))  # white above; orientation 6 shows it turned by 90° clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image, exif=exif)
    data = load(write(tmp_path, {"1.png": turned, "2.png": turned, "a.txt": b"", "b.csv": b"", "c": b""}))
    assert data.images[0, 0].float().mean(0)[[4, -5]].tolist() == [0, 255]
    assert "32x64" in data.note
    assert re.search(r"\b3\b", data.note)


def test_images_of_mixed_size_are_resized_and_cropped_to_the_size_that_they_need(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), (255, 0, 0))
    wide.paste((0, 0, 200), (32, 0, 64, 32))
    first = encoded(wide.resize((192, 64), Image.Resampling.NEAREST))
    write(tmp_path, {"1.png": first, "2.png": png(4, (24, 24)), "3.png": png(4, (32, 32))})
    refused(tmp_path, "24x24", "192x64", "--size")
    data = load(tmp_path, 32)
    assert "24x24 .. 192x64" in data.note
    assert data.images[0].float().mean((1, 2)).tolist() == [0, 0, 200]
    assert load(tmp_path, 64).images.shape == (3, 3, 64, 64)


def files_and_array(folder: Path, *shape: int) -> tuple[np.ndarray, Path, Path]:
    """Three images of this shape, as the files of a folder and as an .npz."""
    images = random_images(3, *shape, 3)
    files = {f"files/{i}.png": encoded(Image.fromarray(image)) for i, image in enumerate(images)}
    write(folder, files | {"x.npz": npz(images=images)})
    return images, folder / "files", folder / "x.npz"


@pytest.mark.parametrize(("shape", "own"), [((64, 64), 64), ((48, 80), 48), ((16, 16), 16)])
def test_without_a_size_images_keep_their_own(shape: tuple[int, int], own: int, tmp_path: Path) -> None:
    images, folder, array = files_and_array(tmp_path, *shape)
    cut = (shape[1] - own) // 2
    for path in (folder, array):
        assert np.array_equal(load(path).images.permute(0, 2, 3, 1), images[:, :, cut : cut + own])


@pytest.mark.parametrize("shape", [(64, 64), (40, 57), (57, 40), (20, 24)])
def test_arrays_and_files_are_resized_alike(shape: tuple[int, int], tmp_path: Path) -> None:
    _, folder, array = files_and_array(tmp_path, *shape)
    files, array = load(folder, 32), load(array, 32)
    assert (files.images.int() - array.images.int()).abs().max() <= 1
    assert f"{shape[1]}x{shape[0]}" in array.note


@pytest.mark.parametrize("side", [8, 30, 15, 36])
def test_an_own_size_that_no_network_makes_is_refused_and_one_is_named(side: int, tmp_path: Path) -> None:
    _, *paths = files_and_array(tmp_path, side, side)
    for path in paths:
        named = int(re.search(r"--size (\d+)", refused(path, f"{side}x{side}"))[1])
        assert load(path, named).images.shape[-1] == named


def load_npz(folder: Path, size: int = 0, **arrays: object) -> Dataset:
    return load(write(folder, {"x.npz": npz(**arrays)}) / "x.npz", size)


def test_npz(tmp_path: Path) -> None:
    images, labels = random_images(6, 32, 32, 3), np.array([0, 1, 2, 0, 1, -1], np.int16)
    data = load_npz(tmp_path, images=images, labels=labels, other=np.zeros(3))
    assert data.name == "x"
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), images)
    assert data.images.is_contiguous()
    assert data.labels.tolist() == labels.tolist()
    assert data.labels.dtype == torch.int64
    assert data.note == ""
    for no_labels in ({}, {"labels": np.full(6, -1)}):
        assert load_npz(tmp_path, images=images, **no_labels).labels is None
    np.savez_compressed(tmp_path / "small.npz", images=images)
    assert torch.equal(load(tmp_path / "small.npz").images, data.images)


def test_the_digest_tells_images_labels_and_sizes_apart(tmp_path: Path) -> None:
    images, zeros = random_images(6, 32, 32, 3), np.zeros((8, 32, 32, 3), np.uint8)
    sets = [{"images": x} for x in (images, images[::-1], zeros, zeros.reshape(2, 64, 64, 3))]
    sets += [{"images": images, "labels": np.arange(6) % n} for n in (2, 6)] + [{"images": images, "size": 16}]
    digests = {load_npz(tmp_path, **arrays).digest for arrays in sets}
    assert len(digests) == 7
    assert all(re.fullmatch(r"[0-9a-f]{16}", digest) for digest in digests)


# ---- torchvision's data sets, in small: its own readers on files of the true form, only the checksums are lifted -----


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of CIFAR-100 the fine labels, by their names."""
    from torchvision import datasets

    made, folder, kind, parts = {
        "cifar10": (datasets.CIFAR10, "cifar-10-batches-py", "", [f"data_batch_{i}" for i in range(1, 6)]),
        "cifar100": (datasets.CIFAR100, "cifar-100-python", "fine_", ["train"]),
    }[name]
    pixels = random_images(len(parts), 4, 3072)
    labels = np.random.default_rng(0).integers(0, 10, (len(parts), 4)).tolist()
    names = [f"kind {i}" for i in range(int(name[5:]))]
    files = {part: {"data": x, f"{kind}labels": y} for part, x, y in zip(parts, pixels, labels, strict=True)}
    test, meta = ("test_batch", "batches.meta") if name == "cifar10" else ("test", "meta")
    files |= {test: {"data": pixels[0, :1], f"{kind}labels": [0]}, meta: {f"{kind}label_names": names}}
    write(tmp_path / folder, {part: pickle.dumps(content) for part, content in files.items()})
    monkeypatch.setattr(made, "train_list", [[part, None] for part in parts])
    monkeypatch.setattr(made, "test_list", [[test, None]])
    monkeypatch.setattr(made, "meta", made.meta | {"md5": None})
    data = load_dataset(name, tmp_path)
    assert (data.name, data.labels.tolist(), data.classes) == (name, list(chain(*labels)), tuple(names))
    assert np.array_equal(data.images.numpy(), pixels.reshape(-1, 3, 32, 32))


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    pixels = random_images(5, 3, 96, 96)
    columns = pixels.transpose(0, 1, 3, 2)  # its files go down the columns, and count classes from 1
    files = {"train_X": columns[:3], "train_y": np.array([1, 10, 4], np.uint8), "unlabeled_X": columns[3:]}
    files |= {"test_X": columns[:1], "test_y": np.array([1], np.uint8)}
    write(tmp_path / "stl10_binary", {f"{name}.bin": array.tobytes() for name, array in files.items()})
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(STL10, part, [[name, None] for name, _ in getattr(STL10, part)])
    data = load_dataset("stl10", tmp_path)
    assert data.images.shape == (5, 3, 48, 48)
    assert data.labels.tolist() == [0, 9, 3, -1, -1]
    small = np.stack([np.asarray(Image.fromarray(x.transpose(1, 2, 0)).resize((48, 48), 2)) for x in pixels])  # bilinear
    assert np.abs(data.images.permute(0, 2, 3, 1).numpy().astype(int) - small).max() <= 1
    assert "96x96" in data.note
    assert np.array_equal(load_dataset("stl10", tmp_path, 96).images.numpy(), pixels)


def test_celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CelebA

    names = [f"00000{i}.jpg" for i in range(1, 6)]
    head = "5\nSmiling Young\n"
    lists = {  # heading, and a line for each face; 000004 is for validation
        "list_eval_partition": ("", "{} {split}\n"),
        "identity_CelebA": ("", "{} 7\n"),
        "list_bbox_celeba": (head, "{} 1 2 3 4\n"),
        "list_landmarks_align_celeba": (head, "{} 1 2 3 4 5 6 7 8 9 10\n"),
        "list_attr_celeba": (head, "{} 1 -1\n"),
    }
    for stem, (first, line) in lists.items():
        text = first + "".join(line.format(name, split=int(i == 3)) for i, name in enumerate(names))
        write(tmp_path / "celeba", {f"{stem}.txt": text.encode()})
    faces = {name: png(i, (178, 218), "JPEG", quality=95) for i, name in enumerate(names)}
    write(tmp_path / "celeba" / "img_align_celeba", faces)
    monkeypatch.setattr(CelebA, "file_list", [(key, None, name) for key, _, name in CelebA.file_list])
    data = load_dataset("celeba", tmp_path)
    assert data.name == "celeba"
    assert data.images.shape == (4, 3, 64, 64)
    assert which(data) == [0, 1, 2, 4]
    assert data.labels is None
    assert "178x218" in data.note


@pytest.mark.parametrize(
    ("name", "file"),
    [("cifar10", "cifar-10-python.tar.gz"), ("stl10", "stl10_binary.tar.gz"), ("celeba", "img_align_celeba.zip")],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_download_that_fails_names_what_to_put_where(name: str, file: str, cut: bool, tmp_path: Path, monkeypatch) -> None:
    """And keeps an archive that was cut."""
    from torchvision.datasets import celeba

    def no_network(*_: object, **__: object) -> None:
        raise Exception("no route\nto host")  # not an OSError: gdown's errors have no base of their own

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(celeba, "download_file_from_google_drive", no_network)
    if cut:
        (tmp_path / file).write_bytes(b"the beginning")
    text = refused(name, f"--dataset {name}", tmp_path, "no route to host", file, data_dir=tmp_path)
    assert ("--dataset shapes" in text) == (not cut or name == "celeba")
    assert (tmp_path / file).exists() == cut


# ---- more images than memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [3071, 3072])
def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_read(left: int, tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "folder", {"1.png": png(), "2.png": png()})
    monkeypatch.setattr(common.data, "memory_left", lambda: 2 * left)  # two images of 32 px have 6,144 bytes
    if left == 3072:
        assert len(load_dataset(str(tmp_path / "folder"), tmp_path).images) == 2
    else:
        refused(tmp_path / "folder", "folder", "--size")
    arrays = {"images": random_images(2, 16, 32, 3)}
    (tmp_path / "x.npz").write_bytes(npz(**arrays))
    refused(tmp_path / "x.npz", "x.npz")


def test_memory_that_runs_out_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    write(tmp_path, {"1.png": png(), "2.png": png()})
    (tmp_path / "x.npz").write_bytes(npz(images=random_images(2, 16, 16, 3)))
    monkeypatch.setattr(common.data.np, "empty", full)
    monkeypatch.setattr(common.data.np, "load", full)
    refused(tmp_path, str(tmp_path), "--size")
    refused(tmp_path / "x.npz", "x.npz", "--size")


def test_batches_of_images_that_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The "meta" device stands in for a GPU: it has shapes, and no contents."""
    data = Dataset("x", torch.zeros(6, 3, 16, 16, dtype=torch.uint8), None, "0")
    args = SimpleNamespace(d_batch=4, seed=0)
    monkeypatch.setattr(common.gan, "free_memory", lambda _: 2 * data.images.nbytes - 1)
    job = common.gan.Job(args, Ranks(torch.device("meta")), None, data)
    assert job.images is data.images
    assert (job.batches(0).device.type, job.batches(1).shape) == ("meta", (2, 3, 16, 16))
    monkeypatch.setattr(common.gan, "free_memory", lambda _: 2 * data.images.nbytes)
    assert common.gan.Job(args, Ranks(torch.device("meta")), None, data).images.device.type == "meta"


# ---- labels, and what lies above, beside and in the images ------------------------------------------------------------


def test_backslashes_in_a_zip_separate_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("cat", "dog"):
            member = zipfile.ZipInfo("x")
            member.filename = f"pets\\{name}\\1.png"
            archive.writestr(member, png())
    assert load(tmp_path / "x.zip").classes == ("cat", "dog")


def test_16_bit_and_one_channel_images_are_scaled_and_said(tmp_path: Path) -> None:
    deep, grey = encoded(Image.new("I;16", (32, 32), 100 * 257)), encoded(Image.new("L", (32, 32), 100))
    data = load(write(tmp_path, {"1.png": deep, "2.png": grey}))
    assert data.images.unique().tolist() == [100]
    assert "16-bit" in data.note
    assert "one-channel" in data.note


REAL = REAL_DATA / "cifar10_train.npz"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason=f"no {REAL} (GAN_NAS_DATA)")
def test_real_cifar10_has_its_known_mean_and_deviation() -> None:
    data = load(REAL)
    assert data.images.shape == (50_000, 3, 32, 32)
    assert data.labels.bincount().tolist() == [5000] * 10
    found = [torch.std_mean(channel / 255) for channel in data.images.unbind(1)]
    assert [round(mean.item(), 4) for _, mean in found] == [0.4914, 0.4822, 0.4465]
    assert [round(std.item(), 4) for std, _ in found] == [0.2470, 0.2435, 0.2616]


# ---- what cannot be loaded -------------------------------------------------------------------------------------------


def test_sizes_names_and_paths_that_are_none_are_refused(tmp_path: Path) -> None:
    for size in (8, 20, -32, 33):
        refused("shapes", size, size=size)
    for name, nearest in (("cifar", "cifar10"), ("Shapes", "shapes"), ("celebA", "celeba")):
        text = refused(name, f"--dataset {name}", *SIZES)
        assert len(re.findall(rf"\b{nearest}\b", text)) == 2  # among all names, and as the one meant
    refused(tmp_path / "absent", f"--dataset {tmp_path}/absent")
    refused("", "--dataset")
    refused("x" * 5000, "xxx")
    (tmp_path / "x.tar").touch()
    os.mkfifo(tmp_path / "x.zip")
    for name in ("x.tar", "x.zip"):
        refused(tmp_path / name, name, ".zip", ".npz")


def noise(kind: str = "PNG") -> bytes:
    """An image of some length in bytes."""
    return encoded(Image.effect_noise((32, 32), 50), kind)


BROKEN = [b"no image at all", b"", noise()[:600], noise("JPEG")[:500], noise()[:200] + bytes(200) + noise()[400:]]


BAD_LISTS = [b"[1]", b"{", b'{"labels": [["1.png", 0]]}', b'{"labels": [["1.png", 0.5], ["2.png", 1]]}']


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        *(({}, [".png"]), ({"a/notes.txt": b"x"}, [".png"]), ({".hidden.png": b"x"}, [".png"]), ({"a.png": png()}, [1])),
        *(({"a/1.png": png(), "a/2.png": data, "a/3.png": png()}, ["a/2.png"]) for data in BROKEN),
        ({"1.png": png(), "deep.png": encoded(Image.new("F", (32, 32), 0.5), "TIFF")}, ["deep.png", 8]),
        ({"1.png": b"x", "2.png": png(), "3.png": b"y", "4.png": png()}, ["1.png", "3.png", 2]),
        *(({"1.png": png(), "2.png": png(), "dataset.json": text}, ["dataset.json"]) for text in BAD_LISTS),
    ],
)
def test_a_folder_or_zip_without_two_readable_images_is_refused(files: dict, parts: list, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    refused(write(tmp_path / "set", files), "set", *parts)
    refused(write(tmp_path, {"pack.zip": zipped(files)}) / "pack.zip", "pack", *parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("side", "limit"), [(40, 1100), (64, 2200)])
def test_an_image_over_the_pixel_limit_is_refused(side: int, limit: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1100)  # up to twice that Pillow only warns
    refused(write(tmp_path, {"1.png": png(), "2.png": png(0, (side, side)), "3.png": png()}), "2.png", limit)


def test_a_pipe_or_a_dead_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"1.png": png()})
    os.mkfifo(tmp_path / "2.png")
    refused(tmp_path, "2.png")
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").symlink_to("gone.png")
    refused(tmp_path, "2.png")


def test_what_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    write(tmp_path, {"x.zip": b"", "x.npz": b"", "a/sub/1.png": png(), "b/1.png": png(), "b/2.png": png()})
    closed = [tmp_path / name for name in ("x.zip", "x.npz", "a/sub", "b/2.png")]
    for path in (tmp_path, *tmp_path.parents):  # however deep pytest put it
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
    for path in closed:
        path.chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything
    try:
        for name in ("x.zip", "x.npz", "a", "a/sub/y.zip"):  # not what the parsers of zip and .npz say
            assert "Errno" not in refused(tmp_path / name, name, "Permission denied")
        refused(tmp_path / "a", "a/sub", "Permission denied")
        refused(tmp_path / "b", "2.png", "Permission denied")
    finally:
        os.seteuid(user)
        for path in closed:
            path.chmod(0o755)


def flipped(data: bytes, bits: int, *places: int) -> bytes:
    """The data with these bits turned over in the bytes at these places."""
    copy = bytearray(data)
    for place in places:
        copy[place] ^= bits
    return bytes(copy)


ZIP = zipped({"1.png": noise(), "2.png": noise()})
FLAGS = (ZIP.index(b"PK\3\4") + 6, ZIP.index(b"PK\1\2") + 8)  # of the first member, and in the list of contents
BOMB = zipped({"1.png": png(), "2.png": bytes(65 * 2**20)}, zipfile.ZIP_DEFLATED)


IMAGES = np.zeros((4, 32, 32, 3), np.uint8)
NPZ = npz(images=IMAGES)


WRONG_IMAGES = (IMAGES / 2, IMAGES[:, 0], IMAGES[..., :2], IMAGES[:0])
WRONG_LABELS = (IMAGES[:3, 0, 0, 0], IMAGES[..., 0, :1, 0], np.zeros(4), np.zeros(4, bool))


def header(*shape: int) -> bytes:
    """The beginning of an array's file."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "data", "parts"),
    [
        ("x.zip", b"hello", []),
        ("x.zip", ZIP[:-30], []),
        ("x.zip", flipped(ZIP, 255, len(ZIP) // 2 + 200), ["2.png"]),
        ("x.zip", flipped(ZIP, 1, *FLAGS), ["1.png"]),
        ("x.zip", BOMB, ["2.png", 65 * 2**20, 64 * 2**20]),
        ("x.npz", npz(x=IMAGES, y=IMAGES), ["'images'", "x, y"]),
        *(("x.npz", npz(images=x), ["images", x.dtype, x.shape]) for x in WRONG_IMAGES),
        *(("x.npz", npz(images=IMAGES, labels=x), ["labels", x.dtype, x.shape]) for x in WRONG_LABELS),
        ("x.npz", npz(images=IMAGES, labels=np.array([0, 1, -2, 1])), ["labels", -2]),
        ("x.npz", npz(images=IMAGES, labels=np.array([0, 1, 2, 2**64 - 1], np.uint64)), ["labels", 2**64 - 1]),
        ("x.npz", npz(images=IMAGES.astype(object)), []),
        ("x.npz", npz(images=IMAGES, labels=np.zeros(4, object)), []),
        ("x.npz", flipped(NPZ, 255, len(NPZ) // 2), []),
        ("x.npz", zipped({"images.npy": header(10**9, 999, 999, 3)}), []),  # more than any machine holds
        ("x.npz", zipped({"images.npy": b"no array"}), ["images"]),
        ("x.npz", header(4, 32, 32, 3) + IMAGES.tobytes(), []),  # a .npy
    ],
)
def test_a_zip_or_npz_of_other_things_is_refused(file: str, data: bytes, parts: list[object], tmp_path: Path) -> None:
    refused(write(tmp_path, {file: data}) / file, file, *parts)
