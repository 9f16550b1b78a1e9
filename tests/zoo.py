"""Small networks of every kind that people bring, with what they take in, and by which measures they are refused."""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

N, CLASSES, WIDTH, LENGTH, WORDS = 8, 3, 4, 5, 7


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


VECTORS, IMAGES, SEQUENCES = seeded(N, WIDTH), seeded(N, WIDTH, 4, 4), seeded(N, LENGTH, WIDTH)
TOKENS = torch.randint(WORDS, (N, LENGTH), generator=torch.Generator().manual_seed(2))
TARGETS = torch.arange(N) % CLASSES
PADDED = torch.arange(LENGTH) >= torch.tensor([5, 3, 4, 5, 2, 3, 5, 4])[:, None]


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores, y, reduction="none")


def chain(*layers: nn.Module, width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def pictures(*layers: nn.Module) -> nn.Sequential:
    return chain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x)[0].mean(1)


class Mean(nn.Module):
    """The mean over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def encoder(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, 2, 3, **options)


class PaddedEncoder(nn.Module):
    """Averages over padded positions, too, which torch's fast kernels leave at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(encoder(batch_first=True), 1)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        return self.last(self.encoder(x, src_key_padding_mask=padded).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.scores = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.scores.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores(torch.tanh(self.words(tokens).sum(1)))


class Own(nn.Module):
    """Parameters without dimensions, with three, and with none at all in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.none = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.empty(0))
        self.mix = nn.Parameter(torch.randn(2, WIDTH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(torch.einsum("ni,kic->nkc", x, self.mix)).prod(1)


class Dictionary(nn.Linear):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": x, "logits": super().forward(x).tanh()}


class LanguageModel(nn.Module):
    """As libraries of language models have them: arguments by name, and outputs with attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.score = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> SimpleNamespace:
        words = self.words(input_ids)
        if attention_mask is not None:
            words = words * attention_mask[..., None]
        return SimpleNamespace(loss=None, logits=self.score(words.sum(1).tanh()))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, sequence: Tensor) -> Tensor:
        return self.left(x).tanh() * self.right(sequence).mean(1)


class Batch(Pair):
    """One argument that is a dictionary."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["x"], batch["sequence"])


class Locked(nn.Linear):
    """Holds what cannot be copied, and a result with its history."""

    def __init__(self) -> None:
        super().__init__(WIDTH, CLASSES)
        self.lock = threading.Lock()
        self.seen: list[Any] = [threading.Lock()]

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.latest = super().forward(x).tanh()
        return self.latest


class NoCopy(nn.Linear):
    def __deepcopy__(self, memo: dict) -> None:
        raise TypeError("handles cannot be pickled")


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.last, self.reentrant = nn.Linear(WIDTH, CLASSES), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.inner, x, use_reentrant=self.reentrant))


class CheckpointedWords(nn.Module):
    """Checkpoints what has a gradient already, in the form that `torch.autograd.grad` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return checkpoint(self.last, self.words(tokens).sum(1), use_reentrant=True)


class Branching(nn.Linear):
    """Goes another way for some samples, which depends on their values."""

    def forward(self, x: Tensor) -> Tensor:
        rows = [row if row.sum() > 0 else 2 * row.tanh() for row in super().forward(x)]
        return torch.stack(rows)


class Written(nn.Linear):
    """Fills a tensor that knows nothing of `torch.func`."""

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.zeros(1, CLASSES, dtype=x.dtype).repeat(len(x), 1)
        scores[:, :2] = super().forward(x)[:, :2].tanh()
        scores[:, 2] += x[:, 0]
        return scores


class Shift(nn.Module):
    """Layer normalization with a shift and no gain."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), None, self.bias)


class Elsewhere(nn.Module):
    """Reads a parameter where `torch.func` does not put another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.also = [self.inner.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.inner(x) @ self.also[0]))


class Cut(nn.Module):
    """Computes a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return self.inner(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


class Autocast(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.matmul(x.float(), self.weight.T.float())


class AlwaysDropping(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class Squeezed(nn.Module):
    """Loses the axis of the samples if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Bilinear(WIDTH, WIDTH, CLASSES), nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x, x).tanh()).squeeze()


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.randn(WIDTH, CLASSES, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.phase) @ self.phase).abs()


def frozen() -> nn.Module:
    model = chain(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    return model


def hooked() -> nn.Module:
    model = chain(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    model[0].register_forward_hook(lambda layer, x, out: 2 * out)
    model[1].register_full_backward_hook(lambda layer, inside, outside: None)
    return model


def old_weight_norm() -> nn.Module:
    """With weights that have a history, which torch does not copy."""
    model = chain(nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh()).double()
    model(VECTORS)
    return model


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare, self.last = nn.Linear(2, 2), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.tanh())


def replaced() -> nn.Module:
    """With a forward pass that holds on to this one network, as mixed precision of accelerate has it."""
    model = chain(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    inner = model[0].forward
    model[0].forward = lambda x: inner(x).float().to(x)
    return model


ALL = (
    "loss under noise",
    "box sharpness",
    "eigenvalues",
    "trace",
    "surfaces",
    "gradients of samples",
    "their spectrum",
)
GRADIENTS = ("box sharpness", "eigenvalues", "trace", "gradients of samples", "their spectrum")
HESSIANS = ("eigenvalues", "trace")


@dataclass(frozen=True)
class Specimen:
    """A kind of network."""

    make: Callable[[], nn.Module]
    x: Any = field(default_factory=lambda: VECTORS)
    criterion: Callable[[Any, Tensor], Tensor] | None = None
    refused: tuple[str, ...] = ()  # measures
    short: str = ""  # why, in the table
    match: str = ""  # in the sentence

    def network(self, seed: int = 0) -> nn.Module:
        """In evaluation mode and double precision, with statistics, gains and shifts that are not 0 and 1."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.make()
            if not any(p.itemsize < 4 for p in model.parameters()):
                model.double()
            with torch.no_grad():
                for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                    if tensor.is_floating_point() and tensor.ndim <= 1:
                        tensor.add_(torch.rand_like(tensor) * (0.5 if "var" in name else 0.2))
        return model.eval()


def refusal(measures: tuple[str, ...], short: str, match: str) -> dict[str, Any]:
    return {"refused": measures, "short": short, "match": match}


def named(x: Tensor, **others: Any) -> dict[str, Any]:
    return {"x": x, **others}


ZOO = {
    "dense": Specimen(lambda: chain(nn.Linear(WIDTH, WIDTH), nn.Tanh())),
    "convolutions in groups": Specimen(
        lambda: pictures(nn.Conv2d(WIDTH, WIDTH, 2, groups=2), nn.Tanh(), nn.Conv2d(WIDTH, WIDTH, 2, groups=WIDTH)),
        IMAGES,
    ),
    "transposed convolution": Specimen(lambda: pictures(nn.ConvTranspose2d(WIDTH, WIDTH, 2), nn.Tanh()), IMAGES),
    "batch normalization": Specimen(lambda: chain(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())),
    "layer normalization": Specimen(lambda: chain(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh())),
    "layer normalization, a shift and no gain": Specimen(
        lambda: chain(nn.Linear(WIDTH, WIDTH), Shift(), nn.Tanh()),
        **refusal(HESSIANS, "no second derivative", "no second derivative .*proper Tensor"),
    ),
    "group normalization": Specimen(
        lambda: pictures(nn.Conv2d(WIDTH, WIDTH, 2, bias=False), nn.GroupNorm(2, WIDTH), nn.Tanh()), IMAGES
    ),
    "instance normalization": Specimen(
        lambda: pictures(nn.Conv2d(WIDTH, WIDTH, 2), nn.InstanceNorm2d(WIDTH, affine=True), nn.Tanh()), IMAGES
    ),
    "instance normalization, running statistics": Specimen(
        lambda: pictures(nn.Conv2d(WIDTH, 2, 2), nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
                         nn.Tanh(), nn.Conv2d(2, WIDTH, 1)), IMAGES
    ),
    "RMS normalization": Specimen(lambda: chain(nn.Linear(WIDTH, WIDTH), nn.RMSNorm(WIDTH), nn.Tanh())),
    "residual": Specimen(
        lambda: pictures(Residual(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.Tanh()))),
        IMAGES,
    ),
    "embedding": Specimen(lambda: chain(nn.Embedding(WORDS, WIDTH), Mean(), nn.Tanh()), TOKENS),
    "embedding, sparse": Specimen(lambda: chain(nn.Embedding(WORDS, WIDTH, sparse=True), Mean(), nn.Tanh()), TOKENS),
    "embedding, tied": Specimen(Tied, TOKENS),
    "embedding, max_norm": Specimen(
        lambda: chain(nn.Embedding(WORDS, WIDTH, max_norm=1.0), Mean()), TOKENS,
        **refusal(ALL, "writes to its weights", "max_norm to None"),
    ),
    "embedding, padding": Specimen(
        lambda: chain(nn.Embedding(WORDS, WIDTH, padding_idx=0), Mean(), nn.Tanh()), TOKENS.clamp(min=1)
    ),
    "embedding bag, sparse": Specimen(
        lambda: chain(nn.EmbeddingBag(WORDS, WIDTH, sparse=True), nn.Tanh()), TOKENS,
        **refusal(HESSIANS, "no second derivative", "no second derivative .*_embedding_bag_backward"),
    ),
    "LSTM": Specimen(lambda: chain(Last(nn.LSTM(WIDTH, 2, batch_first=True)), width=2), SEQUENCES),
    "GRU, two layers, both ways": Specimen(
        lambda: chain(Last(nn.GRU(WIDTH, 1, 2, batch_first=True, bidirectional=True)), width=2), SEQUENCES
    ),
    "attention": Specimen(lambda: chain(Attention()), SEQUENCES),
    "transformer": Specimen(lambda: chain(encoder(batch_first=True), Mean()), SEQUENCES),
    "transformer, padded": Specimen(PaddedEncoder, named(SEQUENCES, padded=PADDED)),
    "transformer, samples along the second axis": Specimen(
        lambda: chain(encoder(), Mean()), SEQUENCES,
        **refusal(ALL, "mixes samples", "depends on the others beside it.*batch_first=True"),
    ),
    "parameters of its own": Specimen(Own),
    "outputs in a dictionary": Specimen(
        lambda: Dictionary(WIDTH, CLASSES), criterion=lambda out, y: cross_entropy(out["logits"], y)
    ),
    "outputs in a dictionary, no criterion": Specimen(
        lambda: Dictionary(WIDTH, CLASSES),
        **refusal(ALL, "give a criterion", "gives a dict, not a tensor.*criterion="),
    ),
    "language model, named inputs": Specimen(
        LanguageModel, {"input_ids": TOKENS, "attention_mask": (~PADDED).long(), "use_cache": False},
        criterion=lambda out, y: cross_entropy(out.logits, y),
    ),
    "two inputs": Specimen(Pair, (VECTORS, SEQUENCES)),
    "a dictionary as input": Specimen(Batch, (named(VECTORS, sequence=SEQUENCES),)),
    "weight norm": Specimen(lambda: chain(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh())),
    "weight norm, old hooks": Specimen(old_weight_norm),
    "spectral norm": Specimen(lambda: chain(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)), nn.Tanh())),
    "frozen parts": Specimen(frozen),
    "unused parts": Specimen(Unused),
    "dropout": Specimen(lambda: chain(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), nn.Tanh())),
    "dropout that is always on": Specimen(
        lambda: AlwaysDropping(WIDTH, CLASSES), **refusal(ALL, "random", "random also in evaluation mode")
    ),
    "hooks": Specimen(hooked),
    "forward replaced by a function": Specimen(
        replaced, **refusal(ALL, "unwrap it", "computes with 0.(weight|bias) of the original.*unwrap_model")
    ),
    "cannot be copied": Specimen(Locked),
    "does not let itself be copied": Specimen(
        lambda: NoCopy(WIDTH, CLASSES), **refusal(ALL, "needs __deepcopy__", "cannot be copied.*__deepcopy__")
    ),
    "checkpointing": Specimen(lambda: Checkpointed(False)),
    "checkpointing, reentrant": Specimen(
        lambda: Checkpointed(True), **refusal(GRADIENTS, "no gradient", "inner.* without a gradient.*use_reentrant")
    ),
    "checkpointing, reentrant, after an embedding": Specimen(
        CheckpointedWords, TOKENS, **refusal(GRADIENTS, "no gradient", "no gradient .*set use_reentrant=False")
    ),
    "a part without gradients": Specimen(
        Cut, **refusal(GRADIENTS, "no gradient", r"inner.* without a gradient.*requires_grad_\(False\)")
    ),
    "differentiable once": Specimen(
        lambda: chain(nn.Linear(WIDTH, WIDTH), Sine()),
        **refusal(HESSIANS, "no second derivative", r"second derivative .* is wrong: replace the torch\.auto"),
    ),
    "branches": Specimen(lambda: Branching(WIDTH, CLASSES)),
    "writes in place": Specimen(lambda: Written(WIDTH, CLASSES)),
    "parameters reached another way": Specimen(Elsewhere),
    "squeezes a batch of one": Specimen(
        Squeezed,
        **refusal(("gradients of samples", "their spectrum"), "squeeze(-1)", r"do not fit together|squeeze\(-1\)"),
    ),
    "half precision": Specimen(
        lambda: chain(nn.Tanh()).half(), VECTORS.half(), **refusal(ALL, "model.float()", r"call model\.float\(\)")
    ),
    "frozen half precision": Specimen(
        lambda: chain(nn.Linear(WIDTH, WIDTH).requires_grad_(False).bfloat16(), nn.Tanh()),
        **refusal(ALL, "model.float()", r"call model\.float\(\)"),
    ),
    "autocast within": Specimen(
        lambda: Autocast(WIDTH, CLASSES), criterion=lambda out, y: cross_entropy(out, y).to(out),
        **refusal(ALL, "rounds", "computes in torch.bfloat16"),
    ),
    "complex": Specimen(Complex, **refusal(ALL, "complex", "phase is complex")),
    "parallel": Specimen(lambda: nn.DataParallel(chain(nn.Tanh()))),
}  # fmt: skip


def as_function(model: nn.Module, names: list[str], x: Any, criterion: Callable) -> Callable[[Tensor], Tensor]:
    """Losses [N] as a function of a flat vector, by putting plain tensors where a copy had its parameters."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    by_identity = {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        for own, p in module.named_parameters(recurse=False):
            places.setdefault(by_identity[id(p)], []).append((module, own))
    for name in names:
        for module, own in places[name]:
            del module._parameters[own]

    def losses(vector: Tensor) -> Tensor:
        parts = vector.split([shapes[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            for module, own in places[name]:
                setattr(module, own, part.view(shapes[name]))
        if isinstance(model, Elsewhere):
            model.also = [model.inner.weight]
        outputs = model(*x) if isinstance(x, tuple) else model(**x) if isinstance(x, dict) else model(x)
        return criterion(outputs, TARGETS)

    return losses


def copied_by_state(specimen: Specimen, model: nn.Module) -> nn.Module:
    """Another network with the same state, without copying."""
    other = specimen.network()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    return other
