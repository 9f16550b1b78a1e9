"""Images that do not fit on a device: decoded by worker processes, a ghost batch at a time.

The folder is in torchvision's ``ImageFolder`` layout, ``<folder>/{train,val}/<class>/<image files>``, as ImageNet's;
several processes (see `lab.processes`) share its images out.
"""

import math
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm.auto import tqdm

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import part_sizes
from nb_lib.lab.data import MEAN_STD
from nb_lib.lab.files import read_text, write_atomically
from nb_lib.lab.image_folder import decoded
from nb_lib.lab.names import published_ghost_batch
from nb_lib.lab.processes import together, told_by_first
from nb_lib.lab.runs import Run
from nb_lib.lab.setup import minibatches, seed_for

_SHORTER_SIDE = 256 / 224  # of an image, in sides of what is cut out of it
_TO_TEST = 128  # images at once

Part = list[tuple[Tensor, Tensor]]  # a ghost batch: images and labels; with noise enhancement also others, of B'

# ---------------------------------------------------------------------------------------------------------- the files


def train_and_val(folder: Path) -> tuple[ImageFolder, ImageFolder]:
    """List the images to train and to test with.

    Raises
    ------
    InputError
        If there are none, a class has none, or one is in only one of the two.
    """
    train, val = _listed(folder / "train"), _listed(folder / "val")
    odd = sorted(set(train.classes).symmetric_difference(val.classes))
    if odd:
        named = ", ".join(map(repr, odd[:3])) + (" …" if len(odd) > 3 else "")
        raise InputError(f"in only one of train and val of {folder} is {named} ({len(odd)}): add or remove it.")
    return train, val


def leave_out_unreadable(folders: Sequence[ImageFolder], workers: int, listed: Path) -> list[str]:
    """Take files that cannot be decoded off the lists, and return them.

    All processes together try every file; what they found stays in the file `listed`, and is read from there next time.
    """
    is_first = dist.get_rank() == 0
    found_before = read_text(listed).splitlines() if is_first and listed.exists() else None
    bad = told_by_first(found_before)
    if bad is None:
        bad = _unreadable(folders, workers)
    if is_first:
        text = "".join(f"{path}\n" for path in bad)
        write_atomically(listed, lambda file: file.write(text.encode()))
        n = sum(map(len, folders))
        tqdm.write(f"{len(bad)} of {n:,} files cannot be read and are left out: {', '.join(bad) or 'none'}", sys.stderr)
    gone = set(bad)
    for folder in folders:
        folder.samples = [sample for sample in folder.samples if sample[0] not in gone]
    return bad


def _unreadable(folders: Sequence[ImageFolder], workers: int) -> list[str]:
    paths = [path for folder in folders for path, _ in folder.samples]
    tried = Subset(_Tried(paths), _shared_out(len(paths)))
    loader: DataLoader[Any] = DataLoader(tried, batch_size=_TO_TEST, num_workers=workers, collate_fn=list)
    mine = [path for path in chain.from_iterable(_undisturbed(loader)) if path]
    everybodys: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybodys, mine)
    return sorted(chain.from_iterable(everybodys))


def _listed(folder: Path) -> ImageFolder:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: name the one that holds data sets by --root or NB_LIB_DATA.")
    try:
        return ImageFolder(str(folder), loader=_decoded)
    except (OSError, ValueError) as error:  # no class, or one without images
        said = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"{folder} does not hold <class>/<image files> for every class: {said}.") from error


def _decoded(path: str) -> Image:
    return decoded(path, "replace it, or leave out such files by --leave-out-unreadable")


class _Tried(Dataset[str]):
    """The path of every file that cannot be decoded; nothing for the others."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> str:
        try:
            _decoded(self.paths[index])
        except InputError:
            return self.paths[index]
        return ""


# ---------------------------------------------------------------------------------------------------------- the images


class Images(Dataset[tuple[Tensor, int]]):
    """Images of a folder as uint8 [3, size, size], and their labels.

    What is cut out of an image at random depends on the image and these `words` alone: neither on the process that
    decodes it nor on what was decoded before, so that training that is resumed sees what it would have seen.
    """

    def __init__(self, folder: ImageFolder, cut: v2.Transform, words: Sequence[int] = ()) -> None:
        self.folder = folder
        self.cut = v2.Compose([cut, v2.PILToTensor()])
        self.words = words

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.folder[index]
        [word] = np.random.SeedSequence([*self.words, index]).generate_state(1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(word))
            return self.cut(image), label


def cuts(augment: str, size: int) -> tuple[v2.Transform, v2.Transform]:
    """What is cut out of an image of any size, to train (see `names.AUGMENTATIONS`) and to test with."""
    shorter = v2.Resize(round(_SHORTER_SIDE * size))
    middle = v2.Compose([shorter, v2.CenterCrop(size)])
    to_train: dict[str, v2.Transform] = {
        "none": middle,
        "crop-flip": v2.Compose([shorter, v2.RandomCrop(size)]),
        "resized-crop-flip": v2.RandomResizedCrop(size),
    }
    return to_train[augment], middle


# --------------------------------------------------------------------------------------------------------- the batches


def ghost_size(run: Run) -> int:
    """How many images are normalized together, and share a draw of the noise."""
    of_noise = run.noise_batch if run.a else None
    return run.ghost_batch or published_ghost_batch(run.network) or of_noise or _share(run)


def ghost_sizes(run: Run, n: int) -> list[int]:
    """Cut this process's share of a batch, of n images, into ghost batches: their sizes."""
    return part_sizes(n, ghost_size(run), _share(run) if run.cutting == "even" else None)


def _share(run: Run) -> int:
    return run.batch_size // dist.get_world_size()


def order_of(run: Run, n: int, epoch: int, stream: int) -> list[list[list[int]]]:
    """Numbers of the images of an epoch, for this process: by update and ghost batch.

    The batches are the same however many processes share them, but that some images of an epoch come twice if their
    number is not a multiple of that of the processes.  The last batch is smaller; SmoothOut's authors cut it into as
    many ghost batches.  B and B' of noise enhancement are streams of their own.
    """
    seeds = np.random.SeedSequence(seed_for(run, "order")).generate_state(2)
    sampler: DistributedSampler[int] = DistributedSampler(range(n), seed=int(seeds[stream]))  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    updates = torch.tensor(list(sampler)).split(_share(run))
    return [[part.tolist() for part in update.split(ghost_sizes(run, len(update)))] for update in updates]


class Reader:
    """Batches of a run for this process, on its device: normalized there and, in training, mirrored at random.

    An update is begun when all of its images are decoded; until then they wait in the memory of the host, and while it
    is computed its workers decode for the next.
    """

    def __init__(self, run: Run, train: ImageFolder, device: torch.device, workers: int) -> None:
        self.run = run
        self.train = train
        self.device = device
        self.workers = workers
        self.to_train, self.to_test = cuts(run.augment, run.image_size or 0)
        self._mean, self._std = (torch.tensor(value, device=device).view(3, 1, 1) for value in MEAN_STD["imagenet"])

    def updates(self, epoch: int, done: int = 0) -> Generator[tuple[list[int], Iterator[Part]]]:
        """The updates of an epoch from number `done` on: sizes of the ghost batches, and they themselves."""
        streams = range(minibatches(self.run))
        order = [order_of(self.run, len(self.train), epoch, stream) for stream in streams]
        workers = math.ceil(self.workers / len(streams))
        loaders = []
        for stream, updates in enumerate(order):
            images = Images(self.train, self.to_train, (seed_for(self.run, "order"), epoch, stream))
            loaders.append(self._loader(images, workers, batch_sampler=list(chain(*updates[done:]))))
        parts = zip(*map(_undisturbed, loaders), strict=True)
        for update in order[0][done:]:
            with together(self.device):  # a file that cannot be read ends all processes
                batch = [list(part) for part in islice(parts, len(update))]
            yield [len(part) for part in update], map(self._to_train_with, batch)

    def tests(self, folder: ImageFolder) -> Generator[tuple[Tensor, Tensor]]:
        """All images of a folder that this process tests with."""
        mine = Subset(Images(folder, self.to_test), _shared_out(len(folder)))
        for x, y in _undisturbed(self._loader(mine, self.workers, batch_size=_TO_TEST)):
            yield self._normalized(x), y.to(self.device, non_blocking=True)

    def _loader(self, images: Dataset[Any], workers: int, **batches: Any) -> DataLoader[Any]:
        own = torch.Generator()  # training's random numbers are not drawn from
        pinned = self.device.type == "cuda"
        return DataLoader(images, num_workers=workers, pin_memory=pinned, generator=own, **batches)

    def _to_train_with(self, part: Part) -> Part:
        return [(self._mirrored(self._normalized(x)), y.to(self.device, non_blocking=True)) for x, y in part]

    def _normalized(self, x: Tensor) -> Tensor:
        pixels = x.to(self.device, non_blocking=True).float()
        on_cuda = self.device.type == "cuda"
        images = pixels.contiguous(memory_format=torch.channels_last if on_cuda else torch.contiguous_format)
        return images.div_(255).sub_(self._mean).div_(self._std)

    def _mirrored(self, x: Tensor) -> Tensor:
        """Each image with probability 1/2, if the run has that."""
        if self.run.augment == "none":
            return x
        chosen = torch.rand(len(x), 1, 1, 1, device=self.device) < 0.5
        return torch.where(chosen, x.flip(-1), x)


def _undisturbed(loader: DataLoader[Any]) -> Iterator[Any]:
    """Begin to read, with workers that SIGTERM does not end: it is sent to them too, and their images are needed still.

    They begin with the signal blocked, and keep it so; they end when this process lets go of the iterator, or ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shared_out(n: int) -> range:
    """Numbers of the images of which every process takes some."""
    return range(dist.get_rank(), n, dist.get_world_size())


def check(run: Run, train: ImageFolder, test: ImageFolder) -> None:
    """Refuse a run that these images, or the processes that there are, cannot train."""
    for folder in (train, test):
        missing = sorted(set(range(len(folder.classes))).difference(label for _, label in folder.samples))
        if missing:
            name = folder.classes[missing[0]]
            raise InputError(f"no image of class {name!r} in {folder.root} can be read: replace some, or remove it.")
    if run.image_size is None:
        raise InputError("image_size is missing: give the side of the images in pixels, as 224.")
    for name in ("train_size", "valid_size", "fresh_optimizer"):
        if getattr(run, name):
            raise InputError(f"{name} is not for images that do not fit on a device: leave it out.")
    if run.inputs != "imagenet":
        raise InputError(f"inputs must be 'imagenet' for images that do not fit on a device, not {run.inputs!r}.")
    if run.batch_size > len(train):
        raise InputError(f"batch_size {run.batch_size} is larger than the training set ({len(train)} images).")
    _check_shares(run, len(train))


def _check_shares(run: Run, n: int) -> None:
    """Refuse batches that the processes cannot share out."""
    number, ghost = dist.get_world_size(), ghost_size(run)
    if run.batch_size % number or (number > 1 and _share(run) % ghost):
        raise InputError(
            f"{number} processes cannot share batches of {run.batch_size} out in whole ghost batches of {ghost}: "
            f"take a number of processes that divides {run.batch_size / ghost:g}."
        )
    if run.a and run.noise_batch != ghost:
        raise InputError(f"noise is drawn for every ghost batch here: give both noise_batch and ghost_batch {ghost}.")
    if not run.denoise and number > 1:
        raise InputError("noise that is not taken off makes the processes' weights differ: train with one process.")
    normalized = published_ghost_batch(run.network) is not None
    if normalized and math.ceil(n / number) % _share(run) == 1:
        raise InputError(f"batch_size {run.batch_size} leaves one of {n} images to a process: choose another.")
