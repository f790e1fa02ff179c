"""An app with its own metrics, by prometheus-client in several processes."""

from prometheus_client import Counter, Gauge

SEEN = Counter("shop_orders", "Orders taken.")
WORKERS = Gauge("shop_workers", "Processes that take orders.", multiprocess_mode="livesum")
WORKERS.set(1)


def app(environ, start_response):
    SEEN.inc()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
