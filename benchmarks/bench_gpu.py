"""Speed on a CUDA GPU against sentence-transformers in bfloat16: the same model, the same token lengths, one run.

    python benchmarks/bench_gpu.py

Nothing is downloaded: models of Qwen2.5's shapes get random weights from their configs, texts are drawn words. Needs
torch, transformers, numpy and safetensors; without sentence-transformers its column reads "not measured". Without a GPU
tiny shapes run end to end on the CPU, and every figure reads "not measured".
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, PreTrainedTokenizerFast, Qwen2Config

from retbench.encoders.batch_plan import Plan
from retbench.encoders.pooling import POOLINGS
from retbench.engines import memory, peak_throughput
from retbench.engines.backbone import Backbone

HERE = Path(__file__).parent
NOT_MEASURED = "not measured"
FASTER = "faster_than_sentence_transformers"
CEILING = 65536  # tokens a batch, as in retbench.retrievers.dense

# width, layers, heads, heads of keys, width of the MLP
SHAPES = {
    "0.5B": (896, 24, 14, 2, 4864),
    "1.5B": (1536, 28, 12, 2, 8960),
    "7B": (3584, 28, 28, 4, 18944),
}
TINY = {"tiny": (64, 2, 4, 2, 128)}
# the median of token counts, the spread of their logarithm, the cut: passages are short and alike, code is neither
LENGTHS = {"passages": (70, 0.4, 512), "code": (250, 0.9, 2048)}


def model_of(shape: tuple[int, ...], vocabulary: int) -> Any:
    width, layers, heads, keys, mlp = shape
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=keys, intermediate_size=mlp, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModel.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word one token, so that drawn lengths are token lengths."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(vocabulary)}, unk_token="w0"))  # noqa: S106  no password
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w0")  # noqa: S106  no password


def rows_of(kind: str, count: int, vocabulary: int) -> list[np.ndarray]:
    median, spread, longest = LENGTHS[kind]
    draw = np.random.default_rng(7)
    lengths = np.clip(np.exp(draw.normal(np.log(median), spread, count)), 4, longest).astype(int)
    return [draw.integers(1, vocabulary, length).astype(np.int32) for length in lengths]


def ours(backbone: Backbone, rows: list[np.ndarray]) -> Callable[[], None]:
    """Planned as retbench plans: sorted, within a token budget that a probe found."""
    lengths = np.array([len(row) for row in rows])
    longest = rows[int(lengths.argmax())]
    budget = memory.token_budget(lambda count: backbone.states([longest] * count), len(longest), CEILING)
    plan = Plan.of(lengths, budget, len(rows))

    def run() -> None:
        for batch in plan.batches(0):
            states = backbone.states([rows[int(row)] for row in batch])
            torch.nn.functional.normalize(POOLINGS["last"](states.flat, states.offsets), dim=1).cpu()

    return run


def theirs(folder: Path, tokenizer: Any, rows: list[np.ndarray]) -> Callable[[], object]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), model_kwargs={"dtype": torch.bfloat16})
    model[0].processor = tokenizer  # the saved one is taken for Qwen's own class, which knows none of the drawn words
    texts = [" ".join(f"w{number}" for number in row) for row in rows]
    return lambda: model.encode(texts, normalize_embeddings=True)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds and peak megabytes of the second of two runs."""
    run()
    memory.reset_peak()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, memory.peak_mb()


def measure(shape: tuple[int, ...], kind: str, documents: int, vocabulary: int) -> dict[str, Any]:
    model, rows = model_of(shape, vocabulary), rows_of(kind, documents, vocabulary)
    tokens = sum(map(len, rows))
    tokenizer = tokenizer_of(vocabulary)
    seconds, peak_mb = timed(ours(Backbone(model, tokenizer, True, "bfloat16", model.device), rows))
    reach = peak_throughput.tokens_per_second(model, torch.bfloat16, model.device, min(8192, tokens))
    found = {
        "tokens_per_second": tokens / seconds,
        "documents_per_second": documents / seconds,
        "peak_mb": peak_mb,
        "share_of_peak": tokens / seconds / reach,
    }
    if find_spec("sentence_transformers"):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            del model
            memory.release()
            found[FASTER] = timed(theirs(Path(folder), tokenizer, rows))[0] / seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--models", nargs="*", default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    shapes = {name: SHAPES[name] for name in options.models} if cuda else TINY
    documents, vocabulary = (options.documents, 151_936) if cuda else (24, 500)
    rows = [
        {"model": name, "lengths": kind, **measure(shape, kind, documents, vocabulary)}
        for name, shape in shapes.items()
        for kind in LENGTHS
    ]
    print(f"{torch.cuda.get_device_name() if cuda else 'no GPU: tiny shapes on the CPU, to see that it runs'}\n")
    print("| model | lengths | tokens/s | documents/s | peak MB | share of peak | faster than sentence-transformers |")
    print("|---|---|---|---|---|---|---|")
    keys = ("tokens_per_second", "documents_per_second", "peak_mb", "share_of_peak", FASTER)
    for row in rows:
        cells = [f"{row[key]:,.2f}" if cuda and key in row else NOT_MEASURED for key in keys]
        print(f"| {row['model']} | {row['lengths']} | " + " | ".join(cells) + " |")
    if cuda:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
