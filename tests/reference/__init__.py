"""gptlab models beside those of transformers, weight by weight: the families, their tables of names, the harness."""
