"""Several trainings, one after the other, by the same ranks: torchrun ... tests/ranks.py '[[override, ...], ...]'."""

import json

import torch

from gptlab import distributed, exits, report, train

report.draw_curve = lambda run_dir, ruler: run_dir  # half of the time of a tiny run


def main(argv: list[str]) -> None:
    with distributed.joined(torch.device("cpu")):
        for words in json.loads(argv[0]):
            train.main(words)


exits.run(main)
