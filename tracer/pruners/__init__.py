"""The pruning families on Hugging Face models: one file for each family, found by its name.

In: a model and a Point. Out: Applied, the pruned model and a record of what was done to it.
Exports: `family_ids`, `pruner`, `family_point`, Applied; `method` (parses --method), `user_method`
(a user's function).

A new family is a file in `taxonomy/families/`, a file here and a detector in `analysis/verdict/`
(docs/extending.md). The file here is named by the family's id, with `_` for `-`, and has a public
function
    def prune(model: PreTrainedModel, point: Point) -> Applied
- It gets a deep copy of the dense model, on its device and in its dtype, with gradients off, and
  may change it in place or return another module.
- Random choices use `tracer.calibration.scores` alone, so that a seed prunes the same parts on
  every machine. Rounding is in `taxonomy.keep`. The knobs are those of the family in taxonomy,
  typed and filled in. A point `uses_importance` chooses by `tracer.calibration.collect.collect`.
- New modules have names whose role `taxonomy.roles.locate` knows. Work that pruning adds to a
  module happens inside that module's forward, so that its kernels get a layer and a role.
- New tensors are contiguous and of the model's dtype. `model.config` stays true, since the cache is
  built from it.
- It records what was kept, and raises PrunescopeError with the reason for a model that it cannot
  prune.
- A module that decides at run time counts what it did: see `Counting`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.runs.run_blocks import ModuleCounts, Record
from prunescope.tracer.calibration.point import Point

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from prunescope.tracer.routing.learning import Learner


@dataclass(kw_only=True)
class Applied:
    """A pruned model and the record of what was done to it."""

    model: torch.nn.Module
    # It becomes `pruning` in run.json, in plain JSON: "kept" (dimensions per layer), "notes",
    # and the nominal "sparsity" if it differs from the point's.
    record: Record
    layer_map: list[int] | None = None  # entry i is the index of layer i in the dense model
    # The kept indices by module name, which serve checks and are not written to run.json.
    kept: dict[str, list[int]] = field(default_factory=dict)
    # The routers that recovery training can train; see `tracer.routing.learning`.
    learners: list[Learner] = field(default_factory=list)
    adapter: Any = None  # of recovery training, where it is saved unmerged


class Pruner(Protocol):
    """The module of a family."""

    def prune(self, model: PreTrainedModel, point: Point) -> Applied:
        """Prune `model`, which may be changed in place."""
        ...


class Counting(Protocol):
    """A module of a dynamic family that counts its decisions.

    `weight_stats` asks for the counts before and after profiled steps.
    """

    def prunescope_stats(self) -> ModuleCounts:
        """Return the counts since the last call: one `active` and one `total` for each forward.

        Keep counts as tensors until then: reading one in `forward` would synchronise the device.
        """
        ...


def family_ids() -> tuple[str, ...]:
    """List the ids of all families that have a pruner, sorted, without importing any of them."""
    known = {f.id for f in families()}
    files = (module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(known.intersection(files)))


def pruner(family_id: str) -> Pruner:
    """Import the module of a family.

    Args:
        family_id: The id of a family, such as those of `family_ids`.

    Returns:
        The module, which has a function `prune`.

    Raises:
        PrunescopeError: There is no such family, or it can only be predicted. The hint names
            the nearest ids.
    """
    if family_id not in family_ids():
        refuse_predicted_only(family_id)
        raise PrunescopeError(
            f"no pruning method is called {family_id!r}",
            hint=f"nearest: {nearest(family_id, family_ids())}",
        )
    module: Any = importlib.import_module(f"{__name__}.{family_id.replace('-', '_')}")
    return module


def refuse_predicted_only(family_id: str) -> None:
    """Check that a family has more than a theory.

    Raises:
        PrunescopeError: The family can be predicted and has no pruner.
    """
    if any(f.id == family_id and f.predicted_only for f in families()):
        raise PrunescopeError(
            f"{family_id} cannot be traced: no available kernel implements it",
            hint="`prunescope predict` estimates it; trace kernels of your own with "
            "prunescope.capture",
        )


def family_point(family_id: str, request: Point) -> Point:
    """Return a point with its knobs typed and filled in.

    Args:
        family_id: The family whose knobs they are.
        request: The point as it was asked for.

    Returns:
        A copy of the point with all knobs of the family.

    Raises:
        PrunescopeError: A knob is unknown, or its value can only be predicted.
    """
    chosen = family(family_id)
    knobs = chosen.point(request.sparsity, request.knobs).knobs
    for name, value in knobs.items():
        if chosen.knobs[name].predicted_only and value != chosen.knobs[name].default:
            raise PrunescopeError(
                f"{family_id} cannot be traced with {name}={value}: no pruner does so",
                hint="`prunescope predict` estimates it",
            )
    return replace(request, knobs=knobs)
