"""The training command, with Detectron2's command line: `predet-train`.

    predet-train --config-file configs/tiny/x.py [--resume] [--eval-only] [--num-gpus N]
                 [--num-machines M --machine-rank R --dist-url URL] [key=value ...]

A config has the sections `model`, `dataloader`, `optimizer`, `lr_multiplier`, `train` (see
`predet.engine.settings`) and `data`. `--resume` goes on where the output folder's run stopped, or
starts it if there is none, so one command serves both. Without a GPU, N processes share the CPU.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig

from predet.checkpoint import Checkpoints
from predet.d2 import instantiate
from predet.d2.embedded import comm
from predet.d2.embedded.arguments import default_argument_parser
from predet.d2.embedded.launch import launch
from predet.engine.build import (
    backbone_is_replaced,
    build_evaluation,
    build_model,
    build_optimizer,
    choose_device,
    describe_machine,
    fill_classes,
    load_for_evaluation,
    load_initial_weights,
)
from predet.engine.command_line import errors_in_one_line
from predet.engine.config import list_keys as keys_of
from predet.engine.config import load_config, require_sections
from predet.engine.config_text import render, save_resolved
from predet.engine.failure import end_of_run
from predet.engine.inference import without_backbone_weights
from predet.engine.lifeline import Lifeline
from predet.engine.locks import only_writer
from predet.engine.log import setup_logging
from predet.engine.metrics import result_table, without_nan, write_json
from predet.engine.provenance import run_identity
from predet.engine.settings import TrainSettings
from predet.engine.stopping import StopRequest, interrupt_passed_to_children
from predet.engine.trainer import Trainer

logger = logging.getLogger(__name__)

# Of one exchange of gradients. Processes that wait for data, an evaluation or a checkpoint of
# another one do so without it, and a process that fails or dies is noticed within seconds.
PROCESS_TIMEOUT = datetime.timedelta(minutes=30)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `predet-train` and `tools/lazyconfig_train_net.py`."""
    args = make_parser().parse_intermixed_args(argv)
    args.command = shlex.join(["predet-train", *(sys.argv[1:] if argv is None else argv)])
    with errors_in_one_line():
        cfg = _load(args)
    if args.list_keys:
        sys.stdout.writelines(f"{key} = {value}\n" for key, value in keys_of(cfg).items())
        return
    if args.print_config:
        sys.stdout.write(render(cfg))
        return
    setup_logging()
    with interrupt_passed_to_children():
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
            timeout=PROCESS_TIMEOUT,
        )


def run(args: argparse.Namespace) -> None:
    """One process of the job: train, or evaluate.

    Raises:
        SystemExit: with one message, for what the user can change.
    """
    host = urlsplit(args.dist_url).hostname if args.dist_url else None
    with StopRequest().listening() as stop, Lifeline([host] if host else []) as lifeline:
        log = None
        try:
            cfg = _load(args)
            settings = TrainSettings.from_config(cfg.train)
            log = setup_logging(settings.output_dir, comm.get_rank())
            logger.info("%s", args.command)
            logger.info("%s", describe_machine())
            if args.eval_only:
                evaluate_only(cfg, settings, num_gpus=args.num_gpus)
            else:
                output = Path(settings.output_dir)
                with only_writer(output) if comm.is_main_process() else nullcontext():
                    train(cfg, settings, num_gpus=args.num_gpus, resume=args.resume, stop=stop)
        except Exception as error:
            end = end_of_run(error, lifeline, log)
            raise end from (None if end is error else error)


def train(
    cfg: DictConfig, settings: TrainSettings, *, num_gpus: int, resume: bool, stop: StopRequest
) -> dict[str, float]:
    """Build everything that the config names and train; returns the last evaluation."""
    device = choose_device(settings.device, num_gpus)
    checkpoints = Checkpoints(settings.output_dir)
    if not resume:
        checkpoints.require_none()
    loader = instantiate(cfg.dataloader.train)
    if len(loader.dataset) == 0:
        raise ValueError(f"training data '{loader.dataset.name}' has no images")
    logger.info("training data '%s': %d images", loader.dataset.name, len(loader.dataset))
    fill_classes(cfg, loader.dataset)
    evaluation = build_evaluation(cfg, loader.dataset.class_names)
    begun = checkpoints.exist()
    if backbone_is_replaced(cfg, settings, begun=begun):
        model = build_model(without_backbone_weights(cfg), settings, device)
    else:
        model = build_model(cfg, settings, device)
    optimizer = build_optimizer(cfg, model)
    if not begun:
        load_initial_weights(model, settings, loader.dataset.class_names)
    trainer = Trainer(
        model=model,
        loader=loader,
        optimizer=optimizer,
        schedule=instantiate(cfg.lr_multiplier),
        settings=settings,
        identity=run_identity(cfg, loader.dataset, model, getattr(loader, "mapper", None)),
        evaluate=evaluation[1] if evaluation else None,
        stop=stop,
    )
    trainer.prepare(resume=resume)
    if comm.is_main_process():
        save_resolved(cfg, Path(settings.output_dir) / "config.resolved.py")
    results = trainer.train()
    _report_bad_samples(loader)
    return results


def evaluate_only(cfg: DictConfig, settings: TrainSettings, *, num_gpus: int) -> dict[str, float]:
    """Evaluate `train.init_checkpoint` on `dataloader.test`; also kept in `evaluation.json`."""
    device = choose_device(settings.device, num_gpus)
    evaluation = build_evaluation(cfg)
    if evaluation is None:
        raise ValueError("--eval-only needs dataloader.test and dataloader.evaluator in the config")
    dataset, evaluate_model = evaluation
    fill_classes(cfg, dataset)
    model = build_model(without_backbone_weights(cfg), settings, device)
    load_for_evaluation(model, settings, dataset.class_names)
    results = {name: float(value) for name, value in evaluate_model(model).items()}
    if comm.is_main_process():
        record = {
            "checkpoint": settings.init_checkpoint,
            "data": str(dataset.name),
            "images": len(dataset),
            "results": results,
        }
        path = Path(settings.output_dir) / "evaluation.json"
        write_json(path, without_nan(record))
        logger.info("evaluation of %s\n%s", settings.init_checkpoint, result_table(results))
    return results


def _load(args: argparse.Namespace) -> DictConfig:
    cfg = load_config(args.config_file, args.opts or [])
    require_sections(cfg)
    return cfg


def _report_bad_samples(loader: Any) -> None:
    """Say at the end what was skipped and what was missing; all ranks must call it."""
    for rank, bad in enumerate(comm.all_gather(loader.bad_samples())):
        if len(bad):
            logger.warning("training data, process %d: %s", rank, bad.summary())
    for rank, missing in enumerate(comm.all_gather(loader.missing_boxes())):
        if missing.short:
            logger.warning("training data, process %d: %s", rank, missing.summary())


def make_parser() -> argparse.ArgumentParser:
    """Detectron2's options and predet's own; changes to the config may stand among them."""
    parser = default_argument_parser()
    parser.add_argument(
        "--list-keys", action="store_true", help="print every key that can be set, and end"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config, and end"
    )
    return parser


if __name__ == "__main__":
    main()
