"""Retrieval by late interaction (ColBERT): texts become one vector per token, which MaxSim compares."""

from retbench.retrievers.embedding_retriever import EmbeddingRetriever
from retbench.retrievers.max_sim_search import MaxSimSearch
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock
from retbench.store.vector_formats import VECTOR_FORMATS


class MultiVectorRetriever(EmbeddingRetriever):
    """Ranks one collection by MaxSim, exactly."""

    def _search(self, queries: list[VectorBlock], k: int) -> Ranking:
        settings, count, width = self.spec.method.late_interaction, 0, 0
        search = MaxSimSearch(queries, k, average=settings is not None and settings.average)
        for block in self._embed("document"):
            search.add_block(block)
            count, width = count + len(block.vectors), block.vectors.shape[1]
        form, documents = VECTOR_FORMATS[self.spec.vector_dtype], len(self.collection.corpus)
        vector_bytes = width * form.bytes_per_number + form.bytes_per_vector
        self.search_facts.update(
            bytes_per_document=vector_bytes * count / documents, vectors_per_document=count / documents
        )
        return search.finish()
