"""The exchange that a training needs: made from its spec in one place, for ranks, rehearsals and whoever tries them."""

from __future__ import annotations

import torch

from mizzle.blocks.store import BlockStore
from mizzle.collectives.exchange import Exchange
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.timeline import NO_TIMELINE, Timeline
from mizzle.training.flat import FlatParameters
from mizzle.training.spec import TrainingSpec


def exchange_for(
    spec: TrainingSpec, model: torch.nn.Module, store: BlockStore, shards_of_rank: tuple[tuple[int, ...], ...], *,
    timeout_s: float, timeline: Timeline = NO_TIMELINE,
) -> Exchange:  # fmt: skip
    """The exchange that a `mizzle.training.rank.RankTrainer` of this model and spec needs.

    Args:
        spec: of the run.
        model: not touched.
        store: the door to the peers.
        shards_of_rank: by rank.
        timeout_s: seconds that each wait for peers may take.
        timeline: of this rank.

    Raises:
        ModelError: the model cannot be laid out.
        ArenaError: no memory.
    """
    layout = ExchangeLayout(FlatParameters(model, spec.groups).num_elements, spec.num_shards, shards_of_rank)
    return Exchange(
        store, layout, wire=spec.wire, weights_wire=spec.weights_wire, error_feedback=spec.error_feedback,
        timeout_s=timeout_s, timeline=timeline,
    )  # fmt: skip
