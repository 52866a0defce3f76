"""The page of a comparison: one file that needs no network and no scripts, readable on a phone, a desk and on paper;
and beside it verdict.json, table.md, table.csv and the figures.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from gptlab import pages
from gptlab.comparison import figures, steps, table
from gptlab.comparison.pairing import agreement
from gptlab.comparison.records import Comparison, RunRecord, differences
from gptlab.comparison.verdict import Verdict, judge
from gptlab.comparison.words import count, matched, recipe, score, sentence, setting, unit
from gptlab.files import write_atomically
from gptlab.runlog import to_json

SAMPLE = 700  # letters of a text that are shown
DECLARED = (  # of a plan, for a preset that declares it again
    *("question", "base", "baseline", "match", "width", "tolerance", "tune", "tune_points", "tune_extra"),
    *("tune_seeds", "screen", "ladder", "stepwise", "published", "seeds", "metric", "better", "margin"),
)
CAPTIONS = {
    "forest": "Effects with their 95% intervals. The band is the margin within which arms are equivalent; the ticks "
    "under an interval are the differences of single seeds. A hollow mark is not settled.",
    "curves": "Mean of the finished runs and one standard deviation around it; dotted, where it is in the picture, "
    "what n-grams score on the same split. The first drop of the losses is above it.",
    "pareto": "The end of each arm against what its training cost, with the 95% interval of its effect. The grey line "
    "joins the arms that no other beats in both; the others are hollow.",
    "ladder": "The effect at each size with its 95% interval. A description of these sizes, not a promise for others.",
    "rates": "Every learning rate tried on the tuning seeds; the best of each arm is filled.",
}


def write(comparison: Comparison, out: Path) -> Path:
    """Judge, and write verdict.json, table.md, table.csv, figures/ and index.html under `out`; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    verdict = verdict_of(comparison)
    ladder = ladder_of(comparison, verdict)
    drawn = figures.draw(comparison, verdict, ladder, out / "figures")
    facts = {
        "plan": (comparison.plan or {}).get("hash"),
        **{name: getattr(comparison, name) for name in ("metric", "better", "margin", "baseline")},
        **dataclasses.asdict(verdict),
        "values": comparison.values(),
        "ladder": {size: dataclasses.asdict(found)["effects"] for size, found in ladder.items()},
        "signs": signs(ladder),
        "steps": steps.of(comparison, verdict),
        "unpaired": comparison.unpaired,
        "failures": [_failure(record) for record in comparison.failures()],
    }
    _write(out / "verdict.json", json.dumps(json.loads(to_json(facts)), ensure_ascii=False, indent=2) + "\n")
    _write(out / "table.md", table.markdown(comparison, verdict))
    _write(out / "table.csv", table.csv(comparison, verdict))
    _write(out / "index.html", render(comparison, verdict, ladder, drawn))
    return out / "index.html"


def verdict_of(comparison: Comparison, arms: Mapping[str, Sequence[RunRecord]] | None = None) -> Verdict:
    """The verdict of the test, or of the arms of another phase."""
    values = comparison.values(None if arms is None else {arm: list(records) for arm, records in arms.items()})
    values = {comparison.baseline: {}, **values}
    return judge(values, comparison.baseline, margin=comparison.margin, better=comparison.better)


def ladder_of(comparison: Comparison, verdict: Verdict) -> dict[str, Verdict]:
    """The verdict at each size by its factor, smallest first; empty when there is one size."""
    phases = {phase: arms for phase, arms in comparison.others.items() if _factor(phase) is not None}
    found = {_factor(phase) or 0.0: verdict_of(comparison, arms) for phase, arms in phases.items()}
    sizes = {**found, 1.0: verdict} if found else {}
    return {f"{factor:g}": sizes[factor] for factor in sorted(sizes)}


def signs(ladder: Mapping[str, Verdict]) -> list[str]:
    """Whether the sign of each effect is the same at every size."""
    lines = []
    for arm in dict.fromkeys(effect.arm for verdict in ladder.values() for effect in verdict.effects):
        met = [effect for verdict in ladder.values() for effect in verdict.effects if effect.arm == arm]
        means = [effect.mean for effect in met if effect.verdict != "none"]
        below, above = sum(mean < 0 for mean in means), sum(mean > 0 for mean in means)
        one_sign = below == len(means) or above == len(means)
        at = f"one sign at all {len(means)} sizes" if one_sign else f"no one sign: below 0 at {below}, above at {above}"
        lines.append(f"{arm}: {at}.")
    return lines


def told(comparison: Comparison) -> list[str]:
    """What tuning and screening came to, as the study's own summary.json tells."""
    lines = []
    for arm, found in (comparison.facts.get("tuning") or {}).items():
        spread = "" if found.get("sensitivity") is None else f", sensitivity {found['sensitivity']:.3g}"
        edge = ", the best at the edge of what was tried" if found.get("at_edge") else ""
        lines.append(f"{arm}: learning rate {found['rate']:g} of {len(found.get('tried') or {})} tried{spread}{edge}.")
    for rung in comparison.facts.get("screening") or []:
        for arm, (low, high) in rung["left"].items():
            lines.append(f"{rung['phase']}: {arm} left, since [{low:+.4f}, {high:+.4f}] rules out that it is better.")
        if rung.get("kept"):
            lines.append(f"{rung['phase']}: {rung['kept']} stayed as the last variant, though it looked worse.")
    return lines


def render(comparison: Comparison, verdict: Verdict, ladder: Mapping[str, Verdict], drawn: Mapping[str, str]) -> str:
    """The page as text."""
    records = list(comparison.records())
    return pages.fill(
        Path(__file__).with_name("page.html"),
        comparison=comparison,
        verdict=verdict,
        plan=comparison.plan or {},
        ladder=signs(ladder),
        told=told(comparison),
        steps=steps.of(comparison, verdict),
        step_columns=steps.COLUMNS,
        without_a_model=steps.without_a_model(comparison),
        sentences=[(effect, sentence(effect, comparison)) for effect in verdict.effects],
        done=sum(record.status == "done" for record in records),
        records=records,
        regime=regime(comparison, verdict),
        figures={name: Markup(svg) for name, svg in drawn.items()},
        axes=figures.AXES,
        captions=CAPTIONS,
        rows=table.rows(comparison, verdict),
        halves={"What was found": table.FINDING, "What it cost": table.COSTING},
        seeds=sorted({record.seed for arm in comparison.arms.values() for record in arm}),
        by_seed={arm: {one.seed: _outcome(one, comparison) for one in comparison.arms[arm]} for arm in comparison.arms},
        differing=_differing(comparison),
        samples=_samples(comparison),
        failures=[_failure(record) for record in comparison.failures()],
        agreement=agreement(comparison),
        again=again(comparison),
    )


def regime(comparison: Comparison, verdict: Verdict) -> dict[str, str]:
    """What the verdict holds for, and no further: text, size, length, terms."""
    first = comparison.first(comparison.baseline)
    config, summary = (first.config, first.summary) if first else ({}, {})
    seeds = sorted({record.seed for arm in comparison.arms.values() for record in arm})
    facts = {
        "Metric": f"{comparison.metric} at the end of a run, {comparison.better} is better",
        **(_setting_of(config, summary) if config else {}),
        "Costs": matched(comparison),
        "Recipe": recipe(comparison),
        "Seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "none",
        "Margin": f"{comparison.margin:g} {unit(comparison.metric)}",
        **_power(verdict, unit(comparison.metric)),
        "Hardware": ", ".join(_machine(summary)),
    }
    return {name: fact for name, fact in facts.items() if fact}


def again(comparison: Comparison) -> str:
    """What to type to do it again."""
    if comparison.plan:
        known = {key: comparison.plan.get(key) for key in DECLARED}
        declared = {
            key: value for key, value in known.items() if value not in (None, [], "", "none") and value is not False
        }
        declared = {key: value for key, value in declared.items() if "tune" in declared or not key.startswith("tune_")}
        arms = {arm["name"]: arm.get("overrides") or [] for arm in comparison.plan.get("arms", [])}
        preset = yaml.safe_dump(
            {**declared, "arms": arms}, sort_keys=False, allow_unicode=True, default_flow_style=None
        )
        where = shlex.quote(str(comparison.path))
        return f"""gptlab study dir={where}    # goes on where it stopped, or extends it: seeds=8
gptlab study study=again.yaml    # does it anew, with this file:

{preset}"""
    firsts = [first for arm in comparison.arms if (first := comparison.first(arm))]
    trained = [f"gptlab train {shlex.join(first.overrides)}".rstrip() for first in firsts]
    return "\n".join([*trained, f"gptlab compare {shlex.join(map(str, comparison.given))}"])


def _power(verdict: Verdict, kind: str) -> dict[str, str]:
    """What the study could see, where there were seeds enough to know."""
    if not math.isfinite(verdict.pooled_sd):
        return {}
    error = f"{score(verdict.pooled_sd)} {kind}, {'pooled over the arms' if verdict.pooled else 'per arm'}"
    correlation = verdict.seed_correlation
    return {
        "Least detectable effect": f"{score(verdict.detectable)} {kind}, at 80% power",
        "Standard deviation of a run": error,
        "Correlation of arms over seeds": f"{correlation:.2f}" if math.isfinite(correlation) else "",
    }


def _setting_of(config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, str]:
    """Text, model and training of the baseline."""
    model, trainer = config.get("model") or {}, config.get("trainer") or {}
    tokens, steps = summary.get("tokens"), summary.get("step")
    each = tokens / steps if tokens and steps else None
    shape = {"layers": "n_layer", "heads": "n_head", "wide": "n_embd", "tokens of context": "block_size"}
    size = [
        f"{model[key]} {word.removesuffix('s') if model[key] == 1 else word}"
        for word, key in shape.items()
        if key in model
    ]
    return {
        "Data": f"{_spec(config.get('data'))}, tokens by {_spec(config.get('tokenizer'))}",
        "Baseline's size": ", ".join([*size, f"{count(summary.get('parameters'))} parameters"]),
        "Training": f"{setting(trainer.get('steps'))} steps of {count(each)} tokens, {_spec(config.get('optimizer'))}, "
        f"{_spec(config.get('schedule'))}",
    }


def _spec(spec: Any) -> str:
    """A variant as a word, with the file it reads or its learning rate."""
    if not isinstance(spec, Mapping):
        return str(spec)
    detail = Path(str(spec["path"])).name if spec.get("path") else ""
    detail = f"lr {setting(spec['lr'])}" if spec.get("lr") else detail
    return f"{spec.get('name')} ({detail})" if detail else str(spec.get("name"))


def _machine(summary: Mapping[str, Any]) -> list[str]:
    """Where it ran: the device, in which precision, with which torch."""
    hardware, versions = summary.get("hardware") or {}, summary.get("versions") or {}
    torch = f"torch {versions['torch']}" if "torch" in versions else None
    cpu = f"{hardware['cores']} cores of {hardware.get('cpu')}" if "cores" in hardware else hardware.get("device")
    return [str(word) for word in (hardware.get("gpu") or cpu, summary.get("precision"), torch) if word]


def _outcome(record: RunRecord, comparison: Comparison) -> str:
    """What a run came to, in a cell."""
    if record.diverged(comparison.metric):
        return "diverged"
    value = record.value(comparison.metric)
    return score(value) if record.status == "done" and value is not None else record.status


def _differing(comparison: Comparison) -> dict[str, list[str]]:
    """The settings in which the arms differ, and nothing else of their configs."""
    firsts = [comparison.first(arm) for arm in comparison.arms]
    found = differences([first.config if first else {} for first in firsts])
    return {key: [setting(value) for value in values] for key, values in found.items()}


def _samples(comparison: Comparison) -> list[dict[str, Any]]:
    """The last text of the first finished run of each arm."""
    found = []
    for arm in comparison.arms:
        first = comparison.first(arm)
        if first and (texts := first.samples()):
            text = str(texts[-1].get("text", ""))
            cut = text if len(text) <= SAMPLE else f"{text[:SAMPLE]} …"
            found.append({"arm": arm, "seed": first.seed, "step": texts[-1].get("step"), "text": cut})
    return found


def _failure(record: RunRecord) -> dict[str, Any]:
    known = {name: getattr(record, name) for name in ("phase", "arm", "seed", "status")}
    return {**known, "error": record.reason(), "path": str(record.path)}


def _factor(phase: str) -> float | None:
    """2 of x2; None of a phase that is no size."""
    try:
        return float(phase[1:]) if phase.startswith("x") else None
    except ValueError:
        return None


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode("utf-8", "replace"))
