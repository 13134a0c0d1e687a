"""Where log lines go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, os, sys
from predet.engine.log import setup_logging

setup_logging(sys.argv[1])
logging.getLogger("predet.test").warning("skipped %s: damaged", os.fsdecode(b"caf\\xe9.png"))
"""


def test_names_that_are_no_text_are_logged(tmp_path: Path) -> None:
    """Old archives hold names of files in other encodings; Python keeps them as surrogates."""
    command = [sys.executable, "-X", "utf8", "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=True)
    for text in (done.stdout, (tmp_path / "train.log").read_bytes()):
        assert b"skipped caf\\udce9.png: damaged" in text
    assert not done.stderr
