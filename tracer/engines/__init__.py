"""Where the jobs of a sweep run: `local` in this process, `ray` on a cluster's workers.

An engine is one function `run(jobs, worker_done)`; what a job gives lies in the sweep's folder.
"""
