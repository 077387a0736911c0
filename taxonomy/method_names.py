"""Values of `--method`: families with their sparsities, a function of the user's, a plan's file.

In: the value as typed. Out: which of the three it is, the families in it, or a folder name.
"""

from __future__ import annotations

import re
from pathlib import Path

from prunescope.taxonomy.arguments import number
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.words import MOST_NAME


def is_function(method: str) -> bool:
    """Return whether `--method` names `package.module:function`, not families."""
    from prunescope.taxonomy.families import families  # here: `--help` need not load the theory

    name, colon, sparsity = method.partition(":")
    plain = "+" not in method and name not in {f.id for f in families()}
    return plain and bool(colon) and number(sparsity) is None


def is_plan(method: str) -> bool:
    """Return whether `--method` names a plan that `allocate` wrote."""
    return method.lower().endswith(".json")


def method_parts(method: str) -> list[tuple[str, str | None]]:
    """Split a method as typed in `FAMILY:0.25+FAMILY` into (family, its own sparsity or None).

    The list is empty for a function and for a plan. Whether there are such families and sparsities
    is not checked.
    """
    if is_function(method) or is_plan(method):
        return []
    words = (word.partition(":") for word in method.split("+"))
    return [(name.strip(), own.strip() if colon else None) for name, colon, own in words]


def check_display_name(name: str) -> str:
    """Return the display name of a method as tables, figures and captions show it.

    Raises:
        PrunescopeError: It is empty, too long, or no text of one line.
    """
    plain = " ".join(name.split())
    if not 0 < len(plain) <= MOST_NAME or not plain.isprintable():
        raise PrunescopeError(
            f"{name[:60]!r} is no display name of a method",
            hint=f"one line of 1 to {MOST_NAME} characters, such as Ours",
        )
    return plain


def run_name(model: str, method: str | None = None, sparsity: float | None = None) -> str:
    """Return a folder name such as tiny-llama-FAMILY-0.5, from what was asked for."""
    from prunescope.taxonomy.scrub import scrub  # here: `--help` need not compile its patterns

    words = [Path(model).name, method or "dense"]
    if method and is_plan(method):
        words[1] = Path(method).stem
    elif method and sparsity is not None and not any(own for _, own in method_parts(method)[-1:]):
        words.append(f"{sparsity:g}")
    return re.sub(r"[^A-Za-z0-9._]+", "-", scrub("-".join(words))).strip("-.")
