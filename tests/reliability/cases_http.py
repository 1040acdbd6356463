"""What arrives at the server's port: one row a case, with the status that must answer it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from cases_photographs import noise

PHOTO = base64.b64encode(noise()).decode()
AS_JSON = {"Content-Type": "application/json"}
AS_FORM = {"Content-Type": "multipart/form-data; boundary=x"}
MANY = 300_000


@dataclass(frozen=True)
class Sent:
    """A request, and the status and words of its answer."""

    status: int
    words: str = ""
    method: str = "POST"
    path: str = "/v1/segment"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json(status: int, body: str | bytes, words: str = "", path: str = "/v1/segment") -> Sent:
    return Sent(status, words, path=path, body=body if isinstance(body, bytes) else body.encode(), headers=AS_JSON)


def about(fields: str, words: str, status: int = 422) -> Sent:
    """JSON about a good photograph; `fields` are what else it says."""
    return json(status, f'{{"photo": "{PHOTO}"{fields}}}', words)


def form(
    status: int, *parts: tuple[bytes, bytes], words: str = "", charset: str = "", end: bytes = b"--x--\r\n"
) -> Sent:
    body = b"".join(b"--x\r\n" + head + b"\r\n\r\n" + value + b"\r\n" for head, value in parts) + end
    headers = {"Content-Type": f"multipart/form-data; boundary=x{charset and f'; charset={charset}'}"}
    return Sent(status, words, body=body, headers=headers)


def part(name: bytes, value: bytes, more: bytes = b"") -> tuple[bytes, bytes]:
    return b'Content-Disposition: form-data; name="' + name + b'"' + more, value


THE_PHOTO = part(b"photo", noise(), b'; filename="a.png"')
THE_DOG = part(b"expressions", b"the dog")

METHODS = {
    f"{method} {path}": Sent(405, "does not take", method, path)
    for method, path in (
        *((method, "/v1/segment") for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")),
        *(("GET", "/v1/photos"), ("POST", "/v1/models"), ("POST", "/healthz"), ("POST", "/"), ("POST", "/page/app.js")),
    )
}

METHODS["DOG /v1/segment"] = Sent(400, "not HTTP/1.1", "DOG")

PATHS = {
    f"path {number}": Sent(404, method="GET", path=path)
    for number, path in enumerate(
        (
            *("/v1/nothing", "/page/%2e%2e/app.py", "/page/../../app.py", "/page/%00", "/page/"),
            *("/examples/..%2f..%2fapp.py", "/examples/%00", "/v1/%0a%1b[31m", "/v1/%ff%fe", "/v1/%ed%a0%80"),
            *("/" + "x" * 20_000, "/page/" + "x" * 5_000, "//example.org/dog", "/.env", "/%2561"),
        )
    )
}

BODIES = {
    "no body": json(422, "", "not the JSON"),
    "half a body": json(422, "{", "not the JSON"),
    "an array": json(422, "[]", "an object"),
    "null": json(422, "null", "an object"),
    "a number": json(422, "7", "an object"),
    "no UTF-8": json(422, b"\xff\xfe"),
    "UTF-16": json(422, "{}".encode("utf-16")),
    "a byte order mark": json(422, b"\xef\xbb\xbf{}"),
    "100,000 arrays deep": json(422, "[" * 100_000, "recursion"),
    "100,000 objects deep": json(422, '{"a":' * 100_000, "recursion"),
    "deep in a field": json(422, '{"expressions":' + "[" * 50_000 + "]" * 50_000 + "}", "recursion"),
    "a number of 100,000 digits": json(422, '{"threshold":' + "1" * 100_000 + "}", "out of range"),
    "an exponent of 100,000 digits": about(f',"expressions":["a"],"threshold":1e{"9" * 100_000}', "threshold"),
    "a lone surrogate": json(422, '{"expressions": ["\\ud800"]}'),
    "a key that is a lone surrogate": json(422, '{"\\ud800": 1}'),
    "a key of control characters": json(422, '{"\\u0000\\u001b[31m\\n": 1}', "no field"),
    "a key of 1 MB": json(422, f'{{"{"k" * 1_000_000}": 1}}', "no field"),
    "100,000 keys": json(422, "{" + ",".join(f'"k{n}":1' for n in range(100_000)) + "}", "'k0'"),
    "a field too many": about(',"expressions":["a"],"sentence":1', "'sentence'"),
    "a field twice": json(422, '{"photo": "aGk=", "photo": 1, "expressions": ["a"]}', "photo"),
    "300,000 numbers for sentences": about(f',"expressions":[{"1," * MANY}1]', "expressions[0]"),
    "300,000 sentences": about(',"expressions":[' + '"a",' * MANY + '"a"]', "400,000 values", 413),
    "60,000 sentences": about(',"expressions":[' + '"a",' * 60_000 + '"a"]', "limit is 4"),
    "a sentence of 1.9 MB": about(f',"expressions":"{"a" * 1_900_000}"', "1,900,000 characters"),
    "no sentence": about("", "expressions"),
    "no sentences": about(',"expressions":[]', "expressions"),
    "sentences that are null": about(',"expressions":null', "expressions"),
    "sentences that are an object": about(',"expressions":{"a":1}', "expressions"),
    "a sentence that is a list": about(',"expressions":[["a"]]', "expressions[0]"),
    "five sentences": about(',"expressions":["a","a","a","a","a"]', "limit is 4"),
    "the second of two is empty": about(',"expressions":["a"," "]', "expression 2"),
    "neither photo nor id": json(422, '{"expressions": ["a"]}', "photo_id"),
    "photo and id": about(f',"expressions":["a"],"photo_id":"{"0" * 64}"', "either"),
    "an id that is none": json(422, '{"photo_id": "../../etc/passwd", "expressions": ["a"]}', "photo_id"),
    "an id that is not held": json(404, f'{{"photo_id": "{"0" * 64}", "expressions": ["a"]}}', "send it again"),
    "a photo of no base64": json(422, '{"photo": "%%%", "expressions": ["a"]}', "base64"),
    "a photo of other letters": json(422, '{"photo": "日本", "expressions": ["a"]}', "base64"),
    "a photo of spaces": json(422, f'{{"photo": "{" " * 1_000_000}", "expressions": ["a"]}}', "0 bytes"),
    "a photo that is an empty address": json(422, '{"photo": "data:", "expressions": ["a"]}', "0 bytes"),
    "a photo elsewhere": json(422, '{"photo": "http://example.org/a.jpg", "expressions": ["a"]}', "fetches nothing"),
    "a photo that is a number": json(422, '{"photo": 7, "expressions": ["a"]}', "photo"),
    "an unknown format": about(',"expressions":["a"],"format":"\\u0000\\u001b"', "rle, png, polygons"),
    "a threshold that is a list": about(',"expressions":["a"],"threshold":[0.5]', "between 0 and 1"),
    "a threshold that is true": about(',"expressions":["a"],"threshold":true', "between 0 and 1"),
    "NaN": about(',"expressions":["a"],"threshold":NaN', "between 0 and 1"),
    "attention without a sentence": json(422, f'{{"photo": "{PHOTO}"}}', "expression", "/v1/attention"),
    "attention to two": json(422, f'{{"photo": "{PHOTO}", "expression": ["a", "b"]}}', "one", "/v1/attention"),
    "attention to nothing": json(422, f'{{"photo": "{PHOTO}", "expression": " "}}', "empty", "/v1/attention"),
    "photographs with a sentence": json(422, f'{{"photo": "{PHOTO}", "expressions": ["a"]}}', "no field", "/v1/photos"),
}

FORMS = {
    "a good form": form(200, THE_PHOTO, THE_DOG),
    "text that is no UTF-8": form(200, THE_PHOTO, part(b"expressions", b"dog \xed\xa0\x80\xff")),
    "a file name of a path": form(200, part(b"photo", noise(), b'; filename="../../a\0.png"'), THE_DOG),
    "a file name of 100 kB": form(400, part(b"photo", noise(), b'; filename="' + b"a" * 100_000 + b'"'), THE_DOG),
    "a part of a thousand headers": form(400, part(b"photo", noise(), b"\r\nX: y" * 1_000), THE_DOG),
    "a part without a name": form(400, THE_PHOTO, (b"Content-Disposition: form-data", b"x"), words="name"),
    "a part without disposition": form(400, THE_PHOTO, (b"X: y", b"x")),
    "a name that is empty": form(422, THE_PHOTO, THE_DOG, part(b"", b"x"), words="no field"),
    "a name of control characters": form(422, THE_PHOTO, THE_DOG, part(b"\xff\x01\x1b", b"x"), words="no field"),
    "a field too many in a form": form(422, THE_PHOTO, THE_DOG, part(b"sentence", b"x"), words="'sentence'"),
    "two photographs": form(400, THE_PHOTO, THE_PHOTO, THE_DOG, words="one"),
    "a photograph as text": form(422, part(b"photo", b"x"), THE_DOG, words="the file itself"),
    "a file of another name": form(422, part(b"image", noise(), b'; filename="a"'), THE_DOG, words="name the field"),
    "no photograph": form(422, THE_DOG, words="photo"),
    "twenty sentences": form(400, THE_PHOTO, *[THE_DOG] * 20, words="fields"),
    "a sentence of 1.9 MB in a form": form(400, THE_PHOTO, part(b"expressions", b"x" * 1_900_000), words="1024KB"),
    "a form without its last line": form(422, THE_PHOTO, THE_DOG, words="expressions", end=b""),
    "a form that ends within the photograph": form(
        422, THE_DOG, words="photo", end=b"--x\r\n" + THE_PHOTO[0] + b"\r\n\r\n" + noise()[:3_000]
    ),
    "a form of another boundary": form(400, end=b"--y\r\n\r\nnonsense"),
    "a form without boundary": Sent(400, "boundary", body=b"x", headers={"Content-Type": "multipart/form-data"}),
    **{
        f"a form in {charset}": form(415, THE_PHOTO, part(b"expressions", b"dog-99"), words="UTF-8", charset=charset)
        for charset in ("punycode", "utf-16", "utf-7", "unicode_escape", "idna", "nonsense", "utf-8; charset=punycode")
    },
    "a form in UTF-8": form(200, THE_PHOTO, THE_DOG, charset="UTF-8"),
}

HEADERS = {
    "no content type": Sent(415, "multipart", body=b"{}"),
    "text": Sent(415, "multipart", body=b"{}", headers={"Content-Type": "text/plain"}),
    "an urlencoded form": Sent(415, "multipart", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    "a content type of bytes": Sent(415, "multipart", body=b"{}", headers={"Content-Type": "\xff\xfe"}),
    "a body that is not as encoded": Sent(422, body=b"{}", headers={**AS_JSON, "Content-Encoding": "gzip"}),
    "2.1 MB": Sent(413, "2 MB", body=bytes(2_100_000), headers=AS_JSON),
}

REQUESTS = {**METHODS, **PATHS, **BODIES, **FORMS, **HEADERS}

_POST = b"POST /v1/segment HTTP/1.1\r\nHost: x\r\n"
BYTES: dict[str, tuple[bytes, bytes]] = {
    "another protocol": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"400"),
    "HTTP/0.9": (b"GET /\r\n\r\n", b"400"),
    "no host": (b"POST /v1/segment HTTP/1.1\r\n\r\n", b"400"),
    "a negative length": (_POST + b"Content-Length: -5\r\n\r\n", b"400"),
    "a length in words": (_POST + b"Content-Length: many\r\n\r\n", b"400"),
    "a length beyond all numbers": (_POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n{", b"400"),
    "a length beyond the limit": (
        _POST + b"Content-Type: application/json\r\nContent-Length: 3000000\r\n\r\n{",
        b"413",
    ),
    "two lengths": (_POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
    "length and chunks": (_POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    "chunks that are none": (
        _POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"411",
    ),
    "a header of 200 kB": (_POST + b"X: " + b"y" * 200_000 + b"\r\n\r\n", b"431"),
    "a control character in the path": (b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    "a proxy's request": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    "a websocket": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"403",
    ),
}
"""Bytes on the connection, and the status that answers them."""

GONE: dict[str, bytes] = {
    "before a word": b"",
    "within the first line": b"POST /v1/seg",
    "within the headers": _POST + b"Content-Type: application/json\r\n",
    "within the body": _POST + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    "within a form": _POST
    + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 9000\r\n\r\n--x\r\nConte",
    "before the answer": _POST
    + AS_JSON["Content-Type"].join(("Content-Type: ", "\r\n")).encode()
    + f"Content-Length: {len(PHOTO) + 40}\r\n\r\n".encode()
    + f'{{"photo": "{PHOTO}", "expressions": ["dog"]}}'.encode().ljust(len(PHOTO) + 40),
}
"""What a client has sent when it hangs up."""
