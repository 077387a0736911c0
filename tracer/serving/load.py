"""The prompts of a capture, and the times of the requests that carry them.

In: a client and what was asked for. Out: `ServedRequest`s. Random prompts are lists of token ids,
and no two are equal, so that no prefix cache answers for the engine.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from prunescope.taxonomy.arguments import whole_number
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.serving import ServedRequest
from prunescope.taxonomy.scrub import scrub
from prunescope.tracer.serving.client import Client

Prompt = str | list[int]
_COMPLETIONS = "/v1/completions"
_HINT = "look at the engine's log; --prompt-len and --new-tokens must fit into its context"
_MOST_PROMPTS = 10_000
_LARGEST = 64 << 20  # bytes of a file of prompts
_IDS = range(1000, 10_000)  # token ids that every vocabulary of today has, and none is special
_SEED = 0
_SHOWN = 200  # characters of an engine's message in an error


@dataclass(frozen=True)
class Prompts:
    """The prompts of a capture: `count` a round, random or those of a file, again and again."""

    count: int
    source: Iterator[Prompt]
    is_random: bool

    def take(self, count: int | None = None) -> list[Prompt]:
        """Return the prompts of the next round, or the next `count`."""
        return list(islice(self.source, self.count if count is None else count))


def read_prompts(given: str | int | Path, length: int) -> Prompts:
    """Return the prompts that were asked for.

    Args:
        given: A number of random prompts, or a text file with one a line.
        length: The length of a random prompt in tokens.

    Raises:
        PrunescopeError: The number is none that can be sent, or the file holds no prompt.
    """
    number = whole_number(str(given))
    if number is not None:
        if not 1 <= number <= _MOST_PROMPTS:
            raise PrunescopeError(
                f"--prompts {number} is no number of prompts", hint=f"1 to {_MOST_PROMPTS:,}"
            )
        return Prompts(number, _random_prompts(length), is_random=True)
    path = Path(str(given))
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise PrunescopeError(
            f"--prompts: {path.name} is no file of prompts", hint="a number, or a text file"
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    lines: list[Prompt] = [line for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= _MOST_PROMPTS:
        raise PrunescopeError(
            f"{path.name} holds {len(lines)} prompts", hint=f"1 to {_MOST_PROMPTS:,}, one a line"
        )
    return Prompts(len(lines), cycle(lines), is_random=False)


def _random_prompts(length: int) -> Iterator[Prompt]:
    """Yield random prompts without end."""
    generator = random.Random(_SEED)
    while True:
        yield generator.choices(_IDS, k=length)


def send_all(
    client: Client, model: str | None, prompts: Sequence[Prompt], *, tokens: int, at_once: int
) -> list[ServedRequest]:
    """Send prompts, some at a time, and return the times of each.

    Raises:
        PrunescopeError: A request fails.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in range(len(prompts)):
        waiting.put(number)
    served: dict[int, ServedRequest] = {}
    failed: list[PrunescopeError] = []

    def work() -> None:
        """Send what waits, until nothing does or a request failed."""
        while not failed:
            try:
                number = waiting.get_nowait()
                served[number] = _send(client, model, prompts[number], tokens)
            except Empty:
                return
            except PrunescopeError as error:  # raised below, in the thread that asked
                failed.append(error)

    # Not a pool of futures, which waits for its threads after Ctrl-C.
    threads = [Thread(target=work, daemon=True) for _ in range(min(at_once, len(prompts)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [served[number] for number in range(len(prompts))]


def _send(client: Client, model: str | None, prompt: Prompt, tokens: int) -> ServedRequest:
    """Send one prompt, and time the tokens of its answer as they arrive."""
    values: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if model is not None:
        values["model"] = model
    begun = time.perf_counter_ns()
    arrived: list[int] = []
    counted: int | None = None
    for event in client.stream(_COMPLETIONS, values, hint=_HINT):
        if (failure := event.get("error")) is not None:
            raise _failed(failure)
        if event.get("choices"):
            arrived.append(time.perf_counter_ns())
        usage = event.get("usage")
        told = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if isinstance(told, int) and told <= tokens:  # more were not asked for
            counted = told
    if not arrived:
        raise PrunescopeError("the engine answered a prompt without a token", hint=_HINT)
    # An event may hold several tokens, or none but why the answer ends: the engine's count decides.
    number = counted or len(arrived)
    spent = arrived[-1] - arrived[0]
    return ServedRequest(
        ttft_ns=arrived[0] - begun,
        tpot_ns=spent // (number - 1) if number > 1 else None,
        tokens=number,
    )


def _failed(failure: Any) -> PrunescopeError:
    """Return the error about an answer that the engine broke off with an event of its own."""
    told = failure.get("message") if isinstance(failure, dict) else failure
    shown = scrub(str(told)[:_SHOWN].strip())
    return PrunescopeError(f"the engine failed within an answer: {shown}", hint=_HINT)
