"""What every test stands on: a cache folder of its own, and real speech where there is some."""

import os
from pathlib import Path

import pytest
import torch

pytest_plugins = ["object_server"]

# Threads that wait for each other inside one small operation stall for as long as another process holds a core.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees what another learnt of a file."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ENCODEONCE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real speech that ENCODEONCE_TEST_DATA points to."""
    folder = os.environ.get("ENCODEONCE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ENCODEONCE_TEST_DATA names no folder of real speech")
    return Path(folder)
