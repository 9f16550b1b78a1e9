"""Differences to one case, seed by seed, as a picture: a row for each other case, from the top down."""

import pandas as pd
from plotly.graph_objects import Figure

from nb_lib.page.explore import INK
from nb_lib.page.figures import COLORS, axes, bars
from nb_lib.page.intervals import paired


def rows_of_differences(
    frame: pd.DataFrame, by: str, value: str, *, baseline: str, title: str, scale: float = 1
) -> Figure:
    """Draw what `scale` · `value` differs by from the case `baseline`, with intervals of 95 % (see `intervals.paired`).

    Parameters
    ----------
    frame : DataFrame
        A row for each seed of each case; the column `by` is categorical, in the order of the rows of the picture.
    title : str
        Of the axis, with the unit.

    Notes
    -----
    A case whose name has that of a method in it has its color.

    Examples
    --------
    >>> runs = pd.DataFrame({"seed": [0, 1] * 2, "case": list("aabb"), "loss": [1.0, 2.0, 1.5, 2.7]})
    >>> runs["case"] = pd.Categorical(runs["case"], ["a", "b"])
    >>> figure = rows_of_differences(runs, "case", "loss", baseline="a", title="loss")
    >>> figure.layout.yaxis.ticktext, round(figure.data[0].x[0], 3)
    (('b',), 0.6)
    """
    figure = axes((title, ""))
    table = paired(frame, by, value, baseline=baseline)
    half = scale * table["half"].fillna(0)
    marker = {"size": 10, "color": [_color(str(name)) for name in table[by]]}
    figure.add_scatter(
        x=(scale * table["difference"]).tolist(),
        y=[-row for row in table.index],
        error_x=bars(half.tolist(), width=4) | {"color": INK},
        mode="markers",
        marker=marker,
        showlegend=False,
    )
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    figure.update_yaxes(tickvals=[-row for row in table.index], ticktext=table[by].tolist(), showgrid=False)
    return figure.update_yaxes(range=(-len(table) + 0.4, 0.6))


def _color(name: str) -> str:
    named = [color for method, color in COLORS.items() if method in name.split()]
    return named[0] if named else COLORS["SGD"]
