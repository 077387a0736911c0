"""Which points of a sweep lose to no other, and how sure that is.

In: the points of a sweep. Out: the points of a frontier, winners, and their shares of samples.
Exports: `frontier.frontier`, `sampled_points.sample_points`.
"""
