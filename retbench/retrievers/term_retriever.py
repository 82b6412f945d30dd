"""Retrieval by weighted terms: learned sparse vectors (SPLADE), and PromptReps' terms with or without its vectors.

An inverted index ranks the documents exactly: by the sum of weight products over the terms that they share with the
query.
"""

import numpy as np

from retbench.encoders.sparse_encoder import split_rows
from retbench.encoders.text_encoder import TERM_BYTES
from retbench.retrievers.dense_retriever import stack_rows
from retbench.retrievers.embedding_retriever import EmbeddingRetriever
from retbench.retrievers.exact_search import ExactSearch
from retbench.retrievers.inverted_index import InvertedIndex
from retbench.retrievers.ranking import Ranking
from retbench.retrievers.score_fusion import fuse_rankings
from retbench.store.shard_store import VectorBlock

FUSION_DEPTH = 1000  # documents of each ranking that is fused, as in PromptReps; scores depend on it


class TermRetriever(EmbeddingRetriever):
    """Ranks by the terms of a learned sparse encoder."""

    def _search(self, queries: list[VectorBlock], k: int) -> Ranking:
        index, terms = InvertedIndex(), 0
        for block in self._embed("document"):
            index.add_block(block)
            terms += len(block.vectors)
        documents = len(self.collection.corpus)
        self.search_facts.update(
            bytes_per_document=TERM_BYTES * terms / documents, terms_per_document=terms / documents
        )
        return index.search(queries, k)


class PromptTermRetriever(EmbeddingRetriever):
    """Ranks by PromptReps' terms; a `hybrid` method fuses that ranking with the dense one."""

    def _search(self, queries: list[VectorBlock], k: int) -> Ranking:
        split_queries = split_rows(stack_rows(queries))
        depth, rows = max(k, FUSION_DEPTH), np.arange(len(split_queries.dense))
        index, search = InvertedIndex(), ExactSearch(split_queries.dense, depth)
        for block in self._embed("document"):
            documents = split_rows(block.vectors)
            index.add_block(documents.list_terms(block.rows))
            search.add_block(VectorBlock(block.rows, documents.dense))
        dense, sparse = search.finish(), index.search([split_queries.list_terms(rows)], depth)
        if self.spec.method.kind == "sparse":
            return sparse
        drop = self.task.same_id == "drop"  # both rankings are cut as in PromptReps before they are fused
        dense, sparse = (ranking.filter_and_cut(self.collection, drop, FUSION_DEPTH) for ranking in (dense, sparse))
        return fuse_rankings(dense, sparse, k)
