"""The referee: the same weights and the same folder through retbench and through the tool that people trust.

Embedders go through mteb and sentence-transformers, BM25 through Anserini itself. A part of each collection belongs to
`make anchors`, whole collections to `make referee`.
"""

import gzip
import html
import io
import json
import re
import subprocess
import tarfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retbench
from retbench.cards import catalog
from retbench.corpora.open_collection import open_collection
from retbench.engines import weights
from retbench.store.digest import compute_digest
from retbench.system.checksums import compute_sha256
from retbench.system.durable_files import write_file_atomically
from retbench.system.user_config import get_cache_folder
from tests import late_interaction_folders as folders
from tests import mteb_task, referee_models, small_collection, tiny_models
from tests.test_anchors import SHARED, find_collection, run_cell

pytestmark = pytest.mark.usefixtures("real_model_environment")

FOUR_DIGITS = 5e-5
TEXTS_PER_PART = 512
PART = {"scifact": (20, 20), "cranfield": (6, 40), "cosqa": (40, 40)}  # queries, and documents besides the relevant
# `make anchors` takes every embedder and every collection, each pair only `make referee`.
# Scifact's abstracts are longer than the embedder with prompts reads; cranfield has grades.
PART_BY_EMBEDDER = {
    "minilm": "cranfield", "prompted": "scifact", "gte-small": "cosqa", "all-mpnet-base-v2": "cosqa",
}  # fmt: skip
CASES = [
    *(pytest.param(name, part, PART[part], id=f"{name}-{part}-part", marks=pytest.mark.anchor)
      for name, part in PART_BY_EMBEDDER.items()),
    *(pytest.param(name, whole, None, id=f"{name}-{whole}-whole", marks=pytest.mark.referee)
      for name in PART_BY_EMBEDDER for whole in PART),
]  # fmt: skip
FETCHED: dict[str, Callable[[Path], Path]] = {
    "all-mpnet-base-v2": referee_models.fetch_mpnet,
    "gte-small": referee_models.fetch_gte_small,
}
PUBLISHED = {"all-mpnet-base-v2": {"ndcg_at_10": 0.6557, "mrr_at_10": 0.61774}}  # embeddings-benchmark/results, SciFact


@pytest.fixture(autouse=True)
def _libraries_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def referee_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `referee` of the user's cache."""
    monkeypatch.delenv("RETBENCH_CACHE")
    users = get_cache_folder() / "referee"
    monkeypatch.setenv("RETBENCH_CACHE", str(own_cache))
    return users


def find_model(name: str, cache: Path, tmp_path: Path) -> Path:
    """The sentence-transformers folder of an embedder."""
    if name in FETCHED:
        return FETCHED[name](cache)
    minilm = weights.obtain_weights(catalog.find_model_card("minilm-l6")).folder
    return minilm if name == "minilm" else referee_models.build_prompted(minilm, tmp_path / "prompted")


def write_part(source: str, queries: int, others: int, folder: Path) -> Path:
    """The first queries of a collection, their relevant documents, and other documents spread over the corpus."""
    collection = open_collection(small_collection.build_card(Path(source)))
    chosen = [row for row in collection.queries if row.id in collection.judgments][:queries]
    judged = {name for row in chosen for name in collection.judgments[row.id]}
    step = max(1, len(collection.corpus) // others)
    documents = [row for number, row in enumerate(collection.corpus) if row.id in judged or number % step == 0]
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": row.id, "title": row.title, "text": row.text} for row in documents]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": row.id, "text": row.text} for row in chosen]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    lines = [f"{r.id}\t{name}\t{grade}\n" for r in chosen for name, grade in collection.judgments[r.id].items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def load_embedder(model: Path, kept: Path | None) -> Any:
    """Load a folder by sentence-transformers. With `kept`, its vectors are stored there part by part.

    A whole collection takes up to an hour, so that an interrupted `make referee` goes on. Ours are always computed.
    """
    from sentence_transformers import SentenceTransformer

    loaded: Any = SentenceTransformer(str(model), device="cpu")
    if kept is None:
        return loaded
    versions = {name: version(name) for name in ("sentence-transformers", "transformers", "torch")}
    files = {str(file.relative_to(model)): compute_sha256(file) for file in sorted(model.rglob("*")) if file.is_file()}
    folder, encode = kept / compute_digest({"versions": versions, "files": files}), loaded.encode
    folder.mkdir(parents=True, exist_ok=True)

    def encode_in_parts(inputs: list[str], **options: Any) -> np.ndarray:
        parts = []
        for start in range(0, len(inputs), TEXTS_PER_PART):
            texts = inputs[start : start + TEXTS_PER_PART]
            file = folder / f"{compute_digest([texts, {name: str(value) for name, value in options.items()}])}.npy"
            if not file.is_file():
                content = io.BytesIO()
                np.save(content, np.asarray(encode(texts, **options)))
                write_file_atomically(file, content.getvalue())
            parts.append(np.load(file))
        return np.concatenate(parts)

    loaded.encode = encode_in_parts
    return loaded


@pytest.mark.parametrize(("name", "collection", "size"), CASES)
def test_an_embedder_scores_as_in_mteb(
    name: str, collection: str, size: tuple[int, int] | None, referee_cache: Path, tmp_path: Path
) -> None:
    """The folder alone says prompts, pooling, dense layers and length, in both tools."""
    model, folder = find_model(name, referee_cache, tmp_path), Path(find_collection(collection))
    if size:
        folder = write_part(str(folder), *size, tmp_path / collection)
    task = mteb_task.build_task(small_collection.build_card(folder, name=collection))
    embedder = load_embedder(model, None if size else referee_cache / "vectors")
    theirs = mteb_task.compute_scores(embedder, task, tmp_path / "mteb")
    (cell,) = retbench.evaluate([str(model)], tasks=[str(folder)], out=tmp_path / "results")
    assert cell.error is None
    shared = cell.scores.keys() & theirs.keys()
    assert {"ndcg_at_10", "mrr_at_10", "recall_at_100", "map_at_100"} <= shared
    assert {key: cell.scores[key] for key in shared} == pytest.approx(
        {key: theirs[key] for key in shared}, abs=FOUR_DIGITS
    )
    if collection == "scifact" and not size:
        for metric, score in PUBLISHED.get(name, {}).items():
            assert cell.scores[metric] == pytest.approx(score, abs=0.0005)


@pytest.mark.anchor
@pytest.mark.parametrize("kind", ["multi-vector", "sparse", "static queries"])
def test_late_interaction_and_sparse_models_score_as_in_their_library(kind: str, tmp_path: Path) -> None:
    """sentence-transformers' own evaluators, on folders with random weights that it wrote."""
    from sentence_transformers import MultiVectorEncoder, SparseEncoder
    from sentence_transformers.multi_vector_encoder.evaluation import MultiVectorInformationRetrievalEvaluator
    from sentence_transformers.sparse_encoder.evaluation import SparseInformationRetrievalEvaluator

    bare = folders.build_bare(tmp_path / "bare")
    build = {"multi-vector": folders.build_pylate, "sparse": folders.build_splade}.get(
        kind, folders.build_static_splade
    )
    model, folder = (
        build(bare, tmp_path / "model"),
        write_part(find_collection("scifact"), 20, 60, tmp_path / "scifact"),
    )
    (cell,) = retbench.evaluate([str(model)], tasks=[str(folder)], out=tmp_path / "results")
    assert cell.error is None
    collection = open_collection(small_collection.build_card(folder))
    texts = {row.id: f"{row.title} {row.text}".strip() for row in collection.corpus}
    queries = {row.id: row.text for row in collection.queries}
    relevant = {
        query: {name for name, grade in found.items() if grade} for query, found in collection.judgments.items()
    }
    options: dict[str, Any] = {"show_progress_bar": False, "write_csv": False, "name": "part", "ndcg_at_k": [10]}
    library, evaluator = (
        (MultiVectorEncoder, MultiVectorInformationRetrievalEvaluator)
        if kind == "multi-vector"
        else (SparseEncoder, SparseInformationRetrievalEvaluator)
    )
    theirs = evaluator(queries, texts, relevant, **options)(library(str(model), device="cpu"))
    for metric in ("ndcg", "mrr"):
        (score,) = (value for name, value in theirs.items() if name.lower().endswith(f"{metric}@10"))
        assert cell.scores[f"{metric}_at_10"] == pytest.approx(score, abs=FOUR_DIGITS)


@pytest.mark.anchor
@pytest.mark.parametrize("kind", ["classifier", "yes or no"])
def test_cross_encoders_order_as_in_their_library(kind: str, tmp_path: Path) -> None:
    """CrossEncoder.predict on our candidates, on folders with random weights; equal scores may change places."""
    import torch
    from sentence_transformers import CrossEncoder

    folder = write_part(find_collection("scifact"), 10, 60, tmp_path / "scifact")
    model = (
        tiny_models.build_cross_encoder(tmp_path / "classifier", model_max_length=120)
        if kind == "classifier"
        else tiny_models.publish_yes_no_model(tiny_models.build_yes_no_model(tmp_path / "bare"), tmp_path / "yes-no")
    )
    length = 120 if kind == "classifier" else 300
    request = f"cross:model={model},depth=10,max_length={length}"
    _, cell = retbench.evaluate(["bm25"], tasks=[str(folder)], rerank=[request], out=tmp_path / "results")
    assert cell.status == "done", cell.error
    collection = open_collection(small_collection.build_card(folder))
    texts = {row.id: f"{row.title} {row.text}".strip() for row in collection.corpus}
    queries = {row.id: row.text for row in collection.queries}
    library, spreads = CrossEncoder(str(model), device="cpu", max_length=length), []
    for query, ranked in read_run(gzip.decompress((Path(cell.record) / "run.trec.gz").read_bytes()).decode()).items():
        pairs = [(queries[query], texts[name]) for name in ranked[:10]]
        scores = library.predict(pairs, activation_fn=torch.nn.Identity())
        assert all(first >= second - 2e-4 for first, second in pairwise(scores.tolist()))
        spreads.append(scores.max() - scores.min())
    assert min(spreads) > 0.01


@pytest.mark.anchor
def test_bm25_lucene_gets_the_score_that_anserini_publishes(tmp_path: Path) -> None:
    """castorini/anserini, beir-v1.0.0-scifact.flat.yaml."""
    scores = run_cell("bm25-lucene", "scifact", tmp_path).scores
    assert scores["ndcg_at_10"] == pytest.approx(0.6789, abs=FOUR_DIGITS)
    assert scores["recall_at_100"] == pytest.approx(0.9253, abs=FOUR_DIGITS)


@pytest.mark.referee
@pytest.mark.parametrize("collection", ["scifact", "cranfield", "cosqa", "codetrans-java-cs"])
def test_bm25_lucene_ranks_as_anserini_does(collection: str, referee_cache: Path, tmp_path: Path) -> None:
    """Anserini indexes and searches the collection here and now; every query must have the same documents."""
    folder = write_part(find_collection(collection), 10**6, 10**6, tmp_path / collection)
    cell = run_cell_of(folder, tmp_path)
    wanted = search_with_anserini(referee_models.fetch_anserini(referee_cache), folder, tmp_path / "anserini")
    found = read_run(gzip.decompress((Path(cell.record) / "run.trec.gz").read_bytes()).decode())
    assert len(found) > 200
    depth = max(map(len, found.values()))
    assert found == {query: documents[:depth] for query, documents in wanted.items()}


def run_cell_of(folder: Path, out: Path) -> Any:
    (cell,) = retbench.evaluate(["bm25-lucene"], tasks=[str(folder)], out=out / "results")
    assert cell.status == "done", cell.error
    return cell


def search_with_anserini(java: list[str], folder: Path, out: Path) -> dict[str, list[str]]:
    (out / "corpus").mkdir(parents=True)
    (out / "corpus" / "corpus.jsonl").write_bytes((folder / "corpus.jsonl").read_bytes())
    queries = map(json.loads, (folder / "queries.jsonl").read_text().splitlines())
    lines = (f"{query['_id']}\t{' '.join(query['text'].split())}\n" for query in queries)
    (out / "topics.tsv").write_text("".join(lines))
    index = ["-collection", "BeirFlatCollection", "-generator", "DefaultLuceneDocumentGenerator", "-threads", "1"]
    search = ["-topicReader", "TsvString", "-bm25", "-hits", "1000"]
    for command in (
        ["io.anserini.index.IndexCollection", *index, "-input", str(out / "corpus"), "-index", str(out / "index")],
        ["io.anserini.search.SearchCollection", *search, "-index", str(out / "index"),
         "-topics", str(out / "topics.tsv"), "-output", str(out / "run.txt")],
    ):  # fmt: skip
        subprocess.run([*java, *command], check=True, capture_output=True)
    return read_run((out / "run.txt").read_text())


def read_run(text: str) -> dict[str, list[str]]:
    """The documents of a TREC run by query, in the order of its lines."""
    ranking: dict[str, list[str]] = {}
    for line in text.splitlines():
        query, _, document, *_ = line.split()
        ranking.setdefault(query, []).append(document)
    return ranking


@pytest.mark.referee
def test_bm25_lucene_gets_the_score_that_anserini_publishes_on_cacm(tmp_path: Path) -> None:
    """castorini/anserini, cacm.yaml. No package index has the collection: put the three files into a folder `cacm`."""
    source = SHARED / "collections" / "cacm"
    if not source.is_dir():
        pytest.skip(
            f"{source} has no cacm.tar.gz (castorini/anserini), topics.cacm.txt, qrels.cacm.txt (anserini-tools)"
        )
    record = Path(run_cell_of(write_cacm(source, tmp_path / "cacm"), tmp_path).record)
    ranking = read_run(gzip.decompress((record / "run.trec.gz").read_bytes()).decode())
    relevant: dict[str, set[str]] = {}
    for line in (source / "qrels.cacm.txt").read_text().splitlines():
        query, _, document, grade = line.split()
        relevant.setdefault(query, set()).update([document] if int(grade) > 0 else [])
    precision = [len(relevant[query].intersection(ranking[query][:30])) / 30 for query in relevant]
    assert sum(precision) / len(precision) == pytest.approx(0.1942, abs=FOUR_DIGITS)


def write_cacm(source: Path, folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    with tarfile.open(source / "cacm.tar.gz") as archive, (folder / "corpus.jsonl").open("w") as out:
        for member in archive:
            packed = archive.extractfile(member)
            if packed is not None:
                page = io.TextIOWrapper(packed, encoding="utf-8").read()
                row = {"_id": Path(member.name).stem, "title": "", "text": html.unescape(re.sub(r"</?\w+>", " ", page))}
                out.write(json.dumps(row) + "\n")
    topics = re.findall(r"<DOCNO>\s*(\d+)\s*</DOCNO>(.*?)</DOC>", (source / "topics.cacm.txt").read_text(), re.DOTALL)
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": q, "text": text}) + "\n" for q, text in topics))
    names = {json.loads(line)["_id"] for line in (folder / "corpus.jsonl").read_text().splitlines()}
    lines = [line.split() for line in (source / "qrels.cacm.txt").read_text().splitlines()]
    rows = "".join(f"{q}\t{name}\t{grade}\n" for q, _, name, grade in lines if name in names)  # some ids lack a zero
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder
