"""One symbol, one meaning: every letter in a chapter's formulas stands on the notation page, and there once."""

import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "book/notation.md"
CHAPTERS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book").glob("*.md")])

#: What is no symbol of ours: operators, relations, numbers, and what only places or sizes things.
OPERATORS = r"""
    \nabla \partial \sum \int \sqrt \frac \tfrac \max \min \exp \log \ln \sin \cos \infty \pi e
    \cdot \pm \sim \approx \propto \le \ge \ll \gg \to \leftarrow \dots \quad \qquad \bigl \bigr \Bigl \Bigr
    \lVert \rVert \lvert \rvert \underbrace
"""
COMMON = OPERATORS.split()
#: Below the line are what numbers a thing, and what names it: s and f a sharp and a flat minimum, f also a filter.
BELOW = ["i", "j", "k", "f", "s", "0", "1", "2", r"\mu", r"\theta", r"\mathcal B", ""]

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.DOTALL)
WORDS = re.compile(
    r"\\(?:text|operatorname|begin|end)\s*\{[^{}]*\}|\\mathrm\s*(?:\{[^{}]*\}|\w+)|\\mathbb\s*E|\^?\{?\\mathsf\s*\{?T\}{0,2}"
)
SUBSCRIPT = re.compile(r"_(?:\{([^{}]*)\}|(\\mathcal\s*\w|\\[a-zA-Z]+|[^\\{]))")
SYMBOL = re.compile(r"L\^(?:\{\*\*\}|\*)|\\mathcal\s*[A-Z]|\\bar L|\\Delta L|\\[a-zA-Z]+|[a-zA-Z]")

#: How symbols were used before they had one meaning each.
OLD = {
    "s for a standard deviation": r"standard deviation \$s\b|\bs \^? *=? *a ?/|\bs\^2 ?/ ?2|\bs\^\*",
    "s for a tilt": r"\bs_\\mu|\\nabla L - s_",
    "s for the noise of a minibatch": r"\\theta - s\b|\\alpha s\b",
    "V for the variance of w": r"\bV_t\b|\bV = \\operatorname\{Var\}\\xi|\bhV\b",
    "λ for a factor": r"\\lambda(?:\^|,| =|\$)|/\\lambda\b",
    "N for copies": r"\$N\$ (?:fixed )?copies|\bsqrt\{3N\}",
    "m for an order": r"\\alpha\^m|\(1-\\alpha\)\^m",
    "σ for a width": r"/\(2\\sigma\^2\)",
    "Δ for a difference of losses": r"\\Delta\b(?! L)",
    "h or ε for the half-width of a box": r"half-widths? \$(?:h|\\varepsilon)",
    "n for a direction": r"\bn_f *(?:/|\\l)|\\lVert *n_f",
}


def prose(path):
    """The Markdown of a chapter without code."""
    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
    else:
        cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = re.sub(r"```(?:\{code|\w).*?```", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`\n]+`", "", text)


def formulas(text):
    """All formulas of a text without the words in them."""
    return [WORDS.sub(" ", display or inline) for display, inline in FORMULA.findall(text)]


def symbols(formula):
    r"""The symbols of a formula without what stands below them, such as ``w``, ``\alpha``, ``\bar L`` and ``L^*``."""
    found = SYMBOL.findall(SUBSCRIPT.sub(" ", formula))
    return {symbol for symbol in found if symbol not in COMMON and symbol != r"\bar"}


def below(formula):
    """All subscripts of a formula, but for the limits of an integral."""
    found = set()
    for braced, single in SUBSCRIPT.findall(formula):
        name = (braced or single).strip().removesuffix("'")
        if "[" not in name:
            found |= {*name} if re.fullmatch("[ijk]+", name) else {name}
    return found


def defined(text):
    """The symbols that each row of the page defines, and the chapters that it is for (none: all)."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| $")]
    for first, _, last in rows:
        names = set()
        for formula in formulas(first):
            names |= symbols(re.sub(r"\([^()]*\)", "", formula))  # without its arguments
        yield names, re.findall(r"\]\((?:\.\./notebooks/)?(\w+)\)", last)


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.name)
def chapter(request):
    return request.param


def test_every_symbol_is_on_the_notation_page(chapter):
    known = set()
    for names, chapters in defined(PAGE.read_text(encoding="utf-8")):
        if not chapters or chapter.stem in chapters or chapter == PAGE:
            known |= names
    unknown = {}
    for formula in formulas(prose(chapter)):
        if wrong := (symbols(formula) - known) | (below(formula) - set(BELOW)):
            unknown[" ".join(formula.split())] = wrong
    assert unknown == {}


def test_no_symbol_stands_twice_on_the_page():
    counts = Counter(name for names, _ in defined(PAGE.read_text(encoding="utf-8")) for name in names)
    assert len(counts) > 40
    assert [name for name, count in counts.items() if count > 1] == []


def test_old_meanings_do_not_come_back(chapter):
    text = prose(chapter)
    found = {meaning: match[0] for meaning, pattern in OLD.items() if (match := re.search(pattern, text))}
    assert found == {}


def test_symbols_are_found():
    text = r"$L_{\mathcal B}(w) \le c(\alpha)\operatorname{tr} H_{ij}$; $$\bar L = a^2\text{ of } x_\mathrm{max}$$"
    first, second = formulas(text)
    assert symbols(first) == {"L", "w", "c", r"\alpha", "H"}
    assert below(first) == {r"\mathcal B", "i", "j"}
    assert symbols(second) == {r"\bar L", "a", "x"}


@pytest.mark.parametrize(
    "text", [r"noise of standard deviation $s$", r"$(\lambda, 1/\lambda)$", r"$e^{-w^2/(2\sigma^2)}$", r"$V_t$"]
)
def test_old_meanings_are_found(text):
    assert any(re.search(pattern, text) for pattern in OLD.values())
