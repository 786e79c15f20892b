"""Methods made of others: what they are; `composing` carries them out."""
