"""The commands of prunescope on a GPU, in slices of a few minutes that resume where they stopped.

    python benchmarks/gpu.py SLICE --out FOLDER [--minutes 8] [--device cuda] [--wheels FOLDER]
    python benchmarks/gpu.py report --out FOLDER

A slice is a list of commands, the most important first, as a user would type them: calibrate, then
sparse24, graph, waves, families-1b, families-8b. It leaves FOLDER/SLICE-N.zip of at most 15 MB
each; `report` analyses the runs in FOLDER. Exit code 0: nothing is left; 3: the same call goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE_BYTES = 15_000_000
MAX_ARCHIVES = 7
# Packages that the commands import apart from torch and transformers; a bare machine takes them
# from carried wheels.
NEEDED = ("typer", "rich", "msgspec", "psutil", "yaml", "safetensors", "gguf")
WHEELS = ("typer", "rich", "msgspec", "psutil", "pyyaml", "safetensors", "gguf")
# Families whose captures a CUDA graph can hold: shapes do not depend on the input.
GRAPH_FAMILIES = ("static-m", "static-nk", "static-k-24", "static-k-lowrank")
FAMILIES = (
    "static-m", "static-nk", "static-nk-mlp", "static-nk-heads", "static-nk-cross", "static-k-24",
    "static-k-lowrank", "static-k-mask", "dynamic-m", "dynamic-nk", "dynamic-depth",
    "dynamic-width", "token-drop", "kv-evict",
)  # fmt: skip
SPARSE, WIDTH, CHANNELS = "static-k-24", "static-nk", "static-nk-mlp"
BATCHES = (1, 8, 32)
PROMPTS = (1024, 8192)


@dataclass(frozen=True)
class Step:
    """One command. `name`: its folder in the slice; `words`: what follows `prunescope`."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """Where a slice runs, and on which models (presets; weights are random)."""

    folder: Path
    device: str = "cuda"
    small: str = "llama-3.2-1b"
    large: str = "llama-3.1-8b"


def _calibrate(at: Setting) -> Iterator[Step]:
    yield Step("peaks", ("calibrate", "--device", at.device, "--out", "calibration.json"))


def _sparse24(at: Setting) -> Iterator[Step]:
    for model in (at.small, at.large):
        for phase, batch in (("prefill", 1), ("decode", 1), ("decode", 32)):
            yield _trace(at, model, SPARSE, 0.5, phase=phase, batch=batch)


def _graph(at: Setting) -> Iterator[Step]:
    for batch in BATCHES:
        for mode in ("graph", "eager"):
            yield _trace(at, at.small, WIDTH, 0.5, phase="decode", batch=batch, mode=mode)


def _waves(at: Setting) -> Iterator[Step]:
    """N of gate and up and K of down, a twentieth of the channels at a time."""
    shares = [round(0.05 * step, 2) for step in range(1, 15)]
    yield _sweep(at, at.small, (CHANNELS,), shares, batches=(1,), phases=("prefill",))


def _families(at: Setting, model: str) -> Iterator[Step]:
    yield _sweep(at, model, FAMILIES, (0.5, 0.25))
    for family in GRAPH_FAMILIES:
        for batch in BATCHES:
            yield _trace(at, model, family, 0.5, phase="decode", batch=batch, mode="graph")


def _trace(at: Setting, model: str, family: str, sparsity: float, **options: str | int) -> Step:
    words = ["trace", "--model", model, "--method", family, "--sparsity", f"{sparsity:g}"]
    words += ["--device", at.device, "--out", "run", "--overwrite"]
    for option, value in {"prompt-len": PROMPTS[0], **options}.items():
        words += [f"--{option}", str(value)]
    name = "-".join([model, family, f"{100 * sparsity:g}", *map(str, options.values())])
    return Step(name, tuple(words))


def _sweep(
    at: Setting,
    model: str,
    families: Sequence[str],
    sparsities: Sequence[float],
    *,
    batches: Sequence[int] = BATCHES,
    phases: Sequence[str] = ("prefill", "decode"),
) -> Step:
    """A sweep over both lengths of prompts; its YAML is JSON, which YAML can read."""
    config = {
        "model": model, "families": list(families), "sparsities": list(sparsities),
        "phases": list(phases), "batches": list(batches), "prompt_lens": list(PROMPTS),
    }  # fmt: skip
    name = f"{model}-sweep"
    path = at.folder / name / "sweep.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Step(name, ("sweep", "sweep.yaml", "--out", "run"))


# A slice and its commands, the most important first.
SLICES: dict[str, Callable[[Setting], Iterator[Step]]] = {
    "calibrate": _calibrate,
    "sparse24": _sparse24,
    "graph": _graph,
    "waves": _waves,
    "families-1b": lambda at: _families(at, at.small),
    "families-8b": lambda at: _families(at, at.large),
}


def run_slice(steps: Sequence[Step], folder: Path, *, deadline: float, path: str = "") -> list[str]:
    """Run what is not done yet, until `deadline` (time.monotonic, s); returns the names left.

    A step is done when its command ended with 0; done.json keeps command, exit code and seconds.
    One that failed is tried again last, one that time cut off goes on where it can.
    """
    waiting = [step for step in steps if _code(folder / step.name) != 0]
    waiting.sort(key=lambda step: _code(folder / step.name) is not None)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), path)))}
    for step in waiting:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        at = folder / step.name
        at.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "prunescope", *step.words]
        begin = time.monotonic()
        with (at / "output.txt").open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, cwd=at, env=environment, stdout=output, stderr=output
            )
            try:
                code = process.wait(timeout=left)
            except subprocess.TimeoutExpired:
                process.terminate()  # a capture leaves no half run, a sweep resumes
                process.wait()
                break
        record = {
            "command": ["prunescope", *step.words],
            "exit_code": code,
            "seconds": round(time.monotonic() - begin, 1),
        }
        (at / "done.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(f"{step.name}: exit {code} after {record['seconds']} s\n")
    return [step.name for step in steps if _code(folder / step.name) != 0]


def _code(folder: Path) -> int | None:
    """The exit code of a step that ended; None before."""
    path = folder / "done.json"
    return int(json.loads(path.read_bytes())["exit_code"]) if path.is_file() else None


def pack(folder: Path, into: Path, name: str) -> list[str]:
    """Zip a slice's files, whole folders in order, into at most seven archives; returns the files
    that are too large for one."""
    for old in into.glob(f"{name}-*.zip"):
        old.unlink()
    left_out, number, size = [], 1, 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        num_bytes = path.stat().st_size
        if size and size + num_bytes > ARCHIVE_BYTES >= num_bytes:
            number, size = number + 1, 0
        if num_bytes > ARCHIVE_BYTES or number > MAX_ARCHIVES:
            left_out.append(path.relative_to(folder).as_posix())
            continue
        size += num_bytes
        with zipfile.ZipFile(into / f"{name}-{number}.zip", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, Path(name, path.relative_to(folder)).as_posix())
    return left_out


def carried(wheels: Path | None, into: Path) -> str:
    """A folder with the packages that this Python lacks, installed from `wheels`; "" for none."""
    if wheels is None or all(importlib.util.find_spec(name) for name in NEEDED):
        return ""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links"]
    subprocess.run([*command, str(wheels), "--target", str(into), *WHEELS], check=True)
    return str(into)


def report(folder: Path) -> int:
    """Analyse every run, and judge every sweep, that lies in FOLDER (unpack the zips there)."""
    runs = sorted(str(p.parent.parent) for p in folder.glob("*/*/run/pruned/run.json"))
    sweeps = sorted(str(p.parent) for p in folder.glob("*/*/run/sweep.json"))
    commands = [["analyze", *runs, "--out", str(folder / "report")]] if runs else []
    commands += [["pareto", one] for one in sweeps]
    codes = [
        subprocess.run(
            [sys.executable, "-m", "prunescope", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        ).returncode
        for words in commands
    ]  # fmt: skip
    return max(codes, default=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a slice, or analyse what slices left."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("slice", choices=(*SLICES, "report"), metavar="SLICE|report")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="for a machine without them")
    parser.add_argument("--small", default=Setting.small, metavar="PRESET")
    parser.add_argument("--large", default=Setting.large, metavar="PRESET")
    given = parser.parse_args(argv)
    out = given.out.resolve()
    if given.slice == "report":
        return report(out)
    folder = out / given.slice
    folder.mkdir(parents=True, exist_ok=True)
    at = Setting(folder, device=given.device, small=given.small, large=given.large)
    path = carried(given.wheels, out / "site")
    left = run_slice(
        list(SLICES[given.slice](at)), folder, deadline=begin + 60 * given.minutes, path=path
    )
    too_large = pack(folder, out, given.slice)
    sys.stdout.write(f"{given.slice}: {len(left)} commands left\n")
    sys.stdout.writelines(f"  not packed: {name}\n" for name in too_large)
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
