"""DETR with a ResNet-50 (arXiv 2005.12872): backbone as in the papers, frozen norms."""

from predet.d2 import LazyCall as L
from predet.layers.transformer import Transformer
from predet.modeling.backbone import ResNet
from predet.modeling.criterion import SetCriterion
from predet.modeling.matcher import HungarianMatcher
from predet.projects.detr import DETR

model = L(DETR)(
    backbone=L(ResNet)(depth=50, weights="torchvision", norm="frozen_bn", freeze_at=2),
    transformer=L(Transformer)(
        hidden_dim=256,
        num_heads=8,
        num_encoder_layers=6,
        num_decoder_layers=6,
        ffn_dim=2048,
        dropout=0.1,
    ),
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(
            classification="softmax", class_cost=1.0, bbox_cost=5.0, giou_cost=2.0
        ),
        weights={"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0},
        no_object_weight=0.1,
    ),
    num_classes="${data.num_classes}",
    num_queries=100,
)
