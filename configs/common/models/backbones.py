"""Backbones of the papers beside ResNet-50, to put in the place of `model.backbone`.

Swin as in H-Deformable-DETR: maps of strides 8, 16 and 32, nothing frozen. Swin-T starts from
ImageNet-1k at 224 pixels, Swin-L from ImageNet-22k at 224. They need the extra `timm`.
"""

from predet.d2 import LazyCall as L
from predet.modeling.swin import Swin

swin_tiny = L(Swin)(
    weights="timm:swin_tiny_patch4_window7_224.ms_in1k",
    embed_dim=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
    drop_path=0.2,
    freeze_at=0,
    out_stages=[3, 4, 5],
)

swin_large = L(Swin)(
    weights="timm:swin_large_patch4_window7_224.ms_in22k",
    embed_dim=192,
    depths=[2, 2, 18, 2],
    num_heads=[6, 12, 24, 48],
    window_size=7,
    drop_path=0.2,  # 0.5 for 36 epochs
    freeze_at=0,
    out_stages=[3, 4, 5],
)
