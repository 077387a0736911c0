"""Token dropping: prompt tokens leave after a layer; the layers behind it see fewer rows."""

from __future__ import annotations

from dataclasses import replace

from prunescope.taxonomy.applies import NO, YES, Applies, no_parts
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.family import Family, FamilyPoint, Knob, pattern
from prunescope.taxonomy.keep import kept_count
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def ranked(shape: ModelShape) -> range:
    """After how many layers tokens can be dropped: an attention has to stand before."""
    order = shape.order or "f" * shape.layers
    first = next((i for i, letter in enumerate(order) if letter != "m"), shape.layers)
    return range(first + 1, shape.layers)


def checked(after: int, valid: range) -> int:
    """`after` itself. Raises PrunescopeError where it is no `valid` number of layers."""
    if after in valid:
        return after
    last = valid.stop - 1
    hint = f"an attention ranks tokens: they can be dropped after {valid.start} to {last} layers"
    if not valid:
        hint = "no attention stands before the last layer to rank the tokens"
    raise PrunescopeError(f"after={after}, but the model has {valid.stop} layers", hint=hint)


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Layers 0..after-1 as dense, the others, mixers too, on max(1, int(S·p)) tokens; their caches
    are as much shorter.

    Raises PrunescopeError where no attention stands before layer `after` to rank the tokens.
    """
    if point.sparsity == 0:
        return [dense_plan(shape, work)]
    after = checked(int(point.knobs["after"]), ranked(shape))
    left = kept_count(work.prompt_len, point.sparsity)
    gone = work.prompt_len - left
    context = None if work.context is None else max(1, work.context - gone)
    short = replace(work, prompt_len=left, context=context)
    stacks = ((range(after), work), (range(after, shape.layers), short))
    return [
        replace(
            dense_plan(shape.part(layers), one),
            attention_layers=len(layers),
            mlp_layers=len(layers),
        )
        for layers, one in stacks
    ]


def applies(traits: Traits) -> Applies:
    """To tokens behind an attention that ranks them."""
    if traits.shape is None:
        return Applies(NO, "no attention ranks its tokens")
    if not traits.mixer:
        return Applies(YES)
    after = ranked(traits.shape)
    if not after:
        return Applies(NO, "no attention stands before the last layer to rank its tokens")
    where = f"after {after.start} to {after.stop - 1} layers, ranked by the attention before"
    behind = f"{traits.mixer} behind keeps the state of the tokens that go on"
    return Applies(YES, f"{where}; {behind}")


FAMILY = Family(
    id="token-drop",
    title="Token dropping",
    dynamics="dynamic",
    axes=pattern("M M M M M M"),
    unit="prompt tokens, after a layer",
    cuts=("tokens",),
    applies=applies,
    not_implemented=no_parts,
    mixers="rows",
    scored_in="decode",
    methods=("LazyLLM", "FastV"),
    plans=plans,
    extension=True,
    knobs={"after": Knob(2, "layers that still see every token")},
    adds=("reduction", "routing", "gather_scatter"),
    keeps_weights=True,
    calibration="input",
)
