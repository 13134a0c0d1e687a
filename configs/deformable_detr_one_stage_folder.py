"""One-stage Deformable DETR R50 on one's own labelled images: what UP-DETR fine-tunes.

As `configs/deformable_detr_folder.py`, with learned queries and without refinement; for a detector
that is not pre-trained take that one.

Run: tools/lazyconfig_train_net.py --config-file configs/deformable_detr_one_stage_folder.py \\
    --num-gpus 1 data.train.source=DATA data.train.split=train \\
    data.test.source=DATA data.test.split=val
Fine-tune: the same with train.init_checkpoint=PRETRAINED train.reinit=auto
"""

from .common.models.deformable_detr import one_stage as model
from .deformable_detr_folder import data, dataloader, lr_multiplier, optimizer, train

optimizer.params.lr_factors = {"backbone": 0.1, "sampling_offsets": 0.1, "reference_points": 0.1}

train.output_dir = "output/folder/deformable_detr_one_stage"
