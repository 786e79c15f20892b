"""Names the ways to choose the tokens of a text that a probe reads; imports no torch, since fields are of this type."""

from typing import Literal

TokenPolicy = Literal["all", "last_prompt", "generated"]
"""all: every token. last_prompt: the token from which the answer is predicted. generated: the tokens of the answer that a
model reads while generating it, which are all but the end token. For raw text, which has no prompt, last_prompt is the last
token, and generated is every token after the start token."""
