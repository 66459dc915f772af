import json
import time

import pytest

from batch_pipeline.errors import TransientError
from batch_pipeline.media.content import Frame, MediaFacts
from batch_pipeline.model_servers.answers import (
    checked_vector,
    clean,
    shows_thought,
    usable_text,
)
from batch_pipeline.model_servers.prompts import Prompts

VIDEO = MediaFacts("video", "mp4", 64, 48)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("  A boat.\n", "A boat."),
        ("A boat.\r\nA pier.", "A boat.\nA pier."),
        ("A\x00 boat\x1b[31m\x07.", "A boat[31m."),
        ("A \u202eboat\u2066\ufeff.", "A boat."),
        ("A \ud800boat.", "A boat."),
        ("Family 👩‍👧 café 東京", "Family 👩‍👧 café 東京"),
        ("<think>Hm, a boat?</think>A boat.", "A boat."),
        ("<THINKING>\nHm\n</thinking>\nA boat.", "A boat."),
        ("Hm, a boat?\n</think>\n\nA boat.", "A boat."),
        ("<think>Hm.</think>\n<think>So</think>A boat.", "A boat."),
        ("<think>Write </think> last?\n</think>\nA boat.", "A boat."),
        ('Then I write "</think>".\n</think>\n\nA boat.', "A boat."),
        ('It asks for {"a": 1}, so:\n</think>{"a": 2}', '{"a": 2}'),
        ("Hm, „boat“ or “ship”?</think>A boat.", "A boat."),
        ("I see `int main() {` here.\n</think>\n\nA dog.", "A dog."),
        ('I see "{" here.\n</think>\n\n{"description": "A }."}', '{"description": "A }."}'),
        ('I plan: {"description": "a dog ...\n</think>\n\nA dog.', "A dog."),
        ('Hm, a 27" monitor.</think>A monitor.', "A monitor."),
        ('Hm, a 27" monitor.</think>A monitor that shows "LG".', 'A monitor that shows "LG".'),
        ('Hm, a 27" monitor.</think>{"a": "b"}', '{"a": "b"}'),
        ("Hm, a ` is there.</think>\nA ` on a key.", "A ` on a key."),
        ("Hm.</think>The screen reads <think> twice.", "The screen reads <think> twice."),
        ('Hm.\n</think>\nThe screen reads "</think>".', 'The screen reads "</think>".'),
        ("\ufeff<think>Hm.</think>A boat.", "A boat."),
        ("◁think▷Hm, a boat?◁/think▷A boat.", "A boat."),
        ("Hm, a boat?◁/think▷A boat.", "A boat."),
        ("[THINK]Hm, a boat?[/THINK]A boat.", "A boat."),
        ("<reasoning>Hm</reasoning><answer>\nA boat.\n</answer>", "A boat."),
        ("<answer><|begin_of_box|>A boat.<|end_of_box|></answer>", "A boat."),
        ("<answer>```json\n{}\n```</answer>", "{}"),
        ("A sign: <answer>yes</answer>", "A sign: <answer>yes</answer>"),
        ("```\nA boat.\n```", "A boat."),
        ("```markdown\nA boat.\n\nA pier.\n```", "A boat.\n\nA pier."),
        ("```json  \nA boat.  ```", "A boat."),
        ("```\n``", "```\n``"),
        ("A sign: ```x``` here", "A sign: ```x``` here"),
        ('"A boat."', "A boat."),
        ("“A boat.”", "A boat."),
        ('"Stop" and "Go"', '"Stop" and "Go"'),
        ('A sign reads "Stop"', 'A sign reads "Stop"'),
        ("A boat.\n\n\n \n\nA pier.", "A boat.\n\nA pier."),
        ("A boat.<|im_end|>", "A boat.<|im_end|>"),
        ("<b>A boat</b>", "<b>A boat</b>"),
        ('"', '"'),
    ],
)
def test_only_the_form_of_an_answer_is_repaired(answer: str, text: str) -> None:
    assert clean(answer) == text


SHOWN = [
    'A screenshot. The visible line reads "<think>" and a function below it loads a model.',
    "A screenshot. The line reads \"print(text.split('</think>')[-1])\" in white letters.",
    "A terminal with the words <think>2 + 2</think> 4 in green letters.",
    "A terminal that shows `</think>` in green letters.",
    "A terminal that shows “a thought</think>” in green letters.",
    'A terminal\nwith two lines, "</think>" and "[/THINK]".',
    json.dumps({"description": "It reads </think>.", "tags": []}),
    json.dumps({"description": 'It reads "</think>".', "tags": []}),
    json.dumps({"description": "A chat.", "visible_text": "<think> 2 + 2? </think> 4"}, indent=1),
    'Here is the JSON:\n```json\n{"description": "It reads \\"</think>\\" in white."}\n```',
    'Here is the JSON: {"description": "It reads \\"</think>\\" in white."}',
    '{"description": "A terminal.", "visible_text": "$ cat page\n</think>\n$',
    '{"description": "A terminal.", "visible_text": "a </think> that is cut',
]


@pytest.mark.parametrize("answer", SHOWN)
def test_a_mark_of_a_thought_that_a_picture_shows_is_not_a_thought(answer: str) -> None:
    assert clean(answer) == answer
    assert not shows_thought(answer, cut_by_length=False)


def test_a_thought_is_recognised_by_its_marks() -> None:
    assert shows_thought("<think>Hm</think>A boat.", cut_by_length=False)
    assert shows_thought("Hm\n</think>\nA boat.", cut_by_length=True)
    assert not shows_thought("  A boat.", cut_by_length=False)


def test_very_many_marks_of_thoughts_take_no_longer_than_their_length() -> None:
    began = time.process_time()

    clean('</think>"' * 500_000)
    clean('</think>"' * 5_000)

    assert time.process_time() - began < 5


@pytest.mark.parametrize("answer", ["", " \n", "<think>never ends", "\x00", "```\n```", '""'])
def test_an_empty_answer_is_not_a_description(answer: str) -> None:
    with pytest.raises(TransientError) as raised:
        usable_text(answer, cut_by_length=False)

    assert raised.value.kind == "model_output_invalid"


def test_an_answer_cut_by_length_is_not_a_description() -> None:
    with pytest.raises(TransientError, match="cut by length and ends: …'A boat and'"):
        usable_text("A boat and", cut_by_length=True)


def test_braces_in_a_frames_description_do_not_break_the_synthesis() -> None:
    prompt = Prompts().of_video(
        VIDEO, [Frame(b""), Frame(b"", 5.0)], ["a {frames} sign", "{0} {total}"]
    )

    assert "a {frames} sign" in prompt
    assert "{0} {total}" in prompt


def test_descriptions_of_many_frames_leave_room_for_the_answer() -> None:
    frames = [Frame(b"", float(second)) for second in range(20)]

    assert len(Prompts().of_video(VIDEO, frames, ["word " * 1000] * 20)) < 20_000


def test_a_long_run_of_spaces_takes_no_longer_than_its_length() -> None:
    began = time.process_time()

    assert clean("```\n" + " " * 200_000 + "x").endswith("x")

    assert time.process_time() - began < 5  # 40 s when each space was a new beginning


@pytest.mark.parametrize(
    ("vector", "stored"),
    [
        ([70_000, 0], [1, 0]),
        ([3e30, -4e30], [0.6, -0.8]),
        ([3e-9, 4e-9], [0.6, 0.8]),
        ([30, -40], [30, -40]),
        ([0.3, 0.4], [0.3, 0.4]),
    ],
)
def test_a_vector_of_unusual_length_is_stored_with_length_1(
    vector: list[float], stored: list[float]
) -> None:
    assert checked_vector(vector, "a model", 2) == pytest.approx(stored)


def test_a_number_that_the_column_cannot_hold_is_not_finite() -> None:
    assert checked_vector([3.4e38, -3.4e38], "a model", 2)
    with pytest.raises(TransientError) as raised:
        checked_vector([0.5, 1e300], "a model", 2)

    assert raised.value.kind == "embedding_not_finite"
