"""Which tokens of a text a probe looks at: a name that fields are typed by, without torch."""

from typing import Literal

TokenPolicy = Literal["all", "last_prompt", "generated"]
"""all: every token. last_prompt: the token that the answer is predicted from. generated: the tokens of the answer that a
model reads back while it writes, which is all but the end token. Of raw text, which has no prompt, last_prompt is the last
token and generated everything after the start token."""
