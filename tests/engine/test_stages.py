"""Stages: run once, in order, whoever runs them and however they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from predet.engine import stages as stages_module
from predet.engine.stages import Stage, StageFailed, finished_record, run_stages

APPEND = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.open('a').write(sys.argv[2])"
# Says that it has begun, and waits for a file named "go" beside its product.
WAIT = """
import pathlib, sys, time
p = pathlib.Path(sys.argv[1])
with p.with_suffix('.begun').open('a') as f: f.write('x')
while not (p.parent / 'go').exists(): time.sleep(0.02)
p.open('a').write(sys.argv[2])
"""


def stage(
    name: str, folder: Path, script: str = APPEND, text: str = "x", needs: tuple[str, ...] = ()
) -> Stage:
    product = folder / f"{name}.txt"
    return Stage(name, (sys.executable, "-c", script, str(product), text), product, needs)


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_finished_stages_are_not_run_again(tmp_path: Path) -> None:
    stages = [stage("one", tmp_path), stage("two", tmp_path, needs=("one",))]
    first = run_stages(stages, tmp_path / "records", made_by="the first")
    again = run_stages(stages, tmp_path / "records", made_by="the second")
    assert [record.name for record in again] == ["one", "two"]
    assert {record.made_by for record in again} == {"the first"}
    assert again == first
    assert (tmp_path / "one.txt").read_text() == (tmp_path / "two.txt").read_text() == "x"


def test_stage_whose_product_was_removed_is_run_again(tmp_path: Path) -> None:
    run_stages([stage("one", tmp_path)], tmp_path / "records")
    (tmp_path / "one.txt").unlink()
    assert finished_record(stage("one", tmp_path), tmp_path / "records") is None
    run_stages([stage("one", tmp_path)], tmp_path / "records")
    assert (tmp_path / "one.txt").read_text() == "x"


def test_failed_stage_is_run_again_and_earlier_ones_are_not(tmp_path: Path) -> None:
    fails_once = (
        "import pathlib, sys; p = pathlib.Path(sys.argv[1]); tried = p.with_suffix('.tried');"
        "done = tried.exists(); tried.touch(); p.write_text('made') if done else sys.exit(3)"
    )
    stages = [stage("one", tmp_path), stage("two", tmp_path, fails_once, needs=("one",))]
    with pytest.raises(StageFailed, match=r"'two' did not finish .exit status 3"):
        run_stages(stages, tmp_path)
    run_stages(stages, tmp_path)
    assert (tmp_path / "one.txt").read_text() == "x"
    assert (tmp_path / "two.txt").read_text() == "made"


def test_what_needs_a_failed_stage_is_not_started(tmp_path: Path) -> None:
    stages = [stage("one", tmp_path, "raise SystemExit(1)"), stage("two", tmp_path, needs=("one",))]
    with pytest.raises(StageFailed, match="'one'"):
        run_stages(stages, tmp_path, jobs=2)
    assert not (tmp_path / "two.txt").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_does_not_need_a_failed_stage_is_run(tmp_path: Path, jobs: int) -> None:
    stages = [
        stage("bad", tmp_path, "exit('the first reason')"),
        stage("good", tmp_path),
        stage("after_bad", tmp_path, needs=("bad",)),
        stage("after_that", tmp_path, needs=("after_bad", "good")),
        stage("after_good", tmp_path, needs=("good",)),
        stage("worse", tmp_path, "exit('the second reason')", needs=("good",)),
    ]
    with pytest.raises(StageFailed) as caught:
        run_stages(stages, tmp_path, jobs=jobs, log_files=True)
    made = {path.stem for path in tmp_path.glob("*.txt")}
    assert made == {"good", "after_good"}
    text = str(caught.value)
    assert "2 stages were not run" in text
    assert "the first reason" in text
    assert "the second reason" in text
    assert text.count("Run the same command again") == 1


def test_stage_that_exits_without_its_product_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="was not made"):
        run_stages([stage("one", tmp_path, "pass")], tmp_path)
    assert not json.loads((tmp_path / "one.json").read_text())["finished"]


def test_stage_that_fails_after_making_its_product_is_not_finished(tmp_path: Path) -> None:
    failing = stage("one", tmp_path, "import sys; open(sys.argv[1], 'w').close(); sys.exit(3)")
    with pytest.raises(StageFailed, match=r"exit status 3, .* exists"):
        run_stages([failing], tmp_path)
    assert finished_record(failing, tmp_path) is None


def test_times_of_all_attempts_are_summed(tmp_path: Path) -> None:
    before = {"finished": False, "seconds": 50.0, "core_seconds": 40.0, "lost": 2}
    (tmp_path / "one.json").write_text(json.dumps(before))
    (record,) = run_stages([stage("one", tmp_path)], tmp_path)
    assert record.seconds > 50
    assert record.core_seconds > 40
    assert record.lost == 2


def test_the_end_of_the_log_is_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="the reason is this"):
        run_stages([stage("one", tmp_path, "exit('the reason is this')")], tmp_path, log_files=True)


def test_another_command_under_the_same_name_is_refused(tmp_path: Path) -> None:
    run_stages([stage("one", tmp_path)], tmp_path)
    with pytest.raises(ValueError, match="another command"):
        run_stages([stage("one", tmp_path, text="y")], tmp_path)
    assert (tmp_path / "one.txt").read_text() == "x"


def test_an_identity_takes_the_place_of_the_command(tmp_path: Path) -> None:
    run_stages([stage("one", tmp_path)._replace(identity="same")], tmp_path)
    run_stages([stage("one", tmp_path, text="y")._replace(identity="same")], tmp_path)
    assert (tmp_path / "one.txt").read_text() == "x"


def test_order_of_stages_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'two' needs 'one', which is not before it"):
        run_stages([stage("two", tmp_path, needs=("one",)), stage("one", tmp_path)], tmp_path)
    with pytest.raises(ValueError, match="two stages are named 'one'"):
        run_stages([stage("one", tmp_path), stage("one", tmp_path)], tmp_path)


def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    """Each of the two waits for the other, so one after the other they would never end."""
    meet = (
        "import pathlib, sys, time; p = pathlib.Path(sys.argv[1]); p.touch()\n"
        "while len(list(p.parent.glob('*.txt'))) < 2: time.sleep(0.02)"
    )
    run_stages([stage("one", tmp_path, meet), stage("two", tmp_path, meet)], tmp_path, jobs=2)


def test_processor_time_is_that_of_the_stage(tmp_path: Path) -> None:
    burn = (
        "import pathlib, sys, time\nwhile time.process_time() < 0.5: pass\n"
        "pathlib.Path(sys.argv[1]).touch()"
    )
    idle = "import pathlib, sys, time\ntime.sleep(0.7)\npathlib.Path(sys.argv[1]).touch()"
    stages = [stage("burn", tmp_path, burn), stage("idle", tmp_path, idle)]
    busy, waiting = run_stages(stages, tmp_path)
    assert 0.45 < busy.core_seconds < 3
    assert waiting.core_seconds < 0.4
    assert waiting.seconds >= 0.7


def runner(folder: Path) -> subprocess.Popen[bytes]:
    """A process that runs three stages; the second one waits until it is let go."""
    commands = {
        name: stage(name, folder, WAIT if name == "two" else APPEND).command
        for name in ("one", "two", "three")
    }
    # The module alone: importing the package takes seconds.
    script = textwrap.dedent(
        f"""
        import importlib.util, pathlib, sys
        spec = importlib.util.spec_from_file_location("stages", {stages_module.__file__!r})
        module = sys.modules["stages"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        folder, needs, work = pathlib.Path({str(folder)!r}), (), []
        for name, command in {commands!r}.items():
            work.append(module.Stage(name, command, folder / f"{{name}}.txt", needs))
            needs = (name,)
        module.run_stages(work, folder)
        """
    )
    return subprocess.Popen([sys.executable, "-c", script])


def process_of(stage_name: str) -> list[int]:
    """Processes whose command line names the product of a stage."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(part.endswith(f"/{stage_name}.txt".encode()) for part in line):
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes by /proc")
def test_killed_work_goes_on_without_repeating_what_is_done(tmp_path: Path) -> None:
    first = runner(tmp_path)
    until((tmp_path / "two.begun").exists)
    for process in (first.pid, *process_of(f"{tmp_path.name}/two")):
        os.kill(process, signal.SIGKILL)
    first.wait()
    (tmp_path / "go").touch()
    second = runner(tmp_path)
    assert second.wait(30) == 0
    assert (tmp_path / "one.txt").read_text() == "x"  # not run again
    assert (tmp_path / "two.begun").read_text() == "xx"  # run again: it had not finished
    assert (tmp_path / "two.txt").read_text() == (tmp_path / "three.txt").read_text() == "x"
    assert json.loads((tmp_path / "two.json").read_text())["lost"] == 1


def test_stage_that_outlives_its_runner_is_waited_for(tmp_path: Path) -> None:
    first = runner(tmp_path)
    until((tmp_path / "two.begun").exists)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = runner(tmp_path)
    time.sleep(1.5)
    assert (tmp_path / "two.begun").read_text() == "x"  # the orphan still has it
    (tmp_path / "go").touch()
    assert second.wait(30) == 0
    assert (tmp_path / "three.txt").read_text() == "x"


def test_processes_share_the_work(tmp_path: Path) -> None:
    """Four at once over the same twelve stages: each stage is run exactly once."""
    slow = "import time; time.sleep(0.05); " + APPEND
    stages = [stage(f"s{i}", tmp_path, slow) for i in range(12)]
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run_stages(stages, tmp_path / "records")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert [one.product.read_text() for one in stages] == ["x"] * 12


def test_a_request_to_stop_is_passed_on_and_ends_the_work(tmp_path: Path) -> None:
    first = runner(tmp_path)
    until((tmp_path / "two.begun").exists)
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) != 0
    assert not (tmp_path / "two.txt").exists()
    assert not (tmp_path / "three.txt").exists()
