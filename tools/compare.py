#!/usr/bin/env python
"""Did it help? Run a comparison of pre-training arms with controls and write one page about it.

    tools/compare.py --config-file configs/compare_bccd.py --output output/bccd --budget cpu \\
        --jobs 2 data.train.source=BCCD

A comparison is a config: arms, label budgets, seeds and one test set (docs/comparing.md). What has
finished is not run again, so after an interruption, or with another arm in the config, the same
command goes on; several processes may work on one output folder. A stage that fails keeps back only
what needs it. `--plan` says what would be run. The page is comparison.md, comparison.html and
comparison.json in the output folder.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from predet.engine.command_line import errors_in_one_line
from predet.engine.comparison import load_comparison
from predet.engine.comparison_run import PAGE, plan, plan_text, run, write_page
from predet.engine.comparison_stages import StageResolver
from predet.engine.log import setup_logging
from predet.engine.stages import StageFailed

TOOLS = Path(__file__).resolve().parent


@errors_in_one_line()
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_intermixed_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    setup_logging()
    output = Path(args.output).resolve()
    command = shlex.join([Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)])
    try:
        comparison = load_comparison(
            args.config_file, args.opts, budget=args.budget, arms=args.arm or ["*"]
        )
        resolver = StageResolver(comparison, output=output, tools=TOOLS, num_gpus=args.num_gpus)
        if args.plan:
            print(plan_text(plan(resolver), jobs=args.jobs))
            return
        complete = args.page_only or run_all(resolver, jobs=args.jobs)
        analysis = write_page(resolver, output, command=command, leakage=not args.no_leakage_check)
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")
    for verdict in analysis.verdicts:
        print(verdict.sentence)
    print(f"{output / PAGE}.html")
    if not complete:
        sys.exit("error: stages failed, as said above; the page is made of the others")


def run_all(resolver: StageResolver, *, jobs: int) -> bool:
    """Run the stages. False: some failed, which is said, and the page has arms without them."""
    try:
        run(resolver, jobs=jobs)
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the comparison")
    add("--output", required=True, metavar="DIR", help="stages and page lie here")
    add("--budget", help="one of the config's budgets, for example small, cpu or gpu")
    add(
        "--arm",
        action="append",
        metavar="PATTERN",
        help="only arms whose names match, and their controls: 'self_*' (repeatable; default: all)",
    )
    add("--jobs", type=int, default=1, help="stages at the same time (default: %(default)s)")
    add("--num-gpus", type=int, default=1, help="of each stage; 0: the CPU (default: %(default)s)")
    add("--plan", action="store_true", help="say what would be run, and how long, and end")
    add("--page-only", action="store_true", help="run nothing: the page of what has finished")
    add("--no-leakage-check", action="store_true", help="do not search for copies of test images")
    add("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


if __name__ == "__main__":
    main()
