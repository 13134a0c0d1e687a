"""The sequences of commands that the pages show, run as they stand there, each stage twice."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from predet.checkpoint import read_checkpoint
from predet.data.box_store import BoxStore
from predet.data.scenes import make_scenes
from predet.engine.config_text import as_overrides

ROOT = Path(__file__).resolve().parents[2]
SIDES = "dataloader.train.mapper.augmentation"
# What makes the recipes small, and keeps them from downloading.
TRAINING = [
    "--num-gpus=0",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "train.max_iter=2",
]
BACKBONE = [*TRAINING, "model.backbone.depth=18", "data.view.size=48"]
DEFORMABLE = {
    "backbone.depth": 18,
    "queries.num_queries": 20,
    "transformer.num_encoder_layers": 1,
    "transformer.num_decoder_layers": 2,
}
DETR = {
    "backbone.depth": 18,
    "num_queries": 20,
    "transformer.num_encoder_layers": 1,
    "transformer.num_decoder_layers": 2,
}
RANDOM = {"backbone.weights": None, "backbone.norm": "gn", "backbone.freeze_at": 0}
CROPS = [
    f"{SIDES}.short_sides=[96]",
    f"{SIDES}.crop_short_sides=[96]",
    f"{SIDES}.crop_size=[64,96]",
]
TEST = ["dataloader.test.mapper.augmentation.short_sides=[96]", "dataloader.test.num_workers=0"]
ARRIVED = ["optimizer.lr=0", "optimizer.weight_decay=0"]  # what is saved is what arrived


class Chain(NamedTuple):
    page: str
    begin: str  # the commands stand between these texts
    end: str
    images: str  # what the page calls them; labelled data; where it all goes
    data: str
    out: str
    small: dict[str, list[str]]  # by what a command writes, in their order


def keys(values: dict[str, object], place: str = "model.") -> list[str]:
    return as_overrides({place + key: value for key, value in values.items()})


FINETUNING = [*TRAINING, *keys(DEFORMABLE), *CROPS, *TEST, *ARRIVED]
CHAINS = {
    "align_det": Chain(
        "projects/align_det/README.md",
        "## The steps",
        "Other detectors",
        *("IMAGES", "DATA", "OUT"),
        {
            "backbone": BACKBONE,
            "found": ["--workers=0"],
            "filtered": [],
            "proposals": ["--clusters=4", "--short-side=96", "model.backbone.depth=18"],
            "boxes": [
                *TRAINING,
                *keys(DEFORMABLE, "model.detector."),
                f"{SIDES}.steps.0.short_sides=[96]",
            ],
            "finetuned": FINETUNING,
        },
    ),
    "detreg": Chain(
        "projects/detreg/README.md",
        "## The steps",
        "`model.detector.backbone.weights` is",
        *("IMAGES", "DATA", "OUT"),
        {
            "backbone": BACKBONE,
            "batch.png": [*TRAINING[1:3], f"{SIDES}.short_sides=[96]"],
            "detreg": [
                *TRAINING,
                *keys(DEFORMABLE, "model.detector."),
                "model.patch_encoder.backbone.depth=18",
                *CROPS,
            ],
            "proposals.jsonl": ["--num-workers=0", "--short-side=96", "--max-side=128"],
            "proposals.jsonl 2": [],
            "gradients.png": ["--num-images=1", *TEST[:1]],
            "finetuned": FINETUNING,
        },
    ),
    "up_detr": Chain(
        "projects/up_detr/README.md",
        "## The steps",
        "Without step 1",
        *("IMAGES", "DATA", "OUT"),
        {
            "backbone": BACKBONE,
            "updetr": [
                *TRAINING,
                *keys(DETR, "model.detector."),
                f"{SIDES}.short_sides=[96]",
                "data.patches.size=64",
            ],
            "patches.jsonl": ["--seeds=2", *TEST[:1]],
            "patches.png": ["--num-images=2", *TEST[:1]],
            "finetuned": [*TRAINING, *keys(DETR), *CROPS, *TEST, *ARRIVED],
        },
    ),
    "self_training": Chain(
        "README.md",
        "one by one:",
        "Step 2 stores",
        *("photos", "mydata", "output/mine"),
        {
            "teacher": [*TRAINING, *keys(DEFORMABLE | RANDOM), *CROPS, *TEST],
            "pseudo_labels": ["--num-gpus=0", "--num-workers=0"],
            "pretrain": [*TRAINING, *keys(DEFORMABLE | RANDOM, "model.detector."), *CROPS],
            "finetune": [*FINETUNING, "model.backbone.norm=gn", "model.backbone.freeze_at=0"],
        },
    ),
}


def sequence(chain: Chain, places: dict[str, Path]) -> Iterator[tuple[str, str, list[str]]]:
    """Of each command what it writes, its tool and its arguments."""
    text = (ROOT / chain.page).read_text().partition(chain.begin)[2].partition(chain.end)[0]
    text = re.sub(r"\\\n\s*", " ", re.sub(r" +#.*", "", text))
    seen: list[str] = []
    for line in re.findall(r"^ *(tools/.+)$", text, re.MULTILINE):
        for name, place in places.items():
            line = re.sub(rf"\b{name}\b", str(place), line)
        program, *arguments = shlex.split(line)
        (written,) = [
            word.partition("=")[2] if "=" in word else arguments[number + 1]
            for number, word in enumerate(arguments)
            if word.startswith(("train.output_dir=", "--output"))
        ]
        name = Path(written).name
        seen.append(name)
        again = f" {seen.count(name)}" if seen.count(name) > 1 else ""
        yield name + again, Path(program).stem, arguments


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


def weights(stage: Path) -> dict[str, Tensor]:
    return read_checkpoint(stage / "checkpoints/last.pth")["model"]


def fresh_parts(pretrained: dict[str, Tensor], tuned: dict[str, Tensor]) -> set[str]:
    """Parts of the fine-tuned detector that pre-training has not given."""
    given = {n.removeprefix("detector."): v for n, v in pretrained.items() if "detector." in n}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {
        name.partition(".")[0]
        for name, value in tuned.items()
        if not name.endswith(statistics) and not value.equal(given.get(name, torch.empty(0)))
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_a_documented_sequence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # configs are named from here
    for split, count in (("train", 6), ("val", 2)):
        make_scenes(tmp_path / "data", num_images=count, num_classes=2, seed=0, split=split)
    chain, out = CHAINS[name], tmp_path / "out"
    places = {chain.images: tmp_path / "data/train", chain.data: tmp_path / "data", chain.out: out}
    done = []
    for stage, tool, arguments in sequence(chain, places):
        done.append(stage)
        run(tool, [*arguments, *chain.small[stage]])
        assert (out / stage.partition(" ")[0]).exists(), stage
        if (out / stage).is_dir():  # else a picture, or a file of figures
            made = products(out / stage)
            assert made, stage
            run(tool, [*arguments, *chain.small[stage]])
            assert products(out / stage) == made, f"{stage}: a finished stage has done something"
    assert done == list(chain.small)
    CHECKS[name](out)
    results = json.loads((out / stage / "results.json").read_text())["results"]
    assert results["AP"] is not None


def check_align_det(out: Path) -> None:
    stores = {name: BoxStore(out / name) for name in ("found", "filtered", "proposals")}
    assert stores["filtered"].meta["counts"]["boxes"] < stores["found"].meta["counts"]["boxes"]
    assert [row.boxes.tolist() for row in stores["proposals"]] == [
        row.boxes.tolist() for row in stores["filtered"]
    ]
    assert len({int(c) for row in stores["proposals"] for c in row.classes}) == 4
    check_backbone(weights(out / "backbone"), weights(out / "boxes"))
    fresh = fresh_parts(weights(out / "boxes"), weights(out / "finetuned"))
    assert fresh == {"class_head", "box_head"}


def check_backbone(given: dict[str, Tensor], pretrained: dict[str, Tensor]) -> None:
    """It was taken and is frozen."""
    own = {n: v for n, v in given.items() if n.startswith("backbone.")}
    kept = {n: v for n, v in own.items() if f"detector.{n}" in pretrained}
    assert len(kept) > 90
    assert all(n.endswith("num_batches_tracked") for n in own.keys() - kept.keys())
    assert all(v.equal(pretrained[f"detector.{n}"]) for n, v in kept.items())


def check_detreg(out: Path) -> None:
    check_backbone(weights(out / "backbone"), weights(out / "detreg"))
    assert fresh_parts(weights(out / "detreg"), weights(out / "finetuned")) == {"class_head"}
    rows = [json.loads(line) for line in (out / "proposals.jsonl").read_text().splitlines()]
    assert {row["data"] for row in rows} == {rows[0]["data"]}
    assert len(rows) >= 2


def check_up_detr(out: Path) -> None:
    check_backbone(weights(out / "backbone"), weights(out / "updetr"))
    assert fresh_parts(weights(out / "updetr"), weights(out / "finetuned")) == {"class_head"}
    rows = [json.loads(line) for line in (out / "patches.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]


def check_self_training(out: Path) -> None:
    store = BoxStore(out / "pseudo_labels")
    assert sum(len(row.boxes) for row in store) > 0
    assert fresh_parts(weights(out / "pretrain"), weights(out / "finetune")) == set()


CHECKS = {
    "align_det": check_align_det,
    "detreg": check_detreg,
    "up_detr": check_up_detr,
    "self_training": check_self_training,
}
