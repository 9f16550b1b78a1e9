"""Data sets that tests write: small files in the layouts that torchvision and image folders have."""

import hashlib
import os
import pickle
import struct

import numpy as np
from PIL import Image
from torchvision import datasets

IDX = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def pixels(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root, folder="MNIST", train=60, test=20):
    """The four idx files that torchvision reads; returns the training and test arrays."""
    raw = root / folder / "raw"
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        images = pixels(n, 28, 28, seed=n)
        labels = np.arange(n) % 10
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
        arrays[part] = images, labels
    return arrays


def write_cifar(root, name, monkeypatch):
    """Small pickled batches in torchvision's layout, with the class's MD5 sums replaced by theirs."""
    dataset = CIFAR[name]
    key = "labels" if name == "cifar10" else "fine_labels"
    k = 10 if name == "cifar10" else 100
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)

    def dump(file, content):
        stored = pickle.dumps(content)
        (folder / file).write_bytes(stored)
        return hashlib.md5(stored).hexdigest()

    arrays = {}
    for which in ("train_list", "test_list"):
        images, sums = [], []
        for i, (file, _) in enumerate(getattr(dataset, which)):
            batch = pixels(k, 3072, seed=i + len(which))
            images.append(batch)
            sums.append([file, dump(file, {"data": batch, key: list(range(k))})])
        monkeypatch.setattr(dataset, which, sums)
        arrays[which] = np.concatenate(images).reshape(-1, 3, 32, 32)
    classes = [f"class {i}" for i in range(k)]
    md5 = dump(dataset.meta["filename"], {dataset.meta["key"]: classes})
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5})
    return arrays


def write_folder(root, name="pets", *, classes=("cat", "dog"), n=(6, 3), size=(5, 4), kind="png", mode="RGB"):
    """An image folder; every image has one color, which tells its part, class and number."""
    for part, count, blue in (("train", n[0], 200), ("test", n[1], 50)):
        for label, cls in enumerate(classes):
            folder = root / name / part / cls
            folder.mkdir(parents=True)
            for i in range(count):
                red, green = 10 * i, 100 * label
                color = (red, green, blue) if mode == "RGB" else red + green
                Image.new(mode, size, color).save(folder / f"{i:03}.{kind}")
    return root / name


def entries(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Ways to damage a file.


def truncated(path):
    path.write_bytes(path.read_bytes()[:-5])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(os.urandom(100))
