"""What several test files ask."""

from collections.abc import Callable

import pytest

from nb_lib.errors import InputError

#: What a machine that only trains need not have.
NOT_FOR_TRAINING = ("plotly", "IPython", "ipywidgets", "papermill", "jupyter_core", "distributed", "jinja2")


def refused(call: Callable[[], object]) -> str:
    """Return the one sentence with which the call refuses its input."""
    with pytest.raises(InputError) as error:
        call()
    sentence = str(error.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence
