"""Tiny checkpoints, written by the safetensors library itself."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import struct
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from safetensors.numpy import save_file

from surgery.dtypes import DTYPES
from surgery.header import TensorInfo

pytest_plugins = ["tests.smollm2", "tests.browser", "tests.commands"]


def pytest_configure() -> None:
    """No test, and none of the processes that it starts, uses the decompositions of whoever runs it.

    Examples of Hypothesis have no deadline: how long one takes depends on what else the machine does. Ctrl-C ends
    those processes: a shell without job control starts its background with SIGINT ignored, and they would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["SURGERY_CACHE"] = "off"
    settings.register_profile("surgery", deadline=None)
    settings.load_profile("surgery")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs vLLM or a browser where there is none, except in CI: there such a test must run, or fail."""
    if "CI" in os.environ:
        return
    if item.get_closest_marker("vllm") and find_spec("vllm") is None:
        pytest.skip("vLLM is not installed; `make test-vllm` installs it")
    if item.get_closest_marker("browser") and (find_spec("playwright") is None or find_chromium() is None):
        pytest.skip("Playwright or a Chromium is not installed: `playwright install chromium`, or the system's package")


def find_chromium() -> str | None:
    """A Chromium of the system's, or the one that Playwright has installed for itself."""
    of_system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    own = sorted(Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "~/.cache/ms-playwright")).expanduser().glob(_OWN))
    return of_system or (str(own[-1]) if own else None)


_OWN = "chromium*/chrome-*linux*/*headless?shell"  # below Playwright's directory of browsers; for tests it is enough


Arrays = Mapping[str, NDArray[Any]]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}


def llama_arrays(
    layers: int = 2, width: int = 8, vocabulary: int = 20, seed: int = 0, tied: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Random float32 weights with the names and proportions of a Llama model."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            rows = width // 2 if name in ("k_proj", "v_proj") else width
            shapes[f"{layer}self_attn.{name}.weight"] = (rows, width)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}mlp.{name}.weight"] = (2 * width, width)
        shapes[f"{layer}mlp.down_proj.weight"] = (width, 2 * width)
        shapes[f"{layer}input_layernorm.weight"] = (width,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, width)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def tensor_infos(shapes: Mapping[str, Sequence[int]], dtype: str = "BF16") -> dict[str, TensorInfo]:
    """What the headers of a checkpoint with these shapes would say, in one file."""
    infos: dict[str, TensorInfo] = {}
    start = 8
    for name, shape in shapes.items():
        nbytes = DTYPES[dtype].nbytes(math.prod(shape))
        infos[name] = TensorInfo(name, DTYPES[dtype], tuple(shape), "model.safetensors", start, nbytes)
        start += nbytes
    return infos


def write_checkpoint(directory: Path, arrays: Arrays, shards: int = 1, config: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint directory: one file, or several with an index, and `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    names = list(arrays)
    if shards == 1:
        save_file(dict(arrays), directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map: dict[str, str] = {}
    for i in range(shards):
        part = {name: arrays[name] for name in names[i * len(names) // shards : (i + 1) * len(names) // shards]}
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_raw(path: Path, header: object, body: bytes = b"", length: int | None = None) -> Path:
    """Write a file with any header, bytes or what JSON can express, and any claim of the header's length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return path


class MakeCheckpoint(Protocol):
    """`make_checkpoint("base", layers=4, shards=2)`: a directory below the test's own."""

    def __call__(
        self,
        name: str = ...,
        arrays: Arrays | None = ...,
        shards: int = ...,
        config: Mapping[str, Any] | None = ...,
        **shape: Any,
    ) -> Path: ...


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Writes tiny checkpoints; `shape` goes to `llama_arrays` unless `arrays` are given."""

    def make(
        name: str = "model",
        arrays: Arrays | None = None,
        shards: int = 1,
        config: Mapping[str, Any] | None = None,
        **shape: Any,
    ) -> Path:
        weights = llama_arrays(**shape) if arrays is None else arrays
        return write_checkpoint(tmp_path / name, weights, shards, config)

    return make
