"""Through the training tool: AlignDet on a store, stopped and gone on, then fine-tuned."""

from __future__ import annotations

from pathlib import Path

import pytest

from predet.checkpoint import read_checkpoint
from predet.data.box_store_coco import import_coco
from predet.data.scenes import make_scenes
from predet.data.sources import load_images
from predet.engine.config import load_config
from predet.engine.settings import TrainSettings
from predet.engine.stopping import StopRequest
from predet.engine.train_net import train

STEPS = 3
# Pre-training, and fine-tuning of what survives.
RECIPES = {
    "align_det": "deformable_detr",
    "align_det_retinanet": "retinanet",
    "align_det_faster_rcnn": "faster_rcnn",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with labels, and a store of boxes without classes."""
    folder = tmp_path_factory.mktemp("data")
    truth = make_scenes(folder / "scenes", num_images=6, image_size=64, num_classes=2, seed=0)
    images = load_images(str(folder / "scenes"))
    import_coco(truth, folder / "store", dataset=images, class_agnostic=True)
    return folder


def run(recipe: str, output: Path, *overrides: object, stop_first: bool = False) -> dict:
    """Train to the end, or stop after the first step; the checkpoint."""
    keys = [
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        f"train.output_dir={output}",
        f"train.max_iter={STEPS}",
        "train.eval_period=0",
    ]
    cfg = load_config(f"configs/tiny/{recipe}.py", [*keys, *map(str, overrides)])
    stop = StopRequest()
    stop.requested = stop_first
    train(cfg, TrainSettings.from_config(cfg.train), num_gpus=0, resume=True, stop=stop)
    return read_checkpoint(output / "checkpoints/last.pth")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_chain_goes_on_exactly_and_its_weights_arrive(
    recipe: str, data: Path, tmp_path: Path
) -> None:
    sizes = "dataloader.train.mapper.augmentation"
    keys = [
        f"data.unlabeled.source={data / 'scenes'}",
        f"data.store={data / 'store'}",
        f"{sizes}.steps.0.short_sides=[64, 80]",
    ]
    whole = run(recipe, tmp_path / "whole", *keys)
    first = run(recipe, tmp_path / "parts", *keys, stop_first=True)
    parts = run(recipe, tmp_path / "parts", *keys)
    assert (first["step"], parts["step"]) == (1, STEPS)
    assert int(whole["model"]["updates"]) == STEPS
    for name, value in whole["model"].items():
        assert value.equal(parts["model"][name]), name
    # The copy is neither the detector nor what it began with.
    online, copy, before = (
        {n.removeprefix(place): v for n, v in state["model"].items() if n.startswith(place)}
        for state, place in (
            (whole, "detector."), (whole, "target.detector."), (first, "target.detector."),
        )
    )  # fmt: skip
    trained = [n for n, v in copy.items() if not v.equal(before[n]) and "query_embed" not in n]
    assert len(trained) > 40
    assert not any(copy[n].equal(online[n]) for n in trained)
    labels = [
        f"data.train.source={data / 'scenes'}",
        "data.train.split=null",
        "dataloader.test=null",
        f"{sizes}.short_sides=[64, 80]",
        f"train.init_checkpoint={tmp_path / 'whole/checkpoints/last.pth'}",
        "train.reinit=[last-layers]",
        "optimizer.lr=0",  # what is saved is what arrived
        "optimizer.weight_decay=0",
    ]
    tuned = run(RECIPES[recipe], tmp_path / "tuned", *labels)["model"]
    arrived = [name for name, value in tuned.items() if value.equal(online.get(name, value[:0]))]
    fresh = [name for name in tuned if name not in arrived]
    last = ("class_head", "box_head", "cls_logits", "bbox_reg", "cls_score", "bbox_pred")
    assert all(any(part in name for part in last) for name in fresh), fresh
    assert len(fresh) >= 3  # biases may begin alike
    assert len(arrived) > 10 * len(fresh)
