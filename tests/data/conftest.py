"""A small corpus for the data room's tests."""

from pathlib import Path

import pytest


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
