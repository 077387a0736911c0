"""The work models: one decorated function per op.

In: an op's name, shapes and dtypes.
Out: its FLOPs, bytes, GEMMs and kind, or None where these are unknown.
Exports: OpCall, Work and `work.work_of`; `kind` reads a kind from the op or from the kernel's name
(a `sparse_gemm` is 2:4); `serving` models the ops of vLLM, SGLang and AITER.
"""
