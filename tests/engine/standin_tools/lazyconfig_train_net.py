"""Stands in for training: writes what a run leaves, with detections of a quality that is planted.

A detector's quality grows with all updates that its weights have seen; one that has been
pre-trained is better by the environment variable GAIN. Every detection is right, so AP of a class
is the share of COCO's 101 recall steps that are reached.
"""

import json
import math
import os
import random
import sys
import time
from pathlib import Path

keys = dict(argument.split("=", 1) for argument in sys.argv if "=" in argument[1:])
output = Path(keys["train.output_dir"])
updates, seed = int(keys["train.max_iter"]), int(keys["train.seed"])
(output / "checkpoints").mkdir(parents=True, exist_ok=True)
with open(output / "runs.txt", "a") as file:
    file.write("x")
while "WAIT_FOR" in os.environ and not Path(os.environ["WAIT_FOR"]).exists():
    time.sleep(0.05)

state = {"updates": 0, "pretrained": False}
if "train.init_checkpoint" in keys:
    state = json.loads(Path(keys["train.init_checkpoint"]).read_text())
state["updates"] += updates
state["pretrained"] |= "data.unlabeled.source" in keys and "data.selection.shuffle_seed" not in keys
(output / "checkpoints" / "last.pth").write_text(json.dumps(state))
(output / "config.resolved.py").write_text("")


def detect(quality: float) -> tuple[list[dict], dict[str, float]]:
    truth = json.loads(
        Path(keys["data.test.source"], "annotations", "instances_test.json").read_text()
    )
    # The same places of luck for all runs, and a little of each run's own.
    shared, own = random.Random(0), random.Random(f"{seed} {output.name}")
    found, recall = [], {category["id"]: [] for category in truth["categories"]}
    for annotation in truth["annotations"]:
        hit = 0.8 * shared.random() + 0.2 * own.random() < quality
        recall[annotation["category_id"]].append(hit)
        if hit:
            row = {name: annotation[name] for name in ("image_id", "category_id", "bbox")}
            found.append({**row, "score": own.random()})
    names = {category["id"]: category["name"] for category in truth["categories"]}
    by_class = {
        f"AP/{names[key]}": 100 * (math.floor(100 * sum(hits) / len(hits)) + 1) / 101
        for key, hits in recall.items()
        if hits
    }
    total = sum(by_class.values()) / len(by_class)
    return found, {
        **dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm"), total),
        "APl": None,
        **by_class,
    }


if "data.train.source" in keys:
    level = 0.25 + 0.0008 * state["updates"] + 0.02 * random.Random(seed).random()
    level += float(os.environ.get("GAIN", 0)) if state["pretrained"] else 0
    with open(output / "metrics.jsonl", "w") as file:
        for part in (0.25, 0.5, 0.75, 1.0):
            found, results = detect(level * (0.6 + 0.4 * part))
            file.write(json.dumps({"step": round(part * updates), **results}) + "\n")
    folder = Path(keys["dataloader.evaluator.output_dir"])
    folder.mkdir(exist_ok=True)
    (folder / "coco_results.json").write_text(json.dumps(found))
    summary = {"step": updates, "results": results}
else:
    summary = {"step": updates, "results": {}}
(output / "results.json").write_text(json.dumps(summary))
