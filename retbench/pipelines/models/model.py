"""A candidate: one model as the user named it, its weights found, its backbone loaded only when a cell needs it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from retbench.cards import catalog, rope_scaling
from retbench.cards.default_methods import resolve_methods
from retbench.cards.engine import Engine
from retbench.cards.method import Method
from retbench.cards.model import Dtype, LexicalSettings, ModelCard
from retbench.cards.task import TaskCard
from retbench.encoders import adaptor
from retbench.encoders.adaptor import Adaptor
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.encoders.encoder_spec import EncoderSpec, compute_length_limits
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.shard_tasks import Workers
from retbench.engines import backbone, fingerprints, http_client, remote_code, weights
from retbench.engines.device import choose_dtype
from retbench.errors import InapplicableError
from retbench.pipelines.models.encoder_factory import EncoderFactory, served
from retbench.store.digest import compute_digest

OURS = Engine()
TEXT_ONLY = "Text only: the vision tower is never loaded."


@dataclass
class ResolvedModel:
    """One model, ready to become encoders."""

    card: ModelCard
    local: weights.LocalWeights | None
    engine: Engine = OURS
    workers: Callable[[EncoderSpec], Workers] | None = None  # who computes its vectors where it is not this process

    def __post_init__(self) -> None:
        self.host = EncoderFactory(self.engine, self.card, self.local.folder if self.local else None)

    @staticmethod
    def of(card: ModelCard, path: str | None, say: Callable[[str], None], engine: Engine = OURS) -> "ResolvedModel":
        """Find a card's weights, unless a server has them; weights that fit another card are refused."""
        if card.kind == "lexical" or engine.name == "endpoint":
            return ResolvedModel(card, None, engine)
        local = weights.obtain_weights(card, path, say)
        label = f"{card.name}+{local.label}" if path and local.label else card.name
        left_out = (TEXT_ONLY,) if backbone.text_only(local.folder) and TEXT_ONLY not in card.notes else ()
        return ResolvedModel(replace(card, name=label, notes=(*card.notes, *left_out)), local, engine)

    @property
    def weights(self) -> weights.LocalWeights:
        """The weights of a backbone."""
        if self.local is None:
            raise TypeError(f"{self.card.name} is a lexical model and has no weights")
        return self.local

    @property
    def lexical(self) -> LexicalSettings | None:
        """Settings of a lexical model."""
        return self.card.lexical or LexicalSettings() if self.card.kind == "lexical" else None

    def methods(self, wanted: list[Method]) -> list[Method]:
        """The methods asked for, or the card's own."""
        if self.engine.name == "endpoint" and not self.lexical:
            return wanted or [catalog.find_method("as-published")]
        return resolve_methods(self.card, wanted)

    def spec(self, method: Method, task: TaskCard, overrides: dict[str, Any]) -> EncoderSpec:
        """Everything that decides a vector, without loading anything."""
        if lacks := self.engine.find_unsupported(method):
            raise InapplicableError(
                f"method {method.name} needs {lacks}, which the engine {self.engine.name} does not give",
                "use another --method (retbench list methods) or another --engine",
            )
        query, document = compute_length_limits(
            task, overrides.get("max_length", self.card.max_length), self.card.context_length
        )
        # an instruction that no template asks for changes no vector and must not change a key
        wanted = any("{instruction}" in template for template in (method.query, method.document))
        instruction = (task.instruction or method.instruction) if wanted else ""
        smaller: dict[str, Any] = {key: overrides[key] for key in ("dimensions", "vector_dtype") if key in overrides}
        if smaller and method.kind != "dense":
            raise InapplicableError(
                f"method {method.name} stores terms, which --set {next(iter(smaller))} would tear apart",
                "leave it out, or use a dense --method",
            )
        if "rope" in overrides:
            smaller["rope"] = self._rope(overrides["rope"])
        if self.local and self.engine.name == "transformers":
            smaller["code"] = remote_code.compute_code_digest(self.local.folder)
        if self.local and self.engine.name == "sentence-transformers" and method.pooling == "model":
            smaller["modules"] = fingerprints.compute_modules_fingerprint(self.local.folder)
        return EncoderSpec(
            self._source(), method, instruction, query, document, self._dtype(overrides), self.engine.settings_name,
            self._adapted(method), **smaller,
        )  # fmt: skip

    def _rope(self, word: str) -> str:
        """The scaling of rotary positions, in the one way to write it."""
        if self.engine.name != "transformers":
            raise InapplicableError(
                f"the engine {self.engine.name} is not told how to stretch positions", "leave --engine or rope out"
            )
        return rope_scaling.parse_rope_scaling(word).setting

    def _adapted(self, method: Method) -> str | None:
        """The digest of the model's adaptor, which knows the vectors of one method alone."""
        adapted, own = self.card.adapted, self.card.method and self.card.method.own
        if adapted and method != own:
            raise InapplicableError(
                f"{self.card.name} changes vectors of method {own.name if own else '-'}, not of {method.name}",
                "leave --method out",
            )
        return adapted.sha256 if adapted else None

    @property
    def stored_as(self) -> str:
        """Whose name the stored vectors bear."""
        if self.card.adapted is None:
            return self.card.name
        parent, label = catalog.find_model_card(self.card.adapted.of).name, self.card.name.partition("+")[1:]
        return parent + "".join(label)

    def adaptor(self) -> Adaptor:
        """What changes the stored vectors of an adapted model."""
        card = self.card
        if card.adapted is None or card.weights is None:
            raise TypeError(f"{card.name} has no adaptor")
        return adaptor.load_adaptor(Path(card.weights.path or ".") / card.adapted.file, card.adapted.sha256)

    def _source(self) -> str:
        """What tells these weights from others; a server's address is digested, because a record may travel."""
        if self.local:
            return self.local.fingerprint
        return f"{served(self.engine, self.card)} at {compute_digest(http_client.get_endpoint_address())[:12]}"

    def _dtype(self, overrides: dict[str, Any]) -> Dtype:
        if self.local is None:
            return "float32"  # how a server computes is its own affair; this is how its vectors arrive
        wanted: Dtype | None = overrides.get("dtype")
        return wanted or choose_dtype(self.card, backbone.is_causal(self.local.folder))

    def encoder(self, spec: EncoderSpec) -> DenseEncoder:
        """The encoder of a spec; what it needs is loaded once."""
        return self.host.encoder(spec)

    def wording(self, spec: EncoderSpec) -> PromptTokenizer:
        """The encoder's wording alone, for those who only want to see the tokens."""
        return PromptTokenizer(self._tokenizer, spec.method, spec.instruction)

    @cached_property
    def _tokenizer(self) -> Any:
        """Read once: it takes long, and each one that has read a text leaves some of its memory behind."""
        return backbone.tokenizer(self.weights.folder)
