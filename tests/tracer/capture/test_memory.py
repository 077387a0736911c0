"""What a process holds when the models it has traced are gone."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from prunescope.tracer.model.packed_weights import weight_bytes
from tests.forked import run

pytestmark = pytest.mark.torch


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc keeps freed blocks")
def test_freed_blocks_go_back_to_the_system() -> None:
    done = run("tests.tracer.capture.freed_blocks", [])
    assert int(done.stdout) > 150e6, done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_packed_weights_are_counted() -> None:
    """An embedding of 4 x 8 in fp32; a linear of 3 x 8 in one byte each and a bias of 3 in fp32. A
    packed LSTM does not tell its weights."""
    linears = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 3))
    packed = torch.ao.quantization.quantize_dynamic(linears, {nn.Linear}, dtype=torch.qint8)
    assert weight_bytes(packed) == 4 * 8 * 4 + 3 * 8 + 3 * 4
    lstm = nn.Sequential(nn.LSTM(4, 4))
    packed = torch.ao.quantization.quantize_dynamic(lstm, {nn.LSTM}, dtype=torch.qint8)
    assert weight_bytes(packed) is None
