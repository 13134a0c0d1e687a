#!/usr/bin/env python
"""The whole chain of self-training on one's own images: from few labels to a fine-tuned student.

    tools/self_train.py --labeled mydata --labeled-split train --test mydata --test-split val \\
        --unlabeled photos --output output/mine

1. teacher       train the detector on the labelled images
2. pseudo_labels its boxes on the unlabelled images, into a box store
3. pretrain      train a new detector, whole, on these boxes
4. finetune      train that one on the labelled images

With --rounds N the student becomes the teacher of stages 2 to 4 again, N - 1 times (`pretrain_2`
and so on). The paper has one round. Each round's detector begins anew; only boxes are handed on.

Each stage is one of the other commands, printed as it starts. A stage that has finished is not run
again and one that was killed goes on where it stopped: after an interruption run the same command.
At the end AP of teacher and student on the test images, the time of each stage, and pictures.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from predet.engine.command_line import errors_in_one_line
from predet.engine.config_text import as_overrides
from predet.engine.log import setup_logging
from predet.engine.stages import Stage, StageFailed, StageRecord, run_stages

TOOLS = Path(__file__).resolve().parent
METRICS = ("AP", "AP50", "AP75", "AR100")
PICTURES = ("detections.png", "pseudo_labels.png", "curves.png")


@errors_in_one_line(StageFailed)
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    setup_logging()
    output = Path(args.output)
    try:
        records = run_stages(chain(args), output / "stages")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
    text = summary(args.rounds, records, output)
    (output / "summary.txt").write_text(text, encoding="utf-8")
    print(text)


def chain(args: argparse.Namespace) -> list[Stage]:
    """The stages as commands."""
    output = Path(args.output)
    labels = {
        "data.train.source": args.labeled,
        "data.train.split": args.labeled_split,
        "data.train.num_images": args.num_labeled,
        "data.train.seed": args.label_seed,
        "data.test.source": args.test,
        "data.test.split": args.test_split,
    }
    teacher = output / "teacher"
    stages = [train(args, args.detector_config, teacher, labels, args.teacher)]
    for number in range(1, args.rounds + 1):
        stages += round_of(args, teacher, labels, suffix(number))
        teacher = output / f"finetune{suffix(number)}"
    return [*stages, *pictures_of(args, suffix(args.rounds))]


def round_of(
    args: argparse.Namespace, teacher: Path, labels: Mapping[str, object], own: str
) -> list[Stage]:
    """Boxes of a teacher, pre-training on them, fine-tuning; `own` ends the names of the stages."""
    output = Path(args.output)
    store, pretrain = output / f"pseudo_labels{own}", output / f"pretrain{own}"
    unlabeled = {
        "data.unlabeled.source": args.unlabeled,
        "data.unlabeled.split": args.unlabeled_split,
        "data.store": store,
    }
    initial = {"train.init_checkpoint": last(pretrain), "train.reinit": "auto"}
    label = tool(
        *("pseudo_label.py", "--config-file", teacher / "config.resolved.py"),
        *("--weights", last(teacher), "--images", args.unlabeled, "--output", store),
        *(("--split", args.unlabeled_split) if args.unlabeled_split else ()),
        *("--num-gpus", args.num_gpus),
    )
    finetune = output / f"finetune{own}"
    return [
        Stage(store.name, label, store / "report.json", (teacher.name,)),
        train(args, args.pretrain_config, pretrain, unlabeled, args.pretrain, store.name),
        train(args, args.detector_config, finetune, labels | initial, args.finetune, pretrain.name),
    ]


def suffix(number: int) -> str:
    """Of a round's stages: none in the first."""
    return "" if number == 1 else f"_{number}"


def pictures_of(args: argparse.Namespace, own: str) -> list[Stage]:
    """First teacher and last student side by side, the last pseudo-labels, learning curves."""
    output = Path(args.output)
    teacher, student, to = output / "teacher", output / f"finetune{own}", output / "pictures"
    detections = tool(
        *("visualize.py", "detections", "--config-file", student / "config.resolved.py"),
        *("--weights", f"teacher={last(teacher)}", "--weights", f"student={last(student)}"),
        *("--output", to / PICTURES[0]),
    )
    store = output / f"pseudo_labels{own}"
    labels = tool(
        *("visualize.py", "store", "--store", store, "--images", args.unlabeled),
        *(("--split", args.unlabeled_split) if args.unlabeled_split else ()),
        *("--output", to / PICTURES[1]),
    )
    runs = (f"{run.name}={run}" for run in (teacher, output / f"pretrain{own}", student))
    curves = tool("visualize.py", "curves", *runs, "--output", to / PICTURES[2])
    commands = (detections, labels, curves)
    return [
        Stage(f"draw_{Path(name).stem}", command, to / name, (student.name,))
        for name, command in zip(PICTURES, commands, strict=True)
    ]


def train(
    args: argparse.Namespace,
    config: str,
    output: Path,
    keys: Mapping[str, object],
    more: Sequence[str],
    *needs: str,
) -> Stage:
    """A training command that goes on where it stopped. Keys without a value are left alone."""
    given = {key: value for key, value in keys.items() if value is not None}
    command = tool(
        *("lazyconfig_train_net.py", "--config-file", config, "--num-gpus", args.num_gpus),
        *("--resume", *as_overrides({**given, "train.output_dir": output}), *more),
    )
    return Stage(output.name, command, output / "results.json", needs)


def tool(name: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, str(TOOLS / name), *map(str, arguments))


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.pth"


def read_results(run: Path) -> dict[str, float]:
    """The last evaluation of a finished run."""
    return json.loads((run / "results.json").read_text())["results"]


def summary(rounds: int, records: Sequence[StageRecord], output: Path) -> str:
    rows = {"teacher, few labels only": read_results(output / "teacher")}
    for number in range(1, rounds + 1):
        which = f", round {number}" if rounds > 1 else ""
        rows[f"student, pre-trained{which}"] = read_results(output / f"finetune{suffix(number)}")
    lines = ["", f"{'on the test images':<32}" + "".join(f"{name:>8}" for name in METRICS)]
    lines += [f"  {n:<30}" + "".join(f"{r[m]:>8.1f}" for m in METRICS) for n, r in rows.items()]
    lines += ["", "wall time"]
    lines += [f"  {record.name:<30}{record.seconds:>8.0f} s" for record in records]
    lines.append(f"  {'total':<30}{sum(r.seconds for r in records):>8.0f} s")
    lines += ["", "pictures", *(f"  {output / 'pictures' / name}" for name in PICTURES), ""]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = "a folder, a COCO JSON or a registered name, as for data.train.source"
    parser.add_argument("--labeled", required=True, help=f"labelled images: {data}")
    parser.add_argument("--labeled-split", help="its split, where it has splits")
    parser.add_argument("--num-labeled", type=int, help="draw so many of them (default: all)")
    parser.add_argument("--label-seed", type=int, default=0, help="of that draw (default: 0)")
    parser.add_argument("--test", required=True, help="images to evaluate on")
    parser.add_argument("--test-split")
    parser.add_argument("--unlabeled", required=True, help="images to label; labels are not read")
    parser.add_argument("--unlabeled-split")
    parser.add_argument("--output", required=True, help="everything that is made lies here")
    parser.add_argument(
        "--detector-config",
        default="configs/small/deformable_detr.py",
        help="of teacher and fine-tuning (default: %(default)s)",
    )
    parser.add_argument(
        "--pretrain-config",
        default="configs/small/selftrain.py",
        help="(default: %(default)s)",
    )
    parser.add_argument("--rounds", type=positive, default=1, help="of self-training (default: 1)")
    parser.add_argument("--num-gpus", type=int, default=1, help="0: the CPU (default: 1)")
    for stage in ("teacher", "pretrain", "finetune"):
        parser.add_argument(
            f"--{stage}",
            type=shlex.split,
            default=[],
            metavar="'KEY=VALUE ...'",
            help=f"overrides of the config in the stage {stage}",
        )
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    main()
