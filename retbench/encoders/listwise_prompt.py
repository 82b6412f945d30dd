"""The listwise prompt of E2Rank (arXiv 2510.22733): some documents and the query in one text, encoded in one pass.

The templates are byte for byte those of the authors' code at c72cc0a: `EVALUATION_TEMPLATE` from src/eval.py, with one
instruction for all collections; `TRAINING_TEMPLATE` from src/data.py, where the last line differs and each source
has its own instruction.
Both are one user turn with generation prompt, thinking disabled, without an end-of-sequence token. A model without a
chat template encodes the same text as a query of its method.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.engines.chat_template import render_chat
from retbench.engines.tokenizers import truncate_texts

EVALUATION_TEMPLATE = (
    "Given a web search query and some relevant documents, rerank the documents that answer the query:\n"
    "Documents:\n{documents}\nSearch Query: {query}"
)
TRAINING_TEMPLATE = "{instruction}:\nDocuments:\n{documents}\nQuery: {query}"
TRAINING_INSTRUCTION = (  # of a source without one of its own
    "Given a query and some relevant documents, rerank the documents that are the most relevant to the query"
)
NO_LIMIT = 1 << 30


def build_listwise_prompt(query: str, documents: Sequence[str]) -> str:
    """The prompt for one query, in evaluation."""
    return EVALUATION_TEMPLATE.format(documents=_number_documents(documents), query=query)


def build_training_prompt(query: str, documents: Sequence[str], instruction: str | None) -> str:
    """The prompt for one query, in training."""
    return TRAINING_TEMPLATE.format(
        instruction=instruction or TRAINING_INSTRUCTION, documents=_number_documents(documents), query=query
    )


def _number_documents(documents: Sequence[str]) -> str:
    return "\n".join(f"[{number}] {document}" for number, document in enumerate(documents, start=1))


@dataclass(frozen=True)
class ListwisePromptTokenizer:
    """Turns a listwise prompt into token ids; `limit` is the maximum for callers that build the prompt."""

    prompt_tokenizer: PromptTokenizer
    chat: bool
    limit: int = NO_LIMIT

    def tokenize(self, prompt: str) -> TokenizedTexts:
        """Token ids of the whole prompt, without truncation."""
        if not self.chat:
            return self.prompt_tokenizer.tokenize([prompt], "query", NO_LIMIT)
        tokenizer = self.prompt_tokenizer.tokenizer
        turns = [{"role": "user", "content": prompt}]
        chat = render_chat(tokenizer, turns, add_generation_prompt=True, enable_thinking=False)
        ids = np.array(tokenizer(chat, add_special_tokens=False)["input_ids"], dtype=np.int32)
        return TokenizedTexts(ids, np.array([0, len(ids)]), 0, 0)

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """The first tokens of each text, as the original characters."""
        return truncate_texts(self.prompt_tokenizer.tokenizer, texts, max_tokens)

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text, without special tokens."""
        return len(self.prompt_tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"])
