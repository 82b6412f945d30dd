"""Collections of candidate lists: the lists are a file of a hub repository, the judgments a file of it or at a URL."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora.candidate_lists import read_listed_collection
from retbench.corpora.dataset_source import DatasetSource, StatusCallback, require_source_field
from retbench.corpora.hub_files import HubFile
from retbench.corpora.judgments import read_judgments
from retbench.corpora.published_files import PublishedFile, find_published_file
from retbench.corpora.rows import Exclusion, RawCollection
from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError


def build_candidate_source(card: TaskCard) -> DatasetSource:
    """Build the source of a card of kind `candidates`."""
    source = card.source
    repo = require_source_field(card.name, "repo", source.repo)
    lists = HubFile(repo, require_source_field(card.name, "member", source.member), source.revision)
    judgments = (
        HubFile(repo, source.judgments_file, source.revision)
        if source.judgments_file
        else find_published_file(card, ".txt")
    )
    exclusions = _find_exclusions(card.name, source)
    files = (judgments, lists, *([exclusions] if exclusions else []))

    def fetch(log_status: StatusCallback) -> None:
        for file in files:
            file.fetch(log_status)

    def open_rows() -> RawCollection:
        splits = {card.published_split: read_judgments(judgments.file)}
        excluded = _read_exclusions(exclusions.file) if exclusions else ()
        return read_listed_collection(lists.file, splits, excluded, trec_ids=True)

    def compute_cache_key() -> str:
        judged = judgments.name if isinstance(judgments, HubFile) else judgments.checksum
        parts = ["candidates", lists.repo, lists.revision, lists.name, judged, card.published_split]
        return "\n".join(map(str, parts + ([exclusions.checksum] if exclusions else [])))

    return DatasetSource(
        label=card.name,
        compute_cache_key=compute_cache_key,
        origin=f"{lists.name} of {lists.repo}",
        is_available=lambda: all(file.is_fetched() for file in files),
        open_rows=lambda: nullcontext(open_rows()),
        fetch=fetch,
        revision=lists.revision,
        source_paths=tuple(file.file for file in files),
    )


def _find_exclusions(task: str, source: SourceSpec) -> PublishedFile | None:
    """The file of the documents that must not be ranked, if the card names one."""
    if source.exclusions_url is None:
        return None
    checksum = require_source_field(task, "exclusions_git_sha1", source.exclusions_git_sha1)
    return PublishedFile(source.exclusions_url, "git", checksum, ".txt")


def _read_exclusions(file: Path) -> Iterator[Exclusion]:
    """Read lines of a query and a document, separated by white space."""
    for line, where in read_lines(file):
        parts = line.split()
        if len(parts) != 2:
            raise DataError(f"{where}: {len(parts)} columns", "write a query and a document, separated by a space")
        yield Exclusion(parts[0], parts[1])
