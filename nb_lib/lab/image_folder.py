"""Read a folder of images, <folder>/{train,test}/<class>/<image files>; the second start reads the decoded array."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from nb_lib.errors import InputError
from nb_lib.lab.files import write_atomically
from nb_lib.lab.readers import Raw, shuffled

IMAGE_TYPES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WebP"}
IMAGE_TYPES |= {".ppm": "PPM", ".pgm": "PGM", ".tif": "TIFF", ".tiff": "TIFF"}


def read_folder(folder: Path, caches: Sequence[Path]) -> Raw:
    """Read all images, with one channel if all are gray, in one fixed mixed order.

    Classes are the folders in `train`, by name. Hidden files are left out. The decoded array is kept in the first of
    the folders `caches` that can be written.
    """
    classes = _names(folder / "train", "class folders", os.DirEntry.is_dir)
    in_test = _names(folder / "test", "class folders", os.DirEntry.is_dir)
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
        for image in _names(folder / part / name, "images", lambda entry: _type(entry.name)):
            images.append((f"{part}/{name}/{image}", label))
    order = shuffled(len(images), 0).tolist()
    return [images[i] for i in order]


def _names(folder: Path, what: str, wanted: Callable[[os.DirEntry], object]) -> list[str]:
    """List what is wanted in a folder, by name, without hidden files."""
    entries = []
    with contextlib.suppress(OSError):
        entries = list(os.scandir(folder))
    names = [entry.name for entry in entries if wanted(entry) and not entry.name.startswith(".")]
    if not names:
        remedy = "put <class>/<image files> in its train and test, or point NB_LIB_DATA or root elsewhere"
        raise InputError(f"there are no {what} in {folder}: {remedy}.")
    return sorted(names)


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
            raise InputError(f"{file} cannot be read: replace or delete it.") from error
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
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits per channel")
            rgb = np.asarray(image.convert("RGB"))
            return np.ascontiguousarray(rgb.transpose(2, 0, 1))
    except Exception as error:
        raise InputError(f"{path} is not a readable 8-bit image: replace or delete it.") from error
