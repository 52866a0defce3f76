"""The shapes in signatures hold: every function is checked by beartype while models run, in a process apart."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from jaxtyping import install_import_hook

with install_import_hook("gptlab", "beartype.beartype"):
    import torch
    import gptlab.conformance
    from gptlab import registry
    from gptlab.conformance import SLOTS, cases_for
    from gptlab.components.attention import kernels

kernels._flex_can_run = lambda q, v: False  # FlexAttention traces what it is given, and the checks cannot be traced
torch.set_num_threads(1)
ran = 0
for slot in SLOTS:
    for name in registry.names(slot):
        for case in cases_for(slot, name):
            model = case.model(dtype=torch.float32)
            tokens = case.tokens(n_rows=3)
            total = model.train().loss(tokens, tokens)[0]
            total.backward()
            model.eval()
            cache = model.new_cache(3, 24)
            with torch.no_grad():
                for piece in tokens.split([5, 1, 18], dim=1):
                    assert model(piece, cache).shape == (3, piece.shape[1], 29)
            ran += 1
for wrong in (torch.zeros(3, dtype=torch.long), torch.zeros(2, 3)):
    try:
        model(wrong)
    except Exception as error:
        assert "jaxtyping" in type(error).__module__, error
    else:
        raise SystemExit("a wrong shape passed: the signatures are not checked")
print(ran)
"""


def test_the_shapes_in_signatures_hold_for_every_variant() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 50
