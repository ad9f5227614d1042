"""The child process of `simplify`: `python -m ttac.passes.normalise.simplify_child SOURCE RESULT BYTES`.

BYTES is the size of the largest constant that folding may produce.
"""

from __future__ import annotations

import sys

ALLOWED = {
    "eliminate_deadend",
    "eliminate_identity",
    "eliminate_if_with_const_cond",
    "eliminate_nop_cast",
    "eliminate_nop_concat",
    "eliminate_nop_dropout",
    "eliminate_nop_expand",
    "eliminate_nop_flatten",
    "eliminate_nop_pad",
    "eliminate_nop_reshape",
    "eliminate_nop_split",
    "eliminate_nop_transpose",
    "eliminate_shape_gather",
    "eliminate_shape_op",
    "eliminate_slice_after_shape",
    "eliminate_unused_initializer",
    "extract_constant_to_initializer",
    "fuse_concat_into_reshape",
    "fuse_consecutive_slices",
    "fuse_consecutive_squeezes",
    "fuse_consecutive_transposes",
    "fuse_consecutive_unsqueezes",
    "fuse_pad_into_conv",
    "fuse_pad_into_pool",
}
"""Optimizers that may run.

The others do harm. They fuse norms (`fuse_bn_into_conv`) or drop a norm's scale while it is all ones
(`eliminate_nop_with_unit`). They tie parameters of different layers (`eliminate_duplicate_initializer`) or fold the
batch into rows (`fuse_matmul_add_bias_into_gemm`).
"""


def main(source: str, result: str, largest: str) -> int:
    """Simplify the file `source` into `result`; return 0 on success."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # onnxruntime-training would import it, for nothing
    import onnx
    import onnxsim
    import onnxsim.onnxsim_cpp2py_export as core

    skipped = [name for name in core._list_optimizers() if name not in ALLOWED]
    model, _ = onnxsim.simplify(
        onnx.load(source), skip_fuse_bn=True, skipped_optimizers=skipped, tensor_size_threshold=f"{largest}B"
    )
    onnx.save(model, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
