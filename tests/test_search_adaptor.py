"""Search-Adaptor: losses equal plain sums, an untrained adaptor changes nothing, cached vectors are reused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, AutoTokenizer

from retbench.cards import catalog
from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.encoders.adaptor import Adaptor
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.engines import device, memory
from retbench.pipelines.finetuning import train_adaptor as train_adaptor_module
from retbench.pipelines.runs import saved_run
from retbench.training.search_adaptor import (
    AdaptorNet,
    AdaptorTrainingData,
    TrainedAdaptor,
    TripleVectors,
    compute_losses,
    search_loss_weights,
    train_with_loss_weights,
)
from tests import small_collection
from tests.test_run import run_cells, run_command

WIDTH = 8

pytestmark = pytest.mark.usefixtures("fresh_catalog")


def draw_vectors(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


@pytest.mark.parametrize("published", [False, True])
def test_losses_equal_plain_sums(published: bool) -> None:
    torch.manual_seed(0)
    net, guess = AdaptorNet(WIDTH, zero=False), AdaptorNet(WIDTH, zero=False)
    queries, documents, negatives = (
        draw_vectors(3, WIDTH),
        draw_vectors(3, WIDTH, seed=1),
        draw_vectors(3, 2, WIDTH, seed=2),
    )
    grades, gaps = np.array([2.0, 1.0, 1.0]), np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    vectors = TripleVectors(*map(torch.from_numpy, (queries, documents, negatives)))
    actual = compute_losses(net, guess, vectors,
                   torch.from_numpy(grades).float(), torch.from_numpy(gaps).float(), published)  # fmt: skip

    def moved(part: AdaptorNet, vector: np.ndarray) -> np.ndarray:
        t = part.copy_tensors()
        hidden = np.maximum(t["first.weight"] @ vector + t["first.bias"], 0)
        return np.asarray(t["last.weight"] @ hidden + t["last.bias"])

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    ranking, moved_queries, moved_documents, prediction = [], [], [], 0.0
    for i in range(3):
        q, d = queries[i] + moved(net, queries[i]), documents[i] + moved(net, documents[i])
        moved_queries.append(np.abs(q - queries[i]).sum())
        moved_documents.append(np.abs(d - documents[i]).sum())
        prediction += grades[i] * np.abs(q - moved(guess, d)).sum() / grades.sum()
        for k in range(2):
            n = negatives[i, k] + moved(net, negatives[i, k])
            moved_documents.append(np.abs(n - negatives[i, k]).sum())
            ranking.append(gaps[i, k] * np.log1p(np.exp(cosine(q, n) - cosine(q, d))))
    averaged = [np.mean(ranking), np.mean([*moved_queries, *moved_documents]), prediction]
    paper = [np.sum(ranking), np.mean(moved_queries) + np.mean(moved_documents), prediction]
    assert [value.item() for value in actual] == pytest.approx(paper if published else averaged, rel=1e-5)


def test_an_untrained_adaptor_changes_nothing() -> None:
    vectors = draw_vectors(5, WIDTH)
    assert np.allclose(Adaptor(AdaptorNet(WIDTH, zero=True).copy_tensors())(vectors), vectors, atol=1e-7)


def build_rotated_data() -> tuple[AdaptorTrainingData, np.ndarray]:
    """Build queries that are far from their documents by a fixed map, which a small net can learn."""
    documents = draw_vectors(60, WIDTH)
    queries = documents[:40] * np.array([-1, -1, -1, -1, 1, 1, 1, 1], dtype=np.float32)
    pairs = np.array([(row, row, 1) for row in range(30)])
    return AdaptorTrainingData(queries, documents, pairs, [{row: 1} for row in range(40)]), queries[30:]


def test_a_rotation_is_learned_deterministically() -> None:
    training, validation = build_rotated_data()

    def score(tensors: dict[str, np.ndarray]) -> float:
        change = Adaptor(tensors)
        best = (change(validation) @ change(training.documents).T).argmax(1)
        return float(np.mean(best == np.arange(30, 40)))

    recipe = AdaptorRecipe(learning_rate=1e-2, max_steps=300, patience=300, alpha=(0.0,), beta=(0.0, 0.01))
    adaptors: list[TrainedAdaptor] = []
    best = search_loss_weights(training, recipe, score, adaptors.append)
    assert [(one.alpha, one.beta) for one in adaptors] == [(0.0, 0.0), (0.0, 0.01)]
    assert best.score == max(one.score for one in adaptors) > score(AdaptorNet(WIDTH, zero=True).copy_tensors()) + 0.2
    repeated = search_loss_weights(training, recipe, score, adaptors.append)
    assert all(np.array_equal(best.tensors[name], repeated.tensors[name]) for name in best.tensors)


def test_one_layer_is_a_linear_map_that_starts_at_zero() -> None:
    training, validation = build_rotated_data()
    tensors = AdaptorNet(WIDTH, True, 1).copy_tensors()
    assert set(tensors) == {"first.weight", "first.bias"}
    assert np.allclose(Adaptor(tensors)(validation), validation, atol=1e-7)
    layer = draw_vectors(WIDTH, WIDTH), draw_vectors(WIDTH, seed=1)
    adapted = validation + validation @ layer[0].T + layer[1]
    expected = adapted / np.linalg.norm(adapted, axis=1, keepdims=True)
    assert np.allclose(Adaptor({"first.weight": layer[0], "first.bias": layer[1]})(validation), expected, atol=1e-6)
    scores = iter(range(100))  # every validation is better than the previous one, so the last step is kept
    learned = train_with_loss_weights(training, AdaptorRecipe(layers=1, max_steps=50), 0.0, 0.0, lambda _: next(scores))
    assert set(learned.tensors) == {"first.weight", "first.bias"}
    assert learned.step == 50


def test_each_loss_can_be_switched_off() -> None:
    training, _ = build_rotated_data()
    zero = AdaptorNet(WIDTH, zero=True).copy_tensors()

    def after(**change: Any) -> dict[str, np.ndarray]:
        scores = iter(range(100))
        recipe = AdaptorRecipe(max_steps=25, **change)
        return train_with_loss_weights(training, recipe, 0.0, recipe.beta[0], lambda _: next(scores)).tensors

    assert np.array_equal(after(ranking_weight=0.0, beta=(0.0,))["last.weight"], zero["last.weight"])
    assert not np.array_equal(after(beta=(0.0,))["last.weight"], zero["last.weight"])
    assert not np.array_equal(after(ranking_weight=0.0, beta=(0.1,))["last.weight"], zero["last.weight"])


def test_patience_stops_training_without_improvement() -> None:
    training, _ = build_rotated_data()
    looks: list[float] = []
    learned = train_with_loss_weights(
        training, AdaptorRecipe(patience=50), 0.0, 0.0, lambda tensors: looks.append(0.5) or 0.5
    )
    assert (learned.step, len(looks)) == (0, 3)
    assert np.allclose(Adaptor(learned.tensors)(training.queries), training.queries, atol=1e-7)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = small_collection.write_folder(tmp_path / "pantry")
    queries = [
        {"_id": f"t{n}", "text": f"{text[:20]}"} for n, (_, _, text) in enumerate(small_collection.DOCUMENTS[:15])
    ]
    with (folder / "queries.jsonl").open("a") as lines:
        lines.writelines(json.dumps(query) + "\n" for query in queries)
    with (folder / "qrels" / "train.tsv").open("a") as lines:
        lines.writelines(f"t{n}\t{name}\t1\n" for n, (name, _, _) in enumerate(small_collection.DOCUMENTS[:15]))
    return folder


SHORT_TRAINING = ("--set", "max_steps=50", "--set", "alpha=[0.1]", "--set", "beta=[0.01]")


def train_adaptor(model: Path, task: Path, *words: object) -> dict[str, Any]:
    answer = run_command(
        "finetune", task, "--model", model, "--objective", "adaptor", *SHORT_TRAINING, *words, "--json"
    )
    assert answer.exit_code == 0, answer.output
    facts: dict[str, Any] = json.loads(answer.stdout)
    return facts


def test_an_adaptor_is_run_by_name_and_embeds_nothing_again(
    model: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    (parent_cell,) = run_cells("run", "--model", model, "--task", task, "--out", out)
    seen: list[int] = []
    embed = BackboneEncoder.encode
    monkeypatch.setattr(BackboneEncoder, "encode", lambda self, batch: seen.append(len(batch)) or embed(self, batch))
    facts = train_adaptor(model, task, "--name", "moved")
    assert sum(seen) == 17  # the training queries; the corpus was cached
    seen.clear()
    (cell,) = run_cells("run", "--model", "moved", "--task", task, "--out", out)
    assert (cell["model"], cell["seen"], seen) == ("moved", "seen", [])
    assert cell["settings_id"] != parent_cell["settings_id"]
    assert facts["verdict"] in ("it helps", "it does not help")
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    assert record["settings"]["encoder"]["adaptor"] == record["cards"]["model"]["adapted"]["sha256"]
    assert "adaptor" not in json.loads((Path(parent_cell["record"]) / "record.json").read_text())["settings"]["encoder"]
    assert (
        len(run_cells("run", "--model", "moved", "--task", task, "--out", out, "--rerank", "e2rank:documents=2")) == 2
    )


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="elsewhere the mark is the process's since its start")
def test_the_peak_memory_of_a_cell_starts_at_its_training(model: Path, task: Path, tmp_path: Path) -> None:
    memory.reset_peak_memory()
    peak_before, array = memory.get_peak_memory_mb(), np.ones(1 << 27)  # a gigabyte
    del array
    train_adaptor(model, task, "--name", "moved")
    (cell,) = run_cells("run", "--model", "moved", "--task", task, "--out", tmp_path / "results")
    assert json.loads((Path(cell["record"]) / "record.json").read_text())["cost"]["peak_memory_mb"] < peak_before + 500


def test_the_ranking_equals_that_of_the_adapted_vectors(model: Path, task: Path, tmp_path: Path) -> None:
    facts = train_adaptor(model, task, "--name", "moved", "--set", "negatives_top_k=5")
    change = Adaptor(load_file(Path(facts["folder"]) / "adaptor.safetensors"))
    line = ("run", "--model", "moved", "--task", task, "--set", "dtype=float32", "--out", tmp_path / "results")
    (cell,) = run_cells(*line)
    run = saved_run.load_run(Path(cell["record"]))
    documents, queries = (
        change(compute_means(model, sample_texts))
        for sample_texts in (texts(), [text for _, text in small_collection.QUERIES[:3]])
    )
    expected = -np.sort(-(queries @ documents.T), axis=1)
    assert np.allclose(np.stack(run.ranking.scores), expected, atol=1e-4)


def texts() -> list[str]:
    return [f"{title} {text}".strip() for _, title, text in small_collection.DOCUMENTS]


def compute_means(folder: Path, sample_texts: list[str]) -> np.ndarray:
    """Compute mean states with transformers alone, one text at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    actual = []
    for text in sample_texts:
        ids = tokenizer(text)["input_ids"] or [tokenizer.eos_token_id]
        with torch.inference_mode():
            state = model(torch.tensor([ids])).last_hidden_state[0].float().mean(0)
        actual.append(torch.nn.functional.normalize(state, dim=0).numpy())
    return np.stack(actual)


def test_validation_does_not_rank_a_document_with_the_id_of_the_query(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ArguAna every query is a document too. It was ranked first, so validation had another score than a run."""
    names, sentences = zip(*((name, text) for name, _, text in small_collection.DOCUMENTS[:15]), strict=True)
    folder, card_folder = tmp_path / "twins", tmp_path / "cards" / "tasks" / "mine"
    (folder / "qrels").mkdir(parents=True)
    card_folder.mkdir(parents=True)
    rows = "".join(json.dumps({"_id": n, "text": text}) + "\n" for n, text in zip(names, sentences, strict=True))
    for file in ("corpus", "queries"):
        (folder / f"{file}.jsonl").write_text(rows)
    judged = "".join(f"{name}\t{names[n - 1]}\t1\n" for n, name in enumerate(names))
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    card = f'name = "twins"\nsame_id = "drop"\n[source]\nkind = "folder"\npath = "{folder}"\n'
    (card_folder / "twins.toml").write_text(card)
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path / "cards"))
    catalog.load_task_cards.cache_clear()
    monkeypatch.setattr(device, "has_fast_bf16", lambda: False)  # in bfloat16 two near documents change places
    changes = {"validation_ratio": "0.9", "negatives_top_k": "2", "learning_rate": "1e-9", "max_steps": "25"}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    facts = train_adaptor(model, Path("twins"), "--name", "still", *words)

    vectors = compute_means(model, list(sentences))
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    ranks = np.array([(similarity[n] > similarity[n, n - 1]).sum() for n in range(len(names))])
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0.0)
    _, validation = train_adaptor_module._split_rows(len(names), AdaptorRecipe(validation_ratio=0.9))
    assert facts["before"] == pytest.approx(gains[validation].mean(), abs=0.01)


def test_query_and_length_limits_apply_to_later_runs(model: Path, task: Path, tmp_path: Path) -> None:
    facts = train_adaptor(model, task, "--name", "short", "--set", "max_queries=10", "--set", "max_length=4")
    assert facts["queries"] == 2  # a fifth of the 10 queries
    (cell,) = run_cells("run", "--model", "short", "--task", task, "--out", tmp_path / "results")
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    assert record["settings"]["encoder"]["document_limit"] == 4


def test_an_adaptor_without_improvement_is_reported(model: Path, task: Path) -> None:
    facts = train_adaptor(model, task, "--name", "still", "--set", "learning_rate=1e-9")
    assert (facts["verdict"], facts["helps"], facts["p"]) == ("it does not help", False, 1.0)
    assert facts["before"] == facts["after"]
    assert "it does not help" in run_command("show", "model", "still").output


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (("--set", "negatives_per_pair=0"), "negatives_per_pair = 0 is below 1", 2),
        (("--set", "alpha=[]"), "empty list", 2),
        (("--set", "max_queries=1"), "max_queries = 1 is below 2", 2),
        (("--set", "beta=[-1]"), "weight below 0", 2),
        (("--set", "layers=3"), "layers", 2),
        (("--set", "speed=1"), "there is no option 'speed'", 2),
        (("--dry-run",), "does not support --dry-run", 2),
        (("--set", "report_to=nonsense"), "does not support --set report_to", 2),
        (("--recipe", "nowhere.toml"), "no adaptor recipe", 2),
        (("--set", "split=test"), "evaluated on its split", 2),
        (("--model", "bm25"), "bm25 has no vectors", 2),
    ],
)
def test_invalid_requests_are_refused(model: Path, task: Path, words: tuple[str, ...], message: str, code: int) -> None:
    answer = run_command("finetune", task, "--model", model, "--objective", "adaptor", *words)
    assert (answer.exit_code, message in answer.output) == (code, True), answer.output


def test_an_adaptor_for_other_weights_is_refused(model: Path, task: Path, tmp_path: Path) -> None:
    facts = train_adaptor(model, task, "--name", "moved")
    line = ("run", "--model", "moved", "--task", task, "--out", tmp_path / "results")
    answer = run_command(*line, "--method", "last")
    assert "was trained for method mean" in re.sub(r"\s+", " ", answer.output)
    file = Path(facts["folder"]) / "adaptor.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\1\0")
    answer = run_command(*line)
    assert (answer.exit_code, "differs from the model card" in answer.output) == (4, True)
    again = ("finetune", task, "--model", model, "--objective", "adaptor", *SHORT_TRAINING, "--name", "moved")
    repeated, resumed = run_command(*again), run_command(*again, "--resume")
    assert (repeated.exit_code, "is not empty" in repeated.output) == (2, True)
    other = run_command(*again, "--resume", "--set", "layers=1")
    assert (other.exit_code, "layers was 2, now 1" in other.output) == (4, True)
    assert (resumed.exit_code, "differs from the model card" in resumed.output) == (4, True)
