"""The command line of training tools. Contract: `detectron2.engine.default_argument_parser`."""

from __future__ import annotations

import argparse

_EXAMPLES = """\
examples:
  one machine:     %(prog)s --config-file configs/x.py --num-gpus 8 train.max_iter=1000
  no GPU:          %(prog)s --config-file configs/x.py --num-gpus 0
  first of two:    %(prog)s --config-file ... --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
  second of two:   %(prog)s --config-file ... --num-machines 2 --machine-rank 1 --dist-url tcp://HOST:PORT
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The options that Detectron2's tools share; `epilog` replaces the examples in the help."""
    parser = argparse.ArgumentParser(
        epilog=_EXAMPLES if epilog is None else epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="the config to run")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in the output folder"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="GPUs to use on each machine, one process each; 0: one process on the CPU; on a "
        "machine without GPUs that many processes share the CPU",
    )
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="number of this machine, from 0"
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="where processes meet, tcp://HOST:PORT of machine 0; auto: a free port here",
    )
    parser.add_argument(
        "opts",
        nargs="*",  # with parse_intermixed_args, options may stand after them
        metavar="key=value",
        help="changes to the config",
    )
    return parser
