"""Learning-rate schedules: step -> factor of the peak rate, built as `Variant(steps, *, options)`."""

from __future__ import annotations

import math
from typing import Annotated

from gptlab.errors import ConfigError
from gptlab.registry import register


class Schedule:
    """Base: a linear warmup to 1, then `after(progress)` with progress from 0 to 1 over the remaining steps."""

    def __init__(self, steps: int, warmup: int | None) -> None:
        warmup = min(100, steps // 10) if warmup is None else warmup
        if not 0 <= warmup < steps:
            raise ConfigError(f"schedule.warmup must be from 0 to trainer.steps - 1 = {steps - 1}, but is {warmup}.")
        self.steps, self.warmup = steps, warmup

    def __call__(self, step: int) -> float:
        """The factor for step 0, 1, ..., steps - 1."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return self.after((step - self.warmup) / (self.steps - self.warmup))

    def after(self, progress: float) -> float:
        """The factor once warm."""
        return 1.0


@register("schedule", "constant")
class Constant(Schedule):
    """Warmup, as in Goyal et al. 2017, arXiv:1706.02677, then the peak rate to the end."""

    def __init__(
        self,
        steps: int,
        *,
        warmup: Annotated[int | None, "steps of linear rise; null: 100, at most a tenth of all"] = None,
    ) -> None:
        super().__init__(steps, warmup)


@register("schedule", "inverse_sqrt")
class InverseSqrt(Schedule):
    """Warmup, then the peak over the root of the steps, counted in warmups. Vaswani et al. 2017, arXiv:1706.03762."""

    def __init__(
        self,
        steps: int,
        *,
        warmup: Annotated[int | None, "steps of linear rise; null: 100, at most a tenth of all"] = None,
    ) -> None:
        super().__init__(steps, warmup)

    def after(self, progress: float) -> float:
        """sqrt(warmup / step), both counted from 1."""
        first = self.warmup + 1
        return math.sqrt(first / (first + progress * (self.steps - self.warmup)))


class Decaying(Schedule):
    """A schedule that ends at `final` of the peak."""

    def __init__(self, steps: int, warmup: int | None, final: float) -> None:
        super().__init__(steps, warmup)
        if not 0 <= final <= 1:
            raise ConfigError(f"schedule.final is a share of the peak rate in [0, 1], but is {final}.")
        self.final = final

    def fall(self, share: float) -> float:
        """1 at share 1, `final` at share 0."""
        return self.final + (1 - self.final) * share


@register("schedule", "cosine")
class Cosine(Decaying):
    """Warmup, then half a cosine down to `final` of the peak. Loshchilov & Hutter 2016, arXiv:1608.03983."""

    def __init__(
        self,
        steps: int,
        *,
        warmup: Annotated[int | None, "steps of linear rise; null: 100, at most a tenth of all"] = None,
        final: Annotated[float, "last learning rate over the peak"] = 0.1,
    ) -> None:
        super().__init__(steps, warmup, final)

    def after(self, progress: float) -> float:
        """Half a cosine."""
        return self.fall((1 + math.cos(math.pi * progress)) / 2)


@register("schedule", "linear")
class Linear(Decaying):
    """Warmup, then a straight line down to `final` of the peak. BERT: Devlin et al. 2018, arXiv:1810.04805."""

    def __init__(
        self,
        steps: int,
        *,
        warmup: Annotated[int | None, "steps of linear rise; null: 100, at most a tenth of all"] = None,
        final: Annotated[float, "last learning rate over the peak"] = 0.0,
    ) -> None:
        super().__init__(steps, warmup, final)

    def after(self, progress: float) -> float:
        """A straight line."""
        return self.fall(1 - progress)


@register("schedule", "wsd")
class WarmupStableDecay(Decaying):
    """Warmup, the peak rate, then a line down over the last share of the steps. Hu et al. 2024, arXiv:2404.06395."""

    def __init__(
        self,
        steps: int,
        *,
        warmup: Annotated[int | None, "steps of linear rise; null: 100, at most a tenth of all"] = None,
        decay: Annotated[float, "share of the steps after warmup that decay"] = 0.2,
        final: Annotated[float, "last learning rate over the peak"] = 0.0,
    ) -> None:
        super().__init__(steps, warmup, final)
        if not 0 < decay <= 1:
            raise ConfigError(f"schedule.decay is a share of the steps in (0, 1], but is {decay}.")
        self.decay = decay

    def after(self, progress: float) -> float:
        """Flat, then a straight line."""
        return self.fall(min(1.0, (1 - progress) / self.decay))
