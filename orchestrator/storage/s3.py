"""A store in an S3 bucket, through boto3: AWS, or any server that knows `If-None-Match`.

Owns the client and the reading of S3's errors. The bucket `kontext-local` is the embedded server's; every other one
is reached by the standard AWS_* environment. Refuses to overwrite in `put`: the condition is the server's to check.
"""

import base64
import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit

import boto3.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from urllib3.exceptions import HTTPError

from orchestrator.storage.store import (
    BINARY,
    NO_METADATA,
    AccessDenied,
    Content,
    ObjectInfo,
    ObjectMissing,
    PutAddress,
    StorageError,
    StorageFull,
    TooLarge,
    Unavailable,
    check_key,
    strong_etag,
)

LOCAL_BUCKET = "kontext-local"
CHECK_KEY = ".kontext-check"
ATTEMPTS = 5
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
POOL_CONNECTIONS = 50
PAGE_OBJECTS = 1000
STREAM_BYTES = 1 << 18
# A cache alone lets threads that come at once each make their own: a client is 14 MB.
_opening, _asking = threading.Lock(), threading.Lock()

_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_DENIED = frozenset(
    {
        "AccessDenied",
        "403",
        "Forbidden",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "AuthorizationHeaderMalformed",
        "AllAccessDisabled",
    }
)
_FULL = frozenset(
    {"507", "InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded"}
)
_BUSY = frozenset(
    {
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "InternalError",
        "ServiceUnavailable",
        "OperationAborted",
    }
)
_NETWORK = (BotoConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError, HTTPError, OSError)


class _Unchanged(StorageError):
    """The condition of a read holds: the object is the one that is known."""


class S3Store:
    """Objects below `prefix` of one bucket."""

    ignores_case = False

    def __init__(self, bucket: str, prefix: str = "", *, local_url: str | None = None) -> None:
        if bucket == LOCAL_BUCKET and not local_url:
            raise StorageError(
                f"s3://{LOCAL_BUCKET} is the embedded server, and KONTEXT_LOCAL_S3_URL does not say where it listens; "
                "start it with `kontext up`, or name a bucket of your own",
                code="location_invalid",
            )
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._local_url = local_url if bucket == LOCAL_BUCKET else None

    @property
    def _client(self) -> Any:
        with _opening:
            return _open_client(self._local_url)

    def put(
        self, key: str, data: bytes | Path, *, content_type: str = BINARY, metadata: Mapping[str, str] = NO_METADATA
    ) -> bool:
        headers = {name: quote(value, safe=" !\"#$&'()*+,-./:;<=>?@[]^_`{|}~") for name, value in metadata.items()}
        name = self._name(key)
        with self._explain(key), data.open("rb") if isinstance(data, Path) else nullcontext(data) as body:
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=name, Body=body, ContentType=content_type, Metadata=headers, IfNoneMatch="*"
                )
            except ClientError as error:
                if _status(error) == 412:
                    return False
                # Another writer is at work; only what it finished counts.
                if _status(error) == 409 and self.head(key):
                    return False
                raise
        return True

    def replace(self, key: str, data: bytes | Path, *, content_type: str = BINARY) -> None:
        name = self._name(key)
        with self._explain(key):
            if isinstance(data, Path):
                self._client.upload_file(
                    str(data),
                    self.bucket,
                    name,
                    ExtraArgs={"ContentType": content_type},
                    Config=TransferConfig(max_concurrency=4),
                )
            else:
                self._client.put_object(Bucket=self.bucket, Key=name, Body=data, ContentType=content_type)

    def get(self, key: str) -> bytes:
        with self._body(key) as answer, self._explain(key):
            return cast(bytes, answer["Body"].read())

    def read(self, key: str, max_bytes: int) -> bytes:
        content = self.read_unless(key, max_bytes, None)
        assert content is not None
        return content.data

    def read_unless(self, key: str, max_bytes: int, validator: str | None) -> Content | None:
        try:
            with self._body(key, IfNoneMatch=validator) as answer, self._explain(key):
                size_bytes = answer["ContentLength"]
                data = cast(bytes, answer["Body"].read(max_bytes + 1)) if size_bytes <= max_bytes else b""
        except _Unchanged:
            return None
        if size_bytes > max_bytes or len(data) > max_bytes:
            raise TooLarge(f"{self.locate(key)} is larger than the {max_bytes:,} bytes allowed")
        return Content(data, strong_etag(answer.get("ETag")))

    @contextmanager
    def open(self, key: str, start: int = 0) -> Iterator[BinaryIO]:
        with self._body(key, Range=f"bytes={start}-" if start else None) as answer:
            yield cast(BinaryIO, io.BufferedReader(_Stream(answer["Body"], lambda: self._explain(key)), STREAM_BYTES))

    @contextmanager
    def _body(self, key: str, **asked: str | None) -> Iterator[Any]:
        """The server's answer, whose body is closed in the end; `asked` are get_object's own arguments."""
        name = self._name(key)
        given = {argument: value for argument, value in asked.items() if value is not None}
        with self._explain(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=name, **given)
        with closing(answer["Body"]):
            yield answer

    def head(self, key: str) -> ObjectInfo | None:
        name = self._name(key)
        try:
            with self._explain(key):
                answer = self._client.head_object(Bucket=self.bucket, Key=name)
        except ObjectMissing:
            return None
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"].strip('"'), answer["LastModified"].timestamp())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        query = {"Bucket": self.bucket, "Prefix": self.prefix + prefix, "MaxKeys": PAGE_OBJECTS}
        while True:
            with self._explain(prefix):
                page = self._client.list_objects_v2(**query)
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self.prefix)
                # A key that ends in a slash is a folder's marker.
                if key and not key.endswith("/"):
                    yield ObjectInfo(key, item["Size"], item["ETag"].strip('"'), item["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        name = self._name(key)
        with self._explain(key):
            self._client.delete_object(Bucket=self.bucket, Key=name)

    def locate(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._name(key)}"

    def presign(self, key: str, life_s: int) -> str | None:
        return self._presign("get_object", key, life_s)

    def presign_put(self, key: str, life_s: int, sha256: str) -> PutAddress | None:
        with self._explain(CHECK_KEY), _asking:
            if not _checks_digests(self._local_url, self.bucket, self._name(CHECK_KEY)):
                return None
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        url = self._presign("put_object", key, life_s, ChecksumSHA256=digest, IfNoneMatch="*")
        return PutAddress(url, {"x-amz-checksum-sha256": digest, "if-none-match": "*"})

    def _presign(self, call: str, key: str, life_s: int, **signed: str) -> str:
        name = self._name(key)
        with self._explain(key):
            given = {"Bucket": self.bucket, "Key": name, **signed}
            return str(self._client.generate_presigned_url(call, Params=given, ExpiresIn=life_s))

    def check_writable(self) -> None:
        self.replace(CHECK_KEY, b"kontext")
        self.delete(CHECK_KEY)

    def _name(self, key: str) -> str:
        return self.prefix + check_key(key, self.uri)

    @contextmanager
    def _explain(self, key: str) -> Iterator[None]:
        """Turn what boto3 raises into the StorageError that names the object and what to do."""
        try:
            yield
        except StorageError:
            raise
        except (BotoCoreError, ClientError, Boto3Error, *_NETWORK) as error:
            raise _translate(error, f"s3://{self.bucket}/{self.prefix}{key}") from error


class _Stream(io.RawIOBase):
    """A body whose own failures, and not those of who reads it, become StorageErrors."""

    def __init__(self, body: Any, explain: Callable[[], AbstractContextManager[None]]) -> None:
        self._body, self._explain = body, explain

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._explain():
            data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@cache
def _checks_digests(local_url: str | None, bucket: str, key: str) -> bool:
    """Whether the server refuses bytes that are not those of `x-amz-checksum-sha256`; not all do. Asked once.

    Raises what boto3 raises where the server could not be asked, and is asked again then.
    """
    with _opening:
        client = _open_client(local_url)
    wrong = base64.b64encode(hashlib.sha256(b"other bytes").digest()).decode()
    try:
        client.put_object(Bucket=bucket, Key=key, Body=b"kontext", ChecksumSHA256=wrong)
    except ClientError as error:
        if _status(error) == 400:
            return True
        raise
    client.delete_object(Bucket=bucket, Key=key)
    return False


@cache
def _open_client(local_url: str | None) -> Any:
    """One client per process and endpoint; clients are safe to share between threads."""
    session = boto3.session.Session()
    config: dict[str, Any] = {
        "signature_version": "s3v4",  # the older one, which presigning falls back to, signs the content type too
        "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "max_pool_connections": POOL_CONNECTIONS,
        # Servers other than AWS do not all know the newer default checksums.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if local_url is None:
        return session.client("s3", config=Config(**config))
    parts = urlsplit(local_url)
    return session.client(
        "s3",
        endpoint_url=f"{parts.scheme}://{parts.hostname}:{parts.port}",
        region_name="us-east-1",
        aws_access_key_id=unquote(parts.username or ""),
        aws_secret_access_key=unquote(parts.password or ""),
        config=Config(**config, s3={"addressing_style": "path"}, proxies={}),
    )


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _translate(error: Exception, uri: str) -> StorageError:
    if isinstance(error, ClientError):
        return _translate_answer(error, uri)
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return AccessDenied(f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, _NETWORK):
        return Unavailable(f"{uri}: the S3 server does not answer ({error}); check AWS_ENDPOINT_URL and the network")
    cause = error.__cause__ or error.__context__
    if isinstance(error, Boto3Error) and isinstance(cause, Exception):
        return _translate(cause, uri)
    return StorageError(f"{uri}: {error}")


def _translate_answer(error: ClientError, uri: str) -> StorageError:
    code, text = error.response.get("Error", {}).get("Code", ""), error.response.get("Error", {}).get("Message", "")
    status = _status(error)
    said = f"{code} {text}".strip() or f"status {status}"
    if code == "NoSuchBucket" or (status == 404 and code not in _MISSING):
        return StorageError(
            f"{uri}: the bucket does not exist ({said}); make it or correct the URI", code="bucket_missing"
        )
    if status == 304:
        return _Unchanged(f"{uri} has not changed")
    if code in _MISSING:
        return ObjectMissing(f"{uri} does not exist")
    if code in _FULL or status == 507:
        return StorageFull(f"{uri}: the S3 server has no room left ({said}); free some space, then retry")
    if code in _BUSY or status in {408, 409, 429} or status >= 500:
        return Unavailable(f"{uri}: the S3 server could not do it now ({said})")
    if code in _DENIED or status in {401, 403}:
        return AccessDenied(
            f"{uri}: refused by the S3 server ({said}); check the AWS_* credentials and the bucket's policy"
        )
    return StorageError(f"{uri}: the S3 server answered {said}")
