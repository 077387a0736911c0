"""The shape of a model named on the command line, without loading its weights.

In: a preset name, a config.json, a folder with one, or the id of a model on the Hub. Out: its
ModelShape, by the headers of the weights next to the config where there are any, and its number
formats by the config.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from prunescope.taxonomy.architecture_traits import Traits, traits_of
from prunescope.taxonomy.config_traits import read_traits
from prunescope.taxonomy.configs.gguf_header import gguf_config
from prunescope.taxonomy.configs.stored_tensors import stored_tensors
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import load_object
from prunescope.taxonomy.hub import reach
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.presets import (
    nearest_presets,
    preset_config,
    preset_named,
    preset_names,
    preset_source,
    published_as,
)
from prunescope.taxonomy.runs.run import MANIFEST, read_run
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.stored_layers import shape_of_weights
from prunescope.taxonomy.witnesses import read_witnesses

_LARGEST = 4 << 20
_HUB_ID = lazy_pattern(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$", re.ASCII)


class NamedModel(NamedTuple):
    """The contents of a config.

    `source` is where it comes from, never a path. `dtype` is the number format as it is written
    there, and `quantised` the format of the weights where they are published in fewer bits.
    `traits` decide which families apply. `notes` state where the weights differ from the config.
    """

    shape: ModelShape
    source: str
    dtype: str | None
    quantised: str | None
    traits: Traits
    notes: tuple[str, ...] = ()


def read_model(name: str) -> NamedModel:
    """Read the shape and number formats of a model.

    Args:
        name: A preset, a config.json, a folder with one, a GGUF file, a run.json, or the id of a
            model on the Hub. "#" and a key after it choose a part, such as `#vision_config`.

    Returns:
        The model, with the sizes of the weights next to its config where there are any.

    Raises:
        PrunescopeError: There is no such model, or its config cannot be read.
    """
    whole, _, part = name.partition("#")
    if part and not Path(name).exists():
        return _read_part(whole, part)
    if (preset := preset_named(name)) and not Path(name).exists():
        return _build_model(preset_config(preset), preset_source(preset), published_as(preset))
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if not file.exists() and _HUB_ID.match(name):
        file = _from_hub(name)
        return _build_model(_load_config(file), f"{name} (Hub)")
    if path.is_dir() and not file.is_file():
        raise PrunescopeError(
            f"the folder {path.resolve().name!r} holds no config.json",
            hint="give the folder of a Hugging Face checkpoint, its config.json, or a preset",
        )
    if not file.is_file():
        raise PrunescopeError(
            f"{name!r} is not a preset or a folder with a config.json",
            hint=f"nearest presets: {nearest_presets(name)}; or give a config.json",
        )
    if file.name == MANIFEST:
        return _model_of_run(file)
    return _with_sizes_of_weights(_build_model(_load_config(file), file.name), file)


def _read_part(name: str, part: str) -> NamedModel:
    """Read a part of a model of several, a tower or the text model, as a model by itself."""
    file = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not file.is_file() and _HUB_ID.match(name):
        file = _from_hub(name)
    if not file.is_file():
        raise PrunescopeError(f"no file {name!r}", hint="give a config.json before the #")
    config = _load_config(file)
    inner = config.get(part)
    if not isinstance(inner, dict):
        names = [key[:40] for key, value in config.items() if isinstance(value, dict) and value][:8]
        raise PrunescopeError(
            f"the config has no part {part[:40]!r}", hint=f"parts are {', '.join(names) or 'none'}"
        )
    shared: dict[str, Any] = {
        key: config[key] for key in ("tie_word_embeddings", "dtype") if key in config
    }
    return _build_model({**shared, **inner}, f"{file.name}#{part}")


def _with_sizes_of_weights(model: NamedModel, file: Path) -> NamedModel:
    """Return the model with the sizes of the weights next to its config."""
    stored = stored_tensors(file)
    if stored is None:
        return model
    shape, notes = shape_of_weights(model.shape, stored)
    return model._replace(
        shape=shape, traits=replace(model.traits, shape=shape), notes=(*notes, *model.notes)
    )


def _model_of_run(file: Path) -> NamedModel:
    """Return the model of a run, by its run.json."""
    run = read_run(file.parent)
    shape = ModelShape.from_run(run.model.shape)
    if shape is None:
        raise PrunescopeError(
            f"{file.name} does not hold the shape of its model", hint="give its config.json"
        )
    return NamedModel(shape, file.name, run.dtype, None, traits_of(shape))


def _build_model(config: dict[str, Any], source: str, quantised: str | None = None) -> NamedModel:
    """Build the model of a config."""
    seen = read_witnesses(config)
    quantised = quantised or _stated_quantisation(config)
    notes = (seen.note,) if seen.note else ()
    dtype = _stated_dtype(config)
    return NamedModel(seen.shape, source, dtype, quantised, read_traits(config), notes)


def model_name(name: str) -> str:
    """Return the name of a model in a prediction.

    It is that of a preset, or of a folder without its path.
    """
    path = Path(name).resolve()
    if name.lower() in preset_names() or (preset_named(name) and not path.exists()):
        return name
    if not path.exists() and _HUB_ID.match(name):
        return name
    return path.name if path.is_dir() else path.parent.name


def _from_hub(name: str) -> Path:
    """Return the config.json of a model on the Hub, from the local cache where it is there."""
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
            f"{name!r} is not a preset or a folder with a config.json, and the Hub does not give "
            f"its config ({type(error).__name__})",
            hint=f"nearest presets: {nearest_presets(name)}; offline, download config.json",
        ) from None


def _load_config(file: Path) -> dict[str, Any]:
    """Read a config from JSON or from the header of a GGUF file."""
    if file.suffix == ".gguf":
        return gguf_config(file)
    if file.suffix != ".json" or file.stat().st_size > _LARGEST:
        raise PrunescopeError(
            f"{file.name} is not a config of a model", hint="give its config.json, or a preset"
        )
    return load_object(file.read_bytes(), where=file.name, hint="give a Hugging Face config.json")


def _stated_quantisation(config: dict[str, Any]) -> str | None:
    """Return the method that the config's quantization_config names (fp8, mxfp4, gptq, awq ...)."""
    for part in _parts(config):
        settings = part.get("quantization_config")
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        if isinstance(method, str) and method:
            return method[:40]
    return None


def _parts(config: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the config, and that of its text model where it has one."""
    inner = config.get("text_config")
    return (config, inner) if isinstance(inner, dict) else (config,)


def _stated_dtype(config: dict[str, Any]) -> str | None:
    """Return the number format that the config states; None without one."""
    for part in _parts(config):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part.get(key), str) and part[key] != "auto":
                return str(part[key])
    return None
