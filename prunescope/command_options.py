"""The options that several commands share. Imported with the command line itself, so that nothing
heavy is imported before a command runs.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def _share(value: float | None) -> float | None:
    from prunescope.taxonomy.keep import check_sparsity

    return None if value is None else check_sparsity(value)


# fmt: off - one option a line reads as a table
Option = typer.Option
Model = Annotated[str, Option(metavar="MODEL", help="HF folder, hub id, FILE.gguf or a preset.")]
Method = Annotated[
    str | None, Option(metavar="FAMILY", help="A family, A:S+B:S, or package.module:function.")
]
Share = Annotated[float | None, Option(metavar="S", callback=_share, help="Pruned, 0 <= S < 1.")]
Knobs = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="Knob; repeatable.")]
Phase = Annotated[Literal["prefill", "decode", "both"], Option(help="What to look at.")]
Batch = Annotated[int, Option(min=1, metavar="N", help="Sequences at a time.")]
PromptLen = Annotated[int, Option(min=1, metavar="N", help="Tokens of a prompt.")]
Logits = Annotated[Literal["last", "all"], Option(help="Which logits prefill computes.")]
Json = Annotated[str | None, Option("--json", metavar="FILE|-", help="JSON to FILE or to stdout.")]
Architecture = Annotated[
    str | None, Option(metavar="CONFIG", help="Which apply to a config.json, folder or preset.")
]
# fmt: on
