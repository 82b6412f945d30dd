"""The encoder factory: builds an encoder from its specification and engine, and keeps the last loaded weights."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retbench.cards.engine import Engine
from retbench.cards.model import ModelCard
from retbench.encoders.dense_encoder import BackboneEncoder, DenseEncoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.external_encoders import EndpointEncoder, TokenIdEncoder
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.sparse_encoder import SparseEncoder
from retbench.engines import backbone, lm_head, published_head
from retbench.engines.device import get_device
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import EndpointServer
from retbench.engines.tokenizers import load_tokenizer

MAX_TEMPLATE_TOKENS = 512  # that a template adds to a text which was cut before


@dataclass
class EncoderFactory:
    """Builds the encoders of one model and engine. Only the last loaded weights are kept: two copies may not fit."""

    engine: Engine
    card: ModelCard
    folder: Path | None
    loaded: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    heads: dict[tuple[Any, ...], lm_head.LMHead] = field(default_factory=dict)

    def load_encoder(self, spec: EncoderSpec) -> DenseEncoder:
        """Build the encoder; load the weights unless they are loaded."""
        if self.folder is None:
            client = EmbeddingsClient(EndpointServer(self.engine), self.engine.get_served_name(self.card))
            return EndpointEncoder(spec, client)
        if self.engine.name == "transformers":
            return self._load_backbone_encoder(spec, self.folder)
        prompt_tokenizer = PromptTokenizer(load_tokenizer(self.folder), spec.method, spec.instruction)
        return TokenIdEncoder(spec, self._load_external_model(spec, self.folder), prompt_tokenizer)

    def _load_backbone_encoder(self, spec: EncoderSpec, folder: Path) -> BackboneEncoder:
        key = (spec.dtype, spec.rope)
        if key not in self.loaded:
            self._unload()
            self.loaded[key] = backbone.load_backbone(folder, spec.dtype, get_device(), spec.rope)
        configured = self.loaded[key].with_method(spec.method.attention, spec.method.layer)
        prompt_tokenizer = PromptTokenizer(configured.tokenizer, spec.method, spec.instruction)
        if spec.method.kind == "dense":
            has_head = spec.method.pooling == "model"
            head = published_head.load_head(folder, configured.device) if has_head else None
            return BackboneEncoder(spec, configured, prompt_tokenizer, head=head)
        if key not in self.heads:
            self.heads[key] = lm_head.load_lm_head(folder, configured)
        return SparseEncoder(spec, configured, prompt_tokenizer, self.heads[key])

    def _load_external_model(self, spec: EncoderSpec, folder: Path) -> Any:
        max_tokens = max(spec.query_limit, spec.document_limit) + MAX_TEMPLATE_TOKENS
        key = (spec.dtype, spec.method.pooling, spec.method.attention, max_tokens)
        if key not in self.loaded:
            self._unload()
            self.loaded[key] = self._load_engine_model(spec, folder, max_tokens)
        return self.loaded[key]

    def _load_engine_model(self, spec: EncoderSpec, folder: Path, max_tokens: int) -> Any:
        if self.engine.name == "vllm":
            from retbench.engines import vllm_engine

            max_tokens = min(max_tokens, self.card.context_length or max_tokens)
            return vllm_engine.load_vllm_model(folder, spec.dtype, spec.method, max_tokens, self.engine.vllm_options)
        from retbench.engines import sentence_transformers_engine

        return sentence_transformers_engine.load_sentence_transformers_model(
            folder, spec.dtype, get_device(), spec.method.pooling
        )

    def _unload(self) -> None:
        self.loaded.clear()
        self.heads.clear()
