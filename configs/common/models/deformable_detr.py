"""Deformable DETR with a ResNet-50 (arXiv 2010.04159): one-stage, refined, two-stage."""

import copy

from predet.d2 import LazyCall as L
from predet.modeling.backbone import ResNet
from predet.modeling.criterion import SetCriterion
from predet.modeling.matcher import HungarianMatcher
from predet.projects.deformable_detr import (
    DeformableDETR,
    DeformableTransformer,
    LearnedQueries,
    ProposalQueries,
)

one_stage = L(DeformableDETR)(
    backbone=L(ResNet)(
        depth=50, weights="torchvision", norm="frozen_bn", freeze_at=2, out_stages=[3, 4, 5]
    ),
    transformer=L(DeformableTransformer)(
        hidden_dim=256,
        num_heads=8,
        num_encoder_layers=6,
        num_decoder_layers=6,
        ffn_dim=1024,
        dropout=0.1,
        num_levels=4,
    ),
    queries=L(LearnedQueries)(num_queries=300, hidden_dim=256),
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(
            classification="focal", class_cost=2.0, bbox_cost=5.0, giou_cost=2.0
        ),
        weights={"loss_class": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0},
    ),
    num_classes="${data.num_classes}",
    with_box_refine=False,
    top_k=100,
)

refined = copy.deepcopy(one_stage)
refined.with_box_refine = True

two_stage = copy.deepcopy(refined)
two_stage.queries = L(ProposalQueries)(num_queries=300, hidden_dim=256)
