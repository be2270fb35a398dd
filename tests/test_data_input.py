"""Bad input ends in one line that names the thing and the remedy."""

import io
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import Batches, load_dataset
from common.files import UserError


def png(size: tuple[int, int] = (32, 32), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).save(file, kind)
    return file.getvalue()


def pack(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def refused(name: object, *parts: str, size: int = 0, data_dir: Path = Path("data")) -> None:
    """Loading must end in one line with all the parts in it."""
    with pytest.raises(UserError) as caught:
        load_dataset(str(name), data_dir, size)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("size", [8, 20, -32, 33])
def test_size(size: int):
    refused("shapes", f"image size {size}", "multiple of 8", size=size)


@pytest.mark.parametrize(("name", "hint"), [("cifar", "cifar10"), ("Shapes", "shapes"), ("celebA", "celeba")])
def test_unknown_name_suggests_the_nearest(name: str, hint: str):
    refused(name, f"--dataset {name}: ", "shapes, cifar10, stl10, celeba", f"did you mean {hint}?")


def test_path_that_is_not_there(tmp_path: Path):
    refused(tmp_path / "absent", f"--dataset {tmp_path}/absent", "nor a path that exists")
    refused("", "nor a path that exists")
    refused("x" * 5000, "cannot be read (File name too long)")


def test_unknown_type(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(b"")
    refused(tmp_path / "x.tar", "x.tar: unknown type", "folder", ".zip", ".npz")
    os.mkfifo(tmp_path / "x.zip")
    refused(tmp_path / "x.zip", "unknown type")


@pytest.mark.parametrize("files", [{}, {"a/notes.txt": b"x"}, {".hidden.png": b"x"}])
def test_no_image(files: dict[str, bytes], tmp_path: Path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "set" / name).write_bytes(data)
    refused(tmp_path / "set", "set: no image in it", ".png")
    refused(pack(tmp_path / "set.zip", files), "set.zip: no image in it", ".png")


def test_one_image(tmp_path: Path):
    (tmp_path / "1.png").write_bytes(png())
    refused(tmp_path, "1 image", "at least 2")
    np.savez(tmp_path / "x.npz", images=np.zeros((1, 32, 32, 3), np.uint8))
    refused(tmp_path / "x.npz", "1 image", "at least 2")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no image at all", "unknown format"),
        (b"", "unknown format"),
        (png()[:600], "truncated"),
        (png(kind="JPEG")[:500], "truncated"),
        (png()[:200] + bytes(200) + png()[400:], "broken"),
    ],
)
def test_broken_image(data: bytes, reason: str, tmp_path: Path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    for name in ("1.png", "3.png"):
        (tmp_path / "set" / "a" / name).write_bytes(png())
    (tmp_path / "set" / "a" / "2.png").write_bytes(data)
    refused(tmp_path / "set", "set: a/2.png: not readable as an image", reason, "mend or remove")
    refused(pack(tmp_path / "set.zip", {"1.png": png(), "b/2.png": data}), "set.zip: b/2.png: not readable", reason)


def test_image_of_more_than_8_bits(tmp_path: Path):
    Image.new("I;16", (32, 32), 40_000).save(tmp_path / "deep.png")
    (tmp_path / "flat.png").write_bytes(png())
    refused(tmp_path, "deep.png", "more than 8 bits")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("side", "limit"), [(40, "limit of 1100 pixels"), (64, "limit of 2200 pixels")])
def test_image_over_the_pixel_limit(side: int, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1100)  # up to twice that Pillow only warns
    for name, n in [("1.png", 32), ("2.png", side), ("3.png", 32)]:
        (tmp_path / name).write_bytes(png((n, n)))
    refused(tmp_path, "2.png", limit)


def test_zip_member_that_inflates_too_far(tmp_path: Path):
    files = {"1.png": png(), "2.png": bytes(65 * 2**20)}
    path = pack(tmp_path / "bomb.zip", files, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    refused(path, "bomb.zip: 2.png", f"inflates to {65 * 2**20} bytes", f"limit of {64 * 2**20}")


def test_not_a_zip(tmp_path: Path):
    (tmp_path / "x.zip").write_bytes(b"hello")
    refused(tmp_path / "x.zip", "x.zip: not a readable zip")
    whole = pack(tmp_path / "y.zip", {"1.png": png(), "2.png": png()}).read_bytes()
    (tmp_path / "y.zip").write_bytes(whole[:-30])
    refused(tmp_path / "y.zip", "y.zip: not a readable zip")


def test_damaged_zip_member(tmp_path: Path):
    path = pack(tmp_path / "x.zip", {"1.png": png(), "2.png": png()})
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 200] ^= 255  # in the second member
    path.write_bytes(data)
    refused(path, "x.zip: 2.png", "Bad CRC-32")


def test_encrypted_zip(tmp_path: Path):
    path = pack(tmp_path / "x.zip", {"1.png": png(), "2.png": png()})
    data = path.read_bytes()
    local, central = data.index(b"PK\3\4"), data.index(b"PK\1\2")
    flagged = bytearray(data)
    flagged[local + 6] |= 1
    flagged[central + 8] |= 1
    path.write_bytes(flagged)
    refused(path, "x.zip: 1.png", "encrypted", "password")


def test_folder_with_a_pipe_or_a_dead_link(tmp_path: Path):
    (tmp_path / "1.png").write_bytes(png())
    os.mkfifo(tmp_path / "2.png")
    refused(tmp_path, "2.png", "not a regular file")
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").symlink_to("gone.png")
    refused(tmp_path, "2.png", "not a regular file")


def test_no_permission(tmp_path: Path):
    for name in ("folder/sub/1.png", "folder/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    pack(tmp_path / "x.zip", {"1.png": png()})
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 32, 32, 3), np.uint8))
    for path in (tmp_path, *tmp_path.parents):  # however deep pytest put it
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
    closed = [tmp_path / "x.zip", tmp_path / "x.npz", tmp_path / "folder" / "2.png", tmp_path / "folder" / "sub"]
    for path in closed:
        path.chmod(0)
    try:
        with as_nobody():
            refused(tmp_path / "x.zip", "x.zip: cannot be read (Permission denied)")
            refused(tmp_path / "x.npz", "x.npz: cannot be read (Permission denied)")
            refused(tmp_path / "folder", "folder: cannot be read (Permission denied)")  # sub cannot be listed
            refused(tmp_path / "folder" / "sub" / "y.zip", "y.zip", "Permission denied")
        closed.pop().chmod(0o755)
        with as_nobody():
            refused(tmp_path / "folder", "2.png", "Permission denied")
    finally:
        for path in closed:
            path.chmod(0o644)


IMAGES = np.zeros((4, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"x": IMAGES, "y": IMAGES}, ["no array 'images'", "x, y"]),
        ({"images": IMAGES.astype(np.float32)}, ["float32 (4, 32, 32, 3)", "uint8 (N, H, W, 3)"]),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, ["uint8 (4, 3, 32, 32)", "uint8 (N, H, W, 3)"]),
        ({"images": IMAGES[..., 0]}, ["uint8 (4, 32, 32)", "uint8 (N, H, W, 3)"]),
        ({"images": IMAGES[:0]}, ["uint8 (0, 32, 32, 3)"]),
        ({"images": IMAGES.astype(object)}, ["not a readable .npz", "allow_pickle=False"]),
        ({"images": IMAGES, "labels": np.zeros(4, object)}, ["not a readable .npz", "allow_pickle=False"]),
        ({"images": IMAGES, "labels": np.zeros(3, int)}, ["labels is int64 (3,)", "integers (4,)"]),
        ({"images": IMAGES, "labels": np.zeros((4, 1), int)}, ["labels is int64 (4, 1)", "integers (4,)"]),
        ({"images": IMAGES, "labels": np.zeros(4)}, ["labels is float64 (4,)", "integers (4,)"]),
        ({"images": IMAGES, "labels": np.zeros(4, bool)}, ["labels is bool (4,)"]),
        ({"images": IMAGES, "labels": np.array([0, 1, -2, 1])}, ["labels are -2 to 1", "-1 for none"]),
        ({"images": IMAGES, "labels": np.array([0, 1, 2, 2**64 - 1], np.uint64)}, [f"labels are 0 to {2**64 - 1}"]),
    ],
)
def test_npz(arrays: dict[str, np.ndarray], parts: list[str], tmp_path: Path):
    np.savez(tmp_path / "x.npz", **arrays)
    refused(tmp_path / "x.npz", "x.npz: ", *parts)


def test_npz_that_is_none_or_damaged(tmp_path: Path):
    np.save(tmp_path / "x.npy", IMAGES)
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    refused(tmp_path / "x.npz", "x.npz: not a readable .npz", "not a zip file", "numpy.savez")
    np.savez(tmp_path / "y.npz", images=IMAGES)
    data = bytearray((tmp_path / "y.npz").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "y.npz").write_bytes(data)
    refused(tmp_path / "y.npz", "y.npz: not a readable .npz", "Bad CRC-32")
    header = io.BytesIO()
    shape = (10**9, 999, 999, 3)  # more than any machine holds
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    refused(pack(tmp_path / "z.npz", {"images.npy": header.getvalue()}), "z.npz: not a readable .npz")
    refused(pack(tmp_path / "z.npz", {"images.npy": b"no array"}), "z.npz: images is |S8 ()")


@pytest.mark.parametrize(
    ("name", "file"),
    [("cifar10", "cifar-10-python.tar.gz"), ("stl10", "stl10_binary.tar.gz"), ("celeba", "img_align_celeba.zip")],
)
def test_download_that_fails(name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import celeba

    class DriveError(Exception):
        """gdown's errors have no base of their own."""

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route\nto host")

    def no_drive(*_: object) -> None:
        raise DriveError("no route\nto host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(celeba, "download_file_from_google_drive", no_drive)
    refused(name, f"--dataset {name}: not in {tmp_path}", "no route to host", file, "--dataset shapes", data_dir=tmp_path)


def test_batches():
    images = torch.zeros(10, 3, 4, 4, dtype=torch.uint8)
    for batch in (0, -1, 11):
        with pytest.raises(UserError, match=f"--d-batch {batch}: must be between 1 and the 10 images"):
            Batches(images, batch, 0, "cpu")
    with pytest.raises(UserError, match="--d-batch 8: must be a multiple of the 3 processes"):
        Batches(images, 8, 0, "cpu", rank=0, world=3)
