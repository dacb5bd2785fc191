"""Owns who may call a function URL: resource policies, signatures, pages in browsers (docs/security.md).

- AWS_IAM: signed with a key of `auth_keys_file`, whose owner may do all in this account; without such a file nobody.
- NONE of the Lambda API: once the function's policy allows it (AddPermission), as on AWS.
- NONE of function.toml: open, as it is written there.

A page of another origin, in a browser on this host, reaches loopback where its server cannot. Where CORS is
configured it must be of an origin that is allowed. Where it is not, the id of the Lambda API's URLs is a secret that
such a page does not have, and the function may answer CORS itself; a folder's can be guessed, and such pages are
refused. Going there by a link (a top-level navigation) is always allowed: the page that has it sees no answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtimeapi.guard import own_origins
from runtimeapi.sigv4 import Claim, RequestHead, SigV4
from runtimeapi.urls import cors as cors_of
from runtimeapi.urls.directory import FunctionUrl
from sandbox.errors import InvalidRequest
from sandbox.registry.records import Document

ACTION = "lambda:InvokeFunctionUrl"
FORBIDDEN = (
    "Forbidden. For troubleshooting Function URL authorization issues, see: "
    "https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html"
)
_FOREIGN = frozenset({b"cross-site", b"same-site"})


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed: the body is still to be proved."""

    claim: Claim

    def prove(self, body: bytes) -> None:
        """Raises InvalidRequest."""
        self.claim.check(hashlib.sha256(body).hexdigest())

    def iam(self, account: str) -> dict[str, Any]:
        """requestContext.authorizer.iam: whoever has a key here is the account itself."""
        return {
            "accessKey": self.claim.key_id,
            "accountId": account,
            "callerId": account,
            "cognitoIdentity": None,
            "principalOrgId": None,
            "userArn": f"arn:aws:iam::{account}:root",
            "userId": account,
        }


def forbidden() -> InvalidRequest:
    return InvalidRequest(FORBIDDEN, code="AccessDeniedException", status=403)


def admit(url: FunctionUrl, head: RequestHead, keys: SigV4 | None) -> Signer | None:
    """None: anyone may. Raises InvalidRequest (403)."""
    if url.config.auth_type == "AWS_IAM":
        if keys is None or not _is_signed(head):
            raise forbidden()
        return Signer(keys.claim(head))
    if not (url.from_folder or is_public(url.policy)):
        raise forbidden()
    check_page(url, head)
    return None


def _is_signed(head: RequestHead) -> bool:
    return bool(head.all(b"authorization")) or b"X-Amz-Signature=" in head.query


def check_page(url: FunctionUrl, head: RequestHead) -> None:
    """Raises InvalidRequest for a page of an origin that may not call this."""
    if not is_foreign(head) or is_navigation(head):
        return
    cors = url.config.cors
    if cors is None:
        if not url.from_folder:
            return
    elif all(cors_of.allows(cors, one.decode("latin-1")) for one in _origins(head)):
        return
    hint = "[url.cors] allow_origins" if url.from_folder else "Cors.AllowOrigins"
    raise InvalidRequest(
        f"Pages of this origin may not call this function URL. Hint: {hint}",
        code="AccessDeniedException",
        status=403,
    )


def _origins(head: RequestHead) -> list[bytes]:
    """A request without (a picture, a script) stands for any origin."""
    return list(head.all(b"origin")) or [b"null"]


def is_foreign(head: RequestHead) -> bool:
    """Made by a page of another origin, as far as its browser tells."""
    own = own_origins(head)
    if any(origin.lower() not in own for origin in head.all(b"origin")):
        return True
    return not _FOREIGN.isdisjoint(head.all(b"sec-fetch-site"))


def is_navigation(head: RequestHead) -> bool:
    return (
        head.method in (b"GET", b"HEAD")
        and not head.all(b"origin")
        and list(head.all(b"sec-fetch-mode")) == [b"navigate"]
        and list(head.all(b"sec-fetch-dest")) == [b"document"]
    )


# -- policies


def is_public(policy: Document | None) -> bool:
    """Whether it lets anyone call a URL of AuthType NONE (SPEC 9.3, 10.5). A Deny counts more than any Allow."""
    statements = [] if policy is None else policy.get("Statement", [])
    ours = [one for one in statements if _is_about_urls(one)]
    if any(one.get("Effect") == "Deny" for one in ours):
        return False
    return any(one.get("Effect") == "Allow" and _holds(one.get("Condition")) for one in ours)


def _is_about_urls(statement: Mapping[str, Any]) -> bool:
    actions = statement.get("Action", [])
    actions = [actions] if isinstance(actions, str) else actions
    if not isinstance(actions, list) or not {ACTION, "lambda:*", "*"} & set(map(str, actions)):
        return False
    principal = statement.get("Principal")
    if isinstance(principal, dict):
        principal = principal.get("AWS")
    return principal == "*" or principal == ["*"] or statement.get("Effect") == "Deny"


def _holds(condition: Any) -> bool:
    """Only what can be told of a caller without a name; any other condition is not met."""
    known = {"lambda:functionurlauthtype": "NONE", "lambda:invokedviafunctionurl": "true"}
    if condition is None:
        return True
    if not isinstance(condition, dict):
        return False
    return all(
        operator in ("StringEquals", "StringLike", "Bool")
        and isinstance(pairs, dict)
        and all(_is_one_of(value, known.get(key.lower())) for key, value in pairs.items())
        for operator, pairs in condition.items()
    )


def _is_one_of(value: Any, told: str | None) -> bool:
    return told is not None and told in (value if isinstance(value, list) else [value])
