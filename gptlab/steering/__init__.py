"""Steering by directions of the residual stream, measured: what it does, what it costs, and what controls do."""
