"""Runs the stand-in comparison: a process that tests can kill."""

import sys
from pathlib import Path

from predet.engine.comparison import load_comparison
from predet.engine.comparison_run import run
from predet.engine.comparison_stages import StageResolver

HERE = Path(__file__).parent / "standin_tools"


def resolver_for(output: Path, *overrides: str, budget: str | None = None) -> StageResolver:
    comparison = load_comparison(HERE / "comparison_config.py", overrides, budget=budget)
    return StageResolver(comparison, output=output, tools=HERE, num_gpus=0)


if __name__ == "__main__":
    run(resolver_for(Path(sys.argv[1]), *sys.argv[2:]), jobs=2)
