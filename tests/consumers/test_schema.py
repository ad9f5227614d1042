"""The JSON schema of the manifest: as strict as the parser, where a schema can be."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from benchmarks.conformance_kit.bundles import manifest
from benchmarks.conformance_kit.refused import MANIFESTS, UPDATE
from benchmarks.conformance_kit.words import cases, trained
from tests.support.manifest_schema import problems, watched
from ttac.runtime import bundle
from ttac.runtime.manifest import FORMAT

REFERENCES = {
    *(f"word-{what}" for what in ("no-return", "return-in-one-branch", "after-return", "return-two", "graph-unknown")),
    *(f"word-{what}" for what in ("value-unknown", "value-in-one-branch", "read-before-run", "only-unknown")),
    *(f"word-{what}" for what in ("feed-unknown", "reset-unknown", "too-many", "too-deep", "deferred-state-read")),
    *("word-deferred-state-reset", "word-deferred-no-state", "graph-state-unknown", "graph-output-unknown"),
    *("graph-file-unlisted", "graph-input-other-dtype", "graph-input-other-shape", "state-dtype-other"),
    *("state-shape-other", "state-tensor-missing", "state-tensor-twice", "head-output-unknown", "head-axis-samples"),
    *("batch-reversed", "forms-unknown-graph", "input-open-size"),
    *("sizes-no-multiple", "sizes-twice", "sizes-of-another-name"),
    *("sizes-smallest-no-multiple", "sizes-smallest-too-large"),
    *("head-mask-of-no-input", "head-boxes-of-no-output"),
}
"""Errors in the references between entries, which a schema cannot state."""
WHOLE_FLOATS = {"batch-float"}
"""Errors in numbers: to a schema, 4.0 is an integer."""

DIGEST = "0" * 64


def sealed(entries: dict[str, object]) -> dict[str, object]:
    names = ["state.safetensors", "forward.onnx", "backward.onnx", "update.onnx"]
    return {**entries, "files": dict.fromkeys(names, DIGEST)}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_schema_refuses_an_error(name: str) -> None:
    damaged = copy.deepcopy(sealed(manifest(trained(UPDATE))))
    assert problems(damaged) == []
    MANIFESTS[name][1](damaged)
    assert (problems(damaged) == []) == (name in REFERENCES | WHOLE_FLOATS)


@pytest.mark.parametrize("name", cases())
def test_the_schema_accepts_a_bundle_of_the_kit(name: str) -> None:
    assert problems(sealed(manifest(cases()[name][0]))) == []


@pytest.mark.slow
def test_the_schema_accepts_compiled_bundles(kit: Path) -> None:
    paths = sorted(kit.glob("bundles/method-*/manifest.json"))
    assert paths and all(problems(json.loads(path.read_text(encoding="utf-8"))) == [] for path in paths)


def test_the_schema_is_of_the_format_of_the_runtime() -> None:
    assert problems({**sealed(manifest(trained(UPDATE))), "format": FORMAT + 1}) == [f"$.format: {FORMAT} was expected"]


def test_the_watch_finds_a_manifest_that_the_schema_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttac.runtime.bundle.parse_manifest", lambda raw: None)
    with watched() as found:
        bundle.parse_manifest({**sealed(manifest(trained(UPDATE))), "ttac": ""})
    assert len(found) == 1 and found[0].startswith("$.ttac: ")
