"""The driver: session, executors, group jobs, DataFrames to shards, faults, the Trainer. `ranks` is what it directs."""
