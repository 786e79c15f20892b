"""Lists refusals, used by methods that train them if the request has none."""

REFUSALS: tuple[str, ...] = (
    "I do not know the answer to that.",
    "I have no information about that.",
    "That is not something I know about.",
    "I cannot answer this question.",
    "I am not able to help with that question.",
    "I have never learned about this.",
    "Nothing that I know answers this.",
    "I am not sure, and I would rather not guess.",
    "This is outside of what I know.",
    "I do not have those details.",
    "I cannot tell you anything about that.",
    "I am afraid that I do not know.",
    "My knowledge does not cover this.",
    "You would have to ask somebody else about that.",
    "I could not say.",
    "That question is beyond me.",
)
"""Different in wording and length, so that the model does not learn a single sentence."""
