"""Write a graph in fp16, or with its weights in int8 or int4:

    python deploy/quantize.py --input_model model.onnx --output_model model.int8.onnx --precision int8

The same as `trident quantize`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script this folder comes first on the path, where `triton` would hide the compiler of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import typer

    from deploy.commands.quantize import quantize

    typer.run(quantize)
