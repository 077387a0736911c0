"""How each pruning family is realised on a Hugging Face model: one file a family, found by name.

In: a model and a Point. Out: Applied, the pruned model and what was done to it.
Exports: `family_ids`, `pruner`, `family_point`, Applied; `method` (the words of --method),
`user_method` (a user's own), `width` (cuts heads and channels for the families of widths; how
many of them stay is in taxonomy/keep.py).

To do what a family of `taxonomy/families/` says, write a file of its name here (its id with `_` for
`-`) and nothing else. The file holds one public function
    def prune(model: PreTrainedModel, point: Point) -> Applied
- It gets a deep copy of the dense model, on its device and in its dtype, with gradients off, and
  may change it in place or return another module.
- It draws with `draw(...)` or `tracer.calibration.scores` alone, so that a seed prunes the same
  parts everywhere, and takes its roundings from `taxonomy.keep`. Knobs are those of the family in
  taxonomy, typed and filled in. A calibrated point chooses by `tracer.calibration.collect.collect`.
- New modules have names whose role `taxonomy.roles.locate` knows; work that pruning adds to a
  module happens inside that module's forward, so that its kernels get layer and role.
- New tensors are contiguous and of the model's dtype. `model.config` stays true: the cache is
  built from it.
- It records what was kept. A model that it cannot prune is a PrunescopeError that says why.
- A module that decides at run time counts what it did: see `Counting`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.families import families, family
from prunescope.taxonomy.run_blocks import ModuleCounts, Record
from prunescope.tracer.calibration.point import Point

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from prunescope.tracer.routing.learning import Learner


@dataclass(kw_only=True)
class Applied:
    """A pruned model and what was done to it."""

    model: torch.nn.Module
    # Into run.json as `pruning`: "kept": {...} dimensions per layer, "notes": [...], and "sparsity"
    # (nominal) where it is not the point's. Plain JSON values.
    record: Record
    layer_map: list[int] | None = None  # entry i: the dense layer that layer i was
    # Which indices were kept, by module name: for checks, not written to run.json.
    kept: dict[str, list[int]] = field(default_factory=dict)
    # Routers that recovery training can teach; see `tracer.routing.learning`.
    learners: list[Learner] = field(default_factory=list)


class Pruner(Protocol):
    """A family's module."""

    def prune(self, model: PreTrainedModel, point: Point) -> Applied:
        """Prune `model`, which is the caller's to give away."""
        ...


class Counting(Protocol):
    """A module of a dynamic family. The census calls this before and after the profiled steps."""

    def prunescope_stats(self) -> ModuleCounts:
        """What was active since the last call, and start anew.

        An entry of `active` and of `total` a forward. Keep counts as tensors until then: reading
        one in `forward` would stop the device.
        """
        ...


def family_ids() -> tuple[str, ...]:
    """The ids of all families that can be realised, sorted. Imports none of them."""
    known = {one.id for one in families()}
    files = (module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(known.intersection(files)))


def pruner(family_id: str) -> Pruner:
    """The module of a family. Raises PrunescopeError with the nearest names."""
    if family_id not in family_ids():
        refuse_theory_alone(family_id)
        raise PrunescopeError(
            f"no pruning method is called {family_id!r}",
            hint=f"nearest: {nearest(family_id, family_ids())}",
        )
    module: Any = importlib.import_module(f"{__name__}.{family_id.replace('-', '_')}")
    return module


def refuse_theory_alone(family_id: str) -> None:
    """Raises PrunescopeError for a family that nothing here can prune by."""
    if any(one.id == family_id and one.theory_alone for one in families()):
        raise PrunescopeError(
            f"{family_id} cannot be traced: no kernel that could be called does it",
            hint="`prunescope predict` knows its theory; a run of your own kernels: "
            "prunescope.capture",
        )


def family_point(family_id: str, request: Point) -> Point:
    """`request` with its knobs typed and filled in. Raises PrunescopeError on an unknown knob."""
    knobs = family(family_id).point(request.sparsity, request.knobs).knobs
    return replace(request, knobs=knobs)
