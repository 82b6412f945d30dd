"""Chooses the reranker specification for a request."""

from retbench.cards.reranker_settings import (
    CrossEncoderSettings,
    LexicalQLSettings,
    QueryLikelihoodSettings,
    RerankerRequest,
    VectorsSettings,
)
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.reranking.base import ModelResolver, RerankerSpec
from retbench.pipelines.reranking.cross_encoder import build_cross_encoder_spec
from retbench.pipelines.reranking.embedding import build_embedding_spec
from retbench.pipelines.reranking.lexical_ql import LexicalQLSpec
from retbench.pipelines.reranking.llm import build_llm_spec
from retbench.pipelines.reranking.query_likelihood import build_query_likelihood_spec
from retbench.pipelines.runs.saved_run import SavedRun


def build_reranker_spec(
    request: RerankerRequest, first_stage: SavedRun, first_stage_model: ResolvedModel | None, resolver: ModelResolver
) -> RerankerSpec:
    """Build the specification of a reranker; `first_stage_model` is given where it is already resolved."""
    if isinstance(request.settings, VectorsSettings):
        return build_embedding_spec(request, request.settings, first_stage, first_stage_model, resolver)
    if isinstance(request.settings, QueryLikelihoodSettings):
        return build_query_likelihood_spec(request.settings, first_stage, first_stage_model, resolver)
    if isinstance(request.settings, CrossEncoderSettings):
        return build_cross_encoder_spec(request.settings, first_stage, resolver)
    if isinstance(request.settings, LexicalQLSettings):
        return LexicalQLSpec(request.settings)
    return build_llm_spec(request, first_stage, first_stage_model, resolver)
