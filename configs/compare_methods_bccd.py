"""UP-DETR, DETReg and self-training on three detectors, on blood cells with 20 labelled images.

    tools/compare.py --config-file configs/compare_methods_bccd.py --budget cpu --jobs 2 \\
        --num-gpus 0 --output output/compare_methods_bccd data.train.source=BCCD

BCCD in PASCAL VOC layout: 20 images of `train` are drawn anew for each seed, all of `trainval` are
unlabelled images, AP is that of `test`. Tiny detectors with a ResNet-18 and GroupNorm, 128 pixels;
nothing is downloaded. `configs/compare_methods_scenes.py` says what is asked.
"""

from .common.compare_methods import (
    arms,
    budgets,
    comparison,
    controls,
    data,
    stages_with,
    timing,
    titles,
    updates,
)

comparison.title = "Pre-training methods on blood cells"
comparison.labels = [20]
data.train.source = "datasets/bccd"
data.unlabeled.split = "trainval"

_train = "dataloader.train.mapper.augmentation"
_test = "dataloader.test.mapper.augmentation"
_sizes = {f"{_train}.short_sides": [112, 120, 128, 136, 144], f"{_train}.max_size": 224}
_crops = {f"{_train}.crop_short_sides": [128, 144, 160], f"{_train}.crop_size": [80, 128]}
stages = stages_with(
    # A third faster on processors that multiply in bfloat16, and on GPUs.
    training={"train.precision": "bf16", **_sizes},
    evaluation={**_crops, f"{_test}.short_sides": [128], f"{_test}.max_size": 224},
    pretraining=_crops,
)
