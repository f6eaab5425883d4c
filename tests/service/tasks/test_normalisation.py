"""Normalised texts: nothing a reader sees is lost, and every character knows the one it was made from."""

from __future__ import annotations

import random
import re
import time
import tracemalloc
import unicodedata

import pytest
import regex
from hypothesis import assume, example, given
from hypothesis import strategies as st

from service.tasks.normalisation import Lines, Normalised, normalise
from service.tasks.words import JUDGED
from tests.service.tasks.corruptions import CORRUPTIONS, INVISIBLE

PLAIN = (
    'The well-known first bridge, built in 1871 for "Elias Berg & Sons" (an old café), cost $40 (or €36); it was burnt '
    "in 1902, and nobody in the village knew who had flung the fiery staff. Its successor, the official one, stands "
    "still."
)
AWKWARD = (
    " \t\r\n\x0b\x0c\x85\u2028\u2029\xa0\u3000\x00\u200b\u200c\u200d\ufeff\xad\ufe0f"
    "ab-\u2011\u2009.，！Ａｂﬁﬃe\u212b\u0301\u0323👩👧क्षم光\u1100\u1161\u11a8𝐀Å"
)
SOME_WHITE = st.sampled_from([" ", "\t", " \r\n", "\u3000\u200b ", "\n\n"])
TEXTS = st.one_of(st.text(), st.text(alphabet=AWKWARD), st.text(alphabet="ab \n\r\t\u200b", max_size=200))
SPOILT = [kind for kind in CORRUPTIONS if kind != "capitals"]


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_text_is_read_as_the_text_that_it_was(kind: str) -> None:
    spoilt = CORRUPTIONS[kind](PLAIN, random.Random(3))
    assert spoilt != PLAIN
    assert normalise(spoilt).text == PLAIN


@pytest.mark.parametrize("kind", SPOILT)
def test_a_word_is_found_where_it_was_sent(kind: str) -> None:
    spoilt = CORRUPTIONS[kind](PLAIN, random.Random(5))
    normalised = normalise(spoilt)
    for word in re.finditer(r"\w+", PLAIN):
        start, end = normalised.place(*word.span())
        # Marks that a reader takes for a part of the letter before them are the graphemes' affair.
        end += len(regex.match(r"\p{M}*", spoilt[end:]).group())
        read = normalise(spoilt[start:end]).text
        # Of one word alone nothing tells whether its letters are words.
        assert (read.replace(" ", "") if kind == "letters apart" else read) == word.group()
        # The word, and nothing of its neighbours.
        assert not spoilt[start].isspace()
        assert not spoilt[end - 1].isspace()


@given(
    st.text(alphabet=st.characters(max_codepoint=0x7F), max_size=80)
    | st.text(alphabet="ABC a.", min_size=15, max_size=80),
    st.sampled_from(Lines),
)
@example("A" * 20 + "b", Lines.NONE)
@example("A" * 40 + "bb", Lines.NONE)
@example("A" * 40 + "bbb", Lines.NONE)
def test_plain_letters_are_read_alike_behind_a_character_that_nobody_sees(text: str, lines: Lines) -> None:
    """With it, a text takes the way of texts that need a closer look."""
    assert normalise(text, lines).text == normalise("\u2060" + text, lines).text


@given(TEXTS, st.sampled_from(Lines))
@example("\r\u200b\n", Lines.DOUBLE)
@example("e\u200b\u0301", Lines.NONE)
@example("\u0958\u0301", Lines.NONE)
@example("Ａ\u200b，", Lines.NONE)
@example("👩\u200d\u200d👧", Lines.NONE)
@example("a" * 61 + "\x00b" * 3, Lines.NONE)
@example("a-\u200b\n\nb", Lines.SINGLE)
@example("a-\xad\nb\xad\n\xad c", Lines.DOUBLE)
@example("Ａ－\nＢ 𝐀-\n𝐀 e\u0301-\ne", Lines.SINGLE)
@example("a \u2009b\u2009c\u2009\u2009d", Lines.NONE)
@example("a b c  " * 20, Lines.SINGLE)
@example("\u115f\u1161\u115f\u1160", Lines.NONE)
def test_normalising_twice_changes_nothing(text: str, lines: Lines) -> None:
    once = normalise(text, lines).text
    assert normalise(once, lines).text == once


@given(TEXTS, st.sampled_from(Lines))
def test_every_character_was_made_from_its_origin(text: str, lines: Lines) -> None:
    normalised = normalise(text, lines)
    origins = [normalised.origin(at) for at in range(len(normalised.text))]
    assert origins == sorted(origins)
    for character, origin in zip(normalised.text, origins, strict=True):
        assert 0 <= origin < len(text)
        sent = text[origin]
        if character in " \n":
            assert sent.isspace() or sent in INVISIBLE
        else:
            # Letters with their marks apart: the letter begins the character that both became.
            forms = (sent, sent.lower(), unicodedata.normalize("NFKC", sent), unicodedata.normalize("NFD", character))
            assert any(character in form or form.startswith(sent) for form in forms) or is_mark(character)
    between = set(range(len(text))) - set(origins)
    assert all(text[at].isspace() or is_invisible(text[at]) or is_mark(text[at]) for at in between)


@given(TEXTS)
def test_a_place_holds_what_is_read_there(text: str) -> None:
    normalised = normalise(text)
    if context_decides(text):
        return
    words = [match.span() for match in re.finditer(r"\S+", normalised.text)]
    for start, end in words:
        first, last = normalised.place(start, end)
        assert 0 <= first < last <= len(text)
        assert normalise(text[first:last]).text == normalised.text[start:end]


@given(st.text(alphabet="abc .,'光", max_size=50), st.data())
def test_insertions_move_places_and_nothing_else(text: str, data: st.DataObject) -> None:
    """The text is known before it is spoilt, so the places are, too."""
    plain = " ".join(text.split())
    # Words of one letter might be the letters of words.
    assume(len(regex.findall(r"\b\w\b", plain)) < JUDGED)
    spoilt, places = "", []
    for character in plain:
        # A soft hyphen before a line's end says that the word goes on.
        unseen = INVISIBLE.replace("\xad", "") if character == " " else INVISIBLE
        spoilt += data.draw(st.text(alphabet=unseen, max_size=2))
        places.append(len(spoilt))
        spoilt += data.draw(SOME_WHITE) if character == " " else character
    normalised = normalise(spoilt)
    assert normalised.text == plain
    assert [normalised.origin(at) for at in range(len(plain))] == places


@pytest.mark.parametrize(
    ("text", "none", "single", "double"),
    [
        ("a\r\nb", "a b", "a\nb", "a\nb"),
        ("a \r\n \r\n b", "a b", "a\nb", "a\n\nb"),
        ("a\n\n\n\n\nb", "a b", "a\nb", "a\n\nb"),
        ("a\rb\u2028c\u2029d\x85e", "a b c d e", "a\nb\nc\nd\ne", "a\nb\nc\nd\ne"),
        ("\n\n a\tb \n", "a b", "a b", "a b"),
        ("a\x0cb\x0bc", "a b c", "a b c", "a b c"),
    ],
)
def test_lines_are_kept_where_they_mean_something(text: str, none: str, single: str, double: str) -> None:
    assert [normalise(text, lines).text for lines in Lines] == [none, single, double]


@pytest.mark.parametrize(
    "text",
    [
        "天文学家（约翰）说：“用光年！”，共２".replace("２", "2"),
        "👩\u200d👩\u200d👧 and ❤\ufe0f\u200d🔥",
        "क्\u200dष",
        "می\u200cخواهم",
        "½ x² … Ⅱ ℓ ①",
        "naïve Ångström 각",
        "",
    ],
)
def test_what_the_model_knows_or_needs_stays(text: str) -> None:
    assert normalise(text, Lines.DOUBLE).text == text


def test_a_soft_hyphen_in_a_long_word_parts_nothing() -> None:
    assert normalise("Donau\xaddampf\xadschiff").text == "Donaudampfschiff"
    assert normalise("www." + "a" * 100 + "\u200b.org").text == "www." + "a" * 100 + ".org"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("gold-\nthemed", "gold-themed"),
        ("gold-\r\n    themed", "gold-themed"),
        ("pages 10-\n\n20", "pages 10-20"),
        ("Na\xad\n  tional", "National"),
        ("- one\n- two", "- one - two"),
        ("one -\ntwo", "one - two"),
        ("he said-\n“no”", "he said- “no”"),
        ("1\u2009000\u2009000 km", "1 000 000 km"),
        ("B\u2009o\u2009w\u2009l 50", "Bowl 50"),
        ("vitamins A B C D", "vitamins A B C D"),
        ("a\u2009+\u2009b", "a + b"),
        ("A C G T " * 20, "a c g t " * 19 + "a c g t"),
        ("w o r d s  a r e  h e r e  s e t  a p a r t ,  s e e", "words are here set apart, see"),
        ("two\u2060\u2060words\u2060of:光\u2060光\u2060and\u2060longer\u2060text", "two words of:光光 and longer text"),
        ("\u115f\u1161 a\u115fb", "\u115f\u1161 a b"),
    ],
)
def test_white_space_within_words_and_words_without_it(text: str, read: str) -> None:
    assert normalise(text).text == read


def test_a_text_in_capitals_is_read_in_small_letters() -> None:
    normalised = normalise("THE McDONALD BRIDGE IN ZÜRICH\tWAS BUILT IN ΑΘΉΝΑ, İSTANBUL AND ＲＯＭＥ.")
    assert normalised.text == "the mcdonald bridge in zürich was built in αθήνα, İstanbul and rome."
    assert normalised.place(4, 12) == (4, 12)


@pytest.mark.parametrize("text", ["NASA and ESA", "UNESCO HERITAGE", "A Title In Which Each Word Has One", "光速" * 30])
def test_names_and_titles_keep_their_capitals(text: str) -> None:
    assert normalise(text).text is text


def test_a_text_with_nothing_to_change_is_not_copied() -> None:
    assert normalise(PLAIN).text is PLAIN


@pytest.mark.parametrize("kind", ["double spaces", "soft hyphens in words", "marks apart", "white space of all kinds"])
def test_memory_is_bound_by_the_texts_bytes(kind: str) -> None:
    text = CORRUPTIONS[kind]("Ein Müller läuft über die Brücke. " * 8_000, random.Random(1))
    tracemalloc.start()
    normalised = normalise(text)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(normalised, Normalised)
    assert held <= 5 * len(text.encode())
    assert peak <= 24 * len(text.encode())


def test_long_runs_of_marks_take_no_quadratic_time() -> None:
    text = "a" + "\u0301\u0323" * 200_000
    begun = time.thread_time()
    assert normalise(text).text == text
    assert time.thread_time() - begun < 5


def is_mark(character: str) -> bool:
    return regex.fullmatch(r"[\p{M}\u1160-\u11ff]", character) is not None


def is_invisible(character: str) -> bool:
    return regex.fullmatch(r"[\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}]|[\u2800]", character) is not None


def context_decides(sent: str) -> bool:
    """Whether the text around a stretch may change how that is read: joiners, marks, wide signs, absent spaces."""
    decisive = r"[\u200c\u200d\ufe0e\ufe0f\uff01-\uff5e\p{M}\u1160-\u11ff]|.{20}"
    return regex.search(decisive, sent, flags=regex.DOTALL) is not None
