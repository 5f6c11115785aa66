"""Fixtures of the data room's tests: small corpora, and a Ray session."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def ray_session():
    """A local Ray of two CPUs, or the one that is running."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        yield ray
        return
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """60 distinct paragraphs with accents, an emoji and a literal end-of-text mark, in one file."""
    text = "\n\n".join(
        f"Paragraph {i}: naïve café 🙂 {'word ' * (i % 7)}<|endofword|> {i * i}" for i in range(60)
    )
    path = tmp_path / "text" / "corpus.txt"
    path.parent.mkdir()
    path.write_text(text + "\n", encoding="utf-8")
    return path
