"""Connections: who may have one, what is read from it and when, and how it ends."""
