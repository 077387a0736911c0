"""Signals and kills where a command is at work: drawing, bundling, asking processes of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunescope.analysis.bundle.bundle import bundle
from prunescope.taxonomy.uninterrupted import uninterrupted
from tests import forked
from tests.faults.hooked import TEXT_FORMATS
from tests.hostile.material import write_pair

ROOT = Path(__file__).resolve().parents[2]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
both = pytest.mark.parametrize("number", CODES)
REPORT = "prunescope.analysis.report.write:_place"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("ends") / "run")


def command(
    *words: object, at: str, what: str = "kill", number: int = 0, nth: int = 1, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; at the nth call of `module:a.b`, `what` of `hooked.EVENTS` happens."""
    given = [at, nth, what, int(number), *words]
    return forked.run(
        "tests.faults.hooked", [*map(str, given)], env={**os.environ, **env}, timeout=120
    )


@pytest.mark.parametrize("swallows", [False, True], ids=["passes", "swallows"])
@pytest.mark.parametrize(
    ("format_", "number"),
    [("svg", signal.SIGINT), ("svg", signal.SIGTERM), ("png", signal.SIGINT),
     ("pdf", signal.SIGTERM)],
)  # fmt: skip
def test_while_a_picture_is_drawn(
    number: signal.Signals, swallows: bool, format_: str, run: Path, tmp_path: Path
) -> None:
    """Matplotlib may make another exception of one that a handler raises, or lose it: as here."""
    done = command(
        "analyze", run, "--out", tmp_path / "out", "--format", format_,
        at="matplotlib.text:Text.draw", what="swallow" if swallows else "kill", number=number,
        nth=9,
    )  # fmt: skip
    assert done.returncode == CODES[number], done.stderr
    assert done.stderr.startswith("error: interrupted\n")
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert list(tmp_path.glob("out*")) == list(tmp_path.glob(".out*")) == []


@both
def test_what_a_library_makes_of_a_signal_is_a_signal(
    number: signal.Signals, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = command("analyze", run, "--out", out, at=REPORT, what="make_another", number=number)
    assert (done.returncode, "Traceback" in done.stderr) == (CODES[number], False), done.stderr


def test_an_error_without_a_signal_is_shown_as_it_is(run: Path, tmp_path: Path) -> None:
    done = command("analyze", run, "--out", tmp_path / "out", at=REPORT, what="fail")
    assert done.returncode == 1 and "a bug of ours" in done.stderr


@both
def test_a_signal_inside_waits_for_the_end(number: signal.Signals) -> None:
    class Heard(Exception):
        pass

    def hear(*_: object) -> None:
        raise Heard

    before, done = signal.signal(number, hear), []
    try:
        with pytest.raises(Heard), uninterrupted(), uninterrupted():
            signal.raise_signal(number)
            done.append("inside")
        assert done == ["inside"] and signal.getsignal(number) is hear
        signal.signal(number, signal.SIG_IGN)
        with uninterrupted():
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("what", ["bundle", "verify"])
def test_what_a_killed_one_leaves_goes_with_the_next(
    what: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_FIGURES", "1")
    monkeypatch.setattr("prunescope.analysis.bundle.bundle.FORMATS", TEXT_FORMATS)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    if what == "bundle":
        words = ["bundle", run, "-o", tmp_path / "new.zip"]
    else:
        words = ["verify", bundle([run], tmp_path / "evidence.zip")]
    done = command(*words, at=REPORT, number=signal.SIGKILL, TMPDIR=str(temporary))
    assert done.returncode == -signal.SIGKILL
    (left,) = temporary.iterdir()
    assert re.fullmatch(r"prunescope-\d+-[0-9a-f]{8}\.scratch", left.name)
    again = command(*words, at=REPORT, nth=99, TMPDIR=str(temporary))
    assert again.returncode == 0
    assert list(temporary.iterdir()) == []


def test_workers_of_a_pool_that_is_killed_say_nothing(tmp_path: Path) -> None:
    """Their reply finds no reader. A reply is larger than a pipe holds, and comes late."""
    code = (
        "import sys\nfrom prunescope.analysis.pool import run_tasks\n"
        "from tests.analysis.pool_case import reply_late\n"
        "list(run_tasks(reply_late, sys.argv[1:], str, jobs=2))\n"
    )
    begun = [tmp_path / str(i) for i in range(2)]
    said = tmp_path / "said"
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, begun)], stderr=file, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
        )  # fmt: skip
    while not all(path.exists() for path in begun) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait(30)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    assert said.read_text() == ""
