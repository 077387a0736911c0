"""What draws figures here, and how far two of them lie apart: in, PNG bytes; out, plain values."""

from __future__ import annotations

import io
import zlib


def plotted_with() -> str:
    """What figures are drawn with: another version of it may place text elsewhere."""
    import matplotlib
    from matplotlib import ft2font

    return f"matplotlib {matplotlib.__version__}, freetype {ft2font.__freetype_version__}"


def most_apart(one: bytes, other: bytes) -> float | None:
    """The largest difference of a channel of a pixel between two PNG files, 0 to 1; None where one
    cannot be read or they differ in size."""
    from matplotlib.image import imread

    try:
        a, b = imread(io.BytesIO(one), "png"), imread(io.BytesIO(other), "png")
    except (OSError, ValueError, SyntaxError, EOFError, zlib.error):
        return None
    return float(abs(a - b).max()) if a.shape == b.shape else None
