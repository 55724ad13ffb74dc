"""What got slower, and what faster, from one result of `make bench` to another, beyond the noise of both.

    python -m bench.compare OLD NEW [--workload NAME] [--json]

OLD and NEW are files of bench/results. Machines differ from run to run, so ours is judged by how it moved
against the peers that ran in turns with it, the median over those that both results have; raw figures are
shown where both had the same kind of machine, and judged where there is no peer. Memory is judged raw, if
the CPU's flags are the same. Exit code: 0 nothing is worse, 3 something is, 2 the two cannot be compared.

Two results that differ in workloads, texts, float32 IR or threads are refused. Knows nothing of how a figure
came about, nor which change of ours is behind it.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SCHEMA = 2
OURS = "edge"  # the peer that is us
THE_MODEL = ("openvino_model.xml", "openvino_model.bin")  # others are made of it: part of what is compared
SPEED_FLOOR = 0.03  # less than this is no change, however steady the rounds: layouts of memory do as much
MEMORY_FLOOR = 0.05
UNSTEADY = 0.15  # a spread above it is said beside the row
FEWEST_ROUNDS = 3  # with fewer nothing is known of the noise
DRAWS = 4000  # resamplings of an interval
TAIL = 2.5  # per cent outside a 95 % interval, on each side

WORSE, WRONG_INPUT = 3, 2  # exit codes, as those of edge-embed: 1 is a crash

State = Literal["worse", "better", "same", "unjudged"]
WORDS: dict[str, dict[State, str]] = {
    "speed": {"worse": "SLOWER", "better": "faster", "same": "within noise", "unjudged": "not judged"},
    "memory": {"worse": "LARGER", "better": "smaller", "same": "within 5 %", "unjudged": "not judged"},
}


class NotComparable(Exception):
    """The two results say nothing about each other; the message is the reason, in one line."""


@dataclass(frozen=True, slots=True)
class Gain:
    """How many times as good NEW is as OLD, above 1 for better, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one subject of ours, in both results."""

    workload: str
    subject: str
    what: Literal["speed", "memory"]
    unit: str
    old: float | None
    new: float | None
    relative: Gain | None  # to the peers that both runs have
    raw: Gain | None  # where both machines are of one kind
    state: State = "unjudged"
    note: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--workload", action="append", metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    args = parser.parse_args(argv)
    try:
        old, new = read(args.old), read(args.new)
        rows = compare(old, new, args.workload)
    except NotComparable as reason:
        print(f"compare: {reason}", file=sys.stderr)
        return WRONG_INPUT
    print(*table(old, new, rows), sep="\n")
    if args.json:
        print(json.dumps(as_json(rows)))
    return WORSE if any(row.state == "worse" for row in rows) else 0


def read(path: Path) -> dict[str, Any]:
    """A result of `make bench`. Errors: NotComparable says what the file is instead."""
    try:
        result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise NotComparable(f"{path} cannot be read: {error}") from error
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA or not isinstance(result.get("workloads"), dict):
        raise NotComparable(f"{path} is no result of `make bench` of schema {SCHEMA}; its schema is {schema}")
    for name, workload in result["workloads"].items():
        if workload["better"] not in ("higher", "lower"):
            raise NotComparable(f"{path}: {name} is better {workload['better']!r}, not higher or lower")
    return result


def compare(old: dict[str, Any], new: dict[str, Any], only: Sequence[str] | None = None) -> list[Row]:
    """Every figure of every subject of ours. Errors: NotComparable."""
    names = matched(old, new, only)
    machine = Machine.of(old, new)
    return [
        row
        for name in names
        for row in of_workload(name, old["workloads"][name], new["workloads"][name], machine)
    ]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machines of both runs have in common, threads apart: those have to be the same."""

    same_flags: bool
    same: bool

    @classmethod
    def of(cls, old: Mapping[str, Any], new: Mapping[str, Any]) -> "Machine":
        one, other = old["machine"], new["machine"]
        flags = set(one["flags"]) == set(other["flags"])
        return cls(flags, flags and one["cpu_model"] == other["cpu_model"])


def matched(old: dict[str, Any], new: dict[str, Any], only: Sequence[str] | None) -> list[str]:
    """The workloads to compare. Errors: NotComparable, where the two measured different things."""
    if old["threads"] != new["threads"]:
        raise NotComparable(f"OLD ran with {old['threads']} threads and NEW with {new['threads']}")
    folders = " and ".join(str(result["model"]["folder"]) for result in (old, new))
    if not old["model"]["sha256"].keys() & new["model"]["sha256"].keys():
        raise NotComparable(f"the models are not the same, {folders}: no file is in both")
    if other := sorted(set(THE_MODEL) & changed_files(old, new)):
        raise NotComparable(f"the models are not the same, {folders}: {other[0]} differs")
    for name in only or ():
        if name not in old["workloads"] or name not in new["workloads"]:
            raise NotComparable(f"not both have the workload {name}; OLD has {', '.join(old['workloads'])}")
    if not only and (odd := sorted(old["workloads"].keys() ^ new["workloads"].keys())):
        raise NotComparable(f"not both have the workloads {', '.join(odd)}; choose with --workload")
    names = [name for name in old["workloads"] if not only or name in only]
    for name in names:
        one, two = old["workloads"][name], new["workloads"][name]
        if one.get("texts", {}).get("sha256") != two.get("texts", {}).get("sha256"):  # a start has no texts
            raise NotComparable(f"the texts of {name} are not the same: their sha256 differ")
        if (one["unit"], one["better"]) != (two["unit"], two["better"]):
            raise NotComparable(f"{name} is in {one['unit']} in OLD, and in {two['unit']} in NEW")
    return names


def changed_files(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """Names, without folders, of the files that both models have and that differ."""
    one, two = old["model"]["sha256"], new["model"]["sha256"]
    return {Path(file).name for file in one.keys() & two.keys() if one[file] != two[file]}


def of_workload(name: str, old: dict[str, Any], new: dict[str, Any], machine: Machine) -> Iterator[Row]:
    """The rows of one workload: of each subject of ours its speed, then its memory."""
    chance = np.random.default_rng(0)
    before, after = old["subjects"], new["subjects"]
    both = [one for one in before if one in after and measured(before[one]) and measured(after[one])]
    moves = {one: log_gains(before[one], after[one], old["better"], chance) for one in both}
    of_bytes = old["unit"] == "bytes"
    for subject in filter(is_ours, before | after):
        one, two = before.get(subject), after.get(subject)
        if one is None or two is None or subject not in moves:
            yield unmeasured(name, subject, old["unit"], one, two)
            continue
        peers = [] if of_bytes else [peer for peer in both if not is_ours(peer)]
        apart = [
            log_gains(one["times_as_fast_as"][peer], two["times_as_fast_as"][peer], "higher", chance)
            if in_turns(one, peer) and in_turns(two, peer)
            else moves[subject] - moves[peer]
            for peer in peers
        ]
        raw = interval(moves[subject]) if (machine.same_flags if of_bytes else machine.same) else None
        relative = interval(np.median(apart, axis=0)) if apart else None
        figures = (one["median"], two["median"], relative, raw)
        yield judged(Row(name, subject, "memory" if of_bytes else "speed", old["unit"], *figures), one, two)
        if not of_bytes and one.get("peak_bytes") and two.get("peak_bytes"):
            ratio = one["peak_bytes"] / two["peak_bytes"]
            peak = Gain(ratio, ratio, ratio) if machine.same_flags else None
            figures = (one["peak_bytes"], two["peak_bytes"], None, peak)
            yield judged(Row(name, subject, "memory", "bytes", *figures), {}, {})


def in_turns(subject: Mapping[str, Any], peer: str) -> bool:
    """Whether a result has the ratio to a peer round by round: what slowed down both is not in it."""
    return peer in subject.get("times_as_fast_as", {})


def is_ours(subject: str) -> bool:
    return subject.partition("@")[0].partition(":")[0] == OURS


def measured(subject: Mapping[str, Any]) -> bool:
    """Whether it has figures, of which there can be a ratio: a slope of no bytes has none."""
    return "failed" not in subject and min(subject["all"], default=0) > 0


def log_gains(
    old: Mapping[str, Any], new: Mapping[str, Any], better: str, chance: np.random.Generator
) -> NDArray[np.float64]:
    """(1 + DRAWS,) logarithms of NEW over OLD, above 0 for better: as measured, then as drawn again."""
    sign = 1 if better == "higher" else -1
    return sign * np.log(medians(new["all"], chance) / medians(old["all"], chance))


def medians(rounds: Sequence[float], chance: np.random.Generator) -> NDArray[np.float64]:
    """(1 + DRAWS,) the median of the rounds, then those of as many rounds drawn with replacement."""
    values = np.asarray(rounds, np.float64)
    drawn = chance.choice(values, (DRAWS, len(values)))
    return np.concatenate([[np.median(values)], np.median(drawn, axis=1)])


def interval(moves: NDArray[np.float64]) -> Gain:
    """The measured gain and its bootstrap interval."""
    low, high = np.percentile(moves[1:], [TAIL, 100 - TAIL])
    return Gain(math.exp(moves[0]), math.exp(low), math.exp(high))


def judged(row: Row, old: Mapping[str, Any], new: Mapping[str, Any]) -> Row:
    """The row with its state: beyond both the interval and the floor, or not."""
    notes = [f"spread {max(s['spread'] for s in (old, new)):.0%}"] if unsteady(old) or unsteady(new) else []
    gain = row.relative or row.raw
    floor = MEMORY_FLOOR if row.what == "memory" else SPEED_FLOOR
    state: State = "same"
    if gain is None:
        state = "unjudged"
        notes.append("the machines differ" + (", and no peer is in both" if row.what == "speed" else ""))
    elif row.what == "speed" and min(len(old["all"]), len(new["all"])) < FEWEST_ROUNDS:
        state = "unjudged"
        notes.append(f"fewer than {FEWEST_ROUNDS} rounds")
    elif gain.high < 1 and gain.value < 1 / (1 + floor):
        state = "worse"
    elif gain.low > 1 and gain.value > 1 + floor:
        state = "better"
    return replace(row, state=state, note=", ".join(notes))


def unsteady(subject: Mapping[str, Any]) -> bool:
    return bool(subject.get("spread", 0) > UNSTEADY)


def unmeasured(
    workload: str, subject: str, unit: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
) -> Row:
    """A subject that has no figure in one of the two. One that OLD had and NEW lacks has got worse."""
    had = old is not None and measured(old)
    if new is None:
        note = "is not in NEW"
    elif "failed" in new:
        note = f"fails in NEW: {new['failed']}"
    elif not measured(new):
        note = "NEW has a figure that is not above 0"
    elif old is None:
        note = "is not in OLD"
    else:
        note = f"fails in OLD: {old['failed']}" if "failed" in old else "OLD has a figure that is not above 0"
    gone = had and (new is None or "failed" in new)
    figures = [s.get("median") if s else None for s in (old, new)]
    return Row(
        *(workload, subject, "memory" if unit == "bytes" else "speed", unit, figures[0], figures[1]),
        *(None, None, "worse" if gone else "unjudged", note),
    )


def table(old: Mapping[str, Any], new: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    """Lines for people; what is worse comes last, once more."""
    machine = Machine.of(old, new)
    models = [result["machine"]["cpu_model"] for result in (old, new)]
    if machine.same:
        yield f"both on {models[0]} with the same flags, {old['threads']} threads"
    else:
        flags = "the same flags" if machine.same_flags else "other flags"
        yield f"OLD on {models[0]}, NEW on {models[1]} with {flags}; {old['threads']} threads"
    if others := sorted(changed_files(old, new)):
        yield f"made anew, and part of what is compared: {', '.join(others)}"
    yield from (f"NEW: {line}" for line in new.get("verdict", ()) if line.startswith("WRONG"))
    if changed := list(differing(old.get("versions", {}), new.get("versions", {}))):
        yield f"versions: {', '.join(changed)}"  # a peer that became faster makes us look slower
    yield "gain: how many times as good NEW is as OLD, with its 95 % interval; above 1 is better"
    yield (
        f"{'workload':20} {'subject':24} {'unit':9} {'old':>10} {'new':>10}  "
        f"{'gain over peers':22} {'raw':22} verdict"
    )
    for row in rows:
        note = f" ({row.note})" if row.note else ""
        yield (
            f"{row.workload:20} {row.subject:24} {'MB' if row.unit == 'bytes' else row.unit:9} "
            f"{figure(row, row.old):>10} {figure(row, row.new):>10}  "
            f"{shown(row.relative):22} {shown(row.raw):22} {word(row)}{note}"
        )
    worse = [row for row in rows if row.state == "worse"]
    yield ""
    for row in worse:
        gain = row.relative or row.raw
        yield f"{word(row)} {row.workload}, {row.subject}: {f'gain {shown(gain)}' if gain else row.note}"
    counts = {
        state: sum(row.state == state for row in rows) for state in ("worse", "better", "same", "unjudged")
    }
    yield ", ".join(f"{count} {state}" for state, count in counts.items())


def word(row: Row) -> str:
    """The verdict in a word; what is worse without a figure is no longer there."""
    gone = row.state == "worse" and row.relative is None and row.raw is None
    return "GONE" if gone else WORDS[row.what][row.state]


def differing(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} {old.get(name, '-')} -> {new.get(name, '-')}"


def figure(row: Row, value: float | None) -> str:
    if value is None:
        return "-"
    if row.unit == "bytes":
        return f"{value / 1e6:,.0f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def shown(gain: Gain | None) -> str:
    if gain is None:
        return "-"
    return f"{gain.value:.3f}" + (f" ({gain.low:.3f} to {gain.high:.3f})" if gain.low < gain.high else "")


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """{"worse": [...], "better": [...], "same": [...], "unjudged": [...]}, the rows as objects."""
    found: dict[str, Any] = {"worse": [], "better": [], "same": [], "unjudged": []}
    for row in rows:
        found[row.state].append(asdict(row))
    return found


if __name__ == "__main__":
    sys.exit(main())
