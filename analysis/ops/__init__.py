"""The work models: one decorated function per op.

They take an op's name, shapes and dtypes, and give FLOPs, bytes, GEMMs and a kind, or None where
these are unknown. Exports: OpCall, Work and `work.work_of`; `kind` reads a kind from the op or from
the kernel's name (a `sparse_gemm` is 2:4); `serving` models the ops of vLLM, SGLang and AITER.
"""
