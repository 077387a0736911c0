"""The parts of a layer that annotations name: `attn(F)`, `MLP(B)`, `moe forward`.

Frameworks that overlap the passes of two batches annotate each part with its pass; other code marks
`attention` or `mlp` alone. In: the annotations of a trace. Out: the place of each row, and whether
it is in a backward pass. An annotation that is a module's path in a layer gives that module's
place.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from prunescope.analysis.timeline.intervals import innermost
from prunescope.analysis.trace.collector import NONE, Ints, unique_ids
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.roles import Place, locate

# F, B and W: forward, gradients of activations (or all), gradients of weights.
_PASS = lazy_pattern(r"[ _]?\(?\b(f|fwd|forward|b|bwd|backward|w|wgrad)\)?$")
_PARTS = {
    "attention": "attn attention self_attn self_attention mla mha",
    "mlp": "mlp ffn feed_forward feedforward moe experts",
}
_SCOPES = {name: scope for scope, names in _PARTS.items() for name in names.split()}
_ROLES = {
    "experts": "experts", "router": "router", "routing": "router", "lm_head": "lm_head",
    "embedding": "embedding", "embed_tokens": "embedding",
}  # fmt: skip
_LONGEST = 80  # characters of the longest name that may be a part's


class Parts(Struct, frozen=True):
    """The part that each row is in.

    `place` is an index into `places`, -1 for none; `call` is the annotation that the row is in;
    `backward` marks rows of a backward pass.
    """

    place: Ints
    call: Ints
    places: list[Place]
    backward: NDArray[np.bool_]


def find_parts(trace: Trace, thread: Ints, ts: Ints) -> Parts | None:
    """Find the parts that rows are in, from the host thread and time of their launch or op.

    The result is None where no annotation names a part.
    """
    names, notes = trace.annotations["name"], np.flatnonzero(trace.annotations["module"] == 0)
    ids = unique_ids(names[notes]).tolist()
    known = {i: named for i in ids if (named := parse_part(trace.names[i])) is not None}
    if not known:
        return None
    rows = notes[np.isin(names[notes], list(known))]
    spans = {column: trace.annotations[column][rows] for column in ("ts", "dur", "thread")}
    inner = innermost(spans, thread, ts)
    at = names[rows][np.maximum(inner, 0)].tolist()
    inside = inner >= 0
    places = list(dict.fromkeys(place for place, _ in known.values()))
    index = {i: places.index(place) for i, (place, _) in known.items()}
    return Parts(
        np.where(inside, [index[i] for i in at], NONE),
        inner,
        places,
        inside & np.array([known[i][1] for i in at], bool),
    )


@lru_cache(maxsize=4096)
def parse_part(name: str) -> tuple[Place, bool] | None:
    """Return the place that an annotation names, and whether it is of the backward pass.

    None is returned for other names.
    """
    if len(name) > _LONGEST:
        return None
    plain = name.strip().lower()
    ending = _PASS.search(plain)
    backward = ending is not None and ending[1][0] in "bw"
    plain = plain[: ending.start()].strip() if ending else plain
    role, scope = _ROLES.get(plain, "unknown"), _SCOPES.get(plain)
    if scope is not None or role != "unknown":
        return Place(None, role, scope or ("mlp" if role == "router" else "model")), backward
    place = locate(name[: len(plain)])
    return (place, backward) if place.layer is not None and place.scope != "layer" else None
