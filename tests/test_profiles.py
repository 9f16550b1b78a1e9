"""Profiles of trained networks: the curves against the functions they are made of, and the file that keeps them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from shared import refused
from torch.nn import functional as F

from nb_lib.__main__ import main
from nb_lib.lab.networks import build
from nb_lib.lab.runs import Run
from nb_lib.lab.setup import load_for, trained
from nb_lib.lab.store import RunStore
from nb_lib.objective import Objective
from nb_lib.papers import grid
from nb_lib.profiles import Profile, load_profiles, profile, profile_of, save_profiles, table

RUN = Run(network="resnet8", train_size=60, batch_size=30, epochs=1, seed=3)
FEW = {"positions": [-0.5, 0.0, 0.5], "strengths": [0.0, 0.02], "samples": 50, "draws": 4}


@pytest.fixture(scope="module")
def data():
    return load_for(RUN, device="cpu")


@pytest.fixture(scope="module")
def model(data):
    return build(RUN.network, data.shape, 10, seed=1).eval()


@pytest.fixture(scope="module")
def found(model, data):
    return profile_of(RUN, model, data, **FEW)


def test_both_curves_begin_at_the_loss_and_accuracy_of_the_network_itself(found, model, data):
    objective = Objective(model, data.train.x[:50], data.train.y[:50])  # statistics of these samples
    at_w = found.curves[found.curves["x"] == 0]
    assert sorted(zip(at_w["curve"], at_w["data"], strict=True)) == [
        ("line", "test"),
        ("line", "train"),
        ("noise", "test"),
        ("noise", "train"),
    ]
    for name, split in (("train", data.train), ("test", data.test)):
        with torch.no_grad():
            logits = objective.model(split.x[:50])
        loss = F.cross_entropy(logits, split.y[:50]).item()
        accuracy = (logits.argmax(1) == split.y[:50]).float().mean().item()
        rows = at_w[at_w["data"] == name]
        assert rows["loss"].to_numpy() == pytest.approx(loss, rel=1e-5)
        assert rows["accuracy"].to_numpy() == pytest.approx(accuracy)


def test_the_line_moves_every_filter_by_its_own_length_and_nothing_else(found, model, data):
    """Loss at w + x d, with d drawn and scaled here filter by filter, gains, shifts and biases left alone."""
    objective = Objective(model, data.train.x[:50], data.train.y[:50])
    generator = torch.Generator().manual_seed(RUN.seed)
    line = found.curves.query("curve == 'line' and data == 'train'").set_index("x")
    moved = objective.model
    with torch.no_grad():
        for parameter in objective.flat.parameters:  # the order in which directions are drawn
            d = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                for filter_, step in zip(parameter, d, strict=True):
                    filter_.add_(0.5 * step * filter_.norm() / step.norm())
        loss = F.cross_entropy(moved(data.train.x[:50]), data.train.y[:50]).item()
    assert line.loc[0.5, "loss"] == pytest.approx(loss, rel=1e-4)
    assert line.loc[-0.5, "loss"] != pytest.approx(loss, rel=1e-4)


def test_profiles_of_one_seed_share_their_noise_and_another_seed_has_its_own(model, data):
    first, again, other = (profile(model, data, seed=seed, **FEW) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    noise = first["curve"].eq("noise") & first["x"].gt(0)
    assert not np.allclose(first.loc[noise, "loss"], other.loc[noise, "loss"])


def test_a_file_gives_back_what_was_saved_to_six_digits(found, tmp_path):
    path = tmp_path / "new" / "profiles.json"
    assert save_profiles([found], path) == 1
    [again] = load_profiles(path)
    assert (again.run, again.provenance) == (found.run, found.provenance)
    order = ["curve", "data", "x"]
    expected = found.curves.sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(again.curves.sort_values(order, ignore_index=True), expected, rtol=1e-5)
    assert again.curves.query("curve == 'line'")["loss_error"].isna().all()
    assert again.curves.query("curve == 'noise'")["loss_error"].notna().all()


def test_new_profiles_join_those_of_other_runs_and_replace_those_of_the_same(found, tmp_path):
    path = tmp_path / "profiles.json"
    save_profiles([found], path)
    other = Run(network="resnet8", seed=4, lr_steps=((3, 0.1),))
    replaced = found._replace(provenance={"device": "another"})
    assert save_profiles([replaced, Profile(other, found.curves, {})], path) == 2
    by_seed = {one.run.seed: one for one in load_profiles(path)}
    assert by_seed[3].provenance == {"device": "another"}
    assert by_seed[4].run == other
    lines = path.read_text().splitlines()
    assert len(lines) == 2 + 2, "one line a run, in brackets"
    rows = table(load_profiles(path))
    assert rows.groupby("seed").size().to_dict() == {3: len(found.curves), 4: len(found.curves)}


@pytest.mark.parametrize("content", ["", "{}", '[{"run": {}}]', "[1]", '[{"run": {"networks": 1}, "curves": {}}]'])
def test_a_file_that_is_none_of_profiles_is_refused(tmp_path, content):
    path = tmp_path / "profiles.json"
    path.write_text(content)
    assert str(path) in refused(lambda: load_profiles(path))
    assert "cannot read" in refused(lambda: load_profiles(tmp_path / "none.json"))


@pytest.mark.slow
def test_the_command_measures_the_networks_whose_weights_are_kept(tmp_path, capsys):
    store, into = str(tmp_path / "store"), str(tmp_path / "profiles.json")
    name = "smoothout-fig5-resnet44"
    common = [name, "--scale", "tiny", "--store", store, "--device", "cpu"]
    assert main(["sweep", *common, "--keep-weights", "--seeds", "1"]) == 0
    assert main(["profile", *common, "--into", into, "--samples", "60"]) == 0
    assert "2 profiles" in capsys.readouterr().out
    assert main(["profile", *common, "--into", into, "--samples", "60", "--seeds", "1"]) == 0
    assert "2 profiles" in capsys.readouterr().out, "the same ones, measured again"
    runs = grid(name, "tiny", seeds=1)
    found = load_profiles(into)
    assert {one.run for one in found} == set(runs)
    data = load_for(runs[0], device="cpu")
    expected = profile(trained(runs[0], RunStore(store), data), data, samples=60, seed=runs[0].seed)
    [mine] = [one.curves for one in found if one.run == runs[0]]
    columns = ["curve", "data", "x"]
    ordered = (curves.sort_values(columns, ignore_index=True) for curves in (mine, expected))
    pd.testing.assert_frame_equal(*ordered, rtol=1e-5)
    assert json.loads((tmp_path / "profiles.json").read_text())[0]["provenance"]["dataset_variant"]


def test_without_weights_the_command_says_how_to_have_them(tmp_path, capsys):
    where = ["--store", str(tmp_path), "--into", str(tmp_path / "x.json")]
    assert main(["profile", "smoothout-fig5-resnet44", *where]) == 2
    assert "train them with sweep --keep-weights" in capsys.readouterr().err
