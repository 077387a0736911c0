"""The part of a model's config that run.json keeps: dimensions and switches, no personal data.

In: a config of transformers, one of a user's own, or None. Out: plain JSON values. A config.json
may hold any keys, also ones that its class does not know, and transformers keeps them.
"""

from __future__ import annotations

import math
import re
from typing import Any

from prunescope.taxonomy.configs.config import NESTED, READ

# Keys that any config may have, and that hold free text or paths.
_NOT_KEPT = {
    "_name_or_path", "name_or_path", "id2label", "label2id", "task_specific_params", "problem_type",
    "finetuning_task", "prefix", "auto_map", "custom_pipelines",
}  # fmt: skip
_NESTED_DEPTH = 4
# In a plain object, such as rope_parameters, no class says which keys are known.
_WORD_KEYS = re.compile(r"(?:\w*_)?(?:type|method|dtype|mode|format|kernel|version|fmt)")
_KEY = re.compile(r"[A-Za-z_]\w{0,63}")
_WORD = re.compile(r"[A-Za-z0-9_.+*|-]{0,64}")
_SERVICE_KEY = re.compile(
    r"(?:hf|sk|pk|rk|gh[a-z]|github|glpat|xox[a-z])[-_].{4,}|(?:AKIA|ASIA|AIza|ya29|eyJ).{8,}"
)
_HEX = re.compile(r"[0-9a-fA-F]{16,}")
_HOST = re.compile(r"(?:[A-Za-z0-9-]+\.){2,}[A-Za-z-]{2,}")
_DROPPED = object()


def kept_config(config: Any) -> dict[str, Any]:
    """Return the entries of a config that may be published; an empty dict for None.

    These are the keys that the config's class in transformers knows, and those that the taxonomy
    reads. If transformers does not know the class, all numbers and booleans are kept as well. Free
    text is dropped, and so are strings that look like paths, addresses, hosts or access keys.

    Limitations: a secret is recognised by its form alone (a known prefix, hexadecimal or random
    characters). A short secret made of plain words passes.
    """
    if isinstance(config, dict):
        plain = config
    else:
        plain = config.to_dict() if hasattr(config, "to_dict") else getattr(config, "__dict__", {})
    return _kept(plain, config, _NESTED_DEPTH)


def _kept(plain: dict[str, Any], config: Any, depth: int) -> dict[str, Any]:
    """Filter the entries of one config, and of nested configs down to `depth` levels."""
    known = None if isinstance(config, dict) else _known_keys(type(config))
    kept = {}
    for key, value in plain.items():
        part = None if isinstance(config, dict) else getattr(config, str(key), None)
        if isinstance(value, dict) and depth and (key in NESTED or hasattr(part, "to_dict")):
            kept[key] = _kept(value, part if hasattr(part, "to_dict") else value, depth - 1)
            continue
        is_read = key in READ or key in (known or ())
        is_number = isinstance(value, bool | int | float)
        if key in _NOT_KEPT or not (is_read or (known is None and is_number)):
            continue
        clean = _clean(value, words=True)
        if clean is not _DROPPED and _KEY.fullmatch(str(key)) and not _is_secret(str(key)):
            kept[key] = clean
    return kept


def _known_keys(cls: type) -> set[str] | None:
    """Return the keys of the default config of the first base class that is part of transformers.

    None means that transformers does not know the class.
    """
    for base in cls.__mro__:
        if base.__module__.startswith("transformers.models."):
            try:
                return set(base().to_dict())
            except (TypeError, ValueError, AttributeError, LookupError, ImportError):
                return set()  # without a default config, the keys of the taxonomy alone are kept
    return None


def _clean(value: Any, *, words: bool) -> Any:
    """Return a value without anything that could identify a person, host or path.

    Strings are kept only if `words` is true. The result is _DROPPED if nothing may be kept.
    """
    if isinstance(value, dict):
        named = [
            (str(k), _clean(v, words=_WORD_KEYS.fullmatch(str(k)) is not None))
            for k, v in value.items()
        ]
        return {k: v for k, v in named if v is not _DROPPED and _is_word(k)}
    if isinstance(value, list | tuple | set):
        listed = [_clean(item, words=words) for item in value]
        return _DROPPED if any(item is _DROPPED for item in listed) else listed
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if words and _is_word(text) else _DROPPED


def _is_word(text: str) -> bool:
    return _WORD.fullmatch(text) is not None and not _is_secret(text)


def _is_secret(text: str) -> bool:
    """Return whether a text looks like an access key, a long hex number, random text or a host."""
    mixed = re.search("[a-z]", text) and re.search("[A-Z]", text)
    is_random = len(text) >= 20 and mixed and len(re.findall(r"\d", text)) >= 4
    matches = (pattern.fullmatch(text) for pattern in (_SERVICE_KEY, _HEX, _HOST))
    return bool(is_random) or any(matches)
