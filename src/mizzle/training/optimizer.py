"""The user's ``torch.optim`` optimizer over views of the flat vector: of the owned ranges, or of the whole.

Elementwise optimizers give the same bits on any cut, so each rank keeps only the state of its ranges (ZeRO stage 1,
Rajbhandari et al. 2020). Any other runs on every rank over whole parameters, from gathered gradients.
Unlike in plain PyTorch, a parameter that got no gradient has a zero one: weight decay and momentum still act on it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from mizzle.collectives.slices import Slice
from mizzle.errors import ModelError
from mizzle.training.flat import FlatParameters
from mizzle.training.groups import OptimizerFactory, ParameterGroup

logger = logging.getLogger(__name__)

ELEMENTWISE = frozenset({
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad,
    torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam, torch.optim.ASGD,
    torch.optim.Rprop,
})  # fmt: skip
"""Known to treat every element by itself. Exactly these classes: a subclass may do something else."""

_PREFIX = "optimizer"

Scalar = float | int | bool | None


@dataclass(frozen=True, slots=True)
class Place:
    """Some weights that the optimizer sees as one parameter.

    Attributes:
        weights: fp32, of any shape; what is updated.
        at: where their gradient begins in the vector given to `FlatOptimizer.step`.
    """

    weights: torch.Tensor
    at: int


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is kept as one in a state.

    Attributes:
        parameters: of torch's optimizer, at least one.
        span: the range of the flat vector that they are cut from, or None if they are whole.
    """

    parameters: list[torch.nn.Parameter]
    span: Slice | None

    def is_cut(self, value: torch.Tensor) -> bool:
        """Whether a tensor of the state, seen at one of the parameters, has an element for each of its elements."""
        return self.span is not None and value.dim() > 0


class FlatOptimizer:
    """An optimizer whose parameters are places of a flat vector of weights, group by group.

    Args:
        factory: the user's.
        groups: names and options.
        places: per group the places it updates, at least one, be it empty: the same groups on every rank.
        spans: for each group the range of the flat vector that its places are cut from; None: places are whole.
    """

    def __init__(
        self, factory: OptimizerFactory, groups: Sequence[ParameterGroup], places: Sequence[Sequence[Place]],
        spans: Sequence[Slice] | None = None,
    ) -> None:  # fmt: skip
        """Build the optimizer over the places."""
        self._places = [place for group in places for place in group]
        members = [[torch.nn.Parameter(place.weights) for place in group] for group in places]
        self._parameters = [parameter for group in members for parameter in group]
        self._units = (
            [_Unit([parameter], None) for parameter in self._parameters] if spans is None
            else [_Unit(group, span) for group, span in zip(members, spans, strict=True)]
        )  # fmt: skip
        self._optimizer = build(factory, groups, members)

    @classmethod
    def sharded(
        cls, factory: OptimizerFactory, flat: FlatParameters, owned: Sequence[Slice], weights: Sequence[torch.Tensor]
    ) -> FlatOptimizer:
        """Over the parts of every group that lie in some ranges; an empty tensor where there is none.

        Args:
            factory: the user's.
            flat: layout of the model.
            owned: ranges of the flat vector, ascending; `step` takes their gradients one behind the other.
            weights: of every range, (len(range),) fp32.
        """
        places: list[list[Place]] = [[] for _ in flat.ranges]
        at = 0
        for own, values in zip(owned, weights, strict=True):
            for group, whole in zip(places, flat.ranges, strict=True):
                first, last = max(whole.start, own.start), min(whole.stop, own.stop)
                if first < last:
                    group.append(Place(values[first - own.start : last - own.start], at + first - own.start))
            at += len(own)
        spans = [Slice(whole.start, whole.stop) for whole in flat.ranges]
        return cls(factory, flat.groups, [group or [Place(torch.empty(0), 0)] for group in places], spans)

    @classmethod
    def whole(cls, factory: OptimizerFactory, flat: FlatParameters, weights: torch.Tensor) -> FlatOptimizer:
        """Over every parameter, in its shape; ``weights`` are (M,) fp32."""
        places = [
            [Place(slot.view(weights), slot.start) for slot in flat.slots if slot.group == number]
            for number in range(len(flat.groups))
        ]
        return cls(factory, flat.groups, places)

    @property
    def state_bytes(self) -> int:
        """Memory that its state takes now: none before the first step."""
        return sum(tensor.nbytes for tensor in chain.from_iterable(self.state()[0].values()))

    def set_hyperparameters(self, hyper: Sequence[Mapping[str, Any]]) -> None:
        """Set hyper-parameters of the groups, as the driver planned them; nothing when ``hyper`` is empty.

        Raises:
            ModelError: the plan is for other groups, or names something that the optimizer does not have.
        """
        if hyper and len(hyper) != len(self._optimizer.param_groups):
            raise ModelError(f"hyper-parameters for {len(hyper)} groups, not {len(self._optimizer.param_groups)}")
        for number, (group, values) in enumerate(zip(self._optimizer.param_groups, hyper, strict=False)):
            for key, value in values.items():
                if key not in group or key == "params":
                    raise ModelError(f"parameter group {number} has no hyper-parameter {key!r}")
                group[key] = tuple(value) if isinstance(group[key], tuple) else value

    def step(self, gradient: torch.Tensor) -> None:
        """Update the weights from the mean gradient, (n,) fp32, that the places count in. It may be written to."""
        for place, parameter in zip(self._places, self._parameters, strict=True):
            parameter.grad = gradient[place.at : place.at + parameter.numel()].view(parameter.shape)
        self._optimizer.step()

    def state(self) -> tuple[dict[str, list[torch.Tensor]], dict[str, Scalar]]:
        """All state, by "optimizer.<group>.<name>", or place instead of group if places are whole.

        Returns:
            Tensors (not copied), those of a group's places in their order, and plain numbers. Steps and the like, which
            all places of a group have alike, come once.

        Raises:
            ModelError: the optimizer keeps something else; the message names it.
        """
        tensors: dict[str, list[torch.Tensor]] = {}
        scalars: dict[str, Scalar] = {}
        for number, unit in enumerate(self._units):
            for name, value in self._optimizer.state.get(unit.parameters[0], {}).items():
                key = f"{_PREFIX}.{number}.{name}"
                if isinstance(value, torch.Tensor):
                    alike = unit.parameters if unit.is_cut(value) else unit.parameters[:1]
                    tensors[key] = [self._optimizer.state[parameter][name] for parameter in alike]
                elif value is None or isinstance(value, (bool, int, float)):
                    scalars[key] = value
                else:
                    raise ModelError(
                        f"{type(self._optimizer).__name__} keeps {name!r} as {type(value).__name__}, which cannot be "
                        "saved: only tensors and numbers can"
                    )
        return tensors, scalars

    def spans(self, tensors: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, Slice]:
        """For every one of the tensors of `state` that is cut, the range of the flat vector that it is cut from."""
        return {
            key: unit.span
            for key, (first, *_) in tensors.items()
            if (unit := self._units[int(key.split(".")[1])]).span is not None and unit.is_cut(first)
        }

    def load_state(self, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Scalar]) -> None:
        """Take what `state` gave, bit for bit; other keys are ignored, state that is not given is dropped.

        Args:
            tensors: those of a group's places end to end.
            scalars: as given.
        """
        self._optimizer.state.clear()
        for key, value in (*tensors.items(), *scalars.items()):
            prefix, _, rest = key.partition(".")
            if prefix == _PREFIX:
                number, _, name = rest.partition(".")
                self._load(self._units[int(number)], name, value)

    def _load(self, unit: _Unit, name: str, value: torch.Tensor | Scalar) -> None:
        parts: Sequence[torch.Tensor | Scalar] = [value] * len(unit.parameters)
        if isinstance(value, torch.Tensor) and unit.is_cut(value):
            parts = torch.split(value, [parameter.numel() for parameter in unit.parameters])
        for parameter, part in zip(unit.parameters, parts, strict=True):
            self._optimizer.state[parameter][name] = part.clone() if isinstance(part, torch.Tensor) else part


def build(
    factory: OptimizerFactory, groups: Sequence[ParameterGroup], members: Sequence[Sequence[torch.nn.Parameter]]
) -> torch.optim.Optimizer:
    """Call the user's factory and check that it kept our groups.

    Raises:
        ModelError: the factory failed, regrouped the parameters, or its optimizer cannot work here.
    """
    given = [{**group.options, "params": list(params)} for group, params in zip(groups, members, strict=True)]
    wanted = [[id(p) for p in group["params"]] for group in given]
    try:
        optimizer = factory(given)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"the optimizer could not be built: {error}. It is called with a list of torch parameter groups and must "
            "hand them on as they are: lambda groups: torch.optim.AdamW(groups, lr=1e-3)"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ModelError(f"the optimizer factory returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
    _check_usable(optimizer)
    if [[id(p) for p in group["params"]] for group in optimizer.param_groups] != wanted:
        raise ModelError(
            "the optimizer factory chose or regrouped parameters itself: it sees ranges of a flat vector, so give the "
            "groups beforehand as parameter_groups"
        )
    for number, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key != "params" and isinstance(value, torch.Tensor):
                raise ModelError(f"hyper-parameter {key!r} of parameter group {number} is a tensor: give a number")
    return optimizer


def probe(factory: OptimizerFactory, flat: FlatParameters) -> torch.optim.Optimizer:
    """The optimizer over parameters without memory: to learn its class and hyper-parameters. Cheap on any model."""
    members = [
        [torch.nn.Parameter(torch.empty(slot.shape, device="meta")) for slot in flat.slots if slot.group == number]
        for number in range(len(flat.groups))
    ]
    return build(factory, flat.groups, members)


def is_elementwise(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it may run on slices; says so in the log when not.

    Fused CPU kernels may not: they round the last few elements of a tensor in another way than those before (seen with
    AdamW in torch 2.13), so their bits depend on where the vector is cut.
    """
    fused = any(group.get("fused") for group in optimizer.param_groups)
    known = type(optimizer) in ELEMENTWISE and not fused
    if not known:
        logger.info(
            "optimizer=%s%s is not known to be elementwise: it runs unsharded on every rank, from gathered gradients",
            type(optimizer).__name__,
            " (fused)" if fused else "",
        )
    return known


def _check_usable(optimizer: torch.optim.Optimizer) -> None:
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ModelError("SparseAdam needs sparse gradients, which are summed as dense here: use Adam")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ModelError(f"{name} evaluates the loss in its step (closure), which no rank can do alone: use Adam")
