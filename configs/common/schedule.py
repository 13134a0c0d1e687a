"""Learning-rate schedules. The length of a run is its `train.max_iter`."""

from predet.d2 import LazyCall as L
from predet.engine.schedule import WarmupSchedule

constant = L(WarmupSchedule)(max_iter="${train.max_iter}")
