"""Which iterations run when: pure functions of numbers and events. No Spark, no torch, no clock."""
