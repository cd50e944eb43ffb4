"""What a checkpoint's text encoders surely do not read of a prompt.

Owns a bound that holds for every tokenizer of the family without opening one: CLIP gives each run of letters, each
digit and each run of signs at least one token, T5 each word. What lies beyond the limit in these pieces is cut for
certain; where words fall into several tokens, more is. Refuses to guess the exact cut.
"""

import re
import unicodedata
from collections.abc import Mapping
from itertools import islice
from typing import Any

# A test holds this equal to kontext_model.text, which imports torch.
CLIP_LENGTH = 77
# CLIP's own pattern in Python's terms.
CLIP_PIECE = re.compile(r"<\|(?:start|end)oftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)
# Only the plainest white space, and no signs alone: what a tokenizer drops must not be counted.
T5_PIECE = re.compile(r"(?<![^ \t\r\n])(?=[^ \t\r\n]*\w)[^ \t\r\n]+")


def find_cuts(recipe: Mapping[str, Any], text_length: int) -> list[str]:
    """One sentence for each prompt of a recipe and each encoder that surely cuts it.

    `text_length` is T5's, in tokens. The negative prompt counts where it has an effect.
    """
    prompts = {"prompt": recipe["prompt"]}
    if recipe["true_cfg"] > 1 and recipe["negative_prompt"]:
        prompts["negative prompt"] = recipe["negative_prompt"]
    return [
        f"{name} {_shorten(prompt, 40)!r}: {sentence}"
        for name, prompt in prompts.items()
        for sentence in _tell_cuts(prompt, text_length)
    ]


def find_lost_words(prompt: str, pattern: re.Pattern[str], pieces: int) -> list[str]:
    """The words wholly beyond the first `pieces` matches of the pattern; signs alone are no words."""
    text = unicodedata.normalize("NFC", prompt)
    if len(text) <= pieces:
        return []
    unread = next(islice(pattern.finditer(text), pieces, None), None)
    if unread is None:
        return []
    begins_a_word = not text[: unread.start()][-1:].strip()
    rest = text[unread.start() :]
    return _list_words(rest if begins_a_word else re.sub(r"^\S+", "", rest))


def _tell_cuts(prompt: str, text_length: int) -> list[str]:
    sentences = []
    words = len(_list_words(prompt))
    # Room beside the tokens for start and end: two of CLIP's, one of T5's.
    by_clip = find_lost_words(prompt, CLIP_PIECE, CLIP_LENGTH - 2)
    by_t5 = find_lost_words(prompt, T5_PIECE, text_length - 1)
    if by_clip:
        sentences.append(
            f"at least {len(by_clip)} of its {words} words, from {_shorten(by_clip[0], 40)!r} on, are lost to CLIP's "
            f"summary ({CLIP_LENGTH} tokens); T5 reads {'on, up to ' if by_t5 else ''}{text_length} tokens"
        )
    if by_t5:
        sentences.append(
            f"at least {len(by_t5)} of its {words} words, from {_shorten(by_t5[0], 40)!r} on, are lost altogether: T5 "
            f"reads {text_length} tokens; shorten it"
        )
    return sentences


def _list_words(text: str) -> list[str]:
    return [word for word in text.split() if any(map(str.isalnum, word))]


def _shorten(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
