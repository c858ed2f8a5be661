"""The smallest experiment that shows everything: output, metadata, a saved file, a requirement."""

import json
import platform
import sys

import six

name = sys.argv[1] if len(sys.argv) > 1 else "world"
print(f"Hello, {name}, from {platform.node()} with Python {platform.python_version()} and six {six.__version__}")
print(json.dumps({"greeted": name}))  # goes into the metadata document
with open("../modeldir/greeting.txt", "w") as file:
    file.write(f"Hello, {name}\n")
