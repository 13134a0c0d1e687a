"""Comparisons: what becomes a stage, what is shared, what is run again, and what the page says."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from comparison_job import HERE, resolver_for

from predet.d2.embedded.overrides import parse_value
from predet.data.dataset import DetectionDataset
from predet.data.scenes import make_scenes
from predet.data.stored_boxes import RegionsOfOtherImages
from predet.engine import comparison_stages
from predet.engine.comparison import (
    Checkpoint,
    Clusters,
    Controls,
    Filtered,
    LabelBudget,
    Proposals,
    Training,
    load_comparison,
)
from predet.engine.comparison_page import page_blocks
from predet.engine.comparison_results import check_leakage
from predet.engine.comparison_run import plan, plan_text, run, write_page
from predet.engine.comparison_stages import Resolved, StageResolver
from predet.engine.config import load_config
from predet.engine.config_text import as_overrides, as_text
from predet.engine.provenance import describe_dataset
from predet.engine.stages import StageFailed

CONFIG = HERE / "comparison_config.py"
ARMS = ("scratch", "method")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    for split, count in (("train", 20), ("test", 30)):
        seed = len(split)
        make_scenes(folder, num_images=count, image_size=64, num_classes=2, seed=seed, split=split)
    return folder


def resolved(resolver: StageResolver) -> dict[tuple[str, int], list[Resolved]]:
    comparison = resolver.comparison
    return {(a, c.seed): resolver.chain(a, c) for c in comparison.cells for a in comparison.arms}


def test_controls_are_added() -> None:
    comparison = load_comparison(CONFIG)
    assert comparison.arms["scratch_200"] == ("finetune_200",)
    assert comparison.stages["finetune_200"].updates == 200  # 100 of pre-training, 100 after it
    assert comparison.arms["teacher_200"] == ("teacher", "finetune_200")
    assert comparison.arms["method_shuffled"] == ("pretrain_shuffled", "finetune")
    assert comparison.stages["pretrain_shuffled"].set["data.selection.shuffle_seed"] == 0
    by_name = {arm.name: arm for arm in comparison.compared}
    assert by_name["method"].title == "the method"
    assert by_name["method"].controls == {
        "a": "scratch",
        "b": "scratch_200",
        "c": "teacher_200",
        "d": "method_shuffled",
    }
    assert not by_name["scratch_200"].controls


def test_an_arm_without_a_teacher_has_scratch_trained_on() -> None:
    own = "stages.pretrain.set={data.selection.top_k: 20}"
    comparison = load_comparison(CONFIG, [own, "controls.shuffled=[]"])
    assert comparison.arms["finetune_200"] == ("finetune", "finetune_200")
    (method,) = (arm for arm in comparison.compared if arm.controls)
    assert method.controls == {"a": "scratch", "b": "scratch_200", "c": "finetune_200"}


def test_chosen_arms_come_with_their_controls(tmp_path: Path) -> None:
    whole = load_comparison(CONFIG)
    assert load_comparison(CONFIG, arms=["*"]) == whole
    (method,) = (arm for arm in whole.compared if arm.controls)
    named = load_comparison(CONFIG, arms=["meth*d"])
    assert method in named.compared
    assert set(named.arms) == {"method", *method.controls.values()}
    assert {arm.name for arm in named.compared} == set(named.arms)
    assert all(whole.arms[name] == chain for name, chain in named.arms.items())

    # An arm that is another one's control, and has controls itself.
    more = tmp_path / "config.py"
    added = (
        'stages["finetune_200"] = stages["finetune"]\narms["more"] = ["teacher", "finetune_200"]\n'
    )
    more.write_text(CONFIG.read_text() + added)
    by_name = {arm.name: arm for arm in load_comparison(more).compared}
    assert by_name["method"].controls["c"] == "more"
    assert by_name["more"].controls
    few = load_comparison(more, arms=["method"])
    assert set(few.arms) == {"method", *by_name["method"].controls.values()}
    assert [arm.name for arm in few.compared if arm.controls] == ["method"]
    with pytest.raises(ValueError, match=r"no arm's name matches 'other'; there are .*method"):
        load_comparison(CONFIG, arms=["method", "other"])


def test_detectors_of_several_kinds_have_controls_of_their_own() -> None:
    def training(name: str, updates: int = 100) -> Training:
        return Training(config=f"configs/tiny/{name}.py", on="train", updates=updates)

    stages = {
        "finetune": training("deformable_detr"),
        "finetune_fcos": training("fcos"),
        "pretrain": Training(config="configs/tiny/selftrain.py", on="unlabeled", updates=40),
    }
    arms = {"one": ("pretrain", "finetune"), "two": ("pretrain", "finetune_fcos")}
    controls = Controls(scratch_of={"two": "finetune_fcos"})
    found = {arm.name: arm.controls for arm in controls.add_to(stages, arms, {}) if arm.controls}
    assert found["one"] == {"a": "scratch", "b": "scratch_140", "c": "finetune_140"}
    assert found["two"] == {
        "a": "scratch_finetune_fcos",
        "b": "scratch_finetune_fcos_140",
        "c": "finetune_fcos_140",
    }
    assert arms["scratch_finetune_fcos"] == ("finetune_fcos",)
    assert arms["finetune_fcos_140"] == ("finetune_fcos", "finetune_fcos_140")
    assert stages["finetune_fcos_140"] == training("fcos", 140)
    controls = Controls(scratch_of={"two": "finetune_fcos"}, teacher="finetune_100")
    arms = {"one": ("pretrain", "finetune"), "two": ("pretrain", "finetune_fcos")}
    own = {**stages, "finetune_100": training("deformable_detr")}
    controls.add_to(own, arms, {})
    assert ("finetune_100", "finetune_140") in arms.values()
    assert ("finetune_fcos", "finetune_fcos_140") in arms.values()  # not another detector's teacher
    with pytest.raises(ValueError, match="scratch_of: there is no arm 'three' to compare"):
        Controls(scratch_of={"three": "finetune_fcos"}).add_to(dict(stages), {}, {})
    with pytest.raises(ValueError, match="there is no stage 'nothing'"):
        Controls(scratch_of={"one": "nothing"}).add_to(dict(stages), dict(arms), {})


def test_boxes_are_filtered_and_clustered(tmp_path: Path, scenes: Path) -> None:
    """Each box stage builds on others, and a change goes through to what reads the boxes."""

    def resolve(seed: int, **options: object) -> list[Resolved]:
        resolver = resolver_for(tmp_path / "out", f"data.train.source={scenes}")
        stages = {
            **resolver.comparison.stages,
            "proposals": Proposals(options={"top_k": 10}),
            "filtered": Filtered(boxes="proposals", options=options),
            "boxes": Clusters(boxes="filtered", backbone="teacher", options={"clusters": 4}),
        }
        resolver.comparison = dataclasses.replace(resolver.comparison, stages=stages)
        cell = resolver.comparison.cells[seed]
        chain = resolver.chain("method", cell)
        needed = {stage.name.split("-")[0]: stage for stage in resolver.closure(chain)}
        return [needed[kind] for kind in ("proposals", "filtered", "clusters", "selftrain")]

    proposals, filtered, clusters, pretraining = resolve(0, nms=0.5, relative=[0.02, 0.9])
    assert filtered.needs == (proposals.name,)
    assert filtered.command[2:4] == ("filter", str(proposals.folder))
    assert "--nms=0.5" in filtered.command
    assert filtered.command[-3:] == ("--relative", "0.02", "0.9")
    assert clusters.command[2] == str(filtered.folder)
    assert f"--images={scenes}" in clusters.command
    weights = next(part for part in clusters.command if part.startswith("--weights="))
    assert weights.endswith("checkpoints/last.pth")
    assert filtered.name in clusters.needs
    assert len(clusters.needs) == 2
    assert clusters.name in pretraining.needs
    assert (proposals.seed, filtered.seed, clusters.seed) == (None, None, 0)
    assert clusters.labels == "10 labelled images"  # by its backbone, the teacher's
    other_seed, other_filter = resolve(1, nms=0.5, relative=[0.02, 0.9]), resolve(0, nms=0.6)
    same = [a.name == b.name for a, b in zip(resolve(0, nms=0.6), other_filter, strict=True)]
    assert same == [True] * 4
    assert [proposals.name, filtered.name] == [stage.name for stage in other_seed[:2]]
    assert clusters.name != other_seed[2].name
    changed = [s.name for s in other_filter]
    assert changed[0] == proposals.name
    assert not {filtered.name, clusters.name, pretraining.name} & set(changed)


def test_a_teacher_is_found_behind_what_is_made_of_its_boxes() -> None:
    whole = load_comparison(CONFIG)
    stages = {
        **{name: whole.stages[name] for name in ("teacher", "boxes", "pretrain", "finetune")},
        "best": Filtered(boxes="boxes", options={"first": 5}),
        "clusters": Clusters(boxes="best", backbone="teacher"),
    }
    for boxes in ("boxes", "best", "clusters"):
        keys = {**stages["pretrain"].set, "data.store": f"stage:{boxes}"}
        own = {**stages, "pretrain": dataclasses.replace(stages["pretrain"], set=keys)}
        arms = {"method": ("pretrain", "finetune")}
        (method,) = (arm for arm in Controls().add_to(own, arms, {}) if arm.controls)
        assert arms[method.controls["c"]][0] == "teacher", boxes


def test_boxes_of_other_images_are_a_control_of_any_source() -> None:
    keys = {"data.store": "stage:regions"}
    stages = {
        "regions": Proposals(options={"recipe": "detreg"}),
        "pretrain": Training(config="configs/tiny/detreg.py", on="unlabeled", updates=40, set=keys),
        "finetune": load_comparison(CONFIG).stages["finetune"],
    }
    Controls(shuffled=["method"]).add_to(stages, {"method": ("pretrain", "finetune")}, {})
    shuffled = stages["pretrain_shuffled"].set
    cfg = load_config("configs/tiny/detreg.py", as_overrides({**shuffled, "data.store": "store"}))
    assert cfg.dataloader.train.mapper.boxes._target_ is RegionsOfOtherImages


def test_how_a_training_is_evaluated_is_part_of_its_stage(tmp_path: Path, scenes: Path) -> None:
    """AP is its product, and so are boxes at the test-time size; who reads the images is not."""

    def names(**keys: object) -> list[str]:
        resolver = resolver_for(tmp_path / "out", f"data.train.source={scenes}")
        teacher = dataclasses.replace(resolver.comparison.stages["teacher"], set=keys)
        stages = {**resolver.comparison.stages, "teacher": teacher}
        resolver.comparison = dataclasses.replace(resolver.comparison, stages=stages)
        cell = resolver.comparison.cells[0]
        pretraining, _ = resolver.chain("method", cell)
        return [resolver.chain("teacher_200", cell)[0].name, *pretraining.needs, pretraining.name]

    before = names()
    assert names(**{"dataloader.test.num_workers": 3}) == before
    sizes = names(**{"dataloader.test.mapper.augmentation.short_sides": [32]})
    assert not set(before) & set(sizes)


def test_all_labels_are_all_whatever_the_training_config_says(tmp_path: Path, scenes: Path) -> None:
    source = (f"data.train.source={scenes}", "comparison.labels=[all]")
    resolver = resolver_for(tmp_path / "out", *source)
    (scratch,) = resolver.chain("scratch", resolver.comparison.cells[0])
    given = dict(part.split("=", 1) for part in scratch.command if part.startswith("data.train"))
    assert parse_value(given["data.train.fraction"]) is None
    assert parse_value(given["data.train.num_images"]) is None


def test_images_of_tools_that_make_boxes(tmp_path: Path, scenes: Path) -> None:
    resolver = resolver_for(tmp_path / "out", f"data.train.source={scenes}")
    resolver.comparison.data["unlabeled"]["format"] = "coco"

    def boxes() -> Resolved:
        (name,) = resolver.chain("method", resolver.comparison.cells[0])[0].needs
        return resolver.stages[name]

    assert {"--format=coco", "--split=train"} < set(boxes().command)
    resolver = resolver_for(tmp_path / "out", f"data.train.source={scenes}")
    resolver.comparison.data["unlabeled"]["num_images"] = 5
    with pytest.raises(
        ValueError, match=r"data\.unlabeled\.num_images: tools that make boxes take"
    ):
        boxes()


def test_a_given_checkpoint_makes_boxes(tmp_path: Path, scenes: Path) -> None:
    weights = tmp_path / "run/checkpoints/last.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")

    def boxes(config: str | None = None) -> Resolved:
        resolver = resolver_for(tmp_path / "out", f"data.train.source={scenes}")
        given = Checkpoint(path=str(weights), config=config)
        stages = {**resolver.comparison.stages, "teacher": given}
        resolver.comparison = dataclasses.replace(resolver.comparison, stages=stages)
        (name,) = resolver.chain("method", resolver.comparison.cells[0])[0].needs
        return resolver.stages[name]

    with pytest.raises(ValueError, match=r"last\.pth: the config .* no .*run/config\.resolved\.py"):
        boxes()
    (tmp_path / "run/config.resolved.py").write_text("one")
    made = boxes()
    assert f"--config-file={tmp_path}/run/config.resolved.py" in made.command
    assert f"--weights={weights}" in made.command
    assert made.needs == ()
    (tmp_path / "other.py").write_text("two")
    other = boxes(str(tmp_path / "other.py"))
    assert f"--config-file={tmp_path}/other.py" in other.command
    assert other.name != made.name


def test_a_given_checkpoint_is_control_e(tmp_path: Path, scenes: Path) -> None:
    weights = tmp_path / "coco.pth"
    weights.write_bytes(b"weights")
    resolver = resolver_for(
        tmp_path / "out", f"data.train.source={scenes}", f"controls.checkpoint={weights}"
    )
    assert resolver.comparison.arms["checkpoint"] == ("checkpoint", "finetune")
    chain = resolver.chain("checkpoint", resolver.comparison.cells[0])
    assert f"train.init_checkpoint={weights}" in chain[1].command
    assert chain[1].needs == ()  # nothing is run to make it
    before = chain[1].name
    weights.write_bytes(b"other weights")
    resolver = resolver_for(
        tmp_path / "out", f"data.train.source={scenes}", f"controls.checkpoint={weights}"
    )
    assert resolver.chain("checkpoint", resolver.comparison.cells[0])[1].name != before


def test_a_file_that_a_training_is_given_counts_by_its_content(
    tmp_path: Path, scenes: Path
) -> None:
    weights, copy = tmp_path / "backbone.pth", tmp_path / "copy.pth"
    weights.write_bytes(b"weights")
    copy.write_bytes(b"weights")

    def pretraining(file: Path) -> Resolved:
        resolver = resolver_for(
            tmp_path / "out",
            f"data.train.source={scenes}",
            f"stages.pretrain.set={{model.detector.backbone.weights: {file}}}",
            "controls.shuffled=[]",
        )
        return resolver.chain("method", resolver.comparison.cells[0])[0]

    before = pretraining(weights)
    assert f"model.detector.backbone.weights={weights}" in before.command
    assert pretraining(copy).name == before.name
    weights.write_bytes(b"other weights")
    assert pretraining(weights).name != before.name


def test_stages_are_shared_where_they_are_the_same(tmp_path: Path, scenes: Path) -> None:
    resolver = resolver_for(tmp_path / "out", f"data.train.source={scenes}")
    chains = resolved(resolver)
    first = resolver.comparison.cells[0]
    teacher = resolver.chain("teacher_200", first)[0]
    assert chains["scratch", 0][0].name == teacher.name  # the same run under two names
    assert chains["method", 0][0].needs[0].startswith("pseudo_labels-")
    names = {name: {s.name for s in resolver.closure(chain)} for name, chain in chains.items()}
    for seed in range(3):  # all arms of a seed draw the same labels, other seeds draw others
        assert f"data.train.seed={seed}" in chains["scratch", seed][0].command
        for stage in chains["method", seed]:
            assert f"train.seed={seed}" in stage.command
        assert "data.train.num_images=10" in chains["method", seed][1].command
    assert not names["method", 0] & names["method", 1]
    # A seed: scratch, its boxes, two pre-trainings, two fine-tunings, two long controls.
    assert len(plan(resolver)) == 3 * 8


def test_a_change_moves_only_what_depends_on_it(tmp_path: Path, scenes: Path) -> None:
    source = f"data.train.source={scenes}"
    before = resolved(resolver_for(tmp_path / "out", source))
    after = resolved(resolver_for(tmp_path / "out", source, "updates.pretrain=60"))
    assert before["scratch", 0] == after["scratch", 0]
    assert before["method", 0][0].needs == after["method", 0][0].needs  # the boxes
    assert before["method", 0][0].name != after["method", 0][0].name
    assert before["method", 0][1].name != after["method", 0][1].name
    other_set = resolved(resolver_for(tmp_path / "out", source, "comparison.labels=[11]"))
    assert not {c[0].name for c in before.values()} & {c[0].name for c in other_set.values()}


def test_a_training_is_told_all_that_the_comparison_says(tmp_path: Path, scenes: Path) -> None:
    source = (f"data.train.source={scenes}", "comparison.labels=[0.5]", "updates.finetune=10")
    resolver = resolver_for(tmp_path / "out", *source)
    resolver.comparison.data["unlabeled"] = {"source": str(scenes / "train")}

    def told(finetune: Training) -> list[dict[str, object]]:
        stages = {**resolver.comparison.stages, "finetune": finetune}
        resolver.comparison = dataclasses.replace(resolver.comparison, stages=stages)
        chain = resolver.chain("method", resolver.comparison.cells[0])
        given = [[part.split("=", 1) for part in s.command if "=" in part] for s in chain]
        return [{key: parse_value(value) for key, value in parts} for parts in given]

    finetune = resolver.comparison.stages["finetune"]
    pretraining, finetuning = told(finetune)
    assert pretraining["data.unlabeled.source"] == str(scenes / "train")
    # What the comparison leaves out is not left to the training config.
    assert (pretraining["data.unlabeled.split"], pretraining["data.unlabeled.image_root"]) == (
        None,
        None,
    )
    assert "train.init_checkpoint" not in pretraining
    assert "train.eval_period" not in pretraining
    assert not any(key.startswith("data.train") for key in pretraining)
    assert (finetuning["data.train.split"], finetuning["data.test.split"]) == ("train", "test")
    assert finetuning["data.train.fraction"] == 0.5
    assert finetuning["data.train.num_images"] is None
    assert (finetuning["train.max_iter"], finetuning["train.reinit"]) == (10, "auto")
    assert finetuning["train.eval_period"] == finetuning["train.checkpoint_period"] == 3
    other = dataclasses.replace(finetune, set={"train.reinit": ["all-but-backbone"]})
    resolver = resolver_for(tmp_path / "out", *source)
    assert told(other)[1]["train.reinit"] == ["all-but-backbone"]


def test_other_data_or_another_version_are_other_stages(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    for split in ("train", "test"):
        make_scenes(other, num_images=3, image_size=64, num_classes=2, seed=9, split=split)

    def names(*overrides: str) -> list[str]:
        resolver = resolver_for(tmp_path / "out", f"data.train.source={scenes}", *overrides)
        (teacher,) = resolver.chain("scratch", resolver.comparison.cells[0])
        pretraining, finetuning = resolver.chain("method", resolver.comparison.cells[0])
        (boxes,) = pretraining.needs
        return [teacher.name, boxes, pretraining.name, finetuning.name]

    own = f"data.unlabeled.source={scenes}"  # else it is where the labelled images are
    before = names(own)
    unlabeled = names(f"data.unlabeled.source={other}")
    same = [a == b for a, b in zip(before, unlabeled, strict=True)]
    assert same == [True, False, False, False]
    test = names(own, f"data.test.source={other}")
    monkeypatch.setattr(comparison_stages, "__version__", "0.0.0")
    for changed in (test, names(own)):
        assert not set(before) & set(changed)


def test_fingerprints_tell_all_that_a_training_reads() -> None:
    made = {
        "name": "made",
        "root": "made",
        "class_names": ("a", "b"),
        "category_ids": (1, 2),
        "keys": ["1.png", "2.png"],
        "image_ids": [1, 2],
        "heights": [9, 9],
        "widths": [9, 9],
        "offsets": [0, 1, 2],
        "boxes": np.float32([[0, 0, 5, 5], [1, 1, 4, 4]]),
        "classes": [0, 1],
        "iscrowd": [False, False],
    }
    changes = {
        "class_names": ("b", "a"),
        "keys": ["1.png", "3.png"],
        "offsets": [0, 2, 2],
        "boxes": np.float32([[0, 0, 5, 5], [1, 1, 4, 5]]),
        "classes": [0, 0],
        "iscrowd": [False, True],
    }

    def fingerprint(**change: object) -> str:
        return describe_dataset(DetectionDataset(**{**made, **change}))["fingerprint"]

    found = {fingerprint(), *(fingerprint(**{name: value}) for name, value in changes.items())}
    assert len(found) == 1 + len(changes)
    assert fingerprint(name="other", root="elsewhere") == fingerprint()


def test_the_place_of_data_and_output_does_not_matter(tmp_path: Path, scenes: Path) -> None:
    moved = tmp_path / "elsewhere" / "scenes"
    shutil.copytree(scenes, moved)
    before = resolved(resolver_for(tmp_path / "out", f"data.train.source={scenes}"))
    after = resolved(resolver_for(tmp_path / "other", f"data.train.source={moved}"))
    for key, chain in before.items():
        assert [s.name for s in chain] == [s.name for s in after[key]]


def test_budget_lies_between_file_and_command_line() -> None:
    assert load_comparison(CONFIG).seeds == 3
    small = load_comparison(CONFIG, budget="small")
    assert (small.seeds, small.stages["pretrain"].updates) == (2, 40)
    assert load_comparison(CONFIG, ["comparison.seeds=7"], budget="small").seeds == 7
    with pytest.raises(ValueError, match="no budget 'huge', it has: small, cpu"):
        load_comparison(CONFIG, budget="huge")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arms={method:[nothing,finetune]}"], "arms.method: there is no stage 'nothing'"),
        (["arms={method:[boxes,finetune]}"], "'boxes' makes no weights"),
        (["arms={method:[finetune,pretrain]}"], "must be a training on 'train'"),
        (["comparison.seeds=0"], "comparison.seeds must be a whole number"),
        (["comparison.labels=[1.5]"], "a fraction in"),
        (["stages.pretrain.on=test"], "on 'train' or on unlabelled images, got 'test'"),
        (["stages.boxes.teacher=nobody"], "stages.boxes refers to 'nobody'"),
        (["controls.shuffled=[scratch]"], "no arm 'scratch' to shuffle"),
        (["updates.finetun=3"], "unknown key 'updates.finetun'"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_comparison(CONFIG, overrides)


def test_arms_pre_train_on_different_images(tmp_path: Path, scenes: Path) -> None:
    """What the config knows as `data.unlabeled` is the section that the stage is on."""
    resolver = resolver_for(tmp_path / "out", f"data.train.source={scenes}")
    cell = resolver.comparison.cells[0]

    def pretraining_on(section: str) -> Resolved:
        stages = dict(resolver.comparison.stages)
        stages["pretrain"] = dataclasses.replace(stages["pretrain"], on=section)
        comparison = dataclasses.replace(resolver.comparison, stages=stages)
        other = StageResolver(comparison, output=tmp_path / "out", tools=HERE, num_gpus=0)
        return other.chain("method", cell)[0]

    resolver.comparison.data["photos"] = {"source": str(scenes / "test")}
    usual, other = pretraining_on("unlabeled"), pretraining_on("photos")
    assert usual.name != other.name
    assert f"data.unlabeled.source={scenes / 'test'}" in other.command
    assert "data.unlabeled.split=None" in other.command
    assert not any("photos" in part for part in other.command)
    with pytest.raises(ValueError, match=r"has no data\.drawings; it has data\.train, "):
        pretraining_on("drawings")


def test_a_training_config_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="is no comparison: it has no comparison, stages, arms"):
        load_comparison("configs/tiny/detr.py")


def test_label_budgets() -> None:
    assert LabelBudget.parse(20) == (20, None)
    assert LabelBudget.parse(0.05) == (None, 0.05)
    assert str(LabelBudget.parse(0.05)) == "5% of the labels"
    assert str(LabelBudget.parse("all")) == "all labels"


@pytest.mark.parametrize(
    "value",
    [
        *("plain/path-1.pth", "a b, c", "it's", "a\\'b", "end\\", "x\\y", "1", "null"),
        *(["a", "b c"], {"k": [1, 2.5, None, True]}, None, False, 3, 0.5),
    ],
    ids=repr,
)
def test_values_survive_the_command_line(value: object) -> None:
    assert parse_value(as_text(value)) == value


def run_and_report(output: Path, *overrides: str):
    resolver = resolver_for(output, *overrides)
    run(resolver, jobs=2)
    return write_page(resolver, output, command="the command")


def test_a_planted_effect_is_found(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAIN", "0.35")
    found = run_and_report(tmp_path, f"data.train.source={scenes}")
    assert [v.answer for v in found.verdicts] == ["yes"]
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert len(content["rows"]) == 3 * 5
    rows = {(row["arm"], row["seed"]): row for row in content["rows"]}
    for difference in content["differences"]:
        if difference["metric"] == "AP":
            for seed, value in difference["by_seed"].items():
                one = rows[difference["arm"], int(seed)]["results"]["AP"]
                other = rows[difference["control"], int(seed)]["results"]["AP"]
                assert value == pytest.approx(one - other)
    assert rows["method", 0]["updates"] == rows["scratch_200", 0]["updates"] == 200
    assert rows["teacher_200", 0]["updates"] == 300
    assert [step for step, _ in rows["scratch", 0]["curve"]] == [25, 50, 75, 100]
    stages = {stage["stage"]: stage for stage in content["stages"]}
    assert len(stages) == 3 * 8
    assert all(stage["core_seconds"] > 0 for stage in stages.values())
    maker = content["about"]["stages made by"]  # all by one and the same
    assert "torch " in maker
    assert "not recorded" not in maker
    for name in ("comparison.html", "comparison.md"):
        page = html.unescape((tmp_path / name).read_text())
        assert found.verdicts[0].sentence in page
        assert all(arm.title in page for arm in found.comparison.compared)
        assert "no copies of the 30 test images" in page
        assert "nan" not in page
    # Nothing was run twice, also by asking for the page again.
    again = run_and_report(tmp_path, f"data.train.source={scenes}")
    assert again.verdicts == found.verdicts
    runs = list(tmp_path.glob("stages/*/runs.txt"))
    assert len(runs) == 3 * 7
    assert {path.read_text() for path in runs} == {"x"}


def test_a_planted_null_is_not_called_a_gain(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method is better than scratch, for it has had more updates; that is no gain."""
    monkeypatch.setenv("GAIN", "0")
    found = run_and_report(tmp_path, f"data.train.source={scenes}")
    (verdict,) = found.verdicts
    assert verdict.answer != "yes"
    by_letter = {d.letter: d for d in found.differences if d.metric == "AP"}
    assert by_letter["a"].seeds.mean > 3
    assert by_letter["d"].images.low <= 0 or by_letter["d"].seeds.low <= 0
    wanted = resolver_for(tmp_path, f"data.train.source={scenes}", "comparison.matters=60")
    (verdict,) = write_page(wanted, tmp_path, command="", leakage=False).verdicts
    assert verdict.answer == "no"
    assert "a gain of 60 AP or more is excluded" in verdict.sentence


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")
def test_a_killed_comparison_goes_on_with_what_is_missing(tmp_path: Path, scenes: Path) -> None:
    command = [sys.executable, str(Path(__file__).parent / "comparison_job.py"), str(tmp_path)]
    command += [f"data.train.source={scenes}", "comparison.seeds=2"]
    gate = tmp_path / "gate"
    first = subprocess.Popen(command, env={**os.environ, "WAIT_FOR": str(gate)})
    until(lambda: len(list(tmp_path.glob("stages/*/runs.txt"))) == 2)
    begun = list(tmp_path.glob("stages/*/runs.txt"))
    for process in (first.pid, *children(first.pid)):
        os.kill(process, signal.SIGKILL)
    first.wait()
    assert not list(tmp_path.glob("stages/*/results.json"))
    workers = [subprocess.Popen(command) for _ in range(2)]  # two processes take up the work
    assert [worker.wait(120) for worker in workers] == [0, 0]
    runs = {path: path.read_text() for path in tmp_path.glob("stages/*/runs.txt")}
    assert len(runs) == 2 * 7
    assert {path for path, text in runs.items() if text == "xx"} == set(begun)
    assert set(runs.values()) == {"x", "xx"}


def test_page_of_what_has_finished(
    tmp_path: Path, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = resolver_for(tmp_path, f"data.train.source={scenes}", "comparison.seeds=1")
    with pytest.raises(ValueError, match="no arm has finished"):
        write_page(resolver, tmp_path, command="")
    run(resolver, jobs=2)
    wanted = resolver_for(tmp_path, f"data.train.source={scenes}", "comparison.seeds=2")
    analysis = write_page(wanted, tmp_path, command="")
    assert analysis.results.missing == 5
    (verdict,) = analysis.verdicts
    assert verdict.answer == "cannot tell"
    assert "at least 3 seeds" in verdict.sentence
    assert "5 runs have not finished" in (tmp_path / "comparison.md").read_text()
    assert "its stored detections have" not in caplog.text
    scratch, method = (resolver.chain(arm, resolver.comparison.cells[0]) for arm in ARMS)
    (scratch[0].folder / "evaluation" / "coco_results.json").write_text("[]")
    method[0].product.unlink()  # its own fine-tuning is still there
    analysis = write_page(resolver, tmp_path, command="", leakage=False)
    assert analysis.results.missing == 1
    assert not any(run.arm == "method" for run in analysis.results.runs)
    assert f"{scratch[0].name} reported AP" in caplog.text
    assert "its stored detections have 0.00" in caplog.text


def test_plan_counts_and_estimates(tmp_path: Path, scenes: Path) -> None:
    resolver = resolver_for(
        tmp_path, f"data.train.source={scenes}", "comparison.seeds=1", "updates.pretrain=200"
    )
    text = plan_text(plan(resolver), jobs=2)
    assert "8 stages, 0 done; left: 8 stages, 1300 updates" in text
    assert "core-hours" not in text  # nothing is known
    run(resolver, jobs=2)
    planned = plan(resolver)
    assert all(stage.finished for stage in planned)
    assert "left: 0 stages, 0 updates" in plan_text(planned, jobs=2)
    more = resolver_for(tmp_path, f"data.train.source={scenes}", "comparison.seeds=2")
    assert "core-hours" in plan_text(plan(more), jobs=2)  # measured on what has finished


def test_a_failing_stage_keeps_back_its_arms_only(tmp_path: Path, scenes: Path) -> None:
    (tmp_path / "stages").mkdir()
    resolver = resolver_for(tmp_path, f"data.train.source={scenes}", "comparison.seeds=1")
    store = next(p.stage for p in plan(resolver) if p.stage.name.startswith("pseudo_labels"))
    store.folder.write_text("a file where a folder should be")
    with pytest.raises(StageFailed, match="FileExistsError"):
        run(resolver, jobs=1)
    found = write_page(resolver, tmp_path, command="the command", leakage=False)
    assert {run.arm for run in found.results.runs} == {"scratch", "scratch_200", "teacher_200"}
    assert found.results.missing == 2


def test_leaked_test_images_are_on_the_page(tmp_path: Path, scenes: Path) -> None:
    leaky = tmp_path / "scenes"
    shutil.copytree(scenes, leaky)
    name = "instances_{}.json".format
    test = json.loads((leaky / "annotations" / name("test")).read_text())
    train = json.loads((leaky / "annotations" / name("train")).read_text())
    sources = sorted((leaky / "test").iterdir()), sorted((leaky / "train").iterdir())
    assert len(test["images"]) == len(sources[0])
    shutil.copy(sources[0][3], sources[1][5])
    assert train["images"]
    overrides = (f"data.train.source={leaky}", "comparison.seeds=1")
    analysis = run_and_report(tmp_path / "out", *overrides)
    assert {copy.set_name for copy in analysis.leakage.copies} == {"train", "unlabeled"}
    assert "1 of 30 test images are also" in (tmp_path / "out" / "comparison.md").read_text()
    kept = (tmp_path / "out" / "leakage.json").read_text()
    assert run_and_report(tmp_path / "out", *overrides).leakage == analysis.leakage
    assert (tmp_path / "out" / "leakage.json").read_text() == kept
    assert page_blocks(analysis)


def test_copies_are_looked_for_again_when_data_change(tmp_path: Path, scenes: Path) -> None:
    other = tmp_path / "other"
    make_scenes(other, num_images=3, image_size=64, num_classes=2, seed=9, split="train")
    source = f"data.train.source={scenes}"
    for overrides, searched in (((), 20), ((f"data.unlabeled.source={other}",), 3)):
        report = check_leakage(resolver_for(tmp_path / "out", source, *overrides))
        assert report.searched == {"train": 20, "unlabeled": searched}


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    """Processes that this one started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has just ended
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found
