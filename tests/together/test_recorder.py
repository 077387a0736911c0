"""Runs of the recorder's file: what a capture of the same model writes, in any environment."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import asdict
from transformers import LlamaConfig, LlamaForCausalLM

from prunescope.analysis.pipeline import analyze
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.capture import device_state
from prunescope.tracer.capture.user_capture import capture
from prunescope.tracer.recorder.assembled import assemble
from tests.small_capture import PEAKS

pytestmark = pytest.mark.torch

IDS = torch.arange(24).reshape(2, 12)
FEW: dict[str, Any] = {"warmup": 1, "repeats": 2, "steps": 2}
OLD_PYTHON = "PRUNESCOPE_OLD_PYTHON"  # an interpreter whose torch is old


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module `record`, as a user has it."""
    file = tmp_path_factory.mktemp("recorder") / "record.py"
    file.write_text(assemble("1.2.3"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("record", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules["record"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["record"]


@pytest.fixture(autouse=True)
def _no_measuring(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_state, "measure_peaks", lambda *_: PEAKS)
    monkeypatch.setattr(recorder, "_peaks", lambda *_: plain(PEAKS))


def llama(width: int) -> Any:
    """Two layers with `width` MLP channels."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def record(recorder: Any, folder: Path, call: Callable[[], Any], **options: Any) -> None:
    with recorder.record(folder, **{**FEW, **options}) as step, torch.no_grad():
        for _ in range(step.count):
            with step():
                call()


def test_a_recorded_pair_is_what_a_capture_writes(recorder: Any, tmp_path: Path) -> None:
    """MLP channels 64 -> 32, by both: equal manifests but for the times, equal tables."""
    for side, width, baseline in (("dense", 64, None), ("pruned", 32, tmp_path / "c")):
        model = llama(width)
        if side == "pruned":
            model.model.layers[0].mlp.up_proj.weight.data[:, ::2] = 0
        record(recorder, tmp_path / "r", lambda model=model: model(IDS), side=side)
        out = tmp_path / "c" if baseline is None else tmp_path / "p"
        with capture(model, out=out, baseline=baseline, **FEW) as c, torch.no_grad():
            for _ in range(6):
                with c.step():
                    model(IDS)
    for ours, theirs in (("r/dense", "c/dense"), ("r/pruned", "p/pruned")):
        made, captured = (read_run(tmp_path / name) for name in (ours, theirs))
        assert made.census == captured.census
        assert made.model.shape == captured.model.shape
        assert made.model.architecture == captured.model.architecture
        assert (made.dtype, made.parameters) == (captured.dtype, captured.parameters)
        assert made.weight_bytes == captured.weight_bytes
        assert made.versions == {**captured.versions, "prunescope": "1.2.3"}
        mine, its = (asdict(run.phases["prefill"]) for run in (made, captured))
        timed = ("samples_ns", "sha256", "placements")
        for field in mine.keys() - timed:
            assert mine[field] == its[field], field
        assert [one.samples for one in mine["placements"]] == [2]
    (mine, its) = (analyze(tmp_path / name).report.phases["prefill"] for name in ("r", "p/pruned"))
    assert mine.family is not None and its.family is not None
    assert mine.family.id == its.family.id
    assert "static-nk-mlp" in mine.family.id
    sizes = ("role", "m", "n", "k", "dense_m", "dense_n", "dense_k", "axis", "family")
    tables = [
        sorted([str(getattr(row, key, None)) for key in sizes] for row in phase.gemms)
        for phase in (mine, its)
    ]
    assert tables[0] == tables[1]
    # A table of kernels ends with the largest, which small ones are as time has it.
    kernels = [{(k.name, k.role): k.count for k in phase.kernels} for phase in (mine, its)]
    common = kernels[0].keys() & kernels[1].keys()
    assert len(common) > 8
    assert all(kernels[0][key] == kernels[1][key] for key in common)
    for ours, theirs in (("r/dense", "c/dense"), ("r/pruned", "p/pruned")):
        assert events(tmp_path / ours) == events(tmp_path / theirs)


def events(run: Path) -> Counter[tuple[str, str]]:
    """(category, name) of the events of a run's trace, ops and spans."""
    raw = gzip.decompress((run / "prefill.trace.json.gz").read_bytes())
    return Counter((e["cat"], e["name"]) for e in json.loads(raw)["traceEvents"] if e["ph"] == "X")


def test_a_folder_holds_phases_of_one_model(recorder: Any, tmp_path: Path) -> None:
    """Prefill, then decode with its own cache; the pruned side follows the dense manifest."""
    dense, pruned = llama(64), llama(32)
    record(recorder, tmp_path, lambda: dense(IDS), phase="prefill")
    record(recorder, tmp_path, lambda: pruned(IDS), phase="prefill", side="pruned")
    cache = dense(IDS).past_key_values
    record(recorder, tmp_path, lambda: dense(IDS[:, :1], cache=cache), phase="decode")
    run = read_run(tmp_path / "dense")
    assert list(run.phases) == ["prefill", "decode"]
    assert (run.phases["decode"].prompt_len, run.phases["decode"].positions) == (1, [13, 14])
    twin = read_run(tmp_path / "pruned").twin
    assert twin is not None and twin.path == "../dense/run.json"
    assert not any("not the one" in text for text in analyze(tmp_path).report.warnings)
    with pytest.raises(FileExistsError, match="holds prefill, decode already"):
        record(recorder, tmp_path, lambda: dense(IDS), phase="prefill")
    with pytest.raises(FileExistsError, match="another model"):
        record(recorder, tmp_path, lambda: pruned(IDS), phase="mixed")
    record(recorder, tmp_path, lambda: dense(IDS), phase="prefill", overwrite=True)
    assert list(read_run(tmp_path / "dense").phases) == ["prefill", "decode"]


def test_mistakes_are_told(recorder: Any, tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match="'dense' or 'pruned'"):
        record(recorder, tmp_path, lambda: None, side="sparse")
    with pytest.raises(ValueError, match="is no phase"):
        record(recorder, tmp_path, lambda: None, phase="../x")
    with pytest.raises(RuntimeError, match=r"no torch.nn.Module was called"):
        record(recorder, tmp_path, lambda: None)
    with (
        pytest.raises(RuntimeError, match="1 steps ran, and 6 are needed"),
        recorder.record(tmp_path, **FEW) as step,
        step(),
    ):
        layer(torch.ones(4))
    with (
        pytest.raises(RuntimeError, match="inside another"),
        recorder.record(tmp_path) as step,
        step(),
        step(),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    assert vars(layer).get("forward") is None


def test_it_names_no_path_and_no_secret(recorder: Any, tmp_path: Path) -> None:
    """A config from a folder of somebody, and an annotation with a token."""
    model = llama(32)
    model.config._name_or_path = "/home/somebody/models/mine"
    model.config.api_key = "hf_" + "a1" * 12
    model.config.note = "made by somebody@example.com"

    def call() -> None:
        with torch.profiler.record_function("token=hf_" + "b2" * 12):
            model(IDS)

    record(recorder, tmp_path / "run", call)
    written = (tmp_path / "run/dense/run.json").read_text()
    written += gzip.decompress((tmp_path / "run/dense/prefill.trace.json.gz").read_bytes()).decode()
    for private in ("/home", "somebody", "hf_", str(tmp_path)):
        assert private not in written
    assert json.loads((tmp_path / "run/dense/run.json").read_text())["model"]["id"] == "mine"


def test_a_model_is_found_behind_smaller_modules(recorder: Any, tmp_path: Path) -> None:
    """A user embeds by hand and compiles nothing: the largest module that ran is the model."""
    table, model = torch.nn.Embedding(64, 32), llama(32)
    record(recorder, tmp_path, lambda: model(inputs_embeds=table(IDS)))
    run = read_run(tmp_path / "dense")
    assert run.model.architecture == "LlamaForCausalLM"
    assert run.phases["prefill"].tokens_per_step == 24


SCRIPT = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from record import record

def net(width):
    return torch.nn.Sequential(
        torch.nn.Linear(16, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))

for side, width in (("dense", 32), ("pruned", 16)):
    model = net(width)
    with record(sys.argv[2], side=side, warmup=1, repeats=2, steps=2) as step, torch.no_grad():
        for _ in range(step.count):
            with step():
                model(torch.randn(6, 16))
"""


@pytest.mark.slow
def test_it_records_with_an_old_torch(recorder: Any, tmp_path: Path) -> None:
    """Tried with Python 3.8 and torch 2.0.0, and with Python 3.11 and torch 2.0.1."""
    python = os.environ.get(OLD_PYTHON)
    if not python:
        pytest.skip(f"{OLD_PYTHON} names no interpreter with an old torch")
    folder, script = Path(recorder.__file__).parent, tmp_path / "script.py"
    script.write_text(SCRIPT)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, str(script), str(folder), str(tmp_path / "run")],
        capture_output=True, text=True, timeout=600, check=False, env=clean,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    major, minor, *_ = read_run(tmp_path / "run/pruned").versions["torch"].split(".")
    assert (int(major), int(minor)) < (2, 11)
    phase = analyze(tmp_path / "run").report.phases["forward"]
    assert {(row.axis, row.dense_n, row.n, row.dense_k, row.k) for row in phase.gemms} == {
        ("N", 32, 16, 16, 16),
        ("K", 4, 4, 32, 16),
    }
