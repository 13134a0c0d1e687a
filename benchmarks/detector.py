#!/usr/bin/env python
"""Whole detectors against transformers' of the same weights: inference and a training step.

    benchmarks/detector.py --output benchmarks/results

Both have a ResNet-50 with frozen norms, 80 classes and random weights; ours get theirs, and the
predictions are compared before anything is timed. Two threads, fp32, in turns in one process.
transformers' side gets normalised pixels; ours starts from uint8 images and ends at detections.

deformable_detr_forward and detr_forward: one image of 800 x 1066. For Deformable DETR also, in the
same run: `op_alone`, transformers' model with nothing but its sampling operator replaced by ours,
and `bound_of_op`, with the operator replaced by zeros: what no operator can surpass (Amdahl).
deformable_detr_step and detr_step: forward, losses and backward of two images of 480 x 640 with
seven boxes each, dropout at the papers' rates in both. transformers' own defaults have none inside
of attention and of feed-forward blocks, which is less work: `less_dropout` is the ratio against
these. deformable_detr_step_memory: the largest resident memory of a process that does
two such steps; `peer_value` is theirs (Linux only). With a GPU also gpu_training_eager and
gpu_training_compiled: images a second in bf16 at 800 px, batch 4, and the share of each part;
without one they do not run, and it says so.
"""

from __future__ import annotations

import argparse
import copy
import functools
import multiprocessing
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from figures import Figure, compare, main, milliseconds, say, set_threads, spread, synchronize
from torch import Tensor, nn

from predet.checkpoint.published import from_published
from predet.configs.common.models.deformable_detr import one_stage
from predet.configs.common.models.detr import model as detr_config
from predet.d2 import Boxes, Instances, instantiate
from predet.modeling.detector import Detector
from predet.ops.ms_deform_attn import ms_deform_attn

sys.path.insert(0, str(Path(__file__).parents[1]))

CLASSES = 80
BOXES = 7  # an image, as on COCO
DROPOUT = 0.1  # of the papers, everywhere
PEER = "transformers"


def build_ours(name: str) -> Detector:
    """The detector of the papers' recipes, with random weights."""
    config = copy.deepcopy({"detr": detr_config, "deformable_detr": one_stage}[name])
    config.num_classes = CLASSES
    config.backbone.weights = None
    config.backbone.allow_random_frozen = True
    return instantiate(config)


def build_theirs(name: str) -> nn.Module:
    from tests.oracles import hf  # only where it is needed: it takes memory

    model = hf.detr_r50(0) if name == "detr" else hf.deformable_detr_r50(0)
    set_inner_dropout(model, DROPOUT)
    return model


def set_inner_dropout(model: nn.Module, rate: float) -> None:
    """Of attention weights and of the hidden layers of feed-forward blocks."""
    changed = 0
    for module in model.modules():
        for name in {"attention_dropout", "activation_dropout"} & set(vars(module)):
            setattr(module, name, rate)
            changed += 1
    assert changed >= 18, "transformers has renamed its dropout"


def build_pair(name: str) -> tuple[Detector, nn.Module]:
    """Ours and theirs with one set of weights; what the papers freeze is frozen in both."""
    theirs = build_theirs(name)
    ours = build_ours(name)
    ours.load_state_dict(from_published(theirs.state_dict()).weights)
    for key, parameter in theirs.named_parameters():
        parameter.requires_grad_(not any(part in key for part in (".embedder.", ".stages.0.")))
    return ours, theirs


def make_batch(count: int, height: int, width: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(count):
        low = torch.rand(BOXES, 2, generator=generator) * 0.6
        extent = 0.1 + torch.rand(BOXES, 2, generator=generator) * 0.3
        instances = Instances((height, width))
        scale = torch.tensor([width, height] * 2)
        instances.gt_boxes = Boxes(torch.cat([low, low + extent], dim=1) * scale)
        instances.gt_classes = torch.randint(CLASSES, (BOXES,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        batch.append({"image": image, "instances": instances})
    return batch


def check_predictions(ours: Detector, theirs: nn.Module, batch: list[dict[str, Any]]) -> None:
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        images = ours.preprocess(batch)
        output = ours.detect(images)
        expected = theirs(images.pixels, pixel_mask=(~images.pad_mask).long())
    torch.testing.assert_close(output.logits[-1], expected.logits, rtol=0, atol=2e-3)
    torch.testing.assert_close(output.boxes[-1], expected.pred_boxes, rtol=0, atol=1e-3)


def forward_figure(name: str, args: argparse.Namespace) -> Figure:
    set_threads(args.threads)
    ours, theirs = build_pair(name)
    batch = make_batch(1, 800, 1066)
    check_predictions(ours, theirs, batch)
    images = ours.preprocess(batch)
    mask = (~images.pad_mask).long()

    @torch.inference_mode()
    def run_ours() -> None:
        ours(batch)

    @torch.inference_mode()
    def run_theirs() -> None:
        theirs(images.pixels, pixel_mask=mask)

    figure = compare(run_ours, run_theirs, peer=PEER, repeats=args.repeats)
    if name == "deformable_detr":
        figure |= with_the_operator_replaced(run_theirs, args.repeats)
    return figure


def with_the_operator_replaced(run: Callable[[], None], repeats: int) -> Figure:
    """Their model as it is, with our operator and with one that costs nothing, in turns."""
    sides = {"theirs": None, "op_alone": sample_by_predet, "bound_of_op": sample_nothing}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        for side, function in sides.items():
            with sampling_replaced(function):
                elapsed = milliseconds(run)
            if turn > 0:  # the first one warms up
                times[side].append(elapsed)
    middle = {side: statistics.median(values) for side, values in times.items()}
    return {
        "op_alone": round(middle["theirs"] / middle["op_alone"], 3),
        "op_alone_ms": spread(times["op_alone"]),
        "bound_of_op": round(middle["theirs"] / middle["bound_of_op"], 3),
        "bound_of_op_ms": spread(times["bound_of_op"]),
    }


Sampler = Callable[[Tensor, list[tuple[int, int]], Tensor, Tensor], Tensor]


@contextmanager
def sampling_replaced(function: Sampler | None) -> Iterator[None]:
    from transformers.models.deformable_detr import modeling_deformable_detr as peer

    if function is None:
        yield
        return

    def forward(  # their signature
        self: nn.Module, value: Tensor, shapes: Tensor, shapes_list: list, starts: Tensor,
        locations: Tensor, weights: Tensor, im2col_step: int,
    ) -> Tensor:  # fmt: skip
        return function(value, [tuple(shape) for shape in shapes_list], locations, weights)

    with mock.patch.object(peer.MultiScaleDeformableAttention, "forward", forward):
        yield


def sample_by_predet(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    return ms_deform_attn(value, shapes, locations, weights)


def sample_nothing(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    return Nothing.apply(value, locations, weights)


class Nothing(torch.autograd.Function):
    """Zeros, also as gradients: what comes before it is differentiated as ever."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.shapes = value.shape, locations.shape, weights.shape
        return value.new_zeros(*locations.shape[:2], value.shape[2] * value.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.new_zeros(()).expand(shape) for shape in ctx.shapes)


def step_of_ours(model: Detector, batch: list[dict[str, Any]]) -> None:
    model.zero_grad(set_to_none=True)
    sum(model(batch).values()).backward()


def step_of_theirs(model: nn.Module, pixels: Tensor, mask: Tensor, labels: list[dict]) -> None:
    model.zero_grad(set_to_none=True)
    model(pixels, pixel_mask=mask, labels=labels).loss.backward()


def inputs_of_theirs(ours: Detector, batch: list[dict]) -> tuple[Tensor, Tensor, list[dict]]:
    images, targets = ours.preprocess(batch), ours.prepare_targets(batch)
    counts = list(targets.counts)
    pairs = zip(targets.classes.split(counts), targets.boxes.split(counts), strict=True)
    labels = [{"class_labels": classes, "boxes": boxes} for classes, boxes in pairs]
    return images.pixels, (~images.pad_mask).long(), labels


def step_figure(name: str, args: argparse.Namespace) -> Figure:
    set_threads(args.threads)
    ours, theirs = build_pair(name)
    batch = make_batch(2, 480, 640)
    check_predictions(ours, theirs, batch)
    ours.train()
    theirs.train()
    inputs = inputs_of_theirs(ours, batch)
    run_theirs = functools.partial(step_of_theirs, theirs, *inputs)
    figure = compare(lambda: step_of_ours(ours, batch), run_theirs, peer=PEER, repeats=args.repeats)
    if name == "deformable_detr":
        figure |= with_the_operator_replaced(run_theirs, args.repeats)
    set_inner_dropout(theirs, 0.0)
    with_less = [milliseconds(run_theirs) for _ in range(args.repeats)]
    ratio = statistics.median(with_less) / figure["ours_ms"]["median"]
    return {**figure, "less_dropout": round(ratio, 3), "less_dropout_ms": spread(with_less)}


def step_memory(args: argparse.Namespace) -> Figure:
    peaks = {}
    for side in ("ours", "theirs"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[side] = round(pool.apply(peak_of_steps, (side, args.threads)), 2)
    return {"value": peaks["ours"], "unit": "GB", "peer": PEER, "peer_value": peaks["theirs"]}


def peak_of_steps(side: str, threads: int) -> float:
    """GB resident at most, of a fresh process."""
    set_threads(threads)
    batch = make_batch(2, 480, 640)
    ours = build_ours("deformable_detr").train()
    if side == "ours":
        step = functools.partial(step_of_ours, ours, batch)
    else:
        inputs = inputs_of_theirs(ours, batch)
        del ours
        theirs = build_theirs("deformable_detr").train()
        step = functools.partial(step_of_theirs, theirs, *inputs)
    for _ in range(2):
        step()
    status = Path("/proc/self/status").read_text()  # getrusage counts the parent's memory too
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 / 1e9


def gpu_training(compiled: bool, args: argparse.Namespace) -> Figure:
    """Images a second of training Deformable DETR on one GPU, with the optimiser's step."""
    count = 4
    model = build_ours("deformable_detr").cuda().train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5)
    batch = make_batch(count, 800, 1066)
    if compiled:
        model.backbone = torch.compile(model.backbone)
        model.transformer = torch.compile(model.transformer)

    def forward() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return sum(model(batch).values())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward().backward()
        optimizer.step()

    for _ in range(5):
        step()
    times = [milliseconds(step) for _ in range(4 * args.repeats)]
    return {
        "value": round(1e3 * count / statistics.median(times), 2),
        "unit": "images/s",
        "precision": "bf16",
        "ms": spread(times),
        "shares": shares_of_step(model, optimizer, batch),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def shares_of_step(
    model: Detector, optimizer: torch.optim.Optimizer, batch: list[dict]
) -> dict[str, float]:
    """Of one step, with the host waiting after each part."""
    marks: dict[str, float] = {}

    def part(name: str, run: Callable[[], Any]) -> Any:
        kept: list[Any] = []
        marks[name] = milliseconds(lambda: kept.append(run()))
        return kept[0]

    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16):
        images = part("preprocess", lambda: model.preprocess(batch))
        features = part("backbone", lambda: model.backbone(images.pixels))
        output = part(
            "transformer", lambda: model.transform(model.project(features), images.pad_mask)
        )
        targets = part("targets", lambda: model.prepare_targets(batch))
        matches = part("matching", lambda: model.criterion.match(output, targets))
        losses = part("losses", lambda: model.criterion(output, targets, matches))
    part("backward", lambda: sum(losses.values()).backward())
    part("optimiser", optimizer.step)
    synchronize()
    total = sum(marks.values())
    return {name: round(value / total, 3) for name, value in marks.items()}


FIGURES: dict[str, Callable[[argparse.Namespace], Figure]] = {
    "deformable_detr_forward": functools.partial(forward_figure, "deformable_detr"),
    "deformable_detr_step": functools.partial(step_figure, "deformable_detr"),
    "detr_forward": functools.partial(forward_figure, "detr"),
    "detr_step": functools.partial(step_figure, "detr"),
    "deformable_detr_step_memory": step_memory,
}

if __name__ == "__main__":
    if torch.cuda.is_available():
        FIGURES["gpu_training_eager"] = functools.partial(gpu_training, False)
        FIGURES["gpu_training_compiled"] = functools.partial(gpu_training, True)
    else:
        say("gpu_training_eager, gpu_training_compiled: not run, there is no GPU")
    main(__doc__, FIGURES, threads=2, repeats=3)
