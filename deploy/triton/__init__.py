"""The code that runs inside Triton, or in the gateway's process: the continuous-batching engine and its models.

Only the standard library, numpy and onnxruntime are imported, and modules import each other relatively: the folder is
copied into the generated repository, where it has another name.
"""
