"""Static M, read back: whole layers, or attention or MLP sublayers, are gone."""

from __future__ import annotations

from prunescope.analysis.verdict.evidence import Detection, Evidence

# What a sublayer ends with: linear attention and state-space mixers stand in attention's place.
_ATTENTION_ENDS = ("o", "mixer_out")
_MLP_ENDS = ("down", "experts")


def detect(e: Evidence) -> Detection | None:
    """Whole layers, or all GEMMs of an attention or MLP sublayer, are gone."""
    gone, here = e.gone_and_here()
    if not here:  # no layer is known on the pruned side: none is known to be gone
        return None
    layers = [i for i in gone if i not in here]
    attention = [i for i in gone if i in here and _lacks(_ATTENTION_ENDS, gone[i], here[i])]
    mlp = [i for i in gone if i in here and _lacks(_MLP_ENDS, gone[i], here[i])]
    # The router and experts are one sublayer: some of them here means that it is.
    mlp = [i for i in mlp if not here[i] & {*_MLP_ENDS, "router", "shared_expert"}]
    weights = e.removed_weights()
    if weights:  # what a router left out has its weights still
        layers = [i for i in layers if any((i, role) in weights for role in gone[i])]
        attention = [i for i in attention if any((i, end) in weights for end in _ATTENTION_ENDS)]
        mlp = [i for i in mlp if any((i, end) in weights for end in _MLP_ENDS)]
    if not layers and not attention and not mlp:
        return None
    total = e.units.alignment.num_dense
    lines = []
    for rows, what in (
        (layers, "layers"),
        (attention, "attention sublayers"),
        (mlp, "MLP sublayers"),
    ):
        if rows:
            which = f": {_listed(sorted(rows))}" if e.units.alignment.exact else ""
            lines.append(f"{len(rows)} of {total} {what} gone{which}")
    touched = {*layers, *attention, *mlp}
    return Detection(
        lines, lambda p: float(p.key[0] in touched and p.pruned is None), proven=bool(weights)
    )


def _lacks(ends: tuple[str, ...], gone: set[str], here: set[str]) -> bool:
    return any(end in gone and end not in here for end in ends)


def _listed(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:12]))
    return shown + (", …" if len(values) > 12 else "")
