"""AdamW as the DETR family uses it: the backbone learns ten times slower, all weights decay."""

import torch

from predet.d2 import LazyCall as L
from predet.engine.optim import parameter_groups

optimizer = L(torch.optim.AdamW)(
    params=L(parameter_groups)(lr_factors={"backbone": 0.1}),  # the tool gives it the model
    lr=1e-4,
    weight_decay=1e-4,
    fused=True,  # one pass over all weights: on a CPU a fifth of the time
)
