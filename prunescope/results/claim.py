"""The judgement of a claimed speedup, as `prunescope claim` gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import msgspec

from prunescope.results.result import Result
from prunescope.taxonomy.by_name import ByName, by_name

if TYPE_CHECKING:
    from rich.text import Text

    from prunescope.analysis.predict.predict_request import PredictRequest


class Claim(Result, ByName):
    """The result of `claim`: the dict of `--json`, which prints as the command does.

    Examples:
        >>> claim = prunescope.claim(9, "llama-3.1-8b", phase="decode", **pruning)
        >>> claim["verdict"], claim["why"]
    """

    noun = "entry of a claim"

    def __init__(self, *values: Any, **more: Any) -> None:
        super().__init__(by_name(dict(*values, **more), "claim"))

    @classmethod
    def compute(cls, claimed: float, request: PredictRequest) -> Self:
        """Judge a claimed speedup."""
        from prunescope.analysis.predict.claim import judge_claim

        return cls(msgspec.to_builtins(judge_claim(claimed, request)))

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 0 plausible, 4 unknown, 3 impossible or not supported."""
        return {"plausible": 0, "unknown": 4}.get(str(self["verdict"]), 3)

    def __repr__(self) -> str:
        return f"<Claim of {self['claimed']:g}x: {self['verdict']}; show() prints it>"

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text(f"{str(self['verdict']).replace('_', ' ')}: {self['why']}")
