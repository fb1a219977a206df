"""What int8 may cost in decisions: a limit on each figure, read from the command line."""

from __future__ import annotations

from dataclasses import dataclass

from pocketdx_export.errors import ExportError

NONE = "none"


@dataclass(frozen=True)
class Budget:
    """Limits on what validation images may show.

    Attributes:
        auc: largest difference of the mean AUC to fp32.
        agreement: smallest share of images with fp32's top-1.
    """

    auc: float = 0.002
    agreement: float = 0.99

    @classmethod
    def parse(cls, text: str) -> Budget | None:
        """Read `auc=0.002,agreement=0.99`, either part or both; "none" is no budget, and so no search.

        Raises:
            ExportError: another name, or a number out of range.
        """
        if text.strip() == NONE:
            return None
        values: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = (each.strip() for each in part.partition("="))
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if name not in ("auc", "agreement") or not 0 <= value <= 1:
                raise ExportError(f"--budget {text}: give {DEFAULT_BUDGET}, each from 0 to 1, or {NONE}")
            values[name] = value
        return cls(**values)

    def __str__(self) -> str:
        return f"auc={self.auc:g},agreement={self.agreement:g}"


DEFAULT_BUDGET = Budget()
