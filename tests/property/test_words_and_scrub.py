"""Text of numbers and names, and text without secrets: what any value becomes."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.bundle.archive import read_zip, zip_bytes
from prunescope.analysis.bundle.differences import difference
from prunescope.analysis.bundle.secrets import cleared, suspicious
from prunescope.taxonomy.numbers import time
from prunescope.taxonomy.scrub import scrub_values, scrub_words
from prunescope.taxonomy.words import fell_to, ms, percent, shortened, significant, spread

QUICK = settings(max_examples=60, deadline=None)
NS = st.floats(-1e15, 1e15)


def number(text: str) -> float:
    """The number at the start of a text, as a reader takes it."""
    return float(text.split(" ")[0].replace("−", "-").replace(",", ""))


@QUICK
@given(value=st.floats(-1e12, 1e12), more=st.floats(0, 1e12))
def test_three_significant_digits_are_near_the_number_and_in_its_order(
    value: float, more: float
) -> None:
    assert abs(number(significant(value)) - value) <= 0.005001 * abs(value)
    assert number(significant(value)) <= number(significant(value + more))
    assert re.fullmatch(r"-?[\d,]+(\.\d+)?(e-\d+)?", significant(value))


@QUICK
@given(ns=NS, more=st.floats(0, 1e14))
def test_a_time_in_words_is_the_time_and_a_longer_one_reads_no_shorter(
    ns: float, more: float
) -> None:
    for text in (ms(ns), time(ns)):
        unit = {"µs": 1e3, "ms": 1e6, "s": 1e9}[text.split(" ")[1]]
        assert abs(number(text) * unit - ns) <= max(51, 0.006 * abs(ns))
    scaled = [number(text) * (1e6 if " ms" in text else 1e3) for text in (ms(ns), ms(ns + more))]
    assert scaled[0] <= scaled[1] + 51


@QUICK
@given(share=st.floats(-1, 10), decimals=st.integers(0, 3), low=st.integers(0, 99),
       width=st.integers(0, 9), before=st.integers(1, 500),
       after=st.sets(st.integers(1, 500), min_size=1))  # fmt: skip
def test_shares_ranges_and_falls_say_their_ends(
    share: float, decimals: int, low: int, width: int, before: int, after: set[int]
) -> None:
    assert abs(number(percent(share, decimals)) - 100 * share) <= 0.51 * 10**-decimals
    ends = spread(low, low + width).split("–")
    assert (int(ends[0]), int(ends[-1]), len(ends)) == (low, low + width, 1 + (width > 0))
    numbers = [int(word) for word in re.findall(r"\d+", fell_to(before, after))]
    assert numbers == [before, *sorted({min(after), max(after)})]


@QUICK
@given(name=st.text("aB_:<>, 1é", max_size=90), longest=st.integers(4, 100))
def test_a_shortened_name_begins_as_the_name_and_is_no_longer_than_asked(
    name: str, longest: int
) -> None:
    text = shortened(name, longest)
    assert len(text) <= max(longest, 1)
    assert text == name or (text.endswith("…") and name.startswith(text[:-1]))
    assert shortened(text, longest) == text


SECRETS = st.sampled_from(
    ["hf_" + "QyZ7planted0secret1token2abcd", "/home/ada/run 1", "ada@host.example.org",
     "password: hunter22", "gpu-17.local", "C:\\Users\\ada\\x", "plain", "aten::mm", "12.3 ms",
     "https://ada:pw@git.example/x", "10.0.0.7", "s3://bucket/key", "~ada/model"],
)  # fmt: skip
TEXTS = st.lists(SECRETS | st.text(max_size=12), max_size=4).map(" ".join)
VALUES = st.recursive(
    TEXTS | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@QUICK
@given(value=VALUES, words=st.lists(TEXTS, max_size=4))
def test_values_and_command_lines_are_scrubbed_once_and_for_all(
    value: Any, words: list[str]
) -> None:
    once = scrub_values(value)
    assert scrub_values(once) == once
    shown = scrub_words(words)
    assert len(shown) == len(words)
    assert not any("hunter22" in text or "QyZ7" in text for text in [*shown, str(once)])


@QUICK
@given(text=TEXTS)
def test_a_cleared_text_holds_nothing_suspicious(text: str) -> None:
    clean = cleared(text, ["ada"])
    assert suspicious("report.json", clean, ["ada"]) == []
    assert cleared(clean, ["ada"]) == clean


FILES = st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.json", fullmatch=True),
                        st.binary(min_size=1, max_size=60), min_size=1, max_size=5)  # fmt: skip


@QUICK
@given(files=FILES, order=st.randoms(use_true_random=False))
def test_an_archive_depends_on_its_files_alone_and_gives_them_back(
    files: dict[str, bytes], order: Random, tmp_path_factory: Any
) -> None:
    shuffled = list(files.items())
    order.shuffle(shuffled)
    data = zip_bytes(dict(shuffled))
    assert data == zip_bytes(files)
    path = tmp_path_factory.mktemp("zip") / "bundle.zip"
    path.write_bytes(data)
    unpacked = read_zip(path)
    assert (unpacked.files, unpacked.failed) == (files, {})


def test_an_archive_of_empty_files_gives_them_back(tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(zip_bytes({"a.json": b""}))
    assert read_zip(tmp_path / "bundle.zip").failed == {}


@QUICK
@given(value=VALUES, added=VALUES)
def test_a_report_differs_from_one_that_lacks_a_part_and_never_from_itself(
    value: Any, added: Any
) -> None:
    whole, part = {"a": value, "b": added}, {"a": value}
    assert difference(whole, whole) is None
    assert difference(part, whole) is not None
    assert difference(whole, part) is not None
    assert difference([value, added], [value]) is not None
