"""Compiles byzflow's kernels when it is installed; without a compiler it installs all the same."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "byzflow/engine/kernels.c"
LIBRARY = "byzflow/engine/_kernels.so"
# No errno and no traps: both would forbid vector code. NaN and the order of sums are kept: no -ffast-math.
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")

if platform.machine() in ("x86_64", "AMD64"):
    FLAGS += ("-mprefer-vector-width=512",)  # where the processor has them; the loader chooses


class KernelsHook(BuildHookInterface[Any]):
    """`cc kernels.c -o _kernels.so`, into the wheel or, for an editable install, beside the source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and make the wheel one for this platform if that worked."""
        if self.target_name != "wheel":
            return
        library = Path(self.root, LIBRARY)
        if not self._compiled(library):
            library.unlink(missing_ok=True)  # an old one might not fit the source
            return
        build_data["artifacts"].append(LIBRARY)
        machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{machine}"

    def _compiled(self, library: Path) -> bool:
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            self.app.display_warning("byzflow: no C compiler: it will run on torch operations, several times slower")
            return False
        new = library.with_suffix(".new")
        command = [*compiler.split(), *FLAGS, str(Path(self.root, SOURCE)), "-o", str(new)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            told = (getattr(error, "stderr", "") or str(error)).strip()
            self.app.display_warning(f"byzflow: the kernels do not compile, torch operations will run: {told[-500:]}")
            new.unlink(missing_ok=True)
            return False
        new.replace(library)  # whoever has the old one loaded keeps it
        return True
