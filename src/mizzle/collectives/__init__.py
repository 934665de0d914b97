"""Collectives over any `BlockStore`: an all-reduce in three phases for training, and the usual ones for arrays.

Knows shards, slices, ranks and the order of sums; knows no Spark, no model, no socket. Start reading at `exchange`
(what one iteration of training does) or `communicator` (what a user calls).
"""

from mizzle.collectives.communicator import Communicator
from mizzle.collectives.exchange import Exchange, Reduced
from mizzle.collectives.layout import ExchangeLayout
from mizzle.collectives.slices import ALIGNMENT, Slice, slices
from mizzle.collectives.tree import Node, cover
from mizzle.collectives.wire import Wire

__all__ = [
    "ALIGNMENT", "Communicator", "Exchange", "ExchangeLayout", "Node", "Reduced", "Slice", "Wire", "cover", "slices",
]  # fmt: skip
