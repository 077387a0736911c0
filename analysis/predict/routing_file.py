"""How often each expert is chosen, from what `--routing` names: a file of counts, a run, or Zipf.

A path of a JSON file ({"decode": {"0": [counts]}}, or {"0": [counts]} for every phase), a run.json,
a run folder, or `zipf:EXPONENT` gives a Routing. A file is untrusted, so sizes are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunescope.taxonomy.arguments import number
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import ENOUGH_PICKS, Routing
from prunescope.taxonomy.formats import MAX_LAYERS, load_object
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.plan import PHASES
from prunescope.taxonomy.runs.run import MANIFEST
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS

_ZIPF = "zipf"
# Assumed where nothing was counted: the most chosen of 128 experts then gets 6 times the mean.
ZIPF_EXPONENT = 0.5
_LARGEST_EXPONENT = 4.0
_MAX_BYTES = 64 << 20
_MAX_EXPERTS = 1 << 14
_LAYER = lazy_pattern(r"0|[1-9]\d{0,4}", re.ASCII)
_FORM = 'as {"decode": {"0": [12, 3, ...]}}: tokens of each expert, by layer'


def read_routing(given: str) -> Routing:
    """Return the routing that an option names; raise PrunescopeError where it holds no counts."""
    word, _, exponent = given.partition(":")
    if word.lower() == _ZIPF and not Path(given).exists():
        return zipf(_parse_exponent(exponent) if exponent else ZIPF_EXPONENT)
    file = _find_file(Path(given).expanduser())
    held = _read_object(file)
    if file.name != MANIFEST and not held.get("routing"):
        refuse_own_file(file)
    if file.name == MANIFEST and not held.get("routing"):
        raise PrunescopeError(
            f"{file.name} counts no experts", hint="trace a model with experts, or give a file"
        )
    inputs = held.get("inputs")
    random_ids = isinstance(inputs, dict) and inputs.get("source") == RANDOM_IDS
    return _routing_of(held.get("routing", held), file.name, random_ids=random_ids)


def _routing_of(counts: Any, name: str, *, random_ids: bool) -> Routing:
    """Return the routing of untrusted counts, for every phase where they name none."""
    is_by_phase = isinstance(counts, dict) and all(isinstance(c, dict) for c in counts.values())
    by_phase = counts if is_by_phase else dict.fromkeys(PHASES, counts)
    # A run names its phases itself: "training" stands for both phases where there is no other.
    unknown = [phase for phase in by_phase if phase not in PHASES]
    if unknown and name != MANIFEST:
        raise PrunescopeError(f"{name} counts in no phase: {unknown[0][:40]!r}", hint=_FORM)
    read = {str(phase): _read_layers(layers, name) for phase, layers in by_phase.items()}
    phases = {phase: layers for phase, layers in read.items() if layers}
    if not any(count for layers in phases.values() for counts in layers for count in counts):
        raise PrunescopeError(f"{name} counts no experts", hint=_FORM)
    picks = {
        phase: sum(map(sum, layers)) / len(layers)
        for phase, layers in phases.items()
        if all(count.is_integer() for counts in layers for count in counts)  # else they are shares
    }
    few = frozenset(
        phase
        for phase, picked in picks.items()
        if picked * len(phases[phase]) < ENOUGH_PICKS * sum(map(len, phases[phase]))
    )
    return Routing(
        source=name,
        phases={p: _add_pick(layers) if p in few else layers for p, layers in phases.items()},
        picks=picks,
        few=few,
        random_ids=random_ids,
    )


def _add_pick(layers: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """Return counts with one more pick of every expert.

    That is the mean of the shares behind few picks where any shares were as likely before (a
    Dirichlet(1) prior, Laplace's rule of succession).
    """
    return tuple(tuple(count + 1 for count in counts) for counts in layers)


def zipf(exponent: float) -> Routing:
    """Return a routing by Zipf's law.

    The expert of rank r gets tokens in proportion to r^-exponent.
    """
    return Routing(source=f"Zipf, exponent {exponent:g}", phases={}, exponent=exponent)


def _parse_exponent(text: str) -> float:
    """Return the exponent of Zipf's law in a text; raise PrunescopeError for another text."""
    exponent = number(text)
    if exponent is None or not 0 <= exponent <= _LARGEST_EXPONENT:
        raise PrunescopeError(
            f"{text[:40]!r} is no exponent of Zipf's law",
            hint=f"--routing zipf:{ZIPF_EXPONENT:g}; 0 is uniform, {_LARGEST_EXPONENT:g} the most",
        )
    return exponent


def _find_file(path: Path) -> Path:
    """Return the file of counts: the run.json of a run folder, or the path itself."""
    for folder in (path / "dense", path):
        if (folder / MANIFEST).is_file():
            return folder / MANIFEST
    if not path.is_file():
        raise PrunescopeError(
            f"no routing at {path.name}",
            hint=f"a file {_FORM}; a run.json; a run folder; or zipf:{ZIPF_EXPONENT:g}",
        )
    return path


def _read_object(file: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; raise PrunescopeError for another content."""
    if file.stat().st_size > _MAX_BYTES:
        raise PrunescopeError(f"{file.name} is too large for counts of experts", hint=_FORM)
    return load_object(file.read_bytes(), where=file.name, hint=_FORM)


def _read_layers(layers: Any, name: str) -> tuple[tuple[float, ...], ...]:
    """Return counts in the order of the layers; raise PrunescopeError for another content."""
    if not isinstance(layers, dict) or len(layers) > MAX_LAYERS:
        raise PrunescopeError(f"{name} does not count experts by layer", hint=_FORM)
    numbered = {int(layer): counts for layer, counts in layers.items() if _LAYER.fullmatch(layer)}
    if len(numbered) < len(layers):
        raise PrunescopeError(f"{name} has a layer that is no number", hint=_FORM)
    return tuple(_read_counts(numbered[layer], name) for layer in sorted(numbered))


def _read_counts(counts: Any, name: str) -> tuple[float, ...]:
    """Return the counts of one layer; raise PrunescopeError for another content."""
    fits = isinstance(counts, list) and 1 < len(counts) <= _MAX_EXPERTS
    if not fits or not all(map(_is_count, counts)):
        raise PrunescopeError(f"{name} has a layer without counts of its experts", hint=_FORM)
    return tuple(map(float, counts))


def _is_count(value: Any) -> bool:
    """Return whether a value can be a number of tokens, or a share."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
