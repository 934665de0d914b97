"""Named, immutable bytes between ranks: ids, stores, arenas, the client of the bridge. Knows no torch and no Spark."""
