"""`bm25-lucene` against Lucene itself: `lucene_answers.json` holds what Anserini 1.7.1 answered.

`make referee` asks Anserini again, about whole collections (tests/test_referee.py).
"""

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retbench
from retbench.cards import catalog
from retbench.cards.model import LexicalSettings
from retbench.errors import DataError
from retbench.retrievers.lucene_index import LuceneIndex, round_lengths
from retbench.retrievers.lucene_terms import LuceneTermExtractor
from retbench.retrievers.porter_stemmer import stem_word
from retbench.retrievers.stemmed_terms import TermExtractor
from tests import small_collection
from tests.test_run import run_command

ANSWERS = json.loads((Path(__file__).parent / "lucene_answers.json").read_text())
STUDIES = Path(__file__).parent.parent / "studies"
ROUNDED = 1.01e-4  # Anserini writes scores with four decimals, and takes a little from equal ones


def load_settings() -> LexicalSettings:
    settings = catalog.find_model_card("bm25-lucene").lexical
    assert settings is not None
    return settings


def test_terms_are_those_of_lucene() -> None:
    extractor = LuceneTermExtractor()
    for text, terms in ANSWERS["analysis"]:
        assert extractor.extract_terms(text) == terms, ascii(text)


def test_stems_are_those_of_lucene() -> None:
    stems = ANSWERS["stems"]
    assert {word: stem_word(word) for word in stems} == stems
    assert len(stems) == 1500


def test_document_lengths_lose_what_a_byte_loses() -> None:
    lengths, stored_lengths = np.array(ANSWERS["lengths"]).T
    assert round_lengths(lengths).tolist() == stored_lengths.tolist()


def test_rankings_and_scores_are_those_of_anserini() -> None:
    """With equal scores, documents without words, repeated query words and words that no document has."""
    rows = ANSWERS["documents"]
    ids = [row["_id"] for row in rows]
    index = LuceneIndex(load_settings(), (f"{row['title']} {row['text']}" for row in rows), ids)
    ranking = index.search(ANSWERS["queries"].values(), 50)
    for query, top_rows, scores in zip(ANSWERS["queries"], ranking.rows, ranking.scores, strict=True):
        expected = ANSWERS["rankings"][query]
        assert [ids[row] for row in top_rows] == [name for name, _ in expected], query
        assert scores.tolist() == pytest.approx([score for _, score in expected], abs=ROUNDED), query
    assert ranking.rows[list(ANSWERS["queries"]).index("unknown")].tolist() == []


def test_a_corpus_without_words_answers_nothing() -> None:
    ranking = LuceneIndex(load_settings(), ["", "the of"], ["a", "b"]).search(["the heart"], 10)
    assert [rows.tolist() for rows in ranking.rows] == [[]]


def test_the_two_bm25_are_two_models(tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "pantry")
    lucene, bm25 = retbench.evaluate(["bm25-lucene", "bm25"], tasks=[str(folder)], out=tmp_path / "results")
    assert lucene.status == bm25.status == "done"
    assert lucene.settings_id != bm25.settings_id
    records = [_read_settings(cell) for cell in (lucene, bm25)]
    assert records[0]["lexical"] == {"k1": 0.9, "b": 0.4, "variant": "anserini"}
    assert records[1]["lexical"] == {"k1": 1.5, "b": 0.75, "variant": "lucene", "stemmer": "english", "stopwords": "en"}
    assert [record["engine"] for record in records] == ["retbench", "bm25s"]


def test_settings_that_the_variant_does_not_use_are_not_shown() -> None:
    answer = run_command("show", "model", "bm25-lucene")
    assert "lexical.variant  anserini" in answer.output
    assert "stemmer" not in answer.output


def _read_settings(cell: Any) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((Path(cell.record) / "record.json").read_text())["settings"]
    return settings


@pytest.mark.parametrize("study", ["e2rank", "insertrank"])
def test_the_papers_first_stage_is_the_studies_first_stage(study: str) -> None:
    """BM25 as Anserini runs it, or the papers' own lists of it; only stages that say so start from another model."""
    plan = tomllib.loads((STUDIES / f"{study}.toml").read_text())
    first = [
        stage["models"]
        for stage in plan["stages"]
        if stage["name"].startswith("first-stage") or "rerank" in stage.get("options", {})
        if not stage["name"].startswith(("dense", "end-to-end"))
    ]
    assert len(first) > 5
    assert {name for models in first for name in models} <= {"bm25-lucene", "candidate-list"}


@pytest.mark.parametrize(
    "settings",
    [
        *({"k1": value} for value in (math.nan, math.inf, -0.1, 1e300)),
        *({"b": value} for value in (math.nan, -0.1, 1.1)),
        *({"mu": value} for value in (math.nan, math.inf, 0.0, -1.0)),
    ],
    ids=repr,
)
def test_settings_that_give_no_order_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(DataError, match=r"=(nan|inf|-?[\d.e+]+) is not a"):
        LexicalSettings(**settings)  # type: ignore[arg-type]  # all are numbers


@pytest.mark.parametrize(("field", "what"), [("stemmer", "stemmer"), ("stopwords", "stop words of the language")])
def test_an_unknown_language_is_an_error(field: str, what: str) -> None:
    with pytest.raises(DataError, match=rf"there (is|are) no {what} 'klingon'"):
        TermExtractor(LexicalSettings(**{field: "klingon"}))  # type: ignore[arg-type]  # both are names
