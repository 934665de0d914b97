"""The model's buffers (batch-norm statistics and the like) across shards.

Every shard starts an iteration from the same values. Float32 buffers travel behind the parameters and become the mean
over the shards that had rows; one that no shard changed keeps its exact value. Others (counters) take the value of the
lowest such shard. So the result depends on V, not on N; it differs from one process seeing the whole batch, as in DDP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from mizzle.errors import ModelError
from mizzle.training.flat import FlatParameters


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

    Float buffers live in memory of their own, not in the weights: forward writes to them while peers still read.
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
            view = self._values[slot.start - self._range.start : slot.stop - self._range.start].view(slot.shape)
            view.copy_(home.value.detach())
            home.value = view
            home.put_back()
        self._start = [home.value.clone() for home in self._others]

    def begin(self, weights: torch.Tensor) -> None:
        """Give the model the values that every shard starts from: floats of ``weights`` (M,), and the others."""
        self._values.copy_(weights[self._range])
        for home, start in zip(self._others, self._start, strict=True):
            home.value.copy_(start)
        for home in (*self._floats, *self._others):
            home.put_back()

    def end(self, weights: torch.Tensor, contribution: torch.Tensor) -> tuple[set[int], dict[int, bytes]]:
        """Collect what a shard's forward made of the buffers.

        Args:
            weights: (M,) with the values at the start.
            contribution: (M,) fp32; the float buffers are written to its end.

        Returns:
            The numbers of the float buffers that changed, and the bytes of the others that did.
        """
        for home in (*self._floats, *self._others):
            home.take()
        contribution[self._range].copy_(self._values)
        changed = {
            number
            for number, (slot, home) in enumerate(zip(self._slots, self._floats, strict=True))
            if not torch.equal(home.value, slot.view(weights))
        }
        others = {
            number: _to_bytes(home.value)
            for number, (home, start) in enumerate(zip(self._others, self._start, strict=True))
            if not torch.equal(home.value, start)
        }
        return changed, others

    def adopt(self, others: Mapping[int, bytes]) -> None:
        """Take the others' new values from the lowest shard, for the next iteration."""
        for number, raw in others.items():
            start = self._start[number]
            start.copy_(torch.frombuffer(bytearray(raw), dtype=start.dtype).view(start.shape))

    def adopt_named(self, others: Mapping[str, torch.Tensor]) -> None:
        """Take the others' values from a state."""
        for home, start in zip(self._others, self._start, strict=True):
            start.copy_(others[home.name])

    def named_others(self) -> dict[str, torch.Tensor]:
        """Copies of the buffers that are not in the vector, by name."""
        return {home.name: start.clone() for home, start in zip(self._others, self._start, strict=True)}

    def copy_changed(self, changed: Iterable[int], mean: torch.Tensor, weights: torch.Tensor, start: int) -> None:
        """Write the means of the changed float buffers to the weights, where a part of the vector holds them.

        Args:
            changed: numbers of float buffers that some shard changed.
            mean: (length,) fp32, elements [start, start + length) of the vector.
            weights: (M,) fp32.
            start: of ``mean`` in the vector.
        """
        for number in changed:
            first = max(self._slots[number].start, start)
            last = min(self._slots[number].stop, start + len(mean))
            if first < last:
                weights[first:last].copy_(mean[first - start : last - start])


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
