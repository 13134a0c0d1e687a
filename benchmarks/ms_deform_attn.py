#!/usr/bin/env python
"""Multi-scale deformable attention against transformers' (softmax, locations, grid_sample).

    benchmarks/ms_deform_attn.py --output benchmarks/results

Both sides get the same raw offsets and logits, and take turns in one process. The encoder's shape
is that of an 800 x 1066 image: levels 100x134, 50x67, 25x34, 13x17, eight heads of 32 channels,
four points, batch 1, fp32, every pixel a query, offsets of two pixels' deviation; the decoder's has
300 queries anywhere.

encoder_forward, encoder_forward_backward, decoder_forward, classic_encoder_forward (locations and
weights given to both sides): one thread. two_threads: our encoder_forward with two threads against
itself with one. With a GPU also gpu_forward_backward at batch 8, and the share of the memory's
bandwidth that it reaches; without, it does not run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from figures import Figure, compare, main, milliseconds, say, set_threads
from torch import Tensor

from predet.ops import extension
from predet.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused, sampling_locations

SHAPES = [(100, 134), (50, 67), (25, 34), (13, 17)]
PIXELS = sum(height * width for height, width in SHAPES)
HEADS, CHANNELS, POINTS = 8, 32, 4
PEER = "transformers"


class Inputs(NamedTuple):
    """Legend as in predet.ops.ms_deform_attn."""

    value: Tensor  # (B, S, H, C)
    reference_points: Tensor  # (B, Q, L, 2)
    offsets: Tensor  # (B, Q, H, L, P, 2)
    logits: Tensor  # (B, Q, H, L, P)

    def leaves(self) -> list[Tensor]:
        return [self.value, self.offsets, self.logits]


def make_inputs(*, queries: int | None, batch: int = 1, device: str = "cpu") -> Inputs:
    """`queries` None: every pixel is one, as in the encoder."""
    torch.manual_seed(0)
    if queries is None:
        centres = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(1)
            for h, w in SHAPES
        ]
        reference = torch.cat(centres).expand(batch, -1, -1)
    else:
        reference = torch.rand(batch, queries, 2)
    shape = (batch, reference.shape[1], HEADS, len(SHAPES), POINTS)
    tensors = (
        torch.randn(batch, PIXELS, HEADS, CHANNELS),
        reference[:, :, None].expand(-1, -1, len(SHAPES), -1).contiguous(),
        2 * torch.randn(*shape, 2),
        torch.randn(*shape),
    )
    made = Inputs(*(tensor.to(device) for tensor in tensors))
    for leaf in made.leaves():
        leaf.requires_grad_()
    return made


def locations_and_weights(inputs: Inputs) -> tuple[Tensor, Tensor]:
    locations = sampling_locations(inputs.reference_points, inputs.offsets, SHAPES)
    return locations, inputs.logits.flatten(3).softmax(-1).view_as(inputs.logits)


def by_predet(inputs: Inputs) -> Tensor:
    return ms_deform_attn_fused(inputs.value, SHAPES, *inputs[1:])


def make_by_transformers(device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Its sampling as a function of value, locations and weights."""
    try:
        from transformers.models.deformable_detr import modeling_deformable_detr as peer
    except ImportError:
        sys.exit("transformers is not installed: there is nothing to compare with")
    shapes = torch.tensor(SHAPES, device=device)
    if hasattr(peer, "MultiScaleDeformableAttention"):
        module = peer.MultiScaleDeformableAttention()
        return lambda value, at, mix: module(value, shapes, SHAPES, None, at, mix, 64)
    return lambda value, at, mix: peer.multi_scale_deformable_attention(value, SHAPES, at, mix)


def forward_of(function: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            function()

    return run


def backward_of(function: Callable[[], Tensor], inputs: Inputs) -> Callable[[], None]:
    batch, queries = inputs.offsets.shape[:2]
    grad_output = torch.randn(batch, queries, HEADS * CHANNELS, device=inputs.value.device)

    def run() -> None:
        torch.autograd.grad(function(), inputs.leaves(), grad_output)

    return run


def encoder_forward(args: argparse.Namespace) -> Figure:
    return of_forward(make_inputs(queries=None), args.repeats)


def decoder_forward(args: argparse.Namespace) -> Figure:
    return of_forward(make_inputs(queries=300), 20 * args.repeats)


def of_forward(inputs: Inputs, repeats: int) -> Figure:
    set_threads(1)
    transformers = make_by_transformers("cpu")
    return compare(
        forward_of(lambda: by_predet(inputs)),
        forward_of(lambda: transformers(inputs.value, *locations_and_weights(inputs))),
        peer=PEER,
        repeats=repeats,
        ours_each=5,
    )


def encoder_forward_backward(args: argparse.Namespace) -> Figure:
    set_threads(1)
    return of_backward(make_inputs(queries=None), args.repeats)


def of_backward(inputs: Inputs, repeats: int) -> Figure:
    transformers = make_by_transformers(inputs.value.device.type)
    return compare(
        backward_of(lambda: by_predet(inputs), inputs),
        backward_of(lambda: transformers(inputs.value, *locations_and_weights(inputs)), inputs),
        peer=PEER,
        repeats=repeats,
        ours_each=5,
    )


def classic_encoder_forward(args: argparse.Namespace) -> Figure:
    set_threads(1)
    transformers = make_by_transformers("cpu")
    inputs = make_inputs(queries=None)
    at, mix = (tensor.detach() for tensor in locations_and_weights(inputs))
    return compare(
        forward_of(lambda: ms_deform_attn(inputs.value, SHAPES, at, mix)),
        forward_of(lambda: transformers(inputs.value, at, mix)),
        peer=PEER,
        repeats=args.repeats,
        ours_each=5,
    )


def two_threads(args: argparse.Namespace) -> Figure:
    inputs = make_inputs(queries=None)

    def with_threads(count: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(count)
            with torch.no_grad():
                by_predet(inputs)

        return run

    figure = compare(
        with_threads(2), with_threads(1), peer="predet with one thread", repeats=10 * args.repeats
    )
    return {**figure, "threads": 2}


def gpu_forward_backward(args: argparse.Namespace) -> Figure:
    inputs = make_inputs(queries=None, batch=8, device="cuda")
    figure = of_backward(inputs, 5 * args.repeats)
    # Each input and each gradient once, the output twice.
    numbers = 2 * sum(leaf.numel() for leaf in inputs.leaves()) + 2 * inputs.value.numel()
    bandwidth = 4e-6 * numbers / figure["ours_ms"]["median"]  # GB/s
    return {**figure, "bandwidth_share": round(bandwidth / copy_bandwidth(), 3)}


def copy_bandwidth() -> float:
    """GB/s read and written by copying a GiB on the GPU."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source)) for _ in range(20)]
    return 2 * 4e-6 * source.numel() / statistics.median(times)


FIGURES: dict[str, Callable[[argparse.Namespace], Figure]] = {
    "encoder_forward": encoder_forward,
    "encoder_forward_backward": encoder_forward_backward,
    "decoder_forward": decoder_forward,
    "classic_encoder_forward": classic_encoder_forward,
    "two_threads": two_threads,
}

if __name__ == "__main__":
    if not extension.available():
        sys.exit("predet._C is not built: there is nothing to measure")
    if torch.cuda.is_available():
        FIGURES["gpu_forward_backward"] = gpu_forward_backward
    else:
        say("gpu_forward_backward: not run, there is no GPU")
    main(__doc__, FIGURES, repeats=5)
