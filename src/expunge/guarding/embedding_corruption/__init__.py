"""The parts of embedding-corrupted prompts (ECO): gate, canonical texts, thresholds, token selection, corruption, tuning."""
