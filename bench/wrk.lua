-- For wrk: an optional body (a file's name after --), and the result as one line of JSON.

function init(args)
   if args[1] then
      wrk.method = "POST"
      local file = assert(io.open(args[1], "rb"))
      wrk.body = file:read("*a")
      file:close()
   end
end

function done(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "seconds": %.6f, "errors": %d, "p50_ms": %.3f, "p99_ms": %.3f, "p999_ms": %.3f}\n',
      summary.requests, summary.duration / 1e6,
      e.connect + e.read + e.write + e.status + e.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3))
end
