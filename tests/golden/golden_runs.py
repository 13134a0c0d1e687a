"""Twenty steps of each tiny config, at reduced width: the whole way from files to weights.

Record anew, after a change that is meant to move losses (say why in the commit):

    python tests/golden/golden_runs.py [CONFIG ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from predet.d2 import LazyCall, instantiate
from predet.data.scenes import make_scenes
from predet.data.sources import load_images
from predet.engine import TrainSettings, load_config
from predet.engine.build import build_model, build_optimizer, fill_classes
from predet.engine.step import OptimizerStep
from predet.engine.stopping import StopRequest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
CONFIGS = sorted(
    path.stem
    for path in (ROOT / "configs/tiny").glob("*.py")
    if path.stem != "__init__"
    and not path.stem.startswith("compare")  # these train nothing
    and not path.stem.endswith("_store")  # need a store; they train as the ones that search
)
STEPS = 20
# Fresh weights put sampling points on the borders of pixels, where gradients jump with the last bit
# of a float; noise takes them away, and a low learning rate keeps rounding from growing.
LEARNING_RATE_FACTOR = 0.01
# What makes a run small, wherever a config has a key of this name.
SMALL = {
    "hidden_dim": 32,
    "ffn_dim": 64,
    "num_encoder_layers": 1,
    "num_heads": 4,
    "num_queries": 12,
    "num_one_to_many": 36,
    "short_sides": [48, 64],
    "max_size": 80,
    "crop_short_sides": [64],
    "crop_size": [40, 60],
    "roi_samples": 512,  # all there are: a draw of some would turn a bit of rounding into others
    "total_batch_size": 2,
    "num_workers": 0,
    "allow_random": True,
    "k": 5,
}


def golden_path(config: str) -> Path:
    return HERE / f"{config}.json"


def run(config: str, folder: Path) -> dict[str, Any]:
    """Losses of configs/tiny/CONFIG.py and the norm of its first gradient; `folder` is empty."""
    scenes = folder / "scenes"
    make_scenes(scenes, num_images=12, image_size=64, num_classes=3, seed=0)
    cfg = load_config(ROOT / f"configs/tiny/{config}.py", [])
    OmegaConf.set_struct(cfg, False)
    for section in (cfg.model, cfg.dataloader):
        _shrink(section)
    cfg.dataloader.train.dataset = LazyCall(load_images)(source=str(scenes), split=None)
    cfg.train.update(output_dir=str(folder / "run"), max_iter=STEPS, device="cpu")
    cfg.optimizer.lr *= LEARNING_RATE_FACTOR
    settings = TrainSettings.from_config(cfg.train)
    loader = instantiate(cfg.dataloader.train)
    fill_classes(cfg, loader.dataset)
    model = build_model(cfg, settings, torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    steps = OptimizerStep(
        model=model,
        optimizer=build_optimizer(cfg, model),
        schedule=instantiate(cfg.lr_multiplier),
        settings=settings,
        stop=StopRequest(),
    )
    steps.wrap()
    batches = loader.batches(0)
    losses, first_gradient = [], 0.0
    for step, batch in zip(range(STEPS), batches, strict=False):
        result = steps.run(step, [batch])
        losses.append(float(result.losses["loss"]))
        first_gradient = first_gradient or float(result.grad_norm)
    batches.close()
    return {"losses": losses, "first_gradient": first_gradient}


def record(config: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = run(config, Path(folder))
    content = {"config": config, "torch": str(torch.__version__), **found}
    golden_path(config).write_text(json.dumps(content, indent=1) + "\n")


def _shrink(node: DictConfig) -> None:
    for key in list(node):
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _shrink(child)
        elif key in SMALL:
            node[key] = SMALL[key]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CONFIGS:
        record(name)
