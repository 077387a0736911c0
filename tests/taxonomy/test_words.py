"""Words of sentences: endings, and parts of a sentence that are there only where they hold."""

from __future__ import annotations

from prunescope.taxonomy.words import plural, time_left, when


def test_one_thing_has_no_ending() -> None:
    assert [f"{n} step{plural(n)}" for n in (0, 1, 1.0, 2)] == [
        "0 steps", "1 step", "1.0 step", "2 steps",
    ]  # fmt: skip


def test_a_part_of_a_sentence_is_there_where_it_holds() -> None:
    assert "busy" + when(True, " in the profile") + when(False, ", idle") == "busy in the profile"


def test_the_time_left_is_said_after_the_first_tenth() -> None:
    """A minute for a tenth: nine more of them; 30 s for a half: as long again."""
    assert time_left(60, 0.05) == ""
    assert time_left(60, 0.1) == "about 9 min left"
    assert time_left(30, 0.5) == "about 30 s left"
    assert time_left(7200, 0.5) == "about 2 h left"
    assert time_left(60, 1.0) == ""
