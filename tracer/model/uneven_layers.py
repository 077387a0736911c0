"""Checkpoints whose layers differ under one config, in width or in their number of experts.

LLM-Pruner and FLAP write layers of different widths; DiEP and EvoESAP write layers with different
numbers of experts. In: the files of a checkpoint and its config, which describes the widest layer.
Out: a model with projections of the stored shapes, where only attention and MLP matrices may
differ, by whole heads; or one whose layers have the stored experts. The latter is loaded with zeros
for the experts that a layer lacks, which are then dropped.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from prunescope.taxonomy.configs.config_sizes import EXPERTS
from prunescope.taxonomy.configs.stored_tensors import stored_tensors
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.stored_layers import shape_of_weights
from prunescope.taxonomy.witnesses import read_shape
from prunescope.taxonomy.words import spread
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.model.logits import probe
from prunescope.tracer.model.mixtures import find_mixtures

_CUT = ("q", "k", "v", "o", "gate", "up", "down")
_NUMBERED = re.compile(r"(?<=\bexperts\.)(\d{1,5})(?=\.)")
Shapes = dict[str, tuple[int, ...]]


def differing_shapes(folder: Path, config: Any) -> Shapes:
    """Return the stored shapes of layer matrices that differ from the config.

    The result is empty if none differs, or if there is a difference that pruning of widths does not
    explain.
    """
    stored = stored_shapes(folder)
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config).state_dict()
    shapes = {
        name: shape
        for name, shape in stored.items()
        if name in expected and tuple(expected[name].shape) != shape
    }
    # FLAP adds biases to compensate for removed parts.
    biases = [n for n in stored.keys() - expected.keys() if n.endswith(".bias")]
    shapes |= {name: stored[name] for name in biases}
    places = [locate(name.rpartition(".")[0]) for name in shapes]
    is_explained = all(place.layer is not None and place.role in _CUT for place in places)
    return shapes if is_explained else {}


def load_uneven(folder: Path, config: Any, shapes: Shapes, options: dict[str, Any]) -> Any:
    """Load the model of a folder for which `differing_shapes` returned `shapes`.

    `options` are those of from_pretrained.

    Raises:
        PrunescopeError: A layer keeps parts of heads, weights are missing, or the model does
            not run.
    """
    kept = {k: v for k, v in options.items() if k in ("attn_implementation", "dtype")}
    kept.setdefault("dtype", config.dtype or torch.float32)
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config, **kept)
    for name, shape in shapes.items():
        path, _, kind = name.rpartition(".")
        module = model.get_submodule(path)
        if not isinstance(module, nn.Linear):
            raise _unsupported(folder, f"{path} is not a linear module")
        setattr(module, kind, nn.Parameter(torch.empty(shape, dtype=module.weight.dtype)))
        module.out_features, module.in_features = module.weight.shape
    for path in {name.rpartition(".")[0].rpartition(".")[0] for name in shapes}:
        _count_heads(folder, model, path)
    report = model.load_state_dict(_tensors(folder), strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = [name for name in report.missing_keys if name not in tied]
    if missing or report.unexpected_keys:
        name = [*missing, *report.unexpected_keys][0]
        raise _unsupported(folder, f"{name[:80]} does not fit")
    model.tie_weights()
    probe(model.eval(), "with layers of different widths")
    return model


def _count_heads(folder: Path, model: Any, path: str) -> None:
    """Set the number of query heads per KV head of an attention whose projections were cut."""
    module = model.get_submodule(path)
    if not hasattr(module, "q_proj"):
        return
    size = int(getattr(module, "head_dim", 0) or text_config(model).head_dim)
    q, k, v, o = (getattr(module, f"{name}_proj") for name in "qkvo")
    rows = (q.out_features, k.out_features)
    if any(n % size for n in rows) or rows[0] % rows[1] or k.out_features != v.out_features:
        raise _unsupported(
            folder, f"{path} holds {rows[0]} query and {rows[1]} key rows: parts of heads"
        )
    if o.in_features != rows[0]:
        raise _unsupported(folder, f"{path}: o reads {o.in_features} features, q writes {rows[0]}")
    module.num_key_value_groups = rows[0] // rows[1]


def _files(folder: Path) -> list[Path]:
    """List the safetensors files of a checkpoint."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    names = set(dict(json.loads(index.read_bytes())["weight_map"]).values())
    return [folder / str(name) for name in sorted(names)]


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint, by name."""
    return {name: tensor for file in _files(folder) for name, tensor in load_file(file).items()}


def stored_shapes(folder: Path) -> Shapes:
    """Read the shapes of all tensors of a checkpoint, by name, without their numbers."""
    shapes: Shapes = {}
    for file in _files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                shapes[name] = tuple(opened.get_slice(name).get_shape())
    return shapes


def widths_note(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Write the note of a run on a model whose layers differ in width."""
    layers = {locate(name.rpartition(".")[0]).layer for name in shapes}
    numbers = sum(math.prod(shape) for shape in shapes.values())
    return f"{len(layers)} layers differ in width ({len(shapes)} tensors, {numbers} numbers)"


def uneven_experts(folder: Path, config: Any) -> dict[int, int]:
    """Return the stored number of experts of each layer that has some.

    The result is empty where all layers have equally many, or where a router has rows for more
    experts than are stored.
    """
    try:
        written = read_shape(config.to_dict())
    except PrunescopeError:
        return {}
    stored = stored_tensors(folder / "config.json") if written.experts.count else None
    if stored is None or stored.problem or not stored.complete:
        return {}
    actual, _ = shape_of_weights(written, stored)
    counts = {
        number: actual.layer(number).experts
        for number, letter in enumerate(actual.order and actual.layout)
        if letter.isupper()
    }
    routed = {
        (place.layer, size[0])
        for name, size in stored.shapes.items()
        if (place := locate(name.rpartition(".")[0])).role == "router" and len(size) == 2
    }
    is_whole = counts.items() <= routed
    return counts if is_whole and len(set(counts.values())) > 1 else {}


def load_uneven_experts(
    folder: Path, config: Any, counts: Mapping[int, int], options: dict[str, Any]
) -> Any:
    """Load the model of a folder for which `uneven_experts` returned `counts`.

    `options` are those of from_pretrained.

    Raises:
        PrunescopeError: A router is not understood, or the model does not run.
    """
    most, config = max(counts.values()), copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    for name in EXPERTS:
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, most)
    model = AutoModelForCausalLM._model_mapping[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=dict(_padded(_tensors(folder), counts, most)),
        **{"dtype": "auto", **{k: v for k, v in options.items() if k != "local_files_only"}},
    )
    with torch.no_grad():
        for mixture in find_mixtures(model):
            if counts[mixture.layer] < mixture.total:
                mixture.keep(range(counts[mixture.layer]))
    probe(model.eval(), "with layers of different numbers of experts")
    return model


def _padded(
    state: Mapping[str, Tensor], counts: Mapping[int, int], most: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a checkpoint, with zeros for the experts that a layer lacks.

    Every layer then has `most` experts.
    """
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


def _with_zeros(tensor: Tensor, own: int, most: int) -> Tensor:
    """Pad with zeros along the axis of the experts: the first, or the second of a row [1, E]."""
    axis = 1 if tensor.shape == (1, own) else 0
    if own == most or not tensor.dim() or tensor.shape[axis] != own:
        return tensor
    missing = list(tensor.shape)
    missing[axis] = most - own
    return torch.cat([tensor, tensor.new_zeros(missing)], axis)


def experts_note(counts: Mapping[int, int]) -> str:
    """Write the note of a run on a model whose layers differ in their number of experts."""
    numbers = spread(min(counts.values()), max(counts.values()))
    return f"layers differ in their experts: {numbers} in {len(counts)} layers"


def _unsupported(folder: Path, why: str) -> PrunescopeError:
    """Make the error for a checkpoint whose shapes cannot be loaded."""
    return PrunescopeError(
        f"{folder.name} stores other shapes than its config, and {why}",
        hint="layers may differ by whole heads and MLP channels; otherwise prune with "
        "--method package.module:function, or capture it with prunescope.capture",
    )
