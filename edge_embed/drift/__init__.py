"""How far a candidate's vectors are from a reference's, and whether that is allowed.

metrics.py  arrays -> numbers            gate.py    numbers + floors -> verdicts
measure.py  a model folder -> Drift      record.py  reference.npz

Knows no command line.
"""
