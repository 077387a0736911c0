"""Linear attention with a scalar decay: lightning attention (arXiv 2401.04658) and mLSTM.

The state of a head is d_k x d_v, so `state` is d_k per channel; `keys` is d_k of all heads. mLSTM
(arXiv 2405.04517) keeps the sum of its keys and a maximum besides, to divide by.
"""

from __future__ import annotations

from prunescope.taxonomy.mixers.sizes import Linears, MixerKind, MixerSizes, scan_in_chunks


def _lightning(mixer: MixerSizes, hidden: int) -> Linears:
    """Return the matrices: q, k and v in one, and the gate of the output."""
    return {
        "mixer_in": (2 * mixer.keys + mixer.width, hidden),
        "mixer_in.gate": (mixer.width, hidden),
        "mixer_out": (hidden, mixer.width),
    }


def _mlstm(mixer: MixerSizes, hidden: int) -> Linears:
    """Return the matrices: q, k, v, the gate of the output, and two gates for each head."""
    return {
        "mixer_in.q": (mixer.keys, hidden),
        "mixer_in.k": (mixer.keys, hidden),
        "mixer_in.v": (mixer.width, hidden),
        "mixer_in.gate": (mixer.width, hidden),
        "mixer_in.gates": (2 * mixer.heads, hidden),
        "mixer_out": (hidden, mixer.width),
    }


def _step(mixer: MixerSizes) -> float:
    """Return 5 FLOPs a number of state: decay 1, key times value and its sum 2, read 2."""
    return 5 * mixer.width * mixer.state


_HEADS = {"heads": ("heads", "width", "keys")}
LIGHTNING = MixerKind(
    title="lightning attention",
    linears=_lightning,
    moved=lambda mixer: 3 * mixer.width + 2 * mixer.keys,  # v, gate, output; q and k
    step_flop=_step,
    chunk_flop=lambda mixer: scan_in_chunks(mixer, mixer.keys),
    cuts=_HEADS,
)
MLSTM = MixerKind(
    title="mLSTM",
    linears=_mlstm,
    moved=lambda mixer: 3 * mixer.width + 2 * mixer.keys + 2 * mixer.heads,
    step_flop=lambda mixer: _step(mixer) + 5 * mixer.keys,  # the sum of the keys is state too
    chunk_flop=lambda mixer: scan_in_chunks(mixer, mixer.keys) + 4 * mixer.keys,
    carried=lambda mixer: mixer.keys + mixer.heads,
    cuts={"heads": _HEADS["heads"]},
)
