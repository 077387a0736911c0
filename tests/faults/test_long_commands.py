"""Ctrl-C in the middle of each command that takes long, and SIGKILL in that of `allocate`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from prunescope.analysis.bundle.bundle import bundle
from tests import forked
from tests.faults.driver import everything
from tests.faults.hooked import TEXT_FORMATS
from tests.hostile.material import write_pair
from tests.hostile.test_rendered import a_sweep
from tests.small_capture import saved_model
from tests.tracer.serving.standin import StandIn, serving

READS = "prunescope.analysis.trace.reader:Source.blocks"
FORWARD = "torch.nn.modules.module:Module.__call__"
LOSS = "prunescope.tracer.allocation.losses:ModelLosses._without"
# Where the signal comes, at which call, and the command.
READING: dict[str, list[str]] = {
    "analyze": ["analyze", "{run}"],
    "compare": ["analyze", "{run}", "{again}", "--out", "{out}"],
    "check": ["check", "{run}", "-r", "prefill.realised >= 1", "--junit", "{out}.xml"],
    "bundle": ["bundle", "{run}", "-o", "{out}.zip"],
    "anonymous": ["bundle", "{run}", "-o", "{out}.zip", "--anonymous"],
    "verify": ["verify", "{zip}"],
    "pareto": ["pareto", "{sweep}"],
    "reproduce": ["reproduce", "{sweep}"],
    "predict": ["predict", "--from-run", "{run}", "--sparsity", "0.5"],
}
_TINY = ["--model", "tiny-llama", "--method", "static-m", "--sparsity", "0.5", "--phase", "prefill"]
MEASURING: dict[str, tuple[str, int, list[str]]] = {
    "trace": (FORWARD, 99, ["trace", *_TINY, "--prompt-len", "8", "--repeats", "2", "--steps", "1",
                            "--placements", "1", "--threads", "1", "--out", "{out}"]),
    "gemm": ("prunescope.tracer.gemm.replay:_take_samples", 1,
             ["gemm", "--m", "64", "--n", "64", "--k", "64", "--out", "{out}"]),
    "calibrate": ("prunescope.tracer.machine.peaks:_gemm_sweep", 1,
                  ["calibrate", "--out", "{out}.json"]),
    "sweep": (FORWARD, 99, ["sweep", "{yaml}", "--out", "{out}"]),
}  # fmt: skip
SWEEP = "model: tiny-llama\nfamilies: [static-m]\nsparsities: [0.5]\nphases: [prefill]\n" \
        "prompt_lens: [8]\nrepeats: 2\nsteps: 1\nthreads: 1\n"  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the commands are about; nothing of it may change."""
    folder = tmp_path_factory.mktemp("given")
    run, again = write_pair(folder / "run"), write_pair(folder / "again")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunescope.analysis.bundle.bundle.FORMATS", TEXT_FORMATS)
        packed = bundle([run], folder / "evidence.zip")
    (folder / "sweep.yaml").write_text(SWEEP)
    return {
        "run": run, "again": again, "zip": packed, "yaml": folder / "sweep.yaml",
        "sweep": a_sweep(folder / "sweep", [run, again]),
    }  # fmt: skip


def interrupted(words: list[str], at: str, nth: int, places: dict[str, Path]) -> None:
    """The signal at the nth call ends the command with 130, in one sentence and a hint."""
    filled = [word.format(**places) for word in words]
    done = forked.run(
        "tests.faults.hooked", [at, str(nth), "kill", str(int(signal.SIGINT)), *filled],
        env={**os.environ, "NO_FIGURES": "1", "TMPDIR": str(places["tmp"])}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 130, done.stdout + done.stderr
    assert "error: interrupted\n" in done.stderr and "Traceback" not in done.stderr
    assert [path for path in places["tmp"].iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("name", READING)
def test_ctrl_c_while_a_trace_is_read(name: str, given: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    before = everything(given["run"].parent)
    places = {**given, "out": tmp_path / "out", "tmp": tmp_path / "tmp"}
    interrupted(READING[name], READS, 1, places)
    assert everything(given["run"].parent) == before
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


@pytest.mark.torch
@pytest.mark.parametrize("name", MEASURING)
def test_ctrl_c_while_something_is_measured(
    name: str, given: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing half-written; of a sweep its state alone, which the next call goes on from."""
    (tmp_path / "tmp").mkdir()
    at, nth, words = MEASURING[name]
    interrupted(words, at, nth, {**given, "out": tmp_path / "out", "tmp": tmp_path / "tmp"})
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    if name == "sweep":
        state = json.loads((tmp_path / "out" / "sweep.json").read_bytes())
        assert [result["state"] for result in state["results"]] != ["done"]
        assert not [path for path in left if path.name == "run.json"]
    else:
        assert left == set()


def test_ctrl_c_while_an_engine_is_profiled_stops_its_profiler(tmp_path: Path) -> None:
    """Also where the signal comes before the engine answered that it began."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "traces").mkdir()
    with serving(StandIn(None, tmp_path / "traces")) as standin:
        words = ["capture", "--engine", "vllm", "--url", standin.url, "--traces",
                 str(tmp_path / "traces"), "--prompts", "2", "--out", "{out}"]  # fmt: skip
        places = {"out": tmp_path / "out", "tmp": tmp_path / "tmp"}
        interrupted(words, "prunescope.tracer.serving.client:Client.post", 1, places)
        assert standin.paths[-1] == "/stop_profile"
    assert not (tmp_path / "out").exists()


@pytest.mark.torch
@pytest.mark.parametrize("nth", [2, 9, 16])
def test_a_killed_allocation_goes_on_to_the_plan_of_an_undisturbed_one(
    nth: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SIGKILL while losses are measured: early, in the middle, and while the plan is checked."""
    base = tmp_path_factory.getbasetemp() / "allocated"
    words = ["allocate", "--model", "dense", "--device", "h100-sxm", "--dtype", "bf16",
             "--speedup", "1.25", "--out", "plan.json"]  # fmt: skip

    def call(folder: Path, at: int, number: int) -> int:
        done = forked.run(
            "tests.faults.hooked", [LOSS, str(at), "kill", str(number), *words], cwd=folder,
            env={**os.environ, "KEEP_AT_ONCE": "1"}, timeout=240,
        )  # fmt: skip
        return done.returncode

    if not base.exists():
        sizes = {
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
            "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 32,
        }  # fmt: skip
        saved_model(base / "dense", model_type="llama", **sizes)
        assert call(base, 10**6, signal.SIGKILL) == 0
    folder = tmp_path_factory.mktemp("killed")
    (folder / "dense").symlink_to(base / "dense")
    assert call(folder, nth, signal.SIGKILL) == -signal.SIGKILL
    assert not (folder / "plan.json").exists()
    assert call(folder, 10**6, signal.SIGKILL) == 0
    assert (folder / "plan.json").read_bytes() == (base / "plan.json").read_bytes()
    kept = [json.loads((place / "plan.losses.json").read_bytes()) for place in (base, folder)]
    assert kept[0] == kept[1]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
