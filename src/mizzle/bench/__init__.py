"""`mizzle bench` without its options: mizzle beside gloo, TorchDistributor and plain Spark on the same executors."""
