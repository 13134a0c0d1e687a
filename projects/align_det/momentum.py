"""The momentum copy: what the online detector was, averaged over its past.

`target = m * target + (1 - m) * online` after each optimiser step, with m rising from its base to 1
along half a cosine over the training (BYOL; AlignDet, arXiv 2307.11077, takes the base 0.996).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

# Names of modules whose parameters are copied, not averaged: the copy's queries stay those of the
# online detector, so that query i asks for the same on both sides.
COPIED = ("query_embed",)


def momentum_at(step: int, max_iter: int, *, base: float) -> float:
    """The momentum after optimiser step `step` (from 0) of `max_iter`."""
    return 1 - (1 - base) * (math.cos(math.pi * step / max_iter) + 1) / 2


class MomentumCopy(nn.ModuleDict):
    """Copies of modules that follow these; never trained.

    Frozen parts are shared, not copied: their average is themselves. Buffers are copied at each
    update, and so are the parameters of modules that `COPIED` names.

    Args:
        sources: the modules by name; the copies are found under the same names.
    """

    def __init__(self, sources: Mapping[str, nn.Module]) -> None:
        shared = {id(part): part for source in sources.values() for part in _frozen(source)}
        super().__init__({name: copy.deepcopy(m, shared) for name, m in sources.items()})
        self.requires_grad_(False)

    @torch.no_grad()
    def reset(self, sources: Mapping[str, nn.Module]) -> None:
        """Make the copies equal to their sources."""
        for _, own, other in self._tensors(sources):
            own.copy_(other)

    @torch.no_grad()
    def follow(self, sources: Mapping[str, nn.Module], momentum: float) -> None:
        """Move the copies towards their sources, by the share 1 - `momentum`."""
        averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, own, other in self._tensors(sources):
            is_copied = any(part in COPIED for part in name.split("."))
            if isinstance(own, nn.Parameter) and not is_copied:
                averaged[0].append(own)
                averaged[1].append(other.detach())
            else:
                own.copy_(other)
        if averaged[0]:
            get_ema_multi_avg_fn(momentum)(*averaged, 0)

    def _tensors(self, sources: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, own tensor and that of the source, for all that is not shared."""
        for name, module in self.items():
            for kind in ("named_parameters", "named_buffers"):
                own, other = (dict(getattr(m, kind)()) for m in (module, sources[name]))
                assert own.keys() == other.keys()
                for tensor_name, tensor in own.items():
                    if tensor is not other[tensor_name]:
                        yield tensor_name, tensor, other[tensor_name]


def _frozen(module: nn.Module) -> list[nn.Module]:
    """The largest parts of a module that have parameters, none of them trained."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [part for child in module.children() for part in _frozen(child)]
