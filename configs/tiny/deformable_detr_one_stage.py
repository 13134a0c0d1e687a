"""The tiny Deformable DETR with learned queries and without refinement.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/deformable_detr_one_stage.py \\
    --num-gpus 0 data.train.source=SCENES data.test.source=SCENES
"""

from predet.d2 import LazyCall as L
from predet.projects.deformable_detr import LearnedQueries

from .deformable_detr import data, dataloader, lr_multiplier, model, optimizer, train

model.queries = L(LearnedQueries)(num_queries=50, hidden_dim=128)
model.with_box_refine = False

train.output_dir = "output/tiny/deformable_detr_one_stage"
