"""What a sweep cannot run or show, found before it starts.

In: a plan, a method, or the name of a model. Out: sentences, each with the number of results that
it concerns, on this machine, this model, and steps of fixed shapes (mode compile or graph); a
PrunescopeError if nothing can run, or if families cannot be applied in sequence; and the config and
dimensions of a model, read without its weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from prunescope.taxonomy.arguments import home_path, number
from prunescope.taxonomy.dtypes import ITEMSIZE
from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.family import read_selection
from prunescope.taxonomy.keep import kept_count
from prunescope.taxonomy.method_names import method_parts
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.runs.sweep_files import Planned
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.witnesses import read_shape
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.sweep.plan import SweepPlan

_SHARE = 0.5  # a sparsity that every family has
_EAGER = "mode: eager skips them"
_HINT = "run it on a GPU, or put `mode: eager` or `compile` into a file: sweep FILE --preset NAME"


def limits_here(plan: SweepPlan) -> list[str]:
    """Return sentences on what this machine or this model cannot do.

    Args:
        plan: The plan of the sweep.

    Returns:
        The sentences; empty if all of it can run.
    """
    feasible = [result for result in plan.results if result.problem is None]
    texts = [*_device_limits(plan, feasible), *_memory_limits(plan, feasible)]
    return [*(f"this machine: {text}" for text in texts), *_length_limits(plan, feasible)]


def check_possible(remaining: Sequence[Planned]) -> None:
    """Check that some of the results can run on the devices of this machine.

    Args:
        remaining: The results that are left.

    Raises:
        PrunescopeError: None of them can run.
    """
    from prunescope.tracer.machine.device import pick_device

    able = [result for result in remaining if result.problem is None]
    if (
        able
        and pick_device("auto").type == "cpu"
        and all(result.mode == "graph" for result in able)
    ):
        raise PrunescopeError(
            f"all {len(able)} remaining results record CUDA graphs (mode: graph), and this "
            "machine has no GPU",
            hint=_HINT,
        )


def _device_limits(plan: SweepPlan, feasible: Sequence[Planned]) -> Iterator[str]:
    from prunescope.tracer.machine.device import pick_device

    if pick_device("auto").type != "cpu":
        return
    for known in families():
        if known.without_sparse_units and known.id in plan.config.families:
            yield (
                f"{known.id}: no matrix units (tensor cores) for 2:4 here: zeros in dense tensors "
                "run instead"
            )
    graphs = sum(result.mode == "graph" for result in feasible)
    if graphs:
        yield (
            f"{graphs} of {len(plan.results)} results record CUDA graphs (mode: graph), and this "
            "machine has no GPU: they will fail; mode: compile runs on a CPU"
        )


def _memory_limits(plan: SweepPlan, feasible: Sequence[Planned]) -> Iterator[str]:
    """Yield a sentence on the memory of both models' weights, or of steps in addition."""
    from prunescope.tracer.machine.device import free_bytes, pick_device, total_bytes

    shape = shape_without_weights(plan.config.model)
    if shape is None:
        return
    device = pick_device("auto")
    memory = total_bytes() if device.type == "cpu" else free_bytes(device)
    itemsize = ITEMSIZE.get(dtype_name(plan.config.dtype) or "bf16", 2)
    weights = 1.5 * itemsize * shape.parameters()  # of the dense model, and of one half as large
    if weights > memory:
        yield (
            f"{plan.config.model} and a pruned copy need {weights / 1e9:.1f} GB for their weights, "
            f"and this machine has {memory / 1e9:.1f} GB"
        )
        return
    needed = [weights + itemsize * _step_numbers(shape, result) for result in feasible]
    large = [size for size in needed if size > memory]
    if large:
        yield (
            f"{len(large)} of {len(plan.results)} results need up to {max(large) / 1e9:.1f} GB for "
            f"weights, keys, values and logits, and this machine has {memory / 1e9:.1f} GB: they "
            "will fail"
        )


def _step_numbers(shape: ModelShape, result: Planned) -> float:
    """Return the elements in the caches of both models, which coexist, and in the logits of one."""
    tokens = result.batch * result.prompt_len
    a_token = shape.layers * (shape.attention.key_width + shape.attention.value_width)
    all_logits = result.logits == "all" and result.phase == "prefill"
    return 2 * tokens * a_token + (tokens if all_logits else result.batch) * shape.embedding.vocab


def _length_limits(plan: SweepPlan, feasible: Sequence[Planned]) -> Iterator[str]:
    """Yield a sentence on prompts longer than the positions that the model was trained for."""
    config = config_without_weights(plan.config.model)
    most = config.get("max_position_embeddings")
    if not isinstance(most, int):
        return
    longer = [result for result in feasible if result.prompt_len > most]
    if longer:
        yield (
            f"{len(longer)} of {len(plan.results)} results have prompts of up to "
            f"{max(result.prompt_len for result in longer):,} tokens, and {plan.config.model} was "
            f"made for {most:,} positions: their losses mean nothing, and a model with learnt "
            "positions fails"
        )


def limits_of_fixed_steps(plan: SweepPlan) -> list[str]:
    """Return sentences on results whose fixed steps differ from the model that is scored.

    Args:
        plan: The plan of the sweep.

    Returns:
        The sentences; empty if every result can be timed as the model that is scored.
    """
    chosen = [
        (result, sparsity)
        for result in plan.results
        if result.problem is None and result.mode != "eager" and result.phase == "decode"
        for sparsity in _row_shares(result)
    ]
    by_threshold = [result for result, _ in chosen if _chooses_by_threshold(plan, result)]
    by_count = [
        result
        for result, sparsity in chosen
        if not _chooses_by_threshold(plan, result)
        and not math.isclose(kept_count(result.batch, sparsity) / result.batch, 1 - sparsity)
    ]
    limits = []
    if by_threshold:
        limits.append(
            f"{len(by_threshold)} of {len(plan.results)} results decode "
            f"{_family_names(by_threshold)} by a threshold in steps of fixed shapes, which compute "
            "all rows and multiply by 0 or 1: never faster "
            f"by construction; {_EAGER}"
        )
    if by_count:
        limits.append(
            f"{len(by_count)} of {len(plan.results)} results decode "
            f"{_family_names(by_count)} in steps of fixed shapes, which run "
            "max(1, int((1 − s)·B)) of B rows, a share other than 1 − s (at batch 1 all: "
            f"the dense model), and get no loss; {_EAGER}"
        )
    return limits


def _family_names(results: Sequence[Planned]) -> str:
    return ", ".join(dict.fromkeys(result.family for result in results))


def _row_shares(result: Planned) -> list[float]:
    """Return the sparsities of the parts of a method that choose rows."""
    routed = {known.id for known in families() if known.routes_rows}
    shares = [
        result.sparsity if own is None else number(own)
        for name, own in method_parts(result.family)
        if name in routed
    ]
    return [share for share in shares if share is not None]


def _chooses_by_threshold(plan: SweepPlan, result: Planned) -> bool:
    """Return whether scores decide instead of a number of rows.

    Routers that are fitted or trained decide so, and others if their option asks for it.
    """
    if plan.config.recover is not None or "choose=threshold" in result.set:
        return True
    select = result.select or plan.config.selections[0]
    return read_selection(select) == "importance"


def check_together(method: str) -> None:
    """Check that the families of `FAMILY:S+FAMILY` can be applied one after another.

    Limitations: their sparsities are not checked, as these depend on the model.

    Args:
        method: The method, with families joined by +.

    Raises:
        PrunescopeError: They cannot follow one another.
    """
    problem = _combination_problem("+".join(name for name, _ in method_parts(method)))
    if problem is not None:
        raise PrunescopeError(
            f"{method} is infeasible: {problem}",
            hint="families are applied from left to right: another order may work; else sweep them "
            "one by one",
        )


@cache
def _combination_problem(names: str) -> str | None:
    """Return why families cannot follow one another; None if they can.

    What a family leaves of a layer (factors instead of a matrix, a router in an attention) may be
    something that the next family cannot prune, whatever the model. The smallest preset is pruned
    to find out, which takes a second.
    """
    import torch

    from prunescope.tracer.capture.application import apply_request
    from prunescope.tracer.model.load import load_model

    shapes = {name: read_shape(preset_config(name)) for name in preset_names()}
    model = min(shapes, key=lambda name: shapes[name].parameters())
    request = TraceRequest(model, method=names, sparsity=_SHARE, phase="prefill", prompt_len=16)
    loaded = load_model(model, dtype="float32", device=torch.device("cpu"), attn="sdpa")
    try:
        apply_request(request, loaded)
    except PrunescopeError as error:
        return f"{error.problem} (tried on {model})"
    return None


def shape_without_weights(model: str) -> ModelShape | None:
    """Return the dense dimensions of a model; None if they are unknown before it is loaded."""
    try:
        return read_shape(config_without_weights(model))
    except PrunescopeError:
        return None


def config_without_weights(model: str) -> dict[str, Any]:
    """Return the config of a model, read without its weights; empty if that is not possible."""
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
