"""What `drift measure` and the gate must catch, broken on purpose in a seeded ModernBERT, window 128 tokens.

The weights are random, so candidates are float32, and so are the floors. Each mutant is an IR that agrees
with its own config.json: the comparison of passes while loading sees nothing wrong with it.

    mutation                  check that fails                       measured: all texts, longest slice
    none                      -                                      120.8 dB, 115.9
    window one token smaller  sqnr_slice of more than 64 tokens      24.5 dB, 17.3; texts inside are equal
    window one token larger   the same                               25.2 dB, 17.8
    layer order shifted       sqnr_slice of more than 64 tokens      6.2 dB, -0.9
    RoPE bases swapped        sqnr_slice, the longest worst          5.7 dB, 1.3
    cut at 512 tokens         other tokens: MismatchError            -
      let through             sqnr_slice of the longest              16.9 dB, 8.7
    mean pooling for CLS      sqnr                                   -2.3 dB, -2.9
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed.build import build
from edge_embed.calibration import Text
from edge_embed.drift import compare, gate, record
from edge_embed.drift.measurement import Measurement
from edge_embed.drift.record import Reference
from edge_embed.errors import MismatchError
from tests.checkpoints import WORDS
from tests.modernbert_checkpoints import THETAS, tiny_modernbert

WORDS_OF_TEXTS = (10, 50, 100, 200, 400, 900)  # each word is a token, and two are special
EACH = 24
LIMIT = 1024  # tokens
LONG = ("length 129 to 256", "length 257 to 512", "length 513 to 1024")

pytestmark = pytest.mark.reference


def sentences() -> list[Text]:
    random = np.random.default_rng(0)
    words = [word for word in WORDS if len(word) > 1]
    return [
        Text(f"{count}-{i}", "passage", f"{count}-{i}", " ".join(random.choice(words, count)), "all")
        for count in WORDS_OF_TEXTS
        for i in range(EACH)
    ]


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    return sentences()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers are global, local, local, global. Read only."""
    folder = tiny_modernbert(tmp_path_factory.mktemp("mutations") / "modernbert", local_attention=128)
    return limited(folder, LIMIT)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, texts: list[Text]) -> Reference:
    return record.record(checkpoint, texts, "texts.jsonl")[0]


def limited(folder: Path, tokens: int) -> Path:
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": tokens}))
    return folder


def measured(
    checkpoint: Path,
    target: Path,
    reference: Reference,
    texts: list[Text],
    change: Callable[[dict[str, Any]], object] = lambda config: None,
) -> Measurement:
    """Of the float32 IR that is built after `change` has edited config.json."""
    folder = Path(shutil.copytree(checkpoint, target / "mutant"))
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return compare.measure_against(
        build(folder), reference, "0" * 64, texts, compute_type="float32", stages=False
    )


def failed(found: Measurement) -> set[tuple[str, str | None]]:
    floors, told = gate.floors_for(found)
    checks = gate.verdict(found, floors, budget=told).checks
    return {(check.id, check.slice) for check in checks if check.verdict == "fail"}


def slices_that_fail(found: Measurement) -> set[str | None]:
    return {part for id, part in failed(found) if id == "sqnr_slice"}


def noise_inside(found: Measurement) -> float:
    """The most of 1 - cosine among texts that never leave the window."""
    assert found.per_text is not None
    rows = [row for n in ("length 1 to 16", "length 33 to 64") for row in found.slices[n]]
    return max(1 - found.per_text.cosine[row] for row in rows)


def test_the_sound_candidate_passes_every_check(
    checkpoint: Path, tmp_path: Path, reference: Reference, texts: list[Text]
) -> None:
    found = measured(checkpoint, tmp_path, reference, texts)
    assert failed(found) == set()
    assert set(LONG) < set(found.slices)
    assert found.drift is not None
    assert found.drift.sqnr.value > 90


@pytest.mark.parametrize("window", [126, 130])
def test_a_window_that_is_off_by_one_fails_where_texts_leave_it(
    checkpoint: Path, tmp_path: Path, reference: Reference, texts: list[Text], window: int
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["local_attention"] = window

    found = measured(checkpoint, tmp_path, reference, texts, change)
    assert set(LONG) <= slices_that_fail(found)
    assert noise_inside(found) < 1e-6


def test_layers_in_another_order_fail_where_texts_leave_the_window(
    checkpoint: Path, tmp_path: Path, reference: Reference, texts: list[Text]
) -> None:
    def change(config: dict[str, Any]) -> None:
        kinds = config["layer_types"]
        config["layer_types"] = kinds[-1:] + kinds[:-1]
        config.pop("global_attn_every_n_layers")  # which would tell the right order

    found = measured(checkpoint, tmp_path, reference, texts, change)
    assert set(LONG) <= slices_that_fail(found)


def test_swapped_bases_of_rope_fail_in_long_texts(
    checkpoint: Path, tmp_path: Path, reference: Reference, texts: list[Text]
) -> None:
    def change(config: dict[str, Any]) -> None:
        tables = config["rope_parameters"]
        bases = {kind: table["rope_theta"] for kind, table in tables.items()}
        assert sorted(bases.values()) == sorted(THETAS.values())
        for table, base in zip(tables.values(), reversed(bases.values()), strict=True):
            table["rope_theta"] = base

    found = measured(checkpoint, tmp_path, reference, texts, change)
    assert set(LONG) <= slices_that_fail(found)
    assert found.drift is not None
    assert found.drift.worst_slice == LONG[-1]


def test_texts_cut_at_512_tokens_are_other_tokens_and_fail_in_their_lengths(
    checkpoint: Path, tmp_path: Path, reference: Reference, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = limited(Path(shutil.copytree(checkpoint, tmp_path / "cut")), 512)
    with pytest.raises(MismatchError, match="24 of 144 texts have other tokens here than in PyTorch"):
        measured(folder, tmp_path / "refused", reference, texts)
    monkeypatch.setattr(record, "check_tokens", lambda *arguments: None)
    found = measured(folder, tmp_path / "measured", reference, texts)
    assert "length 257 to 512" in slices_that_fail(found)  # which is as long as texts are then
    assert found.drift is not None
    assert found.drift.worst_slice == "length 257 to 512"


def test_mean_pooling_in_place_of_the_first_token_is_below_the_floor(
    checkpoint: Path, tmp_path: Path, reference: Reference, texts: list[Text]
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mean"))
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    assert ("sqnr", None) in failed(measured(folder, tmp_path, reference, texts))
