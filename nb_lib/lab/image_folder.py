"""Read a folder of images, <folder>/{train,test}/<class>/<image files>; the second start reads the decoded array."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from nb_lib.errors import InputError
from nb_lib.lab.files import write_atomically
from nb_lib.lab.readers import Raw, shuffled

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_TYPES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WebP"}
IMAGE_TYPES |= {".ppm": "PPM", ".pgm": "PGM", ".tif": "TIFF", ".tiff": "TIFF"}


def read_folder(folder: Path, caches: Sequence[Path]) -> Raw:
    """Read all images, with one channel if all are gray, in one fixed mixed order.

    Classes are the folders in `train`, by name, with all that is in their subfolders. Hidden files and folders are
    left out. The decoded array is kept in the first of the folders `caches` that can be written.
    """
    classes = _class_folders(folder / "train")
    in_test = _class_folders(folder / "test")
    in_one_only = set(classes).symmetric_difference(in_test)
    if in_one_only:
        odd = min(in_one_only)
        raise InputError(f"class {odd!r} is in only one of train and test of {folder}: add or remove it.")
    train = _listed(folder, "train", classes)
    images = train + _listed(folder, "test", classes)
    paths = [path for path, _ in images]
    x = torch.from_numpy(_pixels(folder, paths, caches))
    labels = [label for _, label in images]
    y = torch.tensor(labels)
    n = len(train)
    types = sorted({_type(path) for path in paths})
    return Raw(
        variant=f"image folder, {' and '.join(types)} files",
        classes=tuple(classes),
        train=(x[:n], y[:n]),
        test=(x[n:], y[n:]),
    )


def _listed(folder: Path, part: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """List the images (path below `folder`, label) of a part, mixed: by name they come class by class."""
    images = []
    for label, name in enumerate(classes):
        below = _images(folder / part / name)
        if not below:
            raise _none_of("images", folder / part / name)
        images += [(f"{part}/{name}/{image}", label) for image in below]
    order = shuffled(len(images), 0).tolist()
    return [images[i] for i in order]


def _images(folder: Path) -> list[str]:
    """List the images in a folder and its subfolders, relative to it, in the order of torchvision's ImageFolder."""
    found: dict[str, list[str]] = {}
    for where, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(where)
        # not into hidden ones, nor round and round through a link to a folder that holds this one
        inside = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in inside if not _holds(os.path.join(where, name), here)]
        found[where] = sorted(name for name in files if _type(name) and not name.startswith("."))
    paths = [os.path.join(where, name) for where in sorted(found) for name in found[where]]
    return [path[len(str(folder)) + 1 :] for path in paths]


def _holds(folder: str, inner: str) -> bool:
    outer = os.path.realpath(folder)
    return os.path.commonpath([outer, inner]) == outer


def _class_folders(folder: Path) -> list[str]:
    """List the folders in a folder, by name, without hidden ones."""
    entries = []
    with contextlib.suppress(OSError):
        entries = list(os.scandir(folder))
    names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not names:
        raise _none_of("class folders", folder)
    return sorted(names)


def _none_of(what: str, folder: Path) -> InputError:
    remedy = "put <class>/<image files> in its train and test, or point NB_LIB_DATA or root elsewhere"
    return InputError(f"there are no {what} in {folder}: {remedy}.")


def _type(path: str) -> str:
    """JPEG, PNG or the like; nothing if it is no image."""
    _, suffix = os.path.splitext(path)
    return IMAGE_TYPES.get(suffix.lower(), "")


def _pixels(folder: Path, paths: Sequence[str], caches: Sequence[Path]) -> np.ndarray:
    """Return the images at `paths` below `folder`, decoded now or before; an .npz file has checksums."""
    name = f"{folder.name}-{_fingerprint(folder, paths)}.npz"
    files = [cache / ".nb_lib_cache" / name for cache in caches]
    for file in files:
        with contextlib.suppress(Exception), np.load(file, allow_pickle=False) as stored:
            return stored["nchw"]  # if it is not there, or damaged: decode again
    decoded = _decode([folder / path for path in paths])
    for file in files:
        with contextlib.suppress(InputError):  # not writable: the next place, or no cache
            write_atomically(file, lambda stream: np.savez(stream, nchw=decoded))
            break
    return decoded


def _fingerprint(folder: Path, paths: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        file = folder / path
        try:
            status = file.stat()
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}; replace it, or move it elsewhere.") from error
        line = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()[:16]


def _decode(paths: Sequence[Path]) -> np.ndarray:
    """Decode images of one size, in threads, to uint8 [N, 3, H, W], or [N, 1, H, W] if all are gray."""
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(_image, paths)
        images = list(tqdm(decoded, "decoding images", len(paths), delay=2, mininterval=1, leave=False))
    first = images[0]
    for path, image in zip(paths, images, strict=True):
        if image.shape != first.shape:
            raise InputError(f"{path} is {_size(image)}, {paths[0]} is {_size(first)}: give all images one size.")
    pixels = np.stack(images)
    gray = pixels[:, :1]
    if (pixels == gray).all():
        return gray.copy()
    return pixels


def _size(image: np.ndarray) -> str:
    _, height, width = image.shape
    return f"{width}x{height}"


def _image(path: Path) -> np.ndarray:
    image = decoded(path, "replace it, or move it elsewhere")
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decoded(path: str | Path, remedy: str) -> "Image":
    """Decode an image file to RGB, or raise an `InputError` that says the `remedy`."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits per channel")
            return image.convert("RGB")
    except Exception as error:  # decoders raise many kinds
        raise InputError(f"{path} is not a readable 8-bit image: {remedy}.") from error
