"""The page of claims: every figure and table of the papers is on it, and records decide what is said of it."""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nb_lib import papers
from nb_lib.lab.runs import Record
from nb_lib.page.claims import (
    CANNOT_TELL,
    CONFIRMED,
    CORRECTED,
    DERIVED,
    DISAGREES,
    ELSEWHERE,
    MADE,
    NOT_RUN,
    PARTLY,
    Evidence,
    Judged,
    counts,
    judged,
    linked,
    load,
)
from nb_lib.papers import grid, method_in_words
from nb_lib.profiles import Profile

ROOT = Path(__file__).parents[1]
CLAIMS = load(ROOT / "book/data/claims.json")
NAMES = [f"{number}: {claim['where']}" for number, claim in enumerate(CLAIMS, start=1)]


def record(run, accuracy, **differing):
    fields = dict(
        run=run, status="converged", test_accuracy=accuracy, best_test_accuracy=accuracy, valid_accuracy=None,
        train_accuracy=1.0, train_loss=0.0, test_loss=0.3, epochs=7, updates=70, samples=700, wall_time=1.0, curve=[],
        provenance={"dataset_variant": "a copy", "device": "a device", "commit": "c"},
    )  # fmt: skip
    return Record(**fields | differing)


def trained(name, accuracy, scale="full", seeds=3, **differing):
    """Records of an experiment, with what `differing` makes of each run; seeds differ, and not all alike."""
    runs = grid(name, scale, seeds=seeds)
    made = lambda run: {key: of(run) for key, of in differing.items()}  # noqa: E731
    return [record(run, accuracy(run) + 0.01 * run.seed, **made(run)) for run in runs]


def wobble(run):
    """A part of the accuracy that differs by seed and method, of hundredths of a point; over three seeds it is zero."""
    return 1e-4 * (run.seed - 1) * (run.alpha + 10 * run.a + run.denoise)


@pytest.mark.parametrize(("gain", "verdict"), [(0.01, CONFIRMED), (-0.01, DISAGREES)])
def test_records_of_imagenet_decide_the_claim_about_it(gain, verdict):
    [claim] = [claim for claim in CLAIMS if "ImageNet" in claim["claim"] and "gains" in claim]
    assert judged(claim, Evidence([])).verdict == NOT_RUN
    names = ("smoothout-table2-alexnet", "smoothout-table2-resnet18")
    records = [one for name in names for one in trained(name, lambda run: 0.5 + gain * run.adaptive + wobble(run))]
    found = judged(claim, Evidence(records))
    assert (found.verdict, found.scales, found.comparisons) == (verdict, ("full",), 3)
    by_method = {"grids": list(names), "by": "a", "other": 0.0, "value": "best_test_accuracy", "sign": 1}
    assert judged(by_method, Evidence(records)).verdict == verdict


@pytest.mark.parametrize("claim", CLAIMS, ids=NAMES)
def test_a_claim_names_what_is_there(claim):
    assert {"paper", "where", "claim", "chapters"} <= set(claim)
    assert claim["paper"] in ("NE", "SmoothOut")
    for chapter in claim["chapters"]:
        assert (ROOT / f"notebooks/{chapter}.ipynb").exists()
    if "verdict" in claim:
        assert claim["verdict"] in (DERIVED, CORRECTED, ELSEWHERE)
        assert claim["says"].endswith(".")
        return
    assert claim["sign"] in (-1, 1)
    names = [*claim.get("grids", []), *claim.get("profiles", [])]
    assert names or claim["gains"] in papers.TABLES
    assert set(names) <= set(papers.GRIDS)
    for pair in claim.get("pairs", []):
        methods = {method_in_words(run.to_dict()) for name in names for run in grid(name, seeds=1)}
        assert set(pair) <= methods


def test_every_table_and_every_measured_figure_of_both_papers_is_there():
    def numbers(paper, kind):
        places = " ".join(claim["where"] for claim in CLAIMS if claim["paper"] == paper)
        parts = re.findall(rf"{kind}s?\.? ((?:[\dIV]+(?:, | and )?)+)", places)
        return {number for part in parts for number in re.split(r", | and ", part) if number}

    assert numbers("NE", "Fig") == {"1", "2", "3"}
    assert numbers("NE", "Table") == {"2", "3"}  # Table 1 is the protocol
    assert numbers("SmoothOut", "Fig") == {"2", "4", "5", "6", "7", "8", "9"}  # 1 and 3 are drawings
    assert numbers("SmoothOut", "Table") == {"I", "II", "III", "IV", "V"}


def test_without_records_no_claim_about_trainings_is_judged():
    nothing = Evidence([])
    found = [judged(claim, nothing) for claim in CLAIMS]
    about_trainings = [each for claim, each in zip(CLAIMS, found, strict=True) if "verdict" not in claim]
    assert {each.verdict for each in about_trainings} == {NOT_RUN}
    assert {each.comparisons for each in about_trainings} == {0}
    assert f"{len(about_trainings)} not run." in counts(found)


def test_a_claim_with_records_of_all_its_experiments_follows_them():
    claim = next(one for one in CLAIMS if one["where"] == "Table III")

    def verdict(loss):
        records = []
        for name in claim["grids"]:
            records += trained(name, lambda run: 0.7 + wobble(run) - loss * (not run.denoise))
        return judged(claim, Evidence(records))

    lost, won, nothing = verdict(0.3), verdict(-0.3), verdict(0.0)
    assert (str(lost), lost.comparisons) == (CONFIRMED, 3)
    assert str(won) == DISAGREES
    assert str(nothing) == CANNOT_TELL
    assert lost.says.startswith("resolved at full scale: C1, B = 256")
    assert won.says.startswith("**the other way** at full scale: C1, B = 256")
    assert "(−30 ± 0.0" in lost.says


@pytest.mark.parametrize(("gain", "expected"), [(0.01, PARTLY), (-0.01, DISAGREES), (0, CANNOT_TELL)])
def test_gains_are_judged_by_sign_and_what_is_not_run_is_remembered(gain, expected):
    claim = next(one for one in CLAIMS if one.get("gains") == "ne-table2" and "value" not in one)
    records = trained("ne-table2-f1", lambda run: 0.9 + wobble(run) + gain * (run.alpha > 1))
    found = judged(claim, Evidence(records))
    assert (found.verdict, found.scales, found.comparisons) == (expected, ("full",), 1)
    assert found.says.startswith({PARTLY: "resolved", DISAGREES: "**the other way**"}.get(expected, "not resolved"))
    assert "at full scale: F1, α = 1.5 (" in found.says


def test_one_run_of_another_network_neither_confirms_nor_contradicts():
    claim = next(one for one in CLAIMS if one.get("gains") == "ne-table2" and "value" not in one)
    records = trained("ne-table2-f1", lambda run: 0.9 + wobble(run) + 0.01 * (run.alpha > 1))
    for loss in (-0.05, 0.05):
        pair = trained("ne-table2-c1", lambda run, loss=loss: 0.8 - loss * (run.alpha > 1))
        single = [record for record in pair if record.run.seed == 0]
        found = judged(claim, Evidence([*records, *single]))
        assert found.verdict == PARTLY
        assert "too few seeds at full scale: C1" in found.says
        assert judged(claim, Evidence(single)).verdict == CANNOT_TELL


def test_two_seeds_tell_nothing_and_a_smaller_scale_with_more_is_taken():
    claim = next(one for one in CLAIMS if one.get("gains") == "ne-table2" and "value" not in one)
    few = trained("ne-table2-f1", lambda run: 0.9 + wobble(run) + 0.01 * (run.alpha > 1), seeds=2)
    assert judged(claim, Evidence(few)).verdict == CANNOT_TELL
    assert "too few seeds at full scale" in judged(claim, Evidence(few)).says
    small = trained("ne-fig2-f1", lambda run: 0.8 + wobble(run) - 0.01 * (run.alpha > 1), "small")
    found = judged(claim, Evidence(few + small))
    assert str(found) == "disagrees at the small scale"
    both = Judged(CONFIRMED, "", ("full", "small"))
    assert str(both) == "confirmed, in part at the small scale"


def test_runs_that_are_all_alike_tell_nothing():
    claim = next(one for one in CLAIMS if one.get("gains") == "ne-table2" and "value" not in one)
    alike = trained("ne-table2-f1", lambda run: 0.5 + 0.25 * (run.alpha > 1))
    assert judged(claim, Evidence(alike)).verdict == CANNOT_TELL


def test_updates_are_compared_at_each_batch_size():
    claim = next(one for one in CLAIMS if one.get("value") == "updates" and one.get("by") == "alpha")

    def updates(run, sign):
        return round(1000 / run.batch_size + 100 * run.alpha * sign + 3 * math.sin(5 * run.seed * run.alpha))

    for sign, expected in ((1, PARTLY), (-1, DISAGREES)):
        records = trained("ne-fig2-f1", lambda run: 0.9, "small", updates=partial(updates, sign=sign))
        found = judged(claim, Evidence(records))
        assert (found.verdict, found.scales, found.comparisons) == (expected, ("small",), 3)
        assert "F1, B = 30, α = 1.5" in found.says


def test_the_difference_is_that_of_students_test():
    claim = {"grids": ["smoothout-table1-f1"], "by": "a", "other": 0.0, "value": "sharpness", "sign": -1}
    of = {0.0: [9.0, 8.0, 11.0], 0.0375: [4.0, 5.0, 5.0]}
    runs = [run for run in grid("smoothout-table1-f1", seeds=3) if run.batch_size == 256]
    records = [record(run, 0.9, measures={"sharpness": of[run.a][run.seed]}) for run in runs]
    found = judged(claim, Evidence(records))
    difference = np.subtract(of[0.0375], of[0.0])
    low, high = stats.ttest_1samp(difference, 0).confidence_interval()
    assert found.verdict == (CONFIRMED if high < 0 else CANNOT_TELL)
    assert f"F1, B = 256 (−{-difference.mean():.2g} ± {(high - low) / 2:.2g}; 3 seeds)" in found.says


def test_gaps_best_sizes_and_gains_are_made_of_runs_of_one_seed():
    rows = [(0, 1.0, 30, 0.80), (0, 1.0, 500, 0.70), (0, 2.0, 30, 0.78), (0, 2.0, 500, 0.79), (1, 1.0, 30, 0.9)]
    runs = pd.DataFrame(rows, columns=["seed", "alpha", "batch_size", "test_accuracy"])
    gap = MADE["gap"](runs)
    assert gap[["seed", "alpha"]].values.tolist() == [[0, 1.0], [0, 2.0]]
    assert gap["gap"].tolist() == pytest.approx([10, -1])
    best = MADE["log2 of the best B"](runs).sort_values(["seed", "alpha"])
    assert best["log2 of the best B"].tolist() == pytest.approx([math.log2(30), math.log2(500), math.log2(30)])
    noisy = pd.DataFrame({"seed": [0] * 4, "batch_size": [8, 8, 64, 64], "a": [0, 1] * 2})
    gain = MADE["gain"](noisy.assign(best_test_accuracy=[0.5, 0.6, 0.5, 0.4]))
    assert gain["gain"].tolist() == pytest.approx([10, -10])
    for made in MADE.values():
        assert made(noisy.assign(alpha=1.0, test_accuracy=0.5).query("batch_size == 8 and a == 0")).empty


def test_profiles_of_small_and_large_batches_are_compared_on_each_set():
    claim = next(one for one in CLAIMS if "profiles" in one and one["curve"] == "noise")

    def profile(run, rise):
        x = np.array([0, 0.02, 0.04])
        parts = [
            pd.DataFrame({"curve": "noise", "data": data, "x": x, "loss": 1 + rise * x}) for data in ("train", "test")
        ]
        return Profile(run, pd.concat(parts), {"dataset_variant": "a copy"})

    runs = grid("smoothout-fig7-cifar10", "small", seeds=3)
    for factor, expected in ((1.5, PARTLY), (0.5, DISAGREES)):
        large = max(run.batch_size for run in runs)
        profiles = [profile(run, (10 + run.seed) * (factor if run.batch_size == large else 1)) for run in runs]
        found = judged(claim, Evidence([], profiles))
        assert (found.verdict, found.comparisons) == (expected, 2)
        assert "ResNet8 on CIFAR-10, train loss" in found.says


def test_counts_and_links():
    assert counts([]) == "Of 0 claims: ."
    assert linked("compare", ROOT / "notebooks") == '<a href="compare.html">Published and ours</a>'
