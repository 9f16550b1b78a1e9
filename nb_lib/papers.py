"""What the papers did: protocols as fields of a `Run`, and experiments as grids of runs.

Every table and figure of both papers has a name, and so has every scale of it: ``full`` is the published protocol,
``small`` and ``tiny`` ask the same question of less data, fewer batch sizes and fewer seeds (`SIZES` says what they
are).  Where a paper is silent the choice made here is marked.  What came out there is in `nb_lib.published`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nb_lib.errors import known
from nb_lib.lab.names import residual_blocks
from nb_lib.lab.runs import Run

Fields = dict[str, Any]  # some fields of a `Run`
_A, _ADAPTIVE_A = 0.0375, 0.15  # SmoothOut's and AdaSmoothOut's strengths, throughout the paper

#: Fields of a `Run` that say which method it is; tables and comparisons know a cell by them.
METHOD = ("alpha", "a", "adaptive", "denoise", "distribution")
#: The published tables, see `published.table`.
TABLES = ("ne-table2", "ne-table3", *(f"smoothout-table{number}" for number in range(1, 6)))

_FEW_DIGITS: Fields = {"dataset": "digits", "train_size": 600}
_NE: Fields = {"optimizer": "adam", "lr": 1e-3, "inputs": "unit", "epochs": 2000}  # the epoch limit is ours
_AUTHORS_CODE: Fields = {"epochs": 200, "inputs": "imagenet", "noise_batch": 128, "cutting": "even"}
_SMOOTHOUT: Fields = {"optimizer": "adam", "lr": 1e-3, **_AUTHORS_CODE}  # SmoothOut, sec. IV


def _regime(epochs: int) -> Fields:
    """Hoffer's learning rates, a tenth from epochs 81, 122 and 164 of 200 on, for longer or shorter training."""
    drops = ((81, 0.01), (122, 0.001), (164, 0.0001))
    return {"epochs": epochs, "lr_steps": tuple((round(epoch * epochs / 200), lr) for epoch, lr in drops)}


# SmoothOut, Table II: momentum, the learning rate scaled to the batch, and trained longer, which is twice the epochs
LONGEST = 400
_TRAINED_LONGER = _regime(LONGEST)
_RESNET: Fields = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "lr_scaling": "sqrt"}
#: How each network is trained: fields of a `Run`, without method, batch size and seed.
PROTOCOLS: dict[str, Fields] = {
    # ours, for the embedded digits: few samples and plain SGD, the algorithm that NE's theory is about
    "digits-mlp": _FEW_DIGITS | {"optimizer": "sgd", "lr": 0.2, "stop_below": 0.01, "epochs": 400},
    # NE, sec. 3 and Table 1: Adam with default hyperparameters, learning rate halved at L*, stop below L**
    "ne-f1": _NE | {"dataset": "fashion-mnist", "halve_at": 0.01, "stop_below": 0.001},
    "ne-c1": _NE | {"dataset": "cifar10", "halve_at": 0.01, "stop_below": 0.001},
    "ne-c2": _NE | {"dataset": "cifar100", "halve_at": 0.02, "stop_below": 0.001},
    "smoothout-f1": _SMOOTHOUT | {"dataset": "mnist", "epochs": 50, "inputs": "symmetric"},
    "smoothout-c1": _SMOOTHOUT | {"dataset": "cifar10"},
    "smoothout-c3": _SMOOTHOUT | {"dataset": "cifar100"},
    # clipping is the authors' code's
    "resnet44": _AUTHORS_CODE | _RESNET | _TRAINED_LONGER | {"dataset": "cifar10", "augment": "crop-flip", "clip": 5.0},
}


def protocol(network: str, **given: Any) -> Fields:
    """Fields of a `Run` that train `network` as published; what is `given`, and not None, goes first.

    Residual networks of other depths are trained as ResNet44.
    """
    like = "resnet44" if residual_blocks(network) else known("network", network, PROTOCOLS)
    fields = PROTOCOLS[like]
    return {"network": network, **fields, **not_none(given)}


def not_none(given: Fields) -> Fields:
    """Those of the fields that are given."""
    return {name: value for name, value in given.items() if value is not None}


#: The scales of an experiment, in the order of their cost.
SCALES = ("tiny", "small", "full")


@dataclass(frozen=True)
class Size:
    """One scale of a network's experiments."""

    doc: str  # what it is, in print
    batch_sizes: tuple[int, ...]  # B; the smallest and the largest are SmoothOut's small and large batch
    curves: tuple[float, ...] = ()  # NE's α of Figs. 1 and 2, at every B
    routes: tuple[float, ...] = ()  # and of Fig. 3, at the largest B
    seeds: int = 3
    fields: Fields = field(default_factory=dict)  # what differs from the protocol, the network included


_B = (*range(100, 1001, 100), 2000, 3000, 5000)  # NE, sec. 3
_UP_TO_7, _UP_TO_11 = tuple(range(1, 8)), tuple(range(1, 12))  # α of NE Fig. 3
_TINY_NE = Size(
    "a small network on 600 of the embedded digits, plain SGD",
    batch_sizes=(20, 60, 200, 600),
    curves=(1, 1.5),
    routes=(1, 1.5, 2, 3, 4),
    fields=protocol("digits-mlp", valid_size=300, epochs=1000),
)
_TINY_SMOOTHOUT = Size(
    "SmoothOut's F1 on 600 of the embedded digits, 15 epochs",
    batch_sizes=(30, 300),
    fields=protocol("smoothout-f1", **_FEW_DIGITS, valid_size=300, epochs=15),
)
_1500_IMAGES = {"train_size": 1500, "valid_size": 5000}
_QUARTER = "C1 with a quarter of its filters on 500 images of"
_QUARTER_C1 = {"network": "ne-c1-quarter", "train_size": 500, "valid_size": 2000}
_3000_IMAGES = {"train_size": 3000, "valid_size": 5000}  # B = 300: the paper's updates an epoch
_FEW_EPOCHS = {"train_size": 1000, "valid_size": 2000, "epochs": 30}


def _in_parts_of(size: int) -> Fields:
    """Noise, ghost batches and the learning rate's reference for smaller batches; they have 128 in the paper."""
    return {"noise_batch": size, "ghost_batch": size, "lr_reference": size}


_RESNET8: Fields = {"network": "resnet8", "train_size": 1000, "valid_size": 2000, **_regime(120), **_in_parts_of(16)}
# without augmentation: digits that are mirrored are others
_PLAIN_DIGITS = _FEW_DIGITS | {"network": "resnet8", "valid_size": 300, "inputs": "unit", "augment": "none"}
_TINY_RESNET = Size(
    "ResNet8 on 600 of the embedded digits, 6 epochs",
    batch_sizes=(20, 100),
    fields=_PLAIN_DIGITS | _regime(6) | _in_parts_of(20),
)
_CIFAR100 = {"dataset": "cifar100", **_TRAINED_LONGER}
#: For each network (and data set) with experiments of its own, what each scale of them is.
SIZES: dict[str, dict[str, Size]] = {
    "ne-f1": {
        "full": Size("as published, 10 seeds", _B, (1, 1.5), _UP_TO_11, seeds=10),
        "small": Size("F1 on 1,500 images of Fashion-MNIST", (30, 100, 500), (1, 1.5), (1, 2, 3), fields=_1500_IMAGES),
        "tiny": _TINY_NE,
    },
    "ne-c1": {
        "full": Size("as published, 10 seeds", _B, (1, 1.5, 2, 2.5), _UP_TO_11, seeds=10),
        "small": Size(f"{_QUARTER} CIFAR-10", (25, 250), (1, 1.5, 2.5), (1, 1.5, 2.5, 4), fields=_QUARTER_C1),
        "tiny": _TINY_NE,
    },
    "ne-c2": {
        "full": Size("as published, 10 seeds", _B, (1, 1.5), _UP_TO_7, seeds=10),
        "small": Size(f"{_QUARTER} CIFAR-100", (25, 250), (1, 1.5), (1, 1.5, 2.5, 4), fields=_QUARTER_C1),
        "tiny": _TINY_NE,
    },
    "smoothout-f1": {
        "full": Size("as published, 3 seeds", (256, 6000)),
        "small": Size("F1 on 3,000 images of MNIST", (25, 300), fields=_3000_IMAGES),
        "tiny": _TINY_SMOOTHOUT,
    },
    "smoothout-c1": {
        "full": Size("as published, 3 seeds", (256, 5000)),
        "small": Size("C1 on 1,000 images of CIFAR-10, 30 epochs", (25, 100), fields=_FEW_EPOCHS),
        "tiny": _TINY_SMOOTHOUT,
    },
    "smoothout-c3": {
        "full": Size("as published, 3 seeds", (256, 5000)),
        "small": Size("C3 on 1,000 images of CIFAR-100, 30 epochs", (25, 100), fields=_FEW_EPOCHS),
        "tiny": _TINY_SMOOTHOUT,
    },
    "resnet44": {
        "full": Size("as published, 3 seeds", (128, 2048)),
        "small": Size("ResNet8 on 1,000 images of CIFAR-10, 120 epochs", (16, 128), fields=_RESNET8),
        "tiny": _TINY_RESNET,
    },
    "resnet44-cifar100": {
        "full": Size("as published, 3 seeds", (128, 1024), fields=_CIFAR100),
        "small": Size(
            "ResNet8 on 1,000 images of CIFAR-100, 60 and 120 epochs",
            (16, 128),
            fields=_RESNET8 | {"dataset": "cifar100"},
        ),
        "tiny": _TINY_RESNET,
    },
}

_BASELINE: Fields = {"a": 0.0}
_SMOOTH: Fields = {"a": _A}
_SMOOTH_NORMAL: Fields = {"a": 0.025, "distribution": "normal"}
_NOT_TAKEN_OFF: Fields = {"a": _A, "denoise": False}
_NOISE_ONLY: Fields = {"a": 0.0001, "denoise": False}
_NOISE_ONLY_NORMAL: Fields = {"a": 0.00015, "denoise": False, "distribution": "normal"}
_ADAPTIVE: Fields = {"a": _ADAPTIVE_A, "adaptive": True}
_ADAPTIVE_NORMAL: Fields = {"a": 0.2, "adaptive": True, "distribution": "normal"}
_ADAPTIVE_NOISE_ONLY: Fields = {"a": 0.00075, "adaptive": True, "denoise": False}


def _cells(batch_sizes: Iterable[int], methods: Iterable[Fields]) -> list[Fields]:
    return [{"batch_size": B, **method} for B in batch_sizes for method in methods]


def _curves(size: Size) -> list[Fields]:
    return _cells(size.batch_sizes, [{"alpha": alpha} for alpha in size.curves])


def _routes(size: Size) -> list[Fields]:
    """Two ways to more noise: smaller batches at α = 1, and larger α at the largest batch."""
    smaller_batches = _cells(size.batch_sizes, [{"alpha": 1}])
    larger_alpha = [{"alpha": alpha} for alpha in size.routes if alpha > 1]
    return smaller_batches + _cells([max(size.batch_sizes)], larger_alpha)


def _table_1(size: Size) -> list[Fields]:
    return _cells([min(size.batch_sizes), max(size.batch_sizes)], [_BASELINE, _SMOOTH])


def _table_2(size: Size) -> list[Fields]:
    return _cells([max(size.batch_sizes)], [_BASELINE, _SMOOTH, _ADAPTIVE])


def _table_2_longer(size: Size) -> list[Fields]:
    """The CIFAR-100 rows: trained for half as long, as long, and then with linear scaling of the learning rate."""
    longer: Fields = _regime(size.fields["epochs"])
    shorter: Fields = _regime(size.fields["epochs"] // 2)
    rows = (shorter, longer, longer | {"lr_scaling": "linear"})
    return [row | cell for row in rows for cell in _table_2(size)]


def _table_3(size: Size) -> list[Fields]:
    return _cells([min(size.batch_sizes), max(size.batch_sizes)], [_SMOOTH, _NOT_TAKEN_OFF])


def _table_3_large(size: Size) -> list[Fields]:
    return _cells([max(size.batch_sizes)], [_SMOOTH, _NOT_TAKEN_OFF])


def _table_4(size: Size) -> list[Fields]:
    methods = (_BASELINE, _SMOOTH, _NOISE_ONLY, _ADAPTIVE, _ADAPTIVE_NOISE_ONLY)
    return _cells([max(size.batch_sizes)], methods)


def _table_5(size: Size) -> list[Fields]:
    by_distribution = (_SMOOTH, _SMOOTH_NORMAL, _ADAPTIVE, _ADAPTIVE_NORMAL, _NOISE_ONLY, _NOISE_ONLY_NORMAL)
    return _cells([max(size.batch_sizes)], (_BASELINE, *by_distribution))


def _figure_5(size: Size) -> list[Fields]:
    return _cells([max(size.batch_sizes)], [_BASELINE, _ADAPTIVE])


def _figure_7(size: Size) -> list[Fields]:
    return _cells([min(size.batch_sizes), max(size.batch_sizes)], [_BASELINE])


@dataclass(frozen=True)
class Grid:
    """One experiment: a network, and its cells (method and batch size) at a scale."""

    network: str
    doc: str
    cells: Callable[[Size], list[Fields]]
    printed: tuple[tuple[float, int], ...] = ()  # (α, B): where the paper prints a selection, all of the full scale
    sizes: str = ""  # key in `SIZES`, if not the network

    def size(self, scale: str) -> Size:
        """What a scale of it is."""
        return SIZES[self.sizes or self.network][scale]

    @property
    def dataset(self) -> str:
        """The data set of the paper."""
        return protocol(self.network, **self.size("full").fields)["dataset"]

    def at(self, scale: str) -> list[Fields]:
        """The cells of a scale."""
        if scale == "full" and self.printed:
            return [{"batch_size": B, "alpha": alpha} for alpha, B in self.printed]
        return self.cells(self.size(scale))


_TABLE_2 = "NE Table 2, best B for each α"  # the smaller scales look for theirs among all B
_TABLE_3 = "NE Table 3, best of both routes"
_FIG_1, _FIG_2 = "NE Fig. 1, effect of B at fixed α", "NE Fig. 2, effect of B at fixed α"
_FIG_3 = "NE Fig. 3, larger α or smaller B"
_TABLE_I = "SmoothOut Table I, and the networks of"
_TABLE_II = "SmoothOut Table II, longer training and scaled rates"
_TABLE_III = "SmoothOut Table III, noise left in the weights"
_FIG_7 = "SmoothOut Fig. 7, loss and accuracy under noise"
GRIDS: dict[str, Grid] = {
    "ne-table2-f1": Grid("ne-f1", _TABLE_2, _curves, ((1, 900), (1.5, 2000))),
    "ne-table2-c1": Grid("ne-c1", _TABLE_2, _curves, ((1, 100), (1.5, 200), (2, 300), (2.5, 500))),
    "ne-table2-c2": Grid("ne-c2", _TABLE_2, _curves, ((1, 600), (1.5, 1000))),
    "ne-fig1-c1": Grid("ne-c1", _FIG_1, _curves),
    "ne-fig2-f1": Grid("ne-f1", _FIG_2, _curves),
    "ne-fig2-c2": Grid("ne-c2", _FIG_2, _curves),
    "ne-table3-f1": Grid("ne-f1", _TABLE_3, _routes, ((1, 900), (3, 5000))),
    "ne-table3-c1": Grid("ne-c1", _TABLE_3, _routes, ((1, 100), (10, 5000))),
    "ne-table3-c2": Grid("ne-c2", _TABLE_3, _routes, ((1, 600), (5, 5000))),
    "ne-fig3-f1": Grid("ne-f1", _FIG_3, _routes),
    "ne-fig3-c1": Grid("ne-c1", _FIG_3, _routes),
    "ne-fig3-c2": Grid("ne-c2", _FIG_3, _routes),
    "smoothout-table1-f1": Grid("smoothout-f1", f"{_TABLE_I} Fig. 9", _table_1),
    "smoothout-table1-c1": Grid("smoothout-c1", f"{_TABLE_I} Figs. 2 and 8", _table_1),
    "smoothout-table1-c3": Grid("smoothout-c3", f"{_TABLE_I} Figs. 4 and 6", _table_1),
    "smoothout-table2-cifar10": Grid("resnet44", _TABLE_II, _table_2),
    "smoothout-table2-cifar100": Grid("resnet44", _TABLE_II, _table_2_longer, sizes="resnet44-cifar100"),
    "smoothout-table3-c1": Grid("smoothout-c1", _TABLE_III, _table_3),
    "smoothout-table3-resnet44": Grid("resnet44", _TABLE_III, _table_3_large),
    "smoothout-table4-resnet44": Grid("resnet44", "SmoothOut Table IV, the part of taking noise off", _table_4),
    "smoothout-table5-resnet44": Grid("resnet44", "SmoothOut Table V, kinds of noise", _table_5),
    "smoothout-fig5-resnet44": Grid("resnet44", "SmoothOut Fig. 5, loss along filter-normalized lines", _figure_5),
    "smoothout-fig7-cifar10": Grid("resnet44", _FIG_7, _figure_7),
    "smoothout-fig7-cifar100": Grid("resnet44", _FIG_7, _figure_7, sizes="resnet44-cifar100"),
}
#: Experiments of the papers that cannot be run here yet, and what they lack.
MISSING = {
    "SmoothOut Table II on ImageNet": "AlexNet, ResNet18 and ImageNet",
}


def grid(name: str, scale: str = "full", *, seeds: int | None = None, **given: Any) -> list[Run]:
    """Return the runs of an experiment, all cells of one seed before the next; an unknown name is an `InputError`.

    Parameters
    ----------
    name : str
        A key of `GRIDS`, or the beginning of several: ``"ne-table2"`` is all three networks'.
    scale : {"tiny", "small", "full"}
    seeds : int, optional
        None takes the scale's own number.
    **given
        Fields of `Run` that shall differ from the protocol, as ``precision="tf32"``; None leaves one as it is.

    Examples
    --------
    >>> [(run.alpha, run.batch_size, run.seed) for run in grid("ne-table2-f1", seeds=2)]
    [(1.0, 900, 0), (1.5, 2000, 0), (1.0, 900, 1), (1.5, 2000, 1)]
    """
    known("scale", scale, SCALES)
    runs: list[Run] = []
    for one in matching(name) or [known("grid", name, GRIDS)]:
        runs += _runs(GRIDS[one], scale, seeds, given)
    return sorted(dict.fromkeys(runs), key=lambda run: run.seed)


def matching(name: str) -> list[str]:
    """The grids of that name, or whose names begin so."""
    return [grid for grid in GRIDS if grid == name or grid.startswith(f"{name}-")]


def _runs(grid: Grid, scale: str, seeds: int | None, given: Fields) -> list[Run]:
    """The runs of one grid, with seeds counted up from the `given` one or 0."""
    size = grid.size(scale)
    common = {"seed": 0, **protocol(grid.network), **size.fields, **not_none(given)}
    cells = [common | cell for cell in grid.at(scale)]
    numbers = range(size.seeds if seeds is None else seeds)
    return [Run.from_dict(_cut(cell | {"seed": cell["seed"] + number})) for number in numbers for cell in cells]


def _cut(run: Fields) -> Fields:
    """Leave out how a batch is cut where it is no larger than a part, so that it makes no other run of it."""
    if run["batch_size"] > run.get("noise_batch", math.inf):
        return run
    return {name: value for name, value in run.items() if name != "cutting"}


def overview() -> list[dict[str, Any]]:
    """Every grid, what it is of, and its number of runs at each scale."""
    rows = []
    for name, one in GRIDS.items():
        runs = {scale: len(one.at(scale)) * one.size(scale).seeds for scale in SCALES}
        rows.append({"grid": name, "what": one.doc, **runs})
    return rows
