"""A list as one text (E2Rank, arXiv 2510.22733): some documents and the query, as a prompt that an encoder reads once.

The bytes are those of the authors' code at c72cc0a: `ASKED` of src/eval.py, one instruction for every collection, as
their listwise mode never changes it; `TAUGHT` of src/data.py, whose default instruction and last line are others. Both
are one user turn with generation prompt, thinking disabled, no end-of-sequence token behind it. A model without a chat
template reads the same text as a query of its own method.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.engines.tokenizers import truncate_texts

EVALUATION_TEMPLATE = (
    "Given a web search query and some relevant documents, rerank the documents that answer the query:\n"
    "Documents:\n{documents}\nSearch Query: {query}"
)
TRAINING_TEMPLATE = (
    "Given a query and some relevant documents, rerank the documents that are the most relevant to the query:\n"
    "Documents:\n{documents}\nQuery: {query}"
)
NO_LIMIT = 1 << 30


def build_listwise_prompt(query: str, documents: Sequence[str], template: str = EVALUATION_TEMPLATE) -> str:
    """The prompt for one query."""
    listed = "\n".join(f"[{number}] {document}" for number, document in enumerate(documents, start=1))
    return template.format(documents=listed, query=query)


def take_first_words(document: str, max_words: int) -> str:
    """The document's first words, one space between them."""
    return " ".join(document.split()[:max_words])


@dataclass(frozen=True)
class ListwisePromptTokenizer:
    """From a prompt's text to token ids within a limit."""

    prompt_tokenizer: PromptTokenizer
    chat: bool
    limit: int = NO_LIMIT

    def tokenize(self, prompt: str) -> TokenizedTexts:
        """Token ids of the whole prompt, however many."""
        if not self.chat:
            return self.prompt_tokenizer.tokenize([prompt], "query", NO_LIMIT)
        spoken = self.prompt_tokenizer.tokenizer
        turn = [{"role": "user", "content": prompt}]
        asked = spoken.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        ids = np.array(spoken(str(asked), add_special_tokens=False)["input_ids"], dtype=np.int32)
        return TokenizedTexts(ids, np.array([0, len(ids)]), 0, 0)

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Each text's first tokens, as the bytes they stand for."""
        return truncate_texts(self.prompt_tokenizer.tokenizer, texts, max_tokens)

    def count_tokens(self, one: str) -> int:
        """Tokens of a text alone."""
        return len(self.prompt_tokenizer.tokenizer(one, add_special_tokens=False)["input_ids"])
