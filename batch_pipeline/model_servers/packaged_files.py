"""Files of installed packages that are used only if they are exactly the expected ones.

A file of weights or a compiled library is as powerful as code. Its package's code is not used.
"""

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from batch_pipeline.errors import ServiceDownError
from batch_pipeline.wording import how_to_install


@cache
def checked_file(what: str, package: str, name: str, sha256: str) -> Path:
    """Return a file of an installed package, after its checksum was verified.

    Args:
        what: what the file is for, for errors: ``the picture classifier``.
        package: name of the package that an import would use.
        name: path of the file in the package.
        sha256: checksum of the file, as hexadecimal digits.

    Raises:
        ServiceDownError: it is missing, or not the expected one; the message says what to do.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ServiceDownError(
            "model_missing", f"{what} is not installed: {how_to_install('embedded')}"
        )
    path = Path(found.submodule_search_locations[0]) / name
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        digest = str(error)
    if digest != sha256:
        raise ServiceDownError(
            "model_missing",
            f"{what} needs another file than {path} (SHA-256 {digest}, expected {sha256}): "
            f"reinstall the package {package.replace('_', '-')}",
        )
    return path
