"""Compare the results of the frozen cases with their digests: `make frozen`.

Where one differs, the commit before is built in a worktree, and the first line that differs is
printed, as it was and as it is. `--update` writes the digests of today.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from shutil import copytree, rmtree

from tests.frozen.cases import LEFT_OUT, cases
from tests.frozen.places import DATA, ROOT
from tests.frozen.results import differing, digests, freeze, frozen, stale, texts

WIDTH = 400  # columns of a line that differs


def digests_of(name: str) -> tuple[str, dict[str, str], float]:
    """Run a case in a folder of its own; return its name, digests and seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="frozen-") as folder:
        digests_now = digests(texts(cases()[name], Path(folder)))
    return name, digests_now, time.monotonic() - began


def keep(names: list[str], folder: Path) -> None:
    """Write the texts of cases to `folder/CASE.FORMAT`."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="frozen-") as place:
            for kind, text in texts(cases()[name], Path(place)).items():
                (folder / f"{name}.{kind}").write_text(text, errors="surrogatepass")


def all_digests(names: list[str], jobs: int) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield what `digests_of` gives for each name, as soon as it is there."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(digests_of, name) for name in names]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def commit_before() -> str:
    """Return HEAD where the worktree has changes, else the commit before it."""
    status = ["git", "-C", str(ROOT), "status", "--porcelain"]
    changed = subprocess.run(status, check=True, capture_output=True, text=True).stdout
    return "HEAD" if changed.strip() else "HEAD~1"


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Yield a temporary worktree of a commit, with the cases of today; it is removed at the end."""
    git, folder = ["git", "-C", str(ROOT), "worktree"], Path(tempfile.mkdtemp(prefix="frozen-"))
    place = folder / "before"
    try:
        subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
        copytree(ROOT / "tests" / "frozen", place / "tests" / "frozen", dirs_exist_ok=True)
        yield place
    finally:
        # One that was interrupted while it was made is locked, and no worktree yet.
        subprocess.run([*git, "unlock", str(place)], check=False, capture_output=True)
        rmtree(folder)
        subprocess.run([*git, "prune"], check=False)


def texts_of(root: Path, name: str) -> dict[str, str]:
    """Run a case with the code below `root`, in a process of its own; return the texts."""
    with tempfile.TemporaryDirectory(prefix="frozen-") as folder:
        command = [sys.executable, "-m", "tests.frozen.run", "--only", name, "--keep", folder]
        (Path(folder) / "temporary").mkdir()  # of the process, which may be killed by Ctrl-C
        environment = {
            **os.environ, "PYTHONPATH": str(root), "FROZEN_DATA": str(DATA),
            "TMPDIR": f"{folder}/temporary",
        }  # fmt: skip
        subprocess.run(command, check=True, cwd=root, env=environment)
        kept = sorted(path for path in Path(folder).iterdir() if path.is_file())
        return {path.suffix[1:]: path.read_text(errors="replace") for path in kept}


def first_difference(before: str, after: str) -> tuple[int, str, str] | None:
    """Return the first line that differs, counted from 1, as it was and as it is."""
    lines = zip_longest(before.splitlines(), after.splitlines(), fillvalue="(the end)")
    for number, (old, new) in enumerate(lines, start=1):
        if old != new:
            at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
            cut = slice(max(0, at - WIDTH // 4), at + WIDTH)
            return number, old[cut], new[cut]
    return None


def say(line: str) -> None:
    """Print a line at once, for a run takes minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def show_difference(name: str, formats: list[str], commit: str) -> None:
    """Print the first differing line of each format of a case, before and now."""
    with worktree(commit) as place:
        before = texts_of(place, name)
    after = texts_of(ROOT, name)
    say(f"\n{name}, {commit} against the worktree:")
    is_same = True
    for kind in formats:
        lines = first_difference(before.get(kind, ""), after.get(kind, ""))
        if lines is not None:
            is_same = False
            number, old, new = lines
            say(f"  {kind}, line {number}\n    before: {old}\n    now:    {new}")
    if is_same:
        say(
            f"  {commit} gives the same: the digests are older, or other libraries made them; "
            "--against COMMIT compares with another"
        )


def chosen(pattern: str | None) -> tuple[list[str], int]:
    """Return the names of the cases to run, and how many need data that is not there."""
    names = [name for name in cases() if fnmatch.fnmatch(name, pattern or "*")]
    possible = [name for name in names if DATA.is_dir() or not cases()[name].needs_data]
    return possible, len(names) - len(possible)


def arguments() -> argparse.Namespace:
    """Return the words of the command line."""
    parser = argparse.ArgumentParser(description="Compare results with their frozen digests.")
    parser.add_argument("--update", action="store_true", help="write the digests of today")
    parser.add_argument(
        "--only", metavar="PATTERN", help="cases whose name fits, such as 'story-*'"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--against", metavar="COMMIT", help="commit to show differences from")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the texts, compare none")
    return parser.parse_args()


def compare(names: list[str], jobs: int, *, update: bool) -> dict[str, list[str]]:
    """Run the cases, and return the formats that differ by case; update writes their digests."""
    began = time.monotonic()
    different: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    for name, digests_now, took in all_digests(names, jobs):
        seconds[name] = took
        if formats := differing(frozen(name), digests_now):
            different[name] = formats
            say(f"{name}: {', '.join(formats)}")
            if update:
                freeze(name, digests_now)
    verb = "written" if update else "different"
    say(f"{len(names)} cases in {time.monotonic() - began:.0f} s, {len(different)} {verb}")
    longest = sorted(seconds, key=lambda name: -seconds[name])[:5]
    say("longest: " + ", ".join(f"{name} {seconds[name]:.1f} s" for name in longest))
    return different


def main() -> int:
    """Run the cases; return 1 where a digest differs, else 0."""
    asked = arguments()
    names, left_out = chosen(asked.only)
    if asked.list:
        say("\n".join(names))
        return 0
    if asked.keep is not None:
        keep(names, asked.keep)
        return 0
    different = compare(names, asked.jobs, update=asked.update)
    gone = list(stale()) if asked.only is None else []
    for path in gone:
        say(f"{path.name}: there is no such case")
        if asked.update:
            path.unlink()
    if left_out:
        say(f"{left_out} cases were left out: they need ../shared/data beside the checkout")
    if asked.only is None:
        say("never run: " + "; ".join(f"{what} ({why})" for what, why in LEFT_OUT.items()))
    if asked.update or not (different or gone):
        return 0
    if different:
        name = min(different, key=names.index)
        show_difference(name, different[name], asked.against or commit_before())
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
