"""Which preset a trace would be of: `--model auto` says so, and takes no shapes from it.

In: what is read of a phase. Out: a sentence that names the presets that the trace does not
contradict, and by what they were told.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.shapes.items import ATTENTION, Item
from prunescope.analysis.shapes.ranks import degrees
from prunescope.analysis.shapes.trial import ModelConfig, Traced, Trial
from prunescope.analysis.shapes.workload import Workload
from prunescope.taxonomy.dtypes import dtype as our_dtype
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape

AUTO = "auto"


def guess(
    traced: Traced, workload: Workload, device: Device | None, steps: dict[int, list[Item]]
) -> str:
    """What to say of the presets that fit."""
    every = [item for items in steps.values() for item in items]
    names = preset_names()
    found = {
        name: trial for name in names if (trial := _fits(name, traced, workload, device, steps))
    }
    if not found:
        return (
            f"--model auto: none of {len(names)} presets fits the trace ({_seen(every)}): give the "
            "model's config.json"
        )
    if len(found) > 1:
        return (
            f"--model auto: {', '.join(found)} all fit the trace ({_seen(every)}): give the one "
            "that it is with --model"
        )
    name, trial = next(iter(found.items()))
    shape = trial.model.shape
    told = [f"{shape.layers} layers"]
    placed = next(iter(trial.placed.values())).gemms
    if any(one.slot.role == "lm_head" for one in placed):
        told.append(f"a head of {shape.vocab:,} rows")
    if trial.ranks > 1:
        told.append(f"{trial.ranks} ranks")
    return (
        f"--model auto: the trace would be of {name} ({', '.join(told)}; no other of {len(names)} "
        f"presets fits; a fine-tuned or pruned model of the same sizes would too): give --model "
        f"{name} to take its shapes"
    )


def _fits(
    name: str,
    traced: Traced,
    workload: Workload,
    device: Device | None,
    steps: dict[int, list[Item]],
) -> Trial | None:
    config = preset_config(name)
    shape = ModelShape.from_config(config)
    model = ModelConfig(
        shape=shape, name=name, dtype=our_dtype(config.get("dtype")), workload=workload
    )
    every = [item for items in steps.values() for item in items]
    tried = [Trial(traced, model, device, steps, n) for n in degrees(traced.trace, every, shape)]
    return next((trial for trial in tried if not trial.problems), None)


def _seen(items: Sequence[Item]) -> str:
    layers = {item.layer for item in items if item.layer is not None}
    attentions = sum(item.what == ATTENTION for item in items)
    return f"{len(layers)} layers" if layers else f"{attentions} attentions"
