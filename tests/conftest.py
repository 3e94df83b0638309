"""Fixtures for every test: one thread, tiny models, fixed seeds."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tests run side by side; two busy pools on two cores are slower than one thread each


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of sample corpora and tokenizer files, which lies outside the project; without it the test skips."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("INTERP_GPT2_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the sample data folder (INTERP_GPT2_DATA); {folder} does not exist")
    return folder
