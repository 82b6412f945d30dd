"""The encoder factory: builds an encoder from its specification and engine, and keeps the last loaded weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retbench.cards.engine import Engine
from retbench.cards.model import ModelCard
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.external_encoders import EndpointEncoder, TokenIdEncoder
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.published_encoders import LateInteractionEncoder, LearnedSparseEncoder
from retbench.encoders.sparse_encoder import SparseEncoder
from retbench.encoders.text_encoder import TextEncoder
from retbench.encoders.vision_encoder import VisionEncoder, VisionLateInteractionEncoder
from retbench.encoders.vision_tokenizer import VisionTokenizer
from retbench.engines import backbone, lm_head, published_head, token_layers, vision_model
from retbench.engines.device import get_device
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import EndpointServer
from retbench.engines.tokenizers import load_tokenizer
from retbench.engines.weights import LocalWeights
from retbench.pipelines.models import image_settings

BackboneLoader = Callable[..., backbone.Backbone]
MAX_TEMPLATE_TOKENS = 512  # that a template adds to a text which was cut before


@dataclass
class EncoderFactory:
    """Builds the encoders of one model and engine. Only the last loaded weights are kept: two copies may not fit."""

    engine: Engine
    card: ModelCard
    weights: LocalWeights | None
    loaded: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    heads: dict[tuple[Any, ...], lm_head.LMHead] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """The folder of the transformer; None behind a server."""
        return self.weights.folder if self.weights else None

    def load_encoder(self, spec: EncoderSpec) -> TextEncoder:
        """Build the encoder; load the weights unless they are loaded."""
        if self.folder is None:
            client = EmbeddingsClient(EndpointServer(self.engine), self.engine.get_served_name(self.card))
            return EndpointEncoder(spec, client)
        if self.engine.name == "transformers" and image_settings.uses_vision(self.folder, spec):
            return self._load_vision_encoder(spec, self.folder)
        if self.weights and spec.method.learned_sparse:
            return self._load_sparse_encoder(spec, self.weights)
        if self.weights and spec.method.late_interaction:
            return self._load_late_interaction_encoder(spec, self.weights)
        if self.engine.name == "transformers":
            return self._load_backbone_encoder(spec, self.folder)
        prompt_tokenizer = PromptTokenizer(load_tokenizer(self.folder), spec.method, spec.instruction)
        return TokenIdEncoder(spec, self._load_external_model(spec, self.folder), prompt_tokenizer)

    def _load_backbone(self, spec: EncoderSpec, folder: Path, load: BackboneLoader) -> backbone.Backbone:
        key = (spec.dtype, spec.rope, load)
        if key not in self.loaded:
            self.unload()
            self.loaded[key] = load(folder, spec.dtype, get_device(), spec.rope)
        loaded: backbone.Backbone = self.loaded[key]
        return loaded.with_method(spec.method.attention, spec.method.layer)

    def _load_late_interaction_encoder(self, spec: EncoderSpec, weights: LocalWeights) -> LateInteractionEncoder:
        loaded = self._load_backbone(spec, weights.folder, backbone.load_backbone)
        prompt_tokenizer = PromptTokenizer(loaded.tokenizer, spec.method, spec.instruction)
        layers = token_layers.load_token_layers(weights.published_folder, loaded.device)
        return LateInteractionEncoder(spec, loaded, prompt_tokenizer, layers)

    def _load_sparse_encoder(self, spec: EncoderSpec, weights: LocalWeights) -> LearnedSparseEncoder:
        loaded = self._load_backbone(spec, weights.folder, backbone.load_masked_backbone)
        prompt_tokenizer = PromptTokenizer(loaded.tokenizer, spec.method, spec.instruction)
        is_static = spec.method.learned_sparse and spec.method.learned_sparse.static_queries
        table = token_layers.load_static_weights(weights.published_folder).numpy() if is_static else None
        return LearnedSparseEncoder(spec, loaded, prompt_tokenizer, table)

    def _load_backbone_encoder(self, spec: EncoderSpec, folder: Path) -> BackboneEncoder:
        configured = self._load_backbone(spec, folder, backbone.load_backbone)
        key = (spec.dtype, spec.rope)
        prompt_tokenizer = PromptTokenizer(configured.tokenizer, spec.method, spec.instruction)
        if spec.method.kind == "dense":
            has_head = spec.method.pooling == "model"
            head = published_head.load_head(folder, configured.device) if has_head else None
            return BackboneEncoder(spec, configured, prompt_tokenizer, head=head)
        if key not in self.heads:
            self.heads[key] = lm_head.load_lm_head(folder, configured)
        return SparseEncoder(spec, configured, prompt_tokenizer, self.heads[key])

    def _load_vision_encoder(self, spec: EncoderSpec, folder: Path) -> TextEncoder:
        limits = image_settings.get_pixel_limits(spec)
        key = (spec.dtype, "vision", limits)
        if key not in self.loaded:
            self.unload()
            self.loaded[key] = vision_model.load_vision_model(folder, spec.weights_dtype, get_device(), limits)
        model = self.loaded[key]
        prompts = PromptTokenizer(model.tokenizer, spec.method, spec.instruction)
        vision_tokenizer = VisionTokenizer(prompts, model.processor)
        if self.weights and spec.method.late_interaction:
            layers = token_layers.load_token_layers(self.weights.published_folder, model.device)
            return VisionLateInteractionEncoder(spec, model, vision_tokenizer, layers)
        return VisionEncoder(spec, model, vision_tokenizer)

    def _load_external_model(self, spec: EncoderSpec, folder: Path) -> Any:
        max_tokens = max(spec.query_limit, spec.document_limit) + MAX_TEMPLATE_TOKENS
        key = (spec.dtype, spec.method.pooling, spec.method.attention, max_tokens)
        if key not in self.loaded:
            self.unload()
            self.loaded[key] = self._load_engine_model(spec, folder, max_tokens)
        return self.loaded[key]

    def _load_engine_model(self, spec: EncoderSpec, folder: Path, max_tokens: int) -> Any:
        if self.engine.name == "vllm":
            from retbench.engines import vllm_engine

            max_tokens = min(max_tokens, self.card.context_length or max_tokens)
            return vllm_engine.load_vllm_model(
                folder, spec.weights_dtype, spec.method, max_tokens, self.engine.vllm_options
            )
        from retbench.engines import sentence_transformers_engine

        return sentence_transformers_engine.load_sentence_transformers_model(
            folder, spec.weights_dtype, get_device(), spec.method.pooling
        )

    def unload(self) -> None:
        """Forget the loaded weights; the next encoder loads them again."""
        self.loaded.clear()
        self.heads.clear()
