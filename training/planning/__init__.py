"""What a training run would cost before it is started: parameters, FLOPs, memory, bytes sent, time, for every layout.

Nothing here imports PyTorch: the planner runs where no GPU is, and training reads its FLOP count for MFU.
"""
