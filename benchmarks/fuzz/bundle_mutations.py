"""Change a bundle as an attacker would, and correct its hashes: only the checks behind the hashes can refuse."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from benchmarks.fuzz.model_mutations import HOSTILE_FLOATS, HOSTILE_INTS, HOSTILE_NAMES, mutated

Mutation = Callable[[Random, Path], None]
HOSTILE_VALUES: tuple[Any, ...] = (
    *HOSTILE_INTS,
    *HOSTILE_NAMES,
    1 << 70,
    -(1 << 70),
    int("9" * 400),
    0.5,
    1e308,
    None,
    True,
    [],
    {},
    [[]],
    {"run": "forward"},
    [{"repeat": 1_000_000_000, "do": []}],
)


def mutate_bundle(random: Random, folder: Path) -> None:
    """Apply one to three mutations to the bundle in `folder`, and correct its hashes."""
    for _ in range(random.choice((1, 1, 2, 3))):
        # A file that an earlier mutation damaged may no longer be readable as a graph or as JSON.
        with suppress(OSError, ValueError, DecodeError, struct.error):
            random.choice(MUTATIONS)(random, folder)
    correct_hashes(folder)


def correct_hashes(folder: Path) -> None:
    """Write the SHA-256 of every file into the manifest, as far as the manifest is still a table of files."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for name in manifest["files"]:
            if (folder / name).is_file():
                manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        _write(path, json.dumps(manifest).encode())
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return


def change_graph(random: Random, folder: Path) -> None:
    """A graph file after the mutations of models."""
    path = random.choice(sorted(folder.glob("*.onnx")))
    _write(path, mutated(random, path.read_bytes()))


def grow_tensor(random: Random, folder: Path) -> None:
    """A graph with a node that makes a tensor of hostile size."""
    path = random.choice(sorted(folder.glob("*.onnx")))
    model = onnx.ModelProto.FromString(path.read_bytes())
    shape = onnx.helper.make_tensor("huge", onnx.TensorProto.INT64, [2], [random.choice((1 << 20, 1 << 33)), 1 << 14])
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["huge"], ["huge.out"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("huge.out", 1, None))
    _write(path, model.SerializeToString())


def hide_external_data(random: Random, folder: Path) -> None:
    """An initializer behind a tag of five bytes whose upper bits an engine ignores; its data is a foreign file."""
    path = random.choice(sorted(folder.glob("*.onnx")))
    tensor = onnx.TensorProto(name="leak", data_type=onnx.TensorProto.UINT8, dims=[16])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=random.choice(["/etc/passwd", "../../../../etc/passwd"]))
    inner = tensor.SerializeToString()
    tag = random.choice([b"\x2a", b"\xaa\x80\x80\x80\x10", b"\xaa\x80\x80\x80\x80\x01"])
    graph = tag + _varint(len(inner)) + inner
    _write(path, path.read_bytes() + b"\x3a" + _varint(len(graph)) + graph)


def change_manifest(random: Random, folder: Path) -> None:
    """A value of the manifest replaced, removed, doubled or nested."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return
    places = list(_places(manifest))
    if not places:
        return
    owner, key = random.choice(places)
    kind = random.randrange(5)
    if kind == 0:
        owner.pop(key)
    elif kind == 1:
        other, name = random.choice(places)
        owner[key] = other[name] if not isinstance(other[name], (dict, list)) else str(name)
    elif kind == 2 and isinstance(owner, dict):
        owner[random.choice(HOSTILE_NAMES)] = random.choice(HOSTILE_VALUES)
    elif kind == 3:
        owner[key] = [owner[key]]
    else:
        owner[key] = random.choice((*HOSTILE_VALUES, *HOSTILE_FLOATS))
    _write(path, json.dumps(manifest).encode())


def change_program(random: Random, folder: Path) -> None:
    """Hostile words in a program."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        step = manifest["programs"]["step"]
        words = [
            {"repeat": random.choice((0, -1, 10**9, 10**18)), "do": [{"repeat": 10**9, "do": list(step[:1])}]},
            {"run": "forward", "rows": random.choice(HOSTILE_INTS)},
            {"when": random.choice(HOSTILE_NAMES), "then": [], "otherwise": []},
            {"return": [random.choice(sorted(t["name"] for t in manifest["state"]["tensors"]) or ["x"])]},
            {"reset": random.choice([["nothing"], "all", 5])},
            {"host": "exec"},
            random.choice(step),
        ]
        step.insert(random.randint(0, len(step)), random.choice(words))
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    _write(path, json.dumps(manifest).encode())


def change_tensors(random: Random, folder: Path) -> None:
    """A safetensors file with a hostile header, or with its end cut off."""
    path = random.choice(sorted(folder.glob("*.safetensors")))
    content = path.read_bytes()
    kind = random.randrange(4)
    if kind == 0:
        content = content[: random.randrange(len(content))]
    elif kind == 1:
        content = struct.pack("<Q", random.choice((0, 1 << 20, 1 << 40, (1 << 64) - 1))) + content[8:]
    else:
        (length,) = struct.unpack("<Q", content[:8])
        header = bytearray(content[8 : 8 + length])
        for _ in range(random.randint(1, 4)):
            header[random.randrange(len(header))] = random.choice(b'0123456789"{}[],:-FI32')
        content = content[:8] + bytes(header) + content[8 + length :]
    _write(path, content)


def change_files(random: Random, folder: Path) -> None:
    """A file missing, empty, doubled under another's name, or a link out of the folder."""
    path = random.choice(sorted(folder.iterdir()))
    kind = random.randrange(4)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        _write(path, b"")
    elif kind == 2:
        _write(path, random.choice(sorted(folder.iterdir())).read_bytes())
    else:
        path.unlink()
        path.symlink_to(random.choice(["/etc/passwd", "../secret", "forward.onnx", path.name]))


def _write(path: Path, content: bytes) -> None:
    """Replace the file; a link that an earlier mutation made is never followed."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested JSON values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _varint(number: int) -> bytes:
    content = bytearray()
    while number > 0x7F:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*content, number])


MUTATIONS: tuple[Mutation, ...] = (
    change_graph,
    grow_tensor,
    hide_external_data,
    change_manifest,
    change_manifest,
    change_manifest,
    change_program,
    change_tensors,
    change_files,
)
"""Every mutation; changes of the manifest are drawn three times as often."""
