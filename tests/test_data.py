"""Data sets: what is loaded, what is refused and how, what is cached; nothing comes from the network."""

import hashlib
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision import datasets

import nb_lib.lab.data as data
import nb_lib.lab.image_folder as image_folder
from nb_lib.errors import InputError
from nb_lib.lab.data import data_root, epoch_indices, load
from nb_lib.lab.names import DATASETS, NORMALIZATIONS

IDX = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


@pytest.fixture(autouse=True)
def no_home(tmp_path, monkeypatch):
    """Nothing of the person's own data, caches or network is seen or touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("NB_LIB_DATA", raising=False)

    def offline(url, *args, **kwargs):
        raise urllib.error.URLError(f"no network for {url}")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", offline)
    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", offline)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def pixels(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root, folder="MNIST", train=60, test=20):
    """The four idx files that torchvision reads; returns the training and test arrays."""
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        arrays[part] = pixels(n, 28, 28, seed=n), np.arange(n) % 10
        write_idx(root / folder / "raw" / f"{part}-images-idx3-ubyte", arrays[part][0])
        write_idx(root / folder / "raw" / f"{part}-labels-idx1-ubyte", arrays[part][1])
    return arrays


def write_cifar(root, name, monkeypatch):
    """Small pickled batches in torchvision's layout, with the class's MD5 sums replaced by theirs."""
    dataset, key = CIFAR[name], "labels" if name == "cifar10" else "fine_labels"
    k = 10 if name == "cifar10" else 100
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)

    def dump(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    arrays = {}
    for which in ("train_list", "test_list"):
        batches = [(pixels(k, 3072, seed=i + len(which)), i) for i in range(len(getattr(dataset, which)))]
        names = [file for file, _ in getattr(dataset, which)]
        sums = [dump(f, {"data": x, key: list(range(k))}) for f, (x, _) in zip(names, batches, strict=True)]
        monkeypatch.setattr(dataset, which, [list(pair) for pair in zip(names, sums, strict=True)])
        arrays[which] = np.concatenate([x for x, _ in batches]).reshape(-1, 3, 32, 32)
    meta = dump(dataset.meta["filename"], {dataset.meta["key"]: [f"class {i}" for i in range(k)]})
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": meta})
    return arrays


def write_folder(root, name="pets", *, classes=("cat", "dog"), n=(6, 3), size=(5, 4), kind="png", mode="RGB"):
    """An image folder; every image has one color, which tells its part, class and number."""
    for part, count in zip(("train", "test"), n, strict=True):
        for label, cls in enumerate(classes):
            folder = root / name / part / cls
            folder.mkdir(parents=True)
            for i in range(count):
                color = (10 * i, 100 * label, 200 if part == "train" else 50)
                image = Image.new(mode, size, color if mode == "RGB" else 10 * i + 100 * label)
                image.save(folder / f"{i:03}.{kind}")
    return root / name


def forbid_decoding(monkeypatch):
    def fail(path):
        raise AssertionError(f"decoded {path}")

    monkeypatch.setattr(image_folder, "_image", fail)


def entries(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- what is loaded -------------------------------------------------------------------------------------


def test_digits_have_the_promised_sizes_types_and_range():
    digits = load("digits")
    assert (len(digits.train), len(digits.test), digits.valid) == (1200, 597, None)
    assert digits.shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    for split in (digits.train, digits.test):
        assert split.x.dtype == torch.float32
        assert split.y.dtype == torch.int64
        assert split.x.is_contiguous()
        assert split.x.shape == (len(split.y), 1, 8, 8)
        assert (split.x.min(), split.x.max()) == (0, 1)
    assert torch.equal((digits.train.x * 16).round() / 16, digits.train.x)  # 17 gray levels, exactly
    assert digits.device == torch.device("cpu")


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


def test_data_print_as_one_line():
    digits = load("digits", train_size=100, valid_size=50)
    expected = (
        "digits (scikit-learn's bundled digits, 8x8): 100 training, 50 validation, 597 test images of 1x8x8"
    )
    assert str(digits) == repr(digits) == f"{expected}, 10 classes"


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


def test_image_folder_equals_torchvisions_in_a_mixed_order(root):
    folder = write_folder(root, n=(40, 3), kind="jpg")
    first, second = load("folder:pets", root=root), load("folder:pets", root=root)
    assert first.variant == "image folder, JPEG files"
    assert first.classes == ("cat", "dog")
    for loaded in (first, second):  # decoded, then cached
        for split, part in ((loaded.train, "train"), (loaded.test, "test")):
            reference = datasets.ImageFolder(folder / part)
            theirs = sorted((np.asarray(image).transpose(2, 0, 1).tolist(), y) for image, y in reference)
            assert (
                sorted(zip((split.x * 255).round().int().tolist(), split.y.tolist(), strict=True)) == theirs
            )
            assert split.x.is_contiguous()
            assert split.x.shape[1:] == (3, 4, 5)
    assert 5 < first.train.y[:40].sum() < 35  # by name, the first 40 would all be cats
    assert torch.equal(first.train.x, second.train.x)


def test_image_folder_that_is_all_gray_has_one_channel(root):
    write_folder(root, mode="L", kind="png")
    (write_folder(root, "mixed", mode="L") / "test" / "cat" / "red.png").write_bytes(
        (write_folder(root, "colored") / "train" / "cat" / "001.png").read_bytes()
    )
    assert load("folder:pets", root=root).shape == (1, 4, 5)
    assert load("folder:mixed", root=root).shape == (3, 4, 5)


def test_image_folder_ignores_hidden_and_foreign_files(root):
    folder = write_folder(root)
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "cat" / "._000.png").write_bytes(b"not an image")
    (folder / "train" / "cat" / "notes.txt").write_text("neither")
    loaded = load("folder:pets", root=root)
    assert loaded.classes == ("cat", "dog")
    assert len(loaded.train) == 12


def test_variant_names_all_file_types(root):
    folder = write_folder(root, kind="JPG")
    Image.new("RGB", (5, 4)).save(folder / "test" / "dog" / "last.png")
    assert load("folder:pets", root=root).variant == "image folder, JPEG and PNG files"


def test_data_root_prefers_argument_then_variable_then_cache(tmp_path, monkeypatch):
    assert data_root() == tmp_path / "user" / "nb_lib" / "data"
    monkeypatch.setenv("NB_LIB_DATA", str(tmp_path / "variable"))
    assert data_root() == tmp_path / "variable"
    assert data_root(tmp_path / "argument") == tmp_path / "argument"
    write_mnist(tmp_path / "variable")
    assert len(load("mnist").train) == 60
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root("~/x") == tmp_path / "home" / "x"
    monkeypatch.delenv("NB_LIB_DATA")
    assert data_root() == tmp_path / "home" / ".cache" / "nb_lib" / "data"


# --- normalization --------------------------------------------------------------------------------------


def test_normalizations_are_the_stated_formulas(root, monkeypatch):
    write_cifar(root, "cifar10", monkeypatch)
    unit, *others = (load("cifar10", root=root, normalization=name).test.x for name in NORMALIZATIONS)
    assert NORMALIZATIONS == ("unit", "symmetric", "imagenet", "standardized")
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    assert unit.min() == 0
    assert unit.max() == 1
    assert torch.equal(others[0], (unit - 0.5) / 0.5)
    assert_close(others[1], (unit - mean) / std)


def test_standardized_uses_the_training_images_in_use(root, monkeypatch):
    write_cifar(root, "cifar10", monkeypatch)
    options = {"root": root, "train_size": 20, "valid_size": 10}
    unit = load("cifar10", **options)
    loaded = load("cifar10", normalization="standardized", **options)
    std, mean = torch.std_mean(loaded.train.x, (0, 2, 3), correction=0)
    assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    assert_close(std, torch.ones(3), atol=1e-5, rtol=0)
    std, mean = torch.std_mean(unit.train.x, (0, 2, 3), correction=0, keepdim=True)
    assert_close(loaded.test.x, (unit.test.x - mean) / std)
    assert_close(loaded.valid.x, (unit.valid.x - mean) / std)


def test_standardized_leaves_a_blank_channel_finite(root):
    write_folder(root, n=(6, 3))  # blue is 200 in every training image
    loaded = load("folder:pets", root=root, normalization="standardized")
    assert torch.isfinite(loaded.train.x).all()
    assert loaded.train.x[:, 2].abs().max() < 1e-4
    assert loaded.train.x[:, 0].std() > 0.9


def test_imagenet_is_refused_for_gray_images():
    with pytest.raises(InputError, match="'imagenet' is for RGB images, not digits: choose 'standardized'"):
        load("digits", normalization="imagenet")


# --- subsets --------------------------------------------------------------------------------------------


def rows(split):
    return {x.numpy().tobytes() for x in split.x}


@pytest.mark.parametrize(("train", "valid", "test"), [(10, 10, 10), (333, 77, 111), (None, 1190, None)])
def test_subsets_are_exact_stratified_and_disjoint(train, valid, test):
    full = load("digits")
    part = load("digits", train_size=train, valid_size=valid, test_size=test)
    assert len(part.train) == (train or 1200 - valid)
    assert len(part.valid) == valid
    assert len(part.test) == (test or 597)
    for split, whole in ((part.train, full.train), (part.valid, full.train), (part.test, full.test)):
        share = whole.y.bincount() * (len(split) / len(whole))
        assert (split.y.bincount(minlength=10) - share).abs().max() <= 1.01
        assert rows(split) <= rows(whole)
        assert len(rows(split)) == len(split)  # the digits have no duplicates
    assert not rows(part.train) & rows(part.valid)


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_subsets_follow_the_seed(part):
    loads = (load("digits", seed=seed, **{f"{part}_size": 100}) for seed in (7, 7, 8))
    one, again, other = (getattr(loaded, part) for loaded in loads)
    assert torch.equal(one.x, again.x)
    assert torch.equal(one.y, again.y)
    assert len(rows(one) & rows(other)) < 50


def test_labels_stay_with_their_images():
    full = load("digits")
    label = {x.numpy().tobytes(): y for x, y in zip(full.train.x, full.train.y.tolist(), strict=True)}
    part = load("digits", train_size=200, valid_size=50)
    for split in (part.train, part.valid):
        assert [label[x.numpy().tobytes()] for x in split.x] == split.y.tolist()


def test_subsets_are_the_same_on_every_machine():
    assert data._order(8, 0, 1).tolist() == [7, 4, 5, 1, 6, 2, 0, 3]
    drawn, others = data._stratified(torch.arange(40) % 4, 8, 0)
    assert drawn.tolist() == [2, 3, 11, 13, 18, 20, 21, 32]
    assert sorted(drawn.tolist() + others.tolist()) == list(range(40))


def test_stratified_keeps_rare_classes_and_whole_sets():
    y = torch.tensor([0] * 90 + [1] * 9 + [2])
    drawn, others = data._stratified(y, 10, 0)
    assert y[drawn].bincount().tolist() == [7, 2, 1]  # one each, then 7 as 89 to 8 to 0
    assert len(others) == 90
    for size in range(3, 101):
        drawn, others = data._stratified(y, size, 1)
        assert len(drawn) == size
        assert len(others) == 100 - size
        assert y[drawn].bincount(minlength=3).min() >= 1
    assert drawn.tolist() == list(range(100))


@pytest.mark.parametrize(
    ("option", "value", "limits"),
    [
        ("train_size", 1201, "from 10 to 1200"),
        ("train_size", 9, "from 10 to 1200"),
        ("train_size", 0, "from 10 to 1200"),
        ("train_size", -1, "from 10 to 1200"),
        ("train_size", 0.5, "from 10 to 1200"),
        ("valid_size", 1191, "from 10 to 1190"),
        ("valid_size", 3, "from 10 to 1190"),
        ("valid_size", -20, "from 10 to 1190"),
        ("test_size", 598, "from 10 to 597"),
        ("test_size", 9, "from 10 to 597"),
        ("seed", -1, "0 or more"),
    ],
)
def test_impossible_sizes_are_refused(option, value, limits):
    with pytest.raises(InputError, match=rf"^{option} must be a whole number, {limits}, not {value}\.$"):
        load("digits", **{option: value})


def test_train_size_counts_what_validation_left():
    assert len(load("digits", valid_size=200, train_size=1000).train) == 1000
    with pytest.raises(InputError, match="train_size must be a whole number, from 10 to 1000, not 1001"):
        load("digits", valid_size=200, train_size=1001)


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar", "cifar-10", "folder", "folder:", "", "Digits"])
def test_unknown_names_get_a_suggestion(name):
    known = ", ".join([*DATASETS, "folder:<dirname>"])
    with pytest.raises(InputError, match=f"unknown dataset {name!r}.* Known are {known}") as caught:
        load(name)
    if name.startswith("cifar"):
        assert "did you mean 'cifar10'?" in str(caught.value)


def test_unknown_normalization_gets_a_suggestion():
    with pytest.raises(
        InputError, match=r"unknown normalization 'standardised': did you mean 'standardized'"
    ):
        load("digits", normalization="standardised")


REMEDIES = "download=True, or point NB_LIB_DATA or root at"


@pytest.mark.parametrize("name", DATASETS[1:])
def test_missing_data_name_the_file_and_both_remedies(name, root):
    with pytest.raises(InputError, match=REMEDIES) as caught:
        load(name, root=root)
    assert name in str(caught.value)
    assert str(root) in str(caught.value)
    assert entries(root) == []


def test_one_missing_file_is_named(root):
    write_mnist(root)
    path = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.unlink()
    with pytest.raises(InputError, match=f"{re.escape(str(path))} is missing: .*{REMEDIES}"):
        load("mnist", root=root)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-5])


def trailing(path):
    path.write_bytes(path.read_bytes() + b"more")


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(os.urandom(100))


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
    message = f"{re.escape(str(root / 'MNIST' / 'raw'))} is damaged: delete it and load 'mnist' with download"
    with pytest.raises(InputError, match=message):
        load("mnist", root=root)


UNPICKLED = []


def mark():
    UNPICKLED.append("mark")


class Exploit:
    def __reduce__(self):
        return mark, ()


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_cifar_is_refused_before_it_is_unpickled(root, monkeypatch, file):
    write_cifar(root, "cifar10", monkeypatch)
    assert len(load("cifar10", root=root).train) == 50
    path = root / "cifar-10-batches-py" / file
    path.write_bytes(pickle.dumps(Exploit()))
    pickle.loads(path.read_bytes())
    assert UNPICKLED.pop() == "mark"  # it would work
    message = f"{re.escape(str(path.parent))} is damaged: delete it and load 'cifar10' with download=True"
    with pytest.raises(InputError, match=message):
        load("cifar10", root=root)
    assert not UNPICKLED
    truncated(path)
    with pytest.raises(InputError, match=message):
        load("cifar10", root=root)


# --- downloads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS[1:])
def test_failed_download_is_refused_and_leaves_nothing(name, tmp_path):
    with pytest.raises(
        InputError, match=f"{name} could not be downloaded into .*/new: .*NB_LIB_DATA or root"
    ):
        load(name, root=tmp_path / "new", download=True)
    assert entries(tmp_path / "new") == []


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


# --- image folders: what is refused -----------------------------------------------------------------------


def test_no_such_folder_is_refused(root):
    where = re.escape(str(root / "pets" / "train"))
    with pytest.raises(InputError, match=f"no class folders in {where}: .*NB_LIB_DATA or root"):
        load("folder:pets", root=root)


def test_folder_without_test_part_is_refused(root):
    folder = write_folder(root)
    (folder / "test").rename(root / "elsewhere")
    with pytest.raises(InputError, match=f"no class folders in {re.escape(str(folder / 'test'))}"):
        load("folder:pets", root=root)


def test_empty_class_is_refused(root):
    folder = write_folder(root)
    (folder / "train" / "cow").mkdir()
    (folder / "test" / "cow").mkdir()
    with pytest.raises(InputError, match=f"no images in {re.escape(str(folder / 'train' / 'cow'))}: put"):
        load("folder:pets", root=root)


@pytest.mark.parametrize("part", ["train", "test"])
def test_classes_that_differ_are_refused(root, part):
    folder = write_folder(root)
    (folder / part / "cow").mkdir()
    where = re.escape(str(folder))
    with pytest.raises(InputError, match=f"class 'cow' is in only one of train and test of {where}"):
        load("folder:pets", root=root)


def test_images_of_differing_size_are_refused(root):
    folder = write_folder(root)
    odd = folder / "test" / "dog" / "002.png"
    Image.new("RGB", (7, 4)).save(odd)
    with pytest.raises(InputError, match=r"is 7x4, .* is 5x4: give all images one size") as caught:
        load("folder:pets", root=root)
    assert str(odd) in str(caught.value)


def sixteen_bits(path):
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(path)


def dangling(path):
    path.unlink()
    path.symlink_to(path.parent / "nowhere.png")


def half_image(path):
    Image.fromarray(pixels(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [empty, garbage, half_image, sixteen_bits, dangling])
def test_unreadable_images_are_named(root, damage):
    path = write_folder(root) / "train" / "cat" / "003.png"
    damage(path)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} .*: replace or delete it"):
        load("folder:pets", root=root)
    assert not (root / ".nb_lib_cache").exists()


# --- image folders: the cache -----------------------------------------------------------------------------


def test_second_load_does_not_decode(root, monkeypatch):
    write_folder(root)
    first = load("folder:pets", root=root)
    forbid_decoding(monkeypatch)
    second = load("folder:pets", root=root)
    for one, two in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.y, two.y)
    assert first.variant == second.variant
    (cache,) = (root / ".nb_lib_cache").iterdir()
    assert re.fullmatch(r"pets-[0-9a-f]{16}\.npz", cache.name)


def changed_pixel(cache):
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 255
    cache.write_bytes(content)


def foreign_npz(cache):
    np.savez(cache, something=np.zeros(3))


def plain_npy(cache):
    with cache.open("wb") as file:
        np.save(file, np.zeros(3))


def pickled(cache):
    cache.write_bytes(pickle.dumps({"nchw": 1}))


@pytest.mark.parametrize(
    "damage", [truncated, empty, garbage, changed_pixel, foreign_npz, plain_npy, pickled]
)
def test_damaged_cache_is_rebuilt(root, monkeypatch, damage):
    write_folder(root)
    first = load("folder:pets", root=root)
    (cache,) = (root / ".nb_lib_cache").iterdir()
    good = cache.read_bytes()
    damage(cache)
    assert cache.read_bytes() != good
    assert torch.equal(load("folder:pets", root=root).train.x, first.train.x)
    forbid_decoding(monkeypatch)
    assert torch.equal(load("folder:pets", root=root).train.x, first.train.x)


def test_changed_added_and_removed_files_invalidate_the_cache(root):
    folder = write_folder(root)
    load("folder:pets", root=root)
    path = folder / "train" / "cat" / "000.png"
    before = path.stat()
    Image.new("RGB", (5, 4), (77, 77, 77)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = load("folder:pets", root=root)
    assert (changed.train.x * 255).round().eq(77).all(dim=(1, 2, 3)).sum() == 1
    Image.new("RGB", (5, 4)).save(folder / "test" / "cat" / "new.png")
    assert len(load("folder:pets", root=root).test) == 7
    path.unlink()
    assert len(load("folder:pets", root=root).train) == 11


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_interrupted_write_leaves_no_cache(root, monkeypatch, step):
    write_folder(root)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            load("folder:pets", root=root)
    assert entries(root / ".nb_lib_cache") == []
    assert len(load("folder:pets", root=root).train) == 12
    assert len(entries(root / ".nb_lib_cache")) == 1


def test_cache_goes_to_the_user_where_the_root_is_not_writable(root, tmp_path, monkeypatch):
    monkeypatch.setenv("NB_LIB_DATA", str(root))
    write_folder(root)
    (root / ".nb_lib_cache").write_text("a file, so no folder can be made: also for the administrator")
    load("folder:pets")
    assert len(entries(tmp_path / "user" / "nb_lib" / "data" / ".nb_lib_cache")) == 1
    forbid_decoding(monkeypatch)
    assert len(load("folder:pets").train) == 12


def test_no_writable_place_at_all_is_no_error(root, tmp_path, monkeypatch):
    write_folder(root)
    (root / ".nb_lib_cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / ".nb_lib_cache"))
    assert len(load("folder:pets", root=root).train) == 12


# --- sampling ---------------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 5), (10, 10), (7, 1)])
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_epoch_is_one_permutation_per_stream(n, batch, streams):
    batches = epoch_indices(n, batch, streams=streams, generator=generator())
    assert [b.shape for b in batches] == [
        (streams, min(batch, n - start)) for start in range(0, n, batch)
    ]  # the last is kept
    whole = torch.cat(list(batches), dim=1)
    assert whole.dtype == torch.int64
    assert torch.equal(whole.sort(dim=1).values, torch.arange(n).expand(streams, n))


def test_epoch_is_decided_by_the_generator_alone():
    one, again = (epoch_indices(50, 8, streams=2, generator=generator(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    g = generator(3)
    whole = torch.cat(list(one), dim=1)
    assert torch.equal(whole[0], torch.randperm(50, generator=g))  # stream 0 first
    assert torch.equal(whole[1], torch.randperm(50, generator=g))
    assert not torch.equal(whole[0], whole[1])
    first = epoch_indices(50, 8, generator=g)
    assert not torch.equal(torch.cat(list(first), dim=1)[0], whole[0])  # every epoch anew


def test_streams_are_independent():
    g, n, epochs = generator(), 4, 4000
    table = torch.zeros(n, n)
    for _ in range(epochs):
        first = epoch_indices(n, n, streams=2, generator=g)[0]
        table[first[0, 0], first[1, 0]] += 1
    expected = epochs / n**2
    assert ((table - expected) ** 2 / expected).sum() < 37.7  # chi-squared, 15 degrees of freedom, p = 0.001


def test_batches_are_views():
    a, b = epoch_indices(4, 2, streams=2, generator=generator())
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("batch", "streams", "message"),
    [
        (11, 1, "batch_size must be a whole number, from 1 to 10, not 11"),
        (0, 1, "batch_size must be a whole number, from 1 to 10, not 0"),
        (2.5, 1, "batch_size must be a whole number, from 1 to 10, not 2.5"),
        (5, 0, "streams must be a whole number, 1 or more, not 0"),
    ],
)
def test_impossible_batches_are_refused(batch, streams, message):
    with pytest.raises(InputError, match=message):
        epoch_indices(10, batch, streams=streams, generator=generator())


# --- manners ----------------------------------------------------------------------------------------------


def global_states():
    return torch.get_rng_state().tolist(), random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002


def test_global_random_state_is_untouched(root):
    write_mnist(root)
    write_folder(root)
    before = global_states()
    load("digits", train_size=100, valid_size=100, test_size=100, normalization="standardized")
    load("mnist", root=root, train_size=30)
    load("folder:pets", root=root, train_size=4)
    epoch_indices(100, 10, streams=2, generator=generator())
    assert global_states() == before
    torch.rand(1)
    assert global_states() != before  # it would be seen


def test_import_is_light():
    code = "import sys, nb_lib.lab.data; print([m for m in ('torchvision', 'sklearn', 'PIL') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
