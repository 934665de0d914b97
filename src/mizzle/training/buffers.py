"""The model's buffers (batch-norm statistics and the like) across shards.

Every shard starts an iteration from the same values. Float32 buffers travel behind the parameters and become the mean
over the shards that had rows; one that no shard changed keeps its exact value, whatever the wire rounds. Others
(counters) take the value of the lowest such shard. So the result depends on V, not on N; it differs from one process
seeing the whole batch, as in DDP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from mizzle.errors import ModelError
from mizzle.training.flat import FlatParameters, Slot


@dataclass(slots=True)
class _Home:
    """One buffer and everywhere it is registered (a tied buffer at several places)."""

    name: str
    places: list[tuple[torch.nn.Module, str]]
    value: torch.Tensor

    def put_back(self) -> None:
        """Let the modules use our tensor, whatever they assigned."""
        for module, key in self.places:
            setattr(module, key, self.value)

    def take(self) -> None:
        """Fetch the value if the module assigned a new tensor instead of writing in place."""
        module, key = self.places[0]
        present = getattr(module, key)
        if present is self.value:
            return
        if present is None or present.shape != self.value.shape or present.dtype != self.value.dtype:
            raise ModelError(f"buffer {self.name!r} changed its shape or dtype during forward: keep both fixed")
        self.value.copy_(present.detach())


class ModelBuffers:
    """The buffers of one rank's model; `begin` and `end` enclose the forward of each shard.

    All of them live in memory of their own, not in the weights: forward writes to them while peers still read.
    """

    def __init__(self, model: torch.nn.Module, flat: FlatParameters) -> None:
        """Rebind the float buffers of ``model`` to a private vector, with their present values."""
        self._slots = flat.buffer_slots
        self._range = slice(flat.num_parameters, flat.num_elements)
        self._values = torch.zeros(flat.num_elements - flat.num_parameters)
        homes = _homes(model)
        by_name = {home.name: home for home in homes}
        self._floats = [by_name.pop(slot.name) for slot in self._slots]
        self._others = list(by_name.values())
        for slot, home in zip(self._slots, self._floats, strict=True):
            view = self._of(slot, self._values).view(slot.shape)
            view.copy_(home.value.detach())
            home.value = view
            home.put_back()
        self._float_start = self._values.clone()
        self._start = [home.value.clone() for home in self._others]

    def begin(self) -> None:
        """Give the model the values that every shard starts from."""
        self._values.copy_(self._float_start)
        for home, start in zip(self._others, self._start, strict=True):
            home.value.copy_(start)
        for home in (*self._floats, *self._others):
            home.put_back()

    def end(self, contribution: torch.Tensor) -> tuple[set[int], dict[int, bytes]]:
        """Collect what a shard's forward made of the buffers.

        Args:
            contribution: (M,) fp32; the float buffers are written to its end.

        Returns:
            The numbers of the float buffers that changed, and the bytes of the others that did.
        """
        for home in (*self._floats, *self._others):
            home.take()
        contribution[self._range].copy_(self._values)
        changed = {
            number
            for number, slot in enumerate(self._slots)
            if not torch.equal(self._of(slot, self._values), self._of(slot, self._float_start))
        }
        others = {
            number: _to_bytes(home.value)
            for number, (home, start) in enumerate(zip(self._others, self._start, strict=True))
            if not torch.equal(home.value, start)
        }
        return changed, others

    def adopt(self, changed: Iterable[int], weights: torch.Tensor, others: Mapping[int, bytes]) -> None:
        """Take the new values, for the next iteration.

        Args:
            changed: numbers of float buffers that some shard changed.
            weights: (M,) fp32, which has their means.
            others: from the lowest shard.
        """
        for number in changed:
            slot = self._slots[number]
            self._of(slot, self._float_start).copy_(weights[slot.start : slot.stop])
        for number, raw in others.items():
            start = self._start[number]
            start.copy_(torch.frombuffer(bytearray(raw), dtype=start.dtype).view(start.shape))

    def adopt_named(self, named: Mapping[str, torch.Tensor]) -> None:
        """Take the values of `named` from a state."""
        for home, start in self._starts():
            start.copy_(named[home.name])

    def named(self) -> dict[str, torch.Tensor]:
        """Copies of all buffers as every shard starts from them, by name."""
        return {home.name: start.clone() for home, start in self._starts()}

    def copy_changed(self, changed: Iterable[int], mean: torch.Tensor, into: torch.Tensor, start: int) -> None:
        """Write the means of the changed float buffers to the weights, where a part of the vector holds them.

        Args:
            changed: numbers of float buffers that some shard changed.
            mean: (length,) fp32, elements [start, start + length) of the vector.
            into: (length,) fp32, the same elements of the weights.
            start: of both in the vector.
        """
        for number in changed:
            first = max(self._slots[number].start, start)
            last = min(self._slots[number].stop, start + len(mean))
            if first < last:
                into[first - start : last - start].copy_(mean[first - start : last - start])

    def _of(self, slot: Slot, values: torch.Tensor) -> torch.Tensor:
        """A float buffer's place in a vector of all of them."""
        return values[slot.start - self._range.start : slot.stop - self._range.start]

    def _starts(self) -> list[tuple[_Home, torch.Tensor]]:
        floats = [self._of(slot, self._float_start).view(slot.shape) for slot in self._slots]
        return list(zip((*self._floats, *self._others), (*floats, *self._start), strict=True))


def _homes(model: torch.nn.Module) -> list[_Home]:
    """All buffers, in the order and under the names of ``named_buffers``."""
    homes: dict[int, _Home] = {}
    for prefix, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{key}" if prefix else key
            homes.setdefault(id(buffer), _Home(name, [], buffer)).places.append((module, key))
    return list(homes.values())


def _to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
