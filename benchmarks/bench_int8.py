"""`--set dtype=int8` against other dtypes: what vectors and scores lose, and the speed on this kind of CPU.

    python -m benchmarks.bench_int8 --model minilm-l6 --task scifact --sample 50

All dtypes embed the same sample of queries and documents in turn, in one process, `rounds` times; CPU seconds are the
median. Lesser kinds of CPU are emulated with ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS and ATEN_CPU_CAPABILITY in
the environment; each result holds these settings. Results are added to benchmarks/results/int8.json.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from retbench.cards import catalog
from retbench.cards.engine import parse_engine
from retbench.cards.method import Role
from retbench.cards.model import EncoderDtype
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import fetch_collection, open_collection
from retbench.corpora.texts import join_fields
from retbench.encoders.batch_plan import BatchPlan
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from retbench.records.machine import describe_machine
from retbench.retrievers.exact_search import search_exactly
from retbench.scoring.metrics import compute_mean_scores, score_run
from retbench.store.shard_store import VectorBlock

OUT = Path(__file__).parent / "results" / "int8.json"
MAX_BATCH_TOKENS = 4096
CPU_LIMITS = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS")


class Embedded(NamedTuple):
    """The vectors of queries and documents, and the CPU seconds of the documents."""

    queries: np.ndarray
    documents: np.ndarray
    seconds: float


def load_encoders(model_name: str, card: TaskCard, dtypes: list[EncoderDtype]) -> dict[str, DenseEncoder]:
    """The model in each dtype, with its default method."""
    encoders = {}
    for dtype in dtypes:
        model = ResolvedModel.resolve(catalog.find_model_card(model_name), None, print, parse_engine("transformers"))
        (method,) = model.resolve_methods([])
        encoders[str(dtype)] = model.load_dense_encoder(model.build_encoder_spec(method, card, Overrides(dtype=dtype)))
    return encoders


def embed(encoder: DenseEncoder, sample: Collection, card: TaskCard, role: Role) -> tuple[np.ndarray, float]:
    """The vectors of one side in batches of similar length, and the CPU seconds."""
    texts, fields = (sample.corpus, card.fields) if role == "document" else (sample.queries, ("text",))
    tokens = encoder.tokenize((join_fields(row, fields) for row in texts), role)
    plan = BatchPlan.build(tokens.lengths, MAX_BATCH_TOKENS, len(tokens))
    vectors, started = np.empty((len(tokens), encoder.dimension), dtype=np.float32), time.process_time()
    for shard in range(plan.shards):
        for rows in plan.iterate_batches(shard):
            vectors[rows] = encoder.encode(tokens.select(rows))
    return vectors, time.process_time() - started


def embed_sample(encoder: DenseEncoder, sample: Collection, card: TaskCard) -> Embedded:
    """Queries first, as a warm-up."""
    queries, _ = embed(encoder, sample, card, "query")
    return Embedded(queries, *embed(encoder, sample, card, "document"))


def score(found: Embedded, sample: Collection, card: TaskCard) -> float:
    """The task's metric by exact search."""
    block = VectorBlock(np.arange(len(found.documents)), found.documents)
    ranking = search_exactly(found.queries, [block], min(card.depth, len(found.documents)))
    ranked = ranking.filter_and_cut(sample, card.same_id == "drop", card.depth).to_document_ids(sample)
    return float(compute_mean_scores(score_run(ranked, sample.judgments, card.depth, card.relevant_from))[card.metric])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Embed the sample in each dtype in turn; compare vectors and scores with the first dtype."""
    card = catalog.find_task_card(options.task)
    fetch_collection(card, print)
    sample = open_collection(card, options.sample)
    encoders = load_encoders(options.model, card, options.dtypes)
    rounds = [
        {dtype: embed_sample(encoder, sample, card) for dtype, encoder in encoders.items()}
        for _ in range(options.rounds)
    ]
    rows, exact = {}, rounds[0][options.dtypes[0]]
    for dtype, found in rounds[0].items():
        cosines = np.concatenate([(mine * other).sum(axis=1) for mine, other in zip(found[:2], exact[:2], strict=True)])
        rows[dtype] = {
            "cpu_seconds": round(statistics.median(one[dtype].seconds for one in rounds), 2),
            "cosine_min": round(float(cosines.min()), 5),
            "cosine_mean": round(float(cosines.mean()), 5),
            card.metric: round(score(found, sample, card), 5),
        }
    command = f"python -m benchmarks.bench_int8 --model {options.model} --task {Path(options.task).name}"
    command += f" --sample {options.sample} --rounds {options.rounds} --dtypes {' '.join(options.dtypes)}"
    return {
        "command": command,
        "cpu": describe_machine()["cpu"],
        "limits": {name: os.environ[name] for name in CPU_LIMITS if name in os.environ},
        "documents": len(sample.corpus),
        "queries": len(sample.queries),
        "dtypes": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--sample", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=get_args(EncoderDtype), default=["float32", "int8"])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = measure(options)
    stored = json.loads(options.out.read_text()) if options.out.exists() else []
    options.out.write_text(json.dumps([*stored, found], indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
