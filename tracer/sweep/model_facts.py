"""What is known of a model before it is loaded: its config and its dimensions.

In: the name of a sweep's model. Out: a config (empty where only loading it would tell), a shape.
"""

from __future__ import annotations

import json
from typing import Any

from prunescope.taxonomy.arguments import home_path
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape


def shape_of(model: str) -> ModelShape | None:
    """The dense dimensions, or None where they are not known before the model is loaded."""
    try:
        return ModelShape.from_config(config_of(model))
    except PrunescopeError:
        return None


def config_of(model: str) -> dict[str, Any]:
    """A model's config without its weights; empty where only loading it would tell."""
    name = model.lower()
    if name in preset_names():
        return preset_config(name)
    folder = home_path(model)
    if name.endswith(".gguf") or not folder.is_dir():
        from prunescope.tracer.model.load import DEMO, demo_file

        if name == DEMO:
            folder = demo_file()
        if folder.suffix != ".gguf" or not folder.is_file():
            return {}
        from prunescope.tracer.model.load import gguf_folder

        folder = gguf_folder(folder)
    try:
        plain: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return plain
