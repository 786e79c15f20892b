"""Which tokens of a text a probe looks at: a name that fields are typed by, without torch."""

from typing import Literal

TokenPolicy = Literal["all", "last_prompt", "generated"]
"""all: every token. last_prompt: the token from which the answer is predicted. generated: the tokens of the answer that a
model reads while generating it, which are all but the end token. For raw text, which has no prompt, last_prompt is the last
token, and generated is every token after the start token."""
