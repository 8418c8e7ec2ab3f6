"""A client that retries, because a replica that dies loses its requests, and a full queue rejects new ones."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

BUSY = (502, 503, 504)


class Failed(RuntimeError):
    """The server did not respond, or responded with an error that a retry would not change."""


def detect(
    url: str, data: bytes, *, tries: int = 8, wait_s: float = 0.2, timeout_s: float = 60.0
) -> tuple[dict[str, Any], int]:
    """Returns the response for a JPEG or PNG, and the number of attempts.

    Requests are idempotent and may be repeated. The client retries after a failed or broken connection, after 502, 503
    and 504, and after a 500 that does not come from the application, which is what Ray's proxy sends for a replica that
    died. Errors of the application itself (application/problem+json) would recur, and are raised at once.

    Args:
        url: URL of POST /v1/detect.
        data: The image.
        tries: Maximum number of attempts.
        wait_s: Wait before the second attempt. It doubles before each further one, up to 5 s, unless Retry-After is
            given.
        timeout_s: Timeout of each attempt.

    Raises:
        Failed: If the last attempt failed, or the application refused the request.
    """
    request = urllib.request.Request(url, data, {"Content-Type": "application/octet-stream"})
    for tried in range(1, tries + 1):
        pause = min(wait_s * 2 ** (tried - 1), 5.0)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return json.load(answer), tried
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            last = f"{error.code}: {text}"
            from_the_application = error.headers.get_content_type() == "application/problem+json"
            if error.code not in BUSY and (error.code != 500 or from_the_application):
                raise Failed(last) from error
            if (after := error.headers.get("Retry-After", "")).isdigit():
                pause = float(after)
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out or truncated
            last = str(error)
        if tried < tries:
            time.sleep(pause)
    raise Failed(f"{tries} tries failed, the last one with {last}")


def main() -> int:
    """Prints the response for an image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1/detect")
    options = parser.parse_args()
    try:
        answer, tries = detect(options.url, options.image.read_bytes())
    except (Failed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=1))
    print(f"tries: {tries}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
