"""Folders of images: what is read, what is refused and how, what is cached."""

import os
import pickle
import re

import numpy as np
import pytest
import torch
from made_data import empty, entries, garbage, pixels, truncated, write_folder
from PIL import Image
from torchvision import datasets

from nb_lib.errors import InputError
from nb_lib.lab import image_folder
from nb_lib.lab.data import load

pytestmark = pytest.mark.usefixtures("root")


def forbid_decoding(monkeypatch):
    def fail(path):
        raise AssertionError(f"decoded {path}")

    monkeypatch.setattr(image_folder, "_image", fail)


def test_image_folder_equals_torchvisions_in_a_mixed_order(root):
    folder = write_folder(root, n=(40, 3), kind="jpg")
    first, second = load("folder:pets", root=root), load("folder:pets", root=root)
    assert first.variant == "image folder, JPEG files"
    assert first.classes == ("cat", "dog")
    for loaded in (first, second):  # decoded, then cached
        for split, part in ((loaded.train, "train"), (loaded.test, "test")):
            reference = datasets.ImageFolder(folder / part)
            theirs = sorted((np.asarray(image).transpose(2, 0, 1).tolist(), y) for image, y in reference)
            assert sorted(zip((split.x * 255).round().int().tolist(), split.y.tolist(), strict=True)) == theirs
            assert split.x.is_contiguous()
            assert split.x.shape[1:] == (3, 4, 5)
    assert 5 < first.train.y[:40].sum() < 35  # by name, the first 40 would all be cats
    assert torch.equal(first.train.x, second.train.x)


def picture(path, *color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), color).save(path)


def below(folder):
    """Images at several depths, of names whose order is not that of their folders."""
    names = [
        "z.png",
        "a/z.png",
        "a/b/c.png",
        "a-b/x.png",
        "a b/x.png",
        "B/a.PNG",
        "x.png/inner.png",
        "a.jpg/deep/0.png",
    ]
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            for i, image in enumerate(names):
                picture(folder / part / name / "more" / image, 20 * i, 90 * label, 7)


def linked(folder):
    """A class that is a link, and a subfolder that is one."""
    elsewhere = folder.parent / "elsewhere"
    for i in range(3):
        picture(elsewhere / f"deep/{i}.png", 60 * i, 1, 2)
    for part in ("train", "test"):
        (folder / part / "cow").symlink_to(elsewhere)
        (folder / part / "cat/link").symlink_to(elsewhere / "deep")


def only_below(folder):
    """A class all of whose images are in subfolders."""
    for part in ("train", "test"):
        for i in range(2):
            picture(folder / part / f"cow/day {i}/cow.png", 70 * i, 70, 70)


@pytest.mark.parametrize("case", [below, linked, only_below])
def test_images_in_subfolders_of_a_class_are_read_in_the_order_of_torchvision(case, root):
    folder = write_folder(root)
    case(folder)
    loaded = load("folder:pets", root=root)
    for split, part in ((loaded.train, "train"), (loaded.test, "test")):
        reference = datasets.ImageFolder(folder / part)
        assert loaded.classes == tuple(reference.classes)
        order = image_folder.shuffled(len(reference), 0).tolist()
        theirs = [reference[i] for i in order]
        assert split.y.tolist() == [label for _, label in theirs]
        images = torch.stack([torch.from_numpy(np.array(image)) for image, _ in theirs])
        assert torch.equal((split.x * 255).round().to(torch.uint8), images.permute(0, 3, 1, 2))


def test_hidden_subfolders_are_left_out_and_a_link_around_is_followed_once(root):
    folder = write_folder(root)
    picture(folder / "train/cat/.thumbnails/000.png", 1, 2, 3)
    picture(folder / "train/cat/more/1.png", 1, 2, 3)
    (folder / "train/cat/more/around").symlink_to(folder / "train/cat")
    (folder / "train/cat/more/self").symlink_to(folder / "train/cat/more")
    assert len(load("folder:pets", root=root).train) == 12 + 1


def test_an_image_added_to_a_subfolder_is_seen_though_the_others_are_cached(root):
    folder = write_folder(root)
    picture(folder / "train/cat/more/1.png", 1, 2, 3)
    assert len(load("folder:pets", root=root).train) == 13
    picture(folder / "train/cat/more/2.png", 1, 2, 3)
    assert len(load("folder:pets", root=root).train) == 14


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
    with pytest.raises(InputError, match=f"{re.escape(str(path))}.*[:;] replace it, or move it elsewhere"):
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


@pytest.mark.parametrize("damage", [truncated, empty, garbage, changed_pixel, foreign_npz, plain_npy, pickled])
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
