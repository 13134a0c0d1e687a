"""Training: configs, the trainer with exact resume, and the training command."""

from predet.engine.config import list_keys, load_config
from predet.engine.config_text import save_resolved
from predet.engine.optim import parameter_groups
from predet.engine.replay import load_replay, replay
from predet.engine.schedule import WarmupSchedule
from predet.engine.settings import TrainSettings
from predet.engine.step import NonFiniteError
from predet.engine.trainer import Trainer

__all__ = [
    "NonFiniteError",
    "TrainSettings",
    "Trainer",
    "WarmupSchedule",
    "list_keys",
    "load_config",
    "load_replay",
    "parameter_groups",
    "replay",
    "save_resolved",
]
