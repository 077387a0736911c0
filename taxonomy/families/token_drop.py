"""Token dropping: prompt tokens leave after a layer; the layers behind it see fewer rows."""

from __future__ import annotations

from dataclasses import replace

from prunescope.taxonomy.applies import NO, YES, Applies, no_parts
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.arguments import whole_number
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


def steps(shape: ModelShape, point: FamilyPoint) -> list[tuple[int, float]]:
    """(layer after which tokens leave, share of all tokens gone from there on), in order. With a
    schedule of n layers each drops the same share of those left, so 1 − (1 − s)^(i/n) are gone
    after the i-th.

    Raises PrunescopeError for layers that are no ascending whole numbers, or where no attention
    stands before one of them to rank the tokens.
    """
    schedule, valid = str(point.knobs.get("schedule", "")), ranked(shape)
    if not schedule:
        return [(checked(int(point.knobs["after"]), valid), point.sparsity)]
    numbers = [whole_number(part) for part in schedule.split(",")]
    layers = [number for number in numbers if number is not None]
    if len(layers) < len(numbers) or layers != sorted(set(layers)):
        raise PrunescopeError(
            f"schedule={schedule} is no ascending list of layers",
            hint="for example --set schedule=8,16,24",
        )
    left = 1 - point.sparsity
    shares = [1 - left ** (i / len(layers)) for i in range(1, len(layers))]
    return list(zip([checked(n, valid) for n in layers], [*shares, point.sparsity], strict=True))


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Layers 0..after-1 as dense, the others, mixers too, on max(1, int(S·p)) tokens; their caches
    are as much shorter. With a schedule the tokens leave in steps.

    Raises PrunescopeError as `steps` does.
    """
    if point.sparsity == 0:
        return [dense_plan(shape, work)]
    drops = steps(shape, point)
    ends = [*(after for after, _ in drops[1:]), shape.layers]
    stacks = [(range(drops[0][0]), work)]
    for (after, gone), end in zip(drops, ends, strict=True):
        stacks.append((range(after, end), _shorter(work, gone)))
    return [
        replace(
            dense_plan(shape.part(layers), one),
            attention_layers=len(layers),
            mlp_layers=len(layers),
        )
        for layers, one in stacks
    ]


def _shorter(work: Workload, gone: float) -> Workload:
    """The workload of layers that a share `gone` of the prompt does not reach."""
    left = kept_count(work.prompt_len, gone)
    context = work.context
    if context is not None:
        context = max(1, context - (work.prompt_len - left))
    return replace(work, prompt_len=left, context=context)


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
    knobs={
        "after": Knob(2, "layers that still see every token"),
        "schedule": Knob(
            "",
            "layers after which tokens leave in steps, as 8,16,24, each time the same share of "
            "those left (LazyLLM, PyramidDrop), in predict; empty: all at once",
            predicted_only=True,
        ),
    },
    adds=("reduction", "routing", "gather_scatter"),
    keeps_weights=True,
    calibration="input",
)
