"""Token dropping: prompt tokens leave after a layer; the layers behind it see fewer rows."""

from __future__ import annotations

from dataclasses import replace

from taxonomy.errors import PrunescopeError
from taxonomy.family import Family, Knob, Point, pattern
from taxonomy.keep import kept_count
from taxonomy.plan import Plan, Workload
from taxonomy.shape import ModelShape
from taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: Point) -> list[Plan]:
    """Layers 0..after-1 as dense, the others on max(1, int(S·p)) tokens and as short a cache.

    Raises PrunescopeError where `after` is no layer of the model.
    """
    after = int(point.knobs["after"])
    if not 0 <= after < shape.layers:
        raise PrunescopeError(
            f"after={after}, but the model has {shape.layers} layers",
            hint="tokens are dropped after layer 1 to the last but one",
        )
    dense = dense_plan(shape, work)
    if point.sparsity == 0:
        return [dense]
    left = kept_count(work.prompt_len, point.sparsity)
    gone = work.prompt_len - left
    context = None if work.context is None else max(1, work.context - gone)
    short = replace(work, prompt_len=left, context=context)
    first = replace(dense, attention_layers=after, mlp_layers=after)
    behind = shape.layers - after
    return [first, replace(dense, work=short, attention_layers=behind, mlp_layers=behind)]


FAMILY = Family(
    id="token-drop",
    title="Token dropping",
    dynamics="dynamic",
    axes=pattern("M M M M M M"),
    unit="prompt tokens, after a layer",
    methods=("LazyLLM", "FastV"),
    plans=plans,
    extension=True,
    knobs={"after": Knob(2, "layers that still see every token")},
    adds=("reduction", "routing", "gather_scatter"),
    keeps_weights=True,
)
