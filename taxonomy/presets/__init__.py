"""Configs of well-known models, so that anyone can start without a download.

In: a preset name (`llama-3.1-8b`). Out: the Hugging Face config as a dict. Each `<name>.json` here
holds {"source": where the shape was published, "config": the config}, and may name other models of
its shape by their Hub ids or short names ("same_shape"), and say in which format the weights are
published where that is not a float of 16 or 32 bits ("published_as"). Weights are never included.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_HUB = "https://huggingface.co/"


@cache
def preset_names() -> tuple[str, ...]:
    """Return the name of every preset, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json")))


# Words at the end of a Hub id that change the weights and not the shape.
_TUNED = lazy_pattern(
    r"(-(hf|instruct|thinking|it|pt|base|chat|2407|2501|2507|0324|0528|v0\.3|v1\.\d|4k|fp16|bf16))"
    r"+$"
)


def preset_named(name: str) -> str | None:
    """Return the preset of a name; None for no preset.

    The name is the preset's own, or the Hub id of the model or of a tuned version of it, with or
    without its organisation.
    """
    key = name.lower()
    return key if key in preset_names() else _hub_ids().get(_plain(key))


@cache
def _hub_ids() -> dict[str, str]:
    """Return the preset of each Hub id without what tuning adds.

    Presets whose source is not the Hub have none, unless a model of their shape is named.
    """
    by_id = {}
    for name in preset_names():
        parts = preset_source(name).removeprefix(_HUB).split("/")
        if preset_source(name).startswith(_HUB) and len(parts) > 1:
            by_id[_plain("/".join(parts[:2]).lower())] = name
        by_id |= {_plain(alias.lower()): name for alias in _read(name).get("same_shape", ())}
    # A short name belongs to the model that has it as its own id, if there is one.
    return {**{key.rpartition("/")[2]: name for key, name in by_id.items()}, **by_id}


_SIZE = lazy_pattern(r"(?:^|[-_])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
_FAMILY = lazy_pattern(r"[a-z]+")
_NEAREST = 4  # presets that a message names


def nearest_presets(name: str, *, more: Iterable[str] = ()) -> str:
    """Return the presets most like a name, as a part of a sentence.

    They are those of its family, the nearest size first; without a family among the presets, those
    that are written most alike, or the text says that there are none. A name may be that of an
    architecture: GraniteMoE, or granitemoe as a config spells it. `more`: names that are as good as
    presets'.
    """
    known = (*preset_names(), *more)
    key = _plain(name.lower()).rpartition("/")[2]
    family, size = _family(key), _size(key)
    of_family = _presets_of_architecture(key) or [
        candidate for candidate in known if _family(candidate) == family
    ]

    def distance(preset: str) -> tuple[float, float]:
        preset_size = _size(preset)
        apart = abs(math.log(preset_size / size)) if size and preset_size else 9.0
        return round(apart, 1), -difflib.SequenceMatcher(None, key, preset).ratio()

    close = sorted(of_family, key=distance)
    close += [n for n in difflib.get_close_matches(key, known, n=_NEAREST) if n not in close]
    return ", ".join(close[:_NEAREST]) or f"none of {len(known)}"


def _presets_of_architecture(key: str) -> list[str]:
    """Return the presets whose model type is the key.

    The key may also be the name of a class, such as GraniteMoeForCausalLM.
    """
    written = _letters(key.removesuffix("forcausallm"))
    types = {preset: str(_read(preset)["config"]["model_type"]) for preset in preset_names()}
    return [preset for preset, model_type in types.items() if _letters(model_type) == written]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _family(name: str) -> str | None:
    match = _FAMILY.match(name)
    return match.group() if match else None


def _size(name: str) -> float | None:
    """Return the parameters in billions that a name states; None if it states none."""
    match = _SIZE.search(name)
    if match is None:
        return None
    return float(match.group(1)) * (1e-3 if match.group(2) == "m" else 1.0)


def _plain(hub_id: str) -> str:
    return _TUNED.sub("", hub_id.replace("/meta-llama-", "/llama-"))


def preset_config(name: str) -> dict[str, Any]:
    """Return a fresh copy of the preset's config.

    Raises:
        PrunescopeError: There is no such preset; the hint gives the nearest names.
    """
    config: dict[str, Any] = _read(name)["config"]
    return config


def preset_source(name: str) -> str:
    """Return where the preset's shape was published.

    Raises:
        PrunescopeError: There is no such preset; the hint gives the nearest names.
    """
    return str(_read(name)["source"])


def published_as(name: str) -> str | None:
    """Return the format of the preset's published weights if they are quantised, else None."""
    number_format = _read(name).get("published_as")
    return None if number_format is None else str(number_format)


def _read(name: str) -> dict[str, Any]:
    """Read the file of a preset. Raise PrunescopeError with the nearest names if there is none."""
    key = name.lower()
    if key not in preset_names():
        raise PrunescopeError(
            f"no model preset is called {name!r}", hint=f"nearest: {nearest_presets(key)}"
        )
    text = resources.files(__name__).joinpath(f"{key}.json").read_text(encoding="utf-8")
    plain: dict[str, Any] = json.loads(text)
    return plain
