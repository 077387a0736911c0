"""The text of `record.py` and of every module of ours that it imports, in one file.

The sources of the installed package are read, and none of them is imported. Each import of ours
becomes the text of the module that it names. The result is Python 3.8, and needs the standard
library and torch alone.
"""

from __future__ import annotations

import ast
from importlib import resources

from prunescope.taxonomy.errors import PrunescopeError

_ENTRY = "prunescope.tracer.recorder.record"
_VERSION = 'VERSION = "0+source"'


def assemble(version: str) -> str:
    """Return the text of the recorder.

    Args:
        version: The version of prunescope, which the recorder's runs name.

    Returns:
        The text of one Python file.

    Raises:
        PrunescopeError: The installed package is damaged: its recorder has no place for the
            version.
    """
    entry = _source(_ENTRY)
    docstring = ast.get_docstring(ast.parse(entry), clean=False)
    texts = [
        f"# {name}\n{_body(_source(name))}" if name != _ENTRY else _body(entry)
        for name in _list_needed(_ENTRY, [])
    ]
    if _VERSION not in texts[-1]:
        raise PrunescopeError("the recorder names no version", hint="install prunescope again")
    texts[-1] = texts[-1].replace(_VERSION, f"VERSION = {version!r}")
    head = f'"""{docstring}"""\n\nfrom __future__ import annotations\n\n'
    return head + "\n\n".join(text.strip("\n") + "\n" for text in texts)


def _list_needed(name: str, known: list[str]) -> list[str]:
    """List the modules of ours that a module needs, each after those that it needs itself."""
    for node in ast.parse(_source(name)).body:
        if (needed := _our_module(node)) is not None and needed not in known:
            _list_needed(needed, known)
    known.append(name)
    return known


def _our_module(node: ast.stmt) -> str | None:
    """Return the module of ours that a statement imports from; None if it imports none."""
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    return module if module.startswith("prunescope.") else None


def _body(source: str) -> str:
    """Return a module without its docstring, its future import and its imports of ours."""
    lines = source.splitlines(keepends=True)
    tree = ast.parse(source).body
    for at, node in enumerate(tree):
        is_docstring = at == 0 and isinstance(node, ast.Expr)
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if is_docstring or is_future or _our_module(node) is not None:
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "".join(lines)


def _source(name: str) -> str:
    """Return the text of a module of the installed package."""
    package, _, module = name.rpartition(".")
    return resources.files(package).joinpath(f"{module}.py").read_text(encoding="utf-8")
