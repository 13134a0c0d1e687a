"""The drawing tool: every kind of picture from files on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from predet.checkpoint import save_checkpoint
from predet.d2 import instantiate
from predet.data.box_store_coco import import_coco
from predet.data.formats import load_dataset
from predet.data.scenes import make_scenes
from predet.engine.config import load_config

TOOL = Path(__file__).parents[2] / "tools" / "visualize.py"
CONFIG = "--config-file=configs/tiny/deformable_detr.py"
SMALL = ["model.transformer.num_encoder_layers=1", "model.queries.num_queries=20"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, a store of their own annotations, and a detector of random weights."""
    folder = tmp_path_factory.mktemp("drawing")
    for seed, split in enumerate(("train", "test")):
        path = make_scenes(
            folder / "scenes", num_images=6, image_size=64, num_classes=3, seed=seed, split=split
        )
    dataset = load_dataset(folder / "scenes", split="test")
    import_coco(path, folder / "store", dataset=dataset)
    cfg = load_config("configs/tiny/deformable_detr.py", [*SMALL, "data.num_classes=3"])
    torch.manual_seed(0)
    names = list(dataset.class_names)
    save_checkpoint(
        folder / "model.pth",
        {"model": instantiate(cfg.model).state_dict(), "provenance": {"class_names": names}},
    )
    return folder


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert np.asarray(image).std() > 10
        return image.size


def test_detections_of_two_checkpoints_on_the_configs_test_set(
    tool: ModuleType, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main(
        [
            "detections",
            CONFIG,
            f"--weights=teacher={place / 'model.pth'}",
            f"--weights=student={place / 'model.pth'}",
            f"--output={tmp_path / 'out.png'}",
            "--num-images=3",
            "--score-threshold=0",
            "--columns=1",
            *SMALL,
            f"data.test.source={place / 'scenes'}",
        ]
    )
    assert str(tmp_path / "out.png") in capsys.readouterr().out
    width, height = size_of(tmp_path / "out.png")
    assert width == 3 * 256 + 4 * 10  # annotated, teacher, student
    assert height > 3 * 256


@pytest.mark.parametrize("command", ["detections", "queries"])
def test_one_name_for_two_checkpoints_is_refused(
    tool: ModuleType, place: Path, tmp_path: Path, command: str
) -> None:
    weights = [f"--weights={place / name / 'last.pth'}" for name in ("teacher", "student")]
    with pytest.raises(
        SystemExit, match=r"teacher/last.pth and .*student/last.pth are both called"
    ):
        tool.main(
            [
                *(command, CONFIG, *weights, f"--output={tmp_path / 'out.png'}"),
                f"data.test.source={place / 'scenes'}",
            ]
        )


def test_a_store(tool: ModuleType, place: Path, tmp_path: Path) -> None:
    images = ["--images", str(place / "scenes"), "--split", "test"]
    output = ["--output", str(tmp_path / "out.png")]
    tool.main(["store", "--store", str(place / "store"), *images, *output, "--num-images=2"])
    assert size_of(tmp_path / "out.png")[0] == 2 * (2 * 256 + 3 * 10)
    images[-1] = "train"
    with pytest.raises(SystemExit, match="holds none of the images"):
        tool.main(["store", "--store", str(place / "store"), *images, *output])


def test_patches(tool: ModuleType, place: Path, tmp_path: Path) -> None:
    small = ["model.detector.transformer.num_encoder_layers=1", "data.boxes.num=3"]
    cfg = load_config("configs/tiny/updetr.py", [*small, "data.num_classes=1"])
    save_checkpoint(
        tmp_path / "model.pth",
        {
            "model": instantiate(cfg.model).state_dict(),
            "provenance": {"class_names": ["object"]},
        },
    )
    tool.main(
        [
            *("patches", "--config-file=configs/tiny/updetr.py", f"--weights={tmp_path}/model.pth"),
            *("--output", str(tmp_path / "out.png"), "--num-images=3", "--width=150"),
            f"data.test.source={place / 'scenes'}",
            *small,
        ]
    )
    width, height = size_of(tmp_path / "out.png")
    assert width == 2 * (2 * 160 + 10)
    assert height > 2 * (150 + 85)


def test_a_training_batch(tool: ModuleType, place: Path, tmp_path: Path) -> None:
    tool.main(
        [
            "batch",
            CONFIG,
            "--output",
            str(tmp_path / "out.png"),
            "--num-images=18",  # more than the batch of 16
            "--columns=6",
            "--width=100",
            f"data.train.source={place / 'scenes'}",
        ]
    )
    width, height = size_of(tmp_path / "out.png")
    assert width == 6 * (100 + 2 * 10)
    assert height > 3 * 80


def test_a_training_batch_of_views(tool: ModuleType, place: Path, tmp_path: Path) -> None:
    """Two pictures an image."""
    tool.main(
        [
            "batch",
            "--config-file=configs/tiny/image_domain.py",
            "--output",
            str(tmp_path / "out.png"),
            "--num-images=3",
            "--columns=6",
            "--width=64",
            f"data.unlabeled.source={place / 'scenes'}",
            "data.unlabeled.split=train",
        ]
    )
    width, height = size_of(tmp_path / "out.png")
    assert width == 6 * (64 + 2 * 10)
    assert height < 2 * 110  # one row


def test_curves(tool: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "AP": 2.0}) + "\n")
    output = ["--output", str(tmp_path / "out.png")]
    tool.main(["curves", f"first={tmp_path / 'a'}", str(tmp_path / "b/a"), *output])
    assert size_of(tmp_path / "out.png")[0] == pytest.approx(506, abs=1)
    with pytest.raises(SystemExit, match="are both called 'a'"):
        tool.main(["curves", str(tmp_path / "a"), str(tmp_path / "b/a"), *output])
    with pytest.raises(SystemExit, match="no metrics to draw"):
        tool.main(["curves", str(tmp_path / "none"), *output])


def test_queries_and_gradients_of_a_method(tool: ModuleType, place: Path, tmp_path: Path) -> None:
    opts = ["model.detector.transformer.num_encoder_layers=1", f"data.test.source={place}/scenes"]
    cfg = load_config("configs/tiny/detreg_detr.py", [*opts, "data.num_classes=1"])
    cfg.model.patch_encoder.allow_random = True
    torch.manual_seed(0)
    provenance = {"class_names": ["object"]}
    model = {"model": instantiate(cfg.model).state_dict(), "provenance": provenance}
    save_checkpoint(tmp_path / "last.pth", model)
    config = "--config-file=configs/tiny/detreg_detr.py"
    weights = [f"--weights={name}={tmp_path}/last.pth" for name in ("detreg", "again")]
    output = ["--output", str(tmp_path / "q.png"), "--num-images", "3", "--num-queries", "4"]
    # The weights of backbone and encoder are in the checkpoint: no file is asked for.
    lost = "model.detector.backbone.weights=nowhere.pth"
    tool.main(["queries", config, *weights, *output, *opts, lost])
    assert size_of(tmp_path / "q.png")[0] > 600
    output = ["--output", str(tmp_path / "g.png"), "--num-images", "2", "--width", "100"]
    tool.main(["gradients", config, "--weights", f"{tmp_path}/last.pth", *output, *opts, lost])
    assert size_of(tmp_path / "g.png")[0] >= 4 * 100

    # Pre-training need not have a test set.
    bare = ["queries", config, *weights, *output[:4], *opts[:1], "dataloader.test=null"]
    images = ["--images", str(place / "scenes"), "--split=test"]
    with pytest.raises(SystemExit, match=r"error: the config has no test set.* give --images"):
        tool.main(bare)
    with pytest.raises(SystemExit, match=r"error: the config has no .*: give --short-side"):
        tool.main([*bare, *images])
    tool.main([*bare, *images, "--short-side=64", "--output", str(tmp_path / "bare.png")])
    assert size_of(tmp_path / "bare.png")[0] > 600
