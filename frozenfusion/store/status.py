"""What becomes of an image or a text: the codes that feature files store."""

from __future__ import annotations

PENDING, OK, MISSING, UNREADABLE, REFUSED = range(5)
STATUS_NAMES = {PENDING: "pending", OK: "ok", MISSING: "missing", UNREADABLE: "unreadable", REFUSED: "refused"}

DIGEST_BYTES = 16  # of the BLAKE2b of a file's content
