"""Tables of the book that are made of what tests saw: a test asserts its cell, or with --write-tables writes it."""

import csv
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "book" / "data"
ROWS = {"loops": "loop", "zoo": "network"}  # what a row of each table is


class Table:
    """A table of the book by rows and columns; cells that tests gave are in `seen`."""

    def __init__(self, name: str) -> None:
        self.path = FOLDER / f"{name}.csv"
        self.seen: dict[str, dict[str, str]] = {}
        self.committed: dict[str, dict[str, str]] = {}
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.committed = {next(iter(row.values())): row for row in csv.DictReader(file)}

    def give(self, row: str, column: str, text: str) -> None:
        """Take in a cell; what two tests say of one must agree."""
        cells = self.seen.setdefault(row, {})
        assert cells.setdefault(column, text) == text, f"two tests disagree about {row}, {column}"

    def write(self) -> None:
        """Replace the file by the cells seen, empty where there are none."""
        columns = list(dict.fromkeys(column for cells in self.seen.values() for column in cells))
        columns.sort(key="version".__eq__)  # that is the last
        first = ROWS[self.path.stem]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [first, *columns], restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows({first: row, **cells} for row, cells in self.seen.items())
