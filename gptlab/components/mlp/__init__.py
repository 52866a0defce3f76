"""MLPs: (B, T, C) -> (B, T, C), token by token, built as `Variant(shape, *, options)`. One file per variant."""
