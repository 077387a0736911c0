"""A function of the user's own that fails is named: its error, its file and line, no folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch

import prunescope
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.tracer.capture.application import apply_request
from prunescope.tracer.capture.request import TraceRequest

pytestmark = [pytest.mark.torch, pytest.mark.four_layers]

CODE = """\
import sys


def deeper(model):
    raise ValueError(f"no layer in {__file__} fits\\nmore")


def fails(model, sparsity):
    return deeper(model)


def fails_in_torch(model, sparsity):
    import torch
    return torch.ones(2) @ torch.ones(3)


def leaves(model, sparsity):
    sys.exit(7)


def interrupted(model, sparsity):
    raise KeyboardInterrupt


def own(model, sparsity):
    class Odd(Exception):
        pass
    raise Odd


def breaks(model, sparsity):
    model.model.layers[0].mlp.up_proj = None
    return model
"""
NORM = """\
def by_norm(model, sparsity):
    return model


by_norm.selects_by = "norm of a channel"


def silent(model, sparsity):
    return model


def wrong(model, sparsity):
    return model


wrong.selects_by = 3
"""
CASES = {
    "fails": ("raised ValueError: no layer in mine9.py fits", "mine9.py, line 5"),
    "fails_in_torch": ("raised RuntimeError: ", "mine9.py, line 14"),
    "leaves": ("raised SystemExit: 7", "mine9.py, line 18"),
    "own": ("raised Odd", "mine9.py, line 28"),
    "breaks": ("does not run pruned with mine9:breaks", ""),
}
TRACE = ["trace", "--model", "tiny-llama", "--phase", "decode", "--prompt-len", "8", "--out", "t"]


def told(
    method: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """Return the problem, and all of standard error."""
    assert prunescope.main([*TRACE, "--method", method, "--json", "-"]) == code
    stdout, err = capsys.readouterr()
    assert stdout == ""
    assert "Traceback" not in err
    assert str(tmp_path) not in err
    assert not Path("t").exists()
    error = json.loads(err.splitlines()[-1])["error"]
    assert error["hint"]
    return error["problem"], err


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine9.py").write_text(CODE)
    (tmp_path / "broken9.py").write_text("x = 1\ny = = 2\n")
    (tmp_path / "raises9.py").write_text("x = 1\n1 / 0\n")


@pytest.mark.parametrize("name", CASES)
def test_a_function_that_fails(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, place = CASES[name]
    problem, err = told(f"mine9:{name}", 2, tmp_path, capsys)
    assert words in problem
    assert place in problem
    assert "tracer" not in err
    if name == "breaks":
        assert "'NoneType' object is not callable" in problem
        assert "the model that mine9:breaks returns must run" in err
        assert "known architectures" not in err
    if name == "fails":
        above = err[: err.index("error: ")].splitlines()
        assert [line.split(", in ")[0].strip() for line in above[-2:]] == [
            "mine9.py, line 9", "mine9.py, line 5",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "words"),
    [("broken9", "SyntaxError"), ("raises9", "raised ZeroDivisionError: division by zero")],
)
def test_a_module_that_fails(
    module: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem, _ = told(f"{module}:prune", 2, tmp_path, capsys)
    assert words in problem
    assert f"{module}.py, line 2" in problem


def test_an_interrupt_in_it_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told("mine9:interrupted", 130, tmp_path, capsys)[0] == "interrupted"


def test_a_run_says_what_an_own_method_selects_by_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A norm is not "random": the run names what the function says, and else no selection."""
    (tmp_path / "norms.py").write_text(NORM)
    monkeypatch.chdir(tmp_path)
    loaded = SimpleNamespace(model=torch.nn.Linear(2, 2))
    for name, selection in (("by_norm", "norm of a channel"), ("silent", None)):
        request = TraceRequest("tiny-llama", method=f"norms:{name}", name="Ours")
        _, pruning = apply_request(request, loaded)  # type: ignore[arg-type]
        assert (pruning.selection, pruning.display_name) == (selection, "Ours")
        assert ("selection" in plain(pruning)) is (selection is not None)
    with pytest.raises(PrunescopeError, match=r"wrong\.selects_by is no text"):
        apply_request(TraceRequest("tiny-llama", method="norms:wrong"), loaded)  # type: ignore[arg-type]


def test_what_it_draws_at_random_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of a request time the same weights, and the caller's generator goes on as it was."""
    code = "def draw(model, sparsity):\n    model.bias.data.normal_()\n    return model\n"
    (tmp_path / "drawn.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    request = TraceRequest("tiny-llama", method="drawn:draw")
    models = [torch.nn.Linear(2, 2) for _ in range(2)]
    state = torch.get_rng_state()
    for model in models:
        apply_request(request, SimpleNamespace(model=model))  # type: ignore[arg-type]
    assert torch.equal(models[0].bias, models[1].bias)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_name_without_a_method_is_refused() -> None:
    with pytest.raises(PrunescopeError, match="--name was given without --method"):
        TraceRequest("tiny-llama", name="Ours").check()
