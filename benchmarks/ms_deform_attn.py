#!/usr/bin/env python
"""Multi-scale deformable attention against transformers' (softmax, locations, grid_sample).

    benchmarks/ms_deform_attn.py --output benchmarks/results

Both sides get the same raw offsets and logits, and take turns in one process. The encoder's shape
is that of an 800 x 1066 image: levels 100x134, 50x67, 25x34, 13x17, eight heads of 32 channels,
four points, batch 1, fp32, every pixel a query, offsets of two pixels' deviation; the decoder's has
300 queries. Figures, one JSON line each: encoder_forward, encoder_forward_backward,
decoder_forward, classic_encoder_forward (locations and weights given to both), each as times
transformers' speed on one thread; two_threads (encoder_forward, times our own speed on one). With a
GPU also gpu_forward_backward at batch 8, and the share of the memory's bandwidth that it reaches.

`value` is the ratio of medians of wall time. On a machine that others use, look at
`processor_ratio` (processor time, one thread only) and at the spread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from predet.ops import extension
from predet.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused, sampling_locations

SHAPES = [(100, 134), (50, 67), (25, 34), (13, 17)]
PIXELS = sum(height * width for height, width in SHAPES)
HEADS, CHANNELS, POINTS = 8, 32, 4
TARGETS = {
    "encoder_forward": 25.0,
    "encoder_forward_backward": 18.0,
    "decoder_forward": 12.0,
    "two_threads": 1.7,
    "gpu_forward_backward": 8.0,
}


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
    grad_output = torch.randn(
        inputs.offsets.shape[0], inputs.offsets.shape[1], HEADS * CHANNELS,
        device=inputs.value.device,
    )  # fmt: skip

    def run() -> None:
        torch.autograd.grad(function(), inputs.leaves(), grad_output)

    return run


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor milliseconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)


def compare(
    ours: Callable[[], None],
    theirs: Callable[[], None],
    *,
    repeats: int,
    ours_each: int = 5,
) -> dict[str, Any]:
    """They take turns; ours, being short, some times a turn."""
    ours()
    theirs()
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        times["theirs"].append(timed(theirs))
        times["ours"] += [timed(ours) for _ in range(ours_each)]
    wall = {name: sorted(pair[0] for pair in pairs) for name, pairs in times.items()}
    processor = {
        name: statistics.median(pair[1] for pair in pairs) for name, pairs in times.items()
    }
    middle = {name: statistics.median(values) for name, values in wall.items()}
    return {
        "value": round(middle["theirs"] / middle["ours"], 2),
        "unit": "times",
        "processor_ratio": round(processor["theirs"] / processor["ours"], 2),
        "predet_ms": round(middle["ours"], 3),
        "predet_ms_range": [round(wall["ours"][0], 3), round(wall["ours"][-1], 3)],
        "other_ms": round(middle["theirs"], 3),
        "other_ms_range": [round(wall["theirs"][0], 3), round(wall["theirs"][-1], 3)],
    }


def cpu_figures(repeats: int) -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    transformers = make_by_transformers("cpu")
    encoder, decoder = make_inputs(queries=None), make_inputs(queries=300)
    at, mix = (tensor.detach() for tensor in locations_and_weights(encoder))

    def by_transformers(inputs: Inputs) -> Tensor:
        return transformers(inputs.value, *locations_and_weights(inputs))

    figures = {
        "encoder_forward": compare(
            forward_of(lambda: by_predet(encoder)),
            forward_of(lambda: by_transformers(encoder)),
            repeats=repeats,
        ),
        "encoder_forward_backward": compare(
            backward_of(lambda: by_predet(encoder), encoder),
            backward_of(lambda: by_transformers(encoder), encoder),
            repeats=repeats,
        ),
        "decoder_forward": compare(
            forward_of(lambda: by_predet(decoder)),
            forward_of(lambda: by_transformers(decoder)),
            repeats=10 * repeats,
        ),
        "classic_encoder_forward": compare(
            forward_of(lambda: ms_deform_attn(encoder.value, SHAPES, at, mix)),
            forward_of(lambda: transformers(encoder.value, at, mix)),
            repeats=repeats,
        ),
    }
    if (os.cpu_count() or 1) > 1:
        figures["two_threads"] = two_threads(encoder, 5 * repeats)
    return figures


def two_threads(encoder: Inputs, repeats: int) -> dict[str, Any]:
    def with_threads(count: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(count)
            with torch.no_grad():
                by_predet(encoder)

        return run

    figure = compare(with_threads(2), with_threads(1), repeats=repeats, ours_each=1)
    torch.set_num_threads(1)
    del figure["processor_ratio"]  # two threads use as much processor time as one
    return figure


def gpu_figures(repeats: int) -> dict[str, dict[str, Any]]:
    transformers = make_by_transformers("cuda")
    inputs = make_inputs(queries=None, batch=8, device="cuda")
    figure = compare(
        backward_of(lambda: by_predet(inputs), inputs),
        backward_of(lambda: transformers(inputs.value, *locations_and_weights(inputs)), inputs),
        repeats=5 * repeats,
    )
    # Each input and each gradient once, the output twice.
    numbers = 2 * sum(leaf.numel() for leaf in inputs.leaves()) + 2 * inputs.value.numel()
    figure["bandwidth_share"] = round(4e-6 * numbers / figure["predet_ms"] / copy_bandwidth(), 3)
    return {"gpu_forward_backward": figure}


def copy_bandwidth() -> float:
    """GB/s read and written by copying a GiB on the GPU."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    times = [timed(lambda: target.copy_(source))[0] for _ in range(20)]
    return 2 * 4e-6 * source.numel() / statistics.median(times)


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or "unknown",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **extension.build_info(),
    }


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="folder for the results file")
    args = parser.parse_args()
    if not extension.available():
        sys.exit("predet._C is not built: there is nothing to measure")
    figures = cpu_figures(args.repeats)
    if torch.cuda.is_available():
        figures |= gpu_figures(args.repeats)
    else:
        print("no GPU: the CUDA kernels have not run")
    for name, figure in figures.items():
        target = f"  (target {TARGETS[name]})" if name in TARGETS else ""
        ours, other = figure["predet_ms"], figure["other_ms"]
        print(f"{name:26s}{figure['value']:7.2f} times: {other:9.2f} -> {ours:8.2f} ms{target}")
    about = machine()
    lines = [json.dumps({"figure": name, **figure, **about}) for name, figure in figures.items()]
    print("\n".join(lines))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "ms_deform_attn.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
