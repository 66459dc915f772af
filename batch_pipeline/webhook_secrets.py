"""The format of the secret that signs webhooks."""

import base64
import binascii

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)


def secret_key(secret: str) -> bytes:
    """Decode a secret of the form ``whsec_<base64>``.

    Raises:
        ValueError: the secret has another form.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(_PREFIX) or len(key) not in _KEY_BYTES:
        raise ValueError(
            "expected whsec_ and 24 to 64 random bytes in base64, "
            "such as whsec_$(openssl rand -base64 32) gives"
        )
    return key
