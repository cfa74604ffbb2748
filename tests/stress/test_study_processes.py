"""The process of an arm: what it writes, what it says when it fails, and that it ends with a killed parent."""
import subprocess
import sys
import time

import pytest

from nanoharmon.evals import arm
from nanoharmon.files import write_json

ROOT = arm.Path(arm.__file__).parents[2]
pytestmark = pytest.mark.stress


def test_what_a_process_writes_is_read(tmp_path, capfd):
    assert arm.run_apart(write_json, (tmp_path / "a.json", {"a": 1}), tmp_path / "a.json") == {"a": 1}
    with pytest.raises(ValueError, match="exit code 2"):
        arm.run_apart(write_json, (tmp_path / "no" / "a.json", {}), tmp_path / "no" / "a.json")
    assert capfd.readouterr().err.count("error: ") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_it_ends_with_a_killed_parent(tmp_path):
    code = (f"import multiprocessing, sys, threading, time\nsys.path.append({str(ROOT)!r})\n"
            "from nanoharmon.evals import arm\n"
            "if __name__ == '__main__':\n"
            "    threading.Thread(target=arm.run_apart, args=(time.sleep, (60,), arm.Path('none'))).start()\n"
            "    while not multiprocessing.active_children():\n        time.sleep(0.1)\n"
            "    time.sleep(8)\n    print(multiprocessing.active_children()[0].pid, flush=True)\n    time.sleep(60)\n")
    (tmp_path / "parent.py").write_text(code, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, encoding="utf-8")
    with open(f"/proc/{int(parent.stdout.readline())}/stat", encoding="utf-8") as stat:   # stays that process
        parent.kill()
        parent.wait()
        for _ in range(100):
            try:
                stat.seek(0)
                if stat.read().split()[2] == "Z":
                    return
            except ProcessLookupError:
                return
            time.sleep(0.1)
    pytest.fail("an arm's process outlived its parent by 10 seconds")
