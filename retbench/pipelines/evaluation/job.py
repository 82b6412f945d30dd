"""An evaluation job: one cell (model, method, task), from cards to record."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from retbench.cards import ann_settings
from retbench.cards.method import ROLES, Method
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import open_collection
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.engines.memory import get_peak_memory_mb
from retbench.engines.weight_sizes import count_parameters_by_use
from retbench.errors import UsageError
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.prompt_examples import build_prompt_examples
from retbench.pipelines.models.search import build_retriever
from retbench.pipelines.runs.build_record import RunInputs, build_record, describe_task_settings
from retbench.pipelines.runs.load_or_run import load_or_run
from retbench.records.cell import Cell
from retbench.records.phase_timer import NoProgress, PhaseTimer
from retbench.records.record import Record, compute_settings_id
from retbench.records.results_folder import ResultsFolder, RunFiles
from retbench.retrievers.score_ranking import compute_search_depth, score_ranking


@dataclass(frozen=True)
class EvaluationJob:
    """One cell: its record is found on disk or computed."""

    request: EvaluationRequest
    model: ResolvedModel
    method: Method
    task: TaskCard
    collection: Collection
    encoder_spec: EncoderSpec | None  # None for a lexical model

    @staticmethod
    def prepare(request: EvaluationRequest, model: ResolvedModel, method: Method, task: TaskCard) -> "EvaluationJob":
        """Open the collection and resolve the encoder's specification."""
        require_unseen_queries(model.card, task)
        collection = model.choose_inputs(open_collection(task, request.sample, with_images=True), task)
        encoder_spec = (
            None
            if model.lexical_settings
            else model.build_encoder_spec(method, task, request.parsed_overrides, collection.has_images)
        )
        return EvaluationJob(request, model, method, task, collection, encoder_spec)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that may change a score; not versions, not the machine."""
        lexical = self.model.lexical_settings
        return {
            "encoder": self.encoder_spec.describe() if self.encoder_spec else None,
            "lexical": lexical.describe() if lexical else None,
            "retriever": self.method.name if lexical else self._name_retriever(),
            "engine": self._name_engine(),
            "rerankers": [],
            **describe_task_settings(self.task, self.collection, self.request.sample),
        }

    @cached_property
    def settings_id(self) -> str:
        """The digest of the settings; it names the record."""
        return compute_settings_id(self.settings)

    def _name_engine(self) -> str:
        lexical = self.model.lexical_settings
        if lexical is None:
            return self.model.engine.settings_name
        return "retbench" if lexical.variant in ("anserini", "candidates", "random") else "bm25s"

    def _name_retriever(self) -> str:
        search = self.request.parsed_overrides.search
        return ann_settings.format_ann_settings(search) if search else self.method.vector_kind

    @property
    def folder(self) -> Path:
        """The folder of the record."""
        results = ResultsFolder(self.request.out)
        return results.get_run_folder(self.task.suite, self.task.name, self.model.card.name, self.settings_id)

    def find_record(self) -> Record | None:
        """Return the finished record on disk."""
        return ResultsFolder(self.request.out).find_record(self.folder)

    def load_or_run(self) -> Cell:
        """Return the finished record on disk, or compute and write one."""
        return load_or_run(ResultsFolder(self.request.out), self.folder, self._rank_and_score, self.request.progress)

    def build_draft_record(self) -> Record:
        """Return the record as it is before the run, without scores."""
        return self._build_record(PhaseTimer(NoProgress()), {}, {})

    def _rank_and_score(self, timer: PhaseTimer) -> tuple[Record, RunFiles]:
        task, collection = self.task, self.collection
        sample = build_prompt_examples(self.model, self.encoder_spec, task, collection)
        search = self.request.parsed_overrides.search
        retriever = build_retriever(self.model, self.encoder_spec, task, collection, search, timer)
        ranking = retriever.rank(compute_search_depth(collection, task))
        texts = retriever.collect_facts()
        with timer.time_phase("score"):
            scored = score_ranking(ranking, collection, task)
        return self._build_record(timer, texts, scored.compute_means()), scored.to_run_files(sample)

    def _build_record(self, timer: PhaseTimer, texts: dict[str, Any], scores: dict[str, float]) -> Record:
        if self.encoder_spec:
            texts = {**texts, "dtype": self._describe_dtype(texts.get("document", {}))}
        inputs = RunInputs.describe(self.model.card, self.method, self.task, self.collection, texts)
        return build_record(inputs, self.settings, self._compute_cost(timer, texts), scores, self.request.command)

    def _describe_dtype(self, document: dict[str, Any]) -> dict[str, str]:
        """Return the dtype that computed, the one that the model's card means, and who chose."""
        choice = self.model.choose_dtype(self.request.parsed_overrides)
        return {
            "computed": document.get("dtype", "unknown"),  # vectors of an earlier version do not say
            "usual": choice.usual,
            "chosen_by": choice.chosen_by,
        }

    def _compute_cost(self, timer: PhaseTimer, texts: dict[str, Any]) -> dict[str, Any]:
        document, weights = texts.get("document"), self.model.local_weights
        seconds = document["seconds"] if document else timer.seconds.get("index documents", 0.0)
        return {
            "seconds": {phase: round(spent, 3) for phase, spent in timer.seconds.items()},
            "tokens_per_second": round(document["tokens"] / seconds, 1) if document and seconds else None,
            "documents_per_second": round(len(self.collection.corpus) / seconds, 1) if seconds else None,
            "peak_memory_mb": max(round(get_peak_memory_mb(), 1), document["peak_memory_mb"] if document else 0.0),
            "weights_mb": round(weights.bytes / 1e6, 1) if weights else None,
            **self._count_parameters(),
            **({} if self.model.create_workers else timer.collect_energy()),  # workers may be on other machines
            **self._compute_price(texts),
        }

    def _count_parameters(self) -> dict[str, int | None]:
        """Return the parameters that the card states, else that the folder has, and how they are used."""
        weights, stated = self.model.local_weights, self.model.card.parameters
        counts = count_parameters_by_use(weights.folder) if weights else None
        if counts is None:
            return {"parameters": stated}
        known = {"embedding_parameters": counts.embedding, "active_parameters": counts.active}
        return {
            "parameters": stated or counts.total,
            **{name: count for name, count in known.items() if count is not None},
        }

    def _compute_price(self, texts: dict[str, Any]) -> dict[str, float]:
        """Return what a server takes for the texts of the cell, by the price of `--engine endpoint:price=`."""
        price = self.model.engine.price
        if price is None or "document" not in texts:
            return {}
        by_role = {role: texts[role]["tokens"] * price / 1e6 for role in ROLES}
        per_million = by_role["document"] * 1e6 / len(self.collection.corpus)
        return {"price": round(sum(by_role.values()), 6), "price_per_million_documents": round(per_million, 4)}


def require_unseen_queries(card: ModelCard, task: TaskCard) -> None:
    """Refuse the queries that a model was trained on: of a halved split, only the other half is left to test it."""
    data = card.training.data if card.training else {}
    split, _, half = str(data.get("split", "")).partition("/")
    if half and (data.get("set"), split) == (task.name, task.published_split) and task.split != f"{split}/test":
        raise UsageError(
            f"{card.name} was trained on half of the queries of {task.name}, split {split!r}",
            f"evaluate it on the other half: --set split={split}/test",
        )
