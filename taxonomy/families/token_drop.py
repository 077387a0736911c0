"""Token dropping: prompt tokens leave after a layer; the layers behind it see fewer rows."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from prunescope.taxonomy.applies import CROSSED, NO, YES, Applies, no_parts
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.arguments import whole_number
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.family import Family, FamilyPoint, Knob, Value, pattern, recorded
from prunescope.taxonomy.keep import kept_count
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan

# The roles of the ops that a token runs through in a layer.
_ROWS = (
    "attn_norm", "q", "q_a", "q_b", "k", "v", "kv_a", "o", "mlp_norm", "gate", "up", "down",
    "activation", "router", "experts", "shared_expert",
)  # fmt: skip


def ranked(shape: ModelShape) -> range:
    """Return after how many layers tokens can be dropped: an attention has to stand before."""
    order = shape.order or "f" * shape.layers
    first = next((i for i, letter in enumerate(order) if letter != "m"), shape.layers)
    return range(first + 1, shape.layers)


def checked(after: int, valid: range) -> int:
    """Return `after`. Raise PrunescopeError if it is not a `valid` number of layers."""
    if after in valid:
        return after
    last = valid.stop - 1
    hint = f"an attention ranks tokens: they can be dropped after {valid.start} to {last} layers"
    if not valid:
        hint = "no attention stands before the last layer to rank the tokens"
    raise PrunescopeError(f"after={after}, but the model has {valid.stop} layers", hint=hint)


def drop_layers(knobs: Mapping[str, Value], valid: range) -> list[int]:
    """Return the layers after which tokens leave, ascending.

    They are `after`, or those of `schedule`, or the ends of all `stages` but the last, into which
    the `valid.stop` layers fall. With `removed` tokens a layer and none of these named they are all
    of `valid`.

    Raises:
        PrunescopeError: The layers are not ascending whole numbers, or no attention stands
            before one
            of them to rank the tokens.
    """
    schedule, stages = str(knobs.get("schedule", "")), int(knobs.get("stages", 1))
    if int(knobs.get("removed", 0)) and not schedule and stages == 1:
        return [*valid]
    if schedule and stages != 1:
        raise PrunescopeError(
            f"schedule={schedule} and stages={stages} both say where tokens leave",
            hint="remove one of them",
        )
    if stages != 1:
        return _ends(stages, valid)
    if not schedule:
        return [checked(int(knobs["after"]), valid)]
    numbers = [whole_number(part) for part in schedule.split(",")]
    layers = [number for number in numbers if number is not None]
    if len(layers) < len(numbers) or layers != sorted(set(layers)):
        raise PrunescopeError(
            f"schedule={schedule} is not an ascending list of layers",
            hint="for example --set schedule=8,16,24",
        )
    return [checked(number, valid) for number in layers]


def _ends(stages: int, valid: range) -> list[int]:
    """Return the ends of equal stages of `valid.stop` layers, without the last."""
    ends = [round(valid.stop * i / stages) for i in range(1, max(1, stages))]
    if stages < 1 or len(set(ends)) < len(ends) or any(end not in valid for end in ends):
        raise PrunescopeError(
            f"stages={stages} of a model of {valid.stop} layers: no attention ends each of them",
            hint="give fewer stages, 2 at least, or the layers as --set schedule=8,16,24",
        )
    return ends


def dropped_after(sparsity: float, step: int, steps: int) -> float:
    """Return the share of all tokens that is gone after a step of several.

    Each step drops the same share of those left: 1 − (1 − s)^(step/steps) are gone.
    """
    return sparsity if step == steps else float(1 - (1 - sparsity) ** (step / steps))


def tokens_left(point: FamilyPoint, prompt: int, step: int, steps: int, *, merged: bool) -> int:
    """Return the tokens of a prompt that are left after a step of several.

    Each step removes the `removed` tokens of the point's knobs, or the share that its sparsity
    gives. One always stays; merging pairs tokens up, so that no step takes more than half of those
    beside the first (`parse_r` and `bipartite_soft_matching` of github.com/facebookresearch/ToMe).
    """
    removed = int(point.knobs.get("removed", 0))
    if not removed:
        return kept_count(prompt, dropped_after(point.sparsity, step, steps))
    if removed < 0:
        raise PrunescopeError(
            f"removed={removed} is no number of tokens", hint="for example --set removed=13"
        )
    left = prompt
    for _ in range(step):
        left -= min(removed, (left - 1) // 2 if merged else left - 1)
    return left


def implied_sparsity(shape: ModelShape, knobs: Mapping[str, Value], tokens: int) -> float | None:
    """Return the share of the tokens that is gone in the end, where `removed` gives their number.

    Returns None where the knobs leave it to the sparsity.
    """
    if not int(knobs.get("removed", 0)):
        return None
    layers = drop_layers(knobs, _valid(shape, knobs))
    point = FamilyPoint(sparsity=0.0, knobs=knobs)
    left = tokens_left(point, tokens, len(layers), len(layers), merged=shape.is_one_pass)
    return 1 - left / tokens


def _valid(shape: ModelShape, knobs: Mapping[str, Value]) -> range:
    """Return after how many layers tokens can leave in a prediction.

    An encoder merges them in a layer, behind its attention, and so in the last one, too. None of
    the layers sees the tokens that left before the first (`after=0`), by a score of what made them.
    """
    if shape.is_one_pass and int(knobs.get("removed", 0)):
        return range(1, shape.layers + 1)
    before = str(knobs.get("after")) == "0" and not knobs.get("schedule")
    return range(shape.layers) if before else ranked(shape)


def steps(shape: ModelShape, point: FamilyPoint) -> list[tuple[int, float]]:
    """Return (layer after which tokens leave, share of all tokens gone from there on), in order.

    Raises:
        PrunescopeError: `drop_layers` refuses the knobs.
    """
    layers = drop_layers(point.knobs, _valid(shape, point.knobs))
    return [
        (after, dropped_after(point.sparsity, step, len(layers)))
        for step, after in enumerate(layers, 1)
    ]


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """Return a stack of layers for each number of tokens left.

    Layers 0..after-1 are dense; the others, mixers too, run on max(1, int(S·p)) of the S tokens (p
    = 1 − s), and their caches are shorter by as much. With a schedule or stages the tokens leave in
    steps. `revived` tokens are additional rows of a decode step, and keys from then on.

    Raises:
        PrunescopeError: `steps` refuses the knobs, or tokens come back behind a mixer, whose
            state they
            cannot enter.
    """
    removed = int(point.knobs.get("removed", 0))
    if point.sparsity == 0 and not removed:
        return [dense_plan(shape, work)]
    drops = [after for after, _ in steps(shape, point)]
    revived = float(point.knobs.get("revived", 0.0))
    if not 0 <= revived <= 1:
        raise PrunescopeError(
            f"revived={revived:g} is not a share",
            hint="0 brings none back, 1 all in the first step",
        )
    if revived and shape.mixer.kind:
        raise PrunescopeError(
            f"tokens cannot come back behind {shape.mixer.kind}, whose state has gone on without "
            "them",
            hint="leave revived at 0",
        )
    merged = bool(removed) and shape.is_one_pass
    stacks, first, before, new = [], 0, work, 0.0
    for step, after in enumerate(drops, 1):
        left = tokens_left(point, work.prompt_len, step, len(drops), merged=merged)
        away, more = _away(work, work.prompt_len - left, revived)
        behind = _shorter(work, away)
        if merged:  # the attention of layer `after` sees what came in, its MLP what is left
            stacks += [
                _stack(shape, range(first, after - 1), before, new),
                _stack(shape, range(after - 1, after), before, new, mlp=False),
                _stack(shape, range(after - 1, after), behind, more, attention=False),
            ]
        else:
            stacks.append(_stack(shape, range(first, after), before, new))
        first, before, new = after, behind, more
    stacks.append(_stack(shape, range(first, shape.layers), before, new))
    return [plan for plan in stacks if plan is not None]


def _stack(
    shape: ModelShape,
    layers: range,
    work: Workload,
    new: float,
    *,
    attention: bool = True,
    mlp: bool = True,
) -> Plan | None:
    """Return the plan of these layers, on `new` earlier tokens and the one of a step.

    `attention` and `mlp` say which of their sublayers it has. Returns None for no layers.
    """
    if not layers:
        return None
    plan = dense_plan(shape.select_layers(layers), work)
    plan = replace(
        plan,
        attention_layers=len(layers) if attention else 0,
        mlp_layers=len(layers) if mlp else 0,
    )
    if not new:
        return plan
    return replace(plan, rows=dict.fromkeys(_ROWS, 1 + new), scores=1 + new, queries=1 + new)


def _away(work: Workload, left: int, revived: float) -> tuple[int, float]:
    """Return the tokens of each prompt that are away in these layers, and those that come back now.

    In each step the share `revived` of all that `left` comes back, until none is away.
    """
    if work.prefill or work.context is None:
        return left, 0
    before, after = (
        min(left, revived * left * max(0, steps))
        for steps in (work.context - work.prompt_len - 1, work.context - work.prompt_len)
    )
    return left - round(after), after - before


def _shorter(work: Workload, away: int) -> Workload:
    """Return the workload of layers that `away` tokens of the prompt are absent from."""
    context = work.context
    if context is not None:
        context = max(1, context - away)
    return replace(work, prompt_len=max(1, work.prompt_len - away), context=context)


def applies(traits: Traits) -> Applies:
    """Answer for tokens behind an attention that ranks them."""
    if traits.shape is None:
        return Applies(NO, "no attention ranks its tokens")
    if traits.shape.parts:
        return Applies(NO, f"{CROSSED}, which are the prompt")
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
    unrecorded=recorded,
    methods=("LazyLLM", "FastV", "PyramidDrop"),
    plans=plans,
    implied_sparsity=implied_sparsity,
    extension=True,
    knobs={
        "after": Knob(
            2,
            "layers that still see every token; 0, in predict: tokens leave before the first, as "
            "image tokens that the encoder ranks do",
        ),
        "schedule": Knob(
            "",
            "layers after which tokens leave in steps, as 8,16,24, each time the same share of "
            "those left; empty: all in one step",
        ),
        "stages": Knob(
            1,
            "equal stages of the layers: tokens leave in steps, at the end of each but the last "
            "(LazyLLM, PyramidDrop); 1: all in one step",
        ),
        "removed": Knob(
            0,
            "tokens that each layer of the schedule removes, all layers without one (ToMe: equal "
            "numbers, an encoder behind its attention); 0: the share that the sparsity gives",
            if_given=True,
        ),
        "revived": Knob(
            0.0,
            "share of the dropped tokens that each decode step computes again and keeps (LazyLLM), "
            "in predict",
            predicted_only=True,
        ),
    },
    adds=("reduction", "routing", "gather_scatter"),
    keeps_weights=True,
    calibration="input",
)
