"""Writes a network as an ordinary checkpoint: sharded safetensors, the parent's config and tokenizer, a manifest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError

from evalkit.errors import first_line
from surgery.companions import companions
from surgery.whole_file import as_json, write_whole
from trainers.card import CARD_FILE, make_card
from trainers.config import Training
from trainers.directory import RunDirectory
from trainers.errors import RunError, TrainingError
from trainers.parent import Parent

MANIFEST = "training.json"
FORMAT = 1
SHARD = "5GB"  # as transformers' own checkpoints
_TEMPLATE = "chat_template.jinja"
_GENERATION = "generation_config.json"
_PACKAGES = ("surgery", "torch", "transformers", "accelerate", "trl")


@dataclass
class Saver:
    """Writes the checkpoints of a run. `data` tells what was learned from, as plain data.

    `chat_template`, where it is given, goes with the checkpoints in place of their parent's.
    """

    directory: RunDirectory
    parent: Parent
    trainer: str
    config: Training
    data: Mapping[str, Any]
    chat_template: str | None = None

    def save(self, step: int, network: Any, weights: Mapping[str, torch.Tensor], figures: Mapping[str, float]) -> Path:
        """Write `checkpoint-STEP`, whole or not at all.

        `weights` are those of `network` by its own names, wherever they lie. Raises TrainingError where one of them is
        not finite, and RunError.
        """
        place = self.directory.checkpoint(step)
        partial = place.with_name(f".{place.name}.partial")
        self.write(partial, network, weights, f"step {step}")
        try:
            (partial / CARD_FILE).write_text(make_card(self.parent, self.trainer, self.config, step), "utf-8")
            write_whole(partial / MANIFEST, as_json(self._manifest(partial, step, figures)))
            shutil.rmtree(place, ignore_errors=True)
            partial.replace(place)
        except OSError as error:
            raise self._unwritable(partial, error) from error
        return place

    def write(self, directory: Path, network: Any, weights: Mapping[str, torch.Tensor], what: str) -> None:
        """Write weights, config and tokenizer into a directory, in place of whatever is there.

        `what` names the weights for messages. Raises TrainingError where one of them is not finite, and RunError.
        """
        known = self.parent.checkpoint.tensors
        tied = getattr(network, "all_tied_weights_keys", None) or {}
        # Where devices share the weights a tied head comes as a tensor of its own.
        own = {name: tensor for name, tensor in weights.items() if name not in tied or name in known}
        cast = self._cast(what, own)
        try:
            shutil.rmtree(directory, ignore_errors=True)
            network.save_pretrained(directory, state_dict=cast, max_shard_size=SHARD)
            self._accompany(directory)
            for shard in directory.glob("*.safetensors"):  # which safetensors lets nobody else read
                shutil.copymode(directory / "config.json", shard)
        except (OSError, SafetensorError) as error:
            raise self._unwritable(directory, error) from error

    def _unwritable(self, directory: Path, error: OSError | SafetensorError) -> RunError:
        shutil.rmtree(directory, ignore_errors=True)
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        return RunError(
            f"cannot write the checkpoint `{directory}`: {reason}; make room and go on with `--resume`"
            + self.last_good()
        )

    def last_good(self) -> str:
        """The end of a message: which checkpoint is the last good one."""
        step = max(self.directory.steps(MANIFEST), default=None)
        if step is None:
            return "; no checkpoint was written before"
        return f"; the last good checkpoint is `{self.directory.checkpoint(step)}`"

    def _cast(self, what: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights as they are stored; each in the dtype that it has in the parent, unless another is asked for."""
        wanted = self.config.save_dtype
        known = self.parent.checkpoint.tensors
        usual = self._usual_dtype() if wanted == "keep" else getattr(torch, wanted)
        done: dict[tuple[int, int], torch.Tensor] = {}  # tied weights stay one tensor, and are saved once
        result = {}
        for name, tensor in weights.items():
            if not tensor.is_floating_point():
                result[name] = tensor.contiguous()
                continue
            info = known.get(name) if wanted == "keep" else None
            dtype = usual if info is None or not info.dtype.arithmetic else info.dtype.torch
            key = (tensor.data_ptr(), tensor.numel())
            if key not in done:
                done[key] = tensor.detach().to("cpu", dtype).contiguous()
                if not bool(done[key].isfinite().all()):
                    stored = str(dtype).removeprefix("torch.")
                    raise TrainingError(
                        f"{what}: `{name}` holds NaN or infinity as {stored}; lower the learning rate"
                        + self.last_good()
                    )
            result[name] = done[key]
        return result

    def _usual_dtype(self) -> torch.dtype:
        """The dtype that most of the parent's elements have."""
        counts: dict[str, int] = {}
        for info in self.parent.checkpoint.tensors.values():
            if info.dtype.arithmetic:
                counts[info.dtype.name] = counts.get(info.dtype.name, 0) + info.nbytes
        most = max(counts, key=lambda name: counts[name])
        return next(info.dtype.torch for info in self.parent.checkpoint.tensors.values() if info.dtype.name == most)

    def _accompany(self, directory: Path) -> None:
        """Config, tokenizer and whatever else goes with the weights, as the parent has them."""
        (directory / _GENERATION).unlink(missing_ok=True)
        dtype = None if self.config.save_dtype == "keep" else self.config.save_dtype
        for companion in companions(self.parent.checkpoint, self.parent.checkpoint, dtype):
            path = directory / companion.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(companion.read())
        if self.chat_template is not None:
            (directory / _TEMPLATE).write_text(self.chat_template, "utf-8")  # comes before a template elsewhere

    def _manifest(self, directory: Path, step: int, figures: Mapping[str, float]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "trainer": self.trainer,
            "step": step,
            "figures": dict(figures),
            "config": self.config.model_dump(mode="json", by_alias=True),
            "parent": self.parent.json(),
            "data": dict(self.data),
            "versions": versions(),
            "files": digests(directory),
        }


def digests(directory: Path) -> dict[str, str]:
    """The BLAKE3 digest of each file of a directory, by its path in it."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        path.relative_to(directory).as_posix(): blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        for path in files
    }


def versions() -> dict[str, str]:
    """The packages that a run depends on, and their versions."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that a trainer made. Raises RunError."""
    try:
        content = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read `{os.fspath(directory / MANIFEST)}`: {error}") from error
    assert isinstance(content, dict)
    return content
