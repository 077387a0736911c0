"""What `--method` says: one family, several joined by "+", or a function of the user's own.

In: the word, `--sparsity`, `--set` and `--select`. Out: Parts in the order in which they are
applied, `FAMILY:0.25+FAMILY:0.5`; None for `package.module:function`. Loads no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prunescope.taxonomy.arguments import method_parts, number
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import cutting, families, family
from prunescope.taxonomy.family import CALIBRATIONS, SELECTIONS, read_selection
from prunescope.taxonomy.keep import check_sparsity
from prunescope.taxonomy.match import KNOB, NOMINAL, take_match
from prunescope.taxonomy.methods import placed
from prunescope.tracer.pruners import family_ids, refuse_theory_alone


@dataclass(frozen=True, kw_only=True)
class MethodPart:
    """One family of a method: its own sparsity, the knobs given for it, how parts are chosen, and
    what its sparsity is a share of ("nominal": the family's own unit; or a key of MATCHES)."""

    family: str
    sparsity: float
    knobs: Mapping[str, str] = field(default_factory=dict)
    select: str = "random"
    match: str = NOMINAL

    @property
    def reads_text(self) -> bool:
        """Whether a text chooses what goes."""
        by_text = family(self.family).calibration == "text"
        return self.select == "greedy" or (self.select == "importance" and by_text)


def read_method(
    method: str, *, sparsity: float, knobs: Mapping[str, str], select: str
) -> list[MethodPart] | None:
    """The families of a method; None where it is a function of the user's own.

    Of several, each takes the knobs that begin with its name: `--set FAMILY.KNOB=mlp`, and
    `FAMILY.select=importance`. Raises PrunescopeError on the first thing that cannot be.
    """
    _refuse_published(method)
    words = [(name, _sparsity(name, own, sparsity)) for name, own in method_parts(method)]
    if not words:
        return None
    names = [name for name, _ in words]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise PrunescopeError(
            f"{method} names {twice} twice", hint="a family has one sparsity; name it once"
        )
    own = {names[0]: dict(knobs)} if len(names) == 1 else _by_family(knobs, names)
    parts = []
    for name, share in words:
        by, rest = take_match(own[name])
        if by != NOMINAL and len(names) > 1:
            raise PrunescopeError(
                f"{KNOB}={by} cannot be met by {method}: one share, {len(names)} sparsities",
                hint=f"{KNOB} is for one family; give each part its own sparsity",
            )
        chosen = read_selection(str(rest.pop("select", select))) if len(names) > 1 else select
        typed = {key: str(value) for key, value in rest.items()}
        part = MethodPart(family=name, sparsity=share, knobs=typed, select=chosen, match=by)
        _check(part)
        parts.append(part)
    return parts


def _refuse_published(method: str) -> None:
    """Raises PrunescopeError for the name of a paper's method, with the family that it is: what is
    traced is that family, with parts chosen as `--select` says and not as the paper does."""
    parts = [name for name, _ in method_parts(method)]
    for name in (method, *parts) if parts else ():
        found = placed(name)
        if found is None or name in family_ids():
            continue
        if found.family not in family_ids():
            refuse_theory_alone(found.family or "")
            continue
        knobs = "".join(f" --set {key}={value}" for key, value in found.knobs.items())
        raise PrunescopeError(
            f"{found.name} is a published method, and families are traced: its own is "
            f"{found.family} ({found.because})",
            hint=f"--method {found.family}{knobs}; its own choice of what goes: "
            "package.module:function",
        )


def _sparsity(name: str, own: str | None, fallback: float) -> float:
    if name == "dense":
        raise PrunescopeError(
            "dense is what every run is compared with, not a method", hint="leave --method out"
        )
    refuse_theory_alone(name)
    if name not in family_ids():
        raise PrunescopeError(
            f"no pruning method is called {name!r}",
            hint=f"nearest: {nearest(name, family_ids())}; "
            "or a function of your own: package.module:function",
        )
    share = fallback if own is None else number(own)
    if share is None:
        raise PrunescopeError(
            f"'{name}:{own}' gives no sparsity",
            hint=f"as in {cutting('layers')}:0.25+{cutting('channels')}:0.5",
        )
    return check_sparsity(share)


def _by_family(knobs: Mapping[str, str], names: list[str]) -> dict[str, dict[str, str]]:
    """Knobs written FAMILY.KNOB by the family that they are for."""
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, value in knobs.items():
        name, dot, knob = key.partition(".")
        if not dot or name not in found:
            raise PrunescopeError(
                f"--set {key}={value}: of {len(names)} families, which one is it for?",
                hint=f"begin with its name, as {names[0]}.{knob or key}={value}",
            )
        found[name][knob] = value
    return found


def _check(part: MethodPart) -> None:
    """A point that the family does not have, or a selection that it cannot make."""
    chosen = family(part.family)
    chosen.point(part.sparsity, part.knobs)
    if part.match == NOMINAL:
        chosen.check(part.sparsity)
    if part.select not in SELECTIONS:
        raise PrunescopeError(
            f"{part.family}.select={part.select} is no choice", hint=f"{' or '.join(SELECTIONS)}"
        )
    if part.select == "greedy" and not chosen.greedy:
        raise PrunescopeError(
            f"--select greedy is not available for {part.family}",
            hint=f"it is for {', '.join(f.id for f in families() if f.greedy)}",
        )
    if part.select == "importance" and chosen.calibration is None:
        by = {
            kind: ", ".join(f.id for f in families() if f.calibration == kind)
            for kind in CALIBRATIONS
        }
        raise PrunescopeError(
            f"--select importance is not available for {part.family}",
            hint=f"use --select random; importance on a text: {by['text']}; on the attention of "
            f"the input itself: {by['input']}",
        )
