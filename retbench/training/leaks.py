"""The leak filter: a training query that is also asked in an evaluation is taken out, and the number is told."""

from collections.abc import Iterable

from retbench.training.training_set import TrainingSet


def remove_leaked_queries(training: TrainingSet, asked: Iterable[str]) -> TrainingSet:
    """The set without the queries whose text is that of an evaluated query, whatever its spaces."""
    known = set(map(_collapse_whitespace, asked))
    texts = [_collapse_whitespace(query.text) for query in training.queries]
    kept = [query for query, text in zip(training.queries, texts, strict=True) if text not in known]
    removed = len(training.queries) - len(kept)
    return training.with_queries(kept, leaked_queries_removed=removed, leaked_texts=len(known & set(texts)))


def _collapse_whitespace(text: str) -> str:
    return " ".join(text.split())
