"""edge_embed on the static INT8 IR of a folder."""

from functools import partial

from bench.peers import edge

load = partial(edge.load, compute_type="int8")
