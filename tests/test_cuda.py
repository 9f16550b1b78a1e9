"""What only a GPU can say; it needs torch, numpy, pandas, scipy, scikit-learn, tqdm, filelock and pytest.

On other machines `test_recording.py` tests the same logic with a stand-in for CUDA's graphs.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from recorded import (
    COLOR,
    GRAY,
    ON_CUDA,
    ORDER_OF_SUMS,
    ORDER_OF_SUMS_SGD,
    RESNET8,
    made,
    ordinary,
    seeds,
    trained,
    weights,
)

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab import tasks
from nb_lib.lab.augmentation import VIEWS, Views
from nb_lib.lab.device import precision
from nb_lib.lab.provenance import device_name
from nb_lib.lab.runs import Run
from nb_lib.lab.store import RunStore
from nb_lib.lab.sweeps import sweep
from nb_lib.lab.training import Training, load_for, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
CUDA = torch.device("cuda")
SMALL = Run(train_size=250, batch_size=60, epochs=6)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("name", ON_CUDA)
def test_recorded_steps_are_the_ordinary_ones(name):
    runs, shape, tolerance = ON_CUDA[name]
    data = made(450, shape, CUDA)
    recorded = trained(runs, data, 5)
    assert len(recorded.step.graphs.recordings) >= 2, "nothing was recorded"
    with ordinary():
        expected = trained(runs, data, 5)
    assert len(expected.step.graphs.recordings) == 0
    assert torch.isfinite(weights(expected)).all()
    assert apart(weights(recorded), weights(expected)) < tolerance
    start = weights(Training(runs, data))
    assert apart(weights(recorded), start) > 2 * apart(weights(recorded), weights(expected)), "it hardly moved"


def test_graphs_outlive_the_end_of_every_run():
    for count in (1, 2):
        runs = seeds(replace(SMALL, halve_at=1.0), count)
        training = Training(runs, load_for(SMALL, device="cuda"))
        training.finish(progress=False)
        assert any(key[0] == "backward" for key in training.step.graphs.recordings)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("method", [{}, {"alpha": 1.5, "halve_at": 1.5}, {"a": 0.05, "noise_batch": 20}])
def test_a_dense_network_resumes_bit_for_bit(method, count, tmp_path):
    runs, data = seeds(replace(SMALL, epochs=9, **method), count), load_for(SMALL, device="cuda")
    whole = trained(runs, data, 9)
    torch.save(trained(runs, data, 5).state_dict(), tmp_path / "state")
    resumed = Training(runs, data)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True, map_location="cpu"))
    for _ in range(4):
        resumed.train_epoch()
    assert torch.equal(weights(resumed), weights(whole))


C1 = Run(network="smoothout-c1", batch_size=100, a=0.02, noise_batch=50, cutting="even", epochs=99)


@pytest.mark.parametrize(
    ("run", "tolerance"),
    [
        (C1, ORDER_OF_SUMS),
        (replace(RESNET8, alpha=1.5), ORDER_OF_SUMS_SGD),
        (replace(RESNET8, a=0.02, noise_batch=50, fresh_optimizer=True), ORDER_OF_SUMS_SGD),
    ],
    ids=["C1", "ResNet8 NE", "ResNet8 SmoothOut"],
)
def test_a_convolutional_network_resumes_up_to_the_order_of_sums(run, tolerance, tmp_path):
    data = made(250, COLOR, CUDA)
    whole = trained([run], data, 7)
    torch.save(trained([run], data, 4).state_dict(), tmp_path / "state")
    resumed = Training([run], data)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True, map_location="cpu"))
    for _ in range(3):
        resumed.train_epoch()
    assert apart(weights(resumed), weights(whole)) < tolerance


def test_a_checkpoint_of_the_other_kind_of_device_is_refused():
    here, there = (Training([SMALL], load_for(SMALL, device=device)) for device in ("cuda", "cpu"))
    for training, state in ((here, there.state_dict()), (there, here.state_dict())):
        with pytest.raises(InputError, match="whose random numbers"):
            training.load_state_dict(state)


@pytest.mark.parametrize("method", [{}, {"alpha": 1.5}])
def test_seeds_side_by_side_are_the_same_runs_up_to_rounding(method):
    runs = seeds(Run(train_size=250, batch_size=60, epochs=30, halve_at=1.0, stop_below=0.4, lr=3e-3, **method))
    together = Training(runs, load_for(runs[0], device="cuda")).finish(progress=False)
    alone = [train(run, device="cuda", progress=False) for run in runs]
    for a, b in zip(together, alone, strict=True):
        assert (a.run, a.status, a.updates) == (b.run, b.status, b.updates)
        assert [p["loss"] for p in a.curve] == pytest.approx([p["loss"] for p in b.curve], rel=1e-2)


def test_alpha_1_and_a_0_are_ordinary_adam():
    data = load_for(SMALL, device="cuda")
    model, order = Training([SMALL], data).model.train(), Training([SMALL], data)._batches()
    optimizer = torch.optim.Adam(model.parameters(), lr=SMALL.lr)
    for index in order:
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.x[index[0, 0]]), data.train.y[index[0, 0]]).backward()
        optimizer.step()
    ours = trained([SMALL], data, 1)
    assert apart(weights(ours), torch.cat([p.detach().flatten() for p in model.parameters()])) < 1e-5


@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16"])
def test_a_precision_is_what_it_says_and_leaves_torchs_settings_alone(kind):
    generator = torch.Generator(CUDA).manual_seed(0)
    a, b = torch.randn(2, 512, 512, device=CUDA, generator=generator)
    exact, before = a.double() @ b.double(), torch.backends.cuda.matmul.fp32_precision
    with precision(kind, CUDA):
        error = apart(a @ b, exact)
    low, high = {"float32": (0, 2e-6), "tf32": (1e-5, 2e-3), "bfloat16": (1e-4, 2e-2)}[kind]
    assert low < error < high
    assert torch.backends.cuda.matmul.fp32_precision == before


@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("shape", [(64,), (64, 8, 8)])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_ghost_statistics_are_those_of_double_precision(kind, shape, minibatches):
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(400, *shape, generator=generator)
    norm = GhostBatchNorm(64, 50, minibatches=minibatches).to(CUDA)
    exact = GhostBatchNorm(64, 50, minibatches=minibatches).double()
    for part in (x, x.flip(0)):
        with precision(kind, CUDA):
            given = part.to(CUDA).bfloat16() if kind == "bfloat16" else part.to(CUDA)
            norm(given)
        exact(given.cpu().double())
    assert norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean.cpu().double(), exact.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var.cpu().double(), exact.running_var, rtol=1e-5, atol=1e-5)
    assert norm.num_batches_tracked == exact.num_batches_tracked


def test_images_keep_their_order_in_memory_through_ghost_normalization():
    x = torch.rand(200, 64, 8, 8, device=CUDA).contiguous(memory_format=torch.channels_last)
    out = GhostBatchNorm(64, 50, minibatches=2).to(CUDA)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_views_are_those_of_the_cpu_and_lie_as_convolutions_read_them():
    numbers = torch.arange(0, 50 * VIEWS, 7)
    expected, labels = Views(made(50, COLOR, torch.device("cpu")).train, (0.5,))[numbers]
    x, y = Views(made(50, COLOR, CUDA).train, (0.5,))[numbers.to(CUDA)]
    assert torch.equal(x.cpu(), expected)
    assert torch.equal(y.cpu(), labels)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_memory_after_ten_groups_is_back_where_it_was(tmp_path):
    def group(k):
        return seeds(Run(network="ne-f1", dataset="digits", batch_size=100 + k, alpha=1.5, epochs=5), 3)

    sweep(group(0), tmp_path, device="cuda", progress=False)
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for k in range(1, 11):
        sweep(group(k), tmp_path, device="cuda", progress=False)
    after = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    assert after[0] <= before[0] + 2**20
    assert after[1] <= before[1] + 2**26
    assert len(RunStore(tmp_path)) == 33


def test_too_large_a_group_is_trained_in_parts(tmp_path, monkeypatch, capsys):
    """Real shortage: a cap on this process's share of the memory."""
    monkeypatch.setattr(tasks, "_WEIGHTS_AT_ONCE", {"cuda": 10**9, "cpu": 10**9})
    runs = seeds(Run(network="ne-f1", batch_size=100, alpha=1.5, epochs=1), 32)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 6 * 2**27) / total)
    try:
        records = sweep(runs, tmp_path, device="cuda", progress=False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "networks at once do not fit" in capsys.readouterr().err
    assert len(records) == 32


def test_small_networks_train_in_a_second_process_beside_large_ones(tmp_path):
    small = seeds(Run(network="smoothout-f1", batch_size=100, a=0.02, epochs=2), 2)
    large = seeds(Run(network="ne-f1", batch_size=600, alpha=1.5, epochs=3), 2)
    records = sweep([*small, *large], tmp_path, device="cuda", progress=False)
    assert [record.run for record in records] == [*small, *large]
    assert {record.provenance["device"] for record in records} == {device_name(CUDA)}


def test_a_gray_data_set_needs_no_channels_last_and_one_of_colors_has_weights_so():
    color, gray = made(50, COLOR, CUDA), made(50, GRAY, CUDA)
    c1 = Training([Run(network="ne-c1-quarter", batch_size=20, alpha=1.5)], color)
    assert c1.model[3].weight.is_contiguous(memory_format=torch.channels_last)
    resnet = Training([replace(RESNET8, batch_size=20)], color)
    for module in resnet.model.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert Training([Run(network="ne-f1", batch_size=20)], gray).model[1].weight.is_contiguous()


def test_the_program_for_many_gpus_stops_and_goes_on(tmp_path, monkeypatch):
    """With one process; what it adds up, and to the bit, `test_imagenet.py` tests on CPUs."""
    pytest.importorskip("torchvision")
    from made_data import write_colors
    from test_imagenet import arguments, imagenet

    write_colors(tmp_path / "made", train=8, val=2)
    fields = {"image_size": 64, "a": 0.15, "adaptive": True, "alpha": 1.5, "precision": "bfloat16", "device": "cuda"}
    given = arguments(tmp_path, tmp_path / "store", network="resnet18", lr=0.05, **fields)
    monkeypatch.setattr("sys.argv", ["imagenet.py", *given])
    update = imagenet.Training.update

    def then_stop(self, *batch):
        update(self, *batch)
        self.stopping = self.updates == 3

    monkeypatch.setattr(imagenet.Training, "update", then_stop)
    assert imagenet.main() == imagenet.TRY_AGAIN
    assert imagenet.main() == 0
    [record] = RunStore(tmp_path / "store")
    assert (record.status, record.updates) == ("finished", 6)
    assert record.provenance["device"] == device_name(CUDA)
    first, *_, last = record.curve
    assert last["loss"] < first["loss"]
