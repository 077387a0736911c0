"""How often each expert is chosen, from what `--routing` names: a file of counts, a run, or Zipf.

In: a path of a JSON file ({"decode": {"0": [counts]}}, or {"0": [counts]} for every phase), a
run.json, a run folder, or `zipf:EXPONENT`. Out: a Routing. A file is untrusted: sizes are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunescope.taxonomy.arguments import number
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import ENOUGH_PICKS, Routing
from prunescope.taxonomy.formats import MAX_LAYERS
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.plan import PHASES
from prunescope.taxonomy.run import MANIFEST
from prunescope.taxonomy.run_quality import RANDOM_IDS

_ZIPF = "zipf"
# The most chosen of 128 experts then gets 6 times the mean: assumed where nothing was counted.
ZIPF_EXPONENT = 0.5
_LARGEST_EXPONENT = 4.0
_MAX_BYTES = 64 << 20
_MAX_EXPERTS = 1 << 14
_FORM = 'as {"decode": {"0": [12, 3, ...]}}: tokens of each expert, by layer'


def read_routing(given: str) -> Routing:
    """The routing that an option names. Raises PrunescopeError where it holds no counts."""
    word, _, exponent = given.partition(":")
    if word.lower() == _ZIPF and not Path(given).exists():
        return zipf(_exponent(exponent) if exponent else ZIPF_EXPONENT)
    file = _file(Path(given).expanduser())
    held = _read(file)
    if file.name != MANIFEST and not held.get("routing"):
        refuse_own_file(file)
    if file.name == MANIFEST and not held.get("routing"):
        raise PrunescopeError(
            f"{file.name} counts no experts", hint="trace a model with experts, or give a file"
        )
    inputs = held.get("inputs")
    random_ids = isinstance(inputs, dict) and inputs.get("source") == RANDOM_IDS
    return _counted(held.get("routing", held), file.name, random_ids=random_ids)


def _counted(counts: Any, name: str, *, random_ids: bool) -> Routing:
    by_phase = counts if _is_by_phase(counts) else dict.fromkeys(PHASES, counts)
    # A run names its phases itself: "training" stands for both where there is no other.
    other = [phase for phase in by_phase if phase not in PHASES]
    if other and name != MANIFEST:
        raise PrunescopeError(f"{name} counts in no phase: {other[0][:40]!r}", hint=_FORM)
    phases = {
        str(phase): found for phase, layers in by_phase.items() if (found := _layers(layers, name))
    }
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
        phases={p: _estimated(found) if p in few else found for p, found in phases.items()},
        picks=picks,
        few=few,
        random_ids=random_ids,
    )


def _estimated(layers: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """One more pick of every expert: the mean of the shares behind few picks where any shares were
    as likely before (a Dirichlet(1) prior, Laplace's rule of succession)."""
    return tuple(tuple(count + 1 for count in counts) for counts in layers)


def zipf(exponent: float) -> Routing:
    """Zipf's law: the expert of rank r gets tokens in proportion to r^-exponent."""
    return Routing(source=f"Zipf, exponent {exponent:g}", phases={}, exponent=exponent)


def _exponent(text: str) -> float:
    found = number(text)
    if found is None or not 0 <= found <= _LARGEST_EXPONENT:
        raise PrunescopeError(
            f"{text[:40]!r} is no exponent of Zipf's law",
            hint=f"--routing zipf:{ZIPF_EXPONENT:g}; 0 is uniform, {_LARGEST_EXPONENT:g} the most",
        )
    return found


def _file(path: Path) -> Path:
    for folder in (path / "dense", path):
        if (folder / MANIFEST).is_file():
            return folder / MANIFEST
    if not path.is_file():
        raise PrunescopeError(
            f"no routing at {path.name}",
            hint=f"a file {_FORM}; a run.json; a run folder; or zipf:{ZIPF_EXPONENT:g}",
        )
    return path


def _read(file: Path) -> Mapping[str, Any]:
    if file.stat().st_size > _MAX_BYTES:
        raise PrunescopeError(f"{file.name} is too large for counts of experts", hint=_FORM)
    try:
        held = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise PrunescopeError(f"{file.name} is not JSON", hint=_FORM) from None
    if not isinstance(held, dict):
        raise PrunescopeError(f"{file.name} is not a JSON object", hint=_FORM)
    return held


def _is_by_phase(counts: Any) -> bool:
    return isinstance(counts, dict) and all(isinstance(one, dict) for one in counts.values())


def _layers(layers: Any, name: str) -> tuple[tuple[float, ...], ...]:
    """Counts in the order of the layers."""
    if not isinstance(layers, dict) or len(layers) > MAX_LAYERS:
        raise PrunescopeError(f"{name} does not count experts by layer", hint=_FORM)
    numbered = {int(layer): counts for layer, counts in layers.items() if _is_number(layer)}
    if len(numbered) < len(layers):
        raise PrunescopeError(f"{name} has a layer that is no number", hint=_FORM)
    return tuple(_counts(numbered[layer], name) for layer in sorted(numbered))


def _is_number(layer: str) -> bool:
    return layer.isascii() and layer.isdecimal() and len(layer) < 6


def _counts(counts: Any, name: str) -> tuple[float, ...]:
    fits = isinstance(counts, list) and 1 < len(counts) <= _MAX_EXPERTS
    if not fits or not all(_is_count(one) for one in counts):
        raise PrunescopeError(f"{name} has a layer without counts of its experts", hint=_FORM)
    return tuple(float(one) for one in counts)


def _is_count(one: Any) -> bool:
    return isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < 1e15
