"""Small detectors and batches for the tests of the projects."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from predet.d2 import Boxes, Instances
from predet.layers.transformer import Transformer
from predet.modeling.backbone import ResNet
from predet.modeling.criterion import SetCriterion
from predet.modeling.detector import Detector
from predet.modeling.matcher import HungarianMatcher
from predet.projects.deformable_detr.modeling import DeformableDETR
from predet.projects.deformable_detr.queries import LearnedQueries, ProposalQueries
from predet.projects.deformable_detr.transformer import DeformableTransformer
from predet.projects.detr.modeling import DETR
from predet.projects.h_deformable_detr import HDeformableDETR, HybridCriterion, MixedQueries

NUM_CLASSES = 5
NUM_QUERIES = 20
NUM_ONE_TO_MANY = 30
HIDDEN = 64

DETECTORS = (
    "detr",
    "detr_pre_norm",
    "deformable",
    "deformable_single_scale",
    "deformable_refine",
    "deformable_two_stage",
    "h_deformable",
)


class SmallBackbone(nn.Module):
    """Strided convolutions: all that a detector asks of a backbone."""

    def __init__(self, *, num_maps: int) -> None:
        super().__init__()
        widths = (3, 8, 16, 24, 32, 40)
        self.stages = nn.ModuleList(
            nn.Conv2d(width_in, width, kernel_size=3, stride=2, padding=1)
            for width_in, width in itertools.pairwise(widths)
        )
        self.channels = widths[-num_maps:]
        self.strides = (8, 16, 32)[-num_maps:]

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = [pixels]
        for stage in self.stages:
            maps.append(2 * stage(maps[-1]).relu())
        return tuple(maps[-len(self.channels) :])


def build_detector(
    name: str, *, norm: str = "gn", dropout: float = 0.0, num_classes: int = NUM_CLASSES
) -> Detector:
    """A detector of reduced width, all of it trainable.

    On a ResNet-18 with norm="frozen_bn"; by default on a backbone that costs next to nothing.
    """
    softmax = name.startswith("detr")
    single = softmax or name == "deformable_single_scale"
    if norm == "frozen_bn":
        backbone = ResNet(
            depth=18,
            weights=None,
            freeze_at=0,
            out_stages=(5,) if single else (3, 4, 5),
            allow_random_frozen=True,
        )
    else:
        backbone = SmallBackbone(num_maps=1 if single else 3)
    if softmax:
        transformer = Transformer(
            hidden_dim=HIDDEN,
            num_heads=4,
            num_encoder_layers=2,
            num_decoder_layers=3,
            ffn_dim=96,
            dropout=dropout,
            pre_norm=name == "detr_pre_norm",
        )
        return DETR(
            backbone=backbone,
            transformer=transformer,
            criterion=build_criterion("softmax"),
            num_classes=num_classes,
            num_queries=NUM_QUERIES,
        )
    transformer = DeformableTransformer(
        hidden_dim=HIDDEN,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=3,
        ffn_dim=96,
        dropout=dropout,
        num_levels=1 if single else 4,
    )
    if name == "h_deformable":
        return HDeformableDETR(
            backbone=backbone,
            transformer=transformer,
            queries=MixedQueries(
                num_queries=NUM_QUERIES, num_one_to_many=NUM_ONE_TO_MANY, hidden_dim=HIDDEN
            ),
            criterion=build_criterion("focal", HybridCriterion),
            num_classes=num_classes,
            with_box_refine=True,
            look_forward_twice=True,
        )
    source = ProposalQueries if name == "deformable_two_stage" else LearnedQueries
    return DeformableDETR(
        backbone=backbone,
        transformer=transformer,
        queries=source(num_queries=NUM_QUERIES, hidden_dim=HIDDEN),
        criterion=build_criterion("focal"),
        num_classes=num_classes,
        with_box_refine=name in ("deformable_refine", "deformable_two_stage"),
    )


def build_criterion(classification: str, kind: type[SetCriterion] = SetCriterion) -> SetCriterion:
    """With the papers' weights."""
    class_weight = {"softmax": 1.0, "focal": 2.0}[classification]
    return kind(
        matcher=HungarianMatcher(classification=classification, class_cost=class_weight),
        weights={"loss_class": class_weight, "loss_bbox": 5.0, "loss_giou": 2.0},
    )


def build_batch(
    sizes: tuple[tuple[int, int], ...] = ((96, 128), (120, 90), (64, 64)),
    counts: tuple[int, ...] = (4, 1, 3),
    seed: int = 0,
) -> list[dict]:
    """Noise images with boxes of at least 8 pixels."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for (height, width), count in zip(sizes, counts, strict=True):
        low = torch.rand(count, 2, generator=generator) * 0.6
        extent = 0.15 + torch.rand(count, 2, generator=generator) * 0.25
        scale = torch.tensor([width, height, width, height])
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([low, low + extent], dim=1) * scale)
        instances.gt_classes = torch.randint(NUM_CLASSES, (count,), generator=generator)
        shape = (3, height, width)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        batch.append(
            {"image": image, "height": 2 * height, "width": 3 * width, "instances": instances}
        )
    return batch


@pytest.fixture
def detector():
    """`detector(name, **options)` builds a small one; see `build_detector`."""
    return build_detector


@pytest.fixture
def criterion():
    """`criterion(classification)` builds one with the papers' weights."""
    return build_criterion


@pytest.fixture
def batch():
    """`batch(sizes, counts, seed)` makes one; see `build_batch`."""
    return build_batch


@pytest.fixture(params=DETECTORS)
def detector_name(request: pytest.FixtureRequest) -> str:
    """Each small detector in turn."""
    return request.param


@pytest.fixture
def any_detector(detector_name: str) -> Detector:
    """The detector of `detector_name`, every weight random: a fresh one predicts too little.

    Its heads start at zero and its deformable attention looks the same way everywhere.
    """
    torch.manual_seed(0)
    detector = build_detector(detector_name)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if name.startswith(("backbone", "input_proj")):
                continue
            if "query_embed" in name or "level_embed" in name:
                parameter.normal_()
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif "norm" not in name:
                parameter.normal_(std=0.1)
    return detector


@pytest.fixture(scope="session")
def hf() -> ModuleType:
    """tests/oracles/hf.py, or a skip where transformers is not installed."""
    pytest.importorskip("transformers", reason="the oracle needs transformers")
    path = Path(__file__).parents[1] / "oracles" / "hf.py"
    spec = importlib.util.spec_from_file_location("predet_oracle_hf", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
