"""The second line of an error is a command or a name that works: each was wrong or led nowhere."""

from pathlib import Path

import pytest

from retbench.cli.plan import choose_digits
from retbench.errors import InapplicableError, suggest_names
from retbench.pipelines.finetuning import train_encoder
from retbench.system.durations import format_duration
from tests import small_collection
from tests.finished_runs import write_finished_run
from tests.test_cells import run_command


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("run --model bm25 --task stdlib", "stdlib is a suite: --suite stdlib; its tasks: stdlib-code, stdlib-doc"),
        ("plan --model bm25 --task beir", "beir is a suite: --suite beir; its tasks: trec-covid, nfcorpus"),
        ("run --model bm25 --suite scifact", "scifact is a task: --task scifact"),
        ("run --model bm25 --suite ./small", "a folder is a task: --task ./small"),
        ("run --model bm25 --suite small", "a folder is a task: --task ./small"),
        ("run --model bm25 --task small", "write ./small for the folder small"),
        ("run --model minilm-l6 --task ./small --method small", "nothing is named like it; `retbench list methods`"),
    ],
)
def test_a_name_of_another_kind_gets_its_own_option(
    command: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_collection.write_folder(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    answer = run_command(*command.split())
    assert answer.exit_code == 2
    assert f"next:  {step}" in answer.output


def test_a_command_that_lists_the_names_is_only_told_where_there_is_one() -> None:
    """Queries and published tables were said to be in `retbench list`, which has neither."""
    names = [f"q{number:02}" for number in range(15)]
    step = suggest_names("zzz", names)
    assert step == "known: q00, q01, q02, q03, q04, q05, q06, q07, q08, q09, q10, q11 and 3 more"
    assert "`retbench list tasks` shows the 15 known names" in suggest_names("zzz", names, "retbench list tasks")


@pytest.mark.parametrize("verb", ["inspect", "verify", "export", "rerank --with rocchio"])
def test_the_run_of_a_model_on_a_task_can_be_named(verb: str, tmp_path: Path) -> None:
    """The message said "or give --task" for commands that had no such option."""
    for task in ("t1", "t2"):
        write_finished_run(tmp_path, "bm25", task, [0.5, 0.4])
    folder = ["--out" if "rerank" in verb else "--results", str(tmp_path)]
    answer = run_command(*verb.split(), "bm25", *folder)
    assert "2 runs in" in answer.output
    assert "next:  name one settings-id, or give --task" in answer.output
    chosen = run_command(*verb.split(), "bm25", "--task", "t2", *folder)
    assert "No such option" not in chosen.output
    assert "2 runs in" not in chosen.output
    assert "t2" in chosen.output, "it is found, though its texts are not here"


def test_runs_that_fit_are_listed_with_what_tells_them_apart(tmp_path: Path) -> None:
    """Three runs were each called "bm25 on t", in the message and in `list results`."""
    rerankers = {"rerankers": [{"rerank": "rocchio:model=m"}]}
    for settings in ({}, rerankers, {"sample": 20}, {"split": "dev"}):
        write_finished_run(tmp_path, "bm25", "t", [0.5, 0.4], settings=settings)
    message = run_command("inspect", "bm25", "--results", tmp_path).output
    for part in ("(bm25 on t)", "(bm25 + rocchio:model=m on t)", "(bm25 on t, sample of 20)", "(bm25 on t, split dev)"):
        assert part in message
    table = run_command("list", "results", "--results", tmp_path).output
    rows = [tuple(line.split()[4:]) for line in table.splitlines()[1:]]
    assert len({row[:-3] + row[-2:] for row in rows}) == 4, "they differ without the settings-id"


@pytest.mark.parametrize(
    ("command", "word"), [("list suite", "stdlib"), ("list RECIPES", "quick"), ("list study", "e2rank")]
)
def test_a_kind_may_be_singular_or_plural(command: str, word: str) -> None:
    assert word in run_command(*command.split()).output
    assert "lexical" in run_command("show", "models", "bm25").output


def test_an_unknown_kind_is_answered_in_two_lines() -> None:
    answer = run_command("list", "modl")
    assert answer.exit_code == 2
    assert answer.output == "error: there is no kind called 'modl'\nnext:  did you mean models or methods?\n"


def test_the_only_cell_of_a_command_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    output = run_command("run", "--model", "bm25", "--task", tmp_path / "empty", "--out", tmp_path / "r").output
    assert output.count("failed") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (61, "1 min 1 s"),
        (3600 * 5 + 125, "5 h 2 min"),
        (3600 * 30, "30 h 0 min"),
        (86400 * 12, "12 d 0 h"),
    ],
)
def test_a_duration_is_read_at_a_glance(seconds: float, text: str) -> None:
    """A plan of half a second took "0.0 minutes", and one of twelve days 17,280."""
    assert format_duration(seconds) == text


def test_a_hub_id_whose_repository_has_a_card_names_it(tmp_path: Path) -> None:
    """Its row had no training sets and no published score, and nothing said that a card has them."""
    task = small_collection.write_folder(tmp_path / "small")
    answer = run_command("run", "--model", "BAAI/bge-small-en-v1.5", "--task", task, "--out", tmp_path / "r")
    assert "bge-small-en-v1.5 is the card of this repository" in answer.output
    assert "`retbench fetch BAAI/bge-small-en-v1.5`" in answer.output
    other = run_command("run", "--model", "Org/Name", "--task", task, "--out", tmp_path / "r")
    assert "is the card of" not in other.output


def test_a_method_that_a_recipe_has_and_a_model_cannot_use_leads_to_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next step was --method, an option that `finetune` does not have."""

    def refuse(*_: object) -> None:
        raise InapplicableError("method repllama needs an end-of-sequence token", "use --method last or mean")

    monkeypatch.setattr(train_encoder, "finetune_encoder", refuse)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "a", "positives": ["b"]}\n')
    answer = run_command("finetune", pairs, "--model", "minilm-l6")
    assert answer.exit_code == 2
    assert "error: recipe repllama: method repllama needs" in answer.output
    assert "--recipe quick" in answer.output
    assert "--method" not in answer.output


@pytest.mark.parametrize(
    ("values", "digits", "expected"),
    [([12.5, None], 1, 1), ([0.1], 1, 1), ([0.017], 1, 3), ([0.0, 0.0003], 2, 5), ([None, 0.0], 1, 1), ([40.0], 0, 0)],
)
def test_a_small_cost_is_not_printed_as_zero(values: list[float | None], digits: int, expected: int) -> None:
    """`plan` for a small collection was a row of zeros."""
    assert choose_digits(values, digits) == expected
