"""The paper's numbers have a second witness.

It is what follows from other numbers, and the facts as they were noted from the paper, where these
are at hand.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from prunescope.taxonomy.families import known
from prunescope.taxonomy.paper import FIGURE_5, FIGURE_6, QUANTITIES, paper, published

NOTES = Path(__file__).resolve().parents[3] / "shared/PAPER.md"


def test_every_number_is_published_once() -> None:
    """The counts follow from the axes of each figure.

    12 shares of 2 steps; 7 families x 2 phases x 7 settings; 2 x 2 ends; 6 x 2 layers; 6 x 3
    alignments; 7 x 2 steps; 10 perplexities; 20 changes of tasks.
    """
    counts = Counter(number.figure for number in published(paper()))
    assert list(counts.values()) == [12, 2, 98, 4, 12, 18, 14, 10, 20] and list(counts) == list(
        QUANTITIES
    )
    keys = [(o.figure, o.name, o.phase, o.batch, o.prompt_len, o.sparsity, o.at)
            for o in published(paper())]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_shares_of_the_step_add_up() -> None:
    for step in paper().figure_2.values():
        assert sum(step.shares.values()) + step.gap == pytest.approx(1, abs=0.002)


def test_a_layer_agrees_with_the_model() -> None:
    """A layer alone gains at least what the model gains, at batch 1 and 32k.

    LM head and elementwise work of the model stay; the layer gains at most its share of the step
    more.
    """
    whole = {(o.name, o.phase): o.value for o in published(paper())
             if o.figure == FIGURE_5 and (o.batch, o.prompt_len) == (1, 32768)}  # fmt: skip
    for number in (o for o in published(paper()) if o.figure == FIGURE_6):
        assert number.value == pytest.approx(whole[number.name, number.phase], rel=0.08), number


def test_families_are_those_of_the_taxonomy() -> None:
    names = {o.name for o in published(paper()) if o.sparsity is not None}
    assert {member.id for member in known(names)} == names


def test_the_numbers_are_those_of_the_notes() -> None:
    if not NOTES.is_file():
        pytest.skip("needs ../shared/PAPER.md beside the checkout")
    text = NOTES.read_text(encoding="utf-8")
    cells = [(1, n) for n in (1024, 8192, 16384, 32768)] + [(b, 1024) for b in (1, 8, 16, 32)]
    ours = {(o.name, o.phase, o.batch, o.prompt_len): o.value
            for o in published(paper()) if o.figure == FIGURE_5}  # fmt: skip
    rows = re.findall(
        r"^\| ([a-z0-9-]+) \| ([\d./]+) \| ([\d./]+) \| ([\d./]+) \| ([\d./]+) \|", text, re.M
    )
    assert len(rows) == 7
    for family, *columns in rows:
        for phase, noted in (("prefill", columns[:2]), ("decode", columns[2:])):
            speeds = [float(word) for column in noted for word in column.split("/")]
            for (batch, length), speed in zip(cells, speeds, strict=True):
                assert ours[family, phase, batch, length] == speed
    for phase, step in paper().figure_2.items():
        ms = f"{step.wall_ns / 1e6:.2f} ms" if phase == "decode" else f"{step.wall_ns / 1e9:.2f} s"
        assert f"| {phase} | {ms} |" in text
    for _, _, _, *ends in paper().figure_5_ends:
        assert "–".join(f"{end:.2f}" for end in ends) in text
    for number in (*paper().gemm.of_n, *paper().gemm.of_k):
        assert f"{number:.2f}" in text
    quality = text[text.index("## Quality") :]
    for _, _, gap in paper().tasks_percent:
        assert f"{gap:.2f}" in quality
    for _, _, perplexity in paper().perplexity:
        assert f"{perplexity:.2f}" in text
