"""The report: what every pass fills in and every renderer reads.

In: numbers and names. Out: plain structs, and their JSON. Exports: Report, Phase, Finding,
Comparison, Pareto, `encode.json_bytes`.
"""
