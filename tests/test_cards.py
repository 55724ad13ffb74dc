"""cards: every model.toml that ships says what design and licence need, and a slip in one is refused."""

from pathlib import Path

import pytest

from edge_embed import cards
from edge_embed.cards import HubSource, ModelCard, WheelSource, read_card
from edge_embed.errors import ModelError
from edge_embed.resources import data_folder

MAIN = "granite-embedding-311m-multilingual-r2"
SMALL = "granite-embedding-97m-multilingual-r2"
FIRST = ("granite-embedding-278m-multilingual", "granite-embedding-107m-multilingual")
HUB_ID = f"ibm-granite/{MAIN}"


def test_every_card_reads_and_has_a_page() -> None:
    names = [card.name for card in cards.cards()]
    assert {"all-MiniLM-L6-v2", MAIN, SMALL, *FIRST} <= set(names)
    for name in names:
        assert (data_folder("models") / name / "README.md").read_text("utf-8").startswith(f"# {name}\n")


def card(name: str) -> ModelCard:
    found = cards.card(name)
    assert found is not None
    return found


def hub(name: str) -> HubSource:
    source = card(name).source
    assert isinstance(source, HubSource)
    return source


def test_a_card_is_found_by_name_and_by_hub_id() -> None:
    assert cards.card(MAIN) is not None
    assert cards.card(MAIN) == cards.card(HUB_ID)
    assert cards.card("granite") is None


def test_the_main_card_says_what_the_model_is() -> None:
    main = card(MAIN)
    assert (main.architecture, main.pooling, main.dim, main.max_tokens) == ("modernbert", "cls", 768, 32768)
    assert main.truncate_dims == (768, 512, 384, 256, 128)
    assert (len(main.languages), len(set(main.languages)), len(main.code_languages)) == (52, 52, 9)
    assert main.licence == "Apache-2.0"
    assert any("Gemma" in note for note in main.licence_notes)
    assert hub(MAIN).revision == "dba7b0ee9d789f330fecfb85df57699f9e7d9c42"


def test_the_main_card_brings_what_runs_and_leaves_the_checkpoint() -> None:
    source = hub(MAIN)
    for variant in ("openvino_model", "openvino_model_qint8_quantized"):
        assert {f"openvino/{variant}.xml", f"openvino/{variant}.bin"} <= set(source.files)
    assert source.checkpoint_files == ("model.safetensors",)


def test_the_small_card_differs_where_the_model_does() -> None:
    small, main = card(SMALL), card(MAIN)
    assert (small.architecture, small.pooling, small.dim, small.max_tokens) == (
        "modernbert",
        "cls",
        384,
        32768,
    )
    assert (small.languages, small.code_languages) == (main.languages, main.code_languages)
    assert hub(SMALL).revision == "c61e626a6255c490879d0af885078b61929d51f6"
    assert set(small.sha256) == {"model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize(("name", "dim"), list(zip(FIRST, (768, 384), strict=True)))
def test_the_first_generation_is_built_of_its_checkpoint(name: str, dim: int) -> None:
    first = card(name)
    assert (first.architecture, first.pooling) == ("xlm-roberta", "cls")
    assert (first.dim, first.max_tokens) == (dim, 512)
    assert len(first.languages) == 12
    assert not [file for file in hub(name).listed if file.startswith("openvino/")]
    assert hub(name).checkpoint_files == ("model.safetensors",)


@pytest.mark.parametrize(
    ("name", "cosine"),
    [
        (MAIN, ((0.9393, 0.6899, 0.7627), (0.6780, 0.9598, 0.7062), (0.7818, 0.7342, 0.9172))),
        (SMALL, ((0.8869, 0.6658, 0.7213), (0.6792, 0.9577, 0.6420), (0.7534, 0.6771, 0.9112))),
    ],
)
def test_the_second_generation_checks_itself_by_its_card(
    name: str, cosine: tuple[tuple[float, ...], ...]
) -> None:
    check = card(name).self_check
    assert check is not None
    assert check.cosine == cosine
    assert check.tolerance == 0.005
    other = card(SMALL if name == MAIN else MAIN).self_check
    assert other is not None
    assert check.queries == other.queries


def test_the_wheel_card_pins_every_file_by_hash() -> None:
    minilm = card("all-MiniLM-L6-v2")
    assert isinstance(minilm.source, WheelSource)
    assert minilm.source.sha256 == "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    assert {"config.json", "model.safetensors", "1_Pooling/config.json"} <= set(minilm.sha256)


GOOD_CARD = """
name = "tiny"
hub_id = "org/tiny"
architecture = "bert"
licence = "Apache-2.0"
licence_notes = []
pooling = "cls"
normalize = true
dim = 8
truncate_dims = [8, 4]
max_tokens = 16
languages = ["en"]
code_languages = []
[prompts]
query = "query: "
[source]
kind = "hub"
revision = "0123456789012345678901234567890123456789"
files = ["config.json"]
checkpoint_files = ["model.safetensors"]
optional_files = []
[sha256]
[self_check]
queries = ["a", "b"]
passages = ["c"]
cosine = [[0.5], [0.25]]
tolerance = 0.01
"""


def read_text(folder: Path, text: str) -> ModelCard:
    path = folder / "tiny" / "model.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return read_card(path.parent)


def test_a_card_is_read_as_written(tmp_path: Path) -> None:
    card = read_text(tmp_path, GOOD_CARD)
    assert card.truncate_dims == (8, 4)
    assert card.prompts == {"query": "query: "}
    assert card.source == HubSource("0123456789" * 4, ("config.json",), ("model.safetensors",), ())
    assert card.self_check is not None
    assert card.self_check.cosine == ((0.5,), (0.25,))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("dim = 8", "", "dim is missing"),
        ("dim = 8", "dim = 8.0", "dim is 8.0, not int"),
        ("normalize = true", "normalize = 1", "normalize is 1, not bool"),
        ("dim = 8", "dim = 8\ndimension = 8", "unknown key dimension"),
        ('name = "tiny"', 'name = "small"', "name 'small' is not the folder's, 'tiny'"),
        ('"cls"', '"max"', "pooling 'max' is none of cls, mean"),
        ("[8, 4]", "[16]", "truncate_dims [16] are not between 1 and dim 8"),
        ("[8, 4]", '[8, "4"]', "truncate_dims holds ['4'], not int"),
        ('"hub"', '"ftp"', "[source]: kind 'ftp' is neither hub nor wheel"),
        (
            "0123456789012345678901234567890123456789",
            "main",
            "revision 'main' is not a commit of 40 hex digits",
        ),
        ('["config.json"]', '["../config.json"]', "'../config.json' leaves the model folder"),
        ('["model.safetensors"]', '["/etc/passwd"]', "'/etc/passwd' leaves the model folder"),
        ('["model.safetensors"]', '["config.json"]', "'config.json' is listed twice"),
        (
            '["model.safetensors"]',
            "[]",
            "files hold no openvino/openvino_model.xml, and there are no",
        ),
        ('checkpoint_files = ["model.safetensors"]', "", "[source]: checkpoint_files is missing"),
        ("optional_files = []", "optional_files = []\nbranch = 1", "[source]: unknown key branch"),
        (
            "[sha256]",
            f'[sha256]\n"confg.json" = "{"0" * 64}"',
            "sha256 names confg.json, which [source]",
        ),
        ("[sha256]", '[sha256]\n"config.json" = "abc"', "sha256 of config.json is not 64 hex digits"),
        ("[[0.5], [0.25]]", "[[0.5, 0.25]]", "[self_check]: cosine is not 2 x 1"),
        ("[[0.5], [0.25]]", "[[0.5], [1]]", "[self_check]: cosine holds [1], not floats from -1 to 1"),
        ("[[0.5], [0.25]]", "[[0.5], [nan]]", "[self_check]: cosine holds [nan], not floats from -1 to 1"),
        ("[[0.5], [0.25]]", "[0.5, 0.25]", "[self_check]: cosine holds [0.5, 0.25], not list"),
        (
            '["c"]\ncosine = [[0.5], [0.25]]',
            "[]\ncosine = [[], []]",
            "without queries and passages nothing",
        ),
        ("tolerance = 0.01", "", "[self_check]: tolerance is missing"),
        ("tolerance = 0.01", "tolerance = inf", "[self_check]: tolerance inf is not between 0 and 0.1"),
        ("dim = 8", "dim = ", "cannot be read"),
    ],
)
def test_a_card_with_a_slip_is_refused(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert GOOD_CARD.count(old) == 1
    with pytest.raises(ModelError) as caught:
        read_text(tmp_path, GOOD_CARD.replace(old, new))
    assert complaint in str(caught.value)
    assert "model.toml" in str(caught.value)
