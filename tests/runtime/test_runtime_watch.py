"""A main thread that waits for an answer of a dead Ray: the process ends with a word that helps."""

from __future__ import annotations

import subprocess
import sys
import time

WAITS = """
import threading, time
from fabric.runtime import connect
connect.lost_processes = lambda: ["raylet"]
connect.GRACE = 0.2
threading.Thread(target=connect._watch, args=(threading.Event(),), daemon=True).start()
time.sleep(30)
"""


def test_a_waiting_main_thread_is_ended_with_a_message() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=25)
    assert time.monotonic() - began < 25
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: Ray's raylet ended under the sweep")
    assert "the same command goes on" in done.stderr


def test_nothing_is_ended_when_the_main_thread_noticed_itself() -> None:
    code = WAITS.replace("(threading.Event(),)", "(over,)").replace("time.sleep(30)", "time.sleep(1)")
    noticed = "over = threading.Event()\nthreading.Timer(0.6, over.set).start()\n"
    code = code.replace("threading.Thread", noticed + "threading.Thread", 1).replace(
        "GRACE = 0.2", "GRACE = 5"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
