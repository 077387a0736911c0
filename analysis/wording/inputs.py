"""The words of what was noticed while the runs, traces and options of an analysis were opened."""

from __future__ import annotations

from collections.abc import Callable

WORDS: dict[str, str | Callable[..., str]] = {
    "of-baseline": "baseline: {about:notice}",
    "another-baseline": "the dense run.json is not the one that this run was traced with",
    "another-file": "{file} is not the file that was captured",
    "rank-left-out": "{rank} is left out: {problem}",
    "file-left-out": "{file} is not a trace that can be read: left out",
    "report-left-out": "{file} is left out: export it with `{export} {file}`",
    "phases-left-out": "{phases:list}: on one side only, left out",
    "sides-as-ranks": (
        "{folder}: its files are read as ranks of one run; to compare two of them, give {pruned} "
        "--baseline {dense}"
    ),
    "eager-trace-cut": "{file} is cut off: its ops are read up to the cut",
    "unused-eager-trace": (
        "{option} is not used: {name} holds no graph replays, its kernels have ops of their own"
    ),
    "unused-config-of-run": "--model is not used: {name} is a run, with its own shapes",
    "unused-phase": (
        "--phase {phase} is not used: nothing in {name} tells prefill from decode; call ranges "
        "(NVTX, record_function) around them so, or give --model"
    ),
    "history-cut": "line {line} of {file} is not whole, and is left out",
    "options-without-config": "without --model nothing is taken from {options:list}",
}
