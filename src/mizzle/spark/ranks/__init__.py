"""What runs in executors: how a process becomes a rank, lives beside its executor, and does its part of a group.

It knows nothing of the driver but the orders that come from there.
"""
