"""SwAV: views of an image should belong to the same prototypes (Caron et al., NeurIPS 2020).

Paper: arXiv 2006.09882, section 3 and algorithm 1. A view's embedding is compared with K learned
prototypes. Over a batch the assignment of embeddings to prototypes, the code, is chosen such that
all prototypes are used alike (Sinkhorn-Knopp); and from every other view of the image its code is
to be predicted. Many small views beside two large ones (multi-crop) only predict. With small
batches embeddings of earlier steps, a queue, take part in the choice of codes.

What is different, and why, is in the README of this folder: prototypes are normalised where they
are used instead of being overwritten, the head begins with a normalisation, and codes and losses
are those of the batch of all processes.

Legend: B images of all processes, V views, C channels, D channels of an embedding, K prototypes,
L embeddings in the queue.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from predet.modeling.images import PIXEL_MEAN, PIXEL_STD
from predet.projects.image_domain.gather import gather_batch
from predet.projects.image_domain.heads import projection_head
from predet.projects.image_domain.modeling import ImageDomain
from predet.projects.image_domain.views import EncodedView

logger = logging.getLogger(__name__)


class SwAV(ImageDomain):
    """Meta-architecture of swapped prediction of prototypes.

    Args:
        backbone: as in `ImageDomain`; its last map is compared.
        num_prototypes: K, ten times the classes that one hopes to tell apart, or more.
        hidden_dim: width of the head.
        projection_dim: D.
        assigned_views: the first so many views get codes: the large ones.
        temperature: of the prediction.
        epsilon: of the codes; smaller makes them sharper.
        iterations: of Sinkhorn-Knopp.
        queue_length: L, of each assigned view; 0 for none. Of use where a batch has fewer images
            than there are prototypes.
        queue_start: forward passes before the queue takes part; it must have been filled, too.
        frozen_passes: forward passes in training in which the prototypes stay as they are.
        weight: of `loss_swav`.
        pixel_mean, pixel_std, check_period: as in `ImageDomain`.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_prototypes: int = 3000,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
        assigned_views: int = 2,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_length: int = 0,
        queue_start: int = 0,
        frozen_passes: int = 0,
        weight: float = 1.0,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        check_period: int = 50,
    ) -> None:
        super().__init__(
            backbone=backbone,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            check_period=check_period,
        )
        if num_prototypes < 2 or assigned_views < 1 or iterations < 1:
            raise ValueError(
                "expected num_prototypes >= 2, assigned_views >= 1 and iterations >= 1, got "
                f"{num_prototypes}, {assigned_views} and {iterations}"
            )
        if not (temperature > 0 and epsilon > 0):
            raise ValueError(f"expected temperature and epsilon > 0, got {temperature}, {epsilon}")
        if min(queue_length, queue_start, frozen_passes) < 0:
            raise ValueError(
                "queue_length, queue_start and frozen_passes must not be negative, got "
                f"{queue_length}, {queue_start} and {frozen_passes}"
            )
        self.assigned_views, self.weight = assigned_views, weight
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_start, self.frozen_passes = queue_start, frozen_passes
        self.projection_head = projection_head(backbone.channels[-1], hidden_dim, projection_dim)
        self.prototypes = nn.Linear(projection_dim, num_prototypes, bias=False)
        # State that a run must find again when it goes on.
        self.register_buffer("queue", torch.zeros(assigned_views, queue_length, projection_dim))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._told = False

    def compare(self, views: Sequence[EncodedView]) -> dict[str, Tensor]:
        """`loss_swav`: each assigned view's code predicted from all other views.

        Raises:
            ValueError: fewer than two views or than those to be assigned; fewer than two images.
        """
        if len(views) < max(2, self.assigned_views):
            raise ValueError(
                f"SwAV needs {max(2, self.assigned_views)} or more views of an image, "
                f"got {len(views)}"
            )
        pooled = torch.stack([view.maps[-1].mean(dim=(2, 3)) for view in views], dim=1)
        pooled = gather_batch(pooled)  # (B, V, C)
        if len(pooled) < 2:
            raise ValueError(
                "equal use of prototypes needs at least 2 images in a batch of all processes, "
                "got 1: raise dataloader.train.total_batch_size or lower train.accumulation_steps"
            )
        embedded = self.projection_head(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])
        with torch.autocast(embedded.device.type, enabled=False):
            embedded = F.normalize(embedded.float(), dim=-1)  # (B, V, D)
            scores = embedded @ self._directions().T  # (B, V, K)
            codes = self._codes(embedded.detach(), scores.detach())
            loss = swapped_prediction(scores / self.temperature, codes)
        self.passes += 1
        return {"loss_swav": self.weight * loss}

    def _directions(self) -> Tensor:
        """Prototypes of unit length (K, D); without a gradient while they are frozen."""
        weight = self.prototypes.weight.float()
        trained = (self.passes >= self.frozen_passes).to(weight.dtype)
        weight = weight.detach() + trained * (weight - weight.detach())
        return F.normalize(weight, dim=1)

    @torch.no_grad()
    def _codes(self, embedded: Tensor, scores: Tensor) -> Tensor:
        """(B, V, D) and (B, V, K) -> codes of the assigned views (B, A, K); fills the queue."""
        length = self.queue.shape[1]
        self._look_at_sizes(len(embedded), scores.shape[-1])
        usable = length > 0 and int(self.queued) == length and int(self.passes) >= self.queue_start
        codes = []
        for view in range(self.assigned_views):
            among = scores[:, view]
            if usable:
                among = torch.cat([among, self.queue[view] @ self._directions().T])
            code = sinkhorn(among, epsilon=self.epsilon, iterations=self.iterations)
            codes.append(code[: len(embedded)])
            if length:
                self.queue[view] = torch.cat([embedded[:, view], self.queue[view]])[:length]
        self.queued.fill_(min(length, int(self.queued) + len(embedded)))
        return torch.stack(codes, dim=1)

    def _look_at_sizes(self, images: int, prototypes: int) -> None:
        if not self._told and images + self.queue.shape[1] < prototypes:
            logger.warning(
                "SwAV spreads %d images and a queue of %d over %d prototypes: codes of so few say "
                "little; set model.num_prototypes lower or model.queue_length higher",
                images,
                self.queue.shape[1],
                prototypes,
            )
        self._told = True


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Assign rows to columns by score such that all columns get alike: Sinkhorn-Knopp.

    Of the soft assignments exp(score / epsilon), columns and rows are scaled in turns; rows last.
    In logarithms, so that no epsilon is too small.

    Args:
        scores: (N, K).
        epsilon: strength of the entropy; small ones give assignments of 0 and 1.
        iterations: of both scalings.

    Returns:
        (N, K) whose rows sum to 1, and whose columns, in the limit, to N / K.
    """
    log_codes = scores.float() / epsilon
    for _ in range(iterations):
        log_codes = log_codes - log_codes.logsumexp(dim=0, keepdim=True)
        log_codes = log_codes - log_codes.logsumexp(dim=1, keepdim=True)
    return log_codes.exp()


def swapped_prediction(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy of every assigned view's code and the prediction from every other view.

    Args:
        logits: (B, V, K) of all views.
        codes: (B, A, K) of the first A views.

    Returns:
        The mean over images, assigned views, and the other views of each.
    """
    predicted = logits.log_softmax(dim=-1)
    entropy = -torch.einsum("bak,bvk->av", codes, predicted) / len(codes)  # (A, V)
    own = torch.eye(*entropy.shape, dtype=torch.bool, device=entropy.device)
    return entropy.masked_fill(own, 0).sum() / (~own).sum()
