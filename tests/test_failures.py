"""What fails is said before training where it can be, costs no other run, and is said in one line at the end."""

import io
import itertools
import sys
from dataclasses import replace

import pytest
import torch

from nb_lib.__main__ import main
from nb_lib.errors import CannotWrite, InputError
from nb_lib.lab import tasks, training
from nb_lib.lab.data import Data, Split
from nb_lib.lab.device import hidden, pick_device
from nb_lib.lab.runs import Run
from nb_lib.lab.store import RunStore
from nb_lib.lab.sweeps import SomeFailed, sweep
from nb_lib.lab.training import Training, load_for, train

SMALL = Run(train_size=250, batch_size=60, epochs=2)
F1 = {"network": "smoothout-f1"}


def images(n: int, side: int = 8) -> Data:
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.rand(n, 1, side, side, generator=generator), torch.arange(n) % 2)
    return Data("random", "", ("even", "odd"), train=split, test=split)


# ------------------------------------------------------------------------------------------------- batches of one


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"train_size": 1001, "batch_size": 100}, "choose another batch_size or train_size"),
        ({"train_size": 1001, "batch_size": 100, "alpha": 1.5}, "choose another batch_size or train_size"),
        ({"train_size": 1001, "batch_size": 100, "ghost_batch": 50}, "choose another batch_size or train_size"),
        (
            {"train_size": 1001, "batch_size": 100, "a": 0.1, "noise_batch": 50},
            "choose another batch_size or train_size",
        ),
        ({"network": "smoothout-c3", "train_size": 31, "batch_size": 5}, "choose another batch_size or train_size"),
        ({"train_size": 100, "batch_size": 1}, "choose 2 or more"),
        ({"train_size": 100, "batch_size": 50, "a": 0.1, "noise_batch": 1}, "choose 2 or more"),
    ],
)
def test_a_pass_of_one_sample_that_cannot_be_normalized_is_refused_before_anything_is_loaded(fields, remedy):
    with pytest.raises(InputError, match=rf"one sample, which the batch normalization of smoothout-.*{remedy}\.$"):
        Run(**F1 | fields)


def test_what_is_left_by_validation_images_is_counted_before_training():
    """Of 1,200 digits 1,001: how many there are only the data say."""
    with pytest.raises(InputError, match=r"^batch_size 100 leaves of 1001 samples one sample, which"):
        train(Run(**F1, valid_size=199, batch_size=100), progress=False)


def test_a_pass_of_one_sample_is_refused_where_torch_refuses_it_and_nowhere_else(monkeypatch):
    def trains(run, data):
        Training([run], data).train_epoch()

    def refused(call, *arguments):
        try:
            call(*arguments)
        except ValueError as error:
            return "one sample" in str(error) or "Expected more than 1 value per channel" in str(error)
        return False

    monkeypatch.setattr("nb_lib.lab.rules.check_batches", lambda *_, **__: None)
    f1, checked, outcomes = ("smoothout-f1", 8), training.check_batches, set()
    methods = [{}, {"alpha": 1.5, "ghost_batch": 2}]
    methods += [{"a": 0.1, "noise_batch": size, "cutting": cut} for size in (1, 2) for cut in ("rest", "even")]
    sizes = [(10, 3), (11, 4)]
    cases = list(itertools.product([f1], sizes, methods))
    cases += itertools.product([("resnet8", 8), ("resnet8", 4)], [(10, 1), *sizes], [{}])  # at the end 2 x 2 and 1 x 1
    for (network, side), (n, B), method in cases:
        data = images(n, side)
        run = Run(network=network, dataset="folder:it", batch_size=B, **method)
        monkeypatch.setattr(training, "check_batches", checked)
        ours = refused(Training, [run], data)
        monkeypatch.setattr(training, "check_batches", lambda *_, **__: None)
        assert ours == refused(trains, run, data), run
        outcomes.add((network, side, ours))
    assert outcomes == {(*f1, True), (*f1, False), ("resnet8", 8, False), ("resnet8", 4, True), ("resnet8", 4, False)}


# ------------------------------------------------------------------------------------------------ errors of a group


def fails_at(batch_size, error):
    def build(group, data):
        if group[0].batch_size == batch_size:
            raise error
        return Training(group, data)

    return build


def test_an_error_is_that_groups_and_the_sweep_goes_on_and_says_it_at_the_end(tmp_path, monkeypatch, capsys):
    bad = [replace(SMALL, batch_size=50, seed=seed) for seed in range(2)]
    missing = replace(SMALL, network="ne-f1", dataset="mnist")
    good = [SMALL, replace(SMALL, batch_size=25)]
    monkeypatch.setattr(tasks, "Training", fails_at(50, RuntimeError("sizes differ\nmore of it")))
    runs = [*bad, good[0], missing, good[1]]
    with pytest.raises(SomeFailed) as failed:
        sweep(runs, tmp_path, root=str(tmp_path))
    assert [record.run for record in failed.value.records] == good
    heading, first, second = str(failed.value).splitlines()
    assert heading == "3 of 5 runs failed; the same call tries them again."
    assert first.startswith(f"{bad[0].label}: RuntimeError in test_failures.py, line ")
    assert first.endswith(": sizes differ")
    assert second.startswith(f"{missing.label}: mnist is incomplete, ")
    assert "5 runs: 2 trained now, 0 were stored, 3 left (3 failed); 2 finished." in capsys.readouterr().out
    monkeypatch.setattr(tasks, "Training", Training)
    assert len(sweep([*bad, *good], tmp_path)) == 4


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), MemoryError(), OSError(5, "read"), TypeError("a")])
def test_errors_of_any_kind_cost_their_group_alone(error, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "Training", fails_at(50, error))
    with pytest.raises(SomeFailed, match="1 of 2 runs failed"):
        sweep([replace(SMALL, batch_size=50), SMALL], tmp_path, progress=False)
    assert SMALL in RunStore(tmp_path)


def test_what_is_stored_of_a_group_has_not_failed(tmp_path):
    """The second of three seeds side by side cannot be measured."""
    runs, seen = [replace(SMALL, seed=seed) for seed in range(3)], []

    def measure(model, data):
        seen.append(model)
        return {"one": 1 / (2 - len(seen))}

    with pytest.raises(SomeFailed, match="2 of 3 runs failed") as failed:
        sweep(runs, tmp_path, measure=measure, progress=False)
    assert [record.run for record in failed.value.records] == runs[:1]


def test_one_reason_alone_is_said_as_it_is(tmp_path):
    runs = [replace(SMALL, clip=1.0, dataset="folder:none", seed=seed) for seed in range(2)]
    with pytest.raises(InputError) as failed:
        sweep(runs, tmp_path, root=str(tmp_path))
    assert "\n" not in str(failed.value)
    assert "runs failed" not in str(failed.value)


def test_where_nothing_can_be_kept_nothing_more_is_trained(tmp_path, monkeypatch):
    begun = []

    def full(self, record):
        begun.append(record.run)
        raise CannotWrite("cannot write it.")

    monkeypatch.setattr(RunStore, "save", full)
    with pytest.raises(CannotWrite):
        sweep([SMALL, replace(SMALL, batch_size=50)], tmp_path, progress=False)
    assert begun == [SMALL]


def test_a_sweep_of_nothing_is_nothing(tmp_path, capsys):
    assert sweep([], tmp_path) == []
    assert capsys.readouterr().out == "0 runs: 0 trained now, 0 were stored.\n"


# ----------------------------------------------------------------------------------------------- from the command line

TRAIN = ["train", "--train-size", "250", "--epochs", "3", "--clip", "1"]  # clipped networks train alone


def test_a_failed_seed_shows_in_the_exit_status_and_the_others_are_shown(tmp_path, monkeypatch, capsys):
    def build(group, data):
        if group[0].seed == 1:
            raise RuntimeError("no luck")
        return Training(group, data)

    monkeypatch.setattr(tasks, "Training", build)
    assert main([*TRAIN, "--seeds", "3", "--store", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert len(RunStore(tmp_path)) == 2
    assert "(mean ± std of 2 seeds)" in captured.out
    said = captured.err[captured.err.index("nb_lib: ") :].splitlines()
    assert said[0] == "nb_lib: 1 of 3 runs failed; the same call tries them again."
    assert len(said) == 2


def test_a_keyboard_interrupt_is_one_line_and_what_is_stored_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "yes")
    monkeypatch.setattr(Training.finish, "__kwdefaults__", Training.finish.__kwdefaults__ | {"every": 0.0})

    def train_epoch(self, original=Training.train_epoch):
        if self.run.seed == 1 and self.epoch == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Training, "train_epoch", train_epoch)
    assert main([*TRAIN, "--seeds", "2", "--store", str(tmp_path), "--device", "cpu"]) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == ["nb_lib: stopped; what is stored stays, and the same call goes on."]
    assert len(RunStore(tmp_path)) == 1
    [checkpoint] = tmp_path.glob("*.checkpoint")
    assert torch.load(checkpoint, weights_only=True)["progress"][0] == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--seeds", "0"], "seeds must be a whole number, 1 or more, not 0."),
        (["train", "--seeds", "some"], "seeds must be a whole number, as 100, not 'some'."),
        (["sweep", "ne-table2-f1", "--seeds", "0", "--store", "no"], "seeds must be a whole number, 1 or more, not 0."),
        (["measure", "--samples", "-1"], "samples must be a whole number, 1 or more, not -1."),
        (["measure", "--hessian-samples", "0"], "hessian_samples must be a whole number, 1 or more, not 0."),
        (
            ["profile", "ne-f1", "--samples", "0", "--store", "no", "--into", "no"],
            "samples must be a whole number, 1 or",
        ),
        (["train", "--device", "meta"], "'meta' is no device that can train: use 'cpu', 'cuda', one of several as"),
        (["train", "--device", "gpu"], "'gpu' is no device that can train"),
        (["train", "--device", "cuda:1"], "there is no CUDA device here, so none is 'cuda:1': use 'cpu' or 'auto'."),
        (
            ["train", "--lr-steps", "[[0.5, 0.1]]"],
            "lr_steps must be a list of (whole number, number), as [[10, 0.1], [",
        ),
        (["train", "--momentum", "0.9"], "momentum 0.9 has no effect, adam has none: leave it out."),
        (["train", "--halve-at", "1e-3", "--stop-below", ".01"], "halve_at 0.001 is never reached above stop_below"),
        (["train", "--adaptive", "maybe"], "adaptive must be true or false, not 'maybe'."),
        (["train", "--batch-size", "010"], "batch_size must be a whole number, as 100, not '010'."),
        (["train", "--lr", "0,1"], "lr must be a number, as 0.1 or 1e-3, not '0,1'."),
        (["train", "--lr", "nan"], "lr must be a positive finite number, not nan."),
        (["sweep", "ne-f1", "--valid-size", "few", "--store", "no"], "unknown grid 'ne-f1'"),
        (
            ["sweep", "next", "--valid-size", "few", "--store", "no"],
            "valid_size must be a whole number, as 100, not 'f",
        ),
        (["sweep", "next", "--budget", "10x", "--store", "no"], "budget must be a time, as 90s, 8m or 2h, not '10x'."),
        (["sweep", "next", "--budget", "-1s", "--store", "no"], "budget must be a time, as 90s, 8m or 2h, not '-1s'."),
    ],
)
def test_a_command_line_that_cannot_be_used_is_one_sentence_and_exit_status_2(arguments, sentence, capsys):
    first = [
        "--budget=-1s" if text == "-1s" else text for text in arguments if text != "--budget" or "-1s" not in arguments
    ]
    assert main(first) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"nb_lib: {sentence}")
    assert said.count("\n") == 1


def test_options_are_read_by_the_types_of_their_fields(tmp_path):
    given = "--batch-size 1_00 --a .1 --adaptive yes --denoise OFF --clip null --lr 1e-2 --epochs 1 --lr-steps ()"
    assert main(["train", *given.split(), "--seeds", "1e0", "--store", str(tmp_path)]) == 0
    [record] = RunStore(tmp_path)
    assert record.run == Run(batch_size=100, a=0.1, adaptive=True, denoise=False, lr=0.01, epochs=1)


# -------------------------------------------------------------------------------------------------------- surroundings


@pytest.mark.parametrize(("text", "away"), [("1", True), ("true", True), ("0", False), ("no", False), ("", False)])
def test_bars_stay_away_if_the_environment_says_so(text, away, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", text)
    assert hidden(progress=True) == away
    assert hidden(progress=False)


def test_an_environment_that_says_neither_is_refused(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "sometimes")
    with pytest.raises(InputError, match=r"^TQDM_DISABLE must be true or false, not 'sometimes'\.$"):
        hidden(progress=True)


def test_a_device_that_is_not_there_is_answered_with_those_that_are(monkeypatch):
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match=r"^there is no device 'cuda:2' here: the last is 'cuda:1'\.$"):
        pick_device("cuda:2")
    for name in ("mps", "CPU", "", None):
        with pytest.raises(InputError, match="is no device that can train: use 'cpu', 'cuda'"):
            pick_device(name)


def test_an_account_in_an_encoding_without_greek_is_printed_all_the_same(monkeypatch, capsys):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    [record] = sweep([SMALL], named={"first, α = 1": [SMALL]})
    sys.stdout.flush()
    assert rb"first, \u03b1 = 1" in raw.getvalue()
    assert record.run == SMALL


def test_a_diverged_run_is_said_where_its_label_can_be_printed(capsys):
    sweep([replace(SMALL, optimizer="sgd", lr=1e9)], progress=False)
    captured = capsys.readouterr()
    assert "diverged in epoch" in captured.err
    assert captured.out == ""


def test_the_networks_that_cannot_train_on_one_sample_and_those_with_normalization_are_named():
    from nb_lib.ghost_batch_norm import GhostBatchNorm
    from nb_lib.lab import names, networks

    for network in [*names.NETWORKS, "resnet8"]:
        model = networks.build(network, (3, 64, 64), 2)
        sizes = {module.group_size for module in model.modules() if isinstance(module, GhostBatchNorm)}
        assert sizes == ({names.published_ghost_batch(network)} - {None})
        assert networks.trains_on_one(network, (3, 64, 64), 2) == (network not in names.DENSE_NORMALIZED)


def test_the_check_of_batches_costs_the_global_generator_nothing():
    state = torch.get_rng_state()
    Training([Run(**F1, train_size=100, batch_size=50)], load_for(Run(train_size=100)))
    assert torch.equal(torch.get_rng_state(), state)
