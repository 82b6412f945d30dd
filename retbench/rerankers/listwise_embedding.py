"""E2Rank's reranking: the first documents and the query are one prompt (`encoders/listing.py`), embedded once.

What does not fit is shared out: every document may have equally many tokens, and one that would have too few is left
out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retbench.cards.reranker_settings import E2Rank
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.encoders.listwise_prompt import Sheet, text, words
from retbench.encoders.prompt_tokenizer import Tokens
from retbench.errors import InapplicableError
from retbench.rerankers.candidates import Pool
from retbench.rerankers.shares import LEAST, largest


@dataclass
class Counts:
    """What became of the texts, over all prompts."""

    prompts: int = 0
    tokens: int = 0
    prompts_cut: int = 0
    queries_cut: int = 0
    documents_left_out: int = 0


@dataclass
class Prompts:
    """From a query and its candidates to the tokens of one prompt that fits."""

    sheet: Sheet
    settings: E2Rank
    texts: Callable[[int], str]  # a document of the collection by its row
    counts: Counts = field(default_factory=Counts)

    def __call__(self, pool: Pool) -> Tokens:
        """The prompt of the first documents."""
        documents = [words(self.texts(int(row)), self.settings.words) for row in pool.rows[: self.settings.documents]]
        return self.fitted(pool.query, documents)

    def told(self, tokens: Tokens) -> dict[str, Any]:
        """A prompt in plain sight."""
        ids = tokens[0].tolist()
        return {"prompt": self.sheet.wording.tokenizer.decode(ids), "ids": ids}

    def fitted(self, query: str, documents: list[str]) -> Tokens:
        """The prompt's tokens; of too many, every document may have the same share, the largest that fits."""
        whole = self.sheet.tokens(text(query, documents))
        if len(whole.flat) <= self.sheet.limit:
            return whole
        self.counts.prompts_cut += 1
        query = self._short(query)
        for kept in range(len(documents), 1, -1):
            made = self._shared(query, documents[:kept])
            if made:
                self.counts.documents_left_out += len(documents) - kept
                return made
        raise InapplicableError(
            f"fewer than two documents of {LEAST} tokens fit into a prompt of {self.sheet.limit}",
            "use a model with a longer context",
        )

    def _short(self, query: str) -> str:
        """A query that would leave documents less than half of the room is cut to that half."""
        (short,) = self.sheet.cut([query], self.sheet.limit // 2)
        self.counts.queries_cut += short != query
        return short

    def _shared(self, query: str, documents: list[str]) -> Tokens | None:
        return largest(
            max(LEAST, *map(self.sheet.length, documents)),
            lambda share: self.sheet.tokens(text(query, self.sheet.cut(documents, share))),
            lambda made: len(made.flat) <= self.sheet.limit,
        )


@dataclass
class Listing:
    """The asker: embeds the prompt of each query."""

    encoder: DenseEncoder
    prompts: Prompts
    after: Callable[[np.ndarray], np.ndarray]
    shown: dict[str, Any] = field(default_factory=dict)

    def __call__(self, pool: Pool) -> np.ndarray:
        """The prompt's vector."""
        tokens, counts = self.prompts(pool), self.prompts.counts
        counts.prompts += 1
        counts.tokens += len(tokens.flat)
        self.shown = self.shown or self.prompts.told(tokens)
        return np.asarray(self.after(self.encoder.vectors(tokens))[0])

    def facts(self) -> dict[str, Any]:
        """Prompts, tokens and what was cut."""
        sheet = self.prompts.sheet
        return {**vars(self.prompts.counts), "limit": sheet.limit, "form": "chat" if sheet.chat else "plain"}

    def first(self) -> dict[str, Any]:
        """The first prompt as it was read."""
        return self.shown
