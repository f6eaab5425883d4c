"""What a GPU runs in place of PyTorch's own layers, and what is compiled."""
