from pathlib import Path

import pytest
from train_kit import make_cache

from fabric.store import Store


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """(DataConfig, TokenCache) of a small text."""
    return make_cache(tmp_path_factory.mktemp("train-data"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")
