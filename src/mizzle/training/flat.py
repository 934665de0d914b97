"""All trainable parameters in one flat fp32 vector, and the model's tensors as views of it.

Group by group (each padded to ALIGNMENT, so that a chunk of a norm and a slice never straddle two groups), then the
float32 buffers. It never owns the vectors it binds to. How gradients come into one: `gradients.py`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from mizzle.collectives.slices import ALIGNMENT
from mizzle.errors import ModelError
from mizzle.training.groups import ParameterGroup, check_groups, one_group, trainable

PARAMETER_ALIGNMENT = 16
"""Elements (64 bytes): BLAS kernels may give other bits on unaligned memory, and a rank must not depend on that."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor lies in the flat vector.

    Attributes:
        name: of the parameter or buffer.
        shape: of the tensor.
        start: first element.
        stop: after the last element.
        group: number of the parameter group; -1 for a buffer.
    """

    name: str
    shape: torch.Size
    start: int
    stop: int
    group: int

    def view(self, vector: torch.Tensor) -> torch.Tensor:
        """The tensor's place in a flat vector, in its shape."""
        return vector[self.start : self.stop].view(self.shape)


@dataclass(frozen=True, slots=True)
class GroupRange:
    """The elements [start, stop) of a parameter group, its last padding left out."""

    start: int
    stop: int


class FlatParameters:
    """The layout of a model in the flat vector, and the binding of the model's tensors to it.

    Attributes:
        groups: the parameter groups, by name.
        ranges: the range of each group.
        slots: the trainable parameters, in the order of the vector.
        buffer_slots: the float32 buffers, after all parameters.
        num_parameters: elements [0, num_parameters) belong to parameters; a multiple of ALIGNMENT.
        num_elements: M, a multiple of ALIGNMENT.
    """

    def __init__(self, model: torch.nn.Module, groups: Sequence[ParameterGroup] | None = None) -> None:
        """Lay the model out; it is not touched before one of the ``bind`` methods.

        Args:
            model: on the CPU; trainable parameters in float32.
            groups: every trainable parameter in one of them; one group when None.

        Raises:
            ModelError: a parameter cannot be trained here; the message names it and the remedy.
        """
        check_parameters(model)
        self.groups = tuple(groups) if groups is not None else one_group(model)
        check_groups(model, self.groups)
        parameters = trainable(model)
        slots: list[Slot] = []
        ranges = []
        stop = 0
        for number, group in enumerate(self.groups):
            start = stop
            for name in group.names:
                slots.append(_slot(name, parameters[name], stop, number))
                stop = slots[-1].stop
            ranges.append(GroupRange(start, stop))
            stop = _up(stop, ALIGNMENT)
        self.slots = tuple(slots)
        self.ranges = tuple(ranges)
        self.num_parameters = stop
        buffers = []
        for name, buffer in model.named_buffers():
            if buffer.dtype == torch.float32:
                buffers.append(_slot(name, buffer, stop, -1))
                stop = buffers[-1].stop
        self.buffer_slots = tuple(buffers)
        self.num_elements = _up(stop, ALIGNMENT)
        self._parameters = [parameters[slot.name] for slot in self.slots]
        self._buffers = dict(model.named_buffers())
        self._starts = [slot.start for slot in (*self.slots, *self.buffer_slots)]

    def signature(self) -> str:
        """SHA-256 (hex) of names, shapes, groups and dtype: equal on all ranks, and in a state that fits."""
        listed = [(slot.name, list(slot.shape), slot.group, "float32") for slot in (*self.slots, *self.buffer_slots)]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    @property
    def parameters(self) -> tuple[torch.nn.Parameter, ...]:
        """The model's trainable parameters, in the order of `slots`."""
        return tuple(self._parameters)

    def copy_to(self, into: torch.Tensor, start: int = 0) -> None:
        """Write the model's present parameters and float buffers, as far as they lie in a range; padding becomes zero.

        Args:
            into: (n,) fp32, elements [start, start + n) of the flat vector.
            start: of the range.
        """
        into.zero_()
        stop = start + len(into)
        buffers = [self._buffers[slot.name] for slot in self.buffer_slots]
        for slot, tensor in zip((*self.slots, *self.buffer_slots), (*self._parameters, *buffers), strict=True):
            first, last = max(slot.start, start), min(slot.stop, stop)
            if first < last:
                values = tensor.detach().reshape(-1)[first - slot.start : last - slot.start]
                into[first - start : last - start].copy_(values)

    def bind_weights(self, weights: torch.Tensor) -> None:
        """Make every trainable parameter a view of ``weights`` (M,) fp32, whose memory must outlive the model's use."""
        for parameter, view in zip(self._parameters, self.views(weights), strict=True):
            parameter.data = view

    def views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The places of the trainable parameters in ``vector`` (M,) fp32, in the order of `slots`."""
        self._check_vector(vector)
        return [slot.view(vector) for slot in self.slots]

    def padding(self) -> torch.Tensor:
        """(n,) int64, the elements in [0, num_parameters) that belong to no parameter."""
        free = torch.ones(self.num_parameters, dtype=torch.bool)
        for slot in self.slots:
            free[slot.start : slot.stop] = False
        return free.nonzero().view(-1)

    def versions(self) -> list[int]:
        """How often each parameter was written to in place; for `check_unwritten`."""
        return [parameter._version for parameter in self._parameters]  # noqa: SLF001 - torch names it nowhere else

    def check_unwritten(self, versions: Sequence[int]) -> None:
        """Make sure that forward and backward only read parameters: a peer on this host may be reading them as well.

        Args:
            versions: from before.

        Raises:
            ModelError: names the parameter.
        """
        for slot, before, now in zip(self.slots, versions, self.versions(), strict=True):
            if before != now:
                raise ModelError(
                    f"parameter {slot.name!r} was written to during forward or backward, as nn.Embedding(max_norm=...) "
                    "does: only the optimizer may, because ranks share weights; do it to a copy in forward"
                )

    def name_at(self, position: int) -> str:
        """The parameter or buffer at a position of the flat vector, for messages; "padding" between them."""
        slots = (*self.slots, *self.buffer_slots)
        slot = slots[max(0, bisect_right(self._starts, position) - 1)]
        return slot.name if slot.start <= position < slot.stop else "padding"

    def named_tensors(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Copies of parameters and float buffers in ``weights`` (M,), by name."""
        return {slot.name: slot.view(weights).clone() for slot in (*self.slots, *self.buffer_slots)}

    def _check_vector(self, vector: torch.Tensor) -> None:
        described = f"{tuple(vector.shape)} {vector.dtype} at {vector.data_ptr():#x}"
        assert vector.shape == (self.num_elements,), described
        assert vector.dtype == torch.float32, described
        assert vector.data_ptr() % 16 == 0, f"the vector must start at a multiple of 16 bytes: {described}"


def check_parameters(model: torch.nn.Module) -> None:
    """Refuse what cannot be laid out.

    Raises:
        ModelError: names the parameter or buffer and the remedy.
    """
    for name, parameter in model.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise ModelError(f"parameter {name!r} is not initialised yet: run one batch through the model first")
        _check_place(f"parameter {name!r}", parameter)
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ModelError(
                f"parameter {name!r} is {parameter.dtype}, only float32 is trained: use model.float(), with autocast "
                "for 16-bit compute, or set requires_grad=False to freeze it"
            )
    for name, buffer in model.named_buffers():
        _check_place(f"buffer {name!r}", buffer)
    _check_overlap(trainable(model))


def _check_place(what: str, tensor: torch.Tensor) -> None:
    if tensor.is_meta:
        raise ModelError(f"{what} is on the meta device and has no values: use model.to_empty(device='cpu') and init")
    if tensor.device.type != "cpu":
        raise ModelError(f"{what} is on {tensor.device}: give the model on the CPU, model.cpu()")
    if tensor.layout != torch.strided:
        raise ModelError(f"{what} has layout {tensor.layout}: make it dense, .to_dense()")


def _check_overlap(parameters: dict[str, torch.nn.Parameter]) -> None:
    """Tied parameters are one object; two objects over the same memory would come apart."""
    spans = sorted((p.data_ptr(), p.data_ptr() + p.nbytes, name) for name, p in parameters.items() if p.numel())
    for (_, stop, first), (start, _, second) in pairwise(spans):
        if start < stop:
            raise ModelError(
                f"parameters {first!r} and {second!r} share memory without being the same object: tie them by "
                "assigning the same nn.Parameter, or clone one"
            )


def _slot(name: str, tensor: torch.Tensor, after: int, group: int) -> Slot:
    start = _up(after, PARAMETER_ALIGNMENT)
    return Slot(name, tensor.shape, start, start + tensor.numel(), group)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
