"""Stands in for pseudo-labelling: leaves a report."""

import sys
from pathlib import Path

options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
assert Path(options["weights"]).is_file()
output = Path(options["output"])
output.mkdir(parents=True, exist_ok=True)
(output / "report.json").write_text("{}")
