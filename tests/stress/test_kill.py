"""Real kills and signals: nothing that was saved is lost.     python -m pytest -q tests/stress/test_kill.py -m stress
The long version of the first test is `python tests/stress/kill.py`."""
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nanoharmon.training.parallel import launch
from nanoharmon.weights.states import latest_state

pytestmark = pytest.mark.stress
ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("procs, stages", [("2", ["llm"]), ("1", ["vae", "llm", "mar", "1"])])
def test_killed_runs_end_as_the_unbroken_one(procs, stages):
    """Kills between a state's last byte and its rename, of a single process, and at random moments."""
    short = ["--n", "4", "--procs", procs, "--steps", "3", "--stages", *stages]
    done = subprocess.run([sys.executable, "tests/stress/kill.py", *short], cwd=ROOT, capture_output=True,
                          encoding="utf-8", env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout and "writing a state, before os.replace of step_0000002" in done.stdout
    assert procs == "1" or re.search(r"process \d alone", done.stdout), done.stdout


def wait_for(condition, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited too long"
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_two_processes_end_with_their_parent(tmp_path):
    flags = ["--preset", "pico", "--stage", "llm", "--stage_llm.steps=3000", "--save-every", "2", "--procs", "2"]
    parent = subprocess.Popen([sys.executable, "train.py", *flags, "--out", str(tmp_path)], cwd=ROOT, env=ONE_THREAD,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: latest_state(tmp_path / "stage_llm") or parent.poll() is not None)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="utf-8").split()
    finally:
        parent.kill()                                                 # no handler runs: the children are on their own
        parent.wait()
    assert len(children) >= 2
    wait_for(lambda: not any(alive(pid) for pid in children), 30)
    assert not (tmp_path / "stage_llm" / "config.json").exists() and not list(tmp_path.glob(".*"))


def waits(rank, world_size, store, stop, path):
    if path is None:
        raise ValueError("the reason")
    stop.polite = True
    path.write_bytes(b"ready")
    while not stop.code:
        time.sleep(0.01)
    path.write_text(f"saved {stop.code}", encoding="utf-8")
    sys.exit(stop.code)


def test_an_error_of_a_process_is_raised_and_a_signal_to_the_parent_is_passed_on(tmp_path):
    with pytest.raises(ValueError, match="^the reason$"):
        launch(waits, 2, None)
    path = tmp_path / "file"

    def terminate():
        wait_for(path.exists)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(SystemExit) as e:
        launch(waits, 1, path)
    assert e.value.code == 143 and path.read_text(encoding="utf-8") == "saved 143"
