"""What int8 costs in score stands in the model cards as it was measured, and is said before a run and by `show`."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import retbench
from retbench.cards import catalog
from retbench.cards.int8_scores import describe_int8_scores
from retbench.cli.main import app
from tests import small_collection, tiny_models

MEASURED = Path(__file__).parent.parent / "benchmarks" / "results" / "int8.json"
COUNTS = {"minilm-l6": 3, "smollm2-135m-instruct-q4": 1}


@pytest.mark.parametrize("model", COUNTS)
def test_cards_hold_what_was_measured(model: str) -> None:
    stated = catalog.find_model_card(model).int8_scores
    assert len(stated) == COUNTS[model]
    measured = set()
    for run in json.loads(MEASURED.read_text()):
        found = re.search(r"--model (\S+) --task (\S+)", run["command"])
        assert found
        scores = tuple(run["dtypes"][dtype]["ndcg_at_10"] for dtype in ("float32", "int8"))
        measured.add((found[1], found[2], run["queries"], *scores))
    assert {(model, one.task, one.queries, one.float32, one.int8) for one in stated} <= measured


def test_a_run_in_int8_warns_before_it_begins(tmp_path: Path) -> None:
    task, lines = small_collection.write_folder(tmp_path / "kettles"), list[str]()
    model = tiny_models.build_model(tmp_path / "tiny")
    for name in ("bm25", model):
        retbench.evaluate(
            name, tasks=task, overrides={"dtype": "int8"}, out=tmp_path / "results", log_status=lines.append
        )
    warnings = [line for line in lines if "int8 changes scores" in line]
    assert warnings == [describe_int8_scores("tiny", ())]  # a lexical model has no dtype
    assert "by how much was not measured for tiny" in warnings[0]
    sentence = describe_int8_scores("minilm-l6", catalog.find_model_card("minilm-l6").int8_scores)
    assert "stdlib-doc 44.25 to 42.74 (60 queries)" in sentence


def test_show_prints_the_warning_and_no_field_that_cannot_be() -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["show", "model", "minilm-l6"]).stdout
    assert "stdlib-doc 44.25 to 42.74" in " ".join(shown.split())
    assert not any(name in shown for name in ("adapted", "pair_prompt", "pixels"))
    lexical = runner.invoke(app, ["show", "model", "bm25"]).stdout
    assert "lexical.k1" in lexical
    assert "not known" not in lexical
