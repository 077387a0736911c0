"""A dense forward of any architecture with rows, keys and tokens of mixers taken out by hooks: what
the dynamic families must equal there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from prunescope.taxonomy.roles import locate
from prunescope.tracer.capture.weight_stats import dynamic_stats
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.residual.sublayers import roots
from tests.tracer.dynamic_reference import assert_logits, prune, recorded, steps, tokens

PROMPT, ALL = 19, 21  # beyond the windows of 8


def assert_less(model: Any, dense: Any, stats: Any) -> None:
    """Fewer rows, keys or channels ran than there are; every weight of the dense model stays."""
    assert sum(sum(row.active) for row in stats.values()) < sum(
        sum(row.total) for row in stats.values()
    )
    added = model.state_dict().keys() - dense.state_dict().keys()
    assert not dense.state_dict().keys() - model.state_dict().keys()
    assert all(".router." in name for name in added)


def assert_skipped(dense: Any, leave: str) -> None:
    ids = tokens(2, ALL)
    model = prune("dynamic-depth", dense, 0.5, exit=leave).model
    found, _ = steps(model, ids, PROMPT)
    stats = dynamic_stats(model)
    assert_less(model, dense, stats)
    ran = {locate(path).layer: row.active for path, row in stats.items()}
    counts = {sum(row[t] for row in ran.values()) for t in range(ALL - PROMPT + 1)}
    assert counts <= set(range(len(ran) + 1))

    def rows(layer: int, _part: str) -> torch.Tensor:
        flags = [ran[layer][0]] * PROMPT + ran[layer][1:]
        return torch.tensor(flags).bool().expand(2, -1)

    def seen(layer: int) -> torch.Tensor:
        return rows(layer, "")[:, None, None] | torch.eye(ALL).bool()

    def fed(layer: int) -> torch.Tensor:
        return rows(layer, "")

    assert_logits(found, masked(dense, ids, rows=rows, seen=seen, fed=fed), PROMPT)


def assert_dropped(dense: Any, after: int) -> None:
    ids = tokens(2, ALL)
    model = prune("token-drop", dense, 0.5, after=after).model
    kept = recorded(model, f".{after}.router")
    found, _ = steps(model, ids, PROMPT)
    assert_less(model, dense, dynamic_stats(model))
    (((_, places),),) = [calls[:1] for calls in kept.values()]
    stays = torch.ones(2, ALL, dtype=torch.bool)
    stays[:, :PROMPT] = False
    stays.scatter_(1, places, True)
    assert int(stays.sum()) == 2 * (9 + ALL - PROMPT)  # int(19 x .5) and the answer

    def seen(layer: int) -> torch.Tensor:
        return stays[:, None, None] if layer >= after else torch.ones(1, 1, 1, ALL).bool()

    def fed(layer: int) -> torch.Tensor:
        return stays if layer >= after else torch.ones(2, ALL).bool()

    wanted = masked(dense, ids, seen=seen, fed=fed)
    if found[0].shape[1] == PROMPT:  # GPT-2 gives its hidden states the prompt's shape
        found[0] = torch.stack([found[0][b, places[b]] for b in range(2)])
    assert_logits(found, torch.stack([wanted[b, stays[b]] for b in range(2)]), 9)


@torch.no_grad()
def masked(
    model: Any,
    ids: torch.Tensor,
    *,
    rows: Callable[[int, str], torch.Tensor] | None = None,
    seen: Callable[[int], torch.Tensor] | None = None,
    fed: Callable[[int], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Logits [B, L, V] of the dense model, where sublayers put out zeros for all tokens but
    `rows(layer, "attention" | "mlp")`, [B, L], queries see no keys but `seen(layer)`, and mixers
    no tokens but `fed(layer)`, [B, L], equally many of each sequence."""
    name, layers = decoder_layers(model)
    handles = []
    for index, layer in enumerate(layers):
        paths = roots(layer, f"{name}.{index}")
        for part, path in [(kind, at) for kind in paths for at in paths[kind]]:
            module = model.get_submodule(path)
            mixes = locate(path).scope == "mixer"
            if not _weighs(module):
                continue
            if mixes and fed is not None:
                handles += _fed(module, fed(index))
            if rows is not None and not mixes:
                handles.append(module.register_forward_hook(_zeroed(rows(index, part))))
            if seen is not None and part == "attention" and not mixes:
                hook = _hidden(seen(index))
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    logits: torch.Tensor = model(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def _fed(module: torch.nn.Module, active: torch.Tensor) -> list[Any]:
    """Hooks by which a mixer gets the active tokens [B, L] alone, and puts out zeros for others."""

    def before(_module: Any, args: Any, arguments: dict[str, Any]) -> Any:
        if not bool(active.any()):
            return args, arguments
        hidden = args[0] if args else arguments["hidden_states"]
        only = hidden[active].view(hidden.shape[0], -1, hidden.shape[-1])
        arguments = {key: value for key, value in arguments.items() if key != "hidden_states"}
        return (only, *args[1:]), arguments

    def after(_module: Any, _args: Any, output: Any) -> Any:
        whole = output.new_zeros(*active.shape, output.shape[-1])
        if bool(active.any()):
            whole[active] = output.flatten(0, 1)
        return whole

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]


def _weighs(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _zeroed(active: torch.Tensor) -> Any:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        only = torch.where(active.reshape(*first.shape[:-1], 1), first, 0.0)
        return (only, *output[1:]) if isinstance(output, tuple) else only

    return hook


def _hidden(seen: torch.Tensor) -> Any:
    def hook(module: Any, args: Any, arguments: dict[str, Any]) -> Any:
        given = arguments.get("attention_mask")
        allowed = torch.ones(ALL, ALL).tril().bool()
        if given is not None:
            allowed = given if given.dtype == torch.bool else given == 0
        mask: torch.Tensor = allowed & seen
        mask = mask.expand(2, -1, -1, -1) if mask.dim() == 4 else mask.expand(2, 1, -1, -1)
        if module.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return args, {**arguments, "attention_mask": mask}

    return hook
