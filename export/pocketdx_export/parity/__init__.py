"""Parity: is what runs on the device the model that was validated?"""

from pocketdx_export.parity.compare import compare_file
from pocketdx_export.parity.report import Check, Report, reports_json
from pocketdx_export.parity.tolerances import TOLERANCES, Tolerances

__all__ = ["TOLERANCES", "Check", "Report", "Tolerances", "compare_file", "reports_json"]
