"""Collections of candidate lists: the lists are a file of a hub repository, the judgments a file at a URL."""

from contextlib import nullcontext

from retbench.cards.task import TaskCard
from retbench.corpora.candidate_lists import read_listed_collection
from retbench.corpora.dataset_source import DatasetSource, StatusCallback, require_source_field
from retbench.corpora.hub_files import HubFile
from retbench.corpora.judgments import read_judgments
from retbench.corpora.published_files import find_published_file


def build_candidate_source(card: TaskCard) -> DatasetSource:
    """Build the source of a card of kind `candidates`."""
    source = card.source
    lists = HubFile(
        require_source_field(card.name, "repo", source.repo),
        require_source_field(card.name, "member", source.member),
        source.revision,
    )
    judgments = find_published_file(card, ".txt")

    def fetch(log_status: StatusCallback) -> None:
        judgments.fetch(log_status)
        lists.fetch(log_status)

    return DatasetSource(
        label=card.name,
        compute_cache_key=lambda: "\n".join(
            map(str, ("candidates", lists.repo, lists.revision, lists.name, judgments.checksum, card.published_split))
        ),
        origin=f"{lists.name} of {lists.repo}",
        is_available=lambda: lists.is_fetched() and judgments.is_fetched(),
        open_rows=lambda: nullcontext(
            read_listed_collection(lists.file, {card.published_split: read_judgments(judgments.file)})
        ),
        fetch=fetch,
        revision=lists.revision,
        source_paths=(lists.file, judgments.file),
    )
