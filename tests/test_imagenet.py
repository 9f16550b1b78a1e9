"""The program for many processes and images that fit on no device: what each computes, and that nothing is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from made_data import write_colors
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab import processes, streamed
from nb_lib.lab.names import published_ghost_batch
from nb_lib.lab.networks import build
from nb_lib.lab.setup import make_smoothout
from nb_lib.lab.store import RunStore
from nb_lib.papers import run as run_of
from nb_lib.protocols import protocol

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import imagenet  # noqa: E402

pytestmark = pytest.mark.slow
SMALL = {
    "image_size": 32,
    "batch_size": 40,
    "ghost_batch": 10,
    "noise_batch": 10,
    "epochs": 3,
    "dataset": "folder:made",
}


ENHANCED_AND_SMOOTHED = {"alpha": 1.5, "a": 0.01}


def small(network="smoothout-c1", **fields):
    return run_of(**protocol(network, **SMALL | fields))


def arguments(root, store, **fields):
    """The same run on the command line."""
    named = {"network": "smoothout-c1", **SMALL, "workers": 0, **fields, "root": root, "store": store}
    return list(chain(*((f"--{name.replace('_', '-')}", str(value)) for name, value in named.items())))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A root with 200 images to train and 50 to test with, in ten classes that differ in color, of many sizes."""
    root = tmp_path_factory.mktemp("root")
    write_colors(root / "made")
    return root


@pytest.fixture
def alone(monkeypatch):
    """This process as a group of one."""
    before = torch.get_rng_state()
    handler = signal.getsignal(signal.SIGTERM)
    with processes.joined("cpu") as device:
        yield device
    signal.signal(signal.SIGTERM, handler)
    torch.set_rng_state(before)


def as_one_of(monkeypatch, rank, number):
    for name, value in (("get_rank", rank), ("get_world_size", number)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)


# ------------------------------------------------------------------------------------------------------ two processes


@contextmanager
def one_of_two(rank, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    yield


def free_ports(count):
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_ports]
    for server in with_ports:
        server.close()
    return ports


def one_rank(rank, folder, root, ports):
    """What one of two processes does, kept in a file of its own."""
    torch.set_num_threads(1)
    kept = {}
    with one_of_two(rank, ports[0]), processes.joined("cpu") as device:
        kept["gradients"] = {case: gradient(rank, **fields) for case, fields in CASES.items()}
        kept |= trained(device, root, Path(folder))
    for name, port in zip(CALLS, ports[1:], strict=True):
        said = StringIO()
        with one_of_two(rank, port), redirect_stderr(said), redirect_stdout(said):
            sys.argv = ["imagenet.py", *CALLS[name](root, folder)]
            status = imagenet.main()
        kept[name] = status, said.getvalue()
    torch.save(kept, Path(folder) / f"{rank}.pt")


CASES = {
    "no noise": {"a": 0.0, "alpha": 1.0},
    "noise": {"a": 0.05, "alpha": 1.0},
    "noise enhancement": {"a": 0.0, "alpha": 2.5},
    "both": {"a": 0.05, "alpha": 1.5},
}
SIZES = [[5, 5, 2], [4, 4, 4]]  # ghost batches of the two processes


def batch(case, stream):
    generator = torch.Generator().manual_seed(2 * list(CASES).index(case) + stream)
    x = torch.randn(24, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(10, (24,), generator=generator)


def network():
    return build("digits-mlp", (3, 8, 8), 10, seed=1).double()


def gradient(rank, a, alpha):
    """The gradient that this process has after accumulating, and the noisy weights of each of its ghost batches."""
    case = next(name for name, fields in CASES.items() if fields == {"a": a, "alpha": alpha})
    model = network()
    smooth = make_smoothout(small("digits-mlp", a=a, ghost_batch=None, cutting="rest"), model) if a else None
    drawn = []
    if smooth:
        smooth.generator.manual_seed(rank)
        add_noise = smooth.add_noise

        def recorded():
            add_noise()
            drawn.append({name: model.get_parameter(name).detach().clone() for name in smooth.flat.names})

        smooth.add_noise = recorded
    sizes = SIZES[rank]
    streams = range(2 if alpha > 1 else 1)
    mine = [tuple(part[12 * rank : 12 * rank + 12].split(sizes) for part in batch(case, stream)) for stream in streams]
    parts = [[(x[k], y[k]) for x, y in mine] for k in range(len(sizes))]
    imagenet.accumulate(DistributedDataParallel(model), smooth, sizes, parts, alpha)
    return {name: p.grad for name, p in model.named_parameters()}, drawn


def trained(device, root, folder):
    """A run of two epochs, and its checkpoint in the middle."""
    run = small(a=0.01, epochs=2)
    training = imagenet.Training(run, *streamed.train_and_val(root / "made"), device, 0)
    drawn = []
    add_noise = training.smooth.add_noise

    def recorded():
        add_noise()
        drawn.append(training.smooth.flat.work - training.smooth.flat.clean)

    training.smooth.add_noise = recorded
    updates = training.reader.updates(0)
    for _ in range(3):
        training.update(*next(updates))
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    training.save(checkpoints)
    middle = {name: value.clone() for name, value in training.model.state_dict().items()}
    total = training.progress.total.clone()
    assert training.finish(folder, 1e9)
    status = training.status
    record = training.record(0)
    kept = {"middle": middle, "total": total, "thetas": torch.stack(drawn), "curve": record.curve, "status": status}
    return kept | {
        "end": training.model.state_dict(),
        "loss": record.train_loss,
        "processes": record.provenance["processes"],
    }


def damaged(root, folder, name):
    """A copy of the images in which one cannot be read."""
    copy = Path(folder) / name
    if os.environ["RANK"] == "0":
        write_colors(copy / "made", train=8, val=2)
        (copy / "made" / "train" / "class 3" / "1.jpg").write_bytes(b"no image")
        (copy / "ready").touch()
    while not (copy / "ready").exists():
        time.sleep(0.05)
    return copy


def stopping(root, folder):
    """A call during which one of the processes gets SIGTERM, after seven updates."""
    update = imagenet.Training.update

    def then_stop(self, *batch):
        update(self, *batch)
        if self.updates == 7 and torch.distributed.get_rank() == 1:
            imagenet.Training.update = update
            os.kill(os.getpid(), signal.SIGTERM)

    imagenet.Training.update = then_stop
    return arguments(root, Path(folder) / "stopped", **ENHANCED_AND_SMOOTHED)


CALLS = {  # of the program, by both processes
    "stopped": stopping,
    "resumed": lambda root, folder: arguments(root, Path(folder) / "stopped", **ENHANCED_AND_SMOOTHED),
    "whole": lambda root, folder: arguments(root, Path(folder) / "whole", **ENHANCED_AND_SMOOTHED),
    "unreadable": lambda root, folder: arguments(damaged(root, folder, "one"), Path(folder) / "s1", epochs=1),
    "left out": lambda root, folder: [
        *arguments(damaged(root, folder, "two"), Path(folder) / "s2", epochs=1),
        "--leave-out-unreadable",
    ],
    "uneven": lambda root, folder: arguments(root, Path(folder) / "s3", batch_size=30),
    "not taken off": lambda root, folder: arguments(root, Path(folder) / "s4", a=0.01, denoise=False),
}


@pytest.fixture(scope="module")
def two(made, tmp_path_factory):
    """What both of two processes kept."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_rank, (folder, made, free_ports(1 + len(CALLS))), nprocs=2)
    kept = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return SimpleNamespace(ranks=kept, folder=folder)


@pytest.mark.parametrize("case", CASES)
def test_accumulated_gradients_of_two_processes_are_the_batchs_by_hand(two, case):
    a, alpha = CASES[case]["a"], CASES[case]["alpha"]
    (grads, first), (others, second) = (kept["gradients"][case] for kept in two.ranks)
    by_hand = {name: torch.zeros_like(grad) for name, grad in grads.items()}
    factors = [alpha, 1 - alpha] if alpha > 1 else [1.0]
    if a == 0:
        for stream, factor in enumerate(factors):  # one big batch
            add_gradient(by_hand, *batch(case, stream), factor, {})
    else:
        for rank, noisy in enumerate((first, second)):
            assert len(noisy) == len(SIZES[rank])
            begin = 12 * rank
            for size, weights in zip(SIZES[rank], noisy, strict=True):
                for stream, factor in enumerate(factors):
                    x, y = (tensor[begin : begin + size] for tensor in batch(case, stream))
                    add_gradient(by_hand, x, y, factor * size / 24, weights)
                begin += size
    for name, grad in grads.items():
        torch.testing.assert_close(grad, by_hand[name], rtol=1e-12, atol=1e-14)
        assert torch.equal(grad, others[name])


def add_gradient(total, x, y, factor, noisy):
    """Add `factor` times the gradient of the mean loss, at w + θ if that is given."""
    model = network()
    model.load_state_dict(noisy or model.state_dict())
    F.cross_entropy(model(x), y).backward()
    for name in total:
        total[name] += factor * model.get_parameter(name).grad


def test_processes_stay_alike_to_the_bit_under_noise_of_their_own(two):
    first, second = two.ranks
    for when in ("middle", "end"):
        for name, value in first[when].items():
            assert torch.equal(value, second[when][name]), name
    drawn = torch.cat([first["thetas"], second["thetas"]])
    assert len(first["thetas"]) == 2 * 5 * 2  # epochs, updates, ghost batches of a process
    assert len(torch.unique(drawn[:, :1000], dim=0)) == len(drawn)
    assert drawn.abs().max() <= 0.01
    correlation = torch.corrcoef(drawn[:, :100_000])
    assert (correlation - torch.eye(len(drawn))).abs().max() < 0.02


def test_two_processes_learn(two):
    for kept in two.ranks:
        first, last = kept["curve"]
        assert (kept["status"], kept["processes"]) == ("finished", 2)
        assert last["loss"] < first["loss"] < 2.5
        assert kept["loss"] < first["loss"]
        assert (first["updates"], last["updates"]) == (5, 10)


def test_a_checkpoint_of_two_processes_goes_on_in_one(two, made, alone):
    training = imagenet.Training(small(a=0.01, epochs=2), *streamed.train_and_val(made / "made"), alone, 0)
    training.load(processes.newest(two.folder / "checkpoints"))
    assert (training.progress.epoch, training.progress.done) == (0, 3)
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, two.ranks[0]["middle"][name]), name
    assert training.progress.total == sum(kept["total"] for kept in two.ranks)
    assert training.finish(two.folder, 1e9)
    assert training.status == "finished"
    first, last = training.record(0).curve
    assert (first["updates"], last["updates"]) == (5, 10)
    # the epoch's losses: those of before, and of the same images since
    assert first["loss"] == pytest.approx(two.ranks[0]["curve"][0]["loss"], rel=0.1)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "unreadable",
            r"class 3/1\.jpg is not a readable 8-bit image: .* --leave-out-unreadable",
        ),
        ("uneven", r"2 processes cannot share batches of 30 out in whole ghost batches of 10: .* divides 3\."),
        ("not taken off", r"noise that is not taken off makes the processes' weights differ"),
    ],
)
def test_what_cannot_be_is_said_once_by_all_processes(two, name, sentence):
    (status, said), (other, more) = (kept[name] for kept in two.ranks)
    assert status == other == 2
    lines = [line for line in (said + more).splitlines() if line.startswith("imagenet: ")]
    assert len(lines) == 1

    assert re.search(sentence, lines[0])
    assert "Traceback" not in said + more


def test_unreadable_files_are_named_counted_and_left_out_on_request(two):
    (status, said), (other, silent) = (kept["left out"] for kept in two.ranks)
    assert (status, other) == (0, 0)
    [record] = RunStore(two.folder / "s2")
    assert "1 of 100 files cannot be read and are left out" in said
    assert said.count("class 3/1.jpg") == 1
    assert "left out" not in silent
    assert record.provenance["left_out"] == 1
    assert record.provenance["dataset_variant"] == "image folder, 79 and 20 images, 10 classes"


# ------------------------------------------------------------------------------------------------------- interruptions


def program(*command, start_new_session=False):
    """The program in processes of its own."""
    quiet = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *command]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | quiet,
        start_new_session=start_new_session,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")


def wait_for_checkpoint(store, number, running):
    for _ in range(3000):
        kept = [int(path.name) for path in store.glob("*.checkpoints/[0-9]*")]
        if max(kept, default=0) >= number:
            return
        assert running.poll() is None, running.stdout.read()
        time.sleep(0.02)
    raise AssertionError("no checkpoint")


def outcome(store):
    """All of a record that an interruption must not change."""
    [record] = RunStore(store)
    fields = json.loads(record.to_json())
    return {name: value for name, value in fields.items() if name not in ("wall_time", "provenance")}


def test_a_run_whose_process_is_killed_ends_as_if_it_was_not(two, made, tmp_path):
    """One of two processes is killed; torchrun restarts both, and they go on from the last checkpoint."""
    given = arguments(made, tmp_path, every="0.01s", **ENHANCED_AND_SMOOTHED)
    killed = program(*TORCHRUN, "examples/imagenet.py", *given)
    wait_for_checkpoint(tmp_path, 4, killed)
    psutil.Process(killed.pid).children()[-1].kill()
    said, _ = killed.communicate(timeout=300)
    assert killed.returncode == 0, said
    assert "exitcode: -9" in said
    assert [kept["whole"][0] for kept in two.ranks] == [0, 0]
    assert outcome(tmp_path) == outcome(two.folder / "whole")
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == ["", ".json"]  # .locks


def test_sigterm_to_one_process_ends_all_and_they_go_on_as_if_it_had_not_come(two):
    for kept in two.ranks:
        assert kept["stopped"][0] == imagenet.TRY_AGAIN
        assert kept["resumed"][0] == 0
    assert outcome(two.folder / "stopped") == outcome(two.folder / "whole")


def test_sigterm_writes_a_checkpoint_and_asks_to_be_tried_again(made, tmp_path, call):
    given = {"a": 0.01, "network": "smoothout-c1", "every": "0.01s"}
    stopped = program("examples/imagenet.py", *arguments(made, tmp_path, **given))
    wait_for_checkpoint(tmp_path, 7, stopped)
    stopped.send_signal(signal.SIGTERM)
    said, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == imagenet.TRY_AGAIN == 75, said
    [kept] = tmp_path.glob("*.checkpoints/[0-9]*")
    assert 7 <= int(kept.name) < 15
    said = call(*arguments(made, tmp_path, **given))
    assert "finished after 15 updates" in said
    assert call(*arguments(made, tmp_path, **given)) == said  # there is nothing left to do
    call(*arguments(made, tmp_path / "whole", a=0.01))
    assert outcome(tmp_path / "whole") == outcome(tmp_path)


def test_sigterm_to_all_processes_of_a_job_spares_those_that_decode(made, tmp_path):
    """As schedulers and torchrun send it: also to the workers of the data loaders, whose images are needed still."""
    fields = {**ENHANCED_AND_SMOOTHED, "epochs": 100, "workers": 2}
    stopped = program(
        "examples/imagenet.py", *arguments(made, tmp_path, every="0.01s", **fields), start_new_session=True
    )
    wait_for_checkpoint(tmp_path, 3, stopped)
    decoding = psutil.Process(stopped.pid).children()
    os.killpg(stopped.pid, signal.SIGTERM)
    said, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == imagenet.TRY_AGAIN, said
    assert "Traceback" not in said
    assert len(list(tmp_path.glob("*.checkpoints/[0-9]*"))) == 1
    assert len(decoding) >= 2
    psutil.wait_procs(decoding, timeout=20)
    assert not any(process.is_running() for process in decoding)


def test_sigterm_before_the_first_update_loses_nothing_either(made, tmp_path):
    stopped = program("examples/imagenet.py", *arguments(made, tmp_path, epochs=100))
    while not list(tmp_path.glob("*.checkpoints")):  # its folder is claimed
        assert stopped.poll() is None, stopped.stdout.read()
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    said, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == imagenet.TRY_AGAIN, said


def test_what_was_trained_is_kept_while_it_is_measured(made, tmp_path, call, monkeypatch):
    record, update = imagenet.Training.record, imagenet.Training.update
    monkeypatch.setattr(imagenet.Training, "record", imagenet.try_again)
    with pytest.raises(SystemExit, match="75"):
        call(*arguments(made, tmp_path, a=0.01))
    monkeypatch.setattr(imagenet.Training, "record", record)
    monkeypatch.setattr(imagenet.Training, "update", lambda *_: pytest.fail("it had ended"))
    call(*arguments(made, tmp_path, a=0.01))
    monkeypatch.setattr(imagenet.Training, "update", update)
    call(*arguments(made, tmp_path / "whole", a=0.01))
    assert outcome(tmp_path / "whole") == outcome(tmp_path)


# --------------------------------------------------------------------------------------------------------- one process


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the program in this process: what it says; an `AssertionError` if it ends with another status."""
    before, handler = torch.get_rng_state(), signal.getsignal(signal.SIGTERM)

    def call(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["imagenet.py", *arguments])
        monkeypatch.setenv("TQDM_DISABLE", "1")
        ended = imagenet.main()
        said = "".join(capsys.readouterr())
        assert ended == status, said
        return said

    yield call
    signal.signal(signal.SIGTERM, handler)
    torch.set_rng_state(before)


@pytest.mark.parametrize("network", ["alexnet", "alexnet-dropout", "resnet18"])
def test_the_papers_networks_train(call, tmp_path, network):
    write_colors(tmp_path / "made", train=4, val=1)
    fields = {"image_size": 64, "batch_size": 20, "epochs": 1, "a": 0.15, "adaptive": True}
    said = call(*arguments(tmp_path, tmp_path / "store", network=network, **fields))
    assert "finished after 2 updates" in said
    [record] = RunStore(tmp_path / "store")
    published = run_of(**protocol(network, **SMALL | fields))
    assert record.run == published
    assert (record.run.lr_scaling, record.run.momentum, record.run.clip) == ("sqrt", 0.9, 5.0)
    assert record.samples == 40
    assert 0 <= record.test_accuracy <= 1


def test_flags_need_no_value(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["imagenet.py", "--a", "0.15", "--adaptive", "--batch-size", "16384", "--store", "s"]
    )
    run = imagenet.run_from(imagenet.options())
    assert run == run_of(**protocol("alexnet", batch_size=16384, a=0.15, adaptive=True))
    assert (run.image_size, run.dataset, run.epochs) == (224, "imagenet", 60)
    assert run.scaled_lr_steps[0] == (0, pytest.approx(0.01 * 128**0.5))


def test_the_readme_shows_runs(monkeypatch):
    readme = (ROOT / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"(?<!torchrun )examples/imagenet\.py (--[^#'\n`]*)", readme)
    assert len(commands) == 4
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["imagenet.py", *command.split()])
        run = imagenet.run_from(imagenet.options())
        assert run.network in ("alexnet", "resnet18")
        assert run.image_size == 224


@pytest.mark.parametrize("network", ["digits-mlp", "ne-f1", "ne-c1-quarter", "smoothout-f1", "resnet8"])
def test_any_network_of_the_library_trains(call, made, tmp_path, network):
    normalized = published_ghost_batch(network) is not None
    ghosts = ["--ghost-batch", "20"] if normalized else []
    sizes = ["--image-size", "32", "--batch-size", "40", "--epochs", "3", "--lr", "0.001"]
    call(
        "--network", network, "--dataset", "folder:made", *sizes, *ghosts, "--root", str(made), "--store", str(tmp_path)
    )
    [record] = RunStore(tmp_path)
    assert (record.run.network, record.run.inputs, record.updates) == (network, "imagenet", 15)
    assert record.curve[-1]["loss"] < record.curve[0]["loss"]


def test_the_rate_is_halved_once_the_loss_is_low_enough(call, made, tmp_path):
    call(*arguments(made, tmp_path, network="resnet18", lr=0.05, lr_scaling="none", halve_at=2.5, epochs=3))
    [record] = RunStore(tmp_path)
    losses = [point["loss"] for point in record.curve]
    assert losses[0] < 2.5
    assert record.run.lr_steps == ((1, 0.01), (2, 0.001))
    assert [point["lr"] for point in record.curve] == [0.05, 0.01 / 2, 0.001 / 2]


@pytest.mark.parametrize(("batch_size", "ghost_batch"), [(45, 10), (40, 30)])
def test_a_part_that_has_a_draw_of_its_own_is_normalized_as_a_whole(alone, made, batch_size, ghost_batch, monkeypatch):
    """Also where the authors' cutting makes it larger than the ghost batch."""
    run = small(batch_size=batch_size, ghost_batch=ghost_batch, noise_batch=ghost_batch, a=0.01)
    training = imagenet.Training(run, *streamed.train_and_val(made / "made"), alone, 0)
    groups = []
    for layer in training.model.modules():
        if isinstance(layer, GhostBatchNorm):
            cut = layer._group_sizes
            layer._group_sizes = lambda n, cut=cut: groups.append((n, cut(n))) or cut(n)
    sizes, parts = next(training.reader.updates(0))
    assert max(sizes) > ghost_batch
    training.update(sizes, parts)
    assert {n for n, _ in groups} == set(sizes)
    assert all(cut == [n] for n, cut in groups)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(call, made, tmp_path):
    call(*arguments(made, tmp_path, network="resnet18", lr=1e30, clip=None))
    [record] = RunStore(tmp_path)
    assert record.run.clip is None
    assert (record.status, record.epochs) == ("diverged", 1)
    assert record.updates < 5
    assert record.samples == 40 * record.updates


def test_testing_takes_every_image_once_at_the_clean_weights(alone, made):
    run = small(a=0.3)
    train, val = streamed.train_and_val(made / "made")
    training = imagenet.Training(run, train, val, alone, 0)
    training.update(*next(training.reader.updates(0)))
    loss, accuracy = training.evaluate(val)
    to_test = streamed.cuts("none", 32)[1]
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = [(torch.from_numpy(np.array(to_test(image))).movedim(-1, 0) / 255 - mean) / std for image, _ in val]
    labels = torch.tensor(val.targets)
    model = training.model.eval()
    with torch.no_grad():
        logits = model(torch.stack(images))
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=0.021)


@pytest.mark.parametrize("cutting", ["even", "rest"])
@pytest.mark.parametrize("number", [2, 4])
def test_processes_share_the_batches_of_one_process_out(monkeypatch, number, cutting):
    run = small(batch_size=80, ghost_batch=10, noise_batch=10, a=0.01, cutting=cutting)
    as_one_of(monkeypatch, 0, 1)
    together = [sorted(chain(*update)) for update in streamed.order_of(run, 200, epoch=1, stream=0)]
    assert [len(update) for update in together] == [80, 80, 40]
    assert sorted(chain(*together)) == list(range(200))
    shares = []
    for rank in range(number):
        as_one_of(monkeypatch, rank, number)
        shares.append(streamed.order_of(run, 200, epoch=1, stream=0))
    for whole, *parts in zip(together, *shares, strict=True):
        assert sorted(chain(*(part for share in parts for part in share))) == whole
    assert {len(part) for share in shares for update in share[:2] for part in update} == {10}
    last = {"even": {5}, "rest": {10}}[cutting]  # of 40: as many parts as of 80, or as large ones
    assert {len(part) for share in shares for part in share[2]} == last


def test_epochs_and_streams_have_orders_of_their_own(monkeypatch):
    as_one_of(monkeypatch, 0, 1)
    orders = [
        list(chain(*chain(*streamed.order_of(small(seed=seed), 1000, epoch, stream))))
        for seed, epoch, stream in [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 0)]
    ]
    for i, first in enumerate(orders):
        assert sorted(first) == list(range(1000))
        for second in orders[:i]:
            assert np.mean(np.array(first) == second) < 0.02


def test_a_random_cut_depends_on_the_image_the_epoch_and_the_seed_alone(made):
    train, _ = streamed.train_and_val(made / "made")
    for augment in ("crop-flip", "resized-crop-flip"):
        to_train, _ = streamed.cuts(augment, 32)
        views = streamed.Images(train, to_train, (7, 0, 0))
        before = torch.get_rng_state()
        first = [views[i][0] for i in range(10)]
        assert torch.equal(torch.get_rng_state(), before)
        again = [views[i][0] for i in reversed(range(10))]
        assert all(map(torch.equal, first, reversed(again)))
        later = streamed.Images(train, to_train, (7, 1, 0))
        assert sum(torch.equal(view, later[i][0]) for i, view in enumerate(first)) <= 1
        assert {(view.dtype, tuple(view.shape)) for view in first} == {(torch.uint8, (3, 32, 32))}


def test_a_crop_is_of_an_image_made_256_to_224_of_it():
    """A ramp from left to right: how much of it a cut shows is its width in sides of the image."""
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[:, None], (512, 512, 3)).copy())
    to_train, to_test = streamed.cuts("crop-flip", 224)
    for cut in (to_train, to_test):
        row = np.array(cut(image))[0, :, 0].astype(float)
        assert (row[-1] - row[0]) / 255 == pytest.approx(224 / 256, abs=0.01)
    middle = np.array(to_test(image))[0, :, 0].astype(float)
    assert middle[0] + middle[-1] == pytest.approx(255, abs=2)


def test_half_of_the_images_are_mirrored(alone, made):
    run = small(augment="crop-flip")
    reader = streamed.Reader(run, streamed.train_and_val(made / "made")[0], alone, 0)
    x = torch.arange(4.0).expand(4000, 1, 1, 4)
    mirrored = reader._mirrored(x)
    flipped = (mirrored[:, 0, 0, 0] == 3).float().mean().item()
    assert flipped == pytest.approx(0.5, abs=0.04)  # five standard deviations
    assert torch.equal(mirrored.sort().values, x.contiguous())


# ------------------------------------------------------------------------------------------------------ what is refused


def test_folders_that_cannot_be(tmp_path, call):
    def sentence():
        return call(*arguments(tmp_path, tmp_path / "store"), status=2)

    assert "there is no folder" in sentence()
    (tmp_path / "made" / "train").mkdir(parents=True)
    assert "made/train does not hold <class>/<image files> for every class" in sentence()
    write_colors(tmp_path / "made", train=2, val=1)
    (tmp_path / "made" / "val" / "class 3").rename(tmp_path / "made" / "val" / "other")
    assert "is 'class 3', 'other' (2): add or remove it." in sentence()
    (tmp_path / "made" / "train" / "other").mkdir()
    said = sentence()
    assert said.startswith("imagenet: ")
    assert "other" in said.splitlines()[0]
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_size": 201}, "batch_size 201 is larger than the training set (200 images)"),
        ({"noise_batch": 5, "a": 0.01}, "give both noise_batch and ghost_batch 10"),
        ({"train_size": 100}, "train_size is not for images that do not fit on a device"),
        ({"inputs": "unit"}, "inputs must be 'imagenet'"),
        ({"batch_size": 199, "cutting": "rest"}, "leaves one of 200 images to a process"),
        ({"network": "alexnet", "image_size": 32}, "images of 32x32 pixels are too small for this network"),
        ({"network": "alexnetz"}, "unknown network 'alexnetz': did you mean 'alexnet'?"),
        ({"a": "much"}, "a must be a number"),
        ({"every": "soon"}, "every must be a time"),
    ],
)
def test_runs_that_cannot_be(made, tmp_path, call, fields, words):
    assert words in call(*arguments(made, tmp_path, **fields), status=2)


def test_without_the_side_of_the_images(made, tmp_path, call):
    given = ["--network", "smoothout-c1", "--dataset", "folder:made", "--root", str(made), "--store", str(tmp_path)]
    assert "image_size is missing" in call(*given, status=2)


def leave_out(folder, files):
    """A root whose folder has these files spoiled."""
    write_colors(folder / "made", train=4, val=2)
    for file in files:
        for path in (folder / "made").glob(file):
            path.write_bytes(b"no image")


@pytest.mark.parametrize(
    ("spoiled", "batch_size", "words"),
    [
        ("train/class 3/*", 20, "no image of class 'class 3' in .*train can be read: replace some, or remove it"),
        ("val/*/*", 20, "no image of class 'class 0' in .*val can be read"),
        ("train/class 3/1.jpg", 40, r"batch_size 40 is larger than the training set \(39 images\)"),
        ("train/class 3/1.jpg", 19, "leaves one of 39 images to a process"),
    ],
)
def test_what_is_left_must_still_train(call, tmp_path, spoiled, batch_size, words):
    leave_out(tmp_path, [spoiled])
    fields = {"batch_size": batch_size, "ghost_batch": None, "noise_batch": None, "epochs": 1}
    given = [*arguments(tmp_path, tmp_path / "store", **fields), "--leave-out-unreadable"]
    assert re.search(words, call(*given, status=2))


def test_images_that_were_left_out_stay_out(call, tmp_path, monkeypatch):
    leave_out(tmp_path, ["train/class 3/1.jpg"])
    given = arguments(tmp_path, tmp_path / "store", epochs=2, every="0.001s", batch_size=20)
    update = imagenet.Training.update

    def then_stop(self, *batch):
        update(self, *batch)
        self.stopping = self.updates == 1

    monkeypatch.setattr(imagenet.Training, "update", then_stop)
    call(*given, "--leave-out-unreadable", status=imagenet.TRY_AGAIN)
    write_colors(tmp_path / "made", train=4, val=2)  # repaired meanwhile
    call(*given)
    [record] = RunStore(tmp_path / "store")
    assert record.provenance["left_out"] == 1
    assert record.provenance["dataset_variant"].startswith("image folder, 39 and 20 images")


def test_other_images_than_those_of_the_checkpoint(call, tmp_path, monkeypatch):
    write_colors(tmp_path / "made", train=4, val=2)
    given = arguments(tmp_path, tmp_path / "store", epochs=2, batch_size=20)
    update = imagenet.Training.update

    def then_stop(self, *batch):
        update(self, *batch)
        self.stopping = True

    monkeypatch.setattr(imagenet.Training, "update", then_stop)
    call(*given, status=imagenet.TRY_AGAIN)
    (tmp_path / "made" / "train" / "class 3" / "1.jpg").unlink()
    assert "is of 40 images, and there are 39 now: move it elsewhere" in call(*given, status=2)


@pytest.mark.parametrize(
    ("name", "image"),
    [("gray.png", Image.new("I;16", (40, 40))), ("float.tif", Image.new("F", (40, 40)))],
    ids=["16 bits", "floats"],
)
def test_images_of_more_than_8_bits_are_refused(tmp_path, name, image):
    image.save(tmp_path / name)
    with pytest.raises(InputError, match=r"is not a readable 8-bit image"):
        streamed._decoded(str(tmp_path / name))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "LA"])
def test_images_of_other_colors_are_read_as_rgb(tmp_path, mode):
    file = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    Image.new(mode, (40, 30)).save(file)
    assert (streamed._decoded(str(file)).mode, streamed._decoded(str(file)).size) == ("RGB", (40, 30))


def test_another_job_at_the_same_run(made, tmp_path, call, monkeypatch):
    monkeypatch.setattr(processes, "_ORPHANS_LIVE", 0)
    lock = processes.claim(tmp_path / f"{small().key}.checkpoints")
    assert "another job is at this run" in call(*arguments(made, tmp_path), status=2)
    lock.release()


def test_checkpoints_that_are_damaged_or_of_another_network(alone, made, tmp_path):
    folders = streamed.train_and_val(made / "made")
    training = imagenet.Training(small(), *folders, alone, 0)
    training.update(*next(training.reader.updates(0)))
    training.save(tmp_path)
    other = imagenet.Training(small("resnet18"), *folders, alone, 0)
    kept = processes.newest(tmp_path)
    with pytest.raises(InputError, match="is not a checkpoint of this run, or not a whole one: move it elsewhere"):
        other.load(kept)
    for file in kept.glob("*.distcp"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="not a whole one"):
        training.load(kept)


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(alone, made, tmp_path, monkeypatch, capsys):
    training = imagenet.Training(small(), *streamed.train_and_val(made / "made"), alone, 0)
    updates = training.reader.updates(0)
    training.update(*next(updates))
    training.save(tmp_path)
    training.update(*next(updates))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.save", full)
    with pytest.raises(InputError, match=r"cannot write a checkpoint in .*: free some space"):
        training.save(tmp_path)
    assert processes.newest(tmp_path).name == "000000001"
    assert training.finish(tmp_path, every=0)  # a disk that is full for a while does not end the training
    said = capsys.readouterr().err
    assert said.count("cannot write a checkpoint") == 13
    assert "Training goes on." in said
