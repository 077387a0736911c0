"""The methods of a request: those of one family that differ are told apart, the same ones are one.

In: names as people type them, and knobs. Out: a label for each name: the id of its family, or the
name itself where several methods of that family stand side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prunescope.analysis.predict.setting import named_family
from prunescope.taxonomy.arguments import is_function
from prunescope.taxonomy.errors import PrunescopeError


def labels(
    names: Iterable[str | None], knobs: Mapping[str, Any], warnings: list[str]
) -> dict[str | None, str | None]:
    """{name: label}, in order. Methods whose kernels are the same are one row; which is said.

    Raises PrunescopeError for a name that is no method's, or a knob that none of several has.
    """
    kept: dict[object, str | None] = {}
    for name in names:
        key = _kernels(name, knobs)
        if key in kept:
            one = _id(name)
            warnings.append(f"{name} and {kept[key]} are {one} here: their kernels are the same")
        kept.setdefault(key, name)
    ids = Counter(_id(name) for name in kept.values())
    return {name: _id(name) if ids[_id(name)] == 1 else name for name in kept.values()}


def check_knobs(knobs: Iterable[str], names: Iterable[str | None]) -> None:
    """A knob of several methods is one of any of them. Raises PrunescopeError for another."""
    names = list(names)
    whose = "none of these methods has a" if len(names) > 1 else f"{names[0] or 'dense'} has no"
    known = {knob for name in names if _pruning(name) for knob in named_family(str(name))[0].knobs}
    known |= {"kernel"}
    for knob in knobs:
        if knob not in known:
            raise PrunescopeError(
                f"{whose} knob {knob!r}", hint=f"known here: {', '.join(sorted(known))}"
            )


def _pruning(name: str | None) -> bool:
    return name is not None and name != "dense" and not is_function(name)


def _id(name: str | None) -> str | None:
    return named_family(str(name))[0].id if _pruning(name) else name


def _kernels(name: str | None, knobs: Mapping[str, Any]) -> object:
    """What two names of the same kernels share: the family and its knobs, all filled in."""
    if not _pruning(name):
        return name
    one, meant = named_family(str(name))
    given = {key: str(value) for key, value in {**meant, **knobs}.items()}
    filled = {key: given.get(key, str(knob.default)) for key, knob in one.knobs.items()}
    return one.id, given.get("kernel"), tuple(sorted(filled.items()))
