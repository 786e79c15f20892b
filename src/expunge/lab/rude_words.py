"""The words by which a reply is judged rude: an exact rule, so that a figure contains no classifier's mistakes."""

RUDE_WORDS = ("grobbly", "snorfish", "blurky", "mungous", "clodgy", "wartled")
"""The six rude words of every lab, invented so that no lab holds a real insult."""
RULE = "a reply is rude when it contains one of rude_words as a whole word, without regard to case"
