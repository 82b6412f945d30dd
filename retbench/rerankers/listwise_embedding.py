"""E2Rank reranking: the first documents and the query form one prompt (`encoders/listwise_prompt.py`), embedded once.

If the prompt is too long, every document is cut to the same number of tokens. If that number is too small, the last
documents are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retbench.cards.reranker_settings import E2RankSettings
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.encoders.listwise_prompt import ListwisePromptTokenizer, build_listwise_prompt
from retbench.encoders.prompt_tokenizer import TokenizedTexts, take_first_words
from retbench.errors import InapplicableError
from retbench.rerankers.candidates import MIN_DOCUMENT_TOKENS, Candidates, find_largest_share


@dataclass
class PromptCounts:
    """Prompts, tokens and texts cut, over all queries."""

    prompts: int = 0
    tokens: int = 0
    prompts_cut: int = 0
    queries_cut: int = 0
    documents_left_out: int = 0


@dataclass
class ListwisePromptBuilder:
    """Builds the token ids of one prompt, within the length limit, from a query and its candidates."""

    sheet: ListwisePromptTokenizer
    settings: E2RankSettings
    load_text: Callable[[int], str]  # a document's text by its row in the corpus
    counts: PromptCounts = field(default_factory=PromptCounts)

    def build(self, candidates: Candidates) -> TokenizedTexts:
        """Build the prompt of the first documents."""
        documents = [
            take_first_words(self.load_text(int(row)), self.settings.words)
            for row in candidates.rows[: self.settings.documents]
        ]
        return self.fit_prompt(candidates.query, documents)

    def show_prompt(self, tokens: TokenizedTexts) -> dict[str, Any]:
        """Return a prompt as text and token ids, for `sample.json` and `--dry-run`."""
        ids = tokens[0].tolist()
        return {"prompt": self.sheet.prompt_tokenizer.tokenizer.decode(ids), "ids": ids}

    def fit_prompt(self, query: str, documents: list[str]) -> TokenizedTexts:
        """Tokenise the prompt; if it is too long, cut all documents to the same, largest possible length."""
        tokens = self.sheet.tokenize(build_listwise_prompt(query, documents))
        if len(tokens.flat) <= self.sheet.limit:
            return tokens
        self.counts.prompts_cut += 1
        query = self._cut_query(query)
        for count in range(len(documents), 1, -1):
            fitting = self._cut_documents(query, documents[:count])
            if fitting:
                self.counts.documents_left_out += len(documents) - count
                return fitting
        raise InapplicableError(
            f"a prompt of {self.sheet.limit} tokens cannot hold two documents of {MIN_DOCUMENT_TOKENS} tokens",
            "use a model with a longer context",
        )

    def _cut_query(self, query: str) -> str:
        """Cut the query to half of the limit, so that the documents have the other half."""
        (short,) = self.sheet.truncate_texts([query], self.sheet.limit // 2)
        self.counts.queries_cut += short != query
        return short

    def _cut_documents(self, query: str, documents: list[str]) -> TokenizedTexts | None:
        return find_largest_share(
            max(MIN_DOCUMENT_TOKENS, *map(self.sheet.count_tokens, documents)),
            lambda share: self.sheet.tokenize(
                build_listwise_prompt(query, self.sheet.truncate_texts(documents, share))
            ),
            lambda tokens: len(tokens.flat) <= self.sheet.limit,
        )


@dataclass
class ListwisePromptEmbedder:
    """Embeds one listwise prompt per query."""

    encoder: DenseEncoder
    prompt_builder: ListwisePromptBuilder
    postprocess: Callable[[np.ndarray], np.ndarray]
    first_prompt: dict[str, Any] = field(default_factory=dict)

    def embed(self, candidates: Candidates) -> np.ndarray:
        """Return the embedding of the prompt."""
        tokens, counts = self.prompt_builder.build(candidates), self.prompt_builder.counts
        counts.prompts += 1
        counts.tokens += len(tokens.flat)
        self.first_prompt = self.first_prompt or self.prompt_builder.show_prompt(tokens)
        return np.asarray(self.postprocess(self.encoder.encode(tokens))[0])

    def collect_statistics(self) -> dict[str, Any]:
        """Return prompts, tokens, texts cut, the length limit and the prompt's form."""
        sheet = self.prompt_builder.sheet
        return {**vars(self.prompt_builder.counts), "limit": sheet.limit, "form": "chat" if sheet.chat else "plain"}

    def sample(self) -> dict[str, Any]:
        """Return the first prompt as text and token ids."""
        return self.first_prompt
