"""The methods of one experiment beside each other: their accuracies, and what each gains over one of them."""

from collections.abc import Iterator

import pandas as pd

from nb_lib.page.intervals import with_error
from nb_lib.page.tables import show_table
from nb_lib.page.verdicts import compared, say
from nb_lib.papers import method_in_words

#: What differs between rows of a published table beside the method; methods are compared where it is the same.
SETTING = ["batch_size", "epochs_limit", "lr_scaling"]


def show_methods(results: pd.DataFrame, over: str = "baseline", *, expected: int = 0) -> None:
    """Show accuracies of all methods, and say what they gain `over` one of them, for each setting.

    `results` are of one experiment and variety, as from `experiments.varieties`; `expected` is the sign of the gain
    that is claimed, if any.
    """
    for setting, rows in by_setting(results):
        diverged = sum(rows["status"] == "diverged")
        note = f"; {diverged} of {len(rows)} runs diverged" if diverged else ""
        show_table(scores(rows), f"{setting}: test accuracy, percent, mean ± standard error{note}")
        say(gains(rows, over, expected))


def by_setting(results: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Runs of one batch size, length and scaling of the learning rate at a time, with these in words.

    The runs have a column more, `method` (see `papers.method_in_words`), whose values are in the order of the rows.
    """
    words = [method_in_words(row) for row in results.to_dict("records")]
    named = results.assign(method=words)
    for (B, epochs, scaling), rows in named.groupby(SETTING, sort=False):
        setting = f"B = {B}, {epochs} epochs"
        if scaling != "none":
            setting = f"{setting}, {scaling} scaling of the rate"
        order = rows["method"].unique()
        ordered = pd.Categorical(rows["method"], order)
        yield setting, rows.assign(method=ordered)


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of each method in percent, mean ± standard error over seeds: the best of a training and the last.

    `rows` are of one setting, see `by_setting`.
    """
    cells = rows.groupby("method", observed=True)
    best = with_error(cells["best_test_accuracy"], scale=100)
    final = with_error(cells["test_accuracy"], scale=100)
    seeds = cells["seed"].nunique()
    table = pd.DataFrame({"best": best, "final": final, "seeds": seeds})
    return table.rename_axis("method")


def gains(rows: pd.DataFrame, over: str, expected: int = 0) -> str:
    """Say what each method gains over another in best test accuracy, paired by seed (see `verdicts.compared`)."""
    return compared(
        rows,
        "method",
        "best_test_accuracy",
        baseline=over,
        what="best test accuracy",
        unit="points",
        scale=100,
        number=".2f",
        expected=expected,
    )
