"""The prompt of a language model that scores a query and a document together, such as Qwen3-Reranker.

The model is not trained to give a number. It reads one prompt for each pair, and the score comes from the logits of its
next token: that of the answer yes minus that of the answer no.
"""

import re
from dataclasses import dataclass

from retbench.errors import DataError

PLACE = re.compile(r"\{(instruction|query|document)\}")


@dataclass(frozen=True)
class PairPrompt:
    """`pieces` are tokenized one by one and joined as token ids, because the authors' code does so.

    `{query}` and `{document}` stand in one piece each, `{instruction}` in none or one. `yes` and `no` are the answers,
    a token each; with `no = ""` the score is the logit of `yes`. `instruction` is used where the user and the task
    give none.
    """

    pieces: tuple[str, ...]
    yes: str = "yes"
    no: str = "no"
    instruction: str | None = None

    def __post_init__(self) -> None:
        places = [place for piece in self.pieces for place in PLACE.findall(piece)]
        for place in ("query", "document"):
            if places.count(place) != 1:
                raise DataError(
                    f"the pieces of the prompt have {{{place}}} {places.count(place)} times", "write it exactly once"
                )
        if places.count("instruction") > 1:
            raise DataError(
                "the pieces of the prompt have {instruction} more than once", "write it once, or not at all"
            )
        if "instruction" in places and not self.instruction:
            raise DataError("the prompt has {instruction} but no instruction", 'write instruction = "..."')

    @property
    def uses_instruction(self) -> bool:
        """Whether the prompt has a place for an instruction."""
        return any("{instruction}" in piece for piece in self.pieces)


def fill_piece(piece: str, **values: str) -> str:
    """Put texts into their places; a place without a text stays, and a place inside of a text is text."""
    return PLACE.sub(lambda place: values.get(place[1], place[0]), piece)
