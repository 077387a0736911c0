"""Where the jobs of a sweep run: `local` in this process, `ray` on a cluster's workers.

An engine is one function `run(jobs, told)`; what a job gives lies in the sweep's folder, and `told`
hears of results.
"""
