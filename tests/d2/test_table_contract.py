"""The table of names, and its small entries: catalogs, evaluators, shapes, the command line."""

from __future__ import annotations

import importlib

import pytest

REFUSED = (ValueError, AssertionError)  # the embedded side, Detectron2
NAMES = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "ImageList",
    "Instances",
    "LazyCall",
    "LazyConfig",
    "MetadataCatalog",
    "ShapeSpec",
    "Visualizer",
    "comm",
    "default_argument_parser",
    "instantiate",
    "launch",
]


def test_both_sides_are_tested(absent_sides) -> None:
    if absent_sides:
        pytest.skip(f"a side of the Detectron2 contract was not tested: {absent_sides}")


def test_each_side_has_the_names_of_the_table(d2) -> None:
    assert sorted(d2.__all__) == NAMES
    assert all(hasattr(d2, name) for name in NAMES)


def test_the_table_is_that_of_the_side_in_use() -> None:
    table = importlib.import_module("predet.d2")
    modules = {"embedded": "predet.d2.embedded", "detectron2": "predet.d2.upstream"}
    side = importlib.import_module(modules[table.SIDE])
    assert sorted(table.__all__) == sorted(["SIDE", "SIDE_REASON", *NAMES])
    for name in NAMES:
        assert getattr(table, name) is getattr(side, name)


# Catalogs


@pytest.fixture
def name(d2, request):
    """A name that no other test has; removed from the catalogs afterwards."""
    name = f"predet_{request.node.originalname}"
    yield name
    for catalog in (d2.DatasetCatalog, d2.MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def test_data_set_catalog(d2, name) -> None:
    calls = []

    def load():
        calls.append(1)
        return [{"file_name": "a.jpg"}]

    d2.DatasetCatalog.register(name, load)
    assert not calls
    assert d2.DatasetCatalog.get(name) == [{"file_name": "a.jpg"}]
    assert d2.DatasetCatalog.get(name) == [{"file_name": "a.jpg"}]
    assert len(calls) == 2
    assert name in d2.DatasetCatalog
    assert name in d2.DatasetCatalog.list()
    assert name in str(d2.DatasetCatalog)
    d2.DatasetCatalog.remove(name)
    assert name not in d2.DatasetCatalog.list()


def test_data_set_catalog_refuses(d2, name) -> None:
    with pytest.raises(KeyError, match="no_such_data_set"):
        d2.DatasetCatalog.get("no_such_data_set")
    d2.DatasetCatalog.register(name, list)
    with pytest.raises(REFUSED, match="already registered"):
        d2.DatasetCatalog.register(name, list)
    with pytest.raises((TypeError, AssertionError)):
        d2.DatasetCatalog.register(f"{name}_2", [])


def test_metadata(d2, name) -> None:
    metadata = d2.MetadataCatalog.get(name)
    assert d2.MetadataCatalog.get(name) is metadata
    assert metadata.name == name
    assert metadata.set(thing_classes=["cat", "dog"]) is metadata
    metadata.thing_classes = ["cat", "dog"]  # equal: allowed
    with pytest.raises(REFUSED, match="thing_classes"):
        metadata.thing_classes = ["cat"]
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.get("thing_classes") == ["cat", "dog"]
    assert metadata.get("json_file") is None
    assert metadata.get("json_file", 3) == 3
    with pytest.raises(AttributeError, match="json_file"):
        _ = metadata.json_file
    assert metadata.as_dict() == {"name": name, "thing_classes": ["cat", "dog"]}
    metadata.as_dict()["name"] = "other"
    assert metadata.name == name
    assert name in d2.MetadataCatalog.list()


# Evaluators


class Counting:
    """An evaluator that counts images, under a name of its own."""

    def __init__(self, key):
        self.key = key

    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len(inputs)

    def evaluate(self):
        return {self.key: self.count} if self.key else None


def test_evaluators_dispatch_and_unite(d2) -> None:
    together = d2.DatasetEvaluators([Counting("a"), Counting(None), Counting("b")])
    assert isinstance(together, d2.DatasetEvaluator)
    for _ in range(2):
        together.reset()
        together.process([{}, {}], [{}, {}])
        together.process([{}], [{}])
        assert together.evaluate() == {"a": 3, "b": 3}
    twice = d2.DatasetEvaluators([Counting("a"), Counting("a")])
    twice.reset()
    with pytest.raises(REFUSED, match="a"):
        twice.evaluate()
    assert d2.DatasetEvaluators([]).evaluate() == {}


def test_evaluator_base_does_nothing(d2) -> None:
    base = d2.DatasetEvaluator()
    assert base.reset() is base.process([], []) is base.evaluate() is None


# Shapes, command line, one process


def test_shape_spec(d2) -> None:
    shape = d2.ShapeSpec(channels=256, stride=32)
    assert (shape.channels, shape.height, shape.width, shape.stride) == (256, None, None, 32)
    assert d2.ShapeSpec(1, 2, 3, 4) == d2.ShapeSpec(channels=1, height=2, width=3, stride=4)


def test_argument_parser(d2) -> None:
    parser = d2.default_argument_parser()
    line = "--config-file a.py --resume --num-gpus 2 --num-machines 3 --machine-rank 1"
    arguments = parser.parse_args([*line.split(), "--dist-url", "tcp://h:1", "a.b=1", "c=[1, 2]"])
    assert arguments.config_file == "a.py"
    assert arguments.resume is True
    assert arguments.eval_only is False
    assert (arguments.num_gpus, arguments.num_machines, arguments.machine_rank) == (2, 3, 1)
    assert arguments.dist_url == "tcp://h:1"
    assert arguments.opts == ["a.b=1", "c=[1, 2]"]
    defaults = parser.parse_args([])
    assert (defaults.num_gpus, defaults.num_machines, defaults.machine_rank) == (1, 1, 0)
    assert (defaults.config_file, defaults.opts) == ("", [])
    assert "EPILOG" in d2.default_argument_parser(epilog="EPILOG").format_help()


def test_one_process_needs_no_process_group(d2) -> None:
    import torch

    comm = d2.comm
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.get_local_size() == 1
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather({"a": 1}) == [{"a": 1}]
    assert comm.gather("x") == ["x"]
    assert comm.reduce_dict({"loss": torch.tensor(2.0)}) == {"loss": torch.tensor(2.0)}
    assert 0 <= comm.shared_random_seed() < 2**31


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_launch_of_one_process_runs_here(d2, num_gpus) -> None:
    calls = []
    d2.launch(lambda *args: calls.append(args), num_gpus, dist_url="auto", args=(1, "a"))
    assert calls == [(1, "a")]
