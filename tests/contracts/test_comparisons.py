"""Every shipped comparison can be planned, with each budget, and has the controls of a verdict."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from predet.data.scenes import make_scenes
from predet.engine.comparison import (
    Clusters,
    Filtered,
    Proposals,
    PseudoLabels,
    Training,
    feeding,
    load_comparison,
)
from predet.engine.comparison_run import plan
from predet.engine.comparison_stages import StageResolver
from predet.engine.config import load_config
from predet.evaluation.comparison import DECISIVE

ROOT = Path(__file__).resolve().parents[2]
COMPARISONS = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("compare_*.py")
    if "common" not in path.parts
)  # fmt: skip
HOURS = 2.0  # of two cores, on the CPU budget


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with every split that a comparison asks for."""
    folder = tmp_path_factory.mktemp("scenes")
    for split in ("train", "trainval", "test"):
        make_scenes(folder, num_images=4, image_size=64, num_classes=2, seed=0, split=split)
    single = folder.with_name(f"{folder.name}_single")
    make_scenes(single, num_images=4, image_size=64, num_classes=2, seed=1, split="train")
    return folder


def resolver_of(config: str, budget: str, data: Path, *overrides: str) -> StageResolver:
    sources = [f"data.train.source={data}", *overrides]
    comparison = load_comparison(ROOT / config, sources, budget=budget)
    return StageResolver(comparison, output=data / "out", tools=ROOT / "tools", num_gpus=0)


def test_comparisons_are_found() -> None:
    assert len(COMPARISONS) >= 3


@pytest.mark.parametrize("config", COMPARISONS)
def test_every_arm_has_the_controls_of_a_verdict(config: str) -> None:
    for budget in load_config(ROOT / config).budgets:
        comparison = load_comparison(ROOT / config, budget=budget)
        candidates = [arm for arm in comparison.compared if arm.controls]
        assert candidates
        for arm in candidates:
            assert set(DECISIVE) <= set(arm.controls)
            trained = [arm.name, arm.controls["b"]]  # for as long, with all that they begin with
            own, longer = (
                sum(stage.updates for stage in feeding(comparison.arms[name], comparison.stages))
                for name in trained
            )
            assert longer == own, trained


@pytest.mark.parametrize("config", COMPARISONS)
def test_every_stage_can_be_run(config: str, data: Path) -> None:
    """Its config and its overrides load: the hash of a stage is made of its resolved config."""
    resolver = resolver_of(config, "small", data, "comparison.seeds=1")
    planned = plan(resolver)
    assert len({p.stage.name for p in planned}) == len(planned)
    for each in planned:
        assert Path(each.stage.command[1]).is_file()
        if isinstance(each.stage.config, Training):
            overrides = [part for part in each.stage.command[7:] if "=" in part]
            cfg = load_config(each.stage.config.config, overrides)
            assert cfg.train.max_iter == each.stage.config.updates
    json.dumps([p.stage.command for p in planned])


@pytest.mark.parametrize("config", [config for config in COMPARISONS if "grid" in config])
def test_the_grid_pre_trains_on_other_images(config: str, data: Path) -> None:
    others = [f"data.unlabeled.source={data / 'test'}", "data.unlabeled.split=null"]
    planned = plan(resolver_of(config, "small", data, "comparison.seeds=1", *others))
    trainings = [each.stage for each in planned if isinstance(each.stage.config, Training)]
    on = {str(stage.config.on) for stage in trainings}
    assert on == {"train", "unlabeled"}
    for stage in trainings:
        told = f"data.unlabeled.source={data / 'test'}" in stage.command
        assert told == (stage.config.on == "unlabeled")


def parser_of(path: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Of a tool's command line."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module.make_parser()


@pytest.mark.parametrize("tool", ["pseudo_label", "extract_proposals"])
def test_tools_take_the_options_of_their_stages(
    tool: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = resolver_of("configs/tiny/compare_demo.py", "small", data)
    own = {
        "pseudo_label": PseudoLabels(teacher="teacher", options={"keep": 20, "top_k": 10}),
        "extract_proposals": Proposals(options={"mode": "single", "top_k": 10}),
    }
    stages = {**resolver.comparison.stages, "boxes": own[tool]}
    resolver.comparison = dataclasses.replace(resolver.comparison, stages=stages)
    boxes = next(p.stage for p in plan(resolver) if p.stage.weights is None)
    assert Path(boxes.command[1]).stem == tool
    args = parser_of(boxes.command[1], monkeypatch).parse_intermixed_args(boxes.command[2:])
    assert args.images == str(data)
    assert args.output == str(boxes.folder)
    assert args.top_k == 10


def test_tools_of_filters_and_clusters_take_the_options_of_their_stages(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = resolver_of("configs/tiny/compare_demo.py", "small", data)
    stages = {
        **resolver.comparison.stages,
        "proposals": Proposals(),
        "filtered": Filtered(
            boxes="proposals", options={"nms": 0.5, "relative": [0.1, 0.8], "first": 9}
        ),
        "boxes": Clusters(
            boxes="filtered", backbone="teacher", options={"clusters": 8, "short_side": 64}
        ),
    }
    resolver.comparison = dataclasses.replace(resolver.comparison, stages=stages)
    commands = {p.stage.name.split("-")[0]: p.stage.command for p in plan(resolver)}
    command = commands["filtered"]
    args = parser_of(command[1], monkeypatch).parse_args(command[2:])
    assert (args.nms, args.relative, args.first) == (0.5, [0.1, 0.8], 9)
    command = commands["clusters"]
    args = parser_of(command[1], monkeypatch).parse_args(command[2:])
    assert (args.images, args.clusters, args.short_side) == (str(data), 8, 64)
    assert Path(args.store).name.startswith("filtered-")
    assert Path(args.config_file).name == "config.resolved.py"


@pytest.mark.parametrize("config", COMPARISONS)
def test_cpu_budget_has_three_seeds_and_fits_its_time(config: str, data: Path) -> None:
    if "cpu" not in load_config(ROOT / config).budgets:
        pytest.skip("has one budget")
    resolver = resolver_of(config, "cpu", data)
    assert resolver.comparison.seeds >= 3
    planned = plan(resolver)
    assert all(p.seconds is not None for p in planned)
    assert sum(p.seconds for p in planned) <= 2 * HOURS * 3600
