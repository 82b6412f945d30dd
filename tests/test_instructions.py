"""The instruction of a task: `run`, `finetune` and evaluation during training put the same sentence into a prompt."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retbench.cards import catalog
from retbench.cards.study import Stage, Study
from retbench.cards.task import TaskCard
from retbench.pipelines.finetuning import dry_run, train_encoder
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from retbench.pipelines.runs.saved_run import load_run
from retbench.pipelines.studies.run import run_study
from retbench.training.training_data import TrainingRequest
from tests import small_collection
from tests.hub_repositories import build_retrieval_configs, write_fetched_repository
from tests.test_run import run_cells
from tests.test_train_loop import RECIPE

INSTRUCTED_METHOD = replace(
    RECIPE.method, name="instructed", query="Instruct: {instruction}\nQuery: {text}", instruction="the method's own"
)
INSTRUCTED_RECIPE = replace(RECIPE, method=INSTRUCTED_METHOD, lengths=replace(RECIPE.lengths, query=64), lora=None)
SCIFACT = "Given a scientific claim, retrieve documents that support or refute the claim"
PREFIXES = {
    "e5-mistral": f"Instruct: {SCIFACT}\nQuery: ",
    "gte-qwen2": f"Instruct: {SCIFACT}\nQuery: ",
    "qwen3-embedding": f"Instruct: {SCIFACT}\nQuery:",
    "llm2vec": f"{SCIFACT}: ",
    "bge": "Represent this sentence for searching relevant passages: ",
    "mean": "",
}


def write_fetched_task(name: str) -> TaskCard:
    """Put a small collection where a fetch of the task would put it."""
    card = catalog.find_task_card(name)
    write_fetched_repository(
        str(card.source.repo),
        str(card.source.revision),
        build_retrieval_configs(
            small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS, split=card.split
        ),
    )
    return card


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog: Callable[[], None]) -> TaskCard:
    """A task with an instruction, a train split and its own prompt templates for one method."""
    folder = small_collection.write_folder(tmp_path / "kitchen-data")
    cards = tmp_path / "cards"
    (cards / "tasks" / "home").mkdir(parents=True)
    (cards / "tasks" / "home" / "kitchen.toml").write_text(
        'name = "kitchen"\ninstruction = "Find the tool"\n'
        f'[source]\nkind = "folder"\npath = "{folder}"\n'
        '[query_templates]\nbge = "Represent this tool: {text}"\n'
        '[document_templates]\nbge = "{instruction}: {text}"\n'
    )
    monkeypatch.setenv("RETBENCH_CARDS", str(cards))
    fresh_catalog()
    return catalog.find_task_card("kitchen")


def read_first_texts(model: Path | str, task: str, method: str | None, out: Path) -> tuple[str, str]:
    chosen = ("--method", method) if method else ()
    (cell,) = run_cells("run", "--model", model, "--task", task, *chosen, "--out", out)
    sample: dict[str, Any] = json.loads((Path(cell["record"]) / "sample.json").read_text())
    return str(sample["query"]["read"]), str(sample["document"]["read"])


def read_first_query(model: Path | str, task: str, method: str | None, out: Path) -> str:
    return read_first_texts(model, task, method, out)[0]


@pytest.mark.parametrize(("method", "prefix"), PREFIXES.items())
def test_run_puts_the_instruction_of_the_task_into_the_prompt(model: Path, out: Path, method: str, prefix: str) -> None:
    write_fetched_task("scifact")
    query = read_first_query(model, "scifact", method, out)
    assert query.removesuffix("<|endoftext|>") == f"{prefix}{small_collection.QUERIES[0][1]}"


def test_a_method_has_the_templates_of_the_task(model: Path, kitchen: TaskCard, out: Path) -> None:
    query, document = read_first_texts(model, "kitchen", "mean", out)
    assert query == small_collection.QUERIES[0][1]
    assert read_first_texts(model, "kitchen", "bge", out) == (
        f"Represent this tool: {query}",
        f"Find the tool: {document}",
    )


def test_a_saved_run_has_the_templates_of_its_task(model: Path, kitchen: TaskCard, out: Path) -> None:
    (cell,) = run_cells("run", "--model", model, "--task", "kitchen", "--method", "bge", "--out", out)
    saved = load_run(Path(cell["record"]))
    assert saved.spec
    assert saved.spec.method.query == "Represent this tool: {text}"
    assert saved.spec.method.document == "{instruction}: {text}"
    assert saved.spec.describe() == saved.record.settings["encoder"]


@pytest.mark.parametrize("method", ["mean", "bge", "e5", "promptreps", "repllama"])
def test_an_instruction_that_no_template_asks_for_changes_no_settings(model: Path, method: str) -> None:
    resolved = ResolvedModel.resolve(catalog.find_model_card(str(model)), None, lambda _: None)
    card = catalog.find_task_card("arguana")
    specs = [
        resolved.build_encoder_spec(catalog.find_method(method), task, Overrides())
        for task in (card, replace(card, instruction=None))
    ]
    assert card.instruction
    assert specs[0].describe() == specs[1].describe()


def test_finetune_and_run_put_the_same_instruction_into_the_prompt(
    model: Path, kitchen: TaskCard, tmp_path: Path, out: Path
) -> None:
    request = TrainingRequest("kitchen", str(model), out=tmp_path / "cook", export="st")
    planned = dry_run.estimate_plan(request, INSTRUCTED_RECIPE)
    trained = train_encoder.finetune_encoder(request, INSTRUCTED_RECIPE)
    query = read_first_query(trained.name, "kitchen", None, out)
    prompt = "Instruct: Find the tool\nQuery: "
    assert planned["first_query"].startswith(prompt)
    assert query.startswith(prompt)
    assert trained.method
    assert trained.method.own == replace(INSTRUCTED_METHOD, instruction="Find the tool")
    exported = json.loads((tmp_path / "cook" / "st" / "config_sentence_transformers.json").read_text())
    assert exported["prompts"]["query"] == prompt


def test_a_file_is_trained_on_with_the_recipes_instruction(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    for dataset in (str(rows), "not-here.jsonl"):
        recipe = train_encoder.use_task_instruction(TrainingRequest(dataset, "m"), INSTRUCTED_RECIPE)
        assert recipe == INSTRUCTED_RECIPE
    recipe = train_encoder.use_task_instruction(TrainingRequest("msmarco", "m"), INSTRUCTED_RECIPE)
    assert recipe.method.instruction == catalog.find_task_card("msmarco-dev-titled").instruction


def test_evaluation_during_training_has_the_instruction_of_the_evaluated_task(
    model: Path, kitchen: TaskCard, tmp_path: Path
) -> None:
    write_fetched_task("scifact")
    request = TrainingRequest("kitchen", str(model), out=tmp_path / "cook", eval_task="scifact")
    recipe = train_encoder.use_task_instruction(request, INSTRUCTED_RECIPE)
    job = train_encoder.prepare_training(request, recipe)
    evaluator = train_encoder.build_evaluator(job)
    assert evaluator
    assert job.encoder.prompt_tokenizer.build_prompt("x", "query") == "Instruct: Find the tool\nQuery: x"
    assert evaluator.encoder.prompt_tokenizer.build_prompt("x", "query") == f"Instruct: {SCIFACT}\nQuery: x"


def test_a_study_trains_and_evaluates_with_the_instruction_of_the_task(
    model: Path, kitchen: TaskCard, tmp_path: Path
) -> None:
    changes = ["optimizer.max_steps=1", "lora=none", "lengths.query=64"]
    changes += ["method.query=Instruct: {instruction}\nQuery: {text}", "method.instruction=the recipe's own"]
    options = {"dataset": "kitchen", "recipe": "quick", "set": changes}
    plan = Study("s", "s", (Stage("trained", (str(model),), "finetune", tasks=("kitchen",), options=options),))
    (cell,) = run_study(plan, tmp_path / "r")
    assert cell.status == "done", cell.error
    trained = catalog.find_model_card(cell.model)
    assert trained.method
    assert trained.method.own
    assert trained.method.own.instruction == "Find the tool"
    sample = json.loads((Path(cell.record or "") / "sample.json").read_text())
    assert sample["query"]["read"].startswith("Instruct: Find the tool\nQuery: ")
    (again,) = run_study(plan, tmp_path / "r")
    assert (again.cached, again.error) == (True, None)
