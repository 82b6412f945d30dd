"""`retbench overlap`: how much of a test collection stands, word for word, in a training set.

A text overlaps if a sequence of `words` words of it occurs in a query or a passage of the training set; case,
punctuation and white space are ignored. The collection's sequences are kept in memory and the training set is streamed,
so its size does not matter; of a large corpus a seeded sample is measured.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from retbench.cards import catalog
from retbench.corpora.open_collection import open_collection
from retbench.errors import UsageError
from retbench.training.training_data import TrainingRequest, iterate_training_texts, require_split
from retbench.training.training_set import JoinedTexts

WORD = re.compile(r"\w+")
MOST = 0.5  # a text of which at least this share of sequences occurs is mostly contained
EXAMPLES, EXAMPLE_LENGTH = 3, 80
SAMPLE_SEED = 0


@dataclass(frozen=True)
class OverlapRequest:
    """A training set and its split, a task, the length of sequences, and the most documents to measure."""

    dataset: str
    task: str
    split: str = "train"
    words: int = 8
    documents: int = 10_000
    log_status: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class RoleOverlap:
    """The overlap of a collection's queries or documents."""

    texts: int
    identical: int  # the whole text is a training text
    any_sequence: int
    most_sequences: int
    examples: tuple[str, ...]  # those with the largest share, best first


@dataclass(frozen=True)
class OverlapReport:
    """The overlap of both roles with one training set."""

    dataset: str
    task: str
    words: int
    training_texts: int
    queries: RoleOverlap
    documents: RoleOverlap

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return asdict(self)


class SequenceIndex:
    """The sequences of some texts, and which of them were seen in a training set."""

    def __init__(self, texts: Sequence[str], words: int) -> None:
        self.texts, self.words = texts, words
        self.rows_of_sequence: dict[str, list[int]] = {}
        self.rows_of_text: dict[str, list[int]] = {}
        self.counts = np.zeros(len(texts), dtype=np.int64)
        for row, text in enumerate(texts):
            sequences = set(list_sequences(text, words))
            self.counts[row] = len(sequences)
            for sequence in sequences:
                self.rows_of_sequence.setdefault(sequence, []).append(row)
            self.rows_of_text.setdefault(normalise(text), []).append(row)
        self.seen = np.zeros(len(texts), dtype=np.int64)
        self.identical = np.zeros(len(texts), dtype=bool)

    def mark(self, text: str) -> None:
        """Mark what occurs in a training text."""
        self.identical[self.rows_of_text.pop(normalise(text), [])] = True
        for sequence in list_sequences(text, self.words):
            rows = self.rows_of_sequence.pop(sequence, None)  # each sequence counts once
            if rows:
                self.seen[rows] += 1

    def summarise(self) -> RoleOverlap:
        """Count the texts that overlap."""
        share = self.seen / np.maximum(self.counts, 1)
        best = [int(row) for row in np.argsort(-share, kind="stable")[:EXAMPLES] if share[row] > 0]
        examples = tuple(f"{100 * share[row]:.0f}%: {self.texts[row][:EXAMPLE_LENGTH]}" for row in best)
        counts = (int(self.identical.sum()), int((share > 0).sum()), int((share >= MOST).sum()))
        return RoleOverlap(len(self.texts), *counts, examples)


def normalise(text: str) -> str:
    """The words of a text in lower case, with single spaces."""
    return " ".join(WORD.findall(text.lower()))


def list_sequences(text: str, words: int) -> Iterator[str]:
    """Every sequence of `words` words; a shorter text has none, because short phrases occur by chance."""
    found = WORD.findall(text.lower())
    for start in range(len(found) - words + 1):
        yield " ".join(found[start : start + words])


def measure_overlap(request: OverlapRequest) -> OverlapReport:
    """Measure how much of a task's queries and documents stands in a training set."""
    if request.words < 1:
        raise UsageError(f"--words {request.words} must be at least 1", "give 8, or 13 for long documents")
    training = TrainingRequest(request.dataset, "", split=request.split, force=True, log_status=request.log_status)
    try:
        require_split(training)
    except UsageError as problem:  # its next step is that of `finetune`
        raise UsageError(problem.cause, "name one of them: --split NAME") from problem
    card = catalog.find_task_card(request.task)
    collection = open_collection(replace(card, fingerprint=None))
    queries = SequenceIndex([query.text for query in collection.queries], request.words)
    corpus = JoinedTexts(collection.corpus, card.fields)
    documents = SequenceIndex([corpus[row] for row in _sample_rows(len(corpus), request.documents)], request.words)
    count = 0
    for text in iterate_training_texts(training):
        count += 1
        queries.mark(text)
        documents.mark(text)
    return OverlapReport(request.dataset, card.name, request.words, count, queries.summarise(), documents.summarise())


def _sample_rows(rows: int, most: int) -> Iterable[int]:
    if rows <= most:
        return range(rows)
    return sorted(np.random.default_rng(SAMPLE_SEED).choice(rows, most, replace=False).tolist())
