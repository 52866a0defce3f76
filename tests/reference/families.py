"""All families, in the order of their years."""

from __future__ import annotations

from reference import families_gpt, families_llama, families_sparse

GROUPS = (
    families_gpt.learned, families_gpt.sloped, families_gpt.falcons, families_gpt.parallel,
    families_llama.llamas, families_llama.gemmas,
    families_sparse.mixtures, families_sparse.states,
)  # fmt: skip
FAMILIES = tuple(family for group in GROUPS for family in group())
