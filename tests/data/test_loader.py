import itertools
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from predet.data import loader as loader_module
from predet.data import workers as workers_module
from predet.data.augmentation import Compose, DETRAugmentation
from predet.data.formats import load_dataset
from predet.data.images import BadSampleError
from predet.data.loader import build_test_loader, build_train_loader
from predet.data.mapper import DetectionMapper

AUGMENTATION = DETRAugmentation(
    short_sides=(20, 24, 28), max_size=64, crop_short_sides=(24, 30), crop_size=(12, 20)
)


# Not for training: then the data set needs no boxes.
MAPPER = DetectionMapper(augmentation=AUGMENTATION, training=False)
PLAIN_MAPPER = DetectionMapper(augmentation=Compose(steps=[]), training=False)


@pytest.fixture
def dataset(image_folder):
    return load_dataset(image_folder)


@pytest.fixture
def one_of_two_ranks(monkeypatch):
    def choose(rank):
        monkeypatch.setattr(loader_module.comm, "get_rank", lambda: rank)
        monkeypatch.setattr(loader_module.comm, "get_world_size", lambda: 2)

    return choose


def train_loader(dataset, **changes):
    arguments = {
        "dataset": dataset,
        "mapper": MAPPER,
        "total_batch_size": 3,
        "num_workers": 0,
        "seed": 0,
    }
    return build_train_loader(**(arguments | changes))


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def content(batches):
    """What a batch is, for comparison: ids and pixels."""
    return [[(item["image_id"], item["image"].numpy().tobytes()) for item in b] for b in batches]


def ids(batches):
    return [item["image_id"] for batch in batches for item in batch]


def test_epochs_follow_each_other_and_batches_reach_across(dataset):
    batches = take(train_loader(dataset).batches(0), 8)
    assert [len(batch) for batch in batches] == [3] * 8
    drawn = ids(batches)
    for epoch in range(3):
        assert sorted(drawn[8 * epoch : 8 * epoch + 8]) == list(range(1, 9))
    assert drawn[:8] != drawn[8:16]


def test_an_image_gets_other_crops_in_another_epoch(dataset):
    drawn = [pair for batch in content(take(train_loader(dataset).batches(0), 8)) for pair in batch]
    first, second = dict(drawn[:8]), dict(drawn[8:16])
    assert sum(first[key] != second[key] for key in first) >= 6


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(dataset, num_workers):
    expected = content(take(train_loader(dataset).batches(0), 6))
    with_workers = take(train_loader(dataset, num_workers=num_workers).batches(0), 6)
    assert content(with_workers) == expected
    assert content(take(train_loader(dataset, seed=1).batches(0), 6)) != expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_at_a_step_gives_the_batches_from_there_on(dataset, num_workers):
    expected = content(take(train_loader(dataset).batches(0), 9))
    resumed = train_loader(dataset, num_workers=num_workers)
    assert content(take(resumed.batches(5), 4)) == expected[5:]
    assert content(take(resumed.batches(2), 2)) == expected[2:4]


def test_spawned_workers_change_nothing(dataset):
    expected = content(take(train_loader(dataset).batches(0), 3))
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        spawned = train_loader(dataset, num_workers=1)
        assert content(take(spawned.batches(0), 3)) == expected
    finally:
        multiprocessing.set_start_method(method, force=True)


def test_accumulation_deals_out_the_same_images(dataset):
    whole = content(take(train_loader(dataset, total_batch_size=4).batches(1), 3))
    parts = content(take(train_loader(dataset, total_batch_size=4).batches(1, 2), 6))
    assert [len(part) for part in parts] == [2] * 6
    assert [first + second for first, second in zip(parts[::2], parts[1::2], strict=True)] == whole


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_ranks_together_read_what_one_reads(dataset, one_of_two_ranks, accumulation_steps):
    whole = content(take(train_loader(dataset, total_batch_size=4).batches(0), 4))
    shares = []
    for rank in range(2):
        one_of_two_ranks(rank)
        batches = train_loader(dataset, total_batch_size=4).batches(0, accumulation_steps)
        shares.append(content(take(batches, 4 * accumulation_steps)))
    together = [first + second for first, second in zip(*shares, strict=True)]
    for step in range(4):
        parts = together[step * accumulation_steps : (step + 1) * accumulation_steps]
        assert list(itertools.chain(*parts)) == whole[step]


def test_a_batch_may_exceed_the_data_set(dataset):
    small = dataset.select([0, 1, 2])
    batches = take(train_loader(small, total_batch_size=8).batches(0), 3)
    assert [len(batch) for batch in batches] == [8, 8, 8]
    assert [ids(batches).count(image) for image in (1, 2, 3)] == [8, 8, 8]


def test_global_random_state_is_left_alone(dataset):
    def state():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = state()
    take(train_loader(dataset).batches(0), 2)
    take(train_loader(dataset, num_workers=1).batches(0), 2)
    list(build_test_loader(dataset=dataset, mapper=MAPPER))
    assert state() == before


def break_files(dataset, *indices):
    for index in indices:
        with open(dataset[index].path, "wb") as file:
            file.write(b"")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_replaced_counted_and_named(dataset, num_workers, caplog):
    caplog.set_level(logging.WARNING)
    expected = content(take(train_loader(dataset).batches(0), 10))
    break_files(dataset, 2, 6)
    loader = train_loader(dataset, num_workers=num_workers)
    batches = content(take(loader.batches(0), 10))
    assert [len(batch) for batch in batches] == [3] * 10
    replaced = 0
    for step, (batch, whole) in enumerate(zip(batches, expected, strict=True)):
        for place, (item, original) in enumerate(zip(batch, whole, strict=True)):
            if original[0] in (3, 7):
                replaced += 1
                later = expected[step + 1][place] if step < 9 else None
                assert later is None or later[0] in (3, 7) or item == later
            else:
                assert item == original
    assert replaced >= 6
    bad = loader.bad_samples()
    assert set(bad.reasons) == {"first/2.png", "second/6.png"}
    assert len(bad) == 2
    assert bad.counts.total() >= replaced
    assert "2 files could not be read and were skipped" in bad.summary()
    assert f"{dataset[2].path}: the file is empty" in bad.summary()
    named = [text for text in caplog.messages if text.startswith("skipped first/2.png: ")]
    assert len(named) == 1  # not once an epoch


def test_replacements_do_not_depend_on_workers_or_start(dataset):
    break_files(dataset, 1, 3, 4)
    expected = content(take(train_loader(dataset).batches(0), 12))
    resumed = take(train_loader(dataset, num_workers=2).batches(7), 5)
    assert content(resumed) == expected[7:]


def test_one_good_image_among_many_is_found(dataset):
    break_files(dataset, *range(7))
    assert set(ids(take(train_loader(dataset).batches(0), 5))) == {8}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_set_of_which_nothing_can_be_read_ends_the_run(dataset, num_workers):
    break_files(dataset, *range(8))
    loader = train_loader(dataset, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"none of its 8 images can be read: .*the file is empty"):
        next(loader.batches(0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_policy_error_stops_at_the_first_bad_sample(dataset, num_workers):
    break_files(dataset, *range(8))
    loader = train_loader(dataset, num_workers=num_workers, on_bad_sample="error")
    with pytest.raises(BadSampleError, match=r"^[^\n]*\.png: the file is empty$"):
        next(loader.batches(0))


def test_mistakes_of_a_mapper_are_not_taken_for_bad_samples(dataset):
    def mapper(record, rng):
        raise KeyError("a programming error")

    with pytest.raises(KeyError, match="a programming error"):
        next(train_loader(dataset, mapper=mapper).batches(0))


def test_sigterm_to_a_worker_leaves_time_to_finish(dataset):
    loader = train_loader(dataset, num_workers=1)
    expected = content(take(train_loader(dataset).batches(0), 10))
    batches = loader.batches(0)
    first = [next(batches)]
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.2)
    rest = take(batches, 9)
    assert content(first + rest) == expected
    worker.join(10)
    assert not worker.is_alive()


def test_workers_end_with_their_iterator(dataset):
    batches = train_loader(dataset, num_workers=2).batches(0)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    batches.close()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_a_worker_that_is_told_to_stop_does_stop_in_the_end(dataset, monkeypatch):
    monkeypatch.setattr(workers_module, "SIGTERM_GRACE_SECONDS", 1)
    batches = train_loader(dataset, num_workers=1).batches(0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    time.sleep(0.5)
    with pytest.raises(RuntimeError, match="killed by signal: Alarm clock"):  # noqa: PT012
        os.kill(worker.pid, signal.SIGTERM)
        time.sleep(10)
    batches.close()


SCRIPT = """
import sys
import time
import torch.multiprocessing
from predet.data.augmentation import Compose
from predet.data.formats import load_dataset
from predet.data.loader import build_test_loader, build_train_loader
from predet.data.mapper import DetectionMapper

def work(rank):
    global train, test
    dataset = load_dataset(sys.argv[1])
    parts = {"dataset": dataset, "mapper": DetectionMapper(
        augmentation=Compose(steps=[]), training=False)}
    train = build_train_loader(
        **parts, total_batch_size=2, num_workers=2, seed=0).batches(0)
    test = iter(build_test_loader(**parts, num_workers=1))
    next(train), next(test)
    print(time.time(), flush=True)
    raise SystemExit(7)

if __name__ == "__main__":
    if sys.argv[2] == "child":
        torch.multiprocessing.start_processes(work, nprocs=1, start_method="fork")
    work(0)
"""


@pytest.mark.parametrize("where", ["main", "child"])
def test_a_process_that_fails_is_not_held_up_by_its_workers(dataset, tmp_path, where):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), dataset.root, where]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seconds = time.time() - float(result.stdout)
    assert result.returncode == (7 if where == "main" else 1)
    assert "Alarm clock" not in result.stderr
    assert seconds < workers_module.SIGTERM_GRACE_SECONDS


def test_arguments_out_of_range_are_refused(dataset, one_of_two_ranks):
    with pytest.raises(ValueError, match=r"on_bad_sample must be one of .*, got 'ignore'"):
        train_loader(dataset, on_bad_sample="ignore")
    with pytest.raises(ValueError, match="from 0 images"):
        train_loader(dataset.select([]))
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        build_test_loader(dataset=dataset, mapper=None, batch_size=0)
    one_of_two_ranks(0)
    with pytest.raises(ValueError, match=r"divisible by .* = 2 \* 1 = 2, got 3"):
        train_loader(dataset).batches(0)
    with pytest.raises(ValueError, match=r"2 \* 2 = 4, got 6"):
        train_loader(dataset, total_batch_size=6).batches(0, 2)


def test_supervised_training_without_any_box_is_refused(dataset):
    mapper = DetectionMapper(augmentation=AUGMENTATION, training=True)
    with pytest.raises(ValueError, match=r"'images' .* has no annotations, but this mapper"):
        train_loader(dataset, mapper=mapper)


def test_test_loader_keeps_order_and_can_be_read_again(dataset):
    loader = build_test_loader(dataset=dataset, mapper=PLAIN_MAPPER, batch_size=3)
    assert len(loader) == 3
    assert loader.dataset is dataset
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [3, 3, 2]
        assert ids(batches) == list(range(1, 9))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_test_shares_have_no_gaps_and_no_repeats(dataset, one_of_two_ranks, num_workers):
    seen, lengths = [], []
    for rank in range(2):
        one_of_two_ranks(rank)
        loader = build_test_loader(
            dataset=dataset.select(range(7)),
            mapper=PLAIN_MAPPER,
            batch_size=2,
            num_workers=num_workers,
        )
        lengths.append(len(loader))
        seen += ids(loader)
    assert seen == list(range(1, 8))
    assert lengths == [2, 2]


def test_bad_images_at_evaluation_are_left_out_and_reported(dataset, caplog):
    break_files(dataset, 0, 4, 5)
    loader = build_test_loader(dataset=dataset, mapper=PLAIN_MAPPER, batch_size=2, num_workers=1)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [1, 2, 2]  # one batch is gone altogether
    assert ids(batches) == [2, 3, 4, 7, 8]
    assert len(loader.bad_samples()) == 3
    assert "3 files could not be read" in caplog.text
    assert "they count as images without detections" in caplog.text
    strict = build_test_loader(dataset=dataset, mapper=PLAIN_MAPPER, on_bad_sample="error")
    with pytest.raises(BadSampleError, match=r"first/0\.png: the file is empty"):
        list(strict)
    break_files(dataset, *range(8))
    with pytest.raises(ValueError, match="none of its 8 images can be read"):
        list(loader)


def test_each_pass_of_the_test_loader_counts_anew(dataset):
    break_files(dataset, 0)
    loader = build_test_loader(dataset=dataset, mapper=PLAIN_MAPPER)
    for _ in range(2):
        assert ids(loader) == list(range(2, 9))
        assert loader.bad_samples().counts == {"first/0.png": 1}
