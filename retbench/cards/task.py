"""The task card (one collection and its protocol) and the suite card (tasks and how they are averaged)."""

from dataclasses import dataclass
from typing import Literal

from retbench.cards import untrusted_fields
from retbench.errors import DataError, UsageError

ImageUse = Literal["read", "prefer", "ignore"]
METRIC_CUTS = {  # the ranks at which each metric is computed
    "ndcg": (1, 3, 5, 10, 20, 100, 1000),
    "map": (1, 3, 5, 10, 20, 100, 1000),
    "recall": (1, 5, 10, 20, 50, 100, 1000),
    "mrr": (10, 100),
}
METRIC_NAMES = tuple(f"{metric}_at_{cut}" for metric, cuts in METRIC_CUTS.items() for cut in cuts)


def parse_metric(text: str | None) -> str | None:
    """The name of a metric in records, from a spelling such as recall@100 or nDCG@10."""
    name = text and text.lower().replace("@", "_at_")
    if name and name not in METRIC_NAMES:
        raise UsageError(f"there is no metric {text!r}", f"known: {', '.join(METRIC_NAMES)}")
    return name


@dataclass(frozen=True)
class SourceSpec:
    """Where a collection comes from.

    `folder`: a user's `path`. `generator`: built by retbench. `hub`: a dataset repository read by mteb's loader for
    the task `mteb` (and its `subset`); with `corpus_repo` its documents (docid, title, text) replace those of `repo`,
    with `queries_file` of `queries_repo` the texts of its queries, and with `queries_url` its queries and judgments.
    `loco`: documents in `repo` and queries in `queries_repo`, the rows of `subset`. `archive`: a zip at `url` with a
    `sha256` or the publisher's `md5`; the collection is its folder `member`. `candidates`: the file `member` of `repo`
    holds candidate lists with their texts, and the judgments are its file `judgments_file`, or at `url` (`git_sha1` is
    git's checksum of a file); what must not be ranked for a query is listed at `exclusions_url`.
    """

    kind: Literal["folder", "generator", "hub", "loco", "archive", "candidates"]
    path: str | None = None
    generator: str | None = None
    repo: str | None = None
    revision: str | None = None
    mteb: str | None = None
    subset: str | None = None
    corpus_repo: str | None = None
    corpus_revision: str | None = None
    queries_repo: str | None = None
    queries_revision: str | None = None
    queries_file: str | None = None
    queries_url: str | None = None
    queries_sha256: str | None = None
    url: str | None = None
    sha256: str | None = None
    md5: str | None = None
    git_sha1: str | None = None
    member: str | None = None
    judgments_file: str | None = None
    exclusions_url: str | None = None
    exclusions_git_sha1: str | None = None

    def __post_init__(self) -> None:
        repositories = (
            (self.repo, self.revision),
            (self.corpus_repo, self.corpus_revision),
            (self.queries_repo, self.queries_revision),
        )
        for repo, revision in repositories:
            if repo is not None:
                untrusted_fields.check_repository(repo, revision)
        checksums = (
            ("sha256", self.sha256),
            ("md5", self.md5),
            ("sha1", self.git_sha1),
            ("sha1", self.exclusions_git_sha1),
            ("sha256", self.queries_sha256),
        )
        for kind, checksum in checksums:
            if checksum is not None:
                untrusted_fields.check_checksum(kind, checksum)
        for url in (self.url, self.queries_url, self.exclusions_url):
            if url is not None:
                untrusted_fields.check_web_address(url)
        for member in (self.member, self.queries_file, self.judgments_file):
            if member is not None:
                untrusted_fields.check_member(member)


@dataclass(frozen=True)
class LengthLimits:
    """The maximum number of tokens of a query and of a document; 0 means the model's limit."""

    query: int = 512
    document: int = 512

    def __post_init__(self) -> None:
        if min(self.query, self.document) < 0:
            raise DataError(f"a length of {min(self.query, self.document)} tokens", "write 0 for the model's limit")


@dataclass(frozen=True)
class ExpectedScore:
    """A published score of a model on this task; without `method`, with the model's default method."""

    model: str
    metric: str
    score: float
    tolerance: float
    source: str
    method: str | None = None


@dataclass(frozen=True)
class TaskCard:
    """One collection, one split, one protocol.

    `split` is a split of the collection, or a half of one: `test/train` and `test/test` are two halves of the queries
    of `test`, for a collection without training queries.
    Three rules are applied before a ranking is cut to `depth` and scored: `same_id` removes a document with the
    query's own id; `excluded` removes the documents that the collection excludes for a query; `relevant_from` is the
    lowest grade that recall, MAP and MRR count as relevant (nDCG uses every grade).
    `documents` and `queries` are the counts published by the source. `collection` names the collection of which this
    task is a variant (a sample, another split, other fields): a model trained on one variant has seen all of them. A
    part of a collection follows a slash: `codesearchnet/go`.
    With `kinds_in_ids` the ids of its rows begin with their kind: `code:...` is a document, `text-to-code:...` a query
    and the kind of its relevant documents. Reports then score each kind by itself.
    `images` says what is read of a row with an image: the image and the text (`read`), only the text (`ignore`), or
    `prefer`: the image alone by a model that reads images, the text by other models.
    `instruction` is put into every prompt template that asks for one. `query_templates` and `document_templates` are
    those of methods that have their own for this task, by the method's name.
    """

    name: str
    source: SourceSpec
    suite: str = "custom"
    aliases: tuple[str, ...] = ()
    collection: str | None = None
    description: str | None = None
    split: str = "test"
    fields: tuple[Literal["title", "text"], ...] = ("title", "text")
    images: ImageUse = "read"
    kinds_in_ids: bool = False
    lengths: LengthLimits = LengthLimits()
    instruction: str | None = None
    query_templates: dict[str, str] | None = None
    document_templates: dict[str, str] | None = None
    same_id: Literal["keep", "drop"] = "keep"
    excluded: Literal["keep", "drop"] = "keep"
    relevant_from: int = 1
    metric: str = "ndcg_at_10"
    depth: int = 100
    protocol: str = "standard"
    expected: tuple[ExpectedScore, ...] = ()
    fingerprint: str | None = None
    documents: int | None = None
    queries: int | None = None
    license: str | None = None
    defects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.metric not in METRIC_NAMES:
            raise DataError(
                f"there is no metric {self.metric!r}",
                "write one such as ndcg_at_10, recall_at_100 or mrr_at_10",
            )
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise DataError(f"fields {list(self.fields)} name no text, or one twice", 'write ["title", "text"]')
        if self.relevant_from < 1:
            raise DataError(f"relevant_from={self.relevant_from} counts irrelevant documents", "write 1 or more")

    @property
    def published_split(self) -> str:
        """The split of the collection; of a half, the split that it is a half of."""
        return self.split.partition("/")[0]


@dataclass(frozen=True)
class Suite:
    """Named tasks. An entry of `tasks` is a task or a group; a group counts as one task, with its mean score.

    `document_tokens` is about the mean length of a document, `image_pixels` about the pixels of an image and
    `image_share` the share of documents that have one, for estimates before the collections are here.
    """

    name: str
    tasks: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    description: str | None = None
    groups: dict[str, tuple[str, ...]] | None = None
    document_tokens: int | None = None
    image_pixels: int | None = None
    image_share: float = 1.0

    def __post_init__(self) -> None:
        groups = self.groups or {}
        unused = [name for name in groups if name not in self.tasks]
        if unused:
            raise DataError(
                f"suite {self.name}: the group {unused[0]} is not in tasks, so its tasks would not be run",
                f'add "{unused[0]}" to tasks, or remove the group',
            )
        members = [task for group in groups.values() for task in group]
        twice = [name for name in (*members, *self.tasks) if [*members, *self.tasks].count(name) > 1]
        if twice:
            raise DataError(f"suite {self.name} has {twice[0]} twice", "name each task once, in tasks or in one group")

    def expand_tasks(self) -> tuple[str, ...]:
        """Return every task of the suite, with groups expanded."""
        groups = self.groups or {}
        return tuple(name for entry in self.tasks for name in groups.get(entry, (entry,)))
