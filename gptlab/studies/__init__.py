"""Studies: a question, arms, seeds; planned, matched, tuned, run and judged."""
