"""The checks that several modules share."""

import math

import numpy as np
import pytest

from nb_lib.errors import InputError, check_alpha, check_batch_size, check_strength, known, positive, whole


def test_what_can_be_used_comes_back_as_a_plain_number() -> None:
    assert known("color", "blue", ["red", "blue"]) == "blue"
    values = [whole("steps", np.int64(3), 1), check_batch_size(np.int32(5), 5)]
    assert values == [3, 5]
    assert {type(value) for value in values} == {int}
    values = [positive("eta", np.float32(0.5)), check_alpha(1), check_strength(0)]
    assert values == [0.5, 1.0, 0.0]
    assert {type(value) for value in values} == {float}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: whole("steps", 0, 1), "steps must be a whole number, 1 or more, not 0."),
        (lambda: whole("size", 11, 1, 10), "size must be a whole number, from 1 to 10, not 11."),
        (lambda: whole("size", 2.0, 1), "size must be a whole number, 1 or more, not 2.0."),
        (lambda: whole("size", "2", 1), "size must be a whole number, 1 or more, not '2'."),
        (lambda: whole("size", True, 0), "size must be a whole number, 0 or more, not True."),
        (lambda: positive("eta", "0.1"), "eta must be a finite number greater than 0, not '0.1'."),
        (lambda: positive("eta", None), "eta must be a finite number greater than 0, not None."),
        (
            lambda: check_alpha([1.5]),
            "alpha must be a finite number of at least 1 (1 is ordinary SGD), not [1.5].",
        ),
        (
            lambda: check_strength(None),
            "the noise strength a must be a finite number of at least 0 (0 is no noise), not None.",
        ),
        (lambda: positive("eta", 0), "eta must be a finite number greater than 0, not 0."),
        (lambda: positive("eta", math.inf), "eta must be a finite number greater than 0, not inf."),
        (
            lambda: check_batch_size(2.5, 9),
            "the batch size B must be a whole number from 1 to the 9 samples, not 2.5.",
        ),
        (
            lambda: check_batch_size(10, 9),
            "the batch size B must be a whole number from 1 to the 9 samples, not 10.",
        ),
        (
            lambda: check_alpha(math.nan),
            "alpha must be a finite number of at least 1 (1 is ordinary SGD), not nan.",
        ),
        (
            lambda: check_strength(-0.1),
            "the noise strength a must be a finite number of at least 0 (0 is no noise), not -0.1.",
        ),
        (lambda: known("color", "teal", ["red"]), "unknown color 'teal': Known are red."),
    ],
)
def test_what_cannot_is_refused_in_one_sentence(call, sentence) -> None:
    with pytest.raises(InputError) as refused:
        call()
    assert str(refused.value) == sentence
    assert refused.value._render_traceback_() == [f"InputError: {sentence}"]
