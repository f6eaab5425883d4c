"""Two ways to the models behind one protocol: Triton over gRPC, or the engine in this process."""
