"""A process that dies or fails while it writes runs or a report leaves the old one or the new one,
whole, and the next call cleans up."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prunescope.analysis.report.write import write_files
from prunescope.taxonomy import atomic_write as whole
from prunescope.taxonomy.atomic_write import (
    append_file,
    claimed,
    partial_folder,
    put_in_place,
    write_file,
)
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import read_run, sha256_of
from tests import forked
from tests.faults.driver import POINTS, WORK, everything, write_both, write_one_report

ROOT = Path(__file__).resolve().parents[2]
Content = dict[str, bytes]
OVER = ("file 2", "filled", "placed")  # where a process dies that replaces an older one
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
UNWRITABLE = ("/proc/report", "/sys/report")


def run(what: str, point: str, out: Path, how: str) -> subprocess.CompletedProcess[str]:
    return forked.run("tests.faults.driver", [what, point, str(out), how], timeout=120)


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob(".*")]


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Content]:
    """What the undisturbed work leaves in a folder."""

    def make(what: str) -> Content:
        WORK[what](tmp_path / f"whole-{what}" / "f")
        return everything(tmp_path / f"whole-{what}" / "f")

    return make


@pytest.mark.parametrize("what", ["runs", "report"])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_nothing_or_all_of_it(
    what: str, point: str, made: Callable[[str], Content], tmp_path: Path
) -> None:
    out = tmp_path / "x" / "f"
    assert run(what, point, out, "kill").returncode == -signal.SIGKILL
    assert out.exists() == (point == "placed")
    if point == "placed":
        assert everything(out) == made(what)
    WORK[what](out)
    assert everything(out) == made(what)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("what", ["runs", "report"])
@pytest.mark.parametrize("point", OVER)
def test_a_kill_over_an_older_one_leaves_one_of_them(
    what: str, point: str, made: Callable[[str], Content], tmp_path: Path
) -> None:
    new, out = made(what), tmp_path / "x" / "f"
    WORK[what](out)
    for path in out.rglob("*"):
        if path.is_file():
            path.write_bytes(b"old " + path.read_bytes())
    old = everything(out)
    assert run(what, point, out, "kill").returncode == -signal.SIGKILL
    assert everything(out) == (new if point == "placed" else old)
    WORK[what](out)
    assert everything(out) == new
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("what", ["runs", "report"])
def test_a_full_disk_leaves_what_was_there(what: str, tmp_path: Path) -> None:
    """The limit on the size of a file stands for the disk: the system itself refuses to write."""
    out = tmp_path / "x" / "f"
    for _ in range(2):
        before = everything(out) if out.exists() else None
        done = run(what, "-", out, "fsize")
        assert done.returncode == 1
        assert "File too large" in done.stderr
        assert (everything(out) if out.exists() else None) == before
        assert leftovers(tmp_path) == []
        WORK[what](out)


@pytest.mark.parametrize("error", ERRORS)
def test_a_report_that_cannot_be_written_says_why(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_one_report(tmp_path / "r")
    old = everything(tmp_path / "r")
    real = Path.write_bytes

    def fails(path: Path, data: bytes) -> int:
        if path.name == "b.pdf":
            real(path, data[:10])
            raise OSError(error, os.strerror(error))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", fails)
    monkeypatch.setenv("MARK", "newer")
    with pytest.raises(PrunescopeError, match=os.strerror(error)):
        write_one_report(tmp_path / "r")
    assert everything(tmp_path / "r") == old
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("out", UNWRITABLE)
def test_an_output_that_cannot_be_written_is_one_sentence(out: str) -> None:
    if not Path(out).parent.is_dir():
        pytest.skip(f"needs {Path(out).parent}")
    with pytest.raises(PrunescopeError, match="cannot write"):
        write_files({"report.md": b"x"}, Path(out))
    with pytest.raises(OSError, match=str(Path(out).parent)):
        write_both(Path(out))


def test_a_folder_of_the_user_keeps_what_is_in_it(tmp_path: Path) -> None:
    """Other files stay in a report's folder; a folder in it, a link or a working directory means
    that nothing but the files themselves is replaced."""
    out = tmp_path / "r"
    write_one_report(out)
    (out / "notes.txt").write_text("mine")
    inode = out.stat().st_ino
    write_one_report(out)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "folder").mkdir()
    (out / "folder" / "x").write_text("mine")
    (out / "link").symlink_to("folder")
    replaced = out.stat().st_ino
    write_one_report(out)
    assert replaced != inode
    assert out.stat().st_ino == replaced
    assert (out / "link" / "x").read_text() == "mine"
    assert leftovers(tmp_path) == []


def test_a_working_directory_is_not_pulled_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_one_report(tmp_path / "r")
    monkeypatch.chdir(tmp_path / "r")
    inode = Path.cwd().stat().st_ino
    write_one_report(Path())
    assert (tmp_path / "r").stat().st_ino == inode
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_without_an_exchange_the_old_one_steps_aside(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system cannot swap two names; an interrupt at any moment loses neither."""
    monkeypatch.setattr(whole, "_exchange", lambda *_: False)
    write_one_report(tmp_path / "r")
    old = everything(tmp_path / "r")
    real = Path.rename
    number = {"before": 2, "between": 3, "after": 4}[moment]  # the first is refused: it is there
    calls = [0]

    def rename(path: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == number:
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setenv("MARK", "newer")
    with pytest.raises(KeyboardInterrupt):
        write_one_report(tmp_path / "r")
    monkeypatch.setattr(Path, "rename", real)
    newer = everything(tmp_path / "r") != old
    assert newer == (moment == "after")
    assert set(everything(tmp_path / "r")) == set(old)
    write_one_report(tmp_path / "r")
    assert everything(tmp_path / "r") != old


def test_a_run_that_was_moved_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    write_both(tmp_path / "f")
    old = everything(tmp_path / "f")
    (tmp_path / "f").rename(tmp_path / ".f.0123abcd.old")
    with partial_folder(tmp_path / "f"):
        assert everything(tmp_path / "f") == old
    assert leftovers(tmp_path) == []


def test_the_partial_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    out = tmp_path / "f"
    with partial_folder(out) as first:
        (first / "x").write_text("1")
        with partial_folder(out) as second:
            assert (first / "x").exists()
            put_in_place(second, out)
        put_in_place(first, out)
    assert everything(out) == {"x": b"1"}
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_killed_process_leaves_no_half_file(there: bool, tmp_path: Path) -> None:
    """Of a bundle, or of --json FILE."""
    out = tmp_path / "b.zip"
    if there:
        write_file(out, b"old" * 9999)
    assert run("file", "replaced", out, "kill").returncode == -signal.SIGKILL
    assert len(leftovers(tmp_path)) == 1
    assert out.exists() == there
    write_file(out, b"new")
    assert everything(tmp_path) == {"b.zip": b"new"}


def test_temporary_files_of_others_stay(tmp_path: Path) -> None:
    names = (".f.tmp", ".f.mine.tmp", ".f.partial", ".f.0123abcg.tmp", ".g.0123abcd.tmp")
    for name in names:
        (tmp_path / name).write_text("mine")
    write_file(tmp_path / "f", b"x")
    write_both(tmp_path / "g")
    assert sorted(p.name for p in tmp_path.glob(".*")) == sorted(names)


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "f"),
        pytest.raises(PrunescopeError, match="another process is writing"),
        claimed(tmp_path / "f"),
    ):
        pass
    with claimed(tmp_path / "f"), claimed(tmp_path / "g"):
        pass
    with claimed(tmp_path / "f"):
        pass


def test_a_killed_process_frees_its_claim(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from prunescope.taxonomy.atomic_write import claimed\n"
        "with claimed(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f")], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    with claimed(tmp_path / "f"):
        pass


def test_claims_of_killed_processes_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next claim of anything removes them; one that is held stays, and what is no claim."""
    monkeypatch.setattr(whole.tempfile, "gettempdir", lambda: str(tmp_path))
    name = f"prunescope-{whole._user()}"
    abandoned = [tmp_path / f"{name}-{i:016x}.lock" for i in range(9)]
    slot = tmp_path / f"{name.replace('-', '-slot-')}-cpu.lock"
    for path in (*abandoned, slot):
        path.touch()
    with claimed(tmp_path / "f"):
        mine = {path for path in tmp_path.iterdir() if path.suffix == ".lock"} - {slot}
        assert len(mine) == 1
        with claimed(tmp_path / "g"):
            assert mine < {path for path in tmp_path.iterdir() if path.suffix == ".lock"}
            with pytest.raises(PrunescopeError), claimed(tmp_path / "f"):
                pass
    assert list(tmp_path.iterdir()) == [slot]


@pytest.mark.parametrize("what", ["runs", "file"])
def test_a_full_disk_is_told_with_the_name_of_what_was_written(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system names no file where a write fails; it is named as it was asked for."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails(*_: object) -> None:
        raise full

    monkeypatch.setattr(os, "fsync", fails)
    target = tmp_path / "g" / "f" if what == "runs" else tmp_path / "f"
    with pytest.raises(OSError, match="No space left on device") as raised:
        WORK[what](target) if what == "runs" else write_file(target, b"")
    assert raised.value.filename == str(target)


def test_a_file_that_cannot_be_written_is_named_and_no_temporary_one(tmp_path: Path) -> None:
    """The system names the temporary file, which nobody asked for."""
    target = tmp_path / "a folder" / "f"
    with pytest.raises(OSError, match="No such file") as raised:
        write_file(target, b"")
    assert raised.value.filename == str(target)


@pytest.mark.parametrize("held", [b"", b"old\n"])
def test_what_is_appended_is_there_whole_or_not_at_all(held: bytes, tmp_path: Path) -> None:
    """The disk has room for 3 of the 9 bytes: the system writes those, and then refuses."""
    path = tmp_path / "history.jsonl"
    if held:
        path.write_bytes(held)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(held) + 3, limits[1]))
    try:
        with pytest.raises(OSError, match=str(path)):
            append_file(path, b"new line\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert everything(tmp_path) == ({path.name: held} if held else {})
    append_file(path, b"new line\n")
    assert path.read_bytes() == held + b"new line\n"


def test_what_was_written_is_whole(tmp_path: Path) -> None:
    """The kills above compare with this: runs that can be read, with the sums of their traces."""
    write_both(tmp_path / "f")
    for variant in ("dense", "pruned"):
        run_folder = tmp_path / "f" / variant
        phase = read_run(run_folder).phases["prefill"]
        assert sha256_of(run_folder / phase.trace) == phase.sha256
