"""How far a candidate's vectors are from a reference's, why, and whether that is allowed.

record.py     PyTorch's vectors, kept         candidate.py    one way to run a model, in a child process
compare.py    candidate + reference -> ...    measurement.py  ... drift.json
metrics.py    arrays -> numbers               slices.py       which texts are looked at together
ledger.py     stages from PyTorch to here     locate.py       the noise of each layer and operator
gate.py       numbers + floors -> verdicts    baseline.py     what was approved before
report.py     Markdown, JUnit, annotations    html.py         one page
measure.py    a folder against its own float32 IR, for quantize and tune

Knows no command line.
"""
