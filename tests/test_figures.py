import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from scipy import stats

from nb_lib.page import figures, run_figures
from nb_lib.page.figures import COLORS


@pytest.fixture
def figure():
    return figures.axes(("w", "loss"), (-1, 1), (0, 2))


def test_axes(figure):
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("w", "loss")
    assert (figure.layout.xaxis.range, figure.layout.yaxis.range) == ((-1, 1), (0, 2))
    assert figures.axes(("w", "loss")).layout.xaxis.range is None


def test_a_method_has_its_color_and_lines_of_one_color_differ(figure):
    x = np.arange(3)
    figures.add_lines(figure, x, {"NE, α = 2": x, "SmoothOut": x, "SmoothOut, twice": 2 * x, "loss": x, "L̄": x})
    figures.add_lines(figure, x, {"NE again": x})
    assert [trace.line.color for trace in figure.data] == [
        COLORS["NE"], COLORS["SmoothOut"], COLORS["SmoothOut"], None, None, COLORS["NE"],
    ]  # fmt: skip
    assert [trace.line.dash for trace in figure.data] == ["solid", "solid", "dash", "solid", "dash", "dash"]
    assert [trace.name for trace in figure.data][:2] == ["NE, α = 2", "SmoothOut"]


def test_a_histogram_counts_every_finite_value(figure):
    values = np.array([0.1, 0.2, 0.7, 5.0, np.nan, np.inf])  # one beyond the last edge, two nowhere
    (trace,) = figures.add_histogram(figure, values, np.array([0, 0.5, 1]), "SGD").data
    np.testing.assert_allclose(trace.x, [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(trace.y, [0.5, 0.5, 0.25, 0.25])
    empty = figures.add_histogram(go.Figure(), np.array([np.nan]), np.array([0, 1]), "SGD").data[0]
    np.testing.assert_allclose(empty.y, [0, 0])


def test_ellipse_is_the_level_line_of_a_normal_cloud():
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    curve = figures.ellipse(covariance)
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", curve, np.linalg.inv(covariance), curve), 4)
    np.testing.assert_allclose(figures.ellipse(np.zeros((2, 2))), 0, atol=1e-12)


def test_points_paths_and_contours(figure):
    path = np.array([[0, 0], [1, 1], [2, 0.5]])
    figures.add_path(figure, path, "NE path")
    figures.add_points(figure, [0], [1], "flat minimum", symbol="circle", error=np.array([0.1]))
    figures.add_cloud(figure, path, "SGD gradients")
    figures.add_contours(figure, np.arange(3), np.arange(2), np.arange(6).reshape(2, 3))
    figures.add_bars(figure, ["sharp", "flat"], [0.3, 0.7], "SmoothOut")
    way, points, cloud, contours, bars = figure.data
    assert list(way.marker.size) == [3, 3, 12]
    assert list(points.error_y.array) == [0.1]
    assert cloud.marker.color == COLORS["SGD"]
    assert np.shape(contours.z) == (2, 3)
    assert not contours.showscale
    assert list(bars.y) == [0.3, 0.7]


def test_joined_points_tell_their_rank_and_their_method(figure):
    x = np.arange(3)
    figures.add_joined_points(figure, x, x, np.ones(3), "trained with NE", rank=0, color="NE")
    figures.add_joined_points(figure, x, x, np.ones(3), "SmoothOut (2 seeds)", rank=1)
    first, second = figure.data
    assert (first.line.color, second.line.color) == (COLORS["NE"], COLORS["SmoothOut"])
    assert (first.line.dash, second.line.dash) == ("solid", "dash")
    assert (first.marker.symbol, second.marker.symbol) == ("circle", "triangle-up")
    assert list(first.error_y.array) == [1, 1, 1]


def test_a_band_runs_along_its_upper_edge_and_back_along_the_lower_one(figure):
    (band,) = figures.add_band(figure, [0, 1], [2, 3], [4, 5], "NE, sharp well").data
    assert list(zip(band.x, band.y, strict=True)) == [(0, 4), (1, 5), (1, 3), (0, 2)]
    assert band.fillcolor == "rgba(213,94,0,0.18)"
    assert not band.showlegend


def curves(loss: float, **of: object) -> pd.DataFrame:
    """As of a profiled network: a loss at two places, and an accuracy of half of it."""
    of = {"alpha": 1.0, "a": 0.0, "adaptive": False, "batch_size": 16, "data": "train", "seed": 0} | of
    return pd.DataFrame({"x": [0.0, 0.1], "loss": [loss, 2 * loss], "accuracy": [loss / 2, loss], **of})


def test_profiles_are_means_over_seeds_with_bands_to_the_lowest_and_the_highest():
    table = pd.concat([curves(1.0), curves(3.0, seed=1), curves(5.0, seed=2)])
    band, line = run_figures.profiles(table, y="loss", titles=("x", "loss")).data
    assert list(line.x) == [0, 0.1]
    assert list(line.y) == [3, 6]
    assert list(zip(band.x, band.y, strict=True)) == [(0, 5), (0.1, 10), (0.1, 2), (0, 1)]
    assert line.name == "SGD (3 seeds)"
    percent = run_figures.profiles(table, y="accuracy", titles=("x", "accuracy, %"), scale=100).data[1]
    assert list(percent.y) == [150, 300]


def test_lines_of_profiles_are_named_by_what_differs_and_told_apart():
    batches = pd.concat([curves(1, data="test", batch_size=128), curves(1, batch_size=128), curves(1, data="test")])
    lines = run_figures.profiles(pd.concat([batches, curves(1)]), y="loss", titles=("x", "loss")).data[1::2]
    assert [line.name for line in lines] == [
        "SGD, B = 16, train (1 seed)", "SGD, B = 16, test (1 seed)",
        "SGD, B = 128, train (1 seed)", "SGD, B = 128, test (1 seed)",
    ]  # fmt: skip
    assert len({line.line.dash for line in lines}) == 4
    pair = pd.concat([curves(1), curves(1, a=0.15, adaptive=True)])
    lines = run_figures.profiles(pair, y="loss", titles=("x", "loss")).data[1::2]
    assert [line.name for line in lines] == ["SGD (1 seed)", "AdaSmoothOut (1 seed)"]
    assert [line.line.color for line in lines] == [COLORS["SGD"], COLORS["AdaSmoothOut"]]


def test_figures_of_no_runs_say_so():
    none = pd.DataFrame(columns=["batch_size", "alpha", "seed", "epoch", "updates", "test_accuracy"])
    both = {"series": "alpha", "symbol": "α", "titles": ("x", "y")}
    drawn = [
        run_figures.means(none, x="batch_size", y="updates", **both),
        run_figures.bands(none, x="epoch", y="updates", **both),
        run_figures.routes(none, x="updates", titles=("x", "y")),
        run_figures.cells(none, x="updates", y="test_accuracy", titles=("x", "y")),
    ]
    for figure in drawn:
        assert [note.text for note in figure.layout.annotations] == ["no runs to show yet"]


def test_cells_lie_at_the_means_of_both_axes_and_are_joined_in_the_order_of_x():
    cost = {(300, 1.0): [700, 710, 720], (20, 1.0): [60, 80, 70], (300, 4.0): [500, 520, 510]}
    rows = [
        {"batch_size": B, "alpha": alpha, "seed": seed, "updates": updates, "test_loss": updates / 1000}
        for (B, alpha), values in cost.items()
        for seed, updates in enumerate(values)
    ]
    figure = run_figures.cells(pd.DataFrame(rows), x="updates", y="test_loss", titles=("x", "y"), scale=10)
    plain, enhanced = figure.data
    assert (plain.name, enhanced.name) == ("plain SGD (3 seeds)", "NE, α = 4 (3 seeds)")
    assert (list(plain.x), list(enhanced.x)) == ([70, 710], [510])
    np.testing.assert_allclose(plain.y, [0.7, 7.1])
    low, high = stats.ttest_1samp(cost[300, 4.0], 0).confidence_interval(0.95)
    assert enhanced.error_x.array[0] == pytest.approx((high - low) / 2)
    assert enhanced.error_y.array[0] == pytest.approx((high - low) / 200)
    assert (plain.marker.color, enhanced.marker.color) == (COLORS["SGD"], COLORS["NE"])
    assert plain.marker.symbol != enhanced.marker.symbol
    assert figure.layout.xaxis.type == "log"
    ticks = dict(zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True))
    assert (ticks[50], ticks[1000]) == ("50", "1k")
    apart = run_figures.cells(pd.DataFrame(rows), x="updates", y="test_loss", titles=("x", "y"), joined=False)
    assert {trace.mode for trace in apart.data} == {"markers"}


def test_routes_are_labeled_with_what_changes_along_them():
    rows = [
        {"batch_size": B, "alpha": alpha, "seed": seed, "updates": B * alpha + seed, "test_accuracy": 0.9}
        for B, alpha in ((10, 1.0), (40, 1.0), (40, 2.0))
        for seed in (0, 1)
    ]
    smaller, larger = run_figures.routes(pd.DataFrame(rows), x="updates", titles=("x", "y")).data
    assert (list(smaller.x), list(smaller.text)) == ([10.5, 40.5], ["B = 10", "B = 40"])
    assert (list(larger.x), list(larger.text)) == ([40.5, 80.5], ["α = 1", "α = 2"])
    assert list(larger.y) == [90, 90]
    assert (smaller.name, larger.name) == ("smaller B at α = 1 (2 seeds)", "larger α at B = 40 (2 seeds)")
