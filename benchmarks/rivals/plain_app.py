"""The same network as tutorials serve it, with FastAPI, torchvision and PyTorch: python plain_app.py RUN PORT."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision.transforms import v2

from pocketdx_train.run import Run

run = Run.open(Path(sys.argv[1]))
network = run.network()
size = run.record.preprocessing.size
resize = v2.Compose([v2.Resize((size, size), antialias=True), v2.PILToTensor()])
app = FastAPI()


@app.post("/predict")
def predict(image: UploadFile) -> dict[str, list[float]]:
    with Image.open(io.BytesIO(image.file.read())) as picture:
        pixels = resize(picture.convert("RGB")).unsqueeze(0)
    with torch.inference_mode():
        return {"probabilities": torch.softmax(network(pixels), dim=1)[0].tolist()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
