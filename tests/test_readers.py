"""What scikit-learn and torchvision publish: what is read, what is refused and how, what a download leaves."""

import errno
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import (
    CIFAR,
    IDX,
    change_cifar,
    empty,
    entries,
    garbage,
    pixels,
    truncated,
    write_cifar,
    write_idx,
    write_mnist,
)
from torchvision import datasets

from nb_lib.errors import InputError
from nb_lib.lab.data import load
from nb_lib.lab.names import DATASETS, TOO_LARGE

pytestmark = pytest.mark.usefixtures("root")

OF_TORCHVISION = [name for name in DATASETS if name not in ("digits", *TOO_LARGE)]


def test_digits_split_is_scikit_learns_stratified_and_independent_of_the_seed():
    from sklearn.datasets import load_digits

    digits, other = load("digits"), load("digits", seed=1)
    assert torch.equal(digits.train.x, other.train.x)
    assert torch.equal(digits.test.y, other.test.y)
    bunch = load_digits()
    original = sorted((*row, label) for row, label in zip(bunch.data / 16, bunch.target, strict=True))
    ours = [
        (*x.tolist(), y)
        for split in (digits.train, digits.test)
        for x, y in zip(split.x.flatten(1), split.y.tolist(), strict=True)
    ]
    assert sorted(ours) == original
    expected = np.bincount(bunch.target) * 1200 / 1797
    assert np.abs(digits.train.y.bincount().numpy() - expected).max() <= 1


@pytest.mark.parametrize("name", IDX)
def test_mnist_and_fashion_mnist_equal_the_files(name, root):
    arrays = write_mnist(root, IDX[name])
    loaded = load(name, root=root)
    assert loaded.variant == {"mnist": "torchvision's MNIST"}.get(name, "torchvision's Fashion-MNIST")
    assert len(loaded.classes) == 10
    for split, part in ((loaded.train, "train"), (loaded.test, "t10k")):
        x, y = arrays[part]
        assert torch.equal(split.x, torch.from_numpy(x).unsqueeze(1).float() / 255)
        assert split.y.tolist() == y.tolist()
        assert split.x.is_contiguous()


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_equals_the_batches(name, root, monkeypatch):
    arrays = write_cifar(root, name, monkeypatch)
    loaded = load(name, root=root)
    k = len(loaded.classes)
    assert loaded.classes == tuple(f"class {i}" for i in range(10 if name == "cifar10" else 100))
    for split, which in ((loaded.train, "train_list"), (loaded.test, "test_list")):
        assert torch.equal(split.x, torch.from_numpy(arrays[which]).float() / 255)
        assert split.y.tolist() == [i % k for i in range(len(split))]
        assert split.x.is_contiguous()
        assert split.x.shape[1:] == loaded.shape == (3, 32, 32)


REMEDIES = "download=True, or point NB_LIB_DATA or root at"


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_missing_data_name_the_file_and_both_remedies(name, root):
    with pytest.raises(InputError, match=REMEDIES) as caught:
        load(name, root=root)
    assert name in str(caught.value)
    assert str(root) in str(caught.value)
    assert entries(root) == []


CIFAR_FILES = [("cifar10", file) for file in ("data_batch_3", "test_batch", "batches.meta")]
CIFAR_FILES += [("cifar100", file) for file in ("train", "test", "meta")]


@pytest.mark.parametrize(("name", "file"), CIFAR_FILES)
def test_a_missing_file_of_cifar_is_named(root, monkeypatch, name, file):
    write_cifar(root, name, monkeypatch)
    path = root / CIFAR[name].base_folder / file
    path.unlink()
    with pytest.raises(InputError, match=f"{name} is incomplete, {re.escape(str(path))} is missing: .*{REMEDIES}"):
        load(name, root=root)


def test_one_missing_file_is_named(root):
    write_mnist(root)
    path = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.unlink()
    with pytest.raises(InputError, match=f"{re.escape(str(path))} is missing: .*{REMEDIES}"):
        load("mnist", root=root)


def trailing(path):
    path.write_bytes(path.read_bytes() + b"more")


def other_sizes(path):
    write_idx(path, pixels(60, 27, 28) if "images" in path.name else np.arange(59) % 10)


def label_ten(path):
    write_idx(path, np.arange(60) % 10 if "images" in path.name else np.arange(60) % 11)


def no_images(path):
    for file in (path.parent / "train-images-idx3-ubyte", path.parent / "train-labels-idx1-ubyte"):
        write_idx(file, pixels(0, 28, 28) if "images" in file.name else np.arange(0))


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", [truncated, trailing, empty, garbage, other_sizes, label_ten, no_images])
def test_damaged_mnist_is_refused_with_the_remedy(root, damage, file):
    write_mnist(root)
    assert len(load("mnist", root=root).train) == 60
    damage(root / "MNIST" / "raw" / file)
    message = f"{re.escape(str(root / 'MNIST' / 'raw'))} is damaged: move it elsewhere and load 'mnist' with download"
    with pytest.raises(InputError, match=message):
        load("mnist", root=root)


UNPICKLED = []


def mark():
    UNPICKLED.append("mark")


class Exploit:
    def __reduce__(self):
        return mark, ()


@pytest.mark.parametrize(("name", "file"), CIFAR_FILES)
def test_damaged_cifar_is_refused_before_it_is_unpickled(root, monkeypatch, name, file):
    write_cifar(root, name, monkeypatch)
    assert len(load(name, root=root).train) in (50, 100)
    path = root / CIFAR[name].base_folder / file
    whole = path.read_bytes()
    path.write_bytes(pickle.dumps(Exploit()))
    pickle.loads(path.read_bytes())
    assert UNPICKLED.pop() == "mark"  # it would work
    message = f"{re.escape(str(path.parent))} is damaged: move it elsewhere and load '{name}' with download=True"
    with pytest.raises(InputError, match=message):
        load(name, root=root)
    assert not UNPICKLED
    for damage in (truncated, empty, garbage):
        path.write_bytes(whole)
        damage(path)
        with pytest.raises(InputError, match=message):
            load(name, root=root)


@pytest.mark.parametrize("file", ["train", "test"])
@pytest.mark.parametrize(
    "changes",
    [
        {"fine_labels": [*range(99), 100]},
        {"fine_labels": [*range(99), -1]},
        {"fine_labels": list(range(99))},
        {"fine_labels": [*range(100), 0]},
        {"fine_labels": None},
        {"data": pixels(99, 3072)},
        {"data": pixels(100, 28 * 28)},
        {"data": pixels(0, 3072), "fine_labels": []},
        {"data": None},
    ],
)
def test_what_does_not_fit_together_in_cifar100_is_refused_whatever_its_sum(root, monkeypatch, file, changes):
    write_cifar(root, "cifar100", monkeypatch)
    change_cifar(root, "cifar100", file, {}, monkeypatch)
    assert load("cifar100", root=root).test.y.tolist() == list(range(100))  # with its sum taken anew it is good
    change_cifar(root, "cifar100", file, changes, monkeypatch)
    with pytest.raises(
        InputError, match="cifar-100-python is damaged: move it elsewhere and load 'cifar100' with download"
    ):
        load("cifar100", root=root)


@pytest.mark.parametrize("classes", [None, [], [f"class {i}" for i in range(99)]])
def test_cifar100_without_the_names_of_all_classes_is_refused(root, monkeypatch, classes):
    write_cifar(root, "cifar100", monkeypatch)
    change_cifar(root, "cifar100", "meta", {"fine_label_names": classes}, monkeypatch)
    with pytest.raises(InputError, match="cifar-100-python is damaged"):
        load("cifar100", root=root)


def test_cifar100_is_read_with_its_fine_labels_and_their_names_in_the_order_of_the_file(root, monkeypatch):
    write_cifar(root, "cifar100", monkeypatch)
    fine = [(37 * i + 5) % 100 for i in range(100)]
    names = [f"fine {chr(97 + i % 26)}{i}" for i in range(100)]
    for file in ("train", "test"):
        coarse = [label // 5 for label in fine]
        change_cifar(root, "cifar100", file, {"fine_labels": fine, "coarse_labels": coarse}, monkeypatch)
    change_cifar(root, "cifar100", "meta", {"fine_label_names": names}, monkeypatch)
    loaded = load("cifar100", root=root)
    assert loaded.variant == "torchvision's CIFAR-100"
    assert loaded.classes == tuple(names)
    assert loaded.train.y.tolist() == loaded.test.y.tolist() == fine


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_failed_download_is_refused_and_leaves_nothing(name, tmp_path):
    with pytest.raises(InputError, match=f"{name} could not be downloaded into .*/new: .*NB_LIB_DATA or root"):
        load(name, root=tmp_path / "new", download=True)
    assert entries(tmp_path / "new") == []


def a_file(folder):
    folder.write_text("not a folder")


def below_a_file(folder):
    folder.parent.rmdir()
    folder.parent.write_text("not a folder")


def a_dead_link(folder):
    folder.symlink_to(folder.parent / "away/away")


def a_circle(folder):
    folder.symlink_to(folder)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("make", [a_file, below_a_file, a_dead_link, a_circle])
def test_a_download_folder_that_cannot_be_written_is_not_taken_for_a_missing_network(make, name, tmp_path):
    folder = tmp_path / "disk/data"
    folder.parent.mkdir()
    make(folder)
    with pytest.raises(InputError, match=f"^cannot write {re.escape(str(folder))}: .*; choose another place"):
        load(name, root=folder, download=True)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("when", ["made", "fetched"])
def test_a_disk_that_refuses_a_download_is_named_with_its_reason(when, number, name, root, monkeypatch):
    """Of a folder that only the administrator could write, or a disk that is full, as its system says."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    if when == "made":
        monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    else:
        module = datasets.mnist if name == "mnist" else datasets.cifar
        monkeypatch.setattr(module, "download_and_extract_archive", refuse)
    with pytest.raises(InputError, match=f"^cannot write {root}: {os.strerror(number)}; (free some|choose another)"):
        load(name, root=root, download=True)


@pytest.mark.parametrize(
    "error", [TimeoutError("slow"), ConnectionRefusedError(errno.ECONNREFUSED, "refused"), ValueError]
)
def test_what_the_network_refuses_is_not_taken_for_the_disk(error, root, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", refuse)
    with pytest.raises(InputError, match=r"mnist could not be downloaded into .*: try again with a network"):
        load("mnist", root=root, download=True)


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied", "FILE"), MemoryError()])
def test_files_that_cannot_be_read_now_are_not_called_damaged(error, file, root, monkeypatch):
    write_mnist(root)

    def refuse(path):
        raise error

    monkeypatch.setattr(datasets.mnist, "read_image_file" if "images" in file else "read_label_file", refuse)
    with pytest.raises((InputError, MemoryError)) as caught:
        load("mnist", root=root)
    assert str(caught.value) in ("", "cannot read FILE: Permission denied.")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ConnectionResetError])
def test_download_that_stops_halfway_leaves_no_half_files(root, monkeypatch, stop):
    def half(url, download_root, **kwargs):
        write_idx(Path(download_root) / "train-images-idx3-ubyte", pixels(3, 28, 28))
        raise stop("the plug")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", half)
    with pytest.raises(InputError if issubclass(stop, Exception) else stop):
        load("mnist", root=root, download=True)
    assert entries(root) == []


def test_download_fills_in_what_is_missing_and_is_not_repeated(root, tmp_path, monkeypatch):
    arrays, urls = write_mnist(tmp_path / "server"), []

    def fetch(url, download_root, filename, md5):
        urls.append(url)
        source = tmp_path / "server" / "MNIST" / "raw" / Path(filename).stem
        (Path(download_root) / source.name).write_bytes(source.read_bytes())

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", fetch)
    (root / "MNIST" / "raw").mkdir(parents=True)
    (root / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"half a file")
    loaded = load("mnist", root=root, download=True)
    assert torch.equal(loaded.train.x[:, 0] * 255, torch.from_numpy(arrays["train"][0]).float())
    assert len(urls) == 4
    load("mnist", root=root, download=True)
    load("mnist", root=root)
    assert len(urls) == 4
    assert len(entries(root)) == 2 + 4  # two folders, four files, no archives or temporary files
