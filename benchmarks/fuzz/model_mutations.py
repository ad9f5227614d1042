"""Change an ONNX model as a damaged, foreign or malicious file would be; the same generator gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import onnx
from onnx import AttributeProto, TensorProto

HOSTILE_NAMES = ("", "N", "None", "../../x", "/etc/passwd", "\x1b[2J", "a" * 5000, "logits", "\u202e", "%s%n")
HOSTILE_INTS = (0, -1, 1, 2, 3, 7, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))
HOSTILE_FLOATS = (0.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"))
OPERATORS = (
    "Conv ConvTranspose BatchNormalization Relu Add Mul Reshape Flatten Gemm MatMul MaxPool GlobalAveragePool Concat "
    "Split Squeeze Unsqueeze Transpose Softmax Cast Shape Gather Slice Pad Resize Clip LSTM Loop If Scan NoSuchOp "
    "QuantizeLinear DequantizeLinear LayerNormalization GroupNormalization InstanceNormalization Expand Tile"
).split()

Mutation = Callable[[Random, onnx.ModelProto], None]


def mutated(random: Random, source: bytes) -> bytes:
    """The model `source` after one to three mutations; in one case of eight also with bytes flipped."""
    model = onnx.ModelProto.FromString(source)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(MUTATIONS)(random, model)
    content = bytearray(model.SerializeToString())
    if random.random() < 1 / 8:
        for _ in range(random.randint(1, 8)):
            content[random.randrange(len(content))] = random.randrange(256)
        if random.random() < 1 / 4:
            del content[random.randrange(len(content)) :]
    return bytes(content)


def _node(random: Random, model: onnx.ModelProto) -> onnx.NodeProto | None:
    return random.choice(model.graph.node) if model.graph.node else None


def _tensor(random: Random, model: onnx.ModelProto) -> TensorProto | None:
    return random.choice(model.graph.initializer) if model.graph.initializer else None


def change_operator(random: Random, model: onnx.ModelProto) -> None:
    """Another operator on the same inputs."""
    if node := _node(random, model):
        node.op_type = random.choice(OPERATORS)


def change_domain(random: Random, model: onnx.ModelProto) -> None:
    """The operator of another domain."""
    if node := _node(random, model):
        node.domain = random.choice(["com.microsoft", "ai.onnx.ml", "ttac", "com.microsoft.nchwc", "x" * 300])


def rewire_input(random: Random, model: onnx.ModelProto) -> None:
    """An input that is another value, maybe a later one: circles and wrong shapes."""
    node = _node(random, model)
    if node and node.input:
        names = [name for other in model.graph.node for name in other.output]
        names += [tensor.name for tensor in model.graph.initializer] + ["", "no.such.value"]
        node.input[random.randrange(len(node.input))] = random.choice(names)


def drop_or_add_input(random: Random, model: onnx.ModelProto) -> None:
    """One input more or less."""
    if node := _node(random, model):
        if node.input and random.random() < 0.5:
            del node.input[random.randrange(len(node.input))]
        else:
            node.input.append(random.choice(node.input or [""]))


def rename(random: Random, model: onnx.ModelProto) -> None:
    """A hostile or doubled name."""
    if node := _node(random, model):
        name = random.choice(HOSTILE_NAMES)
        if random.random() < 0.5:
            node.name = name
        elif node.output:
            node.output[random.randrange(len(node.output))] = name


def change_attribute(random: Random, model: onnx.ModelProto) -> None:
    """A hostile value, another type, or a missing attribute."""
    node = _node(random, model)
    if not node or not node.attribute:
        return
    attribute = random.choice(node.attribute)
    kind = random.randrange(6)
    if kind == 0:
        node.attribute.remove(attribute)
    elif kind == 1:
        attribute.type, attribute.i = AttributeProto.INT, random.choice(HOSTILE_INTS)
    elif kind == 2:
        del attribute.ints[:]
        attribute.type = AttributeProto.INTS
        attribute.ints.extend(random.choice(HOSTILE_INTS) for _ in range(random.randint(0, 6)))
    elif kind == 3:
        attribute.type, attribute.f = AttributeProto.FLOAT, random.choice(HOSTILE_FLOATS)
    elif kind == 4:
        attribute.type, attribute.s = AttributeProto.STRING, random.choice(HOSTILE_NAMES).encode()
    else:
        attribute.type = random.randrange(14)


def change_dims(random: Random, model: onnx.ModelProto) -> None:
    """An initializer of another shape than its data has."""
    tensor = _tensor(random, model)
    if tensor and tensor.dims:
        if random.random() < 0.3:
            tensor.dims.append(random.choice(HOSTILE_INTS))
        else:
            tensor.dims[random.randrange(len(tensor.dims))] = random.choice(HOSTILE_INTS)


def change_data(random: Random, model: onnx.ModelProto) -> None:
    """An initializer with other bytes: cut, NaN or random."""
    tensor = _tensor(random, model)
    if not tensor or not tensor.raw_data:
        return
    size = len(tensor.raw_data)
    kind = random.randrange(4)
    if kind == 0:
        tensor.raw_data = tensor.raw_data[: random.randrange(size)]
    elif kind == 1:
        tensor.raw_data = b"\x00\x00\xc0\x7f" * (size // 4) + bytes(size % 4)
    elif kind == 2:
        tensor.raw_data = random.randbytes(size)
    else:
        tensor.raw_data = bytes(size)


def change_dtype(random: Random, model: onnx.ModelProto) -> None:
    """An initializer of another type."""
    if tensor := _tensor(random, model):
        tensor.data_type = random.randrange(25)


def move_outside(random: Random, model: onnx.ModelProto) -> None:
    """An initializer whose data lies in another file, maybe outside the folder."""
    if tensor := _tensor(random, model):
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", random.choice(["../secret", "/etc/passwd", "data.bin", "", "C:\\x", "a/../../b", "."])),
            ("offset", str(random.choice(HOSTILE_INTS))),
            ("length", str(random.choice(HOSTILE_INTS))),
        ):
            tensor.external_data.add(key=key, value=value)


def add_initializer(random: Random, model: onnx.ModelProto) -> None:
    """One more initializer: text, empty, doubled or of an unknown type."""
    kind = random.randrange(4)
    if kind == 0:
        model.graph.initializer.add(name="text", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"\xff"])
    elif kind == 1:
        model.graph.initializer.add(name="empty", data_type=1, dims=[0])
    elif kind == 2 and model.graph.initializer:
        model.graph.initializer.append(random.choice(model.graph.initializer))
    else:
        model.graph.initializer.add(name="unknown", data_type=99, dims=[1])


def change_ports(random: Random, model: onnx.ModelProto) -> None:
    """Inputs and outputs of the graph with other types, shapes or names, or none at all."""
    ports = random.choice([model.graph.input, model.graph.output])
    if not ports:
        return
    port = random.choice(ports)
    kind = random.randrange(5)
    if kind == 0:
        port.type.tensor_type.elem_type = random.randrange(25)
    elif kind == 1:
        port.name = random.choice(HOSTILE_NAMES)
    elif kind == 2:
        for dim in port.type.tensor_type.shape.dim:
            dim.dim_value = random.choice(HOSTILE_INTS)
    elif kind == 3:
        port.type.tensor_type.shape.dim.add(dim_param=random.choice(HOSTILE_NAMES))
    else:
        ports.remove(port)


def change_versions(random: Random, model: onnx.ModelProto) -> None:
    """Another opset, IR version or domain."""
    if random.random() < 0.5 and model.opset_import:
        random.choice(model.opset_import).version = random.choice([*range(1, 30), -1, 1 << 40])
    elif random.random() < 0.5:
        model.opset_import.add(domain=random.choice(HOSTILE_NAMES), version=random.randrange(30))
    else:
        model.ir_version = random.choice([0, 1, 3, 4, 7, 10, 13, 99, -1])


def drop_or_double_node(random: Random, model: onnx.ModelProto) -> None:
    """A node less, twice, or at another place."""
    if node := _node(random, model):
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        if random.random() < 0.5:
            model.graph.node.remove(node)
        if random.random() < 0.7:
            model.graph.node.insert(random.randint(0, len(model.graph.node)), copied)


def change_metadata(random: Random, model: onnx.ModelProto) -> None:
    """Metadata that exporters write and ttac reads, with hostile content."""
    node = _node(random, model)
    keys = ["pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", "namespace", "ttac.room", "ttac.layer"]
    value = random.choice(["None", "[", "['a', 1]", "[b'x']", "{}", "__import__('os')", "['" + "a." * 4000 + "']"])
    entry = (node or model).metadata_props.add()
    entry.key, entry.value = random.choice(keys), value


def add_function(random: Random, model: onnx.ModelProto) -> None:
    """A model-local function: harmless, calling itself, or with a missing input."""
    if node := _node(random, model):
        name = "f"
        inner = onnx.helper.make_node(random.choice(["Relu", name, "Add"]), ["x"], ["y"], domain="")
        inner.domain = "local" if inner.op_type == name else ""
        opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("local", 1)]
        model.functions.append(onnx.helper.make_function("local", name, ["x"], ["y"], [inner], opsets))
        node.op_type, node.domain = name, "local"
        model.opset_import.add(domain="local", version=1)


MUTATIONS: tuple[Mutation, ...] = (
    change_operator,
    change_domain,
    rewire_input,
    drop_or_add_input,
    rename,
    change_attribute,
    change_attribute,
    change_dims,
    change_data,
    change_dtype,
    move_outside,
    add_initializer,
    change_ports,
    change_versions,
    drop_or_double_node,
    change_metadata,
    add_function,
)
"""Every mutation; attributes are drawn twice as often."""
