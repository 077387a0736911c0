"""Repairs applied to a copy of a model or to its call, by their id.

In: a Repair of taxonomy/repairs.py and a TimedModel. Out: the repaired TimedModel; DoesNotApply
with the reason where there is nothing to repair.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from prunescope.taxonomy.repairs import Repair
from prunescope.tracer.machine.backends import backend_of
from prunescope.tracer.machine.host import num_cores
from prunescope.tracer.model.calls import keywords
from prunescope.tracer.repairs.plain.linear_maps import DoesNotApply
from prunescope.tracer.repairs.sides import (
    CalledSubject,
    FixSubject,
    TimedModel,
    TracedSubject,
)


def apply_repair(
    repair: Repair,
    spare: TimedModel,
    subject: FixSubject,
    arguments: Mapping[str, Any] | None = None,
) -> TimedModel:
    """Apply a repair to a spare copy of a model, or to the call of it.

    Args:
        repair: The repair.
        spare: The copy and its call; where the repair does not apply, it is as before.
        subject: How they run.
        arguments: Further arguments of the repair's function.

    Raises:
        DoesNotApply: There is nothing to repair; the message is the reason.
    """
    if repair.of == "call":
        return _CALLS[repair.id](spare, subject)
    function = getattr(importlib.import_module(repair.module), repair.name)
    return replace(spare, model=function(spare.model, **(arguments or {})))


def _last_logits(side: TimedModel, subject: FixSubject) -> TimedModel:
    """Keep the logits of the last position alone."""
    if not keywords(side.model)[1]:
        raise DoesNotApply(f"{type(side.model).__name__} computes the logits of every position")
    if isinstance(subject, CalledSubject):
        return _with_keywords(side, {"logits_to_keep": 1})
    assert isinstance(subject, TracedSubject)
    if "prefill" not in subject.phases or (side.call.logits or subject.request.logits) == "last":
        raise DoesNotApply("the logits of the last position alone are computed")
    return replace(side, call=replace(side.call, logits="last"))


def _no_hidden_states(side: TimedModel, subject: FixSubject) -> TimedModel:
    """Return neither hidden states nor attentions."""
    config: Any = getattr(side.model, "config", None)
    wanted = ("output_hidden_states", "output_attentions")
    in_config = [name for name in wanted if getattr(config, name, False)]
    in_call = [name for name in wanted if name in _given_keywords(side, subject)]
    if not in_config and not in_call:
        raise DoesNotApply("neither hidden states nor attentions are returned")
    for name in in_config:
        setattr(config, name, False)
    return _with_keywords(side, dict.fromkeys(in_call, False)) if in_call else side


def _given_keywords(side: TimedModel, subject: FixSubject) -> set[str]:
    """Return the arguments that a user's call turns on; those of a request turn none on."""
    given: set[str] = set()
    if not isinstance(subject, CalledSubject):
        return given

    def record(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        given.update(name for name, value in kwargs.items() if value is True)

    handle = side.model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        subject.outputs(side)
    finally:
        handle.remove()
    return given


def _no_gradients(side: TimedModel, subject: FixSubject) -> TimedModel:
    """Run a user's call in inference mode."""
    if isinstance(subject, TracedSubject) or side.call.without_gradients:
        raise DoesNotApply("no gradients are recorded")
    if not (torch.is_grad_enabled() and any(p.requires_grad for p in side.model.parameters())):
        raise DoesNotApply("no gradients are recorded")
    return replace(side, call=replace(side.call, without_gradients=True))


def _kv_cache(side: TimedModel, subject: FixSubject) -> TimedModel:
    """Turn the cache of keys and values on."""
    del subject
    model: Any = side.model
    configs = [getattr(model, name, None) for name in ("config", "generation_config")]
    if all(getattr(config, "use_cache", True) is not False for config in configs if config):
        raise DoesNotApply("keys and values are kept in a cache")
    for config in filter(None, configs):
        config.use_cache = True
    return side


def _recorded(mode: Literal["compile", "graph"]) -> Callable[[TimedModel, FixSubject], TimedModel]:
    """Return the change of a request's mode to `mode`."""

    def change(side: TimedModel, subject: FixSubject) -> TimedModel:
        if not isinstance(subject, TracedSubject):
            raise DoesNotApply("a call of one's own is not recorded here: try the code")
        if (side.call.mode or subject.request.mode) != "eager":
            raise DoesNotApply("the step is recorded already")
        if mode == "graph" and backend_of(subject.device).graph is None:
            raise DoesNotApply(f"{subject.device.type} has no graphs")
        return replace(side, call=replace(side.call, mode=mode))

    return change


def _threads(side: TimedModel, subject: FixSubject) -> TimedModel:
    """Use one thread a core, or half of those that are used."""
    used, cores = side.call.threads or torch.get_num_threads(), num_cores()
    if subject.device.type != "cpu" or used == 1:
        raise DoesNotApply("one thread is used" if used == 1 else "the step runs on a device")
    threads = cores if used > cores else max(1, used // 2)
    return replace(side, call=replace(side.call, threads=threads))


def _with_keywords(side: TimedModel, given: Mapping[str, Any]) -> TimedModel:
    """Let a model replace arguments of its calls, as a changed call would."""

    def change(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, **given}

    side.model.register_forward_pre_hook(change, with_kwargs=True)
    return side


_CALLS: dict[str, Callable[[TimedModel, FixSubject], TimedModel]] = {
    "last-logits": _last_logits,
    "no-hidden-states": _no_hidden_states,
    "no-gradients": _no_gradients,
    "kv-cache": _kv_cache,
    "static-graphs": _recorded("graph"),
    "compile": _recorded("compile"),
    "threads": _threads,
}
