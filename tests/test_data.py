"""Data sets as a training sees them: normalization, subsets, batches; nothing comes from the network."""

import math
import pickle
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_data import write_cifar, write_folder, write_mnist
from torch.testing import assert_close

from nb_lib.errors import InputError
from nb_lib.lab.data import data_root, epoch_indices, load
from nb_lib.lab.names import DATASETS, NORMALIZATIONS
from nb_lib.lab.runs import Run
from nb_lib.lab.setup import load_for
from nb_lib.lab.store import RunStore
from nb_lib.lab.sweeps import sweep
from nb_lib.lab.tasks import Task, data_for
from nb_lib.papers import grid

pytestmark = pytest.mark.usefixtures("root")


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


def test_data_print_as_one_line():
    digits = load("digits", train_size=100, valid_size=50)
    expected = "digits (scikit-learn's bundled digits, 8x8): 100 training, 50 validation, 597 test images of 1x8x8"
    assert str(digits) == repr(digits) == f"{expected}, 10 classes"


def test_data_root_prefers_argument_then_variable_then_cache(tmp_path, monkeypatch):
    assert data_root() == tmp_path / "user" / "nb_lib" / "data"
    monkeypatch.setenv("NB_LIB_DATA", str(tmp_path / "variable"))
    assert data_root() == tmp_path / "variable"
    assert data_root(tmp_path / "argument") == tmp_path / "argument"
    monkeypatch.setenv("NB_LIB_DATA", f'"{tmp_path / "variable"}"')  # as files of variables are often written
    assert data_root() == tmp_path / "variable"
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


def test_imagenet_is_refused_with_what_trains_on_it():
    with pytest.raises(InputError, match=r"^imagenet does not fit on a device: .* `torchrun examples/imagenet\.py`"):
        load("imagenet")


def test_a_run_with_an_image_size_is_refused_also_if_its_data_set_is_loaded():
    elsewhere = "^a run with image_size is trained by `torchrun examples/imagenet.py`"
    whole = Run(train_size=100, batch_size=10)
    cut = replace(whole, image_size=8)
    data_for(whole, "cpu", None, download=False)
    with pytest.raises(InputError, match=elsewhere):
        data_for(cut, "cpu", None, download=False)
    with pytest.raises(InputError, match=elsewhere):
        load_for(cut)
    with pytest.raises(InputError, match=elsewhere):
        sweep(grid("smoothout-table2-alexnet"), progress=False)  # one sentence for all


def test_a_network_for_large_images_waits_for_a_folder_to_say_how_large_they_are():
    runs = [Run(network="alexnet", dataset="folder:large", batch_size=10, seed=seed) for seed in range(2)]
    task = Task(RunStore("no"), "cpu", None, download=False, measure=None, keep_weights=False, deadline=math.inf)
    assert task.groups(runs) == [[run] for run in runs]


@pytest.mark.parametrize("device", ["gpu", "cuda", "", "cpu:x", 3, None, torch.device("cuda", 1)])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device, root):
    with pytest.raises(InputError, match="device"):
        load("mnist", root=root, device=device)


@pytest.mark.parametrize("root", ["", " "])
def test_an_empty_root_is_not_the_users_cache(root, monkeypatch, tmp_path):
    monkeypatch.setenv("NB_LIB_DATA", str(tmp_path))
    with pytest.raises(InputError, match="the path of a file or folder is empty"):
        load("mnist", root=root)


def test_unknown_normalization_gets_a_suggestion():
    with pytest.raises(InputError, match=r"unknown normalization 'standardised': did you mean 'standardized'"):
        load("digits", normalization="standardised")


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


@pytest.mark.slow
def test_import_is_light():
    code = "import sys, nb_lib.lab.data; print([m for m in ('torchvision', 'sklearn', 'PIL') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
