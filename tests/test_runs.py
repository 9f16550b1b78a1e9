"""Runs, records and their store: what is refused, what a key depends on, and that nothing is lost."""

import dataclasses
import errno
import hashlib
import json
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from nb_lib.errors import InputError
from nb_lib.lab import files
from nb_lib.lab.files import write_atomically
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, frame, load_records, merge, read_lines, write_lines
from nb_lib.protocols import PROTOCOLS, protocol

BOOK = Path(__file__).parents[1] / "book" / "data"


def record(run: Run = Run(), **changes) -> Record:  # noqa: B008 (a Run is frozen)
    fields = {
        "run": run, "status": "finished", "test_accuracy": 0.5, "best_test_accuracy": 0.75, "valid_accuracy": None,
        "train_accuracy": 1.0, "train_loss": 0.125, "test_loss": 2.5, "epochs": 3, "updates": 30, "samples": 300,
        "wall_time": 1.5, "curve": [{"epoch": 1, "loss": 0.1}], "provenance": {"device": "a CPU", "torch": "2.x"},
    }  # fmt: skip
    return Record(**{**fields, **changes})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0.99}, "alpha must be a finite number of at least 1"),
        ({"alpha": math.nan}, "alpha must be a finite number"),
        ({"alpha": math.inf}, "alpha must be a finite number"),
        ({"alpha": "1,5"}, "alpha must be a number, as 0.1 or 1e-3, not '1,5'"),
        ({"alpha": None}, "alpha must be a number, as 0.1 or 1e-3, not None"),
        ({"a": -0.1}, "noise strength a must be a finite number of at least 0"),
        ({"network": "ne-f2"}, "unknown network 'ne-f2': did you mean 'ne-f1'"),
        ({"network": "resnet43"}, "unknown network 'resnet43': did you mean 'resnet44'"),
        ({"dataset": "fashionmnist"}, "did you mean 'fashion-mnist'"),
        ({"augment": "crop-filp"}, "unknown augmentation 'crop-filp': did you mean 'crop-flip'"),
        ({"augment": "crop-flip "}, "unknown augmentation"),
        ({"augment": None}, "augment must be a text, not None"),
        ({"optimizer": "adamw"}, "did you mean 'adam'"),
        ({"perturb": "no norm"}, "did you mean 'no-norm'"),
        ({"lr_scaling": "squareroot"}, "unknown learning-rate scaling"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"cutting": "evenly"}, "unknown cutting 'evenly': did you mean 'even'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        (
            {"batch_size": 251, "train_size": 250},
            r"batch_size 251 is larger than the training set \(250 samples\)",
        ),
        ({"batch_size": 10.5}, "batch_size must be a whole number, as 100"),
        ({"batch_size": None}, "batch_size must be a whole number, as 100"),
        ({"batch_size": True}, "batch_size must be a whole number, as 100"),
        ({"adaptive": 1}, "adaptive must be true or false, not 1"),
        ({"fresh_optimizer": 1}, "fresh_optimizer must be true or false, not 1"),
        ({"lr": 0.0}, "lr must be a positive finite number"),
        ({"lr": math.nan}, "lr must be a positive"),
        ({"clip": -5}, "clip must be a positive"),
        ({"momentum": 1}, r"momentum must be in \[0, 1\)"),
        ({"ghost_batch": 1}, "ghost_batch must be at least 2"),
        ({"lr_steps": ((10, -0.1),)}, "lr_steps must be pairs"),
        (
            {"lr_steps": (10, 0.1)},
            r"lr_steps must be a list of \(whole number, number\), as \[\[10, 0.1\], \[10, 0.1\]\]",
        ),
        ({"lr_steps": ((0.5, 0.1),)}, "lr_steps must be a list of"),
        ({"lr_steps": "[[0.5, 0.1]]"}, "lr_steps must be a list of"),
        ({"lr_steps": ((True, 0.1),)}, "lr_steps must be a list of"),
        ({"lr_steps": None}, "lr_steps must be a list of"),
        ({"train_size": 12.5}, "train_size must be a whole number, as 100, or none, not 12.5"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_impossible_values_are_refused_in_one_sentence(fields, message):
    with pytest.raises(InputError, match=message) as caught:
        Run(**fields)
    assert "\n" not in str(caught.value)


NOISY, SGD = {"a": 0.1}, {"optimizer": "sgd"}
#: What each of these fields needs beside it to have an effect.
NEEDED = {
    **dict.fromkeys(("distribution", "adaptive", "perturb", "denoise"), NOISY),
    "ghost_batch": {"network": "resnet8"},
    "cutting": {"network": "resnet8"},
    "momentum": SGD,
    "lr_reference": {"lr_scaling": "sqrt"},
    "split_seed": {"valid_size": 100},
}
WITHOUT_EFFECT = [
    ({"distribution": "normal"}, "there is no weight noise"),
    ({"adaptive": True}, "there is no weight noise"),
    ({"perturb": "all"}, "there is no weight noise"),
    ({"denoise": False}, "there is no weight noise"),
    ({"ghost_batch": 50}, "digits-mlp has no batch normalization"),
    ({"cutting": "even"}, "no batch is cut into parts"),
    ({"cutting": "even", "noise_batch": 50}, "no batch is cut into parts"),
    ({"cutting": "even", "network": "ne-f1", "a": 0.1}, "no batch is cut into parts"),
    ({"momentum": 0.9}, "adam has none"),
    ({"fresh_optimizer": True, "optimizer": "sgd"}, "SGD without momentum keeps nothing"),
    ({"lr_reference": 64}, "lr_scaling is none"),
    ({"split_seed": 1}, "no subset is drawn"),
]


@pytest.mark.parametrize(("fields", "reason"), WITHOUT_EFFECT)
def test_a_field_without_effect_under_the_others_is_refused(fields, reason):
    name = next(iter(fields))
    with pytest.raises(InputError, match=f"^{name} .* has no effect, .*{reason}.*: leave it out.$"):
        Run(**fields)
    beside = ({"fresh_optimizer": {"optimizer": "adam"}} | NEEDED)[name]
    assert Run(**fields | beside).key != Run(**beside).key


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr_steps": ((0, 0.1),)}, "lr_steps begin after epoch 0: the rate before the first of them is lr."),
        (
            {"lr_steps": ((5, 0.1),), "epochs": 5},
            "lr_steps has one at epoch 5, after the last of 5: .*protocols.regime",
        ),
        ({"lr_steps": ((5, math.inf),)}, "lr_steps must be pairs of epoch and rate"),
        ({"lr_steps": ((-1, 0.1),)}, "lr_steps must be pairs of epoch and rate"),
        ({"halve_at": 0.001, "stop_below": 0.01}, "halve_at 0.001 is never reached above stop_below 0.01: raise it."),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0"),
        ({"weight_decay": math.inf}, "weight_decay must be at least 0"),
        ({"noise_batch": 0}, "noise_batch must be at least 1"),
        ({"lr_reference": 0, "lr_scaling": "sqrt"}, "lr_reference must be at least 1"),
        ({"stop_below": math.inf}, "stop_below must be a positive finite number"),
        ({"valid_size": -1}, "valid_size must be at least 0"),
        ({"image_size": 0}, "image_size must be at least 1, not 0"),
        ({"dataset": "imagenet"}, "the images of imagenet have many sizes: give image_size, the published one is 224"),
        ({"augment": "resized-crop-flip"}, "'resized-crop-flip' resizes to image_size: give it, or choose 'crop-flip'"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Run(**fields)


@pytest.mark.parametrize("network", [*PROTOCOLS, "resnet8"])
@pytest.mark.parametrize("method", [{}, {"a": 0.1}, {"alpha": 1.5}, {"a": 0.1, "adaptive": True, "denoise": False}])
@pytest.mark.parametrize("batch_size", [2, 100, 128, 600])
def test_every_protocol_goes_with_every_method_and_batch_size(network, method, batch_size):
    """Protocols name parts of the noise, and how batches are cut, with and without noise; so do recorded baselines."""
    fields = protocol(network, epochs=3)
    assert Run(**fields, **method, batch_size=batch_size).key != Run(batch_size=batch_size).key


def test_some_fields_without_effect_are_in_keys_that_are_stored():
    assert Run(noise_batch=128).key != Run().key
    assert Run(halve_at=0.01, stop_below=0.01).halve_at == 0.01  # as in the tiny grids of NE


def test_an_unknown_field_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'alpha'"):
        Run.from_dict({"alhpa": 1.5})


def test_a_key_depends_on_the_content_alone():
    assert Run(alpha=2, lr_steps=[[10, 1]]).key == Run(alpha=2.0, lr_steps=((10, 1.0),)).key
    assert Run.from_dict(json.loads(json.dumps(Run(alpha=1.5, batch_size=7).to_dict()))) == Run(alpha=1.5, batch_size=7)
    others = {"network": "smoothout-f1", "dataset": "folder:mine", "train_size": 100, "valid_size": 9, "split_seed": 1}
    others |= {"inputs": "standardized", "batch_size": 98, "alpha": 1.25, "a": 0.1, "distribution": "normal"}
    others |= {"adaptive": True, "perturb": "all", "denoise": False, "noise_batch": 32, "ghost_batch": 64}
    others |= {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "clip": 5.0, "seed": 3}
    others |= {"lr_scaling": "sqrt", "lr_reference": 256, "lr_steps": ((1, 0.1),), "halve_at": 0.01}
    others |= {"stop_below": 0.001, "epochs": 7, "precision": "bfloat16", "cutting": "even"}
    others |= {"augment": "crop-flip", "image_size": 96, "fresh_optimizer": True}
    assert all(others[f.name] != f.default for f in dataclasses.fields(Run))  # every field is tried
    lacking_one = [{name: value for name, value in others.items() if name != left_out} for left_out in others]
    with_one = [{**NEEDED.get(name, {}), name: value} for name, value in others.items()]
    keys = {Run(**fields).key for fields in with_one}
    assert len(keys | {Run().key}) == len(others) + 1
    needed = {"network", "a", "optimizer", "momentum", "lr_scaling"}  # without which others have no effect
    keys = {Run(**fields).key for fields in lacking_one if needed <= fields.keys()}
    assert len(keys) == len(others) - len(needed)


def test_text_gives_the_run_and_the_key_of_the_value_that_it_means():
    as_typed = {
        "network": "'resnet8'", "batch_size": "1_0", "alpha": "1.5e0", "a": ".1", "adaptive": "Yes", "noise_batch": "5",
        "ghost_batch": "null", "optimizer": "sgd", "momentum": ".9", "clip": "None", "train_size": "~",
        "lr_steps": "[[3, 1e-2], [9, 1e-3]]", "denoise": "off", "epochs": "1e1",
    }  # fmt: skip
    meant = {
        "network": "resnet8", "batch_size": 10, "alpha": 1.5, "a": 0.1, "adaptive": True, "noise_batch": 5,
        "ghost_batch": None, "optimizer": "sgd", "momentum": 0.9, "clip": None, "train_size": None,
        "lr_steps": ((3, 0.01), (9, 0.001)), "denoise": False, "epochs": 10,
    }  # fmt: skip
    assert Run(**as_typed) == Run(**meant)
    assert Run(**as_typed).key == Run(**meant).key


def test_the_key_of_a_stored_run_never_changes():
    assert Run().key == "44136fa355b3678a"  # the hash of no content: defaults do not enter
    assert Run(network="ne-f1", dataset="fashion-mnist", batch_size=2000, alpha=1.5, seed=3).key == "2737076a506e4271"
    augmented = Run(network="resnet44", dataset="cifar10", augment="crop-flip", fresh_optimizer=True)
    assert augmented.key == "240000ab0cbd9c6b"


def test_the_key_of_every_record_of_the_book_is_the_hash_of_what_it_stored():
    """Whatever fields are younger than the record."""
    defaults = json.loads(json.dumps(Run().to_dict()))
    lines = [line for file in BOOK.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert lines
    for line in lines:
        stored = json.loads(line)["run"]
        chosen = {name: value for name, value in stored.items() if value != defaults[name]}
        text = json.dumps(chosen, sort_keys=True)
        assert Record.from_json(line).run.key == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_record_from_before_there_was_augmentation_has_none():
    old = json.loads(record().to_json())
    del old["run"]["augment"]
    del old["run"]["fresh_optimizer"]
    run = Record.from_json(json.dumps(old)).run
    assert (run.augment, run.fresh_optimizer) == ("none", False)


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet44", "resnet1202"])
def test_a_residual_run_of_any_depth_survives_json(name):
    fields = {"network": name, "augment": "crop-flip", "fresh_optimizer": True, "epochs": 400}
    fields["lr_steps"] = ((162, 0.01), (244, 1e-3))
    run = Run(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, clip=5, noise_batch=128, **fields)
    again = Run.from_dict(json.loads(json.dumps(run.to_dict())))
    assert again == run
    assert again.key == run.key
    kept = record(run)
    assert Record.from_json(kept.to_json()) == kept


@pytest.mark.parametrize(
    ("key", "fields"),
    [  # of the book's records
        (
            "a5a2e347122836c8",
            {
                "network": "ne-f1",
                "batch_size": 900,
                "seed": 1,
                "halve_at": 0.01,
                "stop_below": 0.001,
                "epochs": 2000,
            },
        ),
        (
            "c19ba890ccca7be4",
            {
                "network": "smoothout-f1",
                "batch_size": 6000,
                "a": 0.0375,
                "noise_batch": 128,
                "epochs": 50,
                "seed": 2,
            },
        ),
    ],
)
def test_keys_of_the_book_s_records_are_those_they_were_stored_under(key, fields):
    data = {
        "ne-f1": {"dataset": "fashion-mnist"},
        "smoothout-f1": {"dataset": "mnist", "inputs": "symmetric"},
    }
    run = Run(**fields, **data[fields["network"]])
    assert run.key == key
    file = BOOK / f"{run.network.replace('-', '_')}.jsonl"
    assert key in {stored.run.key for stored in read_lines(file)}


def test_every_record_of_the_book_is_read_and_written_as_it_stands():
    lines = [line for file in BOOK.glob("*.jsonl") for line in file.read_text().splitlines()]
    for line in lines:
        was, now = json.loads(line), json.loads(Record.from_json(line).to_json())
        assert now["run"] | was.pop("run") == now["run"]  # which may have fields that are younger than the record
        assert now | was == now


def test_a_schedule_enters_the_key_and_numpy_s_numbers_are_as_good_as_python_s():
    steps = ((20, 0.05), (10, 0.1))
    run = Run(lr=0.2, lr_steps=steps, batch_size=512, lr_scaling="linear")
    assert run.key == "f77adb7332d33abe"
    assert run.scaled_lr_steps == ((0, 0.8), (10, 0.4), (20, 0.2))
    assert Run(epochs=np.int64(7), lr=np.float64(0.5)).key == Run(epochs=7, lr=0.5).key


def test_in_a_row_the_samples_of_the_training_are_not_those_of_the_measures():
    row = record(measures={"samples": 80.0, "trace": 1.0}).row()
    assert (row["samples"], row["measured_samples"], row["trace"]) == (300, 80.0, 1.0)


def test_a_record_from_before_there_was_a_choice_of_cutting_is_one_with_a_rest():
    old = json.loads(record().to_json())
    del old["run"]["cutting"]
    assert Record.from_json(json.dumps(old)).run.cutting == "rest"


def test_merged_records_are_sorted_and_what_is_there_stays(tmp_path):
    store, file, into = RunStore(tmp_path / "store"), tmp_path / "more.jsonl", tmp_path / "into.jsonl"
    write_lines([record(Run(seed=2), wall_time=1.0)], into)
    store.save(record(Run(seed=2), wall_time=9.0))
    store.save(record(Run(seed=0)))
    write_lines([record(Run(seed=1), wall_time=2.0), record(Run(seed=0), wall_time=9.0)], file)
    assert merge([store.folder, file], into) == {into: 3}
    assert [(r.run.seed, r.wall_time) for r in read_lines(into)] == [(0, 1.5), (1, 2.0), (2, 1.0)]
    assert merge([store.folder, file], into) == {into: 3}


def test_a_folder_takes_records_by_network_and_none_twice(tmp_path):
    book, home = tmp_path / "book", tmp_path / "home.jsonl"
    f1, other, here = Run(network="ne-f1"), Run(network="smoothout-c1"), Run(network="ne-f1", seed=1)
    write_lines([record(here, wall_time=1.0)], book / "of_another_name.jsonl")
    write_lines([record(f1)], book / "ne_f1.jsonl")
    new = Run(network="ne-f1", seed=2)
    write_lines([record(run, wall_time=9.0) for run in (f1, other, here, new)], home)
    for _ in range(2):
        changed = merge([home], book)
        found = {file.name: [(r.run, r.wall_time) for r in read_lines(file)] for file in book.glob("*.jsonl")}
        assert found == {
            "of_another_name.jsonl": [(here, 1.0)],
            "ne_f1.jsonl": [(f1, 1.5), (new, 9.0)],
            "smoothout_c1.jsonl": [(other, 9.0)],
        }
    assert changed == {}


def test_a_record_survives_json_also_with_nan():
    kept = record(Run(lr_steps=((5, 0.1),)))
    assert Record.from_json(kept.to_json()) == kept
    diverged = record(train_loss=math.nan, test_loss=math.inf, status="diverged")
    assert "NaN" not in diverged.to_json()
    again = Record.from_json(diverged.to_json())
    assert math.isnan(again.train_loss)
    assert again.status == "diverged"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": {"alpha": 1}}', record().to_json()[:-20]])
def test_what_is_not_a_record_is_refused(text):
    with pytest.raises(InputError):
        Record.from_json(text)


def test_a_store_keeps_finds_and_tabulates_records(tmp_path):
    store = RunStore(tmp_path / "deep" / "results")
    assert len(store) == 0
    assert Run() not in store
    for seed in (0, 1):
        store.save(record(Run(seed=seed, epochs=50)))
    assert len(store) == 2
    assert Run(seed=1, epochs=50) in store
    assert store.load(Run(seed=1, epochs=50)) == record(Run(seed=1, epochs=50))
    table = frame(store)
    assert table[["seed", "test_accuracy", "epochs", "epochs_limit", "device"]].sort_values("seed").values.tolist() == [
        [0, 0.5, 3, 50, "a CPU"],
        [1, 0.5, 3, 50, "a CPU"],
    ]
    with pytest.raises(InputError, match="no record of run"):
        store.load(Run())


def test_a_damaged_record_is_named(tmp_path):
    store = RunStore(tmp_path)
    store.save(record())
    store.path(Run()).write_text("{")
    with pytest.raises(InputError, match=r"\.json is not a record of a run, or not a whole one: move it elsewhere"):
        frame(store)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_loses_nothing_and_leaves_nothing(step, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        write_atomically(path, lambda file: file.write(b"new content"))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_nothing(step, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        RunStore(tmp_path).save(record())
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_readable_by_whoever_may_read_the_folder(tmp_path):
    (tmp_path / "ordinary").touch()
    RunStore(tmp_path).save(record())
    assert RunStore(tmp_path).path(Run()).stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def _write_many(folder, who):
    for i in range(60):
        RunStore(folder).save(record(Run(seed=i % 6), wall_time=float(who)))


def test_concurrent_writers_and_a_reader_always_see_whole_records(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, who)) for who in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert all(isinstance(r, Record) for r in RunStore(tmp_path))
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(RunStore(tmp_path)) == 6
    assert not list(tmp_path.glob(".writing-*"))


def test_of_several_rates_from_one_epoch_on_the_last_counts():
    run = Run(lr=1.0, lr_steps=((5, 0.1), (2, 0.3), (5, 0.01)))
    assert run.scaled_lr_steps == ((0, 1.0), (2, 0.3), (5, 0.1), (5, 0.01))
    assert [run.lr_at(epoch) for epoch in (0, 1, 2, 4, 5, 9)] == [1.0, 1.0, 0.3, 0.3, 0.01, 0.01]


def test_other_files_in_the_folder_of_a_store_are_left_alone(tmp_path):
    store = RunStore(tmp_path)
    kept = record()
    store.save(kept)
    (tmp_path / "resnet_profiles.json").write_text("[\n\n]\n")
    assert len(store) == 1
    assert load_records(tmp_path) == [kept]
