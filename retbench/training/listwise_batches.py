"""Rankings to learn from, for e2rank: a query's own documents as a teacher orders them, and all in one prompt.

The contrast's positive is the teacher's first document. In the prompt the documents stand in an order that is drawn:
the teacher's would let the model read the answer off the numbers.
"""

from dataclasses import dataclass

import numpy as np

from retbench.cards.recipe import ListwiseTraining
from retbench.encoders.listwise_prompt import TRAINING_TEMPLATE, ListwisePromptTokenizer, build_listwise_prompt
from retbench.errors import DataError
from retbench.training.contrastive_batches import ContrastiveBatch
from retbench.training.training_set import TrainingQuery, TrainingSet

PROMPT_OVERHEAD = 256  # tokens of a prompt that are not documents


@dataclass(frozen=True)
class ListwiseBatchSource:
    """Groups whose queries bring a list each."""

    training_set: TrainingSet
    settings: ListwiseTraining
    listwise_prompt: ListwisePromptTokenizer
    document_limit: int
    seed: int

    def __post_init__(self) -> None:
        short = sum(len(query.positives) + len(query.negatives) < 2 for query in self.training_set.queries)
        if short:
            raise DataError(
                f"{short} queries of {self.training_set.name} have one document: there is nothing to rank",
                "give negatives, or mine them: --set mining.source=bm25",
            )

    def __len__(self) -> int:
        return len(self.training_set.queries)

    def build_batch(self, rows: np.ndarray, epoch: int) -> ContrastiveBatch:
        """The contrast of these queries, and their lists."""
        queries = [self.training_set.queries[int(row)] for row in rows]
        draws = [np.random.default_rng((self.seed, epoch, int(row))) for row in rows]
        slates = [self._select_documents(query, draw) for query, draw in zip(queries, draws, strict=True)]
        picks = [(q, *slate[0]) for q, slate in enumerate(slates)]
        picks += [(q, *one) for q, slate in enumerate(slates) for one in slate[1:]]
        right = [set(query.positives) for query in queries]
        relevant = np.array([[passage in positives for _, passage, _ in picks] for positives in right])
        prompts = tuple(
            self._build_prompt(query, [passage for passage, _ in slate], draw)
            for query, slate, draw in zip(queries, slates, draws, strict=True)
        )
        passages = [self.training_set.passages[passage] for _, passage, _ in picks]
        owner, teacher = np.array([q for q, _, _ in picks]), np.array([value for _, _, value in picks])
        return ContrastiveBatch([query.text for query in queries], passages, owner, relevant, teacher, prompts)

    def _select_documents(self, query: TrainingQuery, draw: np.random.Generator) -> list[tuple[int, float]]:
        """A query's documents with the teacher's values, best first; of too many, the best and a draw of the rest."""
        known = [*query.positives, *query.negatives]
        values = query.scores or (1.0,) * len(query.positives) + (0.0,) * len(query.negatives)
        order = np.argsort(-np.array(values), kind="stable")
        if len(order) > self.settings.max_documents:
            rest = np.sort(draw.choice(len(order) - 1, self.settings.max_documents - 1, replace=False)) + 1
            order = order[np.append(0, rest)]
        return [(known[place], float(values[place])) for place in order]

    def _build_prompt(self, query: TrainingQuery, passages: list[int], draw: np.random.Generator) -> str:
        shown = [self.training_set.passages[passages[place]] for place in draw.permutation(len(passages))]
        share = min(self.document_limit, (self.settings.max_tokens - PROMPT_OVERHEAD) // len(shown))
        spoken = self.listwise_prompt.prompt_tokenizer.tokenizer
        return build_listwise_prompt(
            query.text, self.listwise_prompt.truncate_texts(shown, share), TRAINING_TEMPLATE
        ) + str(spoken.pad_token or spoken.eos_token or "")
