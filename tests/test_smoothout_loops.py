"""SmoothOut in training loops: Algorithm 1 by hand, hooks, mixed precision, resuming, parallel training."""

import io
from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_

from nb_lib.errors import InputError
from nb_lib.smoothout import SmoothOut

KINDS = {
    "uniform": {"a": 0.05},
    "normal": {"a": 0.03, "distribution": "normal"},
    "adaptive": {"a": 0.15, "adaptive": True},
    "normal-adaptive": {"a": 0.15, "distribution": "normal", "adaptive": True},
}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adam-fused": partial(torch.optim.Adam, lr=0.01, fused=True),
}
kinds = pytest.mark.parametrize("kind", KINDS)
optimizers = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """Build layers whose sizes are multiples of 16, so that as one vector they are aligned as they are alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            nn.Linear(16, 32),
            nn.ReLU(),
            nn.BatchNorm1d(32),
            nn.Linear(32, 32),
            nn.Tanh(),
            nn.Linear(32, 16),
        ]
    return nn.Sequential(*layers).to(dtype)


def batches(steps: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(24, 16, generator=generator, dtype=dtype), torch.randint(16, (24,), generator=generator))
        for _ in range(steps)
    ]


def train(model, optimizer, data, *, around=nullcontext, clip=0.5, decay=None):
    """Train in a plain loop; `around` the forward and backward pass is the one place where SmoothOut may come in."""
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=decay) if decay else None
    for x, y in data:
        optimizer.zero_grad()
        with around():
            F.cross_entropy(model(x), y).backward()
        clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if schedule:
            schedule.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, copied, without going through ``state_dict()`` and its hook."""
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Attached:
    """A model whose optimizer SmoothOut is attached to, with the clean weights known from outside."""

    def __init__(self, **arguments) -> None:
        self.model = network()
        self.clean = weights(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.smooth = SmoothOut(self.model, **{"a": 0.05, **arguments})
        self.hooks = self.smooth.attach(self.optimizer)
        self.x, self.y = batches(1)[0]

    def forward_and_backward(self) -> None:
        F.cross_entropy(self.model(self.x), self.y).backward()
        assert not self.is_clean(), "between a training forward pass and the step the parameters are noisy"

    def is_clean(self) -> bool:
        return equal(weights(self.model), self.clean)


@pytest.fixture
def attached() -> Attached:
    return Attached()


@pytest.fixture
def halfway(attached) -> Attached:
    """Between the training forward pass and the step."""
    attached.forward_and_backward()
    return attached


# --------------------------------------------------------------------------------------------------------- perturbed()


@optimizers
@kinds
def test_perturbed_is_algorithm_1_written_out(make_optimizer, kind):
    """θ is read off inside; the gradient at w + θ comes from an independent call, the update goes to the clean w."""
    model = network(torch.float64)
    by_hand = deepcopy(model)
    optimizer, hand_optimizer = make_optimizer(model.parameters()), make_optimizer(by_hand.parameters())
    smooth = SmoothOut(model, **KINDS[kind])
    for x, y in batches(9, torch.float64):
        clean = weights(model)
        optimizer.zero_grad()
        with smooth.perturbed():
            theta = {name: p - clean[name] for name, p in weights(model).items()}
            F.cross_entropy(model(x), y).backward()
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

        there = {name: (p.detach() + theta[name]).requires_grad_() for name, p in by_hand.named_parameters()}
        loss = F.cross_entropy(functional_call(by_hand, there, (x,)), y)
        for p, gradient in zip(by_hand.parameters(), torch.autograd.grad(loss, there.values()), strict=True):
            p.grad = gradient
        clip_grad_norm_(by_hand.parameters(), 0.5)
        hand_optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p, by_hand.get_parameter(name), rtol=1e-9, atol=1e-11)
    plain = network(torch.float64)
    train(plain, make_optimizer(plain.parameters()), batches(9, torch.float64))
    assert max((p - weights(plain)[name]).abs().max() for name, p in weights(model).items()) > 1e-4


@pytest.mark.parametrize("how", ["perturbed", "attach"])
@optimizers
@kinds
def test_strength_zero_is_bitwise_ordinary_training(how, make_optimizer, kind):
    plain, model = network(), network()
    train(plain, make_optimizer(plain.parameters()), batches(8), decay=0.5)
    smooth, optimizer = SmoothOut(model, **{**KINDS[kind], "a": 0}), make_optimizer(model.parameters())
    with smooth.attach(optimizer) if how == "attach" else nullcontext():
        train(
            model,
            optimizer,
            batches(8),
            decay=0.5,
            around=smooth.perturbed if how == "perturbed" else nullcontext,
        )
    assert equal(everything(model), everything(plain))


def test_backward_after_leaving_perturbed_raises():
    model = network()
    smooth = SmoothOut(model, 0.05)
    with smooth.perturbed():
        loss = model(batches(1)[0][0]).sum()
    with pytest.raises(InputError, match=r"call backward\(\) inside perturbed"):
        loss.backward()


# ------------------------------------------------------------------------------------------------------------ attach()


@optimizers
@kinds
def test_attach_equals_perturbed_bitwise_in_a_loop_it_does_not_touch(make_optimizer, kind):
    explicit, hooked, plain = network(), network(), network()
    data = batches(9)
    smooth = SmoothOut(explicit, **KINDS[kind], seed=3)
    train(explicit, make_optimizer(explicit.parameters()), data, decay=0.5, around=smooth.perturbed)
    optimizer = make_optimizer(hooked.parameters())
    with SmoothOut(hooked, **KINDS[kind], seed=3).attach(optimizer):
        train(hooked, optimizer, data, decay=0.5)
    assert equal(everything(hooked), everything(explicit))
    train(plain, make_optimizer(plain.parameters()), data, decay=0.5)
    assert not equal(weights(plain), weights(explicit))


@pytest.mark.parametrize("how", ["eval", "no_grad", "inference_mode"])
def test_an_evaluation_between_forward_and_step_sees_clean_weights(halfway, how):
    halfway.model.train(how != "eval")
    clean_model = network().train(how != "eval")
    context = {"eval": nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[how]
    clean_model.load_state_dict(halfway.clean, strict=False)
    clean_model[2].load_state_dict(halfway.model[2].state_dict())
    with context():
        assert torch.equal(halfway.model(halfway.x), clean_model(halfway.x))
    assert halfway.is_clean()


@pytest.mark.parametrize("between", ["eval", "no_grad", "state_dict"])
def test_an_evaluation_between_forward_and_step_does_not_change_the_step(between):
    undisturbed, disturbed = Attached(), Attached()
    for case in (undisturbed, disturbed):
        for _ in range(3):
            case.optimizer.zero_grad()
            F.cross_entropy(case.model(case.x), case.y).backward()
            if case is disturbed and between == "eval":
                case.model.eval()(case.x)
                case.model.train()
            elif case is disturbed and between == "no_grad":
                before = everything(case.model)
                with torch.no_grad():
                    case.model(case.x)
                for name, buffer in case.model.named_buffers():
                    buffer.copy_(before[name])  # batch normalization's own trace of that pass
            elif case is disturbed:
                case.model.state_dict()
            case.optimizer.step()
    assert equal(everything(disturbed.model), everything(undisturbed.model))


def test_state_dict_between_forward_and_step_is_clean(halfway):
    saved = halfway.model.state_dict()
    assert all(torch.equal(saved[name], w) for name, w in halfway.clean.items())


def test_weights_loaded_between_forward_and_step_stay(halfway):
    other = network(seed=9)
    halfway.model.load_state_dict(other.state_dict())
    assert equal(everything(halfway.model), everything(other))
    halfway.model(halfway.x)  # a new training pass perturbs the loaded weights, not the ones before
    halfway.hooks.close()
    assert equal(weights(halfway.model), weights(other))


def test_a_deep_copy_of_an_attached_model_leaves_the_original_alone(attached):
    """An average of weights or a teacher network carries the hooks along."""
    teacher = deepcopy(attached.model)
    copied = weights(teacher)
    loss = F.cross_entropy(attached.model(attached.x), attached.y)
    noisy = weights(attached.model)
    teacher(attached.x)
    teacher.state_dict()
    teacher.eval()(attached.x)
    assert equal(weights(attached.model), noisy)
    assert equal(weights(teacher), copied)
    loss.backward()  # would raise, had the weights moved


@pytest.mark.parametrize("ghosts", [2, 5])
@kinds
def test_every_forward_of_an_accumulated_gradient_has_fresh_noise(ghosts, kind):
    def train_in_ghosts(model, optimizer, around):
        seen = []
        for x, y in batches(4):
            optimizer.zero_grad()
            for x_part, y_part in zip(x.chunk(ghosts), y.chunk(ghosts), strict=True):
                with around():
                    loss = F.cross_entropy(model(x_part), y_part) / ghosts
                    seen.append(weights(model)["3.weight"])
                    loss.backward()
            optimizer.step()
        return torch.stack(seen)

    explicit, hooked = network(), network()
    smooth = SmoothOut(explicit, **KINDS[kind])
    seen = train_in_ghosts(explicit, OPTIMIZERS["momentum"](explicit.parameters()), smooth.perturbed)
    optimizer = OPTIMIZERS["momentum"](hooked.parameters())
    SmoothOut(hooked, **KINDS[kind]).attach(optimizer)
    assert torch.equal(train_in_ghosts(hooked, optimizer, nullcontext), seen)
    assert len(seen.flatten(1).unique(dim=0)) == 4 * ghosts
    hooked.state_dict()
    assert equal(everything(hooked), everything(explicit))


@pytest.mark.parametrize("how", ["perturbed", "attach"])
def test_without_denoising_the_noise_of_every_forward_accumulates(how):
    model = nn.Linear(200, 200, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    smooth = SmoothOut(model, 0.01, denoise=False)
    x, forwards = torch.ones(1, 200, dtype=torch.float64), 6
    with smooth.attach(optimizer) if how == "attach" else nullcontext():
        for _ in range(forwards // 3):
            for _ in range(3):
                with smooth.perturbed() if how == "perturbed" else nullcontext():
                    model(x)
            optimizer.step()  # no gradient, so no update
    relative = model.weight.detach().var() / (forwards * 0.01**2 / 3)
    assert abs(relative - 1) < 4.5 * ((2 - 1.2 / forwards) / model.weight.numel()) ** 0.5


@optimizers
def test_a_step_skipped_by_the_gradient_scaler_leaves_clean_weights_and_training_goes_on(make_optimizer):
    def train_scaled(model, optimizer, around):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for step, (x, y) in enumerate(batches(7)):
            before = weights(model)
            optimizer.zero_grad()
            with around():
                scaler.scale(F.cross_entropy(model(x), y)).backward()
            if step in (2, 3):
                model[3].weight.grad[0, 0] = torch.inf
            else:
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            model.eval()(x)
            model.train()
            assert equal(weights(model), before) == (step in (2, 3)), f"step {step}"

    explicit, hooked = network(), network()
    train_scaled(explicit, make_optimizer(explicit.parameters()), SmoothOut(explicit, 0.05).perturbed)
    optimizer = make_optimizer(hooked.parameters())
    SmoothOut(hooked, 0.05).attach(optimizer)
    train_scaled(hooked, optimizer, nullcontext)
    assert equal(everything(hooked), everything(explicit))


def test_a_skipped_step_without_an_evaluation_after_it_does_not_lose_the_clean_weights(attached):
    attached.forward_and_backward()  # no step, as a gradient scaler skips it: the next forward starts from clean
    attached.forward_and_backward()
    attached.hooks.close()
    assert attached.is_clean()


@optimizers
def test_a_step_with_a_closure_updates_the_clean_weights(make_optimizer):
    explicit, hooked = network(), network()
    train(
        explicit,
        make_optimizer(explicit.parameters()),
        batches(5),
        around=SmoothOut(explicit, 0.05).perturbed,
    )
    optimizer = make_optimizer(hooked.parameters())
    SmoothOut(hooked, 0.05).attach(optimizer)
    for number, (x, y) in enumerate(batches(5)):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(hooked(x), y)
            loss.backward()
            clip_grad_norm_(hooked.parameters(), 0.5)
            return loss

        loss = optimizer.step(closure) if number % 2 else optimizer.step(closure=closure)
        assert loss.item() > 0, "the closure's value comes through"
    assert equal(everything(hooked), everything(explicit))


@pytest.mark.parametrize("as_context", [False, True])
def test_closing_takes_every_hook_off_and_the_noise_with_them(attached, as_context):
    attached.hooks.close()
    bare = {k: len(v) for k, v in [*vars(attached.model).items(), *vars(attached.optimizer).items()] if "hooks" in k}
    if as_context:
        with attached.smooth.attach(attached.optimizer):
            attached.forward_and_backward()
    else:
        hooks = attached.smooth.attach(attached.optimizer)
        attached.forward_and_backward()
        hooks.close()
    assert attached.is_clean()
    now = {k: len(v) for k, v in [*vars(attached.model).items(), *vars(attached.optimizer).items()] if "hooks" in k}
    assert now == bare
    assert not any(n for name, n in now.items() if name != "_load_state_dict_post_hooks")
    attached.model(attached.x)
    assert attached.is_clean()


def test_an_exception_in_an_attached_loop_comes_back_to_the_clean_weights(attached):
    attached.hooks.close()
    optimizer = attached.optimizer
    optimizer.register_step_pre_hook(lambda *_: {}["stop here"])  # comes before ours
    with pytest.raises(KeyError), attached.smooth.attach(optimizer):
        train(attached.model, optimizer, batches(1))
    assert attached.is_clean()


def test_a_strength_set_to_zero_between_forward_and_step_takes_the_noise_off_at_the_next_forward(halfway):
    halfway.smooth.a = 0
    halfway.model(halfway.x)
    assert halfway.is_clean()


def test_a_second_training_forward_before_backward_makes_backward_raise(attached):
    first = attached.model(attached.x).sum()
    second = attached.model(attached.x).sum()
    with pytest.raises(InputError, match=r"call backward\(\) inside perturbed"):
        first.backward()
    second.backward()


# ------------------------------------------------------------------------------------------------------------ resuming


def through_a_file(state: object) -> object:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("steps_before", range(6))
@kinds
def test_a_resumed_run_continues_bitwise(steps_before, kind):
    """Six points in a row meet every phase of the four perturbations that one filling of random words serves."""
    make_optimizer, data = OPTIMIZERS["adam"], batches(12)

    model = network()
    optimizer, smooth = make_optimizer(model.parameters()), SmoothOut(model, **KINDS[kind], seed=5)
    train(model, optimizer, data[:steps_before], around=smooth.perturbed)
    parts = (model, optimizer, smooth)
    saved = through_a_file([part.state_dict() for part in parts])
    train(model, optimizer, data[steps_before:], around=smooth.perturbed)

    resumed = network(seed=8)
    other_strength = {**KINDS[kind], "a": 1.0}
    fresh = (resumed, make_optimizer(resumed.parameters()), SmoothOut(resumed, **other_strength, seed=6))
    for part, state in zip(fresh, saved, strict=True):
        part.load_state_dict(state)
    train(resumed, fresh[1], data[steps_before:], around=fresh[2].perturbed)
    assert equal(everything(resumed), everything(model))
    state, resumed_state = smooth.state_dict(), fresh[2].state_dict()
    assert torch.equal(state.pop("generator"), resumed_state.pop("generator"))
    assert state == resumed_state


@pytest.mark.parametrize("further", [1, 2, 3, 4])
def test_a_loaded_state_rewinds_the_noise_from_any_phase(further):
    model = network()
    smooth = SmoothOut(model, 0.05)

    def noisy() -> dict[str, Tensor]:
        with smooth.perturbed():
            return weights(model)

    noisy()
    saved = smooth.state_dict()
    expected = [noisy() for _ in range(further)]
    smooth.load_state_dict(saved)
    assert all(equal(noisy(), w) for w in expected)


def test_saving_the_noise_does_not_disturb_it():
    watched, unwatched = network(), network()
    smooth = SmoothOut(watched, 0.05)
    for step in batches(6):
        smooth.state_dict()
        train(watched, OPTIMIZERS["sgd"](watched.parameters()), [step], around=smooth.perturbed)
    train(
        unwatched,
        OPTIMIZERS["sgd"](unwatched.parameters()),
        batches(6),
        around=SmoothOut(unwatched, 0.05).perturbed,
    )
    assert equal(everything(watched), everything(unwatched))


@optimizers
def test_the_optimizer_keeps_its_own_state_and_nothing_of_the_noise(make_optimizer):
    model, plain = network(), network()
    optimizer, plain_optimizer = make_optimizer(model.parameters()), make_optimizer(plain.parameters())
    with SmoothOut(model, 0.05).attach(optimizer):
        train(model, optimizer, batches(3))
        ours = optimizer.state_dict()
    train(plain, plain_optimizer, batches(3))
    theirs = plain_optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours.keys() == theirs.keys()
    assert {i: sorted(s) for i, s in ours["state"].items()} == {i: sorted(s) for i, s in theirs["state"].items()}
    assert sum(t.numel() for s in ours["state"].values() for t in s.values() if isinstance(t, Tensor)) == sum(
        t.numel() for s in theirs["state"].values() for t in s.values() if isinstance(t, Tensor)
    )


# --------------------------------------------------------------------------------------------------- parallel training


def test_add_then_subtract_would_drive_replicas_apart():
    """Control for the replicas of `test_loops`: the same updates on both, the noise added and subtracted."""
    replicas = [weights(network()), weights(network())]
    generators = [torch.Generator().manual_seed(100 + rank) for rank in (0, 1)]
    for step in range(20):
        for replica, generator in zip(replicas, generators, strict=True):
            for w in replica.values():
                theta = torch.empty_like(w).uniform_(-0.05, 0.05, generator=generator)
                w.add_(theta).sub_(theta)
                w.sub_(torch.full_like(w, 1e-3 * step))
    assert not equal(*replicas)
