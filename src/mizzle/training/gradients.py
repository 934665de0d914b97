"""Gradients land in the flat vector that travels: each is copied to its place the moment backward has made it.

A parameter without a ``grad`` is handed the tensor that backward made, unread; one with a ``grad`` is added to. So
nothing is set to zero before, and every gradient is written twice, not three times: what DDP's buckets do without
``gradient_as_bucket_view`` (Li et al., VLDB 2020, section 4.2, https://arxiv.org/abs/2006.15704).
"""

from __future__ import annotations

from functools import partial

import torch

from mizzle.errors import ModelError
from mizzle.training.flat import FlatParameters


class LandingGradients:
    """Binds the gradients of a model to flat vectors, one after the other.

    The first gradient of a parameter after `begin` is copied into the vector, and its ``grad`` becomes a view of it;
    further ones are added there by torch itself. Hooks registered later find them in place.

    Args:
        flat: layout of the model, whose parameters get hooks; `close` takes them away.
    """

    def __init__(self, flat: FlatParameters) -> None:
        """See the class."""
        self._flat = flat
        self._views: list[torch.Tensor] = []
        self._views_of: dict[int, list[torch.Tensor]] = {}
        self._landed = [False] * len(flat.slots)
        self._padding = flat.padding()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))  # type: ignore[no-untyped-call]
            for number, parameter in enumerate(flat.parameters)
        ]

    def begin(self, into: torch.Tensor) -> None:
        """The gradients that backward makes from now on go into ``into`` (M,) fp32; what it holds does not matter."""
        views = self._views_of.get(into.data_ptr())
        if views is None:  # made once a vector: they keep its memory, so that its address stays its own
            views = self._views_of[into.data_ptr()] = self._flat.views(into)
        self._views = views
        self._landed = [False] * len(views)
        into.index_fill_(0, self._padding, 0.0)
        for parameter in self._flat.parameters:
            parameter.grad = None

    def end(self) -> None:
        """Backward is over: parameters that got no gradient have a zero one.

        Raises:
            ModelError: the model or loss replaced a ``grad``; the message names the parameter.
        """
        for number, (parameter, view) in enumerate(zip(self._flat.parameters, self._views, strict=True)):
            if self._landed[number]:
                self._check(number, parameter.grad is view)
            else:
                self._check(number, parameter.grad is None)
                view.zero_()

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, number: int, parameter: torch.Tensor) -> None:
        if not self._views:
            return  # a backward of the user's own, before any of ours
        view, gradient = self._views[number], parameter.grad
        if gradient is view:
            return
        self._check(number, gradient is not None and not self._landed[number])
        assert gradient is not None
        if gradient.layout == torch.strided:
            view.copy_(gradient)
        else:
            view.zero_().add_(gradient)  # of an embedding with sparse=True
        parameter.grad = view
        self._landed[number] = True

    def _check(self, number: int, kept: bool) -> None:  # noqa: FBT001 - private, and reads well
        if not kept:
            raise ModelError(
                f"the gradient of parameter {self._flat.slots[number].name!r} was replaced during forward or backward: "
                "do not call zero_grad or set .grad inside the model or the loss, nor backward with create_graph"
            )
