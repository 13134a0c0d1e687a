"""H-Deformable DETR with a ResNet-50 (arXiv 2207.13080), with all of the paper's tricks.

300 one-to-one and 1500 one-to-many queries, K = 6, lambda = 1; wider feed-forward blocks than
Deformable DETR, no dropout, mixed selection, look forward twice.
"""

from predet.d2 import LazyCall as L
from predet.projects.h_deformable_detr import HDeformableDETR, HybridCriterion, MixedQueries

from .deformable_detr import two_stage

model = L(HDeformableDETR)(
    backbone=two_stage.backbone,
    transformer=two_stage.transformer,
    queries=L(MixedQueries)(num_queries=300, num_one_to_many=1500, hidden_dim=256),
    criterion=L(HybridCriterion)(
        matcher=two_stage.criterion.matcher,
        weights=two_stage.criterion.weights,
        copies=6,
        one_to_many_weight=1.0,
    ),
    num_classes="${data.num_classes}",
    with_box_refine=True,
    look_forward_twice=True,
    top_k=100,
)
model.transformer.ffn_dim = 2048
model.transformer.dropout = 0.0
