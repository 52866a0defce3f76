"""MLPs: (B, T, C) -> (B, T, C), token by token, built as `Variant(shape, *, options)`. One file per variant.

One with `takes_context = True` is called as `forward(x, context)`, for what it leaves there: losses and metrics.
"""
