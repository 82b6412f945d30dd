"""Teachers and MS MARCO triples: teacher scores, and the passages that get one."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retbench
from retbench.cards import catalog
from retbench.cards.mining import MiningSettings
from retbench.cards.model import ModelCard
from retbench.cards.recipe import ContrastiveSettings, ListwiseTraining, OptimizerSettings
from retbench.errors import DataError, MissingError
from retbench.pipelines.finetuning.train_encoder import finetune_encoder
from retbench.training import hard_negatives
from retbench.training.contrastive_batches import LabelledBatchSource
from retbench.training.teachers import add_teacher_scores
from retbench.training.training_data import TrainingRequest, load_training_set
from retbench.training.training_set import TrainingQuery, TrainingSet
from tests import tiny_models
from tests.test_train_loop import RECIPE

DISTILLED = replace(
    RECIPE,
    contrastive=ContrastiveSettings(0.1, 2, distillation_weight=0.5),
    optimizer=OptimizerSettings(learning_rate=1e-2, num_train_epochs=2),
)
GRADES = {"0": {"16": 2, "17": 1, "18": 0}, "1": {"17": 2, "19": 1, "20": 0}, "2": {"18": 1, "16": 0, "21": 0}}


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A BEIR folder of the sentences, with graded judgments."""
    folder = tmp_path / "graded"
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": str(n), "title": "", "text": text}) for n, text in enumerate(tiny_models.SENTENCES)]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    query_lines = [json.dumps({"_id": str(n), "text": f"{tiny_models.SENTENCES[n]} really"}) for n in range(3)]
    (folder / "queries.jsonl").write_text("\n".join(query_lines) + "\n")
    lines = [f"{query}\t{document}\t{grade}" for query, grades in GRADES.items() for document, grade in grades.items()]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n2\t18\t1\n")
    return folder


def request(collection: Path) -> TrainingRequest:
    return TrainingRequest(str(collection), "bm25")


@pytest.fixture
def train(model: Path, tmp_path: Path, fresh_catalog: Callable[[], None]) -> Callable[..., ModelCard]:
    def train_model(of: Path, **recipe: Any) -> ModelCard:
        request = TrainingRequest(str(of), str(model), out=tmp_path / "pupil")
        return finetune_encoder(request, replace(DISTILLED, **recipe))

    return train_model


def test_graded_judgments_are_teacher_scores(collection: Path) -> None:
    recipe = replace(DISTILLED, teacher="judgments")
    training_set = add_teacher_scores(load_training_set(request(collection)), recipe, print)
    assert [query.id for query in training_set.queries] == [
        "0",
        "1",
    ]  # the third query is also a test query and is removed
    rows = {name: row for row, name in enumerate(training_set.passage_ids or ())}
    first = training_set.queries[0]
    assert dict(zip((*first.positives, *first.negatives), first.scores or (), strict=True)) == {
        rows["16"]: 2.0, rows["17"]: 1.0, rows["18"]: 0.0,
    }  # fmt: skip
    assert training_set.facts["teacher"] == {"source": "judgments", "grades": [0.0, 1.0, 2.0]}


def test_mined_unjudged_passages_have_grade_0(collection: Path) -> None:
    recipe = replace(DISTILLED, teacher="judgments")
    training = load_training_set(request(collection))
    mined = hard_negatives.mine_hard_negatives(
        training, MiningSettings("bm25", rank_to=4), hard_negatives.build_bm25_ranker(training), "bm25"
    )
    query = add_teacher_scores(mined, recipe, print).queries[0]
    assert len(query.negatives) == 4
    graded = dict(query.grades)
    assert list(query.scores or ()) == [graded.get(row, 0) for row in (*query.positives, *query.negatives)]


def write_run_file(folder: Path, ranked: dict[str, list[str]]) -> Path:
    lines = [
        f"{query} Q0 {document} {rank} {10 - 2 * rank} reranker"
        for query, documents in ranked.items()
        for rank, document in enumerate(documents, start=1)
    ]
    file = folder / "reranked.trec.gz"
    file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return file


def test_a_reranked_run_gives_passages_and_teacher_scores(collection: Path, tmp_path: Path) -> None:
    file = write_run_file(tmp_path, {"0": ["25", "16", "30"], "1": ["22", "23"]})
    recipe = replace(DISTILLED, teacher=str(file))
    training_set = add_teacher_scores(load_training_set(request(collection)), recipe, print)
    rows = {name: row for row, name in enumerate(training_set.passage_ids or ())}
    (query,) = training_set.queries  # query 1 is left out, because none of its positives is ranked
    assert (query.positives, query.negatives) == ((rows["16"],), (rows["25"], rows["30"]))
    assert query.scores == (6.0, 8.0, 4.0)
    assert training_set.facts["teacher"] == {"run": "reranked.trec.gz", "queries_without_teacher": 1}
    group = LabelledBatchSource(training_set, recipe.contrastive, 1).build_batch(np.array([0]), 0)
    assert group.teacher_scores is not None
    assert group.teacher_scores[0] == 6.0


def test_a_retbench_record_gives_its_raw_scores_as_teacher_scores(collection: Path, tmp_path: Path) -> None:
    (collection / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n0\t1\t2\n1\t0\t1\n")
    (cell,) = retbench.evaluate(["bm25"], tasks=[str(collection)], out=tmp_path / "r", overrides={"split": "train"})
    recipe = replace(DISTILLED, teacher=str(cell.record))
    training_set = add_teacher_scores(load_training_set(request(collection)), recipe, print)
    assert [query.id for query in training_set.queries] == ["0", "1"]
    for query in training_set.queries:
        assert query.scores is not None
        assert len(set(query.scores)) > 2
        assert not all(score == int(score) for score in query.scores)


@pytest.mark.parametrize("objective", ["contrastive", "e2rank"])
@pytest.mark.parametrize("teacher", ["judgments", "run"])
def test_both_objectives_train_with_either_teacher(
    train: Callable[..., ModelCard], collection: Path, tmp_path: Path, objective: Any, teacher: str
) -> None:
    ranked = {"0": ["25", "16", "30"], "1": ["17", "22", "23"]}
    source = "judgments" if teacher == "judgments" else str(write_run_file(tmp_path, ranked))
    lists = ListwiseTraining(max_documents=3, max_tokens=400) if objective == "e2rank" else None
    card = train(collection, objective=objective, listwise=lists, teacher=source)
    assert card.training
    assert card.training.data["teacher"].keys() >= ({"grades"} if teacher == "judgments" else {"run"})
    assert str(tmp_path) not in json.dumps(card.training.recipe)


def test_an_invalid_teacher_is_refused(collection: Path, tmp_path: Path) -> None:
    sentences = TrainingSet("s", [TrainingQuery("q", (0,), (1,))], tiny_models.SENTENCES, "f")
    with pytest.raises(DataError, match="no graded judgments"):
        add_teacher_scores(sentences, replace(DISTILLED, teacher="judgments"), print)
    with pytest.raises(DataError, match="have no ids, so a run cannot be the teacher"):
        add_teacher_scores(sentences, replace(DISTILLED, teacher=str(write_run_file(tmp_path, {"0": ["16"]}))), print)
    with pytest.raises(MissingError, match="no run at"):
        add_teacher_scores(sentences, replace(DISTILLED, teacher=str(tmp_path / "nowhere")), print)
    recipe = replace(DISTILLED, teacher=str(write_run_file(tmp_path, {"0": ["elsewhere"]})))
    with pytest.raises(DataError, match="ranks 'elsewhere'"):
        add_teacher_scores(load_training_set(request(collection)), recipe, print)
    recipe = replace(DISTILLED, teacher=str(write_run_file(tmp_path, {"9": ["16"]})))
    with pytest.raises(DataError, match="ranks no positive"):
        add_teacher_scores(load_training_set(request(collection)), recipe, print)
    with pytest.raises(DataError, match="brings its own passages"):
        replace(DISTILLED, teacher="some.run", mining=MiningSettings("bm25"))


def write_msmarco_folder(folder: Path, triples: list[str], packed: bool) -> Path:
    folder.mkdir()
    (folder / "collection.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(tiny_models.SENTENCES)))
    (folder / "queries.train.tsv").write_text("".join(f"{n}\t{tiny_models.SENTENCES[n]}?\n" for n in range(9)))
    (folder / "qrels.train.tsv").write_text("".join(f"{n} 0 {n + 1} 1\n" for n in range(9)))
    content = "".join(f"{line}\n" for line in triples).encode()
    name = "qidpidtriples.train.full.2.tsv"
    if packed:
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    else:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_msmarco_triples_give_the_negatives(train: Callable[..., ModelCard], tmp_path: Path, packed: bool) -> None:
    lines = [f"{n}\t{n + 1}\t{bad}" for n in range(9) for bad in (20, n + 1, 21, 20, 22)] + ["77\t3\t4"]
    folder = write_msmarco_folder(tmp_path / "marco", lines, packed)
    training_set = load_training_set(request(folder), negatives_per_query=2)
    assert [training_set.passage_ids[row] for row in training_set.queries[3].negatives] == ["20", "21"]  # type: ignore[index]
    assert training_set.facts["negatives"]["taken"] == 18
    assert training_set.facts["negatives"]["triples_of_other_queries"] == 1
    card = train(folder, contrastive=ContrastiveSettings(0.1, 2), mining=MiningSettings(negatives_per_query=2))
    assert card.training
    assert card.training.data["negatives"]["file"].startswith("qidpidtriples.train.full.2")


@pytest.mark.parametrize(
    ("line", "cause"), [("1\t2", "1: 2 columns"), ("1\t2\t99", "'99' is not in"), ("1\t99\t2", "'99' is not in")]
)
def test_triples_without_matching_texts_are_named(tmp_path: Path, line: str, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        load_training_set(request(write_msmarco_folder(tmp_path / "marco", [line], packed=False)))


def test_queries_without_a_relevant_document_are_counted_and_reported(collection: Path) -> None:
    file = collection / "qrels" / "train.tsv"
    file.write_text(file.read_text().replace("1\t17\t2", "1\t17\t0").replace("1\t19\t1", "1\t19\t0"))
    status_lines: list[str] = []
    training_set = load_training_set(replace(request(collection), log_status=status_lines.append))
    assert (len(training_set.queries), training_set.facts["queries_without_positive"]) == (1, 1)
    assert any("1 queries that have no relevant document" in line for line in status_lines)


def test_a_positive_missing_in_the_corpus_is_named(collection: Path) -> None:
    with (collection / "qrels" / "train.tsv").open("a") as out:
        out.write("0\tnowhere\t1\n")
    with pytest.raises(DataError, match="nowhere"):
        load_training_set(request(collection))


def test_in_a_published_collection_missing_positives_are_counted(collection: Path) -> None:
    from retbench.corpora.open_collection import open_collection
    from retbench.training.training_set import build_training_set

    card = replace(catalog.find_task_card(str(collection)), split="train")
    collection_ = open_collection(card)
    collection_.judgments["0"]["gone"] = 1  # as mteb's loaders do: a judged document that does not exist
    training_set = build_training_set(card, collection_)
    assert (training_set.facts["positives_missing"], len(training_set.queries)) == (1, 3)
