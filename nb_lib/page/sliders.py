"""A control of a figure: one in HTML for the built book, and a live one for JupyterLab.

>>> alpha = Slider([1, 1.5, 3], "strength α", start=1.5)
>>> alpha.words, alpha.first
(False, 1)
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np

from nb_lib.errors import InputError


@dataclass(frozen=True)
class Slider:
    """One parameter of a figure, under the reader's hand.

    It is set to one of `values`: increasing numbers, of which a kernel also takes those between, or words to choose
    from. It starts at `start`, or at the number nearest to it, by default at the first. `InputError` if there are no
    values, or a word to start at is not among them.
    """

    values: Sequence[float] | Sequence[str]
    label: str
    start: float | str | None = None

    def __post_init__(self) -> None:
        if len(self.values) == 0:
            raise InputError(f"the slider {self.label!r} needs at least one value.")
        increasing = self.words or np.all(np.diff(np.asarray(self.values, float)) > 0)
        if not increasing:
            raise InputError(f"the slider {self.label!r} needs its numbers in increasing order.")
        if self.words and self.start not in (None, *self.values):
            raise InputError(f"the slider {self.label!r} starts at {self.start}, which is not one of {self.values}.")

    @property
    def words(self) -> bool:
        """Whether it offers words."""
        return isinstance(self.values[0], str)

    @property
    def first(self) -> int:
        """Where it starts, as an index into `values`."""
        if self.start is None:
            return 0
        if self.words:
            return list(self.values).index(self.start)
        return int(np.abs(np.asarray(self.values) - self.start).argmin())

    def widget(self) -> ipywidgets.Widget:
        """The live control: any number in the range, or one of the words."""
        look: dict[str, Any] = {"description": self.label, "style": {"description_width": "initial"}}
        if self.words:
            return ipywidgets.Dropdown(options=self.values, value=self.values[self.first], **look)
        values = np.asarray(self.values)
        low, high, start = values[[0, -1, self.first]].tolist()
        look |= {"value": start, "min": low, "max": high}
        if values.dtype.kind == "i":
            return ipywidgets.IntSlider(step=1, readout_format="d", **look)
        steps = np.diff(values) if len(values) > 1 else np.ones(1)
        quarter = steps.min() / 4
        return ipywidgets.FloatSlider(step=quarter, readout_format=".4g", **look)

    def native(self, parameter: str) -> str:
        """The control named `parameter` in HTML, for the book's explore.js."""
        label = html.escape(self.label)
        if self.words:
            options = []
            for k, word in enumerate(self.values):
                selected = " selected" if k == self.first else ""
                options.append(f'<option value="{k}"{selected}>{html.escape(str(word))}</option>')
            choices = f'<select name="{parameter}">{"".join(options)}</select>'
            return f"<label><span>{label}</span>{choices}</label>"
        texts = [f"{value:g}" for value in self.values]
        text = texts[self.first]
        return (
            f"<label><span>{label}</span>"
            f'<input type="range" name="{parameter}" min="0" max="{len(texts) - 1}" step="1" value="{self.first}"'
            f' data-texts="{" ".join(texts)}" aria-valuetext="{label} = {text}">'
            f'<output aria-live="off">{text}</output></label>'
        )
