"""Where the jobs of a sweep run: `local` in this process, `ray` on a cluster's workers.

An engine is one function `run(jobs, on_result)`. Jobs write their results to the folder of the
sweep; `on_result` is called with each result before it starts.
"""
