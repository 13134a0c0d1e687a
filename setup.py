"""Build of predet. Metadata is in pyproject.toml; here is what it cannot say: two folders
at the root of the repository are sub-packages of predet, as Detectron2 does with its projects."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
MAPPED = {"predet.projects": "projects", "predet.configs": "configs"}


def packages() -> list[str]:
    found = find_packages(str(ROOT), include=["predet", "predet.*"])
    for package, folder in MAPPED.items():
        found += [package, *(f"{package}.{sub}" for sub in find_packages(str(ROOT / folder)))]
    return found


setup(packages=packages(), package_dir=MAPPED)
