"""The tiny Deformable DETR with learned queries and iterative refinement.

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/deformable_detr_refined.py \\
    --num-gpus 0 data.train.source=SCENES data.test.source=SCENES
"""

from .deformable_detr_one_stage import data, dataloader, lr_multiplier, model, optimizer, train

model.with_box_refine = True

train.output_dir = "output/tiny/deformable_detr_refined"
