#!/usr/bin/env python
"""Pictures of what goes in and what comes out, as PNG files.

tools/visualize.py detections --config-file C --weights [NAME=]FILE --output out.png [key=value ...]
    annotations and detections side by side, a panel for each --weights; images of the config's
    test set, or of --images and --split
tools/visualize.py store --store STORE --images DIR [--split S] --output out.png
    the boxes of a box store: pseudo-labels, region proposals, imported boxes
tools/visualize.py patches --config-file C --weights FILE --output out.png [key=value ...]
    patches of held-out images and where a UP-DETR model found them (Figure 5 of UP-DETR)
tools/visualize.py queries --config-file C --weights [NAME=]FILE --output out.png [key=value ...]
    where the boxes of single queries fall, over many images (Figure 4 of DETReg)
tools/visualize.py gradients --config-file C --weights FILE --output out.png [key=value ...]
    which pixels move the best box and embedding of a pre-training model (Figure 5 of DETReg)
tools/visualize.py batch --config-file C --output out.png [key=value ...]
    what training sees: the first images of the train loader after augmentation, with targets
tools/visualize.py curves [NAME=]RUN ... --output out.png
    losses and AP of one or several runs (their output folders), drawn over each other
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from predet.checkpoint import read_checkpoint
from predet.d2 import instantiate
from predet.data.box_store import BoxRow, BoxStore
from predet.data.dataset import DetectionDataset
from predet.data.formats import load_dataset
from predet.data.images import BadSampleError
from predet.data.pseudo_labels import DEFAULT_TOP_K
from predet.data.sampling import test_rng
from predet.engine.command_line import MixedParser, add_test_time_size, errors_in_one_line
from predet.engine.config import load_config
from predet.engine.inference import (
    inference_mapper,
    load_method,
    load_trained,
    trained_classes,
)
from predet.engine.log import setup_logging
from predet.pretext.pixel_gradients import pixel_gradients
from predet.projects.up_detr import cut_patches
from predet.visualize import (
    GradientPicture,
    Panel,
    PatchPicture,
    comparison,
    contact_sheet,
    draw_detections,
    draw_gradients,
    draw_patches,
    draw_queries,
    learning_curves,
    save_png,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    print(args.draw(args))


def detections(args: argparse.Namespace) -> Path:
    """Annotations beside the detections of one or several checkpoints of one config."""
    cfg = load_config(args.config_file, args.opts)
    dataset = _test_set(args, cfg)
    mapper = inference_mapper(cfg, short_side=args.short_side, max_side=args.max_side)
    indices = _draw(dataset, args)
    found: dict[str, dict[str, BoxRow]] = {}
    names: tuple[str, ...] = ()
    for heading, file in _all_named(args.weights, default="detections").items():
        state = read_checkpoint(file)
        known = trained_classes(cfg, state)
        if names and known != names:
            raise ValueError(
                f"{file} was trained on {list(known)}, the one before on {list(names)}"
            )
        names = known
        detector = load_trained(cfg, state, DEVICE, source=file)
        found[heading] = _detect(detector, dataset, indices, mapper)
    return draw_detections(
        args.output,
        dataset=dataset,
        indices=indices,
        predictions=found,
        class_names=names,
        score_threshold=args.score_threshold,
        top_k=args.top_k or None,
        title=args.title,
        columns=args.columns,
    )


@torch.no_grad()
def _detect(
    detector: torch.nn.Module, dataset: DetectionDataset, indices: Sequence[int], mapper: Any
) -> dict[str, BoxRow]:
    rows = {}
    for record in (dataset[index] for index in indices):
        try:
            sample = mapper(record, test_rng(record.image_id))
        except BadSampleError:
            continue
        found = detector([sample])[0]["instances"].to("cpu")
        rows[record.key] = BoxRow(
            record.key,
            sample["height"],
            sample["width"],
            found.pred_boxes.tensor.numpy(),
            found.scores.numpy(),
            found.pred_classes.numpy(),
        )
    return rows


def store(args: argparse.Namespace) -> Path:
    """The boxes of a store on their images; by default those that are used for training."""
    boxes = BoxStore(args.store, allow_partial=True)
    dataset = _dataset(args)
    held = [index for index in range(len(dataset)) if dataset.key(index) in boxes]
    if not held:
        raise ValueError(
            f"box store {args.store} holds none of the images of {args.images}: it has "
            f"'{next(iter(boxes.keys), 'nothing')}', the images are '{dataset.key(0)}', ..."
        )
    dataset = dataset.select(held)
    asked = {"top_k": args.top_k, "score_threshold": args.score_threshold}
    chosen = {
        "top_k": DEFAULT_TOP_K,
        "score_threshold": 0.0,
        **(boxes.meta["selection"] or {}),
        **{name: value for name, value in asked.items() if value is not None},
    }
    return draw_detections(
        args.output,
        dataset=dataset,
        indices=_draw(dataset, args),
        predictions={boxes.meta["method"]: boxes},
        class_names=boxes.class_names or ("object",),
        score_threshold=chosen["score_threshold"],
        top_k=chosen["top_k"] or None,
        title=args.title,
        columns=args.columns,
    )


def patches(args: argparse.Namespace) -> Path:
    """Patches of held-out images, where they were cut and where a UP-DETR model found them."""
    cfg = load_config(args.config_file, args.opts)
    model, _ = load_method(cfg, read_checkpoint(args.weights), DEVICE, source=args.weights)
    if not hasattr(model, "localize"):
        raise ValueError(f"{args.config_file} has a {type(model).__name__}, which finds no patches")
    dataset = instantiate(cfg.dataloader.test.dataset)
    drawn = cut_patches(
        dataset,
        instantiate(cfg.dataloader.test.mapper),
        seed=args.seed,
        num_images=args.num_images,
    )
    pictures = [
        PatchPicture(
            _to_pixels(sample["image"]),
            _to_pixels(sample["patches"]),
            sample["instances"].gt_boxes.tensor.numpy(),
            found.boxes.cpu().numpy(),
            found.scores.cpu().numpy(),
            sample["key"],
        )
        for samples in drawn
        for sample, found in zip(samples, model.localize(samples), strict=True)
    ]
    return draw_patches(
        args.output,
        pictures,
        score_threshold=args.score_threshold,
        title=args.title,
        columns=args.columns,
        width=args.width,
    )


@torch.no_grad()
def queries(args: argparse.Namespace) -> Path:
    """Where the boxes of single queries fall, a row for each checkpoint."""
    counts = len(args.config_file), len(args.weights)
    if counts[0] not in (1, counts[1]):
        raise ValueError(f"--config-file: one for all or one for each of --weights, got {counts}")
    configs = args.config_file * (counts[1] // counts[0])
    boxes, sizes = {}, None
    checkpoints = _all_named(args.weights, default=None)
    for config, (name, file) in zip(configs, checkpoints.items(), strict=True):
        cfg = load_config(config, args.opts)
        detector = load_trained(cfg, read_checkpoint(file), DEVICE, source=file)
        found = [detector.label([sample])[0] for sample in _test_samples(args, cfg)]
        boxes[name] = np.stack([f.pred_boxes.tensor.cpu().numpy() for f in found])
        own = [instances.image_size for instances in found]
        if sizes not in (None, own):
            raise ValueError(f"{config} has another test set than {configs[0]}: give --images")
        sizes = own
    return draw_queries(
        args.output, boxes, np.array(sizes), num_queries=args.num_queries, title=args.title
    )


def gradients(args: argparse.Namespace) -> Path:
    """Which pixels move the centre and the embedding of the most confident box of an image."""
    cfg = load_config(args.config_file, args.opts)
    model, _ = load_method(cfg, read_checkpoint(args.weights), DEVICE, source=args.weights)
    pictures = []
    for sample in _test_samples(args, cfg):
        found = pixel_gradients(model, sample, seed=args.seed)
        maps = {"x of the centre": found.x, "y of the centre": found.y}
        if found.embedding is not None:
            maps["embedding"] = found.embedding
        pictures.append(
            GradientPicture(
                _to_pixels(sample["image"]),
                found.box.numpy(),
                found.score,
                {heading: values.numpy() for heading, values in maps.items()},
                sample["key"],
            )
        )
    return draw_gradients(
        args.output, pictures, title=args.title, columns=args.columns, width=args.width
    )


def _test_samples(args: argparse.Namespace, cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """Images drawn from --images or the config's test set, at its test-time size."""
    dataset = _test_set(args, cfg)
    mapper = inference_mapper(cfg, short_side=args.short_side, max_side=args.max_side)
    for record in (dataset[index] for index in _draw(dataset, args)):
        try:
            yield mapper(record, test_rng(record.image_id))
        except BadSampleError:
            continue


def _to_pixels(images: torch.Tensor) -> np.ndarray:
    """(..., 3, H, W) uint8 -> (..., H, W, 3)."""
    return images.movedim(-3, -1).contiguous().numpy()


def batch(args: argparse.Namespace) -> Path:
    """The first images that training sees, augmented, with their targets; or all their views."""
    cfg = load_config(args.config_file, args.opts)
    with open_dict(cfg):
        cfg.dataloader.train.num_workers = 0
    loader = instantiate(cfg.dataloader.train)
    names = loader.dataset.class_names
    samples = itertools.chain.from_iterable(loader.batches(args.start_step))
    pictures = [
        comparison(image, [panel], class_names=names, title=sample["key"], panel_width=args.width)
        for sample in itertools.islice(samples, args.num_images)
        for image, panel in _seen(sample)
    ]
    sheet = contact_sheet(pictures, columns=args.columns, title=args.title, class_names=names)
    return save_png(args.output, sheet)


def _seen(sample: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, Panel]]:
    """What training sees of a sample: the image with its targets, or its views, which have none."""
    for number, view in enumerate(sample.get("views", [sample]), start=1):
        image = _to_pixels(view["image"])
        boxes, classes, what = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), f"view {number}"
        if "instances" in view:
            targets = view["instances"]
            boxes, classes = targets.gt_boxes.tensor.numpy(), targets.gt_classes.numpy()
            what = f"{len(targets)} targets"
        title = f"{what}, {image.shape[1]} x {image.shape[0]} pixels"
        yield image, Panel(title, boxes, classes)


def curves(args: argparse.Namespace) -> Path:
    """Learning curves of runs."""
    return learning_curves(_all_named(args.runs, default=None), args.output, title=args.title)


def _test_set(args: argparse.Namespace, cfg: DictConfig) -> DetectionDataset:
    if args.images:
        return _dataset(args)
    if OmegaConf.select(cfg, "dataloader.test.dataset") is None:
        raise ValueError("the config has no test set, dataloader.test.dataset: give --images")
    return instantiate(cfg.dataloader.test.dataset)


def _dataset(args: argparse.Namespace) -> DetectionDataset:
    return load_dataset(
        args.images, split=args.split, image_root=args.image_root, format=args.format
    )


def _draw(dataset: DetectionDataset, args: argparse.Namespace) -> list[int]:
    """Images drawn by seed, in the order of the data set."""
    count = min(args.num_images, len(dataset))
    return sorted(np.random.default_rng(args.seed).permutation(len(dataset))[:count].tolist())


def _all_named(texts: Sequence[str], default: str | None) -> dict[str, str]:
    """Places by name; see `_named`.

    Raises:
        ValueError: two have one name, so that one would be drawn over the other.
    """
    places: dict[str, str] = {}
    for text in texts:
        name, place = _named(text, default)
        if name in places:
            raise ValueError(f"{places[name]} and {place} are both called '{name}': write NAME=...")
        places[name] = place
    return places


def _named(text: str, default: str | None) -> tuple[str, str]:
    """ "NAME=PLACE" or "PLACE"; the name of the latter is `default`, or the place's own."""
    name, equals, place = text.partition("=")
    if equals and not Path(text).exists():
        return name, place
    return default or Path(text).resolve().name, text


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=MixedParser)

    def command(name: str, draw: Any, columns: int | None) -> Any:
        sub = commands.add_parser(name, help=draw.__doc__)
        sub.set_defaults(draw=draw)
        sub.add_argument("--output", required=True, metavar="PNG", help="picture to write")
        sub.add_argument("--title", default="", help="line above everything")
        if columns:
            sub.add_argument("--num-images", type=int, default=8, help="(default: 8)")
            sub.add_argument("--columns", type=int, default=columns, help="images in a row")
        return sub.add_argument

    def choice(add: Any) -> None:
        add("--split", help="split of the data set")
        add("--image-root", help="where a COCO file's names begin")
        add("--format", help="its format, if it should not be detected")
        add("--seed", type=int, default=0, help="draws the images (default: 0)")

    def selection(add: Any, threshold: float | None, default: str) -> None:
        choice(add)
        add("--score-threshold", type=float, default=threshold, help=f"(default: {default})")
        add("--top-k", type=int, help="the most boxes of an image, 0: all")

    add = command("detections", detections, columns=2)
    add("--config-file", required=True, metavar="FILE")
    add(
        "--weights",
        required=True,
        action="append",
        metavar="[NAME=]FILE",
        help="a checkpoint of this config; may be repeated",
    )
    add("--images", help="folder or data set (default: the config's test set)")
    add_test_time_size(add)
    selection(add, threshold=0.3, default="0.3")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")

    add = command("store", store, columns=2)
    add("--store", required=True, help="folder of the box store")
    add("--images", required=True, help="folder or data set that the store was made from")
    selection(add, threshold=None, default="the store's own choice")

    add = command("patches", patches, columns=2)
    add("--config-file", required=True, metavar="FILE", help="the config that pre-trained it")
    add("--weights", required=True, metavar="FILE", help="its checkpoint, not converted or cut")
    add("--seed", type=int, default=0, help="draws images and patches (default: 0)")
    add("--score-threshold", type=float, default=0.0, help="(default: 0; the paper has 0.9)")
    add("--width", type=int, default=320, help="pixels of an image (default: 320)")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")

    add = command("queries", queries, columns=1)
    add(
        "--config-file",
        required=True,
        action="append",
        metavar="FILE",
        help="of all weights, or repeated, one for each of them",
    )
    add(
        "--weights",
        required=True,
        action="append",
        metavar="[NAME=]FILE",
        help="a checkpoint; may be repeated",
    )
    add("--images", help="folder or data set (default: the config's test set)")
    add_test_time_size(add)
    choice(add)
    add("--num-queries", type=int, default=10, help="the first ones are drawn (default: 10)")
    add("opts", nargs="*", metavar="key=value", help="changes to the configs")

    add = command("gradients", gradients, columns=1)
    add("--config-file", required=True, metavar="FILE", help="the config that pre-trained it")
    add("--weights", required=True, metavar="FILE", help="its checkpoint, not converted or cut")
    add("--images", help="folder or data set (default: the config's test set)")
    add_test_time_size(add)
    choice(add)
    add("--width", type=int, default=240, help="pixels of an image (default: 240)")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")

    add = command("batch", batch, columns=4)
    add("--config-file", required=True, metavar="FILE")
    add("--start-step", type=int, default=0, help="training step to begin at (default: 0)")
    add("--width", type=int, default=320, help="pixels of an image (default: 320)")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")

    add = command("curves", curves, columns=None)
    add("runs", nargs="+", metavar="[NAME=]RUN", help="output folder or metrics.jsonl of a run")
    return parser


if __name__ == "__main__":
    main()
