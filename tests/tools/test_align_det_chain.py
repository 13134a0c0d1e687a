"""The sequence that AlignDet's README shows, run as it stands there, every command twice."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from predet.checkpoint import read_checkpoint
from predet.data.box_store import BoxStore
from predet.data.scenes import make_scenes

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "projects/align_det/README.md"
# What makes the recipes small, by the folder that a command writes.
SMALL_TRAINING = [
    "--num-gpus=0",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "train.max_iter=2",
]
SMALL_DETECTOR = {
    "backbone.depth": 18,
    "queries.num_queries": 20,
    "transformer.num_encoder_layers": 1,
    "transformer.num_decoder_layers": 2,
}
SIDES = "dataloader.train.mapper.augmentation"
SMALL = {
    "backbone": [*SMALL_TRAINING, "model.backbone.depth=18", "data.view.size=48"],
    "found": ["--workers=0"],
    "filtered": [],
    "proposals": ["--clusters=4", "--short-side=96", "model.backbone.depth=18"],
    "boxes": [
        *SMALL_TRAINING,
        *(f"model.detector.{key}={value}" for key, value in SMALL_DETECTOR.items()),
        f"{SIDES}.steps.0.short_sides=[96]",
    ],
    "finetuned": [
        *SMALL_TRAINING,
        *(f"model.{key}={value}" for key, value in SMALL_DETECTOR.items()),
        f"{SIDES}.short_sides=[96]",
        f"{SIDES}.crop_short_sides=[96]",
        f"{SIDES}.crop_size=[64,96]",
        "dataloader.test.mapper.augmentation.short_sides=[96]",
        "dataloader.test.num_workers=0",
        "optimizer.lr=0",  # what is saved is what arrived
        "optimizer.weight_decay=0",
    ],
}


def sequence(places: dict[str, Path]) -> Iterator[tuple[str, str, list[str]]]:
    """Of each command the folder that it writes, its tool and its arguments."""
    block = README.read_text().partition("## The steps")[2].split("```")[1]
    for line in re.sub(r"\\\n\s*", " ", re.sub(r" +#.*", "", block)).strip().splitlines():
        for name, place in places.items():
            line = re.sub(rf"\b{name}\b", str(place), line)
        program, *arguments = shlex.split(line)
        written = [
            word.partition("=")[2] if "=" in word else arguments[number + 1]
            for number, word in enumerate(arguments)
            if word.startswith(("train.output_dir=", "--output"))
        ]
        yield Path(written[0]).name, Path(program).stem, arguments


def run(tool: str, arguments: list[str]) -> None:
    spec = importlib.util.spec_from_file_location(f"chain_{tool}", ROOT / f"tools/{tool}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    module.main(arguments)


def products(folder: Path) -> dict[str, tuple[int, int]]:
    """What a stage hands on: names with sizes and times."""
    found = [*folder.rglob("*.pth"), *folder.rglob("*.parquet")]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


@pytest.mark.slow
def test_the_documented_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # configs are named from here
    for split, count in (("train", 6), ("val", 2)):
        make_scenes(tmp_path / "data", num_images=count, num_classes=2, seed=0, split=split)
    out = tmp_path / "out"
    places = {"IMAGES": tmp_path / "data/train", "DATA": tmp_path / "data", "OUT": out}
    done = []
    for name, tool, arguments in sequence(places):
        done.append(name)
        run(tool, [*arguments, *SMALL[name]])
        made = products(out / name)
        assert made, name
        run(tool, [*arguments, *SMALL[name]])
        assert products(out / name) == made, f"{name}: a finished stage has done something"
    assert done == list(SMALL)

    stores = {name: BoxStore(out / name) for name in ("found", "filtered", "proposals")}
    assert stores["filtered"].meta["counts"]["boxes"] < stores["found"].meta["counts"]["boxes"]
    assert [row.boxes.tolist() for row in stores["proposals"]] == [
        row.boxes.tolist() for row in stores["filtered"]
    ]
    assert len({int(c) for row in stores["proposals"] for c in row.classes}) == 4

    backbone, boxes, tuned = (
        read_checkpoint(out / name / "checkpoints/last.pth")["model"]
        for name in ("backbone", "boxes", "finetuned")
    )
    own = {n: v for n, v in backbone.items() if n.startswith("backbone.")}
    kept = {n: v for n, v in own.items() if f"detector.{n}" in boxes}
    assert len(kept) > 90
    assert all(n.endswith("num_batches_tracked") for n in own.keys() - kept.keys())
    assert all(v.equal(boxes[f"detector.{n}"]) for n, v in kept.items())  # taken, and frozen
    pretrained = {n.removeprefix("detector."): v for n, v in boxes.items() if "detector." in n}
    fresh = {
        name.partition(".")[0]
        for name, value in tuned.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        and not value.equal(pretrained.get(name, torch.empty(0)))
    }
    assert fresh == {"class_head", "box_head"}
    assert json.loads((out / "finetuned/results.json").read_text())["results"]["AP"] is not None
