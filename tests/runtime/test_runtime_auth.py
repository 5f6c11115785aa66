"""Whether Ray's tokens are used is said explicitly, and a token's file is its owner's alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
from drill_kit import ROOT

from fabric.runtime import auth

ASK = """
import os, sys
from fabric.runtime.auth import settle
settle(sys.argv[1] or None)
from ray._raylet import AuthenticationMode, get_authentication_mode
known = {AuthenticationMode.TOKEN: "token", AuthenticationMode.DISABLED: "disabled"}
print(os.environ["RAY_AUTH_MODE"], known[get_authentication_mode()])
"""


@pytest.mark.parametrize(("address", "mode"), [("", "disabled"), ("10.0.0.1:6379", "token")])
def test_the_mode_is_said_where_nobody_said_it(tmp_path, address, mode):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("0123456789abcdef" * 2)
    file.chmod(0o644)
    environment = {**clean, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK, address], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [mode, mode]
    assert rights(file) == (0o600 if mode == "token" else 0o644)


def rights(file):
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture
def token_mode(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "made" / "token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    return tmp_path / "made" / "token"


def test_a_token_that_is_made_is_the_owners_alone(token_mode):
    auth.settle(None)
    assert len(token_mode.read_text()) == 64
    assert rights(token_mode) == 0o600
    made = token_mode.read_text()
    token_mode.chmod(0o644)
    auth.settle(None)
    assert (token_mode.read_text(), rights(token_mode)) == (made, 0o600)


def test_none_is_made_for_a_cluster_that_is_joined(token_mode):
    auth.settle("10.0.0.1:6379")
    assert not token_mode.exists()


def test_a_home_that_takes_no_file_keeps_the_token_in_the_environment(token_mode):
    token_mode.parent.write_text("a file where the folder would be")
    auth.settle(None)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
