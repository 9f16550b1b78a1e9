"""What the papers did and found: protocols as fields of a `Run`, experiments as grids of runs, published tables.

Every table and figure of both papers has a name, and so has every scale of it: ``full`` is the published protocol,
``small`` and ``tiny`` ask the same question of less data, fewer batch sizes and fewer seeds (`SIZES` says what they
are).  Where a paper is silent the choice made here is marked; the numbers are those printed in the papers' tables.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import Any

import pandas as pd

from nb_lib.errors import known
from nb_lib.lab.runs import Run

Cell = dict[str, Any]
_A, _ADAPTIVE_A = 0.0375, 0.15  # SmoothOut's and AdaSmoothOut's strengths, throughout the paper

_NE: Cell = {"optimizer": "adam", "lr": 1e-3, "inputs": "unit", "epochs": 2000}  # the epoch limit is ours
_SMOOTHOUT: Cell = {  # sec. IV; epochs, input scaling, noise by ghost batch and its cutting: the authors' code
    "optimizer": "adam",
    "lr": 1e-3,
    "epochs": 200,
    "noise_batch": 128,
    "cutting": "even",
    "inputs": "imagenet",
}
#: How each network is trained: fields of a `Run`, without method, batch size and seed.
PROTOCOLS: dict[str, Cell] = {
    # ours, for the embedded digits: few samples and plain SGD, the algorithm that NE's theory is about
    "digits-mlp": {
        "dataset": "digits",
        "train_size": 600,
        "optimizer": "sgd",
        "lr": 0.2,
        "stop_below": 0.01,
        "epochs": 400,
    },
    # NE, sec. 3 and Table 1: Adam with default hyperparameters, learning rate halved at L*, stop below L**
    "ne-f1": _NE | {"dataset": "fashion-mnist", "halve_at": 0.01, "stop_below": 0.001},
    "ne-c1": _NE | {"dataset": "cifar10", "halve_at": 0.01, "stop_below": 0.001},
    "ne-c2": _NE | {"dataset": "cifar100", "halve_at": 0.02, "stop_below": 0.001},
    "smoothout-f1": _SMOOTHOUT | {"dataset": "mnist", "epochs": 50, "inputs": "symmetric"},
    "smoothout-c1": _SMOOTHOUT | {"dataset": "cifar10"},
    "smoothout-c3": _SMOOTHOUT | {"dataset": "cifar100"},
}


def protocol(network: str, **given: Any) -> Cell:
    """Fields of a `Run` that train `network` as published; what is `given`, and not None, goes first."""
    fields = PROTOCOLS[known("network", network, PROTOCOLS)]
    return {
        "network": network,
        **fields,
        **{name: value for name, value in given.items() if value is not None},
    }


# ------------------------------------------------------------------------------------------------------- scales

#: The scales of an experiment, in the order of their cost.
SCALES = ("tiny", "small", "full")


@dataclass(frozen=True)
class Size:
    """One scale of a network's experiments.

    Parameters
    ----------
    doc : str
        What it is, in print.
    batch_sizes : tuple of int
        B, the smallest and the largest of them SmoothOut's small and large batch.
    curves, routes : tuple of float
        NE's α of Figs. 1 and 2, at every B, and of Fig. 3, at the largest B.
    seeds : int
    fields : dict
        What differs from the published protocol, the network included.
    """

    doc: str
    batch_sizes: tuple[int, ...]
    curves: tuple[float, ...] = ()
    routes: tuple[float, ...] = ()
    seeds: int = 3
    fields: Cell = field(default_factory=dict)


_B = (*range(100, 1001, 100), 2000, 3000, 5000)
_TINY_NE = Size(
    "a small network on 600 of the embedded digits, plain SGD",
    (20, 60, 200, 600),
    curves=(1, 1.5),
    routes=(1, 1.5, 2, 3, 4),
    fields=protocol("digits-mlp", valid_size=300, epochs=1000),
)
_TINY_SMOOTHOUT = Size(
    "SmoothOut's F1 on 600 of the embedded digits, 15 epochs",
    (30, 300),
    fields=protocol("smoothout-f1", dataset="digits", train_size=600, valid_size=300, epochs=15),
)
_QUARTER_C1 = {"network": "ne-c1-quarter", "train_size": 500, "valid_size": 2000}
_FEW_EPOCHS = {"train_size": 1000, "valid_size": 2000, "epochs": 30}
#: For each network with experiments of its own, what each scale of them is.
SIZES: dict[str, dict[str, Size]] = {
    "ne-f1": {
        "full": Size("as published, 10 seeds", _B, (1, 1.5), tuple(range(1, 12)), 10),
        "small": Size(
            "F1 on 1,500 images of Fashion-MNIST",
            (30, 100, 500),
            (1, 1.5),
            (1, 2, 3),
            fields={"train_size": 1500, "valid_size": 5000},
        ),
        "tiny": _TINY_NE,
    },
    "ne-c1": {
        "full": Size("as published, 10 seeds", _B, (1, 1.5, 2, 2.5), tuple(range(1, 12)), 10),
        "small": Size(
            "C1 with a quarter of its filters on 500 images of CIFAR-10",
            (25, 250),
            (1, 1.5, 2.5),
            (1, 1.5, 2.5, 4),
            fields=_QUARTER_C1,
        ),
        "tiny": _TINY_NE,
    },
    "ne-c2": {
        "full": Size("as published, 10 seeds", _B, (1, 1.5), tuple(range(1, 8)), 10),
        "small": Size(
            "C1 with a quarter of its filters on 500 images of CIFAR-100",
            (25, 250),
            (1, 1.5),
            (1, 1.5, 2.5, 4),
            fields=_QUARTER_C1,
        ),
        "tiny": _TINY_NE,
    },
    "smoothout-f1": {
        "full": Size("as published, 3 seeds", (256, 6000)),
        "small": Size(  # the large batch makes as many updates an epoch as the paper's
            "F1 on 3,000 images of MNIST", (25, 300), fields={"train_size": 3000, "valid_size": 5000}
        ),
        "tiny": _TINY_SMOOTHOUT,
    },
    "smoothout-c1": {
        "full": Size("as published, 3 seeds", (256, 5000)),
        "small": Size(
            "C1 on 1,000 images of CIFAR-10, 30 epochs",
            (25, 100),
            fields=_FEW_EPOCHS,
        ),
        "tiny": _TINY_SMOOTHOUT,
    },
    "smoothout-c3": {
        "full": Size("as published, 3 seeds", (256, 5000)),
        "small": Size(
            "C3 on 1,000 images of CIFAR-100, 30 epochs",
            (25, 100),
            fields=_FEW_EPOCHS,
        ),
        "tiny": _TINY_SMOOTHOUT,
    },
}

# -------------------------------------------------------------------------------------------------------- grids


def _curves(size: Size) -> list[Cell]:
    return [{"batch_size": b, "alpha": alpha} for b in size.batch_sizes for alpha in size.curves]


def _routes(size: Size) -> list[Cell]:
    """Two ways to more noise: smaller batches at α = 1, and larger α at the largest batch."""
    largest = max(size.batch_sizes)
    smaller = [{"batch_size": b, "alpha": 1} for b in size.batch_sizes]
    return smaller + [{"batch_size": largest, "alpha": alpha} for alpha in size.routes if alpha > 1]


def _small_and_large(size: Size) -> list[Cell]:
    ends = (min(size.batch_sizes), max(size.batch_sizes))
    return [{"batch_size": b, "a": a} for b in ends for a in (0.0, _A)]


def _large(*methods: Cell) -> Callable[[Size], list[Cell]]:
    return lambda size: [{"batch_size": max(size.batch_sizes), **method} for method in methods]


_WITHOUT_DENOISING: Cell = {"a": _A, "denoise": False}
_BASELINE: Cell = {"a": 0.0}
_SMOOTH: Cell = {"a": _A}
_ADAPTIVE: Cell = {"a": _ADAPTIVE_A, "adaptive": True}
_NOISE_ONLY: Cell = {"a": 0.0001, "denoise": False}
_TABLE_IV_METHODS = (
    _BASELINE,
    _SMOOTH,
    _NOISE_ONLY,
    _ADAPTIVE,
    {"a": 0.00075, "adaptive": True, "denoise": False},
)
_TABLE_V_METHODS = (
    _BASELINE,
    _SMOOTH,
    {"a": 0.025, "distribution": "normal"},
    _ADAPTIVE,
    {"a": 0.2, "adaptive": True, "distribution": "normal"},
    _NOISE_ONLY,
    {"a": 0.00015, "denoise": False, "distribution": "normal"},
)


@dataclass(frozen=True)
class Grid:
    """One experiment: a network, and its cells (method and batch size) at a scale."""

    network: str
    doc: str
    cells: Callable[[Size], list[Cell]]
    published_cells: tuple[Cell, ...] = ()  # where the full scale is a selection that the paper prints

    def at(self, scale: str) -> list[Cell]:
        """The cells of a scale."""
        if scale == "full" and self.published_cells:
            return list(self.published_cells)
        return self.cells(SIZES[self.network][scale])


def _best(network: str, *pairs: tuple[float, int]) -> Grid:
    """NE Table 2: the published optima; smaller scales look for theirs among all B."""
    cells = tuple({"batch_size": b, "alpha": alpha} for alpha, b in pairs)
    return Grid(network, "NE Table 2, best B for each α", _curves, cells)


def _best_route(network: str, small_batch: int, alpha: float) -> Grid:
    cells = ({"batch_size": small_batch, "alpha": 1}, {"batch_size": 5000, "alpha": alpha})
    return Grid(network, "NE Table 3, best of both routes", _routes, cells)


GRIDS: dict[str, Grid] = {
    "ne-table2-f1": _best("ne-f1", (1, 900), (1.5, 2000)),
    "ne-table2-c1": _best("ne-c1", (1, 100), (1.5, 200), (2, 300), (2.5, 500)),
    "ne-table2-c2": _best("ne-c2", (1, 600), (1.5, 1000)),
    "ne-fig1-c1": Grid("ne-c1", "NE Fig. 1, effect of B at fixed α", _curves),
    "ne-fig2-f1": Grid("ne-f1", "NE Fig. 2, effect of B at fixed α", _curves),
    "ne-fig2-c2": Grid("ne-c2", "NE Fig. 2, effect of B at fixed α", _curves),
    "ne-table3-f1": _best_route("ne-f1", 900, 3),
    "ne-table3-c1": _best_route("ne-c1", 100, 10),
    "ne-table3-c2": _best_route("ne-c2", 600, 5),
    "ne-fig3-f1": Grid("ne-f1", "NE Fig. 3, larger α or smaller B", _routes),
    "ne-fig3-c1": Grid("ne-c1", "NE Fig. 3, larger α or smaller B", _routes),
    "ne-fig3-c2": Grid("ne-c2", "NE Fig. 3, larger α or smaller B", _routes),
    "smoothout-table1-f1": Grid(
        "smoothout-f1", "SmoothOut Table I, and the networks of Fig. 9", _small_and_large
    ),
    "smoothout-table1-c1": Grid(
        "smoothout-c1", "SmoothOut Table I, and the networks of Figs. 2 and 8", _small_and_large
    ),
    "smoothout-table1-c3": Grid(
        "smoothout-c3", "SmoothOut Table I, and the networks of Figs. 4 and 6", _small_and_large
    ),
    "smoothout-table3-c1": Grid(
        "smoothout-c1",
        "SmoothOut Table III, noise left in the weights",
        lambda size: [
            {"batch_size": b, **method}
            for b in (min(size.batch_sizes), max(size.batch_sizes))
            for method in (_SMOOTH, _WITHOUT_DENOISING)
        ],
    ),
    "smoothout-table4-c1": Grid(
        "smoothout-c1", "SmoothOut Table IV's methods, on C1 with the large batch", _large(*_TABLE_IV_METHODS)
    ),
    "smoothout-table5-c1": Grid(
        "smoothout-c1", "SmoothOut Table V's methods, on C1 with the large batch", _large(*_TABLE_V_METHODS)
    ),
}
#: Experiments of the papers that cannot be run here yet, and what they lack.
MISSING = {
    "SmoothOut Table II": "ResNet44 with augmentation, AlexNet, ResNet18 and ImageNet",
    "SmoothOut Table III, third row": "ResNet44",
    "SmoothOut Tables IV and V on ResNet44": "ResNet44; their methods are run on C1 instead",
    "SmoothOut Figs. 5 and 7": "ResNet44",
}


def grid(name: str, scale: str = "full", *, seeds: int | None = None, **given: Any) -> list[Run]:
    """Return the runs of an experiment, all cells of one seed before the next seed.

    Parameters
    ----------
    name : str
        A key of `GRIDS`, or the beginning of several: ``"ne-table2"`` is all three networks'.
    scale : {"tiny", "small", "full"}
    seeds : int, optional
        None takes the scale's own number.
    **given
        Fields of `Run` that shall differ from the protocol, as ``dataset="folder:cifar10"``, ``precision="tf32"``;
        None leaves one as it is.

    Raises
    ------
    InputError
        For an unknown name or scale.
    """
    known("scale", scale, SCALES)
    names = _matching(name) or [known("grid", name, GRIDS)]
    per_grid = [_seeds(GRIDS[n], scale, seeds, given) for n in names]
    rounds = zip_longest(*per_grid, fillvalue=())  # one seed of everything, then the next
    return list(dict.fromkeys(run for one_round in rounds for runs in one_round for run in runs))


def _matching(name: str) -> list[str]:
    return [grid for grid in GRIDS if grid == name or grid.startswith(f"{name}-")]


def _seeds(grid: Grid, scale: str, seeds: int | None, given: Cell) -> list[list[Run]]:
    """For every seed the runs of all cells."""
    size = SIZES[grid.network][scale]
    common = protocol(grid.network) | size.fields | {n: v for n, v in given.items() if v is not None}
    first = common.pop("seed", 0)
    return [
        [Run.from_dict(_cut({**common, **cell, "seed": first + seed})) for cell in grid.at(scale)]
        for seed in range(size.seeds if seeds is None else seeds)
    ]


def _cut(run: Cell) -> Cell:
    """Leave out how a batch is cut where it is no larger than a part, so that it makes no other run of it."""
    cut = run["batch_size"] > run.get("noise_batch", math.inf)
    return run if cut else {name: value for name, value in run.items() if name != "cutting"}


@dataclass(frozen=True)
class Step:
    """One experiment of a plan, and how it differs from the grid of its name at full scale."""

    grid: str
    seeds: int | None = None  # None: the grid's own
    alphas: tuple[float, ...] = ()  # only these; none named: all
    dataset: str | None = None
    precision: str | None = None

    @property
    def name(self) -> str:
        """The grid's, with what is taken out of it."""
        chosen = " and ".join(f"{alpha:g}" for alpha in self.alphas)
        return f"{self.grid}, α = {chosen}" if chosen else self.grid

    def runs(self, scale: str, seeds: int | None, given: Cell) -> list[Run]:
        """The runs at a scale; below the full one of all α and the scale's own seeds, tiny on the embedded data."""
        here: Cell = {"dataset": self.dataset, "precision": self.precision} if scale != "tiny" else {}
        chosen = {name: value for name, value in given.items() if value is not None}
        own = self.seeds if scale == "full" else None
        runs = grid(self.grid, scale, seeds=own if seeds is None else seeds, **(here | chosen))
        alphas = self.alphas if scale == "full" else ()
        return [run for run in runs if not alphas or run.alpha in alphas]


_JPEG = "folder:cifar10"  # the copy of CIFAR-10 that the recorded runs were made on
#: What is missing most, in the order in which a GPU's minutes tell most: F1 of both papers first, which is cheap, then
#: a first look at C1, its tables of SmoothOut, the published gain that is large against its spread, and a whole figure.
NEXT = (
    Step("ne-table2-f1"),
    Step("ne-table3-f1", precision="tf32"),
    Step("smoothout-table1-f1"),
    Step("ne-table2-c1", seeds=1, dataset=_JPEG, precision="bfloat16"),
    Step("smoothout-table1-c1", dataset=_JPEG, precision="tf32"),
    Step("smoothout-table3-c1", dataset=_JPEG, precision="tf32"),
    Step("ne-table2-c1", seeds=4, alphas=(1, 1.5), dataset=_JPEG, precision="bfloat16"),
    Step("ne-fig2-f1", seeds=5, precision="tf32"),
)


def plan(
    names: Iterable[str], scale: str = "full", *, seeds: int | None = None, **given: Any
) -> dict[str, list[Run]]:
    """Return the runs of several experiments, by name, in the order in which they shall be trained.

    Parameters
    ----------
    names : iterable of str
        As for `grid`; ``"next"`` is all of `NEXT`.
    scale, seeds, **given
        As for `grid`; what is given, and not None, goes before what `NEXT` says.

    Raises
    ------
    InputError
        For an unknown name or scale.
    """
    found: dict[str, list[Run]] = {}
    for name in names:
        if name == "next":
            for step in NEXT:
                found.setdefault(step.name, []).extend(step.runs(scale, seeds, given))
        else:
            if not _matching(name):
                known("grid", name, [*GRIDS, "next"])
            found.setdefault(name, []).extend(grid(name, scale, seeds=seeds, **given))
    return {name: list(dict.fromkeys(runs)) for name, runs in found.items()}


def published_epochs(run: Run) -> float:
    """Epochs that such a run took in NE Table 2; NaN for others."""
    samples = _SAMPLES.get(run.network)
    row = ne_table_2().query(
        "network == @run.network and alpha == @run.alpha and batch_size == @run.batch_size"
    )
    if run.train_size or not samples or row.empty:
        return math.nan
    return float(row["updates"].iloc[0]) / math.ceil(samples / run.batch_size)


def overview() -> pd.DataFrame:
    """Every grid with its number of runs at each scale."""
    rows = [
        {"grid": name, "what": g.doc, **{scale: len(grid(name, scale)) for scale in SCALES}}
        for name, g in GRIDS.items()
    ]
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------- published tables

_TABLE_2 = """
ne-f1  1    900  90.17 0.14  10934  816
ne-f1  1.5 2000  90.39 0.17   7914  528
ne-c1  1    100  88.05 0.18  24500 2775
ne-c1  1.5  200  88.69 0.11  20825 2113
ne-c1  2    300  88.77 0.30  15932 1870
ne-c1  2.5  500  88.66 0.22  10040 1153
ne-c2  1    600  61.40 0.54   5292  935
ne-c2  1.5 1000  61.75 0.48   5175  748
"""
_TABLE_3 = """
ne-f1  1   900 90.17 0.14
ne-f1  3  5000 90.35 0.05
ne-c1  1   100 88.05 0.18
ne-c1 10  5000 88.26 0.23
ne-c2  1   600 61.40 0.54
ne-c2  5  5000 61.53 0.35
"""
_SAMPLES = {"ne-f1": 60_000, "ne-c1": 50_000, "ne-c2": 50_000}  # training images
_NE_COLUMNS = ["network", "alpha", "batch_size", "accuracy", "accuracy_std", "updates", "updates_std"]
_TABLE_I = """
smoothout-f1  256 98.49 98.61
smoothout-f1 6000 98.01 98.42
smoothout-c1  256 79.67 81.72
smoothout-c1 5000 77.30 80.34
smoothout-c3  256 47.99 51.17
smoothout-c3 5000 44.37 48.43
"""
_C1_STD = {(256, 0.0): 0.33, (256, _A): 0.12, (5000, 0.0): 0.24, (5000, _A): 0.31}  # the only spreads printed
_TABLE_II = """
resnet44 cifar10   2048 400 sqrt   91.02 91.95 92.63
resnet44 cifar100  1024 200 sqrt   67.23 68.68 70.09
resnet44 cifar100  1024 400 sqrt   68.62 70.01 72.39
resnet44 cifar100  1024 400 linear 71.21 71.67 72.85
alexnet  imagenet 16384  60 sqrt   47.64 nan   52.53
alexnet  imagenet 16384 120 sqrt   54.24 nan   55.51
resnet18 imagenet 16384  90 sqrt   66.75 nan   67.11
"""
_TABLE_III = """
smoothout-c1  256 81.72 36.52
smoothout-c1 5000 80.34 46.05
resnet44     2048 91.95 27.57
"""
_TABLE_IV = (91.02, 91.95, 91.15, 92.63, 91.54)
_TABLE_V = (91.02, 91.95, 91.53, 92.63, 92.44, 91.15, 91.38)


def ne_table_2() -> pd.DataFrame:
    """NE Table 2: the best test accuracy for each α, mean and standard deviation of 10 runs.

    Returns
    -------
    pandas.DataFrame
        Columns network, alpha, batch_size (B_opt), accuracy and accuracy_std (percent), updates and updates_std.
    """
    return _table(_TABLE_2, _NE_COLUMNS)


def ne_table_3() -> pd.DataFrame:
    """NE Table 3: the best test accuracy of smaller B at α = 1, and of larger α at B = 5000; columns as Table 2."""
    return _table(_TABLE_3, _NE_COLUMNS[:5])


def smoothout_table_1() -> pd.DataFrame:
    """SmoothOut Table I without its sharpness column, which rests on a gradient of the wrong sign.

    Returns
    -------
    pandas.DataFrame
        Columns network, batch_size, a (0 is the baseline), accuracy and accuracy_std (percent; printed for C1 only).
    """
    wide = _table(_TABLE_I, ["network", "batch_size", "0.0", "0.0375"])
    long = wide.melt(["network", "batch_size"], var_name="a", value_name="accuracy").astype({"a": float})
    cells = zip(long["network"], long["batch_size"], long["a"], strict=True)
    std = [_C1_STD.get((b, a)) if network == "smoothout-c1" else None for network, b, a in cells]
    return long.assign(accuracy_std=pd.Series(std, dtype=float)).sort_values(
        ["network", "batch_size", "a"], ignore_index=True
    )


def smoothout_table_2() -> pd.DataFrame:
    """SmoothOut Table II; two things in it are not printed.

    AlexNet's accuracy with AdaSmoothOut in 60 epochs is derived from the gain in the text, and AdaSmoothOut's strength
    is known for CIFAR-10 only.
    """
    methods = {"baseline": _BASELINE, "SmoothOut": _SMOOTH, "AdaSmoothOut": _ADAPTIVE}
    columns = ["network", "dataset", "batch_size", "epochs", "lr_scaling", *methods]
    wide = _table(_TABLE_II, columns, text_columns=(0, 1, 4))
    long = wide.melt(list(wide.columns[:5]), var_name="method", value_name="accuracy").dropna(
        subset="accuracy"
    )
    chosen = pd.DataFrame([methods[method] for method in long.pop("method")], index=long.index)
    return _complete(long.join(chosen))


def smoothout_table_3() -> pd.DataFrame:
    """SmoothOut Table III: with and without taking the noise off again, a = 0.0375, CIFAR-10."""
    wide = _table(_TABLE_III, ["network", "batch_size", "True", "False"])
    long = wide.melt(["network", "batch_size"], var_name="denoise", value_name="accuracy")
    return _complete(long.assign(a=_A, denoise=long["denoise"] == "True"))


def smoothout_table_4() -> pd.DataFrame:
    """SmoothOut Table IV: ResNet44 on CIFAR-10, B = 2048, with and without de-noising."""
    return _resnet44(_TABLE_IV_METHODS, _TABLE_IV)


def smoothout_table_5() -> pd.DataFrame:
    """SmoothOut Table V: ResNet44 on CIFAR-10, B = 2048, uniform and normal noise."""
    return _resnet44(_TABLE_V_METHODS, _TABLE_V)


#: The published tables by name.
TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "ne-table2": ne_table_2,
    "ne-table3": ne_table_3,
    "smoothout-table1": smoothout_table_1,
    "smoothout-table2": smoothout_table_2,
    "smoothout-table3": smoothout_table_3,
    "smoothout-table4": smoothout_table_4,
    "smoothout-table5": smoothout_table_5,
}
#: Fields of a `Run` that say which method it is; tables and comparisons know a cell by them.
METHOD = ("alpha", "a", "adaptive", "denoise", "distribution")
_METHOD_DEFAULTS = {f.name: f.default for f in fields(Run) if f.name in METHOD}


def published(table: str) -> pd.DataFrame:
    """A published table in one common form: network, batch_size, the fields in `METHOD`, and what was found.

    Returns
    -------
    pandas.DataFrame
        Also accuracy, accuracy_std, updates and updates_std; NaN where the paper prints none.

    Raises
    ------
    InputError
        For an unknown name.
    """
    rows = _complete(TABLES[known("table", table, TABLES)]())
    found = ("accuracy", "accuracy_std", "updates", "updates_std")
    rows = rows.assign(**{name: math.nan for name in found if name not in rows})
    first = ["network", "batch_size", *METHOD]
    rows = rows.astype({"batch_size": int})
    return rows[[*first, *(c for c in rows if c not in (*first, *found)), *found]]


def _resnet44(methods: tuple[Cell, ...], accuracies: tuple[float, ...]) -> pd.DataFrame:
    rows = pd.DataFrame(methods).assign(accuracy=accuracies)
    return _complete(rows.assign(network="resnet44", batch_size=2048))


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Every field of `METHOD` a column, at a run's default where a table is silent."""
    for name, default in _METHOD_DEFAULTS.items():
        given = rows[name] if name in rows else pd.Series(None, rows.index, dtype=object)
        rows = rows.assign(**{name: given.where(given.notna(), default).astype(type(default))})
    return rows.reset_index(drop=True)


def _table(text: str, columns: list[str], *, text_columns: tuple[int, ...] = (0,)) -> pd.DataFrame:
    rows = pd.DataFrame([line.split() for line in text.strip().splitlines()], columns=columns)
    return rows.astype({column: float for i, column in enumerate(columns) if i not in text_columns})
