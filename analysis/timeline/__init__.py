"""What launched what, in which step.

In: a Trace. Out: kernels linked to launches, ops and module scopes; windows of steps; busy, gap
and trailing idle time.
Exports: Linked, Windows, `link.link`; `steps.find_windows`, which takes steps from the first of
these sources: annotations of prunescope, those of --phase-pattern, iterations of an engine,
forwards of `generate()`, `ProfilerStep#N`, numbered annotations, optimizers, work that repeats;
else the whole trace is one step.
"""
