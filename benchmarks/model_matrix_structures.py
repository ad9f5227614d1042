"""Write `tests/matrix` again: `python -m benchmarks.model_matrix_structures DIR`.

`DIR` is the folder of `model_matrix_export` and `model_matrix_keras`; a file that `DIR` lacks stays unchanged.  The
names of the files say network, exporter and method of a test.  The networks are small, and have every kind of norm,
attention and window in the zoo.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.model_matrix_table import PREFIX
from tests.support.structures import strip

TARGET = Path(__file__).resolve().parents[1] / "tests" / "matrix"
CHOSEN = {
    "bn": "resnet.dynamo-plain resnet50.legacy-15 seresnet.legacy-17 starnet.dynamo densenet.legacy-13 "
    "res2net.legacy-17 resnext.dynamo vovnet.legacy-15 levit.legacy-17 repvit.dynamo mobilenetv3.legacy-17 "
    "efficientformer.dynamo-plain keras_mobilenet_v3.tf2onnx-13 keras_series.keras keras_inception.tf2onnx-15",
    "tent": "mlp_mixer.dynamo vit.legacy-17 swin.dynamo xcit.dynamo convnext.legacy-17 resnetv2_frn.dynamo volo.dynamo "
    "efficientformerv2.legacy-13 coatnet.dynamo crossvit.dynamo gmlp.dynamo-plain mobilenetv2.legacy-17 vgg_bn.dynamo "
    "keras_resnet_v2.tf2onnx-17 keras_vit.tf2onnx-17 keras_segmentation.tf2onnx-18 vit.legacy-14",
    "sar": "poolformer.legacy-17 deit_distilled.legacy-15 beit.legacy-13 cait.dynamo convnextv2.dynamo-plain "
    "resnet_gn.dynamo swinv2.dynamo davit.dynamo focalnet.dynamo mambaout.legacy-17 convformer.legacy-15 pit.dynamo "
    "keras_group_norm.tf2onnx-18 keras_rms_norm.tf2onnx-16 resnet_gn.legacy-16",
    "eata": "deit3.legacy-13 eva02.dynamo poolformerv2.legacy-15 caformer.dynamo-plain convnext_rms.legacy-17 "
    "hiera.legacy-13 hieradet.dynamo inception_next.dynamo-plain skresnet.legacy-17 swiftformer.dynamo pvt_v2.dynamo "
    "keras_layer_norm_no_affine.tf2onnx-15 keras_convnext_depthwise.tf2onnx-14 keras_table.keras",
}


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    for method, names in CHOSEN.items():
        for name in names.split():
            network, exporter = name.split(".")
            source = Path(sys.argv[1]) / network.replace("keras_", PREFIX) / f"{exporter}.onnx"
            if source.is_file():
                strip(source, TARGET / f"{name}.{method}.onnx.gz")
    wanted = {f"{name}.{method}.onnx.gz" for method, names in CHOSEN.items() for name in names.split()}
    for old in [path for path in TARGET.glob("*.onnx.gz") if path.name not in wanted]:
        old.unlink()


if __name__ == "__main__":
    main()
