"""Small stand-ins for detector, loader and evaluator, importable by the processes under test."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from predet.d2 import Boxes, DatasetEvaluator, Instances, comm
from predet.data.dataset import DetectionDataset
from predet.data.loader import BadSamples, MissingBoxes

SIZE = 8
FULL = 12_000  # bytes that a file may have where "the disk is full": less than a checkpoint has


class TinyBackbone(nn.Module):
    """A convolution with running statistics and dropout: both must survive a resume."""

    def __init__(self, *, width: int, dropout: float, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(images)).relu()).mean(dim=(2, 3))


class TinyDetector(nn.Module):
    """Counts boxes of each class and regresses the mean box, by the contract of a detector."""

    def __init__(
        self, *, num_classes: int, width: int = 8, dropout: float = 0.1, norm: bool = True
    ) -> None:
        super().__init__()
        self.backbone = TinyBackbone(width=width, dropout=dropout, norm=norm)
        self.class_head = nn.Linear(width, num_classes)
        self.box_head = nn.Linear(width, 4)
        self.num_classes = num_classes
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 127.0), persistent=False)

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | list[dict]:
        images = torch.stack([item["image"] for item in batch]).to(self.pixel_mean.device)
        features = self.backbone((images - self.pixel_mean) / 64)
        logits, boxes = self.class_head(features), self.box_head(features)
        if not self.training:
            return [
                {"instances": _detection(item, logit, box)}
                for item, logit, box in zip(batch, logits, boxes, strict=True)
            ]
        return self.losses(batch, logits, boxes)

    def losses(self, batch: list[dict], logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        alone = torch.tensor([[len(item["instances"]) for item in batch]])
        step_counts = batch[0].get("step_counts", alone)
        normaliser = step_counts.clamp(min=0).sum().clamp(min=1) / len(step_counts)
        loss_class, loss_bbox = logits.sum() * 0, boxes.sum() * 0  # no targets: still a graph
        for item, logit, box in zip(batch, logits, boxes, strict=True):
            instances = item["instances"]
            if len(instances):
                wanted = torch.bincount(instances.gt_classes, minlength=self.num_classes)
                loss_class = loss_class + (logit - wanted.float()).abs().sum()
                target = instances.gt_boxes.tensor.mean(0) / SIZE
                loss_bbox = loss_bbox + (box - target).square().sum()
        return {
            "loss_class": loss_class / normaliser,
            "loss_class_0": 0.5 * loss_class / normaliser,
            "loss_bbox": loss_bbox / normaliser,
        }


class WithSiblings(nn.Module):
    """A pre-training meta-architecture: a detector and parts that do not survive."""

    def __init__(self, *, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self.projector = nn.Linear(4, 4)

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | list[dict]:
        losses = self.detector(batch)
        if self.training:
            losses["loss_projector"] = self.projector(torch.ones(4)).square().mean()
        return losses


def _detection(item: dict, logit: Tensor, box: Tensor) -> Instances:
    instances = Instances((item["height"], item["width"]))
    instances.pred_boxes = Boxes((box * SIZE)[None])
    instances.scores, instances.pred_classes = logit.max()[None], logit.argmax()[None]
    return instances


def tiny_dataset(num_images: int = 12, class_names: tuple[str, ...] = ("a", "b"), seed: int = 0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, num_images)
    corners = rng.uniform(0, SIZE / 2, (counts.sum(), 2))
    return DetectionDataset(
        name="tiny",
        root="/nowhere",
        class_names=class_names,
        category_ids=range(1, len(class_names) + 1),
        keys=[f"{i:03d}.png" for i in range(num_images)],
        image_ids=range(num_images),
        heights=[SIZE] * num_images,
        widths=[SIZE] * num_images,
        offsets=np.cumsum([0, *counts]),
        boxes=np.concatenate([corners, corners + rng.uniform(1, 3, corners.shape)], 1),
        classes=rng.integers(0, len(class_names), counts.sum()),
    )


class _Parts(Dataset):
    """Part number n of this rank; the images of a step do not depend on how it is divided."""

    def __init__(self, loader: TinyLoader, accumulation_steps: int) -> None:
        self.loader, self.accumulation_steps = loader, accumulation_steps
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, number: int) -> list[dict]:
        loader = self.loader
        step, part = divmod(number, self.accumulation_steps)
        order = np.random.default_rng([loader.seed, step]).permutation(len(loader.dataset))
        share = loader.total_batch_size // (self.world_size * self.accumulation_steps)
        start = (part * self.world_size + self.rank) * share
        chosen = order[start : start + share]
        batch = [tiny_item(loader.dataset, int(i), loader.seed) for i in chosen]
        if self.rank in loader.empty_ranks:
            for item in batch:
                item["instances"] = item["instances"][[]]
        if number == loader.nan_at and self.rank == loader.nan_rank:
            batch[0]["image"] = torch.full((3, SIZE, SIZE), torch.nan)
        return batch


def tiny_item(dataset: DetectionDataset, index: int, seed: int) -> dict:
    record = dataset[index]
    rng = np.random.default_rng([seed, index])
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(torch.from_numpy(record.boxes))
    instances.gt_classes = torch.from_numpy(record.classes)
    image = torch.from_numpy(rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8))
    return {
        "image": image.float(),
        "height": SIZE,
        "width": SIZE,
        "image_id": record.image_id,
        "key": record.key,
        "instances": instances,
    }


class TinyLoader:
    """A training loader by the contract of `build_train_loader`.

    Environment variables disturb a run without changing what it computes: STANDIN_DELAY is the
    number of seconds to wait for each batch (of STANDIN_SLOW_RANK alone, where that is set),
    STANDIN_TERM_AT the number of the batch at which rank 0 sends itself SIGTERM,
    STANDIN_EVALUATION the seconds that rank 0 spends alone in each evaluation, and
    STANDIN_FAIL=RANK:BATCH:HOW makes a rank fail there: "kill" is SIGKILL, "raise" an error, "full"
    lets it write no large files from there on.

    Args:
        nan_at, nan_rank: the batch and rank whose first image is NaN.
        empty_ranks: ranks whose images have no boxes.
    """

    def __init__(
        self,
        *,
        dataset: DetectionDataset,
        total_batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
        nan_at: int = -1,
        nan_rank: int = 0,
        empty_ranks: tuple[int, ...] = (),
    ) -> None:
        self.dataset = dataset
        self.total_batch_size = total_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.nan_at, self.nan_rank = nan_at, nan_rank
        self.empty_ranks = empty_ranks

    def batches(self, start_step: int, accumulation_steps: int = 1) -> Iterator[list[dict]]:
        rank = comm.get_rank()
        numbers = range(start_step * accumulation_steps, 10**6)
        stream = DataLoader(
            _Parts(self, accumulation_steps),
            sampler=numbers,
            batch_size=None,
            num_workers=self.num_workers,
        )
        delay = float(os.environ.get("STANDIN_DELAY", 0))
        if os.environ.get("STANDIN_SLOW_RANK", str(rank)) != str(rank):
            delay = 0.0
        failure = os.environ.get("STANDIN_FAIL", "-1:-1:").split(":")
        term_at = int(os.environ.get("STANDIN_TERM_AT", -1))
        for number, batch in zip(numbers, stream, strict=False):
            time.sleep(delay)
            if number == term_at and rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            if [str(rank), str(number)] == failure[:2]:
                if failure[2] == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if failure[2] == "full":
                    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
                    yield batch
                    continue
                raise KeyError("the disk of this machine is gone")
            yield batch

    def bad_samples(self) -> BadSamples:
        return BadSamples()

    def missing_boxes(self) -> MissingBoxes:
        return MissingBoxes()


class TinyTestLoader:
    def __init__(self, *, dataset: DetectionDataset, seed: int = 0) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(range(comm.get_rank(), len(self.dataset), comm.get_world_size()))

    def __iter__(self) -> Iterator[list[dict]]:
        for index in range(comm.get_rank(), len(self.dataset), comm.get_world_size()):
            yield [tiny_item(self.dataset, index, self.seed)]


class TinyEvaluator(DatasetEvaluator):
    """ "AP" is a deterministic function of the weights: minus the mean error of the mean box."""

    def __init__(self, *, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def reset(self) -> None:
        self.errors: dict[int, float] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for item, output in zip(inputs, outputs, strict=True):
            box = output["instances"].pred_boxes.tensor[0]
            self.errors[item["image_id"]] = float(box.square().mean())

    def evaluate(self) -> dict[str, float]:
        errors = {k: v for part in comm.all_gather(self.errors) for k, v in part.items()}
        if comm.is_main_process():  # which counts, as in COCO evaluation, while the others wait
            time.sleep(float(os.environ.get("STANDIN_EVALUATION", 0)))
        return {"AP": -sum(errors[k] for k in sorted(errors)) / len(errors), "AP/a": 1.0}
