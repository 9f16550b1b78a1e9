"""What a page says of stochastic results: a sentence for each verdict, from made numbers."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nb_lib.errors import InputError
from nb_lib.page.tables import show_table
from nb_lib.page.verdicts import NOTHING, OPEN, OPPOSITE, RESOLVED, TOO_FEW, compared, judge, say, seeds_needed


def runs(**scores: list[float]) -> pd.DataFrame:
    """A table of methods, whose scores stand in the order of their seeds."""
    rows = []
    for method, values in scores.items():
        rows += [{"method": method, "seed": seed, "loss": loss} for seed, loss in enumerate(values)]
    return pd.DataFrame(rows)


PLAIN = [1.0, 2.0, 3.0, 4.0]
LOWER = [0.5, 1.6, 2.4, 3.5]  # by 0.5 ± 0.13, the interval of 95 % of these four
NOISY = [0.9, 2.2, 2.7, 4.3]


def said(expected=0, **others):
    return compared(
        runs(plain=PLAIN, **others),
        "method",
        "loss",
        baseline="plain",
        what="test loss",
        unit="nats",
        expected=expected,
    )


def test_resolved():
    half = stats.t.ppf(0.975, 3) * np.std(np.subtract(LOWER, PLAIN), ddof=1) / 2
    size = f"−0.5 ± {half:.2g} nats; 4 of 4 seeds"
    assert said(smooth=LOWER) == f"Test loss, compared with plain seed by seed: lower with smooth ({size})."
    assert said(smooth=LOWER, expected=-1) == said(smooth=LOWER)


def test_not_resolved_says_so_and_how_many_seeds_agree():
    assert said(noisy=NOISY).startswith(
        "Test loss, compared with plain seed by seed: not resolved with noisy (+0.025 ± "
    )
    assert "2 of 4 seeds" in said(noisy=NOISY)


def test_opposite_to_the_claim_is_said_plainly():
    assert "**lower**, against the claim, with smooth" in said(smooth=LOWER, expected=1)


def test_too_few_seeds_give_no_verdict_however_far_apart_they_are():
    assert "too few seeds with once (−0.9 nats; 1 seed)" in said(once=[0.1])
    assert "too few seeds with twice (−1 ± " in said(twice=[0.0, 1.0])
    elsewhere = runs(plain=PLAIN)
    elsewhere.loc[len(elsewhere)] = ["elsewhere", 77, 1.0]
    sentence = compared(elsewhere, "method", "loss", baseline="plain", what="loss")
    assert "too few seeds with elsewhere (no seed in common)" in sentence


def test_what_is_the_same_in_every_seed_is_called_that():
    assert "the same with copy (" in said(copy=PLAIN)


def test_groups_of_one_verdict_share_it():
    sentence = said(first=LOWER, noisy=NOISY, second=LOWER)
    assert sentence.count("lower with") == 1
    assert sentence.index("first") < sentence.index(" and second") < sentence.index("not resolved with noisy")


def test_more_comparisons_need_more():
    """An interval that excludes zero by itself does not among ten."""
    scores = {f"m{k}": [0.85, 1.6, 2.8, 3.7] for k in range(10)}
    assert "lower with" in said(m0=scores["m0"])
    assert "not resolved with m0" in said(**scores)


@pytest.mark.parametrize("there", [{}, {"noisy": [1.0, 2.0]}, {"plain": [1.0, 2.0]}])
def test_without_a_baseline_or_another_group_there_is_nothing_to_compare(there):
    table = runs(**there) if there else runs(plain=[1.0])[:0]
    assert compared(table, "method", "loss", baseline="plain", what="loss") == NOTHING


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("expected", [-1, 0, 1])
def test_a_verdict_is_that_of_the_interval(sign, expected):
    resolved = OPPOSITE if expected == -sign else RESOLVED
    assert judge(sign * 0.3, 0.2, 5, expected=expected) == resolved
    assert judge(sign * 0.3, 0.3, 5, expected=expected) == OPEN
    assert judge(sign * 0.3, 0.0, 2, expected=expected) == TOO_FEW
    assert judge(sign * 0.3, math.nan, 1, expected=expected) == TOO_FEW


@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.5])
def test_so_many_seeds_show_the_gain_with_the_power_and_one_fewer_do_not(ratio):
    """Against the share of made experiments that Student's test resolves."""
    n = seeds_needed(ratio, 1.0)
    rng = np.random.default_rng(0)
    for count, is_enough in ((n, True), (n - 1, False)):
        made = rng.normal(ratio, 1.0, size=(40_000, count))
        resolved = np.mean(stats.ttest_1samp(made, 0, axis=1).pvalue < 0.05) if count > 1 else 0.0
        error = 4 * math.sqrt(0.16 / 40_000)
        assert (resolved > 0.8 - error) if is_enough else (resolved < 0.8 + error)


def test_seeds_have_no_sign_an_end_and_a_gain():
    assert seeds_needed(-1.0, 1.0) == seeds_needed(1.0, 1.0)
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(1e-9, 1.0, most=50) == 50
    with pytest.raises(InputError, match="gain of zero"):
        seeds_needed(0.0, 1.0)


def test_sentences_are_prose_of_the_page(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    say("One.", "Two.")
    say("One.", "Two.", bullets=True)
    assert [each.data for each in shown] == ["One. Two.", "- One.\n- Two."]


@pytest.fixture
def table(monkeypatch):
    """Show a frame, and return the forms of the output."""
    shown = []
    monkeypatch.setattr("nb_lib.page.tables.display", lambda forms, raw: shown.append(forms))

    def show(frame, *given, **named):
        show_table(frame, *given, **named)
        return shown[-1]

    return show


def test_a_table_has_the_index_formats_and_a_caption(table):
    frame = pd.DataFrame({"loss": [0.123456, -2.0], "n": [3, 4]}, index=pd.Index(["SGD", "<NE>"], name="method"))
    forms = table(frame, "Losses", formats={"loss": "{:.2f}"})
    page = forms["text/html"]
    assert "<caption>Losses</caption>" in page
    assert "&lt;NE&gt;" in page
    assert page.count('scope="col"') == 3
    assert re.findall(r"<th [^>]*>([^<]*)", page) == ["method", "loss", "n"]
    assert re.findall(r"</span>([^<]*)</td>", page) == ["SGD", "0.12", "3", "&lt;NE&gt;", "−2.00", "4"]
    assert forms["text/plain"].startswith("Losses\n")


def test_a_minus_is_no_hyphen(table):
    cells = {"a": [-0.5], "b": ["-1.2 (0.3), 1e-15"], "c": ["sweep ne-f1 --scale 2026-11-27"]}
    text = table(pd.DataFrame(cells), formats={"": "{:.1f}"})["text/html"]
    assert re.findall(r"</span>([^<]*)</td>", text) == ["−0.5", "−1.2 (0.3), 1e−15", "sweep ne-f1 --scale 2026-11-27"]


def test_what_is_not_known_is_empty_and_wide_tables_are_marked(table):
    forms = table(pd.DataFrame([[math.nan, None, 1.0, 2, "a", "b"]], columns=list("uvwxyz")))
    assert "nan" not in forms["text/html"].lower()
    assert "None" not in forms["text/html"]
    assert "nb-wide" in forms["text/html"]
    assert "nb-wide" not in table(pd.DataFrame({"a": [1]}))["text/html"]
