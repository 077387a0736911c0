"""Findings: sentences of diagnosis, each with its evidence and one concrete change."""
