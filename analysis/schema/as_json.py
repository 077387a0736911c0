"""The JSON Schema of report.json, made from the model: out, a dict or UTF-8 bytes."""

from __future__ import annotations

from typing import Any

import msgspec

from prunescope.analysis.schema.encode import json_bytes
from prunescope.analysis.schema.report import Report

SCHEMA_ID = "prunescope-report-1"


def report_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of report.json, made from the model itself."""
    schema = msgspec.json.schema(Report)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "prunescope report, schema 1",
        **schema,
    }


def schema_json() -> bytes:
    """The schema as it is kept in report.schema.json beside this module."""
    return json_bytes(report_schema())
