"""Reading WordNet's database files."""

from pathlib import Path

from bench import wordnet

NOUN = (
    "  1 This is the licence\n"
    "00001740 03 n 02 entity 0 living_thing 1 003 ~ 00001930 n 0000 ~ 00002137 n 0000 + 00692329 a 0101 "
    '| that which exists; "an example"; "another; one"  \n'
)
ADJECTIVE = "00002312 00 s 01 abaxial(a) 0 001 ;c 06037666 n 0000 | facing away | from the axis  \n"


def test_synsets_are_read_with_their_tags(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUN)
    (tmp_path / "data.adj").write_text(ADJECTIVE)
    (tmp_path / "data.verb").write_text("")
    (tmp_path / "data.adv").write_text("")
    counts = "entity%1:03:00:: 1 11\nliving_thing%1:03:01:: 2 5\nabaxial%5:00:00:near:01 1 3\nabaxial%3:00:00:: 1 100\n"
    (tmp_path / "cntlist.rev").write_text(counts)
    noun, adjective = wordnet.synsets(tmp_path)
    assert noun == {
        "id": "n00001740",
        "text": "entity, living thing: that which exists",
        "lemmas": ["entity", "living thing"],
        "pos": "noun",
        "lexname": "noun.Tops",
        "tag_count": 16,
        "n_lemmas": 2,
        "n_ptrs": 3,
    }
    assert adjective["id"] == "a00002312"
    assert adjective["text"] == "abaxial: facing away | from the axis"
    assert adjective["lexname"] == "adj.all"
    assert adjective["tag_count"] == 3


def test_adverbs_have_a_letter_of_their_own() -> None:
    letters = [letter for letter, _ in wordnet.PARTS.values()]
    assert len(set(letters)) == len(letters) == 4
