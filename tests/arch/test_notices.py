"""Every kind of notice that code makes has words in analysis/wording/, and no words are spare."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from prunescope.analysis.schema import report
from prunescope.analysis.schema.notice import note
from prunescope.analysis.wording.sentence import THEMES, WORDINGS, sentence
from tests.arch.test_imports import ROOT, nodes

SOURCES = sorted((ROOT / "analysis").rglob("*.py"))
MAKERS = {"note", "warning", "caveat", "_reason"}
ADDED = {"side", "file"}  # what `caveat` and `Notice.about` add


def made(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The kinds of the notices that a file makes, each with the call that makes it.

    A kind that is no literal is one of those of its file: a constant or a table of them.
    """
    texts = [n.value for n in nodes(path) if isinstance(n, ast.Constant)]
    texts += [getattr(report, n.id, None) for n in nodes(path) if isinstance(n, ast.Name)]
    for node in nodes(path):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        if node.func.id in MAKERS:
            literals = [n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
            kinds = literals or [
                text for text in texts if isinstance(text, str) and text in WORDINGS
            ]
            yield from ((kind, node) for kind in kinds if isinstance(kind, str))


MADE = [(path, kind, call) for path in SOURCES for kind, call in made(path)]


def test_every_kind_has_words_and_all_words_are_used() -> None:
    assert {kind for _, kind, _ in MADE} == set(WORDINGS)
    assert len(WORDINGS) == sum(len(theme.WORDS) for theme in THEMES), "a kind in two themes"


def test_a_notice_has_the_numbers_that_its_sentence_states() -> None:
    lacking = [
        f"{path.relative_to(ROOT)}:{call.lineno} {kind}: {names}"
        for path, kind, call in MADE
        if isinstance(call.args[0], ast.Constant) and all(keyword.arg for keyword in call.keywords)
        if (names := stated(kind) - {keyword.arg for keyword in call.keywords} - ADDED)
    ]
    assert lacking == []


def stated(kind: str) -> set[str | None]:
    """The names of the numbers in the words of a kind."""
    wording = WORDINGS[kind]
    if isinstance(wording, str):
        return {name for _, name, _, _ in Formatter().parse(wording) if name}
    return {*inspect.signature(wording).parameters}


def test_a_kind_without_words_is_an_error() -> None:
    with pytest.raises(KeyError):
        sentence(note("of-no-theme"))
