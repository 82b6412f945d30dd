"""The dry run: every cell with its exact first texts, its number of tokens and, after a short measurement, its time."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from retbench.corpora.texts import join_fields
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.pipelines.evaluation.evaluate import benches
from retbench.pipelines.evaluation.job import EvaluationJob
from retbench.pipelines.evaluation.request import Request
from retbench.pipelines.evaluation.reranker_previews import previews
from retbench.pipelines.models.prompt_examples import example
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.reranking.chain import parse_rerankers
from retbench.store.vector_formats import compute_row_bytes

COUNTED = 2000  # texts tokenised to know the number of tokens; beyond that it is extrapolated
MEASURED_SECONDS = 4.0


def dry_run(request: Request) -> Iterator[dict[str, Any]]:
    """What `run` would do, cell by cell."""
    speeds: dict[tuple[str, str], float] = {}
    rerankers, crew = parse_rerankers(request.rerank), ModelResolver(request.say)
    for bench in benches(request):
        facts: dict[str, Any] = {
            "model": bench.candidate.card.name,
            "method": bench.method.name,
            "task": bench.card.name,
        }
        facts |= {"settings_id": bench.settings_id, "cached": bench.found() is not None}
        facts |= {"documents": len(bench.collection.corpus), "queries": len(bench.collection.queries)}
        facts["first"] = example(bench.candidate, bench.spec, bench.card, bench.collection)
        if bench.spec and bench.candidate.local:  # a server is not asked before the run
            facts |= _estimate(bench, bench.spec, speeds)
        if rerankers:
            facts["rerank"] = previews(bench, rerankers, crew)
        yield facts


def _estimate(bench: EvaluationJob, spec: EncoderSpec, speeds: dict[tuple[str, str], float]) -> dict[str, Any]:
    corpus = bench.collection.corpus
    rows = np.linspace(0, len(corpus) - 1, min(len(corpus), COUNTED)).astype(int)
    texts = [join_fields(corpus[int(row)], bench.card.fields) for row in rows]
    counted = bench.candidate.wording(spec).tokenize(texts, "document", spec.document_limit)
    tokens = int(len(counted.flat) * len(corpus) / len(rows))
    name = (bench.candidate.card.name, spec.dtype)
    if name not in speeds:
        speeds[name] = _speed(bench, spec, texts)
    exact = len(rows) == len(corpus)
    return {
        "tokens": tokens,
        "tokens_exact": exact,
        "tokens_per_second": speeds[name],
        "seconds": tokens / speeds[name],
        "disk_bytes": compute_row_bytes(bench.candidate.encoder(spec).dimension, spec.vector_dtype)
        * (len(corpus) + len(bench.collection.queries)),
    }


def _speed(bench: EvaluationJob, spec: EncoderSpec, texts: list[str]) -> float:
    """Tokens a second over a few seconds of real batches; the first one only warms up."""
    encoder = bench.candidate.encoder(spec)
    tokens = encoder.tokenize(texts[:256], "document")
    groups = np.array_split(np.argsort(tokens.lengths, kind="stable"), max(1, len(tokens.lengths) // 8))
    encoder.encode(tokens.select(groups[0]))
    done, started = 0, time.perf_counter()
    for group in sorted(groups, key=lambda group: int(group.sum()) % 97):  # short and long ones mixed
        encoder.encode(tokens.select(group))
        done += int(tokens.lengths[group].sum())
        if time.perf_counter() - started > MEASURED_SECONDS:
            break
    return done / (time.perf_counter() - started)


def text(cells: list[dict[str, Any]]) -> str:
    """The plan for a reader."""
    return "\n\n".join(map(_cell, cells))


def _cell(facts: dict[str, Any]) -> str:
    lines = [f"{facts['model']} · {facts['method']} · {facts['task']}  (settings {facts['settings_id']})"]
    lines.append(
        f"  {facts['documents']:,} documents, {facts['queries']:,} queries"
        + (", found on disk" if facts["cached"] else "")
    )
    if "tokens" in facts:
        about = "" if facts["tokens_exact"] else "about "
        speed = f"{facts['tokens_per_second']:,.0f} tokens/s measured here"
        lines.append(
            f"  {about}{facts['tokens']:,} document tokens, {speed}: about {facts['seconds'] / 60:.1f} minutes"
        )
    for role, first in facts["first"].items():
        lines.append(f"  first {role}: {first.get('read', first['text'])!r}")
        if "ids" in first:
            lines.append(f"    {len(first['ids'])} ids{', truncated' if first['truncated'] else ''}: {first['ids']}")
    for one in facts.get("rerank", ()):
        lines.append(f"  {one['rerank']}, on {one['candidates']}: {one.get('skipped', '')}")
        lines += [f"    {name}: {one[name]!r}" for name in ("prompt", "template") if name in one]
        lines += [f"    {len(one['ids'])} ids: {one['ids']}"] if "ids" in one else []
    return "\n".join(lines)
