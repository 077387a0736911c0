"""Shapes that moved of work that the table of GEMMs does not list, as convolutions are."""

from __future__ import annotations

from typing import Annotated

import msgspec

from prunescope.analysis.schema.fields import meaning


class MovedShapes(msgspec.Struct, kw_only=True):
    """The calls of one kind that moved along the same axes."""

    kind: str
    axis: Annotated[
        str, meaning('axes that moved, as in "channels in and channels out", or gone, or added')
    ]
    count: Annotated[int, meaning("calls of a step that moved so")]
    of: Annotated[int, meaning("calls of this kind in a dense step (added: in a pruned one)")]
    dense: Annotated[list[list[int]], meaning("operands of the call that moved most, dense")]
    pruned: Annotated[list[list[int]], meaning("the same call on the pruned side")]
