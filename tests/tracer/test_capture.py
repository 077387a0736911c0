"""A user's own loop and a user's own method."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taxonomy.errors import PrunescopeError
from taxonomy.run import read_run
from tests.small_capture import PEAKS
from tracer import user_capture
from tracer.user_capture import capture

pytestmark = pytest.mark.torch

IDS = torch.arange(24).reshape(2, 12)
FEW: dict[str, Any] = {"warmup": 1, "repeats": 2, "steps": 2}


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_capture, "measure_peaks", lambda *_: PEAKS)


def loop(model: Any, count: int, **options: Any) -> None:
    with capture(model, **FEW, **options) as c, torch.inference_mode():
        for _ in range(count):
            with c.step():
                model(IDS, logits_to_keep=1)


def test_a_loop_becomes_a_run(tiny: Any, tmp_path: Path) -> None:
    loop(tiny, 8, out=tmp_path / "run")
    run = read_run(tmp_path / "run" / "dense")
    phase = run.phases["prefill"]
    assert (phase.batch, phase.prompt_len, phase.tokens_per_step) == (2, 12, 24)
    assert (phase.logits, phase.positions, phase.steps) == ("last", [0, 12], 2)
    assert len(phase.samples_ns) == 2
    assert run.pruning is None
    assert run.census is not None
    raw = gzip.decompress((tmp_path / "run/dense/prefill.trace.json.gz").read_bytes())
    names = [e["name"] for e in json.loads(raw)["traceEvents"]]
    assert names.count("model.layers.0.mlp.up_proj") == 2
    assert [n for n in names if n.startswith("prunescope.step#")] == [
        "prunescope.step#warmup",
        "prunescope.step#0",
        "prunescope.step#1",
    ]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.modules())


def test_a_second_loop_against_the_first(tiny: Any, tmp_path: Path) -> None:
    loop(tiny, 6, out=tmp_path / "a")
    loop(tiny, 6, out=tmp_path / "b", baseline=tmp_path / "a", phase="prefill")
    run = read_run(tmp_path / "b" / "pruned")
    assert run.twin is not None
    assert run.twin["path"] == "../../a/dense/run.json"


def test_too_few_steps_write_nothing(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="ran 5 steps, and 6 are needed"):
        loop(tiny, 5, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_in_the_loop_writes_nothing(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), capture(tiny, out=tmp_path / "run", **FEW) as c:
        for i in range(6):
            with c.step():
                tiny(IDS)
                _ = 1 / (4 - i)
    assert list(tmp_path.iterdir()) == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.modules())


def test_a_method_of_ones_own(
    quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in the working directory; our packages of the same names are not hidden by it."""
    (tmp_path / "mymethods.py").write_text(
        "from taxonomy.keep import kept_hidden\n"
        "def zero(model, sparsity):\n"
        "    for layer in model.model.layers:\n"
        "        rows = int(352 * sparsity)\n"
        "        layer.mlp.up_proj.weight.data[:rows] = 0\n"
        "    return model\n"
        "def forget(model, sparsity):\n"
        "    pass\n"
    )
    (tmp_path / "taxonomy.py").write_text("raise SystemExit('ours is hidden')")
    monkeypatch.chdir(tmp_path)
    out = quick(method="mymethods:zero", sparsity=0.5, phase="prefill", out=tmp_path / "run")
    run = read_run(out / "pruned")
    assert run.pruning is not None
    assert run.pruning["method"] == "mymethods:zero"
    assert run.census is not None
    rows = {row["name"]: row for row in run.census["matrices"]}
    assert rows["model.layers.7.mlp.up_proj"]["zero_rows"] == 0.5
    assert rows["model.layers.7.mlp.down_proj"]["zeros"] == 0
    with pytest.raises(PrunescopeError, match="returned NoneType"):
        quick(method="mymethods:forget", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
