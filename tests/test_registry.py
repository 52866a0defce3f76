"""The registry: a signature is a schema, and what does not fit it is one line with the nearest right word."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest

from gptlab import registry
from gptlab.errors import MANY, ConfigError, did_you_mean


def sample() -> type:
    @registry.register("mlp", "sample")
    class Sample:
        """A part with one option of every type.

        More about it.
        """

        def __init__(
            self,
            shape: Any,
            *,
            needed: Annotated[str, "a word that must be given"],
            size: Annotated[int, "a size"] = 4,
            rate: Annotated[float, "a rate"] = 0.5,
            on: Annotated[bool, "a switch"] = False,
            window: Annotated[int | None, "a window"] = None,
            kind: Annotated[Literal["soft", "hard"], "a kind"] = "soft",
            names: Annotated[list[str], "names"] = ("a",),
        ) -> None:
            self.given = {
                "needed": needed,
                "size": size,
                "rate": rate,
                "on": on,
                "window": window,
                "kind": kind,
                "names": names,
            }

    return Sample


def test_options_are_read_from_the_signature() -> None:
    found = registry.options(sample())
    assert list(found) == ["needed", "size", "rate", "on", "window", "kind", "names"]
    assert found["size"].default == 4
    assert found["size"].meaning == "a size"
    assert found["kind"].choices == ("soft", "hard")
    assert registry.meaning(registry.get("mlp", "sample")) == "A part with one option of every type."


def test_a_variant_is_built_with_its_options_and_no_others() -> None:
    sample()
    spec = {"name": "sample", "needed": "x", "rate": 2, "window": 3, "names": ["b", "c"]}
    built = registry.build("mlp", spec, None)
    assert built.given == {
        "needed": "x",
        "size": 4,
        "rate": 2.0,
        "on": False,
        "window": 3,
        "kind": "soft",
        "names": ["b", "c"],
    }
    assert type(built.given["rate"]) is float


FAULTS = [
    ("sampel", "There is no mlp named 'sampel'. Did you mean 'sample'?"),
    ({"name": "sample"}, "needs a word that must be given: give model.mlp.needed="),
    ({"needed": "x"}, "mapping with a name and options, but {'needed': 'x'} is a mapping without a name."),
    (3, "neither"),
    ({"name": "sample", "needed": "x", "siez": 1}, "no option 'siez'. Did you mean 'size'?"),
    ({"name": "sample", "needed": "x", "size": "big"}, "model.mlp.size must be a whole number, but 'big' is not"),
    ({"name": "sample", "needed": "x", "size": 1.5}, "must be a whole number"),
    ({"name": "sample", "needed": "x", "size": True}, "must be a whole number"),
    ({"name": "sample", "needed": "x", "rate": "fast"}, "must be a number"),
    ({"name": "sample", "needed": "x", "on": 1}, "must be true or false"),
    ({"name": "sample", "needed": "x", "window": "abc"}, "must be a whole number or null"),
    ({"name": "sample", "needed": "x", "kind": "sotf"}, "one of soft, hard, but 'sotf' is not. Did you mean 'soft'?"),
    ({"name": "sample", "needed": "x", "kind": "loud"}, "must be one of soft, hard, but 'loud' is not."),
    ({"name": "sample", "needed": "x", "names": [1]}, "a list of str"),
    ({"name": "sample", "needed": 3}, "must be a word"),
]


@pytest.mark.parametrize("spec, told", FAULTS)
def test_what_does_not_fit_is_one_line(spec: Any, told: str) -> None:
    sample()
    with pytest.raises(ConfigError) as refused:
        registry.build("mlp", spec, None)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_choices_are_told_once() -> None:
    sample()
    with pytest.raises(ConfigError) as refused:
        registry.build("mlp", {"name": "sample", "needed": "x", "kind": "loud"}, None)
    assert str(refused.value).count("hard") == 1


def test_all_that_is_missing_is_asked_for_at_once() -> None:
    @registry.register("mlp", "two")
    class Two:
        def __init__(
            self, shape: Any, *, one: Annotated[int, "a first"], other: Annotated[int, "a second"]
        ) -> None: ...

    with pytest.raises(ConfigError, match=r"needs a first; a second: give model.mlp.one=... and model.mlp.other=...$"):
        registry.build("mlp", "two", None)


NESTED = [
    ("sampel", "There is no mlp named 'sampel' for model.mlp.inner. Did you mean 'sample'?"),
    ({"needed": "x"}, "model.mlp.inner must be a name"),
    ({"name": "sample", "needed": "x", "siez": 1}, "mlp 'sample' for model.mlp.inner has no option 'siez'"),
    ({"name": "sample", "needed": "x", "size": "big"}, "model.mlp.inner.size must be a whole number"),
    ({"name": "sample"}, "give model.mlp.inner.needed="),
]


@pytest.mark.parametrize("spec, told", NESTED)
def test_a_part_within_a_part_is_named_by_its_setting(spec: Any, told: str) -> None:
    sample()
    with pytest.raises(ConfigError) as refused:
        registry.build("mlp", spec, None, where="model.mlp.inner")
    assert told in str(refused.value)


def test_many_names_are_left_to_the_command_that_shows_them() -> None:
    few, many = [f"name{i}" for i in range(MANY)], [f"name{i}" for i in range(MANY + 1)]
    assert did_you_mean("xyz", few).count("name") == MANY
    assert did_you_mean("xyz", many, "gptlab list") == "None of the 21 is near: `gptlab list` shows them."
    assert did_you_mean("nane7", many) == "Did you mean 'name7'?"


def test_complete_writes_every_option_out() -> None:
    sample()
    spec = registry.complete("mlp", {"name": "sample", "needed": "x", "size": 9})
    assert set(spec) == {"name", *registry.options(registry.get("mlp", "sample"))}
    assert (spec["size"], spec["rate"]) == (9, 0.5)
    assert registry.complete("mlp", spec) == spec


def test_a_schema_has_the_types_that_hydra_can_check() -> None:
    sample()
    schema = registry.schema("mlp", "sample")()
    assert (schema.name, schema.needed, schema.names) == ("sample", "???", ["a"])


def test_two_classes_under_one_name_are_both_named() -> None:
    sample()
    with pytest.raises(ConfigError, match=r"is both .* and .*: rename one") as refused:

        @registry.register("mlp", "sample")
        class Other: ...

    assert "Sample" in str(refused.value)
    assert "Other" in str(refused.value)


def test_the_same_class_may_come_twice() -> None:
    assert sample() is not sample()


@pytest.mark.parametrize("slot, name", [("mpl", "x"), ("mlp", "two words"), ("mlp", "")])
def test_a_slot_or_name_that_cannot_be_is_refused(slot: str, name: str) -> None:
    with pytest.raises(ConfigError):
        registry.register(slot, name)(object)


def test_options_of_a_base_are_handed_on_by_two_stars() -> None:
    base = sample()

    @registry.register("mlp", "wider")
    class Wider(base):  # type: ignore[valid-type, misc]
        def __init__(self, shape: Any, *, size: int = 8, more: Annotated[int, "more"] = 1, **options: Any) -> None:
            super().__init__(shape, size=size, **options)

    found = registry.options(Wider)
    assert list(found) == ["size", "more", "needed", "rate", "on", "window", "kind", "names"]
    assert found["size"].default == 8
    assert registry.build("mlp", {"name": "wider", "needed": "x"}, None).given["size"] == 8


def test_two_stars_that_no_base_writes_out_are_refused() -> None:
    with pytest.raises(ConfigError, match="written out by name"):

        @registry.register("mlp", "anything")
        class Anything:
            def __init__(self, shape: Any, **options: Any) -> None: ...


def test_every_option_of_ours_says_what_it_means() -> None:
    for slot in registry.SLOTS:
        for name in registry.names(slot):
            for option in registry.options(registry.get(slot, name)).values():
                assert option.meaning, f"{slot} {name}: {option.name} does not say what it means"
