"""Hosting: a spec and its engine become an encoder; what was loaded is kept until another is asked for."""

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
from retbench.engines import backbone, lm_head
from retbench.engines.device import get_device
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import EndpointServer

TEMPLATE_ROOM = 512  # tokens a template may add to a text that was cut before it


@dataclass
class EncoderFactory:
    """One model under one engine. Only the last thing loaded is kept: two copies of a large model may not fit."""

    engine: Engine
    card: ModelCard
    folder: Path | None
    loaded: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    heads: dict[tuple[Any, ...], lm_head.LMHead] = field(default_factory=dict)

    def encoder(self, spec: EncoderSpec) -> DenseEncoder:
        """The encoder of a spec."""
        if self.folder is None:
            return EndpointEncoder(spec, EmbeddingsClient(EndpointServer(self.engine), served(self.engine, self.card)))
        if self.engine.name == "transformers":
            return self._ours(spec, self.folder)
        wording = PromptTokenizer(backbone.tokenizer(self.folder), spec.method, spec.instruction)
        return TokenIdEncoder(spec, self._foreign(spec, self.folder), wording)

    def _ours(self, spec: EncoderSpec, folder: Path) -> BackboneEncoder:
        key = (spec.dtype, spec.rope)
        if key not in self.loaded:
            self._forget()
            self.loaded[key] = backbone.load(folder, spec.dtype, get_device(), spec.rope)
        used = self.loaded[key].used(spec.method.attention, spec.method.layer)
        wording = PromptTokenizer(used.tokenizer, spec.method, spec.instruction)
        if spec.method.kind == "dense":
            return BackboneEncoder(spec, used, wording)
        if key not in self.heads:
            self.heads[key] = lm_head.load_lm_head(folder, used)
        return SparseEncoder(spec, used, wording, self.heads[key])

    def _foreign(self, spec: EncoderSpec, folder: Path) -> Any:
        longest = max(spec.query_limit, spec.document_limit) + TEMPLATE_ROOM
        key = (spec.dtype, spec.method.pooling, spec.method.attention, longest)
        if key not in self.loaded:
            self._forget()
            self.loaded[key] = self._load(spec, folder, longest)
        return self.loaded[key]

    def _load(self, spec: EncoderSpec, folder: Path, longest: int) -> Any:
        if self.engine.name == "vllm":
            from retbench.engines import vllm_engine

            within = min(longest, self.card.context_length or longest)
            return vllm_engine.load_vllm_model(folder, spec.dtype, spec.method.pooling, spec.method.attention, within)
        from retbench.engines import sentence_transformers_engine

        return sentence_transformers_engine.load_sentence_transformers_model(
            folder, spec.dtype, get_device(), spec.method.pooling
        )

    def _forget(self) -> None:
        self.loaded.clear()
        self.heads.clear()


def served(engine: Engine, card: ModelCard) -> str:
    """The name a server knows a model by: as told, else that of its repository, else the card's."""
    return engine.model or (card.weights and card.weights.repo) or card.name
