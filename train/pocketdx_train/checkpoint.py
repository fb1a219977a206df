"""Training state without pickle: tensors in safetensors, all else as JSON in the same file's header.

Loading a pickle runs whatever code it carries. A training state is tensors, numbers, texts, lists and dictionaries;
those need no pickle.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load, save

from pocketdx_runtime.files import OutputError, write_atomically
from pocketdx_train.errors import CheckpointError

_STATE = "pocketdx.state"


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning's plug for how a checkpoint is written and read."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Write a checkpoint, aside and then renamed, so that a kill leaves the one before it whole."""
        del storage_options
        save_state(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote."""
        del map_location, weights_only
        return load_state(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, texts, booleans and None to one file.

    Raises:
        CheckpointError: a value is of another type, or the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _flatten(state, tensors)
    try:
        write_atomically(path, save(tensors, metadata={_STATE: json.dumps(structure)}), overwrite=True)
    except (OutputError, OSError) as problem:
        raise CheckpointError(f"{path}: cannot be written ({problem}); make room and go on with --resume") from problem


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        # Read, not mapped as `safe_open` does: the tensors go on to be trained, and must not hang on the file.
        content = path.read_bytes()
        tensors = load(content)
        end = 8 + int.from_bytes(content[:8], "little")
        state = _restore(json.loads(json.loads(content[8:end])["__metadata__"][_STATE]), tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as problem:
        raise CheckpointError(
            f"{path}: not a whole checkpoint ({problem}); start over with --force, or copy it again"
        ) from problem
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint of PocketDx")
    return state


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON for `value`: scalars stand for themselves, all else is a list that starts with its kind."""
    if value is None or isinstance(value, bool | int | float | str):
        # Subclasses (an enum, a numpy float) would come back as something else.
        return value if type(value) in {type(None), bool, int, float, str} else _plain(value)
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        # A copy: safetensors refuses tensors that share memory, and keeps no memory format. That is noted: state that
        # lies otherwise in memory than its weights may be computed on by other kernels than before.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return ["tensor", name, *(["channels_last"] if _is_channels_last(value) else [])]
    if isinstance(value, dict):
        return ["dict", [[_flatten(k, tensors), _flatten(v, tensors)] for k, v in value.items()]]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_flatten(v, tensors) for v in value]]
    raise CheckpointError(f"a checkpoint cannot hold a {type(value).__name__}")


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _plain(value: Any) -> Any:
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def _restore(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content, *memory_format = value
    if kind == "tensor":
        tensor = tensors[content]
        return tensor.contiguous(memory_format=torch.channels_last) if memory_format else tensor
    if kind == "dict":
        return {_restore(k, tensors): _restore(v, tensors) for k, v in content}
    restored = [_restore(v, tensors) for v in content]
    return restored if kind == "list" else tuple(restored)
