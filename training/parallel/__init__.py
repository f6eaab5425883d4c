"""Training on many processes: one file a dimension, applied to the network from outside."""
