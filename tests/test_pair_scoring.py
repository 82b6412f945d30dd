"""A cross-encoder as filter of hard negatives and as teacher: scores, limits, resuming, losses against the library."""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from retbench.cards.mining import MiningSettings
from retbench.cards.recipe import ContrastiveSettings, Recipe
from retbench.cards.stored_recipe import describe_recipe
from retbench.cards.teacher_scores import TeacherScores
from retbench.encoders.cross_encoder import ClassifierCrossEncoder
from retbench.encoders.pair_tokenizers import TokenizedPairs
from retbench.errors import DataError, ResourceError
from retbench.pipelines.finetuning import prepare_passages
from retbench.pipelines.finetuning.prepare_passages import add_teacher, build_pair_scorer
from retbench.pipelines.finetuning.train_encoder import finetune_encoder
from retbench.retrievers.ranking import Ranking
from retbench.store.pair_scores import PairScoreStore
from retbench.training import distributed, hard_negatives, pair_scoring
from retbench.training.contrastive_batches import ContrastiveBatch
from retbench.training.losses import contrastive_loss
from retbench.training.pair_scoring import PairScorer, to_probabilities
from retbench.training.teachers import calibrate_scores
from retbench.training.training_data import TrainingRequest
from retbench.training.training_set import TrainingQuery, TrainingSet
from tests import tiny_models
from tests.test_cross_encoder import score_plainly
from tests.test_run import run_command
from tests.test_train_loop import RECIPE

FILTER = MiningSettings("bm25", rank_to=8, max_score_ratio=0.95, cross_encoder="judge")
QUERIES = 6


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_cross_encoder(tmp_path_factory.mktemp("judge") / "tiny-judge", model_max_length=96)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A training file: the even sentences ask, the next ones answer, others are negatives."""
    texts = tiny_models.SENTENCES
    rows = [
        {"query": f"{texts[2 * n]} really", "positives": [texts[2 * n + 1]],
         "negatives": [texts[(2 * n + step) % len(texts)] for step in (3, 5, 7, 9)]}
        for n in range(QUERIES)
    ]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def scored_pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pairs in every pass of a classifier."""
    counts, score_pairs = list[int](), ClassifierCrossEncoder.score_pairs

    def count(self: ClassifierCrossEncoder, pairs: TokenizedPairs, max_tokens: int) -> np.ndarray:
        counts.append(len(pairs.inputs))
        return score_pairs(self, pairs, max_tokens)

    monkeypatch.setattr(ClassifierCrossEncoder, "score_pairs", count)
    return counts


def build_set() -> TrainingSet:
    queries = [TrainingQuery(f"{text} really", (n,), ()) for n, text in enumerate(tiny_models.SENTENCES[:QUERIES])]
    return TrainingSet("sentences", queries, tiny_models.SENTENCES, "f")


def build_scorer(judge: Path) -> PairScorer:
    return build_pair_scorer(str(judge), TrainingRequest("pairs.jsonl", "bm25"))


def score_all(scorer: PairScorer, training_set: TrainingSet, candidates: list[tuple[int, ...]]) -> list[np.ndarray]:
    return scorer.score_candidates(training_set, candidates, lambda *_: None)


# Scores


@pytest.mark.usefixtures("own_cache")
def test_scores_are_those_of_transformers_and_are_kept(judge: Path, scored_pairs: list[int]) -> None:
    training_set, candidates = build_set(), [(0, 5, 9), (), (2, 7), (1,), (3, 4), (11,)]
    scores = score_all(build_scorer(judge), training_set, candidates)
    for query, rows, found in zip(training_set.queries, candidates, scores, strict=True):
        texts = [training_set.passages[row] for row in rows]
        np.testing.assert_allclose(found, score_plainly(judge, texts, 96, query.text), atol=1e-4)
    assert scored_pairs == [9]
    again = score_all(build_scorer(judge), training_set, [(*rows, 20) for rows in candidates])
    assert scored_pairs == [9, 6]  # only the new passage of each query
    for before, after in zip(scores, again, strict=True):
        np.testing.assert_array_equal(after[:-1], before)


@pytest.mark.usefixtures("own_cache")
def test_an_interruption_loses_one_chunk(judge: Path, scored_pairs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_scoring, "PAIRS_PER_CHUNK", 4)
    training_set, candidates = build_set(), [(0, 5, 9, 12)] * QUERIES
    scorer = build_scorer(judge)
    score_pairs = ClassifierCrossEncoder.score_pairs

    def interrupt(self: ClassifierCrossEncoder, pairs: TokenizedPairs, max_tokens: int) -> np.ndarray:
        if len(scored_pairs) == 3:
            raise KeyboardInterrupt
        return score_pairs(self, pairs, max_tokens)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierCrossEncoder, "score_pairs", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score_all(scorer, training_set, candidates)
    assert scored_pairs == [4, 4, 4]
    score_all(build_scorer(judge), training_set, candidates)
    assert scored_pairs == [4] * QUERIES


@pytest.mark.usefixtures("own_cache")
def test_processes_divide_the_queries(judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training_set, candidates = build_set(), [(0, 5), (2,), (2, 7), (1,), (3, 4, 6), (11,)]
    whole = np.concatenate(score_all(build_scorer(judge), training_set, candidates))
    parts = []
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "sum_array", lambda array: array)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        parts.append(np.concatenate(score_all(build_scorer(judge), training_set, candidates)))
    assert ((parts[0] == 0) != (parts[1] == 0)).all()
    np.testing.assert_allclose(parts[0] + parts[1], whole, atol=1e-6)


@pytest.mark.usefixtures("own_cache")
def test_a_score_that_is_no_number_is_named(judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassifierCrossEncoder, "score_pairs", lambda *_: np.array([1.0, np.nan]))
    with pytest.raises(DataError, match=r"gives no finite score to the query 'The heart.*with the passage 'Insulin"):
        score_all(build_scorer(judge), build_set(), [(0, 9), *[()] * (QUERIES - 1)])


@pytest.mark.usefixtures("own_cache")
def test_a_damaged_store_is_named() -> None:
    store = PairScoreStore.open_for("judge", {"weights": "w"})
    store.add_scores([("q", "d")], [1.5])
    assert store.find_scores([("q", "d"), ("qd", "")]) == [1.5, None]
    store.file.write_bytes(b"not a database, and long enough to be taken for one" * 20)
    with pytest.raises(DataError, match="is damaged"):
        store.find_scores([("q", "d")])
    store.file.unlink()
    with sqlite3.connect(store.file) as connection:
        connection.execute("CREATE TABLE checked_scores (pair BLOB PRIMARY KEY)")
    with pytest.raises(ResourceError, match="cannot be read or written"):
        store.add_scores([("q", "d")], [1.5])


# Filters


@pytest.mark.parametrize(
    ("best", "limits", "expected"),
    [
        (0.8, {"max_score_ratio": 0.95}, 0.76),
        (-2.0, {"max_score_ratio": 0.95}, -2.1),  # 0.95 x -2 would be above the positive
        (5.0, {"score_margin": 3.0}, 2.0),
        (5.0, {"max_score": 0.7}, 0.7),
        (5.0, {"max_score_ratio": 0.5, "score_margin": 3.0, "max_score": 2.2}, 2.0),
    ],
)
def test_the_limit_of_a_negatives_score(best: float, limits: dict[str, float], expected: float) -> None:
    assert hard_negatives.compute_score_limit(best, MiningSettings("bm25", **limits)) == pytest.approx(expected)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("limits", [{"max_score_ratio": 0.95}, {"score_margin": 0.1}, {"max_score": 0.6}])
def test_the_filter_keeps_what_sentence_transformers_keeps(judge: Path, limits: dict[str, float]) -> None:
    """Its mining, with every passage as a candidate; the miner's vectors are random."""
    library, datasets = pytest.importorskip("sentence_transformers"), pytest.importorskip("datasets")
    training_set, corpus = build_set(), list(tiny_models.SENTENCES)
    texts, others = [*corpus, *(query.text for query in training_set.queries)], len(corpus) - 1
    vectors = np.random.default_rng(3).normal(size=(len(texts), 8)).astype(np.float32)

    def encode(found: list[str], **_: Any) -> np.ndarray:
        return vectors[[texts.index(text) for text in found]]

    miner = SimpleNamespace(
        encode=encode, encode_query=encode, encode_document=encode, device="cpu", prompts={},
        similarity=lambda a, b: torch.as_tensor(a) @ torch.as_tensor(b).T,
        similarity_pairwise=lambda a, b: (torch.as_tensor(a) * torch.as_tensor(b)).sum(1),
    )  # fmt: skip
    names = {"max_score_ratio": "relative_margin", "score_margin": "absolute_margin", "max_score": "max_score"}
    ((name, limit),) = limits.items()
    rows = {"query": [query.text for query in training_set.queries], "answer": corpus[:QUERIES]}
    theirs = library.util.mine_hard_negatives(
        datasets.Dataset.from_dict(rows), miner, corpus=corpus, range_max=others, num_negatives=others,
        cross_encoder=library.CrossEncoder(str(judge), device="cpu", max_length=96), output_format="labeled-list",
        **{names[name]: 1 - limit if name == "max_score_ratio" else limit}, verbose=False,
    )  # fmt: skip
    expected = {row["query"]: {text for text, label in zip(row["answer"], row["labels"], strict=True) if not label}
                for row in theirs}  # fmt: skip
    scores = encode(rows["query"]) @ encode(corpus).T
    order = np.argsort(-scores, axis=1)
    ranking = Ranking(order, np.take_along_axis(scores, order, axis=1))
    settings = MiningSettings("model", rank_to=others, negatives_per_query=others, cross_encoder="judge", **limits)
    candidates = hard_negatives.mine_hard_negatives(training_set, settings, lambda *_: ranking, "m", True)
    found = hard_negatives.filter_negatives(candidates, settings, build_scorer(judge), lambda *_: None)
    kept = {query.text: {corpus[row] for row in query.negatives} for query in found.queries if query.negatives}
    assert kept == {text: negatives for text, negatives in expected.items() if negatives}
    assert QUERIES < sum(map(len, kept.values())) < others * QUERIES


@pytest.mark.usefixtures("own_cache")
def test_negatives_of_the_data_are_filtered_with_their_scores(judge: Path) -> None:
    queries = [
        replace(query, negatives=(7, 8, 9, 10), scores=(9.0, 7.0, 8.0, 9.5, 10.0)) for query in build_set().queries
    ]
    training_set = replace(build_set(), queries=queries)
    settings = MiningSettings(max_score=0.5, cross_encoder="judge", negatives_per_query=2)
    found = hard_negatives.filter_negatives(training_set, settings, build_scorer(judge), lambda *_: None)
    logits = [score_plainly(judge, [tiny_models.SENTENCES[row] for row in (7, 8, 9, 10)], 96, q.text) for q in queries]
    for query, row in zip(found.queries, logits, strict=True):
        kept = [(7, 7.0), (8, 8.0), (9, 9.5), (10, 10.0)]
        kept = [pair for pair, logit in zip(kept, row, strict=True) if to_probabilities(np.array([logit]))[0] <= 0.5][
            :2
        ]
        assert query.negatives == tuple(row for row, _ in kept)
        assert query.scores == (9.0, *(score for _, score in kept))
    facts = found.facts["negatives"]["filter"]
    assert (facts["candidates"], facts["max_score"]) == (4 * QUERIES, 0.5)
    assert facts["kept"] == sum(len(query.negatives) for query in found.queries)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"cross_encoder": "judge"}, "nothing to filter by"),
        ({"max_score": 0.5}, "have no scores to filter by"),
    ],
)
def test_a_filter_that_cannot_work_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        MiningSettings(**settings)


def test_a_cross_encoder_that_nothing_uses_is_refused() -> None:
    with pytest.raises(DataError, match=r"hard_negatives is 0"):
        replace(RECIPE, mining=FILTER, contrastive=ContrastiveSettings())
    with pytest.raises(DataError, match=r"distillation_weight is 0"):
        replace(RECIPE, teacher="cross:model=judge")


# Teachers


@pytest.mark.usefixtures("own_cache")
def test_a_cross_encoder_is_a_teacher(judge: Path, scored_pairs: list[int]) -> None:
    queries = [replace(query, negatives=(7, 8, 9)) for query in build_set().queries]
    training_set, request = replace(build_set(), queries=queries), TrainingRequest("pairs.jsonl", "bm25")
    recipe = replace(
        RECIPE, teacher=f"cross:model={judge}", contrastive=ContrastiveSettings(0.1, 2, distillation_weight=1.0)
    )
    taught = add_teacher(training_set, recipe, request)
    for query in taught.queries:
        texts = [tiny_models.SENTENCES[row] for row in (*query.positives, *query.negatives)]
        np.testing.assert_allclose(query.scores, score_plainly(judge, texts, 96, query.text), atol=1e-4)
    assert taught.facts["teacher"]["cross_encoder"] == "tiny-judge"
    scaled = add_teacher(training_set, replace(recipe, teacher_scores=TeacherScores("minmax", 0.5)), request)
    assert {(min(query.scores or ()), max(query.scores or ())) for query in scaled.queries} == {(0.0, 2.0)}
    assert len(scored_pairs) == 1
    assert str(judge.parent) not in json.dumps(describe_recipe(recipe))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (TeacherScores(), (2.0, 0.0, -2.0)),
        (TeacherScores("raw", 4.0), (0.5, 0.0, -0.5)),
        (TeacherScores("minmax"), (1.0, 0.5, 0.0)),
        (TeacherScores("probability", 2.0), (0.880797 / 2, 0.25, 0.119203 / 2)),
    ],
)
def test_teacher_scores_are_calibrated(settings: TeacherScores, expected: tuple[float, ...]) -> None:
    query = TrainingQuery("q", (0,), (1, 2), (2.0, 0.0, -2.0))
    (found,) = calibrate_scores(TrainingSet("s", [query], ["a", "b", "c"], "f"), settings).queries
    assert found.scores == pytest.approx(expected, abs=1e-6)
    equal = replace(query, scores=(3.0, 3.0, 3.0))
    (found,) = calibrate_scores(TrainingSet("s", [equal], ["a", "b", "c"], "f"), TeacherScores("minmax")).queries
    assert found.scores == (0.0, 0.0, 0.0)


def build_distilled_batch() -> tuple[torch.Tensor, torch.Tensor, ContrastiveBatch]:
    """Three queries with one positive and two negatives each."""
    generator = torch.Generator().manual_seed(5)
    queries, passages = (torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (3, 9))
    teacher = np.random.default_rng(2).normal(size=9) * 3
    relevant = np.zeros((3, 9), dtype=bool)
    relevant[range(3), range(3)] = True
    owner = np.array([0, 1, 2, 0, 0, 1, 1, 2, 2])
    return queries, passages, ContrastiveBatch(["q"] * 3, ["p"] * 9, owner, relevant, teacher)


@pytest.mark.parametrize("loss", ["kl", "margin-mse"])
def test_a_distillation_loss_is_that_of_sentence_transformers(loss: Any) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    queries, passages, batch = build_distilled_batch()
    queries.requires_grad_()
    assert batch.teacher_scores is not None
    columns = [passages[:3], passages[[3, 5, 7]], passages[[4, 6, 8]]]
    labels = torch.tensor(
        np.stack([batch.teacher_scores[rows] for rows in ([0, 1, 2], [3, 5, 7], [4, 6, 8])], 1)
    ).float()
    settings = ContrastiveSettings(0.5, 2, distillation_weight=1.0, distillation_loss=loss)
    ours = contrastive_loss(queries, passages, batch, settings, "dot")
    (gradient,) = torch.autograd.grad(ours, queries)
    if loss == "kl":  # theirs is multiplied by the square of the student's temperature
        library = losses.DistillKLDivLoss(torch.nn.Identity(), student_temperature=0.5, teacher_temperature=1.0)
        theirs = library.compute_loss_from_embeddings([queries, *columns], labels) / 0.25
    else:
        margins = labels[:, :1] - labels[:, 1:]
        similarity = torch.stack([(queries * column).sum(1) for column in columns], 1)
        theirs = ((similarity[:, :1] - similarity[:, 1:] - margins) ** 2).mean()
        library = losses.MarginMSELoss(torch.nn.Identity())
        assert theirs.item() == pytest.approx(library.compute_loss_from_embeddings([queries, *columns], labels).item())
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    (expected,) = torch.autograd.grad(theirs, queries)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_margin_mse_without_negatives_is_zero() -> None:
    queries, passages, batch = build_distilled_batch()
    batch = replace(batch, passages=batch.passages[:3], owner=batch.owner[:3], relevant=batch.relevant[:, :3],
                    teacher_scores=np.zeros(3))  # fmt: skip
    settings = ContrastiveSettings(0.5, 2, distillation_weight=1.0, distillation_loss="margin-mse")
    assert float(contrastive_loss(queries, passages[:3], batch, settings)) == 0.0


# Trainings


@pytest.mark.usefixtures("own_cache")
def test_a_training_filters_and_follows_the_same_cross_encoder(
    judge: Path, data: Path, model: Path, tmp_path: Path, scored_pairs: list[int], fresh_catalog: Callable[[], None]
) -> None:
    recipe: Recipe = replace(
        RECIPE, mining=replace(FILTER, cross_encoder=str(judge), score_scale="logit", negatives_per_query=3),
        teacher=f"cross:model={judge}", teacher_scores=TeacherScores("minmax"),
        contrastive=ContrastiveSettings(0.1, 2, distillation_weight=0.5, distillation_loss="margin-mse"),
        optimizer=replace(RECIPE.optimizer, max_steps=2),
    )  # fmt: skip
    lines = list[str]()
    request = TrainingRequest(str(data), str(model), out=tmp_path / "pupil", log_status=lines.append)
    card = finetune_encoder(request, recipe)
    assert card.training
    facts = card.training.data
    assert facts["negatives"]["filter"]["cross_encoder"] == facts["teacher"]["cross_encoder"] == "tiny-judge"
    assert len(scored_pairs) == 1  # the teacher's scores were those of the filter
    assert any("candidates as hard negatives" in line for line in lines)
    assert str(judge.parent) not in json.dumps(card.training.recipe)
    (tmp_path / "pupil" / "card.toml").unlink()
    finetune_encoder(replace(request, resume=True), recipe)
    assert len(scored_pairs) == 1


@pytest.mark.usefixtures("own_cache")
def test_a_dry_run_says_what_the_cross_encoder_takes(
    judge: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_passages, "MEASURED_SECONDS", 0.05)
    sets = [f"mining.cross_encoder={judge}", "mining.max_score_ratio=0.95", "contrastive.hard_negatives=2",
            f"teacher=cross:model={judge},max_length=64", "contrastive.distillation_weight=0.5", "lengths.document=16",
            "batch.contrastive_batch_size=4", "batch.train_batch_size=4"]  # fmt: skip
    options = [part for value in sets for part in ("--set", value)]
    answer = run_command("finetune", data, "--model", model, "--recipe", "quick", *options, "--dry-run", "--json")
    assert answer.exit_code == 0, answer.output
    by_filter, by_teacher = json.loads(answer.stdout)["cross_encoders"]
    assert (by_filter["model"], by_filter["pairs"]) == ("tiny-judge", 5 * QUERIES)
    assert by_teacher["pairs"] == 5 * QUERIES
    assert by_filter["tokens"] > by_filter["pairs"]
    assert by_filter["minutes"] >= 0


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("mining.cross_encoder=no-such-judge", "no-such-judge"),
        ("mining.cross_encoder=cross:model=ms-marco-minilm-l6-v2,depth=5", "depth belongs to --rerank"),
        ("mining.cross_encoder=bm25", "bm25 is a lexical model"),
    ],
)
@pytest.mark.usefixtures("own_cache")
def test_a_wrong_judge_is_named(data: Path, model: Path, setting: str, problem: str, tmp_path: Path) -> None:
    options = ("--set", setting, "--set", "mining.max_score_ratio=0.9", "--set", "contrastive.hard_negatives=1")
    answer = run_command(
        "finetune", data, "--model", model, "--recipe", "quick", *options, "--out", tmp_path / "o", "--set",
        "batch.contrastive_batch_size=4", "--set", "batch.train_batch_size=4",
    )  # fmt: skip
    assert answer.exit_code
    assert "queries" not in answer.output  # nothing was loaded before
    assert problem in " ".join(answer.output.split())
