"""Looking inside: a file for each view, from a model and tokens to tensors; `drawing` makes figures of them."""

VIEWS = {  # as methods of a Lab are called, with their titles
    "attention": "Attention maps",
    "heads": "What heads do",
    "lens": "Logit lens",
    "attribution": "Direct logit attribution",
    "patch": "Activation patching",
    "compare": "Token by token against another run",
    "positions": "Loss by position",
    "embeddings": "Embeddings",
    "rope": "Rotary encoding",
    "stability": "Stability",
    "experts": "Expert load",
}
