"""A resolved model: a card and its weights on this machine. The backbone is loaded only when a cell needs it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from retbench.cards import catalog, vision_config
from retbench.cards.default_methods import resolve_methods
from retbench.cards.engine import Engine
from retbench.cards.method import Method, Similarity
from retbench.cards.model import LexicalSettings, ModelCard
from retbench.cards.published_kinds import require_encoder, require_fitting_method
from retbench.cards.published_method import (
    describe_published_card,
    follow_published_model,
    is_published,
)
from retbench.cards.rope_scaling import parse_rope_scaling
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import keep_texts, require_texts
from retbench.encoders import adaptor
from retbench.encoders.adaptor import Adaptor
from retbench.encoders.encoder_spec import EncoderSpec, compute_length_limits
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.vision_tokenizer import VisionTokenizer
from retbench.engines import (
    check_published_head,
    fingerprints,
    http_client,
    model_folders,
    remote_code,
    text_config,
    weights,
)
from retbench.engines.device import DtypeChoice, choose_dtype, get_device_type
from retbench.errors import InapplicableError, UsageError
from retbench.pipelines.models import image_settings
from retbench.pipelines.models.overrides import Overrides
from retbench.store.digest import compute_digest

if TYPE_CHECKING:  # these import torch, which only a cell that is computed needs
    from retbench.encoders.dense_encoder import DenseEncoder
    from retbench.encoders.shard_tasks import ShardWorkers
    from retbench.encoders.text_encoder import TextEncoder
    from retbench.pipelines.models.encoder_factory import EncoderFactory

DEFAULT_ENGINE = Engine()
TEXT_ONLY_NOTE = "Text only: the vision tower is never loaded."
IMAGES_ONLY_NOTE = "The vision tower is loaded only for a collection with images."


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

        return EncoderFactory(self.engine, self.card, self.local_weights)

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
        card = describe_published_card(card, local_weights.published_folder)
        name = f"{card.name}+{local_weights.label}" if path and local_weights.label else card.name
        added = [note for note in _list_notes(local_weights.folder) if note not in card.notes]
        return ResolvedModel(replace(card, name=name, notes=(*card.notes, *added)), local_weights, engine)

    def choose_inputs(self, collection: Collection, task: TaskCard) -> Collection:
        """Return a collection as this model reads it. One with images is refused for a model, or an engine, that reads
        only texts, unless the task gives it the texts beside them."""
        reader = self._name_text_reader()
        if task.images == "prefer":
            return collection.prefer_images() if reader is None else keep_texts(collection, task, reader)
        if reader is not None:
            require_texts(collection, task, reader)
        return collection

    def _name_text_reader(self) -> str | None:
        """Return what reads only texts, the model or the engine; None if images are read."""
        if not self.local_weights or vision_config.find_vision_kind(self.local_weights.folder) is None:
            return self.card.name
        return None if self.engine.name == "transformers" else f"the engine {self.engine.name}"

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
        return [follow_published_model(method, self.local_weights.published_folder) for method in resolved]

    def build_encoder_spec(
        self, method: Method, task: TaskCard, overrides: Overrides, with_images: bool = False
    ) -> EncoderSpec:
        """Collect everything that decides a vector, without loading the model."""
        if self.local_weights:
            require_fitting_method(self.local_weights.published_folder, method)
        if unsupported := self.engine.find_unsupported(method):
            raise InapplicableError(
                f"method {method.name} needs {unsupported}, which the engine {self.engine.name} does not support",
                "use another --method (retbench list methods) or another --engine",
            )
        if overrides.dtype == "int8":
            self._check_int8(with_images)
        self._check_window(overrides)
        query_limit, document_limit = self._compute_limits(method, task, overrides)
        fitted = method.fit_to_task(task)
        return EncoderSpec(
            self._describe_weights(), fitted, fitted.choose_instruction(task), query_limit,
            document_limit, self.choose_dtype(overrides).dtype, self.engine.settings_name,
            self._get_adaptor_digest(method), **self._collect_image_settings(method, overrides, with_images),
            **self._collect_options(method, overrides),
        )  # fmt: skip

    def _compute_limits(self, method: Method, task: TaskCard, overrides: Overrides) -> tuple[int, int]:
        """Return the most tokens of a query and a document; late interaction has a limit of its own for each."""
        card, settings = self.card, method.late_interaction
        limits = compute_length_limits(task, card.max_length, card.context_length, overrides.max_length)
        if settings is None:
            return limits
        own = (settings.query_length, settings.document_length)
        queries, documents = (
            compute_length_limits(task, length or card.max_length, card.context_length, overrides.max_length)
            for length in own
        )
        return min(queries[0], settings.query_length or queries[0]), documents[1]

    def _check_int8(self, with_images: bool) -> None:
        """Refuse `--set dtype=int8` where no int8 layers exist."""
        if self.engine.name != "transformers" or with_images or get_device_type() != "cpu":
            used = f"the engine {self.engine.name}" if self.engine.name != "transformers" else "images or a GPU"
            raise InapplicableError(
                f"--set dtype=int8 computes texts on a CPU by the engine transformers, not with {used}",
                "use another dtype; or leave --engine out, and set RETBENCH_DEVICE=cpu",
            )

    def _collect_image_settings(self, method: Method, overrides: Overrides, with_images: bool) -> dict[str, Any]:
        if self.local_weights is None:
            return {}
        return image_settings.collect_image_settings(
            self.card, self.local_weights.folder, method, overrides, with_images
        )

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
        refused = {"dense": (), "multi-vector": ("dimensions",)}.get(method.kind, tuple(options))
        if wrong := [key for key in refused if key in options]:
            stored = "one vector per token" if method.vector_kind == "multi-vector" else "term weights"
            raise InapplicableError(
                f"method {method.name} stores {stored}, so --set {wrong[0]} does not apply",
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
        if self.local_weights and method.pooling == "model" and not self._has_towers:
            self._check_modules(method, self.local_weights.published_folder)
            options["modules"] = fingerprints.compute_modules_fingerprint(self.local_weights.published_folder)
        return options

    @property
    def _has_towers(self) -> bool:
        """Whether the vectors are those of a text and an image tower, as in CLIP."""
        return self.local_weights is not None and vision_config.find_vision_kind(self.local_weights.folder) == "towers"

    def _check_modules(self, method: Method, folder: Path) -> None:
        if not is_published(folder):
            raise InapplicableError(
                f"method {method.name} needs the modules of a published embedder: {self.card.name} has no modules.json",
                "use --method last or mean",
            )
        if method.vector_kind == "dense":
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

    def load_encoder(self, spec: EncoderSpec) -> "TextEncoder":
        """Load the encoder of a specification; weights are loaded once."""
        return self.encoder_factory.load_encoder(spec)

    def load_dense_encoder(self, spec: EncoderSpec) -> "DenseEncoder":
        """The same for callers that need one vector for each text."""
        if spec.method.vector_kind != "dense":
            raise TypeError(f"method {spec.method.name} has no dense vectors")
        return cast("DenseEncoder", self.load_encoder(spec))

    def build_prompt_tokenizer(self, spec: EncoderSpec) -> PromptTokenizer | VisionTokenizer:
        """Build the encoder's tokenizer without loading the model."""
        return image_settings.build_tokenizer(self.weights.folder, self._tokenizer, spec)

    def build_text_tokenizer(self, spec: EncoderSpec) -> PromptTokenizer:
        """Build the tokenizer of the encoder's prompts without images, for what reads only texts."""
        return PromptTokenizer(self._tokenizer, spec.method, spec.instruction)

    @cached_property
    def _tokenizer(self) -> Any:
        """Loaded once: loading is slow, and every used tokenizer keeps some memory."""
        from retbench.engines.tokenizers import load_tokenizer

        return load_tokenizer(self.weights.folder)


def _list_notes(folder: Path) -> list[str]:
    """Say when the vision tower of a multimodal model is loaded."""
    kind = vision_config.find_vision_kind(folder)
    if not text_config.has_text_config(folder) or kind == "towers":
        return []
    return [TEXT_ONLY_NOTE if kind is None else IMAGES_ONLY_NOTE]
