"""Data sets of good form: the built-in shapes, every loader, and the batches made of them."""

import io
import os
import pickle
import re
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import SHAPES, Batches, Dataset, load_dataset, shapes
from common.files import UserError

ROOT = Path(__file__).parent.parent
REAL = Path(os.environ.get("GAN_NAS_DATA", ROOT.parent / "shared" / "data"))


def counted(n: int) -> torch.Tensor:
    """n images, each filled with its own number."""
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 4, 4).contiguous()


def numbers(batch: torch.Tensor) -> list[int]:
    return ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def colour(i: int) -> tuple[int, int, int]:
    return 20 * i, 255 - 20 * i, 7 * i


def png(i: int = 0, size: tuple[int, int] = (32, 32), kind: str = "PNG", **save: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour(i)).save(file, kind, **save)
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def load(path: Path, size: int = 0) -> Dataset:
    return load_dataset(str(path), Path("nowhere"), size)


def which(data: Dataset) -> list[int]:
    """The i of colour(i) of each image."""
    return (data.images[:, 0].float().mean((1, 2)) / 20).round().int().tolist()


# Batches


def test_batch_values():
    images = torch.arange(2 * 3 * 8 * 16, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 3, 8, 16)
    batch = Batches(images, 2, seed=0, device="cpu")(0)
    assert batch.dtype == torch.float32
    assert batch.shape == (2, 3, 8, 16)
    assert batch.min() == -1
    assert batch.max() == 1
    assert torch.equal(batch.sort(0).values, (images / 127.5 - 1).sort(0).values)


def test_epoch_visits_each_image_once_with_a_short_last_batch():
    batches = Batches(counted(10), 4, seed=3, device="cpu")
    assert len(batches) == 3
    epochs = [[numbers(batches(3 * epoch + k)) for k in range(3)] for epoch in range(3)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [4, 4, 2]
        assert sorted(chain(*epoch)) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]


def test_batch_is_a_pure_function_of_seed_and_step():
    forward, backward = (Batches(counted(50), 8, seed=1, device="cpu") for _ in range(2))
    seen = [forward(i) for i in range(20)]
    for i in reversed(range(20)):
        assert torch.equal(backward(i), seen[i])
    torch.manual_seed(5)
    seen[0].zero_()  # a batch is a copy: what is done to it stays out of the data
    assert numbers(forward(0)) == numbers(Batches(counted(50), 8, seed=1, device="cpu")(0))
    assert numbers(forward(0)) != numbers(Batches(counted(50), 8, seed=2, device="cpu")(0))


@pytest.mark.parametrize(("n", "world", "steps", "last"), [(24, 2, 4, 6), (20, 2, 4, 2), (21, 2, 4, 2), (20, 3, 3, 6)])
def test_rank_slices_concatenate_to_the_batch(n: int, world: int, steps: int, last: int):
    one = Batches(counted(n), 6, seed=0, device="cpu")
    ranks = [Batches(counted(n), 6, seed=0, device="cpu", rank=rank, world=world) for rank in range(world)]
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_equal_the_cpu_and_do_not_wait():
    images = shapes(100).images
    gpu, cpu = Batches(images, 32, 0, "cuda"), Batches(images, 32, 0, "cpu")
    assert torch.equal(gpu(0).cpu(), cpu(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = gpu(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(second.cpu(), cpu(1))


# Shapes


def test_shapes_are_balanced_shuffled_and_come_from_the_seed():
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
    assert load_dataset("shapes", Path("nowhere"), 16).images.shape == (10_000, 3, 16, 16)


def test_shapes_classes_differ():
    """Nearest class mean of the amplitude spectrum, which place does not change: chance is 0.1, measured 0.78."""
    data = shapes(3000)
    x = torch.fft.rfft2(data.images.float().mean(1)).abs().flatten(1)[:, 1:]
    x = (x / x.norm(dim=1, keepdim=True)).log1p()
    means = torch.stack([x[:2000][data.labels[:2000] == k].mean(0) for k in range(10)])
    right = torch.cdist(x[2000:], means).argmin(1) == data.labels[2000:]
    assert right.float().mean() > 0.6
    for k in range(10):
        assert right[data.labels[2000:] == k].float().mean() > 0.3, list(SHAPES)[k]


# Folders and zips


CLASSES = {"cat/1.png": 3, "cat/2.png": 2, "ant/9.png": 1, "dog/b/c/1.png": 5, "dog/a.png": 4, "dog/Z.PNG": 6}


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a top folder"])
def test_class_folders(form: str, tmp_path: Path):
    files = {name: png(i) for name, i in CLASSES.items()}
    clutter = {
        ".DS_Store": b"",
        "__MACOSX/cat/1.png": b"no image",
        "cat/.hidden.png": b"no image",
        "READ ME.txt": b"",
    }
    files |= clutter if form != "zip with a top folder" else {}
    if form == "folder":
        data = load(write(tmp_path / "pets", files))
    else:
        top = "my pets/" if form == "zip with a top folder" else ""
        data = load(pack(tmp_path / "pets.zip", {top + name: file for name, file in files.items()}))
    assert data.name == "pets"
    assert which(data) == [1, 3, 2, 6, 4, 5]  # sorted by path
    assert data.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert data.labels.dtype == torch.int64
    assert data.images.shape == (6, 3, 32, 32)
    assert data.images.is_contiguous()
    assert data.images[1, :, 5, 5].tolist() == list(colour(3))
    assert data.note == ("" if "top" in form else "(other files left out: 1)")


def test_zip_made_with_absolute_paths(tmp_path: Path):
    data = load(pack(tmp_path / "x.zip", {"/b/1.png": png(1), "a/2.png": png(2)}))
    assert which(data) == [2, 1]
    assert data.labels.tolist() == [0, 1]


def test_flat_folder_has_no_labels(tmp_path: Path):
    data = load(write(tmp_path / "flat", {f"{i}.png": png(i) for i in (2, 1, 3)}))
    assert data.labels is None
    assert which(data) == [1, 2, 3]


def test_images_beside_class_folders_are_unlabelled(tmp_path: Path):
    data = load(write(tmp_path, {"b/1.png": png(1), "a/2.png": png(2), "c.png": png(3)}))
    assert which(data) == [2, 1, 3]
    assert data.labels.tolist() == [0, 1, -1]


def test_links_are_followed_but_not_for_ever(tmp_path: Path):
    write(tmp_path / "elsewhere", {"1.png": png(1), "2.png": png(2)})
    write(tmp_path / "set", {"b/3.png": png(3)})
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    for up in ("up", "again"):  # two links back make 2**40 ways until the system calls it too many
        (tmp_path / "set" / "b" / up).symlink_to(tmp_path / "set")
    data = load(tmp_path / "set")
    assert which(data) == [1, 2, 3]
    assert data.labels.tolist() == [0, 0, 1]


def test_names_are_safe_as_file_names(tmp_path: Path):
    for given, name in [("my pets, 2.0", "my-pets-2.0"), ("ünï", "n"), ("...é", "images"), ("x" * 200, "x" * 60)]:
        data = load(write(tmp_path / given, {"1.png": png(1), "2.png": png(2)}))
        assert data.name == name
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", data.name)


def test_every_file_format_and_colour_mode(tmp_path: Path):
    for suffix, kind in {"bmp": "BMP", "gif": "GIF", "ppm": "PPM", "tif": "TIFF", "jpeg": "JPEG"}.items():
        write(tmp_path, {f"1.{suffix}": png(5, kind=kind)})
    write(tmp_path, {"1.webp": png(5, kind="WEBP", lossless=True)})
    for mode in ("RGBA", "P", "CMYK"):
        Image.new("RGB", (32, 32), colour(5)).convert(mode).save(tmp_path / f"2.{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    data = load(tmp_path)
    assert len(data.images) == 9
    assert (data.images.float().mean((2, 3)) - torch.tensor(colour(5))).abs().max() <= 3  # JPEG's loss

    write(tmp_path / "grey", {"1.png": png(0)})
    Image.new("L", (32, 32), 77).save(tmp_path / "grey" / "2.png")
    Image.new("1", (32, 32), 1).save(tmp_path / "grey" / "3.png")
    assert load(tmp_path / "grey").images[1:, :, 9, 9].tolist() == [[77] * 3, [255] * 3]


def test_exif_orientation_is_honoured(tmp_path: Path):
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (0, 0, 64, 16))  # white above; orientation 6 shows it turned by 90° clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("1.png", "2.png"):
        image.save(tmp_path / name, exif=exif)
    data = load(tmp_path)
    assert data.images[0, 0].float().mean(0)[[4, -5]].tolist() == [0, 255]
    assert data.note == "2 images of 32x64: shorter side resized to 32 px, centre-cropped"


def test_images_of_mixed_size_are_resized_and_cropped(tmp_path: Path):
    wide = Image.new("RGB", (96, 32), (255, 0, 0))
    wide.paste((0, 0, 200), (32, 0, 64, 32))
    wide.resize((192, 64), Image.Resampling.NEAREST).save(tmp_path / "1.png")
    write(tmp_path, {"2.png": png(4, (24, 24)), "3.png": png(4, (32, 32))})
    data = load(tmp_path, 32)
    assert data.note == "3 images of mixed size (24x24 .. 192x64): shorter side resized to 32 px, centre-cropped"
    assert data.images[0].float().mean((1, 2)).tolist() == [0, 0, 200]
    assert load(tmp_path, 64).images.shape == (3, 3, 64, 64)


@pytest.mark.parametrize(("shape", "own"), [((64, 64), 64), ((48, 80), 48), ((16, 16), 16)])
def test_without_a_size_images_keep_their_own(shape: tuple[int, int], own: int, tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    np.savez(tmp_path / "x.npz", images=images)
    files, array = load(tmp_path), load(tmp_path / "x.npz")
    assert files.images.shape == array.images.shape == (3, 3, own, own)
    assert torch.equal(files.images, array.images)
    cut = (shape[1] - own) // 2
    assert np.array_equal(array.images.permute(0, 2, 3, 1), images[:, :, cut : cut + own])


@pytest.mark.parametrize("side", [8, 30, 15, 36])
def test_an_own_size_that_no_network_makes_is_refused_and_one_is_named(side: int, tmp_path: Path):
    np.savez(tmp_path / "x.npz", images=np.zeros((3, side, side, 3), np.uint8))
    write(tmp_path, {f"{i}.png": png(i, (side, side)) for i in range(3)})
    for path in (tmp_path, tmp_path / "x.npz"):
        with pytest.raises(UserError, match=rf"{side}x{side}.*--size (\d+)") as refusal:
            load(path)
        named = int(re.search(r"--size (\d+)", str(refusal.value))[1])
        assert load(path, named).images.shape[-1] == named


def test_images_of_several_sizes_need_a_size(tmp_path: Path):
    write(tmp_path, {f"{i}.png": png(i, (32, 32)) for i in range(20)} | {"a.png": png(0, (48, 32))})
    with pytest.raises(UserError, match=r"32x32 \.\. 48x32.*--size"):
        load(tmp_path)


# Arrays


def test_npz(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 2, 0, 1, -1], np.int16), other=np.zeros(3))
    np.savez_compressed(tmp_path / "b.npz", images=images)
    a, b = load(tmp_path / "a.npz"), load(tmp_path / "b.npz")
    assert (a.name, b.name) == ("a", "b")
    assert np.array_equal(a.images.permute(0, 2, 3, 1).numpy(), images)
    assert a.images.is_contiguous()
    assert a.labels.tolist() == [0, 1, 2, 0, 1, -1]
    assert a.labels.dtype == torch.int64
    assert a.note == ""
    assert b.labels is None
    np.savez(tmp_path / "none.npz", images=images, labels=np.full(6, -1))
    assert load(tmp_path / "none.npz").labels is None

    images[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "c.npz", images=images)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(6))
    np.savez(tmp_path / "e.npz", images=images, labels=np.arange(6) % 2)
    np.savez(tmp_path / "f.npz", images=np.zeros((8, 32, 32, 3), np.uint8))
    digests = [load(tmp_path / f"{name}.npz").digest for name in "abcdef"] + [load(tmp_path / "a.npz", 16).digest]
    np.savez(tmp_path / "g.npz", images=np.zeros((2, 64, 64, 3), np.uint8))  # the bytes of f, at another size
    digests.append(load(tmp_path / "g.npz", 64).digest)
    assert len(set(digests)) == 8
    assert all(re.fullmatch(r"[0-9a-f]{16}", digest) for digest in digests)


@pytest.mark.parametrize("shape", [(64, 64), (40, 57), (57, 40), (20, 24)])
def test_arrays_and_files_are_resized_alike(shape: tuple[int, int], tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    np.savez(tmp_path / "x.npz", images=images)
    files, array = load(tmp_path, 32), load(tmp_path / "x.npz", 32)
    assert (files.images.int() - array.images.int()).abs().max() <= 1
    assert array.note == f"3 images of {shape[1]}x{shape[0]}: shorter side resized to 32 px, centre-cropped"


# torchvision's data sets, in small: its own readers on files of the true form, only the checksums are lifted


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (5, 4, 3072), dtype=np.uint8), rng.integers(0, 10, (5, 4)).tolist()
    names = [f"data_batch_{i + 1}" for i in range(5)]
    batches = {name: {"data": pixels[i], "labels": labels[i]} for i, name in enumerate(names)}
    batches |= {
        "test_batch": {"data": pixels[0, :1], "labels": [0]},
        "batches.meta": {"label_names": list("abcdefghij")},
    }
    write(tmp_path / "cifar-10-batches-py", {name: pickle.dumps(batch) for name, batch in batches.items()})
    monkeypatch.setattr(CIFAR10, "train_list", [[name, None] for name in names])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
    data = load_dataset("cifar10", tmp_path)
    assert data.name == "cifar10"
    assert np.array_equal(data.images.numpy(), pixels.reshape(20, 3, 32, 32))
    assert data.labels.tolist() == list(chain(*labels))


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import STL10

    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
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
    assert data.note == "5 images of 96x96: shorter side resized to 48 px, centre-cropped"
    assert np.array_equal(load_dataset("stl10", tmp_path, 96).images.numpy(), pixels)


def test_celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import CelebA

    names = [f"00000{i}.jpg" for i in range(1, 6)]
    rows = {
        "list_eval_partition": "{} {split}\n",
        "identity_CelebA": "{} 7\n",
        "list_bbox_celeba": "{} 1 2 3 4\n",
        "list_landmarks_align_celeba": "{} 1 2 3 4 5 6 7 8 9 10\n",
        "list_attr_celeba": "{} 1 -1\n",
    }
    for stem, row in rows.items():
        head = "" if stem in ("list_eval_partition", "identity_CelebA") else "5\nSmiling Young\n"
        text = head + "".join(row.format(name, split=int(i == 3)) for i, name in enumerate(names))  # 000004: validation
        write(tmp_path / "celeba", {f"{stem}.txt": text.encode()})
    faces = {name: png(i, (178, 218), "JPEG", quality=95) for i, name in enumerate(names)}
    write(tmp_path / "celeba" / "img_align_celeba", faces)
    monkeypatch.setattr(CelebA, "file_list", [(key, None, name) for key, _, name in CelebA.file_list])
    data = load_dataset("celeba", tmp_path)
    assert data.name == "celeba"
    assert data.images.shape == (4, 3, 64, 64)
    assert which(data) == [0, 1, 2, 4]
    assert data.labels is None
    assert data.note == "4 images of 178x218: shorter side resized to 64 px, centre-cropped"


# The real thing


@pytest.mark.skipif(not (REAL / "cifar10_train.npz").exists(), reason=f"no cifar10_train.npz in {REAL} (GAN_NAS_DATA)")
def test_real_cifar10():
    data = load(REAL / "cifar10_train.npz")
    assert data.images.shape == (50_000, 3, 32, 32)
    assert data.labels.bincount().tolist() == [5000] * 10
    parts = data.images.split(1000)
    mean = torch.stack([part.float().mean((0, 2, 3)) for part in parts]).double().mean(0) / 255
    square = torch.stack([part.float().square().mean((0, 2, 3)) for part in parts]).double().mean(0) / 255**2
    assert [round(x, 4) for x in mean.tolist()] == [0.4914, 0.4822, 0.4465]
    assert [round(x, 4) for x in (square - mean**2).sqrt().tolist()] == [0.2470, 0.2435, 0.2616]
