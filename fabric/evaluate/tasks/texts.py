"""Texts to be predicted, as their files are."""

from __future__ import annotations

from fabric.evaluate.perplexity import TextTask

TASKS = (
    TextTask(
        name="wikitext2",
        about="Wikipedia articles (WikiText-2's test split, tokenised, rare words <unk>)",
        files=("wikitext-2/test.txt", "wikitext-2/wiki.test.tokens"),
        hub=("Salesforce/wikitext", "wikitext-2-v1", "test"),
    ),
    TextTask(
        name="tinyshakespeare",
        about="plays (all of tinyshakespeare)",
        files=("tinyshakespeare/input.txt",),
    ),
    TextTask(name="text", about="a text file of the user's own"),
)
