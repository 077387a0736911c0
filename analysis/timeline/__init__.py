"""What launched what, in which step.

In: a Trace. Out: kernels linked to launches, ops and module scopes; windows of steps; busy, gap
and trailing idle time.
Exports: Linked, Windows, `link.link`.
"""
