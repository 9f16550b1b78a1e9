"""Find typed results in the prose of chapters: words and numbers that a run decides, and that no run has made.

A cell of prose may say what follows from theory, what a paper prints, or what a cell beside it asserts; then it has the
tag "theory", "published" or "asserted".  In all others a verdict is a mistake, and so it is in captions and in the
words for those who do not see a figure.  A number in prose is one of the code, of the papers, or simple.
"""

import ast
import csv
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TAGS = {"theory", "published", "asserted"}

_MORE = "more|less|fewer|larger|smaller|higher|lower|wider|narrower|faster|slower|flatter|sharper|steeper|better|worse"
_MORE += "|earlier|later|lighter|heavier|rougher|closer|stronger|weaker|longer|shorter|deeper"
_MOST = "flattest|sharpest|steepest|fastest|slowest|widest|narrowest|highest|lowest|largest|smallest|strongest"
_EACH = "draws?|seeds?|pictures?|runs?|walkers?|networks?|points?|methods?|batch(?:es| sizes?)?|settings?|lines?"
_MOVES = "falls?|rises?|grows?|shrinks?|drops?|declines?|decreases?|increases?"
VERDICT = re.compile(
    rf"\b(?:(?:{_MORE}) than"
    rf"|(?:{_MOST})"
    rf"|(?:much|clearly|several times|far|hardly|slightly|a little|somewhat) (?:{_MORE})"
    rf"|(?:\w+ times|half|twice|a third|two thirds) (?:as \w+|(?:{_MORE}))"
    rf"|(?:hundreds|thousands|dozens) of times|several times"
    rf"|(?:all|most|nearly all|almost all|every|almost every|no|hardly any|none of the) (?:{_EACH})"
    rf"|clear(?:ly)?|resolves?|resolved|within the (?:noise|interval)|no worse|nobody|plain to see"
    rf"|(?:{_MOVES}) (?:with|as|along|first|last|fast\w*|steep\w*)"
    rf"|(?:holds|agrees?|fails|disagrees?) here)\b",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?<![\w.^_])\d[\d,]*(?:\.\d+)?(?:\s?%)?")
_NOT_PROSE = [
    r"```.*?```",
    r"`[^`]*`",  # code
    r"\$\$.*?\$\$",
    r"\$[^$]*\$",  # formulas
    r"\{[\w:]+\}`[^`]*`",
    r"\]\([^)]*\)",  # where links lead
    r"<[^>]*>",
    r"(?:eqs?|Eqs?|equations?|Figs?|figures?|Figure|Tables?|Algorithm|section|Section|chapters?|Chapter|Exercise)\.? "
    r"(?:[\dIVX]+[a-z]?(?:\.\d+)*(?:, | and | to | or |–)?)+",
    r"\b(?:F1|C1|C2|C3|ResNet\d+|CIFAR-\d+|AVX\d*)\b",
    r"(?i)\b(?:largest|smallest) (?:eigenvalue|batch)\b|\bhighest (?:loss|value)\b|\bsharpest direction\b",  # names
    r"\bfrom the lowest to the\s+highest\b",  # of a band
]


def prose(source: str) -> str:
    """The text of a cell without code, formulas, addresses, and numbers of equations and figures."""
    for pattern in _NOT_PROSE:
        source = re.sub(pattern, " ", source, flags=re.DOTALL)
    return source


def sentences(text: str) -> list[str]:
    """The sentences of a text, each on one line."""
    return [" ".join(each.split()) for each in re.split(r"(?<=[.!?:])\s+|\n\s*\n|\n\s*[-*:] ", text)]


def said_of_figures(source: str) -> Iterator[str]:
    """Captions and words of the figures in a cell of code, as far as they are typed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in ("alt", "caption"):
            yield from (text for text in _texts(node.value))
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") in ("alt", "caption") for t in node.targets):
            yield from (text for text in _texts(node.value))


def _texts(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def verdicts(cell: dict) -> list[str]:
    """Sentences of a cell that give a verdict which nothing has computed."""
    if cell["cell_type"] == "code":
        texts = said_of_figures(cell["source"])
    elif TAGS & set(cell["metadata"].get("tags", [])):
        return []
    else:
        texts = [prose(cell["source"])]
    found = (sentence for text in texts for sentence in sentences(text))
    return [each for each in found if VERDICT.search(each) and not each.endswith("?")]


def numbers(cell: dict, known: set[str]) -> list[str]:
    """Numbers in the prose of a cell that are neither simple nor known."""
    text = prose(cell["source"])
    found = []
    for match in NUMBER.finditer(text):
        digits = match[0].replace(",", "").rstrip(" %")
        simple = digits.isdigit() and (int(digits) <= 12 or 1900 < int(digits) < 2100) and "%" not in match[0]
        if not simple and digits not in known:
            found.append(f"{match[0]} in: …{text[max(0, match.start() - 40) : match.end() + 30]}…")
    return found


def known_numbers(notebook: dict) -> set[str]:
    """Numbers of a notebook's code, and those that the papers print."""
    code = " ".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    known = set(re.findall(r"\d+(?:\.\d+)?", code.replace("_", "")))
    with (ROOT / "nb_lib/published.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            known |= {f"{float(text):g}" for text in row.values() if text and re.fullmatch(r"[\d.]+", text)}
    return known | {"95"}  # percent, of every interval


def unasserted(notebook: dict) -> list[str]:
    """Cells with the tag "asserted" that have no assertion in the code between them and the next prose, or before."""
    cells = notebook["cells"]
    wrong = []
    for k, cell in enumerate(cells):
        if "asserted" in cell["metadata"].get("tags", []):
            near = " ".join(each["source"] for each in cells[max(0, k - 4) : k + 5] if each["cell_type"] == "code")
            if "assert " not in near:
                wrong.append(cell["id"])
    return wrong
