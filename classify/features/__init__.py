"""Which features carry the answer (I-score)."""
