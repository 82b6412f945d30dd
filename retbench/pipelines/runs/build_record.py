"""The record of a finished run, for every way to finish one: evaluation, reranking, an imported TREC run."""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.records import machine
from retbench.records.record import Record, compute_settings_id


@dataclass(frozen=True)
class RunInputs:
    """The part of a record that describes what was run."""

    model: str
    method: str
    task: str
    suite: str
    cards: dict[str, Any]
    collection: dict[str, Any]  # counts and fingerprints
    texts: dict[str, Any]  # by role: tokens, share truncated, plan

    @staticmethod
    def describe(
        model: ModelCard, method: Method, task: TaskCard, collection: Collection, texts: dict[str, Any]
    ) -> "RunInputs":
        """Describe the cards and the collection of a run."""
        cards = {"model": make_portable_card(model), "method": asdict(method), "task": make_portable_card(task)}
        return RunInputs(model.name, method.name, task.name, task.suite, cards, _count_texts(collection), texts)

    @staticmethod
    def from_record(record: Record) -> "RunInputs":
        """Take the description from the record of an earlier stage."""
        return RunInputs(
            record.model, record.method, record.task, record.suite, record.cards, record.collection, record.texts
        )

    def add_cards(self, **cards: Any) -> "RunInputs":
        """Return the same description with more cards."""
        return replace(self, cards={**self.cards, **cards})


def build_record(
    inputs: RunInputs, settings: dict[str, Any], cost: dict[str, Any], scores: dict[str, float], command: str
) -> Record:
    """Build the record of a run that has just finished on this machine."""
    return Record(
        inputs.model, inputs.method, inputs.task, inputs.suite, compute_settings_id(settings), settings, inputs.cards,
        inputs.collection, inputs.texts, machine.describe_machine(), cost, scores, command,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def describe_task_settings(task: TaskCard, collection: Collection, sample: int | None) -> dict[str, Any]:
    """Return the settings of the task that may change a score."""
    return {
        "fields": task.fields,
        "same_id": task.same_id,
        "excluded": task.excluded,
        "relevant_from": task.relevant_from,
        "depth": task.depth,
        "protocol": task.protocol,
        "split": task.split,
        "sample": sample,
        "collection": collection.fingerprint,
        **({} if task.images == "read" else {"images": task.images}),
    }


def make_portable_card(card: ModelCard | TaskCard) -> dict[str, Any]:
    """Return a card for a record: only the last part of a local path, because a record must not contain paths."""
    fields = asdict(card)
    source = fields["weights"] if isinstance(card, ModelCard) else fields["source"]
    if source and source["path"]:
        source["path"] = Path(source["path"]).name
    return fields


def _count_texts(collection: Collection) -> dict[str, Any]:
    parts = (("document_images", collection.corpus.images), ("query_images", collection.queries.images))
    return {
        **{name: images.count for name, images in parts if images},
        "documents": len(collection.corpus),
        "queries": len(collection.queries),
        "judgments": sum(map(len, collection.judgments.values())),
        "fingerprint": collection.fingerprint,
        "corpus": collection.corpus.fingerprint,
    }
