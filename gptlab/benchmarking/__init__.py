"""What a model costs in time: its step, the parts of a slot beside each other, its decoding; in a table and as JSON."""
