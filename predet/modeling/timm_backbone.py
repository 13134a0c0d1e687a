"""Any feature extractor of timm as a backbone, through the extra `timm`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from predet.modeling.timm_extra import known_name, require_timm
from predet.modeling.weights import load_whole, read_state_dict, refuse_random_frozen

logger = logging.getLogger(__name__)


class TimmBackbone(nn.Module):
    """A model of timm that returns feature maps; channels and strides are read from it.

    Swin at the image sizes of detection is `Swin`, not this class.

    Args:
        name: of the model in timm, with or without the tag of its weights.
        weights: None starts from random; "timm" downloads the weights of `name`; anything else is
            the path of a state dict in timm's names or of a checkpoint of ours, of which parts
            that are not built (the classifier, stages after the last map) are left out.
        out_indices: which of timm's maps are returned, ascending or counted from the end.
        freeze_at: the modules up to and with the map of index `freeze_at - 1` are not trained and
            keep their statistics; 0 = all are trained.
        frozen_batch_norm: batch normalisation with fixed statistics and affine map, everywhere.
        options: further arguments of the model, for example {"drop_path_rate": 0.1}.
        checkpointing: compute activations again in the backward pass, stage by stage.
        allow_random_frozen: as of `ResNet`.
    """

    def __init__(
        self,
        *,
        name: str,
        weights: str | None,
        out_indices: Sequence[int] = (-3, -2, -1),
        freeze_at: int = 0,
        frozen_batch_norm: bool = False,
        options: Mapping[str, Any] | None = None,
        checkpointing: bool = False,
        allow_random_frozen: bool = False,
    ) -> None:
        super().__init__()
        timm = require_timm(f"TimmBackbone '{name}'")
        if weights is None and not allow_random_frozen:
            refuse_random_frozen(
                "TimmBackbone",
                frozen_norm=frozen_batch_norm,
                freeze_at=freeze_at,
                remedy="frozen_batch_norm=False",
            )
        body = timm.create_model(
            known_name(timm, name),
            pretrained=weights == "timm",
            features_only=True,
            out_indices=tuple(out_indices),
            **_plain(options or {}),
        )
        self.name = name
        self.freeze_at = freeze_at
        self.pretrained = weights is not None
        self.channels = tuple(body.feature_info.channels())
        self.strides = tuple(body.feature_info.reduction())
        if frozen_batch_norm:
            body = timm.layers.freeze_batch_norm_2d(body)
        self.body = body
        self._channels_come_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        if weights not in (None, "timm"):
            self._load(weights)
        for module in self._frozen():
            module.requires_grad_(False)
        if checkpointing:
            self._checkpoint()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalised -> one (B, channels[i], about H / strides[i], ...) each."""
        maps = self.body(pixels)
        return tuple(m.permute(0, 3, 1, 2) if self._channels_come_last else m for m in maps)

    def train(self, mode: bool = True) -> TimmBackbone:
        """As usual, but frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        if self.freeze_at == 0:
            return []
        levels = self.body.feature_info.info
        if not 0 < self.freeze_at <= len(levels):
            raise ValueError(
                f"TimmBackbone: freeze_at must be between 0 and {len(levels)}, the maps of "
                f"'{self.name}', got {self.freeze_at}"
            )
        last = levels[self.freeze_at - 1]["module"].replace(".", "_")
        children = dict(self.body.named_children())
        if last not in children:
            raise ValueError(
                f"TimmBackbone: '{self.name}' cannot be frozen in part (no part {last!r} among "
                f"{', '.join(children)}); set freeze_at=0"
            )
        count = list(children).index(last) + 1
        return list(children.values())[:count]

    def _load(self, weights: str) -> None:
        state = read_state_dict(weights, instead="None, 'timm'")
        # timm's extractor unpacks stages, `stages.0.` -> `stages_0.`, or adds `model.`.
        found = {}
        for name in self.body.state_dict():
            packed = re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", name)
            names = (f"body.{name}", name, packed, name.removeprefix("model."))  # ours first
            source = next((n for n in names if n in state), "")
            if source:
                found[name] = state.pop(source)
        # Frozen norms and old files have none; they count batches for a momentum that is not used.
        counters = {n for n in self.body.state_dict() if n.endswith("num_batches_tracked")}
        what = f"{weights} do not fit timm's '{self.name}'"
        load_whole(self.body, found, what=what, optional=counters)
        logger.info(
            "backbone: %d tensors from %s, not used: %s",
            len(found),
            weights,
            ", ".join(sorted(state)) or "none",
        )

    def _checkpoint(self) -> None:
        # timm's recomputation counts a batch twice in running statistics.
        if any(isinstance(m, _BatchNorm) and m.track_running_stats for m in self.body.modules()):
            raise ValueError(
                f"TimmBackbone: checkpointing '{self.name}' would change the running statistics of "
                "its batch normalisation; set frozen_batch_norm=True, or use ResNet"
            )
        if not hasattr(self.body, "set_grad_checkpointing"):
            raise ValueError(f"TimmBackbone: timm cannot checkpoint '{self.name}'")
        self.body.set_grad_checkpointing(True)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """timm tells tuples from other sequences, such as the lists of a config."""
    return {
        name: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in options.items()
    }
