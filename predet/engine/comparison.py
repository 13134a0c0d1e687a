"""A comparison as a config: arms, label budgets, seeds and one test set.

    comparison  title; labels: label budgets (whole numbers of images, or fractions, or "all");
                seeds: their number, each draws its own labelled images, the same for all arms;
                matters: the smallest gain in AP that would be worth it (default 1)
    data        train (labelled pool), unlabeled, test, and other unlabelled images that stages are
                on: `source`, `split`, `image_root` of each
    stages      name -> `Training`; boxes: `PseudoLabels`, `Proposals`, `Filtered`, `Clusters`;
                `Checkpoint`
    arms        name -> chain of stage names; each training starts from the one before
    controls    `Controls`: what the built-in controls are made of
    titles      of arms, by name
    timing      seconds of one core that `--plan` expects: of an update, by the stem of the training
                config's name; of a whole run for what makes boxes: "pseudo_labels", "proposals",
                "filtered", "clusters"
    budgets     name -> values of other keys, taken by `tools/compare.py --budget NAME`

Other sections hold what these refer to, for example `updates` for "${updates.finetune}".

A stage becomes a command in a folder whose name holds a hash of all that decides its outcome: the
resolved config, the data, and the hashes of the stages that it builds on. So arms share what they
have in common, a changed comparison runs only what changed, and folders never mix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import filter as matching
from pathlib import Path
from typing import Any, NamedTuple, get_args

from predet.d2 import instantiate
from predet.engine.config import load_config
from predet.engine.config_text import as_overrides, resolve
from predet.evaluation.comparison import Arm

REFERENCE = "stage:"  # before the name of a stage, as a value in `Training.set`
STORE = "data.store"  # the key of the boxes in a pre-training config
REQUIRED = ("comparison", "data", "stages", "arms")


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run of the training command.

    Args:
        config: the training config.
        on: "train" (the labelled images that the seed draws; evaluated on the test set), or the
            section of `data` that is `data.unlabeled` to the config.
        updates: optimiser steps.
        set: other config keys with their values. "stage:NAME" stands for what that stage made.
        seed: None takes the comparison's; a number makes one run serve all seeds.
    """

    config: str
    on: str
    updates: int
    set: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.on == "test":
            raise ValueError("a training is on 'train' or on unlabelled images, got 'test'")
        if isinstance(self.updates, bool) or not isinstance(self.updates, int) or self.updates < 4:
            raise ValueError(f"updates must be a whole number of at least 4, got {self.updates!r}")


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """Boxes of a teacher, by tools/pseudo_label.py.

    Args:
        teacher: the stage that trained it.
        on: section of `data` whose images are labelled.
        options: more options of the tool, for example `{"keep": 100}`.
    """

    teacher: str
    on: str = "unlabeled"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """Boxes of Selective Search, by tools/extract_proposals.py; made once for all seeds."""

    on: str = "unlabeled"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Filtered:
    """What filters leave of the boxes of another stage, by tools/box_store.py filter.

    Args:
        boxes: that stage.
        options: of the tool, for example `{"nms": 0.5, "relative": [0.02, 0.9]}`.
    """

    boxes: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """The boxes of another stage with clusters as classes, by tools/cluster_regions.py.

    Args:
        boxes: that stage.
        backbone: the training whose backbone describes them.
        on: section of `data` whose images they are of.
        options: more options of the tool, for example `{"clusters": 64}`.
    """

    boxes: str
    backbone: str
    on: str = "unlabeled"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights that are given as a file, for example of a detector trained on COCO.

    Args:
        path: the file.
        config: the config that they were trained with, for stages that run them; None takes the
            `config.resolved.py` of the run that wrote the file.
    """

    path: str
    config: str | None = None


BoxStage = PseudoLabels | Proposals | Filtered | Clusters
StageConfig = Training | BoxStage | Checkpoint


class LabelBudget(NamedTuple):
    """How many labelled images: a number, or a fraction of the pool; both None: all."""

    number: int | None
    fraction: float | None

    @classmethod
    def parse(cls, value: Any) -> LabelBudget:
        if value in ("all", None):
            return cls(None, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return cls(value, None)
        if isinstance(value, float) and 0 < value <= 1:
            return cls(None, value)
        raise ValueError(
            f"labels: expected a number of images, a fraction in (0, 1] or 'all', got {value!r}"
        )

    def __str__(self) -> str:
        if self.number is not None:
            return f"{self.number} labelled images"
        return f"{100 * self.fraction:g}% of the labels" if self.fraction else "all labels"


class Cell(NamedTuple):
    """One label budget and seed."""

    labels: LabelBudget
    seed: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison config says; see the module's docstring."""

    title: str
    data: Mapping[str, Mapping[str, Any]]
    stages: Mapping[str, StageConfig]
    arms: Mapping[str, tuple[str, ...]]  # the user's and the controls
    compared: tuple[Arm, ...]
    labels: tuple[LabelBudget, ...]
    seeds: int
    matters: float
    timing: Mapping[str, float]

    @property
    def cells(self) -> list[Cell]:
        return [Cell(labels, seed) for labels in self.labels for seed in range(self.seeds)]


def load_comparison(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    budget: str | None = None,
    arms: Sequence[str] = ("*",),
) -> Comparison:
    """Read a comparison config.

    Args:
        path: the config.
        overrides: of the command line; they go over those of the budget.
        budget: one of the config's.
        arms: patterns of names, as of files in a shell. Arms that match none are left out, but for
            the controls of those that match.

    Raises:
        ValueError: something is missing or unknown, or stages do not fit together; what and where
            is in the message.
    """
    cfg = load_config(path)
    missing = [key for key in REQUIRED if key not in cfg]
    if missing:
        raise ValueError(f"{path} is no comparison: it has no {', '.join(missing)}")
    budgets = cfg.get("budgets") or {}
    if budget is not None and budget not in budgets:
        raise ValueError(f"{path} has no budget '{budget}', it has: {', '.join(budgets) or 'none'}")
    values = budgets[budget] if budget is not None else {}
    content = resolve(load_config(path, [*as_overrides(values), *overrides]))
    return _with_arms(parse_comparison(content), arms)


def parse_comparison(content: Mapping[str, Any]) -> Comparison:
    """The comparison that a resolved config describes, with its controls added."""
    stages = {name: _stage(name, node) for name, node in content["stages"].items()}
    for name, stage in stages.items():
        unknown = [other for other in references(stage) if other not in stages]
        if unknown:
            raise ValueError(f"stages.{name} refers to '{unknown[0]}', which is not among stages")
    arms = {name: tuple(chain) for name, chain in content["arms"].items()}
    for name, chain in arms.items():
        _check_chain(f"arms.{name}", chain, stages)
    settings = content["comparison"]
    seeds = settings.get("seeds")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"comparison.seeds must be a whole number of at least 1, got {seeds!r}")
    controls = instantiate(content["controls"]) if "controls" in content else Controls()
    compared = controls.add_to(stages, arms, content.get("titles") or {})
    return Comparison(
        title=str(settings.get("title") or "Comparison"),
        data=content["data"],
        stages=stages,
        arms=arms,
        compared=compared,
        labels=tuple(LabelBudget.parse(value) for value in settings.get("labels") or ()),
        seeds=seeds,
        matters=float(settings.get("matters", 1.0)),
        timing=content.get("timing") or {},
    )


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What the built-in controls are made of.

    Args:
        scratch: the stage that trains from scratch on the labels; fine-tuning as well, usually.
        scratch_of: arms whose detector is another one, with the stage that is `scratch` for them.
        teacher: the stage whose further training is control (c) of arms that have no teacher of
            their own and are not in `scratch_of`; None takes `scratch`.
        shuffled: arms that are also run with the boxes of other images.
        checkpoint: weights to fine-tune in the same way, or None for no such arm.
    """

    scratch: str = "finetune"
    scratch_of: Mapping[str, str] = field(default_factory=dict)
    teacher: str | None = None
    shuffled: Sequence[str] = ()
    checkpoint: str | None = None

    def add_to(
        self,
        stages: dict[str, StageConfig],
        arms: dict[str, tuple[str, ...]],
        titles: Mapping[str, str],
    ) -> tuple[Arm, ...]:
        """Add the stages and arms of the controls; returns who is compared with whom."""
        scratches = dict.fromkeys([self.scratch, *self.scratch_of.values()])
        wanted = [("scratch", stage) for stage in scratches] + [("teacher", self.teacher)]
        for key, stage in wanted:
            if stage is not None:
                _check_chain(f"controls.{key}", (stage,), stages)
        alone = {(stage,) for stage in scratches}
        candidates = [name for name, chain in arms.items() if chain not in alone]
        for key, given in (("shuffled", self.shuffled), ("scratch_of", self.scratch_of)):
            unknown = [name for name in given if name not in candidates]
            if unknown:
                what = "shuffle" if key == "shuffled" else "compare with another scratch"
                raise ValueError(f"controls.{key}: there is no arm '{unknown[0]}' to {what}")
        by_chain = {chain: name for name, chain in arms.items()}
        names = dict(titles)

        def arm(name: str, title: str, *chain: str) -> str:
            """The arm of this chain, added if it is not there."""
            if chain not in by_chain:
                arms[name], by_chain[chain] = chain, name
                names.setdefault(name, title)
            return by_chain[chain]

        found = {}
        for name in candidates:
            start = self.scratch_of.get(name, self.scratch)
            scratch = "scratch" if start == self.scratch else f"scratch_{start}"
            scratch = arm(scratch, scratch.replace("_", ", "), start)
            title = names.get(scratch, scratch)
            # What scratch starts from, a backbone, it has in its longer form too: that counts once.
            shared = feeding((start,), stages)[1:]
            fed = [stage for stage in feeding(arms[name], stages) if stage not in shared]
            total = sum(stage.updates for stage in fed)
            longer = f"{start}_{total}"
            stages[longer] = dataclasses.replace(stages[start], updates=total)
            of_this_detector = None if name in self.scratch_of else self.teacher
            teacher = teacher_of(arms[name], stages) or of_this_detector or start
            of_teacher = names.get(by_chain.get((teacher,), teacher), teacher)
            own = {
                "a": scratch,
                "b": arm(f"{scratch}_{total}", f"{title}, {total} updates", longer),
                "c": arm(
                    f"{teacher}_{total}", f"{of_teacher}, {total} more updates", teacher, longer
                ),
            }
            if name in self.shuffled:
                chain = _with_shuffled_boxes(name, arms[name], stages)
                own["d"] = arm(f"{name}_shuffled", f"{names.get(name, name)}, shuffled", *chain)
            if self.checkpoint:
                stages["checkpoint"] = Checkpoint(path=self.checkpoint)
                title = f"{Path(self.checkpoint).name}, fine-tuned"
                own["e"] = arm("checkpoint", title, "checkpoint", self.scratch)
            found[name] = own
        return tuple(Arm(name, names.get(name, name), found.get(name, {})) for name in arms)


def _with_arms(comparison: Comparison, patterns: Sequence[str]) -> Comparison:
    chosen: set[str] = set()
    for pattern in patterns:
        found = matching(comparison.arms, pattern)
        if not found:
            names = ", ".join(comparison.arms)
            raise ValueError(f"no arm's name matches '{pattern}'; there are {names}")
        chosen.update(found)
    # What is there as a control only is compared with nothing.
    compared = [
        arm if arm.name in chosen else arm._replace(controls={}) for arm in comparison.compared
    ]
    kept = chosen.union(*(arm.controls.values() for arm in compared))
    return dataclasses.replace(
        comparison,
        arms={name: chain for name, chain in comparison.arms.items() if name in kept},
        compared=tuple(arm for arm in compared if arm.name in kept),
    )


def references(stage: StageConfig) -> Iterator[str]:
    """Names of the stages that a stage builds on, apart from its chain."""
    if isinstance(stage, PseudoLabels):
        yield stage.teacher
    if isinstance(stage, (Filtered, Clusters)):
        yield stage.boxes
    if isinstance(stage, Clusters):
        yield stage.backbone
    if isinstance(stage, Training):
        for value in stage.set.values():
            if isinstance(value, str) and value.startswith(REFERENCE):
                yield value.removeprefix(REFERENCE)


def feeding(chain: Sequence[str], stages: Mapping[str, StageConfig]) -> list[Training]:
    """The trainings whose weights end up in an arm; a teacher gives boxes, no weights."""
    names = list(chain)
    for name in names:  # grows while it is read
        if isinstance(stages[name], Training):
            names += [other for other in references(stages[name]) if other not in names]
    found = (stages[name] for name in names)
    return [stage for stage in found if isinstance(stage, Training)]


def teacher_of(chain: Sequence[str], stages: Mapping[str, StageConfig]) -> str | None:
    """The stage whose boxes an arm pre-trains on, or None."""
    for name in chain:
        for other in references(stages[name]):
            boxes = stages[other]
            while isinstance(boxes, (Filtered, Clusters)):
                boxes = stages[boxes.boxes]
            if isinstance(boxes, PseudoLabels):
                return boxes.teacher
    return None


def _stage(name: str, node: Any) -> StageConfig:
    try:
        stage = instantiate(node)
    except TypeError as error:
        raise ValueError(f"stages.{name}: {error}") from error
    if not isinstance(stage, StageConfig):
        raise ValueError(
            f"stages.{name}: expected one of "
            f"{', '.join(kind.__name__ for kind in get_args(StageConfig))}, got {stage!r}"
        )
    return stage


def _check_chain(where: str, chain: Sequence[str], stages: Mapping[str, StageConfig]) -> None:
    for name in chain:
        if name not in stages:
            raise ValueError(f"{where}: there is no stage '{name}'; there are {', '.join(stages)}")
        if not isinstance(stages[name], (Training, Checkpoint)):
            raise ValueError(
                f"{where}: '{name}' makes no weights; boxes belong into `set` of the training "
                f'that reads them ("data.store": "{REFERENCE}{name}")'
            )
    last = stages[chain[-1]] if chain else None
    if not isinstance(last, Training) or last.on != "train":
        raise ValueError(f"{where}: the last stage must be a training on 'train', which evaluates")


def _boxes_of_other_images(stage: Training) -> dict[str, Any]:
    """What gives a training on a store the boxes of other images."""
    if "choices" in load_config(stage.config):  # boxes of any source, read image by image
        return {"dataloader.train.mapper.boxes": "${choices.boxes.other_regions}"}
    return {"data.selection.shuffle_seed": 0}


def _with_shuffled_boxes(
    name: str, chain: Sequence[str], stages: dict[str, StageConfig]
) -> tuple[str, ...]:
    """The chain with pre-training on the boxes of other images; adds the stages for it."""
    result = []
    for part in chain:
        stage = stages[part]
        if isinstance(stage, Training) and STORE in stage.set:
            part = f"{part}_shuffled"
            moved = {**stage.set, **_boxes_of_other_images(stage)}
            stages[part] = dataclasses.replace(stage, set=moved)
        result.append(part)
    if tuple(result) == tuple(chain):
        raise ValueError(f"controls.shuffled: arm '{name}' has no stage that reads boxes ({STORE})")
    return tuple(result)
