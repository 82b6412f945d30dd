"""Collection anchors: real folders give equal scores in retbench and in mteb, to the last digit mteb prints."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retbench
from retbench.cards import catalog
from retbench.cards.task import TaskCard
from retbench.pipelines.checks.verify import verify_run
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from tests import mteb_task, small_collection
from tests.test_anchors import find_collection

pytestmark = pytest.mark.usefixtures("real_model_environment")


@pytest.fixture(autouse=True)
def _libraries_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def assert_scores_agree(ours: dict[str, float], theirs: dict[str, float]) -> None:
    shared = ours.keys() & theirs.keys()
    assert {"ndcg_at_10", "mrr_at_10", "recall_at_100", "map_at_100"} <= shared
    for metric in shared:
        assert theirs[metric] == pytest.approx(ours[metric], abs=6e-6), metric


@pytest.mark.parametrize(
    ("name", "published"),
    [
        pytest.param("scifact", 0.686, marks=pytest.mark.anchor),  # titles
        pytest.param("cranfield", 0.3648, marks=pytest.mark.anchor),  # grades
        pytest.param("cosqa", 0.3321, marks=pytest.mark.referee),
        pytest.param("codetrans-java-cs", 0.9466, marks=pytest.mark.referee),
    ],
)
def test_bm25_gets_the_score_of_bm25s_also_in_mteb(name: str, published: float, tmp_path: Path) -> None:
    """mteb orders ties in its own way, so it is compared with the evaluator's scores of our raw scores."""
    folder = find_collection(name)
    (cell,) = retbench.evaluate(["bm25"], tasks=[folder], out=tmp_path / "results")
    assert cell.main_score == pytest.approx(published, abs=0.01)
    verification = verify_run(str(cell.record))
    assert verification.unexplained == []
    assert all(
        verdict.agrees for verdict in verification.checks if verdict.evaluator == "mteb" and not _missing(verdict)
    )
    card = small_collection.build_card(Path(folder), name=name)
    theirs = mteb_task.compute_scores(retbench.as_mteb("bm25"), mteb_task.build_task(card), tmp_path / "mteb")
    ours = {v.metric: v.theirs for v in verification.checks if v.evaluator == "mteb, raw scores"}
    assert_scores_agree(ours, theirs)


def _missing(verdict: Any) -> bool:
    return bool(verdict.reasons) and all("have no results" in reason for reason in verdict.reasons)


class Encoder:
    """MiniLM with mteb's encoder interface: mteb batches, searches and scores; only the vectors are from retbench."""

    def __init__(self, card: TaskCard) -> None:
        candidate = ResolvedModel.resolve(catalog.find_model_card("minilm-l6"), None, lambda _: None)
        (method,) = candidate.resolve_methods([])[:1]
        self.encoder = candidate.load_encoder(candidate.build_encoder_spec(method, card, Overrides()))
        self.mteb_model_meta = retbench.as_mteb("minilm-l6").mteb_model_meta

    def encode(self, inputs: Any, *, prompt_type: Any, **_: Any) -> np.ndarray:
        role: Any = "query" if prompt_type.value == "query" else "document"
        texts = ([text.strip() for text in batch["text"]] for batch in inputs)
        return np.concatenate([self.encoder.encode(self.encoder.tokenize(batch, role)) for batch in texts])

    def similarity(self, a: Any, b: Any) -> Any:
        import torch

        return torch.as_tensor(np.asarray(a)) @ torch.as_tensor(np.asarray(b)).T

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        return (np.asarray(a) * np.asarray(b)).sum(1)


@pytest.mark.anchor
def test_minilm_scores_are_the_same_with_mteb_search_and_our_search(tmp_path: Path) -> None:
    folder = find_collection("cranfield")
    (cell,) = retbench.evaluate(["minilm-l6"], tasks=[folder], out=tmp_path / "results", sample=25)
    assert cell.error is None
    card = small_collection.build_card(Path(folder), name="cranfield")
    theirs = mteb_task.compute_scores(Encoder(card), mteb_task.build_task(card, sample=25), tmp_path / "mteb")
    assert_scores_agree(cell.scores, theirs)
