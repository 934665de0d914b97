"""Parameter groups by name, so that they can travel: torch's own groups hold tensors of one process.

A group is a contiguous range of the flat vector, and an optimizer factory is always called with one dict per group,
as ``torch.optim`` takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mizzle.errors import ModelError

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Builds the user's optimizer from torch's parameter groups: ``lambda groups: torch.optim.AdamW(groups, 1e-3)``."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share hyper-parameters.

    Attributes:
        names: names of trainable parameters, in the model's own order.
        options: hyper-parameters of this group that differ from the optimizer's (``{"lr": 1e-4}``).
    """

    names: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The model's trainable parameters by name, tied ones once, under their first name.

    Raises:
        ModelError: there is none; set ``requires_grad`` on what is to be trained.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ModelError("the model has no trainable parameter: set requires_grad=True on those to be trained")
    return found


def one_group(model: torch.nn.Module) -> tuple[ParameterGroup, ...]:
    """All trainable parameters in one group without options."""
    return (ParameterGroup(tuple(trainable(model))),)


def groups_of(model: torch.nn.Module, torch_groups: Iterable[Mapping[str, Any]]) -> tuple[ParameterGroup, ...]:
    """Name the parameters in groups given as ``torch.optim`` takes them.

    Args:
        model: that the parameters belong to.
        torch_groups: dicts with "params" (a parameter or several) and options. Frozen parameters are left out.

    Raises:
        ModelError: a parameter is not the model's, is in two groups, or in none; the message names it.
    """
    names = {id(p): name for name, p in trainable(model).items()}
    all_ids = {id(p) for p in model.parameters()}
    found = []
    for number, group in enumerate(torch_groups):
        given = group["params"]
        members = [given] if isinstance(given, torch.Tensor) else list(given)
        if not all(isinstance(p, torch.Tensor) and id(p) in all_ids for p in members):
            raise ModelError(f"parameter group {number} holds something that is not a parameter of the model")
        chosen = {names[id(p)] for p in members if id(p) in names}
        ordered = tuple(name for name in names.values() if name in chosen)
        found.append(ParameterGroup(ordered, {key: value for key, value in group.items() if key != "params"}))
    check_groups(model, found)
    return tuple(found)


def check_groups(model: torch.nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Every trainable parameter is in exactly one group.

    Raises:
        ModelError: one is in none or in two, or a name is not a trainable parameter.
    """
    known = trainable(model)
    seen: dict[str, int] = {}
    for number, group in enumerate(groups):
        for name in group.names:
            if name not in known:
                raise ModelError(f"parameter group {number} names {name!r}, which is not a trainable parameter")
            if name in seen:
                raise ModelError(f"parameter {name!r} is in groups {seen[name]} and {number}: put it in one")
            seen[name] = number
    missing = [name for name in known if name not in seen]
    if missing:
        raise ModelError(
            f"parameter {missing[0]!r} is trainable but in no parameter group ({len(missing)} such): "
            "add it to a group or set requires_grad=False"
        )
