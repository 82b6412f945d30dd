"""Builds an mteb task from a collection folder on this machine."""

from pathlib import Path
from typing import Any

from retbench.cards.task import TaskCard
from retbench.corpora.open_collection import open_collection


def build_task(card: TaskCard, sample: int | None = None) -> Any:
    """Build an mteb task over the card's collection, with title and text as in the folder."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    collection = open_collection(card, sample)

    class Folder(AbsTaskRetrieval):
        ignore_identical_ids = card.same_id == "drop"
        metadata = TaskMetadata(
            name="".join(part.title() for part in card.name.split("-")), description=card.name, reference=None,
            dataset={"path": card.name, "revision": "local"}, type="Retrieval", category="t2t", modalities=["text"],
            eval_splits=[card.split], eval_langs=["eng-Latn"], main_score=card.metric, date=None, domains=None,
            task_subtypes=None, license=None, annotations_creators=None, dialect=None, sample_creation=None,
            bibtex_citation="",
        )  # fmt: skip

        def load_data(self, *_: Any, **__: Any) -> None:
            documents = [{"id": row.id, "title": row.title, "text": row.text} for row in collection.corpus]
            self.dataset = {"default": {card.split: {
                "corpus": Dataset.from_list(documents),
                "queries": Dataset.from_list([{"id": r.id, "text": r.text} for r in collection.queries]),
                "relevant_docs": {query: dict(grades) for query, grades in collection.judgments.items()},
                "top_ranked": None,
            }}}  # fmt: skip
            self.data_loaded = True

    return Folder()


def compute_scores(model: Any, mteb_task: Any, folder: Path) -> dict[str, float]:
    """The scores of mteb for a model on a task; its result files are written to the folder."""
    import mteb
    from mteb.cache import ResultCache

    result = mteb.evaluate(model, [mteb_task], cache=ResultCache(folder), co2_tracker=False, show_progress_bar=False)
    (split,) = result.task_results[0].scores.values()
    return dict(split[0])
