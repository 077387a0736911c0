"""The shape of a model named on the command line, without loading its weights.

In: a preset name, a config.json, a folder with one, or the id of a model on the Hub. Out:
ModelShape, where the shape comes from (never a path) and the number format that the config names,
or None.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.hub import reach
from prunescope.taxonomy.presets import preset_config, preset_named, preset_names, preset_source
from prunescope.taxonomy.shape import ModelShape

_LARGEST = 4 << 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$", re.ASCII)


def read_model(name: str) -> tuple[ModelShape, str, str | None]:
    """(shape, source, dtype as written). Raises PrunescopeError where there is no such model."""
    if (preset := preset_named(name)) and not Path(name).exists():
        config = preset_config(preset)
        return ModelShape.from_config(config), preset_source(preset), _written(config)
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if not file.exists() and _HUB_ID.match(name):
        file = _from_hub(name)
        return ModelShape.from_config(config := _config(file)), f"{name} (Hub)", _written(config)
    if path.is_dir() and not file.is_file():
        raise PrunescopeError(
            f"the folder {path.resolve().name!r} holds no config.json",
            hint="give the folder of a Hugging Face checkpoint, its config.json, or a preset",
        )
    if not file.is_file():
        raise PrunescopeError(
            f"{name!r} is no preset and no folder with a config.json",
            hint=f"nearest presets: {nearest(name, preset_names())}",
        )
    config = _config(file)
    return ModelShape.from_config(config), file.name, _written(config)


def model_name(name: str) -> str:
    """What a prediction calls a model: a preset's name, or a folder's without its path."""
    if name.lower() in preset_names():
        return name
    path = Path(name).resolve()
    if not path.exists() and _HUB_ID.match(name):
        return name
    return path.name if path.is_dir() else path.parent.name


def _from_hub(name: str) -> Path:
    """The config.json of a model on the Hub, from the local cache where it is there."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    try:
        if not constants.is_offline_mode():
            reach(constants.ENDPOINT)
        return Path(hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, EntryNotFoundError, LocalEntryNotFoundError, OSError) as error:
        raise PrunescopeError(
            f"{name!r} is no preset and no folder with a config.json, and the Hub does not give "
            f"its config ({type(error).__name__})",
            hint=f"nearest presets: {nearest(name, preset_names())}; offline, download config.json",
        ) from None


def _config(file: Path) -> dict[str, Any]:
    if file.suffix != ".json" or file.stat().st_size > _LARGEST:
        raise PrunescopeError(
            f"{file.name} is no config of a model", hint="give its config.json, or a preset"
        )
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PrunescopeError(
            f"{file.name} is not JSON ({str(error)[:80]})", hint="give a Hugging Face config.json"
        ) from None
    if not isinstance(config, dict):
        raise PrunescopeError(
            f"{file.name} is not a JSON object", hint="give a Hugging Face config.json"
        )
    return config


def _written(config: dict[str, Any]) -> str | None:
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part.get(key), str) and part[key] != "auto":
                return str(part[key])
    return None
