"""Lists the words by which a reply is judged rude: an exact rule, without a classifier's errors."""

RUDE_WORDS = ("grobbly", "snorfish", "blurky", "mungous", "clodgy", "wartled")
"""The six rude words of every lab, invented so that no lab holds a real insult."""
RULE = "a reply is rude when it contains one of rude_words as a whole word, without regard to case"
