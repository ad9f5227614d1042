"""`python -m benchmarks.kernel_times`: each native operator alone, beside the stock operators that it replaces.

The stock operators are those of the blocked graphs.  `Add` is onnxruntime's own addition of two tensors of the shape of
x, a measure of the memory.  The figures are medians in milliseconds, of processor time with one thread and of the wall
with more; every turn runs each graph once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import ttac_kernels
from onnx import helper, parser

BLOCK = 16
SHAPES = {
    "ResNet-50": ["64x112x112", "256x56x56", "512x28x28", "1024x14x14", "2048x7x7"],
    "ResNeXt-29": ["64x32x32", "256x32x32", "512x16x16", "1024x8x8"],
    "MobileNetV2": ["32x112x112", "96x112x112", "144x56x56", "192x28x28", "576x14x14", "960x7x7"],
}
POOLS = {"64x112x112"}
NORM = 'block = 16, act = "relu"'
MASKED = '<block = 16, act = "relu">'
WINDOW = "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"
CHANNELS = ("scale", "bias", "mean", "variance")


@dataclass(frozen=True)
class Sizes:
    """The sizes of x [N, C, H, W]."""

    n: int
    c: int
    h: int
    w: int

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Name of a graph input -> its shape."""
        whole = [self.n, self.c, self.h, self.w]
        half = [self.n, self.c, -(-self.h // 2), -(-self.w // 2)]
        channels = {name: [self.c] for name in CHANNELS}
        phases = {f"p{i}": half for i in range(4)}
        return {"x": whole, "dy": whole, "mask": whole, "dz": half, "taps": half, **channels, **phases}


def mean_of(x: str, at: Sizes, out: str) -> str:
    """Stock operators for the mean of a blocked tensor by channel: first of rows, then of maps, then of samples."""
    return f"""
        {out}_s1 = Constant <value_ints = [0, {at.c * at.h}, 1, {at.w}]> ()
        {out}_r1 = Reshape({x}, {out}_s1)
        {out}_m1 = com.microsoft.nchwc.GlobalAveragePool({out}_r1)
        {out}_s2 = Constant <value_ints = [0, {at.c}, {at.h}, 1]> ()
        {out}_r2 = Reshape({out}_m1, {out}_s2)
        {out}_m2 = com.microsoft.nchwc.GlobalAveragePool({out}_r2)
        {out}_s3 = Constant <value_ints = [0, {at.c}]> ()
        {out}_r3 = Reshape({out}_m2, {out}_s3)
        {out}_axes = Constant <value_ints = [0]> ()
        {out} = ReduceMean <keepdims = 0> ({out}_r3, {out}_axes)"""


def affine(x: str, slope: str, offset: str, at: Sizes, out: str, more: str = "", added: str = "") -> str:
    """Stock operators for slope * x + offset by channel: a depthwise Conv in the blocked layout."""
    return f"""
        {out}_shape = Constant <value_ints = [{at.c}, 1, 1, 1]> ()
        {out}_kernel = Reshape({slope}, {out}_shape)
        {out} = com.microsoft.nchwc.Conv <group = {at.c}, kernel_shape = [1, 1]{more}>
            ({x}, {out}_kernel, {offset}{added})"""


def stock_forward(at: Sizes) -> str:
    """Norm and Relu."""
    relu = ', activation = "Relu"'
    return f"""{mean_of("x", at, "m")}
        less = Neg(m)
        one = Div(scale, scale)
        {affine("x", "one", "less", at, "apart")}
        squares = Mul(apart, apart)
        {mean_of("squares", at, "v")}
        deviation = Sqrt(v)
        slope = Div(scale, deviation)
        {affine("apart", "slope", "bias", at, "y", relu)}"""


def stock_backward(at: Sizes) -> str:
    """Gradient of norm and Relu."""
    return f"""
        kept = Cast <to = 1> (mask)
        du = Mul(dy, kept)
        {mean_of("du", at, "plain")}
        products = Mul(du, x)
        {mean_of("products", at, "centred")}
        constant = Mul(plain, scale)
        linear = Mul(centred, scale)
        {affine("du", "scale", "constant", at, "first")}
        {affine("x", "linear", "constant", at, "y", added=", first")}"""


def stock_interleave(at: Sizes) -> str:
    """Four phases as one tensor."""
    h, w, blocks = -(-at.h // 2), -(-at.w // 2), at.n * at.c // BLOCK
    reshaped = "\n".join(f"q{i} = Reshape(p{i}, shape)" for i in range(4))
    return f"""
        shape = Constant <value_ints = [{blocks * h}, 1, {w}, 1, {BLOCK}]> ()
        {reshaped}
        top = Concat <axis = 3> (q0, q1)
        bottom = Concat <axis = 3> (q2, q3)
        both = Concat <axis = 1> (top, bottom)
        whole = Constant <value_ints = [{at.n}, {at.c}, {2 * h}, {2 * w}]> ()
        y = Reshape(both, whole)"""


def graphs(at: Sizes, pools: bool) -> dict[str, tuple[str, str]]:
    """Name of an operator -> its graph, and that of the stock operators; both compute `y`."""
    add = "y = Add(x, dy)"
    norm = "com.microsoft.nchwc"
    found = {
        "NormForward": (f"y, m, v = ttac.kernels.NormForward <{NORM}> (x, scale, bias)", stock_forward(at)),
        "NormBackward": (
            f"y, ds, db = ttac.kernels.NormBackward {MASKED} (dy, x, scale, bias, mean, variance, mask)",
            stock_backward(at),
        ),
        "Add": (add, add),
    }
    if at.h % 2 == 0 and at.w % 2 == 0:
        native = f"y = ttac.kernels.Interleave <block = 16, sizes = [{at.h}, {at.w}]> (p0, p1, p2, p3)"
        found["Interleave"] = (native, stock_interleave(at))
    if pools:
        forward = f"y, taps1 = ttac.kernels.MaxPoolForward <block = 16, {WINDOW}> (x)"
        found["MaxPoolForward"] = (forward, f"y = {norm}.MaxPool <{WINDOW}> (x)")
        back = f"y = ttac.kernels.MaxPoolBackward <block = 16, {WINDOW}, sizes = [{at.h}, {at.w}]> (dz, taps)"
        found["MaxPoolBackward"] = (back, "")
    return found


def session_of(body: str, at: Sizes, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of the graph with the nodes of `body`."""
    used = [name for name in at.shapes if any(word == name for word in _words(body))]
    fed = ", ".join(f"{_type(name)}[{', '.join(map(str, at.shapes[name]))}] {name}" for name in used)
    versions = '<ir_version: 8, opset_import: ["": 18, "com.microsoft.nchwc": 1, "ttac.kernels": 1]>'
    model = parser.parse_model(f"{versions} graph ({fed}) => (float[n, c, h, w] y) {{ {body} }}")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(ttac_kernels.library_path()))
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads of the other sessions would spin
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _words(body: str) -> list[str]:
    return "".join(sign if sign.isalnum() or sign == "_" else " " for sign in body).split()


def _type(name: str) -> str:
    return {"mask": "bool", "taps": "uint8"}.get(name, "float")


def feeds(session: onnxruntime.InferenceSession) -> Mapping[str, np.ndarray]:
    """Random values for the inputs of a session."""
    random = np.random.default_rng(0)
    made = {}
    for port in session.get_inputs():
        values = np.abs(random.standard_normal(port.shape, dtype=np.float32)) + np.float32(0.1)
        kind = helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, _type(port.name).upper()))
        made[port.name] = (values * 4).astype(kind) if kind == np.uint8 else (values > 0.7).astype(kind)
        if kind == np.float32:
            made[port.name] = values if port.name in CHANNELS else random.standard_normal(port.shape, dtype=np.float32)
    return made


def bound(session: onnxruntime.InferenceSession) -> onnxruntime.IOBinding:
    """Return the session's inputs and outputs, with room that the engine reuses from run to run."""
    binding = session.io_binding()
    for name, array in feeds(session).items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y", "cpu")
    return binding


def times(bodies: list[str], at: Sizes, threads: int, turns: int) -> list[float]:
    """Return the median milliseconds of each graph; 0 for an empty one."""
    sessions = [session_of(body, at, threads) if body else None for body in bodies]
    bindings = [bound(session) if session else None for session in sessions]
    found: list[list[float]] = [[] for _ in bodies]
    clock = time.process_time if threads == 1 else time.perf_counter
    for turn in range(turns + 2):
        for session, binding, seconds in zip(sessions, bindings, found, strict=True):
            if session is None:
                continue
            start = clock()
            session.run_with_iobinding(binding)
            if turn > 1:
                seconds.append(clock() - start)
    return [1e3 * float(np.median(seconds)) if seconds else 0.0 for seconds in found]


def main() -> None:
    """Print one line for each shape and operator."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.kernel_times", description=__doc__)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--turns", type=int, default=15)
    arguments.add_argument("--networks", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options = arguments.parse_args()
    print("| network | x | operator | native ms | stock ms | stock / native | Add ms |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for network in options.networks:
        for text in SHAPES[network]:
            at = Sizes(options.batch, *map(int, text.split("x")))
            made = graphs(at, text in POOLS)
            (add, _) = times(list(made.pop("Add")), at, options.threads, options.turns)
            for name, bodies in made.items():
                native, stock = times(list(bodies), at, options.threads, options.turns)
                cells = (
                    [f"{native:.2f}", f"{stock:.2f}", f"{stock / native:.1f}"] if stock else [f"{native:.2f}", "", ""]
                )
                print(f"| {network} | {text} | {name} | {' | '.join(cells)} | {add:.2f} |", flush=True)


if __name__ == "__main__":
    main()
