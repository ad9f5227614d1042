"""The JSON schema of the manifest, and a watch over every manifest that the tests accept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ttac.runtime import bundle
from ttac.runtime.records import Manifest

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "manifest.schema.json"


@cache
def validator() -> Any:
    """Return the validator of the schema; skips the test without jsonschema."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """Return the places and the messages of the schema for a manifest that it refuses."""
    return [f"{error.json_path}: {error.message[:200]}" for error in validator().iter_errors(dict(manifest))]


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect the schema's problems with every manifest that `ttac.runtime.bundle` accepts meanwhile."""
    found: list[str] = []
    seen: set[str] = set()
    parse = bundle.parse_manifest

    def checked(raw: Mapping[str, Any]) -> Manifest:
        manifest = parse(raw)
        text = json.dumps(raw)
        if text not in seen:
            seen.add(text)
            found.extend(problems(raw))
        return manifest

    bundle.parse_manifest = checked
    try:
        yield found
    finally:
        bundle.parse_manifest = parse
