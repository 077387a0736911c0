"""What a process holds when the models it has traced are gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch
# Blocks too small to be mapped on their own, and one above them that keeps the heap from shrinking.
FREED = """
import psutil
from prunescope.tracer.capture.memory import release
blocks = [b'x' * int('100000') for _ in range(2000)]
last = b'x' * int('100000')
full = psutil.Process().memory_info().rss
del blocks
release()
print(full - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc keeps freed blocks")
def test_freed_blocks_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150e6
