"""Short convolutions between two gates, as LFM2 has them: no state but the last inputs."""

from __future__ import annotations

from prunescope.taxonomy.mixers.sizes import MixerKind

SHORT_CONVOLUTION = MixerKind(
    title="short convolution",
    linears=lambda mixer, hidden: {
        "mixer_in": (3 * mixer.width, hidden),
        "mixer_out": (hidden, mixer.width),
    },
    channels=lambda mixer: mixer.width,
    moves=4,  # a gate before and one behind read a channel each
    carried=lambda mixer: mixer.width * mixer.taps,
    cuts={"channels": ("width",)},
)
