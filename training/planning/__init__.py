"""What a training run would cost before it is started: parameters, FLOPs, memory, bytes sent, time, for every layout.

Nothing here but `presets.py` imports PyTorch or transformers: plans are made where neither a GPU nor weights are, and
training asks for its FLOP count.
"""
