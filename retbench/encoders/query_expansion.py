"""What late interaction adds to the tokens of a text: markers as one token, expansion tokens after a short query."""

import copy
from typing import TYPE_CHECKING

import numpy as np

from retbench.cards.method import Method, Role
from retbench.errors import InapplicableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def register_markers(tokenizer: "PreTrainedTokenizerBase", method: Method) -> "PreTrainedTokenizerBase":
    """Return a tokenizer that reads each marker of the method as the one token that the model was trained with.

    A marker such as `[unused0]` is in the vocabulary, but a tokenizer cuts it into pieces if it stands in a text. A
    marker that the vocabulary lacks stays ordinary text, as in training.
    """
    from tokenizers import AddedToken

    markers = method.late_interaction.markers if method.late_interaction else ()
    known = tokenizer.get_vocab()
    tokens = []
    for marker in filter(str.strip, markers):
        name = next((form for form in (marker, marker.split()[0]) if form in known), None)
        if name is not None and tokenizer.tokenize(name) != [name]:
            tokens.append(AddedToken(name, normalized=False, special=True))
    if not tokens:
        return tokenizer
    changed = copy.deepcopy(tokenizer)  # another method reads the same characters as text
    changed.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    return changed


def expand_rows(
    tokenizer: "PreTrainedTokenizerBase", method: Method, role: Role, rows: list[list[int]]
) -> tuple[list[list[int]], np.ndarray | None]:
    """Add expansion tokens to short queries; also return how many tokens of each row others may read, if not all."""
    settings = method.late_interaction
    if settings is None or settings.expansion_length is None or role == "document":
        return rows, None
    token = find_expansion_id(tokenizer, method)
    expanded = [row + [token] * (settings.expansion_length - len(row)) for row in rows]
    return expanded, None if settings.expansion_attended else np.array([len(row) for row in rows])


def find_expansion_id(tokenizer: "PreTrainedTokenizerBase", method: Method) -> int:
    """The id of the expansion token: the method's, else the mask token, else the end-of-sequence token."""
    name = method.late_interaction.expansion_token if method.late_interaction else None
    if name is not None:
        found = tokenizer.get_vocab().get(name)
    else:
        found = tokenizer.eos_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    if found is None:
        raise InapplicableError(
            f"method {method.name} expands queries by {name or 'a mask token'}, which this tokenizer does not have",
            "fetch the tokenizer of the model again",
        )
    return int(found)
