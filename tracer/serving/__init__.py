"""A running serving engine → a run folder: its traces, and times of requests without a profiler.

`capture_engine` sends prompts to the engine's OpenAI-like endpoint, and starts and stops its
profiler. Nothing is sent to another machine unless that is asked for.
"""

from prunescope.tracer.serving.capture_engine import capture_engine as capture_engine
