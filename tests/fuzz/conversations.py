"""What stores say, right and wrong: see stores.py for what an input is."""

from __future__ import annotations

import re

from tests.fuzz.mutation import Mutator

NEXT = b"\n--next--\n"
KEY = "a/key.tar"


def _talk(what: str, *answers: bytes) -> bytes:
    return what.encode() + NEXT.join(answers)


def _http(status: str, *headers: str, body: str = "", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def _xml(name: str, members: str) -> str:
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="{space}">{members}</{name}>'


_HEX = "0123456789abcdef" * 2
_MD5 = "XrY7u+Ae7tCTyyK7j1rNww=="
_ETAG, _OF_PARTS = f'ETag: "{_HEX}"', f'ETag: "{_HEX}-2"'
_BEGUN, _REST = "Content-Range: bytes 0-15/40", "Content-Range: bytes 16-39/40"
_HALF, _REST_BODY = "0123456789abcdef", "0123456789" + "x" * 14
_DATED = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT"
_OBJECT = _http("200 OK", _ETAG, _DATED, body="hello, world")
_READ = [
    _talk("r", _OBJECT),
    _talk("r", _http("206 Part", _OF_PARTS, _BEGUN, body=_HALF), _http("206 Part", _OF_PARTS, _REST, body=_REST_BODY)),
    _talk("r", _http("200 OK", "Transfer-Encoding: chunked", body="5\r\nhello\r\n0\r\nA: b\r\n\r\n", length=False)),
    _talk("r", _http("200 OK", "Content-Encoding: gzip", _ETAG, body="\x1f\x8bnone")),
]

_TOKENS = re.compile(rb"[^<>\s\"{}:,/=]+|\r\n|<[^>]*>")
_COMMON = (
    NEXT,
    *rb"""200 206 301 302 307 308 400 401 403 404 410 412 416 429 500 501 503 999 r e w chunked gzip zstd deflate
    ETag: Set-Cookie: Location: Range: Last-Modified: Content-Length: Content-Range: Content-Encoding:
    Transfer-Encoding:""".split(),
    *(b"\r\nETag: x\r\n", b"\r\nContent-Length: 5\r\n", b"\r\nTransfer-Encoding: chunked\r\n", b"bytes 5-1/0"),
    *(b"\r\nContent-Encoding: gzip\r\n", b"\r\nLocation: http://[::1\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
)
_MOVED = _xml("Error", "<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>")
_LEFT = _xml("ListMultipartUploadsResult", f"<Upload><Key>{KEY}</Key><UploadId>u</UploadId></Upload>")
_S3_ERRORS = [
    _talk("r", _http("404 Not Found", body=_xml("Error", "<Code>NoSuchKey</Code><Message>no</Message>"))),
    _talk("r", _http("400 Bad", body=_MOVED), _OBJECT),
    _talk("r", _http("307 Moved", "x-amz-bucket-region: us-east-2", body=_xml("Error", "<Code>Redirect</Code>"))),
]

S3 = Mutator(
    seeds=[
        *_READ,
        *_S3_ERRORS,
        _talk("e", _http("200 OK", f'ETag: W/"{_HEX}"')),
        _talk("e", _http("403 Forbidden"), _OBJECT),
        _talk(
            "w",
            _http("200 OK", body=_LEFT),
            _http("204 No Content"),
            _http("200 OK", body=_xml("InitiateMultipartUploadResult", "<UploadId>u&amp;1</UploadId>")),
            *[_http("200 OK", _ETAG)] * 4,
            _http("200 OK", body=_xml("CompleteMultipartUploadResult", f"<ETag>&quot;{_HEX}-4&quot;</ETag>")),
        ),
    ],
    words=(
        *_COMMON,
        *rb"""<Error> </Error> <Code>SlowDown</Code> <UploadId></UploadId> &b; &#0; &#x110000; <![CDATA[ <?x?> <!-- -->
        encoding='utf-16' encoding='x' AccessDenied NoSuchUpload PreconditionFailed InternalError {endpoint}""".split(),
        *(b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"<a>" * 500, b"<a " + b"b='c' " * 100),
    ),
    tokens=_TOKENS,
)

_GENERATION = "x-goog-generation: 1700000000000001"
_DENIED = '{"error": {"code": 403, "message": "no", "errors": [{"reason": "forbidden", "message": "no"}]}}'
_NO_BUCKET = '{"error": {"code": 404, "message": "The specified bucket does not exist."}}'
_GCS_ANSWERS = [
    _talk("e", _http("200 OK", body='{"generation": "17"}')),
    _talk("e", _http("403 Forbidden", body=_DENIED)),
    _talk("e", _http("404 Not Found", body=_NO_BUCKET)),
    _talk("m", _http("200 OK", "Metadata-Flavor: Google", body='{"access_token": "t", "expires_in": 3599}')),
]

GCS = Mutator(
    seeds=[
        *_GCS_ANSWERS,
        _talk("r", _http("200 OK", _GENERATION, f"x-goog-hash: crc32c=yZRlqg==,md5={_MD5}", body="hello, world")),
        _talk(
            "r",
            _http("206 Partial", _GENERATION, _BEGUN, body=_HALF),
            _http("206 Partial", _GENERATION, _REST, body=_REST_BODY),
        ),
        _talk("r", _http("200 OK", _GENERATION, "x-goog-stored-content-encoding: gzip", body="hello")),
        _talk(
            "w",
            _http("200 OK", "Location: http://gcs.test/upload?uploadType=resumable&upload_id=u1"),
            *[_http("308 Resume Incomplete", f"Range: bytes=0-{held}") for held in (15, 31, 47)],
            _http("200 OK", body=f'{{"md5Hash": "{_MD5}"}}'),
        ),
        _talk("m", _http("403 Forbidden", "Metadata-Flavor: Google")),
    ],
    words=(
        *_COMMON,
        *rb"""null [] {} "error" "errors" "reason" "message" "generation" "md5Hash" "access_token" "expires_in" 308 -1
        bytes=0-99999 bytes=5-9 upload_id= rateLimitExceeded hash bucket does not exist Infinity NaN 1e999""".split(),
        b"[" * 2000,
    ),
    tokens=_TOKENS,
)

HTTP = Mutator(
    seeds=[
        *_READ,
        _talk("e", _http("200 OK", _DATED)),
        _talk("r", _http("302 Found", "Location: /other?x=y"), _OBJECT),
        _talk("r", _http("301 Moved", "Location: http://other.test:8080/%zz/é?s=\xff"), _OBJECT),
        _talk("r", _http("307 Moved", "Location: //user:word@[::1]:80/x"), _OBJECT),
        _talk("e", _http("405 No"), _OBJECT),
    ],
    words=(
        *_COMMON,
        *rb"""// http:// https:// file:///etc/passwd ? # @ % %00 [ ] 169.254.169.254 xn-- :99999 :-1 .. \ ;
        \xe2\x84\x80 \xef\xbc\x8f""".split(),
        *("\u2100".encode(), "\uff0f".encode(), b"a" * 300 + b".test"),
    ),
    tokens=_TOKENS,
)


def _body(talk: bytes) -> bytes:
    return talk.partition(b"\r\n\r\n")[2].partition(NEXT)[0]


ANSWERS = Mutator(
    seeds=[
        bytes([status]) + _body(talk) for status in (0, 100, 102) for talk in (*_S3_ERRORS, *_GCS_ANSWERS, S3.seeds[-1])
    ],
    words=(*S3.words, *GCS.words),
    tokens=_TOKENS,
)
