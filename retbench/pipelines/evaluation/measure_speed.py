"""Measure the speed of an encoder in a few seconds, for estimates before a run."""

import random
import time

import numpy as np

from retbench.corpora.texts import Texts
from retbench.encoders.batch_plan import BatchPlan
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.text_encoder import TextEncoder
from retbench.engines import memory
from retbench.engines.device import get_device
from retbench.retrievers.embedding_retriever import compute_token_budget

CPU_BATCH_TOKENS = 1024  # a CPU is as fast as with the larger batches of a run, and several fit the measured time


def select_texts(texts: Texts, most: int) -> Texts:
    """Return up to `most` rows, evenly spaced."""
    return texts.take(np.linspace(0, len(texts) - 1, min(len(texts), most)).astype(int))


def measure_speed(encoder: TextEncoder, tokens: TokenizedTexts, seconds: float) -> float:
    """Return tokens per second over a few seconds of batches in random order; the first batch is a warm-up."""
    device = get_device().type
    budget = CPU_BATCH_TOKENS if device == "cpu" else compute_token_budget(device, memory.get_thread_count())
    batches = list(BatchPlan.build(tokens.lengths, budget, len(tokens.lengths)).iterate_batches(0))
    random.Random(0).shuffle(batches)  # noqa: S311  # an order, not a secret: long and short texts are mixed
    encoder.encode(tokens.select(batches[0]))
    done, started = 0, time.perf_counter()
    for batch in batches[1:] or batches:
        encoder.encode(tokens.select(batch))
        done += int(tokens.lengths[batch].sum())
        if time.perf_counter() - started > seconds:
            break
    return done / (time.perf_counter() - started)
