"""Batches for e2rank: each query brings its own documents, ranked by a teacher and listed in one prompt.

The positive of the contrastive loss is the teacher's first document. In the prompt the documents have a random order,
or that of the data; in the teacher's order the model could read the ranking from their numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retbench.cards.recipe import ListwiseTraining, SourceInstructions
from retbench.encoders.listwise_prompt import ListwisePromptTokenizer, build_training_prompt
from retbench.errors import DataError
from retbench.training.contrastive_batches import ContrastiveBatch
from retbench.training.training_set import TrainingQuery, TrainingSet

PROMPT_OVERHEAD = 256  # tokens of a prompt besides its documents


@dataclass(frozen=True)
class ListwiseBatchSource:
    """Contrastive batches with one list prompt for each query."""

    training_set: TrainingSet
    settings: ListwiseTraining
    listwise_prompt: ListwisePromptTokenizer
    seed: int

    def __post_init__(self) -> None:
        too_short = sum(len(query.positives) + len(query.negatives) < 2 for query in self.training_set.queries)
        if too_short:
            raise DataError(
                f"{too_short} queries of {self.training_set.name} have one document, and a ranking needs two",
                "give negatives, or mine them: --set mining.source=model (bm25 finds only those that share a word)",
            )

    def __len__(self) -> int:
        return len(self.training_set.queries)

    def build_batch(self, rows: np.ndarray, epoch: int) -> ContrastiveBatch:
        """The batch of these queries, with their lists."""
        queries = [self.training_set.queries[int(row)] for row in rows]
        generators = [np.random.default_rng((self.seed, epoch, int(row))) for row in rows]
        rankings = [self._select_documents(*pair) for pair in zip(queries, generators, strict=True)]
        picks = [(owner, *ranking[0]) for owner, ranking in enumerate(rankings)]
        picks += [(owner, *document) for owner, ranking in enumerate(rankings) for document in ranking[1:]]
        positive_sets = [set(query.positives) for query in queries]
        relevant = np.array([[passage in positives for _, passage, _ in picks] for positives in positive_sets])
        prompts = tuple(
            self._build_prompt(query, [passage for passage, _ in ranking], generator)
            for query, ranking, generator in zip(queries, rankings, generators, strict=True)
        )
        passages = [self.training_set.passages[passage] for _, passage, _ in picks]
        owners, teacher_scores = np.array([pick[0] for pick in picks]), np.array([pick[2] for pick in picks])
        texts, own_instructions = (
            [query.text for query in queries],
            [self._find_instructions(query) for query in queries],
        )
        instructions = tuple(own.query if own else None for own in own_instructions)
        return ContrastiveBatch(texts, passages, owners, relevant, teacher_scores, prompts, instructions)

    def _find_instructions(self, query: TrainingQuery) -> SourceInstructions | None:
        return (self.settings.source_instructions or {}).get(query.source)

    def _select_documents(self, query: TrainingQuery, generator: np.random.Generator) -> list[tuple[int, float]]:
        """Documents with their teacher scores, best first; if there are too many, the best and a sample of the rest."""
        documents = [*query.positives, *query.negatives]
        scores = query.scores or (1.0,) * len(query.positives) + (0.0,) * len(query.negatives)
        order = np.argsort(-np.array(scores), kind="stable")
        if len(order) > self.settings.max_documents:
            rest = np.sort(generator.choice(len(order) - 1, self.settings.max_documents - 1, replace=False)) + 1
            order = order[np.append(0, rest)]
        return [(documents[index], float(scores[index])) for index in order]

    def _build_prompt(self, query: TrainingQuery, passages: list[int], generator: np.random.Generator) -> str:
        listed = [self.training_set.passages[passage] for passage in self._order_passages(query, passages, generator)]
        limit = (self.settings.max_tokens - PROMPT_OVERHEAD) // len(listed)
        documents = self.listwise_prompt.truncate_texts(listed, limit)
        tokenizer, own = self.listwise_prompt.prompt_tokenizer.tokenizer, self._find_instructions(query)
        end = str(tokenizer.pad_token or tokenizer.eos_token or "")
        return build_training_prompt(query.text, documents, own.prompt if own else None) + end

    def _order_passages(
        self, query: TrainingQuery, passages: list[int], generator: np.random.Generator
    ) -> Iterator[int]:
        """The order of the prompt: drawn, or the data's; a query without an order of its own gets a drawn one."""
        if self.settings.order == "given" and query.listed:
            return (passage for passage in query.listed if passage in passages)
        return (passages[index] for index in generator.permutation(len(passages)))


def limit_queries_per_source(training_set: TrainingSet, limit: int | None, seed: int) -> TrainingSet:
    """At most `limit` queries of each source, drawn with the seed; the others keep their order."""
    if limit is None:
        return training_set
    rows_by_source: dict[str, list[int]] = {}
    for row, query in enumerate(training_set.queries):
        rows_by_source.setdefault(query.source, []).append(row)
    generator = np.random.default_rng(seed)
    kept = [
        row
        for rows in rows_by_source.values()
        for row in (rows if len(rows) <= limit else generator.choice(rows, limit, replace=False).tolist())
    ]
    counts = {source or "-": min(len(rows), limit) for source, rows in rows_by_source.items()}
    return training_set.with_queries([training_set.queries[row] for row in sorted(kept)], sources=counts)
