"""The labelling tool: the same store whatever happens to it, and a report that is right."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from predet.checkpoint import save_checkpoint
from predet.d2 import instantiate
from predet.data.box_store import BoxStore
from predet.data.formats import load_dataset
from predet.data.pseudo_labels import pseudo_labelled
from predet.data.scenes import make_scenes
from predet.engine.config import load_config

TOOL = Path(__file__).parents[2] / "tools" / "pseudo_label.py"
SMALL = [
    "model.transformer.num_encoder_layers=1",
    "model.transformer.num_decoder_layers=1",
    "model.queries.num_queries=40",
    "dataloader.test.mapper.augmentation.short_sides=[64]",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 18 scenes, one of them damaged, and a teacher of random weights."""
    folder = tmp_path_factory.mktemp("labelling")
    make_scenes(folder / "scenes", num_images=18, image_size=64, num_classes=3, seed=0)
    broken = sorted((folder / "scenes").rglob("*.png"))[4]
    broken.write_bytes(broken.read_bytes()[:200])
    cfg = load_config("configs/tiny/deformable_detr.py", [*SMALL, "data.num_classes=3"])
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    for parameter in model.class_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    names = list(load_dataset(folder / "scenes").class_names)
    save_checkpoint(
        folder / "teacher.pth", {"model": model.state_dict(), "provenance": {"class_names": names}}
    )
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in another order are other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments(place: Path, output: Path, *options: str, images: str = "scenes") -> list[str]:
    return [
        "--config-file=configs/tiny/deformable_detr.py",
        f"--weights={place / 'teacher.pth'}",
        f"--images={place / images}",
        f"--output={output}",
        "--num-gpus=0",
        "--num-workers=0",
        "--batch-size=1",
        "--shard-size=1",
        *options,
        *SMALL,
    ]


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(store.iterdir())}


@pytest.fixture(scope="module")
def whole(tool: ModuleType, place: Path) -> Path:
    """The store as one process makes it without interruption."""
    torch.set_num_threads(1)
    tool.main(arguments(place, place / "whole"))
    return place / "whole"


def test_what_the_store_says_of_itself(whole: Path, place: Path) -> None:
    store = BoxStore(whole)
    assert store.meta["method"] == "pseudo_label"
    assert store.meta["parameters"]["nms_iou"] == 0.9
    assert store.meta["parameters"]["keep"] == 100
    assert len(store.meta["teacher"]["sha256"]) == 64
    assert store.meta["teacher"]["weights"] == "teacher.pth"
    assert store.meta["selection"] == {"top_k": 30, "score_threshold": 0.0}
    assert store.class_names == load_dataset(place / "scenes").class_names
    assert store.meta["counts"]["images"] == 17
    assert store.meta["counts"]["skipped"] == len(store.skipped) == 1
    assert "truncated" in next(iter(store.skipped.values()))
    row = next(iter(store))
    assert (row.height, row.width) == (64, 64)
    assert 30 < len(row.scores) <= 40
    assert (np.diff(row.scores) <= 0).all()
    assert row.boxes.min() >= 0
    assert row.boxes.max() <= 64


def test_the_report_agrees_with_the_store(whole: Path, place: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert report["counts"] == BoxStore(whole).meta["counts"]
    assert report["boxes_per_image"] == 30.0
    assert [quality["top_k"] for quality in report["quality"]] == [30, 60, 100]
    at30, at60, at100 = report["quality"]
    assert at30["boxes_per_image"] == 30.0
    assert at60 == {**at100, "top_k": 60}  # 40 queries in all
    assert at30["recall"] <= at60["recall"] <= at60["recall_any_class"] <= 1
    chosen = pseudo_labelled(load_dataset(place / "scenes"), store=whole)
    assert np.diff(chosen.offsets).tolist() == [30] * 17


def test_killed_and_run_again_it_makes_the_same_store(
    tool: ModuleType, whole: Path, place: Path
) -> None:
    output = place / "killed"
    command = [sys.executable, str(TOOL), *arguments(place, output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(output.glob("boxes-*"))) < 2:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = {file.name: file.stat().st_mtime_ns for file in output.glob("boxes-*")}
    assert 2 <= len(made) < 18, "the job was not killed in the middle"
    tool.main(arguments(place, output))
    assert contents(output) == contents(whole)
    for name, written in made.items():
        assert (output / name).stat().st_mtime_ns == written


@pytest.mark.slow
def test_two_processes_make_the_same_store(whole: Path, place: Path) -> None:
    command = [sys.executable, str(TOOL), *arguments(place, place / "two", "--num-gpus=2")]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    assert contents(place / "two") == contents(whole)


def test_run_again_it_only_changes_the_default_choice(
    tool: ModuleType, whole: Path, place: Path, tmp_path: Path
) -> None:
    tool.main(arguments(place, tmp_path / "store"))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").glob("boxes-*")}
    tool.main(arguments(place, tmp_path / "store", "--top-k=7", "--score-threshold=0.2"))
    assert before == {file: file.stat().st_mtime_ns for file in before}
    dataset = load_dataset(place / "scenes")
    chosen = pseudo_labelled(dataset, store=tmp_path / "store")
    by_hand = pseudo_labelled(dataset, store=whole, top_k=7, score_threshold=0.2)
    np.testing.assert_array_equal(chosen.boxes, by_hand.boxes)
    assert np.diff(chosen.offsets).max() == 7
    tool.main(arguments(place, tmp_path / "store", "--top-k=0"))
    assert BoxStore(tmp_path / "store").meta["selection"]["top_k"] is None


def test_duplicate_removal_can_be_off_and_all_boxes_kept(
    tool: ModuleType, place: Path, tmp_path: Path
) -> None:
    tool.main(arguments(place, tmp_path / "store", "--nms-iou=off", "--keep=0"))
    store = BoxStore(tmp_path / "store")
    assert store.meta["parameters"]["nms_iou"] is None
    assert {len(row.scores) for row in store} == {40}  # every query


def test_a_folder_of_images_needs_no_annotations(
    tool: ModuleType, place: Path, tmp_path: Path
) -> None:
    folder = next((place / "scenes").rglob("*.png")).parent
    tool.main(arguments(place, tmp_path / "store", images=str(folder)))
    assert len(BoxStore(tmp_path / "store")) == 17
    assert json.loads((tmp_path / "store/report.json").read_text())["quality"] == []


def test_other_settings_for_the_same_store_are_refused(
    tool: ModuleType, whole: Path, place: Path
) -> None:
    before = contents(whole)
    with pytest.raises(SystemExit, match=r"parameters: there .*'nms_iou': 0.9.*now .*0.5"):
        tool.main(arguments(place, whole, "--nms-iou=0.5"))
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nms-iou=0"], r"--nms-iou must be in \(0, 1\]"),
        (["--batch-size=0"], "--batch-size must be at least 1"),
        (["--top-k=60", "--keep=50"], "--top-k 60 needs more boxes than --keep 50"),
    ],
)
def test_options_out_of_range(
    tool: ModuleType,
    place: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        tool.main(arguments(place, tmp_path / "store", *options))
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "store").exists()


def test_bad_input_names_what_is_wrong(tool: ModuleType, place: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"checkpoint .*none\.pth does not exist"):
        tool.main([*arguments(place, tmp_path / "store"), f"--weights={tmp_path}/none.pth"])
    with pytest.raises(
        SystemExit, match=r"no dataloader\.test\.mapper\.augmentation: give --short-side"
    ):
        tool.main([*arguments(place, tmp_path / "store"), "dataloader.test=null"])
    assert not (tmp_path / "store").exists()
    with pytest.raises(SystemExit, match="nowhere"):
        tool.main(arguments(place, tmp_path / "store", images="nowhere"))
    nameless = torch.load(place / "teacher.pth", weights_only=True)["model"]
    save_checkpoint(tmp_path / "nameless.pth", {"model": nameless})
    with pytest.raises(SystemExit, match="does not tell the names of its classes"):
        tool.main([*arguments(place, tmp_path / "store"), f"--weights={tmp_path}/nameless.pth"])
    (tmp_path / "images").mkdir()
    for number in range(2):
        (tmp_path / f"images/{number}.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="none of the 2 images could be read"):
        tool.main(arguments(place, tmp_path / "other", images=str(tmp_path / "images")))
