"""The embedding cache: the folder of the vectors of one key."""

from retbench.store.shard_store import ShardStore
from retbench.store.vector_formats import VectorDtype
from retbench.system.user_config import encode_path_part, get_cache_folder


def open_store(model: str, key: str, vector_dtype: VectorDtype = "fp32") -> ShardStore:
    """The shard store for the vectors of one key."""
    return ShardStore(get_cache_folder() / "embeddings" / encode_path_part(model) / key[:32], vector_dtype)
