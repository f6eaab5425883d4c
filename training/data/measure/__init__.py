"""Measurements of the data pipeline on labelled documents; their results are kept under docs/results.

python -m training.data.measure.filtering  CORPORA --output docs/results/data-filter.json
python -m training.data.measure.selection  CORPORA --output docs/results/data-select.json
python -m training.data.measure.throughput CORPORA --output docs/results/data-throughput.json
"""
