"""How many images a step of a trace without run.json is given.

In: the kernels of the trace. Out: images a step, or None.
"""

from __future__ import annotations

from collections import Counter

from prunescope.analysis.kernels.frame import Kernels

_COLOURS = 3  # channels of an image; latents of a diffusion model have others
_RANK = 4  # [B, C, H, W]


def images_a_step(kernels: Kernels) -> float | None:
    """B of the convolution that reads images, [B, 3, H, W], times its calls a step. None where none
    does, several differ (views of one image, say), or tokens are embedded as well."""
    frame = kernels.frame
    if (frame["kind"] == "embedding").any() or (frame["role"] == "embedding").any():
        return None
    convolutions = frame["call"].filter((frame["kind"] == "conv") & frame["primary"])
    read: dict[tuple[object, ...], int] = {}  # images of all steps, by the weights that read them
    for call, count in Counter(convolutions.drop_nulls()).items():
        image, weight = (*kernels.calls[call].shapes, (), ())[:2]
        if not isinstance(image, tuple) or not isinstance(weight, tuple):
            continue
        if len(image) == _RANK and image[1] == _COLOURS and isinstance(image[0], int):
            read[weight] = read.get(weight, 0) + image[0] * count
    return sum(read.values()) / kernels.num_steps if len(read) == 1 else None
