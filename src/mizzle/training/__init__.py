"""PyTorch: flat parameters, the local step, the sharded optimizer, one rank's iterations. No Spark.

`rank.RankTrainer` is where to begin reading; it calls the other modules in the order of one iteration.
"""
