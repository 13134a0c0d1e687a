"""A whole training config of stand-ins: seconds on a CPU."""
# ruff: noqa: C408

import torch
from engine_standins import TinyDetector, TinyEvaluator, TinyLoader, TinyTestLoader, tiny_dataset

from predet.d2 import LazyCall as L
from predet.engine import WarmupSchedule, parameter_groups

data = dict(num_classes=None, class_names=None, test=dict(num_images=5))
model = L(TinyDetector)(num_classes="${data.num_classes}")
dataloader = dict(
    train=L(TinyLoader)(dataset=L(tiny_dataset)(), num_workers=0, seed="${train.seed}"),
    test=L(TinyTestLoader)(dataset=L(tiny_dataset)(num_images="${data.test.num_images}")),
    evaluator=L(TinyEvaluator)(),
)
optimizer = L(torch.optim.AdamW)(
    params=L(parameter_groups)(lr_factors={"backbone": 0.5}), lr=1e-2, weight_decay=1e-2
)
lr_multiplier = L(WarmupSchedule)(max_iter="${train.max_iter}", drop_steps=[15], warmup_steps=3)
train = dict(
    output_dir="./output",
    max_iter=20,
    seed=3,
    device="cpu",
    log_period=4,
    eval_period=8,
    checkpoint_period=5,
    ema_decay=0.9,
)
