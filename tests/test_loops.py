"""SmoothOut and noise enhancement in other people's loops: bitwise Algorithm 1 and eq. 6, or a sentence that helps.

The rows of `LOOPS` are a table of the book.
"""

import gc
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import loops
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from loops import ByHand, Case, Halves, batches, network, sgd
from tables import Table
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import ghost_batch_norm_
from nb_lib.lab.loops import _LOOPS
from nb_lib.noise_enhancement import noise_enhanced_loss
from nb_lib.smoothout import SmoothOut

REENTRANT = "pass use_reentrant=False to checkpoint()"
CALL_IT = "call the attached module itself"
INSIDE = "call backward() inside perturbed()"


class Row(NamedTuple):
    """A loop, the same written out if it is a package's, and what is refused in it, with the remedy."""

    loop: Callable[[Case], None]
    package: str = "torch"
    by_hand: Callable[[Case], None] | None = None
    perturbed: str | None = None
    attach: str | None = None


LOOPS = {
    "plain": Row(loops.plain),
    "closure": Row(loops.closure),
    "closure with accumulated gradients": Row(loops.closure_of_parts),
    "LBFGS": Row(loops.lbfgs),
    "gradients accumulated over batches": Row(loops.accumulation),
    "GradScaler, unscaled, clipped, a step skipped": Row(loops.scaler),
    "clipped gradients": Row(loops.clipping),
    "two optimizers, attached to one": Row(loops.two_optimizers),
    "running average of the weights (EMA)": Row(loops.average),
    "SWA and update_bn": Row(loops.swa),
    "evaluation and state_dict between steps": Row(loops.evaluated),
    "checkpoint() around the model": Row(partial(loops.checkpointed, inside=False, reentrant=False)),
    "checkpoint() around the model, reentrant": Row(
        partial(loops.checkpointed, inside=False, reentrant=True), attach=REENTRANT
    ),
    "checkpoint() in the model": Row(partial(loops.checkpointed, inside=True, reentrant=False)),
    "checkpoint() in the model, reentrant": Row(partial(loops.checkpointed, inside=True, reentrant=True)),
    "torch.compile, then SmoothOut": Row(partial(loops.compiled, first=True), attach=CALL_IT),
    "SmoothOut, then torch.compile": Row(partial(loops.compiled, first=False)),
    "schedule-free SGD": Row(loops.schedule_free, "schedulefree"),
    "accelerate, accumulating": Row(loops.accelerated, "accelerate", loops.accelerated_by_hand),
    "Lightning, attached to the network": Row(loops.lightning, "pytorch-lightning", loops.clipping, perturbed=INSIDE),
    "Lightning, attached to the LightningModule": Row(
        partial(loops.lightning, whole=True), "pytorch-lightning", loops.clipping, INSIDE, CALL_IT
    ),
    "transformers' Trainer": Row(loops.transformers_trainer, "transformers", loops.clipping, perturbed=INSIDE),
}
every_loop = pytest.mark.parametrize("name", LOOPS)
NOISE = {"a": 0.05, "seed": 3}


def smooth_case(how: str) -> Case:
    """A training with weight noise: written by hand, around the passes, by hooks, or without noise."""
    case = Case()
    if how == "by hand":
        case.around = ByHand(case.model, **NOISE).perturbed
    elif how == "perturbed":
        case.around = SmoothOut(case.model, **NOISE).perturbed
    elif how == "attach":
        case.attach = lambda model, optimizer: SmoothOut(model, **NOISE).attach(optimizer)
    return case


def trained(loop, case: Case) -> list[torch.Tensor]:
    loop(case)
    return case.result()


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.slow
@every_loop
@pytest.mark.parametrize("how", ["perturbed", "attach"])
def test_a_loop_is_algorithm_1_bitwise_or_refused(table, name, how):
    row = LOOPS[name]
    table("loops", name, "version", f"{row.package} {version(row.package).partition('+')[0]}")
    remedy = getattr(row, how)
    column = {"perturbed": "perturbed()", "attach": "attach()"}[how]
    if remedy:
        with pytest.raises(InputError, match=re.escape(remedy)):
            trained(row.loop, smooth_case(how))
        table("loops", name, column, f"refused: {remedy}")
        return
    by_hand = trained(row.by_hand or row.loop, smooth_case("by hand"))
    assert same(trained(row.loop, smooth_case(how)), by_hand)
    assert not same(trained(row.by_hand or row.loop, smooth_case("no noise")), by_hand)
    table("loops", name, column, "bitwise")


def enhanced_case(how: str, alpha: float = 1.5) -> Case:
    """A training with two minibatches a step, weighted by hand or by the library."""
    case = Case(data=[(x.double(), y) for x, y in batches(size=48)])
    case.model.double()
    if how == "by hand":
        case.model[2] = Halves(case.model[2])

        def loss(outputs, y):
            first, second = (F.cross_entropy(*half) for half in zip(outputs.chunk(2), y.chunk(2), strict=True))
            return alpha * first - (alpha - 1) * second

        case.loss = loss
    else:
        ghost_batch_norm_(case.model, minibatches=2)
        case.loss = lambda outputs, y: noise_enhanced_loss(F.cross_entropy(outputs, y, reduction="none"), alpha)
    return case


@pytest.mark.slow
@every_loop
def test_noise_enhancement_is_eq_6_in_every_loop(table, name):
    row = LOOPS[name]
    ours = trained(row.loop, enhanced_case("library"))
    by_hand = trained(row.by_hand or row.loop, enhanced_case("by hand"))
    plain = trained(row.by_hand or row.loop, enhanced_case("by hand", alpha=1.0))
    assert len(ours) == len(by_hand)
    for mine, theirs in zip(ours, by_hand, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    assert max((a - b).abs().max() for a, b in zip(ours, plain, strict=True)) > 1e-4
    table("loops", name, "noise enhancement", "eq. 6")


def test_the_table_has_these_loops_and_no_others():
    assert set(Table("loops").committed) == {*LOOPS, DDP, *FSDP}


# ------------------------------------------------------------------------- A. attached, but the loop draws no noise


def wrapped(model: nn.Module) -> nn.Module:
    return nn.Sequential(model)


@pytest.mark.parametrize(
    ("attach_to", "call"),
    [
        pytest.param(lambda m: m, lambda m: m.forward, id="forward"),
        pytest.param(wrapped, lambda m: m, id="the part inside"),
        pytest.param(lambda m: m, lambda m: lambda x: m[1:](m[0](x)), id="layer by layer"),
        pytest.param(lambda m: m, lambda m: m.eval(), id="in evaluation mode"),
        pytest.param(lambda m: m, lambda m: torch.jit.trace(m, batches(1)[0][0], check_trace=False), id="traced"),
        pytest.param(lambda m: m, lambda m: deepcopy_with_weights_of(m), id="a copy that shares the weights"),
    ],
)
def test_a_step_without_a_draw_is_refused(attach_to, call):
    model = network()
    call = call(model)
    optimizer = sgd(model.parameters())
    x, y = batches(1)[0]
    before = deepcopy(list(model.parameters()))
    with SmoothOut(attach_to(model), a=0.3).attach(optimizer), pytest.raises(InputError, match=CALL_IT):
        step(optimizer, call, x, y)
    assert same(list(model.parameters()), before), "nothing was trained"


@pytest.mark.parametrize("call", [lambda m: m.forward, lambda m: m[0]], ids=["forward", "a part"])
def test_a_forward_pass_without_noise_is_refused_at_once(call):
    model = network()
    with SmoothOut(model, a=0.3).attach(sgd(model.parameters())), pytest.raises(InputError, match=CALL_IT):
        call(model)(batches(1)[0][0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_parts_may_be_evaluated(context):
    model = network()
    with SmoothOut(model, a=0.3).attach(sgd(model.parameters())), context():
        model[0](batches(1)[0][0])


def step(optimizer, call, x, y):
    F.cross_entropy(call(x), y).backward()
    optimizer.step()


def deepcopy_with_weights_of(model: nn.Module) -> nn.Module:
    """As a replica of a parallel model: another module, the same parameters."""
    memo = {id(p): p for p in model.parameters()}
    return deepcopy(model, memo)


def test_functional_calls_with_other_parameters_are_refused():
    model = network()
    optimizer = sgd(model.parameters())
    others = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with (
        SmoothOut(model, a=0.3).attach(optimizer),
        pytest.raises(InputError, match="moved, replaced or added"),
    ):
        torch.func.functional_call(model, others, batches(1)[0][0])


def test_the_evaluations_of_a_closure_must_all_draw():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    x, y = batches(1)[0]
    calls = iter([model, model, *[model.forward] * 9])

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(next(calls)(x), y)
        loss.backward()
        return loss

    with SmoothOut(model, a=0.05).attach(optimizer), pytest.raises(InputError, match=CALL_IT):
        optimizer.step(closure)


@pytest.mark.parametrize("a", [0.0, 0.3])
def test_steps_that_need_no_draw_are_left_alone(a):
    model = network()
    optimizer = sgd(model.parameters())
    x, y = batches(1)[0]
    smooth = SmoothOut(model, a=a)
    with smooth.attach(optimizer):
        optimizer.step()  # no gradients yet, as a schedule's first step
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        smooth.a = 0
        F.cross_entropy(model.forward(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: sgd(network().parameters()), "holds no parameter"),
        (lambda model: object(), r"takes torch's optimizers, and object is none: use perturbed\(\)"),
        (lambda model: list(model.parameters()), "and list is none"),
    ],
)
def test_an_optimizer_whose_steps_cannot_be_seen_is_refused(make, words):
    model = network()
    with pytest.raises(InputError, match=words):
        SmoothOut(model, a=0.1).attach(make(model))
    assert not model._forward_pre_hooks


def test_attaching_twice_is_refused():
    model = network()
    smooth, optimizer = SmoothOut(model, a=0.1), sgd(model.parameters())
    with smooth.attach(optimizer), pytest.raises(InputError, match="attached already"):
        smooth.attach(optimizer)
    with smooth.attach(optimizer):
        pass


# ---------------------------------------------------------------------------------- B. writes to noisy weights are lost


@pytest.mark.parametrize(
    "make",
    [
        sgd,
        partial(torch.optim.SGD, lr=0.1, fused=True),
        partial(torch.optim.AdamW, fused=True),
        partial(torch.optim.Adam, foreach=True),
        torch.optim.Adagrad,
    ],
)
@pytest.mark.parametrize("part", [slice(None), slice(-1, None)], ids=["all", "the last layer"])
def test_a_step_inside_perturbed_is_refused(make, part):
    model = network()
    optimizer = make(model[part].parameters())
    before = deepcopy(list(model.parameters()))
    x, y = batches(1)[0]
    with SmoothOut(model, a=0.1).perturbed():
        F.cross_entropy(model(x), y).backward()
        with pytest.raises(InputError, match="after the block"):
            optimizer.step()
    assert same(list(model.parameters()), before)


def test_steps_of_lbfgs_inside_perturbed_are_refused():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(InputError, match="after the block"), SmoothOut(model, a=0.1).perturbed():
        optimizer.step(lambda: pytest.fail("nothing is to be evaluated"))


def test_another_networks_step_inside_perturbed_is_its_own_affair():
    model, other = network(), network()
    optimizer = sgd(other.parameters())
    x, y = batches(1)[0]
    F.cross_entropy(other(x), y).backward()
    before = other[0].weight.detach().clone()
    with SmoothOut(model, a=0.1).perturbed():
        optimizer.step()
    assert not torch.equal(other[0].weight, before)


def load(model):
    model.load_state_dict(network().state_dict())


@torch.no_grad()
def clamp(model):
    model[3].weight.clamp_(-0.1, 0.1)


def initialize(model):
    nn.init.zeros_(model[0].bias)


@torch.no_grad()
def average(model):
    model[0].weight.lerp_(network()[0].weight, 0.5)


@pytest.mark.parametrize("write", [load, clamp, initialize, average])
def test_writes_inside_perturbed_are_noticed(write):
    model = network()
    before = deepcopy(list(model.parameters()))
    with pytest.raises(InputError, match="something wrote to the weights"), SmoothOut(model, a=0.1).perturbed():
        write(model)
    assert same(list(model.parameters()), before), "clean weights again"


@pytest.mark.parametrize("write", [clamp, initialize, average])
def test_writes_between_an_attached_forward_pass_and_the_step_are_noticed(write):
    model = network()
    optimizer = sgd(model.parameters())
    before = deepcopy(list(model.parameters()))
    x, y = batches(1)[0]
    with SmoothOut(model, a=0.1).attach(optimizer):
        F.cross_entropy(model(x), y).backward()
        write(model)
        with pytest.raises(InputError, match="something wrote to the weights"):
            optimizer.step()
    assert same(list(model.parameters()), before)


@pytest.mark.slow
def test_an_optimizer_that_exchanges_the_weights_for_evaluation_is_noticed():
    from schedulefree import SGDScheduleFree

    model = network()
    optimizer = SGDScheduleFree(model.parameters(), lr=0.1)
    optimizer.train()
    x, y = batches(1)[0]
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    with pytest.raises(InputError, match="something wrote to the weights"), SmoothOut(model, a=0.1).perturbed():
        optimizer.eval()


class Renormalized(nn.Module):
    """An embedding that writes to its weights in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3, max_norm=0.1)

    def forward(self, x):
        return self.embedding(x)


def test_an_embedding_that_renormalizes_itself_is_noticed():
    model = Renormalized()
    with pytest.raises(InputError, match="renormalize"), SmoothOut(model, a=0.1).perturbed():
        model(torch.arange(4)).sum().backward()


def test_a_step_in_the_middle_of_backward_is_refused():
    model = network()
    optimizers = {p: sgd([p]) for p in model.parameters()}
    for p, optimizer in optimizers.items():
        p.register_post_accumulate_grad_hook(lambda p, optimizer=optimizer: optimizer.step())
    x, y = batches(1)[0]
    with (
        SmoothOut(model, a=0.1).attach(optimizers[model[0].weight]),
        pytest.raises(InputError, match="in the middle of backward"),
    ):
        F.cross_entropy(model(x), y).backward()


def test_two_smoothouts_on_one_network_do_not_lose_each_others_weights():
    model = network()
    first, second = SmoothOut(model, a=0.1), SmoothOut(model, a=0.1)
    before = deepcopy(list(model.parameters()))
    with pytest.raises(InputError, match="something wrote to the weights"), first.perturbed(), second.perturbed():
        pass
    assert same(list(model.parameters()), before)


@pytest.mark.parametrize("copy", [deepcopy, AveragedModel], ids=["deepcopy", "AveragedModel"])
def test_a_copy_of_noisy_weights_is_refused(copy):
    model = network()
    optimizer = sgd(model.parameters())
    x, y = batches(1)[0]
    with SmoothOut(model, a=0.1).attach(optimizer):
        F.cross_entropy(model(x), y).backward()
        with pytest.raises(InputError, match=r"copy it after optimizer.step"):
            copy(model)
        optimizer.step()
        copy(model)


def test_a_copy_of_an_attached_model_is_a_model_like_any_other(tmp_path):
    model = network()
    with SmoothOut(model, a=0.1).attach(sgd(model.parameters())):
        copy = deepcopy(model)
        torch.save(copy, tmp_path / "copy.pt")
    torch.load(tmp_path / "copy.pt", weights_only=False)(batches(1)[0][0])
    before = deepcopy(list(copy.parameters()))
    copy(batches(1)[0][0])
    assert same(list(copy.parameters()), before)


def test_saving_an_attached_model_whole_says_what_to_save(tmp_path):
    model = network()
    with SmoothOut(model, a=0.1).attach(sgd(model.parameters())), pytest.raises(InputError, match="state_dict"):
        torch.save(model, tmp_path / "model.pt")


# ----------------------------------------------------------------------------- C. forward passes in the backward pass


@pytest.mark.parametrize(
    "call",
    [
        lambda model: partial(checkpoint, model, use_reentrant=False),
        lambda model: lambda x: model(x) + checkpoint(model[5], x.new_zeros(24, 32), use_reentrant=False),
        lambda model: lambda x: checkpoint(lambda y: model(y) * 1, x, use_reentrant=False),
    ],
    ids=["around", "a part of it, called again", "in a function"],
)
def test_the_recomputation_sees_the_weights_of_its_forward_pass(call):
    model = network()
    seen = []
    model[5].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.detach().clone()))
    x, y = batches(1)[0]
    with SmoothOut(model, a=0.5).attach(sgd(model.parameters())):
        F.cross_entropy(call(model)(x), y).backward()
    assert len(seen) > 1
    assert all(torch.equal(w, seen[0]) for w in seen)


def test_checkpointed_sequences_are_algorithm_1():
    def loop(case):
        optimizer = sgd(case.model.parameters())
        case.attach_to(case.model, optimizer)
        parts = case.model.forward
        case.model.forward = lambda x: checkpoint_sequential(case.model[:], 3, x, use_reentrant=False) if parts else x
        for x, y in case.data:
            case.backward(x, y)
            optimizer.step()
            optimizer.zero_grad()

    assert same(trained(loop, smooth_case("attach")), trained(loop, smooth_case("by hand")))


def test_two_checkpointed_passes_before_one_backward_are_refused():
    model = network()
    x, y = batches(1)[0]
    with SmoothOut(model, a=0.1).attach(sgd(model.parameters())):
        passes = [checkpoint(model, x, use_reentrant=False) for _ in range(2)]
        loss = F.cross_entropy(sum(passes), y)
        with pytest.raises(InputError, match="before the next forward pass"):
            loss.backward()


@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
def test_backward_after_perturbed_is_refused_with_checkpointing_too(inside):
    model = network()
    x, y = batches(1)[0]
    if inside:
        original = model[3].forward
        model[3].forward = lambda x: checkpoint(original, x, use_reentrant=False)
    with SmoothOut(model, a=0.1).perturbed():
        outputs = model(x) if inside else checkpoint(model, x, use_reentrant=False)
    with pytest.raises(InputError, match=re.escape(INSIDE)):
        F.cross_entropy(outputs, y).backward()


class Answers(nn.Module):
    """Outputs as models have them: named, nested, some without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x):
        logits = self.net(x)
        return {"logits": logits, "more": [logits.detach(), (logits * 2,)], "n": 3}


@pytest.mark.parametrize("take", [lambda o: o["logits"], lambda o: o["more"][1][0]], ids=["logits", "nested"])
def test_backward_after_perturbed_is_refused_from_every_output(take):
    model = Answers()
    with SmoothOut(model, a=0.1).perturbed():
        outputs = model(batches(1)[0][0])
    with pytest.raises(InputError, match=re.escape(INSIDE)):
        take(outputs).sum().backward()


def test_noise_that_stays_does_not_keep_backward_from_its_weights():
    """Without denoising the weights after the block are those inside."""
    model = network()
    with SmoothOut(model, a=0.1, denoise=False).perturbed():
        loss = model(batches(1)[0][0]).sum()
    loss.backward()


def test_the_guards_go_with_their_smoothout():
    gc.collect()
    before, hooks = len(_LOOPS), len(_global_optimizer_pre_hooks)
    smooth = SmoothOut(network(), a=0.1)
    with smooth.perturbed():
        pass
    assert len(_LOOPS) == before + 1
    assert not smooth.model._forward_hooks
    del smooth
    gc.collect()
    assert len(_LOOPS) == before
    assert len(_global_optimizer_pre_hooks) == hooks


def test_a_smoothout_may_end_in_the_middle_of_a_step():
    """The collector of garbage runs when it likes: here between the hooks of a step."""

    def collect(*_):
        gc.collect()

    model = network()
    optimizer = sgd(model.parameters())
    optimizer.register_step_pre_hook(collect)
    handle = register_optimizer_step_pre_hook(collect)
    x, y = batches(1)[0]
    try:
        for _ in range(3):
            for _ in range(3):
                SmoothOut(network(), a=0.1)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    finally:
        handle.remove()


# ------------------------------------------------------------------------------------------------ several processes


def one_rank(rank: int, folder: str) -> None:
    """Train one of two replicas, with data and noise of its own, and save where it ends."""
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    try:
        ends = {how: replica(rank, how) for how in ("perturbed", "attach", "wrapped first")}
        ends["DDP, enhanced"] = enhanced_replica(rank, DistributedDataParallel)
        ends["FSDP, enhanced"] = enhanced_replica(rank, sharded)
        refused = {"sharded, then SmoothOut": sharded_first(), "SmoothOut, then sharded": sharded_after()}
        torch.save({"ends": ends, "refused": refused}, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def replica(rank: int, how: str) -> list[torch.Tensor]:
    case = Case(data=batches(seed=rank))
    wrapped = DistributedDataParallel(case.model) if how == "wrapped first" else None
    smooth = SmoothOut(case.model, a=0.05, seed=100 + rank)
    wrapped = wrapped or DistributedDataParallel(case.model)
    optimizer = sgd(case.model.parameters())
    if how == "attach":
        case.attached.push(smooth.attach(optimizer))
    else:
        case.around = smooth.perturbed
    for x, y in case.data:
        case.backward(x, y, wrapped)
        optimizer.step()
        optimizer.zero_grad()
    case.attached.close()
    return [p.detach() for p in case.model.parameters()]


def sharded(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def enhanced_replica(rank: int, parallel: Callable[[nn.Module], nn.Module]) -> list[torch.Tensor]:
    case = enhanced_case("library")
    case.data = [(x.double(), y) for x, y in batches(seed=rank, size=48)]
    wrapped = parallel(case.model)
    optimizer = sgd(case.model.parameters())
    for x, y in case.data:
        case.backward(x, y, wrapped)
        optimizer.step()
        optimizer.zero_grad()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in case.model.parameters()]


def sharded_first() -> str:
    model = sharded(network())
    with pytest.raises(InputError) as refused:
        SmoothOut(model, a=0.1)
    return str(refused.value)


def sharded_after() -> str:
    model = network()
    smooth = SmoothOut(model, a=0.1)
    sharded(model)
    with pytest.raises(InputError) as refused, smooth.perturbed():
        pass
    return str(refused.value)


def one_rank_after_the_first(index: int, folder: str) -> None:
    one_rank(index + 1, folder)


def replicas_by_hand(cases: list[Case]) -> list[torch.Tensor]:
    """Parallel training written out: the mean of the ranks' gradients, one update for all."""
    optimizers = [sgd(case.model.parameters()) for case in cases]
    for batches_of_ranks in zip(*(case.data for case in cases), strict=True):
        for case, (x, y) in zip(cases, batches_of_ranks, strict=True):
            case.backward(x, y)
        for copies in zip(*(case.model.parameters() for case in cases), strict=True):
            mean = sum(p.grad / len(cases) for p in copies)
            for p in copies:
                p.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in cases[0].model.parameters()]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Where each of two processes ended."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        if sys.platform == "linux":
            environment.setenv("GLOO_SOCKET_IFNAME", "lo")  # the name of this machine need not resolve
        other = mp.spawn(one_rank_after_the_first, args=(str(folder),), join=False)
        one_rank(0, str(folder))  # here, which saves the seconds that one more import of torch takes
        while not other.join():
            pass
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["perturbed", "attach", "wrapped first"])
def test_replicas_with_noise_of_their_own_are_algorithm_1(ranks, table, how):
    cases = [Case(data=batches(seed=rank)) for rank in (0, 1)]
    for rank, case in enumerate(cases):
        case.around = ByHand(case.model, a=0.05, seed=100 + rank).perturbed
    by_hand = replicas_by_hand(cases)
    for rank in ranks:
        assert same(rank["ends"][how], by_hand)
    assert not same(by_hand, replicas_by_hand([Case(data=batches(seed=rank)) for rank in (0, 1)]))
    table("loops", DDP, "version", f"torch {version('torch').partition('+')[0]}")
    for column in ("perturbed()", "attach()"):
        table("loops", DDP, column, "bitwise")


DDP = "DistributedDataParallel, two processes"
FSDP = [f"FSDP2 (fully_shard), {order}" for order in ("sharded, then SmoothOut", "SmoothOut, then sharded")]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "names"), [("DDP", [DDP]), ("FSDP", FSDP)])
def test_parallel_training_with_enhanced_noise_is_eq_6(ranks, table, how, names):
    cases = [enhanced_case("by hand"), enhanced_case("by hand")]
    for rank, case in enumerate(cases):
        case.data = [(x.double(), y) for x, y in batches(seed=rank, size=48)]
    by_hand = replicas_by_hand(cases)
    for rank in ranks:
        torch.testing.assert_close(rank["ends"][f"{how}, enhanced"], by_hand, rtol=1e-9, atol=1e-11)
    for name in names:
        table("loops", name, "noise enhancement", "eq. 6")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "remedy"),
    [
        ("sharded, then SmoothOut", "DistributedDataParallel (DDP) has those"),
        ("SmoothOut, then sharded", "build it (or SmoothOut) after"),
    ],
)
def test_sharded_parameters_are_refused(ranks, table, order, remedy):
    for rank in ranks:
        assert remedy in rank["refused"][order]
    name = f"FSDP2 (fully_shard), {order}"
    table("loops", name, "version", f"torch {version('torch').partition('+')[0]}")
    for column in ("perturbed()", "attach()"):
        table("loops", name, column, f"refused: {remedy}")
