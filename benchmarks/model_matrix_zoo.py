"""The architectures of the model matrix: small variants of timm's, with random weights and no degenerate values.

Needs torch and timm (1.0.31 was used), and a torchvision that loads, which timm imports.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

CLASSES = 10
SPREAD = 1.5
"""Standard deviation of the logits: predictions are neither certain nor uniform."""

FOUR: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}
META: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 64)}
STAGES: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}
TOKENS: dict[str, Any] = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}
SWIN: dict[str, Any] = {"img_size": 64, "window_size": 4, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}

ZOO: dict[str, tuple[str, int, dict[str, Any]]] = {
    # name: timm's model, or `module:Class` of timm; side of the image; arguments that make it small
    "vit": ("test_vit", 64, {"img_size": 64}),
    "vit_registers": ("test_vit3", 64, {"img_size": 64}),
    "vit_relpos": ("test_vit_relpos", 64, {"img_size": 64}),
    "vit_hybrid": ("vit_tiny_r_s16_p8_224", 64, {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}),
    "naflexvit": ("naflexvit_base_patch16_gap", 64, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    "sam_vit": ("samvit_base_patch16", 64, {**TOKENS, "depth": 2, "global_attn_indexes": (1,), "window_size": 2}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", 64, TOKENS),
    "deit3": ("deit3_small_patch16_224", 64, TOKENS),
    "beit": ("beit_base_patch16_224", 64, TOKENS),
    "eva02": ("eva02_tiny_patch14_224", 56, {**TOKENS, "img_size": 56}),
    "cait": ("cait_xxs24_224", 64, {**TOKENS, "num_heads": 4}),
    "xcit": ("xcit_nano_12_p16_224", 64, {**TOKENS, "num_heads": 4}),
    "volo": (
        "volo:VOLO",
        64,
        {"img_size": 64, "layers": (1, 1, 2, 1), "embed_dims": (32, 48, 48, 48), "num_heads": (2, 3, 3, 3)},
    ),
    "swin": ("swin_tiny_patch4_window7_224", 64, SWIN),
    "swinv2": ("swinv2_tiny_window8_256", 64, {**SWIN, "window_size": 8}),
    "swinv2_cr": ("swinv2_cr_tiny_224", 64, SWIN),
    "convnext": ("test_convnext", 64, {}),
    "convnextv2": ("convnextv2_atto", 64, FOUR),
    "convnext_rms": ("convnext_atto_rms", 64, FOUR),
    "mlp_mixer": (
        "mlp_mixer:MlpMixer",
        64,
        {"img_size": 64, "num_blocks": 3, "embed_dim": 48},
    ),
    "resmlp": (
        "mlp_mixer:resmlp",
        64,
        {"img_size": 64, "num_blocks": 3, "embed_dim": 48},
    ),
    "gmlp": (
        "mlp_mixer:gmlp",
        64,
        {"img_size": 64, "num_blocks": 3, "embed_dim": 48},
    ),
    "poolformer": ("metaformer:poolformer", 64, META),
    "poolformerv2": ("metaformer:poolformerv2", 64, META),
    "convformer": ("metaformer:convformer", 64, META),
    "caformer": ("metaformer:caformer", 64, {**META, "dims": (32, 32, 32, 64)}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mobilevitv2": ("mobilevitv2_050", 64, {}),
    "efficientformer": (
        "efficientformer_l1",
        224,
        {"depths": (1, 1, 2, 2), "embed_dims": (16, 24, 32, 48), "num_vit": 1},
    ),
    "efficientformerv2": (
        "efficientformerv2_s0",
        224,
        {"depths": (1, 1, 2, 2), "embed_dims": (16, 24, 32, 48), "num_vit": 1},
    ),
    "levit": ("levit_128s", 64, {"img_size": 64, "depth": (1, 1, 1), "embed_dim": (32, 48, 64)}),
    "levit_conv": ("levit_conv_128s", 64, {"img_size": 64, "depth": (1, 1, 1), "embed_dim": (32, 48, 64)}),
    "levit_128s": ("levit_128s", 224, {}),
    "coatnet": ("test_coatnet", 64, {"img_size": 64}),
    "maxvit": ("test_maxvit", 64, {"img_size": 64}),
    "coat": ("coat_tiny", 64, {"img_size": 64}),
    "crossvit": ("crossvit_9_240", 240, {"depth": ((1, 2, 0),), "embed_dim": (32, 64)}),
    "pvt_v2": ("pvt_v2_b0", 64, {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64)}),
    "twins_pcpvt": (
        "twins_pcpvt_small",
        64,
        {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64), "num_heads": (1, 2, 4, 8)},
    ),
    "twins_svt": (
        "twins_svt_small",
        64,
        {
            "img_size": 64,
            "depths": (2, 2, 2, 2),
            "embed_dims": (16, 32, 64, 64),
            "num_heads": (1, 2, 4, 8),
            "wss": (4, 4, 4, 2),
        },
    ),
    "pit": ("pit_ti_224", 64, {"img_size": 64, "depth": (1, 1, 1)}),
    "nest": (
        "nest:Nest",
        64,
        {"img_size": 64, "num_levels": 3, "depths": (1, 1, 2), "embed_dims": (24, 48, 48), "num_heads": (2, 4, 4)},
    ),
    "gcvit": (
        "gcvit:GlobalContextVit",
        64,
        {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 2, 4)},
    ),
    "mvitv2": ("mvitv2:mvitv2", 64, {"img_size": 64}),
    "davit": ("davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (24, 24, 48, 48), "num_heads": (2, 2, 4, 4)}),
    "visformer": ("visformer_tiny", 64, {"img_size": 64, "depth": (1, 1, 1), "embed_dim": 48}),
    "edgenext": ("edgenext_xx_small", 64, {**FOUR, "depths": (1, 2, 2, 2)}),
    "fastvit": (
        "fastvit_t8",
        64,
        {"layers": (1, 1, 1, 1), "embed_dims": (48, 48, 48, 48)},
    ),
    "repvit": ("repvit_m0_9", 64, {"depth": (1, 1, 2, 1), "embed_dim": (16, 24, 32, 48)}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 128, {"depth": (1, 1, 1), "embed_dim": (32, 48, 64)}),
    "efficientvim": ("efficientvim_m1", 64, {}),
    "tiny_vit": (
        "tiny_vit:TinyVit",
        64,
        {
            "embed_dims": (16, 32, 32, 64),
            "depths": (1, 1, 2, 1),
            "num_heads": (1, 2, 2, 4),
            "window_sizes": (4, 4, 4, 2),
        },
    ),
    "focalnet": ("focalnet:FocalNet", 64, {"depths": (1, 1, 2, 1), "embed_dim": 16}),
    "hiera": ("hiera_tiny_224", 64, {"img_size": (64, 64), "embed_dim": 24, "stages": (1, 1, 1, 1)}),
    "hieradet": (
        "sam2_hiera_tiny",
        64,
        {
            "embed_dim": 24,
            "num_heads": 1,
            "stages": (1, 1, 2, 1),
            "global_att_blocks": (3,),
            "window_spec": (4, 2, 2, 2),
        },
    ),
    "mambaout": ("test_mambaout", 64, {}),
    "inception_next": ("inception_next_atto", 64, FOUR),
    "swiftformer": ("swiftformer_xs", 64, {"layers": (1, 1, 2, 1), "embed_dims": (16, 24, 32, 48)}),
    "shvit": ("shvit_s1", 128, {"depth": (1, 1, 1)}),
    "starnet": ("starnet_s1", 64, {"depths": (1, 1, 2, 1), "base_dim": 16}),
    "sequencer": (
        "sequencer2d_s",
        64,
        {"layers": (1, 1, 1, 1), "embed_dims": (24, 24, 24, 24), "hidden_sizes": (8, 8, 8, 8), "img_size": 64},
    ),
    "convmixer": ("convmixer:ConvMixer", 64, {"dim": 32, "depth": 3, "patch_size": 8}),
    "convit": ("convit_tiny", 64, {**TOKENS, "embed_dim": 12, "num_heads": 4, "local_up_to_layer": 2}),
    "resnet": ("resnet18", 64, {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}),
    "resnet50": ("resnet50", 64, {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24)}),
    "resnet_d": ("resnet26d", 64, {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24)}),
    "resnet_gn": ("resnet50_gn", 64, {**STAGES, "channels": (32, 32, 32, 32)}),
    "resnext": ("resnext50_32x4d", 64, {**STAGES, "cardinality": 4, "base_width": 16}),
    "seresnet": ("seresnet50", 64, STAGES),
    "ecaresnet": ("ecaresnet50t", 64, STAGES),
    "resnet_blur": ("resnetblur50", 64, STAGES),
    "skresnet": ("skresnet18", 64, STAGES),
    "res2net": ("res2net50_26w_4s", 64, STAGES),
    "resnest": ("resnest14d", 64, {"channels": (16, 16, 32, 32)}),
    "resnetv2": ("resnetv2_50", 64, {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48), "stem_chs": 16}),
    "resnetv2_frn": ("resnetv2_50d_frn", 64, {"layers": (1, 1, 1, 1), "channels": (32, 32, 64, 64), "stem_chs": 16}),
    "bit": (
        "resnetv2:bit",
        64,
        {"layers": (1, 1, 1, 1), "channels": (32, 64, 64, 128), "stem_chs": 32, "bottle_ratio": 1.0},
    ),
    "nfnet": ("test_nfnet", 64, {}),
    "densenet": ("densenet121", 64, {"block_config": (2, 2, 2, 2), "growth_rate": 8}),
    "vgg": ("vgg:plain", 64, {}),
    "vgg_bn": ("vgg:normed", 64, {}),
    "inception_v3": ("inception_v3", 128, {}),
    "xception": ("xception41", 64, {}),
    "dla": ("dla46x_c", 64, {}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "vovnet": ("ese_vovnet19b_slim", 64, {}),
    "cspresnet": ("cspresnet50", 64, {}),
    "darknet": ("darknet17", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "tresnet": ("tresnet_m", 64, {}),
    "dpn": ("dpn48b", 64, {"k_sec": (1, 1, 1, 1)}),
    "regnety": ("regnety_002", 64, {}),
    "regnetz": ("regnetz_005", 64, {}),
    "repvgg": ("repvgg_a0", 64, {}),
    "byobnet": ("test_byobnet", 64, {}),
    "mobileone": ("mobileone_s0", 64, {}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "ghostnetv2": ("ghostnetv2_100", 64, {}),
    "mobilenetv1": ("mobilenetv1_100", 64, {}),
    "mobilenetv2": ("mobilenetv2_035", 64, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "mobilenetv4": ("mobilenetv4_conv_small_035", 64, {}),
    "mobilenetv4_hybrid": ("mobilenetv4_hybrid_medium_075", 64, {}),
    "efficientnet": ("test_efficientnet", 64, {}),
    "efficientnet_lite": ("tf_efficientnet_lite0", 64, {}),
    "efficientnet_gn": ("test_efficientnet_gn", 64, {}),
    "efficientnet_ln": ("test_efficientnet_ln", 64, {}),
    "efficientnet_evos": ("test_efficientnet_evos", 64, {}),
    "efficientnetv2": ("efficientnetv2_rw_t", 64, {}),
    "rexnet": ("rexnet_100", 64, {}),
    "botnet": ("botnet26t_256", 64, {"img_size": 64}),
    "lambda_resnet": ("lambda_resnet26t", 64, {"img_size": 64}),
    "fasternet": ("fasternet_t0", 64, {}),
}


def build(name: str) -> tuple[nn.Module, int]:
    """Return the network `name` in inference mode, and the side of its images; the weights are always the same."""
    import timm

    source, side, choices = ZOO[name]
    torch.manual_seed(0)
    module, _, made = source.partition(":")
    if not made:
        model = timm.create_model(source, num_classes=CLASSES, **choices)
    elif made in SPECIAL:
        model = SPECIAL[made](choices)
    else:
        model = getattr(importlib.import_module(f"timm.models.{module}"), made)(num_classes=CLASSES, **choices)
    return settled(model, side).eval(), side


def _metaformer(kind: str) -> Any:
    def made(choices: dict[str, Any]) -> nn.Module:
        from timm.models import metaformer

        entry = {"poolformer": "poolformer_s12", "poolformerv2": "poolformerv2_s12"}.get(kind, f"{kind}_s18")
        captured: dict[str, Any] = {}
        outer = metaformer._create_metaformer
        metaformer._create_metaformer = lambda name, pretrained=False, **kwargs: captured.update(kwargs)
        try:
            getattr(metaformer, entry)()
        finally:
            metaformer._create_metaformer = outer
        return metaformer.MetaFormer(num_classes=CLASSES, **{**captured, **choices})

    return made


def _vgg(norm: type[nn.Module] | None) -> Any:
    def made(choices: dict[str, Any]) -> nn.Module:
        from timm.models.vgg import VGG

        plan = [8, "M", 16, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
        return VGG(plan, num_classes=CLASSES, norm_layer=norm, mlp_ratio=0.02, **choices)

    return made


def _mlp(block: str) -> Any:
    def made(choices: dict[str, Any]) -> nn.Module:
        from functools import partial

        from timm.models import mlp_mixer

        if block == "resmlp":
            kinds = {
                "block_layer": partial(mlp_mixer.ResBlock, init_values=0.3),
                "norm_layer": mlp_mixer.Affine,
                "mlp_ratio": 4,
            }
        else:
            kinds = {"block_layer": mlp_mixer.SpatialGatingBlock, "mlp_ratio": 6, "mlp_layer": mlp_mixer.GatedMlp}
        return mlp_mixer.MlpMixer(num_classes=CLASSES, **kinds, **choices)

    return made


def _mvitv2(choices: dict[str, Any]) -> nn.Module:
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    return MultiScaleVit(
        MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=(24, 24, 48, 48), num_heads=(1, 1, 2, 2)),
        num_classes=CLASSES,
        **choices,
    )


def _bit(choices: dict[str, Any]) -> nn.Module:
    from functools import partial

    from timm.layers import GroupNormAct
    from timm.layers.std_conv import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(
        num_classes=CLASSES,
        stem_type="fixed",
        conv_layer=partial(StdConv2d, eps=1e-8),
        norm_layer=partial(GroupNormAct, num_groups=32),
        **choices,
    )


SPECIAL = {
    **{kind: _metaformer(kind) for kind in ("poolformer", "poolformerv2", "convformer", "caformer")},
    "plain": _vgg(None),
    "normed": _vgg(nn.BatchNorm2d),
    "resmlp": _mlp("resmlp"),
    "gmlp": _mlp("gmlp"),
    "mvitv2": _mvitv2,
    "bit": _bit,
}


def settled(model: nn.Module, side: int) -> nn.Module:
    """Return the model with weights like trained ones: scales not zero and all different, statistics that fit.

    Initial weights hide mistakes: a branch scaled by 1e-6 has no gradient, equal norms are merged by exporters.
    """
    with torch.no_grad():
        for name, value in model.named_parameters():
            spread = float(value.max() - value.min()) if value.numel() > 1 else 0.0
            if spread > 0 or value.numel() == 1:
                continue
            if name.endswith("bias"):
                value.copy_(torch.randn_like(value) * 0.1)
            else:
                centre = float(value.flatten()[0])
                value.copy_((centre if abs(centre) > 0.5 else 0.3) * (0.7 + 0.6 * torch.rand_like(value)))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        if norms:
            model(torch.randn(8, 3, side, side))
        for norm in norms:
            norm.momentum = 0.1
        model.eval()
        stretch = SPREAD / float(model(torch.randn(4, 3, side, side)).std())
        heads = model.get_classifier()
        for head in heads if isinstance(heads, tuple | nn.ModuleList | list) else (heads,):
            for value in head.parameters():
                value.mul_(stretch)
    return model
