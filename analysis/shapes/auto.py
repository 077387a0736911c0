"""Which preset a trace would be of: `--model auto` says so, and takes no shapes from it.

In: what is read of a phase. Out: a sentence that names the presets that the trace does not
contradict, by what they were told, and how sure that is: sure, likely or possible.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.shapes.clues import POSSIBLE, clues_of
from prunescope.analysis.shapes.items import ATTENTION, Item
from prunescope.analysis.shapes.ranks import degrees
from prunescope.analysis.shapes.trial import Traced, Trial
from prunescope.analysis.shapes.values import ModelConfig
from prunescope.analysis.shapes.workload import GivenWorkload
from prunescope.taxonomy.dtypes import dtype as our_dtype
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape

AUTO = "auto"


def guess(
    traced: Traced, workload: GivenWorkload, device: Device | None, steps: dict[int, list[Item]]
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
    clues = {name: clues_of(name, preset_config(name), trial) for name, trial in found.items()}
    most = max(one.weight for one in clues.values())
    # Of several that fit, the one that the trace names, or whose modules it holds.
    ahead = [name for name, one in clues.items() if one.weight == most]
    if len(ahead) > 1:
        return (
            f"--model auto: {', '.join(ahead)} are each {POSSIBLE}, by "
            f"{', '.join(clues[ahead[0]].said)}: give the one that it is with --model"
        )
    (name,) = ahead
    rivals = [other for other in found if other != name]
    others = f"{', '.join(rivals)} would fit its sizes" if rivals else "no other fits"
    return (
        f"--model auto: the trace would be of {name}, {clues[name].grade(len(rivals))} by "
        f"{', '.join(clues[name].said)}; of {len(names)} presets {others}; a fine-tuned or pruned "
        f"model of the same sizes would too: give --model {name} to take its shapes"
    )


def _fits(
    name: str,
    traced: Traced,
    workload: GivenWorkload,
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
