"""The room that knows Spark: session, group jobs, DataFrames to shards, the Trainer."""
