"""What the papers did: experiments as grids of runs.

Every table and figure of both papers has a name, and so has every scale of it.  How a network is trained for it, and
what the scales are, stands in `nb_lib.protocols`, whose names are offered here too; what came out in the papers, in
`nb_lib.published`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nb_lib.errors import InputError, known, whole
from nb_lib.lab.runs import Run
from nb_lib.protocols import PROTOCOLS, SCALES, SIZES, Fields, Size, not_none, protocol, regime

__all__ = [
    "GRIDS",
    "METHOD",
    "PROTOCOLS",
    "SCALES",
    "SIZES",
    "TABLES",
    "Grid",
    "Size",
    "grid",
    "matching",
    "method_in_words",
    "overview",
    "protocol",
    "run",
    "scales_of",
]

_A, _ADAPTIVE_A = 0.0375, 0.15  # SmoothOut's and AdaSmoothOut's strengths, throughout the paper

#: Fields of a `Run` that say which method it is; tables and comparisons know a cell by them.
METHOD = ("alpha", "a", "adaptive", "denoise", "distribution")
#: The published tables, see `published.table`.
TABLES = ("ne-table2", "ne-table3", *(f"smoothout-table{number}" for number in range(1, 6)))

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
    longer: Fields = regime(size.fields["epochs"])
    shorter: Fields = regime(size.fields["epochs"] // 2)
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


def _adaptive_alone(size: Size) -> list[Fields]:
    """AdaSmoothOut against the baseline at the large batch: Fig. 5, and ResNet18 in Table II."""
    return _cells([max(size.batch_sizes)], [_BASELINE, _ADAPTIVE])


def _table_2_alexnet(size: Size) -> list[Fields]:
    """The rows of AlexNet: trained as its protocol says, and twice as long."""
    usual = PROTOCOLS["alexnet"]
    rows = [regime(epochs, like=usual) for epochs in (usual["epochs"], 2 * usual["epochs"])]
    return [row | cell for row in rows for cell in _adaptive_alone(size)]


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

    @property
    def scales(self) -> dict[str, Size]:
        """What each scale is that it has."""
        return SIZES[self.sizes or self.network]

    def size(self, scale: str) -> Size:
        """What a scale of it is."""
        return self.scales[scale]

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
_FIG_5 = "SmoothOut Fig. 5, loss along filter-normalized lines"
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
    "smoothout-table2-alexnet": Grid("alexnet", _TABLE_II, _table_2_alexnet),
    "smoothout-table2-resnet18": Grid("resnet18", _TABLE_II, _adaptive_alone),
    "smoothout-table3-c1": Grid("smoothout-c1", _TABLE_III, _table_3),
    "smoothout-table3-resnet44": Grid("resnet44", _TABLE_III, _table_3_large),
    "smoothout-table4-resnet44": Grid("resnet44", "SmoothOut Table IV, the part of taking noise off", _table_4),
    "smoothout-table5-resnet44": Grid("resnet44", "SmoothOut Table V, kinds of noise", _table_5),
    "smoothout-fig5-resnet44": Grid("resnet44", _FIG_5, _adaptive_alone),
    "smoothout-fig7-cifar10": Grid("resnet44", _FIG_7, _figure_7),
    "smoothout-fig7-cifar100": Grid("resnet44", _FIG_7, _figure_7, sizes="resnet44-cifar100"),
}


def grid(name: str, scale: str = "full", *, seeds: int | None = None, **given: Any) -> list[Run]:
    """Return the runs of an experiment, all cells of one seed before the next; an unknown name is an `InputError`.

    Parameters
    ----------
    name : str
        A key of `GRIDS`, or the beginning of several: ``"ne-table2"`` is all three networks', and at a scale those that
        have it.
    scale : {"tiny", "small", "full"}
    seeds : int, optional
        None takes the scale's own number.
    **given
        Fields of `Run` that shall differ from the protocol, as ``precision="tf32"``; None leaves one as it is.  Those
        in which the cells differ are refused.

    Examples
    --------
    >>> [(run.alpha, run.batch_size, run.seed) for run in grid("ne-table2-f1", seeds=2)]
    [(1.0, 900, 0), (1.5, 2000, 0), (1.0, 900, 1), (1.5, 2000, 1)]
    """
    known("scale", scale, SCALES)
    there = scales_of(name)
    if scale not in there:
        raise InputError(f"{name} has the scale {' and '.join(there)} only, not {scale}.")
    runs: list[Run] = []
    for one in matching(name):
        if scale in GRIDS[one].scales:
            runs += _runs(GRIDS[one], scale, seeds, given)
    return sorted(dict.fromkeys(runs), key=lambda run: run.seed)


def matching(name: str) -> list[str]:
    """The grids of that name, or whose names begin so."""
    return [grid for grid in GRIDS if grid == name or grid.startswith(f"{name}-")]


def scales_of(name: str) -> list[str]:
    """The scales that an experiment has, or one of several; an unknown name is an `InputError`.

    >>> scales_of("smoothout-table2"), scales_of("smoothout-table2-alexnet")
    (['tiny', 'small', 'full'], ['full'])
    """
    named = matching(name) or [known("grid", name, GRIDS)]
    return [scale for scale in SCALES if any(scale in GRIDS[one].scales for one in named)]


def _runs(grid: Grid, scale: str, seeds: int | None, given: Fields) -> list[Run]:
    """The runs of one grid, with seeds counted up from the `given` one or 0."""
    size = grid.size(scale)
    given = not_none(given)
    common = {"seed": 0, **protocol(grid.network), **size.fields, **given}
    cells = [common | cell for cell in grid.at(scale)]
    for name in given:
        if any(name in cell for cell in grid.at(scale)):
            raise InputError(f"{name} is not to be given: it is what {grid.doc} compares.")
    numbers = range(size.seeds if seeds is None else whole("seeds", seeds, 1))
    return [run(**cell | {"seed": cell["seed"] + number}) for number in numbers for cell in cells]


def run(**fields: Any) -> Run:
    """The `Run` of a protocol's fields with a batch size, and others.

    How a batch is cut is left out where it is no larger than a part, so that it makes no other run of it.
    """
    B = fields.get("batch_size", Run.batch_size)
    part = fields.get("noise_batch") or math.inf  # None is the whole batch
    if part >= B:
        fields.pop("cutting", None)
    return Run.from_dict(fields)


def method_in_words(fields: Mapping[Any, Any]) -> str:
    """Name the method of SmoothOut's paper that these fields of a run say, with what is not the usual of it.

    >>> method_in_words({"a": 0.025, "adaptive": False, "distribution": "normal", "denoise": True})
    'SmoothOut, a = 0.025, normal noise'
    """
    if fields["a"] == 0:
        return "baseline"
    name = "AdaSmoothOut" if fields["adaptive"] else "SmoothOut"
    words = [name, f"a = {fields['a']:g}"]
    if fields["distribution"] == "normal":
        words.append("normal noise")
    if not fields["denoise"]:
        words.append("not taken off")
    return ", ".join(words)


def overview() -> list[dict[str, Any]]:
    """Every grid, what it is of, and its number of runs at each scale, 0 where it has none."""
    rows = []
    for name, one in GRIDS.items():
        runs = dict.fromkeys(SCALES, 0)
        for scale, size in one.scales.items():
            runs[scale] = len(one.at(scale)) * size.seeds
        rows.append({"grid": name, "what": one.doc, **runs})
    return rows
