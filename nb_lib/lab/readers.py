"""Read the data sets of scikit-learn and torchvision as published; draw subsets that are the same on every machine."""

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nb_lib.errors import InputError
from nb_lib.lab.device import out_of_memory
from nb_lib.lab.files import cannot_write
from nb_lib.lab.names import DATASETS

# without its dash a title is the name of the class in torchvision.datasets
TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_OF_THE_DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_OF_THE_DISK |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}

Part = tuple[Tensor, Tensor]  # uint8 images [N, C, H, W] and int64 labels [N]


class Raw(NamedTuple):
    """What readers return; pixels are from 0 to `white`."""

    variant: str
    classes: tuple[str, ...]
    train: Part
    test: Part
    white: int = 255


def read_digits() -> Raw:
    """Read scikit-learn's 1797 digits, with 17 gray levels, split once and for all into 1200 and 597."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).to(torch.uint8).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels).long()
    train, test = stratified(y, 1200, 0)
    return Raw(
        variant="scikit-learn's bundled digits, 8x8",
        classes=tuple("0123456789"),
        train=(x[train], y[train]),
        test=(x[test], y[test]),
        white=16,
    )


def read_torchvision(name: str, root: Path, download: bool) -> Raw:
    """Read the files of `name`, of `TITLES`, below `root`; where they are missing, fetch them or say so."""
    from torchvision import datasets

    title = TITLES[name]
    dataset = getattr(datasets, title.replace("-", ""))
    files = _needed(dataset)
    paths = [root / file for file in files]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing and not download:
        remedies = "load it with download=True, or point NB_LIB_DATA or root at a folder that has it"
        raise InputError(f"{name} is incomplete, {missing[0]} is missing: {remedies}.")
    if missing:
        _download(name, dataset, files, root)
    try:
        train = dataset(root, train=True)  # CIFAR: MD5 before unpickling
        test = dataset(root, train=False)
        train_part = _checked(train, DATASETS[name])
        test_part = _checked(test, DATASETS[name])
    except Exception as error:
        if out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"cannot read {error.filename}: {error.strerror}.") from error
        remedy = f"move it elsewhere and load {name!r} with download=True"
        raise InputError(f"{paths[0].parent} is damaged: {remedy}.") from error
    return Raw(f"torchvision's {title}", tuple(train.classes), train_part, test_part)


def _needed(dataset: Any) -> list[str]:
    """List the files that a data set of torchvision's reads, relative to its root."""
    if hasattr(dataset, "resources"):
        return [f"{dataset.__name__}/raw/{Path(archive).stem}" for archive, _ in dataset.resources]
    parts = dataset.train_list + dataset.test_list
    names = [name for name, _ in parts]
    names.append(dataset.meta["filename"])
    return [f"{dataset.base_folder}/{name}" for name in names]


def _download(name: str, dataset: Any, files: Sequence[str], root: Path) -> None:
    """Fetch and unpack in a temporary folder, then move every file, complete, to its place."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as fresh:
            dataset(fresh, download=True)
            for file in files:
                target = root / file
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(os.path.join(fresh, file), target)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise cannot_write(root, error) from error
        remedies = "try again with a network, or point NB_LIB_DATA or root at a folder that has it"
        raise InputError(f"{name} could not be downloaded into {root}: {remedies}.") from error


def _checked(part: Any, shape: tuple[int, ...]) -> Part:
    """Images and labels of torchvision's `part`, if they are of one number and in their range."""
    x = torch.as_tensor(part.data)
    y = torch.as_tensor(part.targets)
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    if x.shape[1:] != shape or not len(x) == len(y) > 0:
        raise ValueError("images of another size or number")
    if y.min() < 0 or y.max() >= len(part.classes):
        raise ValueError("labels out of range")
    return x, y


# ------------------------------------------------------------------------------------------------------------ subsets


def shuffled(n: int, *seed: int) -> Tensor:
    """0..n-1, int64 [n], in an order that `seed` decides: raw output of PCG64, which NumPy promises not to change."""
    keys = np.random.PCG64(seed).random_raw(n)
    order = np.argsort(keys, kind="stable")
    return torch.from_numpy(order)


def stratified(y: Tensor, size: int, *seed: int) -> tuple[Tensor, Tensor]:
    """Draw `size` of the samples labeled `y` [N], one of each class and the rest in proportion; indices of both parts.

    >>> y = torch.tensor([0] * 90 + [1] * 9 + [2])
    >>> drawn, others = stratified(y, 10, 0)
    >>> y[drawn].bincount().tolist(), len(others)  # one of each class, then 7 as 89 to 8 to 0
    ([7, 2, 1], 90)
    """
    quotas = _quotas(torch.bincount(y), size).tolist()
    order = shuffled(len(y), *seed)
    labels = y[order]
    chosen = torch.zeros_like(y, dtype=torch.bool)
    for label, quota in enumerate(quotas):
        of_class = order[labels == label]
        chosen[of_class[:quota]] = True
    drawn = chosen.nonzero()[:, 0]
    others = (~chosen).nonzero()[:, 0]
    return drawn, others


def _quotas(counts: Tensor, size: int) -> Tensor:
    """Share `size` among classes of `counts` samples: one each, the rest by the method of largest remainders."""
    one_each = counts.clamp(max=1)
    others = counts - one_each
    rest = size - one_each.sum()
    total = others.sum().clamp(min=1)  # 0 if no class has more than one sample
    shares = rest * others
    quotas = one_each + shares // total
    by_remainder = torch.argsort(shares % total, descending=True, stable=True)
    missing = size - int(quotas.sum())
    quotas[by_remainder[:missing]] += 1
    return quotas
