"""`record.py` with the text of every module of ours that it imports, in one file.

In: the sources of the installed package; none of them is imported. Out: Python 3.8, which needs the
standard library and torch alone. Each import of ours becomes the text of the module that it names.
"""

from __future__ import annotations

import ast
from importlib import resources

from prunescope.taxonomy.errors import PrunescopeError

_ENTRY = "prunescope.tracer.recorder.record"
_VERSION = 'VERSION = "0+source"'


def assembled(version: str) -> str:
    """The text of the recorder. `version`: that of prunescope, which its runs name."""
    entry = _source(_ENTRY)
    docstring = ast.get_docstring(ast.parse(entry), clean=False)
    texts = [
        f"# {name}\n{_body(_source(name))}" if name != _ENTRY else _body(entry)
        for name in _in_order(_ENTRY, [])
    ]
    if _VERSION not in texts[-1]:
        raise PrunescopeError("the recorder names no version", hint="install prunescope again")
    texts[-1] = texts[-1].replace(_VERSION, f"VERSION = {version!r}")
    head = f'"""{docstring}"""\n\nfrom __future__ import annotations\n\n'
    return head + "\n\n".join(text.strip("\n") + "\n" for text in texts)


def _in_order(name: str, known: list[str]) -> list[str]:
    """The modules of ours that a module needs, itself last."""
    for node in ast.parse(_source(name)).body:
        if (needed := _ours(node)) is not None and needed not in known:
            _in_order(needed, known)
    known.append(name)
    return known


def _ours(node: ast.stmt) -> str | None:
    """The module of ours that a statement imports from."""
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    return module if module.startswith("prunescope.") else None


def _body(source: str) -> str:
    """A module without its docstring, its future import and its imports of ours."""
    lines = source.splitlines(keepends=True)
    tree = ast.parse(source).body
    for at, node in enumerate(tree):
        is_docstring = at == 0 and isinstance(node, ast.Expr)
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if is_docstring or is_future or _ours(node) is not None:
            lines[node.lineno - 1 : node.end_lineno] = [""] * (
                (node.end_lineno or node.lineno) - node.lineno + 1
            )
    return "".join(lines)


def _source(name: str) -> str:
    package, _, module = name.rpartition(".")
    return resources.files(package).joinpath(f"{module}.py").read_text(encoding="utf-8")
