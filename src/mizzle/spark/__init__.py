"""The room that knows Spark: session, group jobs, DataFrames to shards, faults, the Trainer; in `ranks` who works."""
