"""A data set, whole, as tensors on the device: scikit-learn's digits, torchvision's, any image folder."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nb_lib.errors import InputError, known, whole
from nb_lib.lab.device import pick_device
from nb_lib.lab.files import place
from nb_lib.lab.image_folder import read_folder
from nb_lib.lab.names import DATASETS, NORMALIZATIONS, TOO_LARGE
from nb_lib.lab.readers import Part, Raw, read_digits, read_torchvision, stratified
from nb_lib.lab.text import read

#: Means and standard deviations of the channels, by the name of a normalization.
MEAN_STD = {
    "unit": ((0.0,), (1.0,)),  # pixels in [0, 1]: NE, Keskar
    "symmetric": ((0.5,), (0.5,)),  # in [-1, 1]: SmoothOut's MNIST
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # SmoothOut's CIFAR
}
_GRAY = 127 / 255  # of white: what the SmoothOut authors' code pads images with


@dataclass(frozen=True, eq=False)
class Split:
    """Images `x`, float32 [N, C, H, W], contiguous, and their labels `y`, int64 [N], on one device."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images [..., C, H, W] and labels [...] of the samples `index` [...]."""
        return self.x[index], self.y[index]


@dataclass(frozen=True, eq=False)
class Data:
    """A data set; `variant` says which copy of it, `valid` is None unless asked for.

    `gray` is what half of white became in each channel, or in all: pixels beyond the edge have it.
    """

    name: str
    variant: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    valid: Split | None = None
    gray: tuple[float, ...] = (0.0,)

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
    if root is None:
        root = read("NB_LIB_DATA", os.environ.get("NB_LIB_DATA", ""), str) or _user_root()
    return place(root)


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
        One of `DATASETS` but ImageNet, or "folder:<dirname>" for <root>/<dirname>/{train,test}/<class>/<image files>,
        whose images come in one fixed mixed order, and with one channel if all are gray.
    root, download
        Where the files are (see `data_root`); whether torchvision may fetch missing ones into it.
    train_size, valid_size, test_size
        Sizes of stratified subsets, alike on every machine for a `seed`; None is all. Validation images are taken
        out of the training set before `train_size` is applied.
    normalization
        One of `NORMALIZATIONS`, applied last. "imagenet" is for RGB images.

    Raises
    ------
    InputError
        If an argument cannot be used, or files are missing, damaged or not to be had from the network.
    """
    known("normalization", normalization, NORMALIZATIONS)
    device = pick_device(str(device))
    raw = _read(name, data_root(root), download)
    channels = raw.train[0].shape[1]
    if normalization == "imagenet" and channels != 3:
        raise InputError(f"normalization 'imagenet' is for RGB images, not {name}: choose 'standardized'.")
    splits = []
    for x, y in _subsets(raw, train_size, valid_size, test_size, seed):
        unit = x.to(device).float().div_(raw.white)  # pixels in [0, 1]
        splits.append(Split(unit, y.to(device)))
    train, valid, test = splits
    if normalization == "standardized":
        std, mean = torch.std_mean(train.x, (0, 2, 3), correction=0)
        std[std == 0] = 1  # a blank channel
    else:
        mean, std = (torch.tensor(value, device=device) for value in MEAN_STD[normalization])
    gray = (_GRAY - mean) / std
    mean = mean.view(-1, 1, 1)
    std = std.view(-1, 1, 1)
    for split in splits:
        split.x.sub_(mean).div_(std)
    held_out = valid if valid_size else None
    return Data(name, raw.variant, raw.classes, train, test, held_out, tuple(gray.tolist()))


def epoch_indices(n: int, batch_size: int, *, streams: int = 1, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw one epoch of batches: `streams` independent shuffles of n samples (two are the B and B' of NE eq. 6).

    Returns
    -------
    tuple of Tensor
        ⌈n / batch_size⌉ int64 views [streams, b], the last perhaps short; stream 0 is drawn first.

    Raises
    ------
    InputError
        If `batch_size` is not in 1..n, or `streams` less than 1.

    Examples
    --------
    >>> batches = epoch_indices(5, 2, streams=2, generator=torch.Generator().manual_seed(0))
    >>> torch.cat(batches, dim=1).sort().values.tolist()
    [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    """
    whole("batch_size", batch_size, 1, n)
    whole("streams", streams, 1)
    shuffles = [torch.randperm(n, generator=generator, device=generator.device) for _ in range(streams)]
    return torch.stack(shuffles).split(batch_size, dim=1)


def _user_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "nb_lib", "data").expanduser()


def _read(name: str, root: Path, download: bool) -> Raw:
    kind, _, dirname = str(name).partition(":")
    if kind == "folder" and dirname:
        return read_folder(root / dirname, caches=[root, _user_root()])
    known("dataset", name, [*DATASETS, "folder:<dirname>"])
    if name in TOO_LARGE:
        raise InputError(f"{name} does not fit on a device: train on it with `torchrun examples/imagenet.py`.")
    if name == "digits":
        return read_digits()
    return read_torchvision(name, root, download)


def _subsets(raw: Raw, train_size: int | None, valid_size: int, test_size: int | None, seed: int) -> list[Part]:
    """Return images and labels to train on, to validate with (perhaps none) and to test with."""
    whole("seed", seed, 0)
    x, y = raw.train
    test_x, test_y = raw.test
    least = len(raw.classes)
    valid = x[:0], y[:0]
    if valid_size:
        whole("valid_size", valid_size, least, len(y) - least)
        drawn, others = stratified(y, valid_size, seed, 0)
        valid = x[drawn], y[drawn]
        x, y = x[others], y[others]
    if train_size is not None:
        whole("train_size", train_size, least, len(y))
        drawn, _ = stratified(y, train_size, seed, 1)
        x, y = x[drawn], y[drawn]
    if test_size is not None:
        whole("test_size", test_size, least, len(test_y))
        drawn, _ = stratified(test_y, test_size, seed, 2)
        test_x, test_y = test_x[drawn], test_y[drawn]
    return [(x, y), valid, (test_x, test_y)]
