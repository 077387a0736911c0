"""Words of sentences: endings, and parts of a sentence that are there only where they hold."""

from __future__ import annotations

from prunescope.taxonomy.words import plural, when


def test_one_thing_has_no_ending() -> None:
    assert [f"{n} step{plural(n)}" for n in (0, 1, 1.0, 2)] == [
        "0 steps", "1 step", "1.0 step", "2 steps",
    ]  # fmt: skip


def test_a_part_of_a_sentence_is_there_where_it_holds() -> None:
    assert "busy" + when(True, " in the profile") + when(False, ", idle") == "busy in the profile"
