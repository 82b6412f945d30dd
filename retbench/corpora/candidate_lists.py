"""Candidate lists: for each query the documents that a first stage found, with their texts, best first.

One JSON object a line, as llm4ranking and E2Rank publish them: `query`, and `hits` with `qid`, `docid`, `score` and
`content`. A collection made of them needs no corpus: its documents are those of the lists. It is for reranking, and its
first stage is the model `candidate-list`, because other models would only search among the candidates.

In a folder the lists are `candidates.jsonl`, beside the judgments `qrels/<split>.tsv`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from retbench.corpora import beir_folder
from retbench.corpora.judgments import read_judgments
from retbench.corpora.rows import Exclusion, ListedDocument, RawCollection, TextRow
from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError
from retbench.system.text_parsers import parse_json

FILE_NAME = "candidates.jsonl"
FORMAT = 'write lines like {"query": "...", "hits": [{"qid": "1", "docid": "a", "score": 9.5, "content": "..."}]}'


class CandidateList(NamedTuple):
    """The candidates of one query: (document id, score, text), best first."""

    query_id: str
    query: str
    candidates: list[tuple[str, float, str]]
    where: str


def read_candidate_lists(file: Path, trec_ids: bool = False) -> Iterator[CandidateList]:
    """Read the lists, one by one; a query with no candidates has no id, and is left out.

    TREC's judgments cannot have white space in an id, so `trec_ids` writes `_` for it, as the lists' authors do.
    """
    for line, where in read_lines(file):
        try:
            row = parse_json(line)
            hits = row["hits"]
            candidates = [(str(hit["docid"]), float(hit["score"]), str(hit.get("content") or "")) for hit in hits]
            ids = {str(hit["qid"]) for hit in hits}
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise DataError(f"{where}: not a candidate list: {problem!r:.80}", FORMAT) from problem
        if len(ids) > 1:
            raise DataError(f"{where}: the hits name several queries: {', '.join(sorted(ids)[:3])}", FORMAT)
        if trec_ids:
            candidates = [("_".join(document.split()), score, text) for document, score, text in candidates]
        if len({document for document, _, _ in candidates}) < len(candidates):
            raise DataError(f"{where}: a document is listed twice", "keep one of the two")
        if ids:
            yield CandidateList(ids.pop(), str(row.get("query") or ""), candidates, where)


def read_listed_collection(
    file: Path, splits: dict[str, Any], excluded: Iterable[Exclusion] = (), trec_ids: bool = False
) -> RawCollection:
    """Make a collection of the lists of a file, of judgments, and of documents that must not be ranked."""
    return RawCollection(
        _iterate_documents(file, trec_ids),
        (TextRow(entry.query_id, "", entry.query, entry.where) for entry in read_candidate_lists(file)),
        splits,
        excluded,
        published=True,  # most judged documents are in no list, and still count
        candidates=(
            ListedDocument(entry.query_id, document, score)
            for entry in read_candidate_lists(file, trec_ids)
            for document, score, _ in entry.candidates
        ),
    )


def _iterate_documents(file: Path, trec_ids: bool) -> Iterator[TextRow]:
    """Iterate over the distinct documents; of one that several queries list, the first text counts."""
    seen: set[str] = set()
    for entry in read_candidate_lists(file, trec_ids):
        for document, _, text in entry.candidates:
            if document not in seen:
                seen.add(document)
                yield TextRow(document, "", text, entry.where)


def is_candidate_folder(folder: Path) -> bool:
    """Whether a folder holds candidate lists."""
    return (folder / FILE_NAME).exists()


def list_files(folder: Path) -> list[Path]:
    """List the files that are read."""
    return [folder / FILE_NAME, *beir_folder.list_qrels(folder)]


def read_collection(folder: Path) -> RawCollection:
    """Read the collection in a folder."""
    splits = {beir_folder.parse_split_name(file): read_judgments(file) for file in beir_folder.list_qrels(folder)}
    return read_listed_collection(folder / FILE_NAME, splits)
