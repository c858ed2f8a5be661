"""A small experiment: fit a line by gradient descent, report as it goes, and save the model."""

import json
import os
import random
import sys

import six  # the one requirement, to show that requirements are installed

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
random.seed(1)
points = [(x / 50, 3 * x / 50 + 1 + random.gauss(0, 0.1)) for x in range(50)]
slope = offset = 0.0
for step in range(1, steps + 1):
    errors = [(slope * x + offset - y, x) for x, y in points]
    slope -= 0.5 * sum(error * x for error, x in errors) / len(points)
    offset -= 0.5 * sum(error for error, _ in errors) / len(points)
    if step % 50 == 0:
        loss = sum(error**2 for error, _ in errors) / len(points)
        print(f"step {step}: loss {loss:.5f}")
        print(json.dumps({"loss": loss, "step": step}))  # a JSON object: merged into the metadata

with open("../modeldir/model.json", "w") as file:
    json.dump({"slope": slope, "offset": offset}, file)
print(json.dumps([{"op": "add", "path": "/model", "value": {"slope": round(slope, 2), "offset": round(offset, 2)}}]))
print(f"six {six.__version__}, experiment {os.environ['STUDIOML_EXPERIMENT']}")
