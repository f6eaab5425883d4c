"""Write one graph of a trained network as ONNX:

    python deploy/optimize_for_inference.py --input_model model.pt --output_model model.onnx --opset 15 --enable_fusion

The default graph is `hybrid_lm` (input_ids → logits); `--graph` names another of a bundle's.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script this folder comes first on the path, where `triton` would hide the compiler of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import typer

    from deploy.commands.export import optimize

    typer.run(optimize)
