"""What the values of config fields may be."""

from typing import Annotated

from qed.schema import Rule

Positive = Annotated[int, Rule(lambda n: n > 0, 'at least 1')]
NonNegative = Annotated[int, Rule(lambda n: n >= 0, 'at least 0')]
AxisSize = Annotated[int, Rule(lambda n: n > 0 or n == -1, 'at least 1, or -1')]
PositiveFloat = Annotated[float, Rule(lambda x: x > 0, 'above 0')]
NonNegativeFloat = Annotated[float, Rule(lambda x: x >= 0, 'at least 0')]
Fraction = Annotated[float, Rule(lambda x: 0 <= x < 1, 'from 0 to below 1')]
Share = Annotated[float, Rule(lambda x: 0 <= x <= 1, 'from 0 to 1')]
Name = Annotated[str, Rule(bool, 'not empty')]
Paths = Annotated[tuple[str, ...], Rule(bool, 'at least one file')]
