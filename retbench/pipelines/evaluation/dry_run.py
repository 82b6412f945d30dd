"""The dry run: every cell with its exact first texts, its number of tokens and an estimate of its time."""

from collections.abc import Iterator
from typing import Any

from retbench.corpora.texts import read_inputs
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.text_encoder import estimate_stored_bytes
from retbench.pipelines.evaluation.evaluate import list_jobs
from retbench.pipelines.evaluation.job import EvaluationJob
from retbench.pipelines.evaluation.measure_speed import measure_speed, select_texts
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.evaluation.reranker_previews import preview_rerankers
from retbench.pipelines.models.prompt_examples import build_prompt_examples
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.reranking.chain import find_unread_settings, parse_rerankers
from retbench.system.durations import format_duration

MAX_COUNTED_TEXTS = 2000  # texts to tokenize; for a larger corpus the number of tokens is extrapolated
MEASURED_SECONDS = 4.0


def dry_run(request: EvaluationRequest) -> Iterator[dict[str, Any]]:
    """Yield what `run` would do, cell by cell."""
    speeds: dict[tuple[str, str], float] = {}
    rerankers, resolver = parse_rerankers(request.rerank), ModelResolver(request.log_status)
    for sentence in find_unread_settings(rerankers, request.overrides):
        request.log_status(sentence)
    for job in list_jobs(request):
        facts: dict[str, Any] = {"model": job.model.card.name, "method": job.method.name, "task": job.task.name}
        facts |= {"settings_id": job.settings_id, "cached": job.find_record() is not None}
        facts |= {"documents": len(job.collection.corpus), "queries": len(job.collection.queries)}
        facts["first"] = build_prompt_examples(job.model, job.encoder_spec, job.task, job.collection)
        if job.encoder_spec and job.model.local_weights:  # nothing is sent to a server before the run
            facts |= _estimate_cost(job, job.encoder_spec, speeds)
        if rerankers:
            facts["rerank"] = preview_rerankers(job, rerankers, resolver)
        yield facts


def _estimate_cost(job: EvaluationJob, spec: EncoderSpec, speeds: dict[tuple[str, str], float]) -> dict[str, Any]:
    corpus = job.collection.corpus
    texts = select_texts(corpus, MAX_COUNTED_TEXTS)
    inputs = read_inputs(texts, job.task.fields)
    tokenized = job.model.build_prompt_tokenizer(spec).tokenize(inputs, "document", spec.document_limit)
    tokens = int(len(tokenized.flat) * len(corpus) / len(texts))
    key = (job.model.card.name, spec.dtype)
    if key not in speeds:
        speeds[key] = measure_speed(job.model.load_encoder(spec), tokenized, MEASURED_SECONDS)
    dimension, texts_stored = job.model.load_encoder(spec).dimension, len(corpus) + len(job.collection.queries)
    return {
        "tokens": tokens,
        "tokens_exact": len(texts) == len(corpus),
        "tokens_per_second": speeds[key],
        "seconds": tokens / speeds[key],
        "disk_bytes": estimate_stored_bytes(
            spec.method.vector_kind, dimension, spec.vector_dtype, texts_stored, tokens
        ),
    }


def format_plan(cells: list[dict[str, Any]]) -> str:
    """Format the plan as text."""
    return "\n\n".join(map(_format_cell, cells))


def _format_cell(facts: dict[str, Any]) -> str:
    lines = [f"{facts['model']} · {facts['method']} · {facts['task']}  (settings {facts['settings_id']})"]
    lines.append(
        f"  {facts['documents']:,} documents, {facts['queries']:,} queries"
        + (", found on disk" if facts["cached"] else "")
    )
    if "tokens" in facts:
        about = "" if facts["tokens_exact"] else "about "
        speed = f"{facts['tokens_per_second']:,.0f} tokens/s measured here"
        duration = format_duration(max(1, facts["seconds"]))
        lines.append(f"  {about}{facts['tokens']:,} document tokens, {speed}: about {duration}")
    for role, first in facts["first"].items():
        lines.append(f"  first {role}: {first.get('read', first['text'])!r}")
        if "ids" in first:
            lines.append(f"    {len(first['ids'])} ids{', truncated' if first['truncated'] else ''}: {first['ids']}")
    for preview in facts.get("rerank", ()):
        lines.append(f"  {preview['rerank']}, on {preview['candidates']}: {preview.get('skipped', '')}")
        lines += [f"    {name}: {preview[name]!r}" for name in ("prompt", "template") if name in preview]
        lines += [f"    {len(preview['ids'])} ids: {preview['ids']}"] if "ids" in preview else []
    return "\n".join(lines)
