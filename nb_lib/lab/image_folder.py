"""Decode a folder of images once; the second start reads the decoded array."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from nb_lib.errors import InputError
from nb_lib.lab.files import write_atomically


def pixels(folder: Path, paths: Sequence[str], caches: Sequence[Path]) -> np.ndarray:
    """Return the decoded images of a folder, uint8 [N, C, H, W] with one channel if all are gray.

    Parameters
    ----------
    folder
        The data set's.
    paths
        Of the images, below `folder`; the array has their order.
    caches
        Folders to keep the decoded array in: the first that can be written (an .npz file has checksums).

    Raises
    ------
    InputError
        If an image cannot be read, or they differ in size.
    """
    name = f"{folder.name}-{_fingerprint(folder, paths)}.npz"
    files = [cache / ".nb_lib_cache" / name for cache in caches]
    for file in files:
        with contextlib.suppress(Exception), np.load(file, allow_pickle=False) as stored:
            return stored["nchw"]  # if it is not there, or damaged: decode again
    decoded = _decode([os.path.join(folder, path) for path in paths])
    for file in files:
        with contextlib.suppress(InputError):  # not writable: the next place, or no cache
            write_atomically(file, lambda stream: np.savez(stream, nchw=decoded))
            break
    return decoded


def _fingerprint(folder: Path, paths: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(os.path.join(folder, path))
        except OSError as error:
            raise InputError(f"{folder / path} cannot be read: replace or delete it.") from error
        digest.update(os.fsencode(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()[:16]


def _decode(paths: Sequence[str]) -> np.ndarray:
    """Decode images of one size, in threads, to uint8 [N, 3, H, W], or [N, 1, H, W] if all are gray."""
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(_image, paths)
        images = list(tqdm(decoded, "decoding images", len(paths), delay=2, mininterval=1, leave=False))
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{width}x{height}" for _, height, width in (image.shape, images[0].shape)]
            raise InputError(f"{path} is {sizes[0]}, {paths[0]} is {sizes[1]}: give all images one size.")
    pixels = np.stack(images)
    return pixels[:, :1].copy() if (pixels == pixels[:, :1]).all() else pixels


def _image(path: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError("more than 8 bits per channel")
            return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    except Exception as error:
        raise InputError(f"{path} is not a readable 8-bit image: replace or delete it.") from error
