"""A data set, whole, as tensors on the device: scikit-learn's digits, torchvision's, any image folder."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nb_lib.errors import InputError, known
from nb_lib.lab.image_folder import pixels
from nb_lib.lab.names import DATASETS, NORMALIZATIONS

_TORCHVISION = {  # torchvision's class, name in print
    "mnist": ("MNIST", "MNIST"),
    "fashion-mnist": ("FashionMNIST", "Fashion-MNIST"),
    "cifar10": ("CIFAR10", "CIFAR-10"),
    "cifar100": ("CIFAR100", "CIFAR-100"),
}
_MEAN_STD = {
    "unit": ((0.0,), (1.0,)),  # pixels in [0, 1]: NE, Keskar
    "symmetric": ((0.5,), (0.5,)),  # in [-1, 1]: SmoothOut's MNIST
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # SmoothOut's CIFAR
}

_IMAGE_TYPES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WebP"}
_IMAGE_TYPES |= {".ppm": "PPM", ".pgm": "PGM", ".tif": "TIFF", ".tiff": "TIFF"}


@dataclass(frozen=True, eq=False)
class Split:
    """Images `x`, float32 [N, C, H, W], contiguous, and their labels `y`, int64 [N], on one device."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set; `variant` says which copy of it, `valid` is None unless asked for."""

    name: str
    variant: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    valid: Split | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.train.x.device

    def __str__(self) -> str:
        valid = f"{len(self.valid)} validation, " if self.valid else ""
        sizes = f"{len(self.train)} training, {valid}{len(self.test)} test images"
        shape = "x".join(map(str, self.shape))
        return f"{self.name} ({self.variant}): {sizes} of {shape}, {len(self.classes)} classes"

    __repr__ = __str__


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds data sets: `root`, else $NB_LIB_DATA, else one in the user's cache."""
    return Path(root or os.environ.get("NB_LIB_DATA") or _user_root()).expanduser()


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    train_size: int | None = None,
    valid_size: int = 0,
    test_size: int | None = None,
    seed: int = 0,
    normalization: str = "unit",
    device: str | torch.device = "cpu",
) -> Data:
    """Load a data set whole onto `device`.

    Parameters
    ----------
    name
        One of `DATASETS`, or "folder:<dirname>" for <root>/<dirname>/{train,test}/<class>/<image files>,
        whose images come in one fixed mixed order, and with one channel if all are gray.
    root, download
        Where the files are (see `data_root`); whether torchvision may fetch missing ones into it.
    train_size, valid_size, test_size
        Sizes of stratified subsets, kept exactly; None is all. Validation images are taken out of the
        training set before `train_size` is applied.
    seed
        Decides the subsets, alike on every machine.
    normalization
        One of `NORMALIZATIONS`, applied last. "imagenet" is for RGB images.
    device
        Where the tensors are to be.

    Raises
    ------
    InputError
        If an argument cannot be used, or files are missing, damaged or not to be had from the network.
    """
    known("normalization", normalization, NORMALIZATIONS)
    raw = _read(name, data_root(root), download)
    if normalization == "imagenet" and raw.train[0].shape[1] != 3:
        raise InputError(f"normalization 'imagenet' is for RGB images, not {name}: choose 'standardized'.")
    train, valid, test = (
        Split(x.to(device).float().div_(raw.white), y.to(device))
        for x, y in _subsets(raw, train_size, valid_size, test_size, seed)
    )
    if normalization == "standardized":
        std, mean = torch.std_mean(train.x, (0, 2, 3), correction=0)
        std[std == 0] = 1  # a blank channel
    else:
        mean, std = (torch.tensor(value, device=device) for value in _MEAN_STD[normalization])
    for split in (train, valid, test):
        split.x.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
    return Data(name, raw.variant, raw.classes, train, test, valid if valid_size else None)


def epoch_indices(
    n: int, batch_size: int, *, streams: int = 1, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Draw one epoch of batches: `streams` independent shuffles of n samples, the last partial batch kept.

    Two streams are the B and B' of NE eq. 6; protocol in NE sec. 3.

    Returns
    -------
    tuple of Tensor
        ⌈n / batch_size⌉ int64 views [streams, b] on the generator's device; stream 0 is drawn first.

    Raises
    ------
    InputError
        If `batch_size` is not in 1..n, or `streams` less than 1.
    """
    _whole("batch_size", batch_size, 1, n)
    _whole("streams", streams, 1)
    shuffles = [torch.randperm(n, generator=generator, device=generator.device) for _ in range(streams)]
    return torch.stack(shuffles).split(batch_size, dim=1)


def _user_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "nb_lib", "data").expanduser()


def _whole(what: str, value: Any, least: int, most: float = math.inf) -> None:
    if not isinstance(value, int | np.integer) or not least <= value <= most:
        limits = f"{least} or more" if most == math.inf else f"from {least} to {most}"
        raise InputError(f"{what} must be a whole number, {limits}, not {value!r}.")


def _order(n: int, *seed: int) -> Tensor:
    """Shuffle 0..n-1 by raw PCG64 output, which NumPy promises never to change."""
    return torch.from_numpy(np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable"))


def _stratified(y: Tensor, size: int, *seed: int) -> tuple[Tensor, Tensor]:
    """Draw `size` indices, one of each class and the rest in proportion; return them and the others."""
    counts = torch.bincount(y)
    quota = counts.clamp(max=1)
    share, total = (counts - quota) * (size - quota.sum()), (counts - quota).sum().clamp(min=1)
    quota += share // total
    largest = (share % total).argsort(descending=True, stable=True)
    quota[largest[: size - int(quota.sum())]] += 1
    order, drawn = _order(len(y), *seed), torch.zeros(len(y), dtype=torch.bool)
    for label, count in enumerate(quota.tolist()):
        drawn[order[y[order] == label][:count]] = True
    return drawn.nonzero()[:, 0], (~drawn).nonzero()[:, 0]


class _Raw(NamedTuple):
    """What readers return: uint8 images [N, C, H, W], up to `white`, and int64 labels [N] of each part."""

    variant: str
    classes: tuple[str, ...]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    white: int = 255


def _subsets(
    raw: _Raw, train_size: int | None, valid_size: int, test_size: int | None, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Return images and labels to train on, to validate with (perhaps none) and to test with."""
    _whole("seed", seed, 0)
    y, test_y, least = raw.train[1], raw.test[1], len(raw.classes)
    rest, valid, test = torch.arange(len(y)), torch.arange(0), torch.arange(len(test_y))
    if valid_size:
        _whole("valid_size", valid_size, least, len(y) - least)
        valid, rest = _stratified(y, valid_size, seed, 0)
    if train_size is not None:
        _whole("train_size", train_size, least, len(rest))
        rest = rest[_stratified(y[rest], train_size, seed, 1)[0]]
    if test_size is not None:
        _whole("test_size", test_size, least, len(test_y))
        test = _stratified(test_y, test_size, seed, 2)[0]
    parts = (raw.train, rest), (raw.train, valid), (raw.test, test)
    return [(x[chosen], y[chosen]) if len(chosen) < len(y) else (x, y) for (x, y), chosen in parts]


def _read(name: str, root: Path, download: bool) -> _Raw:
    kind, _, dirname = str(name).partition(":")
    if kind == "folder" and dirname:
        return _image_folder(root / dirname, root)
    known("dataset", name, [*DATASETS, "folder:<dirname>"])
    return _digits() if name == "digits" else _torchvision(name, root, download)


def _digits() -> _Raw:
    """Read scikit-learn's 1797 digits, with 17 gray levels, split once and for all into 1200 and 597."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).to(torch.uint8).view(-1, 1, 8, 8), torch.from_numpy(labels).long()
    train, test = _stratified(y, 1200, 0)
    variant, classes = "scikit-learn's bundled digits, 8x8", tuple("0123456789")
    return _Raw(variant, classes, (x[train], y[train]), (x[test], y[test]), white=16)


def _torchvision(name: str, root: Path, download: bool) -> _Raw:
    from torchvision import datasets

    class_name, title = _TORCHVISION[name]
    dataset = getattr(datasets, class_name)
    files = _needed(dataset)
    missing = [root / file for file in files if not os.path.isfile(root / file)]
    if missing and not download:
        remedies = "load it with download=True, or point NB_LIB_DATA or root at a folder that has it"
        raise InputError(f"{name} is incomplete, {missing[0]} is missing: {remedies}.")
    if missing:
        _download(name, dataset, files, root)
    try:
        train, test = dataset(root, train=True), dataset(root, train=False)  # CIFAR: MD5 before unpickling
        parts = _checked(train, DATASETS[name]), _checked(test, DATASETS[name])
    except Exception as error:
        remedy = f"delete it and load {name!r} with download=True"
        raise InputError(f"{(root / files[0]).parent} is damaged: {remedy}.") from error
    return _Raw(f"torchvision's {title}", tuple(train.classes), *parts)


def _needed(dataset: Any) -> list[str]:
    """List the files that a data set of torchvision's reads, relative to its root."""
    if hasattr(dataset, "resources"):
        return [f"{dataset.__name__}/raw/{Path(archive).stem}" for archive, _ in dataset.resources]
    batches = [file for file, _ in dataset.train_list + dataset.test_list]
    return [f"{dataset.base_folder}/{file}" for file in [*batches, dataset.meta["filename"]]]


def _download(name: str, dataset: Any, files: Sequence[str], root: Path) -> None:
    """Fetch and unpack in a temporary folder, then move every file, complete, to its place."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as fresh:
            dataset(fresh, download=True)
            for file in files:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(os.path.join(fresh, file), root / file)
    except Exception as error:
        remedies = "try again with a network, or point NB_LIB_DATA or root at a folder that has it"
        raise InputError(f"{name} could not be downloaded into {root}: {remedies}.") from error


def _checked(part: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    x, y = torch.as_tensor(part.data), torch.as_tensor(part.targets)
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    if x.shape[1:] != shape or not len(x) == len(y) > 0 or y.min() < 0 or y.max() >= len(part.classes):
        raise ValueError(f"{len(x)} images of {tuple(x.shape[1:])}, {len(y)} labels")
    return x, y


def _image_folder(folder: Path, root: Path) -> _Raw:
    classes = _names(folder / "train", "class folders", os.DirEntry.is_dir)
    if odd := set(classes) ^ set(_names(folder / "test", "class folders", os.DirEntry.is_dir)):
        raise InputError(
            f"class {min(odd)!r} is in only one of train and test of {folder}: add or remove it."
        )
    train, test = _files(folder, "train", classes), _files(folder, "test", classes)
    paths, labels = zip(*train, *test, strict=True)
    x, y, n = torch.from_numpy(pixels(folder, paths, [root, _user_root()])), torch.tensor(labels), len(train)
    types = " and ".join(sorted({_IMAGE_TYPES[_suffix(path)] for path in paths}))
    return _Raw(f"image folder, {types} files", tuple(classes), (x[:n], y[:n]), (x[n:], y[n:]))


def _files(folder: Path, part: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """List the images (path below `folder`, label) of a part, mixed: by name they are grouped by class."""
    files = [
        (f"{part}/{name}/{image}", label)
        for label, name in enumerate(classes)
        for image in _names(folder / part / name, "images", lambda entry: _suffix(entry.name) in _IMAGE_TYPES)
    ]
    return [files[i] for i in _order(len(files), 0).tolist()]


def _names(folder: Path, what: str, wanted: Callable[[os.DirEntry], bool]) -> list[str]:
    """List what is wanted in a folder, sorted, without hidden files."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name[0] != "." and wanted(entry))
    except OSError:
        names = []
    if not names:
        remedy = "put <class>/<image files> in its train and test, or point NB_LIB_DATA or root elsewhere"
        raise InputError(f"there are no {what} in {folder}: {remedy}.")
    return names


def _suffix(path: str) -> str:
    return path[path.rfind(".") :].lower()
