"""Many at once, and many after each other: one report of eight writers, and nothing that grows."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.hostile.material import write_pair
from tests.small_capture import PEAKS

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 8


def test_eight_analyses_of_one_folder(tmp_path: Path) -> None:
    """All end well, and what is left is one whole report."""
    run = write_pair(tmp_path / "run")
    words = ["analyze", str(run), "--format", "md,json,csv"]
    running = [forked.start("prunescope", words) for _ in range(AT_ONCE)]
    done = [process.wait(240) for process in running]
    assert [process.returncode for process in done] == [0] * AT_ONCE, done
    report = run / "report"
    names = {p.name for p in report.iterdir()}
    assert {"report.md", "report.json", "data-dictionary.csv"} <= names
    assert json.loads((report / "report.json").read_bytes())["schema"] == 1
    assert [p.name for p in run.rglob(".*")] == []


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny one, on a machine whose peaks need no measuring."""
    pytest.importorskip("torch")
    from prunescope.tracer.capture import device_state
    from tests.tracer.tiny_models import tiny_model

    monkeypatch.setattr(device_state, "measure_peaks", lambda *_: PEAKS)
    return tiny_model("llama", num_hidden_layers=1)


def state(model: Any) -> dict[str, int]:
    """What a capture might leave behind: hooks on modules, tensors alive."""
    import torch

    gc.collect()
    hooks = sum(
        len(getattr(module, name))
        for module in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    )
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return {"hooks": hooks, "tensors": tensors}


def captured(model: Any, out: Path) -> None:
    import torch

    import prunescope

    ids = torch.zeros(1, 8, dtype=torch.long)
    with (
        torch.no_grad(),
        prunescope.capture(model, out=out, warmup=0, repeats=1, steps=1, overwrite=True) as c,
    ):
        for _ in range(3):
            with c.step():
                model(ids)


@pytest.mark.torch
@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_many_captures_in_one_process_leave_nothing(count: int, model: Any, tmp_path: Path) -> None:
    """No hook, no tensor, the same outputs; memory grows by less than a capture's trace each."""
    import psutil
    import torch

    ids = torch.arange(8).view(1, 8)
    with torch.no_grad():
        before = model(ids).logits
    for _ in range(max(3, count // 2)):  # what is allocated once: caches, the profiler, its heap
        captured(model, tmp_path / "f")
    at_first, process = state(model), psutil.Process()
    memory = process.memory_info().rss
    for _ in range(count):
        captured(model, tmp_path / "f")
    assert state(model) == at_first
    assert at_first["hooks"] == 0
    assert process.memory_info().rss - memory < 64 << 20
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


@pytest.mark.torch
def test_a_capture_that_fails_leaves_no_hook(model: Any, tmp_path: Path) -> None:
    import torch

    import prunescope

    ids = torch.zeros(1, 8, dtype=torch.long)
    before = state(model)["hooks"]
    for failing in range(3):
        with (
            pytest.raises(ZeroDivisionError),
            prunescope.capture(model, out=tmp_path / "f", warmup=0, repeats=1, steps=1) as c,
        ):
            for i in range(3):
                with c.step():
                    model(ids)
                    if i == failing:
                        raise ZeroDivisionError
        assert state(model)["hooks"] == before == 0
        assert not (tmp_path / "f").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_ten_million_events_that_say_nothing(tmp_path: Path) -> None:
    """Bounded by the block, not by the file: 10^7 events in far less memory than they take."""
    # Not ru_maxrss: a child's begins with that of the process that started it.
    code = (
        "import re, sys; from pathlib import Path\n"
        "from prunescope.analysis.pipeline import analyze\n"
        "from prunescope.taxonomy.errors import PrunescopeError\n"
        "try: analyze(Path(sys.argv[1]))\n"
        "except PrunescopeError as error: assert 'no device events' in str(error), error\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    path = tmp_path / "t.json"
    with path.open("wb") as file:
        file.write(b"[")
        for _ in range(1000):
            file.write(b'{"ph":"M","name":"n"},' * 10_000)
        file.write(b"{}]")
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True,
        timeout=600, check=True,
    )  # fmt: skip
    assert int(done.stdout) * 1024 < 400 << 20
