"""Normalizations over the last dimension, built for a size: `Variant(size, *, options)`. One file per variant."""
