"""Exact search on several GPUs: each GPU searches a part of the documents, and the best of all parts are merged.

The score of a pair has the same bits on every GPU (`exact_search.py`), so the ranking does not depend on their number.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import torch

from retbench.retrievers.exact_search import ExactSearch, search_exactly
from retbench.retrievers.ranking import Ranking, merge_rankings
from retbench.store.shard_store import VectorBlock

WAITING_BLOCKS = 2  # for each GPU; more would fill the memory where blocks are read faster than they are searched


def count_search_gpus(device: str, workers: int) -> int:
    """How many GPUs of this machine search: those that embed too, or one."""
    return max(1, min(workers, torch.cuda.device_count())) if device == "cuda" else 1


def search_on_gpus(queries: np.ndarray, blocks: Iterable[VectorBlock], k: int, gpus: int) -> Ranking:
    """Return the k best documents of every query over all blocks, which the GPUs take in turn.

    A search belongs to the current GPU of its thread, so each GPU has a thread.
    """
    if gpus == 1:
        return search_exactly(queries, blocks, k)
    with ExitStack() as stack:
        threads = [
            stack.enter_context(ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(gpu,)))
            for gpu in range(gpus)
        ]
        searches = [thread.submit(ExactSearch, queries, k).result() for thread in threads]
        waiting = deque[Future[None]]()
        for number, block in enumerate(blocks):
            thread, search = threads[number % gpus], searches[number % gpus]
            waiting.append(thread.submit(search.add_block, block))
            if len(waiting) > gpus * WAITING_BLOCKS:
                waiting.popleft().result()
        for added in waiting:
            added.result()
        finished = [thread.submit(search.finish) for thread, search in zip(threads, searches, strict=True)]
        return merge_rankings([one.result() for one in finished], k)
