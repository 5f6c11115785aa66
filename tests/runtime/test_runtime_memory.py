"""A token cache of a gigabyte of text, built by Ray Data in two gigabytes of memory over all processes."""

from __future__ import annotations

import pytest

from fabric.bench import bench
from fabric.bench.bounded import family, proportional_bytes, write_plays


def test_what_a_process_holds_is_told_for_it_and_its_children(tmp_path):
    import os
    import subprocess
    import sys

    held = 50 << 20
    code = f"held = b'x' * {held}\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        assert child.pid in family(os.getpid())
        assert held < proportional_bytes(child.pid) < held + (50 << 20)
    finally:
        child.communicate(b"\n")
    assert proportional_bytes(child.pid) == 0
    write_plays(tmp_path / "text.txt", 6_000_000)
    assert 6_000_000 <= (tmp_path / "text.txt").stat().st_size < 12_000_000


@pytest.mark.slow
@pytest.mark.drill
def test_a_gigabyte_is_cached_in_two(tmp_path):
    found = bench("bounded", repeats=1, out=tmp_path)
    assert found["met"], found["figures"]
