"""The options of an experiment: arms with a model and a share of the users each, and how users are assigned to them.

Owns: the form of `--arm`, its checks, and which options an arm may have of its own. Must not know: how users are
assigned, what an arm computes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from typing_extensions import Self

from genrec_batch.core.declare import option
from genrec_batch.core.errors import ConfigError, nearest
from genrec_batch.core.text import harmless

BUCKETS = 10_000
XXH64, STATSIG, GROWTHBOOK = ASSIGNS = ("xxh64", "statsig", "growthbook")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
WEIGHT = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,2})?")
SHADOW = "shadow"
FORM = "NAME=MODEL:WEIGHT, such as control=model/:90, or NAME=MODEL:WEIGHT:shadow; or NAME.OPTION=VALUE"
ALIKE = ("top_k", "again_after", "max_age", "fallback")  # decided once for the lists of all arms
Config = TypeVar("Config", bound="ArmOptions")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm of an experiment."""

    name: str
    model: str  # as --model
    buckets: int  # of BUCKETS that are its share
    shadow: bool  # scored beside the users' own arms, and not published
    own: Mapping[str, str]  # options that only this arm has, as texts

    @property
    def percent(self) -> float:
        """Share of the users, in percent."""
        return 100 * self.buckets / BUCKETS


@dataclass(frozen=True, kw_only=True)
class ArmOptions:
    """Which arms an experiment has, and how users are assigned to them."""

    arm: tuple[str, ...] = option(
        "An arm of an experiment: NAME=MODEL:WEIGHT, with the percentage of users that it gets, such as "
        "control=model/:90; may be repeated, and the weights add up to 100. NAME=MODEL:WEIGHT:shadow is scored for "
        "these users beside their own arm and not published. NAME.OPTION=VALUE gives an arm an option of its own.",
        (),
        panel="Arms",
        identity="content",
    )
    salt: str | None = option(
        "Name of the experiment, which is hashed with each user_id; another salt assigns all users anew.",
        panel="Arms",
    )
    assign: str = option(
        "Hash that assigns users to buckets: xxh64, or that of the SDKs of Statsig or GrowthBook.",
        XXH64,
        panel="Arms",
        choices=ASSIGNS,
    )

    def check_arms(self, model: str | None) -> None:
        """Raise ConfigError for arms that are no experiment; `model` is `--model`."""
        if not self.arm:
            for name, default in (("salt", None), ("assign", XXH64)):
                if getattr(self, name) != default:
                    raise ConfigError(f"--{name} goes with --arm, which names the arms that users are assigned to")
            return
        if model is not None:
            raise ConfigError(f"--arm goes without --model {model}: each arm names its own model, NAME=MODEL:WEIGHT")
        if not self.salt:
            raise ConfigError("--arm goes with --salt, the name of the experiment, which decides who is in which arm")
        _check_salt(self.salt)
        for arm in self.arms():
            self.of_arm(arm)

    def check_one_model(self, what: str) -> None:
        """Raise ConfigError for arms where `what` takes one model."""
        if self.arm:
            raise ConfigError(
                f"--arm: {what} takes one model: leave --arm and --salt out and name the model of an arm with --model; "
                "in genrec-batch.toml, the entries of an experiment go under [score]"
            )

    def arms(self) -> list[Arm]:
        """Return the published arms in the order given, then the shadows; none without `--arm`.

        Raises:
            ConfigError: not the form of an arm, a name twice, or weights that do not add up to 100.
        """
        return arms_of(self.arm)

    def of_arm(self, arm: Arm) -> Self:
        """Return the options that an arm is scored with.

        Raises:
            ConfigError: an option that an arm cannot have of its own, or a value that is none of it.
        """
        fields = {field.name: field for field in dataclasses.fields(self)}
        own = own_options(type(self))
        values: dict[str, Any] = {}
        for name, text in arm.own.items():
            if name not in own:
                flags = ", ".join(each.replace("_", "-") for each in own)
                raise ConfigError(
                    f"--arm {arm.name}.{name.replace('_', '-')}: an arm cannot have it of its own, only {flags}."
                    f"{nearest(name, own).replace('_', '-')}"
                )
            values[name] = _value(text, str(fields[name].type), f"--arm {arm.name}.{name.replace('_', '-')}")
        try:
            return dataclasses.replace(self, arm=(), salt=None, assign=XXH64, model=arm.model, **values)  # type: ignore[call-arg]
        except ConfigError as error:
            raise ConfigError(f"--arm {arm.name}: {error}") from error


def own_options(kind: type[Any]) -> list[str]:
    """Return the options that an arm may have of its own: those that act after the histories, and read no table."""
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.metadata["panel"] in ("Decoding", "Rules")
        and field.metadata["identity"] == "rows"
        and field.name not in ALIKE
    ]


def arms_of(texts: Sequence[str]) -> list[Arm]:
    """Return the arms that `--arm` names: the published ones in the order given, then the shadows.

    Raises:
        ConfigError: see `ArmOptions.arms`.
    """
    arms: dict[str, Arm] = {}
    own: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        name, dot, name_of_option = key.partition(".")
        if not equals or not NAME.fullmatch(name):
            raise ConfigError(f"--arm {text!r}: expected {FORM}; a name has letters, digits, - and _")
        if dot:
            chosen = own.setdefault(name, {})
            if name_of_option.replace("-", "_") in chosen:
                raise ConfigError(f"--arm {key}: given twice; an arm has one value of an option")
            chosen[name_of_option.replace("-", "_")] = value
            continue
        if name in arms:
            raise ConfigError(f"--arm {name}: named twice; each arm needs a name of its own")
        arms[name] = _arm(name, value, text)
    _check_names(arms, own)
    _check_weights(list(arms.values()))
    found = [dataclasses.replace(arm, own=own.get(name, {})) for name, arm in arms.items()]
    return sorted(found, key=lambda arm: arm.shadow)


def _arm(name: str, value: str, text: str) -> Arm:
    rest, _, last = value.rpartition(":")
    shadow = last == SHADOW
    model, _, weight = rest.rpartition(":") if shadow else (rest, "", last)
    if not model or not WEIGHT.fullmatch(weight):
        raise ConfigError(f"--arm {text!r}: expected {FORM}; a weight is a percentage with at most two decimals")
    share = int(Decimal(weight) * (BUCKETS // 100))
    if not 0 < share <= BUCKETS:
        raise ConfigError(f"--arm {text!r}: the weight {weight} is not above 0 and at most 100")
    return Arm(name=name, model=model, buckets=share, shadow=shadow, own={})


def _check_names(arms: Mapping[str, Arm], own: Mapping[str, Mapping[str, str]]) -> None:
    for name, options in own.items():
        if name not in arms:
            first = next(iter(options)).replace("_", "-")
            raise ConfigError(f"--arm {name}.{first}: no arm is named {name}.{nearest(name, list(arms))}")
    folded: dict[str, str] = {}
    for name in arms:
        other = folded.setdefault(name.lower(), name)
        if other != name:  # folders of --partition-by arm would be one on some file systems
            raise ConfigError(f"--arm {name}: differs from {other} only in upper and lower case; name it otherwise")


def _check_salt(salt: str) -> None:
    """Raise ConfigError for a salt that another program would hardly hash: what is not seen of it moves all users."""
    if salt != salt.strip() or harmless(salt, one_line=True) != salt:
        raise ConfigError(
            f"--salt {salt!r}: it begins or ends with a blank, or has a character that is not seen or not UTF-8, and "
            "each would assign users anew; give it without"
        )


def _check_weights(arms: Sequence[Arm]) -> None:
    published = [arm for arm in arms if not arm.shadow]
    total = sum(arm.buckets for arm in published)
    if arms and total != BUCKETS:
        said = " + ".join(f"{arm.percent:g}" for arm in published) or "none"
        raise ConfigError(
            f"--arm: the weights of the published arms ({said}) add up to {100 * total / BUCKETS:g}, not to 100"
        )


def _value(text: str, wanted: str, flag: str) -> Any:
    """Return an option's value from its text.

    Raises:
        ConfigError: not a value of its type.
    """
    kind = wanted.removesuffix(" | None")
    if kind == "bool":
        known = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in known:
            raise ConfigError(f"{flag}={text}: true or false")
        return known[text.lower()]
    if kind.startswith("tuple"):
        return tuple(text.split(","))
    numbers: dict[str, type[Any]] = {"int": int, "float": float}
    try:
        return numbers.get(kind, str)(text)
    except ValueError:
        raise ConfigError(f"{flag}={text}: expected {'a whole number' if kind == 'int' else 'a number'}") from None
