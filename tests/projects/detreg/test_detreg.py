"""DETReg on every detector: its losses, what learns, what stays, what transfers."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from predet.checkpoint import load_detector
from predet.data.augmentation import Compose, HorizontalFlip, ResizeShortSide
from predet.data.dataset import Record
from predet.data.pretext_mapper import PatchMaker, PretextMapper
from predet.modeling.backbone import ResNet
from predet.pretext.feature_target import FeatureTarget, MeanAbsolute, SummedAbsolute
from predet.pretext.pretraining import Pretraining
from predet.pretext.region_encoder import RegionEncoder
from predet.pretext.semantic_targets import KeepClasses, Objectness
from predet.projects.detreg import DETReg

SIZE = 32  # side of a patch


def make_encoder(weights: str | None = None) -> RegionEncoder:
    norm = "gn" if weights is None else "frozen_bn"
    torch.manual_seed(5)
    backbone = ResNet(depth=18, weights=weights, norm=norm, freeze_at=0, out_stages=[3])
    return RegionEncoder(backbone=backbone, allow_random=weights is None)


def make_model(detector: nn.Module, **options) -> DETReg:
    settings = {
        "semantic_target": Objectness(),
        "patch_encoder": make_encoder(),
        "distance": MeanAbsolute(),
        "freeze_backbone": True,
        **options,
    }
    torch.manual_seed(6)
    return DETReg(detector=detector, **settings).train()


def with_patches(samples: list[dict]) -> list[dict]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            **sample,
            "patches": torch.randint(
                0,
                256,
                (len(sample["instances"]), 3, SIZE, SIZE),
                dtype=torch.uint8,
                generator=generator,
            ),
        }
        for sample in samples
    ]


def test_losses_are_the_detectors_own_on_objects_and_the_embedding(any_detector, batch) -> None:
    samples = with_patches(batch(counts=(4, 0, 3)))
    reference = copy.deepcopy(any_detector).train()
    model = make_model(any_detector)
    losses = model(samples)
    expected = reference(Objectness()(samples))
    embedding = losses.pop("loss_feature")
    assert losses.keys() == expected.keys()  # no embedding of encoder or one-to-many queries
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)

    # By hand: the last layer of the one-to-one group, patch by patch.
    images, targets = (
        reference.preprocess(samples),
        reference.prepare_targets(Objectness()(samples)),
    )
    output = reference.detect(images)
    matches = reference.criterion.match(output, targets)
    patches = torch.cat([sample["patches"] for sample in samples])
    total = 0.0
    for image, query, target in zip(
        matches.image, matches.query[-1], matches.target[-1], strict=True
    ):
        assert query < 20
        told = model.feature_target.head(output.hidden[-1, image, query])
        total += (told - model.patch_encoder(patches[target : target + 1])[0]).abs().mean()
    torch.testing.assert_close(embedding, total / 7, rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_the_losses(any_detector, batch) -> None:
    model, samples = make_model(any_detector), with_patches(batch())
    expected = model(samples)["loss_feature"]
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(samples)
    assert all(value.dtype == torch.float32 for value in losses.values())
    torch.testing.assert_close(losses["loss_feature"], expected, rtol=0.05, atol=0.0)


def test_what_learns_and_what_stays(any_detector, batch) -> None:
    model = make_model(any_detector)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model(with_patches(batch())).values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    optimizer.step()
    for name, value in model.state_dict().items():
        if name.startswith(("detector.backbone.", "patch_encoder.")):
            assert value.equal(before[name]), name
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    parts = ("detector.class_head", "detector.box_head", "detector.transformer", "feature_target")
    assert all(any(name.startswith(part) for name in moved) for part in parts)
    assert not model.patch_encoder.backbone.training
    assert not model.detector.backbone.training


def test_the_embedding_alone_reaches_queries_transformer_and_projection(
    any_detector, batch
) -> None:
    """The last layer's embedding teaches all that is before it, and neither heads nor encoder."""
    model = make_model(any_detector, freeze_backbone=False)
    model(with_patches(batch()))["loss_feature"].backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    for part in ("detector.backbone", "detector.input_proj", "detector.transformer.decoder_layers"):
        assert any(name.startswith(part) for name in reached), part
    assert any(name.startswith("feature_target.head") for name in reached)
    assert not any(name.startswith(("patch_encoder", "detector.class_head")) for name in reached)


def test_only_the_detector_transfers(any_detector, batch) -> None:
    model = make_model(any_detector)
    fresh = copy.deepcopy(any_detector)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    report = load_detector(fresh, {"model": model.state_dict()})
    assert {name.split(".")[0] for name in report.dropped} == {"patch_encoder", "feature_target"}
    for name, value in any_detector.state_dict().items():
        assert fresh.state_dict()[name].equal(value)


def test_a_weight_of_zero_is_the_detector_on_objects(detector, batch) -> None:
    torch.manual_seed(0)
    plain = detector("deformable_two_stage")
    reference = copy.deepcopy(plain).train()
    model = make_model(plain, embedding_weight=0)
    samples = batch()  # no patches are needed
    losses, expected = model(samples), reference(Objectness()(samples))
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[name], expected[name]) for name in losses)
    assert all(name.startswith("detector.") for name in model.state_dict())
    twice = make_model(detector("detr"), embedding_weight=2.0)
    once = make_model(copy.deepcopy(twice.detector))
    samples = with_patches(samples)
    torch.testing.assert_close(twice(samples)["loss_feature"], 2 * once(samples)["loss_feature"])


def test_options_of_the_embedding_reach_its_loss(detector, batch) -> None:
    model = make_model(detector("detr"), layers="all", num_layers=3, distance=SummedAbsolute())
    losses = model(with_patches(batch()))
    names = {name for name in losses if "feature" in name}
    assert names == {"loss_feature", "loss_feature_0", "loss_feature_1"}
    assert len(model.feature_target.head.layers) == 3
    assert isinstance(model.feature_target.distance, SummedAbsolute)


def test_classes_may_be_kept(detector, batch) -> None:
    model = make_model(detector("detr"), semantic_target=KeepClasses())
    samples = with_patches(batch())
    kept = model(samples)["loss_class"]
    zeroed = make_model(copy.deepcopy(model.detector))(samples)["loss_class"]
    assert not torch.isclose(kept, zeroed)
    assert model.taught_classes(["a", "b"]) == ("a", "b")


class TwoBoxes:
    num_boxes, needs_annotations = 2, False

    def __init__(self, boxes: list[list[int]]) -> None:
        self.boxes = np.asarray(boxes, np.float32)

    def __call__(self, image, record, rng):
        return self.boxes, np.zeros(len(self.boxes), np.int64)


@pytest.mark.parametrize("mirrored", [0.0, 1.0])
def test_targets_are_crops_of_the_original_image(tmp_path: Path, detector, mirrored: float) -> None:
    """Cut out, resized and encoded by hand, whatever augmentation does to the image."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    pixels = cv2.GaussianBlur(pixels, (0, 0), 3)
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), pixels[..., ::-1])
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    boxes = [[10, 20, 42, 52], [60, 5, 110, 80]]  # the first is as large as a patch
    mapper = PretextMapper(
        augmentation=Compose(
            steps=[
                HorizontalFlip(probability=mirrored),
                ResizeShortSide(short_sides=[64], max_size=100),
            ]
        ),
        boxes=TwoBoxes(boxes),
        patches=PatchMaker(size=SIZE),
    )
    record = Record(
        key="photo.png",
        path=str(path),
        image_id=0,
        height=90,
        width=120,
        boxes=np.zeros((0, 4), np.float32),
        classes=np.zeros(0, np.int64),
        iscrowd=np.zeros(0, bool),
    )
    sample = mapper(record, np.random.default_rng(1))
    assert sample["image"].shape == (3, 64, 85)
    model = make_model(detector("detr"), patch_encoder=make_encoder(str(tmp_path / "weights.pth")))
    found = model.encode_patches([sample])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        crop = pixels[y1:y2, x1:x2].astype(np.float32)
        if crop.shape[:2] != (SIZE, SIZE):
            shrunk = cv2.resize(crop, (x2 - x1, SIZE), interpolation=cv2.INTER_AREA)
            crop = cv2.resize(shrunk, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        x = torch.from_numpy(((crop / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
            expected = network.layer2(network.layer1(x)).mean(dim=(2, 3))[0]
        torch.testing.assert_close(found[row], expected, atol=2e-3, rtol=1e-2)
        other = found[1 - row]
        assert (found[row] - expected).norm() < 0.05 * (other - expected).norm()


def test_widths_that_do_not_fit_are_named(detector) -> None:
    def build(**options):
        return Pretraining(
            detector=detector("detr"), semantic_target=Objectness(), freeze_backbone=True, **options
        )

    def target(hidden_dim: int, num_features: int) -> FeatureTarget:
        return FeatureTarget(
            hidden_dim=hidden_dim, num_features=num_features, distance=MeanAbsolute()
        )

    build(patch_encoder=make_encoder(), feature_target=target(64, 128))
    with pytest.raises(ValueError, match=r"64 channels to 512 features.*gives 128 features.*=128"):
        build(patch_encoder=make_encoder(), feature_target=target(64, 512))
    with pytest.raises(ValueError, match=r"maps 256 channels.*the detector has 64 channels"):
        build(patch_encoder=make_encoder(), feature_target=target(256, 128))
    with pytest.raises(ValueError, match="needs a patch_encoder"):
        build(feature_target=target(64, 128))


def test_patches_that_are_missing_or_too_few_are_named(detector, batch) -> None:
    model = make_model(detector("detr"))
    samples = batch()
    samples[1]["file_name"] = "b.jpg"
    with pytest.raises(ValueError, match="image 0 of the batch: pre-training on patches needs"):
        model(samples)
    samples = with_patches(samples)
    samples[1]["patches"] = samples[1]["patches"][[0, 0]]
    with pytest.raises(ValueError, match=r"b\.jpg: 'patches' must be uint8 \(1, 3, S, S\)"):
        model(samples)
