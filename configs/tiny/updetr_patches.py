"""UP-DETR on a tiny DETR with the settings under which patches are found soonest, for a CPU.

The paper trains for 300_000 steps; in a thousand, with its own settings, queries do not yet look at
their patches. What gets them there: as many patches as queries, each matched within its group of
one, patches as they are (no colours changed, none masked), features standardised, a map of stride
16. `configs/tiny/updetr.py` is the one to fine-tune from.

    tools/lazyconfig_train_net.py --config-file configs/tiny/image_domain.py --num-gpus 0 \\
        data.unlabeled.source=SCENES data.unlabeled.split=train
Run: tools/lazyconfig_train_net.py --config-file configs/tiny/updetr_patches.py --num-gpus 0 \\
    data.unlabeled.source=SCENES \\
    model.detector.backbone.weights=output/tiny/image_domain/checkpoints/last.pth
Look: tools/evaluate_patches.py --config-file configs/tiny/updetr_patches.py \\
    --weights output/tiny/updetr_patches/checkpoints/last.pth data.unlabeled.source=SCENES
"""

from .updetr import choices, data, dataloader, lr_multiplier, model, optimizer, train

model.detector.backbone.out_stages = [4]
model.detector.num_queries = data.boxes.num = 12
model.matching = "group"
model.mask_probability = 0.0
model.reconstruction_weight = 0.0

data.patches.size = 32
dataloader.train.mapper.patches.photometric = []
dataloader.train.mapper.augmentation.short_sides = [128]
dataloader.train.total_batch_size = 16

optimizer.lr = 1e-3

train.output_dir = "output/tiny/updetr_patches"
train.max_iter = 2500
lr_multiplier.max_iter = train.max_iter
lr_multiplier.drop_steps = [2080]
lr_multiplier.warmup_steps = 50
