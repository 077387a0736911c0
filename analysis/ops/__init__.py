"""Work models: one decorated function per op.

In: an op's name, shapes and dtypes. Out: FLOPs, bytes, GEMM and kind, or null where they are
unknown.
Exports: OpCall, Work, `work.work_of`; `kind` reads a kind from the op or the kernel's name (a
`sparse_gemm` is 2:4); `serving` models the ops of vLLM, SGLang and AITER.
"""
