"""Static vocabulary: rows of lm_head are gone, so that only the first tokens can be predicted."""

from __future__ import annotations

from msgspec.structs import replace

from prunescope.taxonomy.family import Family, FamilyPoint, pattern
from prunescope.taxonomy.keep import kept_count
from prunescope.taxonomy.plan import Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan


def plans(shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
    """lm_head N = max(1, int(V·p)); the layers and the embedding stay, which are no longer tied."""
    kept = kept_count(shape.embedding.vocab, point.sparsity)
    if kept == shape.embedding.vocab:
        return [dense_plan(shape, work)]
    head = dense_plan(shape.change(vocab=kept, tied=False), work)
    return [dense_plan(shape, work), replace(head, attention_layers=0, mlp_layers=0)]


FAMILY = Family(
    id="static-vocab",
    title="Static vocabulary",
    dynamics="static",
    axes=pattern("- - - - - -"),
    unit="rows of lm_head",
    cuts=("vocabulary",),
    methods=("vocabulary trimming",),
    plans=plans,
    extension=True,
)
