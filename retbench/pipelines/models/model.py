"""A resolved model: a card and its weights on this machine. The backbone is loaded only when a cell needs it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retbench.cards import catalog
from retbench.cards.default_methods import resolve_methods
from retbench.cards.engine import Engine
from retbench.cards.method import Method, Similarity
from retbench.cards.model import LexicalSettings, ModelCard
from retbench.cards.published_method import (
    describe_published_card,
    follow_published_model,
    is_published,
    require_encoder,
)
from retbench.cards.rope_scaling import parse_rope_scaling
from retbench.cards.task import TaskCard
from retbench.encoders import adaptor
from retbench.encoders.adaptor import Adaptor
from retbench.encoders.encoder_spec import EncoderSpec, compute_length_limits
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import (
    check_published_head,
    fingerprints,
    http_client,
    model_folders,
    remote_code,
    text_config,
    weights,
)
from retbench.engines.device import DtypeChoice, choose_dtype
from retbench.errors import InapplicableError, UsageError
from retbench.pipelines.models.overrides import Overrides
from retbench.store.digest import compute_digest

if TYPE_CHECKING:  # these import torch, which only a cell that is computed needs
    from retbench.encoders.dense_encoder import DenseEncoder
    from retbench.encoders.shard_tasks import ShardWorkers
    from retbench.pipelines.models.encoder_factory import EncoderFactory

DEFAULT_ENGINE = Engine()
TEXT_ONLY_NOTE = "Text only: the vision tower is never loaded."


@dataclass
class ResolvedModel:
    """A model whose weights were found, ready to build encoders."""

    card: ModelCard
    local_weights: weights.LocalWeights | None
    engine: Engine = DEFAULT_ENGINE
    create_workers: "Callable[[EncoderSpec], ShardWorkers] | None" = None  # without it this process computes

    @cached_property
    def encoder_factory(self) -> "EncoderFactory":
        """What builds the encoders and keeps the loaded weights."""
        from retbench.pipelines.models.encoder_factory import EncoderFactory

        return EncoderFactory(self.engine, self.card, self.local_weights.folder if self.local_weights else None)

    @staticmethod
    def resolve(
        card: ModelCard, path: str | None, log_status: Callable[[str], None], engine: Engine = DEFAULT_ENGINE
    ) -> "ResolvedModel":
        """Find the weights of a card, unless a server has them; weights that fit another card, or that give no vectors,
        are refused."""
        require_encoder(card)
        if card.kind == "lexical" or engine.name == "endpoint":
            return ResolvedModel(card, None, engine)
        local_weights = weights.obtain_weights(card, path, log_status)
        card = describe_published_card(card, local_weights.folder)
        name = f"{card.name}+{local_weights.label}" if path and local_weights.label else card.name
        is_text_only = text_config.has_text_config(local_weights.folder) and TEXT_ONLY_NOTE not in card.notes
        notes = (*card.notes, TEXT_ONLY_NOTE) if is_text_only else card.notes
        return ResolvedModel(replace(card, name=name, notes=notes), local_weights, engine)

    @property
    def weights(self) -> weights.LocalWeights:
        """The weights of a backbone."""
        if self.local_weights is None:
            raise TypeError(f"{self.card.name} is a lexical model and has no weights")
        return self.local_weights

    @property
    def lexical_settings(self) -> LexicalSettings | None:
        """The settings of a lexical model; None for a backbone."""
        return self.card.lexical or LexicalSettings() if self.card.kind == "lexical" else None

    def resolve_methods(self, methods: list[Method]) -> list[Method]:
        """Return the given methods, else the card's default; `as-published` as the model's folder describes it."""
        if self.engine.name == "endpoint" and not self.lexical_settings:
            return methods or [catalog.find_method("as-published")]
        resolved = resolve_methods(self.card, methods)
        if self.local_weights is None or resolved == [self.card.method and self.card.method.own]:
            return resolved
        return [follow_published_model(method, self.local_weights.folder) for method in resolved]

    def build_encoder_spec(self, method: Method, task: TaskCard, overrides: Overrides) -> EncoderSpec:
        """Collect everything that decides a vector, without loading the model."""
        if unsupported := self.engine.find_unsupported(method):
            raise InapplicableError(
                f"method {method.name} needs {unsupported}, which the engine {self.engine.name} does not support",
                "use another --method (retbench list methods) or another --engine",
            )
        self._check_window(overrides)
        query_limit, document_limit = compute_length_limits(
            task, self.card.max_length, self.card.context_length, overrides.max_length
        )
        return EncoderSpec(
            self._describe_weights(), method.fit_to_task(task), method.choose_instruction(task), query_limit,
            document_limit, self.choose_dtype(overrides).dtype, self.engine.settings_name,
            self._get_adaptor_digest(method), **self._collect_options(method, overrides),
        )  # fmt: skip

    def _check_window(self, overrides: Overrides) -> None:
        """Refuse a `--set max_length` beyond the model's context window, as far as RoPE scaling stretches it."""
        read = self.local_weights and model_folders.read_context_window(self.local_weights.folder)
        window, wanted = read or self.card.context_length, overrides.max_length
        if wanted is None or window is None:
            return
        scaling = parse_rope_scaling(overrides.rope) if overrides.rope else None
        factor = 1.0 if scaling is None else math.inf if scaling.kind == "dynamic" else scaling.factor
        if wanted > window * factor:
            raise UsageError(
                f"--set max_length={wanted}: the context window of {self.card.name} has {window} tokens",
                f"give {window} or less; a model with rotary positions reads more with "
                f"--set rope=yarn:{math.ceil(wanted / window)}",
            )

    def _collect_options(self, method: Method, overrides: Overrides) -> dict[str, Any]:
        """Return the optional settings of an encoder that are in use."""
        given = {"dimensions": overrides.dimensions, "vector_dtype": overrides.vector_dtype}
        options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if options and method.kind != "dense":
            raise InapplicableError(
                f"method {method.name} stores term weights, so --set {next(iter(options))} does not apply",
                "leave it out, or use a dense --method",
            )
        if method.similarity == "dot" and overrides.vector_dtype not in (None, "fp32"):
            raise InapplicableError(
                f"method {method.name} compares by dot product, and --set vector_dtype={overrides.vector_dtype} keeps "
                "only directions",
                "leave vector_dtype out",
            )
        if overrides.rope:
            if self.engine.name != "transformers":
                raise InapplicableError(
                    f"the engine {self.engine.name} does not support --set rope", "leave --engine or rope out"
                )
            options["rope"] = overrides.rope
        if self.local_weights and self.engine.name == "transformers":
            options["code"] = remote_code.compute_code_digest(self.local_weights.folder)
        if self.local_weights and method.pooling == "model":
            self._check_modules(method, self.local_weights.folder)
            options["modules"] = fingerprints.compute_modules_fingerprint(self.local_weights.folder)
        return options

    def _check_modules(self, method: Method, folder: Path) -> None:
        if not is_published(folder):
            raise InapplicableError(
                f"method {method.name} needs the modules of a published embedder: {self.card.name} has no modules.json",
                "use --method last or mean",
            )
        check_published_head.check_head(folder, self.engine.name)

    def _get_adaptor_digest(self, method: Method) -> str | None:
        """Return the digest of the model's adaptor, which was trained on the vectors of one method."""
        adaptor_card, trained_method = self.card.adapted, self.card.method and self.card.method.own
        if adaptor_card and method != trained_method:
            name = trained_method.name if trained_method else "-"
            raise InapplicableError(
                f"the adaptor of {self.card.name} was trained for method {name}, not for {method.name}",
                "leave --method out",
            )
        return adaptor_card.sha256 if adaptor_card else None

    @property
    def embeddings_owner(self) -> str:
        """The model name under which the vectors are cached: the parent's for a model with an adaptor."""
        if self.card.adapted is None:
            return self.card.name
        parent, label = catalog.find_model_card(self.card.adapted.of).name, self.card.name.partition("+")[1:]
        return parent + "".join(label)

    def load_adaptor(self, similarity: Similarity) -> Adaptor:
        """Load the adaptor, which transforms the cached vectors of the parent."""
        card = self.card
        if card.adapted is None or card.weights is None:
            raise TypeError(f"{card.name} has no adaptor")
        file = Path(card.weights.path or ".") / card.adapted.file
        return adaptor.load_adaptor(file, card.adapted.sha256, similarity)

    def _describe_weights(self) -> str:
        """Return the fingerprint of the weights; for a server a digest of its address, because records are shared."""
        if self.local_weights:
            return self.local_weights.fingerprint
        return f"{self.engine.get_served_name(self.card)} at {compute_digest(http_client.get_endpoint_address())[:12]}"

    def choose_dtype(self, overrides: Overrides) -> DtypeChoice:
        """Choose the dtype that the model computes in."""
        if self.local_weights is None:  # the dtype of the vectors that a server sends; its own dtype is unknown
            return DtypeChoice("float32", "float32", "default")
        folder = self.local_weights.folder
        return choose_dtype(self.card, lambda: text_config.is_causal(folder), overrides.dtype)

    def load_encoder(self, spec: EncoderSpec) -> "DenseEncoder":
        """Load the encoder of a specification; weights are loaded once."""
        return self.encoder_factory.load_encoder(spec)

    def build_prompt_tokenizer(self, spec: EncoderSpec) -> PromptTokenizer:
        """Build the encoder's tokenizer without loading the model."""
        return PromptTokenizer(self._tokenizer, spec.method, spec.instruction)

    @cached_property
    def _tokenizer(self) -> Any:
        """Loaded once: loading is slow, and every used tokenizer keeps some memory."""
        from retbench.engines.tokenizers import load_tokenizer

        return load_tokenizer(self.weights.folder)
