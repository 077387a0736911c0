"""What a stranger may type and where: odd words, places and streams. Each is answered in words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import prunescope
from tests.hostile.material import write_pair

ROOT = Path(__file__).resolve().parents[2]
HUGE = "9" * 5000
ODD = ("-", "--", "\n", "\x1b[2J", "é\U0001f600", "٠", "x" * 5000, "\udce9", "a\0b", "~nobody/x",
       "/", ".", "..", "/dev/null", "/dev/zero", "/proc/self/mem",
       "https://x.example/t.json")  # fmt: skip
NUMBERS = (HUGE, f"0.{HUGE}", "1e400", "-0.1", "nan", "inf", "٠٫٥", "0,5", "½", "0x1", "1_0", "")
SUBJECTS = ("analyze", "bundle", "pareto", "verify")


def assert_answered(
    words: list[str], capsys: pytest.CaptureFixture[str], codes: tuple[int, ...] = (2,)
) -> None:
    """The command ends with one of the codes; where it is 2, in one sentence and a hint."""
    code = prunescope.main(words)
    out, err = capsys.readouterr()
    assert code in codes, (words, code, err[-500:])
    assert "Traceback" not in out + err
    if code == 2:
        problem, hint = err.splitlines()[:2]
        assert problem.startswith("error: ")
        assert hint.startswith("  hint: ")
        assert len(err) < 2000
        assert "\x1b" not in err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pair of runs called `run` in the working directory, which alone is in its parent."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    write_pair(here / "run")
    return Path("run")


@pytest.mark.parametrize("word", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("command", SUBJECTS)
def test_odd_subjects(
    command: str, word: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_answered([command, word], capsys, (0, 2, 3) if word in (".", "..") else (2, 3))
    assert (run / "pruned" / "run.json").is_file()


@pytest.mark.parametrize("word", NUMBERS, ids=range(len(NUMBERS)))
def test_odd_numbers(word: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too large, not finite, or in digits that Python reads and nobody means."""
    predict = ["predict", "--model", "tiny-llama", "--device", "h100-sxm"]
    trace = ["trace", "--model", "tiny-llama", "--out", "t"]
    for words in (
        ["analyze", str(run), "--bandwidth", word],
        ["analyze", str(run), "--peak", f"bf16={word}"],
        ["analyze", str(run), "--sparsity", word],
        [*predict, "--method", "static-m", "--sparsity", word],
        [*predict, "--batch", word],
        [*predict, "--prompt-len", word],
        [*trace, "--method", "static-m", "--sparsity", word],
        [*trace, "--threads", word],
        [*trace, "--seed", word],
    ):
        if word != f"0.{HUGE}":
            assert_answered(words, capsys)
    assert not Path("t").exists()


@pytest.mark.parametrize("word", ODD, ids=range(len(ODD)))
def test_odd_values(word: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict = ["predict", "--model", "tiny-llama", "--device", "h100-sxm"]
    for words in (
        ["analyze", str(run), "--device", word],
        ["analyze", str(run), "--format", word],
        ["analyze", str(run), "--baseline", word],
        ["analyze", str(run), "--eager-trace", word],
        ["analyze", str(run), "--peak", word],
        ["predict", "--model", word, "--device", "h100-sxm"],
        ["predict", "--model", "tiny-llama", "--device", word],
        [*predict, "--method", word],
        [*predict, "--method", "static-m", "--set", word],
        ["families", "--architecture", word],
        ["sweep", word, "--out", "s"],
        ["sweep", "--preset", word, "--out", "s"],
        ["sweep", "--preset", "paper", "--shard", word, "--out", "s"],
        [word],
    ):
        assert_answered(words, capsys, (0, 2) if words[-1] == word == "--" else (2,))
    assert not Path("s").exists()


@pytest.mark.parametrize("name", ["a\nb", "-x", "é\U0001f600", "\x1b[2J", "a b'\"$(x)", "%s"])
def test_odd_names_of_a_run(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file system holds such names: they are read, and shown without what a terminal obeys."""
    shutil.copytree(run, f"./{name}")
    words = ["analyze", f"./{name}", "--format", "md,html,tex,csv,json"]
    assert prunescope.main([*words, "--json", "-"]) == 0
    out, _ = capsys.readouterr()
    json.loads(out)
    assert prunescope.main(words) == 0
    out, _ = capsys.readouterr()
    assert "\x1b[2J" not in out
    assert (Path(f"./{name}") / "report" / "report.md").is_file()


def test_a_name_that_is_no_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no UTF-8 have no place in JSON: told, and nothing is written."""
    shutil.copytree(run, "\udce9")
    assert_answered(["analyze", "\udce9"], capsys)
    assert not Path("\udce9", "report").exists()


def loop(folder: Path) -> Path:
    """A link to itself."""
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def links_in_a_circle(folder: Path) -> Path:
    """A folder that holds itself."""
    (folder / "f").mkdir()
    (folder / "f" / "in").symlink_to("../f")
    return folder / "f"


def fifo(folder: Path) -> Path:
    """A pipe that nobody writes to."""
    os.mkfifo(folder / "t.json")
    return folder / "t.json"


def named_folder(folder: Path) -> Path:
    """A folder with the name of a trace."""
    (folder / "t.json.gz").mkdir()
    return folder / "t.json.gz"


def unreadable_manifest(folder: Path) -> Path:
    """A run whose manifest is a folder."""
    (folder / "f" / "run.json").mkdir(parents=True)
    return folder / "f"


@pytest.mark.parametrize("make", [loop, links_in_a_circle, fifo, named_folder, unreadable_manifest])
def test_odd_places(
    make: Callable[[Path], Path],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = str(make(tmp_path))
    for words in (
        ["analyze", place],
        ["analyze", str(run), "--baseline", place],
        ["bundle", place],
        ["verify", place],
        ["pareto", place],
        ["predict", "--model", place, "--device", "h100-sxm"],
        ["sweep", place, "--out", "s"],
    ):
        assert_answered(words, capsys, (2, 3))


def test_the_manifest_of_another_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sums of its traces differ: the report says so."""
    plain = json.loads((run / "pruned" / "run.json").read_bytes())
    for phase in plain["phases"].values():
        phase["sha256"] = "0" * 64
    (run / "pruned" / "run.json").write_text(json.dumps(plain))
    assert prunescope.main(["analyze", str(run), "--json", "-", "--format", "md"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert [w for w in warnings if "is not the file that was captured" in w] != []


def test_a_trace_that_grows_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read to some end: a report, a part, or a refusal."""
    monkeypatch.chdir(tmp_path)
    path, over = tmp_path / "growing.json", threading.Event()
    event = (
        '{"ph":"X","cat":"cpu_op","name":"aten::mm","pid":1,"tid":1,"ts":%d,"dur":1,"args":{}},\n'
    )
    path.write_text("[" + "".join(event % i for i in range(0, 4000, 2)))

    def grow() -> None:
        with path.open("a") as file:
            for i in range(4000, 10**7, 2):
                if over.is_set():
                    return
                file.write(event % i)
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        assert_answered(["analyze", str(path), "--out", "r"], capsys, (0, 2, 3))
    finally:
        over.set()
        writer.join()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["--json", "/dev/full"], ["--json", "-"], []])
def test_output_that_cannot_be_written(words: list[str], run: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "prunescope", "analyze", str(run), "--format", "md",
             *words], cwd=Path.cwd(), stdout=full, stderr=subprocess.PIPE, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("devices", 0), ("analyze gone", 2)])
def test_closed_streams(closed: str, words: str, code: int) -> None:
    """A service without a terminal may start it with nothing to write to."""
    shell = f'exec "$0" -m prunescope {words} {closed}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_narrow_terminal_without_home_or_unicode(tmp_path: Path) -> None:
    run = write_pair(tmp_path / "run")
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": "20", "LC_ALL": "C", "PYTHONUTF8": "0",
                   "PYTHONCOERCECLOCALE": "0", "NO_COLOR": "1", "TERM": "dumb",
                   "TMPDIR": "/nowhere"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "prunescope", "analyze", str(run), "--format", "md"],
        env=environment, cwd=tmp_path, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    assert done.stderr == b""
