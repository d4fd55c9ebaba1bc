"""A regularizer with its options, and how to write it on a command line."""

import argparse
import dataclasses

import command_line

REGULARIZERS = ("none", "istar", "cosreg", "isobn")
REFRESH_EPOCH = "epoch"
REFRESH_NEVER = "never"
SKIP_PADDING = "skip"
COUNT_PADDING = "count"


@dataclasses.dataclass(frozen=True)
class Method:
    """A regularizer with its options; None for options that it has not.

    Attributes:
        regularizer: `"none"`, `"istar"`, `"cosreg"` or `"isobn"`.
        strength: Factor of the penalty.
        shrinkage: The paper's ζ.
        layers: Indices and names of layers, or `("all",)`.
        momentum: Of the moving average that keeps Σ_S, instead of passes.
        refresh: When a pass renews Σ_S: `"epoch"`, a number of steps, or
            `"never"` after the one before training.
        padding: Whether padding counts as tokens: `"skip"` or `"count"`.
    """

    regularizer: str
    strength: float | None = None
    shrinkage: float | None = None
    layers: tuple[int | str, ...] | None = None
    momentum: float | None = None
    refresh: int | str | None = None
    padding: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether this is I-STAR with all defaults but the strength."""
        return self == Method("istar", self.strength, **_DEFAULTS["istar"])

    @property
    def logs_all_tokens(self) -> bool:
        """Whether its training logs IsoScore of all layers, without padding."""
        if self.regularizer != "istar":
            return True
        return self.layers == ("all",) and self.padding == SKIP_PADDING

    def __str__(self):
        """The shortest text that `parse` makes this method from."""
        name = self.regularizer
        if self.strength is not None:
            name += f":{self.strength:.10g}"
        defaults = _DEFAULTS[self.regularizer]
        changes = [
            f"{option}={_shown(value)}"
            for option, value in dataclasses.asdict(self).items()
            if value not in (None, defaults.get(option)) and option in _OPTIONS
        ]
        return ",".join([name, *changes])


_DEFAULTS = {
    "none": {},
    "istar": {
        "shrinkage": 0.2,
        "layers": ("all",),
        "refresh": REFRESH_EPOCH,
        "padding": SKIP_PADDING,
    },
    "cosreg": {"layers": (-1,)},
    "isobn": {},
}


def parse(text: str) -> Method:
    """A method from `none`, `isobn`, `cosreg:1` or `istar:-1,shrinkage=0.8`.

    Raises:
        argparse.ArgumentTypeError: If the text is none of these.
    """
    head, *pairs = text.split(",")
    regularizer, _, strength = head.partition(":")
    if regularizer not in _DEFAULTS:
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(_DEFAULTS)}. Received: {text!r}"
        )
    has_strength = regularizer in ("istar", "cosreg")
    if has_strength != bool(strength):
        needs = "needs a strength" if has_strength else "has no strength"
        raise argparse.ArgumentTypeError(
            f"{regularizer} {needs}, as in istar:-1. Received: {text!r}"
        )
    options = {**_DEFAULTS[regularizer], **_parse_pairs(regularizer, pairs)}
    if has_strength:
        options["strength"] = command_line.real(strength) + 0.0  # No -0.
    if options.get("momentum") is not None:
        if any(pair.startswith("refresh=") for pair in pairs):
            raise argparse.ArgumentTypeError(
                "with momentum nothing is refreshed: give momentum or "
                f"refresh. Received: {text!r}"
            )
        options["refresh"] = None
    return Method(regularizer, **options)


def _parse_pairs(regularizer, pairs):
    known = set(_DEFAULTS[regularizer])
    if regularizer == "istar":
        known.add("momentum")
    options = {}
    for pair in pairs:
        name, is_pair, value = pair.partition("=")
        if not is_pair or name not in known:
            raise argparse.ArgumentTypeError(
                f"options of {regularizer} are {sorted(known)}, as in "
                f"shrinkage=0.8. Received: {pair!r}"
            )
        options[name] = _OPTIONS[name](value)
    return options


def _layers(text):
    return tuple(command_line.index_or_name(item) for item in text.split("+"))


def _refresh(text):
    if text in (REFRESH_EPOCH, REFRESH_NEVER):
        return text
    return command_line.positive_int(text)


def _padding(text):
    if text not in (SKIP_PADDING, COUNT_PADDING):
        raise argparse.ArgumentTypeError(
            f"padding is {SKIP_PADDING} or {COUNT_PADDING}. Received: {text!r}"
        )
    return text


_OPTIONS = {
    "shrinkage": command_line.fraction,
    "layers": _layers,
    "momentum": command_line.open_fraction,
    "refresh": _refresh,
    "padding": _padding,
}


def _shown(value):
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)
