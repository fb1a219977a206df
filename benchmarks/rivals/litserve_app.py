"""The same model on LitServe and onnxruntime, two workers: python litserve_app.py MODEL PORT.

As its users write it: Pillow decodes and resizes, onnxruntime runs with one thread in each worker. The image arrives
as the raw body, which spares LitServe a form and base64.
"""

# No `from __future__ import annotations`: LitServe looks at the annotation itself.
import io
import sys
from typing import Annotated, Any

import litserve  # type: ignore[import-not-found]
import numpy as np
import onnxruntime
from fastapi import Body
from PIL import Image

SIZE = 224


class Diagnose(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: Annotated[bytes, Body()]) -> Any:
        with Image.open(io.BytesIO(request)) as picture:
            rgb = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return np.asarray(rgb)[np.newaxis]

    def predict(self, x: Any) -> Any:
        return self.session.run(["probabilities"], {"image": x})[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"probabilities": output[0].tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Diagnose(), accelerator="cpu", workers_per_device=2, timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
