"""What a family loses behind prompts of several lengths: perplexity of both models, on two texts.

    python benchmarks/contexts.py benchmarks/recovery/longer.yaml [--out FILE.md]

In: a sweep file, of which model, families, sparsities, texts and selection count; nothing is timed.
Out: recovery-contexts.md beside this file. Windows are as long as the prompts, as in a sweep of
them; of each the end is scored.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from prunescope.analysis.report.numbers import loss  # noqa: E402
from prunescope.taxonomy.plan import PHASES  # noqa: E402
from prunescope.taxonomy.run_quality import Quality  # noqa: E402
from prunescope.taxonomy.scoring import scoring_of  # noqa: E402
from prunescope.tracer.capture.variants import Variant, make_variants  # noqa: E402
from prunescope.tracer.machine.device import thread_count  # noqa: E402
from prunescope.tracer.model.layers import text_config  # noqa: E402
from prunescope.tracer.model.load import load_tokenizer  # noqa: E402
from prunescope.tracer.quality.quality import Dense, compare, text_passage  # noqa: E402
from prunescope.tracer.sweep.config import read_configs  # noqa: E402
from prunescope.tracer.sweep.plan import SweepConfig, make_plan, request_of  # noqa: E402

LENGTHS = (1024, 4096, 8192)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A family behind prompts of one length."""

    family: str
    sparsity: float | None
    found: Quality
    other: Quality | None


def main() -> None:
    """Judge what the sweep file names, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="a sweep file")
    parser.add_argument("--out", type=Path, default=HERE / "recovery-contexts.md", help="the page")
    options = parser.parse_args()
    (config,) = read_configs(options.config, None)
    with thread_count(config.threads):
        rows = list(judged(config))
    options.out.write_text("\n".join(page(config, rows)) + "\n", encoding="utf-8")
    sys.stderr.write(f"wrote {options.out.name}\n")


def judged(config: SweepConfig) -> Iterator[Row]:
    """Each family of the sweep behind each length, as each phase scores it."""
    plan = make_plan([replace(config, phases=("prefill",), prompt_lens=LENGTHS[:1])], None)
    references: dict[tuple[str, int, str], Dense] = {}
    for result in plan.results:
        request = request_of(config, result, out=Path("unused"))
        dense, pruned = make_variants(request, torch.device("cpu"), ("dense", "pruned"))
        scorings = dict.fromkeys(scoring_of(result.family, phase) for phase in PHASES)
        for scoring, length in itertools.product(scorings, LENGTHS):
            began, found = time.monotonic(), {}
            for name in ("text", "other_text"):
                key = (name, length, scoring)
                if key not in references:
                    passage = _passage(config, dense, getattr(config, name), length)
                    references[key] = Dense(dense.model, passage, scoring=scoring)
                references[key].model = dense.model
                found[name] = compare(pruned.model, references[key]).pruned
            sys.stderr.write(f"{result.key} {length}: {time.monotonic() - began:.0f} s\n")
            yield Row(
                family=result.family,
                sparsity=result.sparsity,
                found=found["text"],
                other=found["other_text"],
            )


def _passage(config: SweepConfig, dense: Variant, text: Path | None, length: int) -> Any:
    return text_passage(
        load_tokenizer(dense.loaded),
        text,
        vocabulary=dense.model.get_input_embeddings().num_embeddings,
        longest=text_config(dense.model).max_position_embeddings,
        seed=config.seed,
        prompt_len=length,
    )


def page(config: SweepConfig, rows: list[Row]) -> Iterator[str]:
    """The lines of recovery-contexts.md."""
    yield "# What is lost behind longer prompts"
    yield ""
    yield (
        f"{config.model}, {config.select}, no recovery. Loss = perplexity ÷ that of the dense model"
        " − 1, behind prompts of a length, with its 95 % interval over blocks of 128 neighbours."
        " Scored in prefill: all tokens in a window of 1,024, the last 1,024 of a longer one; in"
        " decode: the 32 tokens behind half of a window of 1,024, the last 64 of a longer one (four"
        " windows: few for an interval)."
    )
    yield ""
    yield "```"
    yield from (line.strip() for line in (__doc__ or "").splitlines()[2:3])
    yield "```"
    yield ""
    yield "| family | s | scored in | window | scored | loss | on the other text | KL |"
    yield "|:--|:--|:--|--:|--:|:--|:--|--:|"
    for row in rows:
        found = row.found
        yield (
            f"| {row.family} | {row.sparsity:g} | {found.scoring} | {found.context:,} |"
            f" {found.scored_tokens:,} | {_loss(found)} | {_loss(row.other)} | {found.kl:.3f} |"
        )


def _loss(found: Quality | None) -> str:
    if found is None or found.perplexity_rel_ci95 is None:
        return ""
    low, high = found.perplexity_rel_ci95
    return f"{loss(found.perplexity_rel)} [{loss(low)}, {loss(high)}]"


if __name__ == "__main__":
    main()
