"""Which experiments shall be trained in which order (`plan`), and which are missing most (`NEXT`)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nb_lib.errors import known
from nb_lib.lab.runs import Run
from nb_lib.papers import GRIDS, grid, matching
from nb_lib.protocols import Fields, not_none


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
        if not self.alphas:
            return self.grid
        return f"{self.grid}, α = {' and '.join(f'{alpha:g}' for alpha in self.alphas)}"

    def runs(self, scale: str, seeds: int | None, given: Fields) -> list[Run]:
        """The runs at a scale; below the full one of all α and the scale's own seeds, tiny on the embedded data."""
        own: Fields = {} if scale == "tiny" else {"dataset": self.dataset, "precision": self.precision}
        if scale == "full" and seeds is None:
            seeds = self.seeds
        runs = grid(self.grid, scale, seeds=seeds, **own | not_none(given))
        if scale != "full" or not self.alphas:
            return runs
        return [run for run in runs if run.alpha in self.alphas]


_JPEG = "folder:cifar10"  # the copy of CIFAR-10 that the recorded runs were made on
#: What is missing most, in the order in which a GPU's minutes tell most: F1 of both papers first, which is cheap, then
#: a first look at ResNet44 and C1, the tables of SmoothOut on C1, the published gain that is large against its spread,
#: a whole figure, and SmoothOut's variants on ResNet44.
NEXT = (
    Step("ne-table2-f1"),
    Step("ne-table3-f1", precision="tf32"),
    Step("smoothout-table1-f1"),
    Step("smoothout-table2-cifar10", seeds=1, dataset=_JPEG, precision="bfloat16"),
    Step("ne-table2-c1", seeds=1, dataset=_JPEG, precision="bfloat16"),
    Step("smoothout-table1-c1", dataset=_JPEG, precision="tf32"),
    Step("smoothout-table3-c1", dataset=_JPEG, precision="tf32"),
    Step("ne-table2-c1", seeds=4, alphas=(1, 1.5), dataset=_JPEG, precision="bfloat16"),
    Step("ne-fig2-f1", seeds=5, precision="tf32"),
    Step("smoothout-table5-resnet44", seeds=1, dataset=_JPEG, precision="bfloat16"),
    Step("smoothout-table4-resnet44", seeds=1, dataset=_JPEG, precision="bfloat16"),
    Step("smoothout-table3-resnet44", seeds=1, dataset=_JPEG, precision="bfloat16"),
)


def plan(names: Iterable[str], scale: str = "full", *, seeds: int | None = None, **given: Any) -> dict[str, list[Run]]:
    """Return the runs of several experiments, by name, in the order in which they shall be trained.

    Names, scale and what is given are as for `grid`; ``"next"`` is all of `NEXT`, and what is given goes before what
    that says.

    >>> {name: len(runs) for name, runs in plan(["ne-table2-f1", "ne-table3"]).items()}
    {'ne-table2-f1': 20, 'ne-table3': 60}
    """
    found: dict[str, list[Run]] = {}
    for name in names:
        if name == "next":
            for step in NEXT:
                found.setdefault(step.name, []).extend(step.runs(scale, seeds, given))
        elif matching(name):
            found.setdefault(name, []).extend(grid(name, scale, seeds=seeds, **given))
        else:
            known("grid", name, [*GRIDS, "next"])
    return {name: list(dict.fromkeys(runs)) for name, runs in found.items()}
