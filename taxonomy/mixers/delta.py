"""Gated delta nets: linear attention whose state is corrected by what it holds of each key.

The state of a head is d_k x d_v, so `state` is d_k per channel. Gated DeltaNet (arXiv 2412.06464)
has one decay for each head, Kimi Delta Attention (arXiv 2510.26692) one for each channel of the
key, from a matrix of low rank.
"""

from __future__ import annotations

from prunescope.taxonomy.mixers.sizes import Linears, MixerKind, MixerSizes, inputs_of_taps


def _gated(mixer: MixerSizes, hidden: int) -> Linears:
    """Return the matrices: values, their gate, keys and queries; steps and decays apart."""
    rows = 2 * mixer.width + 2 * mixer.keys
    return {
        "mixer_in": (rows, hidden),
        "mixer_in.gates": (2 * mixer.heads, hidden),
        "mixer_out": (hidden, mixer.width),
    }


def _kimi(mixer: MixerSizes, hidden: int) -> Linears:
    """Return the matrices: q, k, v and a step per head; decays and gates are of a low rank."""
    low, high = (mixer.rank, hidden), (mixer.width, mixer.rank)
    return {
        "mixer_in.q": (mixer.keys, hidden),
        "mixer_in.k": (mixer.keys, hidden),
        "mixer_in.v": (mixer.width, hidden),
        "mixer_in.gates": (mixer.heads, hidden),
        "mixer_in.decay_a": low,
        "mixer_in.decay_b": (mixer.keys, mixer.rank),
        "mixer_in.gate_a": low,
        "mixer_in.gate_b": high,
        "mixer_out": (hidden, mixer.width),
    }


def _channels(mixer: MixerSizes) -> int:
    return mixer.width + 2 * mixer.keys


def _step(mixer: MixerSizes) -> float:
    """Return 7 FLOPs a number of state: decay 1, read by the key 2, correction 2, read 2."""
    return 7 * mixer.width * mixer.state


def _chunked(mixer: MixerSizes) -> float:
    """Return the FLOPs per token of the chunked form (arXiv 2412.06464, 3.3), C tokens a chunk.

    Each head of d_k and d_v: K·Kᵀ, Q·Kᵀ and the corrected keys 2·C·d_k each; the corrected values
    and the output 2·C·d_v each; the inverse of a triangle of C rows 2/3·C² by substitution; keys,
    queries and update against the state 2·d_k·d_v each, whose decay is d_k·d_v/C.
    """
    c, d_k, d_v = mixer.chunk, mixer.state, mixer.width / max(1, mixer.heads)
    head = c * (6 * d_k + 4 * d_v) + 2 / 3 * c * c + 6 * d_k * d_v + d_k * d_v / c
    return mixer.heads * head


GATED_DELTA = MixerKind(
    title="gated delta net",
    linears=_gated,
    channels=_channels,
    # values, their gate and the output; keys and queries; a step and a decay per head
    moved=lambda mixer: 3 * mixer.width + 2 * mixer.keys + 2 * mixer.heads,
    step_flop=_step,
    chunk_flop=_chunked,
    carried=inputs_of_taps,
    cuts={"heads": ("heads", "width", "keys")},
)
KIMI_DELTA = MixerKind(
    title="Kimi delta attention",
    linears=_kimi,
    channels=_channels,
    # as above, with a decay for each channel of the keys
    moved=lambda mixer: 3 * mixer.width + 3 * mixer.keys + mixer.heads,
    step_flop=_step,
    chunk_flop=_chunked,
    carried=inputs_of_taps,
    cuts={"heads": ("heads", "width", "keys")},
)
