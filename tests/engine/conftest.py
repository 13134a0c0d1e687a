from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the stand-ins are imported by processes under test as well
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")])
)


@pytest.fixture
def tiny_config() -> str:
    return str(HERE / "tiny_config.py")


@pytest.fixture
def load_tiny(tiny_config: str, tmp_path: Path) -> Callable[..., DictConfig]:
    """`load_tiny("a=1", ...)`: the tiny config with overrides, its output below `tmp_path`."""
    from predet.engine import load_config

    def load(*overrides: str, output: str = "run") -> DictConfig:
        return load_config(tiny_config, [f"train.output_dir={tmp_path / output}", *overrides])

    return load


@pytest.fixture
def run_tiny(load_tiny: Callable[..., DictConfig]) -> Callable[..., dict[str, float]]:
    """`run_tiny("a=1", ..., resume=True)`: train in this process, the config's model or another."""
    from predet.engine.settings import TrainSettings
    from predet.engine.stopping import StopRequest
    from predet.engine.train_net import train

    def run(
        *overrides: str, output: str = "run", resume: bool = False, model: DictConfig | None = None
    ) -> dict[str, float]:
        cfg = load_tiny(*overrides, output=output)
        if model is not None:
            cfg.model = model
        settings = TrainSettings.from_config(cfg.train)
        return train(cfg, settings, num_gpus=0, resume=resume, stop=StopRequest())

    return run


@pytest.fixture(autouse=True)
def _restore_logging():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
