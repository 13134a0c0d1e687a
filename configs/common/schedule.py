"""Learning-rate schedules. The length of a run is its `train.max_iter`."""

from omegaconf import DictConfig

from predet.d2 import LazyCall as L
from predet.engine.schedule import WarmupSchedule

constant = L(WarmupSchedule)(max_iter="${train.max_iter}")


def set_length(
    train: DictConfig,
    lr_multiplier: DictConfig,
    *,
    epoch: int,
    epochs: int,
    drop: int | None = None,
    eval_epochs: int = 1,
) -> None:
    """Train for `epochs` of `epoch` steps each; a tenth of the learning rate after `drop`, if any.

    A checkpoint is saved after every epoch, and evaluated after every `eval_epochs`.
    """
    train.max_iter = epochs * epoch
    train.eval_period = eval_epochs * epoch
    train.checkpoint_period = epoch
    lr_multiplier.max_iter = train.max_iter
    lr_multiplier.drop_steps = [] if drop is None else [drop * epoch]
