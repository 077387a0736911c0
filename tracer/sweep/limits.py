"""Results that a sweep cannot run, found before it starts: on this machine, with this model, or as
families applied in sequence; what steps of fixed shapes (mode compile or graph) cannot show of rows
that are chosen in decode; and a model's config and dimensions, read without its weights.

In: a plan, a method, a model's name. Out: sentences, each with the number of results that it
concerns; a PrunescopeError where nothing can run; a config and a ModelShape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.sweep_files import Planned
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.sweep.plan import SweepPlan

_SHARE = 0.5  # every family has this sparsity, whatever it counts
_EAGER = "mode: eager skips them"
_HINT = "run it on a GPU, or put `mode: eager` or `compile` into a file: sweep FILE --preset NAME"


def limits_here(plan: SweepPlan) -> list[str]:
    """Sentences on what this machine or this model cannot do; empty where all of it can run."""
    feasible = [result for result in plan.results if result.problem is None]
    found = [*_of_device(plan, feasible), *_of_memory(plan, feasible)]
    return [*(f"this machine: {text}" for text in found), *_of_lengths(plan, feasible)]


def check_possible(remaining: Sequence[Planned]) -> None:
    """Raises PrunescopeError where none of the results can run on the devices of this machine."""
    from prunescope.tracer.machine.device import pick_device

    able = [result for result in remaining if result.problem is None]
    if able and pick_device("auto").type == "cpu" and all(one.mode == "graph" for one in able):
        raise PrunescopeError(
            f"all {len(able)} remaining results record CUDA graphs (mode: graph), and this "
            "machine has no GPU",
            hint=_HINT,
        )


def _of_device(plan: SweepPlan, feasible: Sequence[Planned]) -> list[str]:
    from prunescope.tracer.machine.device import pick_device

    if pick_device("auto").type != "cpu":
        return []
    found = [
        f"{one.id}: no matrix units (tensor cores) for 2:4 here: zeros in dense tensors run instead"
        for one in families()
        if one.without_sparse_units and one.id in plan.config.families
    ]
    graphs = sum(result.mode == "graph" for result in feasible)
    if graphs:
        found.append(
            f"{graphs} of {len(plan.results)} results record CUDA graphs (mode: graph), and this "
            "machine has no GPU: they will fail; mode: compile runs on a CPU"
        )
    return found


def _of_memory(plan: SweepPlan, feasible: Sequence[Planned]) -> list[str]:
    """The weights of both models, or the memory that steps of some results need in addition."""
    from prunescope.tracer.machine.device import free_bytes, pick_device, total_bytes

    shape = shape_without_weights(plan.config.model)
    if shape is None:
        return []
    device = pick_device("auto")
    memory = total_bytes() if device.type == "cpu" else free_bytes(device)
    size = ITEMSIZE.get(dtype_name(plan.config.dtype) or "bf16", 2)
    weights = 1.5 * size * shape.parameters()  # of the dense model, and of half of it
    if weights > memory:
        return [
            f"{plan.config.model} and a pruned copy need {weights / 1e9:.1f} GB for their weights, "
            f"and this machine has {memory / 1e9:.1f} GB"
        ]
    needed = [weights + size * _step_numbers(shape, result) for result in feasible]
    large = [one for one in needed if one > memory]
    if not large:
        return []
    return [
        f"{len(large)} of {len(plan.results)} results need up to {max(large) / 1e9:.1f} GB for "
        "weights, keys, values and logits, and this machine has "
        f"{memory / 1e9:.1f} GB: they will fail"
    ]


def _step_numbers(shape: ModelShape, result: Planned) -> float:
    """Elements in the caches of both models, which are in memory together, and in one's logits."""
    tokens = result.batch * result.prompt_len
    a_token = shape.layers * (shape.attention.key_width + shape.attention.value_width)
    all_logits = result.logits == "all" and result.phase == "prefill"
    return 2 * tokens * a_token + (tokens if all_logits else result.batch) * shape.embedding.vocab


def _of_lengths(plan: SweepPlan, feasible: Sequence[Planned]) -> list[str]:
    """Prompts longer than the positions that the model was trained for."""
    config = config_without_weights(plan.config.model)
    most = config.get("max_position_embeddings")
    if not isinstance(most, int):
        return []
    longer = [result for result in feasible if result.prompt_len > most]
    if not longer:
        return []
    return [
        f"{len(longer)} of {len(plan.results)} results have prompts of up to "
        f"{max(one.prompt_len for one in longer):,} tokens, and {plan.config.model} was made for "
        f"{most:,} positions: their losses mean nothing, and a model with learnt positions fails"
    ]


def limits_of_fixed_steps(plan: SweepPlan) -> list[str]:
    """Sentences; empty where every result can be timed as the model that is scored."""
    chosen = [
        (result, sparsity)
        for result in plan.results
        if result.problem is None and result.mode != "eager" and result.phase == "decode"
        for sparsity in _row_shares(result)
    ]
    by_threshold = [one for one, _ in chosen if _by_threshold(plan, one)]
    by_count = [
        one
        for one, sparsity in chosen
        if not _by_threshold(plan, one)
        and not math.isclose(kept_count(one.batch, sparsity) / one.batch, 1 - sparsity)
    ]
    found = []
    if by_threshold:
        found.append(
            f"{len(by_threshold)} of {len(plan.results)} results decode "
            f"{_names(by_threshold)} by a threshold in steps of fixed shapes, which compute "
            "all rows and multiply by 0 or 1: never faster "
            f"by construction; {_EAGER}"
        )
    if by_count:
        found.append(
            f"{len(by_count)} of {len(plan.results)} results decode "
            f"{_names(by_count)} in steps of fixed shapes, which run "
            "max(1, int((1 − s)·B)) of B rows, a share other than 1 − s (at batch 1 all: "
            f"the dense model), and get no loss; {_EAGER}"
        )
    return found


def _names(results: Sequence[Planned]) -> str:
    return ", ".join(dict.fromkeys(one.family for one in results))


def _row_shares(result: Planned) -> list[float]:
    """The sparsities of the parts of a method that choose rows."""
    routed = {one.id for one in families() if one.routes_rows}
    own = [own for name, own in method_parts(result.family) if name in routed]
    shares = [result.sparsity if one is None else number(one) for one in own]
    return [share for share in shares if share is not None]


def _by_threshold(plan: SweepPlan, result: Planned) -> bool:
    """Whether scores decide and not a number of rows: of routers that are fitted or trained, or
    where the option asks for it."""
    if plan.config.recover is not None or "choose=threshold" in result.set:
        return True
    select = result.select or plan.config.selections[0]
    return read_selection(select) == "importance"


def check_together(method: str) -> None:
    """Raises PrunescopeError where the families of `FAMILY:S+FAMILY` cannot follow one another.
    Their sparsities are not looked at: they depend on the model."""
    problem = _problem_of("+".join(name for name, _ in method_parts(method)))
    if problem is not None:
        raise PrunescopeError(
            f"{method} is infeasible: {problem}",
            hint="families are applied from left to right: another order may work; else sweep them "
            "one by one",
        )


@cache
def _problem_of(names: str) -> str | None:
    """Why families cannot follow one another. What one leaves of a layer (factors in place of a
    matrix, a router in an attention) may be nothing that the next one finds its way in, whatever
    the model: it is tried on the smallest preset, which takes a second."""
    import torch

    from prunescope.tracer.capture.application import apply_request
    from prunescope.tracer.model.load import load_model

    shapes = {name: ModelShape.from_config(preset_config(name)) for name in preset_names()}
    model = min(shapes, key=lambda name: shapes[name].parameters())
    request = TraceRequest(model, method=names, sparsity=_SHARE, phase="prefill", prompt_len=16)
    loaded = load_model(model, dtype="float32", device=torch.device("cpu"), attn="sdpa")
    try:
        apply_request(request, loaded)
    except PrunescopeError as error:
        return f"{error.problem} (tried on {model})"
    return None


def shape_without_weights(model: str) -> ModelShape | None:
    """A model's dense dimensions; None where they are not known before it is loaded."""
    try:
        return ModelShape.from_config(config_without_weights(model))
    except PrunescopeError:
        return None


def config_without_weights(model: str) -> dict[str, Any]:
    """A model's config, read without its weights; empty where that is not possible."""
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
