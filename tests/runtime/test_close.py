"""The end of an adapter: `close`, the `with` block, and the line that describes an adapter or a bundle."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ttac
from tests.support import tiny_bundles as tiny
from tests.support.tiny_bundles import batch
from ttac.errors import UsageError
from ttac.runtime.adapter import Adapter
from ttac.runtime.bundle import Bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny.ema(tmp_path / "ema.ttac")


def test_the_block_closes_its_adapter(bundle: Path) -> None:
    with ttac.load(bundle) as adapter:
        adapter.step(batch())
    with pytest.raises(UsageError, match="the adapter is closed"):
        adapter.step(batch())


def test_an_error_in_the_block_is_raised(bundle: Path) -> None:
    with pytest.raises(KeyError), ttac.load(bundle) as adapter:
        raise KeyError
    assert "closed" in repr(adapter)


CALLS: dict[str, Callable[[Adapter], Any]] = {
    "predict": lambda adapter: adapter.predict(batch()),
    "reset": lambda adapter: adapter.reset(),
    "save": lambda adapter: adapter.save(adapter.path / "state"),
    "stats": lambda adapter: adapter.stats,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_closed_adapter_refuses_calls(bundle: Path, call: Callable[[Adapter], Any]) -> None:
    adapter = ttac.load(bundle)
    adapter.close()
    with pytest.raises(UsageError, match="the adapter is closed"):
        call(adapter)
    adapter.close()


def test_a_closed_adapter_does_not_restore(bundle: Path, tmp_path: Path) -> None:
    adapter = ttac.load(bundle)
    adapter.save(tmp_path / "state")
    adapter.close()
    with pytest.raises(UsageError, match="the adapter is closed"):
        adapter.restore(tmp_path / "state")


def test_a_closed_adapter_frees_sessions_and_files(bundle: Path) -> None:
    adapter = ttac.load(bundle)
    sessions = [weakref.ref(graph.session) for graph in adapter._executor.form.graphs.values()]
    handles = list(adapter._opened.files._mapped.values())
    assert sessions and handles
    adapter.close()
    gc.collect()
    assert all(session() is None for session in sessions)
    for handle in handles:
        with pytest.raises(OSError):
            os.fstat(handle)
    assert adapter.inputs[0].name == "x" and adapter.bundle.path == bundle


def test_an_adapter_describes_itself(bundle: Path) -> None:
    adapter = ttac.load(bundle)
    adapter.step(batch())
    method = adapter.bundle.manifest["method"]["name"]
    assert repr(adapter) == f"<Adapter {bundle}: {method}, up to 4 samples a step, step 1, portable>"
    adapter.close()
    assert repr(adapter) == f"<Adapter {bundle}: {method}, up to 4 samples a step, closed>"


def test_a_bundle_describes_itself(bundle: Path) -> None:
    read = Bundle.read(bundle)
    assert repr(read).startswith(f"<Bundle {bundle}: ") and repr(read).endswith(", up to 4 samples a step>")
    assert "(dry run)" in repr(Bundle(None, read.manifest))
