"""Tables of a page: a frame as HTML that a phone can show, and as text elsewhere."""

import html
import re
from collections.abc import Mapping

import pandas as pd
from IPython.display import display

_WIDE = 5  # columns; a table with more is shown row by row where it has too little room


def show_table(frame: pd.DataFrame, caption: str = "", *, formats: Mapping[str, str] | None = None) -> None:
    """Display a frame with its named index as columns; a column's format is its own or that of ``""``, "{:.4g}".

    Where a page is too narrow for a table of many columns, each of its rows becomes a block of lines.
    """
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    words = _formatted(frame, {"": "{:.4g}", **(formats or {})})
    display({"text/html": _page(words, caption), "text/plain": _plain(words, caption)}, raw=True)


def _formatted(frame: pd.DataFrame, formats: Mapping[str, str]) -> pd.DataFrame:
    """All cells as text; what is not known is left empty."""
    columns = {}
    for name in frame.columns:
        each = formats.get(name, formats[""])
        columns[name] = [_cell(value, each) for value in frame[name].tolist()]
    return pd.DataFrame(columns)


def _cell(value: object, each: str) -> str:
    if value is None or value != value:  # as NaN alone is not
        return ""
    text = each.format(value) if isinstance(value, float) else str(value)
    return re.sub(r"(?<![\w.])-(?=\d)|(?<=\de)-", "−", text)  # of numbers, in exponents too


def _page(words: pd.DataFrame, caption: str) -> str:
    """HTML in which every cell also has the name of its column, which is seen where the table is a list of blocks."""
    names = [html.escape(str(name)) for name in words.columns]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = []
    for row in words.itertuples(index=False):
        cells = [_filled(name, cell) for name, cell in zip(names, row, strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    kind = "nb-table nb-wide" if len(names) > _WIDE else "nb-table"
    body = "".join(rows)
    return f'<div class="{kind}"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _filled(name: str, cell: str) -> str:
    lines = html.escape(cell).replace("\n", "<br>")
    return f'<td><span class="nb-name">{name} </span>{lines}</td>' if cell else "<td></td>"


def _plain(words: pd.DataFrame, caption: str) -> str:
    table = words.to_string(index=False)
    return f"{caption}\n{table}" if caption else table
