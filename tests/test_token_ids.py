"""Token ids of a corpus: the same in memory and in a file, and the memory of the file is released."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retbench.encoders import token_ids
from retbench.encoders.prompt_tokenizer import TokenizedTexts

TEXTS = [[1, 2, 3], [], [4], [2_000_000_000, 5], [6] * 50]


def build_tokenized_texts(chunk: int) -> TokenizedTexts:
    with token_ids.TokenIdBuffer() as gathered:
        for start in range(0, len(TEXTS), chunk):
            gathered.append(TEXTS[start : start + chunk])
        return TokenizedTexts(gathered.read_all(), gathered.compute_offsets(), 0, 0)


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("limit", [0, 20, 1 << 26])
def test_token_ids_are_the_same_in_memory_and_in_a_file(
    monkeypatch: pytest.MonkeyPatch, chunk: int, limit: int
) -> None:
    monkeypatch.setattr(token_ids, "MAX_BYTES_IN_MEMORY", limit)
    tokenized = build_tokenized_texts(chunk)
    assert [text.tolist() for text in tokenized] == TEXTS
    assert tokenized.lengths.tolist() == [3, 0, 1, 2, 50]
    assert (token_ids.find_mapped_file(tokenized.flat) is not None) == (limit < 4 * 56)
    selection = tokenized.select(np.array([4, 0, 1]))
    assert [text.tolist() for text in selection] == [TEXTS[4], TEXTS[0], []]
    assert selection.flat.flags.writeable


def test_an_empty_buffer_has_no_token_ids() -> None:
    gathered = token_ids.TokenIdBuffer()
    assert (len(gathered.read_all()), gathered.compute_offsets().tolist()) == (0, [0])


def test_the_token_id_file_is_unlinked(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(token_ids, "MAX_BYTES_IN_MEMORY", 0)
    assert len(build_tokenized_texts(2)) == 5
    assert list(own_cache.iterdir()) == []


MANY_TEXTS_PROGRAM = """
import numpy as np
from retbench.encoders import token_ids
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.engines.memory import get_peak_memory_mb

token_ids.MAX_BYTES_IN_MEMORY = 1 << 20
before, buffer = get_peak_memory_mb(), token_ids.TokenIdBuffer()
for chunk in range(400):
    buffer.append([[chunk] * 500] * 200)
tokens = TokenizedTexts(buffer.read_all(), buffer.compute_offsets(), 0, 0)
for start in range(0, 80_000, 2000):
    assert tokens.select(np.arange(start, start + 2000)).flat[-1] == (start + 1999) // 200
print(get_peak_memory_mb() - before)
"""


def test_memory_holds_one_shard_and_not_the_corpus() -> None:
    process = subprocess.run([sys.executable, "-c", MANY_TEXTS_PROGRAM], capture_output=True, text=True, check=True)
    assert float(process.stdout) < 60  # all ids are 160 MB
