"""From a row to tokens: the prompt a model is asked with, the completion it learns, and the mask between them.

The prompt is rendered by the tokenizer's chat template (instruction and input as the user's turn) or, where the
model has none, by the prompt of Stanford Alpaca. Training and generation use the same function, so that a
model is asked exactly as it was taught. Only the completion is learned, with the token that ends the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from launcher.datafile import Row

IGNORED = -100  # the label that torch's cross entropy passes over

# https://github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
# Llama 3's templates write today's date unless they are given one; this is the one they fall back to.
_DATE = "26 Jul 2024"


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens. labels equal input_ids where the token is learned and IGNORED elsewhere."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_learned(self) -> int:
        """Number of tokens that are learned. The first token never is: nothing comes before it to predict it from."""
        return sum(label != IGNORED for label in self.labels)


def has_template(tokenizer: Any) -> bool:
    """Whether prompts are rendered by the tokenizer's own chat template."""
    return bool(tokenizer.chat_template)


def prompts(tokenizer: Any, rows: Sequence[Row]) -> list[str]:
    """The text each row's answer is generated from, special tokens included."""
    if not has_template(tokenizer):
        bos = tokenizer.bos_token if _adds_bos(tokenizer) else ""
        return [bos + _alpaca_prompt(row) for row in rows]
    if _asks_as_it_answers(tokenizer):
        return [_render(tokenizer, row, None) for row in rows]
    # Such a template opens the turn with something an answer does not have (DeepSeek-R1's <think>).
    return [_common_beginning(_render(tokenizer, row, "A"), _render(tokenizer, row, "B")) for row in rows]


def encode(tokenizer: Any, rows: Sequence[Row]) -> list[Example]:
    """Tokens and labels of each row, uncut."""
    asked = prompts(tokenizer, rows)
    answered = [_completion(tokenizer, row, prompt) for row, prompt in zip(rows, asked, strict=True)]
    prompt_ids = tokenise(tokenizer, asked)
    whole_ids = tokenise(tokenizer, [prompt + answer for prompt, answer in zip(asked, answered, strict=True)])
    return [_mask(tokenizer, *ids) for ids in zip(prompt_ids, whole_ids, answered, strict=True)]


def tokenise(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that already hold their special tokens."""
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []


def _mask(tokenizer: Any, prompt_ids: list[int], whole_ids: list[int], completion: str) -> Example:
    """Mask the prompt. Where the two texts share a token across their border they are tokenised apart instead,
    as generation sees them."""
    num_prompt = len(prompt_ids)
    if whole_ids[:num_prompt] == prompt_ids:
        completion_ids = whole_ids[num_prompt:]
    else:
        completion_ids = tokenise(tokenizer, [completion])[0]
    return Example(prompt_ids + completion_ids, [IGNORED] * num_prompt + completion_ids)


def _completion(tokenizer: Any, row: Row, prompt: str) -> str:
    """What follows the prompt: the answer and the token that ends the turn, and nothing after it."""
    if not has_template(tokenizer):
        return row.output + tokenizer.eos_token
    whole = _render(tokenizer, row, row.output)
    assert whole.startswith(prompt), f"the chat template changes the prompt once it is answered: {row.instruction!r}"
    completion = whole[len(prompt) :]
    ended = completion.rstrip()
    return ended if ended.endswith(_special_tokens(tokenizer)) else completion + tokenizer.eos_token


def _render(tokenizer: Any, row: Row, answer: str | None) -> str:
    content = f"{row.instruction}\n\n{row.input}" if row.input.strip() else row.instruction
    messages = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=answer is None, date_string=_DATE
    )


def _alpaca_prompt(row: Row) -> str:
    form = _ALPACA_INPUT if row.input.strip() else _ALPACA_NO_INPUT
    return form.format(instruction=row.instruction, input=row.input)


def _asks_as_it_answers(tokenizer: Any) -> bool:
    probe = Row("Question", "", "Answer")
    return _render(tokenizer, probe, "Answer").startswith(_render(tokenizer, probe, None))


def _common_beginning(first: str, second: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(character for character, _ in same)


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple({*tokenizer.all_special_tokens, *added})
