"""Strings of a trace made inert.

In: any string (a kernel's name is an attacker's string). Out: text that shows every character and
does nothing in a terminal, Markdown, LaTeX or a spreadsheet. HTML is escaped by jinja2's
autoescape; it needs `clean` only.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable

from prunescope.taxonomy.lazy_pattern import lazy_pattern

# Control and format characters, lone surrogates, private use and line or paragraph separators:
# terminals obey them, bidirectional ones reorder the text around them.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks that have no shape (Default_Ignorable_Code_Point of Unicode), though Python
# takes them for printable: two names that differ in them alone look the same.
_SHAPELESS = lazy_pattern(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# Marks above one letter from which they run into the lines above and below.
_STACKED = lazy_pattern(
    "([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{4})"
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)

_MARKDOWN = {
    "&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "\\`", "$": "&#36;",
    "@": "&#64;", "\\": "\\\\", "*": "\\*", "[": "\\[", "]": "\\]", "~": "\\~",
    "#": "\\#",
}  # fmt: skip
# Between two letters or digits an underscore is never emphasis.
_EMPHASIS = lazy_pattern(r"(?<![^\W_])_|_(?![^\W_])")
_LINKS = lazy_pattern(r"(?i)(?<=[a-z])://|(?<=www)\.")
_LIST_MARK = lazy_pattern(r"^(\s*)(?:([-+])|(\d+)([.)]))(?=\s|$)")
# Inside a code span nothing is parsed; names with these characters are written as escaped text.
_CODE = lazy_pattern(r"[\w .,:()/+=%{}^\-]+")

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"{\char34}",
    "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "×": r"\ensuremath{\times}", "·": r"\ensuremath{\cdot}", "÷": r"\ensuremath{\div}",
    "µ": r"\ensuremath{\mu}", "Σ": r"\ensuremath{\Sigma}", "≥": r"\ensuremath{\geq}",
    "≤": r"\ensuremath{\leq}", "≈": r"\ensuremath{\approx}", "→": r"\ensuremath{\to}",
    "−": r"\ensuremath{-}", "±": r"\ensuremath{\pm}", "–": r"\textendash{}", "…": r"\dots{}",
    "≠": r"\ensuremath{\neq}", "†": r"\dag{}", "‡": r"\ddag{}", "ᵀ": r"\ensuremath{^{T}}",
}  # fmt: skip
# Typewriter type holds these itself; the commands take them from a font that it has no shape of.
_TYPEWRITER = {
    r"\textless{}": r"{\char60}", r"\textgreater{}": r"{\char62}", r"\textbar{}": r"{\char124}",
    r"\textbackslash{}": r"{\def\textbackslash{\char92}\textbackslash}", r"\{": r"{\char123}",
    r"\}": r"{\char125}",
}  # fmt: skip
_DASHES = lazy_pattern(r"-(?=-)")
_UNIT = lazy_pattern(
    r"(?<=\d) (?=(?:\\%|[nm]?s|[kMGT]?B|[kMGT]?FLOP/s|[kMGT]?B/s)(?![A-Za-z/]))"
)  # the space in front of one
_LONG_WORD, _JOINT = lazy_pattern(r"\S{25,}"), lazy_pattern(r"(\\_|[./\-])(?=\w)")
_COUNT = lazy_pattern(r"\bn = (?=\d)")

_FORMULA = lazy_pattern(r"^\s*[=+\-@＝＋－＠\t\r\n]")
_ASCII = str.maketrans({
    "×": "x", "·": "-", "÷": "/", "µ": "u", "≥": ">=", "≤": "<=", "≈": "~", "→": "->", "−": "-",
    "±": "+-", "–": "-", "…": "...", "Σ": "sum ", "≠": "!=", "↳": "`-", "█": "#", "░": "-",
    "◆": "|", "│": "|", "─": "-",
})  # fmt: skip


def clean(text: object) -> str:
    r"""Spell out every invisible or control character of a text (ESC becomes `\x1b`).

    Of marks that are stacked on one letter the first four stay.
    """
    plain = str(text)
    if not plain.isascii():
        plain = _SHAPELESS.sub(lambda shapeless: _spelled(shapeless[0]), plain)
        plain = _STACKED.sub(r"\1…", plain)
    if plain.isprintable():  # none of _HIDDEN is
        return plain
    return "".join(_spelled(c) if unicodedata.category(c) in _HIDDEN else c for c in plain)


def _spelled(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def markdown(text: object) -> str:
    """Return text for a Markdown paragraph or cell: no HTML, emphasis, link, mention or maths."""
    escaped = "".join(_MARKDOWN.get(c, c) for c in clean(text))
    escaped = _EMPHASIS.sub(r"\_", escaped)
    escaped = _LINKS.sub(lambda m: f"&#{ord(m[0][0])};{m[0][1:]}", escaped)
    return _LIST_MARK.sub(_unlisted, escaped)


def _unlisted(mark: re.Match[str]) -> str:
    space, bullet, number, after = mark.groups()
    return f"{space}\\{bullet}" if bullet else f"{space}{number}\\{after}"


def markdown_code(text: object) -> str:
    """Return a name as a code span where that is safe, else as escaped text."""
    plain = clean(text)
    if _CODE.fullmatch(plain) and "://" not in plain and plain.strip():
        return f"`{plain}`"
    return markdown(plain)


def latex(text: object) -> str:
    """Return text for LaTeX (pdflatex, any encoding).

    A character that LaTeX may not know is spelled out, and no line ends between a number and its
    unit.
    """
    escaped = _DASHES.sub("-{}", "".join(_latex_char(c) for c in clean(text)))
    return _COUNT.sub("n~=~", _UNIT.sub("~", escaped))


def latex_caption(text: object) -> str:
    """Return a caption for LaTeX, whose lines may end within a long name: that of a file."""
    return _LONG_WORD.sub(lambda word: _JOINT.sub(r"\1\\allowbreak{}", word[0]), latex(text))


def _latex_char(char: str) -> str:
    if char in _LATEX:
        return _LATEX[char]
    return char if char.isascii() else latex(_spelled(char))


def latex_code(text: object) -> str:
    """Return a name in typewriter type that may break after anything but a letter or digit."""
    parts = re.split(r"(?<=[^A-Za-z0-9])(?=.)", clean(text))
    broken = r"\allowbreak{}".join(latex(part) for part in parts)
    for name, glyph in _TYPEWRITER.items():
        broken = broken.replace(name, glyph)
    return rf"\texttt{{{broken}}}"


def cell(text: str) -> str:
    """Return text for a spreadsheet cell.

    A text that would start a formula gets an apostrophe in front.
    """
    plain = clean(text)
    return f"'{plain}" if _FORMULA.match(text) or _FORMULA.match(plain) else plain


def csv_text(head: Iterable[str], rows: Iterable[Iterable[object]], *, quoted: bool = True) -> str:
    """Return the CSV of a table whose strings do nothing in a spreadsheet.

    None is an empty cell. With `quoted`, every string is quoted, so that no other separator of a
    spreadsheet splits one into cells.
    """
    text = io.StringIO()
    writer = csv.writer(
        text, quoting=csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL, lineterminator="\n"
    )
    writer.writerow(map(cell, head))
    writer.writerows(
        [cell(v) if isinstance(v, str) else "" if v is None else v for v in row] for row in rows
    )
    return text.getvalue()


def ascii_only(text: str) -> str:
    """Return the text for a terminal without Unicode: our signs as ASCII, the rest spelled out."""
    plain = text.translate(_ASCII)
    return plain if plain.isascii() else "".join(c if c.isascii() else _spelled(c) for c in plain)
