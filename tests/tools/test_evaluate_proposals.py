"""tools/evaluate_proposals.py: its sources agree with each other, its rows with its table."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from predet.checkpoint import read_checkpoint, save_checkpoint
from predet.d2 import instantiate
from predet.data.box_store import BoxRow
from predet.data.box_store_writer import BoxStoreWriter, StoreInfo
from predet.data.formats import load_dataset
from predet.data.images import read_image
from predet.data.mapper import to_chw_tensor
from predet.data.region_search import RegionSearch
from predet.data.scenes import make_scenes
from predet.engine.config import load_config
from predet.engine.inference import load_trained
from predet.evaluation.average_precision import ImageDetections
from predet.evaluation.proposals import METRICS, boxes_of_regions, proposal_metrics
from predet.ops.selective_search import rank, to_rows

TOOL = Path(__file__).parents[2] / "tools" / "evaluate_proposals.py"
CONFIG = "configs/tiny/deformable_detr.py"
SMALL = [
    "model.transformer.num_encoder_layers=1",
    "model.transformer.num_decoder_layers=1",
    "model.queries.num_queries=40",
    "dataloader.test.mapper.augmentation.short_sides=[64]",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six scenes."""
    folder = tmp_path_factory.mktemp("proposals")
    make_scenes(folder / "scenes", num_images=6, image_size=96, num_classes=3, seed=0)
    return folder


def run(tool: ModuleType, place: Path, *options: str) -> list[dict]:
    """Rows that the tool wrote."""
    output = place / "rows.jsonl"
    output.unlink(missing_ok=True)
    tool.main([*options, f"--data={place / 'scenes'}", f"--output={output}"])
    return [json.loads(line) for line in output.read_text().splitlines()]


def as_store(place: Path, name: str, *, levels: bool) -> Path:
    """A store of Selective Search as the tool makes it; without levels, of its first order only."""
    dataset = load_dataset(place / "scenes")
    search = RegionSearch(mode="single", resize="64x64")
    rows = []
    for record in (dataset[i] for i in range(len(dataset))):
        image = read_image(record.path)
        regions = search.regions(image, name=record.key)
        boxes, scores = to_rows(regions, rank(regions, (0, record.image_id)))
        if not levels:
            boxes, scores = boxes[scores >= 0], scores[scores >= 0]
        rows.append(BoxRow(record.key, *image.shape[:2], boxes, scores, np.zeros(len(boxes), int)))
    info = StoreInfo(method=search.method if levels else "other", parameters=search.parameters)
    writer = BoxStoreWriter(place / name, info=info, keys=dataset.keys())
    writer.write_shard(0, rows)
    writer.finish()
    return place / name


def test_a_search_is_measured_over_orders(tool, place, capsys) -> None:
    options = ("--mode=single", "--resize=64x64", "--top-k", "5", "0", "--orders=4")
    first, whole = run(tool, place, "search", *options)
    head, line, _ = capsys.readouterr().out.splitlines()[-3:]
    dataset = load_dataset(place / "scenes")
    assert (first["images"], first["objects"]) == (6, len(dataset.boxes))
    assert (first["top_k"], first["boxes_per_image"], first["orders"]) == (5, 5.0, 4)
    assert whole["boxes_per_image"] > 5
    search = RegionSearch(mode="single", resize="64x64")
    regions = {
        record.image_id: search.regions(read_image(record.path), name=record.key)
        for record in (dataset[i] for i in range(len(dataset)))
    }
    each = [
        proposal_metrics(dataset, boxes_of_regions(regions, top_k=5, seed=seed))
        for seed in range(4)
    ]
    for name in METRICS:
        values = [metrics[name] for metrics in each]
        assert first[name] == pytest.approx(np.mean(values))
        assert first["deviation"][name] == pytest.approx(np.std(values, ddof=1))
    assert first["deviation"]["AR1"] > 0
    assert "AR@100" in head
    assert line.startswith("selective_search-single 64x64, first 5")
    assert f"{first['AP']:.2f} +-{first['deviation']['AP']:.2f}" in line


def test_targets_of_a_config_are_those_of_its_search(tool, place) -> None:
    """As many as it trains on; a source that draws more gives other figures."""
    config = ("targets", "--config-file=configs/tiny/detreg.py", "--orders=2")
    source = "dataloader.train.mapper.boxes"
    search = (f"{source}.search.mode=single", f"{source}.search.resize=64x64")
    (found,) = run(tool, place, *config, "data.boxes.num=5", *search)
    options = ("--mode=single", "--resize=64x64", "--top-k", "5", "0", "--orders=2")
    first, whole = run(tool, place, "search", *options)
    assert (found["top_k"], found["boxes_per_image"]) == (5, 5.0)
    for name in (*METRICS, "deviation"):
        assert found[name] == first[name]
    assert found["AR100"] != whole["AR100"]
    with pytest.raises(SystemExit, match=r"error: configs/tiny/detr\.py has no box source"):
        run(tool, place, "targets", "--config-file=configs/tiny/detr.py")
    for config in ("selftrain", "align_det"):  # they would be compared with themselves
        with pytest.raises(
            SystemExit, match=r"error: .*(no box source|what its data set comes with)"
        ):
            run(tool, place, "targets", f"--config-file=configs/tiny/{config}.py")


def test_targets_of_a_store_are_those_of_the_store(tool, place) -> None:
    store = as_store(place, "plain", levels=False)
    config = ("targets", "--config-file=configs/tiny/detreg.py", "--orders=1", "data.boxes.num=3")
    (found,) = run(tool, place, *config, f"data.store={store}")
    (stored,) = run(tool, place, "store", str(store), "--top-k=3")
    assert found["boxes_per_image"] == stored["boxes_per_image"] == 3
    assert all(found[name] == stored[name] for name in METRICS if name.startswith("AR"))


def test_a_store_of_the_search_gives_the_same(tool, place) -> None:
    store = as_store(place, "levels", levels=True)
    options = ("--top-k", "5", "--orders=2")
    (stored,) = run(tool, place, "store", str(store), *options)
    sizes = ("--resize", "48x48", "64x64")
    smaller, searched = run(tool, place, "search", "--mode=single", *sizes, *options)
    assert smaller["parameters"]["resize"] == "48x48"
    assert smaller["AR100"] != searched["AR100"]
    for name in (*METRICS, "deviation", "boxes_per_image"):
        assert stored[name] == searched[name]


def test_a_store_with_scores_has_one_order(tool, place) -> None:
    store = as_store(place, "plain", levels=False)
    (row,) = run(tool, place, "store", str(store), "--top-k", "5")
    (searched,) = run(
        tool, place, "search", "--mode=single", "--resize=64x64", "--top-k", "5", "--orders=1"
    )
    assert "deviation" not in row
    assert "deviation" not in searched
    for name in METRICS[3:]:  # scores are other ones, but the order within an image is the same
        assert row[name] == pytest.approx(searched[name])


@pytest.fixture(scope="module")
def weights(place: Path) -> Path:
    """A teacher of random weights."""
    cfg = load_config(CONFIG, [*SMALL, "data.num_classes=3"])
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    names = list(load_dataset(place / "scenes").class_names)
    save_checkpoint(
        place / "last.pth", {"model": model.state_dict(), "provenance": {"class_names": names}}
    )
    return place / "last.pth"


def test_a_checkpoint_gives_one_box_a_query(tool, place, weights, monkeypatch) -> None:
    """Those of the detector on the resized image, in the frame of the file, best class's score."""
    seen = []

    def record(dataset, found):
        seen.append(sorted(found, key=lambda image: image.image_id))
        return proposal_metrics(dataset, found)

    monkeypatch.setattr(tool, "proposal_metrics", record)
    options = [f"--config-file={CONFIG}", f"--weights={weights}", "--num-workers=0", "--device=cpu"]
    options.append("--batch-size=1")
    (row,) = run(tool, place, "checkpoint", *options, *SMALL)
    assert row["boxes_per_image"] == 40
    assert len(row["parameters"]["sha256"]) == 64
    assert row["AR1"] <= row["AR10"] <= row["AR30"] <= row["AR100"]
    run(tool, place, "checkpoint", *options, "--short-side=64", *SMALL[:3])
    cfg = load_config(CONFIG, [*SMALL, "data.num_classes=3"])
    detector = load_trained(cfg, read_checkpoint(weights), torch.device("cpu"))
    dataset = load_dataset(place / "scenes")
    for index, images in enumerate(zip(*seen, strict=True)):
        pixels = cv2.resize(read_image(dataset[index].path), (64, 64))
        batch = [{"image": to_chw_tensor(pixels), "height": 96, "width": 96}]
        with torch.no_grad():
            output = detector.detect(detector.preprocess(batch))
        center, size = output.boxes[-1, 0, :, :2], output.boxes[-1, 0, :, 2:]
        corners = torch.cat([center - size / 2, center + size / 2], dim=1).clamp(0, 1) * 96
        scores = output.logits[-1, 0].sigmoid().amax(dim=1)
        for image in images:
            assert image.image_id == dataset[index].image_id
            np.testing.assert_allclose(image.boxes, corners.numpy(), atol=1e-3)
            np.testing.assert_allclose(image.scores, scores.numpy(), atol=1e-5)


def test_trainings_have_a_line_each_and_one_of_their_mean(
    tool, place, weights, monkeypatch, capsys
) -> None:
    dataset = load_dataset(place / "scenes")
    truth = [
        ImageDetections(r.image_id, r.boxes, np.linspace(1, 0.5, len(r.boxes)), r.classes)
        for r in (dataset[index] for index in range(len(dataset)))
    ]
    found = iter([truth, truth[:3]])  # the second model finds nothing in the other images
    monkeypatch.setattr(tool, "boxes_of_detector", lambda *_: next(found))
    options = [f"--config-file={CONFIG}", "--num-workers=0", "--device=cpu"]
    files = [str(weights)] * 2
    options += [f"--weights={file}" for file in files]
    first, second, mean = run(tool, place, "checkpoint", *options, *SMALL)
    assert [first["boxes"], second["boxes"]] == files
    assert first["AR100"] == pytest.approx(100)
    assert second["AR100"] < 90
    # Images without boxes count among those that boxes are averaged over.
    assert second["boxes_per_image"] == sum(len(image.scores) for image in truth[:3]) / 6
    assert mean["boxes"] == "mean of 2 trainings"
    assert mean["parameters"]["of"] == files
    for name in METRICS:
        assert mean[name] == pytest.approx((first[name] + second[name]) / 2)
        spread = abs(first[name] - second[name]) / 2**0.5
        assert mean["deviation"][name] == pytest.approx(spread)
    assert f"{mean['AR100']:.2f} +-{mean['deviation']['AR100']:.2f}" in capsys.readouterr().out


def test_errors_are_one_line(tool, place, weights, tmp_path) -> None:
    options = [f"--config-file={CONFIG}", f"--weights={weights}", "--num-workers=0", "--device=cpu"]
    without = [*SMALL[:3], "dataloader.test=null"]
    with pytest.raises(SystemExit, match=r"error: the config has no .* --short-side"):
        run(tool, place, "checkpoint", *options, *without)
    with pytest.raises(SystemExit, match="error: no box store in"):
        run(tool, place, "store", str(tmp_path))
    with pytest.raises(SystemExit, match="error: resize takes"):
        run(tool, place, "search", "--resize", "64x64", "large")
    images = place / "scenes" / "images"
    with pytest.raises(SystemExit, match="has no annotations to find"):
        tool.main(["search", f"--data={images}", "--mode=single", "--resize=64x64"])
    for wrong in ("--orders=0", "--top-k=-1"):
        with pytest.raises(SystemExit) as caught:
            run(tool, place, "search", wrong)
        assert caught.value.code == 2
