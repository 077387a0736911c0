"""The parser of `--method`: one family, several joined by "+", or a function of the user's own.

In: the texts of `--method`, `--sparsity`, `--set` and `--select`. Out: MethodParts in the order in
which they are applied, for `FAMILY:0.25+FAMILY:0.5`; None for `package.module:function`. No model
is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prunescope.taxonomy.arguments import number
from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import cutting, families, family
from prunescope.taxonomy.family import CALIBRATIONS, SELECTIONS, read_selection
from prunescope.taxonomy.keep import check_sparsity
from prunescope.taxonomy.match import KNOB, NOMINAL, take_match
from prunescope.taxonomy.method_names import method_parts
from prunescope.taxonomy.methods import find_published
from prunescope.taxonomy.words import when
from prunescope.tracer.pruners import family_ids, refuse_predicted_only


@dataclass(frozen=True, kw_only=True)
class MethodPart:
    """One family of a method.

    `select` tells how the parts to remove are chosen. `match` tells what the sparsity is a share
    of: "nominal", the family's own unit, or a key of MATCHES ("flop").
    """

    family: str
    sparsity: float
    knobs: Mapping[str, str] = field(default_factory=dict)
    select: str = "random"
    match: str = NOMINAL

    @property
    def reads_text(self) -> bool:
        """Whether a calibration text selects the parts."""
        by_text = family(self.family).calibration == "text"
        return self.select in ("greedy", "frequency") or (self.select == "importance" and by_text)


def read_method(
    method: str,
    *,
    sparsity: float,
    knobs: Mapping[str, str],
    select: str,
    backend: str | None = None,
) -> list[MethodPart] | None:
    """Parse the families of a method.

    With several families, each takes the knobs that begin with its name: `--set FAMILY.KNOB=mlp`,
    and `FAMILY.select=importance`.

    Args:
        method: The text of `--method`.
        sparsity: The sparsity of families that do not name one of their own.
        knobs: The names and values of `--set`.
        select: The text of `--select`.
        backend: The text of `--backend`, for families that have a choice; None without one.

    Returns:
        The parts in the order in which they are applied; None for a function of the user's own.

    Raises:
        PrunescopeError: The first mistake in these texts.
    """
    _refuse_published(method)
    words = [(name, _sparsity(name, own, sparsity)) for name, own in method_parts(method)]
    if not words:
        return None
    names = [name for name, _ in words]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise PrunescopeError(
            f"{method} names {twice} twice", hint="name each family once, with one sparsity"
        )
    own = {names[0]: dict(knobs)} if len(names) == 1 else _knobs_by_family(knobs, names)
    parts = []
    for name, share in words:
        match, own_knobs = take_match(own[name])
        if match != NOMINAL and len(names) > 1:
            raise PrunescopeError(
                f"{KNOB}={match} needs a single family, and {method} has {len(names)}",
                hint=f"remove {KNOB}, and give each part its own sparsity",
            )
        chosen = read_selection(str(own_knobs.pop("select", select))) if len(names) > 1 else select
        typed = {key: str(value) for key, value in own_knobs.items()}
        if backend is not None and "backend" in family(name).knobs:
            typed["backend"] = backend
        part = MethodPart(family=name, sparsity=share, knobs=typed, select=chosen, match=match)
        _check(part)
        parts.append(part)
    if backend is not None and not any("backend" in family(name).knobs for name in names):
        having = ", ".join(f.id for f in families() if "backend" in f.knobs)
        raise PrunescopeError(
            f"--backend {backend} has no effect on {method}, which runs on ordinary torch ops",
            hint=f"remove it; {having} have a choice",
        )
    return parts


def _refuse_published(method: str) -> None:
    """Refuse the name of a published method, and hint at the --method to type.

    For `slicegpt` the hint gives the family and the knobs that run it. A trace runs the family,
    with parts selected by `--select` and not by the paper's criterion.
    """
    parts = [name for name, _ in method_parts(method)]
    for name in (method, *parts) if parts else ():
        published = find_published(name)
        if published is None or name in family_ids():
            continue
        if published.family not in family_ids():
            refuse_predicted_only(published.family or "")
            continue
        knobs = "".join(f" --set {key}={value}" for key, value in published.runnable.items())
        differs = when(published.runs is not None, "; `families --method` says what runs instead")
        own = "for the method's own selection: package.module:function"
        if published.select is not None:
            knobs, own = f"{knobs} --select {published.select}", "which selects as its paper does"
        only = family(published.family).only
        knobs += "" if only is None else f" --sparsity {only:g}"
        raise PrunescopeError(
            f"{published.name} is a published method of the family {published.family} "
            f"({published.because}), and --method takes families",
            hint=f"--method {published.family}{knobs}{differs}; {own}",
        )


def _sparsity(name: str, own: str | None, fallback: float) -> float:
    """Check the name of a family, and return its own sparsity or the fallback."""
    if name == "dense":
        raise PrunescopeError("dense is the baseline, not a method", hint="remove --method")
    refuse_predicted_only(name)
    if name not in family_ids():
        raise PrunescopeError(
            f"no pruning method is called {name!r}",
            hint=f"nearest: {nearest(name, family_ids())}; "
            "or a function of your own: package.module:function",
        )
    share = fallback if own is None else number(own)
    if share is None:
        raise PrunescopeError(
            f"'{name}:{own}' is not FAMILY:SPARSITY",
            hint=f"for example {cutting('layers')}:0.25+{cutting('channels')}:0.5",
        )
    return check_sparsity(share)


def _knobs_by_family(knobs: Mapping[str, str], names: list[str]) -> dict[str, dict[str, str]]:
    """Sort the knobs FAMILY.KNOB by family."""
    by_family: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, value in knobs.items():
        name, dot, knob = key.partition(".")
        if not dot or name not in by_family:
            raise PrunescopeError(
                f"--set {key}={value} does not name one of the {len(names)} families",
                hint=f"write the family first: {names[0]}.{knob or key}={value}",
            )
        by_family[name][knob] = value
    return by_family


def _check(part: MethodPart) -> None:
    """Refuse a sparsity, a knob or a selection that the family does not take."""
    chosen = family(part.family)
    chosen.point(part.sparsity, part.knobs)
    if part.match == NOMINAL:
        chosen.check(part.sparsity)
    if part.select not in SELECTIONS:
        raise PrunescopeError(
            f"{part.family}.select={part.select} is not a selection",
            hint=f"{' or '.join(SELECTIONS)}",
        )
    if part.select == "greedy" and not chosen.greedy:
        raise PrunescopeError(
            f"--select greedy is not available for {part.family}",
            hint=f"it is for {', '.join(f.id for f in families() if f.greedy)}",
        )
    if part.select == "frequency" and not chosen.cuts_experts:
        raise PrunescopeError(
            f"--select frequency is not available for {part.family}",
            hint="it counts the tokens that each expert gets, for "
            f"{', '.join(f.id for f in families() if f.cuts_experts)}",
        )
    if part.select == "importance" and chosen.calibration is None:
        ids = {
            kind: ", ".join(f.id for f in families() if f.calibration == kind)
            for kind in CALIBRATIONS
        }
        raise PrunescopeError(
            f"--select importance is not available for {part.family}",
            hint=f"use --select random; by a text: {ids['text']}; by the attention of the input: "
            f"{ids['input']}",
        )
