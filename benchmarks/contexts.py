"""Loss of a family after prompts of several lengths: perplexity of both models, on two texts.

    python benchmarks/contexts.py benchmarks/recovery/longer.yaml [--out FILE.md]
    python benchmarks/contexts.py benchmarks/recovery-contexts.json

In: a sweep file, of which model, families, sparsities, texts and selection count; nothing is timed.
Or the JSON of an earlier run. Out: recovery-contexts.md next to this file, and its JSON with the
losses and their intervals. Windows are as long as the prompts, as in a sweep of them; of each the
end is scored.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from prunescope.taxonomy.numbers import loss
from prunescope.taxonomy.plan import PHASES
from prunescope.taxonomy.scoring import scoring_of

if TYPE_CHECKING:
    from prunescope.taxonomy.runs.run_quality import Quality
    from prunescope.tracer.sweep.plan import SweepConfig

LENGTHS = (1024, 4096, 8192)


class OnText(msgspec.Struct, kw_only=True):
    """The loss on one text, and its 95 % interval."""

    perplexity_rel: float | None
    ci95: list[float] | None


class Row(msgspec.Struct, kw_only=True):
    """A family behind prompts of one length."""

    family: str
    sparsity: float | None
    scoring: str | None
    context: int | None
    scored_tokens: int | None
    loss: OnText
    other: OnText
    kl: float | None


class Contexts(msgspec.Struct, kw_only=True):
    """The data of the page. `source`: "page" where the numbers are those of an older page."""

    model: str
    select: str
    source: str | None = None
    rows: list[Row]


def main() -> None:
    """Judge what the sweep file names, and write the page and its JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="a sweep file, or the JSON of an earlier run")
    parser.add_argument("--out", type=Path, default=HERE / "recovery-contexts.md", help="the page")
    options = parser.parse_args()
    found = read(options.config) if options.config.suffix == ".json" else measured(options.config)
    options.out.with_suffix(".json").write_bytes(stored(found))
    options.out.write_text(text(found), encoding="utf-8")
    sys.stderr.write(f"wrote {options.out.name} and its JSON\n")


def read(path: Path) -> Contexts:
    """The JSON of an earlier run."""
    return msgspec.json.decode(path.read_bytes(), type=Contexts)


def stored(found: msgspec.Struct) -> bytes:
    """The JSON next to the page."""
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def measured(path: Path) -> Contexts:
    """The losses of what a sweep file names."""
    from prunescope.tracer.machine.device import thread_count
    from prunescope.tracer.sweep.config import read_configs

    (config,) = read_configs(path, None)
    with thread_count(config.threads):
        return Contexts(
            model=str(config.model), select=str(config.select), rows=list(judged(config))
        )


def judged(config: SweepConfig) -> Iterator[Row]:
    """Each family of the sweep behind each length, as each phase scores it."""
    import torch
    from rescore import Scorer

    from prunescope.tracer.capture.variants import make_variants
    from prunescope.tracer.quality.quality import compare
    from prunescope.tracer.sweep.plan import make_plan, request_of

    plan = make_plan([replace(config, phases=("prefill",), prompt_lens=LENGTHS[:1])], None)
    scorer = Scorer(config)
    for result in plan.results:
        request = request_of(config, result, out=Path("unused"))
        dense, pruned = make_variants(request, torch.device("cpu"), ("dense", "pruned"))
        scorings = dict.fromkeys(scoring_of(result.family, phase) for phase in PHASES)
        for scoring, length in itertools.product(scorings, LENGTHS):
            began = time.monotonic()
            found, elsewhere = (
                compare(pruned.model, scorer.reference(dense, length, scoring, other=other)).pruned
                for other in (False, True)
            )
            sys.stderr.write(f"{result.key} {length}: {time.monotonic() - began:.0f} s\n")
            yield row_of(result.family, result.sparsity, found, elsewhere)


def row_of(family: str, sparsity: float | None, found: Quality, other: Quality) -> Row:
    """The losses of a family behind prompts of one length."""
    return Row(
        family=family,
        sparsity=sparsity,
        scoring=found.scoring,
        context=found.context,
        scored_tokens=found.scored_tokens,
        loss=OnText(perplexity_rel=found.perplexity_rel, ci95=found.perplexity_rel_ci95),
        other=OnText(perplexity_rel=other.perplexity_rel, ci95=other.perplexity_rel_ci95),
        kl=found.kl,
    )


def text(found: Contexts) -> str:
    """The page."""
    return "\n".join(page(found)) + "\n"


def page(found: Contexts) -> Iterator[str]:
    """The lines of recovery-contexts.md."""
    yield "# Loss after longer prompts"
    yield ""
    yield (
        f"{found.model}, {found.select}, no recovery. Loss = perplexity ÷ that of the dense model"
        " − 1, behind prompts of a length, with its 95 % interval over blocks of 128 neighbours."
        " Scored in prefill: all tokens in a window of 1,024, the last 1,024 of a longer one; in"
        " decode: the 32 tokens behind half of a window of 1,024, the last 64 of a longer one (four"
        " windows: few for an interval)."
    )
    yield ""
    yield (
        "**Length and text are confounded.** Windows of each length begin at other places of the"
        " text, so each row reads another stretch of it: a loss that falls from 1,024 to 8,192"
        " tokens can come from the length or from the stretch. Rows of one length and one way of"
        " scoring read the same stretch."
    )
    yield ""
    yield "```"
    yield from (line.strip() for line in (__doc__ or "").splitlines()[2:4])
    yield "```"
    yield ""
    yield "| family | s | scored in | window | scored | loss | on the other text | KL |"
    yield "|:--|:--|:--|--:|--:|:--|:--|--:|"
    for row in found.rows:
        yield (
            f"| {row.family} | {row.sparsity:g} | {row.scoring} | {row.context:,} |"
            f" {row.scored_tokens:,} | {_loss(row.loss)} | {_loss(row.other)} | {row.kl:.3f} |"
        )
    missing = [
        f for f in dict.fromkeys(row.family for row in found.rows) if _lacks_decode(found, f)
    ]
    if missing:
        yield ""
        yield (
            f"No row for {', '.join(missing)} in decode: the losses are by an older rule, which"
            " scored these in one forward in both phases. Now a run of this script has rows for"
            " them in decode, token by token."
        )
    if found.source == "page":
        yield ""
        yield "The numbers are those that an earlier edition of this page printed, rounded."


def _lacks_decode(found: Contexts, family: str) -> bool:
    """Whether a family would be scored token by token in decode, and has no such row."""
    there = {row.scoring for row in found.rows if row.family == family}
    return scoring_of(family, "decode") not in there


def _loss(found: OnText) -> str:
    if found.ci95 is None:
        return ""
    low, high = found.ci95
    return f"{loss(found.perplexity_rel)} [{loss(low)}, {loss(high)}]"


if __name__ == "__main__":
    main()
