"""What a paper cites: the tool, the paper of the taxonomy, and the published methods that were run.

In: the prunings of runs. Out: citations, as BibTeX, and CITATION.cff of the repository and of
bundles. `citations.json` holds tool and paper; methods.json what is known of methods, which is no
author's name: their entries say where those are printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from prunescope.taxonomy.family import read_selection
from prunescope.taxonomy.methods import PublishedMethod, methods, slug
from prunescope.taxonomy.runs.run_blocks import Pruning

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# Signs that BibTeX or LaTeX would obey, in a value.
_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


class Citation(msgspec.Struct, kw_only=True):
    """One thing to cite. An unknown field is None or empty, and its entry leaves it out."""

    key: str
    kind: str  # "software", "paper" or "method"
    title: str
    authors: list[str] = []
    year: int | None = None
    month: int | None = None
    version: str | None = None
    arxiv: str | None = None
    primary_class: str | None = None
    url: str | None = None
    note: str | None = None

    def bibtex(self) -> str:
        """Return the entry."""
        kind = "software" if self.kind == "software" else "misc"
        arxiv = {"eprint": self.arxiv, "archivePrefix": "arXiv", "primaryClass": self.primary_class}
        fields = {
            # In braces of its own, the name of a group is not taken for first and last names.
            "author": " and ".join(map(_author, self.authors)),
            "title": f"{{{_escaped(self.title)}}}",
            "year": self.year,
            "month": _MONTHS[self.month - 1] if self.month else None,
            "version": self.version,
            **(arxiv if self.arxiv else {}),
            "url": self.url,
            "note": _escaped(self.note) if self.note else None,
        }
        lines = [
            f"  {name:<13} = {value if name == 'month' else f'{{{value}}}'},"
            for name, value in fields.items()
            if value
        ]
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])


def citations(version: str, prunings: Iterable[Pruning] = ()) -> list[Citation]:
    """Return what a paper about these prunings cites: tool, taxonomy, methods that were run.

    Args:
        version: The version of the tool.
        prunings: The prunings of its runs.
    """
    run = dict.fromkeys(method for pruning in prunings for method in methods_run(pruning))
    return [tool_citation(version), taxonomy_citation(), *map(method_citation, run)]


def tool_citation(version: str) -> Citation:
    """Return the citation of this tool."""
    known = _known()["prunescope"]
    fields = {name: known[name] for name in ("title", "authors", "url", "year")}
    return Citation(key="prunescope", kind="software", version=version, **fields)


def taxonomy_citation() -> Citation:
    """Return the citation of the taxonomy's paper."""
    known = _known()["taxonomy"]
    shared = [name for name in Citation.__struct_fields__ if name in known]
    return Citation(key="hu2026beyondflops", kind="paper", **{name: known[name] for name in shared})


def method_citation(method: PublishedMethod) -> Citation:
    """Return the citation of a published method, whose authors its address names."""
    url = f"https://arxiv.org/abs/{method.arxiv}" if method.arxiv else None
    url = url or (method.source["url"] if method.source else None)
    return Citation(
        key=re.sub(r"[^a-z0-9]", "", slug(method.name)),
        kind="method",
        title=method.name,
        year=method.year,
        arxiv=method.arxiv,
        url=url,
        note="authors and title: as printed there" if url else "not looked up",
    )


def methods_run(pruning: Pruning) -> Iterator[PublishedMethod]:
    """Yield the published methods that a pruning was a run of.

    It has their family and options, and selected as their papers do. A random selection, or a
    function of the user's own, is no published method.
    """
    for part in pruning.parts or [pruning]:
        selection = part.selection and read_selection(part.selection)
        knobs = {name: str(value) for name, value in (part.knobs or {}).items()}
        for method in methods():
            is_alike = method.family == part.method and method.runnable.items() <= knobs.items()
            if is_alike and method.select is not None and method.select == selection:
                yield method


def citation_cff(version: str, message: str) -> str:
    """Return a CITATION.cff of this tool, which references the paper of the taxonomy.

    Args:
        version: The version of the tool.
        message: What it asks for.
    """
    tool, paper = _known()["prunescope"], taxonomy_citation()
    lines = [
        "cff-version: 1.2.0",
        f"message: {message}",
        f"title: {tool['title']}",
        f"abstract: {tool['about']}",
        "type: software",
        f"version: {version}",
        f"license: {tool['license']}",
        f"repository-code: {tool['url']}",
        "authors:",
        *(f"  - name: {name}" for name in tool["authors"]),
        "references:",
        "  - type: article",
        f'    title: "{paper.title}"',
        "    authors:",
    ]
    for name in paper.authors:
        given, _, family = name.rpartition(" ")
        lines += [f"      - family-names: {family}", f"        given-names: {given}"]
    lines += [
        f"    year: {paper.year}",
        f"    url: {paper.url}",
        "    identifiers:",
        "      - type: other",
        f'        value: "arXiv:{paper.arxiv}"',
    ]
    return "\n".join([*lines, ""])


@cache
def _known() -> dict[str, dict[str, Any]]:
    text = resources.files("prunescope.taxonomy").joinpath("citations.json").read_text("utf-8")
    known: dict[str, dict[str, Any]] = json.loads(text)
    return known


def _author(name: str) -> str:
    given, _, family = name.rpartition(" ")
    is_group = name.startswith("The ")
    return f"{{{_escaped(name)}}}" if is_group else f"{_escaped(family)}, {_escaped(given)}"


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(sign, sign) for sign in text)
