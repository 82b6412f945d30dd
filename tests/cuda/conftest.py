"""Tests that depend on the device: `pytest --device=cuda tests/cuda`; without the option the device is the CPU."""

import pytest
import torch


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """The device under test; its results are compared with the CPU in float32."""
    if pytestconfig.getoption("--device") == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs a GPU's memory: pytest --device=cuda tests/cuda")
    return device
