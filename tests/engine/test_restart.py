"""A run goes on with another number of processes: the same images, sums in another order."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
from pathlib import Path

import pytest
import torch
from engine_processes import Job, run_once

from predet.checkpoint import read_checkpoint
from predet.data import loader as loader_module
from predet.data.augmentation import DETRAugmentation
from predet.data.formats import load_dataset
from predet.data.loader import build_train_loader
from predet.data.mapper import DetectionMapper
from predet.data.scenes import make_scenes

ROOT = Path(__file__).resolve().parents[2]
# Of fp32 sums in another order, over the steps of these runs: measured 2e-7 and 7e-7 of the norm.
RELATIVE_LOSS = 1e-5
RELATIVE_WEIGHTS = 1e-5


def content(item: dict) -> str:
    """What the model is given of an image, to the bit."""
    digest = hashlib.sha256(item["image"].numpy().tobytes())
    digest.update(item["instances"].gt_boxes.tensor.numpy().tobytes())
    digest.update(item["instances"].gt_classes.numpy().tobytes())
    return digest.hexdigest()


def steps_of(loader, monkeypatch, world_size: int, micro_steps: int, count: int) -> list[list]:
    """For each step its images, with their content, over all processes and micro-batches."""
    steps: list[list] = [[] for _ in range(count)]
    monkeypatch.setattr(loader_module.comm, "get_world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(loader_module.comm, "get_rank", lambda rank=rank: rank)
        batches = loader.batches(0, micro_steps)
        for number, batch in enumerate(itertools.islice(batches, count * micro_steps)):
            for item in batch:
                steps[number // micro_steps].append((item["key"], content(item)))
        batches.close()
    return [sorted(step) for step in steps]


@pytest.mark.parametrize(("world_size", "micro_steps"), [(2, 1), (4, 1), (1, 4), (2, 2)])
def test_every_division_gives_a_step_the_same_images_to_the_bit(
    tmp_path: Path, monkeypatch, world_size: int, micro_steps: int
) -> None:
    """Also where a file cannot be read and another image takes its place."""
    make_scenes(tmp_path, num_images=10, image_size=48, num_classes=3, seed=0)
    next(tmp_path.rglob("*.png")).write_bytes(b"no picture")
    dataset = load_dataset(tmp_path)
    augmentation = DETRAugmentation(
        short_sides=(32, 40, 48), max_size=64, crop_short_sides=(48,), crop_size=(24, 40)
    )
    loader = build_train_loader(
        dataset=dataset,
        mapper=DetectionMapper(augmentation=augmentation, training=True),
        total_batch_size=4,
        num_workers=0,
        seed=5,
    )
    whole = steps_of(loader, monkeypatch, 1, 1, count=6)
    assert all(len(step) == 4 for step in whole)
    assert len(loader.bad_samples()) == 1
    assert steps_of(loader, monkeypatch, world_size, micro_steps, count=6) == whole


def losses(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def assert_equal_up_to_summation(first: Path, second: Path, steps: int) -> None:
    assert len(losses(first)) == steps
    assert losses(first) == pytest.approx(losses(second), rel=RELATIVE_LOSS)
    states = [read_checkpoint(path / "checkpoints/last.pth") for path in (first, second)]
    for part in ("model", "ema"):
        one, two = (flat(state[part]) for state in states)
        assert float((one - two).norm() / one.norm()) < RELATIVE_WEIGHTS, part


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in weights.values()])


def test_one_two_and_one_process_after_another(tiny_config: str, tmp_path: Path) -> None:
    def argv(output: str, *more: str) -> list[str]:
        options = ["train.log_period=1", "train.max_iter=18", "train.eval_period=7"]
        options += ["model.dropout=0", "model.norm=False", f"train.output_dir={tmp_path / output}"]
        return ["--config-file", tiny_config, "--resume", *options, *more]

    run_once(argv("one"), log=tmp_path / "log")
    run_once(argv("two"), log=tmp_path / "log", processes=2)
    assert_equal_up_to_summation(tmp_path / "one", tmp_path / "two", steps=18)
    log = tmp_path / "mixed.log"
    run_once(argv("mixed"), log=log, env={"STANDIN_TERM_AT": "4"})
    run_once(argv("mixed"), log=log, processes=2, env={"STANDIN_TERM_AT": "9"})
    divided = argv("mixed", "train.accumulation_steps=2")
    run_once(divided, log=log, env={"STANDIN_TERM_AT": "26"})  # the first part of step 13
    run_once(argv("mixed"), log=log)
    text = log.read_text()
    for steps in (5, 10, 14):
        assert f"stopped after step {steps} of 18" in text
    assert "divided otherwise than before (1 process(es) then, 2 now)" in text
    assert "divided otherwise than before (2 process(es) then, 1 now)" in text
    assert text.count("divided otherwise") == 3
    assert_equal_up_to_summation(tmp_path / "one", tmp_path / "mixed", steps=18)


def test_another_batch_is_another_run(run_tiny) -> None:
    run_tiny("train.max_iter=4")
    with pytest.raises(ValueError, match=r"total_batch_size: not set then, 8 now"):
        run_tiny("train.max_iter=4", "dataloader.train.total_batch_size=8", resume=True)


@pytest.mark.slow
def test_a_detector_goes_on_with_two_processes_and_back(tmp_path: Path) -> None:
    """Deformable DETR on one canvas for all images, so that padding is the same for everyone."""
    scenes = tmp_path / "scenes"
    make_scenes(scenes, num_images=9, image_size=48, num_classes=3, seed=0)

    def argv(output: str) -> list[str]:
        head = ["--config-file", str(ROOT / "configs/tiny/deformable_detr.py"), "--num-gpus", "0"]
        head += ["--resume", f"data.train.source={scenes}", f"train.output_dir={tmp_path / output}"]
        small = ["model.transformer.hidden_dim=64", "model.queries.hidden_dim=64"]
        small += ["model.queries.num_queries=10", "model.size_divisibility=64"]
        augmentation = "dataloader.train.mapper.augmentation"
        small += [f"{augmentation}.short_sides=[32,48]", f"{augmentation}.max_size=64"]
        small += [f"{augmentation}.crop_short_sides=[48]", f"{augmentation}.crop_size=[24,40]"]
        run = ["dataloader.train.total_batch_size=4", "dataloader.train.num_workers=0"]
        run += ["dataloader.test=null", "data.train.split=null", "train.max_iter=12"]
        run += ["train.log_period=1", "train.ema_decay=0.9", "lr_multiplier.drop_steps=[]"]
        return [*head, *small, *run]

    run_once(argv("one"), log=tmp_path / "log")
    for step, processes in ((3, 1), (7, 2), (99, 1)):
        job = Job(argv("mixed"), log=tmp_path / "mixed.log", processes=processes)
        if step < 12:
            job.signal_after_step(step, signal.SIGTERM, tmp_path / "mixed/metrics.jsonl")
        job.succeed()
    assert (tmp_path / "mixed.log").read_text().count("divided otherwise") == 2
    assert_equal_up_to_summation(tmp_path / "one", tmp_path / "mixed", steps=12)
