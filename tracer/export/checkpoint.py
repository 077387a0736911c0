"""The files of a saved model: weights in shards, config, tokenizer and generation config.

In: a pruned model, its source, and an empty folder. Out: the files, checked by a new process, and
SavedModel with their digests. Weights that a device stores packed are written dense.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import sha256_of
from prunescope.taxonomy.words import significant, whole_sentences
from prunescope.tracer.export.adapter import UnmergedAdapter, write_adapter
from prunescope.tracer.export.checking import Checked, check_saved
from prunescope.tracer.export.holding import CODE_FILE, Holding
from prunescope.tracer.export.packed import write_packed
from prunescope.tracer.model.load import Loaded, load_tokenizer, quiet

SHARD = "4GB"  # of a safetensors file, at most
_ROOM = 1.05  # of the bytes of the weights: config and tokenizer are small


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """What was written, and how it was checked."""

    holding: Holding
    checked: Checked
    weights: dict[str, str]  # sha256 by file
    size: int  # bytes of the weights
    packed: str | None = None  # "": 2:4 weights are there packed, too; else why not; None: no 2:4

    @property
    def record(self) -> dict[str, Any]:
        """The plain values for `pruning.saved` of run.json."""
        return {
            "kind": self.holding.kind,
            "bytes": self.size,
            **asdict(self.checked),
            "weights": dict(self.weights),
            **({} if self.packed is None else {"packed": self.packed == ""}),
        }


def check_target(target: Path, option: str = "--save-model") -> None:
    """Check that a model can be saved in a folder.

    Raises:
        PrunescopeError: It holds something, or is no folder.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise PrunescopeError(
            f"{option} {target.name} is no folder", hint="name a folder that does not exist"
        )
    if target.is_dir() and any(target.iterdir()):
        raise PrunescopeError(
            f"{option}: the folder {target.name} holds something, which is not replaced",
            hint="name a folder that does not exist",
        )


def stored_bytes(model: Any) -> int:
    """Return the bytes of the weights as they are saved: dense, tied ones once."""
    tensors = {id(p): p for p in model.parameters()}
    return sum(p.numel() * p.element_size() for p in tensors.values())


def check_space(target: Path, size: int) -> None:
    """Raise PrunescopeError where the disk has no room for `size` bytes."""
    above = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(above).free
    if free < size * _ROOM:
        raise PrunescopeError(
            f"the model has {significant(size / 1e9)} GB, and {significant(free / 1e9)} GB are "
            f"free for {target.name}",
            hint="name a folder on another disk with --save-model",
        )


def write_checkpoint(
    folder: Path,
    model: Any,
    loaded: Loaded,
    holding: Holding,
    adapter: UnmergedAdapter | None = None,
) -> SavedModel:
    """Write a model into an empty folder, and check it in a new process.

    Args:
        folder: The folder, which exists and is empty.
        model: The pruned model.
        loaded: The dense model that it was made of, whose tokenizer is saved with it.
        holding: The config that holds it.
        adapter: The adapter that its weights are saved without; None: they are saved as they are.

    Returns:
        The digests, and the result of the check.

    Raises:
        PrunescopeError: The new process does not find the same model.
    """
    own = model.config
    model.config = holding.config
    try:
        dense = {name: _dense(tensor) for name, tensor in model.state_dict().items()}
        dense |= adapter.weights if adapter is not None else {}
        packed = any(dense[name] is not tensor for name, tensor in model.state_dict().items())
        with torch.no_grad(), quiet():
            model.save_pretrained(
                folder,
                max_shard_size=SHARD,
                # transformers renames no weights for a class that is none of its own.
                save_original_format=not holding.code,
                **({"state_dict": dense} if packed else {}),
            )
    except (ValueError, StrictDataclassError) as error:
        reason = whole_sentences(str(error).splitlines()[-1])
        raise PrunescopeError(
            f"its config cannot be saved ({reason})",
            hint="no class of transformers takes these sizes: choose another sparsity or method",
        ) from error
    except (OSError, SafetensorError) as error:
        raise PrunescopeError(
            f"the model could not be written ({whole_sentences(str(error))})",
            hint="nothing was saved: make room, or name a folder on another disk",
        ) from error
    finally:
        model.config = own
    if holding.code:
        (folder / CODE_FILE).write_text(holding.code, encoding="utf-8")
    tokenizer = load_tokenizer(loaded)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if adapter is not None:
        write_adapter(folder, adapter, loaded.id)
    checked = check_saved(folder, model, with_code=bool(holding.code), adapter=adapter)
    in_24 = write_packed(folder)
    files = sorted(folder.rglob("*.safetensors"))
    return SavedModel(
        holding=holding,
        checked=checked,
        weights={file.relative_to(folder).as_posix(): sha256_of(file) for file in files},
        size=sum(file.stat().st_size for file in files),
        packed=in_24,
    )


def _dense(tensor: Any) -> Any:
    """Return a tensor itself, or the dense one of a packed 2:4 weight."""
    is_packed = "SparseSemiStructured" in type(getattr(tensor, "data", tensor)).__name__
    return tensor.to_dense() if is_packed else tensor


def base_folder(loaded: Loaded) -> Path | None:
    """Return the folder of the dense model's own card; None if there is none on this machine."""
    if loaded.where is None:
        return None
    if Path(loaded.where).is_dir():
        return Path(loaded.where)
    cached = try_to_load_from_cache(loaded.where, "README.md")
    return Path(cached).parent if isinstance(cached, str) else None
