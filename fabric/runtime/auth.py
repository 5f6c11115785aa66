"""Ray's token authentication: whether a session uses it, and a token that only its owner can read."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def settle(address: str | None) -> None:
    """Say explicitly whether this process's Ray uses tokens (Ray would decide anew at each start, for good).

    What RAY_AUTH_MODE says stands. Else a cluster that is joined gets a token where there is one at hand, and a cluster
    of this machine's own, which listens on loopback, needs none. A token's file is made readable for its owner only.
    """
    mode = os.environ.get(MODE)
    if mode is None:
        mode = "token" if address and (os.environ.get(TOKEN) or _file().is_file()) else "disabled"
        os.environ[MODE] = mode
        import ray

        raylet: Any = ray._raylet
        raylet.Config.initialize("")  # it was read when Ray was imported
    if mode.lower() == "token" and not os.environ.get(TOKEN):
        _private_token(create=address is None)


@contextlib.contextmanager
def asked_for_token(address: str | None) -> Iterator[None]:
    """Raises ConnectionError, with what to do, where the block's Ray has no token, or a wrong one."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ConnectionError(
            f"{address or 'Ray'} asks for a token ({str(error).splitlines()[0]}): put it into ~/.ray/auth_token, "
            "or set RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token"
        ) from None


def _file() -> Path:
    """Where Ray looks for a token."""
    given = os.environ.get(TOKEN_PATH)
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def _private_token(create: bool) -> None:
    """Take the rights of others off the token's file; where there is none and one is wanted, make it.

    Ray would make one that all can read. Where the home folder takes no file, the token lives in the environment.
    """
    file = _file()
    if file.is_file():
        with contextlib.suppress(OSError):  # another's file, which we can only read
            file.chmod(0o600)
        return
    if not create:
        return
    token = secrets.token_hex(32)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(token)
    except OSError:
        os.environ[TOKEN] = token
