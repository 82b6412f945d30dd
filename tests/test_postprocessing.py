"""Post-processing: fitted on the corpus only, cached vectors unchanged, results as in the papers."""

from pathlib import Path

import numpy as np
import pytest

from retbench.cards import catalog
from retbench.encoders.postprocessing import Moments, fit_postprocessing
from retbench.errors import UsageError
from retbench.store.shard_store import VectorBlock
from tests.test_run import run_cells, run_command

DRAW = np.random.default_rng(5)
RAW = (DRAW.normal(size=(200, 12)) * np.linspace(1, 4, 12) + 7).astype(np.float32)
VECTORS = RAW / np.linalg.norm(RAW, axis=1, keepdims=True)


def build_blocks() -> list[VectorBlock]:
    return [VectorBlock(rows, VECTORS[rows]) for rows in np.array_split(DRAW.permutation(200), 3)]


def normalize(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


def test_moments_do_not_depend_on_blocks() -> None:
    moments = Moments.compute(build_blocks())
    assert np.allclose(moments.mean, VECTORS.mean(0))
    assert np.allclose(moments.covariance, np.cov(VECTORS.T, bias=True), atol=1e-8)


def test_centring_removes_the_mean() -> None:
    after = fit_postprocessing(catalog.find_method("mean:post=centre"), build_blocks())(VECTORS)
    assert after.dtype == np.float32
    assert np.allclose(after, normalize(VECTORS - VECTORS.mean(0)), atol=1e-5)


def test_dropping_removes_the_main_directions() -> None:
    after = fit_postprocessing(catalog.find_method("mean:post=drop-top,components=2"), build_blocks())(VECTORS)
    centred = VECTORS - VECTORS.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
    assert np.allclose(after, normalize(centred - centred @ directions.T @ directions), atol=1e-5)


@pytest.mark.parametrize("components", [None, 4])
def test_whitening_gives_every_direction_unit_variance(components: int | None) -> None:
    spelling = "mean:post=whiten" + (f",components={components}" if components else "")
    after = fit_postprocessing(catalog.find_method(spelling), build_blocks())(VECTORS)
    centred = VECTORS - VECTORS.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    white = normalize((centred @ directions.T / sizes)[:, :components])
    assert np.allclose(after @ after.T, white @ white.T, atol=1e-4)  # the signs of the directions are arbitrary


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("mean:components=3", "components = 3"),
        ("mean:post=whiten,components=0", "components = 0"),
        ("promptreps-hybrid:post=centre", "it takes no `post`"),
        ("mean:post=center", "did you mean centre"),
    ],
)
def test_an_invalid_combination_is_refused(spelling: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        catalog.find_method(spelling)
    assert message in f"{caught.value.cause} {caught.value.next_step}"


def test_more_directions_than_the_corpus_has_are_refused() -> None:
    few = [VectorBlock(np.arange(5), VECTORS[:5])]
    with pytest.raises(UsageError, match="uses 9 components, but the corpus has only 4"):
        fit_postprocessing(catalog.find_method("mean:post=whiten,components=9"), few)


def test_postprocessing_embeds_nothing_again(model: Path, task: Path, out: Path, own_cache: Path) -> None:
    methods = ["mean", "mean:post=centre", "mean:post=whiten", "mean:post=drop-top,components=3"]
    cells = run_cells(
        "run", "--model", model, "--task", task, "--out", out, *(w for m in methods for w in ("--method", m))
    )
    assert [cell["method"] for cell in cells] == [
        "mean", "mean:post=centre", "mean:post=whiten", "mean:components=3,post=drop-top",
    ]  # fmt: skip
    assert len({cell["settings_id"] for cell in cells}) == 4
    assert len(list((own_cache / "embeddings").rglob("manifest.json"))) == 2
    assert run_command("report", out).exit_code == 0
