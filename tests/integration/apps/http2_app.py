"""A page for a browser over HTTP/2: it checks the protocol of itself and of a hundred requests."""

import asyncio
import json
import os

PAGE = b"""<!doctype html><meta charset="utf-8"><title>HTTP/2</title><script>
async function report() {
  const said = [];
  try {
    const texts = await Promise.all(
      Array.from({length: 100}, (_, i) => fetch(`/item?${i}`).then((r) => r.text()))
    );
    said.push(texts.every((text, i) => text === `item ${i}`) ? "items" : "wrong items");
    const body = "x".repeat(300000);
    const sent = await fetch("/upload", {method: "POST", body}).then((r) => r.text());
    said.push(sent === "300000" ? "upload" : `wrong upload: ${sent}`);
    const abort = new AbortController();
    const endless = await fetch("/endless", {signal: abort.signal});
    await endless.body.getReader().read();
    abort.abort();
    const missing = await fetch("/missing", {method: "HEAD"});
    said.push(missing.status);
    const entries = performance.getEntriesByType("resource");
    const versions = new Set(entries.map((entry) => entry.nextHopProtocol));
    versions.add(performance.getEntriesByType("navigation")[0].nextHopProtocol);
    said.push([...versions].join("+"));
  } catch (error) {
    said.push(`failed: ${error}`);
  }
  await fetch("/report", {method: "POST", body: said.join(" ")});
}
addEventListener("load", report);
</script>"""

# Eight loops of requests, until the server says that it is enough.
STEADY = b"""<!doctype html><meta charset="utf-8"><title>Steady</title><script>
let answered = 0, lost = [];
async function loop(i) {
  for (let n = 0; ; n++) {
    try {
      const options = i % 2 ? {method: "POST", body: "x".repeat(1000)} : {};
      const text = await fetch(`/work?${i}.${n}`, options).then((r) => r.text());
      if (text === "enough") return;
      answered++;
    } catch (error) {
      lost.push(String(error));
      return;
    }
  }
}
async function report() {
  await Promise.all(Array.from({length: 8}, (_, i) => loop(i)));
  await fetch("/report", {method: "POST", body: `${answered} answered, lost: ${lost}`});
}
addEventListener("load", report);
</script>"""


async def app(scope, receive, send):
    assert scope["type"] == "http", scope["type"]
    path = scope["path"]
    if path == "/":
        await answer(send, PAGE, b"text/html")
    elif path == "/item":
        await asyncio.sleep(0.01)
        await answer(send, b"item " + scope["query_string"])
    elif path == "/steady":
        await answer(send, STEADY, b"text/html")
    elif path == "/work":
        await body(receive)
        await asyncio.sleep(0.02)
        await answer(send, b"enough" if os.path.exists("enough") else b"go on")
    elif path == "/upload":
        await answer(send, b"%d" % len(await body(receive)))
    elif path == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"e" * 9999, "more_body": True})
        finally:
            print("the endless body has ended", flush=True)
    elif path == "/report":
        print(f"the page says: {(await body(receive)).decode()}", flush=True)
        await answer(send, b"")
    elif path == "/hints":
        links = [b"</style.css>; rel=preload; as=style"]
        await send({"type": "http.response.early_hint", "links": links})
        headers = [(b"content-type", b"text/plain")]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await send({**start, "trailers": True})
        await send({"type": "http.response.body", "body": b"hinted"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})
    elif path == "/scope":
        scope.pop("state", None)
        await answer(send, json.dumps(scope, default=bytes.decode).encode())
    else:
        await answer(send, b"no such path", status=404)


async def body(receive):
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def answer(send, content, kind=b"text/plain", status=200):
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
