"""A client that tries again: a replica that dies takes its requests with it, and a full queue asks to come back."""

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
    """No answer, or an error that would come again."""


def detect(
    url: str, data: bytes, *, tries: int = 8, wait_s: float = 0.2, timeout_s: float = 60.0
) -> tuple[dict[str, Any], int]:
    """The answer for a JPEG or PNG, and how many tries it took.

    Detecting changes nothing, so a request may be sent twice. Tried again are: no connection or a broken one; 502, 503
    and 504; and a 500 that does not come from the application, which is what Ray's proxy answers for a replica that
    died. The application's own errors (application/problem+json) would come again, and are raised at once.

    Args:
        url: of POST /v1/detect.
        data: the image.
        tries: at most.
        wait_s: before the second try; twice as long before each further one, at most 5 s, or as Retry-After says.
        timeout_s: of one try.

    Raises:
        Failed: the last try failed, or the application refused.
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
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut short
            last = str(error)
        if tried < tries:
            time.sleep(pause)
    raise Failed(f"{tries} tries failed, the last one with {last}")


def main() -> int:
    """Prints the answer for an image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1/detect")
    options = parser.parse_args()
    try:
        answer, tries = detect(options.url, options.picture.read_bytes())
    except (Failed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=1))
    print(f"tries: {tries}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
