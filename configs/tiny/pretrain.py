"""Pre-training of the tiny two-stage Deformable DETR on boxes of any source, objects or classes.

Selective Search and objectness unless something else is asked for; the sources are in `choices`:

    dataloader.train.mapper.boxes='${choices.boxes.random_patches}'
    dataloader.train.dataset='${choices.dataset.annotated}' \\
        dataloader.train.mapper.boxes='${choices.boxes.of_dataset}' \\
        model.semantic_target._target_=predet.pretext.semantic_targets.KeepClasses

Run: tools/lazyconfig_train_net.py --config-file configs/tiny/pretrain.py --num-gpus 0 \\
    data.unlabeled.source=SCENES data.unlabeled.split=train
Then: configs/tiny/deformable_detr.py with train.reinit=auto
    train.init_checkpoint=output/tiny/pretrain/checkpoints/last.pth
"""

from ..common.pretext import choices, data, dataloader, pretrain
from .deformable_detr import dataloader as _labelled
from .deformable_detr import lr_multiplier, model, optimizer, train

model = pretrain(model)

data.unlabeled.source, data.unlabeled.split = "datasets/scenes", "train"
data.boxes.num = 10
dataloader.train.mapper.augmentation = _labelled.train.mapper.augmentation
dataloader.train.mapper.patches = None
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1
dataloader.test = None

train.output_dir = "output/tiny/pretrain"
