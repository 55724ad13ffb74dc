"""The question that matters most, in under 25 minutes: `make bench-quick`.

    python -m bench.quick [--model NAME] [--texts 200] [--rounds 5] [--save NAME]

Mixed real text through the exact 311M shape in float32: edge_embed against sentence-transformers' OpenVINO
backend on the same IR, at its own batch size and at its best, and both against the matrix products alone.
The last line of stdout is JSON: ratio_float32 and ratio_best are texts/s of edge_embed over the peer at its
own batch size, and at its fastest one; matmul_fraction_float32 is what edge_embed reaches of the machine's
limit with texts of 128 to 512 tokens, the lesser of the two ends.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import models, run, workloads
from bench.measure import REFERENCE, Setting, subject_of
from bench.verdict import ST, best, verdict

PEER, LIMIT = f"{ST}@float32", "matmuls@float32"
UNIFORM = ("uniform128", "uniform512")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quick", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default=models.GRANITE, help="(default: %(default)s, random weights)")
    parser.add_argument("--texts", type=int, default=workloads.MIXED, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, help="(default: those of edge_embed's plan)")
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    args = parser.parse_args(argv)

    folder = models.folder(args.model, kinds=("float32",))
    tokenizer = workloads.tokenizer_of(str(folder / "tokenizer.json"))
    ours, peer, limit = map(subject_of, (REFERENCE, PEER, LIMIT))
    result = run.facts(folder, args.threads)
    with tempfile.TemporaryDirectory(prefix="edge-embed-bench-") as scratch:
        setting = Setting(folder, result["threads"], Path(scratch))
        mixed = workloads.workload("mixed", tokenizer, texts=args.texts)
        measured = {"mixed": run.of_texts([ours, peer], setting, mixed, args.rounds, best=True)}
        for name in UNIFORM:
            work = workloads.workload(name, tokenizer)
            measured[name] = run.of_texts([ours, limit], setting, work, args.rounds, best=False)
    for name, found in measured.items():
        print(*run.table(name, found), sep="\n", file=sys.stderr)
    result["workloads"] = measured
    result["verdict"] = verdict(result)
    print("", *result["verdict"], sep="\n", file=sys.stderr)
    if args.save:
        run.save(run.RESULTS / f"{args.save}.json", result)
    paired = measured["mixed"]["subjects"][REFERENCE]["times_as_fast_as"]
    fractions = [
        measured[name]["subjects"][REFERENCE]["times_as_fast_as"][LIMIT]["median"] for name in UNIFORM
    ]
    answer = {
        "ratio_float32": round(paired[PEER]["median"], 3),
        "ratio_best": round(paired[best(measured["mixed"]["subjects"], PEER)]["median"], 3),
        "matmul_fraction_float32": round(min(fractions), 3),
        "machine": {key: result["machine"][key] for key in ("cpu_model", "flags")},
        "verdict": result["verdict"],
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
