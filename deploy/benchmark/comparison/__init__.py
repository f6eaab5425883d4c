"""Trident beside its peers: each is started in its environment, driven by the same requests, and stopped."""
