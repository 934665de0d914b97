"""The only room that imports pyspark: session, group jobs, DataFrames to shards, the Trainer."""
