"""`retbench push`: uploads a trained model to the hub, with a model card and the scores of its finished runs.

A score is listed only if the run used exactly these weights and the whole collection. Scores on collections of the hub
also go into the card's `model-index` and into `.eval_results/`, which the hub shows on its leaderboards.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retbench.cards import catalog
from retbench.cards.method import VECTOR_KINDS
from retbench.cards.model import ModelCard, TrainingProvenance
from retbench.encoders.adaptor import load_adaptor
from retbench.engines import model_folders, weights
from retbench.errors import DataError, UsageError
from retbench.records.record import Record
from retbench.records.results_folder import ResultsFolder
from retbench.reports.formats import escape_markdown
from retbench.system.checksums import require_cached_checksum
from retbench.system.file_kinds import require_regular_file
from retbench.system.hub_errors import translate_hub_errors
from retbench.system.user_config import encode_path_part
from retbench.training.step_plan import PLAN_FILE

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PUSHED_PATTERNS = (*model_folders.WANTED_PATTERNS, catalog.CARD_FILE)
MODEL_PAGE = "README.md"
NEXT_STEP = "log in with a token that may write (hf auth login, or HF_TOKEN in the environment), and check the name"


@dataclass(frozen=True)
class PushPlan:
    """What is uploaded: files of the model's folder, and texts that are written for the hub."""

    repo: str
    folder: Path
    files: tuple[str, ...]
    texts: dict[str, str]  # by path in the repository
    scores: tuple[Record, ...]


def plan_push(model: str, repo: str, results: Path) -> PushPlan:
    """Collect the files and write the model card; nothing is sent."""
    card = catalog.find_model_card(model)
    if card.training is None or card.weights is None or card.weights.path is None:
        raise UsageError(f"{card.name} was not trained by retbench", "name a model that `retbench finetune` made")
    local = weights.obtain_weights(card)
    folder = Path(card.weights.path)
    if card.adapted:
        load_adaptor(folder / card.adapted.file, card.adapted.sha256, "cosine")
    else:
        model_folders.check_trained_model(card, folder)
    files = sorted({path.name for pattern in PUSHED_PATTERNS for path in folder.glob(pattern)} - {PLAN_FILE})
    _check_files([folder / name for name in files])
    records = tuple(_list_complete_runs(card, local.fingerprint, results))
    try:
        texts = {MODEL_PAGE: write_model_page(card, card.training, records)}
    except (KeyError, TypeError, AttributeError) as problem:
        raise DataError(
            f"[training] in the card of {card.name} is incomplete: {problem!r}", "restore the card, or train again"
        ) from problem
    for record in filter(is_on_hub, records):
        texts[f".eval_results/{encode_path_part(record.task)}-{record.settings_id}.yaml"] = write_eval_results(record)
    return PushPlan(repo, folder, tuple(files), texts, records)


def push_model(plan: PushPlan, private: bool) -> str:
    """Upload everything in one commit; return the address of the repository."""
    with translate_hub_errors(plan.repo, NEXT_STEP, action="pushed"):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        address = api.create_repo(plan.repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, plan.folder / name) for name in plan.files]
        operations += [CommitOperationAdd(path, text.encode()) for path, text in plan.texts.items()]
        api.create_commit(plan.repo, operations, commit_message="Model and scores from retbench")
    return str(address)


def _check_files(files: Sequence[Path]) -> None:
    """Raise an error for a link to a file elsewhere, which would be published, and for bytes that a disk changed."""
    for file in files:
        require_regular_file(file)
        if file.resolve().parent != file.parent.resolve():
            raise DataError(f"{file} is a link to a file elsewhere", "copy the file here, or remove the link")
        require_cached_checksum(file)


def _list_complete_runs(card: ModelCard, fingerprint: str, results: Path) -> Iterator[Record]:
    """The runs by these weights, and this adaptor, over whole collections."""
    adaptor = card.adapted.sha256 if card.adapted else None
    for run in ResultsFolder(results).scan_runs().runs:
        settings = run.record.settings
        is_complete = not settings["sample"] and not settings["rerankers"] and settings["retriever"] in VECTOR_KINDS
        if run.record.model != card.name or not is_complete or settings["encoder"]["weights"] != fingerprint:
            continue
        if settings["encoder"].get("adaptor") == adaptor:
            yield run.record


def write_model_page(card: ModelCard, training: TrainingProvenance, records: Sequence[Record]) -> str:
    """The README of the repository: metadata for the hub, then how the model was made and what it scores."""
    from huggingface_hub import ModelCardData

    cards, parent_name = catalog.load_model_cards(), card.parent or ""
    parent = cards.find(parent_name) if parent_name in cards else None
    listed = [_build_eval_result(record) for record in filter(is_on_hub, records)]
    data = ModelCardData(
        base_model=parent.weights.repo if parent and parent.weights else None,
        eval_results=listed or None, license=card.license, library_name="transformers", model_name=card.name,
        pipeline_tag="feature-extraction", tags=["retbench", "dense-retrieval"],
    )  # fmt: skip
    rows = [
        f"| {escape_markdown(record.task)} | {escape_markdown(record.method)} | {_get_metric(record)} | "
        f"{100 * record.scores[_get_metric(record)]:.2f} |"
        for record in records
    ]
    table = ["| task | method | metric | score |", "|---|---|---|---:|", *rows] if rows else ["No complete run yet."]
    facts = {
        "parent": card.parent, "method": card.method.default if card.method else None,
        "recipe": training.recipe.get("name", "adaptor"), "training set": training.data["set"],
        "steps": training.run["steps"], "seed": training.run.get("seed", training.recipe.get("seed")),
    }  # fmt: skip
    lines = [
        "---", data.to_yaml().strip(), "---", "", f"# {escape_markdown(card.name)}", "",
        escape_markdown(card.description or ""), "",
        *(f"* {name}: {escape_markdown(str(value))}" for name, value in facts.items()), "", "## Scores", "",
        "Measured by retbench with exactly these weights, on whole collections.", "", *table, "",
    ]  # fmt: skip
    return "\n".join(lines)


def write_eval_results(record: Record) -> str:
    """The file of one score in the hub's format for evaluation results."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    source = record.cards["task"]["source"]
    entry = EvalResultEntry(
        str(source["repo"]), source.get("mteb") or record.task, _get_score(record),
        dataset_revision=source["revision"], date=record.created,
        notes=f"{_get_metric(record)}, retbench method {record.method}, settings-id {record.settings_id}",
    )  # fmt: skip
    return json.dumps(eval_result_entries_to_yaml([entry]), indent=1)  # JSON is YAML, and needs no other package


def _build_eval_result(record: Record) -> "EvalResult":
    from huggingface_hub import EvalResult

    task = record.cards["task"]
    return EvalResult(
        "retrieval", task["source"]["repo"], record.task, _get_metric(record), _get_score(record),
        dataset_split=task["split"], dataset_revision=task["source"]["revision"],
    )  # fmt: skip


def is_on_hub(record: Record) -> bool:
    """Whether the run's collection is a dataset of the hub."""
    return bool(record.cards["task"]["source"]["kind"] == "hub")


def _get_metric(record: Record) -> str:
    return str(record.cards["task"]["metric"])


def _get_score(record: Record) -> float:
    """The main score x 100, as on leaderboards."""
    return round(100 * record.scores[_get_metric(record)], 3)
