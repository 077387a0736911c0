"""A trace, read as hostile input: a Chrome trace, or an SQLite export of Nsight Systems.

In: a file, a member of a zip or tar, a device of an export, a folder of ranks. Out: a `Trace`,
which holds int64 columns (times in ns) and interned strings. Exports: `Trace`, `load.load`,
`ranks`, `nsys` (exports of Nsight Systems). `unpack` decides what is a decompression bomb, and
refuses it in gzip and tar; `reader` refuses it in zips. `workers` starts processes that read one
large file together, and `shares` joins what they read.
"""
