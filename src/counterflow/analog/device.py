"""The imperfections of an analog chip, each a named field."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from counterflow.exceptions import InputError

__all__ = ["DeviceModel", "known_device"]


@dataclass(frozen=True, kw_only=True)
class DeviceModel:
    r"""What an analog chip does not do as the equations say; by default it does all.

    Signals are in units of the full scale that they are designed for, weights in units of gain, times in seconds, and
    learning rates and slopes as they are. What differs from cell to cell is drawn once, from the seed of whatever is
    made of the device: a normal deviate for every cell, times the field. So two devices that differ in one field differ
    in nothing else.

    A product of two signals is made by a four-quadrant multiplier,
    :math:`a \cdot b \to g\,(S(a) + o_a)(S(b) + o_b)`, of which a synapse has three: forward, :math:`w x`; backward,
    :math:`w \delta`; for the change of its weight, :math:`x \delta`.

    Attributes:
        multiplier_offset: Standard deviation of :math:`o_a` and :math:`o_b`, the offsets of each multiplier's two
            inputs, referred to the input at small signals. Section 4: "unwanted offsets".
        update_offset: Standard deviation of a current that flows to the weight's capacitor while it is written, added
            to the product :math:`x \delta`. Section 2: the multiplier for updates "requires high precision".
        gain_error: Standard deviation of :math:`g` about 1.
        saturation: s, where an input stage of a Gilbert cell saturates, :math:`S(u) = s \tanh(u / s)`; infinite if it
            is linear. Section 4: "nonlinearity". The hyperbolic tangent is taken to 1e-4.
        weight_range: The largest weight that a capacitor's charge stands for, to either side. Section 4: "limited
            dynamic ranges of synaptic weights".
        weight_resolution: The distance of the levels that a weight is rounded to when it is refreshed; 0 for none.
            Section 2: a digital processor and converters "refresh and adjust weights".
        leakage: :math:`\lambda`, by which the charge decays, per second: :math:`w(t) = w(0) e^{-\lambda t}`. Section 2:
            weights are charges on capacitors, which are to be refreshed.
        write_noise: Standard deviation of the random charge that each write leaves, in units of weight. Its bell is the
            sum of four uniform deviates, none of which is beyond 3.5 of them; in PyTorch (`AnalogLinear`, `deploy`) it
            is a normal one, from a generator.
        signal_range: Where signals and errors are clipped on their way into a synapse, to either side. Section 4:
            "limited dynamic ranges of ... signals".
        rate_resolution: Learning rates are multiples of it; 0 for any. Section 4: "limited resolution of the learning
            rate".
        slope_resolution: Slopes of sigmoids are multiples of it; 0 for any. Section 4: "and sigmoid slope".
        neuron_offset: Standard deviation of the offset at each neuron's input.
        amplifier_offset: Standard deviation of the offset of each operational amplifier, which are at the output of
            every neuron and on its error. Section 2: "offset voltage is introduced for operational amplifiers".
        tap_offset: One offset, the same at all taps of the delay line: the paper's line is parallel so that offsets do
            not add up along it. It is not drawn.
        min_select: Whether the bell of the sigmoid's derivative is the smaller of a differential pair's two currents,
            :math:`1 - |\tanh|`, and not :math:`1 - \tanh^2`. Section 2: "differential pair with min-select circuit".
            The paper shows no circuit; this is our reading of it.
        derivative_error: Standard deviation of the height of that bell, relative to its own.
        output_bits: Resolution of the computer's outputs, which are the chip's reference and target; None for any.
            Section 4: 8.
        input_bits: Resolution of the computer's inputs, which read the chip's output; None for any. Section 4: 16.
        converter_used: A condition: which fraction of the converters' full scale a signal of 1 takes, above 0 and at
            most 1. The paper does not state it.
        refresh_interval: A condition: in how many seconds each weight has its turn to be refreshed, one after another.
        sample_rate: A condition: samples a second, so writes a second.

    Raises:
        InputError: If a field is outside of its range.

    References:
        Cho and Lee (1998); Choi, Ahn and Lee, "Effects of multiplier offsets on on-chip learning for analog
        neuro-chip", Neural Processing Letters 4 (1996).

    Example:
        >>> DeviceModel.ideal() == DeviceModel(), DeviceModel.paper().output_bits
        (True, 8)
        >>> DeviceModel.paper().only("leakage", "write_noise").imperfections
        ('leakage', 'write_noise')
    """

    multiplier_offset: float = 0.0
    update_offset: float = 0.0
    gain_error: float = 0.0
    saturation: float = math.inf
    weight_range: float = math.inf
    weight_resolution: float = 0.0
    leakage: float = 0.0
    write_noise: float = 0.0
    signal_range: float = math.inf
    rate_resolution: float = 0.0
    slope_resolution: float = 0.0
    neuron_offset: float = 0.0
    amplifier_offset: float = 0.0
    tap_offset: float = 0.0
    min_select: bool = False
    derivative_error: float = 0.0
    output_bits: int | None = None
    input_bits: int | None = None
    converter_used: float = 1.0
    refresh_interval: float = 0.1
    sample_rate: float = 16_000.0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; give a number > 0")
        for name in _AT_LEAST_ZERO:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; give a finite number >= 0")
        for name in ("tap_offset", "sample_rate", "refresh_interval"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; give a finite number")
        for name in ("output_bits", "input_bits"):
            bits = getattr(self, name)
            if bits is not None and not (isinstance(bits, int) and not isinstance(bits, bool) and 1 <= bits <= 32):
                raise InputError(f"{name} is {bits!r}; give 1 to 32, or None for any resolution")
        if self.converter_used > 1:
            raise InputError(f"converter_used is {self.converter_used}; give a fraction above 0 and at most 1")
        if self.refresh_interval * self.sample_rate < 1:
            raise InputError(
                f"refresh_interval is {self.refresh_interval} s; give at least one sample, 1 / {self.sample_rate:g} s"
            )

    @classmethod
    def ideal(cls) -> Self:
        """A device that does what the equations say."""
        return cls()

    @classmethod
    def paper(cls) -> Self:
        """The paper's chip.

        The paper names its imperfections and measures none of them. The bits of the converters are the paper's. All
        else is our choice of what a chip of its kind, in its process, may have, made before any result: offsets of one
        or two parts in a hundred of full scale, gains that match to five in a hundred, weights that refresh rounds to
        eight bits, a charge that decays to a third in twenty seconds, and a quarter of the converters' full scale in
        use.
        """
        return cls(
            multiplier_offset=0.02,
            update_offset=0.001,
            gain_error=0.05,
            saturation=1.5,
            weight_range=2.0,
            weight_resolution=2.0 / 128,
            leakage=0.05,
            write_noise=1e-4,
            signal_range=1.0,
            rate_resolution=1.0 / 256,
            slope_resolution=1.0 / 16,
            neuron_offset=0.02,
            amplifier_offset=0.01,
            tap_offset=0.01,
            min_select=True,
            derivative_error=0.1,
            output_bits=8,
            input_bits=16,
            converter_used=0.25,
        )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all imperfections, which are all fields but the conditions.

        Example:
            >>> "leakage" in DeviceModel.names(), "sample_rate" in DeviceModel.names()
            (True, False)
        """
        return tuple(each.name for each in fields(cls) if each.name not in _CONDITIONS)

    @property
    def imperfections(self) -> tuple[str, ...]:
        """The names of those that this device has."""
        return tuple(name for name in self.names() if getattr(self, name) != _IDEAL[name])

    def without(self, *names: str) -> Self:
        """This device with some imperfections switched off.

        Raises:
            InputError: If a name is not that of an imperfection.

        Example:
            >>> DeviceModel(leakage=1.0, gain_error=0.1).without("leakage")
            DeviceModel(gain_error=0.1)
        """
        return replace(self, **{name: _IDEAL[name] for name in self._known(names)})

    def only(self, *names: str) -> Self:
        """This device with all imperfections but some switched off; the conditions stay.

        Raises:
            InputError: If a name is not that of an imperfection.
        """
        kept = self._known(names)
        return self.without(*(name for name in self.names() if name not in kept))

    def _known(self, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in self.names():
                raise InputError(f"{name!r} is no imperfection; give names among {', '.join(self.names())}")
        return names

    def __repr__(self) -> str:
        changed = [
            f"{each.name}={value!r}" for each in fields(self) if (value := getattr(self, each.name)) != each.default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def rate(self, step: float) -> float:
        """The multiple of the rate's resolution that is nearest to a learning rate.

        Raises:
            InputError: If that is zero.
        """
        return _nearest(step, self.rate_resolution, "step", "learning rate")

    def slope(self, slope: float) -> float:
        """The multiple of the slope's resolution that is nearest to a slope.

        Raises:
            InputError: If that is zero.
        """
        return _nearest(slope, self.slope_resolution, "slope", "slope")


def known_device(device: object) -> DeviceModel:
    """The device that was given, if it is one.

    Raises:
        InputError: If it is not.
    """
    if not isinstance(device, DeviceModel):
        raise InputError(f"device must be a DeviceModel such as DeviceModel.paper(), got {device!r}")
    return device


def _nearest(value: float, resolution: float, name: str, what: str) -> float:
    if not resolution:
        return value
    found = math.floor(value / resolution + 0.5) * resolution
    if not found:
        raise InputError(f"{name} is {value}, which rounds to zero; the chip's {what} has steps of {resolution:g}")
    return found


_CONDITIONS = ("converter_used", "refresh_interval", "sample_rate")
_POSITIVE = ("saturation", "weight_range", "signal_range", "converter_used", "refresh_interval", "sample_rate")
_AT_LEAST_ZERO = (
    "multiplier_offset",
    "update_offset",
    "gain_error",
    "weight_resolution",
    "leakage",
    "write_noise",
    "rate_resolution",
    "slope_resolution",
    "neuron_offset",
    "amplifier_offset",
    "derivative_error",
)
_IDEAL: dict[str, Any] = {each.name: each.default for each in fields(DeviceModel)}
