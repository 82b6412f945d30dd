"""What the plans of the papers ask for, beside what their authors' code states."""

import pytest

from retbench.cards import catalog
from retbench.cards.study import Stage


def find_stage(study: str, name: str) -> Stage:
    return next(stage for stage in catalog.find_study(study).stages if stage.name == name)


@pytest.mark.parametrize("stage", ["retrieval", "retrieval-bright", "end-to-end", "end-to-end-bright", "stage-2"])
def test_e2rank_retrieves_at_the_length_of_its_authors_evaluation(stage: str) -> None:
    """eval_mteb/scripts/run_mteb.sh at c72cc0a: max_length 8192."""
    assert find_stage("e2rank", stage).set == {"max_length": 8192}


@pytest.mark.parametrize(
    ("task", "instruction"),
    [
        ("bright-biology", "Given a post, retrieve relevant passages that help answer the post"),
        ("bright-pony", "Given a question about pony program language, retrieve relevant passages that help answer the "
         "question"),
        ("bright-theoremqa-theorems", "Given a Math problem, retrieve relevant theorems that help answer the problem"),
    ],
)  # fmt: skip
def test_e2rank_reads_the_instructions_of_its_authors_on_bright(task: str, instruction: str) -> None:
    """src/eval.py at c72cc0a, EVAL_PROMPTS."""
    for name, method in (
        (task, "e2rank"),
        (task, "e2rank-reranking"),
        (f"{task}-reasonir", "e2rank"),
        (f"{task}-reasonir", "e2rank-reranking"),
    ):
        fitted = catalog.find_method(method).fit_to_task(catalog.find_task_card(name))
        assert fitted.query == f"Instruct: {instruction}\nQuery:{{text}}"
        assert fitted.document == "{text}"


@pytest.mark.parametrize("suite", ["bright", "reasonir-candidates"])
def test_e2rank_has_an_instruction_for_each_subset_of_bright(suite: str) -> None:
    for name in catalog.load_suites().find(suite).expand_tasks():
        templates = catalog.find_task_card(name).query_templates or {}
        assert {"e2rank", "e2rank-reranking"} <= set(templates), name


def test_e2rank_reads_documents_like_queries_where_both_are_of_one_kind() -> None:
    """eval_mteb/scripts/task_prompts.json at c72cc0a: the entries with an instruction for passages."""
    method = catalog.find_method("e2rank")
    cards = {name: catalog.find_task_card(name) for name in catalog.load_suites().find("beir").expand_tasks()}
    same = {name for name, card in cards.items() if method.fit_to_task(card).document == method.query}
    assert same == {"arguana", "cqadupstack-gaming", "cqadupstack-unix"}


@pytest.mark.parametrize(
    ("suite", "config"),
    [
        ("gpt4", "gpt4_reason"),
        ("claude-3-opus", "claude-3-opus_reason"),
        ("gemini-1.0", "Gemini-1.0_reason"),
        ("grit", "grit_reason"),
        ("llama3-70b", "llama3-70b_reason"),
    ],
)
def test_bright_has_the_rewritten_queries_of_each_model(suite: str, config: str) -> None:
    """The configurations of the hub set xlangai/BRIGHT."""
    domains = {name.removeprefix("bright-") for name in catalog.load_suites().find("bright").tasks}
    for domain in domains:
        card = catalog.find_task_card(f"bright-{domain}-{suite}-reason")
        assert card.suite == f"bright-{suite}-reason"
        assert card.source.queries_file == f"{config}/{domain.replace('-', '_')}-00000-of-00001.parquet"
        plain = catalog.find_task_card(f"bright-{domain}")
        assert (card.source.mteb, card.lengths, card.queries) == (plain.source.mteb, plain.lengths, plain.queries)
    assert len(catalog.load_suites().find(f"bright-{suite}-reason").tasks) == len(domains) == 12
