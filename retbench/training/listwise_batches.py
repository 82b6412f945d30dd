"""Batches for e2rank: each query brings its own documents, ranked by a teacher and listed in one prompt.

The positive of the contrastive loss is the teacher's first document. In the prompt the documents have a random order;
in the teacher's order the model could read the ranking from their numbers.
"""

from dataclasses import dataclass

import numpy as np

from retbench.cards.recipe import ListwiseTraining
from retbench.encoders.listwise_prompt import TRAINING_TEMPLATE, ListwisePromptTokenizer, build_listwise_prompt
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
    document_limit: int
    seed: int

    def __post_init__(self) -> None:
        too_short = sum(len(query.positives) + len(query.negatives) < 2 for query in self.training_set.queries)
        if too_short:
            raise DataError(
                f"{too_short} queries of {self.training_set.name} have one document, and a ranking needs two",
                "give negatives, or mine them: --set mining.source=bm25",
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
        texts = [query.text for query in queries]
        return ContrastiveBatch(texts, passages, owners, relevant, teacher_scores, prompts)

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
        shuffled = [self.training_set.passages[passages[index]] for index in generator.permutation(len(passages))]
        limit = min(self.document_limit, (self.settings.max_tokens - PROMPT_OVERHEAD) // len(shuffled))
        documents = self.listwise_prompt.truncate_texts(shuffled, limit)
        tokenizer = self.listwise_prompt.prompt_tokenizer.tokenizer
        end = str(tokenizer.pad_token or tokenizer.eos_token or "")
        return build_listwise_prompt(query.text, documents, TRAINING_TEMPLATE) + end
