"""A checkpoint whose layers differ in their number of experts under one config, as DiEP and EvoESAP
write them.

In: the files of a checkpoint and its config. Out: a model whose layers have the stored experts. It
is loaded with zeros for the experts that a layer lacks, which are then dropped.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prunescope.taxonomy.config import EXPERTS
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.stored_layers import shape_of_weights
from prunescope.taxonomy.stored_tensors import stored_tensors
from prunescope.taxonomy.words import spread
from prunescope.tracer.model.experts import find_mixtures
from prunescope.tracer.model.logits import probe
from prunescope.tracer.model.uneven import weight_files

_NUMBERED = re.compile(r"(?<=\bexperts\.)(\d{1,5})(?=\.)")


def uneven_experts(folder: Path, config: Any) -> dict[int, int]:
    """The experts of each layer that has some, by the stored weights; empty where all are equal, or
    where a router has rows for more of them than are stored."""
    try:
        written = ModelShape.from_config(config.to_dict())
    except PrunescopeError:
        return {}
    stored = stored_tensors(folder / "config.json") if written.experts else None
    if stored is None or stored.problem or not stored.complete:
        return {}
    found, _ = shape_of_weights(written, stored)
    counts = {
        number: found.layer(number).experts
        for number, letter in enumerate(found.order and found.layout)
        if letter.isupper()
    }
    routed = {
        (place.layer, size[0])
        for name, size in stored.shapes.items()
        if (place := locate(name.rpartition(".")[0])).role == "router" and len(size) == 2
    }
    whole = counts.items() <= routed
    return counts if whole and len(set(counts.values())) > 1 else {}


def load_uneven_experts(
    folder: Path, config: Any, counts: Mapping[int, int], options: dict[str, Any]
) -> Any:
    """The model of a folder for which `uneven_experts` gave `counts`; `options` as for
    from_pretrained.

    Raises PrunescopeError for a router that is not understood, and a model that does not run.
    """
    most, config = max(counts.values()), copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    for name in EXPERTS:
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, most)
    state: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        state |= load_file(file)
    model = AutoModelForCausalLM._model_mapping[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=dict(_filled(state, counts, most)),
        **{"dtype": "auto", **{k: v for k, v in options.items() if k != "local_files_only"}},
    )
    with torch.no_grad():
        for mixture in find_mixtures(model):
            if counts[mixture.layer] < mixture.total:
                mixture.keep(range(counts[mixture.layer]))
    probe(model.eval(), "with layers of different numbers of experts")
    return model


def _filled(
    state: Mapping[str, torch.Tensor], counts: Mapping[int, int], most: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint, those of experts and routers with zeros up to `most` experts."""
    for name, tensor in state.items():
        place = locate(name.rpartition(".")[0])
        if place.role == "shared_expert" or "experts." not in name and place.role != "router":
            yield name, tensor
            continue
        own = counts.get(place.layer if place.layer is not None else -1, most)
        if (number := _NUMBERED.search(name)) is not None:
            yield name, tensor
            if int(number[1]) == 0:
                for extra in range(own, most):
                    yield _NUMBERED.sub(str(extra), name), torch.zeros_like(tensor)
        else:
            yield name, _with_zeros(tensor, own, most)


def _with_zeros(tensor: torch.Tensor, own: int, most: int) -> torch.Tensor:
    """With zeros along the axis of the experts: the first, or that of a row [1, E]."""
    axis = 1 if tensor.shape == (1, own) else 0
    if own == most or not tensor.dim() or tensor.shape[axis] != own:
        return tensor
    missing = list(tensor.shape)
    missing[axis] = most - own
    return torch.cat([tensor, tensor.new_zeros(missing)], axis)


def note(counts: Mapping[int, int]) -> str:
    """The note of a run on such a model."""
    numbers = spread(min(counts.values()), max(counts.values()))
    return f"layers differ in their experts: {numbers} in {len(counts)} layers"
