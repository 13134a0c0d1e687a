"""What an evaluator is. Contract: `detectron2.evaluation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from predet.d2.embedded import comm


class DatasetEvaluator:
    """Collects what a model says about a data set, and sums it up in numbers."""

    def reset(self) -> None:
        """Forget everything: a new evaluation begins."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch and the model's answer to it."""

    def evaluate(self) -> dict[str, Any] | None:
        """The results; None on ranks that have none to give."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; on the main process their results are united.

    Raises:
        ValueError: (`evaluate`) two evaluators give a result of the same name.
    """

    def __init__(self, evaluators: Sequence[DatasetEvaluator]):
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        united: dict[str, Any] = {}
        for evaluator in self._evaluators:
            results = evaluator.evaluate()
            if results is None or not comm.is_main_process():
                continue
            twice = sorted(united.keys() & results.keys())
            if twice:
                raise ValueError(f"more than one evaluator gives a result named {twice}")
            united.update(results)
        return united
