"""Fetches checkpoints from the Hugging Face hub, or from its cache."""

from __future__ import annotations

import re
from pathlib import Path

from surgery.errors import CheckpointError

# Weights, and what loads them: config, tokenizer, chat template, processor, code, licence and model card.
FETCHED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.py", "*.jinja", "*.tiktoken", "LICENSE*", "README.md"]
# Subdirectories hold other formats or training states; `consolidated*` repeats the weights in Mistral's format.
IGNORED = ["*/*", "consolidated*", "adapter_model.safetensors"]
ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]

_HUB_ID = re.compile(r"(?P<id>(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|json|ya?ml)$")


def parse_hub_id(source: str) -> tuple[str, str | None] | None:
    """Split `org/name[@revision]`; None for anything that is no hub id, or is more likely a path.

    `models/sft` where a directory `models` exists, one word, and whatever ends like a file, are mistyped paths; a
    revision says that the hub is meant, as in `gpt2@main` (some old repositories belong to no organisation).
    """
    match = _HUB_ID.fullmatch(source)
    if match is None or _FILE.search(match["id"]):
        return None
    if match["revision"] is None and Path(source).parent.is_dir():
        return None
    return match["id"], match["revision"]


def fetch(repo_id: str, revision: str | None, *, adapter: bool = False) -> tuple[Path, str | None]:
    """Directory of the repository's files, downloaded where the cache lacks them, and its commit.

    With `adapter` those are the files of an adapter, else of a model.
    `HF_HUB_OFFLINE`, `HF_HOME` and the rest of the hub's settings apply. Raises CheckpointError.
    """
    from huggingface_hub import errors, snapshot_download

    name = f"{repo_id}@{revision}" if revision else repo_id
    wanted, ignored = (ADAPTER, ["*/*"]) if adapter else (FETCHED, IGNORED)
    try:
        path = Path(snapshot_download(repo_id, revision=revision, allow_patterns=wanted, ignore_patterns=ignored))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"`{name}` is gated: accept its terms at https://huggingface.co/{repo_id}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"`{name}` is neither a path here nor a repository on the hub that you may see; "
            "check the spelling, or `hf auth login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"the hub's `{repo_id}` has no revision `{revision}`; name a branch, tag or commit"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"`{name}` is neither a path here nor in the hub's cache, and the hub cannot be reached "
            "(or `HF_HUB_OFFLINE` is set); check the path, or go online"
        ) from error
    except Exception as error:  # the client lets its transport's errors through, whose types change with its version
        raise CheckpointError(f"`{name}` could not be fetched from the hub: {type(error).__name__}: {error}") from error
    return path, path.name if _COMMIT.fullmatch(path.name) else None
