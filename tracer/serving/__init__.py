"""A running serving engine → a run folder: its traces, and times of requests without a profiler.

In: the address of its server, and prompts. Out: a folder with the traces of its ranks and
serving.json. Nothing is sent to another machine unless that is asked for.
Exports `capture_engine.capture_engine`.
"""
