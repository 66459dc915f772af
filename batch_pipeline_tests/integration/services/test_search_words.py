"""Search by names, phrases and words, filters, pages and copies, on a handful of uploads."""

import base64
import json
import unicodedata
import uuid
from datetime import UTC, datetime

import numpy as np
import pytest
from sqlalchemy import text

import batch_pipeline
from batch_pipeline.database.session import Database, with_driver
from batch_pipeline.errors import NotFoundError, RefusedError
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding
from batch_pipeline.services.search.filters import Filters
from batch_pipeline.services.search.queries import MOST_WORDED, WEAK_BELOW, search
from batch_pipeline.testing.records import USER, add_batch, upload_rows

DIMENSIONS = 1024
MODEL = "embedded-sentences-1"


class Questions:
    """Every question has the same vector; the row of an upload sets its similarity."""

    dimensions = DIMENSIONS
    name = MODEL

    def __call__(self, space):
        return self

    def embed(self, texts, **_):
        return [near(1.0) for _ in texts]

    def check(self):
        return []


def near(similarity):
    """Return a vector with this similarity to every question."""
    vector = np.zeros(DIMENSIONS)
    vector[0], vector[1] = similarity, np.sqrt(1 - similarity**2)
    return vector.tolist()


def upload(filename, similarity, description="A picture.", *, model=MODEL, **columns):
    return {
        "filename": filename,
        "processing_status": "completed",
        "description": description,
        "embedding_model": model,
        "embedding_local": near(similarity),
        **columns,
    }


@pytest.fixture
def find(database):
    def find_(question="", **arguments):
        return search(database, Questions(), question, **arguments)

    return find_


def names(found):
    return [hit.filename for hit in found]


# Words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question", ["IMG_2041.JPG", "img_2041.jpg", "IMG_2041", ' "IMG_2041.jpg" ']
)
def test_a_whole_file_name_is_found_first_however_far_it_is(database, find, question):
    add_batch(
        database,
        [
            upload("near.jpg", 0.9, "It says IMG_2041.JPG and IMG 2041 in the picture."),
            upload("IMG_2041.JPG", -0.5),
            upload("IMG_20410.JPG", 0.95),
        ],
    )

    [first, *_] = find(question)

    assert (first.filename, first.found_by, first.weak) == ("IMG_2041.JPG", "filename", False)


@pytest.mark.parametrize("asked", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("question", "found_by"),
    [("Café Ölüdeniz.jpg", "filename"), ("Ölüdeniz", "words"), ('"Ölüdeniz"', "phrase")],
)
def test_accents_are_found_however_they_are_written(  # noqa: PLR0917
    database, find, question, found_by, stored, asked
):
    name = unicodedata.normalize(stored, "Café Ölüdeniz.jpg")
    add_batch(database, [upload("near.jpg", 0.9), upload(name, -0.5)])

    hits = find(unicodedata.normalize(asked, question))

    assert [hit.found_by for hit in hits if hit.filename == name] == [found_by]


def test_quoted_words_come_before_nearer_pictures_that_do_not_have_them(database, find):
    add_batch(
        database,
        [
            upload("a.jpg", 0.9, "A dog and an old red boat."),
            upload("b.jpg", 0.3, "An old dog in a red boat."),
            upload("c.jpg", 0.2, "The old red boats of a harbour."),
        ],
    )

    found = find('a harbour with an "old dog"')

    assert names(found) == ["b.jpg", "a.jpg", "c.jpg"]
    assert found[0].found_by == "phrase"


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("kestrel", "camera.jpg"),
        ("2041", "text.jpg"),
        ("beach 2019", "beach-2019_final.jpg"),
        ("running dogs", "english.jpg"),
        ("der Hund", "german.jpg"),
    ],
)
def test_a_picture_that_has_all_words_comes_before_one_that_is_a_little_nearer(
    database, find, question, first
):
    add_batch(
        database,
        [
            upload("nearest.jpg", 0.5, "Something else."),
            upload("camera.jpg", 0.3, facts={"camera": "Kestrel K-2"}),
            upload("text.jpg", 0.3, "Text can be read in it: “invoice 2041”."),
            upload("beach-2019_final.jpg", 0.3),
            upload("english.jpg", 0.3, "A dog runs."),
            upload("german.jpg", 0.3, "Der Hund schläft."),
        ],
    )

    found = find(question)

    assert names(found)[:2] == [first, "nearest.jpg"]
    assert (found[0].found_by, found[0].similarity) == ("words", pytest.approx(0.3, abs=1e-4))


def test_words_that_very_many_pictures_have_are_ignored(database, find, monkeypatch):
    monkeypatch.setattr("batch_pipeline.services.search.queries.MOST_WORDED", 2)
    add_batch(
        database,
        [upload("near.jpg", 0.5, "Else."), *(upload(f"{n}.jpg", 0.4, "Blue.") for n in range(3))],
    )

    assert find("blue")[0].filename == "near.jpg"


@pytest.mark.parametrize("question", ["harbour", "50%_harbour", "Harbour Ölüdeniz"])
def test_a_file_name_without_extension_is_first_although_very_many_pictures_have_its_words(
    database, find, question
):
    name = unicodedata.normalize("NFD", question)  # as file names of macOS
    others = [upload(f"{n}.jpg", 0.9, f"A picture of {question}.") for n in range(MOST_WORDED)]
    alike = [upload(f"50 of{name}.jpg", 0.9), upload(f"{name}.old.jpg", 0.9)]
    add_batch(database, [*others, *alike, upload(f"{name.upper()}.jpg", -0.5)])

    first, second, *_ = find(question)

    assert (first.filename, first.found_by) == (f"{name.upper()}.jpg", "filename")
    assert second.found_by == "meaning", "such common words are no hint"


def test_an_upload_that_another_model_embedded_is_found_by_its_words(database, find):
    add_batch(
        database,
        [upload("a.jpg", 0.5, "A cat."), upload("b.jpg", 0.9, "A Kestrel in flight.", model="old")],
    )

    found = find("kestrel")

    assert [(hit.filename, hit.similarity) for hit in found][1] == ("b.jpg", None)


@pytest.mark.parametrize(
    "question",
    ["\x00", "a\x00b", "\ud800 x", "& | ! ( ) : * '", "the", '""', "x" * 100_000, "-- ;"],
)
def test_no_search_text_breaks_the_statement(mixed, question):
    assert len(search(mixed, Questions(), question)) == 4


def test_half_an_emoji_is_not_sent_to_the_server_that_embeds_questions(mixed):
    class Server(Questions):
        def embed(self, texts, **_):
            json.dumps(texts, ensure_ascii=False).encode()  # as clients write a request
            return super().embed(texts)

    assert len(search(mixed, Server(), "dog \ud83d")) == 4


def test_texts_that_are_too_long_for_an_index_are_stored_and_found(database, find):
    long = " ".join(f"word{number}" for number in range(200_000))
    add_batch(database, [upload("n" * 5000 + ".jpg", 0.5, f"A kestrel. {long}")])

    assert len(find("kestrel")) == 1
    assert find("n" * 5000 + ".jpg")[0].weak is False


@pytest.mark.parametrize("location", ["/srv/uploads", "s3://bucket/uploads", ""])
def test_an_upload_whose_path_an_api_has_emptied_is_found(database, find, location):
    add_batch(database, [upload("a.jpg", 0.9), upload("b.jpg", 0.5)])
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE uploads ALTER file_path DROP NOT NULL"))
        connection.execute(text("UPDATE uploads SET file_path = NULL WHERE filename = 'b.jpg'"))

    first, second = find("anything", location=location)

    assert first.original.endswith(first.file_path)
    assert (second.file_path, second.original, second.thumbnail) == ("", "", None)


@pytest.mark.parametrize("scheme", ["", "file:", "file://", "local:", "local://"])
def test_an_original_on_this_machine_is_a_path_however_the_storage_is_named(database, find, scheme):
    add_batch(database, [upload("a.jpg", 0.9)])
    [hit] = find("anything", location=f"{scheme}/srv/uploads")
    assert hit.original == f"/srv/uploads/{hit.file_path}"


# Filters ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(server):
    """A database with uploads that differ in every filter; no test changes it."""
    rows = [
        upload("old.jpg", 0.9, facts={"format": "jpeg", "captured_at": "2019-12-31T23:59:00"}),
        upload("new.heic", 0.8, facts={"format": "heic", "camera": "Kestrel K-2",
                                       "captured_at": "2024-05-17T10:00:00"}),
        upload("clip.mp4", 0.7, file_type="video", facts={"format": "mp4"},
               created_at=datetime(2024, 6, 1, tzinfo=UTC), vision_model="llava"),
        upload("sign.png", 0.1, "It says “Exit”.", facts={"format": "png"},
               created_at=datetime(2021, 3, 5, tzinfo=UTC)),
        upload("hidden.jpg", 0.99, hidden=True),
    ]  # fmt: skip
    with server.new_database() as url:
        database = Database(with_driver(url, "psycopg", variable="URL"))
        add_batch(database, rows)
        yield database
        database.close()


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(), ["old.jpg", "new.heic", "clip.mp4", "sign.png"]),
        (Filters(user_id=USER), ["old.jpg", "new.heic", "clip.mp4", "sign.png"]),
        (Filters(user_id=uuid.UUID(int=1)), []),
        (Filters(batch_id=uuid.UUID(int=1)), []),
        (Filters(file_type="video"), ["clip.mp4"]),
        (Filters(format="JPG"), ["old.jpg"]),
        (Filters(camera="kestrel"), ["new.heic"]),
        (Filters(camera="%"), []),
        (Filters(since="2020"), ["new.heic", "clip.mp4", "sign.png"]),
        (Filters(until="2019"), ["old.jpg"]),
        (Filters(since="2024-05", until="2024-05"), ["new.heic"]),
        (Filters(since="2024-05-17", until="2024-05-17"), ["new.heic"]),
        (Filters(since="2024-05-18"), ["clip.mp4"]),
        (Filters(until="2021-3-5"), ["old.jpg", "sign.png"]),
        (Filters(has_text=True), ["sign.png"]),
        (Filters(vision_model="llava"), ["clip.mp4"]),
        (Filters(least_similarity=0.75), ["old.jpg", "new.heic"]),
        (Filters(file_type="image", since="2020", least_similarity=0), ["new.heic", "sign.png"]),
    ],
)
def test_filters_leave_out_what_does_not_fit(mixed, filters, found):
    assert names(search(mixed, Questions(), "anything", filters=filters)) == found


def test_heif_as_a_filter_also_finds_heic(database, find):
    likeness = {"heic": 0.9, "heif": 0.8, "jpeg": 0.7}
    rows = [upload(name, like, facts={"format": name}) for name, like in likeness.items()]
    add_batch(database, rows)

    assert names(find("anything", filters=Filters(format="HEIF"))) == ["heic", "heif"]
    assert names(find("anything", filters=Filters(format="heic"))) == ["heic"]


def test_a_batch_is_a_filter(database, find):
    add_batch(database, [upload("one.jpg", 0.9)])
    other = add_batch(database, [upload("other.jpg", 0.5)])

    assert names(find("anything", filters=Filters(batch_id=other))) == ["other.jpg"]


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (Filters(since="yesterday"), "expected one such as 2024-05-17"),
        (Filters(until="2024-13"), "is not a date"),
        (Filters(until="9999"), "is not a date"),
        (Filters(since="2024-00-17"), "is not a date"),
        (Filters(until="2024-05-00"), "is not a date"),
        (Filters(user_id="abc"), "user_id is 'abc': expected an id"),
        (Filters(batch_id=""), "batch_id is '': expected an id"),
        (Filters(since="2024-06", until="2024-05"), "since 2024-06 is later than until 2024-05"),
        (Filters(file_type="audio"), "expected image or video"),
        (Filters(format="mpg"), "'mpg' is not a format: expected one of jpeg, png, "),
        (Filters(least_similarity=1.5), "expected -1 to 1"),
        (Filters(camera="a\x00b"), "characters that no stored text can have"),
        (Filters(format="\ud800"), "characters that no stored text can have"),
        (Filters(vision_model="\x00"), "characters that no stored text can have"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused(mixed, filters, said):
    with pytest.raises(RefusedError, match=said):
        search(mixed, Questions(), "anything", filters=filters)


# Likeness, weakness, pages and copies -------------------------------------------------------------


def test_uploads_like_another_are_found_without_it(database, find):
    batch = add_batch(database, [upload("a.jpg", 1.0), upload("b.jpg", 0.9), upload("c.jpg", -1.0)])
    [first, *_] = upload_rows(database, batch)

    found = find(like=first.id)

    assert names(found) == ["b.jpg", "c.jpg"]
    assert found[0].similarity == pytest.approx(0.9, abs=1e-4)


def test_a_search_for_uploads_like_a_missing_or_unembedded_one_is_refused(database, find):
    batch = add_batch(database, 1)

    with pytest.raises(NotFoundError, match="there is no upload"):
        find(like=uuid.uuid4())
    with pytest.raises(RefusedError, match="not embedded yet"):
        find(like=upload_rows(database, batch)[0].id)
    with pytest.raises(RefusedError, match="expected one of them"):
        find("text", like=uuid.uuid4())
    with pytest.raises(RefusedError, match="like is 'abc': expected an id"):
        find(like="abc")


def test_weak_results_are_marked(database, find):
    add_batch(database, [upload("a.jpg", WEAK_BELOW[MODEL] + 0.01), upload("b.jpg", 0.1)])

    assert [hit.weak for hit in find("anything")] == [False, True]


def pages_of(find, size, question="blue"):
    after = None
    while page := find(question, limit=size, after=after):
        yield page
        after = page[-1].cursor


@pytest.mark.parametrize("size", [1, 3, 100])
def test_pages_joined_are_the_whole(database, find, size):
    add_batch(
        database,
        [
            # Many have the same similarity, and a word finds every third.
            upload(f"{n}.jpg", 0.1 * (n // 15), "Blue." if n % 3 == 0 else "Red.")
            for n in range(30)
        ],
    )

    joined = [name for page in pages_of(find, size) for name in names(page)]

    assert joined == names(find("blue", limit=100))
    assert len(set(joined)) == 30


def test_an_upload_added_between_two_pages_neither_repeats_nor_hides_a_result(database, find):
    add_batch(database, [upload(f"{n}.jpg", 0.8 - 0.1 * n) for n in range(6)])
    pages = pages_of(find, 2)

    first = next(pages)
    add_batch(database, [upload("new.jpg", 0.9), upload("late.jpg", 0.35)])
    rest = [name for page in pages for name in names(page)]

    assert names(first) == ["0.jpg", "1.jpg"]
    assert rest == ["2.jpg", "3.jpg", "4.jpg", "late.jpg", "5.jpg"]


#: A position below zero.
NEGATIVE = base64.urlsafe_b64encode(f"-9 0 0x0.0p+0 {uuid.UUID(int=1).hex}".encode()).decode()


@pytest.mark.parametrize("cursor", ["x", "!!!", "MSAy", "é", NEGATIVE])
def test_an_invalid_cursor_is_refused(mixed, cursor):
    with pytest.raises(RefusedError, match="is not a cursor: expected the cursor of a result"):
        search(mixed, Questions(), "anything", after=cursor)


def test_the_same_bytes_are_shown_once_with_where_else_they_are(database, find):
    same = {"checksum": "a" * 64}
    batch = add_batch(
        database,
        [
            *(upload(f"copy_{n}.jpg", 0.9 - 0.001 * n, **same) for n in range(20)),
            *(upload(f"other_{n}.jpg", 0.5 - 0.001 * n, checksum=f"{n:064}") for n in range(5)),
        ],
        name="Rome",
    )

    found = find("anything", limit=4)

    assert names(found) == ["copy_0.jpg", "other_0.jpg", "other_1.jpg", "other_2.jpg"]
    assert [copy.filename for copy in found[0].copies] == [f"copy_{n}.jpg" for n in range(1, 20)]
    assert {(copy.batch_id, copy.batch_name) for copy in found[0].copies} == {(batch, "Rome")}
    assert found[0].batch_name == "Rome"
    assert not found[1].copies


def test_results_by_words_do_not_hide_nearer_ones_behind_many_copies(database, find):
    add_batch(
        database,
        [
            *(upload(f"copy_{n}.jpg", 0.9, checksum="c") for n in range(50)),
            *(upload(f"near_{n}.jpg", 0.8) for n in range(3)),
            *(upload(f"far_{n}.jpg", 0.1, "A kestrel.") for n in range(5)),
        ],
    )

    joined = [hit.filename for page in pages_of(find, 3, "kestrel") for hit in page]

    assert joined[0].startswith("copy_")
    assert sorted(joined[1:]) == sorted(
        [f"near_{n}.jpg" for n in range(3)] + [f"far_{n}.jpg" for n in range(5)]
    )


def test_copies_of_another_user_are_not_shown(database, find):
    stranger = uuid.UUID(int=7)
    add_batch(
        database,
        [
            upload("mine.jpg", 0.5, checksum="c"),
            upload("x.jpg", 0.9, checksum="c", user_id=stranger),
        ],
    )

    [hit] = find("anything", filters=Filters(user_id=USER))

    assert (hit.filename, list(hit.copies)) == ("mine.jpg", [])


# For applications ---------------------------------------------------------------------------------


def test_an_application_searches_with_one_import(database, change, tmp_path):
    given = change(storage_url=str(tmp_path / "store"))
    text = "A puppy runs along the seashore."
    [vector] = EmbeddedEmbedding().embed([text])
    batch = add_batch(
        database,
        [upload("a.jpg", 0, text, embedding_local=vector, thumbnail_path="u/1/thumb_256.jpg")],
    )

    [hit] = batch_pipeline.search(
        "dog on a beach", filters=batch_pipeline.Filters(batch_id=batch), settings=given
    )

    assert hit.description == text
    assert not hit.weak
    assert hit.thumbnail == str(tmp_path / "store" / "u/1/thumb_256.jpg")
    assert hit.original == str(tmp_path / "store" / hit.file_path)
