"""The folders of the model matrix: one network in each, and the refusals of its exporters in `done.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DONE = "done.json"


def export_each(folders: Mapping[str, Path], export: Callable[[str, Path], Any]) -> None:
    """Let `export` fill the folder of each network, and write the refusals that it returns into this folder.

    A network that cannot be built is reported and left out.
    """
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            refused = export(name, folder)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        (folder / DONE).write_text(json.dumps(refused, indent=1))
        print(name, refused or "all", flush=True)
