"""predet: pre-training for whole object detectors."""

from predet.version import __version__

__all__ = ["__version__"]
