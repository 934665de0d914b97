"""`mizzle bench` without its options: mizzle beside gloo, TorchDistributor, plain Spark; trainings that are struck."""
