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


def write_cifar(root, name, monkeypatch, times=1):
    """Small pickled batches in torchvision's layout, with the class's MD5 sums replaced by theirs.

    A training batch has so many `times` an image of each class, and a batch of the test set one.
    Those of CIFAR-100 have labels of two kinds, as published: of 100 fine classes and of the 20 that five make up.
    """
    dataset = CIFAR[name]
    k = 10 if name == "cifar10" else 100
    classes = {dataset.meta["key"]: [f"class {i}" for i in range(k)]}
    if name == "cifar100":
        classes["coarse_label_names"] = [f"coarse class {i}" for i in range(20)]
    (root / dataset.base_folder).mkdir(parents=True)
    arrays = {}
    for which in ("train_list", "test_list"):
        images = []
        labels = list(range(k)) * (times if which == "train_list" else 1)
        kinds = {"labels": labels}
        if name == "cifar100":
            kinds = {"fine_labels": labels, "coarse_labels": [label // 5 for label in labels]}
        for i, (file, _) in enumerate(getattr(dataset, which)):
            batch = pixels(len(labels), 3072, seed=i + len(which))
            images.append(batch)
            content = {"data": batch, "batch_label": file, **kinds}
            dump_cifar(root, name, file, content, monkeypatch)
        arrays[which] = np.concatenate(images).reshape(-1, 3, 32, 32)
    dump_cifar(root, name, dataset.meta["filename"], classes, monkeypatch)
    return arrays


def dump_cifar(root, name, file, content, monkeypatch):
    """Pickle one of the files and have its MD5 sum be the one asked for."""
    dataset = CIFAR[name]
    stored = pickle.dumps(content)
    path = root / dataset.base_folder / file
    path.write_bytes(stored)
    md5 = hashlib.md5(stored).hexdigest()
    for which in ("train_list", "test_list"):
        sums = dict(getattr(dataset, which))
        if file in sums:
            sums[file] = md5
            monkeypatch.setattr(dataset, which, list(sums.items()))
    if file == dataset.meta["filename"]:
        monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5})


def change_cifar(root, name, file, changes, monkeypatch):
    """Change some entries of a file of `write_cifar`, so that its MD5 sum is still right; None takes one out."""
    path = root / CIFAR[name].base_folder / file
    content = pickle.loads(path.read_bytes())
    for key, value in changes.items():
        del content[key]
        if value is not None:
            content[key] = value
    dump_cifar(root, name, file, content, monkeypatch)


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


def write_colors(folder, train=20, val=5, classes=10):
    """JPEG files of many sizes in ``{train,val}/<class>``, so many of a class, whose color it is; as torchvision's."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for k in range(classes):
            color = 255 * np.array([k % 3, k // 3 % 3, k / 4.5]) / 2
            for i in range(count):
                height, width = rng.integers(33, 60, 2)
                image = color + rng.normal(0, 40, (height, width, 3))
                path = folder / part / f"class {k}" / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
