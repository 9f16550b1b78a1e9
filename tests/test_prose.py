"""No chapter types a result: see `prose`."""

import nbformat
import prose
import pytest


@pytest.fixture(params=prose.NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def test_no_verdict_is_typed(notebook):
    found = {cell.id: wrong for cell in notebook.cells if (wrong := prose.verdicts(cell))}
    assert not found, "\n".join(f"{name}: {text}" for name, texts in found.items() for text in texts)


def test_no_number_is_typed_that_no_cell_and_no_paper_has(notebook):
    known = prose.known_numbers(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    found = {cell.id: wrong for cell in cells if (wrong := prose.numbers(cell, known))}
    assert not found, "\n".join(f"{name}: {text}" for name, texts in found.items() for text in texts)


def test_what_is_called_asserted_is(notebook):
    assert prose.unasserted(notebook) == []


def text(source, tags=()):
    return {"id": "x", "cell_type": "markdown", "source": source, "metadata": {"tags": list(tags)}}


TYPED = [  # sentences that a build of this book has contradicted
    "The differences: the four seeds resolve only that of NE.",
    "NE is the flattest at draw 0 and the steepest of the three at draw 3.",
    "SGD at draw 4 looks flatter than NE at draw 3.",
    "So the draw matters more than the network.",
    "Plain SGD rises fastest in almost every picture.",
    "At every batch size more noise costs updates.",
    "The test loss falls as the noise grows.",
    "At this strength most walkers have left.",
    "In about half as many updates.",
    "All points lie within the noise.",
    "The tails are much heavier.",
]


@pytest.mark.parametrize("sentence", TYPED)
def test_typed_verdicts_are_found(sentence):
    assert prose.verdicts(text(sentence))
    figure = {"cell_type": "code", "source": f"show(figure, 1, caption='A line.', alt={sentence!r})", "metadata": {}}
    assert prose.verdicts(figure)


@pytest.mark.parametrize("sentence", ["How much larger is it than that of SGD?", "Move the slider to its end."])
def test_questions_and_instructions_are_none(sentence):
    assert not prose.verdicts(text(sentence))


def test_theory_may_say_more():
    assert not prose.verdicts(text("A wider box smooths more than a narrow one.", ["theory"]))


def test_typed_numbers_are_found():
    assert prose.numbers(text("It gains 0.87 points at $a = 0.1$, in 3 of 4 draws."), {"0.1"}) != []
    assert prose.numbers(text("At 0.1 it is eq. 12 of 2018, with `a = 0.7`."), {"0.1"}) == []
