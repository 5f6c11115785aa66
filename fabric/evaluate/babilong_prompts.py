"""What stands around BABILong's contexts: an instruction, worked examples and the form of the answer.

The order, qa1's instruction and the forms of answers are the leaderboard's (arXiv 2406.10149); the other instructions
and all worked examples are our own, about persons, places and items that bAbI's stories do not have.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Texts:
    """What stands around a context: instruction, worked examples (facts and question, answer), form of the answer."""

    instruction: str
    examples: tuple[tuple[str, str], ...]
    form: str

    @property
    def head(self) -> str:
        """All that stands before the context."""
        shown = "\n\n".join(
            f"<example>\n{told}\nAnswer: {answer}\n</example>" for told, answer in self.examples
        )
        return f"{self.instruction}\n\n{shown}\n\n{self.form}\n\n<context>\n"


def tail(question: str) -> str:
    """All that stands after the context."""
    return f"\n</context>\n\nQuestion: {question}".rstrip()


ONLY_FACTS = "Answer by the facts alone."
NOTHING_ELSE = "Do not write anything else after that."
ITEMS = (
    "I will give you context with facts about where persons went and what they did with items, hidden in some random "
    "text, and a question. An item is where the person who holds it is; an item that was left stays where it was left. "
    + ONLY_FACTS
)
TEXTS = {
    "qa1": Texts(
        "I will give you context with the facts about positions of different persons hidden in some random text and a "
        "question. You need to answer the question based only on the information from the facts. If a person was in "
        "different locations, use the latest location to answer the question.",
        (
            (
                "Nora went to the cellar. Peter moved to the attic. Where is Nora?",
                "The most recent location of Nora is cellar.",
            ),
            (
                "Peter travelled to the porch. Nora went to the attic. Peter moved to the cellar. Where is Peter?",
                "The most recent location of Peter is cellar.",
            ),
        ),
        "Always return your answer in the following format: The most recent location of ’person’ is ’location’. "
        + NOTHING_ELSE,
    ),
    "qa2": Texts(
        ITEMS,
        (
            ("Nora went to the cellar. Nora took the lamp. Where is the lamp?", "The lamp is in the cellar."),
            (
                "Peter took the rope. Peter moved to the attic. Peter left the rope. Peter went to the porch. Where is "
                "the rope?",
                "The rope is in the attic.",
            ),
        ),
        f"Always return your answer in the following format: The ’item’ is in ’location’. {NOTHING_ELSE}",
    ),
    "qa3": Texts(
        ITEMS,
        (
            (
                "Nora took the lamp. Nora went to the cellar. Nora went to the porch. Where was the lamp before the "
                "porch?",
                "Before the porch the lamp was in the cellar.",
            ),
            (
                "Peter moved to the attic. Peter took the rope. Nora went to the porch. Peter went to the cellar. "
                "Where was the rope before the cellar?",
                "Before the cellar the rope was in the attic.",
            ),
        ),
        "Always return your answer in the following format: Before the $location_1$ the $item$ was in the "
        f"$location_2$. {NOTHING_ELSE}",
    ),
    "qa4": Texts(
        "I will give you context with facts about how places lie to one another, hidden in some random text, and a "
        f"question. {ONLY_FACTS}",
        (
            (
                "The cellar is south of the porch. The attic is north of the porch. What is north of the porch?",
                "attic",
            ),
            (
                "The attic is west of the cellar. The cellar is west of the porch. What is the cellar west of?",
                "porch",
            ),
        ),
        f"Your answer should contain only one word - location. {NOTHING_ELSE}",
    ),
    "qa5": Texts(
        "I will give you context with facts about who gave which item to whom, hidden in some random text, and a "
        f"question. {ONLY_FACTS}",
        (
            ("Nora took the lamp. Nora gave the lamp to Peter. Who gave the lamp to Peter?", "Nora"),
            ("Peter took the rope. Peter handed the rope to Nora. What did Peter give to Nora?", "rope"),
        ),
        f"Your answer should contain only one word. {NOTHING_ELSE}",
    ),
}
