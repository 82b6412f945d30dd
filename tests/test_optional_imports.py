"""Dense runs need none of the libraries that only lexical retrievers, GGUF files or one command need."""

import subprocess
import sys
from pathlib import Path

import retbench
from retbench.engines import text_config

PROGRAM = """
import sys
for name in ("bm25s", "Stemmer", "gguf", "datasets", "faiss", "pandas", "peft", "accelerate", "PIL"):
    sys.modules[name] = None
import retbench.cli.main
import retbench.encoders.dense_encoder
import retbench.encoders.prompt_tokenizer
import retbench.engines.weights
import retbench.pipelines.evaluation.evaluate
import retbench.pipelines.finetuning.train_encoder
import retbench.retrievers.dense_retriever
"""


def test_the_dense_path_imports_without_optional_libraries() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_bm25s_prints_nothing_although_it_is_imported_late() -> None:
    program = (
        "from retbench.cards.model import LexicalSettings\n"
        "from retbench.retrievers.bm25 import BM25Index\n"
        "BM25Index(LexicalSettings(), ['tea', 'sea'])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
sys.argv = ["retbench", *sys.argv[1:]]
from retbench.cli.main import main
main()
"""


def run_without_torch(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)], capture_output=True, text=True, check=False
    )


def test_names_bm25_and_finished_cells_need_no_torch(model: Path, task: Path, out: Path) -> None:
    """torch takes seconds to import; nobody should wait for it to hear of a typo or to see a finished score."""
    typo = run_without_torch("run", "--model", "bm52", "--task", task, "--out", out)
    assert (typo.returncode, "did you mean bm25" in typo.stderr) == (2, True)
    line = ("run", "--model", "bm25", "--model", model, "--task", task, "--method", "mean", "--out", out)
    retbench.evaluate([str(model)], tasks=[str(task)], methods=["mean"], out=out)
    answer = run_without_torch(*line)
    assert answer.returncode == 0, answer.stderr
    assert "tiny · mean · pantry" in answer.stderr
    assert "already done, read from disk" in answer.stderr


def test_the_decoders_that_are_known_without_transformers_are_no_masked_language_models() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    assert not text_config.DECODER_TYPES & set(MASKED)
    assert set(CAUSAL) >= text_config.DECODER_TYPES
