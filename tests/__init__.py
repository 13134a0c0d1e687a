"""A package, so that processes started by tests import from here and from no other `tests`."""
