"""Owns AWS Signature Version 4, the verifying side: a request's head -> who signed it, and over which body.

Written after AWS's description (docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html)
and checked against botocore's signer (`tests/contract/test_sigv4.py`). Statuses, codes and messages are those of
AWS's JSON services; all are 403. Lambda is no S3: the path is encoded once more, the payload is always hashed.

What AWS leaves open, decided here:

- `x-amz-*` headers that are not signed are refused: whoever carries the request could change them;
- X-Amz-Security-Token is refused: keys here are long-lived, there is nothing a session could be of;
- UNSIGNED-PAYLOAD is taken over TLS alone, as botocore sends it, and the chunked STREAMING-... forms never;
- the same request can be sent again within 5 minutes, as it can at AWS.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote_to_bytes

from sandbox.errors import InvalidRequest

ALGORITHM = b"AWS4-HMAC-SHA256"
TERMINATOR = "aws4_request"
SKEW_S = 300
MAX_EXPIRES_S = 604_800
"""A week: AWS's longest presigned URL."""
UNSIGNED = b"UNSIGNED-PAYLOAD"
MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS "
    "Secret Access Key and signing method. Consult the service documentation for details."
)
INVALID_TOKEN = "The security token included in the request is invalid."

_STAMP = re.compile(rb"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z")
_HEX = re.compile(rb"[0-9a-f]{64}")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_MOST_KEYS = 64


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What of a request is signed, besides its body."""

    method: bytes
    path: bytes
    """As it was sent, still encoded."""
    query: bytes
    headers: Mapping[bytes, Sequence[bytes]]
    """By names in lower case; values without white space around them, in the order sent."""
    secure: bool = False
    """It came by TLS."""

    def all(self, name: bytes) -> Sequence[bytes]:
        return self.headers.get(name, ())

    def one(self, name: bytes) -> bytes | None:
        """The only value. Raises InvalidRequest: of two it would have to be said which counts."""
        values = self.all(name)
        if len(values) > 1:
            raise incomplete(f"The header '{name.decode()}' is there {len(values)} times.")
        return values[0] if values else None


def grouped(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    """For `RequestHead.headers`."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    return found


def refused(code: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, code=code, status=403)


def missing() -> InvalidRequest:
    return refused("MissingAuthenticationTokenException", "Missing Authentication Token")


def unrecognized() -> InvalidRequest:
    return refused("UnrecognizedClientException", INVALID_TOKEN)


def incomplete(message: str) -> InvalidRequest:
    return refused("IncompleteSignatureException", message)


def invalid(message: str) -> InvalidRequest:
    return refused("InvalidSignatureException", message)


@dataclass(frozen=True, slots=True)
class _Signed:
    """What a request says of its own signature."""

    credential: bytes
    signed_headers: bytes
    signature: bytes
    stamp: bytes
    """YYYYMMDDTHHMMSSZ."""
    expires_s: int | None
    """Of a presigned URL."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A head that is in order so far; the body decides. Made by `SigV4.claim`."""

    _before_payload: bytes
    """The canonical request up to the hash of its payload."""
    _told: bytes | None
    """The payload's hash as the head has it."""
    _prefix: bytes
    """The string to sign up to the hash of the canonical request."""
    _key: bytes
    _signature: bytes
    key_id: str
    """The access key's; whose it is holds once the body has been checked."""

    def check_head(self) -> None:
        """The signature, as far as it can be known before the body is here: where the head tells the body's hash
        (`x-amz-content-sha256`; boto3 sends none). Raises InvalidRequest."""
        if self._told is not None:
            self._check_signature(self._told)

    def check(self, body_sha256: str) -> None:
        """`body_sha256`: in hexadecimal, of the body as it was sent. Raises InvalidRequest."""
        found = body_sha256.encode()
        told = found if self._told is None or self._told == UNSIGNED else self._told
        if not hmac.compare_digest(told, found):
            raise invalid(MISMATCH)
        self._check_signature(found if self._told is None else self._told)

    def _check_signature(self, payload: bytes) -> None:
        canonical = hashlib.sha256(self._before_payload + payload).hexdigest()
        ours = hmac.new(self._key, self._prefix + canonical.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(ours.encode(), self._signature):
            raise invalid(MISMATCH)


class SigV4:
    """Verifies against keys that may change at any time.

    `secret_of`: access key id -> secret access key, or None. `wall`: seconds since the epoch.
    """

    def __init__(
        self,
        secret_of: Callable[[str], str | None],
        *,
        region: str,
        service: str = "lambda",
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._secret_of = secret_of
        self._region = region
        self._service = service
        self._wall = wall
        self._keys: dict[tuple[str, str], bytes] = {}

    def claim(self, head: RequestHead) -> Claim:
        """All checks that need no body, in AWS's order. Raises InvalidRequest (403, AWS's code)."""
        authorization = head.one(b"authorization")
        if authorization is not None:
            signed, query = _from_header(head, authorization), head.query
        elif b"X-Amz-Algorithm=" in head.query or b"X-Amz-Signature=" in head.query:
            signed, query = _from_query(head)
        else:
            raise missing()
        if not head.path.startswith(b"/"):
            # "POST http://...": which path that is routing finds in another way than canonical_path.
            raise invalid(MISMATCH)
        key_id, date = self._scope(signed)
        names = _signed_names(signed.signed_headers, head)
        self._in_time(signed)
        secret = self._secret_of(key_id)
        if secret is None or head.all(b"x-amz-security-token") or b"X-Amz-Security-Token=" in query:
            raise unrecognized()
        lines = b"\n".join(
            (
                head.method,
                canonical_path(head.path),
                canonical_query(query),
                *(name + b":" + _canonical_value(head.all(name)) for name in names),
                b"",
                signed.signed_headers,
                b"",
            )
        )
        scope = f"{date}/{self._region}/{self._service}/{TERMINATOR}".encode()
        return Claim(
            lines,
            _payload_hash(head),
            b"\n".join((ALGORITHM, signed.stamp, scope, b"")),
            self._key(secret, date),
            signed.signature,
            key_id,
        )

    def _scope(self, signed: _Signed) -> tuple[str, str]:
        """(access key id, date)."""
        parts = signed.credential.decode("latin-1").split("/")
        if len(parts) != 5:
            raise incomplete(
                "Credential must have exactly 5 slash-delimited elements, e.g. "
                f"keyid/date/region/service/term, got '{'/'.join(parts)}'"
            )
        key_id, date, region, service, terminator = parts
        wrong = []
        if region != self._region:
            wrong.append(f"Credential should be scoped to a valid region, not '{region}'. ")
        if service != self._service:
            wrong.append(f"Credential should be scoped to correct service: '{self._service}'. ")
        if terminator != TERMINATOR:
            wrong.append(
                f"Credential should be scoped with a valid terminator: '{TERMINATOR}', "
                f"not '{terminator}'. "
            )
        stamp = signed.stamp.decode()
        if date != stamp[:8]:
            wrong.append(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date "
                f"from HTTP: '{date}' != '{stamp[:8]}', from '{stamp}'. "
            )
        if wrong:
            raise invalid("".join(wrong))
        return key_id, date

    def _in_time(self, signed: _Signed) -> None:
        now, signed_at = self._wall(), _seconds(signed.stamp)
        if signed_at > now + SKEW_S:
            raise invalid(
                f"Signature not yet current: {signed.stamp.decode()} is still later than "
                f"{_stamp(now + SKEW_S)} ({_stamp(now)} + 5 min.)"
            )
        lasts_s = SKEW_S if signed.expires_s is None else signed.expires_s
        if signed_at < now - lasts_s:
            told = "5 min." if signed.expires_s is None else f"{lasts_s} s."
            raise invalid(
                f"Signature expired: {signed.stamp.decode()} is now earlier than "
                f"{_stamp(now - lasts_s)} ({_stamp(now)} - {told})"
            )

    def _key(self, secret: str, date: str) -> bytes:
        """Derived once a day and key; four HMACs are a third of a verification."""
        key = self._keys.get((secret, date))
        if key is None:
            key = derive(secret, date, self._region, self._service)
            if len(self._keys) >= _MOST_KEYS:
                self._keys.clear()
            self._keys[secret, date] = key
        return key


def derive(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, TERMINATOR):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


# -- where a request tells its signature


def _from_header(head: RequestHead, authorization: bytes) -> _Signed:
    algorithm, _, rest = authorization.partition(b" ")
    fields: dict[bytes, bytes] = {}
    for part in rest.split(b","):
        name, equals, value = part.strip().partition(b"=")
        if name in fields or (part.strip() and not equals):
            raise incomplete(
                "not a valid key=value pair (missing equal-sign, or twice) in Authorization "
                f"header: {_hashed(authorization)}"
            )
        fields[name] = value
    if algorithm != ALGORITHM:
        fields.clear()
    amz_date, date = head.one(b"x-amz-date"), head.one(b"date")
    lacking = [
        f"Authorization header requires '{name}' parameter. "
        for name in ("Credential", "Signature", "SignedHeaders")
        if not fields.get(name.encode())
    ]
    if not amz_date and not date:
        lacking.append(
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. "
        )
    if lacking:
        raise incomplete("".join(lacking) + _hashed(authorization))
    return _Signed(
        credential=fields[b"Credential"],
        signed_headers=fields[b"SignedHeaders"],
        signature=fields[b"Signature"],
        stamp=_date_of(amz_date or date or b""),
        expires_s=None,
    )


def _from_query(head: RequestHead) -> tuple[_Signed, bytes]:
    """(what is said, the query without the signature)."""
    kept: list[bytes] = []
    fields: dict[bytes, bytes] = {}
    for pair in head.query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name in fields:
            raise incomplete(f"The parameter '{name.decode('latin-1')}' is there twice.")
        if name.startswith(b"X-Amz-"):
            fields[name] = unquote_to_bytes(value)
        if name != b"X-Amz-Signature":
            kept.append(pair)
    wanted = ("Algorithm", "Credential", "Date", "Expires", "Signature", "SignedHeaders")
    lacking = [name for name in wanted if not fields.get(b"X-Amz-" + name.encode())]
    if lacking or fields[b"X-Amz-Algorithm"] != ALGORITHM:
        raise incomplete(
            "AWS query-string parameters must include "
            + ", ".join(f"'X-Amz-{name}'" for name in lacking or ["Algorithm"])
            + ". Re-examine the query-string parameters."
        )
    expires = fields[b"X-Amz-Expires"]
    if re.fullmatch(rb"[0-9]{1,6}", expires) is None or not 0 < int(expires) <= MAX_EXPIRES_S:
        raise incomplete(f"X-Amz-Expires must be from 1 to {MAX_EXPIRES_S} seconds.")
    signed = _Signed(
        credential=fields[b"X-Amz-Credential"],
        signed_headers=fields[b"X-Amz-SignedHeaders"],
        signature=fields[b"X-Amz-Signature"],
        stamp=_date_of(fields[b"X-Amz-Date"]),
        expires_s=int(expires),
    )
    return signed, b"&".join(kept)


def _hashed(authorization: bytes) -> str:
    """AWS does not print the header back either, which may hold a secret of another kind."""
    digest = base64.b64encode(hashlib.sha256(authorization).digest()).decode()
    return f"(Hashed with SHA-256 and encoded with Base64) Authorization={digest}"


def _signed_names(signed_headers: bytes, head: RequestHead) -> list[bytes]:
    names = signed_headers.split(b";")
    if any(_NAME.fullmatch(name) is None for name in names) or names != sorted(set(names)):
        raise incomplete("SignedHeaders must be names in lower case, sorted, each once.")
    if b"host" not in names:
        raise invalid("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
    for name in head.headers:
        if name.startswith(b"x-amz-") and name not in names:
            raise invalid(
                f"'{name.decode('latin-1')}' must be a 'SignedHeader' in the AWS Authorization."
            )
    return names


# -- the canonical request


def canonical_path(path: bytes) -> bytes:
    """Without empty and dot segments, then encoded once more: what `%3A` was sent as is `%253A` here."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    tail = b"/" if kept and path.endswith(b"/") else b""
    return quote(b"/" + b"/".join(kept) + tail, safe="/~").encode()


def canonical_query(query: bytes) -> bytes:
    if not query:
        return b""
    pairs = []
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        pairs.append((_encoded(name), _encoded(value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs)).encode()


def _encoded(part: bytes) -> str:
    return quote(unquote_to_bytes(part), safe="-_.~")


def _canonical_value(values: Sequence[bytes]) -> bytes:
    return b",".join(b" ".join(value.split()) for value in values)


def _payload_hash(head: RequestHead) -> bytes | None:
    told = head.one(b"x-amz-content-sha256")
    if told is None or _HEX.fullmatch(told) or (told == UNSIGNED and head.secure):
        return told
    raise invalid(MISMATCH)


# -- time


def _date_of(text: bytes) -> bytes:
    """-> YYYYMMDDTHHMMSSZ, out of that or of a `Date` header."""
    if _STAMP.fullmatch(text) is None:
        try:
            text = (
                parsedate_to_datetime(text.decode())
                .astimezone(UTC)
                .strftime("%Y%m%dT%H%M%SZ")
                .encode()
            )
        except (ValueError, OverflowError):
            raise _no_date(text) from None
    _seconds(text)
    return text


def _seconds(stamp: bytes) -> float:
    match = _STAMP.fullmatch(stamp)
    if match is None:  # a year of fewer than four digits
        raise _no_date(stamp)
    try:
        return calendar.timegm(datetime(*map(int, match.groups())).utctimetuple())  # type: ignore[arg-type]
    except ValueError:
        raise _no_date(stamp) from None


def _stamp(at: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))


def _no_date(text: bytes) -> InvalidRequest:
    return incomplete(
        f"Date must be in ISO-8601 'basic format'. Got '{text.decode('latin-1')}'. "
        "See http://en.wikipedia.org/wiki/ISO_8601"
    )
