"""The conformance kit, written once for all readers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.conformance_kit.__main__ import write_kit


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the kit; `TTAC_KIT` names one that exists."""
    if "TTAC_KIT" in os.environ:
        return Path(os.environ["TTAC_KIT"])
    folder = tmp_path_factory.mktemp("conformance") / "kit"
    write_kit(folder)
    return folder
