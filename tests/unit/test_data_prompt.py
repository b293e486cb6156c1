"""jobs.prompt: what is asked, what is learned, and that the border between them is where generation puts it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs import prompt
from jobs.prompt import IGNORED
from launcher.datafile import Row
from tests.tiny import CHAT_TEMPLATE, make_alpaca_rows, make_tokenizer

ASK = Row("Count the animals.", "dog dog", "There are 2 animals, each a dog.")
ALONE = Row("Say {nothing}.", "", "No.")
HEADED = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"


def learned(tokenizer, example: prompt.Example) -> str:
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


def shown(tokenizer, examples: list[prompt.Example]) -> str:
    lines = []
    for example in examples:
        for token, label in zip(example.input_ids, example.labels, strict=True):
            lines.append(f"{token:>4} {label:>4} {tokenizer.decode([token])!r}")
        lines.append("")
    return "\n".join(lines)


@pytest.mark.parametrize("template", [True, False], ids=["template", "no-template"])
def test_tokens_and_labels(template: bool, golden: Callable[[str, str], None]) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    name = "chat" if template else "alpaca"
    golden(f"data/tokens-{name}.txt", shown(tokenizer, prompt.encode(tokenizer, [ASK, ALONE])))


def test_chat_prompt_and_completion() -> None:
    tokenizer = make_tokenizer()
    asked = "<|im_start|>user\nCount the animals.\n\ndog dog<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.prompts(tokenizer, [ASK]) == [asked]
    [example] = prompt.encode(tokenizer, [ASK])
    assert tokenizer.decode(example.input_ids) == asked + "There are 2 animals, each a dog.<|im_end|>"
    assert learned(tokenizer, example) == "There are 2 animals, each a dog.<|im_end|>"


def test_alpaca_prompt_and_completion() -> None:
    tokenizer = make_tokenizer(chat_template=False)
    [example] = prompt.encode(tokenizer, [ALONE])
    assert tokenizer.decode(example.input_ids) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSay {nothing}.\n\n### Response:\nNo.<|im_end|>"
    )
    assert learned(tokenizer, example) == "No.<|im_end|>"


@pytest.mark.parametrize("template", [True, False], ids=["template", "no-template"])
def test_the_masked_tokens_are_those_generation_begins_with(template: bool) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    rows = [Row(**row) for row in make_alpaca_rows(50)] + [ASK, ALONE, Row("a", "", "\n\nb\n"), Row("a", "", " b")]
    asked = prompt.tokenise(tokenizer, prompt.prompts(tokenizer, rows))
    for ids, example, row in zip(asked, prompt.encode(tokenizer, rows), rows, strict=True):
        assert example.input_ids[: len(ids)] == ids
        assert example.labels == [IGNORED] * len(ids) + example.input_ids[len(ids) :]
        assert learned(tokenizer, example) == row.output + tokenizer.eos_token


def test_a_token_across_the_border_is_split() -> None:
    tokenizer = make_tokenizer()
    asked, answer = "Cou", "nt"  # one token, were they tokenised together
    ids = prompt.tokenise(tokenizer, [asked, asked + answer])
    assert ids[1][: len(ids[0])] != ids[0]
    example = prompt._mask(tokenizer, ids[0], ids[1], answer)
    assert example.labels[: len(ids[0])] == [IGNORED] * len(ids[0])
    assert tokenizer.decode(example.input_ids) == "Count"
    assert learned(tokenizer, example) == "nt"


def test_a_template_without_an_end_gets_the_end_of_text() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    [example] = prompt.encode(tokenizer, [ALONE])
    assert tokenizer.decode(example.input_ids) == "user: Say {nothing}.\nassistant: No.\n<|im_end|>"
    assert learned(tokenizer, example) == "No.\n<|im_end|>"


def test_a_template_that_asks_otherwise_than_it_answers() -> None:
    """DeepSeek-R1's template opens the turn with <think>, which a finished answer does not have."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n' }}", "assistant\n<think>' }}")
    row = Row("Why?", "", "<thanks>")  # begins as <think> does
    assert prompt.prompts(tokenizer, [row]) == ["<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"]
    [example] = prompt.encode(tokenizer, [row])
    assert learned(tokenizer, example) == "<thanks><|im_end|>"


def test_a_template_that_opens_the_answer_with_an_empty_thought() -> None:
    """Qwen3's template puts an empty thought before the last answer; the model learns to write it."""
    tokenizer = make_tokenizer()
    thought = HEADED.replace(
        "message['content']", "('<think></think>' if message['role'] == 'assistant' else '') + message['content']"
    )
    tokenizer.chat_template = CHAT_TEMPLATE.replace(HEADED, thought)
    [example] = prompt.encode(tokenizer, [ALONE])
    assert learned(tokenizer, example) == "<think></think>No.<|im_end|>"


def test_a_beginning_of_text_is_kept_where_the_tokenizer_adds_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(chat_template=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    [example] = prompt.encode(tokenizer, [ALONE])
    assert example.input_ids.count(tokenizer.bos_token_id) == 1
    assert example.input_ids[0] == tokenizer.bos_token_id
