"""Does the file say of itself what the run says?"""

from __future__ import annotations

from pocketdx_export.parity.report import Check
from pocketdx_runtime.manifest import Manifest
from pocketdx_train.run import Run


def manifest_checks(manifest: Manifest, run: Run) -> list[Check]:
    """One check whose value counts the differences."""
    record = run.record
    same = {
        "labels": manifest.labels == record.labels,
        "preprocessing": manifest.preprocessing == record.preprocessing,
        "temperature": manifest.temperature == record.temperature,
        "thresholds": manifest.thresholds == record.thresholds,
        "weights digest": manifest.weights_digest == record.weights_digest,
    }
    wrong = ", ".join(name for name, equal in same.items() if not equal)
    return [Check("manifest", "", "differences", float(sum(not e for e in same.values())), 0.0, worst=wrong)]
