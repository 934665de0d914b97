"""From a model to what a checkpoint says of it, and from a checkpoint back to the model's ``state_dict()``."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch

from mizzle.errors import CheckpointError, ConfigError, ModelError
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.flat import FlatParameters
from mizzle.training.manifest import WEIGHTS, Manifest, Parameter
from mizzle.training.state import PackedState, unpack_state


def describe(model: torch.nn.Module, flat: FlatParameters) -> tuple[tuple[Parameter, ...], PackedState | None]:
    """Where every entry of the model's ``state_dict()`` will lie in a checkpoint.

    Args:
        model: not bound to any vector yet, or bound.
        flat: its layout.

    Returns:
        For `Manifest.parameters`; and the parameters that are not trained, for `CheckpointStore.write_shared`, if there
        are any: no state of a rank has them. It is read when it is written, so the model's own changes are in it.

    Raises:
        ModelError: names an entry that is no parameter and no buffer.
    """
    trained = {id(one): slot for one, slot in zip(flat.parameters, flat.slots, strict=True)}
    buffers = {id(one): name for name, one in model.named_buffers()}
    names = {id(one): name for name, one in model.named_parameters()}
    found = []
    frozen: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in trained:
            found.append(Parameter(name, tuple(value.shape), WEIGHTS, trained[id(value)].start))
        elif id(value) in buffers:
            found.append(Parameter(name, tuple(value.shape), f"buffer.{buffers[id(value)]}"))
        elif id(value) in names:
            frozen[f"frozen.{names[id(value)]}"] = value
            found.append(Parameter(name, tuple(value.shape), f"frozen.{names[id(value)]}"))
        else:
            raise ModelError(
                f"{name!r} of the model's state_dict() is no parameter and no buffer, so a checkpoint cannot hold it: "
                "register it as a buffer"
            )
    return tuple(found), PackedState(frozen, {}) if frozen else None


def adopt_frozen(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give the parameters that are not trained the values that they have in a checkpoint, in place.

    Args:
        model: that `describe` described.
        tensors: that `describe` packed.

    Raises:
        ConfigError: they are of other parameters, or of another dtype: names one. Nothing was changed.
    """
    kept = {id(value) for value in model.state_dict(keep_vars=True).values()}
    parameters = {
        f"frozen.{name}": one
        for name, one in model.named_parameters()
        if id(one) in kept and not one.requires_grad
    }  # fmt: skip
    for name in sorted(tensors.keys() | parameters.keys()):
        there, here = (_kind(found.get(name)) for found in (tensors, parameters))
        if there != here:
            raise ConfigError(
                f"{name.removeprefix('frozen.')!r}, which is not trained, is {there} in the checkpoint and {here} in "
                "the model: give the model that was saved, or this training a folder of its own"
            )
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)


def _kind(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def written_with() -> dict[str, str]:
    """For `Manifest.written_with`: what the bits of a run that goes on depend on, for people."""
    return {
        "mizzle": version("mizzle"),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def merged(store: CheckpointStore, manifest: Manifest) -> dict[str, torch.Tensor]:
    """The model's ``state_dict()`` in a checkpoint: tensors of their own, tied ones too.

    Needs memory for the weights twice, and for one part.

    Raises:
        CheckpointError: a file is damaged, or the checkpoint lacks a tensor.
    """
    weights = torch.empty(manifest.num_elements)
    others: dict[str, torch.Tensor] = {}
    for part in manifest.files:
        store.check_part(manifest.name, part)
        tensors, _ = unpack_state(store.read_part(manifest.name, part))
        at = 0
        for start, stop in part.owned:
            weights[start:stop] = tensors[WEIGHTS][at : at + stop - start]
            at += stop - start
        wanted = {one.tensor for one in manifest.parameters} - {WEIGHTS} - others.keys()
        others |= {name: tensors[name].clone() for name in wanted & tensors.keys()}
    found = {}
    for one in manifest.parameters:
        stop = one.start + math.prod(one.shape)
        value = weights[one.start : stop].view(one.shape) if one.tensor == WEIGHTS else others.get(one.tensor)
        if value is None or value.shape != one.shape:
            raise CheckpointError(f"{store.path}/{manifest.name}: no file holds {one.name!r} of shape {one.shape}")
        found[one.name] = value.clone()
    return found


def export(store: CheckpointStore, manifest: Manifest, out: Path) -> int:
    """Write the model's ``state_dict()`` as a safetensors file, whole or not at all.

    Returns:
        The number of tensors.

    Raises:
        CheckpointError: the checkpoint is damaged, or the file cannot be written.
    """
    tensors = merged(store, manifest)
    half = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        safetensors.torch.save_file(tensors, half, metadata={"format": "pt"})
        half.replace(out)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{out} cannot be written: {error}") from error
    finally:
        half.unlink(missing_ok=True)
    return len(tensors)
