"""Every hostile file is refused in one sentence, read up to a cut, or read: nothing else."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import prunescope
from tests.hostile.case import Case, answer
from tests.hostile.corpus import FULL, QUICK
from tests.hostile.files import bombs

LIMIT_S = 60
PARTS = 20
MEMORY_BYTES = 1 << 30
REST = sorted(set(FULL) - set(QUICK))
# Through the command, with --json: what a user sees of the same answers.
COMMAND = (
    "not a trace: empty", "cut at byte 1", "gzip bomb of spaces", "zip holds '../../evil.json'",
    "a link to a device", "a pipe", "a name with a nul", "names of a trace: everything",
    "run.json is deep", "the twin is '/etc/run.json'", "flows in a circle",
    "dims of aten::mm are huge",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """Fails a test that takes longer than a minute; none is near it."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory() -> Iterator[None]:
    """The process's peak while the corpus is read, over what it held before."""
    before = _peak(reset=True)
    yield
    assert _peak() - before < MEMORY_BYTES


def _peak(*, reset: bool = False) -> int:
    """Peak resident bytes since the last reset; 0 where the system does not tell."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.is_file() or not clear.exists():
        return 0
    if reset:
        clear.write_text("5")
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def wrong(names: list[str], folder: Path) -> list[str]:
    """Those of the cases that are not answered by a code of theirs."""
    found = []
    for i, name in enumerate(names):
        signal.alarm(LIMIT_S)
        (folder / str(i)).mkdir()
        if answer(FULL[name], folder / str(i)) not in FULL[name].codes:
            found.append(name)
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_a_hostile_file_has_an_answer(part: int, tmp_path: Path) -> None:
    assert wrong(sorted(QUICK)[part::PARTS], tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_cell_of_the_large_tables(part: int, tmp_path: Path) -> None:
    assert wrong(REST[part::PARTS], tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", list(bombs(1 << 30)), ids=lambda case: case.name)
def test_a_bomb_of_a_gigabyte(case: Case, tmp_path: Path) -> None:
    assert answer(case, tmp_path) in case.codes


@pytest.mark.parametrize("name", COMMAND)
def test_the_command_says_it_in_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = QUICK[name].write(tmp_path)
    code = prunescope.main(["analyze", str(subject), "--json", "-"])
    out, err = capsys.readouterr()
    assert code in QUICK[name].codes
    assert "Traceback" not in err + out
    assert "\x1b" not in err + out
    if code == 2:
        assert out == ""
        error = json.loads(err.splitlines()[-1])["error"]
        assert set(error) == {"problem", "hint"}
        assert all(error.values())
    else:
        json.loads(out)


def test_the_corpus_is_large() -> None:
    assert len(QUICK) >= 200
    assert len(FULL) > len(QUICK)
