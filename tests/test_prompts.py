"""Prompt sets: every cell also with other prompts, and what the report says about the differences."""

import json
from itertools import product
from pathlib import Path

import pytest

from retbench.cards import catalog
from retbench.cards.prompt_set import OtherPrompt, split_prompt_name
from retbench.errors import InapplicableError
from retbench.pipelines.report import build_report
from retbench.reports.side_tables import list_side_tables
from tests.finished_runs import write_finished_run
from tests.test_run import run_cells, run_command

SET = """
name = "mine"
[[prompts]]
name = "none"
query = "{text}"
document = "{text}"
[[prompts]]
name = "worded"
instruction = "anything"
[prompts.instructions]
pantry = "Find the tool"
"""
METHOD = "e5-mistral:eos=false"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(SET)
    return file


def read_queries(cells: list[dict[str, str]]) -> list[str]:
    samples = [json.loads((Path(cell["record"]) / "sample.json").read_text()) for cell in cells]
    return [sample["query"]["read"] for sample in samples]


def test_a_run_with_prompts_has_a_row_for_each_and_embeds_the_documents_once(
    model: Path, task: Path, out: Path, prompts: Path
) -> None:
    line = ("run", "--model", model, "--task", task, "--method", METHOD, "--out", out)
    (plain,) = run_cells(*line)
    cells = run_cells(*line, "--prompts", prompts)
    assert [cell["method"] for cell in cells] == [METHOD, f"{METHOD},prompt=none", f"{METHOD},prompt=worded"]
    assert (cells[0]["settings_id"], cells[0]["cached"]) == (plain["settings_id"], True)
    text = "how to brew a hot drink"
    own, none, worded = read_queries(cells)
    assert own.endswith(f"\nQuery: {text}")
    assert (none, worded) == (text, f"Instruct: Find the tool\nQuery: {text}")
    assert len({cell["settings_id"] for cell in cells}) == 3
    records = [json.loads((Path(cell["record"]) / "record.json").read_text()) for cell in cells]
    seconds = {record["texts"]["document"]["seconds"] for record in records}
    assert len(seconds) == 1  # the documents were embedded once: their time stands beside the stored vectors


def test_a_prompt_that_changes_no_text_is_skipped_with_its_reason(
    model: Path, task: Path, out: Path, prompts: Path
) -> None:
    answer = run_command(
        "run", "--model", model, "--model", "bm25", "--task", task, "--method", "mean", "--prompts", prompts, "--out",
        out, "--json",
    )  # fmt: skip
    cells = json.loads(answer.stdout)
    assert answer.exit_code == 0
    assert [(cell["method"], cell["status"]) for cell in cells] == [
        ("mean", "done"),
        ("mean:prompt=none", "skipped"),
        ("mean:prompt=worded", "skipped"),
        ("bm25", "done"),
    ]
    assert "changes no text" in cells[1]["error"]


def test_a_dry_run_shows_the_text_of_every_prompt(model: Path, task: Path, out: Path, prompts: Path) -> None:
    cells = run_cells(
        "run", "--model", model, "--task", task, "--method", "mean", "--method", METHOD, "--prompts", prompts,
        "--dry-run", "--out", out,
    )  # fmt: skip
    assert [cell["method"].partition("prompt=")[2] for cell in cells] == ["", "", "none", "worded"]
    assert cells[-1]["first"]["query"]["read"].startswith("Instruct: Find the tool\n")


def test_a_query_template_of_the_task_is_replaced_too() -> None:
    card, bge = catalog.find_task_card("bright-pony"), catalog.find_method("bge")
    method, task = OtherPrompt("none", query="{text}").apply(bge, card)
    assert method.fit_to_task(task).query == "{text}"
    with pytest.raises(InapplicableError):
        OtherPrompt("same", query=f"{card.instruction}{{text}}").apply(bge, card)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nprompts = []', "has no prompt"),
        ('name = "x"\n[[prompts]]\nname = "a"', "changes nothing"),
        ('name = "x"\n[[prompts]]\nname = "a"\nquery = "no place"', "has no {text}"),
        ('name = "x"\n[[prompts]]\nname = "A b"\nquery = "{text}"', "is not a short name"),
        ('name = "x"' + '\n[[prompts]]\nname = "a"\nquery = "{text}"' * 2, "has a twice"),
        ('name = "x"\n[[prompts]]\nname = "a"\nqueri = "{text}"', "queri"),
    ],
)
def test_a_wrong_prompt_set_is_an_error_in_two_lines(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    answer = run_command("run", "--model", "bm25", "--task", "stdlib-text", "--prompts", file)
    assert answer.exit_code in (2, 4)
    assert message in answer.output
    assert len(answer.output.strip().splitlines()) == 2


def test_a_prompt_set_is_found_by_name(tmp_path: Path) -> None:
    assert "is no TOML file" in run_command("run", "--model", "x", "--task", "y", "--prompts", tmp_path).output
    assert run_command("run", "--model", "bm25", "--task", "stdlib-text", "--prompts", "instructoin").exit_code == 2
    assert "known: instruction" in run_command("run", "--model", "x", "--task", "y", "--prompts", "zzz").output
    names = [prompt.name for prompt in catalog.find_prompt_set("instruction").prompts]
    assert names == ["none", "general", "other-task"]


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("e5", ("e5", None)),
        ("e5:prompt=none", ("e5", "none")),
        ("mean:layer=-8,prompt=a-1 + cross (depth 10)", ("mean:layer=-8 + cross (depth 10)", "a-1")),
    ],
)
def test_a_label_is_split_at_its_prompt(label: str, parts: tuple[str, str | None]) -> None:
    assert split_prompt_name(label) == parts


OWN = [0.9, 0.8, 1.0, 0.7, 0.95, 0.85, 0.9, 1.0, 0.75, 0.8]
ABSENT = [0.1, 0.2, 0.5, 0.1, 0.3, 0.25, 0.2, 0.4, 0.15, 0.1]
WORDED = [0.9, 0.7, 1.0, 0.8, 0.95, 0.8, 0.95, 1.0, 0.75, 0.8]


def flip_signs(a: list[float], b: list[float]) -> float:
    """The p-value of the paired randomisation test, by all exchanges."""
    differences = [one - other for one, other in zip(a, b, strict=True)]
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * difference for sign, difference in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(one >= observed - 1e-9 for one in sums) / len(sums)


def test_the_report_says_whether_a_model_uses_its_prompt(out: Path) -> None:
    for method, scores in (("e5", OWN), ("e5:prompt=none", ABSENT), ("e5:prompt=worded", WORDED)):
        template = "{text}" if method.endswith("none") else f"{method} {{text}}"
        folder = write_finished_run(out, "m", "t", scores, method=method, settings={"engine": method})
        record = json.loads((folder / "record.json").read_text())
        record["cards"]["method"] |= {"query": template}
        (folder / "record.json").write_text(json.dumps(record))
    report = build_report(out)
    (table,) = list_side_tables(report.boards[0])
    p_values = sorted([2 * flip_signs(OWN, ABSENT), flip_signs(OWN, WORDED)])  # Holm: the smaller one counts twice
    assert [row[2:5] for row in table.rows] == [
        ["its own", "86.50", "–"],
        ["worded", "86.50", "+0.00"],
        ["none", "23.00", "-63.50"],
    ]
    assert [row[6] for row in table.rows[1:]] == [f"{p_values[1]:.3f}", f"{p_values[0]:.3f}"]
    assert "it uses its prompt: without it the score is 63.50 lower" in table.note
    assert "1 other wording: none significantly different" in table.note
    assert "spread over 3 prompts 63.50" in table.note
    for name in ("markdown", "latex", "html"):
        assert "it uses its prompt" in report.format(name)
    effects = {cell["method"]: cell["prompt_effect"] for cell in report.list_cells() if "prompt_effect" in cell}
    assert effects["e5:prompt=none"]["difference"] == pytest.approx(-0.635)


def test_a_report_without_prompts_has_no_table_of_them(out: Path) -> None:
    write_finished_run(out, "m", "t", OWN, method="e5")
    assert list_side_tables(build_report(out).boards[0]) == []
