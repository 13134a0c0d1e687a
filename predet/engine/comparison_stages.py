"""The stages of a comparison as commands, in folders named by a hash of what decides them."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from predet.data.dataset import DetectionDataset
from predet.data.sources import load_images
from predet.engine.comparison import (
    REFERENCE,
    BoxStage,
    Cell,
    Checkpoint,
    Clusters,
    Comparison,
    Filtered,
    Proposals,
    PseudoLabels,
    StageConfig,
    Training,
    references,
)
from predet.engine.config import find_config, load_config, override_config
from predet.engine.config_text import as_overrides, flatten
from predet.engine.inference import sha256_of
from predet.engine.provenance import changes_the_result, describe_dataset
from predet.engine.stages import Stage
from predet.version import __version__

START = REFERENCE  # stands for the stage before in the chain; no stage has an empty name
EVALUATIONS = 4  # during a training on labels, evenly spaced; the last is at its end
# How a training is evaluated, but for where the files go and who reads the images.
_EVALUATION = re.compile(r"dataloader\.(test|evaluator)\.(?!output_dir$|num_workers$).+")

# Of each stage that makes boxes: the kind of its folder, its tool, and what comes first.
_BOX_TOOLS: dict[type, tuple[str, ...]] = {
    PseudoLabels: ("pseudo_labels", "pseudo_label.py"),
    Proposals: ("proposals", "extract_proposals.py"),
    Filtered: ("filtered", "box_store.py", "filter"),
    Clusters: ("clusters", "cluster_regions.py"),
}


# Their options by the keys of a section of `data`.
_IMAGES_OF_TOOLS = {
    "source": "images",
    "split": "split",
    "image_root": "image-root",
    "format": "format",
}


class Resolved(NamedTuple):
    """A stage with nothing left open."""

    name: str  # KIND-HASH: of its folder and its records
    config: StageConfig
    folder: Path
    weights: Path | None  # what a chain goes on with
    product: Path
    command: tuple[str, ...] | None  # None: there is nothing to run
    needs: tuple[str, ...]
    labels: str  # the label budget, "" where labels play no part
    seed: int | None

    @property
    def resolved_config(self) -> Path:
        """The config that its weights were trained with.

        Raises:
            ValueError: a given checkpoint has none.
        """
        if not isinstance(self.config, Checkpoint):
            return self.folder / "config.resolved.py"
        given = self.config.config
        # As a run leaves them: OUTPUT/checkpoints/last.pth and OUTPUT/config.resolved.py.
        path = Path(given) if given else self.folder.parent / "config.resolved.py"
        if not path.is_file():
            raise ValueError(
                f"checkpoint {self.weights}: the config that it was trained with is needed, and "
                f"there is no {path}: Checkpoint(path=..., config=...)"
            )
        return path

    def stage(self) -> Stage:
        assert self.command is not None
        return Stage(self.name, self.command, self.product, self.needs, identity=self.name)


class StageResolver:
    """Turns the chains of a comparison into `Resolved` stages, each one once.

    Args:
        comparison: what to resolve.
        output: stages lie in `output/stages`.
        tools: folder of the commands.
        num_gpus: for the commands; 0 is the CPU.
    """

    def __init__(self, comparison: Comparison, *, output: Path, tools: Path, num_gpus: int) -> None:
        self.comparison, self.tools, self.num_gpus = comparison, tools, num_gpus
        self.folder = output / "stages"
        self.stages: dict[str, Resolved] = {}  # in an order in which they can be run
        self._datasets: dict[str, DetectionDataset] = {}
        self._fingerprints: dict[str, str] = {}
        self._files: dict[str, str] = {}
        self._configs: dict[str, DictConfig] = {}
        self._known: dict[tuple[str, str, Cell], Resolved] = {}

    def chain(self, arm: str, cell: Cell) -> list[Resolved]:
        """The stages of an arm's chain for one label budget and seed."""
        found: list[Resolved] = []
        for name in self.comparison.arms[arm]:
            found.append(self._resolve(name, cell, found[-1] if found else None))
        return found

    def closure(self, chain: list[Resolved]) -> list[Resolved]:
        """The chain and everything that it builds on."""
        names = [stage.name for stage in chain]
        for name in names:  # grows while it is read
            names += [need for need in self.stages[name].needs if need not in names]
        return [stage for name, stage in self.stages.items() if name in names]

    def dataset(self, section: str) -> DetectionDataset:
        """The data set of a section of `data`.

        Raises:
            ValueError: there is no such section.
        """
        if section not in self._datasets:
            if section not in self.comparison.data:
                raise ValueError(
                    f"the comparison has no data.{section}; it has "
                    + ", ".join(f"data.{name}" for name in self.comparison.data)
                )
            self._datasets[section] = load_images(**self.comparison.data[section])
        return self._datasets[section]

    def fingerprint(self, section: str) -> str:
        if section not in self._fingerprints:
            self._fingerprints[section] = describe_dataset(self.dataset(section))["fingerprint"]
        return self._fingerprints[section]

    def _resolve(self, name: str, cell: Cell, start: Resolved | None = None) -> Resolved:
        key = (name, start.name if start else "", cell)
        if key not in self._known:
            stage = self.comparison.stages[name]
            if isinstance(stage, Training):
                found = self._training(stage, cell, start)
            elif isinstance(stage, Checkpoint):
                found = self._checkpoint(name, stage)
            else:
                found = self._boxes(stage, cell)
            self._known[key] = found
            self.stages.setdefault(found.name, found)
        return self._known[key]

    def _training(self, stage: Training, cell: Cell, start: Resolved | None) -> Resolved:
        inputs = {
            value: self._resolve(value.removeprefix(REFERENCE), cell)
            for value in stage.set.values()
            if isinstance(value, str) and value.startswith(REFERENCE)
        }
        if start is not None:
            inputs[START] = start
        seed = cell.seed if stage.seed is None else stage.seed
        keys: dict[str, Any] = {"train.max_iter": stage.updates, "train.seed": seed}
        if start is not None:
            keys |= {"train.init_checkpoint": START, "train.reinit": "auto"}
        keys |= stage.set
        # The same keys twice: with names that stay, for the hash, and with paths, for the command.
        names = {value: f"stage/{found.name}" for value, found in inputs.items()}
        names |= self._contents(stage.set)
        labels = _label_keys(cell) if stage.on == "train" else {}
        # Sections of the training config, with those of the comparison that they are.
        own = {"train": "train", "test": "test"} if stage.on == "train" else {"unlabeled": stage.on}
        identity = {
            **{f"data.{part}.source": f"data/{self.fingerprint(own[part])}" for part in own},
            **labels,
            **{key: _replaced(value, names) for key, value in keys.items()},
        }
        cfg = override_config(self._config(stage.config), as_overrides(identity))
        items = {k: v for k, v in flatten(cfg).items() if _decides(k, stage)}
        folder = self._folder(Path(stage.config).stem, items)
        paths = {value: str(_made(found)) for value, found in inputs.items()}
        period = -(-stage.updates // EVALUATIONS)
        run = {
            **{f"data.{part}.{k}": v for part in own for k, v in self._data(own[part]).items()},
            **labels,
            **{key: _replaced(value, paths) for key, value in keys.items()},
            "train.output_dir": str(folder),
            "train.checkpoint_period": period,
        }
        if stage.on == "train":
            run |= {
                "train.eval_period": period,
                "dataloader.evaluator.output_dir": str(folder / "evaluation"),
            }
        command = self._tool(
            "lazyconfig_train_net.py",
            *("--config-file", str(find_config(stage.config)), "--num-gpus", str(self.num_gpus)),
            *("--resume", *as_overrides(run)),
        )
        depends = stage.on == "train" or any(found.labels for found in inputs.values())
        return Resolved(
            name=folder.name,
            config=stage,
            folder=folder,
            weights=folder / "checkpoints" / "last.pth",
            product=folder / "results.json",
            command=command,
            needs=tuple(found.name for found in inputs.values() if found.command is not None),
            labels=str(cell.labels) if depends else "",
            seed=seed,
        )

    def _contents(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Those of the values that are files, for example given weights, by what is in them."""
        for value in values.values():
            if isinstance(value, str) and value not in self._files and Path(value).is_file():
                self._files[value] = f"file/{sha256_of(value)[:12]}"
        return self._files

    def _config(self, path: str) -> DictConfig:
        """A copy of a training config, which is read once."""
        if path not in self._configs:
            self._configs[path] = load_config(path)
        return copy.deepcopy(self._configs[path])

    def _boxes(self, stage: BoxStage, cell: Cell) -> Resolved:
        made = {name: self._resolve(name, cell) for name in references(stage)}
        kind, tool, *first = _BOX_TOOLS[type(stage)]
        content: dict[str, Any] = {"options": dict(stage.options)}
        options: dict[str, Any] = {}
        if not isinstance(stage, Filtered):
            source = self.comparison.data.get(stage.on) or {}
            content["images"] = self.fingerprint(stage.on)
            left = [key for key in source if key not in _IMAGES_OF_TOOLS]
            if left:
                raise ValueError(
                    f"data.{stage.on}.{left[0]}: tools that make boxes take only "
                    f"{', '.join(_IMAGES_OF_TOOLS)} of a section"
                )
            options = {option: source.get(key) for key, option in _IMAGES_OF_TOOLS.items()}
        for role in ("teacher", "backbone", "boxes"):
            name = getattr(stage, role, None)
            if name is not None:
                content[role] = made[name].name
            if role == "boxes" and name is not None:
                first.append(str(made[name].folder))
            elif name is not None:
                options["config-file"] = made[name].resolved_config
                options["weights"] = made[name].weights
                if isinstance(made[name].config, Checkpoint):
                    content[f"{role}_config"] = sha256_of(made[name].resolved_config)
        folder = self._folder(kind, content)
        options |= {"output": folder, **{k.replace("_", "-"): v for k, v in stage.options.items()}}
        if isinstance(stage, PseudoLabels):
            options["num-gpus"] = self.num_gpus
        # The report is the last that is written about pseudo-labels; of other boxes there is none.
        product = folder / ("report.json" if isinstance(stage, PseudoLabels) else "meta.json")
        return Resolved(
            name=folder.name,
            config=stage,
            folder=folder,
            weights=None,
            product=product,
            command=self._tool(tool, *first, *_arguments(options)),
            needs=tuple(found.name for found in made.values() if found.command is not None),
            labels=next((found.labels for found in made.values() if found.labels), ""),
            seed=next((found.seed for found in made.values() if found.seed is not None), None),
        )

    def _checkpoint(self, name: str, stage: Checkpoint) -> Resolved:
        path = Path(stage.path)
        if not path.is_file():
            raise ValueError(f"stages.{name}: there is no checkpoint {path}")
        full_name = f"{name}-{sha256_of(path)[:12]}"
        return Resolved(full_name, stage, path.parent, path, path, None, (), "", None)

    def _data(self, section: str) -> dict[str, Any]:
        """All its keys: what the comparison leaves out must not be the training config's."""
        return {"split": None, "image_root": None, **self.comparison.data[section]}

    def _folder(self, kind: str, content: Mapping[str, Any]) -> Path:
        """The kind is not the name in the comparison: stages of two names may be the same."""
        text = json.dumps([kind, __version__, content], sort_keys=True, default=str)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _tool(self, name: str, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, str(self.tools / name), *arguments)


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Options of a tool; one with several values comes as several words."""
    given: list[str] = []
    for name, value in options.items():
        if isinstance(value, (list, tuple)):
            given += [f"--{name}", *map(str, value)]
        elif value is not None:
            given.append(f"--{name}={value}")
    return given


def _replaced(value: Any, made: Mapping[str, str]) -> Any:
    return made.get(value, value) if isinstance(value, str) else value


def _decides(key: str, stage: Training) -> bool:
    """Whether a stage is another one with another value of this key of its config.

    AP is a product of trainings on labels, too, so theirs are how they are evaluated.
    """
    return changes_the_result(key) or (stage.on == "train" and bool(_EVALUATION.fullmatch(key)))


def _label_keys(cell: Cell) -> dict[str, Any]:
    return {
        "data.train.seed": cell.seed,
        "data.train.num_images": cell.labels.number,
        "data.train.fraction": cell.labels.fraction,
    }


def _made(stage: Resolved) -> Path:
    """What other stages read of a stage: its weights, or its boxes."""
    return stage.weights or stage.folder
