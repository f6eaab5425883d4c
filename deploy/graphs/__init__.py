"""The network as ONNX graphs, built node by node from its weights.

Not traced: the decode steps need operators that no exporter emits, the caches are updated in place, and exporters have
silently frozen symbolic axes. In exchange every function here repeats one module of `model/`, and the parity tests hold
the two together.
"""
