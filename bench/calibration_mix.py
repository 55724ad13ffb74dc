"""What static INT8 loses by the texts it is calibrated on, or by its recipe: centred SQNR against float32.

    python -m bench.calibration_mix FOLDER [--recipes] [--languages en,de] [--save NAME]

FOLDER is a model folder with its float32 IR; a copy of it is quantized by `edge-embed quantize`, once for
each case, and embeds the evaluation texts, without prompts. Without --recipes the cases are NNCF's defaults
and ours, each with English texts alone, with the built-in mix, and with one part of that left out. With it,
they are recipes on the first of the built-in texts. stdout ends with JSON.

Knows the texts of calibration/ and how noise is measured. It times nothing, and does not know which of two
close figures is by chance: that is what the intervals are for.
"""

import argparse
import gc
import itertools
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.corpus import mixed
from bench.measure import ROOT, child, say
from bench.run import RESULTS, edge_embed_info, save
from edge_embed import Embedder

Floats = NDArray[np.float64]

STOCK = "smooth_quant_alpha = 0.95\noutlier_channels = 0\n"  # NNCF's defaults
OURS = ""  # the defaults of edge-embed
ENGLISH_TEXTS = 470  # about as many as the built-in mix has for a model of 256 or 512 tokens
SWEPT_TEXTS = 160  # of the built-in ones, for --recipes; any prefix of these is balanced

PARTS = ("edge", "other", "code", "long")  # of the stored texts, each left out once
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Case:
    """One quantization: a recipe.toml, a name of `calibration_texts`, and the case it is compared with."""

    name: str
    recipe: str
    calibration: str
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A text of calibration/ and the parts it belongs to: its file's name, or `code`, and its kind."""

    text: str
    parts: frozenset[str]


def stored(split: str) -> list[Stored]:
    """All texts of `corpora` or `evaluation`, repeats written out."""
    texts = []
    for path in sorted((ROOT / "calibration" / split).glob("*.jsonl")):
        file = "code" if path.stem.startswith("code-") else path.stem
        with path.open(encoding="utf-8") as lines:
            texts += [
                Stored(row["text"] * row.get("repeat", 1), frozenset({file, row["kind"]}))
                for row in map(json.loads, lines)
            ]
    return texts


def mixes() -> list[Case]:
    """What to calibrate on. The ladder is made by edge-embed, so that the stored texts alone are without.

    A strange text does harm by the maxima that it sets. Our recipe takes more of these than NNCF's, so it is
    the one that parts are left out under.
    """
    cases = []
    for name, recipe in (("stock", STOCK), ("ours", OURS)):
        cases.append(Case(f"{name}, English", recipe, "English"))
        cases.append(Case(f"{name}, built-in", recipe, "built-in", f"{name}, English"))
    cases.append(Case("ours, no ladder", OURS, "no ladder", "ours, built-in"))
    fewer = [f"no ladder, no {part}" for part in PARTS]
    return cases + [Case(f"ours, {mix}", OURS, mix, "ours, no ladder") for mix in fewer]


def recipes() -> list[Case]:
    """SmoothQuant by outlier channels by the least ratio that makes an outlier; each against ours."""
    cases: list[Case] = []
    for alpha, channels, ratio in itertools.product((0.85, 0.95, -1.0), (8, 32, 0), (3.0, 5.0, 0.0)):
        if channels == 0 and ratio:
            continue  # no channel is an outlier, whatever the ratio
        name = f"alpha {'off' if alpha < 0 else alpha}, {channels} channels"
        name += f" from {ratio:g} x" if channels else ""
        recipe = f"smooth_quant_alpha = {alpha}\noutlier_channels = {channels}\noutlier_ratio = {ratio}\n"
        recipe += f"subset_size = {SWEPT_TEXTS}\n"
        cases.append(Case(name, recipe, "built-in", cases[0].name if cases else None))
    return cases


def calibration_texts(mix: str) -> list[str] | None:
    """The texts of a mix; None for the built-in ones, which edge-embed has itself."""
    if mix == "built-in":
        return None
    if mix == "English":
        return mixed(ENGLISH_TEXTS)
    left_out = mix.removeprefix("no ladder").removeprefix(", no ")
    return [text.text for text in stored("corpora") if left_out not in text.parts]


def quantize(folder: Path, case: Case) -> dict[str, Any]:
    """Make the static INT8 IR of a folder; what `edge-embed quantize --json` says. In its own process."""
    recipe, file = folder / "case.toml", folder / "case.jsonl"
    recipe.write_text(case.recipe, "utf-8")
    options = ["--compute-type", "int8", "--recipe", str(recipe), "--no-drift", "--json"]
    texts = calibration_texts(case.calibration)
    if texts is not None:
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        options += ["--calibration", str(file)]
    said: dict[str, Any] = json.loads(
        child("-m", "edge_embed", "quantize", str(folder), *options).splitlines()[-1]
    )
    return said


def embed(folder: Path, compute_type: str, texts: Sequence[str]) -> Floats:
    """(N, D) unit rows, without prompts; the model is released before this returns."""
    embedder = Embedder(folder, compute_type=compute_type, cache_dir=False)
    rows = embedder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    del embedder
    gc.collect()  # it and its runtime refer to each other
    return rows.astype(np.float64)


def noise(reference: Floats, candidate: Floats) -> Floats:
    """(N,) squared distance of each text from its reference, without the shift that all texts share."""
    error = candidate - reference
    error -= error.mean(0)
    return np.asarray((error**2).sum(1))


def spread(reference: Floats) -> float:
    """1 - b, b the mean cosine of different rows (N, D)."""
    n, total = len(reference), reference.sum(0)
    return float(1 - (total @ total - n) / (n * (n - 1)))


def decibels(signal: float, noise: Floats) -> Floats:
    """SQNR of mean noise (..., N) against a signal: (...)."""
    return np.asarray(10 * np.log10(signal / noise.mean(-1)))


def interval(found: Floats) -> list[float]:
    """95 % of resampled values."""
    return [round(float(end), 2) for end in np.quantile(found, (0.025, 0.975))]


def row_of(
    case: Case, reference: Floats, found: dict[str, Floats], texts: Sequence[Stored]
) -> dict[str, Any]:
    """One line of the result. found: the noise of each case so far; the same texts are drawn for all."""
    n = len(texts)
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    signal, power = spread(reference), found[case.name]
    row: dict[str, Any] = {
        "case": case.name,
        "sqnr": round(float(decibels(signal, power)), 2),
        "interval": interval(decibels(signal, power[drawn])),
        "slices": slices(reference, power, texts),
    }
    languages = {name: value for name, value in row["slices"].items() if name not in ("code", "long")}
    row["worst"], row["best"] = (
        min(languages, key=languages.__getitem__),
        max(languages, key=languages.__getitem__),
    )
    if case.against is not None:
        before = found[case.against]
        row["against"] = case.against
        row["gain"] = round(float(decibels(signal, power) - decibels(signal, before)), 2)
        row["gain_interval"] = interval(decibels(signal, power[drawn]) - decibels(signal, before[drawn]))
    return row


def slices(reference: Floats, power: Floats, texts: Sequence[Stored]) -> dict[str, float]:
    """SQNR of each language, of code and of the long texts, each against the spread of its own texts."""
    values = {}
    for name in sorted(set().union(*(text.parts for text in texts)) - {"query", "passage"}):
        rows = [i for i, text in enumerate(texts) if name in text.parts]
        values[name] = round(float(decibels(spread(reference[rows]), power[rows])), 2)
    return values


def run(folder: Path, cases: Sequence[Case], texts: Sequence[Stored]) -> Iterator[dict[str, Any]]:
    """Quantize a copy of the folder for each case, and say what that has cost."""
    with tempfile.TemporaryDirectory(prefix="edge-embed-bench-") as scratch:
        ignored = shutil.ignore_patterns("*.safetensors", "*_quantized.*", ".git*")
        copy = Path(shutil.copytree(folder, Path(scratch, "model"), ignore=ignored))
        contents = [text.text for text in texts]
        reference = embed(copy, "float32", contents)
        found: dict[str, Floats] = {}
        for number, case in enumerate(cases, 1):
            say(f"{number} of {len(cases)}: {case.name}")
            said = quantize(copy, case)
            found[case.name] = noise(reference, embed(copy, "int8", contents))
            counts = {key: said[key] for key in ("texts", "tokens", "cut", "bytes")}
            yield row_of(case, reference, found, texts) | counts


def evaluation(languages: Sequence[str] | None) -> list[Stored]:
    """The evaluation texts; with languages, those of them and code."""
    texts = stored("evaluation")
    if languages is None:
        return texts
    wanted = {*languages, "code"}
    if unknown := sorted(wanted - set().union(*(text.parts for text in texts))):
        raise SystemExit(f"no evaluation text is in {', '.join(unknown)}; see calibration/evaluation")
    return [text for text in texts if wanted & text.parts]


def line_of(row: dict[str, Any]) -> str:
    """A row for people."""
    values, (low, high) = row["slices"], row["interval"]
    line = f"{row['case']:<34}{row['sqnr']:>7.2f} ({low:.2f} to {high:.2f})"
    line += "".join(f"  {name} {values[name]:.1f}" for name in (row["worst"], row["best"], "en", "code"))
    if "gain" in row:
        line += f"  {row['gain']:+.2f} ({row['gain_interval'][0]:+.2f} to {row['gain_interval'][1]:+.2f})"
    return line


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.calibration_mix", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="model folder with its float32 IR")
    parser.add_argument("--recipes", action="store_true", help="compare recipes instead of calibration texts")
    parser.add_argument("--languages", help="evaluate in these and code only, such as en (default: all)")
    parser.add_argument("--save", metavar="NAME", help="keep the result as bench/results/NAME.json")
    args = parser.parse_args(argv)

    texts = evaluation(args.languages.split(",") if args.languages else None)
    info = edge_embed_info(args.folder, "float32")
    if not info["machine"]["has_int8_dot"]:
        raise SystemExit("this CPU has no INT8 dot products, and would run the activations in float32")
    result: dict[str, Any] = {
        "schema": 1,
        "model": {"folder": args.folder.name},
        "machine": info["machine"],
        "versions": {"python": platform.python_version(), **info["versions"]},
        "evaluation": {"texts": len(texts), "languages": args.languages},
        "rows": [],
    }
    print(f"{'case':<34}{'SQNR':>7} (95 %), worst and best language, English, code, gain", file=sys.stderr)
    for row in run(args.folder, recipes() if args.recipes else mixes(), texts):
        result["rows"].append(row)
        print(line_of(row), file=sys.stderr, flush=True)
        if args.save:  # after each, as all take an hour
            save(RESULTS / f"{args.save}.json", result)
    print(json.dumps({"rows": result["rows"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
